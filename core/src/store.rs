//! Where responses and values are kept: the [`CacheStore`] trait, and what a store adds to take part in fills.
//!
//! # Two traits
//!
//! [`CacheStore`] is four functions over bytes: [`get`](CacheStore::get), [`set`](CacheStore::set),
//! [`delete`](CacheStore::delete) and [`delete_group`](CacheStore::delete_group). That is all a custom backend has
//! to write; `Larder::new` then coalesces and fences fills inside this process.
//!
//! [`LeaseStore`] adds the *fill protocol*, for stores that can do it across processes. A cache that reads, runs a
//! handler and writes has a race: the handler reads the database, somebody changes the database and evicts the key,
//! and then the old answer is written, to stay. Leases close it (Nishtala et al., *Scaling Memcache at Facebook*,
//! NSDI 2013): a fill [begins](LeaseStore::begin) by taking a lease, an eviction revokes it, and a
//! [commit](LeaseStore::commit) without a valid lease is refused.
//!
//! # The rules every store keeps
//!
//! * `get` answers `None` for what expired, was deleted, or whose group was deleted since it was written.
//! * `delete`, `delete_group` and `set` revoke every lease and ticket on what they touch, also on keys that hold no entry yet.
//! * A lease lives beside the entry, never in its place: the old entry stays readable during a refresh.
//! * After `begin` answered a lease, `get` on that store is not older than the lease, also where reads are answered from a copy.
//! * A time to live of `None` means no expiry. `Some(Duration::ZERO)` is already over: the write removes the entry.
//! * A value that can't be kept (too large, no room) is an `Ok` for `set` and an `Ok(false)` for `commit`, and
//!   whatever the key held before is gone: an old value must not survive the write that replaced it.
//!
//! The behaviour suite (feature `suite`) checks all of these on any store.

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
#[cfg(feature = "suite")]
pub mod suite;

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use crate::key::{CacheKey, KeySpace};

pub use health::{Breaker, Health, ServerHealth};
#[cfg(feature = "memory")]
pub use memory::MemoryStore;
#[cfg(feature = "runtime")]
pub use process_local::ProcessLocal;

/// A place to keep bytes under a [`CacheKey`].
///
/// Errors are for the caller to survive: Larder logs them, treats a failed read as a miss, and delivers the
/// handler's answer whatever the store does.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a cache store",
    label = "this type does not implement `CacheStore`",
    note = "implement `get`, `set`, `delete` and `delete_group`, or use `Larder::memory()` or `Larder::redis(url)`"
)]
pub trait CacheStore: Send + Sync + 'static {
    /// The value under `key`, or `None` when there is none that is still valid.
    fn get(&self, key: &CacheKey) -> impl Future<Output = Result<Option<Bytes>, StoreError>> + Send;

    /// Writes `value` under `key`, whatever was there. `ttl` of `None` means no expiry.
    fn set(
        &self,
        key: &CacheKey,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Removes one entry. True if a valid one was there.
    fn delete(&self, key: &CacheKey) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Removes every entry of an eviction group and answers how many there were. A key space without a group stands
    /// for its whole prefix: every group and every ungrouped key.
    fn delete_group(&self, group: &KeySpace) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// The value under `key` if it is at hand: what [`get`](Self::get) would answer, without waiting for anything. `None` says
    /// nothing, and `get` is asked. Override it in a store that has values in this process: a hit is a little faster then.
    fn try_get(&self, key: &CacheKey) -> Option<Bytes> {
        let _ = key;
        None
    }

    /// The value under `key` as every user of the store sees it: what [`get`](Self::get) answers, but never from a copy.
    /// Override it in a store that keeps copies of what other processes may change.
    fn get_shared(&self, key: &CacheKey) -> impl Future<Output = Result<Option<Bytes>, StoreError>> + Send {
        self.get(key)
    }

    /// The beginning of the value under `key`, at least `limit` bytes of it unless the value is shorter, and its length.
    ///
    /// For callers that may need no more than that of a large value. Override it, and [`get_range`](Self::get_range) with it,
    /// in a store that can read a part without reading the whole. What it answers is as current as what
    /// [`get`](Self::get) answers.
    fn get_head(
        &self,
        key: &CacheKey,
        limit: usize,
    ) -> impl Future<Output = Result<Option<ValueHead>, StoreError>> + Send {
        let _ = limit;
        async { Ok(self.get(key).await?.map(ValueHead::whole)) }
    }

    /// The bytes in `range` of the value under `key`, if that value begins with `head`. `None` if there is no such value any
    /// more, or it ends within `range`.
    ///
    /// `head` tells versions of a value apart: all bytes are of one that began with it. Callers take it from
    /// [`get_head`](Self::get_head), long enough to differ between any two values.
    fn get_range(
        &self,
        key: &CacheKey,
        head: &Bytes,
        range: Range<usize>,
    ) -> impl Future<Output = Result<Option<Bytes>, StoreError>> + Send {
        async move { Ok(self.get(key).await?.and_then(|value| ValueHead::whole(value).cut(head, range))) }
    }

    /// Whether a valid entry is there. Override it where that is cheaper than reading the value.
    fn has(&self, key: &CacheKey) -> impl Future<Output = Result<bool, StoreError>> + Send {
        async { Ok(self.get(key).await?.is_some()) }
    }

    /// The largest value worth giving to this store, in bytes. Routes pass on larger bodies at once instead of collecting
    /// them in vain.
    fn max_value_bytes(&self) -> u64 {
        u64::MAX
    }

    /// How it is doing, for `Larder::stats` and the console. Asked often, so it answers at once
    /// from what it knows.
    fn health(&self) -> Health {
        Health::of("custom")
    }

    /// Lets go of connections. Called once, by `Larder::close`, when no more calls will come.
    fn close(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// The beginning of a value, and how long the whole is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueHead {
    /// The value up to some position.
    pub bytes: Bytes,
    /// The length of the value, in bytes.
    pub length: usize,
}

impl ValueHead {
    /// A value of which nothing is missing.
    #[must_use]
    pub fn whole(value: Bytes) -> Self {
        Self { length: value.len(), bytes: value }
    }

    /// Returns `true` if nothing of the value is missing.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.bytes.len() == self.length
    }

    /// The bytes in `range`, if the value begins with `head` and they are here.
    pub(crate) fn cut(&self, head: &[u8], range: Range<usize>) -> Option<Bytes> {
        let is_here = range.start <= range.end && range.end <= self.bytes.len();
        (is_here && self.bytes.starts_with(head)).then(|| self.bytes.slice(range))
    }
}

/// A store that takes part in the fill protocol itself, so that it holds between processes too.
pub trait LeaseStore: CacheStore {
    /// Asks to fill, refresh or overwrite `key`. A lease that is neither committed nor abandoned runs out after `hold`.
    ///
    /// After it answered [`Begin::Lease`], [`get`](CacheStore::get), [`try_get`](CacheStore::try_get) and
    /// [`has`](CacheStore::has) of this store are not older than the lease. The holder reads the entry it is going to
    /// replace, and builds on it. A store that answers from a copy drops the copy of `key` first, and keeps no copy that
    /// was read before.
    fn begin(
        &self,
        key: &CacheKey,
        intent: Intent,
        hold: Duration,
    ) -> impl Future<Output = Result<Begin, StoreError>> + Send;

    /// Writes `value` if the lease is still the current one, and gives the lease back. `false` means that it was
    /// not written: the key or its group was evicted or overwritten since, or the lease ran out.
    fn commit(
        &self,
        key: &CacheKey,
        lease: &Lease,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Extends a lease that is still current to `hold` from now. `false` means that it is lost.
    fn renew(
        &self,
        key: &CacheKey,
        lease: &Lease,
        hold: Duration,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Gives a lease back without writing. Does nothing if the lease is no longer the current one.
    fn abandon(
        &self,
        key: &CacheKey,
        lease: &Lease,
        why: Abandon,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Waits until the value under `key` may be another one. Who was told that somebody else is [filling](Begin::Filling) it
    /// asks again then, or after a pause.
    ///
    /// Override it where changes are heard of. Unless it is, this waits for ever.
    fn changed(&self, key: &CacheKey) -> impl Future<Output = ()> + Send {
        let _ = key;
        std::future::pending()
    }
}

/// What a caller of [`LeaseStore::begin`] means to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Intent {
    /// Fill a missing entry: answers [`Begin::Found`] if a valid one is there by now.
    Fill,
    /// Replace an entry that is there but not wanted (`no-cache`, a refresh of a stale one). Never answers `Found`.
    Refresh,
    /// Overwrite after a change to the origin (a *ticket*). Replaces any other lease, and answers [`Begin::Lease`];
    /// [`Begin::Busy`] only while the store still owes an eviction of the key that it could not confirm.
    Write,
}

/// The answer to [`LeaseStore::begin`].
#[derive(Clone, Debug)]
pub enum Begin {
    /// Somebody filled it meanwhile; here it is.
    Found(Bytes),
    /// The caller holds the lease: run the handler, then commit or abandon.
    Lease(Lease),
    /// Somebody else is filling it: wait a little and begin again, or run without storing.
    Filling,
    /// A write is under way, or the answer was just found to be uncacheable: run without waiting and without storing.
    Busy,
}

/// Why a lease is given back without a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abandon {
    /// The handler failed: the next caller may try at once.
    Failed,
    /// The answer may not be stored. For this long [`LeaseStore::begin`] answers [`Begin::Busy`], so that callers
    /// don't queue one behind the other for an answer that can't be shared.
    Uncacheable(Duration),
}

/// The right to write one entry, until it runs out or is revoked. Only the store that gave it looks inside.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    token: [u8; 16],
    fence: [u8; 8],
}

impl Lease {
    /// `token` names this lease alone; `fence` is whatever the store wants to see again at commit.
    #[must_use]
    pub const fn new(token: [u8; 16], fence: [u8; 8]) -> Self {
        Self { token, fence }
    }

    /// What tells this lease from every other.
    #[must_use]
    pub const fn token(&self) -> &[u8; 16] {
        &self.token
    }

    /// What the store wanted to see again.
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

/// A store that could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No answer within the deadline. The command may still take effect later.
    #[error("the store did not answer within {0:?}")]
    Timeout(Duration),
    /// The store can't be reached, or is known to be down and was not asked.
    #[error("the store is unavailable: {0}")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
    /// The store answered with an error, or with something that makes no sense.
    #[error("the store refused: {0}")]
    Refused(#[source] Box<dyn Error + Send + Sync>),
}

impl StoreError {
    /// A store that can't be reached.
    pub fn unavailable(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unavailable(source.into())
    }

    /// A store that answered with an error.
    pub fn refused(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Refused(source.into())
    }
}
