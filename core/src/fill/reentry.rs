//! Detection of a handler that already runs for a key: the same cache wraps it twice, or it requests its own resource.
//!
//! Otherwise the inner request would wait for the outer one, and the outer one for the inner one. Each run of a handler is
//! marked in its task and in its request. A request for the same key of the same cache passes through. The mark of the task
//! covers requests that the handler makes itself. The mark of the request also covers a service that calls the cache in
//! another task.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;

use http::Extensions;

use crate::exchange::call::Call;
use crate::key::CacheKey;
use crate::larder::context::CacheContext;

tokio::task_local! {
    static RUNNING: Running;
}

/// The keys for which a handler runs, innermost first.
#[derive(Clone)]
struct Running(Arc<RunningHandler>);

struct RunningHandler {
    context: Arc<CacheContext>,
    key: CacheKey,
    around: Option<Running>,
}

impl Running {
    fn includes(&self, context: &Arc<CacheContext>, key: &CacheKey) -> bool {
        let mut at = Some(self);
        while let Some(Self(run)) = at {
            if Arc::ptr_eq(&run.context, context) && run.key == *key {
                return true;
            }
            at = run.around.as_ref();
        }
        false
    }
}

/// Returns `true` if this task runs a handler or a computation for this key.
pub(crate) fn is_running_here(context: &Arc<CacheContext>, key: &CacheKey) -> bool {
    RUNNING.try_with(|running| running.includes(context, key)).unwrap_or(false)
}

/// Returns `true` if the handler that runs for this key made this request, or received it.
pub(crate) fn is_running(context: &Arc<CacheContext>, key: &CacheKey, request: &Extensions) -> bool {
    is_running_here(context, key)
        || request.get::<Running>().is_some_and(|running| running.includes(context, key))
}

fn mark(context: &Arc<CacheContext>, key: &CacheKey, around: Option<Running>) -> Running {
    Running(Arc::new(RunningHandler { context: Arc::clone(context), key: key.clone(), around }))
}

/// Runs the handler, marked as running for this key.
pub(crate) async fn run<C: Call>(
    context: &Arc<CacheContext>,
    key: &CacheKey,
    mut call: C,
) -> Result<http::Response<C::Body>, C::Error> {
    let around = RUNNING.try_with(Clone::clone).ok().or_else(|| call.extensions_mut().get().cloned());
    let running = mark(context, key, around);
    call.extensions_mut().insert(running.clone());
    // Pinned, because the future is large and would take twice the room if it were moved.
    RUNNING.scope(running, pin!(call.run())).await
}

/// Runs a computation, marked as running for this key.
pub(crate) async fn compute<T>(
    context: &Arc<CacheContext>,
    key: &CacheKey,
    work: Pin<&mut impl Future<Output = T>>,
) -> T {
    RUNNING.scope(mark(context, key, RUNNING.try_with(Clone::clone).ok()), work).await
}
