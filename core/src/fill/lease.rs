//! A lease guard: acquires a lease, renews it, and returns it on drop.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::poll_immediate;

use crate::fill::single_flight::{FillOutcome, Leader};
use crate::key::CacheKey;
use crate::larder::context::CacheContext;
use crate::policy::CommitResult;
use crate::reason::Reason;
use crate::record::variants::Variants;
use crate::store::{Abandon, Acquired, Intent, Lease, StoreError};
use crate::tag::{Tagged, stale_since};

/// The first pause between two polls of a key that another process is filling or updating.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// The longest pause between two polls.
const LONGEST_PAUSE: Duration = Duration::from_millis(16);

/// Returns the pause after this one. It doubles each time.
pub(crate) fn next_pause(pause: Duration) -> Duration {
    (pause * 2).min(LONGEST_PAUSE)
}

impl CacheContext {
    /// Acquires a lease on `key`. If another process is filling it, this waits for up to `max_wait`, provided that
    /// `awaited` is given. `awaited` returns `true` for a value that is worth waiting for.
    ///
    /// Returns [`Acquired::Busy`] also if the store failed or the wait exceeded its limit, and [`Acquired::Filling`] only
    /// without `awaited`.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        key: &CacheKey,
        intent: Intent,
        awaited: Option<&(dyn Fn(&Bytes) -> bool + Send + Sync)>,
    ) -> Acquired<LeaseGuard> {
        self.acquire_within(key, intent, awaited, self.timing.max_wait).await
    }

    /// Acquires a lease as [`acquire`](Self::acquire) does, with another limit.
    pub(crate) async fn acquire_within(
        self: &Arc<Self>,
        key: &CacheKey,
        intent: Intent,
        awaited: Option<&(dyn Fn(&Bytes) -> bool + Send + Sync)>,
        limit: Duration,
    ) -> Acquired<LeaseGuard> {
        let answer = self.acquire_or_fail(key, intent).await;
        match (answer, awaited) {
            (Acquired::Filling, Some(is_awaited)) => {
                let began = tokio::time::Instant::now();
                // Boxed, because few fills wait and all would have room for it.
                let acquired = Box::pin(self.wait_to_acquire(key, intent, is_awaited, (began, limit))).await;
                self.telemetry.waited(began.elapsed(), !matches!(acquired, Acquired::Found(_)));
                acquired
            }
            (answer, _) => answer,
        }
    }

    /// Polls the store while another process is filling the entry.
    async fn wait_to_acquire(
        self: &Arc<Self>,
        key: &CacheKey,
        intent: Intent,
        is_awaited: &(dyn Fn(&Bytes) -> bool + Send + Sync),
        (began, limit): (tokio::time::Instant, Duration),
    ) -> Acquired<LeaseGuard> {
        let mut pause = FIRST_PAUSE;
        while began.elapsed() < limit {
            self.store.changed(key, pause).await;
            pause = next_pause(pause);
            // A refresh ignores stored values, so `begin` doesn't report that the value is new by now.
            if intent == Intent::Refresh
                && let Ok(Some(bytes)) = self.store.get(key).await
                && is_awaited(&bytes)
            {
                return Acquired::Found(bytes);
            }
            match self.acquire_or_fail(key, intent).await {
                Acquired::Filling => {}
                acquired => return acquired,
            }
        }
        Acquired::Busy(Reason::Waited)
    }

    /// Asks the store once for a lease, and logs its error.
    async fn acquire_or_fail(self: &Arc<Self>, key: &CacheKey, intent: Intent) -> Acquired<LeaseGuard> {
        self.try_acquire(key, intent).await.unwrap_or_else(|error| {
            self.store_failed("begin", key.name(), &error);
            Acquired::Busy(Reason::Down)
        })
    }

    /// Asks the store once for a lease.
    pub(crate) async fn try_acquire(
        self: &Arc<Self>,
        key: &CacheKey,
        intent: Intent,
    ) -> Result<Acquired<LeaseGuard>, StoreError> {
        let acquired = self.store.begin(key, intent, self.timing.lease_ttl).await?;
        Ok(acquired.map(|lease| LeaseGuard {
            context: Arc::clone(self),
            key: key.clone(),
            lease: Some(lease),
            tagged: None,
        }))
    }
}

impl CacheContext {
    /// Returns [`CommitResult::Revoked`] if a tag of an entry was evicted while it was written.
    async fn is_still_fresh(&self, key: &CacheKey) -> CommitResult {
        match self.store.get_shared(key).await {
            Ok(Some(found)) if stale_since(&found).is_none() => CommitResult::Stored,
            Ok(_) => CommitResult::Revoked,
            Err(error) => {
                self.store_failed("get", key.name(), &error);
                CommitResult::Failed
            }
        }
    }

    async fn abandon(&self, key: &CacheKey, lease: &Lease, why: Abandon) {
        if let Err(error) = self.store.abandon(key, lease, why).await {
            self.store_failed("abandon", key.name(), &error);
        }
    }
}

/// A lease that is returned on drop, for instance after a panic or an early return.
pub(crate) struct LeaseGuard {
    context: Arc<CacheContext>,
    key: CacheKey,
    lease: Option<Lease>,
    /// The tags of the value that will be committed.
    tagged: Option<Tagged>,
}

/// A variant to be written beside the record that leads to it.
pub(crate) struct VariantEntry {
    pub(crate) key: CacheKey,
    pub(crate) record: Bytes,
    pub(crate) ttl: Option<Duration>,
    pub(crate) tagged: Option<Tagged>,
}

impl LeaseGuard {
    /// Runs `work` and renews the lease meanwhile, for up to `max_fill`.
    ///
    /// `work` is pinned by the caller. It is large, and would take twice the room if it were moved in here.
    pub(crate) async fn renewing<T>(&self, mut work: Pin<&mut impl Future<Output = T>>) -> T {
        let Some(lease) = &self.lease else { return work.await };
        // Many handlers never wait, and need no timer.
        if let Some(done) = poll_immediate(work.as_mut()).await {
            return done;
        }
        // Boxed, because every fill would have room for it.
        let renewals = Box::pin(async {
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
        });
        tokio::select! {
            biased;
            done = work.as_mut() => done,
            never = renewals => match never {},
        }
    }

    /// Writes the record and returns the lease.
    pub(crate) async fn commit(mut self, record: Bytes, ttl: Option<Duration>) -> CommitResult {
        match self.commit_once(record, ttl).await {
            Ok(true) => CommitResult::Stored,
            Ok(false) => CommitResult::Revoked,
            Err(error) => {
                self.context.store_failed("commit", self.key.name(), &error);
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
        self.commit_once(record, ttl).await
    }

    async fn commit_once(&mut self, record: Bytes, ttl: Option<Duration>) -> Result<bool, StoreError> {
        let Some(lease) = self.lease.take() else { return Ok(false) };
        self.context.store.commit(&self.key, &lease, record, ttl, self.tagged.as_ref()).await
    }

    /// Returns `true` if the lease is still held: no eviction has revoked it.
    pub(crate) async fn is_current(&self) -> bool {
        let Some(lease) = &self.lease else { return false };
        let renewed = self.context.store.renew(&self.key, lease, self.context.timing.lease_ttl).await;
        renewed.unwrap_or_else(|error| {
            self.context.store_failed("renew", self.key.name(), &error);
            false
        })
    }

    /// Returns the tags of the value that will be committed.
    pub(crate) fn tags(&self) -> Option<Tagged> {
        self.tagged.clone()
    }

    /// Sets the tags of the value that will be committed. Their stamp must be older than the value.
    pub(crate) fn tagged(mut self, tagged: Option<Tagged>) -> Self {
        self.tagged = tagged;
        self
    }

    /// Writes a variant with its time to live, then commits the record that leads to it, which has no tags. In this order, a
    /// refused commit leaves an orphan that no request can reach.
    pub(crate) async fn commit_first_variant(
        self,
        variant: VariantEntry,
        variants: &Variants,
        kept_for: Option<Duration>,
    ) -> CommitResult {
        let VariantEntry { key, record, ttl, tagged } = variant;
        let context = Arc::clone(&self.context);
        match context.set(&key, record, ttl, tagged.as_ref()).await {
            Ok(()) => {}
            Err(()) => return CommitResult::Failed,
        }
        match self.commit(variants.encode(), kept_for).await {
            CommitResult::Stored if tagged.is_some() => context.is_still_fresh(&key).await,
            stored => stored,
        }
    }

    /// Returns the lease in the background.
    pub(crate) fn abandon(mut self, why: Abandon) {
        self.give_back(why);
    }

    /// Returns the lease in the background after a failure, then lets the followers try.
    pub(crate) fn fail(mut self, leader: Leader) {
        let Some(lease) = self.lease.take() else { return leader.complete(FillOutcome::HandlerFailed) };
        let (context, key) = (Arc::clone(&self.context), self.key.clone());
        self.context.spawn(async move {
            context.abandon(&key, &lease, Abandon::Failed).await;
            leader.complete(FillOutcome::HandlerFailed);
        });
    }

    fn give_back(&mut self, why: Abandon) {
        if let Some(lease) = self.lease.take() {
            let (context, key) = (Arc::clone(&self.context), self.key.clone());
            self.context.spawn(async move { context.abandon(&key, &lease, why).await });
        }
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        self.give_back(Abandon::Failed);
    }
}
