//! A request with its handler, as an adapter wraps them, and the replies that come of it.

use std::future::Future;

use bytes::Bytes;
use http::{Extensions, HeaderMap, Response, StatusCode};
use http_body::Body;

use crate::body::ReplyBody;
use crate::policy::{Admitted, CommitResult, Pass};
use crate::reason::Reason;
use crate::request::RequestView;
use crate::status::Outcome;

/// One request and the handler for it: what an adapter wraps.
///
/// An adapter holds no decisions. It shows the request, runs its handler, and sends what [`Route::handle`] returns.
#[cfg_attr(
    all(feature = "memory", feature = "redis"),
    doc = "A whole one is in [the guide](crate::guide::adapters)."
)]
pub trait Call: Send + 'static {
    /// The body of the handler's answer.
    type Body: Body<Data: Send, Error: Send> + Send + 'static;
    /// What the handler returns instead of an answer.
    type Error: Send + 'static;

    /// The request, with the URI that its key is made from ([`KeyUri`](crate::KeyUri)), the pattern that the framework's router
    /// matched, and whether there is content.
    fn view(&self) -> RequestView<'_>;

    /// The fields of the request that the handler will see.
    fn headers_mut(&mut self) -> &mut HeaderMap;

    /// The extensions of the request that the handler will see, for a mark by which the same cache around it knows this run.
    fn extensions_mut(&mut self) -> &mut Extensions;

    /// The status with which the framework will answer this error. An error that says nothing of its own is a 500.
    fn status_of(_error: &Self::Error) -> StatusCode {
        StatusCode::INTERNAL_SERVER_ERROR
    }

    /// Runs the handler.
    fn run(self) -> impl Future<Output = Result<Response<Self::Body>, Self::Error>> + Send + 'static;
}

/// An answer, or the handler's error.
pub type Reply<C> = Result<Response<ReplyBody<<C as Call>::Body>>, <C as Call>::Error>;

/// An answer, and what it is to be counted as.
pub(super) type Counted<C> = (Reply<C>, Outcome);

/// The status that a reply will be sent with.
pub(crate) fn status_of<C: Call, B>(reply: &Result<Response<B>, C::Error>) -> StatusCode {
    reply.as_ref().map_or_else(C::status_of, Response::status)
}

pub(crate) fn failed<C: Call, B>(error: C::Error) -> (Result<Response<B>, C::Error>, Outcome) {
    let outcome = Outcome::passed(Some(Reason::Failed), C::status_of(&error));
    (Err(error), outcome)
}

/// What is stored answers because the handler failed.
pub(super) fn stale_reply<C: Call>(response: Response<Bytes>) -> Counted<C> {
    (Ok(response.map(ReplyBody::full)), Outcome::stale(Reason::Failed))
}

pub(super) fn passed<C: Call>(response: Response<ReplyBody<C::Body>>, pass: &Pass) -> Counted<C> {
    let outcome = Outcome::passed(pass.mark().reason(), response.status());
    (Ok(response), outcome)
}

pub(super) fn answered<C: Call>(admitted: Admitted, stored: CommitResult) -> Counted<C> {
    let outcome = Outcome::miss(admitted.reason(stored));
    (Ok(admitted.into_response(stored).map(ReplyBody::full)), outcome)
}
