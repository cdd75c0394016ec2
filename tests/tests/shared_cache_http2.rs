//! The shared cache behind a server and in front of a client that speak HTTP/2.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use larder_tests::http2::{Body, connect, frames, none, serve};
use larder_tests::in_process::{Answer, Runs};
use larder_tower::larder_core::shared::SharedRule;
use larder_tower::{Larder, SharedCacheLayer};
use tower::{Layer, service_fn};

/// A connection to a shared cache. The service answers with the content that it got, or with `gzip` or `plain` as the request
/// accepts, and counts its runs.
async fn cached() -> (SendRequest<Body>, Runs) {
    cached_with(|_| {}).await
}

async fn cached_with(change: impl FnOnce(&mut SharedRule)) -> (SendRequest<Body>, Runs) {
    let runs = Runs::new();
    let counted = runs.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        counted.count();
        async move {
            let accepted = request.headers().get("accept-encoding").map_or("", |it| it.to_str().unwrap());
            let coding = if accepted.to_ascii_lowercase().contains("gzip") { "gzip" } else { "plain" };
            let content = request.into_body().collect().await.unwrap().to_bytes();
            let content = if content.is_empty() { Bytes::from(coding) } else { content };
            let answer = Response::builder()
                .header("cache-control", "max-age=60")
                .header("vary", "accept-encoding")
                .header("etag", "\"x\"");
            Ok::<_, Infallible>(answer.body(Full::new(content)).unwrap())
        }
    });
    (connect(serve(SharedCacheLayer::with_rule(&Larder::memory(), change).layer(service)).await).await, runs)
}

async fn ask(client: &SendRequest<Body>, fields: &[(&str, &str)], content: Body) -> Answer {
    let mut request = Request::get("http://shop.example/x");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let response = client.clone().send_request(request.body(content).unwrap()).await.unwrap();
    Answer::of(response.map(axum::body::Body::new)).await
}

async fn get(client: &SendRequest<Body>, fields: &[(&str, &str)]) -> Answer {
    ask(client, fields, none()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_without_a_length_is_neither_answered_from_the_cache_nor_stored() {
    let (client, runs) = cached().await;
    for warm in [false, true] {
        for _ in 0..2 {
            let answer = ask(&client, &[], frames("pears", true)).await;
            assert_eq!(answer.text(), "pears", "{warm}");
            assert_eq!(answer.header("cache-status"), "Larder; fwd=bypass; detail=content", "{warm}");
        }
        assert_eq!(get(&client, &[]).await.text(), "plain", "{warm}");
    }
    assert_eq!(runs.total(), 5);
    assert!(get(&client, &[]).await.header("cache-status").contains("; hit"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_content_blocks_no_request() {
    let (client, runs) = cached().await;
    let stuck: Vec<_> = (0..10)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { ask(&client, &[], frames("pears", false)).await })
        })
        .collect();
    // Until the service has all of them.
    while runs.total() < stuck.len() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for expected in ["fwd=uri-miss", "; hit"] {
        let answer = tokio::time::timeout(Duration::from_secs(3), get(&client, &[])).await;
        let answer = answer.expect("nothing to wait for");
        assert_eq!(answer.text(), "plain");
        assert!(answer.header("cache-status").contains(expected), "{answer:?}");
    }
    stuck.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_conditions_match_nothing() {
    let (client, runs) = cached().await;
    get(&client, &[]).await;
    let rows = [
        ("W/\"x\"", 304),
        ("\"x\"", 304),
        ("\"y\", W/\"x\"", 304),
        ("*", 304),
        ("W/\"x\"-gzip", 200),
        ("\"x\"-gzip", 200),
        ("\"x\" \"y\"", 200),
        ("\"y\", \"x\"-gzip", 200),
        ("w/\"x\"", 200),
        ("x", 200),
        ("\"x", 200),
    ];
    for (condition, expected) in rows {
        let answer = get(&client, &[("if-none-match", condition)]).await;
        assert_eq!(answer.status.as_u16(), expected, "{condition}");
        assert!(answer.header("cache-status").contains("; hit"), "{condition}: {answer:?}");
        assert_eq!(answer.text(), if expected == 200 { "plain" } else { "" }, "{condition}");
    }
    assert_eq!(runs.total(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spellings_of_accept_encoding_share_a_variant() {
    let (client, runs) = cached().await;
    let variants: [(&str, &[&str]); 3] = [
        (
            "gzip",
            &[
                "gzip, deflate, br, zstd",
                "gzip,deflate,br,zstd",
                "zstd, br, deflate, gzip",
                "GZip;q=1, deflate;q=1.0, br, zstd",
                "x-gzip, deflate, br, zstd",
            ],
        ),
        ("gzip", &["gzip", "gzip;q=1.000", " gzip ,", "gzip, sdch"]),
        ("plain", &["identity", "identity;q=1", "", "br;q=0", "identity;q=1, *;q=0"]),
    ];
    for (first, (expected, spellings)) in variants.into_iter().enumerate() {
        for spelling in spellings {
            let answer = get(&client, &[("accept-encoding", spelling)]).await;
            assert_eq!((answer.text(), runs.total()), (expected, first + 1), "{spelling:?}");
        }
    }
    // Two fields are one list.
    let answer = get(&client, &[("accept-encoding", "br, zstd"), ("accept-encoding", "deflate, gzip")]).await;
    assert_eq!((answer.text(), runs.total()), ("gzip", 3));
    // A list with preferences is another variant.
    get(&client, &[("accept-encoding", "gzip;q=0.5, br")]).await;
    assert_eq!(runs.total(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_differ_in_undeclared_codings_share_a_variant() {
    let (client, runs) = cached_with(|rule| rule.content_codings = Some(vec!["gzip".into()])).await;
    for (run, (expected, spellings)) in
        [("gzip", &["gzip, br, zstd", "gzip", "*"][..]), ("plain", &["br, zstd", "identity", "gzip;q=0"])]
            .into_iter()
            .enumerate()
    {
        for spelling in spellings {
            let answer = get(&client, &[("accept-encoding", spelling)]).await;
            assert_eq!((answer.text(), runs.total()), (expected, run + 1), "{spelling:?}");
        }
    }
}

/// RFC 9875: the origin of a request is in `:scheme` and `:authority`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_of_one_origin_are_invalidated() {
    let service = service_fn(async |request: Request<Incoming>| {
        let answer = match request.method() {
            &Method::GET => {
                Response::builder().header("cache-control", "max-age=60").header("cache-groups", "\"a\"")
            }
            _ => Response::builder().header("cache-group-invalidation", "\"a\""),
        };
        Ok::<_, Infallible>(answer.body(Full::new(Bytes::from("x"))).unwrap())
    });
    let client = connect(serve(SharedCacheLayer::new(&Larder::memory()).layer(service)).await).await;
    let ask = async |method: Method, uri: &str| {
        let request = Request::builder().method(method).uri(uri).body(none()).unwrap();
        let response = client.clone().send_request(request).await.unwrap();
        Answer::of(response.map(axum::body::Body::new)).await.header("cache-status").contains("; hit")
    };
    let all = ["http://a.example/1", "http://a.example:80/2", "https://a.example/3", "http://a.example:81/4"];
    for (written, expected) in [
        ("http://A.example/x", [false, false, true, true]),
        ("https://a.example:443/x", [true, true, false, true]),
        ("http://a.example:81/x", [true, true, true, false]),
    ] {
        for uri in all {
            ask(Method::GET, uri).await;
        }
        ask(Method::POST, written).await;
        for (uri, expected) in all.into_iter().zip(expected) {
            assert_eq!(ask(Method::GET, uri).await, expected, "{uri} after {written}");
        }
    }
}
