//! Work that goes on without the client it was begun for.

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
use crate::larder::CacheContext;

/// Work that can be moved into a task of its own while it is under way. It has room for every way in which a fill can go, many
/// kilobytes, so that it is on the heap from the beginning.
pub(crate) type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a handler panicked with.
pub(crate) type Panic = Box<dyn Any + Send>;

/// Work that is done where the client waits for it, and goes on in a task of its own when the client hangs up: dropped, this
/// leaves it to the background. A panic comes back to the caller.
pub(crate) struct Detached<T: Send + 'static> {
    /// Until it is done, or has panicked.
    work: Option<Task<T>>,
    context: Arc<CacheContext>,
    span: tracing::Span,
    _tracked: TaskTrackerToken,
}

impl<T: Send + 'static> Future for Detached<T> {
    type Output = Result<T, Panic>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // As a future does that has been polled to its end.
        let Some(mut work) = self.work.take() else { return Poll::Pending };
        // Nobody sees what a panic left half done: then the work is dropped here, and gives back what it holds.
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
    /// Runs on when the client is gone, but then no longer than a fill may take.
    pub(crate) fn detached<T: Send + 'static>(self: &Arc<Self>, work: Task<T>) -> Detached<T> {
        let (work, context, span) = (Some(work), Arc::clone(self), tracing::Span::current());
        Detached { work, context, span, _tracked: self.tasks.token() }
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

    /// Runs in the background, and begins here: what needs no waiting is done when this returns. A store in memory has
    /// evicted by then, before the answer of whoever gave up reaches its client.
    fn begin_at_once(&self, mut work: Task<()>) {
        // Without a runtime a store that keeps time would panic, and a panic in a panic aborts.
        if Handle::try_current().is_ok() && !std::thread::panicking() {
            let mut context = Context::from_waker(Waker::noop());
            if work.as_mut().poll(&mut context).is_ready() {
                return;
            }
        }
        self.spawn(work);
    }

    /// Runs a write to its end, also without its caller. `targets` is what the write may have changed.
    ///
    /// A caller that gives up, as a timeout outside of the cache does, answers its client before the handler is done. What is
    /// stored must not be served after that answer, so that it is evicted at once, for each layer around the handler; the
    /// handler goes on, and its end stores or evicts. A panic evicts before it goes on in the caller.
    pub(crate) async fn run_write<T: Send + 'static>(
        self: &Arc<Self>,
        targets: &[Target],
        work: Task<T>,
    ) -> T {
        let writes = WRITES.try_with(Arc::clone).unwrap_or_default();
        writes.add(self, targets);
        let given_up = EvictOnGivingUp { writes: Some(Arc::clone(&writes)) };
        let done = self.detached(Box::pin(WRITES.scope(writes, work))).await;
        if done.is_err() {
            self.evict(targets).await;
        }
        given_up.disarm();
        done.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Evicts all of this at once: each is a round trip or two.
    pub(crate) async fn evict(&self, targets: &[Target]) {
        join_all(targets.iter().map(async |target| match target {
            Target::Key(key) => self.evict_key(key).await,
            Target::Group(group) => self.evict_group(group).await,
        }))
        .await;
    }
}

/// What a write evicts.
#[derive(Clone)]
pub(crate) enum Target {
    Key(CacheKey),
    Group(KeySpace),
}

impl Target {
    /// The key, unless it is a whole group.
    pub(crate) const fn key(&self) -> Option<&CacheKey> {
        match self {
            Self::Key(key) => Some(key),
            Self::Group(_) => None,
        }
    }
}

tokio::task_local! {
    static WRITES: Arc<Writes>;
}

/// What the writes around one handler may have changed. Where layers are stacked, the outermost alone is dropped by a caller
/// that gives up: the others are part of its work, which goes on.
#[derive(Default)]
struct Writes(Mutex<Vec<(Arc<CacheContext>, Vec<Target>)>>);

impl Writes {
    fn add(&self, context: &Arc<CacheContext>, targets: &[Target]) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((Arc::clone(context), targets.to_vec()));
    }

    fn all(&self) -> Vec<(Arc<CacheContext>, Vec<Target>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Evicts for each of the writes in the background unless it was disarmed.
struct EvictOnGivingUp {
    writes: Option<Arc<Writes>>,
}

impl EvictOnGivingUp {
    fn disarm(mut self) {
        self.writes = None;
    }
}

impl Drop for EvictOnGivingUp {
    fn drop(&mut self) {
        for (context, targets) in self.writes.take().iter().flat_map(|writes| writes.all()) {
            let evicting = Arc::clone(&context);
            context.begin_at_once(Box::pin(async move { evicting.evict(&targets).await }));
        }
    }
}

/// Evicts in the background unless it was disarmed.
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
