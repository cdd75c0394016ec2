//! Reads from the origin: fills, and validations of stored responses (RFC 9111 §4.3).

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;

use super::super::SharedRecord;
use super::super::policy::{Fate, Freshened, SharedForward, SharedOnResponse};
use super::keep::{PendingCommit, give_up};
use super::{CountedReply, SharedCache, answered, passed, remove_false_length};
use crate::body::length_of;
use crate::exchange::{Call, FillKey, complete_flight, failed};
use crate::fill::lease::LeaseGuard;
use crate::fill::reentry;
use crate::fill::single_flight::{FillOutcome, Leader, Role};
use crate::policy::CommitResult;
use crate::provenance::Provenance;
use crate::reason::Reason;
use crate::store::Acquired;
use crate::tag::{TagError, TagStamp, Tagged, Tags};

impl SharedCache {
    /// Acquires a lease and asks the origin. Continues if the client disconnects.
    pub(super) async fn fill<C: Call>(
        self: &Arc<Self>,
        forward: SharedForward,
        fill_key: FillKey,
        call: C,
        leader: Option<Leader>,
    ) -> CountedReply<C> {
        let cache = Arc::clone(self);
        self.detached::<C>(Box::pin(async move {
            let intent = forward.intent();
            // A leader waits for another process that is already filling.
            let is_fresh = |record: &Bytes| match SharedRecord::decode(record) {
                Some(SharedRecord::Response(stored)) => {
                    !stored.no_cache && stored.is_fresh(cache.context.now())
                }
                _ => false,
            };
            let awaited = leader.is_some().then_some(&is_fresh as &(dyn Fn(&Bytes) -> bool + Send + Sync));
            let acquired = match forward.reason() {
                // A store that just failed to read isn't asked to write.
                Reason::Down => Acquired::Busy(Reason::Down),
                _ => cache.context.acquire(fill_key.target(), intent, awaited).await,
            };
            let (forward, lease) = match acquired {
                Acquired::Lease(lease) => (forward, Some(lease)),
                Acquired::Found(record) => {
                    // Followers look up the entry themselves.
                    let found = forward.on_filled(SharedRecord::decode(&record), cache.context.now());
                    match found {
                        Ok(answer) => {
                            complete_flight(leader, FillOutcome::Retry);
                            return answered::<C>(answer);
                        }
                        Err(forward) => (forward, None),
                    }
                }
                Acquired::Filling => (forward.because(Reason::Busy), None),
                Acquired::Busy(reason) => (forward.because(reason), None),
            };
            if lease.is_some() {
                return cache.ask_origin(forward, fill_key, call, lease, leader).await;
            }
            // Nothing will be stored, so there is nothing to wait for.
            complete_flight(leader, FillOutcome::Uncacheable);
            cache.ask_origin(forward, fill_key, call, None, None).await
        }))
        .await
    }

    /// Validates a stale response in the background, unless another request or process is already doing it.
    pub(super) fn refresh<C: Call>(self: &Arc<Self>, forward: SharedForward, fill_key: FillKey, call: C) {
        let Role::Leader(leader) = self.context.single_flight.join(fill_key.target(), Provenance::default())
        else {
            return;
        };
        let cache = Arc::clone(self);
        let work = Box::pin(async move {
            if let Acquired::Lease(lease) =
                cache.context.acquire(fill_key.target(), forward.intent(), None).await
            {
                // No client waits for this response. The service reports its own errors.
                let _: CountedReply<C> =
                    cache.ask_origin(forward, fill_key, call, Some(lease), Some(leader)).await;
            }
        });
        self.context.in_background(work);
    }

    /// Asks the origin. No other function sends a read there.
    pub(super) async fn ask_origin<C: Call>(
        self: &Arc<Self>,
        forward: SharedForward,
        fill_key: FillKey,
        mut call: C,
        lease: Option<LeaseGuard>,
        leader: Option<Leader>,
    ) -> CountedReply<C> {
        forward.prepare(call.headers_mut());
        let stamp = self.stamp_of(lease.as_ref()).await;
        let sent = self.context.now();
        let reply = match &lease {
            Some(lease) => lease.renewing(pin!(reentry::run(&self.context, &fill_key.primary, call))).await,
            None => reentry::run(&self.context, &fill_key.primary, call).await,
        };
        let now = self.context.now();
        let response = match reply {
            Ok(response) => response,
            Err(error) => {
                give_up(lease, leader, true);
                return match forward.on_error(now) {
                    Ok(answer) => answered::<C>(answer),
                    Err(_) => failed::<C, _>(error),
                };
            }
        };
        let (mut parts, body) = response.into_parts();
        remove_false_length(&mut parts.headers);
        let length = length_of(&parts.headers, &body);
        match forward.on_response(&parts, length, sent, now) {
            SharedOnResponse::ServeStale(answer) => {
                give_up(lease, leader, true);
                answered::<C>(answer)
            }
            SharedOnResponse::Freshened(freshened) => {
                let freshened = self.freshen(freshened, &fill_key, (lease, stamp), leader).await;
                let mark = freshened.mark().clone();
                match freshened.into_answer() {
                    Some(answer) => answered::<C>(answer),
                    None => passed::<C>(&mark, parts, body),
                }
            }
            SharedOnResponse::Pass(pass) => {
                if pass.evicts() {
                    self.context.evict_key(fill_key.target()).await;
                }
                give_up(lease, leader, parts.status.is_server_error());
                passed::<C>(pass.mark(), parts, body)
            }
            SharedOnResponse::Admit(admit) => {
                let work = PendingCommit { lease, stamp, leader, fill_key, is_write: false };
                self.keep::<C>(admit, parts, body, length, work).await
            }
        }
    }

    /// Stores a validated response with its new fields. It isn't stored if one of its tags was evicted since the origin was asked.
    async fn freshen(
        &self,
        freshened: Freshened,
        fill_key: &FillKey,
        (lease, stamp): (Option<LeaseGuard>, Result<TagStamp, Reason>),
        leader: Option<Leader>,
    ) -> Freshened {
        match freshened.fate() {
            Fate::Store => {}
            Fate::Leave => {
                give_up(lease, leader, false);
                return freshened;
            }
            Fate::Evict => {
                self.context.evict_key(fill_key.target()).await;
                give_up(lease, leader, false);
                return freshened;
            }
        }
        let Some(lease) = lease else {
            complete_flight(leader, FillOutcome::Uncacheable);
            return freshened;
        };
        let tagged = match self.tagged(Ok(freshened.tags().clone()), stamp) {
            Ok(tagged) => tagged,
            Err(reason) => {
                // The stored response may lack a tag that the validation named.
                self.context.evict_key(fill_key.target()).await;
                give_up(Some(lease), leader, false);
                return freshened.unstored(reason);
            }
        };
        let stored = lease.tagged(tagged).commit(freshened.record(), Some(freshened.retention())).await;
        let serves_others = stored == CommitResult::Stored && freshened.is_fresh();
        complete_flight(leader, if serves_others { FillOutcome::Retry } else { FillOutcome::Uncacheable });
        if stored == CommitResult::Revoked { freshened.unstored(Reason::Evicted) } else { freshened }
    }

    /// Returns the tag clock before the origin is asked, or the reason for which no response with tags can be stored. Without a
    /// lease nothing will be stored.
    pub(super) async fn stamp_of(&self, lease: Option<&LeaseGuard>) -> Result<TagStamp, Reason> {
        let rule = self.rule();
        if lease.is_none() || rule.tag_fields.is_empty() {
            return Err(Reason::Tags);
        }
        self.context.stamp(&rule.space, &self.tag_memory, false).await
    }

    /// Returns the stored form of a response's tags, or `None` if there are none.
    ///
    /// # Errors
    ///
    /// Returns the reason for which a response with tags can't be stored.
    pub(super) fn tagged(
        &self,
        tags: Result<Tags, TagError>,
        stamp: Result<TagStamp, Reason>,
    ) -> Result<Option<Tagged>, Reason> {
        let tags = tags.map_err(|_| Reason::Tags)?;
        if tags.is_empty() {
            return Ok(None);
        }
        self.tag_memory.record_tags();
        Ok(Some(Tagged::new(stamp?, &tags)))
    }
}
