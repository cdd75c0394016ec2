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
use foldhash::fast::RandomState;
use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Equivalent, Lifecycle, OptionsBuilder, Weighter};

use super::lease_table::{Leases, Sweep, head_of, split_off_space, stripe};
use super::{Abandon, Begin, CacheStore, Health, Intent, Lease, LeaseStore, StoreError};
use crate::clock::{Clock, SystemClock};
use crate::key::{CacheKey, KeySpace};

/// The bound of a store made by [`MemoryStore::new`], in bytes.
const DEFAULT_CAPACITY: u64 = 256 * MIB;

/// What an entry weighs besides its key's suffix and its value, in bytes: its slot in the cache, its place in the
/// group's list, and what the allocator adds. Measured; see the test `figures`.
const OVERHEAD: u64 = 240;

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

    /// An empty store that keeps at most so many bytes: keys, values, and 240 bytes an entry for itself. An
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
        Ok(self.try_get(key))
    }

    fn try_get(&self, key: &CacheKey) -> Option<Bytes> {
        self.shared.cache.get(&Valid { key, clock: &*self.clock })
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

    fn max_value_bytes(&self) -> u64 {
        self.shared.heaviest
    }

    fn health(&self) -> Health {
        let capacity = self.shared.cache.capacity();
        Health::of("memory").entries(self.len() as u64).bytes(self.len_bytes(), Some(capacity))
    }
}

impl LeaseStore for MemoryStore {
    async fn begin(&self, key: &CacheKey, intent: Intent, hold: Duration) -> Result<Begin, StoreError> {
        let now = self.clock.now();
        Ok(self.shared.in_room(key, now, |_, room| {
            let found = match intent {
                Intent::Fill => self.try_get(key),
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
            // The first clone of a `Bytes` made from a `Vec` allocates its counter: here, so that no hit has to.
            drop(value.clone());
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
    names: HashSet<Arc<str>, RandomState>,
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

    /// Every name on a list, and every group, in the directory.
    fn bookkeeping(store: &MemoryStore) -> (usize, usize) {
        let directory = store.shared.directory.read().unwrap();
        let names = directory.groups.values().flat_map(|group| group.rooms.iter());
        (names.map(|room| lock(room).names.len()).sum(), directory.groups.len())
    }

    #[tokio::test]
    async fn a_full_store_stays_within_its_bound_and_lists_what_it_holds() {
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
    async fn what_is_too_large_removes_what_was_there() {
        let store = MemoryStore::with_capacity(MIB);
        let (key, large) = (space("p", Some("g")).key("k"), Bytes::from(vec![0; 300 * 1024]));
        store.set(&key, Bytes::from_static(b"old"), None).await.unwrap();
        store.set(&key, large.clone(), None).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap(), None);

        store.set(&key, Bytes::from_static(b"old"), None).await.unwrap();
        let Begin::Lease(lease) = store.begin(&key, Intent::Refresh, Duration::MAX).await.unwrap() else {
            panic!("the key is free");
        };
        assert!(!store.commit(&key, &lease, large, None).await.unwrap());
        assert_eq!((store.get(&key).await.unwrap(), bookkeeping(&store).0), (None, 0));
    }

    #[tokio::test]
    async fn the_largest_value_is_as_documented() {
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
    async fn groups_that_hold_nothing_are_forgotten() {
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
    async fn a_time_to_live_ends_to_the_millisecond() {
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
    async fn keys_that_are_written_alike_are_two() {
        let store = MemoryStore::new();
        let (a, b) = (space("p", None).key("x:y"), space("p:x", None).key("y"));
        assert_eq!(a.name(), b.name());
        store.set(&a, Bytes::new(), None).await.unwrap();
        assert!(!store.has(&b).await.unwrap());
        assert_eq!(store.delete_group(&b.space()).await.unwrap(), 0);
        assert!(store.delete(&a).await.unwrap());
    }

    /// The value is neither copied nor the old one: both handles point to the same bytes.
    #[tokio::test]
    async fn a_hit_shares_the_bytes() {
        let (store, key) = (MemoryStore::new(), space("p", Some("g")).key("k"));
        let value = Bytes::from(vec![7; 1000]);
        store.set(&key, value.clone(), None).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().unwrap().as_ptr(), value.as_ptr());
    }

    /// Threads write, evict and push out at once; then the lists must agree with what is there.
    #[test]
    fn the_lists_are_right_after_a_storm() {
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
    enum Op {
        Set(usize, u8, Option<u64>),
        Delete(usize),
        DeleteGroup(usize),
        Begin(usize, Intent),
        Commit(usize, u8, Option<u64>),
        Wait(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let (key, time) = (0..10usize, 0..4u64);
        let ttl = prop::option::of(time.clone());
        let intent = prop_oneof![Just(Intent::Fill), Just(Intent::Refresh), Just(Intent::Write)];
        prop_oneof![
            3 => (key.clone(), any::<u8>(), ttl.clone()).prop_map(|(k, v, t)| Op::Set(k, v, t)),
            2 => key.clone().prop_map(Op::Delete),
            1 => (0..5usize).prop_map(Op::DeleteGroup),
            4 => (key.clone(), intent).prop_map(|(k, i)| Op::Begin(k, i)),
            4 => (key, any::<u8>(), ttl).prop_map(|(k, v, t)| Op::Commit(k, v, t)),
            2 => time.prop_map(Op::Wait),
        ]
    }

    /// What the store should hold: per key a value and its expiry in seconds, and whether the latest lease is good.
    #[derive(Clone, Default)]
    struct Slot {
        entry: Option<(u8, Option<u64>)>,
        given: Option<Lease>,
        held: Option<(Lease, Intent)>,
    }

    impl Slot {
        fn value(&self, now: u64) -> Option<u8> {
            self.entry.filter(|(_, until)| until.is_none_or(|until| until > now)).map(|(value, _)| value)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn it_does_what_a_plain_map_does(ops in prop::collection::vec(op(), 1..60)) {
            const SECOND: Duration = Duration::from_secs(1);
            let spaces = [("p", None), ("p", Some("a")), ("p", Some("b")), ("q", None), ("q", Some("a"))]
                .map(|(prefix, group)| space(prefix, group));
            let keys: Vec<CacheKey> = (0..10).map(|i| spaces[i % 5].key(["x", "y"][i / 5])).collect();
            let mut model = vec![Slot::default(); keys.len()];
            let (clock, mut now) = (ManualClock::new(), 0);
            let store = MemoryStore::new().with_clock(Arc::new(clock.clone()));
            runtime().block_on(async {
                for op in ops {
                    match op {
                        Op::Set(k, value, ttl) => {
                            store.set(&keys[k], vec![value].into(), ttl.map(|t| SECOND * t as u32)).await.unwrap();
                            model[k].entry = Some((value, ttl.map(|ttl| now + ttl)));
                            model[k].held = None;
                        }
                        Op::Delete(k) => {
                            let expected = model[k].value(now).is_some();
                            prop_assert_eq!(store.delete(&keys[k]).await.unwrap(), expected);
                            (model[k].entry, model[k].held) = (None, None);
                        }
                        Op::DeleteGroup(s) => {
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
                        Op::Begin(k, intent) => {
                            let slot = &mut model[k];
                            match (store.begin(&keys[k], intent, SECOND * 1_000).await.unwrap(), &slot.held) {
                                (Begin::Found(found), _) => {
                                    prop_assert_eq!(intent, Intent::Fill);
                                    prop_assert_eq!(Some(found[0]), slot.value(now));
                                    continue;
                                }
                                (Begin::Lease(lease), held) => {
                                    prop_assert!(held.is_none() || intent == Intent::Write);
                                    slot.given = Some(lease.clone());
                                    slot.held = Some((lease, intent));
                                }
                                (Begin::Filling, held) => {
                                    prop_assert!(matches!(held, Some((_, Intent::Fill | Intent::Refresh))));
                                }
                                (Begin::Busy, held) => prop_assert!(matches!(held, Some((_, Intent::Write)))),
                            }
                            prop_assert!(intent != Intent::Fill || slot.value(now).is_none());
                        }
                        Op::Commit(k, value, ttl) => if let Some(lease) = model[k].given.clone() {
                            let expected = model[k].held.as_ref().is_some_and(|(held, _)| *held == lease);
                            let ttl_secs = ttl.map(|ttl| SECOND * ttl as u32);
                            let done = store.commit(&keys[k], &lease, vec![value].into(), ttl_secs).await.unwrap();
                            prop_assert_eq!(done, expected);
                            if done {
                                model[k].entry = Some((value, ttl.map(|ttl| now + ttl)));
                                model[k].held = None;
                            }
                        },
                        Op::Wait(seconds) => {
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

    /// Measures what an entry takes and what a hit costs. Run it alone, on Linux, in release:
    /// `cargo test --release -p larder-core --features memory figures -- --ignored --nocapture`
    #[test]
    #[ignore = "measures instead of testing, and takes gigabytes"]
    fn figures() {
        fn resident() -> u64 {
            let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
            pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
        }
        const PROBES: u32 = 1_000_000;
        // They are kept until the end, so that none lives in the memory that another one left.
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
