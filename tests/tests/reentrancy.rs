//! The same cache twice around one handler, and handlers that request their own resource: no request waits for itself.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::handler::Handler;
use axum::routing::{get as get_route, put};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use larder_axum::{cache, cache_evict, cache_put};
use larder_tests::framework::{App, larder, outcome_of};
use larder_tests::in_process::{Answer, Runs, get, send};
use larder_tests::on_every_store;
use poem::EndpointExt;
use tower::{Layer, ServiceExt};

/// Well below the time that requests wait for each other.
async fn within_four_seconds<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(4), work).await.expect("it waits for itself")
}

fn statuses(answer: &Answer) -> (usize, usize) {
    let count = |name| answer.headers.get_all(name).iter().count();
    (count("x-redis-cache"), count("cache-status"))
}

on_every_store! {
    async fn two_layers_of_a_cache_act_as_one(fixture) {
        let runs = Runs::new();
        let counted = runs.clone();
        let handler = move || async move { counted.count().to_string() };
        let layer = cache(&fixture.larder).group("g").ttl(60);
        let app = Router::new().route("/x", get_route(handler.layer(layer.clone()).layer(layer.clone())).layer(layer));
        let first = within_four_seconds(get(&app, "/x")).await;
        assert_eq!((first.cache(), first.text()), ("MISS", "1"));
        assert_eq!(statuses(&first).0, 1);
        let second = within_four_seconds(get(&app, "/x")).await;
        assert_eq!((second.cache(), second.text()), ("HIT", "1"));
    }

    async fn two_write_through_layers_store_once(fixture) {
        let runs = Runs::new();
        let (reads, writes) = (runs.clone(), runs.clone());
        let read = move || async move { reads.count().to_string() };
        let write = move || async move { writes.count().to_string() };
        let layer = cache_put(&fixture.larder).group("g").ttl(60);
        let route = get_route(read.layer(cache(&fixture.larder).group("g").ttl(60)))
            .put(write.layer(layer.clone()).layer(layer));
        let app = Router::new().route("/x", route);
        let written = within_four_seconds(send(&app, Method::PUT, "/x", &[])).await;
        assert_eq!((written.cache(), written.text(), statuses(&written).0), ("MISS", "1", 1));
        let read = get(&app, "/x").await;
        assert_eq!((read.cache(), read.text()), ("HIT", "1"));
    }

    async fn write_through_and_eviction_of_another_group_combine(fixture) {
        let larder = &fixture.larder;
        let list = Runs::new();
        let lists = move || async move { list.count().to_string() };
        let put_item = cache_put(larder).group("items").ttl(60);
        let evict_lists = cache_evict(larder).group("lists").whole_group();
        let app = Router::new()
            .route("/items", get_route(lists.layer(cache(larder).group("lists").ttl(60))))
            .route("/items/{id}", get_route((|| async { "old" }).layer(cache(larder).group("items").ttl(60))))
            .route("/one/{id}", put((|| async { "new" }).layer(put_item.clone()).layer(evict_lists.clone())))
            .route("/two/{id}", put((|| async { "new" }).layer(evict_lists).layer(put_item)));
        for uri in ["/one/7", "/two/7"] {
            let before = get(&app, "/items").await.text().to_owned();
            within_four_seconds(send(&app, Method::PUT, uri, &[])).await;
            assert_ne!(get(&app, "/items").await.text(), before, "{uri}");
        }
    }

    async fn handler_can_compute_under_its_own_key(fixture) {
        let backend = fixture.larder.backend().group("g");
        let runs = Runs::new();
        let counted = runs.clone();
        let handler = move || {
            let (backend, runs) = (backend.clone(), counted.clone());
            async move {
                let compute = || async { Ok::<_, Infallible>(runs.count()) };
                backend.get_or_set("x", 60, compute).await.unwrap().to_string()
            }
        };
        let layer = cache(&fixture.larder).group("g").ttl(60);
        let app = Router::new().route("/x", get_route(handler.layer(layer)));
        let first = within_four_seconds(get(&app, "/x")).await;
        assert_eq!((first.cache(), first.text()), ("MISS", "1"));
        assert_eq!(within_four_seconds(get(&app, "/x")).await.cache(), "HIT");
    }

    async fn computation_can_compute_its_own_key(fixture) {
        let backend = fixture.larder.backend().group("g");
        let inner = backend.clone();
        let compute = || async move {
            let inner = inner.get_or_set("x", 60, || async { Ok::<_, Infallible>(1) }).await?;
            Ok::<_, Infallible>(inner + 1)
        };
        assert_eq!(within_four_seconds(backend.get_or_set("x", 60, compute)).await, Ok(2));
        assert_eq!(backend.get::<i32>("x").await, Some(2));
    }

    async fn handler_can_call_its_own_router(fixture) {
        let router = Arc::new(OnceLock::<Router>::new());
        let (own, runs) = (Arc::clone(&router), Runs::new());
        let handler = move |request: Request<Body>| {
            let (own, run) = (Arc::clone(&own), runs.count());
            async move {
                if request.headers().contains_key("inner") {
                    return format!("inner {run}");
                }
                let inner = Request::get("/x").header("inner", "1").body(Body::empty()).unwrap();
                let answer = own.get().unwrap().clone().oneshot(inner).await.unwrap();
                format!("outer of {}", Answer::of(answer).await.text())
            }
        };
        let layer = cache(&fixture.larder).group("g").ttl(60);
        let app = Router::new().route("/x", get_route(handler.layer(layer)));
        router.set(app.clone()).unwrap();
        let first = within_four_seconds(get(&app, "/x")).await;
        assert_eq!((first.cache(), first.text()), ("MISS", "outer of inner 2"));
        let second = within_four_seconds(get(&app, "/x")).await;
        assert_eq!((second.cache(), second.text()), ("HIT", "outer of inner 2"));
    }
}

#[tokio::test]
async fn two_layers_act_as_one_in_poem_and_tower() {
    let larder = larder();
    let layer = larder_poem::cache(&larder).group("poem").ttl(60);
    let runs = Runs::new();
    let endpoint = poem::endpoint::make_sync(move |_| runs.count().to_string());
    let poem = App::poem(poem::Route::new().at("/x", poem::get(endpoint.with(layer.clone()).with(layer))));

    let runs = Runs::new();
    let service = tower::service_fn(move |_: Request<Body>| {
        let text = runs.count().to_string();
        let answer = Response::builder().header("cache-control", "max-age=60");
        let answer = answer.body(Full::<Bytes>::from(text)).unwrap();
        async move { Ok::<_, Infallible>(answer) }
    });
    let layer = larder_tower::cache(&larder).group("tower").ttl(60);
    let tower = App::tower(layer.clone().layer(layer.layer(service.clone())));
    for (app, name) in [(poem, "poem"), (tower, "tower")] {
        let first = within_four_seconds(app.get("/x")).await;
        assert_eq!((outcome_of(&first).as_str(), statuses(&first)), ("MISS absent", (1, 1)), "{name}");
        let second = within_four_seconds(app.get("/x")).await;
        assert_eq!((outcome_of(&second).as_str(), second.text()), ("HIT", first.text()), "{name}");
    }

    let layer = larder_tower::SharedCacheLayer::new(&larder);
    let shared = App::tower(layer.clone().layer(layer.layer(service)));
    let first = within_four_seconds(shared.get("/x")).await;
    assert_eq!(statuses(&first), (0, 1));
    let second = within_four_seconds(shared.get("/x")).await;
    assert!(second.header("cache-status").contains("hit"), "{:?}", second.headers);
    assert_eq!(second.text(), first.text());
}
