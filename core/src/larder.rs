//! [`Larder`]: a store and the defaults of every route, shared by all of them.

pub mod env;

use std::fmt;
use std::future::Future;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderName, Uri};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::backend::CacheBackend;
use crate::clock::{Clock, SystemClock};
use crate::exchange::remembered::RememberedKeys;
use crate::fill::lease::Begun;
use crate::fill::single_flight::{FillOutcome, Follower, SingleFlight, UpdateQueue};
use crate::headers::vary::{SecondaryKey, Variants};
use crate::key::{CacheKey, DEFAULT_PREFIX, KeyError, KeySpace};
use crate::policy::CommitResult;
use crate::policy::rule::{DEFAULT_MAX_BODY, PrincipalSecret};
use crate::record::Record;
use crate::route::agreement::Agreement;
use crate::stats::Stats;
use crate::store::{CacheStore, Intent, LeaseStore, StoreError};
use crate::telemetry::{MeteredStore, Telemetry, spans};
use crate::ttl::Ttl;

/// A cache: a store, and what its routes have in common. Cheap to clone; clones are the same cache.
///
/// Making one needs no runtime and opens no connection. Using one needs tokio.
///
/// ```
/// # #[cfg(feature = "memory")] {
/// use larder_core::Larder;
///
/// let larder = Larder::memory();
/// let key = larder.key_for("products", &"/products/7".parse().unwrap()).unwrap();
/// assert_eq!(key.name(), "redis:larder:cache:{products}:products:7");
/// # }
/// ```
#[derive(Clone)]
pub struct Larder {
    pub(crate) context: Arc<CacheContext>,
}

impl Larder {
    /// A cache in this process's memory, of at most 256 MiB.
    #[cfg(feature = "memory")]
    #[must_use]
    pub fn memory() -> Self {
        Self::builder().leased(crate::store::MemoryStore::new())
    }

    /// A cache on a store of your own. Fills are coalesced and fenced inside this process; for a store that does it
    /// between processes, see [`LarderBuilder::leased`].
    #[must_use]
    pub fn new(store: impl CacheStore) -> Self {
        Self::builder().store(store)
    }

    /// To change the defaults.
    pub fn builder() -> LarderBuilder {
        LarderBuilder::default()
    }

    /// Typed access to the same store, for what routes can't express.
    #[must_use]
    pub fn backend(&self) -> CacheBackend {
        CacheBackend::new(self.clone())
    }

    /// The key under which a route of this group keeps the response to a GET of this URI.
    ///
    /// # Errors
    ///
    /// When the group can't be part of a key.
    pub fn key_for<'a>(&self, group: impl Into<Option<&'a str>>, uri: &Uri) -> Result<CacheKey, KeyError> {
        Ok(KeySpace::new(&self.context.defaults.prefix, group.into())?.key_for(uri))
    }

    /// Evicts one entry, whatever it is. If the store is down it is logged, and the store retries what it can.
    ///
    /// Goes on in the background if this future is dropped.
    pub async fn evict(&self, key: &CacheKey) {
        let (context, key) = (Arc::clone(&self.context), key.clone());
        self.context.to_the_end(async move { context.evict_key(&key).await }).await;
    }

    /// The prefix of all keys that don't have one of their own.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.context.defaults.prefix
    }

    /// What this cache did so far, in numbers, and how its store is doing. Cheap enough to ask every second; nothing is
    /// asked of the store.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.context.telemetry.stats(self.context.store.health())
    }

    /// Waits for fills and writes that are under way, for as long as a fill may take, then lets go of the store's
    /// connections. For shutdown.
    pub async fn close(&self) {
        self.context.tasks.close();
        if tokio::time::timeout(self.context.timing.max_fill, self.context.tasks.wait()).await.is_err() {
            warn!("handlers are still running; what they write will not reach the cache");
        }
        self.context.store.close().await;
    }
}

impl fmt::Debug for Larder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Larder").field("defaults", &self.context.defaults).finish_non_exhaustive()
    }
}

/// Changes a [`Larder`]'s defaults.
///
/// ```
/// # #[cfg(feature = "memory")] {
/// use larder_core::{Larder, store::MemoryStore};
///
/// let larder = Larder::builder()
///     .prefix("shop:cache")
///     .default_ttl(300)
///     .leased(MemoryStore::with_capacity(64 * 1024 * 1024));
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct LarderBuilder {
    defaults: Defaults,
    timing: Timing,
    clock: Arc<dyn Clock>,
}

impl Default for LarderBuilder {
    fn default() -> Self {
        Self { defaults: Defaults::default(), timing: Timing::default(), clock: Arc::new(SystemClock) }
    }
}

impl LarderBuilder {
    /// What every key begins with. `redis:larder:cache` by default.
    ///
    /// # Panics
    ///
    /// When it is empty or holds a brace, a bar, white space or a control character. Use [`KeySpace::new`] to check a
    /// prefix that isn't a literal.
    #[track_caller]
    pub fn prefix(mut self, prefix: &str) -> Self {
        if let Err(error) = KeySpace::new(prefix, None) {
            panic_invalid_config(&error);
        }
        self.defaults.prefix = prefix.into();
        self
    }

    /// The time to live of routes that don't say. No expiry by default. A [`CacheBackend`] is always told.
    pub fn default_ttl(mut self, ttl: impl Into<Ttl>) -> Self {
        self.defaults.ttl = ttl.into();
        self
    }

    /// The largest body that routes store, in bytes. 10 MiB by default.
    pub const fn max_body(mut self, bytes: u64) -> Self {
        self.defaults.max_body = bytes;
        self
    }

    /// The field that says HIT, MISS or BYPASS; `None` for no such field. `X-Redis-Cache` by default.
    pub fn status_header(mut self, name: impl Into<Option<HeaderName>>) -> Self {
        self.defaults.status_header = name.into();
        self
    }

    /// Whether to add `Cache-Status` (RFC 9211), which gives the reason too. Off by default.
    pub const fn cache_status(mut self, on: bool) -> Self {
        self.defaults.cache_status = on;
        self
    }

    /// What principals of private routes are hashed with in keys. Set the same in every process that shares the store.
    /// Needed only where principals can be guessed, as user ids can; tokens can't.
    pub fn principal_secret(mut self, secret: &[u8]) -> Self {
        self.defaults.secret = PrincipalSecret::new(secret);
        self
    }

    /// Request fields that carry credentials in this service, beside the usual ones that [the
    /// guide](crate::guide::safety#credentials) lists. Undeclared routes don't cache requests with them, the handlers of public
    /// routes don't see them, and a shared cache treats them as `Authorization` (RFC 9111 §3.5).
    pub fn credential_fields(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.defaults.credential_fields = names.into_iter().collect();
        self
    }

    /// Sets the duration of leases. 5 s by default, at least 100 ms.
    ///
    /// A fill or a write takes a lease on its entry and renews it while the handler runs. If the process dies, others wait
    /// this long before they run the handler.
    pub fn lease_ttl(mut self, lease_ttl: Duration) -> Self {
        self.timing.lease_ttl = lease_ttl.max(Duration::from_millis(100));
        self
    }

    /// After how long a handler that is still running loses its right to store. 60 s by default.
    pub const fn max_fill(mut self, max_fill: Duration) -> Self {
        self.timing.max_fill = max_fill;
        self
    }

    /// For how long a request waits for another one's fill before it runs the handler itself. 10 s by default.
    pub const fn max_wait(mut self, max_wait: Duration) -> Self {
        self.timing.max_wait = max_wait;
        self
    }

    /// The clock that ages are measured with. The system's by default.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// On a store of your own, coalescing and fencing inside this process.
    #[must_use]
    pub fn store(self, store: impl CacheStore) -> Larder {
        let clock = Arc::clone(&self.clock);
        self.leased(crate::store::ProcessLocal::new(store, clock))
    }

    /// On a Redis, with at most so many bytes of what was read from it kept in this process too. Only keys under the
    /// cache's own [`prefix`](Self::prefix) are: a route with a prefix of its own is always answered from Redis.
    ///
    /// What this process evicts is never read in it again. What another one evicts is gone here when Redis's message
    /// arrives, usually within a millisecond, and after
    /// [`MAX_STALE`](crate::store::redis::MAX_STALE) if no message can arrive. Needs Redis 6 or newer and a user who may
    /// run `CLIENT TRACKING`; without them there is a warning and no such tier. More in
    /// [`TieredStore`](crate::store::redis::TieredStore).
    ///
    /// ```
    /// use larder_core::{Larder, RedisOptions};
    ///
    /// let options = RedisOptions::from_url("redis://127.0.0.1/")?;
    /// let larder = Larder::builder().redis_with_local(options, 64 * 1024 * 1024);
    /// # Ok::<(), larder_core::RedisUrlError>(())
    /// ```
    #[cfg(feature = "redis")]
    #[must_use]
    pub fn redis_with_local(self, options: crate::store::redis::RedisOptions, bytes: u64) -> Larder {
        let store = crate::store::redis::RedisStore::new(options).with_local(&self.defaults.prefix, bytes);
        self.leased(store)
    }

    /// On a store that takes part in the fill protocol itself.
    #[must_use]
    pub fn leased(self, store: impl LeaseStore) -> Larder {
        // Two services that share a Redis and a prefix answer for each other, and the log of each shows it.
        tracing::info!(prefix = &*self.defaults.prefix, store = store.health().store, "the cache is set up");
        let telemetry = Arc::new(Telemetry::default());
        Larder {
            context: Arc::new(CacheContext {
                store: MeteredStore::new(Box::new(store), Arc::clone(&telemetry)),
                telemetry,
                single_flight: SingleFlight::new(),
                update_queue: UpdateQueue::new(),
                known_to_vary: RememberedKeys::default(),
                known_to_make_parts: RememberedKeys::default(),
                agreement: Agreement::default(),
                tasks: TaskTracker::new(),
                defaults: self.defaults,
                timing: self.timing,
                clock: self.clock,
                warned_at: AtomicU64::new(0),
            }),
        }
    }
}

/// What routes have unless they say otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Defaults {
    pub(crate) prefix: Box<str>,
    pub(crate) ttl: Ttl,
    pub(crate) max_body: u64,
    pub(crate) status_header: Option<HeaderName>,
    pub(crate) cache_status: bool,
    pub(crate) secret: PrincipalSecret,
    pub(crate) credential_fields: Arc<[HeaderName]>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            prefix: DEFAULT_PREFIX.into(),
            ttl: Ttl::NO_EXPIRY,
            max_body: DEFAULT_MAX_BODY,
            status_header: Some(HeaderName::from_static("x-redis-cache")),
            cache_status: false,
            secret: PrincipalSecret::default(),
            credential_fields: Arc::new([]),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub(crate) lease_ttl: Duration,
    pub(crate) max_fill: Duration,
    pub(crate) max_wait: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease_ttl: Duration::from_secs(5),
            max_fill: Duration::from_secs(60),
            max_wait: Duration::from_secs(10),
        }
    }
}

/// What the routes and the backend of one cache share.
pub(crate) struct CacheContext {
    pub(crate) store: MeteredStore,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) single_flight: SingleFlight,
    pub(crate) update_queue: UpdateQueue,
    /// Resources that had variants: the answer to a write stands for none of them.
    pub(crate) known_to_vary: RememberedKeys,
    /// Resources whose handlers answered a `Range` with a part or a 416.
    pub(crate) known_to_make_parts: RememberedKeys,
    pub(crate) agreement: Agreement,
    pub(crate) tasks: TaskTracker,
    pub(crate) defaults: Defaults,
    pub(crate) timing: Timing,
    clock: Arc<dyn Clock>,
    /// The second in which the store's failing was last warned about.
    warned_at: AtomicU64,
}

impl CacheContext {
    pub(crate) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// An id that no other record has.
    pub(crate) fn fresh_id(&self) -> u64 {
        fastrand::u64(1..)
    }

    /// Runs on in the background. Without a runtime, as while one is being dropped, it is dropped too.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.tasks.spawn_on(work, &runtime);
        }
    }

    pub(crate) async fn set(&self, key: &CacheKey, record: Bytes, ttl: Option<Duration>) -> Result<(), ()> {
        self.store.set(key, record, ttl).await.map_err(|error| self.store_failed("set", key.name(), &error))
    }

    /// Evicts an entry, and every variant of it.
    /// False if the store didn't confirm it.
    pub(crate) async fn evict_key(&self, key: &CacheKey) -> bool {
        let span = spans::evict(key);
        let confirmed = span.around(self.evict_key_within(key)).await;
        span.evicted(confirmed);
        confirmed
    }

    async fn evict_key_within(&self, key: &CacheKey) -> bool {
        // The record goes first: from then on no request finds its variants. A copy of the record may miss the latest of
        // them, which would stay in the store as garbage.
        let record = self.store.get_shared(key).await;
        let deleted = self.store.delete(key).await;
        if let Err(error) = &deleted {
            self.store_failed("delete", key.name(), error);
        }
        let Ok(Some(bytes)) = record else { return deleted.is_ok() };
        let Some(Record::Variants(variants)) = Record::decode(&bytes) else { return deleted.is_ok() };
        for secondary in variants.secondary_keys() {
            let variant = key.variant(secondary);
            if let Err(error) = self.store.delete(&variant).await {
                self.store_failed("delete", variant.name(), &error);
                break;
            }
        }
        deleted.is_ok()
    }

    /// Does work to its end, also without its caller. A panic goes on in the caller.
    pub(crate) async fn to_the_end<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        self.detached(Box::pin(work)).await.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Evicts every entry of a group. False if the store didn't confirm it.
    pub(crate) async fn evict_group(&self, space: &KeySpace) -> bool {
        let span = spans::evict_group(space);
        let deleted = span.around(self.store.delete_group(space)).await;
        span.evicted(deleted.is_ok());
        if let Err(error) = &deleted {
            self.store_failed("delete_group", space.head(), error);
        }
        deleted.is_ok()
    }

    /// Lists a variant that was just stored in the record with this id, so that there can't be too many. If another request
    /// holds the record, the variant stays unlisted.
    ///
    /// [`CommitResult::Revoked`] if that record is gone: the variant was stored after an eviction of the resource, and nothing
    /// leads to it.
    pub(crate) async fn list_variant(
        self: &Arc<Self>,
        base: &CacheKey,
        secondary: SecondaryKey,
        id: u64,
        ttl: Option<Duration>,
    ) -> CommitResult {
        let held = match self.begin(base, Intent::Refresh).await {
            Ok(Begun::LeaseGuard(held)) => Some(held),
            Ok(_) | Err(_) => None,
        };
        // Under the lease, and only if it is still the same record: an eviction must not be undone. What others have
        // listed meanwhile stays.
        let Some(mut found) = self.variants_of(base).await.filter(|found| found.id() == id) else {
            self.delete_variant(base, secondary).await;
            return CommitResult::Revoked;
        };
        let Some(held) = held else { return CommitResult::Stored };
        let oldest = found.add(secondary);
        let stored = held.commit(found.encode(), ttl).await;
        if let Some(oldest) = oldest.filter(|_| stored == CommitResult::Stored) {
            self.delete_variant(base, oldest).await;
        }
        stored
    }

    /// Stores a variant and replaces the record with the id `instead_of` by one that leads to it, if that record is still
    /// there.
    pub(crate) async fn widen(
        self: &Arc<Self>,
        base: &CacheKey,
        variant: (CacheKey, Bytes, Option<Duration>),
        variants: &Variants,
        instead_of: u64,
        ttl: Option<Duration>,
    ) -> CommitResult {
        let Ok(Begun::LeaseGuard(held)) = self.begin(base, Intent::Refresh).await else {
            return CommitResult::Revoked;
        };
        let Some(found) = self.variants_of(base).await.filter(|found| found.id() == instead_of) else {
            return CommitResult::Revoked;
        };
        let stored = held.commit_first_variant(variant, variants, ttl).await;
        if stored == CommitResult::Stored {
            for orphan in found.secondary_keys() {
                self.delete_variant(base, orphan).await;
            }
        }
        stored
    }

    /// The record of variants under a key, if there is one.
    async fn variants_of(&self, base: &CacheKey) -> Option<Variants> {
        match Record::decode(&self.store.get(base).await.ok()??) {
            Some(Record::Variants(found)) => Some(found),
            _ => None,
        }
    }

    /// Removes a variant that nothing leads to, to free its room.
    async fn delete_variant(&self, base: &CacheKey, secondary: SecondaryKey) {
        let key = base.variant(secondary);
        if let Err(error) = self.store.delete(&key).await {
            self.store_failed("delete", key.name(), &error);
        }
    }

    /// Waits for the fill that another request here is at.
    pub(crate) async fn follow(&self, follow: Follower) -> Option<FillOutcome> {
        self.follow_for(follow, self.timing.max_wait).await
    }

    /// The same, for so long at most.
    pub(crate) async fn follow_for(&self, follow: Follower, limit: Duration) -> Option<FillOutcome> {
        let started = Instant::now();
        let landing = spans::wait().around(follow.wait(limit)).await;
        self.telemetry.waited(started.elapsed(), !matches!(landing, Some(FillOutcome::Stored(_))));
        landing
    }

    /// Says that the store failed: as a warning once a second, else for those who look closely.
    pub(crate) fn store_failed(&self, operation: &str, key: &str, error: &StoreError) {
        let second = self.now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if self.warned_at.swap(second, Ordering::Relaxed) == second {
            debug!(operation, key, %error, "the cache's store failed");
        } else {
            warn!(operation, key, %error, "the cache's store failed; the handler's answer is delivered all the same");
        }
    }
}

/// What a bad literal in a route or a builder comes to.
#[expect(clippy::panic, reason = "a route that can't have keys must not start to serve")]
#[track_caller]
pub(crate) fn panic_invalid_config(error: &dyn fmt::Display) -> ! {
    panic!("{error}")
}
