//! How old a response is, and for how long it is fresh (RFC 9111 §4.2).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{AGE, CACHE_CONTROL, DATE, EXPIRES, HeaderName, LAST_MODIFIED};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::SharedRule;
use crate::headers::cache_control::{Qualified, ResponseDirectives, list, number};

/// Larger numbers mean this one (RFC 9111 §1.2.2): 68 years.
const GREATEST: u64 = 1 << 31;

/// Of the time that passed between the last change and the answer, this part is assumed to pass until the next one (§4.2.2).
const HEURISTIC_PART: u32 = 10;

/// What a response says about caching, in the field that counts for this cache.
#[derive(Clone, Debug, Default)]
pub(crate) struct Control {
    pub(crate) directives: ResponseDirectives,
    pub(crate) qualified: Qualified,
    /// From a targeted field: then `Cache-Control` and `Expires` say nothing to this cache (RFC 9213 §2.2).
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

    /// Whether a stale response must not be used at all (§5.2.2.2, §5.2.2.8; `s-maxage` says it too, §5.2.2.10).
    pub(crate) fn forbids_stale(&self) -> bool {
        let said = &self.directives;
        said.must_revalidate || said.proxy_revalidate || said.s_maxage.is_some()
    }
}

/// Whether a targeted field is there and can be read: it is a structured dictionary, and one that isn't counts as absent
/// (RFC 9213 §2.1).
fn is_dictionary(response: &HeaderMap, name: &HeaderName) -> bool {
    let mut fields = response.get_all(name).iter().map(HeaderValue::as_bytes).peekable();
    fields.peek().is_some() && fields.flat_map(list).all(is_member)
}

/// RFC 9651 §3.2: a key, and right after a `=` its value. Times must be integers.
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

/// When a request left and when its answer came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exchanged {
    pub(crate) sent: SystemTime,
    pub(crate) received: SystemTime,
}

/// How old a response was when it came, and for how long from its birth it is fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Freshness {
    pub(crate) initial_age: Duration,
    pub(crate) lifetime: Duration,
    /// Whether the origin said so, or it is a guess.
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
            // Somebody kept it before, and for how long can't be read: at least it can be validated.
            (None, _) => Duration::ZERO,
            (Some(_), Some(explicit)) => explicit,
            (Some(_), None) => heuristic_lifetime(status, headers, control, dated, rule),
        };
        Self { initial_age, lifetime, is_explicit: explicit.is_some() }
    }
}

/// §4.2.1: the first of these that is there decides.
fn explicit_lifetime(headers: &HeaderMap, control: &Control, dated: SystemTime) -> Option<Duration> {
    let said = &control.directives;
    let told = said.s_maxage.or(said.max_age).map(|seconds| Duration::from_secs(seconds.min(GREATEST)));
    told.or_else(|| {
        (headers.contains_key(EXPIRES) && !control.is_targeted).then(|| {
            // §5.3: what is no date, `0` above all, is in the past. Of two, none can be believed.
            let expires = one(headers, &EXPIRES).and_then(http_date);
            let lifetime = expires.and_then(|expires| expires.duration_since(dated).ok());
            lifetime.unwrap_or_default().min(Duration::from_secs(GREATEST))
        })
    })
}

/// §4.2.2: without explicit freshness, part of the time since it was last changed, for statuses that allow it or when the
/// response says `public`.
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

/// RFC 9110 §15.1.
pub(crate) fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// §5.1: 0 if it isn't there, `None` if it is anything but one number. Ignoring such a field would be allowed, but something
/// that was kept for an unknown time would then pass for new.
fn age_value(headers: &HeaderMap) -> Option<u64> {
    if !headers.contains_key(AGE) {
        return Some(0);
    }
    number(one(headers, &AGE)?.as_bytes().trim_ascii()).map(|seconds| seconds.min(GREATEST))
}

/// The value of a field that may be there only once.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut fields = headers.get_all(name).iter();
    fields.next().filter(|_| fields.next().is_none())
}

/// One of the three formats of RFC 9110 §5.6.7, to the letter.
pub(crate) fn http_date(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?.trim()).ok()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
