//! Keys, TTLs and values in Redis itself.

use std::time::Duration;

use http::Method;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::product;
use crate::http::JSON;
use crate::redis_server::RedisServer;
use crate::shop::Shop;

const PREFIX: &str = "redis:larder:cache";

/// Every key in the guide's tables, with the TTL that the route sets.
pub async fn keys_and_ttls_match_the_documentation(shop: &Shop, redis: &mut RedisServer) {
    let mut connection = connect(redis).await;
    // The first of these writes evicts the lists.
    shop.put("/products/8", &json!({ "name": "new" })).await.ok();
    shop.request(Method::POST, "/products/1/view", &[], "").await.ok();
    shop.put("/sessions/abc", &json!({ "user": 5 })).await.ok();
    for path in [
        "/products/7",
        "/products?limit=2",
        "/products?z=1&limit=3&a=2",
        "/products",
        "/config",
        "/slow/1",
        "/greeting",
        "/big",
        "/items/2",
        "/items/1",
        "/dashboard/5",
        "/content/2",
        "/content/3",
        "/warm-check/4",
        "/settings/theme",
        "/login",
        "/products/5000",
    ] {
        shop.get(path).await;
    }

    for (key, seconds) in [
        ("{products}:products:7", 300),
        ("{products}:products:8", 300),
        ("{product-lists}:products:limit=2", 60),
        ("{product-lists}:products:a=2:limit=3:z=1", 60),
        ("{product-lists}:products", 60),
        ("{slow}:slow:1", 300),
        ("greeting", 300),
        ("big", 300),
        ("{items}:item:2", 300),
        ("{dashboard}:orders:5", 60),
        ("{dashboard}:reco:5", 120),
        ("{content}:content:2", 3600),
        ("{content}:content:3", 300),
        ("{products}:product:4", 300),
        ("{analytics}:views:1", 3600),
        ("{sessions}:session:abc", 1800),
    ] {
        let left: i64 = connection.pttl(format!("{PREFIX}:{key}")).await.unwrap();
        let most = seconds * 1000;
        assert!((most - 10_000..=most).contains(&left), "{key}: {left} ms of {most}");
    }
    let left: i64 = connection.pttl(format!("{PREFIX}:{{config}}:config")).await.unwrap();
    assert_eq!(left, -1, "no TTL means no expiry");

    let keys = all_keys(&mut connection).await;
    for absent in ["{items}:item:1", "{settings}:setting:theme", "login", "{products}:products:5000"] {
        assert!(!keys.contains(&format!("{PREFIX}:{absent}")), "{absent} is among {keys:#?}");
    }
    for key in keys {
        assert!(key.starts_with(PREFIX), "{key} is outside the prefix");
    }
}

/// The documented escapes keep similar paths apart.
pub async fn similar_paths_have_the_documented_keys(shop: &Shop, redis: &mut RedisServer) {
    let mut connection = connect(redis).await;
    for (path, key) in [
        ("/products/1:2", "products:1%3A2"),
        ("/products/1%253A2", "products:1%25253A2"),
        ("/products/%7Blimit%7D", "products:%257Blimit%257D"),
        ("/products/limit=2", "products:limit%3D2"),
        ("/products?limit=2", "products:limit=2"),
        ("/products/9?x", "products:9:x="),
        ("/products/9?x:y=%26", "products:9:x%3Ay=%26"),
        ("/products/9?b=2&a=1", "products:9:a=1:b=2"),
    ] {
        let group = if path.starts_with("/products?") { "product-lists" } else { "products" };
        let key = format!("{PREFIX}:{{{group}}}:{key}");
        assert!(!connection.exists::<_, bool>(&key).await.unwrap(), "{key} is there before {path}");
        shop.get(path).await.expect_miss();
        assert!(connection.exists::<_, bool>(&key).await.unwrap(), "{path} did not make {key}");
    }
}

/// Evicted entries are deleted from Redis: by key at once, by group when the response is sent.
pub async fn evicted_entries_are_deleted_from_redis(shop: &Shop, redis: &mut RedisServer) {
    let mut connection = connect(redis).await;
    let key = |suffix: &str| format!("{PREFIX}:{{products}}:{suffix}");
    let mut exists = async |suffix: &str| connection.exists::<_, bool>(key(suffix)).await.unwrap();

    for id in 1..=300 {
        shop.get(&format!("/products/{id}")).await.expect_miss();
    }
    shop.get("/config").await.expect_miss();
    assert!(exists("products:7").await);
    shop.delete("/products/7").await.ok();
    assert!(!exists("products:7").await);
    assert!(exists("products:8").await);

    shop.request(Method::POST, "/admin/clear-products", &[], "").await.ok();
    let began = Instant::now();
    for id in 1..=300 {
        while exists(&format!("products:{id}")).await {
            assert!(began.elapsed() < Duration::from_secs(2), "product {id} is still in Redis");
            sleep(Duration::from_millis(10)).await;
        }
    }
    shop.get("/config").await.expect_hit();
}

/// No key contains a token, or anything from which a token could be guessed.
pub async fn keys_contain_no_token(shop: &Shop, redis: &mut RedisServer) {
    let token = "tok-0123456789";
    let authorization = format!("Bearer {token}");
    let headers = [JSON, ("authorization", authorization.as_str())];
    shop.get_with("/me/profile", &headers).await.expect_miss();
    shop.request(Method::PUT, "/me/profile", &headers, "{}").await.ok();
    let mut connection = connect(redis).await;
    let keys = all_keys(&mut connection).await;
    let profiles = keys.iter().filter(|key| key.starts_with(&format!("{PREFIX}:me:profile"))).count();
    assert_eq!(profiles, 1, "{keys:#?}");
    for key in &keys {
        assert!(!key.contains(token), "{key}");
    }
    assert!(!shop.stderr().contains(token), "{}", shop.stderr());
}

/// Records of another program or version are misses, and are replaced.
pub async fn unreadable_records_are_misses(shop: &Shop, redis: &mut RedisServer) {
    let mut connection = connect(redis).await;
    for (id, fresh) in [(1, true), (2, false)] {
        let path = format!("/products/{id}");
        let key = format!("{PREFIX}:{{products}}:products:{id}");
        if !fresh {
            shop.get(&path).await.expect_miss();
        }
        let () = connection.set(&key, "what is this?").await.unwrap();
        assert_eq!(shop.get(&path).await.ok().json(), product(id));
        assert_eq!(shop.get(&path).await.expect_hit().json(), product(id));
    }
    // Flips each byte of a real entry. Bytes that can still be read never give another response.
    shop.get("/config").await.expect_miss();
    let key = format!("{PREFIX}:{{config}}:config");
    let entry: Vec<u8> = connection.get(&key).await.unwrap();
    for length in (0..entry.len()).step_by(7) {
        let () = connection.set(&key, &entry[..length]).await.unwrap();
        assert_eq!(shop.get("/config").await.ok().json(), json!({ "theme": "dark" }), "cut to {length}");
    }
    // A value that is not even a string.
    let key = format!("{PREFIX}:{{products}}:products:3");
    let () = connection.rpush(&key, "a list").await.unwrap();
    assert_eq!(shop.get("/products/3").await.ok().json(), product(3));
    let key = format!("{PREFIX}:{{items}}:item:2");
    let () = connection.set(&key, "what is this?").await.unwrap();
    assert_eq!(shop.get("/items/2").await.ok().json()["id"], 2);
}

pub(super) async fn connect(redis: &RedisServer) -> MultiplexedConnection {
    redis::Client::open(redis.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

async fn all_keys(connection: &mut MultiplexedConnection) -> Vec<String> {
    connection.keys("*").await.unwrap()
}
