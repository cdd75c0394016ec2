//! The app behind every contender: routes to measure, and routes on which caches fail.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::http::header::{
    ACCEPT_LANGUAGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, COOKIE, ETAG, SET_COOKIE, VARY,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use futures_util::stream;

/// The small body, in bytes.
pub(crate) const SMALL: usize = 569;

/// The large body, in bytes.
pub(crate) const LARGE: usize = 51_200;

/// The limit for bodies that each cache with such a limit is set to, in bytes.
pub(crate) const LIMIT: usize = 256 * 1024;

/// A body over the limit, in bytes.
pub(crate) const OVER: usize = 4 * LIMIT;

/// The TTL of all responses, longer than any measurement.
pub(crate) const TTL: Duration = Duration::from_secs(3600);

/// The time that `/cold` takes.
pub(crate) const COLD: Duration = Duration::from_millis(100);

/// The time that `/slow` takes with its first value.
pub(crate) const SLOW: Duration = Duration::from_millis(400);

static SMALL_BODY: LazyLock<Bytes> = LazyLock::new(|| larder_benches::body(SMALL));
static LARGE_BODY: LazyLock<Bytes> = LazyLock::new(|| larder_benches::body(LARGE));

/// The measured routes: handlers with ready responses, against which a cache gains the least. A macro, because the layer around
/// each handler is part of its type.
macro_rules! measured {
    ($layer:expr) => {
        ::axum::Router::new()
            .route("/small/{id}", ::axum::routing::get($crate::app::small.layer($layer)))
            .route("/large/{id}", ::axum::routing::get($crate::app::large.layer($layer)))
            .route("/tagged/{id}", ::axum::routing::get($crate::app::tagged.layer($layer)))
    };
}
pub(crate) use measured;

/// All measured routes without a cache.
pub(crate) fn bare() -> Router {
    Router::new()
        .route("/small/{id}", get(small))
        .route("/large/{id}", get(large))
        .route("/tagged/{id}", get(tagged))
        .merge(probes())
}

const JSON: (axum::http::HeaderName, HeaderValue) =
    (CONTENT_TYPE, HeaderValue::from_static("application/json"));

pub(crate) async fn small() -> impl IntoResponse {
    ([JSON], SMALL_BODY.clone())
}

pub(crate) async fn large() -> impl IntoResponse {
    ([JSON], LARGE_BODY.clone())
}

/// A handler that sets its own entity tag, for caches that answer conditions but make no tags.
pub(crate) async fn tagged() -> impl IntoResponse {
    ([JSON, (ETAG, HeaderValue::from_static("\"of-the-handler\""))], SMALL_BODY.clone())
}

/// The routes on which caches fail. The whole router is put behind the cache.
pub(crate) fn probes() -> Router {
    Router::new()
        .route("/plain", get(async || run("plain")))
        .route("/me/{by}", get(me))
        .route("/login", get(login))
        .route("/greeting", get(greeting))
        .route("/no-store", get(async || ([(CACHE_CONTROL, "no-store")], run("no-store"))))
        .route("/private", get(async || ([(CACHE_CONTROL, "private, max-age=3600")], run("private"))))
        .route("/order", get(async || run("order")).post(async || run("order")))
        .route("/page", get(async || run("page")))
        .route("/page/own", get(async || run("page/own")).head(async || ""))
        .route("/events", get(events))
        .route("/cold", get(cold))
        .route("/slow", get(slow))
        .route("/big", get(async || larder_benches::body(OVER)))
}

/// The routes through which the probes change the app, not behind the cache.
pub(crate) fn control() -> Router {
    Router::new().route("/control/value/{value}", put(set_value))
}

/// Counts a run of the handler of this name and returns the count.
fn run(name: &'static str) -> String {
    static RUNS: Mutex<Option<HashMap<&'static str, u32>>> = Mutex::new(None);
    let mut runs = RUNS.lock().unwrap_or_else(PoisonError::into_inner);
    let run = runs.get_or_insert_default().entry(name).or_default();
    *run += 1;
    format!("run {run}")
}

async fn me(headers: HeaderMap) -> String {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let who = text(AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
    let who = who.or_else(|| text(COOKIE)?.strip_prefix("session="));
    format!("for {}", who.unwrap_or("anonymous"))
}

async fn login() -> impl IntoResponse {
    let session = run("login").replace(' ', "-");
    ([(SET_COOKIE, format!("session={session}"))], "welcome")
}

async fn greeting(headers: HeaderMap) -> impl IntoResponse {
    let german = headers.get(ACCEPT_LANGUAGE).is_some_and(|value| value.as_bytes().starts_with(b"de"));
    ([(VARY, "accept-language")], if german { "Guten Tag" } else { "Good day" })
}

/// An endless stream: one event at once, and then one a second.
async fn events() -> Response {
    let events = stream::unfold(0, async |count: u32| {
        if count > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Some((Ok::<_, std::convert::Infallible>(format!("data: {count}\n\n")), count + 1))
    });
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

async fn cold() -> String {
    tokio::time::sleep(COLD).await;
    run("cold")
}

static VALUE: AtomicU32 = AtomicU32::new(1);

/// Reads the value, and takes `SLOW` if it is the first one.
async fn slow() -> String {
    let value = VALUE.load(Ordering::SeqCst);
    if value == 1 {
        tokio::time::sleep(SLOW).await;
    }
    format!("value {value}")
}

async fn set_value(Path(value): Path<u32>) -> StatusCode {
    VALUE.store(value, Ordering::SeqCst);
    StatusCode::NO_CONTENT
}
