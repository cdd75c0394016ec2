//! Services called in this process, on every store, for what can't be seen or arranged over a socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use larder_axum::Larder;
use tower::ServiceExt;

use crate::redis_server::RedisServer;

/// A cache on one kind of store, with the server that it needs.
#[derive(Debug)]
pub struct Fixture {
    /// The cache.
    pub larder: Larder,
    /// The server, if the store has one.
    pub redis: Option<RedisServer>,
}

impl Fixture {
    /// Creates a cache in memory.
    pub fn memory() -> Self {
        Self { larder: Larder::memory(), redis: None }
    }

    /// Creates a cache on its own Redis server.
    pub fn redis() -> Self {
        let redis = RedisServer::start();
        Self { larder: Larder::redis(&redis.url()).unwrap(), redis: Some(redis) }
    }
}

/// Makes two tests of an `async fn(Fixture)`: one in memory, one on Redis.
#[macro_export]
macro_rules! on_every_store {
    ($($(#[$meta:meta])* async fn $name:ident($fixture:ident) $body:block)+) => {
        $(
            $(#[$meta])*
            mod $name {
                #[allow(unused_imports)]
                use super::*;

                async fn scenario($fixture: $crate::in_process::Fixture) $body

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn on_memory() {
                    scenario($crate::in_process::Fixture::memory()).await;
                }

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn on_redis() {
                    scenario($crate::in_process::Fixture::redis()).await;
                }
            }
        )+
    };
}

/// Counts the runs of a handler. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct Runs(Arc<AtomicUsize>);

impl Runs {
    /// Creates a counter at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one more run and returns its number, from 1.
    pub fn count(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Returns the number of runs.
    pub fn total(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// A whole response.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: StatusCode,
    /// The header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// Reads the whole response.
    pub async fn of(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        Self {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.expect("a whole body").to_bytes(),
        }
    }

    /// Returns a field, or "" if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Returns HIT, MISS or BYPASS.
    pub fn cache(&self) -> &str {
        self.header("x-redis-cache")
    }

    /// Returns the body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// Sends a request with these fields to a router, and reads the whole response.
pub async fn send(app: &Router, method: Method, uri: &str, fields: &[(&str, &str)]) -> Answer {
    Answer::of(start(app, method, uri, fields).await).await
}

/// Sends a request with these fields to a router, without reading the body.
pub async fn start(app: &Router, method: Method, uri: &str, fields: &[(&str, &str)]) -> Response {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

/// Sends a GET without fields.
pub async fn get(app: &Router, uri: &str) -> Answer {
    send(app, Method::GET, uri, &[]).await
}
