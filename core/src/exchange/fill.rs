//! Fills: run the handler after a miss, and store its response.

use std::future::Future;
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};

use crate::body::{ReplyBody, collect, length_of};
use crate::exchange::call::{Call, Counted, answered, failed, passed, stale_reply};
use crate::exchange::lookup::{Fill, FillKey, MAX_LOOKUPS};
use crate::exchange::tagging::Tagging;
use crate::fill::lease::{LeaseGuard, VariantEntry};
use crate::fill::reentry;
use crate::fill::single_flight::{FillOutcome, Follower, Leader, Role};
use crate::key::CacheKey;
use crate::policy::{Admitted, CommitResult, Forward, Hit, OnResponse, Pass, Placement, invalidates};
use crate::reason::Reason;
use crate::record::Record;
use crate::route::Route;
use crate::status::Outcome;
use crate::store::{Abandon, Acquired, Intent};
use crate::tag::{TagStamp, Tagged};
use crate::telemetry::spans;

/// The time for which requests don't wait for each other after an answer that can't be shared.
pub(crate) const UNCACHEABLE_FOR: Duration = Duration::from_secs(1);

impl Route {
    /// Waits for the leader, and answers with the response that it stored. Otherwise looks up again, or runs the handler.
    pub(super) async fn follow<C: Call>(
        self: &Arc<Self>,
        follower: Follower,
        fill: Box<Fill>,
        call: C,
        lookups: usize,
    ) -> Counted<C> {
        let Fill { forward, key } = *fill;
        let forward = match self.context.follow(follower).await {
            Some(FillOutcome::Stored(record)) => {
                match forward.on_filled(Record::decode(&record), self.context.now()) {
                    Ok(hit) => return answer_collapsed::<C>(hit, Outcome::COLLAPSED),
                    Err(_) if lookups < MAX_LOOKUPS => return self.retry_lookup(call, lookups).await,
                    Err(forward) => forward,
                }
            }
            Some(FillOutcome::Retry) if lookups < MAX_LOOKUPS => {
                return self.retry_lookup(call, lookups).await;
            }
            Some(FillOutcome::Retry) => forward,
            Some(FillOutcome::HandlerFailed) => match forward.or_fallback() {
                Ok(hit) => return answer_collapsed::<C>(hit, Outcome::stale(Reason::Failed)),
                Err(forward) => forward.because(Reason::Busy),
            },
            Some(FillOutcome::Uncacheable) => forward.because(Reason::Busy),
            None => forward.because(Reason::Waited),
        };
        self.run_uncached(forward, key, call).await
    }

    /// Runs the handler for this request alone, and stores nothing.
    pub(super) async fn run_uncached<C: Call>(&self, forward: Forward, key: FillKey, call: C) -> Counted<C> {
        let outcome =
            if forward.reason() == Reason::Down { CommitResult::Failed } else { CommitResult::Revoked };
        let tagging = self.tagging_of_unstored(call.view(), forward.principal());
        match self.run_handler(forward, Some(&key.primary), call, Some(&tagging)).await {
            HandlerResult::Error(error) => failed::<C, _>(error),
            HandlerResult::Stale(response) => stale_reply::<C>(response),
            HandlerResult::Passed(response, pass) => passed::<C>(response, &pass),
            HandlerResult::Admitted(admitted, _) => answered::<C>(*admitted, outcome),
        }
    }

    /// Fills an entry, detached from the client.
    pub(super) fn fill<C: Call>(
        self: &Arc<Self>,
        fill: Box<Fill>,
        call: C,
        leader: Option<Leader>,
        lookups: usize,
    ) -> impl Future<Output = Counted<C>> + Send + 'static {
        let route = Arc::clone(self);
        let work = self.context.detached(Box::pin(async move {
            let (acquired, early) = match fill.forward.intent() {
                Some(intent) => {
                    let acquire = route.acquire_to_fill(&fill.forward, fill.key.target(), intent);
                    route.with_early_stamp(acquire).await
                }
                None => (Acquired::Busy(fill.forward.reason()), None),
            };
            let reason = match acquired {
                Acquired::Lease(lease) => {
                    route.miss_predictor.record_miss();
                    return route.fill_with(fill, call, (lease, early), leader).await;
                }
                Acquired::Found(record) => {
                    route.miss_predictor.record_hit();
                    // A follower may have joined after an eviction of this entry, so followers look again.
                    complete_flight(leader, FillOutcome::Retry);
                    return match fill.forward.on_filled(Record::decode(&record), route.context.now()) {
                        Ok(hit) => (Ok(hit.into_response().map(ReplyBody::full)), Outcome::HIT),
                        Err(_) if lookups < MAX_LOOKUPS => route.retry_lookup(call, lookups).await,
                        Err(forward) => route.run_uncached(forward, fill.key, call).await,
                    };
                }
                Acquired::Filling => Reason::Busy,
                Acquired::Busy(reason) => reason,
            };
            route.miss_predictor.record_hit();
            // Nothing will be stored, so followers needn't wait.
            complete_flight(leader, FillOutcome::Uncacheable);
            route.run_uncached(fill.forward.because(reason), fill.key, call).await
        }));
        async move { work.await.unwrap_or_else(|panic| resume_unwind(panic)) }
    }

    /// Refreshes a stale entry in the background. Does nothing if another request or process is refreshing it.
    pub(super) fn refresh<C: Call>(self: &Arc<Self>, fill: Box<Fill>, call: C) {
        let Some(intent) = fill.forward.intent() else { return };
        let role = self.context.single_flight.join(fill.key.target(), fill.forward.provenance());
        let Role::Leader(leader) = role else { return };
        let route = Arc::clone(self);
        let work = Box::pin(async move {
            if let Acquired::Lease(lease) = route.context.acquire(fill.key.target(), intent, None).await {
                // No client waits for the response. The handler reports its own errors.
                let _: Counted<C> = route.fill_with(fill, call, (lease, None), Some(leader)).await;
            }
        });
        self.context.in_background(work);
    }

    /// Acquires a lease to fill. Waits for another process that is filling the entry.
    async fn acquire_to_fill(
        &self,
        forward: &Forward,
        key: &CacheKey,
        intent: Intent,
    ) -> Acquired<LeaseGuard> {
        let is_fresh = |record: &Bytes| match Record::decode(record) {
            Some(Record::Response(entry)) => !entry.is_expired(self.context.now()),
            _ => false,
        };
        // A fill by another pattern's request isn't valid for this request.
        let waits = forward.is_shared() && forward.reason() != Reason::Pattern;
        let awaited = waits.then_some(&is_fresh as &(dyn Fn(&Bytes) -> bool + Send + Sync));
        self.context.acquire(key, intent, awaited).await
    }

    async fn fill_with<C: Call>(
        &self,
        fill: Box<Fill>,
        call: C,
        (lease, early): (LeaseGuard, Option<Result<TagStamp, Reason>>),
        leader: Option<Leader>,
    ) -> Counted<C> {
        let replaces = fill.forward.intent() == Some(Intent::Refresh);
        // A path spelling that may belong to another route must not keep that route's responses from being stored.
        let uncacheable = if fill.forward.provenance().is_canonical {
            Abandon::Uncacheable(UNCACHEABLE_FOR)
        } else {
            Abandon::Failed
        };
        let tagging = self.begin_tagging(call.view(), fill.forward.principal(), early).await;
        let running = self.run_handler(fill.forward, Some(&fill.key.primary), call, Some(&tagging));
        let result = lease.renewing(pin!(running)).await;
        let (status, counted) = match result {
            HandlerResult::Admitted(mut admitted, tagged) => {
                let stored = self.store(&mut admitted, &fill.key, lease.tagged(tagged), leader).await;
                return answered::<C>(*admitted, stored);
            }
            HandlerResult::Stale(response) => (StatusCode::INTERNAL_SERVER_ERROR, stale_reply::<C>(response)),
            HandlerResult::Passed(response, pass) if pass.cache_status().reason() == Some(Reason::Range) => {
                // A partial response says nothing about the whole. The next request may fill at once.
                lease.abandon(Abandon::Failed);
                complete_flight(leader, FillOutcome::Retry);
                return passed::<C>(response, &pass);
            }
            HandlerResult::Passed(response, pass) => (response.status(), passed::<C>(response, &pass)),
            HandlerResult::Error(error) => (C::status_of(&error), failed::<C, _>(error)),
        };
        if status.is_server_error() {
            lease.abandon(Abandon::Failed);
            complete_flight(leader, FillOutcome::HandlerFailed);
        } else {
            if replaces && invalidates(status) {
                self.context.evict_key(fill.key.target()).await;
            }
            lease.abandon(uncacheable);
            complete_flight(leader, FillOutcome::Uncacheable);
        }
        counted
    }

    /// Stores the response under its key or variant, and completes the flight.
    pub(super) async fn store(
        &self,
        admitted: &mut Admitted,
        key: &FillKey,
        lease: LeaseGuard,
        leader: Option<Leader>,
    ) -> CommitResult {
        let span = spans::set(key.target(), admitted.retention());
        let stored = span.around(self.store_within(admitted, key, lease, leader)).await;
        span.stored(stored);
        stored
    }

    async fn store_within(
        &self,
        admitted: &mut Admitted,
        key: &FillKey,
        lease: LeaseGuard,
        mut leader: Option<Leader>,
    ) -> CommitResult {
        if let Some(leader) = &mut leader {
            leader.close();
        }
        let ttl = admitted.retention();
        let placement = admitted.place(self.context.fresh_id());
        let (stored, outcome) = match placement {
            Placement::Target => {
                let record = admitted.record();
                (lease.commit(record.clone(), ttl).await, FillOutcome::Stored(record))
            }
            Placement::NewVariant(secondary, id) => {
                let record = admitted.record();
                let stored = match lease.commit(record.clone(), ttl).await {
                    CommitResult::Stored => {
                        let kept_for = admitted.variants_retention();
                        // Boxed like the other steps that few fills take: every fill would have room for them.
                        Box::pin(self.context.list_variant(&key.primary, secondary, id, kept_for)).await
                    }
                    stored => stored,
                };
                (stored, FillOutcome::Stored(record))
            }
            Placement::Widened(secondary, variants, instead_of) => {
                self.context.known_to_vary.insert(&key.primary);
                let (record, tagged) = (admitted.record(), lease.tags());
                let variant = VariantEntry { key: key.primary.variant(secondary), record, ttl, tagged };
                let kept_for = admitted.variants_retention();
                let widened =
                    self.context.widen(&key.primary, lease, variant, &variants, instead_of, kept_for);
                let stored = Box::pin(widened).await;
                (stored, FillOutcome::Retry)
            }
            Placement::FirstVariant(secondary, variants) => {
                self.context.known_to_vary.insert(&key.primary);
                let (record, tagged) = (admitted.record(), lease.tags());
                let variant = VariantEntry { key: key.primary.variant(secondary), record, ttl, tagged };
                let lease = lease.tagged(None);
                let kept_for = admitted.variants_retention();
                let stored = Box::pin(lease.commit_first_variant(variant, &variants, kept_for)).await;
                (stored, FillOutcome::Retry)
            }
        };
        let outcome = match stored {
            CommitResult::Stored => outcome,
            CommitResult::Revoked => FillOutcome::Retry,
            CommitResult::Failed => FillOutcome::Uncacheable,
        };
        complete_flight(leader, outcome);
        stored
    }

    /// Runs the handler, and asks the policy about its response.
    ///
    /// `key` is the key under which the response may be stored or evicted. Without `tagging`, nothing is stored.
    pub(super) async fn run_handler<C: Call>(
        &self,
        forward: Forward,
        key: Option<&CacheKey>,
        mut call: C,
        tagging: Option<&Tagging>,
    ) -> HandlerResult<C> {
        forward.prepare(call.headers_mut());
        let reply = match key {
            Some(key) => reentry::run(&self.context, key, call).await,
            None => call.run().await,
        };
        let response = match reply {
            Ok(response) => response,
            Err(error) => {
                return match forward.on_error(C::status_of(&error)) {
                    Some(hit) => HandlerResult::Stale(hit.into_response()),
                    None => HandlerResult::Error(error),
                };
            }
        };
        let answered_at = self.context.now();
        let (mut parts, body) = response.into_parts();
        let length = length_of(&parts.headers, &body);
        let tagged = tagging.map(|tagging| self.tags_of_response(tagging, &mut parts));
        let (forward, tagged) = match tagged {
            Some(Ok(tagged)) => (forward, tagged),
            Some(Err(reason)) => (forward.not_storable(reason), None),
            None => (forward, None),
        };
        let (pass, parts, body) = match forward.on_response(&parts, length, answered_at) {
            OnResponse::Pass(pass) => (pass, parts, ReplyBody::own(body)),
            OnResponse::ServeStale(hit) => return HandlerResult::Stale(hit.into_response()),
            OnResponse::Admit(admit) => match collect(body, admit.length()).await {
                Ok(bytes) => {
                    let admitted = Box::new(admit.on_body(parts, bytes, answered_at));
                    return HandlerResult::Admitted(admitted, tagged);
                }
                Err(body) => (admit.on_broken_body(), parts, body),
            },
        };
        if pass.cache_status().reason() == Some(Reason::Range)
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
        pass.cache_status().write_to_response(&mut response);
        HandlerResult::Passed(response, pass)
    }
}

/// The policy's decision on the handler's response.
pub(super) enum HandlerResult<C: Call> {
    Error(C::Error),
    Stale(Response<Bytes>),
    Passed(Response<ReplyBody<C::Body>>, Pass),
    /// A response that may be stored, with its tags.
    Admitted(Box<Admitted>, Option<Tagged>),
}

/// Completes the flight of a request that leads one.
pub(crate) fn complete_flight(leader: Option<Leader>, outcome: FillOutcome) {
    if let Some(leader) = leader {
        leader.complete(outcome);
    }
}

/// Answers with a response that an earlier concurrent request obtained.
fn answer_collapsed<C: Call>(hit: Hit, outcome: Outcome) -> Counted<C> {
    (Ok(hit.collapsed().into_response().map(ReplyBody::full)), outcome)
}
