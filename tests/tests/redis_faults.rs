//! The Redis store while its server is down, hangs, refuses commands, sends invalid replies, or restarts from an old snapshot.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use larder_core::store::Breaker;
use larder_core::{
    Abandon, Acquired, CacheKey, CacheStore, Intent, KeySpace, Larder, Lease, LeaseStore, RedisOptions,
    RedisStore, StoreError,
};
use larder_tests::proxy::{Proxy, ProxyMode};
use larder_tests::redis_server::{RedisServer, allow_debug, connect_without_deadline, version};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

const HOLD: Duration = Duration::from_secs(60);
const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

/// The read deadline in the tests of the breaker.
const READ_DEADLINE: Duration = Duration::from_millis(50);

/// Extra time for a call's deadline on a busy machine.
const SLACK: Duration = Duration::from_millis(150);

fn store(server: &RedisServer) -> RedisStore {
    RedisStore::new(RedisOptions::from_url(&server.url()).unwrap())
}

fn key(group: Option<&str>, suffix: &str) -> CacheKey {
    KeySpace::new("p", group).unwrap().key(suffix)
}

/// Waits until the store answers again.
async fn recovered(store: &RedisStore) -> Duration {
    let start = Instant::now();
    while store.get(&key(None, "anything")).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(10), "no recovery");
        sleep(Duration::from_millis(5)).await;
    }
    start.elapsed()
}

/// Waits until no eviction of this key is pending.
async fn wait_for_evictions(store: &RedisStore, key: &CacheKey) {
    let start = Instant::now();
    while matches!(
        store.begin(key, Intent::Refresh, Duration::from_millis(1)).await,
        Err(_) | Ok(Acquired::Busy(_))
    ) {
        assert!(start.elapsed() < Duration::from_secs(10), "an eviction is still pending");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn raw<T: redis::FromRedisValue>(server: &RedisServer, command: &[&str]) -> T {
    let mut cmd = redis::Cmd::new();
    cmd.arg(command);
    cmd.query_async(&mut connect_without_deadline(&server.url()).await).await.unwrap()
}

#[tokio::test]
async fn calls_to_a_dead_server_fail_at_once_until_it_restarts() {
    let mut server = RedisServer::start();
    let store = store(&server);
    store.set(&key(None, "a"), "1".into(), MINUTE).await.unwrap();
    server.kill();

    let start = Instant::now();
    assert!(matches!(store.get(&key(None, "a")).await, Err(StoreError::Unavailable(_))));
    assert!(start.elapsed() < Duration::from_millis(50) + SLACK, "{:?}", start.elapsed());
    sleep(Duration::from_millis(100)).await;
    let start = Instant::now();
    for _ in 0..10_000 {
        assert!(matches!(store.get(&key(None, "a")).await, Err(StoreError::Unavailable(_))));
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?} for 10,000 calls", start.elapsed());

    // Leaves time for the pauses between probes to grow.
    sleep(Duration::from_secs(2)).await;
    server.restart();
    let took = recovered(&store).await;
    assert!(took < Duration::from_millis(1500) + SLACK, "{took:?}");
    assert_eq!(store.get(&key(None, "a")).await.unwrap(), None, "the restarted server is empty");
}

#[tokio::test]
async fn store_connects_to_a_server_that_starts_later() {
    let mut server = RedisServer::start();
    server.kill();
    let store = store(&server);
    for _ in 0..3 {
        let start = Instant::now();
        assert!(matches!(store.get(&key(None, "a")).await, Err(StoreError::Unavailable(_))));
        assert!(start.elapsed() < Duration::from_millis(50) + SLACK);
    }
    server.restart();
    recovered(&store).await;
}

#[tokio::test]
async fn restart_between_two_calls_causes_no_error() {
    let mut server = RedisServer::start();
    let store = store(&server);
    for _ in 0..3 {
        store.set(&key(None, "a"), "1".into(), MINUTE).await.unwrap();
        server.restart();
        assert_eq!(store.get(&key(None, "a")).await.unwrap(), None);
    }
}

#[tokio::test]
async fn hung_server_opens_the_breaker_until_it_resumes() {
    let server = RedisServer::start();
    let store = store(&server);
    store.set(&key(None, "a"), "1".into(), MINUTE).await.unwrap();
    server.pause();

    let start = Instant::now();
    let mut timeouts = 0;
    loop {
        match store.get(&key(None, "a")).await {
            Err(StoreError::Timeout(deadline)) => {
                assert_eq!(deadline, Duration::from_millis(50));
                timeouts += 1;
            }
            Err(StoreError::Unavailable(_)) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(timeouts <= 3, "{timeouts}");
    assert!(start.elapsed() < Duration::from_millis(150) + SLACK, "{:?}", start.elapsed());
    let start = Instant::now();
    for _ in 0..10_000 {
        assert!(matches!(store.get(&key(None, "a")).await, Err(StoreError::Unavailable(_))));
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?} for 10,000 calls", start.elapsed());

    sleep(Duration::from_secs(2)).await;
    server.resume();
    let took = recovered(&store).await;
    assert!(took < Duration::from_millis(1500) + SLACK, "{took:?}");
    assert_eq!(store.get(&key(None, "a")).await.unwrap().unwrap(), "1");
}

#[tokio::test]
async fn silence_as_long_as_three_read_deadlines_opens_the_breaker() {
    for (silence, expected) in [(150, Breaker::Open), (110, Breaker::Closed)] {
        let server = RedisServer::start();
        let options = RedisOptions::from_url(&server.url()).unwrap();
        let silence = Duration::from_millis(silence);
        let store = RedisStore::new(options.read_deadline(READ_DEADLINE).evict_deadline(silence));
        recovered(&store).await;
        server.pause();
        assert!(matches!(store.delete(&key(None, "a")).await, Err(StoreError::Timeout(_))));
        assert_eq!(store.health().servers[0].breaker, expected, "{silence:?}");
        if expected == Breaker::Open {
            // Further evictions don't wait again.
            let start = Instant::now();
            for name in ["b", "c", "d"] {
                assert!(matches!(store.delete(&key(None, name)).await, Err(StoreError::Unavailable(_))));
            }
            assert!(start.elapsed() < SLACK, "{:?}", start.elapsed());
        }
        server.resume();
        recovered(&store).await;
    }
}

#[tokio::test]
async fn first_call_to_a_hung_server_ends_within_its_deadline() {
    let server = RedisServer::start();
    let store = store(&server);
    server.pause();
    let start = Instant::now();
    assert!(matches!(store.get(&key(None, "a")).await, Err(StoreError::Unavailable(_))));
    assert!(start.elapsed() < Duration::from_millis(50) + SLACK, "{:?}", start.elapsed());
    server.resume();
    recovered(&store).await;
}

#[tokio::test]
async fn concurrent_timeouts_open_the_breaker_once() {
    let server = RedisServer::start();
    let store = store(&server);
    recovered(&store).await;
    server.pause();
    let start = Instant::now();
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.get(&key(None, "a")).await.unwrap_err() })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    assert!(start.elapsed() < Duration::from_millis(100) + SLACK, "{:?}", start.elapsed());
    server.resume();
    // One trip of the breaker, so the first probe is soon.
    let took = recovered(&store).await;
    assert!(took < Duration::from_millis(700) + SLACK, "{took:?}");
}

#[tokio::test]
async fn lease_whose_reply_was_not_read_is_released() {
    for group in [Some("g"), None] {
        let server = RedisServer::start();
        let store = store(&server);
        let key = key(group, "a");
        recovered(&store).await;
        server.pause();
        // Dropped during the call, as when the client disconnects. This comes first, because one long silence opens the breaker.
        let leaving = tokio::time::timeout(Duration::from_millis(5), store.begin(&key, Intent::Write, HOLD));
        assert!(leaving.await.is_err());
        assert!(matches!(store.begin(&key, Intent::Fill, HOLD).await, Err(StoreError::Timeout(_))));
        server.resume();

        let start = Instant::now();
        while !matches!(store.begin(&key, Intent::Fill, HOLD).await, Ok(Acquired::Lease(_))) {
            assert!(start.elapsed() < Duration::from_secs(5), "the lease is still held");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A server that saved `old` under every key, and a store that has filled them.
async fn with_old_data(keys: &[CacheKey]) -> (RedisServer, RedisStore) {
    let server = RedisServer::start();
    let store = store(&server);
    for key in keys {
        // Filled, not set: a value that replaced nothing stays valid when a server changes.
        let Acquired::Lease(lease) = store.begin(key, Intent::Fill, HOLD).await.unwrap() else { panic!() };
        assert!(store.commit(key, &lease, "old".into(), MINUTE).await.unwrap());
    }
    let _: () = raw(&server, &["SAVE"]).await;
    (server, store)
}

/// After a restart, `other` is readable as soon as the server is. Until then no evicted value is returned, and finally the
/// evicted values are deleted.
async fn never_stale(server: &RedisServer, store: &RedisStore, other: &CacheKey, evicted: [&CacheKey; 3]) {
    let start = Instant::now();
    while !matches!(store.get(other).await, Ok(Some(value)) if value == "old") {
        for evicted in evicted {
            assert!(!matches!(store.get(evicted).await, Ok(Some(_))), "{evicted} is stale");
        }
        assert!(start.elapsed() < Duration::from_secs(10));
        sleep(Duration::from_millis(1)).await;
    }
    for evicted in evicted {
        while raw::<u64>(server, &["EXISTS", evicted.name()]).await == 1 {
            assert!(!matches!(store.get(evicted).await, Ok(Some(_))), "{evicted} is stale");
            assert!(start.elapsed() < Duration::from_secs(10), "{evicted} is never evicted");
            sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn unconfirmed_eviction_is_retried_after_restart() {
    let keys =
        [key(Some("g"), "a"), key(Some("g"), "b"), key(Some("h"), "a"), key(None, "a"), key(None, "b")];
    let (mut server, store) = with_old_data(&keys).await;
    server.kill();
    for evicted in [&keys[0], &keys[3]] {
        store.delete(evicted).await.unwrap_err();
    }
    store.delete_group(&keys[2].space()).await.unwrap_err();
    for evicted in [&keys[0], &keys[2], &keys[3]] {
        assert_eq!(store.get(evicted).await.unwrap(), None);
        assert!(!store.has(evicted).await.unwrap());
        assert!(matches!(store.begin(evicted, Intent::Fill, HOLD).await.unwrap(), Acquired::Busy(_)));
    }
    store.get(&keys[1]).await.unwrap_err();

    server.restart();
    never_stale(&server, &store, &keys[1], [&keys[0], &keys[2], &keys[3]]).await;
    for evicted in [&keys[0], &keys[2], &keys[3]] {
        wait_for_evictions(&store, evicted).await;
        store.set(evicted, "new".into(), MINUTE).await.unwrap();
        assert_eq!(store.get(evicted).await.unwrap().unwrap(), "new");
    }
    assert_eq!(store.get(&keys[4]).await.unwrap().unwrap(), "old");
}

#[tokio::test]
async fn confirmed_eviction_is_repeated_after_a_restored_snapshot() {
    let keys =
        [key(Some("g"), "a"), key(Some("g"), "b"), key(Some("h"), "a"), key(None, "a"), key(None, "b")];
    let (mut server, store) = with_old_data(&keys).await;
    for evicted in [&keys[0], &keys[3]] {
        assert!(store.delete(evicted).await.unwrap());
    }
    assert_eq!(store.delete_group(&keys[2].space()).await.unwrap(), 1);
    // Evicted, and then set again: the value before the eviction must not come back either.
    store.delete(&keys[4]).await.unwrap();
    store.set(&keys[4], "new".into(), MINUTE).await.unwrap();

    // It restarts with what it saved.
    server.kill();
    server.restart();
    never_stale(&server, &store, &keys[1], [&keys[0], &keys[2], &keys[3]]).await;
    assert_eq!(store.get(&keys[4]).await.unwrap(), None);
}

#[tokio::test]
async fn late_set_does_not_undo_an_eviction() {
    for group in [Some("g"), None] {
        let server = RedisServer::start();
        let proxy = Proxy::to(server.port()).await;
        let store = RedisStore::new(RedisOptions::from_url(&proxy.url()).unwrap().connections(2));
        let key = key(group, "a");
        store.set(&key, "old".into(), MINUTE).await.unwrap();
        wait_for_evictions(&store, &key).await;

        let late = Duration::from_millis(600);
        proxy.set_mode(ProxyMode::Slow(late));
        store.set(&key, "late".into(), MINUTE).await.unwrap_err();
        // The data held back on one connection arrive after the new commands on the other.
        proxy.set_mode(ProxyMode::Forward);
        while store.delete(&key).await.is_err() {}
        let start = Instant::now();
        while start.elapsed() < 2 * late {
            let seen = store.get(&key).await;
            assert!(!matches!(seen, Ok(Some(_))), "{seen:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Values to commit, each with a text that only its commit sends: small values are sent with the script, large ones before it.
fn committed() -> [(String, &'static str); 2] {
    [("marked".to_owned(), "marked"), (".".repeat(5000), "\r\nPX\r\n")]
}

#[tokio::test]
async fn commit_whose_reply_is_lost_is_applied_once() {
    for (value, mark) in committed() {
        let (_server, proxy, store) = behind_a_proxy().await;
        let backend = Larder::builder().store(store).build().backend();
        let count = async || {
            let next = |n: Option<(u64, String)>| (n.map_or(0, |(n, _)| n) + 1, value.clone());
            backend.update("n", 60, next).await.map(|(n, _)| n)
        };
        assert_eq!(count().await.unwrap(), 1);
        proxy.set_mode(ProxyMode::CutAfter(mark));
        count().await.unwrap_err();
        proxy.set_mode(ProxyMode::Forward);
        let start = Instant::now();
        // It was applied once, and no request waits for its lease.
        assert_eq!(count().await.unwrap(), 3);
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
}

/// The same bytes again would restore a lease, or a nonce, that an eviction revoked in between.
#[tokio::test]
async fn retried_lease_request_differs_from_the_first() {
    // With the script, and optimistically.
    for (group, is_known) in [(Some("g"), false), (Some("g"), true), (None, true)] {
        let (server, proxy, store) = behind_a_proxy().await;
        if is_known {
            store.begin(&key(group, "before"), Intent::Fill, HOLD).await.unwrap();
        }
        let _: String = raw(&server, &["CONFIG", "SET", "slowlog-log-slower-than", "0"]).await;
        proxy.set_mode(ProxyMode::CutAfter("wanted"));
        store.begin(&key(group, "wanted"), Intent::Fill, HOLD).await.unwrap_err();
        proxy.set_mode(ProxyMode::Forward);
        type Logged = (u64, u64, u64, Vec<Vec<u8>>, String, String);
        let log: Vec<Logged> = raw(&server, &["SLOWLOG", "GET", "-1"]).await;
        let asks = |words: &Vec<Vec<u8>>| {
            let has = |word: &str| words.iter().any(|own| own == word.as_bytes());
            let is_about_it = words.iter().any(|word| word.windows(6).any(|part| part == b"wanted"));
            is_about_it && (has("EVALSHA") || has("NX"))
        };
        let asked: Vec<_> = log.into_iter().map(|logged| logged.3).filter(asks).collect();
        assert_eq!(asked.len(), 2, "{group:?} {is_known}: an attempt and a retry: {asked:?}");
        assert_ne!(asked[0], asked[1]);
    }
}

#[tokio::test]
async fn lease_is_released_if_its_commit_is_lost() {
    for (group, (value, mark)) in [Some("g"), None].into_iter().zip(committed()) {
        let (server, proxy, store) = behind_a_proxy().await;
        let other = self::store(&server);
        let key = key(group, "a");
        let Acquired::Lease(lease) = store.begin(&key, Intent::Fill, HOLD).await.unwrap() else { panic!() };
        proxy.set_mode(ProxyMode::CutBefore(mark));
        store.commit(&key, &lease, value.into(), MINUTE).await.unwrap_err();
        proxy.set_mode(ProxyMode::Forward);
        let start = Instant::now();
        while matches!(other.begin(&key, Intent::Refresh, HOLD).await, Ok(Acquired::Filling)) {
            assert!(start.elapsed() < Duration::from_secs(3), "the lease is still held");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn unconfirmed_eviction_of_a_prefix_is_retried_after_restart() {
    let keys = [key(Some("g"), "a"), key(None, "a")];
    let (mut server, store) = with_old_data(&keys).await;
    server.kill();
    store.delete_group(&KeySpace::new("p", None).unwrap()).await.unwrap_err();
    server.restart();
    for key in &keys {
        wait_for_evictions(&store, key).await;
        assert_eq!(store.get(key).await.unwrap(), None);
    }
}

#[tokio::test]
async fn unconfirmed_write_becomes_an_eviction() {
    let keys = [key(Some("g"), "a"), key(None, "a"), key(Some("g"), "b"), key(None, "b")];
    let (mut server, store) = with_old_data(&keys).await;
    let mut leases = Vec::new();
    for key in &keys[2..] {
        let Acquired::Lease(lease) = store.begin(key, Intent::Write, HOLD).await.unwrap() else { panic!() };
        leases.push((key, lease));
    }
    server.kill();
    for key in &keys[..2] {
        store.set(key, "new".into(), MINUTE).await.unwrap_err();
    }
    for (key, lease) in &leases {
        store.commit(key, lease, "new".into(), MINUTE).await.unwrap_err();
    }
    server.restart();
    for key in &keys {
        assert_eq!(store.get(key).await.unwrap(), None);
        wait_for_evictions(&store, key).await;
        assert_eq!(store.get(key).await.unwrap(), None);
    }
}

/// Each failed write is one more pending eviction, and the eviction for the previous write may not be confirmed when the next
/// write comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pending_eviction_does_not_delay_or_delete_later_writes() {
    let keys = [key(Some("g"), "a"), key(None, "a")];
    let (mut server, store) = with_old_data(&keys).await;
    for key in &keys {
        server.kill();
        store.set(key, "lost".into(), MINUTE).await.unwrap_err();
        server.restart();
        let start = Instant::now();
        while store.set(key, "new".into(), MINUTE).await.is_err() {
            assert!(start.elapsed() < Duration::from_secs(10), "no recovery");
        }
        // Neither the write nor later reads waited for the eviction's confirmation.
        assert_eq!(store.get(key).await.unwrap().unwrap(), "new", "{key}");
        sleep(SLACK).await;
        assert_eq!(store.get(key).await.unwrap().unwrap(), "new", "{key}");
    }
}

#[tokio::test]
async fn hung_server_returns_nothing_stale_after_it_resumes() {
    for group in [Some("g"), None] {
        let keys = [key(group, "deleted"), key(group, "left"), key(group, "set")];
        let (server, store) = with_old_data(&keys).await;
        let filled = key(group, "filled");
        let Acquired::Lease(lease) = store.begin(&filled, Intent::Fill, HOLD).await.unwrap() else {
            panic!()
        };
        server.pause();
        // An eviction whose caller was dropped counts too. It comes first, because one long silence opens the breaker.
        assert!(tokio::time::timeout(Duration::from_millis(5), store.delete(&keys[1])).await.is_err());
        store.delete(&keys[0]).await.unwrap_err();
        store.set(&keys[2], "unconfirmed".into(), MINUTE).await.unwrap_err();
        store.delete(&filled).await.unwrap_err();
        assert!(!store.commit(&filled, &lease, "late".into(), MINUTE).await.unwrap());
        server.resume();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(1) {
            for key in keys.iter().chain([&filled]) {
                let seen = store.get(key).await;
                assert!(!matches!(seen, Ok(Some(_))), "{key}: {seen:?}");
            }
            sleep(Duration::from_millis(1)).await;
        }
        for key in keys.iter().chain([&filled]) {
            wait_for_evictions(&store, key).await;
            assert_eq!(store.get(key).await.unwrap(), None::<Bytes>);
        }
    }
}

#[test]
fn pending_eviction_outlives_its_runtime() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let evicted = key(Some("g"), "a");
    let (mut server, store) = runtime().block_on(with_old_data(std::slice::from_ref(&evicted)));
    server.kill();
    runtime().block_on(store.delete(&evicted)).unwrap_err();
    server.restart();
    runtime().block_on(async {
        wait_for_evictions(&store, &evicted).await;
        assert_eq!(store.get(&evicted).await.unwrap(), None);
    });
}

#[tokio::test]
async fn closing_sends_pending_evictions() {
    let evicted = key(Some("g"), "a");
    let (mut server, store) = with_old_data(std::slice::from_ref(&evicted)).await;
    server.kill();
    store.delete(&evicted).await.unwrap_err();
    server.restart();
    recovered(&store).await;
    store.close().await;
    assert_eq!(raw::<u64>(&server, &["EXISTS", evicted.name()]).await, 0);
}

/// Calls every function. Each must end within its deadline, and find nothing.
async fn all_calls_meet_their_deadlines(store: &RedisStore) {
    async fn within<T>(deadline: u64, what: &str, call: impl Future<Output = T>) -> T {
        let start = Instant::now();
        let answer = call.await;
        let limit = Duration::from_millis(deadline) + SLACK;
        assert!(start.elapsed() < limit, "{what} took {:?}", start.elapsed());
        answer
    }
    for group in [Some("doomed"), None] {
        let key = key(group, "doomed");
        let lease = Lease::new(*b"F123456789abcdef", [0; 8]);
        assert!(!matches!(within(50, "get", store.get(&key)).await, Ok(Some(_))));
        assert!(!matches!(within(50, "has", store.has(&key)).await, Ok(true)));
        let _ = within(250, "begin", store.begin(&key, Intent::Fill, HOLD)).await;
        let _ = within(250, "renew", store.renew(&key, &lease, HOLD)).await;
        let stored = within(250, "commit", store.commit(&key, &lease, "1".into(), MINUTE)).await;
        assert!(!matches!(stored, Ok(true)));
        let _ = within(250, "abandon", store.abandon(&key, &lease, Abandon::Failed)).await;
        let _ = within(250, "set", store.set(&key, "1".into(), MINUTE)).await;
        let _ = within(500, "delete", store.delete(&key)).await;
        let _ = within(500, "delete_group", store.delete_group(&KeySpace::new("p", Some("doomed")).unwrap()))
            .await;
        assert!(!matches!(within(50, "get", store.get(&key)).await, Ok(Some(_))));
    }
}

/// Waits until the store works again, and has no pending evictions.
async fn works_again(store: &RedisStore) {
    let start = Instant::now();
    for group in [Some("doomed"), None] {
        let key = key(group, "doomed");
        wait_for_evictions(store, &key).await;
        while store.set(&key, "new".into(), MINUTE).await.is_err()
            || store.get(&key).await.ok().flatten().is_none_or(|value| value != "new")
        {
            assert!(start.elapsed() < Duration::from_secs(10), "no recovery");
            sleep(Duration::from_millis(5)).await;
        }
        assert!(store.delete(&key).await.unwrap());
    }
    assert!(start.elapsed() < Duration::from_millis(1500) + SLACK, "{:?}", start.elapsed());
}

/// A server behind a proxy, and a store that has used it.
async fn behind_a_proxy() -> (RedisServer, Proxy, RedisStore) {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.port()).await;
    let store = RedisStore::new(RedisOptions::from_url(&proxy.url()).unwrap());
    works_again(&store).await;
    (server, proxy, store)
}

async fn deadlines_hold_under(fault: ProxyMode) {
    let (_server, proxy, store) = behind_a_proxy().await;
    for _ in 0..2 {
        proxy.set_mode(fault);
        all_calls_meet_their_deadlines(&store).await;
        // Leaves time for the pauses between probes to grow.
        sleep(Duration::from_millis(1200)).await;
        all_calls_meet_their_deadlines(&store).await;
        proxy.set_mode(ProxyMode::Forward);
        works_again(&store).await;
    }
}

#[tokio::test]
async fn deadlines_hold_without_replies() {
    deadlines_hold_under(ProxyMode::BlackHole).await;
}

#[tokio::test]
async fn deadlines_hold_with_slow_replies() {
    deadlines_hold_under(ProxyMode::Slow(Duration::from_millis(400))).await;
}

#[tokio::test]
async fn deadlines_hold_with_invalid_replies() {
    deadlines_hold_under(ProxyMode::Garbage).await;
}

#[tokio::test]
async fn delay_below_the_deadline_causes_no_error() {
    let (_server, proxy, store) = behind_a_proxy().await;
    proxy.set_mode(ProxyMode::Slow(Duration::from_millis(5)));
    let key = key(Some("g"), "a");
    store.set(&key, "1".into(), MINUTE).await.unwrap();
    for _ in 0..20 {
        assert_eq!(store.get(&key).await.unwrap().unwrap(), "1");
    }
}

#[tokio::test]
async fn deadlines_hold_if_the_peer_is_not_redis() {
    for greeting in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"\0\0\0\0",
        b"+OK\r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\n$-7\r\n",
        b"",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let peer = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.write_all(greeting).await;
            }
        });
        let store = RedisStore::new(RedisOptions::from_url(&url).unwrap());
        for _ in 0..3 {
            all_calls_meet_their_deadlines(&store).await;
        }
        peer.abort();
    }
}

#[tokio::test]
async fn deadlines_hold_while_the_server_loads_its_data() {
    // Redis 6 answers only after every two megabytes, so it needs more data to load.
    let (slowly, size) = if version() >= (7, 0) {
        (["--loading-process-events-interval-bytes", "1024"], "100")
    } else {
        (["--rdbcompression", "no"], "10000")
    };
    let server = RedisServer::with_args(&[allow_debug(), &slowly].concat());
    let store = store(&server);
    works_again(&store).await;
    let _: () = raw(&server, &["DEBUG", "POPULATE", "5000", "other", size]).await;
    // In microseconds, for each key.
    let _: () = raw(&server, &["CONFIG", "SET", "key-load-delay", "250"]).await;
    let url = server.url();
    let reload = tokio::spawn(async move {
        let client = redis::Client::open(url).unwrap();
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        let mut conn = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
        redis::cmd("DEBUG").arg("RELOAD").exec_async(&mut conn).await.unwrap();
    });
    sleep(Duration::from_millis(200)).await;
    let mut rounds = 0;
    while !reload.is_finished() {
        all_calls_meet_their_deadlines(&store).await;
        rounds += u32::from(!reload.is_finished());
        sleep(Duration::from_millis(20)).await;
    }
    assert!(rounds > 3, "it did not load for long: {rounds}");
    works_again(&store).await;
}

#[tokio::test]
async fn replica_refuses_writes_and_returns_nothing_evicted() {
    let (server, master) = (RedisServer::start(), RedisServer::start());
    let store = store(&server);
    works_again(&store).await;
    let kept = key(Some("g"), "kept");
    store.set(&kept, "old".into(), MINUTE).await.unwrap();
    let _: () = raw(&server, &["REPLICAOF", "127.0.0.1", &master.port().to_string()]).await;
    for _ in 0..3 {
        all_calls_meet_their_deadlines(&store).await;
        store.set(&key(None, "a"), "1".into(), MINUTE).await.unwrap_err();
        store.delete(&kept).await.unwrap_err();
        assert!(!matches!(store.get(&kept).await, Ok(Some(_))));
    }
    let _: () = raw(&server, &["REPLICAOF", "NO", "ONE"]).await;
    works_again(&store).await;
}

#[tokio::test]
async fn full_server_still_reads_and_evicts() {
    let server = RedisServer::with_args(&["--maxmemory-policy", "noeviction"]);
    let store = store(&server);
    let keys = [key(Some("g"), "a"), key(Some("g"), "b"), key(None, "a")];
    for key in &keys {
        store.set(key, "1".into(), MINUTE).await.unwrap();
    }
    let _: () = raw(&server, &["CONFIG", "SET", "maxmemory", "1"]).await;
    all_calls_meet_their_deadlines(&store).await;
    // Entries can be read and deleted: deleting frees memory.
    for key in &keys {
        assert_eq!(store.get(key).await.unwrap().unwrap(), "1");
        assert!(store.has(key).await.unwrap());
    }
    assert!(matches!(store.begin(&key(None, "new"), Intent::Fill, HOLD).await, Err(StoreError::Refused(_))));
    assert!(store.delete(&keys[2]).await.unwrap());
    assert_eq!(store.delete_group(&keys[0].space()).await.unwrap(), 2);
    for key in &keys {
        assert_eq!(store.get(key).await.unwrap(), None);
    }
    let _: () = raw(&server, &["CONFIG", "SET", "maxmemory", "0"]).await;
    works_again(&store).await;
}

/// A store that logs in as `app`, with these rules for `app`.
async fn as_app(server: &RedisServer, rules: &[&str]) -> RedisStore {
    may(server, rules).await;
    RedisStore::new(RedisOptions::from_url(&server.url()).unwrap().username("app").password("pw"))
}

async fn may(server: &RedisServer, rules: &[&str]) {
    let always = ["ACL", "SETUSER", "app", "reset", "on", ">pw", "~p*", "&*", "+@all"];
    let _: () = raw(server, &[&always, rules].concat()).await;
}

#[tokio::test]
async fn user_without_scripts_reads_and_stores_nothing() {
    let server = RedisServer::start();
    let owner = store(&server);
    let (kept, other) = (key(Some("g"), "kept"), key(None, "kept"));
    for key in [&kept, &other] {
        owner.set(key, "1".into(), MINUTE).await.unwrap();
    }
    let store = as_app(&server, &["-@scripting"]).await;
    for key in [&kept, &other] {
        assert_eq!(store.get(key).await.unwrap().unwrap(), "1");
        assert!(store.has(key).await.unwrap());
    }
    all_calls_meet_their_deadlines(&store).await;
    for group in [Some("h"), None] {
        let key = key(group, "new");
        assert!(matches!(store.begin(&key, Intent::Fill, HOLD).await, Err(StoreError::Refused(_))));
        assert!(matches!(store.set(&key, "1".into(), MINUTE).await, Err(StoreError::Refused(_))));
        assert!(matches!(store.delete(&key).await, Err(StoreError::Refused(_))));
        // Without the script that ensures the eviction, nothing is stored.
        assert_eq!(raw::<u64>(&server, &["EXISTS", key.name()]).await, 0);
    }
    // The refusals concern no other keys.
    assert_eq!(store.get(&kept).await.unwrap().unwrap(), "1");
    may(&server, &[]).await;
    works_again(&store).await;
}

#[tokio::test]
async fn user_without_scan_cannot_evict_a_prefix() {
    let server = RedisServer::start();
    let store = as_app(&server, &["-scan"]).await;
    let (kept, whole) = (key(Some("g"), "kept"), KeySpace::new("p", None).unwrap());
    let other = KeySpace::new("pp", Some("g")).unwrap().key("other");
    for key in [&kept, &other] {
        store.set(key, "1".into(), MINUTE).await.unwrap();
    }
    works_again(&store).await;
    assert_eq!(store.get(&kept).await.unwrap().unwrap(), "1");
    assert!(matches!(store.delete_group(&whole).await, Err(StoreError::Refused(_))));
    // The prefix counts as empty until its eviction succeeds.
    all_calls_meet_their_deadlines(&store).await;
    assert_eq!(store.get(&kept).await.unwrap(), None);
    assert_eq!(store.get(&other).await.unwrap().unwrap(), "1");
    may(&server, &[]).await;
    wait_for_evictions(&store, &kept).await;
    assert_eq!(raw::<u64>(&server, &["EXISTS", kept.name()]).await, 0);
    works_again(&store).await;
}
