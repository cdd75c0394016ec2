//! The stored responses that may answer a request.

use http::header::CACHE_CONTROL;
use http::{HeaderValue, Method, StatusCode};
use larder_core::policy::Decision;
use larder_core::{Intent, Kind, Reason};

use super::engine::{Fields, TTL, entry, now, request, rule, with};
use super::{Found, Reasons, ask, cache_status, lines, millis, miss, stored};

pub(super) fn lookups() -> Reasons {
    let fresh = || stored(entry(&[]));
    let endless = || stored(with(entry(&[]), |entry| entry.ttl = None));
    let a_variant = || stored(with(entry(&[]), |entry| entry.variant = 7));
    let table: Vec<(&str, Fields<'_>, Found, u64, Option<Reason>)> = vec![
        ("fresh (RFC 9111 §4.2)", &[], fresh(), 59_999, None),
        ("expired (RFC 9111 §4.2)", &[], fresh(), 60_000, Some(Reason::Expired)),
        ("an entry without expiry", &[], endless(), 4_000_000_000_000, None),
        ("nothing stored", &[], Ok(None), 0, Some(Reason::Absent)),
        ("a variant under the resource's own key", &[], a_variant(), 0, Some(Reason::Unreadable)),
        ("unreadable", &[], Err(Reason::Unreadable), 0, Some(Reason::Unreadable)),
        ("the store is down", &[], Err(Reason::Down), 0, Some(Reason::Down)),
        ("no-cache (RFC 9111 §5.2.1.4)", &[("cache-control", "no-cache")], fresh(), 0, Some(Reason::NoCache)),
        ("Pragma: no-cache (RFC 9111 §5.4)", &[("pragma", "no-cache")], fresh(), 0, Some(Reason::NoCache)),
        (
            "no-cache is the first reason",
            &[("cache-control", "no-cache, max-age=0")],
            fresh(),
            90_000,
            Some(Reason::NoCache),
        ),
        (
            "as old as max-age allows (RFC 9111 §5.2.1.1)",
            &[("cache-control", "max-age=10")],
            fresh(),
            10_000,
            None,
        ),
        (
            "older than max-age allows",
            &[("cache-control", "max-age=10")],
            fresh(),
            10_001,
            Some(Reason::MaxAge),
        ),
        (
            "max-age=0 asks for a new response",
            &[("cache-control", "max-age=0")],
            fresh(),
            0,
            Some(Reason::MaxAge),
        ),
        (
            "max-age applies to an entry without expiry",
            &[("cache-control", "max-age=10")],
            endless(),
            11_000,
            Some(Reason::MaxAge),
        ),
        (
            "fresh for as long as min-fresh asks (RFC 9111 §5.2.1.3)",
            &[("cache-control", "min-fresh=10")],
            fresh(),
            50_000,
            None,
        ),
        (
            "not fresh for as long as min-fresh asks",
            &[("cache-control", "min-fresh=10")],
            fresh(),
            50_001,
            Some(Reason::MinFresh),
        ),
        (
            "min-fresh accepts an entry without expiry",
            &[("cache-control", "min-fresh=10")],
            endless(),
            50_001,
            None,
        ),
        (
            "max-stale doesn't override max-age",
            &[("cache-control", "max-stale, max-age=10")],
            fresh(),
            60_000,
            Some(Reason::MaxAge),
        ),
        (
            "max-stale doesn't override min-fresh",
            &[("cache-control", "max-stale, min-fresh=1")],
            fresh(),
            60_000,
            Some(Reason::Expired),
        ),
        (
            "max-stale doesn't override no-cache",
            &[("cache-control", "max-stale, no-cache")],
            fresh(),
            60_000,
            Some(Reason::NoCache),
        ),
        (
            "max-stale without a value (RFC 9111 §5.2.1.2)",
            &[("cache-control", "max-stale")],
            fresh(),
            90_000_000,
            None,
        ),
        ("as stale as max-stale allows", &[("cache-control", "max-stale=10")], fresh(), 70_000, None),
        (
            "staler than max-stale allows",
            &[("cache-control", "max-stale=10")],
            fresh(),
            70_001,
            Some(Reason::Expired),
        ),
        (
            "must-revalidate overrides max-stale (RFC 9111 §5.2.2.2)",
            &[("cache-control", "max-stale")],
            stored(with(entry(&[]), |entry| entry.must_revalidate = true)),
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

        // The same request with `only-if-cached` is a 504 instead of a miss (RFC 9111 §5.2.1.7).
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
                // Nothing was forwarded, so there is no `fwd` (RFC 9211 §2.2).
                assert_eq!(cache_status(response.headers()), format!("Larder; detail={reason}"), "{why}");
            }
            (other, _) => panic!("{why}: {other:?}"),
        }
    }
    seen
}

#[test]
fn only_usable_entries_answer() {
    lookups();
}

/// A stored entry that can't be used is refreshed, for which the store never returns it again. Without an entry there is a fill.
/// The response to a HEAD can't fill.
#[test]
fn intent_of_a_miss_depends_on_what_is_stored() {
    for (fields, found, expected) in [
        (&[][..], Ok(None), Intent::Fill),
        (&[], Err(Reason::Unreadable), Intent::Refresh),
        (&[], stored(with(entry(&[]), |entry| entry.stored_at = now() - TTL)), Intent::Refresh),
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
