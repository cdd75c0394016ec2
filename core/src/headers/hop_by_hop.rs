//! Fields that belong to one connection (RFC 9110 §7.6.1), and the removal of fields.

use http::HeaderMap;
use http::header::{
    CONNECTION, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

use crate::headers::cache_control::list;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

const PROXY_AUTHENTICATION_INFO: HeaderName = HeaderName::from_static("proxy-authentication-info");

const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Returns the fields with the names that `is_kept` accepts.
pub(crate) fn only(mut fields: HeaderMap, is_kept: impl Fn(&HeaderName) -> bool) -> HeaderMap {
    let others: Vec<_> = fields.keys().filter(|name| !is_kept(name)).cloned().collect();
    for name in others {
        fields.remove(name);
    }
    fields
}

/// Returns the fields without those that belong to one connection (RFC 9110 §7.6.1), in themselves or because `Connection`
/// lists them, or to one proxy (§11.7).
pub(crate) fn end_to_end(response: &HeaderMap) -> HeaderMap {
    let mut fields = response.clone();
    for value in response.get_all(CONNECTION) {
        for name in list(value.as_bytes()).filter_map(|name| HeaderName::from_bytes(name).ok()) {
            fields.remove(name);
        }
    }
    remove_all(&mut fields, &HOP_BY_HOP);
    fields
}

/// The fields that belong to one connection, or to one proxy.
const HOP_BY_HOP: [HeaderName; 10] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHENTICATION_INFO,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Removes the fields with these names. Each removal hashes a name, so it is skipped if none of them is there.
pub(crate) fn remove_all(fields: &mut HeaderMap, names: &[HeaderName]) {
    if fields.keys().any(|name| names.contains(name)) {
        for name in names {
            fields.remove(name);
        }
    }
}
