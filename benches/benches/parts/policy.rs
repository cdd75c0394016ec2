//! One decision: from a request and a stored response, both in memory, to the response's fields.
//!
//! `larder` and `semantics` (the crate `http-cache-semantics`) get the same request and the same response. The policy of
//! `semantics` is its stored response, so it is made before the measurement, like our entry. It returns the fields to send, so
//! our fields are measured too.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use divan::{Bencher, black_box};
use http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use http::{HeaderValue, Request, response};
use http_body_util::Empty;
use larder_benches::{PATH, SMALL, TTL, body, entry, get, response};
use larder_core::policy::{BodyLength, CachePolicy, Decision, OnEntry, OnRequest, OnResponse};
use larder_core::{Entry, KeySpace, Kind, Record, RequestView, Rule};

fn policy() -> CachePolicy {
    let space = KeySpace::new("redis:larder:cache", Some("products")).expect("a valid group");
    let mut rule = Rule::new(Kind::Read, space);
    rule.ttl = Some(TTL);
    CachePolicy::new(Arc::new(rule))
}

fn stored() -> Entry {
    entry(body(SMALL), 2)
}

/// Returns the stored response as a store returns it.
fn read(bytes: &Bytes) -> Entry {
    match Record::decode(bytes) {
        Some(Record::Response(entry)) => entry,
        other => panic!("no response: {other:?}"),
    }
}

fn revalidating() -> Request<Empty<Bytes>> {
    let mut request = get(PATH);
    request.headers_mut().insert(IF_NONE_MATCH, stored().headers[ETAG].clone());
    request
}

/// Returns the handler's response, with the directives that our cache sets.
fn answered() -> response::Parts {
    let (mut parts, _) = response(body(SMALL)).into_parts();
    parts.headers.insert(ETAG, stored().headers[ETAG].clone());
    parts.headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=300"));
    parts
}

fn decide(
    policy: &CachePolicy,
    request: &Request<Empty<Bytes>>,
    entry: Option<Entry>,
    now: SystemTime,
) -> Decision {
    let view = RequestView::from(request);
    let OnRequest::Lookup(lookup) = policy.on_request(&view) else { panic!("no lookup") };
    let OnEntry::Decided(decision) = lookup.on_entry(Ok(entry.map(Record::Response)), &view, now) else {
        panic!("no decision")
    };
    decision
}

mod larder {
    use super::*;

    /// The decision, without the fields of the response.
    #[divan::bench]
    fn fresh_decision_alone(bencher: Bencher<'_, '_>) {
        let (policy, request, entry) = (policy(), get(PATH), stored());
        let now = entry.stored_at + TTL / 2;
        let bytes = entry.encode();
        bencher.with_inputs(|| read(&bytes)).bench_local_values(|entry| {
            let decision = decide(&policy, black_box(&request), Some(entry), now);
            assert!(matches!(decision, Decision::Hit(_)));
            decision
        });
    }

    #[divan::bench]
    fn fresh_hit(bencher: Bencher<'_, '_>) {
        let (policy, request, entry) = (policy(), get(PATH), stored());
        let now = entry.stored_at + TTL / 2;
        let bytes = entry.encode();
        bencher.with_inputs(|| read(&bytes)).bench_local_values(|entry| {
            let Decision::Hit(hit) = decide(&policy, black_box(&request), Some(entry), now) else {
                panic!("no hit")
            };
            hit.into_response()
        });
    }

    #[divan::bench]
    fn not_modified(bencher: Bencher<'_, '_>) {
        let (policy, request, entry) = (policy(), revalidating(), stored());
        let now = entry.stored_at + TTL / 2;
        let bytes = entry.encode();
        bencher.with_inputs(|| read(&bytes)).bench_local_values(|entry| {
            let Decision::NotModified(hit) = decide(&policy, black_box(&request), Some(entry), now) else {
                panic!("no 304")
            };
            hit.into_response()
        });
    }

    #[divan::bench]
    fn expired(bencher: Bencher<'_, '_>) {
        let (policy, request, entry) = (policy(), get(PATH), stored());
        let now = entry.stored_at + TTL * 2;
        let bytes = entry.encode();
        bencher.with_inputs(|| read(&bytes)).bench_local_values(|entry| {
            let decision = decide(&policy, black_box(&request), Some(entry), now);
            assert!(matches!(decision, Decision::Miss(_)));
            decision
        });
    }

    #[divan::bench]
    fn miss(bencher: Bencher<'_, '_>) {
        let (policy, request, now) = (policy(), get(PATH), SystemTime::now());
        bencher.bench_local(|| {
            let decision = decide(&policy, black_box(&request), None, now);
            assert!(matches!(decision, Decision::Miss(_)));
            decision
        });
    }

    /// From the handler's response to the entry to store, without the request's part and without encoding. The handler sets an
    /// `ETag`, so that no body is hashed.
    #[divan::bench]
    fn admit(bencher: Bencher<'_, '_>) {
        let (policy, request, now, body) = (policy(), get(PATH), SystemTime::now(), body(SMALL));
        let forward = || match decide(&policy, &request, None, now) {
            Decision::Miss(forward) => (forward, answered(), body.clone()),
            _ => panic!("no miss"),
        };
        bencher.with_inputs(forward).bench_local_values(|(forward, parts, body)| {
            let length = BodyLength::Known(body.len() as u64);
            let OnResponse::Admit(admit) = forward.on_response(&parts, length, now) else {
                panic!("not admitted")
            };
            admit.on_body(parts, body, now)
        });
    }
}

mod semantics {
    use super::*;
    use http_cache_semantics::{BeforeRequest, CachePolicy, ResponseLike};

    fn made(now: SystemTime) -> CachePolicy {
        CachePolicy::new_options(&get(PATH), &Answered(answered()), now, Default::default())
    }

    /// The trait is implemented for whole responses. This implements it for their parts.
    struct Answered(response::Parts);

    impl ResponseLike for Answered {
        fn status(&self) -> http::StatusCode {
            self.0.status
        }

        fn headers(&self) -> &http::HeaderMap {
            &self.0.headers
        }
    }

    #[divan::bench]
    fn fresh_hit(bencher: Bencher<'_, '_>) {
        let now = SystemTime::now();
        let (policy, request) = (made(now), get(PATH));
        bencher.bench_local(|| {
            let answer = policy.before_request(black_box(&request), now + TTL / 2);
            assert!(matches!(answer, BeforeRequest::Fresh(_)));
            answer
        });
    }

    #[divan::bench]
    fn expired(bencher: Bencher<'_, '_>) {
        let now = SystemTime::now();
        let (policy, request) = (made(now), get(PATH));
        bencher.bench_local(|| {
            let answer = policy.before_request(black_box(&request), now + TTL * 2);
            assert!(matches!(answer, BeforeRequest::Stale { .. }));
            answer
        });
    }

    #[divan::bench]
    fn admit(bencher: Bencher<'_, '_>) {
        let (now, request) = (SystemTime::now(), get(PATH));
        bencher.with_inputs(|| Answered(answered())).bench_local_refs(|parts| {
            let policy = CachePolicy::new_options(black_box(&request), parts, now, Default::default());
            assert!(policy.is_storable());
            policy
        });
    }
}
