//! Requests that are answered from the cache, and their responses (§4).

use std::sync::Arc;

use http::{Method, StatusCode};
use larder_core::shared::policy::{SharedDecision, SharedOnRequest, SharedPolicy};
use larder_core::shared::{SetCookie, SharedRecord};
use larder_core::{KeyUri, RequestView};

use super::engine::{Fields, now, request, with};
use super::{
    A_MINUTE_AGO, A_THOUSAND_SECONDS_AGO, BODY, NOW, ask, get, policy, response_of, rule, seconds,
    store_under, stored, word,
};

#[test]
fn stored_responses_answer_within_their_directives() {
    const MINUTE: (&str, &str) = ("cache-control", "max-age=60");
    let rows: &[(&str, Fields<'_>, Fields<'_>, u64, &str)] = &[
        ("§4 fresh", &[], &[MINUTE], 59, "answer"),
        ("§4.2 stale", &[], &[MINUTE], 60, "expired"),
        ("§3.5 a request with credentials", &[("authorization", "x")], &[MINUTE], 0, "answer"),
        ("§7.3 a request with a cookie", &[("cookie", "a=b")], &[MINUTE], 0, "answer"),
        ("§5.2.1.1 as old as max-age", &[("cache-control", "max-age=9")], &[MINUTE], 9, "answer"),
        ("§5.2.1.1 older than max-age", &[("cache-control", "max-age=9")], &[MINUTE], 10, "max-age"),
        ("§5.2.1.1 max-age=0", &[("cache-control", "max-age=0")], &[MINUTE], 0, "max-age"),
        (
            "§5.2.1.1 max-age, with an initial age",
            &[("cache-control", "max-age=9")],
            &[MINUTE, ("age", "10")],
            0,
            "max-age",
        ),
        ("§5.2.1.2 as stale as max-stale", &[("cache-control", "max-stale=5")], &[MINUTE], 65, "answer"),
        ("§5.2.1.2 staler than max-stale", &[("cache-control", "max-stale=5")], &[MINUTE], 66, "expired"),
        (
            "§5.2.1.2 max-stale without a value",
            &[("cache-control", "max-stale")],
            &[MINUTE],
            1_000_000,
            "answer",
        ),
        (
            "§5.2.2.2 max-stale, with must-revalidate",
            &[("cache-control", "max-stale")],
            &[("cache-control", "max-age=60, must-revalidate")],
            60,
            "expired",
        ),
        (
            "§5.2.2.8 max-stale, with proxy-revalidate",
            &[("cache-control", "max-stale")],
            &[("cache-control", "max-age=60, proxy-revalidate")],
            60,
            "expired",
        ),
        (
            "§5.2.2.10 max-stale, with s-maxage",
            &[("cache-control", "max-stale")],
            &[("cache-control", "s-maxage=60")],
            60,
            "expired",
        ),
        (
            "§5.2.1.3 fresh for as long as min-fresh",
            &[("cache-control", "min-fresh=20")],
            &[MINUTE],
            40,
            "answer",
        ),
        (
            "§5.2.1.3 not fresh for as long as min-fresh",
            &[("cache-control", "min-fresh=20")],
            &[MINUTE],
            41,
            "min-fresh",
        ),
        ("§5.2.1.4 no-cache", &[("cache-control", "no-cache")], &[MINUTE], 0, "no-cache"),
        ("§5.4 Pragma", &[("pragma", "no-cache")], &[MINUTE], 0, "no-cache"),
        (
            "§5.2.2.4 a stored response with no-cache",
            &[("cache-control", "max-stale")],
            &[("cache-control", "no-cache, max-age=60"), ("etag", "\"a\"")],
            0,
            "expired",
        ),
        ("RFC 8246 §2.1 immutable", &[], &[("cache-control", "immutable, max-age=60")], 59, "answer"),
        (
            "RFC 8246 §2.1 no-cache, with immutable",
            &[("cache-control", "no-cache")],
            &[("cache-control", "immutable, max-age=60")],
            0,
            "no-cache",
        ),
        (
            "RFC 8246 §2.1 unless the client asks",
            &[("cache-control", "max-age=0")],
            &[("cache-control", "immutable, max-age=60")],
            0,
            "max-age",
        ),
        ("RFC 8246 §2 while it is fresh", &[], &[("cache-control", "immutable, max-age=60")], 60, "expired"),
        (
            "RFC 8246 §2 arguments",
            &[],
            &[("cache-control", "immutable=\"no-store\", max-age=60")],
            60,
            "expired",
        ),
        (
            "RFC 5861 §3 stale-while-revalidate",
            &[],
            &[("cache-control", "max-age=60, stale-while-revalidate=10")],
            69,
            "stale",
        ),
        (
            "RFC 5861 §3 after stale-while-revalidate",
            &[],
            &[("cache-control", "max-age=60, stale-while-revalidate=10")],
            70,
            "expired",
        ),
        (
            "RFC 5861 §3 stale-while-revalidate, with must-revalidate",
            &[],
            &[("cache-control", "max-age=60, stale-while-revalidate=10, must-revalidate")],
            60,
            "expired",
        ),
    ];
    for (what, request, fields, after, expected) in rows {
        let decision = ask(&policy(), &get(request), stored(fields), now() + seconds(*after));
        assert_eq!(word(&decision), *expected, "{what}, after {after} s");
    }
}

#[test]
fn requests_that_are_not_looked_up() {
    let rows: &[(&str, Method, Fields<'_>, &str)] = &[
        ("§5.2.1.5 no-store", Method::GET, &[("cache-control", "no-store")], "bypass"),
        ("§4.3.2 If-Match", Method::GET, &[("if-match", "\"a\"")], "bypass"),
        ("§4.3.2 If-Unmodified-Since", Method::GET, &[("if-unmodified-since", NOW)], "bypass"),
        ("RFC 9110 §9.3.1 content", Method::GET, &[("content-length", "1")], "bypass"),
        ("RFC 9110 §7.8 an upgrade", Method::GET, &[("upgrade", "x")], "bypass"),
        ("RFC 9110 §9.2.1 OPTIONS", Method::OPTIONS, &[], "bypass"),
        ("RFC 9110 §9.2.1 QUERY", Method::QUERY, &[], "bypass"),
        ("§4.4 POST", Method::POST, &[], "write"),
        ("§4.4 DELETE", Method::DELETE, &[], "write"),
        ("§4.4 a write that offers an upgrade", Method::PUT, &[("upgrade", "h2c")], "write"),
        ("§4.4 a write in disguise", Method::GET, &[("x-http-method-override", "DELETE")], "write"),
        ("§4.4 a write in disguise", Method::HEAD, &[("x-http-method", "PUT")], "write"),
        ("§4.4 a write in disguise", Method::GET, &[("x-method-override", "PUT")], "write"),
        ("§4.4 a write in disguise", Method::GET, &[("x-forwarded-method", "PATCH")], "write"),
        ("§4.4 a write in disguise", Method::GET, &[("x-original-method", "POST")], "write"),
        ("§4.4 a write in disguise", Method::OPTIONS, &[("x-http-method-override", "DELETE")], "write"),
        ("§4.4 a write in disguise", Method::QUERY, &[("x-http-method-override", "DELETE")], "write"),
        (
            "§4.4 a write in disguise, with content",
            Method::GET,
            &[("x-http-method-override", "PUT"), ("content-length", "1")],
            "write",
        ),
        (
            "§4.4 a write in disguise, with a condition",
            Method::GET,
            &[("x-http-method-override", "PUT"), ("if-match", "\"a\""), ("cache-control", "no-store")],
            "write",
        ),
        (
            "§4.4 a write in disguise, with two fields",
            Method::GET,
            &[("x-original-method", "GET"), ("x-original-method", "DELETE")],
            "write",
        ),
        ("GET, and a proxy repeats the method", Method::GET, &[("x-forwarded-method", "GET")], "lookup"),
        ("HEAD, and a proxy repeats the method", Method::HEAD, &[("x-original-method", "HEAD")], "lookup"),
        ("§4.4 a method of unknown safety", Method::from_bytes(b"M-SEARCH").unwrap(), &[], "write"),
        ("§4 HEAD", Method::HEAD, &[], "lookup"),
    ];
    for (what, method, fields, expected) in rows {
        let request = request(method.clone(), fields);
        let found = match policy().on_request(&RequestView::from(&request)) {
            SharedOnRequest::Bypass(_) => "bypass",
            SharedOnRequest::Lookup(_) => "lookup",
            SharedOnRequest::Write(_) => "write",
        };
        assert_eq!(found, *expected, "{what} {method}");
    }
}

#[test]
fn rewritten_requests_are_not_looked_up_and_write_evicts() {
    let unknown = KeyUri::Unknown(Vec::new());
    for (method, expected) in [(Method::GET, "bypass"), (Method::POST, "write")] {
        let request = request(method, &[]);
        let view = RequestView::from(&request).with_key_uri(&request.uri, &unknown);
        let found = match policy().on_request(&view) {
            SharedOnRequest::Bypass(mark) => {
                let mut headers = http::HeaderMap::new();
                mark.write_to(&mut headers);
                assert_eq!(headers["cache-status"], "Larder; fwd=bypass; detail=rewritten");
                "bypass"
            }
            SharedOnRequest::Lookup(_) => "lookup",
            SharedOnRequest::Write(write) if write.may_store() => "stores",
            SharedOnRequest::Write(_) => "write",
        };
        assert_eq!(found, expected);
    }
}

#[test]
fn only_if_cached_is_answered_with_504() {
    let response = response_of(ask(&policy(), &get(&[("cache-control", "only-if-cached")]), None, now()));
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(response.headers()["cache-status"], "Larder; detail=absent");
}

#[test]
fn hit_has_its_age_and_cache_status() {
    let record =
        stored(&[("cache-control", "max-age=60"), ("age", "10"), ("cache-status", "Near; fwd=miss")]);
    let response = response_of(ask(&policy(), &get(&[]), record.clone(), now() + seconds(5)));
    assert_eq!((response.status(), &response.body()[..]), (StatusCode::OK, BODY.as_bytes()));
    let headers = response.headers();
    // §5.1, RFC 9211 §2.
    assert_eq!(
        (&headers["age"], &headers["content-length"]),
        (&"15".parse().unwrap(), &"10".parse().unwrap())
    );
    let status: Vec<_> = headers.get_all("cache-status").iter().collect();
    assert_eq!(status, ["Near; fwd=miss", "Larder; hit; ttl=45"]);
    assert_eq!(headers["date"], NOW);

    // RFC 9110 §9.3.2.
    let head = response_of(ask(&policy(), &request(Method::HEAD, &[]), record, now()));
    assert_eq!((head.body().len(), &head.headers()["content-length"]), (0, &"10".parse().unwrap()));
}

#[test]
fn conditions_are_evaluated_by_the_cache() {
    let both: Fields<'_> =
        &[("cache-control", "max-age=60"), ("etag", "\"a\""), ("last-modified", A_MINUTE_AGO)];
    let neither: Fields<'_> = &[("cache-control", "max-age=60")];
    let rows: &[(&str, Fields<'_>, Fields<'_>, u16)] = &[
        ("§4.3.2 a tag", &[("if-none-match", "\"a\"")], both, 304),
        ("RFC 9110 §13.1.2 compared weakly", &[("if-none-match", "\"b\", W/\"a\"")], both, 304),
        ("§4.3.2 another tag", &[("if-none-match", "\"b\"")], both, 200),
        (
            "RFC 9110 §13.2.2 the tag comes first",
            &[("if-none-match", "\"b\""), ("if-modified-since", NOW)],
            both,
            200,
        ),
        (
            "RFC 9110 §13.2.2 the tag comes first",
            &[("if-none-match", "\"a\""), ("if-modified-since", A_THOUSAND_SECONDS_AGO)],
            both,
            304,
        ),
        ("§4.3.2 a date", &[("if-modified-since", A_MINUTE_AGO)], both, 304),
        ("§4.3.2 an earlier date", &[("if-modified-since", A_THOUSAND_SECONDS_AGO)], both, 200),
        ("§4.3.2 against Date", &[("if-modified-since", NOW)], neither, 304),
        ("§4.3.2 against Date", &[("if-modified-since", A_MINUTE_AGO)], neither, 200),
        ("RFC 9110 §5.6.7 in any case", &[("if-modified-since", "fri, 15 JAN 2027 07:59:00 gmt")], both, 304),
        (
            "RFC 9110 §5.6.7 the obsolete format",
            &[("if-modified-since", "Friday, 15-Jan-27 07:59:00 GMT")],
            both,
            304,
        ),
        ("RFC 9110 §5.6.7 the one of C", &[("if-modified-since", "Fri Jan 15 07:59:00 2027")], both, 304),
        (
            "RFC 9110 §5.6.7 of Date too",
            &[("if-modified-since", "Friday, 15-Jan-27 08:00:00 GMT")],
            neither,
            304,
        ),
        ("RFC 9110 §13.1.3 no date", &[("if-modified-since", "yesterday")], both, 200),
        (
            "RFC 9110 §13.1.3 two of them",
            &[("if-modified-since", A_MINUTE_AGO), ("if-modified-since", A_MINUTE_AGO)],
            both,
            200,
        ),
        (
            "RFC 9110 §13.1.3 two of them, against Date",
            &[("if-modified-since", NOW), ("if-modified-since", NOW)],
            neither,
            200,
        ),
        ("RFC 9110 §13.2.2 before a range", &[("if-none-match", "\"a\""), ("range", "bytes=0-1")], both, 304),
    ];
    for (what, request, fields, status) in rows {
        let response = response_of(ask(&policy(), &get(request), stored(fields), now()));
        assert_eq!(response.status().as_u16(), *status, "{what}");
        if *status == 304 {
            assert!(
                response.body().is_empty() && !response.headers().contains_key("content-length"),
                "{what}"
            );
            assert_eq!(response.headers()["date"], NOW);
        }
    }

    // RFC 9110 §13.2.1: a stored error is no success.
    let gone = store_under(&policy(), &get(&[]), 410, both).unwrap();
    let gone = Some(SharedRecord::Response(Box::new(gone)));
    let response = response_of(ask(&policy(), &get(&[("if-none-match", "\"a\"")]), gone, now()));
    assert_eq!(response.status(), StatusCode::GONE);
}

#[test]
fn only_compatible_requests_share_a_fill() {
    let fresh: Fields<'_> = &[("cache-control", "max-age=60"), ("etag", "\"a\"")];
    let rows: &[(&str, Fields<'_>, Option<Fields<'_>>, bool)] = &[
        ("nothing is stored", &[], None, true),
        ("the stored response was fresh", &[], Some(fresh), true),
        (
            "the stored response was never fresh",
            &[],
            Some(&[("cache-control", "max-age=0"), ("etag", "\"a\"")]),
            false,
        ),
        (
            "the stored response is validated each time",
            &[],
            Some(&[("cache-control", "no-cache"), ("etag", "\"a\"")]),
            false,
        ),
        ("Authorization", &[("authorization", "x")], None, false),
        ("an API key", &[("x-api-key", "x")], None, false),
        ("a forwarding field", &[("x-forwarded-host", "elsewhere.example")], None, false),
        ("a range", &[("range", "bytes=0-1")], None, false),
        ("the client's own condition", &[("if-none-match", "\"a\"")], None, false),
        ("a condition that the cache replaces", &[("if-none-match", "\"a\"")], Some(fresh), true),
        ("no-cache", &[("cache-control", "no-cache")], None, false),
        ("max-age=0", &[("cache-control", "max-age=0")], Some(fresh), false),
    ];
    for (what, request, record, expected) in rows {
        let record = record.and_then(stored);
        let SharedDecision::Forward(forward) = ask(&policy(), &get(request), record, now() + seconds(61))
        else {
            panic!()
        };
        assert_eq!(forward.is_shared(), *expected, "{what}");
    }
    let head = request(Method::HEAD, &[]);
    let SharedDecision::Forward(forward) = ask(&policy(), &head, None, now()) else { panic!() };
    assert!(!forward.is_shared());
}

#[test]
fn stored_cookie_is_served_only_if_the_rule_allows_it() {
    let explicit = SharedPolicy::new(Arc::new(with(rule(), |rule| rule.set_cookie = SetCookie::IfExplicit)));
    let fields: Fields<'_> = &[("cache-control", "max-age=60"), ("set-cookie", "a=b")];
    let record = || {
        let kept = store_under(&explicit, &get(&[]), 200, fields).unwrap();
        Some(SharedRecord::Response(Box::new(kept)))
    };
    assert_eq!(word(&ask(&explicit, &get(&[]), record(), now())), "answer");
    assert_eq!(word(&ask(&policy(), &get(&[]), record(), now())), "set-cookie");
    let SharedDecision::Forward(forward) = ask(&policy(), &get(&[]), None, now()) else { panic!() };
    assert!(forward.on_filled(record(), now()).is_err());
}
