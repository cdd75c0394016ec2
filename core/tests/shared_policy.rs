//! The engine of the shared cache as tables: each row is a rule, with its section. Sections without a number before them
//! are of RFC 9111.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]
#![allow(clippy::type_complexity, reason = "the columns of a table are named by its rows")]

#[allow(dead_code, reason = "each test uses its part of it")]
mod engine;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::COOKIE;
use http::uri::Scheme;
use http::{HeaderName, Method, Response, StatusCode, request};
use larder_core::policy::BodyLength;
use larder_core::shared::policy::{
    Admitted, Decision, Fate, OnRecord, OnRequest, OnResponse, OriginFailed, Placement, SharedPolicy,
};
use larder_core::shared::{SchemeSource, SetCookie, SharedRecord, SharedRule, StoredResponse};
use larder_core::{KeySpace, KeyUri, Reason, RequestView, Variants};

use engine::{Fields, headers, now, request, response};

/// What is stored and asked for in most rows.
const BODY: &str = "0123456789";

/// `now()`, as dates.
const NOW: &str = "Fri, 15 Jan 2027 08:00:00 GMT";
const IN_A_MINUTE: &str = "Fri, 15 Jan 2027 08:01:00 GMT";
const A_MINUTE_AGO: &str = "Fri, 15 Jan 2027 07:59:00 GMT";
const A_THOUSAND_SECONDS_AGO: &str = "Fri, 15 Jan 2027 07:43:20 GMT";

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn rule() -> SharedRule {
    SharedRule::new(KeySpace::new("p", None).unwrap())
}

fn policy() -> SharedPolicy {
    SharedPolicy::new(Arc::new(rule()))
}

fn get(fields: Fields<'_>) -> request::Parts {
    request(Method::GET, fields)
}

/// What the engine decides about a request when this is stored.
fn ask(
    policy: &SharedPolicy,
    request: &request::Parts,
    stored: Option<SharedRecord>,
    at: SystemTime,
) -> Decision {
    let view = RequestView::from(request);
    let OnRequest::Lookup(lookup) = policy.on_request(&view) else { panic!("not looked up") };
    match lookup.on_record(Ok(stored), &view, at) {
        OnRecord::Decided(decision) => decision,
        OnRecord::Select(_) => panic!("varies"),
    }
}

/// What it decides about the origin's answer.
fn answer(
    policy: &SharedPolicy,
    request: &request::Parts,
    stored: Option<SharedRecord>,
    (status, fields): (u16, Fields<'_>),
    at: SystemTime,
) -> OnResponse {
    let Decision::Forward(forward) = ask(policy, request, stored, at) else { panic!("not forwarded") };
    forward.on_response(&response(status, fields), BodyLength::Known(BODY.len() as u64), at, at)
}

/// What becomes of an answer to an empty cache: the record, or why there is none.
fn store_under(
    policy: &SharedPolicy,
    request: &request::Parts,
    status: u16,
    fields: Fields<'_>,
) -> Result<StoredResponse, String> {
    match answer(policy, request, None, (status, fields), now()) {
        OnResponse::Admit(admit) => Ok(record_of(&admit.with_body(Bytes::from_static(BODY.as_bytes())))),
        OnResponse::Pass(pass) => {
            let mut headers = http::HeaderMap::new();
            pass.mark().stamp(&mut headers);
            let status = headers["cache-status"].to_str().unwrap();
            Err(status.rsplit_once("detail=").unwrap().1.to_owned())
        }
        other => panic!("{other:?}"),
    }
}

fn record_of(admitted: &Admitted) -> StoredResponse {
    match SharedRecord::decode(&admitted.record()) {
        Some(SharedRecord::Response(stored)) => *stored,
        other => panic!("{other:?}"),
    }
}

fn store(fields: Fields<'_>) -> StoredResponse {
    store_under(&policy(), &get(&[]), 200, fields).unwrap()
}

fn stored(fields: Fields<'_>) -> Option<SharedRecord> {
    Some(SharedRecord::Response(Box::new(store(fields))))
}

fn response_of(decision: Decision) -> Response<Bytes> {
    match decision {
        Decision::Answer(answer) | Decision::Stale(answer, _) => answer.into_response(),
        Decision::Forward(forward) => panic!("forwarded: {}", forward.reason()),
    }
}

/// One word for a decision.
fn word(decision: &Decision) -> String {
    match decision {
        Decision::Answer(_) => "answer".to_owned(),
        Decision::Stale(..) => "stale".to_owned(),
        Decision::Forward(forward) => forward.reason().to_string(),
    }
}

// ---------------------------------------------------------------------------------------------------------- freshness

#[test]
fn freshness_lifetimes() {
    let modified = ("last-modified", A_THOUSAND_SECONDS_AGO);
    let rows: &[(&str, u16, Fields<'_>, u64)] = &[
        ("§4.2.1 max-age", 200, &[("cache-control", "max-age=60")], 60),
        ("§4.2.1 s-maxage before max-age", 200, &[("cache-control", "max-age=60, s-maxage=30")], 30),
        ("§4.2.1 even a longer one", 200, &[("cache-control", "max-age=0, s-maxage=30")], 30),
        ("§5.3 max-age before Expires", 200, &[("cache-control", "max-age=60"), ("expires", "0")], 60),
        ("§4.2.1 Expires less Date", 200, &[("date", A_MINUTE_AGO), ("expires", IN_A_MINUTE)], 120),
        ("§4.2.1 Expires without Date", 200, &[("expires", IN_A_MINUTE)], 60),
        ("§4.2.1 Expires with a Date that is none", 200, &[("date", "x"), ("expires", IN_A_MINUTE)], 60),
        ("§5.3 Expires in the past", 200, &[("expires", A_MINUTE_AGO), ("etag", "\"a\"")], 0),
        ("§5.3 what is no date is in the past", 200, &[("expires", "0"), ("etag", "\"a\"")], 0),
        (
            "§4.2.1 of two, the shorter",
            200,
            &[("cache-control", "max-age=60"), ("cache-control", "max-age=30")],
            30,
        ),
        (
            "§4.2 of two dates, none can be believed",
            200,
            &[("expires", IN_A_MINUTE), ("expires", IN_A_MINUTE), ("etag", "\"a\"")],
            0,
        ),
        ("RFC 9110 §5.6.7 the obsolete format", 200, &[("expires", "Friday, 15-Jan-27 08:01:00 GMT")], 60),
        ("RFC 9110 §5.6.7 the one of C", 200, &[("expires", "Fri Jan 15 08:01:00 2027")], 60),
        (
            "RFC 9110 §5.6.7 no other zone",
            200,
            &[("expires", "Fri, 15 Jan 2027 08:01:00 CET"), ("etag", "\"a\"")],
            0,
        ),
        (
            "RFC 9110 §5.6.7 in this case only",
            200,
            &[("expires", "FRI, 15 Jan 2027 08:01:00 GMT"), ("etag", "a")],
            0,
        ),
        ("§1.2.2 saturates", 200, &[("cache-control", "max-age=99999999999999999999999")], 1 << 31),
        (
            "§4.2.1 what is no number is no time",
            200,
            &[("cache-control", "max-age=-1"), ("etag", "\"a\"")],
            0,
        ),
        ("§4.2.2 a tenth of the time since it changed", 200, &[modified], 100),
        ("§4.2.2 no longer than a day", 200, &[("last-modified", "Sat, 01 Jan 2000 00:00:00 GMT")], 86400),
        ("§4.2.2 for these statuses", 404, &[modified], 100),
        ("§4.2.2 or with public", 599, &[modified, ("cache-control", "public")], 100),
        ("§4.2.2 never with explicit freshness", 200, &[modified, ("cache-control", "max-age=0")], 0),
    ];
    for (what, status, fields, lifetime) in rows {
        let stored =
            store_under(&policy(), &get(&[]), *status, fields).unwrap_or_else(|why| panic!("{what}: {why}"));
        assert_eq!(stored.lifetime, seconds(*lifetime), "{what}");
    }
}

#[test]
fn ages() {
    let fresh = ("cache-control", "max-age=1000");
    let rows: &[(&str, Fields<'_>, u64, bool)] = &[
        ("§4.2.3 new", &[fresh], 0, true),
        ("§4.2.3 Age", &[fresh, ("age", "30")], 30, true),
        ("§4.2.3 the apparent age", &[fresh, ("date", A_MINUTE_AGO)], 60, true),
        ("§4.2.3 the greater of them", &[fresh, ("date", A_MINUTE_AGO), ("age", "90")], 90, true),
        ("§4.2.3 a date in the future", &[fresh, ("date", IN_A_MINUTE)], 0, true),
        ("§4.2 older than fresh", &[fresh, ("age", "1000"), ("etag", "a")], 1000, false),
        ("§5.1 not a number", &[fresh, ("age", "abc"), ("etag", "a")], 0, false),
        ("§5.1 negative", &[fresh, ("age", "-1"), ("etag", "a")], 0, false),
        ("§5.1 two of them", &[fresh, ("age", "0"), ("age", "0"), ("etag", "a")], 0, false),
        ("§5.1 a list", &[fresh, ("age", "7200, 0"), ("etag", "a")], 0, false),
        ("§1.2.2 saturates", &[fresh, ("age", "99999999999999999999999"), ("etag", "a")], 1 << 31, false),
    ];
    for (what, fields, age, is_fresh) in rows {
        let stored = store(fields);
        assert_eq!((stored.age(now()), stored.is_fresh(now())), (seconds(*age), *is_fresh), "{what}");
        assert_eq!(stored.age(now() + seconds(5)), seconds(age + 5), "{what}");
        assert_eq!(stored.age(now() - seconds(5)), seconds(*age), "{what}: a clock that went back");
    }

    // §4.2.3: the time on the way counts.
    let Decision::Forward(forward) = ask(&policy(), &get(&[]), None, now()) else { panic!() };
    let parts = response(200, &[fresh, ("age", "30")]);
    let OnResponse::Admit(admit) =
        forward.on_response(&parts, BodyLength::Unknown, now() - seconds(3), now())
    else {
        panic!()
    };
    assert_eq!(record_of(&admit.with_body(Bytes::new())).initial_age, seconds(33));
}

// ------------------------------------------------------------------------------------------------------------ storing

#[test]
fn what_is_stored() {
    const FRESH: (&str, &str) = ("cache-control", "max-age=60");
    const CREDENTIALS: Fields<'_> = &[("authorization", "Basic eA==")];
    const API_KEY: Fields<'_> = &[("x-api-key", "key-1")];
    let rows: &[(&str, Fields<'_>, u16, Fields<'_>, Result<(), Reason>)] = &[
        ("§3 explicitly fresh", &[], 200, &[FRESH], Ok(())),
        ("§3 any final status", &[], 599, &[FRESH], Ok(())),
        ("§3 nothing said", &[], 200, &[], Err(Reason::Lifetime)),
        (
            "§3 never fresh and not to be validated",
            &[],
            200,
            &[("cache-control", "max-age=0")],
            Err(Reason::Lifetime),
        ),
        (
            "§4.3 never fresh, but to be validated",
            &[],
            200,
            &[("cache-control", "max-age=0"), ("etag", "\"a\"")],
            Ok(()),
        ),
        ("§4.2.2 a status that is no reason to guess", &[], 403, &[("etag", "\"a\"")], Err(Reason::Status)),
        ("§5.2.2.5 no-store", &[], 200, &[("cache-control", "no-store, max-age=60")], Err(Reason::Withheld)),
        ("§5.2.2.7 private", &[], 200, &[("cache-control", "private, max-age=60")], Err(Reason::Withheld)),
        (
            "§5.2.2.7 but not the named fields alone",
            &[],
            200,
            &[("cache-control", "private=\"a\", max-age=60")],
            Ok(()),
        ),
        ("§5.2.2.4 no-cache", &[], 200, &[("cache-control", "no-cache"), ("etag", "\"a\"")], Ok(())),
        (
            "§5.2.2.3 must-understand",
            &[],
            599,
            &[("cache-control", "must-understand, max-age=60")],
            Err(Reason::Status),
        ),
        (
            "§5.2.2.3 which overrides no-store when it is understood",
            &[],
            200,
            &[("cache-control", "must-understand, no-store, max-age=60")],
            Ok(()),
        ),
        ("§3.5 credentials", CREDENTIALS, 200, &[FRESH], Err(Reason::Authorization)),
        ("§3.5 and public", CREDENTIALS, 200, &[("cache-control", "public, max-age=60")], Ok(())),
        (
            "§3.5 and must-revalidate",
            CREDENTIALS,
            200,
            &[("cache-control", "must-revalidate, max-age=60")],
            Ok(()),
        ),
        ("§3.5 and s-maxage", CREDENTIALS, 200, &[("cache-control", "s-maxage=60")], Ok(())),
        (
            "§3.5 but not proxy-revalidate",
            CREDENTIALS,
            200,
            &[("cache-control", "proxy-revalidate, max-age=60")],
            Err(Reason::Authorization),
        ),
        ("§4.1 Vary: *", &[], 200, &[FRESH, ("vary", "accept, *")], Err(Reason::Vary)),
        (
            "§7.3 a cookie, explicitly fresh",
            &[],
            200,
            &[FRESH, ("set-cookie", "a=b")],
            Err(Reason::SetCookie),
        ),
        (
            "§5.2.2.7 a cookie that is withheld by name",
            &[],
            200,
            &[("cache-control", "max-age=60, private=\"set-cookie\""), ("set-cookie", "a=b")],
            Ok(()),
        ),
        ("§3.5 credentials in another field", API_KEY, 200, &[FRESH], Err(Reason::Authorization)),
        ("§3.5 and public", API_KEY, 200, &[("cache-control", "public, max-age=60")], Ok(())),
        ("§3 cookies: the answer decides", &[("cookie", "a=b")], 200, &[FRESH], Ok(())),
        (
            "§7.3 a cookie by guess",
            &[],
            200,
            &[("last-modified", A_THOUSAND_SECONDS_AGO), ("set-cookie", "a=b")],
            Err(Reason::SetCookie),
        ),
        ("§3 a 304 nobody asked for", &[], 304, &[FRESH], Err(Reason::Status)),
        ("§3.3 a part without its place", &[("range", "bytes=0-1")], 206, &[FRESH], Err(Reason::Range)),
        ("§3.3 a part", &[("range", "bytes=0-9")], 206, &[FRESH, ("content-range", "bytes 0-9/20")], Ok(())),
        (
            "§3.3 several parts",
            &[("range", "bytes=0-1,5-6")],
            206,
            &[FRESH, ("content-type", "multipart/byteranges; boundary=x")],
            Err(Reason::Range),
        ),
    ];
    for (what, request, status, fields, expected) in rows {
        let found = store_under(&policy(), &get(request), *status, fields).map(|_| ());
        assert_eq!(found, expected.map_err(|reason| reason.to_string()), "{what}");
    }
}

#[test]
fn what_the_rule_says_about_storing() {
    let changed = |change: fn(&mut SharedRule)| {
        let mut rule = rule();
        change(&mut rule);
        SharedPolicy::new(Arc::new(rule))
    };
    let cookie: Fields<'_> = &[("cache-control", "max-age=60"), ("set-cookie", "a=b")];
    assert_eq!(store_under(&policy(), &get(&[]), 200, cookie).unwrap_err(), "set-cookie");
    let explicit = changed(|rule| rule.set_cookie = SetCookie::IfExplicit);
    let kept = store_under(&explicit, &get(&[]), 200, cookie).unwrap();
    assert!(kept.sets_cookie && kept.headers["set-cookie"] == "a=b");
    let guessed: Fields<'_> = &[("last-modified", A_THOUSAND_SECONDS_AGO), ("set-cookie", "a=b")];
    assert_eq!(store_under(&explicit, &get(&[]), 200, guessed).unwrap_err(), "set-cookie");
    let by_session = changed(|rule| rule.credential_fields.push(COOKIE));
    let session = get(&[("cookie", "a=b")]);
    let fresh: Fields<'_> = &[("cache-control", "max-age=60")];
    assert_eq!(store_under(&by_session, &session, 200, fresh).unwrap_err(), "authorization");
    let own = changed(|rule| rule.credential_fields = vec![HeaderName::from_static("x-house-key")]);
    for usual in ["x-house-key", "x-api-key", "x-vault-token", "private-token", "dpop", "x-amzn-oidc-data"] {
        let request = get(&[(usual, "key-1")]);
        assert_eq!(store_under(&own, &request, 200, fresh).unwrap_err(), "authorization", "{usual}");
    }
    assert!(store_under(&policy(), &get(&[("x-house-key", "key-1")]), 200, fresh).is_ok());
    let small = changed(|rule| rule.max_body = 9);
    assert_eq!(store_under(&small, &get(&[]), 200, &[("cache-control", "max-age=60")]).unwrap_err(), "size");
    let certain = changed(|rule| rule.heuristic_limit = Duration::ZERO);
    let modified =
        store_under(&certain, &get(&[]), 200, &[("last-modified", A_THOUSAND_SECONDS_AGO)]).unwrap();
    assert_eq!(modified.lifetime, Duration::ZERO);

    // RFC 9213: a targeted field comes before `Cache-Control` and `Expires`, if it can be read.
    let targeted = changed(|rule| rule.targeted = vec![HeaderName::from_static("cdn-cache-control")]);
    let rows: &[(&str, Fields<'_>, Result<u64, &str>)] = &[
        ("it counts", &[("cdn-cache-control", "max-age=9"), ("cache-control", "no-store")], Ok(9)),
        (
            "it forbids",
            &[("cdn-cache-control", "no-store"), ("cache-control", "max-age=60")],
            Err("withheld"),
        ),
        ("without it", &[("cache-control", "max-age=60")], Ok(60)),
        ("Expires doesn't", &[("cdn-cache-control", "a"), ("expires", IN_A_MINUTE)], Err("lifetime")),
        (
            "no dictionary",
            &[("cdn-cache-control", "max-age=9, &&&"), ("cache-control", "max-age=60")],
            Ok(60),
        ),
        ("no integer", &[("cdn-cache-control", "max-age=\"9\""), ("cache-control", "max-age=60")], Ok(60)),
        ("a space", &[("cdn-cache-control", "max-age= 9"), ("cache-control", "max-age=60")], Ok(60)),
    ];
    for (what, fields, expected) in rows {
        let found = store_under(&targeted, &get(&[]), 200, fields).map(|stored| stored.lifetime);
        assert_eq!(found, expected.map(seconds).map_err(str::to_owned), "{what}");
    }
    // Nobody looks at it who wasn't told to.
    let untold = store(&[("cdn-cache-control", "max-age=9"), ("etag", "\"a\"")]);
    assert_eq!(untold.lifetime, Duration::ZERO);
}

#[test]
fn which_fields_are_stored() {
    let stored = store(&[
        ("cache-control", "max-age=60, no-cache=\"x-a\", private=\"x-b, x-c\""),
        ("connection", "x-d, close"),
        ("x-a", "1"),
        ("x-b", "1"),
        ("x-c", "1"),
        ("x-d", "1"),
        ("x-e", "1"),
        ("x-e", "2"),
        ("keep-alive", "timeout=5"),
        ("proxy-authenticate", "Basic"),
        ("proxy-authentication-info", "x"),
        ("proxy-connection", "close"),
        ("te", "trailers"),
        ("trailer", "x"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "x"),
        ("age", "1"),
    ]);
    let mut names: Vec<_> = stored.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    // §3.1; RFC 9110 §6.6.1: the date when it came; RFC 9110 §14.3: that it can be cut.
    assert_eq!(names, ["accept-ranges", "cache-control", "date", "x-e", "x-e"]);
    assert_eq!(stored.headers["date"], NOW);
}

// ---------------------------------------------------------------------------------------------------------- answering

#[test]
fn what_answers() {
    const MINUTE: (&str, &str) = ("cache-control", "max-age=60");
    let rows: &[(&str, Fields<'_>, Fields<'_>, u64, &str)] = &[
        ("§4 fresh", &[], &[MINUTE], 59, "answer"),
        ("§4.2 stale", &[], &[MINUTE], 60, "expired"),
        ("§3.5 credentials, of what is for all", &[("authorization", "x")], &[MINUTE], 0, "answer"),
        ("§7.3 cookies", &[("cookie", "a=b")], &[MINUTE], 0, "answer"),
        ("§5.2.1.1 max-age", &[("cache-control", "max-age=9")], &[MINUTE], 9, "answer"),
        ("§5.2.1.1 max-age", &[("cache-control", "max-age=9")], &[MINUTE], 10, "max-age"),
        ("§5.2.1.1 max-age=0", &[("cache-control", "max-age=0")], &[MINUTE], 0, "max-age"),
        (
            "§5.2.1.1 by its whole age",
            &[("cache-control", "max-age=9")],
            &[MINUTE, ("age", "10")],
            0,
            "max-age",
        ),
        ("§5.2.1.2 max-stale", &[("cache-control", "max-stale=5")], &[MINUTE], 65, "answer"),
        ("§5.2.1.2 max-stale", &[("cache-control", "max-stale=5")], &[MINUTE], 66, "expired"),
        ("§5.2.1.2 any max-stale", &[("cache-control", "max-stale")], &[MINUTE], 1_000_000, "answer"),
        (
            "§5.2.2.2 not against must-revalidate",
            &[("cache-control", "max-stale")],
            &[("cache-control", "max-age=60, must-revalidate")],
            60,
            "expired",
        ),
        (
            "§5.2.2.8 nor proxy-revalidate",
            &[("cache-control", "max-stale")],
            &[("cache-control", "max-age=60, proxy-revalidate")],
            60,
            "expired",
        ),
        (
            "§5.2.2.10 nor s-maxage",
            &[("cache-control", "max-stale")],
            &[("cache-control", "s-maxage=60")],
            60,
            "expired",
        ),
        ("§5.2.1.3 min-fresh", &[("cache-control", "min-fresh=20")], &[MINUTE], 40, "answer"),
        ("§5.2.1.3 min-fresh", &[("cache-control", "min-fresh=20")], &[MINUTE], 41, "min-fresh"),
        ("§5.2.1.4 no-cache", &[("cache-control", "no-cache")], &[MINUTE], 0, "no-cache"),
        ("§5.4 Pragma", &[("pragma", "no-cache")], &[MINUTE], 0, "no-cache"),
        (
            "§5.2.2.4 no-cache",
            &[("cache-control", "max-stale")],
            &[("cache-control", "no-cache, max-age=60"), ("etag", "\"a\"")],
            0,
            "expired",
        ),
        (
            "RFC 8246 immutable is for browsers",
            &[("cache-control", "no-cache")],
            &[("cache-control", "immutable, max-age=60")],
            0,
            "no-cache",
        ),
        (
            "RFC 5861 §3 stale-while-revalidate",
            &[],
            &[("cache-control", "max-age=60, stale-while-revalidate=10")],
            69,
            "stale",
        ),
        (
            "RFC 5861 §3 no longer",
            &[],
            &[("cache-control", "max-age=60, stale-while-revalidate=10")],
            70,
            "expired",
        ),
        (
            "RFC 5861 §3 not against must-revalidate",
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
        ("§5.2.1.5", Method::GET, &[("cache-control", "no-store")], "bypass"),
        ("§4.3.2", Method::GET, &[("if-match", "\"a\"")], "bypass"),
        ("§4.3.2", Method::GET, &[("if-unmodified-since", NOW)], "bypass"),
        ("RFC 9110 §9.3.1", Method::GET, &[("content-length", "1")], "bypass"),
        ("RFC 9110 §7.8", Method::GET, &[("upgrade", "x")], "bypass"),
        ("RFC 9110 §9.2.1", Method::OPTIONS, &[], "bypass"),
        ("§4.4", Method::POST, &[], "write"),
        ("§4.4", Method::DELETE, &[], "write"),
        ("§4.4 whatever it offers to switch to", Method::PUT, &[("upgrade", "h2c")], "write"),
        ("§4.4 a write in disguise", Method::GET, &[("x-http-method-override", "DELETE")], "write"),
        ("§4.4 a write in disguise", Method::HEAD, &[("x-http-method", "PUT")], "write"),
        ("§4.4 a write in disguise", Method::GET, &[("x-method-override", "PUT")], "write"),
        ("§4.4 a write in disguise", Method::GET, &[("x-forwarded-method", "PATCH")], "write"),
        ("§4.4 a write in disguise", Method::GET, &[("x-original-method", "POST")], "write"),
        ("§4.4 a write in disguise", Method::OPTIONS, &[("x-http-method-override", "DELETE")], "write"),
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
            "§4.4 one that says it twice",
            Method::GET,
            &[("x-original-method", "GET"), ("x-original-method", "DELETE")],
            "write",
        ),
        ("a proxy repeats the method", Method::GET, &[("x-forwarded-method", "GET")], "lookup"),
        ("a proxy repeats the method", Method::HEAD, &[("x-original-method", "HEAD")], "lookup"),
        ("§4.4 of unknown safety", Method::from_bytes(b"M-SEARCH").unwrap(), &[], "write"),
        ("§4", Method::HEAD, &[], "lookup"),
    ];
    for (what, method, fields, expected) in rows {
        let request = request(method.clone(), fields);
        let found = match policy().on_request(&RequestView::from(&request)) {
            OnRequest::Bypass(_) => "bypass",
            OnRequest::Lookup(_) => "lookup",
            OnRequest::Write(_) => "write",
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
            OnRequest::Bypass(mark) => {
                let mut headers = http::HeaderMap::new();
                mark.stamp(&mut headers);
                assert_eq!(headers["cache-status"], "Larder; fwd=bypass; detail=rewritten");
                "bypass"
            }
            OnRequest::Lookup(_) => "lookup",
            OnRequest::Write(write) if write.may_store() => "stores",
            OnRequest::Write(_) => "write",
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
fn an_answer_has_its_age_and_says_that_it_is_one() {
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
fn conditions_are_evaluated_here() {
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

/// RFC 9110 §14.3: what is cut says so to the first client and to the next ones, unless the origin said something else.
#[test]
fn what_can_be_cut_says_so() {
    const FRESH: (&str, &str) = ("cache-control", "max-age=60");
    for (why, status, fields, expected) in [
        ("an origin that says nothing", 200, &[FRESH][..], Some("bytes")),
        ("one that cuts", 200, &[FRESH, ("accept-ranges", "bytes")], Some("bytes")),
        ("one that refuses", 200, &[FRESH, ("accept-ranges", "none")], Some("none")),
        ("no 200", 404, &[FRESH], None),
    ] {
        let said = |headers: &http::HeaderMap| {
            headers.get("accept-ranges").map(|units| units.to_str().unwrap().to_owned())
        };
        let stored = store_under(&policy(), &get(&[]), status, fields).unwrap();
        assert_eq!(said(&stored.headers).as_deref(), expected, "{why}");
        let OnResponse::Admit(admit) = answer(&policy(), &get(&[]), None, (status, fields), now()) else {
            panic!("{why}");
        };
        let mut headers = headers(fields);
        admit.stamp(&mut headers);
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
fn ranges_are_cut_from_what_is_complete() {
    let fields: Fields<'_> =
        &[("cache-control", "max-age=60"), ("etag", "\"a\""), ("last-modified", A_MINUTE_AGO)];
    let rows: &[(&str, Fields<'_>, u16, &str, &str)] = &[
        ("first to last", &[("range", "bytes=2-4")], 206, "234", "bytes 2-4/10"),
        ("to the end", &[("range", "bytes=8-")], 206, "89", "bytes 8-9/10"),
        ("past the end", &[("range", "bytes=8-99999999999999999")], 206, "89", "bytes 8-9/10"),
        ("a suffix", &[("range", "bytes=-1")], 206, "9", "bytes 9-9/10"),
        ("a long suffix", &[("range", "bytes=-99")], 206, BODY, "bytes 0-9/10"),
        ("units in any case", &[("range", "Bytes=0-0")], 206, "0", "bytes 0-0/10"),
        ("behind the end", &[("range", "bytes=10-")], 416, "", "bytes */10"),
        ("an empty suffix", &[("range", "bytes=-0")], 416, "", "bytes */10"),
        ("several may be ignored", &[("range", "bytes=0-1,3-4")], 200, BODY, ""),
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
    // RFC 9110 §14.2: a range is for GET alone.
    let head = request(Method::HEAD, &[("range", "bytes=0-0")]);
    assert_eq!(response_of(ask(&policy(), &head, stored(fields), now())).status(), StatusCode::OK);
}

/// A stored part: the bytes 10 to 19 of 30.
fn part() -> Option<SharedRecord> {
    let fields: Fields<'_> =
        &[("cache-control", "max-age=60"), ("etag", "\"a\""), ("content-range", "bytes 10-19/30")];
    let stored = store_under(&policy(), &get(&[("range", "bytes=10-19")]), 206, fields).unwrap();
    Some(SharedRecord::Response(Box::new(stored)))
}

#[test]
fn parts_answer_what_lies_wholly_within_them() {
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
            (Decision::Forward(forward), None) => assert_eq!(forward.reason(), Reason::Incomplete, "{range}"),
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
}

#[test]
fn parts_are_put_together() {
    // §3.4.
    let combined = |tag: &str, range: &str, asked: &str| {
        let fields: Fields<'_> = &[("cache-control", "max-age=60"), ("etag", tag), ("content-range", range)];
        let request = get(&[("range", asked)]);
        match answer(&policy(), &request, part(), (206, fields), now()) {
            OnResponse::Admit(admit) => record_of(&admit.with_body(Bytes::from_static(b"abcdefghij"))),
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

    // Both halves make a whole.
    let half = |range: &str, before: Option<StoredResponse>| {
        let fields: Fields<'_> =
            &[("cache-control", "max-age=60"), ("etag", "\"a\""), ("content-range", range)];
        let before = before.map(|before| SharedRecord::Response(Box::new(before)));
        match answer(&policy(), &get(&[("range", "bytes=1-")]), before, (206, fields), now()) {
            OnResponse::Admit(admit) => record_of(&admit.with_body(Bytes::from_static(BODY.as_bytes()))),
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

// --------------------------------------------------------------------------------------------------------- validation

#[test]
fn requests_are_made_conditional() {
    let both: Fields<'_> =
        &[("cache-control", "max-age=60"), ("etag", "\"a\""), ("last-modified", A_MINUTE_AGO)];
    let neither: Fields<'_> = &[("cache-control", "max-age=60")];
    let rows: &[(&str, Fields<'_>, Fields<'_>, &str, &str)] = &[
        ("§4.3.1 with all there is", &[], both, "\"a\"", A_MINUTE_AGO),
        ("§4.3.1 in place of the client's", &[("if-none-match", "\"b\"")], both, "\"a\"", A_MINUTE_AGO),
        (
            "§4.3.1 which go on, if nothing is to be validated",
            &[("if-none-match", "\"b\"")],
            neither,
            "\"b\"",
            "",
        ),
    ];
    for (what, request, fields, tag, date) in rows {
        let request = get(request);
        let decision = ask(&policy(), &request, stored(fields), now() + seconds(3600));
        let Decision::Forward(forward) = decision else { panic!("{what}: {decision:?}") };
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
fn a_refresh_in_the_background_asks_for_everything_with_the_clients_fields() {
    let request = get(&[("range", "bytes=0-1"), ("if-none-match", "\"b\""), ("accept", "text/plain")]);
    let record = stored(&[("cache-control", "max-age=60, stale-while-revalidate=60")]);
    let Decision::Stale(_, forward) = ask(&policy(), &request, record, now() + seconds(61)) else { panic!() };
    let mut headers = request.headers.clone();
    forward.prepare(&mut headers);
    assert_eq!(headers, engine::headers(&[("accept", "text/plain")]));
}

#[test]
fn a_304_freshens() {
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
    let OnResponse::Freshened(freshened) = answer(&policy(), &get(&[]), record, (304, validated), later)
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
    // §3.2: what is there replaces; what speaks of the body that is kept stays.
    assert_eq!(
        (all("x-old"), all("x-both"), all("content-type")),
        ("1".into(), "3".into(), "text/html".into())
    );
    assert_eq!((all("content-length"), all("content-encoding")), ("10".into(), "gzip".into()));
    assert_eq!(
        (all("content-range"), all("x-hop"), all("connection")),
        (String::new(), String::new(), String::new())
    );
    // §4.3.4: its age starts anew.
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
fn after_validation_the_clients_own_condition_is_evaluated() {
    let fields: Fields<'_> = &[("cache-control", "max-age=60"), ("etag", "\"a\"")];
    for (request, status, body) in [
        (&[("if-none-match", "\"a\"")][..], 304, ""),
        (&[("if-none-match", "\"b\"")][..], 200, BODY),
        (&[("range", "bytes=0-1")][..], 206, "01"),
    ] {
        let later = now() + seconds(100);
        let found = answer(&policy(), &get(request), stored(fields), (304, &[]), later);
        let OnResponse::Freshened(freshened) = found else { panic!("{found:?}") };
        let response = freshened.into_answer().unwrap().into_response();
        assert_eq!((response.status().as_u16(), &response.body()[..]), (status, body.as_bytes()));
    }
}

#[test]
fn a_304_can_forbid_to_keep() {
    let fields: Fields<'_> = &[("cache-control", "max-age=60"), ("etag", "\"a\"")];
    for told in ["no-store", "private"] {
        let later = now() + seconds(100);
        let found = answer(&policy(), &get(&[]), stored(fields), (304, &[("cache-control", told)]), later);
        let OnResponse::Freshened(freshened) = found else { panic!("{found:?}") };
        assert!(freshened.fate() == Fate::Evict && !freshened.is_fresh(), "{told}");
    }
    // §3.5: what is validated for one user isn't kept for all, and what was there for all stays.
    let credentials = get(&[("authorization", "x")]);
    let found = answer(&policy(), &credentials, stored(fields), (304, &[]), now() + seconds(100));
    let OnResponse::Freshened(freshened) = found else { panic!("{found:?}") };
    assert!(freshened.fate() == Fate::Leave && freshened.into_answer().is_some());
    // A 304 to a condition of the client's own says nothing about what is stored.
    let request = get(&[("if-none-match", "\"b\"")]);
    let record = stored(&[("cache-control", "max-age=60")]);
    let found = answer(&policy(), &request, record, (304, &[]), now() + seconds(100));
    assert!(matches!(&found, OnResponse::Pass(pass) if !pass.evicts()), "{found:?}");
}

#[test]
fn a_head_freshens_what_is_the_same_still() {
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
                OnResponse::Freshened(freshened) if freshened.fate() == Fate::Store => "freshened",
                OnResponse::Pass(pass) if pass.evicts() => "evicts",
                OnResponse::Pass(_) => "passes",
                other => panic!("{other:?}"),
            };
        assert_eq!(found, *expected, "{status} {response:?}");
    }
}

// ------------------------------------------------------------------------------------------------------------- errors

#[test]
fn stale_answers_when_the_origin_fails() {
    let rows: &[(&str, &str, u64, u16, bool)] = &[
        ("§4.2.4", "max-age=60", 61, 503, true),
        ("§4.3.3 these errors only", "max-age=60", 61, 500, true),
        ("§4.3.3 these errors only", "max-age=60", 61, 501, false),
        ("§4.3.3 these errors only", "max-age=60", 61, 404, false),
        ("§4.2.4 an hour", "max-age=60", 3659, 503, true),
        ("§4.2.4 an hour", "max-age=60", 3660, 503, false),
        ("RFC 5861 §4 less", "max-age=60, stale-if-error=10", 69, 503, true),
        ("RFC 5861 §4 less", "max-age=60, stale-if-error=10", 70, 503, false),
        ("RFC 5861 §4 more", "max-age=60, stale-if-error=100000", 90_000, 503, true),
        ("§5.2.2.2", "max-age=60, must-revalidate", 61, 503, false),
        ("§5.2.2.8", "max-age=60, proxy-revalidate", 61, 503, false),
        ("§5.2.2.10", "s-maxage=60, stale-if-error=100", 61, 503, false),
        ("§5.2.2.4", "max-age=60, no-cache", 61, 503, false),
    ];
    for (what, control, after, status, expected) in rows {
        let fields: Fields<'_> = &[("cache-control", control), ("etag", "\"a\"")];
        let later = now() + seconds(*after);
        let found = answer(&policy(), &get(&[]), stored(fields), (*status, &[]), later);
        assert_eq!(
            matches!(found, OnResponse::ServeStale(_)),
            *expected,
            "{what}: {control} after {after} s, {status}"
        );
        let Decision::Forward(forward) = ask(&policy(), &get(&[]), stored(fields), later) else { panic!() };
        if *status == 503 {
            // Whatever else happened on the way.
            let forward = forward.because(Reason::Busy);
            assert_eq!(forward.on_error(later).is_ok(), *expected, "{what}: no answer");
        }
    }
}

#[test]
fn an_answer_that_the_service_made_up_is_marked() {
    let mut made_up = response(502, &[("cache-control", "max-age=60")]);
    made_up.extensions.insert(OriginFailed);
    let forward = |stored| match ask(&policy(), &get(&[]), stored, now() + seconds(61)) {
        Decision::Forward(forward) => forward,
        other => panic!("{other:?}"),
    };
    let at = now() + seconds(61);
    let found = forward(stored(&[("cache-control", "max-age=60")])).on_response(
        &made_up,
        BodyLength::Known(0),
        at,
        at,
    );
    let OnResponse::ServeStale(answer) = found else { panic!("{found:?}") };
    assert_eq!(answer.into_response().headers()["cache-status"], "Larder; fwd=stale; detail=expired");
    let found = forward(None).on_response(&made_up, BodyLength::Known(0), at, at);
    assert!(matches!(found, OnResponse::Pass(_)), "never stored: {found:?}");
}

// ------------------------------------------------------------------------------------------------------------- writes

#[test]
fn writes_invalidate() {
    let rows: &[(&str, u16, Fields<'_>, bool, &[&str])] = &[
        ("§4.4 success", 200, &[], true, &[]),
        ("§4.4 success", 303, &[], true, &[]),
        ("§4.4 no success", 404, &[], false, &[]),
        ("§4.4 no success", 409, &[("location", "/x")], false, &[]),
        ("it may have taken effect", 408, &[], true, &[]),
        ("it may have taken effect", 500, &[("location", "/x")], true, &[]),
        ("it may have taken effect", 502, &[], true, &[]),
        ("it may have taken effect", 504, &[], true, &[]),
        ("it may have taken effect", 599, &[], true, &[]),
        ("§4.4 Location", 201, &[("location", "/x?y")], true, &["/x?y"]),
        ("§4.4 Content-Location", 200, &[("content-location", "8")], true, &["/things/8"]),
        (
            "§4.4 of the same host only",
            200,
            &[("location", "http://shop.example/x"), ("content-location", "http://other.example/y")],
            true,
            &["/x"],
        ),
    ];
    for (what, status, fields, evicts, also) in rows {
        let request = request(Method::PUT, &[("host", "shop.example")]);
        let OnRequest::Write(write) = policy().on_request(&RequestView::from(&request)) else { panic!() };
        let found = write.on_response(&response(*status, fields), BodyLength::Known(0), now(), now());
        let OnResponse::Pass(pass) = found else { panic!("{what}: {found:?}") };
        let others: Vec<_> = pass.also().iter().map(ToString::to_string).collect();
        assert_eq!(
            (pass.evicts(), others),
            (*evicts, also.iter().map(ToString::to_string).collect()),
            "{what}: {status}"
        );
    }
}

#[test]
fn server_error_evicts_unless_the_rule_says_otherwise() {
    let policy = SharedPolicy::new(Arc::new(SharedRule { evict_on_error: false, ..rule() }));
    let request = request(Method::PUT, &[]);
    for (status, evicts) in [(500, false), (408, false), (204, true)] {
        let OnRequest::Write(write) = policy.on_request(&RequestView::from(&request)) else { panic!() };
        let found = write.on_response(&response(status, &[]), BodyLength::Known(0), now(), now());
        assert!(matches!(&found, OnResponse::Pass(pass) if pass.evicts() == evicts), "{status} {found:?}");
    }
}

#[test]
fn nobody_knows_what_a_write_without_an_answer_did() {
    let request = request(Method::DELETE, &[]);
    let OnRequest::Write(write) = policy().on_request(&RequestView::from(&request)) else { panic!() };
    let mut made_up = response(502, &[]);
    made_up.extensions.insert(OriginFailed);
    let found = write.on_response(&made_up, BodyLength::Known(0), now(), now());
    assert!(matches!(&found, OnResponse::Pass(pass) if pass.evicts()), "{found:?}");
}

#[test]
fn a_post_can_answer_later_gets() {
    // RFC 9110 §9.3.3.
    let fresh = ("cache-control", "max-age=60");
    let here = ("content-location", "/things/7");
    let rows: &[(Method, u16, Fields<'_>, bool)] = &[
        (Method::POST, 200, &[fresh, here], true),
        (Method::POST, 200, &[fresh], false),
        (Method::POST, 200, &[fresh, ("content-location", "/things/8")], false),
        (Method::POST, 200, &[here, ("last-modified", A_THOUSAND_SECONDS_AGO)], false),
        (Method::POST, 201, &[fresh, here], false),
        (Method::POST, 200, &[("cache-control", "max-age=60, no-store"), here], false),
        (Method::PUT, 200, &[fresh, here], false),
    ];
    for (method, status, fields, expected) in rows {
        let request = request(method.clone(), &[]);
        let OnRequest::Write(write) = policy().on_request(&RequestView::from(&request)) else { panic!() };
        let found = write.on_response(&response(*status, fields), BodyLength::Known(10), now(), now());
        assert_eq!(matches!(found, OnResponse::Admit(_)), *expected, "{method} {status} {fields:?}");
    }
}

// ----------------------------------------------------------------------------------------------------------- variants

#[test]
fn resources_that_vary() {
    // §4.1.
    let fields: Fields<'_> = &[("cache-control", "max-age=60"), ("vary", "accept-language")];
    let admitted = |language: &str, known: Option<Variants>, fields: Fields<'_>| {
        let request = get(&[("accept-language", language)]);
        let view = RequestView::from(&request);
        let OnRequest::Lookup(lookup) = policy().on_request(&view) else { panic!() };
        let decision = match lookup.on_record(Ok(known.map(SharedRecord::Variants)), &view, now()) {
            OnRecord::Decided(decision) => decision,
            OnRecord::Select(select) => select.on_record(Ok(None), &view, now()),
        };
        let Decision::Forward(forward) = decision else { panic!() };
        match forward.on_response(&response(200, fields), BodyLength::Known(0), now(), now()) {
            OnResponse::Admit(admit) => admit.with_body(Bytes::new()),
            other => panic!("{other:?}"),
        }
    };
    let Placement::FirstVariant(english, variants) = admitted("en, de", None, fields).place(7) else {
        panic!()
    };
    assert_eq!(variants.names(), ["accept-language"]);
    // Order and case say nothing about languages.
    assert_eq!(admitted("DE,  en", Some(variants.clone()), fields).place(8), Placement::Target);
    let Placement::NewVariant(french, 7) = admitted("fr", Some(variants.clone()), fields).place(8) else {
        panic!()
    };
    assert_ne!(french, english);
    // Varying by less is no reason to lose what is stored; varying by more is.
    let plain: Fields<'_> = &[("cache-control", "max-age=60")];
    assert_eq!(admitted("en, de", Some(variants.clone()), plain).place(8), Placement::Target);
    let wider: Fields<'_> = &[("cache-control", "max-age=60"), ("vary", "origin")];
    let widened = admitted("en, de", Some(variants), wider).place(8);
    let Placement::Widened(secondary, variants, 7) = widened else { panic!("{widened:?}") };
    assert_ne!(secondary, english);
    assert_eq!(variants.names(), ["accept-language", "origin"]);
}

#[test]
fn negotiated_codings_say_so_downstream() {
    let said = |known: Option<Variants>, fields: Fields<'_>| {
        let request = get(&[("accept-encoding", "gzip")]);
        let view = RequestView::from(&request);
        let OnRequest::Lookup(lookup) = policy().on_request(&view) else { panic!() };
        let decision = match lookup.on_record(Ok(known.map(SharedRecord::Variants)), &view, now()) {
            OnRecord::Decided(decision) => decision,
            OnRecord::Select(select) => select.on_record(Ok(None), &view, now()),
        };
        let Decision::Forward(forward) = decision else { panic!() };
        let parts = response(200, fields);
        let found = forward.on_response(&parts, BodyLength::Known(0), now(), now());
        let OnResponse::Admit(admit) = found else { panic!("{found:?}") };
        let mut passed = parts.headers;
        admit.stamp(&mut passed);
        let kept = record_of(&admit.with_body(Bytes::new())).headers;
        let vary = |headers: &http::HeaderMap| {
            let fields = headers.get_all("vary").iter().map(|field| field.to_str().unwrap().to_owned());
            fields.collect::<Vec<_>>().join(", ")
        };
        assert_eq!(vary(&passed), vary(&kept));
        vary(&kept)
    };
    let fresh = ("cache-control", "max-age=60");
    let known = || Some(Variants::new(7, vec![HeaderName::from_static("accept-encoding")]));
    assert_eq!(said(None, &[fresh]), "");
    assert_eq!(said(None, &[fresh, ("content-encoding", "gzip")]), "Accept-Encoding");
    assert_eq!(said(known(), &[fresh]), "Accept-Encoding");
    assert_eq!(said(known(), &[fresh, ("vary", "origin")]), "origin, Accept-Encoding");
    assert_eq!(said(known(), &[fresh, ("vary", "Accept-ENCODING")]), "Accept-ENCODING");
}

// ----------------------------------------------------------------------------------------------------------- the rest

#[test]
fn who_may_wait_for_whom() {
    let fresh: Fields<'_> = &[("cache-control", "max-age=60"), ("etag", "\"a\"")];
    let rows: &[(&str, Fields<'_>, Option<Fields<'_>>, bool)] = &[
        ("nothing is stored", &[], None, true),
        ("what is stored was fresh", &[], Some(fresh), true),
        ("it never was", &[], Some(&[("cache-control", "max-age=0"), ("etag", "\"a\"")]), false),
        (
            "it has to be validated each time",
            &[],
            Some(&[("cache-control", "no-cache"), ("etag", "\"a\"")]),
            false,
        ),
        ("credentials", &[("authorization", "x")], None, false),
        ("credentials", &[("x-api-key", "x")], None, false),
        ("another host, maybe", &[("x-forwarded-host", "elsewhere.example")], None, false),
        ("a part", &[("range", "bytes=0-1")], None, false),
        ("a condition of its own", &[("if-none-match", "\"a\"")], None, false),
        ("which is replaced by ours", &[("if-none-match", "\"a\"")], Some(fresh), true),
        ("something newer", &[("cache-control", "no-cache")], None, false),
        ("something newer", &[("cache-control", "max-age=0")], Some(fresh), false),
    ];
    for (what, request, record, expected) in rows {
        let record = record.and_then(stored);
        let Decision::Forward(forward) = ask(&policy(), &get(request), record, now() + seconds(61)) else {
            panic!()
        };
        assert_eq!(forward.is_shared(), *expected, "{what}");
    }
    let head = request(Method::HEAD, &[]);
    let Decision::Forward(forward) = ask(&policy(), &head, None, now()) else { panic!() };
    assert!(!forward.is_shared());
}

#[test]
fn keys_are_the_target_the_scheme_and_the_host() {
    let key = |uri: &str, host: &str| {
        let mut request = get(&[("host", host)]);
        request.uri = uri.parse().unwrap();
        rule().key(&RequestView::from(&request)).name().to_owned()
    };
    assert_eq!(key("/a/b?z=1&a=2", "Shop.example"), "p:/a/b?z=1&a=2|site=http://shop.example");
    let keys = [
        key("/a?x=1&y=2", "h"),
        key("/a?y=2&x=1", "h"),
        key("/a", "h"),
        key("/a/", "h"),
        key("/a", "i"),
        key("/a%7Csite=http://h", "h"),
        key("https://h/a", "h"),
        key("ftp://h/a", "h"),
        key("/a%2Fb", "h"),
        key("/a/b", "h"),
    ];
    let distinct: std::collections::HashSet<_> = keys.iter().collect();
    assert_eq!(distinct.len(), keys.len(), "{keys:?}");
    let uri = "/a".parse().unwrap();
    assert_eq!(rule().key_of("http", &uri, "h").name(), key("/a", "h"));
    assert_eq!(rule().key_of("https", &uri, "h").name(), key("https://h/a", "h"));
}

#[test]
fn keys_have_the_scheme_that_the_rule_names() {
    let scheme = |source: SchemeSource, uri: &str, fields: Fields<'_>| {
        let rule = SharedRule { scheme: source, ..rule() };
        let mut request = get(fields);
        request.uri = uri.parse().unwrap();
        let key = rule.key(&RequestView::from(&request)).name().to_owned();
        key.rsplit_once("|site=").unwrap().1.split_once("://").unwrap().0.to_owned()
    };
    let forwarded: Fields<'_> = &[("x-forwarded-proto", "HTTPS")];
    let rows = [
        (SchemeSource::Uri, "/a", forwarded, "http"),
        (SchemeSource::Uri, "https://h/a", &[], "https"),
        (SchemeSource::Always(Scheme::HTTPS), "http://h/a", &[], "https"),
        (SchemeSource::Forwarded, "/a", forwarded, "https"),
        (SchemeSource::Forwarded, "/a", &[("forwarded", "for=1.2.3.4; proto=https")], "https"),
        (SchemeSource::Forwarded, "https://h/a", &[("x-forwarded-proto", "http")], "http"),
        (SchemeSource::Forwarded, "https://h/a", &[("x-forwarded-proto", "gopher")], "https"),
        (SchemeSource::Forwarded, "/a", &[], "http"),
    ];
    for (source, uri, fields, expected) in rows {
        assert_eq!(scheme(source.clone(), uri, fields), expected, "{source:?} {uri} {fields:?}");
    }
}

/// A request with these fields, and where its answer goes when this is known.
fn placed(uri: &str, fields: Fields<'_>, known: Option<SharedRecord>) -> (Reason, Placement) {
    let mut request = get(fields);
    request.uri = uri.parse().unwrap();
    let view = RequestView::from(&request);
    let OnRequest::Lookup(lookup) = policy().on_request(&view) else { panic!("not looked up") };
    let decision = match lookup.on_record(Ok(known), &view, now()) {
        OnRecord::Decided(decision) => decision,
        OnRecord::Select(select) => select.on_record(Ok(None), &view, now()),
    };
    let Decision::Forward(forward) = decision else { panic!("answered") };
    let reason = forward.reason();
    let parts = response(200, &[("cache-control", "max-age=60")]);
    match forward.on_response(&parts, BodyLength::Known(0), now(), now()) {
        OnResponse::Admit(admit) => (reason, admit.with_body(Bytes::new()).place(7)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn spellings_and_forwarding_fields_select_variants() {
    let rows: &[(&str, Fields<'_>, &str)] = &[
        ("/thing%73/7", &[], "larder-spelling"),
        ("/things/7?a=%62", &[], "larder-spelling"),
        ("/things/7?", &[], "larder-spelling"),
        ("/things/7", &[("x-forwarded-host", "elsewhere.example")], "x-forwarded-host"),
        ("/things/7", &[("x-forwarded-proto", "https")], "x-forwarded-proto"),
        ("/things/7", &[("x-original-url", "/admin")], "x-original-url"),
        ("/things/7", &[("x-rewrite-url", "/admin")], "x-rewrite-url"),
    ];
    for (uri, fields, name) in rows {
        // Nothing is known.
        let (reason, placement) = placed(uri, fields, None);
        let Placement::FirstVariant(secondary, variants) = placement else { panic!("{placement:?}") };
        assert_eq!(
            (reason, variants.names().len(), variants.names()[0].as_str()),
            (Reason::Absent, 1, *name)
        );
        // The usual request doesn't get it.
        let (reason, placement) = placed("/things/7", &[], Some(SharedRecord::Variants(variants.clone())));
        let Placement::NewVariant(usual, id) = placement else { panic!("{placement:?}") };
        assert!(reason == Reason::Variant && usual != secondary && id == variants.id());
        // Nor another unusual one.
        let other = match *name {
            "larder-spelling" => placed("/%74hings/7", &[], Some(SharedRecord::Variants(variants.clone()))),
            name => placed("/things/7", &[(name, "other")], Some(SharedRecord::Variants(variants.clone()))),
        };
        assert!(matches!(other.1, Placement::NewVariant(..)), "{other:?}");
        // The same one does.
        let again = placed(uri, fields, Some(SharedRecord::Variants(variants.clone())));
        assert!(matches!(again.1, Placement::Target), "{again:?}");
        assert_eq!(variants.secondary_keys().collect::<Vec<_>>(), [secondary]);
        // What is stored for the usual request doesn't answer it.
        let (reason, placement) = placed(uri, fields, stored(&[("cache-control", "max-age=60")]));
        assert!(
            reason == Reason::Variant && matches!(placement, Placement::FirstVariant(..)),
            "{placement:?}"
        );
        // A list that doesn't tell them apart yet is widened.
        let narrow = Variants::new(3, vec![HeaderName::from_static("accept")]);
        let (_, placement) = placed(uri, fields, Some(SharedRecord::Variants(narrow)));
        assert!(matches!(placement, Placement::Widened(_, _, 3)), "{placement:?}");
    }
    // A client can't pose as another spelling.
    let (_, placement) = placed("/thing%73/7", &[], None);
    let Placement::FirstVariant(_, variants) = placement else { panic!("{placement:?}") };
    let posing: Fields<'_> = &[("larder-spelling", "/thing%73/7")];
    let (_, placement) = placed("/things/7", posing, Some(SharedRecord::Variants(variants)));
    assert!(matches!(placement, Placement::NewVariant(..)), "{placement:?}");
}

#[test]
fn filled_meanwhile_answers_only_the_same_spelling() {
    let mut request = get(&[]);
    request.uri = "/thing%73/7".parse().unwrap();
    let Decision::Forward(forward) = ask(&policy(), &request, None, now()) else { panic!() };
    assert!(forward.on_filled(stored(&[("cache-control", "max-age=60")]), now()).is_err());
    let Decision::Forward(forward) = ask(&policy(), &get(&[]), None, now()) else { panic!() };
    assert!(forward.on_filled(stored(&[("cache-control", "max-age=60")]), now()).is_ok());
}

#[test]
fn a_post_to_another_spelling_answers_no_later_gets() {
    let answer: Fields<'_> = &[("cache-control", "max-age=60"), ("content-location", "/thing%73/7")];
    let mut request = request(Method::POST, &[]);
    request.uri = "/thing%73/7".parse().unwrap();
    let OnRequest::Write(write) = policy().on_request(&RequestView::from(&request)) else { panic!() };
    let found = write.on_response(&response(200, answer), BodyLength::Known(10), now(), now());
    assert!(matches!(&found, OnResponse::Pass(pass) if pass.evicts()), "{found:?}");
}

#[test]
fn cookies_of_a_304_are_for_one_client() {
    let fields: Fields<'_> = &[("cache-control", "max-age=60"), ("etag", "\"a\"")];
    let later = now() + seconds(100);
    let told: Fields<'_> = &[("set-cookie", "a=b"), ("set-cookie", "c=d")];
    let found = answer(&policy(), &get(&[]), stored(fields), (304, told), later);
    let OnResponse::Freshened(freshened) = found else { panic!("{found:?}") };
    let Some(SharedRecord::Response(kept)) = SharedRecord::decode(&freshened.record()) else { panic!() };
    assert!(freshened.fate() == Fate::Store && !kept.sets_cookie && !kept.headers.contains_key("set-cookie"));
    let response = freshened.into_answer().unwrap().into_response();
    let cookies: Vec<_> = response.headers().get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a=b", "c=d"]);
}

#[test]
fn a_stored_cookie_answers_only_where_the_rule_allows_it() {
    let explicit = SharedPolicy::new(Arc::new(SharedRule { set_cookie: SetCookie::IfExplicit, ..rule() }));
    let fields: Fields<'_> = &[("cache-control", "max-age=60"), ("set-cookie", "a=b")];
    let record = || {
        let kept = store_under(&explicit, &get(&[]), 200, fields).unwrap();
        Some(SharedRecord::Response(Box::new(kept)))
    };
    assert_eq!(word(&ask(&explicit, &get(&[]), record(), now())), "answer");
    assert_eq!(word(&ask(&policy(), &get(&[]), record(), now())), "set-cookie");
    let Decision::Forward(forward) = ask(&policy(), &get(&[]), None, now()) else { panic!() };
    assert!(forward.on_filled(record(), now()).is_err());
}

#[test]
fn what_is_stored_outlives_its_freshness() {
    let policy = policy();
    let kept = |fields: Fields<'_>| match answer(&policy, &get(&[]), None, (200, fields), now()) {
        OnResponse::Admit(admit) => admit.with_body(Bytes::new()).retention(),
        other => panic!("{other:?}"),
    };
    assert_eq!(kept(&[("cache-control", "max-age=60")]), seconds(60) + rule().stale_if_error);
    assert_eq!(kept(&[("cache-control", "max-age=60"), ("age", "50")]), seconds(10) + rule().stale_if_error);
    assert_eq!(kept(&[("cache-control", "max-age=60"), ("etag", "\"a\"")]), seconds(60) + rule().keep_stale);
    assert_eq!(kept(&[("cache-control", "max-age=60, must-revalidate")]), seconds(60));
    assert_eq!(kept(&[("cache-control", "s-maxage=60"), ("etag", "\"a\"")]), seconds(60) + rule().keep_stale);
}
