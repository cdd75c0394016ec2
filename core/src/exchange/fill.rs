//! Fills: run the handler after a miss, and store its response.

use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};

use crate::body::{ReplyBody, collect, length_of};
use crate::exchange::call::{Call, Counted, answered, failed, passed, stale_reply};
use crate::exchange::lookup::{FillKey, LOOKS};
use crate::fill::lease::LeaseGuard;
use crate::fill::reentry;
use crate::fill::single_flight::{FillOutcome, Follower, Leader, Role};
use crate::key::CacheKey;
use crate::policy::{Admitted, CommitResult, Forward, OnResponse, Pass, Placement, invalidates};
use crate::reason::Reason;
use crate::record::Record;
use crate::route::Route;
use crate::status::Outcome;
use crate::store::{Abandon, Acquired, Intent};
use crate::telemetry::spans;

/// The time for which requests don't wait for each other after an answer that can't be shared.
pub(crate) const UNCACHEABLE_FOR: Duration = Duration::from_secs(1);

impl Route {
    pub(super) async fn follow(&self, follow: Follower, forward: Forward) -> Followed {
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
    pub(super) async fn run_uncached<C: Call>(
        &self,
        forward: Forward,
        place: FillKey,
        call: C,
    ) -> Counted<C> {
        let outcome =
            if forward.reason() == Reason::Down { CommitResult::Failed } else { CommitResult::Revoked };
        match self.produce(forward, Some(&place.primary), call).await {
            Produced::Error(error) => failed::<C, _>(error),
            Produced::Stale(response) => stale_reply::<C>(response),
            Produced::Passed(response, pass) => passed::<C>(response, &pass),
            Produced::Admitted(admitted) => answered::<C>(*admitted, outcome),
        }
    }

    /// Fills an entry, detached from the client.
    pub(super) async fn fill<C: Call>(
        self: &Arc<Self>,
        forward: Forward,
        place: FillKey,
        call: C,
        lead: Option<Leader>,
        looks: usize,
    ) -> Counted<C> {
        let route = Arc::clone(self);
        let work = Box::pin(async move {
            let acquired = match forward.intent() {
                Some(intent) => route.acquire_to_fill(&forward, &place.target, intent).await,
                None => Acquired::Busy(forward.reason()),
            };
            let reason = match acquired {
                Acquired::Lease(held) => {
                    route.miss_predictor.record_miss();
                    return route.fill_held(forward, place, call, held, lead).await;
                }
                Acquired::Found(record) => {
                    route.miss_predictor.record_hit();
                    // A follower may have joined after an eviction of this entry, so followers look again.
                    land(lead, FillOutcome::Retry);
                    return match forward.on_filled(Record::decode(&record), route.context.now()) {
                        Ok(hit) => (Ok(hit.into_response().map(ReplyBody::full)), Outcome::HIT),
                        Err(_) if looks < LOOKS => route.retry_lookup(call, looks).await,
                        Err(forward) => route.run_uncached(forward, place, call).await,
                    };
                }
                Acquired::Filling => Reason::Busy,
                Acquired::Busy(reason) => reason,
            };
            route.miss_predictor.record_hit();
            // Nothing will be stored, so followers needn't wait.
            land(lead, FillOutcome::Uncacheable);
            route.run_uncached(forward.because(reason), place, call).await
        });
        self.context.detached(work).await.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Refreshes a stale entry in the background. Does nothing if another request or process is refreshing it.
    pub(super) fn refresh<C: Call>(self: &Arc<Self>, forward: Forward, place: FillKey, call: C) {
        let Some(intent) = forward.intent() else { return };
        let Role::Leader(lead) = self.context.single_flight.join(&place.target, forward.provenance()) else {
            return;
        };
        let route = Arc::clone(self);
        let work = Box::pin(async move {
            if let Acquired::Lease(held) = route.context.acquire(&place.target, intent, None).await {
                // No client waits for the response. The handler reports its own errors.
                let _: Counted<C> = route.fill_held(forward, place, call, held, Some(lead)).await;
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

    async fn fill_held<C: Call>(
        &self,
        forward: Forward,
        place: FillKey,
        call: C,
        held: LeaseGuard,
        lead: Option<Leader>,
    ) -> Counted<C> {
        let replaces = forward.intent() == Some(Intent::Refresh);
        // A path spelling that may belong to another route must not keep that route's responses from being stored.
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
                // A partial response says nothing about the whole. The next request may fill at once.
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

    /// Stores the response under its key or variant, and completes the flight.
    pub(super) async fn store(
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

    /// Runs the handler, and asks the policy about its response.
    ///
    /// `key` is the key under which the response may be stored or evicted.
    pub(super) async fn produce<C: Call>(
        &self,
        forward: Forward,
        key: Option<&CacheKey>,
        mut call: C,
    ) -> Produced<C> {
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
}

/// The result of following a flight.
pub(super) enum Followed {
    Answer(Response<Bytes>, Outcome),
    Alone(Forward),
    Again(Forward),
}

/// The policy's decision on the handler's response.
pub(super) enum Produced<C: Call> {
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
