//! The contenders, and how each is put in front of the same app: as its own documentation starts. Where the default could only
//! lose, a documented option is set, which is named here and below the table.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::error_handling::HandleErrorLayer;
use axum::extract::OriginalUri;
use axum::handler::Handler;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Response;
use axum::routing::{delete, post};
use axum::{BoxError, Router};
use axum_response_cache::CacheLayer as AxumResponseCache;
use bytes::Bytes;
use hitbox::backend::{CacheBackend, DeleteStatus};
use hitbox::policy::PolicyConfig;
use hitbox::predicate::PredicateExt as _;
use hitbox::{CacheKey, Config, KeyPart};
use hitbox_backend::format::BincodeFormat;
use hitbox_http::extractors::Method as MethodExtractor;
use hitbox_http::extractors::path::PathExtractor as _;
use hitbox_http::predicates::header::{Header, Operation};
use hitbox_moka::MokaBackend;
use hitbox_redis::{ConnectionMode, RedisBackend as HitboxRedis};
use http_body::{Body, Frame, SizeHint};
use http_cache::{MokaCache, MokaManager};
use http_cache_tower_server::{ServerCacheLayer, ServerCacheOptions};
use larder_axum::larder_core::store::redis::{RedisOptions, RedisStore};
use larder_axum::{Larder, cache, cache_evict};
use redis::AsyncCommands as _;
use redis::aio::ConnectionManagerConfig;
use redis::io::tcp::TcpSettings;
use sync_wrapper::SyncWrapper;
use tokio::sync::OnceCell;
use tower::ServiceBuilder;
use tower::util::MapResponseLayer;
use tower_http_cache::prelude::{CacheLayer as TowerHttpCache, InMemoryBackend, RedisBackend};

use crate::app::{self, LIMIT, TTL, measured};

/// The limit of caches that count entries.
const ENTRIES: u64 = 10_000;

/// A cache in front of the app, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// The app without a cache, which all others are compared with.
    Bare,
    Larder,
    LarderRedis,
    /// On Redis, with entries in the local tier too.
    LarderLocal,
    /// A cache written by hand: one GET on one multiplexed connection, and SETEX after a miss.
    ByHand,
    AxumResponseCache,
    TowerHttpCache,
    TowerHttpCacheRedis,
    Hitbox,
    HitboxRedis,
    HttpCacheTowerServer,
    Nginx,
    Python,
}

/// All contenders, in the order of tables.
pub(crate) const ALL: [Contender; 13] = [
    Contender::Bare,
    Contender::Larder,
    Contender::LarderRedis,
    Contender::LarderLocal,
    Contender::ByHand,
    Contender::AxumResponseCache,
    Contender::TowerHttpCache,
    Contender::TowerHttpCacheRedis,
    Contender::Hitbox,
    Contender::HitboxRedis,
    Contender::HttpCacheTowerServer,
    Contender::Nginx,
    Contender::Python,
];

/// The place of a contender's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    None,
    Memory,
    Redis,
    /// In memory, over entries in Redis.
    MemoryOverRedis,
    Files,
}

impl Store {
    /// Returns `true` if it needs a Redis.
    pub(crate) fn needs_redis(self) -> bool {
        matches!(self, Self::Redis | Self::MemoryOverRedis)
    }

    /// Returns its name in tables.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::None => "–",
            Self::Memory => "memory",
            Self::Redis => "Redis",
            Self::MemoryOverRedis => "memory over Redis",
            Self::Files => "files",
        }
    }
}

impl Contender {
    /// Returns its name on the command line and in results.
    pub(crate) fn id(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Larder => "larder",
            Self::LarderRedis => "larder-redis",
            Self::LarderLocal => "larder-local",
            Self::ByHand => "by-hand",
            Self::AxumResponseCache => "axum-response-cache",
            Self::TowerHttpCache => "tower-http-cache",
            Self::TowerHttpCacheRedis => "tower-http-cache-redis",
            Self::Hitbox => "hitbox",
            Self::HitboxRedis => "hitbox-redis",
            Self::HttpCacheTowerServer => "http-cache-tower-server",
            Self::Nginx => "nginx",
            Self::Python => "fastapi-redis-sdk",
        }
    }

    /// Returns its name in tables.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Bare => "the bare handler",
            Self::Larder | Self::LarderRedis | Self::LarderLocal => "Larder",
            Self::ByHand => "GET and SETEX by hand",
            Self::TowerHttpCache | Self::TowerHttpCacheRedis => "tower-http-cache",
            Self::Hitbox | Self::HitboxRedis => "hitbox",
            Self::Nginx => "nginx proxy_cache",
            Self::AxumResponseCache | Self::HttpCacheTowerServer | Self::Python => self.id(),
        }
    }

    /// Returns its name with its store, for contenders with the same title.
    pub(crate) fn full_title(self) -> String {
        format!("{}, {}", self.title(), self.store().title())
    }

    /// Returns the place of its entries.
    pub(crate) fn store(self) -> Store {
        match self {
            Self::Bare => Store::None,
            Self::Larder
            | Self::AxumResponseCache
            | Self::TowerHttpCache
            | Self::Hitbox
            | Self::HttpCacheTowerServer => Store::Memory,
            Self::LarderRedis
            | Self::ByHand
            | Self::TowerHttpCacheRedis
            | Self::HitboxRedis
            | Self::Python => Store::Redis,
            Self::LarderLocal => Store::MemoryOverRedis,
            Self::Nginx => Store::Files,
        }
    }

    pub(crate) fn from_id(id: &str) -> Option<Self> {
        ALL.into_iter().find(|contender| contender.id() == id)
    }

    /// Returns the request that evicts an entry from it, or `None` if it can't evict.
    pub(crate) fn eviction(self) -> Option<Eviction> {
        match self {
            Self::Bare | Self::ByHand | Self::Nginx => None,
            Self::Larder | Self::LarderRedis | Self::LarderLocal | Self::Python => {
                Some(Eviction::new(Method::DELETE, "/slow"))
            }
            Self::AxumResponseCache => {
                Some(Eviction { header: Some("x-invalidate-cache"), ..Eviction::new(Method::GET, "/slow") })
            }
            _ => Some(Eviction::new(Method::POST, "/control/evict")),
        }
    }

    /// Returns `true` if it has a limit for the size of stored bodies.
    pub(crate) fn has_limit(self) -> bool {
        !matches!(
            self,
            Self::Bare | Self::ByHand | Self::Hitbox | Self::HitboxRedis | Self::Nginx | Self::Python
        )
    }

    /// Puts the app behind this contender, if that is a Rust crate.
    pub(crate) async fn mount(self, redis: &str) -> Router {
        match self {
            Self::Bare | Self::Nginx | Self::Python => app::bare(),
            Self::Larder => larder(&Larder::builder().max_body(LIMIT as u64).store(memory()).build()),
            Self::LarderRedis => {
                let store = RedisStore::new(RedisOptions::from_url(redis).expect("a valid URL"));
                larder(&Larder::builder().max_body(LIMIT as u64).store(store).build())
            }
            Self::LarderLocal => {
                let larder = Larder::from_vars(|name| match name {
                    "REDIS_URL" => Some(redis.to_owned()),
                    "REDIS_LOCAL_CACHE_BYTES" => Some((64 * 1024 * 1024).to_string()),
                    _ => None,
                });
                self::larder(&larder.expect("a Larder that can keep entries in this process too"))
            }
            Self::ByHand => by_hand(redis.to_owned()),
            Self::AxumResponseCache => {
                // From its README, with two methods from its documentation.
                let cache = AxumResponseCache::with_lifespan(TTL).body_limit(LIMIT).allow_invalidation();
                measured!(cache.clone()).merge(app::probes().layer(cache))
            }
            Self::TowerHttpCache => tower_http_cache(InMemoryBackend::new(ENTRIES)),
            Self::TowerHttpCacheRedis => {
                // The timeouts are from its README.
                let config = ConnectionManagerConfig::new()
                    .set_response_timeout(Some(Duration::from_secs(10)))
                    .set_connection_timeout(Some(Duration::from_secs(5)));
                let client = redis::Client::open(redis).expect("a valid URL");
                let manager = client.get_connection_manager_with_config(config).await.expect("Redis");
                tower_http_cache(RedisBackend::new(manager))
            }
            Self::Hitbox => {
                // Its documentation recommends this format. JSON, the default, is much slower.
                hitbox(MokaBackend::builder().max_entries(ENTRIES).value_format(BincodeFormat).build())
            }
            Self::HitboxRedis => {
                let backend = HitboxRedis::builder().connection(ConnectionMode::single(redis));
                hitbox(backend.build().expect("a valid URL"))
            }
            Self::HttpCacheTowerServer => http_cache_tower_server(),
        }
    }
}

/// A request that evicts `/slow`.
pub(crate) struct Eviction {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) header: Option<&'static str>,
}

impl Eviction {
    fn new(method: Method, path: &'static str) -> Self {
        Self { method, path, header: None }
    }
}

fn memory() -> larder_axum::MemoryStore {
    larder_axum::MemoryStore::new()
}

fn larder(larder: &Larder) -> Router {
    let layer = cache(larder).group("peers").ttl(TTL);
    let evict = delete(async || "gone").layer(cache_evict(larder).group("peers").key());
    measured!(layer.clone()).merge(app::probes().layer(layer)).route("/slow", evict)
}

fn by_hand(url: String) -> Router {
    let connection = std::sync::Arc::new(OnceCell::new());
    let handler = move |size: usize| {
        let (connection, url) = (connection.clone(), url.clone());
        async move |OriginalUri(uri): OriginalUri| {
            let connection = connection.get_or_init(async || {
                let info = redis::IntoConnectionInfo::into_connection_info(url).expect("a valid URL");
                let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
                let client = redis::Client::open(info).expect("a valid URL");
                client.get_multiplexed_async_connection().await.expect("Redis")
            });
            let mut connection: redis::aio::MultiplexedConnection = connection.await.clone();
            let found: Option<Vec<u8>> = connection.get(uri.path()).await.expect("Redis");
            let body = match found {
                Some(found) => Bytes::from(found),
                None => {
                    let body = larder_benches::body(size);
                    connection.set_ex::<_, _, ()>(uri.path(), &*body, TTL.as_secs()).await.expect("Redis");
                    body
                }
            };
            ([(CONTENT_TYPE, "application/json")], body)
        }
    };
    Router::new()
        .route("/small/{id}", axum::routing::get(handler.clone()(app::SMALL)))
        .route("/large/{id}", axum::routing::get(handler(app::LARGE)))
        .merge(app::probes())
}

/// Converts its error, which isn't axum's, as axum's documentation describes.
async fn internal_error(error: BoxError) -> (StatusCode, String) {
    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

fn tower_http_cache<B: tower_http_cache::backend::CacheBackend>(backend: B) -> Router {
    let cache = TowerHttpCache::builder(backend.clone()).ttl(TTL).max_body_size(Some(LIMIT)).build();
    let layer = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(internal_error))
        .layer(cache)
        .layer(MapResponseLayer::new(SyncBody::around));
    let evict = post(async move || match backend.invalidate("/slow").await {
        Ok(()) => StatusCode::NO_CONTENT,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    });
    measured!(layer.clone()).merge(app::probes().layer(layer)).route("/control/evict", evict)
}

/// From the documentation of hitbox-http, with the path as the key. A macro, because its types have no names.
macro_rules! hitbox_around {
    ($backend:expr) => {
        hitbox_tower::Cache::builder()
            .backend($backend)
            .config(
                Config::builder()
                    .request_predicate(
                        Header::new(Operation::Contains(CACHE_CONTROL, "no-cache".to_owned())).not(),
                    )
                    .response_predicate(hitbox_http::predicates::response::StatusCode::new(StatusCode::OK))
                    .extractor(MethodExtractor::new().path("/{path}*"))
                    .policy(PolicyConfig::builder().ttl(TTL).build())
                    .build(),
            )
            .build()
    };
}

fn hitbox<B: CacheBackend + Clone + Send + Sync + 'static>(backend: B) -> Router {
    let stored = backend.clone();
    let evict = post(async move || {
        let key = vec![KeyPart::new("method", Some("GET")), KeyPart::new("path", Some("slow"))];
        match stored.remove(&CacheKey::new("", 0, key)).await {
            Ok(DeleteStatus::Deleted(_)) => StatusCode::NO_CONTENT,
            Ok(DeleteStatus::Missing) => StatusCode::NOT_FOUND,
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    });
    let probes = app::probes().layer(hitbox_around!(backend.clone()));
    measured!(hitbox_around!(backend.clone())).merge(probes).route("/control/evict", evict)
}

/// It stores responses that declare a freshness lifetime, so the handlers set one.
fn http_cache_tower_server() -> Router {
    let manager = MokaManager::new(MokaCache::new(ENTRIES));
    let options = ServerCacheOptions { max_body_size: LIMIT, ..ServerCacheOptions::default() };
    let cache = ServerCacheLayer::new(manager).with_options(options);
    let layer = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(internal_error))
        .layer(cache.clone())
        .layer(MapResponseLayer::new(with_lifetime));
    let evict = post(async move || match cache.invalidate("GET /slow").await {
        Ok(()) => StatusCode::NO_CONTENT,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    });
    measured!(layer.clone()).merge(app::probes().layer(layer)).route("/control/evict", evict)
}

fn with_lifetime(mut response: Response) -> Response {
    const ONE_HOUR: HeaderValue = HeaderValue::from_static("max-age=3600");
    response.headers_mut().entry(CACHE_CONTROL).or_insert(ONE_HOUR);
    response
}

/// A `Sync` body around axum's, which isn't: the layer requires it.
struct SyncBody {
    body: SyncWrapper<axum::body::Body>,
    size: SizeHint,
}

impl SyncBody {
    fn around(response: Response) -> axum::http::Response<Self> {
        response.map(|body| Self { size: body.size_hint(), body: SyncWrapper::new(body) })
    }
}

impl Body for SyncBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(self.body.get_mut()).poll_frame(cx)
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}
