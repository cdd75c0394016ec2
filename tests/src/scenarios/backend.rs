//! The recipes for `CacheBackend` in the guide: handlers that use the backend themselves.

use std::time::Duration;

use http::Method;
use serde_json::json;

use crate::shop::Shop;

/// Conditional caching.
pub async fn drafts_are_not_cached(shop: &Shop) {
    for _ in 0..3 {
        for id in [1, 2, 3, 4] {
            assert_eq!(shop.get(&format!("/items/{id}")).await.ok().json()["id"], id);
        }
    }
    for (name, runs) in [("item:1", 3), ("item:2", 1), ("item:3", 3), ("item:4", 1)] {
        assert_eq!(shop.runs(name).await, runs, "{name}");
    }
}

/// Intermediate results, and an eviction over several groups that makes one of them stale.
pub async fn dashboard_parts_are_cached_separately(shop: &Shop) {
    let first = shop.get("/dashboard/5").await.ok();
    assert!(!first.json()["orders"].is_null() && !first.json()["recommendations"].is_null(), "{first:?}");
    assert_eq!(shop.get("/dashboard/5").await.ok().body, first.body);
    shop.get("/dashboard/6").await.ok();
    assert_eq!((shop.runs("orders:5").await, shop.runs("reco:5").await), (1, 1));

    assert_eq!(shop.put("/profile/5", &json!({})).await.ok().json(), json!({ "ok": true }));
    assert_eq!(shop.get("/dashboard/5").await.ok().body, first.body);
    assert_eq!((shop.runs("orders:5").await, shop.runs("reco:5").await), (2, 1));
    shop.get("/dashboard/6").await.ok();
    assert_eq!((shop.runs("orders:6").await, shop.runs("reco:6").await), (1, 1));
    // Without a body, and for a user that doesn't exist, the eviction succeeds.
    shop.request(Method::PUT, "/profile/nobody", &[], "").await.ok();
}

/// Dynamic TTL. The TTLs themselves are checked in the scenarios on Redis.
pub async fn contents_are_cached(shop: &Shop) {
    for id in [2, 3] {
        let first = shop.get(&format!("/content/{id}")).await.ok();
        assert_eq!(first.json()["id"], id);
        assert_eq!(first.json()["premium"], id % 2 == 0);
        assert_eq!(shop.get(&format!("/content/{id}")).await.ok().json(), first.json());
        assert_eq!(shop.runs(&format!("content:{id}")).await, 1);
    }
}

/// Atomic read-modify-write, in sequence. `races` does the same concurrently.
pub async fn views_are_counted(shop: &Shop) {
    for views in 1..=3 {
        let answer = shop.request(Method::POST, "/products/1/view", &[], "").await.ok();
        assert_eq!(answer.json(), json!({ "product_id": 1, "views": views }));
    }
    let answer = shop.request(Method::POST, "/products/2/view", &[], "").await.ok();
    assert_eq!(answer.json(), json!({ "product_id": 2, "views": 1 }));
}

/// Existence check.
pub async fn has_warms_up(shop: &Shop) {
    for (id, warm) in [(1, false), (1, true), (2, false), (1, true), (2, true)] {
        assert_eq!(shop.get(&format!("/warm-check/{id}")).await.ok().json(), json!({ "warm": warm }));
    }
    // The route's entry of the same product has another key.
    shop.get("/products/3").await.expect_miss();
    assert_eq!(shop.get("/warm-check/3").await.ok().json(), json!({ "warm": false }));
}

/// Default values.
pub async fn settings_have_defaults(shop: &Shop) {
    for key in ["theme", "a:b", "%7B", "theme"] {
        let answer = shop.get(&format!("/settings/{key}")).await.ok();
        assert_eq!(answer.json()["value"], "default-value");
    }
    assert_eq!(shop.get("/settings/theme").await.ok().json()["key"], "theme");
}

/// A TTL given as a `Duration`, and deletes of keys that may not exist.
pub async fn sessions_and_orders_are_taken(shop: &Shop) {
    assert_eq!(shop.put("/sessions/abc", &json!({ "user": 5 })).await.ok().json(), json!({ "ok": true }));
    let empty = shop.request(Method::PUT, "/sessions/def", &[], "").await.ok();
    assert_eq!(empty.json(), json!({ "ok": true }));
    let order = shop.post("/checkout", &json!({ "user_id": 5 })).await.ok();
    assert_eq!(order.json()["user_id"], 5);
    let order = shop.post("/checkout", &json!({ "user_id": "alice" })).await.ok();
    assert_eq!(order.json()["user_id"], "alice");
    assert!(order.took < Duration::from_secs(1), "{order:?}");
}
