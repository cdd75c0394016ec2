//! Two shops, one Redis. Each has data of its own, as if its database were a replica that lags behind.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join;
use http::{Method, StatusCode};
use serde_json::json;
use tokio::time::sleep;

use super::crowd;
use super::races::view;
use crate::http::JSON;
use crate::shop::Shop;

/// One shop's answers are hits in the other, with the same tag and the lifetime that is left.
pub async fn what_one_stores_the_other_serves(one: &Shop, other: &Shop) {
    for path in ["/products/7", "/products?limit=2", "/config", "/greeting", "/big"] {
        let miss = one.get(path).await.expect_miss();
        let hit = other.get(path).await.expect_hit();
        assert_eq!((&hit.body, hit.etag()), (&miss.body, miss.etag()), "{path}");
    }
    let written = one.put("/products/8", &json!({ "name": "new" })).await.expect_miss();
    assert_eq!(other.get("/products/8").await.expect_hit().body, written.body);
    // It has that product otherwise; the cache is what they share.
    assert_ne!(other.get("/products-uncached/8").await.ok().body, written.body);
    one.get("/items/2").await.ok();
    other.get("/items/2").await.ok();
    assert_eq!((one.runs("item:2").await, other.runs("item:2").await), (1, 0));

    let alice = [JSON, ("authorization", "Bearer alice")];
    one.request(Method::PUT, "/me/profile", &alice, "{\"colour\":\"green\"}").await.expect_miss();
    let bob = [("authorization", "Bearer bob")];
    assert_eq!(other.get_with("/me/profile", &bob).await.ok().json()["user"], "bob");
    assert_eq!(other.get_with("/me/profile", &alice).await.ok().json()["user"], "alice");
}

/// One shop's evictions are the other's.
pub async fn what_one_evicts_is_gone_for_both(one: &Shop, other: &Shop) {
    for path in ["/products/7", "/products/8", "/products"] {
        one.get(path).await.expect_miss();
        other.get(path).await.expect_hit();
    }
    one.delete("/products/7").await.ok();
    other.get("/products/7").await.expect_miss();
    other.get("/products/8").await.expect_hit();
    // The one that has no such product any more is served the other's.
    one.get("/products/7").await.expect_hit();
    other.delete("/products/7").await.ok();
    one.get("/products/7").await.expect_status(StatusCode::NOT_FOUND);

    other.request(Method::POST, "/admin/clear-products", &[], "").await.ok();
    one.get("/products/8").await.expect_miss();
    other.get("/products/8").await.expect_hit();
    other.get("/products").await.expect_miss();
    one.get("/products").await.expect_hit();

    one.get("/dashboard/5").await.ok();
    other.put("/profile/5", &json!({})).await.ok();
    one.get("/dashboard/5").await.ok();
    assert_eq!((one.runs("orders:5").await, one.runs("reco:5").await), (2, 1));
}

/// A hundred cold requests, fifty to each: one run in all.
pub async fn a_crowd_over_both_runs_the_handler_once(one: &Shop, other: &Shop) {
    for answer in crowd(100, async |n| [one, other][n % 2].get("/slow/9").await.ok()).await {
        assert_eq!(answer.json()["value"], "old-9");
        assert!(answer.took < Duration::from_secs(3), "{answer:?}");
    }
    assert_eq!(one.runs("slow:9").await + other.runs("slow:9").await, 1);
}

/// One shop's handler is busy with the old value when the other evicts: the old value is never stored.
pub async fn fills_never_outlive_the_others_eviction(one: &Shop, other: &Shop) {
    for round in 0..3 {
        crowd(30, async |n| {
            let id = round * 100 + n;
            let path = format!("/slow/{id}");
            let fill = async { one.get(&path).await.ok() };
            let change = async {
                // The handler of `one` has read the value when the other changes and evicts it. That is the only old
                // value there will be, so where `other` answers it, it was stored after the eviction.
                let counter = format!("slow:{id}");
                while one.runs(&counter).await == 0 {
                    sleep(Duration::from_millis(1)).await;
                }
                sleep(Duration::from_millis(n as u64 * 8)).await;
                other.put(&path, &json!({ "value": "new" })).await.ok();
            };
            join(fill, change).await;
            for _ in 0..3 {
                let answer = other.get(&path).await.ok();
                assert_eq!(answer.json()["value"], "new", "stale: {answer:?}");
            }
            assert_eq!(one.get(&path).await.expect_hit().json()["value"], "new");
        })
        .await;
    }
}

/// Two hundred views in each shop are four hundred.
pub async fn no_view_is_lost_over_both(one: &Shop, other: &Shop) {
    let views: BTreeSet<u64> =
        crowd(400, async |n| view([one, other][n % 2]).await).await.into_iter().collect();
    assert_eq!(views, (1..=400).collect());
}
