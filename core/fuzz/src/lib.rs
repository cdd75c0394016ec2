//! The assertions of the fuzz targets: one function for each parser of foreign bytes, which panics if the parser is wrong.
//!
//! The targets in `fuzz_targets/` call these functions with libFuzzer's input. `core/tests/fuzz.rs` includes this file and
//! calls them with the corpus.

#[path = "../../src/key/read_back.rs"]
mod read_back;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH, PRAGMA};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use larder_core::headers::cache_control::{RequestDirectives, ResponseDirectives};
use larder_core::key::{DEFAULT_PREFIX, MAX_SUFFIX, uri_suffix};
use larder_core::policy::{CachePolicy, Decision, OnEntry, OnRequest};
use larder_core::{Entry, KeySpace, Kind, Record, RequestView, Rule, Validators};

use read_back::{meaning, read_back};

/// Checks the bytes under the key of a route. A readable record is encoded as the same record again, and the engine can answer
/// with it at any time.
pub fn record(bytes: &[u8]) {
    let Some(record) = Record::decode(&Bytes::copy_from_slice(bytes)) else { return };
    let written = match &record {
        Record::Response(entry) => entry.encode(),
        Record::Variants(variants) => variants.encode(),
    };
    assert_eq!(Record::decode(&written).as_ref(), Some(&record), "it was written as another record");
    if let Record::Response(entry) = &record {
        for now in moments(entry) {
            assert_eq!(entry.is_expired(now), entry.ttl.is_some_and(|ttl| entry.age(now) >= ttl));
            assert!(entry.staleness(now).is_zero() || entry.is_expired(now));
        }
    }
    answer_with(&record, false);
    answer_with(&record, true);
}

/// Returns times before and at the storing of an entry, the end of its lifetime, and a much later time.
fn moments(entry: &Entry) -> impl Iterator<Item = SystemTime> {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    let stored = entry.stored_at;
    let ends = entry.ttl.and_then(|ttl| stored.checked_add(ttl));
    [Some(SystemTime::UNIX_EPOCH), Some(stored), ends, stored.checked_add(CENTURY)].into_iter().flatten()
}

/// Passes the record to the engine, for a client with or without a validator.
fn answer_with(record: &Record, validated: bool) {
    let space = KeySpace::new(DEFAULT_PREFIX, None).unwrap();
    let ttl = Some(Duration::from_secs(60));
    let mut rule = Rule::new(Kind::Read, space);
    rule.ttl = ttl;
    rule.cache_status = true;
    let policy = CachePolicy::new(Arc::new(rule));
    let mut request = Request::get("/").body(()).unwrap();
    let now = match record {
        Record::Response(entry) => {
            if let (true, Some(tag)) = (validated, entry.headers.get(ETAG)) {
                request.headers_mut().insert(IF_NONE_MATCH, tag.clone());
            }
            entry.stored_at
        }
        Record::Variants(_) => SystemTime::UNIX_EPOCH,
    };
    let view = RequestView::from(&request);
    let OnRequest::Lookup(lookup) = policy.on_request(&view) else { panic!("a plain GET is looked up") };
    match lookup.on_entry(Ok(Some(record.clone())), &view, now) {
        OnEntry::Select(select) => {
            let _ = select.secondary_key(&view).to_hex();
            // A variant is never itself a list of variants.
            let Decision::Miss(_) = select.on_entry(Ok(Some(record.clone())), &view, now) else {
                panic!("a record of variants was served as a variant")
            };
        }
        OnEntry::Decided(Decision::Hit(hit)) => {
            let Record::Response(entry) = record else { panic!("a hit without a response") };
            let response = hit.into_response();
            assert_eq!((response.status(), response.body()), (entry.status, &entry.body));
        }
        OnEntry::Decided(_) => {}
    }
}

/// Checks the bytes under the key of a backend: they are a value, absent or an error, and never cause a panic. A value is
/// encoded as the same value again.
#[cfg(feature = "memory")]
pub fn value(bytes: &[u8]) {
    use larder_core::{CacheStore, Larder, MemoryStore, MessagePack};
    use std::collections::BTreeMap;

    /// A value with fields of several types.
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Value {
        #[serde(default)]
        number: i64,
        #[serde(default)]
        text: Option<String>,
        #[serde(default)]
        list: Vec<Value>,
        #[serde(default)]
        map: BTreeMap<String, bool>,
    }

    let store = MemoryStore::new();
    let json = Larder::builder().store(store.clone()).build().backend();
    let pack = json.coder(MessagePack);
    let key = KeySpace::new(DEFAULT_PREFIX, None).unwrap().key("k");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        store.set(&key, Bytes::copy_from_slice(bytes), None).await.unwrap();
        let (as_json, as_pack) = (json.try_get::<Value>("k").await, pack.try_get::<Value>("k").await);
        if let Ok(Some(value)) = as_json {
            assert!(!matches!(as_pack, Ok(Some(_))), "another coder's value");
            json.try_set("k", &value, 60).await.unwrap();
            assert_eq!(json.try_get("k").await.unwrap(), Some(value));
        } else if let Ok(Some(value)) = as_pack {
            pack.try_set("k", &value, 60).await.unwrap();
            assert_eq!(pack.try_get("k").await.unwrap(), Some(value));
        }
    });
}

/// Checks `Cache-Control` of requests and responses. Each line is a field.
///
/// Several fields mean the same as the combination of each alone. Case has no meaning. Parsed directives that are written
/// in plain form are parsed as the same directives.
pub fn cache_control(bytes: &[u8]) {
    let fields: Vec<HeaderValue> = lines(bytes).collect();
    let all = under(&CACHE_CONTROL, &fields);
    let request = RequestDirectives::of(&all);
    let response = ResponseDirectives::of(&all);

    let each = fields.iter().map(|field| under(&CACHE_CONTROL, std::slice::from_ref(field)));
    let each: Vec<HeaderMap> = each.collect();
    let alone = each.iter().map(RequestDirectives::of);
    assert_eq!(alone.fold(RequestDirectives::default(), both_requests), request);
    let alone = each.iter().map(ResponseDirectives::of);
    assert_eq!(alone.fold(ResponseDirectives::default(), both_responses), response);

    let uppercase =
        fields.iter().filter_map(|f| HeaderValue::from_bytes(&f.as_bytes().to_ascii_uppercase()).ok());
    let uppercase = under(&CACHE_CONTROL, &uppercase.collect::<Vec<_>>());
    assert_eq!((RequestDirectives::of(&uppercase), ResponseDirectives::of(&uppercase)), (request, response));

    let plain = |text: String| under(&CACHE_CONTROL, &[HeaderValue::try_from(text).unwrap()]);
    assert_eq!(RequestDirectives::of(&plain(format_request(&request))), request);
    assert_eq!(ResponseDirectives::of(&plain(format_response(&response))), response);

    let old = RequestDirectives::of(&under(&PRAGMA, &fields));
    assert_eq!(old, RequestDirectives { no_cache: old.no_cache, ..Default::default() }, "too much in Pragma");
    assert!(request.no_cache || !old.no_cache, "Pragma understands what Cache-Control doesn't");
}

fn both_requests(a: RequestDirectives, b: RequestDirectives) -> RequestDirectives {
    RequestDirectives {
        no_cache: a.no_cache | b.no_cache,
        no_store: a.no_store | b.no_store,
        max_age: shortest(a.max_age, b.max_age),
        max_stale: shortest(a.max_stale, b.max_stale),
        min_fresh: a.min_fresh.max(b.min_fresh),
        only_if_cached: a.only_if_cached | b.only_if_cached,
    }
}

fn both_responses(a: ResponseDirectives, b: ResponseDirectives) -> ResponseDirectives {
    ResponseDirectives {
        no_store: a.no_store | b.no_store,
        no_cache: a.no_cache | b.no_cache,
        private: a.private | b.private,
        public: a.public | b.public,
        must_revalidate: a.must_revalidate | b.must_revalidate,
        proxy_revalidate: a.proxy_revalidate | b.proxy_revalidate,
        must_understand: a.must_understand | b.must_understand,
        no_transform: a.no_transform | b.no_transform,
        immutable: a.immutable | b.immutable,
        max_age: shortest(a.max_age, b.max_age),
        s_maxage: shortest(a.s_maxage, b.s_maxage),
        stale_while_revalidate: shortest(a.stale_while_revalidate, b.stale_while_revalidate),
        stale_if_error: shortest(a.stale_if_error, b.stale_if_error),
    }
}

fn shortest(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

fn format_request(directives: &RequestDirectives) -> String {
    let flags = [
        ("no-cache", directives.no_cache),
        ("no-store", directives.no_store),
        ("only-if-cached", directives.only_if_cached),
    ];
    let times = [
        ("max-age", directives.max_age),
        ("max-stale", directives.max_stale),
        ("min-fresh", directives.min_fresh),
    ];
    format_directives(&flags, &times)
}

fn format_response(directives: &ResponseDirectives) -> String {
    let flags = [
        ("no-store", directives.no_store),
        ("no-cache", directives.no_cache),
        ("private", directives.private),
        ("public", directives.public),
        ("must-revalidate", directives.must_revalidate),
        ("proxy-revalidate", directives.proxy_revalidate),
        ("must-understand", directives.must_understand),
        ("no-transform", directives.no_transform),
        ("immutable", directives.immutable),
    ];
    let times = [
        ("max-age", directives.max_age),
        ("s-maxage", directives.s_maxage),
        ("stale-while-revalidate", directives.stale_while_revalidate),
        ("stale-if-error", directives.stale_if_error),
    ];
    format_directives(&flags, &times)
}

fn format_directives(flags: &[(&str, bool)], times: &[(&str, Option<u64>)]) -> String {
    let flags = flags.iter().filter(|flag| flag.1).map(|flag| flag.0.to_owned());
    let times = times.iter().filter_map(|(name, time)| Some(format!("{name}={}", (*time)?)));
    flags.chain(times).collect::<Vec<_>>().join(", ")
}

/// Checks `If-None-Match`. The first line is the entity tag of a stored response, and each other line is a field.
///
/// The comparison is weak. No field hides the tags of another. A tag that is in no field doesn't match.
pub fn if_none_match(bytes: &[u8]) {
    let mut values = lines(bytes);
    let Some(tag) = values.next() else { return };
    let fields: Vec<HeaderValue> = values.collect();
    let matches = |fields: &[HeaderValue], tag: &HeaderValue| {
        let validators = Validators::of(&under(&IF_NONE_MATCH, fields));
        validators.match_response(&under(&ETAG, std::slice::from_ref(tag)), SystemTime::UNIX_EPOCH)
    };
    let found = matches(&fields, &tag);
    assert_eq!(fields.iter().any(|field| matches(std::slice::from_ref(field), &tag)), found);

    let opaque = tag.as_bytes().strip_prefix(b"W/").unwrap_or(tag.as_bytes());
    let listed = |field: &HeaderValue| {
        let field = field.as_bytes();
        field.trim_ascii() == b"*" || field.windows(opaque.len().max(1)).any(|part| part == opaque)
    };
    assert!(!found || fields.iter().any(listed), "found where it isn't");

    if !is_entity_tag(tag.as_bytes()) {
        return;
    }
    let strong = HeaderValue::from_bytes(opaque).unwrap();
    let weak = HeaderValue::from_bytes(&[b"W/", opaque].concat()).unwrap();
    assert_eq!(
        (matches(&fields, &strong), matches(&fields, &weak)),
        (found, found),
        "the comparison is not weak"
    );
    for own in [strong, weak] {
        let list = [b"\"\", W/\"other\" ,, ", own.as_bytes(), b", \"last\""].concat();
        assert!(matches(&[HeaderValue::from_bytes(&list).unwrap()], &tag), "not found in a list");
        for (before, after) in
            [("", "-gzip"), ("", " \"last\""), ("", ";"), ("first, ", ""), ("\"first, ", "")]
        {
            let malformed = [before.as_bytes(), own.as_bytes(), after.as_bytes()].concat();
            let malformed = [HeaderValue::from_bytes(&malformed).unwrap()];
            assert!(!matches(&malformed, &tag), "found in a malformed list");
        }
        assert!(matches(&[&fields[..], &[own]].concat(), &tag), "hidden by another field");
    }
}

/// Returns `true` for a valid entity tag (RFC 9110 §8.8.3).
fn is_entity_tag(tag: &[u8]) -> bool {
    let quoted = tag.strip_prefix(b"W/").unwrap_or(tag);
    let text = quoted.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\""));
    text.is_some_and(|text| text.iter().all(|byte| matches!(byte, 0x21 | 0x23..=0x7e | 0x80..)))
}

/// Checks keys. Each line is used as a URI and as a custom suffix.
///
/// The suffix of a URI can be read back. Two URIs share a key only if they request the same resource. No suffix is longer than
/// `MAX_SUFFIX`.
pub fn key(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let space = KeySpace::new(DEFAULT_PREFIX, Some("g")).unwrap();
    let chosen: Vec<&str> = text.split('\n').take(4).collect();
    let uris: Vec<Uri> = chosen.iter().filter_map(|line| line.parse().ok()).collect();
    for uri in &uris {
        // A target without a path (`*`, the authority of `CONNECT`) has a key too, but no path to read back.
        if uri.path().starts_with('/') {
            assert_eq!(read_back(&uri_suffix(uri)), meaning(uri), "{uri}");
        }
    }
    let of_uris = uris.iter().map(|uri| (space.key_for(uri), meaning(uri)));
    assert_distinct(&of_uris.collect::<Vec<_>>());
    let of_chosen = chosen.iter().map(|suffix| (space.key(suffix), suffix));
    assert_distinct(&of_chosen.collect::<Vec<_>>());
}

fn assert_distinct<T: PartialEq + std::fmt::Debug>(keys: &[(larder_core::CacheKey, T)]) {
    for (index, (key, meaning)) in keys.iter().enumerate() {
        assert!(key.suffix().len() <= MAX_SUFFIX, "{} bytes of {key}", key.suffix().len());
        assert_eq!((key.prefix(), key.group()), (DEFAULT_PREFIX, Some("g")));
        for (other, other_meaning) in &keys[..index] {
            assert_eq!(key == other, meaning == other_meaning, "{meaning:?} and {other_meaning:?}");
        }
    }
}

/// Returns the lines that are valid field values.
fn lines(bytes: &[u8]) -> impl Iterator<Item = HeaderValue> {
    bytes.split(|byte| *byte == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok())
}

fn under(name: &HeaderName, values: &[HeaderValue]) -> HeaderMap {
    values.iter().map(|value| (name.clone(), value.clone())).collect()
}
