//! Header fields, parsed and evaluated. These modules are independent of the cache.

pub(crate) mod accept_encoding;
pub mod cache_control;
pub(crate) mod conditional;
pub(crate) mod date;
pub(crate) mod hop_by_hop;
pub(crate) mod location;
pub(crate) mod momentary;
pub mod range;
pub(crate) mod string_list;
pub(crate) mod targeted;
pub(crate) mod vary;

use http::{HeaderMap, HeaderName, HeaderValue};

/// Returns the value of a field that may occur only once; `None` if it occurs more often.
pub(crate) fn the_only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut fields = headers.get_all(name).iter();
    fields.next().filter(|_| fields.next().is_none())
}

/// Returns the value of a list: the lines of a field, combined into one (RFC 9110 §5.3).
pub(crate) fn combined(headers: &HeaderMap, name: &HeaderName) -> Vec<u8> {
    let lines: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    lines.join(&b", "[..])
}
