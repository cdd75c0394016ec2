//! Validation with the origin (§4.3).

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use larder_core::shared::SharedRecord;
use larder_core::shared::policy::{Fate, SharedDecision, SharedOnResponse};

use super::engine::{Fields, now, request};
use super::ranges::part;
use super::{
    A_MINUTE_AGO, A_THOUSAND_SECONDS_AGO, BODY, NOW, answer, ask, get, policy, record_of, response_of, rule,
    seconds, store, stored,
};

#[test]
fn validators_are_added_to_requests() {
    let both: Fields<'_> =
        &[("cache-control", "max-age=60"), ("etag", "\"a\""), ("last-modified", A_MINUTE_AGO)];
    let neither: Fields<'_> = &[("cache-control", "max-age=60")];
    let rows: &[(&str, Fields<'_>, Fields<'_>, &str, &str)] = &[
        ("§4.3.1 with all stored validators", &[], both, "\"a\"", A_MINUTE_AGO),
        (
            "§4.3.1 in place of the client's validators",
            &[("if-none-match", "\"b\"")],
            both,
            "\"a\"",
            A_MINUTE_AGO,
        ),
        (
            "§4.3.1 the client's validators, if none are stored",
            &[("if-none-match", "\"b\"")],
            neither,
            "\"b\"",
            "",
        ),
    ];
    for (what, request, fields, tag, date) in rows {
        let request = get(request);
        let decision = ask(&policy(), &request, stored(fields), now() + seconds(3600));
        let SharedDecision::Forward(forward) = decision else { panic!("{what}: {decision:?}") };
        let mut headers = request.headers.clone();
        forward.prepare(&mut headers);
        let found = |name: &str| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        assert_eq!(
            (found("if-none-match"), found("if-modified-since")),
            ((*tag).into(), (*date).into()),
            "{what}"
        );
    }
}

#[test]
fn background_refresh_requests_the_whole_with_the_clients_fields() {
    let request = get(&[("range", "bytes=0-1"), ("if-none-match", "\"b\""), ("accept", "text/plain")]);
    let record = stored(&[("cache-control", "max-age=60, stale-while-revalidate=60")]);
    let SharedDecision::Stale(_, forward) = ask(&policy(), &request, record, now() + seconds(61)) else {
        panic!()
    };
    let mut headers = request.headers.clone();
    forward.prepare(&mut headers);
    assert_eq!(headers, super::engine::headers(&[("accept", "text/plain")]));
}

#[test]
fn not_modified_freshens_the_stored_response() {
    let fields: Fields<'_> = &[
        ("cache-control", "max-age=60"),
        ("etag", "\"a\""),
        ("date", A_MINUTE_AGO),
        ("x-old", "1"),
        ("x-both", "1"),
        ("x-both", "2"),
        ("content-length", "10"),
        ("content-encoding", "gzip"),
        ("content-type", "text/plain"),
    ];
    let mut record = store(fields);
    record.variant = 0;
    let record = Some(SharedRecord::Response(Box::new(record)));
    let validated: Fields<'_> = &[
        ("etag", "\"a\""),
        ("cache-control", "max-age=30"),
        ("x-both", "3"),
        ("content-length", "99"),
        ("content-encoding", "br"),
        ("content-range", "bytes 0-0/1"),
        ("content-type", "text/html"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
    ];
    let later = now() + seconds(100);
    let SharedOnResponse::Freshened(freshened) =
        answer(&policy(), &get(&[]), record, (304, validated), later)
    else {
        panic!()
    };
    assert!(freshened.is_fresh());
    assert_eq!(freshened.fate(), Fate::Store);
    let (bytes, ttl) = (freshened.record(), freshened.retention());
    let Some(SharedRecord::Response(stored)) = SharedRecord::decode(&bytes) else { panic!() };
    let all = |name: &str| {
        let values = stored.headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned());
        values.collect::<Vec<_>>().join(" ")
    };
    // New fields replace stored ones (§3.2). Fields that describe the kept body stay.
    assert_eq!(
        (all("x-old"), all("x-both"), all("content-type")),
        ("1".into(), "3".into(), "text/html".into())
    );
    assert_eq!((all("content-length"), all("content-encoding")), ("10".into(), "gzip".into()));
    assert_eq!(
        (all("content-range"), all("x-hop"), all("connection")),
        (String::new(), String::new(), String::new())
    );
    // The age restarts (§4.3.4).
    assert_eq!((stored.age(later), stored.lifetime), (Duration::ZERO, seconds(30)));
    assert_eq!(ttl, seconds(30) + rule().keep_stale);

    let response = freshened.into_answer().unwrap().into_response();
    assert_eq!((response.status(), &response.body()[..]), (StatusCode::OK, BODY.as_bytes()));
    assert_eq!(
        response.headers()["cache-status"],
        "Larder; fwd=stale; fwd-status=304; stored; detail=expired"
    );
}

#[test]
fn condition_of_the_client_is_evaluated_after_validation() {
    let fields: Fields<'_> = &[("cache-control", "max-age=60"), ("etag", "\"a\"")];
    for (request, status, body) in [
        (&[("if-none-match", "\"a\"")][..], 304, ""),
        (&[("if-none-match", "\"b\"")][..], 200, BODY),
        (&[("range", "bytes=0-1")][..], 206, "01"),
    ] {
        let later = now() + seconds(100);
        let found = answer(&policy(), &get(request), stored(fields), (304, &[]), later);
        let SharedOnResponse::Freshened(freshened) = found else { panic!("{found:?}") };
        let response = freshened.into_answer().unwrap().into_response();
        assert_eq!((response.status().as_u16(), &response.body()[..]), (status, body.as_bytes()));
    }
}

#[test]
fn not_modified_can_forbid_storing() {
    let fields: Fields<'_> = &[("cache-control", "max-age=60"), ("etag", "\"a\"")];
    for told in ["no-store", "private"] {
        let later = now() + seconds(100);
        let found = answer(&policy(), &get(&[]), stored(fields), (304, &[("cache-control", told)]), later);
        let SharedOnResponse::Freshened(freshened) = found else { panic!("{found:?}") };
        assert!(freshened.fate() == Fate::Evict && !freshened.is_fresh(), "{told}");
    }
    // A response validated for one user isn't stored for all, and the stored one stays (§3.5).
    let credentials = get(&[("authorization", "x")]);
    let found = answer(&policy(), &credentials, stored(fields), (304, &[]), now() + seconds(100));
    let SharedOnResponse::Freshened(freshened) = found else { panic!("{found:?}") };
    assert!(freshened.fate() == Fate::Leave && freshened.into_answer().is_some());
    // A 304 to the client's own condition says nothing about the stored response.
    let request = get(&[("if-none-match", "\"b\"")]);
    let record = stored(&[("cache-control", "max-age=60")]);
    let found = answer(&policy(), &request, record, (304, &[]), now() + seconds(100));
    assert!(matches!(&found, SharedOnResponse::Pass(pass) if !pass.evicts()), "{found:?}");
}

#[test]
fn head_freshens_an_unchanged_response() {
    // §4.3.5.
    let fields: Fields<'_> = &[("cache-control", "max-age=60"), ("etag", "\"a\"")];
    let rows: &[(u16, Fields<'_>, &str)] = &[
        (200, &[("etag", "\"a\""), ("cache-control", "max-age=9"), ("content-length", "10")], "freshened"),
        (200, &[("cache-control", "max-age=9")], "freshened"),
        (200, &[("etag", "\"b\"")], "evicts"),
        (200, &[("content-length", "11")], "evicts"),
        (410, &[], "evicts"),
        (403, &[], "passes"),
    ];
    for (status, response, expected) in rows {
        let request = request(Method::HEAD, &[]);
        let found =
            match answer(&policy(), &request, stored(fields), (*status, response), now() + seconds(100)) {
                SharedOnResponse::Freshened(freshened) if freshened.fate() == Fate::Store => "freshened",
                SharedOnResponse::Pass(pass) if pass.evicts() => "evicts",
                SharedOnResponse::Pass(_) => "passes",
                other => panic!("{other:?}"),
            };
        assert_eq!(found, *expected, "{status} {response:?}");
    }
}

#[test]
fn head_makes_a_softly_evicted_response_fresh_only_by_its_tag() {
    let fields: Fields<'_> = &[("cache-control", "max-age=60"), ("etag", "\"a\"")];
    for (response, expected) in [
        (&[("etag", "\"a\""), ("cache-control", "max-age=9")][..], "freshened"),
        (&[("etag", "W/\"a\""), ("cache-control", "max-age=9")], "evicts"),
        (&[("cache-control", "max-age=9")], "passes"),
        (&[("content-length", "11")], "evicts"),
    ] {
        let Some(SharedRecord::Response(mut found)) = stored(fields) else { panic!() };
        found.is_evicted = true;
        found.lifetime = Duration::ZERO;
        let head = request(Method::HEAD, &[]);
        let found = Some(SharedRecord::Response(found));
        let word = match answer(&policy(), &head, found, (200, response), now() + seconds(1)) {
            SharedOnResponse::Freshened(_) => "freshened",
            SharedOnResponse::Pass(pass) if pass.evicts() => "evicts",
            SharedOnResponse::Pass(_) => "passes",
            other => panic!("{other:?}"),
        };
        assert_eq!(word, expected, "{response:?}");
    }
}

#[test]
fn cookies_of_a_304_are_for_one_client() {
    let fields: Fields<'_> = &[("cache-control", "max-age=60"), ("etag", "\"a\"")];
    let later = now() + seconds(100);
    let told: Fields<'_> = &[("set-cookie", "a=b"), ("set-cookie", "c=d")];
    let found = answer(&policy(), &get(&[]), stored(fields), (304, told), later);
    let SharedOnResponse::Freshened(freshened) = found else { panic!("{found:?}") };
    let Some(SharedRecord::Response(kept)) = SharedRecord::decode(&freshened.record()) else { panic!() };
    assert!(freshened.fate() == Fate::Store && !kept.sets_cookie && !kept.headers.contains_key("set-cookie"));
    let response = freshened.into_answer().unwrap().into_response();
    let cookies: Vec<_> = response.headers().get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a=b", "c=d"]);
}

/// §4.3.4: from a 304 that identifies another representation no field is taken.
#[test]
fn a_304_with_another_strong_validator_updates_nothing() {
    const LATER: (&str, &str) = ("date", NOW);
    let rows: &[(&str, Fields<'_>, Fields<'_>, bool)] = &[
        ("the same tag", &[("etag", "\"a\"")], &[("etag", "\"a\"")], true),
        ("another tag", &[("etag", "\"a\"")], &[("etag", "\"b\"")], false),
        ("a tag that is weak here", &[("etag", "W/\"a\"")], &[("etag", "\"a\"")], false),
        ("a tag that is weak there", &[("etag", "\"a\"")], &[("etag", "W/\"a\"")], true),
        ("another weak tag", &[("etag", "W/\"a\"")], &[("etag", "W/\"b\"")], false),
        ("no validator", &[("etag", "\"a\"")], &[], true),
        ("a tag where there is none", &[("last-modified", A_MINUTE_AGO)], &[("etag", "\"a\"")], false),
        (
            "another tag, but the same strong date",
            &[("etag", "\"a\""), ("last-modified", A_MINUTE_AGO), LATER],
            &[("etag", "\"b\""), ("last-modified", A_MINUTE_AGO)],
            true,
        ),
        (
            "another tag, and the same weak date",
            &[("etag", "\"a\""), ("last-modified", NOW), LATER],
            &[("etag", "\"b\""), ("last-modified", NOW)],
            false,
        ),
        (
            "another strong date",
            &[("last-modified", A_THOUSAND_SECONDS_AGO), LATER],
            &[("last-modified", A_MINUTE_AGO), LATER],
            false,
        ),
        (
            "another date that may be weak",
            &[("last-modified", A_MINUTE_AGO), LATER],
            &[("last-modified", NOW), LATER],
            false,
        ),
        (
            "the same date that may be weak",
            &[("last-modified", NOW), LATER],
            &[("last-modified", "fri, 15 jan 2027 08:00:00 gmt"), LATER],
            true,
        ),
        (
            "the same weak tag, and another date that may be weak",
            &[("etag", "W/\"a\""), ("last-modified", A_MINUTE_AGO), LATER],
            &[("etag", "W/\"a\""), ("last-modified", NOW), LATER],
            true,
        ),
        (
            "a weak tag, and the strong date of another",
            &[("etag", "W/\"a\""), ("last-modified", A_THOUSAND_SECONDS_AGO), LATER],
            &[("etag", "W/\"a\""), ("last-modified", A_MINUTE_AGO), LATER],
            false,
        ),
    ];
    for (what, validators, told, updates) in rows {
        let fields = [&[("cache-control", "max-age=60"), ("x-field", "old")], *validators].concat();
        let record = stored(&fields);
        let told = [&[("cache-control", "max-age=900"), ("x-field", "new")], *told].concat();
        let later = now() + seconds(100);
        let found = answer(&policy(), &get(&[]), record, (304, &told), later);
        let SharedOnResponse::Freshened(freshened) = found else { panic!("{what}: {found:?}") };
        assert!(freshened.fate() == Fate::Store && freshened.is_fresh(), "{what}");
        let lifetime = freshened.retention() - rule().keep_stale;
        assert_eq!(lifetime > seconds(60), *updates, "{what}");
        let response = freshened.into_answer().unwrap().into_response();
        assert_eq!((response.status().as_u16(), &response.body()[..]), (200, BODY.as_bytes()), "{what}");
        let field = if *updates { "new" } else { "old" };
        assert_eq!(response.headers()["x-field"], field, "{what}");
    }
}

/// A 304 that identifies another representation can still forbid storing.
#[test]
fn a_304_about_another_response_can_forbid_storing() {
    let fields: Fields<'_> = &[("cache-control", "max-age=60"), ("etag", "\"a\"")];
    let told: Fields<'_> = &[("cache-control", "no-store"), ("etag", "\"b\""), ("set-cookie", "a=b")];
    let found = answer(&policy(), &get(&[]), stored(fields), (304, told), now() + seconds(100));
    let SharedOnResponse::Freshened(freshened) = found else { panic!("{found:?}") };
    assert_eq!(freshened.fate(), Fate::Evict);
    assert_eq!(freshened.into_answer().unwrap().into_response().headers()["set-cookie"], "a=b");
}

/// §4.3.2.
#[test]
fn conditions_without_a_stored_response_are_for_the_origin() {
    let request = get(&[("if-none-match", "\"a\""), ("if-modified-since", NOW)]);
    let SharedDecision::Forward(forward) = ask(&policy(), &request, None, now()) else { panic!() };
    let mut headers = request.headers.clone();
    forward.prepare(&mut headers);
    assert_eq!(headers, request.headers);
    // RFC 9110 §15.4.5: its 304 is for the client.
    let found = answer(&policy(), &request, None, (304, &[("etag", "\"a\"")]), now());
    assert!(matches!(&found, SharedOnResponse::Pass(pass) if !pass.evicts()), "{found:?}");
}

/// §4.3.2.
#[test]
fn part_is_validated_only_for_a_range_within_it() {
    for (range, expected) in [("bytes=12-13", "\"a\""), ("bytes=0-9", ""), ("bytes=15-25", "")] {
        let request = get(&[("range", range)]);
        let decision = ask(&policy(), &request, part(), now() + seconds(3600));
        let SharedDecision::Forward(forward) = decision else { panic!("{range}: {decision:?}") };
        let mut headers = request.headers.clone();
        forward.prepare(&mut headers);
        let found = headers.get("if-none-match").map_or("", |value| value.to_str().unwrap());
        assert_eq!(found, expected, "{range}");
    }
}

/// RFC 9110 §15.4.5.
#[test]
fn a_304_has_the_fields_that_caches_need() {
    let fields: Fields<'_> = &[
        ("cache-control", "max-age=60"),
        ("content-encoding", "identity"),
        ("content-language", "en"),
        ("content-location", "/things/7.json"),
        ("content-type", "text/plain"),
        ("date", NOW),
        ("etag", "\"a\""),
        ("expires", NOW),
        ("vary", "accept"),
        ("x-other", "1"),
    ];
    let mut record = store(fields);
    record.variant = 0;
    let record = Some(SharedRecord::Response(Box::new(record)));
    let response = response_of(ask(&policy(), &get(&[("if-none-match", "\"a\"")]), record, now()));
    assert_eq!(response.status(), StatusCode::NOT_MODIFIED);
    let mut names: Vec<_> = response.headers().keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    let expected =
        ["age", "cache-control", "cache-status", "content-location", "date", "etag", "expires", "vary"];
    assert_eq!(names, expected);
}

/// §4.3.3.
#[test]
fn full_response_to_a_validation_replaces_the_stored_one() {
    let fields: Fields<'_> = &[("cache-control", "max-age=60"), ("etag", "\"a\""), ("x-field", "old")];
    let told: Fields<'_> = &[("cache-control", "max-age=90"), ("etag", "\"b\"")];
    let later = now() + seconds(100);
    let found = answer(&policy(), &get(&[]), stored(fields), (200, told), later);
    let SharedOnResponse::Admit(admit) = found else { panic!("{found:?}") };
    let record = record_of(&admit.with_body(Bytes::from_static(b"new")));
    assert_eq!((&record.body[..], &record.headers["etag"]), (&b"new"[..], &"\"b\"".parse().unwrap()));
    assert!(!record.headers.contains_key("x-field") && record.is_fresh(later));
    // One that may not be stored is sent all the same, and the stored one is outdated.
    let found = answer(&policy(), &get(&[]), stored(fields), (200, &[("cache-control", "no-store")]), later);
    assert!(matches!(&found, SharedOnResponse::Pass(pass) if pass.evicts()), "{found:?}");
}
