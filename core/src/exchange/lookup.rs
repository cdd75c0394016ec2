//! From a request to what the store has for it.

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

/// How often a request looks again when what it waited for turned out not to be for it. Then it runs by itself.
pub(crate) const LOOKS: usize = 3;

impl Route {
    /// If the request is one for the cache, looks under the key, and under the secondary key if the resource varies: as far
    /// as that needs no waiting.
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

    /// Goes on from there.
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

    pub(super) async fn look_for_variant(
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

    /// What lay under the key of the request. `Err` if the resource varies.
    pub(super) fn on_found(
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

    /// What lay under the secondary key.
    pub(super) fn on_variant(
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

    /// The bytes of a record, at hand or not.
    pub(super) async fn find(&self, key: &CacheKey) -> Result<Option<Bytes>, Reason> {
        match self.context.store.try_get(key) {
            Some(bytes) => Ok(Some(bytes)),
            None => self.fetch(key).await,
        }
    }

    /// The bytes of a record that is not at hand.
    pub(super) async fn fetch(&self, key: &CacheKey) -> Result<Option<Bytes>, Reason> {
        self.context.store.fetch(key).await.map_err(|error| {
            self.context.store_failed("get", key.name(), &error);
            Reason::Down
        })
    }

    /// A record that is not at hand. Of a large response it may hold no more than the request needs, and then the lookup
    /// knows.
    pub(super) async fn fetch_for(
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

    /// The key of a request, or `None` if the key builder says that there is none.
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

    pub(super) fn key_at_once(&self, request: &RequestView<'_>, principal: Option<Principal>) -> Keyed<'_> {
        let rule = self.policy.rule();
        match &self.key_source {
            KeySource::Uri => Keyed::Key(rule.key(request, principal)),
            KeySource::Sync(build) => build(request)
                .map_or(Keyed::None, |suffix| Keyed::Key(rule.chosen_key(&suffix, request, principal))),
            KeySource::Async(build) => Keyed::Later(&**build),
        }
    }
}

/// What a record says. `Err` if it is none.
pub(super) fn read(found: Option<Bytes>) -> Result<Option<Record>, Reason> {
    found.map(|bytes| Record::decode(&bytes).ok_or(Reason::Unreadable)).transpose()
}

/// The key of a request, as far as that needs no waiting.
pub(super) enum Keyed<'a> {
    Key(CacheKey),
    None,
    Later(&'a dyn DynKeyBuilder),
}

/// How far a look came without waiting.
pub(super) enum Looked {
    /// To the end.
    Seen(Seen),
    Further(Box<Further>),
}

impl Looked {
    fn further(further: Further) -> Self {
        Self::Further(Box::new(further))
    }
}

/// What a look has to wait for.
pub(super) enum Further {
    /// The key.
    Keyless(Lookup, Span),
    /// What lies under it, for nothing is at hand.
    Missing(Lookup, CacheKey, Span),
    /// The resource varies, and the variant is not at hand.
    Selected(Select, CacheKey, CacheKey, Span),
}

/// What became of a look at a request and into the store.
pub(super) enum Seen {
    Answer(Response<Bytes>, Outcome),
    Bypass(Mark),
    /// The same cache runs the handler for this key already.
    Within,
    Write(Forward),
    Stale(Response<Bytes>, Forward, FillKey),
    Miss(Forward, FillKey),
}

impl Seen {
    /// Tells the span of the look.
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

    /// `target` is the key of the variant, if the resource varies.
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

/// Where the answer to a miss belongs: the key of the request, and the one that is filled, which differs for a variant.
pub(crate) struct FillKey {
    pub(crate) primary: CacheKey,
    pub(crate) target: CacheKey,
}

impl FillKey {
    /// `target` is the key of the variant, if the resource varies.
    pub(crate) fn new(primary: CacheKey, target: Option<CacheKey>) -> Self {
        Self { target: target.unwrap_or_else(|| primary.clone()), primary }
    }
}
