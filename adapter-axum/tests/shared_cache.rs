//! The shared cache in axum routers.

#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::OriginalUri;
use axum::http::Request;
use axum::http::header::CACHE_CONTROL;
use axum::routing::get;
use larder_axum::{Larder, SharedCacheLayer};
use tower::ServiceExt;

/// Returns the body and the cache's status.
async fn ask(app: &Router, request: &str) -> (String, String) {
    let (method, uri) = request.split_once(' ').unwrap();
    let request = Request::builder().method(method).uri(uri).body(Body::empty()).unwrap();
    let answer = app.clone().oneshot(request).await.unwrap();
    let status = answer.headers()["cache-status"].to_str().unwrap().to_owned();
    let body = to_bytes(answer.into_body(), 1000).await.unwrap();
    (String::from_utf8(body.to_vec()).unwrap(), status)
}

/// A router with `/items`, fresh for a minute, and a PUT that changes it.
fn items(cache: &SharedCacheLayer) -> Router {
    let read = async |OriginalUri(uri): OriginalUri| ([(CACHE_CONTROL, "max-age=60")], uri.to_string());
    Router::new().route("/items", get(read).put(async || ())).layer(cache.clone())
}

#[tokio::test]
async fn nested_routers_have_separate_keys() {
    let larder = Larder::memory();
    let cache = SharedCacheLayer::new(&larder);
    let inner = Router::new().nest("/a", items(&cache)).nest("/b", items(&cache));
    let app = Router::new().nest("/v1", inner).nest("/v2", items(&cache));
    let uris = ["/v1/a/items", "/v1/b/items", "/v2/items"];
    for (expected, uri) in
        uris.iter().map(|uri| ("fwd=uri-miss", uri)).chain(uris.iter().map(|uri| ("; hit", uri)))
    {
        let (body, status) = ask(&app, &format!("GET {uri}")).await;
        assert!(body == **uri && status.contains(expected), "{uri}: {body} {status}");
    }
    // A write evicts its own target.
    ask(&app, "PUT /v1/a/items").await;
    assert!(ask(&app, "GET /v1/a/items").await.1.contains("fwd=uri-miss"));
    assert!(ask(&app, "GET /v1/b/items").await.1.contains("; hit"));
    // So does `SharedCache::evict`.
    cache.cache().evict(&"/v2/items".parse().unwrap(), "").await;
    assert!(ask(&app, "GET /v2/items").await.1.contains("fwd=uri-miss"));
}

#[tokio::test]
async fn router_and_nested_router_share_one_cache() {
    let cache = SharedCacheLayer::new(&Larder::memory());
    let app = Router::new().nest("/v1", items(&cache)).merge(items(&cache));
    for expected in ["fwd=uri-miss", "; hit"] {
        for uri in ["/items", "/v1/items"] {
            let (body, status) = ask(&app, &format!("GET {uri}")).await;
            assert!(body == uri && status.contains(expected), "{uri}: {body} {status}");
        }
    }
}
