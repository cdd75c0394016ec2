//! Work that goes on without the client it was begun for.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tracing::Instrument;

use crate::key::{CacheKey, KeySpace};
use crate::larder::Shared;

/// Work for a task of its own. Boxed before anything else: it has room for every way in which a fill can go, many kilobytes,
/// and on its way into a task and out of it again it would be copied a dozen times.
pub(crate) type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a handler panicked with.
pub(crate) type Panic = Box<dyn Any + Send>;

impl Shared {
    /// Runs on when the client is gone, but not for ever: then no longer than a fill may take, and what comes of it is
    /// `given_up`, as it is when the runtime shuts down. A panic comes back to the caller.
    pub(crate) async fn detached<T: Send + 'static>(
        &self,
        work: Task<T>,
        given_up: fn() -> T,
    ) -> Result<T, Panic> {
        let client = Arc::new(());
        let (here, limit) = (Arc::downgrade(&client), self.timing.max_fill);
        let abandoned = async move {
            loop {
                tokio::time::sleep(limit).await;
                if here.strong_count() == 0 {
                    break;
                }
            }
        };
        let work = async move {
            tokio::select! {
                biased;
                done = work => done,
                () = abandoned => given_up(),
            }
        };
        let joined = self.tasks.spawn(work.in_current_span()).await;
        drop(client);
        match joined {
            Ok(done) => Ok(done),
            // Else the runtime is shutting down.
            Err(error) => error.try_into_panic().map_or_else(|_| Ok(given_up()), Err),
        }
    }

    /// Runs for nobody, and no longer than a fill may take.
    pub(crate) fn in_background(&self, work: Task<()>) {
        let limit = self.timing.max_fill;
        let work = async move {
            // Dropped, it gives everything back.
            let _: Result<(), _> = tokio::time::timeout(limit, work).await;
        };
        self.spawn(work.in_current_span());
    }

    pub(crate) async fn evict(&self, target: &Target) {
        match target {
            Target::Key(key) => self.evict_key(key).await,
            Target::Group(group) => self.evict_group(group).await,
        };
    }
}

/// What a write evicts.
#[derive(Clone)]
pub(crate) enum Target {
    Key(CacheKey),
    Group(KeySpace),
}

/// Evicts in the background unless it was disarmed.
pub(crate) struct EvictOnDrop<'a> {
    shared: &'a Arc<Shared>,
    target: &'a Target,
    armed: bool,
}

impl<'a> EvictOnDrop<'a> {
    pub(crate) const fn new(shared: &'a Arc<Shared>, target: &'a Target) -> Self {
        Self { shared, target, armed: true }
    }

    pub(crate) fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for EvictOnDrop<'_> {
    fn drop(&mut self) {
        if self.armed {
            let (shared, target) = (Arc::clone(self.shared), self.target.clone());
            self.shared.spawn(async move { shared.evict(&target).await });
        }
    }
}
