//! The shared cache between real sockets: a client, hyper with the layer, and an origin that can misbehave.

#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{Either, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use larder_tower::larder_core::Status;
use larder_tower::larder_core::shared::SharedRule;
use larder_tower::larder_core::shared::policy::OriginFailed;
use larder_tower::{Larder, ManualClock, MemoryStore, SharedCacheLayer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::{Layer, service_fn};

/// The steps of the origin for a request, in order. Then it closes the connection.
#[derive(Clone)]
enum Step {
    Send(String),
    /// Waits until the test lets it continue.
    Wait,
    Sleep(Duration),
}

use Step::{Send, Sleep, Wait};

/// An origin, and the requests that it got.
#[derive(Clone)]
struct Origin {
    asked: Arc<Mutex<Vec<String>>>,
    gate: Arc<Semaphore>,
    address: SocketAddr,
}

impl Origin {
    /// Starts an origin. `script` gets the head of a request and the number of earlier requests.
    async fn start(script: impl Fn(&str, usize) -> Vec<Step> + std::marker::Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let origin = Self { asked: Arc::default(), gate: Arc::new(Semaphore::new(0)), address };
        let (this, script) = (origin.clone(), Arc::new(script));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (this, script) = (this.clone(), Arc::clone(&script));
                tokio::spawn(async move { this.answer(stream, &*script).await });
            }
        });
        origin
    }

    async fn answer(self, mut stream: TcpStream, script: &(impl Fn(&str, usize) -> Vec<Step> + Sync)) {
        let Some(head) = read_until(&mut stream, "\r\n\r\n").await else { return };
        let steps = {
            let mut asked = self.asked.lock().unwrap();
            let steps = script(&head, asked.len());
            asked.push(head);
            steps
        };
        for step in steps {
            match step {
                Send(text) => {
                    if stream.write_all(text.as_bytes()).await.is_err() {
                        return;
                    }
                }
                Wait => self.gate.acquire().await.unwrap().forget(),
                Sleep(time) => tokio::time::sleep(time).await,
            }
        }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn runs(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    fn go_on(&self) {
        self.gate.add_permits(1);
    }
}

/// A cache in front of an origin.
struct Cache {
    address: SocketAddr,
    clock: ManualClock,
    larder: Larder,
}

impl Cache {
    async fn before(origin: &Origin) -> Self {
        Self::with_rule(origin, |_| {}).await
    }

    async fn with_rule(origin: &Origin, change: impl FnOnce(&mut SharedRule)) -> Self {
        let clock = ManualClock::new();
        let larder = Larder::builder().clock(Arc::new(clock.clone())).store(MemoryStore::new()).build();
        let layer = SharedCacheLayer::with_rule(&larder, change);
        let client: Client<_, Incoming> = Client::builder(TokioExecutor::new()).build_http();
        let origin = origin.address;
        let service = layer.layer(service_fn(move |mut request: Request<Incoming>| {
            let client = client.clone();
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            let target: Uri = format!("http://{origin}{path}").parse().unwrap();
            let scheme = request.uri().scheme_str().unwrap_or("none").parse().unwrap();
            request.headers_mut().insert("x-scheme", scheme);
            *request.uri_mut() = target;
            async move {
                Ok::<_, Infallible>(match client.request(request).await {
                    Ok(response) => response.map(Either::Left),
                    Err(_) => {
                        let mut response = Response::new(Either::Right(Empty::<Bytes>::new()));
                        *response.status_mut() = StatusCode::BAD_GATEWAY;
                        response.extensions_mut().insert(OriginFailed);
                        response
                    }
                })
            }
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(service.clone());
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, clock, larder }
    }

    async fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{request}\r\nhost: shop.example\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// Sends a request and returns the whole response as text.
    async fn ask(&self, request: &str) -> String {
        let mut text = String::new();
        let mut stream = self.send(request).await;
        let read = stream.read_to_string(&mut text);
        tokio::time::timeout(Duration::from_secs(10), read).await.expect("no answer").unwrap();
        text
    }
}

/// Reads until `expected`. Returns `None` if the connection ends before that.
async fn read_until(stream: &mut TcpStream, expected: &str) -> Option<String> {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(expected) {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => text.push_str(std::str::from_utf8(&buffer[..read]).unwrap()),
        }
    }
    Some(text)
}

/// A whole response.
fn whole(fields: &str, body: &str) -> Step {
    Send(format!(
        "HTTP/1.1 200 OK\r\n{fields}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    ))
}

const CHUNKED: &str =
    "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n";
const LAST_CHUNK: &str = "4\r\nlast\r\n0\r\n\r\n";

#[tokio::test]
async fn body_of_unknown_length_is_streamed_and_stored_at_its_end() {
    let origin = Origin::start(|_, _| vec![Send(CHUNKED.into()), Wait, Send(LAST_CHUNK.into())]).await;
    let cache = Cache::before(&origin).await;
    let mut client = cache.send("GET / HTTP/1.1").await;
    // The origin hasn't sent the rest.
    let head = read_until(&mut client, "first").await.unwrap();
    assert!(head.contains("cache-status: Larder; fwd=uri-miss; stored"), "{head}");
    origin.go_on();
    assert!(read_until(&mut client, "0\r\n\r\n").await.unwrap().contains("last"));
    // Once a client has read it to the end, it is stored.
    let hit = cache.ask("GET / HTTP/1.1").await;
    assert!(hit.contains("; hit") && hit.ends_with("\r\n\r\nfirstlast"), "{hit}");
    assert!(hit.contains("content-length: 9\r\n"), "{hit}");
    assert_eq!(origin.runs(), 1);
}

#[tokio::test]
async fn broken_off_response_is_never_stored_and_never_looks_complete() {
    let short = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 10\r\n\r\nfirst";
    for broken in [CHUNKED, short] {
        let origin = Origin::start(move |_, before| match before {
            0 => vec![Send(broken.into())],
            _ => vec![whole("cache-control: max-age=60", "firstlast")],
        })
        .await;
        let cache = Cache::before(&origin).await;
        let mut cut = Vec::new();
        // An error, or an end without the terminating chunk.
        let _ = cache.send("GET / HTTP/1.1").await.read_to_end(&mut cut).await;
        assert!(!cut.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&cut));
        for expected in ["fwd=", "; hit"] {
            let answer = cache.ask("GET / HTTP/1.1").await;
            assert!(answer.contains(expected) && answer.ends_with("firstlast"), "{answer}");
        }
        assert_eq!(origin.runs(), 2);
    }
}

#[tokio::test]
async fn disconnect_does_not_stop_the_fill() {
    let origin = Origin::start(|_, _| vec![Send(CHUNKED.into()), Wait, Send(LAST_CHUNK.into())]).await;
    let cache = Cache::before(&origin).await;
    let mut client = cache.send("GET / HTTP/1.1").await;
    read_until(&mut client, "first").await.unwrap();
    drop(client);
    origin.go_on();
    // Either it is stored already, or this request waits for it.
    let answer = cache.ask("GET / HTTP/1.1").await;
    assert!(answer.ends_with("\r\n\r\nfirstlast"), "{answer}");
    assert_eq!(origin.runs(), 1);
}

#[tokio::test]
async fn body_over_the_limit_passes_through_unstored() {
    let body = "x".repeat(300_000);
    for fields in ["content-length: 300000\r\n", ""] {
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\nconnection: close\r\n{fields}\r\n{body}"
        );
        let origin = Origin::start(move |_, _| vec![Send(answer.clone())]).await;
        let cache = Cache::with_rule(&origin, |rule| rule.max_body = 1000).await;
        for runs in [1, 2] {
            let answer = cache.ask("GET / HTTP/1.1").await;
            let sent = answer.matches('x').count();
            assert!(sent >= body.len(), "{sent} bytes");
            assert_eq!(origin.runs(), runs);
        }
    }
}

#[tokio::test]
async fn fifty_cold_requests_reach_the_origin_once() {
    let answer =
        || vec![Sleep(Duration::from_millis(100)), whole("cache-control: max-age=60", "one for all")];
    let origin = Origin::start(move |_, _| answer()).await;
    let cache = Cache::before(&origin).await;
    let answers = join_all((0..50).map(|_| cache.ask("GET / HTTP/1.1"))).await;
    assert!(answers.iter().all(|answer| answer.ends_with("one for all")));
    let collapsed = answers.iter().filter(|answer| answer.contains("; collapsed")).count();
    assert_eq!((origin.runs(), collapsed), (1, 49));
}

#[tokio::test]
async fn requests_for_an_unshareable_response_run_concurrently() {
    let pause = Duration::from_millis(200);
    let origin = Origin::start(move |_, before| {
        vec![Sleep(pause), whole("cache-control: private, max-age=60", &format!("for {before}"))]
    })
    .await;
    let cache = Cache::before(&origin).await;
    #[expect(clippy::disallowed_methods, reason = "the real duration is checked")]
    let began = Instant::now();
    let mut answers = join_all((0..10).map(|_| cache.ask("GET / HTTP/1.1"))).await;
    answers.sort_unstable();
    answers.dedup_by_key(|answer| answer.rsplit("\r\n\r\n").next().map(str::to_owned));
    assert_eq!((answers.len(), origin.runs()), (10, 10), "each request has its own response");
    // One waits for the first, and then all run concurrently.
    assert!(began.elapsed() < pause * 8, "{:?}", began.elapsed());
}

#[tokio::test]
async fn stale_response_is_served_when_the_origin_fails() {
    let origin = Origin::start(|head, before| match (before, head.contains("/strict")) {
        (0, false) => vec![whole("cache-control: max-age=60", "good")],
        (0, true) => vec![whole("cache-control: max-age=60, must-revalidate\r\netag: \"a\"", "good")],
        // Closed without a response.
        _ => vec![],
    });
    let origin = origin.await;
    let cache = Cache::before(&origin).await;
    cache.ask("GET /lax HTTP/1.1").await;
    cache.clock.advance(Duration::from_secs(61));
    let stale = cache.ask("GET /lax HTTP/1.1").await;
    assert!(stale.starts_with("HTTP/1.1 200 ") && stale.ends_with("good"), "{stale}");
    assert!(stale.contains("age: 61\r\n") && stale.contains("fwd=stale"), "{stale}");
    // It asked the origin once.
    assert_eq!(origin.runs(), 2);
    // Only within `stale-if-error`.
    cache.clock.advance(Duration::from_secs(60 * 60));
    assert!(cache.ask("GET /lax HTTP/1.1").await.starts_with("HTTP/1.1 502 "));

    let origin = Origin::start(|_, before| match before {
        0 => vec![whole("cache-control: max-age=60, must-revalidate\r\netag: \"a\"", "good")],
        _ => vec![],
    })
    .await;
    let cache = Cache::before(&origin).await;
    cache.ask("GET / HTTP/1.1").await;
    cache.clock.advance(Duration::from_secs(61));
    assert!(cache.ask("GET / HTTP/1.1").await.starts_with("HTTP/1.1 502 "));
}

#[tokio::test]
async fn stale_response_is_refreshed_in_the_background_with_the_clients_fields() {
    let origin = Origin::start(|_, before| {
        let fields = "cache-control: max-age=60, stale-while-revalidate=60\r\netag: \"a\"";
        match before {
            0 => vec![whole(fields, "old")],
            _ => vec![Wait, whole(fields, "new")],
        }
    })
    .await;
    let cache = Cache::before(&origin).await;
    cache.ask("GET / HTTP/1.1").await;
    cache.clock.advance(Duration::from_secs(61));
    // The origin hangs, and requests are still answered.
    for _ in 0..3 {
        let stale = cache.ask("GET / HTTP/1.1\r\naccept: text/plain").await;
        assert!(stale.contains("; hit; ttl=-1") && stale.ends_with("old"), "{stale}");
    }
    while origin.runs() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let asked = origin.asked().remove(1);
    assert!(
        asked.contains("accept: text/plain\r\n") && asked.contains("if-none-match: \"a\"\r\n"),
        "{asked}"
    );
    origin.go_on();
    let mut answer = String::new();
    for _ in 0..200 {
        answer = cache.ask("GET / HTTP/1.1").await;
        if answer.ends_with("new") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(answer.ends_with("new"), "{answer}");
    assert_eq!(origin.runs(), 2);
}

#[tokio::test]
async fn response_older_than_a_write_is_not_stored() {
    let origin = Origin::start(|head, before| match (head.starts_with("GET"), before) {
        (true, 0) => vec![Send(CHUNKED.into()), Wait, Send(LAST_CHUNK.into())],
        (true, _) => vec![whole("cache-control: max-age=60", "new")],
        (false, _) => vec![Send("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".into())],
    })
    .await;
    let cache = Cache::before(&origin).await;
    let mut slow = cache.send("GET / HTTP/1.1").await;
    read_until(&mut slow, "first").await.unwrap();
    assert!(cache.ask("DELETE / HTTP/1.1").await.starts_with("HTTP/1.1 204 "));
    origin.go_on();
    // The earlier reader gets the response that it began to read, and no one else gets it.
    assert!(read_until(&mut slow, "0\r\n\r\n").await.unwrap().contains("last"));
    assert!(cache.ask("GET / HTTP/1.1").await.ends_with("new"));
    assert!(cache.ask("GET / HTTP/1.1").await.contains("; hit"));
}

#[tokio::test]
async fn validated_response_is_sent_whole_and_variants_are_separate() {
    let origin = Origin::start(|head, _| {
        let fields = "cache-control: max-age=60\r\nvary: accept-language\r\netag: \"a\"";
        if head.contains("if-none-match: \"a\"") {
            return vec![Send(format!("HTTP/1.1 304 Not Modified\r\n{fields}\r\nconnection: close\r\n\r\n"))];
        }
        let language = if head.contains("accept-language: fr") { "bonjour" } else { "hello" };
        vec![whole(fields, language)]
    })
    .await;
    let cache = Cache::before(&origin).await;
    let french = "GET / HTTP/1.1\r\naccept-language: fr";
    for (request, body) in [(french, "bonjour"), ("GET / HTTP/1.1", "hello")] {
        assert!(cache.ask(request).await.ends_with(body));
    }
    for (request, body) in [(french, "bonjour"), ("GET / HTTP/1.1", "hello")] {
        let hit = cache.ask(request).await;
        assert!(hit.contains("; hit") && hit.ends_with(body), "{hit}");
    }
    cache.clock.advance(Duration::from_secs(61));
    let validated = cache.ask(french).await;
    assert!(validated.contains("fwd-status=304; stored") && validated.ends_with("bonjour"), "{validated}");
    assert!(cache.ask(french).await.contains("; hit"));
    assert_eq!(origin.runs(), 3);
}

/// Each request counts under one status and under the reason that `Cache-Status` gives.
#[tokio::test]
async fn outcomes_of_requests_are_counted() {
    let origin = Origin::start(|head, before| {
        let fields = "cache-control: max-age=60, stale-while-revalidate=60\r\netag: \"a\"";
        match before {
            _ if head.contains("/gone") => vec![],
            _ if head.contains("/private") => vec![whole("cache-control: private", "for one")],
            _ if head.starts_with("POST") => vec![whole("", "changed")],
            _ if head.contains("if-none-match") => {
                vec![Send(format!("HTTP/1.1 304 Not Modified\r\n{fields}\r\nconnection: close\r\n\r\n"))]
            }
            _ => vec![Sleep(Duration::from_millis(100)), whole(fields, "good")],
        }
    })
    .await;
    let cache = Cache::before(&origin).await;
    let together = join_all((0..3).map(|_| cache.ask("GET / HTTP/1.1"))).await;
    assert!(together.iter().all(|answer| answer.ends_with("good")));
    assert_eq!(cache.larder.stats().fill_waits.waited.count(), 2);
    cache.ask("GET / HTTP/1.1").await;
    cache.ask("GET / HTTP/1.1\r\ncache-control: no-cache").await;
    cache.ask("GET /none HTTP/1.1\r\ncache-control: only-if-cached").await;
    cache.ask("GET /private HTTP/1.1").await;
    cache.ask("GET /gone HTTP/1.1").await;
    cache.ask("POST /other HTTP/1.1\r\ncontent-length: 0").await;
    cache.clock.advance(Duration::from_secs(60 * 10));
    cache.ask("GET / HTTP/1.1").await;
    cache.clock.advance(Duration::from_secs(61));
    cache.ask("GET / HTTP/1.1").await;

    let stats = cache.larder.stats();
    let [counted] = &stats.routes[..] else { panic!("{:?}", stats.routes) };
    assert_eq!(counted.route, "shared cache");
    let of = |status| counted.requests.of(status);
    let all = Status::ALL.map(|status| (status, of(status)));
    let expected = [
        (Status::Hit, 1),
        // The first, two that were validated, and one with `only-if-cached`.
        (Status::Miss, 4),
        (Status::Stale, 1),
        (Status::Bypass, 2),
        (Status::Error, 1),
        (Status::Collapsed, 2),
    ];
    assert_eq!(all, expected, "{:?}", counted.reasons);
}

/// Stores the response of a GET and expects a hit, so that the next request shows what happened to the entry.
async fn warm(cache: &Cache, request: &str) {
    cache.ask(request).await;
    let hit = cache.ask(request).await;
    assert!(hit.contains("; hit"), "{request} {hit}");
}

#[tokio::test]
async fn write_with_unknown_outcome_evicts() {
    let broken = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n";
    let answers =
        ["408 Request Timeout", "500 Internal Server Error", "502 Bad Gateway", "504 Gateway Timeout", "-"];
    for answer in answers {
        let origin = Origin::start(move |head, before| match (head.starts_with("GET"), answer) {
            (true, _) => vec![whole("cache-control: max-age=60", &format!("version {before}"))],
            // Closed within the head.
            (false, "-") => vec![Send(broken.into())],
            (false, _) => {
                vec![Send(format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"))]
            }
        })
        .await;
        let cache = Cache::before(&origin).await;
        for method in ["PUT", "POST", "DELETE", "PATCH"] {
            warm(&cache, "GET /p HTTP/1.1").await;
            cache.ask(&format!("{method} /p HTTP/1.1\r\ncontent-length: 0")).await;
            let next = cache.ask("GET /p HTTP/1.1").await;
            assert!(next.contains("fwd=uri-miss"), "{method} {answer}: {next}");
        }
    }
}

#[tokio::test]
async fn refused_write_evicts_nothing() {
    let origin = Origin::start(|head, _| match head.starts_with("GET") {
        true => vec![whole("cache-control: max-age=60", "as it was")],
        false => {
            vec![Send("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".into())]
        }
    })
    .await;
    let cache = Cache::before(&origin).await;
    warm(&cache, "GET /p HTTP/1.1").await;
    cache.ask("PUT /p HTTP/1.1\r\ncontent-length: 0").await;
    assert!(cache.ask("GET /p HTTP/1.1").await.contains("; hit"));
}

/// An origin that answers with the target of the request, fresh for a minute.
async fn echo() -> Origin {
    Origin::start(|head, _| {
        let field =
            |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("-").to_owned();
        let line = head.lines().next().unwrap_or_default();
        let target = line.split(' ').nth(1).unwrap_or_default();
        let (scheme, host) = (field("x-scheme: "), field("x-forwarded-host: "));
        match line.starts_with("GET") {
            true => vec![whole("cache-control: max-age=60", &format!("{scheme} {host} {target}"))],
            false => vec![Send("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".into())],
        }
    })
    .await
}

#[tokio::test]
async fn spellings_are_separate_and_evicted_together() {
    let spellings = [
        "/users/a@b.example/x?q=a+b&c=,",
        "/users/a%40b.example/x?q=a+b&c=,",
        "/users/%61%40b.example/x?q=a+b&c=,",
        "/users/a@b.example/x?q=a%20b&c=%2c",
        "/users/a@b.example/x?q=a%20b&c=%2C",
        "/users/a@b.example/x?q=a+b&c=,&",
        "/users/y/../a@b.example/x?q=a+b&c=,",
        "/users/y/%2e%2e/a@b.example/x?q=a+b&c=,",
    ];
    let origin = echo().await;
    let cache = Cache::before(&origin).await;
    for evicted_by in spellings {
        for spelling in spellings {
            // Each has the response of its own handler, and is cached.
            cache.ask(&format!("GET {spelling} HTTP/1.1")).await;
        }
        for spelling in spellings {
            let hit = cache.ask(&format!("GET {spelling} HTTP/1.1")).await;
            assert!(hit.contains("; hit") && hit.ends_with(&format!(" {spelling}")), "{spelling} {hit}");
        }
        assert!(cache.ask(&format!("DELETE {evicted_by} HTTP/1.1")).await.starts_with("HTTP/1.1 204"));
        for spelling in spellings {
            let miss = cache.ask(&format!("GET {spelling} HTTP/1.1")).await;
            assert!(miss.contains("fwd="), "{spelling} after DELETE {evicted_by}: {miss}");
        }
    }
}

#[tokio::test]
async fn forwarding_fields_poison_nothing() {
    let origin = echo().await;
    let cache = Cache::before(&origin).await;
    let evil = cache.ask("GET /a HTTP/1.1\r\nx-forwarded-host: evil.example").await;
    assert!(evil.ends_with("evil.example /a"), "{evil}");
    let honest = cache.ask("GET /a HTTP/1.1").await;
    assert!(honest.ends_with(" - /a"), "{honest}");
    assert!(cache.ask("GET /a HTTP/1.1").await.contains("; hit"));
    let evil = cache.ask("GET /a HTTP/1.1\r\nx-forwarded-host: evil.example").await;
    assert!(evil.ends_with("evil.example /a"), "{evil}");
    let worse = cache.ask("GET /a HTTP/1.1\r\nx-forwarded-host: worse.example").await;
    assert!(worse.ends_with("worse.example /a"), "{worse}");
    // A proxy field that repeats the key's value doesn't bypass the cache.
    let repeated =
        cache.ask("GET /a HTTP/1.1\r\nx-forwarded-host: shop.example\r\nx-forwarded-proto: http").await;
    assert!(repeated.contains("; hit") && repeated.ends_with(" - /a"), "{repeated}");
    // One DELETE evicts all of them.
    cache.ask("DELETE /a HTTP/1.1").await;
    let evil = cache.ask("GET /a HTTP/1.1\r\nx-forwarded-host: evil.example").await;
    assert!(evil.contains("fwd="), "{evil}");
}

#[tokio::test]
async fn schemes_are_separate_and_evicted_together() {
    let origin = echo().await;
    let cache = Cache::before(&origin).await;
    let (http, https) = ("GET http://shop.example/a HTTP/1.1", "GET https://shop.example/a HTTP/1.1");
    for (request, scheme) in [(http, "http"), (https, "https")] {
        warm(&cache, request).await;
        let hit = cache.ask(request).await;
        assert!(hit.contains(&format!("\r\n\r\n{scheme} ")), "{hit}");
    }
    cache.ask("PUT /a HTTP/1.1\r\ncontent-length: 0").await;
    for request in [http, https] {
        assert!(cache.ask(request).await.contains("fwd=uri-miss"), "{request}");
    }
}

#[tokio::test]
async fn cookies_and_credentials_stay_with_their_client() {
    let origin = Origin::start(|_, before| {
        vec![whole(&format!("cache-control: max-age=60\r\nset-cookie: session={before}"), "welcome")]
    })
    .await;
    let cache = Cache::before(&origin).await;
    for visitor in 0..3 {
        let answer = cache.ask("GET / HTTP/1.1").await;
        assert!(answer.contains(&format!("set-cookie: session={visitor}\r\n")), "{answer}");
        assert!(answer.contains("detail=set-cookie"), "{answer}");
    }
    let origin = Origin::start(|head, _| {
        let key = head.lines().find_map(|line| line.strip_prefix("x-api-key: ")).unwrap_or("none");
        vec![whole("cache-control: max-age=60", &format!("for {key}"))]
    })
    .await;
    let cache = Cache::before(&origin).await;
    for key in ["key-1", "key-2"] {
        let answer = cache.ask(&format!("GET / HTTP/1.1\r\nx-api-key: {key}")).await;
        assert!(answer.ends_with(&format!("for {key}")), "{answer}");
    }
    assert!(cache.ask("GET / HTTP/1.1").await.ends_with("for none"));
}

#[tokio::test]
async fn length_beside_transfer_coding_is_ignored() {
    let answer = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 3\r\n\
                  transfer-encoding: chunked\r\n\r\n9\r\nfirstlast\r\n0\r\n\r\n";
    let origin = Origin::start(move |_, _| vec![Send(answer.into())]).await;
    let cache = Cache::before(&origin).await;
    for expected in ["fwd=", "; hit"] {
        let answer = cache.ask("GET / HTTP/1.1").await;
        assert!(answer.contains(expected) && answer.contains("firstlast"), "{answer}");
        assert!(!answer.contains("content-length: 3\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn write_that_offers_another_protocol_evicts() {
    let origin = echo().await;
    let cache = Cache::before(&origin).await;
    warm(&cache, "GET /a HTTP/1.1").await;
    cache.ask("PUT /a HTTP/1.1\r\ncontent-length: 0\r\nupgrade: h2c").await;
    assert!(cache.ask("GET /a HTTP/1.1").await.contains("fwd=uri-miss"));
}
