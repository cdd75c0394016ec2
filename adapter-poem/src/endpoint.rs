//! The endpoint with a cache around it. It passes the request to the route, which decides, and runs the inner endpoint when the
//! route asks for it.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use larder_core::{Call, KeyUri, ReplyBody, RequestView, Route};
use poem::http::header::CONTENT_LENGTH;
use poem::http::{self, Extensions, HeaderMap, HeaderValue, StatusCode, Uri};
use poem::{Body, Endpoint, Error, IntoResponse, PathPattern, Request, Response, ResponseParts, Result};

/// An endpoint with a cache around it.
pub struct CacheEndpoint<E> {
    inner: Arc<E>,
    route: Arc<Route>,
}

impl<E> CacheEndpoint<E> {
    /// Wraps `inner`, so that `route` answers its requests.
    pub fn new(inner: E, route: Arc<Route>) -> Self {
        Self { inner: Arc::new(inner), route }
    }
}

impl<E> fmt::Debug for CacheEndpoint<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Few endpoints implement `Debug`.
        f.debug_struct("CacheEndpoint").field("route", &self.route).finish_non_exhaustive()
    }
}

impl<E: Endpoint + 'static> Endpoint for CacheEndpoint<E> {
    type Output = Response;

    async fn call(&self, mut request: Request) -> Result<Response> {
        let (key_uri, has_content) = (key_uri(&request), has_content(&mut request));
        let call = PoemCall { endpoint: Arc::clone(&self.inner), request, key_uri, has_content };
        Arc::clone(&self.route).handle(call).await.map(response)
    }
}

/// A request, and the endpoint that answers it if the cache doesn't.
struct PoemCall<E> {
    endpoint: Arc<E>,
    request: Request,
    key_uri: KeyUri,
    has_content: bool,
}

/// The type inside poem's own body. Unwrapping and wrapping it copies nothing.
type PoemBody = BoxBody<Bytes, io::Error>;

impl<E: Endpoint + 'static> Call for PoemCall<E> {
    type Body = PoemBody;
    type Error = Error;

    fn view(&self) -> RequestView<'_> {
        let view = view(&self.request);
        view.with_key_uri(view.uri, &self.key_uri)
            .with_pattern(pattern(&self.request))
            .with_content(self.has_content)
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        self.request.headers_mut()
    }

    fn extensions_mut(&mut self) -> &mut Extensions {
        self.request.extensions_mut()
    }

    fn status_of(error: &Error) -> StatusCode {
        error.status()
    }

    async fn run(self) -> Result<http::Response<PoemBody>> {
        Ok(self.endpoint.call(self.request).await?.into_response().into())
    }
}

pub(crate) fn view(request: &Request) -> RequestView<'_> {
    RequestView::new(request.method(), sent(request), request.headers(), request.extensions())
}

/// Returns the URI that the client sent, before routers shortened it. For a request that didn't come from a server, poem
/// reports `/`, and this returns the current URI.
fn sent(request: &Request) -> &Uri {
    let original = request.original_uri();
    if original == "/" { request.uri() } else { original }
}

fn key_uri(request: &Request) -> KeyUri {
    let (sent, seen) = (sent(request), request.uri());
    match pattern(request) {
        // Outside of routers the URI is unchanged.
        None => KeyUri::of(sent, seen, None),
        Some(pattern) => KeyUri::of_pattern(sent, seen, pattern),
    }
}

fn pattern(request: &Request) -> Option<&str> {
    request.data::<PathPattern>().map(|PathPattern(pattern)| &**pattern)
}

/// Returns `true` if the request has content. poem gives access to a body only by value.
fn has_content(request: &mut Request) -> bool {
    let body = request.take_body();
    let has_content = !body.is_empty();
    request.set_body(body);
    has_content
}

fn response(answer: http::Response<ReplyBody<PoemBody>>) -> Response {
    let (mut parts, body) = answer.into_parts();
    let body = match body.as_bytes() {
        Some(bytes) => {
            // A router that runs a HEAD as GET drops the body afterwards, and with it the length, which must be that of the
            // GET (RFC 9110 §9.3.2). An empty response may be a 304 or a 204, which have no `Content-Length`.
            if !bytes.is_empty() {
                parts.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(bytes.len()));
            }
            Body::from_bytes(bytes.clone())
        }
        None => PoemBody::new(body).into(),
    };
    with_body(http::Response::from_parts(parts, body), |body| body)
}

/// Converts to poem's response type, and keeps the body's length known.
pub(crate) fn with_body<B>(answer: http::Response<B>, convert: impl FnOnce(B) -> Body) -> Response {
    let (parts, body) = answer.into_parts();
    let parts = ResponseParts {
        status: parts.status,
        version: parts.version,
        headers: parts.headers,
        extensions: parts.extensions,
    };
    Response::from_parts(parts, convert(body))
}
