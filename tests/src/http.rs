//! A small HTTP/1.1 client that shows the response as it was sent.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// The longest time that a request may take before a test fails.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A client of one server. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Http {
    address: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Http {
    /// A client of the server at `address`.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self { address, client: Client::builder(TokioExecutor::new()).build(connector) }
    }

    /// `GET path`.
    pub async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, &[], "").await
    }

    /// `GET path` with header fields.
    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.request(Method::GET, path, headers, "").await
    }

    /// `HEAD path`.
    pub async fn head(&self, path: &str) -> Answer {
        self.request(Method::HEAD, path, &[], "").await
    }

    /// `PUT path` with a JSON body.
    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send_json(Method::PUT, path, body).await
    }

    /// `POST path` with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send_json(Method::POST, path, body).await
    }

    /// `DELETE path`.
    pub async fn delete(&self, path: &str) -> Answer {
        self.request(Method::DELETE, path, &[], "").await
    }

    async fn send_json(&self, method: Method, path: &str, body: &Value) -> Answer {
        self.request(method, path, &[JSON], &body.to_string()).await
    }

    /// Sends any request. Panics if the whole response takes longer than 20 seconds.
    pub async fn request(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let began = Instant::now();
        let name = format!("{method} {path}");
        let whole = async {
            let (parts, incoming) = self.open(method, path, headers, body).await.into_parts();
            let body = incoming.collect().await.unwrap_or_else(|error| panic!("{name}: {error}")).to_bytes();
            (parts, body)
        };
        let (parts, body) =
            timeout(TIMEOUT, whole).await.unwrap_or_else(|_| panic!("{name}: no answer within {TIMEOUT:?}"));
        Answer { request: name, status: parts.status, headers: parts.headers, body, took: began.elapsed() }
    }

    /// Sends any request, and leaves the body of the response to be read.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Response<Incoming> {
        let name = format!("{method} {path}");
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (field, value) in headers {
            request = request.header(*field, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
        self.client.request(request).await.unwrap_or_else(|error| panic!("{name}: {error:?}"))
    }

    /// Sends a whole request over a new connection, and disconnects `after` that without reading the response.
    pub async fn hang_up(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
        after: Duration,
    ) {
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.address);
        for (field, value) in headers {
            text.push_str(&format!("{field}: {value}\r\n"));
        }
        text.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        sleep(after).await;
        drop(stream);
    }
}

/// The field of a JSON body.
pub const JSON: (&str, &str) = ("content-type", "application/json");

/// A whole response.
#[derive(Clone)]
pub struct Answer {
    /// The method and the path, for messages.
    pub request: String,
    /// The status.
    pub status: StatusCode,
    /// The header fields.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// The time from the request to the last byte.
    pub took: Duration,
}

impl Answer {
    /// Returns a header field, or the empty string.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Returns the value of `X-Redis-Cache`.
    #[must_use]
    pub fn cache(&self) -> &str {
        self.header("x-redis-cache")
    }

    /// Returns the entity tag.
    #[must_use]
    pub fn etag(&self) -> &str {
        self.header("etag")
    }

    /// Returns the body as JSON.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// Returns the seconds of `max-age` in `Cache-Control`, if there are any.
    #[must_use]
    pub fn max_age(&self) -> Option<u64> {
        self.header("cache-control")
            .split(',')
            .find_map(|directive| directive.trim().strip_prefix("max-age="))
            .map(|seconds| seconds.parse().unwrap())
    }

    /// Panics unless the status is 200.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.expect_status(StatusCode::OK)
    }

    /// Panics unless the status is this one.
    #[track_caller]
    pub fn expect_status(self, status: StatusCode) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// Panics unless this is a 200 that came from the cache.
    #[track_caller]
    pub fn expect_hit(self) -> Self {
        let answer = self.ok();
        assert_eq!(answer.cache(), "HIT", "{answer:?}");
        answer
    }

    /// Panics unless this is a 200 that came from the handler and could be stored.
    #[track_caller]
    pub fn expect_miss(self) -> Self {
        let answer = self.ok();
        assert_eq!(answer.cache(), "MISS", "{answer:?}");
        answer
    }

    /// Panics unless the response bypassed the cache: it says so, and has no `max-age`.
    #[track_caller]
    pub fn expect_bypass(self) -> Self {
        assert_eq!(self.cache(), "BYPASS", "{self:?}");
        assert_eq!(self.max_age(), None, "{self:?}");
        self
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        let body: String = body.chars().take(300).collect();
        write!(f, "{} -> {} in {:?} {:?} {body:?}", self.request, self.status, self.took, self.headers)
    }
}
