//! Stale responses on routes that allow them: during a refresh, and when the handler fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use axum::Router;
use axum::handler::Handler;
use axum::http::StatusCode;
use axum::routing::get as get_route;
use futures_util::future::join_all;
use http::Method;
use larder_axum::{Cache, cache};
use larder_tests::in_process::{Runs, get, send};
use larder_tests::on_every_store;
use tokio::time::sleep;

const TTL: Duration = Duration::from_millis(100);
const AFTER_TTL: Duration = Duration::from_millis(150);
const LONG: Duration = Duration::from_secs(60);

/// A handler that answers with the number of its run and a status that tests can change.
struct Origin {
    runs: Runs,
    status: Arc<AtomicU16>,
    app: Router,
}

fn origin(layer: Cache, takes: Duration, control: &'static str) -> Origin {
    let (runs, status) = (Runs::new(), Arc::new(AtomicU16::new(200)));
    let (counted, answered) = (runs.clone(), Arc::clone(&status));
    let handler = move || async move {
        let run = counted.count();
        if run > 1 {
            sleep(takes).await;
        }
        let status = StatusCode::from_u16(answered.load(Ordering::SeqCst)).unwrap();
        (status, [("cache-control", control)], run.to_string())
    };
    Origin { runs, status, app: Router::new().route("/x", get_route(handler.layer(layer))) }
}

on_every_store! {
    async fn stale_response_is_served_at_once_and_refreshed_by_one_run(fixture) {
        let layer = cache(&fixture.larder).group("g").ttl(TTL).stale_while_revalidate(LONG);
        let origin = origin(layer, Duration::from_millis(80), "");
        let first = get(&origin.app, "/x").await;
        assert_eq!(first.header("cache-control"), "max-age=0, stale-while-revalidate=60");
        sleep(AFTER_TTL).await;
        let started = tokio::time::Instant::now();
        let answers = join_all((0..20).map(|_| get(&origin.app, "/x"))).await;
        assert!(started.elapsed() < Duration::from_millis(70), "{:?}", started.elapsed());
        assert!(answers.iter().all(|answer| answer.cache() == "HIT" && answer.text() == "1"));
        assert_eq!(answers[0].header("cache-control"), "max-age=0");
        sleep(Duration::from_millis(130)).await;
        assert_eq!(origin.runs.total(), 2, "one run for all requests");
        assert_eq!(get(&origin.app, "/x").await.text(), "2");
    }

    async fn stale_entry_is_a_miss_without_the_option_or_past_its_time(fixture) {
        let larder = &fixture.larder;
        for layer in [
            cache(larder).group("none").ttl(TTL),
            cache(larder).group("short").ttl(TTL).stale_while_revalidate(Duration::from_millis(10)),
            cache(larder).group("error").ttl(TTL).stale_if_error(LONG),
        ] {
            let origin = origin(layer, Duration::ZERO, "");
            get(&origin.app, "/x").await;
            sleep(AFTER_TTL).await;
            let answer = get(&origin.app, "/x").await;
            assert_eq!((answer.cache(), answer.text()), ("MISS", "2"));
        }
    }

    async fn must_revalidate_is_respected(fixture) {
        let layer = cache(&fixture.larder).ttl(TTL).stale_while_revalidate(LONG).stale_if_error(LONG);
        let origin = origin(layer, Duration::ZERO, "must-revalidate");
        let first = get(&origin.app, "/x").await;
        assert_eq!(first.header("cache-control"), "max-age=0, must-revalidate");
        sleep(AFTER_TTL).await;
        assert_eq!(get(&origin.app, "/x").await.cache(), "MISS");
        origin.status.store(503, Ordering::SeqCst);
        sleep(AFTER_TTL).await;
        assert_eq!(get(&origin.app, "/x").await.status, StatusCode::SERVICE_UNAVAILABLE);
    }

    async fn stale_entry_is_served_instead_of_an_error(fixture) {
        let origin = origin(cache(&fixture.larder).ttl(TTL).stale_if_error(LONG), Duration::from_millis(20), "");
        get(&origin.app, "/x").await;
        for status in [500, 502, 503, 504] {
            origin.status.store(status, Ordering::SeqCst);
            sleep(AFTER_TTL).await;
            let answers = join_all((0..5).map(|_| get(&origin.app, "/x"))).await;
            assert!(answers.iter().all(|a| a.status == StatusCode::OK && a.text() == "1"), "{status}: {answers:?}");
        }
        assert_eq!(origin.runs.total(), 5, "one run for all requests each time");
        // Any other response replaces the entry that it contradicts.
        origin.status.store(404, Ordering::SeqCst);
        assert_eq!(get(&origin.app, "/x").await.status, StatusCode::NOT_FOUND);
        origin.status.store(503, Ordering::SeqCst);
        assert_eq!(get(&origin.app, "/x").await.status, StatusCode::SERVICE_UNAVAILABLE);
    }

    async fn request_directives_refuse_stale_responses(fixture) {
        let layer = cache(&fixture.larder).ttl(TTL).stale_while_revalidate(LONG).stale_if_error(LONG);
        let origin = origin(layer, Duration::ZERO, "");
        get(&origin.app, "/x").await;
        for (run, control) in [(2, "no-cache"), (3, "max-age=0"), (4, "min-fresh=1")] {
            sleep(AFTER_TTL).await;
            let answer = send(&origin.app, Method::GET, "/x", &[("cache-control", control)]).await;
            assert_eq!((answer.cache(), answer.text()), ("MISS", run.to_string().as_str()), "{control}");
        }
        sleep(AFTER_TTL).await;
        let answer = send(&origin.app, Method::GET, "/x", &[("cache-control", "only-if-cached")]).await;
        assert_eq!(answer.text(), "4");
    }

    async fn evicted_entry_is_not_served_stale(fixture) {
        let layer = cache(&fixture.larder).group("g").ttl(TTL).stale_while_revalidate(LONG).stale_if_error(LONG);
        let origin = origin(layer, Duration::from_millis(60), "");
        get(&origin.app, "/x").await;
        sleep(AFTER_TTL).await;
        // The eviction revokes the lease of the refresh that starts here.
        assert_eq!(get(&origin.app, "/x").await.text(), "1");
        sleep(Duration::from_millis(20)).await;
        fixture.larder.backend().group("g").delete_group().await;
        let answer = get(&origin.app, "/x").await;
        assert_eq!((answer.cache(), answer.text()), ("MISS", "3"));
        sleep(Duration::from_millis(80)).await;
        assert_ne!(get(&origin.app, "/x").await.text(), "2");
    }

    async fn panic_in_a_refresh_fails_no_request(fixture) {
        let panics = Arc::new(AtomicBool::new(false));
        let switch = Arc::clone(&panics);
        let handler = move || async move {
            assert!(!switch.load(Ordering::SeqCst), "the handler panics");
            "well"
        };
        let layer = cache(&fixture.larder).ttl(TTL).stale_while_revalidate(LONG);
        let app = Router::new().route("/x", get_route(handler.layer(layer)));
        get(&app, "/x").await;
        panics.store(true, Ordering::SeqCst);
        sleep(AFTER_TTL).await;
        for _ in 0..3 {
            assert_eq!(get(&app, "/x").await.text(), "well");
            sleep(Duration::from_millis(10)).await;
        }
        panics.store(false, Ordering::SeqCst);
        get(&app, "/x").await;
        sleep(Duration::from_millis(30)).await;
        let answer = get(&app, "/x").await;
        assert_eq!((answer.cache(), answer.text()), ("HIT", "well"));
    }
}
