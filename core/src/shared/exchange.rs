//! What joins the shared cache's policy, the store and the origin: from a request to its answer, top to bottom.
//!
//! A request goes to the origin once. What the origin answers is passed on as it comes, and stored when it is complete.
//! Whatever the store does, it is delivered.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::iter;
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Response, Uri, response};
use http_body::Body;
use tracing::Instrument;

use super::body::{Keeper, SharedBody, Unkept, keep};
use super::budget::Budget;
use super::policy::{
    Fate, Freshened, OnRecord, Placement, SharedAdmit, SharedAdmitted, SharedAnswer, SharedCacheStatus,
    SharedDecision, SharedForward, SharedLookup, SharedOnRequest, SharedOnResponse, SharedPolicy,
    SharedWrite,
};
use super::{SharedRecord, SharedRule, StoredResponse};
use crate::body::length_of;
use crate::exchange::excerpt::Excerpt;
use crate::exchange::{Call, FillKey, LOOKS, UNCACHEABLE_FOR, failed, land, status_of};
use crate::fill::background::{EvictOnDrop, Target, Task};
use crate::fill::lease::LeaseGuard;
use crate::fill::reentry;
use crate::fill::single_flight::{FillOutcome, Leader, Role};
use crate::key::{CacheKey, KeySpace};
use crate::larder::Larder;
use crate::larder::context::{CacheContext, panic_invalid_config};
use crate::policy::rule::host;
use crate::policy::{BodyLength, CommitResult};
use crate::provenance::Provenance;
use crate::reason::Reason;
use crate::request::RequestView;
use crate::status::Outcome;
use crate::store::{Abandon, Acquired, Intent};
use crate::telemetry::{RequestTimer, RouteCounters};

/// A shared cache in front of a whole service (RFC 9111). Adapters wrap it in a layer.
///
/// The service is whatever asks the origin. When there was no answer it says so, by an error or by
/// [`OriginFailed`](super::policy::OriginFailed) in the extensions of the response it makes instead; then a stale one may
/// stand in. It must not send a request twice.
pub struct SharedCache {
    context: Arc<CacheContext>,
    policy: SharedPolicy,
    budget: Arc<Budget>,
    counters: Arc<RouteCounters>,
}

/// An answer, or the service's error.
pub type SharedReply<C> = Result<Response<SharedBody<<C as Call>::Body>>, <C as Call>::Error>;

impl SharedCache {
    /// A shared cache with the usual rule.
    #[must_use]
    pub fn new(larder: &Larder) -> Self {
        Self::with_rule(larder, |_| {})
    }

    /// A shared cache whose rule `change` has changed.
    #[must_use]
    #[track_caller]
    pub fn with_rule(larder: &Larder, change: impl FnOnce(&mut SharedRule)) -> Self {
        let context = Arc::clone(&larder.context);
        let space = KeySpace::new(&context.defaults.prefix, None)
            .unwrap_or_else(|error| panic_invalid_config(&error));
        let mut rule = SharedRule { max_body: context.defaults.max_body, ..SharedRule::new(space) };
        change(&mut rule);
        // Not before: `change` may put a list of its own in place.
        rule.credential_fields.extend(context.defaults.credential_fields.iter().cloned());
        rule.max_body = context.storable_body(rule.max_body);
        let counters = context.telemetry.shared_cache();
        let budget = Budget::new(rule.max_held);
        Self { context, policy: SharedPolicy::new(Arc::new(rule)), budget, counters }
    }

    /// The rule it follows.
    #[must_use]
    pub const fn rule(&self) -> &Arc<SharedRule> {
        self.policy.rule()
    }

    /// Removes what is stored for a URI of a host: every variant of it, under `http` and under `https`, whatever spelling
    /// of the URI it was asked for by. If the store is down it is logged, and the store retries what it can.
    ///
    /// Goes on in the background if this future is dropped.
    pub async fn evict(&self, uri: &Uri, host: &str) {
        let (context, keys) = (Arc::clone(&self.context), self.keys_of(&["http", "https"], uri, host));
        let evict = async move { join_all(keys.iter().map(|key| context.evict_key(key))).await };
        self.context.to_the_end(evict).await;
    }

    /// What is stored for a URI under both schemes. A service mostly serves the same under both, so that a write under one
    /// evicts both; RFC 9111 §4.4 allows more to be invalidated.
    fn keys_of(&self, schemes: &[&str], uri: &Uri, host: &str) -> Vec<CacheKey> {
        let rule = self.rule();
        let keys = |scheme| [rule.key_of(scheme, uri, host), rule.key_apart(scheme, uri, host)];
        schemes.iter().copied().flat_map(keys).collect()
    }

    /// Answers one request.
    ///
    /// Needs a tokio runtime. A panic of the service goes on in the caller.
    ///
    /// # Errors
    ///
    /// Only those of the service. The store's are logged.
    #[expect(
        clippy::manual_async_fn,
        reason = "the future of an async fn would have room for the call twice"
    )]
    pub fn handle<C>(self: Arc<Self>, call: C) -> impl Future<Output = SharedReply<C>> + Send + 'static
    where
        C: Call<Body: Body<Error: Into<Box<dyn Error + Send + Sync>>>>,
    {
        async move {
            // A hit is what must be fast. What else may come of a request needs more room, and takes it only then.
            let watch = RequestTimer::new(&self.context.telemetry, || self.context.now(), &call.view());
            let seen = match self.look(call.view()).await {
                Seen::Answer(answer) => {
                    let (reply, outcome) = answered::<C>(answer);
                    watch.answered(
                        &self.context.telemetry,
                        &self.counters,
                        outcome,
                        status_of::<C, _>(&reply),
                    );
                    return reply;
                }
                seen => seen,
            };
            let watch = watch.keep(&self.context.telemetry, Arc::clone(&self.counters));
            let (reply, outcome) = Box::pin(Arc::clone(&self).dispatch(seen, call)).await;
            watch.answered(outcome, status_of::<C, _>(&reply));
            reply
        }
    }

    /// Answers a request that what is stored doesn't.
    async fn dispatch<C: Call>(self: Arc<Self>, mut seen: Seen, call: C) -> Counted<C> {
        let mut looks = 1;
        loop {
            let (forward, place) = match seen {
                Seen::Answer(answer) => return answered::<C>(answer),
                Seen::Bypass(mark) => return bypass(&mark, call).await,
                Seen::Within => return pass_through(call).await,
                Seen::Write(write, key) => return self.write(write, key, call).await,
                Seen::Stale(answer, forward, place) => {
                    self.refresh(forward, place, call);
                    return answered::<C>(answer);
                }
                Seen::Forward(forward, place) => (forward, place),
            };
            if !forward.is_shared() {
                return self.fetch(forward, place, call, None).await;
            }
            let follow = match self.context.single_flight.join(&place.target, Provenance::default()) {
                Role::Leader(lead) => return self.fetch(forward, place, call, Some(lead)).await,
                Role::Apart => return self.fetch(forward, place, call, None).await,
                Role::Follower(follow) => follow,
            };
            let forward = match self.context.follow(follow).await {
                Some(FillOutcome::Stored(_) | FillOutcome::Retry) if looks < LOOKS => {
                    looks += 1;
                    seen = self.look(call.view()).await.collapsed(forward.reason());
                    continue;
                }
                Some(FillOutcome::HandlerFailed) => match forward.on_error(self.context.now()) {
                    Ok(answer) => return answered::<C>(answer),
                    Err(forward) => forward.because(Reason::Busy),
                },
                Some(_) => forward.because(Reason::Busy),
                None => forward.because(Reason::Waited),
            };
            let cache = Arc::clone(&self);
            let work = Box::pin(async move { cache.exchange(forward, place, call, None, None).await });
            return self.detached::<C>(work).await;
        }
    }

    /// If the request is one for the cache, looks under the key, and under the secondary key if the resource varies.
    async fn look(&self, request: RequestView<'_>) -> Seen {
        let mut lookup = match self.policy.on_request(&request) {
            SharedOnRequest::Bypass(mark) => return Seen::Bypass(mark),
            SharedOnRequest::Write(write) => {
                let key = self.rule().key(&request);
                return match reentry::is_running(&self.context, &key, request.extensions) {
                    true => Seen::Within,
                    false => Seen::Write(write, key),
                };
            }
            SharedOnRequest::Lookup(lookup) => lookup,
        };
        let key = lookup.key(&request);
        if reentry::is_running(&self.context, &key, request.extensions) {
            return Seen::Within;
        }
        let found = self.read_for(&mut lookup, &key, &request).await;
        let mut select = match lookup.on_record(found, &request, self.context.now()) {
            OnRecord::Decided(decision) => return Seen::of(decision, key, None),
            OnRecord::Select(select) => select,
        };
        let target = key.variant(select.secondary_key(&request));
        let found = self.read_for(select.lookup_mut(), &target, &request).await;
        Seen::of(select.on_record(found, &request, self.context.now()), key, Some(target))
    }

    /// A record. Of a large response it may hold no more than the request needs, and then the lookup knows.
    async fn read_for(
        &self,
        lookup: &mut SharedLookup,
        key: &CacheKey,
        request: &RequestView<'_>,
    ) -> Result<Option<SharedRecord>, Reason> {
        if !lookup.may_need_less() {
            return self.read_record(key).await;
        }
        if let Some(bytes) = self.context.store.try_get(key) {
            return read(bytes).map(Some);
        }
        let now = self.context.now();
        let needs = |stored: &StoredResponse, length| lookup.needs(stored, length, request, now);
        match Box::pin(self.context.excerpt(key, StoredResponse::read_beginning, needs)).await? {
            Excerpt::Whole(found) => found.map(read).transpose(),
            Excerpt::Part(stored, body, length) => {
                lookup.expect_excerpt(length);
                Ok(Some(SharedRecord::Response(Box::new(StoredResponse { body, ..stored }))))
            }
            Excerpt::TooLittle => self.read_record(key).await,
        }
    }

    async fn read_record(&self, key: &CacheKey) -> Result<Option<SharedRecord>, Reason> {
        match self.context.store.get(key).await {
            Ok(None) => Ok(None),
            Ok(Some(bytes)) => read(bytes).map(Some),
            Err(error) => {
                self.context.store_failed("get", key.name(), &error);
                Err(Reason::Down)
            }
        }
    }

    /// Asks the origin, detached from the client, and stores what may be stored.
    async fn fetch<C: Call>(
        self: &Arc<Self>,
        forward: SharedForward,
        place: FillKey,
        call: C,
        lead: Option<Leader>,
    ) -> Counted<C> {
        let cache = Arc::clone(self);
        self.detached::<C>(Box::pin(async move {
            let intent = forward.intent();
            // Who leads others waits for another process that fills already.
            let is_fresh = |record: &Bytes| match SharedRecord::decode(record) {
                Some(SharedRecord::Response(stored)) => {
                    !stored.no_cache && stored.is_fresh(cache.context.now())
                }
                _ => false,
            };
            let awaited = lead.is_some().then_some(&is_fresh as &(dyn Fn(&Bytes) -> bool + Send + Sync));
            let acquired = match forward.reason() {
                // A store that just failed to read isn't asked to write.
                Reason::Down => Acquired::Busy(Reason::Down),
                _ => cache.context.acquire(&place.target, intent, awaited).await,
            };
            let (forward, held) = match acquired {
                Acquired::Lease(held) => (forward, Some(held)),
                Acquired::Found(record) => {
                    // Who joined meanwhile looks for itself.
                    let found = forward.on_filled(SharedRecord::decode(&record), cache.context.now());
                    match found {
                        Ok(answer) => {
                            land(lead, FillOutcome::Retry);
                            return answered::<C>(answer);
                        }
                        Err(forward) => (forward, None),
                    }
                }
                Acquired::Filling => (forward.because(Reason::Busy), None),
                Acquired::Busy(reason) => (forward.because(reason), None),
            };
            if held.is_some() {
                return cache.exchange(forward, place, call, held, lead).await;
            }
            // Nothing will be stored, so that nobody needs to wait for it.
            land(lead, FillOutcome::Uncacheable);
            cache.exchange(forward, place, call, None, None).await
        }))
        .await
    }

    /// Validates what is stale in the background. One request does it; if another process does, nothing needs doing.
    fn refresh<C: Call>(self: &Arc<Self>, forward: SharedForward, place: FillKey, call: C) {
        let Role::Leader(lead) = self.context.single_flight.join(&place.target, Provenance::default()) else {
            return;
        };
        let cache = Arc::clone(self);
        let work = Box::pin(async move {
            if let Acquired::Lease(held) = cache.context.acquire(&place.target, forward.intent(), None).await
            {
                // Nobody waits for the answer, and the service's error is the service's to report.
                let _: Counted<C> = cache.exchange(forward, place, call, Some(held), Some(lead)).await;
            }
        });
        self.context.in_background(work);
    }

    /// The one place where a read goes to the origin.
    async fn exchange<C: Call>(
        self: &Arc<Self>,
        forward: SharedForward,
        place: FillKey,
        mut call: C,
        held: Option<LeaseGuard>,
        lead: Option<Leader>,
    ) -> Counted<C> {
        forward.prepare(call.headers_mut());
        let sent = self.context.now();
        let reply = match &held {
            Some(held) => held.renewing(pin!(reentry::run(&self.context, &place.primary, call))).await,
            None => reentry::run(&self.context, &place.primary, call).await,
        };
        let now = self.context.now();
        let response = match reply {
            Ok(response) => response,
            Err(error) => {
                give_up(held, lead, true);
                return match forward.on_error(now) {
                    Ok(answer) => answered::<C>(answer),
                    Err(_) => failed::<C, _>(error),
                };
            }
        };
        let (mut parts, body) = response.into_parts();
        without_false_length(&mut parts.headers);
        let length = length_of(&parts.headers, &body);
        match forward.on_response(&parts, length, sent, now) {
            SharedOnResponse::ServeStale(answer) => {
                give_up(held, lead, true);
                answered::<C>(answer)
            }
            SharedOnResponse::Freshened(freshened) => {
                self.freshen(&freshened, &place, held, lead).await;
                let mark = freshened.mark().clone();
                match freshened.into_answer() {
                    Some(answer) => answered::<C>(answer),
                    None => passed::<C>(&mark, parts, body),
                }
            }
            SharedOnResponse::Pass(pass) => {
                if pass.evicts() {
                    self.context.evict_key(&place.target).await;
                }
                give_up(held, lead, parts.status.is_server_error());
                passed::<C>(pass.mark(), parts, body)
            }
            SharedOnResponse::Admit(admit) => {
                let work = Work { held, lead, place, is_write: false };
                self.keep::<C>(admit, parts, body, length, work).await
            }
        }
    }

    /// Stores a validated response with its new fields.
    async fn freshen(
        &self,
        freshened: &Freshened,
        place: &FillKey,
        held: Option<LeaseGuard>,
        lead: Option<Leader>,
    ) {
        match freshened.fate() {
            Fate::Store => {}
            Fate::Leave => return give_up(held, lead, false),
            Fate::Evict => {
                self.context.evict_key(&place.target).await;
                return give_up(held, lead, false);
            }
        }
        let stored = match held {
            Some(held) => held.commit(freshened.record(), Some(freshened.retention())).await,
            None => CommitResult::Failed,
        };
        let serves_others = stored == CommitResult::Stored && freshened.is_fresh();
        land(lead, if serves_others { FillOutcome::Retry } else { FillOutcome::Uncacheable });
    }

    /// Passes a response on and stores it when its body is complete.
    async fn keep<C: Call>(
        self: &Arc<Self>,
        admit: SharedAdmit,
        mut parts: response::Parts,
        body: C::Body,
        length: BodyLength,
        work: Work,
    ) -> Counted<C> {
        if work.held.is_none() {
            let mark = admit.mark().clone().unstored();
            return passed::<C>(&mark, parts, body);
        }
        let outcome = admit.mark().passed(parts.status);
        if length == BodyLength::Known(0) && body.is_end_stream() {
            admit.write_to(&mut parts.headers);
            self.store(admit.with_body(Bytes::new()), &Bytes::new(), work).await;
            return (Ok(Response::from_parts(parts, SharedBody::full(Bytes::new()))), outcome);
        }
        let (client, keeper) = match keep(body, length, admit.max_body(), &self.budget) {
            Ok(kept) => kept,
            Err(body) => {
                if work.is_write {
                    self.context.evict_key(&work.place.primary).await;
                }
                give_up(work.held, work.lead, false);
                let mark = admit.mark().clone().unstored().because(Reason::Budget);
                return passed::<C>(&mark, parts, body);
            }
        };
        admit.write_to(&mut parts.headers);
        let cache = Arc::clone(self);
        self.context.spawn(async move { cache.keep_reading(admit, keeper, work).await }.in_current_span());
        (Ok(Response::from_parts(parts, client)), outcome)
    }

    async fn keep_reading<B: Body>(self: Arc<Self>, admit: SharedAdmit, keeper: Keeper<B>, work: Work) {
        let reading = keeper.read(self.context.timing.max_fill);
        let complete = match &work.held {
            Some(held) => held.renewing(pin!(reading)).await,
            None => reading.await,
        };
        let complete = match complete {
            Ok(complete) => complete,
            Err(unkept) => {
                if work.is_write {
                    self.context.evict_key(&work.place.primary).await;
                }
                return give_up(work.held, work.lead, unkept == Unkept::Broken);
            }
        };
        let body = complete.body.clone();
        let stored = self.store(admit.with_body(body), &complete.body, work).await;
        complete.release(stored);
    }

    /// Stores a response where it belongs, and tells those who wait. Returns the body as it lies in the record, so that it
    /// need not be held twice.
    async fn store(&self, mut admitted: SharedAdmitted, body: &Bytes, work: Work) -> Option<Bytes> {
        let Work { held, mut lead, place, is_write } = work;
        let Some(held) = held else {
            land(lead, FillOutcome::Uncacheable);
            return None;
        };
        if let Some(lead) = &mut lead {
            lead.close();
        }
        let ttl = Some(admitted.retention());
        let placement = admitted.place(self.context.fresh_id());
        let record = admitted.record();
        let within = admitted.body_within(&record, body);
        let stored = match placement {
            Placement::Target => held.commit(record, ttl).await,
            Placement::NewVariant(secondary, id) => {
                let kept_for = Some(admitted.variants_retention());
                match held.commit(record, ttl).await {
                    CommitResult::Stored => {
                        self.context.list_variant(&place.primary, secondary, id, kept_for).await
                    }
                    stored => stored,
                }
            }
            Placement::FirstVariant(secondary, variants) => {
                let variant = (place.primary.variant(secondary), record, ttl);
                held.commit_first_variant(variant, &variants, Some(admitted.variants_retention())).await
            }
            Placement::Widened(secondary, variants, instead_of) => {
                held.abandon(Abandon::Failed);
                let variant = (place.primary.variant(secondary), record, ttl);
                let kept_for = Some(admitted.variants_retention());
                self.context.widen(&place.primary, variant, &variants, instead_of, kept_for).await
            }
        };
        if is_write && stored != CommitResult::Stored {
            self.context.evict_key(&place.primary).await;
        }
        let serves_others = stored == CommitResult::Stored && admitted.is_fresh();
        land(lead, if serves_others { FillOutcome::Retry } else { FillOutcome::Uncacheable });
        within
    }

    /// A request that may change something: once it succeeded, what is stored is evicted, or replaced by its answer (§4.4).
    /// Detached from the client, who may be gone by then.
    async fn write<C: Call>(self: &Arc<Self>, write: SharedWrite, key: CacheKey, call: C) -> Counted<C> {
        let cache = Arc::clone(self);
        let site = host(&call.view());
        // The first is where the answer may be stored.
        let mut keys = vec![key.clone()];
        let own = self.rule().scheme_of(&call.view());
        let RequestView { uri, alternatives, .. } = call.view();
        for uri in iter::once(uri).chain(alternatives) {
            for other in self.keys_of(&["http", "https", &own], uri, &site) {
                if !keys.contains(&other) {
                    keys.push(other);
                }
            }
        }
        let evicted: Vec<Target> = keys.into_iter().map(Target::Key).collect();
        let targets = evicted.clone();
        let work = Box::pin(async move {
            // Until the origin has answered, it may have done anything.
            let unknown = EvictOnDrop::new(&cache.context, &targets);
            let held = match write.may_store() {
                true => cache.context.acquire(&key, Intent::Write, None).await.lease(),
                false => None,
            };
            let sent = cache.context.now();
            let reply = match &held {
                Some(held) => held.renewing(pin!(reentry::run(&cache.context, &key, call))).await,
                None => reentry::run(&cache.context, &key, call).await,
            };
            let response = match reply {
                Ok(response) => response,
                Err(error) => {
                    cache.context.evict(&targets).await;
                    unknown.disarm();
                    return failed::<C, _>(error);
                }
            };
            let (mut parts, body) = response.into_parts();
            without_false_length(&mut parts.headers);
            let length = length_of(&parts.headers, &body);
            let counted = match write.on_response(&parts, length, sent, cache.context.now()) {
                // One answer can't stand for all variants.
                SharedOnResponse::Admit(admit) if held.is_some() && !cache.varies(&key).await => {
                    cache.context.evict(&targets[1..]).await;
                    let place = FillKey::new(key.clone(), None);
                    let work = Work { held, lead: None, place, is_write: true };
                    cache.keep::<C>(admit, parts, body, length, work).await
                }
                SharedOnResponse::Admit(admit) => {
                    cache.context.evict(&targets).await;
                    passed::<C>(&admit.mark().clone().unstored().because(Reason::Vary), parts, body)
                }
                SharedOnResponse::Pass(pass) => {
                    if pass.evicts() {
                        cache.context.evict(&targets).await;
                    }
                    for uri in pass.also() {
                        cache.evict(uri, &site).await;
                    }
                    passed::<C>(pass.mark(), parts, body)
                }
                // Writes have nothing stored to answer with.
                SharedOnResponse::ServeStale(_) | SharedOnResponse::Freshened(_) => {
                    let outcome = Outcome::passed(Some(Reason::Method), parts.status);
                    (Ok(Response::from_parts(parts, SharedBody::own(body))), outcome)
                }
            };
            unknown.disarm();
            counted
        });
        self.context.run_write(&evicted, work).await
    }

    async fn varies(&self, key: &CacheKey) -> bool {
        !matches!(self.read_record(key).await, Ok(None | Some(SharedRecord::Response(_))))
    }

    /// Goes on without the client. A panic of the service goes on in the caller.
    async fn detached<C: Call>(&self, work: Task<Counted<C>>) -> Counted<C> {
        let done = self.context.detached(work).await;
        done.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl fmt::Debug for SharedCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedCache").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// An answer, and how it counts.
type Counted<C> = (SharedReply<C>, Outcome);

/// The same cache is around this one, and says what there is to say.
async fn pass_through<C: Call>(call: C) -> Counted<C> {
    match call.run().await {
        Ok(response) => {
            let outcome = Outcome::passed(Some(Reason::Nested), response.status());
            (Ok(response.map(SharedBody::own)), outcome)
        }
        Err(error) => failed::<C, _>(error),
    }
}

async fn bypass<C: Call>(mark: &SharedCacheStatus, call: C) -> Counted<C> {
    match call.run().await {
        Ok(response) => {
            let (parts, body) = response.into_parts();
            passed::<C>(mark, parts, body)
        }
        Err(error) => failed::<C, _>(error),
    }
}

fn passed<C: Call>(mark: &SharedCacheStatus, mut parts: response::Parts, body: C::Body) -> Counted<C> {
    mark.write_to(&mut parts.headers);
    let outcome = mark.passed(parts.status);
    (Ok(Response::from_parts(parts, SharedBody::own(body))), outcome)
}

fn answered<C: Call>(answer: SharedAnswer) -> Counted<C> {
    let outcome = answer.outcome();
    (Ok(answer.into_response().map(SharedBody::full)), outcome)
}

/// RFC 9112 §6.3: beside `Transfer-Encoding` a `Content-Length` doesn't count, and isn't passed on.
fn without_false_length(headers: &mut HeaderMap) {
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
}

/// Nothing is stored. If the origin failed the next request may try at once; else the others aren't kept waiting, for their
/// answers won't be stored either. But only those who would have waited for this one are told: what was refused a request
/// of a special kind, with credentials or for a part, may well be stored for an ordinary one.
fn give_up(held: Option<LeaseGuard>, lead: Option<Leader>, failed: bool) {
    if let Some(held) = held {
        let uncacheable = !failed && lead.is_some();
        held.abandon(if uncacheable { Abandon::Uncacheable(UNCACHEABLE_FOR) } else { Abandon::Failed });
    }
    land(lead, if failed { FillOutcome::HandlerFailed } else { FillOutcome::Uncacheable });
}

/// What a record says. `Err` if it is none.
fn read(bytes: Bytes) -> Result<SharedRecord, Reason> {
    SharedRecord::decode(&bytes).ok_or(Reason::Unreadable)
}

/// What became of a look at a request and into the store.
enum Seen {
    Answer(SharedAnswer),
    Bypass(SharedCacheStatus),
    /// The same cache runs the service for this key already.
    Within,
    Write(SharedWrite, CacheKey),
    Stale(SharedAnswer, SharedForward, FillKey),
    Forward(SharedForward, FillKey),
}

impl Seen {
    /// `target` is the key of the variant, if the resource varies.
    fn of(decision: SharedDecision, base: CacheKey, target: Option<CacheKey>) -> Self {
        match decision {
            SharedDecision::Answer(answer) => Self::Answer(answer),
            SharedDecision::Stale(answer, forward) => {
                Self::Stale(answer, forward, FillKey::new(base, target))
            }
            SharedDecision::Forward(forward) => Self::Forward(forward, FillKey::new(base, target)),
        }
    }

    /// Says that the request waited for another one's answer.
    fn collapsed(self, reason: Reason) -> Self {
        match self {
            Self::Answer(answer) => Self::Answer(answer.collapsed(reason)),
            seen => seen,
        }
    }
}

/// What storing a response needs.
struct Work {
    held: Option<LeaseGuard>,
    lead: Option<Leader>,
    place: FillKey,
    /// Whether the response came of a change, so that what is stored must go if it can't be replaced.
    is_write: bool,
}
