//! The statuses whose responses are stored, and how long each is fresh (RFC 9111 §3, §4.2).

use std::time::{Duration, SystemTime};

use http::{HeaderValue, StatusCode};

use crate::policy::rule::{Kind, Rule};

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
