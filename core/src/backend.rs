//! [`CacheBackend`]: typed values in the same store, for what routes can't express.

pub(crate) mod coder;

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use crate::backend::coder::{Coder, CoderError, Json};
use crate::fill::lease::{Begun, Started};
use crate::fill::reentry;
use crate::fill::single_flight::{FillOutcome, Role};
use crate::key::{CacheKey, KeyError, KeySpace};
use crate::larder::{CacheContext, Larder, panic_invalid_config};
use crate::policy::CommitResult;
use crate::provenance::Provenance;
use crate::record::{decode_value, encode_value};
use crate::store::{Abandon, Intent, StoreError};
use crate::telemetry::spans;
use crate::ttl::Ttl;

/// How long `update` tries against others that write the same key.
const UPDATE_PATIENCE: Duration = Duration::from_secs(10);

/// Typed access to a cache's store.
///
/// Every method comes twice. The plain one never fails: a store that is down reads as a miss and is logged. The one
/// with `try_` tells a miss from a failure.
///
/// What writes or evicts goes on in the background if its future is dropped, and [`Larder::close`] waits for it.
///
/// ```
/// # #[cfg(feature = "memory")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use std::time::Duration;
/// use larder_core::Larder;
///
/// let items = Larder::memory().backend().group("items");
/// items.set("item:2", &"pear", Duration::from_secs(300)).await;
/// assert_eq!(items.get::<String>("item:2").await.as_deref(), Some("pear"));
/// assert_eq!(items.get_or("item:3", "none".to_owned()).await, "none");
/// assert!(items.delete("item:2").await);
/// # }
/// # #[cfg(not(feature = "memory"))] fn main() {}
/// ```
#[derive(Clone)]
pub struct CacheBackend<C = Json> {
    larder: Larder,
    space: KeySpace,
    coder: C,
}

impl CacheBackend {
    pub(crate) fn new(larder: Larder) -> Self {
        let space = KeySpace::new(larder.prefix(), None).unwrap_or_else(|error| panic_invalid_config(&error));
        Self { larder, space, coder: Json }
    }
}

impl<C: Coder> CacheBackend<C> {
    /// The same backend in an eviction group.
    ///
    /// # Panics
    ///
    /// When the group is empty or holds a brace, a bar, white space or a control character. For groups that aren't
    /// literals, see [`try_group`](Self::try_group).
    #[must_use]
    #[track_caller]
    pub fn group(&self, group: &str) -> Self {
        // In a closure, the panic would name this line instead of the caller's.
        match self.try_group(group) {
            Ok(backend) => backend,
            Err(error) => panic_invalid_config(&error),
        }
    }

    /// The same backend in an eviction group.
    ///
    /// # Errors
    ///
    /// When the group can't be part of a key.
    pub fn try_group(&self, group: &str) -> Result<Self, KeyError> {
        Ok(Self { space: KeySpace::new(self.space.prefix(), Some(group))?, ..self.clone() })
    }

    /// The same backend with another coder. Values are marked with the coder that wrote them; another one's are a miss.
    #[must_use]
    pub fn coder<D: Coder>(&self, coder: D) -> CacheBackend<D> {
        CacheBackend { larder: self.larder.clone(), space: self.space.clone(), coder }
    }

    /// The value, or `None` if there is none, it is no `T`, or the store failed.
    pub async fn get<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        self.or_log("get", key, None, self.try_get(key).await)
    }

    /// The value, or `None` if there is none.
    ///
    /// # Errors
    ///
    /// When the store failed, or what is there is no `T`.
    pub async fn try_get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, CacheError> {
        let key = self.space.key(key);
        let span = spans::backend::get(&key);
        let value = async {
            let bytes = self.context().store.get(&key).await?;
            bytes.map_or(Ok(None), |bytes| self.decode(&bytes))
        };
        let value = span.around(value).await;
        span.result(["hit", "miss"], value.as_ref().map(Option::is_some));
        value
    }

    /// The value, or this one instead.
    pub async fn get_or<T: DeserializeOwned>(&self, key: &str, default: T) -> T {
        self.get(key).await.unwrap_or(default)
    }

    /// The value, or else what `compute` gives, which is then stored. Callers in all processes that share the store
    /// wait for the one that computes, for [`max_wait`](crate::LarderBuilder::max_wait) at most, and then compute for themselves.
    ///
    /// An error of `compute` is its caller's alone. Those who waited for it in this process compute at once and side by side, as
    /// they do if the key is evicted meanwhile, and what one of them computed is stored. If the store is down, every caller
    /// computes.
    ///
    /// # Errors
    ///
    /// Only those of `compute`.
    pub async fn get_or_set<T, E, F>(
        &self,
        key: &str,
        ttl: impl Into<Ttl>,
        compute: impl FnOnce() -> F,
    ) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        F: Future<Output = Result<T, E>>,
    {
        let (name, ttl) = (self.space.key(key), self.lifetime(ttl));
        let span = spans::backend::get_or_set(&name, ttl);
        let mut computed = false;
        let compute = || {
            computed = true;
            compute()
        };
        let value = span.around(self.get_or_set_within(&name, ttl, compute)).await;
        span.result(["hit", "miss"], value.as_ref().map(|_| !computed));
        value
    }

    async fn get_or_set_within<T, E, F>(
        &self,
        name: &CacheKey,
        ttl: Option<Duration>,
        compute: impl FnOnce() -> F,
    ) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        F: Future<Output = Result<T, E>>,
    {
        // The handler, or the computation, that calls this is what would be waited for.
        if reentry::is_running_here(self.context(), name) {
            return compute().await;
        }
        let until = Instant::now() + self.context().timing.max_wait;
        let left = || until.saturating_duration_since(Instant::now());
        // One computation of another caller that comes to nothing is waited for, not each in turn.
        let mut waits = true;
        loop {
            let intent = match self.context().store.get(name).await {
                Ok(Some(bytes)) => match self.decode(&bytes) {
                    Ok(Some(value)) => return Ok(value),
                    // No such value: it is replaced.
                    _ => Intent::Refresh,
                },
                Ok(None) => Intent::Fill,
                Err(error) => {
                    self.context().store_failed("get", name.name(), &error);
                    return compute().await;
                }
            };
            let mut lead = match self.context().single_flight.join(name, Provenance::default()) {
                Role::Leader(lead) => lead,
                Role::Apart => return compute().await,
                Role::Follower(_) if !waits => return compute().await,
                Role::Follower(follow) => {
                    match self.context().follow_for(follow, left()).await {
                        Some(FillOutcome::Stored(bytes)) => match self.decode(&bytes) {
                            Ok(Some(value)) => return Ok(value),
                            _ => return compute().await,
                        },
                        Some(FillOutcome::Retry) => continue,
                        // All of them compute at once, and one of them stores what it computed.
                        Some(FillOutcome::HandlerFailed) => {
                            waits = false;
                            continue;
                        }
                        Some(FillOutcome::Uncacheable) | None => return compute().await,
                    }
                }
            };
            let is_value = |bytes: &Bytes| self.decode::<T>(bytes).is_ok_and(|value| value.is_some());
            let awaited = waits.then_some(&is_value as &(dyn Fn(&Bytes) -> bool + Send + Sync));
            let held = match self.context().start_within(name, intent, awaited, left()).await {
                Started::LeaseGuard(held) => held,
                Started::Found(bytes) => {
                    let value = self.decode(&bytes);
                    // A caller that joined meanwhile may have come after an eviction of this, and looks for itself.
                    lead.complete(FillOutcome::Retry);
                    match value {
                        Ok(Some(value)) => return Ok(value),
                        _ => return compute().await,
                    }
                }
                Started::Without(_) => {
                    lead.complete(FillOutcome::Uncacheable);
                    return compute().await;
                }
            };
            // If this future is dropped here, the lead and the lease are: those who wait look again, and one of them leads.
            let computing = pin!(compute());
            let marked = pin!(reentry::compute(self.context(), name, computing));
            let value = match held.renewing(marked).await {
                Ok(value) => value,
                Err(error) => {
                    held.fail(lead);
                    return Err(error);
                }
            };
            match self.encode(&value) {
                Ok(record) => {
                    lead.close();
                    let storing = async move {
                        let stored = held.commit(record.clone(), ttl).await;
                        lead.complete(match stored {
                            CommitResult::Stored => FillOutcome::Stored(record),
                            CommitResult::Revoked => FillOutcome::HandlerFailed,
                            CommitResult::Failed => FillOutcome::Uncacheable,
                        });
                    };
                    self.context().to_the_end(storing).await;
                }
                Err(error) => {
                    warn!(key = name.name(), %error, "a value can't be stored");
                    held.abandon(Abandon::Failed);
                    lead.complete(FillOutcome::Uncacheable);
                }
            }
            return Ok(value);
        }
    }

    /// Stores a value, whatever was there. True if it is stored.
    pub async fn set<T: Serialize + ?Sized>(&self, key: &str, value: &T, ttl: impl Into<Ttl>) -> bool {
        let result = self.try_set(key, value, ttl).await;
        self.or_log("set", key, false, result.map(|()| true))
    }

    /// Stores a value, whatever was there.
    ///
    /// # Errors
    ///
    /// When the store failed, or the value can't be encoded.
    pub async fn try_set<T: Serialize + ?Sized>(
        &self,
        key: &str,
        value: &T,
        ttl: impl Into<Ttl>,
    ) -> Result<(), CacheError> {
        let (key, ttl) = (self.space.key(key), self.lifetime(ttl));
        let span = spans::backend::set(&key, ttl);
        let set = async {
            let (context, record) = (Arc::clone(self.context()), self.encode(value)?);
            Ok(self.context().to_the_end(async move { context.store.set(&key, record, ttl).await }).await?)
        };
        let set = span.around(set).await;
        span.result(["stored", "stored"], set.as_ref().map(|()| true));
        set
    }

    /// Changes a value, or makes one where there is none, and answers the new one. Atomic, also between processes:
    /// of any number of updates none is lost. `change` may run more than once. Updates of one key queue in this process; other
    /// keys don't wait for them.
    ///
    /// Dropped before it writes, it changes nothing. Once it writes, it goes on in the background.
    ///
    /// A failover of Redis may take back an update that was confirmed, because replicas lag behind. The value before it doesn't
    /// come back: the key becomes absent, and `change` gets `None`. So keep only what can be made anew, or pay for
    /// [`RedisOptions::wait_for_replicas`](crate::store::redis::RedisOptions::wait_for_replicas): an update is then confirmed
    /// only when so many replicas have it, and one that is not is an error.
    ///
    /// # Errors
    ///
    /// When the store failed, what is there is no `T`, or others write the key without end. After a
    /// [`StoreError::Timeout`] the change may have been made all the same.
    pub async fn update<T: Serialize + DeserializeOwned>(
        &self,
        key: &str,
        ttl: impl Into<Ttl>,
        change: impl FnMut(Option<T>) -> T,
    ) -> Result<T, CacheError> {
        let name = self.space.key(key);
        let lifetime = self.lifetime(ttl);
        let until = Instant::now() + UPDATE_PATIENCE;
        let attempt = async {
            let place = self.context().update_queue.join(&name);
            let Ok(_turn) = timeout_at(until, place.turn()).await else { return Err(CacheError::Contended) };
            self.update_queued(&name, lifetime, until, change).await
        };
        let span = spans::backend::update(&name, lifetime);
        let updated = span.around(attempt).await;
        span.result(["stored", "stored"], updated.as_ref().map(|_| true));
        updated
    }

    async fn update_queued<T: Serialize + DeserializeOwned>(
        &self,
        key: &CacheKey,
        ttl: Option<Duration>,
        until: Instant,
        mut change: impl FnMut(Option<T>) -> T,
    ) -> Result<T, CacheError> {
        let mut pause = Duration::from_millis(1);
        loop {
            // The lease keeps every other update away until it is committed, and a `set` or an eviction revokes it. An
            // error gives it back.
            let begin = async {
                match self.context().begin(key, Intent::Refresh).await? {
                    Begun::LeaseGuard(held) => Ok(Some((held, self.read_again_if_slow(key).await?))),
                    Begun::Found(_) | Begun::Filling | Begun::Busy => Ok::<_, CacheError>(None),
                }
            };
            if let Some((held, old)) = timeout_at(until, begin).await.map_err(|_| CacheError::Contended)?? {
                let new = change(old);
                let record = self.encode(&new)?;
                // No deadline cuts this short: whether the change was made would be unknown.
                if self.context().to_the_end(async move { held.try_commit(record, ttl).await }).await? {
                    return Ok(new);
                }
            }
            let changed = timeout_at(until, self.context().store.changed(key, pause)).await;
            changed.map_err(|_| CacheError::Contended)?;
            pause = (pause * 2).min(Duration::from_millis(16));
        }
    }

    /// The value to be changed. The deadline of a read is made for answers that can do without; this one can't.
    async fn read_again_if_slow<T: DeserializeOwned>(&self, key: &CacheKey) -> Result<Option<T>, CacheError> {
        let store = &self.context().store;
        let mut read = store.get(key).await;
        for _ in 0..3 {
            if !matches!(read, Err(StoreError::Timeout(_))) {
                break;
            }
            read = store.get(key).await;
        }
        read?.map_or(Ok(None), |bytes| self.decode(&bytes))
    }

    /// Removes a value. True if there was one.
    pub async fn delete(&self, key: &str) -> bool {
        self.or_log("delete", key, false, self.try_delete(key).await)
    }

    /// Removes a value, or the response of a route under the same key. True if there was one.
    ///
    /// # Errors
    ///
    /// When the store failed. It may be removed all the same.
    pub async fn try_delete(&self, key: &str) -> Result<bool, CacheError> {
        let key = self.space.key(key);
        let span = spans::backend::delete(&key);
        let context = Arc::clone(self.context());
        let delete = self.context().to_the_end(async move { context.store.delete(&key).await });
        let deleted = span.around(delete).await;
        span.result(["deleted", "absent"], deleted.as_ref().copied());
        Ok(deleted?)
    }

    /// Whether there is a value, without reading it. False if the store failed.
    pub async fn has(&self, key: &str) -> bool {
        self.or_log("has", key, false, self.try_has(key).await)
    }

    /// Whether there is a value, or a route's response under the same key, without reading it.
    ///
    /// # Errors
    ///
    /// When the store failed.
    pub async fn try_has(&self, key: &str) -> Result<bool, CacheError> {
        let key = self.space.key(key);
        let span = spans::backend::has(&key);
        let has = span.around(self.context().store.has(&key)).await;
        span.result(["hit", "miss"], has.as_ref().copied());
        Ok(has?)
    }

    /// Removes every value and response of the group, and answers how many there were. Without a
    /// [`group`](Self::group), that is *everything* under the prefix, in every group.
    pub async fn delete_group(&self) -> u64 {
        self.or_log("delete_group", "", 0, self.try_delete_group().await)
    }

    /// Removes every value and response of the group, and answers how many there were. Without a
    /// [`group`](Self::group), that is *everything* under the prefix, in every group.
    ///
    /// # Errors
    ///
    /// When the store failed. Some or all of it may be removed all the same.
    pub async fn try_delete_group(&self) -> Result<u64, CacheError> {
        if self.space.group().is_none() {
            warn!(
                prefix = self.space.prefix(),
                "delete_group without a group removes everything under the prefix"
            );
        }
        let span = spans::backend::delete_group(&self.space);
        let (context, space) = (Arc::clone(self.context()), self.space.clone());
        let delete = self.context().to_the_end(async move { context.store.delete_group(&space).await });
        let deleted = span.around(delete).await;
        span.result(["deleted", "absent"], deleted.as_ref().map(|count| *count > 0));
        Ok(deleted?)
    }

    /// The key as it stands in the store.
    #[must_use]
    pub fn key(&self, key: &str) -> CacheKey {
        self.space.key(key)
    }

    fn context(&self) -> &Arc<CacheContext> {
        &self.larder.context
    }

    fn lifetime(&self, ttl: impl Into<Ttl>) -> Option<Duration> {
        ttl.into().duration()
    }

    fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Bytes, CacheError> {
        Ok(encode_value(self.coder.id(), &self.coder.encode(value)?))
    }

    /// `None` for what no backend wrote, or one with another coder.
    fn decode<T: DeserializeOwned>(&self, bytes: &Bytes) -> Result<Option<T>, CacheError> {
        match decode_value(self.coder.id(), bytes) {
            Some(value) => Ok(Some(self.coder.decode(&value)?)),
            None => Ok(None),
        }
    }

    fn or_log<T>(&self, operation: &str, key: &str, otherwise: T, result: Result<T, CacheError>) -> T {
        result.unwrap_or_else(|error| {
            match error {
                CacheError::Store(error) => self.context().store_failed(operation, key, &error),
                error => warn!(operation, key, %error, "a cached value could not be used"),
            }
            otherwise
        })
    }
}

impl<C: fmt::Debug> fmt::Debug for CacheBackend<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheBackend")
            .field("space", &self.space)
            .field("coder", &self.coder)
            .finish_non_exhaustive()
    }
}

/// Why a backend could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The value can't be encoded, or what is stored is no such value.
    #[error(transparent)]
    Coder(#[from] CoderError),
    /// Others write the key all the time, or the store doesn't keep values as large as this one.
    #[error(
        "the value could not be updated: others change it all the time, or it is too large for the store"
    )]
    Contended,
}
