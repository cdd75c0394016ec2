//! Writes invalidate (§4.4).

use std::sync::Arc;

use http::Method;
use larder_core::RequestView;
use larder_core::policy::BodyLength;
use larder_core::shared::policy::{OriginFailed, SharedOnRequest, SharedOnResponse, SharedPolicy};

use super::engine::{Fields, now, request, response, with};
use super::{A_THOUSAND_SECONDS_AGO, policy, rule};

#[test]
fn writes_invalidate() {
    let rows: &[(&str, u16, Fields<'_>, bool, &[&str])] = &[
        ("§4.4 success", 200, &[], true, &[]),
        ("§4.4 success", 303, &[], true, &[]),
        ("§4.4 no success", 404, &[], false, &[]),
        ("§4.4 no success", 409, &[("location", "/x")], false, &[]),
        ("it may have taken effect", 408, &[], true, &[]),
        ("it may have taken effect", 500, &[("location", "/x")], true, &[]),
        ("it may have taken effect", 502, &[], true, &[]),
        ("it may have taken effect", 504, &[], true, &[]),
        ("it may have taken effect", 599, &[], true, &[]),
        ("§4.4 Location", 201, &[("location", "/x?y")], true, &["/x?y"]),
        ("§4.4 Content-Location", 200, &[("content-location", "8")], true, &["/things/8"]),
        (
            "§4.4 a Content-Location on another host",
            200,
            &[("location", "http://shop.example/x"), ("content-location", "http://other.example/y")],
            true,
            &["/x"],
        ),
    ];
    for (what, status, fields, evicts, also) in rows {
        let request = request(Method::PUT, &[("host", "shop.example")]);
        let SharedOnRequest::Write(write) = policy().on_request(&RequestView::from(&request)) else {
            panic!()
        };
        let found = write.on_response(&response(*status, fields), BodyLength::Known(0), now(), now());
        let SharedOnResponse::Pass(pass) = found else { panic!("{what}: {found:?}") };
        let others: Vec<_> = pass.also().iter().map(ToString::to_string).collect();
        assert_eq!(
            (pass.evicts(), others),
            (*evicts, also.iter().map(ToString::to_string).collect()),
            "{what}: {status}"
        );
    }
}

#[test]
fn server_error_evicts_unless_the_rule_says_otherwise() {
    let policy = SharedPolicy::new(Arc::new(with(rule(), |rule| rule.evict_on_error = false)));
    let request = request(Method::PUT, &[]);
    for (status, evicts) in [(500, false), (408, false), (204, true)] {
        let SharedOnRequest::Write(write) = policy.on_request(&RequestView::from(&request)) else { panic!() };
        let found = write.on_response(&response(status, &[]), BodyLength::Known(0), now(), now());
        assert!(
            matches!(&found, SharedOnResponse::Pass(pass) if pass.evicts() == evicts),
            "{status} {found:?}"
        );
    }
}

#[test]
fn write_without_a_response_evicts() {
    let request = request(Method::DELETE, &[]);
    let SharedOnRequest::Write(write) = policy().on_request(&RequestView::from(&request)) else { panic!() };
    let mut made_up = response(502, &[]);
    made_up.extensions.insert(OriginFailed);
    let found = write.on_response(&made_up, BodyLength::Known(0), now(), now());
    assert!(matches!(&found, SharedOnResponse::Pass(pass) if pass.evicts()), "{found:?}");
}

#[test]
fn post_with_content_location_answers_later_gets() {
    // RFC 9110 §9.3.3.
    let fresh = ("cache-control", "max-age=60");
    let here = ("content-location", "/things/7");
    let rows: &[(Method, u16, Fields<'_>, bool)] = &[
        (Method::POST, 200, &[fresh, here], true),
        (Method::POST, 200, &[fresh], false),
        (Method::POST, 200, &[fresh, ("content-location", "/things/8")], false),
        (Method::POST, 200, &[here, ("last-modified", A_THOUSAND_SECONDS_AGO)], false),
        (Method::POST, 201, &[fresh, here], false),
        (Method::POST, 200, &[("cache-control", "max-age=60, no-store"), here], false),
        (Method::PUT, 200, &[fresh, here], false),
    ];
    for (method, status, fields, expected) in rows {
        let request = request(method.clone(), &[]);
        let SharedOnRequest::Write(write) = policy().on_request(&RequestView::from(&request)) else {
            panic!()
        };
        let found = write.on_response(&response(*status, fields), BodyLength::Known(10), now(), now());
        assert_eq!(matches!(found, SharedOnResponse::Admit(_)), *expected, "{method} {status} {fields:?}");
    }
}

#[test]
fn post_to_another_spelling_answers_no_later_gets() {
    let answer: Fields<'_> = &[("cache-control", "max-age=60"), ("content-location", "/thing%73/7")];
    let mut request = request(Method::POST, &[]);
    request.uri = "/thing%73/7".parse().unwrap();
    let SharedOnRequest::Write(write) = policy().on_request(&RequestView::from(&request)) else { panic!() };
    let found = write.on_response(&response(200, answer), BodyLength::Known(10), now(), now());
    assert!(matches!(&found, SharedOnResponse::Pass(pass) if pass.evicts()), "{found:?}");
}
