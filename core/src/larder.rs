//! [`Larder`]: a cache, made of a store and the defaults of its routes.

mod agreement;
pub(crate) mod context;
pub mod env;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::{HeaderName, Uri};
use tokio_util::task::TaskTracker;
use tracing::warn;

use self::agreement::Agreement;
use self::context::{CacheContext, Defaults, Timing, panic_invalid_config, with_ignored};

use crate::backend::{CacheBackend, Eviction};
use crate::clock::{Clock, SystemClock};
use crate::exchange::remembered::RememberedKeys;
use crate::fill::background::Target;
use crate::fill::single_flight::{SingleFlight, UpdateQueue};
use crate::key::{CacheKey, KeyError, KeySpace, Params};
use crate::policy::rule::PrincipalSecret;
use crate::stats::Stats;
use crate::store::{CacheStore, LeaseStore};
use crate::tag::TagsToEvict;
use crate::telemetry::{MeteredStore, Telemetry};
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
        Self::builder().store(crate::store::MemoryStore::new()).build()
    }

    /// Creates a cache on a custom store, in a [`ProcessLocal`](crate::ProcessLocal): fills are coalesced and fenced inside this
    /// process. For a store that fences between processes, see [`LarderBuilder::store`].
    #[must_use]
    pub fn new(store: impl CacheStore) -> Self {
        Self::builder().store(crate::store::ProcessLocal::new(store)).build()
    }

    /// Returns a builder, to change the defaults.
    pub fn builder() -> LarderBuilder {
        LarderBuilder::default()
    }

    /// Returns typed access to the same store, for values that aren't responses of routes.
    #[must_use]
    pub fn backend(&self) -> CacheBackend {
        CacheBackend::new(Arc::clone(&self.context))
    }

    /// Returns the key of the response to a GET of this URI, on a route of this group. A route's own `query_params`,
    /// `ignore_query_params`, `vary_by_host`, audience and key builder are unknown here.
    ///
    /// # Errors
    ///
    /// Returns an error if the group can't be part of a key.
    pub fn key_for<'a>(&self, group: impl Into<Option<&'a str>>, uri: &Uri) -> Result<CacheKey, KeyError> {
        let defaults = &self.context.defaults;
        let params = Params::AllBut(&defaults.ignored_params);
        Ok(KeySpace::new(&defaults.prefix, group.into())?.key_for_params(uri, params))
    }

    /// Evicts one entry, a response with all its variants or a value. If the store is down, the error is logged, and the
    /// store retries the eviction if it can.
    pub fn evict(&self, key: &CacheKey) -> Eviction {
        self.eviction(Target::Key(key.clone()))
    }

    /// Evicts every entry of a group, under the cache's prefix.
    ///
    /// # Panics
    ///
    /// Panics if the group can't be part of a key. For groups that aren't literals, see [`try_evict_group`](Self::try_evict_group).
    #[track_caller]
    pub fn evict_group(&self, group: &str) -> Eviction {
        match self.try_evict_group(group) {
            Ok(eviction) => eviction,
            Err(error) => panic_invalid_config(&error),
        }
    }

    /// Evicts every entry of a group, under the cache's prefix.
    ///
    /// # Errors
    ///
    /// Returns an error if the group can't be part of a key.
    pub fn try_evict_group(&self, group: &str) -> Result<Eviction, KeyError> {
        Ok(self.eviction(Target::Group(KeySpace::new(self.prefix(), Some(group))?)))
    }

    /// Evicts every entry that carries this tag, whatever its route, key, group or principal is: responses and values.
    ///
    /// ```
    /// # #[cfg(feature = "memory")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use larder_core::Larder;
    ///
    /// let larder = Larder::memory();
    /// let names = larder.backend().group("names").tagged(["product:7"]);
    /// names.set("7", &"tea", 300).await;
    ///
    /// let is_confirmed = larder.evict_tag("product:7").await;
    /// assert!(is_confirmed);
    /// assert_eq!(names.get::<String>("7").await, None);
    /// # }
    /// # #[cfg(not(feature = "memory"))] fn main() {}
    /// ```
    pub fn evict_tag(&self, tag: &str) -> Eviction {
        self.evict_tags([tag])
    }

    /// Evicts every entry that carries at least one of these tags, as [`evict_tag`](Self::evict_tag) does.
    pub fn evict_tags<T: AsRef<str>>(&self, tags: impl IntoIterator<Item = T>) -> Eviction {
        self.backend().evict_tags(tags)
    }

    /// Evicts the responses of one principal, on the routes with `.evict_by_principal()`: after a log-out, a ban, or a change of
    /// roles.
    ///
    /// The principal is what the route's `.private_by(..)` returns, or the Bearer token of a `.private()` route.
    pub fn evict_principal(&self, principal: &str) -> Eviction {
        let tags = TagsToEvict::default().and_principal(principal);
        self.eviction(Target::Tags(self.space(), Arc::new(tags)))
    }

    /// Evicts the responses of one path, with all its queries, variants, hosts and principals, on the routes with
    /// `.evict_by_path()`. `/products` evicts `/products?page=3`, and not `/products/7`.
    ///
    /// The path may be percent-encoded in any way, and a query is ignored.
    pub fn evict_path(&self, path: &str) -> Eviction {
        let tags = TagsToEvict::default().and_path(path);
        self.eviction(Target::Tags(self.space(), Arc::new(tags)))
    }

    fn eviction(&self, target: Target) -> Eviction {
        Eviction::new(Arc::clone(&self.context), target)
    }

    fn space(&self) -> KeySpace {
        self.backend().space().clone()
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

/// A builder of a [`Larder`]. [`store`](Self::store) names the store, and [`build`](Self::build) ends it.
///
/// ```
/// # #[cfg(feature = "memory")] {
/// use larder_core::{Larder, store::MemoryStore};
///
/// let larder = Larder::builder()
///     .prefix("shop:cache")
///     .default_ttl(300)
///     .store(MemoryStore::with_capacity(64 * 1024 * 1024))
///     .build();
/// # }
/// ```
///
/// Without a store there is nothing to build:
///
/// ```compile_fail,E0599
/// # use larder_core::Larder;
/// let larder = Larder::builder().build();
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct LarderBuilder<S = NoStore> {
    defaults: Defaults,
    timing: Timing,
    clock: Option<Arc<dyn Clock>>,
    store: S,
}

/// The store of a [`LarderBuilder`] that has none yet.
#[derive(Clone, Copy, Debug)]
pub struct NoStore;

/// The store of a [`LarderBuilder`] after [`redis_with_local`](LarderBuilder::redis_with_local). It is opened when the prefix is
/// known.
#[cfg(feature = "redis")]
#[derive(Clone, Debug)]
pub struct RedisWithLocal {
    options: crate::store::redis::RedisOptions,
    bytes: u64,
}

impl Default for LarderBuilder {
    fn default() -> Self {
        Self { defaults: Defaults::default(), timing: Timing::default(), clock: None, store: NoStore }
    }
}

impl<S> LarderBuilder<S> {
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
    ///
    /// The number 0 means no expiry, as `.no_expiry()` does on a route. A `Duration` of zero or a negative number means that
    /// routes without a time to live store nothing ([`Reason::Lifetime`](crate::Reason::Lifetime)).
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

    /// Leaves these query parameters out of the keys of all routes and of [`Larder::key_for`], so that they neither fill the cache
    /// nor lower its hit rate. A shared cache leaves them out too. In a name, one `*` stands for any characters.
    ///
    /// Handlers still see the parameters, so that a handler whose response depends on one would let a client choose the
    /// response of all others. A route's own [`ignore_query_params`](crate::route::RouteOptions::ignore_query_params) adds
    /// to the list. A route with `query_params` has its own list of those that count. Every process that shares the store
    /// needs the same list: otherwise one evicts other keys than another fills. A parameter with a `;` in it counts always,
    /// because some handlers split there.
    ///
    /// # Panics
    ///
    /// Panics if a name is empty or has more than one `*`.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use larder_core::key::TRACKING_PARAMS;
    /// use larder_core::{Larder, MemoryStore};
    ///
    /// let larder = Larder::builder().ignore_query_params(TRACKING_PARAMS).store(MemoryStore::new()).build();
    /// let key = larder.key_for(None, &"/products?utm_source=mail&page=2".parse().unwrap()).unwrap();
    /// assert_eq!(key.suffix(), "products:page=2");
    /// # }
    /// ```
    #[track_caller]
    pub fn ignore_query_params(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.defaults.ignored_params = with_ignored(&self.defaults.ignored_params, names);
        self
    }

    /// Sets the duration of leases. 5 s by default. Less than 100 ms, such as zero, counts as 100 ms.
    ///
    /// A fill or a write takes a lease on its entry and renews it while the handler runs. If the process dies, others wait
    /// this long before they run the handler.
    pub fn lease_ttl(mut self, lease_ttl: Duration) -> Self {
        self.timing.lease_ttl = lease_ttl.max(Duration::from_millis(100));
        self
    }

    /// Sets the time after which a running handler loses its lease, so that its response isn't stored. 60 s by default.
    ///
    /// Work in the background ends after this time: the refresh of a stale response, and a handler whose client has
    /// disconnected. [`close`](Larder::close) waits no longer than this.
    ///
    /// With zero, leases aren't renewed, so that a response is stored only if it is complete within
    /// [`lease_ttl`](Self::lease_ttl). Work in the background ends, and `close` returns, within a millisecond.
    pub const fn max_fill(mut self, max_fill: Duration) -> Self {
        self.timing.max_fill = max_fill;
        self
    }

    /// Sets the time that a request waits for another request's fill before it runs the handler itself. 10 s by default.
    ///
    /// With zero, no request waits longer than a millisecond: while one fills the entry, each of the others runs the handler,
    /// and its response isn't stored ([`Reason::Waited`](crate::Reason::Waited)).
    pub const fn max_wait(mut self, max_wait: Duration) -> Self {
        self.timing.max_wait = max_wait;
        self
    }

    /// Sets the clock that measures ages and times to live. The system's clock by default.
    ///
    /// The store goes by it too ([`CacheStore::set_clock`]), unless the store measures time in another process, as Redis does.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Sets the store: [`MemoryStore`](crate::MemoryStore), [`RedisStore`](crate::RedisStore), or a custom [`LeaseStore`]. Wrap a
    /// store without leases in [`ProcessLocal`](crate::ProcessLocal), which coalesces and fences fills inside this process.
    pub fn store<N: LeaseStore>(self, store: N) -> LarderBuilder<N> {
        self.with(store)
    }

    /// Sets the store: Redis with a local tier: up to `bytes` bytes of the values read from Redis are kept in this
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
    /// let larder = Larder::builder().redis_with_local(options, 64 * 1024 * 1024).build();
    /// # Ok::<(), larder_core::RedisUrlError>(())
    /// ```
    #[cfg(feature = "redis")]
    pub fn redis_with_local(
        self,
        options: crate::store::redis::RedisOptions,
        bytes: u64,
    ) -> LarderBuilder<RedisWithLocal> {
        self.with(RedisWithLocal { options, bytes })
    }

    fn with<N>(self, store: N) -> LarderBuilder<N> {
        LarderBuilder { defaults: self.defaults, timing: self.timing, clock: self.clock, store }
    }
}

#[cfg(feature = "redis")]
impl LarderBuilder<RedisWithLocal> {
    /// Builds the cache.
    #[must_use]
    pub fn build(self) -> Larder {
        let RedisWithLocal { options, bytes } = self.store.clone();
        let store = crate::store::redis::RedisStore::new(options).with_local(&self.defaults.prefix, bytes);
        self.with(store).build()
    }
}

impl<S: LeaseStore> LarderBuilder<S> {
    /// Builds the cache.
    #[must_use]
    pub fn build(mut self) -> Larder {
        let store = &mut self.store;
        if let Some(clock) = &self.clock {
            store.set_clock(clock);
        }
        // Two services that share a Redis and a prefix serve each other's responses. Both logs show it.
        tracing::info!(prefix = &*self.defaults.prefix, store = store.health().store, "the cache is set up");
        let telemetry = Arc::new(Telemetry::default());
        Larder {
            context: Arc::new(CacheContext {
                store: MeteredStore::new(Box::new(self.store), Arc::clone(&telemetry)),
                telemetry,
                single_flight: SingleFlight::new(),
                update_queue: UpdateQueue::new(),
                known_to_vary: RememberedKeys::default(),
                known_to_make_parts: RememberedKeys::default(),
                agreement: Agreement::default(),
                tasks: TaskTracker::new(),
                defaults: self.defaults,
                timing: self.timing,
                clock: self.clock.unwrap_or_else(|| Arc::new(SystemClock)),
                warned_at: AtomicU64::new(0),
            }),
        }
    }
}
