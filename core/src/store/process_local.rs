//! [`ProcessLocal`]: the fill protocol for stores without leases.

use std::fmt;
use std::ops::Range;
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::{
    Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
use tokio::time::{Instant, timeout_at};

use super::lease_table::{LeaseTable, head_of, stripe};
use super::stale_values::StaleValues;
use super::tag_clock::TagClocks;
use super::{Abandon, Acquired, CacheStore, Health, Intent, Lease, LeaseStore, StoreError, ValueHead};
use crate::clock::{Clock, SystemClock};
use crate::key::{CacheKey, KeySpace};
use crate::tag::{
    EvictionMode, Headed, MAX_HEADER, TagStamp, Tagged, Tags, Validity, encode_plain, epoch_at, has_header,
    soften,
};

/// The number of locks for keys, and of locks for groups. Keys that share a lock wait for each other's writes.
const STRIPES: usize = 64;

/// The time in which a soft eviction reads values to keep. Writes wait meanwhile.
const KEEP_WITHIN: Duration = Duration::from_millis(100);

/// The number of values that a soft eviction reads at once.
const READS_AT_ONCE: usize = 32;

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
/// A soft eviction removes entries from the store, so that they can't come back as fresh ones, and keeps their values in
/// this value: up to 16 MiB of them. It keeps only values whose expiry is known here. This value remembers up to 1024 keys
/// that were written through it, and forgets all of them when there are more. A store of four functions can't list a group,
/// so a soft eviction of a group keeps the values of these keys, as far as the store returns them within 100 ms. All other
/// values are gone.
///
/// Other processes that use the same store find no entry after a soft eviction. If they write one, this value drops its
/// stale value when it reads the new one. If it doesn't read it before another process evicts it, or before it expires, the
/// stale value is used again, for instance by `stale_while_revalidate`, until its own time to live ends. Don't use soft
/// evictions where that matters.
///
/// `commit` returns `true` once the store's `set` returns `Ok`, even if the store had no room for the value. A `commit`
/// whose future is dropped midway has already handed its write to the store, which may still perform it. Await it, or evict
/// the key.
pub struct ProcessLocal<S> {
    store: S,
    clock: Arc<dyn Clock>,
    leases: Mutex<LeaseTable>,
    tags: TagClocks,
    stale: StaleValues,
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
            stale: StaleValues::default(),
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

    /// Returns the value that the store returned for a key, if it is valid, or a stale one.
    fn open_valid(&self, key: &CacheKey, stored: Option<Bytes>) -> Option<Bytes> {
        let (value, validity) = match stored {
            Some(stored) => self.open_stored(key, stored)?,
            None => self.find_stale(key)?,
        };
        Some(match validity {
            Validity::Stale(since) => soften(&value, since),
            Validity::Fresh | Validity::Gone => value,
        })
    }

    /// Returns the value that the store has for a key, if it is valid. A stale value is older.
    fn open_stored(&self, key: &CacheKey, stored: Bytes) -> Option<(Bytes, Validity)> {
        self.stale.found(key, &stored, stored.len());
        self.open(key, stored)
    }

    /// Returns a value that was evicted softly by its key or group.
    fn find_stale(&self, key: &CacheKey) -> Option<(Bytes, Validity)> {
        let (stored, since) = self.stale.get(key, self.clock.now())?;
        let (value, validity) = self.open(key, stored)?;
        Some((value, validity.softened(Some(since))))
    }

    /// Keeps the values of keys as stale ones, as far as the store returns them soon. The eviction of the others is a hard one. The
    /// keys or their group must be locked.
    async fn keep_stale(&self, keys: &[CacheKey], since: u64) {
        let keep = async |key| {
            if let Ok(Some(stored)) = self.store.get(key).await {
                self.stale.insert(key, stored, since);
            }
        };
        let deadline = Instant::now() + KEEP_WITHIN;
        for keys in keys.chunks(READS_AT_ONCE) {
            if timeout_at(deadline, join_all(keys.iter().map(keep))).await.is_err() {
                return;
            }
        }
    }

    /// Writes to the store. The key must be locked for a write.
    async fn write(&self, key: &CacheKey, stored: Bytes, ttl: Option<Duration>) -> Result<(), StoreError> {
        let expires = self.expiry(ttl);
        // After a failure, or if this future is dropped, it isn't known what the store has.
        self.stale.remove(key);
        self.store.set(key, stored, ttl).await?;
        self.stale.wrote(key, expires);
        Ok(())
    }

    fn expiry(&self, ttl: Option<Duration>) -> Option<SystemTime> {
        ttl.and_then(|ttl| self.clock.now().checked_add(ttl))
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
        self.write(key, tagged.encode(value), ttl).await
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
        Ok(self.open_valid(key, self.store.get(key).await?))
    }

    async fn get_shared(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        Ok(self.open_valid(key, self.store.get_shared(key).await?))
    }

    fn try_get(&self, key: &CacheKey) -> Option<Bytes> {
        self.store.try_get(key).and_then(|stored| self.open_valid(key, Some(stored)))
    }

    async fn get_head(&self, key: &CacheKey, limit: usize) -> Result<Option<ValueHead>, StoreError> {
        let Some(mut head) = self.store.get_head(key, limit).await? else {
            return Ok(self.open_valid(key, None).map(ValueHead::whole));
        };
        self.stale.found(key, &head.bytes, head.length);
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
        Ok(match self.judge(key, &header) {
            Validity::Fresh => Some(ValueHead {
                bytes: head.bytes.slice(header.header_len()..),
                length: head.length.saturating_sub(header.header_len()),
            }),
            // A stale value has another form, which has no parts.
            Validity::Stale(_) => self.get(key).await?.map(ValueHead::whole),
            Validity::Gone => None,
        })
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
        self.write(key, encode_plain(value), ttl).await
    }

    async fn delete(&self, key: &CacheKey) -> Result<bool, StoreError> {
        let _writing = self.writing(key).await;
        self.leases().revoke(key);
        self.stale.remove(key);
        self.store.delete(key).await
    }

    async fn delete_group(&self, group: &KeySpace) -> Result<u64, StoreError> {
        let _evicting = self.evicting(group).await;
        self.leases().revoke_space(group);
        self.stale.remove_space(group);
        self.store.delete_group(group).await
    }

    async fn has(&self, key: &CacheKey) -> Result<bool, StoreError> {
        // Only the beginning tells whether an entry with tags is valid.
        let head = self.store.get_head(key, MAX_HEADER).await?;
        if let Some(head) = &head {
            self.stale.found(key, &head.bytes, head.length);
        }
        Ok(head.is_some_and(|head| {
            let is_fresh = |header| self.judge(key, &header) == Validity::Fresh;
            !has_header(&head.bytes) || Headed::decode(&head.bytes).is_some_and(is_fresh)
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
        match self.store.get(key).await?.and_then(|stored| self.open_stored(key, stored)) {
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
            self.write(key, encode_plain(value), ttl).await?;
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

    async fn evict_softly(&self, key: &CacheKey) -> Result<(), StoreError> {
        let _writing = self.writing(key).await;
        self.leases().revoke(key);
        self.keep_stale(slice::from_ref(key), epoch_at(self.clock.now())).await;
        self.stale.forget(key);
        self.store.delete(key).await.map(drop)
    }

    async fn evict_group_softly(&self, group: &KeySpace) -> Result<(), StoreError> {
        let _evicting = self.evicting(group).await;
        self.leases().revoke_space(group);
        let since = epoch_at(self.clock.now());
        self.keep_stale(&self.stale.written_in(group), since).await;
        self.stale.forget_space(group);
        self.store.delete_group(group).await.map(drop)
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
