//! Requests that need only a part of a large value, over slow connections: the bytes that they read from Redis, and their effect
//! on other requests.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::handler::Handler;
use axum::routing::get as get_route;
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, Method, StatusCode};
use larder_axum::{Larder, cache, cache_evict};
use larder_core::store::{Breaker, Health, MemoryStore, ValueHead};
use larder_core::{CacheKey, CacheStore, KeySpace, RedisOptions, RedisStore, StoreError};
use larder_tests::in_process::{Answer, Runs, get, send};
use larder_tests::proxy::{Proxy, ProxyMode};
use larder_tests::redis_server::{RedisServer, calls, patient};
use tokio::time::{Instant, sleep};

/// The length of a large value.
const LARGE: usize = 900_000;

/// The most bytes that a request may read from Redis if it needs only the head of a large value.
const LITTLE: u64 = 16 * 1024;

const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

/// 100 and 20 Mbit/s, in bytes per second.
const SLOW: u64 = 12_500_000;
const SLOWEST: u64 = 2_500_000;

/// A Redis behind a proxy that counts and throttles.
struct Far {
    proxy: Proxy,
    redis: RedisServer,
}

impl Far {
    async fn start() -> Self {
        let redis = RedisServer::start();
        Self { proxy: Proxy::to(redis.port()).await, redis }
    }

    fn options(&self) -> RedisOptions {
        RedisOptions::from_url(&self.proxy.url()).unwrap()
    }

    fn store(&self) -> RedisStore {
        RedisStore::new(self.options())
    }

    fn larder(&self) -> Larder {
        Larder::builder().store(RedisStore::new(patient(self.options()))).build()
    }

    /// Runs `work` and returns the bytes that came from Redis meanwhile.
    async fn cost<T>(&self, work: impl Future<Output = T>) -> (T, u64) {
        let before = self.proxy.answered();
        let done = work.await;
        (done, self.proxy.answered() - before)
    }
}

fn key(group: Option<&str>, suffix: &str) -> CacheKey {
    KeySpace::new("p", group).unwrap().key(suffix)
}

/// A body in which every eight bytes contain their position.
fn body() -> Bytes {
    (0..LARGE / 8).map(|at| format!("{at:08}")).collect::<String>().into()
}

fn breaker(health: &Health) -> Breaker {
    health.servers[0].breaker
}

const TAG: &str = "\"v1\"";

/// A small page, and large ones: in a group, in none, and with `Vary`.
fn app(larder: &Larder, runs: &Runs) -> Router {
    let page = |varies: bool| {
        let runs = runs.clone();
        move |headers: HeaderMap| async move {
            runs.count();
            let _ = headers;
            let mut answer = HeaderMap::new();
            answer.insert("etag", TAG.parse().unwrap());
            if varies {
                answer.insert("vary", "accept-language".parse().unwrap());
            }
            (answer, body())
        }
    };
    let small = {
        let runs = runs.clone();
        move || async move {
            runs.count();
            "small"
        }
    };
    Router::new()
        .route("/grouped", get_route(page(false).layer(cache(larder).group("g").ttl(60))))
        .route("/plain", get_route(page(false).layer(cache(larder).ttl(60))))
        .route("/varied", get_route(page(true).layer(cache(larder).group("g").ttl(60))))
        .route("/small/{n}", get_route(small.layer(cache(larder).group("small").ttl(60))))
}

const PAGES: [&str; 3] = ["/grouped", "/plain", "/varied"];

/// A request and its expected response.
struct Case {
    name: &'static str,
    method: Method,
    fields: &'static [(&'static str, &'static str)],
    status: StatusCode,
    body: Range<usize>,
    is_cheap: bool,
}

impl Case {
    fn get(
        name: &'static str,
        fields: &'static [(&'static str, &'static str)],
        status: StatusCode,
        body: Range<usize>,
    ) -> Self {
        let is_cheap = body.len() < 1024;
        Self { name, method: Method::GET, fields, status, body, is_cheap }
    }
}

fn cases() -> Vec<Case> {
    use StatusCode as S;
    vec![
        Case { method: Method::HEAD, ..Case::get("HEAD", &[], S::OK, 0..0) },
        Case { method: Method::HEAD, ..Case::get("HEAD, ranged", &[("range", "bytes=0-0")], S::OK, 0..0) },
        Case {
            method: Method::HEAD,
            ..Case::get("HEAD, conditional", &[("if-none-match", TAG)], S::NOT_MODIFIED, 0..0)
        },
        Case::get("the same tag", &[("if-none-match", TAG)], S::NOT_MODIFIED, 0..0),
        Case::get("any tag", &[("if-none-match", "*")], S::NOT_MODIFIED, 0..0),
        Case::get("another tag", &[("if-none-match", "\"v0\"")], S::OK, 0..LARGE),
        Case::get("first byte", &[("range", "bytes=0-0")], S::PARTIAL_CONTENT, 0..1),
        Case::get("a byte near the head", &[("range", "bytes=1000-1000")], S::PARTIAL_CONTENT, 1000..1001),
        Case::get("across the head", &[("range", "bytes=3500-4500")], S::PARTIAL_CONTENT, 3500..4501),
        Case::get("in the middle", &[("range", "bytes=450000-450007")], S::PARTIAL_CONTENT, 450_000..450_008),
        Case::get("the last bytes", &[("range", "bytes=-8")], S::PARTIAL_CONTENT, LARGE - 8..LARGE),
        Case::get("all of it", &[("range", "bytes=0-")], S::PARTIAL_CONTENT, 0..LARGE),
        Case::get("beyond it", &[("range", "bytes=900000-")], S::RANGE_NOT_SATISFIABLE, 0..0),
        Case::get("two ranges", &[("range", "bytes=0-0,5-5")], S::OK, 0..LARGE),
        Case::get(
            "a range of this version",
            &[("range", "bytes=8-15"), ("if-range", TAG)],
            S::PARTIAL_CONTENT,
            8..16,
        ),
        Case::get(
            "a range of another version",
            &[("range", "bytes=8-15"), ("if-range", "\"v0\"")],
            S::OK,
            0..LARGE,
        ),
        Case::get(
            "a range of what the client has",
            &[("range", "bytes=8-15"), ("if-none-match", TAG)],
            S::NOT_MODIFIED,
            0..0,
        ),
    ]
}

fn check(page: &str, case: &Case, answer: &Answer) {
    let what = format!("{page}, {}", case.name);
    let is_hit = answer.cache() == "HIT" || answer.header("cache-status").contains("; hit");
    assert!(is_hit, "{what}: {:?}", answer.headers);
    assert_eq!(answer.status, case.status, "{what}");
    assert_eq!(
        answer.header("etag"),
        if case.status == StatusCode::RANGE_NOT_SATISFIABLE { "" } else { TAG },
        "{what}"
    );
    assert!(answer.body == body()[case.body.clone()], "{what}: {} bytes", answer.body.len());
    let Range { start, end } = case.body;
    let range = match case.status {
        StatusCode::PARTIAL_CONTENT => format!("bytes {start}-{}/{LARGE}", end - 1),
        StatusCode::RANGE_NOT_SATISFIABLE => format!("bytes */{LARGE}"),
        _ => String::new(),
    };
    assert_eq!(answer.header("content-range"), range, "{what}");
    if case.method == Method::HEAD && case.status == StatusCode::OK {
        assert_eq!(answer.header("content-length"), LARGE.to_string(), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_read_only_the_needed_part_of_a_large_value() {
    let far = Far::start().await;
    let runs = Runs::new();
    let app = app(&far.larder(), &runs);
    for page in PAGES {
        get(&app, page).await;
        let (whole, cost) = far.cost(get(&app, page)).await;
        assert!(whole.body == body() && cost > LARGE as u64, "{page}");
        for case in cases() {
            let (answer, cost) = far.cost(send(&app, case.method.clone(), page, case.fields)).await;
            check(page, &case, &answer);
            let limit = if case.is_cheap { LITTLE } else { LARGE as u64 + LITTLE };
            assert!(cost < limit, "{page}, {}: {cost} bytes", case.name);
        }
    }
    assert_eq!(runs.total(), PAGES.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_cache_reads_only_the_needed_part_of_a_large_value() {
    let far = Far::start().await;
    let larder = far.larder();
    let runs = Runs::new();
    let page = |varies: bool, lifetime: &'static str| {
        let runs = runs.clone();
        move |headers: HeaderMap| async move {
            runs.count();
            let mut answer = HeaderMap::new();
            answer.insert("etag", TAG.parse().unwrap());
            answer.insert("cache-control", lifetime.parse().unwrap());
            if varies {
                answer.insert("vary", "accept-language".parse().unwrap());
            }
            if headers.get("if-none-match").is_some_and(|tag| tag == TAG) {
                return (StatusCode::NOT_MODIFIED, answer, Bytes::new());
            }
            (StatusCode::OK, answer, body())
        }
    };
    let app = Router::new()
        .route("/plain", get_route(page(false, "max-age=60")))
        .route("/varied", get_route(page(true, "max-age=60")))
        .route("/stale", get_route(page(false, "no-cache")))
        .layer(larder_axum::SharedCacheLayer::new(&larder));
    for page in ["http://a.example/plain", "http://a.example/varied"] {
        stored(&app, page).await;
        let warmed = runs.total();
        for case in cases() {
            let (answer, cost) = far.cost(send(&app, case.method.clone(), page, case.fields)).await;
            check(page, &case, &answer);
            let limit = if case.is_cheap { LITTLE } else { LARGE as u64 + LITTLE };
            assert!(cost < limit, "{page}, {}: {cost} bytes", case.name);
        }
        assert_eq!(runs.total(), warmed, "{page}");
    }
    // An entry that has to be validated and stored again keeps its body.
    let page = "http://a.example/stale";
    stored(&app, page).await;
    for case in cases() {
        let answer = send(&app, case.method.clone(), page, case.fields).await;
        assert_eq!(answer.status, case.status, "{}", case.name);
        assert!(answer.body == body()[case.body.clone()], "{}: {} bytes", case.name, answer.body.len());
        assert!(get(&app, page).await.body == body(), "after {}", case.name);
    }
}

/// Sends requests until the response is stored, which is shortly after it was sent.
async fn stored(app: &Router, uri: &str) {
    let start = Instant::now();
    while get(app, uri).await.header("cache-status").contains("uri-miss") {
        assert!(start.elapsed() < Duration::from_secs(10), "{uri} is never stored");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tier_stores_heads_until_it_has_the_whole_value() {
    let far = Far::start().await;
    let warm = app(&far.larder(), &Runs::new());
    let runs = Runs::new();
    let larder = Larder::builder().redis_with_local(patient(far.options()), 16 << 20).build();
    let app = app(&larder, &runs);
    for page in PAGES {
        get(&warm, page).await;
        // The tier stores nothing until its connection for invalidation messages is ready.
        let start = Instant::now();
        loop {
            let (_, cost) = far.cost(send(&app, Method::HEAD, page, &[])).await;
            if cost == 0 {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(5), "{page}: the head is never kept");
            sleep(Duration::from_millis(20)).await;
        }
        for whole in [false, true] {
            if whole {
                assert!(get(&app, page).await.body == body(), "{page}");
            }
            for case in cases().iter().filter(|case| whole || case.is_cheap) {
                let (answer, cost) = far.cost(send(&app, case.method.clone(), page, case.fields)).await;
                check(page, case, &answer);
                assert!(cost < LITTLE, "{page}, {}: {cost} bytes", case.name);
            }
        }
    }
    assert_eq!(runs.total(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_are_as_current_as_whole_values() {
    for tier in [false, true] {
        let far = Far::start().await;
        let mine = if tier {
            Larder::builder().redis_with_local(patient(far.options()), 16 << 20).build()
        } else {
            far.larder()
        };
        let version = Arc::new(AtomicUsize::new(1));
        let page = {
            let version = version.clone();
            move || async move {
                let tag = format!("\"v{}\"", version.load(Ordering::SeqCst));
                ([("etag", tag)], body())
            }
        };
        let change = {
            let version = version.clone();
            move || async move { version.fetch_add(1, Ordering::SeqCst).to_string() }
        };
        let app = Router::new().route(
            "/x",
            get_route(page.layer(cache(&mine).group("h").ttl(60)))
                .delete(change.clone().layer(cache_evict(&mine).group("h").key()))
                .post(change.layer(cache_evict(&mine).group("h").whole_group())),
        );
        for write in [Method::DELETE, Method::POST].into_iter().cycle().take(20) {
            get(&app, "/x").await;
            let tag = format!("\"v{}\"", version.load(Ordering::SeqCst));
            assert_eq!(send(&app, Method::HEAD, "/x", &[]).await.header("etag"), tag);
            send(&app, write, "/x", &[]).await;
            let now = send(&app, Method::HEAD, "/x", &[]).await;
            assert_ne!(now.header("etag"), tag, "an answer from before the eviction");
            let same = send(&app, Method::GET, "/x", &[("if-none-match", &tag)]).await;
            assert_eq!(same.status, StatusCode::OK);
        }
    }
}

/// A store whose values change between the read of their head and that of a part.
struct Shifting {
    store: MemoryStore,
    next: Bytes,
    shifts: AtomicBool,
    parts: AtomicUsize,
}

impl CacheStore for Shifting {
    async fn get(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        self.store.get(key).await
    }

    async fn get_head(&self, key: &CacheKey, limit: usize) -> Result<Option<ValueHead>, StoreError> {
        let value = self.store.get(key).await?;
        Ok(value.map(|value| ValueHead { length: value.len(), bytes: value.slice(..limit.min(value.len())) }))
    }

    async fn get_range(
        &self,
        key: &CacheKey,
        head: &Bytes,
        range: Range<usize>,
    ) -> Result<Option<Bytes>, StoreError> {
        self.parts.fetch_add(1, Ordering::SeqCst);
        if self.shifts.load(Ordering::SeqCst) {
            self.store.set(key, self.next.clone(), MINUTE).await?;
        }
        let value = self.store.get(key).await?;
        Ok(value.filter(|value| value.starts_with(head)).map(|value| value.slice(range)))
    }

    async fn set(&self, key: &CacheKey, value: Bytes, ttl: Option<Duration>) -> Result<(), StoreError> {
        self.store.set(key, value, ttl).await
    }

    async fn delete(&self, key: &CacheKey) -> Result<bool, StoreError> {
        self.store.delete(key).await
    }

    async fn delete_group(&self, group: &KeySpace) -> Result<u64, StoreError> {
        self.store.delete_group(group).await
    }
}

#[tokio::test]
async fn part_and_head_are_of_the_same_version() {
    // The record of the second version, as the cache itself writes it.
    let record = {
        let store = MemoryStore::new();
        let larder = Larder::builder().store(store.clone()).build();
        get(&versioned(&larder, "b"), "/x").await;
        let key = larder.key_for("g", &"/x".parse().unwrap()).unwrap();
        store.get(&key).await.unwrap().unwrap()
    };
    let shifting = Shifting {
        store: MemoryStore::new(),
        next: record,
        shifts: AtomicBool::new(false),
        parts: AtomicUsize::new(0),
    };
    let shifting = Arc::new(shifting);
    let app = versioned(&Larder::new(Shared(shifting.clone())), "a");
    get(&app, "/x").await;
    let range = [("range", "bytes=500000-500003")];
    let before = send(&app, Method::GET, "/x", &range).await;
    assert_eq!((before.text(), before.header("etag")), ("aaaa", "\"a\""));
    assert_eq!(shifting.parts.load(Ordering::SeqCst), 1, "the part was read alone");
    shifting.shifts.store(true, Ordering::SeqCst);
    let between = send(&app, Method::GET, "/x", &range).await;
    assert_eq!((between.text(), between.header("etag")), ("bbbb", "\"b\""));
    assert_eq!(between.cache(), "HIT");
}

/// A page of one repeated letter, which is also its tag.
fn versioned(larder: &Larder, letter: &'static str) -> Router {
    let page = move || async move { ([("etag", format!("\"{letter}\""))], letter.repeat(LARGE)) };
    Router::new().route("/x", get_route(page.layer(cache(larder).group("g").ttl(60))))
}

/// A store that the test keeps a reference to.
struct Shared(Arc<Shifting>);

impl CacheStore for Shared {
    async fn get(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        self.0.get(key).await
    }

    async fn get_head(&self, key: &CacheKey, limit: usize) -> Result<Option<ValueHead>, StoreError> {
        self.0.get_head(key, limit).await
    }

    async fn get_range(
        &self,
        key: &CacheKey,
        head: &Bytes,
        range: Range<usize>,
    ) -> Result<Option<Bytes>, StoreError> {
        self.0.get_range(key, head, range).await
    }

    async fn set(&self, key: &CacheKey, value: Bytes, ttl: Option<Duration>) -> Result<(), StoreError> {
        self.0.set(key, value, ttl).await
    }

    async fn delete(&self, key: &CacheKey) -> Result<bool, StoreError> {
        self.0.delete(key).await
    }

    async fn delete_group(&self, group: &KeySpace) -> Result<u64, StoreError> {
        self.0.delete_group(group).await
    }
}

/// Measures the effect of 150 requests a second on other requests, over a slow connection on which a whole value takes most of
/// the deadline.
async fn flood(method: Method, fields: &[(&str, &str)]) {
    let far = Far::start().await;
    let runs = Runs::new();
    // Ten times the default, for busy machines.
    let options =
        far.options().read_deadline(Duration::from_millis(500)).fill_deadline(Duration::from_secs(5));
    let larder = Larder::builder().store(RedisStore::new(options)).build();
    let app = app(&larder, &runs);
    get(&app, "/grouped").await;
    for n in 0..20 {
        get(&app, &format!("/small/{n}")).await;
    }
    let warmed = runs.total();
    far.proxy.set_mode(ProxyMode::Throttled(SLOWEST));
    let flooding = async {
        let mut hits = 0;
        for _ in 0..30 {
            let answers = join_all((0..5).map(|_| send(&app, method.clone(), "/grouped", fields))).await;
            hits += answers.iter().filter(|answer| answer.cache() == "HIT").count();
            sleep(Duration::from_millis(33)).await;
        }
        hits
    };
    let others = async {
        let mut hits = 0;
        for n in 0..400 {
            hits += usize::from(get(&app, &format!("/small/{}", n % 20)).await.cache() == "HIT");
            sleep(Duration::from_millis(2)).await;
        }
        hits
    };
    let (hits, others) = tokio::join!(flooding, others);
    assert_eq!((hits, others, runs.total() - warmed), (150, 400, 0), "{method} {fields:?}");
    assert_eq!(breaker(&larder.stats().store.health), Breaker::Closed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_head_requests_do_not_slow_other_hits() {
    flood(Method::HEAD, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_validations_do_not_slow_other_hits() {
    flood(Method::GET, &[("if-none-match", TAG)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_ranges_do_not_slow_other_hits() {
    flood(Method::GET, &[("range", "bytes=700000-700000")]).await;
}

/// All callers get the value. It is read at most twice: for the first caller, and for those that came meanwhile.
async fn readers_share(far: &Far, store: &impl CacheStore) {
    let keys = [key(Some("g"), "large"), key(None, "large")];
    for key in &keys {
        store.set(key, body(), MINUTE).await.unwrap();
    }
    far.proxy.set_mode(ProxyMode::Throttled(SLOW));
    for key in &keys {
        let (values, cost) = far.cost(join_all((0..12).map(|_| store.get(key)))).await;
        assert!(values.into_iter().all(|value| value.unwrap() == Some(body())), "{key}");
        assert!(cost < 2 * LARGE as u64 + LITTLE, "{key}: {cost} bytes");
        store.delete(key).await.unwrap();
        let values = join_all((0..3).map(|_| store.get(key))).await;
        assert!(values.into_iter().all(|value| value.unwrap().is_none()), "{key}");
    }
    far.proxy.set_mode(ProxyMode::Forward);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_readers_of_a_large_value_share_a_read() {
    let far = Far::start().await;
    let store = RedisStore::new(patient(far.options()));
    readers_share(&far, &store).await;
    readers_share(&far, &store.with_local("p", 16 << 20)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_begun_before_an_eviction_is_not_shared_after_it() {
    let far = Far::start().await;
    let store = RedisStore::new(patient(far.options()));
    let other = RedisStore::new(patient(RedisOptions::from_url(&far.redis.url()).unwrap()));
    let key = key(Some("g"), "large");
    for round in 0..5 {
        store.set(&key, body(), MINUTE).await.unwrap();
        far.proxy.set_mode(ProxyMode::Throttled(SLOWEST));
        let before = tokio::spawn({
            let (store, key) = (store.clone(), key.clone());
            async move { store.get(&key).await }
        });
        sleep(Duration::from_millis(30)).await;
        other.delete(&key).await.unwrap();
        let after = join_all((0..3).map(|_| store.get(&key))).await;
        assert!(
            after.into_iter().all(|value| value.unwrap().is_none()),
            "older than the eviction, round {round}"
        );
        assert!(before.await.unwrap().unwrap() == Some(body()), "the read was not in progress");
        far.proxy.set_mode(ProxyMode::Forward);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_value_is_requested_once_while_it_is_in_transit() {
    let far = Far::start().await;
    let store = far.store();
    let key = key(Some("g"), "large");
    RedisStore::new(patient(far.options())).set(&key, body(), MINUTE).await.unwrap();
    let _ = store.get(&key).await;
    far.proxy.set_mode(ProxyMode::Throttled(SLOWEST));
    let start = Instant::now();
    let mut timeouts = 0;
    while start.elapsed() < Duration::from_secs(2) {
        let values = join_all((0..12).map(|_| store.get(&key))).await;
        timeouts += values.iter().filter(|value| matches!(value, Err(StoreError::Timeout(_)))).count();
    }
    assert!(timeouts > 100, "readers don't wait longer than their deadline: {timeouts} timeouts");
    let client = redis::Client::open(far.redis.url()).unwrap();
    let mut direct = client.get_multiplexed_async_connection().await.unwrap();
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(&mut direct).await.unwrap();
    // One read takes a third of a second.
    assert!(calls(&stats, "mget") < 20, "{} times", calls(&stats, "mget"));
    assert_eq!(breaker(&store.health()), Breaker::Closed);
}

#[tokio::test]
async fn store_outlives_the_runtime_of_its_reads() {
    let far = Far::start().await;
    let store = RedisStore::new(patient(far.options()));
    let key = key(Some("g"), "large");
    store.set(&key, body(), MINUTE).await.unwrap();
    far.proxy.set_mode(ProxyMode::Throttled(SLOWEST));
    let (other, name) = (store.clone(), key.clone());
    let cut_short = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let get = async { tokio::time::timeout(Duration::from_millis(30), other.get(&name)).await };
        assert!(runtime.block_on(get).is_err());
    });
    tokio::task::spawn_blocking(|| cut_short.join().unwrap()).await.unwrap();
    far.proxy.set_mode(ProxyMode::Forward);
    assert!(store.get(&key).await.unwrap() == Some(body()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values_on_a_slow_connection_leave_the_breaker_closed() {
    let far = Far::start().await;
    let store = far.store();
    let (large, small) = (key(Some("g"), "large"), key(None, "small"));
    let writer = RedisStore::new(patient(far.options()));
    writer.set(&large, body(), MINUTE).await.unwrap();
    writer.set(&small, "small".into(), MINUTE).await.unwrap();
    far.proxy.set_mode(ProxyMode::Throttled(SLOWEST));
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        let large = join_all((0..4).map(|_| store.get(&large)));
        let small = join_all((0..4).map(|_| store.get(&small)));
        tokio::join!(large, small);
        assert_eq!(breaker(&store.health()), Breaker::Closed, "after {:?}", start.elapsed());
    }
    far.proxy.set_mode(ProxyMode::BlackHole);
    let start = Instant::now();
    while breaker(&store.health()) != Breaker::Open {
        assert!(start.elapsed() < Duration::from_secs(2), "a connection without data is dropped");
        let _ = store.get(&small).await;
    }
}
