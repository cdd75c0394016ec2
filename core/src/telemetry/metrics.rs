//! Export of the counters through the facade `metrics`, to the recorder that the application installs.

use std::collections::HashMap;
use std::sync::{Arc, Once, PoisonError, RwLock};
use std::time::Duration;

use metrics::{Counter, SharedString, Unit, counter, describe_counter, describe_histogram, histogram};

use super::{EvictionOutcome, Labels, Operation, RouteCounters, WriteOutcome};
use crate::policy::rule::Kind;
use crate::reason::Reason;
use crate::status::{Outcome, Status};

const REQUESTS: &str = "larder_requests_total";
const WRITES: &str = "larder_writes_total";
const EVICTIONS: &str = "larder_evictions_total";
const FILL_WAITS: &str = "larder_fill_wait_seconds";
const STORE: &str = "larder_store_seconds";

/// The exported counters of a route, each created on first use: looking one up by its labels takes longer than a hit.
pub(super) struct RouteExport {
    hit: Counter,
    others: RwLock<HashMap<(Status, Option<Reason>), Counter>>,
}

impl RouteExport {
    pub(super) fn new(route: Labels<'_>) -> Self {
        describe();
        Self { hit: requests(route, Outcome::HIT), others: RwLock::default() }
    }

    pub(super) fn request(&self, route: &RouteCounters, outcome: Outcome) {
        if outcome == Outcome::HIT {
            return self.hit.increment(1);
        }
        let key = (outcome.status, outcome.reason);
        let known = self.others.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = known.get(&key) {
            return counter.increment(1);
        }
        drop(known);
        let mut known = self.others.write().unwrap_or_else(PoisonError::into_inner);
        known.entry(key).or_insert_with(|| requests(route.labels(), outcome)).increment(1);
    }
}

fn requests((name, kind, in_group): Labels<'_>, outcome: Outcome) -> Counter {
    counter!(
        REQUESTS,
        "route" => Arc::clone(name),
        "kind" => word(kind),
        "group" => group(in_group),
        "status" => outcome.status.as_str(),
        "reason" => outcome.reason.map_or("", Reason::as_str),
    )
}

pub(super) fn fill_wait(took: Duration, in_vain: bool) {
    let result = if in_vain { "in_vain" } else { "filled" };
    histogram!(FILL_WAITS, "result" => result).record(took);
}

pub(super) fn store_call(operation: Operation, took: Duration, ok: bool) {
    let result = if ok { "ok" } else { "failed" };
    histogram!(STORE, "operation" => operation.as_str(), "result" => result).record(took);
}

pub(super) fn write(name: Option<&Arc<str>>, write: WriteOutcome) {
    let result = match write {
        WriteOutcome::Stored => "stored",
        WriteOutcome::Refused => "refused",
        WriteOutcome::Failed => "failed",
    };
    counter!(WRITES, "group" => group(name), "result" => result).increment(1);
}

pub(super) fn eviction(name: Option<&Arc<str>>, eviction: EvictionOutcome) {
    let result = match eviction {
        EvictionOutcome::Key => "key",
        EvictionOutcome::Group => "group",
        EvictionOutcome::Tags => "tags",
        EvictionOutcome::Failed => "failed",
    };
    counter!(EVICTIONS, "group" => group(name), "result" => result).increment(1);
}

fn group(name: Option<&Arc<str>>) -> SharedString {
    name.map_or_else(|| SharedString::const_str(""), |name| SharedString::from(Arc::clone(name)))
}

const fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Read => "read",
        Kind::Write => "write",
        Kind::EvictKey | Kind::EvictGroup | Kind::EvictTags => "evict",
    }
}

/// Describes the metrics to the recorder, once.
fn describe() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        describe_counter!(REQUESTS, Unit::Count, "Requests to cached routes, by how they were answered");
        describe_counter!(WRITES, Unit::Count, "Values that were to be stored");
        describe_counter!(EVICTIONS, Unit::Count, "Evictions of entries, of groups and by tags");
        describe_histogram!(FILL_WAITS, Unit::Seconds, "Waits for a fill that another request was at");
        describe_histogram!(STORE, Unit::Seconds, "Calls of the store that had to be waited for");
    });
}
