//! Shared parts of the engine's tests: requests, responses and records, as literals.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, request, response};
use larder_core::{Entry, KeySpace, Kind, Rule};

pub(crate) type Fields<'a> = &'a [(&'a str, &'a str)];

pub(crate) const TTL: Duration = Duration::from_secs(60);

/// Returns a time, the same in every test.
pub(crate) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// A rule with a TTL of a minute that sends `Cache-Status`.
pub(crate) fn rule(kind: Kind) -> Rule {
    let space = KeySpace::new("p", Some("g")).unwrap();
    with(Rule::new(kind, space), |rule| {
        rule.ttl = Some(TTL);
        rule.cache_status = true;
    })
}

/// Changes a value in place, where a literal can't be written.
pub(crate) fn with<T>(mut value: T, change: impl FnOnce(&mut T)) -> T {
    change(&mut value);
    value
}

pub(crate) fn headers(fields: Fields<'_>) -> HeaderMap {
    let field = |(name, value): &(&str, &str)| {
        (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap())
    };
    fields.iter().map(field).collect()
}

pub(crate) fn request(method: Method, fields: Fields<'_>) -> request::Parts {
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = "/things/7".parse().unwrap();
    *request.headers_mut() = headers(fields);
    request.into_parts().0
}

pub(crate) fn response(status: u16, fields: Fields<'_>) -> response::Parts {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    *response.headers_mut() = headers(fields);
    response.into_parts().0
}

/// A stored 200 that was received just now.
pub(crate) fn entry(fields: Fields<'_>) -> Entry {
    with(Entry::new(StatusCode::OK, headers(fields), Bytes::from_static(b"stored"), now()), |entry| {
        entry.ttl = Some(TTL);
        // As `Provenance::of` returns for `request()`, whose pattern isn't known.
        entry.provenance.is_canonical = true;
    })
}
