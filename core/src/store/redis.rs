//! Entries in Redis, shared by every process that uses it.
//!
//! # How a group is evicted without looking for its keys
//!
//! Every group has a *nonce*, eight random bytes under a key of its own, and every entry begins with the nonce under
//! which it was written. An entry counts only while the two agree, so deleting the nonce invalidates the whole group
//! at once, whatever happens afterwards to the entries. An index remembers what there is to clean up; it may be
//! incomplete, after Redis itself evicted some of it for want of memory, without anything stale becoming visible. An eviction
//! that does not come to its end leaves the index, and the next eviction of the group goes on with it.
//!
//! What another program wrote under a name of this store, of another type than ours, is a miss and is replaced.
//!
//! Leases carry the nonce too: a fill that began before its group was evicted can't be committed after it.
//!
//! # When Redis is not there
//!
//! Every command has a deadline, and once Redis is known to be away nothing waits for it any more. An eviction that
//! could not be confirmed returns its error *and* is kept: this store answers for its keys as if they were empty, and
//! repeats it until Redis confirms it.
//!
//! # When Redis loses what it confirmed
//!
//! Redis confirms a change before a replica or a snapshot has it. A replica that is promoted lacks the last moments, and a
//! server that restarts from a snapshot lacks everything since. So each process remembers what it evicted or replaced in the
//! last five to ten minutes, and asks every server twice a second who it is (`run_id`, `master_replid`). When a server turns
//! out to be another, or a slot has an owner that was no master before, the process repeats what lies there, and answers for
//! those keys as if they were empty until Redis confirms it. That takes less than a second, for processes that are idle too.
//!
//! * A process never reads what it evicted itself: every answer is checked against what is remembered after it arrived. Other
//!   processes may read it for up to a second after the failover, until it is evicted once more.
//! * What was *replaced*, by a `set`, a write-through or an update, becomes a miss.
//! * An [update](crate::CacheBackend::update) that was confirmed may be lost: the store can't know the number that a counter
//!   had.
//! * [`wait_for_replicas`](RedisOptions::wait_for_replicas) lets every change wait until replicas have it too. What is confirmed
//!   then outlives a failover to one of them.
//! * Through a pool of the application's own, each read asks the server who it is while there is anything to remember.
//! * A process that has ended can't repeat anything. What it evicted in the last moments before a failover may be back until it
//!   expires. [`close`](CacheStore::close) waits for evictions that are not confirmed yet; a process that is killed leaves them
//!   undone, and what they concern is stale until it expires.
//! * A user who may not run `INFO` can't ask who a server is. The store then repeats what it remembers after every reconnect,
//!   and doesn't notice what happens behind a connection that stays open.
//!
//! Memory is bounded: 16,384 keys and as many groups each five minutes. Beyond that keys become their groups, and groups their
//! prefix.
//!
//! # What it needs
//!
//! A tokio runtime with I/O and time, though not before the first call. Redis 6.2 or newer, and a user who may run
//! `EVAL` and `EVALSHA`: without them nothing is stored, rather than stored unsafely.
//!
//! The tests run on Redis 6.2, 7.0 and 8.2 and on Valkey 9.1, alone and as a cluster of three masters and three replicas. The
//! [guide](crate::guide::redis) says what works where, and lists every command and key that a user of Redis needs. The
//! behaviour suite is public, to try another server.
//!
//! # In a cluster
//!
//! Whatever belongs to a key or to a group shares a slot, so everything above holds in a Redis Cluster too: a group is
//! on one node, and ungrouped keys are spread over all of them. Every node has a breaker of its own, so one that is away
//! costs its own keys only, unless the cluster itself stops serving, as it does by default
//! (`cluster-require-full-coverage`) from when a master is known to have failed until a replica has taken its place.
//! While a slot moves, commands on several of its keys are refused by Redis until it has moved; they wait for that as
//! long as their deadlines let them. Replicas are not read.
//!
//! # Prefixes
//!
//! Deleting a whole prefix reads the names of every key in the database, or in every master of a cluster, without
//! blocking it; with a master away it fails, and is repeated until it succeeds. It removes what this
//! prefix owns. Keys of `a:b:c` that are in no group can't be told from those of `a:b` whose names begin with `c:`,
//! so don't nest one prefix in another.

pub(crate) mod address;
mod breaker_gauge;
mod change_log;
mod client;
mod cluster;
mod command;
mod delete_group;
mod invalidations;
mod key_names;
mod meter;
mod node;
pub(crate) mod options;
mod pending_evictions;
#[cfg(feature = "redis-pool")]
mod pooled_cluster;
mod readings;
mod refusals;
mod scripts;
mod server_identity;
mod slots;
mod tiered;
#[cfg(feature = "redis-tls")]
mod tls;
mod tls_options;
mod transport;

use std::fmt;
use std::future::Future;
use std::io::Write as _;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use quick_cache::sync::Cache;
use redis::{Cmd, RedisError, RedisWrite, ToRedisArgs, Value};
use tokio::time::Instant;

use self::change_log::{ChangeLog, ChangeTarget, Epoch, UnconfirmedGuard};
use self::client::{Client, Destination};
use self::command::command;
use self::node::{ServerChange, ServerChangeHandler};
pub use self::options::{RedisOptions, RedisUrlError};
use self::readings::{Readings, ValueWithExpiry};
use self::scripts::ScriptCall;
pub use self::tiered::{MAX_STALE, TieredStore};
use super::{Abandon, Begin, CacheStore, Health, Intent, Lease, LeaseStore, StoreError, ValueHead};
use crate::key::{CacheKey, KeySpace};

/// Keeps entries in Redis. Clones are cheap and share their connections.
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
    /// For changes, if replicas have to confirm them: a connection that waits for that carries nothing else.
    replicated: Option<Client>,
    log: ChangeLog,
    /// Called when servers lost what they confirmed.
    on_recall: Hooks,
    /// The nonces of groups when they were last seen, by their names, and under the prefix what stands for one outside any
    /// group: guesses, checked wherever they are used. The first lease of each is taken by the script.
    nonces: Cache<Box<str>, [u8; 8]>,
    readings: Readings,
}

impl RedisStore {
    /// A store that will connect when it is first used. Needs no runtime yet.
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
            }
        });
        Self { inner }
    }
}

impl RedisInner {
    /// Where changes are sent.
    fn change_client(&self) -> &Client {
        self.replicated.as_ref().unwrap_or(&self.client)
    }
}

impl ServerChangeHandler for Weak<RedisInner> {
    fn on_change(&self, change: ServerChange<'_>) {
        let Some(inner) = self.upgrade() else { return };
        let mut lost = inner.client.lost(&change);
        if let Some(replicated) = &inner.replicated {
            lost.extend(&replicated.lost(&change));
        }
        RedisStore::from_inner(inner).recall(&lost);
    }

    #[cfg(feature = "redis-pool")]
    fn remembers(&self) -> bool {
        self.upgrade().is_some_and(|inner| inner.log.remembers())
    }
}

impl CacheStore for RedisStore {
    async fn get(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        let found = async {
            if self.inner.readings.expect_large(key) {
                // On the heap, so that the readers of small values needn't have room for it.
                return Ok(Box::pin(self.read_shared(key)).await?.map(|(value, _)| value));
            }
            let found = self.read(key).await?;
            self.inner.readings.saw(key, found.as_ref().map_or(0, Bytes::len));
            Ok(found)
        };
        self.read_checked(key, found).await
    }

    async fn get_head(&self, key: &CacheKey, limit: usize) -> Result<Option<ValueHead>, StoreError> {
        let head = async {
            match self.read_head(key, limit).await {
                // What it is, or what this user may do, is for the ordinary read to find out.
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
            // Redis has no such range.
            let found = self.get_head(key, head.len()).await?;
            return Ok(found
                .filter(|found| range.end <= found.length)
                .and_then(|found| found.cut(head, 0..0)));
        }
        self.read_checked(key, self.read_range(key, head, range)).await
    }

    async fn set(&self, key: &CacheKey, value: Bytes, ttl: Option<Duration>) -> Result<(), StoreError> {
        if ttl == Some(Duration::ZERO) || value.len() > self.inner.options.max_value_bytes {
            return self.delete(key).await.map(drop);
        }
        // Once more if a server changed meanwhile: the one that confirmed it may be gone.
        let _ = self.write_through(key, &value, ttl).await? || self.write_through(key, &value, ttl).await?;
        Ok(())
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
        self.read_checked(key, self.exists(key)).await
    }

    /// Repeats evictions that Redis has not confirmed, for [`RedisOptions::close_deadline`] at most, logs the names of those
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
    async fn begin(&self, key: &CacheKey, intent: Intent, lease_ttl: Duration) -> Result<Begin, StoreError> {
        let Some(epoch) = self.epoch_for(key) else { return Ok(Begin::Busy) };
        match self.acquire(key, intent, lease_ttl).await? {
            Begin::Found(_) if !self.may_believe(key, epoch) => Ok(Begin::Busy),
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
        if self.epoch_for(key).is_none() {
            return Ok(false);
        }
        // Without an answer, a fill leaves what was there, or what is true, and perhaps its lease. A write may leave what it
        // replaced. A value that too few replicas have may be taken back by a failover.
        let name = key_names::lease(key);
        let may_be_taken_back = self.inner.replicated.is_some() && replaces(lease);
        let target = if is_write(lease) || may_be_taken_back {
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

    async fn renew(&self, key: &CacheKey, lease: &Lease, lease_ttl: Duration) -> Result<bool, StoreError> {
        let name = key_names::lease(key);
        let lease_ttl = bounded_millis(lease_ttl).max(1).to_string();
        let call = ScriptCall {
            script: &scripts::RENEW,
            keys: &with_nonce(&[&name], key),
            args: &[lease.fence(), lease.token(), lease_ttl.as_bytes()],
        };
        self.call(call, self.inner.options.fill_deadline).await
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
}

/// The commands themselves, for callers that know what to do about their failure.
impl RedisStore {
    /// Takes a lease.
    ///
    /// What asks for one is never sent twice, but a connection that broke while nobody used it is no reason to give up: so
    /// there is a second attempt, at another lease with another nonce.
    async fn acquire(
        &self,
        key: &CacheKey,
        intent: Intent,
        lease_ttl: Duration,
    ) -> Result<Begin, StoreError> {
        match self.try_acquire(key, intent, lease_ttl).await {
            Err(StoreError::Unavailable(_)) => self.try_acquire(key, intent, lease_ttl).await,
            begin => begin,
        }
    }

    async fn try_acquire(
        &self,
        key: &CacheKey,
        intent: Intent,
        lease_ttl: Duration,
    ) -> Result<Begin, StoreError> {
        /// How often an entry that was there may be gone when it is read before that counts as somebody filling it.
        const MAX_ATTEMPTS: usize = 3;

        let kind = match intent {
            Intent::Fill => b"F",
            Intent::Refresh => b"R",
            Intent::Write => b"W",
        };
        let lease = key_names::lease(key);
        let mut token: [u8; 16] = random()?;
        token[0] = kind[0];
        let lease_ttl = bounded_millis(lease_ttl).max(1).to_string();
        if intent == Intent::Fill
            && let Some(begin) = self.acquire_optimistic(key, &lease, token, &lease_ttl).await?
        {
            return Ok(begin);
        }
        let fresh: [u8; 8] = random()?;
        let call = ScriptCall {
            script: &scripts::BEGIN,
            keys: &with_nonce(&[key.name(), &lease], key),
            args: &[kind, &token, lease_ttl.as_bytes(), &fresh],
        };
        for _ in 0..MAX_ATTEMPTS {
            // A command without an answer may still be carried out, and the lease would stand in everybody's way.
            let guard = UnconfirmedGuard::new(self, ChangeTarget::Lease(&lease, token));
            let (state, fence): (Bytes, Bytes) = self.call(call, self.inner.options.fill_deadline).await?;
            guard.settle();
            self.cache_nonce(key, &fence);
            match &*state {
                b"E" => {
                    if let Some(found) = self.read(key).await? {
                        return Ok(Begin::Found(found));
                    }
                }
                b"L" => {
                    let fence = (*fence)
                        .try_into()
                        .map_err(|_| StoreError::refused("a nonce of the wrong length"))?;
                    return Ok(Begin::Lease(Lease::new(token, fence)));
                }
                b"F" => return Ok(Begin::Filling),
                _ => return Ok(Begin::Busy),
            }
        }
        Ok(Begin::Filling)
    }

    /// Takes a lease to fill with the nonce that the group is thought to have, which costs the server a third of what the
    /// script does. `None` if that was wrong, or somebody left a lease of an older nonce: then it is for the script.
    ///
    /// The lease is taken before the entry and the nonce are read, so what is true of them then was not missed by it; what
    /// becomes of them later is for the commit to find out, as ever.
    async fn acquire_optimistic(
        &self,
        key: &CacheKey,
        lease: &str,
        token: [u8; 16],
        lease_ttl: &str,
    ) -> Result<Option<Begin>, StoreError> {
        let nonce = key_names::nonce_of(key);
        let Some(fence) = self.inner.nonces.get(nonce.unwrap_or(key.prefix())) else { return Ok(None) };
        let ours = [&fence[..], b"F", &token].concat();
        let names = [Some(lease), Some(key.name()), nonce];
        let mut pipe = redis::Pipeline::with_capacity(2);
        pipe.add_command(command(
            [b"SET", lease.as_bytes(), &ours, b"NX", b"PX", lease_ttl.as_bytes()].into_iter(),
        ));
        pipe.add_command(mget(names.into_iter().flatten()));
        let guard = UnconfirmedGuard::new(self, ChangeTarget::Lease(lease, token));
        let RedisInner { options, client, .. } = &*self.inner;
        let (_, found): (Value, Vec<Option<Bytes>>) =
            client.pipeline_once(Destination::Key(key.name()), &pipe, options.fill_deadline).await?;
        let mut found = found.into_iter();
        let (held, entry, present) = (found.next().flatten(), found.next().flatten(), found.next().flatten());
        if nonce.is_some() && present.as_deref() != Some(&fence) {
            // Nobody heeds a lease of another nonce, and the script takes its place.
            guard.settle();
            return Ok(None);
        }
        let is_ours = held.as_ref().is_some_and(|held| *held == ours);
        let entry = if nonce.is_some() { entry.and_then(|entry| valid_under(&fence, &entry)) } else { entry };
        if let Some(entry) = entry {
            if !is_ours || self.release(lease, &token, Duration::ZERO).await.is_ok() {
                guard.settle();
            }
            return Ok(Some(Begin::Found(entry)));
        }
        guard.settle();
        Ok(match held {
            Some(_) if is_ours => Some(Begin::Lease(Lease::new(token, fence))),
            Some(held) if held.starts_with(&fence) => {
                Some(if held.get(8) == Some(&b'F') { Begin::Filling } else { Begin::Busy })
            }
            _ => None,
        })
    }

    /// Remembers what a lease of this key has for a nonce.
    fn cache_nonce(&self, key: &CacheKey, fence: &[u8]) {
        if let Ok(fence) = fence.try_into() {
            self.inner.nonces.insert(key_names::nonce_of(key).unwrap_or(key.prefix()).into(), fence);
        }
    }

    /// Writes a value, and remembers that it replaced another. `false` if servers changed meanwhile.
    async fn write_through(
        &self,
        key: &CacheKey,
        value: &Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, StoreError> {
        let guard = UnconfirmedGuard::new(self, ChangeTarget::Key(key));
        let _turn = guard.turn(key, self.inner.options.fill_deadline).await?;
        let written = match self.write_under_new_lease(key, value.clone(), ttl).await {
            // A commit is never sent twice, but a connection that broke while nobody used it is no reason to give up.
            Err(StoreError::Unavailable(_)) => self.write_under_new_lease(key, value.clone(), ttl).await?,
            written => written?,
        };
        if written {
            return Ok(guard.confirmed());
        }
        // An eviction or another write came in between, and is the last word.
        guard.settle();
        Ok(true)
    }

    /// Takes a ticket and writes, unless an eviction or another write comes in between: that is the last word then.
    ///
    /// What is not answered may be carried out at any time, on another connection also after an eviction that came later.
    /// An eviction revokes the ticket.
    async fn write_under_new_lease(
        &self,
        key: &CacheKey,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, StoreError> {
        let until = Instant::now() + WRITE_LEASE_TTL;
        // Also while an eviction of this key is owed: who writes knows better than whatever was to be removed.
        let Begin::Lease(lease) = self.acquire(key, Intent::Write, WRITE_LEASE_TTL).await? else {
            return Err(StoreError::refused("no ticket for a write"));
        };
        let stored = self.write(key, &lease, value, ttl).await?;
        if stored || Instant::now() < until { Ok(stored) } else { Err(StoreError::Timeout(WRITE_LEASE_TTL)) }
    }

    /// Writes under a lease, and gives that back.
    async fn write(
        &self,
        key: &CacheKey,
        lease: &Lease,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, StoreError> {
        let fits = value.len() <= self.inner.options.max_value_bytes;
        let ttl = if fits { ttl_millis(ttl) } else { 0 };
        let group = GroupNames::of(key);
        let (lease_name, token) = (key_names::lease(key), lease.token());
        let record = FencedValue { fence: group.is_some().then_some(lease.fence()), value: &value };
        let (ttl_arg, suffix) = (ttl.to_string(), key.suffix());
        let args: [&[u8]; 4] = [lease.fence(), token, ttl_arg.as_bytes(), suffix.as_bytes()];
        let RedisInner { options, client, .. } = &*self.inner;
        // A fill of a missing entry has no predecessor.
        let client = if replaces(lease) { self.inner.change_client() } else { client };
        let stored: i64 = if ttl == 0 || value.len() <= MAX_INLINE_BYTES {
            let record = if ttl == 0 { Vec::new() } else { record.to_bytes() };
            let call = ScriptCall {
                script: &scripts::COMMIT_SMALL,
                keys: &with_group(&[key.name(), &lease_name], group.as_ref()),
                args: &[&args[..], &[&record]].concat(),
            };
            client.script(call, options.fill_deadline).await?
        } else {
            let tmp = key_names::tmp(key, token);
            let call = ScriptCall {
                script: &scripts::COMMIT,
                keys: &with_group(&[key.name(), &lease_name, &tmp], group.as_ref()),
                args: &args,
            };
            // Redis drops a body that no script took.
            let mut upload = Cmd::with_capacity(5, record.value.len() + tmp.len() + 32);
            upload.arg("SET").arg(&tmp).arg(&record).arg("PX").arg(10_000);
            client.upload_and_script(upload, call, options.fill_deadline).await?
        };
        self.inner.readings.saw(key, value.len());
        Ok(stored == 1 && fits)
    }

    async fn read(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        let RedisInner { options, client, .. } = &*self.inner;
        let Some(nonce) = key_names::nonce_of(key) else {
            let get = command([b"GET", key.name().as_bytes()].into_iter());
            let value = client.command(Destination::Key(key.name()), &get, options.read_deadline).await;
            return Ok(unless_wrong_type(value)?.flatten());
        };
        let both = mget([key.name(), nonce].into_iter());
        let (record, nonce): (Option<Bytes>, Option<Bytes>) =
            client.command(Destination::Key(key.name()), &both, options.read_deadline).await?;
        Ok(record.zip(nonce).and_then(|(record, nonce)| valid_under(&nonce, &record)))
    }

    /// A value and its expiry, read once for all who ask for it at the same time if it is large.
    async fn read_whole(&self, key: &CacheKey) -> Result<ValueWithExpiry, StoreError> {
        if self.inner.readings.expect_large(key) {
            return Box::pin(self.read_shared(key)).await;
        }
        let found = self.read_with_expiry(key, self.inner.options.read_deadline).await?;
        self.inner.readings.saw(key, found.as_ref().map_or(0, |(value, _)| value.len()));
        Ok(found)
    }

    async fn read_shared(&self, key: &CacheKey) -> Result<ValueWithExpiry, StoreError> {
        let weak = self.downgrade();
        let read = move |key: CacheKey| {
            let inner = weak.upgrade();
            async move {
                let inner = inner.ok_or_else(|| StoreError::unavailable("the store was dropped"))?;
                Self::from_inner(inner).read_with_expiry(&key, MAX_SHARED_READ).await
            }
        };
        let deadline = self.inner.options.read_deadline;
        match self.inner.readings.share(key, deadline, read).await {
            Some(found) => found,
            None => self.read_with_expiry(key, deadline).await,
        }
    }

    async fn exists(&self, key: &CacheKey) -> Result<bool, StoreError> {
        let RedisInner { options, client, .. } = &*self.inner;
        let Some(nonce) = key_names::nonce_of(key) else {
            let kind = redis::cmd("TYPE").arg(key.name()).take();
            let kind: String =
                client.command(Destination::Key(key.name()), &kind, options.read_deadline).await?;
            return Ok(kind == "string");
        };
        let mut pipe = redis::pipe();
        pipe.cmd("GETRANGE").arg(key.name()).arg(0).arg(7).cmd("GET").arg(nonce);
        let both = client.pipeline(Destination::Key(key.name()), &pipe, options.read_deadline).await;
        let Some((fence, nonce)) = unless_wrong_type::<(Bytes, Option<Bytes>)>(both)? else {
            return Ok(false);
        };
        Ok(nonce.is_some_and(|nonce| nonce == fence))
    }

    /// A value, and how long it will still be there. Counted from before this was called, that is never too long.
    ///
    /// It takes `longest` at most, if that is more than the deadline and the connection delivers all the time.
    async fn read_with_expiry(
        &self,
        key: &CacheKey,
        longest: Duration,
    ) -> Result<ValueWithExpiry, StoreError> {
        let RedisInner { options, client, .. } = &*self.inner;
        let mut pipe = redis::pipe();
        match key_names::nonce_of(key) {
            Some(nonce) => pipe.cmd("MGET").arg(key.name()).arg(nonce),
            None => pipe.cmd("MGET").arg(key.name()),
        };
        pipe.cmd("PTTL").arg(key.name());
        let (found, left): (Vec<Option<Bytes>>, i64) = client
            .pipeline_while_delivered(Destination::Key(key.name()), &pipe, options.read_deadline, longest)
            .await?;
        let value = match &*found {
            [Some(value)] => Some(value.clone()),
            [Some(record), Some(nonce)] => valid_under(nonce, record),
            _ => None,
        };
        let Some(value) = value else { return Ok(None) };
        Ok(Some((value, remaining(left))))
    }

    /// The beginning of a value, and how long it will still be there, which is never too long.
    ///
    /// These are several commands, and the value may be replaced in between. The entry is read before the nonce, so an entry
    /// of that nonce was valid when it was read. Its length may be another one's: callers compare it with what the value says
    /// about itself.
    async fn read_head(
        &self,
        key: &CacheKey,
        limit: usize,
    ) -> Result<Option<(ValueHead, Option<Duration>)>, StoreError> {
        let RedisInner { options, client, .. } = &*self.inner;
        let name = key.name();
        let limit = limit.max(1);
        let mut pipe = redis::pipe();
        pipe.cmd("GETRANGE").arg(name).arg(0).arg(limit - 1 + fence_len(key));
        pipe.cmd("STRLEN").arg(name).cmd("PTTL").arg(name);
        let (bytes, length, left) = if let Some(nonce) = key_names::nonce_of(key) {
            pipe.cmd("GET").arg(nonce);
            let read = client.pipeline(Destination::Key(name), &pipe, options.read_deadline).await;
            let Some((record, length, left, nonce)) =
                unless_wrong_type::<(Bytes, usize, i64, Option<Bytes>)>(read)?
            else {
                return Ok(None);
            };
            let Some(value) = nonce.and_then(|nonce| valid_under(&nonce, &record)) else { return Ok(None) };
            (value, length.saturating_sub(fence_len(key)), left)
        } else {
            let read = client.pipeline(Destination::Key(name), &pipe, options.read_deadline).await;
            let Some((value, length, left)) = unless_wrong_type::<(Bytes, usize, i64)>(read)? else {
                return Ok(None);
            };
            if value.is_empty() {
                // An empty value and none look the same.
                let found = if left == PTTL_MISSING {
                    None
                } else {
                    self.read_with_expiry(key, options.read_deadline).await?
                };
                return Ok(found.map(|(value, left)| (ValueHead::whole(value), left)));
            }
            (value, length, left)
        };
        // What is shorter than it might be is all there is.
        let length = if bytes.len() < limit { bytes.len() } else { length.max(bytes.len()) };
        self.inner.readings.saw(key, length);
        Ok(Some((ValueHead { bytes, length }, remaining(left))))
    }

    /// The part is read before what the value begins with, and that before the nonce. A value that begins with `head` in the
    /// end did so all the time: it was never another one in between, for no two values begin with the same.
    async fn read_range(
        &self,
        key: &CacheKey,
        head: &[u8],
        range: Range<usize>,
    ) -> Result<Option<Bytes>, StoreError> {
        let RedisInner { options, client, .. } = &*self.inner;
        let (name, fence) = (key.name(), fence_len(key));
        let mut pipe = redis::pipe();
        pipe.cmd("GETRANGE").arg(name).arg(range.start + fence).arg(range.end - 1 + fence);
        pipe.cmd("GETRANGE").arg(name).arg(0).arg((head.len() + fence).max(1) - 1);
        let (part, found) = if let Some(nonce) = key_names::nonce_of(key) {
            pipe.cmd("GET").arg(nonce);
            let read = client.pipeline(Destination::Key(name), &pipe, options.read_deadline).await;
            let Some((part, found, nonce)) = unless_wrong_type::<(Bytes, Bytes, Option<Bytes>)>(read)? else {
                return Ok(None);
            };
            (part, nonce.and_then(|nonce| valid_under(&nonce, &found)))
        } else {
            let read = client.pipeline(Destination::Key(name), &pipe, options.read_deadline).await;
            let Some((part, found)) = unless_wrong_type::<(Bytes, Bytes)>(read)? else { return Ok(None) };
            (part, Some(found))
        };
        let is_same = found.is_some_and(|found| found.starts_with(head));
        Ok((is_same && part.len() == range.len()).then_some(part))
    }

    async fn evict(&self, key: &CacheKey) -> Result<bool, StoreError> {
        let lease = key_names::lease(key);
        let group = GroupNames::of(key);
        let call = ScriptCall {
            script: &scripts::DELETE,
            keys: &with_group(&[key.name(), &lease], group.as_ref()),
            args: &[key.suffix().as_bytes()],
        };
        self.inner.change_client().script(call, self.inner.options.evict_deadline).await
    }

    async fn release(
        &self,
        lease: &str,
        token: &[u8; 16],
        uncacheable_for: Duration,
    ) -> Result<(), StoreError> {
        let uncacheable_for = bounded_millis(uncacheable_for).to_string();
        let call = ScriptCall {
            script: &scripts::ABANDON,
            keys: &[lease],
            args: &[token, uncacheable_for.as_bytes()],
        };
        let _: i64 = self.call(call, self.inner.options.fill_deadline).await?;
        Ok(())
    }

    async fn call<T: redis::FromRedisValue>(
        &self,
        call: ScriptCall<'_>,
        deadline: Duration,
    ) -> Result<T, StoreError> {
        self.inner.client.script(call, deadline).await
    }

    /// Asks Redis about a key: an answer that must not be believed counts as nothing, and while an eviction is pending
    /// nothing is asked.
    async fn read_checked<T: Default>(
        &self,
        key: &CacheKey,
        question: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let Some(epoch) = self.epoch_for(key) else { return Ok(T::default()) };
        let answer = question.await?;
        Ok(if self.may_believe(key, epoch) { answer } else { T::default() })
    }

    /// Before a question about this key: `None` if a pending eviction covers it.
    fn epoch_for(&self, key: &CacheKey) -> Option<Epoch> {
        let epoch = self.log().epoch_for(key);
        if epoch.is_none() {
            self.retry_pending();
        }
        epoch
    }

    /// Whether an answer may be believed. See [`ChangeLog::may_believe`].
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

/// Functions to be called when servers lost what they confirmed.
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

/// The names that an entry shares with its group.
struct GroupNames<'a> {
    nonce: &'a str,
    index: String,
}

impl<'a> GroupNames<'a> {
    fn of(key: &'a CacheKey) -> Option<Self> {
        let nonce = key_names::nonce_of(key)?;
        Some(Self { nonce, index: key_names::index(key.prefix(), key.group()?) })
    }
}

/// The keys of a script: its own, then the nonce of the key's group if it is in one.
fn with_nonce<'a>(own: &[&'a str], key: &'a CacheKey) -> Vec<&'a str> {
    own.iter().copied().chain(key_names::nonce_of(key)).collect()
}

/// The keys of a script: its own, then those of the group if there is one.
fn with_group<'a>(own: &[&'a str], group: Option<&'a GroupNames<'a>>) -> Vec<&'a str> {
    let mut keys = Vec::with_capacity(own.len() + 2);
    keys.extend_from_slice(own);
    keys.extend(group.into_iter().flat_map(|group| [group.nonce, group.index.as_str()]));
    keys
}

fn mget<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Cmd {
    command(std::iter::once("MGET").chain(names).map(str::as_bytes))
}

/// How many bytes of an entry come before its value.
fn fence_len(key: &CacheKey) -> usize {
    if key.group().is_some() { 8 } else { 0 }
}

/// What `PTTL` answers for a key that is not there.
const PTTL_MISSING: i64 = -2;

/// What `PTTL` says: `None` for no end. What is gone by now has nothing left.
fn remaining(left: i64) -> Option<Duration> {
    (left != -1).then(|| Duration::from_millis(left.try_into().unwrap_or(0)))
}

/// `None` for what holds something else than a string, which another program wrote there. It is no value of ours, and the next
/// write replaces it.
fn unless_wrong_type<T>(reply: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match reply {
        Err(StoreError::Refused(error))
            if error.downcast_ref::<RedisError>().and_then(RedisError::code) == Some("WRONGTYPE") =>
        {
            Ok(None)
        }
        reply => reply.map(Some),
    }
}

/// The value of an entry of a group, if the group's nonce is the one that it was written under.
fn valid_under(nonce: &[u8], record: &Bytes) -> Option<Bytes> {
    (nonce.len() == 8 && record.starts_with(nonce)).then(|| record.slice(8..))
}

/// What is stored: the nonce, for an entry of a group, and the value. Written in one piece, copied once.
struct FencedValue<'a> {
    fence: Option<&'a [u8; 8]>,
    value: &'a [u8],
}

impl FencedValue<'_> {
    fn to_bytes(&self) -> Vec<u8> {
        [self.fence.map_or(&[][..], |fence| fence), self.value].concat()
    }
}

impl ToRedisArgs for FencedValue<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        let mut out = out.writer_for_next_arg();
        // Writing to memory can't fail.
        let _ = out.write_all(self.fence.map_or(&[], |fence| fence));
        let _ = out.write_all(self.value);
    }
}

/// A time to live as scripts take it: milliseconds; 0 for what is over already; -1 for no expiry, or none to speak of.
fn ttl_millis(ttl: Option<Duration>) -> i64 {
    ttl.map(bounded_millis).filter(|ms| *ms < MAX_MILLIS).unwrap_or(-1)
}

/// A duration in milliseconds, at least one unless it is zero. Redis refuses what overflows its clock.
fn bounded_millis(duration: Duration) -> i64 {
    let shortest = i64::from(!duration.is_zero());
    i64::try_from(duration.as_millis()).unwrap_or(MAX_MILLIS).clamp(shortest, MAX_MILLIS)
}

/// How many groups' nonces are remembered.
const MAX_CACHED_NONCES: usize = 1024;

/// For how long a large value is read while it is delivered, though those who asked for it have run out of time.
const MAX_SHARED_READ: Duration = Duration::from_secs(10);

/// The largest body that is sent as an argument of its script, in bytes.
const MAX_INLINE_BYTES: usize = 4096;

/// How long the ticket of a plain `set` lasts: far longer than it takes to use it, and no longer than others can go without
/// storing should it be lost.
const WRITE_LEASE_TTL: Duration = Duration::from_secs(2);

/// Whether a lease is the ticket of a write.
fn is_write(lease: &Lease) -> bool {
    lease.token()[0] == b'W'
}

/// Whether a commit under this lease replaces something: all but a fill of a missing entry.
fn replaces(lease: &Lease) -> bool {
    lease.token()[0] != b'F'
}

/// The longest time that makes a difference, in milliseconds.
const MAX_MILLIS: i64 = 100 * 365 * 24 * 60 * 60 * 1000;

fn random<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(StoreError::unavailable)?;
    Ok(bytes)
}
