//! Lookup: from a request to the store's entry for it.

use bytes::Bytes;
use http::Response;

use crate::exchange::excerpt::Excerpt;
use crate::fill::reentry;
use crate::key::CacheKey;
use crate::policy::rule::{Kind, Principal};
use crate::policy::{Decision, Forward, Lookup, Mark, OnEntry, OnRequest, Select};
use crate::reason::Reason;
use crate::record::{self, Entry, Record};
use crate::request::RequestView;
use crate::route::{DynKeyBuilder, KeySource, Route};
use crate::status::Outcome;
use crate::telemetry::spans::{self, Span};

/// The number of lookups after which a request runs the handler itself, if each awaited entry wasn't valid for it.
pub(crate) const LOOKS: usize = 3;

impl Route {
    /// Looks up the key of a cacheable request, and the secondary key if the resource varies, as far as that needs no
    /// waiting.
    pub(super) fn lookup_now(&self, request: RequestView<'_>) -> Looked {
        let span = match self.policy.rule().kind {
            Kind::Read => spans::get(&self.policy.rule().space),
            Kind::Write | Kind::EvictKey | Kind::EvictGroup => Span::NONE,
        };
        let lookup = match self.policy.on_request(&request) {
            OnRequest::Bypass(mark) => return Looked::Seen(Seen::Bypass(mark).told(&span)),
            OnRequest::Forward(forward) => return Looked::Seen(Seen::Write(forward)),
            OnRequest::Lookup(lookup) => lookup,
        };
        let key = match self.key_at_once(&request, lookup.principal()) {
            Keyed::Key(key) => key,
            Keyed::None => return Looked::Seen(Seen::Bypass(lookup.without_key()).told(&span)),
            Keyed::Later(_) => return Looked::further(Further::Keyless(lookup, span)),
        };
        span.key(&key);
        if reentry::is_running(&self.context, &key, request.extensions) {
            return Looked::Seen(Seen::Within.told(&span));
        }
        let Some(bytes) = self.context.store.try_get(&key) else {
            return Looked::further(Further::Missing(lookup, key, span));
        };
        self.miss_predictor.record_hit();
        let (select, key) = match self.on_found(lookup, read(Some(bytes)), key, &request, &span) {
            Ok(seen) => return Looked::Seen(seen),
            Err(varies) => varies,
        };
        let target = key.variant(select.secondary_key(&request));
        let Some(bytes) = self.context.store.try_get(&target) else {
            return Looked::further(Further::Selected(select, key, target, span));
        };
        Looked::Seen(self.on_variant(select, read(Some(bytes)), key, target, &request, &span))
    }

    /// Continues a lookup that needs waiting.
    pub(super) async fn lookup_later(&self, further: Box<Further>, request: RequestView<'_>) -> Seen {
        let (mut lookup, key, span) = match *further {
            Further::Keyless(lookup, span) => match self.key(&request, lookup.principal()).await {
                Some(key) => {
                    span.key(&key);
                    if reentry::is_running(&self.context, &key, request.extensions) {
                        return Seen::Within.told(&span);
                    }
                    (lookup, key, span)
                }
                None => return Seen::Bypass(lookup.without_key()).told(&span),
            },
            Further::Missing(lookup, key, span) => (lookup, key, span),
            Further::Selected(select, key, target, span) => {
                return Box::pin(self.look_for_variant(select, key, target, span, request)).await;
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
        let (select, key) = match self.on_found(lookup, found, key, &request, &span) {
            Ok(seen) => return seen,
            Err(varies) => varies,
        };
        let target = key.variant(select.secondary_key(&request));
        Box::pin(self.look_for_variant(select, key, target, span, request)).await
    }

    async fn look_for_variant(
        &self,
        mut select: Select,
        key: CacheKey,
        target: CacheKey,
        span: Span,
        request: RequestView<'_>,
    ) -> Seen {
        let found = match self.context.store.try_get(&target) {
            Some(bytes) => read(Some(bytes)),
            None => span.around(self.fetch_for(select.lookup_mut(), &target, &request)).await,
        };
        self.on_variant(select, found, key, target, &request, &span)
    }

    /// Decides on the record under the request's key. Returns `Err` if the resource varies.
    fn on_found(
        &self,
        lookup: Lookup,
        found: Result<Option<Record>, Reason>,
        key: CacheKey,
        request: &RequestView<'_>,
        span: &Span,
    ) -> Result<Seen, (Select, CacheKey)> {
        let now = self.context.now();
        match lookup.on_entry(found, request, now) {
            OnEntry::Decided(decision) => Ok(Seen::of(decision, key, None, span)),
            OnEntry::Select(select) => Err((select, key)),
        }
    }

    /// Decides on the record under the secondary key.
    fn on_variant(
        &self,
        select: Select,
        found: Result<Option<Record>, Reason>,
        key: CacheKey,
        target: CacheKey,
        request: &RequestView<'_>,
        span: &Span,
    ) -> Seen {
        let now = self.context.now();
        Seen::of(select.on_entry(found, request, now), key, Some(target), span)
    }

    pub(super) fn predicts_miss(&self, lookup: &Lookup) -> bool {
        lookup.is_plain() && self.miss_predictor.predicts_miss()
    }

    pub(crate) async fn read_record(&self, key: &CacheKey) -> Result<Option<Record>, Reason> {
        self.find(key).await.and_then(read)
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
                Excerpt::Whole(found) => return read(found),
                Excerpt::Part(entry, body, length) => {
                    lookup.expect_excerpt(length);
                    return Ok(Some(Record::Response(Entry { body, ..entry })));
                }
                Excerpt::TooLittle => {}
            }
        }
        self.fetch(key).await.and_then(read)
    }

    /// Returns the key of a request, or `None` if the key builder returned none.
    pub(crate) async fn key(
        &self,
        request: &RequestView<'_>,
        principal: Option<Principal>,
    ) -> Option<CacheKey> {
        match self.key_at_once(request, principal) {
            Keyed::Key(key) => Some(key),
            Keyed::None => None,
            Keyed::Later(build) => {
                let suffix = build.build(request).await?;
                Some(self.policy.rule().chosen_key(&suffix, request, principal))
            }
        }
    }

    fn key_at_once(&self, request: &RequestView<'_>, principal: Option<Principal>) -> Keyed<'_> {
        let rule = self.policy.rule();
        match &self.key_source {
            KeySource::Uri => Keyed::Key(rule.key(request, principal)),
            KeySource::Sync(build) => build(request)
                .map_or(Keyed::None, |suffix| Keyed::Key(rule.chosen_key(&suffix, request, principal))),
            KeySource::Async(build) => Keyed::Later(&**build),
        }
    }
}

/// Decodes a record. Returns `Err` if it can't be read.
pub(super) fn read(found: Option<Bytes>) -> Result<Option<Record>, Reason> {
    found.map(|bytes| Record::decode(&bytes).ok_or(Reason::Unreadable)).transpose()
}

/// The key of a request, as far as it needs no waiting.
pub(super) enum Keyed<'a> {
    Key(CacheKey),
    None,
    Later(&'a dyn DynKeyBuilder),
}

/// The progress of a lookup that didn't wait.
pub(super) enum Looked {
    /// The lookup is complete.
    Seen(Seen),
    Further(Box<Further>),
}

impl Looked {
    fn further(further: Further) -> Self {
        Self::Further(Box::new(further))
    }
}

/// The step that a lookup has to wait for.
pub(super) enum Further {
    /// The key builder.
    Keyless(Lookup, Span),
    /// The record under the key, which isn't in memory.
    Missing(Lookup, CacheKey, Span),
    /// The variant, which isn't in memory.
    Selected(Select, CacheKey, CacheKey, Span),
}

/// The result of a lookup.
pub(super) enum Seen {
    Answer(Response<Bytes>, Outcome),
    Bypass(Mark),
    /// The same cache already runs the handler for this key.
    Within,
    Write(Forward),
    Stale(Response<Bytes>, Forward, FillKey),
    Miss(Forward, FillKey),
}

impl Seen {
    /// Records the outcome in the lookup's span.
    fn told(self, span: &Span) -> Self {
        match &self {
            Self::Answer(_, outcome) => span.outcome(*outcome),
            Self::Bypass(mark) => span.outcome(Outcome::bypass(mark.reason())),
            Self::Within => span.outcome(Outcome::bypass(Some(Reason::Nested))),
            Self::Write(_) => {}
            Self::Stale(_, forward, _) => span.outcome(Outcome::stale(forward.reason())),
            Self::Miss(forward, _) => span.outcome(Outcome::miss(forward.reason())),
        }
        self
    }

    /// `target` is the variant's key, if the resource varies.
    fn of(decision: Decision, base: CacheKey, target: Option<CacheKey>, span: &Span) -> Self {
        let seen = match decision {
            Decision::Hit(hit) | Decision::NotModified(hit) => {
                span.lasting(hit.remaining());
                Self::Answer(hit.into_response(), Outcome::HIT)
            }
            Decision::Bypass(mark) => Self::Bypass(mark),
            Decision::Unsatisfiable(answer) => {
                let outcome = Outcome::miss(answer.reason());
                Self::Answer(answer.into_response(), outcome)
            }
            Decision::Stale(hit, forward) => {
                Self::Stale(hit.into_response(), forward, FillKey::new(base, target))
            }
            Decision::Miss(forward) => Self::Miss(forward, FillKey::new(base, target)),
        };
        seen.told(span)
    }
}

/// The keys of a fill: the request's key, and the key to fill. They differ for a variant.
pub(crate) struct FillKey {
    pub(crate) primary: CacheKey,
    pub(crate) target: CacheKey,
}

impl FillKey {
    /// `target` is the variant's key, if the resource varies.
    pub(crate) fn new(primary: CacheKey, target: Option<CacheKey>) -> Self {
        Self { target: target.unwrap_or_else(|| primary.clone()), primary }
    }
}
