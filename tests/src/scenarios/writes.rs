//! Evictions, write-throughs, and writes that fail.

use http::{Method, StatusCode};
use serde_json::json;

use super::product;
use crate::http::JSON;
use crate::shop::Shop;

/// A delete evicts the entry of its path and the lists, and no other product.
pub async fn deleting_evicts_one_key(shop: &Shop) {
    for path in ["/products/7", "/products/8", "/products/7?x=1", "/products"] {
        shop.get(path).await.expect_miss();
    }
    assert_eq!(shop.delete("/products/7").await.ok().json(), json!({ "deleted": 7 }));
    shop.get("/products/7").await.expect_status(StatusCode::NOT_FOUND);
    for path in ["/products/8", "/products/7?x=1"] {
        shop.get(path).await.expect_hit();
    }
    // The lists contain the product, so they are evicted too.
    shop.get("/products").await.expect_miss();
    // Deleting a product that doesn't exist, or isn't cached, succeeds.
    assert_eq!(shop.delete("/products/7").await.ok().json(), json!({ "deleted": 7 }));
    assert_eq!(shop.delete("/products/900").await.ok().json(), json!({ "deleted": 900 }));
    shop.get("/products/900").await.expect_status(StatusCode::NOT_FOUND);
}

/// Clearing a group evicts all its entries, those of routes and those of the backend, and no others.
pub async fn clearing_a_group_evicts_only_that_group(shop: &Shop) {
    let in_group = ["/products/1", "/products/2", "/products/1:2", "/products", "/products?limit=3"];
    for path in in_group {
        shop.get(path).await.expect_miss();
    }
    shop.get("/config").await.expect_miss();
    shop.get("/big").await.expect_miss();
    shop.get("/items/2").await.ok();
    assert_eq!(shop.get("/warm-check/1").await.ok().json(), json!({ "warm": false }));
    assert_eq!(shop.get("/warm-check/1").await.ok().json(), json!({ "warm": true }));

    let cleared = shop.request(Method::POST, "/admin/clear-products", &[], "").await.ok();
    assert_eq!(cleared.json(), json!({ "ok": true }));

    for path in in_group {
        shop.get(path).await.expect_miss();
        shop.get(path).await.expect_hit();
    }
    shop.get("/config").await.expect_hit();
    shop.get("/big").await.expect_hit();
    shop.get("/items/2").await.ok();
    assert_eq!(shop.runs("item:2").await, 1);
    assert_eq!(shop.get("/warm-check/1").await.ok().json(), json!({ "warm": false }));

    // Clearing an empty group succeeds, and so does clearing it again.
    for _ in 0..2 {
        shop.request(Method::POST, "/admin/clear-products", &[], "").await.ok();
    }
}

/// A write-through is answered with the fields of a cached GET, and the next GET is a hit.
pub async fn write_through_is_the_next_hit(shop: &Shop) {
    // First without an entry, then over an existing one.
    for (round, name) in ["first", "second"].into_iter().enumerate() {
        let written = shop.put("/products/7", &json!({ "name": name, "price": 5 })).await.expect_miss();
        assert_eq!(written.json(), json!({ "id": 7, "name": name, "price": 5 }));
        assert_eq!(written.header("cache-control"), "public, max-age=300");
        assert_eq!(written.headers.get_all("x-redis-cache").iter().count(), 1, "{written:?}");
        // The list contains the new product.
        let list = shop.get("/products?limit=7").await.expect_miss().json();
        assert_eq!(list[6], written.json());
        shop.get("/products?limit=7").await.expect_hit();
        assert!(written.etag().starts_with("W/\""), "{written:?}");
        let hit = shop.get("/products/7").await.expect_hit();
        assert_eq!(hit.body, written.body);
        assert_eq!(hit.etag(), written.etag());
        assert_eq!(hit.header("content-type"), written.header("content-type"));
        assert!(matches!(hit.max_age(), Some(297..=300)), "{hit:?}");
        assert_eq!(shop.runs("get_product").await, round as u64 * 2);
        // The origin has the same value.
        let read = shop.get_with("/products/7", &[("cache-control", "no-store")]).await.ok();
        assert_eq!(read.body, written.body);
        shop.get_with("/products/7", &[("cache-control", "no-cache")]).await.expect_miss();
    }
    // The entry can be evicted like any other.
    shop.delete("/products/7").await.ok();
    shop.get("/products/7").await.expect_status(StatusCode::NOT_FOUND);
    shop.put("/products/7", &json!({ "name": "third" })).await.expect_miss();
    shop.get("/products/7").await.expect_hit();
    shop.request(Method::POST, "/admin/clear-products", &[], "").await.ok();
    assert_eq!(shop.get("/products/7").await.expect_miss().json(), json!({ "id": 7, "name": "third" }));
}

/// The handler of a write always runs, whatever preconditions and directives the request has. A write never gets a 304.
pub async fn writes_ignore_preconditions(shop: &Shop) {
    let before = shop.get("/products/7").await.expect_miss();
    for (condition, price) in [("*", 1), (before.etag(), 2)] {
        let headers = [JSON, ("if-none-match", condition)];
        let body = json!({ "price": price });
        let written = shop.request(Method::PUT, "/products/7", &headers, &body.to_string()).await.ok();
        assert_eq!(written.json(), json!({ "id": 7, "price": price }));
        assert_eq!(shop.get("/products/7").await.expect_hit().body, written.body);
    }
    // The same body has the same tag, and the response is still a 200.
    let written = shop.put("/products/7", &json!({ "price": 3 })).await.ok();
    let headers = [JSON, ("if-none-match", written.etag())];
    let again = shop.request(Method::PUT, "/products/7", &headers, "{\"price\":3}").await.ok();
    assert_eq!(again.body, written.body);
}

/// A failed handler stores nothing and evicts nothing.
pub async fn failed_writes_change_nothing(shop: &Shop) {
    for runs in 1..=3 {
        let missing = shop.get("/products/5000").await.expect_status(StatusCode::NOT_FOUND).expect_bypass();
        assert!(missing.json().is_object(), "{missing:?}");
        assert_eq!(shop.runs("get_product").await, runs);
    }
    shop.put("/products/5000", &json!({ "name": "new" })).await.ok();
    shop.get("/products/5000").await.expect_hit();

    let before = shop.get("/products/7").await.expect_miss();
    shop.request(Method::PUT, "/products/7", &[JSON], "{not json")
        .await
        .expect_status(StatusCode::BAD_REQUEST);
    assert_eq!(shop.get("/products/7").await.expect_hit().body, before.body);
    assert_eq!(before.json(), product(7));

    // A product whose id is not a number can be neither read nor written.
    shop.get("/products/abc").await.expect_miss();
    let replaced = shop.put("/products/abc", &json!({ "name": "abc" })).await;
    assert!(replaced.status.is_client_error(), "{replaced:?}");
    assert_ne!(replaced.max_age(), Some(300), "{replaced:?}");
    shop.get("/products/abc").await.expect_hit();
    let deleted = shop.delete("/products/abc").await;
    assert!(deleted.status.is_client_error(), "{deleted:?}");
    shop.get("/products/abc").await.expect_hit();

    // A failed write without an entry stores none.
    shop.request(Method::PUT, "/products/9", &[JSON], "{not json").await;
    shop.get("/products/9").await.expect_miss();
}
