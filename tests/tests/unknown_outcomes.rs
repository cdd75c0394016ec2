//! Writes whose outcome is unknown: after a timeout, a panic or an error the handler may have changed the value, so the entry is
//! evicted. A refusal changes nothing.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::handler::Handler;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get as get_route};
use http::Method;
use larder_axum::{Larder, cache, cache_evict, cache_put};
use larder_tests::in_process::{get, send};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;

const SOON: Duration = Duration::from_millis(50);

/// The end of a write after it has changed the value.
#[derive(Clone, Copy, Debug)]
enum After {
    Answers(u16),
    Panics,
    Hangs,
}

/// A value that is read with GET and changed with PUT (write-through), DELETE (evicts the key) and POST (evicts the group).
/// `within` adds a layer between the cache and the handler that writes.
fn app(larder: &Larder, after: After, within: fn(MethodRouter) -> MethodRouter) -> Router {
    let value = Arc::new(AtomicU64::new(0));
    let reads = Arc::clone(&value);
    let read = move || async move { reads.load(Ordering::SeqCst).to_string() };
    let write = move || async move {
        value.fetch_add(1, Ordering::SeqCst);
        match after {
            After::Answers(status) => StatusCode::from_u16(status).unwrap().into_response(),
            After::Panics => panic!("after the change"),
            After::Hangs => pending::<Response>().await,
        }
    };
    let put = within(axum::routing::put(write.clone())).layer(cache_put(larder).group("g").ttl(60));
    let delete = within(axum::routing::delete(write.clone())).layer(cache_evict(larder).group("g").key());
    let post = within(axum::routing::post(write)).layer(cache_evict(larder).group("g").whole_group());
    let read = get_route(read.layer(cache(larder).group("g").ttl(60)));
    Router::new().route("/x", read.merge(put).merge(delete).merge(post))
}

async fn check(app: &Router, expected: StatusCode) {
    for (changes, method) in (1..).zip([Method::PUT, Method::DELETE, Method::POST]) {
        get(app, "/x").await;
        assert_eq!(get(app, "/x").await.cache(), "HIT");
        assert_eq!(send(app, method.clone(), "/x", &[]).await.status, expected, "{method}");
        let read = get(app, "/x").await;
        assert_eq!((read.cache(), read.text()), ("MISS", &*changes.to_string()), "{method} {expected}");
    }
}

const NOTHING: fn(MethodRouter) -> MethodRouter = |route| route;

#[tokio::test]
async fn statuses_with_an_unknown_outcome_evict() {
    for status in [408, 500, 502, 503, 504, 507, 599] {
        let app = app(&Larder::memory(), After::Answers(status), NOTHING);
        check(&app, StatusCode::from_u16(status).unwrap()).await;
    }
}

#[tokio::test]
async fn refusals_evict_nothing() {
    for status in [400, 401, 403, 404, 405, 409, 410, 412, 413, 422, 429, 451] {
        let app = app(&Larder::memory(), After::Answers(status), NOTHING);
        get(&app, "/x").await;
        for method in [Method::PUT, Method::DELETE, Method::POST] {
            send(&app, method.clone(), "/x", &[]).await;
            assert_eq!(get(&app, "/x").await.cache(), "HIT", "{method} {status}");
        }
    }
}

#[tokio::test]
async fn timeout_between_the_cache_and_the_handler_evicts() {
    let within: fn(MethodRouter) -> MethodRouter =
        |route| route.layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, SOON));
    check(&app(&Larder::memory(), After::Hangs, within), StatusCode::REQUEST_TIMEOUT).await;
}

#[tokio::test]
async fn timeout_outside_the_cache_evicts_before_its_response() {
    for status in [StatusCode::REQUEST_TIMEOUT, StatusCode::GATEWAY_TIMEOUT] {
        let app = app(&Larder::memory(), After::Hangs, NOTHING);
        check(&app.layer(TimeoutLayer::with_status_code(status, SOON)), status).await;
    }
}

#[tokio::test]
async fn timeout_outside_stacked_layers_evicts_for_each_of_them() {
    for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0], [1, 2, 0]] {
        let larder = Larder::memory();
        let value = Arc::new(AtomicU64::new(0));
        let reads = Arc::clone(&value);
        let read = move || async move { reads.load(Ordering::SeqCst).to_string() };
        let cached = |group: &'static str| get_route(read.clone().layer(cache(&larder).group(group).ttl(60)));
        let write = move || async move {
            value.fetch_add(1, Ordering::SeqCst);
            pending::<Response>().await
        };
        let write = order.into_iter().fold(axum::routing::put(write), |route, layer| match layer {
            0 => route.layer(cache_put(&larder).group("items").ttl(60)),
            1 => route.layer(cache_evict(&larder).group("lists").whole_group()),
            _ => route.layer(cache_evict(&larder).group("pages").whole_group()),
        });
        let app = Router::new()
            .route("/item", cached("items").merge(write))
            .route("/list", cached("lists"))
            .route("/page", cached("pages"))
            .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, SOON));
        for path in ["/item", "/list", "/page"] {
            get(&app, path).await;
            assert_eq!(get(&app, path).await.cache(), "HIT");
        }
        assert_eq!(send(&app, Method::PUT, "/item", &[]).await.status, StatusCode::REQUEST_TIMEOUT);
        for path in ["/item", "/list", "/page"] {
            let read = get(&app, path).await;
            assert_eq!((read.cache(), read.text()), ("MISS", "1"), "{path} {order:?}");
        }
    }
}

#[tokio::test]
async fn panic_evicts_wherever_it_is_caught() {
    let within: fn(MethodRouter) -> MethodRouter = |route| route.layer(CatchPanicLayer::new());
    check(&app(&Larder::memory(), After::Panics, within), StatusCode::INTERNAL_SERVER_ERROR).await;
    let app = app(&Larder::memory(), After::Panics, NOTHING).layer(CatchPanicLayer::new());
    check(&app, StatusCode::INTERNAL_SERVER_ERROR).await;
}
