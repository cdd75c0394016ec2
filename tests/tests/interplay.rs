//! The cache together with other layers. In the right order all features work; in the wrong order nothing leaks.

use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::handler::Handler;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get as get_route;
use http::Method;
use larder_axum::{Larder, cache, cache_evict};
use larder_tests::http::Http;
use larder_tests::in_process::{Runs, get, send};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tower_http::compression::CompressionLayer;
use tower_http::cors::{Any, CorsLayer};
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;

const GZIP: [(&str, &str); 1] = [("accept-encoding", "gzip")];

fn counting(runs: &Runs, body: &'static str) -> impl Handler<((),), ()> {
    let runs = runs.clone();
    move || async move {
        runs.count();
        body
    }
}

fn long_text() -> &'static str {
    "all work and no play makes jack a dull boy. all work and no play makes jack a dull boy. all work and no play"
}

#[tokio::test]
async fn compression_outside_the_cache_stores_one_plain_entry() {
    let runs = Runs::new();
    let layer = cache(&Larder::memory()).ttl(60);
    let app = Router::new()
        .route("/x", get_route(counting(&runs, long_text()).layer(layer)))
        .layer(CompressionLayer::new());
    let plain = get(&app, "/x").await;
    assert_eq!((plain.cache(), plain.header("content-encoding"), plain.text()), ("MISS", "", long_text()));
    let zipped = send(&app, Method::GET, "/x", &GZIP).await;
    assert_eq!((zipped.cache(), zipped.header("content-encoding")), ("HIT", "gzip"));
    assert_eq!(&zipped.body[..2], [0x1f, 0x8b], "a gzip header");
    // The tag is weak: it stands for the same content in any coding.
    assert_eq!(zipped.header("etag"), plain.header("etag"));
    assert_eq!(runs.total(), 1);
}

#[tokio::test]
async fn compression_inside_the_cache_sends_only_acceptable_codings() {
    let runs = Runs::new();
    let compressed =
        tower::ServiceBuilder::new().layer(cache(&Larder::memory()).ttl(60)).layer(CompressionLayer::new());
    let app = Router::new().route("/x", get_route(counting(&runs, long_text())).layer(compressed));
    for _ in 0..2 {
        let zipped = send(&app, Method::GET, "/x", &GZIP).await;
        assert_eq!((zipped.header("content-encoding"), &zipped.body[..2]), ("gzip", &[0x1f, 0x8b][..]));
        // Its length isn't known beforehand, so it isn't stored. That is the cost of the wrong order.
        assert_eq!(zipped.cache(), "BYPASS");
        let plain = get(&app, "/x").await;
        assert_eq!((plain.header("content-encoding"), plain.text()), ("", long_text()));
    }
}

#[tokio::test]
async fn timeout_outside_ends_the_request_but_not_the_fill() {
    let runs = Runs::new();
    let counted = runs.clone();
    let slow = move || async move {
        counted.count();
        sleep(Duration::from_millis(80)).await;
        "slow"
    };
    let timeout = TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_millis(20));
    let app =
        Router::new().route("/x", get_route(slow.layer(cache(&Larder::memory()).ttl(60)))).layer(timeout);
    assert_eq!(get(&app, "/x").await.status, StatusCode::GATEWAY_TIMEOUT);
    sleep(Duration::from_millis(120)).await;
    let hit = get(&app, "/x").await;
    assert_eq!((hit.cache(), hit.text(), runs.total()), ("HIT", "slow", 1));
}

#[tokio::test]
async fn cors_outside_sets_each_origin_and_stores_none() {
    let runs = Runs::new();
    let app = Router::new()
        .route("/x", get_route(counting(&runs, "hello").layer(cache(&Larder::memory()).ttl(60))))
        .layer(CorsLayer::new().allow_origin(Any).allow_methods([Method::GET]))
        .layer(TraceLayer::new_for_http());
    for cache in ["MISS", "HIT"] {
        let answer = send(&app, Method::GET, "/x", &[("origin", "https://a.example")]).await;
        assert_eq!((answer.cache(), answer.header("access-control-allow-origin")), (cache, "*"));
    }
    let fields = [("origin", "https://a.example"), ("access-control-request-method", "GET")];
    let preflight = send(&app, Method::OPTIONS, "/x", &fields).await;
    assert_eq!((preflight.status, preflight.cache()), (StatusCode::OK, ""));
    assert_eq!(runs.total(), 1);
}

#[tokio::test]
async fn cors_inside_is_stored_by_origin() {
    let runs = Runs::new();
    let layers = tower::ServiceBuilder::new()
        .layer(cache(&Larder::memory()).ttl(60))
        .layer(CorsLayer::new().allow_origin(tower_http::cors::AllowOrigin::mirror_request()));
    let app = Router::new().route("/x", get_route(counting(&runs, "hello")).layer(layers));
    for _ in 0..2 {
        for origin in ["https://a.example", "https://b.example"] {
            let answer = send(&app, Method::GET, "/x", &[("origin", origin)]).await;
            assert_eq!(answer.header("access-control-allow-origin"), origin);
        }
    }
    assert_eq!(runs.total(), 2);
}

/// Rejects requests whose token is missing or revoked.
async fn authenticate(request: Request, next: Next) -> Response {
    match request.headers().get("authorization").map(|value| value.as_bytes()) {
        Some(b"Bearer alice") => next.run(request).await,
        _ => StatusCode::UNAUTHORIZED.into_response(),
    }
}

/// Checks the token in the handler, for apps without an authentication layer.
async fn secret(headers: HeaderMap) -> Response {
    match headers.get("authorization").map(|value| value.as_bytes()) {
        Some(b"Bearer alice" | b"Bearer bob") => "secret".into_response(),
        _ => StatusCode::UNAUTHORIZED.into_response(),
    }
}

#[tokio::test]
async fn authentication_outside_runs_on_every_hit() {
    let app = Router::new()
        .route("/x", get_route(secret.layer(cache(&Larder::memory()).ttl(60).private())))
        .layer(from_fn(authenticate));
    let ask = async |token: &str| send(&app, Method::GET, "/x", &[("authorization", token)]).await;
    assert_eq!(ask("Bearer alice").await.cache(), "MISS");
    assert_eq!(ask("Bearer alice").await.cache(), "HIT");
    assert_eq!(ask("Bearer bob").await.status, StatusCode::UNAUTHORIZED, "revoked");
}

#[tokio::test]
async fn private_alone_does_not_authorize() {
    let larder = Larder::memory();
    let revoked = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let list = revoked.clone();
    let handler = move || async move {
        match list.load(std::sync::atomic::Ordering::SeqCst) {
            true => StatusCode::UNAUTHORIZED.into_response(),
            false => "secret".into_response(),
        }
    };
    let app = Router::new().route("/x", get_route(handler.layer(cache(&larder).ttl(60).private())));
    let ask = async || send(&app, Method::GET, "/x", &[("authorization", "Bearer alice")]).await;
    ask().await;
    revoked.store(true, std::sync::atomic::Ordering::SeqCst);
    // A hit skips the handler and its check. That is why authentication belongs outside the cache.
    assert_eq!(ask().await.text(), "secret");
}

#[tokio::test]
async fn layer_over_a_whole_router_separates_its_routes() {
    let (one, two) = (Runs::new(), Runs::new());
    let app = Router::new()
        .route("/a", get_route(counting(&one, "a")))
        .merge(Router::new().route("/b", get_route(counting(&two, "b"))))
        .route_layer(cache(&Larder::memory()).ttl(60))
        .fallback(async || (StatusCode::NOT_FOUND, "nothing"));
    for cache in ["MISS", "HIT"] {
        let (a, b) = (get(&app, "/a").await, get(&app, "/b").await);
        assert_eq!((a.cache(), a.text(), b.cache(), b.text()), (cache, "a", cache, "b"));
    }
    assert_eq!((one.total(), two.total()), (1, 1));
    let fallback = get(&app, "/c").await;
    assert_eq!(
        (fallback.status, fallback.cache()),
        (StatusCode::NOT_FOUND, ""),
        "a route layer knows its routes only"
    );
}

#[tokio::test]
async fn merged_router_can_evict_entries_of_another() {
    let larder = Larder::memory();
    let runs = Runs::new();
    let reads =
        Router::new().route("/x", get_route(counting(&runs, "x").layer(cache(&larder).group("g").ttl(60))));
    let writes = Router::new().route(
        "/clear",
        axum::routing::post((async || "cleared").layer(cache_evict(&larder).group("g").whole_group())),
    );
    let app = reads.merge(Router::new().nest("/admin", writes));
    get(&app, "/x").await;
    assert_eq!(get(&app, "/x").await.cache(), "HIT");
    send(&app, Method::POST, "/admin/clear", &[]).await;
    assert_eq!(get(&app, "/x").await.cache(), "MISS");
}

#[tokio::test]
async fn closing_waits_for_a_write_whose_client_disconnected() {
    let larder = Larder::memory();
    let write = async || {
        sleep(Duration::from_millis(60)).await;
        "new"
    };
    let route = get_route((async || "old").layer(cache(&larder).ttl(60)))
        .delete(write.layer(cache_evict(&larder).key()));
    let app = Router::new().route("/x", route);
    get(&app, "/x").await;
    let gone = tokio::time::timeout(Duration::from_millis(10), send(&app, Method::DELETE, "/x", &[])).await;
    assert!(gone.is_err());
    larder.close().await;
    let key = larder.key_for(None, &"/x".parse().unwrap()).unwrap();
    assert!(!larder.backend().has(key.suffix()).await);
}

#[tokio::test]
async fn compression_outside_leaves_a_304_alone() {
    let app = Router::new()
        .route("/x", get_route((async || long_text()).layer(cache(&Larder::memory()).ttl(60))))
        .layer(CompressionLayer::new());
    let etag = send(&app, Method::GET, "/x", &GZIP).await.header("etag").to_owned();
    for coding in ["gzip", "identity"] {
        let fields = [("accept-encoding", coding), ("if-none-match", &*etag)];
        let known = send(&app, Method::GET, "/x", &fields).await;
        assert_eq!((known.status, known.cache(), known.text()), (StatusCode::NOT_MODIFIED, "HIT", ""));
        assert_eq!((known.header("content-encoding"), known.header("etag")), ("", &*etag), "{coding}");
    }
}

#[tokio::test]
async fn compressed_responses_with_a_length_are_stored_per_coding() {
    let runs = Runs::new();
    let counted = runs.clone();
    // Like a handler that serves compressed files, it knows the length.
    let files = move |headers: HeaderMap| async move {
        counted.count();
        match headers.get("accept-encoding").is_some_and(|value| value == "gzip") {
            true => ([("content-encoding", "gzip"), ("vary", "accept-encoding")], "zipped").into_response(),
            false => ([("vary", "accept-encoding")], "plain").into_response(),
        }
    };
    let app = Router::new().route("/x", get_route(files.layer(cache(&Larder::memory()).ttl(60))));
    for cache in ["MISS", "HIT"] {
        let zipped = send(&app, Method::GET, "/x", &GZIP).await;
        assert_eq!(
            (zipped.cache(), zipped.header("content-encoding"), zipped.text()),
            (cache, "gzip", "zipped")
        );
        let plain = get(&app, "/x").await;
        assert_eq!((plain.cache(), plain.header("content-encoding"), plain.text()), (cache, "", "plain"));
    }
    assert_eq!(runs.total(), 2);
}

#[tokio::test]
async fn layer_over_the_whole_router_covers_the_fallback() {
    let runs = Runs::new();
    let counted = runs.clone();
    let fallback = move || async move {
        counted.count();
        (StatusCode::NOT_FOUND, "nothing")
    };
    let app = Router::new()
        .route("/a", get_route(async || "a").post(async || "posted"))
        .nest("/v1", Router::new().route("/a", get_route(async || "a of v1")))
        .nest("/v2", Router::new().route("/a", get_route(async || "a of v2")))
        .fallback(fallback)
        .layer(cache(&Larder::memory()).ttl(60));
    for cache in ["MISS", "HIT"] {
        for (uri, body) in [("/a", "a"), ("/v1/a", "a of v1"), ("/v2/a", "a of v2")] {
            let answer = get(&app, uri).await;
            assert_eq!((answer.cache(), answer.text()), (cache, body), "{uri}");
        }
        let nothing = get(&app, "/elsewhere").await;
        assert_eq!((nothing.status, nothing.cache()), (StatusCode::NOT_FOUND, "BYPASS"));
        let posted = send(&app, Method::POST, "/a", &[]).await;
        assert_eq!((posted.cache(), posted.text()), ("BYPASS", "posted"));
    }
    assert_eq!(runs.total(), 2, "a 404 is not stored");
}

#[tokio::test]
async fn tracing_outside_sees_hits() {
    let seen = Runs::new();
    let (runs, counted) = (Runs::new(), seen.clone());
    let trace =
        TraceLayer::new_for_http().on_response(move |response: &Response, _: Duration, _: &tracing::Span| {
            assert!(response.headers().contains_key("x-redis-cache"));
            counted.count();
        });
    let app = Router::new()
        .route("/x", get_route(counting(&runs, "x").layer(cache(&Larder::memory()).ttl(60))))
        .layer(trace);
    for _ in 0..3 {
        get(&app, "/x").await;
    }
    assert_eq!((seen.total(), runs.total()), (3, 1));
}

/// Serves a router on a socket until the test ends.
async fn serve(app: Router) -> Http {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    Http::new(address)
}

#[tokio::test]
async fn all_layers_work_together_over_a_socket() {
    let runs = Runs::new();
    let larder = Larder::memory();
    let app = Router::new()
        .route(
            "/x",
            get_route(counting(&runs, long_text()).layer(cache(&larder).group("g").ttl(60)))
                .delete((async || "gone").layer(cache_evict(&larder).group("g").key())),
        )
        .layer(CompressionLayer::new())
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(5)))
        .layer(CorsLayer::new().allow_origin(Any))
        .layer(TraceLayer::new_for_http());
    let http = serve(app).await;

    let plain = http.get("/x").await.expect_miss();
    assert_eq!((plain.header("content-encoding"), &*plain.body), ("", long_text().as_bytes()));
    let zipped = http.get_with("/x", &GZIP).await.expect_hit();
    assert_eq!((zipped.header("content-encoding"), &zipped.body[..2]), ("gzip", &[0x1f, 0x8b][..]));
    assert_eq!(zipped.header("access-control-allow-origin"), "*");
    assert_eq!(zipped.headers.get_all("date").iter().count(), 1, "one, of now");
    assert_eq!(zipped.etag(), plain.etag());

    let known = http.get_with("/x", &[GZIP[0], ("if-none-match", zipped.etag())]).await;
    assert_eq!((known.status, known.cache(), known.body.len()), (StatusCode::NOT_MODIFIED, "HIT", 0));
    let head = http.head("/x").await.expect_hit();
    assert_eq!((head.header("content-length"), head.body.len()), (&*long_text().len().to_string(), 0));

    http.delete("/x").await.ok();
    http.get("/x").await.expect_miss();
    assert_eq!(runs.total(), 2);
}

#[tokio::test]
async fn fill_outlives_a_timeout_and_a_disconnect_over_a_socket() {
    let runs = Runs::new();
    let counted = runs.clone();
    let slow = move || async move {
        counted.count();
        sleep(Duration::from_millis(150)).await;
        "slow"
    };
    let app = Router::new()
        .route("/{id}", get_route(slow.layer(cache(&Larder::memory()).ttl(60))))
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_millis(50)));
    let http = serve(app).await;
    http.get("/1").await.expect_status(StatusCode::GATEWAY_TIMEOUT);
    http.hang_up(Method::GET, "/2", &[], "", Duration::from_millis(20)).await;
    sleep(Duration::from_millis(400)).await;
    for path in ["/1", "/2"] {
        assert_eq!(&*http.get(path).await.expect_hit().body, b"slow");
    }
    assert_eq!(runs.total(), 2);
}
