//! Requests that are looked up, and the fields that the handler may see.

use std::sync::Arc;

use http::{HeaderMap, Method};
use larder_core::policy::OnRequest;
use larder_core::{Audience, Kind, Principal, PrincipalSecret, Reason, RequestView};

use super::engine::{Fields, request, rule};
use super::{
    AS_IT_IS, Reasons, Tweak, cache_status, check_cache_status, forward, lines, lookup, policy, tweaked,
};

pub(super) const UNDECLARED: Tweak = AS_IT_IS;

pub(super) const PUBLIC: Tweak = |rule| rule.audience = Audience::Public;

pub(super) const BEARER: Tweak = |rule| rule.audience = Audience::bearer();

pub(super) const PRIVATE: Tweak = |rule| rule.audience = Audience::private_by(|_| Some("alice".to_owned()));

pub(super) fn requests() -> Reasons {
    let table: &[(&str, Tweak, Method, Fields<'_>, Option<Reason>)] = &[
        ("GET is looked up", AS_IT_IS, Method::GET, &[], None),
        ("HEAD is looked up (RFC 9111 §2)", AS_IT_IS, Method::HEAD, &[], None),
        ("POST is not looked up (RFC 9111 §2)", AS_IT_IS, Method::POST, &[], Some(Reason::Method)),
        ("PUT on a route that reads", PUBLIC, Method::PUT, &[], Some(Reason::Method)),
        ("OPTIONS is not looked up", AS_IT_IS, Method::OPTIONS, &[], Some(Reason::Method)),
        (
            "a request for an upgrade (RFC 9110 §7.8)",
            PUBLIC,
            Method::GET,
            &[("upgrade", "websocket")],
            Some(Reason::Upgrade),
        ),
        ("a range is looked up (RFC 9110 §14.2)", PUBLIC, Method::GET, &[("range", "bytes=0-1")], None),
        (
            "a GET with content (RFC 9110 §9.3.1)",
            PUBLIC,
            Method::GET,
            &[("content-length", "3")],
            Some(Reason::Content),
        ),
        (
            "a GET with content of unknown length",
            PUBLIC,
            Method::GET,
            &[("transfer-encoding", "chunked")],
            Some(Reason::Content),
        ),
        ("a length of 0 is no content", AS_IT_IS, Method::GET, &[("content-length", "0")], None),
        (
            "If-Match (RFC 9110 §13.1.1)",
            AS_IT_IS,
            Method::GET,
            &[("if-match", "\"a\"")],
            Some(Reason::Precondition),
        ),
        (
            "If-Unmodified-Since (RFC 9110 §13.1.4)",
            AS_IT_IS,
            Method::GET,
            &[("if-unmodified-since", "Sat, 01 Jan 2000 00:00:00 GMT")],
            Some(Reason::Precondition),
        ),
        (
            "If-None-Match is evaluated by the cache (RFC 9111 §4.3.2)",
            AS_IT_IS,
            Method::GET,
            &[("if-none-match", "\"a\"")],
            None,
        ),
        (
            "no-store (RFC 9111 §5.2.1.5)",
            PUBLIC,
            Method::GET,
            &[("cache-control", "max-age=1, No-Store")],
            Some(Reason::NoStore),
        ),
        (
            "no-cache is looked up, for a refresh",
            AS_IT_IS,
            Method::GET,
            &[("cache-control", "no-cache")],
            None,
        ),
        (
            "Authorization on an undeclared route (RFC 9111 §3.5)",
            UNDECLARED,
            Method::GET,
            &[("authorization", "Bearer t")],
            Some(Reason::Authorization),
        ),
        (
            "a cookie on an undeclared route",
            UNDECLARED,
            Method::GET,
            &[("cookie", "session=1")],
            Some(Reason::Cookie),
        ),
        (
            "an API key on an undeclared route",
            UNDECLARED,
            Method::GET,
            &[("x-api-key", "key-1")],
            Some(Reason::Credentials),
        ),
        (
            "a user named by a proxy",
            UNDECLARED,
            Method::HEAD,
            &[("x-amzn-oidc-identity", "alice")],
            Some(Reason::Credentials),
        ),
        (
            "a credential field of the service",
            |rule| rule.credential_fields = Arc::new([http::HeaderName::from_static("x-house-key")]),
            Method::GET,
            &[("x-house-key", "1")],
            Some(Reason::Credentials),
        ),
        ("an API key on a public route", PUBLIC, Method::GET, &[("x-api-key", "key-1")], None),
        (
            "an empty cookie on an undeclared route",
            UNDECLARED,
            Method::HEAD,
            &[("cookie", "")],
            Some(Reason::Cookie),
        ),
        (
            "credentials on a public route",
            PUBLIC,
            Method::GET,
            &[("authorization", "Basic eA=="), ("cookie", "a=1")],
            None,
        ),
        (
            "credentials on a private route",
            BEARER,
            Method::GET,
            &[("authorization", "Bearer t"), ("cookie", "a=1")],
            None,
        ),
        ("a private route without a principal", BEARER, Method::GET, &[], Some(Reason::Anonymous)),
        (
            "a password is no principal",
            BEARER,
            Method::GET,
            &[("authorization", "Basic eA==")],
            Some(Reason::Anonymous),
        ),
        (
            "two principals",
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
        mark.write_to(&mut headers);
        assert_eq!(headers["x-redis-cache"], "BYPASS", "{why}");
        let forwarded = if *reason == Reason::Method { "method" } else { "bypass" };
        assert_eq!(cache_status(&headers), format!("Larder; fwd={forwarded}; detail={reason}"), "{why}");
        check_cache_status(&headers);
    }
    seen
}

#[test]
fn only_eligible_requests_are_looked_up() {
    requests();
}

/// The fields that a handler sees of a request whose response may be stored.
#[test]
fn handlers_see_no_fields_that_differ_between_clients() {
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
        rule.vary_by_host = true;
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
        // The handler authorizes a write.
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
            // On an undeclared route, a request with credentials has bypassed the cache already.
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

pub(super) fn keyless() -> Reasons {
    let get = request(Method::GET, &[]);
    let read = lookup(rule(Kind::Read), &get).without_key();
    let write = forward(rule(Kind::Write), &request(Method::PUT, &[])).unstored(Reason::Keyless);
    for mark in [&read, &write] {
        let mut headers = HeaderMap::new();
        mark.write_to(&mut headers);
        assert_eq!(lines(&headers), ["x-redis-cache: BYPASS"]);
        assert_eq!(cache_status(&headers), "Larder; fwd=bypass; detail=keyless");
    }
    [read, write].iter().filter_map(|mark| mark.reason()).collect()
}

#[test]
fn key_builder_can_return_no_key() {
    keyless();
}

#[test]
fn principal_of_a_private_route_is_hashed_with_the_secret() {
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
fn private_write_has_the_readers_principal_and_a_group_eviction_none() {
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
            panic!("an entry without a principal was written");
        };
        assert_eq!(mark.reason(), Some(Reason::Anonymous));
    }
    // An eviction of a group covers all users.
    assert_eq!(forward(tweaked(Kind::EvictGroup, BEARER), &request(Method::POST, &[])).principal(), None);
}

#[test]
fn content_without_a_length_field_counts_as_content() {
    let parts = request(Method::GET, &[]);
    let view = RequestView::from(&parts).with_content(true);
    let OnRequest::Bypass(mark) = policy(rule(Kind::Read)).on_request(&view) else { panic!("looked up") };
    assert_eq!(mark.reason(), Some(Reason::Content));
}
