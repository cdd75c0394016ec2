//! [`CacheBackend`]: typed values in the cache's store.

pub(crate) mod coder;
mod eviction;

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

pub use eviction::Eviction;

use crate::backend::coder::{Coder, CoderError, Json};
use crate::fill::background::Target;
use crate::fill::lease::{FIRST_PAUSE, next_pause};
use crate::fill::reentry;
use crate::fill::single_flight::{FillOutcome, Role};
use crate::key::{CacheKey, KeyError, KeySpace};
use crate::larder::context::{CacheContext, panic_invalid_config};

use crate::policy::CommitResult;
use crate::provenance::Provenance;
use crate::record::{decode_value, encode_value};
use crate::store::{Abandon, Acquired, Intent, StoreError};
use crate::tag::{TagError, Tagged, Tags, TagsToEvict};
use crate::telemetry::spans;
use crate::ttl::Ttl;

/// Longest time that `update` competes with other writers of the same key.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(10);

/// Typed access to a cache's store.
///
/// Every method comes in two forms. The plain form never fails: if the store is down, it logs the error and reports a miss.
/// The `try_` form returns the error.
///
/// Methods that write or evict continue in the background if their future is dropped.
/// [`Larder::close`](crate::Larder::close) waits for them.
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
    context: Arc<CacheContext>,
    space: KeySpace,
    tags: Tags,
    coder: C,
}

impl CacheBackend {
    pub(crate) fn new(context: Arc<CacheContext>) -> Self {
        let space = KeySpace::new(&context.defaults.prefix, None)
            .unwrap_or_else(|error| panic_invalid_config(&error));
        Self { context, space, tags: Tags::default(), coder: Json }
    }
}

impl<C: Coder> CacheBackend<C> {
    /// Returns this backend with an eviction group.
    ///
    /// # Panics
    ///
    /// Panics if the group is empty or contains a brace, a bar, white space or a control character. For groups that aren't
    /// literals, see [`try_group`](Self::try_group).
    #[must_use]
    #[track_caller]
    pub fn group(&self, group: &str) -> Self {
        // A closure would make the panic report this line instead of the caller's.
        match self.try_group(group) {
            Ok(backend) => backend,
            Err(error) => panic_invalid_config(&error),
        }
    }

    /// Returns this backend with an eviction group.
    ///
    /// # Errors
    ///
    /// Returns an error if the group can't be part of a key.
    pub fn try_group(&self, group: &str) -> Result<Self, KeyError> {
        Ok(Self { space: KeySpace::new(self.space.prefix(), Some(group))?, ..self.clone() })
    }

    /// Returns this backend with another coder. Each value is marked with the coder that wrote it. A value of another coder
    /// is a miss.
    #[must_use]
    pub fn coder<D: Coder>(&self, coder: D) -> CacheBackend<D> {
        CacheBackend {
            context: Arc::clone(&self.context),
            space: self.space.clone(),
            tags: self.tags.clone(),
            coder,
        }
    }

    /// Returns this backend with tags for the values that it stores, in addition to those that it has. An eviction of any of the
    /// tags evicts the value.
    ///
    /// [`get_or_set`](Self::get_or_set) and [`update`](Self::update) store nothing if a tag was evicted since they began.
    /// [`set`](Self::set) can't know when its value was made, so an eviction before the call doesn't count.
    ///
    /// ```
    /// # #[cfg(feature = "memory")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use larder_core::Larder;
    ///
    /// let larder = Larder::memory();
    /// let prices = larder.backend().group("prices");
    /// let price = || async { Ok::<_, std::io::Error>(700) };
    /// prices.tagged(["product:7", "shop:3"]).get_or_set("7:EUR", 300, price).await.unwrap();
    ///
    /// larder.evict_tag("shop:3").await;
    /// assert!(!prices.has("7:EUR").await);
    /// # }
    /// # #[cfg(not(feature = "memory"))] fn main() {}
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if a tag is invalid, or if there are too many. For tags that aren't literals, see
    /// [`try_tagged`](Self::try_tagged).
    #[must_use]
    #[track_caller]
    pub fn tagged<T: AsRef<str>>(&self, tags: impl IntoIterator<Item = T>) -> Self {
        // A closure would make the panic report this line instead of the caller's.
        match self.try_tagged(tags) {
            Ok(backend) => backend,
            Err(error) => panic_invalid_config(&error),
        }
    }

    /// Returns this backend with tags for the values that it stores, as [`tagged`](Self::tagged) does.
    ///
    /// # Errors
    ///
    /// Returns an error if a value can't have these tags.
    pub fn try_tagged<T: AsRef<str>>(&self, tags: impl IntoIterator<Item = T>) -> Result<Self, TagError> {
        Ok(Self { tags: self.tags.clone().union(Tags::new(tags)?)?, ..self.clone() })
    }

    /// Evicts a value, or a route's response under the same key, with all its variants. Returns whether the store confirmed
    /// the eviction, where [`delete`](Self::delete) returns whether a value existed. The eviction can be
    /// [soft](Eviction::soft).
    pub fn evict(&self, key: &str) -> Eviction {
        Eviction::new(Arc::clone(&self.context), Target::Key(self.space.key(key)))
    }

    /// Evicts every value and response of the group, or of the whole prefix without a [`group`](Self::group).
    /// Returns whether the store confirmed the eviction, where [`delete_group`](Self::delete_group) returns the number of
    /// entries. The eviction can be [soft](Eviction::soft).
    pub fn evict_group(&self) -> Eviction {
        Eviction::new(Arc::clone(&self.context), Target::Group(self.space.clone()))
    }

    /// Evicts every entry of the prefix that carries this tag, in any group: responses and values.
    pub fn evict_tag(&self, tag: &str) -> Eviction {
        self.evict_tags([tag])
    }

    /// Evicts every entry of the prefix that carries at least one of these tags, in any group: responses and values.
    pub fn evict_tags<T: AsRef<str>>(&self, tags: impl IntoIterator<Item = T>) -> Eviction {
        let tags = Arc::new(TagsToEvict::of(tags));
        Eviction::new(Arc::clone(&self.context), Target::Tags(self.space.clone(), tags))
    }

    /// Returns the value. Returns `None` if there is no value, if it can't be decoded as a `T`, or if the store failed.
    pub async fn get<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        self.or_log("get", key, None, self.try_get(key).await)
    }

    /// Returns the value, or `None` if there is none.
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed, or if the stored value can't be decoded as a `T`.
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

    /// Returns the value, or `default` if there is none.
    pub async fn get_or<T: DeserializeOwned>(&self, key: &str, default: T) -> T {
        self.get(key).await.unwrap_or(default)
    }

    /// Returns the value, or computes and stores it.
    ///
    /// Callers in all processes that share the store wait for one computation, for up to
    /// [`max_wait`](crate::LarderBuilder::max_wait). After that each caller computes for itself. With a lifetime of zero
    /// ([`Ttl::NOT_STORED`]), the computed value is returned, but not stored.
    ///
    /// Only the caller whose `compute` failed gets the error. Callers in this process that waited for it compute at once
    /// and in parallel, and one of their values is stored. They do the same if the key is evicted meanwhile. If the store
    /// is down, every caller computes.
    ///
    /// # Errors
    ///
    /// Returns only the errors of `compute`.
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
        // The running handler or computation made this call. To wait for it would be a deadlock.
        if reentry::is_running_here(self.context(), name) {
            return compute().await;
        }
        let began = Instant::now();
        let left = || self.context().timing.max_wait.saturating_sub(began.elapsed());
        // A caller waits for one failed computation of another caller, not for several in turn.
        let mut waits = true;
        loop {
            let intent = match self.context().store.get(name).await {
                Ok(Some(bytes)) => match self.decode(&bytes) {
                    Ok(Some(value)) => return Ok(value),
                    // The stored bytes are no such value, so the computed value replaces them.
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
                        // All followers compute in parallel, and one of them stores its value.
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
            let held = match self.context().acquire_within(name, intent, awaited, left()).await {
                Acquired::Lease(held) => held,
                Acquired::Found(bytes) => {
                    let value = self.decode(&bytes);
                    // A follower may have joined after an eviction of this value, so followers read the store again.
                    lead.complete(FillOutcome::Retry);
                    match value {
                        Ok(Some(value)) => return Ok(value),
                        _ => return compute().await,
                    }
                }
                Acquired::Filling | Acquired::Busy(_) => {
                    lead.complete(FillOutcome::Uncacheable);
                    return compute().await;
                }
            };
            // If this future is dropped here, the leader and the lease are dropped too. Followers look again, and one of
            // them becomes the leader.
            let tagged = self.tagged_now(name).await;
            let computing = pin!(compute());
            let marked = pin!(reentry::compute(self.context(), name, computing));
            let value = match held.renewing(marked).await {
                Ok(value) => value,
                Err(error) => {
                    held.fail(lead);
                    return Err(error);
                }
            };
            match tagged.and_then(|tagged| Ok((self.encode(&value)?, tagged))) {
                Ok((record, tagged)) => {
                    lead.close();
                    let storing = async move {
                        let stored = held.tagged(tagged).commit(record.clone(), ttl).await;
                        lead.complete(match stored {
                            CommitResult::Stored => FillOutcome::Stored(record),
                            CommitResult::Revoked => FillOutcome::HandlerFailed,
                            CommitResult::Failed => FillOutcome::Uncacheable,
                        });
                    };
                    self.context().run_to_completion(storing).await;
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

    /// Stores a value, and replaces any value already there. Returns `true` if it was stored.
    ///
    /// With a lifetime of zero ([`Ttl::NOT_STORED`]), removes the value instead and returns `false`.
    pub async fn set<T: Serialize + ?Sized>(&self, key: &str, value: &T, ttl: impl Into<Ttl>) -> bool {
        let ttl = ttl.into();
        let result = self.try_set(key, value, ttl).await;
        self.or_log("set", key, false, result.map(|()| ttl != Ttl::NOT_STORED))
    }

    /// Stores a value, and replaces any value already there. With a lifetime of zero ([`Ttl::NOT_STORED`]), removes the
    /// value instead.
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed, if the value can't be encoded, or if it has tags and the store keeps no entries with
    /// tags.
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
            let tagged = self.tagged_now(&key).await?;
            let set = async move { context.store.set(&key, record, ttl, tagged.as_ref()).await };
            Ok(self.context().run_to_completion(set).await?)
        };
        let set = span.around(set).await;
        span.result(["stored", "stored"], set.as_ref().map(|()| true));
        set
    }

    /// Changes or creates a value atomically, and returns the new value.
    ///
    /// Updates are atomic between processes too: no update is lost. `change` may run more than once. Updates of one key
    /// queue in this process, and don't delay updates of other keys. With a lifetime of zero ([`Ttl::NOT_STORED`]), the new
    /// value is returned, and the stored one is removed.
    ///
    /// If the future is dropped before it writes, nothing changes. Once it writes, the write continues in the background.
    ///
    /// A failover of Redis may lose a confirmed update, because replicas lag behind. The previous value doesn't come back:
    /// the key becomes absent, and `change` gets `None`. Keep only values that can be recreated, or use
    /// [`RedisOptions::wait_for_replicas`](crate::store::redis::RedisOptions::wait_for_replicas): an update is then
    /// confirmed only when that many replicas have it, and is an error otherwise.
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed, if the stored value can't be decoded as a `T`, or if other writers keep
    /// changing the key. After a [`StoreError::Timeout`] the update may still have been made.
    pub async fn update<T: Serialize + DeserializeOwned>(
        &self,
        key: &str,
        ttl: impl Into<Ttl>,
        change: impl FnMut(Option<T>) -> T,
    ) -> Result<T, CacheError> {
        let name = self.space.key(key);
        let lifetime = self.lifetime(ttl);
        let until = Instant::now() + UPDATE_TIMEOUT;
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
        let mut pause = FIRST_PAUSE;
        loop {
            // The lease keeps other updates out until it is committed. A `set` or an eviction revokes it. An error returns
            // it.
            let begin = async {
                match self.context().try_acquire(key, Intent::Refresh).await? {
                    Acquired::Lease(held) => {
                        let tagged = self.tagged_now(key).await?;
                        Ok(Some((held, tagged, self.read_again_if_slow(key).await?)))
                    }
                    Acquired::Found(_) | Acquired::Filling | Acquired::Busy(_) => Ok::<_, CacheError>(None),
                }
            };
            if let Some((held, tagged, old)) =
                timeout_at(until, begin).await.map_err(|_| CacheError::Contended)??
            {
                let new = change(old);
                let record = self.encode(&new)?;
                // No deadline applies here: after one, it would be unknown whether the update was made.
                if self
                    .context()
                    .run_to_completion(async move { held.tagged(tagged).try_commit(record, ttl).await })
                    .await?
                {
                    return Ok(new);
                }
            }
            let changed = timeout_at(until, self.context().store.changed(key, pause)).await;
            changed.map_err(|_| CacheError::Contended)?;
            pause = next_pause(pause);
        }
    }

    /// Reads the value to be changed, again without the read deadline if that was exceeded. Ordinary reads can become
    /// misses; an update can't.
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

    /// Removes a value. Returns `true` if there was one.
    pub async fn delete(&self, key: &str) -> bool {
        self.or_log("delete", key, false, self.try_delete(key).await)
    }

    /// Removes a value, or a route's response under the same key. Returns `true` if there was one.
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed. The value may still have been removed.
    pub async fn try_delete(&self, key: &str) -> Result<bool, CacheError> {
        let key = self.space.key(key);
        let span = spans::backend::delete(&key);
        let context = Arc::clone(self.context());
        let delete = self.context().run_to_completion(async move { context.store.delete(&key).await });
        let deleted = span.around(delete).await;
        span.result(["deleted", "absent"], deleted.as_ref().copied());
        Ok(deleted?)
    }

    /// Returns `true` if there is a value, without reading it. Returns `false` if the store failed.
    pub async fn has(&self, key: &str) -> bool {
        self.or_log("has", key, false, self.try_has(key).await)
    }

    /// Returns `true` if there is a value, or a route's response under the same key, without reading it.
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed.
    pub async fn try_has(&self, key: &str) -> Result<bool, CacheError> {
        let key = self.space.key(key);
        let span = spans::backend::has(&key);
        let has = span.around(self.context().store.has(&key)).await;
        span.result(["hit", "miss"], has.as_ref().copied());
        Ok(has?)
    }

    /// Removes every value and response of the group, and returns their number. Without a [`group`](Self::group), this
    /// removes *everything* under the prefix, in every group.
    ///
    /// Returns 0 if the store failed.
    pub async fn delete_group(&self) -> u64 {
        self.or_log("delete_group", "", 0, self.try_delete_group().await)
    }

    /// Removes every value and response of the group, and returns their number. Without a [`group`](Self::group), this
    /// removes *everything* under the prefix, in every group.
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed. Some or all entries may still have been removed.
    pub async fn try_delete_group(&self) -> Result<u64, CacheError> {
        if self.space.group().is_none() {
            warn!(
                prefix = self.space.prefix(),
                "delete_group without a group removes everything under the prefix"
            );
        }
        let span = spans::backend::delete_group(&self.space);
        let (context, space) = (Arc::clone(self.context()), self.space.clone());
        let delete =
            self.context().run_to_completion(async move { context.store.delete_group(&space).await });
        let deleted = span.around(delete).await;
        span.result(["deleted", "absent"], deleted.as_ref().map(|count| *count > 0));
        Ok(deleted?)
    }

    /// Returns the key as it is written in the store.
    #[must_use]
    pub fn key(&self, key: &str) -> CacheKey {
        self.space.key(key)
    }

    /// Returns the tags and the present stamp of a value. Called before the value is made, so that every later eviction counts.
    async fn tagged_now(&self, key: &CacheKey) -> Result<Option<Tagged>, CacheError> {
        if self.tags.is_empty() {
            return Ok(None);
        }
        match self.context().store.tag_clock(&self.space).await? {
            Some(stamp) => Ok(Some(Tagged::new(stamp, &self.tags))),
            None => {
                // No older value may remain in place of this one.
                self.context().store.delete(key).await?;
                Err(CacheError::Untaggable)
            }
        }
    }

    pub(crate) const fn space(&self) -> &KeySpace {
        &self.space
    }

    fn context(&self) -> &Arc<CacheContext> {
        &self.context
    }

    fn lifetime(&self, ttl: impl Into<Ttl>) -> Option<Duration> {
        ttl.into().duration()
    }

    fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Bytes, CacheError> {
        Ok(encode_value(self.coder.id(), &self.coder.encode(value)?))
    }

    /// Decodes a stored value. Returns `None` if a route or another coder wrote it.
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
            .field("tags", &self.tags)
            .field("coder", &self.coder)
            .finish_non_exhaustive()
    }
}

/// An error of a [`CacheBackend`] method.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A tag is invalid, or there are too many.
    #[error(transparent)]
    Tag(#[from] TagError),
    /// A value has tags, and the store keeps no entries with tags.
    #[error("the value has tags, and the store keeps no entries with tags")]
    Untaggable,
    /// The value can't be encoded, or the stored value can't be decoded as the requested type.
    #[error(transparent)]
    Coder(#[from] CoderError),
    /// Other writers keep changing the key, or the store doesn't keep values as large as this one.
    #[error(
        "the value could not be updated: others change it all the time, or it is too large for the store"
    )]
    Contended,
}
