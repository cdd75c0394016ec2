//! Resources that vary (RFC 9111 §4.1).

use http::{Method, request};
use larder_core::policy::{Decision, OnEntry, Placement, Select};
use larder_core::{Entry, Kind, MAX_VARIANTS, Reason, Record, SecondaryKey, Variants};

use super::engine::{Fields, now, request, rule, with};
use super::hits::hit;
use super::{Reasons, admitted, cache_status, decoded, forward, lookup, miss, stored};

const VARIES: Fields<'static> = &[("vary", "accept-language")];

pub(super) fn speaking(language: &str) -> request::Parts {
    request(Method::GET, &[("accept-language", language)])
}

/// Returns the record of a resource that varies, with its first variant.
pub(super) fn first_variant(request: &request::Parts) -> (Variants, SecondaryKey, Entry) {
    let mut admitted = admitted(forward(rule(Kind::Read), request), 200, VARIES, "new");
    match admitted.place(7) {
        Placement::FirstVariant(secondary, variants) => (variants, secondary, decoded(&admitted)),
        other => panic!("{other:?}"),
    }
}

pub(super) fn select(request: &request::Parts, variants: &Variants) -> Select {
    let found = Ok(Some(Record::Variants(variants.clone())));
    match lookup(rule(Kind::Read), request).on_entry(found, &request.into(), now()) {
        OnEntry::Select(select) => select,
        other @ OnEntry::Decided(_) => panic!("{other:?}"),
    }
}

fn another_variant(request: &request::Parts, variants: &Variants, fields: Fields<'_>) -> (Placement, Entry) {
    let forward = miss(select(request, variants).on_entry(Ok(None), &request.into(), now()));
    assert_eq!(forward.reason(), Reason::Variant);
    assert_eq!(forward.secondary_key(), Some(variants.secondary_key(&request.headers)));
    let mut admitted = admitted(forward, 200, fields, "new");
    let placement = admitted.place(8);
    (placement, decoded(&admitted))
}

/// Variants of a resource, from the first on (RFC 9111 §4.1).
pub(super) fn variants() -> Reasons {
    let (french, german) = (speaking("fr"), speaking("de"));
    let (variants, secondary, entry) = first_variant(&french);
    assert_eq!((variants.id(), entry.variant), (7, 7));
    assert_eq!(variants.names(), ["accept-language"]);
    assert_eq!(variants.secondary_keys().collect::<Vec<_>>(), [secondary]);

    // The same variant is found under its key.
    let again = select(&french, &variants);
    assert_eq!(again.secondary_key(&(&french).into()), secondary);
    let response = hit(again.on_entry(stored(entry.clone()), &(&french).into(), now())).into_response();
    assert_eq!(response.headers()["vary"], "accept-language, Authorization, Cookie", "others vary by it too");

    // Another variant is missing, and is listed once it is stored.
    assert_ne!(select(&german, &variants).secondary_key(&(&german).into()), secondary);
    let (Placement::NewVariant(listed, 7), second) = another_variant(&german, &variants, VARIES) else {
        panic!("not listed");
    };
    assert_eq!(second.variant, 7);
    let mut both = variants.clone();
    assert_eq!(both.add(listed), None);
    // A listed variant that was lost, or is refreshed, keeps its key.
    assert_eq!(another_variant(&french, &both, VARIES).0, Placement::Target);

    // A variant of a record that is gone is an orphan.
    let forward = miss(select(&french, &Variants::new(8, both.names().to_vec())).on_entry(
        stored(entry.clone()),
        &(&french).into(),
        now(),
    ));
    assert_eq!(forward.reason(), Reason::Variant);
    let mut seen: Reasons = [forward.reason()].into();
    // A record of variants is not a variant.
    let nested = Ok(Some(Record::Variants(both.clone())));
    assert_eq!(
        miss(select(&french, &both).on_entry(nested, &(&french).into(), now())).reason(),
        Reason::Variant
    );

    // Reasons pass through the selection.
    for (fields, found, expected) in [
        (&[("accept-language", "fr")][..], Err(Reason::Down), Reason::Down),
        (&[("accept-language", "fr")], Err(Reason::Unreadable), Reason::Unreadable),
        (&[("accept-language", "fr"), ("cache-control", "no-cache")], stored(entry.clone()), Reason::NoCache),
    ] {
        let request = request(Method::GET, fields);
        let forward = miss(select(&request, &both).on_entry(found, &(&request).into(), now()));
        assert_eq!(forward.reason(), expected);
        seen.insert(expected);
    }
    let only = request(Method::GET, &[("cache-control", "only-if-cached")]);
    let Decision::Unsatisfiable(answer) = select(&only, &both).on_entry(Ok(None), &(&only).into(), now())
    else {
        panic!("satisfied");
    };
    assert_eq!(cache_status(answer.into_response().headers()), "Larder; detail=variant");

    // A request that waited for a variant gets that one, and none of an older record.
    let waiting = || miss(select(&french, &both).on_entry(Ok(None), &(&french).into(), now()));
    assert!(waiting().on_filled(Some(Record::Response(entry.clone())), now()).is_ok());
    assert!(
        waiting().on_filled(Some(Record::Response(with(entry, |entry| entry.variant = 8))), now()).is_err()
    );
    seen
}

#[test]
fn one_resource_has_several_variants() {
    variants();
}

/// A response that varies by fewer fields keeps the other variants. One that varies by more makes all fields select from then on
/// (RFC 9111 §4.1).
#[test]
fn resource_varies_by_every_field_that_any_response_named() {
    let (variants, ..) = first_variant(&speaking("fr"));
    let german = speaking("de");
    for (fields, expected) in [
        (&[("vary", "origin")][..], &["accept-language", "origin"][..]),
        (&[("vary", "accept-language, origin")], &["accept-language", "origin"]),
        (
            &[("vary", "accept-language"), ("content-encoding", "gzip")],
            &["accept-encoding", "accept-language"],
        ),
        (&[("access-control-allow-origin", "https://a.example")], &["accept-language", "origin"]),
    ] {
        let (Placement::Widened(secondary, wider, 7), entry) = another_variant(&german, &variants, fields)
        else {
            panic!("{fields:?}");
        };
        assert_eq!(wider.names(), expected);
        assert_eq!((wider.id(), entry.variant), (8, 8));
        assert_eq!(wider.secondary_keys().collect::<Vec<_>>(), [secondary]);
    }
    for fields in [&[][..], &[("vary", "Accept-Language,"), ("vary", "ACCEPT-LANGUAGE")]] {
        assert!(matches!(another_variant(&german, &variants, fields).0, Placement::NewVariant(_, 7)));
        assert_eq!(another_variant(&speaking("fr"), &variants, fields).0, Placement::Target);
    }
}

#[test]
fn oldest_variant_is_dropped_for_a_new_one() {
    let (mut variants, first, _) = first_variant(&speaking("0"));
    let mut dropped = Vec::new();
    for language in 1..=MAX_VARIANTS {
        let (Placement::NewVariant(secondary, _), _) =
            another_variant(&speaking(&language.to_string()), &variants, VARIES)
        else {
            panic!("{language} is not stored");
        };
        dropped.extend(variants.add(secondary));
    }
    assert_eq!(dropped, [first]);
    assert!(matches!(another_variant(&speaking("0"), &variants, VARIES).0, Placement::NewVariant(..)));
}

#[test]
fn encoded_response_varies_without_a_vary_field() {
    let request = request(Method::GET, &[("accept-encoding", "gzip")]);
    let mut filled =
        admitted(forward(rule(Kind::Read), &request), 200, &[("content-encoding", "gzip")], "new");
    let Placement::FirstVariant(_, variants) = filled.place(7) else { panic!("shared with all clients") };
    assert_eq!(variants.names(), ["accept-encoding"]);
    assert_eq!(decoded(&filled).headers["content-encoding"], "gzip");
}

#[test]
fn record_id_differs_from_that_of_unvarying_responses() {
    let mut filled = admitted(forward(rule(Kind::Read), &speaking("fr")), 200, VARIES, "new");
    let Placement::FirstVariant(_, variants) = filled.place(0) else { panic!("it varies") };
    assert_ne!(variants.id(), 0);
    assert_eq!(decoded(&filled).variant, variants.id());
}
