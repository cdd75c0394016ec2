//! [`CacheContext`]: what the routes, the backend and the shared cache of one [`Larder`](crate::Larder) have in common.

use std::fmt;
use std::future::Future;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::join_all;
use http::HeaderName;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::clock::Clock;
use crate::exchange::remembered::RememberedKeys;
use crate::fill::single_flight::{FillOutcome, Follower, SingleFlight, UpdateQueue};
use crate::key::ignored::pattern_error;
use crate::key::{CacheKey, DEFAULT_PREFIX, KeySpace};
use crate::larder::agreement::Agreement;
use crate::policy::rule::{DEFAULT_MAX_BODY, Principal, PrincipalSecret};
use crate::policy::status_header::DEFAULT_STATUS_HEADER;
use crate::record::Record;
use crate::store::StoreError;
use crate::tag::{EvictionMode, Tagged, Tags, TagsToEvict, stale_since};
use crate::telemetry::{MeteredStore, Telemetry, spans};
use crate::ttl::Ttl;

/// The room in a stored value for the head of a record, in bytes.
const HEAD_ROOM: u64 = 16 * 1024;

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
    pub(crate) ignored_params: Arc<[String]>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            prefix: DEFAULT_PREFIX.into(),
            ttl: Ttl::NO_EXPIRY,
            max_body: DEFAULT_MAX_BODY,
            status_header: Some(DEFAULT_STATUS_HEADER),
            cache_status: false,
            secret: PrincipalSecret::default(),
            credential_fields: Arc::new([]),
            ignored_params: Arc::new([]),
        }
    }
}

/// Returns a list of parameters to ignore with more names, which are literals.
#[track_caller]
pub(crate) fn with_ignored(
    known: &[String],
    names: impl IntoIterator<Item = impl Into<String>>,
) -> Arc<[String]> {
    let mut all = known.to_vec();
    // No closure, because it wouldn't keep the caller's location.
    for name in names {
        let name = name.into();
        if let Some(error) = pattern_error(&name) {
            panic_invalid_config(&error);
        }
        all.push(name);
    }
    all.into()
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
    pub(super) clock: Arc<dyn Clock>,
    /// The second of the last warning about a store failure.
    pub(super) warned_at: AtomicU64,
}

impl CacheContext {
    pub(crate) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// Limits the length of bodies, in bytes, so that a body and its head fit in the store's largest value.
    pub(crate) fn storable_body(&self, max_body: u64) -> u64 {
        let largest = self.store.max_value_bytes();
        max_body.min(largest - HEAD_ROOM.min(largest / 4))
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

    pub(crate) async fn set(
        &self,
        key: &CacheKey,
        record: Bytes,
        ttl: Option<Duration>,
        tagged: Option<&Tagged>,
    ) -> Result<(), ()> {
        let set = self.store.set(key, record, ttl, tagged).await;
        set.map_err(|error| self.store_failed("set", key.name(), &error))
    }

    /// Evicts an entry and every variant of it. Returns `false` if the store didn't confirm it.
    pub(crate) async fn evict_key(&self, key: &CacheKey) -> bool {
        let evicted = self.try_evict_key(key).await;
        if let Err(error) = &evicted {
            self.store_failed("delete", key.name(), error);
        }
        evicted.is_ok()
    }

    /// Evicts an entry and every variant of it.
    pub(crate) async fn try_evict_key(&self, key: &CacheKey) -> Result<(), StoreError> {
        let span = spans::evict(key);
        let evicted = span.around(self.evict_key_within(key)).await;
        span.evicted(evicted.is_ok());
        evicted
    }

    /// Makes an entry stale. Of a resource that varies, every variant is removed: a fill of a variant that is not listed yet would
    /// not be noticed.
    pub(crate) async fn try_evict_key_softly(&self, key: &CacheKey) -> Result<(), StoreError> {
        let span = spans::evict(key);
        let evicted = span.around(self.evict_key_softly_within(key)).await;
        span.evicted(evicted.is_ok());
        evicted
    }

    async fn evict_key_softly_within(&self, key: &CacheKey) -> Result<(), StoreError> {
        self.store.evict_softly(key).await?;
        // The record is read afterwards: from here on, no fill that began before replaces it.
        let varies = match self.store.get_shared(key).await {
            Ok(Some(bytes)) => matches!(record_of(&bytes), Some(Record::Variants(_))),
            Ok(None) => false,
            // It may vary. The store repeats a hard eviction that fails, and hides the entry meanwhile.
            Err(error) => {
                self.store_failed("get", key.name(), &error);
                true
            }
        };
        if varies {
            return self.evict_key_within(key).await;
        }
        self.store.evicted_softly(key);
        Ok(())
    }

    async fn evict_key_within(&self, key: &CacheKey) -> Result<(), StoreError> {
        // The record is deleted first, so that no request finds its variants afterwards. A copy of the record might lack
        // the latest variants, which would stay in the store as garbage.
        let record = self.store.get_shared(key).await;
        let deleted = self.store.delete(key).await.map(drop);
        let Ok(Some(bytes)) = record else { return deleted };
        let Some(Record::Variants(variants)) = record_of(&bytes) else { return deleted };
        for secondary in variants.secondary_keys() {
            let variant = key.variant(secondary);
            if let Err(error) = self.store.delete(&variant).await {
                self.store_failed("delete", variant.name(), &error);
                break;
            }
        }
        deleted
    }

    /// Runs work to completion, even if its caller is dropped. A panic resumes in the caller.
    pub(crate) async fn run_to_completion<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        self.detached(Box::pin(work)).await.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Evicts every entry of a group, or makes it stale.
    pub(crate) async fn try_evict_group(
        &self,
        space: &KeySpace,
        how: EvictionMode,
    ) -> Result<(), StoreError> {
        let span = spans::evict_group(space);
        let evicted = match how {
            EvictionMode::Hard => span.around(self.store.delete_group(space)).await.map(drop),
            EvictionMode::Soft => span.around(self.store.evict_group_softly(space)).await,
        };
        span.evicted(evicted.is_ok());
        evicted
    }

    /// Evicts by tag: every entry of the prefix, which is that of `space`, that carries one of the tags.
    pub(crate) async fn try_evict_tags(
        &self,
        space: &KeySpace,
        tags: &TagsToEvict,
    ) -> Result<(), StoreError> {
        let span = spans::evict_tags();
        let secret = &self.defaults.secret;
        let principals = tags.principals().iter().map(|name| Principal::new(secret, name).tag());
        let principals: Vec<Tags> = principals.collect();
        let sets = tags.sets().iter().chain(&principals);
        let evict = join_all(sets.map(|set| self.store.evict_tags(space, set, tags.how())));
        let evicted = span.around(evict).await.into_iter().collect();
        span.evicted(Result::is_ok(&evicted));
        evicted
    }

    /// Waits for another request's fill in this process, for up to `max_wait`.
    pub(crate) async fn follow(&self, follow: Follower) -> Option<FillOutcome> {
        self.follow_for(follow, self.timing.max_wait).await
    }

    /// Waits for another request's fill in this process, for up to `limit`.
    pub(crate) async fn follow_for(&self, follow: Follower, limit: Duration) -> Option<FillOutcome> {
        let started = Instant::now();
        let outcome = spans::wait().around(follow.wait(limit)).await;
        self.telemetry.waited(started.elapsed(), !matches!(outcome, Some(FillOutcome::Stored(_))));
        outcome
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

/// Decodes a record, also that of an entry that was evicted softly.
pub(crate) fn record_of(bytes: &Bytes) -> Option<Record> {
    match stale_since(bytes) {
        Some((_, value)) => Record::decode(&value),
        None => Record::decode(bytes),
    }
}

/// Panics because a literal in a route or a builder is invalid.
#[expect(clippy::panic, reason = "a route that can't have keys must not start to serve")]
#[track_caller]
pub(crate) fn panic_invalid_config(error: &dyn fmt::Display) -> ! {
    panic!("{error}")
}
