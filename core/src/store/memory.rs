//! The store inside this process: [`MemoryStore`].
//!
//! # How it works
//!
//! Values live in one `quick_cache`, bounded by bytes. Beside it, every eviction group has a [`Group`]: the names of its
//! entries and its leases, under a lock. An entry points to the group it was written in.
//!
//! Evicting a group takes the `Group` out of the directory and marks it as over. That one step fences everything: reads
//! pass over entries whose group is over, leases are gone with the group, and whoever writes next founds a new one. What
//! is left is to free the memory, name by name, which nobody has to wait for but the caller who wants the count.
//!
//! A hit takes one shared lock in the cache, and neither allocates nor looks at the directory. Everything that writes or
//! leases goes through its key's room in the group. Locks are taken in this order: directory, room, a shard of the
//! cache; what the cache pushes out is struck off *its* group's list after all of them were let go.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Equivalent, Lifecycle, OptionsBuilder, Weighter};

use super::leases::{Leases, Sweep, head_of, split_off_space, stripe};
use super::{Abandon, Begin, CacheStore, Intent, Lease, LeaseStore, StoreError};
use crate::clock::{Clock, SystemClock};
use crate::key::{CacheKey, KeySpace};

/// The bound of a store made by [`MemoryStore::new`], in bytes.
const DEFAULT_CAPACITY: u64 = 256 * MIB;

/// What an entry weighs besides its key's suffix and its value, in bytes: its slot in the cache, its place in the
/// group's list, and what the allocator adds. Measured; see the test `figures`.
const OVERHEAD: u64 = 208;

/// A shard of the cache is at least this large, so that large values fit.
const SMALLEST_SHARD: u64 = 16 * MIB;
const MOST_SHARDS: u64 = 64;

/// One entry that was pushed out is remembered for so many bytes of capacity, to recognise what comes back soon.
const BYTES_PER_GHOST: u64 = 4096;

/// Keys without a group are never evicted together but with their whole prefix, so they need not share a lock.
const ROOMS_OF_UNGROUPED: usize = 32;

/// After so many entries freed, `delete_group` lets other tasks run.
const FREED_AT_ONCE: usize = 512;

const MIB: u64 = 1024 * 1024;

/// A [`LeaseStore`] in the memory of this process, bounded by bytes. Clones share the same entries.
///
/// When it is full, what is asked for least makes room (CLOCK-Pro). A value that weighs more than a quarter of the
/// capacity, or more than three quarters of a shard (12 MiB or more, in any store of at least 64 MiB), is not kept. An
/// entry that expired stays in memory, unseen, until it is overwritten, evicted or pushed out.
///
/// A value is kept as it is given: a [`Bytes`] that is a slice of a larger buffer keeps the whole buffer alive, while
/// only the slice is counted.
///
/// No function ever returns an error.
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
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
}

impl MemoryStore {
    /// An empty store of 256 MiB.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(DEFAULT_CAPACITY)
    }

    /// An empty store that keeps at most so many bytes: keys, values, and some 200 bytes an entry for itself. An
    /// eviction group takes another 400 bytes or so while it holds anything, which are not counted.
    #[must_use]
    pub fn with_capacity(bytes: u64) -> Self {
        Self { shared: Arc::new(Shared::new(bytes)), clock: Arc::new(SystemClock) }
    }

    /// Replaces the system's clock. Clones made before keep theirs.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// How many entries it holds, among them those that expired and still take up room.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.cache.len()
    }

    /// Whether it holds nothing, not even what expired.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shared.cache.is_empty()
    }

    /// The memory its entries take, in bytes, as counted against the capacity.
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
        Ok(self.shared.cache.get(&Valid { key, clock: &*self.clock }))
    }

    async fn set(&self, key: &CacheKey, value: Bytes, ttl: Option<Duration>) -> Result<(), StoreError> {
        let now = self.clock.now();
        let write = self.shared.in_room(key, now, |group, room| {
            room.leases.revoke(key.suffix());
            self.shared.write(group, room, key.suffix(), value, ttl, now)
        });
        self.shared.strike_off(write.pushed_out);
        Ok(())
    }

    async fn delete(&self, key: &CacheKey) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let removed = self.shared.in_known_room(key, |group, room| {
            room.leases.revoke(key.suffix());
            self.shared.remove(group, room, key.suffix())
        });
        Ok(removed.flatten().is_some_and(|expires| !expires.is_over(now)))
    }

    async fn delete_group(&self, space: &KeySpace) -> Result<u64, StoreError> {
        let now = self.clock.now();
        let (mut freed, mut valid) = (0usize, 0);
        for group in self.shared.end(space) {
            for room in group.rooms.iter() {
                let names = mem::take(&mut *lock(room)).names;
                for suffix in names {
                    let removed = self.shared.cache.remove(&Of { suffix: &suffix, group: &group });
                    valid += u64::from(removed.is_some_and(|(stored, _)| !stored.expires.is_over(now)));
                    freed += 1;
                    if freed % FREED_AT_ONCE == 0 {
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
        Ok(valid)
    }

    async fn has(&self, key: &CacheKey) -> Result<bool, StoreError> {
        Ok(self.shared.cache.contains_key(&Valid { key, clock: &*self.clock }))
    }
}

impl LeaseStore for MemoryStore {
    async fn begin(&self, key: &CacheKey, intent: Intent, hold: Duration) -> Result<Begin, StoreError> {
        let now = self.clock.now();
        Ok(self.shared.in_room(key, now, |_, room| {
            let found = match intent {
                Intent::Fill => self.shared.cache.get(&Valid { key, clock: &*self.clock }),
                Intent::Refresh | Intent::Write => None,
            };
            match found {
                Some(found) => Begin::Found(found),
                None => room.leases.begin(key.suffix(), intent, hold, now),
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
        let now = self.clock.now();
        let write = self.shared.in_known_room(key, |group, room| {
            room.leases
                .finish(key.suffix(), lease, now)
                .then(|| self.shared.write(group, room, key.suffix(), value, ttl, now))
        });
        let Some(write) = write.flatten() else { return Ok(false) };
        self.shared.strike_off(write.pushed_out);
        Ok(write.fits)
    }

    async fn renew(&self, key: &CacheKey, lease: &Lease, hold: Duration) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let renewed =
            self.shared.in_known_room(key, |_, room| room.leases.renew(key.suffix(), lease, hold, now));
        Ok(renewed.unwrap_or(false))
    }

    async fn abandon(&self, key: &CacheKey, lease: &Lease, why: Abandon) -> Result<(), StoreError> {
        let now = self.clock.now();
        self.shared.in_known_room(key, |_, room| room.leases.abandon(key.suffix(), lease, why, now));
        Ok(())
    }
}

struct Shared {
    cache: Cache<Stored, Bytes, Weigh, DefaultHashBuilder, KeepEvicted>,
    /// The heaviest entry that may come in.
    heaviest: u64,
    directory: RwLock<Directory>,
}

/// The groups that aren't over, by the head of their key space.
#[derive(Default)]
struct Directory {
    groups: BTreeMap<Box<str>, Arc<Group>>,
    sweep: Sweep,
}

/// What came of a write.
struct Written {
    fits: bool,
    pushed_out: Vec<(Stored, Bytes)>,
}

impl Shared {
    fn new(capacity: u64) -> Self {
        let shards = 1 << (capacity / SMALLEST_SHARD).clamp(1, MOST_SHARDS).ilog2();
        let ghosts = usize::try_from(capacity / BYTES_PER_GHOST).unwrap_or(usize::MAX);
        let options = OptionsBuilder::new()
            .shards(shards)
            .weight_capacity(capacity)
            .estimated_items_capacity(ghosts)
            .ghost_allocation(1.0)
            .build();
        let (hasher, keep) = (DefaultHashBuilder::default(), KeepEvicted);
        let cache = match options {
            Ok(options) => Cache::with_options(options, Weigh, hasher, keep),
            // Only for options that lack a capacity. The number of shards is then quick_cache's choice.
            Err(_) => Cache::with(ghosts, capacity, Weigh, hasher, keep),
        };
        let heaviest = (capacity / 4).min(cache.shard_capacity() / 4 * 3);
        Self { cache, heaviest, directory: RwLock::default() }
    }

    /// Does `work` in the room of `key`, in a group that isn't over. Founds the group if need be.
    fn in_room<T>(
        &self,
        key: &CacheKey,
        now: SystemTime,
        work: impl FnOnce(&Arc<Group>, &mut Room) -> T,
    ) -> T {
        loop {
            let group = self.group(key).unwrap_or_else(|| self.found_group(key, now));
            let mut room = lock(group.room(key.suffix()));
            if !group.is_over() {
                return work(&group, &mut room);
            }
        }
    }

    /// Does `work` in the room of `key`, unless its group holds nothing.
    fn in_known_room<T>(&self, key: &CacheKey, work: impl FnOnce(&Arc<Group>, &mut Room) -> T) -> Option<T> {
        loop {
            let group = self.group(key)?;
            let mut room = lock(group.room(key.suffix()));
            if !group.is_over() {
                return Some(work(&group, &mut room));
            }
        }
    }

    fn group(&self, key: &CacheKey) -> Option<Arc<Group>> {
        let directory = self.directory.read().unwrap_or_else(PoisonError::into_inner);
        directory.groups.get(head_of(key)).cloned()
    }

    fn found_group(&self, key: &CacheKey, now: SystemTime) -> Arc<Group> {
        let mut directory = self.directory.write().unwrap_or_else(PoisonError::into_inner);
        let Directory { groups, sweep } = &mut *directory;
        if sweep.is_due(groups.len()) {
            groups.retain(|_, group| !group.end_if_idle(now));
            sweep.done(groups.len());
        }
        groups.entry(head_of(key).into()).or_insert_with(|| Arc::new(Group::new(key))).clone()
    }

    /// Ends a group, or every group of a prefix. From here on nothing in them is seen, and their leases are void.
    fn end(&self, space: &KeySpace) -> Vec<Arc<Group>> {
        let mut directory = self.directory.write().unwrap_or_else(PoisonError::into_inner);
        let ended = split_off_space(&mut directory.groups, space);
        for group in &ended {
            group.end();
        }
        ended
    }

    /// Replaces an entry. The caller strikes off what that pushed out, once it has left the room.
    fn write(
        &self,
        group: &Arc<Group>,
        room: &mut Room,
        suffix: &str,
        value: Bytes,
        ttl: Option<Duration>,
        now: SystemTime,
    ) -> Written {
        let expires = Expiry::of(ttl, now);
        let fits = weight(suffix, &value) <= self.heaviest;
        let mut pushed_out = Vec::new();
        if fits && !expires.is_over(now) {
            let stored = Stored { suffix: room.name(suffix), group: Arc::clone(group), expires };
            self.cache.insert_with_lifecycle(stored, value, &mut pushed_out);
        } else {
            self.remove(group, room, suffix);
        }
        Written { fits, pushed_out }
    }

    /// Removes an entry of this group, and tells when it expires or expired.
    fn remove(&self, group: &Arc<Group>, room: &mut Room, suffix: &str) -> Option<Expiry> {
        room.strike_off(suffix);
        let (removed, _) = self.cache.remove(&Of { suffix, group })?;
        Some(removed.expires)
    }

    /// Takes what the cache pushed out off its group's list. No room may be locked.
    fn strike_off(&self, pushed_out: Vec<(Stored, Bytes)>) {
        for (Stored { suffix, group, .. }, _) in &pushed_out {
            let mut room = lock(group.room(suffix));
            // It may have been overwritten rather than pushed out, or written again since.
            if !self.cache.contains_key(&Of { suffix, group }) {
                room.strike_off(suffix);
            }
        }
    }
}

/// The life of an eviction group, or of the keys outside any group, from the first write to the next eviction.
struct Group {
    /// What the names of its keys begin with.
    head: Box<str>,
    over: AtomicBool,
    rooms: Box<[Mutex<Room>]>,
}

/// The part of a group that one lock guards.
#[derive(Default)]
struct Room {
    /// The suffixes of its entries. While a room is locked, no entry is missing from it.
    names: HashSet<Arc<str>>,
    leases: Leases,
}

impl Group {
    fn new(key: &CacheKey) -> Self {
        let rooms = if key.group().is_some() { 1 } else { ROOMS_OF_UNGROUPED };
        Self {
            head: head_of(key).into(),
            over: AtomicBool::new(false),
            rooms: (0..rooms).map(|_| Mutex::default()).collect(),
        }
    }

    fn room(&self, suffix: &str) -> &Mutex<Room> {
        match &*self.rooms {
            [only] => only,
            rooms => &rooms[stripe(suffix, rooms.len())],
        }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Ends a group that holds neither entries nor leases. No room may be locked.
    fn end_if_idle(&self, now: SystemTime) -> bool {
        let rooms: Vec<_> = self.rooms.iter().map(lock).collect();
        let idle = rooms.iter().all(|room| room.names.is_empty() && room.leases.is_idle(now));
        if idle {
            self.end();
        }
        idle
    }
}

impl Room {
    /// The suffix as the list has it, so that an entry and the list share one allocation.
    fn name(&mut self, suffix: &str) -> Arc<str> {
        if let Some(name) = self.names.get(suffix) {
            return Arc::clone(name);
        }
        let name: Arc<str> = suffix.into();
        self.names.insert(Arc::clone(&name));
        name
    }

    fn strike_off(&mut self, suffix: &str) {
        self.names.remove(suffix);
        if self.names.capacity() > 64 && self.names.len() < self.names.capacity() / 8 {
            self.names.shrink_to(self.names.len() * 2);
        }
    }
}

fn lock(room: &Mutex<Room>) -> MutexGuard<'_, Room> {
    room.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A key in the cache, with what decides whether its value may be seen: a lookup that names these conditions (see
/// [`Valid`]) doesn't match an entry that fails them, so that a hit copies nothing but the value's handle.
struct Stored {
    suffix: Arc<str>,
    group: Arc<Group>,
    expires: Expiry,
}

impl Stored {
    fn is_named(&self, head: &str, suffix: &str) -> bool {
        *self.suffix == *suffix && *self.group.head == *head
    }
}

impl PartialEq for Stored {
    fn eq(&self, other: &Self) -> bool {
        self.is_named(&other.group.head, &other.suffix)
    }
}

impl Eq for Stored {}

impl Hash for Stored {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_name(&self.group.head, &self.suffix, state);
    }
}

/// Finds an entry that may be seen.
struct Valid<'a> {
    key: &'a CacheKey,
    clock: &'a dyn Clock,
}

impl Equivalent<Stored> for Valid<'_> {
    fn equivalent(&self, stored: &Stored) -> bool {
        stored.is_named(head_of(self.key), self.key.suffix())
            && !stored.group.is_over()
            && !(stored.expires.is_finite() && stored.expires.is_over(self.clock.now()))
    }
}

impl Hash for Valid<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_name(head_of(self.key), self.key.suffix(), state);
    }
}

/// Finds an entry that was written in this very life of its group, expired or not.
struct Of<'a> {
    suffix: &'a str,
    group: &'a Arc<Group>,
}

impl Equivalent<Stored> for Of<'_> {
    fn equivalent(&self, stored: &Stored) -> bool {
        Arc::ptr_eq(&stored.group, self.group) && *stored.suffix == *self.suffix
    }
}

impl Hash for Of<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_name(&self.group.head, self.suffix, state);
    }
}

fn hash_name<H: Hasher>(head: &str, suffix: &str, state: &mut H) {
    head.hash(state);
    suffix.hash(state);
}

/// When an entry expires, in nanoseconds since 1970. They last until the year 2554, which is as good as forever.
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

    fn is_over(self, now: SystemTime) -> bool {
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
struct Weigh;

impl Weighter<Stored, Bytes> for Weigh {
    fn weight(&self, key: &Stored, value: &Bytes) -> u64 {
        weight(&key.suffix, value)
    }
}

fn weight(suffix: &str, value: &Bytes) -> u64 {
    OVERHEAD + suffix.len() as u64 + value.len() as u64
}

/// Hands what the cache lets go of to whoever caused it, to be dropped outside its locks.
#[derive(Clone)]
struct KeepEvicted;

impl Lifecycle<Stored, Bytes> for KeepEvicted {
    type RequestState = Vec<(Stored, Bytes)>;

    fn on_evict(&self, pushed_out: &mut Self::RequestState, key: Stored, value: Bytes) {
        pushed_out.push((key, value));
    }
}
