//! Several processes over one Redis: no stale read after an eviction, and one run of a handler for all of them.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::future::join_all;
use http::header::HOST;
use http::{HeaderMap, Method};
use larder_tests::redis_server::RedisServer;
use larder_tests::scenarios::tags;
use larder_tests::shop::Shop;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

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

/// The versions of an origin's data, by host and group.
#[derive(Clone, Default)]
struct Versions(Arc<Mutex<BTreeMap<(String, u64), u64>>>);

impl Versions {
    fn of(&self, fields: &HeaderMap, group: u64, change: u64) -> u64 {
        let host = fields[HOST].to_str().unwrap().to_owned();
        let mut versions = self.0.lock().unwrap();
        let version = versions.entry((host, group)).or_default();
        *version += change;
        *version
    }
}

/// Starts an origin, and returns its URL. `/{id}` belongs to the groups `id mod 3` and `all`, and its body is the version of the
/// first. A POST to it makes a new version, and names that group.
async fn origin() -> String {
    async fn read(State(versions): State<Versions>, Path(id): Path<u64>, fields: HeaderMap) -> Response {
        let version = versions.of(&fields, id % 3, 0);
        tokio::task::yield_now().await;
        let groups = format!("\"{}\", \"all\"", id % 3);
        ([("cache-control", "max-age=300"), ("cache-groups", &groups)], version.to_string()).into_response()
    }
    async fn write(State(versions): State<Versions>, Path(id): Path<u64>, fields: HeaderMap) -> Response {
        let version = versions.of(&fields, id % 3, 1);
        ([("cache-group-invalidation", format!("\"{}\"", id % 3))], version.to_string()).into_response()
    }
    let app = Router::new().route("/{id}", get(read).post(write)).with_state(Versions::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

/// Starts a caching proxy, in memory or on Redis. Each Redis command may take this many seconds.
fn proxy(origin: &str, redis: Option<(&RedisServer, &str)>) -> Shop {
    let mut variables = vec![("ORIGIN", origin)];
    let url = redis.map(|(server, _)| server.url()).unwrap_or_default();
    if let Some((_, patience)) = redis {
        variables.extend([("REDIS_URL", &*url), ("REDIS_SOCKET_TIMEOUT", patience)]);
    }
    Shop::start(env!("CARGO_BIN_EXE_reverse-proxy"), &variables)
}

/// Sends a request for a host, and returns the version that answers, and whether it was stored.
async fn ask(proxy: &Shop, method: Method, host: &str, id: u64) -> (u64, bool) {
    let answer = proxy.request(method, &format!("/{id}"), &[("host", host)], "").await.ok();
    let is_hit = answer.header("cache-status").contains("; hit");
    (std::str::from_utf8(&answer.body).unwrap().parse().unwrap(), is_hit)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reverse_proxies_invalidate_exactly_the_groups_of_one_origin() {
    let (origin, redis) = (origin().await, RedisServer::start());
    let in_memory = vec![proxy(&origin, None)];
    let on_redis = vec![proxy(&origin, Some((&redis, "2"))), proxy(&origin, Some((&redis, "2")))];
    for (proxies, hosts) in [(in_memory, ["a.example", "b.example"]), (on_redis, ["c.example", "d.example"])]
    {
        for host in hosts {
            for id in 0..6 {
                ask(&proxies[0], Method::GET, host, id).await;
            }
        }
        for group in 0..3 {
            for (writer, reader) in [(0, proxies.len() - 1), (proxies.len() - 1, 0)] {
                ask(&proxies[writer], Method::POST, hosts[0], group).await;
                for host in hosts {
                    for id in 0..6 {
                        let (_, is_hit) = ask(&proxies[reader], Method::GET, host, id).await;
                        let is_invalid = host == hosts[0] && id % 3 == group;
                        assert_eq!(is_hit, !is_invalid, "{host}/{id} after {group}");
                        // A process may learn of another one's eviction only when it stores.
                        while is_invalid && !ask(&proxies[reader], Method::GET, host, id).await.1 {}
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn races_of_reverse_proxies_with_invalidations_leave_nothing_stale() {
    let (origin, redis) = (origin().await, RedisServer::start());
    let proxies = [(); 2].map(|()| proxy(&origin, Some((&redis, "2"))));
    for round in 0..100 {
        let group = round % 3;
        let reads = join_all((0..12).map(|n| ask(&proxies[n as usize % 2], Method::GET, "a.example", n / 2)));
        let write = ask(&proxies[round as usize % 2], Method::POST, "a.example", group);
        let (_, (written, _)) = tokio::join!(reads, write);
        let after =
            (0..4).map(|n| ask(&proxies[n as usize % 2], Method::GET, "a.example", group + n / 2 * 3));
        for (found, _) in join_all(after).await {
            assert!(found >= written, "stale: {found} after {written} in round {round}");
        }
    }
    let (_, is_hit) = ask(&proxies[0], Method::GET, "a.example", 0).await;
    assert!(is_hit || ask(&proxies[0], Method::GET, "a.example", 0).await.1, "the last fill is stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalidation_that_redis_does_not_confirm_is_repeated() {
    let (origin, redis) = (origin().await, RedisServer::start());
    let [writer, other] = [(); 2].map(|()| proxy(&origin, Some((&redis, "0.3"))));
    for id in 0..6 {
        ask(&writer, Method::GET, "a.example", id).await;
        assert!(ask(&other, Method::GET, "a.example", id).await.1);
    }
    redis.pause();
    let (written, _) = ask(&writer, Method::POST, "a.example", 1).await;
    redis.resume();
    // This process uses none of the entries meanwhile.
    for id in [1, 4] {
        assert_eq!(ask(&writer, Method::GET, "a.example", id).await.0, written, "{id}");
    }
    let began = Instant::now();
    while ask(&other, Method::GET, "a.example", 4).await.0 != written {
        assert!(began.elapsed() < Duration::from_secs(5), "the invalidation is not repeated");
        sleep(Duration::from_millis(10)).await;
    }
    assert!(ask(&other, Method::GET, "a.example", 0).await.1, "another group");
}
