//! The cache's counters, through real routers: by route, group, status and reason.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::handler::Handler;
use axum::http::{Request, Response, StatusCode};
use axum::routing::get;
use larder_axum::{Larder, ManualClock, MemoryStore, Reason, cache, cache_evict, cache_put};
use larder_core::Kind;
use larder_core::stats::{RouteStats, Stats};
use larder_tests::redis_server::RedisServer;
use tower::ServiceExt as _;

async fn product() -> &'static str {
    "tea"
}

async fn call(app: &Router, line: &str, fields: &[(&str, &str)]) -> Response<Body> {
    let (method, uri) = line.split_once(' ').unwrap();
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

fn of<'a>(stats: &'a Stats, route: &str, kind: Kind) -> &'a RouteStats {
    let found = stats.routes.iter().find(|known| known.route == route && known.kind == kind);
    found.unwrap_or_else(|| panic!("no {route} {kind:?} in {:#?}", stats.routes))
}

fn reasons(route: &RouteStats) -> Vec<(Reason, u64)> {
    route.reasons.iter().map(|counted| (counted.reason, counted.count)).collect()
}

#[tokio::test]
async fn requests_are_counted_by_pattern_and_group() {
    let larder = Larder::memory();
    let products = Router::new().route(
        "/products/{id}",
        get(product.layer(cache(&larder).group("products").ttl(60)))
            .put(product.layer(cache_put(&larder).group("products").ttl(60)))
            .delete(product.layer(cache_evict(&larder).group("products").key())),
    );
    let app = Router::new()
        .nest("/api", products)
        .route("/greeting", get(product.layer(cache(&larder).name("hello").ttl(60))));

    for id in [1, 2, 1, 1] {
        call(&app, &format!("GET /api/products/{id}"), &[]).await;
    }
    call(&app, "GET /api/products/1", &[("cookie", "a=b")]).await;
    call(&app, "GET /api/products/3", &[("cache-control", "only-if-cached")]).await;
    call(&app, "PUT /api/products/1", &[]).await;
    call(&app, "DELETE /api/products/1", &[]).await;
    call(&app, "GET /greeting", &[]).await;

    let stats = larder.stats();
    let read = of(&stats, "/api/products/{id}", Kind::Read);
    assert_eq!(read.group.as_deref(), Some("products"));
    let requests = read.requests;
    assert_eq!((requests.hit, requests.miss, requests.bypass, requests.total()), (2, 3, 1, 6));
    assert_eq!(requests.hit_ratio(), Some(0.4));
    assert_eq!(reasons(read), [(Reason::Absent, 3), (Reason::Cookie, 1)]);
    assert_eq!(of(&stats, "/api/products/{id}", Kind::Write).requests.miss, 1);
    assert_eq!(of(&stats, "/api/products/{id}", Kind::EvictKey).requests.bypass, 1);
    assert_eq!(of(&stats, "hello", Kind::Read).requests.miss, 1);
    assert_eq!(stats.requests().total(), 7, "reads alone");

    let [ungrouped, products] = &stats.groups[..] else { panic!("{:#?}", stats.groups) };
    assert_eq!((ungrouped.group.as_deref(), ungrouped.requests.miss, ungrouped.writes.stored), (None, 1, 1));
    assert_eq!(products.requests, requests);
    // Two fills and a write-through.
    assert_eq!((products.writes.stored, products.evictions.keys), (3, 1));

    let health = &stats.store.health;
    assert_eq!((health.store, health.entries), ("memory", Some(2)));
    assert!(health.bytes.is_some_and(|bytes| bytes > 0 && Some(bytes) < health.capacity_bytes));
    let gets = stats.store.operations.iter().find(|known| known.operation == "get").unwrap();
    assert!(gets.calls >= 6 && gets.failures == 0 && gets.latency.count() == 0, "{gets:?}");
}

#[tokio::test]
async fn stale_responses_and_errors_are_counted_apart() {
    let clock = Arc::new(ManualClock::new());
    let larder = Larder::builder().clock(clock.clone()).store(MemoryStore::new()).build();
    let minute = Duration::from_secs(60);
    let fails = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let handler = {
        let fails = fails.clone();
        move || async move {
            let status = if fails.load(std::sync::atomic::Ordering::SeqCst) { 503 } else { 200 };
            (StatusCode::from_u16(status).unwrap(), "tea")
        }
    };
    let app = Router::new()
        .route("/kept", get(handler.clone().layer(cache(&larder).ttl(60).stale_if_error(minute))))
        .route("/bare", get(handler.layer(cache(&larder).ttl(60))));

    call(&app, "GET /kept", &[]).await;
    call(&app, "GET /bare", &[]).await;
    clock.advance(minute);
    fails.store(true, std::sync::atomic::Ordering::SeqCst);
    call(&app, "GET /kept", &[]).await;
    call(&app, "GET /bare", &[]).await;

    let stats = larder.stats();
    let kept = of(&stats, "/kept", Kind::Read);
    assert_eq!((kept.requests.miss, kept.requests.stale, kept.requests.error), (1, 1, 0));
    let bare = of(&stats, "/bare", Kind::Read);
    assert_eq!((bare.requests.miss, bare.requests.stale, bare.requests.error), (1, 0, 1));
    assert_eq!(reasons(bare), [(Reason::Absent, 1), (Reason::Status, 1)]);
}

#[tokio::test]
async fn panic_counts_as_an_error_and_a_disconnect_does_not_count() {
    async fn panics() -> &'static str {
        panic!("on purpose")
    }
    async fn never() -> &'static str {
        std::future::pending().await
    }
    let larder = Larder::memory();
    let app = Router::new()
        .route("/panics", get(panics.layer(cache(&larder).ttl(60))))
        .route("/never", get(never.layer(cache(&larder).ttl(60))));
    let panicked = {
        let app = app.clone();
        tokio::spawn(async move { call(&app, "GET /panics", &[]).await }).await
    };
    assert!(panicked.unwrap_err().is_panic());
    let gone = tokio::time::timeout(Duration::from_millis(20), call(&app, "GET /never", &[])).await;
    assert!(gone.is_err());

    let stats = larder.stats();
    assert_eq!(of(&stats, "/panics", Kind::Read).requests.error, 1);
    assert_eq!(of(&stats, "/never", Kind::Read).requests.total(), 0);
}

#[tokio::test]
async fn followers_are_counted() {
    let larder = Larder::memory();
    let slow = || async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        "tea"
    };
    let app = Router::new().route("/slow", get(slow.layer(cache(&larder).ttl(60))));
    let calls = (0..10).map(|_| call(&app, "GET /slow", &[]));
    futures_util::future::join_all(calls).await;

    let stats = larder.stats();
    let requests = of(&stats, "/slow", Kind::Read).requests;
    assert_eq!((requests.miss, requests.collapsed), (1, 9));
    assert_eq!((stats.fill_waits.waited.count(), stats.fill_waits.in_vain), (9, 0));
    assert!(stats.fill_waits.waited.quantile(0.5).unwrap() >= Duration::from_millis(20));
}

#[tokio::test]
async fn routes_without_a_router_use_their_name_or_none() {
    let larder = Larder::memory();
    let handler = tower::service_fn(|_: Request<axum::body::Body>| async {
        Ok::<_, Infallible>(Response::new(http_body_util::Full::new(bytes::Bytes::from("tea"))))
    });
    for name in [None, Some("tea"), Some("tea")] {
        let cache = larder_tower::cache(&larder).ttl(60);
        let cache = name.map_or(cache.clone(), |name| cache.name(name));
        let service = tower::ServiceBuilder::new().layer(cache).service(handler);
        service.oneshot(Request::get("/").body(axum::body::Body::empty()).unwrap()).await.unwrap();
    }
    let stats = larder.stats();
    assert_eq!(of(&stats, "unnamed", Kind::Read).requests.miss, 1);
    assert_eq!(of(&stats, "tea", Kind::Read).requests.hit, 2, "two routes of one name");
}

#[tokio::test]
async fn layer_over_many_routes_is_counted_per_route() {
    let larder = Larder::memory();
    let app = Router::new()
        .route("/a/{id}", get(product))
        .route("/b/{id}", get(product))
        .layer(cache(&larder).ttl(60));
    for uri in ["/a/1", "/b/1", "/b/2", "/a/1"] {
        call(&app, &format!("GET {uri}"), &[]).await;
    }
    let stats = larder.stats();
    let (a, b) = (of(&stats, "/a/{id}", Kind::Read).requests, of(&stats, "/b/{id}", Kind::Read).requests);
    assert_eq!((a.hit, a.miss, b.hit, b.miss), (1, 1, 0, 2));
}

#[tokio::test]
async fn requests_are_counted_by_pattern_in_poem() {
    use larder_poem::cache;
    use poem::{Endpoint as _, EndpointExt as _, Request, Route, endpoint::make_sync, get};

    let larder = Larder::memory();
    let tea = || make_sync(|_| "tea");
    let inner = Route::new().at("/:id", get(tea().with(cache(&larder).group("products").ttl(60))));
    let app = Route::new().nest("/products", inner).at("/", get(tea().with(cache(&larder).ttl(60))));
    for uri in ["/products/1", "/products/2", "/"] {
        app.get_response(Request::builder().uri_str(uri).finish()).await;
    }
    let stats = larder.stats();
    assert_eq!(of(&stats, "/products/:id", Kind::Read).requests.total(), 2);
    assert_eq!(of(&stats, "/", Kind::Read).requests.total(), 1);
}

#[tokio::test]
async fn number_of_counted_groups_is_bounded() {
    let larder = Larder::memory();
    for user in 0..2_000 {
        larder.backend().group(&format!("user-{user}")).set("name", "x", 60).await;
    }
    let stats = larder.stats();
    assert!(stats.groups.len() < 600, "{}", stats.groups.len());
    assert_eq!(stats.groups.iter().map(|group| group.writes.stored).sum::<u64>(), 2_000);
}

#[tokio::test]
async fn unreachable_redis_is_reported() {
    use larder_core::store::Breaker;

    let mut server = RedisServer::start();
    let larder = Larder::redis(&server.url()).unwrap();
    let app = Router::new().route("/tea", get(product.layer(cache(&larder).ttl(60))));
    let breaker = || larder.stats().store.health.servers[0].breaker;
    assert_eq!(breaker(), Breaker::Idle);
    call(&app, "GET /tea", &[]).await;
    assert_eq!((breaker(), larder.stats().store.health.is_impaired()), (Breaker::Closed, false));
    let stats = larder.stats();
    let gets = stats.store.operations.iter().find(|known| known.operation == "get").unwrap();
    assert!(gets.latency.count() > 0, "what is waited for is timed");

    server.kill();
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    while breaker() != Breaker::Open {
        assert!(tokio::time::Instant::now() < until, "never open");
        call(&app, "GET /tea", &[]).await;
    }
    call(&app, "GET /tea", &[]).await;
    let stats = larder.stats();
    assert!(stats.store.health.is_impaired());
    assert!(reasons(of(&stats, "/tea", Kind::Read)).iter().any(|(reason, _)| *reason == Reason::Down));
    let gets = stats.store.operations.iter().find(|known| known.operation == "get").unwrap();
    assert!(gets.failures > 0);

    server.restart();
    while breaker() != Breaker::Closed {
        assert!(tokio::time::Instant::now() < until, "never closed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
