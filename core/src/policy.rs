//! The decisions of a route's cache: a state machine without I/O and without a clock.
//!
//! Each state has one transition, which consumes the state. Time is an argument. The driver owns the store and the
//! handler, and carries out each decision:
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
//! Forward ─────on_filled──▶ Hit                     answer with the response that another request stored
//! Forward ─────on_response▶ ServeStale(Hit)         the handler failed: answer with what is stored
//! (or on_error)           ▶ Pass                    answer with the response as it is, after an eviction if it says so
//!                         ▶ Admit                   collect the body
//! Admit ───────on_body────▶ Admitted                store it, then answer
//! ```
//!
//! Every path past the cache has a [`Reason`]. A test draws the diagram in ARCHITECTURE.md from observed transitions.
//!
//! The entry passed to a `Lookup` needn't hold the whole body: `Lookup::needs` returns the part that the response
//! takes.
//!
//! This module leaves out keys ([`Rule::key`]), the requests that share an entry ([`Provenance`]), waiting for other
//! requests, and unconfirmed writes of the store. The exchange handles the last two.

#![expect(
    clippy::large_enum_variant,
    clippy::result_large_err,
    reason = "a state lives for one request and is moved"
)]

mod admitted;
mod cache_status;
mod forward;
mod hit;
pub(crate) mod rule;
mod safety;
mod stale_responses;
pub(crate) mod status_header;
mod storable_statuses;
pub(crate) mod tag_rule;

use std::sync::Arc;
use std::time::SystemTime;

#[cfg(feature = "runtime")]
use bytes::Bytes;
use http::Method;
use http::header::HeaderName;

use crate::credentials::replaces_target;
use crate::headers::cache_control::RequestDirectives;
use crate::headers::range::{self, Selection};
use crate::key::SecondaryKey;
use crate::policy::rule::{Audience, Kind, Principal, PrincipalSecret, Rule};
use crate::policy::stale_responses::StaleUse;
use crate::provenance::{self, Provenance};
use crate::reason::Reason;
#[cfg(feature = "runtime")]
use crate::record::template::HeadUse;
use crate::record::variants::Variants;
use crate::record::{Entry, Record};
use crate::request::{RequestFields, RequestView};
use crate::store::Intent;
use hit::selection;
use safety::{
    credentials_without_audience, is_not_modified, may_lack_cors, not_for_caches, why_not_usable,
    without_certain_handler,
};

pub use crate::record::variants::Placement;
pub use admitted::{Admitted, CommitResult};
pub use cache_status::CacheStatus;
pub use forward::{Admit, Forward, OnResponse, Pass};
pub use hit::{Hit, Unsatisfiable};
pub use safety::{BodyLength, invalidates, leaves_outcome_unknown};
pub use tag_rule::{TagRule, TagsOf};

pub(crate) use hit::add_accept_ranges;
pub(crate) use safety::{allows_stale_if_error, has_content};

/// The decision engine of one route.
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
/// // Nothing is stored: the engine decides to run the handler, and then to store its response.
/// let request = Request::get("/hello").body(())?;
/// let view = RequestView::from(&request);
/// let OnRequest::Lookup(lookup) = policy.on_request(&view) else { panic!() };
/// let OnEntry::Decided(Decision::Miss(forward)) = lookup.on_entry(Ok(None), &view, now) else { panic!() };
/// let (parts, body) = Response::new("hello").into_parts();
/// let OnResponse::Admit(admit) = forward.on_response(&parts, BodyLength::Known(5), now) else { panic!() };
/// let admitted = admit.on_body(parts, body.into(), now);
/// let record = Record::decode(&admitted.record());
///
/// // The next request is a hit.
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

/// The decision about a request.
#[derive(Debug)]
pub enum OnRequest {
    /// Run the handler; the cache takes no part.
    Bypass(CacheStatus),
    /// Look for a stored response.
    Lookup(Lookup),
    /// Run the handler; if it succeeds, store or evict.
    Forward(Forward),
}

/// The decision about a record from the store.
#[derive(Debug)]
pub enum OnEntry {
    /// The request is decided.
    Decided(Decision),
    /// The resource varies: get the record under the secondary key, and decide again.
    Select(Select),
}

/// The decision how to answer a request, after the lookup.
#[derive(Debug)]
pub enum Decision {
    /// Answer with the stored response.
    Hit(Hit),
    /// Answer 304: the client already has the response.
    NotModified(Hit),
    /// Answer with the stale stored response, and refresh it in the background (RFC 5861 §3).
    Stale(Hit, Forward),
    /// Answer 504: the client accepts only a stored response.
    Unsatisfiable(Unsatisfiable),
    /// Run the handler; the cache takes no part. The stored response belongs to another pattern and this request may
    /// not replace it, or the request asks for a part in another unit than bytes.
    Bypass(CacheStatus),
    /// Run the handler.
    Miss(Forward),
}

impl CachePolicy {
    /// Creates the engine for a route.
    #[must_use]
    pub fn new(rule: Arc<Rule>) -> Self {
        Self { rule, secret: PrincipalSecret::default() }
    }

    /// Hashes principals with this secret.
    #[must_use]
    pub fn with_secret(self, secret: PrincipalSecret) -> Self {
        Self { secret, ..self }
    }

    /// Returns the rule of the route.
    #[must_use]
    pub const fn rule(&self) -> &Arc<Rule> {
        &self.rule
    }

    /// Decides about a request. This is the first transition.
    #[must_use]
    pub fn on_request(&self, request: &RequestView<'_>) -> OnRequest {
        match self.rule.kind {
            Kind::Read => self.on_read(request),
            Kind::Write | Kind::EvictKey | Kind::EvictGroup | Kind::EvictTags => self.on_write(request),
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
            return OnRequest::Bypass(CacheStatus::bypass(&self.rule, reason));
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
                // RFC 9110 §14.2: `Range` has no meaning for methods other than GET.
                is_range: present.range && request.method == Method::GET,
                length: None,
            }),
            Err(reason) => OnRequest::Bypass(CacheStatus::bypass(&self.rule, reason)),
        }
    }

    /// The cache never answers a write, and its handler evaluates the preconditions.
    fn on_write(&self, request: &RequestView<'_>) -> OnRequest {
        // Safe methods change nothing (RFC 9110 §9.2.1). A layer over a whole router sees them too. A GET evicts, because
        // its author said so.
        if request.method.is_safe() && request.method != Method::GET {
            return OnRequest::Bypass(CacheStatus::bypass(&self.rule, Reason::Method));
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
            // A group or a tag is evicted whole, for every principal.
            Kind::EvictGroup | Kind::EvictTags => Ok(None),
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
                is_conditional: false,
                is_cross_origin: false,
                is_range: false,
                keeps_range: false,
                intent: Intent::Write,
                variants: None,
                fallback: None,
            }),
            Err(reason) => OnRequest::Bypass(CacheStatus::bypass(&self.rule, reason)),
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

/// A request that may be answered from the cache.
#[derive(Debug)]
#[must_use]
pub struct Lookup {
    rule: Arc<Rule>,
    directives: RequestDirectives,
    principal: Option<Principal>,
    /// A hash of the router's pattern, or 0.
    pattern: u64,
    is_conditional: bool,
    is_head: bool,
    is_range: bool,
    is_cross_origin: bool,
    /// The length of the stored body, if the entry passed next holds only the part that this request needs.
    length: Option<u64>,
}

/// The part of a stored body that a response needs.
#[cfg(feature = "runtime")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing: the response is for a HEAD, a 304 or a 416.
    Nothing,
    /// The bytes at these positions: the response is a 206.
    Part(std::ops::Range<u64>),
    /// The whole body.
    Whole,
}

impl Lookup {
    /// Returns the principal of the request, for the key.
    #[must_use]
    pub const fn principal(&self) -> Option<Principal> {
        self.principal
    }

    /// Ends the lookup, because the request has no key.
    pub fn without_key(self) -> CacheStatus {
        CacheStatus::bypass(&self.rule, Reason::Keyless)
    }

    /// Returns `true` if any whole stored response answers: the request has no directives, asks for no part, and is no
    /// HEAD.
    ///
    /// Such a request may be predicted to miss, without a lookup. The store is then asked for a lease, and returns a
    /// stored response if there is one.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.directives == RequestDirectives::default() && !self.is_head && !self.is_range
    }

    /// Returns `true` if an answer from the store may need less than a whole body.
    #[cfg(feature = "runtime")]
    pub(crate) const fn may_need_less(&self) -> bool {
        self.is_head || self.is_conditional || self.is_range
    }

    /// Decodes a record, as far as an answer to this request needs it.
    #[cfg(feature = "runtime")]
    pub(crate) fn decode(&self, bytes: &Bytes) -> Option<Record> {
        // The rules about ranges and about CORS read the fields.
        if self.is_range || self.is_cross_origin {
            return Record::decode(bytes);
        }
        let answer = if self.is_conditional { HeadUse::MaybeNotModified } else { HeadUse::Response };
        Record::decode_for(bytes, answer, &*self.rule)
    }

    /// Returns the part of the body that the response needs, if the body is `length` bytes long. The entry's own body
    /// isn't read.
    #[cfg(feature = "runtime")]
    pub(crate) fn needs(&self, entry: &Entry, length: u64, request: &RequestView<'_>) -> Needs {
        if self.is_head
            || (self.is_conditional && is_not_modified(request.headers, entry, &self.rule.templates))
        {
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

    /// Announces that the next entry holds only the part that it [needs](Self::needs) of a body of this length.
    #[cfg(feature = "runtime")]
    pub(crate) const fn expect_excerpt(&mut self, length: u64) {
        self.length = Some(length);
    }

    /// Decides about the record under the key. `Err` is the reason for which it could not be read.
    #[inline]
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
        let not_modified =
            self.is_conditional && is_not_modified(request.headers, &entry, &self.rule.templates);
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
        let answer = |hit| if not_modified { Decision::NotModified(hit) } else { Decision::Hit(hit) };
        let stale_use = refusal
            .filter(|reason| *reason == Reason::Expired)
            .and_then(|_| StaleUse::of(&self.rule, &self.directives, &entry, age));
        match (refusal, stale_use) {
            (None, _) | (_, Some(StaleUse::Accepted)) => answer(hit(self.rule, entry)),
            (Some(reason), None) => self.miss(reason, variants, request),
            (Some(reason), Some(StaleUse::WhileRevalidating)) => {
                let hit = hit(Arc::clone(&self.rule), entry);
                // A stale response counts as stored, so `only-if-cached` doesn't apply.
                Decision::Stale(hit, self.into_forward(reason, variants, request))
            }
            (Some(reason), Some(StaleUse::IfError)) => {
                let hit = hit(Arc::clone(&self.rule), entry);
                match self.miss(reason, variants, request) {
                    Decision::Miss(forward) => {
                        Decision::Miss(Forward { fallback: Some(Box::new(hit)), ..forward })
                    }
                    decision => decision,
                }
            }
        }
    }

    fn provenance(&self, request: &RequestView<'_>) -> Provenance {
        let (pattern, is_chosen) = (self.pattern, self.rule.is_chosen);
        // Without a pattern, only canonically spelled requests are looked up.
        let is_canonical = pattern == 0 || provenance::is_canonical(request);
        Provenance { pattern, is_canonical, is_chosen }
    }

    /// Returns `true` if a response with this provenance may answer. In most cases the patterns are equal.
    fn is_served_by(&self, stored: Provenance, request: &RequestView<'_>) -> bool {
        stored.pattern == self.pattern || stored.serves(self.provenance(request))
    }

    /// Decides if another pattern's response is stored. Only the canonical spelling replaces it, because clients can
    /// choose any other.
    fn displace(self, variants: Option<Variants>, request: &RequestView<'_>) -> Decision {
        if provenance::is_canonical(request) {
            self.miss(Reason::Pattern, variants, request)
        } else {
            Decision::Bypass(CacheStatus::bypass(&self.rule, Reason::Pattern))
        }
    }

    fn miss(self, reason: Reason, variants: Option<Variants>, request: &RequestView<'_>) -> Decision {
        // RFC 9111 §5.2.1.7.
        if self.directives.only_if_cached {
            return Decision::Unsatisfiable(Unsatisfiable {
                cache_status: CacheStatus::miss(&self.rule, reason),
            });
        }
        // Some services answer other units with 200 and a part (`Range: items=0-24`).
        if self.is_range && !range::is_in_bytes(request.headers) {
            return Decision::Bypass(CacheStatus::bypass(&self.rule, Reason::Range));
        }
        let keeps_range = self.is_range && !range::is_of_the_whole(request.headers);
        Decision::Miss(Forward { keeps_range, ..self.into_forward(reason, variants, request) })
    }

    /// Decides on a miss although a response is stored, which must be replaced.
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
            // Nothing is stored, but another request may be filling the entry with a response that is older than this
            // request.
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
            is_conditional: self.is_conditional,
            is_cross_origin: self.is_cross_origin,
            is_range: self.is_range,
            keeps_range: false,
            intent,
            variants,
            fallback: None,
        }
    }
}

/// A lookup of a resource that varies: it needs one more record (RFC 9111 §4.1).
#[derive(Debug)]
#[must_use]
pub struct Select {
    lookup: Lookup,
    variants: Variants,
}

impl Select {
    /// Returns the lookup of the variant.
    #[cfg(feature = "runtime")]
    pub(crate) const fn lookup(&self) -> &Lookup {
        &self.lookup
    }

    /// Returns the lookup of the variant.
    #[cfg(feature = "runtime")]
    pub(crate) const fn lookup_mut(&mut self) -> &mut Lookup {
        &mut self.lookup
    }

    /// Returns the secondary key of the request's variant.
    #[must_use]
    pub fn secondary_key(&self, request: &RequestView<'_>) -> SecondaryKey {
        self.lookup.rule.secondary_key(&self.variants, request.headers)
    }

    /// Decides about the record under the secondary key.
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
            // The variant belongs to an earlier record, which was deleted with its variants. The stored bytes still
            // exist and must be replaced.
            Ok(Some(_)) => lookup.miss_to_replace(Reason::Variant, Some(variants), request),
            Err(reason) => lookup.miss(reason, Some(variants), request),
        }
    }
}
