//! The header fields that are stored, updated by a 304, or sent to the origin.

use http::header::{AGE, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, HeaderName};
use http::{HeaderMap, HeaderValue};

use crate::headers::hop_by_hop::end_to_end;

/// A field for the client of one proxy, like `Proxy-Authenticate` (RFC 9110 §11.7.3): never stored (RFC 9111 §3.1).
const PROXY_AUTHENTICATION_INFO: HeaderName = HeaderName::from_static("proxy-authentication-info");

/// The fields that describe the stored body (RFC 9111 §3.2). A 304 doesn't change them.
const ABOUT_THE_STORED_BODY: [HeaderName; 5] =
    [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_RANGE, HeaderName::from_static("content-md5"), ETAG];

/// Returns the fields of a response that are stored: all but those of the connection, those that `Connection` lists,
/// those that the response withholds by name, and `Age`, which is stored as a number.
pub(crate) fn storable(response: &HeaderMap, withheld: &[HeaderName]) -> HeaderMap {
    let mut fields = end_to_end(response);
    for name in withheld.iter().chain([&PROXY_AUTHENTICATION_INFO, &AGE]) {
        fields.remove(name);
    }
    fields
}

/// Updates stored fields with those of a 304, or of the response to a HEAD (RFC 9111 §3.2): each new field replaces all
/// stored ones of its name.
pub(crate) fn freshen(stored: &mut HeaderMap, response: &HeaderMap, withheld: &[HeaderName]) {
    let mut updates = storable(response, withheld);
    for name in ABOUT_THE_STORED_BODY {
        updates.remove(name);
    }
    for name in withheld {
        stored.remove(name);
    }
    for name in updates.keys() {
        stored.remove(name);
    }
    // Values after the first of a field come without its name.
    let mut current = None;
    for (name, value) in updates {
        current = name.or(current);
        if let Some(name) = &current {
            stored.append(name.clone(), value);
        }
    }
}

/// Adds the time of receipt as `Date` to a response without a valid one (RFC 9110 §6.6.1).
pub(crate) fn date(headers: &mut HeaderMap, received: std::time::SystemTime) {
    if !headers.contains_key(DATE)
        && let Ok(now) = HeaderValue::try_from(httpdate::fmt_http_date(received))
    {
        headers.insert(DATE, now);
    }
}
