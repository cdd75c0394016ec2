//! The Redis store on a real cluster: the behaviour suite, slots that move under load, and masters that die.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use larder_core::store::suite::{self, Subject};
use larder_core::{
    Acquired, CacheKey, CacheStore, Intent, KeySpace, Larder, LeaseStore, RedisOptions, RedisStore,
    StoreError,
};
use larder_tests::redis_cluster::{MASTERS, RedisCluster, everywhere, key};
use larder_tests::redis_server::{self, allow_debug};
use tokio::time::{Instant, sleep};

const HOLD: Duration = Duration::from_secs(10);
const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

/// Extra time for a call's deadline on a busy machine.
const SLACK: Duration = Duration::from_millis(250);

async fn start() -> RedisCluster {
    start_with(&[]).await
}

async fn start_with(args: &'static [&'static str]) -> RedisCluster {
    tokio::task::spawn_blocking(|| RedisCluster::with_args(args)).await.unwrap()
}

fn prompt(cluster: &RedisCluster) -> RedisStore {
    RedisStore::new(RedisOptions::from_url(&cluster.url()).unwrap())
}

/// A store with long deadlines, for a busy machine.
fn patient(cluster: &RedisCluster) -> RedisStore {
    RedisStore::new(redis_server::patient(RedisOptions::from_url(&cluster.url()).unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_passes_the_suite() {
    let cluster = start().await;
    suite::run(&Subject::new(patient(&cluster))).await;
    suite::run_leases(&Subject::new(patient(&cluster))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_master_stores_its_keys_and_runs_scripts() {
    let cluster = start().await;
    let store = patient(&cluster);
    let homes = everywhere(&cluster, 10);
    for (home, keys) in homes.iter().enumerate() {
        for key in keys {
            // Each script is unknown to its node at first, and again after the flush.
            let Acquired::Lease(lease) = store.begin(key, Intent::Fill, HOLD).await.unwrap() else {
                panic!()
            };
            assert!(store.renew(key, &lease, HOLD).await.unwrap());
            cluster.cli(home, &["script", "flush"]);
            assert!(store.commit(key, &lease, "1".into(), MINUTE).await.unwrap());
            assert!(store.has(key).await.unwrap());
        }
    }
    for keys in &homes {
        for key in keys {
            assert_eq!(store.get(key).await.unwrap().unwrap(), "1", "{key}");
        }
        assert!(store.delete(&keys[0]).await.unwrap());
        let grouped = keys.iter().find(|key| key.group().is_some() && **key != keys[0]).unwrap();
        assert!(store.delete_group(&grouped.space()).await.unwrap() > 0);
        assert_eq!(store.get(grouped).await.unwrap(), None);
    }
    let sizes: Vec<_> = (0..MASTERS).map(|node| cluster.cli(node, &["dbsize"])).collect();
    assert!(sizes.iter().all(|size| size != "0"), "{sizes:?}");

    // A prefix has keys on every master, and so does its eviction.
    let neighbour = KeySpace::new("q", Some("g")).unwrap().key("a");
    store.set(&neighbour, "stays".into(), MINUTE).await.unwrap();
    for key in homes.iter().flatten() {
        store.set(key, "2".into(), MINUTE).await.unwrap();
    }
    let whole = KeySpace::new("p", None).unwrap();
    assert_eq!(store.delete_group(&whole).await.unwrap(), homes.iter().flatten().count() as u64);
    for key in homes.iter().flatten() {
        assert_eq!(store.get(key).await.unwrap(), None, "{key}");
    }
    assert_eq!(store.get(&neighbour).await.unwrap().unwrap(), "stays");
}

#[tokio::test]
async fn one_reachable_seed_is_enough() {
    let mut cluster = start().await;
    let port = |node: usize| cluster.node(node).port();
    let long = Duration::from_secs(5);
    let [alone, replica, dead] = [
        RedisOptions::new("127.0.0.1", port(1)).cluster(true),
        RedisOptions::new("127.0.0.1", port(4)).cluster(true),
        RedisOptions::new("127.0.0.1", 1).node("127.0.0.1", port(2)),
    ]
    .map(|options| RedisStore::new(options.read_deadline(long).fill_deadline(long)));
    for (number, store) in [&alone, &replica, &dead].into_iter().enumerate() {
        for key in everywhere(&cluster, 1).into_iter().flatten() {
            store.set(&key, Bytes::from(number.to_string()), MINUTE).await.unwrap();
            assert_eq!(store.get(&key).await.unwrap().unwrap(), number.to_string());
        }
    }
    let key = key(None, "a");
    let numbered = RedisStore::new(RedisOptions::new("127.0.0.1", port(0)).cluster(true).db(1));
    assert!(matches!(numbered.get(&key).await, Err(StoreError::Unavailable(_))));

    for node in 0..2 * MASTERS {
        cluster.node_mut(node).kill();
    }
    let unreachable = prompt(&cluster);
    for _ in 0..3 {
        let start = Instant::now();
        assert!(matches!(unreachable.get(&key).await, Err(StoreError::Unavailable(_))));
        assert!(start.elapsed() < Duration::from_millis(50) + SLACK, "{:?}", start.elapsed());
    }
    sleep(Duration::from_millis(200)).await;
    let start = Instant::now();
    for _ in 0..1000 {
        assert!(matches!(unreachable.get(&key).await, Err(StoreError::Unavailable(_))));
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?} for 1,000 calls", start.elapsed());
    unreachable.close().await;
    assert!(matches!(unreachable.get(&key).await, Err(StoreError::Unavailable(_))));
}

#[tokio::test]
async fn confirmed_eviction_is_repeated_at_a_promoted_replica() {
    let mut cluster = start().await;
    // A store that has not connected to the replica before.
    let (long, port) = (Duration::from_secs(5), cluster.node(1).port());
    let options = RedisOptions::new("127.0.0.1", port).cluster(true);
    let store = RedisStore::new(options.read_deadline(long).fill_deadline(long).evict_deadline(long));
    let homes = everywhere(&cluster, 4);
    for key in homes.iter().flatten() {
        store.set(key, "old".into(), MINUTE).await.unwrap();
    }
    // The replica of node 0 has all entries, and receives nothing more.
    let size = |cluster: &RedisCluster, node| cluster.cli(node, &["dbsize"]);
    while size(&cluster, 0) != size(&cluster, MASTERS) {
        sleep(Duration::from_millis(10)).await;
    }
    cluster.cli(MASTERS, &["save"]);
    cluster.node_mut(MASTERS).kill();
    for key in homes.iter().flatten() {
        assert!(store.delete(key).await.unwrap());
    }
    cluster.node_mut(0).kill();
    cluster.node_mut(MASTERS).restart();
    assert_ne!(size(&cluster, MASTERS).trim(), "0");
    cluster.cli(MASTERS, &["cluster", "failover", "takeover"]);

    let start = Instant::now();
    let mut gone = 0;
    while gone < 20 {
        let mut all = true;
        for key in &homes[0] {
            let seen = store.get(key).await;
            assert!(!matches!(seen, Ok(Some(_))), "{key} is stale: {seen:?}");
            all &= seen.is_ok();
        }
        let exists = |key: &CacheKey| cluster.cli(MASTERS, &["exists", key.name()]).trim() == "1";
        gone += usize::from(all && !homes[0].iter().any(exists));
        assert!(start.elapsed() < Duration::from_secs(30), "never repaired");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn evict_foreign_deletes_foreign_values_of_a_group() {
    let cluster = start().await;
    let options = RedisOptions::from_url(&cluster.url()).unwrap().evict_foreign(true);
    let store = RedisStore::new(redis_server::patient(options));
    for group in ["a", "b", "c", "d", "e", "f"] {
        let space = KeySpace::new("p", Some(group)).unwrap();
        store.set(&space.key("own"), "1".into(), MINUTE).await.unwrap();
        let home = RedisCluster::home(cluster.slot(space.key("own").name()));
        for number in 0..10 {
            cluster.cli(home, &["set", &format!("p:{{{group}}}:foreign:{number}"), "x"]);
        }
        assert_eq!(store.delete_group(&space).await.unwrap(), 11);
        assert_eq!(cluster.cli(home, &["keys", &format!("p:{{{group}}}*")]).trim(), "");
    }
}

#[tokio::test]
async fn environment_variables_configure_a_cluster() {
    let cluster = start().await;
    let (first, rest) = (cluster.node(0).port().to_string(), cluster.url());
    for vars in [
        &[("REDIS_HOST", "127.0.0.1"), ("REDIS_PORT", &*first), ("REDIS_CLUSTER", "true")][..],
        &[("REDIS_URL", &*rest)],
    ] {
        let patience = [("REDIS_SOCKET_TIMEOUT", "5"), ("REDIS_SOCKET_CONNECT_TIMEOUT", "5")];
        let vars = [vars, &patience].concat();
        let larder = Larder::from_vars(|name| {
            vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        });
        let backend = larder.unwrap().backend();
        for key in ["a", "b", "c", "d", "e", "f"] {
            assert!(backend.set(key, &"value", Duration::from_secs(60)).await);
            assert_eq!(backend.get::<String>(key).await.as_deref(), Some("value"));
        }
    }
}

/// Readers fill from a "database" that a writer changes and evicts, by key and by group in turn.
struct Race {
    database: Arc<AtomicU64>,
    evicted: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    stale: Arc<AtomicU64>,
    hits: Arc<AtomicU64>,
    readers: Vec<tokio::task::JoinHandle<()>>,
    writer: tokio::task::JoinHandle<()>,
}

impl Race {
    /// Starts the race. Every call must be answered without an error.
    fn begin(cluster: &RedisCluster, key: &CacheKey) -> Self {
        let [database, evicted, stale, hits] = std::array::from_fn(|_| Arc::new(AtomicU64::new(0)));
        let done = Arc::new(AtomicBool::new(false));
        let readers = (0..8)
            .map(|_| {
                let (store, key) = (patient(cluster), key.clone());
                let (database, evicted, done) = (database.clone(), evicted.clone(), done.clone());
                let (stale, hits) = (stale.clone(), hits.clone());
                tokio::spawn(async move {
                    while !done.load(Ordering::SeqCst) {
                        let floor = evicted.load(Ordering::SeqCst);
                        let seen = match store.get(&key).await.unwrap() {
                            Some(seen) => seen,
                            None => match store.begin(&key, Intent::Fill, HOLD).await.unwrap() {
                                Acquired::Found(found) => found,
                                Acquired::Lease(lease) => {
                                    let value = database.load(Ordering::SeqCst).to_string();
                                    sleep(Duration::from_millis(fastrand::u64(..3))).await;
                                    store.commit(&key, &lease, value.into(), MINUTE).await.unwrap();
                                    continue;
                                }
                                _ => {
                                    sleep(Duration::from_millis(1)).await;
                                    continue;
                                }
                            },
                        };
                        let seen: u64 = std::str::from_utf8(&seen).unwrap().parse().unwrap();
                        hits.fetch_add(1, Ordering::Relaxed);
                        stale.fetch_add(u64::from(seen < floor), Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let (store, key) = (patient(cluster), key.clone());
        let writer = tokio::spawn({
            let (database, evicted, done) = (database.clone(), evicted.clone(), done.clone());
            async move {
                for change in 1.. {
                    if done.load(Ordering::SeqCst) {
                        break;
                    }
                    database.store(change, Ordering::SeqCst);
                    match (change % 3, key.group()) {
                        (0, Some(_)) => drop(store.delete_group(&key.space()).await.unwrap()),
                        _ => drop(store.delete(&key).await.unwrap()),
                    }
                    evicted.store(change, Ordering::SeqCst);
                    sleep(Duration::from_millis(fastrand::u64(..5))).await;
                }
            }
        });
        Self { database, evicted, done, stale, hits, readers, writer }
    }

    async fn end(self) {
        self.done.store(true, Ordering::SeqCst);
        for task in self.readers {
            task.await.unwrap();
        }
        self.writer.await.unwrap();
        let hits = self.hits.load(Ordering::Relaxed);
        assert_eq!(self.stale.load(Ordering::Relaxed), 0, "of {hits} hits");
        assert!(hits > 100, "the readers found too little: {hits} hits");
        assert_eq!(self.database.load(Ordering::Relaxed), self.evicted.load(Ordering::Relaxed));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_are_current_while_slots_move() {
    let cluster = Arc::new(start().await);
    for key in [key(Some("g"), "a"), key(None, "a")] {
        let race = Race::begin(&cluster, &key);
        // The group's slot has other entries, so that there is always something to move.
        let store = patient(&cluster);
        for number in 0..20 {
            let other = key.space().key(&format!("other{number}"));
            store.set(&other, "1".into(), MINUTE).await.unwrap();
        }
        let (slot, cluster) = (cluster.slot(key.name()), cluster.clone());
        tokio::task::spawn_blocking(move || {
            let mut at = RedisCluster::home(slot);
            for round in 0..12 {
                let next = (at + 1) % MASTERS;
                cluster.reshard(slot, at, next, Duration::from_millis(round % 4));
                at = next;
                std::thread::sleep(Duration::from_millis(50));
            }
            // Moves back, for the next key.
            while at != RedisCluster::home(slot) {
                let next = (at + 1) % MASTERS;
                cluster.reshard(slot, at, next, Duration::ZERO);
                at = next;
            }
        })
        .await
        .unwrap();
        race.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_moved_slot_is_read_and_evicted_within_deadlines() {
    let cluster = start().await;
    let (store, reader) = (prompt(&cluster), patient(&cluster));
    for key in [key(Some("g"), "a"), key(None, "a")] {
        reader.set(&key, "1".into(), MINUTE).await.unwrap();
        while store.get(&key).await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
        let slot = cluster.slot(key.name());
        let (from, to) = (RedisCluster::home(slot), (RedisCluster::home(slot) + 1) % MASTERS);
        cluster.begin_move(slot, from, to);
        assert_eq!(reader.get(&key).await.unwrap().unwrap(), "1", "on its old owner");
        cluster.move_keys(slot, from, to, Duration::ZERO);
        assert_eq!(reader.get(&key).await.unwrap().unwrap(), "1", "on its new owner");
        assert!(reader.has(&key).await.unwrap());
        let absent = key.space().key("absent");
        let start = Instant::now();
        let answer = store.get(&absent).await;
        assert!(
            matches!(answer, Ok(None) | Err(StoreError::Refused(_) | StoreError::Timeout(_))),
            "{answer:?}"
        );
        // An eviction waits for the slot, and is pending when its deadline has passed.
        let deleted = store.delete(&key).await;
        assert!(
            matches!(deleted, Ok(true) | Err(StoreError::Refused(_) | StoreError::Timeout(_))),
            "{deleted:?}"
        );
        assert!(!matches!(store.get(&key).await, Ok(Some(_))));
        assert!(start.elapsed() < Duration::from_millis(50 + 500) + SLACK, "{:?}", start.elapsed());

        cluster.end_move(slot, from, to);
        let start = Instant::now();
        while store.set(&key, "2".into(), MINUTE).await.is_err()
            || store.get(&key).await.ok().flatten().is_none_or(|value| value != "2")
        {
            assert!(start.elapsed() < Duration::from_secs(10), "an eviction is still pending");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Some commands of a pipe find their keys on the old owner, and others don't. If both owners ran a part of them, each would hold
/// a lease, and the slot could not be moved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_moved_slot_grants_no_second_lease() {
    let cluster = start().await;
    let (store, other) = (prompt(&cluster), prompt(&cluster));
    let [known, new] = ["known", "new"].map(|suffix| key(Some("g"), suffix));
    store.set(&known, "1".into(), MINUTE).await.unwrap();
    // Both processes know the group's nonce, and one holds a lease for a missing entry.
    assert!(matches!(
        store.begin(&key(Some("g"), "x"), Intent::Fill, HOLD).await.unwrap(),
        Acquired::Lease(_)
    ));
    let Acquired::Lease(lease) = other.begin(&new, Intent::Fill, HOLD).await.unwrap() else { panic!() };
    let slot = cluster.slot(new.name());
    let (from, to) = (RedisCluster::home(slot), (RedisCluster::home(slot) + 1) % MASTERS);
    cluster.begin_move(slot, from, to);
    let begun = store.begin(&new, Intent::Fill, HOLD).await;
    assert!(matches!(begun, Err(StoreError::Refused(_)) | Ok(Acquired::Filling)), "{begun:?}");
    // The nonce is moved first, and the entry stays behind.
    let port = cluster.node(to).port().to_string();
    let migrate = ["migrate", "127.0.0.1", &port, "", "0", "5000", "keys", "p:{g}"];
    assert_eq!(cluster.cli(from, &migrate), "OK");
    let has = store.has(&known).await;
    assert!(matches!(has, Err(StoreError::Refused(_))), "{has:?}");
    cluster.move_keys(slot, from, to, Duration::ZERO);
    cluster.end_move(slot, from, to);
    assert!(store.has(&known).await.unwrap());
    assert!(matches!(store.begin(&new, Intent::Fill, HOLD).await.unwrap(), Acquired::Filling));
    assert!(other.commit(&new, &lease, "1".into(), MINUTE).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefix_is_evicted_completely_while_slots_move() {
    let cluster = Arc::new(start_with(allow_debug()).await);
    // Enough keys that a scan takes longer than moving a slot.
    for node in 0..MASTERS {
        cluster.cli(node, &["debug", "populate", "150000", &format!("{{other{node}}}"), "8"]);
    }
    let store = patient(&cluster);
    let keys: Vec<_> = (0..16)
        .map(|number| key((number % 4 == 0).then_some(&*format!("g{number}")), &format!("k{number}")))
        .collect();
    let mut at: Vec<_> = keys
        .iter()
        .map(|key| cluster.slot(key.name()))
        .map(|slot| (slot, RedisCluster::home(slot)))
        .collect();
    for round in 0..4 {
        for key in &keys {
            store.set(key, "1".into(), MINUTE).await.unwrap();
        }
        let mover = tokio::task::spawn_blocking({
            let cluster = cluster.clone();
            move || {
                for (slot, home) in &mut at {
                    let next = (*home + 1) % MASTERS;
                    cluster.reshard(*slot, *home, next, Duration::ZERO);
                    *home = next;
                }
                at
            }
        });
        // In the middle of the scan, and at another point each time.
        sleep(Duration::from_millis(round * 20)).await;
        store.delete_group(&KeySpace::new("p", None).unwrap()).await.unwrap();
        for key in &keys {
            assert_eq!(store.get(key).await.unwrap(), None, "{key} in round {round}");
        }
        at = mover.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_hold_while_a_master_fails() {
    let mut cluster = start().await;
    let store = prompt(&cluster);
    let homes = Arc::new(everywhere(&cluster, 4));
    for key in homes.iter().flatten() {
        store.set(key, "1".into(), MINUTE).await.unwrap();
    }
    let (stop, longest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> = (0..8)
        .map(|number| {
            let (store, homes, stop, longest) = (store.clone(), homes.clone(), stop.clone(), longest.clone());
            tokio::spawn(async move {
                let mut calls = 0_u64;
                while !stop.load(Ordering::SeqCst) {
                    let keys = &homes[fastrand::usize(..MASTERS)];
                    let key = &keys[fastrand::usize(..keys.len())];
                    let start = Instant::now();
                    let (deadline, _) = match (number + calls) % 4 {
                        0 => (250, store.set(key, "2".into(), MINUTE).await.is_ok()),
                        1 => (500, store.delete(key).await.is_ok()),
                        _ => (50, store.get(key).await.is_ok()),
                    };
                    let over = start.elapsed().saturating_sub(Duration::from_millis(deadline));
                    longest.fetch_max(over.as_millis() as u64, Ordering::Relaxed);
                    calls += 1;
                    sleep(Duration::from_millis(1)).await;
                }
                calls
            })
        })
        .collect();
    sleep(Duration::from_millis(300)).await;
    cluster.node_mut(0).kill();
    let killed = Instant::now();

    // Until the other masters notice the failure, their own keys are served as usual.
    sleep(Duration::from_millis(100)).await;
    for key in homes[1].iter().chain(&homes[2]) {
        for _ in 0..10 {
            let answer = store.get(key).await;
            assert!(answer.is_ok(), "{key}: {answer:?}");
        }
    }

    while !is_writable(&store, &homes[0]).await {
        let last = store.get(&homes[0][0]).await;
        assert!(killed.elapsed() < Duration::from_secs(20), "no failover: {last:?}");
        sleep(Duration::from_millis(20)).await;
    }
    let took = killed.elapsed();
    stop.store(true, Ordering::SeqCst);
    let mut calls = 0;
    for caller in callers {
        calls += caller.await.unwrap();
    }
    let longest = longest.load(Ordering::Relaxed);
    println!(
        "writes were back after {took:?}; the latest of {calls} answers came {longest} ms after its deadline"
    );
    assert!(longest <= SLACK.as_millis() as u64, "{longest} ms after the deadline");

    // The restarted node is a replica of the master that replaced it.
    cluster.node_mut(0).restart();
    for _ in 0..100 {
        for key in homes.iter().flatten() {
            let answer = store.get(key).await;
            assert!(answer.is_ok(), "{key}: {answer:?}");
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert!(is_writable(&store, &homes[0]).await);
}

/// Returns `true` if every key can be written and read back. A pending eviction keeps its key empty.
async fn is_writable(store: &RedisStore, keys: &[CacheKey]) -> bool {
    for key in keys {
        if store.begin(key, Intent::Refresh, Duration::from_millis(1)).await.is_err()
            || store.set(key, "3".into(), MINUTE).await.is_err()
        {
            return false;
        }
    }
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hung_master_affects_only_its_own_keys() {
    let cluster = start_with(&["--cluster-node-timeout", "60000"]).await;
    let store = prompt(&cluster);
    let homes = everywhere(&cluster, 2);
    for key in homes.iter().flatten() {
        store.set(key, "1".into(), MINUTE).await.unwrap();
    }
    cluster.node(0).pause();
    for _ in 0..3 {
        assert!(matches!(store.get(&homes[0][0]).await, Err(StoreError::Timeout(_))));
    }
    let start = Instant::now();
    for _ in 0..100 {
        assert!(matches!(store.get(&homes[0][0]).await, Err(StoreError::Unavailable(_))));
        for key in homes[1].iter().chain(&homes[2]) {
            assert_eq!(store.get(key).await.unwrap().unwrap(), "1", "{key}");
        }
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    // A pending eviction at one master doesn't delay those at the others.
    store.delete(&homes[0][0]).await.unwrap_err();
    assert!(store.delete(&homes[1][0]).await.unwrap());
    store.set(&homes[1][0], "2".into(), MINUTE).await.unwrap();
    assert_eq!(store.get(&homes[1][0]).await.unwrap().unwrap(), "2");
    assert_eq!(store.get(&homes[0][0]).await.unwrap(), None, "bypassed");

    cluster.node(0).resume();
    let start = Instant::now();
    while store.get(&homes[0][1]).await.is_err() || !is_writable(&store, &homes[0][..1]).await {
        assert!(start.elapsed() < Duration::from_secs(5), "no recovery");
        sleep(Duration::from_millis(5)).await;
    }
    assert!(start.elapsed() < Duration::from_millis(1500) + SLACK, "{:?}", start.elapsed());
}
