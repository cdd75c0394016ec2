//! Routes that write or evict: run the handler, then store or evict.

use std::pin::pin;
use std::sync::Arc;

use http::header::LOCATION;
use http::{HeaderMap, Response, StatusCode};

use crate::exchange::call::{Call, Counted, answered, failed, passed, stale_reply};
use crate::exchange::fill::HandlerResult;
use crate::fill::background::{EvictOnDrop, Target};
use crate::fill::lease::LeaseGuard;
use crate::fill::reentry;
use crate::headers::location::same_site;
use crate::policy::rule::{Kind, Principal, host};
use crate::policy::{Admitted, CommitResult, Forward, leaves_outcome_unknown};
use crate::reason::Reason;
use crate::record::Record;
use crate::request::RequestView;
use crate::route::Route;
use crate::tag::{EvictionMode, TagsToEvict};
use crate::telemetry::spans;

impl Route {
    /// Runs the handler of a write and then stores or evicts, detached from the client.
    pub(super) async fn write<C: Call>(self: &Arc<Self>, forward: Forward, call: C) -> Counted<C> {
        let target = match forward.kind() {
            Kind::EvictGroup => self.softly(Target::Group(self.policy.rule().space.clone())),
            Kind::EvictTags => self.tag_target(&call.view()),
            _ => match self.key(&call.view(), forward.principal()).await {
                Some(key) if reentry::is_running(&self.context, &key, call.view().extensions) => {
                    return self.pass_through(call).await;
                }
                Some(key) => self.softly(Target::Key(key)),
                None => return self.bypass(forward.unstored(Reason::Keyless), call).await,
            },
        };
        self.warn_undeclared(forward.why_not_storable(), call.view().pattern);
        let mut evicted = vec![target.clone()];
        if target.key().is_some() {
            for uri in call.view().alternatives {
                let key = self.key(&call.view().with_uri(uri), forward.principal()).await;
                evicted.extend(key.map(|key| self.softly(Target::Key(key))));
            }
        }
        if matches!(forward.kind(), Kind::EvictKey | Kind::EvictGroup) && !self.policy.rule().tags.is_empty()
        {
            evicted.push(self.tag_target(&call.view()));
        }
        let (route, targets) = (Arc::clone(self), evicted.clone());
        let request = WriteRequest::of(&call.view(), forward.principal());
        let work = Box::pin(async move {
            let lease = match (target.key(), forward.intent()) {
                (Some(key), Some(intent)) => route.context.acquire(key, intent, None).await.lease(),
                _ => None,
            };
            // A handler that panics, or is abandoned by its caller, may have made its change. The guard stays armed until
            // the entry is stored or evicted.
            let unknown = EvictOnDrop::new(&route.context, &targets);
            let result = match &lease {
                Some(lease) => {
                    let tagging = route.begin_tagging(call.view(), forward.principal(), None).await;
                    let running = route.run_handler(forward, target.key(), call, Some(&tagging));
                    lease.renewing(pin!(running)).await
                }
                None => {
                    let tagging = route.tagging_to_emit(call.view(), forward.principal());
                    route.run_handler(forward, target.key(), call, tagging.as_ref()).await
                }
            };
            let mut counted = match result {
                HandlerResult::Error(error) => {
                    if leaves_outcome_unknown(C::status_of(&error)) {
                        route.context.evict(&targets).await;
                    }
                    failed::<C, _>(error)
                }
                // Only reads have a stale response to serve.
                HandlerResult::Stale(response) => stale_reply::<C>(response),
                HandlerResult::Passed(response, pass) => {
                    if pass.evicts() {
                        route.context.evict(&targets).await;
                    }
                    passed::<C>(response, &pass)
                }
                HandlerResult::Admitted(admitted, tagged) => {
                    let lease = lease.map(|lease| lease.tagged(tagged));
                    let stored = route.write_through(&admitted, &target, lease).await;
                    if stored != CommitResult::Stored {
                        route.context.evict(&targets).await;
                    }
                    answered::<C>(*admitted, stored)
                }
            };
            if let Ok(response) = &mut counted.0 {
                route.evict_named(&targets, response).await;
                route.evict_created(&request, &target, response.status(), response.headers()).await;
            }
            unknown.disarm();
            counted
        });
        self.context.run_write(&evicted, work).await
    }

    /// Returns the target, with entries that become stale if the route evicts softly.
    fn softly(&self, target: Target) -> Target {
        match self.policy.rule().eviction {
            EvictionMode::Hard => target,
            EvictionMode::Soft => target.soft(),
        }
    }

    fn tag_target(&self, request: &RequestView<'_>) -> Target {
        self.softly(Target::Tags(self.policy.rule().space.clone(), Arc::new(self.tags_to_evict(request))))
    }

    /// Evicts the tags that the handler named. The innermost layer takes them out of the response, so that they are evicted once.
    /// Then tells other caches what was evicted.
    async fn evict_named<B>(&self, targets: &[Target], response: &mut Response<B>) {
        let named = response.extensions_mut().remove::<TagsToEvict>();
        let status = response.status();
        if !(status.is_success() || status.is_redirection() || leaves_outcome_unknown(status)) {
            return;
        }
        let named = named.map(|tags| {
            self.warn_invalid(&tags);
            Target::Tags(self.policy.rule().space.clone(), Arc::new(tags))
        });
        if let Some(named) = &named {
            self.context.evict_target(named).await;
        }
        self.emit_evicted(targets.iter().chain(&named).filter_map(Target::tags), response.headers_mut());
    }

    /// Evicts the entry of a resource that a write created at another URI (RFC 9110 §15.3.2), such as a stored 404.
    async fn evict_created(
        &self,
        request: &WriteRequest,
        target: &Target,
        status: StatusCode,
        response: &HeaderMap,
    ) {
        if status != StatusCode::CREATED {
            return;
        }
        let view = RequestView::from(&request.parts);
        if let Some(created) = same_site(response, &LOCATION, view.uri, &host(&view))
            && let Some(key) = self.key(&view.with_uri(&created), request.principal).await
            // The write's own entry is already stored or evicted.
            && target.key() != Some(&key)
        {
            self.context.evict_key(&key).await;
        }
    }

    /// Stores a write's response if its write lease is still current. Otherwise the caller evicts.
    pub(super) async fn write_through(
        &self,
        admitted: &Admitted,
        target: &Target,
        lease: Option<LeaseGuard>,
    ) -> CommitResult {
        let (Some(key), Some(lease)) = (target.key(), lease) else { return CommitResult::Failed };
        // One response isn't valid for all variants, and the record that lists them may just have expired.
        if self.context.known_to_vary.contains(key) {
            return CommitResult::Revoked;
        }
        let found = self.read_record(key).await;
        if matches!(found, Ok(Some(Record::Variants(_)))) {
            self.context.known_to_vary.insert(key);
        }
        if let Ok(Some(record)) = found
            && !admitted.may_replace(&record)
        {
            return CommitResult::Revoked;
        }
        let span = spans::put(key, admitted.retention());
        let stored = span.around(lease.commit(admitted.record(), admitted.retention())).await;
        span.stored(stored);
        stored
    }
}

/// A request that writes, kept while the handler runs.
struct WriteRequest {
    parts: http::request::Parts,
    principal: Option<Principal>,
}

impl WriteRequest {
    fn of(view: &RequestView<'_>, principal: Option<Principal>) -> Self {
        let (mut parts, ()) = http::Request::new(()).into_parts();
        parts.method = view.method.clone();
        parts.uri = view.uri.clone();
        parts.headers = view.headers.clone();
        parts.extensions = view.extensions.clone();
        Self { parts, principal }
    }
}
