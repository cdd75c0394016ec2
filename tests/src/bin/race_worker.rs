//! One of several processes that read, write, evict and evict whole groups through routes, over one Redis.
//!
//! `race_worker REDIS_URL TASKS ROUNDS` prints `reads=… writes=… stale=…`.
//!
//! The database is a counter in the same Redis, outside the cache. A write increments it, and raises the floor once its response
//! has arrived, which is after the cache was changed. A read takes the floor first: a value below it was evicted before the read
//! began, and is stale.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::handler::Handler;
use axum::routing::get as get_route;
use http::Method;
use larder_axum::{Larder, cache, cache_evict, cache_put};
use larder_tests::in_process::send;
use redis::aio::MultiplexedConnection;

/// Raises the floor to a value, if that is greater.
const RAISE: &str = "local f = tonumber(redis.call('GET', KEYS[1]) or '0') \
                     if tonumber(ARGV[1]) > f then redis.call('SET', KEYS[1], ARGV[1]) end";

#[derive(Default)]
struct Counts {
    reads: AtomicU64,
    writes: AtomicU64,
    stale: AtomicU64,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, url, tasks, rounds] = &args[..] else { panic!("race_worker REDIS_URL TASKS ROUNDS") };
    let database =
        redis::Client::open(url.as_str()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let app = app(&Larder::redis(url).unwrap(), &database);
    let counts = Arc::new(Counts::default());
    let tasks: Vec<_> = (0..tasks.parse::<u64>().unwrap())
        .map(|_| {
            tokio::spawn(task(app.clone(), database.clone(), rounds.parse().unwrap(), Arc::clone(&counts)))
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    println!(
        "reads={} writes={} stale={}",
        count(&counts.reads),
        count(&counts.writes),
        count(&counts.stale)
    );
}

fn app(larder: &Larder, database: &MultiplexedConnection) -> Router {
    let read = {
        let database = database.clone();
        move || async move {
            let value = value_of(database, "GET").await;
            // Sometimes waits, so that the value is old when it is stored.
            tokio::time::sleep(Duration::from_micros(fastrand::u64(0..600))).await;
            value
        }
    };
    let write = {
        let database = database.clone();
        move || async move {
            let value = value_of(database, "INCR").await;
            tokio::time::sleep(Duration::from_micros(fastrand::u64(0..300))).await;
            value
        }
    };
    Router::new().route(
        "/x",
        get_route(read.layer(cache(larder).group("race").ttl(60)))
            .put(write.clone().layer(cache_put(larder).group("race").ttl(60)))
            .delete(write.clone().layer(cache_evict(larder).group("race").key()))
            .post(write.layer(cache_evict(larder).group("race").whole_group())),
    )
}

async fn value_of(mut database: MultiplexedConnection, command: &str) -> String {
    let value: Option<u64> = redis::cmd(command).arg("database").query_async(&mut database).await.unwrap();
    value.unwrap_or(0).to_string()
}

async fn task(app: Router, mut database: MultiplexedConnection, rounds: u64, counts: Arc<Counts>) {
    for _ in 0..rounds {
        let method = match fastrand::u8(0..10) {
            0 => Method::PUT,
            1 => Method::DELETE,
            2 => Method::POST,
            _ => Method::GET,
        };
        if method == Method::GET {
            let floor: Option<u64> = redis::cmd("GET").arg("floor").query_async(&mut database).await.unwrap();
            let answer = send(&app, method, "/x", &[]).await;
            let read: u64 = answer.text().parse().unwrap();
            counts.reads.fetch_add(1, Ordering::SeqCst);
            if read < floor.unwrap_or(0) {
                counts.stale.fetch_add(1, Ordering::SeqCst);
                eprintln!("{read} below {floor:?}: {:?}", answer.headers);
            }
        } else {
            let written = send(&app, method, "/x", &[]).await;
            let raise = redis::Script::new(RAISE);
            let () = raise.key("floor").arg(written.text()).invoke_async(&mut database).await.unwrap();
            counts.writes.fetch_add(1, Ordering::SeqCst);
        }
    }
}
