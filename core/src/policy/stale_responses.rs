//! Stale responses: how long the store keeps them after their freshness lifetime, and their use (RFC 5861, RFC 9111 §4.2.4).
//!
//! The route that stores a response, by a read or by a write-through, decides how long it is kept. The route that reads it decides
//! whether a stale one is used.

use std::time::Duration;

use crate::headers::cache_control::RequestDirectives;
use crate::policy::rule::Rule;
use crate::record::Entry;

impl Rule {
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
