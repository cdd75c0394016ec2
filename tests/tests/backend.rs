//! `CacheBackend` on every store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use larder_axum::{CacheBackend, CacheError, Larder, StoreError, Ttl};
use larder_core::{Json, MessagePack};
use larder_tests::in_process::Runs;
use larder_tests::on_every_store;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Item {
    id: u64,
    tags: BTreeMap<String, Vec<u8>>,
}

fn item(id: u64) -> Item {
    Item { id, tags: [("raw".to_owned(), vec![0, 255])].into() }
}

on_every_store! {
    async fn values_round_trip(fixture) {
        let items = fixture.larder.backend().group("items");
        assert_eq!(items.get::<Item>("item:1").await, None);
        assert_eq!(items.get_or("item:1", item(9)).await, item(9));
        assert!(!items.has("item:1").await);
        assert!(items.set("item:1", &item(1), 300).await);
        assert!(items.has("item:1").await);
        assert_eq!(items.get::<Item>("item:1").await, Some(item(1)));
        assert_eq!(items.get_or("item:1", item(9)).await, item(1));
        assert!(items.delete("item:1").await);
        assert!(!items.delete("item:1").await);
        assert_eq!(items.try_get::<Item>("item:1").await.unwrap(), None);
    }

    async fn ttls_reach_the_store(fixture) {
        let items = fixture.larder.backend();
        assert!(items.set("short", "x", Duration::from_millis(80)).await);
        assert!(items.set("long", "x", Duration::from_secs(1800)).await);
        assert!(items.set("forever", "x", 0).await);
        assert!(items.set("for good", "x", Ttl::NO_EXPIRY).await);
        assert!(items.has("short").await);
        tokio::time::sleep(Duration::from_millis(120)).await;
        assert!(!items.has("short").await);
        for key in ["long", "forever", "for good"] {
            assert!(items.has(key).await, "{key}");
        }
    }

    async fn lifetime_of_zero_is_not_stored(fixture) {
        let items = fixture.larder.backend();
        assert!(!items.set("absent", "new", Duration::ZERO).await);
        assert!(items.set("present", "old", 60).await);
        assert!(!items.set("present", "new", Duration::ZERO).await);
        assert!(items.set("updated", "old", 60).await);
        let updated = items.update("updated", Duration::ZERO, |_: Option<String>| "new".to_owned()).await;
        assert_eq!(updated.unwrap(), "new");
        let computed = items.get_or_set("computed", Duration::ZERO, || async { Ok::<_, ()>("new".to_owned()) }).await;
        assert_eq!(computed.unwrap(), "new");
        for key in ["absent", "present", "updated", "computed"] {
            assert!(!items.has(key).await, "{key}");
        }
    }

    async fn groups_are_separate_and_are_deleted_whole(fixture) {
        let backend = fixture.larder.backend();
        let (a, b) = (backend.group("a"), backend.group("b"));
        for n in 0..20 {
            a.set(&format!("k{n}"), &n, 60).await;
        }
        b.set("k1", &100, 60).await;
        backend.set("k1", &200, 60).await;
        assert_eq!(a.delete_group().await, 20);
        assert_eq!(a.delete_group().await, 0);
        assert_eq!((a.get::<i32>("k1").await, b.get("k1").await, backend.get("k1").await), (None, Some(100), Some(200)));
        a.set("k1", &1, 60).await;
        assert_eq!(backend.delete_group().await, 3, "without a group: everything");
        assert_eq!((a.get::<i32>("k1").await, b.get::<i32>("k1").await, backend.get::<i32>("k1").await), (None, None, None));
    }

    async fn value_of_another_coder_is_a_miss(fixture) {
        let json = fixture.larder.backend();
        let packed: CacheBackend<MessagePack> = json.coder(MessagePack);
        packed.set("k", &item(1), 60).await;
        assert_eq!(packed.get::<Item>("k").await, Some(item(1)));
        assert_eq!(json.try_get::<Item>("k").await.unwrap(), None);
        assert_eq!(packed.coder(Json).get::<Item>("k").await, None);
    }

    async fn undecodable_value_is_an_error_of_try_get(fixture) {
        let backend = fixture.larder.backend();
        backend.set("k", "text", 60).await;
        assert_eq!(backend.get::<u64>("k").await, None);
        assert!(matches!(backend.try_get::<u64>("k").await, Err(CacheError::Coder(_))));
    }

    async fn get_or_set_computes_once(fixture) {
        let backend = fixture.larder.backend().group("g");
        let runs = Runs::new();
        let answers = join_all((0..50).map(|_| backend.get_or_set("k", 60, || async {
            runs.count();
            tokio::time::sleep(Duration::from_millis(30)).await;
            Ok::<_, ()>(7)
        }))).await;
        assert!(answers.iter().all(|answer| *answer == Ok(7)));
        assert_eq!(runs.total(), 1);
    }

    async fn failed_computation_does_not_fail_other_callers(fixture) {
        let backend = fixture.larder.backend().group("g");
        let runs = Runs::new();
        let answers = join_all((0..10).map(|_| backend.get_or_set("k", 60, || async {
            let run = runs.count();
            tokio::time::sleep(Duration::from_millis(10)).await;
            if run == 1 { Err("first") } else { Ok(run) }
        }))).await;
        assert_eq!(answers.iter().filter(|answer| answer.is_err()).count(), 1);
        // The others compute concurrently, and one of their values is stored.
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 9);
        let stored = backend.get::<usize>("k").await.expect("one of them stores");
        assert!(answers.contains(&Ok(stored)));
    }

    async fn failing_computations_run_concurrently(fixture) {
        let backend = fixture.larder.backend().group("g");
        let start = Instant::now();
        let answers = join_all((0..30).map(|_| backend.get_or_set("k", 60, || async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            Err::<u64, _>("failed")
        }))).await;
        assert!(answers.iter().all(|answer| *answer == Err("failed")));
        assert!(start.elapsed() < Duration::from_millis(1400), "{:?}", start.elapsed());
    }

    async fn computations_under_frequent_evictions_run_concurrently(fixture) {
        let backend = fixture.larder.backend().group("g");
        let evictor = backend.clone();
        let evicting = tokio::spawn(async move {
            loop {
                evictor.delete("k").await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let start = Instant::now();
        let answers = join_all((0..30).map(|_| backend.get_or_set("k", 60, || async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            Ok::<_, ()>(7)
        }))).await;
        evicting.abort();
        assert!(answers.iter().all(|answer| *answer == Ok(7)));
        assert!(start.elapsed() < Duration::from_millis(1400), "{:?}", start.elapsed());
    }

    async fn dropped_computation_does_not_block_the_next(fixture) {
        let backend = fixture.larder.backend().group("g");
        let never = backend.get_or_set("k", 60, std::future::pending::<Result<u64, ()>>);
        assert!(tokio::time::timeout(Duration::from_millis(30), never).await.is_err());
        let next = backend.get_or_set("k", 60, || async { Ok::<_, ()>(1) });
        assert_eq!(tokio::time::timeout(Duration::from_secs(1), next).await.expect("the key is free"), Ok(1));
        assert_eq!(backend.get::<u64>("k").await, Some(1));
    }

    async fn concurrent_updates_are_all_applied(fixture) {
        let one = fixture.larder.backend().group("analytics");
        // A second cache on the same store, like that of a second process.
        let two = match &fixture.redis {
            Some(redis) => Larder::redis(&redis.url()).unwrap().backend().group("analytics"),
            None => one.clone(),
        };
        let runs = join_all((0..400).map(|n| {
            let backend = if n % 2 == 0 { &one } else { &two };
            backend.update("views", 3600, |views: Option<u64>| views.unwrap_or(0) + 1)
        })).await;
        let mut seen: Vec<u64> = runs.into_iter().map(Result::unwrap).collect();
        seen.sort_unstable();
        assert_eq!(seen, (1..=400).collect::<Vec<_>>());
        assert_eq!(one.get::<u64>("views").await, Some(400));
    }

    async fn update_concurrent_with_set_builds_on_its_value(fixture) {
        let backend = fixture.larder.backend().group("g");
        let setter = backend.clone();
        let setting = tokio::spawn(async move {
            for n in 0..200u64 {
                setter.set("k", &(n * 1000), 60).await;
            }
        });
        for _ in 0..200 {
            backend.update("k", 60, |old: Option<u64>| old.unwrap_or(0) + 1).await.unwrap();
        }
        setting.await.unwrap();
        let last = backend.get::<u64>("k").await.unwrap();
        assert!((199_000..199_201).contains(&last), "{last}");
    }

    async fn floats_round_trip(fixture) {
        let backend = fixture.larder.backend();
        let packed = backend.coder(MessagePack);
        let mut numbers = vec![1.577_777_777_777_000_1, 0.1 + 0.2, -0.0, f64::MIN_POSITIVE, 5e-324, f64::MAX];
        numbers.extend((0..2000).map(|_| f64::from_bits(fastrand::u64(..))).filter(|number| number.is_finite()));
        let bits = |numbers: &[f64]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
        backend.try_set("json", &numbers, 60).await.unwrap();
        packed.try_set("packed", &numbers, 60).await.unwrap();
        assert_eq!(bits(&backend.get::<Vec<f64>>("json").await.unwrap()), bits(&numbers));
        assert_eq!(bits(&packed.get::<Vec<f64>>("packed").await.unwrap()), bits(&numbers));
        let same = backend.update("json", 60, |numbers: Option<Vec<f64>>| numbers.unwrap()).await.unwrap();
        assert_eq!(bits(&same), bits(&numbers));
        assert_eq!(bits(&backend.get::<Vec<f64>>("json").await.unwrap()), bits(&numbers));
    }

    async fn value_that_cannot_be_read_back_is_an_error(fixture) {
        let backend = fixture.larder.backend();
        backend.set("k", &1.5, 60).await;
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(!backend.set("k", &number, 60).await);
            assert!(matches!(backend.try_set("k", &vec![Some(number)], 60).await, Err(CacheError::Coder(_))));
            let updated = backend.update("k", 60, |_: Option<f64>| number).await;
            assert!(matches!(updated, Err(CacheError::Coder(_))), "{updated:?}");
            assert_eq!(backend.get::<f64>("k").await, Some(1.5), "the old value stays");
        }
        assert!(matches!(backend.try_set("k", &Some(None::<u8>), 60).await, Err(CacheError::Coder(_))));
    }

    async fn stuck_update_blocks_no_other_key(fixture) {
        let backend = fixture.larder.backend().group("g");
        // A computation that hangs holds the key, and an update of it waits.
        let (holder, computing) = (backend.clone(), Arc::new(tokio::sync::Notify::new()));
        let begun = Arc::clone(&computing);
        let holding = tokio::spawn(async move {
            let hang = || async move {
                begun.notify_one();
                std::future::pending::<Result<u64, ()>>().await
            };
            holder.get_or_set("stuck", 60, hang).await
        });
        computing.notified().await;
        let stuck = backend.clone();
        let updating = tokio::spawn(async move { stuck.update("stuck", 60, |n: Option<u64>| n.unwrap_or(0)).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        let start = Instant::now();
        for n in 0..256 {
            backend.update(&format!("k{n}"), 60, |n: Option<u64>| n.unwrap_or(0) + 1).await.unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        updating.abort();
        holding.abort();
    }

    async fn dropped_writes_run_to_completion(fixture) {
        let backend = fixture.larder.backend().group("g");
        for n in 0..50 {
            backend.set("k", &0, 60).await;
            let mut setting = Box::pin(backend.set("k", &n, 60));
            let _ = futures_util::poll!(&mut setting);
            drop(setting);
            let mut updating = Box::pin(backend.update("u", 60, |old: Option<u64>| old.unwrap_or(0) + 1));
            let _ = futures_util::poll!(&mut updating);
            drop(updating);
            backend.set("gone", &n, 60).await;
            let mut deleting = Box::pin(backend.delete("gone"));
            let _ = futures_util::poll!(&mut deleting);
            drop(deleting);
            for (key, expected) in [("k", Some(n)), ("gone", None)] {
                let start = Instant::now();
                while backend.get::<u64>(key).await != expected {
                    assert!(start.elapsed() < Duration::from_secs(2), "{key} of round {n}");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
        for n in 0..4000u64 {
            backend.set(&format!("k{n}"), &n, 0).await;
        }
        let _ = tokio::time::timeout(Duration::from_millis(4), backend.delete_group()).await;
        fixture.larder.close().await;
        if let Some(redis) = &fixture.redis {
            let client = redis::Client::open(redis.url()).unwrap();
            let mut raw = client.get_multiplexed_async_connection().await.unwrap();
            let left: u64 = redis::cmd("DBSIZE").query_async(&mut raw).await.unwrap();
            assert_eq!(left, 0, "`close` waits for work in progress");
        }
    }

    async fn response_of_a_route_can_be_deleted_but_not_read(fixture) {
        use axum::{Router, handler::Handler, routing::get as get_route};
        use larder_axum::cache;
        use larder_tests::in_process::get;

        let larder = &fixture.larder;
        let route = get_route((async || "7").layer(cache(larder).group("products").ttl(60)));
        let app = Router::new().route("/products/{id}", route);
        get(&app, "/products/7").await;
        let products = larder.backend().group("products");
        assert_eq!(products.get::<u64>("products:7").await, None);
        assert!(products.has("products:7").await);
        assert!(products.delete("products:7").await);
        assert_eq!(get(&app, "/products/7").await.cache(), "MISS");
        larder.evict(&larder.key_for("products", &"/products/7".parse().unwrap()).unwrap()).await;
        assert_eq!(get(&app, "/products/7").await.cache(), "MISS");
    }
}

#[tokio::test]
async fn update_too_large_for_the_store_fails() {
    use larder_core::MemoryStore;
    let backend = Larder::builder().store(MemoryStore::with_capacity(1 << 20)).build().backend();
    let updating = backend.update("k", 60, |_: Option<String>| "x".repeat(600 << 10));
    let outcome = tokio::time::timeout(std::time::Duration::from_secs(15), updating).await.expect("it ends");
    assert!(matches!(outcome, Err(CacheError::Contended)));
}

#[tokio::test]
async fn undecodable_value_is_replaced_by_a_computed_one() {
    let backend = Larder::memory().backend();
    backend.coder(MessagePack).set("k", &1, 60).await;
    let runs = Runs::new();
    for _ in 0..3 {
        let compute = || async {
            runs.count();
            Ok::<_, ()>(7)
        };
        assert_eq!(backend.get_or_set("k", 60, compute).await, Ok(7));
    }
    assert_eq!(runs.total(), 1);
}

#[tokio::test]
async fn store_that_is_down_is_a_miss_for_get_and_an_error_for_try_get() {
    let backend = Larder::redis("redis://127.0.0.1:1/").unwrap().backend().group("g");
    assert_eq!(backend.get::<u64>("k").await, None);
    assert!(!backend.set("k", &1, 60).await);
    assert!(!backend.delete("k").await);
    assert!(!backend.has("k").await);
    assert_eq!(backend.delete_group().await, 0);
    let unavailable = |error: &CacheError| {
        matches!(error, CacheError::Store(StoreError::Unavailable(_) | StoreError::Timeout(_)))
    };
    // An entry whose eviction is pending is a miss without asking the store, so use another key.
    let backend = backend.group("h");
    assert!(unavailable(&backend.try_get::<u64>("k").await.unwrap_err()));
    assert!(unavailable(&backend.update("k", 60, |old: Option<u64>| old.unwrap_or(0)).await.unwrap_err()));
    let runs = Runs::new();
    let computed = backend.get_or_set("k", 60, || async {
        runs.count();
        Ok::<_, ()>(5)
    });
    assert_eq!(computed.await, Ok(5));
    assert_eq!(runs.total(), 1);
}

/// An invalid group is a bug of the caller, so the panic names the caller's line.
#[test]
fn invalid_group_panics_at_the_callers_line() {
    let (send, receive) = std::sync::mpsc::channel();
    let (this, before) = (std::thread::current().id(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| match std::thread::current().id() == this {
        true => send.send(info.location().unwrap().file().to_owned()).unwrap(),
        false => before(info),
    }));
    assert!(std::panic::catch_unwind(|| Larder::memory().backend().group("{")).is_err());
    assert_eq!(receive.recv().unwrap(), file!());
    let _ = std::panic::take_hook();
}
