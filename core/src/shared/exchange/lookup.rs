//! Looks up a request: under the key, and under the secondary key if the resource varies.

use bytes::Bytes;

use super::super::policy::{
    OnRecord, SharedAnswer, SharedCacheStatus, SharedDecision, SharedForward, SharedLookup, SharedOnRequest,
    SharedWrite,
};
use super::super::{SharedRecord, StoredResponse};
use super::SharedCache;
use crate::exchange::FillKey;
use crate::exchange::excerpt::Excerpt;
use crate::fill::reentry;
use crate::key::CacheKey;
use crate::reason::Reason;
use crate::request::RequestView;
use crate::tag::stale_since;

impl SharedCache {
    /// Looks up a request under its key, and under the secondary key if the resource varies.
    pub(super) async fn lookup(&self, request: RequestView<'_>) -> SharedLookupResult {
        let mut lookup = match self.policy.on_request(&request) {
            SharedOnRequest::Bypass(mark) => return SharedLookupResult::Bypass(mark),
            SharedOnRequest::Write(write) => {
                let key = self.rule().key(&request);
                return match reentry::is_running(&self.context, &key, request.extensions) {
                    true => SharedLookupResult::Nested,
                    false => SharedLookupResult::Write(write, key),
                };
            }
            SharedOnRequest::Lookup(lookup) => lookup,
        };
        let key = lookup.key(&request);
        if reentry::is_running(&self.context, &key, request.extensions) {
            return SharedLookupResult::Nested;
        }
        let found = self.read_for(&mut lookup, &key, &request).await;
        let mut select = match lookup.on_record(found, &request, self.context.now()) {
            OnRecord::Decided(decision) => return SharedLookupResult::of(decision, key, None),
            OnRecord::Select(select) => select,
        };
        let target = key.variant(select.secondary_key(&request));
        let found = self.read_for(select.lookup_mut(), &target, &request).await;
        SharedLookupResult::of(select.on_record(found, &request, self.context.now()), key, Some(target))
    }

    /// Reads a record. Of a large response it may read only the part that the request needs, and tells the lookup so.
    async fn read_for(
        &self,
        lookup: &mut SharedLookup,
        key: &CacheKey,
        request: &RequestView<'_>,
    ) -> Result<Option<SharedRecord>, Reason> {
        if !lookup.may_need_less() {
            return self.read_record(key).await;
        }
        if let Some(bytes) = self.context.store.try_get(key) {
            return self.decode(&bytes).map(Some);
        }
        let now = self.context.now();
        let needs = |stored: &StoredResponse, length| lookup.needs(stored, length, request, now);
        match Box::pin(self.context.excerpt(key, StoredResponse::read_beginning, needs)).await? {
            Excerpt::Whole(found) => found.map(|bytes| self.decode(&bytes)).transpose(),
            Excerpt::Part(stored, body, length) => {
                lookup.expect_excerpt(length);
                Ok(Some(SharedRecord::Response(Box::new(StoredResponse { body, ..stored }))))
            }
            Excerpt::TooLittle => self.read_record(key).await,
        }
    }

    pub(super) async fn read_record(&self, key: &CacheKey) -> Result<Option<SharedRecord>, Reason> {
        match self.context.store.get(key).await {
            Ok(None) => Ok(None),
            Ok(Some(bytes)) => self.decode(&bytes).map(Some),
            Err(error) => {
                self.context.store_failed("get", key.name(), &error);
                Err(Reason::Down)
            }
        }
    }

    /// Decodes a record. A response that was evicted softly is stale.
    fn decode(&self, bytes: &Bytes) -> Result<SharedRecord, Reason> {
        match SharedRecord::decode(bytes) {
            Some(record) => Ok(record),
            None => self.decode_stale(bytes).ok_or(Reason::Unreadable),
        }
    }

    #[cold]
    fn decode_stale(&self, bytes: &Bytes) -> Option<SharedRecord> {
        let (since, value) = stale_since(bytes)?;
        match SharedRecord::decode(&value)? {
            SharedRecord::Response(stored) => {
                let stored = stored.stale_since(since, self.context.now());
                Some(SharedRecord::Response(Box::new(stored)))
            }
            // Each variant is judged by itself.
            variants @ SharedRecord::Variants(_) => Some(variants),
        }
    }
}

/// The result of a lookup, with the keys that the request needs next.
pub(super) enum SharedLookupResult {
    Answer(SharedAnswer),
    Bypass(SharedCacheStatus),
    /// The same cache is already running the service for this key.
    Nested,
    Write(SharedWrite, CacheKey),
    Stale(SharedAnswer, SharedForward, FillKey),
    Forward(SharedForward, FillKey),
}

impl SharedLookupResult {
    /// `target` is the key of the variant, if the resource varies.
    fn of(decision: SharedDecision, base: CacheKey, target: Option<CacheKey>) -> Self {
        match decision {
            SharedDecision::Answer(answer) => Self::Answer(answer),
            SharedDecision::Stale(answer, forward) => {
                Self::Stale(answer, forward, FillKey { primary: base, variant: target })
            }
            SharedDecision::Forward(forward) => {
                Self::Forward(forward, FillKey { primary: base, variant: target })
            }
        }
    }

    /// Marks an answer as collapsed: the request waited for the fill of another one.
    pub(super) fn collapsed(self, reason: Reason) -> Self {
        match self {
            Self::Answer(answer) => Self::Answer(answer.collapsed(reason)),
            seen => seen,
        }
    }
}
