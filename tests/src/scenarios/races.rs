//! Concurrent requests to one shop.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::{join, join_all};
use http::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{concurrently, product};
use crate::http::JSON;
use crate::shop::Shop;

/// A hundred requests for a cold entry run the handler once.
pub async fn concurrent_requests_run_the_handler_once(shop: &Shop) {
    for answer in concurrently(100, async |_| shop.get("/slow/9").await.ok()).await {
        assert_eq!(answer.json(), json!({ "id": 9, "value": "old-9" }));
        assert!(matches!(answer.cache(), "HIT" | "MISS"), "{answer:?}");
        assert!(answer.took < Duration::from_secs(3), "{answer:?}");
    }
    assert_eq!(shop.runs("slow:9").await, 1);
    shop.get("/slow/9").await.expect_hit();

    for answer in concurrently(100, async |_| shop.get("/products/7").await.ok()).await {
        assert_eq!(answer.json(), product(7));
    }
    assert_eq!(shop.runs("get_product").await, 1);

    // The same inside a handler, through the backend.
    concurrently(100, async |_| shop.get("/dashboard/5").await.ok()).await;
    assert_eq!((shop.runs("orders:5").await, shop.runs("reco:5").await), (1, 1));
}

/// A request with `no-cache` doesn't get the response of a fill that started earlier.
pub async fn no_cache_request_does_not_join_an_earlier_fill(shop: &Shop) {
    let early = shop.get("/slow/3");
    let late = async {
        sleep(Duration::from_millis(80)).await;
        shop.get_with("/slow/3", &[("cache-control", "no-cache")]).await
    };
    let (early, late) = join(early, late).await;
    early.ok();
    late.expect_miss();
    assert_eq!(shop.runs("slow:3").await, 2);
}

/// Four hundred concurrent updates count to four hundred.
pub async fn concurrent_updates_are_all_counted(shop: &Shop) {
    let views: BTreeSet<u64> = concurrently(400, async |_| view(shop).await).await.into_iter().collect();
    assert_eq!(views, (1..=400).collect());
    assert_eq!(view(shop).await, 401);
}

/// Records a view of product 1 and returns the count.
pub(super) async fn view(shop: &Shop) -> u64 {
    let answer = shop.request(Method::POST, "/products/1/view", &[], "").await.ok();
    answer.json()["views"].as_u64().unwrap()
}

/// A handler that read the old value is still running when the value changes. Once the change is answered, the old value is
/// not served again, neither from the store nor from the fill.
pub async fn fill_that_overlaps_an_eviction_is_not_stored(shop: &Shop) {
    for round in 0..3 {
        // The change happens at another moment of each fill: before it, at its beginning, in its middle, at its end.
        concurrently(36, async |n| {
            let id = round * 100 + n;
            let path = format!("/slow/{id}");
            let fills = join_all((0..2).map(|_| shop.get(&path)));
            let change = async {
                sleep(Duration::from_millis(n as u64 * 7)).await;
                shop.put(&path, &json!({ "value": "new" })).await.ok();
                let after = [0, 20, 60, 120, 200].map(async |pause| {
                    sleep(Duration::from_millis(pause)).await;
                    assert_new(shop, &path).await;
                });
                join_all(after).await;
            };
            join(fills, change).await;
            assert_new(shop, &path).await;
            // The value is stored again, unless the last fill was refused. Then the read above stored it.
            assert_new(shop, &path).await;
            shop.get(&path).await.expect_hit();
        })
        .await;
    }
}

async fn assert_new(shop: &Shop, path: &str) {
    let answer = shop.get(path).await.ok();
    assert_eq!(answer.json()["value"], "new", "stale: {answer:?}");
}

/// Once a write is answered, no later read returns an older value, while reads go on.
pub async fn reads_after_a_write_return_the_new_value(shop: &Shop) {
    join_all((1..=4).map(async |id| {
        let path = format!("/products/{id}");
        let writing = async {
            for price in 1..=60_u64 {
                match price % 10 {
                    0 => drop(shop.request(Method::POST, "/admin/clear-products", &[], "").await.ok()),
                    5 => drop(shop.delete(&path).await.ok()),
                    _ => {}
                }
                shop.put(&path, &json!({ "price": price })).await.ok();
                let read = shop.get(&path).await.ok();
                assert_eq!(read.json()["price"], price, "stale: {read:?}");
            }
        };
        let mut readers = join_all((0..3).map(async |_| {
            loop {
                shop.get(&path).await;
            }
        }));
        tokio::select! {
            () = writing => {}
            _ = &mut readers => {}
        }
        assert_eq!(shop.get(&path).await.ok().json()["price"], 60);
    }))
    .await;
}

/// In whatever order overlapping writes reach the database, the cache agrees with it.
pub async fn overlapping_writes_leave_cache_and_origin_equal(shop: &Shop) {
    for round in 0..40 {
        concurrently(6, async |writer| {
            shop.put("/products/7", &json!({ "round": round, "writer": writer })).await.ok();
        })
        .await;
        let origin = shop.get("/products-uncached/7").await.ok();
        for _ in 0..2 {
            let cached = shop.get("/products/7").await.ok();
            assert_eq!(cached.body, origin.body, "{cached:?}");
        }
    }
}

/// The client whose request runs the handler disconnects. The others get the response of that same run.
pub async fn leader_disconnect_does_not_block_followers(shop: &Shop) {
    let leader = shop.hang_up(Method::GET, "/slow/1", &[], "", Duration::from_millis(80));
    let others = async {
        sleep(Duration::from_millis(30)).await;
        concurrently(5, async |_| shop.get("/slow/1").await.ok()).await
    };
    let ((), others) = join(leader, others).await;
    for answer in others {
        assert_eq!(answer.json()["value"], "old-1");
        assert!(answer.took < Duration::from_secs(1), "{answer:?}");
    }
    assert_eq!(shop.runs("slow:1").await, 1);
    shop.get("/slow/1").await.expect_hit();

    // Also without followers: the handler finishes or runs again, and the next request doesn't wait for the client that
    // left.
    shop.hang_up(Method::GET, "/slow/2", &[], "", Duration::from_millis(50)).await;
    let answer = shop.get("/slow/2").await.ok();
    assert!(answer.took < Duration::from_secs(1), "{answer:?}");
    shop.get("/slow/2").await.expect_hit();
}

/// A client disconnects at any moment of its write. Whether or not the value changed, the cache agrees with the database.
pub async fn writer_disconnect_leaves_no_old_entry(shop: &Shop) {
    let ids: Vec<u64> = (100..160).collect();
    for &id in &ids {
        shop.get(&format!("/products/{id}")).await.expect_miss();
    }
    let methods = [(Method::PUT, "{\"price\":1}"), (Method::DELETE, "")];
    for (n, id) in ids.iter().enumerate() {
        let (method, body) = methods[n % 2].clone();
        let after = Duration::from_micros(n as u64 * 50);
        shop.hang_up(method, &format!("/products/{id}"), &[JSON], body, after).await;
    }
    // Leaves time for the writes to end.
    sleep(Duration::from_millis(500)).await;
    for id in ids {
        agree(shop, id).await;
    }

    // The same during a slow fill: the value changed, so the response of the fill must not stay.
    concurrently(20, async |n| {
        let path = format!("/slow/{}", 500 + n);
        let fill = shop.get(&path);
        let write = async {
            sleep(Duration::from_millis(60)).await;
            let after = Duration::from_micros(n as u64 * 100);
            shop.hang_up(Method::PUT, &path, &[JSON], "{\"value\":\"new\"}", after).await;
        };
        join(fill, write).await;
        sleep(Duration::from_millis(300)).await;
        let cached = shop.get(&path).await.ok();
        let origin = shop.get_with(&path, &[("cache-control", "no-store")]).await.ok();
        assert_eq!(cached.json(), origin.json(), "{cached:?}, {origin:?}");
    })
    .await;
}

/// Panics unless the cache and the origin give the same response for a product.
pub(super) async fn agree(shop: &Shop, id: u64) {
    let cached = shop.get(&format!("/products/{id}")).await;
    let origin = shop.get(&format!("/products-uncached/{id}")).await;
    assert_eq!((cached.status, &cached.body), (origin.status, &origin.body), "{cached:?}");
}

/// Sends requests until one is a hit, and panics after `within`. Every response must have this body.
pub(super) async fn until_hit(shop: &Shop, path: &str, within: Duration, expected: &Value) {
    let began = Instant::now();
    loop {
        let answer = shop.get(path).await.ok();
        assert_eq!(&answer.json(), expected, "{answer:?}");
        if answer.cache() == "HIT" {
            return;
        }
        assert!(began.elapsed() < within, "still no hit after {within:?}: {answer:?}\n{}", shop.stderr());
        sleep(Duration::from_millis(20)).await;
    }
}
