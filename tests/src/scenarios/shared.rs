//! Two shops over one Redis. Each has its own data, as if its database were a replica that lags behind.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join;
use http::{Method, StatusCode};
use serde_json::json;
use tokio::time::sleep;

use super::concurrently;
use super::races::view;
use crate::http::JSON;
use crate::shop::Shop;

/// A response of one shop is a hit in the other, with the same tag and the remaining lifetime.
pub async fn entry_of_one_shop_is_a_hit_in_the_other(one: &Shop, other: &Shop) {
    for path in ["/products/7", "/products?limit=2", "/config", "/greeting", "/big"] {
        let miss = one.get(path).await.expect_miss();
        let hit = other.get(path).await.expect_hit();
        assert_eq!((&hit.body, hit.etag()), (&miss.body, miss.etag()), "{path}");
    }
    let written = one.put("/products/8", &json!({ "name": "new" })).await.expect_miss();
    assert_eq!(other.get("/products/8").await.expect_hit().body, written.body);
    // The other shop's own data differ: only the cache is shared.
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

/// An eviction by one shop applies to the other.
pub async fn eviction_by_one_shop_applies_to_both(one: &Shop, other: &Shop) {
    for path in ["/products/7", "/products/8", "/products"] {
        one.get(path).await.expect_miss();
        other.get(path).await.expect_hit();
    }
    one.delete("/products/7").await.ok();
    other.get("/products/7").await.expect_miss();
    other.get("/products/8").await.expect_hit();
    // The shop that deleted the product serves the other's entry.
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

/// A hundred cold requests, fifty to each shop, run the handler once.
pub async fn concurrent_requests_to_both_run_the_handler_once(one: &Shop, other: &Shop) {
    for answer in concurrently(100, async |n| [one, other][n % 2].get("/slow/9").await.ok()).await {
        assert_eq!(answer.json()["value"], "old-9");
        assert!(answer.took < Duration::from_secs(3), "{answer:?}");
    }
    assert_eq!(one.runs("slow:9").await + other.runs("slow:9").await, 1);
}

/// The handler of one shop holds the old value when the other evicts. The old value is never stored.
pub async fn fill_that_overlaps_the_other_shops_eviction_is_not_stored(one: &Shop, other: &Shop) {
    for round in 0..3 {
        concurrently(30, async |n| {
            let id = round * 100 + n;
            let path = format!("/slow/{id}");
            let fill = async { one.get(&path).await.ok() };
            let change = async {
                // The handler of `one` has read the value when `other` changes and evicts it. No other run reads the old
                // value, so if `other` serves it, it was stored after the eviction.
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

/// Two hundred updates by each shop count to four hundred.
pub async fn concurrent_updates_by_both_are_all_counted(one: &Shop, other: &Shop) {
    let views: BTreeSet<u64> =
        concurrently(400, async |n| view([one, other][n % 2]).await).await.into_iter().collect();
    assert_eq!(views, (1..=400).collect());
}
