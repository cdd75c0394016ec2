//! A lease guard: acquires a lease, renews it, and returns it on drop.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::fill::single_flight::{FillOutcome, Leader};
use crate::headers::vary::Variants;
use crate::key::CacheKey;
use crate::larder::context::CacheContext;
use crate::policy::CommitResult;
use crate::reason::Reason;
use crate::store::{Abandon, Begin, Intent, Lease, StoreError};

/// Bounds of the pause between two polls of a fill by another process. The pause doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(16);

/// The result of acquiring a lease, after waiting for fills of other processes.
pub(crate) enum Started {
    LeaseGuard(LeaseGuard),
    /// The value that another process stored.
    Found(Bytes),
    /// No lease: a write is under way, the store failed, or the wait exceeded its limit.
    Without(Reason),
}

impl Started {
    pub(crate) fn held(self) -> Option<LeaseGuard> {
        match self {
            Self::LeaseGuard(held) => Some(held),
            Self::Found(_) | Self::Without(_) => None,
        }
    }
}

impl CacheContext {
    /// Acquires a lease on `key`. If another process is filling it, this waits for up to `max_wait`, provided that
    /// `awaited` is given. `awaited` returns `true` for a value that is worth waiting for.
    pub(crate) async fn start(
        self: &Arc<Self>,
        key: &CacheKey,
        intent: Intent,
        awaited: Option<&(dyn Fn(&Bytes) -> bool + Send + Sync)>,
    ) -> Started {
        self.start_within(key, intent, awaited, self.timing.max_wait).await
    }

    /// Acquires a lease as [`start`](Self::start) does, with another limit.
    pub(crate) async fn start_within(
        self: &Arc<Self>,
        key: &CacheKey,
        intent: Intent,
        awaited: Option<&(dyn Fn(&Bytes) -> bool + Send + Sync)>,
        limit: Duration,
    ) -> Started {
        let began = tokio::time::Instant::now();
        let mut waited = false;
        let started = self.start_after(key, intent, awaited, (began, limit), &mut waited).await;
        if waited {
            self.telemetry.waited(began.elapsed(), !matches!(started, Started::Found(_)));
        }
        started
    }

    async fn start_after(
        self: &Arc<Self>,
        key: &CacheKey,
        intent: Intent,
        awaited: Option<&(dyn Fn(&Bytes) -> bool + Send + Sync)>,
        (began, limit): (tokio::time::Instant, Duration),
        waited: &mut bool,
    ) -> Started {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.begin(key, intent).await {
                Ok(Begun::LeaseGuard(held)) => return Started::LeaseGuard(held),
                Ok(Begun::Found(bytes)) => return Started::Found(bytes),
                Ok(Begun::Filling) => {
                    let Some(is_awaited) = awaited else { return Started::Without(Reason::Busy) };
                    *waited = true;
                    if began.elapsed() >= limit {
                        return Started::Without(Reason::Waited);
                    }
                    self.store.changed(key, pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                    // A refresh ignores stored values, so `begin` doesn't report that the value is new by now.
                    if intent == Intent::Refresh
                        && let Ok(Some(bytes)) = self.store.get(key).await
                        && is_awaited(&bytes)
                    {
                        return Started::Found(bytes);
                    }
                }
                Ok(Begun::Busy) => return Started::Without(Reason::Busy),
                Err(error) => {
                    self.store_failed("begin", key.name(), &error);
                    return Started::Without(Reason::Down);
                }
            }
        }
    }

    /// Asks the store once for a lease.
    pub(crate) async fn begin(self: &Arc<Self>, key: &CacheKey, intent: Intent) -> Result<Begun, StoreError> {
        Ok(match self.store.begin(key, intent, self.timing.lease_ttl).await? {
            Begin::Lease(lease) => Begun::LeaseGuard(LeaseGuard {
                context: Arc::clone(self),
                key: key.clone(),
                lease: Some(lease),
            }),
            Begin::Found(bytes) => Begun::Found(bytes),
            Begin::Filling => Begun::Filling,
            Begin::Busy => Begun::Busy,
        })
    }
}

impl CacheContext {
    async fn abandon(&self, key: &CacheKey, lease: &Lease, why: Abandon) {
        if let Err(error) = self.store.abandon(key, lease, why).await {
            self.store_failed("abandon", key.name(), &error);
        }
    }
}

/// [`Begin`], with its lease in a guard.
pub(crate) enum Begun {
    LeaseGuard(LeaseGuard),
    Found(Bytes),
    Filling,
    Busy,
}

/// A lease that is returned on drop, for instance after a panic or an early return.
pub(crate) struct LeaseGuard {
    context: Arc<CacheContext>,
    key: CacheKey,
    lease: Option<Lease>,
}

impl LeaseGuard {
    /// Runs `work` and renews the lease meanwhile, for up to `max_fill`.
    ///
    /// `work` is pinned by the caller. It is large, and would take twice the room if it were moved in here.
    pub(crate) async fn renewing<T>(&self, mut work: Pin<&mut impl Future<Output = T>>) -> T {
        let Some(lease) = &self.lease else { return work.await };
        let renewals = async {
            let every = self.context.timing.lease_ttl / 3;
            let mut held_for = Duration::ZERO;
            while held_for < self.context.timing.max_fill {
                tokio::time::sleep(every).await;
                held_for += every;
                match self.context.store.renew(&self.key, lease, self.context.timing.lease_ttl).await {
                    Ok(true) => {}
                    // The lease is lost. The commit will report that.
                    Ok(false) => break,
                    Err(error) => self.context.store_failed("renew", self.key.name(), &error),
                }
            }
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            biased;
            done = work.as_mut() => done,
            never = renewals => match never {},
        }
    }

    /// Writes the record and returns the lease.
    pub(crate) async fn commit(self, record: Bytes, ttl: Option<Duration>) -> CommitResult {
        let (shared, key) = (Arc::clone(&self.context), self.key.clone());
        match self.try_commit(record, ttl).await {
            Ok(true) => CommitResult::Stored,
            Ok(false) => CommitResult::Revoked,
            Err(error) => {
                shared.store_failed("commit", key.name(), &error);
                CommitResult::Failed
            }
        }
    }

    /// Writes the record and returns the lease. Returns `false` if the lease was lost.
    pub(crate) async fn try_commit(
        mut self,
        record: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, StoreError> {
        let Some(lease) = self.lease.take() else { return Ok(false) };
        self.context.store.commit(&self.key, &lease, record, ttl).await
    }

    /// Writes a variant with its time to live, then commits the record that leads to it. In this order, a refused commit
    /// leaves an orphan that no request can reach.
    pub(crate) async fn commit_first_variant(
        self,
        (key, record, ttl): (CacheKey, Bytes, Option<Duration>),
        variants: &Variants,
        kept_for: Option<Duration>,
    ) -> CommitResult {
        match self.context.set(&key, record, ttl).await {
            Ok(()) => self.commit(variants.encode(), kept_for).await,
            Err(()) => CommitResult::Failed,
        }
    }

    /// Returns the lease in the background.
    pub(crate) fn abandon(mut self, why: Abandon) {
        self.give_back(why);
    }

    /// Returns the lease in the background after a failure, then lets the followers try.
    pub(crate) fn fail(mut self, lead: Leader) {
        let Some(lease) = self.lease.take() else { return lead.complete(FillOutcome::HandlerFailed) };
        let (shared, key) = (Arc::clone(&self.context), self.key.clone());
        self.context.spawn(async move {
            shared.abandon(&key, &lease, Abandon::Failed).await;
            lead.complete(FillOutcome::HandlerFailed);
        });
    }

    fn give_back(&mut self, why: Abandon) {
        if let Some(lease) = self.lease.take() {
            let (shared, key) = (Arc::clone(&self.context), self.key.clone());
            self.context.spawn(async move { shared.abandon(&key, &lease, why).await });
        }
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        self.give_back(Abandon::Failed);
    }
}
