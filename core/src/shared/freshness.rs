//! The age and the freshness lifetime of responses (RFC 9111 §4.2).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{AGE, CACHE_CONTROL, DATE, EXPIRES, HeaderName, LAST_MODIFIED};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::SharedRule;
use crate::headers::cache_control::{Qualified, ResponseDirectives, list, number};

/// The greatest delta-seconds, 68 years. Larger numbers count as this one (RFC 9111 §1.2.2).
const GREATEST: u64 = 1 << 31;

/// The heuristic freshness as a part of the time between the last change and the response (§4.2.2).
const HEURISTIC_PART: u32 = 10;

/// The directives of a response, from the field that counts for this cache.
#[derive(Clone, Debug, Default)]
pub(crate) struct Control {
    pub(crate) directives: ResponseDirectives,
    pub(crate) qualified: Qualified,
    /// `true` for a targeted field: this cache then ignores `Cache-Control` and `Expires` (RFC 9213 §2.2).
    pub(crate) is_targeted: bool,
}

impl Control {
    pub(crate) fn of(response: &HeaderMap, rule: &SharedRule) -> Self {
        let targeted = rule.targeted.iter().find(|name| is_dictionary(response, name));
        let field = targeted.unwrap_or(&CACHE_CONTROL);
        Self {
            directives: ResponseDirectives::of_field(response, field),
            qualified: Qualified::of_field(response, field),
            is_targeted: targeted.is_some(),
        }
    }

    /// Returns `true` if the response must never be used stale (§5.2.2.2, §5.2.2.8; also `s-maxage`, §5.2.2.10).
    pub(crate) fn forbids_stale(&self) -> bool {
        let said = &self.directives;
        said.must_revalidate || said.proxy_revalidate || said.s_maxage.is_some()
    }
}

/// Returns `true` if a targeted field is present and valid. It is a structured dictionary, and an invalid one counts as
/// absent (RFC 9213 §2.1).
fn is_dictionary(response: &HeaderMap, name: &HeaderName) -> bool {
    let mut fields = response.get_all(name).iter().map(HeaderValue::as_bytes).peekable();
    fields.peek().is_some() && fields.flat_map(list).all(is_member)
}

/// Parses a key, and the value right after a `=` (RFC 9651 §3.2). Times must be integers.
fn is_member(member: &[u8]) -> bool {
    let is_for_keys = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b'*');
    let key_len = member.iter().position(|byte| !is_for_keys(byte)).unwrap_or(member.len());
    let (key, rest) = member.split_at(key_len);
    let is_key = key.first().is_some_and(|first| first.is_ascii_lowercase() || *first == b'*');
    let is_time = matches!(key, b"max-age" | b"s-maxage" | b"stale-while-revalidate" | b"stale-if-error");
    is_key
        && match rest {
            [] | [b';', ..] => !is_time,
            [b'=', first, ..] if is_time => first.is_ascii_digit(),
            [b'=', first, ..] => !first.is_ascii_whitespace(),
            _ => false,
        }
}

/// The times at which a request was sent and its response received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exchanged {
    pub(crate) sent: SystemTime,
    pub(crate) received: SystemTime,
}

/// The age of a response when it was received, and its freshness lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Freshness {
    pub(crate) initial_age: Duration,
    pub(crate) lifetime: Duration,
    /// `true` if the origin stated the lifetime; `false` for a heuristic.
    pub(crate) is_explicit: bool,
}

impl Freshness {
    pub(crate) fn of(
        status: StatusCode,
        headers: &HeaderMap,
        control: &Control,
        times: Exchanged,
        rule: &SharedRule,
    ) -> Self {
        let dated = one(headers, &DATE).and_then(http_date).unwrap_or(times.received);
        let age = age_value(headers);
        // §4.2.3. Dates have no fractions, so that a moment of the same second is no older.
        let apparent_age = seconds(times.received).saturating_sub(seconds(dated));
        let delay = times.received.duration_since(times.sent).unwrap_or_default();
        let corrected = Duration::from_secs(age.unwrap_or(0)).saturating_add(delay);
        let initial_age = corrected.max(Duration::from_secs(apparent_age.min(GREATEST)));
        let explicit = explicit_lifetime(headers, control, dated);
        let lifetime = match (age, explicit) {
            // Another cache kept the response for an unknown time. It can still be validated.
            (None, _) => Duration::ZERO,
            (Some(_), Some(explicit)) => explicit,
            (Some(_), None) => heuristic_lifetime(status, headers, control, dated, rule),
        };
        Self { initial_age, lifetime, is_explicit: explicit.is_some() }
    }
}

/// Returns the explicit freshness lifetime: the first of these fields decides (§4.2.1).
fn explicit_lifetime(headers: &HeaderMap, control: &Control, dated: SystemTime) -> Option<Duration> {
    let said = &control.directives;
    let stated = said.s_maxage.or(said.max_age).map(|seconds| Duration::from_secs(seconds.min(GREATEST)));
    stated.or_else(|| {
        (headers.contains_key(EXPIRES) && !control.is_targeted).then(|| {
            // §5.3: an invalid date, `0` above all, is in the past. Two dates are invalid.
            let expires = one(headers, &EXPIRES).and_then(http_date);
            let lifetime = expires.and_then(|expires| expires.duration_since(dated).ok());
            lifetime.unwrap_or_default().min(Duration::from_secs(GREATEST))
        })
    })
}

/// Returns the heuristic freshness lifetime: a part of the time since the last change, for statuses that allow it or if
/// the response says `public` (§4.2.2).
fn heuristic_lifetime(
    status: StatusCode,
    headers: &HeaderMap,
    control: &Control,
    dated: SystemTime,
    rule: &SharedRule,
) -> Duration {
    if !is_heuristically_cacheable(status) && !control.directives.public {
        return Duration::ZERO;
    }
    let modified = one(headers, &LAST_MODIFIED).and_then(http_date);
    let unchanged_for = modified.and_then(|modified| dated.duration_since(modified).ok()).unwrap_or_default();
    (unchanged_for / HEURISTIC_PART).min(rule.heuristic_limit)
}

/// Returns `true` for statuses that are heuristically cacheable (RFC 9110 §15.1).
pub(crate) fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// Returns the value of `Age` (§5.1): 0 if it is absent, `None` if it isn't exactly one number. A cache may ignore such
/// a field, but a response kept for an unknown time would then count as new.
fn age_value(headers: &HeaderMap) -> Option<u64> {
    if !headers.contains_key(AGE) {
        return Some(0);
    }
    number(one(headers, &AGE)?.as_bytes().trim_ascii()).map(|seconds| seconds.min(GREATEST))
}

/// Returns the value of a field that may occur only once.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut fields = headers.get_all(name).iter();
    fields.next().filter(|_| fields.next().is_none())
}

/// Parses a date in one of the three formats of RFC 9110 §5.6.7, strictly.
pub(crate) fn http_date(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?.trim()).ok()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
