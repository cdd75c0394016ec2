//! The number of allocations of a hit.

use allocation_counter::measure;
use http::header::{ETAG, IF_NONE_MATCH};
use larder_axum::larder_core::policy::{CachePolicy, Decision, OnEntry, OnRequest};
use larder_axum::larder_core::{Kind, Record, Rule};
use larder_axum::{KeySpace, Larder, RequestView, cache};
use larder_benches::{Direct, LARGE, PATH, SMALL, TTL, at_once, body, entry, get, response, route, runtime};
use tower::{Layer, Service, service_fn};

#[test]
fn decision_on_a_fresh_response_allocates_nothing() {
    let space = KeySpace::new("redis:larder:cache", Some("products")).unwrap();
    let mut rule = Rule::new(Kind::Read, space);
    rule.ttl = Some(TTL);
    let policy = CachePolicy::new(rule.into());
    for (fields, conditional) in [(2, false), (50, false), (2, true)] {
        let entry = entry(body(SMALL), fields);
        let (mut request, now) = (get(PATH), entry.stored_at + TTL / 2);
        if conditional {
            request.headers_mut().insert(IF_NONE_MATCH, entry.headers[ETAG].clone());
        }
        let record = Record::Response(entry);
        let mut decision = None;
        let counted = measure(|| {
            let view = RequestView::from(&request);
            if let OnRequest::Lookup(lookup) = policy.on_request(&view) {
                decision = Some(lookup.on_entry(Ok(Some(record)), &view, now));
            }
        });
        match decision {
            Some(OnEntry::Decided(Decision::Hit(_))) => assert!(!conditional),
            Some(OnEntry::Decided(Decision::NotModified(_))) => assert!(conditional),
            other => panic!("no hit: {other:?}"),
        }
        assert_eq!(counted.count_total, 0, "{fields} fields, conditional: {conditional}");
    }
}

/// The counted number. Lower it when a hit takes fewer.
const MOST: u64 = 4;

#[test]
fn hit_from_memory_stays_within_its_allocations() {
    for len in [SMALL, LARGE] {
        let call = Direct { request: get(PATH), body: body(len) };
        let larder = Larder::memory();
        runtime().block_on(route(&larder).handle(call.clone())).unwrap();

        let handler = service_fn(|_: http::Request<http_body_util::Empty<bytes::Bytes>>| async {
            Ok::<_, std::convert::Infallible>(response(body(0)).map(http_body_util::Full::new))
        });
        let mut service = cache(&larder).group("products").ttl(TTL).layer(handler);
        let mut hit = || {
            let request = call.request.clone();
            let mut answer = None;
            let counted = measure(|| answer = Some(at_once(service.call(request))));
            assert_eq!(answer.unwrap().unwrap().headers()["x-redis-cache"], "HIT");
            counted
        };
        // The first hit of a route allocates its counters.
        hit();
        let counted = hit();
        assert!(counted.count_total <= MOST, "{len} bytes: {counted:?}");
        // The body is not copied.
        assert!(counted.bytes_total < 2048, "{len} bytes: {counted:?}");
    }
}
