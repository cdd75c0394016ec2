//! The Redis store under load: more entries than fit into memory, and groups of 100,000 entries.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use larder_core::{CacheKey, CacheStore, KeySpace, RedisOptions, RedisStore};
use larder_tests::redis_server::{RedisServer, allow_debug};
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

fn patient(server: &RedisServer) -> RedisStore {
    let long = Duration::from_secs(10);
    let options = RedisOptions::from_url(&server.url()).unwrap();
    RedisStore::new(
        options.read_deadline(long).fill_deadline(long).evict_deadline(long).connect_deadline(long),
    )
}

async fn connect(server: &RedisServer) -> MultiplexedConnection {
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let client = redis::Client::open(server.url()).unwrap();
    client.get_multiplexed_async_connection_with_config(&config).await.unwrap()
}

async fn ask<T: redis::FromRedisValue>(conn: &MultiplexedConnection, command: &[&str]) -> T {
    redis::Cmd::new().arg(command).query_async(&mut conn.clone()).await.unwrap()
}

/// Returns a number from `INFO`.
async fn info(conn: &MultiplexedConnection, name: &str) -> u64 {
    let all: String = ask(conn, &["INFO"]).await;
    let value = all.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap().trim().parse().unwrap()
}

/// Writes and evicts at random while Redis evicts keys for lack of memory, including nonces and indexes. An evicted entry may be
/// missing or newer, but never the old one.
async fn under_pressure(policy: &str) {
    const GROUPS: usize = 40;
    const KEYS: usize = 60;

    let server = RedisServer::with_args(&["--maxmemory-policy", policy]);
    let (store, conn) = (patient(&server), connect(&server).await);
    let room = info(&conn, "used_memory").await + 1_500_000;
    let _: () = ask(&conn, &["CONFIG", "SET", "maxmemory", &room.to_string()]).await;
    let filler = "x".repeat(2000);
    // The lowest version that each key may have.
    let mut floors: HashMap<CacheKey, u64> = HashMap::new();
    let (mut hits, mut now) = (0, 0);
    while now < 20_000 {
        let group = KeySpace::new("p", Some(&*format!("g{}", fastrand::usize(..GROUPS)))).unwrap();
        let plain = KeySpace::new("p", None).unwrap();
        let space = if fastrand::u8(..4) == 0 { &plain } else { &group };
        let key = space.key(&format!("k{}", fastrand::usize(..KEYS)));
        now += 1;
        match fastrand::u8(..40) {
            0 => {
                store.delete_group(&group).await.unwrap();
                for number in 0..KEYS {
                    floors.insert(group.key(&format!("k{number}")), now);
                }
            }
            1 => {
                store.delete(&key).await.unwrap();
                floors.insert(key, now);
            }
            2..20 => store.set(&key, format!("{now} {filler}").into(), MINUTE).await.unwrap(),
            _ => {
                let Some(seen) = store.get(&key).await.unwrap() else { continue };
                let seen = std::str::from_utf8(&seen).unwrap();
                let written: u64 = seen.split(' ').next().unwrap().parse().unwrap();
                let floor = floors.get(&key).copied().unwrap_or_default();
                assert!(written > floor, "{key} of {written} after its eviction at {floor}");
                hits += 1;
            }
        }
    }
    let evicted = info(&conn, "evicted_keys").await;
    assert!(evicted > 500 && hits > 500, "no pressure: {evicted} evicted by Redis, {hits} hits");
}

#[tokio::test]
async fn entries_stay_correct_under_allkeys_lru() {
    under_pressure("allkeys-lru").await;
}

#[tokio::test]
async fn entries_stay_correct_under_volatile_lru() {
    under_pressure("volatile-lru").await;
}

#[tokio::test]
async fn entries_stay_correct_under_allkeys_random() {
    under_pressure("allkeys-random").await;
}

async fn fill(store: &RedisStore, group: &KeySpace, count: usize) {
    stream::iter(0..count)
        .for_each_concurrent(256, async |number| {
            store.set(&group.key(&number.to_string()), "value".into(), MINUTE).await.unwrap();
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "slow"]
async fn evicting_100_000_entries_blocks_redis_only_briefly() {
    let server = RedisServer::start();
    let (store, conn) = (patient(&server), connect(&server).await);
    let group = KeySpace::new("p", Some("g")).unwrap();
    fill(&store, &group, 100_000).await;
    let _: () = ask(&conn, &["CONFIG", "SET", "slowlog-log-slower-than", "1000"]).await;
    let _: () = ask(&conn, &["CONFIG", "SET", "slowlog-max-len", "10000"]).await;
    let _: () = ask(&conn, &["SLOWLOG", "RESET"]).await;
    let start = Instant::now();
    assert_eq!(store.delete_group(&group).await.unwrap(), 100_000);
    let took = start.elapsed();
    let slow: Vec<Vec<redis::Value>> = ask(&conn, &["SLOWLOG", "GET", "-1"]).await;
    let times = slow.iter().map(|entry| redis::from_redis_value::<u64>(entry[2].clone()).unwrap());
    let mut times: Vec<u64> = times.collect();
    times.sort_unstable();
    println!("{took:?} in all; {} commands over 1 ms, the longest {:?} µs", times.len(), times.last());
    // A busy machine suspends Redis from time to time, for some milliseconds.
    assert!(times.iter().filter(|micros| **micros > 5000).count() <= 2, "{times:?}");
    assert_eq!(ask::<u64>(&conn, &["DBSIZE"]).await, 0);
}

/// A script that scans the whole database for the keys of a group, in one call.
const SCAN_AND_UNLINK: &str = include_str!("../../benches/src/scan_and_unlink.lua");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "slow"]
async fn time_of_a_group_eviction_does_not_depend_on_other_keys() {
    const ENTRIES: usize = 100;
    const ROUNDS: usize = 20;

    let server = RedisServer::with_args(allow_debug());
    let (store, conn) = (patient(&server), connect(&server).await);
    let group = KeySpace::new("p", Some("g")).unwrap();
    let mut medians = Vec::new();
    for unrelated in [0, 1_000_000] {
        let _: () = ask(&conn, &["DEBUG", "POPULATE", &unrelated.to_string(), "unrelated", "8"]).await;
        let (mut ours, mut scans) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            fill(&store, &group, ENTRIES).await;
            let start = Instant::now();
            assert_eq!(store.delete_group(&group).await.unwrap(), ENTRIES as u64);
            ours.push(start.elapsed());
            for number in 0..ENTRIES {
                let _: () = ask(&conn, &["SET", &format!("guide:g:{number}"), "value"]).await;
            }
            let start = Instant::now();
            let removed: usize = ask(&conn, &["EVAL", SCAN_AND_UNLINK, "0", "guide:g:*"]).await;
            scans.push(start.elapsed());
            assert_eq!(removed, ENTRIES);
        }
        ours.sort_unstable();
        scans.sort_unstable();
        let (own, scan) = (ours[ROUNDS / 2], scans[ROUNDS / 2]);
        println!(
            "{unrelated} unrelated keys: {own:?}, and {scan:?} by scanning: {:.1} times",
            scan.as_secs_f64() / own.as_secs_f64()
        );
        medians.push((own, scan));
    }
    let [(alone, _), (crowded, scan)] = medians[..] else { panic!() };
    assert!(crowded < 5 * alone + Duration::from_millis(5), "{alone:?} became {crowded:?}");
    assert!(scan > 10 * crowded, "{crowded:?} against {scan:?}");
}
