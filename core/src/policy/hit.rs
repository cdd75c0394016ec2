//! Responses made from stored ones: the whole, a 304, a part, or a 504.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderName};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::headers::hop_by_hop::only;
use crate::headers::range::{self, Selection};
use crate::policy::cache_status::CacheStatus;
use crate::policy::rule::{Audience, Rule};
use crate::reason::Reason;
use crate::record::Entry;

/// Returns the part of a stored response that the request selects. `length` is the length of its body. Only a 200 is
/// cut (RFC 9110 §14.2), and only if its handler doesn't refuse ranges (§14.3).
pub(super) fn selection(request: &HeaderMap, entry: &Entry, length: u64) -> Selection {
    if entry.status == StatusCode::OK
        && !range::is_refused(&entry.headers)
        && range::if_range_holds(request, &entry.headers, entry.stored_at)
    {
        range::select(request, length)
    } else {
        Selection::Whole
    }
}

/// A stored response that answers the request.
#[derive(Debug)]
#[must_use]
pub struct Hit {
    pub(super) rule: Arc<Rule>,
    pub(super) entry: Entry,
    /// The length of the stored body. The entry holds at least the part that the response needs.
    pub(super) length: u64,
    pub(super) age: Duration,
    pub(super) not_modified: bool,
    pub(super) is_head: bool,
    pub(super) selection: Selection,
    pub(super) collapsed: bool,
}

impl Hit {
    /// Marks the hit as a response that an earlier concurrent request obtained.
    pub const fn collapsed(mut self) -> Self {
        self.collapsed = true;
        self
    }

    /// Returns the stored response. Its body may hold only the part that the response needs.
    #[must_use]
    pub const fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Returns the remaining freshness lifetime, or `None` for no expiry.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.entry.remaining_at(self.age)
    }

    /// Returns the response to send: a 304 if the client already has it, a 206 or 416 if the client asks for a part,
    /// else the stored response.
    #[must_use]
    pub fn into_response(self) -> Response<Bytes> {
        let Self { rule, entry, length, age, not_modified, is_head, selection, collapsed } = self;
        let (remaining, staleness) = (entry.remaining_at(age), entry.staleness_at(age));
        // The client must not use a stale response for as long again.
        let stale_too = !entry.forbids_stale() && !entry.is_expired_at(age);
        let revalidation = Revalidation::of(&entry);
        let mut headers = entry.headers;
        // Another deployment may have stored the response under another rule, without these fields.
        let tells_all = entry.tells_credentials && rule.credential_fields.is_empty();
        if !(tells_all || matches!(rule.audience, Audience::Public)) {
            rule.add_vary(&mut headers);
        }
        headers.insert(CACHE_CONTROL, cache_control(&rule, remaining, stale_too, revalidation));
        let mut cache_status = CacheStatus::hit(rule, remaining, staleness);
        cache_status.collapsed = collapsed;
        cache_status.write_to(&mut headers);

        let mut body = entry.body;
        if is_head && !not_modified {
            // Servers send the length of the GET response (RFC 9110 §9.3.2), unless the response can have none (§8.6).
            if entry.status != StatusCode::NO_CONTENT {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
            }
            body = Bytes::new();
        }
        let mut response = Response::new(body);
        *response.status_mut() = entry.status;
        *response.headers_mut() = headers;
        if not_modified {
            into_not_modified(response, &cache_status.rule)
        } else {
            into_selected(response, selection, length, &cache_status.rule)
        }
    }
}

/// Returns the part of a response that a request selects: a 206 or 416 if it asks for a part. The whole body is
/// `length` bytes long; a shorter body is that part.
pub(super) fn into_selected(
    mut response: Response<Bytes>,
    selection: Selection,
    length: u64,
    rule: &Rule,
) -> Response<Bytes> {
    match selection {
        Selection::Whole => {}
        Selection::Part(part) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            response.headers_mut().insert(CONTENT_RANGE, part.content_range());
            if response.body().len() as u64 == length {
                let part = part.cut(response.body());
                *response.body_mut() = part;
            }
        }
        Selection::Unsatisfiable => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            let mut headers =
                only(std::mem::take(response.headers_mut()), |name| is_about_the_exchange(name, rule));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            headers.insert(CONTENT_RANGE, range::unsatisfied(length));
            *response.headers_mut() = headers;
            *response.body_mut() = Bytes::new();
        }
    }
    response
}

/// Makes a 304, which carries the fields of the 200 about freshness and validators, and those by which other caches know its tags,
/// and no others (RFC 9110 §15.4.5).
pub(super) fn into_not_modified(response: Response<Bytes>, rule: &Rule) -> Response<Bytes> {
    let stored = response.into_parts().0.headers;
    let has_etag = stored.contains_key(ETAG);
    let headers = only(stored, |name| is_for_not_modified(name, has_etag, rule));
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    *response.headers_mut() = headers;
    response
}

pub(super) fn is_for_not_modified(name: &HeaderName, has_etag: bool, rule: &Rule) -> bool {
    match name.as_str() {
        "cache-control" | "content-location" | "date" | "etag" | "expires" | "vary" => true,
        "last-modified" => !has_etag,
        "cache-groups" | "surrogate-key" | "cache-tag" => true,
        _ => is_about_the_exchange(name, rule),
    }
}

/// Returns `true` for the cache's status fields, and for the fields that let a script in a browser read the response.
fn is_about_the_exchange(name: &HeaderName, rule: &Rule) -> bool {
    match name.as_str() {
        "cache-status"
        | "access-control-allow-origin"
        | "access-control-allow-credentials"
        | "access-control-expose-headers" => true,
        _ => rule.status_header.as_ref() == Some(name),
    }
}

/// A request with `only-if-cached` for which no usable response is stored.
#[derive(Debug)]
#[must_use]
pub struct Unsatisfiable {
    pub(super) cache_status: CacheStatus,
}

impl Unsatisfiable {
    /// Returns the reason for which no stored response can be used.
    #[must_use]
    pub const fn reason(&self) -> Option<Reason> {
        self.cache_status.reason
    }

    /// Returns the 504 to send (RFC 9111 §5.2.1.7).
    #[must_use]
    pub fn into_response(self) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
        self.cache_status.write_unsatisfied_to(response.headers_mut());
        response
    }
}

/// Adds `Accept-Ranges: bytes` (RFC 9110 §14.3), unless the handler has set the field. Caches such as nginx request and
/// cut parts only of responses with it.
pub(crate) fn add_accept_ranges(response: &mut HeaderMap) {
    response.entry(ACCEPT_RANGES).or_insert(const { HeaderValue::from_static("bytes") });
}

/// What an entry says about its validation: the handler's directives about stale responses, which are passed on (RFC 9111 §5.2.2.2,
/// §5.2.2.8), and whether `immutable` may be said of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Revalidation {
    pub(super) must: bool,
    pub(super) proxy: bool,
    /// `false` for errors, whose content changes with their cause.
    pub(super) may_be_immutable: bool,
}

impl Revalidation {
    pub(super) fn of(entry: &Entry) -> Self {
        Self {
            must: entry.must_revalidate,
            proxy: entry.proxy_revalidate,
            may_be_immutable: entry.status.is_success(),
        }
    }
}

/// Returns `Cache-Control` for a route's responses. Without an expiry it is `no-cache`, and clients validate with the
/// ETag.
///
/// `stale_too` adds how long other caches may use the response after that (RFC 5861).
pub(super) fn cache_control(
    rule: &Rule,
    remaining: Option<Duration>,
    stale_too: bool,
    revalidation: Revalidation,
) -> HeaderValue {
    let lifetime = match (remaining, rule.downstream_ttl) {
        (Some(remaining), Some(downstream)) => Some(remaining.min(downstream)),
        (remaining, downstream) => remaining.or(downstream),
    };
    let Some(lifetime) = lifetime else { return no_cache(rule) };
    // The buffer has room for the greatest numbers. It is on the stack, so that the value is the only allocation.
    let mut text = [0; 192];
    let mut rest = &mut text[..];
    let mut push = |words: &str, time: Option<Duration>| {
        let mut digits = itoa::Buffer::new();
        let seconds = time.map_or("", |time| digits.format(time.as_secs()));
        rest.write_all(words.as_bytes()).and_then(|()| rest.write_all(seconds.as_bytes())).is_ok()
    };
    let begins = match rule.audience {
        Audience::Undeclared => "max-age=",
        // RFC 9111 §3.5: shared caches may use it for requests with `Authorization`, too.
        Audience::Public => "public, max-age=",
        Audience::Private(..) => "private, max-age=",
    };
    push(begins, Some(lifetime));
    let stale = [
        (", stale-while-revalidate=", rule.stale_while_revalidate),
        (", stale-if-error=", rule.stale_if_error),
    ];
    for (name, limit) in stale.into_iter().filter(|(_, limit)| stale_too && limit.is_some()) {
        push(name, limit);
    }
    // A stale response, with a lifetime of zero, is validated.
    let is_immutable = rule.is_immutable && revalidation.may_be_immutable && lifetime > Duration::ZERO;
    for (words, is_said) in [
        (", must-revalidate", revalidation.must),
        (", proxy-revalidate", revalidation.proxy),
        (", immutable", is_immutable),
    ] {
        if is_said {
            push(words, None);
        }
    }
    let len = 192 - rest.len();
    HeaderValue::from_bytes(&text[..len]).unwrap_or_else(|_| no_cache(rule))
}

/// Returns the `Cache-Control` that allows storing, with validation before each use.
pub(super) fn no_cache(rule: &Rule) -> HeaderValue {
    HeaderValue::from_static(if rule.audience.is_private() { "private, no-cache" } else { "no-cache" })
}
