//! What a shared cache may do with a request: a state machine without I/O and without a clock (RFC 9111).
//!
//! Whoever holds a state makes its one transition, which consumes it; time is an argument. The driver owns the store and
//! the origin and does what each answer carries:
//!
//! ```text
//! SharedPolicy ─on_request──▶ Bypass             forward the request, mark the answer
//!                           ▶ Lookup             get the record under the key
//!                           ▶ Write              forward the request; its success invalidates
//! Lookup ───────on_record───▶ Answer             answer with it
//! (or Select)               ▶ Stale              answer with it, and validate it in the background
//!                           ▶ Forward            forward the request
//!                           ▶ Select             the resource varies: get the record under the secondary key
//! Forward ──────on_response─▶ ServeStale         the origin failed: answer with what is stored
//! (or on_error, on_filled)  ▶ Freshened          it is valid again: store it, answer with it
//!                           ▶ Pass               answer with the response, after an eviction if it says so
//!                           ▶ Admit              pass the response on, and store it when its body is complete
//! Admit ────────with_body───▶ Admitted           store it where it belongs
//! Write ────────on_response─▶ Pass | Admit       the same
//! ```

#![expect(
    clippy::large_enum_variant,
    clippy::result_large_err,
    reason = "a state lives for one request and is moved"
)]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_RANGE, DATE, ETAG,
    EXPIRES, HeaderName, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, LOCATION, RANGE,
    SET_COOKIE, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, response};

use super::cache_status::CACHE_STATUS;
use super::fields::{self, freshen, storable};
use super::freshness::{Control, Exchanged, Freshness, http_date, is_heuristically_cacheable};
use super::invalidation::same_site;
#[cfg(feature = "runtime")]
use super::partial::selection;
use super::partial::{Cut, combine, cut, part_of};
use super::target::{Unkeyed, overrides_method};
use super::{SetCookie, SharedRule};
use crate::headers::cache_control::{RequestDirectives, list};
use crate::headers::conditional::request_matches;
#[cfg(feature = "runtime")]
use crate::headers::range::Selection;
use crate::headers::vary::{SecondaryKey, Variants, selecting_fields};
use crate::key::CacheKey;
#[cfg(feature = "runtime")]
use crate::policy::Needs;
use crate::policy::rule::host;
use crate::policy::{BodyLength, allows_stale_if_error, only, tell_ranges};
use crate::reason::Reason;
use crate::record::shared::{SharedRecord, StoredResponse};
use crate::request::{RequestFields, RequestView};
#[cfg(feature = "runtime")]
use crate::status::Outcome;
use crate::store::Intent;

pub use super::cache_status::Mark;
pub use crate::headers::vary::Placement;

/// Put into the extensions of a response that the service made itself because the origin gave none: it could not be
/// reached, or broke off, or took too long. It is never stored, what is stored may stand in for it, and after a write
/// nobody knows whether it took effect.
#[derive(Clone, Copy, Debug)]
pub struct OriginFailed;

/// The engine of a shared cache.
///
/// ```
/// use std::sync::Arc;
/// use std::time::{Duration, SystemTime};
///
/// use http::{Request, Response};
/// use larder_core::policy::BodyLength;
/// use larder_core::shared::policy::{Decision, OnRecord, OnRequest, OnResponse, SharedPolicy};
/// use larder_core::shared::{SharedRecord, SharedRule};
/// use larder_core::{KeySpace, RequestView};
///
/// let policy = SharedPolicy::new(Arc::new(SharedRule::new(KeySpace::new("example", None)?)));
/// let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
///
/// // Nothing is stored: the request goes to the origin, and its answer says that it may be stored.
/// let request = Request::get("/hello").body(())?;
/// let view = RequestView::from(&request);
/// let OnRequest::Lookup(lookup) = policy.on_request(&view) else { panic!() };
/// let OnRecord::Decided(Decision::Forward(forward)) = lookup.on_record(Ok(None), &view, now) else { panic!() };
/// let (parts, body) = Response::builder().header("cache-control", "max-age=60").body("hello")?.into_parts();
/// let OnResponse::Admit(admit) = forward.on_response(&parts, BodyLength::Known(5), now, now) else { panic!() };
/// let record = SharedRecord::decode(&admit.with_body(body.into()).record());
///
/// // Ten seconds later it answers.
/// let now = now + Duration::from_secs(10);
/// let OnRequest::Lookup(lookup) = policy.on_request(&view) else { panic!() };
/// let OnRecord::Decided(Decision::Answer(answer)) = lookup.on_record(Ok(record), &view, now) else { panic!() };
/// let response = answer.into_response();
/// assert_eq!(response.headers()["age"], "10");
/// assert_eq!(response.headers()["cache-status"], "Larder; hit; ttl=50");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct SharedPolicy {
    rule: Arc<SharedRule>,
}

/// What to do with a request.
#[derive(Debug)]
pub enum OnRequest {
    /// Forward it; the cache takes no part.
    Bypass(Mark),
    /// Look for a stored response.
    Lookup(Lookup),
    /// Forward it; its success invalidates (§4.4).
    Write(Write),
}

/// What to do with what was found in the store.
#[derive(Debug)]
pub enum OnRecord {
    /// That is all there is to look for.
    Decided(Decision),
    /// The resource varies: look under the secondary key, and ask again with what lies there.
    Select(Select),
}

/// How to answer a request, after the store was looked into.
#[derive(Debug)]
pub enum Decision {
    /// Answer with this.
    Answer(Answer),
    /// Answer with this though it is stale, and validate it in the background (RFC 5861 §3).
    Stale(Answer, Forward),
    /// Forward the request.
    Forward(Forward),
}

/// What to do with the origin's answer.
#[derive(Debug)]
pub enum OnResponse {
    /// The origin failed: answer with what is stored (§4.2.4).
    ServeStale(Answer),
    /// What is stored is valid: store it again, with its new fields, and answer.
    Freshened(Freshened),
    /// Answer with the response and store nothing.
    Pass(Pass),
    /// Answer with the response, and store it once its body is complete.
    Admit(Admit),
}

impl SharedPolicy {
    /// An engine that follows this rule.
    #[must_use]
    pub const fn new(rule: Arc<SharedRule>) -> Self {
        Self { rule }
    }

    /// The rule it follows.
    #[must_use]
    pub const fn rule(&self) -> &Arc<SharedRule> {
        &self.rule
    }

    /// The first transition.
    #[must_use]
    pub fn on_request(&self, request: &RequestView<'_>) -> OnRequest {
        let present = RequestFields::of(request.headers);
        let directives = if present.directives {
            RequestDirectives::of(request.headers)
        } else {
            RequestDirectives::default()
        };
        let rule = Arc::clone(&self.rule);
        // What the origin may take for a write is treated as one.
        let is_overridden = overrides_method(request);
        let is_read = [Method::GET, Method::HEAD].contains(request.method) && !is_overridden;
        let refusal = match is_read {
            true => not_looked_up(request, present, &directives),
            false => not_a_write(request.method, is_overridden),
        };
        if let Some(reason) = refusal {
            return OnRequest::Bypass(Mark::forwarded(rule, reason));
        }
        if is_read {
            let unkeyed = Unkeyed::of(request, &rule.scheme);
            let is_head = request.method == Method::HEAD;
            OnRequest::Lookup(Lookup { rule, directives, present, unkeyed, is_head, length: None })
        } else {
            OnRequest::Write(Write {
                rule,
                target: request.uri.clone(),
                host: host(request),
                request: request.headers.clone(),
                may_store: request.method == Method::POST
                    && !request.is_obscured
                    && !directives.no_store
                    && !is_overridden
                    && Unkeyed::of(request, &self.rule.scheme).is_empty(),
                has_credentials: has_credentials(present, request.headers, &self.rule),
            })
        }
    }
}

/// §3.5, for any field that carries credentials.
fn has_credentials(present: RequestFields, headers: &HeaderMap, rule: &SharedRule) -> bool {
    present.authorization
        || present.credentials
        || rule.credential_fields.iter().any(|name| headers.contains_key(name))
}

/// Requests other than reads that invalidate nothing. A write invalidates whatever protocol it offers to switch to: curl
/// offers HTTP/2 with each request.
fn not_a_write(method: &Method, is_overridden: bool) -> Option<Reason> {
    if method == Method::CONNECT {
        Some(Reason::Upgrade)
    } else {
        // These change nothing, and have no answer to keep (RFC 9110 §9.2.1, §9.2.3).
        let is_safe = [Method::OPTIONS, Method::TRACE].contains(method) && !is_overridden;
        is_safe.then_some(Reason::Method)
    }
}

/// Reads that are none of a cache's business, whatever is stored.
fn not_looked_up(
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

/// A request that may be answered from the cache.
#[derive(Debug)]
#[must_use]
pub struct Lookup {
    rule: Arc<SharedRule>,
    directives: RequestDirectives,
    present: RequestFields,
    unkeyed: Unkeyed,
    is_head: bool,
    /// The length of the stored body, if the response that will be shown holds no more of it than this request needs.
    length: Option<u64>,
}

impl Lookup {
    /// Returns `true` if an answer from the store may need less than a whole body.
    #[cfg(feature = "runtime")]
    pub(super) const fn may_need_less(&self) -> bool {
        self.is_head || self.present.validators || self.present.range
    }

    /// What the answer needs of the body of this response, which is `length` bytes long. A response that doesn't answer as it
    /// is may be validated and stored again, which needs all of it.
    #[cfg(feature = "runtime")]
    pub(super) fn needs(
        &self,
        stored: &StoredResponse,
        length: u64,
        request: &RequestView<'_>,
        now: SystemTime,
    ) -> Needs {
        if stored.part.is_some() || unusable(&self.directives, stored, now).is_some() {
            return Needs::Whole;
        }
        if self.is_head || is_not_modified(request.headers, stored) {
            return Needs::Nothing;
        }
        match selection(request.headers, stored, length) {
            Selection::Whole => Needs::Whole,
            Selection::Part(part) => Needs::Part(part.positions_in_body()),
            Selection::Unsatisfiable => Needs::Nothing,
        }
    }

    /// Says that the response about which it decides next holds only what it [needs](Self::needs) of a body of this length.
    #[cfg(feature = "runtime")]
    pub(super) const fn expect_excerpt(&mut self, length: u64) {
        self.length = Some(length);
    }

    /// The key under which to look.
    #[must_use]
    pub fn key(&self, request: &RequestView<'_>) -> CacheKey {
        self.rule.key_beside(request, &self.unkeyed)
    }

    /// Decides about what lay under the key. `Err` says why nothing could be read.
    #[must_use]
    pub fn on_record(
        self,
        found: Result<Option<SharedRecord>, Reason>,
        request: &RequestView<'_>,
        now: SystemTime,
    ) -> OnRecord {
        OnRecord::Decided(match found {
            Ok(Some(SharedRecord::Variants(variants))) => {
                return OnRecord::Select(Select { lookup: self, variants });
            }
            // No answer without a list: it couldn't be told which of these requests it is for.
            Ok(Some(SharedRecord::Response(_))) if !self.unkeyed.is_empty() => {
                self.forward(Reason::Variant, None, None, request).replacing()
            }
            Ok(Some(SharedRecord::Response(stored))) if stored.variant == 0 => {
                self.on_stored(stored, None, request, now)
            }
            Ok(Some(SharedRecord::Response(_))) => self.forward(Reason::Unreadable, None, None, request),
            Ok(None) => self.forward(Reason::Absent, None, None, request),
            Err(reason) => self.forward(reason, None, None, request),
        })
    }

    /// §4: whether the stored response may be used for this request.
    fn on_stored(
        self,
        stored: Box<StoredResponse>,
        variants: Option<Variants>,
        request: &RequestView<'_>,
        now: SystemTime,
    ) -> Decision {
        if stored.sets_cookie && self.rule.set_cookie == SetCookie::Never {
            // Another process stores it by another rule.
            return self.forward(Reason::SetCookie, None, variants, request).replacing();
        }
        let length = self.length.unwrap_or(stored.body.len() as u64);
        let Some(shape) = Shape::within(request.headers, self.is_head, &stored, length) else {
            return self.forward(Reason::Incomplete, Some(stored), variants, request);
        };
        let answer =
            |rule: &Arc<SharedRule>, stored| Answer::hit(Arc::clone(rule), stored, shape, self.is_head, now);
        match unusable(&self.directives, &stored, now) {
            None => Decision::Answer(answer(&self.rule, stored)),
            Some(Reason::Expired) if may_be_stale(&self.directives, &stored, now) => {
                Decision::Answer(answer(&self.rule, stored))
            }
            Some(Reason::Expired) if may_be_refreshed(&self.directives, &stored, now) => {
                let answer = answer(&self.rule, stored.clone());
                match self.forward(Reason::Expired, Some(stored), variants, request) {
                    Decision::Forward(forward) => Decision::Stale(answer, forward.in_background()),
                    // A stale answer is an answer, so that `only-if-cached` has nothing to say.
                    _ => Decision::Answer(answer),
                }
            }
            Some(reason) => self.forward(reason, Some(stored), variants, request),
        }
    }

    fn forward(
        self,
        reason: Reason,
        stored: Option<Box<StoredResponse>>,
        variants: Option<Variants>,
        request: &RequestView<'_>,
    ) -> Decision {
        // §5.2.1.7.
        if self.directives.only_if_cached {
            return Decision::Answer(Answer::unsatisfiable(self.rule, reason));
        }
        let intent = match reason {
            Reason::Absent | Reason::Variant | Reason::Down if !self.directives.wants_new() => Intent::Fill,
            _ => Intent::Refresh,
        };
        let mut fields = request.headers.clone();
        self.unkeyed.write(&mut fields);
        Decision::Forward(Forward {
            has_credentials: has_credentials(self.present, request.headers, &self.rule),
            rule: self.rule,
            reason,
            detail: reason,
            directives: self.directives,
            present: self.present,
            unkeyed: self.unkeyed,
            is_head: self.is_head,
            request: fields,
            intent,
            variants,
            // Without its whole body it can't be stored again.
            stored: stored.filter(|_| self.length.is_none()),
            is_background: false,
        })
    }
}

impl Decision {
    /// The same, where something is stored already that has to go.
    fn replacing(self) -> Self {
        match self {
            Self::Forward(forward) => Self::Forward(Forward { intent: Intent::Refresh, ..forward }),
            decision => decision,
        }
    }
}

/// Why a stored response can't be used as it is, if so.
fn unusable(directives: &RequestDirectives, stored: &StoredResponse, now: SystemTime) -> Option<Reason> {
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

/// §5.2.1.2: the client accepts a stale response, and the origin doesn't forbid it.
fn may_be_stale(directives: &RequestDirectives, stored: &StoredResponse, now: SystemTime) -> bool {
    let accepted = |max| max == u64::MAX || stored.staleness(now) <= Duration::from_secs(max);
    !stored.forbids_stale
        && !stored.no_cache
        && directives.min_fresh.is_none()
        && directives.max_stale.is_some_and(accepted)
}

/// RFC 5861 §3: used while it is refreshed.
fn may_be_refreshed(directives: &RequestDirectives, stored: &StoredResponse, now: SystemTime) -> bool {
    !stored.forbids_stale
        && !stored.no_cache
        && directives.min_fresh.is_none()
        && stored.staleness(now) < stored.stale_while_revalidate
}

/// §4.2.4 and RFC 5861 §4: used because the origin fails.
fn may_stand_in(stored: &StoredResponse, now: SystemTime) -> bool {
    !stored.forbids_stale && !stored.no_cache && stored.staleness(now) < stored.stale_if_error
}

/// The resource varies: one more record to get (§4.1).
#[derive(Debug)]
#[must_use]
pub struct Select {
    lookup: Lookup,
    variants: Variants,
}

impl Select {
    /// The request that looks for the variant.
    #[cfg(feature = "runtime")]
    pub(super) const fn lookup_mut(&mut self) -> &mut Lookup {
        &mut self.lookup
    }

    /// Under which secondary key the request's variant lies.
    #[must_use]
    pub fn secondary_key(&self, request: &RequestView<'_>) -> SecondaryKey {
        let fields = self.lookup.unkeyed.selecting(request.headers, self.variants.names());
        self.variants.normalised_key(&fields)
    }

    /// Decides about what lay under the secondary key.
    #[must_use]
    pub fn on_record(
        self,
        found: Result<Option<SharedRecord>, Reason>,
        request: &RequestView<'_>,
        now: SystemTime,
    ) -> Decision {
        let Self { lookup, variants } = self;
        match found {
            // The list doesn't tell this request from others yet.
            Ok(_) if !lookup.unkeyed.is_covered_by(variants.names()) => {
                lookup.forward(Reason::Variant, None, Some(variants), request).replacing()
            }
            Ok(Some(SharedRecord::Response(stored))) if stored.variant == variants.id => {
                lookup.on_stored(stored, Some(variants), request, now)
            }
            Ok(None) => lookup.forward(Reason::Variant, None, Some(variants), request),
            // A variant of an earlier record. It is there all the same, and has to be replaced.
            Ok(Some(_)) => lookup.forward(Reason::Variant, None, Some(variants), request).replacing(),
            Err(reason) => lookup.forward(reason, None, Some(variants), request),
        }
    }
}

/// What of a stored response a request gets.
#[derive(Clone, Debug)]
enum Shape {
    Whole,
    /// The answer to a HEAD, and how long the body is that a GET would get.
    Head(u64),
    NotModified,
    Part(Bytes, HeaderValue),
    Unsatisfiable(HeaderValue),
}

impl Shape {
    /// RFC 9110 §13.2.2: first the preconditions, then the range. `None` if what is stored isn't enough.
    fn of(request: &HeaderMap, is_head: bool, stored: &StoredResponse) -> Option<Self> {
        Self::within(request, is_head, stored, stored.body.len() as u64)
    }

    /// The same of a body of this length, of which no more may be here than is needed.
    fn within(request: &HeaderMap, is_head: bool, stored: &StoredResponse, length: u64) -> Option<Self> {
        let cut = if is_head && stored.part.is_none() { Cut::Whole } else { cut(request, stored, length) };
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

/// §4.3.2: whether the client has this response already. Preconditions are for what would be a success without them (RFC
/// 9110 §13.2.1).
fn is_not_modified(request: &HeaderMap, stored: &StoredResponse) -> bool {
    stored.status.is_success()
        && (request_matches(request, &stored.headers) || not_modified_since_its_date(request, stored))
}

/// A response that doesn't say when it was modified was no younger than its `Date`.
fn not_modified_since_its_date(request: &HeaderMap, stored: &StoredResponse) -> bool {
    if request.contains_key(IF_NONE_MATCH) || stored.headers.contains_key(LAST_MODIFIED) {
        return false;
    }
    let date = |headers: &HeaderMap, name| headers.get(name).and_then(http_date);
    let since = request.get(IF_MODIFIED_SINCE).and_then(http_date);
    matches!((since, date(&stored.headers, DATE)), (Some(since), Some(date)) if date <= since)
}

/// An answer that needs no origin.
#[derive(Debug)]
#[must_use]
pub struct Answer {
    mark: Mark,
    now: SystemTime,
    is_head: bool,
    /// What is stored, and what of it to send. Without it the answer is 504 (§5.2.1.7).
    from: Option<(Box<StoredResponse>, Shape)>,
    /// What a 304 sets for this client, which isn't stored.
    cookies: Vec<HeaderValue>,
}

impl Answer {
    fn hit(
        rule: Arc<SharedRule>,
        stored: Box<StoredResponse>,
        shape: Shape,
        is_head: bool,
        now: SystemTime,
    ) -> Self {
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        // In whole seconds of age, so that it goes with `Age`.
        let ttl = seconds(stored.lifetime).saturating_sub(seconds(stored.age(now)));
        Self { mark: Mark::hit(rule, ttl), now, is_head, from: Some((stored, shape)), cookies: Vec::new() }
    }

    const fn unsatisfiable(rule: Arc<SharedRule>, reason: Reason) -> Self {
        let mark = Mark::forwarded(rule, reason);
        Self { mark, now: SystemTime::UNIX_EPOCH, is_head: false, from: None, cookies: Vec::new() }
    }

    /// The same, but the request went to the origin or waited for one that did.
    fn after(mut self, mark: Mark) -> Self {
        self.mark = mark;
        self
    }

    fn with_cookies(self, cookies: Vec<HeaderValue>) -> Self {
        Self { cookies, ..self }
    }

    /// Says that the request waited for another one's answer (RFC 9211 §2.6).
    pub fn collapsed(self, reason: Reason) -> Self {
        let mark = Mark::forwarded(Arc::clone(&self.mark.rule), reason).collapsed();
        self.after(mark)
    }

    /// How it counts.
    #[cfg(feature = "runtime")]
    pub(super) fn outcome(&self) -> Outcome {
        self.mark.outcome(self.from.is_some())
    }

    /// The response to send (§4, §4.3.2, RFC 9110 §14).
    #[must_use]
    pub fn into_response(self) -> Response<Bytes> {
        let Some((stored, shape)) = self.from else {
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
            // It never left this cache.
            self.mark.stamp_unsatisfied(response.headers_mut());
            return response;
        };
        let age = stored.age(self.now).as_secs();
        let StoredResponse { status, mut headers, body, .. } = *stored;
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
        // §5.1.
        headers.insert(AGE, HeaderValue::from(age));
        for cookie in self.cookies {
            headers.append(SET_COOKIE, cookie);
        }
        self.mark.stamp(&mut headers);
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

/// RFC 9110 §8.6.
fn has_length(status: StatusCode) -> bool {
    !status.is_informational() && status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED
}

/// RFC 9110 §15.4.5: what a 200 would have said about freshness and validators.
fn for_not_modified(stored: HeaderMap) -> HeaderMap {
    only(stored, is_for_not_modified)
}

fn is_for_not_modified(name: &HeaderName) -> bool {
    [CACHE_CONTROL, CONTENT_LOCATION, DATE, ETAG, EXPIRES, VARY, LAST_MODIFIED, CACHE_STATUS].contains(name)
        || name.as_str().ends_with("-cache-control")
        || name.as_str().starts_with("access-control-")
}

/// A request for the origin, and what will become of its answer.
#[derive(Debug)]
#[must_use]
pub struct Forward {
    rule: Arc<SharedRule>,
    reason: Reason,
    /// The same, unless it became something else on the way: for those who read `Cache-Status`.
    detail: Reason,
    directives: RequestDirectives,
    present: RequestFields,
    unkeyed: Unkeyed,
    has_credentials: bool,
    is_head: bool,
    request: HeaderMap,
    intent: Intent,
    variants: Option<Variants>,
    /// What lies where the answer will be stored.
    stored: Option<Box<StoredResponse>>,
    /// Whether nobody waits for the answer.
    is_background: bool,
}

impl Forward {
    /// Why the request goes to the origin.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        self.reason
    }

    /// What to begin with the store.
    #[must_use]
    pub const fn intent(&self) -> Intent {
        self.intent
    }

    /// Goes to the origin, and says this about why. What it is allowed stays the same.
    pub fn because(self, detail: Reason) -> Self {
        Self { detail, ..self }
    }

    fn mark(&self) -> Mark {
        Mark::forwarded(Arc::clone(&self.rule), self.reason).because(self.detail)
    }

    fn in_background(self) -> Self {
        Self { is_background: true, ..self }
    }

    /// Whether requests like this one may wait for its answer, and this one for theirs. Only where that is likely to answer
    /// them: an answer to a request with credentials, for a part, under a condition of its own, to an unusual spelling of
    /// the URI, or one that was never fresh, mostly isn't for others. And who asks for something newer gets it from the origin.
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

    /// Whether what is stored can be validated, and would be of use if it is valid.
    fn validates(&self) -> bool {
        self.stored.as_ref().is_some_and(|stored| {
            let has_validator =
                stored.headers.contains_key(ETAG) || stored.headers.contains_key(LAST_MODIFIED);
            has_validator && Shape::of(&self.request, self.is_head, stored).is_some()
        })
    }

    /// Makes the origin's request conditional on what is stored (§4.3.1), in place of the client's own conditions: those
    /// are for this cache to evaluate afterwards. A refresh in the background asks for everything.
    pub fn prepare(&self, request: &mut HeaderMap) {
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

    /// Answers with a response that somebody else stored while this request was on its way. `Err` gives the request back
    /// if it can't be answered with that.
    pub fn on_filled(self, record: Option<SharedRecord>, now: SystemTime) -> Result<Answer, Self> {
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
                Ok(Answer::hit(self.rule, stored, shape, self.is_head, now).collapsed(self.reason))
            }
            _ => Err(self),
        }
    }

    /// There was no answer: maybe what is stored answers though it is stale (§4.2.4). `Err` gives the request back.
    pub fn on_error(mut self, now: SystemTime) -> Result<Answer, Self> {
        self.stand_in(None, now).ok_or(self)
    }

    /// What is stored, if the origin failed and it may answer for it.
    fn stand_in(&mut self, status: Option<StatusCode>, now: SystemTime) -> Option<Answer> {
        if self.reason != Reason::Expired {
            return None;
        }
        let stored = self.stored.take_if(|stored| may_stand_in(stored, now))?;
        let shape = Shape::of(&self.request, self.is_head, &stored)?;
        let mark = self.mark().answered(status);
        Some(Answer::hit(Arc::clone(&self.rule), stored, shape, self.is_head, now).after(mark))
    }

    /// Decides about the origin's answer, before its body. The request left at `sent`; it is `now`.
    #[must_use]
    pub fn on_response(
        mut self,
        response: &response::Parts,
        length: BodyLength,
        sent: SystemTime,
        now: SystemTime,
    ) -> OnResponse {
        let times = Exchanged { sent, received: now };
        let origin_failed = response.extensions.get::<OriginFailed>().is_some();
        // §4.3.3: an error may count as no answer.
        if origin_failed || allows_stale_if_error(response.status) {
            let status = (!origin_failed).then_some(response.status);
            if let Some(answer) = self.stand_in(status, now) {
                return OnResponse::ServeStale(answer);
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
        } else if response.status == StatusCode::PARTIAL_CONTENT && part.is_none() {
            // §3.3: what can't be placed can't be kept.
            Some(Reason::Range)
        } else {
            why_not_storable(response, length, &control, freshness, self.has_credentials, &self.rule)
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
                    tell_ranges(&mut stored.headers);
                }
                OnResponse::Admit(Admit {
                    stored,
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
                // What was there isn't what the origin answers any more.
                let evicts = self.stored.is_some() && invalidates(response.status);
                OnResponse::Pass(Pass { mark, evicts, also: Vec::new() })
            }
        }
    }

    /// §4.3.4: the stored response is valid; its fields are updated, and its age starts anew.
    fn freshened(self, response: &response::Parts, times: Exchanged) -> OnResponse {
        let mark = self.mark().answered(Some(response.status));
        let Some(mut stored) = self.stored else {
            return OnResponse::Pass(Pass { mark, evicts: false, also: Vec::new() });
        };
        let cookies = update(&mut stored, &response.headers, times, &self.rule);
        let now = times.received;
        let shape = Shape::of(&self.request, self.is_head, &stored);
        let fate = Fate::of(&stored, self.has_credentials, &self.rule);
        let mark = if fate == Fate::Store { mark.stored() } else { mark };
        let answer = shape.map(|shape| {
            Answer::hit(Arc::clone(&self.rule), stored.clone(), shape, self.is_head, now)
                .after(mark.clone())
                .with_cookies(cookies)
        });
        OnResponse::Freshened(Freshened { mark, stored, fate, answer })
    }

    /// §4.3.5: the answer to a HEAD says whether the stored response to a GET is still the same, and freshens it.
    fn on_head(self, response: &response::Parts, mark: Mark, times: Exchanged) -> OnResponse {
        let mark = mark.because(Reason::Head);
        let Some(mut stored) = self.stored else {
            return OnResponse::Pass(Pass { mark, evicts: false, also: Vec::new() });
        };
        let same = |name: HeaderName| {
            response.headers.get(&name).is_none_or(|value| stored.headers.get(&name) == Some(value))
        };
        let is_whole = response.status == stored.status && stored.part.is_none();
        let length =
            response.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let same_length = length.is_none_or(|length: usize| length == stored.body.len());
        if is_whole && same_length && same(ETAG) && same(LAST_MODIFIED) {
            // The client gets the answer to the HEAD itself, cookies and all.
            let _cookies = update(&mut stored, &response.headers, times, &self.rule);
            let fate = Fate::of(&stored, self.has_credentials, &self.rule);
            let mark = if fate == Fate::Store { mark.stored() } else { mark };
            OnResponse::Freshened(Freshened { mark, stored, fate, answer: None })
        } else {
            let evicts = invalidates(response.status);
            OnResponse::Pass(Pass { mark, evicts, also: Vec::new() })
        }
    }
}

/// Whether what is stored isn't what the origin answers any more. A 304 to a condition of the client's own doesn't say so.
fn invalidates(status: StatusCode) -> bool {
    status != StatusCode::NOT_MODIFIED && crate::policy::invalidates(status)
}

/// §3: why a response may not be stored, if so.
fn why_not_storable(
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

/// §5.2.2.5, which `must-understand` overrides (§5.2.2.3), and §5.2.2.7.
fn withholds(control: &Control) -> bool {
    (control.directives.no_store && !control.directives.must_understand) || control.qualified.private
}

/// §3.5: what says that an answer to a request with credentials is for others too.
fn is_for_all(control: &Control) -> bool {
    let said = &control.directives;
    said.public || said.must_revalidate || said.s_maxage.is_some()
}

fn has_validator(headers: &HeaderMap) -> bool {
    headers.contains_key(ETAG) || headers.contains_key(LAST_MODIFIED)
}

/// The status codes whose meaning for caches this one conforms to (§5.2.2.3): the ones with no more to it than to be
/// stored and sent, and 206.
fn is_understood(status: StatusCode) -> bool {
    is_heuristically_cacheable(status)
        || matches!(status.as_u16(), 201 | 202 | 302 | 303 | 307 | 400 | 401 | 403 | 500 | 502 | 503 | 504)
}

/// What is stored of a response, but for the body.
fn made_of(
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
        variant: 0,
        part: None,
    }
}

/// What the response says comes before the rule.
fn stale_for(said: Option<u64>, rule: Duration) -> Duration {
    said.map_or(rule, |seconds| Duration::from_secs(seconds.min(1 << 31)))
}

/// Whether a response says that it was selected by `Accept-Encoding`, or by anything.
fn varies_by_coding(headers: &HeaderMap) -> bool {
    let names = headers.get_all(VARY).iter().flat_map(|field| list(field.as_bytes()));
    names
        .into_iter()
        .any(|name| name == b"*" || name.eq_ignore_ascii_case(ACCEPT_ENCODING.as_str().as_bytes()))
}

fn vary_by_coding(headers: &mut HeaderMap) {
    headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
}

/// Gives a stored response the fields of a newer one, and what follows from them. Returns the cookies that the newer one
/// sets and that aren't stored.
fn update(
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

/// What becomes of a stored response that was validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is stored again, with its new fields.
    Store,
    /// It stays as it was: the validation was one user's (§3.5).
    Leave,
    /// It goes: the origin doesn't want it stored any more.
    Evict,
}

impl Fate {
    fn of(stored: &StoredResponse, has_credentials: bool, rule: &SharedRule) -> Self {
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

/// How long a store shall keep a response: while it is fresh, and for as long after that as it may still be of use.
fn retention(stored: &StoredResponse, now: SystemTime, rule: &SharedRule) -> Duration {
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

/// A stored response that was found to be valid still, with the fields it has now.
#[derive(Debug)]
#[must_use]
pub struct Freshened {
    mark: Mark,
    stored: Box<StoredResponse>,
    fate: Fate,
    answer: Option<Answer>,
}

impl Freshened {
    /// What becomes of what is stored.
    #[must_use]
    pub const fn fate(&self) -> Fate {
        self.fate
    }

    /// The record for the store.
    #[must_use]
    pub fn record(&self) -> Bytes {
        self.stored.encode()
    }

    /// How long the store shall keep it.
    #[must_use]
    pub fn retention(&self) -> Duration {
        retention(&self.stored, self.stored.received, &self.mark.rule)
    }

    /// Whether it will be fresh for the next request.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fate == Fate::Store && !self.stored.no_cache && self.stored.is_fresh(self.stored.received)
    }

    /// What the cache says about itself on the response to a HEAD.
    pub const fn mark(&self) -> &Mark {
        &self.mark
    }

    /// What to answer with. `None` after a HEAD: its own response.
    pub fn into_answer(self) -> Option<Answer> {
        self.answer
    }
}

/// A response that is passed on as it is.
#[derive(Debug)]
#[must_use]
pub struct Pass {
    mark: Mark,
    evicts: bool,
    also: Vec<Uri>,
}

impl Pass {
    /// Whether what is stored for the request's URI must be evicted first.
    #[must_use]
    pub const fn evicts(&self) -> bool {
        self.evicts
    }

    /// Other URIs of the same host whose responses must be evicted too (§4.4).
    #[must_use]
    pub fn also(&self) -> &[Uri] {
        &self.also
    }

    /// What the cache says about itself on it.
    pub const fn mark(&self) -> &Mark {
        &self.mark
    }
}

/// A response that is passed on and kept.
#[derive(Debug)]
#[must_use]
pub struct Admit {
    stored: StoredResponse,
    /// Whether the response is one of several codings and doesn't say so.
    adds_vary: bool,
    /// Whether parts of it will be cut.
    tells_ranges: bool,
    names: Vec<HeaderName>,
    known: Option<Variants>,
    previous: Option<Box<StoredResponse>>,
    request: HeaderMap,
    mark: Mark,
}

impl Admit {
    /// What the cache says about itself on the response.
    pub const fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Writes into the fields of the response what the cache has to say: its mark, that parts will be cut, and that the response
    /// was selected by `Accept-Encoding`, which caches downstream have to know.
    pub fn stamp(&self, headers: &mut HeaderMap) {
        if self.adds_vary {
            vary_by_coding(headers);
        }
        if self.tells_ranges {
            tell_ranges(headers);
        }
        self.mark.stamp(headers);
    }

    /// The largest body worth keeping, in bytes.
    #[must_use]
    pub fn max_body(&self) -> u64 {
        self.mark.rule.max_body
    }

    /// The body is complete.
    pub fn with_body(self, body: Bytes) -> Admitted {
        let Self { mut stored, names, known, previous, request, mark, adds_vary: _, tells_ranges: _ } = self;
        stored.body = body;
        if let Some(previous) = &previous {
            combine(&mut stored, previous);
        }
        Admitted { rule: mark.rule, stored, names, known, request }
    }
}

/// A response to be stored.
#[derive(Debug)]
#[must_use]
pub struct Admitted {
    rule: Arc<SharedRule>,
    stored: StoredResponse,
    names: Vec<HeaderName>,
    known: Option<Variants>,
    request: HeaderMap,
}

impl Admitted {
    /// The body within its record, if it is this one and not what several parts were put together to.
    #[cfg(feature = "runtime")]
    pub(super) fn body_within(&self, record: &Bytes, body: &Bytes) -> Option<Bytes> {
        let stored = &self.stored.body;
        let is_this = stored.as_ptr() == body.as_ptr() && stored.len() == body.len();
        is_this.then(|| record.slice(record.len().saturating_sub(body.len())..))
    }

    /// Where it belongs. `fresh_id` becomes the id of a new [`Variants`] record, if there must be one.
    pub fn place(&mut self, fresh_id: u64) -> Placement {
        let key = |variants: &Variants| variants.normalised_key(&self.request);
        let (placement, variant) = Placement::of(self.known.as_ref(), &self.names, fresh_id, key);
        self.stored.variant = variant;
        placement
    }

    /// Whether the next request can be answered with it.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        !self.stored.no_cache && self.stored.part.is_none() && self.stored.is_fresh(self.stored.received)
    }

    /// How long the store shall keep it.
    #[must_use]
    pub fn retention(&self) -> Duration {
        retention(&self.stored, self.stored.received, &self.rule)
    }

    /// How long the store shall keep the record that leads to the variants. When it goes, they have to be filled anew.
    #[must_use]
    pub fn variants_retention(&self) -> Duration {
        self.retention().max(Duration::from_secs(24 * 60 * 60))
    }

    /// The record for the store.
    #[must_use]
    pub fn record(&self) -> Bytes {
        self.stored.encode()
    }
}

/// Whether an answer to a write doesn't say if it took effect: something on the way gave up, or the origin failed after it
/// had begun.
fn leaves_open(status: StatusCode) -> bool {
    status == StatusCode::REQUEST_TIMEOUT || status.is_server_error()
}

/// A request that may change something at the origin.
#[derive(Debug)]
#[must_use]
pub struct Write {
    rule: Arc<SharedRule>,
    target: Uri,
    host: String,
    request: HeaderMap,
    may_store: bool,
    has_credentials: bool,
}

impl Write {
    /// Whether the answer may be one for later GETs, so that a ticket is worth taking (RFC 9110 §9.3.3).
    #[must_use]
    pub const fn may_store(&self) -> bool {
        self.may_store
    }

    /// Decides about the origin's answer. Nothing is invalidated by a client's error (§4.4). After a 408 or a server error,
    /// or without an answer, the change may have been made all the same, so that this invalidates too.
    #[must_use]
    pub fn on_response(
        self,
        response: &response::Parts,
        length: BodyLength,
        sent: SystemTime,
        now: SystemTime,
    ) -> OnResponse {
        let mark = Mark::forwarded(Arc::clone(&self.rule), Reason::Method);
        if response.extensions.get::<OriginFailed>().is_some() {
            return OnResponse::Pass(Pass {
                mark: mark.because(Reason::Failed),
                evicts: true,
                also: Vec::new(),
            });
        }
        if !(response.status.is_success() || response.status.is_redirection()) {
            let evicts = self.rule.evict_on_error && leaves_open(response.status);
            return OnResponse::Pass(Pass { mark, evicts, also: Vec::new() });
        }
        let spoken_of = |name| same_site(&response.headers, &name, &self.target, &self.host);
        let content_location = spoken_of(CONTENT_LOCATION);
        let is_the_target = |uri: &Uri| uri.path_and_query() == self.target.path_and_query();
        let control = Control::of(&response.headers, &self.rule);
        let freshness = Freshness::of(
            response.status,
            &response.headers,
            &control,
            Exchanged { sent, received: now },
            &self.rule,
        );
        // RFC 9110 §9.3.3: with explicit freshness and a `Content-Location` that is the target, it is what a GET would get.
        let is_for_gets = self.may_store
            && response.status == StatusCode::OK
            && freshness.is_explicit
            && content_location.as_ref().is_some_and(is_the_target)
            && selecting_fields(&response.headers) == Ok(Vec::new())
            && why_not_storable(response, length, &control, freshness, self.has_credentials, &self.rule)
                .is_none();
        if is_for_gets {
            return OnResponse::Admit(Admit {
                stored: made_of(response.status, &response.headers, &control, freshness, now, &self.rule),
                adds_vary: false,
                tells_ranges: false,
                names: Vec::new(),
                known: None,
                previous: None,
                request: self.request,
                mark: mark.stored(),
            });
        }
        let also = [spoken_of(LOCATION), content_location].into_iter().flatten();
        OnResponse::Pass(Pass { mark, evicts: true, also: also.filter(|uri| !is_the_target(uri)).collect() })
    }
}
