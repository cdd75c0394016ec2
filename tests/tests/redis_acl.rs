//! Redis users with the rights that the guide lists: the rights suffice, each is needed, and a refused command is named in the
//! log.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, Once};
use std::time::Duration;

use deadpool_redis::{PoolConfig, Runtime};
use larder_core::store::suite::{self, Subject};
use larder_core::tag::{EvictionMode, Tagged, Tags};
use larder_core::{
    Abandon, Acquired, CacheStore, Intent, KeySpace, LeaseStore, RedisOptions, RedisStore, StoreError,
};
use larder_tests::redis_cluster::{MASTERS, RedisCluster, everywhere, key};
use larder_tests::redis_server::{RedisServer, patient, version};
use larder_tests::tier::{CAPACITY, comes_here, keys};
use tokio::time::{Instant, sleep};

const HOLD: Duration = Duration::from_secs(10);
const MINUTE: Option<Duration> = Some(Duration::from_secs(60));
const SETTLED: Duration = Duration::from_secs(30);

/// The guide's page, from which the rights are read.
const PAGE: &str = include_str!("../../core/src/docs/redis.md");

/// Returns the rights that the guide lists for these features, for keys under `prefix`.
fn rights(features: &[&str], prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for feature in features {
        let lines: Vec<_> = PAGE
            .lines()
            .filter_map(|line| line.strip_prefix(feature)?.strip_prefix(' '))
            .filter(|rest| rest.trim_start().starts_with(['+', '~']))
            .collect();
        assert!(!lines.is_empty(), "the guide has no rights for {feature}");
        let rules = lines.iter().flat_map(|line| line.split_ascii_whitespace());
        found.extend(rules.map(|rule| rule.replace("redis:larder:cache", prefix)));
    }
    found
}

/// Returns the rules for a user `app` who has these rights and no others.
fn user(rights: &[String]) -> Vec<String> {
    let fixed = ["ACL", "SETUSER", "app", "reset", "on", ">pw", "resetchannels"].map(str::to_owned);
    fixed.into_iter().chain(rights.iter().cloned()).collect()
}

async fn raw<T: redis::FromRedisValue>(server: &RedisServer, command: &[impl AsRef<str>]) -> T {
    let client = redis::Client::open(server.url()).unwrap();
    let mut cmd = redis::Cmd::new();
    for part in command {
        cmd.arg(part.as_ref());
    }
    cmd.query_async(&mut client.get_multiplexed_async_connection().await.unwrap()).await.unwrap()
}

async fn may(server: &RedisServer, rights: &[String]) {
    let _: () = raw(server, &user(rights)).await;
}

fn as_app(url: &str) -> RedisOptions {
    patient(RedisOptions::from_url(url).unwrap().username("app").password("pw"))
}

/// Returns the commands that the server refused, from its own log. Clients introduce themselves whether or not they may.
async fn refused(server: &RedisServer) -> Vec<String> {
    let log: Vec<redis::Value> = raw(server, &["ACL", "LOG"]).await;
    let object = |entry: redis::Value| {
        let fields: Vec<redis::Value> = redis::from_redis_value(entry).unwrap();
        let texts: Vec<String> =
            fields.into_iter().map(|field| redis::from_redis_value(field).unwrap_or_default()).collect();
        texts
            .iter()
            .position(|text| text == "object")
            .map(|index| texts[index + 1].clone())
            .unwrap_or_default()
    };
    let objects = log.into_iter().map(object);
    // Redis 6 doesn't name the subcommand.
    objects
        .filter(|object| object != "client|setinfo" && (version() >= (7, 0) || object != "client"))
        .collect()
}

/// Runs every operation of a store, as far as possible, and returns the errors.
async fn exercise(store: &impl LeaseStore, prefix: &str) -> Vec<StoreError> {
    let errors = Mutex::new(Vec::new());
    let note = |error: Option<StoreError>| errors.lock().unwrap().extend(error);
    for group in [Some("g"), None] {
        let space = KeySpace::new(prefix, group).unwrap();
        for (number, size) in [10, 10_000].into_iter().enumerate() {
            let key = space.key(&format!("k{number}"));
            for ttl in [MINUTE, None] {
                match store.begin(&key, Intent::Fill, HOLD).await {
                    Ok(Acquired::Lease(lease)) => {
                        note(store.renew(&key, &lease, HOLD).await.err());
                        note(store.commit(&key, &lease, vec![b'x'; size].into(), ttl).await.err());
                    }
                    begun => note(begun.err()),
                }
                note(store.get(&key).await.err());
                note(store.has(&key).await.err());
                match store.get_head(&key, 100).await {
                    Ok(Some(head)) if !head.is_whole() => {
                        note(store.get_range(&key, &head.bytes, 100..200).await.err());
                    }
                    head => note(head.err()),
                }
                note(store.begin(&key, Intent::Fill, HOLD).await.err());
                note(store.delete(&key).await.err());
            }
            for why in [Abandon::Failed, Abandon::Uncacheable(Duration::from_millis(1))] {
                match store.begin(&key, Intent::Refresh, HOLD).await {
                    Ok(Acquired::Lease(lease)) => note(store.abandon(&key, &lease, why).await.err()),
                    begun => note(begun.err()),
                }
            }
        }
        // One commit in eight removes expired entries from the index.
        for number in 0..96 {
            let ttl = if number < 32 { Duration::from_millis(1) } else { Duration::from_secs(60) };
            if let Err(error) = store.set(&space.key(&format!("n{number}")), "1".into(), Some(ttl)).await {
                note(Some(error));
                break;
            }
        }
        // Tags: an entry, an eviction of another tag, and one of its own.
        match store.tag_clock(&space).await {
            Ok(Some(stamp)) => {
                let (key, tagged) = (space.key("tagged"), Tagged::new(stamp, &Tags::new(["a"]).unwrap()));
                for (evicted, ttl) in [("x", MINUTE), ("a", None)] {
                    note(store.set_tagged(&key, "1".into(), ttl, &tagged).await.err());
                    let evicted = Tags::new([evicted]).unwrap();
                    note(store.evict_tags(&space, &evicted, EvictionMode::Hard).await.err());
                    note(store.get(&key).await.err());
                }
            }
            clock => note(clock.err()),
        }
        note(store.set(&space.key("soft"), "1".into(), MINUTE).await.err());
        note(store.evict_softly(&space.key("soft")).await.err());
        note(store.get(&space.key("soft")).await.err());
        if group.is_some() {
            note(store.evict_group_softly(&space).await.err());
            note(store.get(&space.key("soft")).await.err());
            note(store.delete_group(&space).await.err());
        }
    }
    // A group whose index expires.
    let passing = KeySpace::new(prefix, Some("passing")).unwrap();
    note(store.set(&passing.key("k"), "1".into(), MINUTE).await.err());
    note(store.delete_group(&passing).await.err());
    errors.into_inner().unwrap()
}

async fn wipe(store: &impl CacheStore, prefix: &str) -> Option<StoreError> {
    store.delete_group(&KeySpace::new(prefix, None).unwrap()).await.err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listed_rights_suffice_for_the_behaviour_suite() {
    let server = RedisServer::start();
    may(&server, &rights(&["every store", "whole prefixes"], "suite:*")).await;
    let subject = Subject::new(RedisStore::new(as_app(&server.url())));
    suite::run(&subject).await;
    suite::run_leases(&subject).await;
    suite::run_tags(&subject).await;
    suite::run_soft(&subject).await;
    assert_eq!(refused(&server).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listed_rights_suffice_for_each_feature() {
    let server = RedisServer::start();
    let url = server.url();
    let nothing = Vec::<String>::new();

    may(&server, &rights(&["every store"], "p")).await;
    assert!(exercise(&RedisStore::new(as_app(&url)), "p").await.is_empty());
    assert_eq!(refused(&server).await, nothing, "every store");

    may(&server, &rights(&["every store", "another database"], "p")).await;
    assert!(exercise(&RedisStore::new(as_app(&url).db(3)), "p").await.is_empty());
    assert_eq!(refused(&server).await, nothing, "another database");

    may(&server, &rights(&["every store", "whole prefixes"], "p")).await;
    let store = RedisStore::new(as_app(&url).evict_foreign(true));
    assert!(exercise(&store, "p").await.is_empty());
    assert!(wipe(&store, "p").await.is_none());
    assert_eq!(refused(&server).await, nothing, "whole prefixes");

    may(&server, &rights(&["every store", "local tier"], "p")).await;
    let tiered = RedisStore::new(as_app(&url)).with_local("p", CAPACITY);
    for key in keys() {
        tiered.set(&key, "1".into(), MINUTE).await.unwrap();
        comes_here(&tiered, &key, SETTLED).await;
    }
    assert!(exercise(&tiered, "p").await.is_empty());
    assert_eq!(refused(&server).await, nothing, "local tier");
    tiered.close().await;

    may(&server, &rights(&["every store", "whole prefixes", "pool"], "p")).await;
    let mut config = deadpool_redis::Config::from_url(url.replace("redis://", "redis://app:pw@"));
    config.pool = Some(PoolConfig::new(4));
    let pool = config.create_pool(Some(Runtime::Tokio1)).unwrap();
    let store = RedisStore::new(patient(RedisOptions::from_pool(pool)));
    assert!(exercise(&store, "p").await.is_empty());
    assert!(wipe(&store, "p").await.is_none());
    assert_eq!(refused(&server).await, nothing, "pool");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listed_rights_suffice_to_wait_for_replicas() {
    let server = RedisServer::start();
    may(&server, &rights(&["every store", "replicas"], "p")).await;
    let options = as_app(&server.url()).wait_for_replicas(1, Duration::from_millis(1));
    // There is no replica, so no change is confirmed.
    let errors = exercise(&RedisStore::new(options), "p").await;
    assert!(!errors.is_empty() && errors.iter().all(|error| matches!(error, StoreError::Unavailable(_))));
    assert_eq!(refused(&server).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listed_rights_suffice_in_a_cluster() {
    let cluster = tokio::task::spawn_blocking(RedisCluster::start).await.unwrap();
    let nodes = async |features: &[&str]| {
        for node in 0..2 * MASTERS {
            may(cluster.node(node), &rights(features, "p")).await;
        }
    };
    let refused = async || {
        let mut all = Vec::new();
        for node in 0..2 * MASTERS {
            all.extend(refused(cluster.node(node)).await);
        }
        all
    };
    let nothing = Vec::<String>::new();

    nodes(&["every store", "cluster"]).await;
    let store = RedisStore::new(as_app(&cluster.url()));
    assert!(exercise(&store, "p").await.is_empty());
    for key in everywhere(&cluster, 2).iter().flatten() {
        store.set(key, "1".into(), MINUTE).await.unwrap();
    }
    // Keys that have been moved are read from the new owner.
    let moving = key(None, "moving");
    store.set(&moving, "1".into(), MINUTE).await.unwrap();
    let slot = cluster.slot(moving.name());
    let (from, to) = (RedisCluster::home(slot), (RedisCluster::home(slot) + 1) % MASTERS);
    cluster.begin_move(slot, from, to);
    cluster.move_keys(slot, from, to, Duration::ZERO);
    assert_eq!(store.get(&moving).await.unwrap().unwrap(), "1");
    cluster.end_move(slot, from, to);
    assert_eq!(refused().await, nothing, "cluster");

    nodes(&["every store", "cluster", "prefixes in a cluster"]).await;
    assert!(wipe(&store, "p").await.is_none());
    assert_eq!(refused().await, nothing, "prefixes in a cluster");

    nodes(&["every store", "cluster", "tier over a cluster"]).await;
    let tiered = RedisStore::new(as_app(&cluster.url())).with_local("p", CAPACITY);
    let key = key(Some("g"), "a");
    tiered.set(&key, "1".into(), MINUTE).await.unwrap();
    comes_here(&tiered, &key, SETTLED).await;
    assert_eq!(refused().await, nothing, "tier over a cluster");
    tiered.close().await;

    nodes(&["every store", "cluster", "prefixes in a cluster", "pool"]).await;
    let urls: Vec<_> =
        (0..MASTERS).map(|node| cluster.node(node).url().replace("redis://", "redis://app:pw@")).collect();
    let mut config = deadpool_redis::cluster::Config::from_urls(urls);
    config.pool = Some(PoolConfig::new(4));
    let pool = config.create_pool(Some(Runtime::Tokio1)).unwrap();
    let store = RedisStore::new(patient(RedisOptions::from_cluster_pool(pool)));
    assert!(exercise(&store, "p").await.is_empty());
    assert!(wipe(&store, "p").await.is_none());
    assert_eq!(refused().await, nothing, "pool of a cluster");
}

thread_local! {
    /// The log of this thread.
    static LOGGED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Writes the log of this thread. A test on a runtime of one thread has it to itself.
struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOGGED.with_borrow_mut(|logged| logged.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Clears the log.
    fn begin() -> Self {
        // Installed for the whole program: with a subscriber for one thread only, `tracing` may cache from another thread that no
        // subscriber wants a warning.
        static LISTENING: Once = Once::new();
        LISTENING.call_once(|| tracing_subscriber::fmt().with_ansi(false).with_writer(|| Log).init());
        LOGGED.take();
        Self
    }

    fn text(&self) -> String {
        LOGGED.with_borrow(|logged| String::from_utf8(logged.clone()).unwrap())
    }

    /// Returns the commands that were warned of, in order.
    fn warned(&self) -> Vec<String> {
        let text = self.text();
        let named = |line: &str| {
            let rest = line.split_once("WARN").filter(|_| line.contains("Redis refuses a command;"))?.1;
            Some(rest.split_once("command=\"")?.1.split_once('"')?.0.to_owned())
        };
        text.lines().filter_map(named).collect()
    }
}

/// Returns the rights without this one. The key patterns and the other commands stay.
fn without(rights: &[String], denied: &str) -> Vec<String> {
    rights.iter().filter(|right| *right != denied).cloned().collect()
}

#[tokio::test]
async fn each_listed_right_is_needed_and_its_refusal_named_once() {
    let server = RedisServer::start();
    let all = rights(&["every store", "another database", "whole prefixes", "local tier"], "p");
    let commands: BTreeSet<&String> = all.iter().filter(|right| right.starts_with('+')).collect();
    let owner = RedisStore::new(patient(RedisOptions::from_url(&server.url()).unwrap().db(3)));
    for denied in commands {
        let command = denied[1..].replace('|', " ").to_uppercase();
        let keys = keys();
        for key in &keys {
            owner.set(key, "old".into(), MINUTE).await.unwrap();
        }
        may(&server, &without(&all, denied)).await;
        // The server sends a script in full only if it doesn't know it.
        let _: () = raw(&server, &["SCRIPT", "FLUSH"]).await;
        let log = Log::begin();
        let options = RedisOptions::from_url(&server.url()).unwrap().username("app").password("pw").db(3);
        // Evictions that are refused can't be confirmed before the store is closed.
        let store = RedisStore::new(options.close_deadline(Duration::ZERO));
        let start = Instant::now();
        for key in &keys {
            let deleted = store.delete(key).await;
            // Either the entry is evicted for all, or this process doesn't serve it.
            let seen = store.get(key).await;
            assert!(!matches!(seen, Ok(Some(_))), "{denied}: {deleted:?}, and {seen:?}");
            assert!(deleted.is_err() || owner.get(key).await.unwrap().is_none(), "{denied}");
        }
        exercise(&store, "p").await;
        wipe(&store, "p").await;
        let tiered = store.clone().with_local("p", CAPACITY);
        while log.warned().is_empty() {
            assert!(start.elapsed() < SETTLED, "{denied}: {}", log.text());
            let _ = tiered.get(&keys[0]).await;
            sleep(Duration::from_millis(5)).await;
        }
        // The second refusal must not be logged again.
        exercise(&store, "p").await;
        wipe(&store, "p").await;
        let warned = log.warned();
        let count = warned.iter().filter(|warned| **warned == command).count();
        assert_eq!(count, 1, "{denied}: {warned:?} in {}", log.text());
        assert_eq!(warned.len(), 1, "{denied}: {warned:?} in {}", log.text());
        store.close().await;
    }
}

#[tokio::test]
async fn refused_eviction_is_retried_until_it_is_allowed() {
    let server = RedisServer::start();
    let all = rights(&["every store"], "p");
    let owner = RedisStore::new(patient(RedisOptions::from_url(&server.url()).unwrap()));
    for denied in ["+eval", "+evalsha", "+del", "+unlink", "+zrem"] {
        let key = &keys()[0];
        owner.set(key, "old".into(), MINUTE).await.unwrap();
        may(&server, &without(&all, denied)).await;
        let store = RedisStore::new(as_app(&server.url()));
        // The case where the server doesn't know the script.
        let _: () = raw(&server, &["SCRIPT", "FLUSH"]).await;
        let deleted = store.delete(key).await;
        assert!(matches!(deleted, Err(StoreError::Refused(_))), "{denied}: {deleted:?}");
        may(&server, &all).await;
        let start = Instant::now();
        while owner.get(key).await.unwrap().is_some() {
            assert!(start.elapsed() < SETTLED, "{denied}: never repeated");
            sleep(Duration::from_millis(10)).await;
        }
    }
}
