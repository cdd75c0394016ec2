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

/// What a write's answer does to what is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Effect {
    Stores,
    Evicts(Reason),
    Nothing(Reason),
}

/// Whether it is clear from the request alone that a write's answer won't be stored.
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
        ("200", AS_IT_IS, &[], 200, &[], "new", Stores),
        ("201 says what it made", AS_IT_IS, &[], 201, &[("location", "/things/8")], "new", Stores),
        ("203", AS_IT_IS, &[], 203, &[], "new", Stores),
        (
            "whatever protocol it offers to switch to",
            AS_IT_IS,
            &[("connection", "upgrade"), ("upgrade", "h2c")],
            200,
            &[],
            "new",
            Stores,
        ),
        ("202 says nothing yet", AS_IT_IS, &[], 202, &[], "new", Evicts(Reason::Status)),
        ("204 has nothing to say", AS_IT_IS, &[], 204, &[], "", Evicts(Reason::Status)),
        ("205", AS_IT_IS, &[], 205, &[], "", Evicts(Reason::Status)),
        ("206 says a part", AS_IT_IS, &[], 206, &[], "new", Evicts(Reason::Status)),
        ("207 says something about many", AS_IT_IS, &[], 207, &[], "new", Evicts(Reason::Status)),
        ("a redirect is a success", AS_IT_IS, &[], 303, &[("location", "/")], "new", Evicts(Reason::Status)),
        ("an empty body", AS_IT_IS, &[], 200, &[], "", Evicts(Reason::Empty)),
        ("a cookie", AS_IT_IS, &[], 200, &[("set-cookie", "a=1")], "new", Evicts(Reason::SetCookie)),
        (
            "the handler says no-store",
            AS_IT_IS,
            &[],
            200,
            &[("cache-control", "no-store")],
            "new",
            Evicts(Reason::Withheld),
        ),
        ("private", AS_IT_IS, &[], 201, &[("cache-control", "private")], "new", Evicts(Reason::Withheld)),
        ("which variant would it be", AS_IT_IS, &[], 200, &[("vary", "accept")], "new", Evicts(Reason::Vary)),
        ("any variant", AS_IT_IS, &[], 200, &[("vary", "*")], "new", Evicts(Reason::Vary)),
        (
            "encoded for one client",
            AS_IT_IS,
            &[],
            200,
            &[("content-encoding", "gzip")],
            "new",
            Evicts(Reason::Vary),
        ),
        ("too large", SMALL, &[], 200, &[], "newer", Evicts(Reason::Size)),
        ("a lifetime of zero", ZERO, &[], 200, &[], "new", Evicts(Reason::Lifetime)),
        (
            "credentials on an undeclared route",
            UNDECLARED,
            &[("authorization", "Bearer t")],
            200,
            &[],
            "new",
            Evicts(Reason::Authorization),
        ),
        ("also a cookie", UNDECLARED, &[("cookie", "a=1")], 200, &[], "new", Evicts(Reason::Cookie)),
        ("also an API key", UNDECLARED, &[("x-api-key", "k")], 200, &[], "new", Evicts(Reason::Credentials)),
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
        ("not on a declared one", PUBLIC, &[("authorization", "Bearer t")], 200, &[], "new", Stores),
        ("private to its writer", BEARER, &[("authorization", "Bearer t")], 200, &[], "new", Stores),
        (
            "RFC 9111 §5.2.1.5",
            PUBLIC,
            &[("cache-control", "no-store")],
            200,
            &[],
            "new",
            Evicts(Reason::NoStore),
        ),
        ("no-cache asks about reads", AS_IT_IS, &[("cache-control", "no-cache")], 200, &[], "new", Stores),
        (
            "a failed precondition",
            AS_IT_IS,
            &[("if-match", "\"a\"")],
            412,
            &[],
            "new",
            Nothing(Reason::Failed),
        ),
        ("a refusal", AS_IT_IS, &[], 404, &[], "new", Nothing(Reason::Failed)),
        (
            "even one that can't be stored",
            UNDECLARED,
            &[("cookie", "a=1")],
            403,
            &[("set-cookie", "a=1")],
            "new",
            Nothing(Reason::Failed),
        ),
        ("a refusal as too large", AS_IT_IS, &[], 413, &[], "", Nothing(Reason::Failed)),
        ("too many requests", AS_IT_IS, &[], 429, &[], "", Nothing(Reason::Failed)),
        ("a timeout before or after the change", AS_IT_IS, &[], 408, &[], "", Evicts(Reason::Failed)),
        ("an error before or after the change", AS_IT_IS, &[], 500, &[], "new", Evicts(Reason::Failed)),
        ("a proxy's error", AS_IT_IS, &[], 502, &[], "", Evicts(Reason::Failed)),
        ("an overloaded service", AS_IT_IS, &[], 503, &[], "", Evicts(Reason::Failed)),
        ("a proxy's timeout", AS_IT_IS, &[], 504, &[], "", Evicts(Reason::Failed)),
        ("a status of no standard", AS_IT_IS, &[], 599, &[], "", Evicts(Reason::Failed)),
    ];
    let mut seen = Reasons::new();
    for (why, tweak, request_fields, status, fields, body, expected) in table {
        let put = forward(tweaked(Kind::Write, *tweak), &request(Method::PUT, request_fields));
        // A ticket is only taken if the answer may be stored at all.
        let refused = put_is_refused(&tweaked(Kind::Write, *tweak), request_fields);
        assert_eq!(put.intent(), (!refused).then_some(Intent::Write), "{why}");
        let effect = match answered(put, *status, fields, body) {
            Ok(_) => Stores,
            Err((pass, headers)) => {
                assert_eq!(headers["x-redis-cache"], "BYPASS", "{why}");
                let reason = pass.mark().reason().unwrap();
                seen.insert(reason);
                if pass.evicts() { Evicts(reason) } else { Nothing(reason) }
            }
        };
        assert_eq!(effect, *expected, "{why}");
    }

    let put = || forward(rule(Kind::Write), &request(Method::PUT, &[]));
    let OnResponse::Pass(pass) = put().on_response(&response(200, &[]), BodyLength::Unknown) else {
        panic!("waiting for a body that may never end");
    };
    assert_eq!((pass.mark().reason(), pass.evicts()), (Some(Reason::Stream), true));
    let OnResponse::Admit(admit) = put().on_response(&response(200, &[]), BodyLength::Known(3)) else {
        panic!("refused");
    };
    let pass = admit.on_broken_body();
    assert_eq!(
        (pass.mark().reason(), pass.evicts()),
        (Some(Reason::Body), true),
        "the change was made all the same"
    );
    assert!(
        put().on_error(StatusCode::INTERNAL_SERVER_ERROR).is_none(),
        "a write has nothing stale to answer with"
    );
    seen
}

#[test]
fn what_writes_do() {
    writes();
}

/// A GET's answer is what is stored: 200, and nothing that speaks of the write.
#[test]
fn what_a_write_stores() {
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

    // The writer gets its own answer, never a 304: preconditions of a PUT are its handler's business.
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
            // Credentials, `no-store` and what the answer says keep nothing from being evicted.
            let delete = request(Method::DELETE, &[("cookie", "a=1"), ("cache-control", "no-store")]);
            let forward = forward(rule(kind), &delete);
            assert_eq!(forward.intent(), None);
            let (pass, headers) = answered(forward, status, &[("set-cookie", "a=1")], "gone").unwrap_err();
            let reason = if status < 400 { Reason::Method } else { Reason::Failed };
            assert_eq!((pass.evicts(), pass.mark().reason()), (evicts, Some(reason)), "{status}");
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
