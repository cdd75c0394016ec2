//! The engine of the shared cache, as tables. Each row is a rule, with its section. Sections without an RFC number are of RFC
//! 9111.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]
#![allow(clippy::type_complexity, reason = "the columns of a table are named by its rows")]

#[allow(dead_code, reason = "each test uses its part of it")]
#[path = "../engine/mod.rs"]
mod engine;

mod answering;
mod errors;
mod freshness;
mod keys;
mod ranges;
mod storing;
mod validation;
mod variants;
mod writes;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use engine::{Fields, now, request, response};
use http::{Method, Response, request};
use larder_core::policy::BodyLength;
use larder_core::shared::policy::{
    OnRecord, SharedAdmitted, SharedDecision, SharedOnRequest, SharedOnResponse, SharedPolicy,
};
use larder_core::shared::{SharedRecord, SharedRule, StoredResponse};
use larder_core::{KeySpace, RequestView};

/// The target of most rows.
const BODY: &str = "0123456789";

/// Dates relative to `now()`.
const NOW: &str = "Fri, 15 Jan 2027 08:00:00 GMT";

const IN_A_MINUTE: &str = "Fri, 15 Jan 2027 08:01:00 GMT";

const A_MINUTE_AGO: &str = "Fri, 15 Jan 2027 07:59:00 GMT";

const A_THOUSAND_SECONDS_AGO: &str = "Fri, 15 Jan 2027 07:43:20 GMT";

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn rule() -> SharedRule {
    SharedRule::new(KeySpace::new("p", None).unwrap())
}

fn policy() -> SharedPolicy {
    SharedPolicy::new(Arc::new(rule()))
}

fn get(fields: Fields<'_>) -> request::Parts {
    request(Method::GET, fields)
}

/// Returns the decision about a request, for this stored record.
fn ask(
    policy: &SharedPolicy,
    request: &request::Parts,
    stored: Option<SharedRecord>,
    at: SystemTime,
) -> SharedDecision {
    let view = RequestView::from(request);
    let SharedOnRequest::Lookup(lookup) = policy.on_request(&view) else { panic!("not looked up") };
    match lookup.on_record(Ok(stored), &view, at) {
        OnRecord::Decided(decision) => decision,
        OnRecord::Select(_) => panic!("varies"),
    }
}

/// Returns the result of the origin's response.
fn answer(
    policy: &SharedPolicy,
    request: &request::Parts,
    stored: Option<SharedRecord>,
    (status, fields): (u16, Fields<'_>),
    at: SystemTime,
) -> SharedOnResponse {
    let SharedDecision::Forward(forward) = ask(policy, request, stored, at) else { panic!("not forwarded") };
    forward.on_response(&response(status, fields), BodyLength::Known(BODY.len() as u64), at, at)
}

/// Returns the record that a response to an empty cache is stored as, or the reason why it isn't stored.
fn store_under(
    policy: &SharedPolicy,
    request: &request::Parts,
    status: u16,
    fields: Fields<'_>,
) -> Result<StoredResponse, String> {
    match answer(policy, request, None, (status, fields), now()) {
        SharedOnResponse::Admit(admit) => {
            Ok(record_of(&admit.with_body(Bytes::from_static(BODY.as_bytes()))))
        }
        SharedOnResponse::Pass(pass) => {
            let mut headers = http::HeaderMap::new();
            pass.mark().write_to(&mut headers);
            let status = headers["cache-status"].to_str().unwrap();
            Err(status.rsplit_once("detail=").unwrap().1.to_owned())
        }
        other => panic!("{other:?}"),
    }
}

fn record_of(admitted: &SharedAdmitted) -> StoredResponse {
    match SharedRecord::decode(&admitted.record()) {
        Some(SharedRecord::Response(stored)) => *stored,
        other => panic!("{other:?}"),
    }
}

fn store(fields: Fields<'_>) -> StoredResponse {
    store_under(&policy(), &get(&[]), 200, fields).unwrap()
}

fn stored(fields: Fields<'_>) -> Option<SharedRecord> {
    Some(SharedRecord::Response(Box::new(store(fields))))
}

fn response_of(decision: SharedDecision) -> Response<Bytes> {
    match decision {
        SharedDecision::Answer(answer) | SharedDecision::Stale(answer, _) => answer.into_response(),
        SharedDecision::Forward(forward) => panic!("forwarded: {}", forward.reason()),
    }
}

/// Returns a word for a decision.
fn word(decision: &SharedDecision) -> String {
    match decision {
        SharedDecision::Answer(_) => "answer".to_owned(),
        SharedDecision::Stale(..) => "stale".to_owned(),
        SharedDecision::Forward(forward) => forward.reason().to_string(),
    }
}
