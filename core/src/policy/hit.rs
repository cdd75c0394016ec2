//! Responses made from stored ones: the whole, a 304, a part, or a 504.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderName};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::headers::hop_by_hop::only;
use crate::headers::range::{self, Selection};
use crate::policy::cache_status::{CACHE_STATUS, CacheStatus, status_of_hit};
use crate::policy::rule::{Audience, Rule};
use crate::policy::status_header::StatusWord;
use crate::reason::Reason;
use crate::record::Entry;
use crate::record::template::{HeadTemplates, ResponseFields};

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

impl ResponseFields for Rule {
    fn templates(&self) -> &HeadTemplates {
        &self.templates
    }

    fn added(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let status = self.status_header.clone().map(|name| (name, StatusWord::Hit.value()));
        [(CACHE_CONTROL, const { HeaderValue::from_static("") })].into_iter().chain(status)
    }

    fn is_for_not_modified(&self, name: &HeaderName, has_etag: bool) -> bool {
        is_for_not_modified(name, has_etag, self)
    }
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
        let control = cache_control(&rule, remaining, stale_too, revalidation);
        let is_templated = entry.templated.is_some();
        let mut headers = match entry.templated {
            Some(head) if not_modified => rule.templates.not_modified(head, control),
            Some(head) => rule.templates.response(head, control),
            None => {
                let mut headers = entry.headers;
                // `Cache-Control` is the first of the added fields.
                let added = 1 + usize::from(rule.status_header.is_some());
                let at = headers.len().saturating_sub(added);
                match headers.values_mut().nth(at).filter(|_| entry.is_response) {
                    Some(value) => *value = control,
                    None => {
                        headers.insert(CACHE_CONTROL, control);
                        if let Some(name) = &rule.status_header {
                            headers.insert(name, StatusWord::Hit.value());
                        }
                    }
                }
                headers
            }
        };
        // Another deployment may have stored the response under another rule, without these fields.
        let tells_all = entry.tells_credentials && rule.credential_fields.is_empty();
        if !(tells_all || matches!(rule.audience, Audience::Public)) {
            rule.add_vary(&mut headers);
        }
        if rule.cache_status {
            headers.append(CACHE_STATUS, status_of_hit(remaining, staleness, collapsed));
        }
        if not_modified && is_templated {
            return not_modified_response(headers);
        }

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
            make_not_modified(&mut response, &rule);
        } else {
            select(&mut response, selection, length, &rule);
        }
        response
    }
}

/// Makes the part of a response that a request selects: a 206 or 416 if it asks for a part. The whole body is `length`
/// bytes long; a shorter body is that part.
pub(super) fn select(response: &mut Response<Bytes>, selection: Selection, length: u64, rule: &Rule) {
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
}

/// Makes a 304, which carries the fields of the 200 about freshness and validators, and those by which other caches know its tags,
/// and no others (RFC 9110 §15.4.5).
pub(super) fn make_not_modified(response: &mut Response<Bytes>, rule: &Rule) {
    let stored = std::mem::take(response.headers_mut());
    let has_etag = stored.contains_key(ETAG);
    *response = not_modified_response(only(stored, |name| is_for_not_modified(name, has_etag, rule)));
}

/// Returns a 304 with these fields.
fn not_modified_response(headers: HeaderMap) -> Response<Bytes> {
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

/// The directives of an entry about its validation: those of the handler about stale responses, which are passed on (RFC 9111
/// §5.2.2.2, §5.2.2.8), and whether the response may be `immutable`.
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

#[cfg(test)]
#[cfg(feature = "runtime")]
mod tests {
    use std::time::SystemTime;

    use http::{Method, Request};
    use proptest::prelude::*;

    use super::*;
    use crate::key::KeySpace;
    use crate::policy::rule::Kind;
    use crate::policy::{CachePolicy, Decision, Lookup, OnEntry, OnRequest};
    use crate::record::Record;
    use crate::request::RequestView;

    const REQUESTS: [&[(&str, &str)]; 8] = [
        &[],
        &[("if-none-match", "W/\"a\"")],
        &[("if-none-match", "*")],
        &[("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")],
        &[("if-none-match", "\"b\""), ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")],
        &[("range", "bytes=1-2")],
        &[("origin", "https://a.example")],
        &[("range", "bytes=900-"), ("if-none-match", "\"b\"")],
    ];

    /// Fields that stored responses have, also several of one name.
    fn fields() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
        let field = prop::sample::select(vec![
            ("accept-ranges", "bytes"),
            ("content-type", "application/json"),
            ("content-type", "text/html; charset=utf-8"),
            ("content-encoding", "gzip"),
            ("content-location", "/a"),
            ("etag", "W/\"a\""),
            ("etag", "\"b\""),
            ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("last-modified", "gzip"),
            ("link", "</a>; rel=next"),
            ("link", "</b>; rel=prev"),
            ("vary", "Authorization, Cookie"),
            ("vary", "Accept-Language"),
            ("x-a", ""),
            ("x-b", "*"),
            ("access-control-allow-origin", "*"),
        ]);
        prop::collection::vec(field, 0..8)
    }

    fn policy(change: impl FnOnce(&mut Rule)) -> CachePolicy {
        let mut rule = Rule::new(Kind::Read, KeySpace::new("p", None).unwrap());
        rule.ttl = Some(Duration::from_secs(60));
        change(&mut rule);
        CachePolicy::new(Arc::new(rule))
    }

    /// The status, the fields and the body of a response.
    type Answer = (StatusCode, Vec<(HeaderName, HeaderValue)>, Bytes);

    /// Returns the response to a request after this lookup of a record.
    fn answer(
        policy: &CachePolicy,
        request: &Request<()>,
        decode: impl FnOnce(&Lookup) -> Option<Record>,
        now: SystemTime,
    ) -> Option<Answer> {
        let view = RequestView::from(request);
        let OnRequest::Lookup(lookup) = policy.on_request(&view) else { panic!("not a lookup") };
        let record = decode(&lookup)?;
        let OnEntry::Decided(Decision::Hit(hit) | Decision::NotModified(hit)) =
            lookup.on_entry(Ok(Some(record)), &view, now)
        else {
            return None;
        };
        let (parts, body) = hit.into_response().into_parts();
        let mut fields: Vec<_> =
            parts.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        // Of several values of a name, the order is kept.
        fields.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
        Some((parts.status, fields, body))
    }

    proptest! {
        #[test]
        fn templates_change_no_response(
            records in prop::collection::vec((fields(), any::<bool>(), 0..3usize), 1..8),
            cache_status in any::<bool>(),
            status_header in any::<bool>(),
            damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        ) {
            let policy = policy(|rule| {
                rule.cache_status = cache_status;
                if !status_header {
                    rule.status_header = None;
                }
            });
            let stored_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
            for (fields, tells_credentials, length) in records {
                let headers = fields
                    .into_iter()
                    .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                    .collect();
                let mut entry = Entry::new(StatusCode::OK, headers, vec![7; length].into(), stored_at);
                entry.tells_credentials = tells_credentials;
                entry.provenance.is_canonical = true;
                let mut bytes = entry.encode().to_vec();
                // Twice whole, so that the second time there is a template.
                for is_damaged in [false, false, true] {
                    if let (true, Some((at, byte))) = (is_damaged, damage) {
                        let at = at.index(bytes.len());
                        bytes[at] = byte;
                    }
                    let bytes = Bytes::from(bytes.clone());
                    for (method, fields) in REQUESTS.into_iter().flat_map(|f| [(Method::GET, f), (Method::HEAD, f)]) {
                        let mut request = Request::get("/a").body(()).unwrap();
                        *request.method_mut() = method;
                        for (name, value) in fields {
                            request.headers_mut().insert(*name, HeaderValue::from_static(value));
                        }
                        let now = stored_at + Duration::from_secs(1);
                        let templated = answer(&policy, &request, |lookup| lookup.decode(&bytes), now);
                        let plain = answer(&policy, &request, |_| Record::decode(&bytes), now);
                        prop_assert_eq!(templated, plain, "{:?}", fields);
                    }
                }
            }
        }
    }

    #[test]
    fn second_record_of_a_form_is_read_with_its_template() {
        let policy = policy(|_| {});
        let mut request = Request::get("/a").body(()).unwrap();
        let read = |request: &Request<()>, etag| {
            let headers = [(ETAG, HeaderValue::from_static(etag))].into_iter().collect();
            let record = Entry::new(StatusCode::OK, headers, Bytes::new(), SystemTime::UNIX_EPOCH).encode();
            let OnRequest::Lookup(lookup) = policy.on_request(&RequestView::from(request)) else { panic!() };
            let Some(Record::Response(entry)) = lookup.decode(&record) else { panic!() };
            (entry.is_response, entry.templated.is_some())
        };
        assert_eq!(read(&request, "\"a\""), (false, false), "it becomes the template");
        assert_eq!(read(&request, "\"bc\""), (true, false));
        request.headers_mut().insert("if-none-match", HeaderValue::from_static("\"a\""));
        assert_eq!(read(&request, "\"d\""), (false, true));
    }
}
