//! Keys: the target, the scheme, the host, and spellings of one target (§2).

use bytes::Bytes;
use http::HeaderName;
use http::uri::Scheme;
use larder_core::policy::BodyLength;
use larder_core::shared::policy::{OnRecord, Placement, SharedDecision, SharedOnRequest, SharedOnResponse};
use larder_core::shared::{SchemeSource, SharedRecord};
use larder_core::{Reason, RequestView, Variants};

use super::engine::{Fields, now, response, with};
use super::{ask, get, policy, rule, stored};

#[test]
fn keys_contain_target_scheme_and_host() {
    let key = |uri: &str, host: &str| {
        let mut request = get(&[("host", host)]);
        request.uri = uri.parse().unwrap();
        rule().key(&RequestView::from(&request)).name().to_owned()
    };
    assert_eq!(key("/a/b?z=1&a=2", "Shop.example"), "p:/a/b?z=1&a=2|site=http://shop.example");
    let keys = [
        key("/a?x=1&y=2", "h"),
        key("/a?y=2&x=1", "h"),
        key("/a", "h"),
        key("/a/", "h"),
        key("/a", "i"),
        key("/a%7Csite=http://h", "h"),
        key("https://h/a", "h"),
        key("ftp://h/a", "h"),
        key("/a%2Fb", "h"),
        key("/a/b", "h"),
    ];
    let distinct: std::collections::HashSet<_> = keys.iter().collect();
    assert_eq!(distinct.len(), keys.len(), "{keys:?}");
    let uri = "/a".parse().unwrap();
    assert_eq!(rule().key_of("http", &uri, "h").name(), key("/a", "h"));
    assert_eq!(rule().key_of("https", &uri, "h").name(), key("https://h/a", "h"));
}

#[test]
fn keys_use_the_scheme_of_the_rule() {
    let scheme = |source: SchemeSource, uri: &str, fields: Fields<'_>| {
        let rule = with(rule(), |rule| rule.scheme = source);
        let mut request = get(fields);
        request.uri = uri.parse().unwrap();
        let key = rule.key(&RequestView::from(&request)).name().to_owned();
        key.rsplit_once("|site=").unwrap().1.split_once("://").unwrap().0.to_owned()
    };
    let forwarded: Fields<'_> = &[("x-forwarded-proto", "HTTPS")];
    let rows = [
        (SchemeSource::Uri, "/a", forwarded, "http"),
        (SchemeSource::Uri, "https://h/a", &[], "https"),
        (SchemeSource::Always(Scheme::HTTPS), "http://h/a", &[], "https"),
        (SchemeSource::Forwarded, "/a", forwarded, "https"),
        (SchemeSource::Forwarded, "/a", &[("forwarded", "for=1.2.3.4; proto=https")], "https"),
        (SchemeSource::Forwarded, "https://h/a", &[("x-forwarded-proto", "http")], "http"),
        (SchemeSource::Forwarded, "https://h/a", &[("x-forwarded-proto", "gopher")], "https"),
        (SchemeSource::Forwarded, "/a", &[], "http"),
    ];
    for (source, uri, fields, expected) in rows {
        assert_eq!(scheme(source.clone(), uri, fields), expected, "{source:?} {uri} {fields:?}");
    }
}

/// Returns the reason of a request with these fields, and the placement of its response, for a known record.
fn placed(uri: &str, fields: Fields<'_>, known: Option<SharedRecord>) -> (Reason, Placement) {
    let mut request = get(fields);
    request.uri = uri.parse().unwrap();
    let view = RequestView::from(&request);
    let SharedOnRequest::Lookup(lookup) = policy().on_request(&view) else { panic!("not looked up") };
    let decision = match lookup.on_record(Ok(known), &view, now()) {
        OnRecord::Decided(decision) => decision,
        OnRecord::Select(select) => select.on_record(Ok(None), &view, now()),
    };
    let SharedDecision::Forward(forward) = decision else { panic!("answered") };
    let reason = forward.reason();
    let parts = response(200, &[("cache-control", "max-age=60")]);
    match forward.on_response(&parts, BodyLength::Known(0), now(), now()) {
        SharedOnResponse::Admit(admit) => (reason, admit.with_body(Bytes::new()).place(7)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn spellings_and_forwarding_fields_select_variants() {
    let rows: &[(&str, Fields<'_>, &str)] = &[
        ("/thing%73/7", &[], "larder-spelling"),
        ("/things/7?a=%62", &[], "larder-spelling"),
        ("/things/7?", &[], "larder-spelling"),
        ("/things/7", &[("x-forwarded-host", "elsewhere.example")], "x-forwarded-host"),
        ("/things/7", &[("x-forwarded-proto", "https")], "x-forwarded-proto"),
        ("/things/7", &[("x-original-url", "/admin")], "x-original-url"),
        ("/things/7", &[("x-rewrite-url", "/admin")], "x-rewrite-url"),
    ];
    for (uri, fields, name) in rows {
        // Nothing is stored.
        let (reason, placement) = placed(uri, fields, None);
        let Placement::FirstVariant(secondary, variants) = placement else { panic!("{placement:?}") };
        assert_eq!(
            (reason, variants.names().len(), variants.names()[0].as_str()),
            (Reason::Absent, 1, *name)
        );
        // The canonical request doesn't get it.
        let (reason, placement) = placed("/things/7", &[], Some(SharedRecord::Variants(variants.clone())));
        let Placement::NewVariant(usual, id) = placement else { panic!("{placement:?}") };
        assert!(reason == Reason::Variant && usual != secondary && id == variants.id());
        // Neither does a request with another spelling.
        let other = match *name {
            "larder-spelling" => placed("/%74hings/7", &[], Some(SharedRecord::Variants(variants.clone()))),
            name => placed("/things/7", &[(name, "other")], Some(SharedRecord::Variants(variants.clone()))),
        };
        assert!(matches!(other.1, Placement::NewVariant(..)), "{other:?}");
        // A request with the same spelling does.
        let again = placed(uri, fields, Some(SharedRecord::Variants(variants.clone())));
        assert!(matches!(again.1, Placement::Target), "{again:?}");
        assert_eq!(variants.secondary_keys().collect::<Vec<_>>(), [secondary]);
        // The entry of the canonical request doesn't answer it.
        let (reason, placement) = placed(uri, fields, stored(&[("cache-control", "max-age=60")]));
        assert!(
            reason == Reason::Variant && matches!(placement, Placement::FirstVariant(..)),
            "{placement:?}"
        );
        // A record that doesn't separate them yet is widened.
        let narrow = Variants::new(3, vec![HeaderName::from_static("accept")]);
        let (_, placement) = placed(uri, fields, Some(SharedRecord::Variants(narrow)));
        assert!(matches!(placement, Placement::Widened(_, _, 3)), "{placement:?}");
    }
    // A client can't claim another spelling in a field.
    let (_, placement) = placed("/thing%73/7", &[], None);
    let Placement::FirstVariant(_, variants) = placement else { panic!("{placement:?}") };
    let posing: Fields<'_> = &[("larder-spelling", "/thing%73/7")];
    let (_, placement) = placed("/things/7", posing, Some(SharedRecord::Variants(variants)));
    assert!(matches!(placement, Placement::NewVariant(..)), "{placement:?}");
}

#[test]
fn followers_share_only_the_same_spelling() {
    let mut request = get(&[]);
    request.uri = "/thing%73/7".parse().unwrap();
    let SharedDecision::Forward(forward) = ask(&policy(), &request, None, now()) else { panic!() };
    assert!(forward.on_filled(stored(&[("cache-control", "max-age=60")]), now()).is_err());
    let SharedDecision::Forward(forward) = ask(&policy(), &get(&[]), None, now()) else { panic!() };
    assert!(forward.on_filled(stored(&[("cache-control", "max-age=60")]), now()).is_ok());
}
