//! Checks before the cache: refuses invalid requests, and answers requests that are not forwarded.

use std::ops::ControlFlow;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HOST, MAX_FORWARDS};
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{Either, Full};

use crate::fields::is_secret;
use crate::serve::OwnBody;

/// Returns the request for the cache, or the response to a request that isn't forwarded.
pub(crate) fn admit<B>(mut request: Request<B>) -> ControlFlow<Response<OwnBody>, Request<B>> {
    if request.method() == Method::CONNECT {
        return ControlFlow::Break(refusal(StatusCode::METHOD_NOT_ALLOWED));
    }
    if !normalize_host(&mut request) {
        return ControlFlow::Break(refusal(StatusCode::BAD_REQUEST));
    }
    match count_forward(&mut request) {
        Forwards::Left => ControlFlow::Continue(request),
        Forwards::None => ControlFlow::Break(final_answer(&request)),
    }
}

/// Checks for exactly one valid `Host`, which HTTP/1.0 may omit (RFC 9112 §3.2). The host of an absolute URI replaces it, and is
/// removed from the URI (§3.2.2). Returns `false` if the request must be refused.
fn normalize_host<B>(request: &mut Request<B>) -> bool {
    let mut fields = request.headers().get_all(HOST).iter();
    let is_host = match (fields.next(), fields.next()) {
        (None, _) => request.version() < Version::HTTP_11,
        (Some(host), None) => Authority::try_from(host.as_bytes()).is_ok_and(|host| is_host(&host)),
        (Some(_), Some(_)) => false,
    };
    let Some(authority) = request.uri().authority() else { return is_host };
    let (true, Ok(host)) = (is_host && self::is_host(authority), HeaderValue::from_str(authority.as_str()))
    else {
        return false;
    };
    let Some(target) = request.uri().path_and_query().cloned() else { return false };
    *request.uri_mut() = Uri::from(target);
    request.headers_mut().insert(HOST, host);
    true
}

/// Returns `true` for a host without userinfo (RFC 9110 §4.2.4).
fn is_host(authority: &Authority) -> bool {
    !authority.host().is_empty() && !authority.as_str().contains('@')
}

enum Forwards {
    Left,
    None,
}

/// Decrements the `Max-Forwards` of TRACE and OPTIONS (RFC 9110 §7.6.2).
fn count_forward<B>(request: &mut Request<B>) -> Forwards {
    if ![Method::TRACE, Method::OPTIONS].contains(request.method()) {
        return Forwards::Left;
    }
    let Some(field) = request.headers().get(MAX_FORWARDS).and_then(|field| field.to_str().ok()) else {
        return Forwards::Left;
    };
    if field.is_empty() || !field.bytes().all(|byte| byte.is_ascii_digit()) {
        return Forwards::Left;
    }
    // Larger numbers count as this one.
    let left: u32 = field.parse().unwrap_or(u32::MAX);
    match left.checked_sub(1) {
        Some(left) => {
            request.headers_mut().insert(MAX_FORWARDS, left.into());
            Forwards::Left
        }
        None => Forwards::None,
    }
}

/// Answers as the final recipient: OPTIONS (RFC 9110 §9.3.7), or TRACE with the request's fields except secrets (§9.3.8).
fn final_answer<B>(request: &Request<B>) -> Response<OwnBody> {
    let mut response = Response::new(Either::Right(Full::default()));
    if request.method() == Method::OPTIONS {
        let allowed = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE");
        response.headers_mut().insert(ALLOW, allowed);
        return response;
    }
    let mut received =
        format!("{} {} {:?}\r\n", request.method(), request.uri(), request.version()).into_bytes();
    for (name, value) in request.headers().iter().filter(|(name, _)| !is_secret(name)) {
        received.extend_from_slice(name.as_str().as_bytes());
        received.extend_from_slice(b": ");
        received.extend_from_slice(value.as_bytes());
        received.extend_from_slice(b"\r\n");
    }
    received.extend_from_slice(b"\r\n");
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("message/http"));
    response.map(|_| Either::Right(Full::from(Bytes::from(received))))
}

/// Makes a response that contains only a status.
pub(crate) fn refusal(status: StatusCode) -> Response<OwnBody> {
    let mut response = Response::new(Either::Right(Full::from(format!("{status}\n"))));
    *response.status_mut() = status;
    response
}
