//! A wrapper around the store that counts calls, writes and evictions.

use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{EvictionOutcome, Operation, Telemetry, WriteOutcome};
use crate::key::{CacheKey, KeySpace};
use crate::store::dyn_store::DynStore;
use crate::store::{Abandon, Acquired, Health, Intent, Lease, StoreError, ValueHead};
use crate::tag::{EvictionMode, TagStamp, Tagged, Tags};

/// A store whose calls are counted.
pub(crate) struct MeteredStore {
    store: Box<dyn DynStore>,
    telemetry: Arc<Telemetry>,
    /// `true` if a value that `try_get` didn't return doesn't exist.
    finds_at_once: bool,
}

impl MeteredStore {
    pub(crate) fn new(store: Box<dyn DynStore>, telemetry: Arc<Telemetry>) -> Self {
        Self { finds_at_once: store.finds_at_once(), store, telemetry }
    }

    pub(crate) async fn get(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        match self.try_get(key) {
            Some(value) => Ok(Some(value)),
            None => self.fetch(key).await,
        }
    }

    /// Returns a value that needs no waiting.
    pub(crate) fn try_get(&self, key: &CacheKey) -> Option<Bytes> {
        let value = self.store.try_get(key)?;
        self.telemetry.called(Operation::Get, None, true);
        Some(value)
    }

    /// Returns a value that needs no waiting, or the inner `None` if it is known at once that there is none. After the outer
    /// `None`, the caller calls `fetch`.
    pub(crate) fn find_at_once(&self, key: &CacheKey) -> Option<Option<Bytes>> {
        match self.try_get(key) {
            None if self.finds_at_once => {
                self.telemetry.called(Operation::Get, None, true);
                Some(None)
            }
            None => None,
            found => Some(found),
        }
    }

    /// Reads a value that `try_get` didn't return.
    pub(crate) async fn fetch(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        self.call(Operation::Get, self.store.get(key)).await
    }

    /// Reads a value, but not from a copy in this process.
    pub(crate) async fn get_shared(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        self.call(Operation::Get, self.store.get_shared(key)).await
    }

    /// Reads the beginning of a value that `try_get` didn't return.
    pub(crate) async fn get_head(
        &self,
        key: &CacheKey,
        limit: usize,
    ) -> Result<Option<ValueHead>, StoreError> {
        self.call(Operation::Get, self.store.get_head(key, limit)).await
    }

    /// Reads a part of the value that begins with `head`.
    pub(crate) async fn get_range(
        &self,
        key: &CacheKey,
        head: &Bytes,
        range: Range<usize>,
    ) -> Result<Option<Bytes>, StoreError> {
        self.call(Operation::Get, self.store.get_range(key, head, range)).await
    }

    pub(crate) async fn has(&self, key: &CacheKey) -> Result<bool, StoreError> {
        self.call(Operation::Has, self.store.has(key)).await
    }

    /// Writes a value, with tags if `tagged` is given.
    pub(crate) async fn set(
        &self,
        key: &CacheKey,
        value: Bytes,
        ttl: Option<Duration>,
        tagged: Option<&Tagged>,
    ) -> Result<(), StoreError> {
        let set = match tagged {
            None => self.call(Operation::Set, self.store.set(key, value, ttl)).await,
            Some(tagged) => self.call(Operation::Set, self.store.set_tagged(key, value, ttl, tagged)).await,
        };
        self.telemetry
            .wrote(key.group(), if set.is_ok() { WriteOutcome::Stored } else { WriteOutcome::Failed });
        set
    }

    pub(crate) async fn delete(&self, key: &CacheKey) -> Result<bool, StoreError> {
        let deleted = self.call(Operation::Delete, self.store.delete(key)).await;
        self.telemetry.evicted(
            key.group(),
            if deleted.is_ok() { EvictionOutcome::Key } else { EvictionOutcome::Failed },
        );
        deleted
    }

    pub(crate) async fn delete_group(&self, group: &KeySpace) -> Result<u64, StoreError> {
        let deleted = self.call(Operation::DeleteGroup, self.store.delete_group(group)).await;
        let eviction = if deleted.is_ok() { EvictionOutcome::Group } else { EvictionOutcome::Failed };
        self.telemetry.evicted(group.group(), eviction);
        deleted
    }

    /// Makes an entry stale. Counts only a failure, because the caller still removes a resource that varies. If there is nothing to
    /// remove, [`evicted_softly`](Self::evicted_softly) counts the eviction.
    pub(crate) async fn evict_softly(&self, key: &CacheKey) -> Result<(), StoreError> {
        let evicted = self.call(Operation::Delete, self.store.evict_softly(key)).await;
        if evicted.is_err() {
            self.telemetry.evicted(key.group(), EvictionOutcome::Failed);
        }
        evicted
    }

    /// Counts a soft eviction of a key.
    pub(crate) fn evicted_softly(&self, key: &CacheKey) {
        self.telemetry.evicted(key.group(), EvictionOutcome::Key);
    }

    pub(crate) async fn evict_group_softly(&self, group: &KeySpace) -> Result<(), StoreError> {
        let evicted = self.call(Operation::DeleteGroup, self.store.evict_group_softly(group)).await;
        let eviction = if evicted.is_ok() { EvictionOutcome::Group } else { EvictionOutcome::Failed };
        self.telemetry.evicted(group.group(), eviction);
        evicted
    }

    /// Reads the tag clock of a prefix.
    pub(crate) async fn tag_clock(&self, space: &KeySpace) -> Result<Option<TagStamp>, StoreError> {
        self.call(Operation::TagClock, self.store.tag_clock(space)).await
    }

    /// Evicts by tag. The counters of evictions by tag have no group, because a tag may be in any.
    pub(crate) async fn evict_tags(
        &self,
        space: &KeySpace,
        tags: &Tags,
        how: EvictionMode,
    ) -> Result<(), StoreError> {
        let evicted = self.call(Operation::EvictTags, self.store.evict_tags(space, tags, how)).await;
        self.telemetry
            .evicted(None, if evicted.is_ok() { EvictionOutcome::Tags } else { EvictionOutcome::Failed });
        evicted
    }

    pub(crate) async fn begin(
        &self,
        key: &CacheKey,
        intent: Intent,
        lease_ttl: Duration,
    ) -> Result<Acquired, StoreError> {
        self.call(Operation::Begin, self.store.begin(key, intent, lease_ttl)).await
    }

    /// Writes a value under a lease, with tags if `tagged` is given.
    pub(crate) async fn commit(
        &self,
        key: &CacheKey,
        lease: &Lease,
        value: Bytes,
        ttl: Option<Duration>,
        tagged: Option<&Tagged>,
    ) -> Result<bool, StoreError> {
        let committed = match tagged {
            None => self.call(Operation::Commit, self.store.commit(key, lease, value, ttl)).await,
            Some(tagged) => {
                self.call(Operation::Commit, self.store.commit_tagged(key, lease, value, ttl, tagged)).await
            }
        };
        let write = match committed {
            Ok(true) => WriteOutcome::Stored,
            Ok(false) => WriteOutcome::Refused,
            Err(_) => WriteOutcome::Failed,
        };
        self.telemetry.wrote(key.group(), write);
        committed
    }

    pub(crate) async fn renew(
        &self,
        key: &CacheKey,
        lease: &Lease,
        lease_ttl: Duration,
    ) -> Result<bool, StoreError> {
        self.call(Operation::Renew, self.store.renew(key, lease, lease_ttl)).await
    }

    pub(crate) async fn abandon(
        &self,
        key: &CacheKey,
        lease: &Lease,
        why: Abandon,
    ) -> Result<(), StoreError> {
        self.call(Operation::Abandon, self.store.abandon(key, lease, why)).await
    }

    /// Waits until the value may have changed, for up to `at_most`.
    pub(crate) async fn changed(&self, key: &CacheKey, at_most: Duration) {
        let _ = tokio::time::timeout(at_most, self.store.changed(key)).await;
    }

    pub(crate) fn max_value_bytes(&self) -> u64 {
        self.store.max_value_bytes()
    }

    pub(crate) fn health(&self) -> Health {
        self.store.health()
    }

    pub(crate) async fn close(&self) {
        self.store.close().await;
    }

    async fn call<T>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let (result, took) = timed(call).await;
        self.telemetry.called(operation, took, result.is_ok());
        result
    }
}

/// Returns the result and, if `work` had to wait, its duration. A store in this process returns at once, and reading the
/// clock would take longer than the work.
async fn timed<T>(work: impl Future<Output = T>) -> (T, Option<Duration>) {
    let mut work = pin!(work);
    let at_once = std::future::poll_fn(|context| {
        Poll::Ready(match work.as_mut().poll(context) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        })
    });
    if let Some(done) = at_once.await {
        return (done, None);
    }
    let started = Instant::now();
    let done = work.await;
    (done, Some(started.elapsed()))
}
