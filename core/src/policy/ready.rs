//! Answers that are ready for the next request: what a stored response comes to, for as long as it comes to the same.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::{Hit, Lookup, unacceptable};
use crate::directives::RequestDirectives;
use crate::entry::Entry;
use crate::etag::request_matches;
use crate::range::Selection;
use crate::request::RequestView;

/// The answers of a fresh response to [plain](Lookup::is_plain) requests.
///
/// They depend on the response, on the rule and on the age in seconds, and on nothing else.
#[derive(Debug)]
pub(crate) struct Ready {
    status: StatusCode,
    whole: HeaderMap,
    not_modified: HeaderMap,
    variant: u64,
    /// When they are what would be answered.
    valid: Range<SystemTime>,
}

impl Ready {
    /// The answers of this response, whose body isn't needed. `None` if it isn't fresh.
    pub(crate) fn of(lookup: &Lookup, entry: &Entry, now: SystemTime) -> Option<Self> {
        let age = entry.age(now);
        if unacceptable(&RequestDirectives::default(), entry, age).is_some() {
            return None;
        }
        let next_second = entry.stored_at.checked_add(Duration::from_secs(age.as_secs() + 1))?;
        let end = match entry.ttl {
            Some(ttl) => next_second.min(entry.stored_at.checked_add(ttl)?),
            None => next_second,
        };
        let answer = |not_modified| {
            let (rule, entry, selection) = (Arc::clone(&lookup.rule), entry.clone(), Selection::Whole);
            let hit = Hit { rule, entry, age, not_modified, is_head: false, selection, collapsed: false };
            let mut headers = hit.into_response().into_parts().0.headers;
            // A copy has room for just as many fields as it was made from, and servers add this one: it keeps the place.
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static(""));
            headers
        };
        Some(Self {
            status: entry.status,
            whole: answer(false),
            not_modified: answer(true),
            variant: entry.variant,
            valid: now..end,
        })
    }

    /// When they begin to differ from what is to be answered.
    pub(crate) const fn end(&self) -> SystemTime {
        self.valid.end
    }
}

impl Lookup {
    /// Answers with what is ready and this body. `variant` is the id of the [`Variants`](super::Variants) that led here, or
    /// 0. `None` if the answer has to be made.
    pub(crate) fn on_ready(
        &self,
        ready: &Ready,
        variant: u64,
        body: Bytes,
        request: &RequestView<'_>,
        now: SystemTime,
    ) -> Option<Response<Bytes>> {
        if !self.is_plain() || ready.variant != variant || !ready.valid.contains(&now) {
            return None;
        }
        let has_it = self.is_conditional
            && ready.status.is_success()
            && request_matches(request.headers, &ready.whole);
        let (status, headers, body) = if has_it {
            (StatusCode::NOT_MODIFIED, &ready.not_modified, Bytes::new())
        } else {
            (ready.status, &ready.whole, body)
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers.clone();
        response.headers_mut().remove(CONTENT_LENGTH);
        Some(response)
    }
}
