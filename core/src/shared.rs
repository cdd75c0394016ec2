//! A shared cache in front of a whole service (RFC 9111). The fields of responses decide what is stored, not options of
//! routes.
//!
//! [`policy`] is a state machine without I/O and without a clock. [`SharedCache`] (feature `runtime`) drives it on the
//! same stores, keys, leases and single flight as the route cache. [`SharedRule`] holds the choices that RFC 9111
//! leaves to a cache.
//!
//! | RFC 9111 | here |
//! |---|---|
//! | §3 storing | [`policy::SharedForward::on_response`] |
//! | §3.1, §3.2 which fields | `fields.rs` |
//! | §3.3, §3.4 parts of a body, RFC 9110 §14 | `partial.rs` |
//! | §4 answering | [`policy::SharedLookup::on_record`] |
//! | §4.1 `Vary` | the same records of variants as routes have |
//! | §4.2 age and freshness | `freshness.rs` |
//! | §4.3 validation | [`policy::SharedForward::prepare`], [`policy::SharedForward::on_response`] |
//! | §4.4 invalidation | [`policy::SharedWrite`] |
//! | RFC 9875 groups | `groups.rs` |

mod admitted;
mod answer;
mod cache_status;
mod fields;
mod forward;
mod freshness;
mod groups;
mod partial;
pub mod policy;
mod safety;
mod target;
mod write;

#[cfg(feature = "runtime")]
mod body;
#[cfg(feature = "runtime")]
mod budget;
#[cfg(feature = "runtime")]
mod exchange;

use std::time::Duration;

use http::uri::Scheme;
use http::{HeaderMap, HeaderName, Uri};

use crate::key::{self, CacheKey, KeySpace};
use crate::policy::rule::{DEFAULT_MAX_BODY, host};
use crate::request::RequestView;
use crate::tag::TagField;
use groups::UriOrigin;
use target::Unkeyed;

pub use crate::record::shared::{SharedRecord, StoredPart, StoredResponse};
pub use policy::SharedPolicy;

#[cfg(feature = "runtime")]
pub use {
    body::SharedBody,
    exchange::{SharedCache, SharedReply},
};

/// The default memory budget for bodies that are being stored, in bytes.
const DEFAULT_MAX_HELD: u64 = 64 * 1024 * 1024;

/// The choices that RFC 9111 leaves to a shared cache.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SharedRule {
    /// The prefix and the eviction group of its keys.
    pub space: KeySpace,
    /// The largest body that is stored, in bytes. Larger ones flow through. 10 MiB.
    pub max_body: u64,
    /// The memory budget for bodies that are being stored, in bytes, in this process. A body counts until it is stored
    /// and its client has read it. A response that exceeds the budget passes through unstored, with the reason
    /// `budget`. 64 MiB.
    pub max_held: u64,
    /// The longest freshness lifetime estimated from `Last-Modified` for a response without explicit freshness
    /// (§4.2.2). One day; with zero, nothing is estimated.
    pub heuristic_limit: Duration,
    /// The time after its freshness lifetime during which a response with a validator is kept, to be validated (§4.3). One day;
    /// with zero, no longer than it may be used.
    pub keep_stale: Duration,
    /// The time during which a stale response is used when the origin fails (§4.2.4), unless the response states a time itself
    /// (`stale-if-error`, RFC 5861 §4) or forbids it. One hour; with zero, never.
    pub stale_if_error: Duration,
    /// The time during which a stale response is used while it is refreshed, unless the response states a time itself
    /// (`stale-while-revalidate`, RFC 5861 §3) or forbids it. Zero, which means never.
    pub stale_while_revalidate: Duration,
    /// `true` if a write that was answered with 408 or a server error evicts, because it may have taken effect. §4.4
    /// requires that after a success only. `true` by default. A write without a response always evicts.
    pub evict_on_error: bool,
    /// `true` if a response whose `Age` isn't one non-negative integer counts as stale: another cache kept it for an unknown
    /// time. `false` by default: of a list the first member counts, and an invalid `Age` is ignored (§5.1).
    pub invalid_age_is_stale: bool,
    /// The treatment of responses that set a cookie. Never stored by default.
    pub set_cookie: SetCookie,
    /// Request fields that carry credentials like `Authorization`, beside the usual ones, which the guide's page on
    /// safety lists, and those of the builder. A response to a request with one of them is stored only if it says
    /// `public`, `s-maxage` or `must-revalidate` (§3.5). Empty by default. `Cookie` is not one of the usual fields
    /// here, because §3 leaves the decision to the response. Add it for an origin that answers by cookie and doesn't
    /// say `private`.
    pub credential_fields: Vec<HeaderName>,
    /// The query parameters that are not part of the key, beside those of the builder. A `*` in a name stands for any characters. The
    /// origin still sees them, so it must not answer by them. A redirect in response to a request with such a parameter isn't stored,
    /// because it may repeat it. A parameter with a `;` in it counts always. Empty by default.
    pub ignored_params: Vec<String>,
    /// The content codings that the origin's responses can have, such as `gzip`; `None` means any. Other codings are taken out of
    /// `Accept-Encoding` before the origin and the variants see it, so that clients which differ only in them share a
    /// variant (RFC 9111 §4.1). `None` by default: only the spelling is normalised.
    pub content_codings: Option<Vec<String>>,
    /// The source of the scheme in the key: `http://a/` and `https://a/` are different resources (RFC 9110 §4.2.1,
    /// §4.2.2). The request's URI by default.
    pub scheme: SchemeSource,
    /// Targeted fields that this cache uses instead of `Cache-Control` and `Expires`, such as `CDN-Cache-Control`: the
    /// first one that a response has (RFC 9213). Empty by default.
    pub targeted: Vec<HeaderName>,
    /// The fields of responses that name their tags. `Cache-Groups` by default.
    ///
    /// * [`CacheGroups`](TagField::CacheGroups): the response to a successful write evicts the groups that its
    ///   `Cache-Group-Invalidation` names (RFC 9875). A group is that of its origin, the scheme, host and port of the target URI. A
    ///   write that doesn't state its scheme evicts the groups of its host under `http` and `https`.
    ///   Without this member, both fields are ignored: for an origin whose resources belong to parties that must not evict each
    ///   other's responses (RFC 9875 §5).
    /// * [`SurrogateKey`](TagField::SurrogateKey), [`CacheTag`](TagField::CacheTag): the tags of CDNs, which
    ///   [`Larder::evict_tag`](crate::Larder::evict_tag) evicts, byte by byte as they are written in the field, if `space` has the
    ///   prefix of the cache, as it has by default.
    ///
    /// Responses that were stored before a field was listed have no tags from it until they are stored again, so evict the whole
    /// prefix after such a change.
    ///
    /// A response whose tags an entry can't have, such as 129 of them or one of 257 bytes, is not stored, for the reason `tags`.
    pub tag_fields: Vec<TagField>,
    /// `true` if `Surrogate-Key` and `Cache-Tag` reach the client although this cache reads them: for another cache in front of this
    /// one. Otherwise they are removed, as CDNs do. `false` by default. `Cache-Groups` always reaches the client, because it is for
    /// every cache on the way.
    pub keep_tag_fields: bool,
    /// The name of this cache in `Cache-Status` (RFC 9211). A name that is no token is sent as a string, without characters
    /// other than those of ASCII. `None` leaves the field out. `Larder` by default.
    pub cache_status: Option<Box<str>>,
}

/// The treatment of responses that set a cookie. RFC 9111 has no special rule for them (§7.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetCookie {
    /// Never stores such a response: other clients would get the cookie of this one. A cookie that comes with a 304 is
    /// not stored either: it is for the client whose request was validated.
    #[default]
    Never,
    /// Stores such a response with its cookie if its freshness is explicit. Only for origins whose cookies are meant
    /// for all clients.
    IfExplicit,
}

/// The source of the scheme of a request's URI. A request in origin form (RFC 9112 §3.2.1) has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SchemeSource {
    /// The URI, or `http` if it has no scheme. HTTP/2 requests have one.
    #[default]
    Uri,
    /// This scheme, whatever the URI contains: for a listener that serves one scheme.
    Always(Scheme),
    /// `X-Forwarded-Proto`, else `proto` in `Forwarded` (RFC 7239 §5.4), else the URI. Only behind a proxy that sets one of
    /// them on every request: otherwise a client could choose the scheme.
    ///
    /// Without this option, requests whose `X-Forwarded-Proto` isn't the scheme in the key have variants of their own.
    /// That is as safe, and costs a second read of the store for each hit.
    Forwarded,
}

impl SharedRule {
    /// The usual rule.
    #[must_use]
    pub fn new(space: KeySpace) -> Self {
        const HOUR: Duration = Duration::from_secs(60 * 60);
        Self {
            space,
            max_body: DEFAULT_MAX_BODY,
            max_held: DEFAULT_MAX_HELD,
            heuristic_limit: HOUR * 24,
            keep_stale: HOUR * 24,
            stale_if_error: HOUR,
            stale_while_revalidate: Duration::ZERO,
            evict_on_error: true,
            invalid_age_is_stale: false,
            set_cookie: SetCookie::default(),
            credential_fields: Vec::new(),
            content_codings: None,
            ignored_params: Vec::new(),
            scheme: SchemeSource::default(),
            targeted: Vec::new(),
            tag_fields: vec![TagField::CacheGroups],
            keep_tag_fields: false,
            cache_status: Some("Larder".into()),
        }
    }

    /// Returns the origin of the target URI of a request (RFC 9110 §4.3.1).
    fn origin_of(&self, request: &RequestView<'_>) -> UriOrigin {
        UriOrigin::new(&target::scheme(request, &self.scheme), &host(request))
    }

    /// Removes the fields that are for this cache alone.
    fn remove_tag_fields(&self, response: &mut HeaderMap) {
        let is_removed = |field: &&TagField| **field != TagField::CacheGroups && !self.keep_tag_fields;
        for field in self.tag_fields.iter().filter(is_removed) {
            response.remove(field.name());
        }
    }

    /// Returns the key of a request: its target URI (§2) in one canonical spelling, its scheme and its host. The query
    /// keeps its order, because only the origin knows if it matters.
    ///
    /// A request with another spelling gets the key that [`key_apart`](Self::key_apart) makes. So does a request with a
    /// field that may send it elsewhere, such as an `X-Forwarded-Host` that isn't the host. Each of them is a variant
    /// of its own under that key, so no spelling gets the response to another.
    #[must_use]
    pub fn key(&self, request: &RequestView<'_>) -> CacheKey {
        self.key_beside(request, &Unkeyed::of(request, self))
    }

    #[cfg(feature = "runtime")]
    fn scheme_of<'a>(&'a self, request: &RequestView<'a>) -> std::borrow::Cow<'a, str> {
        target::scheme(request, &self.scheme)
    }

    fn key_beside(&self, request: &RequestView<'_>, unkeyed: &Unkeyed) -> CacheKey {
        let scheme = target::scheme(request, &self.scheme);
        self.key_made(&scheme, request.uri, &host(request), !unkeyed.is_empty())
    }

    /// Returns the key of a URI under a scheme and at a host. The scheme and host of an absolute URI are ignored.
    #[must_use]
    pub fn key_of(&self, scheme: &str, uri: &Uri, host: &str) -> CacheKey {
        self.key_made(scheme, uri, host, false)
    }

    /// Returns the key for requests that may need another response than the canonical one. An invalidation needs both
    /// keys.
    #[must_use]
    pub fn key_apart(&self, scheme: &str, uri: &Uri, host: &str) -> CacheKey {
        self.key_made(scheme, uri, host, true)
    }

    fn key_made(&self, scheme: &str, uri: &Uri, host: &str, apart: bool) -> CacheKey {
        let target = target::without_ignored_params(target::target_of(uri), &self.ignored_params);
        let target = target::canonical(&target);
        self.space.key_with(target.len() + scheme.len() + host.len() + 9, |out| {
            // Unlike the keys of routes, these begin with a slash and end in a site, so that both can share a store.
            key::write_chosen(out, &target);
            key::write_part(out, "site", scheme);
            out.push_str("://");
            key::write_chosen(out, host);
            if apart {
                key::write_part(out, "apart", "");
            }
        })
    }
}
