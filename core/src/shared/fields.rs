//! Header fields: which are stored, which a 304 changes, which go upstream.

use http::header::{AGE, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, HeaderName};
use http::{HeaderMap, HeaderValue};

use crate::headers::hop_by_hop::end_to_end;

/// Said to one proxy's client, like `Proxy-Authenticate` (RFC 9110 §11.7.3): never stored (RFC 9111 §3.1).
const PROXY_AUTHENTICATION_INFO: HeaderName = HeaderName::from_static("proxy-authentication-info");

/// What a stored response depends upon (RFC 9111 §3.2): the body that is kept is the one that these describe, so a 304
/// doesn't change them.
const ABOUT_THE_STORED_BODY: [HeaderName; 5] =
    [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_RANGE, HeaderName::from_static("content-md5"), ETAG];

/// The fields of a response that are kept: all but what belongs to the connection, what `Connection` lists, what the
/// response itself withholds by name, and `Age`, which is kept as a number.
pub(crate) fn storable(response: &HeaderMap, withheld: &[HeaderName]) -> HeaderMap {
    let mut fields = end_to_end(response);
    for name in withheld.iter().chain([&PROXY_AUTHENTICATION_INFO, &AGE]) {
        fields.remove(name);
    }
    fields
}

/// Updates stored fields with those of a 304, or of the answer to a HEAD (RFC 9111 §3.2): whatever field is there replaces
/// all stored ones of its name.
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

/// RFC 9110 §6.6.1: who keeps a response without a valid `Date` writes down when it came.
pub(crate) fn date(headers: &mut HeaderMap, received: std::time::SystemTime) {
    if !headers.contains_key(DATE)
        && let Ok(now) = HeaderValue::try_from(httpdate::fmt_http_date(received))
    {
        headers.insert(DATE, now);
    }
}
