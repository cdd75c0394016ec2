//! Notices that a handler runs for a key already: the same cache is around it twice, or it asks for its own resource.
//!
//! The inner request would wait for the outer one, which waits for the inner one. So each run of a handler leaves a mark, with
//! its task and with its request, and a request for the same key of the same cache passes through at once. The task's mark is
//! found by requests that the handler makes itself, the request's mark also behind a service that calls it in another task.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;

use http::Extensions;

use crate::exchange::Call;
use crate::key::CacheKey;
use crate::larder::CacheContext;

tokio::task_local! {
    static RUNNING: Running;
}

/// The keys for which a handler runs, the innermost first.
#[derive(Clone)]
struct Running(Arc<Run>);

struct Run {
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

/// Whether this task runs a handler, or a computation, for this key.
pub(crate) fn is_running_here(context: &Arc<CacheContext>, key: &CacheKey) -> bool {
    RUNNING.try_with(|running| running.includes(context, key)).unwrap_or(false)
}

/// Whether a handler runs for this key, and made this request or was sent it.
pub(crate) fn is_running(context: &Arc<CacheContext>, key: &CacheKey, request: &Extensions) -> bool {
    is_running_here(context, key)
        || request.get::<Running>().is_some_and(|running| running.includes(context, key))
}

fn mark(context: &Arc<CacheContext>, key: &CacheKey, around: Option<Running>) -> Running {
    Running(Arc::new(Run { context: Arc::clone(context), key: key.clone(), around }))
}

/// Runs the handler for this key.
pub(crate) async fn run<C: Call>(
    context: &Arc<CacheContext>,
    key: &CacheKey,
    mut call: C,
) -> Result<http::Response<C::Body>, C::Error> {
    let around = RUNNING.try_with(Clone::clone).ok().or_else(|| call.extensions_mut().get().cloned());
    let running = mark(context, key, around);
    call.extensions_mut().insert(running.clone());
    // Pinned, because it is large, and would be in here twice.
    RUNNING.scope(running, pin!(call.run())).await
}

/// Runs a computation for this key.
pub(crate) async fn compute<T>(
    context: &Arc<CacheContext>,
    key: &CacheKey,
    work: Pin<&mut impl Future<Output = T>>,
) -> T {
    RUNNING.scope(mark(context, key, RUNNING.try_with(Clone::clone).ok()), work).await
}
