//! Request to response: the one place that joins the policy and the store. It can be read from top to bottom.
//!
//! A read looks up the store. A hit is served; of the requests that miss, one fills the entry for all. A write runs its
//! handler and then stores or evicts. Fills and writes continue without their client: if it disconnects, no other request
//! loses its answer, and no old value remains. The handler's response is delivered regardless of the store.

#![expect(clippy::result_large_err, reason = "most lookups are hits in memory, which must not allocate")]

pub(crate) mod call;
pub(crate) mod excerpt;
mod explain;
mod fill;
mod lookup;
pub(crate) mod miss_predictor;
pub(crate) mod remembered;
mod response_future;
pub(crate) mod tag_memory;
mod tagging;
mod write;

use std::fmt;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{Response, StatusCode};
use tracing::warn;

use crate::body::ReplyBody;
use crate::fill::single_flight::Role;
use crate::policy::CacheStatus;
use crate::reason::Reason;
use crate::request::RequestView;
use crate::route::Route;
use crate::status::Outcome;
use crate::telemetry::RequestTimer;

use self::call::Counted;
pub use self::call::{Call, Reply};
pub(crate) use self::call::{failed, status_of};
pub(crate) use self::fill::{UNCACHEABLE_FOR, complete_flight};
use self::lookup::{Fill, LookupResult, PendingLookup};
pub(crate) use self::lookup::{FillKey, MAX_LOOKUPS};
pub use self::response_future::ResponseFuture;

impl Route {
    /// Answers one request.
    ///
    /// Needs a tokio runtime. A panic of the handler resumes in the caller.
    ///
    /// # Errors
    ///
    /// Returns only the handler's errors. Errors of the store are logged.
    pub fn handle<C: Call>(self: Arc<Self>, call: C) -> ResponseFuture<C::Body, C::Error> {
        match self.try_hit(call.view()) {
            Ok(response) => ResponseFuture::ready(response),
            Err(deferred) => deferred.respond(call),
        }
    }

    /// Answers one request if that needs no waiting. This is the first half of [`handle`](Self::handle), for adapters in
    /// which creating a [`Call`] is costly.
    ///
    /// # Errors
    ///
    /// Returns a `Deferred` if the request needs more than a lookup in memory.
    #[doc(hidden)]
    pub fn try_hit(self: &Arc<Self>, request: RequestView<'_>) -> Result<Response<Bytes>, Deferred> {
        let timer = RequestTimer::new(&self.context.telemetry, || self.context.now(), &request);
        match self.lookup_now(request) {
            Ok(LookupResult::Answer(response, outcome)) => {
                self.record_answer(request.pattern, timer, outcome, response.status());
                Ok(response)
            }
            lookup => Err(Deferred { route: Arc::clone(self), timer, lookup }),
        }
    }

    /// Answers a request that the lookup didn't answer, and records its outcome.
    async fn respond<C: Call>(
        self: Arc<Self>,
        found: LookupResult,
        call: C,
        timer: RequestTimer,
    ) -> Reply<C> {
        let timer = timer.keep(&self.context.telemetry, self.metrics(call.view().pattern, Arc::clone));
        let (reply, outcome) = self.dispatch(found, call, 1).await;
        timer.answered(outcome, status_of::<C, _>(&reply));
        reply
    }

    /// Records the answer of a request that needed no handler.
    fn record_answer(
        self: &Arc<Self>,
        pattern: Option<&str>,
        timer: RequestTimer,
        outcome: Outcome,
        status: StatusCode,
    ) {
        self.metrics(pattern, |counters| timer.answered(&self.context.telemetry, counters, outcome, status));
    }

    /// Answers a request after its lookup. Each branch is boxed, so that it takes only the room that it needs.
    fn dispatch<C: Call>(
        self: &Arc<Self>,
        found: LookupResult,
        call: C,
        lookups: usize,
    ) -> PendingReply<'_, C> {
        match found {
            LookupResult::Answer(response, outcome) => answer_now::<C>(response, outcome),
            LookupResult::Bypass(status) => Box::pin(self.bypass(status, call)),
            LookupResult::Nested => Box::pin(self.pass_through(call)),
            LookupResult::Write(forward) => Box::pin(self.write(*forward, call)),
            LookupResult::Stale(response, fill) => {
                let outcome = Outcome::stale(fill.forward.reason());
                self.refresh(fill, call);
                answer_now::<C>(response, outcome)
            }
            LookupResult::Miss(fill) => self.dispatch_miss(fill, call, lookups),
        }
    }

    /// Runs the handler for a miss, or waits for another request that does.
    fn dispatch_miss<C: Call>(
        self: &Arc<Self>,
        fill: Box<Fill>,
        call: C,
        lookups: usize,
    ) -> PendingReply<'_, C> {
        let Fill { forward, key } = &*fill;
        if forward.reason() == Reason::Down {
            // The store just failed to read, so it isn't asked to write. The handler runs as it would without a cache.
            Box::pin(self.run_uncached(fill.forward, fill.key, call))
        } else if forward.keeps_range() && self.context.known_to_make_parts.contains(&key.primary) {
            // The handler makes partial responses itself, which fill nothing.
            Box::pin(self.bypass(fill.forward.unstored(Reason::Range), call))
        } else if forward.holds_up_others() {
            Box::pin(self.run_uncached(fill.forward.because(Reason::Spelling), fill.key, call))
        } else if !forward.is_shared() {
            Box::pin(self.fill(fill, call, None, lookups))
        } else {
            match self.context.single_flight.join(key.target(), forward.provenance()) {
                Role::Apart => {
                    Box::pin(self.run_uncached(fill.forward.because(Reason::Busy), fill.key, call))
                }
                Role::Leader(leader) => Box::pin(self.fill(fill, call, Some(leader), lookups)),
                Role::Follower(follower) => Box::pin(self.follow(follower, fill, call, lookups)),
            }
        }
    }

    /// Looks up the store again: the awaited or unexpected entry wasn't valid for this request.
    async fn retry_lookup<C: Call>(self: &Arc<Self>, call: C, lookups: usize) -> Counted<C> {
        self.miss_predictor.record_hit();
        let found = match self.lookup_now(call.view()) {
            Ok(found) => found,
            Err(pending) => self.lookup_later(pending, call.view()).await,
        };
        self.dispatch(found, call, lookups + 1).await
    }

    /// Runs the handler without the cache, and adds the status to the response.
    async fn bypass<C: Call>(&self, status: CacheStatus, call: C) -> Counted<C> {
        self.warn_undeclared(status.reason(), call.view().pattern);
        let tagging = self.tagging_to_emit(call.view(), None);
        let (mut parts, body) = match call.run().await {
            Ok(response) => response.into_parts(),
            Err(error) => return failed::<C, _>(error),
        };
        self.emit_tags(tagging.as_ref(), &mut parts);
        let mut response = Response::from_parts(parts, ReplyBody::own(body));
        status.write_to_response(&mut response);
        let outcome = Outcome::passed(status.reason(), response.status());
        (Ok(response), outcome)
    }

    /// Runs the handler without the cache, and adds no status: the same cache is around this one, and adds it.
    async fn pass_through<C: Call>(&self, call: C) -> Counted<C> {
        if !self.warned_nested.swap(true, Ordering::Relaxed) {
            warn!(
                route = self.label(call.view().pattern),
                group = self.policy.rule().space.group(),
                reason = Reason::Nested.as_str(),
                "this cache runs the handler for the same key already, in a layer around this one or because the \
                 handler asks for its own resource: the inner request passes through"
            );
        }
        match call.run().await {
            Ok(response) => {
                let outcome = Outcome::passed(Some(Reason::Nested), response.status());
                (Ok(response.map(ReplyBody::own)), outcome)
            }
            Err(error) => failed::<C, _>(error),
        }
    }

    /// Warns once that the route doesn't declare its audience.
    fn warn_undeclared(&self, reason: Option<Reason>, pattern: Option<&str>) {
        let undeclared = matches!(reason, Some(Reason::Authorization | Reason::Cookie | Reason::Credentials));
        if undeclared && !self.warned.swap(true, Ordering::Relaxed) {
            warn!(
                route = self.label(pattern),
                reason = reason.map(Reason::as_str),
                group = self.policy.rule().space.group(),
                "requests with credentials bypass this route's cache: declare it .public() or .private()"
            );
        }
    }
}

/// The future of a reply.
type PendingReply<'a, C> = Pin<Box<dyn Future<Output = Counted<C>> + Send + 'a>>;

fn answer_now<'a, C: Call>(response: Response<Bytes>, outcome: Outcome) -> PendingReply<'a, C> {
    Box::pin(ready((Ok(response.map(ReplyBody::full)), outcome)))
}

/// A request that `Route::try_hit` didn't answer.
#[must_use = "a request is answered only by `respond`"]
pub struct Deferred {
    route: Arc<Route>,
    timer: RequestTimer,
    lookup: Result<LookupResult, Box<PendingLookup>>,
}

impl Deferred {
    /// Answers the request, which must be the one in `call`. This is the second half of [`Route::handle`].
    pub fn respond<C: Call>(self, call: C) -> ResponseFuture<C::Body, C::Error> {
        let Self { route, timer, lookup } = self;
        match lookup {
            Ok(found) => ResponseFuture::later(route.respond(found, call, timer)),
            // The store answers most requests. The other branches need much more room, and take it only when they run.
            Err(pending) => ResponseFuture::later(async move {
                match route.lookup_later(pending, call.view()).await {
                    LookupResult::Answer(response, outcome) => {
                        route.record_answer(call.view().pattern, timer, outcome, response.status());
                        Ok(response.map(ReplyBody::full))
                    }
                    found => Box::pin(route.respond(found, call, timer)).await,
                }
            }),
        }
    }
}

impl fmt::Debug for Deferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deferred").field("route", &self.route).finish_non_exhaustive()
    }
}
