//! The client that forwards requests to the origin.

use std::error::Error;
use std::time::Duration;

use http::header::{EXPECT, FORWARDED, HOST, HeaderName};
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use larder_tower::larder_core::shared::policy::OriginFailed;

use crate::admission::refusal;
use crate::fields::{add, add_via, add_websocket_upgrade, asks_for_websocket, remove_hop_by_hop};
use crate::serve::{ClientAddress, OwnBody};
use crate::tunnel;

/// Time after which an idle connection to the origin is closed. It is shorter than the timeouts of common origins, such as the 5 s
/// of Node.js.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Time that the origin has for the head of its response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);

/// A client of the origin.
#[derive(Clone)]
pub(crate) struct Proxy {
    client: Client<HttpConnector, Incoming>,
    scheme: Scheme,
    origin: Authority,
}

impl Proxy {
    pub(crate) fn to(origin: &str) -> Result<Self, Box<dyn Error>> {
        let parts = origin.parse::<Uri>()?.into_parts();
        let (Some(scheme), Some(origin)) = (parts.scheme, parts.authority) else {
            return Err("ORIGIN must be a URL, such as http://127.0.0.1:8000".into());
        };
        if scheme != Scheme::HTTP {
            return Err("ORIGIN must begin with http://".into());
        }
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            // Retries only requests of which nothing was written, because the connection was already closed.
            .retry_canceled_requests(true)
            // The origin gets the client's `Host`.
            .set_host(false)
            .build_http();
        Ok(Self { client, scheme, origin })
    }

    pub(crate) async fn forward(&self, mut request: Request<Incoming>) -> Response<OwnBody> {
        let client = asks_for_websocket(request.headers()).then(|| hyper::upgrade::on(&mut request));
        let Some(mut request) = self.to_origin(request) else {
            return refusal(StatusCode::BAD_REQUEST);
        };
        if client.is_some() {
            add_websocket_upgrade(request.headers_mut());
        }
        let mut response = match tokio::time::timeout(RESPONSE_TIMEOUT, self.client.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => return no_answer(StatusCode::BAD_GATEWAY),
            Err(_) => return no_answer(StatusCode::GATEWAY_TIMEOUT),
        };
        remove_hop_by_hop(response.headers_mut());
        let version = response.version();
        add_via(response.headers_mut(), version);
        // A version applies to one hop (RFC 9110 §6.2), so an HTTP/1.0 origin must not close the client's connection.
        *response.version_mut() = Version::HTTP_11;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client) = client else { return no_answer(StatusCode::BAD_GATEWAY) };
            add_websocket_upgrade(response.headers_mut());
            tunnel::join(client, hyper::upgrade::on(&mut response));
        }
        response.map(Either::Left)
    }

    /// Returns the request to the origin (RFC 9110 §7.6), or `None` if its URI is invalid.
    fn to_origin(&self, request: Request<Incoming>) -> Option<Request<Incoming>> {
        let (mut parts, body) = request.into_parts();
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(self.scheme.clone());
        uri.authority = Some(self.origin.clone());
        uri.path_and_query = parts.uri.path_and_query().cloned();
        parts.uri = Uri::from_parts(uri).ok()?;
        let host = match parts.headers.get(HOST) {
            Some(host) => host.clone(),
            // HTTP/1.0 requests may have no `Host`.
            None => HeaderValue::from_str(self.origin.as_str()).ok()?,
        };
        remove_hop_by_hop(&mut parts.headers);
        parts.headers.remove(EXPECT);
        if let Some(ClientAddress(client)) = parts.extensions.get() {
            add(&mut parts.headers, &HeaderName::from_static("x-forwarded-for"), &client.ip().to_string());
        }
        parts.headers.insert("x-forwarded-host", host.clone());
        parts.headers.insert("x-forwarded-proto", HeaderValue::from_static("http"));
        // The client's own `Forwarded` isn't trustworthy.
        parts.headers.remove(FORWARDED);
        parts.headers.insert(HOST, host);
        add_via(&mut parts.headers, parts.version);
        parts.version = Version::HTTP_11;
        Some(Request::from_parts(parts, body))
    }
}

/// Makes the response for a failed origin. The extension lets the cache serve a stale response instead.
fn no_answer(status: StatusCode) -> Response<OwnBody> {
    let mut response = refusal(status);
    response.extensions_mut().insert(OriginFailed);
    response
}
