//! Evictions and write-throughs, and writes that fail.

use http::{Method, StatusCode};
use serde_json::json;

use super::product;
use crate::http::JSON;
use crate::shop::Shop;

/// A delete evicts the entry of its own path and the lists, and no other product.
pub async fn deleting_evicts_one_key(shop: &Shop) {
    for path in ["/products/7", "/products/8", "/products/7?x=1", "/products"] {
        shop.get(path).await.expect_miss();
    }
    assert_eq!(shop.delete("/products/7").await.ok().json(), json!({ "deleted": 7 }));
    shop.get("/products/7").await.expect_status(StatusCode::NOT_FOUND);
    for path in ["/products/8", "/products/7?x=1"] {
        shop.get(path).await.expect_hit();
    }
    // The lists show the product, and go with it.
    shop.get("/products").await.expect_miss();
    // Deleting what isn't there, or isn't cached, is no failure.
    assert_eq!(shop.delete("/products/7").await.ok().json(), json!({ "deleted": 7 }));
    assert_eq!(shop.delete("/products/900").await.ok().json(), json!({ "deleted": 900 }));
    shop.get("/products/900").await.expect_status(StatusCode::NOT_FOUND);
}

/// Clearing a group evicts all that is in it, from routes and from the backend, and nothing else.
pub async fn clearing_evicts_the_group_alone(shop: &Shop) {
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

    // Clearing what is empty is no failure, and neither is clearing twice.
    for _ in 0..2 {
        shop.request(Method::POST, "/admin/clear-products", &[], "").await.ok();
    }
}

/// A write-through answers with the headers of a cached GET, and is what the next GET hits.
pub async fn writing_through_is_a_hit(shop: &Shop) {
    // Cold, then over an entry that is there.
    for (round, name) in ["first", "second"].into_iter().enumerate() {
        let written = shop.put("/products/7", &json!({ "name": name, "price": 5 })).await.expect_miss();
        assert_eq!(written.json(), json!({ "id": 7, "name": name, "price": 5 }));
        assert_eq!(written.header("cache-control"), "public, max-age=300");
        assert_eq!(written.headers.get_all("x-redis-cache").iter().count(), 1, "{written:?}");
        // The list is as new as the product.
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
        // The origin agrees.
        let read = shop.get_with("/products/7", &[("cache-control", "no-store")]).await.ok();
        assert_eq!(read.body, written.body);
        shop.get_with("/products/7", &[("cache-control", "no-cache")]).await.expect_miss();
    }
    // What it wrote can be evicted like anything else.
    shop.delete("/products/7").await.ok();
    shop.get("/products/7").await.expect_status(StatusCode::NOT_FOUND);
    shop.put("/products/7", &json!({ "name": "third" })).await.expect_miss();
    shop.get("/products/7").await.expect_hit();
    shop.request(Method::POST, "/admin/clear-products", &[], "").await.ok();
    assert_eq!(shop.get("/products/7").await.expect_miss().json(), json!({ "id": 7, "name": "third" }));
}

/// Preconditions and directives on a write are for its handler: it always runs, and is never answered with a 304.
pub async fn writes_answer_no_conditions(shop: &Shop) {
    let before = shop.get("/products/7").await.expect_miss();
    for (condition, price) in [("*", 1), (before.etag(), 2)] {
        let headers = [JSON, ("if-none-match", condition)];
        let body = json!({ "price": price });
        let written = shop.request(Method::PUT, "/products/7", &headers, &body.to_string()).await.ok();
        assert_eq!(written.json(), json!({ "id": 7, "price": price }));
        assert_eq!(shop.get("/products/7").await.expect_hit().body, written.body);
    }
    // The same body again has the same tag, and is still a 200.
    let written = shop.put("/products/7", &json!({ "price": 3 })).await.ok();
    let headers = [JSON, ("if-none-match", written.etag())];
    let again = shop.request(Method::PUT, "/products/7", &headers, "{\"price\":3}").await.ok();
    assert_eq!(again.body, written.body);
}

/// A handler that fails stores nothing and evicts nothing.
pub async fn failures_change_nothing(shop: &Shop) {
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

    // Neither may be asked of a product that has no number.
    shop.get("/products/abc").await.expect_miss();
    let replaced = shop.put("/products/abc", &json!({ "name": "abc" })).await;
    assert!(replaced.status.is_client_error(), "{replaced:?}");
    assert_ne!(replaced.max_age(), Some(300), "{replaced:?}");
    shop.get("/products/abc").await.expect_hit();
    let deleted = shop.delete("/products/abc").await;
    assert!(deleted.status.is_client_error(), "{deleted:?}");
    shop.get("/products/abc").await.expect_hit();

    // A failed write on a cold key leaves nothing to hit.
    shop.request(Method::PUT, "/products/9", &[JSON], "{not json").await;
    shop.get("/products/9").await.expect_miss();
}
