//! The rules of safety of the shared cache: which requests it may answer, which stored responses it may use, and which
//! responses it may store (RFC 9111).
//!
//! Each rule is one small function. This is the page to review for security.

use std::time::{Duration, SystemTime};

use http::header::{DATE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, SET_COOKIE};
use http::{HeaderMap, Method, StatusCode, response};

use super::fields::storable;
use super::freshness::{Control, Freshness, is_heuristically_cacheable};
use super::groups::{UriOrigin, keeps_tags, tags_of};
use super::{SetCookie, SharedRule};
use crate::headers::cache_control::RequestDirectives;
use crate::headers::conditional::request_matches;
use crate::headers::date::http_date;
use crate::headers::the_only;
use crate::policy::BodyLength;
use crate::reason::Reason;
use crate::record::shared::StoredResponse;
use crate::request::{RequestFields, RequestView};

/// Returns `true` if a request carries credentials in any field (§3.5).
pub(super) fn has_credentials(present: RequestFields, headers: &HeaderMap, rule: &SharedRule) -> bool {
    present.authorization
        || present.credentials
        || rule.credential_fields.iter().any(|name| headers.contains_key(name))
}

/// Returns `true` for requests other than reads that invalidate nothing. An `Upgrade` field doesn't exempt a write:
/// curl offers HTTP/2 with each request.
pub(super) fn not_a_write(method: &Method, is_overridden: bool) -> Option<Reason> {
    if method == Method::CONNECT {
        Some(Reason::Upgrade)
    } else {
        // Safe methods change nothing (RFC 9110 §9.2.1). The response to a QUERY depends on its content, which isn't part of the key.
        (method.is_safe() && !is_overridden).then_some(Reason::Method)
    }
}

/// Returns the reason for which a read bypasses the cache, whatever is stored.
pub(super) fn not_looked_up(
    request: &RequestView<'_>,
    present: RequestFields,
    directives: &RequestDirectives,
) -> Option<Reason> {
    if present.upgrade {
        Some(Reason::Upgrade)
    } else if request.has_content || (present.content && crate::policy::has_content(request.headers)) {
        Some(Reason::Content)
    } else if request.is_obscured {
        Some(Reason::Rewritten)
    } else if present.preconditions {
        // §4.3.2: for the origin to evaluate.
        Some(Reason::Precondition)
    } else {
        // §5.2.1.5.
        directives.no_store.then_some(Reason::NoStore)
    }
}

/// Returns the reason for which a stored response can't be used as it is.
pub(super) fn unusable(
    directives: &RequestDirectives,
    stored: &StoredResponse,
    now: SystemTime,
) -> Option<Reason> {
    let age = stored.age(now);
    if directives.no_cache {
        // §5.2.1.4.
        Some(Reason::NoCache)
    } else if directives.wants_new() || directives.max_age.is_some_and(|max| age > Duration::from_secs(max)) {
        // §5.2.1.1.
        Some(Reason::MaxAge)
    } else if age >= stored.lifetime || stored.no_cache {
        // §4.2, §5.2.2.4.
        Some(Reason::Expired)
    } else {
        // §5.2.1.3.
        let too_short = |min| stored.remaining(now) < Duration::from_secs(min);
        directives.min_fresh.is_some_and(too_short).then_some(Reason::MinFresh)
    }
}

/// Returns `true` if the client accepts a stale response, and the origin doesn't forbid it (§5.2.1.2).
pub(super) fn may_be_stale(directives: &RequestDirectives, stored: &StoredResponse, now: SystemTime) -> bool {
    let accepted = |max| max == u64::MAX || stored.staleness(now) <= Duration::from_secs(max);
    !stored.forbids_stale
        && !stored.no_cache
        && directives.min_fresh.is_none()
        && directives.max_stale.is_some_and(accepted)
}

/// Returns `true` if a stale response may be used while it is refreshed (RFC 5861 §3).
pub(super) fn may_be_refreshed(
    directives: &RequestDirectives,
    stored: &StoredResponse,
    now: SystemTime,
) -> bool {
    !stored.forbids_stale
        && !stored.no_cache
        && directives.min_fresh.is_none()
        && stored.staleness(now) < stored.stale_while_revalidate
}

/// Returns `true` if a stale response may be used because the origin failed (§4.2.4, RFC 5861 §4).
pub(super) fn may_stand_in(stored: &StoredResponse, now: SystemTime) -> bool {
    !stored.forbids_stale && !stored.no_cache && stored.staleness(now) < stored.stale_if_error
}

/// Returns `true` if the client already has this response (§4.3.2). Preconditions apply only to responses that would be
/// a success without them (RFC 9110 §13.2.1).
pub(super) fn is_not_modified(request: &HeaderMap, stored: &StoredResponse) -> bool {
    stored.status.is_success()
        && (request_matches(request, &stored.headers, stored.received)
            || not_modified_since_its_date(request, stored))
}

/// A response without `Last-Modified` is compared by its `Date`.
fn not_modified_since_its_date(request: &HeaderMap, stored: &StoredResponse) -> bool {
    if request.contains_key(IF_NONE_MATCH) || stored.headers.contains_key(LAST_MODIFIED) {
        return false;
    }
    let date = |headers, name| http_date(the_only(headers, name)?, stored.received);
    let since = date(request, &IF_MODIFIED_SINCE);
    matches!((since, date(&stored.headers, &DATE)), (Some(since), Some(date)) if date <= since)
}

/// Returns `true` if a response shows that the stored one is outdated. A 304 to a condition of the client's own
/// doesn't.
pub(super) fn invalidates(status: StatusCode) -> bool {
    status != StatusCode::NOT_MODIFIED && crate::policy::invalidates(status)
}

/// Returns the reason for which a response may not be stored (§3).
pub(super) fn why_not_storable(
    response: &response::Parts,
    length: BodyLength,
    control: &Control,
    freshness: Freshness,
    has_credentials: bool,
    rule: &SharedRule,
) -> Option<Reason> {
    let said = &control.directives;
    if response.status.is_informational() || response.status == StatusCode::NOT_MODIFIED {
        Some(Reason::Status)
    } else if said.must_understand && !is_understood(response.status) {
        // §5.2.2.3.
        Some(Reason::Status)
    } else if withholds(control) {
        Some(Reason::Withheld)
    } else if has_credentials && !is_for_all(control) {
        Some(Reason::Authorization)
    } else if response.headers.contains_key(SET_COOKIE)
        && !control.qualified.fields.contains(&SET_COOKIE)
        && (rule.set_cookie == SetCookie::Never || !freshness.is_explicit)
    {
        Some(Reason::SetCookie)
    } else if !freshness.is_explicit && !said.public && !is_heuristically_cacheable(response.status) {
        Some(Reason::Status)
    } else if freshness.lifetime.is_zero() && !has_validator(&response.headers) {
        Some(Reason::Lifetime)
    } else {
        matches!(length, BodyLength::Known(length) if length > rule.max_body).then_some(Reason::Size)
    }
}

/// Returns [`Reason::Tags`] for a response with groups or tags that an entry can't have, or in a field that isn't stored: an
/// invalidation of one that was left out would miss it (RFC 9875 §2.2.1).
pub(super) fn why_not_taggable(
    response: &HeaderMap,
    control: &Control,
    origin: &UriOrigin,
    rule: &SharedRule,
) -> Option<Reason> {
    if !rule.tag_fields.iter().any(|field| response.contains_key(field.name())) {
        return None;
    }
    let is_kept = keeps_tags(response, &storable(response, &control.qualified.fields), rule);
    (!is_kept || tags_of(response, origin, rule).is_err()).then_some(Reason::Tags)
}

/// Returns `true` for `no-store` (§5.2.2.5), which `must-understand` overrides (§5.2.2.3), and for `private`
/// (§5.2.2.7).
pub(super) fn withholds(control: &Control) -> bool {
    (control.directives.no_store && !control.directives.must_understand) || control.qualified.private
}

/// Returns `true` if the directives allow storing the response to a request with credentials (§3.5).
pub(super) fn is_for_all(control: &Control) -> bool {
    let said = &control.directives;
    said.public || said.must_revalidate || said.s_maxage.is_some()
}

pub(super) fn has_validator(headers: &HeaderMap) -> bool {
    headers.contains_key(ETAG) || headers.contains_key(LAST_MODIFIED)
}

/// Returns `true` if this cache conforms to the status code's requirements (§5.2.2.3): the codes that are only stored
/// and sent, and 206.
fn is_understood(status: StatusCode) -> bool {
    is_heuristically_cacheable(status)
        || matches!(status.as_u16(), 201 | 202 | 302 | 303 | 307 | 400 | 401 | 403 | 500 | 502 | 503 | 504)
}

/// Returns `true` if a response to a write leaves open whether it took effect: an intermediary gave up, or the origin
/// failed after it had begun.
pub(super) fn leaves_open(status: StatusCode) -> bool {
    status == StatusCode::REQUEST_TIMEOUT || status.is_server_error()
}
