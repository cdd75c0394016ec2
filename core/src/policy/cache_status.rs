//! The fields that report the cache's decision: `X-Redis-Cache` (`status_header.rs`) and `Cache-Status` (RFC 9211).

use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "runtime")]
use http::Response;
use http::header::{CACHE_CONTROL, HeaderName};
use http::{HeaderMap, HeaderValue};

use crate::policy::rule::{Kind, Rule};
use crate::policy::status_header::StatusWord;
use crate::reason::Reason;

// As constants they are parsed at compile time.
pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// An extension of responses whose status a write-through has already written.
#[derive(Clone, Copy, Debug)]
pub(super) struct WrittenThrough;

/// The cache's status on a response that the handler made.
#[derive(Clone, Debug)]
#[must_use]
pub struct CacheStatus {
    pub(super) rule: Arc<Rule>,
    word: StatusWord,
    pub(super) reason: Option<Reason>,
    pub(super) stored: bool,
}

impl CacheStatus {
    const fn new(rule: Arc<Rule>, word: StatusWord, reason: Option<Reason>) -> Self {
        Self { rule, word, reason, stored: false }
    }

    pub(super) fn bypass(rule: &Arc<Rule>, reason: Reason) -> Self {
        Self::new(Arc::clone(rule), StatusWord::Bypass, Some(reason))
    }

    /// A request that the cache doesn't handle. It is no miss, because a miss promises a hit for the next request.
    pub(super) fn refusal(rule: &Arc<Rule>, reason: Reason) -> Self {
        Self::new(Arc::clone(rule), StatusWord::Bypass, Some(reason))
    }

    pub(super) fn miss(rule: &Arc<Rule>, reason: Reason) -> Self {
        Self::new(Arc::clone(rule), StatusWord::Miss, Some(reason))
    }

    /// Returns the reason.
    #[must_use]
    pub const fn reason(&self) -> Option<Reason> {
        self.reason
    }

    /// Writes the status into a response. If an eviction and a write-through are layered, only the write-through writes
    /// it, because it knows whether the response was stored.
    #[cfg(feature = "runtime")]
    pub(crate) fn write_to_response<B>(&self, response: &mut Response<B>) {
        match self.rule.kind {
            Kind::EvictKey | Kind::EvictGroup | Kind::EvictTags
                if response.extensions().get::<WrittenThrough>().is_some() =>
            {
                if self.rule.cache_status {
                    response.headers_mut().append(CACHE_STATUS, self.field_value());
                }
            }
            kind => {
                self.write_to(response.headers_mut());
                if kind == Kind::Write {
                    response.extensions_mut().insert(WrittenThrough);
                }
            }
        }
    }

    /// Writes the status into the fields of a response.
    pub fn write_to(&self, headers: &mut HeaderMap) {
        if let Some(name) = &self.rule.status_header {
            headers.insert(name, self.word.value());
        }
        if self.rule.cache_status {
            headers.append(CACHE_STATUS, self.field_value());
        }
        let is_personal = matches!(
            self.reason,
            Some(
                Reason::Authorization
                    | Reason::Cookie
                    | Reason::Credentials
                    | Reason::Anonymous
                    | Reason::SetCookie
            )
        );
        self.rule.add_vary(headers);
        // The response to an eviction isn't stored, and a write-through around it may store its handler's response.
        if matches!(self.rule.kind, Kind::EvictKey | Kind::EvictGroup | Kind::EvictTags) {
            return;
        }
        // A response that is unsafe to store here is unsafe in a CDN too, and a CDN may store a response without
        // `Cache-Control` (RFC 9111 §4.2.2). The handler's own `Cache-Control` is kept.
        if self.word == StatusWord::Bypass && !headers.contains_key(CACHE_CONTROL) {
            if is_personal {
                headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            } else if self.rule.audience.is_private() {
                headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
            }
        }
    }

    /// Writes the status into a 504 for `only-if-cached`. Nothing was forwarded, so there is no `fwd` (RFC 9211 §2.2).
    pub(super) fn write_unsatisfied_to(&self, headers: &mut HeaderMap) {
        self.write_to(headers);
        if self.rule.cache_status
            && let Some(reason) = self.reason
            && let Ok(value) = HeaderValue::try_from(format!("Larder; detail={reason}"))
        {
            headers.insert(CACHE_STATUS, value);
        }
    }

    /// RFC 9211 §2.
    pub(super) fn field_value(&self) -> HeaderValue {
        let mut text = String::from("Larder");
        if let Some(reason) = self.reason {
            let forward = match reason {
                Reason::Absent => "uri-miss",
                Reason::Variant => "vary-miss",
                Reason::NoCache | Reason::MaxAge | Reason::MinFresh => "request",
                Reason::Expired => "stale",
                Reason::Method => "method",
                _ if self.word == StatusWord::Bypass => "bypass",
                _ => "miss",
            };
            text.push_str(&format!("; fwd={forward}"));
            if self.stored {
                text.push_str("; stored");
            }
            text.push_str(&format!("; detail={reason}"));
        }
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("Larder"))
    }
}

/// Returns the `Cache-Status` of a response made from a stored one (RFC 9211 §2).
pub(super) fn status_of_hit(
    remaining: Option<Duration>,
    staleness: Duration,
    is_collapsed: bool,
) -> HeaderValue {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    // Negative once the freshness lifetime is over (§2.3).
    let ttl = remaining.map(|remaining| seconds(remaining).saturating_sub(seconds(staleness)));
    let text = match ttl {
        // §2.6: the request was held back for another one that was forwarded.
        _ if is_collapsed => "Larder; fwd=miss; collapsed".to_owned(),
        Some(ttl) => format!("Larder; hit; ttl={ttl}"),
        None => "Larder; hit".to_owned(),
    };
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("Larder"))
}
