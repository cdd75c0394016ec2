//! Requests that need only a part of a large value, over connections that are slow: what they read from Redis, and what that
//! does to others.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use larder_core::store::{Breaker, Health};
use larder_core::{CacheKey, CacheStore, KeySpace, RedisOptions, RedisStore};
use larder_tests::proxy::{Proxy, Weather};
use larder_tests::redis_server::RedisServer;
use tokio::time::Instant;

/// The length of a large value.
const LARGE: usize = 900_000;

const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

/// 20 Mbit/s, in bytes per second.
const SLOWEST: u64 = 2_500_000;

/// A Redis behind a line that counts and throttles.
struct Far {
    proxy: Proxy,
    _redis: RedisServer,
}

impl Far {
    async fn start() -> Self {
        let redis = RedisServer::start();
        Self { proxy: Proxy::to(redis.port()).await, _redis: redis }
    }

    fn options(&self) -> RedisOptions {
        RedisOptions::from_url(&self.proxy.url()).unwrap()
    }

    fn store(&self) -> RedisStore {
        RedisStore::new(self.options())
    }
}

fn key(group: Option<&str>, suffix: &str) -> CacheKey {
    KeySpace::new("p", group).unwrap().key(suffix)
}

/// A body whose every eight bytes say where they are.
fn body() -> Bytes {
    (0..LARGE / 8).flat_map(|at| format!("{at:08}").into_bytes()).collect()
}

fn breaker(health: &Health) -> Breaker {
    health.servers[0].breaker
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values_on_a_slow_line_leave_the_breaker_closed() {
    let far = Far::start().await;
    let store = far.store();
    let (large, small) = (key(Some("g"), "large"), key(None, "small"));
    store.set(&large, body(), MINUTE).await.unwrap();
    store.set(&small, "small".into(), MINUTE).await.unwrap();
    far.proxy.turn(Weather::Throttled(SLOWEST));
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        let large = join_all((0..4).map(|_| store.get(&large)));
        let small = join_all((0..4).map(|_| store.get(&small)));
        tokio::join!(large, small);
        assert_eq!(breaker(&store.health()), Breaker::Closed, "after {:?}", start.elapsed());
    }
    far.proxy.turn(Weather::BlackHole);
    let start = Instant::now();
    while breaker(&store.health()) != Breaker::Open {
        assert!(start.elapsed() < Duration::from_secs(2), "a line that delivers nothing is given up");
        let _ = store.get(&small).await;
    }
}
