//! Drives the shared cache's policy, from a request to its response. Joins it to the store and the origin.
//!
//! A request goes to the origin once. The origin's response is passed on as it comes, and stored when it is complete. It
//! is delivered even if the store fails.
//!
//! Read down from [`SharedCache::handle`]: `exchange/lookup.rs` finds a stored response, `fill.rs` asks the origin and
//! validates, `keep.rs` stores the response while the client reads it, and `write.rs` handles writes.

mod fill;
mod keep;
mod lookup;
mod write;

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::panic::resume_unwind;
use std::sync::Arc;

use futures_util::future::join_all;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Response, Uri, response};
use http_body::Body;
use lookup::SharedLookupResult;

use super::SharedRule;
use super::body::SharedBody;
use super::budget::Budget;
use super::groups::UriOrigin;
use super::policy::{SharedAnswer, SharedCacheStatus, SharedPolicy};
use crate::backend::Eviction;
use crate::exchange::tag_memory::TagMemory;
use crate::exchange::{Call, MAX_LOOKUPS, failed, status_of};
use crate::fill::background::{Target, Task};
use crate::fill::single_flight::{FillOutcome, Role};
use crate::headers::accept_encoding::coding_error;
use crate::key::ignored::pattern_error;
use crate::key::{CacheKey, KeySpace};
use crate::larder::Larder;
use crate::larder::context::{CacheContext, panic_invalid_config};
use crate::provenance::Provenance;
use crate::reason::Reason;
use crate::status::Outcome;
use crate::tag::TagsToEvict;
use crate::telemetry::{RequestTimer, RouteCounters};

/// A shared cache in front of a whole service (RFC 9111). Adapters wrap it in a layer.
///
/// The service is the part that asks the origin. If the origin gave no response, the service returns an error, or a
/// response with [`OriginFailed`](super::policy::OriginFailed) in its extensions. The cache may then serve a stale
/// response instead. The service must not send a request twice.
pub struct SharedCache {
    context: Arc<CacheContext>,
    policy: SharedPolicy,
    budget: Arc<Budget>,
    tag_memory: TagMemory,
    counters: Arc<RouteCounters>,
}

/// A response, or the service's error.
pub type SharedReply<C> = Result<Response<SharedBody<<C as Call>::Body>>, <C as Call>::Error>;

impl SharedCache {
    /// Creates a shared cache with the default rule.
    #[must_use]
    pub fn new(larder: &Larder) -> Self {
        Self::with_rule(larder, |_| {})
    }

    /// Creates a shared cache with a rule that `change` has adjusted.
    #[must_use]
    #[track_caller]
    pub fn with_rule(larder: &Larder, change: impl FnOnce(&mut SharedRule)) -> Self {
        let context = Arc::clone(&larder.context);
        let space = KeySpace::new(&context.defaults.prefix, None)
            .unwrap_or_else(|error| panic_invalid_config(&error));
        let mut rule = SharedRule { max_body: context.defaults.max_body, ..SharedRule::new(space) };
        change(&mut rule);
        // After `change`, which may replace the lists.
        rule.credential_fields.extend(context.defaults.credential_fields.iter().cloned());
        rule.ignored_params.extend(context.defaults.ignored_params.iter().cloned());
        check_rule(&rule);
        rule.max_body = context.storable_body(rule.max_body);
        let counters = context.telemetry.shared_cache();
        let budget = Budget::new(rule.max_held);
        let (policy, tag_memory) = (SharedPolicy::new(Arc::new(rule)), TagMemory::default());
        Self { context, policy, budget, tag_memory, counters }
    }

    /// Returns the rule that it follows.
    #[must_use]
    pub const fn rule(&self) -> &Arc<SharedRule> {
        self.policy.rule()
    }

    /// Evicts what is stored for a URI of a host: every variant, under `http` and `https`, in every spelling of the URI.
    /// If the store is down, this is logged, and the Redis store repeats the eviction until it is confirmed.
    ///
    /// The eviction continues in the background if this future is dropped.
    pub async fn evict(&self, uri: &Uri, host: &str) {
        let (context, keys) = (Arc::clone(&self.context), self.keys_of(&["http", "https"], uri, host));
        let evict = async move { join_all(keys.iter().map(|key| context.evict_key(key))).await };
        self.context.run_to_completion(evict).await;
    }

    /// Evicts every response that carries this tag in a field of CDNs ([`SharedRule::tag_fields`]), and every other entry of the
    /// cache's prefix that carries it, as [`Larder::evict_tag`] does.
    pub fn evict_tag(&self, tag: &str) -> Eviction {
        self.evict_tags([tag])
    }

    /// Evicts every entry that carries at least one of these tags, as [`evict_tag`](Self::evict_tag) does.
    pub fn evict_tags<T: AsRef<str>>(&self, tags: impl IntoIterator<Item = T>) -> Eviction {
        self.eviction(TagsToEvict::of(tags))
    }

    /// Evicts every response of a host that belongs to this group, by its `Cache-Groups` (RFC 9875), under `http` and `https`. `host`
    /// may end with a port.
    ///
    /// ```
    /// # #[cfg(feature = "memory")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use larder_core::Larder;
    /// use larder_core::shared::SharedCache;
    ///
    /// let cache = SharedCache::new(&Larder::memory());
    /// // Stale as of now: clients get the old response while it is validated, if it allows that.
    /// assert!(cache.evict_cache_group("scripts", "shop.example").soft().await);
    /// # }
    /// # #[cfg(not(feature = "memory"))] fn main() {}
    /// ```
    pub fn evict_cache_group(&self, group: &str, host: &str) -> Eviction {
        let host = host.to_ascii_lowercase();
        let tags = ["http", "https"].map(|scheme| UriOrigin::new(scheme, &host).tags([group]));
        let tags = tags.into_iter().try_fold(TagsToEvict::default(), |all, tags| Ok(all.and(tags?)));
        self.eviction(tags.unwrap_or_else(TagsToEvict::none))
    }

    fn eviction(&self, tags: TagsToEvict) -> Eviction {
        Eviction::new(Arc::clone(&self.context), Target::Tags(self.rule().space.clone(), Arc::new(tags)))
    }

    /// Returns the keys of a URI under each of the schemes. Most services serve the same under both, so a write under one
    /// evicts both. RFC 9111 §4.4 allows a cache to invalidate more.
    fn keys_of(&self, schemes: &[&str], uri: &Uri, host: &str) -> Vec<CacheKey> {
        let rule = self.rule();
        let keys = |scheme| [rule.key_of(scheme, uri, host), rule.key_apart(scheme, uri, host)];
        schemes.iter().copied().flat_map(keys).collect()
    }

    /// Answers one request.
    ///
    /// Needs a tokio runtime. A panic of the service is resumed in the caller.
    ///
    /// # Errors
    ///
    /// Returns the service's error. Errors of the store are logged.
    #[expect(
        clippy::manual_async_fn,
        reason = "the future of an async fn would have room for the call twice"
    )]
    pub fn handle<C>(self: Arc<Self>, call: C) -> impl Future<Output = SharedReply<C>> + Send + 'static
    where
        C: Call<Body: Body<Error: Into<Box<dyn Error + Send + Sync>>>>,
    {
        async move {
            // Hits must be fast. The other ways need a larger future, which is allocated only for them.
            let timer = RequestTimer::new(&self.context.telemetry, || self.context.now(), &call.view());
            let found = match self.lookup(call.view()).await {
                SharedLookupResult::Answer(answer) => {
                    let (reply, outcome) = answered::<C>(answer);
                    timer.answered(
                        &self.context.telemetry,
                        &self.counters,
                        outcome,
                        status_of::<C, _>(&reply),
                    );
                    return reply;
                }
                found => found,
            };
            let timer = timer.keep(&self.context.telemetry, Arc::clone(&self.counters));
            let (reply, outcome) = Box::pin(Arc::clone(&self).dispatch(found, call)).await;
            timer.answered(outcome, status_of::<C, _>(&reply));
            reply
        }
    }

    /// Answers a request for which no stored response was ready.
    async fn dispatch<C: Call>(self: Arc<Self>, mut found: SharedLookupResult, call: C) -> CountedReply<C> {
        let mut looks = 1;
        loop {
            let (forward, fill_key) = match found {
                SharedLookupResult::Answer(answer) => return answered::<C>(answer),
                SharedLookupResult::Bypass(mark) => return bypass(&mark, call).await,
                SharedLookupResult::Nested => return pass_through(call).await,
                SharedLookupResult::Write(write, key) => return self.write(write, key, call).await,
                SharedLookupResult::Stale(answer, forward, fill_key) => {
                    self.refresh(forward, fill_key, call);
                    return answered::<C>(answer);
                }
                SharedLookupResult::Forward(forward, fill_key) => (forward, fill_key),
            };
            if !forward.is_shared() {
                return self.fill(forward, fill_key, call, None).await;
            }
            let follow = match self.context.single_flight.join(fill_key.target(), Provenance::default()) {
                Role::Leader(leader) => return self.fill(forward, fill_key, call, Some(leader)).await,
                Role::Apart => return self.fill(forward, fill_key, call, None).await,
                Role::Follower(follow) => follow,
            };
            let forward = match self.context.follow(follow).await {
                Some(FillOutcome::Stored(_) | FillOutcome::Retry) if looks < MAX_LOOKUPS => {
                    looks += 1;
                    found = self.lookup(call.view()).await.collapsed(forward.reason());
                    continue;
                }
                Some(FillOutcome::HandlerFailed) => match forward.on_error(self.context.now()) {
                    Ok(answer) => return answered::<C>(answer),
                    Err(forward) => forward.because(Reason::Busy),
                },
                Some(_) => forward.because(Reason::Busy),
                None => forward.because(Reason::Waited),
            };
            let cache = Arc::clone(&self);
            let work = Box::pin(async move { cache.ask_origin(forward, fill_key, call, None, None).await });
            return self.detached::<C>(work).await;
        }
    }

    /// Runs `work`, which continues without its client. A panic of the service is resumed in the caller.
    async fn detached<C: Call>(&self, work: Task<CountedReply<C>>) -> CountedReply<C> {
        let done = self.context.detached(work).await;
        done.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// Panics if a list of names has one that can't be meant.
#[track_caller]
fn check_rule(rule: &SharedRule) {
    let pattern = rule.ignored_params.iter().find_map(|pattern| pattern_error(pattern));
    let coding = || rule.content_codings.iter().flatten().find_map(|coding| coding_error(coding));
    if let Some(error) = pattern.or_else(coding) {
        panic_invalid_config(&error);
    }
}

impl fmt::Debug for SharedCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedCache").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// A response with its outcome, which is counted.
type CountedReply<C> = (SharedReply<C>, Outcome);

/// Runs the service for a request that the same cache is already answering further out. That one sets the fields.
async fn pass_through<C: Call>(call: C) -> CountedReply<C> {
    match call.run().await {
        Ok(response) => {
            let outcome = Outcome::passed(Some(Reason::Nested), response.status());
            (Ok(response.map(SharedBody::own)), outcome)
        }
        Err(error) => failed::<C, _>(error),
    }
}

async fn bypass<C: Call>(mark: &SharedCacheStatus, call: C) -> CountedReply<C> {
    match call.run().await {
        Ok(response) => {
            let (parts, body) = response.into_parts();
            passed::<C>(mark, parts, body)
        }
        Err(error) => failed::<C, _>(error),
    }
}

fn passed<C: Call>(mark: &SharedCacheStatus, mut parts: response::Parts, body: C::Body) -> CountedReply<C> {
    mark.rule.remove_tag_fields(&mut parts.headers);
    mark.write_to(&mut parts.headers);
    let outcome = mark.passed(parts.status);
    (Ok(Response::from_parts(parts, SharedBody::own(body))), outcome)
}

fn answered<C: Call>(answer: SharedAnswer) -> CountedReply<C> {
    let outcome = answer.outcome();
    (Ok(answer.into_response().map(SharedBody::full)), outcome)
}

/// Removes a `Content-Length` that stands beside `Transfer-Encoding` (RFC 9112 §6.3).
fn remove_false_length(headers: &mut HeaderMap) {
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
}
