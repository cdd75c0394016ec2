//! Several processes over one Redis: no stale read after an eviction, and one run of a handler for all of them.

use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::future::join_all;
use larder_tests::redis_server::RedisServer;
use larder_tests::scenarios::tags;
use larder_tests::shop::Shop;

/// Starts the workers and adds up the numbers that they print.
fn race(processes: usize, tasks: u64, rounds: u64) -> (u64, u64, u64) {
    let redis = RedisServer::start();
    let workers: Vec<_> = (0..processes)
        .map(|_| {
            Command::new(env!("CARGO_BIN_EXE_race_worker"))
                .args([redis.url(), tasks.to_string(), rounds.to_string()])
                .stdout(Stdio::piped())
                .spawn()
                .expect("a worker")
        })
        .collect();
    let mut sums = (0, 0, 0);
    for worker in workers {
        let output = worker.wait_with_output().expect("its end");
        assert!(output.status.success());
        let line = String::from_utf8(output.stdout).unwrap();
        let mut numbers =
            line.split_whitespace().map(|pair| pair.split_once('=').unwrap().1.parse::<u64>().unwrap());
        sums.0 += numbers.next().unwrap();
        sums.1 += numbers.next().unwrap();
        sums.2 += numbers.next().unwrap();
    }
    sums
}

#[test]
fn evicted_entries_are_seen_by_no_process() {
    let (reads, writes, stale) = race(2, 8, 600);
    assert_eq!(stale, 0, "of {reads} reads among {writes} writes");
    assert!(reads > 5000 && writes > 1500, "{reads} reads, {writes} writes");
}

#[test]
#[ignore = "slow: tens of thousands of rounds"]
fn evicted_entries_are_seen_by_no_process_in_thousands_of_rounds() {
    let (reads, writes, stale) = race(3, 8, 4000);
    assert_eq!(stale, 0, "of {reads} reads among {writes} writes");
}

#[tokio::test]
#[ignore = "slow: ten thousand evictions by tag"]
async fn entries_evicted_by_tag_are_seen_by_no_process_in_thousands_of_rounds() {
    let redis = RedisServer::start();
    let url = redis.url();
    let variables =
        [("REDIS_URL", &*url), ("REDIS_SOCKET_TIMEOUT", "2"), ("REDIS_LOCAL_CACHE_BYTES", "1048576")];
    // Without a local tier, and with one.
    for variables in [&variables[..2], &variables[..]] {
        let shop = || Shop::start(env!("CARGO_BIN_EXE_shop-axum"), variables);
        tags::race(&shop(), &shop(), 5_000).await;
    }
}

#[tokio::test]
async fn two_hundred_cold_requests_to_two_processes_run_the_handler_once() {
    let redis = RedisServer::start();
    let shop = || Shop::on_patient_redis(env!("CARGO_BIN_EXE_shop-axum"), &redis.url());
    let shops = [shop(), shop()];
    let answers = join_all((0..200).map(|n| shops[n % 2].get("/slow/3"))).await;
    assert!(answers.into_iter().all(|answer| answer.ok().json()["value"] == "old-3"));
    assert_eq!(shops[0].runs("slow:3").await + shops[1].runs("slow:3").await, 1);
}

#[tokio::test]
async fn another_process_fills_when_the_lease_of_a_killed_one_ends() {
    let redis = RedisServer::start();
    let shop = || Shop::on_patient_redis(env!("CARGO_BIN_EXE_shop-axum"), &redis.url());
    let (one, other) = (shop(), shop());
    // The handler of `/slow` takes 200 ms, so the process is killed while it runs.
    assert!(tokio::time::timeout(Duration::from_millis(100), one.get("/slow/3")).await.is_err());
    drop(one);
    let answers = join_all((0..50).map(|_| other.get("/slow/3"))).await;
    for answer in answers {
        assert!(answer.took < Duration::from_secs(8), "{answer:?}");
        assert_eq!(answer.ok().json()["value"], "old-3");
    }
    assert_eq!(other.runs("slow:3").await, 1);
}
