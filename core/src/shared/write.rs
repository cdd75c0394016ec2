//! A request that may change something at the origin.

use std::sync::Arc;
use std::time::SystemTime;

use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderMap, StatusCode, Uri, response};

use super::SharedRule;
use super::admitted::{SharedAdmit, made_of};
use super::cache_status::SharedCacheStatus;
use super::forward::{OriginFailed, SharedOnResponse, SharedPass};
use super::freshness::{Control, Exchanged, Freshness};
use super::groups::{UriOrigin, groups_to_evict};
use super::safety::{leaves_open, why_not_storable, why_not_taggable};
use crate::headers::location::same_site;
use crate::headers::vary::selecting_fields;
use crate::policy::BodyLength;
use crate::reason::Reason;
use crate::tag::TagsToEvict;

/// A request that may change something at the origin.
#[derive(Debug)]
#[must_use]
pub struct SharedWrite {
    pub(super) rule: Arc<SharedRule>,
    /// The origin of the target.
    pub(super) origin: UriOrigin,
    /// The same host under `https`, if the target doesn't state its scheme: a service usually has the same groups there.
    pub(super) origin_by_https: Option<UriOrigin>,
    pub(super) target: Uri,
    pub(super) host: String,
    pub(super) request: HeaderMap,
    pub(super) may_store: bool,
    pub(super) has_credentials: bool,
}

impl SharedWrite {
    /// Returns `true` if the response may answer later GETs, so that a write lease is useful (RFC 9110 §9.3.3).
    #[must_use]
    pub const fn may_store(&self) -> bool {
        self.may_store
    }

    /// Returns the groups that the origin's response invalidates: those in its `Cache-Group-Invalidation`, if the write succeeded
    /// (RFC 9875 §3). They are those of the target's origin, and under `http` and `https` if the request doesn't state its scheme.
    pub fn groups_to_evict(&self, response: &response::Parts) -> TagsToEvict {
        if response.extensions.get::<OriginFailed>().is_some() {
            return TagsToEvict::default();
        }
        let origins = std::iter::once(&self.origin).chain(&self.origin_by_https);
        groups_to_evict((response.status, &response.headers), origins, &self.rule)
    }

    /// Decides about the origin's response. A client error invalidates nothing (§4.4). A 408, a server error or a
    /// missing response invalidates, because the change may have been made.
    #[must_use]
    pub fn on_response(
        self,
        response: &response::Parts,
        length: BodyLength,
        sent: SystemTime,
        now: SystemTime,
    ) -> SharedOnResponse {
        let mark = SharedCacheStatus::forwarded(Arc::clone(&self.rule), Reason::Method);
        if response.extensions.get::<OriginFailed>().is_some() {
            return SharedOnResponse::Pass(SharedPass {
                mark: mark.because(Reason::Failed),
                evicts: true,
                also: Vec::new(),
            });
        }
        if !(response.status.is_success() || response.status.is_redirection()) {
            let evicts = self.rule.evict_on_error && leaves_open(response.status);
            return SharedOnResponse::Pass(SharedPass { mark, evicts, also: Vec::new() });
        }
        let spoken_of = |name| same_site(&response.headers, &name, &self.target, &self.host);
        let content_location = spoken_of(CONTENT_LOCATION);
        let is_the_target = |uri: &Uri| uri.path_and_query() == self.target.path_and_query();
        let control = Control::of(&response.headers, &self.rule);
        let freshness = Freshness::of(
            response.status,
            &response.headers,
            &control,
            Exchanged { sent, received: now },
            &self.rule,
        );
        // RFC 9110 §9.3.3: with explicit freshness and a `Content-Location` equal to the target, the response equals
        // that of a GET.
        let is_for_gets = self.may_store
            && response.status == StatusCode::OK
            && freshness.is_explicit
            && content_location.as_ref().is_some_and(is_the_target)
            && why_not_taggable(&response.headers, &control, &self.origin, &self.rule).is_none()
            && selecting_fields(&response.headers) == Ok(Vec::new())
            && why_not_storable(response, length, &control, freshness, self.has_credentials, &self.rule)
                .is_none();
        if is_for_gets {
            return SharedOnResponse::Admit(SharedAdmit {
                stored: made_of(response.status, &response.headers, &control, freshness, now, &self.rule),
                origin: self.origin,
                adds_vary: false,
                tells_ranges: false,
                names: Vec::new(),
                known: None,
                previous: None,
                request: self.request,
                mark: mark.stored(),
            });
        }
        let also = [spoken_of(LOCATION), content_location].into_iter().flatten();
        SharedOnResponse::Pass(SharedPass {
            mark,
            evicts: true,
            also: also.filter(|uri| !is_the_target(uri)).collect(),
        })
    }
}
