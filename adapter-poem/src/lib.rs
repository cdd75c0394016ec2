//! Larder, the response cache, for [poem](https://docs.rs/poem).
//!
//! [`cache`], [`cache_put`] and [`cache_evict`] make middleware for the endpoints of a route. [`Backend`] gives a handler
//! typed access to the same store.
//!
//! ```
//! # #[cfg(feature = "memory")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use larder_poem::{Larder, cache, cache_evict, cache_put};
//! use poem::web::{Json, Path};
//! use poem::{Endpoint, EndpointExt, Request, Route, get, handler};
//!
//! #[handler]
//! async fn read(Path(id): Path<u64>) -> Json<u64> { Json(id) }
//! #[handler]
//! async fn replace(Path(id): Path<u64>) -> Json<u64> { Json(id * 2) }
//! #[handler]
//! async fn remove(Path(id): Path<u64>) -> Json<u64> { Json(id) }
//!
//! let larder = Larder::memory();
//! let app = Route::new().at(
//!     "/products/:id",
//!     get(read.with(cache(&larder).group("products").ttl(300)))
//!         .put(replace.with(cache_put(&larder).group("products").ttl(300)))
//!         .delete(remove.with(cache_evict(&larder).group("products").key())),
//! );
//!
//! let get = || Request::builder().uri_str("/products/7").finish();
//! let first = app.get_response(get()).await;
//! assert_eq!(first.header("x-redis-cache"), Some("MISS"));
//! let second = app.get_response(get()).await;
//! assert_eq!(second.header("x-redis-cache"), Some("HIT"));
//! # }
//! # #[cfg(not(feature = "memory"))] fn main() {}
//! ```
//!
//! Options, headers and safety rules are the same in every adapter. [The guide of
//! larder-axum](https://docs.rs/larder-axum/latest/larder_axum/guide/) describes them with examples for axum. [The core's
//! guide](https://docs.rs/larder-core/latest/larder_core/guide/) covers the topics that don't depend on a framework.
//!
//! # Differences in poem
//!
//! * Keys are made from the URI that the client sent, also under [`Route::nest`](poem::Route::nest). Requests from a `TestClient`
//!   or a `RequestBuilder` don't carry that URI: under `nest` their keys are made from the stripped path.
//! * An endpoint's `Err` passes through unchanged, without the cache's headers. It is never stored, also not with
//!   [`Cache::ttl_for`], and never counts as the success of a write. To cache a 404, return it as a response.
//! * A body of unknown length isn't stored, and poem's conversion of an `http::Response` drops the length of the body.
//!   An endpoint that returns an `http::Response` sets `Content-Length`, or makes the [`Response`] from bytes.
//! * poem's routers run the GET endpoint for a HEAD and drop the response's body, so a HEAD fills the cache too.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod endpoint;

use poem::web::Data;
use poem::{Endpoint, FromRequest, IntoResponse, Middleware, Request, RequestBody, Response, Result};

pub use endpoint::CacheEndpoint;
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

larder_core::tag_parts!();

/// Adds tags to a response: those that it carries, and those to evict.
///
/// ```
/// use larder_poem::{EvictTags, Larder, TagResponse, Tags, cache, cache_evict};
/// use poem::http::StatusCode;
/// use poem::web::{Json, Path};
/// use poem::{EndpointExt, Response, Route, get, handler};
///
/// #[handler]
/// async fn read(Path(id): Path<u64>) -> Response {
///     Json(id).with_tags(Tags::of([format!("product:{id}")]))
/// }
///
/// #[handler]
/// async fn replace(Path(id): Path<u64>) -> Response {
///     StatusCode::NO_CONTENT.evicting(EvictTags::of([format!("product:{id}")]))
/// }
///
/// # #[cfg(feature = "memory")] {
/// let larder = Larder::memory();
/// let app = Route::new().at(
///     "/products/:id",
///     get(read.with(cache(&larder).ttl(300))).put(replace.with(cache_evict(&larder).tags_of_response())),
/// );
/// # }
/// ```
pub trait TagResponse: IntoResponse + Sized {
    /// Returns the response with tags for its cache entry.
    fn with_tags(self, tags: Tags) -> Response {
        let mut response = self.into_response();
        response.extensions_mut().insert(tags.0);
        response
    }

    /// Returns the response of a write, after which these tags are evicted.
    fn evicting(self, tags: EvictTags) -> Response {
        let mut response = self.into_response();
        response.extensions_mut().insert(tags.0);
        response
    }
}

impl<R: IntoResponse> TagResponse for R {}

impl<E: Endpoint + 'static> Middleware<E> for Cache {
    type Output = CacheEndpoint<E>;

    fn transform(&self, endpoint: E) -> Self::Output {
        CacheEndpoint::new(endpoint, self.route())
    }
}

impl<E: Endpoint + 'static> Middleware<E> for CachePut {
    type Output = CacheEndpoint<E>;

    fn transform(&self, endpoint: E) -> Self::Output {
        CacheEndpoint::new(endpoint, self.route())
    }
}

impl<E: Endpoint + 'static, Target: larder_core::route::EvictTarget> Middleware<E> for CacheEvict<Target> {
    type Output = CacheEndpoint<E>;

    fn transform(&self, endpoint: E) -> Self::Output {
        CacheEndpoint::new(endpoint, self.route())
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
/// use larder_poem::{Larder, RequestView, console};
/// use poem::Route;
///
/// # #[cfg(feature = "memory")] {
/// let larder = Larder::memory();
/// let is_staff = |request: &RequestView<'_>| {
///     request.headers.get("x-auth-user").is_some_and(|user| user == "staff")
/// };
/// let app = Route::new().nest("/admin/cache", console(&larder, is_staff));
/// # }
/// ```
#[cfg(feature = "console")]
pub fn console<A: larder_core::console::Authorize>(
    larder: &Larder,
    authorize: A,
) -> impl Endpoint<Output = poem::Response> + use<A> {
    let console = larder_core::console::Console::new(larder, authorize);
    poem::endpoint::make(move |mut request: Request| {
        let console = console.clone();
        async move {
            let body = request.take_body().into_bytes_limit(larder_core::console::Console::MAX_BODY).await?;
            let view = endpoint::view(&request);
            let answer = console.answer(&view, request.uri().path(), &body).await;
            Ok::<_, poem::Error>(endpoint::with_body(answer, poem::Body::from_bytes))
        }
    })
}

/// Gives a handler the [`CacheBackend`] of the [`Larder`] that was attached with
/// [`data`](poem::EndpointExt::data). Without one the request fails with a 500, as poem's own `Data` does.
///
/// ```
/// use larder_poem::{Backend, Larder};
/// use poem::web::{Json, Path};
/// use poem::{EndpointExt, Route, get, handler};
///
/// #[handler]
/// async fn setting(Path(name): Path<String>, Backend(cache): Backend) -> Json<String> {
///     Json(cache.group("settings").get_or(&name, "default-value".to_owned()).await)
/// }
///
/// # #[cfg(feature = "memory")]
/// let app = Route::new().at("/settings/:name", get(setting)).data(Larder::memory());
/// ```
#[derive(Clone, Debug)]
pub struct Backend(pub CacheBackend);

impl<'a> FromRequest<'a> for Backend {
    async fn from_request(request: &'a Request, body: &mut RequestBody) -> Result<Self> {
        let Data(larder) = Data::<&Larder>::from_request(request, body).await?;
        Ok(Self(larder.backend()))
    }
}
