//! The age and the freshness lifetime of responses (RFC 9111 §4.2).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{AGE, CACHE_CONTROL, DATE, EXPIRES, LAST_MODIFIED};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::SharedRule;
use crate::headers::cache_control::{Qualified, ResponseDirectives, list, number};
use crate::headers::date::http_date;
use crate::headers::targeted::targeted;
use crate::headers::the_only;

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
        match rule.targeted.iter().find_map(|name| targeted(response, name)) {
            Some((directives, qualified)) => Self { directives, qualified, is_targeted: true },
            None => Self {
                directives: ResponseDirectives::of(response),
                qualified: Qualified::of_field(response, &CACHE_CONTROL),
                is_targeted: false,
            },
        }
    }

    /// Returns `true` if the response must never be used stale (§5.2.2.2, §5.2.2.8; also `s-maxage`, §5.2.2.10).
    pub(crate) fn forbids_stale(&self) -> bool {
        let said = &self.directives;
        said.must_revalidate || said.proxy_revalidate || said.s_maxage.is_some()
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
        let date = |name| http_date(the_only(headers, name)?, times.received);
        let dated = date(&DATE).unwrap_or(times.received);
        let age = if rule.invalid_age_is_stale { one_age(headers) } else { Some(first_age(headers)) };
        // §4.2.3. Dates have no fractions, so that a moment of the same second is no older.
        let apparent_age = seconds(times.received).saturating_sub(seconds(dated));
        let delay = times.received.duration_since(times.sent).unwrap_or_default();
        let corrected = Duration::from_secs(age.unwrap_or(0)).saturating_add(delay);
        let initial_age = corrected.max(Duration::from_secs(apparent_age.min(GREATEST)));
        let explicit = explicit_lifetime(headers, control, dated, || date(&EXPIRES));
        let lifetime = match (age, explicit) {
            // Another cache kept the response for an unknown time. It can still be validated.
            (None, _) => Duration::ZERO,
            (Some(_), Some(explicit)) => explicit,
            (Some(_), None) => {
                let modified = || date(&LAST_MODIFIED);
                heuristic_lifetime(status, control, dated, modified).min(rule.heuristic_limit)
            }
        };
        Self { initial_age, lifetime, is_explicit: explicit.is_some() }
    }
}

/// Returns the explicit freshness lifetime: the first of these fields decides (§4.2.1).
fn explicit_lifetime(
    headers: &HeaderMap,
    control: &Control,
    dated: SystemTime,
    expires: impl FnOnce() -> Option<SystemTime>,
) -> Option<Duration> {
    let said = &control.directives;
    let stated = said.s_maxage.or(said.max_age).map(|seconds| Duration::from_secs(seconds.min(GREATEST)));
    stated.or_else(|| {
        (headers.contains_key(EXPIRES) && !control.is_targeted).then(|| {
            // §5.3: an invalid date, `0` above all, is in the past. Two dates are invalid.
            let lifetime = expires().and_then(|expires| expires.duration_since(dated).ok());
            lifetime.unwrap_or_default().min(Duration::from_secs(GREATEST))
        })
    })
}

/// Returns the heuristic freshness lifetime: a part of the time since the last change, for statuses that allow it or if
/// the response says `public` (§4.2.2).
fn heuristic_lifetime(
    status: StatusCode,
    control: &Control,
    dated: SystemTime,
    modified: impl FnOnce() -> Option<SystemTime>,
) -> Duration {
    if !is_heuristically_cacheable(status) && !control.directives.public {
        return Duration::ZERO;
    }
    let unchanged_for = modified().and_then(|modified| dated.duration_since(modified).ok());
    unchanged_for.unwrap_or_default() / HEURISTIC_PART
}

/// Returns `true` for statuses that are heuristically cacheable (RFC 9110 §15.1).
pub(crate) fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// Returns the age that `Age` says: its first member. 0 if that is no number, or if the field is absent (§5.1).
fn first_age(headers: &HeaderMap) -> u64 {
    let mut members = headers.get_all(AGE).iter().map(HeaderValue::as_bytes).flat_map(list);
    members.next().and_then(number).unwrap_or(0).min(GREATEST)
}

/// Returns the age that `Age` says: 0 if it is absent, `None` if it isn't exactly one number.
fn one_age(headers: &HeaderMap) -> Option<u64> {
    if !headers.contains_key(AGE) {
        return Some(0);
    }
    number(the_only(headers, &AGE)?.as_bytes().trim_ascii()).map(|seconds| seconds.min(GREATEST))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
