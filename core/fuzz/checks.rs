//! What must hold for any bytes. The fuzz targets and the test that replays the corpus share these.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use larder_core::directives::{RequestDirectives, ResponseDirectives};
use larder_core::policy::{CachePolicy, Decision, OnEntry, OnRequest};
use larder_core::{Entry, KeySpace, Kind, Record, RequestView, Rule, key::MAX_SUFFIX};

/// Whatever a store returns is read or not; what is read is written and read as the same.
pub(crate) fn record(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let again = match Record::decode(&bytes) {
        None => return,
        Some(Record::Response(entry)) => {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
            let _ = (entry.age(now), entry.remaining(now), entry.staleness(now), entry.is_expired(now));
            entry.encode()
        }
        Some(Record::Variants(variants)) => variants.encode(),
    };
    assert_eq!(Record::decode(&again), Record::decode(&bytes));
}

/// `Cache-Control` is read whatever it says, and saying more never makes a response easier to store.
pub(crate) fn directives(data: &[u8]) {
    let mut fields = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            fields.append(CACHE_CONTROL, value);
        }
    }
    let (request, response) = (RequestDirectives::of(&fields), ResponseDirectives::of(&fields));

    fields.append(CACHE_CONTROL, HeaderValue::from_static("no-store, private, no-cache"));
    let (stricter_request, stricter) = (RequestDirectives::of(&fields), ResponseDirectives::of(&fields));
    assert!(stricter_request.no_store && stricter_request.no_cache);
    assert!(stricter.no_store);
    assert_eq!(request.only_if_cached, stricter_request.only_if_cached);
    assert_eq!(response.must_revalidate, stricter.must_revalidate);
}

/// A client whose list has the stored tag gets a 304, whatever else the list has, and one that names none gets it all.
pub(crate) fn conditions(data: &[u8]) {
    const TAG: &str = "\"stored\"";
    let Ok(listed) = HeaderValue::from_bytes(data) else { return };
    let is_not_modified = |lines: &[&HeaderValue]| {
        let mut request = Request::get("/").body(()).expect("a request");
        for line in lines {
            request.headers_mut().append(IF_NONE_MATCH, (*line).clone());
        }
        let entry = Entry {
            status: StatusCode::OK,
            headers: HeaderMap::from_iter([(ETAG, HeaderValue::from_static(TAG))]),
            body: Bytes::from_static(b"body"),
            stored_at: SystemTime::UNIX_EPOCH,
            ttl: None,
            variant: 0,
            must_revalidate: false,
        };
        let rule = Rule::new(Kind::Read, KeySpace::new("p", None).expect("a prefix"));
        let view = RequestView::from(&request);
        let OnRequest::Lookup(lookup) = CachePolicy::new(rule.into()).on_request(&view) else {
            panic!("a plain GET looks up")
        };
        match lookup.on_entry(Ok(Some(Record::Response(entry))), &view, SystemTime::UNIX_EPOCH) {
            OnEntry::Decided(Decision::NotModified(hit)) => {
                assert_eq!(hit.into_response().status(), StatusCode::NOT_MODIFIED);
                true
            }
            OnEntry::Decided(Decision::Hit(hit)) => {
                assert_eq!(hit.into_response().body(), "body");
                false
            }
            other => panic!("{other:?}"),
        }
    };
    let names_it = data.windows(TAG.len()).any(|window| window == TAG.as_bytes()) || data.contains(&b'*');
    assert!(names_it || !is_not_modified(&[&listed]), "{listed:?}");
    let own = HeaderValue::from_static(TAG);
    assert!(is_not_modified(&[&own, &listed]), "{listed:?}");
}

/// Two URIs, a line each, share a key if and only if they mean the same.
pub(crate) fn key(data: &[u8]) {
    let mut lines = data.splitn(2, |byte| *byte == b'\n');
    // Only a path is ever looked up: the `*` of `OPTIONS *` is none.
    let mut uri = || Uri::try_from(lines.next()?).ok().filter(|uri| uri.path().starts_with('/'));
    let (Some(one), Some(other)) = (uri(), uri()) else { return };
    let space = KeySpace::new("p", Some("g")).expect("a prefix and a group");
    let keys = [&one, &other].map(|uri| space.key_for(uri));
    for key in &keys {
        assert!(key.name().starts_with("p:{g}:") && key.suffix().len() <= MAX_SUFFIX, "{key}");
        let (own, _) = key.suffix().split_once("|hash=").unwrap_or((key.suffix(), ""));
        assert!(!own.contains(['{', '}', '|']), "{key}");
    }
    assert_eq!(meaning(&one) == meaning(&other), keys[0] == keys[1], "{one} {other} {} {}", keys[0], keys[1]);
}

/// A name and, after a `=`, a value.
type Pair = (Vec<u8>, Option<Vec<u8>>);

/// A path, and the parameters in the order of their names: none at all is not the same as one without a name.
fn meaning(uri: &Uri) -> (Vec<u8>, Vec<Pair>) {
    let pair = |pair: &str| match pair.split_once('=') {
        Some((name, value)) => (normal(name), Some(normal(value))),
        None => (normal(pair), None),
    };
    let mut pairs: Vec<_> = uri.query().into_iter().flat_map(|query| query.split('&').map(pair)).collect();
    pairs.sort_by(|(one, _), (other, _)| one.cmp(other));
    (normal(uri.path()), pairs)
}

/// RFC 3986 §6.2.2: escapes of unreserved characters are undone, and the digits of the others are in upper case.
fn normal(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digit = |at: usize| bytes.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                let meant = u8::try_from(high * 16 + low).expect("two digits");
                if meant.is_ascii_alphanumeric() || b"-._~".contains(&meant) {
                    out.push(meant);
                } else {
                    out.extend(format!("%{meant:02X}").bytes());
                }
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}
