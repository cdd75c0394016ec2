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

mod fields;
mod freshness;
mod mark;
mod partial;
pub mod policy;
mod reference;
mod stored;

#[cfg(feature = "runtime")]
mod body;
#[cfg(feature = "runtime")]
mod exchange;

use std::time::Duration;

use http::{HeaderName, Uri};

use crate::key::{self, CacheKey, KeySpace};
use crate::request::RequestView;
use crate::rule::{DEFAULT_MAX_BODY, host};

pub use policy::SharedPolicy;
pub use stored::{Part, SharedRecord, StoredResponse};

#[cfg(feature = "runtime")]
pub use {
    body::SharedBody,
    exchange::{SharedCache, SharedReply},
};

/// What RFC 9111 leaves to a shared cache.
#[derive(Clone, Debug)]
pub struct SharedRule {
    /// The prefix and the eviction group of its keys.
    pub space: KeySpace,
    /// The largest body that is stored, in bytes. Larger ones flow through. 10 MiB.
    pub max_body: u64,
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
    /// What to do with responses that set a cookie.
    pub set_cookie: SetCookie,
    /// Fields that come before `Cache-Control` and `Expires` for this cache, the first of them that a response has
    /// (RFC 9213), such as `CDN-Cache-Control`. None.
    pub targeted: Vec<HeaderName>,
    /// What `Cache-Status` (RFC 9211) calls this cache: a token. `None` leaves the field out. `Larder`.
    pub cache_status: Option<Box<str>>,
}

/// What to do with responses that set a cookie. RFC 9111 has no rule of its own for them (§7.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetCookie {
    /// Store one that says explicitly how long it is fresh, cookie and all, as RFC 9111 has it: its origin knows what it
    /// does.
    #[default]
    IfExplicit,
    /// Never store one, for origins that may not know.
    Never,
}

impl SharedRule {
    /// The usual rule.
    #[must_use]
    pub fn new(space: KeySpace) -> Self {
        const HOUR: Duration = Duration::from_secs(60 * 60);
        Self {
            space,
            max_body: DEFAULT_MAX_BODY,
            heuristic_limit: HOUR * 24,
            keep_stale: HOUR * 24,
            stale_if_error: HOUR,
            stale_while_revalidate: Duration::ZERO,
            set_cookie: SetCookie::default(),
            targeted: Vec::new(),
            cache_status: Some("Larder".into()),
        }
    }

    /// The key of a request: its target URI (§2), to the letter, and its host. The query keeps its order: only an origin
    /// knows whether it matters.
    #[must_use]
    pub fn key(&self, request: &RequestView<'_>) -> CacheKey {
        self.key_of(request.uri, &host(request))
    }

    /// The key of a URI at a host. A URI of an absolute form has a host of its own, which isn't looked at.
    #[must_use]
    pub fn key_of(&self, uri: &Uri, host: &str) -> CacheKey {
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        self.space.key_with(target.len() + host.len() + 6, |out| {
            // Unlike the keys of routes these begin with a slash and end in a site, so that both can share a store.
            key::write_chosen(out, target);
            key::write_part(out, "site", host);
        })
    }
}
