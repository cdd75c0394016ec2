//! Request coalescing: one run for many requests, and no old response after an eviction, whichever request disconnects, fails,
//! panics or overlaps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::handler::Handler;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get as get_route;
use futures_util::FutureExt;
use futures_util::future::join_all;
use http::Method;
use larder_axum::{Larder, cache, cache_evict, cache_put};
use larder_core::{RedisOptions, RedisStore};
use larder_tests::in_process::{Fixture, Runs, get, send};
use larder_tests::on_every_store;
use larder_tests::redis_server::{RedisServer, calls};
use tokio::sync::Notify;
use tokio::time::sleep;

const SLOW: Duration = Duration::from_millis(60);

/// A value with slow reads, as in a database: a read returns the value at the time it began.
#[derive(Clone, Default)]
struct Database {
    value: Arc<AtomicU64>,
    runs: Runs,
}

impl Database {
    async fn read(self, takes: Duration) -> String {
        self.runs.count();
        let value = self.value.load(Ordering::SeqCst);
        sleep(takes).await;
        value.to_string()
    }

    fn router(&self, larder: &Larder, takes: Duration) -> Router {
        let (reader, writer, replacer, clearer) = (self.clone(), self.clone(), self.clone(), self.clone());
        let read = move || reader.read(takes);
        let write = move || async move { (writer.value.fetch_add(1, Ordering::SeqCst) + 1).to_string() };
        let replace = move || async move { (replacer.value.fetch_add(1, Ordering::SeqCst) + 1).to_string() };
        let clear = move || async move { (clearer.value.fetch_add(1, Ordering::SeqCst) + 1).to_string() };
        Router::new().route(
            "/x",
            get_route(read.layer(cache(larder).group("g").ttl(60)))
                .delete(write.layer(cache_evict(larder).group("g").key()))
                .put(replace.layer(cache_put(larder).group("g").ttl(60)))
                .post(clear.layer(cache_evict(larder).group("g").whole_group())),
        )
    }
}

on_every_store! {
    async fn hundred_cold_requests_run_the_handler_once(fixture) {
        let database = Database::default();
        let app = database.router(&fixture.larder, SLOW);
        let answers = join_all((0..100).map(|_| get(&app, "/x"))).await;
        assert_eq!(database.runs.total(), 1);
        assert!(answers.iter().all(|answer| answer.text() == "0" && answer.status == StatusCode::OK));
        assert_eq!(answers.iter().filter(|answer| answer.cache() == "MISS").count(), 1);
        assert_eq!(answers.iter().filter(|answer| answer.cache() == "HIT").count(), 99);
    }

    async fn leader_disconnect_does_not_block_followers(fixture) {
        let database = Database::default();
        let app = database.router(&fixture.larder, SLOW);
        // The first request is polled until its handler runs, and then dropped, as a server does when the client disconnects.
        assert!(tokio::time::timeout(SLOW / 3, get(&app, "/x")).await.is_err());
        let answers = join_all((0..20).map(|_| get(&app, "/x"))).await;
        assert!(answers.iter().all(|answer| answer.cache() == "HIT" && answer.text() == "0"));
        assert_eq!(database.runs.total(), 1);
    }

    async fn panic_of_a_handler_frees_the_key_and_reaches_its_own_request(fixture) {
        let panics = Arc::new(AtomicBool::new(true));
        let switch = Arc::clone(&panics);
        let handler = move || async move {
            sleep(Duration::from_millis(5)).await;
            assert!(!switch.load(Ordering::SeqCst), "the handler panics");
            "well"
        };
        let app = Router::new().route("/x", get_route(handler.layer(cache(&fixture.larder).ttl(60))));
        let outcome = std::panic::AssertUnwindSafe(get(&app, "/x")).catch_unwind().await;
        assert!(outcome.is_err());
        panics.store(false, Ordering::SeqCst);
        let answer = tokio::time::timeout(Duration::from_secs(1), get(&app, "/x")).await.expect("the key is free");
        assert_eq!(answer.text(), "well");
        assert_eq!(get(&app, "/x").await.cache(), "HIT");
    }

    async fn failed_handler_frees_the_key(fixture) {
        let runs = Runs::new();
        let counted = runs.clone();
        let handler = move || async move {
            match counted.count() {
                1 => StatusCode::SERVICE_UNAVAILABLE.into_response(),
                _ => "well".into_response(),
            }
        };
        let app = Router::new().route("/x", get_route(handler.layer(cache(&fixture.larder).ttl(60))));
        assert_eq!(get(&app, "/x").await.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(get(&app, "/x").await.text(), "well");
        let again = get(&app, "/x").await;
        assert_eq!((again.cache(), again.text()), ("HIT", "well"));
    }

    async fn uncacheable_responses_are_not_waited_for(fixture) {
        let runs = Runs::new();
        let counted = runs.clone();
        let handler = move || async move {
            counted.count();
            sleep(SLOW).await;
            ([("cache-control", "no-store")], "mine")
        };
        let app = Router::new().route("/x", get_route(handler.layer(cache(&fixture.larder).ttl(60))));
        let started = tokio::time::Instant::now();
        join_all((0..20).map(|_| get(&app, "/x"))).await;
        // One run shows that the response can't be shared. Then all others run concurrently.
        assert!(started.elapsed() < SLOW * 10, "{:?}", started.elapsed());
        assert_eq!(runs.total(), 20);
    }

    async fn no_cache_request_runs_the_handler_and_refreshes_the_entry(fixture) {
        let database = Database::default();
        let app = database.router(&fixture.larder, SLOW);
        let before = tokio::spawn({ let app = app.clone(); async move { get(&app, "/x").await } });
        sleep(SLOW / 3).await;
        database.value.store(7, Ordering::SeqCst);
        let forced = send(&app, Method::GET, "/x", &[("cache-control", "no-cache")]).await;
        assert_eq!(forced.text(), "7");
        assert_eq!(before.await.unwrap().text(), "0");
        let refreshed = send(&app, Method::GET, "/x", &[("cache-control", "no-cache")]).await;
        assert_eq!((refreshed.cache(), refreshed.text()), ("MISS", "7"));
        let hit = get(&app, "/x").await;
        assert_eq!((hit.cache(), hit.text()), ("HIT", "7"));
    }

    async fn fill_begun_before_an_eviction_is_not_stored(fixture) {
        for method in [Method::DELETE, Method::POST, Method::PUT] {
            let database = Database::default();
            let app = database.router(&fixture.larder, SLOW);
            send(&app, Method::DELETE, "/x", &[]).await;
            let fill = tokio::spawn({ let app = app.clone(); async move { get(&app, "/x").await } });
            sleep(SLOW / 3).await;
            let written = send(&app, method.clone(), "/x", &[]).await.text().to_owned();
            // Also while the old fill is still running.
            assert_eq!(get(&app, "/x").await.text(), written, "{method}");
            let old = fill.await.unwrap();
            assert_ne!(old.text(), written);
            assert_eq!(get(&app, "/x").await.text(), written, "{method}");
        }
    }

    async fn disconnect_during_a_write_leaves_no_old_value(fixture) {
        for put in [true, false] {
            let larder = &fixture.larder;
            let value = Arc::new(AtomicU64::new(0));
            let (reader, writer) = (Arc::clone(&value), Arc::clone(&value));
            let written = Arc::new(Notify::new());
            let signal = Arc::clone(&written);
            let read = move || async move { reader.load(Ordering::SeqCst).to_string() };
            let write = move || async move {
                writer.store(1, Ordering::SeqCst);
                signal.notify_one();
                sleep(SLOW).await;
                "1"
            };
            let route = get_route(read.layer(cache(larder).group("hangup").ttl(60)));
            let route = if put {
                route.post(write.layer(cache_put(larder).group("hangup").ttl(60)))
            } else {
                route.post(write.layer(cache_evict(larder).group("hangup").key()))
            };
            let app = Router::new().route("/y", route);
            larder.backend().group("hangup").delete_group().await;
            assert_eq!(get(&app, "/y").await.text(), "0");
            let request = tokio::spawn({ let app = app.clone(); async move { send(&app, Method::POST, "/y", &[]).await } });
            written.notified().await;
            request.abort();
            assert!(request.await.unwrap_err().is_cancelled());
            sleep(SLOW * 3).await;
            assert_eq!(get(&app, "/y").await.text(), "1", "put: {put}");
        }
    }

    async fn panic_of_a_write_leaves_no_old_value(fixture) {
        for kind in 0..3 {
            let larder = &fixture.larder;
            let group = format!("panic-{kind}");
            let value = Arc::new(AtomicU64::new(0));
            let (reader, writer) = (Arc::clone(&value), Arc::clone(&value));
            let read = move || async move { reader.load(Ordering::SeqCst).to_string() };
            let write = move || async move {
                writer.store(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                assert_eq!(writer.load(Ordering::SeqCst), 0, "the handler panics after it wrote");
            };
            let route = get_route(read.layer(cache(larder).group(&group).ttl(60)));
            let route = match kind {
                0 => route.post(write.layer(cache_put(larder).group(&group).ttl(60))),
                1 => route.post(write.layer(cache_evict(larder).group(&group).key())),
                _ => route.post(write.layer(cache_evict(larder).group(&group).whole_group())),
            };
            let app = Router::new().route("/x", route);
            assert_eq!(get(&app, "/x").await.text(), "0");
            assert!(std::panic::AssertUnwindSafe(send(&app, Method::POST, "/x", &[])).catch_unwind().await.is_err());
            sleep(SLOW).await;
            assert_eq!(get(&app, "/x").await.text(), "1");
        }
    }

    async fn failed_writes_leave_the_entry(fixture) {
        let larder = &fixture.larder;
        let fail = async || (StatusCode::CONFLICT, "no");
        let app = Router::new().route(
            "/x",
            get_route((async || "old").layer(cache(larder).group("g").ttl(60)))
                .put(fail.layer(cache_put(larder).group("g").ttl(60)))
                .delete(fail.layer(cache_evict(larder).group("g").key()))
                .post(fail.layer(cache_evict(larder).group("g").whole_group())),
        );
        get(&app, "/x").await;
        for method in [Method::PUT, Method::DELETE, Method::POST] {
            assert_eq!(send(&app, method, "/x", &[]).await.status, StatusCode::CONFLICT);
            assert_eq!(get(&app, "/x").await.cache(), "HIT");
        }
    }

    async fn overlapping_writes_never_leave_the_losing_value(fixture) {
        let larder = &fixture.larder;
        // Each write takes effect at once and is answered after its own delay, so responses come in any order.
        for (first, second) in [(60, 20), (20, 60), (40, 40)] {
            let value = Arc::new(AtomicU64::new(0));
            let (reader, writer) = (Arc::clone(&value), Arc::clone(&value));
            let read = move || async move { reader.load(Ordering::SeqCst).to_string() };
            let write = move |uri: axum::http::Uri| async move {
                let (new, takes) = uri.query().unwrap().split_once('-').unwrap();
                writer.store(new.parse().unwrap(), Ordering::SeqCst);
                sleep(Duration::from_millis(takes.parse().unwrap())).await;
                new.to_owned()
            };
            let app = Router::new().route(
                "/x",
                get_route(read.layer(cache(larder).group("overlap").ttl(60).query_params([""; 0])))
                    .put(write.layer(cache_put(larder).group("overlap").ttl(60).query_params([""; 0]))),
            );
            larder.backend().group("overlap").delete_group().await;
            let slow = tokio::spawn({
                let (app, uri) = (app.clone(), format!("/x?1-{first}"));
                async move { send(&app, Method::PUT, &uri, &[]).await }
            });
            sleep(Duration::from_millis(10)).await;
            send(&app, Method::PUT, &format!("/x?2-{second}"), &[]).await;
            slow.await.unwrap();
            assert_eq!(get(&app, "/x").await.text(), "2", "{first} ms, {second} ms");
        }
    }

    async fn evictions_are_never_undone_by_a_fill(fixture) {
        let database = Database::default();
        let app = database.router(&fixture.larder, Duration::ZERO);
        let done = Arc::new(AtomicBool::new(false));
        let readers = (0..8).map(|_| {
            let (app, done) = (app.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                while !done.load(Ordering::SeqCst) {
                    // A hit in memory never yields, so this task must do so to let others run.
                    tokio::task::yield_now().await;
                    assert_eq!(get(&app, "/x").await.status, StatusCode::OK);
                }
            })
        });
        let readers: Vec<_> = readers.collect();
        let mut stale = Vec::new();
        for round in 0..3000u64 {
            let method = [Method::DELETE, Method::POST, Method::PUT][round as usize % 3].clone();
            let written: u64 = send(&app, method, "/x", &[]).await.text().parse().unwrap();
            let read: u64 = get(&app, "/x").await.text().parse().unwrap();
            if read < written {
                stale.push((round, read, written));
            }
        }
        done.store(true, Ordering::SeqCst);
        for reader in readers {
            reader.await.unwrap();
        }
        assert_eq!(stale, [], "stale answers after an eviction");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_handler_does_not_block_others_forever() {
    let larder = Larder::builder()
        .lease_ttl(Duration::from_millis(100))
        .max_fill(Duration::from_millis(300))
        .max_wait(Duration::from_millis(100))
        .store(larder_axum::MemoryStore::new())
        .build();
    let runs = Runs::new();
    let counted = runs.clone();
    let handler = move || async move {
        match counted.count() {
            1 => std::future::pending().await,
            _ => "well",
        }
    };
    let app = Router::new().route("/x", get_route(handler.layer(cache(&larder).ttl(60))));
    assert!(tokio::time::timeout(Duration::from_millis(20), get(&app, "/x")).await.is_err());
    // The client has disconnected. Other requests wait for a while, and then run the handler themselves.
    assert_eq!(get(&app, "/x").await.text(), "well");
    // After the longest time that a fill may take, the key is free again, and `close` doesn't wait for the fill.
    sleep(Duration::from_millis(500)).await;
    get(&app, "/x").await;
    let hit = get(&app, "/x").await;
    assert_eq!((hit.cache(), hit.text()), ("HIT", "well"));
    tokio::time::timeout(Duration::from_millis(200), larder.close()).await.expect("no fill is running");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn max_wait_of_zero_lets_no_request_wait() {
    let store = larder_axum::MemoryStore::new();
    let larder = Larder::builder().max_wait(Duration::ZERO).cache_status(true).store(store).build();
    let database = Database::default();
    let app = database.router(&larder, SLOW);
    let answers = join_all((0..3).map(|_| get(&app, "/x"))).await;
    assert_eq!(database.runs.total(), 3);
    let waited = answers.iter().filter(|answer| answer.header("cache-status").contains("waited"));
    assert_eq!(waited.count(), 2);
    assert_eq!(get(&app, "/x").await.cache(), "HIT");

    let (backend, runs) = (larder.backend(), Runs::new());
    let compute = || async {
        runs.count();
        sleep(SLOW).await;
        Ok::<_, ()>("value".to_owned())
    };
    let computed = join_all((0..3).map(|_| backend.get_or_set("k", 60, compute))).await;
    assert_eq!((computed, runs.total()), (vec![Ok("value".to_owned()); 3], 3));
    assert!(backend.has("k").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn max_fill_of_zero_renews_no_lease_and_ends_background_work() {
    let app = |lease_ttl, takes| {
        let store = larder_axum::MemoryStore::new();
        let larder = Larder::builder().max_fill(Duration::ZERO).lease_ttl(lease_ttl).store(store).build();
        let database = Database::default();
        (database.router(&larder, takes), database, larder)
    };
    let (long, short) = (Duration::from_secs(60), Duration::from_millis(100));
    let (in_time, _, _) = app(long, SLOW);
    get(&in_time, "/x").await;
    assert_eq!(get(&in_time, "/x").await.cache(), "HIT", "a response within the lease is stored");
    let (late, _, _) = app(short, short * 4);
    get(&late, "/x").await;
    assert_eq!(get(&late, "/x").await.cache(), "MISS", "a response after the lease is not");

    let (app, database, larder) = app(long, SLOW);
    assert!(tokio::time::timeout(SLOW / 4, get(&app, "/x")).await.is_err());
    sleep(SLOW * 2).await;
    assert_eq!(database.runs.total(), 1);
    assert_eq!(get(&app, "/x").await.cache(), "MISS", "the handler ended with its client");
    drop(tokio::time::timeout(SLOW / 4, get(&app, "/x?1")).await);
    tokio::time::timeout(Duration::from_secs(5), larder.close()).await.expect("no work is running");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn longest_durations_are_accepted() {
    let (server, max) = (RedisServer::start(), Duration::MAX);
    let options = RedisOptions::from_url(&server.url()).unwrap().read_deadline(max).fill_deadline(max);
    let options = options.evict_deadline(max).connect_deadline(max).close_deadline(max);
    let builder = || Larder::builder().lease_ttl(max).max_fill(max).max_wait(max).default_ttl(max);
    let on_redis = || builder().store(RedisStore::new(options.clone())).build();
    let tiered = || builder().redis_with_local(options.clone(), 1 << 20).build();
    for larder in [builder().store(larder_axum::MemoryStore::new()).build(), on_redis(), tiered()] {
        let route =
            cache(&larder).group("g").downstream_ttl(max).stale_while_revalidate(max).stale_if_error(max);
        let handler = async || {
            sleep(SLOW).await;
            "x"
        };
        let app = Router::new().route("/x", get_route(handler.layer(route)));
        let answers = join_all((0..3).map(|_| get(&app, "/x"))).await;
        assert!(answers.iter().all(|answer| answer.text() == "x"));
        assert_eq!(get(&app, "/x").await.cache(), "HIT");
        let backend = larder.backend();
        assert_eq!(backend.get_or_set("k", max, async || Ok::<_, ()>(1)).await, Ok(1));
        assert_eq!(backend.get::<i32>("k").await, Some(1));
        assert_eq!(backend.update("k", max, |old: Option<i32>| old.unwrap_or(5) + 1).await.unwrap(), 2);
        assert_eq!(backend.delete_group().await, 2);
        larder.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_no_cache_request_evicts_nothing() {
    let larder = Larder::memory();
    let runs = Runs::new();
    let counted = runs.clone();
    let handler = move |headers: axum::http::HeaderMap| async move {
        counted.count();
        match headers.contains_key("x-stranger") {
            true => StatusCode::FORBIDDEN.into_response(),
            false => "well".into_response(),
        }
    };
    let app = Router::new().route("/x", get_route(handler.layer(cache(&larder).ttl(60))));
    get(&app, "/x").await;
    let stranger = [("cache-control", "no-cache"), ("x-stranger", "1")];
    assert_eq!(send(&app, Method::GET, "/x", &stranger).await.status, StatusCode::FORBIDDEN);
    assert_eq!(get(&app, "/x").await.cache(), "HIT");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disconnect_before_a_write_starts_does_not_stop_it() {
    let database = Database::default();
    let larder = Larder::memory();
    let app = database.router(&larder, Duration::ZERO);
    for method in [Method::DELETE, Method::PUT, Method::POST] {
        for _ in 0..200 {
            get(&app, "/x").await;
            let before = database.value.load(Ordering::SeqCst);
            // Polled once, and dropped before the write's own task ran.
            let _ = send(&app, method.clone(), "/x", &[]).now_or_never();
            while database.value.load(Ordering::SeqCst) == before {
                tokio::task::yield_now().await;
            }
            sleep(Duration::from_millis(1)).await;
            let written = database.value.load(Ordering::SeqCst).to_string();
            assert_eq!(get(&app, "/x").await.text(), written, "{method}");
        }
    }
}

/// After many misses, the read before the lease is left out. Responses stay the same.
mod with_the_read_left_out {
    use super::*;

    /// Responds by the path's name. All other paths are misses.
    fn app(fixture: &Fixture, runs: &Runs) -> Router {
        app_for(fixture, runs, 60)
    }

    fn app_for(fixture: &Fixture, runs: &Runs, ttl: u64) -> Router {
        let runs = runs.clone();
        let handler = move |uri: http::Uri, headers: http::HeaderMap| async move {
            let run = runs.count().to_string();
            let language = headers.get("accept-language").cloned();
            match uri.path() {
                "/x/varied" => ([("vary", "accept-language")], language.map_or(run, |l| format!("{l:?}")))
                    .into_response(),
                "/x/private" => ([("cache-control", "no-store")], run).into_response(),
                _ => run.into_response(),
            }
        };
        let layer =
            cache(&fixture.larder).group("g").ttl(ttl).stale_while_revalidate(Duration::from_secs(60));
        Router::new().route("/x/{name}", get_route(handler.layer(layer)))
    }

    /// Requests new paths, which are misses, until the read is left out.
    async fn miss(app: &Router, times: usize) {
        static NEW: AtomicU64 = AtomicU64::new(0);
        for _ in 0..times {
            let path = format!("/x/new{}", NEW.fetch_add(1, Ordering::SeqCst));
            assert_eq!(get(app, &path).await.cache(), "MISS");
        }
    }

    const MANY: usize = 12;

    on_every_store! {
        async fn stored_entry_is_found(fixture) {
            let runs = Runs::new();
            let app = app(&fixture, &runs);
            let stored = get(&app, "/x/there").await;
            for headers in [&[][..], &[("range", "bytes=0-0")], &[("cache-control", "max-age=50")]] {
                miss(&app, MANY).await;
                let before = runs.total();
                let found = send(&app, Method::GET, "/x/there", headers).await;
                assert_eq!((found.cache(), found.text(), runs.total()), ("HIT", stored.text(), before), "{headers:?}");
                let part = headers.iter().any(|(name, _)| *name == "range");
                assert_eq!(found.status, if part { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK });
            }
            miss(&app, MANY).await;
            assert_eq!(send(&app, Method::HEAD, "/x/there", &[]).await.cache(), "HIT");
            miss(&app, MANY).await;
            let validator = [("if-none-match", stored.header("etag"))];
            assert_eq!(send(&app, Method::GET, "/x/there", &validator).await.status, StatusCode::NOT_MODIFIED);
            miss(&app, MANY).await;
            let only = [("cache-control", "only-if-cached")];
            assert_eq!(send(&app, Method::GET, "/x/there", &only).await.cache(), "HIT");
            miss(&app, MANY).await;
            let before = runs.total();
            assert_eq!(send(&app, Method::GET, "/x/absent", &only).await.status, StatusCode::GATEWAY_TIMEOUT);
            assert_eq!(runs.total(), before);
        }

        async fn stored_variant_is_found(fixture) {
            let runs = Runs::new();
            let app = app(&fixture, &runs);
            for language in ["de", "en"] {
                let headers = [("accept-language", language)];
                let stored = send(&app, Method::GET, "/x/varied", &headers).await;
                miss(&app, MANY).await;
                let before = runs.total();
                let found = send(&app, Method::GET, "/x/varied", &headers).await;
                assert_eq!((found.cache(), found.text(), runs.total()), ("HIT", stored.text(), before), "{language}");
            }
        }

        async fn stale_response_is_served_and_refreshed(fixture) {
            let runs = Runs::new();
            let app = app_for(&fixture, &runs, 1);
            let stored = get(&app, "/x/stale").await;
            sleep(Duration::from_millis(1100)).await;
            miss(&app, MANY).await;
            let before = runs.total();
            let found = get(&app, "/x/stale").await;
            assert_eq!((found.cache(), found.text()), ("HIT", stored.text()));
            let start = tokio::time::Instant::now();
            while runs.total() == before {
                assert!(start.elapsed() < Duration::from_secs(5), "it is never refreshed");
                sleep(Duration::from_millis(5)).await;
            }
        }

        async fn hundred_requests_run_the_handler_once(fixture) {
            let runs = Runs::new();
            let app = app(&fixture, &runs);
            miss(&app, MANY).await;
            let before = runs.total();
            let answers = join_all((0..100).map(|_| get(&app, "/x/hot"))).await;
            assert_eq!(runs.total(), before + 1);
            assert!(answers.iter().all(|answer| answer.text() == answers[0].text()));
        }

        async fn uncacheable_responses_are_never_shared(fixture) {
            let runs = Runs::new();
            let app = app(&fixture, &runs);
            for _ in 0..2 {
                miss(&app, MANY).await;
                let before = runs.total();
                let answers = join_all((0..5).map(|_| get(&app, "/x/private"))).await;
                assert_eq!(runs.total(), before + 5);
                assert!(answers.iter().all(|answer| answer.cache() == "BYPASS"), "{answers:?}");
            }
        }
    }

    #[tokio::test]
    async fn miss_takes_two_round_trips() {
        let fixture = Fixture::redis();
        let counted = async || {
            let redis = fixture.redis.as_ref().unwrap();
            let mut conn =
                redis::Client::open(redis.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
            let stats: String = redis::cmd("INFO").arg("commandstats").query_async(&mut conn).await.unwrap();
            (calls(&stats, "evalsha"), calls(&stats, "mget"))
        };
        let app = app(&fixture, &Runs::new());
        miss(&app, MANY).await;
        let before = counted().await;
        miss(&app, 10).await;
        let after = counted().await;
        // The script of the commit has an MGET of its own.
        assert_eq!((after.0 - before.0, after.1 - before.1), (10, 20), "a lease and a commit for each");
    }
}
