//! [`Eviction`]: an eviction that a caller starts, outside of any route.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;

use tracing::warn;

use crate::backend::CacheError;
use crate::fill::background::Target;
use crate::key::{KeyError, KeySpace};
use crate::larder::context::{CacheContext, panic_invalid_config};

/// An eviction of a key, a group, or by tag. It starts when it is awaited, and returns `true` if the store confirmed it.
///
/// Once confirmed, no entry that it concerns answers a request any more, in any process that shares the store, and no fill that began
/// before is stored. An eviction by tag takes the same time however many entries there are. Exceptions:
///
/// - After a [`soft`](Self::soft) eviction, entries answer as stale ones.
/// - The local tier of another process answers until Redis's message arrives, and for at most a second (`store::redis::MAX_STALE`).
/// - A store of four functions that several processes share: see [`ProcessLocal`](crate::ProcessLocal).
///
/// If the store is down, the error is logged, and `false` is returned. A store that retries evictions retries this one, and
/// meanwhile this process doesn't use the entries.
///
/// Continues in the background if the future is dropped.
#[must_use = "an eviction starts when it is awaited"]
pub struct Eviction {
    context: Arc<CacheContext>,
    target: Target,
}

impl Eviction {
    pub(crate) const fn new(context: Arc<CacheContext>, target: Target) -> Self {
        Self { context, target }
    }

    /// Makes the entries stale as of now instead of removing them: `stale_while_revalidate` and `stale_if_error` apply from this
    /// moment. A fill that began before doesn't make an entry fresh again.
    ///
    /// Without these options on the route, there is no difference. Values of a [`CacheBackend`](crate::CacheBackend) are never used
    /// stale, so they are absent. A key whose resource varies is removed with all its variants. If Redis doesn't confirm a soft
    /// eviction of a key or a group, or a failover loses it, the entries are removed when it is repeated.
    ///
    /// An entry that is evicted softly again by its key or group is stale as of the first time. By a tag it is stale as of the last
    /// time, because a store notes only the latest eviction of a tag.
    ///
    /// ```
    /// # #[cfg(feature = "memory")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use larder_core::Larder;
    ///
    /// let larder = Larder::memory();
    /// let key = larder.key_for("products", &"/products/7".parse().unwrap()).unwrap();
    /// larder.evict(&key).soft().await;
    /// larder.evict_group("products").soft().await;
    /// larder.evict_tag("product:7").soft().await;
    /// # }
    /// # #[cfg(not(feature = "memory"))] fn main() {}
    /// ```
    pub fn soft(self) -> Self {
        Self { target: self.target.soft(), ..self }
    }

    /// Evicts entries under another prefix than the cache's own. Each prefix has groups and tags of its own. A key has its prefix, so
    /// for a key this changes nothing.
    ///
    /// # Panics
    ///
    /// Panics if keys can't have this prefix. For prefixes that aren't literals, see [`try_prefix`](Self::try_prefix).
    #[track_caller]
    pub fn prefix(self, prefix: &str) -> Self {
        // A closure would make the panic report this line instead of the caller's.
        match self.try_prefix(prefix) {
            Ok(eviction) => eviction,
            Err(error) => panic_invalid_config(&error),
        }
    }

    /// Evicts entries under another prefix than the cache's own.
    ///
    /// # Errors
    ///
    /// Returns an error if keys can't have this prefix.
    pub fn try_prefix(self, prefix: &str) -> Result<Self, KeyError> {
        let moved = |space: &KeySpace| KeySpace::new(prefix, space.group());
        let target = match self.target {
            Target::Tags(space, tags) => Target::Tags(moved(&space)?, tags),
            Target::Group(space) => Target::Group(moved(&space)?),
            Target::SoftGroup(space) => Target::SoftGroup(moved(&space)?),
            key @ (Target::Key(_) | Target::SoftKey(_)) => key,
        };
        Ok(Self { target, ..self })
    }

    /// Evicts, and returns the error if there is one.
    ///
    /// # Errors
    ///
    /// Returns an error if a tag is invalid, or if the store didn't confirm the eviction. The valid tags are evicted in any case.
    pub async fn confirm(self) -> Result<(), CacheError> {
        let Self { context, target } = self;
        let invalid = match &target {
            Target::Tags(_, tags) => tags.invalid().cloned(),
            _ => None,
        };
        let evict = {
            let context = Arc::clone(&context);
            async move { context.try_evict(&target).await }
        };
        context.run_to_completion(evict).await?;
        invalid.map_or(Ok(()), |error| Err(error.into()))
    }
}

impl IntoFuture for Eviction {
    type Output = bool;
    type IntoFuture = Pin<Box<dyn Future<Output = bool> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let (context, name) = (Arc::clone(&self.context), self.target.name().to_owned());
        Box::pin(async move {
            match self.confirm().await {
                Ok(()) => return true,
                Err(CacheError::Store(error)) => context.store_failed("evict", &name, &error),
                Err(error) => warn!(%error, "an eviction by tag skips a tag that no entry can have"),
            }
            false
        })
    }
}

impl fmt::Debug for Eviction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Eviction").field("target", &self.target).finish_non_exhaustive()
    }
}
