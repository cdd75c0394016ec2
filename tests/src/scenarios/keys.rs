//! Cache keys: which requests share an entry.

use http::StatusCode;
use serde_json::json;

use crate::shop::Shop;

/// Parameters are sorted by name.
pub async fn order_of_parameters_does_not_matter(shop: &Shop) {
    let miss = shop.get("/products?limit=2&z=1&a=2").await.expect_miss();
    for path in ["/products?a=2&limit=2&z=1", "/products?z=1&a=2&limit=2"] {
        assert_eq!(shop.get(path).await.expect_hit().body, miss.body);
    }
    // The values of one name keep their order, which can matter.
    shop.get("/products?limit=2&z=1&z=2").await.expect_miss();
    shop.get("/products?limit=2&z=2&z=1").await.expect_miss();
    shop.get("/products?z=1&limit=2&z=2").await.expect_hit();
    assert_eq!(shop.runs("list_products").await, 3);
}

/// Requests whose keys look similar, because slashes become colons, have separate entries.
pub async fn similar_paths_have_separate_entries(shop: &Shop) {
    let paths = [
        "/products/1:2",
        "/products/1%253A2",
        "/products/1%2F2",
        "/products/limit=2",
        "/products/?limit=2",
        "/products/%3Flimit",
        "/products/%7Blimit%7D",
        "/products/1?limit=2",
        "/products/1?limit",
        "/products/1?=limit",
        "/products/1?limit==2",
        "/products/1?limit=2:x=1",
        "/products/1?limit=2&x=1",
        "/products/1?limit=2&x",
        "/products/1?limit=2%26x=1",
        "/products/1?limit%3D2",
        "/products/1:limit=2",
        "/products/1",
        "/products/01",
        "/products?limit=2",
        "/products?limit=2&x",
        "/products?limit=2&:x=",
        "/products?limit=02",
        "/products",
    ];
    let mut first = Vec::new();
    for path in paths {
        let answer = shop.get(path).await;
        if answer.status == StatusCode::NOT_FOUND {
            // There may be no such route: the router decides.
            continue;
        }
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert_eq!(answer.cache(), "MISS", "{answer:?}");
        first.push((path, answer));
    }
    assert!(first.len() >= 20, "only {} of them have a route", first.len());
    for (path, miss) in &first {
        assert_eq!(shop.get(path).await.expect_hit().body, miss.body);
    }
    // Two spellings of one URI (RFC 3986 §3.3 and §6.2.2) share an entry, and so do two spellings of one form.
    for (spelling, path) in [
        ("/products/1%3A2", "/products/1:2"),
        ("/products/1%3a2", "/products/1:2"),
        ("/products/%31", "/products/1"),
        ("/products/limit%3D2", "/products/limit=2"),
        ("/products/1?", "/products/1"),
        ("/products/1?limit=", "/products/1?limit"),
        ("/products/1?limit=2&x=", "/products/1?limit=2&x"),
        ("/products?", "/products"),
        ("/products?limit=2&x=", "/products?limit=2&x"),
    ] {
        let (_, stored) = first.iter().find(|(known, _)| *known == path).unwrap();
        assert_eq!(shop.get(spelling).await.expect_hit().body, stored.body, "{spelling}");
    }
    let known = |path: &str| first.iter().find(|(known, _)| *known == path).unwrap().1.json();
    assert_eq!(known("/products/1:2")["known"], false);
    assert_eq!(known("/products/1:2")["id"], "1:2");
    assert_eq!(known("/products/limit=2")["id"], "limit=2");
    assert_eq!(known("/products?limit=2").as_array().map(Vec::len), Some(2));
    let runs = shop.runs("get_product").await + shop.runs("list_products").await;
    assert_eq!(runs, first.len() as u64);
}

/// Links that differ only in tracking parameters lead to one entry.
pub async fn tracking_parameters_are_ignored(shop: &Shop) {
    shop.get("/tracked/7?utm_source=mail").await.expect_miss();
    for query in ["", "?utm_source=feed&utm_medium=x", "?fbclid=a&gclid=b", "?%75tm_source=mail"] {
        let answer = shop.get(&format!("/tracked/7{query}")).await.expect_hit();
        assert_eq!(answer.json(), json!({ "id": 7, "run": 1 }), "{query}");
    }
    shop.get("/tracked/7?utm=1").await.expect_miss();
    shop.get("/tracked/7?page=2&utm_source=mail").await.expect_miss();
    shop.get("/tracked/7?page=2").await.expect_hit();
    assert_eq!(shop.runs("tracked:7").await, 3);
}
