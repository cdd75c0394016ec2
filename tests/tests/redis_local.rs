//! The local tier over one Redis: what it serves, and when it must not serve.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::handler::Handler;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get as get_route;
use futures_util::future::{BoxFuture, ready};
use http::{HeaderMap, Method};
use larder_core::store::redis::MAX_STALE;
use larder_core::store::suite::{self, Subject};
use larder_core::{CacheKey, CacheStore, KeySpace, Larder, RedisOptions, RedisStore, TieredStore};
use larder_tests::in_process::send;
use larder_tests::proxy::{Proxy, ProxyMode};
use larder_tests::redis_server::{RedisServer, calls, deny, patient};
use larder_tests::tier::{self, CAPACITY, MINUTE, SLACK, all_go, becomes, keys, waiters_are_woken};
use larder_tower::SharedCacheLayer;
use redis::aio::MultiplexedConnection;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tower::Layer as _;

fn options(server: &RedisServer) -> RedisOptions {
    // Some of these tests depend on the time until it connects again.
    patient(RedisOptions::from_url(&server.url()).unwrap()).connect_deadline(Duration::from_millis(500))
}

fn tiered(server: &RedisServer) -> TieredStore {
    RedisStore::new(options(server)).with_local("p", CAPACITY)
}

async fn raw(server: &RedisServer) -> MultiplexedConnection {
    redis::Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

async fn ask(conn: &mut MultiplexedConnection, command: &str) -> String {
    let mut cmd = redis::Cmd::new();
    cmd.arg(command.split(' ').collect::<Vec<_>>());
    let answer: redis::Value = cmd.query_async(conn).await.unwrap();
    redis::from_redis_value(answer).unwrap_or_default()
}

/// Returns the number of values that Redis was asked for.
async fn reads(conn: &mut MultiplexedConnection) -> u64 {
    let stats = ask(conn, "INFO commandstats").await;
    calls(&stats, "get") + calls(&stats, "mget")
}

/// Reads until the tier answers without Redis.
async fn warm(store: &TieredStore, key: &CacheKey, conn: &mut MultiplexedConnection) {
    let start = Instant::now();
    loop {
        let before = reads(conn).await;
        assert!(store.get(key).await.unwrap().is_some(), "{key} holds nothing");
        if reads(conn).await == before {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{key} is never kept");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tier_passes_the_store_suite() {
    let server = RedisServer::start();
    let store = RedisStore::new(options(&server)).with_local("suite", CAPACITY);
    suite::run(&Subject::new(store)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tier_passes_the_lease_suite() {
    let server = RedisServer::start();
    let store = RedisStore::new(options(&server)).with_local("suite", CAPACITY);
    suite::run_leases(&Subject::new(store)).await;
}

/// Two tiers over one Redis, behind a proxy that delivers invalidation messages late.
async fn late_tiers(server: &RedisServer, delay: Duration, prefix: &str) -> (Proxy, [TieredStore; 2]) {
    let proxy = Proxy::to(server.port()).await;
    proxy.set_mode(ProxyMode::SlowInvalidations(delay));
    let options = || patient(RedisOptions::from_url(&proxy.url()).unwrap());
    let stores = [(); 2].map(|()| RedisStore::new(options()).with_local(prefix, CAPACITY));
    for (n, store) in stores.iter().enumerate() {
        let key = KeySpace::new(prefix, Some("warm")).unwrap().key(&n.to_string());
        store.set(&key, "1".into(), MINUTE).await.unwrap();
        tier::comes_here(store, &key, Duration::from_secs(10)).await;
    }
    (proxy, stores)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tier_passes_the_lease_suite_with_late_messages() {
    let server = RedisServer::start();
    let (_proxy, [mine, other]) = late_tiers(&server, Duration::from_millis(20), "suite").await;
    let prefix = KeySpace::new("suite", None).unwrap();
    mine.delete_group(&prefix).await.unwrap();
    suite::run_leases(&Subject::new(mine).beside(other).rounds(100)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_are_all_applied_with_late_messages() {
    for delay in [0, 5, 100].map(Duration::from_millis) {
        let server = RedisServer::start();
        let (_proxy, stores) = late_tiers(&server, delay, "p").await;
        let [one, two] =
            stores.map(|store| Larder::builder().prefix("p").store(store).build().backend().group("g"));
        for round in 0..40u64 {
            assert_eq!(one.try_get("n").await.unwrap(), (round > 0).then_some(2 * round), "{delay:?}");
            for backend in [&two, &one] {
                backend.update("n", 60, |n: Option<u64>| n.unwrap_or(0) + 1).await.unwrap();
            }
        }
        assert_eq!(two.update("n", 60, |n| n.unwrap_or(0)).await.unwrap(), 80, "{delay:?}");
    }
}

/// A resource in several languages, whose handler answers with the version that it read. A request for the language `slow` reads
/// the version and then waits for `go`.
#[derive(Clone, Default)]
struct Resource {
    version: Arc<AtomicU64>,
    slow: Arc<[Notify; 2]>,
}

impl Resource {
    async fn read(self, slow_varies_by: &'static str, headers: HeaderMap) -> Response {
        let is_slow = headers.get("accept-language").is_some_and(|language| language == "slow");
        let version = self.version.load(Ordering::SeqCst).to_string();
        let [reading, go] = &*self.slow;
        if is_slow {
            reading.notify_one();
            go.notified().await;
        }
        let vary = if is_slow { slow_varies_by } else { "accept-language" };
        ([("vary", vary), ("cache-control", "max-age=600")], version).into_response()
    }

    fn get(
        &self,
        slow_varies_by: &'static str,
    ) -> impl Fn(HeaderMap) -> BoxFuture<'static, Response> + Clone + Send + 'static {
        let resource = self.clone();
        move |headers| Box::pin(resource.clone().read(slow_varies_by, headers))
    }

    fn change(&self) -> impl Fn() -> BoxFuture<'static, ()> + Clone + Send + 'static {
        let version = Arc::clone(&self.version);
        move || {
            version.fetch_add(1, Ordering::SeqCst);
            Box::pin(ready(()))
        }
    }
}

/// A variant that was read before another process evicted the resource doesn't restore the resource.
async fn late_variant_is_not_stored(app: impl Fn(&Larder, &Resource) -> Router) {
    let server = RedisServer::start();
    let (_proxy, stores) = late_tiers(&server, Duration::from_millis(150), "redis:larder:cache").await;
    let plain = RedisStore::new(options(&server));
    let resource = Resource::default();
    let [one, two] = stores.map(|store| app(&Larder::builder().store(store).build(), &resource));
    let three = app(&Larder::builder().store(plain).build(), &resource);
    let ask = async |app: &Router, language| {
        let fields = [("accept-language", language), ("host", "shop.example")];
        send(app, Method::GET, "/r", &fields).await.text().to_owned()
    };
    for _ in 0..5 {
        assert_eq!(ask(&one, "en").await, "0");
        // The tier keeps a written value once the message about the write has come and the value is read again.
        sleep(Duration::from_millis(350)).await;
    }
    let late = {
        let one = one.clone();
        tokio::spawn(async move {
            let fields = [("accept-language", "slow"), ("host", "shop.example")];
            send(&one, Method::GET, "/r", &fields).await.text().to_owned()
        })
    };
    let [reading, go] = &*resource.slow;
    reading.notified().await;
    send(&two, Method::POST, "/r", &[("host", "shop.example")]).await;
    go.notify_one();
    assert_eq!(late.await.unwrap(), "0", "the read started before the change");
    sleep(MAX_STALE + SLACK).await;
    go.notify_one();
    for app in [&one, &two, &three] {
        for language in ["slow", "en"] {
            assert_eq!(ask(app, language).await, "1", "{language}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_variant_does_not_restore_an_evicted_route() {
    late_variant_is_not_stored(|larder, resource| {
        let read = resource.get("accept-language").layer(larder_axum::cache(larder).ttl(600));
        let change = resource.change().layer(larder_axum::cache_evict(larder).key());
        Router::new().route("/r", get_route(read).post(change))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_variant_does_not_restore_what_the_shared_cache_evicted() {
    for slow_varies_by in ["accept-language", "accept-language, x-other"] {
        late_variant_is_not_stored(|larder, resource| {
            let route = get_route(resource.get(slow_varies_by)).post(resource.change());
            let app = Router::new().route("/r", route);
            Router::new().fallback_service(SharedCacheLayer::new(larder).layer(app))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eviction_removes_variants_unknown_to_this_process() {
    let server = RedisServer::start();
    let (_proxy, stores) = late_tiers(&server, Duration::from_millis(150), "redis:larder:cache").await;
    let resource = Resource::default();
    let [one, two] = stores.map(|store| {
        let larder = Larder::builder().store(store).build();
        let read = resource.get("accept-language").layer(larder_axum::cache(&larder).ttl(600));
        let change = resource.change().layer(larder_axum::cache_evict(&larder).key());
        Router::new().route("/r", get_route(read).post(change))
    });
    for _ in 0..5 {
        send(&one, Method::GET, "/r", &[("accept-language", "en")]).await;
        sleep(Duration::from_millis(350)).await;
    }
    send(&two, Method::GET, "/r", &[("accept-language", "fr")]).await;
    send(&one, Method::POST, "/r", &[]).await;
    let keys = redis::cmd("KEYS").arg("redis:larder:cache:r*").take();
    let left: Vec<String> = keys.query_async(&mut raw(&server).await).await.unwrap();
    assert!(left.is_empty(), "variants without a record stay until they expire: {left:?}");
}

#[tokio::test]
async fn changes_by_another_process_invalidate_the_tier() {
    let server = RedisServer::start();
    let (mine, other, mut conn) = (tiered(&server), tiered(&server), raw(&server).await);
    for key in keys() {
        mine.set(&key, "1".into(), MINUTE).await.unwrap();
        warm(&mine, &key, &mut conn).await;
        other.set(&key, "2".into(), MINUTE).await.unwrap();
        becomes(&mine, &key, Some("2"), "another process wrote").await;
        warm(&mine, &key, &mut conn).await;
        assert!(other.delete(&key).await.unwrap());
        becomes(&mine, &key, None, "another process evicted").await;
        for space in [key.space(), KeySpace::new("p", None).unwrap()] {
            mine.set(&key, "3".into(), MINUTE).await.unwrap();
            warm(&mine, &key, &mut conn).await;
            assert_eq!(other.delete_group(&space).await.unwrap(), 1);
            becomes(&mine, &key, None, "another process evicted its group").await;
        }
        mine.set(&key, "4".into(), MINUTE).await.unwrap();
        warm(&mine, &key, &mut conn).await;
        ask(&mut conn, "FLUSHALL").await;
        becomes(&mine, &key, None, "everything was flushed").await;
    }
}

#[tokio::test]
async fn entries_that_redis_loses_leave_the_tier() {
    let server = RedisServer::start();
    let (store, mut conn) = (tiered(&server), raw(&server).await);
    for key in keys() {
        store.set(&key, "1".into(), MINUTE).await.unwrap();
        warm(&store, &key, &mut conn).await;
        store.set(&key, "2".into(), Some(Duration::from_millis(400))).await.unwrap();
        let start = Instant::now();
        while store.get(&key).await.unwrap().is_some() {
            assert!(start.elapsed() < Duration::from_millis(400) + SLACK, "{key} outlives its time");
            sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn other_prefixes_are_always_read_from_redis() {
    let server = RedisServer::start();
    let (store, mut conn) = (tiered(&server), raw(&server).await);
    let [mine, _] = keys();
    store.set(&mine, "1".into(), MINUTE).await.unwrap();
    warm(&store, &mine, &mut conn).await;
    let other = KeySpace::new("pp", None).unwrap().key("a");
    store.set(&other, "1".into(), MINUTE).await.unwrap();
    let before = reads(&mut conn).await;
    for _ in 0..5 {
        assert_eq!(store.get(&other).await.unwrap().unwrap(), "1");
    }
    assert_eq!(reads(&mut conn).await, before + 5);
}

async fn fills_against_invalidations(rounds: u64) {
    let server = RedisServer::start();
    let (mine, other) = (tiered(&server), tiered(&server));
    for key in keys() {
        tier::fills_against_invalidations(&mine, &other, &key, rounds).await;
    }
}

/// Once a change is confirmed to this process, none of its reads returns the value before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_sees_its_own_changes_at_once() {
    let server = RedisServer::start();
    // With two connections, a read may overtake a change that started before it.
    let store = RedisStore::new(options(&server).connections(2)).with_local("p", CAPACITY);
    let mut conn = raw(&server).await;
    for key in keys() {
        store.set(&key, "0".into(), MINUTE).await.unwrap();
        warm(&store, &key, &mut conn).await;
        let (floor, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let readers: Vec<_> = (0..6)
            .map(|_| {
                let (store, key, floor, done) = (store.clone(), key.clone(), floor.clone(), done.clone());
                tokio::spawn(async move {
                    let mut stale = 0;
                    while !done.load(Ordering::SeqCst) {
                        let least = floor.load(Ordering::SeqCst);
                        if let Some(value) = store.get(&key).await.unwrap() {
                            let value: u64 = std::str::from_utf8(&value).unwrap().parse().unwrap();
                            stale += u64::from(value < least);
                        }
                        tokio::task::yield_now().await;
                    }
                    stale
                })
            })
            .collect();
        let mut stale = 0;
        for version in 1..=1_000_u64 {
            store.set(&key, version.to_string().into(), MINUTE).await.unwrap();
            floor.store(version, Ordering::SeqCst);
            // Makes the tier keep the value, which the next step must not find.
            store.get(&key).await.unwrap();
            match version % 3 {
                0 => drop(store.delete(&key).await.unwrap()),
                1 => drop(store.delete_group(&key.space()).await.unwrap()),
                _ => continue,
            }
            stale += u64::from(store.get(&key).await.unwrap().is_some());
        }
        done.store(true, Ordering::SeqCst);
        for reader in readers {
            stale += reader.await.unwrap();
        }
        assert_eq!(stale, 0, "{key}: reads of what was replaced or evicted");
    }
}

#[tokio::test]
async fn waiters_are_woken_when_a_fill_ends() {
    let server = RedisServer::start();
    let (mine, other) = (tiered(&server), RedisStore::new(options(&server)));
    for key in keys() {
        waiters_are_woken(&mine, &other, &key).await;
    }
}

#[tokio::test]
async fn fills_do_not_keep_invalidated_values() {
    fills_against_invalidations(600).await;
}

#[tokio::test]
#[ignore = "takes minutes; run by tests/run --slow"]
async fn fills_do_not_keep_invalidated_values_in_tens_of_thousands_of_rounds() {
    fills_against_invalidations(10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tier_stops_serving_within_the_bound_when_redis_hangs() {
    let server = RedisServer::start();
    let store = RedisStore::new(RedisOptions::from_url(&server.url()).unwrap()).with_local("p", CAPACITY);
    let mut conn = raw(&server).await;
    for key in keys() {
        store.set(&key, "1".into(), MINUTE).await.unwrap();
        warm(&store, &key, &mut conn).await;
    }
    server.pause();
    all_go(&store, &keys()).await;
    server.resume();
    for key in keys() {
        let start = Instant::now();
        while store.get(&key).await.ok().flatten().is_none() {
            assert!(start.elapsed() < Duration::from_secs(5), "no recovery");
            sleep(Duration::from_millis(5)).await;
        }
        warm(&store, &key, &mut conn).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconnecting_clears_the_tier() {
    let server = RedisServer::start();
    let (store, other, mut conn) = (tiered(&server), RedisStore::new(options(&server)), raw(&server).await);
    for key in keys() {
        for round in 0..10 {
            let value = round.to_string();
            other.set(&key, value.clone().into(), MINUTE).await.unwrap();
            becomes(&store, &key, Some(&value), "another process wrote").await;
            warm(&store, &key, &mut conn).await;
            // The change follows at once, so no message about it arrives.
            let mut cut = redis::pipe();
            for id in trackers(&mut conn).await {
                cut.cmd("CLIENT").arg("KILL").arg("ID").arg(id).ignore();
            }
            let _: () = cut.query_async(&mut conn).await.unwrap();
            other.delete(&key).await.unwrap();
            becomes(&store, &key, None, "evicted while no connection received messages").await;
        }
    }
}

/// Returns the connections that receive invalidation messages: they have the flag `B`.
async fn trackers(conn: &mut MultiplexedConnection) -> Vec<String> {
    let list = ask(conn, "CLIENT LIST").await;
    let field = |line: &str, name: &str| {
        line.split(' ').find_map(|field| field.strip_prefix(name)).unwrap_or_default().to_owned()
    };
    let ids: Vec<_> = list
        .lines()
        .filter(|line| field(line, "flags=").contains('B'))
        .map(|line| field(line, "id="))
        .collect();
    assert!(!ids.is_empty(), "no connection receives messages: {list}");
    ids
}

#[tokio::test]
async fn without_tracking_all_reads_go_to_redis() {
    let server = RedisServer::start();
    let mut conn = raw(&server).await;
    let denied = deny("client", "tracking", &[]).join(" ");
    ask(&mut conn, &format!("ACL SETUSER al on >pw ~* &* +@all {denied}")).await;
    let store = RedisStore::new(options(&server).username("al").password("pw")).with_local("p", CAPACITY);
    for key in keys() {
        store.set(&key, "1".into(), MINUTE).await.unwrap();
        let before = reads(&mut conn).await;
        for _ in 0..20 {
            assert_eq!(store.get(&key).await.unwrap().unwrap(), "1");
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(reads(&mut conn).await, before + 20, "the tier stored a value");
    }
}

/// Another process evicts while both are busy. Prints how long this process may still read the old value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn delay_of_another_processs_change() {
    const ROUNDS: usize = 3_000;
    let server = RedisServer::start();
    let (mine, other) = (tiered(&server), RedisStore::new(options(&server)));
    let over = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..4)
        .map(|number| {
            let (mine, over) = (mine.clone(), over.clone());
            tokio::spawn(async move {
                let key = KeySpace::new("p", Some("load")).unwrap().key(&number.to_string());
                let mut reads = 0_u64;
                while !over.load(Ordering::Relaxed) {
                    match reads % 1_000 {
                        0 => mine.set(&key, "1".into(), MINUTE).await.unwrap(),
                        _ => drop(mine.get(&key).await.unwrap()),
                    }
                    reads += 1;
                    tokio::task::yield_now().await;
                }
                reads
            })
        })
        .collect();
    let [key, _] = keys();
    let mut windows = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        other.set(&key, "1".into(), MINUTE).await.unwrap();
        tier::comes_here(&mine, &key, MAX_STALE).await;
        other.delete(&key).await.unwrap();
        let confirmed = Instant::now();
        while mine.get(&key).await.unwrap().is_some() {
            tokio::task::yield_now().await;
        }
        windows.push(confirmed.elapsed());
    }
    over.store(true, Ordering::Relaxed);
    let mut reads = 0;
    for load in load {
        reads += load.await.unwrap();
    }
    windows.sort_unstable();
    let at = |share: usize| windows[(ROUNDS - 1) * share / 1_000];
    println!(
        "after an eviction by another process was confirmed to it, this one read the old value for {:?} (median), {:?} (99 %) \
         and {:?} at most, in {ROUNDS} rounds beside {reads} reads",
        at(500),
        at(990),
        at(1_000)
    );
    assert!(at(1_000) < MAX_STALE + SLACK);
}
