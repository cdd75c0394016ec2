//! The `Cache-Status` of a shared cache (RFC 9211).

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use sfv::TokenRef;

use super::SharedRule;
use crate::reason::Reason;
#[cfg(feature = "runtime")]
use crate::status::Outcome;

pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// The cache's entry in `Cache-Status` (RFC 9211).
#[derive(Clone, Debug)]
pub struct SharedCacheStatus {
    pub(super) rule: Arc<SharedRule>,
    handling: Handling,
}

#[derive(Clone, Debug)]
enum Handling {
    /// The remaining freshness lifetime in seconds; negative once it is over.
    Hit {
        ttl: i64,
    },
    Forwarded {
        why: Reason,
        detail: Reason,
        status: Option<StatusCode>,
        stored: bool,
        collapsed: bool,
    },
}

impl SharedCacheStatus {
    pub(super) const fn hit(rule: Arc<SharedRule>, ttl: i64) -> Self {
        Self { rule, handling: Handling::Hit { ttl } }
    }

    pub(super) const fn forwarded(rule: Arc<SharedRule>, reason: Reason) -> Self {
        let handling = Handling::Forwarded {
            why: reason,
            detail: reason,
            status: None,
            stored: false,
            collapsed: false,
        };
        Self { rule, handling }
    }

    /// Returns the outcome of a response made from a stored one, or of a 504.
    #[cfg(feature = "runtime")]
    pub(super) fn outcome(&self, is_stored: bool) -> Outcome {
        match self.handling {
            Handling::Hit { ttl } if ttl < 0 => Outcome::stale(Reason::Expired),
            Handling::Hit { .. } => Outcome::HIT,
            Handling::Forwarded { collapsed: true, .. } => Outcome::COLLAPSED,
            // The origin has validated the stored response with a 304.
            Handling::Forwarded { status: Some(StatusCode::NOT_MODIFIED), detail, .. } => {
                Outcome::miss(detail)
            }
            Handling::Forwarded { .. } if is_stored => Outcome::stale(Reason::Failed),
            Handling::Forwarded { detail, .. } => Outcome::miss(detail),
        }
    }

    /// Returns the outcome of the origin's response.
    #[cfg(feature = "runtime")]
    pub(super) fn passed(&self, answer: StatusCode) -> Outcome {
        match self.handling {
            Handling::Forwarded { stored: true, detail, .. } => Outcome::miss(detail),
            Handling::Forwarded { detail, .. } => Outcome::passed(Some(detail), answer),
            Handling::Hit { .. } => Outcome::HIT,
        }
    }

    /// Sets the reason.
    pub fn because(mut self, reason: Reason) -> Self {
        if let Handling::Forwarded { detail, .. } = &mut self.handling {
            *detail = reason;
        }
        self
    }

    pub(super) fn answered(mut self, with: Option<StatusCode>) -> Self {
        if let Handling::Forwarded { status, .. } = &mut self.handling {
            *status = with;
        }
        self
    }

    pub(super) fn stored(mut self) -> Self {
        if let Handling::Forwarded { stored, .. } = &mut self.handling {
            *stored = true;
        }
        self
    }

    pub(super) fn collapsed(mut self) -> Self {
        if let Handling::Forwarded { collapsed, .. } = &mut self.handling {
            *collapsed = true;
        }
        self
    }

    /// Sets the reason for which nothing will be stored.
    pub fn unstored(mut self) -> Self {
        if let Handling::Forwarded { stored, .. } = &mut self.handling {
            *stored = false;
        }
        self
    }

    /// Appends the entry to the fields of a response, after those of caches nearer to the origin.
    pub fn write_to(&self, headers: &mut HeaderMap) {
        let Some(name) = &self.rule.cache_status else { return };
        let mut text = identifier(name);
        match &self.handling {
            Handling::Hit { ttl } => text.push_str(&format!("; hit; ttl={ttl}")),
            Handling::Forwarded { why, detail, status, stored, collapsed } => {
                text.push_str(&format!("; fwd={}", forward_reason(*why)));
                if let Some(status) = status {
                    text.push_str(&format!("; fwd-status={}", status.as_u16()));
                }
                if *stored {
                    text.push_str("; stored");
                }
                if *collapsed {
                    text.push_str("; collapsed");
                }
                text.push_str(&format!("; detail={detail}"));
            }
        }
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.append(CACHE_STATUS, value);
        }
    }

    /// On a 504 for `only-if-cached`, nothing was forwarded.
    pub(super) fn write_unsatisfied_to(&self, headers: &mut HeaderMap) {
        let (Some(name), Handling::Forwarded { detail, .. }) = (&self.rule.cache_status, &self.handling)
        else {
            return;
        };
        if let Ok(value) = HeaderValue::try_from(format!("{}; detail={detail}", identifier(name))) {
            headers.append(CACHE_STATUS, value);
        }
    }
}

/// Returns the name of a cache as a token, or else as a string (RFC 9211 §2).
fn identifier(name: &str) -> String {
    if TokenRef::from_str(name).is_ok() {
        return name.to_owned();
    }
    // A string has no other characters (RFC 9651 §3.3.3).
    let ascii: String = name.chars().filter(|char| matches!(char, ' '..='~')).collect();
    format!("\"{}\"", ascii.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Returns the `fwd` parameter of a reason (RFC 9211 §2.2).
const fn forward_reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Absent => "uri-miss",
        Reason::Variant => "vary-miss",
        Reason::NoCache | Reason::MaxAge | Reason::MinFresh => "request",
        Reason::Expired => "stale",
        Reason::Incomplete => "partial",
        Reason::Method => "method",
        Reason::NoStore | Reason::Upgrade | Reason::Content | Reason::Precondition | Reason::Rewritten => {
            "bypass"
        }
        _ => "miss",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_a_token_or_a_string() {
        for (name, expected) in [
            ("Larder", "Larder"),
            ("*cache-3.example.com:80/a", "*cache-3.example.com:80/a"),
            ("Example CDN", r#""Example CDN""#),
            ("3rd", r#""3rd""#),
            ("192.0.2.1", r#""192.0.2.1""#),
            ("", r#""""#),
            ("a\"b\\c", r#""a\"b\\c""#),
            ("caf\u{e9}\n", r#""caf""#),
        ] {
            assert_eq!(identifier(name), expected);
        }
    }

    /// RFC 9211 §2.2.
    #[test]
    fn fwd_has_the_most_specific_reason() {
        for (reason, expected) in [
            (Reason::NoStore, "bypass"),
            (Reason::Precondition, "bypass"),
            (Reason::Method, "method"),
            (Reason::Absent, "uri-miss"),
            (Reason::Variant, "vary-miss"),
            (Reason::Unreadable, "miss"),
            (Reason::NoCache, "request"),
            (Reason::MaxAge, "request"),
            (Reason::MinFresh, "request"),
            (Reason::Expired, "stale"),
            (Reason::Incomplete, "partial"),
        ] {
            assert_eq!(forward_reason(reason), expected, "{reason}");
        }
    }
}
