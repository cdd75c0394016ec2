//! [`ResponseFuture`]: a response that is ready, or that takes more than a look into memory.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::Body;

use crate::body::ReplyBody;

/// The future of an answer: of one that is there already, or of one that takes more than a look into memory.
///
/// What is to be had without waiting is looked for when [`Route::handle`] is called; all the rest happens when this is polled.
#[must_use = "nothing is answered unless it is polled"]
pub struct ResponseFuture<B: Body, E>(State<B, E>);

pub(super) type Answer<B, E> = Result<Response<ReplyBody<B>>, E>;

pub(super) enum State<B: Body, E> {
    /// Until it is taken.
    Now(Option<Answer<B, E>>),
    Later(Pin<Box<dyn Future<Output = Answer<B, E>> + Send>>),
}

impl<B: Body, E> ResponseFuture<B, E> {
    /// The answer that [`Route::look`] found.
    pub fn ready(response: Response<Bytes>) -> Self {
        Self(State::Now(Some(Ok(response.map(ReplyBody::full)))))
    }

    pub(super) fn later(reply: impl Future<Output = Answer<B, E>> + Send + 'static) -> Self {
        Self(State::Later(Box::pin(reply)))
    }
}

// Nothing in it is ever pinned but what is in the box.
impl<B: Body, E> Unpin for ResponseFuture<B, E> {}

impl<B: Body, E> Future for ResponseFuture<B, E> {
    type Output = Answer<B, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            // As a future does that has been polled to its end.
            State::Now(reply) => reply.take().map_or(Poll::Pending, Poll::Ready),
            State::Later(reply) => reply.as_mut().poll(context),
        }
    }
}

impl<B: Body, E> fmt::Debug for ResponseFuture<B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ResponseFuture").finish_non_exhaustive()
    }
}
