//! Response fields that the cache sets, and the comparison of validators (RFC 9110 §13.1.2).

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::json;
use tokio::time::sleep;

use super::product;
use crate::http::Answer;
use crate::shop::Shop;

/// The first response comes from the handler, the next from the cache. Only the cache's own fields differ.
pub async fn first_request_misses_and_the_next_hits(shop: &Shop) {
    let miss = shop.get("/products/7").await.expect_miss();
    assert_eq!(miss.json(), product(7));
    assert_eq!(miss.header("cache-control"), "public, max-age=300");
    assert_eq!(miss.header("content-type"), "application/json");
    assert_weak_etag(&miss);
    for _ in 0..3 {
        let hit = shop.get("/products/7").await.expect_hit();
        assert_same_representation(&hit, &miss);
        assert!(matches!(hit.max_age(), Some(297..=300)), "{hit:?}");
        assert_eq!(hit.header("cache-control"), format!("public, max-age={}", hit.max_age().unwrap()));
    }
    assert_eq!(shop.runs("get_product").await, 1);

    let list = shop.get("/products").await.expect_miss();
    assert_eq!(list.header("cache-control"), "public, max-age=60");
    assert_eq!(list.json(), (1..=10).map(product).collect::<serde_json::Value>());
    assert_same_representation(&shop.get("/products").await.expect_hit(), &list);
    assert_eq!(shop.get("/products?limit=2").await.expect_miss().json(), json!([product(1), product(2)]));
    assert_eq!(shop.runs("list_products").await, 2);

    let big = shop.get("/big").await.expect_miss();
    assert!((45_000..=55_000).contains(&big.body.len()), "{} bytes", big.body.len());
    assert_same_representation(&shop.get("/big").await.expect_hit(), &big);
    let uncached = shop.get("/big-uncached").await.ok();
    assert_eq!(uncached.body, big.body);
    assert_eq!((uncached.cache(), uncached.etag(), uncached.header("cache-control")), ("", "", ""));
}

/// Without a TTL a response is stored, but browsers must revalidate it each time.
pub async fn entry_without_ttl_is_sent_with_no_cache(shop: &Shop) {
    let miss = shop.get("/config").await.expect_miss();
    assert_eq!(miss.json(), json!({ "theme": "dark" }));
    let hit = shop.get("/config").await.expect_hit();
    let unchanged = shop.get_with("/config", &[("if-none-match", miss.etag())]).await;
    for answer in [&miss, &hit, &unchanged] {
        assert_eq!(answer.header("cache-control"), "no-cache", "{answer:?}");
        assert_eq!(answer.etag(), miss.etag());
    }
    assert_eq!(unchanged.status, StatusCode::NOT_MODIFIED);
    assert_eq!(shop.runs("config").await, 1);
}

/// `max-age` is the remaining lifetime. A request's `max-age=N` is compared with the age. A refresh resets both.
pub async fn max_age_counts_down(shop: &Shop) {
    for path in ["/products/1", "/products/2", "/products/3"] {
        assert_eq!(shop.get(path).await.expect_miss().max_age(), Some(300));
    }
    // The only scenario that waits. When 297 seconds are left, the age is at least two seconds, however both are rounded.
    let mut left = 300;
    while left > 297 {
        sleep(Duration::from_millis(100)).await;
        let now = shop.get("/products/1").await.expect_hit().max_age().unwrap();
        assert!(now <= left, "{now} seconds left after {left}");
        left = now;
    }
    assert!(left > 290);
    shop.get_with("/products/1", &[("cache-control", "max-age=100")]).await.expect_hit();
    let refreshed = shop.get_with("/products/1", &[("cache-control", "max-age=1")]).await.expect_miss();
    assert_eq!(refreshed.max_age(), Some(300));
    let refreshed = shop.get_with("/products/2", &[("cache-control", "no-cache")]).await.expect_miss();
    assert_eq!(refreshed.max_age(), Some(300));
    for path in ["/products/1", "/products/2"] {
        assert!(shop.get(path).await.expect_hit().max_age() >= Some(299));
    }
    let unchanged = shop.get_with("/products/3", &[("if-none-match", "*")]).await;
    assert!(unchanged.max_age() <= Some(297), "{unchanged:?}");
}

/// `If-None-Match` compares weakly, with every tag of the list. `*` matches any response.
pub async fn matching_etags_answer_304(shop: &Shop) {
    let miss = shop.get("/products/7").await.expect_miss();
    let weak = miss.etag();
    let strong = weak.strip_prefix("W/").unwrap();
    for condition in [
        weak.to_owned(),
        strong.to_owned(),
        format!("\"a\", W/\"b\", {weak}"),
        format!("\"a\",{strong},\"c\""),
        format!("  {weak}  , "),
        format!("\"with, a comma\", {weak}"),
        "*".to_owned(),
    ] {
        let answer = shop.get_with("/products/7", &[("if-none-match", &condition)]).await;
        assert_not_modified(&answer, &miss);
        assert_eq!(answer.cache(), "HIT", "{condition}: {answer:?}");
    }
    let lines = [("if-none-match", "\"a\""), ("if-none-match", weak)];
    assert_not_modified(&shop.get_with("/products/7", &lines).await, &miss);
    let unquoted = strong.trim_matches('"');
    let longer = format!("W/\"{unquoted}x\"");
    for condition in ["\"a\"", "W/\"a\"", "\"a\", \"b\"", "", unquoted, &longer, "\"*\""] {
        let hit = shop.get_with("/products/7", &[("if-none-match", condition)]).await.expect_hit();
        assert_same_representation(&hit, &miss);
    }
    assert_eq!(shop.runs("get_product").await, 1);
}

/// A client that has the current response gets a 304 even if the handler ran. The whole response is stored.
pub async fn matching_etag_gets_304_after_a_miss(shop: &Shop) {
    let miss = shop.get("/products/7").await.expect_miss();
    shop.request(Method::POST, "/admin/clear-products", &[], "").await.ok();
    let answer = shop.get_with("/products/7", &[("if-none-match", miss.etag())]).await;
    assert_not_modified(&answer, &miss);
    assert_eq!(answer.cache(), "MISS", "{answer:?}");
    assert_eq!(shop.runs("get_product").await, 2);
    assert_same_representation(&shop.get("/products/7").await.expect_hit(), &miss);

    let refresh = [("if-none-match", miss.etag()), ("cache-control", "no-cache")];
    assert_not_modified(&shop.get_with("/products/7", &refresh).await, &miss);
    assert_eq!(shop.runs("get_product").await, 3);
    assert_same_representation(&shop.get("/products/7").await.expect_hit(), &miss);
}

/// Another body has another tag. The same body has the same tag.
pub async fn etags_follow_the_body(shop: &Shop) {
    let first = shop.get("/products/7").await.expect_miss();
    let written = shop.put("/products/7", &json!({ "name": "new", "price": 1 })).await.ok();
    assert_weak_etag(&written);
    assert_ne!(written.etag(), first.etag());
    let hit = shop.get_with("/products/7", &[("if-none-match", first.etag())]).await.expect_hit();
    assert_eq!(hit.etag(), written.etag());
    let answer = shop.get_with("/products/7", &[("if-none-match", written.etag())]).await;
    assert_not_modified(&answer, &written);
    let back = shop.put("/products/7", &product(7)).await.ok();
    assert_eq!(back.etag(), first.etag());
    assert_ne!(shop.get("/products/8").await.expect_miss().etag(), first.etag());
}

/// `HEAD` is answered from the entry of `GET`, without the body.
pub async fn head_uses_the_entry_of_get(shop: &Shop) {
    let miss = shop.get("/products/7").await.expect_miss();
    let head = shop.head("/products/7").await.expect_hit();
    assert!(head.body.is_empty(), "{head:?}");
    assert_eq!(head.etag(), miss.etag());
    assert_eq!(head.header("content-type"), miss.header("content-type"));
    assert!(matches!(head.max_age(), Some(297..=300)), "{head:?}");
    if !head.header("content-length").is_empty() {
        assert_eq!(head.header("content-length"), miss.body.len().to_string(), "{head:?}");
    }
    let condition = [("if-none-match", miss.etag())];
    assert_not_modified(&shop.request(Method::HEAD, "/products/7", &condition, "").await, &miss);
    assert_eq!(shop.runs("get_product").await, 1);
    assert_same_representation(&shop.get("/products/7").await.expect_hit(), &miss);
}

/// The response to a `HEAD` is never served to a `GET`.
pub async fn head_response_is_never_served_to_get(shop: &Shop) {
    for _ in 0..2 {
        let head = shop.head("/products/9").await.ok();
        assert!(head.body.is_empty(), "{head:?}");
    }
    for _ in 0..2 {
        assert_eq!(shop.get("/products/9").await.ok().json(), product(9));
    }
    let refresh = [("cache-control", "no-cache")];
    assert!(shop.request(Method::HEAD, "/products/9", &refresh, "").await.ok().body.is_empty());
    assert_eq!(shop.get("/products/9").await.ok().json(), product(9));
}

/// Each language has an entry of its own.
pub async fn each_vary_variant_has_its_own_entry(shop: &Shop) {
    let in_language = async |language| shop.get_with("/greeting", &[("accept-language", language)]).await;
    let english = in_language("en").await.expect_miss();
    let french = in_language("fr").await.expect_miss();
    assert_eq!((&english.body[..], &french.body[..]), (&b"Hello"[..], &b"Bonjour"[..]));
    for (language, stored) in [("en", &english), ("fr", &french), ("fr", &french), ("en", &english)] {
        assert!(stored.header("content-type").starts_with("text/plain"), "{stored:?}");
        assert!(stored.header("vary").to_lowercase().contains("accept-language"), "{stored:?}");
        let hit = in_language(language).await.expect_hit();
        assert_same_representation(&hit, stored);
        assert_eq!(hit.header("vary"), stored.header("vary"));
    }
    assert_eq!(shop.runs("greeting").await, 2);

    // The tag of one variant doesn't match another variant.
    let headers = [("accept-language", "fr"), ("if-none-match", english.etag())];
    assert_eq!(&shop.get_with("/greeting", &headers).await.expect_hit().body[..], b"Bonjour");
    let headers = [("accept-language", "fr"), ("if-none-match", french.etag())];
    let unchanged = shop.get_with("/greeting", &headers).await;
    assert_not_modified(&unchanged, &french);
    assert!(unchanged.header("vary").to_lowercase().contains("accept-language"), "{unchanged:?}");

    // Without the field, and for a language that the shop doesn't speak, the response is in English.
    assert_eq!(&shop.get("/greeting").await.ok().body[..], b"Hello");
    assert_eq!(&in_language("de").await.ok().body[..], b"Hello");
    assert_eq!(&in_language("fr").await.expect_hit().body[..], b"Bonjour");
}

#[track_caller]
fn assert_weak_etag(answer: &Answer) {
    let etag = answer.etag();
    assert!(etag.starts_with("W/\"") && etag.ends_with('"') && etag.len() > 8, "{answer:?}");
}

#[track_caller]
fn assert_same_representation(a: &Answer, b: &Answer) {
    assert_eq!(a.body, b.body, "{a:?}\n{b:?}");
    assert_eq!(a.etag(), b.etag(), "{a:?}\n{b:?}");
    assert_eq!(a.header("content-type"), b.header("content-type"), "{a:?}\n{b:?}");
}

/// A 304 carries the fields that a 200 would have carried for a cache, and no body (RFC 9110 §15.4.5).
#[track_caller]
fn assert_not_modified(answer: &Answer, of: &Answer) {
    assert_eq!(answer.status, StatusCode::NOT_MODIFIED, "{answer:?}");
    assert!(answer.body.is_empty(), "{answer:?}");
    assert_eq!(answer.etag(), of.etag(), "{answer:?}");
    assert!(matches!(answer.max_age(), Some(297..=300)), "{answer:?}");
}
