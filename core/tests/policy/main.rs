//! The engine, as tables. Each row names the rule that it tests, with the RFC section if there is one.
//!
//! A table is a function that returns the reasons it reached, so that another test can check that every reason is reached.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]
#![allow(clippy::type_complexity, reason = "the columns of a table are named by its rows")]
#![allow(clippy::result_large_err, reason = "a state lives for one request and is moved")]

#[path = "../engine/mod.rs"]
mod engine;

mod conditions;
mod followers;
mod hits;
mod lookups;
mod ranges;
mod requests;
mod responses;
mod spellings;
mod stale;
mod storing;
mod variants;
mod writes;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use engine::{Fields, now, response, rule};
use http::{HeaderMap, request};
use larder_core::policy::{
    Admitted, BodyLength, Decision, Forward, Lookup, OnEntry, OnRequest, OnResponse, Pass,
};
use larder_core::{CachePolicy, Entry, Kind, Reason, Record, Rule};
use lookups::lookups;
use ranges::{range_fills, ranges};
use requests::{keyless, requests};
use spellings::spellings;
use storing::storing;
use variants::variants;
use writes::{evictions, writes};

type Reasons = BTreeSet<Reason>;

/// The content of the store.
type Found = Result<Option<Record>, Reason>;

/// Changes the rule of a row.
type Tweak = fn(&mut Rule);

const AS_IT_IS: Tweak = |_| {};

fn tweaked(kind: Kind, tweak: Tweak) -> Rule {
    let mut rule = rule(kind);
    tweak(&mut rule);
    rule
}

fn policy(rule: Rule) -> CachePolicy {
    CachePolicy::new(Arc::new(rule))
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn stored(entry: Entry) -> Found {
    Ok(Some(Record::Response(entry)))
}

/// Returns the lookup of a request that may be answered from the cache.
fn lookup(rule: Rule, request: &request::Parts) -> Lookup {
    match policy(rule).on_request(&request.into()) {
        OnRequest::Lookup(lookup) => lookup,
        other => panic!("no lookup: {other:?}"),
    }
}

fn ask(rule: Rule, request: &request::Parts, found: Found, now: SystemTime) -> Decision {
    match lookup(rule, request).on_entry(found, &request.into(), now) {
        OnEntry::Decided(decision) => decision,
        OnEntry::Select(select) => panic!("it varies: {select:?}"),
    }
}

fn miss(decision: Decision) -> Forward {
    match decision {
        Decision::Miss(forward) => forward,
        other => panic!("no miss: {other:?}"),
    }
}

/// Returns the forward of a request whose handler runs, because nothing is stored or because the route writes.
fn forward(rule: Rule, request: &request::Parts) -> Forward {
    match policy(rule).on_request(&request.into()) {
        OnRequest::Forward(forward) => forward,
        OnRequest::Lookup(lookup) => match lookup.on_entry(Ok(None), &request.into(), now()) {
            OnEntry::Decided(decision) => miss(decision),
            OnEntry::Select(select) => panic!("nothing varies: {select:?}"),
        },
        OnRequest::Bypass(mark) => panic!("bypassed: {mark:?}"),
    }
}

/// Returns the result of the handler's response.
fn answered(
    forward: Forward,
    status: u16,
    fields: Fields<'_>,
    body: &'static str,
) -> Result<Admitted, (Pass, HeaderMap)> {
    let parts = response(status, fields);
    match forward.on_response(&parts, BodyLength::Known(body.len() as u64), now()) {
        OnResponse::Pass(pass) => {
            let mut headers = parts.headers;
            pass.cache_status().write_to(&mut headers);
            check_cache_status(&headers);
            Err((pass, headers))
        }
        OnResponse::ServeStale(hit) => panic!("a stale answer: {hit:?}"),
        OnResponse::Admit(admit) => {
            assert_eq!(admit.length(), body.len() as u64);
            Ok(admit.on_body(parts, Bytes::from_static(body.as_bytes()), now()))
        }
    }
}

fn admitted(forward: Forward, status: u16, fields: Fields<'_>, body: &'static str) -> Admitted {
    answered(forward, status, fields, body).unwrap_or_else(|(pass, _)| panic!("not admitted: {pass:?}"))
}

fn decoded(admitted: &Admitted) -> Entry {
    match Record::decode(&admitted.record()) {
        Some(Record::Response(entry)) => entry,
        other => panic!("no response: {other:?}"),
    }
}

/// The `Vary` of undeclared routes.
const TELLS_CREDENTIALS: &str = "vary: Authorization, Cookie";

/// Returns all fields as sorted lines, without `Cache-Status`, which is checked here, and the `Vary` of undeclared routes, which
/// [`responses_vary_by_everything_that_this_cache_separates`] checks.
fn lines(headers: &HeaderMap) -> Vec<String> {
    check_cache_status(headers);
    let mut lines: Vec<String> = headers
        .iter()
        .filter(|(name, _)| *name != "cache-status")
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .filter(|line| line != TELLS_CREDENTIALS)
        .collect();
    lines.sort();
    lines
}

fn cache_status(headers: &HeaderMap) -> &str {
    headers["cache-status"].to_str().unwrap()
}

/// Checks the grammar (RFC 9211 §2): a list of the caches' names, with parameters of known names and types. `hit` and `fwd`
/// exclude each other, and `stored` requires `fwd`. A 504 for `only-if-cached` has neither, only `detail`.
fn check_cache_status(headers: &HeaderMap) {
    const FORWARDED: [&str; 8] =
        ["bypass", "method", "uri-miss", "vary-miss", "miss", "request", "stale", "partial"];
    for field in headers.get_all("cache-status") {
        let field = field.to_str().unwrap();
        let mut parameters = field.split(';');
        assert_eq!(parameters.next(), Some("Larder"), "{field}");
        let (mut hit, mut fwd, mut stored) = (false, false, false);
        for parameter in parameters {
            let parameter = parameter.strip_prefix(' ').unwrap_or_else(|| panic!("{field}"));
            match parameter.split_once('=').unwrap_or((parameter, "")) {
                ("hit", "") => hit = true,
                ("stored", "") => stored = true,
                ("collapsed", "") => {}
                ("ttl", seconds) => assert!(seconds.parse::<i64>().is_ok(), "{field}"),
                ("fwd", why) => {
                    assert!(FORWARDED.contains(&why), "{field}");
                    fwd = true;
                }
                ("detail", word) => {
                    // A token starts with a letter (RFC 8941).
                    assert!(word.starts_with(|first: char| first.is_ascii_lowercase()), "{field}");
                    assert!(Reason::ALL.iter().any(|reason| reason.as_str() == word), "{field}");
                }
                other => panic!("{other:?} in {field}"),
            }
        }
        let is_unsatisfied = field.starts_with("Larder; detail=");
        assert!((hit != fwd) != is_unsatisfied && !(hit && fwd) && (fwd || !stored), "{field}");
    }
}

#[test]
fn every_reason_is_reached() {
    // Reasons for waits, for tags and for results of commits, which only the exchange knows. The engine gets a
    // `CommitResult`, and a miss keeps its reason.
    const OF_THE_EXCHANGE: [Reason; 5] =
        [Reason::Busy, Reason::Waited, Reason::Evicted, Reason::Nested, Reason::Tags];
    // Reached in the tables of `shared_policy/`.
    const OF_THE_SHARED_CACHE: [Reason; 2] = [Reason::Incomplete, Reason::Budget];

    let tables: [fn() -> Reasons; 10] =
        [requests, keyless, lookups, ranges, range_fills, storing, writes, evictions, variants, spellings];
    let mut reached: Reasons = tables.into_iter().flat_map(|table| table()).collect();
    for reason in OF_THE_EXCHANGE.into_iter().chain(OF_THE_SHARED_CACHE) {
        assert!(reached.insert(reason), "the engine does say {reason}");
    }
    assert_eq!(reached, Reason::ALL.iter().copied().collect());
}
