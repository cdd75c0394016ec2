//! Passes a response on, and stores it when its body is complete.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Response, response};
use http_body::Body;
use tracing::Instrument;

use super::super::body::{BodyCollector, CollectError, SharedBody, tee};
use super::super::policy::{Placement, SharedAdmit, SharedAdmitted};
use super::{CountedReply, SharedCache, passed};
use crate::exchange::{Call, FillKey, UNCACHEABLE_FOR, complete_flight};
use crate::fill::lease::{LeaseGuard, VariantEntry};
use crate::fill::single_flight::{FillOutcome, Leader};
use crate::policy::{BodyLength, CommitResult};
use crate::reason::Reason;
use crate::store::Abandon;
use crate::tag::TagStamp;

/// The lease, the followers and the key of a response that is to be stored.
pub(super) struct PendingCommit {
    pub(super) lease: Option<LeaseGuard>,
    /// The tag clock before the origin was asked, or the reason for which no response with tags can be stored.
    pub(super) stamp: Result<TagStamp, Reason>,
    pub(super) leader: Option<Leader>,
    pub(super) fill_key: FillKey,
    /// `true` for the response to a write: if it can't replace what is stored, that is evicted.
    pub(super) is_write: bool,
}

impl SharedCache {
    /// Passes a response on and stores it when its body is complete.
    pub(super) async fn keep<C: Call>(
        self: &Arc<Self>,
        admit: SharedAdmit,
        mut parts: response::Parts,
        body: C::Body,
        length: BodyLength,
        work: PendingCommit,
    ) -> CountedReply<C> {
        if work.lease.is_none() {
            let mark = admit.mark().clone().unstored();
            return passed::<C>(&mark, parts, body);
        }
        if let Err(reason) = self.tagged(admit.tags(), work.stamp) {
            return self.pass_unstored::<C>(reason, &admit, parts, body, work).await;
        }
        let outcome = admit.mark().passed(parts.status);
        if length == BodyLength::Known(0) && body.is_end_stream() {
            admit.write_to(&mut parts.headers);
            self.store(admit.with_body(Bytes::new()), &Bytes::new(), work).await;
            return (Ok(Response::from_parts(parts, SharedBody::full(Bytes::new()))), outcome);
        }
        let (client, collector) = match tee(body, length, admit.max_body(), &self.budget) {
            Ok(split) => split,
            Err(body) => {
                return self.pass_unstored::<C>(Reason::Budget, &admit, parts, body, work).await;
            }
        };
        admit.write_to(&mut parts.headers);
        let cache = Arc::clone(self);
        self.context
            .spawn(async move { cache.collect_and_store(admit, collector, work).await }.in_current_span());
        (Ok(Response::from_parts(parts, client)), outcome)
    }

    /// Passes on a response that could be stored but for this reason.
    async fn pass_unstored<C: Call>(
        &self,
        reason: Reason,
        admit: &SharedAdmit,
        parts: response::Parts,
        body: C::Body,
        work: PendingCommit,
    ) -> CountedReply<C> {
        if work.is_write {
            self.context.evict_key(&work.fill_key.primary).await;
        }
        give_up(work.lease, work.leader, false);
        passed::<C>(&admit.mark().clone().unstored().because(reason), parts, body)
    }

    async fn collect_and_store<B: Body>(
        self: Arc<Self>,
        admit: SharedAdmit,
        collector: BodyCollector<B>,
        work: PendingCommit,
    ) {
        let reading = collector.read(self.context.timing.max_fill);
        let complete = match &work.lease {
            Some(lease) => lease.renewing(pin!(reading)).await,
            None => reading.await,
        };
        let complete = match complete {
            Ok(complete) => complete,
            Err(error) => {
                if work.is_write {
                    self.context.evict_key(&work.fill_key.primary).await;
                }
                return give_up(work.lease, work.leader, error == CollectError::Broken);
            }
        };
        let body = complete.body.clone();
        let stored = self.store(admit.with_body(body), &complete.body, work).await;
        complete.release(stored);
    }

    /// Stores a response under its key and notifies the followers. Returns the body as a slice of the record, so that it
    /// isn't held twice.
    async fn store(&self, mut admitted: SharedAdmitted, body: &Bytes, work: PendingCommit) -> Option<Bytes> {
        let PendingCommit { lease, stamp, mut leader, fill_key, is_write } = work;
        // A part that was combined with the stored one may have more tags than the response.
        let (Some(lease), Ok(tagged)) = (lease, self.tagged(admitted.tags(), stamp)) else {
            if is_write {
                self.context.evict_key(&fill_key.primary).await;
            }
            complete_flight(leader, FillOutcome::Uncacheable);
            return None;
        };
        if let Some(leader) = &mut leader {
            leader.close();
        }
        let ttl = Some(admitted.retention());
        let placement = admitted.place(self.context.fresh_id());
        let record = admitted.record();
        let within = admitted.body_within(&record, body);
        let stored = match placement {
            Placement::Target => lease.tagged(tagged).commit(record, ttl).await,
            Placement::NewVariant(secondary, id) => {
                let kept_for = Some(admitted.variants_retention());
                match lease.tagged(tagged).commit(record, ttl).await {
                    CommitResult::Stored => {
                        self.context.list_variant(&fill_key.primary, secondary, id, kept_for).await
                    }
                    stored => stored,
                }
            }
            Placement::FirstVariant(secondary, variants) => {
                let key = fill_key.primary.variant(secondary);
                let variant = VariantEntry { key, record, ttl, tagged };
                lease.commit_first_variant(variant, &variants, Some(admitted.variants_retention())).await
            }
            Placement::Widened(secondary, variants, instead_of) => {
                let key = fill_key.primary.variant(secondary);
                let variant = VariantEntry { key, record, ttl, tagged };
                let kept_for = Some(admitted.variants_retention());
                self.context.widen(&fill_key.primary, lease, variant, &variants, instead_of, kept_for).await
            }
        };
        if is_write && stored != CommitResult::Stored {
            self.context.evict_key(&fill_key.primary).await;
        }
        let serves_others = stored == CommitResult::Stored && admitted.is_fresh();
        complete_flight(leader, if serves_others { FillOutcome::Retry } else { FillOutcome::Uncacheable });
        within
    }
}

/// Abandons the lease and notifies the followers: nothing is stored. If the origin failed, the next request may try at once.
/// Otherwise later requests don't wait for each other for a while, because their responses wouldn't be stored either.
/// That holds only for requests that could have followed this one: a response that isn't stored for a request with
/// credentials or for a part may be stored for an ordinary request.
pub(super) fn give_up(lease: Option<LeaseGuard>, leader: Option<Leader>, failed: bool) {
    if let Some(lease) = lease {
        let uncacheable = !failed && leader.is_some();
        lease.abandon(if uncacheable { Abandon::Uncacheable(UNCACHEABLE_FOR) } else { Abandon::Failed });
    }
    complete_flight(leader, if failed { FillOutcome::HandlerFailed } else { FillOutcome::Uncacheable });
}
