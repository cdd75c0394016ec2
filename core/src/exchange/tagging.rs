//! The tags of a fill or a write: those that the route declares, and those that the handler names.
//!
//! The tag clock is read before the handler runs, so that every eviction by tag since then counts against the entry, also if its
//! tags are known only afterwards.

use std::future::Future;
use std::time::Duration;

use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderValue, response};
use tokio::time::Instant;
use tracing::warn;

use crate::exchange::tag_memory::TagMemory;
use crate::key::KeySpace;
use crate::larder::context::CacheContext;
use crate::policy::rule::{Kind, Principal, Rule};
use crate::reason::Reason;
use crate::request::RequestView;
use crate::route::Route;
use crate::tag::{ResponseTags, TagError, TagStamp, Tagged, Tags, TagsToEvict};

/// The time for which a clock that was read with a lease is used.
const EARLY_STAMP_LASTS: Duration = Duration::from_millis(20);

/// The tags of one fill or write, as far as they are known before the handler runs.
pub(super) struct Tagging {
    /// The tag clock before the handler ran, or the reason for which no tagged response can be stored.
    stamp: Result<TagStamp, Reason>,
    declared: Result<Tags, TagError>,
}

impl CacheContext {
    /// Returns the tag clock for the stamp of an entry that is about to be made. It is not read again if no response so far had
    /// tags, unless `is_tagged`.
    ///
    /// # Errors
    ///
    /// Returns the reason for which no entry with tags can be stored.
    pub(crate) async fn stamp(
        &self,
        space: &KeySpace,
        memory: &TagMemory,
        is_tagged: bool,
    ) -> Result<TagStamp, Reason> {
        let is_tagged = is_tagged || memory.has_tags();
        if let Some(stamp) = memory.first_stamp().filter(|_| !is_tagged) {
            return stamp.ok_or(Reason::Tags);
        }
        let stamp = self.store.tag_clock(space).await.map_err(|error| {
            self.store_failed("tag_clock", space.prefix(), &error);
            Reason::Down
        });
        match stamp {
            Ok(stamp) => memory.record_first_stamp(stamp),
            // Most responses have no tags. Their fills don't ask again; the first response with tags makes each fill ask.
            Err(_) if !is_tagged => memory.record_first_stamp(None),
            Err(_) => {}
        }
        stamp?.ok_or(Reason::Tags)
    }
}

impl Route {
    /// Reads the tag clock and the tags that the route declares. Called before the handler runs.
    ///
    /// `early` is a clock that was read a moment ago.
    pub(super) async fn begin_tagging(
        &self,
        request: RequestView<'_>,
        principal: Option<Principal>,
        early: Option<Result<TagStamp, Reason>>,
    ) -> Tagging {
        let declared = self.declared_tags(request, principal);
        let stamp = match early {
            Some(stamp) => stamp,
            None => self.read_stamp().await,
        };
        Tagging { stamp, declared }
    }

    async fn read_stamp(&self) -> Result<TagStamp, Reason> {
        let rule = self.policy.rule();
        self.context.stamp(&rule.space, &self.tag_memory, !rule.tags.is_empty()).await
    }

    /// Acquires a lease, and reads the tag clock at the same time if responses of the route have tags. The clock is returned
    /// only if it was read a moment ago: a lease may take long, and an older stamp counts more evictions against the entry.
    pub(super) async fn with_early_stamp<T>(
        &self,
        acquire: impl Future<Output = T>,
    ) -> (T, Option<Result<TagStamp, Reason>>) {
        if self.policy.rule().tags.is_empty() && !self.tag_memory.has_tags() {
            return (acquire.await, None);
        }
        let began = Instant::now();
        let (acquired, stamp) = tokio::join!(acquire, self.read_stamp());
        (acquired, (began.elapsed() < EARLY_STAMP_LASTS).then_some(stamp))
    }

    /// Returns the tagging of a response that won't be stored, so that its invalid tags are reported all the same.
    pub(super) fn tagging_of_unstored(
        &self,
        request: RequestView<'_>,
        principal: Option<Principal>,
    ) -> Tagging {
        let declared = self.declared_tags(request, principal);
        let stamp = match self.tag_memory.first_stamp() {
            Some(None) => Err(Reason::Tags),
            _ => Ok(TagStamp { nonce: [0; 8], epoch: 0 }),
        };
        Tagging { stamp, declared }
    }

    fn declared_tags(
        &self,
        request: RequestView<'_>,
        principal: Option<Principal>,
    ) -> Result<Tags, TagError> {
        let rule = &self.policy.rule().tags;
        // The name of a principal's tag is made only where it is used.
        rule.of_entry(&request, principal.filter(|_| rule.by_principal).map(Principal::tag))
    }

    /// Returns the tags for the entry of a response, or `None` if it has none. Names them in the fields that the route emits.
    ///
    /// # Errors
    ///
    /// Returns the reason for which the response can't be stored.
    pub(super) fn tags_of_response(
        &self,
        tagging: &Tagging,
        response: &mut response::Parts,
    ) -> Result<Option<Tagged>, Reason> {
        let named = response.extensions.get::<ResponseTags>();
        if let (Ok(declared), None) = (&tagging.declared, named)
            && declared.is_empty()
        {
            return Ok(None);
        }
        if named.is_some() {
            self.tag_memory.record_tags();
        }
        let named = named.map_or_else(|| Ok(Tags::default()), |named| named.tags().cloned());
        let tags = tagging.declared.clone().and_then(|declared| declared.union(named?));
        let emitted = &self.policy.rule().tags.emitted;
        match tags {
            Ok(tags) => {
                for field in emitted {
                    field.add(&mut response.headers, tags.iter());
                }
                if tags.is_empty() { Ok(None) } else { Ok(Some(Tagged::new(tagging.stamp?, &tags))) }
            }
            Err(error) => {
                // A CDN couldn't purge the response by its tags.
                if !emitted.is_empty() {
                    response
                        .headers
                        .entry(CACHE_CONTROL)
                        .or_insert(const { HeaderValue::from_static("no-store") });
                }
                let group = self.policy.rule().space.group();
                warn!(group, %error, "a response isn't stored, because an entry can't have its tags");
                Err(Reason::Tags)
            }
        }
    }

    /// Names the tags of a response that the cache takes no part in, because other caches may store it.
    pub(super) fn emit_tags(&self, tagging: Option<&Tagging>, response: &mut response::Parts) {
        if let Some(tagging) = tagging {
            // It isn't stored here in any case.
            let _: Result<Option<Tagged>, Reason> = self.tags_of_response(tagging, response);
        }
    }

    /// Returns the tagging of a response that is only named to other caches, if the route does so.
    pub(super) fn tagging_to_emit(
        &self,
        request: RequestView<'_>,
        principal: Option<Principal>,
    ) -> Option<Tagging> {
        let Rule { kind, tags, .. } = &**self.policy.rule();
        let has_tags = matches!(kind, Kind::Read | Kind::Write);
        (has_tags && !tags.emitted.is_empty()).then(|| self.tagging_of_unstored(request, principal))
    }

    /// Names the tags that a write evicted in `Cache-Group-Invalidation` of its response (RFC 9875 §3).
    pub(super) fn emit_evicted<'a>(
        &self,
        evicted: impl Iterator<Item = &'a TagsToEvict> + Clone,
        response: &mut HeaderMap,
    ) {
        for field in &self.policy.rule().tags.emitted {
            field.add_evicted(response, evicted.clone().flat_map(TagsToEvict::sets).flat_map(Tags::iter));
        }
    }

    /// Returns the tags that a request to an evicting route evicts.
    pub(super) fn tags_to_evict(&self, request: &RequestView<'_>) -> TagsToEvict {
        let tags = self.policy.rule().tags.to_evict(request);
        self.warn_invalid(&tags);
        tags
    }

    pub(super) fn warn_invalid(&self, tags: &TagsToEvict) {
        if let Some(error) = tags.invalid() {
            let group = self.policy.rule().space.group();
            warn!(group, %error, "an eviction by tag skips a tag that no entry can have");
        }
    }
}
