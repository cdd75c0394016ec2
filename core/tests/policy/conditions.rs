//! Conditional requests (RFC 9110 §13).

use http::{HeaderMap, Method, StatusCode};
use larder_core::policy::{BodyLength, CommitResult, Decision, OnResponse};
use larder_core::{Kind, Record, weak_etag};

use super::engine::{Fields, TTL, entry, headers, now, request, response, rule, with};
use super::{admitted, ask, cache_status, forward, lines, stored};

pub(super) const MODIFIED: &str = "Sat, 01 Jan 2000 00:00:00 GMT";

pub(super) const BEFORE: &str = "Fri, 31 Dec 1999 23:59:59 GMT";

/// Precedence of preconditions (RFC 9110 §13.2.2), on a stored response and on one that was just filled.
#[test]
fn validators_are_compared() {
    let table: &[(&str, Fields<'_>, bool)] = &[
        ("the same tag (RFC 9110 §13.1.2)", &[("if-none-match", "\"e\"")], true),
        ("the same tag, compared weakly (RFC 9110 §8.8.3.2)", &[("if-none-match", "W/\"e\"")], true),
        ("a tag in a list", &[("if-none-match", "\"a\", W/\"b, c\", \"e\"")], true),
        (
            "a tag in the second of two fields",
            &[("if-none-match", "\"a\""), ("if-none-match", "\"e\"")],
            true,
        ),
        ("any tag (`*`)", &[("if-none-match", "*")], true),
        ("another tag", &[("if-none-match", "\"a\"")], false),
        ("the tag's text inside another tag", &[("if-none-match", "\"a, \"e\"")], false),
        ("a tag without quotes", &[("if-none-match", "e")], false),
        ("not modified since (RFC 9110 §13.1.3)", &[("if-modified-since", MODIFIED)], true),
        ("modified since", &[("if-modified-since", BEFORE)], false),
        ("a value that is no date", &[("if-modified-since", "yesterday")], false),
        ("a date in another case", &[("if-modified-since", "SAT, 01 jan 2000 00:00:00 gmt")], true),
        ("a date as in RFC 850", &[("if-modified-since", "Saturday, 01-Jan-00 00:00:00 GMT")], true),
        ("a date as of asctime", &[("if-modified-since", "Sat Jan  1 00:00:00 2000")], true),
        ("an earlier date as of asctime", &[("if-modified-since", "Fri Dec 31 23:59:59 1999")], false),
        (
            "two dates (RFC 9110 §13.1.3)",
            &[("if-modified-since", MODIFIED), ("if-modified-since", MODIFIED)],
            false,
        ),
        (
            "another tag decides over a matching date",
            &[("if-none-match", "\"a\""), ("if-modified-since", MODIFIED)],
            false,
        ),
        (
            "a matching tag decides over another date",
            &[("if-none-match", "\"e\""), ("if-modified-since", BEFORE)],
            true,
        ),
    ];
    let fields: Fields<'_> = &[("etag", "\"e\""), ("last-modified", MODIFIED)];
    for (why, conditions, expected) in table {
        for method in [Method::GET, Method::HEAD] {
            let request = request(method, conditions);
            let response = match ask(rule(Kind::Read), &request, stored(entry(fields)), now()) {
                Decision::NotModified(hit) if *expected => hit.into_response(),
                Decision::Hit(hit) if !*expected => hit.into_response(),
                other => panic!("{why}: {other:?}"),
            };
            let status = if *expected { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
            assert_eq!(response.status(), status, "{why}");
        }
        let filled =
            admitted(forward(rule(Kind::Read), &request(Method::GET, conditions)), 200, fields, "new");
        let response = filled.into_response(CommitResult::Stored);
        assert_eq!(response.status() == StatusCode::NOT_MODIFIED, *expected, "{why}");
        assert_eq!(response.body().is_empty(), *expected, "{why}");
    }
}

#[test]
fn not_modified_has_the_required_fields() {
    const ALL: Fields<'_> = &[
        ("etag", "\"e\""),
        ("last-modified", MODIFIED),
        ("vary", "origin"),
        ("content-location", "/things/7.json"),
        ("content-type", "text/plain"),
        ("content-language", "en"),
        ("access-control-allow-origin", "*"),
        ("access-control-allow-credentials", "true"),
        ("access-control-expose-headers", "x"),
        ("x-other", "1"),
    ];
    let conditional = request(Method::GET, &[("if-none-match", "*")]);
    let Decision::NotModified(hit) = ask(rule(Kind::Read), &conditional, stored(entry(ALL)), now() + TTL / 2)
    else {
        panic!("modified");
    };
    let response = hit.into_response();
    assert_eq!((response.status(), response.body().len()), (StatusCode::NOT_MODIFIED, 0));
    assert_eq!(cache_status(response.headers()), "Larder; hit; ttl=30");
    assert_eq!(
        lines(response.headers()),
        [
            "access-control-allow-credentials: true",
            "access-control-allow-origin: *",
            "access-control-expose-headers: x",
            "cache-control: max-age=30",
            "content-location: /things/7.json",
            "etag: \"e\"",
            "vary: origin, Authorization, Cookie",
            "x-redis-cache: HIT",
        ],
        "RFC 9110 §15.4.5"
    );

    // Without a tag, the date is the validator.
    let Decision::NotModified(hit) = ask(rule(Kind::Read), &conditional, stored(entry(&ALL[1..2])), now())
    else {
        panic!("modified");
    };
    let expected =
        ["cache-control: max-age=60", "last-modified: Sat, 01 Jan 2000 00:00:00 GMT", "x-redis-cache: HIT"];
    assert_eq!(lines(hit.into_response().headers()), expected);

    // The same after a fill, with MISS and the handler's `Date`.
    let filled = admitted(
        forward(rule(Kind::Read), &conditional),
        200,
        &[("date", MODIFIED), ("x-other", "1")],
        "new",
    );
    let tag = weak_etag(b"new").to_str().unwrap().to_owned();
    assert_eq!(
        lines(filled.into_response(CommitResult::Stored).headers()),
        [
            "cache-control: max-age=60".to_owned(),
            format!("date: {MODIFIED}"),
            format!("etag: {tag}"),
            "x-redis-cache: MISS".to_owned()
        ]
    );
}

/// The handler of a fill doesn't see the conditions that the cache evaluates. Other handlers see all conditions.
#[test]
fn handler_sees_only_conditions_of_other_requests() {
    const CONDITIONS: Fields<'_> = &[
        ("if-none-match", "\"a\""),
        ("if-modified-since", MODIFIED),
        ("if-range", "\"a\""),
        ("x-other", "1"),
    ];
    for (kind, method, stripped) in [
        (Kind::Read, Method::GET, true),
        (Kind::Read, Method::HEAD, false),
        (Kind::Write, Method::PUT, false),
        (Kind::EvictKey, Method::DELETE, false),
        (Kind::EvictGroup, Method::POST, false),
    ] {
        let request = request(method, CONDITIONS);
        let mut headers = request.headers.clone();
        forward(rule(kind), &request).prepare(&mut headers);
        let expected = if stripped { super::engine::headers(&CONDITIONS[3..]) } else { request.headers };
        assert_eq!(headers, expected, "{kind:?}");
    }
    let put = request(Method::PUT, &[("if-match", "\"a\""), ("if-unmodified-since", MODIFIED)]);
    let mut headers = put.headers.clone();
    forward(rule(Kind::Write), &put).prepare(&mut headers);
    assert_eq!(headers, put.headers);
}

/// Preconditions are ignored if the response without them isn't a success (RFC 9110 §13.2.1). A 304 for a stored 404 would tell
/// the client that its old copy is still valid.
#[test]
fn preconditions_apply_only_to_successful_responses() {
    let also = |status| with(rule(Kind::Read), |rule| rule.ttl_for = vec![(status, Some(TTL))]);
    let get = request(Method::GET, &[("if-none-match", "*")]);
    for (status, expected) in [
        (StatusCode::NON_AUTHORITATIVE_INFORMATION, StatusCode::NOT_MODIFIED),
        (StatusCode::MOVED_PERMANENTLY, StatusCode::MOVED_PERMANENTLY),
        (StatusCode::NOT_FOUND, StatusCode::NOT_FOUND),
        (StatusCode::GONE, StatusCode::GONE),
    ] {
        let entry = with(entry(&[("etag", "\"e\"")]), |entry| entry.status = status);
        let answer = match ask(also(status), &get, stored(entry.clone()), now()) {
            Decision::Hit(hit) | Decision::NotModified(hit) => hit.into_response(),
            other => panic!("{other:?}"),
        };
        assert_eq!(answer.status(), expected, "stored");

        let waiting = forward(also(status), &get);
        let answer = waiting.on_filled(Some(Record::Response(entry)), now()).unwrap().into_response();
        assert_eq!(answer.status(), expected, "filled by another");

        let filled = admitted(forward(also(status), &get), status.as_u16(), &[("etag", "\"e\"")], "gone");
        assert_eq!(filled.into_response(CommitResult::Stored).status(), expected, "filled");
    }
}

/// A response that can't be stored is compared here, because the handler doesn't see the conditions of a read (RFC 9110 §13.2.1).
#[test]
fn unstored_response_can_be_a_304() {
    const TAG: (&str, &str) = ("etag", "\"e\"");
    const MATCHES: (&str, &str) = ("if-none-match", "W/\"e\"");
    let (day, dated) = (("if-modified-since", MODIFIED), ("last-modified", MODIFIED));
    for (why, method, fields, status, answer, expected) in [
        (
            "a response with no-store",
            Method::GET,
            &[MATCHES][..],
            200,
            &[TAG, ("cache-control", "no-store")][..],
            true,
        ),
        ("another tag", Method::GET, &[("if-none-match", "\"f\"")], 200, &[TAG, ("vary", "*")], false),
        ("no condition", Method::GET, &[], 200, &[TAG, ("vary", "*")], false),
        ("no validator", Method::GET, &[MATCHES], 200, &[("vary", "*")], false),
        ("a matching date", Method::GET, &[day], 200, &[dated, ("vary", "*")], true),
        (
            "a matching date as in RFC 850",
            Method::GET,
            &[("if-modified-since", "saturday, 01-jan-00 00:00:00 gmt")],
            200,
            &[dated, ("vary", "*")],
            true,
        ),
        (
            "another tag decides over a matching date, on an unstored response",
            Method::GET,
            &[day, ("if-none-match", "\"f\"")],
            200,
            &[TAG, dated, ("vary", "*")],
            false,
        ),
        ("a response with a cookie", Method::GET, &[MATCHES], 200, &[TAG, ("set-cookie", "a=1")], true),
        ("HEAD", Method::HEAD, &[MATCHES], 200, &[TAG], true),
        ("a response that is no success", Method::GET, &[MATCHES], 404, &[TAG], false),
        ("PUT", Method::PUT, &[MATCHES], 200, &[TAG, ("vary", "*")], false),
    ] {
        let kind = if method == Method::PUT { Kind::Write } else { Kind::Read };
        let mut parts =
            response(status, &[answer, &[("content-type", "a/b"), ("content-length", "3")]].concat());
        let forward = forward(rule(kind), &request(method, fields));
        let OnResponse::Pass(pass) = forward.on_response(&parts, BodyLength::Known(3), now()) else {
            panic!("{why}")
        };
        assert_eq!(pass.is_not_modified(), expected, "{why}");
        if expected {
            pass.as_not_modified(&mut parts);
            assert_eq!(parts.status, StatusCode::NOT_MODIFIED, "{why}");
            assert_eq!(lines_of(&parts.headers), lines_of(&headers(answer)), "{why}: nothing else is lost");
        }
    }
}

fn lines_of(headers: &HeaderMap) -> Vec<String> {
    headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
}
