//! What a cache may do with a request: a state machine without I/O and without a clock.
//!
//! There are two rules. Whoever holds a state must make its one transition, which consumes it; and time is an
//! argument. The driver owns the store and the handler and does what each answer carries:
//!
//! ```text
//! CachePolicy ─on_request─▶ Bypass                  run the handler, mark the answer
//!                         ▶ Lookup                  get the record under the key
//!                         ▶ Forward                 (a route that writes) run the handler
//! Lookup ──────on_entry───▶ Hit | NotModified       answer with it
//!                         ▶ Stale(Hit, Forward)     answer with it, and run the handler in the background
//! (or Select)             ▶ Unsatisfiable           answer 504 (RFC 9111 §5.2.1.7)
//!                         ▶ Miss(Forward)           run the handler
//!                         ▶ Select                  the resource varies: get the record under the secondary key
//! Forward ─────on_filled──▶ Hit                     answer with what somebody else stored meanwhile
//! Forward ─────on_response▶ ServeStale(Hit)         the handler failed: answer with what is stored
//! (or on_error)           ▶ Pass                    answer with the response as it is, after an eviction if it says so
//!                         ▶ Admit                   collect the body
//! Admit ───────on_body────▶ Admitted                store it, then answer
//! ```
//!
//! Every way past the cache has a [`Reason`]. The diagram in ARCHITECTURE.md is drawn from what a test observed.
//!
//! An entry that is shown to a `Lookup` needn't hold the whole body: `Lookup::needs` says how much of it the answer takes.
//!
//! Not here: what a key is ([`Rule::key`]), which requests share an entry ([`Provenance`]), who waits for whom, and when the
//! store may be trusted to have written. That
//! is the exchange's part.

#![expect(
    clippy::large_enum_variant,
    clippy::result_large_err,
    reason = "a state lives for one request and is moved"
)]

pub(crate) mod rule;

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ACCESS_CONTROL_ALLOW_ORIGIN, AGE, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING,
    CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, EXPIRES, HeaderName, IF_MATCH,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED, ORIGIN,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RANGE, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, response};

use crate::credentials::replaces_target;
use crate::headers::cache_control::{RequestDirectives, ResponseDirectives, list};
use crate::headers::conditional::{Validators, request_matches, weak_etag};
use crate::headers::range::{self, Part, Selection};
use crate::headers::vary::{SecondaryKey, Variants, selecting_fields, tell_vary};
use crate::policy::rule::{Audience, Kind, Principal, PrincipalSecret, Rule};
use crate::provenance::{self, Provenance};
use crate::reason::Reason;
use crate::record::{Entry, Record};
use crate::request::{RequestFields, RequestView};
use crate::store::Intent;

pub use crate::headers::vary::Placement;

// As constants they are read when this is compiled.
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// The engine for one route.
///
/// ```
/// use std::sync::Arc;
/// use std::time::SystemTime;
///
/// use http::{Request, Response};
/// use larder_core::policy::{BodyLength, CachePolicy, Decision, OnEntry, OnRequest, OnResponse};
/// use larder_core::{Kind, KeySpace, Record, RequestView, Rule};
///
/// let rule = Arc::new(Rule::new(Kind::Read, KeySpace::new("example", None)?));
/// let policy = CachePolicy::new(rule);
/// let now = SystemTime::UNIX_EPOCH;
///
/// // Nothing is stored: the engine says to run the handler, and then what to store.
/// let request = Request::get("/hello").body(())?;
/// let view = RequestView::from(&request);
/// let OnRequest::Lookup(lookup) = policy.on_request(&view) else { panic!() };
/// let OnEntry::Decided(Decision::Miss(forward)) = lookup.on_entry(Ok(None), &view, now) else { panic!() };
/// let (parts, body) = Response::new("hello").into_parts();
/// let OnResponse::Admit(admit) = forward.on_response(&parts, BodyLength::Known(5)) else { panic!() };
/// let admitted = admit.on_body(parts, body.into(), now);
/// let record = Record::decode(&admitted.record());
///
/// // And now it is.
/// let OnRequest::Lookup(lookup) = policy.on_request(&view) else { panic!() };
/// let OnEntry::Decided(Decision::Hit(hit)) = lookup.on_entry(Ok(record), &view, now) else { panic!() };
/// assert_eq!(hit.into_response().headers()["x-redis-cache"], "HIT");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct CachePolicy {
    rule: Arc<Rule>,
    secret: PrincipalSecret,
}

/// What to do with a request.
#[derive(Debug)]
pub enum OnRequest {
    /// Run the handler; the cache takes no part.
    Bypass(Mark),
    /// Look for a stored response.
    Lookup(Lookup),
    /// Run the handler; its success writes or evicts.
    Forward(Forward),
}

/// What to do with what was found in the store.
#[derive(Debug)]
pub enum OnEntry {
    /// That is all there is to look for.
    Decided(Decision),
    /// The resource varies: look under the secondary key, and ask again with what lies there.
    Select(Select),
}

/// How to answer a request, after the store was looked into.
#[derive(Debug)]
pub enum Decision {
    /// Answer with what is stored.
    Hit(Hit),
    /// Answer 304: the client has it already.
    NotModified(Hit),
    /// Answer with what is stored though it is stale, and refresh it in the background (RFC 5861 §3).
    Stale(Hit, Forward),
    /// The client wants a stored response or none: answer 504.
    Unsatisfiable(Unsatisfiable),
    /// Run the handler; the cache takes no part. Another pattern's response is stored, which this request may not replace, or a
    /// part in another unit than bytes is asked for.
    Bypass(Mark),
    /// Run the handler.
    Miss(Forward),
}

/// What to do with the handler's answer.
#[derive(Debug)]
pub enum OnResponse {
    /// Answer with it and store nothing.
    Pass(Pass),
    /// The handler failed: answer with what is stored instead, though it is stale (RFC 5861 §4).
    ServeStale(Hit),
    /// Collect the body.
    Admit(Admit),
}

/// How long a body is, as far as it says so itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// Exactly so many bytes.
    Known(u64),
    /// It may never end.
    Unknown,
}

impl CachePolicy {
    /// The engine for a route.
    #[must_use]
    pub fn new(rule: Arc<Rule>) -> Self {
        Self { rule, secret: PrincipalSecret::default() }
    }

    /// Hashes principals with this secret.
    #[must_use]
    pub fn with_secret(self, secret: PrincipalSecret) -> Self {
        Self { secret, ..self }
    }

    /// The rule it follows.
    #[must_use]
    pub const fn rule(&self) -> &Arc<Rule> {
        &self.rule
    }

    /// The first transition.
    #[must_use]
    pub fn on_request(&self, request: &RequestView<'_>) -> OnRequest {
        match self.rule.kind {
            Kind::Read => self.on_read(request),
            Kind::Write | Kind::EvictKey | Kind::EvictGroup => self.on_write(request),
        }
    }

    fn on_read(&self, request: &RequestView<'_>) -> OnRequest {
        let present = RequestFields::of(request.headers);
        let directives = directives_of(request, present);
        let pattern = provenance::pattern_of(request);
        let refusal = not_for_caches(request, present)
            .or_else(|| directives.no_store.then_some(Reason::NoStore))
            .or_else(|| credentials_without_audience(&self.rule, request.headers, present))
            .or_else(|| without_certain_handler(request, pattern));
        if let Some(reason) = refusal {
            return OnRequest::Bypass(Mark::bypass(&self.rule, reason));
        }
        match self.principal(request) {
            Ok(principal) => OnRequest::Lookup(Lookup {
                rule: Arc::clone(&self.rule),
                directives,
                principal,
                pattern,
                is_conditional: present.validators,
                is_head: request.method == Method::HEAD,
                is_cross_origin: present.origin,
                // RFC 9110 §14.2: on another method than GET it means nothing.
                is_range: present.range && request.method == Method::GET,
                length: None,
            }),
            Err(reason) => OnRequest::Bypass(Mark::bypass(&self.rule, reason)),
        }
    }

    /// A write is never answered from the cache, and its preconditions are its handler's business.
    fn on_write(&self, request: &RequestView<'_>) -> OnRequest {
        // These change nothing, and a layer over a whole router sees them too.
        if [Method::HEAD, Method::OPTIONS, Method::TRACE].contains(request.method) {
            return OnRequest::Bypass(Mark::bypass(&self.rule, Reason::Method));
        }
        let present = RequestFields::of(request.headers);
        let provenance = Provenance::of(request, self.rule.is_chosen);
        let replaces =
            |name: &HeaderName| replaces_target(name.as_str()) && !self.rule.passed_fields.contains(name);
        let why_not_storable = directives_of(request, present)
            .no_store
            .then_some(Reason::NoStore)
            .or_else(|| credentials_without_audience(&self.rule, request.headers, present))
            .or_else(|| request.headers.keys().any(replaces).then_some(Reason::Override))
            .or_else(|| without_certain_handler(request, provenance.pattern));
        let principal = match self.rule.kind {
            // A group is evicted whole, whoever asks.
            Kind::EvictGroup => Ok(None),
            _ => self.principal(request),
        };
        match principal {
            Ok(principal) => OnRequest::Forward(Forward {
                rule: Arc::clone(&self.rule),
                reason: Reason::Method,
                directives: RequestDirectives::default(),
                why_not_storable,
                principal,
                provenance,
                request: None,
                is_head: false,
                is_range: false,
                keeps_range: false,
                intent: Intent::Write,
                variants: None,
                fallback: None,
            }),
            Err(reason) => OnRequest::Bypass(Mark::bypass(&self.rule, reason)),
        }
    }

    fn principal(&self, request: &RequestView<'_>) -> Result<Option<Principal>, Reason> {
        match &self.rule.audience {
            Audience::Undeclared | Audience::Public => Ok(None),
            Audience::Private(of, _) => {
                let name = of(request).ok_or(Reason::Anonymous)?;
                Ok(Some(Principal::new(&self.secret, &name)))
            }
        }
    }
}

fn directives_of(request: &RequestView<'_>, present: RequestFields) -> RequestDirectives {
    if present.directives { RequestDirectives::of(request.headers) } else { RequestDirectives::default() }
}

/// Requests that a cache can't answer, whatever is stored.
fn not_for_caches(request: &RequestView<'_>, present: RequestFields) -> Option<Reason> {
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

/// Requests of which it isn't certain that their handler is the one that other requests with their key have.
fn without_certain_handler(request: &RequestView<'_>, pattern: u64) -> Option<Reason> {
    if request.is_obscured {
        Some(Reason::Rewritten)
    } else if pattern == 0 && !provenance::is_canonical(request) {
        Some(Reason::Spelling)
    } else {
        None
    }
}

/// A response to a request with credentials is one user's, unless the route's author said otherwise (cf. RFC 9111 §3.5).
fn credentials_without_audience(rule: &Rule, request: &HeaderMap, present: RequestFields) -> Option<Reason> {
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

/// A request that may be answered from the cache.
#[derive(Debug)]
#[must_use]
pub struct Lookup {
    rule: Arc<Rule>,
    directives: RequestDirectives,
    principal: Option<Principal>,
    /// A hash of the pattern that led here, or 0.
    pattern: u64,
    is_conditional: bool,
    is_head: bool,
    is_range: bool,
    is_cross_origin: bool,
    /// The length of the stored body, if the entry that will be shown holds no more of it than this request needs.
    length: Option<u64>,
}

/// What of the body of a stored response its answer needs.
#[cfg(feature = "runtime")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing: it is an answer to a HEAD, a 304 or a 416.
    Nothing,
    /// The bytes at these positions: it is a 206.
    Part(std::ops::Range<u64>),
    /// All of it.
    Whole,
}

impl Lookup {
    /// Who asks, for the key.
    #[must_use]
    pub const fn principal(&self) -> Option<Principal> {
        self.principal
    }

    /// Gives up: there is no key for this request.
    pub fn without_key(self) -> Mark {
        Mark::bypass(&self.rule, Reason::Keyless)
    }

    /// Whether any answer will do, and all of it: the request gives no directives, asks for no part, and is no HEAD.
    ///
    /// A miss of such a request may be acted upon without having looked: the store is asked for the right to fill then, and
    /// answers with what it finds instead.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.directives == RequestDirectives::default() && !self.is_head && !self.is_range
    }

    /// Returns `true` if an answer from the store may need less than a whole body.
    #[cfg(feature = "runtime")]
    pub(crate) const fn may_need_less(&self) -> bool {
        self.is_head || self.is_conditional || self.is_range
    }

    /// What the answer needs of the body of this response, which is `length` bytes long. The entry's own body isn't looked at.
    #[cfg(feature = "runtime")]
    pub(crate) fn needs(&self, entry: &Entry, length: u64, request: &RequestView<'_>) -> Needs {
        if self.is_head || (self.is_conditional && is_not_modified(request.headers, entry)) {
            return Needs::Nothing;
        }
        if !self.is_range {
            return Needs::Whole;
        }
        match selection(request.headers, entry, length) {
            Selection::Whole => Needs::Whole,
            Selection::Part(part) => Needs::Part(part.positions_in_body()),
            Selection::Unsatisfiable => Needs::Nothing,
        }
    }

    /// Says that the entry about which it decides next holds only what it [needs](Self::needs) of a body of this length.
    #[cfg(feature = "runtime")]
    pub(crate) const fn expect_excerpt(&mut self, length: u64) {
        self.length = Some(length);
    }

    /// Decides about what lay under the key. `Err` says why nothing could be read.
    #[must_use]
    pub fn on_entry(
        self,
        found: Result<Option<Record>, Reason>,
        request: &RequestView<'_>,
        now: SystemTime,
    ) -> OnEntry {
        match found {
            Ok(Some(Record::Variants(variants))) if self.is_served_by(variants.provenance, request) => {
                OnEntry::Select(Select { lookup: self, variants })
            }
            Ok(Some(Record::Variants(_))) => OnEntry::Decided(self.displace(None, request)),
            Ok(Some(Record::Response(entry))) if entry.variant == 0 => {
                OnEntry::Decided(self.on_response(entry, None, request, now))
            }
            Ok(Some(Record::Response(_))) => OnEntry::Decided(self.miss(Reason::Unreadable, None, request)),
            Ok(None) => OnEntry::Decided(self.miss(Reason::Absent, None, request)),
            Err(reason) => OnEntry::Decided(self.miss(reason, None, request)),
        }
    }

    fn on_response(
        self,
        entry: Entry,
        variants: Option<Variants>,
        request: &RequestView<'_>,
        now: SystemTime,
    ) -> Decision {
        if !self.is_served_by(entry.provenance, request) {
            return self.displace(variants, request);
        }
        if self.is_cross_origin && may_lack_cors(&entry, variants.as_ref()) {
            return self.miss_to_replace(Reason::Variant, variants, request);
        }
        let age = entry.age(now);
        let refusal = why_not_usable(&self.directives, &entry, age);
        let not_modified = self.is_conditional && is_not_modified(request.headers, &entry);
        let is_head = self.is_head;
        let length = self.length.unwrap_or(entry.body.len() as u64);
        let selection = if self.is_range && !not_modified {
            selection(request.headers, &entry, length)
        } else {
            Selection::Whole
        };
        let hit = |rule, entry| Hit {
            rule,
            entry,
            length,
            age,
            not_modified,
            is_head,
            selection,
            collapsed: false,
        };
        let answer = if not_modified { Decision::NotModified } else { Decision::Hit };
        match refusal {
            None => answer(hit(self.rule, entry)),
            Some(Reason::Expired) if !entry.forbids_stale() && self.directives.min_fresh.is_none() => {
                let staleness = entry.staleness_at(age);
                let within = |limit: Option<Duration>| limit.is_some_and(|limit| staleness < limit);
                // RFC 9111 §5.2.1.2.
                let max_stale = self.directives.max_stale.map(Duration::from_secs);
                let accepted = max_stale.is_some_and(|limit| staleness <= limit);
                let (refreshable, fallback) =
                    (within(self.rule.stale_while_revalidate), within(self.rule.stale_if_error));
                if refreshable {
                    let hit = hit(Arc::clone(&self.rule), entry);
                    // A stale answer is an answer, so that `only-if-cached` has nothing to say.
                    Decision::Stale(hit, self.into_forward(Reason::Expired, variants, request))
                } else if accepted {
                    answer(hit(self.rule, entry))
                } else if fallback {
                    let hit = hit(Arc::clone(&self.rule), entry);
                    match self.miss(Reason::Expired, variants, request) {
                        Decision::Miss(forward) => {
                            Decision::Miss(Forward { fallback: Some(Box::new(hit)), ..forward })
                        }
                        decision => decision,
                    }
                } else {
                    self.miss(Reason::Expired, variants, request)
                }
            }
            Some(reason) => self.miss(reason, variants, request),
        }
    }

    fn provenance(&self, request: &RequestView<'_>) -> Provenance {
        let (pattern, is_chosen) = (self.pattern, self.rule.is_chosen);
        Provenance { pattern, is_canonical: provenance::is_canonical(request), is_chosen }
    }

    /// Whether what was stored with this provenance may answer. Nearly always the patterns are the same.
    fn is_served_by(&self, stored: Provenance, request: &RequestView<'_>) -> bool {
        stored.pattern == self.pattern || stored.serves(self.provenance(request))
    }

    /// What is stored is another pattern's. Only the canonical spelling replaces it: any client can choose others.
    fn displace(self, variants: Option<Variants>, request: &RequestView<'_>) -> Decision {
        if provenance::is_canonical(request) {
            self.miss(Reason::Pattern, variants, request)
        } else {
            Decision::Bypass(Mark::bypass(&self.rule, Reason::Pattern))
        }
    }

    fn miss(self, reason: Reason, variants: Option<Variants>, request: &RequestView<'_>) -> Decision {
        // RFC 9111 §5.2.1.7.
        if self.directives.only_if_cached {
            return Decision::Unsatisfiable(Unsatisfiable { mark: Mark::miss(&self.rule, reason) });
        }
        // Some services answer other units with 200 and a part (`Range: items=0-24`).
        if self.is_range && !range::is_in_bytes(request.headers) {
            return Decision::Bypass(Mark::bypass(&self.rule, Reason::Range));
        }
        let keeps_range = self.is_range && !range::is_of_the_whole(request.headers);
        Decision::Miss(Forward { keeps_range, ..self.into_forward(reason, variants, request) })
    }

    /// A miss though something is stored, which has to be replaced.
    fn miss_to_replace(
        self,
        reason: Reason,
        variants: Option<Variants>,
        request: &RequestView<'_>,
    ) -> Decision {
        match self.miss(reason, variants, request) {
            Decision::Miss(forward) => Decision::Miss(Forward { intent: Intent::Refresh, ..forward }),
            decision => decision,
        }
    }

    fn into_forward(self, reason: Reason, variants: Option<Variants>, request: &RequestView<'_>) -> Forward {
        let intent = match reason {
            Reason::NoCache
            | Reason::MaxAge
            | Reason::MinFresh
            | Reason::Unreadable
            | Reason::Expired
            | Reason::Pattern => Intent::Refresh,
            // Nothing is there, but somebody may be filling it with an answer that is older than this request.
            _ if self.directives.wants_new() => Intent::Refresh,
            _ => Intent::Fill,
        };
        Forward {
            provenance: self.provenance(request),
            rule: self.rule,
            reason,
            directives: self.directives,
            why_not_storable: None,
            principal: self.principal,
            request: Some(request.headers.clone()),
            is_head: self.is_head,
            is_range: self.is_range,
            keeps_range: false,
            intent,
            variants,
            fallback: None,
        }
    }
}

/// Why a stored response can't be used for this request (RFC 9111 §4), if so.
fn why_not_usable(directives: &RequestDirectives, entry: &Entry, age: Duration) -> Option<Reason> {
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

/// Whether a stored response may be without the fields that let in a request's origin (Fetch §3.3.3), because it answered a
/// request that named none. A handler that says `Vary: Origin` only where there is an `Origin` gives such responses.
fn may_lack_cors(entry: &Entry, variants: Option<&Variants>) -> bool {
    !entry.for_origin
        && !entry.headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN)
        && !variants.is_some_and(|variants| variants.names.contains(&ORIGIN))
}

/// Whether the client has this response already. Preconditions are for what would be a success without them (RFC 9110
/// §13.2.1): a 304 for a stored 404 would bring the client's old copy back to life.
fn is_not_modified(request: &HeaderMap, entry: &Entry) -> bool {
    entry.status.is_success() && request_matches(request, &entry.headers)
}

/// What of a stored response, whose body is `length` bytes long, the request selects. Only a 200 is a whole body to cut (RFC
/// 9110 §14.2), unless its handler refuses ranges (§14.3).
fn selection(request: &HeaderMap, entry: &Entry, length: u64) -> Selection {
    if entry.status == StatusCode::OK
        && !range::is_refused(&entry.headers)
        && range::if_range_holds(request, &entry.headers, entry.stored_at)
    {
        range::select(request, length)
    } else {
        Selection::Whole
    }
}

/// The resource varies: one more record to get (RFC 9111 §4.1).
#[derive(Debug)]
#[must_use]
pub struct Select {
    lookup: Lookup,
    variants: Variants,
}

impl Select {
    /// The request that looks for the variant.
    #[cfg(feature = "runtime")]
    pub(crate) const fn lookup_mut(&mut self) -> &mut Lookup {
        &mut self.lookup
    }

    /// Under which secondary key the request's variant lies.
    #[must_use]
    pub fn secondary_key(&self, request: &RequestView<'_>) -> SecondaryKey {
        self.variants.secondary_key(request.headers)
    }

    /// Decides about what lay under the secondary key.
    #[must_use]
    pub fn on_entry(
        self,
        found: Result<Option<Record>, Reason>,
        request: &RequestView<'_>,
        now: SystemTime,
    ) -> Decision {
        let Self { lookup, variants } = self;
        match found {
            Ok(Some(Record::Response(entry))) if entry.variant == variants.id => {
                lookup.on_response(entry, Some(variants), request, now)
            }
            Ok(None) => lookup.miss(Reason::Variant, Some(variants), request),
            // A variant of an earlier record, which was deleted and its variants with it. It is there all the same, and
            // has to be replaced.
            Ok(Some(_)) => lookup.miss_to_replace(Reason::Variant, Some(variants), request),
            Err(reason) => lookup.miss(reason, Some(variants), request),
        }
    }
}

/// A stored response that answers the request.
#[derive(Debug)]
#[must_use]
pub struct Hit {
    rule: Arc<Rule>,
    entry: Entry,
    /// The length of the stored body, of which the entry holds at least what the answer needs.
    length: u64,
    age: Duration,
    not_modified: bool,
    is_head: bool,
    selection: Selection,
    collapsed: bool,
}

impl Hit {
    /// Says that another request, still running when this one came, got it.
    pub const fn collapsed(mut self) -> Self {
        self.collapsed = true;
        self
    }

    /// The stored response. Of its body no more may be here than the answer needs.
    #[must_use]
    pub const fn entry(&self) -> &Entry {
        &self.entry
    }

    /// What is left of its freshness lifetime, or `None` when that has no end.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.entry.remaining_at(self.age)
    }

    /// The response to send: 304 with few fields if the client has it, 206 or 416 if it asks for a part, else the stored
    /// one.
    #[must_use]
    pub fn into_response(self) -> Response<Bytes> {
        let Self { rule, entry, length, age, not_modified, is_head, selection, collapsed } = self;
        let (remaining, staleness) = (entry.remaining_at(age), entry.staleness_at(age));
        // Whoever gets a stale answer must not go on using it for as long again.
        let stale_too = !entry.forbids_stale() && !entry.is_expired_at(age);
        let revalidation = Revalidation::of(&entry);
        let mut headers = entry.headers;
        // What another deployment stored, under another rule, may lack them.
        let tells_all = entry.tells_credentials && rule.credential_fields.is_empty();
        if !(tells_all || matches!(rule.audience, Audience::Public)) {
            tell_vary(&mut headers, rule.told_fields());
        }
        headers.insert(CACHE_CONTROL, cache_control(&rule, remaining, stale_too, revalidation));
        let mut mark = Mark::hit(rule, remaining, staleness);
        mark.collapsed = collapsed;
        mark.stamp(&mut headers);

        let mut body = entry.body;
        if is_head && !not_modified {
            // Servers send the length of what GET would have sent (RFC 9110 §9.3.2), unless it can have none (§8.6).
            if entry.status != StatusCode::NO_CONTENT {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
            }
            body = Bytes::new();
        }
        let mut response = Response::new(body);
        *response.status_mut() = entry.status;
        *response.headers_mut() = headers;
        if not_modified {
            into_not_modified(response, &mark.rule)
        } else {
            into_selected(response, selection, length, &mark.rule)
        }
    }
}

/// What a request selects of a response: 206 or 416 if it asks for a part. The whole body is `length` bytes long; if less is
/// here, that is the part.
fn into_selected(
    mut response: Response<Bytes>,
    selection: Selection,
    length: u64,
    rule: &Rule,
) -> Response<Bytes> {
    match selection {
        Selection::Whole => {}
        Selection::Part(part) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            response.headers_mut().insert(CONTENT_RANGE, part.content_range());
            if response.body().len() as u64 == length {
                let part = part.cut(response.body());
                *response.body_mut() = part;
            }
        }
        Selection::Unsatisfiable => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            let mut headers =
                only(std::mem::take(response.headers_mut()), |name| is_about_the_exchange(name, rule));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            headers.insert(CONTENT_RANGE, range::unsatisfied(length));
            *response.headers_mut() = headers;
            *response.body_mut() = Bytes::new();
        }
    }
    response
}

/// RFC 9110 §15.4.5: a 304 carries what a 200 would have said about freshness and validators, and no more.
fn into_not_modified(response: Response<Bytes>, rule: &Rule) -> Response<Bytes> {
    let stored = response.into_parts().0.headers;
    let has_etag = stored.contains_key(ETAG);
    let headers = only(stored, |name| is_for_not_modified(name, has_etag, rule));
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    *response.headers_mut() = headers;
    response
}

/// The fields with these names.
pub(crate) fn only(mut fields: HeaderMap, is_kept: impl Fn(&HeaderName) -> bool) -> HeaderMap {
    let others: Vec<_> = fields.keys().filter(|name| !is_kept(name)).cloned().collect();
    for name in others {
        fields.remove(name);
    }
    fields
}

fn is_for_not_modified(name: &HeaderName, has_etag: bool, rule: &Rule) -> bool {
    match name.as_str() {
        "cache-control" | "content-location" | "date" | "etag" | "expires" | "vary" => true,
        "last-modified" => !has_etag,
        _ => is_about_the_exchange(name, rule),
    }
}

/// What the cache says about itself, and what a browser needs to let a script see the answer at all.
fn is_about_the_exchange(name: &HeaderName, rule: &Rule) -> bool {
    match name.as_str() {
        "cache-status"
        | "access-control-allow-origin"
        | "access-control-allow-credentials"
        | "access-control-expose-headers" => true,
        _ => rule.status_header.as_ref() == Some(name),
    }
}

/// `only-if-cached`, and nothing that may be used is cached.
#[derive(Debug)]
#[must_use]
pub struct Unsatisfiable {
    mark: Mark,
}

impl Unsatisfiable {
    /// Why nothing that is stored can be used.
    #[must_use]
    pub const fn reason(&self) -> Option<Reason> {
        self.mark.reason
    }

    /// The 504 to send (RFC 9111 §5.2.1.7).
    #[must_use]
    pub fn into_response(self) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
        self.mark.stamp(response.headers_mut());
        response
    }
}

/// A request for the handler, and what will become of its answer.
#[derive(Debug)]
#[must_use]
pub struct Forward {
    rule: Arc<Rule>,
    reason: Reason,
    directives: RequestDirectives,
    why_not_storable: Option<Reason>,
    principal: Option<Principal>,
    provenance: Provenance,
    /// The fields of a request that reads; a write's answer depends on none.
    request: Option<HeaderMap>,
    is_head: bool,
    /// Whether the answer is cut for the client.
    is_range: bool,
    /// Whether the handler sees which part the client wants.
    keeps_range: bool,
    intent: Intent,
    variants: Option<Variants>,
    /// What answers if the handler fails.
    fallback: Option<Box<Hit>>,
}

/// The fields that make a request conditional, which a fill must not be.
const CONDITIONAL: [HeaderName; 4] = [IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_MATCH, IF_UNMODIFIED_SINCE];

/// The fields that make a request one for a part, or for a part under a condition.
const FOR_A_PART: [HeaderName; 2] = [RANGE, IF_RANGE];

impl Forward {
    /// Why the handler has to run.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        self.reason
    }

    /// What to begin with the store, or `None` when nothing will be stored and the store isn't to be asked.
    #[must_use]
    pub fn intent(&self) -> Option<Intent> {
        match self.rule.kind {
            // An answer to a HEAD has nothing to fill with.
            Kind::Read if self.is_head => None,
            Kind::Write if self.why_not_storable.is_some() => None,
            Kind::Read | Kind::Write => Some(self.intent),
            Kind::EvictKey | Kind::EvictGroup => None,
        }
    }

    /// Why a write-through won't be stored whatever its handler answers, if so.
    #[must_use]
    pub const fn why_not_storable(&self) -> Option<Reason> {
        self.why_not_storable
    }

    /// What the route does to the cache.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.rule.kind
    }

    /// Who asks, for the key of a write.
    #[must_use]
    pub const fn principal(&self) -> Option<Principal> {
        self.principal
    }

    /// Which requests the answer may be for, once it is stored.
    #[must_use]
    pub const fn provenance(&self) -> Provenance {
        self.provenance
    }

    /// Under which secondary key the answer will be stored, if the resource is already known to vary.
    #[must_use]
    pub fn secondary_key(&self) -> Option<SecondaryKey> {
        Some(self.variants.as_ref()?.secondary_key(self.request.as_ref()?))
    }

    /// Answers with a response that somebody else stored while this request was on its way to the handler. `Err` gives
    /// the request back if it can't be answered with that.
    pub fn on_filled(self, record: Option<Record>, now: SystemTime) -> Result<Hit, Self> {
        let (Some(Record::Response(entry)), Some(request)) = (record, &self.request) else {
            return Err(self);
        };
        let expected = self.variants.as_ref().map_or(0, |variants| variants.id);
        let age = entry.age(now);
        if entry.variant != expected
            || !entry.provenance.serves(self.provenance)
            || why_not_usable(&self.directives, &entry, age).is_some()
            || (request.contains_key(ORIGIN) && may_lack_cors(&entry, self.variants.as_ref()))
        {
            return Err(self);
        }
        let (is_head, not_modified) = (self.is_head, is_not_modified(request, &entry));
        let length = entry.body.len() as u64;
        let selection = if self.is_range && !not_modified {
            selection(request, &entry, length)
        } else {
            Selection::Whole
        };
        Ok(Hit { rule: self.rule, entry, length, age, not_modified, is_head, selection, collapsed: false })
    }

    /// Takes from the handler's request what its response must not depend on.
    ///
    /// - What makes a read conditional: it is answered with 304 afterwards, from the whole response. A write's preconditions
    ///   stay.
    /// - A `Range` for the whole, which is cut afterwards. Any other stays: a handler that makes parts need not make the whole.
    /// - On a public route credentials, and on a private one those that the principal doesn't come from. A write keeps
    ///   them, for its handler to check.
    /// - What changes where a request goes, such as `X-Forwarded-Host`, unless the host is part of the key.
    pub fn prepare(&self, request: &mut HeaderMap) {
        if request.is_empty() {
            return;
        }
        if self.rule.kind == Kind::Read && !self.is_head {
            remove_all(request, &CONDITIONAL);
            if !self.keeps_range {
                remove_all(request, &FOR_A_PART);
            }
        }
        if request.keys().any(|name| self.rule.hides(name)) {
            let seen = std::mem::take(request);
            *request = only(seen, |name| !self.rule.hides(name));
        }
    }

    /// Gives up storing: the handler's answer will be passed on with this reason.
    pub fn unstored(self, reason: Reason) -> Mark {
        Mark::refusal(&self.rule, reason)
    }

    /// Goes on to the handler, but for another reason than that nothing was found.
    pub fn because(self, reason: Reason) -> Self {
        Self { reason, ..self }
    }

    /// Whether the handler sees which part the client wants, and may answer with that part alone, which isn't stored.
    #[must_use]
    pub const fn keeps_range(&self) -> bool {
        self.keeps_range
    }

    /// Whether one run of the handler serves every request that misses at the same time. A request that asks for a
    /// fresher answer than the stored one never takes part in a run that began before it.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.intent().is_some()
            && !self.directives.wants_new()
            && !matches!(self.reason, Reason::NoCache | Reason::MaxAge | Reason::MinFresh | Reason::Down)
    }

    /// Whether the run of this request would keep others waiting that don't get its answer: it isn't shared, and the canonical
    /// spelling of its path may be another route's.
    #[must_use]
    pub fn holds_up_others(&self) -> bool {
        self.intent().is_some()
            && !self.is_shared()
            && !self.provenance.is_canonical
            && matches!(self.reason, Reason::Absent | Reason::Variant)
    }

    /// Another request ran the handler, which failed: what is stored answers though it is stale, if that is allowed.
    /// `Err` gives the request back.
    pub fn or_fallback(mut self) -> Result<Hit, Self> {
        self.fallback.take().map(|hit| *hit).ok_or(self)
    }

    /// The handler returned an error, which will be answered with this status, instead of a response: nothing is
    /// stored, and maybe what is stored answers though it is stale (RFC 5861 §4).
    #[must_use]
    pub fn on_error(self, status: StatusCode) -> Option<Hit> {
        self.fallback.filter(|_| allows_stale_if_error(status)).map(|hit| *hit)
    }

    /// Decides about the handler's answer, before its body.
    #[must_use]
    pub fn on_response(self, response: &response::Parts, length: BodyLength) -> OnResponse {
        match self.rule.kind {
            Kind::Read => self.on_read(response, length),
            Kind::Write => self.on_written(response, length),
            Kind::EvictKey | Kind::EvictGroup => self.on_evicting(response),
        }
    }

    fn on_read(mut self, response: &response::Parts, length: BodyLength) -> OnResponse {
        if allows_stale_if_error(response.status)
            && let Some(hit) = self.fallback.take()
        {
            return OnResponse::ServeStale(*hit);
        }
        let refusal = if response.headers.contains_key(SET_COOKIE) {
            // Before all else: it is what the next cache has to be told about.
            Some(Reason::SetCookie)
        } else if self.is_head {
            Some(Reason::Head)
        } else if self.keeps_range && is_for_a_part(response) {
            Some(Reason::Range)
        } else if self.rule.ttl_of(response.status).is_none() {
            Some(Reason::Status)
        } else {
            why_not_storable(response, length, &self.rule)
        };
        match (refusal, selecting_fields(&response.headers), length) {
            (Some(reason), ..) => self.pass_read(reason, response, length),
            (None, Err(()), _) => self.pass_read(Reason::Vary, response, length),
            (None, Ok(_), BodyLength::Unknown) => self.pass_read(Reason::Stream, response, length),
            (None, Ok(names), BodyLength::Known(length)) => {
                OnResponse::Admit(Admit { forward: self, names, length })
            }
        }
    }

    /// The handler was not shown the request's conditions, so somebody else has to see to them (RFC 9110 §13.2.1).
    fn pass_read(&self, reason: Reason, response: &response::Parts, length: BodyLength) -> OnResponse {
        let matches = |request| request_matches(request, &response.headers);
        let not_modified = response.status.is_success() && self.request.as_ref().is_some_and(matches);
        // With `If-Range` the whole is always right (RFC 9110 §14.2).
        let wants_part = self.is_range
            && !self.keeps_range
            && !self.request.as_ref().is_some_and(|request| request.contains_key(IF_RANGE));
        let part = match length {
            BodyLength::Known(length)
                if wants_part
                    && response.status == StatusCode::OK
                    && !range::is_refused(&response.headers) =>
            {
                range::whole_as_part(length)
            }
            _ => None,
        };
        let mark = Mark::refusal(&self.rule, reason);
        OnResponse::Pass(Pass { mark, evicts: false, not_modified, part })
    }

    fn pass(&self, reason: Reason, evicts: bool) -> OnResponse {
        let mark = Mark::refusal(&self.rule, reason);
        OnResponse::Pass(Pass { mark, evicts, not_modified: false, part: None })
    }

    /// Success stores or evicts. A refusal leaves everything as it was, and an unknown outcome evicts.
    fn on_written(self, response: &response::Parts, length: BodyLength) -> OnResponse {
        if !is_success(response.status) {
            return self.pass(Reason::Failed, leaves_outcome_unknown(response.status));
        }
        let representation = [StatusCode::OK, StatusCode::CREATED, StatusCode::NON_AUTHORITATIVE_INFORMATION];
        let refusal = self
            .why_not_storable
            .or_else(|| (!representation.contains(&response.status)).then_some(Reason::Status))
            .or_else(|| why_not_storable(response, length, &self.rule))
            .or_else(|| (length == BodyLength::Known(0)).then_some(Reason::Empty))
            .or_else(|| (selecting_fields(&response.headers) != Ok(Vec::new())).then_some(Reason::Vary));
        match (refusal, length) {
            (Some(reason), _) => self.pass(reason, true),
            (None, BodyLength::Unknown) => self.pass(Reason::Stream, true),
            (None, BodyLength::Known(length)) => {
                OnResponse::Admit(Admit { forward: self, names: Vec::new(), length })
            }
        }
    }

    fn on_evicting(self, response: &response::Parts) -> OnResponse {
        let success = is_success(response.status);
        let evicts = success || leaves_outcome_unknown(response.status);
        self.pass(if success { self.reason } else { Reason::Failed }, evicts)
    }
}

/// RFC 5861 §4: these are the errors that a stale response may stand in for.
pub(crate) fn allows_stale_if_error(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

/// Whether an answer with this status says that what is stored is no longer so, though it can't be stored itself. That
/// somebody isn't allowed to see it, or asks too often, says nothing about it.
#[must_use]
pub fn invalidates(status: StatusCode) -> bool {
    is_success(status) || matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE)
}

/// Whether a write answered with this status may have changed something all the same. A timeout or an error can come
/// between the change and the answer (RFC 9110 §15.5.9, §15.6); any other 4xx is a refusal.
#[must_use]
pub fn leaves_outcome_unknown(status: StatusCode) -> bool {
    status == StatusCode::REQUEST_TIMEOUT || status.as_u16() >= 500
}

/// A handler that redirects after a change has made the change.
fn is_success(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

/// Whether a response is for one `Range` only (RFC 9110 §14.4, §15.3.7, §15.5.17).
fn is_for_a_part(response: &response::Parts) -> bool {
    matches!(response.status, StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE)
        || response.headers.contains_key(CONTENT_RANGE)
}

/// Why a response may not be stored, whatever its status (RFC 9111 §3), if so.
fn why_not_storable(response: &response::Parts, length: BodyLength, rule: &Rule) -> Option<Reason> {
    let directives = ResponseDirectives::of(&response.headers);
    // On a private route that is what the route says itself.
    let is_private = directives.private && !rule.audience.is_private();
    if response.headers.contains_key(SET_COOKIE) {
        Some(Reason::SetCookie)
    } else if directives.no_store || is_private || directives.no_cache {
        Some(Reason::Withheld)
    } else {
        matches!(length, BodyLength::Known(length) if length > rule.max_body).then_some(Reason::Size)
    }
}

/// A response that is passed on as it is.
#[derive(Debug)]
#[must_use]
pub struct Pass {
    mark: Mark,
    evicts: bool,
    not_modified: bool,
    part: Option<Part>,
}

impl Pass {
    /// Whether what is stored under the key, or in the group, must be evicted first.
    #[must_use]
    pub const fn evicts(&self) -> bool {
        self.evicts
    }

    /// Whether the client has this response already: answer with [`as_not_modified`](Self::as_not_modified) and without
    /// the body.
    #[must_use]
    pub const fn is_not_modified(&self) -> bool {
        self.not_modified
    }

    /// Makes a 304 of the response: everything stays but what describes the body that isn't sent (RFC 9110 §15.4.5). What the
    /// handler said to this client, a cookie among it, is nowhere else.
    pub fn as_not_modified(&self, response: &mut response::Parts) {
        response.status = StatusCode::NOT_MODIFIED;
        for name in OF_THE_BODY {
            response.headers.remove(name);
        }
        if response.headers.contains_key(ETAG) {
            response.headers.remove(LAST_MODIFIED);
        }
    }

    /// Makes a 206 of the response if the client asked for `bytes=0-`, which the handler didn't see. The body stays as it is:
    /// that part is all of it (RFC 9110 §15.3.7).
    pub fn as_part(&self, response: &mut response::Parts) {
        if let Some(part) = self.part.filter(|_| !self.not_modified) {
            response.status = StatusCode::PARTIAL_CONTENT;
            response.headers.insert(CONTENT_RANGE, part.content_range());
        }
    }

    /// What the cache says about itself on it.
    pub const fn mark(&self) -> &Mark {
        &self.mark
    }
}

/// The fields that a 304 has no use for.
const OF_THE_BODY: [HeaderName; 7] = [
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    TRAILER,
    TRANSFER_ENCODING,
];

/// A response whose body is to be collected and stored.
#[derive(Debug)]
#[must_use]
pub struct Admit {
    forward: Forward,
    names: Vec<HeaderName>,
    length: u64,
}

impl Admit {
    /// How long the body says it is, in bytes. Anything else is [broken](Self::on_broken_body).
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// The body could not be collected whole: pass on what there is. After a write, that means an eviction.
    pub fn on_broken_body(self) -> Pass {
        let rule = &self.forward.rule;
        Pass {
            mark: Mark::refusal(rule, Reason::Body),
            evicts: rule.kind == Kind::Write,
            not_modified: false,
            part: None,
        }
    }

    /// Makes the entry. `now` is when the handler answered.
    pub fn on_body(self, mut parts: response::Parts, body: Bytes, now: SystemTime) -> Admitted {
        let Self { forward, names, .. } = self;
        let rule = forward.rule;
        let known = forward.variants.as_ref().map_or(&[][..], |variants| &variants.names);
        tell_vary(&mut parts.headers, names.iter().chain(known).chain(rule.told_fields()));
        let etag = parts.headers.entry(ETAG).or_insert_with(|| weak_etag(&body)).clone();
        let (status, ttl) = match rule.kind {
            // What a GET would answer now is this representation, whatever the write said about itself.
            Kind::Write => (StatusCode::OK, rule.ttl),
            _ => (parts.status, rule.ttl_of(parts.status).unwrap_or(rule.ttl)),
        };
        let ttl = ttl.map(|ttl| jittered(ttl, rule.jitter, &etag, now));
        let may_be_cut = status == StatusCode::OK && !body.is_empty();
        let headers = match rule.kind {
            Kind::Write => {
                let mut fields = representation_fields(&parts.headers);
                tell_vary(&mut fields, rule.told_fields());
                if may_be_cut {
                    tell_ranges(&mut fields);
                }
                fields
            }
            _ => {
                if may_be_cut {
                    tell_ranges(&mut parts.headers);
                }
                storable_fields(&parts.headers, &rule)
            }
        };
        let ResponseDirectives { must_revalidate, proxy_revalidate, .. } =
            ResponseDirectives::of(&parts.headers);
        let provenance = forward.provenance;
        let request = forward.request.unwrap_or_default();
        let entry = Entry {
            status,
            headers,
            body,
            stored_at: now,
            ttl,
            variant: 0,
            must_revalidate,
            proxy_revalidate,
            provenance,
            for_origin: request.contains_key(ORIGIN),
            tells_credentials: matches!(rule.audience, Audience::Undeclared),
        };
        let validators =
            if rule.kind == Kind::Read { Validators::of(&request) } else { Validators::default() };
        Admitted {
            rule,
            reason: forward.reason,
            entry,
            parts,
            names,
            known: forward.variants,
            request,
            is_range: forward.is_range,
            validators,
        }
    }
}

/// Says that parts are cut (RFC 9110 §14.3), unless the handler has said what it wants. Caches such as nginx ask for no part
/// of what doesn't say so, and cut none.
pub(crate) fn tell_ranges(response: &mut HeaderMap) {
    response.entry(ACCEPT_RANGES).or_insert(HeaderValue::from_static("bytes"));
}

/// A response with the entry made of it.
#[derive(Debug)]
#[must_use]
pub struct Admitted {
    rule: Arc<Rule>,
    reason: Reason,
    entry: Entry,
    parts: response::Parts,
    /// By what the response varies, and what was known about that before.
    names: Vec<HeaderName>,
    known: Option<Variants>,
    request: HeaderMap,
    is_range: bool,
    validators: Validators,
}

impl Admitted {
    /// How long the store shall keep it: its freshness lifetime, and for as long after that as it may still be of use.
    /// `None` means without end.
    #[must_use]
    pub fn retention(&self) -> Option<Duration> {
        let stale_for = if self.entry.forbids_stale() { Duration::ZERO } else { self.rule.stale_for() };
        self.entry.ttl.map(|ttl| ttl.saturating_add(stale_for))
    }

    /// Where the entry belongs. `fresh_id` becomes the id of a new [`Variants`] record, if there must be one.
    pub fn place(&mut self, fresh_id: u64) -> Placement {
        let key = |variants: &Variants| variants.secondary_key(&self.request);
        let (placement, variant) = Placement::of(self.known.as_ref(), &self.names, fresh_id, key);
        self.entry.variant = variant;
        // The record leads only the requests to its variants that they may answer.
        let provenance = self.entry.provenance;
        match placement {
            Placement::FirstVariant(secondary, variants) => {
                Placement::FirstVariant(secondary, variants.by(provenance))
            }
            Placement::Widened(secondary, variants, instead_of) => {
                Placement::Widened(secondary, variants.by(provenance), instead_of)
            }
            placement => placement,
        }
    }

    /// How long the store shall keep the record that leads to the variants: at least as long as any of them.
    #[must_use]
    pub fn variants_retention(&self) -> Option<Duration> {
        self.rule.longest_retention()
    }

    /// Whether a write's answer may replace what is stored. One that isn't spelled canonically never replaces what another
    /// pattern stored, and one answer can't stand for all variants: then an eviction has to do.
    #[must_use]
    pub fn may_replace(&self, stored: &Record) -> bool {
        let provenance = self.entry.provenance;
        match stored {
            Record::Variants(_) => false,
            Record::Response(entry) => provenance.is_canonical || entry.provenance.serves(provenance),
        }
    }

    /// The record for the store.
    #[must_use]
    pub fn record(&self) -> Bytes {
        self.entry.encode()
    }

    /// Why the handler had to run, or why its answer isn't stored.
    #[must_use]
    pub const fn reason(&self, outcome: CommitResult) -> Reason {
        match (outcome, self.reason) {
            (CommitResult::Revoked, Reason::Busy | Reason::Waited | Reason::Spelling)
            | (CommitResult::Stored | CommitResult::Failed, _) => self.reason,
            (CommitResult::Revoked, _) => Reason::Evicted,
        }
    }

    /// The response for the client. What could not be stored because it was evicted meanwhile may be outdated already,
    /// so nobody is told to keep it; a store that failed changes nothing for the client.
    #[must_use]
    pub fn into_response(self, outcome: CommitResult) -> Response<Bytes> {
        let reason = self.reason(outcome);
        let Self { rule, entry, mut parts, request, is_range, validators, .. } = self;
        let control = match outcome {
            CommitResult::Revoked => no_cache(&rule),
            CommitResult::Stored | CommitResult::Failed => {
                cache_control(&rule, entry.ttl, !entry.forbids_stale(), Revalidation::of(&entry))
            }
        };
        parts.headers.insert(CACHE_CONTROL, control);
        parts.headers.remove(EXPIRES);
        parts.headers.remove(AGE);
        let mut mark = Mark::miss(&rule, reason);
        mark.stored = outcome == CommitResult::Stored;
        mark.stamp(&mut parts.headers);
        if rule.kind == Kind::Write {
            parts.extensions.insert(WrittenThrough);
        }
        let not_modified = parts.status.is_success() && validators.match_response(&parts.headers);
        let length = entry.body.len() as u64;
        let selection =
            if is_range && !not_modified { selection(&request, &entry, length) } else { Selection::Whole };
        if selection != Selection::Whole {
            // The handler's is that of the whole.
            parts.headers.remove(CONTENT_LENGTH);
        }
        let response = Response::from_parts(parts, entry.body);
        if not_modified {
            into_not_modified(response, &rule)
        } else {
            into_selected(response, selection, length, &rule)
        }
    }
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitResult {
    /// It is stored.
    Stored,
    /// It was evicted or overwritten while the handler ran.
    Revoked,
    /// The store failed, or wasn't asked.
    Failed,
}

/// Lies in the extensions of a response whose status a write-through has stated.
#[derive(Clone, Copy, Debug)]
struct WrittenThrough;

/// What the cache says about itself on a response that it did not make.
#[derive(Clone, Debug)]
#[must_use]
pub struct Mark {
    rule: Arc<Rule>,
    word: &'static str,
    reason: Option<Reason>,
    /// What remains of the freshness lifetime, in seconds; negative once it is over (RFC 9211 §2.3).
    ttl: Option<i64>,
    stored: bool,
    collapsed: bool,
}

impl Mark {
    const fn new(rule: Arc<Rule>, word: &'static str, reason: Option<Reason>) -> Self {
        Self { rule, word, reason, ttl: None, stored: false, collapsed: false }
    }

    fn bypass(rule: &Arc<Rule>, reason: Reason) -> Self {
        Self::new(Arc::clone(rule), "BYPASS", Some(reason))
    }

    /// The cache was asked, but the answer is none of its business: that is no miss, which promises a hit next time.
    fn refusal(rule: &Arc<Rule>, reason: Reason) -> Self {
        Self::new(Arc::clone(rule), "BYPASS", Some(reason))
    }

    fn miss(rule: &Arc<Rule>, reason: Reason) -> Self {
        Self::new(Arc::clone(rule), "MISS", Some(reason))
    }

    fn hit(rule: Arc<Rule>, remaining: Option<Duration>, staleness: Duration) -> Self {
        let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        let ttl = remaining.map(|remaining| seconds(remaining).saturating_sub(seconds(staleness)));
        Self { ttl, ..Self::new(rule, "HIT", None) }
    }

    /// Why.
    #[must_use]
    pub const fn reason(&self) -> Option<Reason> {
        self.reason
    }

    /// Writes it into a response. An eviction around or inside of a write-through leaves the status to that one, which says
    /// what became of the answer.
    #[cfg(feature = "runtime")]
    pub(crate) fn stamp_response<B>(&self, response: &mut Response<B>) {
        match self.rule.kind {
            Kind::EvictKey | Kind::EvictGroup if response.extensions().get::<WrittenThrough>().is_some() => {
                if self.rule.cache_status {
                    response.headers_mut().append(CACHE_STATUS, self.cache_status());
                }
            }
            kind => {
                self.stamp(response.headers_mut());
                if kind == Kind::Write {
                    response.extensions_mut().insert(WrittenThrough);
                }
            }
        }
    }

    /// Writes it into the fields of a response.
    pub fn stamp(&self, headers: &mut HeaderMap) {
        if let Some(name) = &self.rule.status_header {
            headers.insert(name, HeaderValue::from_static(self.word));
        }
        if self.rule.cache_status {
            headers.append(CACHE_STATUS, self.cache_status());
        }
        let is_personal = matches!(
            self.reason,
            Some(
                Reason::Authorization
                    | Reason::Cookie
                    | Reason::Credentials
                    | Reason::Anonymous
                    | Reason::SetCookie
            )
        );
        // A hit's are in the stored response.
        if self.word != "HIT" {
            tell_vary(headers, self.rule.told_fields());
        }
        // The answer to an eviction isn't stored anywhere, and a write-through around it may store what its handler said.
        if matches!(self.rule.kind, Kind::EvictKey | Kind::EvictGroup) {
            return;
        }
        // What is not safe to store here isn't safe in a CDN either, which may keep what says nothing about itself (RFC
        // 9111 §4.2.2). The handler's own word stands.
        if self.word == "BYPASS" && !headers.contains_key(CACHE_CONTROL) {
            if is_personal {
                headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            } else if self.rule.audience.is_private() {
                headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
            }
        }
    }

    /// RFC 9211 §2.
    fn cache_status(&self) -> HeaderValue {
        let mut text = String::from("Larder");
        match self.reason {
            // RFC 9211 §2.6: the request was held back for another one that was forwarded.
            None if self.collapsed => text.push_str("; fwd=miss; collapsed"),
            None => {
                text.push_str("; hit");
                if let Some(ttl) = self.ttl {
                    text.push_str(&format!("; ttl={ttl}"));
                }
            }
            Some(reason) => {
                let forward = match reason {
                    Reason::Absent => "uri-miss",
                    Reason::Variant => "vary-miss",
                    Reason::NoCache | Reason::MaxAge | Reason::MinFresh => "request",
                    Reason::Expired => "stale",
                    Reason::Method => "method",
                    _ if self.word == "BYPASS" => "bypass",
                    _ => "miss",
                };
                text.push_str(&format!("; fwd={forward}"));
                if self.stored {
                    text.push_str("; stored");
                }
                text.push_str(&format!("; detail={reason}"));
            }
        }
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("Larder"))
    }
}

/// What a handler's `Cache-Control` says about stale responses, which is passed on (RFC 9111 §5.2.2.2, §5.2.2.8).
#[derive(Clone, Copy, Debug)]
struct Revalidation {
    must: bool,
    proxy: bool,
}

impl Revalidation {
    const fn of(entry: &Entry) -> Self {
        Self { must: entry.must_revalidate, proxy: entry.proxy_revalidate }
    }
}

/// `Cache-Control` on a route's responses. Without an end there is nothing to count down: ask each time, with the ETag.
///
/// `stale_too` adds for how long others may use the response after that (RFC 5861).
fn cache_control(
    rule: &Rule,
    remaining: Option<Duration>,
    stale_too: bool,
    revalidation: Revalidation,
) -> HeaderValue {
    let told = match (remaining, rule.downstream_ttl) {
        (Some(remaining), Some(downstream)) => Some(remaining.min(downstream)),
        (remaining, downstream) => remaining.or(downstream),
    };
    let Some(told) = told else { return no_cache(rule) };
    // Even the greatest numbers leave room. On the stack, so that the value is the only allocation.
    let mut text = [0; 160];
    let mut rest = &mut text[..];
    let mut push = |words: &str, time: Option<Duration>| {
        let mut digits = itoa::Buffer::new();
        let seconds = time.map_or("", |time| digits.format(time.as_secs()));
        rest.write_all(words.as_bytes()).and_then(|()| rest.write_all(seconds.as_bytes())).is_ok()
    };
    let begins = match rule.audience {
        Audience::Undeclared => "max-age=",
        // RFC 9111 §3.5: shared caches may use it for requests with `Authorization`, too.
        Audience::Public => "public, max-age=",
        Audience::Private(..) => "private, max-age=",
    };
    push(begins, Some(told));
    let stale = [
        (", stale-while-revalidate=", rule.stale_while_revalidate),
        (", stale-if-error=", rule.stale_if_error),
    ];
    for (name, limit) in stale.into_iter().filter(|(_, limit)| stale_too && limit.is_some()) {
        push(name, limit);
    }
    for (words, is_said) in
        [(", must-revalidate", revalidation.must), (", proxy-revalidate", revalidation.proxy)]
    {
        if is_said {
            push(words, None);
        }
    }
    let len = 160 - rest.len();
    HeaderValue::from_bytes(&text[..len]).unwrap_or_else(|_| no_cache(rule))
}

/// Keep it, but ask each time.
fn no_cache(rule: &Rule) -> HeaderValue {
    HeaderValue::from_static(if rule.audience.is_private() { "private, no-cache" } else { "no-cache" })
}

/// Shortens a lifetime by a fraction between nothing and `jitter`, drawn from the entry itself.
fn jittered(ttl: Duration, jitter: f64, etag: &HeaderValue, now: SystemTime) -> Duration {
    if jitter <= 0.0 {
        return ttl;
    }
    let nanos = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let mut hasher = blake3::Hasher::new();
    hasher.update(etag.as_bytes()).update(&nanos.to_be_bytes());
    let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
    let draw = f64::from(u32::from_be_bytes([a, b, c, d])) / f64::from(u32::MAX);
    ttl.mul_f64(1.0 - jitter.min(1.0) * draw).max(Duration::from_millis(1))
}

/// What of a write's answer describes the representation. Never `Location` and the like: the next reader didn't write.
fn representation_fields(response: &HeaderMap) -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(8);
    for name in [ACCEPT_RANGES, CONTENT_TYPE, CONTENT_ENCODING, CONTENT_LANGUAGE, ETAG, LAST_MODIFIED] {
        for value in response.get_all(&name) {
            fields.append(name.clone(), value.clone());
        }
    }
    fields
}

/// Everything but what belongs to one connection (RFC 9110 §7.6.1), in itself or because `Connection` lists it, or to one
/// proxy (§11.7).
pub(crate) fn end_to_end(response: &HeaderMap) -> HeaderMap {
    let mut fields = response.clone();
    for value in response.get_all(CONNECTION) {
        for name in list(value.as_bytes()).filter_map(|name| HeaderName::from_bytes(name).ok()) {
            fields.remove(name);
        }
    }
    remove_all(&mut fields, &HOP_BY_HOP);
    fields
}

/// What belongs to one connection, or to one proxy.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Removes whatever is there of these. Each removal hashes a name, and mostly none of them is there.
fn remove_all(fields: &mut HeaderMap, names: &[HeaderName]) {
    if fields.keys().any(|name| names.contains(name)) {
        for name in names {
            fields.remove(name);
        }
    }
}

/// Everything but what belongs to one connection, one moment or this cache itself (RFC 9111 §3.1).
fn storable_fields(response: &HeaderMap, rule: &Rule) -> HeaderMap {
    /// A stored `Date` would be aged twice downstream; servers write a new one.
    const PASSING: [HeaderName; 7] =
        [CONTENT_LENGTH, DATE, AGE, EXPIRES, CACHE_CONTROL, SET_COOKIE, CACHE_STATUS];

    let mut fields = end_to_end(response);
    remove_all(&mut fields, &PASSING);
    if let Some(name) = &rule.status_header {
        fields.remove(name);
    }
    fields
}
