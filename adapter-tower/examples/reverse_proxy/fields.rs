//! Header fields for the next hop (RFC 9110 §7.6).

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderMap, HeaderValue, Version};

/// Removes hop-by-hop fields, and the fields that `Connection` names (RFC 9110 §7.6.1).
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // With a transfer coding, the length is invalid and must not be forwarded (RFC 9112 §6.3).
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    for name in
        elements(headers, &CONNECTION).filter_map(|name| name.parse::<HeaderName>().ok()).collect::<Vec<_>>()
    {
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

/// Returns `true` for a WebSocket handshake (RFC 6455 §4.1). The proxy doesn't switch to other protocols: over `h2c`, requests would
/// bypass the cache and these rules.
pub(crate) fn asks_for_websocket(headers: &HeaderMap) -> bool {
    let is = |name, expected: &str| elements(headers, name).any(|found| found.eq_ignore_ascii_case(expected));
    is(&CONNECTION, "upgrade") && is(&UPGRADE, "websocket")
}

/// Adds the fields that request or confirm a WebSocket.
pub(crate) fn add_websocket_upgrade(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// Adds this proxy to `Via` (RFC 9110 §7.6.3).
pub(crate) fn add_via(headers: &mut HeaderMap, received: Version) {
    let version = if received == Version::HTTP_10 { "1.0" } else { "1.1" };
    add(headers, &VIA, &format!("{version} larder"));
}

/// Adds an element to a list field.
pub(crate) fn add(headers: &mut HeaderMap, name: &HeaderName, element: &str) {
    if let Ok(value) = HeaderValue::from_str(element) {
        headers.append(name, value);
    }
}

/// Returns `true` for fields that the response to a TRACE must not contain (RFC 9110 §9.3.8).
pub(crate) fn is_secret(name: &HeaderName) -> bool {
    [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION].contains(name)
}

fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let fields = headers.get_all(name).iter().filter_map(|field| field.to_str().ok());
    fields.flat_map(|field| field.split(',')).map(str::trim)
}
