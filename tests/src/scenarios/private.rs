//! Private routes: one user's responses are never served to another.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::concurrently;
use crate::http::{Answer, JSON};
use crate::shop::Shop;

/// Each token has an entry of its own, for reads and for writes.
pub async fn each_token_has_its_own_entry(shop: &Shop) {
    for user in ["alice", "bob"] {
        let miss = profile(shop, user).await.expect_miss();
        assert_eq!(miss.json()["user"], user);
        assert_eq!(miss.header("cache-control"), "private, max-age=60");
        let hit = profile(shop, user).await.expect_hit();
        assert_eq!(hit.body, miss.body);
        assert!(hit.header("cache-control").starts_with("private, max-age="), "{hit:?}");
        assert!(matches!(hit.max_age(), Some(57..=60)), "{hit:?}");
    }
    assert_eq!(shop.runs("profile").await, 2);

    // The tag of one user's response doesn't match another's.
    let alice = profile(shop, "alice").await.expect_hit();
    let condition = [("authorization", "Bearer bob"), ("if-none-match", alice.etag())];
    assert_eq!(shop.get_with("/me/profile", &condition).await.expect_hit().json()["user"], "bob");
    let condition = [("authorization", "Bearer alice"), ("if-none-match", alice.etag())];
    let unchanged = shop.get_with("/me/profile", &condition).await.expect_status(StatusCode::NOT_MODIFIED);
    assert!(unchanged.header("cache-control").starts_with("private, max-age="), "{unchanged:?}");

    let headers = [JSON, ("authorization", "Bearer alice")];
    let body = json!({ "colour": "green" }).to_string();
    let written = shop.request(Method::PUT, "/me/profile", &headers, &body).await.expect_miss();
    assert_eq!(written.header("cache-control"), "private, max-age=60");
    assert_eq!(written.json(), json!({ "user": "alice", "colour": "green" }));
    assert_eq!(profile(shop, "alice").await.expect_hit().body, written.body);
    let bob = profile(shop, "bob").await.expect_hit().json();
    assert_eq!((&bob["user"], &bob["colour"]), (&json!("bob"), &Value::Null));
    profile(shop, "carol").await.expect_miss();
    assert_eq!(shop.runs("profile").await, 3);
}

/// The same for concurrent requests with a cold cache.
pub async fn concurrent_users_get_their_own_responses(shop: &Shop) {
    let users = ["alice", "bob", "carol", "dave"];
    for answer in concurrently(120, |n| async move {
        let user = users[n % users.len()];
        if n % 5 == 0 {
            (Value::Null, shop.get("/me/profile").await.ok())
        } else {
            (json!(user), profile(shop, user).await.ok())
        }
    })
    .await
    {
        let (user, answer) = answer;
        assert_eq!(answer.json()["user"], user, "{answer:?}");
    }
}

/// A request without a token has no entry, whatever other fields it has.
pub async fn requests_without_a_token_are_not_cached(shop: &Shop) {
    profile(shop, "alice").await.expect_miss();
    for (field, value) in [
        ("x-nothing", "1"),
        ("cookie", "session=alice"),
        ("authorization", "Basic YWxpY2U6cGFzc3dvcmQ="),
        ("authorization", "alice"),
        ("authorization", "Bearer"),
    ] {
        for _ in 0..2 {
            let answer = shop.get_with("/me/profile", &[(field, value)]).await.ok().expect_bypass();
            assert_eq!(answer.json(), json!({ "user": null }), "{field}: {value}");
        }
    }
    assert_eq!(shop.runs("profile").await, 11);
    let written = shop.put("/me/profile", &json!({ "colour": "red" })).await.ok().expect_bypass();
    assert_eq!(written.json(), json!({ "user": null }));
    assert_eq!(shop.get("/me/profile").await.ok().expect_bypass().json(), json!({ "user": null }));
    profile(shop, "alice").await.expect_hit();
}

async fn profile(shop: &Shop, user: &str) -> Answer {
    shop.get_with("/me/profile", &[("authorization", &format!("Bearer {user}"))]).await
}
