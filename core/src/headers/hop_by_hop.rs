//! Fields that belong to one connection (RFC 9110 §7.6.1), and the removal of fields.

use http::HeaderMap;
use http::header::{
    CONNECTION, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

use crate::headers::cache_control::list;

pub(super) const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

pub(super) const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// The fields with these names.
pub(crate) fn only(mut fields: HeaderMap, is_kept: impl Fn(&HeaderName) -> bool) -> HeaderMap {
    let others: Vec<_> = fields.keys().filter(|name| !is_kept(name)).cloned().collect();
    for name in others {
        fields.remove(name);
    }
    fields
}

/// Everything but what belongs to one connection (RFC 9110 §7.6.1), in itself or because `Connection` lists it, or to one
/// proxy (§11.7).
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

/// What belongs to one connection, or to one proxy.
pub(crate) const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Removes whatever is there of these. Each removal hashes a name, and mostly none of them is there.
pub(crate) fn remove_all(fields: &mut HeaderMap, names: &[HeaderName]) {
    if fields.keys().any(|name| names.contains(name)) {
        for name in names {
            fields.remove(name);
        }
    }
}
