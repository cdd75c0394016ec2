//! Helpers and checks for tests of the local tier, over one server or a cluster.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use larder_core::store::redis::MAX_STALE;
use larder_core::{Acquired, CacheKey, CacheStore, Intent, LeaseStore, RedisStore, StoreError, TieredStore};
use tokio::time::{Instant, sleep, timeout};

use crate::redis_cluster::key;

/// The TTL of values that must not expire during a test.
pub const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

/// A capacity that no test exceeds.
pub const CAPACITY: u64 = 16 << 20;

/// Extra time for any bound on a busy machine.
pub const SLACK: Duration = Duration::from_millis(500);

/// Returns a key in a group, and one in none.
#[must_use]
pub fn keys() -> [CacheKey; 2] {
    [key(Some("g"), "a"), key(None, "a")]
}

/// Returns `true` if the local tier holds a valid value. Asks no connection.
pub fn is_here(store: &TieredStore, key: &CacheKey) -> bool {
    store.try_get(key).is_some()
}

/// Reads until the local tier holds the value.
pub async fn comes_here(store: &TieredStore, key: &CacheKey, limit: Duration) {
    let start = Instant::now();
    while !is_here(store, key) {
        assert!(start.elapsed() < limit, "{key} is never kept");
        let _ = store.get(key).await;
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the local tier holds none of these keys, because no invalidation messages arrive.
pub async fn all_go(store: &TieredStore, keys: &[CacheKey]) {
    let start = Instant::now();
    while keys.iter().any(|key| is_here(store, key)) {
        assert!(start.elapsed() < MAX_STALE + SLACK, "still kept after {:?}", start.elapsed());
        sleep(Duration::from_millis(5)).await;
    }
}

/// A process that waits for another's fill is told of its end, long before it would ask again.
///
/// # Panics
///
/// If it isn't told.
pub async fn waiters_are_woken(mine: &TieredStore, other: &RedisStore, key: &CacheKey) {
    other.set(key, "heard".into(), MINUTE).await.unwrap();
    comes_here(mine, key, Duration::from_secs(60)).await;
    other.delete(key).await.unwrap();
    becomes(mine, key, None, "another process evicted").await;
    let hold = Duration::from_secs(60);
    let Acquired::Lease(lease) = other.begin(key, Intent::Fill, hold).await.unwrap() else {
        panic!("no other process fills {key}")
    };
    assert!(matches!(mine.begin(key, Intent::Fill, hold).await.unwrap(), Acquired::Filling));
    let start = Instant::now();
    let waiting = timeout(hold, mine.changed(key));
    let filling = async {
        sleep(Duration::from_millis(20)).await;
        assert!(other.commit(key, &lease, "filled".into(), MINUTE).await.unwrap());
    };
    let (heard, ()) = tokio::join!(waiting, filling);
    heard.expect("no message arrived");
    assert!(start.elapsed() < MAX_STALE, "{:?}", start.elapsed());
    let begun = mine.begin(key, Intent::Fill, hold).await.unwrap();
    assert!(matches!(begun, Acquired::Found(value) if value == "filled"), "{key}");
}

/// Waits until a change by another process is visible, for as long as that may take.
pub async fn becomes(store: &TieredStore, key: &CacheKey, expected: Option<&str>, why: &str) {
    let start = Instant::now();
    let expected = expected.map(|value| Bytes::copy_from_slice(value.as_bytes()));
    while store.get(key).await.unwrap() != expected {
        assert!(start.elapsed() < MAX_STALE + SLACK, "{key}: {why}");
        sleep(Duration::from_millis(1)).await;
    }
}

/// A read whose reply has arrived, but that has not been polled since.
async fn half_read<'a>(
    store: &'a TieredStore,
    key: &'a CacheKey,
) -> impl Future<Output = Result<Option<Bytes>, StoreError>> + 'a {
    let mut get = Box::pin(store.get(key));
    assert!(futures_util::poll!(&mut get).is_pending(), "{key} was here already");
    sleep(Duration::from_millis(1)).await;
    get
}

/// Another process changes a value after it was read, and before the local tier stores it. The local tier must not keep the old
/// value.
pub async fn fills_against_invalidations(
    mine: &TieredStore,
    other: &impl CacheStore,
    key: &CacheKey,
    rounds: u64,
) {
    mine.set(key, "first".into(), MINUTE).await.unwrap();
    comes_here(mine, key, Duration::from_secs(10)).await;
    let mut stale = 0;
    for round in 0..rounds {
        mine.set(key, "old".into(), MINUTE).await.unwrap();
        let read = half_read(mine, key).await;
        match round % 3 {
            0 => other.set(key, "new".into(), MINUTE).await.unwrap(),
            1 => assert!(other.delete(key).await.unwrap()),
            _ => assert_eq!(other.delete_group(&key.space()).await.unwrap(), 1),
        }
        sleep(Duration::from_millis(1)).await;
        assert_eq!(read.await.unwrap().unwrap(), "old", "the read started before the change");
        let quiet = Instant::now();
        while mine.get(key).await.unwrap().is_some_and(|value| value == "old") {
            if quiet.elapsed() > Duration::from_millis(200) {
                stale += 1;
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(stale, 0, "{key}: stale in so many of {rounds} rounds");
    // A key space without a group stands for the whole prefix: evicting the next key's would also evict this one.
    other.delete(key).await.unwrap();
}
