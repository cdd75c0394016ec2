//! `Cache-Control` in requests (RFC 9111 §5.2.1), and requests that bypass the cache.

use http::Method;

use super::product;
use crate::shop::Shop;

/// With `no-store`, the cache is neither read nor written.
pub async fn no_store_request_bypasses_the_cache(shop: &Shop) {
    let no_store = [("cache-control", "no-store")];
    assert_eq!(shop.get_with("/products/7", &no_store).await.ok().expect_bypass().json(), product(7));
    shop.get("/products/7").await.expect_miss();
    assert_eq!(shop.runs("get_product").await, 2);
    for directives in ["no-store", "NO-STORE", "max-age=100, no-store", "no-cache,no-store"] {
        let answer = shop.get_with("/products/7", &[("cache-control", directives)]).await.ok();
        assert_eq!(answer.expect_bypass().json(), product(7));
    }
    assert_eq!(shop.runs("get_product").await, 6);
    shop.get("/products/7").await.expect_hit();
}

/// With `no-cache` or `max-age=0`, the handler runs and its response is stored.
pub async fn no_cache_request_refreshes_the_entry(shop: &Shop) {
    shop.get("/products/7").await.expect_miss();
    let mut runs = 1;
    for directives in [
        "no-cache",
        "No-Cache",
        "max-age=0",
        "MAX-AGE=0",
        "no-cache, max-age=100",
        "foo, no-cache",
        " no-cache ,",
    ] {
        let answer = shop.get_with("/products/7", &[("cache-control", directives)]).await.expect_miss();
        assert_eq!(answer.json(), product(7));
        runs += 1;
        assert_eq!(shop.runs("get_product").await, runs, "{directives}");
        shop.get("/products/7").await.expect_hit();
    }
    let lines = [("cache-control", "max-age=100"), ("cache-control", "no-cache")];
    shop.get_with("/products/7", &lines).await.expect_miss();
    // Also if nothing was stored: the response is stored.
    shop.get_with("/products/8", &[("cache-control", "no-cache")]).await.expect_miss();
    shop.get("/products/8").await.expect_hit();
}

/// Unknown directives are ignored. A `max-age` that is not a number may be read either way, but must not fail.
pub async fn unknown_directives_are_ignored(shop: &Shop) {
    shop.get("/products/7").await.expect_miss();
    for directives in [
        "",
        ",,,",
        "=",
        "foo",
        "foo=bar",
        "foo=\"no-cache, no-store\"",
        "no-cachex",
        "xno-store",
        "max-age=100",
        "max-age=99999999999999999999999999",
        "public, immutable, s-maxage=0",
    ] {
        let answer = shop.get_with("/products/7", &[("cache-control", directives)]).await;
        assert_eq!(answer.cache(), "HIT", "{directives:?}: {answer:?}");
    }
    assert_eq!(shop.runs("get_product").await, 1);
    for directives in ["max-age", "max-age=", "max-age=x", "max-age=-1", "max-age=1.5", "max-age=\"", "\""] {
        let answer = shop.get_with("/products/7", &[("cache-control", directives)]).await.ok();
        assert_eq!(answer.json(), product(7), "{directives:?}");
    }
    shop.get("/products/7").await.expect_hit();
}

/// A range is cut from the whole response, which is filled first if it isn't stored. A request with content bypasses the
/// cache.
pub async fn ranges_are_cut_from_the_entry_and_content_bypasses(shop: &Shop) {
    // Nothing is stored.
    let range = [("range", "bytes=0-3")];
    shop.request(Method::GET, "/products/7", &[], "content").await.ok().expect_bypass();
    let part = shop.get_with("/products/7", &range).await;
    assert_eq!((part.cache(), part.status.as_u16(), part.body.len()), ("MISS", 206, 4));
    assert_eq!(shop.runs("get_product").await, 2);
    // The response is stored, and a request with content still goes to the handler.
    let whole = shop.get("/products/7").await.expect_hit().body;
    let part = shop.get_with("/products/7", &range).await;
    assert_eq!((part.cache(), part.status.as_u16(), &part.body[..]), ("HIT", 206, &whole[..4]));
    assert_eq!(part.header("content-range"), format!("bytes 0-3/{}", whole.len()));
    shop.request(Method::GET, "/products/7", &[], "content").await.ok().expect_bypass();
    assert_eq!(shop.runs("get_product").await, 3);
    assert_eq!(shop.get("/products/7").await.expect_hit().json(), product(7));
}

/// A public route serves the same entry to all users.
pub async fn credentials_share_entries_of_a_public_route(shop: &Shop) {
    shop.get_with("/products/7", &[("authorization", "Bearer alice")]).await.expect_miss();
    shop.get("/products/7").await.expect_hit();
    shop.get_with("/products/7", &[("authorization", "Bearer bob")]).await.expect_hit();
    shop.get_with("/products/7", &[("cookie", "session=1")]).await.expect_hit();
    assert_eq!(shop.runs("get_product").await, 1);
}
