//! The responses and the fields that are stored.

use std::collections::BTreeSet;
use std::time::Duration;

use http::header::{CACHE_CONTROL, ETAG};
use http::{HeaderName, Method, StatusCode};
use larder_core::policy::{BodyLength, CommitResult, OnResponse};
use larder_core::{Kind, Reason};

use super::conditions::MODIFIED;
use super::engine::{Fields, TTL, now, request, response, rule, with};
use super::requests::PUBLIC;
use super::{AS_IT_IS, Reasons, Tweak, admitted, answered, decoded, forward, lines, millis, tweaked};

pub(super) fn storing() -> Reasons {
    const NOT_FOUND: Tweak =
        |rule| rule.ttl_for = vec![(StatusCode::NOT_FOUND, Some(Duration::from_secs(5)))];
    const SMALL: Tweak = |rule| rule.max_body = 3;
    const ZERO: Tweak = |rule| rule.ttl = Some(Duration::ZERO);
    const NOT_FOUND_ZERO: Tweak = |rule| rule.ttl_for = vec![(StatusCode::NOT_FOUND, Some(Duration::ZERO))];
    let many_names: &'static str =
        Box::leak((0..17).map(|i| format!("x-{i}")).collect::<Vec<_>>().join(",").into());
    let many: &[(&str, &str)] = &[("vary", many_names)];
    let table: &[(&str, Tweak, u16, Fields<'_>, &'static str, Option<Reason>)] = &[
        ("a 200", AS_IT_IS, 200, &[], "new", None),
        ("a 200 without a body", AS_IT_IS, 200, &[], "", None),
        ("a 203", AS_IT_IS, 203, &[], "new", Some(Reason::Status)),
        ("a 204", AS_IT_IS, 204, &[], "", Some(Reason::Status)),
        ("a part (RFC 9111 §3.4)", AS_IT_IS, 206, &[], "new", Some(Reason::Status)),
        ("a redirect", AS_IT_IS, 301, &[("location", "/")], "", Some(Reason::Status)),
        ("a 404", AS_IT_IS, 404, &[], "new", Some(Reason::Status)),
        ("a failure", AS_IT_IS, 500, &[], "new", Some(Reason::Status)),
        ("a 404 with ttl_for(404)", NOT_FOUND, 404, &[], "new", None),
        ("a 410 with ttl_for(404)", NOT_FOUND, 410, &[], "new", Some(Reason::Status)),
        (
            "a cookie is one client's (RFC 6265 §3)",
            AS_IT_IS,
            200,
            &[("set-cookie", "a=1")],
            "new",
            Some(Reason::SetCookie),
        ),
        ("a cookie on a public route", PUBLIC, 200, &[("set-cookie", "a=1")], "new", Some(Reason::SetCookie)),
        (
            "no-store (RFC 9111 §5.2.2.5)",
            AS_IT_IS,
            200,
            &[("cache-control", "no-store")],
            "new",
            Some(Reason::Withheld),
        ),
        (
            "private (RFC 9111 §5.2.2.7)",
            AS_IT_IS,
            200,
            &[("cache-control", "max-age=9, private")],
            "new",
            Some(Reason::Withheld),
        ),
        (
            "no-cache (RFC 9111 §5.2.2.4)",
            AS_IT_IS,
            200,
            &[("cache-control", "no-cache")],
            "new",
            Some(Reason::Withheld),
        ),
        (
            "private for one field",
            AS_IT_IS,
            200,
            &[("cache-control", "private=\"x-a\"")],
            "new",
            Some(Reason::Withheld),
        ),
        (
            "max-age=0, which the route's TTL replaces",
            AS_IT_IS,
            200,
            &[("cache-control", "max-age=0")],
            "new",
            None,
        ),
        ("Vary: * (RFC 9111 §4.1)", AS_IT_IS, 200, &[("vary", "*")], "new", Some(Reason::Vary)),
        (
            "* in a second Vary field",
            AS_IT_IS,
            200,
            &[("vary", "origin"), ("vary", "accept, *")],
            "new",
            Some(Reason::Vary),
        ),
        ("an invalid name in Vary", AS_IT_IS, 200, &[("vary", "a b")], "new", Some(Reason::Vary)),
        ("too many names in Vary", AS_IT_IS, 200, many, "new", Some(Reason::Vary)),
        ("as large as max_body", SMALL, 200, &[], "new", None),
        ("larger than max_body", SMALL, 200, &[], "newer", Some(Reason::Size)),
        ("a TTL of zero", ZERO, 200, &[], "new", Some(Reason::Lifetime)),
        ("a 404 with a TTL of zero", NOT_FOUND_ZERO, 404, &[], "new", Some(Reason::Lifetime)),
        ("a 200 where a 404 has a TTL of zero", NOT_FOUND_ZERO, 200, &[], "new", None),
    ];
    let mut seen = Reasons::new();
    for (why, tweak, status, fields, body, expected) in table {
        let get = request(Method::GET, &[("if-none-match", "\"other\"")]);
        match answered(forward(tweaked(Kind::Read, *tweak), &get), *status, fields, body) {
            Ok(admitted) => {
                assert_eq!(None, *expected, "{why}");
                let ttl = if *status == 404 { Duration::from_secs(5) } else { TTL };
                let entry = decoded(&admitted);
                assert_eq!(
                    (admitted.retention(), entry.ttl, entry.stored_at),
                    (Some(ttl), Some(ttl), now()),
                    "{why}"
                );
                assert_eq!((entry.status.as_u16(), &entry.body[..]), (*status, body.as_bytes()), "{why}");
                let told = admitted.into_response(CommitResult::Stored).headers()[CACHE_CONTROL].clone();
                assert_eq!(told, format!("max-age={}", ttl.as_secs()), "{why}");
            }
            Err((pass, headers)) => {
                assert_eq!(pass.cache_status().reason(), *expected, "{why}");
                assert!(!pass.evicts(), "a read leaves alone what it can't replace: {why}");
                assert_eq!(headers["x-redis-cache"], "BYPASS", "{why}");
                assert!(!headers.contains_key(ETAG), "a refused answer isn't touched: {why}");
                seen.extend(expected);
            }
        }
    }

    // A body without a known end is passed through. A body that breaks off is passed on.
    let get = || forward(rule(Kind::Read), &request(Method::GET, &[]));
    let OnResponse::Pass(pass) = get().on_response(&response(200, &[]), BodyLength::Unknown, now()) else {
        panic!("waiting for a body that may never end");
    };
    seen.extend(pass.cache_status().reason());
    assert_eq!((pass.cache_status().reason(), pass.evicts()), (Some(Reason::Stream), false));
    let OnResponse::Admit(admit) = get().on_response(&response(200, &[]), BodyLength::Known(3), now()) else {
        panic!("refused");
    };
    let pass = admit.on_broken_body();
    seen.extend(pass.cache_status().reason());
    assert_eq!((pass.cache_status().reason(), pass.evicts()), (Some(Reason::Body), false));

    // The response to a HEAD has no body to store (RFC 9110 §9.3.2).
    let head = forward(rule(Kind::Read), &request(Method::HEAD, &[]));
    let (pass, headers) = answered(head, 200, &[], "").unwrap_err();
    seen.extend(pass.cache_status().reason());
    assert_eq!((pass.cache_status().reason(), pass.evicts()), (Some(Reason::Head), false));
    assert_eq!(lines(&headers), ["x-redis-cache: BYPASS"]);
    seen
}

#[test]
fn only_eligible_responses_are_stored() {
    storing();
}

/// Fields of one connection, of one moment or of this cache aren't stored (RFC 9111 §3.1).
#[test]
fn only_fields_of_the_representation_are_stored() {
    let mut rule = rule(Kind::Read);
    rule.unstored_fields = vec![HeaderName::from_static("x-served-by")];
    let filled = admitted(
        forward(rule, &request(Method::GET, &[])),
        200,
        &[
            ("x-served-by", "a"),
            ("x-request-id", "7"),
            ("traceparent", "00-1-2-01"),
            ("server-timing", "db;dur=3"),
            ("x-ratelimit-remaining", "9"),
            ("ratelimit", "default;r=9"),
            ("x-csrf-token", "t"),
            ("connection", "close, X-Hop"),
            ("connection", "x-hop-2, not a name"),
            ("x-hop", "1"),
            ("x-hop-2", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("proxy-authenticate", "Basic"),
            ("proxy-authentication-info", "x"),
            ("proxy-authorization", "Basic"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("content-length", "3"),
            ("date", MODIFIED),
            ("age", "3"),
            ("expires", MODIFIED),
            ("cache-control", "max-age=3"),
            ("x-redis-cache", "HIT"),
            ("content-type", "text/plain"),
            ("last-modified", MODIFIED),
            ("link", "</a>"),
            ("link", "</b>"),
            ("etag", "\"own\""),
        ],
        "new",
    );
    assert_eq!(
        lines(&decoded(&filled).headers),
        [
            "accept-ranges: bytes",
            "content-type: text/plain",
            "etag: \"own\"",
            "last-modified: Sat, 01 Jan 2000 00:00:00 GMT",
            "link: </a>",
            "link: </b>"
        ]
    );
    // On its own response the handler's fields stay, except those that the cache sets.
    let response = filled.into_response(CommitResult::Stored);
    assert_eq!(response.headers()["keep-alive"], "timeout=5");
    assert_eq!(response.headers()["x-redis-cache"], "MISS");
    for name in ["x-served-by", "x-request-id", "server-timing", "ratelimit", "x-csrf-token"] {
        assert!(response.headers().contains_key(name), "{name}");
    }
}

#[test]
fn jitter_only_shortens_within_its_bound() {
    let bodies = ["a", "b", "c", "d", "e", "f", "g", "h"];
    for jitter in [0.0, 0.1, 0.5, 1.0] {
        let lifetimes: BTreeSet<Duration> = bodies
            .into_iter()
            .map(|body| {
                let rule = with(rule(Kind::Read), |rule| rule.jitter = jitter);
                let filled = admitted(forward(rule, &request(Method::GET, &[])), 200, &[], body);
                let ttl = filled.retention().unwrap();
                assert_eq!(
                    filled.into_response(CommitResult::Stored).headers()[CACHE_CONTROL],
                    format!("max-age={}", ttl.as_secs()),
                    "others are told the same lifetime"
                );
                ttl
            })
            .collect();
        let shortest = TTL.mul_f64(1.0 - jitter).max(millis(1));
        assert!(lifetimes.iter().all(|ttl| (shortest..=TTL).contains(ttl)), "{jitter}: {lifetimes:?}");
        assert_eq!(lifetimes.len() == 1, jitter == 0.0, "{jitter}: {lifetimes:?}");
    }
    let endless = with(rule(Kind::Read), |rule| {
        rule.jitter = 1.0;
        rule.ttl = None;
    });
    assert_eq!(admitted(forward(endless, &request(Method::GET, &[])), 200, &[], "new").retention(), None);
}
