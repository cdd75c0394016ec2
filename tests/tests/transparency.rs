//! Transparency of the cache: generated applications answer the same with Larder and without.
//!
//! `LARDER_SEED=7` runs only the case of that seed, and `LARDER_REQUESTS=1000000` sets the number of requests in the long run
//! (`tests/run --slow`: ten million).

use larder_tests::transparency::{Difference, Store, Stores, case, shrink};

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

/// Runs cases from the seed `first` on, up to this number of requests. Returns the failures, made small.
fn run(mut stores: Stores, store: Store, first: u64, requests: u64) -> Vec<String> {
    let mut failures: Vec<String> = Vec::new();
    let (first, last) = match number("LARDER_SEED") {
        Some(seed) => (seed, seed),
        None => (first, u64::MAX),
    };
    let most = number("LARDER_FAILURES").unwrap_or(5) as usize;
    for seed in first..=last {
        if stores.requests >= requests || failures.len() >= most {
            break;
        }
        let case = case(seed, store);
        if let Err(difference) = stores.run(&case) {
            let sent = stores.requests;
            let (case, difference) = shrink(&mut stores, case, difference, 400);
            stores.requests = sent;
            failures.push(report(seed, &case, &difference));
        }
    }
    failures
}

fn report(seed: u64, case: &larder_tests::transparency::Case, difference: &Difference) -> String {
    format!("LARDER_SEED={seed}\n{case}      → {difference}\n")
}

/// Runs on twice as many threads as there are cores in CI: cases in real time mostly wait.
fn check(store: Store, requests: u64) {
    let parts = [0, 1, 2, 3]
        .map(|part| std::thread::spawn(move || run(Stores::default(), store, part << 40, requests / 4)));
    let failures: Vec<String> = parts.into_iter().flat_map(|part| part.join().unwrap()).collect();
    assert!(failures.is_empty(), "{} cases differ:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn harness_finds_no_difference_without_larder() {
    for store in [Store::Memory, Store::Redis] {
        let mut stores = Stores::default();
        stores.without_larder = true;
        let failures = run(stores, store, 0, 10_000);
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
}

#[test]
fn answers_are_the_same_with_a_store_in_memory() {
    check(Store::Memory, 90_000);
}

#[test]
fn answers_are_the_same_with_redis() {
    check(Store::Redis, 6_000);
}

#[test]
fn answers_are_the_same_with_a_local_tier_and_late_messages() {
    check(Store::Tier, 3_000);
}

/// Returns the number of requests of the long run on the store in memory.
fn many() -> u64 {
    number("LARDER_REQUESTS").unwrap_or(10_000_000)
}

#[test]
#[ignore = "takes as long as LARDER_REQUESTS says; run by tests/run --slow, optimized"]
fn answers_are_the_same_in_a_long_run_with_a_store_in_memory() {
    check(Store::Memory, many());
}

#[test]
#[ignore = "takes as long as LARDER_REQUESTS says; run by tests/run --slow, optimized"]
fn answers_are_the_same_in_a_long_run_with_redis() {
    check(Store::Redis, many() / 50);
}

#[test]
#[ignore = "takes as long as LARDER_REQUESTS says; run by tests/run --slow, optimized"]
fn answers_are_the_same_in_a_long_run_with_a_local_tier() {
    check(Store::Tier, many() / 100);
}
