//! Responses that may be stored, and stored responses that were freshened by a 304 or a HEAD.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, AGE, DATE, HeaderName, SET_COOKIE, VARY};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::answer::SharedAnswer;
use super::cache_status::SharedCacheStatus;
use super::fields::{self, freshen, storable};
use super::freshness::{Control, Exchanged, Freshness};
use super::groups::{UriOrigin, tags_of};
use super::partial::combine;
use super::safety::{has_validator, is_for_all, withholds};
use super::{SetCookie, SharedRule};
use crate::headers::cache_control::list;
use crate::policy::add_accept_ranges;
use crate::reason::Reason;
use crate::record::shared::StoredResponse;
use crate::record::variants::Placement;
use crate::record::variants::Variants;
use crate::tag::{TagError, Tags};

/// The stored form of a response, without the body.
pub(super) fn made_of(
    status: StatusCode,
    response: &HeaderMap,
    control: &Control,
    freshness: Freshness,
    now: SystemTime,
    rule: &SharedRule,
) -> StoredResponse {
    let mut headers = storable(response, &control.qualified.fields);
    fields::date(&mut headers, now);
    StoredResponse {
        status,
        sets_cookie: headers.contains_key(SET_COOKIE),
        headers,
        body: Bytes::new(),
        received: now,
        initial_age: freshness.initial_age,
        lifetime: freshness.lifetime,
        stale_while_revalidate: stale_for(
            control.directives.stale_while_revalidate,
            rule.stale_while_revalidate,
        ),
        stale_if_error: stale_for(control.directives.stale_if_error, rule.stale_if_error),
        forbids_stale: control.forbids_stale(),
        no_cache: control.qualified.no_cache,
        is_evicted: false,
        variant: 0,
        part: None,
    }
}

/// The response's own directives precede the rule.
pub(super) fn stale_for(said: Option<u64>, rule: Duration) -> Duration {
    said.map_or(rule, |seconds| Duration::from_secs(seconds.min(1 << 31)))
}

/// Returns `true` if a response's `Vary` names `Accept-Encoding` or `*`.
pub(super) fn varies_by_coding(headers: &HeaderMap) -> bool {
    let names = headers.get_all(VARY).iter().flat_map(|field| list(field.as_bytes()));
    names
        .into_iter()
        .any(|name| name == b"*" || name.eq_ignore_ascii_case(ACCEPT_ENCODING.as_str().as_bytes()))
}

pub(super) fn vary_by_coding(headers: &mut HeaderMap) {
    headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
}

/// Gives a stored response the fields of a newer one, and updates what depends on them. Returns the cookies that the
/// newer one sets and that aren't stored.
pub(super) fn update(
    stored: &mut StoredResponse,
    response: &HeaderMap,
    times: Exchanged,
    rule: &SharedRule,
) -> Vec<HeaderValue> {
    let mut withheld = Control::of(response, rule).qualified.fields;
    let cookies = match rule.set_cookie {
        SetCookie::Never => {
            withheld.push(SET_COOKIE);
            response.get_all(SET_COOKIE).iter().cloned().collect()
        }
        SetCookie::IfExplicit => Vec::new(),
    };
    let was_negotiated = varies_by_coding(&stored.headers);
    // §4.2.3: its own `Age`, and a `Date` that isn't the old one's.
    stored.headers.remove(DATE);
    freshen(&mut stored.headers, response, &withheld);
    if was_negotiated && !varies_by_coding(&stored.headers) {
        vary_by_coding(&mut stored.headers);
    }
    fields::date(&mut stored.headers, times.received);
    let mut dated = stored.headers.clone();
    for age in response.get_all(AGE) {
        dated.append(AGE, age.clone());
    }
    let control = Control::of(&stored.headers, rule);
    let freshness = Freshness::of(stored.status, &dated, &control, times, rule);
    let made = made_of(stored.status, &stored.headers, &control, freshness, times.received, rule);
    *stored = StoredResponse {
        body: std::mem::take(&mut stored.body),
        variant: stored.variant,
        part: stored.part.take(),
        ..made
    };
    cookies
}

/// The treatment of a stored response that was validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is stored again, with its new fields.
    Store,
    /// It stays unchanged: the validation was for one user (§3.5).
    Leave,
    /// It is evicted: the origin no longer allows storing it.
    Evict,
}

impl Fate {
    pub(super) fn of(stored: &StoredResponse, has_credentials: bool, rule: &SharedRule) -> Self {
        let control = Control::of(&stored.headers, rule);
        if withholds(&control) {
            Self::Evict
        } else if has_credentials && !is_for_all(&control) {
            Self::Leave
        } else {
            Self::Store
        }
    }
}

/// Returns how long a store keeps a response: while it is fresh, and after that as long as it may still be used or
/// validated.
pub(super) fn retention(stored: &StoredResponse, now: SystemTime, rule: &SharedRule) -> Duration {
    let mut stale_for = Duration::ZERO;
    if has_validator(&stored.headers) {
        stale_for = stale_for.max(rule.keep_stale);
    }
    if !stored.forbids_stale {
        stale_for = stale_for.max(stored.stale_while_revalidate).max(stored.stale_if_error);
    }
    let until = stored.lifetime.saturating_add(stale_for);
    until.saturating_sub(stored.age(now)).max(Duration::from_secs(1))
}

/// A stored response that was found to be still valid, with its updated fields.
#[derive(Debug)]
#[must_use]
pub struct Freshened {
    pub(super) mark: SharedCacheStatus,
    pub(super) stored: Box<StoredResponse>,
    pub(super) tags: Tags,
    pub(super) fate: Fate,
    pub(super) answer: Option<SharedAnswer>,
}

impl Freshened {
    /// Returns the treatment of the stored response.
    #[must_use]
    pub const fn fate(&self) -> Fate {
        self.fate
    }

    /// Returns the record for the store.
    #[must_use]
    pub fn record(&self) -> Bytes {
        self.stored.encode()
    }

    /// Returns the tags of the record: its groups, and those in fields of CDNs.
    #[must_use]
    pub const fn tags(&self) -> &Tags {
        &self.tags
    }

    /// Returns how long the store keeps the response.
    #[must_use]
    pub fn retention(&self) -> Duration {
        retention(&self.stored, self.stored.received, &self.mark.rule)
    }

    /// Marks the response as not stored for this reason. One that was evicted meanwhile says `no-cache` to other caches.
    pub fn unstored(mut self, reason: Reason) -> Self {
        self.mark = self.mark.unstored().because(reason);
        if let Some(answer) = &mut self.answer {
            answer.mark = self.mark.clone();
            if let Some((stored, _)) = &mut answer.from {
                stored.is_evicted = reason == Reason::Evicted;
            }
        }
        self
    }

    /// Returns `true` if the response will be fresh for the next request.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fate == Fate::Store && !self.stored.no_cache && self.stored.is_fresh(self.stored.received)
    }

    /// Returns the cache's status for the response to a HEAD.
    pub const fn mark(&self) -> &SharedCacheStatus {
        &self.mark
    }

    /// Returns the response to send. `None` after a HEAD, which is answered with its own response.
    pub fn into_answer(self) -> Option<SharedAnswer> {
        self.answer
    }
}

/// A response that is passed on and stored.
#[derive(Debug)]
#[must_use]
pub struct SharedAdmit {
    pub(super) stored: StoredResponse,
    pub(super) origin: UriOrigin,
    /// `true` if the response is one of several codings and its `Vary` doesn't say so.
    pub(super) adds_vary: bool,
    /// `true` if parts of it will be cut.
    pub(super) tells_ranges: bool,
    pub(super) names: Vec<HeaderName>,
    pub(super) known: Option<Variants>,
    pub(super) previous: Option<Box<StoredResponse>>,
    pub(super) request: HeaderMap,
    pub(super) mark: SharedCacheStatus,
}

impl SharedAdmit {
    /// Returns the cache's status for the response.
    pub const fn mark(&self) -> &SharedCacheStatus {
        &self.mark
    }

    /// Adds the cache's fields to the response: its status, `Accept-Ranges` if parts will be cut, and `Vary:
    /// Accept-Encoding` if downstream caches need it.
    pub fn write_to(&self, headers: &mut HeaderMap) {
        if self.adds_vary {
            vary_by_coding(headers);
        }
        if self.tells_ranges {
            add_accept_ranges(headers);
        }
        self.mark.rule.remove_tag_fields(headers);
        self.mark.write_to(headers);
    }

    /// Returns the tags of the response: its groups (RFC 9875 §2), and those in fields of CDNs.
    ///
    /// # Errors
    ///
    /// Returns an error if an entry can't have them. Such a response isn't admitted.
    pub fn tags(&self) -> Result<Tags, TagError> {
        tags_of(&self.stored.headers, &self.origin, &self.mark.rule)
    }

    /// Returns the largest body that can be stored, in bytes.
    #[must_use]
    pub fn max_body(&self) -> u64 {
        self.mark.rule.max_body
    }

    /// Returns the response to be stored, with its complete body.
    pub fn with_body(self, body: Bytes) -> SharedAdmitted {
        let Self { mut stored, origin, names, known, previous, request, mark, adds_vary: _, tells_ranges: _ } =
            self;
        stored.body = body;
        if let Some(previous) = &previous {
            let withheld = Control::of(&stored.headers, &mark.rule).qualified.fields;
            combine(&mut stored, previous, &withheld);
        }
        SharedAdmitted { rule: mark.rule, stored, origin, names, known, request }
    }
}

/// A response to be stored.
#[derive(Debug)]
#[must_use]
pub struct SharedAdmitted {
    pub(super) rule: Arc<SharedRule>,
    pub(super) stored: StoredResponse,
    pub(super) origin: UriOrigin,
    pub(super) names: Vec<HeaderName>,
    pub(super) known: Option<Variants>,
    pub(super) request: HeaderMap,
}

impl SharedAdmitted {
    /// Returns the body within its record. `None` if the record combines several parts.
    #[cfg(feature = "runtime")]
    pub(super) fn body_within(&self, record: &Bytes, body: &Bytes) -> Option<Bytes> {
        let stored = &self.stored.body;
        let is_this = stored.as_ptr() == body.as_ptr() && stored.len() == body.len();
        is_this.then(|| record.slice(record.len().saturating_sub(body.len())..))
    }

    /// Returns the placement of the response. `fresh_id` becomes the id of a new [`Variants`] record, if one is needed.
    pub fn place(&mut self, fresh_id: u64) -> Placement {
        let declared = self.rule.content_codings.as_deref();
        let key = |variants: &Variants| variants.normalised_key(&self.request, declared);
        let (placement, variant) = Placement::of(self.known.as_ref(), &self.names, fresh_id, key);
        self.stored.variant = variant;
        placement
    }

    /// Returns the tags of the record: its groups (RFC 9875 §2), and those in fields of CDNs.
    ///
    /// # Errors
    ///
    /// Returns an error if an entry can't have them. The response must then not be stored.
    pub fn tags(&self) -> Result<Tags, TagError> {
        tags_of(&self.stored.headers, &self.origin, &self.rule)
    }

    /// Returns `true` if the response can answer the next request.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        !self.stored.no_cache && self.stored.part.is_none() && self.stored.is_fresh(self.stored.received)
    }

    /// Returns how long the store keeps the response.
    #[must_use]
    pub fn retention(&self) -> Duration {
        retention(&self.stored, self.stored.received, &self.rule)
    }

    /// Returns how long the store keeps the record of variants. When it expires, the variants are filled again.
    #[must_use]
    pub fn variants_retention(&self) -> Duration {
        self.retention().max(Duration::from_secs(24 * 60 * 60))
    }

    /// Returns the record for the store.
    #[must_use]
    pub fn record(&self) -> Bytes {
        self.stored.encode()
    }
}
