//! The one place that joins the policy and the store: from a request to its answer, top to bottom.
//!
//! A read looks into the store; what it finds answers, and what it doesn't find is filled by one request for all. A
//! write runs its handler and then stores or evicts. Fills and writes run in tasks of their own: a client that hangs up
//! takes nobody's answer away and leaves no old value behind. Whatever the store does, the handler's answer is delivered.

use std::convert::Infallible;
use std::future::Future;
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body::Body;
use tracing::{Instrument, warn};

use crate::body::{ReplyBody, collect, length_of};
use crate::entry::Record;
use crate::flight::{Follow, Landing, Lead, Role};
use crate::hold::{Held, Started};
use crate::key::CacheKey;
use crate::larder::Shared;
use crate::policy::{
    Admitted, BodyLength, CachePolicy, Forward, Lookup, Mark, OnEntry, OnRequest, OnResponse, Placement, Stored,
};
use crate::reason::Reason;
use crate::request::RequestView;
use crate::route::{KeySource, Route};
use crate::rule::{Kind, Principal};
use crate::store::{Abandon, Begin, Intent};

/// How often a request looks again when what it waited for turned out not to be for it. Then it runs by itself.
const LOOKS: usize = 3;

/// For how long the requests for an answer that can't be shared don't wait for each other.
const UNCACHEABLE_FOR: Duration = Duration::from_secs(1);

/// One request and the handler for it: what an adapter wraps.
///
/// An adapter holds no decisions. It shows the request, runs its handler, and sends what [`Route::handle`] returns.
pub trait Call: Send + 'static {
    /// The body of the handler's answer.
    type Body: Body<Data: Send, Error: Send> + Send + 'static;
    /// What the handler returns instead of an answer.
    type Error: Send + 'static;

    /// The request, with the URI that the client sent.
    fn view(&self) -> RequestView<'_>;

    /// The fields of the request that the handler will see.
    fn headers_mut(&mut self) -> &mut HeaderMap;

    /// Runs the handler.
    fn run(self) -> impl Future<Output = Result<Response<Self::Body>, Self::Error>> + Send + 'static;
}

/// An answer, or the handler's error.
pub type Reply<C> = Result<Response<ReplyBody<<C as Call>::Body>>, <C as Call>::Error>;

impl Route {
    /// Answers one request.
    ///
    /// Needs a tokio runtime. A panic of the handler goes on in the caller.
    ///
    /// # Errors
    ///
    /// Only those of the handler. The store's are logged.
    pub async fn handle<C: Call>(self: Arc<Self>, call: C) -> Reply<C> {
        for _ in 0..LOOKS {
            let seen = match self.policy.on_request(&call.view()) {
                OnRequest::Bypass(mark) => return self.bypass(mark, call).await,
                OnRequest::Forward(forward) => return self.write(forward, call).await,
                OnRequest::Lookup(lookup) => self.look(lookup, &call.view()).await,
            };
            let (forward, place) = match seen {
                Seen::Answer(response) => return Ok(response.map(ReplyBody::full)),
                Seen::Bypass(mark) => return self.bypass(mark, call).await,
                Seen::Miss(forward, place) => (forward, place),
            };
            // Only fills are shared: whoever wants a fresher answer never joins a flight that began before.
            if forward.intent() != Some(Intent::Fill) || forward.reason() == Reason::Down {
                return self.fill(forward, place, call, None).await;
            }
            match self.shared.flights.join(&place.target) {
                Role::Lead(lead) => return self.fill(forward, place, call, Some(lead)).await,
                Role::Follow(follow) => match self.follow(follow, forward).await {
                    Followed::Answer(response) => return Ok(response.map(ReplyBody::full)),
                    Followed::Alone(forward) => return self.alone(forward, call).await,
                    Followed::Again => {}
                },
            }
        }
        match self.policy.on_request(&call.view()) {
            OnRequest::Lookup(lookup) => match lookup.on_entry(Err(Reason::Busy), &call.view(), self.shared.now()) {
                OnEntry::Miss(forward) => self.alone(forward, call).await,
                OnEntry::Unsatisfiable(answer) => Ok(answer.into_response().map(ReplyBody::full)),
                // Nothing was found, so nothing else can come of it.
                OnEntry::Hit(hit) | OnEntry::NotModified(hit) => Ok(hit.into_response().map(ReplyBody::full)),
                OnEntry::Select(_) => self.untouched(call).await,
            },
            OnRequest::Bypass(mark) => self.bypass(mark, call).await,
            OnRequest::Forward(forward) => self.write(forward, call).await,
        }
    }

    /// The cache takes no part, but says so.
    async fn bypass<C: Call>(&self, mark: Mark, call: C) -> Reply<C> {
        self.warn_undeclared(mark.reason());
        let response = call.run().await?;
        Ok(own(response, &mark))
    }

    async fn untouched<C: Call>(&self, call: C) -> Reply<C> {
        Ok(call.run().await?.map(ReplyBody::own))
    }

    /// Looks under the key, and under the secondary key if the resource varies.
    async fn look(&self, lookup: Lookup, request: &RequestView<'_>) -> Seen {
        let Some(key) = self.key(request, lookup.principal()).await else {
            return Seen::Bypass(lookup.without_key());
        };
        let found = self.read_record(&key).await;
        let (answer, target) = match lookup.on_entry(found, request, self.shared.now()) {
            OnEntry::Select(select) => {
                let target = key.variant(&select.secondary_key(request).to_hex());
                let found = self.read_record(&target).await;
                (select.on_entry(found, request, self.shared.now()), Some(target))
            }
            answer => (answer, None),
        };
        match answer {
            OnEntry::Hit(hit) | OnEntry::NotModified(hit) => Seen::Answer(hit.into_response()),
            OnEntry::Unsatisfiable(answer) => Seen::Answer(answer.into_response()),
            OnEntry::Miss(forward) => {
                Seen::Miss(forward, Place { target: target.unwrap_or_else(|| key.clone()), base: key })
            }
            // A secondary key selects no further.
            OnEntry::Select(select) => Seen::Bypass(select.without_key()),
        }
    }

    async fn read_record(&self, key: &CacheKey) -> Result<Option<Record>, Reason> {
        match self.shared.store.get(key).await {
            Ok(None) => Ok(None),
            Ok(Some(bytes)) => Record::decode(&bytes).map(Some).ok_or(Reason::Unreadable),
            Err(error) => {
                self.shared.store_failed("get", key.name(), &error);
                Err(Reason::Down)
            }
        }
    }

    async fn follow(&self, follow: Follow, forward: Forward) -> Followed {
        match follow.wait(self.shared.timing.max_wait).await {
            Some(Landing::Filled(bytes)) => match forward.on_filled(Record::decode(&bytes), self.shared.now()) {
                Ok(hit) => Followed::Answer(hit.collapsed().into_response()),
                Err(_) => Followed::Again,
            },
            Some(Landing::Again) => Followed::Again,
            Some(Landing::Alone) | None => Followed::Alone(forward),
        }
    }

    /// Runs the handler for this request alone, and stores nothing.
    async fn alone<C: Call>(self: &Arc<Self>, forward: Forward, call: C) -> Reply<C> {
        match self.produce(forward, call).await {
            Produced::Error(error) => Err(error),
            Produced::Answer(response, _) => Ok(response),
            Produced::Admitted(admitted) => Ok(admitted.into_response(Stored::Evicted).map(ReplyBody::full)),
        }
    }

    /// Fills what is missing, detached from the client.
    async fn fill<C: Call>(self: &Arc<Self>, forward: Forward, place: Place, call: C, lead: Option<Lead>) -> Reply<C> {
        let route = Arc::clone(self);
        self.detached(async move {
            let started = match forward.intent() {
                // A store that just failed to read isn't asked to write.
                Some(intent) if forward.reason() != Reason::Down => {
                    route.shared.start(&place.target, intent, Abandon::Failed).await
                }
                _ => Started::Without(forward.reason()),
            };
            let (held, without) = match started {
                Started::Held(held) => (Some(held), None),
                Started::Without(reason) => (None, Some(reason)),
                Started::Found(bytes) => match forward.on_filled(Record::decode(&bytes), route.shared.now()) {
                    Ok(hit) => {
                        land(lead, Landing::Filled(bytes));
                        return Ok(hit.into_response().map(ReplyBody::full));
                    }
                    Err(forward) => {
                        land(lead, Landing::Alone);
                        return route.alone(forward, call).await;
                    }
                },
            };
            let Some(held) = held else {
                // Nothing will be stored, so nobody needs to wait for it.
                land(lead, Landing::Alone);
                let outcome = if without == Some(Reason::Down) { Stored::Failed } else { Stored::Evicted };
                return match route.produce(forward, call).await {
                    Produced::Error(error) => Err(error),
                    Produced::Answer(response, _) => Ok(response),
                    Produced::Admitted(admitted) => Ok(admitted.into_response(outcome).map(ReplyBody::full)),
                };
            };
            match held.renewing(route.produce(forward, call)).await {
                Produced::Error(error) => {
                    held.abandon(Abandon::Failed);
                    land(lead, Landing::Alone);
                    Err(error)
                }
                Produced::Answer(response, _) => {
                    let failed = response.status().is_server_error();
                    held.abandon(if failed { Abandon::Failed } else { Abandon::Uncacheable(UNCACHEABLE_FOR) });
                    land(lead, Landing::Alone);
                    Ok(response)
                }
                Produced::Admitted(admitted) => {
                    let (stored, admitted) = route.store(admitted, place, held, lead).await;
                    Ok(admitted.into_response(stored).map(ReplyBody::full))
                }
            }
        })
        .await
    }

    /// Runs the handler and asks the policy about its answer.
    async fn produce<C: Call>(&self, forward: Forward, mut call: C) -> Produced<C> {
        forward.make_unconditional(call.headers_mut());
        let response = match call.run().await {
            Ok(response) => response,
            Err(error) => return Produced::Error(error),
        };
        let answered_at = self.shared.now();
        let (parts, body) = response.into_parts();
        let length = length_of(&parts.headers, &body);
        let (verdict, parts, body) = match (forward.on_response(&parts, length), length) {
            (OnResponse::Admit(admit), BodyLength::Known(length)) => match collect(body, length).await {
                Ok(bytes) => return Produced::Admitted(Box::new(admit.on_body(parts, bytes, answered_at))),
                Err(body) => (admit.on_broken_body(), parts, body),
            },
            (verdict, _) => (verdict, parts, ReplyBody::own(body)),
        };
        let (mark, consequence) = match verdict {
            OnResponse::Pass(mark) => (mark, Consequence::None),
            OnResponse::Keep(mark) => (mark, Consequence::None),
            OnResponse::Evict(mark) => (mark, Consequence::Evict),
            // A body whose length is not known is never admitted.
            OnResponse::Admit(admit) => (admit.refuse(), Consequence::Evict),
        };
        self.warn_undeclared(mark.reason());
        let mut response = Response::from_parts(parts, body);
        mark.stamp(response.headers_mut());
        Produced::Answer(response, consequence)
    }

    /// Stores what was filled where it belongs, and tells those who wait.
    async fn store(
        &self,
        mut admitted: Box<Admitted>,
        place: Place,
        held: Held,
        mut lead: Option<Lead>,
    ) -> (Stored, Box<Admitted>) {
        let store = &self.shared.store;
        let is_variant = place.target != place.base;
        let placement = admitted.place(self.shared.fresh_id());
        let ttl = admitted.ttl();
        if let Some(lead) = &mut lead {
            lead.close();
        }
        let (stored, landing) = match placement {
            Placement::Plain if !is_variant => {
                let record = admitted.record();
                let stored = held.commit(record.clone(), ttl).await;
                (stored, Landing::Filled(record))
            }
            Placement::Variant(_) | Placement::NewVariant(..) if is_variant && !admitted.is_reordered() => {
                let record = admitted.record();
                let stored = held.commit(record.clone(), ttl).await;
                if let (Stored::Yes, Placement::NewVariant(_, variants)) = (stored, placement) {
                    self.shared.list_variant(&place.base, variants, ttl).await;
                }
                (stored, Landing::Filled(record))
            }
            Placement::NewVariant(secondary, variants) if !is_variant => {
                // First the variant, then the record that leads to it: a commit that is refused leaves an orphan
                // that nobody can reach.
                let target = place.base.variant(&secondary.to_hex());
                if let Err(error) = store.set(&target, admitted.record(), ttl).await {
                    self.shared.store_failed("set", target.name(), &error);
                    held.abandon(Abandon::Failed);
                    (Stored::Failed, Landing::Alone)
                } else {
                    (held.commit(variants.encode(), ttl).await, Landing::Again)
                }
            }
            Placement::Nowhere => {
                held.abandon(Abandon::Uncacheable(UNCACHEABLE_FOR));
                (Stored::Evicted, Landing::Alone)
            }
            // The resource varies otherwise than before. What was known about it is void.
            _ => {
                held.abandon(Abandon::Failed);
                self.shared.evict_key(&place.base).await;
                (Stored::Evicted, Landing::Again)
            }
        };
        let landing = match stored {
            Stored::Yes => landing,
            Stored::Evicted if !matches!(landing, Landing::Alone) => Landing::Again,
            Stored::Evicted | Stored::Failed => Landing::Alone,
        };
        land(lead, landing);
        (stored, admitted)
    }

    /// A route that writes: runs its handler and then stores or evicts, detached from the client.
    async fn write<C: Call>(self: &Arc<Self>, forward: Forward, call: C) -> Reply<C> {
        let target = match forward.kind() {
            Kind::EvictGroup => None,
            _ => match self.key(&call.view(), forward.principal()).await {
                Some(key) => Some(key),
                None => return self.bypass(forward.unstored(Reason::Keyless), call).await,
            },
        };
        let route = Arc::clone(self);
        self.detached(async move {
            let held = match (&target, forward.intent()) {
                (Some(key), Some(intent)) => route.shared.start(key, intent, Abandon::Failed).await.held(),
                _ => None,
            };
            // A handler that panics may have changed what it is there to change.
            let mut unknown = Unknown { route: &route, target: target.as_ref(), armed: true };
            let produced = match &held {
                Some(held) => held.renewing(route.produce(forward, call)).await,
                None => route.produce(forward, call).await,
            };
            unknown.armed = false;
            match produced {
                Produced::Error(error) => {
                    abandon(held);
                    Err(error)
                }
                Produced::Answer(response, Consequence::None) => {
                    abandon(held);
                    Ok(response)
                }
                Produced::Answer(response, Consequence::Evict) => {
                    drop_unused(held);
                    route.evict(target.as_ref()).await;
                    Ok(response)
                }
                Produced::Admitted(admitted) => {
                    let stored = route.write_through(&admitted, target.as_ref(), held).await;
                    if stored != Stored::Yes {
                        route.evict(target.as_ref()).await;
                    }
                    Ok(admitted.into_response(stored).map(ReplyBody::full))
                }
            }
        })
        .await
    }

    /// Stores a write's answer if its ticket is still the current one. Anything else, and the caller evicts.
    async fn write_through(&self, admitted: &Admitted, target: Option<&CacheKey>, held: Option<Held>) -> Stored {
        let (Some(key), Some(held)) = (target, held) else { return Stored::Failed };
        if matches!(self.read_record(key).await, Ok(Some(Record::Variants(_)))) {
            // One answer can't stand for all variants.
            drop_unused(Some(held));
            return Stored::Evicted;
        }
        held.commit(admitted.record(), admitted.ttl()).await
    }

    async fn evict(&self, target: Option<&CacheKey>) {
        match target {
            Some(key) => self.shared.evict_key(key).await,
            None => self.shared.evict_group(&self.policy.rule().space).await,
        }
    }

    /// Runs on when the client is gone. A panic comes back to the caller.
    async fn detached<C: Call>(&self, work: impl Future<Output = Reply<C>> + Send + 'static) -> Reply<C>
    where
        Reply<C>: Send,
    {
        match self.shared.tasks.spawn(work.in_current_span()).await {
            Ok(reply) => reply,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => {
                    let mut response = Response::new(ReplyBody::full(Bytes::new()));
                    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                    Ok(response)
                }
            },
        }
    }

    async fn key(&self, request: &RequestView<'_>, principal: Option<Principal>) -> Option<CacheKey> {
        let rule = self.policy.rule();
        match &self.key_source {
            KeySource::Uri => Some(rule.key(request, principal)),
            KeySource::Sync(build) => Some(rule.chosen_key(&build(request)?, request, principal)),
            KeySource::Async(build) => {
                Some(rule.chosen_key(&build.build(request).await?, request, principal))
            }
        }
    }

    /// Says once a route that its author should say whose the responses are.
    fn warn_undeclared(&self, reason: Option<Reason>) {
        if let Some(reason @ (Reason::Authorization | Reason::Cookie)) = reason {
            if !self.warned.swap(true, Ordering::Relaxed) {
                warn!(
                    reason = reason.as_str(),
                    group = self.policy.rule().space.group(),
                    "requests with credentials bypass this route's cache: declare it .public() or .private()"
                );
            }
        }
    }
}

/// What became of a look into the store.
enum Seen {
    Answer(Response<Bytes>),
    Bypass(Mark),
    Miss(Forward, Place),
}

/// What became of following a flight.
enum Followed {
    Answer(Response<Bytes>),
    Alone(Forward),
    Again,
}

/// Where the answer to a miss belongs: the key of the request, and the one that is filled, which differs for a variant.
struct Place {
    base: CacheKey,
    target: CacheKey,
}

/// What the handler's answer came to.
enum Produced<C: Call> {
    Error(C::Error),
    Answer(Response<ReplyBody<C::Body>>, Consequence),
    Admitted(Box<Admitted>),
}

/// What an answer that isn't stored does to what is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Consequence {
    None,
    Evict,
}

fn own<B: Body>(response: Response<B>, mark: &Mark) -> Response<ReplyBody<B>> {
    let mut response = response.map(ReplyBody::own);
    mark.stamp(response.headers_mut());
    response
}

fn land(lead: Option<Lead>, landing: Landing) {
    if let Some(lead) = lead {
        lead.land(landing);
    }
}
