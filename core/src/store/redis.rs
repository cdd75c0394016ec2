//! Entries in Redis, shared by every process that uses it.
//!
//! # How a group is evicted without looking for its keys
//!
//! Every group has a *nonce*: eight random bytes under a key of its own. Every entry of the group begins with the nonce under
//! which it was written, and is valid only while the two agree. So deleting the nonce invalidates the whole group at once,
//! whatever happens to the entries afterwards. An index lists the entries to clean up. It may be incomplete, after Redis itself
//! evicted a part of it to free memory, without making a stale entry visible. An eviction that is interrupted leaves the
//! index, and the next eviction of the group continues with it.
//!
//! A key of another type, which another program wrote under a name of this store, is a miss and is replaced.
//!
//! Leases carry the nonce too: a fill that began before its group was evicted can't be committed after the eviction.
//!
//! # When Redis is down
//!
//! Every command has a deadline. After three read deadlines without an answer a circuit breaker opens, and calls fail without
//! waiting until a probe succeeds. An eviction that Redis did not confirm returns its error *and* is kept: the store answers for
//! its keys as if they were absent, and repeats the eviction until Redis confirms it.
//!
//! # When Redis loses what it confirmed
//!
//! Redis confirms a change before a replica or a snapshot has it. A promoted replica lacks the last moments, and a
//! server that restarts from a snapshot lacks everything since. So each process remembers what it evicted or replaced in the
//! last five to ten minutes, and asks every server twice a second for its identity (`run_id`, `master_replid`). When a server
//! has another identity, or a slot has an owner that was no master before, the process repeats its changes there, and answers
//! for their keys as if they were absent until Redis confirms them. That takes less than a second, in idle processes too.
//!
//! * A process never reads what it evicted itself: every answer is checked against the remembered changes after it arrived.
//!   Other processes may read it for up to a second after the failover, until it is evicted again.
//! * A change that the new server certainly has is not repeated. Masters report their replication offset twice a second, and the
//!   new server reports the offset up to which it has the history of the earlier one. After a failover that lost nothing, only
//!   the changes of the last half second are repeated. With a pool, all of them are.
//! * A value that a `set`, a write-through or an update *replaced* becomes a miss.
//! * An [update](crate::CacheBackend::update) that was confirmed may be lost: the store doesn't know the number that a counter
//!   had.
//! * With [`wait_for_replicas`](RedisOptions::wait_for_replicas) every change waits until replicas have it too. A confirmed
//!   change then survives a failover to one of them.
//! * Through the application's own pool, each read asks the server for its identity while changes are remembered.
//! * A process that has ended can't repeat its changes. Entries that it evicted in the last moments before a failover may be
//!   back until they expire. [`close`](CacheStore::close) waits for evictions that are not confirmed yet. A process that is
//!   killed leaves them undone, and their entries stay stale until they expire.
//! * A user who may not run `INFO` can't ask for a server's identity. The store then repeats its changes after every
//!   reconnect, and doesn't notice a failover behind a connection that stays open.
//!
//! Memory is bounded: 16,384 keys and as many groups every five minutes. Beyond that keys become their groups, and groups
//! become their prefixes.
//!
//! # Requirements
//!
//! A tokio runtime with I/O and time, from the first call on. Redis 6.2 or newer, and a user who may run `EVAL` and `EVALSHA`:
//! without these rights nothing is stored.
//!
//! The tests run on Redis 6.2, 7.0 and 8.2 and on Valkey 9.1, alone and as a cluster of three masters and three replicas. The
//! [guide](crate::guide::redis) says what works where, and lists every command and key that a user of Redis needs. The
//! behaviour suite is public, to try another server.
//!
//! # In a cluster
//!
//! All keys of an entry or a group share a slot, so everything above holds in a Redis Cluster too. A group is on one node,
//! and keys without a group are spread over all nodes. Every node has its own breaker, so a node that is down affects its own
//! keys only, unless the cluster itself stops serving. By default (`cluster-require-full-coverage`) it does so from when a
//! master is known to have failed until a replica has taken its place. While a slot moves, Redis refuses commands on several of
//! its keys. Such commands wait until the slot has moved, or until their deadlines. Replicas are not read.
//!
//! # Prefixes
//!
//! Deleting a whole prefix reads the names of every key in the database, or in every master of a cluster, without
//! blocking the server. While a master is down it fails, and is repeated until it succeeds. It removes what this
//! prefix owns. Keys of `a:b:c` without a group can't be distinguished from keys of `a:b` whose names begin with `c:`,
//! so don't nest one prefix in another.

pub(crate) mod address;
mod breaker;
mod client;
mod cluster;
mod command;
mod delete_group;
mod dialer;
mod failover;
mod invalidations;
mod key_names;
mod lease;
mod meter;
mod node;
pub(crate) mod options;
#[cfg(feature = "redis-pool")]
mod pooled_cluster;
mod read;
mod readings;
mod refusals;
mod scripts;
mod slots;
mod tags;
mod tiered;
#[cfg(feature = "redis-tls")]
mod tls;
mod tls_options;
mod transport;
mod write;

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use quick_cache::sync::Cache;

use self::client::Client;
use self::failover::change_log::{ChangeLog, ChangeTarget, Epoch, UnconfirmedGuard};
use self::failover::tag_log::UnconfirmedTags;
use self::failover::{ServerChange, ServerChangeHandler};
pub use self::options::{RedisOptions, RedisUrlError};
use self::readings::Readings;
use self::scripts::ScriptCall;
use self::tags::TagState;
pub use self::tiered::{MAX_STALE, TieredStore};
use self::write::{is_write, replaces};
use super::{Abandon, Acquired, CacheStore, Health, Intent, Lease, LeaseStore, StoreError, ValueHead};
use crate::key::{CacheKey, KeySpace};
use crate::reason::Reason;
use crate::tag::{EvictionMode, TagStamp, Tagged, Tags, encode_plain};

/// A store that keeps entries in Redis. Clones are cheap and share their connections.
///
/// It connects when it is first used. While Redis is down, calls return [`StoreError::Unavailable`] or
/// [`StoreError::Timeout`], and evictions are repeated until Redis confirms them. See the [module](self) for the guarantees.
///
/// ```
/// use larder_core::store::redis::{RedisOptions, RedisStore};
///
/// // Connects when it is first used.
/// let store = RedisStore::new(RedisOptions::from_url("redis://127.0.0.1/")?);
/// # drop(store);
/// # Ok::<(), larder_core::store::redis::RedisUrlError>(())
/// ```
#[derive(Clone, Debug)]
pub struct RedisStore {
    inner: Arc<RedisInner>,
}

#[derive(Debug)]
struct RedisInner {
    options: RedisOptions,
    client: Client,
    /// Carries changes if replicas must confirm them. `WAIT` blocks its connection, so reads use another.
    replicated: Option<Client>,
    log: ChangeLog,
    /// Called when servers lost changes that they had confirmed.
    on_recall: Hooks,
    /// The last known nonces of groups by name, and by prefix the eight zeros of keys without a group. They may be outdated, so
    /// each use checks them.
    nonces: Cache<Box<str>, [u8; 8]>,
    readings: Readings,
    tags: TagState,
}

impl RedisStore {
    /// Creates a store that connects when it is first used. It needs no runtime before that.
    #[must_use]
    pub fn new(options: RedisOptions) -> Self {
        let inner = Arc::new_cyclic(|inner: &Weak<RedisInner>| {
            let client = Client::new(&options, Arc::new(inner.clone()));
            RedisInner {
                replicated: options.replicas.map(|replicas| client.with_replicas(replicas)),
                options,
                client,
                log: ChangeLog::default(),
                on_recall: Hooks::default(),
                nonces: Cache::new(MAX_CACHED_NONCES),
                readings: Readings::default(),
                tags: TagState::default(),
            }
        });
        Self { inner }
    }
}

impl RedisInner {
    /// Returns the client for changes.
    fn change_client(&self) -> &Client {
        self.replicated.as_ref().unwrap_or(&self.client)
    }
}

impl ServerChangeHandler for Weak<RedisInner> {
    fn on_change(&self, change: ServerChange<'_>, kept: u64) {
        let Some(inner) = self.upgrade() else { return };
        let mut lost = inner.client.lost(&change);
        if let Some(replicated) = &inner.replicated {
            lost.extend(&replicated.lost(&change));
        }
        RedisStore::from_inner(inner).recall(&lost, kept);
    }

    fn remembers(&self) -> bool {
        self.upgrade().is_some_and(|inner| inner.log.remembers() || inner.tags.log.remembers())
    }

    fn confirmed(&self) -> u64 {
        self.upgrade().map_or(0, |inner| inner.log.confirmed())
    }
}

impl CacheStore for RedisStore {
    async fn get(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        let found = async || {
            if self.inner.readings.expect_large(key) {
                // Boxed, so that the future for small values stays small.
                return Ok(Box::pin(self.read_shared(key)).await?.map(|(value, _)| value));
            }
            let found = self.read(key).await?;
            self.inner.readings.remember_length(key, found.as_ref().map_or(0, Bytes::len));
            Ok(found)
        };
        self.read_checked(key, found).await
    }

    async fn get_head(&self, key: &CacheKey, limit: usize) -> Result<Option<ValueHead>, StoreError> {
        let head = async || {
            match self.read_head(key, limit).await {
                // The user may lack the right to run `GETRANGE`. The ordinary read needs fewer.
                Err(StoreError::Refused(_)) => Ok(self.read(key).await?.map(ValueHead::whole)),
                head => Ok(head?.map(|(head, _)| head)),
            }
        };
        self.read_checked(key, head).await
    }

    async fn get_range(
        &self,
        key: &CacheKey,
        head: &Bytes,
        range: Range<usize>,
    ) -> Result<Option<Bytes>, StoreError> {
        if range.is_empty() {
            // `GETRANGE` has no empty range.
            let found = self.get_head(key, head.len()).await?;
            return Ok(found
                .filter(|found| range.end <= found.length)
                .and_then(|found| found.cut(head, 0..0)));
        }
        self.read_checked(key, async || self.read_range(key, head, range).await).await
    }

    async fn set(&self, key: &CacheKey, value: Bytes, ttl: Option<Duration>) -> Result<(), StoreError> {
        self.set_stored(key, encode_plain(value), ttl).await
    }

    async fn delete(&self, key: &CacheKey) -> Result<bool, StoreError> {
        let guard = UnconfirmedGuard::new(self, ChangeTarget::Key(key));
        let was_there = self.evict(key).await?;
        guard.confirmed();
        Ok(was_there)
    }

    async fn delete_group(&self, group: &KeySpace) -> Result<u64, StoreError> {
        let guard = UnconfirmedGuard::new(self, ChangeTarget::Space(group));
        let count = self.evict_space(group).await?;
        guard.confirmed();
        Ok(count)
    }

    fn max_value_bytes(&self) -> u64 {
        self.inner.options.max_value_bytes as u64
    }

    fn health(&self) -> Health {
        let servers = self.inner.client.servers();
        servers
            .into_iter()
            .fold(Health::of("redis"), |health, (address, breaker)| health.server(address, breaker))
    }

    async fn has(&self, key: &CacheKey) -> Result<bool, StoreError> {
        self.read_checked(key, async || self.exists(key).await).await
    }

    /// Repeats evictions that Redis has not confirmed, for at most [`RedisOptions::close_deadline`], logs the names of those
    /// that are left, and disconnects.
    async fn close(&self) {
        self.settle_pending(self.inner.options.close_deadline).await;
        self.inner.client.close();
        if let Some(replicated) = &self.inner.replicated {
            replicated.close();
        }
    }
}

impl LeaseStore for RedisStore {
    async fn begin(
        &self,
        key: &CacheKey,
        intent: Intent,
        lease_ttl: Duration,
    ) -> Result<Acquired, StoreError> {
        let Some(epoch) = self.epoch_for(key) else { return Ok(Acquired::Busy(Reason::Busy)) };
        match self.acquire(key, intent, lease_ttl).await? {
            Acquired::Found(_) if !self.may_believe(key, epoch) => Ok(Acquired::Busy(Reason::Busy)),
            begin => Ok(begin),
        }
    }

    async fn commit(
        &self,
        key: &CacheKey,
        lease: &Lease,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, StoreError> {
        self.commit_stored(key, lease, encode_plain(value), ttl).await
    }

    async fn renew(&self, key: &CacheKey, lease: &Lease, lease_ttl: Duration) -> Result<bool, StoreError> {
        self.extend(key, lease, lease_ttl).await
    }

    async fn abandon(&self, key: &CacheKey, lease: &Lease, why: Abandon) -> Result<(), StoreError> {
        let name = key_names::lease(key);
        let uncacheable_for = match why {
            Abandon::Failed => Duration::ZERO,
            Abandon::Uncacheable(time) => time,
        };
        let guard = UnconfirmedGuard::new(self, ChangeTarget::Lease(&name, *lease.token()));
        self.release(&name, lease.token(), uncacheable_for).await?;
        guard.settle();
        Ok(())
    }

    async fn tag_clock(&self, space: &KeySpace) -> Result<Option<TagStamp>, StoreError> {
        self.stamp(space.prefix()).await.map(Some)
    }

    async fn set_tagged(
        &self,
        key: &CacheKey,
        value: Bytes,
        ttl: Option<Duration>,
        tagged: &Tagged,
    ) -> Result<(), StoreError> {
        if tagged.marks().is_empty() {
            return self.set(key, value, ttl).await;
        }
        self.inner.tags.saw(key, true);
        let set = self.set_stored(key, tagged.encode(&value), ttl);
        // Without a clock that lasts as long, the entry ends early.
        let (set, _) = tokio::join!(set, self.keep_clock(key.prefix(), ttl));
        set
    }

    async fn commit_tagged(
        &self,
        key: &CacheKey,
        lease: &Lease,
        value: Bytes,
        ttl: Option<Duration>,
        tagged: &Tagged,
    ) -> Result<bool, StoreError> {
        if tagged.marks().is_empty() {
            return self.commit(key, lease, value, ttl).await;
        }
        self.inner.tags.saw(key, true);
        let commit = self.commit_stored(key, lease, tagged.encode(&value), ttl);
        let (is_stored, is_fresh) = tokio::join!(commit, self.is_still_fresh(key, tagged, ttl));
        Ok(is_stored? && is_fresh?)
    }

    /// Evicts by tag, and repeats it until Redis confirms it, as with other evictions.
    async fn evict_tags(&self, space: &KeySpace, tags: &Tags, how: EvictionMode) -> Result<(), StoreError> {
        if tags.is_empty() {
            return Ok(());
        }
        let (prefix, marks) = (space.prefix(), tags.marks());
        let guard = UnconfirmedTags::new(self, prefix, &marks, how);
        self.evict_marks(prefix, &marks, how).await?;
        guard.confirmed();
        Ok(())
    }

    /// Evicts softly. If Redis doesn't confirm it, or loses it in a failover, it is repeated as a hard eviction.
    async fn evict_softly(&self, key: &CacheKey) -> Result<(), StoreError> {
        let guard = UnconfirmedGuard::new(self, ChangeTarget::Key(key));
        // A soft eviction must not settle a hard one that is pending.
        if guard.is_pending() {
            self.evict(key).await?;
        } else {
            self.soften(key).await?;
        }
        guard.confirmed();
        Ok(())
    }

    /// Evicts softly, as [`evict_softly`](Self::evict_softly) does.
    async fn evict_group_softly(&self, group: &KeySpace) -> Result<(), StoreError> {
        let guard = UnconfirmedGuard::new(self, ChangeTarget::Space(group));
        if guard.is_pending() {
            self.evict_space(group).await?;
        } else {
            self.soften_space(group).await?;
        }
        guard.confirmed();
        Ok(())
    }
}

impl RedisStore {
    /// Writes a value that is encoded.
    async fn set_stored(
        &self,
        key: &CacheKey,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<(), StoreError> {
        if ttl == Some(Duration::ZERO) || value.len() > self.inner.options.max_value_bytes {
            return self.delete(key).await.map(drop);
        }
        // Again if a server changed meanwhile: the one that confirmed the change may be gone.
        let _ = self.set_and_record(key, &value, ttl).await? || self.set_and_record(key, &value, ttl).await?;
        Ok(())
    }

    /// Commits a value that is encoded.
    async fn commit_stored(
        &self,
        key: &CacheKey,
        lease: &Lease,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, StoreError> {
        if self.epoch_for(key).is_none() {
            return Ok(false);
        }
        // If no answer arrives, a fill leaves the old value or the new one, and perhaps its lease. A write may leave the value that
        // it should replace. A failover may undo a write that too few replicas have.
        let name = key_names::lease(key);
        let may_be_undone = self.inner.replicated.is_some() && replaces(lease);
        let target = if is_write(lease) || may_be_undone {
            ChangeTarget::Key(key)
        } else {
            ChangeTarget::Lease(&name, *lease.token())
        };
        let guard = UnconfirmedGuard::new(self, target);
        let stored = self.write(key, lease, value, ttl).await?;
        if stored && replaces(lease) {
            guard.confirmed_as(ChangeTarget::Key(key));
        } else {
            guard.settle();
        }
        Ok(stored)
    }

    async fn call<T: redis::FromRedisValue>(
        &self,
        call: ScriptCall<'_>,
        deadline: Duration,
    ) -> Result<T, StoreError> {
        self.inner.client.script(call, deadline).await
    }

    /// Reads from Redis. Returns the default (absent) without a read while an eviction of the key is pending, and after the read
    /// if [`may_believe`](Self::may_believe) rejects the answer.
    async fn read_checked<T: Default>(
        &self,
        key: &CacheKey,
        // Not a future: that would be moved here, which costs more than the rest of this function.
        read: impl AsyncFnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let Some(epoch) = self.epoch_for(key) else { return Ok(T::default()) };
        let answer = read().await?;
        Ok(if self.may_believe(key, epoch) { answer } else { T::default() })
    }

    /// Returns the epoch to pass to [`may_believe`](Self::may_believe) after a read, or `None` if a pending eviction covers the
    /// key.
    fn epoch_for(&self, key: &CacheKey) -> Option<Epoch> {
        let epoch = self.log().epoch_for(key);
        if epoch.is_none() {
            self.retry_pending();
        }
        epoch
    }

    /// Returns `true` if an answer may be used. See [`ChangeLog::may_believe`].
    fn may_believe(&self, key: &CacheKey, epoch: Epoch) -> bool {
        self.log().may_believe(key, epoch)
    }

    fn log(&self) -> &ChangeLog {
        &self.inner.log
    }

    fn downgrade(&self) -> Weak<RedisInner> {
        Arc::downgrade(&self.inner)
    }

    fn from_inner(inner: Arc<RedisInner>) -> Self {
        Self { inner }
    }
}

/// Callbacks for when servers lost changes that they had confirmed.
#[derive(Default)]
struct Hooks(Mutex<Vec<Box<dyn Fn() + Send + Sync>>>);

impl Hooks {
    fn add(&self, hook: impl Fn() + Send + Sync + 'static) {
        self.lock().push(Box::new(hook));
    }

    fn run(&self) {
        self.lock().iter().for_each(|hook| hook());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Box<dyn Fn() + Send + Sync>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hooks({})", self.lock().len())
    }
}

/// The number of nonces that are cached.
const MAX_CACHED_NONCES: usize = 1024;

fn random<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(StoreError::unavailable)?;
    Ok(bytes)
}
