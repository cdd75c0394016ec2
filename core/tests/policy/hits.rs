//! Responses made from stored ones.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use larder_core::policy::{Decision, Hit};
use larder_core::{Entry, Kind};

use super::engine::{TTL, entry, now, request, rule, with};
use super::requests::PRIVATE;
use super::{AS_IT_IS, Tweak, ask, cache_status, lines, millis, stored, tweaked};

pub(super) fn hit(decision: Decision) -> Hit {
    match decision {
        Decision::Hit(hit) => hit,
        other => panic!("no hit: {other:?}"),
    }
}

#[test]
fn hits_have_the_expected_fields() {
    const IMMUTABLE: Tweak = |rule| rule.is_immutable = true;
    const DOWNSTREAM: Tweak = |rule| rule.downstream_ttl = Some(Duration::from_secs(5));
    const UNNAMED: Tweak = |rule| rule.status_header = None;
    let without_end: fn(Entry) -> Entry = |entry| with(entry, |entry| entry.ttl = None);
    let as_it_is: fn(Entry) -> Entry = |entry| entry;
    let table: &[(&str, Tweak, fn(Entry) -> Entry, u64, &[&str])] = &[
        (
            "a new entry has the whole lifetime",
            AS_IT_IS,
            as_it_is,
            0,
            &["cache-control: max-age=60", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "the age is in whole seconds",
            AS_IT_IS,
            as_it_is,
            999,
            &["cache-control: max-age=60", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "max-age counts down",
            AS_IT_IS,
            as_it_is,
            1_000,
            &["cache-control: max-age=59", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "max-age in the last second",
            AS_IT_IS,
            as_it_is,
            59_999,
            &["cache-control: max-age=1", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "the clock was set back",
            AS_IT_IS,
            |e| with(e, |e| e.stored_at += TTL),
            0,
            &["cache-control: max-age=60", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "an entry without expiry is validated each time",
            AS_IT_IS,
            without_end,
            5_000,
            &["cache-control: no-cache", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "a private route",
            PRIVATE,
            as_it_is,
            1_000,
            &["cache-control: private, max-age=59", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "a private route, without expiry",
            PRIVATE,
            without_end,
            0,
            &["cache-control: private, no-cache", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "downstream_ttl shortens max-age",
            DOWNSTREAM,
            as_it_is,
            0,
            &["cache-control: max-age=5", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "downstream_ttl never exceeds the remaining lifetime",
            DOWNSTREAM,
            as_it_is,
            57_000,
            &["cache-control: max-age=3", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "downstream_ttl applies to an entry without expiry",
            DOWNSTREAM,
            without_end,
            0,
            &["cache-control: max-age=5", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "downstream_ttl of zero has the response validated before each use",
            |rule| rule.downstream_ttl = Some(Duration::ZERO),
            without_end,
            0,
            &["cache-control: max-age=0", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "an immutable response",
            IMMUTABLE,
            as_it_is,
            1_000,
            &["cache-control: max-age=59, immutable", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "an immutable response without expiry is validated each time all the same",
            IMMUTABLE,
            without_end,
            0,
            &["cache-control: no-cache", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        ("no status header", UNNAMED, as_it_is, 0, &["cache-control: max-age=60", "etag: \"e\""]),
    ];
    for (why, tweak, change, age, expected) in table {
        let stored = stored(change(entry(&[("etag", "\"e\"")])));
        let at = now() + millis(*age);
        let answer = hit(ask(tweaked(Kind::Read, *tweak), &request(Method::GET, &[]), stored.clone(), at))
            .into_response();
        assert_eq!((answer.status(), &answer.body()[..]), (StatusCode::OK, &b"stored"[..]), "{why}");
        assert_eq!(lines(answer.headers()), *expected, "{why}");

        // HEAD has the same fields, and the length of the body of GET (RFC 9110 §9.3.2).
        let head =
            hit(ask(tweaked(Kind::Read, *tweak), &request(Method::HEAD, &[]), stored, at)).into_response();
        let mut expected: Vec<&str> = expected.to_vec();
        expected.insert(1, "content-length: 6");
        assert_eq!(
            (lines(head.headers()), head.body().len()),
            (expected.into_iter().map(str::to_owned).collect(), 0),
            "{why}"
        );
    }
}

#[test]
fn errors_and_stale_responses_are_not_immutable() {
    let immutable: Tweak = |rule| {
        rule.is_immutable = true;
        rule.stale_while_revalidate = Some(TTL);
    };
    let control = |change: fn(&mut Entry), at| {
        let found = stored(with(entry(&[]), change));
        let answer = match ask(tweaked(Kind::Read, immutable), &request(Method::GET, &[]), found, at) {
            Decision::Hit(hit) => hit.into_response(),
            Decision::Stale(hit, _) => hit.into_response(),
            other => panic!("no answer: {other:?}"),
        };
        answer.headers()["cache-control"].to_str().unwrap().to_owned()
    };
    assert!(control(|_| (), now()).ends_with(", immutable"));
    let not_found = control(|entry| entry.status = StatusCode::NOT_FOUND, now());
    let stale = control(|_| (), now() + TTL + millis(1));
    assert!(!not_found.contains("immutable") && !stale.contains("immutable"), "{not_found}, {stale}");
}

#[test]
fn hit_has_the_stored_status_and_reports_collapsing() {
    let found = || stored(with(entry(&[]), |entry| entry.status = StatusCode::NOT_FOUND));
    let get = request(Method::GET, &[]);
    let plain = hit(ask(rule(Kind::Read), &get, found(), now() + TTL / 2));
    assert_eq!(plain.entry().status, StatusCode::NOT_FOUND);
    let plain = plain.into_response();
    assert_eq!(plain.status(), StatusCode::NOT_FOUND);
    assert_eq!(cache_status(plain.headers()), "Larder; hit; ttl=30");
    let endless = stored(with(entry(&[]), |entry| entry.ttl = None));
    let collapsed = hit(ask(rule(Kind::Read), &get, endless, now())).collapsed().into_response();
    assert_eq!(cache_status(collapsed.headers()), "Larder; fwd=miss; collapsed");
}

/// A 204 has no length (RFC 9110 §8.6).
#[test]
fn head_of_a_stored_204_has_no_length() {
    let found = || {
        stored(with(entry(&[]), |entry| {
            entry.status = StatusCode::NO_CONTENT;
            entry.body = Bytes::new();
        }))
    };
    let head = hit(ask(rule(Kind::Read), &request(Method::HEAD, &[]), found(), now())).into_response();
    assert_eq!(head.status(), StatusCode::NO_CONTENT);
    assert_eq!(lines(head.headers()), ["cache-control: max-age=60", "x-redis-cache: HIT"]);
}
