//! Freshness lifetimes and initial ages (§4.2).

use std::sync::Arc;

use bytes::Bytes;
use larder_core::policy::BodyLength;
use larder_core::shared::policy::{SharedDecision, SharedOnResponse, SharedPolicy};

use super::engine::{Fields, now, response};
use super::{
    A_MINUTE_AGO, A_THOUSAND_SECONDS_AGO, IN_A_MINUTE, NOW, answer, ask, get, policy, record_of, rule,
    seconds, store, store_under,
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
        ("§4.2 Expires in any case", 200, &[("expires", "FRI, 15 jan 2027 08:01:00 gmt")], 60),
        (
            "§4.2 Expires in any case, as in RFC 850",
            200,
            &[("expires", "friday, 15-JAN-27 08:01:00 Gmt")],
            60,
        ),
        ("§4.2 Expires in any case, as of asctime", 200, &[("expires", "FRI JAN 15 08:01:00 2027")], 60),
        (
            "RFC 9110 §5.6.7 Expires with a year of two digits",
            200,
            &[("expires", "Tuesday, 15-Jan-75 08:00:00 GMT")],
            1_514_764_800,
        ),
        (
            "RFC 9110 §5.6.7 Expires more than 50 years ahead",
            200,
            &[("expires", "Saturday, 16-Jan-77 08:00:00 GMT"), ("etag", "\"a\"")],
            0,
        ),
        (
            "§4.2 Date in any case",
            200,
            &[("date", "fri, 15 jan 2027 07:59:00 gmt"), ("expires", IN_A_MINUTE)],
            120,
        ),
        (
            "RFC 9110 §5.6.7 Date as in RFC 850",
            200,
            &[("date", "Friday, 15-Jan-27 07:59:00 GMT"), ("expires", IN_A_MINUTE)],
            120,
        ),
        (
            "RFC 9110 §5.6.7 Date as of asctime, with a padded day",
            200,
            &[("date", "Sat Jan  9 08:00:00 2027"), ("expires", IN_A_MINUTE)],
            518_460,
        ),
        ("§4.2 Last-Modified in any case", 200, &[("last-modified", "fri, 15 jan 2027 07:43:20 gmt")], 100),
        (
            "RFC 9110 §5.6.7 Last-Modified as in RFC 850",
            200,
            &[("last-modified", "Friday, 15-Jan-27 07:43:20 GMT")],
            100,
        ),
        (
            "RFC 9110 §5.6.7 Last-Modified as of asctime",
            200,
            &[("last-modified", "Fri Jan 15 07:43:20 2027")],
            100,
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
        ("§5.1 an Age with a list", &[fresh, ("age", "30, 0")], 30, true),
        ("§5.1 two Age fields", &[fresh, ("age", "30"), ("age", "7200")], 30, true),
        ("§5.1 an Age with a list that begins with an empty member", &[fresh, ("age", ", 30")], 30, true),
        ("§5.1 an Age with a list whose second member is invalid", &[fresh, ("age", "30, x")], 30, true),
        ("§5.1 an Age with a list whose first member is invalid", &[fresh, ("age", "x, 30")], 0, true),
        (
            "§5.1 an Age with a list whose first member is old",
            &[fresh, ("age", "7200, 0"), ("etag", "\"a\"")],
            7200,
            false,
        ),
        ("§5.1 an Age that is no number", &[fresh, ("age", "abc")], 0, true),
        ("§5.1 a negative Age", &[fresh, ("age", "-7")], 0, true),
        ("§5.1 an Age with a fraction", &[fresh, ("age", "7.2")], 0, true),
        ("§5.1 an Age with a unit", &[fresh, ("age", "7 days")], 0, true),
        ("§5.1 an Age with a parameter", &[fresh, ("age", "7200;a=b")], 0, true),
        ("§5.1 an empty Age", &[fresh, ("age", "")], 0, true),
        (
            "§5.1 the apparent age, with an invalid Age",
            &[fresh, ("age", "x"), ("date", A_MINUTE_AGO)],
            60,
            true,
        ),
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
fn invalid_age_is_stale_if_the_rule_says_so() {
    let mut rule = rule();
    rule.invalid_age_is_stale = true;
    let strict = SharedPolicy::new(Arc::new(rule));
    for (ages, is_fresh) in [
        (&[][..], true),
        (&["0"], true),
        (&["0, 0"], false),
        (&["0", "0"], false),
        (&["abc"], false),
        (&["-7"], false),
        (&["7.2"], false),
        (&["7 days"], false),
        (&[""], false),
    ] {
        let mut fields = vec![("cache-control", "max-age=1000"), ("etag", "\"a\"")];
        fields.extend(ages.iter().map(|age| ("age", *age)));
        let stored = store_under(&strict, &get(&[]), 200, &fields).unwrap();
        assert_eq!(stored.is_fresh(now()), is_fresh, "{ages:?}");
    }
}

/// RFC 9110 §6.6.1.
#[test]
fn invalid_date_is_replaced() {
    for (dates, expected) in [
        (&[][..], NOW),
        (&[A_MINUTE_AGO], A_MINUTE_AGO),
        (&["fri Jan 15 07:59:00 2027"], "fri Jan 15 07:59:00 2027"),
        (&["yesterday"], NOW),
        (&["0", A_MINUTE_AGO], NOW),
    ] {
        let mut fields = vec![("cache-control", "max-age=1000")];
        fields.extend(dates.iter().map(|date| ("date", *date)));
        let stored = store(&fields);
        let kept: Vec<_> = stored.headers.get_all("date").iter().collect();
        assert_eq!(kept, [expected], "{dates:?}");
    }
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
