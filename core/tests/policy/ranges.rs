//! Ranges of stored and of new responses (RFC 9110 §14).

use http::{HeaderMap, Method, StatusCode};
use larder_core::policy::{CommitResult, Decision};
use larder_core::{Kind, Reason, Record};

use super::conditions::{BEFORE, MODIFIED};
use super::engine::{Fields, TTL, entry, headers, now, request, response, rule, with};
use super::hits::hit;
use super::{
    AS_IT_IS, Found, Reasons, Tweak, admitted, answered, ask, decoded, forward, lines, stored, tweaked,
};

/// A range is cut from a whole stored response. Otherwise the request is a miss (RFC 9110 §14).
pub(super) fn ranges() -> Reasons {
    const FIRST: (&str, &str) = ("range", "bytes=0-1");
    const SLACK: Tweak = |rule| rule.stale_while_revalidate = Some(TTL);
    let (tagged, weak, dated) = (
        || entry(&[("etag", "\"e\"")]),
        || entry(&[("etag", "W/\"e\"")]),
        || entry(&[("last-modified", MODIFIED)]),
    );
    let found = || stored(tagged());
    let not_found = with(tagged(), |entry| entry.status = StatusCode::NOT_FOUND);
    let stale = || stored(with(tagged(), |entry| entry.stored_at = now() - TTL));
    let refused = |units| stored(entry(&[("accept-ranges", units)]));
    let table: Vec<(&str, Tweak, Fields<'_>, Found, &str)> = vec![
        ("the first bytes", AS_IT_IS, &[FIRST], found(), "206 bytes 0-1/6 st"),
        ("from a byte to the end", AS_IT_IS, &[("range", "bytes=4-")], found(), "206 bytes 4-5/6 ed"),
        (
            "the last bytes of a stored body",
            AS_IT_IS,
            &[("range", "bytes=-3")],
            found(),
            "206 bytes 3-5/6 red",
        ),
        ("beyond the end (RFC 9110 §15.5.17)", AS_IT_IS, &[("range", "bytes=6-")], found(), "416 bytes */6 "),
        ("several ranges (RFC 9110 §14.2)", AS_IT_IS, &[("range", "bytes=0-0,2-2")], found(), "200 stored"),
        ("another unit (RFC 9110 §14.2)", AS_IT_IS, &[("range", "lines=0-1")], found(), "200 stored"),
        ("a stored 404 (RFC 9110 §14.2)", AS_IT_IS, &[FIRST], stored(not_found), "404 stored"),
        (
            "If-Range with the stored tag (RFC 9110 §13.1.5)",
            AS_IT_IS,
            &[FIRST, ("if-range", "\"e\"")],
            found(),
            "206 bytes 0-1/6 st",
        ),
        ("If-Range with another tag", AS_IT_IS, &[FIRST, ("if-range", "\"f\"")], found(), "200 stored"),
        (
            "If-Range with a weak tag",
            AS_IT_IS,
            &[FIRST, ("if-range", "W/\"e\"")],
            stored(weak()),
            "200 stored",
        ),
        (
            "If-Range with the stored date",
            AS_IT_IS,
            &[FIRST, ("if-range", MODIFIED)],
            stored(dated()),
            "206 bytes 0-1/6 st",
        ),
        (
            "If-Range with an earlier date",
            AS_IT_IS,
            &[FIRST, ("if-range", BEFORE)],
            stored(dated()),
            "200 stored",
        ),
        (
            "a matching If-None-Match (RFC 9110 §13.2.2)",
            AS_IT_IS,
            &[FIRST, ("if-none-match", "\"e\"")],
            found(),
            "304 ",
        ),
        ("stale within stale_while_revalidate", SLACK, &[FIRST], stale(), "206 bytes 0-1/6 st"),
        (
            "stale, with max-stale",
            AS_IT_IS,
            &[FIRST, ("cache-control", "max-stale")],
            stale(),
            "206 bytes 0-1/6 st",
        ),
        ("stale", AS_IT_IS, &[FIRST], stale(), "expired"),
        ("nothing stored", AS_IT_IS, &[FIRST], Ok(None), "absent"),
        ("nothing stored, and another unit", AS_IT_IS, &[("range", "items=0-1")], Ok(None), "bypass range"),
        ("nothing stored, and no unit", AS_IT_IS, &[("range", "0-1")], Ok(None), "bypass range"),
        (
            "nothing stored, and two Range fields",
            AS_IT_IS,
            &[FIRST, ("range", "bytes=3-4")],
            Ok(None),
            "bypass range",
        ),
        ("nothing stored, and several ranges", AS_IT_IS, &[("range", "bytes=0-0,2-2")], Ok(None), "absent"),
        ("the store is down", AS_IT_IS, &[FIRST], Err(Reason::Down), "down"),
        ("a range with no-cache", AS_IT_IS, &[FIRST, ("cache-control", "no-cache")], found(), "no-cache"),
        ("Accept-Ranges: none (RFC 9110 §14.3)", AS_IT_IS, &[FIRST], refused("None"), "200 stored"),
        ("none in a list of Accept-Ranges", AS_IT_IS, &[FIRST], refused("lines, none"), "200 stored"),
        ("another unit in Accept-Ranges", AS_IT_IS, &[FIRST], refused("lines"), "206 bytes 0-1/6 st"),
        (
            "nothing stored, with only-if-cached (RFC 9111 §5.2.1.7)",
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

        // `Range` has no meaning in a HEAD (RFC 9110 §14.2).
        match ask(rule(Kind::Read), &request(Method::HEAD, &[FIRST]), found, now()) {
            Decision::Hit(hit) => assert_ne!(hit.into_response().status(), StatusCode::PARTIAL_CONTENT),
            Decision::Miss(_) => {}
            other => panic!("{why}: {other:?}"),
        }
    }
    seen
}

#[test]
fn ranges_are_cut_from_stored_responses() {
    ranges();
}

/// A handler that answers a `Range` with 200 has sent the whole response, which is stored and cut (RFC 9110 §14.2). Each row has
/// the request, the fields that the handler sees, its response, and the client's response. `Err` is a response that isn't stored.
pub(super) fn range_fills() -> Reasons {
    const SMALL: Tweak = |rule| rule.max_body = 2;
    const PARTS_TOO: Tweak = |rule| {
        rule.ttl_for =
            [206, 404, 416].map(|status| (StatusCode::from_u16(status).unwrap(), Some(TTL))).to_vec();
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
        ("the whole as a range", AS_IT_IS, &[ALL], &[], 200, &[TAG], Ok("206 bytes 0-5/6 stored")),
        (
            "the whole as a range, with Content-Length",
            AS_IT_IS,
            &[ALL],
            &[],
            200,
            &[("content-length", "6")],
            Ok("206 bytes 0-5/6 stored"),
        ),
        (
            "the whole as a range, with If-Range of this tag",
            AS_IT_IS,
            &[ALL, THIS],
            &[],
            200,
            &[TAG],
            Ok("206 bytes 0-5/6 stored"),
        ),
        (
            "the whole as a range, with If-Range of another tag",
            AS_IT_IS,
            &[ALL, OTHER],
            &[],
            200,
            &[TAG],
            Ok("200 stored"),
        ),
        (
            "the whole as a range, with a matching If-None-Match",
            AS_IT_IS,
            &[ALL, ("if-none-match", "\"e\"")],
            &[],
            200,
            &[TAG],
            Ok("304 "),
        ),
        ("a part of a whole response", AS_IT_IS, &[FIRST], &[FIRST], 200, &[TAG], Ok("206 bytes 0-1/6 st")),
        (
            "a part of a response with Content-Length",
            AS_IT_IS,
            &[FIRST],
            &[FIRST],
            200,
            &[("content-length", "6")],
            Ok("206 bytes 0-1/6 st"),
        ),
        (
            "a part, with If-Range of this tag",
            AS_IT_IS,
            &[FIRST, THIS],
            &[FIRST, THIS],
            200,
            &[TAG],
            Ok("206 bytes 0-1/6 st"),
        ),
        (
            "a part, with If-Range of another tag",
            AS_IT_IS,
            &[FIRST, OTHER],
            &[FIRST, OTHER],
            200,
            &[TAG],
            Ok("200 stored"),
        ),
        (
            "a part, with If-Range of this date",
            AS_IT_IS,
            &[FIRST, ("if-range", MODIFIED)],
            &[FIRST, ("if-range", MODIFIED)],
            200,
            &[("last-modified", MODIFIED)],
            Ok("206 bytes 0-1/6 st"),
        ),
        (
            "the last bytes of a whole response",
            AS_IT_IS,
            &[("range", "bytes=-2")],
            &[("range", "bytes=-2")],
            200,
            &[TAG],
            Ok("206 bytes 4-5/6 ed"),
        ),
        (
            "beyond the end of a whole response",
            AS_IT_IS,
            &[("range", "bytes=6-")],
            &[("range", "bytes=6-")],
            200,
            &[TAG],
            Ok("416 bytes */6 "),
        ),
        (
            "several ranges of a whole response",
            AS_IT_IS,
            &[("range", "bytes=0-,2-3")],
            &[("range", "bytes=0-,2-3")],
            200,
            &[TAG],
            Ok("200 stored"),
        ),
        (
            "the whole as a range, with Accept-Ranges: none",
            AS_IT_IS,
            &[ALL],
            &[],
            200,
            &[REFUSES],
            Ok("200 stored"),
        ),
        ("a part, with Accept-Ranges: none", AS_IT_IS, &[FIRST], &[FIRST], 200, &[REFUSES], Ok("200 stored")),
        ("a part of a storable 404", PARTS_TOO, &[FIRST], &[FIRST], 404, &[], Ok("404 stored")),
        ("the handler's own 206", AS_IT_IS, &[FIRST], &[FIRST], 206, &[PART], Err((Reason::Range, 206))),
        (
            "the handler's part with status 200",
            AS_IT_IS,
            &[FIRST],
            &[FIRST],
            200,
            &[PART],
            Err((Reason::Range, 200)),
        ),
        (
            "the handler's own 206, with ttl_for(206)",
            PARTS_TOO,
            &[FIRST],
            &[FIRST],
            206,
            &[PART],
            Err((Reason::Range, 206)),
        ),
        (
            "the handler's own 416, with ttl_for(416)",
            PARTS_TOO,
            &[FIRST],
            &[FIRST],
            416,
            &[],
            Err((Reason::Range, 416)),
        ),
        (
            "a 206 with a cookie",
            AS_IT_IS,
            &[FIRST],
            &[FIRST],
            206,
            &[PART, ("set-cookie", "a=1")],
            Err((Reason::SetCookie, 206)),
        ),
        (
            "the whole as a range, too large to store",
            SMALL,
            &[ALL],
            &[],
            200,
            &[TAG],
            Err((Reason::Size, 206)),
        ),
        (
            "too large to store, with Accept-Ranges: none",
            SMALL,
            &[ALL],
            &[],
            200,
            &[REFUSES],
            Err((Reason::Size, 200)),
        ),
        (
            "too large to store, with If-Range",
            SMALL,
            &[ALL, THIS],
            &[],
            200,
            &[TAG],
            Err((Reason::Size, 200)),
        ),
        (
            "a part of a response too large to store",
            SMALL,
            &[FIRST],
            &[FIRST],
            200,
            &[TAG],
            Err((Reason::Size, 200)),
        ),
        ("the whole as a range, of a 404", AS_IT_IS, &[ALL], &[], 404, &[], Err((Reason::Status, 404))),
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
                assert_eq!(pass.cache_status().reason(), Some(*reason), "{why}");
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
                // A follower gets the same response from the stored one.
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
fn whole_responses_to_ranges_are_stored_and_cut() {
    range_fills();
}

/// Responses that can be cut have `Accept-Ranges`, unless the handler sets it (RFC 9110 §14.3).
#[test]
fn responses_that_can_be_cut_have_accept_ranges() {
    const NOT_FOUND: Tweak = |rule| rule.ttl_for = vec![(StatusCode::NOT_FOUND, Some(TTL))];
    for (why, kind, method, tweak, status, fields, body, expected) in [
        ("a 200 of a read", Kind::Read, Method::GET, AS_IT_IS, 200, &[][..], "new", Some("bytes")),
        ("a 200 without a body", Kind::Read, Method::GET, AS_IT_IS, 200, &[], "", None),
        ("a stored 404", Kind::Read, Method::GET, NOT_FOUND, 404, &[], "new", None),
        (
            "a read whose handler sets Accept-Ranges",
            Kind::Read,
            Method::GET,
            AS_IT_IS,
            200,
            &[("accept-ranges", "none")],
            "new",
            Some("none"),
        ),
        ("a 201 of a write-through", Kind::Write, Method::PUT, AS_IT_IS, 201, &[], "new", Some("bytes")),
        (
            "a write-through whose handler sets Accept-Ranges",
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

/// The fields of a 206 (RFC 9110 §15.3.7) and of a 416 (§15.5.17).
#[test]
fn partial_and_unsatisfiable_responses_have_the_required_fields() {
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
