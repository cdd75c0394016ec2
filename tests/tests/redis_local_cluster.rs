//! The local tier over a Redis Cluster: it receives messages from every master, and stores nothing while it can't.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use larder_core::store::redis::MAX_STALE;
use larder_core::store::suite::{self, Subject};
use larder_core::{CacheKey, CacheStore, RedisOptions, RedisStore, TieredStore};
use larder_tests::redis_cluster::{MASTERS, RedisCluster, everywhere, key};
use larder_tests::redis_server::{deny, patient};
use larder_tests::tier::{
    CAPACITY, MINUTE, SLACK, all_go, becomes, comes_here, fills_against_invalidations, is_here,
    waiters_are_woken,
};
use tokio::time::{Instant, sleep};

/// The time that a cluster may take to agree again.
const SETTLED: Duration = Duration::from_secs(60);

async fn start() -> Arc<RedisCluster> {
    Arc::new(tokio::task::spawn_blocking(RedisCluster::start).await.unwrap())
}

fn options(cluster: &RedisCluster) -> RedisOptions {
    patient(RedisOptions::from_url(&cluster.url()).unwrap()).connect_deadline(Duration::from_millis(500))
}

fn tiered(cluster: &RedisCluster) -> TieredStore {
    RedisStore::new(options(cluster)).with_local("p", CAPACITY)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tier_passes_the_store_suite() {
    let cluster = start().await;
    suite::run(&Subject::new(RedisStore::new(options(&cluster)).with_local("suite", CAPACITY))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_by_another_process_invalidate_the_tier() {
    let cluster = start().await;
    let (mine, other) = (tiered(&cluster), RedisStore::new(options(&cluster)));
    for key in everywhere(&cluster, 3).iter().flatten() {
        mine.set(key, "1".into(), MINUTE).await.unwrap();
        comes_here(&mine, key, SETTLED).await;
        other.set(key, "2".into(), MINUTE).await.unwrap();
        becomes(&mine, key, Some("2"), "another process wrote").await;
        comes_here(&mine, key, SETTLED).await;
        assert!(other.delete(key).await.unwrap());
        becomes(&mine, key, None, "another process evicted").await;
        mine.set(key, "3".into(), MINUTE).await.unwrap();
        comes_here(&mine, key, SETTLED).await;
        other.delete_group(&key.space()).await.unwrap();
        becomes(&mine, key, None, "another process evicted its group").await;
    }
}

#[tokio::test]
async fn waiters_are_woken_when_a_fill_ends() {
    let cluster = start().await;
    let (mine, other) = (tiered(&cluster), RedisStore::new(options(&cluster)));
    for key in everywhere(&cluster, 2).iter().flatten() {
        waiters_are_woken(&mine, &other, key).await;
    }
}

#[tokio::test]
async fn fills_do_not_keep_invalidated_values() {
    let cluster = start().await;
    let (mine, other) = (tiered(&cluster), tiered(&cluster));
    for key in everywhere(&cluster, 2).iter().flatten() {
        fills_against_invalidations(&mine, &other, key, 100).await;
    }
}

/// Another process increments a value while its slot moves from master to master. Reads here never return a value that was
/// replaced longer ago than the bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_stay_within_the_bound_while_slots_move() {
    let cluster = start().await;
    let (mine, other) = (tiered(&cluster), RedisStore::new(options(&cluster)));
    let key = key(Some("g"), "a");
    other.set(&key, "0".into(), MINUTE).await.unwrap();
    comes_here(&mine, &key, SETTLED).await;

    let (over, began) = (Arc::new(AtomicBool::new(false)), Instant::now());
    let confirmed: Arc<std::sync::Mutex<Vec<(u64, Duration)>>> = Arc::default();
    let writer = {
        let (key, over, confirmed) = (key.clone(), over.clone(), confirmed.clone());
        tokio::spawn(async move {
            for version in 1.. {
                if over.load(Ordering::SeqCst) {
                    return version - 1;
                }
                while other.set(&key, version.to_string().into(), MINUTE).await.is_err() {}
                confirmed.lock().unwrap().push((version, began.elapsed()));
                sleep(Duration::from_millis(20)).await;
            }
            0
        })
    };
    let kept = Arc::new(AtomicU64::new(0));
    let reader = {
        let (mine, key, over, kept) = (mine.clone(), key.clone(), over.clone(), kept.clone());
        tokio::spawn(async move {
            while !over.load(Ordering::SeqCst) {
                kept.fetch_add(is_here(&mine, &key).into(), Ordering::SeqCst);
                let asked = began.elapsed();
                if let Ok(Some(value)) = mine.get(&key).await {
                    let value: u64 = std::str::from_utf8(&value).unwrap().parse().unwrap();
                    let known = confirmed.lock().unwrap();
                    let replaced = known.iter().find(|(version, _)| *version > value).map(|(_, at)| *at);
                    let age = replaced.map_or(Duration::ZERO, |at| asked.saturating_sub(at));
                    assert!(age < MAX_STALE + SLACK, "{value} was replaced {age:?} before it was read");
                }
                sleep(Duration::from_millis(1)).await;
            }
        })
    };
    let moving = cluster.clone();
    let slot = cluster.slot(key.name());
    tokio::task::spawn_blocking(move || {
        let mut at = RedisCluster::home(slot);
        for _ in 0..5 {
            let next = (at + 1) % MASTERS;
            moving.reshard(slot, at, next, Duration::from_millis(20));
            at = next;
            // Leaves time to receive messages again, and a margin.
            std::thread::sleep(Duration::from_millis(1500));
        }
    })
    .await
    .unwrap();
    over.store(true, Ordering::SeqCst);
    reader.await.unwrap();
    let last = writer.await.unwrap();
    becomes(&mine, &key, Some(&last.to_string()), "the last that was written").await;
    comes_here(&mine, &key, SETTLED).await;
    assert!(kept.load(Ordering::SeqCst) > 20, "the tier stored nothing meanwhile");
}

/// While a slot moves, its keys are on two masters, and either may be the one that sends a message.
#[tokio::test]
async fn tier_stores_nothing_while_a_slot_moves() {
    let cluster = start().await;
    let store = tiered(&cluster);
    let keys: Vec<CacheKey> = everywhere(&cluster, 1).into_iter().flatten().collect();
    for key in &keys {
        store.set(key, "1".into(), MINUTE).await.unwrap();
        comes_here(&store, key, SETTLED).await;
    }
    let slot = cluster.slot(keys[0].name());
    let moving = cluster.clone();
    tokio::task::spawn_blocking(move || moving.begin_move(slot, 0, 1)).await.unwrap();
    sleep(MAX_STALE + SLACK).await;
    for _ in 0..100 {
        for key in &keys {
            assert!(!is_here(&store, key), "{key}");
            store.get(key).await.unwrap();
        }
        sleep(Duration::from_millis(5)).await;
    }
    let moving = cluster.clone();
    tokio::task::spawn_blocking(move || {
        moving.move_keys(slot, 0, 1, Duration::ZERO);
        moving.end_move(slot, 0, 1);
    })
    .await
    .unwrap();
    for key in &keys {
        comes_here(&store, key, SETTLED).await;
    }
}

/// A user without `CLUSTER NODES` can't find the masters that send messages.
#[tokio::test]
async fn without_cluster_nodes_all_reads_go_to_redis() {
    let cluster = start().await;
    let denied = deny("cluster", "nodes", &["slots", "info"]);
    for node in 0..2 * MASTERS {
        let user = ["acl", "setuser", "al", "on", ">pw", "~*", "&*", "+@all"];
        let rules: Vec<_> = user.into_iter().chain(denied.iter().map(String::as_str)).collect();
        assert_eq!(cluster.cli(node, &rules), "OK");
    }
    let store = RedisStore::new(options(&cluster).username("al").password("pw")).with_local("p", CAPACITY);
    for key in everywhere(&cluster, 1).iter().flatten() {
        store.set(key, "1".into(), MINUTE).await.unwrap();
        for _ in 0..50 {
            assert_eq!(store.get(key).await.unwrap().unwrap(), "1");
            assert!(!is_here(&store, key), "{key}");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A cluster with some keys, all of which the local tier holds, and a store of another process.
async fn filled() -> (RedisCluster, TieredStore, RedisStore, Vec<CacheKey>) {
    let cluster = tokio::task::spawn_blocking(RedisCluster::start).await.unwrap();
    let options = RedisOptions::from_url(&cluster.url()).unwrap();
    let store = RedisStore::new(options.clone()).with_local("p", CAPACITY);
    let other = RedisStore::new(patient(options));
    let keys: Vec<CacheKey> = everywhere(&cluster, 2).into_iter().flatten().collect();
    for key in &keys {
        other.set(key, "1".into(), MINUTE).await.unwrap();
        comes_here(&store, key, SETTLED).await;
    }
    (cluster, store, other, keys)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tier_drops_its_entries_while_a_master_hangs() {
    let (mut cluster, store, _, keys) = filled().await;
    cluster.node_mut(1).pause();
    all_go(&store, &keys).await;
    cluster.node_mut(1).resume();
    for key in &keys {
        comes_here(&store, key, SETTLED).await;
    }
}

/// Messages come from the replica that has taken over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tier_follows_the_replica_of_a_dead_master() {
    let (mut cluster, store, other, keys) = filled().await;
    cluster.node_mut(0).kill();
    all_go(&store, &keys).await;
    for key in &keys {
        let start = Instant::now();
        while other.set(key, "2".into(), MINUTE).await.is_err() {
            assert!(start.elapsed() < SETTLED, "no failover");
        }
        comes_here(&store, key, SETTLED).await;
        other.set(key, "3".into(), MINUTE).await.unwrap();
        becomes(&store, key, Some("3"), "written where the replica took over").await;
    }
}
