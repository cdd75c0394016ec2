//! A GET with content bypasses the cache, also over HTTP/2, where no field announces the content.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::handler::Handler;
use axum::routing::get as get_route;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use larder_axum::Larder;
use larder_tests::http2::{Body, connect, frames, none, serve};
use larder_tests::in_process::{Answer, Runs};
use poem::EndpointExt;
use tokio::net::TcpListener;
use tower::{Layer, ServiceExt};

async fn ask(client: &SendRequest<Body>, body: Body) -> Answer {
    let request = Request::get("http://shop.example/search").body(body).unwrap();
    let response = client.clone().send_request(request).await.unwrap();
    Answer::of(response.map(axum::body::Body::new)).await
}

/// Services whose handler answers with the content and the number of its run.
async fn services() -> Vec<(&'static str, SocketAddr)> {
    let larder = Larder::memory();
    let runs = Runs::new();
    let handler =
        move |body: Bytes| async move { format!("{} {}", String::from_utf8_lossy(&body), runs.count()) };
    let axum = Router::new()
        .route("/search", get_route(handler.layer(larder_axum::cache(&larder).group("axum").ttl(60))));

    let runs = Runs::new();
    let poem = poem::Route::new().at(
        "/search",
        poem::get(poem::endpoint::make(move |mut request: poem::Request| {
            let runs = runs.clone();
            async move {
                let text = request.take_body().into_string().await.unwrap();
                Ok::<_, poem::Error>(format!("{text} {}", runs.count()))
            }
        }))
        .with(larder_poem::cache(&larder).group("poem").ttl(60)),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let poem_address = listener.local_addr().unwrap();
    let acceptor = poem::listener::TcpAcceptor::from_tokio(listener).unwrap();
    tokio::spawn(async move { poem::Server::new_with_acceptor(acceptor).run(poem).await.unwrap() });

    let plain = || {
        let runs = Runs::new();
        tower::service_fn(move |request: Request<Incoming>| {
            let runs = runs.clone();
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let text = format!("{} {}", String::from_utf8_lossy(&body), runs.count());
                let answer = Response::builder().header("cache-control", "max-age=60");
                Ok::<_, Infallible>(answer.body(Full::<Bytes>::from(text)).unwrap())
            }
        })
    };
    let tower = larder_tower::cache(&larder).group("tower").ttl(60).layer(plain());
    let shared = larder_tower::SharedCacheLayer::new(&larder).layer(plain());
    vec![
        (
            "axum",
            serve(axum.map_request(|request: Request<Incoming>| request.map(axum::body::Body::new))).await,
        ),
        ("poem", poem_address),
        ("tower", serve(tower).await),
        ("shared", serve(shared).await),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_without_a_length_are_content() {
    for (name, address) in services().await {
        let client = connect(address).await;
        for run in [1, 2] {
            let answer = ask(&client, frames("pears", true)).await;
            assert_eq!(answer.text(), format!("pears {run}"), "{name}");
        }
        for _ in 0..2 {
            assert_eq!(
                ask(&client, none()).await.text(),
                " 3",
                "{name}: an empty GET is not a search, and is cached"
            );
        }
        assert_eq!(ask(&client, frames("pears", true)).await.text(), "pears 4", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_content_blocks_no_other_request() {
    for (name, address) in services().await {
        let client = connect(address).await;
        let stuck = client.clone();
        let stuck = tokio::spawn(async move { ask(&stuck, frames("pears", false)).await });
        // Leaves time for the server to get it.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let answer = tokio::time::timeout(Duration::from_secs(3), ask(&client, none())).await;
        assert_eq!(answer.expect(name).text(), " 1", "{name}");
        stuck.abort();
    }
}
