//! Responses made of stored ones: the whole, a 304, a part, or a 504.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{
    AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_RANGE, DATE, ETAG, EXPIRES, HeaderName,
    LAST_MODIFIED, SET_COOKIE, VARY,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::SharedRule;
use super::cache_status::CACHE_STATUS;
use super::cache_status::SharedCacheStatus;
use super::partial::{Cut, cut};
use super::safety::is_not_modified;
use crate::headers::hop_by_hop::{only, remove_if};
use crate::reason::Reason;
use crate::record::shared::StoredResponse;
#[cfg(feature = "runtime")]
use crate::status::Outcome;
use crate::tag::field::is_tag_field;

/// The part of a stored response that a request gets.
#[derive(Clone, Debug)]
pub(super) enum Shape {
    Whole,
    /// The response to a HEAD, with the length of the GET response's body.
    Head(u64),
    NotModified,
    Part(Bytes, HeaderValue),
    Unsatisfiable(HeaderValue),
}

impl Shape {
    /// Evaluates the preconditions and then the range (RFC 9110 §13.2.2). Returns `None` if the stored part isn't
    /// enough.
    pub(super) fn of(request: &HeaderMap, is_head: bool, stored: &StoredResponse) -> Option<Self> {
        Self::within(request, is_head, stored, stored.body.len() as u64)
    }

    /// Does the same for a body of this length, of which only the needed part may be present.
    pub(super) fn within(
        request: &HeaderMap,
        is_head: bool,
        stored: &StoredResponse,
        length: u64,
    ) -> Option<Self> {
        let cut = cut(request, is_head, stored, length);
        if cut != Cut::Missing && is_not_modified(request, stored) {
            return Some(Self::NotModified);
        }
        Some(match cut {
            Cut::Whole if is_head => Self::Head(length),
            Cut::Whole => Self::Whole,
            Cut::Part(body, range) => Self::Part(body, range),
            Cut::Unsatisfiable(range) => Self::Unsatisfiable(range),
            Cut::Missing => return None,
        })
    }
}

/// A response that needs no origin.
#[derive(Debug)]
#[must_use]
pub struct SharedAnswer {
    pub(super) mark: SharedCacheStatus,
    pub(super) now: SystemTime,
    pub(super) is_head: bool,
    /// The stored response, and the part of it to send. `None` is a 504 (§5.2.1.7).
    pub(super) from: Option<(Box<StoredResponse>, Shape)>,
    /// The cookies that a 304 sets for this client. They aren't stored.
    pub(super) cookies: Vec<HeaderValue>,
}

impl SharedAnswer {
    pub(super) fn hit(
        rule: Arc<SharedRule>,
        stored: Box<StoredResponse>,
        shape: Shape,
        is_head: bool,
        now: SystemTime,
    ) -> Self {
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        // Whole seconds of age, so that it agrees with `Age`.
        let ttl = seconds(stored.lifetime).saturating_sub(seconds(stored.age(now)));
        Self {
            mark: SharedCacheStatus::hit(rule, ttl),
            now,
            is_head,
            from: Some((stored, shape)),
            cookies: Vec::new(),
        }
    }

    pub(super) const fn unsatisfiable(rule: Arc<SharedRule>, reason: Reason) -> Self {
        let mark = SharedCacheStatus::forwarded(rule, reason);
        Self { mark, now: SystemTime::UNIX_EPOCH, is_head: false, from: None, cookies: Vec::new() }
    }

    /// Makes the same response after the request went to the origin, or waited for one that did.
    pub(super) fn after(mut self, mark: SharedCacheStatus) -> Self {
        self.mark = mark;
        self
    }

    pub(super) fn with_cookies(self, cookies: Vec<HeaderValue>) -> Self {
        Self { cookies, ..self }
    }

    /// Marks that the request waited for another request's response (RFC 9211 §2.6).
    pub fn collapsed(self, reason: Reason) -> Self {
        let mark = SharedCacheStatus::forwarded(Arc::clone(&self.mark.rule), reason).collapsed();
        self.after(mark)
    }

    /// Returns the outcome that is counted.
    #[cfg(feature = "runtime")]
    pub(super) fn outcome(&self) -> Outcome {
        self.mark.outcome(self.from.is_some())
    }

    /// Returns the response to send (§4, §4.3.2, RFC 9110 §14).
    #[must_use]
    pub fn into_response(self) -> Response<Bytes> {
        let Some((stored, shape)) = self.from else {
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
            // A 504 is made by this cache and has no age.
            self.mark.write_unsatisfied_to(response.headers_mut());
            return response;
        };
        let age = stored.age(self.now).as_secs();
        let StoredResponse { status, mut headers, body, is_evicted, .. } = *stored;
        let mut length = None;
        let (status, body) = match shape {
            Shape::Whole => (status, body),
            Shape::Head(complete) => {
                length = Some(complete);
                (status, Bytes::new())
            }
            Shape::NotModified => {
                headers = for_not_modified(headers);
                (StatusCode::NOT_MODIFIED, Bytes::new())
            }
            Shape::Part(body, range) => {
                headers.insert(CONTENT_RANGE, range);
                (StatusCode::PARTIAL_CONTENT, body)
            }
            Shape::Unsatisfiable(range) => {
                headers = HeaderMap::with_capacity(4);
                headers.insert(CONTENT_RANGE, range);
                (StatusCode::RANGE_NOT_SATISFIABLE, Bytes::new())
            }
        };
        if is_evicted {
            forbid_reuse(&mut headers);
        }
        self.mark.rule.remove_tag_fields(&mut headers);
        // §5.1.
        headers.insert(AGE, HeaderValue::from(age));
        for cookie in self.cookies {
            headers.append(SET_COOKIE, cookie);
        }
        self.mark.write_to(&mut headers);
        if has_length(status) {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length.unwrap_or(body.len() as u64)));
        } else {
            headers.remove(CONTENT_LENGTH);
        }
        let mut response = Response::new(if self.is_head { Bytes::new() } else { body });
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

/// Makes other caches validate an evicted response before each use: by its own fields it may be fresh.
fn forbid_reuse(headers: &mut HeaderMap) {
    remove_if(headers, |name| name.as_str().ends_with("-cache-control") || name == "surrogate-control");
    headers.append(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
}

/// RFC 9110 §8.6.
fn has_length(status: StatusCode) -> bool {
    !status.is_informational() && status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED
}

/// Keeps the fields of the 200 about freshness, validators and tags, by which other caches update theirs (RFC 9110 §15.4.5).
fn for_not_modified(stored: HeaderMap) -> HeaderMap {
    only(stored, is_for_not_modified)
}

pub(super) fn is_for_not_modified(name: &HeaderName) -> bool {
    [CACHE_CONTROL, CONTENT_LOCATION, DATE, ETAG, EXPIRES, VARY, LAST_MODIFIED, CACHE_STATUS].contains(name)
        || is_tag_field(name)
        || name.as_str().ends_with("-cache-control")
        || name.as_str().starts_with("access-control-")
}
