//! The engine, as tables: each row names the rule it tests, and the RFC section where there is one.
//!
//! A table is a function that answers which reasons it came across, so that one more test can say that every reason
//! there is was reached.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]
#![allow(clippy::type_complexity, reason = "the columns of a table are named by its rows")]
#![allow(clippy::result_large_err, reason = "a state lives for one request and is moved")]

mod engine;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, request};
use larder_core::policy::{
    Admitted, BodyLength, CommitResult, Decision, Forward, Hit, Lookup, OnEntry, OnRequest, OnResponse, Pass,
    Placement, Select,
};
use larder_core::{
    Audience, CachePolicy, Entry, Intent, Kind, MAX_VARIANTS, Principal, PrincipalSecret, Provenance, Reason,
    Record, RequestView, Rule, SecondaryKey, Variants, weak_etag,
};

use engine::{Fields, TTL, entry, headers, now, request, response, rule};

type Reasons = BTreeSet<Reason>;

/// What lay in the store.
type Found = Result<Option<Record>, Reason>;

/// Changes the rule of a row.
type Tweak = fn(&mut Rule);

const AS_IT_IS: Tweak = |_| {};

fn tweaked(kind: Kind, tweak: Tweak) -> Rule {
    let mut rule = rule(kind);
    tweak(&mut rule);
    rule
}

fn policy(rule: Rule) -> CachePolicy {
    CachePolicy::new(Arc::new(rule))
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn stored(entry: Entry) -> Found {
    Ok(Some(Record::Response(entry)))
}

/// A lookup for a request that may be answered from the cache.
fn lookup(rule: Rule, request: &request::Parts) -> Lookup {
    match policy(rule).on_request(&request.into()) {
        OnRequest::Lookup(lookup) => lookup,
        other => panic!("no lookup: {other:?}"),
    }
}

fn ask(rule: Rule, request: &request::Parts, found: Found, now: SystemTime) -> Decision {
    match lookup(rule, request).on_entry(found, &request.into(), now) {
        OnEntry::Decided(decision) => decision,
        OnEntry::Select(select) => panic!("it varies: {select:?}"),
    }
}

fn miss(decision: Decision) -> Forward {
    match decision {
        Decision::Miss(forward) => forward,
        other => panic!("no miss: {other:?}"),
    }
}

/// A request on its way to the handler, because nothing was stored or because the route writes.
fn forward(rule: Rule, request: &request::Parts) -> Forward {
    match policy(rule).on_request(&request.into()) {
        OnRequest::Forward(forward) => forward,
        OnRequest::Lookup(lookup) => match lookup.on_entry(Ok(None), &request.into(), now()) {
            OnEntry::Decided(decision) => miss(decision),
            OnEntry::Select(select) => panic!("nothing varies: {select:?}"),
        },
        OnRequest::Bypass(mark) => panic!("bypassed: {mark:?}"),
    }
}

/// What becomes of the handler's answer.
fn answered(
    forward: Forward,
    status: u16,
    fields: Fields<'_>,
    body: &'static str,
) -> Result<Admitted, (Pass, HeaderMap)> {
    let parts = response(status, fields);
    match forward.on_response(&parts, BodyLength::Known(body.len() as u64)) {
        OnResponse::Pass(pass) => {
            let mut headers = parts.headers;
            pass.mark().stamp(&mut headers);
            check_cache_status(&headers);
            Err((pass, headers))
        }
        OnResponse::ServeStale(hit) => panic!("a stale answer: {hit:?}"),
        OnResponse::Admit(admit) => {
            assert_eq!(admit.length(), body.len() as u64);
            Ok(admit.on_body(parts, Bytes::from_static(body.as_bytes()), now()))
        }
    }
}

fn admitted(forward: Forward, status: u16, fields: Fields<'_>, body: &'static str) -> Admitted {
    answered(forward, status, fields, body).unwrap_or_else(|(pass, _)| panic!("not admitted: {pass:?}"))
}

fn decoded(admitted: &Admitted) -> Entry {
    match Record::decode(&admitted.record()) {
        Some(Record::Response(entry)) => entry,
        other => panic!("no response: {other:?}"),
    }
}

/// What `Vary` says on undeclared routes.
const TELLS_CREDENTIALS: &str = "vary: Authorization, Cookie";

/// All fields as sorted lines, but for `Cache-Status`, which is checked here, and the `Vary` of undeclared routes, for which
/// [`what_this_cache_does_not_share_no_other_may`] looks.
fn lines(headers: &HeaderMap) -> Vec<String> {
    check_cache_status(headers);
    let mut lines: Vec<String> = headers
        .iter()
        .filter(|(name, _)| *name != "cache-status")
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .filter(|line| line != TELLS_CREDENTIALS)
        .collect();
    lines.sort();
    lines
}

fn cache_status(headers: &HeaderMap) -> &str {
    headers["cache-status"].to_str().unwrap()
}

/// RFC 9211 §2: a list of the caches' names, with parameters of known names and types. `hit` and `fwd` exclude each
/// other, and `stored` belongs to `fwd`.
fn check_cache_status(headers: &HeaderMap) {
    const FORWARDED: [&str; 8] =
        ["bypass", "method", "uri-miss", "vary-miss", "miss", "request", "stale", "partial"];
    for field in headers.get_all("cache-status") {
        let field = field.to_str().unwrap();
        let mut parameters = field.split(';');
        assert_eq!(parameters.next(), Some("Larder"), "{field}");
        let (mut hit, mut fwd, mut stored) = (false, false, false);
        for parameter in parameters {
            let parameter = parameter.strip_prefix(' ').unwrap_or_else(|| panic!("{field}"));
            match parameter.split_once('=').unwrap_or((parameter, "")) {
                ("hit", "") => hit = true,
                ("stored", "") => stored = true,
                ("collapsed", "") => {}
                ("ttl", seconds) => assert!(seconds.parse::<i64>().is_ok(), "{field}"),
                ("fwd", why) => {
                    assert!(FORWARDED.contains(&why), "{field}");
                    fwd = true;
                }
                ("detail", word) => {
                    // A token of RFC 8941 begins with a letter.
                    assert!(word.starts_with(|first: char| first.is_ascii_lowercase()), "{field}");
                    assert!(Reason::ALL.iter().any(|reason| reason.as_str() == word), "{field}");
                }
                other => panic!("{other:?} in {field}"),
            }
        }
        assert!(hit != fwd && (fwd || !stored), "{field}");
    }
}

// ---------------------------------------------------------------------------------------------------------- requests

const UNDECLARED: Tweak = AS_IT_IS;
const PUBLIC: Tweak = |rule| rule.audience = Audience::Public;
const BEARER: Tweak = |rule| rule.audience = Audience::bearer();
const PRIVATE: Tweak = |rule| rule.audience = Audience::private_by(|_| Some("alice".to_owned()));

fn requests() -> Reasons {
    let table: &[(&str, Tweak, Method, Fields<'_>, Option<Reason>)] = &[
        ("GET is looked up", AS_IT_IS, Method::GET, &[], None),
        ("and so is HEAD (RFC 9111 §2)", AS_IT_IS, Method::HEAD, &[], None),
        ("nothing else is (RFC 9111 §2)", AS_IT_IS, Method::POST, &[], Some(Reason::Method)),
        ("PUT on a route that reads", PUBLIC, Method::PUT, &[], Some(Reason::Method)),
        ("OPTIONS", AS_IT_IS, Method::OPTIONS, &[], Some(Reason::Method)),
        ("RFC 9110 §7.8", PUBLIC, Method::GET, &[("upgrade", "websocket")], Some(Reason::Upgrade)),
        ("a part may be cut (RFC 9110 §14.2)", PUBLIC, Method::GET, &[("range", "bytes=0-1")], None),
        (
            "a GET with content, RFC 9110 §9.3.1",
            PUBLIC,
            Method::GET,
            &[("content-length", "3")],
            Some(Reason::Content),
        ),
        (
            "of unknown length",
            PUBLIC,
            Method::GET,
            &[("transfer-encoding", "chunked")],
            Some(Reason::Content),
        ),
        ("no content is no content", AS_IT_IS, Method::GET, &[("content-length", "0")], None),
        ("RFC 9110 §13.1.1", AS_IT_IS, Method::GET, &[("if-match", "\"a\"")], Some(Reason::Precondition)),
        (
            "RFC 9110 §13.1.4",
            AS_IT_IS,
            Method::GET,
            &[("if-unmodified-since", "Sat, 01 Jan 2000 00:00:00 GMT")],
            Some(Reason::Precondition),
        ),
        (
            "what a cache can evaluate, it does (RFC 9111 §4.3.2)",
            AS_IT_IS,
            Method::GET,
            &[("if-none-match", "\"a\"")],
            None,
        ),
        (
            "RFC 9111 §5.2.1.5",
            PUBLIC,
            Method::GET,
            &[("cache-control", "max-age=1, No-Store")],
            Some(Reason::NoStore),
        ),
        (
            "no-cache is looked up, to be refreshed",
            AS_IT_IS,
            Method::GET,
            &[("cache-control", "no-cache")],
            None,
        ),
        (
            "RFC 9111 §3.5",
            UNDECLARED,
            Method::GET,
            &[("authorization", "Bearer t")],
            Some(Reason::Authorization),
        ),
        ("any credentials", UNDECLARED, Method::GET, &[("cookie", "session=1")], Some(Reason::Cookie)),
        ("an API key", UNDECLARED, Method::GET, &[("x-api-key", "key-1")], Some(Reason::Credentials)),
        (
            "a user whom a proxy names",
            UNDECLARED,
            Method::HEAD,
            &[("x-amzn-oidc-identity", "alice")],
            Some(Reason::Credentials),
        ),
        (
            "credentials of the service's own",
            |rule| rule.credential_fields = Arc::new([http::HeaderName::from_static("x-house-key")]),
            Method::GET,
            &[("x-house-key", "1")],
            Some(Reason::Credentials),
        ),
        ("a public route hides them", PUBLIC, Method::GET, &[("x-api-key", "key-1")], None),
        ("an empty cookie is one", UNDECLARED, Method::HEAD, &[("cookie", "")], Some(Reason::Cookie)),
        (
            "the author said public",
            PUBLIC,
            Method::GET,
            &[("authorization", "Basic eA=="), ("cookie", "a=1")],
            None,
        ),
        (
            "the author said private",
            BEARER,
            Method::GET,
            &[("authorization", "Bearer t"), ("cookie", "a=1")],
            None,
        ),
        ("private, and nobody asks", BEARER, Method::GET, &[], Some(Reason::Anonymous)),
        (
            "a password is no principal",
            BEARER,
            Method::GET,
            &[("authorization", "Basic eA==")],
            Some(Reason::Anonymous),
        ),
        (
            "of two principals neither",
            BEARER,
            Method::GET,
            &[("authorization", "Bearer a"), ("authorization", "Bearer b")],
            Some(Reason::Anonymous),
        ),
    ];
    let mut seen = Reasons::new();
    for (why, tweak, method, fields, expected) in table {
        let request = request(method.clone(), fields);
        let mark = match policy(tweaked(Kind::Read, *tweak)).on_request(&RequestView::from(&request)) {
            OnRequest::Bypass(mark) => Some(mark),
            OnRequest::Lookup(_) => None,
            OnRequest::Forward(forward) => panic!("{why}: {forward:?}"),
        };
        assert_eq!(mark.as_ref().and_then(|mark| mark.reason()), *expected, "{why}");
        let (Some(mark), Some(reason)) = (mark, expected) else { continue };
        seen.insert(*reason);

        let mut headers = HeaderMap::new();
        mark.stamp(&mut headers);
        assert_eq!(headers["x-redis-cache"], "BYPASS", "{why}");
        let forwarded = if *reason == Reason::Method { "method" } else { "bypass" };
        assert_eq!(cache_status(&headers), format!("Larder; fwd={forwarded}; detail={reason}"), "{why}");
        check_cache_status(&headers);
    }
    seen
}

#[test]
fn which_requests_are_looked_up() {
    requests();
}

/// RFC 9111 §3.5: what a shared cache must not store here must not be stored by the next one either.
#[test]
fn what_is_personal_is_kept_from_other_caches_unless_the_handler_said_something_itself() {
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
        mark.stamp(&mut headers);
        let said = headers.get(CACHE_CONTROL).map(|value| value.to_str().unwrap());
        assert_eq!(said, expected, "{request_fields:?}");
    }
}

/// What a handler sees of a request, if its answer may be stored.
#[test]
fn handlers_see_nothing_that_other_clients_would_not_show() {
    const ALL: &[(&str, &str)] = &[
        ("accept", "*/*"),
        ("authorization", "Bearer alice"),
        ("cookie", "id=1"),
        ("forwarded", "host=evil.example"),
        ("x-api-key", "1"),
        ("x-forwarded-for", "192.0.2.1"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-proto", "gopher"),
        ("x-original-url", "/admin"),
    ];
    const BY_HOST: Tweak = |rule| {
        PUBLIC(rule);
        rule.by_host = true;
    };
    const WITH_COOKIE: Tweak = |rule| {
        PUBLIC(rule);
        rule.passed_fields = vec![http::header::COOKIE];
    };
    const ORIGIN: [&str; 3] = ["forwarded", "x-forwarded-host", "x-forwarded-proto"];
    const ROUTES: [&str; 4] = ["forwarded", "x-forwarded-host", "x-forwarded-proto", "x-original-url"];
    for (kind, tweak, hidden) in [
        (Kind::Read, UNDECLARED, &ROUTES[..]),
        (Kind::Read, PUBLIC, &[&ROUTES[..], &["authorization", "cookie", "x-api-key"]].concat()),
        (Kind::Read, BY_HOST, &["x-original-url", "authorization", "cookie", "x-api-key"]),
        (Kind::Read, WITH_COOKIE, &[&ROUTES[..], &["authorization", "x-api-key"]].concat()),
        (Kind::Read, BEARER, &[&ROUTES[..], &["cookie", "x-api-key"]].concat()),
        (Kind::Read, PRIVATE, &[&ROUTES[..], &["x-api-key"]].concat()),
        // A write is authorised by its handler.
        (Kind::Write, PUBLIC, &ORIGIN),
        (Kind::Write, BEARER, &ORIGIN),
        (Kind::EvictKey, PUBLIC, &[]),
        (Kind::EvictGroup, PUBLIC, &[]),
    ] {
        for method in [Method::GET, Method::HEAD, Method::PUT] {
            let is_read = method != Method::PUT;
            if is_read != (kind == Kind::Read) {
                continue;
            }
            // On an undeclared route a request with credentials doesn't get as far as this.
            let is_undeclared = matches!(tweaked(kind, tweak).audience, Audience::Undeclared);
            let is_asked = |name| !is_undeclared || !["authorization", "cookie", "x-api-key"].contains(&name);
            let asked: Vec<_> = ALL.iter().copied().filter(|(name, _)| is_asked(*name)).collect();
            let request = request(method.clone(), &asked);
            let mut seen = request.headers.clone();
            forward(tweaked(kind, tweak), &request).prepare(&mut seen);
            let expected: Vec<&str> =
                asked.iter().map(|(name, _)| *name).filter(|name| !hidden.contains(name)).collect();
            let mut names: Vec<&str> = seen.keys().map(|name| name.as_str()).collect();
            names.sort_unstable();
            assert_eq!(names, expected, "{kind:?} {method} {:?}", tweaked(kind, tweak).audience);
        }
    }
}

/// RFC 9111 §4.1: a cache downstream doesn't know what this one keeps apart, unless `Vary` says so.
#[test]
fn what_this_cache_does_not_share_no_other_may() {
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
            // What is passed on says it, too, whatever it is.
            let (_, headers) = answered(read(), 404, &answer, "new").unwrap_err();
            assert_eq!(vary(&headers), expected);
        }

        let entry = decoded(&admitted(read(), 200, &[("etag", "\"e\"")], "new"));
        // An entry of an earlier deployment may have been stored by another rule.
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

fn keyless() -> Reasons {
    let get = request(Method::GET, &[]);
    let read = lookup(rule(Kind::Read), &get).without_key();
    let write = forward(rule(Kind::Write), &request(Method::PUT, &[])).unstored(Reason::Keyless);
    for mark in [&read, &write] {
        let mut headers = HeaderMap::new();
        mark.stamp(&mut headers);
        assert_eq!(lines(&headers), ["x-redis-cache: BYPASS"]);
        assert_eq!(cache_status(&headers), "Larder; fwd=bypass; detail=keyless");
    }
    [read, write].iter().filter_map(|mark| mark.reason()).collect()
}

#[test]
fn a_key_builder_may_give_no_key() {
    keyless();
}

#[test]
fn the_principal_of_a_private_route_is_hashed_with_the_secret() {
    let of = |tweak, fields, secret: &PrincipalSecret| {
        let request = request(Method::GET, fields);
        let policy = policy(tweaked(Kind::Read, tweak)).with_secret(secret.clone());
        match policy.on_request(&RequestView::from(&request)) {
            OnRequest::Lookup(lookup) => lookup.principal(),
            other => panic!("{other:?}"),
        }
    };
    let (one, other) = (PrincipalSecret::new(b"one"), PrincipalSecret::new(b"other"));
    let alice: Fields<'_> = &[("authorization", "Bearer alice")];
    assert_eq!(of(PUBLIC, alice, &one), None);
    assert_eq!(of(BEARER, alice, &one), Some(Principal::new(&one, "alice")));
    assert_ne!(of(BEARER, alice, &one), of(BEARER, &[("authorization", "Bearer bob")], &one));
    assert_ne!(of(BEARER, alice, &one), of(BEARER, alice, &other));

    let tenant: Tweak = |rule| {
        rule.audience =
            Audience::private_by(|request| Some(request.headers.get("x-tenant")?.to_str().ok()?.to_owned()));
    };
    assert_eq!(of(tenant, &[("x-tenant", "t1")], &one), Some(Principal::new(&one, "t1")));
}

#[test]
fn a_private_write_names_the_same_principal_and_a_group_eviction_none() {
    let fields: Fields<'_> = &[("authorization", "Bearer alice")];
    let alice = Some(Principal::new(&PrincipalSecret::default(), "alice"));
    for (kind, expected) in [(Kind::Write, alice), (Kind::EvictKey, alice), (Kind::EvictGroup, None)] {
        let forward = forward(tweaked(kind, BEARER), &request(Method::PUT, fields));
        assert_eq!((forward.principal(), forward.kind()), (expected, kind));
    }
    for kind in [Kind::Write, Kind::EvictKey] {
        let request = request(Method::PUT, &[]);
        let OnRequest::Bypass(mark) = policy(tweaked(kind, BEARER)).on_request(&RequestView::from(&request))
        else {
            panic!("nobody's entry was written");
        };
        assert_eq!(mark.reason(), Some(Reason::Anonymous));
    }
    // A group is evicted whole, whoever asks.
    assert_eq!(forward(tweaked(Kind::EvictGroup, BEARER), &request(Method::POST, &[])).principal(), None);
}

// ----------------------------------------------------------------------------------------------------------- lookups

fn lookups() -> Reasons {
    let fresh = || stored(entry(&[]));
    let endless = || stored(Entry { ttl: None, ..entry(&[]) });
    let a_variant = || stored(Entry { variant: 7, ..entry(&[]) });
    let table: Vec<(&str, Fields<'_>, Found, u64, Option<Reason>)> = vec![
        ("fresh (RFC 9111 §4.2)", &[], fresh(), 59_999, None),
        ("no longer", &[], fresh(), 60_000, Some(Reason::Expired)),
        ("without end", &[], endless(), 4_000_000_000_000, None),
        ("nothing there", &[], Ok(None), 0, Some(Reason::Absent)),
        ("a variant in the resource's own place", &[], a_variant(), 0, Some(Reason::Unreadable)),
        ("unreadable", &[], Err(Reason::Unreadable), 0, Some(Reason::Unreadable)),
        ("the store is down", &[], Err(Reason::Down), 0, Some(Reason::Down)),
        ("RFC 9111 §5.2.1.4", &[("cache-control", "no-cache")], fresh(), 0, Some(Reason::NoCache)),
        ("RFC 9111 §5.4", &[("pragma", "no-cache")], fresh(), 0, Some(Reason::NoCache)),
        (
            "no-cache comes before all else",
            &[("cache-control", "no-cache, max-age=0")],
            fresh(),
            90_000,
            Some(Reason::NoCache),
        ),
        ("RFC 9111 §5.2.1.1", &[("cache-control", "max-age=10")], fresh(), 10_000, None),
        ("older than that", &[("cache-control", "max-age=10")], fresh(), 10_001, Some(Reason::MaxAge)),
        ("max-age=0 is no-cache", &[("cache-control", "max-age=0")], fresh(), 0, Some(Reason::MaxAge)),
        (
            "also of what never expires",
            &[("cache-control", "max-age=10")],
            endless(),
            11_000,
            Some(Reason::MaxAge),
        ),
        ("RFC 9111 §5.2.1.3", &[("cache-control", "min-fresh=10")], fresh(), 50_000, None),
        ("not for so long", &[("cache-control", "min-fresh=10")], fresh(), 50_001, Some(Reason::MinFresh)),
        ("what never expires stays fresh", &[("cache-control", "min-fresh=10")], endless(), 50_001, None),
        (
            "max-stale doesn't outdo max-age",
            &[("cache-control", "max-stale, max-age=10")],
            fresh(),
            60_000,
            Some(Reason::MaxAge),
        ),
        (
            "nor min-fresh",
            &[("cache-control", "max-stale, min-fresh=1")],
            fresh(),
            60_000,
            Some(Reason::Expired),
        ),
        ("nor no-cache", &[("cache-control", "max-stale, no-cache")], fresh(), 60_000, Some(Reason::NoCache)),
        ("RFC 9111 §5.2.1.2", &[("cache-control", "max-stale")], fresh(), 90_000_000, None),
        ("so long", &[("cache-control", "max-stale=10")], fresh(), 70_000, None),
        ("and no longer", &[("cache-control", "max-stale=10")], fresh(), 70_001, Some(Reason::Expired)),
        (
            "the handler forbade it (RFC 9111 §5.2.2.2)",
            &[("cache-control", "max-stale")],
            stored(Entry { must_revalidate: true, ..entry(&[]) }),
            60_000,
            Some(Reason::Expired),
        ),
    ];
    let mut seen = Reasons::new();
    for (why, fields, found, age, expected) in table {
        let get = request(Method::GET, fields);
        match ask(rule(Kind::Read), &get, found.clone(), now() + millis(age)) {
            Decision::Hit(_) => assert_eq!(None, expected, "{why}"),
            Decision::Miss(forward) => {
                assert_eq!(Some(forward.reason()), expected, "{why}");
                assert_eq!(forward.kind(), Kind::Read);
                seen.insert(forward.reason());
            }
            other => panic!("{why}: {other:?}"),
        }

        // RFC 9111 §5.2.1.7: the same with `only-if-cached` is a 504 instead of a miss.
        let mut get = get;
        get.headers.append(CACHE_CONTROL, HeaderValue::from_static("only-if-cached"));
        if get.headers.contains_key("pragma") {
            continue;
        }
        match (ask(rule(Kind::Read), &get, found, now() + millis(age)), expected) {
            (Decision::Hit(_), None) => {}
            (Decision::Unsatisfiable(answer), Some(reason)) => {
                let response = answer.into_response();
                assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT, "{why}");
                assert_eq!(lines(response.headers()), ["x-redis-cache: MISS"], "{why}");
                assert!(cache_status(response.headers()).ends_with(&format!("; detail={reason}")), "{why}");
            }
            (other, _) => panic!("{why}: {other:?}"),
        }
    }
    seen
}

#[test]
fn what_may_be_used_of_what_is_stored() {
    lookups();
}

/// What is there but can't be used is refreshed, which a store never answers with the old entry; what isn't there is
/// filled. An answer to a HEAD has nothing to fill with.
#[test]
fn what_a_miss_begins_with_the_store() {
    for (fields, found, expected) in [
        (&[][..], Ok(None), Intent::Fill),
        (&[], Err(Reason::Unreadable), Intent::Refresh),
        (&[], stored(Entry { stored_at: now() - TTL, ..entry(&[]) }), Intent::Refresh),
        (&[("cache-control", "no-cache")], stored(entry(&[])), Intent::Refresh),
        (&[("cache-control", "max-age=0")], stored(entry(&[])), Intent::Refresh),
        (&[("cache-control", "min-fresh=90")], stored(entry(&[])), Intent::Refresh),
    ] {
        let get = miss(ask(rule(Kind::Read), &request(Method::GET, fields), found.clone(), now()));
        assert_eq!(get.intent(), Some(expected), "{fields:?}");
        let head = miss(ask(rule(Kind::Read), &request(Method::HEAD, fields), found, now()));
        assert_eq!(head.intent(), None, "{fields:?}");
    }
}

// -------------------------------------------------------------------------------------------------------------- hits

fn hit(decision: Decision) -> Hit {
    match decision {
        Decision::Hit(hit) => hit,
        other => panic!("no hit: {other:?}"),
    }
}

#[test]
fn what_a_hit_looks_like() {
    const DOWNSTREAM: Tweak = |rule| rule.downstream_ttl = Some(Duration::from_secs(5));
    const UNNAMED: Tweak = |rule| rule.status_header = None;
    let without_end: fn(Entry) -> Entry = |entry| Entry { ttl: None, ..entry };
    let as_it_is: fn(Entry) -> Entry = |entry| entry;
    let table: &[(&str, Tweak, fn(Entry) -> Entry, u64, &[&str])] = &[
        (
            "the whole lifetime",
            AS_IT_IS,
            as_it_is,
            0,
            &["cache-control: max-age=60", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "whole seconds",
            AS_IT_IS,
            as_it_is,
            999,
            &["cache-control: max-age=60", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "counting down",
            AS_IT_IS,
            as_it_is,
            1_000,
            &["cache-control: max-age=59", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "to the last",
            AS_IT_IS,
            as_it_is,
            59_999,
            &["cache-control: max-age=1", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "a clock that went back",
            AS_IT_IS,
            |e| Entry { stored_at: e.stored_at + TTL, ..e },
            0,
            &["cache-control: max-age=60", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "no end: ask each time",
            AS_IT_IS,
            without_end,
            5_000,
            &["cache-control: no-cache", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "private",
            PRIVATE,
            as_it_is,
            1_000,
            &["cache-control: private, max-age=59", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "private without end",
            PRIVATE,
            without_end,
            0,
            &["cache-control: private, no-cache", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "others are told less",
            DOWNSTREAM,
            as_it_is,
            0,
            &["cache-control: max-age=5", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "but never more than there is",
            DOWNSTREAM,
            as_it_is,
            57_000,
            &["cache-control: max-age=3", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        (
            "something else than no end",
            DOWNSTREAM,
            without_end,
            0,
            &["cache-control: max-age=5", "etag: \"e\"", "x-redis-cache: HIT"],
        ),
        ("no field of our own", UNNAMED, as_it_is, 0, &["cache-control: max-age=60", "etag: \"e\""]),
    ];
    for (why, tweak, change, age, expected) in table {
        let stored = stored(change(entry(&[("etag", "\"e\"")])));
        let at = now() + millis(*age);
        let answer = hit(ask(tweaked(Kind::Read, *tweak), &request(Method::GET, &[]), stored.clone(), at))
            .into_response();
        assert_eq!((answer.status(), &answer.body()[..]), (StatusCode::OK, &b"stored"[..]), "{why}");
        assert_eq!(lines(answer.headers()), *expected, "{why}");

        // RFC 9110 §9.3.2: HEAD is told the same, and the length of what GET would get.
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

/// RFC 9110 §14: what is stored whole is cut. A part of anything else is a miss.
fn ranges() -> Reasons {
    const FIRST: (&str, &str) = ("range", "bytes=0-1");
    const SLACK: Tweak = |rule| rule.stale_while_revalidate = Some(TTL);
    let (tagged, weak, dated) = (
        || entry(&[("etag", "\"e\"")]),
        || entry(&[("etag", "W/\"e\"")]),
        || entry(&[("last-modified", MODIFIED)]),
    );
    let found = || stored(tagged());
    let not_found = Entry { status: StatusCode::NOT_FOUND, ..tagged() };
    let stale = || stored(Entry { stored_at: now() - TTL, ..tagged() });
    let refused = |units| stored(entry(&[("accept-ranges", units)]));
    let table: Vec<(&str, Tweak, Fields<'_>, Found, &str)> = vec![
        ("the first bytes", AS_IT_IS, &[FIRST], found(), "206 bytes 0-1/6 st"),
        ("from there to the end", AS_IT_IS, &[("range", "bytes=4-")], found(), "206 bytes 4-5/6 ed"),
        ("the last bytes", AS_IT_IS, &[("range", "bytes=-3")], found(), "206 bytes 3-5/6 red"),
        ("beyond the end (RFC 9110 §15.5.17)", AS_IT_IS, &[("range", "bytes=6-")], found(), "416 bytes */6 "),
        ("several (RFC 9110 §14.2)", AS_IT_IS, &[("range", "bytes=0-0,2-2")], found(), "200 stored"),
        ("another unit (RFC 9110 §14.2)", AS_IT_IS, &[("range", "lines=0-1")], found(), "200 stored"),
        ("no 200 (RFC 9110 §14.2)", AS_IT_IS, &[FIRST], stored(not_found), "404 stored"),
        (
            "of that (RFC 9110 §13.1.5)",
            AS_IT_IS,
            &[FIRST, ("if-range", "\"e\"")],
            found(),
            "206 bytes 0-1/6 st",
        ),
        ("of another", AS_IT_IS, &[FIRST, ("if-range", "\"f\"")], found(), "200 stored"),
        ("weakly that", AS_IT_IS, &[FIRST, ("if-range", "W/\"e\"")], stored(weak()), "200 stored"),
        ("of that date", AS_IT_IS, &[FIRST, ("if-range", MODIFIED)], stored(dated()), "206 bytes 0-1/6 st"),
        ("of an earlier one", AS_IT_IS, &[FIRST, ("if-range", BEFORE)], stored(dated()), "200 stored"),
        (
            "the client has it (RFC 9110 §13.2.2)",
            AS_IT_IS,
            &[FIRST, ("if-none-match", "\"e\"")],
            found(),
            "304 ",
        ),
        ("stale, and that will do", SLACK, &[FIRST], stale(), "206 bytes 0-1/6 st"),
        (
            "stale, and accepted",
            AS_IT_IS,
            &[FIRST, ("cache-control", "max-stale")],
            stale(),
            "206 bytes 0-1/6 st",
        ),
        ("stale", AS_IT_IS, &[FIRST], stale(), "expired"),
        ("nothing there", AS_IT_IS, &[FIRST], Ok(None), "absent"),
        ("nothing there in another unit", AS_IT_IS, &[("range", "items=0-1")], Ok(None), "bypass range"),
        ("nothing there, and no unit", AS_IT_IS, &[("range", "0-1")], Ok(None), "bypass range"),
        ("two fields", AS_IT_IS, &[FIRST, ("range", "bytes=3-4")], Ok(None), "bypass range"),
        ("several of what isn't there", AS_IT_IS, &[("range", "bytes=0-0,2-2")], Ok(None), "absent"),
        ("the store is down", AS_IT_IS, &[FIRST], Err(Reason::Down), "down"),
        ("not from a cache", AS_IT_IS, &[FIRST, ("cache-control", "no-cache")], found(), "no-cache"),
        (
            "of a handler that refuses ranges (RFC 9110 §14.3)",
            AS_IT_IS,
            &[FIRST],
            refused("None"),
            "200 stored",
        ),
        ("of one that refuses them among others", AS_IT_IS, &[FIRST], refused("lines, none"), "200 stored"),
        ("of one that knows another unit", AS_IT_IS, &[FIRST], refused("lines"), "206 bytes 0-1/6 st"),
        (
            "from nowhere else (RFC 9111 §5.2.1.7)",
            AS_IT_IS,
            &[FIRST, ("cache-control", "only-if-cached")],
            Ok(None),
            "504 ",
        ),
    ];
    let mut seen = Reasons::new();
    for (why, tweak, fields, found, expected) in table {
        let decision = ask(tweaked(Kind::Read, tweak), &request(Method::GET, fields), found.clone(), now());
        let response = match decision {
            Decision::Hit(hit) | Decision::NotModified(hit) => hit.into_response(),
            Decision::Stale(hit, forward) => {
                let mut headers = headers(fields);
                forward.prepare(&mut headers);
                assert!(headers.is_empty(), "{why}: the refresh is for the whole: {headers:?}");
                hit.into_response()
            }
            Decision::Unsatisfiable(answer) => answer.into_response(),
            Decision::Bypass(mark) => {
                assert_eq!(format!("bypass {}", mark.reason().unwrap()), expected, "{why}");
                continue;
            }
            Decision::Miss(forward) => {
                assert_eq!(forward.reason().as_str(), expected, "{why}");
                seen.insert(forward.reason());
                continue;
            }
        };
        let range =
            response.headers().get("content-range").map(|range| format!("{} ", range.to_str().unwrap()));
        let body = String::from_utf8(response.body().to_vec()).unwrap();
        let told = format!("{} {}{body}", response.status().as_str(), range.unwrap_or_default());
        assert_eq!(told, expected, "{why}");

        // RFC 9110 §14.2: it means nothing to a HEAD.
        match ask(rule(Kind::Read), &request(Method::HEAD, &[FIRST]), found, now()) {
            Decision::Hit(hit) => assert_ne!(hit.into_response().status(), StatusCode::PARTIAL_CONTENT),
            Decision::Miss(_) => {}
            other => panic!("{why}: {other:?}"),
        }
    }
    seen
}

#[test]
fn what_of_a_stored_body_a_range_gets() {
    ranges();
}

/// RFC 9110 §14.2: a handler that answers a `Range` with 200 has sent the whole, which is stored and cut. Rows are: the request,
/// what the handler sees of it, its answer, and what the client gets. `Err` is an answer that isn't stored.
fn range_fills() -> Reasons {
    const SMALL: Tweak = |rule| rule.max_body = 2;
    const PARTS_TOO: Tweak = |rule| {
        rule.also = [206, 404, 416].map(|status| (StatusCode::from_u16(status).unwrap(), Some(TTL))).to_vec();
    };
    const ALL: (&str, &str) = ("range", "bytes=0-");
    const FIRST: (&str, &str) = ("range", "bytes=0-1");
    const OTHER: (&str, &str) = ("if-range", "\"f\"");
    const THIS: (&str, &str) = ("if-range", "\"e\"");
    const TAG: (&str, &str) = ("etag", "\"e\"");
    const PART: (&str, &str) = ("content-range", "bytes 0-1/6");
    const REFUSES: (&str, &str) = ("accept-ranges", "none");
    type Gets = Result<&'static str, (Reason, u16)>;
    let table: &[(&str, Tweak, Fields<'_>, Fields<'_>, u16, Fields<'_>, Gets)] = &[
        ("the whole", AS_IT_IS, &[ALL], &[], 200, &[TAG], Ok("206 bytes 0-5/6 stored")),
        (
            "its length is the part's",
            AS_IT_IS,
            &[ALL],
            &[],
            200,
            &[("content-length", "6")],
            Ok("206 bytes 0-5/6 stored"),
        ),
        ("the whole of this version", AS_IT_IS, &[ALL, THIS], &[], 200, &[TAG], Ok("206 bytes 0-5/6 stored")),
        ("the whole of another", AS_IT_IS, &[ALL, OTHER], &[], 200, &[TAG], Ok("200 stored")),
        ("what the client has", AS_IT_IS, &[ALL, ("if-none-match", "\"e\"")], &[], 200, &[TAG], Ok("304 ")),
        ("a part", AS_IT_IS, &[FIRST], &[FIRST], 200, &[TAG], Ok("206 bytes 0-1/6 st")),
        (
            "a part of what has a length",
            AS_IT_IS,
            &[FIRST],
            &[FIRST],
            200,
            &[("content-length", "6")],
            Ok("206 bytes 0-1/6 st"),
        ),
        (
            "a part of this version",
            AS_IT_IS,
            &[FIRST, THIS],
            &[FIRST, THIS],
            200,
            &[TAG],
            Ok("206 bytes 0-1/6 st"),
        ),
        ("a part of another", AS_IT_IS, &[FIRST, OTHER], &[FIRST, OTHER], 200, &[TAG], Ok("200 stored")),
        (
            "a part of a date",
            AS_IT_IS,
            &[FIRST, ("if-range", MODIFIED)],
            &[FIRST, ("if-range", MODIFIED)],
            200,
            &[("last-modified", MODIFIED)],
            Ok("206 bytes 0-1/6 st"),
        ),
        (
            "the last bytes",
            AS_IT_IS,
            &[("range", "bytes=-2")],
            &[("range", "bytes=-2")],
            200,
            &[TAG],
            Ok("206 bytes 4-5/6 ed"),
        ),
        (
            "beyond the end",
            AS_IT_IS,
            &[("range", "bytes=6-")],
            &[("range", "bytes=6-")],
            200,
            &[TAG],
            Ok("416 bytes */6 "),
        ),
        (
            "several",
            AS_IT_IS,
            &[("range", "bytes=0-,2-3")],
            &[("range", "bytes=0-,2-3")],
            200,
            &[TAG],
            Ok("200 stored"),
        ),
        ("of a handler that refuses", AS_IT_IS, &[ALL], &[], 200, &[REFUSES], Ok("200 stored")),
        ("a part of a handler that refuses", AS_IT_IS, &[FIRST], &[FIRST], 200, &[REFUSES], Ok("200 stored")),
        ("of what isn't there", PARTS_TOO, &[FIRST], &[FIRST], 404, &[], Ok("404 stored")),
        ("the handler's part", AS_IT_IS, &[FIRST], &[FIRST], 206, &[PART], Err((Reason::Range, 206))),
        ("a part that says 200", AS_IT_IS, &[FIRST], &[FIRST], 200, &[PART], Err((Reason::Range, 200))),
        ("which no option stores", PARTS_TOO, &[FIRST], &[FIRST], 206, &[PART], Err((Reason::Range, 206))),
        ("the handler's 416", PARTS_TOO, &[FIRST], &[FIRST], 416, &[], Err((Reason::Range, 416))),
        (
            "a cookie comes first",
            AS_IT_IS,
            &[FIRST],
            &[FIRST],
            206,
            &[PART, ("set-cookie", "a=1")],
            Err((Reason::SetCookie, 206)),
        ),
        ("too large for the store", SMALL, &[ALL], &[], 200, &[TAG], Err((Reason::Size, 206))),
        ("too large, and refused", SMALL, &[ALL], &[], 200, &[REFUSES], Err((Reason::Size, 200))),
        ("too large, of a version", SMALL, &[ALL, THIS], &[], 200, &[TAG], Err((Reason::Size, 200))),
        ("a part of what is too large", SMALL, &[FIRST], &[FIRST], 200, &[TAG], Err((Reason::Size, 200))),
        ("not found", AS_IT_IS, &[ALL], &[], 404, &[], Err((Reason::Status, 404))),
    ];
    let mut seen = Reasons::new();
    for (why, tweak, fields, shown, status, answer, expected) in table {
        let get = request(Method::GET, fields);
        let waiting = forward(tweaked(Kind::Read, *tweak), &get);
        assert_eq!(waiting.keeps_range(), shown.iter().any(|(name, _)| *name == "range"), "{why}");
        let mut handlers = get.headers.clone();
        waiting.prepare(&mut handlers);
        assert_eq!(handlers, headers(shown), "{why}");
        match (answered(waiting, *status, answer, "stored"), expected) {
            (Err((pass, _)), Err((reason, status_told))) => {
                assert_eq!(pass.mark().reason(), Some(*reason), "{why}");
                seen.insert(*reason);
                let mut parts = response(*status, answer);
                pass.as_part(&mut parts);
                assert_eq!(parts.status.as_u16(), *status_told, "{why}");
                let is_made = *status_told == 206 && *status == 200;
                assert_eq!(
                    parts.headers.get("content-range").is_some_and(|range| range == "bytes 0-5/6"),
                    is_made,
                    "{why}"
                );
            }
            (Ok(admitted), Ok(expected)) => {
                let entry = decoded(&admitted);
                assert_eq!(
                    (entry.status.as_u16(), &entry.body[..]),
                    (*status, &b"stored"[..]),
                    "{why}: the whole is stored"
                );
                assert!(!entry.headers.contains_key("content-range"), "{why}");
                let response = admitted.into_response(CommitResult::Stored);
                let fields = response.headers();
                let told = fields.get("content-range").map(|range| format!("{} ", range.to_str().unwrap()));
                let body = String::from_utf8(response.body().to_vec()).unwrap();
                assert_eq!(
                    format!("{} {}{body}", response.status().as_str(), told.unwrap_or_default()),
                    *expected,
                    "{why}"
                );
                let is_cut =
                    response.status() != StatusCode::OK && response.status() != StatusCode::NOT_FOUND;
                assert!(!is_cut || !fields.contains_key("content-length"), "{why}");
                // Who followed gets the same of what was stored.
                let followed = forward(tweaked(Kind::Read, *tweak), &get)
                    .on_filled(Some(Record::Response(entry)), now())
                    .unwrap();
                assert_eq!(followed.into_response().status(), response.status(), "{why}");
            }
            (answer, _) => panic!("{why}: {answer:?}"),
        }
    }
    seen
}

#[test]
fn whole_answers_to_ranges_are_stored_and_cut() {
    range_fills();
}

/// RFC 9110 §14.3: what is cut says so, unless its handler has said what it wants.
#[test]
fn what_can_be_cut_says_so() {
    const NOT_FOUND: Tweak = |rule| rule.also = vec![(StatusCode::NOT_FOUND, Some(TTL))];
    for (why, kind, method, tweak, status, fields, body, expected) in [
        ("a read", Kind::Read, Method::GET, AS_IT_IS, 200, &[][..], "new", Some("bytes")),
        ("without a body", Kind::Read, Method::GET, AS_IT_IS, 200, &[], "", None),
        ("no 200", Kind::Read, Method::GET, NOT_FOUND, 404, &[], "new", None),
        (
            "the handler's word",
            Kind::Read,
            Method::GET,
            AS_IT_IS,
            200,
            &[("accept-ranges", "none")],
            "new",
            Some("none"),
        ),
        ("a write-through", Kind::Write, Method::PUT, AS_IT_IS, 201, &[], "new", Some("bytes")),
        (
            "its handler's word",
            Kind::Write,
            Method::PUT,
            AS_IT_IS,
            200,
            &[("accept-ranges", "none")],
            "new",
            Some("none"),
        ),
    ] {
        let admitted = admitted(forward(tweaked(kind, tweak), &request(method, &[])), status, fields, body);
        let said = |headers: &HeaderMap| {
            headers.get("accept-ranges").map(|units| units.to_str().unwrap().to_owned())
        };
        assert_eq!(said(&decoded(&admitted).headers).as_deref(), expected, "{why}");
        if kind == Kind::Read {
            assert_eq!(
                said(admitted.into_response(CommitResult::Stored).headers()).as_deref(),
                expected,
                "{why}"
            );
        }
    }
}

/// RFC 9110 §15.3.7 and §15.5.17.
#[test]
fn what_a_206_and_a_416_say() {
    let fields = [("content-type", "text/plain"), ("etag", "\"e\""), ("access-control-allow-origin", "*")];
    let answer = |range| {
        let get = request(Method::GET, &[("range", range)]);
        lines(hit(ask(rule(Kind::Read), &get, stored(entry(&fields)), now())).into_response().headers())
    };
    assert_eq!(
        answer("bytes=2-3"),
        [
            "access-control-allow-origin: *",
            "cache-control: max-age=60",
            "content-range: bytes 2-3/6",
            "content-type: text/plain",
            "etag: \"e\"",
            "x-redis-cache: HIT",
        ]
    );
    assert_eq!(
        answer("bytes=6-"),
        [
            "access-control-allow-origin: *",
            "cache-control: no-store",
            "content-range: bytes */6",
            "x-redis-cache: HIT",
        ]
    );
}

#[test]
fn a_hit_has_the_stored_status_and_says_who_else_waited() {
    let found = || stored(Entry { status: StatusCode::NOT_FOUND, ..entry(&[]) });
    let get = request(Method::GET, &[]);
    let plain = hit(ask(rule(Kind::Read), &get, found(), now() + TTL / 2));
    assert_eq!(plain.entry().status, StatusCode::NOT_FOUND);
    let plain = plain.into_response();
    assert_eq!(plain.status(), StatusCode::NOT_FOUND);
    assert_eq!(cache_status(plain.headers()), "Larder; hit; ttl=30");
    let endless = stored(Entry { ttl: None, ..entry(&[]) });
    let collapsed = hit(ask(rule(Kind::Read), &get, endless, now())).collapsed().into_response();
    assert_eq!(cache_status(collapsed.headers()), "Larder; fwd=miss; collapsed");
}

const MODIFIED: &str = "Sat, 01 Jan 2000 00:00:00 GMT";
const BEFORE: &str = "Fri, 31 Dec 1999 23:59:59 GMT";

/// RFC 9110 §13.2.2, on what is stored and on what was filled just now.
#[test]
fn which_validators_match() {
    let table: &[(&str, Fields<'_>, bool)] = &[
        ("the same (RFC 9110 §13.1.2)", &[("if-none-match", "\"e\"")], true),
        ("weakly the same (RFC 9110 §8.8.3.2)", &[("if-none-match", "W/\"e\"")], true),
        ("one of a list", &[("if-none-match", "\"a\", W/\"b, c\", \"e\"")], true),
        ("one of several fields", &[("if-none-match", "\"a\""), ("if-none-match", "\"e\"")], true),
        ("anything", &[("if-none-match", "*")], true),
        ("another", &[("if-none-match", "\"a\"")], false),
        ("inside of another", &[("if-none-match", "\"a, \"e\"")], false),
        ("unquoted", &[("if-none-match", "e")], false),
        ("not modified since (RFC 9110 §13.1.3)", &[("if-modified-since", MODIFIED)], true),
        ("modified since", &[("if-modified-since", BEFORE)], false),
        ("no date", &[("if-modified-since", "yesterday")], false),
        ("the tag decides alone", &[("if-none-match", "\"a\""), ("if-modified-since", MODIFIED)], false),
        ("the tag decides alone", &[("if-none-match", "\"e\""), ("if-modified-since", BEFORE)], true),
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
fn what_a_304_says() {
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

    // The same after a fill, where it says MISS and has the handler's `Date`.
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

// ------------------------------------------------------------------------------------------------------------- fills

/// The handler sees no conditions that the cache will evaluate itself; what isn't a fill is its own business.
#[test]
fn which_conditions_the_handler_sees() {
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
        let expected = if stripped { engine::headers(&CONDITIONS[3..]) } else { request.headers };
        assert_eq!(headers, expected, "{kind:?}");
    }
    let put = request(Method::PUT, &[("if-match", "\"a\""), ("if-unmodified-since", MODIFIED)]);
    let mut headers = put.headers.clone();
    forward(rule(Kind::Write), &put).prepare(&mut headers);
    assert_eq!(headers, put.headers);
}

#[test]
fn what_a_miss_looks_like() {
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
            "the handler's own tag stands",
            AS_IT_IS,
            &[("etag", "\"own\"")],
            CommitResult::Stored,
            &["accept-ranges: bytes", "cache-control: max-age=60", own, "x-redis-cache: MISS"],
            "; stored",
        ),
        (
            "the route's word replaces the handler's",
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
            "no end",
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
            "evicted meanwhile: nobody shall keep it",
            AS_IT_IS,
            &[],
            CommitResult::Revoked,
            &["accept-ranges: bytes", "cache-control: no-cache", etag, "x-redis-cache: MISS"],
            "",
        ),
        (
            "and nobody else",
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
            "everything else stays",
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

/// RFC 9211 §2.2: why a request was forwarded, in the words of the registry.
#[test]
fn cache_status_says_why() {
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
    // Another cache's word comes first, ours is appended (RFC 9211 §2).
    let filled = admitted(
        forward(rule(Kind::Read), &request(Method::GET, &[])),
        200,
        &[("cache-status", "Origin; hit")],
        "new",
    );
    let entry = decoded(&filled);
    assert!(!entry.headers.contains_key("cache-status"), "what was true of one answer isn't of the next");
    let response = filled.into_response(CommitResult::Stored);
    let said: Vec<&HeaderValue> = response.headers().get_all("cache-status").iter().collect();
    assert_eq!(said, ["Origin; hit", "Larder; fwd=uri-miss; stored; detail=absent"]);
}

fn storing() -> Reasons {
    const NOT_FOUND: Tweak = |rule| rule.also = vec![(StatusCode::NOT_FOUND, Some(Duration::from_secs(5)))];
    const SMALL: Tweak = |rule| rule.max_body = 3;
    const ZERO: Tweak = |rule| rule.ttl = Some(Duration::ZERO);
    const NOT_FOUND_ZERO: Tweak = |rule| rule.also = vec![(StatusCode::NOT_FOUND, Some(Duration::ZERO))];
    let many_names: &'static str =
        Box::leak((0..17).map(|i| format!("x-{i}")).collect::<Vec<_>>().join(",").into());
    let many: &[(&str, &str)] = &[("vary", many_names)];
    let table: &[(&str, Tweak, u16, Fields<'_>, &'static str, Option<Reason>)] = &[
        ("200", AS_IT_IS, 200, &[], "new", None),
        ("an empty one too", AS_IT_IS, 200, &[], "", None),
        ("no other", AS_IT_IS, 203, &[], "new", Some(Reason::Status)),
        ("204", AS_IT_IS, 204, &[], "", Some(Reason::Status)),
        ("a part (RFC 9111 §3.4)", AS_IT_IS, 206, &[], "new", Some(Reason::Status)),
        ("a redirect", AS_IT_IS, 301, &[("location", "/")], "", Some(Reason::Status)),
        ("404", AS_IT_IS, 404, &[], "new", Some(Reason::Status)),
        ("a failure", AS_IT_IS, 500, &[], "new", Some(Reason::Status)),
        ("unless the author said so", NOT_FOUND, 404, &[], "new", None),
        ("and then only that", NOT_FOUND, 410, &[], "new", Some(Reason::Status)),
        (
            "a cookie is one client's (RFC 6265 §3)",
            AS_IT_IS,
            200,
            &[("set-cookie", "a=1")],
            "new",
            Some(Reason::SetCookie),
        ),
        ("also on a public route", PUBLIC, 200, &[("set-cookie", "a=1")], "new", Some(Reason::SetCookie)),
        ("RFC 9111 §5.2.2.5", AS_IT_IS, 200, &[("cache-control", "no-store")], "new", Some(Reason::Withheld)),
        (
            "RFC 9111 §5.2.2.7",
            AS_IT_IS,
            200,
            &[("cache-control", "max-age=9, private")],
            "new",
            Some(Reason::Withheld),
        ),
        ("RFC 9111 §5.2.2.4", AS_IT_IS, 200, &[("cache-control", "no-cache")], "new", Some(Reason::Withheld)),
        (
            "for a field of it",
            AS_IT_IS,
            200,
            &[("cache-control", "private=\"x-a\"")],
            "new",
            Some(Reason::Withheld),
        ),
        ("a lifetime is the route's business", AS_IT_IS, 200, &[("cache-control", "max-age=0")], "new", None),
        ("RFC 9111 §4.1", AS_IT_IS, 200, &[("vary", "*")], "new", Some(Reason::Vary)),
        (
            "anywhere in it",
            AS_IT_IS,
            200,
            &[("vary", "origin"), ("vary", "accept, *")],
            "new",
            Some(Reason::Vary),
        ),
        ("not a name", AS_IT_IS, 200, &[("vary", "a b")], "new", Some(Reason::Vary)),
        ("too many fields", AS_IT_IS, 200, many, "new", Some(Reason::Vary)),
        ("as large as may be", SMALL, 200, &[], "new", None),
        ("larger", SMALL, 200, &[], "newer", Some(Reason::Size)),
        ("a lifetime of zero", ZERO, 200, &[], "new", Some(Reason::Lifetime)),
        ("a status with a lifetime of zero", NOT_FOUND_ZERO, 404, &[], "new", Some(Reason::Lifetime)),
        ("200, beside a status with a lifetime of zero", NOT_FOUND_ZERO, 200, &[], "new", None),
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
                assert_eq!(pass.mark().reason(), *expected, "{why}");
                assert!(!pass.evicts(), "a read leaves alone what it can't replace: {why}");
                assert_eq!(headers["x-redis-cache"], "BYPASS", "{why}");
                assert!(!headers.contains_key(ETAG), "a refused answer isn't touched: {why}");
                seen.extend(expected);
            }
        }
    }

    // A body that may never end flows through; one that breaks its promise is passed on.
    let get = || forward(rule(Kind::Read), &request(Method::GET, &[]));
    let OnResponse::Pass(pass) = get().on_response(&response(200, &[]), BodyLength::Unknown) else {
        panic!("waiting for a body that may never end");
    };
    seen.extend(pass.mark().reason());
    assert_eq!((pass.mark().reason(), pass.evicts()), (Some(Reason::Stream), false));
    let OnResponse::Admit(admit) = get().on_response(&response(200, &[]), BodyLength::Known(3)) else {
        panic!("refused");
    };
    let pass = admit.on_broken_body();
    seen.extend(pass.mark().reason());
    assert_eq!((pass.mark().reason(), pass.evicts()), (Some(Reason::Body), false));

    // The answer to a HEAD has no body to store (RFC 9110 §9.3.2).
    let head = forward(rule(Kind::Read), &request(Method::HEAD, &[]));
    let (pass, headers) = answered(head, 200, &[], "").unwrap_err();
    seen.extend(pass.mark().reason());
    assert_eq!((pass.mark().reason(), pass.evicts()), (Some(Reason::Head), false));
    assert_eq!(lines(&headers), ["x-redis-cache: BYPASS"]);
    seen
}

#[test]
fn which_answers_are_stored() {
    storing();
}

/// RFC 9111 §3.1: what belongs to one connection, one moment or this cache itself isn't stored.
#[test]
fn which_fields_are_stored() {
    let filled = admitted(
        forward(rule(Kind::Read), &request(Method::GET, &[])),
        200,
        &[
            ("connection", "close, X-Hop"),
            ("connection", "x-hop-2, not a name"),
            ("x-hop", "1"),
            ("x-hop-2", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("proxy-authenticate", "Basic"),
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
    // They are the handler's to say on its own answer, but for what the cache says there.
    let response = filled.into_response(CommitResult::Stored);
    assert_eq!(response.headers()["keep-alive"], "timeout=5");
    assert_eq!(response.headers()["x-redis-cache"], "MISS");
}

#[test]
fn jitter_only_shortens_and_by_no_more_than_it_says() {
    let bodies = ["a", "b", "c", "d", "e", "f", "g", "h"];
    for jitter in [0.0, 0.1, 0.5, 1.0] {
        let lifetimes: BTreeSet<Duration> = bodies
            .into_iter()
            .map(|body| {
                let rule = Rule { jitter, ..rule(Kind::Read) };
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
    let endless = Rule { jitter: 1.0, ttl: None, ..rule(Kind::Read) };
    assert_eq!(admitted(forward(endless, &request(Method::GET, &[])), 200, &[], "new").retention(), None);
}

/// Those who waited for a fill get its entry only where they would have got it from the store.
#[test]
fn who_may_be_answered_with_what_somebody_else_filled() {
    let filled = || Some(Record::Response(entry(&[("etag", "\"e\"")])));
    let at = now() + Duration::from_secs(5);
    for (fields, record, expected) in [
        (&[][..], filled(), Some(StatusCode::OK)),
        (&[("if-none-match", "\"e\"")], filled(), Some(StatusCode::NOT_MODIFIED)),
        (&[("cache-control", "max-age=5")], filled(), Some(StatusCode::OK)),
        (&[("cache-control", "max-age=4")], filled(), None),
        (&[("cache-control", "no-cache")], filled(), None),
        (&[], Some(Record::Response(Entry { variant: 1, ..entry(&[]) })), None),
        (&[], Some(Record::Variants(Variants::new(1, Vec::new()))), None),
        (&[], None, None),
    ] {
        let waiting = forward(rule(Kind::Read), &request(Method::GET, fields));
        let answer = waiting.on_filled(record, at).map(|hit| hit.into_response().status());
        assert_eq!(answer.as_ref().ok().copied(), expected, "{fields:?}");
        if let Err(waiting) = answer {
            assert_eq!(waiting.reason(), Reason::Absent, "the request comes back as it was");
        }
    }
    let write = forward(rule(Kind::Write), &request(Method::PUT, &[]));
    assert!(write.on_filled(filled(), at).is_err(), "a write is never answered from the cache");
}

// ------------------------------------------------------------------------------------------------------------- stale

const WHILE_REFRESHED: Tweak = |rule| rule.stale_while_revalidate = Some(Duration::from_secs(10));
const IF_FAILED: Tweak = |rule| rule.stale_if_error = Some(Duration::from_secs(20));
const BOTH: Tweak = |rule| {
    WHILE_REFRESHED(rule);
    IF_FAILED(rule);
};

/// What a stale entry is still good for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Use {
    Nothing,
    WhileRefreshed,
    IfFailed,
}

/// RFC 5861. Ages are in milliseconds, of a lifetime of a minute.
#[test]
fn what_a_stale_entry_is_good_for() {
    const NO_STALE: fn(Entry) -> Entry = |entry| Entry { must_revalidate: true, ..entry };
    let as_it_is: fn(Entry) -> Entry = |entry| entry;
    let table: &[(&str, Tweak, Fields<'_>, fn(Entry) -> Entry, u64, Use)] = &[
        ("nobody said so", AS_IT_IS, &[], as_it_is, 60_000, Use::Nothing),
        ("RFC 5861 §3", WHILE_REFRESHED, &[], as_it_is, 60_000, Use::WhileRefreshed),
        ("for as long as that", WHILE_REFRESHED, &[], as_it_is, 69_999, Use::WhileRefreshed),
        ("no longer", WHILE_REFRESHED, &[], as_it_is, 70_000, Use::Nothing),
        ("RFC 5861 §4", IF_FAILED, &[], as_it_is, 79_999, Use::IfFailed),
        ("no longer", IF_FAILED, &[], as_it_is, 80_000, Use::Nothing),
        ("first one, then the other", BOTH, &[], as_it_is, 60_000, Use::WhileRefreshed),
        ("first one, then the other", BOTH, &[], as_it_is, 70_000, Use::IfFailed),
        ("RFC 9111 §5.2.2.2", BOTH, &[], NO_STALE, 60_000, Use::Nothing),
        ("wants a new one", BOTH, &[("cache-control", "no-cache")], as_it_is, 60_000, Use::Nothing),
        ("too old for this client", BOTH, &[("cache-control", "max-age=59")], as_it_is, 60_000, Use::Nothing),
        ("not for this one", BOTH, &[("cache-control", "max-age=60")], as_it_is, 60_000, Use::WhileRefreshed),
        ("RFC 9111 §5.2.1.3", BOTH, &[("cache-control", "min-fresh=0")], as_it_is, 60_000, Use::Nothing),
    ];
    for (why, tweak, fields, change, age, expected) in table {
        let found = || stored(change(entry(&[("etag", "\"e\"")])));
        let at = now() + millis(*age);
        let look = |fields| ask(tweaked(Kind::Read, *tweak), &request(Method::GET, fields), found(), at);
        match (look(fields), expected) {
            (Decision::Stale(hit, forward), Use::WhileRefreshed) => {
                assert_eq!(
                    (forward.reason(), forward.intent()),
                    (Reason::Expired, Some(Intent::Refresh)),
                    "{why}"
                );
                let response = hit.into_response();
                assert_eq!(
                    (response.status(), &response.body()[..]),
                    (StatusCode::OK, &b"stored"[..]),
                    "{why}"
                );
                let expected = ["cache-control: max-age=0", "etag: \"e\"", "x-redis-cache: HIT"];
                assert_eq!(lines(response.headers()), expected, "nobody goes on using it: {why}");
                let seconds = i64::try_from(age / 1_000).unwrap();
                assert_eq!(
                    cache_status(response.headers()),
                    format!("Larder; hit; ttl={}", 60 - seconds),
                    "{why}"
                );
            }
            (Decision::Miss(forward), Use::IfFailed) => {
                assert_eq!(forward.reason(), Reason::Expired, "{why}");
                assert_eq!(
                    forward.on_error(StatusCode::INTERNAL_SERVER_ERROR).unwrap().into_response().body(),
                    "stored",
                    "{why}"
                );
            }
            (Decision::Miss(forward), Use::Nothing) => {
                assert!(forward.on_error(StatusCode::INTERNAL_SERVER_ERROR).is_none(), "{why}")
            }
            (other, _) => panic!("{why}: {other:?}"),
        }

        // A stale answer is an answer (RFC 9111 §5.2.1.7); what only a failing handler would bring out isn't one.
        let only: Vec<_> = fields.iter().copied().chain([("cache-control", "only-if-cached")]).collect();
        match (look(&only), expected) {
            (Decision::Stale(..), Use::WhileRefreshed) => {}
            (Decision::Unsatisfiable(_), Use::IfFailed | Use::Nothing) => {}
            (other, _) => panic!("{why}: {other:?}"),
        }
    }
}

#[test]
fn a_stale_answer_stands_in_for_these_failures_only() {
    let fallen_back = |status: u16| {
        let found = stored(entry(&[("etag", "\"e\"")]));
        let get = request(Method::GET, &[]);
        let forward = miss(ask(tweaked(Kind::Read, IF_FAILED), &get, found, now() + TTL));
        match forward.on_response(&response(status, &[]), BodyLength::Known(3)) {
            OnResponse::ServeStale(hit) => Some(hit.into_response().status().as_u16()),
            OnResponse::Pass(_) | OnResponse::Admit(_) => None,
        }
    };
    for (status, expected) in [
        (500, Some(200)),
        (502, Some(200)),
        (503, Some(200)),
        (504, Some(200)),
        (501, None),
        (404, None),
        (200, None),
    ] {
        assert_eq!(fallen_back(status), expected, "RFC 5861 §4: {status}");
    }
}

/// The handler of another request failed: whoever has something stale to answer with does.
#[test]
fn a_follower_has_a_fallback_of_its_own() {
    let (get, found) =
        (request(Method::GET, &[("if-none-match", "\"e\"")]), stored(entry(&[("etag", "\"e\"")])));
    let with = miss(ask(tweaked(Kind::Read, IF_FAILED), &get, found.clone(), now() + TTL));
    assert_eq!(with.or_fallback().unwrap().into_response().status(), StatusCode::NOT_MODIFIED);
    let without = miss(ask(rule(Kind::Read), &get, found, now() + TTL));
    assert_eq!(without.or_fallback().unwrap_err().reason(), Reason::Expired);
}

/// A store keeps an entry for as long as it may be of use, and others are told for how long that is.
#[test]
fn how_long_a_stale_answer_is_kept_and_what_others_are_told() {
    let revalidate: Fields<'_> = &[("cache-control", "must-revalidate")];
    let proxy: Fields<'_> = &[("cache-control", "proxy-revalidate")];
    for (tweak, fields, kept, told) in [
        (AS_IT_IS, &[][..], 60, "max-age=60"),
        (WHILE_REFRESHED, &[], 70, "max-age=60, stale-while-revalidate=10"),
        (BOTH, &[], 80, "max-age=60, stale-while-revalidate=10, stale-if-error=20"),
        (BOTH, revalidate, 60, "max-age=60, must-revalidate"),
        (BOTH, proxy, 60, "max-age=60, proxy-revalidate"),
        (
            |rule| {
                BOTH(rule);
                PUBLIC(rule);
            },
            &[("cache-control", "proxy-revalidate, must-revalidate")],
            60,
            "public, max-age=60, must-revalidate, proxy-revalidate",
        ),
    ] {
        let filled =
            admitted(forward(tweaked(Kind::Read, tweak), &request(Method::GET, &[])), 200, fields, "new");
        assert_eq!(filled.retention(), Some(Duration::from_secs(kept)), "{told}");
        let entry = decoded(&filled);
        assert_eq!(entry.must_revalidate || entry.proxy_revalidate, !fields.is_empty());
        assert_eq!(filled.into_response(CommitResult::Stored).headers()[CACHE_CONTROL], told);
        let hit = hit(ask(tweaked(Kind::Read, tweak), &request(Method::GET, &[]), stored(entry), now()));
        assert_eq!(hit.into_response().headers()[CACHE_CONTROL], told, "also on a hit");
    }
    let endless: Tweak = |rule| {
        BOTH(rule);
        rule.ttl = None;
    };
    let filled = admitted(forward(tweaked(Kind::Read, endless), &request(Method::GET, &[])), 200, &[], "new");
    assert_eq!(filled.retention(), None);
}

/// Whose misses one run of the handler may serve.
#[test]
fn who_takes_part_in_a_run_that_others_began() {
    let fresh = || stored(entry(&[]));
    let expired = || stored(Entry { stored_at: now() - TTL, ..entry(&[]) });
    for (method, fields, found, expected) in [
        (Method::GET, &[][..], Ok(None), true),
        (Method::GET, &[], expired(), true),
        (Method::GET, &[], Err(Reason::Unreadable), true),
        (Method::GET, &[], Err(Reason::Down), false),
        (Method::HEAD, &[], Ok(None), false),
        (Method::GET, &[("cache-control", "no-cache")], fresh(), false),
        (Method::GET, &[("cache-control", "min-fresh=90")], fresh(), false),
        (Method::GET, &[("cache-control", "no-cache")], Ok(None), false),
        (Method::GET, &[("cache-control", "max-age=0")], Ok(None), false),
        (Method::GET, &[("cache-control", "max-age=1")], Ok(None), true),
    ] {
        let forward = miss(ask(rule(Kind::Read), &request(method, fields), found, now()));
        assert_eq!(forward.is_shared(), expected, "{fields:?} {:?}", forward.reason());
    }
}

// ------------------------------------------------------------------------------------------------------------ writes

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

fn writes() -> Reasons {
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

fn evictions() -> Reasons {
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

// ---------------------------------------------------------------------------------------------------------- variants

const VARIES: Fields<'static> = &[("vary", "accept-language")];

fn speaking(language: &str) -> request::Parts {
    request(Method::GET, &[("accept-language", language)])
}

/// The record of a resource that varies, with its first variant.
fn first_variant(request: &request::Parts) -> (Variants, SecondaryKey, Entry) {
    let mut admitted = admitted(forward(rule(Kind::Read), request), 200, VARIES, "new");
    match admitted.place(7) {
        Placement::FirstVariant(secondary, variants) => (variants, secondary, decoded(&admitted)),
        other => panic!("{other:?}"),
    }
}

fn select(request: &request::Parts, variants: &Variants) -> Select {
    let found = Ok(Some(Record::Variants(variants.clone())));
    match lookup(rule(Kind::Read), request).on_entry(found, &request.into(), now()) {
        OnEntry::Select(select) => select,
        other @ OnEntry::Decided(_) => panic!("{other:?}"),
    }
}

fn another_variant(request: &request::Parts, variants: &Variants, fields: Fields<'_>) -> (Placement, Entry) {
    let forward = miss(select(request, variants).on_entry(Ok(None), &request.into(), now()));
    assert_eq!(forward.reason(), Reason::Variant);
    assert_eq!(forward.secondary_key(), Some(variants.secondary_key(&request.headers)));
    let mut admitted = admitted(forward, 200, fields, "new");
    let placement = admitted.place(8);
    (placement, decoded(&admitted))
}

/// RFC 9111 §4.1, from the first variant on.
fn variants() -> Reasons {
    let (french, german) = (speaking("fr"), speaking("de"));
    let (variants, secondary, entry) = first_variant(&french);
    assert_eq!((variants.id(), entry.variant), (7, 7));
    assert_eq!(variants.names(), ["accept-language"]);
    assert_eq!(variants.secondary_keys().collect::<Vec<_>>(), [secondary]);

    // The same variant is found where it was put.
    let again = select(&french, &variants);
    assert_eq!(again.secondary_key(&(&french).into()), secondary);
    let response = hit(again.on_entry(stored(entry.clone()), &(&french).into(), now())).into_response();
    assert_eq!(response.headers()["vary"], "accept-language, Authorization, Cookie", "others vary by it too");

    // Another one isn't there, and is listed.
    assert_ne!(select(&german, &variants).secondary_key(&(&german).into()), secondary);
    let (Placement::NewVariant(listed, 7), second) = another_variant(&german, &variants, VARIES) else {
        panic!("not listed");
    };
    assert_eq!(second.variant, 7);
    let mut both = variants.clone();
    assert_eq!(both.add(listed), None);
    // One that is listed but was lost, or refreshed, has its place.
    assert_eq!(another_variant(&french, &both, VARIES).0, Placement::Target);

    // What was stored under a record that is gone is an orphan.
    let forward = miss(select(&french, &Variants::new(8, both.names().to_vec())).on_entry(
        stored(entry.clone()),
        &(&french).into(),
        now(),
    ));
    assert_eq!(forward.reason(), Reason::Variant);
    let mut seen: Reasons = [forward.reason()].into();
    // And a record of variants is no variant.
    let nested = Ok(Some(Record::Variants(both.clone())));
    assert_eq!(
        miss(select(&french, &both).on_entry(nested, &(&french).into(), now())).reason(),
        Reason::Variant
    );

    // Reasons reach through the selection.
    for (fields, found, expected) in [
        (&[("accept-language", "fr")][..], Err(Reason::Down), Reason::Down),
        (&[("accept-language", "fr")], Err(Reason::Unreadable), Reason::Unreadable),
        (&[("accept-language", "fr"), ("cache-control", "no-cache")], stored(entry.clone()), Reason::NoCache),
    ] {
        let request = request(Method::GET, fields);
        let forward = miss(select(&request, &both).on_entry(found, &(&request).into(), now()));
        assert_eq!(forward.reason(), expected);
        seen.insert(expected);
    }
    let only = request(Method::GET, &[("cache-control", "only-if-cached")]);
    let Decision::Unsatisfiable(answer) = select(&only, &both).on_entry(Ok(None), &(&only).into(), now())
    else {
        panic!("satisfied");
    };
    assert_eq!(cache_status(answer.into_response().headers()), "Larder; fwd=vary-miss; detail=variant");

    // Who waited for a variant gets that one, and none of an older record.
    let waiting = || miss(select(&french, &both).on_entry(Ok(None), &(&french).into(), now()));
    assert!(waiting().on_filled(Some(Record::Response(entry.clone())), now()).is_ok());
    assert!(waiting().on_filled(Some(Record::Response(Entry { variant: 8, ..entry })), now()).is_err());
    seen
}

#[test]
fn one_resource_several_answers() {
    variants();
}

/// RFC 9111 §4.1: an answer that varies by less leaves the other variants alone, and one that varies by more has them
/// selected by all fields from then on.
#[test]
fn a_resource_varies_by_every_field_that_any_answer_named() {
    let (variants, ..) = first_variant(&speaking("fr"));
    let german = speaking("de");
    for (fields, expected) in [
        (&[("vary", "origin")][..], &["accept-language", "origin"][..]),
        (&[("vary", "accept-language, origin")], &["accept-language", "origin"]),
        (
            &[("vary", "accept-language"), ("content-encoding", "gzip")],
            &["accept-encoding", "accept-language"],
        ),
        (&[("access-control-allow-origin", "https://a.example")], &["accept-language", "origin"]),
    ] {
        let (Placement::Widened(secondary, wider, 7), entry) = another_variant(&german, &variants, fields)
        else {
            panic!("{fields:?}");
        };
        assert_eq!(wider.names(), expected);
        assert_eq!((wider.id(), entry.variant), (8, 8));
        assert_eq!(wider.secondary_keys().collect::<Vec<_>>(), [secondary]);
    }
    for fields in [&[][..], &[("vary", "Accept-Language,"), ("vary", "ACCEPT-LANGUAGE")]] {
        assert!(matches!(another_variant(&german, &variants, fields).0, Placement::NewVariant(_, 7)));
        assert_eq!(another_variant(&speaking("fr"), &variants, fields).0, Placement::Target);
    }
}

#[test]
fn the_oldest_variant_makes_room_for_a_new_one() {
    let (mut variants, first, _) = first_variant(&speaking("0"));
    let mut dropped = Vec::new();
    for language in 1..=MAX_VARIANTS {
        let (Placement::NewVariant(secondary, _), _) =
            another_variant(&speaking(&language.to_string()), &variants, VARIES)
        else {
            panic!("{language} is not stored");
        };
        dropped.extend(variants.add(secondary));
    }
    assert_eq!(dropped, [first]);
    assert!(matches!(another_variant(&speaking("0"), &variants, VARIES).0, Placement::NewVariant(..)));
}

#[test]
fn what_is_encoded_for_one_client_varies_though_nobody_said_so() {
    let request = request(Method::GET, &[("accept-encoding", "gzip")]);
    let mut filled =
        admitted(forward(rule(Kind::Read), &request), 200, &[("content-encoding", "gzip")], "new");
    let Placement::FirstVariant(_, variants) = filled.place(7) else { panic!("handed to everybody") };
    assert_eq!(variants.names(), ["accept-encoding"]);
    assert_eq!(decoded(&filled).headers["content-encoding"], "gzip");
}

#[test]
fn no_record_has_the_id_of_an_answer_that_does_not_vary() {
    let mut filled = admitted(forward(rule(Kind::Read), &speaking("fr")), 200, VARIES, "new");
    let Placement::FirstVariant(_, variants) = filled.place(0) else { panic!("it varies") };
    assert_ne!(variants.id(), 0);
    assert_eq!(decoded(&filled).variant, variants.id());
}

// --------------------------------------------------------------------------------------------------------- spellings

/// Which entry answers which spelling under which pattern.
fn spellings() -> Reasons {
    const UNKNOWN: Option<&str> = None;
    const SLUG: Option<&str> = Some("/things/{slug}");
    const SEVEN: Option<&str> = Some("/things/7");
    const REST: Option<&str> = Some("/things/{*rest}");

    let mut seen = Reasons::new();
    let parts = request(Method::GET, &[]);
    let (canonical, spelled) = (Uri::from_static("/things/7"), Uri::from_static("/things/%37"));
    let view = |uri, pattern| RequestView::from(&parts).with_uri(uri).with_pattern(pattern);
    let policy = policy(rule(Kind::Read));
    let decide = |view: &RequestView<'_>, provenance| match policy.on_request(view) {
        OnRequest::Bypass(mark) => Err(mark.reason().unwrap()),
        OnRequest::Lookup(lookup) => {
            let found = stored(Entry { provenance, ..entry(&[]) });
            match lookup.on_entry(found, view, now()) {
                OnEntry::Decided(Decision::Hit(_)) => Ok(None),
                OnEntry::Decided(Decision::Miss(forward)) => {
                    assert_eq!(forward.intent(), Some(Intent::Refresh), "it replaces what is there");
                    Ok(Some(forward.reason()))
                }
                OnEntry::Decided(Decision::Bypass(mark)) => Err(mark.reason().unwrap()),
                other => panic!("{other:?}"),
            }
        }
        OnRequest::Forward(forward) => panic!("{forward:?}"),
    };
    for (stored_by, (uri, pattern), expected) in [
        ((&canonical, UNKNOWN), (&canonical, UNKNOWN), Ok(None)),
        ((&canonical, UNKNOWN), (&spelled, UNKNOWN), Err(Reason::Spelling)),
        ((&canonical, REST), (&spelled, REST), Err(Reason::Spelling)),
        ((&canonical, REST), (&canonical, REST), Ok(None)),
        ((&canonical, SLUG), (&spelled, SLUG), Ok(None)),
        ((&spelled, SLUG), (&canonical, SLUG), Ok(None)),
        ((&spelled, SLUG), (&canonical, SEVEN), Ok(Some(Reason::Pattern))),
        ((&canonical, SEVEN), (&spelled, SLUG), Err(Reason::Pattern)),
        ((&canonical, SEVEN), (&canonical, SLUG), Ok(Some(Reason::Pattern))),
        ((&canonical, UNKNOWN), (&canonical, SLUG), Ok(Some(Reason::Pattern))),
    ] {
        let provenance = Provenance::of(&view(stored_by.0, stored_by.1), false);
        let decided = decide(&view(uri, pattern), provenance);
        assert_eq!(decided, expected, "{stored_by:?} {uri} {pattern:?}");
        seen.extend(decided.unwrap_or_else(Some));
    }

    // What is rewritten under an unknown prefix is neither read nor stored.
    let mut obscured = view(&canonical, SLUG);
    obscured.is_obscured = true;
    assert_eq!(decide(&obscured, Provenance::default()), Err(Reason::Rewritten));
    seen.insert(Reason::Rewritten);
    for (view, reason) in [(obscured, Reason::Rewritten), (view(&spelled, UNKNOWN), Reason::Spelling)] {
        let OnRequest::Forward(forward) = self::policy(rule(Kind::Write)).on_request(&view) else { panic!() };
        assert_eq!(forward.intent(), None, "the store isn't asked");
        let Err((pass, _)) = answered(forward, 200, &[], "new") else { panic!("it is stored") };
        assert_eq!((pass.mark().reason(), pass.evicts()), (Some(reason), true));
    }
    seen
}

#[test]
fn entries_answer_their_own_pattern() {
    spellings();
}

#[test]
fn content_without_a_field_is_content() {
    let parts = request(Method::GET, &[]);
    let view = RequestView::from(&parts).with_content(true);
    let OnRequest::Bypass(mark) = policy(rule(Kind::Read)).on_request(&view) else { panic!("looked up") };
    assert_eq!(mark.reason(), Some(Reason::Content));
}

// ----------------------------------------------------------------------------------------------------------- reasons

#[test]
fn every_reason_is_reached() {
    // These are about waiting for others and about what became of a commit, which only the exchange knows. What the
    // engine hears of a commit is `CommitResult`, and the miss keeps the reason it had.
    const OF_THE_EXCHANGE: [Reason; 4] = [Reason::Busy, Reason::Waited, Reason::Evicted, Reason::Nested];
    // Reached in the tables of `shared_policy.rs`.
    const OF_THE_SHARED_CACHE: [Reason; 2] = [Reason::Incomplete, Reason::Budget];

    let tables: [fn() -> Reasons; 10] =
        [requests, keyless, lookups, ranges, range_fills, storing, writes, evictions, variants, spellings];
    let mut reached: Reasons = tables.into_iter().flat_map(|table| table()).collect();
    for reason in OF_THE_EXCHANGE.into_iter().chain(OF_THE_SHARED_CACHE) {
        assert!(reached.insert(reason), "the engine does say {reason}");
    }
    assert_eq!(reached, Reason::ALL.iter().copied().collect());
}

/// The handler's answer, whatever became of the store: nothing but what a table above names is ever lost.
#[test]
fn an_answer_is_delivered_whole_whatever_the_outcome() {
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

/// RFC 9110 §13.2.1: preconditions are ignored where the answer without them isn't a success. A 304 for a stored 404
/// would tell the client that its old copy is still good.
#[test]
fn preconditions_count_only_where_the_answer_is_a_success() {
    let also = |status| Rule { also: vec![(status, Some(TTL))], ..rule(Kind::Read) };
    let get = request(Method::GET, &[("if-none-match", "*")]);
    for (status, expected) in [
        (StatusCode::NON_AUTHORITATIVE_INFORMATION, StatusCode::NOT_MODIFIED),
        (StatusCode::MOVED_PERMANENTLY, StatusCode::MOVED_PERMANENTLY),
        (StatusCode::NOT_FOUND, StatusCode::NOT_FOUND),
        (StatusCode::GONE, StatusCode::GONE),
    ] {
        let entry = Entry { status, ..entry(&[("etag", "\"e\"")]) };
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

/// What is too large, endless or of the wrong status to be stored is as private as what is stored.
/// The handler doesn't see a read's conditions, so that what isn't stored has to be compared here (RFC 9110 §13.2.1).
#[test]
fn what_is_passed_on_may_be_a_304() {
    const TAG: (&str, &str) = ("etag", "\"e\"");
    const MATCHES: (&str, &str) = ("if-none-match", "W/\"e\"");
    let (day, dated) = (("if-modified-since", MODIFIED), ("last-modified", MODIFIED));
    for (why, method, fields, status, answer, expected) in [
        ("withheld", Method::GET, &[MATCHES][..], 200, &[TAG, ("cache-control", "no-store")][..], true),
        ("another tag", Method::GET, &[("if-none-match", "\"f\"")], 200, &[TAG, ("vary", "*")], false),
        ("no condition", Method::GET, &[], 200, &[TAG, ("vary", "*")], false),
        ("no validator", Method::GET, &[MATCHES], 200, &[("vary", "*")], false),
        ("the date", Method::GET, &[day], 200, &[dated, ("vary", "*")], true),
        (
            "the tag comes first",
            Method::GET,
            &[day, ("if-none-match", "\"f\"")],
            200,
            &[TAG, dated, ("vary", "*")],
            false,
        ),
        ("a cookie", Method::GET, &[MATCHES], 200, &[TAG, ("set-cookie", "a=1")], true),
        ("HEAD", Method::HEAD, &[MATCHES], 200, &[TAG], true),
        ("no success", Method::GET, &[MATCHES], 404, &[TAG], false),
        ("PUT", Method::PUT, &[MATCHES], 200, &[TAG, ("vary", "*")], false),
    ] {
        let kind = if method == Method::PUT { Kind::Write } else { Kind::Read };
        let mut parts =
            response(status, &[answer, &[("content-type", "a/b"), ("content-length", "3")]].concat());
        let forward = forward(rule(kind), &request(method, fields));
        let OnResponse::Pass(pass) = forward.on_response(&parts, BodyLength::Known(3)) else {
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

/// A cookie is somebody's whatever else keeps the answer from being stored.
#[test]
fn what_sets_a_cookie_is_kept_from_other_caches() {
    for (method, status) in [(Method::GET, 200), (Method::HEAD, 200), (Method::GET, 404), (Method::HEAD, 404)]
    {
        let forward = forward(rule(Kind::Read), &request(method.clone(), &[]));
        let Err((pass, headers)) = answered(forward, status, &[("set-cookie", "a=1")], "abc") else {
            panic!()
        };
        assert_eq!(pass.mark().reason(), Some(Reason::SetCookie), "{method} {status}");
        assert_eq!(headers["cache-control"], "no-store", "{method} {status}");
    }
}

#[test]
fn what_a_private_route_does_not_store_is_private_all_the_same() {
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

/// Who wants a fresher answer must not wait for a fill that began before, whether or not something is stored already: it
/// would be refused afterwards and the wait be for nothing.
#[test]
fn who_wants_a_fresh_answer_waits_for_no_older_fill() {
    let (variants, ..) = first_variant(&speaking("fr"));
    for (directive, expected) in [
        ("no-cache", Intent::Refresh),
        ("max-age=0", Intent::Refresh),
        ("max-age=1", Intent::Fill),
        ("min-fresh=1", Intent::Fill),
    ] {
        let get = request(Method::GET, &[("cache-control", directive)]);
        assert_eq!(forward(rule(Kind::Read), &get).intent(), Some(expected), "{directive}");
        let variant = miss(select(&get, &variants).on_entry(Ok(None), &(&get).into(), now()));
        assert_eq!(variant.intent(), Some(expected), "{directive}");
    }
}

/// RFC 9110 §8.6: a 204 never says how long it is.
#[test]
fn the_head_of_a_stored_204_has_no_length() {
    let found = || stored(Entry { status: StatusCode::NO_CONTENT, body: Bytes::new(), ..entry(&[]) });
    let head = hit(ask(rule(Kind::Read), &request(Method::HEAD, &[]), found(), now())).into_response();
    assert_eq!(head.status(), StatusCode::NO_CONTENT);
    assert_eq!(lines(head.headers()), ["cache-control: max-age=60", "x-redis-cache: HIT"]);
}
