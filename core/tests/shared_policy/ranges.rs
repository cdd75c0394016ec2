//! Ranges and partial responses (§3.3, §3.4; RFC 9110 §14).

use bytes::Bytes;
use http::{Method, StatusCode};
use larder_core::Reason;
use larder_core::shared::policy::{SharedDecision, SharedOnResponse};
use larder_core::shared::{SharedRecord, StoredResponse};

use super::engine::{Fields, headers, now, request};
use super::{
    A_MINUTE_AGO, BODY, NOW, answer, ask, get, policy, record_of, response_of, seconds, store, store_under,
    stored, word,
};

/// Responses that can be cut have `Accept-Ranges`, for the first client and for later ones, unless the origin sets it (RFC 9110
/// §14.3).
#[test]
fn responses_that_can_be_cut_have_accept_ranges() {
    const FRESH: (&str, &str) = ("cache-control", "max-age=60");
    for (why, status, fields, expected) in [
        ("an origin without Accept-Ranges", 200, &[FRESH][..], Some("bytes")),
        ("an origin that supports ranges", 200, &[FRESH, ("accept-ranges", "bytes")], Some("bytes")),
        ("an origin that refuses ranges", 200, &[FRESH, ("accept-ranges", "none")], Some("none")),
        ("a 404", 404, &[FRESH], None),
    ] {
        let said = |headers: &http::HeaderMap| {
            headers.get("accept-ranges").map(|units| units.to_str().unwrap().to_owned())
        };
        let stored = store_under(&policy(), &get(&[]), status, fields).unwrap();
        assert_eq!(said(&stored.headers).as_deref(), expected, "{why}");
        let SharedOnResponse::Admit(admit) = answer(&policy(), &get(&[]), None, (status, fields), now())
        else {
            panic!("{why}");
        };
        let mut headers = headers(fields);
        admit.write_to(&mut headers);
        assert_eq!(said(&headers).as_deref(), expected, "{why}");
        let part = ask(
            &policy(),
            &get(&[("range", "bytes=0-0")]),
            Some(SharedRecord::Response(Box::new(stored))),
            now(),
        );
        let is_cut = expected == Some("bytes");
        assert_eq!(response_of(part).status() == StatusCode::PARTIAL_CONTENT, is_cut, "{why}");
    }
}

#[test]
fn ranges_are_cut_from_complete_responses() {
    let fields: Fields<'_> =
        &[("cache-control", "max-age=60"), ("etag", "\"a\""), ("last-modified", A_MINUTE_AGO)];
    let rows: &[(&str, Fields<'_>, u16, &str, &str)] = &[
        ("first to last", &[("range", "bytes=2-4")], 206, "234", "bytes 2-4/10"),
        ("to the end", &[("range", "bytes=8-")], 206, "89", "bytes 8-9/10"),
        ("past the end", &[("range", "bytes=8-99999999999999999")], 206, "89", "bytes 8-9/10"),
        ("a suffix", &[("range", "bytes=-1")], 206, "9", "bytes 9-9/10"),
        ("a long suffix", &[("range", "bytes=-99")], 206, BODY, "bytes 0-9/10"),
        ("units in any case", &[("range", "Bytes=0-0")], 206, "0", "bytes 0-0/10"),
        ("after the end", &[("range", "bytes=10-")], 416, "", "bytes */10"),
        ("an empty suffix", &[("range", "bytes=-0")], 416, "", "bytes */10"),
        ("several ranges are ignored", &[("range", "bytes=0-1,3-4")], 200, BODY, ""),
        ("another unit", &[("range", "lines=0-1")], 200, BODY, ""),
        ("backwards", &[("range", "bytes=4-2")], 200, BODY, ""),
        ("no digits", &[("range", "bytes=+1-2")], 200, BODY, ""),
        ("If-Range", &[("range", "bytes=0-0"), ("if-range", "\"a\"")], 206, "0", "bytes 0-0/10"),
        ("If-Range, changed", &[("range", "bytes=0-0"), ("if-range", "\"b\"")], 200, BODY, ""),
        ("If-Range, weak", &[("range", "bytes=0-0"), ("if-range", "W/\"a\"")], 200, BODY, ""),
        ("If-Range, a date", &[("range", "bytes=0-0"), ("if-range", A_MINUTE_AGO)], 206, "0", "bytes 0-0/10"),
        ("If-Range, a later date", &[("range", "bytes=0-0"), ("if-range", NOW)], 200, BODY, ""),
    ];
    for (what, request, status, body, range) in rows {
        let response = response_of(ask(&policy(), &get(request), stored(fields), now()));
        assert_eq!((response.status().as_u16(), &response.body()[..]), (*status, body.as_bytes()), "{what}");
        let found = response.headers().get("content-range").map_or("", |range| range.to_str().unwrap());
        assert_eq!(found, *range, "{what}");
    }
    // Ranges are only for GET (RFC 9110 §14.2).
    let head = request(Method::HEAD, &[("range", "bytes=0-0")]);
    assert_eq!(response_of(ask(&policy(), &head, stored(fields), now())).status(), StatusCode::OK);
}

/// A stored part: the bytes 10 to 19 of 30.
pub(super) fn part() -> Option<SharedRecord> {
    let fields: Fields<'_> =
        &[("cache-control", "max-age=60"), ("etag", "\"a\""), ("content-range", "bytes 10-19/30")];
    let stored = store_under(&policy(), &get(&[("range", "bytes=10-19")]), 206, fields).unwrap();
    Some(SharedRecord::Response(Box::new(stored)))
}

#[test]
fn stored_part_answers_only_ranges_within_it() {
    // §3.3.
    for (range, expected) in [
        ("bytes=10-19", Some(("0123456789", "bytes 10-19/30"))),
        ("bytes=12-13", Some(("23", "bytes 12-13/30"))),
        ("bytes=9-12", None),
        ("bytes=19-20", None),
        ("bytes=12-", None),
        ("bytes=-5", None),
        ("bytes=12-13,15-16", None),
    ] {
        match (ask(&policy(), &get(&[("range", range)]), part(), now()), expected) {
            (SharedDecision::Forward(forward), None) => {
                assert_eq!(forward.reason(), Reason::Incomplete, "{range}")
            }
            (decision, Some((body, content_range))) => {
                let response = response_of(decision);
                assert_eq!(
                    (response.status().as_u16(), &response.body()[..]),
                    (206, body.as_bytes()),
                    "{range}"
                );
                assert_eq!(response.headers()["content-range"], content_range, "{range}");
            }
            (decision, None) => panic!("{range}: {decision:?}"),
        }
    }
    assert_eq!(word(&ask(&policy(), &get(&[]), part(), now())), "incomplete");
    // RFC 9110 §14.2: `Range` is for GET alone, and of the whole nothing is known but the part.
    for fields in [&[][..], &[("range", "bytes=12-13")], &[("range", "bytes=10-19")]] {
        let head = request(Method::HEAD, fields);
        assert_eq!(word(&ask(&policy(), &head, part(), now())), "incomplete", "{fields:?}");
    }
}

/// RFC 9110 §14.4.
#[test]
fn parts_with_an_invalid_place_pass() {
    for range in [
        "lines 0-9/20",
        "bytes 9-0/20",
        "bytes 0-9/9",
        "bytes 0-9/5",
        "bytes 0-9",
        "bytes 0-/20",
        "bytes */20",
        "bytes 0-18446744073709551615/*",
        "0-9/20",
    ] {
        let fields: Fields<'_> = &[("cache-control", "max-age=60"), ("content-range", range)];
        let request = get(&[("range", "bytes=0-9")]);
        assert_eq!(store_under(&policy(), &request, 206, fields).unwrap_err(), "range", "{range}");
        let found = answer(&policy(), &request, part(), (206, fields), now());
        assert!(matches!(&found, SharedOnResponse::Pass(_)), "{range}: {found:?}");
    }
}

/// RFC 9110 §15.3.7.
#[test]
fn a_206_has_the_fields_of_the_200() {
    let fields: Fields<'_> = &[
        ("cache-control", "max-age=60"),
        ("content-location", "/things/7.json"),
        ("content-type", "text/plain"),
        ("date", NOW),
        ("etag", "\"a\""),
        ("expires", NOW),
        ("last-modified", A_MINUTE_AGO),
        ("vary", "accept"),
        ("x-other", "1"),
    ];
    let mut record = store(fields);
    record.variant = 0;
    let record = Some(SharedRecord::Response(Box::new(record)));
    let response = response_of(ask(&policy(), &get(&[("range", "bytes=2-4")]), record, now()));
    assert_eq!((response.status(), &response.body()[..]), (StatusCode::PARTIAL_CONTENT, &b"234"[..]));
    for (name, value) in fields {
        assert_eq!(response.headers()[*name], value, "{name}");
    }
    assert_eq!(response.headers()["content-length"], "3");
}

#[test]
fn stored_parts_are_combined() {
    // §3.4.
    let combined = |tag: &str, range: &str, asked: &str| {
        let fields: Fields<'_> = &[("cache-control", "max-age=60"), ("etag", tag), ("content-range", range)];
        let request = get(&[("range", asked)]);
        match answer(&policy(), &request, part(), (206, fields), now()) {
            SharedOnResponse::Admit(admit) => record_of(&admit.with_body(Bytes::from_static(b"abcdefghij"))),
            other => panic!("{other:?}"),
        }
    };
    let after = combined("\"a\"", "bytes 20-29/30", "bytes=20-29");
    assert_eq!(after.body, "0123456789abcdefghij");
    assert_eq!(after.part.as_ref().map(|part| (part.first, part.claimed)), Some((10, 20)));
    assert_eq!(combined("\"a\"", "bytes 5-14/30", "bytes=5-14").body, "abcdefghij56789");
    assert_eq!(combined("\"a\"", "bytes 21-30/31", "bytes=21-30").body, "abcdefghij", "of another length");
    assert_eq!(
        combined("\"b\"", "bytes 20-29/30", "bytes=20-29").body,
        "abcdefghij",
        "of another representation"
    );
    assert_eq!(combined("\"a\"", "bytes 0-8/30", "bytes=0-8").body, "abcdefghij", "with a gap");

    // RFC 9110 §15.3.7: the response to `If-Range` may lack fields that the client has.
    let fields: Fields<'_> =
        &[("cache-control", "max-age=60"), ("etag", "\"a\""), ("content-range", "bytes 20-29/30")];
    let conditional = get(&[("range", "bytes=20-29"), ("if-range", "\"a\"")]);
    let found = answer(&policy(), &conditional, part(), (206, fields), now());
    assert!(matches!(&found, SharedOnResponse::Admit(_)), "{found:?}");
    let fields: Fields<'_> =
        &[("cache-control", "max-age=60"), ("etag", "\"b\""), ("content-range", "bytes 20-29/30")];
    let found = answer(&policy(), &conditional, part(), (206, fields), now());
    assert!(matches!(&found, SharedOnResponse::Pass(_)), "{found:?}");

    // Two halves make a whole.
    let half = |range: &str, before: Option<StoredResponse>| {
        let fields: Fields<'_> =
            &[("cache-control", "max-age=60"), ("etag", "\"a\""), ("content-range", range)];
        let before = before.map(|before| SharedRecord::Response(Box::new(before)));
        match answer(&policy(), &get(&[("range", "bytes=1-")]), before, (206, fields), now()) {
            SharedOnResponse::Admit(admit) => {
                record_of(&admit.with_body(Bytes::from_static(BODY.as_bytes())))
            }
            other => panic!("{other:?}"),
        }
    };
    let mut first = half("bytes 0-9/20", None);
    if let Some(part) = &mut first.part {
        part.asked = Bytes::new();
    }
    let whole = half("bytes 10-19/20", Some(first));
    assert_eq!((whole.status, whole.part, whole.body.len()), (StatusCode::OK, None, 20));
    assert!(!whole.headers.contains_key("content-range"));
}

/// §3.4, §3.2; RFC 9110 §15.3.7.3.
#[test]
fn combined_part_keeps_fields_of_the_stored_one() {
    let first: Fields<'_> = &[
        ("cache-control", "max-age=60"),
        ("etag", "\"a\""),
        ("content-range", "bytes 10-19/30"),
        ("content-type", "text/plain"),
        ("x-both", "1"),
        ("x-both", "2"),
        ("x-withheld", "1"),
    ];
    let stored = store_under(&policy(), &get(&[("range", "bytes=10-19")]), 206, first).unwrap();
    let combine = |tag: &'static str, place: &'static str| {
        let second: Fields<'_> = &[
            ("cache-control", "max-age=90, no-cache=\"x-withheld\""),
            ("etag", tag),
            ("content-range", place),
            ("x-both", "3"),
            ("x-new", "1"),
        ];
        let record = Some(SharedRecord::Response(Box::new(stored.clone())));
        match answer(&policy(), &get(&[("range", "bytes=0-9")]), record, (206, second), now()) {
            SharedOnResponse::Admit(admit) => {
                record_of(&admit.with_body(Bytes::from_static(BODY.as_bytes())))
            }
            other => panic!("{other:?}"),
        }
    };
    let all = |stored: &StoredResponse, name: &str| {
        let values = stored.headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned());
        values.collect::<Vec<_>>().join(" ")
    };
    let combined = combine("\"a\"", "bytes 20-29/30");
    assert_eq!(combined.body.len(), 20);
    for (name, expected) in [
        ("content-type", "text/plain"),
        ("x-both", "3"),
        ("x-new", "1"),
        ("x-withheld", ""),
        ("cache-control", "max-age=90, no-cache=\"x-withheld\""),
    ] {
        assert_eq!(all(&combined, name), expected, "{name}");
    }
    assert_eq!(combined.lifetime, seconds(90));
    // A part of another representation takes nothing from it.
    let other = combine("\"b\"", "bytes 20-29/30");
    assert_eq!((other.body.len(), all(&other, "content-type")), (10, String::new()));
}
