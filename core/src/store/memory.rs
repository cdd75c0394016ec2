//! [`MemoryStore`]: a store in the memory of this process.
//!
//! # How it works
//!
//! Values are in one `quick_cache`, bounded by bytes. In addition, each eviction group has a [`Generation`]: the names of
//! its entries and its leases, under a lock. An entry refers to the generation in which it was written.
//!
//! Evicting a group removes its `Generation` from the directory and closes it. This one step fences everything: reads skip
//! entries of a closed generation, its leases are gone, and the next write creates a new generation. After that, only
//! memory is freed, one name at a time. Only the caller waits for that, because it gets the count.
//!
//! A hit takes one shared lock in the cache. It neither allocates nor uses the directory. Writes and leases use the key's
//! partition of the generation. Locks are taken in this order: directory, partition, a shard of the cache. Entries that the
//! cache displaced are removed from *their* generation's list after all locks are released.
//!
//! A soft eviction of a group leaves its `Generation` open and advances a number in it. An entry that was written under an earlier
//! number is stale. A soft eviction of a key marks the entry. Both revoke leases.
//!
//! A tagged entry holds its tags beside its value (`tag_clock.rs`). A hit compares one number, and looks into the tag table once
//! after each eviction by tag. An evicted entry stays in memory, invisible, until it is overwritten or displaced.

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use foldhash::fast::RandomState;
use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Equivalent, Lifecycle, OptionsBuilder, Weighter};

use super::lease_table::{Leases, Sweep, head_of, heads_in, split_off_space, stripe};
use super::tag_clock::{HeldTags, TagClock, TagClocks};
use super::{Abandon, Acquired, CacheStore, Health, Intent, Lease, LeaseStore, StoreError};
use crate::clock::{Clock, SystemClock};
use crate::key::{CacheKey, KeySpace};
use crate::tag::{EvictionMode, TagStamp, Tagged, Tags, Validity, epoch_at, soften};

/// The capacity of a store made by [`MemoryStore::new`], in bytes.
const DEFAULT_CAPACITY: u64 = 256 * MIB;

/// The weight of an entry besides its key's suffix and its value, in bytes: its slot in the cache, its place in the
/// generation's list, and the allocator's overhead. Measured; see the test `figures`.
const OVERHEAD: u64 = 240;

/// Minimum size of a shard of the cache, in bytes, so that large values fit.
const MIN_SHARD: u64 = 16 * MIB;
const MAX_SHARDS: u64 = 64;

/// The cache remembers one displaced entry for this many bytes of capacity, to recognise keys that return soon.
const BYTES_PER_GHOST: u64 = 4096;

/// The number of partitions for keys without a group. These are evicted together only with their whole prefix, so they
/// needn't share a lock.
const UNGROUPED_PARTITIONS: usize = 32;

/// The number of soft evictions of a group whose times are kept. Entries from before an earlier one are gone.
const MAX_SOFT_EVICTIONS: usize = 64;

/// The number of entries that `delete_group` frees before it yields to other tasks.
const FREED_BEFORE_YIELD: usize = 512;

const MIB: u64 = 1024 * 1024;

/// A [`LeaseStore`] in the memory of this process, with a capacity in bytes. Clones share the same entries.
///
/// A full store displaces the entries that are requested least (CLOCK-Pro). A value is not kept if it weighs more than a
/// quarter of the capacity, or more than three quarters of a shard (12 MiB or more, in any store of at least 64 MiB). An
/// expired entry is invisible, but stays in memory until it is overwritten, evicted or displaced.
///
/// A value is kept as it is: a [`Bytes`] that is a slice of a larger buffer keeps the whole buffer alive, while only the
/// slice is counted.
///
/// Its methods never return an error.
///
/// ```
/// use bytes::Bytes;
/// use larder_core::{CacheStore, KeySpace, MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::with_capacity(64 * 1024 * 1024);
/// let products = KeySpace::new("shop", Some("products"))?;
///
/// store.set(&products.key("7"), Bytes::from("tea"), None).await?;
/// assert_eq!(store.get(&products.key("7")).await?, Some(Bytes::from("tea")));
///
/// assert_eq!(store.delete_group(&products).await?, 1);
/// assert_eq!(store.get(&products.key("7")).await?, None);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Entries>,
    clock: Arc<dyn Clock>,
}

impl MemoryStore {
    /// Creates an empty store with a capacity of 256 MiB.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(DEFAULT_CAPACITY)
    }

    /// Creates an empty store with a capacity in bytes, for keys, values, and 240 bytes of overhead per entry. An eviction
    /// group with entries takes about 400 more bytes, which are not counted.
    #[must_use]
    pub fn with_capacity(bytes: u64) -> Self {
        Self { shared: Arc::new(Entries::new(bytes)), clock: Arc::new(SystemClock) }
    }

    /// Replaces the system's clock. Existing clones keep theirs.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Returns the number of entries, including expired ones that are still in memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.cache.len()
    }

    /// Returns `true` if there are no entries, not even expired ones.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shared.cache.is_empty()
    }

    /// Returns the memory of the entries, in bytes, as counted against the capacity.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.shared.cache.weight()
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("len", &self.len())
            .field("len_bytes", &self.len_bytes())
            .field("capacity", &self.shared.cache.capacity())
            .field("clock", &self.clock)
            .finish()
    }
}

impl CacheStore for MemoryStore {
    async fn get(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        Ok(self.try_get(key))
    }

    fn try_get(&self, key: &CacheKey) -> Option<Bytes> {
        let (value, validity) = self.find(key)?;
        match validity {
            Validity::Fresh => Some(value),
            Validity::Stale(since) => Some(soften(&value, since)),
            Validity::Gone => None,
        }
    }

    fn finds_at_once(&self) -> bool {
        true
    }

    async fn set(&self, key: &CacheKey, value: Bytes, ttl: Option<Duration>) -> Result<(), StoreError> {
        let now = self.clock.now();
        let write = self.shared.with_partition(key, now, |group, partition| {
            partition.leases.revoke(key.suffix());
            self.shared.write(group, partition, key.suffix(), value.into(), ttl, now)
        });
        self.shared.unlist(write.displaced);
        Ok(())
    }

    async fn delete(&self, key: &CacheKey) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let removed = self.shared.with_existing_partition(key, |group, partition| {
            partition.leases.revoke(key.suffix());
            self.shared.remove(group, partition, key.suffix())
        });
        Ok(removed.flatten().is_some_and(|(expires, held)| !expires.is_past(now) && held.is_valid()))
    }

    async fn delete_group(&self, space: &KeySpace) -> Result<u64, StoreError> {
        let now = self.clock.now();
        let (mut freed, mut valid) = (0usize, 0);
        for group in self.shared.close(space) {
            for partition in group.partitions.iter() {
                let names = mem::take(&mut *lock(partition)).names;
                for suffix in names {
                    let removed = self.shared.cache.remove(&InGeneration { suffix: &suffix, group: &group });
                    let is_valid =
                        removed.is_some_and(|(stored, held)| !stored.expires.is_past(now) && held.is_valid());
                    valid += u64::from(is_valid);
                    freed += 1;
                    if freed % FREED_BEFORE_YIELD == 0 {
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
        Ok(valid)
    }

    async fn has(&self, key: &CacheKey) -> Result<bool, StoreError> {
        Ok(self.find_fresh(key).is_some())
    }

    fn set_clock(&mut self, clock: &Arc<dyn Clock>) {
        self.clock = Arc::clone(clock);
    }

    fn max_value_bytes(&self) -> u64 {
        self.shared.max_weight
    }

    fn health(&self) -> Health {
        let capacity = self.shared.cache.capacity();
        Health::of("memory").entries(self.len() as u64).bytes(self.len_bytes(), Some(capacity))
    }
}

impl LeaseStore for MemoryStore {
    async fn begin(
        &self,
        key: &CacheKey,
        intent: Intent,
        lease_ttl: Duration,
    ) -> Result<Acquired, StoreError> {
        let now = self.clock.now();
        Ok(self.shared.with_partition(key, now, |_, partition| {
            let found = match intent {
                Intent::Fill => self.find_fresh(key),
                Intent::Refresh | Intent::Write => None,
            };
            match found {
                Some(found) => Acquired::Found(found),
                None => partition.leases.begin(key.suffix(), intent, lease_ttl, now),
            }
        }))
    }

    async fn commit(
        &self,
        key: &CacheKey,
        lease: &Lease,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, StoreError> {
        Ok(self.commit_held(key, lease, value.into(), ttl))
    }

    async fn renew(&self, key: &CacheKey, lease: &Lease, lease_ttl: Duration) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let renewed = self.shared.with_existing_partition(key, |_, partition| {
            partition.leases.renew(key.suffix(), lease, lease_ttl, now)
        });
        Ok(renewed.unwrap_or(false))
    }

    async fn abandon(&self, key: &CacheKey, lease: &Lease, why: Abandon) -> Result<(), StoreError> {
        let now = self.clock.now();
        self.shared.with_existing_partition(key, |_, partition| {
            partition.leases.abandon(key.suffix(), lease, why, now)
        });
        Ok(())
    }

    async fn tag_clock(&self, space: &KeySpace) -> Result<Option<TagStamp>, StoreError> {
        Ok(Some(self.shared.tags.of(space.prefix()).stamp()))
    }

    async fn set_tagged(
        &self,
        key: &CacheKey,
        value: Bytes,
        ttl: Option<Duration>,
        tagged: &Tagged,
    ) -> Result<(), StoreError> {
        let now = self.clock.now();
        let held = self.shared.tagged(key, value, tagged);
        let write = self.shared.with_partition(key, now, |group, partition| {
            partition.leases.revoke(key.suffix());
            self.shared.write(group, partition, key.suffix(), held, ttl, now)
        });
        self.shared.unlist(write.displaced);
        Ok(())
    }

    async fn commit_tagged(
        &self,
        key: &CacheKey,
        lease: &Lease,
        value: Bytes,
        ttl: Option<Duration>,
        tagged: &Tagged,
    ) -> Result<bool, StoreError> {
        let held = self.shared.tagged(key, value, tagged);
        let tags = held.tags.clone();
        let is_written = self.commit_held(key, lease, held, ttl);
        Ok(is_written && tags.is_none_or(|tags| tags.judge() == Validity::Fresh))
    }

    async fn evict_tags(&self, space: &KeySpace, tags: &Tags, how: EvictionMode) -> Result<(), StoreError> {
        // Without a clock there is no tagged entry.
        if let Some(clock) = self.shared.tags.get(space.prefix()) {
            clock.evict(&tags.marks(), how, self.clock.now());
        }
        Ok(())
    }

    async fn evict_softly(&self, key: &CacheKey) -> Result<(), StoreError> {
        let epoch = epoch_at(self.clock.now());
        let displaced = self.shared.with_existing_partition(key, |group, partition| {
            partition.leases.revoke(key.suffix());
            self.shared.soften(group, key, epoch)
        });
        self.shared.unlist(displaced.unwrap_or_default());
        Ok(())
    }

    async fn evict_group_softly(&self, group: &KeySpace) -> Result<(), StoreError> {
        let epoch = epoch_at(self.clock.now());
        self.shared.open_generations(group).iter().for_each(|group| group.soften(epoch));
        Ok(())
    }
}

impl MemoryStore {
    /// Returns the value under a key and its validity, unless it expired or its group was evicted.
    fn find(&self, key: &CacheKey) -> Option<(Bytes, Validity)> {
        let lookup = Visible { key, clock: &*self.clock, stale_since: Cell::new(None) };
        let held = self.shared.cache.get(&lookup)?;
        let validity = held.validity().softened(lookup.stale_since.get());
        Some((held.value, validity))
    }

    fn find_fresh(&self, key: &CacheKey) -> Option<Bytes> {
        self.find(key).filter(|(_, validity)| *validity == Validity::Fresh).map(|(value, _)| value)
    }

    fn commit_held(&self, key: &CacheKey, lease: &Lease, held: Held, ttl: Option<Duration>) -> bool {
        let now = self.clock.now();
        let write = self.shared.with_existing_partition(key, |group, partition| {
            partition
                .leases
                .finish(key.suffix(), lease, now)
                .then(|| self.shared.write(group, partition, key.suffix(), held, ttl, now))
        });
        let Some(write) = write.flatten() else { return false };
        self.shared.unlist(write.displaced);
        write.fits
    }
}

/// A value, and its tags if it has any or was evicted softly by its key.
#[derive(Clone)]
struct Held {
    value: Bytes,
    tags: Option<Arc<HeldTags>>,
}

impl Held {
    fn validity(&self) -> Validity {
        self.tags.as_ref().map_or(Validity::Fresh, |tags| tags.judge())
    }

    fn is_valid(&self) -> bool {
        self.validity() != Validity::Gone
    }

    /// Returns the value as one that was evicted softly at this epoch.
    fn softened(self, epoch: u64, clock: impl FnOnce() -> Arc<TagClock>) -> Self {
        let tags = match &self.tags {
            Some(tags) => tags.softened(epoch),
            None => HeldTags::none(clock()).softened(epoch),
        };
        Self { tags: Some(Arc::new(tags)), ..self }
    }
}

impl From<Bytes> for Held {
    fn from(value: Bytes) -> Self {
        Self { value, tags: None }
    }
}

struct Entries {
    cache: Cache<StoredKey, Held, EntryWeighter, DefaultHashBuilder, ReturnDisplaced>,
    /// Maximum weight of an entry.
    max_weight: u64,
    directory: RwLock<Directory>,
    tags: TagClocks,
}

/// The open generations, by the head of their key space.
#[derive(Default)]
struct Directory {
    groups: BTreeMap<Box<str>, Arc<Generation>>,
    sweep: Sweep,
}

/// The result of a write.
struct WriteResult {
    fits: bool,
    displaced: Vec<(StoredKey, Held)>,
}

impl Entries {
    fn new(capacity: u64) -> Self {
        let shards = 1 << (capacity / MIN_SHARD).clamp(1, MAX_SHARDS).ilog2();
        let ghosts = usize::try_from(capacity / BYTES_PER_GHOST).unwrap_or(usize::MAX);
        let options = OptionsBuilder::new()
            .shards(shards)
            .weight_capacity(capacity)
            .estimated_items_capacity(ghosts)
            .ghost_allocation(1.0)
            .build();
        let (hasher, keep) = (DefaultHashBuilder::default(), ReturnDisplaced);
        let cache = match options {
            Ok(options) => Cache::with_options(options, EntryWeighter, hasher, keep),
            // This happens only for options without a capacity. `quick_cache` then chooses the number of shards.
            Err(_) => Cache::with(ghosts, capacity, EntryWeighter, hasher, keep),
        };
        let max_weight = (capacity / 4).min(cache.shard_capacity() / 4 * 3);
        Self { cache, max_weight, directory: RwLock::default(), tags: TagClocks::default() }
    }

    /// Calls `work` with the key's partition in an open generation, which is created if necessary.
    fn with_partition<T>(
        &self,
        key: &CacheKey,
        now: SystemTime,
        work: impl FnOnce(&Arc<Generation>, &mut Partition) -> T,
    ) -> T {
        loop {
            let group = self.group(key).unwrap_or_else(|| self.create_generation(key, now));
            let mut partition = lock(group.partition(key.suffix()));
            if !group.is_closed() {
                return work(&group, &mut partition);
            }
        }
    }

    /// Calls `work` with the key's partition, unless its group has no generation.
    fn with_existing_partition<T>(
        &self,
        key: &CacheKey,
        work: impl FnOnce(&Arc<Generation>, &mut Partition) -> T,
    ) -> Option<T> {
        loop {
            let group = self.group(key)?;
            let mut partition = lock(group.partition(key.suffix()));
            if !group.is_closed() {
                return Some(work(&group, &mut partition));
            }
        }
    }

    fn group(&self, key: &CacheKey) -> Option<Arc<Generation>> {
        let directory = self.directory.read().unwrap_or_else(PoisonError::into_inner);
        directory.groups.get(head_of(key)).cloned()
    }

    fn create_generation(&self, key: &CacheKey, now: SystemTime) -> Arc<Generation> {
        let mut directory = self.directory.write().unwrap_or_else(PoisonError::into_inner);
        let Directory { groups, sweep } = &mut *directory;
        if sweep.is_due(groups.len()) {
            groups.retain(|_, group| !group.close_if_idle(now));
            sweep.done(groups.len());
        }
        groups.entry(head_of(key).into()).or_insert_with(|| Arc::new(Generation::new(key))).clone()
    }

    /// Closes the generation of a group, or of every group of a prefix. Afterwards its entries are invisible, and its
    /// leases are void.
    fn close(&self, space: &KeySpace) -> Vec<Arc<Generation>> {
        let mut directory = self.directory.write().unwrap_or_else(PoisonError::into_inner);
        let closed = split_off_space(&mut directory.groups, space);
        for group in &closed {
            group.close();
        }
        closed
    }

    /// Returns the generation of a group, or those of every group of a prefix.
    fn open_generations(&self, space: &KeySpace) -> Vec<Arc<Generation>> {
        let directory = self.directory.read().unwrap_or_else(PoisonError::into_inner);
        let heads = heads_in(&directory.groups, space);
        heads.iter().filter_map(|head| directory.groups.get(head)).cloned().collect()
    }

    /// Makes an entry of this generation stale. The caller unlists what this displaces after it has unlocked the partition.
    fn soften(&self, group: &Arc<Generation>, key: &CacheKey, epoch: u64) -> Vec<(StoredKey, Held)> {
        let mut displaced = Vec::new();
        if let Some((stored, held)) = self.cache.remove(&InGeneration { suffix: key.suffix(), group }) {
            let held = held.softened(epoch, || self.tags.of(key.prefix()));
            self.cache.insert_with_lifecycle(stored, held, &mut displaced);
        }
        displaced
    }

    /// Replaces an entry. The caller unlists the displaced entries after it has unlocked the partition.
    fn write(
        &self,
        group: &Arc<Generation>,
        partition: &mut Partition,
        suffix: &str,
        held: Held,
        ttl: Option<Duration>,
        now: SystemTime,
    ) -> WriteResult {
        let expires = Expiry::of(ttl, now);
        let fits = weight(suffix, &held) <= self.max_weight;
        let mut displaced = Vec::new();
        if fits && !expires.is_past(now) {
            // The first clone of a `Bytes` made from a `Vec` allocates its counter. This clone saves hits from that.
            drop(held.value.clone());
            let suffix = partition.name(suffix);
            let soft_evictions = group.soft_evictions.load(Ordering::Acquire);
            let stored = StoredKey { suffix, group: Arc::clone(group), expires, soft_evictions };
            self.cache.insert_with_lifecycle(stored, held, &mut displaced);
        } else {
            self.remove(group, partition, suffix);
        }
        WriteResult { fits, displaced }
    }

    /// Returns a value with its tags.
    fn tagged(&self, key: &CacheKey, value: Bytes, tagged: &Tagged) -> Held {
        let hold = || Arc::new(HeldTags::new(tagged.clone(), self.tags.of(key.prefix())));
        Held { value, tags: (!tagged.marks().is_empty()).then(hold) }
    }

    /// Removes an entry of this generation, and returns it with its expiry.
    fn remove(
        &self,
        group: &Arc<Generation>,
        partition: &mut Partition,
        suffix: &str,
    ) -> Option<(Expiry, Held)> {
        partition.unlist(suffix);
        let (removed, held) = self.cache.remove(&InGeneration { suffix, group })?;
        Some((removed.expires, held))
    }

    /// Removes displaced entries from their generations' lists. No partition may be locked.
    fn unlist(&self, displaced: Vec<(StoredKey, Held)>) {
        for (StoredKey { suffix, group, .. }, _) in &displaced {
            let mut partition = lock(group.partition(suffix));
            // The entry may have been overwritten instead of displaced, or written again since.
            if !self.cache.contains_key(&InGeneration { suffix, group }) {
                partition.unlist(suffix);
            }
        }
    }
}

/// The state of an eviction group, or of the keys outside any group, from the first write to the next eviction.
struct Generation {
    /// The head of its keys' names.
    head: Box<str>,
    closed: AtomicBool,
    /// The number of soft evictions. Changed while every partition is locked.
    soft_evictions: AtomicU64,
    /// The epochs of the last soft evictions.
    soft_epochs: Mutex<VecDeque<u64>>,
    partitions: Box<[Mutex<Partition>]>,
}

/// The part of a generation that one lock guards.
#[derive(Default)]
struct Partition {
    /// The suffixes of its entries. While the partition is locked, the list is complete.
    names: HashSet<Arc<str>, RandomState>,
    leases: Leases,
}

impl Generation {
    fn new(key: &CacheKey) -> Self {
        let partitions = if key.group().is_some() { 1 } else { UNGROUPED_PARTITIONS };
        Self {
            head: head_of(key).into(),
            closed: AtomicBool::new(false),
            soft_evictions: AtomicU64::new(0),
            soft_epochs: Mutex::default(),
            partitions: (0..partitions).map(|_| Mutex::default()).collect(),
        }
    }

    fn partition(&self, suffix: &str) -> &Mutex<Partition> {
        match &*self.partitions {
            [only] => only,
            partitions => &partitions[stripe(suffix, partitions.len())],
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Makes every entry stale, and revokes every lease.
    fn soften(&self, epoch: u64) {
        let mut partitions: Vec<_> = self.partitions.iter().map(lock).collect();
        for partition in &mut partitions {
            partition.leases = Leases::default();
        }
        let mut epochs = lock(&self.soft_epochs);
        if epochs.len() >= MAX_SOFT_EVICTIONS {
            epochs.pop_front();
        }
        epochs.push_back(epoch);
        self.soft_evictions.fetch_add(1, Ordering::AcqRel);
    }

    /// Judges an entry that was written after this many soft evictions.
    fn judge(&self, soft_evictions: u64) -> Validity {
        if self.soft_evictions.load(Ordering::Acquire) == soft_evictions {
            return Validity::Fresh;
        }
        self.judge_by_epochs(soft_evictions)
    }

    #[cold]
    fn judge_by_epochs(&self, soft_evictions: u64) -> Validity {
        let epochs = lock(&self.soft_epochs);
        let later = self.soft_evictions.load(Ordering::Acquire).saturating_sub(soft_evictions);
        let first = usize::try_from(later).ok().and_then(|later| epochs.len().checked_sub(later));
        first.and_then(|first| epochs.get(first)).map_or(Validity::Gone, |epoch| Validity::Stale(*epoch))
    }

    /// Closes a generation without entries and leases. No partition may be locked.
    fn close_if_idle(&self, now: SystemTime) -> bool {
        let partitions: Vec<_> = self.partitions.iter().map(lock).collect();
        let idle =
            partitions.iter().all(|partition| partition.names.is_empty() && partition.leases.is_idle(now));
        if idle {
            self.close();
        }
        idle
    }
}

impl Partition {
    /// Returns the listed suffix, so that the entry and the list share one allocation.
    fn name(&mut self, suffix: &str) -> Arc<str> {
        if let Some(name) = self.names.get(suffix) {
            return Arc::clone(name);
        }
        let name: Arc<str> = suffix.into();
        self.names.insert(Arc::clone(&name));
        name
    }

    fn unlist(&mut self, suffix: &str) {
        self.names.remove(suffix);
        if self.names.capacity() > 64 && self.names.len() < self.names.capacity() / 8 {
            self.names.shrink_to(self.names.len() * 2);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A key in the cache, with the conditions under which its value is visible. A lookup that includes these conditions (see
/// [`Visible`]) doesn't match an entry that fails them, so that a hit copies only the value's handle.
struct StoredKey {
    suffix: Arc<str>,
    group: Arc<Generation>,
    expires: Expiry,
    /// The number of soft evictions of the group when it was written.
    soft_evictions: u64,
}

impl StoredKey {
    fn is_named(&self, head: &str, suffix: &str) -> bool {
        *self.suffix == *suffix && *self.group.head == *head
    }
}

impl PartialEq for StoredKey {
    fn eq(&self, other: &Self) -> bool {
        self.is_named(&other.group.head, &other.suffix)
    }
}

impl Eq for StoredKey {}

impl Hash for StoredKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_name(&self.group.head, &self.suffix, state);
    }
}

/// A lookup of a visible entry.
struct Visible<'a> {
    key: &'a CacheKey,
    clock: &'a dyn Clock,
    /// The epoch of the soft eviction of the group since the found entry was written.
    stale_since: Cell<Option<u64>>,
}

impl Equivalent<StoredKey> for Visible<'_> {
    fn equivalent(&self, stored: &StoredKey) -> bool {
        stored.is_named(head_of(self.key), self.key.suffix())
            && !stored.group.is_closed()
            && !(stored.expires.is_finite() && stored.expires.is_past(self.clock.now()))
            && match stored.group.judge(stored.soft_evictions) {
                Validity::Fresh => true,
                Validity::Stale(since) => {
                    self.stale_since.set(Some(since));
                    true
                }
                Validity::Gone => false,
            }
    }
}

impl Hash for Visible<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_name(head_of(self.key), self.key.suffix(), state);
    }
}

/// A lookup of an entry of this generation, expired or not.
struct InGeneration<'a> {
    suffix: &'a str,
    group: &'a Arc<Generation>,
}

impl Equivalent<StoredKey> for InGeneration<'_> {
    fn equivalent(&self, stored: &StoredKey) -> bool {
        Arc::ptr_eq(&stored.group, self.group) && *stored.suffix == *self.suffix
    }
}

impl Hash for InGeneration<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_name(&self.group.head, self.suffix, state);
    }
}

fn hash_name<H: Hasher>(head: &str, suffix: &str, state: &mut H) {
    head.hash(state);
    suffix.hash(state);
}

/// The expiry of an entry, in nanoseconds since 1970. The range ends in the year 2554.
#[derive(Clone, Copy)]
struct Expiry(u64);

impl Expiry {
    const NEVER: Self = Self(u64::MAX);

    fn of(ttl: Option<Duration>, now: SystemTime) -> Self {
        ttl.map_or(Self::NEVER, |ttl| Self(Self::nanos(now).saturating_add(whole_nanos(ttl))))
    }

    const fn is_finite(self) -> bool {
        self.0 != Self::NEVER.0
    }

    fn is_past(self, now: SystemTime) -> bool {
        self.is_finite() && Self::nanos(now) >= self.0
    }

    fn nanos(now: SystemTime) -> u64 {
        now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, whole_nanos)
    }
}

fn whole_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[derive(Clone)]
struct EntryWeighter;

impl Weighter<StoredKey, Held> for EntryWeighter {
    fn weight(&self, key: &StoredKey, held: &Held) -> u64 {
        weight(&key.suffix, held)
    }
}

fn weight(suffix: &str, held: &Held) -> u64 {
    let tags = held.tags.as_ref().map_or(0, |tags| tags.weight());
    OVERHEAD + suffix.len() as u64 + held.value.len() as u64 + tags
}

/// A lifecycle that passes displaced entries to the caller, which drops them outside the cache's locks.
#[derive(Clone)]
struct ReturnDisplaced;

impl Lifecycle<StoredKey, Held> for ReturnDisplaced {
    type RequestState = Vec<(StoredKey, Held)>;

    fn on_evict(&self, displaced: &mut Self::RequestState, key: StoredKey, held: Held) {
        displaced.push((key, held));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use proptest::prelude::*;

    fn space(prefix: &str, group: Option<&str>) -> KeySpace {
        KeySpace::new(prefix, group).unwrap()
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    /// Returns the number of listed names, and of generations in the directory.
    fn bookkeeping(store: &MemoryStore) -> (usize, usize) {
        let directory = store.shared.directory.read().unwrap();
        let names = directory.groups.values().flat_map(|group| group.partitions.iter());
        (names.map(|partition| lock(partition).names.len()).sum(), directory.groups.len())
    }

    #[tokio::test]
    async fn full_store_stays_within_its_capacity_and_lists_its_entries() {
        const CAPACITY: u64 = MIB;
        let store = MemoryStore::with_capacity(CAPACITY);
        for i in 0..20_000 {
            let key = space("p", [None, Some("a"), Some("b")][i % 3]).key(&i.to_string());
            store.set(&key, vec![0; i % 700].into(), None).await.unwrap();
            assert!(store.len_bytes() <= CAPACITY);
        }
        assert!(store.len() < 10_000, "it was to be overfilled");
        assert_eq!(bookkeeping(&store).0, store.len());
        let (all, a) = (store.len() as u64, store.delete_group(&space("p", Some("a"))).await.unwrap());
        assert!(a > 0);
        assert_eq!(store.len() as u64, all - a, "what was pushed out must not be counted");
        assert_eq!(store.delete_group(&space("p", None)).await.unwrap(), all - a);
        assert_eq!((store.len(), store.len_bytes(), bookkeeping(&store)), (0, 0, (0, 0)));
    }

    #[tokio::test]
    async fn oversized_value_removes_the_previous_one() {
        let store = MemoryStore::with_capacity(MIB);
        let (key, large) = (space("p", Some("g")).key("k"), Bytes::from(vec![0; 300 * 1024]));
        store.set(&key, Bytes::from_static(b"old"), None).await.unwrap();
        store.set(&key, large.clone(), None).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap(), None);

        store.set(&key, Bytes::from_static(b"old"), None).await.unwrap();
        let Acquired::Lease(lease) = store.begin(&key, Intent::Refresh, Duration::MAX).await.unwrap() else {
            panic!("the key is free");
        };
        assert!(!store.commit(&key, &lease, large, None).await.unwrap());
        assert_eq!((store.get(&key).await.unwrap(), bookkeeping(&store).0), (None, 0));
    }

    #[tokio::test]
    async fn largest_value_is_as_documented() {
        for (capacity, value) in
            [(MIB, MIB / 4), (64 * MIB, 12 * MIB), (256 * MIB, 12 * MIB), (4096 * MIB, 48 * MIB)]
        {
            let (store, key) = (MemoryStore::with_capacity(capacity), space("p", None).key("k"));
            store.set(&key, vec![0; (value - 1024) as usize].into(), None).await.unwrap();
            assert!(store.has(&key).await.unwrap(), "{value} bytes in {capacity}");
        }
        let (store, key) = (MemoryStore::with_capacity(0), space("p", None).key("k"));
        store.set(&key, Bytes::new(), None).await.unwrap();
        assert!(store.is_empty());
    }

    #[tokio::test]
    async fn empty_groups_are_removed() {
        let clock = ManualClock::new();
        let store = MemoryStore::new().with_clock(Arc::new(clock.clone()));
        for i in 0..10_000 {
            let key = space("p", Some(&format!("user{i}"))).key("k");
            match i % 2 {
                0 => drop(store.begin(&key, Intent::Fill, Duration::from_secs(1)).await.unwrap()),
                _ => {
                    store.set(&key, Bytes::new(), None).await.unwrap();
                    assert!(store.delete(&key).await.unwrap());
                }
            }
            clock.advance(Duration::from_secs(1));
        }
        assert!(bookkeeping(&store).1 <= 64, "{:?}", bookkeeping(&store));
    }

    #[tokio::test]
    async fn entry_expires_to_the_millisecond() {
        let clock = ManualClock::new();
        let store = MemoryStore::new().with_clock(Arc::new(clock.clone()));
        let key = space("p", Some("g")).key("k");
        store.set(&key, Bytes::new(), Some(Duration::from_millis(1_000))).await.unwrap();
        clock.advance(Duration::from_millis(999));
        assert!(store.has(&key).await.unwrap());
        clock.advance(Duration::from_millis(1));
        assert!(!store.has(&key).await.unwrap());
    }

    #[tokio::test]
    async fn keys_with_equal_names_in_different_spaces_are_distinct() {
        let store = MemoryStore::new();
        let (a, b) = (space("p", None).key("x:y"), space("p:x", None).key("y"));
        assert_eq!(a.name(), b.name());
        store.set(&a, Bytes::new(), None).await.unwrap();
        assert!(!store.has(&b).await.unwrap());
        assert_eq!(store.delete_group(&b.space()).await.unwrap(), 0);
        assert!(store.delete(&a).await.unwrap());
    }

    /// A hit shares the stored bytes: both handles point to the same memory.
    #[tokio::test]
    async fn hit_shares_the_stored_bytes() {
        let (store, key) = (MemoryStore::new(), space("p", Some("g")).key("k"));
        let value = Bytes::from(vec![7; 1000]);
        store.set(&key, value.clone(), None).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().unwrap().as_ptr(), value.as_ptr());
    }

    /// Threads write, evict and displace entries concurrently. Then the lists must match the entries.
    #[test]
    fn lists_match_entries_after_concurrent_operations() {
        let store = MemoryStore::with_capacity(512 * 1024);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let store = store.clone();
                scope.spawn(move || {
                    let runtime = runtime();
                    for _ in 0..20_000 {
                        let group = [None, Some("a"), Some("b"), Some("c")][fastrand::usize(..4)];
                        let key = space("p", group).key(&fastrand::u32(..2_000).to_string());
                        runtime.block_on(async {
                            match fastrand::u32(..1_000) {
                                0 => drop(store.delete_group(&key.space()).await),
                                1..100 => drop(store.delete(&key).await),
                                100..500 => drop(store.get(&key).await),
                                _ => {
                                    drop(store.set(&key, vec![0; fastrand::usize(..900)].into(), None).await)
                                }
                            }
                        });
                    }
                });
            }
        });
        assert_eq!(bookkeeping(&store).0, store.len());
        let len = store.len() as u64;
        assert_eq!(runtime().block_on(store.delete_group(&space("p", None))).unwrap(), len);
        assert!(store.is_empty());
    }

    #[derive(Clone, Debug)]
    enum StoreOp {
        Set(usize, u8, Option<u64>),
        Delete(usize),
        DeleteGroup(usize),
        Begin(usize, Intent),
        Commit(usize, u8, Option<u64>),
        Wait(u64),
    }

    fn op() -> impl Strategy<Value = StoreOp> {
        let (key, time) = (0..10usize, 0..4u64);
        let ttl = prop::option::of(time.clone());
        let intent = prop_oneof![Just(Intent::Fill), Just(Intent::Refresh), Just(Intent::Write)];
        prop_oneof![
            3 => (key.clone(), any::<u8>(), ttl.clone()).prop_map(|(k, v, t)| StoreOp::Set(k, v, t)),
            2 => key.clone().prop_map(StoreOp::Delete),
            1 => (0..5usize).prop_map(StoreOp::DeleteGroup),
            4 => (key.clone(), intent).prop_map(|(k, i)| StoreOp::Begin(k, i)),
            4 => (key, any::<u8>(), ttl).prop_map(|(k, v, t)| StoreOp::Commit(k, v, t)),
            2 => time.prop_map(StoreOp::Wait),
        ]
    }

    /// The expected state of a key: its value and expiry in seconds, and whether its latest lease is current.
    #[derive(Clone, Default)]
    struct ExpectedEntry {
        entry: Option<(u8, Option<u64>)>,
        given: Option<Lease>,
        held: Option<(Lease, Intent)>,
    }

    impl ExpectedEntry {
        fn value(&self, now: u64) -> Option<u8> {
            self.entry.filter(|(_, until)| until.is_none_or(|until| until > now)).map(|(value, _)| value)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn random_operations_match_a_plain_map(ops in prop::collection::vec(op(), 1..60)) {
            const SECOND: Duration = Duration::from_secs(1);
            let spaces = [("p", None), ("p", Some("a")), ("p", Some("b")), ("q", None), ("q", Some("a"))]
                .map(|(prefix, group)| space(prefix, group));
            let keys: Vec<CacheKey> = (0..10).map(|i| spaces[i % 5].key(["x", "y"][i / 5])).collect();
            let mut model = vec![ExpectedEntry::default(); keys.len()];
            let (clock, mut now) = (ManualClock::new(), 0);
            let store = MemoryStore::new().with_clock(Arc::new(clock.clone()));
            runtime().block_on(async {
                for op in ops {
                    match op {
                        StoreOp::Set(k, value, ttl) => {
                            store.set(&keys[k], vec![value].into(), ttl.map(|t| SECOND * t as u32)).await.unwrap();
                            model[k].entry = Some((value, ttl.map(|ttl| now + ttl)));
                            model[k].held = None;
                        }
                        StoreOp::Delete(k) => {
                            let expected = model[k].value(now).is_some();
                            prop_assert_eq!(store.delete(&keys[k]).await.unwrap(), expected);
                            (model[k].entry, model[k].held) = (None, None);
                        }
                        StoreOp::DeleteGroup(s) => {
                            let mut expected = 0;
                            for (key, slot) in keys.iter().zip(&mut model) {
                                let whole = spaces[s].group().is_none();
                                if key.prefix() == spaces[s].prefix() && (whole || key.group() == spaces[s].group()) {
                                    expected += u64::from(slot.value(now).is_some());
                                    (slot.entry, slot.held) = (None, None);
                                }
                            }
                            prop_assert_eq!(store.delete_group(&spaces[s]).await.unwrap(), expected);
                        }
                        StoreOp::Begin(k, intent) => {
                            let slot = &mut model[k];
                            match (store.begin(&keys[k], intent, SECOND * 1_000).await.unwrap(), &slot.held) {
                                (Acquired::Found(found), _) => {
                                    prop_assert_eq!(intent, Intent::Fill);
                                    prop_assert_eq!(Some(found[0]), slot.value(now));
                                    continue;
                                }
                                (Acquired::Lease(lease), held) => {
                                    prop_assert!(held.is_none() || intent == Intent::Write);
                                    slot.given = Some(lease.clone());
                                    slot.held = Some((lease, intent));
                                }
                                (Acquired::Filling, held) => {
                                    prop_assert!(matches!(held, Some((_, Intent::Fill | Intent::Refresh))));
                                }
                                (Acquired::Busy(_), held) => prop_assert!(matches!(held, Some((_, Intent::Write)))),
                            }
                            prop_assert!(intent != Intent::Fill || slot.value(now).is_none());
                        }
                        StoreOp::Commit(k, value, ttl) => if let Some(lease) = model[k].given.clone() {
                            let expected = model[k].held.as_ref().is_some_and(|(held, _)| *held == lease);
                            let ttl_secs = ttl.map(|ttl| SECOND * ttl as u32);
                            let done = store.commit(&keys[k], &lease, vec![value].into(), ttl_secs).await.unwrap();
                            prop_assert_eq!(done, expected);
                            if done {
                                model[k].entry = Some((value, ttl.map(|ttl| now + ttl)));
                                model[k].held = None;
                            }
                        },
                        StoreOp::Wait(seconds) => {
                            clock.advance(SECOND * seconds as u32);
                            now += seconds;
                        }
                    }
                    for (key, slot) in keys.iter().zip(&model) {
                        let value = store.get(key).await.unwrap().map(|value| value[0]);
                        prop_assert_eq!(value, slot.value(now));
                    }
                }
                Ok(())
            })?;
        }
    }

    /// Measures the memory of an entry and the time of a hit. Run it alone, on Linux, in release mode: `cargo test
    /// --release -p larder-core --features memory figures -- --ignored --nocapture`
    #[test]
    #[ignore = "measures instead of testing, and takes gigabytes"]
    fn figures() {
        fn resident() -> u64 {
            let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
            pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
        }
        const PROBES: u32 = 1_000_000;
        // The stores are kept until the end, so that none reuses another's memory.
        let mut kept = Vec::new();
        for (count, grouped) in
            [(10_000u32, true), (100_000, true), (1_000_000, true), (1_000_000, false), (10_000_000, true)]
        {
            let (store, before, runtime) = (MemoryStore::with_capacity(16 << 30), resident(), runtime());
            kept.push(store.clone());
            let key = |i: u32| {
                let group = (i % 100).to_string();
                space("redis:larder:cache", grouped.then_some(&*group)).key(&format!("items:{i:08}"))
            };
            let hour = Some(Duration::from_secs(3600));
            let started = SystemClock.now();
            runtime.block_on(async {
                for i in 0..count {
                    store.set(&key(i), vec![0; 64].into(), hour).await.unwrap();
                }
            });
            let set = SystemClock.now().duration_since(started).unwrap() / count;
            let (taken, payload) = (resident().saturating_sub(before), u64::from(count) * (64 + 14));
            let probe = |among: u32| {
                let some: Vec<CacheKey> =
                    (0..among.min(PROBES)).map(|_| key(fastrand::u32(..count))).collect();
                let started = SystemClock.now();
                let hits = runtime.block_on(async {
                    let mut hits = 0;
                    for i in 0..PROBES as usize {
                        hits += u32::from(store.get(&some[i % some.len()]).await.unwrap().is_some());
                    }
                    hits
                });
                assert_eq!(hits, PROBES);
                SystemClock.now().duration_since(started).unwrap() / PROBES
            };
            let (hot, any) = (probe(1_000), probe(count));
            let started = SystemClock.now();
            let freed =
                runtime.block_on(store.delete_group(&space("redis:larder:cache", Some("7")))).unwrap();
            let evict = SystemClock.now().duration_since(started).unwrap();
            println!(
                "{count:>9} entries, grouped: {grouped:<5} {:>4} bytes each beside key and value (counted {OVERHEAD}), \
                 set {set:?}, get {hot:?} among 1000, {any:?} among all, delete_group of {freed}: {evict:?}",
                taken.saturating_sub(payload) / u64::from(count),
            );
        }
    }
}
