//! Stores: the [`CacheStore`] trait for bytes under keys, and [`LeaseStore`] for leases between processes.
//!
//! # Two traits
//!
//! [`CacheStore`] has four required functions over bytes: [`get`](CacheStore::get), [`set`](CacheStore::set),
//! [`delete`](CacheStore::delete) and [`delete_group`](CacheStore::delete_group). A custom backend implements only these.
//! `Larder::new` then coalesces and fences fills inside this process.
//!
//! [`LeaseStore`] adds the *fill protocol*, for stores that coordinate fills across processes. A cache that reads, runs a
//! handler and writes has a race: the handler reads the database, another request changes the database and evicts the key,
//! and then the old answer is written and stays. Leases prevent this (Nishtala et al., *Scaling Memcache at Facebook*, NSDI
//! 2013): a fill [begins](LeaseStore::begin) by taking a lease, an eviction revokes it, and a [commit](LeaseStore::commit)
//! without a valid lease is refused.
//!
//! # Rules for every store
//!
//! * `get` returns `None` for a value that expired, was deleted, or whose group was deleted since it was written.
//! * `delete`, `delete_group` and `set` revoke every fill lease and write lease of the keys they affect, also of keys without an
//!   entry.
//! * A soft eviction revokes the same leases. The entries that it concerns are stale as of that moment, or gone, and never fresh
//!   again: only a write replaces them.
//! * A lease is stored beside the entry, never in its place: the old entry stays readable during a refresh.
//! * After `begin` returned a lease, `get` on that store returns nothing older than the lease, even if the store reads from a copy.
//! * An entry that was written with tags is returned only while it is valid by the rule in [`tag`](crate::tag). A store without
//!   tags never keeps such an entry. `delete` and `delete_group` may count an entry that was evicted by tag or softly before.
//! * A time to live of `None` means no expiry. `Some(Duration::ZERO)` has already expired: the write removes the entry.
//! * If a value can't be kept (too large, no room), `set` returns `Ok` and `commit` returns `Ok(false)`, and the previous value
//!   under the key is gone: an old value must not survive the write that replaced it.
//!
//! The behaviour suite (feature `suite`) checks these rules on any store.

#[cfg(feature = "runtime")]
pub(crate) mod dyn_store;
mod health;
#[cfg(feature = "runtime")]
pub(crate) mod lease_table;
#[cfg(feature = "memory")]
mod memory;
#[cfg(feature = "runtime")]
mod process_local;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "runtime")]
mod stale_values;
#[cfg(feature = "suite")]
pub mod suite;
#[cfg(feature = "runtime")]
mod tag_clock;

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use crate::key::{CacheKey, KeySpace};
use crate::reason::Reason;
use crate::tag::{EvictionMode, TagStamp, Tagged, Tags, stale_since};

pub use health::{Breaker, Health, ServerHealth};
#[cfg(feature = "memory")]
pub use memory::MemoryStore;
#[cfg(feature = "runtime")]
pub use process_local::ProcessLocal;

/// A store of bytes under [`CacheKey`]s.
///
/// Callers survive errors: Larder logs them, treats a failed read as a miss, and delivers the handler's answer regardless
/// of the store. It doesn't repeat a failed eviction. A store whose server may be down, such as that for Redis, repeats its own
/// evictions, and treats their keys as absent until the server has confirmed them.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a cache store",
    label = "this type does not implement `CacheStore`",
    note = "implement `get`, `set`, `delete` and `delete_group`, or use `Larder::memory()` or `Larder::redis(url)`"
)]
pub trait CacheStore: Send + Sync + 'static {
    /// Returns the valid value under `key`, or `None` if there is none.
    fn get(&self, key: &CacheKey) -> impl Future<Output = Result<Option<Bytes>, StoreError>> + Send;

    /// Writes `value` under `key`, and replaces any value already there. A `ttl` of `None` means no expiry. With a `ttl` of
    /// zero, the entry is removed instead.
    fn set(
        &self,
        key: &CacheKey,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Removes one entry. Returns `true` if there was a valid one. After an error, the entry may still be there.
    fn delete(&self, key: &CacheKey) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Removes every entry of an eviction group, and returns their number. A key space without a group stands for its whole
    /// prefix: every group and every ungrouped key. After an error, some of the entries may still be there.
    fn delete_group(&self, group: &KeySpace) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Returns the value under `key` if that needs no waiting, as [`get`](Self::get) would return it. After `None`, the
    /// caller calls `get`. Override it in a store that keeps values in this process, to make hits a little faster.
    fn try_get(&self, key: &CacheKey) -> Option<Bytes> {
        let _ = key;
        None
    }

    /// Returns `true` if [`try_get`](Self::try_get) finds every valid value, so that its `None` means that there is none. Then a
    /// miss calls no `get`. The default is `false`. Override it in a store that keeps all values in this process.
    fn finds_at_once(&self) -> bool {
        false
    }

    /// Returns the value under `key` as [`get`](Self::get) does, but never from a copy. Override it in a store that keeps
    /// copies of values that other processes may change.
    fn get_shared(&self, key: &CacheKey) -> impl Future<Output = Result<Option<Bytes>, StoreError>> + Send {
        self.get(key)
    }

    /// Returns the length of the value under `key` and its first bytes: at least `limit`, unless the value is shorter.
    ///
    /// Callers use it for large values of which they may need only a part. In a store that can read parts of a value,
    /// override it together with [`get_range`](Self::get_range). The result must be as current as that of
    /// [`get`](Self::get).
    fn get_head(
        &self,
        key: &CacheKey,
        limit: usize,
    ) -> impl Future<Output = Result<Option<ValueHead>, StoreError>> + Send {
        let _ = limit;
        async { Ok(self.get(key).await?.map(ValueHead::whole)) }
    }

    /// Returns the bytes in `range` of the value under `key`, if that value begins with `head`. Returns `None` if there is
    /// no such value any more, or if it ends within `range`.
    ///
    /// `head` identifies the version of the value: all returned bytes belong to one that begins with it. Callers take it
    /// from [`get_head`](Self::get_head), long enough to differ between any two values.
    fn get_range(
        &self,
        key: &CacheKey,
        head: &Bytes,
        range: Range<usize>,
    ) -> impl Future<Output = Result<Option<Bytes>, StoreError>> + Send {
        async move { Ok(self.get(key).await?.and_then(|value| ValueHead::whole(value).cut(head, range))) }
    }

    /// Returns `true` if there is a valid entry. One that was evicted softly is not. Override it where that is cheaper than reading
    /// the value.
    fn has(&self, key: &CacheKey) -> impl Future<Output = Result<bool, StoreError>> + Send {
        async { Ok(self.get(key).await?.is_some_and(|value| stale_since(&value).is_none())) }
    }

    /// Replaces the clock by which the store lets entries and leases expire. [`LarderBuilder::build`](crate::LarderBuilder::build)
    /// calls it once, with the clock of the builder if one was set. Override it in a store that measures time in this
    /// process, so that a test sets its clock in one place.
    #[cfg(feature = "runtime")]
    fn set_clock(&mut self, clock: &std::sync::Arc<dyn crate::clock::Clock>) {
        let _ = clock;
    }

    /// Returns the size of the largest value that this store keeps, in bytes. Routes pass larger bodies through without
    /// collecting them.
    fn max_value_bytes(&self) -> u64 {
        u64::MAX
    }

    /// Returns the store's health, for `Larder::stats` and the console. It is called often, so it must return at once from
    /// what the store knows.
    fn health(&self) -> Health {
        Health::of("custom")
    }

    /// Closes connections. `Larder::close` calls it once, after all other calls.
    fn close(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// The beginning of a value, and the length of the whole value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueHead {
    /// The first bytes of the value.
    pub bytes: Bytes,
    /// The length of the value, in bytes.
    pub length: usize,
}

impl ValueHead {
    /// Creates a head that contains the whole value.
    #[must_use]
    pub fn whole(value: Bytes) -> Self {
        Self { length: value.len(), bytes: value }
    }

    /// Returns `true` if `bytes` is the whole value.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.bytes.len() == self.length
    }

    /// Returns the bytes in `range`, if the value begins with `head` and `bytes` contains them.
    pub(crate) fn cut(&self, head: &[u8], range: Range<usize>) -> Option<Bytes> {
        let is_here = range.start <= range.end && range.end <= self.bytes.len();
        (is_here && self.bytes.starts_with(head)).then(|| self.bytes.slice(range))
    }
}

/// A store with leases, which coordinates fills between processes.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no leases",
    note = "wrap a `CacheStore` in `ProcessLocal`, which coordinates the fills of this process"
)]
pub trait LeaseStore: CacheStore {
    /// Requests a lease to fill, refresh or overwrite `key`. The lease expires after `lease_ttl`, unless it is committed,
    /// abandoned or renewed before. With zero it expires at once, or after the shortest time that the store can measure.
    ///
    /// After this returned [`Acquired::Lease`], [`get`](CacheStore::get), [`try_get`](CacheStore::try_get) and
    /// [`has`](CacheStore::has) of this store return nothing older than the lease. The holder reads the entry that it is
    /// going to replace, and builds on it. A store that reads from copies drops its copy of `key` first, and keeps no copy
    /// that was read before.
    fn begin(
        &self,
        key: &CacheKey,
        intent: Intent,
        lease_ttl: Duration,
    ) -> impl Future<Output = Result<Acquired, StoreError>> + Send;

    /// Writes `value` and ends the lease, if the lease is still current. Returns `false` if nothing was written: the key or
    /// its group was evicted or overwritten since, or the lease expired. `ttl` means the same as in [`set`](CacheStore::set).
    fn commit(
        &self,
        key: &CacheKey,
        lease: &Lease,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Extends a current lease to `lease_ttl` from now, which means the same as in [`begin`](Self::begin). Returns `false` if the
    /// lease is lost.
    fn renew(
        &self,
        key: &CacheKey,
        lease: &Lease,
        lease_ttl: Duration,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Ends a lease without writing. Does nothing if the lease is no longer current.
    fn abandon(
        &self,
        key: &CacheKey,
        lease: &Lease,
        why: Abandon,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Returns the state of the tag clock of a prefix, which is that of `space`, now or at an earlier time. Call it before reading
    /// anything that a tagged value is made of: it becomes the stamp of the entry.
    ///
    /// Returns `None` if the store keeps no tagged entries, as the default does.
    fn tag_clock(
        &self,
        space: &KeySpace,
    ) -> impl Future<Output = Result<Option<TagStamp>, StoreError>> + Send {
        let _ = space;
        async { Ok(None) }
    }

    /// Writes `value` as [`set`](CacheStore::set) does, as an entry with tags. The default removes the entry instead.
    fn set_tagged(
        &self,
        key: &CacheKey,
        value: Bytes,
        ttl: Option<Duration>,
        tagged: &Tagged,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        let _ = (value, ttl, tagged);
        async { self.delete(key).await.map(drop) }
    }

    /// Writes `value` and ends the lease as [`commit`](Self::commit) does, as an entry with tags.
    ///
    /// Returns `false` also if one of the tags was evicted between the entry's stamp and this call: other requests must not be
    /// given this value. The default writes nothing.
    fn commit_tagged(
        &self,
        key: &CacheKey,
        lease: &Lease,
        value: Bytes,
        ttl: Option<Duration>,
        tagged: &Tagged,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        let _ = (value, ttl, tagged);
        async { self.abandon(key, lease, Abandon::Failed).await.map(|()| false) }
    }

    /// Evicts every entry of a prefix, which is that of `space`, that carries at least one of `tags`.
    ///
    /// After it returned, no entry whose stamp is older is valid, however long its fill still takes. It takes the same time
    /// whatever it evicts. After [`EvictionMode::Soft`], [`get`](CacheStore::get) returns the entries in a form that
    /// [`stale_since`] reads, and [`begin`](Self::begin) doesn't find them.
    fn evict_tags(
        &self,
        space: &KeySpace,
        tags: &Tags,
        how: EvictionMode,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        let _ = (space, tags, how);
        async { Ok(()) }
    }

    /// Makes the entry under `key` stale as of now instead of removing it, and revokes its lease as [`delete`](CacheStore::delete)
    /// does.
    ///
    /// Afterwards [`get`](CacheStore::get) returns the value in a form that [`stale_since`] reads, until it expires, is
    /// removed, or is written again. [`begin`](Self::begin) and [`has`](CacheStore::has) don't find it. A second soft
    /// eviction keeps the earlier time. A store that can't keep the value removes it, as the default does. After an error
    /// the entry may still be fresh.
    fn evict_softly(&self, key: &CacheKey) -> impl Future<Output = Result<(), StoreError>> + Send {
        async { self.delete(key).await.map(drop) }
    }

    /// Makes every entry of an eviction group stale as of now instead of removing it, and revokes the leases of the group, as
    /// [`evict_softly`](Self::evict_softly) does. A key space without a group stands for its whole prefix.
    fn evict_group_softly(&self, group: &KeySpace) -> impl Future<Output = Result<(), StoreError>> + Send {
        async { self.delete_group(group).await.map(drop) }
    }

    /// Waits until the value under `key` may have changed. A caller that got [`Acquired::Filling`] calls `begin` again then,
    /// or after a pause.
    ///
    /// Override it in a store that is notified of changes. The default waits forever.
    fn changed(&self, key: &CacheKey) -> impl Future<Output = ()> + Send {
        let _ = key;
        std::future::pending()
    }
}

/// The purpose of a [`LeaseStore::begin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Intent {
    /// Fill a missing entry. Returns [`Acquired::Found`] if there is a valid one by now.
    Fill,
    /// Replace an existing entry that the caller can't use (`no-cache`, a refresh of a stale one). Never returns `Found`.
    Refresh,
    /// Overwrite after a change to the origin: a *write lease*. Replaces any other lease, and returns [`Acquired::Lease`], or
    /// [`Acquired::Busy`] while the store has a pending eviction of the key that it couldn't confirm.
    Write,
}

/// The result of [`LeaseStore::begin`].
///
/// `L` is the lease, or a guard that holds it.
#[derive(Clone, Debug)]
pub enum Acquired<L = Lease> {
    /// The caller holds the lease. It runs the handler, then commits or abandons.
    Lease(L),
    /// Another caller has filled the entry. This is its value.
    Found(Bytes),
    /// Another caller is filling the entry. Wait and begin again, or run without storing.
    Filling,
    /// There is no lease for this reason. Run without waiting and without storing.
    ///
    /// A store returns [`Reason::Busy`] while a write is under way, and after the answer was found to be uncacheable.
    Busy(Reason),
}

impl<L> Acquired<L> {
    /// Returns the lease, if there is one.
    pub fn lease(self) -> Option<L> {
        match self {
            Self::Lease(lease) => Some(lease),
            Self::Found(_) | Self::Filling | Self::Busy(_) => None,
        }
    }

    /// Replaces the lease, if there is one.
    #[cfg(feature = "runtime")]
    pub(crate) fn map<G>(self, guard: impl FnOnce(L) -> G) -> Acquired<G> {
        match self {
            Self::Lease(lease) => Acquired::Lease(guard(lease)),
            Self::Found(value) => Acquired::Found(value),
            Self::Filling => Acquired::Filling,
            Self::Busy(reason) => Acquired::Busy(reason),
        }
    }
}

/// The reason for which a lease ends without a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abandon {
    /// The handler failed. The next caller may try at once.
    Failed,
    /// The answer may not be stored. For this long [`LeaseStore::begin`] returns [`Acquired::Busy`], so that callers don't
    /// queue for an answer that can't be shared.
    Uncacheable(Duration),
}

/// A lease on one entry: permission to write it until the lease expires or is revoked. Only the store that created it reads
/// its contents.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    token: [u8; 16],
    fence: [u8; 8],
}

impl Lease {
    /// Creates a lease. `token` must be unique to it. `fence` is any value that the store needs again at commit.
    #[must_use]
    pub const fn new(token: [u8; 16], fence: [u8; 8]) -> Self {
        Self { token, fence }
    }

    /// Returns the unique token.
    #[must_use]
    pub const fn token(&self) -> &[u8; 16] {
        &self.token
    }

    /// Returns the store's fence.
    #[must_use]
    pub const fn fence(&self) -> &[u8; 8] {
        &self.fence
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({:032x})", u128::from_be_bytes(self.token))
    }
}

/// An error of a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store didn't answer within the deadline. The command may still take effect later.
    #[error("the store did not answer within {0:?}")]
    Timeout(Duration),
    /// The store can't be reached, or is known to be down and was not asked.
    #[error("the store is unavailable: {0}")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
    /// The store returned an error, or an answer that can't be read.
    #[error("the store refused: {0}")]
    Refused(#[source] Box<dyn Error + Send + Sync>),
}

impl StoreError {
    /// Creates an error for a store that can't be reached.
    pub fn unavailable(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unavailable(source.into())
    }

    /// Creates an error for a store that returned an error.
    pub fn refused(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Refused(source.into())
    }
}
