//! Whole requests over HTTP on the loopback interface, each case compared with a plain handler that returns the same body.
//!
//! Both servers run in this process, each with its own runtime and thread. Only one gets requests at a time: for a tenth of a
//! second the one, then the other, in changing order, so that a noisy machine disturbs both equally. Each pair gives a ratio. The
//! table has the median of the ratios with its 95% interval, of the requests per second and of the processor time of the server's
//! thread per request. The second is more precise: it excludes the client and Redis.
//!
//! ```text
//! cargo bench -p larder-benches --bench whole               a Markdown table
//! cargo bench -p larder-benches --bench whole -- redis 61   the cases with this in their name, so many pairs
//! ```

mod client;
mod server;

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::handler::Handler;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use axum_response_cache::CacheLayer;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use http::{HeaderName, HeaderValue, Response};
use larder_axum::larder_core::store::redis::{RedisOptions, RedisStore};
use larder_axum::{Larder, cache};
use larder_benches::{Interval, LARGE, RedisServer, SMALL, TTL, body};
use redis::AsyncCommands;
use redis::io::tcp::TcpSettings;
use serde::Serialize;
use tokio::sync::OnceCell;
use tower::layer::layer_fn;
use tower::service_fn;

use client::{Ask, Client};
use server::Server;

/// The number of pairs, unless the command line sets it.
const PAIRS: usize = 41;

/// The time for each of a pair.
const SLICE: Duration = Duration::from_millis(100);

const PRODUCT: &str = "/products/{id}";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let pairs = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(PAIRS);
    let filter = args.iter().find(|arg| arg.parse::<usize>().is_err());
    println!("{}\n", larder_benches::machine());
    println!("{pairs} pairs a row, {} connections.\n", client::CONNECTIONS);
    println!("| case | against | requests/s | ratio | CPU a request | ratio of CPU |");
    println!("|---|---|--:|--:|--:|--:|");
    let run = |case: &str, against: &str, subject: Router, ask: Ask, base: Router, base_ask: Ask| {
        if filter.is_none_or(|filter| case.contains(filter.as_str())) {
            println!("{}", row(case, against, pairs, (subject, ask), (base, base_ask)));
        }
    };

    for len in [SMALL, LARGE] {
        let size = if len == SMALL { "550 B" } else { "50 KB" };
        let (body, one) = (body(len), Ask::one());
        run(&format!("hit, {size}"), "handler", cached(&body), one.clone(), plain(&body), one.clone());
        run(
            &format!("ready answer, {size}"),
            "handler",
            ready_answer(&body),
            one.clone(),
            plain(&body),
            one.clone(),
        );
        let same = Router::new().route(PRODUCT, get(handler_of_a_hit(&body)));
        run(&format!("hit, {size}"), "handler, same fields", cached(&body), one.clone(), same, one.clone());
        run(
            &format!("304, {size}"),
            "handler",
            cached(&body),
            Ask::revalidating(),
            plain(&body),
            one.clone(),
        );
        run(&format!("304, {size}"), "a hit", cached(&body), Ask::revalidating(), cached(&body), one.clone());
        run(&format!("miss, {size}"), "handler", cached(&body), Ask::many(), plain(&body), Ask::many());
        run(&format!("bypass, {size}"), "handler", cached(&body), Ask::known(), plain(&body), Ask::known());
        let items = len / 44;
        let (json, plain_json) = (json(items, Some(Larder::memory())), json(items, None));
        run(&format!("hit, {size}"), "handler, JSON", json, one.clone(), plain_json, one.clone());
        let peer = || Router::new().route(PRODUCT, get(handler(&body)).layer(CacheLayer::with_lifespan(TTL)));
        run(
            &format!("axum-response-cache, {size}"),
            "handler",
            peer(),
            one.clone(),
            plain(&body),
            one.clone(),
        );
        run(&format!("hit, {size}"), "axum-response-cache", cached(&body), one.clone(), peer(), one.clone());
        let larder = Larder::memory();
        let tagged = || tagged_in(&larder, &body);
        run(&format!("tagged hit, {size}"), "a hit", tagged(), one.clone(), cached(&body), one.clone());
        let _evictions = EvictionsOfOthers::start(larder.clone());
        run(
            &format!("tagged hit, {size}"),
            "a hit; others evicted",
            tagged(),
            one.clone(),
            cached(&body),
            one,
        );
    }
    let Some(server) = RedisServer::start() else {
        println!("\nNo `redis-server` here: the cases that need one were left out.");
        return;
    };
    for len in [SMALL, LARGE] {
        let size = if len == SMALL { "550 B" } else { "50 KB" };
        let (body, one) = (body(len), Ask::one());
        let on_redis = |group| cached_in(&redis(&server), group, &body);
        let by_hand = || by_hand(server.url(), &body);
        run(
            &format!("redis hit, no group, {size}"),
            "GET",
            on_redis(None),
            one.clone(),
            by_hand(),
            one.clone(),
        );
        let grouped = on_redis(Some("products"));
        run(&format!("redis hit, group, {size}"), "GET", grouped, one.clone(), by_hand(), one.clone());
        let tagged = || tagged_in(&redis_with_prefix(&server, "tagged"), &body);
        let grouped = || on_redis(Some("products"));
        run(&format!("redis tagged hit, {size}"), "a hit", tagged(), one.clone(), grouped(), one.clone());
        let evictions = EvictionsOfOthers::start(redis_with_prefix(&server, "tagged"));
        run(
            &format!("redis tagged hit, {size}"),
            "a hit; others evicted",
            tagged(),
            one.clone(),
            grouped(),
            one.clone(),
        );
        drop(evictions);
        let grouped = on_redis(Some("products"));
        run(
            &format!("redis miss, group, {size}"),
            "handler",
            grouped,
            Ask::many(),
            plain(&body),
            Ask::many(),
        );
    }
}

/// A layer that returns a hit's response without inspecting the request: the limit for any cache.
fn ready_answer(body: &Bytes) -> Router {
    let (mut fields, _) = fields_of_a_hit(body).into_response().into_parts();
    // A cache can know the length, so the server doesn't have to compute it.
    fields.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    let (headers, body) = (fields.headers, body.clone());
    let answer = move || {
        let mut response = Response::new(Body::from(body.clone()));
        *response.headers_mut() = headers.clone();
        ready(Ok::<_, Infallible>(response))
    };
    let layer = layer_fn(move |_| {
        let answer = answer.clone();
        service_fn(move |_: Request| answer())
    });
    Router::new().route(PRODUCT, get(handler(&Bytes::new()).layer(layer)))
}

/// A handler with a ready response, against which a cache gains the least.
fn handler(body: &Bytes) -> impl Handler<((),), ()> + use<> {
    let body = body.clone();
    move || async move { ([(CONTENT_TYPE, "application/json")], body) }
}

/// The same with the fields that a hit has, so that both send the same bytes.
fn handler_of_a_hit(body: &Bytes) -> impl Handler<((),), ()> + use<> {
    let answer = fields_of_a_hit(body);
    move || async move { answer }
}

fn fields_of_a_hit(body: &Bytes) -> ([(HeaderName, HeaderValue); 4], Bytes) {
    let fields = [
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (ETAG, larder_core::weak_etag(body)),
        (CACHE_CONTROL, HeaderValue::from_static("max-age=300")),
        (HeaderName::from_static("x-redis-cache"), HeaderValue::from_static("HIT")),
    ];
    (fields, body.clone())
}

fn plain(body: &Bytes) -> Router {
    Router::new().route(PRODUCT, get(handler(body)))
}

fn cached(body: &Bytes) -> Router {
    cached_in(&Larder::memory(), Some("products"), body)
}

fn cached_in(larder: &Larder, group: Option<&str>, body: &Bytes) -> Router {
    let layer = cache(larder).ttl(TTL);
    let layer = match group {
        Some(group) => layer.group(group),
        None => layer,
    };
    Router::new().route(PRODUCT, get(handler(body).layer(layer)))
}

/// The same, with three tags on each response.
fn tagged_in(larder: &Larder, body: &Bytes) -> Router {
    let layer = cache(larder).ttl(TTL).group("products").tag("product:7").tag("shop:3").tag("catalog");
    Router::new().route(PRODUCT, get(handler(body).layer(layer)))
}

/// Evictions by tags that no response has, a hundred a second, until this is dropped.
struct EvictionsOfOthers(Arc<AtomicBool>);

impl EvictionsOfOthers {
    fn start(larder: Larder) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        thread::spawn(move || {
            larder_benches::runtime().block_on(async {
                for number in 0.. {
                    if told.load(Ordering::Relaxed) {
                        break;
                    }
                    larder.evict_tag(&format!("product:{}", 1000 + number)).await;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
        });
        Self(ends)
    }
}

impl Drop for EvictionsOfOthers {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Each case has its own keys, so that no case uses another's entries.
fn redis(server: &RedisServer) -> Larder {
    static CASES: AtomicUsize = AtomicUsize::new(0);

    redis_with_prefix(server, &format!("case{}", CASES.fetch_add(1, Ordering::Relaxed)))
}

fn redis_with_prefix(server: &RedisServer, prefix: &str) -> Larder {
    let options = RedisOptions::from_url(&server.url()).expect("a valid URL");
    Larder::builder().prefix(prefix).store(RedisStore::new(options)).build()
}

#[derive(Clone, Serialize)]
struct Product {
    id: u32,
    name: &'static str,
    price: &'static str,
}

/// A handler that builds its response, as most do.
fn json(items: usize, larder: Option<Larder>) -> Router {
    let products = vec![Product { id: 7, name: "Earl Grey", price: "4.20" }; items];
    let handler = move || async move { Json(&products).into_response() };
    Router::new().route(
        PRODUCT,
        match larder {
            Some(larder) => get(handler.layer(cache(&larder).group("products").ttl(TTL))),
            None => get(handler),
        },
    )
}

/// A cache written by hand: one GET on a multiplexed connection, and nothing else.
fn by_hand(url: String, body: &Bytes) -> Router {
    let (body, connection) = (body.clone(), OnceCell::new());
    let connection = std::sync::Arc::new(connection);
    let handler = move || async move {
        let connection = connection.get_or_init(|| async {
            let info = redis::IntoConnectionInfo::into_connection_info(url).expect("a valid URL");
            let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
            let client = redis::Client::open(info).expect("a valid URL");
            let mut connection = client.get_multiplexed_async_connection().await.expect("Redis");
            let key = format!("by-hand:{}", body.len());
            connection.set::<_, _, ()>(key, &*body).await.expect("Redis");
            connection
        });
        let key = format!("by-hand:{}", body.len());
        let found: Vec<u8> = connection.await.clone().get(key).await.expect("Redis");
        ([(CONTENT_TYPE, "application/json")], found)
    };
    Router::new().route(PRODUCT, get(handler))
}

/// Measures a case and formats its row.
fn row(case: &str, against: &str, pairs: usize, subject: (Router, Ask), base: (Router, Ask)) -> String {
    let mut subject = Contender::new(subject);
    let mut base = Contender::new(base);
    let (mut throughput, mut cpu) = (Vec::new(), Vec::new());
    let (mut rate, mut cost) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        let (ours, theirs) = if pair % 2 == 0 {
            let ours = subject.measure();
            (ours, base.measure())
        } else {
            let theirs = base.measure();
            (subject.measure(), theirs)
        };
        throughput.push(ours.rate / theirs.rate);
        cpu.push(theirs.cpu / ours.cpu);
        rate.push(ours.rate);
        cost.push(ours.cpu);
    }
    let (rate, cost) = (Interval::of(rate).median, Interval::of(cost).median);
    let (throughput, cpu) = (Interval::of(throughput), Interval::of(cpu));
    format!("| {case} | {against} | {rate:.0} | {throughput} | {:.2} µs | {cpu} |", cost * 1e6)
}

struct Contender {
    server: Server,
    client: Client,
}

struct Measured {
    /// Requests per second.
    rate: f64,
    /// Seconds of processor time per request.
    cpu: f64,
}

impl Contender {
    fn new((app, ask): (Router, Ask)) -> Self {
        let server = Server::start(app);
        let mut client = Client::connect(server.address(), ask);
        client.ask_for(SLICE);
        Self { server, client }
    }

    fn measure(&mut self) -> Measured {
        let before = self.server.cpu();
        let (count, took) = self.client.ask_for(SLICE);
        let cpu = self.server.cpu().saturating_sub(before);
        Measured { rate: count as f64 / took.as_secs_f64(), cpu: cpu.as_secs_f64() / count as f64 }
    }
}
