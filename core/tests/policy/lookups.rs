//! Which stored responses may answer.

use http::header::CACHE_CONTROL;
use http::{HeaderValue, Method, StatusCode};
use larder_core::policy::Decision;
use larder_core::{Entry, Intent, Kind, Reason};

use super::engine::{Fields, TTL, entry, now, request, rule};
use super::{Found, Reasons, ask, cache_status, lines, millis, miss, stored};

pub(super) fn lookups() -> Reasons {
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
