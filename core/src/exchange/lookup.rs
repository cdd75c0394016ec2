//! Lookup: from a request to the store's entry for it.

use bytes::Bytes;
use http::Response;

use crate::exchange::excerpt::Excerpt;
use crate::fill::reentry;
use crate::key::CacheKey;
use crate::larder::context::CacheContext;
use crate::policy::rule::{Kind, Principal};
use crate::policy::{CacheStatus, Decision, Forward, Lookup, OnEntry, OnRequest, Select};
use crate::reason::Reason;
use crate::record::{self, Entry, Record};
use crate::request::RequestView;
use crate::route::{DynKeyBuilder, KeySource, Route};
use crate::status::Outcome;
use crate::tag::stale_since;
use crate::telemetry::spans::{self, Span};

/// The number of lookups after which a request runs the handler itself, if each awaited entry wasn't valid for it.
pub(crate) const MAX_LOOKUPS: usize = 3;

/// The result of a lookup.
pub(super) enum LookupResult {
    /// A stored response answers, or a 504.
    Answer(Response<Bytes>, Outcome),
    /// The handler runs without the cache.
    Bypass(CacheStatus),
    /// The same cache already runs the handler for this key.
    Nested,
    /// The handler runs, and its response is stored or evicts.
    Write(Box<Forward>),
    /// A stale response answers while the entry is refreshed.
    Stale(Response<Bytes>, Box<Fill>),
    /// The handler runs, and its response fills the entry.
    Miss(Box<Fill>),
}

/// A request for the handler, and the keys that its response fills. Boxed, because it is large and moves often.
pub(super) struct Fill {
    pub(super) forward: Forward,
    pub(super) key: FillKey,
}

/// A lookup that waits for the key builder or the store.
pub(super) struct PendingLookup {
    step: LookupStep,
    span: Span,
}

/// The step that a pending lookup waits for.
enum LookupStep {
    Key(Lookup),
    Entry(Lookup, CacheKey),
    Variant(Select, FillKey),
}

impl Route {
    /// Looks up the key of a cacheable request, and the secondary key if the resource varies. Returns `Err` if that needs
    /// waiting.
    pub(super) fn lookup_now(&self, request: RequestView<'_>) -> Result<LookupResult, Box<PendingLookup>> {
        let span = match self.policy.rule().kind {
            Kind::Read => spans::get(&self.policy.rule().space),
            Kind::Write | Kind::EvictKey | Kind::EvictGroup | Kind::EvictTags => Span::NONE,
        };
        match self.lookup_in_memory(request, &span) {
            Ok(result) => {
                result.record_in(&span);
                Ok(result)
            }
            Err(step) => Err(Box::new(PendingLookup { step, span })),
        }
    }

    fn lookup_in_memory(&self, request: RequestView<'_>, span: &Span) -> Result<LookupResult, LookupStep> {
        let lookup = match self.policy.on_request(&request) {
            OnRequest::Bypass(status) => return Ok(LookupResult::Bypass(status)),
            OnRequest::Forward(forward) => return Ok(LookupResult::Write(Box::new(forward))),
            OnRequest::Lookup(lookup) => lookup,
        };
        let key = match self.key_now(&request, lookup.principal()) {
            Ok(Some(key)) => key,
            Ok(None) => return Ok(LookupResult::Bypass(lookup.without_key())),
            Err(_) => return Err(LookupStep::Key(lookup)),
        };
        span.key(&key);
        if reentry::is_running(&self.context, &key, request.extensions) {
            return Ok(LookupResult::Nested);
        }
        let Some(found) = self.context.store.find_at_once(&key) else {
            return Err(LookupStep::Entry(lookup, key));
        };
        if found.is_some() {
            self.miss_predictor.record_hit();
        }
        let found = self.context.decode_for(&lookup, found);
        let select = match lookup.on_entry(found, &request, self.context.now()) {
            OnEntry::Decided(decision) => return Ok(LookupResult::of(decision, key, None, span)),
            OnEntry::Select(select) => select,
        };
        let variant = key.variant(select.secondary_key(&request));
        let Some(found) = self.context.store.find_at_once(&variant) else {
            return Err(LookupStep::Variant(select, FillKey { primary: key, variant: Some(variant) }));
        };
        let found = self.context.decode_for(select.lookup(), found);
        let decision = select.on_entry(found, &request, self.context.now());
        Ok(LookupResult::of(decision, key, Some(variant), span))
    }

    /// Completes a lookup that needs waiting.
    pub(super) async fn lookup_later(
        &self,
        pending: Box<PendingLookup>,
        request: RequestView<'_>,
    ) -> LookupResult {
        let PendingLookup { step, span } = *pending;
        let result = self.lookup_in_store(step, request, &span).await;
        result.record_in(&span);
        result
    }

    async fn lookup_in_store(&self, step: LookupStep, request: RequestView<'_>, span: &Span) -> LookupResult {
        let (mut lookup, key) = match step {
            LookupStep::Key(lookup) => {
                let Some(key) = self.key(&request, lookup.principal()).await else {
                    return LookupResult::Bypass(lookup.without_key());
                };
                span.key(&key);
                if reentry::is_running(&self.context, &key, request.extensions) {
                    return LookupResult::Nested;
                }
                (lookup, key)
            }
            LookupStep::Entry(lookup, key) => (lookup, key),
            LookupStep::Variant(select, key) => {
                return Box::pin(self.lookup_variant(select, key, request, span)).await;
            }
        };
        let found = if self.predicts_miss(&lookup) {
            Ok(None)
        } else {
            let found = span.around(self.fetch_for(&mut lookup, &key, &request)).await;
            if !matches!(found, Ok(None)) {
                self.miss_predictor.record_hit();
            }
            found
        };
        match lookup.on_entry(found, &request, self.context.now()) {
            OnEntry::Decided(decision) => LookupResult::of(decision, key, None, span),
            OnEntry::Select(select) => {
                let variant = Some(key.variant(select.secondary_key(&request)));
                let key = FillKey { primary: key, variant };
                Box::pin(self.lookup_variant(select, key, request, span)).await
            }
        }
    }

    async fn lookup_variant(
        &self,
        mut select: Select,
        key: FillKey,
        request: RequestView<'_>,
        span: &Span,
    ) -> LookupResult {
        let found = match self.context.store.find_at_once(key.target()) {
            Some(found) => self.context.decode_for(select.lookup(), found),
            None => span.around(self.fetch_for(select.lookup_mut(), key.target(), &request)).await,
        };
        let decision = select.on_entry(found, &request, self.context.now());
        LookupResult::of(decision, key.primary, key.variant, span)
    }

    pub(super) fn predicts_miss(&self, lookup: &Lookup) -> bool {
        lookup.is_plain() && self.miss_predictor.predicts_miss()
    }

    pub(crate) async fn read_record(&self, key: &CacheKey) -> Result<Option<Record>, Reason> {
        self.find(key).await.and_then(|found| self.context.decode(found))
    }

    /// Reads a record.
    pub(super) async fn find(&self, key: &CacheKey) -> Result<Option<Bytes>, Reason> {
        match self.context.store.try_get(key) {
            Some(bytes) => Ok(Some(bytes)),
            None => self.fetch(key).await,
        }
    }

    /// Reads a record that `try_get` didn't return.
    pub(super) async fn fetch(&self, key: &CacheKey) -> Result<Option<Bytes>, Reason> {
        self.context.store.fetch(key).await.map_err(|error| {
            self.context.store_failed("get", key.name(), &error);
            Reason::Down
        })
    }

    /// Reads a record that `try_get` didn't return. Of a large response it may read only the part that the request needs,
    /// and notes that in the lookup.
    async fn fetch_for(
        &self,
        lookup: &mut Lookup,
        key: &CacheKey,
        request: &RequestView<'_>,
    ) -> Result<Option<Record>, Reason> {
        if lookup.may_need_less() {
            let needs = |entry: &Entry, length| lookup.needs(entry, length, request);
            match Box::pin(self.context.excerpt(key, record::read_beginning, needs)).await? {
                Excerpt::Whole(found) => return self.context.decode_for(lookup, found),
                Excerpt::Part(entry, body, length) => {
                    lookup.expect_excerpt(length);
                    return Ok(Some(Record::Response(Entry { body, ..entry })));
                }
                Excerpt::TooLittle => {}
            }
        }
        self.fetch(key).await.and_then(|found| self.context.decode_for(lookup, found))
    }

    /// Returns the key of a request, or `None` if the key builder returned none.
    pub(crate) async fn key(
        &self,
        request: &RequestView<'_>,
        principal: Option<Principal>,
    ) -> Option<CacheKey> {
        match self.key_now(request, principal) {
            Ok(key) => key,
            Err(builder) => {
                let suffix = builder.build(request).await?;
                Some(self.policy.rule().chosen_key(&suffix, request, principal))
            }
        }
    }

    /// Returns the key of a request, or the key builder if that needs waiting.
    fn key_now(
        &self,
        request: &RequestView<'_>,
        principal: Option<Principal>,
    ) -> Result<Option<CacheKey>, &dyn DynKeyBuilder> {
        let rule = self.policy.rule();
        match &self.key_source {
            KeySource::Uri => Ok(Some(rule.key(request, principal))),
            KeySource::Sync(build) => {
                Ok(build(request).map(|suffix| rule.chosen_key(&suffix, request, principal)))
            }
            KeySource::Async(builder) => Err(&**builder),
        }
    }
}

impl CacheContext {
    /// Decodes a record. A response that was evicted softly is stale. Returns `Err` if it can't be read.
    fn decode(&self, found: Option<Bytes>) -> Result<Option<Record>, Reason> {
        let Some(bytes) = found else { return Ok(None) };
        match Record::decode(&bytes) {
            Some(record) => Ok(Some(record)),
            None => self.decode_stale(&bytes),
        }
    }

    /// Decodes a record as [`decode`](Self::decode) does, as far as the answer to a lookup needs it.
    fn decode_for(&self, lookup: &Lookup, found: Option<Bytes>) -> Result<Option<Record>, Reason> {
        let Some(bytes) = found else { return Ok(None) };
        match lookup.decode(&bytes) {
            Some(record) => Ok(Some(record)),
            None => self.decode_stale(&bytes),
        }
    }

    #[cold]
    fn decode_stale(&self, bytes: &Bytes) -> Result<Option<Record>, Reason> {
        let stale = stale_since(bytes).and_then(|(since, value)| match Record::decode(&value)? {
            Record::Response(entry) => Some(Record::Response(entry.stale_since(since, self.now()))),
            // Each variant is judged by itself.
            variants @ Record::Variants(_) => Some(variants),
        });
        stale.map(Some).ok_or(Reason::Unreadable)
    }
}

impl LookupResult {
    /// Makes the result of a decision. `variant` is the variant's key, if the resource varies.
    fn of(decision: Decision, primary: CacheKey, variant: Option<CacheKey>, span: &Span) -> Self {
        match decision {
            Decision::Hit(hit) | Decision::NotModified(hit) => {
                span.lasting(hit.remaining());
                Self::Answer(hit.into_response(), Outcome::HIT)
            }
            Decision::Bypass(status) => Self::Bypass(status),
            Decision::Unsatisfiable(answer) => {
                let outcome = Outcome::miss(answer.reason());
                Self::Answer(answer.into_response(), outcome)
            }
            Decision::Stale(hit, forward) => Self::Stale(
                hit.into_response(),
                Box::new(Fill { forward, key: FillKey { primary, variant } }),
            ),
            Decision::Miss(forward) => {
                Self::Miss(Box::new(Fill { forward, key: FillKey { primary, variant } }))
            }
        }
    }

    /// Records the outcome in the lookup's span.
    fn record_in(&self, span: &Span) {
        match self {
            Self::Answer(_, outcome) => span.outcome(*outcome),
            Self::Bypass(status) => span.outcome(Outcome::bypass(status.reason())),
            Self::Nested => span.outcome(Outcome::bypass(Some(Reason::Nested))),
            Self::Write(_) => {}
            Self::Stale(_, fill) => span.outcome(Outcome::stale(fill.forward.reason())),
            Self::Miss(fill) => span.outcome(Outcome::miss(fill.forward.reason())),
        }
    }
}

/// The keys of a fill: the request's key, and the key of the variant if the resource varies.
pub(crate) struct FillKey {
    pub(crate) primary: CacheKey,
    pub(crate) variant: Option<CacheKey>,
}

impl FillKey {
    /// Returns the key to fill.
    pub(crate) fn target(&self) -> &CacheKey {
        self.variant.as_ref().unwrap_or(&self.primary)
    }
}
