//! Larder, the response cache, for [axum](https://docs.rs/axum).
//!
//! [`cache`], [`cache_put`] and [`cache_evict`] make layers for the handlers of a route. [`Backend`] gives a handler
//! typed access to the same store.
//!
//! ```
//! # #[cfg(feature = "memory")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use axum::{Json, Router, body::Body, extract::Path, handler::Handler, http::Request, routing::get};
//! use larder_axum::{Larder, cache, cache_evict, cache_put};
//! use tower::ServiceExt;
//!
//! async fn read(Path(id): Path<u64>) -> Json<u64> { Json(id) }
//! async fn replace(Path(id): Path<u64>) -> Json<u64> { Json(id * 2) }
//! async fn remove(Path(id): Path<u64>) -> Json<u64> { Json(id) }
//!
//! let larder = Larder::memory();
//! let app: Router = Router::new().route(
//!     "/products/{id}",
//!     get(read.layer(cache(&larder).group("products").ttl(300)))
//!         .put(replace.layer(cache_put(&larder).group("products").ttl(300)))
//!         .delete(remove.layer(cache_evict(&larder).group("products").key())),
//! );
//!
//! let get = || Request::get("/products/7").body(Body::empty()).unwrap();
//! let first = app.clone().oneshot(get()).await.unwrap();
//! assert_eq!(first.headers()["x-redis-cache"], "MISS");
//! let second = app.oneshot(get()).await.unwrap();
//! assert_eq!(second.headers()["x-redis-cache"], "HIT");
//! # }
//! # #[cfg(not(feature = "memory"))] fn main() {}
//! ```
//!
//! Keys are made from the URI that the client sent, also under [`Router::nest`](axum::Router::nest).
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    all(feature = "memory", feature = "redis"),
    doc = "",
    doc = "The [`guide`] has pages on [setting up](guide::setup), [routes](guide::routes), [keys](guide::keys),",
    doc = "[groups](guide::groups), [tags](guide::tags), [headers](guide::headers), [safety](guide::safety), [other layers](guide::layers),",
    doc = "[the backend](guide::backend), [layers and backend together](guide::combining), [lifetimes](guide::ttl),",
    doc = "[telemetry](guide::telemetry), [testing](guide::testing), and [all features](guide::features).",
    doc = "The topics that don't depend on axum are in [the core's guide](larder_core::guide)."
)]

// The guide's examples use the memory store, and its pages link to both stores.
#[cfg(all(feature = "memory", feature = "redis"))]
pub mod guide;

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use axum::extract::{FromRef, FromRequestParts, MatchedPath, NestedPath, OriginalUri, RawPathParams};
use axum::response::{IntoResponse, IntoResponseParts, Response, ResponseParts};
use http::request::Parts;
use http::{Extensions, Request, Uri};
use larder_core::KeyUri;
use larder_core::shared::{SharedCache, SharedRule};
use larder_tower::{CacheService, SharedCacheService, UriSource};
use tower_layer::Layer;

// The names that routes need. Everything else is in `larder_core`.
pub use larder_core;
#[cfg(feature = "memory")]
pub use larder_core::MemoryStore;
pub use larder_core::tag::TagField;
pub use larder_core::{
    CacheBackend, CacheError, CacheKey, CacheStore, ConfigError, Eviction, KeyBuilder, KeySpace, Larder,
    LarderBuilder, ManualClock, Reason, RequestView, Stats, Status, StoreError, Ttl, default_key,
};
#[cfg(feature = "redis")]
pub use larder_core::{RedisOptions, RedisStore};

larder_core::route_layers!();

/// A `UriSource` for axum: the URI that the client sent, before nested routers stripped a part of it. axum keeps that URI and the
/// matched pattern in the request's extensions.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct BeforeNesting;

impl UriSource for BeforeNesting {
    fn uri<'a>(current: &'a Uri, extensions: &'a Extensions) -> &'a Uri {
        extensions.get::<OriginalUri>().map_or(current, |OriginalUri(uri)| uri)
    }

    fn key_uri(current: &Uri, extensions: &Extensions) -> KeyUri {
        let Some(OriginalUri(sent)) = extensions.get::<OriginalUri>() else { return KeyUri::AsSent };
        if is_same(sent, current) {
            return KeyUri::AsSent;
        }
        match extensions.get::<NestedPath>().map(NestedPath::as_str) {
            Some(mount) if mount.contains('{') => {
                let values = path_params(extensions);
                KeyUri::of_mount(sent, current, mount, values.as_ref().into_iter().flatten())
            }
            mount => KeyUri::of(sent, current, mount),
        }
    }

    fn pattern(extensions: &Extensions) -> Option<&str> {
        extensions.get::<MatchedPath>().map(MatchedPath::as_str)
    }
}

/// Returns the values of the parameters in the paths of the routers. `None` if one isn't UTF-8.
fn path_params(extensions: &Extensions) -> Option<RawPathParams> {
    // axum offers them only as an extractor, which doesn't wait.
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.extensions = extensions.clone();
    let params = pin!(RawPathParams::from_request_parts(&mut parts, &()));
    match params.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(params) => params.ok(),
        Poll::Pending => None,
    }
}

/// Returns `true` if both URIs share their bytes in memory, so that no layer has changed either. Returns `false` for a lone `/`,
/// which is always the same static string.
fn is_same(sent: &Uri, current: &Uri) -> bool {
    let whole = |uri: &Uri| uri.path_and_query().map(|path| std::ptr::from_ref(path.as_str()));
    current.path().len() > 1
        && whole(sent).is_some_and(|sent| whole(current).is_some_and(|it| std::ptr::eq(it, sent)))
}

larder_core::tag_parts!();

impl IntoResponse for Tags {
    fn into_response(self) -> Response {
        (self, ()).into_response()
    }
}

impl IntoResponse for EvictTags {
    fn into_response(self) -> Response {
        (self, ()).into_response()
    }
}

/// ```
/// use axum::{Json, Router, extract::Path, handler::Handler, routing::get};
/// use larder_axum::{Larder, Tags, cache};
///
/// async fn read(Path(id): Path<u64>) -> (Tags, Json<u64>) {
///     (Tags::of([format!("product:{id}")]), Json(id))
/// }
///
/// # #[cfg(feature = "memory")] {
/// let larder = Larder::memory();
/// let app: Router = Router::new().route("/products/{id}", get(read.layer(cache(&larder).ttl(300))));
/// # }
/// ```
impl IntoResponseParts for Tags {
    type Error = Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Infallible> {
        parts.extensions_mut().insert(self.0);
        Ok(parts)
    }
}

/// ```
/// use axum::{Router, extract::Path, handler::Handler, http::StatusCode, routing::put};
/// use larder_axum::{EvictTags, Larder, cache_evict};
///
/// async fn replace(Path(id): Path<u64>) -> (EvictTags, StatusCode) {
///     (EvictTags::of([format!("product:{id}")]), StatusCode::NO_CONTENT)
/// }
///
/// # #[cfg(feature = "memory")] {
/// let larder = Larder::memory();
/// let app: Router =
///     Router::new().route("/products/{id}", put(replace.layer(cache_evict(&larder).tags_of_response())));
/// # }
/// ```
impl IntoResponseParts for EvictTags {
    type Error = Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Infallible> {
        parts.extensions_mut().insert(self.0);
        Ok(parts)
    }
}

impl<S> Layer<S> for Cache {
    type Service = CacheService<S, BeforeNesting>;

    fn layer(&self, inner: S) -> Self::Service {
        CacheService::new(inner, self.route())
    }
}

impl<S> Layer<S> for CachePut {
    type Service = CacheService<S, BeforeNesting>;

    fn layer(&self, inner: S) -> Self::Service {
        CacheService::new(inner, self.route())
    }
}

impl<S, Target: larder_core::route::EvictTarget> Layer<S> for CacheEvict<Target> {
    type Service = CacheService<S, BeforeNesting>;

    fn layer(&self, inner: S) -> Self::Service {
        CacheService::new(inner, self.route())
    }
}

/// A shared cache (RFC 9111) around a router whose handlers set their own `Cache-Control`.
///
/// It works like `larder_tower::SharedCacheLayer`, except that keys are made from the URI that the client sent, also under
/// [`Router::nest`](axum::Router::nest). [The core's guide](https://docs.rs/larder-core/latest/larder_core/guide/shared/) compares
/// shared caches with routes.
///
/// ```
/// # #[cfg(feature = "memory")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use axum::{Router, body::{Body, to_bytes}, http::{Request, header::CACHE_CONTROL}, routing::get};
/// use larder_axum::{Larder, SharedCacheLayer};
/// use tower::ServiceExt;
///
/// let shared = SharedCacheLayer::new(&Larder::memory());
/// let version = |name: &'static str| {
///     Router::new().route("/items", get(async move || ([(CACHE_CONTROL, "max-age=60")], name))).layer(shared.clone())
/// };
/// let app: Router = Router::new().nest("/v1", version("one")).nest("/v2", version("two"));
///
/// for (uri, expected) in [("/v1/items", "one"), ("/v2/items", "two")] {
///     let request = Request::get(uri).body(Body::empty()).unwrap();
///     let response = app.clone().oneshot(request).await.unwrap();
///     assert_eq!(to_bytes(response.into_body(), 100).await.unwrap(), expected);
/// }
/// # }
/// # #[cfg(not(feature = "memory"))] fn main() {}
/// ```
#[derive(Clone, Debug)]
pub struct SharedCacheLayer {
    cache: Arc<SharedCache>,
}

impl SharedCacheLayer {
    /// Creates a shared cache with the default rule.
    #[must_use]
    pub fn new(larder: &Larder) -> Self {
        Self { cache: Arc::new(SharedCache::new(larder)) }
    }

    /// Creates a shared cache whose rule `change` adjusts.
    #[must_use]
    #[track_caller]
    pub fn with_rule(larder: &Larder, change: impl FnOnce(&mut SharedRule)) -> Self {
        Self { cache: Arc::new(SharedCache::with_rule(larder, change)) }
    }

    /// Returns the cache, for evictions.
    #[must_use]
    pub const fn cache(&self) -> &Arc<SharedCache> {
        &self.cache
    }
}

impl<S> Layer<S> for SharedCacheLayer {
    type Service = SharedCacheService<S, BeforeNesting>;

    fn layer(&self, inner: S) -> Self::Service {
        SharedCacheService::new(inner, Arc::clone(&self.cache))
    }
}

/// Returns the console: a page that shows what the cache does and why, and that evicts entries. Nest it under a path.
///
/// `authorize` is a function from the request to `true` or `false`, or a type that implements
/// [`Authorize`](larder_core::console::Authorize). The console calls it for every request. A client that it allows may evict.
/// Requests from other sites may not evict, whatever credentials they carry.
///
/// Once the console is made, the cache keeps its last requests, with their paths and queries, for at most half an hour.
///
/// ```
/// use axum::Router;
/// use larder_axum::{Larder, RequestView, console};
///
/// # #[cfg(feature = "memory")] {
/// let larder = Larder::memory();
/// let is_staff = |request: &RequestView<'_>| {
///     request.headers.get("x-auth-user").is_some_and(|user| user == "staff")
/// };
/// let app: Router = Router::new().nest("/admin/cache", console(&larder, is_staff));
/// # }
/// ```
#[cfg(feature = "console")]
pub fn console<S: Clone + Send + Sync + 'static>(
    larder: &Larder,
    authorize: impl larder_core::console::Authorize,
) -> axum::Router<S> {
    use axum::body::{Body, to_bytes};
    use axum::response::IntoResponse as _;

    let console = larder_core::console::Console::new(larder, authorize);
    let answer = move |request: http::Request<Body>| async move {
        let (parts, body) = request.into_parts();
        let Ok(body) = to_bytes(body, larder_core::console::Console::MAX_BODY).await else {
            return http::StatusCode::PAYLOAD_TOO_LARGE.into_response();
        };
        let uri = BeforeNesting::uri(&parts.uri, &parts.extensions);
        let view = RequestView::from(&parts).with_uri(uri);
        console.answer(&view, parts.uri.path(), &body).await.map(Body::from)
    };
    axum::Router::new().fallback(answer)
}

/// Gives a handler the [`CacheBackend`] of the [`Larder`] in the router's state.
///
/// ```
/// use axum::{Json, Router, extract::Path, routing::get};
/// use larder_axum::{Backend, Larder};
///
/// async fn setting(Path(name): Path<String>, Backend(cache): Backend) -> Json<String> {
///     Json(cache.group("settings").get_or(&name, "default-value".to_owned()).await)
/// }
///
/// # #[cfg(feature = "memory")]
/// let app: Router = Router::new().route("/settings/{name}", get(setting)).with_state(Larder::memory());
/// ```
#[derive(Clone, Debug)]
pub struct Backend(pub CacheBackend);

impl<S> FromRequestParts<S> for Backend
where
    Larder: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Infallible;

    async fn from_request_parts(_: &mut Parts, state: &S) -> Result<Self, Infallible> {
        Ok(Self(Larder::from_ref(state).backend()))
    }
}
