//! [`ResponseFuture`]: the future of a response.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::Body;

use crate::body::ReplyBody;

/// The future of a response, either ready or still to be produced.
///
/// [`Route::handle`](crate::Route::handle) does the lookup in memory when it is called. Everything else happens when this is polled.
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture<B: Body, E>(Progress<B, E>);

pub(super) type Answer<B, E> = Result<Response<ReplyBody<B>>, E>;

enum Progress<B: Body, E> {
    /// `None` once it was returned.
    Ready(Option<Answer<B, E>>),
    Pending(Pin<Box<dyn Future<Output = Answer<B, E>> + Send>>),
}

impl<B: Body, E> ResponseFuture<B, E> {
    /// Creates a future of a response from `Route::try_hit`.
    #[doc(hidden)]
    pub fn ready(response: Response<Bytes>) -> Self {
        Self(Progress::Ready(Some(Ok(response.map(ReplyBody::full)))))
    }

    pub(super) fn later(reply: impl Future<Output = Answer<B, E>> + Send + 'static) -> Self {
        Self(Progress::Pending(Box::pin(reply)))
    }
}

// Only the boxed future is pinned.
impl<B: Body, E> Unpin for ResponseFuture<B, E> {}

impl<B: Body, E> Future for ResponseFuture<B, E> {
    type Output = Answer<B, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            // A future that has completed stays pending.
            Progress::Ready(reply) => reply.take().map_or(Poll::Pending, Poll::Ready),
            Progress::Pending(reply) => reply.as_mut().poll(context),
        }
    }
}

impl<B: Body, E> fmt::Debug for ResponseFuture<B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ResponseFuture").finish_non_exhaustive()
    }
}
