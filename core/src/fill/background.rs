//! Work that continues after its client disconnects.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::future::join_all;
use tokio::runtime::Handle;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Instrument;

use crate::key::{CacheKey, KeySpace};
use crate::larder::context::CacheContext;
use crate::store::StoreError;
use crate::tag::{EvictionMode, TagsToEvict};

/// Work that can move into a task of its own. It is boxed from the start, because it has room for every path of a fill:
/// many kilobytes.
pub(crate) type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The payload of a handler's panic.
pub(crate) type Panic = Box<dyn Any + Send>;

/// Work that runs in the caller, and continues in a task of its own if this future is dropped because the client
/// disconnected. A panic is returned to the caller.
pub(crate) struct Detached<T: Send + 'static> {
    /// `None` once the work is done or has panicked.
    work: Option<Task<T>>,
    context: Arc<CacheContext>,
    span: tracing::Span,
    _tracked: TaskTrackerToken,
}

impl<T: Send + 'static> Future for Detached<T> {
    type Output = Result<T, Panic>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // A future that has completed stays pending.
        let Some(mut work) = self.work.take() else { return Poll::Pending };
        // After a panic the work is dropped here. It returns its lease, and nothing reads its state.
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
            Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
            Ok(Poll::Pending) => {
                self.work = Some(work);
                Poll::Pending
            }
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}

impl<T: Send + 'static> Drop for Detached<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            let work = async move { drop(work.await) };
            self.context.in_background(Box::pin(work.instrument(self.span.clone())));
        }
    }
}

impl CacheContext {
    /// Runs work that continues when the client disconnects, for up to `max_fill`.
    pub(crate) fn detached<T: Send + 'static>(self: &Arc<Self>, work: Task<T>) -> Detached<T> {
        let (work, context, span) = (Some(work), Arc::clone(self), tracing::Span::current());
        Detached { work, context, span, _tracked: self.tasks.token() }
    }

    /// Runs work in the background, for up to `max_fill`.
    pub(crate) fn in_background(&self, work: Task<()>) {
        let limit = self.timing.max_fill;
        let work = async move {
            // Dropping the work returns its lease.
            let _: Result<(), _> = tokio::time::timeout(limit, work).await;
        };
        self.spawn(work.in_current_span());
    }

    /// Polls the work once, then moves it to the background. Work that needn't wait is done when this returns: a memory
    /// store has evicted before the caller's response reaches its client.
    fn begin_at_once(&self, mut work: Task<()>) {
        // Without a runtime a store that uses timers would panic, and a panic during a panic aborts.
        if Handle::try_current().is_ok() && !std::thread::panicking() {
            let mut context = Context::from_waker(Waker::noop());
            if work.as_mut().poll(&mut context).is_ready() {
                return;
            }
        }
        self.spawn(work);
    }

    /// Runs a write to completion, even if its caller is dropped. `targets` lists the entries that the write may change.
    ///
    /// A caller that gives up, such as a timeout layer outside of the cache, answers its client before the handler is done.
    /// No entry that predates that answer may be served after it, so the targets of each layer around the handler are
    /// evicted immediately. The handler continues, and stores or evicts at its end. After a panic the targets are evicted
    /// before the panic resumes in the caller.
    pub(crate) async fn run_write<T: Send + 'static>(
        self: &Arc<Self>,
        targets: &[Target],
        work: Task<T>,
    ) -> T {
        let writes = WRITES.try_with(Arc::clone).unwrap_or_default();
        writes.add(self, targets);
        let given_up = EvictOnCancel { writes: Some(Arc::clone(&writes)) };
        let done = self.detached(Box::pin(WRITES.scope(writes, work))).await;
        if done.is_err() {
            self.evict(targets).await;
        }
        given_up.disarm();
        done.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Evicts the targets concurrently. Each takes one or two round trips.
    pub(crate) async fn evict(&self, targets: &[Target]) {
        join_all(targets.iter().map(async |target| self.evict_target(target).await)).await;
    }

    /// Evicts a target. Returns `false` if the store didn't confirm it.
    pub(crate) async fn evict_target(&self, target: &Target) -> bool {
        let evicted = self.try_evict(target).await;
        if let Err(error) = &evicted {
            self.store_failed("evict", target.name(), error);
        }
        evicted.is_ok()
    }

    /// Evicts a target.
    pub(crate) async fn try_evict(&self, target: &Target) -> Result<(), StoreError> {
        match target {
            Target::Key(key) => self.try_evict_key(key).await,
            Target::SoftKey(key) => self.try_evict_key_softly(key).await,
            Target::Group(space) => self.try_evict_group(space, EvictionMode::Hard).await,
            Target::SoftGroup(space) => self.try_evict_group(space, EvictionMode::Soft).await,
            Target::Tags(space, tags) => self.try_evict_tags(space, tags).await,
        }
    }
}

/// A key, a group, or the tags of a prefix that are evicted.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Key(CacheKey),
    /// A key whose entry becomes stale.
    SoftKey(CacheKey),
    Group(KeySpace),
    /// A group whose entries become stale.
    SoftGroup(KeySpace),
    Tags(KeySpace, Arc<TagsToEvict>),
}

impl Target {
    /// Returns the key, or `None` for a group or tags.
    pub(crate) const fn key(&self) -> Option<&CacheKey> {
        match self {
            Self::Key(key) | Self::SoftKey(key) => Some(key),
            Self::Group(_) | Self::SoftGroup(_) | Self::Tags(..) => None,
        }
    }

    /// Returns the tags, or `None` for a key or a group.
    pub(crate) fn tags(&self) -> Option<&TagsToEvict> {
        match self {
            Self::Tags(_, tags) => Some(tags),
            Self::Key(_) | Self::SoftKey(_) | Self::Group(_) | Self::SoftGroup(_) => None,
        }
    }

    /// Returns the name of the key, the head of the group, or the prefix of the tags, for messages.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Key(key) | Self::SoftKey(key) => key.name(),
            Self::Group(space) | Self::SoftGroup(space) => space.head(),
            Self::Tags(space, _) => space.prefix(),
        }
    }

    /// Returns the target with entries that become stale instead of being removed.
    pub(crate) fn soft(self) -> Self {
        match self {
            Self::Key(key) => Self::SoftKey(key),
            Self::Group(space) => Self::SoftGroup(space),
            Self::Tags(space, tags) => Self::Tags(space, Arc::new(Arc::unwrap_or_clone(tags).soft())),
            soft => soft,
        }
    }
}

tokio::task_local! {
    static WRITES: Arc<OpenWrites>;
}

/// The targets of all writes around one handler. If layers are stacked, a caller that gives up drops only the outermost
/// write. The others are part of its work, which continues.
#[derive(Default)]
struct OpenWrites(Mutex<Vec<(Arc<CacheContext>, Vec<Target>)>>);

impl OpenWrites {
    fn add(&self, context: &Arc<CacheContext>, targets: &[Target]) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((Arc::clone(context), targets.to_vec()));
    }

    fn all(&self) -> Vec<(Arc<CacheContext>, Vec<Target>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A guard that evicts the targets of all writes in the background when it is dropped, unless it was disarmed.
struct EvictOnCancel {
    writes: Option<Arc<OpenWrites>>,
}

impl EvictOnCancel {
    fn disarm(mut self) {
        self.writes = None;
    }
}

impl Drop for EvictOnCancel {
    fn drop(&mut self) {
        for (context, targets) in self.writes.take().iter().flat_map(|writes| writes.all()) {
            let evicting = Arc::clone(&context);
            context.begin_at_once(Box::pin(async move { evicting.evict(&targets).await }));
        }
    }
}

/// A guard that evicts its targets in the background when it is dropped, unless it was disarmed.
pub(crate) struct EvictOnDrop<'a> {
    context: &'a Arc<CacheContext>,
    targets: &'a [Target],
    armed: bool,
}

impl<'a> EvictOnDrop<'a> {
    pub(crate) const fn new(context: &'a Arc<CacheContext>, targets: &'a [Target]) -> Self {
        Self { context, targets, armed: true }
    }

    pub(crate) fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for EvictOnDrop<'_> {
    fn drop(&mut self) {
        if self.armed {
            let (context, targets) = (Arc::clone(self.context), self.targets.to_vec());
            self.context.begin_at_once(Box::pin(async move { context.evict(&targets).await }));
        }
    }
}
