//! A Redis that is down or hangs: every request is answered within a second, and never with an old response.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::races::{agree, until_hit};
use super::{concurrently, product};
use crate::http::{Answer, JSON};
use crate::redis_server::RedisServer;
use crate::shop::Shop;

/// The longest time that a response may take, whatever the store does.
const SOON: Duration = Duration::from_secs(1);

/// The time in which the shop must cache again once Redis is back.
const RECOVERY: Duration = Duration::from_secs(5);

/// Redis refuses connections.
pub async fn requests_are_answered_while_redis_is_down(shop: &Shop, redis: &mut RedisServer) {
    warm(shop).await;
    redis.kill();
    everything_still_answers(shop).await;
    redis.restart();
    // Redis lost its entries. The shop lost nothing.
    until_hit(shop, "/products/3", RECOVERY, &product(3)).await;
    views_count_again(shop).await;
}

/// Connections stay open, but Redis sends no reply.
pub async fn requests_are_answered_while_redis_hangs(shop: &Shop, redis: &mut RedisServer) {
    warm(shop).await;
    redis.pause();
    everything_still_answers(shop).await;
    redis.resume();
    until_hit(shop, "/products/3", RECOVERY, &product(3)).await;
    views_count_again(shop).await;
}

/// Writes while Redis hangs are not undone by entries that Redis still holds.
pub async fn evictions_during_an_outage_hold_after_it(shop: &Shop, redis: &mut RedisServer) {
    // Enough writes for the circuit breaker to open: the later ones are not even sent.
    let (deleted, replaced, evicted) = (1..=8, 11..=18, 21..=28);
    let (tagged, pages) = (31..=38, ["/catalog?page=4", "/catalog?page=5"]);
    let price = json!({ "price": 1 });
    let value = json!({ "value": "new" });
    for id in deleted.clone().chain(replaced.clone()) {
        shop.get(&format!("/products/{id}")).await.expect_miss();
    }
    concurrently(8, async |n| shop.get(&format!("/slow/{}", 21 + n)).await.expect_miss()).await;
    for path in tagged.clone().map(|id| format!("/catalog/{id}")).chain(pages.map(str::to_owned)) {
        shop.get(&path).await.expect_miss();
    }
    redis.pause();
    for (((deleted, replaced), evicted), tagged) in
        deleted.clone().zip(replaced.clone()).zip(evicted.clone()).zip(tagged.clone())
    {
        let product = json!({ "name": "new", "price": 1 });
        within_a_second(shop.put(&format!("/catalog/{tagged}"), &product).await).ok();
        within_a_second(shop.delete(&format!("/products/{deleted}")).await).ok();
        within_a_second(shop.put(&format!("/products/{replaced}"), &price).await).ok();
        within_a_second(shop.put(&format!("/slow/{evicted}"), &value).await).ok();
    }
    let still_right = async || {
        for id in deleted.clone() {
            shop.get(&format!("/products/{id}")).await.expect_status(StatusCode::NOT_FOUND);
        }
        for id in replaced.clone() {
            let answer = shop.get(&format!("/products/{id}")).await.ok();
            assert_eq!(answer.json(), json!({ "id": id, "price": 1 }), "{answer:?}");
        }
        concurrently(8, async |n| {
            let answer = shop.get(&format!("/slow/{}", 21 + n)).await.ok();
            assert_eq!(answer.json()["value"], "new", "{answer:?}");
        })
        .await;
        for id in tagged.clone() {
            let answer = shop.get(&format!("/catalog/{id}")).await.ok();
            assert_eq!(answer.json()["price"], 1, "{answer:?}");
        }
        let answer = shop.get(pages[0]).await.ok();
        assert_eq!(answer.json()[0]["price"], 1, "{answer:?}");
        assert_eq!(shop.get(pages[1]).await.ok().json()[0], product(41));
    };
    still_right().await;
    redis.resume();
    let resumed = Instant::now();
    while resumed.elapsed() < Duration::from_secs(3) {
        still_right().await;
    }
    for id in replaced {
        until_hit(shop, &format!("/products/{id}"), RECOVERY, &json!({ "id": id, "price": 1 })).await;
    }
    for id in tagged {
        let product = json!({ "id": id, "name": "new", "price": 1 });
        until_hit(shop, &format!("/catalog/{id}"), RECOVERY, &product).await;
    }
}

/// The same, when the client disconnects before its write is answered.
pub async fn writer_disconnect_during_an_outage_leaves_no_old_entry(shop: &Shop, redis: &mut RedisServer) {
    let ids = 1..=12;
    for id in ids.clone() {
        shop.get(&format!("/products/{id}")).await.expect_miss();
    }
    redis.pause();
    for id in ids.clone() {
        let (method, body) = if id % 2 == 0 { (Method::PUT, "{\"price\":1}") } else { (Method::DELETE, "") };
        let after = Duration::from_millis(id * 2);
        shop.hang_up(method, &format!("/products/{id}"), &[JSON], body, after).await;
    }
    // Leaves time for the handlers to run, and for every deadline on the way.
    sleep(Duration::from_millis(1500)).await;
    for id in ids.clone() {
        agree(shop, id).await;
    }
    redis.resume();
    let resumed = Instant::now();
    while resumed.elapsed() < Duration::from_secs(2) {
        for id in ids.clone() {
            agree(shop, id).await;
        }
    }
}

async fn warm(shop: &Shop) {
    for path in ["/products/1", "/products/2", "/products", "/config", "/greeting", "/big"] {
        shop.get(path).await.expect_miss();
        shop.get(path).await.expect_hit();
    }
    for path in ["/items/2", "/dashboard/5", "/content/2", "/warm-check/1"] {
        shop.get(path).await.ok();
    }
}

/// Requests everything the shop has, in sequence and concurrently.
async fn everything_still_answers(shop: &Shop) {
    for round in 0..3 {
        for (path, expected) in [
            ("/products/1", product(1)),
            ("/products/3", product(3)),
            ("/config", json!({ "theme": "dark" })),
        ] {
            let answer = within_a_second(shop.get(path).await).ok();
            assert_eq!(answer.json(), expected);
        }
        for path in [
            "/products?limit=3",
            "/greeting",
            "/big",
            "/items/2",
            "/items/1",
            "/dashboard/5",
            "/content/2",
            "/warm-check/1",
            "/settings/theme",
            "/slow/1",
            "/login",
        ] {
            within_a_second(shop.get(path).await).ok();
        }
        assert_eq!(shop.get("/settings/theme").await.json()["value"], "default-value");
        let alice = [("authorization", "Bearer alice")];
        let answer = within_a_second(shop.get_with("/me/profile", &alice).await).ok();
        assert_eq!(answer.json()["user"], "alice");

        // Writes succeed, and the next read sees them.
        let new = json!({ "id": 10, "round": round });
        assert_eq!(within_a_second(shop.put("/products/10", &new).await).ok().json(), new);
        assert_eq!(within_a_second(shop.get("/products/10").await).ok().json(), new);
        within_a_second(shop.delete("/products/11").await).ok();
        within_a_second(shop.get("/products/11").await).expect_status(StatusCode::NOT_FOUND);
        within_a_second(shop.request(Method::POST, "/admin/clear-products", &[], "").await).ok();
        within_a_second(shop.put("/profile/5", &json!({})).await).ok();
        within_a_second(shop.put("/sessions/abc", &json!({})).await).ok();
        within_a_second(shop.post("/checkout", &json!({ "user_id": 5 })).await).ok();

        // Only counting is refused: the count would be wrong.
        let view = within_a_second(shop.request(Method::POST, "/products/1/view", &[], "").await);
        assert_eq!(view.status, StatusCode::SERVICE_UNAVAILABLE, "{view:?}");
        assert!(!view.json()["error"].is_null(), "{view:?}");
    }
    let answers = concurrently(100, async |n| match n % 4 {
        0 => shop.get("/products/1").await,
        1 => shop.get(&format!("/products/{}", 100 + n)).await,
        2 => shop.get("/slow/2").await,
        _ => shop.get("/dashboard/6").await,
    });
    for answer in answers.await {
        within_a_second(answer).ok();
    }
}

async fn views_count_again(shop: &Shop) {
    let began = Instant::now();
    loop {
        let view = shop.request(Method::POST, "/products/1/view", &[], "").await;
        if view.status == StatusCode::OK {
            return;
        }
        assert!(began.elapsed() < RECOVERY, "{view:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[track_caller]
fn within_a_second(answer: Answer) -> Answer {
    assert!(answer.took < SOON, "{answer:?}");
    answer
}
