//! A local tier over Redis: [`TieredStore`].
//!
//! # How it stays coherent
//!
//! A dedicated connection, in a cluster one to each master, receives an invalidation message for every change under the
//! prefix (`CLIENT TRACKING ON BCAST`). Each message removes the entries that it names. Four rules make that safe:
//!
//! * **A fence.** A value may be outdated by the time it is kept. So the epoch of the key's stripe is read *before* the value
//!   is. Every message advances the epoch, and the value is kept only if the epoch is unchanged.
//! * **A bound.** Four times a second the tier proves that it has received every earlier message (see `invalidations.rs`). Its
//!   entries are valid until [`MAX_STALE`] after the last proof, which covers a connection that hangs or was cut silently, and
//!   a slot that moved to another master. New connections start with an empty tier.
//! * **Own changes don't wait for their message.** An entry that this process writes or evicts is removed and fenced here after
//!   Redis confirms the change and before the call returns. Keys of an unconfirmed eviction are bypassed until Redis confirms it.
//! * **A lease reads from Redis.** The holder of a lease builds on its next read, so the local copy is removed and fenced before
//!   the lease is returned.
//!
//! An entry of a group also carries its group's epoch, which advances with every message about the group's nonce. A tagged entry
//! carries the tags' epoch, which advances with every message about the tag clock: then it is read from Redis again, which judges it.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use redis::{ErrorKind, PushInfo, PushKind, RedisResult, Value};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::RedisStore;
use super::client::Client;
use super::dialer::Dialer;
use super::failover::change_log::Lost;
use super::invalidations::InvalidationListener;
use super::key_names;
use super::readings::Lifetime;
use crate::key::{CacheKey, KeySpace};
use crate::store::lease_table::head_of;
use crate::store::{Abandon, Acquired, CacheStore, Health, Intent, Lease, LeaseStore, StoreError, ValueHead};
use crate::tag::{EvictionMode, TagStamp, Tagged, Tags};

/// The longest time that an entry of the local tier may be outdated when invalidation messages can't arrive. While they arrive,
/// it is less than a millisecond.
pub const MAX_STALE: Duration = Duration::from_secs(1);

/// Interval between proofs that all messages have been received.
const PROOF_INTERVAL: Duration = Duration::from_millis(250);

/// The pause before the next connection after a failure.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The pause before the next connection after Redis refused `CLIENT TRACKING`.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);

/// The number of epochs for keys, and for groups. A collision costs only an additional read from Redis.
const STRIPES: usize = 1024;

/// The weight of an entry besides its name and its value, in bytes.
const OVERHEAD: u64 = 200;

/// A [`RedisStore`] with a tier in this process's memory. Clones share both.
///
/// Made by [`RedisStore::with_local`]. Reads are answered from memory where possible. Leases, writes and evictions always go to
/// Redis. After an eviction by this process has returned, this process never reads an older value. Another process's eviction
/// takes effect when Redis's message arrives, and after [`MAX_STALE`] at the latest, even if no message can arrive.
///
/// It needs Redis 6 or newer and a user who may run `CLIENT TRACKING`, and in a cluster `CLUSTER INFO` and `CLUSTER
/// NODES`. Without these rights, or through the application's own pool, the store logs a warning and reads everything from
/// Redis. It also does so, without a warning, while slots of a cluster move or one of its masters is down.
#[derive(Clone, Debug)]
pub struct TieredStore {
    redis: RedisStore,
    local: Arc<LocalTier>,
}

impl RedisStore {
    /// Adds a local tier of at most `bytes` bytes for values read under `prefix`. Keys of other prefixes are always read from
    /// Redis.
    #[must_use]
    pub fn with_local(self, prefix: &str, bytes: u64) -> TieredStore {
        let dialer = self.inner.client.dialer().clone();
        let local = Arc::new(LocalTier::new(dialer, self.inner.client.clone(), prefix, bytes));
        let weak = Arc::downgrade(&local);
        // Values read before a change of servers was noticed may be outdated.
        self.inner.on_recall.add(move || {
            if let Some(local) = weak.upgrade() {
                local.remove(Scope::All);
            }
        });
        TieredStore { redis: self, local }
    }
}

impl CacheStore for TieredStore {
    fn try_get(&self, key: &CacheKey) -> Option<Bytes> {
        self.redis.epoch_for(key).and_then(|_| self.local.get(key))
    }

    async fn get(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        if let Some(value) = self.try_get(key) {
            return Ok(Some(value));
        }
        let Some(epochs) = self.local.epochs(key) else { return self.redis.get(key).await };
        // An eviction from here on advances the epoch.
        let read_at = self.local.now();
        let read = self.redis.read_checked(key, async || self.redis.read_whole(key).await);
        let Some((value, lifetime)) = read.await? else { return Ok(None) };
        self.local.insert_if_unchanged(key, &epochs, &ValueHead::whole(value.clone()), (read_at, lifetime));
        Ok(Some(value))
    }

    async fn get_shared(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        self.redis.get(key).await
    }

    async fn get_head(&self, key: &CacheKey, limit: usize) -> Result<Option<ValueHead>, StoreError> {
        if self.redis.epoch_for(key).is_none() {
            return Ok(None);
        }
        if let Some(head) = self.local.head(key).filter(|head| head.is_whole() || head.bytes.len() >= limit) {
            return Ok(Some(head));
        }
        let Some(epochs) = self.local.epochs(key) else { return self.redis.get_head(key, limit).await };
        // An eviction from here on advances the epoch.
        let read_at = self.local.now();
        let (head, lifetime) =
            match self.redis.read_checked(key, async || self.redis.read_head(key, limit).await).await {
                Err(StoreError::Refused(_)) => return Ok(self.get(key).await?.map(ValueHead::whole)),
                head => match head? {
                    Some(found) => found,
                    None => return Ok(None),
                },
            };
        self.local.insert_if_unchanged(key, &epochs, &head, (read_at, lifetime));
        Ok(Some(head))
    }

    async fn get_range(
        &self,
        key: &CacheKey,
        head: &Bytes,
        range: Range<usize>,
    ) -> Result<Option<Bytes>, StoreError> {
        match self.try_get(key) {
            Some(value) => Ok(ValueHead::whole(value).cut(head, range)),
            None => self.redis.get_range(key, head, range).await,
        }
    }

    async fn set(&self, key: &CacheKey, value: Bytes, ttl: Option<Duration>) -> Result<(), StoreError> {
        let _change = InvalidationGuard::of_key(&self.local, key);
        self.redis.set(key, value, ttl).await
    }

    async fn delete(&self, key: &CacheKey) -> Result<bool, StoreError> {
        let _change = InvalidationGuard::of_key(&self.local, key);
        self.redis.delete(key).await
    }

    async fn delete_group(&self, group: &KeySpace) -> Result<u64, StoreError> {
        let _change = InvalidationGuard::of_space(&self.local, group);
        self.redis.delete_group(group).await
    }

    async fn has(&self, key: &CacheKey) -> Result<bool, StoreError> {
        if self.try_get(key).is_some() { Ok(true) } else { self.redis.has(key).await }
    }

    fn max_value_bytes(&self) -> u64 {
        self.redis.max_value_bytes()
    }

    fn health(&self) -> Health {
        let entries = &self.local.entries;
        self.redis.health().bytes(entries.weight(), Some(entries.capacity()))
    }

    async fn close(&self) {
        self.local.close();
        self.redis.close().await;
    }
}

impl LeaseStore for TieredStore {
    async fn begin(&self, key: &CacheKey, intent: Intent, hold: Duration) -> Result<Acquired, StoreError> {
        let begun = self.redis.begin(key, intent, hold).await?;
        if matches!(begun, Acquired::Lease(_)) {
            // The holder builds on its next read. The message about another process's change may not have arrived yet.
            self.local.remove_entry(key.name());
        }
        Ok(begun)
    }

    async fn commit(
        &self,
        key: &CacheKey,
        lease: &Lease,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, StoreError> {
        let _change = InvalidationGuard::of_key(&self.local, key);
        self.redis.commit(key, lease, value, ttl).await
    }

    async fn renew(&self, key: &CacheKey, lease: &Lease, hold: Duration) -> Result<bool, StoreError> {
        self.redis.renew(key, lease, hold).await
    }

    async fn abandon(&self, key: &CacheKey, lease: &Lease, why: Abandon) -> Result<(), StoreError> {
        self.redis.abandon(key, lease, why).await
    }

    async fn tag_clock(&self, space: &KeySpace) -> Result<Option<TagStamp>, StoreError> {
        self.redis.tag_clock(space).await
    }

    async fn set_tagged(
        &self,
        key: &CacheKey,
        value: Bytes,
        ttl: Option<Duration>,
        tagged: &Tagged,
    ) -> Result<(), StoreError> {
        let _change = InvalidationGuard::of_key(&self.local, key);
        self.redis.set_tagged(key, value, ttl, tagged).await
    }

    async fn commit_tagged(
        &self,
        key: &CacheKey,
        lease: &Lease,
        value: Bytes,
        ttl: Option<Duration>,
        tagged: &Tagged,
    ) -> Result<bool, StoreError> {
        let _change = InvalidationGuard::of_key(&self.local, key);
        self.redis.commit_tagged(key, lease, value, ttl, tagged).await
    }

    async fn evict_tags(&self, space: &KeySpace, tags: &Tags, how: EvictionMode) -> Result<(), StoreError> {
        let _change = InvalidationGuard::new(&self.local, Scope::Tagged);
        self.redis.evict_tags(space, tags, how).await
    }

    async fn evict_softly(&self, key: &CacheKey) -> Result<(), StoreError> {
        let _change = InvalidationGuard::of_key(&self.local, key);
        self.redis.evict_softly(key).await
    }

    async fn evict_group_softly(&self, group: &KeySpace) -> Result<(), StoreError> {
        let _change = InvalidationGuard::of_space(&self.local, group);
        self.redis.evict_group_softly(group).await
    }

    async fn changed(&self, key: &CacheKey) {
        self.local.notify_of(key.name()).notified().await;
    }
}

/// A guard around a change that this process makes. It removes the affected entries when it is made and when it is dropped, also
/// if the call is cancelled: Redis may still carry the change out.
#[must_use]
struct InvalidationGuard<'a> {
    local: &'a LocalTier,
    scope: Scope<'a>,
}

#[derive(Clone, Copy)]
enum Scope<'a> {
    Key(&'a str),
    Group(&'a str),
    /// Every tagged entry.
    Tagged,
    All,
}

impl<'a> InvalidationGuard<'a> {
    fn of_key(local: &'a LocalTier, key: &'a CacheKey) -> Self {
        Self::new(local, Scope::Key(key.name()))
    }

    fn of_space(local: &'a LocalTier, space: &'a KeySpace) -> Self {
        Self::new(
            local,
            if space.group().is_some() { Scope::Group(key_names::nonce(space)) } else { Scope::All },
        )
    }

    fn new(local: &'a LocalTier, scope: Scope<'a>) -> Self {
        local.remove(scope);
        Self { local, scope }
    }
}

impl Drop for InvalidationGuard<'_> {
    fn drop(&mut self) {
        self.local.remove(self.scope);
    }
}

/// The local tier. Times count from `beginning`.
struct LocalTier {
    dialer: Arc<Dialer>,
    /// Reports the layout of the cluster.
    servers: Client,
    /// The prefix of tracked names, with its colon.
    head: Box<str>,
    entries: Cache<Box<str>, LocalEntry, LocalWeighter>,
    /// Epochs of keys by stripe, locked to keep or remove an entry of the stripe.
    keys: Box<[Mutex<u64>]>,
    groups: Box<[AtomicU64]>,
    /// The number of evictions by tag that this process made or received a message about.
    tag_epoch: AtomicU64,
    /// Notified of every change of a key of the stripe.
    changes: Box<[Notify]>,
    hasher: RandomState,
    beginning: Instant,
    /// The time in microseconds until which entries are valid. 0 without a connection.
    valid_until: AtomicU64,
    listener: Mutex<Listener>,
}

#[derive(Default)]
struct Listener {
    task: Option<AbortHandle>,
    closed: bool,
    /// The number of lost connections.
    losses: u64,
}

#[derive(Clone)]
struct LocalEntry {
    /// The value, or its beginning if only that was read.
    head: ValueHead,
    expires: Option<Duration>,
    group_epoch: u64,
    /// For a tagged entry, the number of messages about the tag clock before it was read.
    tag_epoch: Option<u64>,
}

#[derive(Clone)]
struct LocalWeighter;

impl Weighter<Box<str>, LocalEntry> for LocalWeighter {
    fn weight(&self, name: &Box<str>, entry: &LocalEntry) -> u64 {
        OVERHEAD + name.len() as u64 + entry.head.bytes.len() as u64
    }
}

/// The epochs at the start of a read. The value is kept only if they are unchanged.
struct ReadEpochs {
    epoch: u64,
    group_epoch: u64,
    tag_epoch: u64,
}

impl LocalTier {
    fn new(dialer: Arc<Dialer>, servers: Client, prefix: &str, bytes: u64) -> Self {
        Self {
            dialer,
            servers,
            head: format!("{prefix}:").into(),
            entries: Cache::with_weighter(
                usize::try_from(bytes / 2048).unwrap_or(usize::MAX),
                bytes,
                LocalWeighter,
            ),
            keys: (0..STRIPES).map(|_| Mutex::default()).collect(),
            groups: (0..STRIPES).map(|_| AtomicU64::default()).collect(),
            tag_epoch: AtomicU64::default(),
            changes: (0..STRIPES).map(|_| Notify::new()).collect(),
            hasher: RandomState::new(),
            beginning: Instant::now(),
            valid_until: AtomicU64::new(0),
            listener: Mutex::default(),
        }
    }

    fn now(&self) -> Duration {
        self.beginning.elapsed()
    }

    fn get(&self, key: &CacheKey) -> Option<Bytes> {
        self.head(key).filter(ValueHead::is_whole).map(|head| head.bytes)
    }

    /// Returns a valid entry's value, or the beginning of it.
    fn head(&self, key: &CacheKey) -> Option<ValueHead> {
        let now = self.now();
        if !self.is_valid_at(now) {
            return None;
        }
        let entry = self.entries.get(key.name())?;
        let is_expired = entry.expires.is_some_and(|expires| expires <= now);
        let is_evicted = entry.tag_epoch.is_some_and(|epoch| epoch != self.tag_epoch());
        (!is_expired && !is_evicted && entry.group_epoch == self.group_epoch(key)).then_some(entry.head)
    }

    /// Reads the epochs before a read from Redis. Returns `None` if the key isn't tracked, or the tier isn't valid now.
    fn epochs(self: &Arc<Self>, key: &CacheKey) -> Option<ReadEpochs> {
        if !self.is_valid_at(self.now()) {
            self.listen();
            return None;
        }
        let epoch = *self.stripe(key.name());
        let epochs = ReadEpochs { epoch, group_epoch: self.group_epoch(key), tag_epoch: self.tag_epoch() };
        key.name().starts_with(&*self.head).then_some(epochs)
    }

    fn insert_if_unchanged(
        &self,
        key: &CacheKey,
        epochs: &ReadEpochs,
        head: &ValueHead,
        (read_at, lifetime): (Duration, Lifetime),
    ) {
        if !lifetime.is_fresh {
            return;
        }
        let expires = lifetime.left.map(|left| read_at + left);
        let tag_epoch = lifetime.is_tagged.then_some(epochs.tag_epoch);
        let epoch = self.stripe(key.name());
        // The beginning of a value doesn't replace the whole.
        if *epoch == epochs.epoch && (head.is_whole() || self.get(key).is_none()) {
            let entry =
                LocalEntry { head: head.clone(), expires, group_epoch: epochs.group_epoch, tag_epoch };
            self.entries.insert(key.name().into(), entry);
        }
    }

    fn remove(&self, scope: Scope<'_>) {
        match scope {
            Scope::Key(name) => {
                self.remove_entry(name);
                self.notify_of(name).notify_waiters();
            }
            Scope::Group(nonce) => {
                self.groups[self.stripe_index(nonce)].fetch_add(1, Ordering::AcqRel);
            }
            Scope::Tagged => {
                self.tag_epoch.fetch_add(1, Ordering::AcqRel);
            }
            Scope::All => {
                // All stripes are locked before entries are removed, so that no entry is kept meanwhile.
                let mut epochs: Vec<_> = self.keys.iter().map(lock).collect();
                epochs.iter_mut().for_each(|epoch| **epoch += 1);
                self.entries.clear();
            }
        }
    }

    /// Removes an entry, and fences reads that began before now.
    fn remove_entry(&self, name: &str) {
        let mut epoch = self.stripe(name);
        *epoch += 1;
        self.entries.remove(name);
    }

    fn group_epoch(&self, key: &CacheKey) -> u64 {
        let nonce = head_of(key).trim_end_matches(':');
        key.group().map_or(0, |_| self.groups[self.stripe_index(nonce)].load(Ordering::Acquire))
    }

    fn tag_epoch(&self) -> u64 {
        self.tag_epoch.load(Ordering::Acquire)
    }

    fn stripe(&self, name: &str) -> MutexGuard<'_, u64> {
        lock(&self.keys[self.stripe_index(name)])
    }

    fn notify_of(&self, name: &str) -> &Notify {
        &self.changes[self.stripe_index(name)]
    }

    fn stripe_index(&self, name: &str) -> usize {
        usize::try_from(self.hasher.hash_one(name) % STRIPES as u64).unwrap_or(0)
    }

    fn is_valid_at(&self, now: Duration) -> bool {
        micros(now) < self.valid_until.load(Ordering::Acquire)
    }
}

/// The listener for invalidation messages.
impl LocalTier {
    /// Starts the listener unless it runs. A task ends with its runtime, so a finished one is replaced.
    fn listen(self: &Arc<Self>) {
        let mut listener = lock(&self.listener);
        if listener.closed || listener.task.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        if self.dialer.options.is_pooled() {
            tracing::warn!("nothing is kept in this process: a pool of the application can't be listened to");
            listener.closed = true;
            return;
        }
        let weak = Arc::downgrade(self);
        let task = async move {
            let mut refused = false;
            while let Some(local) = weak.upgrade() {
                let ended = local.listen_once().await;
                local.on_disconnect();
                let pause = match ended {
                    Err(error) if !error.is_io_error() && !error.is_unrecoverable_error() => {
                        local.dialer.refusals.note(&local.dialer.options.addresses()[0], &error);
                        if !std::mem::replace(&mut refused, true) {
                            tracing::warn!(%error, "Redis does not tell of changes; nothing is kept in this process");
                        }
                        REFUSED_PAUSE
                    }
                    Ok(()) | Err(_) => RETRY_PAUSE,
                };
                drop(local);
                sleep(pause).await;
            }
        };
        listener.task = Some(runtime.spawn(task).abort_handle());
    }

    /// Listens until a connection is lost or the cluster changes.
    async fn listen_once(self: &Arc<Self>) -> RedisResult<()> {
        let (weak, losses) = (Arc::downgrade(self), lock(&self.listener).losses);
        // Called by the connection's reader, in the order of messages and replies.
        let on_push = move |push: PushInfo| {
            if let Some(local) = weak.upgrade() {
                local.on_message(&push);
            }
            Ok::<(), ()>(())
        };
        let layout = match self.servers.layout(&Lost::Everything, self.dialer.options.connect_deadline).await
        {
            Ok(layout) if !layout.moving => layout,
            Err(StoreError::Refused(error)) => {
                return Err((
                    ErrorKind::Client,
                    "the cluster does not say who serves what",
                    error.to_string(),
                )
                    .into());
            }
            // Nothing is kept while slots move.
            Ok(_) | Err(_) => return Ok(()),
        };
        let addresses: Vec<_> = layout.nodes.iter().map(|node| node.address().clone()).collect();
        let opened = InvalidationListener::open(&self.dialer, &addresses, &self.head, on_push);
        let Ok(connections) = timeout(MAX_STALE, opened).await else { return Ok(()) };
        let mut connections = connections?;
        // Earlier changes were missed.
        self.remove(Scope::All);
        loop {
            let sent = self.now();
            let Ok(caught_up) = timeout(MAX_STALE, connections.is_caught_up()).await else { return Ok(()) };
            if !caught_up? {
                return Ok(());
            }
            {
                // A connection may have been lost since it answered.
                let listener = lock(&self.listener);
                if listener.losses != losses {
                    return Ok(());
                }
                self.valid_until.store(micros(sent + MAX_STALE), Ordering::Release);
            }
            sleep(PROOF_INTERVAL).await;
        }
    }

    fn on_message(&self, push: &PushInfo) {
        match push.kind {
            PushKind::Invalidate => match push.data.first() {
                Some(Value::Array(names)) => names.iter().for_each(|name| self.invalidate(name)),
                // The whole database was flushed.
                _ => self.remove(Scope::All),
            },
            PushKind::Disconnection => self.on_disconnect(),
            _ => {}
        }
    }

    fn invalidate(&self, name: &Value) {
        let name = match name {
            Value::BulkString(name) => std::str::from_utf8(name).ok(),
            _ => None,
        };
        // All names of this crate are UTF-8.
        let Some(name) = name else { return };
        // That of a longer prefix, too, whose names begin alike.
        if key_names::is_tag_clock(name) {
            return self.remove(Scope::Tagged);
        }
        if name.ends_with('}') {
            self.remove(Scope::Group(name));
        }
        self.remove(Scope::Key(name));
    }

    fn on_disconnect(&self) {
        let mut listener = lock(&self.listener);
        listener.losses += 1;
        self.valid_until.store(0, Ordering::Release);
        drop(listener);
        self.remove(Scope::All);
    }

    fn close(&self) {
        let mut listener = lock(&self.listener);
        listener.closed = true;
        if let Some(task) = listener.task.take() {
            task.abort();
        }
        drop(listener);
        self.on_disconnect();
    }
}

impl Drop for LocalTier {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.listener).task.take() {
            task.abort();
        }
    }
}

impl fmt::Debug for LocalTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalTier")
            .field("head", &self.head)
            .field("len", &self.entries.len())
            .field("len_bytes", &self.entries.weight())
            .field("capacity", &self.entries.capacity())
            .finish_non_exhaustive()
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can panic half way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
