//! The one place that joins the policy and the store: from a request to its answer, top to bottom.
//!
//! A read looks into the store; what it finds answers, and what it doesn't find is filled by one request for all. A
//! write runs its handler and then stores or evicts. Fills and writes go on without their client: one that
//! hangs up takes nobody's answer away and leaves no old value behind. Whatever the store does, the handler's answer is delivered.

#![expect(
    clippy::large_enum_variant,
    clippy::result_large_err,
    reason = "what is seen at once is mostly a hit, which is not to allocate"
)]

mod call;
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
    /// Needs a tokio runtime. A panic of the handler goes on in the caller.
    ///
    /// # Errors
    ///
    /// Only those of the handler. The store's are logged.
    pub fn handle<C: Call>(self: Arc<Self>, call: C) -> ResponseFuture<C::Body, C::Error> {
        match self.try_hit(call.view()) {
            Ok(response) => ResponseFuture::ready(response),
            Err(unanswered) => unanswered.respond(call),
        }
    }

    /// Answers one request, if that takes no more than a look into memory: the first half of [`handle`](Self::handle), for
    /// adapters for whom it costs something to put a [`Call`] together.
    ///
    /// # Errors
    ///
    /// Nothing that answers is at hand: go on with what this returns.
    pub fn try_hit(self: &Arc<Self>, request: RequestView<'_>) -> Result<Response<Bytes>, Deferred> {
        let watch = RequestTimer::new(&self.context, &request);
        match self.lookup_now(request) {
            Looked::Seen(Seen::Answer(response, outcome)) => {
                Ok(self.answered(request.pattern, watch, response, outcome))
            }
            looked => Err(Deferred { route: Arc::clone(self), watch, looked }),
        }
    }

    /// Answers a request that what is stored doesn't, and counts it.
    async fn respond<C: Call>(self: Arc<Self>, seen: Seen, call: C, watch: RequestTimer) -> Reply<C> {
        let watch = watch.keep(&self.context.telemetry, self.metrics(call.view().pattern, Arc::clone));
        let (reply, outcome) = self.dispatch(seen, call, 1).await;
        watch.answered(outcome, status_of::<C, _>(&reply));
        reply
    }

    /// What is stored answers.
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

    /// Answers a request that what is stored doesn't. Each way to do it takes the room that it needs, and no more.
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
            // A store that just failed to read isn't asked to write: the handler runs as it would without a cache.
            Seen::Miss(forward, place) if forward.reason() == Reason::Down => {
                Box::pin(self.run_uncached(forward, place, call))
            }
            // Its handler makes parts of its own, which fill nothing.
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

    /// Looks once more: what was waited for, or found where nothing was expected, is not for this request.
    async fn retry_lookup<C: Call>(self: &Arc<Self>, call: C, looks: usize) -> Counted<C> {
        self.miss_predictor.record_hit();
        let seen = match self.lookup_now(call.view()) {
            Looked::Seen(seen) => seen,
            Looked::Further(further) => self.lookup_later(further, call.view()).await,
        };
        self.dispatch(seen, call, looks + 1).await
    }

    /// The cache takes no part, but says so.
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

    /// The cache takes no part, and says nothing: the same cache is around this one, and says it.
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

    /// Says once a route that its author should say whose the responses are.
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

/// An answer that takes more than a look into the store.
type Settling<'a, C> = Pin<Box<dyn Future<Output = Counted<C>> + Send + 'a>>;

fn ready_reply<'a, C: Call>(response: Response<Bytes>, outcome: Outcome) -> Settling<'a, C> {
    Box::pin(ready((Ok(response.map(ReplyBody::full)), outcome)))
}

/// A request that [`Route::look`] found no answer for.
#[must_use = "nobody answers the request unless it goes on"]
pub struct Deferred {
    route: Arc<Route>,
    watch: RequestTimer,
    looked: Looked,
}

impl Deferred {
    /// Answers the request, which `call` must hold: the second half of [`Route::handle`].
    pub fn respond<C: Call>(self, call: C) -> ResponseFuture<C::Body, C::Error> {
        let Self { route, watch, looked } = self;
        // What is in memory answers most requests. What else may come of one needs much more room, and takes it only then.
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
