//! The rules of safety: the requests that a cache may answer, the stored responses that it may use, and the responses
//! that it may store.
//!
//! Each rule is one small function. Review this file for security.

use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_LENGTH, CONTENT_RANGE, ORIGIN, SET_COOKIE, TRANSFER_ENCODING,
};
use http::{HeaderMap, Method, StatusCode, response};

use crate::headers::cache_control::{RequestDirectives, ResponseDirectives};
use crate::headers::conditional::{request_matches, request_matches_validators};
use crate::policy::rule::{Audience, Rule};
use crate::provenance;
use crate::reason::Reason;
use crate::record::Entry;
use crate::record::template::HeadTemplates;
use crate::record::variants::Variants;
use crate::request::{RequestFields, RequestView};

/// The length of a body, as the body reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// The exact number of bytes.
    Known(u64),
    /// Unknown: the body may never end.
    Unknown,
}

/// Returns the reason for which a cache can't answer the request, whatever is stored.
pub(super) fn not_for_caches(request: &RequestView<'_>, present: RequestFields) -> Option<Reason> {
    if request.method != Method::GET && request.method != Method::HEAD {
        Some(Reason::Method)
    } else if present.upgrade {
        Some(Reason::Upgrade)
    } else if request.has_content || (present.content && has_content(request.headers)) {
        Some(Reason::Content)
    } else if present.preconditions {
        Some(Reason::Precondition)
    } else {
        None
    }
}

pub(crate) fn has_content(request: &HeaderMap) -> bool {
    request.contains_key(TRANSFER_ENCODING) || request.get(CONTENT_LENGTH).is_some_and(|len| len != "0")
}

/// Returns the reason for which the request's handler may differ from that of other requests with the same key.
pub(super) fn without_certain_handler(request: &RequestView<'_>, pattern: u64) -> Option<Reason> {
    if request.is_obscured {
        Some(Reason::Rewritten)
    } else if pattern == 0 && !provenance::is_canonical(request) {
        Some(Reason::Spelling)
    } else {
        None
    }
}

/// Returns the reason for which credentials keep the request out of the cache. The response to a request with
/// credentials belongs to one user, unless the route declares an audience (cf. RFC 9111 §3.5).
pub(super) fn credentials_without_audience(
    rule: &Rule,
    request: &HeaderMap,
    present: RequestFields,
) -> Option<Reason> {
    let more = &rule.credential_fields;
    if !matches!(rule.audience, Audience::Undeclared) {
        None
    } else if present.authorization {
        Some(Reason::Authorization)
    } else if present.cookie {
        Some(Reason::Cookie)
    } else if present.credentials || more.iter().any(|name| request.contains_key(name)) {
        Some(Reason::Credentials)
    } else {
        None
    }
}

/// Returns the reason for which a stored response can't be used for this request (RFC 9111 §4).
pub(super) fn why_not_usable(directives: &RequestDirectives, entry: &Entry, age: Duration) -> Option<Reason> {
    if directives.no_cache {
        return Some(Reason::NoCache);
    }
    let is_older = |max| age > Duration::from_secs(max);
    if directives.wants_new() || directives.max_age.is_some_and(is_older) {
        return Some(Reason::MaxAge);
    }
    if entry.is_expired_at(age) {
        return Some(Reason::Expired);
    }
    let remaining = || entry.ttl.map(|ttl| ttl.saturating_sub(age));
    let too_short = |min| remaining().is_some_and(|remaining| remaining < Duration::from_secs(min));
    directives.min_fresh.is_some_and(too_short).then_some(Reason::MinFresh)
}

/// Returns `true` if a stored response may lack the CORS fields that a request's origin needs (Fetch §3.3.3), because
/// it answered a request without `Origin`. A handler that sends `Vary: Origin` only to requests with `Origin` makes
/// such responses.
pub(super) fn may_lack_cors(entry: &Entry, variants: Option<&Variants>) -> bool {
    !entry.for_origin
        && !entry.headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN)
        && !variants.is_some_and(|variants| variants.names.contains(&ORIGIN))
}

/// Returns `true` if the client already has this response. Preconditions apply only to responses that would be a
/// success without them (RFC 9110 §13.2.1): after a 304 for a stored 404, the client would use its old copy again.
pub(super) fn is_not_modified(request: &HeaderMap, entry: &Entry, templates: &HeadTemplates) -> bool {
    entry.status.is_success()
        && match &entry.templated {
            None => request_matches(request, &entry.headers, entry.stored_at),
            Some(head) => {
                let (etag, last_modified) = (|| templates.etag(head), || templates.last_modified(head));
                request_matches_validators(request, etag, last_modified, entry.stored_at)
            }
        }
}

/// Returns `true` if a stale response may replace an error with this status (RFC 5861 §4).
pub(crate) fn allows_stale_if_error(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

/// Returns `true` if a response with this status shows that the stored response is outdated, although it can't be
/// stored itself. A 401, 403 or 429 says nothing about the resource.
#[must_use]
pub fn invalidates(status: StatusCode) -> bool {
    is_success(status) || matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE)
}

/// Returns `true` if a write answered with this status may still have changed something. A timeout or an error can
/// occur between the change and the response (RFC 9110 §15.5.9, §15.6); any other 4xx is a refusal.
#[must_use]
pub fn leaves_outcome_unknown(status: StatusCode) -> bool {
    status == StatusCode::REQUEST_TIMEOUT || status.as_u16() >= 500
}

/// Returns `true` for a success or a redirect: a handler that redirects after a change has made the change.
pub(super) fn is_success(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

/// Returns `true` if a response is for one `Range` only (RFC 9110 §14.4, §15.3.7, §15.5.17).
pub(super) fn is_for_a_part(response: &response::Parts) -> bool {
    matches!(response.status, StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE)
        || response.headers.contains_key(CONTENT_RANGE)
}

/// Returns the reason for which a response may not be stored, whatever its status (RFC 9111 §3).
pub(super) fn why_not_storable(
    response: &response::Parts,
    length: BodyLength,
    rule: &Rule,
) -> Option<Reason> {
    let directives = ResponseDirectives::of(&response.headers);
    // A private route declares `private` itself.
    let is_private = directives.private && !rule.audience.is_private();
    if response.headers.contains_key(SET_COOKIE) {
        Some(Reason::SetCookie)
    } else if directives.no_store || is_private || directives.no_cache {
        Some(Reason::Withheld)
    } else if rule.lifetime_of(response.status) == Some(Duration::ZERO) {
        Some(Reason::Lifetime)
    } else {
        matches!(length, BodyLength::Known(length) if length > rule.max_body).then_some(Reason::Size)
    }
}
