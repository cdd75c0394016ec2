//! The parts of the adapter that are specific to poem. The parity table covers the rest.

#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt, stream};
use larder_poem::{Backend, Larder, cache, cache_evict, cache_put};
use poem::endpoint::make;
use poem::http::uri::Scheme;
use poem::http::{self, Method, StatusCode};
use poem::web::{LocalAddr, RemoteAddr};
use poem::{
    Body, Endpoint, EndpointExt, Error, IntoResponse, Request, RequestParts, Response, Result, Route,
    RouteMethod, get, handler,
};

/// A request as poem's `TestClient` makes it, with an empty `original_uri()`.
fn made(method: Method, uri: &str) -> Request {
    Request::builder().method(method).uri_str(uri).finish()
}

/// A request as a server receives it.
fn received(method: Method, uri: &str) -> Request {
    let (parts, ()) = http::Request::builder().method(method).uri(uri).body(()).unwrap().into_parts();
    let addresses = (LocalAddr::default(), RemoteAddr::default());
    let parts = RequestParts::from((parts, addresses.0, addresses.1, Scheme::HTTP));
    Request::from_parts(parts, Body::empty())
}

/// An endpoint that answers with the URI that it sees, and the counter of its runs.
fn counting() -> (impl Endpoint<Output = String>, Arc<AtomicUsize>) {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let endpoint = make(move |request| {
        let run = counted.fetch_add(1, Ordering::SeqCst) + 1;
        async move { format!("{} {run}", request.uri()) }
    });
    (endpoint, runs)
}

async fn send(app: &impl Endpoint, request: Request) -> (Response, String) {
    let mut response = app.get_response(request).await;
    let body = response.take_body().into_string().await.unwrap();
    (response, body)
}

fn word(response: &Response) -> &str {
    response.header("x-redis-cache").unwrap_or("none")
}

#[tokio::test]
async fn head_that_runs_as_get_fills_and_keeps_its_length() {
    let (endpoint, runs) = counting();
    let app = Route::new().at("/x", get(endpoint.with(cache(&Larder::memory()).ttl(60))));
    let (head, body) = send(&app, received(Method::HEAD, "/x")).await;
    assert_eq!((word(&head), body.as_str(), head.header("content-length")), ("MISS", "", Some("4")));
    let (first, body) = send(&app, received(Method::GET, "/x")).await;
    assert_eq!((word(&first), body.as_str(), first.header("content-length")), ("HIT", "/x 1", Some("4")));
    let (head, body) = send(&app, received(Method::HEAD, "/x")).await;
    assert_eq!((word(&head), body.as_str(), head.header("content-length")), ("HIT", "", Some("4")));
    assert_eq!(head.header("etag"), first.header("etag"));
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn head_that_runs_as_head_never_answers_a_get() {
    let (endpoint, runs) = counting();
    // Around the method router, and on an endpoint that answers every method.
    let around = get(endpoint).with(cache(&Larder::memory()).ttl(60));
    let bodiless = make(async |request: Request| match *request.method() {
        Method::HEAD => String::new(),
        _ => "whole".to_owned(),
    });
    let own = RouteMethod::new().head(bodiless.with(cache(&Larder::memory()).ttl(60)));
    let app = Route::new().at("/around", around).at("/own", own);
    let (head, body) = send(&app, received(Method::HEAD, "/around")).await;
    assert_eq!((word(&head), body.as_str()), ("BYPASS", ""));
    let (first, body) = send(&app, received(Method::GET, "/around")).await;
    assert_eq!((word(&first), body.as_str()), ("MISS", "/around 2"));
    let (head, body) = send(&app, received(Method::HEAD, "/around")).await;
    assert_eq!((word(&head), body.as_str(), head.header("content-length")), ("HIT", "", Some("9")));
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    let (head, body) = send(&app, received(Method::HEAD, "/own")).await;
    assert_eq!((word(&head), body.as_str()), ("BYPASS", ""));
}

#[tokio::test]
async fn keys_are_built_from_the_clients_uri() {
    let (inner, _) = counting();
    let inner = Arc::new(inner);
    let larder = Larder::memory();
    let route = || Route::new().at("/x", get(Arc::clone(&inner).with(cache(&larder).ttl(60))));
    let app = Route::new().nest("/v1", route()).nest("/v2", route());
    for _ in 0..2 {
        assert_eq!(send(&app, received(Method::GET, "/v1/x")).await.1, "/x 1");
        assert_eq!(send(&app, received(Method::GET, "/v2/x")).await.1, "/x 2");
    }
    // Around the nested router, where its URI is already stripped.
    let (inner, _) = counting();
    let nested = Route::new().at("/x", get(inner)).with(cache(&larder).group("g").ttl(60));
    let app = Route::new().nest("/v3", nested);
    assert_eq!(send(&app, received(Method::GET, "/v3/x")).await.1, "/x 1");
    assert_eq!(word(&send(&app, received(Method::GET, "/v3/x")).await.0), "HIT");
    let key = larder.key_for("g", &"/v3/x".parse().unwrap()).unwrap();
    larder.evict(&key).await;
    assert_eq!(word(&send(&app, received(Method::GET, "/v3/x")).await.0), "MISS");
}

#[tokio::test]
async fn requests_without_a_server_have_separate_keys() {
    let (endpoint, _) = counting();
    let app = Route::new().at("/*any", get(endpoint.with(cache(&Larder::memory()).ttl(60))));
    for _ in 0..2 {
        assert_eq!(send(&app, made(Method::GET, "/a")).await.1, "/a 1");
        assert_eq!(send(&app, made(Method::GET, "/b?c=1")).await.1, "/b?c=1 2");
        assert_eq!(send(&app, made(Method::GET, "/")).await.1, "/ 3");
        assert_eq!(send(&app, received(Method::GET, "/")).await.1, "/ 3");
    }
}

#[tokio::test]
async fn error_passes_through_and_evicts_nothing() {
    #[derive(Debug, PartialEq)]
    struct Ours(&'static str);
    impl std::fmt::Display for Ours {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }
    impl std::error::Error for Ours {}
    let fail = || make(async |_| Err::<(), _>(Error::new(Ours("lost"), StatusCode::NOT_FOUND)));

    let larder = Larder::memory();
    let (endpoint, runs) = counting();
    let app = Route::new().at(
        "/x",
        get(endpoint.with(cache(&larder).group("g").ttl(60)))
            .put(fail().with(cache_put(&larder).group("g").ttl(60)))
            .delete(fail().with(cache_evict(&larder).group("g").key()))
            .post(fail().with(cache_evict(&larder).group("g").whole_group())),
    );
    send(&app, received(Method::GET, "/x")).await;
    for method in [Method::PUT, Method::DELETE, Method::POST] {
        let error = app.call(received(method.clone(), "/x")).await.unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&Ours("lost")), "{method}");
        assert_eq!(word(&send(&app, received(Method::GET, "/x")).await.0), "HIT", "{method}");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);

    // A read that fails runs again each time, whatever else is stored.
    let failing =
        Route::new().at("/y", get(fail().with(cache(&larder).ttl(60).ttl_for(StatusCode::NOT_FOUND, 60))));
    for _ in 0..2 {
        let error = failing.call(received(Method::GET, "/y")).await.unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&Ours("lost")));
    }
}

#[tokio::test]
async fn streams_pass_at_once_and_whole_bodies_are_not_copied() {
    let whole = bytes::Bytes::from(vec![7; 1000]);
    let (same, larder) = (whole.clone(), Larder::memory());
    let app = Route::new()
        .at(
            "/whole",
            get(make(move |_| {
                let same = same.clone();
                async move { Response::builder().body(same) }
            })
            .with(cache(&larder).ttl(60))),
        )
        .at(
            "/stream",
            get(make(async |_| {
                let endless = stream::iter(["one"]).chain(stream::pending()).map(Ok::<_, std::io::Error>);
                Response::builder().body(Body::from_bytes_stream(endless))
            })
            .with(cache(&larder).ttl(60))),
        );
    let first = app.get_response(received(Method::GET, "/whole")).await.take_body().into_bytes_stream();
    let first: Vec<_> = first.collect().await;
    assert_eq!(first[0].as_ref().unwrap().as_ptr(), whole.as_ptr());
    let mut response = app.get_response(received(Method::GET, "/stream")).await;
    assert_eq!(word(&response), "BYPASS");
    let mut chunks = Box::pin(response.take_body().into_bytes_stream());
    assert_eq!(chunks.next().await.unwrap().unwrap(), "one");
}

#[tokio::test]
async fn data_of_outer_middleware_reaches_the_route_and_the_handler() {
    #[derive(Clone)]
    struct User(&'static str);
    let whose = make(async |request: Request| request.data::<User>().unwrap().0.to_owned());
    let route = cache(&Larder::memory())
        .ttl(60)
        .private_by(|request| request.extensions.get::<User>().map(|user| user.0.to_owned()));
    let app = Arc::new(whose.with(route));
    let as_user = |user| Arc::clone(&app).data(User(user));
    for expected in ["MISS", "HIT"] {
        for user in ["alice", "bob"] {
            let (response, body) = send(&as_user(user), received(Method::GET, "/me")).await;
            assert_eq!((word(&response), body.as_str()), (expected, user));
        }
    }
}

#[tokio::test]
async fn panics_reach_the_caller() {
    let app = make(async |_| -> Result<Response, Infallible> { panic!("lost") });
    let app = app.with(cache(&Larder::memory()).ttl(60)).with(poem::middleware::CatchPanic::new());
    assert_eq!(
        app.get_response(received(Method::GET, "/x")).await.status(),
        StatusCode::INTERNAL_SERVER_ERROR
    );
}

#[handler]
async fn setting(Backend(cache): Backend) -> Result<impl IntoResponse> {
    Ok(cache.group("settings").get_or("theme", "dark".to_owned()).await)
}

#[tokio::test]
async fn backend_is_extracted_from_the_attached_cache() {
    let larder = Larder::memory();
    let app = Arc::new(get(setting));
    assert_eq!(send(&Arc::clone(&app).data(larder.clone()), received(Method::GET, "/")).await.1, "dark");
    larder.backend().group("settings").set("theme", "light", 60).await;
    assert_eq!(send(&Arc::clone(&app).data(larder), received(Method::GET, "/")).await.1, "light");
    let (without, _) = send(&app, received(Method::GET, "/")).await;
    assert_eq!(without.status(), StatusCode::INTERNAL_SERVER_ERROR);
}
