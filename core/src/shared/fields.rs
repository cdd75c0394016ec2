//! The header fields that are stored, updated by a 304, or sent to the origin.

use std::time::SystemTime;

use http::header::{AGE, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, HeaderName};
use http::{HeaderMap, HeaderValue};

use crate::headers::date::http_date;
use crate::headers::hop_by_hop::end_to_end;
use crate::headers::the_only;

/// The fields that describe the stored body (RFC 9111 §3.2). A 304 doesn't change them.
const ABOUT_THE_STORED_BODY: [HeaderName; 5] =
    [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_RANGE, HeaderName::from_static("content-md5"), ETAG];

/// Returns the fields of a response that are stored: all but those of the connection, those that `Connection` lists,
/// those that the response withholds by name, and `Age`, which is stored as a number.
pub(crate) fn storable(response: &HeaderMap, withheld: &[HeaderName]) -> HeaderMap {
    let mut fields = end_to_end(response);
    for name in withheld.iter().chain([&AGE]) {
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
    // Replaces all values of a name.
    stored.extend(updates);
}

/// Sets the time of receipt as `Date` of a response without a valid one (RFC 9110 §6.6.1).
pub(crate) fn date(headers: &mut HeaderMap, received: SystemTime) {
    if the_only(headers, &DATE).and_then(|date| http_date(date, received)).is_none()
        && let Ok(now) = HeaderValue::try_from(httpdate::fmt_http_date(received))
    {
        headers.insert(DATE, now);
    }
}
