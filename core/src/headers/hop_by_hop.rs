//! Fields that belong to one connection (RFC 9110 §7.6.1), and the removal of fields.

use http::HeaderMap;
use http::header::{CONNECTION, HeaderName};

use crate::headers::cache_control::list;

/// Returns the fields with the names that `is_kept` accepts.
pub(crate) fn only(mut fields: HeaderMap, is_kept: impl Fn(&HeaderName) -> bool) -> HeaderMap {
    remove_if(&mut fields, |name| !is_kept(name));
    fields
}

/// Removes the fields with the names that `is_removed` accepts. Mostly there are none, so this is one pass over the names.
pub(crate) fn remove_if(fields: &mut HeaderMap, is_removed: impl Fn(&HeaderName) -> bool) {
    let removed: Vec<_> = fields.keys().filter(|name| is_removed(name)).cloned().collect();
    for name in removed {
        fields.remove(name);
    }
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
    remove_if(&mut fields, is_hop_by_hop);
    fields
}

/// Returns `true` for fields that belong to one connection, or to one proxy.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authentication-info"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}
