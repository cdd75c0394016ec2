//! [`Eviction`]: an eviction by tag that a caller starts, outside of any route.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;

use tracing::warn;

use crate::backend::CacheError;
use crate::key::{KeyError, KeySpace};
use crate::larder::context::{CacheContext, panic_invalid_config};
use crate::tag::TagsToEvict;

/// An eviction by tag. It starts when it is awaited, and returns `true` if the store confirmed it.
///
/// Once confirmed, no entry that carries one of the tags answers a request any more, in any process that shares the store, and no
/// fill that began before is stored. It takes the same time however many entries there are.
///
/// If the store is down, the error is logged, and `false` is returned. A store that retries evictions retries this one, and
/// meanwhile this process doesn't use the entries.
///
/// Continues in the background if the future is dropped.
#[must_use = "an eviction starts when it is awaited"]
pub struct Eviction {
    context: Arc<CacheContext>,
    space: KeySpace,
    tags: TagsToEvict,
}

impl Eviction {
    pub(crate) const fn new(context: Arc<CacheContext>, space: KeySpace, tags: TagsToEvict) -> Self {
        Self { context, space, tags }
    }

    /// Makes the entries stale as of now instead of removing them: `stale_while_revalidate` and `stale_if_error` apply from this
    /// moment. A fill that began before doesn't make an entry fresh again. Values of a [`CacheBackend`](crate::CacheBackend)
    /// are never used stale, so they are absent.
    pub fn soft(mut self) -> Self {
        self.tags = self.tags.soft();
        self
    }

    /// Evicts entries under another prefix than the cache's own. Each prefix has tags of its own.
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
        Ok(Self { space: KeySpace::new(prefix, None)?, ..self })
    }

    /// Evicts, and returns the error if there is one.
    ///
    /// # Errors
    ///
    /// Returns an error if a tag is invalid, or if the store didn't confirm the eviction. The valid tags are evicted in any case.
    pub async fn confirm(self) -> Result<(), CacheError> {
        let Self { context, space, tags } = self;
        let invalid = tags.invalid().cloned();
        let evict = {
            let context = Arc::clone(&context);
            async move { context.try_evict_tags(&space, &tags).await }
        };
        context.run_to_completion(evict).await?;
        invalid.map_or(Ok(()), |error| Err(error.into()))
    }
}

impl IntoFuture for Eviction {
    type Output = bool;
    type IntoFuture = Pin<Box<dyn Future<Output = bool> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let (context, prefix) = (Arc::clone(&self.context), self.space.prefix().to_owned());
        Box::pin(async move {
            match self.confirm().await {
                Ok(()) => return true,
                Err(CacheError::Store(error)) => context.store_failed("evict_tags", &prefix, &error),
                Err(error) => warn!(%error, "an eviction by tag skips a tag that no entry can have"),
            }
            false
        })
    }
}

impl fmt::Debug for Eviction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Eviction")
            .field("space", &self.space)
            .field("tags", &self.tags)
            .finish_non_exhaustive()
    }
}
