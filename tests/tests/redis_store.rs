//! The Redis store against a real server: its keys and values, its guarantees, and the values that it refuses.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use larder_core::{
    Abandon, Acquired, CacheKey, CacheStore, Intent, KeySpace, Larder, Lease, LeaseStore, RedisOptions,
    RedisStore, StoreError,
};
use larder_tests::redis_server::{self, RedisServer};
use redis::aio::MultiplexedConnection;

const HOLD: Duration = Duration::from_secs(10);
const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

/// A server, a store on it, and a raw connection to inspect it.
struct Bench {
    server: RedisServer,
    store: RedisStore,
    raw: MultiplexedConnection,
}

impl Bench {
    async fn new() -> Self {
        Self::with_args(&[]).await
    }

    async fn with_args(args: &[&str]) -> Self {
        let server = RedisServer::with_args(args);
        let raw =
            redis::Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
        let store = RedisStore::new(patient(&server));
        Self { server, store, raw }
    }

    async fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let mut cmd = redis::Cmd::new();
        cmd.arg(command);
        cmd.query_async(&mut self.raw.clone()).await.unwrap()
    }

    async fn names(&self) -> BTreeSet<String> {
        self.ask(&["KEYS", "*"]).await
    }

    async fn bytes(&self, name: &str) -> Vec<u8> {
        self.ask(&["GET", name]).await
    }

    async fn set(&self, key: &CacheKey, value: &'static str) {
        self.store.set(key, value.into(), MINUTE).await.unwrap();
    }

    async fn get(&self, key: &CacheKey) -> Option<Bytes> {
        let got = self.store.get(key).await.unwrap();
        assert_eq!(self.store.has(key).await.unwrap(), got.is_some());
        got
    }

    async fn lease(&self, key: &CacheKey, intent: Intent) -> Lease {
        match self.store.begin(key, intent, HOLD).await.unwrap() {
            Acquired::Lease(lease) => lease,
            other => panic!("no lease but {other:?}"),
        }
    }

    async fn commit(&self, key: &CacheKey, lease: &Lease, value: &'static str) -> bool {
        self.store.commit(key, lease, value.into(), MINUTE).await.unwrap()
    }
}

/// Options with long deadlines, for a busy machine.
fn patient(server: &RedisServer) -> RedisOptions {
    redis_server::patient(RedisOptions::from_url(&server.url()).unwrap())
}

fn space(prefix: &str, group: Option<&str>) -> KeySpace {
    KeySpace::new(prefix, group).unwrap()
}

fn both(suffix: &str) -> [CacheKey; 2] {
    [space("p", Some("g")).key(suffix), space("p", None).key(suffix)]
}

#[tokio::test]
async fn keys_and_values_have_the_documented_form() {
    let bench = Bench::new().await;
    let [grouped, plain] = both("a:b");

    let lease = bench.lease(&grouped, Intent::Fill).await;
    let nonce = bench.bytes("p:{g}").await;
    assert_eq!(nonce.len(), 8);
    assert_eq!(lease.fence()[..], nonce);
    let held = bench.bytes("p-lease:{g}:a:b").await;
    assert_eq!((&held[..8], held[8], &held[9..]), (&nonce[..], b'F', &lease.token()[..]));
    assert!(bench.commit(&grouped, &lease, "value").await);
    assert_eq!(bench.bytes("p:{g}:a:b").await, [&nonce[..], b"value"].concat());
    let index: Vec<(String, f64)> = bench.ask(&["ZRANGE", "p-idx:{g}", "0", "-1", "WITHSCORES"]).await;
    let (now, _): (f64, f64) = bench.ask(&["TIME"]).await;
    assert_eq!(index[0].0, "a:b");
    assert!((index[0].1 / 1000.0 - now - 60.0).abs() < 3.0, "{index:?}");

    let lease = bench.lease(&plain, Intent::Write).await;
    assert_eq!(bench.bytes("p-lease:{p:a:b}").await[8], b'W');
    assert!(bench.commit(&plain, &lease, "value").await);
    assert_eq!(bench.bytes("p:a:b").await, b"value");

    let expected = ["p:{g}", "p:{g}:a:b", "p-idx:{g}", "p:a:b"].map(str::to_owned);
    assert_eq!(bench.names().await, BTreeSet::from(expected.clone()));
    for key in both("a:b") {
        bench.set(&key, "other").await;
        assert_eq!(bench.get(&key).await.unwrap(), "other");
    }
    assert_eq!(bench.names().await, BTreeSet::from(expected));
    assert_eq!(bench.bytes("p:{g}").await, nonce, "a set keeps the nonce");
}

#[tokio::test]
async fn entry_is_valid_only_under_its_nonce() {
    let bench = Bench::new().await;
    let key = &both("a")[0];
    bench.set(key, "1").await;
    let _: () = bench.ask(&["SET", "p:{g}", "12345678"]).await;
    assert_eq!(bench.get(key).await, None);
    assert!(!bench.store.delete(key).await.unwrap());
    bench.set(key, "2").await;
    assert_eq!(bench.bytes("p:{g}:a").await, b"123456782");
    let _: () = bench.ask(&["DEL", "p:{g}"]).await;
    assert_eq!(bench.get(key).await, None);
    assert_eq!(bench.store.delete_group(&key.space()).await.unwrap(), 0);
    assert!(matches!(bench.store.begin(key, Intent::Fill, HOLD).await.unwrap(), Acquired::Lease(_)));
}

#[tokio::test]
async fn foreign_values_under_the_stores_names_are_invalid_and_deleted() {
    let bench = Bench::new().await;
    let group = space("p", Some("g"));
    for suffix in ["a", "b", "c", "d"] {
        bench.set(&group.key(suffix), "1").await;
        let _: () = bench.ask(&["DEL", group.key(suffix).name()]).await;
        let _: () = bench.ask(&["LPUSH", group.key(suffix).name(), "x"]).await;
    }
    assert_eq!(bench.store.get(&group.key("a")).await.unwrap(), None);
    let lease = bench.lease(&group.key("a"), Intent::Fill).await;
    assert!(bench.commit(&group.key("a"), &lease, "2").await);
    bench.set(&group.key("b"), "2").await;
    assert!(!bench.store.delete(&group.key("c")).await.unwrap());
    assert_eq!(bench.store.delete_group(&group).await.unwrap(), 2);
    assert!(bench.names().await.is_empty());
}

#[tokio::test]
async fn evict_foreign_deletes_foreign_values_of_a_group() {
    let bench = Bench::new().await;
    let store = RedisStore::new(patient(&bench.server).evict_foreign(true));
    let (group, star) = (space("p", Some("g")), space("p", Some("*")));
    for number in 0..600 {
        let _: () = bench.ask(&["SET", &format!("p:{{g}}:foreign:{number}"), "{\"id\":7}"]).await;
    }
    let _: () = bench.ask(&["LPUSH", "p:{g}:list", "x"]).await;
    for stays in ["p:{gg}:a", "p:{g}x", "p:x", "q:{g}:a", "p:{h}:a"] {
        let _: () = bench.ask(&["SET", stays, "foreign"]).await;
    }
    bench.set(&group.key("own"), "1").await;
    // Without the option they stay, and with it they are deleted and counted. A group's name is not a pattern.
    assert_eq!(bench.store.delete_group(&group).await.unwrap(), 1);
    assert_eq!(store.delete_group(&star).await.unwrap(), 0);
    bench.set(&group.key("own"), "1").await;
    assert_eq!(store.delete_group(&group).await.unwrap(), 602);
    let left = ["p:{gg}:a", "p:{g}x", "p:x", "q:{g}:a", "p:{h}:a"].map(str::to_owned);
    assert_eq!(bench.names().await, BTreeSet::from(left));
}

#[tokio::test]
async fn delete_returns_whether_the_entry_was_valid() {
    let bench = Bench::new().await;
    for key in both("a") {
        assert!(!bench.store.delete(&key).await.unwrap());
        bench.set(&key, "1").await;
        assert!(bench.store.delete(&key).await.unwrap());
        assert!(!bench.store.delete(&key).await.unwrap());
        assert_eq!(bench.get(&key).await, None);
    }
    assert_eq!(bench.ask::<u64>(&["EXISTS", "p-idx:{g}"]).await, 0);
}

#[tokio::test]
async fn group_eviction_counts_and_deletes_entries() {
    let bench = Bench::new().await;
    let (group, other) = (space("p", Some("g")), space("p", Some("h")));
    assert_eq!(bench.store.delete_group(&group).await.unwrap(), 0);
    for number in 0..777 {
        bench.set(&group.key(&format!("k{number}")), "x").await;
    }
    bench.set(&other.key("k1"), "stays").await;
    bench.set(&space("p", None).key("k1"), "stays").await;
    bench.store.set(&group.key("k0"), "short".into(), Some(Duration::from_millis(20))).await.unwrap();
    bench.store.delete(&group.key("k1")).await.unwrap();
    let _: () = bench.ask(&["SETRANGE", "p:{g}:k2", "0", "stale..."]).await;
    tokio::time::sleep(Duration::from_millis(40)).await;

    assert_eq!(bench.store.delete_group(&group).await.unwrap(), 774);
    let left = ["p:{h}", "p:{h}:k1", "p-idx:{h}", "p:k1"].map(str::to_owned);
    assert_eq!(bench.names().await, BTreeSet::from(left));
}

#[tokio::test]
async fn server_is_reached_through_its_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("re dis.sock");
    let path = path.to_str().unwrap();
    let bench = Bench::with_args(&["--unixsocket", path, "--requirepass", "p@ss"]).await;
    let (path, key) = (path.replace(' ', "%20"), space("redis:larder:cache", None).key("a"));
    for url in [
        format!("unix://:p%40ss@{path}?db=2"),
        format!("redis+unix://{path}?db=2&password=p%40ss"),
        format!("unix://default:p%40ss@{path}?db=2"),
    ] {
        let store = RedisStore::new(redis_server::patient(RedisOptions::from_url(&url).unwrap()));
        store.set(&key, "1".into(), MINUTE).await.unwrap();
        let larder = Larder::from_vars(|name| (name == "REDIS_URL").then(|| url.clone())).unwrap();
        assert!(larder.backend().try_has("a").await.unwrap());
        let tiered = store.clone().with_local("redis:larder:cache", 1 << 20);
        larder_tests::tier::comes_here(&tiered, &key, Duration::from_secs(10)).await;
        assert!(store.health().servers[0].address.ends_with("re dis.sock"));
        let by_port =
            RedisOptions::from_url(&format!("redis://127.0.0.1:{}/2?pass=p@ss", bench.server.port()));
        assert!(by_port.is_err(), "`@` is written %40");
        let by_port =
            RedisOptions::from_url(&format!("redis://127.0.0.1:{}?db=2&pass=p%40ss", bench.server.port()));
        let by_port = RedisStore::new(redis_server::patient(by_port.unwrap()));
        assert!(by_port.delete(&key).await.unwrap(), "it is in database 2");
        assert!(!store.has(&key).await.unwrap());
    }
    let wrong = RedisStore::new(RedisOptions::from_url("unix:///no/such/socket").unwrap());
    assert!(matches!(wrong.get(&key).await, Err(StoreError::Unavailable(_))));
}

/// Writes a value of a type that the store doesn't use under a name.
async fn write_foreign(bench: &Bench, name: &str, kind: &str) {
    let _: redis::Value = bench.ask(&["DEL", name]).await;
    let command: &[&str] = match kind {
        "list" => &["RPUSH", name, "x"],
        "hash" => &["HSET", name, "x", "y"],
        "set" => &["SADD", name, "x"],
        "sorted set" => &["ZADD", name, "1", "x"],
        "stream" => &["XADD", name, "*", "x", "y"],
        _ => &["SET", name, "a string"],
    };
    let _: redis::Value = bench.ask(command).await;
}

const FOREIGN: [&str; 5] = ["list", "hash", "set", "sorted set", "stream"];

#[tokio::test]
async fn foreign_type_under_a_key_is_a_miss_and_is_replaced() {
    let bench = Bench::new().await;
    let tiered = RedisStore::new(patient(&bench.server)).with_local("p", 1 << 20);
    for kind in FOREIGN {
        for key in both("a") {
            bench.set(&key, "1").await;
            write_foreign(&bench, key.name(), kind).await;
            assert_eq!(bench.get(&key).await, None, "{kind} {key}");
            assert_eq!(tiered.get(&key).await.unwrap(), None, "{kind} {key}");
            let lease = bench.lease(&key, Intent::Fill).await;
            assert!(bench.commit(&key, &lease, "2").await, "{kind} {key}");
            assert_eq!(bench.get(&key).await.unwrap(), "2", "{kind} {key}");
            write_foreign(&bench, key.name(), kind).await;
            bench.set(&key, "3").await;
            assert_eq!(bench.get(&key).await.unwrap(), "3", "{kind} {key}");
            write_foreign(&bench, key.name(), kind).await;
            assert!(!bench.store.delete(&key).await.unwrap(), "{kind} {key}: it was no value");
            assert_eq!(bench.ask::<u64>(&["EXISTS", key.name()]).await, 0, "{kind} {key}");
            // The same in a process that knows no nonce yet.
            write_foreign(&bench, key.name(), kind).await;
            let fresh = RedisStore::new(patient(&bench.server));
            let begun = fresh.begin(&key, Intent::Fill, HOLD).await.unwrap();
            assert!(matches!(begun, Acquired::Lease(_)), "{kind} {key}: {begun:?}");
            fresh.delete(&key).await.unwrap();
        }
    }
}

#[tokio::test]
async fn foreign_types_in_the_bookkeeping_fail_nothing() {
    let bench = Bench::new().await;
    let large = "x".repeat(100_000);
    for kind in FOREIGN.into_iter().chain(["string"]) {
        for name in ["p:{g}", "p-idx:{g}", "p-lease:{g}:a", "p-lease:{p:a}", "p-tmp:{g}:left"] {
            for key in both("a") {
                let why = format!("{kind} under {name}, {key}");
                for value in ["1", &large] {
                    write_foreign(&bench, name, kind).await;
                    bench.store.set(&key, value.to_owned().into(), MINUTE).await.expect(&why);
                    assert_eq!(bench.get(&key).await.unwrap(), value, "{why}");
                    bench.store.set(&key, value.to_owned().into(), None).await.expect(&why);
                }
                let lease = bench.lease(&key, Intent::Refresh).await;
                write_foreign(&bench, name, kind).await;
                assert!(bench.store.renew(&key, &lease, HOLD).await.is_ok(), "{why}");
                assert!(bench.store.commit(&key, &lease, "2".into(), MINUTE).await.is_ok(), "{why}");
                let lease = bench.lease(&key, Intent::Write).await;
                write_foreign(&bench, name, kind).await;
                bench.store.abandon(&key, &lease, Abandon::Failed).await.expect(&why);
                write_foreign(&bench, name, kind).await;
                bench.store.delete(&key).await.expect(&why);
                assert_eq!(bench.get(&key).await, None, "{why}");
                bench.set(&key, "3").await;
                write_foreign(&bench, name, kind).await;
                bench.store.delete_group(&space("p", Some("g"))).await.expect(&why);
                assert_eq!(bench.get(&key).await.is_some(), key.group().is_none(), "{why}");
                bench.set(&key, "4").await;
                write_foreign(&bench, name, kind).await;
                bench.store.delete_group(&space("p", None)).await.expect(&why);
                assert_eq!(bench.get(&key).await, None, "{why}");
            }
        }
    }
}

#[tokio::test]
async fn interrupted_group_eviction_leaves_nothing() {
    let bench = Bench::new().await;
    let group = space("p", Some("g"));
    // Another process fills and evicts, and dies in the middle of that.
    for (round, prefix_goes) in [(0, false), (1, true)] {
        for number in 0..2_000 {
            bench.store.set(&group.key(&format!("k{number}")), "x".into(), None).await.unwrap();
        }
        let other = RedisStore::new(patient(&bench.server));
        other.get(&group.key("k0")).await.unwrap();
        // Its first command has run, and its others never will, so the rest is never reported.
        let script = redis::Script::new(concat!(
            include_str!("../../core/src/store/redis/lua/prelude.lua"),
            include_str!("../../core/src/store/redis/lua/drop_group.lua")
        ));
        let mut dropped = script.prepare_invoke();
        for key in ["p:{g}", "p-idx:{g}", "p-tmp:{g}:00", "p-tmp:{g}:left"] {
            dropped.key(key);
        }
        let _: redis::Value = dropped.invoke_async(&mut bench.raw.clone()).await.unwrap();
        drop(other);
        assert_eq!(bench.get(&group.key("k1")).await, None, "evicted by the first command");
        assert_eq!(bench.names().await.len(), 2_002, "round {round}: nothing is unlinked yet");
        bench.set(&group.key("k2"), "new").await;
        let evicted = if prefix_goes { space("p", None) } else { group.clone() };
        bench.store.delete_group(&evicted).await.unwrap();
        assert_eq!(bench.names().await, BTreeSet::new(), "round {round}");
    }
}

#[tokio::test]
async fn dropped_eviction_runs_to_completion() {
    let bench = Bench::new().await;
    let group = space("p", Some("g"));
    for number in 0..4_000 {
        bench.store.set(&group.key(&format!("k{number}")), "x".into(), None).await.unwrap();
    }
    let evicting = tokio::time::timeout(Duration::from_millis(4), bench.store.delete_group(&group)).await;
    let start = tokio::time::Instant::now();
    while !bench.names().await.is_empty() {
        let left = bench.names().await.len();
        assert!(start.elapsed() < Duration::from_secs(5), "{left} names are left: {evicting:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn sweeping_keeps_newer_entries() {
    let bench = Bench::new().await;
    let group = space("p", Some("g"));
    bench.set(&group.key("old"), "1").await;
    bench.set(&group.key("new"), "1").await;
    // A fill between the eviction and its sweep: a new nonce, and an entry that carries it.
    let _: () = bench.ask(&["DEL", "p:{g}"]).await;
    bench.set(&group.key("new"), "2").await;
    let nonce = bench.bytes("p:{g}").await;
    let sweep = concat!(
        include_str!("../../core/src/store/redis/lua/prelude.lua"),
        include_str!("../../core/src/store/redis/lua/sweep.lua")
    );
    let count: u64 = redis::cmd("EVAL")
        .arg(sweep)
        .arg(&["3", "p:{g}", "p:{g}:old", "p:{g}:new", ""])
        .query_async(&mut bench.raw.clone())
        .await
        .unwrap();
    assert_eq!(count, 0);
    assert_eq!(bench.get(&group.key("new")).await.unwrap(), "2");
    assert_eq!(bench.bytes("p:{g}").await, nonce);
    assert_eq!(bench.ask::<u64>(&["EXISTS", "p:{g}:old"]).await, 0);
}

#[tokio::test]
async fn wiping_a_prefix_keeps_its_neighbours() {
    let bench = Bench::new().await;
    let mine = [
        space("a:b", None).key("x"),
        space("a:b", None).key(""),
        space("a:b", Some("g")).key("x"),
        space("a:b", Some("g")).key("y"),
        space("a:b", Some("h")).key("x"),
    ];
    let neighbours = [
        space("a:bc", None).key("x"),
        space("a:b-c", None).key("x"),
        space("a:b-c", Some("g")).key("x"),
        space("a:b:c", Some("g")).key("x"),
        space("a", Some("g")).key("x"),
        space("*:b", None).key("x"),
        space("[a]:b", Some("g")).key("x"),
    ];
    for key in mine.iter().chain(&neighbours) {
        bench.set(key, "1").await;
    }
    bench.lease(&space("a:b", None).key("lease"), Intent::Fill).await;
    bench.lease(&space("a:b", Some("g")).key("lease"), Intent::Fill).await;
    // An entry that lost its nonce isn't counted, but is deleted.
    bench.set(&space("a:b", Some("lost")).key("x"), "1").await;
    let _: () = bench.ask(&["DEL", "a:b:{lost}", "a:b-idx:{lost}"]).await;
    for number in 0..3000 {
        let _: () = bench.ask(&["SET", &format!("unrelated:{number}"), "1"]).await;
    }

    assert_eq!(bench.store.delete_group(&space("a:b", None)).await.unwrap(), 5);
    for key in &mine {
        assert_eq!(bench.get(key).await, None, "{key}");
    }
    for key in &neighbours {
        assert_eq!(bench.get(key).await.unwrap(), "1", "{key}");
    }
    let left: Vec<_> = bench.names().await.into_iter().filter(|name| name.starts_with("a:b")).collect();
    let expected = [
        "a:b-c-idx:{g}",
        "a:b-c:x",
        "a:b-c:{g}",
        "a:b-c:{g}:x",
        "a:b:c-idx:{g}",
        "a:b:c:{g}",
        "a:b:c:{g}:x",
        "a:bc:x",
    ];
    assert_eq!(left, expected);

    // A wildcard in a prefix is literal.
    assert_eq!(bench.store.delete_group(&space("*:b", None)).await.unwrap(), 1);
    assert_eq!(bench.store.delete_group(&space("[a]:b", None)).await.unwrap(), 1);
    assert_eq!(bench.get(&neighbours[0]).await.unwrap(), "1");
}

#[tokio::test]
async fn fill_is_not_stored_after_an_eviction() {
    let bench = Bench::new().await;
    for key in both("a") {
        for intent in [Intent::Fill, Intent::Refresh, Intent::Write] {
            for eviction in 0..4 {
                let lease = bench.lease(&key, intent).await;
                match eviction {
                    0 => drop(bench.store.delete(&key).await.unwrap()),
                    1 if key.group().is_some() => drop(bench.store.delete_group(&key.space()).await.unwrap()),
                    2 => bench.set(&key, "newer").await,
                    _ => drop(bench.store.delete_group(&space("p", None)).await.unwrap()),
                }
                assert!(!bench.commit(&key, &lease, "old").await, "{key} {intent:?} {eviction}");
                assert!(!bench.store.renew(&key, &lease, HOLD).await.unwrap());
                let expected = (eviction == 2).then(|| Bytes::from("newer"));
                assert_eq!(bench.get(&key).await, expected, "{key} {intent:?} {eviction}");
                bench.store.delete(&key).await.unwrap();
            }
        }
    }
    assert!(!bench.names().await.iter().any(|name| name.contains("-tmp:")));
}

#[tokio::test]
async fn one_process_fills_and_the_others_are_told() {
    let bench = Bench::new().await;
    for key in both("a") {
        let lease = bench.lease(&key, Intent::Fill).await;
        assert!(matches!(bench.store.begin(&key, Intent::Fill, HOLD).await.unwrap(), Acquired::Filling));
        assert!(matches!(bench.store.begin(&key, Intent::Refresh, HOLD).await.unwrap(), Acquired::Filling));
        assert!(bench.store.renew(&key, &lease, HOLD).await.unwrap());
        assert!(bench.commit(&key, &lease, "1").await);
        assert!(!bench.commit(&key, &lease, "2").await, "a lease is good for one commit");
        match bench.store.begin(&key, Intent::Fill, HOLD).await.unwrap() {
            Acquired::Found(found) => assert_eq!(found, "1"),
            other => panic!("{other:?}"),
        }

        let lease = bench.lease(&key, Intent::Refresh).await;
        assert_eq!(bench.get(&key).await.unwrap(), "1", "readable during a refresh");
        bench.store.abandon(&key, &lease, Abandon::Failed).await.unwrap();
        let lease = bench.lease(&key, Intent::Refresh).await;
        let moment = Duration::from_millis(300);
        bench.store.abandon(&key, &lease, Abandon::Uncacheable(moment)).await.unwrap();
        assert!(matches!(bench.store.begin(&key, Intent::Refresh, HOLD).await.unwrap(), Acquired::Busy(_)));
        assert!(!bench.commit(&key, &lease, "2").await);
        assert!(!bench.store.renew(&key, &lease, HOLD).await.unwrap());
        tokio::time::sleep(moment).await;
        bench.lease(&key, Intent::Refresh).await;
    }
}

/// Once the nonce of a group is known, a lease is taken without the script, with the same meaning.
#[tokio::test]
async fn optimistic_lease_is_equivalent_to_the_script() {
    let bench = Bench::new().await;
    let other = RedisStore::new(patient(&bench.server));
    for (space, has_nonce) in [(space("p", Some("g")), true), (space("p", None), false)] {
        let (first, key) = (space.key("first"), space.key("a"));
        let lease_name = if has_nonce { "p-lease:{g}:a" } else { "p-lease:{p:a}" };
        let scripts = async || {
            let stats: String = bench.ask(&["INFO", "commandstats"]).await;
            redis_server::calls(&stats, "evalsha")
        };
        let lease = bench.lease(&first, Intent::Fill).await;
        assert!(bench.commit(&first, &lease, "first").await);

        let before = scripts().await;
        let lease = bench.lease(&key, Intent::Fill).await;
        assert_eq!(scripts().await, before);
        assert_eq!(bench.bytes(lease_name).await, [lease.fence(), &b"F"[..], lease.token()].concat());
        let left: i64 = bench.ask(&["PTTL", lease_name]).await;
        assert!((1..=10_000).contains(&left), "{left}");
        for store in [&bench.store, &other] {
            let begin = store.begin(&key, Intent::Fill, HOLD).await.unwrap();
            assert!(matches!(begin, Acquired::Filling), "{begin:?}");
        }
        assert!(bench.commit(&key, &lease, "filled").await);
        assert_eq!(bench.get(&key).await.unwrap(), "filled");

        // If there is an entry it is found, and no lease is left.
        let begin = bench.store.begin(&key, Intent::Fill, HOLD).await.unwrap();
        assert!(matches!(begin, Acquired::Found(found) if found == "filled"));
        assert_eq!(bench.ask::<i64>(&["EXISTS", lease_name]).await, 0);
        let lease = bench.lease(&key, Intent::Refresh).await;
        let begin = bench.store.begin(&key, Intent::Fill, HOLD).await.unwrap();
        assert!(matches!(begin, Acquired::Found(found) if found == "filled"));
        assert!(
            bench.commit(&key, &lease, "refreshed").await,
            "a `begin` that finds an entry takes no lease"
        );

        // An eviction by another process, of the key or of the whole group, revokes it.
        for evict_group in [false, has_nonce] {
            other.delete(&key).await.unwrap();
            let lease = bench.lease(&key, Intent::Fill).await;
            if evict_group {
                other.delete_group(&space).await.unwrap();
            } else {
                other.delete(&key).await.unwrap();
            }
            assert!(!bench.commit(&key, &lease, "too late").await);
            assert_eq!(bench.get(&key).await, None);
        }

        // So does a write. During a write, or after a fill that can't be shared, no lease is given.
        let lease = bench.lease(&key, Intent::Fill).await;
        let write = bench.lease(&key, Intent::Write).await;
        assert!(!bench.commit(&key, &lease, "old").await);
        assert!(matches!(bench.store.begin(&key, Intent::Fill, HOLD).await.unwrap(), Acquired::Busy(_)));
        assert!(bench.commit(&key, &write, "written").await);
        other.delete(&key).await.unwrap();
        let lease = bench.lease(&key, Intent::Fill).await;
        bench.store.abandon(&key, &lease, Abandon::Uncacheable(HOLD)).await.unwrap();
        assert!(matches!(bench.store.begin(&key, Intent::Fill, HOLD).await.unwrap(), Acquired::Busy(_)));
    }

    // The nonce has changed, and another process took a lease under the old one.
    let key = space("p", Some("g")).key("b");
    let old = bench.lease(&key, Intent::Fill).await;
    other.delete_group(&key.space()).await.unwrap();
    let lease = bench.lease(&key, Intent::Fill).await;
    assert_ne!(old.fence(), lease.fence());
    assert!(!bench.commit(&key, &old, "old").await);
    assert!(bench.commit(&key, &lease, "new").await);
    assert_eq!(bench.get(&key).await.unwrap(), "new");
}

#[tokio::test]
async fn lease_expires() {
    let bench = Bench::new().await;
    for key in both("a") {
        let short = Duration::from_millis(30);
        let Acquired::Lease(lease) = bench.store.begin(&key, Intent::Fill, short).await.unwrap() else {
            panic!()
        };
        tokio::time::sleep(short * 2).await;
        assert!(!bench.commit(&key, &lease, "1").await);
        let next = bench.lease(&key, Intent::Fill).await;
        bench.store.abandon(&key, &lease, Abandon::Failed).await.unwrap();
        assert!(bench.commit(&key, &next, "2").await, "abandoning a lost lease must not touch the next one");
    }
}

#[tokio::test]
async fn overlapping_writes_store_neither_value() {
    let bench = Bench::new().await;
    for key in both("a") {
        bench.set(&key, "before").await;
        let fill = bench.lease(&key, Intent::Refresh).await;
        let first = bench.lease(&key, Intent::Write).await;
        assert!(!bench.commit(&key, &fill, "refreshed").await, "a write lease replaces a fill");
        assert!(matches!(bench.store.begin(&key, Intent::Refresh, HOLD).await.unwrap(), Acquired::Busy(_)));
        let second = bench.lease(&key, Intent::Write).await;
        assert_eq!(bench.get(&key).await.unwrap(), "before", "a write lease keeps the entry");
        assert!(!bench.commit(&key, &first, "first").await);
        assert!(bench.store.delete(&key).await.unwrap(), "the first write then evicts the entry");
        assert!(!bench.commit(&key, &second, "second").await);
        assert_eq!(bench.get(&key).await, None);

        let write = bench.lease(&key, Intent::Write).await;
        assert!(matches!(bench.store.begin(&key, Intent::Fill, HOLD).await.unwrap(), Acquired::Busy(_)));
        assert!(bench.commit(&key, &write, "after").await);
        assert_eq!(bench.get(&key).await.unwrap(), "after");
    }
}

#[tokio::test]
async fn value_over_the_limit_removes_the_entry() {
    let bench = Bench::new().await;
    let store = RedisStore::new(patient(&bench.server).max_value_bytes(10));
    for key in both("a") {
        for kept in ["0123456789", ""] {
            store.set(&key, kept.into(), MINUTE).await.unwrap();
            assert_eq!(bench.get(&key).await.unwrap(), kept);
        }
        let fill = bench.lease(&key, Intent::Refresh).await;
        store.set(&key, "0123456789+".into(), MINUTE).await.unwrap();
        assert_eq!(bench.get(&key).await, None);
        assert!(!bench.commit(&key, &fill, "late").await);

        bench.set(&key, "1").await;
        let fill = bench.lease(&key, Intent::Refresh).await;
        assert!(!store.commit(&key, &fill, "0123456789+".into(), MINUTE).await.unwrap());
        assert_eq!(bench.get(&key).await, None);
        bench.lease(&key, Intent::Fill).await;
    }
}

#[tokio::test]
async fn out_of_memory_removes_the_entry() {
    let bench = Bench::with_args(&["--maxmemory-policy", "noeviction"]).await;
    // Large values are uploaded before their script is called.
    let large: &str = "2".repeat(5000).leak();
    for (key, new) in both("a").into_iter().chain(both("b")).zip(["2", "2", large, large]) {
        bench.set(&key, "1").await;
        let fill = bench.lease(&key, Intent::Refresh).await;
        let _: () = bench.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
        assert!(!bench.commit(&key, &fill, new).await);
        assert_eq!(bench.get(&key).await, None);
        let _: () = bench.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
        bench.set(&key, "3").await;
        let _: () = bench.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
        assert!(matches!(bench.store.set(&key, "4".into(), MINUTE).await, Err(StoreError::Refused(_))));
        assert_eq!(bench.get(&key).await, None);
        let _: () = bench.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
    }
}

#[tokio::test]
async fn ttls_reach_the_store() {
    let bench = Bench::new().await;
    let within = |ms: i64, secs: i64| (secs * 1000 - 3000..=secs * 1000).contains(&ms);
    let large: &str = "1".repeat(5000).leak();
    for (key, value) in both("a").into_iter().chain(both("b")).zip(["1", "1", large, large]) {
        let pttl = async || bench.ask::<i64>(&["PTTL", key.name()]).await;
        bench.set(&key, value).await;
        assert!(within(pttl().await, 60));
        let lease = bench.lease(&key, Intent::Write).await;
        bench.store.commit(&key, &lease, "1".into(), Some(Duration::from_secs(600))).await.unwrap();
        assert!(within(pttl().await, 600));
        bench.store.set(&key, "1".into(), None).await.unwrap();
        assert_eq!(pttl().await, -1);
        bench.store.set(&key, "1".into(), Some(Duration::MAX)).await.unwrap();
        assert_eq!(pttl().await, -1);
        bench.set(&key, "1").await;
        assert!(within(pttl().await, 60), "an entry without expiry gets one again");
        bench.store.set(&key, "1".into(), Some(Duration::from_nanos(1))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(bench.get(&key).await, None);

        bench.set(&key, "1").await;
        let lease = bench.lease(&key, Intent::Refresh).await;
        assert!(bench.store.commit(&key, &lease, "2".into(), Some(Duration::ZERO)).await.unwrap());
        assert_eq!(bench.get(&key).await, None, "a time to live of zero removes");
        bench.set(&key, "1").await;
        let lease = bench.lease(&key, Intent::Refresh).await;
        bench.store.set(&key, "2".into(), Some(Duration::ZERO)).await.unwrap();
        assert_eq!(bench.get(&key).await, None);
        assert!(!bench.commit(&key, &lease, "late").await);
    }
    assert_eq!(bench.ask::<u64>(&["ZCARD", "p-idx:{g}"]).await, 0);
}

#[tokio::test]
async fn nonce_outlives_its_entries_and_seldom_changes() {
    let bench = Bench::with_args(&["--notify-keyspace-events", "KEA"]).await;
    let mut events = redis::Client::open(bench.server.url()).unwrap().get_async_pubsub().await.unwrap();
    events.subscribe("__keyspace@0__:p:{g}").await.unwrap();
    let mut events = events.into_on_message();
    let group = space("p", Some("g"));
    let hour = Duration::from_secs(3600);
    for number in 0..100 {
        let key = group.key(&number.to_string());
        let lease = bench.lease(&key, Intent::Fill).await;
        assert!(bench.store.commit(&key, &lease, "1".into(), Some(hour)).await.unwrap());
    }
    let [nonce, index] =
        [bench.ask::<i64>(&["PTTL", "p:{g}"]).await, bench.ask(&["PTTL", "p-idx:{g}"]).await];
    assert!(nonce >= 3_600_000 && index >= 3_600_000, "{nonce} {index}");

    let last = group.key("last");
    bench.store.set(&last, "1".into(), None).await.unwrap();
    assert_eq!(bench.ask::<i64>(&["PTTL", "p:{g}"]).await, -1);
    assert_eq!(bench.ask::<i64>(&["PTTL", "p-idx:{g}"]).await, -1);
    let _: () = bench.ask(&["PUBLISH", "__keyspace@0__:p:{g}", "end"]).await;
    let mut seen = Vec::new();
    loop {
        let event: String = events.next().await.unwrap().get_payload().unwrap();
        if event == "end" {
            break;
        }
        seen.push(event);
    }
    // `SET .. PX` reports two events and invalidates once.
    assert_eq!(seen, ["set", "expire", "expire", "persist"]);
}

#[tokio::test]
async fn expired_entries_are_removed_from_the_index() {
    let bench = Bench::new().await;
    let group = space("p", Some("g"));
    for number in 0..200 {
        let key = group.key(&number.to_string());
        bench.store.set(&key, "1".into(), Some(Duration::from_millis(1))).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    // One write in eight, by chance, removes up to 128 expired names. Fewer than two of these removals happen once in 10^10 runs.
    for _ in 0..200 {
        bench.set(&group.key("a"), "1").await;
    }
    assert_eq!(bench.ask::<Vec<String>>(&["ZRANGE", "p-idx:{g}", "0", "-1"]).await, ["a"]);
}

#[tokio::test]
async fn scripts_unknown_to_the_server_are_sent_again() {
    let bench = Bench::new().await;
    for key in both("a") {
        let forget = async || bench.ask::<()>(&["SCRIPT", "FLUSH"]).await;
        forget().await;
        let lease = bench.lease(&key, Intent::Fill).await;
        forget().await;
        assert!(bench.store.renew(&key, &lease, HOLD).await.unwrap());
        forget().await;
        assert!(bench.commit(&key, &lease, "1").await);
        forget().await;
        bench.set(&key, "2").await;
        assert_eq!(bench.get(&key).await.unwrap(), "2");
        let lease = bench.lease(&key, Intent::Refresh).await;
        forget().await;
        bench.store.abandon(&key, &lease, Abandon::Failed).await.unwrap();
        forget().await;
        assert!(bench.store.delete(&key).await.unwrap());
        bench.set(&key, "3").await;
        forget().await;
        assert_eq!(bench.store.delete_group(&key.space()).await.unwrap(), 1);
    }
}

#[tokio::test]
async fn without_scripts_nothing_is_stored() {
    let bench = Bench::new().await;
    let _: () = bench.ask(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-@scripting"]).await;
    let store = RedisStore::new(patient(&bench.server).username("app").password("pw"));
    for key in both("a") {
        assert_eq!(store.get(&key).await.unwrap(), None);
        assert!(matches!(store.begin(&key, Intent::Fill, HOLD).await, Err(StoreError::Refused(_))));
        assert!(matches!(store.set(&key, "1".into(), MINUTE).await, Err(StoreError::Refused(_))));
        let lease = bench.lease(&key, Intent::Fill).await;
        assert!(!store.commit(&key, &lease, "1".into(), MINUTE).await.unwrap_or(false));
        assert_eq!(bench.get(&key).await, None);
    }
    let entries: Vec<String> = bench.ask(&["KEYS", "p:*a"]).await;
    assert!(entries.is_empty(), "{entries:?}");
}

#[tokio::test]
async fn database_and_password_are_used() {
    let bench = Bench::with_args(&["--requirepass", "s3cret"]).await.server;
    let options = patient(&bench);
    let store = RedisStore::new(options.clone().password("s3cret").db(3));
    let key = &both("a")[0];
    store.set(key, "1".into(), MINUTE).await.unwrap();
    assert_eq!(RedisStore::new(options.clone().password("s3cret").db(4)).get(key).await.unwrap(), None);
    let error = RedisStore::new(options.password("wr0ng")).get(key).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("wr0ng"), "{error:?}");
    assert!(!format!("{store:?}").contains("s3cret"));
}

#[test]
fn store_outlives_its_first_runtime() {
    let server = RedisServer::start();
    let store = RedisStore::new(patient(&server).connections(2));
    let key = &both("a")[0];
    for round in 0..5 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for value in ["1", "2", "3"] {
                store.set(key, value.into(), MINUTE).await.unwrap();
                assert_eq!(store.get(key).await.unwrap().unwrap(), value, "{round}");
            }
        });
    }
}

#[tokio::test]
async fn closed_store_is_unavailable() {
    let bench = Bench::new().await;
    bench.set(&both("a")[0], "1").await;
    bench.store.close().await;
    assert!(matches!(bench.store.get(&both("a")[0]).await, Err(StoreError::Unavailable(_))));
}

/// Readers fill from a "database" that a writer changes and evicts. Once an eviction has returned, no reader may see the value
/// before it.
async fn race(key: CacheKey, evict_group: bool) {
    const READERS: usize = 16;
    const CHANGES: u64 = 1500;

    let bench = Bench::new().await;
    let database = Arc::new(AtomicU64::new(0));
    let (evicted, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (stale, hits) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            // A connection each, so that no order is guaranteed by chance.
            let (store, key) = (RedisStore::new(patient(&bench.server)), key.clone());
            let (database, evicted, done) = (database.clone(), evicted.clone(), done.clone());
            let (stale, hits) = (stale.clone(), hits.clone());
            tokio::spawn(async move {
                while !done.load(Ordering::SeqCst) {
                    let floor = evicted.load(Ordering::SeqCst);
                    let seen = match store.begin(&key, Intent::Fill, HOLD).await.unwrap() {
                        Acquired::Found(found) => found,
                        Acquired::Lease(lease) => {
                            let value = database.load(Ordering::SeqCst).to_string();
                            // Sometimes the handler is slow, so that evictions happen during the fill.
                            if fastrand::u8(..4) == 0 {
                                tokio::time::sleep(Duration::from_millis(2)).await;
                            }
                            store.commit(&key, &lease, value.into(), MINUTE).await.unwrap();
                            continue;
                        }
                        _ => continue,
                    };
                    let seen: u64 = std::str::from_utf8(&seen).unwrap().parse().unwrap();
                    hits.fetch_add(1, Ordering::Relaxed);
                    stale.fetch_add(u64::from(seen < floor), Ordering::Relaxed);
                }
            })
        })
        .collect();
    for change in 1..=CHANGES {
        database.store(change, Ordering::SeqCst);
        if evict_group {
            bench.store.delete_group(&key.space()).await.unwrap();
        } else {
            bench.store.delete(&key).await.unwrap();
        }
        evicted.store(change, Ordering::SeqCst);
        if change % 4 == 0 {
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    }
    done.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.await.unwrap();
    }
    assert_eq!(stale.load(Ordering::Relaxed), 0, "of {} hits", hits.load(Ordering::Relaxed));
    assert!(hits.load(Ordering::Relaxed) > 100, "too few hits for a race");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stale_hit_after_deletes() {
    race(both("a")[0].clone(), false).await;
    race(both("a")[1].clone(), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stale_hit_after_group_deletes() {
    race(both("a")[0].clone(), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stale_hit_after_wipes() {
    let server_wide = space("p", None).key("a");
    race(server_wide, true).await;
}
