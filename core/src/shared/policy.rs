//! The decisions of a shared cache: a state machine without I/O and without a clock (RFC 9111).
//!
//! Each state has one transition, which consumes the state. Time is an argument. The driver owns the store and the
//! origin, and carries out each decision:
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

#![expect(clippy::large_enum_variant, reason = "a state lives for one request and is moved")]

use std::sync::Arc;
use std::time::SystemTime;

use http::Method;

use super::answer::Shape;
use super::groups::UriOrigin;
#[cfg(feature = "runtime")]
use super::partial::selection;
#[cfg(feature = "runtime")]
use super::safety::is_not_modified;
use super::safety::{has_credentials, may_be_refreshed, may_be_stale, not_a_write, not_looked_up, unusable};
use super::target::{Unkeyed, overrides_method, states_scheme};
use super::{SetCookie, SharedRule};
use crate::headers::cache_control::RequestDirectives;
#[cfg(feature = "runtime")]
use crate::headers::range::Selection;
use crate::key::CacheKey;
use crate::key::SecondaryKey;
#[cfg(feature = "runtime")]
use crate::policy::Needs;
use crate::policy::rule::host;
use crate::reason::Reason;
use crate::record::shared::{SharedRecord, StoredResponse};
use crate::record::variants::Variants;
use crate::request::{RequestFields, RequestView};
use crate::store::Intent;

pub use super::admitted::{Fate, Freshened, SharedAdmit, SharedAdmitted};
pub use super::answer::SharedAnswer;
pub use super::cache_status::SharedCacheStatus;
pub use super::forward::{OriginFailed, SharedForward, SharedOnResponse, SharedPass};
pub use super::write::SharedWrite;
pub use crate::record::variants::Placement;

/// The decision engine of a shared cache.
///
/// ```
/// use std::sync::Arc;
/// use std::time::{Duration, SystemTime};
///
/// use http::{Request, Response};
/// use larder_core::policy::BodyLength;
/// use larder_core::shared::policy::{SharedDecision, OnRecord, SharedOnRequest, SharedOnResponse, SharedPolicy};
/// use larder_core::shared::{SharedRecord, SharedRule};
/// use larder_core::{KeySpace, RequestView};
///
/// let policy = SharedPolicy::new(Arc::new(SharedRule::new(KeySpace::new("example", None)?)));
/// let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
///
/// // Nothing is stored: the request goes to the origin, whose response may be stored.
/// let request = Request::get("/hello").body(())?;
/// let view = RequestView::from(&request);
/// let SharedOnRequest::Lookup(lookup) = policy.on_request(&view) else { panic!() };
/// let OnRecord::Decided(SharedDecision::Forward(forward)) = lookup.on_record(Ok(None), &view, now) else { panic!() };
/// let (parts, body) = Response::builder().header("cache-control", "max-age=60").body("hello")?.into_parts();
/// let SharedOnResponse::Admit(admit) = forward.on_response(&parts, BodyLength::Known(5), now, now) else { panic!() };
/// let record = SharedRecord::decode(&admit.with_body(body.into()).record());
///
/// // The stored response answers ten seconds later.
/// let now = now + Duration::from_secs(10);
/// let SharedOnRequest::Lookup(lookup) = policy.on_request(&view) else { panic!() };
/// let OnRecord::Decided(SharedDecision::Answer(answer)) = lookup.on_record(Ok(record), &view, now) else { panic!() };
/// let response = answer.into_response();
/// assert_eq!(response.headers()["age"], "10");
/// assert_eq!(response.headers()["cache-status"], "Larder; hit; ttl=50");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct SharedPolicy {
    rule: Arc<SharedRule>,
}

/// The decision about a request.
#[derive(Debug)]
pub enum SharedOnRequest {
    /// Forward it; the cache takes no part.
    Bypass(SharedCacheStatus),
    /// Look for a stored response.
    Lookup(SharedLookup),
    /// Forward it; its success invalidates (§4.4).
    Write(SharedWrite),
}

/// The decision about a record from the store.
#[derive(Debug)]
pub enum OnRecord {
    /// The request is decided.
    Decided(SharedDecision),
    /// The resource varies: get the record under the secondary key, and decide again.
    Select(SharedSelect),
}

/// The decision how to answer a request, after the lookup.
#[derive(Debug)]
pub enum SharedDecision {
    /// Answer with this response.
    Answer(SharedAnswer),
    /// Answer with this stale response, and validate it in the background (RFC 5861 §3).
    Stale(SharedAnswer, SharedForward),
    /// Forward the request.
    Forward(SharedForward),
}

impl SharedPolicy {
    /// Creates an engine that follows this rule.
    #[must_use]
    pub const fn new(rule: Arc<SharedRule>) -> Self {
        Self { rule }
    }

    /// Returns the rule.
    #[must_use]
    pub const fn rule(&self) -> &Arc<SharedRule> {
        &self.rule
    }

    /// Decides about a request. This is the first transition.
    #[must_use]
    pub fn on_request(&self, request: &RequestView<'_>) -> SharedOnRequest {
        let present = RequestFields::of(request.headers);
        let directives = if present.directives {
            RequestDirectives::of(request.headers)
        } else {
            RequestDirectives::default()
        };
        let rule = Arc::clone(&self.rule);
        // A request that the origin may take for a write is treated as one.
        let is_overridden = overrides_method(request);
        let is_read = [Method::GET, Method::HEAD].contains(request.method) && !is_overridden;
        let refusal = match is_read {
            true => not_looked_up(request, present, &directives),
            false => not_a_write(request.method, is_overridden),
        };
        if let Some(reason) = refusal {
            return SharedOnRequest::Bypass(SharedCacheStatus::forwarded(rule, reason));
        }
        if is_read {
            let unkeyed = Unkeyed::of(request, &rule);
            let is_head = request.method == Method::HEAD;
            SharedOnRequest::Lookup(SharedLookup {
                rule,
                directives,
                present,
                unkeyed,
                is_head,
                length: None,
            })
        } else {
            SharedOnRequest::Write(SharedWrite {
                origin: rule.origin_of(request),
                origin_by_https: (!states_scheme(request, &rule.scheme))
                    .then(|| UriOrigin::new("https", &host(request))),
                rule,
                target: request.uri.clone(),
                host: host(request),
                request: request.headers.clone(),
                may_store: request.method == Method::POST
                    && !request.is_obscured
                    && !directives.no_store
                    && !is_overridden
                    && Unkeyed::of(request, &self.rule).is_empty(),
                has_credentials: has_credentials(present, request.headers, &self.rule),
            })
        }
    }
}

/// A request that may be answered from the cache.
#[derive(Debug)]
#[must_use]
pub struct SharedLookup {
    rule: Arc<SharedRule>,
    directives: RequestDirectives,
    present: RequestFields,
    unkeyed: Unkeyed,
    is_head: bool,
    /// The length of the stored body, if the response passed next holds only the part that this request needs.
    length: Option<u64>,
}

impl SharedLookup {
    /// Returns `true` if an answer from the store may need less than a whole body.
    #[cfg(feature = "runtime")]
    pub(super) const fn may_need_less(&self) -> bool {
        self.is_head || self.present.validators || self.present.range
    }

    /// Returns the part of the body that the response needs, if the body is `length` bytes long. A response that may be
    /// validated and stored again needs all of it.
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

    /// Announces that the next response holds only the part that it [needs](Self::needs) of a body of this length.
    #[cfg(feature = "runtime")]
    pub(super) const fn expect_excerpt(&mut self, length: u64) {
        self.length = Some(length);
    }

    /// Returns the key to look up.
    #[must_use]
    pub fn key(&self, request: &RequestView<'_>) -> CacheKey {
        self.rule.key_beside(request, &self.unkeyed)
    }

    /// Decides about the record under the key. `Err` is the reason for which it could not be read.
    #[must_use]
    pub fn on_record(
        self,
        found: Result<Option<SharedRecord>, Reason>,
        request: &RequestView<'_>,
        now: SystemTime,
    ) -> OnRecord {
        OnRecord::Decided(match found {
            Ok(Some(SharedRecord::Variants(variants))) => {
                return OnRecord::Select(SharedSelect { lookup: self, variants });
            }
            // A response without a record of variants doesn't tell which of these requests it is for.
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

    /// §4: decides if the stored response may be used for this request.
    fn on_stored(
        self,
        stored: Box<StoredResponse>,
        variants: Option<Variants>,
        request: &RequestView<'_>,
        now: SystemTime,
    ) -> SharedDecision {
        if stored.sets_cookie && self.rule.set_cookie == SetCookie::Never {
            // Another process stored it under another rule.
            return self.forward(Reason::SetCookie, None, variants, request).replacing();
        }
        let length = self.length.unwrap_or(stored.body.len() as u64);
        let Some(shape) = Shape::within(request.headers, self.is_head, &stored, length) else {
            return self.forward(Reason::Incomplete, Some(stored), variants, request);
        };
        let answer = |rule: &Arc<SharedRule>, stored| {
            SharedAnswer::hit(Arc::clone(rule), stored, shape, self.is_head, now)
        };
        match unusable(&self.directives, &stored, now) {
            None => SharedDecision::Answer(answer(&self.rule, stored)),
            Some(Reason::Expired) if may_be_stale(&self.directives, &stored, now) => {
                SharedDecision::Answer(answer(&self.rule, stored))
            }
            Some(Reason::Expired) if may_be_refreshed(&self.directives, &stored, now) => {
                let answer = answer(&self.rule, stored.clone());
                match self.forward(Reason::Expired, Some(stored), variants, request) {
                    SharedDecision::Forward(forward) => {
                        SharedDecision::Stale(answer, forward.in_background())
                    }
                    // A stale response counts as stored, so `only-if-cached` doesn't apply.
                    _ => SharedDecision::Answer(answer),
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
    ) -> SharedDecision {
        // §5.2.1.7.
        if self.directives.only_if_cached {
            return SharedDecision::Answer(SharedAnswer::unsatisfiable(self.rule, reason));
        }
        let intent = match reason {
            Reason::Absent | Reason::Variant | Reason::Down if !self.directives.wants_new() => Intent::Fill,
            _ => Intent::Refresh,
        };
        let mut fields = request.headers.clone();
        self.unkeyed.write(&mut fields);
        SharedDecision::Forward(SharedForward {
            has_credentials: has_credentials(self.present, request.headers, &self.rule),
            origin: self.rule.origin_of(request),
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
            // A response without its whole body can't be stored again.
            stored: stored.filter(|_| self.length.is_none()),
            is_background: false,
        })
    }
}

impl SharedDecision {
    /// Decides on forwarding although a record is stored, which must be replaced.
    fn replacing(self) -> Self {
        match self {
            Self::Forward(forward) => Self::Forward(SharedForward { intent: Intent::Refresh, ..forward }),
            decision => decision,
        }
    }
}

/// A lookup of a resource that varies: it needs one more record (§4.1).
#[derive(Debug)]
#[must_use]
pub struct SharedSelect {
    lookup: SharedLookup,
    variants: Variants,
}

impl SharedSelect {
    /// Returns the lookup of the variant.
    #[cfg(feature = "runtime")]
    pub(super) const fn lookup_mut(&mut self) -> &mut SharedLookup {
        &mut self.lookup
    }

    /// Returns the secondary key of the request's variant.
    #[must_use]
    pub fn secondary_key(&self, request: &RequestView<'_>) -> SecondaryKey {
        let fields = self.lookup.unkeyed.selecting(request.headers, self.variants.names());
        self.variants.normalised_key(&fields, self.lookup.rule.content_codings.as_deref())
    }

    /// Decides about the record under the secondary key.
    #[must_use]
    pub fn on_record(
        self,
        found: Result<Option<SharedRecord>, Reason>,
        request: &RequestView<'_>,
        now: SystemTime,
    ) -> SharedDecision {
        let Self { lookup, variants } = self;
        match found {
            // The record of variants doesn't distinguish this request from others yet.
            Ok(_) if !lookup.unkeyed.is_covered_by(variants.names()) => {
                lookup.forward(Reason::Variant, None, Some(variants), request).replacing()
            }
            Ok(Some(SharedRecord::Response(stored))) if stored.variant == variants.id => {
                lookup.on_stored(stored, Some(variants), request, now)
            }
            Ok(None) => lookup.forward(Reason::Variant, None, Some(variants), request),
            // The variant belongs to an earlier record. The stored bytes still exist and must be replaced.
            Ok(Some(_)) => lookup.forward(Reason::Variant, None, Some(variants), request).replacing(),
            Err(reason) => lookup.forward(reason, None, Some(variants), request),
        }
    }
}
