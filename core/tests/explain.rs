//! Explanations match the decisions of the engine.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod engine;

use engine::{Fields, entry, now, request, response, rule, with};
use http::Method;
use larder_core::explain::{Explain, Explanation};
use larder_core::policy::{BodyLength, CachePolicy};
use larder_core::{Audience, Entry, Kind, Reason, Record, RequestView, Rule, Status, Variants};

use std::time::Duration;

/// Explains a GET with these fields, for a stored value and a response of the handler.
fn explain(
    rule: Rule,
    fields: Fields<'_>,
    stored: Option<Entry>,
    answer: Option<(u16, Fields<'_>)>,
) -> Explanation {
    let policy = CachePolicy::new(rule.into());
    let request = request(Method::GET, fields);
    let answer = answer.map(|(status, fields)| response(status, fields));
    let question = Explain::new(&policy, RequestView::from(&request), now());
    let question = match &answer {
        Some(answer) => question.answer(answer, BodyLength::Known(5)),
        None => question,
    };
    question.with_stored(|_| Ok(stored.clone().map(Record::Response)))
}

fn steps(explanation: &Explanation) -> Vec<&'static str> {
    explanation.steps.iter().map(|step| step.decision).collect()
}

#[test]
fn every_path_is_explained() {
    let read = || rule(Kind::Read);
    let stale = || with(read(), |rule| rule.stale_while_revalidate = Some(Duration::from_secs(60)));
    let kept = || with(read(), |rule| rule.stale_if_error = Some(Duration::from_secs(60)));
    let fresh = || Some(entry(&[("etag", "\"a\"")]));
    let expired = || Some(with(entry(&[]), |entry| entry.stored_at = now() - Duration::from_secs(70)));
    let ok = Some((200, &[][..]));
    #[rustfmt::skip]
    let ways: &[(Explanation, Status, Option<Reason>, &[&str])] = &[
        (explain(read(), &[("cookie", "a=b")], None, ok), Status::Bypass, Some(Reason::Cookie), &["Bypass"]),
        (explain(read(), &[], None, None), Status::Miss, Some(Reason::Absent), &["Lookup", "Miss"]),
        (explain(read(), &[], None, ok), Status::Miss, Some(Reason::Absent), &["Lookup", "Miss", "Admit", "Target"]),
        (explain(read(), &[], fresh(), ok), Status::Hit, None, &["Lookup", "Hit"]),
        (explain(read(), &[("if-none-match", "\"a\"")], fresh(), ok), Status::Hit, None, &["Lookup", "NotModified"]),
        (explain(read(), &[("cache-control", "no-cache")], fresh(), None), Status::Miss, Some(Reason::NoCache), &["Lookup", "Miss"]),
        (explain(read(), &[("cache-control", "only-if-cached")], None, ok), Status::Miss, Some(Reason::Absent), &["Lookup", "Unsatisfiable"]),
        (explain(read(), &[], expired(), None), Status::Miss, Some(Reason::Expired), &["Lookup", "Miss"]),
        (explain(stale(), &[], expired(), ok), Status::Stale, Some(Reason::Expired), &["Lookup", "Stale", "Admit", "Target"]),
        (explain(kept(), &[], expired(), Some((503, &[]))), Status::Stale, Some(Reason::Failed), &["Lookup", "Miss", "ServeStale"]),
        (explain(read(), &[], None, Some((200, &[("set-cookie", "a=b")]))), Status::Bypass, Some(Reason::SetCookie), &["Lookup", "Miss", "Pass"]),
        (explain(read(), &[], None, Some((404, &[]))), Status::Bypass, Some(Reason::Status), &["Lookup", "Miss", "Pass"]),
        (explain(read(), &[], None, Some((500, &[]))), Status::Error, Some(Reason::Status), &["Lookup", "Miss", "Pass"]),
        (explain(read(), &[], None, Some((200, &[("vary", "accept")]))), Status::Miss, Some(Reason::Absent), &["Lookup", "Miss", "Admit", "FirstVariant"]),
    ];
    for (explanation, status, reason, decisions) in ways {
        assert_eq!((explanation.status, explanation.reason), (*status, *reason), "{explanation}");
        assert_eq!(steps(explanation), *decisions, "{explanation}");
        let may_store = decisions.contains(&"Admit");
        assert_eq!(explanation.stores, may_store, "{explanation}");
        assert_eq!(explanation.kept_for.is_some(), may_store, "{explanation}");
    }
}

#[test]
fn writes_are_explained() {
    let write = |kind, status| {
        let policy = CachePolicy::new(rule(kind).into());
        let (request, answer) = (request(Method::PUT, &[]), response(status, &[]));
        let question = Explain::new(&policy, RequestView::from(&request), now());
        question.answer(&answer, BodyLength::Known(5)).with_nothing_stored()
    };
    let put = write(Kind::Write, 200);
    assert!(put.stores && !put.evicts, "{put}");
    let accepted = write(Kind::Write, 202);
    assert!(!accepted.stores && accepted.evicts && accepted.reason == Some(Reason::Status), "{accepted}");
    let evict = write(Kind::EvictKey, 204);
    assert!(evict.evicts && evict.key.as_deref() == Some("p:{g}:things:7"), "{evict}");
    let group = write(Kind::EvictGroup, 204);
    assert!(group.evicts && group.key.is_none(), "{group}");
    let failed = write(Kind::EvictKey, 404);
    assert!(!failed.evicts && failed.reason == Some(Reason::Failed), "{failed}");
}

#[test]
fn variant_is_looked_up_under_its_key() {
    let policy = CachePolicy::new(rule(Kind::Read).into());
    let request = request(Method::GET, &[("accept-language", "en")]);
    let variants = Variants::new(7, vec![http::header::ACCEPT_LANGUAGE]);
    let mut looked = Vec::new();
    let explanation = Explain::new(&policy, RequestView::from(&request), now()).with_stored(|key| {
        looked.push(key.name().to_owned());
        Ok(if looked.len() == 1 {
            Some(Record::Variants(variants.clone()))
        } else {
            Some(Record::Response(with(entry(&[]), |entry| entry.variant = 7)))
        })
    });
    assert_eq!(steps(&explanation), ["Lookup", "Select", "Hit"]);
    assert_eq!(looked[0], "p:{g}:things:7");
    assert!(looked[1].starts_with("p:{g}:things:7|vary="));
    assert_eq!(explanation.key.as_ref(), Some(&looked[1]));
}

#[test]
fn key_builder_without_a_key_is_explained() {
    let policy = CachePolicy::new(rule(Kind::Read).into());
    let request = request(Method::GET, &[]);
    let explanation =
        Explain::new(&policy, RequestView::from(&request), now()).key(None).with_nothing_stored();
    assert_eq!(explanation.reason, Some(Reason::Keyless));
}

#[test]
fn text_form_is_readable() {
    let public = with(rule(Kind::Read), |rule| rule.audience = Audience::Public);
    let hit = explain(public, &[("cookie", "a=b")], Some(entry(&[])), None);
    assert_eq!(
        hit.to_string(),
        "GET /things/7: hit\n  \
         key: p:{g}:things:7\n  \
         stored: status 200 OK, 6 bytes, 0 s old, fresh for another 60 s\n  \
         1. The request may be answered from the cache.\n  \
         2. What is stored answers."
    );
    let refused = explain(rule(Kind::Read), &[("cookie", "a=b")], None, None);
    assert_eq!(
        refused.to_string(),
        "GET /things/7: bypass (cookie)\n  \
         1. The cache takes no part. The request carries `Cookie`, and the route was declared neither public nor private. \
         If everybody gets the same, declare the route .public(); if everybody has a copy of their own, .private() or \
         .private_by(..)."
    );
}
