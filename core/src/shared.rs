//! A shared cache in front of a whole service (RFC 9111): the responses' own fields rule, not the author of a route.
//!
//! It is made like the route cache. [`policy`] is a state machine without I/O and without a clock, which
//! [`SharedCache`] (feature `runtime`) drives on the same stores, with the same keys, leases and single flight. What
//! RFC 9111 leaves to a cache is a [`SharedRule`].
//!
//! | RFC 9111 | here |
//! |---|---|
//! | §3 storing | [`policy::Forward::on_response`] |
//! | §3.1, §3.2 which fields | `fields.rs` |
//! | §3.3, §3.4 parts of a body, RFC 9110 §14 | `partial.rs` |
//! | §4 answering | [`policy::Lookup::on_record`] |
//! | §4.1 `Vary` | the same records of variants as routes have |
//! | §4.2 age and freshness | `freshness.rs` |
//! | §4.3 validation | [`policy::Forward::prepare`], [`policy::Forward::on_response`] |
//! | §4.4 invalidation | [`policy::Write`] |

mod admitted;
mod answer;
mod cache_status;
mod fields;
mod forward;
mod freshness;
pub(crate) mod invalidation;
mod partial;
pub mod policy;
mod rules;
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
use http::{HeaderName, Uri};

use crate::key::{self, CacheKey, KeySpace};
use crate::policy::rule::{DEFAULT_MAX_BODY, host};
use crate::request::RequestView;
use target::Unkeyed;

pub use crate::record::shared::{Part, SharedRecord, StoredResponse};
pub use policy::SharedPolicy;

#[cfg(feature = "runtime")]
pub use {
    body::SharedBody,
    exchange::{SharedCache, SharedReply},
};

/// How many bytes of bodies a shared cache holds while they are being kept, unless configured otherwise.
const DEFAULT_MAX_HELD: u64 = 64 * 1024 * 1024;

/// What RFC 9111 leaves to a shared cache.
#[derive(Clone, Debug)]
pub struct SharedRule {
    /// The prefix and the eviction group of its keys.
    pub space: KeySpace,
    /// The largest body that is stored, in bytes. Larger ones flow through. 10 MiB.
    pub max_body: u64,
    /// How many bytes of bodies may be held at once while they are being kept, in this process. A body counts until it is
    /// stored and its client has read it. What would be too much flows through unstored, with the reason `budget`. 64 MiB.
    pub max_held: u64,
    /// The longest freshness lifetime that is guessed from `Last-Modified` for a response that says nothing itself
    /// (§4.2.2). A day; zero guesses nothing.
    pub heuristic_limit: Duration,
    /// How much longer than it is fresh a response with a validator is kept, to be validated (§4.3). A day.
    pub keep_stale: Duration,
    /// For how long a stale response is used when the origin fails (§4.2.4), unless the response says itself
    /// (`stale-if-error`, RFC 5861 §4) or forbids it. An hour; zero never.
    pub stale_if_error: Duration,
    /// For how long a stale response is used while it is refreshed, unless the response says itself
    /// (`stale-while-revalidate`, RFC 5861 §3) or forbids it. Zero.
    pub stale_while_revalidate: Duration,
    /// Whether a write evicts that was answered with 408 or a server error, so that it isn't known if it took effect. §4.4 asks
    /// for that after a success only. True. A write without an answer always evicts.
    pub evict_on_error: bool,
    /// What to do with responses that set a cookie. Never stored.
    pub set_cookie: SetCookie,
    /// Request fields that carry credentials as `Authorization` does, beside the usual ones, which the guide's page on safety
    /// lists, and those of the builder: the answer to a request with one of them is stored only if it says `public`,
    /// `s-maxage` or `must-revalidate` (§3.5). None. `Cookie` isn't among the usual ones here: §3 lets the answer decide. Add it
    /// for an origin that answers by cookie and doesn't say `private`.
    pub credential_fields: Vec<HeaderName>,
    /// Where the scheme in the key comes from: `http://a/` and `https://a/` are different resources (RFC 9110 §4.2.1,
    /// §4.2.2). The URI's own.
    pub scheme: SchemeSource,
    /// Fields that come before `Cache-Control` and `Expires` for this cache, the first of them that a response has
    /// (RFC 9213), such as `CDN-Cache-Control`. None.
    pub targeted: Vec<HeaderName>,
    /// What `Cache-Status` (RFC 9211) calls this cache: a token. `None` leaves the field out. `Larder`.
    pub cache_status: Option<Box<str>>,
}

/// What to do with responses that set a cookie. RFC 9111 has no rule of its own for them (§7.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetCookie {
    /// Never store one: the next visitor would get this one's session. Nor is a cookie kept that comes with a 304: it is
    /// for the client whose request was validated.
    #[default]
    Never,
    /// Store one that says explicitly how long it is fresh, cookie and all. Only for origins whose cookies are meant for
    /// everybody.
    IfExplicit,
}

/// Where the scheme of a request's URI comes from. A request in origin form (RFC 9112 §3.2.1) doesn't say it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SchemeSource {
    /// From the URI, `http` if it has none. HTTP/2 requests have one.
    #[default]
    Uri,
    /// It is always this one, whatever the URI says: for a listener that serves one scheme.
    Always(Scheme),
    /// From `X-Forwarded-Proto`, else from `proto` in `Forwarded` (RFC 7239 §5.4), else from the URI. Only behind a proxy
    /// that sets one of them on every request: a client could choose it otherwise.
    ///
    /// Without this option, requests whose `X-Forwarded-Proto` isn't the scheme in the key have variants of their own: that
    /// is as safe, and costs a second look into the store for each hit.
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
            set_cookie: SetCookie::default(),
            credential_fields: Vec::new(),
            scheme: SchemeSource::default(),
            targeted: Vec::new(),
            cache_status: Some("Larder".into()),
        }
    }

    /// The key of a request: its target URI (§2) in one canonical spelling, its scheme and its host. The query keeps its
    /// order: only an origin knows whether it matters.
    ///
    /// A request by another spelling has the key that [`key_apart`](Self::key_apart) makes, and so has one with a field that
    /// may send it elsewhere, such as an `X-Forwarded-Host` that isn't the host. Under that key each of them is a variant of
    /// its own: no spelling is answered with what another one got.
    #[must_use]
    pub fn key(&self, request: &RequestView<'_>) -> CacheKey {
        self.key_beside(request, &Unkeyed::of(request, &self.scheme))
    }

    #[cfg(feature = "runtime")]
    fn scheme_of<'a>(&'a self, request: &RequestView<'a>) -> std::borrow::Cow<'a, str> {
        target::scheme(request, &self.scheme)
    }

    fn key_beside(&self, request: &RequestView<'_>, unkeyed: &Unkeyed) -> CacheKey {
        let scheme = target::scheme(request, &self.scheme);
        self.key_made(&scheme, request.uri, &host(request), !unkeyed.is_empty())
    }

    /// The key of a URI under a scheme and at a host. A URI of an absolute form has a scheme and a host of its own, which
    /// aren't looked at.
    #[must_use]
    pub fn key_of(&self, scheme: &str, uri: &Uri, host: &str) -> CacheKey {
        self.key_made(scheme, uri, host, false)
    }

    /// The key of the requests for a URI that the usual answer may not be for. An invalidation needs both keys.
    #[must_use]
    pub fn key_apart(&self, scheme: &str, uri: &Uri, host: &str) -> CacheKey {
        self.key_made(scheme, uri, host, true)
    }

    fn key_made(&self, scheme: &str, uri: &Uri, host: &str, apart: bool) -> CacheKey {
        let target = target::canonical(target::target_of(uri));
        self.space.key_with(target.len() + scheme.len() + host.len() + 9, |out| {
            // Unlike the keys of routes these begin with a slash and end in a site, so that both can share a store.
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
