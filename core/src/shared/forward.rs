//! A request on its way to the origin, and the decision about the origin's response.

#![expect(
    clippy::large_enum_variant,
    clippy::result_large_err,
    reason = "a state lives for one request and is moved"
)]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, ETAG, HeaderName, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    LAST_MODIFIED, RANGE, SET_COOKIE,
};
use http::{HeaderMap, StatusCode, Uri, response};

use super::admitted::{Fate, Freshened, SharedAdmit, made_of, update, varies_by_coding, vary_by_coding};
use super::answer::{Shape, SharedAnswer};
use super::cache_status::SharedCacheStatus;
use super::freshness::{Control, Exchanged, Freshness};
use super::groups::{UriOrigin, keeps_tags, tags_of};
use super::partial::{have_one_strong_tag, identifies, part_of};
use super::safety::{invalidates, may_stand_in, unusable, why_not_storable, why_not_taggable, withholds};
use super::target::Unkeyed;
use super::{SetCookie, SharedRule};
use crate::headers::accept_encoding::reduce;
use crate::headers::cache_control::RequestDirectives;
use crate::headers::vary::selecting_fields;
use crate::policy::{BodyLength, add_accept_ranges, allows_stale_if_error};
use crate::reason::Reason;
use crate::record::shared::{SharedRecord, StoredResponse};
use crate::record::variants::Variants;
use crate::request::RequestFields;
use crate::store::Intent;
use crate::tag::Tags;

/// An extension for a response that the service made because the origin gave none: the origin was unreachable, broke
/// off or took too long. The response is never stored, a stale stored response may replace it, and after a write it is
/// unknown whether the write took effect.
#[derive(Clone, Copy, Debug)]
pub struct OriginFailed;

/// The decision about the origin's response.
#[derive(Debug)]
pub enum SharedOnResponse {
    /// The origin failed: answer with the stored response (§4.2.4).
    ServeStale(SharedAnswer),
    /// The stored response is valid: store it with its new fields, and answer with it.
    Freshened(Freshened),
    /// Answer with the response and store nothing.
    Pass(SharedPass),
    /// Answer with the response, and store it once its body is complete.
    Admit(SharedAdmit),
}

/// A request for the origin, with the state to decide about its response.
#[derive(Debug)]
#[must_use]
pub struct SharedForward {
    pub(super) rule: Arc<SharedRule>,
    pub(super) reason: Reason,
    /// The reason for `Cache-Status`, which may differ from the reason above.
    pub(super) detail: Reason,
    pub(super) directives: RequestDirectives,
    pub(super) present: RequestFields,
    pub(super) unkeyed: Unkeyed,
    pub(super) has_credentials: bool,
    /// The origin that the groups of the response belong to.
    pub(super) origin: UriOrigin,
    pub(super) is_head: bool,
    pub(super) request: HeaderMap,
    pub(super) intent: Intent,
    pub(super) variants: Option<Variants>,
    /// The record in place of which the response will be stored.
    pub(super) stored: Option<Box<StoredResponse>>,
    /// `true` if no client waits for the response.
    pub(super) is_background: bool,
}

impl SharedForward {
    /// Returns the reason for which the request goes to the origin.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        self.reason
    }

    /// Returns the intent for the store's lease.
    #[must_use]
    pub const fn intent(&self) -> Intent {
        self.intent
    }

    /// Sends the request to the origin with this reason. What it may store stays the same.
    pub fn because(self, detail: Reason) -> Self {
        Self { detail, ..self }
    }

    fn mark(&self) -> SharedCacheStatus {
        SharedCacheStatus::forwarded(Arc::clone(&self.rule), self.reason).because(self.detail)
    }

    pub(super) fn in_background(self) -> Self {
        Self { is_background: true, ..self }
    }

    /// Returns `true` if this request and others like it may wait for one response. Requests with credentials, for a
    /// part, with a condition, with an unusual spelling of the URI, or for a response that was never fresh are
    /// excluded, because one response rarely answers others. A request for a newer response gets it from the origin.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        let is_plain =
            !self.is_head && !self.present.range && !self.has_credentials && self.unkeyed.is_empty();
        let will_be_fresh =
            self.stored.as_ref().is_none_or(|stored| !stored.no_cache && stored.lifetime > Duration::ZERO);
        let is_content_with_any = !self.directives.wants_new()
            && !matches!(self.reason, Reason::NoCache | Reason::MaxAge | Reason::MinFresh | Reason::Down);
        is_plain && will_be_fresh && is_content_with_any && (!self.present.validators || self.validates())
    }

    /// Returns `true` if the stored response can be validated, and would be useful if it is valid.
    fn validates(&self) -> bool {
        self.stored.as_ref().is_some_and(|stored| {
            let has_validator =
                stored.headers.contains_key(ETAG) || stored.headers.contains_key(LAST_MODIFIED);
            has_validator && Shape::of(&self.request, self.is_head, stored).is_some()
        })
    }

    /// Makes the origin's request conditional on the stored response (§4.3.1). Replaces the client's own conditions, which
    /// this cache evaluates afterwards. A refresh in the background requests the whole response. Content codings that the
    /// rule doesn't declare are left out, if it declares any.
    pub fn prepare(&self, request: &mut HeaderMap) {
        reduce(request, self.rule.content_codings.as_deref());
        let validates = self.validates();
        if validates || self.is_background {
            request.remove(IF_NONE_MATCH);
            request.remove(IF_MODIFIED_SINCE);
        }
        if self.is_background {
            request.remove(RANGE);
            request.remove(IF_RANGE);
        }
        if let Some(stored) = self.stored.as_ref().filter(|_| validates) {
            for (validator, condition) in [(ETAG, IF_NONE_MATCH), (LAST_MODIFIED, IF_MODIFIED_SINCE)] {
                if let Some(value) = stored.headers.get(validator) {
                    request.insert(condition, value.clone());
                }
            }
        }
    }

    /// Answers with a response that another request stored meanwhile. Returns the request in `Err` if that response
    /// can't answer it.
    pub fn on_filled(self, record: Option<SharedRecord>, now: SystemTime) -> Result<SharedAnswer, Self> {
        let Some(SharedRecord::Response(stored)) = record else { return Err(self) };
        let names = self.variants.as_ref().map_or(&[][..], Variants::names);
        if !self.unkeyed.is_covered_by(names) {
            return Err(self);
        }
        let expected = self.variants.as_ref().map_or(0, |variants| variants.id);
        match Shape::of(&self.request, self.is_head, &stored) {
            Some(shape)
                if stored.variant == expected
                    && !(stored.sets_cookie && self.rule.set_cookie == SetCookie::Never)
                    && unusable(&self.directives, &stored, now).is_none() =>
            {
                Ok(SharedAnswer::hit(self.rule, stored, shape, self.is_head, now).collapsed(self.reason))
            }
            _ => Err(self),
        }
    }

    /// Decides after the origin gave no response: a stale stored response may answer (§4.2.4). `Err` returns the
    /// request.
    pub fn on_error(mut self, now: SystemTime) -> Result<SharedAnswer, Self> {
        self.stand_in(None, now).ok_or(self)
    }

    /// Returns the stored response, if the origin failed and it may answer instead.
    fn stand_in(&mut self, status: Option<StatusCode>, now: SystemTime) -> Option<SharedAnswer> {
        if self.reason != Reason::Expired {
            return None;
        }
        let stored = self.stored.take_if(|stored| may_stand_in(stored, now))?;
        let shape = Shape::of(&self.request, self.is_head, &stored)?;
        let mark = self.mark().answered(status);
        Some(SharedAnswer::hit(Arc::clone(&self.rule), stored, shape, self.is_head, now).after(mark))
    }

    /// Decides about the origin's response, before its body. `sent` is when the request was sent, `now` when the
    /// response arrived.
    #[must_use]
    pub fn on_response(
        mut self,
        response: &response::Parts,
        length: BodyLength,
        sent: SystemTime,
        now: SystemTime,
    ) -> SharedOnResponse {
        let times = Exchanged { sent, received: now };
        let origin_failed = response.extensions.get::<OriginFailed>().is_some();
        // §4.3.3: an error may count as no response.
        if origin_failed || allows_stale_if_error(response.status) {
            let status = (!origin_failed).then_some(response.status);
            if let Some(answer) = self.stand_in(status, now) {
                return SharedOnResponse::ServeStale(answer);
            }
        }
        if response.status == StatusCode::NOT_MODIFIED && self.validates() {
            return self.freshened(response, times);
        }
        let control = Control::of(&response.headers, &self.rule);
        let freshness = Freshness::of(response.status, &response.headers, &control, times, &self.rule);
        let mark = self.mark();
        if self.is_head {
            return self.on_head(response, mark, times);
        }
        let part = if response.status == StatusCode::PARTIAL_CONTENT {
            part_of(&self.request, &response.headers)
        } else {
            None
        };
        let refusal = if origin_failed {
            Some(Reason::Failed)
        } else if response.status == StatusCode::PARTIAL_CONTENT
            && (part.is_none() || self.lacks_fields(&response.headers))
        {
            // §3.3: a part without a known position can't be stored.
            Some(Reason::Range)
        } else if self.unkeyed.may_be_repeated_in(&response.headers) {
            Some(Reason::Spelling)
        } else {
            why_not_storable(response, length, &control, freshness, self.has_credentials, &self.rule)
                .or_else(|| why_not_taggable(&response.headers, &control, &self.origin, &self.rule))
        };
        match (refusal, selecting_fields(&response.headers)) {
            (None, Ok(mut names)) => {
                names.extend_from_slice(self.unkeyed.names());
                names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
                names.dedup();
                let known = self.variants.as_ref().map_or(&[][..], Variants::names);
                let is_negotiated = names.contains(&ACCEPT_ENCODING) || known.contains(&ACCEPT_ENCODING);
                let adds_vary = is_negotiated && !varies_by_coding(&response.headers);
                let mut stored = StoredResponse {
                    part,
                    ..made_of(response.status, &response.headers, &control, freshness, now, &self.rule)
                };
                if adds_vary {
                    vary_by_coding(&mut stored.headers);
                }
                let tells_ranges = response.status == StatusCode::OK && length != BodyLength::Known(0);
                if tells_ranges {
                    add_accept_ranges(&mut stored.headers);
                }
                SharedOnResponse::Admit(SharedAdmit {
                    stored,
                    origin: self.origin,
                    adds_vary,
                    tells_ranges,
                    names,
                    known: self.variants,
                    previous: self.stored,
                    request: self.request,
                    mark: mark.stored(),
                })
            }
            (reason, _) => {
                let mark = mark.because(reason.unwrap_or(Reason::Vary));
                // The stored response is outdated.
                let evicts = self.stored.is_some() && invalidates(response.status);
                SharedOnResponse::Pass(SharedPass { mark, evicts, also: Vec::new() })
            }
        }
    }

    /// Returns `true` if a 206 may lack fields of the representation, because its client has a part with them (RFC 9110
    /// §15.3.7), and no stored part has them either.
    fn lacks_fields(&self, response: &HeaderMap) -> bool {
        let has_them =
            |stored: &StoredResponse| stored.part.is_some() && have_one_strong_tag(response, &stored.headers);
        self.request.contains_key(IF_RANGE) && !self.stored.as_deref().is_some_and(has_them)
    }

    /// §4.3.4: the stored response is valid; its fields are updated, and its age starts anew. From a 304 that identifies
    /// another response no field is taken: it says no more than that the stored tag still matches.
    fn freshened(self, response: &response::Parts, times: Exchanged) -> SharedOnResponse {
        let mark = self.mark().answered(Some(response.status));
        let Some(mut stored) = self.stored else {
            return SharedOnResponse::Pass(SharedPass { mark, evicts: false, also: Vec::new() });
        };
        let now = times.received;
        let none = HeaderMap::new();
        let (fate, news, cookies) = if identifies(&response.headers, &stored) {
            let cookies = update(&mut stored, &response.headers, times, &self.rule);
            (Fate::of(&stored, self.has_credentials, &self.rule), &response.headers, cookies)
        } else {
            let _none = update(&mut stored, &none, times, &self.rule);
            let fate = match withholds(&Control::of(&response.headers, &self.rule)) {
                true => Fate::Evict,
                false => Fate::of(&stored, self.has_credentials, &self.rule),
            };
            (fate, &none, response.headers.get_all(SET_COOKIE).iter().cloned().collect())
        };
        let (fate, mark, tags) = with_tags(fate, mark, (&stored, news), &self.origin, &self.rule);
        let shape = Shape::of(&self.request, self.is_head, &stored);
        let answer = shape.map(|shape| {
            SharedAnswer::hit(Arc::clone(&self.rule), stored.clone(), shape, self.is_head, now)
                .after(mark.clone())
                .with_cookies(cookies)
        });
        SharedOnResponse::Freshened(Freshened { mark, stored, tags, fate, answer })
    }

    /// §4.3.5: the response to a HEAD shows if the stored response to a GET is still the same, and freshens it.
    fn on_head(
        self,
        response: &response::Parts,
        mark: SharedCacheStatus,
        times: Exchanged,
    ) -> SharedOnResponse {
        let mark = mark.because(Reason::Head);
        let Some(mut stored) = self.stored else {
            return SharedOnResponse::Pass(SharedPass { mark, evicts: false, also: Vec::new() });
        };
        let same = |name: HeaderName| {
            response.headers.get(&name).is_none_or(|value| stored.headers.get(&name) == Some(value))
        };
        let is_whole = response.status == stored.status && stored.part.is_none();
        let length =
            response.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let same_length = length.is_none_or(|length: usize| length == stored.body.len());
        // The content of a softly evicted response has probably changed, so that only its tag shows that it hasn't.
        let is_known = !stored.is_evicted || have_one_strong_tag(&response.headers, &stored.headers);
        let is_same = is_whole && same_length && same(ETAG) && same(LAST_MODIFIED);
        if is_same && is_known {
            // The client gets the response to the HEAD itself, with its cookies.
            let _cookies = update(&mut stored, &response.headers, times, &self.rule);
            let fate = Fate::of(&stored, self.has_credentials, &self.rule);
            let news = (&*stored, &response.headers);
            let (fate, mark, tags) = with_tags(fate, mark, news, &self.origin, &self.rule);
            SharedOnResponse::Freshened(Freshened { mark, stored, tags, fate, answer: None })
        } else {
            let evicts = !is_same && invalidates(response.status);
            SharedOnResponse::Pass(SharedPass { mark, evicts, also: Vec::new() })
        }
    }
}

/// Completes the decision about a validated response with its tags, which `update` may have changed. If an entry can't have them,
/// it is evicted: it would be stored without tags that are needed to evict it.
fn with_tags(
    fate: Fate,
    mark: SharedCacheStatus,
    (stored, update): (&StoredResponse, &HeaderMap),
    origin: &UriOrigin,
    rule: &SharedRule,
) -> (Fate, SharedCacheStatus, Tags) {
    if fate != Fate::Store {
        return (fate, mark, Tags::default());
    }
    match tags_of(&stored.headers, origin, rule) {
        Ok(tags) if keeps_tags(update, &stored.headers, rule) => (fate, mark.stored(), tags),
        _ => (Fate::Evict, mark.because(Reason::Tags), Tags::default()),
    }
}

/// A response that is passed on as it is.
#[derive(Debug)]
#[must_use]
pub struct SharedPass {
    pub(super) mark: SharedCacheStatus,
    pub(super) evicts: bool,
    pub(super) also: Vec<Uri>,
}

impl SharedPass {
    /// Returns `true` if the entry for the request's URI must be evicted first.
    #[must_use]
    pub const fn evicts(&self) -> bool {
        self.evicts
    }

    /// Returns other URIs of the same host whose responses must be evicted too (§4.4).
    #[must_use]
    pub fn also(&self) -> &[Uri] {
        &self.also
    }

    /// Returns the cache's status for the response.
    pub const fn mark(&self) -> &SharedCacheStatus {
        &self.mark
    }
}
