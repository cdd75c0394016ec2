//! An oracle for stores: several processes change, evict and update through one cache, while single keys vanish, the server
//! stalls, and invalidation messages are late. No read that starts after a confirmed eviction returns an older value, and no
//! confirmed update is lost.
//!
//! `LARDER_ORACLE_SECONDS` sets the length of the long runs: `cargo test -p larder-tests --test oracle -- --ignored`.

use std::process::{Command, Stdio};
use std::time::Duration;

use larder_core::{Larder, RedisOptions, RedisStore};
use larder_tests::proxy::{Proxy, ProxyMode};
use larder_tests::redis_server::{RedisServer, connect_without_deadline, patient};
use tokio::time::sleep;

const PREFIX: &str = "oracle:cache";

/// The number of processes.
const PROCESSES: usize = 3;

/// The counters that are never deleted, and the one that is.
const STEADY: [u64; 2] = [0, 1];
const VANISHING: u64 = 2;

/// Returns the number at the end of a record.
fn trailing_number(record: &[u8]) -> u64 {
    let digits = record.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&record[record.len() - digits..]).unwrap().parse().unwrap_or(0)
}

/// Deletes single keys without the cache's knowledge. Adds the value of a deleted counter to the oracle.
async fn keys_vanish(server: &RedisServer, oracle: &RedisServer) {
    let (mut cache, mut oracle) =
        (connect_without_deadline(&server.url()).await, connect_without_deadline(&oracle.url()).await);
    loop {
        sleep(Duration::from_millis(fastrand::u64(1..12))).await;
        let name: Option<String> = redis::cmd("RANDOMKEY").query_async(&mut cache).await.unwrap();
        let Some(name) = name else { continue };
        let is_counter = |n: &u64| name == format!("{PREFIX}:{{u}}:u{n}") || name == format!("{PREFIX}:u{n}");
        if STEADY.iter().any(is_counter) || name == format!("{PREFIX}:{{u}}") {
            continue;
        }
        if is_counter(&VANISHING) {
            if fastrand::u8(0..8) > 0 {
                continue;
            }
            let take = redis::Script::new(
                "local v = redis.call('GET', KEYS[1]) redis.call('DEL', KEYS[1]) return v",
            );
            let record: Option<Vec<u8>> = take.key(&name).invoke_async(&mut cache).await.unwrap();
            if let Some(record) = record {
                let mut add = redis::cmd("INCRBY");
                add.arg(format!("vanished:u{VANISHING}")).arg(trailing_number(&record));
                let _: u64 = add.query_async(&mut oracle).await.unwrap();
            }
            continue;
        }
        let vanish = match fastrand::u8(0..3) {
            0 => redis::cmd("DEL").arg(&name).take(),
            1 => redis::cmd("UNLINK").arg(&name).take(),
            _ => redis::cmd("PEXPIRE").arg(&name).arg(fastrand::u8(1..20)).take(),
        };
        let _: u64 = vanish.query_async(&mut cache).await.unwrap();
    }
}

/// Makes the server hang, or refuse commands, from time to time.
async fn servers_stall(server: &RedisServer) {
    let mut cache = connect_without_deadline(&server.url()).await;
    loop {
        sleep(Duration::from_millis(fastrand::u64(500..2000))).await;
        let stall = Duration::from_millis(fastrand::u64(20..700));
        if fastrand::bool() {
            server.pause();
            sleep(stall).await;
            server.resume();
        } else {
            let mut pause = redis::cmd("CLIENT");
            pause.arg("PAUSE").arg(stall.as_millis() as u64).arg(["WRITE", "ALL"][fastrand::usize(0..2)]);
            let _: String = pause.query_async(&mut cache).await.unwrap();
        }
    }
}

/// Delays invalidation messages by changing times, and sometimes holds all traffic.
async fn messages_are_late(proxy: &Proxy) {
    loop {
        proxy.set_mode(ProxyMode::SlowInvalidations(Duration::from_millis(fastrand::u64(0..120))));
        sleep(Duration::from_millis(fastrand::u64(200..1500))).await;
        if fastrand::u8(0..4) == 0 {
            proxy.set_mode(ProxyMode::BlackHole);
            sleep(Duration::from_millis(fastrand::u64(50..400))).await;
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    reads: u64,
    evictions: u64,
    updates: u64,
    stale: u64,
}

/// Runs the processes until they exit, and adds up the numbers that they print.
async fn work(urls: Vec<String>, oracle: String, kinds: [&'static str; PROCESSES], seconds: u64) -> Counts {
    tokio::task::spawn_blocking(move || {
        let workers: Vec<_> = kinds
            .iter()
            .zip(urls)
            .map(|(kind, url)| {
                Command::new(env!("CARGO_BIN_EXE_oracle_worker"))
                    .args([&oracle, &url, *kind, &seconds.to_string()])
                    .stdout(Stdio::piped())
                    .spawn()
                    .expect("a worker")
            })
            .collect();
        let mut counts = Counts::default();
        for worker in workers {
            let output = worker.wait_with_output().expect("its end");
            assert!(output.status.success(), "a worker failed");
            for pair in String::from_utf8(output.stdout).unwrap().split_whitespace() {
                let (name, count) = pair.split_once('=').unwrap();
                let counter = match name {
                    "reads" => &mut counts.reads,
                    "evictions" => &mut counts.evictions,
                    "updates" => &mut counts.updates,
                    _ => &mut counts.stale,
                };
                *counter += count.parse::<u64>().unwrap();
            }
        }
        counts
    })
    .await
    .unwrap()
}

async fn consult(kinds: [&'static str; PROCESSES], seconds: u64) {
    let (server, oracle) = (RedisServer::start(), RedisServer::start());
    let proxy = Proxy::to(server.port()).await;
    let url = |kind: &&str| if *kind == "tier" { proxy.url() } else { server.url() };
    let working = work(kinds.iter().map(url).collect(), oracle.url(), kinds, seconds);
    let counts = tokio::select! {
        counts = working => counts,
        () = keys_vanish(&server, &oracle) => unreachable!(),
        () = servers_stall(&server) => unreachable!(),
        () = messages_are_late(&proxy) => unreachable!(),
    };
    server.resume();
    let mut raw = connect_without_deadline(&server.url()).await;
    let _: String = redis::cmd("CLIENT").arg("UNPAUSE").query_async(&mut raw).await.unwrap();
    println!("{kinds:?}: {counts:?}");

    let store = RedisStore::new(patient(RedisOptions::from_url(&server.url()).unwrap()));
    let backend = Larder::builder().prefix(PREFIX).store(store).build().backend();
    let mut truth = connect_without_deadline(&oracle.url()).await;
    let mut lost = Vec::new();
    for n in STEADY.into_iter().chain([VANISHING]) {
        let counters = if n.is_multiple_of(2) { backend.group("u") } else { backend.clone() };
        let left = counters.try_get::<u64>(&format!("u{n}")).await.unwrap().unwrap_or(0);
        let mut ask = async |what: &str| -> u64 {
            let name = format!("{what}:u{n}");
            let count: Option<u64> = redis::cmd("GET").arg(name).query_async(&mut truth).await.unwrap();
            count.unwrap_or(0)
        };
        let (tried, made, vanished) = (ask("tried").await, ask("made").await, ask("vanished").await);
        println!("u{n}: {left} left and {vanished} vanished, of {made} confirmed and {tried} tried");
        // An update that had read the counter before it vanished wrote the vanished count again.
        if left + vanished < made || (n != VANISHING && left > tried) {
            lost.push((n, left, vanished, made, tried));
        }
    }
    assert!(counts.stale == 0 && lost.is_empty(), "{} stale reads; lost updates: {lost:?}", counts.stale);
    let least = 20 * seconds;
    assert!(counts.reads > least && counts.evictions > seconds && counts.updates > seconds, "{counts:?}");
}

fn long() -> u64 {
    std::env::var("LARDER_ORACLE_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(120)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_are_current_and_no_update_is_lost() {
    consult(["plain"; PROCESSES], 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_are_current_and_no_update_is_lost_with_a_tier() {
    consult(["plain", "tier", "tier"], 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run by tests/run --slow"]
async fn reads_are_current_over_minutes() {
    consult(["plain"; PROCESSES], long()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run by tests/run --slow"]
async fn reads_are_current_over_minutes_with_a_tier() {
    consult(["plain", "tier", "tier"], long()).await;
}
