//! Writes: once one has succeeded, what is stored is evicted, or replaced by its response (RFC 9111 §4.4).

use std::iter;
use std::pin::pin;
use std::sync::Arc;

use http::Response;

use super::super::SharedRecord;
use super::super::body::SharedBody;
use super::super::policy::{SharedOnResponse, SharedWrite};
use super::keep::PendingCommit;
use super::{CountedReply, SharedCache, passed, remove_false_length};
use crate::body::length_of;
use crate::exchange::{Call, FillKey, failed};
use crate::fill::background::{EvictOnDrop, Target};
use crate::fill::reentry;
use crate::key::CacheKey;
use crate::policy::rule::host;
use crate::reason::Reason;
use crate::request::RequestView;
use crate::status::Outcome;
use crate::store::Intent;
use crate::tag::TagsToEvict;

impl SharedCache {
    /// Runs a write. Once it has succeeded, what is stored is evicted, or replaced by its response (§4.4). Continues if the
    /// client disconnects.
    pub(super) async fn write<C: Call>(
        self: &Arc<Self>,
        write: SharedWrite,
        key: CacheKey,
        call: C,
    ) -> CountedReply<C> {
        let cache = Arc::clone(self);
        let site = host(&call.view());
        // The response may be stored under the first one.
        let mut keys = vec![key.clone()];
        let own = self.rule().scheme_of(&call.view());
        let RequestView { uri, alternatives, .. } = call.view();
        for uri in iter::once(uri).chain(alternatives) {
            for other in self.keys_of(&["http", "https", &own], uri, &site) {
                if !keys.contains(&other) {
                    keys.push(other);
                }
            }
        }
        let evicted: Vec<Target> = keys.into_iter().map(Target::Key).collect();
        let targets = evicted.clone();
        let work = Box::pin(async move {
            // Until the origin has answered, the outcome is unknown, so dropping this evicts.
            let unknown = EvictOnDrop::new(&cache.context, &targets);
            let lease = match write.may_store() {
                true => cache.context.acquire(&key, Intent::Write, None).await.lease(),
                false => None,
            };
            let stamp = cache.stamp_of(lease.as_ref()).await;
            let sent = cache.context.now();
            let reply = match &lease {
                Some(lease) => lease.renewing(pin!(reentry::run(&cache.context, &key, call))).await,
                None => reentry::run(&cache.context, &key, call).await,
            };
            let response = match reply {
                Ok(response) => response,
                Err(error) => {
                    cache.context.evict(&targets).await;
                    unknown.disarm();
                    return failed::<C, _>(error);
                }
            };
            let (mut parts, body) = response.into_parts();
            remove_false_length(&mut parts.headers);
            let length = length_of(&parts.headers, &body);
            cache.evict_groups(write.groups_to_evict(&parts)).await;
            let counted = match write.on_response(&parts, length, sent, cache.context.now()) {
                // One response can't replace all variants.
                SharedOnResponse::Admit(admit) if lease.is_some() && !cache.varies(&key).await => {
                    cache.context.evict(&targets[1..]).await;
                    let fill_key = FillKey { primary: key.clone(), variant: None };
                    let work = PendingCommit { lease, stamp, leader: None, fill_key, is_write: true };
                    cache.keep::<C>(admit, parts, body, length, work).await
                }
                SharedOnResponse::Admit(admit) => {
                    cache.context.evict(&targets).await;
                    passed::<C>(&admit.mark().clone().unstored().because(Reason::Vary), parts, body)
                }
                SharedOnResponse::Pass(pass) => {
                    if pass.evicts() {
                        cache.context.evict(&targets).await;
                    }
                    for uri in pass.also() {
                        cache.evict(uri, &site).await;
                    }
                    passed::<C>(pass.mark(), parts, body)
                }
                // A write has no stored response to answer with.
                SharedOnResponse::ServeStale(_) | SharedOnResponse::Freshened(_) => {
                    let outcome = Outcome::passed(Some(Reason::Method), parts.status);
                    (Ok(Response::from_parts(parts, SharedBody::own(body))), outcome)
                }
            };
            unknown.disarm();
            counted
        });
        self.context.run_write(&evicted, work).await
    }

    /// Evicts the groups that the response to a write names. An eviction that is cut off here continues in the background.
    async fn evict_groups(&self, groups: TagsToEvict) {
        if groups.sets().is_empty() {
            return;
        }
        let targets = [Target::Tags(self.rule().space.clone(), Arc::new(groups))];
        let unfinished = EvictOnDrop::new(&self.context, &targets);
        self.context.evict(&targets).await;
        unfinished.disarm();
    }

    async fn varies(&self, key: &CacheKey) -> bool {
        !matches!(self.read_record(key).await, Ok(None | Some(SharedRecord::Response(_))))
    }
}
