//! Write-throughs and evictions.

use std::time::Duration;

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{Method, StatusCode};
use larder_core::policy::{BodyLength, CommitResult, OnResponse, Placement};
use larder_core::{Audience, Intent, Kind, Reason, Rule, weak_etag};

use super::conditions::MODIFIED;
use super::engine::{Fields, TTL, now, request, response, rule};
use super::hits::hit;
use super::requests::{BEARER, PUBLIC, UNDECLARED};
use super::{
    AS_IT_IS, Reasons, Tweak, admitted, answered, ask, cache_status, decoded, forward, lines, stored, tweaked,
};

/// The effect of a write's response on the store.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Effect {
    Stores,
    Evicts(Reason),
    Nothing(Reason),
}

/// Returns `true` if the request alone shows that a write's response won't be stored.
fn put_is_refused(rule: &Rule, fields: Fields<'_>) -> bool {
    let undeclared = matches!(rule.audience, Audience::Undeclared);
    fields.iter().any(|(name, value)| match *name {
        "authorization" | "cookie" | "x-api-key" => undeclared,
        "x-http-method-override" | "x-original-url" => true,
        "cache-control" => *value == "no-store",
        _ => false,
    })
}

pub(super) fn writes() -> Reasons {
    use Effect::{Evicts, Nothing, Stores};
    const SMALL: Tweak = |rule| rule.max_body = 3;
    const ZERO: Tweak = |rule| rule.ttl = Some(Duration::ZERO);
    let table: &[(&str, Tweak, Fields<'_>, u16, Fields<'_>, &'static str, Effect)] = &[
        ("a 200", AS_IT_IS, &[], 200, &[], "new", Stores),
        (
            "a 201 with the new representation",
            AS_IT_IS,
            &[],
            201,
            &[("location", "/things/8")],
            "new",
            Stores,
        ),
        ("a 203", AS_IT_IS, &[], 203, &[], "new", Stores),
        (
            "a request that offers an upgrade",
            AS_IT_IS,
            &[("connection", "upgrade"), ("upgrade", "h2c")],
            200,
            &[],
            "new",
            Stores,
        ),
        ("a 202", AS_IT_IS, &[], 202, &[], "new", Evicts(Reason::Status)),
        ("a 204", AS_IT_IS, &[], 204, &[], "", Evicts(Reason::Status)),
        ("a 205", AS_IT_IS, &[], 205, &[], "", Evicts(Reason::Status)),
        ("a 206", AS_IT_IS, &[], 206, &[], "new", Evicts(Reason::Status)),
        ("a 207", AS_IT_IS, &[], 207, &[], "new", Evicts(Reason::Status)),
        ("a redirect is a success", AS_IT_IS, &[], 303, &[("location", "/")], "new", Evicts(Reason::Status)),
        ("an empty body", AS_IT_IS, &[], 200, &[], "", Evicts(Reason::Empty)),
        ("a cookie", AS_IT_IS, &[], 200, &[("set-cookie", "a=1")], "new", Evicts(Reason::SetCookie)),
        (
            "a response with no-store",
            AS_IT_IS,
            &[],
            200,
            &[("cache-control", "no-store")],
            "new",
            Evicts(Reason::Withheld),
        ),
        (
            "a response with private",
            AS_IT_IS,
            &[],
            201,
            &[("cache-control", "private")],
            "new",
            Evicts(Reason::Withheld),
        ),
        ("a response with Vary", AS_IT_IS, &[], 200, &[("vary", "accept")], "new", Evicts(Reason::Vary)),
        ("a response with Vary: *", AS_IT_IS, &[], 200, &[("vary", "*")], "new", Evicts(Reason::Vary)),
        (
            "a response with a content coding",
            AS_IT_IS,
            &[],
            200,
            &[("content-encoding", "gzip")],
            "new",
            Evicts(Reason::Vary),
        ),
        ("larger than max_body", SMALL, &[], 200, &[], "newer", Evicts(Reason::Size)),
        ("a TTL of zero", ZERO, &[], 200, &[], "new", Evicts(Reason::Lifetime)),
        (
            "credentials on an undeclared route",
            UNDECLARED,
            &[("authorization", "Bearer t")],
            200,
            &[],
            "new",
            Evicts(Reason::Authorization),
        ),
        (
            "a cookie on an undeclared route",
            UNDECLARED,
            &[("cookie", "a=1")],
            200,
            &[],
            "new",
            Evicts(Reason::Cookie),
        ),
        (
            "an API key on an undeclared route",
            UNDECLARED,
            &[("x-api-key", "k")],
            200,
            &[],
            "new",
            Evicts(Reason::Credentials),
        ),
        (
            "another method in a field",
            PUBLIC,
            &[("x-http-method-override", "DELETE")],
            200,
            &[],
            "new",
            Evicts(Reason::Override),
        ),
        (
            "another URI in a field",
            AS_IT_IS,
            &[("x-original-url", "/a")],
            200,
            &[],
            "new",
            Evicts(Reason::Override),
        ),
        ("credentials on a public route", PUBLIC, &[("authorization", "Bearer t")], 200, &[], "new", Stores),
        ("credentials on a private route", BEARER, &[("authorization", "Bearer t")], 200, &[], "new", Stores),
        (
            "a request with no-store (RFC 9111 §5.2.1.5)",
            PUBLIC,
            &[("cache-control", "no-store")],
            200,
            &[],
            "new",
            Evicts(Reason::NoStore),
        ),
        (
            "no-cache has no meaning in a write",
            AS_IT_IS,
            &[("cache-control", "no-cache")],
            200,
            &[],
            "new",
            Stores,
        ),
        (
            "a failed precondition",
            AS_IT_IS,
            &[("if-match", "\"a\"")],
            412,
            &[],
            "new",
            Nothing(Reason::Failed),
        ),
        ("a 404", AS_IT_IS, &[], 404, &[], "new", Nothing(Reason::Failed)),
        (
            "a 403 with credentials and a cookie",
            UNDECLARED,
            &[("cookie", "a=1")],
            403,
            &[("set-cookie", "a=1")],
            "new",
            Nothing(Reason::Failed),
        ),
        ("a 413", AS_IT_IS, &[], 413, &[], "", Nothing(Reason::Failed)),
        ("a 429", AS_IT_IS, &[], 429, &[], "", Nothing(Reason::Failed)),
        ("a 408, before or after the change", AS_IT_IS, &[], 408, &[], "", Evicts(Reason::Failed)),
        ("a 500, before or after the change", AS_IT_IS, &[], 500, &[], "new", Evicts(Reason::Failed)),
        ("a proxy's 502", AS_IT_IS, &[], 502, &[], "", Evicts(Reason::Failed)),
        ("a 503", AS_IT_IS, &[], 503, &[], "", Evicts(Reason::Failed)),
        ("a proxy's 504", AS_IT_IS, &[], 504, &[], "", Evicts(Reason::Failed)),
        ("an unregistered 5xx status", AS_IT_IS, &[], 599, &[], "", Evicts(Reason::Failed)),
    ];
    let mut seen = Reasons::new();
    for (why, tweak, request_fields, status, fields, body, expected) in table {
        let put = forward(tweaked(Kind::Write, *tweak), &request(Method::PUT, request_fields));
        // A write lease is only taken if the response may be stored.
        let refused = put_is_refused(&tweaked(Kind::Write, *tweak), request_fields);
        assert_eq!(put.intent(), (!refused).then_some(Intent::Write), "{why}");
        let effect = match answered(put, *status, fields, body) {
            Ok(_) => Stores,
            Err((pass, headers)) => {
                assert_eq!(headers["x-redis-cache"], "BYPASS", "{why}");
                let reason = pass.cache_status().reason().unwrap();
                seen.insert(reason);
                if pass.evicts() { Evicts(reason) } else { Nothing(reason) }
            }
        };
        assert_eq!(effect, *expected, "{why}");
    }

    let put = || forward(rule(Kind::Write), &request(Method::PUT, &[]));
    let OnResponse::Pass(pass) = put().on_response(&response(200, &[]), BodyLength::Unknown, now()) else {
        panic!("waiting for a body that may never end");
    };
    assert_eq!((pass.cache_status().reason(), pass.evicts()), (Some(Reason::Stream), true));
    let OnResponse::Admit(admit) = put().on_response(&response(200, &[]), BodyLength::Known(3), now()) else {
        panic!("refused");
    };
    let pass = admit.on_broken_body();
    assert_eq!(
        (pass.cache_status().reason(), pass.evicts()),
        (Some(Reason::Body), true),
        "the change was made although the body broke off"
    );
    assert!(put().on_error(StatusCode::INTERNAL_SERVER_ERROR).is_none(), "a write has no stale response");
    seen
}

#[test]
fn writes_store_or_evict() {
    writes();
}

/// The stored response is that of a GET: 200, and no fields about the write.
#[test]
fn write_stores_the_response_of_a_get() {
    let fields: Fields<'_> = &[
        ("content-type", "text/plain"),
        ("content-language", "en"),
        ("last-modified", MODIFIED),
        ("location", "/things/8"),
        ("content-location", "/things/8"),
        ("link", "</a>"),
        ("cache-control", "max-age=3"),
        ("date", MODIFIED),
        ("x-request-id", "1"),
    ];
    let put = request(Method::PUT, &[("if-none-match", "*")]);
    let mut written = admitted(forward(rule(Kind::Write), &put), 201, fields, "new");
    let entry = decoded(&written);
    let tag = format!("etag: {}", weak_etag(b"new").to_str().unwrap());
    assert_eq!(
        lines(&entry.headers),
        [
            "accept-ranges: bytes",
            "content-language: en",
            "content-type: text/plain",
            &tag,
            "last-modified: Sat, 01 Jan 2000 00:00:00 GMT"
        ]
    );
    assert_eq!((entry.status, entry.variant, entry.ttl), (StatusCode::OK, 0, Some(TTL)));
    assert_eq!(written.place(1), Placement::Target);

    // The writer gets its own response, never a 304: preconditions of a PUT are for its handler.
    let response = written.into_response(CommitResult::Stored);
    assert_eq!((response.status(), &response.body()[..]), (StatusCode::CREATED, &b"new"[..]));
    assert_eq!(response.headers()["location"], "/things/8");
    assert_eq!(cache_status(response.headers()), "Larder; fwd=method; stored; detail=method");

    let get = request(Method::GET, &[]);
    let read = hit(ask(rule(Kind::Read), &get, stored(entry), now())).into_response();
    assert_eq!((read.status(), &read.body()[..]), (StatusCode::OK, &b"new"[..]));
    assert_eq!(read.headers()[CONTENT_TYPE], "text/plain");
    assert!(!read.headers().contains_key("location"));
}

pub(super) fn evictions() -> Reasons {
    let mut seen = Reasons::new();
    for kind in [Kind::EvictKey, Kind::EvictGroup] {
        for (status, evicts) in [
            (200, true),
            (201, true),
            (204, true),
            (303, true),
            (304, true),
            (400, false),
            (404, false),
            (412, false),
            (429, false),
            (408, true),
            (500, true),
            (502, true),
            (504, true),
        ] {
            // Credentials, `no-store` and the response's fields don't prevent an eviction.
            let delete = request(Method::DELETE, &[("cookie", "a=1"), ("cache-control", "no-store")]);
            let forward = forward(rule(kind), &delete);
            assert_eq!(forward.intent(), None);
            let (pass, headers) = answered(forward, status, &[("set-cookie", "a=1")], "gone").unwrap_err();
            let reason = if status < 400 { Reason::Method } else { Reason::Failed };
            assert_eq!((pass.evicts(), pass.cache_status().reason()), (evicts, Some(reason)), "{status}");
            assert_eq!(headers["x-redis-cache"], "BYPASS");
            assert!(!headers.contains_key(CACHE_CONTROL));
            seen.insert(reason);
        }
    }
    seen
}

#[test]
fn success_and_unknown_outcomes_evict_and_refusals_do_not() {
    evictions();
}
