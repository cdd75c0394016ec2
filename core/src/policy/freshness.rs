//! Freshness of a route's responses: which statuses are stored by default and for how long, and how long afterwards a stale
//! response is kept and used (RFC 9111 §4.2, RFC 5861).
//!
//! The route that stores a response, by a read or by a write-through, decides how long it is fresh and kept. The route that reads
//! it decides whether a stale one is used.

use std::time::{Duration, SystemTime};

use http::{HeaderValue, StatusCode};

use crate::headers::cache_control::RequestDirectives;
use crate::policy::rule::{Kind, Rule};
use crate::record::Entry;

impl Rule {
    /// Returns the lifetime of responses with this status, or `None` if they are not stored. The inner `None` means no expiry.
    pub(super) fn ttl_of(&self, status: StatusCode) -> Option<Option<Duration>> {
        if let Some((_, ttl)) = self.ttl_for.iter().find(|(known, _)| *known == status) {
            return Some(*ttl);
        }
        (status == StatusCode::OK).then_some(self.ttl)
    }

    /// Returns the freshness lifetime of a stored response with this status. `None` means no expiry, zero not stored.
    ///
    /// A write's response is stored as a 200, whatever its own status.
    pub(super) fn lifetime_of(&self, status: StatusCode) -> Option<Duration> {
        match self.kind {
            Kind::Write => self.ttl,
            _ => self.ttl_of(status).unwrap_or(self.ttl),
        }
    }

    /// Returns how long a stored response is kept after its freshness lifetime.
    fn stale_for(&self) -> Duration {
        self.stale_while_revalidate.max(self.stale_if_error).unwrap_or_default()
    }

    /// Returns how long the store keeps an entry: its freshness lifetime, and the time after it in which it may be used. `None`
    /// means no expiry.
    pub(super) fn retention_of(&self, entry: &Entry) -> Option<Duration> {
        let stale_for = if entry.forbids_stale() { Duration::ZERO } else { self.stale_for() };
        entry.ttl.map(|ttl| ttl.saturating_add(stale_for))
    }

    /// Returns the longest time for which any response of the route is kept. `None` means no expiry.
    pub(super) fn longest_retention(&self) -> Option<Duration> {
        let also = self.ttl_for.iter().map(|(_, ttl)| *ttl);
        let longest = also.fold(self.ttl, |longest, ttl| Some(longest?.max(ttl?)))?;
        Some(longest.saturating_add(self.stale_for()))
    }
}

/// The use of a stale response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StaleUse {
    /// It answers while the handler refreshes it (RFC 5861 §3).
    WhileRevalidating,
    /// It answers because the client accepts it (RFC 9111 §5.2.1.2).
    Accepted,
    /// It answers if the handler fails (RFC 5861 §4).
    IfError,
}

impl StaleUse {
    /// Returns the use of an expired entry that this route and this request allow. The options of the route that stored the
    /// entry, such as a write-through, don't matter.
    pub(super) fn of(
        rule: &Rule,
        directives: &RequestDirectives,
        entry: &Entry,
        age: Duration,
    ) -> Option<Self> {
        if entry.forbids_stale() || directives.min_fresh.is_some() {
            return None;
        }
        let staleness = entry.staleness_at(age);
        let within = |limit: Option<Duration>| limit.is_some_and(|limit| staleness < limit);
        if within(rule.stale_while_revalidate) {
            Some(Self::WhileRevalidating)
        } else if directives.max_stale.is_some_and(|limit| staleness <= Duration::from_secs(limit)) {
            Some(Self::Accepted)
        } else {
            within(rule.stale_if_error).then_some(Self::IfError)
        }
    }
}

/// Shortens a lifetime by a fraction between 0 and `jitter`, derived from the ETag and the time.
pub(super) fn jittered(ttl: Duration, jitter: f64, etag: &HeaderValue, now: SystemTime) -> Duration {
    if jitter <= 0.0 {
        return ttl;
    }
    let nanos = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let mut hasher = blake3::Hasher::new();
    hasher.update(etag.as_bytes()).update(&nanos.to_be_bytes());
    let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
    let draw = f64::from(u32::from_be_bytes([a, b, c, d])) / f64::from(u32::MAX);
    ttl.mul_f64(1.0 - jitter.min(1.0) * draw).max(Duration::from_millis(1))
}
