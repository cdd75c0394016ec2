//! The Redis store on pools of the application.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use deadpool_redis::{PoolConfig, Runtime, Timeouts};
use larder_core::store::suite::{self, Subject};
use larder_core::{CacheKey, CacheStore, KeySpace, RedisOptions, RedisStore, StoreError};
use larder_tests::proxy::{Proxy, ProxyMode};
use larder_tests::redis_cluster::{MASTERS, RedisCluster};
use larder_tests::redis_server::{self, RedisServer};
use tokio::time::{Instant, sleep};

const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

/// Extra time for a call's deadline on a busy machine.
const SLACK: Duration = Duration::from_millis(150);

fn pool(url: &str, connections: usize) -> deadpool_redis::Pool {
    let mut config = deadpool_redis::Config::from_url(url);
    config.pool =
        Some(PoolConfig { max_size: connections, timeouts: Timeouts::default(), ..PoolConfig::default() });
    config.create_pool(Some(Runtime::Tokio1)).unwrap()
}

fn cluster_pool(cluster: &RedisCluster) -> deadpool_redis::cluster::Pool {
    let nodes: Vec<_> = (0..MASTERS).map(|node| cluster.node(node).url()).collect();
    let mut config = deadpool_redis::cluster::Config::from_urls(nodes);
    config.pool = Some(PoolConfig::new(4));
    config.create_pool(Some(Runtime::Tokio1)).unwrap()
}

fn patient(options: RedisOptions) -> RedisStore {
    RedisStore::new(redis_server::patient(options))
}

fn key(group: Option<&str>, suffix: &str) -> CacheKey {
    KeySpace::new("p", group).unwrap().key(suffix)
}

async fn eventually<F: Future<Output = bool>>(mut holds: impl FnMut() -> F) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < Duration::from_secs(10), "never");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_passes_the_suite() {
    let server = RedisServer::start();
    let subject = Subject::new(patient(RedisOptions::from_pool(pool(&server.url(), 4))));
    suite::run(&subject).await;
    suite::run_leases(&subject).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_passes_the_suite_in_a_cluster() {
    let cluster = tokio::task::spawn_blocking(RedisCluster::start).await.unwrap();
    let subject = Subject::new(patient(RedisOptions::from_cluster_pool(cluster_pool(&cluster))));
    suite::run(&subject).await;
    suite::run_leases(&subject).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wipe_reaches_every_master_and_no_other_prefix() {
    let cluster = tokio::task::spawn_blocking(RedisCluster::start).await.unwrap();
    let store = patient(RedisOptions::from_cluster_pool(cluster_pool(&cluster)));
    let keys: Vec<CacheKey> =
        (0..60).map(|n| key((n % 2 == 0).then(|| format!("g{n}")).as_deref(), &format!("k{n}"))).collect();
    let other = KeySpace::new("q", None).unwrap().key("k");
    for key in keys.iter().chain([&other]) {
        store.set(key, "1".into(), MINUTE).await.unwrap();
    }
    let homes: std::collections::BTreeSet<_> =
        keys.iter().map(|key| RedisCluster::home(cluster.slot(key.name()))).collect();
    assert_eq!(homes.len(), MASTERS);
    assert_eq!(store.delete_group(&KeySpace::new("p", None).unwrap()).await.unwrap(), 60);
    for key in &keys {
        assert!(!store.has(key).await.unwrap());
    }
    assert!(store.has(&other).await.unwrap());
}

/// Returns the stored value, or `None` if the store fails.
async fn held(store: &RedisStore, key: &CacheKey) -> Option<Bytes> {
    store.get(key).await.ok().flatten()
}

#[tokio::test]
async fn server_that_is_down_costs_no_time_and_is_used_again() {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.port()).await;
    let store = RedisStore::new(RedisOptions::from_pool(pool(&proxy.url(), 4)));
    let (kept, doomed) = (key(None, "kept"), key(Some("g"), "doomed"));
    for bad in [ProxyMode::BlackHole, ProxyMode::Garbage] {
        eventually(|| async { store.set(&kept, "1".into(), MINUTE).await.is_ok() }).await;
        eventually(|| async {
            store.set(&doomed, "1".into(), MINUTE).await.is_ok() && held(&store, &doomed).await.is_some()
        })
        .await;

        proxy.set_mode(bad);
        let start = Instant::now();
        while !matches!(store.get(&kept).await, Err(StoreError::Unavailable(_))) {
            assert!(start.elapsed() < Duration::from_millis(4 * 50) + SLACK, "{:?}", start.elapsed());
        }
        let start = Instant::now();
        for _ in 0..1000 {
            store.get(&kept).await.unwrap_err();
        }
        assert!(start.elapsed() < SLACK, "a thousand misses took {:?}", start.elapsed());
        store.delete(&doomed).await.unwrap_err();

        proxy.set_mode(ProxyMode::Forward);
        eventually(|| async { held(&store, &kept).await.is_some() }).await;
        assert_eq!(held(&store, &doomed).await, None);
    }
}

#[tokio::test]
async fn exhausted_pool_fails_within_the_deadline() {
    let server = RedisServer::start();
    let pool = pool(&server.url(), 1);
    let store = RedisStore::new(RedisOptions::from_pool(pool.clone()));
    store.set(&key(None, "k"), "1".into(), MINUTE).await.unwrap();

    let borrowed = pool.get().await.unwrap();
    let start = Instant::now();
    store.get(&key(None, "k")).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_millis(50) + SLACK);
    drop(borrowed);
    eventually(|| async { held(&store, &key(None, "k")).await.is_some() }).await;
}
