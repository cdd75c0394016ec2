//! `stale-while-revalidate` and `stale-if-error` (RFC 5861).

use std::time::Duration;

use http::header::CACHE_CONTROL;
use http::{Method, StatusCode};
use larder_core::policy::{BodyLength, CommitResult, Decision, OnResponse};
use larder_core::{Entry, Intent, Kind, Reason};

use super::engine::{Fields, TTL, entry, now, request, response, rule, with};
use super::hits::hit;
use super::requests::PUBLIC;
use super::{
    AS_IT_IS, Tweak, admitted, ask, cache_status, decoded, forward, lines, millis, miss, stored, tweaked,
};

const WHILE_REFRESHED: Tweak = |rule| rule.stale_while_revalidate = Some(Duration::from_secs(10));

const IF_FAILED: Tweak = |rule| rule.stale_if_error = Some(Duration::from_secs(20));

const BOTH: Tweak = |rule| {
    WHILE_REFRESHED(rule);
    IF_FAILED(rule);
};

/// The permitted use of a stale entry.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Use {
    Nothing,
    WhileRefreshed,
    IfFailed,
}

/// RFC 5861. Ages are in milliseconds, and the TTL is a minute.
#[test]
fn stale_entries_are_used_within_their_options() {
    const ZERO: Tweak = |rule| {
        rule.stale_while_revalidate = Some(Duration::ZERO);
        rule.stale_if_error = Some(Duration::ZERO);
    };
    const NO_STALE: fn(Entry) -> Entry = |entry| with(entry, |entry| entry.must_revalidate = true);
    let as_it_is: fn(Entry) -> Entry = |entry| entry;
    let table: &[(&str, Tweak, Fields<'_>, fn(Entry) -> Entry, u64, Use)] = &[
        ("no option for stale responses", AS_IT_IS, &[], as_it_is, 60_000, Use::Nothing),
        ("stale_while_revalidate (RFC 5861 §3)", WHILE_REFRESHED, &[], as_it_is, 60_000, Use::WhileRefreshed),
        ("at the end of stale_while_revalidate", WHILE_REFRESHED, &[], as_it_is, 69_999, Use::WhileRefreshed),
        ("after stale_while_revalidate", WHILE_REFRESHED, &[], as_it_is, 70_000, Use::Nothing),
        ("stale_if_error (RFC 5861 §4)", IF_FAILED, &[], as_it_is, 79_999, Use::IfFailed),
        ("after stale_if_error", IF_FAILED, &[], as_it_is, 80_000, Use::Nothing),
        ("both options, within stale_while_revalidate", BOTH, &[], as_it_is, 60_000, Use::WhileRefreshed),
        ("both options, after stale_while_revalidate", BOTH, &[], as_it_is, 70_000, Use::IfFailed),
        ("both options are zero", ZERO, &[], as_it_is, 60_000, Use::Nothing),
        ("must-revalidate (RFC 9111 §5.2.2.2)", BOTH, &[], NO_STALE, 60_000, Use::Nothing),
        ("a request with no-cache", BOTH, &[("cache-control", "no-cache")], as_it_is, 60_000, Use::Nothing),
        (
            "a request whose max-age is exceeded",
            BOTH,
            &[("cache-control", "max-age=59")],
            as_it_is,
            60_000,
            Use::Nothing,
        ),
        (
            "a request whose max-age is not exceeded",
            BOTH,
            &[("cache-control", "max-age=60")],
            as_it_is,
            60_000,
            Use::WhileRefreshed,
        ),
        (
            "a request with min-fresh (RFC 9111 §5.2.1.3)",
            BOTH,
            &[("cache-control", "min-fresh=0")],
            as_it_is,
            60_000,
            Use::Nothing,
        ),
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
                assert_eq!(lines(response.headers()), expected, "no cache uses it longer: {why}");
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

        // A stale response satisfies `only-if-cached` (RFC 9111 §5.2.1.7). A response that needs a failing handler doesn't.
        let only: Vec<_> = fields.iter().copied().chain([("cache-control", "only-if-cached")]).collect();
        match (look(&only), expected) {
            (Decision::Stale(..), Use::WhileRefreshed) => {}
            (Decision::Unsatisfiable(_), Use::IfFailed | Use::Nothing) => {}
            (other, _) => panic!("{why}: {other:?}"),
        }
    }
}

#[test]
fn stale_response_replaces_only_these_failures() {
    let fallen_back = |status: u16| {
        let found = stored(entry(&[("etag", "\"e\"")]));
        let get = request(Method::GET, &[]);
        let forward = miss(ask(tweaked(Kind::Read, IF_FAILED), &get, found, now() + TTL));
        match forward.on_response(&response(status, &[]), BodyLength::Known(3), now()) {
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

/// The handler of another request failed: a follower with a stale response serves it.
#[test]
fn follower_has_its_own_fallback() {
    let (get, found) =
        (request(Method::GET, &[("if-none-match", "\"e\"")]), stored(entry(&[("etag", "\"e\"")])));
    let with = miss(ask(tweaked(Kind::Read, IF_FAILED), &get, found.clone(), now() + TTL));
    assert_eq!(with.or_fallback().unwrap().into_response().status(), StatusCode::NOT_MODIFIED);
    let without = miss(ask(rule(Kind::Read), &get, found, now() + TTL));
    assert_eq!(without.or_fallback().unwrap_err().reason(), Reason::Expired);
}

/// A store keeps an entry as long as it may be used, and downstream caches are told for how long.
#[test]
fn retention_and_directives_include_the_stale_times() {
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
