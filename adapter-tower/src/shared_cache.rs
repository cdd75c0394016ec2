//! A shared cache around a whole service.

use std::error::Error;
use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use larder_core::Larder;
use larder_core::shared::{SharedBody, SharedCache, SharedRule};
use tower_layer::Layer;
use tower_service::Service;

use crate::service::{AsReceived, TowerCall, UriSource};

/// A shared cache (RFC 9111) around a whole service: a gateway, a reverse proxy, or an application that sets its own caching
/// fields. The responses' fields decide what is stored: `Cache-Control`, `Expires`, `Vary`, `ETag` and so on.
///
/// Put it outside of layers that change bodies, where requests and responses are as on the wire. It stores the responses that
/// allow it, validates stale ones with the service, answers conditional requests and ranges from stored responses, and
/// invalidates the responses that a successful write makes obsolete. A response for one user must say `private`: the cache
/// can't tell otherwise.
///
/// Responses are streamed to the client while they are stored. If the store is down, requests go to the service.
///
/// Keys are made from the URI of the request that the layer gets. In an axum router use `larder_axum::SharedCacheLayer`: under
/// `nest`, this layer sees only the rest of each path, so `/v1/items` and `/v2/items` would share a key.
///
/// ```
/// # #[cfg(feature = "memory")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use std::convert::Infallible;
/// use std::time::Duration;
///
/// use bytes::Bytes;
/// use http::{HeaderName, Request, Response};
/// use http_body_util::{BodyExt, Full};
/// use larder_tower::{Larder, SharedCacheLayer};
/// use tower::{ServiceBuilder, ServiceExt};
///
/// let larder = Larder::memory();
/// let cache = SharedCacheLayer::with_rule(&larder, |rule| {
///     rule.stale_if_error = Duration::from_secs(600);
///     rule.targeted = vec![HeaderName::from_static("cdn-cache-control")];
/// });
/// let service = ServiceBuilder::new().layer(cache).service_fn(|_: Request<Full<Bytes>>| async {
///     let answer = Response::builder().header("cache-control", "max-age=60");
///     Ok::<_, Infallible>(answer.body(Full::new(Bytes::from("hello"))).unwrap())
/// });
///
/// let get = || Request::get("/hello").body(Full::default()).unwrap();
/// let first = service.clone().oneshot(get()).await.unwrap();
/// assert_eq!(first.headers()["cache-status"], "Larder; fwd=uri-miss; stored; detail=absent");
/// // The response is stored once its body has been read to the end.
/// first.into_body().collect().await.unwrap();
/// let second = service.clone().oneshot(get()).await.unwrap();
/// assert_eq!(second.headers()["cache-status"], "Larder; hit; ttl=60");
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
    type Service = SharedCacheService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        SharedCacheService::new(inner, Arc::clone(&self.cache))
    }
}

/// A service with a shared cache around it.
///
/// The inner service reports that it got no response with an error, or with
/// [`OriginFailed`](larder_core::shared::policy::OriginFailed) in the extensions of the response that it returns instead.
pub struct SharedCacheService<S, U = AsReceived> {
    inner: S,
    cache: Arc<SharedCache>,
    source: PhantomData<fn() -> U>,
}

impl<S, U> SharedCacheService<S, U> {
    /// Wraps `inner`, so that `cache` answers its requests.
    pub const fn new(inner: S, cache: Arc<SharedCache>) -> Self {
        Self { inner, cache, source: PhantomData }
    }
}

impl<S: Clone, U> Clone for SharedCacheService<S, U> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), Arc::clone(&self.cache))
    }
}

impl<S: fmt::Debug, U> fmt::Debug for SharedCacheService<S, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedCacheService")
            .field("inner", &self.inner)
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

impl<S, U, ReqBody, ResBody> Service<Request<ReqBody>> for SharedCacheService<S, U>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>, Future: Send, Error: Send>
        + Clone
        + Send
        + 'static,
    U: UriSource,
    ReqBody: Body + Send + 'static,
    ResBody: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>> + Send> + Send + 'static,
{
    type Response = Response<SharedBody<ResBody>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    /// Returns `Ready` always, so that hits are answered while the inner service is busy. A request that needs the inner service
    /// waits for it in `call`.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let call = TowerCall::<_, _, U>::new(self.inner.clone(), request);
        Box::pin(Arc::clone(&self.cache).handle(call))
    }
}
