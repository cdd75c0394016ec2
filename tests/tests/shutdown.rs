//! What `close` leaves behind, and what `Debug` gives away: nothing.

use std::time::Duration;

use larder_axum::{Larder, RedisOptions};
use larder_tests::redis_server::RedisServer;

/// How many connections the server has from caches.
async fn connections(redis: &RedisServer) -> usize {
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let list: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut connection).await.unwrap();
    list.lines().filter(|line| line.contains("lib-name=larder") || !line.contains("cmd=client")).count()
}

#[tokio::test]
async fn closing_lets_go_of_every_connection() {
    let redis = RedisServer::start();
    let larder = Larder::redis(&redis.url()).unwrap();
    assert_eq!(connections(&redis).await, 0, "none before it is used");
    assert!(larder.backend().set("k", &1, 60).await);
    assert_eq!(connections(&redis).await, 1);
    larder.close().await;
    // The server notices a little later.
    for _ in 0..100 {
        if connections(&redis).await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{} connections are left", connections(&redis).await);
}

#[tokio::test]
async fn after_closing_a_cache_misses_and_hurts_nobody() {
    let redis = RedisServer::start();
    let larder = Larder::redis(&redis.url()).unwrap();
    let backend = larder.backend();
    assert!(backend.set("k", &1, 60).await);
    larder.close().await;
    let read = tokio::time::timeout(Duration::from_secs(1), backend.get::<u64>("k")).await;
    assert!(read.is_ok(), "it answers, whatever it answers");
}

#[test]
fn no_secret_shows() {
    let url = "redis://alice:hunter2@localhost:7000/1";
    let options = RedisOptions::from_url(url).unwrap();
    let from_url =
        Larder::builder().principal_secret(b"hunter2").leased(larder_axum::RedisStore::new(options.clone()));
    let vars = |name: &str| match name {
        "REDIS_HOST" => Some("localhost".to_owned()),
        "REDIS_USERNAME" => Some("alice".to_owned()),
        "REDIS_PASSWORD" => Some("hunter2".to_owned()),
        _ => None,
    };
    let from_vars = Larder::from_vars(vars).unwrap();
    for shown in [
        format!("{options:?}"),
        format!("{from_url:?} {:?}", from_url.backend()),
        format!("{from_vars:?} {:?}", from_vars.backend().group("g")),
        format!("{:?}", Larder::redis("redis://alice:hunter2@").err()),
        format!(
            "{:?}",
            Larder::from_vars(|name| (name == "REDIS_URL").then(|| "rubbish:hunter2@".to_owned())).err()
        ),
    ] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
