//! The tags of a fill or a write: those that the route declares, and those that the handler names.
//!
//! The tag clock is read before the handler runs, so that every eviction by tag since then counts against the entry, also if its
//! tags are known only afterwards.

use http::Extensions;
use tracing::warn;

use crate::policy::rule::Principal;
use crate::reason::Reason;
use crate::request::RequestView;
use crate::route::Route;
use crate::tag::{ResponseTags, TagError, TagStamp, Tagged, Tags, TagsToEvict};

/// The tags of one fill or write, as far as they are known before the handler runs.
pub(super) struct Tagging {
    /// The tag clock before the handler ran, or the reason for which no tagged response can be stored.
    stamp: Result<TagStamp, Reason>,
    declared: Result<Tags, TagError>,
}

impl Route {
    /// Reads the tag clock and the tags that the route declares. Called before the handler runs.
    pub(super) async fn begin_tagging(
        &self,
        request: RequestView<'_>,
        principal: Option<Principal>,
    ) -> Tagging {
        let rule = &self.policy.rule().tags;
        if rule.is_empty() && !self.tag_memory.has_tags() {
            let stamp = match self.tag_memory.first_stamp() {
                Some(stamp) => stamp.ok_or(Reason::Tags),
                None => self.read_first_stamp().await,
            };
            return Tagging { stamp, declared: Ok(Tags::default()) };
        }
        let declared = self.declared_tags(request, principal);
        let stamp = self.read_stamp().await.and_then(|stamp| stamp.ok_or(Reason::Tags));
        Tagging { stamp, declared }
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

    async fn read_first_stamp(&self) -> Result<TagStamp, Reason> {
        let stamp = self.read_stamp().await;
        if stamp.is_err() {
            // Most routes have no tags. They don't ask again; the first response with tags makes the route ask for each fill.
            self.tag_memory.record_first_stamp(None);
        }
        stamp?.ok_or(Reason::Tags)
    }

    async fn read_stamp(&self) -> Result<Option<TagStamp>, Reason> {
        let space = &self.policy.rule().space;
        let stamp = self.context.store.tag_clock(space).await.map_err(|error| {
            self.context.store_failed("tag_clock", space.prefix(), &error);
            Reason::Down
        })?;
        self.tag_memory.record_first_stamp(stamp);
        Ok(stamp)
    }

    /// Returns the tags for the entry of a response, or `None` if it has none.
    ///
    /// # Errors
    ///
    /// Returns the reason for which the response can't be stored.
    pub(super) fn tags_of_response(
        &self,
        tagging: &Tagging,
        response: &Extensions,
    ) -> Result<Option<Tagged>, Reason> {
        let named = response.get::<ResponseTags>();
        if let (Ok(declared), None) = (&tagging.declared, named)
            && declared.is_empty()
        {
            return Ok(None);
        }
        if named.is_some() {
            self.tag_memory.record_tags();
        }
        let named = named.map_or_else(|| Ok(Tags::default()), |named| named.tags().cloned());
        match tagging.declared.clone().and_then(|declared| declared.union(named?)) {
            Ok(tags) if tags.is_empty() => Ok(None),
            Ok(tags) => Ok(Some(Tagged::new(tagging.stamp?, &tags))),
            Err(error) => {
                let group = self.policy.rule().space.group();
                warn!(group, %error, "a response isn't stored, because an entry can't have its tags");
                Err(Reason::Tags)
            }
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
