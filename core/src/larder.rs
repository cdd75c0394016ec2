//! [`Larder`]: a cache, made of a store and the defaults of its routes.

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

/// A cache: a store, and the state that its routes share. Clones are cheap and refer to the same cache.
///
/// Creating one needs no runtime and opens no connection. Using one needs tokio.
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
    /// Creates a cache in this process's memory, of at most 256 MiB.
    #[cfg(feature = "memory")]
    #[must_use]
    pub fn memory() -> Self {
        Self::builder().leased(crate::store::MemoryStore::new())
    }

    /// Creates a cache on a custom store. Fills are coalesced and fenced inside this process. For a store that does so
    /// between processes, see [`LarderBuilder::leased`].
    #[must_use]
    pub fn new(store: impl CacheStore) -> Self {
        Self::builder().store(store)
    }

    /// Returns a builder, to change the defaults.
    pub fn builder() -> LarderBuilder {
        LarderBuilder::default()
    }

    /// Returns typed access to the same store, for values that aren't responses of routes.
    #[must_use]
    pub fn backend(&self) -> CacheBackend {
        CacheBackend::new(self.clone())
    }

    /// Returns the key of the response to a GET of this URI, on a route of this group.
    ///
    /// # Errors
    ///
    /// Returns an error if the group can't be part of a key.
    pub fn key_for<'a>(&self, group: impl Into<Option<&'a str>>, uri: &Uri) -> Result<CacheKey, KeyError> {
        Ok(KeySpace::new(&self.context.defaults.prefix, group.into())?.key_for(uri))
    }

    /// Evicts one entry, a response or a value. If the store is down, the error is logged, and the store retries the
    /// eviction if it can.
    ///
    /// Continues in the background if this future is dropped.
    pub async fn evict(&self, key: &CacheKey) {
        let (context, key) = (Arc::clone(&self.context), key.clone());
        self.context.to_the_end(async move { context.evict_key(&key).await }).await;
    }

    /// Returns the prefix of all keys without one of their own.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.context.defaults.prefix
    }

    /// Returns the cache's counters and the health of its store. It is cheap enough to call every second, and doesn't call
    /// the store.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.context.telemetry.stats(self.context.store.health())
    }

    /// Waits for running fills and writes, for up to `max_fill`, then closes the store's connections. Call it on shutdown.
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

/// A builder of a [`Larder`].
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
    /// Sets the prefix of every key. `redis:larder:cache` by default.
    ///
    /// # Panics
    ///
    /// Panics if it is empty or contains a brace, a bar, white space or a control character. Use [`KeySpace::new`] to check
    /// a prefix that isn't a literal.
    #[track_caller]
    pub fn prefix(mut self, prefix: &str) -> Self {
        if let Err(error) = KeySpace::new(prefix, None) {
            panic_invalid_config(&error);
        }
        self.defaults.prefix = prefix.into();
        self
    }

    /// Sets the time to live for routes without one. No expiry by default. Methods of a [`CacheBackend`] always take their
    /// own.
    pub fn default_ttl(mut self, ttl: impl Into<Ttl>) -> Self {
        self.defaults.ttl = ttl.into();
        self
    }

    /// Sets the largest body that routes store, in bytes. 10 MiB by default.
    pub const fn max_body(mut self, bytes: u64) -> Self {
        self.defaults.max_body = bytes;
        self
    }

    /// Sets the header field that says HIT, MISS or BYPASS, or `None` for no such field. `X-Redis-Cache` by default.
    pub fn status_header(mut self, name: impl Into<Option<HeaderName>>) -> Self {
        self.defaults.status_header = name.into();
        self
    }

    /// Adds `Cache-Status` (RFC 9211) to responses, with the reason. Off by default.
    pub const fn cache_status(mut self, on: bool) -> Self {
        self.defaults.cache_status = on;
        self
    }

    /// Sets the secret with which principals of private routes are hashed in keys. Use the same secret in every process
    /// that shares the store. It is needed only for principals that can be guessed, such as user ids. Tokens can't be.
    pub fn principal_secret(mut self, secret: &[u8]) -> Self {
        self.defaults.secret = PrincipalSecret::new(secret);
        self
    }

    /// Adds request fields that carry credentials in this service to the usual ones that [the
    /// guide](crate::guide::safety#credentials) lists. Undeclared routes don't cache requests with them, the handlers of
    /// public routes don't see them, and a shared cache treats them as `Authorization` (RFC 9111 §3.5).
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

    /// Sets the time after which a running handler loses its lease, so that its response isn't stored. 60 s by default.
    pub const fn max_fill(mut self, max_fill: Duration) -> Self {
        self.timing.max_fill = max_fill;
        self
    }

    /// Sets the time that a request waits for another request's fill before it runs the handler itself. 10 s by default.
    pub const fn max_wait(mut self, max_wait: Duration) -> Self {
        self.timing.max_wait = max_wait;
        self
    }

    /// Sets the clock that measures ages. The system's clock by default.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Builds a cache on a custom store. Fills are coalesced and fenced inside this process.
    #[must_use]
    pub fn store(self, store: impl CacheStore) -> Larder {
        let clock = Arc::clone(&self.clock);
        self.leased(crate::store::ProcessLocal::new(store, clock))
    }

    /// Builds a cache on Redis with a local tier: up to `bytes` bytes of the values read from Redis are kept in this
    /// process too. The local tier keeps only keys under the cache's own [`prefix`](Self::prefix). A route with another
    /// prefix is always answered from Redis.
    ///
    /// Entries that this process evicts are never read again in it. Entries that another process evicts disappear here when
    /// Redis's invalidation message arrives, usually within a millisecond, and after
    /// [`MAX_STALE`](crate::store::redis::MAX_STALE) if no message can arrive. The local tier needs Redis 6 or newer and a
    /// user with permission to run `CLIENT TRACKING`. Without these, a warning is logged and there is no local tier. See
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

    /// Builds a cache on a store with leases of its own.
    #[must_use]
    pub fn leased(self, store: impl LeaseStore) -> Larder {
        // Two services that share a Redis and a prefix serve each other's responses. Both logs show it.
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

/// The defaults of routes.
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

/// The state that the routes and the backend of one cache share.
pub(crate) struct CacheContext {
    pub(crate) store: MeteredStore,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) single_flight: SingleFlight,
    pub(crate) update_queue: UpdateQueue,
    /// Resources that had variants. A write's answer is no variant of these.
    pub(crate) known_to_vary: RememberedKeys,
    /// Resources whose handlers answered a `Range` with a part or a 416.
    pub(crate) known_to_make_parts: RememberedKeys,
    pub(crate) agreement: Agreement,
    pub(crate) tasks: TaskTracker,
    pub(crate) defaults: Defaults,
    pub(crate) timing: Timing,
    clock: Arc<dyn Clock>,
    /// The second of the last warning about a store failure.
    warned_at: AtomicU64,
}

impl CacheContext {
    pub(crate) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// Returns a random id for a record.
    pub(crate) fn fresh_id(&self) -> u64 {
        fastrand::u64(1..)
    }

    /// Runs work in the background. Without a runtime, for instance while one is being dropped, the work is dropped.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.tasks.spawn_on(work, &runtime);
        }
    }

    pub(crate) async fn set(&self, key: &CacheKey, record: Bytes, ttl: Option<Duration>) -> Result<(), ()> {
        self.store.set(key, record, ttl).await.map_err(|error| self.store_failed("set", key.name(), &error))
    }

    /// Evicts an entry and every variant of it. Returns `false` if the store didn't confirm it.
    pub(crate) async fn evict_key(&self, key: &CacheKey) -> bool {
        let span = spans::evict(key);
        let confirmed = span.around(self.evict_key_within(key)).await;
        span.evicted(confirmed);
        confirmed
    }

    async fn evict_key_within(&self, key: &CacheKey) -> bool {
        // The record is deleted first, so that no request finds its variants afterwards. A copy of the record might lack
        // the latest variants, which would stay in the store as garbage.
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

    /// Runs work to completion, even if its caller is dropped. A panic resumes in the caller.
    pub(crate) async fn to_the_end<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        self.detached(Box::pin(work)).await.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Evicts every entry of a group. Returns `false` if the store didn't confirm it.
    pub(crate) async fn evict_group(&self, space: &KeySpace) -> bool {
        let span = spans::evict_group(space);
        let deleted = span.around(self.store.delete_group(space)).await;
        span.evicted(deleted.is_ok());
        if let Err(error) = &deleted {
            self.store_failed("delete_group", space.head(), error);
        }
        deleted.is_ok()
    }

    /// Adds a variant that was just stored to the record with this id, which bounds the number of variants. If another
    /// request holds the record's lease, the variant stays unlisted.
    ///
    /// Returns [`CommitResult::Revoked`] if that record is gone. The variant was then stored after an eviction of the
    /// resource, and no record refers to it.
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
        // The record is changed under the lease, and only if it is still the same one: an eviction must not be undone.
        // Variants that other requests listed meanwhile stay.
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

    /// Stores a variant, and replaces the record with the id `instead_of` by one that refers to it, if that record still
    /// exists.
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

    /// Returns the record of variants under a key, if there is one.
    async fn variants_of(&self, base: &CacheKey) -> Option<Variants> {
        match Record::decode(&self.store.get(base).await.ok()??) {
            Some(Record::Variants(found)) => Some(found),
            _ => None,
        }
    }

    /// Removes a variant that no record refers to.
    async fn delete_variant(&self, base: &CacheKey, secondary: SecondaryKey) {
        let key = base.variant(secondary);
        if let Err(error) = self.store.delete(&key).await {
            self.store_failed("delete", key.name(), &error);
        }
    }

    /// Waits for another request's fill in this process, for up to `max_wait`.
    pub(crate) async fn follow(&self, follow: Follower) -> Option<FillOutcome> {
        self.follow_for(follow, self.timing.max_wait).await
    }

    /// Waits for another request's fill in this process, for up to `limit`.
    pub(crate) async fn follow_for(&self, follow: Follower, limit: Duration) -> Option<FillOutcome> {
        let started = Instant::now();
        let landing = spans::wait().around(follow.wait(limit)).await;
        self.telemetry.waited(started.elapsed(), !matches!(landing, Some(FillOutcome::Stored(_))));
        landing
    }

    /// Logs a store failure: as a warning at most once a second, otherwise at debug level.
    pub(crate) fn store_failed(&self, operation: &str, key: &str, error: &StoreError) {
        let second = self.now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if self.warned_at.swap(second, Ordering::Relaxed) == second {
            debug!(operation, key, %error, "the cache's store failed");
        } else {
            warn!(operation, key, %error, "the cache's store failed; the handler's answer is delivered all the same");
        }
    }
}

/// Panics because a literal in a route or a builder is invalid.
#[expect(clippy::panic, reason = "a route that can't have keys must not start to serve")]
#[track_caller]
pub(crate) fn panic_invalid_config(error: &dyn fmt::Display) -> ! {
    panic!("{error}")
}
