//! Ranges: parts of stored and of new responses (RFC 9110 §14).

use http::{HeaderMap, Method, StatusCode};
use larder_core::policy::{CommitResult, Decision};
use larder_core::{Entry, Kind, Reason, Record};

use super::conditions::{BEFORE, MODIFIED};
use super::engine::{Fields, TTL, entry, headers, now, request, response, rule};
use super::hits::hit;
use super::{
    AS_IT_IS, Found, Reasons, Tweak, admitted, answered, ask, decoded, forward, lines, stored, tweaked,
};

/// RFC 9110 §14: what is stored whole is cut. A part of anything else is a miss.
pub(super) fn ranges() -> Reasons {
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
pub(super) fn range_fills() -> Reasons {
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
