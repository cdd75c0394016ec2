//! The service with a cache around it. It passes the request to the route, which decides, and runs the inner service when the
//! route asks for it.

use std::future::poll_fn;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Extensions, HeaderMap, Request, Response, Uri};
use http_body::Body;
use larder_core::{Call, KeyUri, ReplyBody, RequestView, ResponseFuture, Route};
use tower_service::Service;

/// A service with a cache around it.
#[derive(Debug)]
pub struct CacheService<S, U = AsReceived> {
    inner: S,
    route: Arc<Route>,
    uri: PhantomData<fn() -> U>,
}

impl<S, U> CacheService<S, U> {
    /// Wraps `inner`, so that `route` answers its requests.
    pub const fn new(inner: S, route: Arc<Route>) -> Self {
        Self { inner, route, uri: PhantomData }
    }
}

impl<S: Clone, U> Clone for CacheService<S, U> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), Arc::clone(&self.route))
    }
}

/// Access to what a framework's router keeps about a request: the URI that the client sent, the URI for keys, and the matched
/// pattern.
#[doc(hidden)]
pub trait UriSource: 'static {
    /// Returns the URI that the client sent. `current` is the request's URI now.
    fn uri<'a>(current: &'a Uri, extensions: &'a Extensions) -> &'a Uri;

    /// Returns the URI that keys are made from, if it isn't the one that the client sent. See [`KeyUri`].
    fn key_uri(_current: &Uri, _extensions: &Extensions) -> KeyUri {
        KeyUri::AsSent
    }

    /// Returns the matched pattern, such as `/products/{id}`, if a router keeps it with the request.
    fn pattern(_extensions: &Extensions) -> Option<&str> {
        None
    }
}

/// A `UriSource` for services outside of routers: the request's URI is the one that the client sent.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct AsReceived;

impl UriSource for AsReceived {
    fn uri<'a>(current: &'a Uri, _: &'a Extensions) -> &'a Uri {
        current
    }
}

impl<S, U, ReqBody, ResBody> Service<Request<ReqBody>> for CacheService<S, U>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>, Future: Send, Error: Send>
        + Clone
        + Send
        + 'static,
    U: UriSource,
    ReqBody: Body + Send + 'static,
    ResBody: Body<Data: Send, Error: Send> + Send + 'static,
{
    type Response = Response<ReplyBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<ResBody, S::Error>;

    /// Returns `Ready` always, so that hits are answered while the inner service is busy. A request that needs the inner service
    /// waits for it in `call`.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let key_uri = U::key_uri(request.uri(), request.extensions());
        match self.route.try_hit(view::<U, _>(&request, &key_uri)) {
            Ok(response) => ResponseFuture::ready(response),
            Err(unanswered) => {
                let service = self.inner.clone();
                unanswered.respond(TowerCall { service, request, key_uri, source: self.uri })
            }
        }
    }
}

fn view<'a, U: UriSource, B: Body>(request: &'a Request<B>, key_uri: &'a KeyUri) -> RequestView<'a> {
    let view = RequestView::from(request);
    view.with_key_uri(U::uri(view.uri, view.extensions), key_uri)
        .with_pattern(U::pattern(view.extensions))
        .with_content(has_content(request.body()))
}

/// Returns `true` if the body isn't at its end, unless its exact size is zero.
fn has_content(body: &impl Body) -> bool {
    !body.is_end_stream() && body.size_hint().exact() != Some(0)
}

/// A request, and the service that answers it if the cache doesn't.
pub(crate) struct TowerCall<S, ReqBody, U> {
    service: S,
    request: Request<ReqBody>,
    key_uri: KeyUri,
    source: PhantomData<fn() -> U>,
}

impl<S, ReqBody, U: UriSource> TowerCall<S, ReqBody, U> {
    pub(crate) fn new(service: S, request: Request<ReqBody>) -> Self {
        let key_uri = U::key_uri(request.uri(), request.extensions());
        Self { service, request, key_uri, source: PhantomData }
    }
}

impl<S, U, ReqBody, ResBody> Call for TowerCall<S, ReqBody, U>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>, Future: Send, Error: Send> + Send + 'static,
    U: UriSource,
    ReqBody: Body + Send + 'static,
    ResBody: Body<Data: Send, Error: Send> + Send + 'static,
{
    type Body = ResBody;
    type Error = S::Error;

    fn view(&self) -> RequestView<'_> {
        view::<U, _>(&self.request, &self.key_uri)
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        self.request.headers_mut()
    }

    fn extensions_mut(&mut self) -> &mut Extensions {
        self.request.extensions_mut()
    }

    async fn run(mut self) -> Result<Response<ResBody>, S::Error> {
        poll_fn(|context| self.service.poll_ready(context)).await?;
        self.service.call(self.request).await
    }
}
