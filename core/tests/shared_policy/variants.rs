//! Resources that vary (§4.1).

use bytes::Bytes;
use http::HeaderName;
use larder_core::policy::BodyLength;
use larder_core::shared::SharedRecord;
use larder_core::shared::policy::{OnRecord, Placement, SharedDecision, SharedOnRequest, SharedOnResponse};
use larder_core::{RequestView, Variants};

use super::engine::{Fields, now, response};
use super::{get, policy, record_of};

#[test]
fn variants_are_stored_and_selected() {
    // §4.1.
    let fields: Fields<'_> = &[("cache-control", "max-age=60"), ("vary", "accept-language")];
    let admitted = |language: &str, known: Option<Variants>, fields: Fields<'_>| {
        let request = get(&[("accept-language", language)]);
        let view = RequestView::from(&request);
        let SharedOnRequest::Lookup(lookup) = policy().on_request(&view) else { panic!() };
        let decision = match lookup.on_record(Ok(known.map(SharedRecord::Variants)), &view, now()) {
            OnRecord::Decided(decision) => decision,
            OnRecord::Select(select) => select.on_record(Ok(None), &view, now()),
        };
        let SharedDecision::Forward(forward) = decision else { panic!() };
        match forward.on_response(&response(200, fields), BodyLength::Known(0), now(), now()) {
            SharedOnResponse::Admit(admit) => admit.with_body(Bytes::new()),
            other => panic!("{other:?}"),
        }
    };
    let Placement::FirstVariant(english, variants) = admitted("en, de", None, fields).place(7) else {
        panic!()
    };
    assert_eq!(variants.names(), ["accept-language"]);
    // Order and case have no meaning in a list of languages.
    assert_eq!(admitted("DE,  en", Some(variants.clone()), fields).place(8), Placement::Target);
    let Placement::NewVariant(french, 7) = admitted("fr", Some(variants.clone()), fields).place(8) else {
        panic!()
    };
    assert_ne!(french, english);
    // A response that varies by fewer fields keeps the others. One that varies by more doesn't.
    let plain: Fields<'_> = &[("cache-control", "max-age=60")];
    assert_eq!(admitted("en, de", Some(variants.clone()), plain).place(8), Placement::Target);
    let wider: Fields<'_> = &[("cache-control", "max-age=60"), ("vary", "origin")];
    let widened = admitted("en, de", Some(variants), wider).place(8);
    let Placement::Widened(secondary, variants, 7) = widened else { panic!("{widened:?}") };
    assert_ne!(secondary, english);
    assert_eq!(variants.names(), ["accept-language", "origin"]);
}

#[test]
fn negotiated_codings_are_named_in_vary() {
    let said = |known: Option<Variants>, fields: Fields<'_>| {
        let request = get(&[("accept-encoding", "gzip")]);
        let view = RequestView::from(&request);
        let SharedOnRequest::Lookup(lookup) = policy().on_request(&view) else { panic!() };
        let decision = match lookup.on_record(Ok(known.map(SharedRecord::Variants)), &view, now()) {
            OnRecord::Decided(decision) => decision,
            OnRecord::Select(select) => select.on_record(Ok(None), &view, now()),
        };
        let SharedDecision::Forward(forward) = decision else { panic!() };
        let parts = response(200, fields);
        let found = forward.on_response(&parts, BodyLength::Known(0), now(), now());
        let SharedOnResponse::Admit(admit) = found else { panic!("{found:?}") };
        let mut passed = parts.headers;
        admit.write_to(&mut passed);
        let kept = record_of(&admit.with_body(Bytes::new())).headers;
        let vary = |headers: &http::HeaderMap| {
            let fields = headers.get_all("vary").iter().map(|field| field.to_str().unwrap().to_owned());
            fields.collect::<Vec<_>>().join(", ")
        };
        assert_eq!(vary(&passed), vary(&kept));
        vary(&kept)
    };
    let fresh = ("cache-control", "max-age=60");
    let known = || Some(Variants::new(7, vec![HeaderName::from_static("accept-encoding")]));
    assert_eq!(said(None, &[fresh]), "");
    assert_eq!(said(None, &[fresh, ("content-encoding", "gzip")]), "Accept-Encoding");
    assert_eq!(said(known(), &[fresh]), "Accept-Encoding");
    assert_eq!(said(known(), &[fresh, ("vary", "origin")]), "origin, Accept-Encoding");
    assert_eq!(said(known(), &[fresh, ("vary", "Accept-ENCODING")]), "Accept-ENCODING");
}
