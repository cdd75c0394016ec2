//! Clients that start to read long responses and stop use no more memory than the budget. A separate test program, because it
//! measures the memory of its process.

#![cfg(all(feature = "memory", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use larder_tower::larder_core::shared::SharedRule;
use larder_tower::{Larder, MemoryStore, SharedCacheLayer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::{Layer, service_fn};

const MIB: u64 = 1024 * 1024;
const CHUNK: usize = 64 * 1024;
const LENGTH: usize = 9 * 1024 * 1024;

/// Starts a cache in front of a service whose responses are 9 MiB long, with or without a declared length.
async fn start(change: impl FnOnce(&mut SharedRule)) -> SocketAddr {
    let larder = Larder::builder().store(MemoryStore::with_capacity(64 * MIB)).build();
    let layer = SharedCacheLayer::with_rule(&larder, change);
    let service = layer.layer(service_fn(async |request: Request<Incoming>| {
        let chunks = (0..LENGTH / CHUNK).map(|at| {
            let at = u8::try_from(at % 251).unwrap();
            Ok::<_, Infallible>(Frame::data(Bytes::from(vec![at; CHUNK])))
        });
        let mut response = Response::new(StreamBody::new(stream::iter(chunks)));
        response.headers_mut().insert("cache-control", "max-age=60".parse().unwrap());
        if request.uri().path().starts_with("/declared") {
            response.headers_mut().insert("content-length", LENGTH.into());
        }
        Ok::<_, Infallible>(response)
    }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let _larder = larder;
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

async fn ask(address: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn read_all(mut stream: TcpStream) -> (String, Vec<u8>) {
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    (String::from_utf8_lossy(&answer[..head]).into_owned(), answer.split_off(head))
}

/// Returns the memory of this process, in MiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_clients_cost_no_more_than_the_budget() {
    let address = start(|rule| rule.max_held = 64 * MIB).await;
    let before = resident();
    for kind in ["declared", "undeclared"] {
        let mut stalled = Vec::new();
        for client in 0..60 {
            let mut stream = ask(address, &format!("/{kind}/{client}")).await;
            stream.read_exact(&mut [0; 64 * 1024]).await.unwrap();
            stalled.push(stream);
        }
        // By now the cache has read all that the budget allows.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let cost = resident().saturating_sub(before);
        // The store, the budget, and a body that is copied into its record.
        assert!(cost < 64 + 64 + 64, "{kind}: {cost} MiB");
        // All of them get the whole response, which frees the budget.
        for stream in stalled {
            let mut rest = Vec::new();
            let mut stream = stream;
            tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut rest))
                .await
                .unwrap()
                .unwrap();
            assert!(rest.len() > LENGTH - 64 * 1024 - 1024, "{} bytes", rest.len());
        }
        let (head, _) = read_all(ask(address, &format!("/{kind}/again")).await).await;
        assert!(head.contains("; stored"), "{head}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_beyond_the_budget_pass_through_whole() {
    // The budget is enough for one response, but not for two.
    let address = start(|rule| rule.max_held = 10 * MIB).await;
    let mut first = ask(address, "/declared/first").await;
    let mut begun = vec![0; 1024];
    first.read_exact(&mut begun).await.unwrap();
    let (head, _) = read_all(ask(address, "/declared/second").await).await;
    assert!(head.contains("detail=budget") && !head.contains("; stored"), "{head}");
    for path in ["/declared/third", "/undeclared/fourth"] {
        let (head, body) = read_all(ask(address, path).await).await;
        assert!(!head.contains("; hit"), "{head}");
        assert!(body.len() >= LENGTH, "{path}: {} bytes", body.len());
    }
    // Its client reads the part that the cache holds.
    first.read_to_end(&mut begun).await.unwrap();
    let head = begun.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    let body = begun.split_off(head);
    assert!(String::from_utf8(begun).unwrap().contains("; stored"));
    let expected = (0..LENGTH).map(|at| u8::try_from(at / CHUNK % 251).unwrap());
    assert!(body.iter().copied().eq(expected), "{} bytes", body.len());
    let (head, _) = read_all(ask(address, "/declared/first").await).await;
    assert!(head.contains("; hit"), "{head}");
}
