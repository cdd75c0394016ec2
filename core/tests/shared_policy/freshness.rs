//! Freshness lifetimes and initial ages (§4.2).

use bytes::Bytes;
use larder_core::policy::BodyLength;
use larder_core::shared::policy::{SharedDecision, SharedOnResponse};

use super::engine::{Fields, now, response};
use super::{
    A_MINUTE_AGO, A_THOUSAND_SECONDS_AGO, IN_A_MINUTE, answer, ask, get, policy, record_of, rule, seconds,
    store, store_under,
};

#[test]
fn freshness_lifetimes() {
    let modified = ("last-modified", A_THOUSAND_SECONDS_AGO);
    let rows: &[(&str, u16, Fields<'_>, u64)] = &[
        ("§4.2.1 max-age", 200, &[("cache-control", "max-age=60")], 60),
        ("§4.2.1 s-maxage before max-age", 200, &[("cache-control", "max-age=60, s-maxage=30")], 30),
        ("§4.2.1 s-maxage before a shorter max-age", 200, &[("cache-control", "max-age=0, s-maxage=30")], 30),
        ("§5.3 max-age before Expires", 200, &[("cache-control", "max-age=60"), ("expires", "0")], 60),
        ("§4.2.1 Expires less Date", 200, &[("date", A_MINUTE_AGO), ("expires", IN_A_MINUTE)], 120),
        ("§4.2.1 Expires without Date", 200, &[("expires", IN_A_MINUTE)], 60),
        ("§4.2.1 Expires with an invalid Date", 200, &[("date", "x"), ("expires", IN_A_MINUTE)], 60),
        ("§5.3 Expires in the past", 200, &[("expires", A_MINUTE_AGO), ("etag", "\"a\"")], 0),
        ("§5.3 an invalid Expires is in the past", 200, &[("expires", "0"), ("etag", "\"a\"")], 0),
        (
            "§4.2.1 the shorter of two max-age",
            200,
            &[("cache-control", "max-age=60"), ("cache-control", "max-age=30")],
            30,
        ),
        (
            "§4.2 two Expires count as stale",
            200,
            &[("expires", IN_A_MINUTE), ("expires", IN_A_MINUTE), ("etag", "\"a\"")],
            0,
        ),
        ("RFC 9110 §5.6.7 the RFC 850 format", 200, &[("expires", "Friday, 15-Jan-27 08:01:00 GMT")], 60),
        ("RFC 9110 §5.6.7 the format of asctime", 200, &[("expires", "Fri Jan 15 08:01:00 2027")], 60),
        (
            "RFC 9110 §5.6.7 a time zone other than GMT",
            200,
            &[("expires", "Fri, 15 Jan 2027 08:01:00 CET"), ("etag", "\"a\"")],
            0,
        ),
        (
            "RFC 9110 §5.6.7 a date in another case",
            200,
            &[("expires", "FRI, 15 Jan 2027 08:01:00 GMT"), ("etag", "a")],
            0,
        ),
        ("§1.2.2 saturates", 200, &[("cache-control", "max-age=99999999999999999999999")], 1 << 31),
        ("§4.2.1 an invalid max-age is 0", 200, &[("cache-control", "max-age=-1"), ("etag", "\"a\"")], 0),
        ("§4.2.2 a tenth of the time since Last-Modified", 200, &[modified], 100),
        (
            "§4.2.2 a heuristic lifetime is a day at most",
            200,
            &[("last-modified", "Sat, 01 Jan 2000 00:00:00 GMT")],
            86400,
        ),
        ("§4.2.2 a heuristic lifetime of a 404", 404, &[modified], 100),
        ("§4.2.2 a heuristic lifetime with public", 599, &[modified, ("cache-control", "public")], 100),
        ("§4.2.2 no heuristic lifetime with max-age", 200, &[modified, ("cache-control", "max-age=0")], 0),
    ];
    for (what, status, fields, lifetime) in rows {
        let stored =
            store_under(&policy(), &get(&[]), *status, fields).unwrap_or_else(|why| panic!("{what}: {why}"));
        assert_eq!(stored.lifetime, seconds(*lifetime), "{what}");
    }
}

#[test]
fn initial_age_follows_age_and_date() {
    let fresh = ("cache-control", "max-age=1000");
    let rows: &[(&str, Fields<'_>, u64, bool)] = &[
        ("§4.2.3 a new response", &[fresh], 0, true),
        ("§4.2.3 Age", &[fresh, ("age", "30")], 30, true),
        ("§4.2.3 the apparent age", &[fresh, ("date", A_MINUTE_AGO)], 60, true),
        (
            "§4.2.3 the greater of Age and the apparent age",
            &[fresh, ("date", A_MINUTE_AGO), ("age", "90")],
            90,
            true,
        ),
        ("§4.2.3 a date in the future", &[fresh, ("date", IN_A_MINUTE)], 0, true),
        ("§4.2 older than its lifetime", &[fresh, ("age", "1000"), ("etag", "a")], 1000, false),
        ("§5.1 an Age that is no number", &[fresh, ("age", "abc"), ("etag", "a")], 0, false),
        ("§5.1 a negative Age", &[fresh, ("age", "-1"), ("etag", "a")], 0, false),
        ("§5.1 two Age fields", &[fresh, ("age", "0"), ("age", "0"), ("etag", "a")], 0, false),
        ("§5.1 an Age with a list", &[fresh, ("age", "7200, 0"), ("etag", "a")], 0, false),
        ("§1.2.2 saturates", &[fresh, ("age", "99999999999999999999999"), ("etag", "a")], 1 << 31, false),
    ];
    for (what, fields, age, is_fresh) in rows {
        let stored = store(fields);
        assert_eq!((stored.age(now()), stored.is_fresh(now())), (seconds(*age), *is_fresh), "{what}");
        assert_eq!(stored.age(now() + seconds(5)), seconds(age + 5), "{what}");
        assert_eq!(stored.age(now() - seconds(5)), seconds(*age), "{what}: a clock that went back");
    }

    // The delay of the response counts (§4.2.3).
    let SharedDecision::Forward(forward) = ask(&policy(), &get(&[]), None, now()) else { panic!() };
    let parts = response(200, &[fresh, ("age", "30")]);
    let SharedOnResponse::Admit(admit) =
        forward.on_response(&parts, BodyLength::Unknown, now() - seconds(3), now())
    else {
        panic!()
    };
    assert_eq!(record_of(&admit.with_body(Bytes::new())).initial_age, seconds(33));
}

#[test]
fn retention_exceeds_the_freshness_lifetime() {
    let policy = policy();
    let kept = |fields: Fields<'_>| match answer(&policy, &get(&[]), None, (200, fields), now()) {
        SharedOnResponse::Admit(admit) => admit.with_body(Bytes::new()).retention(),
        other => panic!("{other:?}"),
    };
    assert_eq!(kept(&[("cache-control", "max-age=60")]), seconds(60) + rule().stale_if_error);
    assert_eq!(kept(&[("cache-control", "max-age=60"), ("age", "50")]), seconds(10) + rule().stale_if_error);
    assert_eq!(kept(&[("cache-control", "max-age=60"), ("etag", "\"a\"")]), seconds(60) + rule().keep_stale);
    assert_eq!(kept(&[("cache-control", "max-age=60, must-revalidate")]), seconds(60));
    assert_eq!(kept(&[("cache-control", "s-maxage=60"), ("etag", "\"a\"")]), seconds(60) + rule().keep_stale);
}
