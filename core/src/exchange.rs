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
use crate::fill::lease::{Held, Started};
use crate::fill::reentry;
use crate::fill::single_flight::{Follow, Landing, Lead, Role};
use crate::key::CacheKey;
use crate::policy::rule::{Kind, Principal, host};
use crate::policy::{
    Admitted, Decision, Forward, Lookup, Mark, OnEntry, OnRequest, OnResponse, Pass, Placement, Select,
    Stored, contradicts, leaves_outcome_unknown,
};
use crate::reason::Reason;
use crate::record::{self, Entry, Record};
use crate::request::RequestView;
use crate::route::{ErasedKeyBuilder, KeySource, Route};
use crate::shared::invalidation::same_site;
use crate::status::Outcome;
use crate::store::{Abandon, Intent};
use crate::telemetry::Watch;
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
    pub fn handle<C: Call>(self: Arc<Self>, call: C) -> Answering<C::Body, C::Error> {
        match self.look(call.view()) {
            Ok(response) => Answering::ready(response),
            Err(unanswered) => unanswered.go_on(call),
        }
    }

    /// Answers one request, if that takes no more than a look into memory: the first half of [`handle`](Self::handle), for
    /// adapters for whom it costs something to put a [`Call`] together.
    ///
    /// # Errors
    ///
    /// Nothing that answers is at hand: go on with what this returns.
    pub fn look(self: &Arc<Self>, request: RequestView<'_>) -> Result<Response<Bytes>, Unanswered> {
        let watch = Watch::new(&self.shared, &request);
        match self.look_at_once(request) {
            Looked::Seen(Seen::Answer(response, outcome)) => {
                Ok(self.answered(request.pattern, watch, response, outcome))
            }
            looked => Err(Unanswered { route: Arc::clone(self), watch, looked }),
        }
    }

    /// Answers a request that what is stored doesn't, and counts it.
    async fn go_on<C: Call>(self: Arc<Self>, seen: Seen, call: C, watch: Watch) -> Reply<C> {
        let watch = watch.keep(&self.shared.telemetry, self.tally(call.view().pattern, Arc::clone));
        let (reply, outcome) = self.settle(seen, call, 1).await;
        watch.answered(outcome, status_of::<C, _>(&reply));
        reply
    }

    /// What is stored answers.
    fn answered(
        self: &Arc<Self>,
        pattern: Option<&str>,
        watch: Watch,
        response: Response<Bytes>,
        outcome: Outcome,
    ) -> Response<Bytes> {
        self.tally(pattern, |counters| {
            watch.answered(&self.shared.telemetry, counters, outcome, response.status());
        });
        response
    }

    /// Answers a request that what is stored doesn't. Each way to do it takes the room that it needs, and no more.
    fn settle<C: Call>(self: &Arc<Self>, seen: Seen, call: C, looks: usize) -> Settling<'_, C> {
        match seen {
            Seen::Answer(response, outcome) => at_once::<C>(response, outcome),
            Seen::Bypass(mark) => Box::pin(self.bypass(mark, call)),
            Seen::Within => Box::pin(self.pass_through(call)),
            Seen::Write(forward) => Box::pin(self.write(forward, call)),
            Seen::Stale(response, forward, place) => {
                let outcome = Outcome::stale(forward.reason());
                self.refresh(forward, place, call);
                at_once::<C>(response, outcome)
            }
            // A store that just failed to read isn't asked to write: the handler runs as it would without a cache.
            Seen::Miss(forward, place) if forward.reason() == Reason::Down => {
                Box::pin(self.alone(forward, place, call))
            }
            // Its handler makes parts of its own, which fill nothing.
            Seen::Miss(forward, place)
                if forward.keeps_range() && self.shared.known_to_make_parts.contains(&place.base) =>
            {
                Box::pin(self.bypass(forward.unstored(Reason::Range), call))
            }
            Seen::Miss(forward, place) if forward.holds_up_others() => {
                Box::pin(self.alone(forward.because(Reason::Spelling), place, call))
            }
            Seen::Miss(forward, place) if !forward.is_shared() => {
                Box::pin(self.fill(forward, place, call, None, looks))
            }
            Seen::Miss(forward, place) => match self.shared.flights.join(&place.target, forward.provenance())
            {
                Role::Apart => Box::pin(self.alone(forward.because(Reason::Busy), place, call)),
                Role::Lead(lead) => Box::pin(self.fill(forward, place, call, Some(lead), looks)),
                Role::Follow(follow) => Box::pin(async move {
                    match self.follow(follow, forward).await {
                        Followed::Answer(response, outcome) => (Ok(response.map(ReplyBody::full)), outcome),
                        Followed::Again(_) if looks < LOOKS => self.again(call, looks).await,
                        Followed::Again(forward) | Followed::Alone(forward) => {
                            self.alone(forward, place, call).await
                        }
                    }
                }),
            },
        }
    }

    /// Looks once more: what was waited for, or found where nothing was expected, is not for this request.
    async fn again<C: Call>(self: &Arc<Self>, call: C, looks: usize) -> Counted<C> {
        self.foresight.looks_again();
        let seen = match self.look_at_once(call.view()) {
            Looked::Seen(seen) => seen,
            Looked::Further(further) => self.look_further(further, call.view()).await,
        };
        self.settle(seen, call, looks + 1).await
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
    fn look_at_once(&self, request: RequestView<'_>) -> Looked {
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
        if reentry::is_running(&self.shared, &key, request.extensions) {
            return Looked::Seen(Seen::Within.told(&span));
        }
        let Some(bytes) = self.shared.store.at_hand(&key) else {
            return Looked::further(Further::Missing(lookup, key, span));
        };
        self.foresight.looks_again();
        let (select, key) = match self.on_found(lookup, read(Some(bytes)), key, &request, &span) {
            Ok(seen) => return Looked::Seen(seen),
            Err(varies) => varies,
        };
        let target = key.variant(select.secondary_key(&request));
        let Some(bytes) = self.shared.store.at_hand(&target) else {
            return Looked::further(Further::Selected(select, key, target, span));
        };
        Looked::Seen(self.on_variant(select, read(Some(bytes)), key, target, &request, &span))
    }

    /// Goes on from there.
    async fn look_further(&self, further: Box<Further>, request: RequestView<'_>) -> Seen {
        let (mut lookup, key, span) = match *further {
            Further::Keyless(lookup, span) => match self.key(&request, lookup.principal()).await {
                Some(key) => {
                    span.key(&key);
                    if reentry::is_running(&self.shared, &key, request.extensions) {
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
        let found = if self.foresees_a_miss(&lookup) {
            Ok(None)
        } else {
            let found = span.around(self.fetch_for(&mut lookup, &key, &request)).await;
            if !matches!(found, Ok(None)) {
                self.foresight.looks_again();
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
        let found = match self.shared.store.at_hand(&target) {
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
        let now = self.shared.now();
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
        let now = self.shared.now();
        Seen::of(select.on_entry(found, request, now), key, Some(target), span)
    }

    fn foresees_a_miss(&self, lookup: &Lookup) -> bool {
        lookup.is_plain() && self.foresight.sees_a_miss()
    }

    pub(crate) async fn read_record(&self, key: &CacheKey) -> Result<Option<Record>, Reason> {
        self.find(key).await.and_then(read)
    }

    /// The bytes of a record, at hand or not.
    async fn find(&self, key: &CacheKey) -> Result<Option<Bytes>, Reason> {
        match self.shared.store.at_hand(key) {
            Some(bytes) => Ok(Some(bytes)),
            None => self.fetch(key).await,
        }
    }

    /// The bytes of a record that is not at hand.
    async fn fetch(&self, key: &CacheKey) -> Result<Option<Bytes>, Reason> {
        self.shared.store.fetch(key).await.map_err(|error| {
            self.shared.store_failed("get", key.name(), &error);
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
            match Box::pin(self.shared.excerpt(key, record::read_beginning, needs)).await? {
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

    async fn follow(&self, follow: Follow, forward: Forward) -> Followed {
        match self.shared.follow(follow).await {
            Some(Landing::Filled(record)) => {
                match forward.on_filled(Record::decode(&record), self.shared.now()) {
                    Ok(hit) => Followed::Answer(hit.collapsed().into_response(), Outcome::COLLAPSED),
                    Err(forward) => Followed::Again(forward),
                }
            }
            Some(Landing::Again) => Followed::Again(forward),
            Some(Landing::Failed) => match forward.or_fallback() {
                Ok(hit) => Followed::Answer(hit.collapsed().into_response(), Outcome::stale(Reason::Failed)),
                Err(forward) => Followed::Alone(forward.because(Reason::Busy)),
            },
            Some(Landing::Alone) => Followed::Alone(forward.because(Reason::Busy)),
            None => Followed::Alone(forward.because(Reason::Waited)),
        }
    }

    /// Runs the handler for this request alone, and stores nothing.
    async fn alone<C: Call>(&self, forward: Forward, place: Place, call: C) -> Counted<C> {
        let outcome = if forward.reason() == Reason::Down { Stored::Failed } else { Stored::Evicted };
        match self.produce(forward, Some(&place.base), call).await {
            Produced::Error(error) => failed::<C, _>(error),
            Produced::Stale(response) => stood_in::<C>(response),
            Produced::Passed(response, pass) => passed::<C>(response, &pass),
            Produced::Admitted(admitted) => answered::<C>(*admitted, outcome),
        }
    }

    /// Fills what is missing, detached from the client.
    async fn fill<C: Call>(
        self: &Arc<Self>,
        forward: Forward,
        place: Place,
        call: C,
        lead: Option<Lead>,
        looks: usize,
    ) -> Counted<C> {
        let route = Arc::clone(self);
        let work = Box::pin(async move {
            let started = match forward.intent() {
                Some(intent) => route.start_fill(&forward, &place.target, intent).await,
                None => Started::Without(forward.reason()),
            };
            match started {
                Started::Held(held) => {
                    route.foresight.missed();
                    route.fill_held(forward, place, call, held, lead).await
                }
                Started::Found(record) => {
                    route.foresight.looks_again();
                    // Who joined meanwhile may have come after an eviction of this: let them look for themselves.
                    land(lead, Landing::Again);
                    match forward.on_filled(Record::decode(&record), route.shared.now()) {
                        Ok(hit) => (Ok(hit.into_response().map(ReplyBody::full)), Outcome::HIT),
                        Err(_) if looks < LOOKS => route.again(call, looks).await,
                        Err(forward) => route.alone(forward, place, call).await,
                    }
                }
                Started::Without(reason) => {
                    route.foresight.looks_again();
                    // Nothing will be stored, so nobody needs to wait for it.
                    land(lead, Landing::Alone);
                    route.alone(forward.because(reason), place, call).await
                }
            }
        });
        self.shared.detached(work).await.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Refreshes a stale entry in the background. One request does it; if another process does, nothing needs doing.
    fn refresh<C: Call>(self: &Arc<Self>, forward: Forward, place: Place, call: C) {
        let Some(intent) = forward.intent() else { return };
        let Role::Lead(lead) = self.shared.flights.join(&place.target, forward.provenance()) else { return };
        let route = Arc::clone(self);
        let work = Box::pin(async move {
            if let Started::Held(held) = route.shared.start(&place.target, intent, None).await {
                // Nobody waits for the answer, and the handler's error is the handler's to report.
                let _: Counted<C> = route.fill_held(forward, place, call, held, Some(lead)).await;
            }
        });
        self.shared.in_background(work);
    }

    /// Asks for the right to fill, and waits for another process that has it.
    async fn start_fill(&self, forward: &Forward, key: &CacheKey, intent: Intent) -> Started {
        let is_fresh = |record: &Bytes| match Record::decode(record) {
            Some(Record::Response(entry)) => !entry.is_expired(self.shared.now()),
            _ => false,
        };
        // What another pattern's request fills is not for this one.
        let waits = forward.is_shared() && forward.reason() != Reason::Pattern;
        let awaited = waits.then_some(&is_fresh as &(dyn Fn(&Bytes) -> bool + Send + Sync));
        self.shared.start(key, intent, awaited).await
    }

    async fn fill_held<C: Call>(
        &self,
        forward: Forward,
        place: Place,
        call: C,
        held: Held,
        lead: Option<Lead>,
    ) -> Counted<C> {
        let replaces = forward.intent() == Some(Intent::Refresh);
        // A spelling that another route may have must not keep that route's requests from being stored.
        let uncacheable = if forward.provenance().is_canonical {
            Abandon::Uncacheable(UNCACHEABLE_FOR)
        } else {
            Abandon::Failed
        };
        let produced = held.renewing(pin!(self.produce(forward, Some(&place.base), call))).await;
        let (status, counted) = match produced {
            Produced::Admitted(mut admitted) => {
                let stored = self.store(&mut admitted, &place, held, lead).await;
                return answered::<C>(*admitted, stored);
            }
            Produced::Stale(response) => (StatusCode::INTERNAL_SERVER_ERROR, stood_in::<C>(response)),
            Produced::Passed(response, pass) if pass.mark().reason() == Some(Reason::Range) => {
                // A part says nothing about the whole: the next request may fill at once.
                held.abandon(Abandon::Failed);
                land(lead, Landing::Again);
                return passed::<C>(response, &pass);
            }
            Produced::Passed(response, pass) => (response.status(), passed::<C>(response, &pass)),
            Produced::Error(error) => (C::status_of(&error), failed::<C, _>(error)),
        };
        if status.is_server_error() {
            held.abandon(Abandon::Failed);
            land(lead, Landing::Failed);
        } else {
            if replaces && contradicts(status) {
                self.shared.evict_key(&place.target).await;
            }
            held.abandon(uncacheable);
            land(lead, Landing::Alone);
        }
        counted
    }

    /// Stores what was filled where it belongs, and tells those who wait.
    async fn store(&self, admitted: &mut Admitted, place: &Place, held: Held, lead: Option<Lead>) -> Stored {
        let span = spans::set(&place.target, admitted.retention());
        let stored = span.around(self.store_within(admitted, place, held, lead)).await;
        span.stored(stored);
        stored
    }

    async fn store_within(
        &self,
        admitted: &mut Admitted,
        place: &Place,
        held: Held,
        mut lead: Option<Lead>,
    ) -> Stored {
        if let Some(lead) = &mut lead {
            lead.close();
        }
        let ttl = admitted.retention();
        let placement = admitted.place(self.shared.fresh_id());
        let (stored, landing) = match placement {
            Placement::Target => {
                let record = admitted.record();
                (held.commit(record.clone(), ttl).await, Landing::Filled(record))
            }
            Placement::NewVariant(secondary, id) => {
                let record = admitted.record();
                let stored = match held.commit(record.clone(), ttl).await {
                    Stored::Yes => {
                        let kept_for = admitted.variants_retention();
                        self.shared.list_variant(&place.base, secondary, id, kept_for).await
                    }
                    stored => stored,
                };
                (stored, Landing::Filled(record))
            }
            Placement::Widened(secondary, variants, instead_of) => {
                self.shared.known_to_vary.insert(&place.base);
                held.abandon(Abandon::Failed);
                let variant = (place.base.variant(secondary), admitted.record(), ttl);
                let kept_for = admitted.variants_retention();
                let stored = self.shared.widen(&place.base, variant, &variants, instead_of, kept_for).await;
                (stored, Landing::Again)
            }
            Placement::FirstVariant(secondary, variants) => {
                self.shared.known_to_vary.insert(&place.base);
                let variant = (place.base.variant(secondary), admitted.record(), ttl);
                let stored =
                    held.commit_first_variant(variant, &variants, admitted.variants_retention()).await;
                (stored, Landing::Again)
            }
        };
        let landing = match stored {
            Stored::Yes => landing,
            Stored::Evicted => Landing::Again,
            Stored::Failed => Landing::Alone,
        };
        land(lead, landing);
        stored
    }

    /// A route that writes: runs its handler and then stores or evicts, detached from the client.
    async fn write<C: Call>(self: &Arc<Self>, forward: Forward, call: C) -> Counted<C> {
        let target = match forward.kind() {
            Kind::EvictGroup => Target::Group(self.policy.rule().space.clone()),
            _ => match self.key(&call.view(), forward.principal()).await {
                Some(key) if reentry::is_running(&self.shared, &key, call.view().extensions) => {
                    return self.pass_through(call).await;
                }
                Some(key) => Target::Key(key),
                None => return self.bypass(forward.unstored(Reason::Keyless), call).await,
            },
        };
        self.warn_undeclared(forward.unstorable(), call.view().pattern);
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
                (Target::Key(key), Some(intent)) => route.shared.start(key, intent, None).await.held(),
                _ => None,
            };
            // A handler that panics, or is given up on, may have changed what it is there to change. This stays armed
            // until the cache agrees with it.
            let unknown = EvictOnDrop::new(&route.shared, &targets);
            let produced = match &held {
                Some(held) => held.renewing(pin!(route.produce(forward, target.key(), call))).await,
                None => route.produce(forward, target.key(), call).await,
            };
            let counted = match produced {
                Produced::Error(error) => {
                    if leaves_outcome_unknown(C::status_of(&error)) {
                        route.shared.evict(&targets).await;
                    }
                    failed::<C, _>(error)
                }
                // Only reads have something stale to answer with.
                Produced::Stale(response) => stood_in::<C>(response),
                Produced::Passed(response, pass) => {
                    if pass.evicts() {
                        route.shared.evict(&targets).await;
                    }
                    passed::<C>(response, &pass)
                }
                Produced::Admitted(admitted) => {
                    let stored = route.write_through(&admitted, &target, held).await;
                    if stored != Stored::Yes {
                        route.shared.evict(&targets).await;
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
        self.shared.run_write(&evicted, work).await
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
            self.shared.evict_key(&key).await;
        }
    }

    /// Stores a write's answer if its ticket is still the current one. Anything else, and the caller evicts.
    async fn write_through(&self, admitted: &Admitted, target: &Target, held: Option<Held>) -> Stored {
        let (Target::Key(key), Some(held)) = (target, held) else { return Stored::Failed };
        // One answer can't stand for all variants, and the record that leads to them may just have expired.
        if self.shared.known_to_vary.contains(key) {
            return Stored::Evicted;
        }
        let found = self.read_record(key).await;
        if matches!(found, Ok(Some(Record::Variants(_)))) {
            self.shared.known_to_vary.insert(key);
        }
        if let Ok(Some(record)) = found
            && !admitted.may_replace(&record)
        {
            return Stored::Evicted;
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
            Some(key) => reentry::run(&self.shared, key, call).await,
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
        let answered_at = self.shared.now();
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
            self.shared.known_to_make_parts.insert(key);
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

fn at_once<'a, C: Call>(response: Response<Bytes>, outcome: Outcome) -> Settling<'a, C> {
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
fn stood_in<C: Call>(response: Response<Bytes>) -> Counted<C> {
    (Ok(response.map(ReplyBody::full)), Outcome::stale(Reason::Failed))
}

fn passed<C: Call>(response: Response<ReplyBody<C::Body>>, pass: &Pass) -> Counted<C> {
    let outcome = Outcome::passed(pass.mark().reason(), response.status());
    (Ok(response), outcome)
}

fn answered<C: Call>(admitted: Admitted, stored: Stored) -> Counted<C> {
    let outcome = Outcome::miss(admitted.reason(stored));
    (Ok(admitted.into_response(stored).map(ReplyBody::full)), outcome)
}

/// A request that [`Route::look`] found no answer for.
#[must_use = "nobody answers the request unless it goes on"]
pub struct Unanswered {
    route: Arc<Route>,
    watch: Watch,
    looked: Looked,
}

impl Unanswered {
    /// Answers the request, which `call` must hold: the second half of [`Route::handle`].
    pub fn go_on<C: Call>(self, call: C) -> Answering<C::Body, C::Error> {
        let Self { route, watch, looked } = self;
        // What is in memory answers most requests. What else may come of one needs much more room, and takes it only then.
        match looked {
            Looked::Seen(seen) => Answering::later(route.go_on(seen, call, watch)),
            Looked::Further(further) => Answering::later(async move {
                match route.look_further(further, call.view()).await {
                    Seen::Answer(response, outcome) => {
                        let response = route.answered(call.view().pattern, watch, response, outcome);
                        Ok(response.map(ReplyBody::full))
                    }
                    seen => Box::pin(route.go_on(seen, call, watch)).await,
                }
            }),
        }
    }
}

impl fmt::Debug for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unanswered").field("route", &self.route).finish_non_exhaustive()
    }
}

/// The future of an answer: of one that is there already, or of one that takes more than a look into memory.
///
/// What is to be had without waiting is looked for when [`Route::handle`] is called; all the rest happens when this is polled.
#[must_use = "nothing is answered unless it is polled"]
pub struct Answering<B: Body, E>(State<B, E>);

type Answer<B, E> = Result<Response<ReplyBody<B>>, E>;

enum State<B: Body, E> {
    /// Until it is taken.
    Now(Option<Answer<B, E>>),
    Later(Pin<Box<dyn Future<Output = Answer<B, E>> + Send>>),
}

impl<B: Body, E> Answering<B, E> {
    /// The answer that [`Route::look`] found.
    pub fn ready(response: Response<Bytes>) -> Self {
        Self(State::Now(Some(Ok(response.map(ReplyBody::full)))))
    }

    fn later(reply: impl Future<Output = Answer<B, E>> + Send + 'static) -> Self {
        Self(State::Later(Box::pin(reply)))
    }
}

// Nothing in it is ever pinned but what is in the box.
impl<B: Body, E> Unpin for Answering<B, E> {}

impl<B: Body, E> Future for Answering<B, E> {
    type Output = Answer<B, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            // As a future does that has been polled to its end.
            State::Now(reply) => reply.take().map_or(Poll::Pending, Poll::Ready),
            State::Later(reply) => reply.as_mut().poll(context),
        }
    }
}

impl<B: Body, E> fmt::Debug for Answering<B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Answering").finish_non_exhaustive()
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
    Later(&'a dyn ErasedKeyBuilder),
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
    Stale(Response<Bytes>, Forward, Place),
    Miss(Forward, Place),
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
                Self::Stale(hit.into_response(), forward, Place::new(base, target))
            }
            Decision::Miss(forward) => Self::Miss(forward, Place::new(base, target)),
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
pub(crate) struct Place {
    pub(crate) base: CacheKey,
    pub(crate) target: CacheKey,
}

impl Place {
    /// `target` is the key of the variant, if the resource varies.
    pub(crate) fn new(base: CacheKey, target: Option<CacheKey>) -> Self {
        Self { target: target.unwrap_or_else(|| base.clone()), base }
    }
}

/// What the handler's answer came to.
enum Produced<C: Call> {
    Error(C::Error),
    Stale(Response<Bytes>),
    Passed(Response<ReplyBody<C::Body>>, Pass),
    Admitted(Box<Admitted>),
}

pub(crate) fn land(lead: Option<Lead>, landing: Landing) {
    if let Some(lead) = lead {
        lead.land(landing);
    }
}
