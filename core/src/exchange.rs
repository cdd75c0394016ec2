//! The one place that joins the policy and the store: from a request to its answer, top to bottom.
//!
//! A read looks into the store; what it finds answers, and what it doesn't find is filled by one request for all. A
//! write runs its handler and then stores or evicts. Fills and writes go on without their client: one that
//! hangs up takes nobody's answer away and leaves no old value behind. Whatever the store does, the handler's answer is delivered.

#![expect(
    clippy::large_enum_variant,
    clippy::result_large_err,
    reason = "what is seen at once is mostly a hit, which is not to allocate"
)]

pub(crate) mod excerpt;
pub(crate) mod miss_predictor;
pub(crate) mod remembered;

use std::fmt;
use std::future::{Future, ready};
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::LOCATION;
use http::{Extensions, HeaderMap, Response, StatusCode};
use http_body::Body;
use tracing::warn;

use crate::body::{ReplyBody, collect, length_of};
use crate::exchange::excerpt::Excerpt;
use crate::fill::background::{EvictOnDrop, Target};
use crate::fill::lease::{LeaseGuard, Started};
use crate::fill::reentry;
use crate::fill::single_flight::{FillOutcome, Follower, Leader, Role};
use crate::key::CacheKey;
use crate::policy::rule::{Kind, Principal, host};
use crate::policy::{
    Admitted, CommitResult, Decision, Forward, Lookup, Mark, OnEntry, OnRequest, OnResponse, Pass, Placement,
    Select, invalidates, leaves_outcome_unknown,
};
use crate::reason::Reason;
use crate::record::{self, Entry, Record};
use crate::request::RequestView;
use crate::route::{DynKeyBuilder, KeySource, Route};
use crate::shared::invalidation::same_site;
use crate::status::Outcome;
use crate::store::{Abandon, Intent};
use crate::telemetry::RequestTimer;
use crate::telemetry::spans::{self, Span};

/// How often a request looks again when what it waited for turned out not to be for it. Then it runs by itself.
pub(crate) const LOOKS: usize = 3;

/// For how long the requests for an answer that can't be shared don't wait for each other.
pub(crate) const UNCACHEABLE_FOR: Duration = Duration::from_secs(1);

/// One request and the handler for it: what an adapter wraps.
///
/// An adapter holds no decisions. It shows the request, runs its handler, and sends what [`Route::handle`] returns.
#[cfg_attr(
    all(feature = "memory", feature = "redis"),
    doc = "A whole one is in [the guide](crate::guide::adapters)."
)]
pub trait Call: Send + 'static {
    /// The body of the handler's answer.
    type Body: Body<Data: Send, Error: Send> + Send + 'static;
    /// What the handler returns instead of an answer.
    type Error: Send + 'static;

    /// The request, with the URI that its key is made from ([`KeyUri`](crate::KeyUri)), the pattern that the framework's router
    /// matched, and whether there is content.
    fn view(&self) -> RequestView<'_>;

    /// The fields of the request that the handler will see.
    fn headers_mut(&mut self) -> &mut HeaderMap;

    /// The extensions of the request that the handler will see, for a mark by which the same cache around it knows this run.
    fn extensions_mut(&mut self) -> &mut Extensions;

    /// The status with which the framework will answer this error. An error that says nothing of its own is a 500.
    fn status_of(_error: &Self::Error) -> StatusCode {
        StatusCode::INTERNAL_SERVER_ERROR
    }

    /// Runs the handler.
    fn run(self) -> impl Future<Output = Result<Response<Self::Body>, Self::Error>> + Send + 'static;
}

/// An answer, or the handler's error.
pub type Reply<C> = Result<Response<ReplyBody<<C as Call>::Body>>, <C as Call>::Error>;

impl Route {
    /// Answers one request.
    ///
    /// Needs a tokio runtime. A panic of the handler goes on in the caller.
    ///
    /// # Errors
    ///
    /// Only those of the handler. The store's are logged.
    pub fn handle<C: Call>(self: Arc<Self>, call: C) -> ResponseFuture<C::Body, C::Error> {
        match self.try_hit(call.view()) {
            Ok(response) => ResponseFuture::ready(response),
            Err(unanswered) => unanswered.respond(call),
        }
    }

    /// Answers one request, if that takes no more than a look into memory: the first half of [`handle`](Self::handle), for
    /// adapters for whom it costs something to put a [`Call`] together.
    ///
    /// # Errors
    ///
    /// Nothing that answers is at hand: go on with what this returns.
    pub fn try_hit(self: &Arc<Self>, request: RequestView<'_>) -> Result<Response<Bytes>, Deferred> {
        let watch = RequestTimer::new(&self.context, &request);
        match self.lookup_now(request) {
            Looked::Seen(Seen::Answer(response, outcome)) => {
                Ok(self.answered(request.pattern, watch, response, outcome))
            }
            looked => Err(Deferred { route: Arc::clone(self), watch, looked }),
        }
    }

    /// Answers a request that what is stored doesn't, and counts it.
    async fn respond<C: Call>(self: Arc<Self>, seen: Seen, call: C, watch: RequestTimer) -> Reply<C> {
        let watch = watch.keep(&self.context.telemetry, self.metrics(call.view().pattern, Arc::clone));
        let (reply, outcome) = self.dispatch(seen, call, 1).await;
        watch.answered(outcome, status_of::<C, _>(&reply));
        reply
    }

    /// What is stored answers.
    fn answered(
        self: &Arc<Self>,
        pattern: Option<&str>,
        watch: RequestTimer,
        response: Response<Bytes>,
        outcome: Outcome,
    ) -> Response<Bytes> {
        self.metrics(pattern, |counters| {
            watch.answered(&self.context.telemetry, counters, outcome, response.status());
        });
        response
    }

    /// Answers a request that what is stored doesn't. Each way to do it takes the room that it needs, and no more.
    fn dispatch<C: Call>(self: &Arc<Self>, seen: Seen, call: C, looks: usize) -> Settling<'_, C> {
        match seen {
            Seen::Answer(response, outcome) => ready_reply::<C>(response, outcome),
            Seen::Bypass(mark) => Box::pin(self.bypass(mark, call)),
            Seen::Within => Box::pin(self.pass_through(call)),
            Seen::Write(forward) => Box::pin(self.write(forward, call)),
            Seen::Stale(response, forward, place) => {
                let outcome = Outcome::stale(forward.reason());
                self.refresh(forward, place, call);
                ready_reply::<C>(response, outcome)
            }
            // A store that just failed to read isn't asked to write: the handler runs as it would without a cache.
            Seen::Miss(forward, place) if forward.reason() == Reason::Down => {
                Box::pin(self.run_uncached(forward, place, call))
            }
            // Its handler makes parts of its own, which fill nothing.
            Seen::Miss(forward, place)
                if forward.keeps_range() && self.context.known_to_make_parts.contains(&place.primary) =>
            {
                Box::pin(self.bypass(forward.unstored(Reason::Range), call))
            }
            Seen::Miss(forward, place) if forward.holds_up_others() => {
                Box::pin(self.run_uncached(forward.because(Reason::Spelling), place, call))
            }
            Seen::Miss(forward, place) if !forward.is_shared() => {
                Box::pin(self.fill(forward, place, call, None, looks))
            }
            Seen::Miss(forward, place) => {
                match self.context.single_flight.join(&place.target, forward.provenance()) {
                    Role::Apart => Box::pin(self.run_uncached(forward.because(Reason::Busy), place, call)),
                    Role::Leader(lead) => Box::pin(self.fill(forward, place, call, Some(lead), looks)),
                    Role::Follower(follow) => Box::pin(async move {
                        match self.follow(follow, forward).await {
                            Followed::Answer(response, outcome) => {
                                (Ok(response.map(ReplyBody::full)), outcome)
                            }
                            Followed::Again(_) if looks < LOOKS => self.retry_lookup(call, looks).await,
                            Followed::Again(forward) | Followed::Alone(forward) => {
                                self.run_uncached(forward, place, call).await
                            }
                        }
                    }),
                }
            }
        }
    }

    /// Looks once more: what was waited for, or found where nothing was expected, is not for this request.
    async fn retry_lookup<C: Call>(self: &Arc<Self>, call: C, looks: usize) -> Counted<C> {
        self.miss_predictor.record_hit();
        let seen = match self.lookup_now(call.view()) {
            Looked::Seen(seen) => seen,
            Looked::Further(further) => self.lookup_later(further, call.view()).await,
        };
        self.dispatch(seen, call, looks + 1).await
    }

    /// The cache takes no part, but says so.
    async fn bypass<C: Call>(&self, mark: Mark, call: C) -> Counted<C> {
        self.warn_undeclared(mark.reason(), call.view().pattern);
        let mut response = match call.run().await {
            Ok(response) => response.map(ReplyBody::own),
            Err(error) => return failed::<C, _>(error),
        };
        mark.stamp_response(&mut response);
        let outcome = Outcome::passed(mark.reason(), response.status());
        (Ok(response), outcome)
    }

    /// The cache takes no part, and says nothing: the same cache is around this one, and says it.
    async fn pass_through<C: Call>(&self, call: C) -> Counted<C> {
        if !self.warned_nested.swap(true, Ordering::Relaxed) {
            warn!(
                route = self.label(call.view().pattern),
                group = self.policy.rule().space.group(),
                reason = Reason::Nested.as_str(),
                "this cache runs the handler for the same key already, in a layer around this one or because the \
                 handler asks for its own resource: the inner request passes through"
            );
        }
        match call.run().await {
            Ok(response) => {
                let outcome = Outcome::passed(Some(Reason::Nested), response.status());
                (Ok(response.map(ReplyBody::own)), outcome)
            }
            Err(error) => failed::<C, _>(error),
        }
    }

    /// If the request is one for the cache, looks under the key, and under the secondary key if the resource varies: as far
    /// as that needs no waiting.
    fn lookup_now(&self, request: RequestView<'_>) -> Looked {
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
    async fn lookup_later(&self, further: Box<Further>, request: RequestView<'_>) -> Seen {
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

    /// What lay under the key of the request. `Err` if the resource varies.
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

    /// What lay under the secondary key.
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

    fn predicts_miss(&self, lookup: &Lookup) -> bool {
        lookup.is_plain() && self.miss_predictor.predicts_miss()
    }

    pub(crate) async fn read_record(&self, key: &CacheKey) -> Result<Option<Record>, Reason> {
        self.find(key).await.and_then(read)
    }

    /// The bytes of a record, at hand or not.
    async fn find(&self, key: &CacheKey) -> Result<Option<Bytes>, Reason> {
        match self.context.store.try_get(key) {
            Some(bytes) => Ok(Some(bytes)),
            None => self.fetch(key).await,
        }
    }

    /// The bytes of a record that is not at hand.
    async fn fetch(&self, key: &CacheKey) -> Result<Option<Bytes>, Reason> {
        self.context.store.fetch(key).await.map_err(|error| {
            self.context.store_failed("get", key.name(), &error);
            Reason::Down
        })
    }

    /// A record that is not at hand. Of a large response it may hold no more than the request needs, and then the lookup
    /// knows.
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

    async fn follow(&self, follow: Follower, forward: Forward) -> Followed {
        match self.context.follow(follow).await {
            Some(FillOutcome::Stored(record)) => {
                match forward.on_filled(Record::decode(&record), self.context.now()) {
                    Ok(hit) => Followed::Answer(hit.collapsed().into_response(), Outcome::COLLAPSED),
                    Err(forward) => Followed::Again(forward),
                }
            }
            Some(FillOutcome::Retry) => Followed::Again(forward),
            Some(FillOutcome::HandlerFailed) => match forward.or_fallback() {
                Ok(hit) => Followed::Answer(hit.collapsed().into_response(), Outcome::stale(Reason::Failed)),
                Err(forward) => Followed::Alone(forward.because(Reason::Busy)),
            },
            Some(FillOutcome::Uncacheable) => Followed::Alone(forward.because(Reason::Busy)),
            None => Followed::Alone(forward.because(Reason::Waited)),
        }
    }

    /// Runs the handler for this request alone, and stores nothing.
    async fn run_uncached<C: Call>(&self, forward: Forward, place: FillKey, call: C) -> Counted<C> {
        let outcome =
            if forward.reason() == Reason::Down { CommitResult::Failed } else { CommitResult::Revoked };
        match self.produce(forward, Some(&place.primary), call).await {
            Produced::Error(error) => failed::<C, _>(error),
            Produced::Stale(response) => stale_reply::<C>(response),
            Produced::Passed(response, pass) => passed::<C>(response, &pass),
            Produced::Admitted(admitted) => answered::<C>(*admitted, outcome),
        }
    }

    /// Fills what is missing, detached from the client.
    async fn fill<C: Call>(
        self: &Arc<Self>,
        forward: Forward,
        place: FillKey,
        call: C,
        lead: Option<Leader>,
        looks: usize,
    ) -> Counted<C> {
        let route = Arc::clone(self);
        let work = Box::pin(async move {
            let started = match forward.intent() {
                Some(intent) => route.start_fill(&forward, &place.target, intent).await,
                None => Started::Without(forward.reason()),
            };
            match started {
                Started::LeaseGuard(held) => {
                    route.miss_predictor.record_miss();
                    route.fill_held(forward, place, call, held, lead).await
                }
                Started::Found(record) => {
                    route.miss_predictor.record_hit();
                    // Who joined meanwhile may have come after an eviction of this: let them look for themselves.
                    land(lead, FillOutcome::Retry);
                    match forward.on_filled(Record::decode(&record), route.context.now()) {
                        Ok(hit) => (Ok(hit.into_response().map(ReplyBody::full)), Outcome::HIT),
                        Err(_) if looks < LOOKS => route.retry_lookup(call, looks).await,
                        Err(forward) => route.run_uncached(forward, place, call).await,
                    }
                }
                Started::Without(reason) => {
                    route.miss_predictor.record_hit();
                    // Nothing will be stored, so nobody needs to wait for it.
                    land(lead, FillOutcome::Uncacheable);
                    route.run_uncached(forward.because(reason), place, call).await
                }
            }
        });
        self.context.detached(work).await.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Refreshes a stale entry in the background. One request does it; if another process does, nothing needs doing.
    fn refresh<C: Call>(self: &Arc<Self>, forward: Forward, place: FillKey, call: C) {
        let Some(intent) = forward.intent() else { return };
        let Role::Leader(lead) = self.context.single_flight.join(&place.target, forward.provenance()) else {
            return;
        };
        let route = Arc::clone(self);
        let work = Box::pin(async move {
            if let Started::LeaseGuard(held) = route.context.start(&place.target, intent, None).await {
                // Nobody waits for the answer, and the handler's error is the handler's to report.
                let _: Counted<C> = route.fill_held(forward, place, call, held, Some(lead)).await;
            }
        });
        self.context.in_background(work);
    }

    /// Asks for the right to fill, and waits for another process that has it.
    async fn start_fill(&self, forward: &Forward, key: &CacheKey, intent: Intent) -> Started {
        let is_fresh = |record: &Bytes| match Record::decode(record) {
            Some(Record::Response(entry)) => !entry.is_expired(self.context.now()),
            _ => false,
        };
        // What another pattern's request fills is not for this one.
        let waits = forward.is_shared() && forward.reason() != Reason::Pattern;
        let awaited = waits.then_some(&is_fresh as &(dyn Fn(&Bytes) -> bool + Send + Sync));
        self.context.start(key, intent, awaited).await
    }

    async fn fill_held<C: Call>(
        &self,
        forward: Forward,
        place: FillKey,
        call: C,
        held: LeaseGuard,
        lead: Option<Leader>,
    ) -> Counted<C> {
        let replaces = forward.intent() == Some(Intent::Refresh);
        // A spelling that another route may have must not keep that route's requests from being stored.
        let uncacheable = if forward.provenance().is_canonical {
            Abandon::Uncacheable(UNCACHEABLE_FOR)
        } else {
            Abandon::Failed
        };
        let produced = held.renewing(pin!(self.produce(forward, Some(&place.primary), call))).await;
        let (status, counted) = match produced {
            Produced::Admitted(mut admitted) => {
                let stored = self.store(&mut admitted, &place, held, lead).await;
                return answered::<C>(*admitted, stored);
            }
            Produced::Stale(response) => (StatusCode::INTERNAL_SERVER_ERROR, stale_reply::<C>(response)),
            Produced::Passed(response, pass) if pass.mark().reason() == Some(Reason::Range) => {
                // A part says nothing about the whole: the next request may fill at once.
                held.abandon(Abandon::Failed);
                land(lead, FillOutcome::Retry);
                return passed::<C>(response, &pass);
            }
            Produced::Passed(response, pass) => (response.status(), passed::<C>(response, &pass)),
            Produced::Error(error) => (C::status_of(&error), failed::<C, _>(error)),
        };
        if status.is_server_error() {
            held.abandon(Abandon::Failed);
            land(lead, FillOutcome::HandlerFailed);
        } else {
            if replaces && invalidates(status) {
                self.context.evict_key(&place.target).await;
            }
            held.abandon(uncacheable);
            land(lead, FillOutcome::Uncacheable);
        }
        counted
    }

    /// Stores what was filled where it belongs, and tells those who wait.
    async fn store(
        &self,
        admitted: &mut Admitted,
        place: &FillKey,
        held: LeaseGuard,
        lead: Option<Leader>,
    ) -> CommitResult {
        let span = spans::set(&place.target, admitted.retention());
        let stored = span.around(self.store_within(admitted, place, held, lead)).await;
        span.stored(stored);
        stored
    }

    async fn store_within(
        &self,
        admitted: &mut Admitted,
        place: &FillKey,
        held: LeaseGuard,
        mut lead: Option<Leader>,
    ) -> CommitResult {
        if let Some(lead) = &mut lead {
            lead.close();
        }
        let ttl = admitted.retention();
        let placement = admitted.place(self.context.fresh_id());
        let (stored, landing) = match placement {
            Placement::Target => {
                let record = admitted.record();
                (held.commit(record.clone(), ttl).await, FillOutcome::Stored(record))
            }
            Placement::NewVariant(secondary, id) => {
                let record = admitted.record();
                let stored = match held.commit(record.clone(), ttl).await {
                    CommitResult::Stored => {
                        let kept_for = admitted.variants_retention();
                        self.context.list_variant(&place.primary, secondary, id, kept_for).await
                    }
                    stored => stored,
                };
                (stored, FillOutcome::Stored(record))
            }
            Placement::Widened(secondary, variants, instead_of) => {
                self.context.known_to_vary.insert(&place.primary);
                held.abandon(Abandon::Failed);
                let variant = (place.primary.variant(secondary), admitted.record(), ttl);
                let kept_for = admitted.variants_retention();
                let stored =
                    self.context.widen(&place.primary, variant, &variants, instead_of, kept_for).await;
                (stored, FillOutcome::Retry)
            }
            Placement::FirstVariant(secondary, variants) => {
                self.context.known_to_vary.insert(&place.primary);
                let variant = (place.primary.variant(secondary), admitted.record(), ttl);
                let stored =
                    held.commit_first_variant(variant, &variants, admitted.variants_retention()).await;
                (stored, FillOutcome::Retry)
            }
        };
        let landing = match stored {
            CommitResult::Stored => landing,
            CommitResult::Revoked => FillOutcome::Retry,
            CommitResult::Failed => FillOutcome::Uncacheable,
        };
        land(lead, landing);
        stored
    }

    /// A route that writes: runs its handler and then stores or evicts, detached from the client.
    async fn write<C: Call>(self: &Arc<Self>, forward: Forward, call: C) -> Counted<C> {
        let target = match forward.kind() {
            Kind::EvictGroup => Target::Group(self.policy.rule().space.clone()),
            _ => match self.key(&call.view(), forward.principal()).await {
                Some(key) if reentry::is_running(&self.context, &key, call.view().extensions) => {
                    return self.pass_through(call).await;
                }
                Some(key) => Target::Key(key),
                None => return self.bypass(forward.unstored(Reason::Keyless), call).await,
            },
        };
        self.warn_undeclared(forward.why_not_storable(), call.view().pattern);
        let mut evicted = vec![target.clone()];
        if matches!(target, Target::Key(_)) {
            for uri in call.view().alternatives {
                let key = self.key(&call.view().with_uri(uri), forward.principal()).await;
                evicted.extend(key.map(Target::Key));
            }
        }
        let (route, targets) = (Arc::clone(self), evicted.clone());
        let asked = Asked::of(&call.view(), forward.principal());
        let work = Box::pin(async move {
            let held = match (&target, forward.intent()) {
                (Target::Key(key), Some(intent)) => route.context.start(key, intent, None).await.held(),
                _ => None,
            };
            // A handler that panics, or is given up on, may have changed what it is there to change. This stays armed
            // until the cache agrees with it.
            let unknown = EvictOnDrop::new(&route.context, &targets);
            let produced = match &held {
                Some(held) => held.renewing(pin!(route.produce(forward, target.key(), call))).await,
                None => route.produce(forward, target.key(), call).await,
            };
            let counted = match produced {
                Produced::Error(error) => {
                    if leaves_outcome_unknown(C::status_of(&error)) {
                        route.context.evict(&targets).await;
                    }
                    failed::<C, _>(error)
                }
                // Only reads have something stale to answer with.
                Produced::Stale(response) => stale_reply::<C>(response),
                Produced::Passed(response, pass) => {
                    if pass.evicts() {
                        route.context.evict(&targets).await;
                    }
                    passed::<C>(response, &pass)
                }
                Produced::Admitted(admitted) => {
                    let stored = route.write_through(&admitted, &target, held).await;
                    if stored != CommitResult::Stored {
                        route.context.evict(&targets).await;
                    }
                    answered::<C>(*admitted, stored)
                }
            };
            if let Ok(response) = &counted.0 {
                route.evict_created(&asked, &target, response.status(), response.headers()).await;
            }
            unknown.disarm();
            counted
        });
        self.context.run_write(&evicted, work).await
    }

    /// Evicts what is stored for a resource that a write created elsewhere (RFC 9110 §15.3.2): most likely that there was
    /// none.
    async fn evict_created(&self, asked: &Asked, target: &Target, status: StatusCode, response: &HeaderMap) {
        if status != StatusCode::CREATED {
            return;
        }
        let request = RequestView::from(&asked.request);
        if let Some(created) = same_site(response, &LOCATION, request.uri, &host(&request))
            && let Some(key) = self.key(&request.with_uri(&created), asked.principal).await
            // What was written itself is stored or evicted already.
            && !matches!(target, Target::Key(written) if *written == key)
        {
            self.context.evict_key(&key).await;
        }
    }

    /// Stores a write's answer if its ticket is still the current one. Anything else, and the caller evicts.
    async fn write_through(
        &self,
        admitted: &Admitted,
        target: &Target,
        held: Option<LeaseGuard>,
    ) -> CommitResult {
        let (Target::Key(key), Some(held)) = (target, held) else { return CommitResult::Failed };
        // One answer can't stand for all variants, and the record that leads to them may just have expired.
        if self.context.known_to_vary.contains(key) {
            return CommitResult::Revoked;
        }
        let found = self.read_record(key).await;
        if matches!(found, Ok(Some(Record::Variants(_)))) {
            self.context.known_to_vary.insert(key);
        }
        if let Ok(Some(record)) = found
            && !admitted.may_replace(&record)
        {
            return CommitResult::Revoked;
        }
        let span = spans::put(key, admitted.retention());
        let stored = span.around(held.commit(admitted.record(), admitted.retention())).await;
        span.stored(stored);
        stored
    }

    /// Runs the handler and asks the policy about its answer.
    ///
    /// `key` is what the answer may be stored or evicted under.
    async fn produce<C: Call>(&self, forward: Forward, key: Option<&CacheKey>, mut call: C) -> Produced<C> {
        forward.prepare(call.headers_mut());
        let reply = match key {
            Some(key) => reentry::run(&self.context, key, call).await,
            None => call.run().await,
        };
        let response = match reply {
            Ok(response) => response,
            Err(error) => {
                return match forward.on_error(C::status_of(&error)) {
                    Some(hit) => Produced::Stale(hit.into_response()),
                    None => Produced::Error(error),
                };
            }
        };
        let answered_at = self.context.now();
        let (parts, body) = response.into_parts();
        let length = length_of(&parts.headers, &body);
        let (pass, parts, body) = match forward.on_response(&parts, length) {
            OnResponse::Pass(pass) => (pass, parts, ReplyBody::own(body)),
            OnResponse::ServeStale(hit) => return Produced::Stale(hit.into_response()),
            OnResponse::Admit(admit) => match collect(body, admit.length()).await {
                Ok(bytes) => return Produced::Admitted(Box::new(admit.on_body(parts, bytes, answered_at))),
                Err(body) => (admit.on_broken_body(), parts, body),
            },
        };
        if pass.mark().reason() == Some(Reason::Range)
            && let Some(key) = key
        {
            self.context.known_to_make_parts.insert(key);
        }
        let mut parts = parts;
        pass.as_part(&mut parts);
        let mut response = Response::from_parts(parts, body);
        if pass.is_not_modified() {
            let (mut parts, _) = response.into_parts();
            pass.as_not_modified(&mut parts);
            response = Response::from_parts(parts, ReplyBody::full(Bytes::new()));
        }
        pass.mark().stamp_response(&mut response);
        Produced::Passed(response, pass)
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

    fn key_at_once(&self, request: &RequestView<'_>, principal: Option<Principal>) -> Keyed<'_> {
        let rule = self.policy.rule();
        match &self.key_source {
            KeySource::Uri => Keyed::Key(rule.key(request, principal)),
            KeySource::Sync(build) => build(request)
                .map_or(Keyed::None, |suffix| Keyed::Key(rule.chosen_key(&suffix, request, principal))),
            KeySource::Async(build) => Keyed::Later(&**build),
        }
    }

    /// Says once a route that its author should say whose the responses are.
    fn warn_undeclared(&self, reason: Option<Reason>, pattern: Option<&str>) {
        let undeclared = matches!(reason, Some(Reason::Authorization | Reason::Cookie | Reason::Credentials));
        if undeclared && !self.warned.swap(true, Ordering::Relaxed) {
            warn!(
                route = self.label(pattern),
                reason = reason.map(Reason::as_str),
                group = self.policy.rule().space.group(),
                "requests with credentials bypass this route's cache: declare it .public() or .private()"
            );
        }
    }
}

/// An answer, and what it is to be counted as.
type Counted<C> = (Reply<C>, Outcome);

/// An answer that takes more than a look into the store.
type Settling<'a, C> = Pin<Box<dyn Future<Output = Counted<C>> + Send + 'a>>;

fn ready_reply<'a, C: Call>(response: Response<Bytes>, outcome: Outcome) -> Settling<'a, C> {
    Box::pin(ready((Ok(response.map(ReplyBody::full)), outcome)))
}

/// The status that a reply will be sent with.
pub(crate) fn status_of<C: Call, B>(reply: &Result<Response<B>, C::Error>) -> StatusCode {
    reply.as_ref().map_or_else(C::status_of, Response::status)
}

pub(crate) fn failed<C: Call, B>(error: C::Error) -> (Result<Response<B>, C::Error>, Outcome) {
    let outcome = Outcome::passed(Some(Reason::Failed), C::status_of(&error));
    (Err(error), outcome)
}

/// What is stored answers because the handler failed.
fn stale_reply<C: Call>(response: Response<Bytes>) -> Counted<C> {
    (Ok(response.map(ReplyBody::full)), Outcome::stale(Reason::Failed))
}

fn passed<C: Call>(response: Response<ReplyBody<C::Body>>, pass: &Pass) -> Counted<C> {
    let outcome = Outcome::passed(pass.mark().reason(), response.status());
    (Ok(response), outcome)
}

fn answered<C: Call>(admitted: Admitted, stored: CommitResult) -> Counted<C> {
    let outcome = Outcome::miss(admitted.reason(stored));
    (Ok(admitted.into_response(stored).map(ReplyBody::full)), outcome)
}

/// A request that [`Route::look`] found no answer for.
#[must_use = "nobody answers the request unless it goes on"]
pub struct Deferred {
    route: Arc<Route>,
    watch: RequestTimer,
    looked: Looked,
}

impl Deferred {
    /// Answers the request, which `call` must hold: the second half of [`Route::handle`].
    pub fn respond<C: Call>(self, call: C) -> ResponseFuture<C::Body, C::Error> {
        let Self { route, watch, looked } = self;
        // What is in memory answers most requests. What else may come of one needs much more room, and takes it only then.
        match looked {
            Looked::Seen(seen) => ResponseFuture::later(route.respond(seen, call, watch)),
            Looked::Further(further) => ResponseFuture::later(async move {
                match route.lookup_later(further, call.view()).await {
                    Seen::Answer(response, outcome) => {
                        let response = route.answered(call.view().pattern, watch, response, outcome);
                        Ok(response.map(ReplyBody::full))
                    }
                    seen => Box::pin(route.respond(seen, call, watch)).await,
                }
            }),
        }
    }
}

impl fmt::Debug for Deferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deferred").field("route", &self.route).finish_non_exhaustive()
    }
}

/// The future of an answer: of one that is there already, or of one that takes more than a look into memory.
///
/// What is to be had without waiting is looked for when [`Route::handle`] is called; all the rest happens when this is polled.
#[must_use = "nothing is answered unless it is polled"]
pub struct ResponseFuture<B: Body, E>(State<B, E>);

type Answer<B, E> = Result<Response<ReplyBody<B>>, E>;

enum State<B: Body, E> {
    /// Until it is taken.
    Now(Option<Answer<B, E>>),
    Later(Pin<Box<dyn Future<Output = Answer<B, E>> + Send>>),
}

impl<B: Body, E> ResponseFuture<B, E> {
    /// The answer that [`Route::look`] found.
    pub fn ready(response: Response<Bytes>) -> Self {
        Self(State::Now(Some(Ok(response.map(ReplyBody::full)))))
    }

    fn later(reply: impl Future<Output = Answer<B, E>> + Send + 'static) -> Self {
        Self(State::Later(Box::pin(reply)))
    }
}

// Nothing in it is ever pinned but what is in the box.
impl<B: Body, E> Unpin for ResponseFuture<B, E> {}

impl<B: Body, E> Future for ResponseFuture<B, E> {
    type Output = Answer<B, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            // As a future does that has been polled to its end.
            State::Now(reply) => reply.take().map_or(Poll::Pending, Poll::Ready),
            State::Later(reply) => reply.as_mut().poll(context),
        }
    }
}

impl<B: Body, E> fmt::Debug for ResponseFuture<B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ResponseFuture").finish_non_exhaustive()
    }
}

/// What a record says. `Err` if it is none.
fn read(found: Option<Bytes>) -> Result<Option<Record>, Reason> {
    found.map(|bytes| Record::decode(&bytes).ok_or(Reason::Unreadable)).transpose()
}

/// A request that writes, kept while its handler has it.
struct Asked {
    request: http::request::Parts,
    principal: Option<Principal>,
}

impl Asked {
    fn of(view: &RequestView<'_>, principal: Option<Principal>) -> Self {
        let (mut request, ()) = http::Request::new(()).into_parts();
        request.method = view.method.clone();
        request.uri = view.uri.clone();
        request.headers = view.headers.clone();
        request.extensions = view.extensions.clone();
        Self { request, principal }
    }
}

/// The key of a request, as far as that needs no waiting.
enum Keyed<'a> {
    Key(CacheKey),
    None,
    Later(&'a dyn DynKeyBuilder),
}

/// How far a look came without waiting.
enum Looked {
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
enum Further {
    /// The key.
    Keyless(Lookup, Span),
    /// What lies under it, for nothing is at hand.
    Missing(Lookup, CacheKey, Span),
    /// The resource varies, and the variant is not at hand.
    Selected(Select, CacheKey, CacheKey, Span),
}

/// What became of a look at a request and into the store.
enum Seen {
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

/// What became of following a flight.
enum Followed {
    Answer(Response<Bytes>, Outcome),
    Alone(Forward),
    Again(Forward),
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

/// What the handler's answer came to.
enum Produced<C: Call> {
    Error(C::Error),
    Stale(Response<Bytes>),
    Passed(Response<ReplyBody<C::Body>>, Pass),
    Admitted(Box<Admitted>),
}

pub(crate) fn land(lead: Option<Leader>, landing: FillOutcome) {
    if let Some(lead) = lead {
        lead.complete(landing);
    }
}
