//! Services of any framework behind one interface, for scenarios that run on all of them.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response};
use larder_axum::{Larder, MemoryStore};
use poem::Endpoint;
use poem::listener::Acceptor;
use tower::ServiceExt;

use crate::http::Http;
use crate::in_process::Answer;

/// Returns a cache in memory that sends `Cache-Status`.
pub fn larder() -> Larder {
    Larder::builder().cache_status(true).store(MemoryStore::new()).build()
}

/// A service of any framework.
#[derive(Clone)]
pub struct App(Arc<Sending>);

type Sending = dyn Fn(Request<Body>) -> BoxFuture<'static, Answer> + Send + Sync;

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").finish_non_exhaustive()
    }
}

impl App {
    /// Wraps an axum router, which is called in this process.
    pub fn axum(router: Router) -> Self {
        Self(Arc::new(move |request| {
            let router = router.clone();
            Box::pin(async move { Answer::of(router.oneshot(request).await.unwrap()).await })
        }))
    }

    /// Serves a poem endpoint on a real server. poem gets the client's URI only there.
    pub fn poem(endpoint: impl Endpoint + 'static) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let acceptor = poem::listener::TcpAcceptor::from_std(listener).unwrap();
        let http = Http::new(*acceptor.local_addr()[0].as_socket_addr().unwrap());
        tokio::spawn(async move { poem::Server::new_with_acceptor(acceptor).run(endpoint).await.unwrap() });
        Self(Arc::new(move |request| {
            let http = http.clone();
            Box::pin(async move {
                let uri = request.uri().to_string();
                let fields: Vec<_> = request
                    .headers()
                    .iter()
                    .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
                    .collect();
                let answer = http.request(request.method().clone(), &uri, &fields, "").await;
                Answer { status: answer.status, headers: answer.headers, body: answer.body }
            })
        }))
    }

    /// Wraps a tower service, which is called in this process.
    pub fn tower<S, B>(service: S) -> Self
    where
        S: tower::Service<Request<Body>, Response = Response<B>, Error = Infallible, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
        B: http_body::Body<Data = bytes::Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
            + Send
            + 'static,
    {
        Self(Arc::new(move |request| {
            let service = service.clone();
            Box::pin(async move { Answer::of(service.oneshot(request).await.unwrap().map(Body::new)).await })
        }))
    }

    /// Sends a request.
    pub async fn send(&self, method: Method, uri: &str) -> Answer {
        self.send_with(method, uri, &[]).await
    }

    /// Sends a request with these fields.
    pub async fn send_with(&self, method: Method, uri: &str, fields: &[(&str, &str)]) -> Answer {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        (self.0)(request.body(Body::empty()).unwrap()).await
    }

    /// Sends a GET without fields.
    pub async fn get(&self, uri: &str) -> Answer {
        self.send(Method::GET, uri).await
    }
}

/// Returns `HIT`, or the word and the reason.
pub fn outcome_of(answer: &Answer) -> String {
    match answer.header("cache-status").split_once("detail=") {
        Some((_, reason)) => format!("{} {reason}", answer.cache()),
        None => answer.cache().to_owned(),
    }
}
