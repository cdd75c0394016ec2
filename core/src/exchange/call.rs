//! [`Call`]: a request with its handler, which adapters implement; and the replies of both.

use std::future::Future;

use bytes::Bytes;
use http::{Extensions, HeaderMap, Response, StatusCode};
use http_body::Body;

use crate::body::ReplyBody;
use crate::policy::{Admitted, CommitResult, Pass};
use crate::reason::Reason;
use crate::request::RequestView;
use crate::status::Outcome;

/// A request and its handler, which adapters implement.
///
/// An adapter makes no decisions. It exposes the request, runs its handler, and sends the response of
/// [`Route::handle`](crate::Route::handle).
#[cfg_attr(
    all(feature = "memory", feature = "redis"),
    doc = "A whole one is in [the guide](crate::guide::adapters)."
)]
pub trait Call: Send + 'static {
    /// The body of the handler's response.
    type Body: Body<Data: Send, Error: Send> + Send + 'static;
    /// The handler's error.
    type Error: Send + 'static;

    /// Returns the request, with the URI for its key ([`KeyUri`](crate::KeyUri)), the pattern that the framework's router
    /// matched, and whether it has content.
    fn view(&self) -> RequestView<'_>;

    /// Returns the request fields that the handler will see.
    fn headers_mut(&mut self) -> &mut HeaderMap;

    /// Returns the request extensions that the handler will see. The cache marks them, to detect the same cache within its
    /// own handler.
    fn extensions_mut(&mut self) -> &mut Extensions;

    /// Returns the status with which the framework will answer this error. The default is 500.
    fn status_of(_error: &Self::Error) -> StatusCode {
        StatusCode::INTERNAL_SERVER_ERROR
    }

    /// Runs the handler.
    fn run(self) -> impl Future<Output = Result<Response<Self::Body>, Self::Error>> + Send + 'static;
}

/// A response, or the handler's error.
pub type Reply<C> = Result<Response<ReplyBody<<C as Call>::Body>>, <C as Call>::Error>;

/// A reply and its outcome.
pub(super) type Counted<C> = (Reply<C>, Outcome);

/// Returns the status with which a reply will be sent.
pub(crate) fn status_of<C: Call, B>(reply: &Result<Response<B>, C::Error>) -> StatusCode {
    reply.as_ref().map_or_else(C::status_of, Response::status)
}

pub(crate) fn failed<C: Call, B>(error: C::Error) -> (Result<Response<B>, C::Error>, Outcome) {
    let outcome = Outcome::passed(Some(Reason::Failed), C::status_of(&error));
    (Err(error), outcome)
}

/// Serves a stale response because the handler failed.
pub(super) fn stale_reply<C: Call>(response: Response<Bytes>) -> Counted<C> {
    (Ok(response.map(ReplyBody::full)), Outcome::stale(Reason::Failed))
}

pub(super) fn passed<C: Call>(response: Response<ReplyBody<C::Body>>, pass: &Pass) -> Counted<C> {
    let outcome = Outcome::passed(pass.cache_status().reason(), response.status());
    (Ok(response), outcome)
}

pub(super) fn answered<C: Call>(admitted: Admitted, stored: CommitResult) -> Counted<C> {
    let outcome = Outcome::miss(admitted.reason(stored));
    (Ok(admitted.into_response(stored).map(ReplyBody::full)), outcome)
}
