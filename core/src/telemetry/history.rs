//! The history of requests for a console: the last decisions, and counts by slice of time.
//!
//! Recording a request reads the clock, copies the URI and takes a lock, so it starts when a console is created.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Method, StatusCode, Uri};
use serde::Serialize;
use tokio::time::Instant;

use super::RouteCounters;
use crate::reason::Reason;
use crate::stats::{BOUNDS, Latency};
use crate::status::{Outcome, Status};

/// The length of a slice of time, in seconds. Slices are kept for half an hour.
pub(crate) const SLICE: u64 = 5;
const SLICES: usize = 360;

/// The number of decisions kept for each status, so that many hits don't displace the one refusal.
const DECISIONS: usize = 40;

/// The longest part of a URI that is kept, in bytes.
const LONGEST_URI: usize = 300;

/// The last decisions, and the slices of the last half hour.
#[derive(Default)]
pub(crate) struct RequestHistory {
    recent: Mutex<RecentRequests>,
}

#[derive(Default)]
struct RecentRequests {
    slices: VecDeque<Slice>,
    decisions: [VecDeque<AnsweredRequest>; Status::ALL.len()],
}

/// A request that isn't answered yet.
pub(crate) struct PendingRequest {
    at: SystemTime,
    started: Instant,
    method: Method,
    uri: String,
}

impl PendingRequest {
    pub(crate) fn new(at: SystemTime, method: &Method, uri: &Uri) -> Self {
        let mut uri = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        if uri.len() > LONGEST_URI {
            let end = (0..=LONGEST_URI).rev().find(|end| uri.is_char_boundary(*end)).unwrap_or(0);
            uri.truncate(end);
            uri.push('…');
        }
        Self { at, started: Instant::now(), method: method.clone(), uri }
    }
}

/// A request that was answered.
#[derive(Clone, Serialize)]
pub(crate) struct AnsweredRequest {
    /// The time of its arrival, in seconds since 1970.
    at: f64,
    took_us: u64,
    method: String,
    uri: String,
    route: String,
    status: Status,
    reason: Option<Reason>,
    answer: u16,
}

/// The counts of one slice of time.
struct Slice {
    /// The slice's number since 1970.
    number: u64,
    statuses: [u64; Status::ALL.len()],
    buckets: [u64; BOUNDS.len() + 1],
    total: Duration,
}

/// A slice in the console's output.
#[derive(Serialize)]
pub(crate) struct SliceStats {
    /// The slice's start, in seconds since 1970.
    at: u64,
    /// Counts in the order of [`Status::ALL`].
    statuses: [u64; Status::ALL.len()],
    latency: Latency,
}

impl RequestHistory {
    pub(super) fn record(
        &self,
        route: &RouteCounters,
        request: PendingRequest,
        outcome: Outcome,
        answer: StatusCode,
    ) {
        let took = request.started.elapsed();
        let at = request.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut recent = self.recent();
        recent.slice(at.as_secs() / SLICE).add(outcome.status, took);
        let decisions = &mut recent.decisions[outcome.status as usize];
        if decisions.len() == DECISIONS {
            decisions.pop_front();
        }
        decisions.push_back(AnsweredRequest {
            at: at.as_secs_f64(),
            took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            method: request.method.to_string(),
            uri: request.uri,
            route: route.name.to_string(),
            status: outcome.status,
            reason: outcome.reason,
            answer: answer.as_u16(),
        });
    }

    /// Returns the slices with requests, from the oldest to the newest.
    pub(crate) fn slices(&self) -> Vec<SliceStats> {
        let read = |slice: &Slice| SliceStats {
            at: slice.number * SLICE,
            statuses: slice.statuses,
            latency: Latency::new(slice.buckets.to_vec(), slice.total),
        };
        self.recent().slices.iter().map(read).collect()
    }

    /// Returns the durations of requests in the last minute.
    pub(crate) fn lately(&self, now: SystemTime) -> Latency {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (mut buckets, mut total) = (vec![0; BOUNDS.len() + 1], Duration::ZERO);
        for slice in self.recent().slices.iter().filter(|slice| slice.number * SLICE + 60 >= now) {
            buckets.iter_mut().zip(slice.buckets).for_each(|(sum, count)| *sum += count);
            total += slice.total;
        }
        Latency::new(buckets, total)
    }

    /// Returns the last decisions, the newest first.
    pub(crate) fn decisions(&self) -> Vec<AnsweredRequest> {
        let mut decisions: Vec<AnsweredRequest> = self.recent().decisions.iter().flatten().cloned().collect();
        decisions.sort_by(|a, b| b.at.total_cmp(&a.at));
        decisions
    }

    fn recent(&self) -> MutexGuard<'_, RecentRequests> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RecentRequests {
    /// Returns the slice of this number, or the last one if the clock went back.
    fn slice(&mut self, number: u64) -> &mut Slice {
        if self.slices.back().is_none_or(|last| last.number < number) {
            if self.slices.len() == SLICES {
                self.slices.pop_front();
            }
            self.slices.push_back(Slice::new(number));
        }
        let last = self.slices.len() - 1;
        &mut self.slices[last]
    }
}

impl Slice {
    const fn new(number: u64) -> Self {
        Self {
            number,
            statuses: [0; Status::ALL.len()],
            buckets: [0; BOUNDS.len() + 1],
            total: Duration::ZERO,
        }
    }

    fn add(&mut self, status: Status, took: Duration) {
        self.statuses[status as usize] += 1;
        self.buckets[super::counters::bucket(took)] += 1;
        self.total += took;
    }
}
