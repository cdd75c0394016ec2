//! Tags on real servers: the behaviour suite, what a hit costs, and servers that are away, full, or lose what they confirmed.

use std::time::Duration;

use bytes::Bytes;
use larder_core::store::suite::{self, Loss, Subject};
use larder_core::tag::{EvictionMode, Tagged, Tags};
use larder_core::{
    Acquired, CacheKey, CacheStore, Intent, KeySpace, LeaseStore, RedisOptions, RedisStore, TieredStore,
};
use larder_tests::redis_cluster::{RedisCluster, key};
use larder_tests::redis_server::{RedisServer, calls, connect_without_deadline, patient};
use larder_tests::tier::{CAPACITY, comes_here, is_here};
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep};

const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

fn tags(names: &[&str]) -> Tags {
    Tags::new(names).unwrap()
}

fn space() -> KeySpace {
    KeySpace::new("p", None).unwrap()
}

fn store(url: &str) -> RedisStore {
    RedisStore::new(patient(RedisOptions::from_url(url).unwrap()))
}

async fn set<S: LeaseStore>(store: &S, key: &CacheKey, value: &'static str, names: &[&str]) {
    let stamp = store.tag_clock(&key.space()).await.unwrap().unwrap();
    let tagged = Tagged::new(stamp, &tags(names));
    store.set_tagged(key, value.into(), MINUTE, &tagged).await.unwrap();
}

async fn evict<S: LeaseStore>(store: &S, names: &[&str]) -> Result<(), larder_core::StoreError> {
    store.evict_tags(&space(), &tags(names), EvictionMode::Hard).await
}

/// Makes a server, or the node of a cluster that has them, forget the clock or the table of a prefix.
async fn forget(
    conn: &mut MultiplexedConnection,
    loss: Loss,
    prefix: &str,
) -> Result<u64, redis::RedisError> {
    let clock = format!("{prefix}:{{{prefix}-tags}}clock");
    let table = format!("{prefix}-idx:{{{prefix}-tags}}evicted");
    let names = match loss {
        Loss::Clock => vec![clock],
        Loss::Table => vec![table],
        Loss::Both => vec![clock, table],
    };
    redis::cmd("DEL").arg(names).query_async(conn).await
}

fn losing<S: LeaseStore>(subject: Subject<S>, urls: Vec<String>) -> Subject<S> {
    subject.losing(move |loss, prefix| {
        let urls = urls.clone();
        async move {
            for url in urls {
                // The other nodes of a cluster refuse.
                let _ = forget(&mut connect_without_deadline(&url).await, loss, &prefix).await;
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_passes_the_tag_suite() {
    let server = RedisServer::start();
    let subject = Subject::new(store(&server.url())).beside(store(&server.url()));
    suite::run_tags(&losing(subject, vec![server.url()])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tier_passes_the_tag_suite() {
    let server = RedisServer::start();
    let tier = || store(&server.url()).with_local("suite", CAPACITY);
    let subject = Subject::new(tier()).beside(tier());
    suite::run_tags(&losing(subject, vec![server.url()])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_passes_the_tag_suite_with_and_without_a_tier() {
    let cluster = RedisCluster::start();
    let urls: Vec<String> = (0..3).map(|node| cluster.node(node).url()).collect();
    let subject = Subject::new(store(&cluster.url())).beside(store(&cluster.url()));
    suite::run_tags(&losing(subject, urls.clone())).await;
    let tier = || store(&cluster.url()).with_local("suite", CAPACITY);
    suite::run_tags(&losing(Subject::new(tier()).beside(tier()), urls)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_passes_the_suite_of_soft_evictions() {
    let server = RedisServer::start();
    suite::run_soft(&Subject::new(store(&server.url())).beside(store(&server.url()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tier_passes_the_suite_of_soft_evictions() {
    let server = RedisServer::start();
    let tier = || store(&server.url()).with_local("suite", CAPACITY);
    suite::run_soft(&Subject::new(tier()).beside(tier())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_passes_the_suite_of_soft_evictions_with_and_without_a_tier() {
    let cluster = RedisCluster::start();
    suite::run_soft(&Subject::new(store(&cluster.url())).beside(store(&cluster.url()))).await;
    let tier = || store(&cluster.url()).with_local("suite", CAPACITY);
    suite::run_soft(&Subject::new(tier()).beside(tier())).await;
}

async fn stats(conn: &mut MultiplexedConnection) -> String {
    redis::cmd("INFO").arg("commandstats").query_async(conn).await.unwrap()
}

/// Runs `work` and returns the number of commands that the server ran meanwhile.
async fn commands(conn: &mut MultiplexedConnection, work: impl Future<Output = ()>) -> u64 {
    let count = |stats: String| {
        ["get", "mget", "hmget", "getrange", "evalsha", "eval", "pttl", "exists", "type"]
            .iter()
            .map(|name| calls(&stats, name))
            .sum::<u64>()
    };
    let before = count(stats(conn).await);
    work.await;
    count(stats(conn).await) - before
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tagged_hit_is_one_command_and_one_more_after_an_eviction_of_other_tags() {
    let server = RedisServer::start();
    let (store, mut conn) = (store(&server.url()), connect_without_deadline(&server.url()).await);
    for group in [None, Some("g")] {
        let (plain, tagged) = (key(group, "plain"), key(group, "tagged"));
        store.set(&plain, "plain".into(), MINUTE).await.unwrap();
        set(&store, &tagged, "tagged", &["a", "b"]).await;
        let read = async |key: &CacheKey, times: u64| {
            for _ in 0..times {
                assert!(store.get(key).await.unwrap().is_some());
            }
        };
        read(&tagged, 2).await;
        assert_eq!(commands(&mut conn, read(&plain, 10)).await, 10);
        assert_eq!(commands(&mut conn, read(&tagged, 10)).await, 10);
        for _ in 0..3 {
            evict(&store, &["x"]).await.unwrap();
            assert_eq!(commands(&mut conn, read(&plain, 10)).await, 10);
            // `MGET` and `HMGET`, once.
            assert_eq!(commands(&mut conn, read(&tagged, 10)).await, 12);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn has_is_one_command_for_a_value_without_tags() {
    let server = RedisServer::start();
    let (store, mut conn) = (store(&server.url()), connect_without_deadline(&server.url()).await);
    let (plain, empty, absent) = (key(None, "plain"), key(None, "empty"), key(None, "absent"));
    store.set(&plain, "plain".into(), MINUTE).await.unwrap();
    store.set(&empty, "".into(), MINUTE).await.unwrap();
    // An empty value reads as none does, so these need a second command.
    for (key, is_there, expected) in [(&plain, true, 1), (&empty, true, 2), (&absent, false, 2)] {
        let asking = async { assert_eq!(store.has(key).await.unwrap(), is_there, "{key}") };
        assert_eq!(commands(&mut conn, asking).await, expected, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_without_tags_has_no_tag_clock() {
    let server = RedisServer::start();
    let (store, mut conn) = (store(&server.url()), connect_without_deadline(&server.url()).await);
    let key = key(Some("g"), "k");
    let Acquired::Lease(lease) = store.begin(&key, Intent::Fill, Duration::from_secs(9)).await.unwrap()
    else {
        panic!("the key is free")
    };
    assert!(store.commit(&key, &lease, "v".into(), MINUTE).await.unwrap());
    assert!(store.get(&key).await.unwrap().is_some());
    evict(&store, &["a"]).await.unwrap();
    let names: Vec<String> = redis::cmd("KEYS").arg("*tags*").query_async(&mut conn).await.unwrap();
    assert!(names.is_empty(), "{names:?}");
}

/// Reads until the store's own evictions are confirmed, and asserts that the entry is never seen meanwhile.
async fn stays_away<S: CacheStore>(store: &S, key: &CacheKey, for_at_least: Duration) {
    let start = Instant::now();
    while start.elapsed() < for_at_least {
        let found = store.get(key).await.ok().flatten();
        assert_eq!(found, None, "{key} came back after {:?}", start.elapsed());
        sleep(Duration::from_millis(2)).await;
    }
}

async fn is_soon(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !check().await {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eviction_during_an_outage_is_repeated_and_bypassed_meanwhile() {
    let server = RedisServer::start();
    let options = RedisOptions::from_url(&server.url()).unwrap();
    let short = Duration::from_millis(100);
    let mine = RedisStore::new(options.read_deadline(short).evict_deadline(short));
    let tier = mine.clone().with_local("p", CAPACITY);
    let other = store(&server.url());
    let (a, b) = (key(Some("g"), "a"), key(None, "b"));
    set(&other, &a, "old", &["a", "more"]).await;
    set(&other, &b, "kept", &["b"]).await;
    for key in [&a, &b] {
        comes_here(&tier, key, Duration::from_secs(10)).await;
    }
    server.pause();
    evict(&tier, &["a", "c"]).await.unwrap_err();
    assert!(!is_here(&tier, &a));
    server.resume();
    is_soon("the entry with another tag is read", async || {
        assert_eq!(tier.get(&a).await.ok().flatten(), None, "its tag was evicted");
        tier.get(&b).await.ok().flatten().is_some()
    })
    .await;
    is_soon("the eviction is repeated", async || other.get(&a).await.unwrap().is_none()).await;
    stays_away(&mine, &a, Duration::from_millis(300)).await;
    assert_eq!(other.get(&b).await.unwrap(), Some(Bytes::from("kept")));
    set(&tier, &a, "new", &["a"]).await;
    is_soon("it can be stored again", async || {
        set(&tier, &a, "new", &["a"]).await;
        tier.get(&a).await.ok().flatten().is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eviction_that_a_restored_snapshot_undoes_is_repeated() {
    let mut server = RedisServer::start();
    let mine = store(&server.url()).with_local("p", CAPACITY);
    let other = store(&server.url());
    let (a, b) = (key(Some("g"), "a"), key(None, "b"));
    set(&mine, &a, "old", &["a"]).await;
    set(&mine, &b, "old", &["a", "b"]).await;
    let _: String =
        redis::cmd("SAVE").query_async(&mut connect_without_deadline(&server.url()).await).await.unwrap();
    evict(&mine, &["a"]).await.unwrap();
    assert_eq!(mine.get(&a).await.unwrap(), None);
    server.kill();
    server.restart();
    let start = Instant::now();
    is_soon("the evictions are repeated", async || {
        for key in [&a, &b] {
            let found = mine.get(key).await.ok().flatten();
            assert_eq!(found, None, "{key} is back after {:?}", start.elapsed());
        }
        let (a, b) = (other.get(&a).await, other.get(&b).await);
        matches!((a, b), (Ok(None), Ok(None)))
    })
    .await;
    for key in [&a, &b] {
        stays_away(&other, key, Duration::from_millis(100)).await;
    }
}

/// A server that a failover set back has an older epoch. The next eviction must not use one that entries already carry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock_that_was_set_back_evicts_later_entries() {
    let server = RedisServer::start();
    let (store, mut conn) = (store(&server.url()), connect_without_deadline(&server.url()).await);
    let clock = "p:{p-tags}clock";
    let key = key(Some("g"), "k");
    set(&store, &key, "first", &["a"]).await;
    let earlier: Bytes = redis::cmd("GET").arg(clock).query_async(&mut conn).await.unwrap();
    for _ in 0..5 {
        evict(&store, &["x"]).await.unwrap();
    }
    set(&store, &key, "second", &["a"]).await;
    let _: String = redis::cmd("SET").arg(clock).arg(&earlier[..]).query_async(&mut conn).await.unwrap();
    let _: u64 = redis::cmd("DEL").arg("p-idx:{p-tags}evicted").query_async(&mut conn).await.unwrap();
    for other in [false, true] {
        let by = if other { self::store(&server.url()) } else { store.clone() };
        evict(&by, &["a"]).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap(), None, "evicted after the clock was set back");
        set(&store, &key, "third", &["a"]).await;
        assert!(store.get(&key).await.unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_without_room_evicts_by_forgetting_the_clock() {
    let server = RedisServer::start();
    let (store, mut conn) = (store(&server.url()), connect_without_deadline(&server.url()).await);
    let key = key(Some("g"), "k");
    set(&store, &key, "old", &["a"]).await;
    let full = ["CONFIG", "SET", "maxmemory", "1"];
    let _: String = redis::cmd(full[0]).arg(&full[1..]).query_async(&mut conn).await.unwrap();
    evict(&store, &["a"]).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap(), None);
    let _: String =
        redis::cmd("CONFIG").arg(&["SET", "maxmemory", "0"]).query_async(&mut conn).await.unwrap();
    set(&store, &key, "new", &["a"]).await;
    set(&store, &key, "new", &["a"]).await;
    assert!(store.get(&key).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_another_type_under_the_names_of_clock_and_table_are_replaced() {
    let server = RedisServer::start();
    let (store, mut conn) = (store(&server.url()), connect_without_deadline(&server.url()).await);
    let key = key(Some("g"), "k");
    let _: u64 = redis::cmd("SADD").arg("p:{p-tags}clock").arg("x").query_async(&mut conn).await.unwrap();
    let _: u64 =
        redis::cmd("SADD").arg("p-idx:{p-tags}evicted").arg("x").query_async(&mut conn).await.unwrap();
    set(&store, &key, "v", &["a"]).await;
    assert!(store.get(&key).await.unwrap().is_some());
    evict(&store, &["x"]).await.unwrap();
    assert!(store.get(&key).await.unwrap().is_some());
    evict(&store, &["a"]).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap(), None);
}

/// The clock outlasts the entries, whatever their time to live.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock_and_table_outlast_entries() {
    let server = RedisServer::start();
    let (store, mut conn) = (store(&server.url()), connect_without_deadline(&server.url()).await);
    let mut left =
        async |name: &str| -> i64 { redis::cmd("PTTL").arg(name).query_async(&mut conn).await.unwrap() };
    let stamp = store.tag_clock(&space()).await.unwrap().unwrap();
    let tagged = Tagged::new(stamp, &tags(&["a"]));
    let day = Duration::from_secs(86_400);
    store.set_tagged(&key(None, "k"), "v".into(), Some(day), &tagged).await.unwrap();
    assert!(left("p:{p-tags}clock").await >= day.as_millis() as i64);
    evict(&store, &["a"]).await.unwrap();
    assert!(left("p-idx:{p-tags}evicted").await >= day.as_millis() as i64 - 1_000);
    store.set_tagged(&key(None, "k"), "v".into(), None, &tagged).await.unwrap();
    assert_eq!((left("p:{p-tags}clock").await, left("p-idx:{p-tags}evicted").await), (-1, -1));
}

/// A tier keeps untagged entries through evictions by tag, and reads tagged ones once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tier_keeps_untagged_entries_through_evictions_by_tag() {
    let server = RedisServer::start();
    let (mine, other): (TieredStore, _) =
        (store(&server.url()).with_local("p", CAPACITY), store(&server.url()));
    let (plain, tagged) = (key(Some("g"), "plain"), key(Some("g"), "tagged"));
    mine.set(&plain, "plain".into(), MINUTE).await.unwrap();
    set(&mine, &tagged, "tagged", &["a"]).await;
    for key in [&plain, &tagged] {
        comes_here(&mine, key, Duration::from_secs(10)).await;
    }
    evict(&other, &["x"]).await.unwrap();
    is_soon("the message arrives", async || !is_here(&mine, &tagged)).await;
    // On a busy machine the tier may be out of use for a moment, but it keeps the entry.
    is_soon("the untagged entry stays", async || is_here(&mine, &plain)).await;
    comes_here(&mine, &tagged, Duration::from_secs(10)).await;
    evict(&mine, &["x"]).await.unwrap();
    assert!(!is_here(&mine, &tagged));
    is_soon("the untagged entry stays", async || is_here(&mine, &plain)).await;
    comes_here(&mine, &tagged, Duration::from_secs(10)).await;
    evict(&other, &["a"]).await.unwrap();
    is_soon("the message arrives", async || mine.get(&tagged).await.unwrap().is_none()).await;
}

/// An eviction takes the server the same time, whatever it evicts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eviction_of_many_entries_is_one_script() {
    let server = RedisServer::start();
    let (store, mut conn) = (store(&server.url()), connect_without_deadline(&server.url()).await);
    for i in 0..2_000 {
        set(&store, &key(Some("g"), &i.to_string()), "v", &["many"]).await;
    }
    let evicting = async { evict(&store, &["many"]).await.unwrap() };
    let count = commands(&mut conn, evicting).await;
    assert!(count <= 6, "{count} commands to evict 2000 entries");
    assert_eq!(store.get(&key(Some("g"), "7")).await.unwrap(), None);
}
