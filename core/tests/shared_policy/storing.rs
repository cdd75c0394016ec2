//! The responses and the fields that are stored (§3).

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::header::COOKIE;
use larder_core::Reason;
use larder_core::shared::policy::SharedPolicy;
use larder_core::shared::{SetCookie, SharedRule};

use super::engine::Fields;
use super::{A_THOUSAND_SECONDS_AGO, IN_A_MINUTE, NOW, get, policy, rule, seconds, store, store_under};

/// A redirect that repeats what the key leaves out would lead every client there.
#[test]
fn redirect_of_a_request_with_ignored_parameters_is_not_stored() {
    let mut rule = rule();
    rule.ignored_params = vec!["utm_*".to_owned()];
    let policy = SharedPolicy::new(Arc::new(rule));
    for (uri, status, location, expected) in [
        ("/a?utm_id=7", 301, "location", Err("spelling".to_owned())),
        ("/a?utm_id=7", 200, "content-location", Err("spelling".to_owned())),
        ("/a?utm_id=7", 200, "link", Ok(())),
        ("/a?utm=7", 301, "location", Ok(())),
    ] {
        let mut request = get(&[]);
        request.uri = uri.parse().unwrap();
        let fields = [("cache-control", "max-age=60"), (location, "/a/?utm_id=7")];
        assert_eq!(store_under(&policy, &request, status, &fields).map(drop), expected, "{uri} {location}");
    }
}

#[test]
fn only_permitted_responses_are_stored() {
    const FRESH: (&str, &str) = ("cache-control", "max-age=60");
    const CREDENTIALS: Fields<'_> = &[("authorization", "Basic eA==")];
    const API_KEY: Fields<'_> = &[("x-api-key", "key-1")];
    let rows: &[(&str, Fields<'_>, u16, Fields<'_>, Result<(), Reason>)] = &[
        ("§3 explicitly fresh", &[], 200, &[FRESH], Ok(())),
        ("§3 any final status", &[], 599, &[FRESH], Ok(())),
        ("§3 no lifetime and no validator", &[], 200, &[], Err(Reason::Lifetime)),
        (
            "§3 never fresh, without a validator",
            &[],
            200,
            &[("cache-control", "max-age=0")],
            Err(Reason::Lifetime),
        ),
        (
            "§4.3 never fresh, with a validator",
            &[],
            200,
            &[("cache-control", "max-age=0"), ("etag", "\"a\"")],
            Ok(()),
        ),
        ("§4.2.2 a status without a heuristic lifetime", &[], 403, &[("etag", "\"a\"")], Err(Reason::Status)),
        ("§5.2.2.5 no-store", &[], 200, &[("cache-control", "no-store, max-age=60")], Err(Reason::Withheld)),
        ("§5.2.2.7 private", &[], 200, &[("cache-control", "private, max-age=60")], Err(Reason::Withheld)),
        (
            "§5.2.2.7 private with field names",
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
            "§5.2.2.3 must-understand overrides no-store for a known status",
            &[],
            200,
            &[("cache-control", "must-understand, no-store, max-age=60")],
            Ok(()),
        ),
        ("§3.5 a request with credentials", CREDENTIALS, 200, &[FRESH], Err(Reason::Authorization)),
        (
            "§3.5 credentials, with public",
            CREDENTIALS,
            200,
            &[("cache-control", "public, max-age=60")],
            Ok(()),
        ),
        (
            "§3.5 credentials, with must-revalidate",
            CREDENTIALS,
            200,
            &[("cache-control", "must-revalidate, max-age=60")],
            Ok(()),
        ),
        ("§3.5 credentials, with s-maxage", CREDENTIALS, 200, &[("cache-control", "s-maxage=60")], Ok(())),
        (
            "§3.5 credentials, with proxy-revalidate",
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
            "§5.2.2.7 a cookie named by private",
            &[],
            200,
            &[("cache-control", "max-age=60, private=\"set-cookie\""), ("set-cookie", "a=b")],
            Ok(()),
        ),
        ("§3.5 credentials in another field", API_KEY, 200, &[FRESH], Err(Reason::Authorization)),
        (
            "§3.5 credentials in another field, with public",
            API_KEY,
            200,
            &[("cache-control", "public, max-age=60")],
            Ok(()),
        ),
        ("§3 a request with a cookie", &[("cookie", "a=b")], 200, &[FRESH], Ok(())),
        (
            "§7.3 a cookie, with a heuristic lifetime",
            &[],
            200,
            &[("last-modified", A_THOUSAND_SECONDS_AGO), ("set-cookie", "a=b")],
            Err(Reason::SetCookie),
        ),
        ("§3 a 304 to a request without a condition", &[], 304, &[FRESH], Err(Reason::Status)),
        ("§3 a status that is not final", &[], 103, &[FRESH], Err(Reason::Status)),
        ("§3.3 a part without Content-Range", &[("range", "bytes=0-1")], 206, &[FRESH], Err(Reason::Range)),
        ("§3.3 a part", &[("range", "bytes=0-9")], 206, &[FRESH, ("content-range", "bytes 0-9/20")], Ok(())),
        (
            "RFC 9110 §15.3.7 a part that may lack fields",
            &[("range", "bytes=0-9"), ("if-range", "\"a\"")],
            206,
            &[FRESH, ("content-range", "bytes 0-9/20"), ("etag", "\"a\"")],
            Err(Reason::Range),
        ),
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
fn options_of_the_rule_apply_to_storing() {
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

    // A targeted field takes precedence over `Cache-Control` and `Expires`, if it is valid (RFC 9213).
    let targeted = changed(|rule| rule.targeted = vec![HeaderName::from_static("cdn-cache-control")]);
    let rows: &[(&str, Fields<'_>, Result<u64, &str>)] = &[
        (
            "the targeted field sets the lifetime",
            &[("cdn-cache-control", "max-age=9"), ("cache-control", "no-store")],
            Ok(9),
        ),
        (
            "the targeted field forbids storing",
            &[("cdn-cache-control", "no-store"), ("cache-control", "max-age=60")],
            Err("withheld"),
        ),
        ("no targeted field", &[("cache-control", "max-age=60")], Ok(60)),
        (
            "an invalid targeted field, with Expires",
            &[("cdn-cache-control", "a"), ("expires", IN_A_MINUTE)],
            Err("lifetime"),
        ),
        (
            "a targeted field that is no dictionary",
            &[("cdn-cache-control", "max-age=9, &&&"), ("cache-control", "max-age=60")],
            Ok(60),
        ),
        (
            "a targeted max-age that is no integer",
            &[("cdn-cache-control", "max-age=\"9\""), ("cache-control", "max-age=60")],
            Ok(60),
        ),
        (
            "a space in the targeted field",
            &[("cdn-cache-control", "max-age= 9"), ("cache-control", "max-age=60")],
            Ok(60),
        ),
        ("an empty targeted field", &[("cdn-cache-control", ""), ("cache-control", "max-age=60")], Ok(60)),
        ("a targeted field of spaces", &[("cdn-cache-control", "  "), ("expires", IN_A_MINUTE)], Ok(60)),
        (
            "an empty line of a targeted field",
            &[("cdn-cache-control", ""), ("cdn-cache-control", "max-age=9"), ("cache-control", "max-age=60")],
            Ok(60),
        ),
        (
            "several lines of a targeted field",
            &[("cdn-cache-control", "a"), ("cdn-cache-control", "max-age=9")],
            Ok(9),
        ),
        (
            "an empty member of a targeted field",
            &[("cdn-cache-control", "max-age=9,"), ("cache-control", "max-age=60")],
            Ok(60),
        ),
        (
            "a targeted max-age with a fraction",
            &[("cdn-cache-control", "max-age=9.5"), ("cache-control", "max-age=60")],
            Ok(60),
        ),
        (
            "a targeted max-age with a letter",
            &[("cdn-cache-control", "max-age=9x"), ("cache-control", "max-age=60")],
            Ok(60),
        ),
        (
            "a negative targeted max-age",
            &[("cdn-cache-control", "max-age=-9"), ("cache-control", "max-age=60")],
            Ok(60),
        ),
        (
            "a targeted max-age without a value",
            &[("cdn-cache-control", "max-age"), ("cache-control", "max-age=60")],
            Ok(60),
        ),
        (
            "a targeted max-age in capitals",
            &[("cdn-cache-control", "Max-Age=9"), ("cache-control", "max-age=60")],
            Ok(60),
        ),
        (
            "a targeted max-age with too many digits",
            &[("cdn-cache-control", "max-age=9999999999999999")],
            Err("lifetime"),
        ),
        (
            "a targeted field with an open string",
            &[("cdn-cache-control", "max-age=9, a=\"b"), ("cache-control", "max-age=60")],
            Ok(60),
        ),
        ("two targeted max-age", &[("cdn-cache-control", "max-age=60, max-age=90")], Ok(90)),
        ("parameters of targeted directives", &[("cdn-cache-control", "max-age=9;a=b, b;c")], Ok(9)),
        (
            "unknown targeted directives of every type",
            &[("cdn-cache-control", "max-age=9, a=(1 2);b, c=:YQ==:, d=1.5, e=?0")],
            Ok(9),
        ),
        (
            "a targeted no-store that is false",
            &[("cdn-cache-control", "no-store=?0, max-age=9"), ("cache-control", "max-age=60")],
            Ok(60),
        ),
        ("a targeted private with names", &[("cdn-cache-control", "private=\"a\", max-age=9")], Ok(9)),
        ("a targeted must-revalidate", &[("cdn-cache-control", "must-revalidate, max-age=9")], Ok(9)),
    ];
    for (what, fields, expected) in rows {
        let found = store_under(&targeted, &get(&[]), 200, fields).map(|stored| stored.lifetime);
        assert_eq!(found, expected.map(seconds).map_err(str::to_owned), "{what}");
    }
    // Without the option, the field is ignored.
    let untold = store(&[("cdn-cache-control", "max-age=9"), ("etag", "\"a\"")]);
    assert_eq!(untold.lifetime, Duration::ZERO);
}

#[test]
fn only_fields_of_the_representation_are_stored() {
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
        ("cdn-cache-control", "max-age=1"),
    ]);
    let mut names: Vec<_> = stored.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    // Without the fields of §3.1, with the date of arrival (RFC 9110 §6.6.1), and with `Accept-Ranges` (RFC 9110 §14.3).
    assert_eq!(names, ["accept-ranges", "cache-control", "cdn-cache-control", "date", "x-e", "x-e"]);
    assert_eq!(stored.headers["date"], NOW);
}
