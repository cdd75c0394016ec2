//! [`ProcessLocal`]: the fill protocol for stores without leases.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{
    Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

use super::lease_table::{LeaseTable, head_of, stripe};
use super::tag_clock::TagClocks;
use super::{Abandon, Acquired, CacheStore, Health, Intent, Lease, LeaseStore, StoreError, ValueHead};
use crate::clock::{Clock, SystemClock};
use crate::key::{CacheKey, KeySpace};
use crate::tag::{
    EvictionMode, Headed, MAX_HEADER, TagStamp, Tagged, Tags, Validity, encode_plain, has_header, soften,
};

/// The number of locks for keys, and of locks for groups. Keys that share a lock wait for each other's writes.
const STRIPES: usize = 64;

/// A [`LeaseStore`] made from any [`CacheStore`], with leases inside this process.
///
/// Fills are coalesced and fenced among the users of *this* value. It doesn't see other processes that use the same store,
/// or another `ProcessLocal` around it. Their evictions remove the entry, but a fill that is under way here may still write
/// the older answer afterwards, and it stays until its time to live ends. A store that is shared between processes and must
/// not serve such an answer implements [`LeaseStore`] itself.
///
/// Each write to a key waits for the previous one, and an eviction of a group waits for the writes in that group. So
/// nothing older is written once a `delete`, `delete_group` or `set` has returned. Reads don't wait.
///
/// Tags work in the same way: the tag clock is in this value, and entries carry it with their tags in front of their bytes. An entry
/// with tags that another process or an earlier `ProcessLocal` wrote counts as evicted, for their evictions are not known here.
///
/// `commit` returns `true` once the store's `set` returns `Ok`, even if the store had no room for the value. A `commit`
/// whose future is dropped midway has already handed its write to the store, which may still perform it. Await it, or evict
/// the key.
pub struct ProcessLocal<S> {
    store: S,
    clock: Arc<dyn Clock>,
    leases: Mutex<LeaseTable>,
    tags: TagClocks,
    /// Locked shared by a write to one key, and exclusively by an eviction of the group. Locked before `keys`.
    groups: [RwLock<()>; STRIPES],
    /// Locked by a write to the key.
    keys: [AsyncMutex<()>; STRIPES],
}

impl<S: CacheStore> ProcessLocal<S> {
    /// Wraps `store`. Leases expire by the system's clock.
    pub fn new(store: S) -> Self {
        Self {
            store,
            clock: Arc::new(SystemClock),
            leases: Mutex::default(),
            tags: TagClocks::default(),
            groups: [const { RwLock::const_new(()) }; STRIPES],
            keys: [const { AsyncMutex::const_new(()) }; STRIPES],
        }
    }

    /// Replaces the clock, also that of the wrapped store.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.set_clock(&clock);
        self
    }

    /// Returns the wrapped store. Direct writes to it are not fenced.
    pub const fn inner(&self) -> &S {
        &self.store
    }

    fn leases(&self) -> MutexGuard<'_, LeaseTable> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the value of stored bytes, if it is valid, and whether it is fresh.
    fn open(&self, key: &CacheKey, stored: Bytes) -> Option<(Bytes, Validity)> {
        if !has_header(&stored) {
            return Some((stored, Validity::Fresh));
        }
        let header = Headed::decode(&stored)?;
        Some((stored.slice(header.header_len()..), self.judge(key, &header)))
            .filter(|(_, validity)| *validity != Validity::Gone)
    }

    /// Returns the value of stored bytes, if it is valid.
    fn open_valid(&self, key: &CacheKey, stored: Bytes) -> Option<Bytes> {
        let (value, validity) = self.open(key, stored)?;
        Some(match validity {
            Validity::Stale(since) => soften(&value, since),
            Validity::Fresh | Validity::Gone => value,
        })
    }

    fn judge(&self, key: &CacheKey, header: &Headed) -> Validity {
        match header {
            Headed::Plain(_) => Validity::Fresh,
            // Without a clock, this process has stored no tagged entry.
            Headed::Tagged(tagged) => {
                self.tags.get(key.prefix()).map_or(Validity::Gone, |clock| clock.judge(tagged))
            }
        }
    }

    /// Writes an entry with tags. The key must be locked for a write.
    async fn write_tagged(
        &self,
        key: &CacheKey,
        value: &Bytes,
        ttl: Option<Duration>,
        tagged: &Tagged,
    ) -> Result<(), StoreError> {
        // The clock exists from here on, so that evictions are noted.
        let _clock = self.tags.of(key.prefix());
        self.store.set(key, tagged.encode(value), ttl).await
    }

    /// Locks one key for a write.
    async fn writing(&self, key: &CacheKey) -> (RwLockReadGuard<'_, ()>, AsyncMutexGuard<'_, ()>) {
        let group = self.groups[stripe(head_of(key), STRIPES)].read().await;
        let key = self.keys[stripe(key.name(), STRIPES)].lock().await;
        (group, key)
    }

    /// Locks a group, or every group of the prefix, against writes.
    async fn evicting(&self, space: &KeySpace) -> Vec<RwLockWriteGuard<'_, ()>> {
        let stripes = match space.group() {
            Some(_) => {
                let stripe = stripe(space.head(), STRIPES);
                stripe..=stripe
            }
            // Always in the same order, so that two evictions can't deadlock.
            None => 0..=STRIPES - 1,
        };
        let mut guards = Vec::with_capacity(stripes.clone().count());
        for stripe in &self.groups[stripes] {
            guards.push(stripe.write().await);
        }
        guards
    }
}

impl<S: CacheStore> CacheStore for ProcessLocal<S> {
    async fn get(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        Ok(self.store.get(key).await?.and_then(|stored| self.open_valid(key, stored)))
    }

    async fn get_shared(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        Ok(self.store.get_shared(key).await?.and_then(|stored| self.open_valid(key, stored)))
    }

    fn try_get(&self, key: &CacheKey) -> Option<Bytes> {
        self.store.try_get(key).and_then(|stored| self.open_valid(key, stored))
    }

    async fn get_head(&self, key: &CacheKey, limit: usize) -> Result<Option<ValueHead>, StoreError> {
        let Some(mut head) = self.store.get_head(key, limit).await? else { return Ok(None) };
        if !has_header(&head.bytes) {
            return Ok(Some(head));
        }
        if !head.is_whole() {
            let Some(longer) = self.store.get_head(key, limit.saturating_add(MAX_HEADER)).await? else {
                return Ok(None);
            };
            head = longer;
        }
        let Some(header) = Headed::decode(&head.bytes) else { return Ok(None) };
        // A part of a stale value is of no use: callers of parts read fresh ones.
        let is_fresh = self.judge(key, &header) == Validity::Fresh;
        Ok(is_fresh.then(|| ValueHead {
            bytes: head.bytes.slice(header.header_len()..),
            length: head.length.saturating_sub(header.header_len()),
        }))
    }

    async fn get_range(
        &self,
        key: &CacheKey,
        head: &Bytes,
        range: Range<usize>,
    ) -> Result<Option<Bytes>, StoreError> {
        let is_distinct = !head.is_empty() && !has_header(head);
        if is_distinct && let Some(part) = self.store.get_range(key, head, range.clone()).await? {
            return Ok(Some(part));
        }
        // The value may have a header.
        let Some(stored) = self.store.get_head(key, MAX_HEADER).await? else { return Ok(None) };
        if !has_header(&stored.bytes) {
            return if is_distinct { Ok(None) } else { self.store.get_range(key, head, range).await };
        }
        let Some(header) = Headed::decode(&stored.bytes) else { return Ok(None) };
        if self.judge(key, &header) != Validity::Fresh {
            return Ok(None);
        }
        let whole_head = [&stored.bytes[..header.header_len()], head].concat().into();
        let range =
            range.start.saturating_add(header.header_len())..range.end.saturating_add(header.header_len());
        self.store.get_range(key, &whole_head, range).await
    }

    async fn set(&self, key: &CacheKey, value: Bytes, ttl: Option<Duration>) -> Result<(), StoreError> {
        let _writing = self.writing(key).await;
        self.leases().revoke(key);
        self.store.set(key, encode_plain(value), ttl).await
    }

    async fn delete(&self, key: &CacheKey) -> Result<bool, StoreError> {
        let _writing = self.writing(key).await;
        self.leases().revoke(key);
        self.store.delete(key).await
    }

    async fn delete_group(&self, group: &KeySpace) -> Result<u64, StoreError> {
        let _evicting = self.evicting(group).await;
        self.leases().revoke_space(group);
        self.store.delete_group(group).await
    }

    async fn has(&self, key: &CacheKey) -> Result<bool, StoreError> {
        // Only the beginning tells whether an entry with tags is valid.
        let head = self.store.get_head(key, MAX_HEADER).await?;
        Ok(head.is_some_and(|head| {
            let is_valid = |header| self.judge(key, &header) != Validity::Gone;
            !has_header(&head.bytes) || Headed::decode(&head.bytes).is_some_and(is_valid)
        }))
    }

    fn set_clock(&mut self, clock: &Arc<dyn Clock>) {
        self.clock = Arc::clone(clock);
        self.store.set_clock(clock);
    }

    fn max_value_bytes(&self) -> u64 {
        self.store.max_value_bytes()
    }

    fn health(&self) -> Health {
        self.store.health()
    }

    async fn close(&self) {
        self.store.close().await;
    }
}

impl<S: CacheStore> LeaseStore for ProcessLocal<S> {
    async fn begin(
        &self,
        key: &CacheKey,
        intent: Intent,
        lease_ttl: Duration,
    ) -> Result<Acquired, StoreError> {
        let answer = self.leases().begin(key, intent, lease_ttl, self.clock.now());
        if intent != Intent::Fill {
            return Ok(answer);
        }
        // The lease comes first, so that no other commit can happen between the store's answer and the lease. The lease
        // ends if there is an entry, if the store fails, or if this future is dropped.
        let lease = PendingBegin { of: self, key, answer: Some(answer) };
        match self.store.get(key).await?.and_then(|stored| self.open(key, stored)) {
            Some((found, Validity::Fresh)) => Ok(Acquired::Found(found)),
            _ => Ok(lease.keep()),
        }
    }

    async fn commit(
        &self,
        key: &CacheKey,
        lease: &Lease,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, StoreError> {
        let _writing = self.writing(key).await;
        let current = self.leases().finish(key, lease, self.clock.now());
        if current {
            self.store.set(key, encode_plain(value), ttl).await?;
        }
        Ok(current)
    }

    async fn renew(&self, key: &CacheKey, lease: &Lease, lease_ttl: Duration) -> Result<bool, StoreError> {
        Ok(self.leases().renew(key, lease, lease_ttl, self.clock.now()))
    }

    async fn abandon(&self, key: &CacheKey, lease: &Lease, why: Abandon) -> Result<(), StoreError> {
        self.leases().abandon(key, lease, why, self.clock.now());
        Ok(())
    }

    async fn tag_clock(&self, space: &KeySpace) -> Result<Option<TagStamp>, StoreError> {
        Ok(Some(self.tags.of(space.prefix()).stamp()))
    }

    async fn set_tagged(
        &self,
        key: &CacheKey,
        value: Bytes,
        ttl: Option<Duration>,
        tagged: &Tagged,
    ) -> Result<(), StoreError> {
        let _writing = self.writing(key).await;
        self.leases().revoke(key);
        self.write_tagged(key, &value, ttl, tagged).await
    }

    async fn commit_tagged(
        &self,
        key: &CacheKey,
        lease: &Lease,
        value: Bytes,
        ttl: Option<Duration>,
        tagged: &Tagged,
    ) -> Result<bool, StoreError> {
        let _writing = self.writing(key).await;
        let current = self.leases().finish(key, lease, self.clock.now());
        if current {
            self.write_tagged(key, &value, ttl, tagged).await?;
        }
        let is_fresh = || self.tags.of(key.prefix()).judge(tagged) == Validity::Fresh;
        Ok(current && is_fresh())
    }

    async fn evict_tags(&self, space: &KeySpace, tags: &Tags, how: EvictionMode) -> Result<(), StoreError> {
        if let Some(clock) = self.tags.get(space.prefix()) {
            clock.evict(&tags.marks(), how, self.clock.now());
        }
        Ok(())
    }
}

impl<S: fmt::Debug> fmt::Debug for ProcessLocal<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessLocal")
            .field("store", &self.store)
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

/// A result of `begin` whose lease ends on drop, unless it is kept.
struct PendingBegin<'a, S: CacheStore> {
    of: &'a ProcessLocal<S>,
    key: &'a CacheKey,
    answer: Option<Acquired>,
}

impl<S: CacheStore> PendingBegin<'_, S> {
    fn keep(mut self) -> Acquired {
        // It is present until it is kept or dropped, and this method consumes it.
        self.answer.take().unwrap_or(Acquired::Filling)
    }
}

impl<S: CacheStore> Drop for PendingBegin<'_, S> {
    fn drop(&mut self) {
        if let Some(Acquired::Lease(lease)) = &self.answer {
            self.of.leases().abandon(self.key, lease, Abandon::Failed, self.of.clock.now());
        }
    }
}
