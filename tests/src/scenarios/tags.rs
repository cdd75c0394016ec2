//! The catalog: responses are evicted by the products that they show.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::{join, join_all};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::product;
use crate::shop::Shop;

/// After a change of product 7, exactly the pages that showed it are new.
pub async fn changed_product_renews_exactly_the_pages_that_show_it(shop: &Shop) {
    let pages: Vec<String> = (1..=7).map(|page| format!("/catalog?page={page}")).collect();
    let items: Vec<String> = (1..=60).map(|id| format!("/catalog/{id}")).collect();
    let first_page: Vec<Value> = (1..=10).map(product).collect();
    for path in pages.iter().chain(&items) {
        shop.get(path).await.expect_miss();
        shop.get(path).await.expect_hit();
    }
    assert_eq!(shop.get("/catalog?page=1").await.json(), json!(first_page));
    assert_eq!(shop.get("/catalog").await.expect_miss().json(), json!(first_page));
    assert_eq!(shop.get("/catalog?page=7").await.json(), json!([]));
    shop.get("/catalog/61").await.expect_status(StatusCode::NOT_FOUND);

    let changed = shop.put("/catalog/7", &json!({ "name": "tea", "price": 1 })).await.ok();
    assert_eq!(changed.json(), json!({ "id": 7, "name": "tea", "price": 1 }));
    for path in pages.iter().chain(&items) {
        let answer = shop.get(path).await;
        if ["/catalog?page=1", "/catalog/7"].contains(&&**path) {
            answer.expect_miss();
        } else {
            answer.expect_hit();
        }
    }
    assert_eq!(shop.get("/catalog/7").await.expect_hit().json()["name"], "tea");
    assert_eq!(shop.get("/catalog").await.expect_miss().json()[6]["name"], "tea");
    assert_eq!((shop.runs("catalog-page:1").await, shop.runs("catalog-page:2").await), (4, 1));
    assert_eq!((shop.runs("catalog:7").await, shop.runs("catalog:8").await), (2, 1));

    // A write that fails evicts nothing.
    shop.put("/catalog/61", &json!({})).await.expect_status(StatusCode::NOT_FOUND);
    shop.request(Method::PUT, "/catalog/7", &[crate::http::JSON], "no JSON").await;
    shop.get("/catalog?page=1").await.expect_hit();
}

/// A tag that is evicted softly leaves stale responses, which one run of the handler replaces.
pub async fn softly_evicted_pages_are_served_while_they_are_refreshed(shop: &Shop) {
    for path in ["/catalog?page=1", "/catalog?page=2"] {
        shop.get(path).await.expect_miss();
    }
    shop.post("/admin/evict-tag/product:3?soft=true", &Value::Null).await.ok();
    shop.get("/catalog?page=1").await.expect_hit();
    while shop.runs("catalog-page:1").await < 2 {
        sleep(Duration::from_millis(5)).await;
    }
    sleep(Duration::from_millis(50)).await;
    shop.get("/catalog?page=1").await.expect_hit();
    shop.get("/catalog?page=2").await.expect_hit();
    assert_eq!((shop.runs("catalog-page:1").await, shop.runs("catalog-page:2").await), (2, 1));
    shop.post("/admin/evict-tag/product:3", &Value::Null).await.ok();
    shop.get("/catalog?page=1").await.expect_miss();
    shop.get("/catalog?page=2").await.expect_hit();
    // A tag that no entry can have evicts nothing.
    shop.post(&format!("/admin/evict-tag/{}", "x".repeat(300)), &Value::Null).await.ok();
    shop.get("/catalog?page=1").await.expect_hit();
}

/// The private responses of one user are evicted from outside that user's requests.
pub async fn evicted_user_loses_only_her_own_entries(shop: &Shop) {
    let profile = async |user: &str| {
        shop.get_with("/me/profile", &[("authorization", &format!("Bearer {user}"))]).await
    };
    for user in ["alice", "bob"] {
        profile(user).await.expect_miss();
        profile(user).await.expect_hit();
    }
    shop.post("/admin/evict-user/alice", &Value::Null).await.ok();
    profile("bob").await.expect_hit();
    profile("alice").await.expect_miss();
    profile("alice").await.expect_hit();
}

/// A path is evicted with all its queries, and no other path.
pub async fn evicted_path_loses_all_its_queries(shop: &Shop) {
    let pages = ["/catalog", "/catalog?page=1", "/catalog?page=2&x=1"];
    for path in pages.iter().chain(&["/catalog/1"]) {
        shop.get(path).await.expect_miss();
    }
    shop.post("/admin/evict-path?path=/catalog", &Value::Null).await.ok();
    for path in pages {
        shop.get(path).await.expect_miss();
    }
    shop.get("/catalog/1").await.expect_hit();
}

/// Changes of products race with the fills of the pages that show them. After a change is confirmed, neither shop returns what was
/// there before.
pub async fn fills_that_overlap_a_tag_eviction_are_not_stored(one: &Shop, other: &Shop) {
    race(one, other, 250).await;
}

/// Runs this number of rounds, each with two evictions among four fills.
pub async fn race(one: &Shop, other: &Shop, rounds: u64) {
    let price_of = |body: &Value| body["price"].as_u64();
    // Each shop has products of its own, so each is changed and read in its own process, and evicted in the other.
    let price = AtomicU64::new(1);
    for round in 0..rounds {
        let (shop, elsewhere) = if round % 2 == 0 { (one, other) } else { (other, one) };
        let id = round % 4 + 1;
        let (page, item) = ("/catalog?page=1", format!("/catalog/{id}"));
        let reads = join_all((0..4).map(|n| shop.get(if n % 2 == 0 { page } else { &item })));
        let write = async {
            let price = price.fetch_add(1, Ordering::SeqCst) + 1;
            let body = json!({ "name": "new", "price": price });
            shop.put(&item, &body).await.ok();
            elsewhere.put(&item, &body).await.ok();
            for shop in [shop, elsewhere] {
                let (page, item) = join(shop.get(page), shop.get(&item)).await;
                let index = usize::try_from(id).unwrap() - 1;
                assert_eq!(price_of(&page.ok().json()[index]), Some(price), "{round}: stale page");
                assert_eq!(price_of(&item.ok().json()), Some(price), "{round}: stale item");
            }
        };
        join(reads, write).await;
    }
}
