//! The parts that benches share: the same request, responses and ways to call, so that their numbers can be compared.
//!
//! ```text
//! cargo bench -p larder-benches --bench parts             the parts, in nanoseconds
//! cargo bench -p larder-benches --bench parts -- policy   one of: policy, key, entry, exchange, stores
//! cargo bench -p larder-benches --bench instructions      the instructions of a request, counted by valgrind
//! cargo bench -p larder-benches --bench whole             whole requests over HTTP, compared with the bare handler
//! ```
//!
//! Cases with Redis are skipped where no `redis-server` can be started.

mod machine;
mod redis_server;
mod stats;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CONTENT_TYPE, HOST, REFERER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use larder_core::route::RouteOptions;
use larder_core::{Call, Entry, Kind, Larder, RequestView, Route};

pub use machine::machine;
pub use redis_server::RedisServer;
pub use stats::Interval;

/// A small body, in bytes: a JSON object with a few fields.
pub const SMALL: usize = 550;

/// A large body, in bytes: a page of JSON objects.
pub const LARGE: usize = 50_000;

/// The path of the request.
pub const PATH: &str = "/products/7?currency=eur&lang=en";

/// The TTL of all responses.
pub const TTL: Duration = Duration::from_secs(300);

/// Returns a body of `len` bytes that looks like JSON.
#[must_use]
pub fn body(len: usize) -> Bytes {
    br#"{"id":7,"name":"Earl Grey","price":"4.20"},"#.iter().copied().cycle().take(len).collect()
}

/// Returns a GET with the fields that browsers send.
#[must_use]
pub fn get(uri: &str) -> Request<Empty<Bytes>> {
    let mut request = Request::get(uri).body(Empty::new()).expect("a valid URI");
    *request.headers_mut() = [
        (HOST, "shop.example"),
        (USER_AGENT, "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        (ACCEPT, "application/json, text/plain, */*"),
        (ACCEPT_LANGUAGE, "en-GB,en;q=0.7"),
        (ACCEPT_ENCODING, "gzip, deflate, br, zstd"),
        (REFERER, "https://shop.example/tea"),
    ]
    .into_iter()
    .map(|(name, value)| (name, HeaderValue::from_static(value)))
    .collect();
    request
}

/// Returns the handler's response.
#[must_use]
pub fn response(body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Returns a stored response with this many fields, including `Content-Type` and `ETag`.
#[must_use]
pub fn entry(body: Bytes, fields: usize) -> Entry {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(http::header::ETAG, larder_core::weak_etag(&body));
    for index in headers.len()..fields {
        let name = HeaderName::try_from(format!("x-field-{index}")).expect("a valid name");
        headers.insert(name, HeaderValue::from_static("a value of the usual length"));
    }
    headers =
        headers.into_iter().take(fields).map(|(name, value)| (name.expect("one each"), value)).collect();
    let mut entry = Entry::new(StatusCode::OK, headers, body, std::time::SystemTime::now());
    entry.ttl = Some(TTL);
    entry.provenance.is_canonical = true;
    entry.tells_credentials = true;
    entry
}

/// A route that reads, in the group `products`.
#[must_use]
pub fn route(larder: &Larder) -> Arc<Route> {
    RouteOptions::new(larder, Kind::Read).group("products").ttl(TTL.into()).route()
}

/// A request and a handler that answers at once with this body.
#[derive(Clone, Debug)]
pub struct Direct {
    /// The request.
    pub request: Request<Empty<Bytes>>,
    /// The body of the handler's response.
    pub body: Bytes,
}

impl Call for Direct {
    type Body = Full<Bytes>;
    type Error = Infallible;

    fn view(&self) -> RequestView<'_> {
        RequestView::from(&self.request)
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        self.request.headers_mut()
    }

    fn extensions_mut(&mut self) -> &mut http::Extensions {
        self.request.extensions_mut()
    }

    async fn run(self) -> Result<Response<Full<Bytes>>, Infallible> {
        Ok(response(self.body).map(Full::new))
    }
}

/// Returns the output of a future that never waits, without the overhead of a runtime.
///
/// # Panics
///
/// If the future waits.
pub fn at_once<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a future that doesn't wait")
}

/// Returns a runtime on this thread.
#[must_use]
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}
