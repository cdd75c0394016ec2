//! Servers that lose confirmed changes: no evicted or replaced value comes back.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use deadpool_redis::{PoolConfig, Runtime, Timeouts};
use larder_core::tag::{EvictionMode, Tagged, Tags};
use larder_core::{
    Acquired, CacheKey, CacheStore, Intent, KeySpace, Larder, LeaseStore, RedisOptions, RedisStore,
    StoreError,
};
use larder_tests::proxy::{Proxy, ProxyMode};
use larder_tests::redis_cluster::{MASTERS, RedisCluster, everywhere, key};
use larder_tests::redis_server::{RedisServer, connect_without_deadline, patient, version};
use tokio::time::{Instant, sleep};

const HOLD: Duration = Duration::from_secs(60);
const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

/// The longest time until an idle process notices a loss.
const NOTICED: Duration = Duration::from_secs(1);

/// Extra time for any bound on a busy machine.
const SLACK: Duration = Duration::from_millis(500);

/// The time that a server may take to serve again.
const RECOVERY: Duration = Duration::from_secs(10);

/// The ways in which a process reaches its servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    OneConnection,
    FourConnections,
    Tier,
    Pool,
}

const WAYS: [Way; 4] = [Way::OneConnection, Way::FourConnections, Way::Tier, Way::Pool];

/// The ways with the store's own connections.
const OWN_WAYS: [Way; 3] = [Way::OneConnection, Way::FourConnections, Way::Tier];

/// A store, with or without a tier.
enum Store {
    Plain(RedisStore),
    Tiered(larder_core::TieredStore),
}

/// Calls the same function on either store.
macro_rules! on {
    ($store:expr, $name:ident($($arg:expr),*)) => {
        match $store {
            Store::Plain(store) => store.$name($($arg),*).await,
            Store::Tiered(store) => store.$name($($arg),*).await,
        }
    };
}

impl Store {
    fn of(options: RedisOptions, way: Way) -> Self {
        let options = patient(options).connect_deadline(Duration::from_millis(500));
        match way {
            Way::OneConnection | Way::Pool => Self::Plain(RedisStore::new(options)),
            Way::FourConnections => Self::Plain(RedisStore::new(options.connections(4))),
            Way::Tier => Self::Tiered(RedisStore::new(options).with_local("p", 1 << 20)),
        }
    }

    fn to(url: &str, way: Way) -> Self {
        Self::with(url, way, |options| options)
    }

    fn with(url: &str, way: Way, set: impl FnOnce(RedisOptions) -> RedisOptions) -> Self {
        let options = match way {
            Way::Pool => RedisOptions::from_pool(pool(url, PoolConfig::new(4))),
            _ => RedisOptions::from_url(url).unwrap(),
        };
        Self::of(set(options), way)
    }

    fn to_cluster(cluster: &RedisCluster, way: Way) -> Self {
        let options = match way {
            Way::Pool => RedisOptions::from_cluster_pool(cluster_pool(cluster)),
            _ => RedisOptions::from_url(&cluster.url()).unwrap(),
        };
        Self::of(options, way)
    }

    async fn get(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        on!(self, get(key))
    }

    async fn set(&self, key: &CacheKey, value: &'static str) {
        on!(self, set(key, value.into(), MINUTE)).unwrap();
    }

    async fn delete(&self, key: &CacheKey) {
        on!(self, delete(key)).unwrap();
    }

    async fn delete_group(&self, space: &KeySpace) -> Result<u64, StoreError> {
        on!(self, delete_group(space))
    }

    async fn set_tagged(&self, key: &CacheKey, value: &'static str, tag: &str) {
        let stamp = on!(self, tag_clock(&key.space())).unwrap().unwrap();
        let tagged = Tagged::new(stamp, &Tags::new([tag]).unwrap());
        on!(self, set_tagged(key, value.into(), MINUTE, &tagged)).unwrap();
    }

    async fn evict_tag(&self, tag: &str) {
        let space = KeySpace::new("p", None).unwrap();
        on!(self, evict_tags(&space, &Tags::new([tag]).unwrap(), EvictionMode::Hard)).unwrap();
    }

    async fn write(&self, key: &CacheKey, intent: Intent, value: &'static str) {
        let begun = on!(self, begin(key, intent, HOLD)).unwrap();
        let Acquired::Lease(lease) = begun else { panic!("{begun:?}") };
        assert!(on!(self, commit(key, &lease, value.into(), MINUTE)).unwrap());
    }

    /// Returns `true` if any function of the store returns the old value.
    async fn finds(&self, key: &CacheKey, old: &str) -> bool {
        let found = self.get(key).await.ok().flatten().is_some_and(|value| value == old)
            || on!(self, has(key)).unwrap_or(false);
        let begun = on!(self, begin(key, Intent::Fill, Duration::from_millis(1)));
        found || matches!(begun, Ok(Acquired::Found(value)) if value == old)
    }
}

fn pool(url: &str, config: PoolConfig) -> deadpool_redis::Pool {
    let config = deadpool_redis::Config { pool: Some(config), ..deadpool_redis::Config::from_url(url) };
    config.create_pool(Some(Runtime::Tokio1)).unwrap()
}

fn cluster_pool(cluster: &RedisCluster) -> deadpool_redis::cluster::Pool {
    let nodes: Vec<_> = (0..2 * MASTERS).map(|node| cluster.node(node).url()).collect();
    let mut config = deadpool_redis::cluster::Config::from_urls(nodes);
    let mut pool = PoolConfig::new(4);
    // As in the documentation of `RedisOptions::from_cluster_pool`.
    pool.timeouts = Timeouts {
        wait: Some(Duration::from_millis(200)),
        create: Some(Duration::from_millis(500)),
        recycle: Some(Duration::from_millis(200)),
    };
    config.pool = Some(pool);
    config.create_pool(Some(Runtime::Tokio1)).unwrap()
}

async fn raw<T: redis::FromRedisValue>(server: &RedisServer, command: &[&str]) -> T {
    let mut cmd = redis::Cmd::new();
    cmd.arg(command);
    cmd.query_async(&mut connect_without_deadline(&server.url()).await).await.unwrap()
}

async fn eventually<F: Future<Output = bool>>(what: &str, limit: Duration, mut holds: impl FnMut() -> F) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the store has a connection again.
async fn answers(store: &Store) {
    let other = KeySpace::new("elsewhere", None).unwrap().key("anything");
    eventually("an answer", RECOVERY, || async { store.get(&other).await.is_ok() }).await;
}

/// Writes keys in a group and without one, with the value `old`.
async fn written(store: &Store, names: &[&str]) -> Vec<CacheKey> {
    let keys: Vec<_> = names.iter().flat_map(|name| [key(Some("g"), name), key(None, name)]).collect();
    for key in &keys {
        store.set(key, "old").await;
    }
    keys
}

/// Asserts that the server keeps the first keys, and that the store never finds the others there.
async fn kept_and_evicted(
    store: &Store,
    server: &RedisServer,
    way: Way,
    (kept, evicted): (&[CacheKey], &[CacheKey]),
) {
    for key in evicted {
        assert!(!store.finds(key, "old").await, "{way:?}: {key}");
    }
    sleep(NOTICED + SLACK).await;
    for key in kept {
        assert_eq!(store.get(key).await.unwrap().as_deref(), Some(&b"old"[..]), "{way:?}: {key}");
    }
    for key in evicted {
        assert_eq!(raw::<u64>(server, &["EXISTS", key.name()]).await, 0, "{way:?}: {key}");
    }
}

/// Writes keys, and makes the server save them.
async fn saved(server: &RedisServer, store: &Store, names: &[&str]) -> Vec<CacheKey> {
    let keys = written(store, names).await;
    let _: String = raw(server, &["SAVE"]).await;
    keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_read_from_a_restored_snapshot_finds_nothing_evicted() {
    for way in WAYS {
        let mut server = RedisServer::start();
        let store = Store::to(&server.url(), way);
        for _ in 0..5 {
            let keys = saved(&server, &store, &["a"]).await;
            for key in &keys {
                store.delete(key).await;
            }
            server.restart();
            for key in &keys {
                assert!(!store.finds(key, "old").await, "{way:?}: {key}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_in_flight_while_another_server_takes_the_address_find_nothing_evicted() {
    for way in WAYS {
        let (server, other) = (RedisServer::start(), RedisServer::start());
        let proxy = Proxy::to(server.port()).await;
        let store = Store::to(&proxy.url(), way);
        let keys = [key(Some("g"), "a"), key(None, "a")];
        let outdated = Store::to(&other.url(), Way::OneConnection);
        for key in &keys {
            outdated.set(key, "old").await;
            store.set(key, "old").await;
            store.delete(key).await;
        }
        proxy.set_mode(ProxyMode::BlackHole);
        let reads = futures_util::future::join_all((0..40).map(|n| store.get(&keys[n % 2])));
        let begins = futures_util::future::join_all(keys.iter().map(|key| store.finds(key, "old")));
        let takeover = async {
            sleep(Duration::from_millis(20)).await;
            proxy.redirect(other.port());
            proxy.set_mode(ProxyMode::Forward);
        };
        let (reads, begins, ()) = tokio::join!(reads, begins, takeover);
        for read in reads {
            assert!(!matches!(read, Ok(Some(_))), "{way:?}: {read:?}");
        }
        assert_eq!(begins, [false, false], "{way:?}");
        for key in &keys {
            assert!(!store.finds(key, "old").await, "{way:?}: {key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_process_repeats_its_evictions_within_a_second() {
    for way in WAYS {
        let mut server = RedisServer::start();
        let (idle, reader) = (Store::to(&server.url(), way), Store::to(&server.url(), Way::OneConnection));
        let keys = saved(&server, &idle, &["a", "b"]).await;
        for key in &keys[..2] {
            idle.delete(key).await;
        }
        idle.delete_group(&key(Some("g"), "b").space()).await.unwrap();
        idle.delete(&keys[3]).await;
        server.restart();
        let restarted = Instant::now();
        answers(&reader).await;
        sleep(NOTICED.saturating_sub(restarted.elapsed()) + SLACK).await;
        for key in &keys {
            assert_eq!(reader.get(key).await.unwrap(), None, "{way:?}: {key}");
        }
        for key in &keys {
            assert!(!idle.finds(key, "old").await, "{way:?}: {key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_replaced_behind_open_connections_is_noticed_within_a_second() {
    for way in WAYS {
        let (server, other) =
            (RedisServer::start(), RedisServer::with_args(&["--repl-diskless-sync-delay", "0"]));
        let idle = Store::to(&server.url(), way);
        let outdated = Store::to(&other.url(), Way::OneConnection);
        let keys = [key(Some("g"), "a"), key(None, "a")];
        for key in &keys {
            outdated.set(key, "old").await;
            idle.set(key, "old").await;
            idle.delete(key).await;
        }
        // Like a master that is demoted and promoted again.
        let _: String = raw(&server, &["REPLICAOF", "127.0.0.1", &other.port().to_string()]).await;
        eventually("a copy", RECOVERY, || async {
            raw::<String>(&server, &["INFO", "replication"]).await.contains("master_link_status:up")
        })
        .await;
        let _: String = raw(&server, &["REPLICAOF", "NO", "ONE"]).await;
        sleep(NOTICED + SLACK).await;
        for key in &keys {
            assert_eq!(raw::<u64>(&server, &["EXISTS", key.name()]).await, 0, "{way:?}: {key}");
            assert!(!idle.finds(key, "old").await, "{way:?}: {key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn predecessor_of_a_confirmed_write_becomes_a_miss() {
    for way in WAYS {
        let mut server = RedisServer::start();
        let store = Store::to(&server.url(), way);
        let names = ["set", "set after delete", "write-through", "refresh", "update"];
        let keys = saved(&server, &store, &names).await;
        for pair in keys.chunks(2).zip(0..) {
            let (pair, number) = pair;
            for key in pair {
                match number {
                    0 => store.set(key, "new").await,
                    1 => {
                        store.delete(key).await;
                        store.set(key, "new").await;
                    }
                    2 => store.write(key, Intent::Write, "new").await,
                    _ => store.write(key, Intent::Refresh, "new").await,
                }
            }
        }
        server.restart();
        for key in &keys {
            assert!(!store.finds(key, "old").await, "{way:?}: {key}");
        }
        eventually("all are evicted", RECOVERY, || async {
            let mut left = 0;
            for key in &keys {
                left += raw::<u64>(&server, &["EXISTS", key.name()]).await;
            }
            left == 0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn predecessor_of_an_updated_value_becomes_a_miss() {
    let mut server = RedisServer::start();
    let larder = Larder::redis(&server.url()).unwrap();
    let backend = larder.backend();
    for expected in [1, 2] {
        let updated = backend.update("n", 60, |n: Option<u64>| n.unwrap_or(0) + 1).await;
        assert_eq!(updated.unwrap(), expected);
        if expected == 1 {
            let _: String = raw(&server, &["SAVE"]).await;
        }
    }
    server.restart();
    eventually("a value", RECOVERY, || async {
        let updated = backend.update("n", 60, |n: Option<u64>| n.unwrap_or(0) + 10).await;
        assert!(!matches!(updated, Ok(11)), "counted on from a lost value");
        updated.is_ok()
    })
    .await;
    assert_eq!(backend.get::<u64>("n").await, Some(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eviction_that_runs_while_the_server_changes_is_repeated() {
    for (way, whole) in [(Way::OneConnection, false), (Way::OneConnection, true), (Way::Pool, false)] {
        let (server, other) = (RedisServer::start(), RedisServer::start());
        let proxy = Proxy::to(server.port()).await;
        let store = Store::to(&proxy.url(), way);
        let names: Vec<String> = (0..2000).map(|n| format!("k{n}")).collect();
        let keys: Vec<_> = names.iter().map(|name| key(Some("g"), name)).collect();
        let outdated = Store::to(&other.url(), Way::OneConnection);
        for store in [&store, &outdated] {
            for keys in keys.chunks(100) {
                futures_util::future::join_all(keys.iter().map(|key| store.set(key, "old"))).await;
            }
        }
        let space = if whole { KeySpace::new("p", None).unwrap() } else { keys[0].space() };
        // Slow enough that the eviction has started, and fast enough that it isn't finished.
        proxy.set_mode(ProxyMode::Slow(Duration::from_millis(2)));
        let takeover = async {
            sleep(Duration::from_millis(15)).await;
            proxy.redirect(other.port());
        };
        let (_outcome, ()) = tokio::join!(store.delete_group(&space), takeover);
        proxy.set_mode(ProxyMode::Forward);
        sleep(NOTICED + SLACK).await;
        for key in &keys {
            assert_eq!(outdated.get(key).await.unwrap(), None, "{way:?}: {key}");
        }
    }
}

/// A replica that receives its master's writes through this proxy.
async fn replica_of(master: &RedisServer, proxy: &Proxy) -> RedisServer {
    let replica = RedisServer::start();
    let _: String = raw(&replica, &["REPLICAOF", "127.0.0.1", &proxy.port().to_string()]).await;
    eventually("a replica", RECOVERY, || async {
        raw::<String>(master, &["INFO", "replication"]).await.contains("state=online")
    })
    .await;
    replica
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_that_waits_for_replicas_is_on_them_when_it_is_confirmed() {
    const LAG: Duration = Duration::from_millis(20);
    for way in WAYS {
        let master = RedisServer::with_args(&["--repl-diskless-sync-delay", "0"]);
        let proxy = Proxy::to(master.port()).await;
        let replica = replica_of(&master, &proxy).await;
        proxy.set_mode(ProxyMode::Slow(LAG));
        let store =
            Store::with(&master.url(), way, |options| options.wait_for_replicas(1, Duration::from_secs(5)));
        let first = key(None, "first");
        eventually("a connection", RECOVERY, async || on!(&store, set(&first, "1".into(), MINUTE)).is_ok())
            .await;
        let has = async |key: &CacheKey| raw::<u64>(&replica, &["EXISTS", key.name()]).await == 1;
        for group in [None, Some("g")] {
            let large = key(group, "large");
            on!(&store, set(&large, vec![b'x'; 100_000].into(), MINUTE)).unwrap();
            assert!(has(&large).await, "{way:?}: {large}");
            for name in ["set", "write-through", "refresh"] {
                let key = key(group, name);
                match name {
                    "set" => store.set(&key, "value").await,
                    "write-through" => store.write(&key, Intent::Write, "value").await,
                    _ => store.write(&key, Intent::Refresh, "value").await,
                }
                assert!(has(&key).await, "{way:?}: {key}");
                store.delete(&key).await;
                assert!(!has(&key).await, "{way:?}: {key}");
            }
        }
        for space in [KeySpace::new("p", Some("g")).unwrap(), KeySpace::new("p", None).unwrap()] {
            let keys = [key(Some("g"), "a"), key(None, "a")];
            for key in &keys {
                store.set(key, "old").await;
            }
            store.delete_group(&space).await.unwrap();
            // A group is invalid as soon as its nonce is deleted.
            let names = if space.group().is_some() {
                &[space.head().trim_end_matches(':')][..]
            } else {
                &[keys[1].name()]
            };
            for name in names {
                assert_eq!(raw::<u64>(&replica, &["EXISTS", name]).await, 0, "{way:?}: {name}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_that_too_few_replicas_have_is_not_confirmed() {
    const PATIENCE: Duration = Duration::from_millis(200);
    for way in WAYS {
        let master = RedisServer::with_args(&["--repl-diskless-sync-delay", "0"]);
        let proxy = Proxy::to(master.port()).await;
        let replica = replica_of(&master, &proxy).await;
        let store = Store::with(&master.url(), way, |options| options.wait_for_replicas(1, PATIENCE));
        let other = key(None, "other");
        // Without the option: a busy machine may need more time than the replica has.
        let plain = Store::to(&master.url(), Way::OneConnection);
        plain.set(&other, "kept").await;
        let keys = written(&plain, &["set", "delete", "group", "write-through", "refresh"]).await;
        replica.pause();
        for (pair, number) in keys.chunks(2).zip(0..) {
            for key in pair {
                let is_refused = match number {
                    0 => on!(&store, set(key, "new".into(), MINUTE)).is_err(),
                    1 => on!(&store, delete(key)).is_err(),
                    2 if key.group().is_some() => continue,
                    2 => store.delete_group(&pair[0].space()).await.is_err(),
                    _ => {
                        let intent = if number == 3 { Intent::Write } else { Intent::Refresh };
                        match on!(&store, begin(key, intent, HOLD)).unwrap() {
                            Acquired::Lease(lease) => {
                                !matches!(on!(&store, commit(key, &lease, "new".into(), MINUTE)), Ok(true))
                            }
                            _ => true,
                        }
                    }
                };
                assert!(is_refused, "{way:?}: {key}");
                let found = store.get(key).await.unwrap();
                assert!(found.is_none() || number == 2, "{way:?}: {key}");
            }
        }
        // Reads, and fills of missing entries, don't wait. If they did, each would, so the fastest shows it on a busy machine too.
        let mut fastest = Duration::MAX;
        for name in 0..10 {
            let start = Instant::now();
            assert_eq!(store.get(&other).await.unwrap().unwrap(), "kept", "{way:?}");
            store.write(&key(None, &format!("filled{name}")), Intent::Fill, "value").await;
            fastest = fastest.min(start.elapsed());
        }
        assert!(fastest < PATIENCE, "{way:?}: {fastest:?}");
        replica.resume();
        eventually("every eviction is confirmed", RECOVERY, || async {
            on!(&store, set(&keys[0], "after".into(), MINUTE)).is_ok()
                && store.get(&keys[0]).await.unwrap().is_some()
        })
        .await;
        let kept = key(None, "group");
        for key in keys.iter().filter(|key| **key != kept) {
            let is_gone = async || store.get(key).await.unwrap().is_none_or(|value| value != "old");
            eventually("nothing old", RECOVERY, is_gone).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_in_a_cluster_waits_for_replicas_of_its_own_master() {
    for way in [Way::OneConnection, Way::Pool] {
        let cluster = cluster().await;
        let plain = Store::to_cluster(&cluster, way);
        let homes = with_lagging_replica(&cluster, &plain).await;
        let options = match way {
            Way::Pool => RedisOptions::from_cluster_pool(cluster_pool(&cluster)),
            _ => RedisOptions::from_url(&cluster.url()).unwrap(),
        };
        let store = Store::of(options.wait_for_replicas(1, Duration::from_millis(300)), way);
        for key in &homes[0] {
            on!(&store, delete(key)).unwrap_err();
        }
        for key in homes[1].iter().chain(&homes[2]) {
            store.delete(key).await;
        }
        let whole = KeySpace::new("p", None).unwrap();
        store.delete_group(&whole).await.unwrap_err();
        for setting in ["masteruser", "masterauth"] {
            cluster.cli(MASTERS, &["config", "set", setting, ""]);
        }
        eventually("the prefix is evicted", RECOVERY, || async { store.delete_group(&whole).await.is_ok() })
            .await;
        for key in homes.iter().flatten() {
            assert_eq!(plain.get(key).await.unwrap(), None, "{way:?}: {key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_pool_causes_no_errors() {
    let server = RedisServer::start();
    let mut config = PoolConfig::new(1);
    config.timeouts.wait = Some(Duration::from_millis(1));
    let options = RedisOptions::from_pool(pool(&server.url(), config));
    let store = RedisStore::new(patient(options));
    let key = key(None, "a");
    store.set(&key, "1".into(), MINUTE).await.unwrap();
    let callers = (0..20).map(|_| async {
        for _ in 0..40 {
            assert_eq!(store.get(&key).await.unwrap().unwrap(), "1");
        }
    });
    futures_util::future::join_all(callers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_waits_until_pending_evictions_are_confirmed() {
    let mut server = RedisServer::start();
    let store = Store::to(&server.url(), Way::OneConnection);
    let keys = saved(&server, &store, &["a"]).await;
    server.kill();
    let Store::Plain(store) = store else { unreachable!() };
    for key in &keys {
        store.delete(key).await.unwrap_err();
    }
    let closing = async {
        let start = Instant::now();
        store.close().await;
        start.elapsed()
    };
    let restart = async {
        sleep(Duration::from_millis(700)).await;
        tokio::task::block_in_place(|| server.restart());
    };
    let (took, ()) = tokio::join!(closing, restart);
    assert!(took < Duration::from_secs(5) + SLACK, "{took:?}");
    for key in &keys {
        assert_eq!(raw::<u64>(&server, &["EXISTS", key.name()]).await, 0, "{key}");
    }
}

async fn cluster() -> RedisCluster {
    tokio::task::spawn_blocking(RedisCluster::start).await.unwrap()
}

/// A process that uses a cluster, with keys of its own on every master.
struct Process {
    way: Way,
    store: Store,
    homes: Vec<Vec<CacheKey>>,
}

/// Returns a process for each way, with `count` keys on every master, written with this value.
async fn processes(cluster: &RedisCluster, ways: &[Way], count: usize, value: &'static str) -> Vec<Process> {
    let homes = everywhere(cluster, count * ways.len());
    let mut processes = Vec::new();
    for (way, number) in ways.iter().zip(0..) {
        let share = number * count..(number + 1) * count;
        let homes = homes.iter().map(|keys| keys[share.clone()].to_vec()).collect();
        let process = Process { way: *way, store: Store::to_cluster(cluster, *way), homes };
        for key in process.keys() {
            process.store.set(key, value).await;
        }
        processes.push(process);
    }
    processes
}

impl Process {
    fn keys(&self) -> impl Iterator<Item = &CacheKey> {
        self.homes.iter().flatten()
    }

    async fn deletes_all(&self) {
        for key in self.keys() {
            self.store.delete(key).await;
        }
    }

    /// Asserts that neither this process nor the reader finds an old value of master 0.
    async fn finds_nothing_old(&self, reader: Option<&Store>) {
        for key in &self.homes[0] {
            for store in reader.into_iter().chain([&self.store]) {
                assert!(!store.finds(key, "old").await, "{:?}: {key}", self.way);
            }
        }
    }
}

/// Writes keys of every master, which all nodes have with the value `old`. From then on the replica of master 0 receives no
/// writes.
async fn with_lagging_replica(cluster: &RedisCluster, store: &Store) -> Vec<Vec<CacheKey>> {
    let homes = everywhere(cluster, 6);
    for key in homes.iter().flatten() {
        store.set(key, "old").await;
    }
    stop_replication(cluster).await;
    homes
}

/// Waits until the replica of master 0 has all writes. From then on it receives none.
async fn stop_replication(cluster: &RedisCluster) {
    eventually("a replica that has everything", RECOVERY, || {
        let size = |node| cluster.cli(node, &["dbsize"]);
        std::future::ready(size(0) == size(MASTERS))
    })
    .await;
    // The replica logs in as a user that the master doesn't know. A master that hangs and continues would also do, but then Redis
    // 8.2 may hang forever: it takes old messages for new ones, and both nodes for replicas of each other.
    for setting in ["masteruser", "masterauth"] {
        cluster.cli(MASTERS, &["config", "set", setting, "unknown"]);
    }
    cluster.cli(MASTERS, &["client", "kill", "type", "master"]);
    eventually("a replica without a link", RECOVERY, || {
        std::future::ready(cluster.cli(MASTERS, &["info", "replication"]).contains("master_link_status:down"))
    })
    .await;
}

/// Promotes the replica with the data that it has.
async fn takes_over(cluster: &RedisCluster) {
    cluster.cli(MASTERS, &["cluster", "failover", "takeover"]);
    eventually("the others know", RECOVERY, || {
        std::future::ready((1..=MASTERS).all(|node| cluster.serves(node)))
    })
    .await;
}

/// Promotes a replica that has all data of its master.
async fn promote(cluster: &RedisCluster, replica: usize) {
    let start = Instant::now();
    while !cluster.cli(replica, &["info", "replication"]).contains("role:master") {
        assert!(start.elapsed() < RECOVERY, "never promoted");
        cluster.cli(replica, &["cluster", "failover"]);
        sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_process_repeats_its_evictions_at_a_promoted_replica_within_a_second() {
    let mut cluster = cluster().await;
    let idle = processes(&cluster, &WAYS, 6, "old").await;
    stop_replication(&cluster).await;
    for process in &idle {
        process.deletes_all().await;
    }
    cluster.node_mut(0).kill();
    takes_over(&cluster).await;
    let promoted = Instant::now();
    let reader = Store::to_cluster(&cluster, Way::OneConnection);
    answers(&reader).await;
    sleep(NOTICED.saturating_sub(promoted.elapsed()) + SLACK).await;
    for process in &idle {
        process.finds_nothing_old(Some(&reader)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_during_a_failover_find_nothing_evicted() {
    let mut cluster = cluster().await;
    let readers = processes(&cluster, &WAYS, 6, "old").await;
    stop_replication(&cluster).await;
    for process in &readers {
        process.deletes_all().await;
    }
    cluster.node_mut(0).kill();
    let is_over = AtomicBool::new(false);
    let reads = readers.iter().map(async |process| {
        let mut is_served = false;
        while !is_over.load(Ordering::Relaxed) {
            process.finds_nothing_old(None).await;
            for key in &process.homes[0] {
                is_served |= process.store.get(key).await.is_ok();
            }
            sleep(Duration::from_millis(1)).await;
        }
        assert!(is_served, "{:?}: the promoted replica was never read", process.way);
    });
    let failover = async {
        takes_over(&cluster).await;
        sleep(2 * NOTICED).await;
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(futures_util::future::join_all(reads), failover);
}

/// Entries and tags lie on different masters. The tag clock of the prefix `p` is on master 0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_whose_tag_was_evicted_before_a_failover_stay_invalid() {
    let failovers = [Way::OneConnection, Way::Tier].map(async |way| {
        let mut cluster = cluster().await;
        assert_eq!(RedisCluster::home(cluster.slot("{p-tags}")), 0);
        let (idle, reader) = (Store::to_cluster(&cluster, way), Store::to_cluster(&cluster, way));
        let homes = everywhere(&cluster, 4);
        let (evicted, kept): (Vec<_>, Vec<_>) = homes.iter().map(|home| home.split_at(2)).unzip();
        let [evicted, kept] = [evicted.concat(), kept.concat()];
        for (keys, tag) in [(&evicted, "evicted"), (&kept, "kept")] {
            for key in keys {
                idle.set_tagged(key, "old", tag).await;
                assert!(reader.finds(key, "old").await && idle.finds(key, "old").await);
            }
        }
        stop_replication(&cluster).await;
        idle.evict_tag("evicted").await;
        cluster.node_mut(0).kill();
        takes_over(&cluster).await;
        let promoted = Instant::now();
        while promoted.elapsed() < NOTICED + SLACK {
            for key in &evicted {
                assert!(!idle.finds(key, "old").await, "{way:?}: {key}");
            }
            sleep(Duration::from_millis(5)).await;
        }
        for key in &evicted {
            assert!(!reader.finds(key, "old").await, "{way:?}: {key}");
        }
        // The promoted replica may lack the last writes, so its entries may be evicted too.
        for key in &kept[2..] {
            assert!(reader.finds(key, "old").await && idle.finds(key, "old").await, "{way:?}: {key}");
        }
    });
    futures_util::future::join_all(failovers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_that_is_undone_is_noticed_within_a_second() {
    let cluster = cluster().await;
    let idle = processes(&cluster, &WAYS, 6, "old").await;
    stop_replication(&cluster).await;
    for process in &idle {
        process.deletes_all().await;
    }
    takes_over(&cluster).await;
    eventually("the old master follows", RECOVERY, || {
        let replication = cluster.cli(0, &["info", "replication"]);
        std::future::ready(
            replication.contains("role:slave") && replication.contains("master_link_status:up"),
        )
    })
    .await;
    promote(&cluster, 0).await;
    sleep(NOTICED + SLACK).await;
    for process in &idle {
        for key in &process.homes[0] {
            assert_eq!(cluster.cli(0, &["exists", key.name()]), "0", "{:?}: {key}", process.way);
        }
        process.finds_nothing_old(None).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_without_losses_keeps_all_entries() {
    let cluster = cluster().await;
    let processes = processes(&cluster, &[OWN_WAYS, OWN_WAYS].concat(), 6, "kept").await;
    let (idle, busy) = processes.split_at(OWN_WAYS.len());
    // Leaves time for the masters to report the positions of their histories.
    sleep(NOTICED).await;
    let reads = futures_util::future::join_all(busy.iter().map(async |process| {
        loop {
            for key in process.keys() {
                let _ = process.store.get(key).await;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }));
    let failover = async {
        promote(&cluster, MASTERS).await;
        sleep(NOTICED + SLACK).await;
    };
    tokio::select! {
        () = failover => {}
        _ = reads => {}
    }
    for (processes, is_busy) in [(idle, false), (busy, true)] {
        for Process { way, store, homes } in processes {
            for key in homes.iter().flatten() {
                let found = store.get(key).await.unwrap();
                assert_eq!(found.as_deref(), Some(&b"kept"[..]), "{way:?}, busy: {is_busy}: {key}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takeover_evicts_only_entries_outdated_on_the_replica() {
    let cluster = cluster().await;
    let processes = processes(&cluster, &OWN_WAYS, 12, "old").await;
    sleep(NOTICED).await;
    stop_replication(&cluster).await;
    for Process { store, homes, .. } in &processes {
        for key in &homes[0][..3] {
            store.delete(key).await;
        }
        for key in &homes[0][3..6] {
            store.set(key, "new").await;
        }
    }
    // Leaves time for a position that is after the changes which the replica lacks.
    sleep(NOTICED).await;
    takes_over(&cluster).await;
    sleep(NOTICED + SLACK).await;
    for Process { way, store, homes } in &processes {
        let (evicted, kept) = homes[0].split_at(6);
        for key in evicted {
            assert!(!store.finds(key, "old").await, "{way:?}: {key}");
            assert_eq!(cluster.cli(MASTERS, &["exists", key.name()]), "0", "{way:?}: {key}");
        }
        for key in kept.iter().chain(&homes[1]).chain(&homes[2]) {
            assert_eq!(store.get(key).await.unwrap().as_deref(), Some(&b"old"[..]), "{way:?}: {key}");
        }
    }
}

/// A master and its replica, and an address that leads to the master until it is redirected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_that_takes_the_address_keeps_replicated_entries() {
    for way in OWN_WAYS {
        let master = RedisServer::with_args(&["--repl-diskless-sync-delay", "0"]);
        let (replication, address) = (Proxy::to(master.port()).await, Proxy::to(master.port()).await);
        let replica = replica_of(&master, &replication).await;
        let store = Store::to(&address.url(), way);
        let keys = written(&store, &["kept", "deleted", "replaced"]).await;
        sleep(NOTICED).await;
        eventually("a replica that has everything", RECOVERY, async || {
            raw::<u64>(&replica, &["DBSIZE"]).await == raw::<u64>(&master, &["DBSIZE"]).await
        })
        .await;
        replication.set_mode(ProxyMode::BlackHole);
        for key in &keys[2..4] {
            store.delete(key).await;
        }
        for key in &keys[4..] {
            store.set(key, "new").await;
        }
        sleep(NOTICED).await;
        let _: String = raw(&replica, &["REPLICAOF", "NO", "ONE"]).await;
        address.redirect(replica.port());
        answers(&store).await;
        kept_and_evicted(&store, &replica, way, keys.split_at(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_snapshot_keeps_entries_confirmed_before_it_was_saved() {
    // After a restart, Redis 6 doesn't know which history its snapshot continues.
    if version() < (7, 0) {
        return;
    }
    for way in OWN_WAYS {
        // A server without a replica keeps no history of writes.
        let mut master = RedisServer::with_args(&["--repl-diskless-sync-delay", "0"]);
        let proxy = Proxy::to(master.port()).await;
        let _replica = replica_of(&master, &proxy).await;
        let store = Store::to(&master.url(), way);
        let keys = written(&store, &["kept", "deleted", "replaced"]).await;
        sleep(NOTICED).await;
        let _: String = raw(&master, &["SAVE"]).await;
        for key in &keys[2..4] {
            store.delete(key).await;
        }
        for key in &keys[4..] {
            store.set(key, "new").await;
        }
        sleep(NOTICED).await;
        master.restart();
        kept_and_evicted(&store, &master, way, keys.split_at(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_evicts_only_in_its_slots_while_another_master_hangs() {
    let mut cluster = cluster().await;
    let store = Store::to_cluster(&cluster, Way::OneConnection);
    let homes = with_lagging_replica(&cluster, &store).await;
    let evicted: Vec<_> = (0..1500).map(|n| key(None, &format!("evicted{n}"))).collect();
    for keys in evicted.chunks(50) {
        futures_util::future::join_all(keys.iter().map(|key| store.delete(key))).await;
    }
    for key in &homes[0] {
        store.delete(key).await;
    }
    // Its own replica is down, because it would be promoted otherwise.
    cluster.node_mut(MASTERS + 2).kill();
    cluster.node(2).pause();
    cluster.cli(MASTERS, &["cluster", "failover", "takeover"]);
    let start = Instant::now();
    // The cluster stops serving when it considers the hung master failed.
    while start.elapsed() < Duration::from_millis(800) {
        for key in &homes[0] {
            assert!(!store.finds(key, "old").await, "{key}");
        }
        for key in &homes[1] {
            assert_eq!(store.get(key).await.unwrap().as_deref(), Some(&b"old"[..]), "{key}");
        }
        sleep(Duration::from_millis(5)).await;
    }
    cluster.node(2).resume();
    eventually("the evictions are repeated", RECOVERY, || {
        let left = homes[0].iter().any(|key| cluster.cli(MASTERS, &["exists", key.name()]) != "0");
        std::future::ready(!left)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefix_evicted_during_a_failover_is_evicted_from_the_promoted_replica() {
    for way in WAYS {
        // The other nodes don't learn during the test that the old master is down. For them it is a master without slots.
        let start = || RedisCluster::with_args(&["--cluster-node-timeout", "5000"]);
        let mut cluster = tokio::task::spawn_blocking(start).await.unwrap();
        let store = Store::to_cluster(&cluster, way);
        let homes = with_lagging_replica(&cluster, &store).await;
        let whole = KeySpace::new("p", None).unwrap();
        let evictions = async {
            // Some evictions before the failover, and at least one during it.
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(500) {
                let _outcome = store.delete_group(&whole).await;
            }
        };
        let failover = async {
            sleep(Duration::from_millis(100)).await;
            cluster.node_mut(0).kill();
            takes_over(&cluster).await;
        };
        tokio::join!(evictions, failover);
        sleep(NOTICED + SLACK).await;
        let reader = Store::to_cluster(&cluster, Way::OneConnection);
        answers(&reader).await;
        for key in homes.iter().flatten() {
            assert!(!reader.finds(key, "old").await, "{way:?}: {key}");
            assert!(!store.finds(key, "old").await, "{way:?}: {key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_evicts_only_in_its_slots() {
    let cluster = cluster().await;
    let store = Store::to_cluster(&cluster, Way::OneConnection);
    let homes = everywhere(&cluster, 4);
    for key in homes.iter().flatten() {
        store.set(key, "kept").await;
    }
    let evicted: Vec<_> = (0..1500).map(|n| key(None, &format!("evicted{n}"))).collect();
    for keys in evicted.chunks(50) {
        futures_util::future::join_all(keys.iter().map(|key| store.delete(key))).await;
    }
    promote(&cluster, MASTERS).await;
    let noticed = Instant::now();
    while noticed.elapsed() < 2 * NOTICED {
        for key in homes[1].iter().chain(&homes[2]) {
            assert_eq!(store.get(key).await.unwrap().as_deref(), Some(&b"kept"[..]), "{key}");
        }
        sleep(Duration::from_millis(5)).await;
    }
    // A recent write may have a predecessor on the new master. An entry written after the failover is kept.
    let fresh = &homes[0][0];
    store.set(fresh, "new").await;
    assert_eq!(store.get(fresh).await.unwrap().unwrap(), "new");
}
