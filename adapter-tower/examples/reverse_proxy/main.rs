//! A caching reverse proxy: a shared cache (RFC 9111) in front of one origin.
//!
//! `cargo run -p larder-tower --example reverse_proxy` listens on `LISTEN_ADDR` (by default `127.0.0.1:3000`) and asks
//! `ORIGIN` (by default `http://127.0.0.1:8000`). It caches in memory, unless the environment names a Redis. Bodies stream both
//! ways.
//!
//! It never sends a request twice: when a connection breaks after the request was written, nobody knows what the origin did
//! with it, so that the answer is 502, or a stale one that is stored. Interim (1xx) responses end here, for hyper's server
//! can't send them on; `Expect: 100-continue` it answers itself, as soon as the body is asked for.

use std::convert::Infallible;
use std::env;
use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONNECTION, EXPECT, FORWARDED, HOST, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use larder_tower::core::shared::policy::OriginFailed;
use larder_tower::{Larder, SharedCacheLayer};
use tokio::net::TcpListener;
use tower::{Layer, ServiceExt};

/// For how long an idle connection to the origin is used again. Shorter than origins keep them: Node.js, with 5 s, is among
/// the most impatient.
const IDLE: Duration = Duration::from_secs(4);

/// For how long the origin may think before it answers.
const PATIENCE: Duration = Duration::from_secs(60);

/// For how long connections may finish what they do when the proxy is told to stop.
const FAREWELL: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let larder = Larder::from_env()?;
    let proxy = Proxy::to(&env::var("ORIGIN").unwrap_or_else(|_| "http://127.0.0.1:8000".to_owned()))?;
    let cache = SharedCacheLayer::with_rule(&larder, |rule| {
        // Lifetimes for caches like this one, which the origin doesn't mean for browsers (RFC 9213).
        rule.targeted = vec![HeaderName::from_static("cdn-cache-control")];
    });
    let service = cache.layer(tower::service_fn(move |request| {
        let proxy = proxy.clone();
        async move { Ok::<_, Infallible>(proxy.forward(request).await) }
    }));

    let address = env::var("LISTEN_ADDR").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    announce(&listener)?;
    let connections = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop_signal());
    loop {
        let (stream, client) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                // Out of file descriptors, most likely: connections will end, and free some.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        // Where it can't be set, answers are a little later.
        let _ = stream.set_nodelay(true);
        let service = service.clone();
        let answer = move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ClientAddress(client));
            service.clone().oneshot(request)
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service_fn(answer));
        // A connection that breaks off is its client's business.
        tokio::spawn(connections.watch(connection));
    }
    let _late = tokio::time::timeout(FAREWELL, connections.shutdown()).await;
    larder.close().await;
    Ok(())
}

/// Who asked, for `X-Forwarded-For`.
#[derive(Clone, Copy)]
struct ClientAddress(SocketAddr);

/// Asks the origin.
#[derive(Clone)]
struct Proxy {
    client: Client<HttpConnector, Incoming>,
    scheme: Scheme,
    origin: Authority,
}

type Answer = Response<Either<Incoming, Full<Bytes>>>;

impl Proxy {
    fn to(origin: &str) -> Result<Self, Box<dyn Error>> {
        let parts = origin.parse::<Uri>()?.into_parts();
        let (Some(scheme), Some(origin)) = (parts.scheme, parts.authority) else {
            return Err("ORIGIN must be a URL, such as http://127.0.0.1:8000".into());
        };
        if scheme != Scheme::HTTP {
            return Err("ORIGIN must begin with http://".into());
        }
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            // This sends again only what was never begun to be written, because the connection was found closed.
            .retry_canceled_requests(true)
            // The origin is told the host that the client asked for.
            .set_host(false)
            .build_http();
        Ok(Self { client, scheme, origin })
    }

    async fn forward(&self, request: Request<Incoming>) -> Answer {
        let Some(request) = self.to_origin(request) else {
            return refusal(StatusCode::BAD_REQUEST);
        };
        match tokio::time::timeout(PATIENCE, self.client.request(request)).await {
            Ok(Ok(mut response)) => {
                remove_hop_by_hop(response.headers_mut());
                add_via(response.headers_mut(), Version::HTTP_11);
                response.map(Either::Left)
            }
            Ok(Err(_)) => no_answer(StatusCode::BAD_GATEWAY),
            Err(_) => no_answer(StatusCode::GATEWAY_TIMEOUT),
        }
    }

    /// The request as the origin shall see it (RFC 9110 §7.6).
    fn to_origin(&self, request: Request<Incoming>) -> Option<Request<Incoming>> {
        let (mut parts, body) = request.into_parts();
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(self.scheme.clone());
        uri.authority = Some(self.origin.clone());
        uri.path_and_query = parts.uri.path_and_query().cloned();
        let host = match parts.uri.authority() {
            // RFC 9112 §3.2.2: a URI with a host overrules the field.
            Some(authority) => HeaderValue::from_str(authority.as_str()).ok()?,
            // HTTP/1.0 asks without one.
            None => match parts.headers.get(HOST) {
                Some(host) => host.clone(),
                None => HeaderValue::from_str(self.origin.as_str()).ok()?,
            },
        };
        parts.uri = Uri::from_parts(uri).ok()?;
        remove_hop_by_hop(&mut parts.headers);
        parts.headers.remove(EXPECT);
        if let Some(ClientAddress(client)) = parts.extensions.get() {
            add(&mut parts.headers, &HeaderName::from_static("x-forwarded-for"), &client.ip().to_string());
        }
        parts.headers.insert("x-forwarded-host", host.clone());
        parts.headers.insert("x-forwarded-proto", HeaderValue::from_static("http"));
        // What a client says about its own way here is nothing to rely on.
        parts.headers.remove(FORWARDED);
        parts.headers.insert(HOST, host);
        add_via(&mut parts.headers, parts.version);
        parts.version = Version::HTTP_11;
        Some(Request::from_parts(parts, body))
    }
}

/// There was no answer. The mark lets the cache answer with something stale instead.
fn no_answer(status: StatusCode) -> Answer {
    let mut response = refusal(status);
    response.extensions_mut().insert(OriginFailed);
    response
}

fn refusal(status: StatusCode) -> Answer {
    let mut response = Response::new(Either::Right(Full::from(format!("{status}\n"))));
    *response.status_mut() = status;
    response
}

/// RFC 9110 §7.6.1: what is for the next hop alone, and what `Connection` says is.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|field| field.to_str().ok())
        .flat_map(|field| field.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in listed {
        headers.remove(name);
    }
    for name in [
        CONNECTION,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
}

/// RFC 9110 §7.6.3.
fn add_via(headers: &mut HeaderMap, received: Version) {
    let version = if received == Version::HTTP_10 { "1.0" } else { "1.1" };
    add(headers, &VIA, &format!("{version} larder"));
}

/// Adds an element to a list.
fn add(headers: &mut HeaderMap, name: &HeaderName, element: &str) {
    if let Ok(value) = HeaderValue::from_str(element) {
        headers.append(name, value);
    }
}

/// Until somebody wants it to stop: Ctrl-C, or what service managers send.
async fn stop_signal() {
    let terminated = async {
        #[cfg(unix)]
        if let Ok(mut signals) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            signals.recv().await;
            return;
        }
        std::future::pending().await
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}

#[expect(clippy::print_stdout, reason = "the one line that callers wait for")]
fn announce(listener: &TcpListener) -> Result<(), Box<dyn Error>> {
    println!("listening on http://{}", listener.local_addr()?);
    Ok(())
}
