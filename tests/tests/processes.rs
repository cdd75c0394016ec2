//! Several processes over one Redis: nothing stale after any eviction, and one run of a handler for all of them.

use std::process::{Command, Stdio};

use larder_tests::redis_server::RedisServer;

/// Starts so many workers at once and adds up what they print.
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
fn no_process_ever_sees_what_another_evicted() {
    let (reads, writes, stale) = race(2, 8, 600);
    assert_eq!(stale, 0, "of {reads} reads among {writes} writes");
    assert!(reads > 5000 && writes > 1500, "{reads} reads, {writes} writes");
}

#[test]
#[ignore = "slow: tens of thousands of rounds"]
fn no_process_ever_sees_what_another_evicted_however_long_it_takes() {
    let (reads, writes, stale) = race(3, 8, 4000);
    assert_eq!(stale, 0, "of {reads} reads among {writes} writes");
}
