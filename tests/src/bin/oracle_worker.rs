//! One of several processes that read, evict and update through one cache. An oracle in another Redis holds the true values.
//!
//! `oracle_worker ORACLE_URL CACHE_URL plain|tier SECONDS` prints `reads=… evictions=… updates=… stale=…`.
//!
//! Each resource has a version in the oracle. A change increments it, evicts or replaces the entry in the cache, and once that is
//! confirmed, raises the floor of the resource. A read takes the floor first: a version below it was evicted before the read
//! began. With a tier, the floor of other processes counts once their messages must have arrived ([`MAX_STALE`]), and that of
//! this process at once.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::handler::Handler;
use axum::routing::get as get_route;
use bytes::Bytes;
use http::Method;
use larder_axum::{CacheBackend, CacheError, Larder, cache};
use larder_core::store::redis::MAX_STALE;
use larder_core::{Abandon, Acquired, Intent, KeySpace, LeaseStore, RedisOptions, RedisStore};
use larder_tests::in_process::send;
use larder_tests::redis_server::connect_without_deadline;
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep};

/// Raises the floor to a value, if that is greater.
const RAISE: &str = "local f = tonumber(redis.call('GET', KEYS[1]) or '0') \
                     if tonumber(ARGV[1]) > f then redis.call('SET', KEYS[1], ARGV[1]) end";

/// The number of tasks in each process, and of resources of each kind.
const TASKS: usize = 6;
const RESOURCES: u64 = 3;

const PREFIX: &str = "oracle:cache";
const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

/// Extra time for the bound of a tier on a busy machine.
const SLACK: Duration = Duration::from_millis(500);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, oracle, cache, kind, seconds] = &args[..] else {
        panic!("oracle_worker ORACLE_URL CACHE_URL plain|tier SECONDS")
    };
    let options = RedisOptions::from_url(cache).unwrap().read_deadline(Duration::from_millis(150));
    let store = RedisStore::new(options);
    let truth = Truth::new(oracle, kind == "tier").await;
    let until = Instant::now() + Duration::from_secs(seconds.parse().unwrap());
    match &**kind {
        "plain" => Worker::new(store, truth).run(until).await,
        _ => Worker::new(store.with_local(PREFIX, 16 << 20), truth).run(until).await,
    }
}

/// The oracle, and the counts of this process.
struct Truth {
    oracle: MultiplexedConnection,
    is_tier: bool,
    /// Floors that this process has seen, by resource, with the time.
    seen: Mutex<HashMap<String, VecDeque<(Instant, u64)>>>,
    /// Floors that this process has raised.
    own: Mutex<HashMap<String, u64>>,
    reads: AtomicU64,
    evictions: AtomicU64,
    updates: AtomicU64,
    stale: AtomicU64,
}

impl Truth {
    async fn new(url: &str, is_tier: bool) -> Self {
        Self {
            oracle: connect_without_deadline(url).await,
            is_tier,
            seen: Mutex::default(),
            own: Mutex::default(),
            reads: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            updates: AtomicU64::new(0),
            stale: AtomicU64::new(0),
        }
    }

    async fn ask(&self, command: &str, name: String) -> u64 {
        let answer: Option<u64> =
            redis::cmd(command).arg(name).query_async(&mut self.oracle.clone()).await.unwrap();
        answer.unwrap_or(0)
    }

    async fn version(&self, resource: &str) -> u64 {
        let version = self.ask("GET", format!("version:{resource}")).await;
        // Sometimes waits, so that the value is old when it is stored.
        sleep(Duration::from_micros(fastrand::u64(0..600))).await;
        version
    }

    async fn change(&self, resource: &str) -> u64 {
        let version = self.ask("INCR", format!("version:{resource}")).await;
        sleep(Duration::from_micros(fastrand::u64(0..300))).await;
        version
    }

    /// Returns the version below which a read that begins now is stale.
    async fn floor(&self, resource: &str) -> u64 {
        let floor = self.ask("GET", format!("floor:{resource}")).await;
        if !self.is_tier {
            return floor;
        }
        let mut seen = self.seen.lock().unwrap();
        let seen = seen.entry(resource.to_owned()).or_default();
        let now = Instant::now();
        seen.push_back((now, floor));
        while seen.get(1).is_some_and(|(at, _)| now - *at > MAX_STALE + SLACK) {
            seen.pop_front();
        }
        let heard =
            seen.front().filter(|(at, _)| now - *at > MAX_STALE + SLACK).map_or(0, |(_, floor)| *floor);
        heard.max(self.own.lock().unwrap().get(resource).copied().unwrap_or(0))
    }

    fn read(&self, resource: &str, floor: u64, version: u64, how: &str) {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if version < floor {
            self.stale.fetch_add(1, Ordering::SeqCst);
            eprintln!("{resource}: {how} answered {version}, and {floor} was confirmed before");
        }
    }

    async fn confirmed(&self, resource: &str, version: u64) {
        {
            let mut own = self.own.lock().unwrap();
            let own = own.entry(resource.to_owned()).or_default();
            *own = version.max(*own);
        }
        let raise = redis::Script::new(RAISE);
        let mut raise = raise.key(format!("floor:{resource}"));
        let () = raise.arg(version).invoke_async(&mut self.oracle.clone()).await.unwrap();
        self.evictions.fetch_add(1, Ordering::SeqCst);
    }
}

struct Worker<S> {
    store: S,
    truth: Arc<Truth>,
    backend: CacheBackend,
    larder: Larder,
    app: Router,
}

impl<S: LeaseStore + Clone> Worker<S> {
    fn new(store: S, truth: Truth) -> Arc<Self> {
        let larder = Larder::builder().prefix(PREFIX).store(store.clone()).build();
        let truth = Arc::new(truth);
        let asked = Arc::clone(&truth);
        let read = move |Path(n): Path<u64>| {
            let asked = Arc::clone(&asked);
            async move {
                let version = asked.version(&format!("r{n}")).await;
                ([("vary", "x-lang")], version.to_string())
            }
        };
        let app = Router::new().route("/r/{n}", get_route(read.layer(cache(&larder).group("r").ttl(60))));
        Arc::new(Self { store, truth, backend: larder.backend(), larder, app })
    }

    async fn run(self: Arc<Self>, until: Instant) {
        let tasks: Vec<_> = (0..TASKS).map(|_| tokio::spawn(Arc::clone(&self).task(until))).collect();
        for task in tasks {
            task.await.unwrap();
        }
        self.larder.close().await;
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        println!(
            "reads={} evictions={} updates={} stale={}",
            count(&self.truth.reads),
            count(&self.truth.evictions),
            count(&self.truth.updates),
            count(&self.truth.stale)
        );
    }

    async fn task(self: Arc<Self>, until: Instant) {
        while Instant::now() < until {
            let n = fastrand::u64(0..RESOURCES);
            let changes = fastrand::u8(0..5) == 0;
            match fastrand::u8(0..4) {
                0 if changes => self.evict_value(n).await,
                0 => self.read_value(n).await,
                1 if changes => self.write_under_a_lease(n).await,
                1 => self.read_under_a_lease(n).await,
                2 if changes => self.evict_route(n).await,
                2 => self.read_route(n).await,
                _ => self.update(n).await,
            }
        }
    }

    /// Returns a backend with a group or without one.
    fn values(&self, n: u64) -> CacheBackend {
        if n.is_multiple_of(2) { self.backend.group("b") } else { self.backend.clone() }
    }

    async fn read_value(&self, n: u64) {
        let name = format!("b{n}");
        let floor = self.truth.floor(&name).await;
        let values = self.values(n);
        if fastrand::bool() {
            let compute = || async { Ok::<_, ()>(self.truth.version(&name).await) };
            let version = values.get_or_set(&name, 60, compute).await.unwrap();
            self.truth.read(&name, floor, version, "get_or_set");
        } else if let Ok(Some(version)) = values.try_get(&name).await {
            self.truth.read(&name, floor, version, "get");
        }
    }

    async fn evict_value(&self, n: u64) {
        let name = format!("b{n}");
        let version = self.truth.change(&name).await;
        let values = self.values(n);
        let confirmed = match fastrand::u8(0..4) {
            0 if n.is_multiple_of(2) => values.try_delete_group().await.is_ok(),
            _ => values.try_delete(&name).await.is_ok(),
        };
        if confirmed {
            self.truth.confirmed(&name, version).await;
        }
    }

    fn lease_key(n: u64) -> larder_core::CacheKey {
        KeySpace::new(PREFIX, (n.is_multiple_of(2)).then_some("l")).unwrap().key(&format!("l{n}"))
    }

    async fn read_under_a_lease(&self, n: u64) {
        let (name, key) = (format!("l{n}"), Self::lease_key(n));
        let floor = self.truth.floor(&name).await;
        let parse = |value: &Bytes| std::str::from_utf8(value).unwrap().parse::<u64>().unwrap();
        if let Ok(Some(value)) = self.store.get(&key).await {
            return self.truth.read(&name, floor, parse(&value), "a store's get");
        }
        match self.store.begin(&key, Intent::Fill, Duration::from_secs(1)).await {
            Ok(Acquired::Found(value)) => self.truth.read(&name, floor, parse(&value), "begin"),
            Ok(Acquired::Lease(lease)) => {
                let version = self.truth.version(&name).await;
                let _ = self.store.commit(&key, &lease, version.to_string().into(), MINUTE).await;
            }
            _ => {}
        }
    }

    async fn write_under_a_lease(&self, n: u64) {
        let (name, key) = (format!("l{n}"), Self::lease_key(n));
        let begun = self.store.begin(&key, Intent::Write, Duration::from_secs(1)).await;
        let version = self.truth.change(&name).await;
        let stored = match begun {
            Ok(Acquired::Lease(lease)) if fastrand::u8(0..8) == 0 => {
                let _ = self.store.abandon(&key, &lease, Abandon::Failed).await;
                false
            }
            Ok(Acquired::Lease(lease)) => {
                self.store.commit(&key, &lease, version.to_string().into(), MINUTE).await.unwrap_or(false)
            }
            _ => false,
        };
        if stored || self.store.delete(&key).await.is_ok() {
            self.truth.confirmed(&name, version).await;
        }
    }

    async fn read_route(&self, n: u64) {
        let name = format!("r{n}");
        let floor = self.truth.floor(&name).await;
        let language = fastrand::u8(0..6).to_string();
        let answer = send(&self.app, Method::GET, &format!("/r/{n}"), &[("x-lang", &language)]).await;
        let how = format!("a route ({}, x-lang: {language})", answer.cache());
        self.truth.read(&name, floor, answer.text().parse().unwrap(), &how);
    }

    async fn evict_route(&self, n: u64) {
        let name = format!("r{n}");
        let key = self.larder.key_for("r", &format!("/r/{n}").parse().unwrap()).unwrap();
        let version = self.truth.change(&name).await;
        if self.store.delete(&key).await.is_ok() {
            self.truth.confirmed(&name, version).await;
        }
    }

    /// Counts the call before and after: an update that failed may still have happened.
    async fn update(&self, n: u64) {
        let name = format!("u{n}");
        self.truth.ask("INCR", format!("tried:{name}")).await;
        let counters = if n.is_multiple_of(2) { self.backend.group("u") } else { self.backend.clone() };
        if fastrand::bool() {
            // Makes a tier keep a copy, which the update must not build on.
            let _ = counters.try_get::<u64>(&name).await;
        }
        let updated = counters.update(&name, 3600, |count: Option<u64>| count.unwrap_or(0) + 1).await;
        match updated {
            Ok(_) => {
                self.truth.ask("INCR", format!("made:{name}")).await;
                self.truth.updates.fetch_add(1, Ordering::SeqCst);
            }
            Err(CacheError::Store(_) | CacheError::Contended) => {}
            Err(error) => panic!("{name}: {error}"),
        }
    }
}
