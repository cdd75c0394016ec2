//! Fields of responses that were not stored before: lifetimes, `Cache-Status`, and directives for other caches.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use larder_core::policy::{CommitResult, Decision, OnRequest, Placement};
use larder_core::{Audience, Kind, Reason, RequestView, weak_etag};

use super::conditions::MODIFIED;
use super::engine::{Fields, entry, headers, now, request, rule};
use super::requests::{BEARER, PRIVATE, PUBLIC, UNDECLARED};
use super::{
    AS_IT_IS, Tweak, admitted, answered, ask, cache_status, check_cache_status, decoded, forward, lines,
    miss, policy, stored, tweaked,
};

/// A response that this shared cache must not store must not be stored by the next one either (RFC 9111 §3.5).
#[test]
fn personal_responses_are_kept_from_other_caches_unless_the_handler_decides() {
    for (tweak, request_fields, from_handler, expected) in [
        (UNDECLARED, &[("cookie", "a=1")][..], &[][..], Some("no-store")),
        (UNDECLARED, &[("authorization", "Bearer t")], &[], Some("no-store")),
        (BEARER, &[], &[], Some("no-store")),
        (
            UNDECLARED,
            &[("cookie", "a=1")],
            &[("cache-control", "public, max-age=5")],
            Some("public, max-age=5"),
        ),
        (UNDECLARED, &[("upgrade", "websocket")], &[], None),
    ] {
        let request = request(Method::GET, request_fields);
        let OnRequest::Bypass(mark) =
            policy(tweaked(Kind::Read, tweak)).on_request(&RequestView::from(&request))
        else {
            panic!("{request:?}");
        };
        let mut headers = headers(from_handler);
        mark.write_to(&mut headers);
        let said = headers.get(CACHE_CONTROL).map(|value| value.to_str().unwrap());
        assert_eq!(said, expected, "{request_fields:?}");
    }
}

/// A downstream cache knows only from `Vary` which requests this cache separates (RFC 9111 §4.1).
#[test]
pub(super) fn responses_vary_by_everything_that_this_cache_separates() {
    const NAMED: Tweak = |rule| {
        rule.audience = Audience::Private(
            Arc::new(|_| Some("alice".to_owned())),
            vec![http::HeaderName::from_static("x-session")],
        );
    };
    const HOUSE: Tweak = |rule| {
        rule.credential_fields = Arc::new([http::HeaderName::from_static("x-house-key")]);
    };
    for (tweak, told) in [
        (UNDECLARED, Some("Authorization, Cookie")),
        (HOUSE, Some("Authorization, Cookie, X-House-Key")),
        (PUBLIC, None),
        (BEARER, Some("Authorization")),
        (PRIVATE, Some("Authorization, Cookie")),
        (NAMED, Some("X-Session")),
    ] {
        let fields: Fields<'_> = match told {
            Some("Authorization") => &[("authorization", "Bearer t")],
            _ => &[],
        };
        let vary = |headers: &HeaderMap| {
            assert!(headers.get_all("vary").iter().count() < 2);
            headers.get("vary").map(|value| value.to_str().unwrap().to_owned())
        };
        let get = request(Method::GET, fields);
        let read = || forward(tweaked(Kind::Read, tweak), &get);
        for own in [None, Some("accept-language")] {
            let expected = match (own, told) {
                (Some(own), Some(told)) => Some(format!("{own}, {told}")),
                (own, told) => own.or(told).map(str::to_owned),
            };
            let answer: Vec<(&str, &str)> = own.map(|own| ("vary", own)).into_iter().collect();
            let mut filled = admitted(read(), 200, &answer, "new");
            assert_eq!(filled.place(7) == Placement::Target, own.is_none(), "selects by our own names");
            let entry = decoded(&filled);
            assert_eq!(vary(&entry.headers), expected);
            for outcome in [CommitResult::Stored, CommitResult::Revoked, CommitResult::Failed] {
                let filled = admitted(read(), 200, &answer, "new");
                assert_eq!(vary(filled.into_response(outcome).headers()), expected);
            }
            // Responses that are passed on have it too.
            let (_, headers) = answered(read(), 404, &answer, "new").unwrap_err();
            assert_eq!(vary(&headers), expected);
        }

        let entry = decoded(&admitted(read(), 200, &[("etag", "\"e\"")], "new"));
        // An entry of an earlier deployment may have been stored under another rule.
        let public = decoded(&admitted(
            forward(tweaked(Kind::Read, PUBLIC), &request(Method::GET, &[])),
            200,
            &[("etag", "\"e\"")],
            "new",
        ));
        for (method, condition) in
            [(Method::GET, None), (Method::HEAD, None), (Method::GET, Some(("if-none-match", "\"e\"")))]
        {
            let asked: Vec<_> = fields.iter().copied().chain(condition).collect();
            let request = request(method, &asked);
            for entry in [&entry, &public] {
                let hit = match ask(tweaked(Kind::Read, tweak), &request, stored(entry.clone()), now()) {
                    Decision::Hit(hit) | Decision::NotModified(hit) => hit,
                    other => panic!("no hit: {other:?}"),
                };
                assert_eq!(vary(hit.into_response().headers()).as_deref(), told);
            }
        }

        let put = request(Method::PUT, fields);
        let written = admitted(forward(tweaked(Kind::Write, tweak), &put), 200, &[], "new");
        assert_eq!(vary(&decoded(&written).headers).as_deref(), told);
        assert_eq!(vary(written.into_response(CommitResult::Stored).headers()).as_deref(), told);
        let delete = forward(tweaked(Kind::EvictKey, tweak), &request(Method::DELETE, fields));
        let (_, headers) = answered(delete, 200, &[], "").unwrap_err();
        assert_eq!(vary(&headers), None);
    }
}

#[test]
fn misses_have_the_expected_fields() {
    let etag = format!("etag: {}", weak_etag(b"new").to_str().unwrap());
    let (etag, own) = (etag.as_str(), "etag: \"own\"");
    const NO_EXPIRY: Tweak = |rule| rule.ttl = None;
    let table: &[(&str, Tweak, Fields<'_>, CommitResult, &[&str], &str)] = &[
        (
            "stored",
            AS_IT_IS,
            &[],
            CommitResult::Stored,
            &["accept-ranges: bytes", "cache-control: max-age=60", etag, "x-redis-cache: MISS"],
            "; stored",
        ),
        (
            "the handler's own tag is kept",
            AS_IT_IS,
            &[("etag", "\"own\"")],
            CommitResult::Stored,
            &["accept-ranges: bytes", "cache-control: max-age=60", own, "x-redis-cache: MISS"],
            "; stored",
        ),
        (
            "the route's directives replace the handler's",
            AS_IT_IS,
            &[
                ("cache-control", "max-age=5"),
                ("cache-control", "public"),
                ("expires", MODIFIED),
                ("age", "3"),
            ],
            CommitResult::Stored,
            &["accept-ranges: bytes", "cache-control: max-age=60", etag, "x-redis-cache: MISS"],
            "; stored",
        ),
        (
            "no expiry",
            NO_EXPIRY,
            &[],
            CommitResult::Stored,
            &["accept-ranges: bytes", "cache-control: no-cache", etag, "x-redis-cache: MISS"],
            "; stored",
        ),
        (
            "private",
            PRIVATE,
            &[],
            CommitResult::Stored,
            &["accept-ranges: bytes", "cache-control: private, max-age=60", etag, "x-redis-cache: MISS"],
            "; stored",
        ),
        (
            "evicted during the fill",
            AS_IT_IS,
            &[],
            CommitResult::Revoked,
            &["accept-ranges: bytes", "cache-control: no-cache", etag, "x-redis-cache: MISS"],
            "",
        ),
        (
            "evicted during the fill, on a private route",
            PRIVATE,
            &[],
            CommitResult::Revoked,
            &["accept-ranges: bytes", "cache-control: private, no-cache", etag, "x-redis-cache: MISS"],
            "",
        ),
        (
            "a store that fails changes nothing",
            AS_IT_IS,
            &[],
            CommitResult::Failed,
            &["accept-ranges: bytes", "cache-control: max-age=60", etag, "x-redis-cache: MISS"],
            "",
        ),
        (
            "other fields are kept",
            AS_IT_IS,
            &[("date", MODIFIED), ("x-a", "1"), ("x-redis-cache", "HIT")],
            CommitResult::Stored,
            &[
                "accept-ranges: bytes",
                "cache-control: max-age=60",
                "date: Sat, 01 Jan 2000 00:00:00 GMT",
                etag,
                "x-a: 1",
                "x-redis-cache: MISS",
            ],
            "; stored",
        ),
    ];
    for (why, tweak, fields, outcome, expected, mark) in table {
        let filled =
            admitted(forward(tweaked(Kind::Read, *tweak), &request(Method::GET, &[])), 200, fields, "new");
        let response = filled.into_response(*outcome);
        assert_eq!((response.status(), &response.body()[..]), (StatusCode::OK, &b"new"[..]), "{why}");
        assert_eq!(lines(response.headers()), *expected, "{why}");
        let (forwarded, detail) = match outcome {
            CommitResult::Revoked => ("miss", "evicted"),
            CommitResult::Stored | CommitResult::Failed => ("uri-miss", "absent"),
        };
        assert_eq!(
            cache_status(response.headers()),
            format!("Larder; fwd={forwarded}{mark}; detail={detail}"),
            "{why}"
        );
    }
}

/// The reason for which a request was forwarded, in the registered words (RFC 9211 §2.2).
#[test]
fn cache_status_has_the_reason() {
    for (fields, found, age, expected) in [
        (&[][..], Ok(None), 0, "uri-miss; stored; detail=absent"),
        (&[], stored(entry(&[])), 60, "stale; stored; detail=expired"),
        (&[("cache-control", "no-cache")], stored(entry(&[])), 0, "request; stored; detail=no-cache"),
        (&[("cache-control", "max-age=5")], stored(entry(&[])), 6, "request; stored; detail=max-age"),
        (&[("cache-control", "min-fresh=5")], stored(entry(&[])), 56, "request; stored; detail=min-fresh"),
        (&[], Err(Reason::Unreadable), 0, "miss; stored; detail=unreadable"),
        (&[], Err(Reason::Down), 0, "miss; stored; detail=down"),
    ] {
        let get = request(Method::GET, fields);
        let forward = miss(ask(rule(Kind::Read), &get, found, now() + Duration::from_secs(age)));
        let response = admitted(forward, 200, &[], "new").into_response(CommitResult::Stored);
        check_cache_status(response.headers());
        assert_eq!(cache_status(response.headers()), format!("Larder; fwd={expected}"));
    }
    // Another cache's member comes first, and ours is appended (RFC 9211 §2).
    let filled = admitted(
        forward(rule(Kind::Read), &request(Method::GET, &[])),
        200,
        &[("cache-status", "Origin; hit")],
        "new",
    );
    let entry = decoded(&filled);
    assert!(!entry.headers.contains_key("cache-status"), "the handler's Cache-Status is not stored");
    let response = filled.into_response(CommitResult::Stored);
    let said: Vec<&HeaderValue> = response.headers().get_all("cache-status").iter().collect();
    assert_eq!(said, ["Origin; hit", "Larder; fwd=uri-miss; stored; detail=absent"]);
}

/// Whatever the result of the store, the handler's response is complete, except for the changes in the tables above.
#[test]
fn response_is_complete_whatever_the_commit_result() {
    for outcome in [CommitResult::Stored, CommitResult::Revoked, CommitResult::Failed] {
        for kind in [Kind::Read, Kind::Write] {
            let method = if kind == Kind::Read { Method::GET } else { Method::PUT };
            let filled = admitted(forward(rule(kind), &request(method, &[])), 200, &[("x-a", "1")], "new");
            let response: Response<Bytes> = filled.into_response(outcome);
            assert_eq!((response.status(), &response.body()[..]), (StatusCode::OK, &b"new"[..]));
            assert_eq!(response.headers()["x-a"], "1");
        }
    }
}

/// A response with a cookie belongs to one client, whatever else prevents storing.
#[test]
fn responses_with_a_cookie_are_kept_from_other_caches() {
    for (method, status) in [(Method::GET, 200), (Method::HEAD, 200), (Method::GET, 404), (Method::HEAD, 404)]
    {
        let forward = forward(rule(Kind::Read), &request(method.clone(), &[]));
        let Err((pass, headers)) = answered(forward, status, &[("set-cookie", "a=1")], "abc") else {
            panic!()
        };
        assert_eq!(pass.cache_status().reason(), Some(Reason::SetCookie), "{method} {status}");
        assert_eq!(headers["cache-control"], "no-store", "{method} {status}");
    }
}

#[test]
fn unstored_responses_of_a_private_route_are_private() {
    let alice: Fields<'_> = &[("authorization", "Bearer alice")];
    for (tweak, status, from_handler, expected) in [
        (BEARER, 404, &[][..], Some("private, no-cache")),
        (BEARER, 200, &[("vary", "*")], Some("private, no-cache")),
        (BEARER, 404, &[("cache-control", "max-age=5")], Some("max-age=5")),
        (PUBLIC, 404, &[], None),
    ] {
        let get = forward(tweaked(Kind::Read, tweak), &request(Method::GET, alice));
        let (_, headers) = answered(get, status, from_handler, "mine").unwrap_err();
        let said = headers.get(CACHE_CONTROL).map(|value| value.to_str().unwrap());
        assert_eq!(said, expected, "{status} {from_handler:?}");
    }
}
