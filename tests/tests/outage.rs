//! The cost of a Redis outage for a busy service: requests per second of a route with a cache, compared each second with the same
//! route without one.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::handler::Handler;
use axum::routing::get;
use axum::serve::ListenerExt as _;
use larder_axum::{Larder, cache};
use larder_tests::proxy::{Proxy, ProxyMode};
use larder_tests::redis_server::RedisServer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until};

const CLIENTS: usize = 32;

/// The number of products that each client requests in turn. No two clients share a product: the cache would run the handler once
/// for several requests, with or without an outage, and look better than it is.
const PRODUCTS: usize = 10;

const WINDOW: Duration = Duration::from_secs(1);
const WINDOWS: usize = 5;

/// The first part of an outage, which is not measured.
const GRACE: Duration = Duration::from_millis(500);

/// The least throughput with a cache in each second, as a share of the throughput without one.
const SHARE: f64 = 0.8;

/// A service and its clients on their own thread, so that two services share the processor fairly.
struct Service {
    progress: Arc<Progress>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Progress {
    answered: AtomicU64,
    hits: AtomicU64,
    is_over: AtomicBool,
}

impl Service {
    fn start(larder: Option<Larder>, work: Duration) -> Self {
        let progress = Arc::new(Progress::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let shared = Arc::clone(&progress);
        let thread = thread::spawn(move || runtime.block_on(run(app(larder, work), shared)));
        Self { progress, thread: Some(thread) }
    }

    fn answered(&self) -> u64 {
        self.progress.answered.load(Ordering::Relaxed)
    }

    /// Stops the clients. Panics if a client ever got a wrong response or none.
    fn stop(mut self) {
        self.progress.is_over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().expect("every answer is the handler's own");
    }
}

/// Stops the service also if the test fails.
impl Drop for Service {
    fn drop(&mut self) {
        self.progress.is_over.store(true, Ordering::Relaxed);
    }
}

fn app(larder: Option<Larder>, work: Duration) -> Router {
    let product = move |Path(id): Path<usize>| async move {
        if !work.is_zero() {
            sleep(work).await;
        }
        body(id)
    };
    let route = match larder {
        Some(larder) => get(product.layer(cache(&larder).group("products").ttl(300))),
        None => get(product),
    };
    Router::new().route("/products/{id}", route)
}

/// All bodies have the same length, so that clients know where they end.
fn body(id: usize) -> String {
    format!("product {id:>500}")
}

async fn run(app: Router, progress: Arc<Progress>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
    let server = tokio::spawn(async { axum::serve(listener, app).await });
    let clients = (0..CLIENTS).map(|number| tokio::spawn(client(port, number, Arc::clone(&progress))));
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("a client that got the right answers");
    }
    server.abort();
}

/// Sends requests on one connection, and checks every byte of each body.
async fn client(port: u16, number: usize, progress: Arc<Progress>) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut answer = Vec::new();
    for turn in 0.. {
        if progress.is_over.load(Ordering::Relaxed) {
            return;
        }
        let id = number * PRODUCTS + turn % PRODUCTS;
        let request = format!("GET /products/{id} HTTP/1.1\r\nhost: shop.example\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let expected = body(id);
        answer.clear();
        let head = loop {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "no answer");
            let head = answer.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4);
            if let Some(head) = head.filter(|head| answer.len() >= head + expected.len()) {
                break head;
            }
        };
        let (head, text) = answer.split_at(head);
        assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(head));
        assert_eq!(String::from_utf8_lossy(text), expected);
        progress.answered.fetch_add(1, Ordering::Relaxed);
        let is_hit = head.windows(5).any(|part| part == b": HIT");
        progress.hits.fetch_add(u64::from(is_hit), Ordering::Relaxed);
    }
}

/// The way in which Redis fails.
#[derive(Clone, Copy, Debug)]
enum Outage {
    Killed,
    Stopped,
    BlackHole,
    Slow,
}

/// Prints a row of the table, and returns the ratio of each second.
async fn measure(outage: Outage, work: Duration) -> Vec<f64> {
    let mut server = RedisServer::start();
    let proxy = Proxy::to(server.port()).await;
    let url = match outage {
        Outage::Killed | Outage::Stopped => server.url(),
        Outage::BlackHole | Outage::Slow => proxy.url(),
    };
    let cached = Service::start(Some(Larder::redis(&url).unwrap()), work);
    let bare = Service::start(None, work);
    let hits = || cached.progress.hits.load(Ordering::Relaxed);
    let began = Instant::now();
    // Until every product has been a hit.
    while hits() < (CLIENTS * PRODUCTS) as u64 {
        assert!(began.elapsed() < 10 * WINDOW, "{} hits before the outage", hits());
        sleep(WINDOW / 10).await;
    }

    match outage {
        Outage::Killed => server.kill(),
        Outage::Stopped => server.pause(),
        Outage::BlackHole => proxy.set_mode(ProxyMode::BlackHole),
        Outage::Slow => proxy.set_mode(ProxyMode::Slow(Duration::from_millis(200))),
    }
    let began = Instant::now();
    sleep_until(began + GRACE).await;
    let answered = || (cached.answered(), bare.answered());
    let hits_before = hits();
    let mut before = answered();
    let (mut rates, mut ratios) = (Vec::new(), Vec::new());
    for window in 1..=WINDOWS {
        sleep_until(began + GRACE + WINDOW * window as u32).await;
        let now = answered();
        let (with, without) = (now.0 - before.0, now.1 - before.1);
        before = now;
        rates.push(format!("{with}/{without}"));
        ratios.push(with as f64 / without as f64);
    }
    assert_eq!(hits(), hits_before, "hits while Redis was away");
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    println!("| {outage:?} | {work:?} | {} | {:.2} | {least:.2} |", rates.join(", "), median(&ratios));
    cached.stop();
    bare.stop();
    ratios
}

fn median(ratios: &[f64]) -> f64 {
    let mut sorted = ratios.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The first handler waits, as for a database, and shows how long an outage makes requests wait. The second does nothing, so its
/// throughput depends only on the processor, of which a cache takes a part. Its ratios are printed but not checked: they depend
/// too much on the load of the machine and on the debug build.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "slow"]
async fn outage_keeps_throughput() {
    println!("\n| Redis | the handler waits | requests with/without a cache, each second | median | least |");
    println!("|---|--:|---|--:|--:|");
    for outage in [Outage::Killed, Outage::Stopped, Outage::BlackHole, Outage::Slow] {
        let ratios = measure(outage, Duration::from_millis(20)).await;
        // The machine may be busy for one second, but not for two.
        let poor = ratios.iter().filter(|ratio| **ratio < SHARE).count();
        assert!(poor <= 1, "{outage:?}: {ratios:.2?}");
        measure(outage, Duration::ZERO).await;
    }
}
