//! Request to response: the one place that joins the policy and the store. It can be read from top to bottom.
//!
//! A read looks up the store. A hit is served; of the requests that miss, one fills the entry for all. A write runs its
//! handler and then stores or evicts. Fills and writes continue without their client: if it disconnects, no other request
//! loses its answer, and no old value remains. The handler's response is delivered regardless of the store.

#![expect(
    clippy::large_enum_variant,
    clippy::result_large_err,
    reason = "most lookups are hits in memory, which must not allocate"
)]

pub(crate) mod call;
pub(crate) mod excerpt;
mod fill;
mod lookup;
pub(crate) mod miss_predictor;
pub(crate) mod remembered;
mod response_future;
mod write;

use std::fmt;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::Response;
use tracing::warn;

use crate::body::ReplyBody;
use crate::fill::single_flight::Role;
use crate::policy::Mark;
use crate::reason::Reason;
use crate::request::RequestView;
use crate::route::Route;
use crate::status::Outcome;
use crate::telemetry::RequestTimer;

use self::call::Counted;
pub use self::call::{Call, Reply};
pub(crate) use self::call::{failed, status_of};
use self::fill::Followed;
pub(crate) use self::fill::{UNCACHEABLE_FOR, land};
pub(crate) use self::lookup::{FillKey, LOOKS};
use self::lookup::{Looked, Seen};
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
            Err(unanswered) => unanswered.respond(call),
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
        let watch = RequestTimer::new(&self.context.telemetry, || self.context.now(), &request);
        match self.lookup_now(request) {
            Looked::Seen(Seen::Answer(response, outcome)) => {
                Ok(self.answered(request.pattern, watch, response, outcome))
            }
            looked => Err(Deferred { route: Arc::clone(self), watch, looked }),
        }
    }

    /// Answers a request that the lookup didn't answer, and records its outcome.
    async fn respond<C: Call>(self: Arc<Self>, seen: Seen, call: C, watch: RequestTimer) -> Reply<C> {
        let watch = watch.keep(&self.context.telemetry, self.metrics(call.view().pattern, Arc::clone));
        let (reply, outcome) = self.dispatch(seen, call, 1).await;
        watch.answered(outcome, status_of::<C, _>(&reply));
        reply
    }

    /// Records a response that the lookup found.
    fn answered(
        self: &Arc<Self>,
        pattern: Option<&str>,
        watch: RequestTimer,
        response: Response<Bytes>,
        outcome: Outcome,
    ) -> Response<Bytes> {
        self.metrics(pattern, |counters| {
            watch.answered(&self.context.telemetry, counters, outcome, response.status());
        });
        response
    }

    /// Answers a request after its lookup. Each branch is boxed, so that it takes only the room that it needs.
    fn dispatch<C: Call>(self: &Arc<Self>, seen: Seen, call: C, looks: usize) -> Settling<'_, C> {
        match seen {
            Seen::Answer(response, outcome) => ready_reply::<C>(response, outcome),
            Seen::Bypass(mark) => Box::pin(self.bypass(mark, call)),
            Seen::Within => Box::pin(self.pass_through(call)),
            Seen::Write(forward) => Box::pin(self.write(forward, call)),
            Seen::Stale(response, forward, place) => {
                let outcome = Outcome::stale(forward.reason());
                self.refresh(forward, place, call);
                ready_reply::<C>(response, outcome)
            }
            // The store just failed to read, so it isn't asked to write. The handler runs as it would without a cache.
            Seen::Miss(forward, place) if forward.reason() == Reason::Down => {
                Box::pin(self.run_uncached(forward, place, call))
            }
            // The handler makes partial responses itself, which fill nothing.
            Seen::Miss(forward, place)
                if forward.keeps_range() && self.context.known_to_make_parts.contains(&place.primary) =>
            {
                Box::pin(self.bypass(forward.unstored(Reason::Range), call))
            }
            Seen::Miss(forward, place) if forward.holds_up_others() => {
                Box::pin(self.run_uncached(forward.because(Reason::Spelling), place, call))
            }
            Seen::Miss(forward, place) if !forward.is_shared() => {
                Box::pin(self.fill(forward, place, call, None, looks))
            }
            Seen::Miss(forward, place) => {
                match self.context.single_flight.join(&place.target, forward.provenance()) {
                    Role::Apart => Box::pin(self.run_uncached(forward.because(Reason::Busy), place, call)),
                    Role::Leader(lead) => Box::pin(self.fill(forward, place, call, Some(lead), looks)),
                    Role::Follower(follow) => Box::pin(async move {
                        match self.follow(follow, forward).await {
                            Followed::Answer(response, outcome) => {
                                (Ok(response.map(ReplyBody::full)), outcome)
                            }
                            Followed::Again(_) if looks < LOOKS => self.retry_lookup(call, looks).await,
                            Followed::Again(forward) | Followed::Alone(forward) => {
                                self.run_uncached(forward, place, call).await
                            }
                        }
                    }),
                }
            }
        }
    }

    /// Looks up the store again: the awaited or unexpected entry wasn't valid for this request.
    async fn retry_lookup<C: Call>(self: &Arc<Self>, call: C, looks: usize) -> Counted<C> {
        self.miss_predictor.record_hit();
        let seen = match self.lookup_now(call.view()) {
            Looked::Seen(seen) => seen,
            Looked::Further(further) => self.lookup_later(further, call.view()).await,
        };
        self.dispatch(seen, call, looks + 1).await
    }

    /// Runs the handler without the cache, and adds the status to the response.
    async fn bypass<C: Call>(&self, mark: Mark, call: C) -> Counted<C> {
        self.warn_undeclared(mark.reason(), call.view().pattern);
        let mut response = match call.run().await {
            Ok(response) => response.map(ReplyBody::own),
            Err(error) => return failed::<C, _>(error),
        };
        mark.stamp_response(&mut response);
        let outcome = Outcome::passed(mark.reason(), response.status());
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

/// The future of a response that the lookup didn't find.
type Settling<'a, C> = Pin<Box<dyn Future<Output = Counted<C>> + Send + 'a>>;

fn ready_reply<'a, C: Call>(response: Response<Bytes>, outcome: Outcome) -> Settling<'a, C> {
    Box::pin(ready((Ok(response.map(ReplyBody::full)), outcome)))
}

/// A request that `Route::try_hit` didn't answer.
#[must_use = "a request is answered only by `respond`"]
pub struct Deferred {
    route: Arc<Route>,
    watch: RequestTimer,
    looked: Looked,
}

impl Deferred {
    /// Answers the request, which must be the one in `call`. This is the second half of [`Route::handle`].
    pub fn respond<C: Call>(self, call: C) -> ResponseFuture<C::Body, C::Error> {
        let Self { route, watch, looked } = self;
        // A lookup in memory answers most requests. The other branches need much more room, and take it only when they run.
        match looked {
            Looked::Seen(seen) => ResponseFuture::later(route.respond(seen, call, watch)),
            Looked::Further(further) => ResponseFuture::later(async move {
                match route.lookup_later(further, call.view()).await {
                    Seen::Answer(response, outcome) => {
                        let response = route.answered(call.view().pattern, watch, response, outcome);
                        Ok(response.map(ReplyBody::full))
                    }
                    seen => Box::pin(route.respond(seen, call, watch)).await,
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
