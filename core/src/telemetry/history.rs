//! What happened lately, for somebody who looks on: the last decisions, and a count every few seconds.
//!
//! It costs a look at the clock, a copy of the URI and a lock for every request, so it begins when a console is made.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Method, StatusCode, Uri};
use serde::Serialize;
use tokio::time::Instant;

use super::RouteCounters;
use super::counters::BOUNDS;
use crate::reason::Reason;
use crate::stats::Latency;
use crate::status::{Outcome, Status};

/// Counts are kept for slices of time of so many seconds, for half an hour.
pub(crate) const SLICE: u64 = 5;
const SLICES: usize = 360;

/// So many decisions of each status are kept, so that many hits don't push out the one refusal.
const DECISIONS: usize = 40;

/// So much of a URI is kept, in bytes.
const LONGEST_URI: usize = 300;

/// The last decisions and the last half hour.
#[derive(Default)]
pub(crate) struct History {
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    slices: VecDeque<Slice>,
    decisions: [VecDeque<Decided>; Status::ALL.len()],
}

/// A request that is under way.
pub(crate) struct Asked {
    at: SystemTime,
    started: Instant,
    method: Method,
    uri: String,
}

impl Asked {
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
pub(crate) struct Decided {
    /// When it came, in seconds since 1970.
    at: f64,
    took_us: u64,
    method: String,
    uri: String,
    route: String,
    status: Status,
    reason: Option<Reason>,
    answer: u16,
}

/// A few seconds.
struct Slice {
    /// Which one since 1970.
    number: u64,
    statuses: [u64; Status::ALL.len()],
    buckets: [u64; BOUNDS.len() + 1],
    total: Duration,
}

/// A slice, as it is told.
#[derive(Serialize)]
pub(crate) struct SliceStats {
    /// When it began, in seconds since 1970.
    at: u64,
    /// In the order of [`Status::ALL`].
    statuses: [u64; Status::ALL.len()],
    latency: Latency,
}

impl History {
    pub(super) fn note(&self, route: &RouteCounters, asked: Asked, outcome: Outcome, answer: StatusCode) {
        let took = asked.started.elapsed();
        let at = asked.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut recent = self.recent();
        recent.slice(at.as_secs() / SLICE).add(outcome.status, took);
        let decisions = &mut recent.decisions[outcome.status as usize];
        if decisions.len() == DECISIONS {
            decisions.pop_front();
        }
        decisions.push_back(Decided {
            at: at.as_secs_f64(),
            took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            method: asked.method.to_string(),
            uri: asked.uri,
            route: route.name.to_string(),
            status: outcome.status,
            reason: outcome.reason,
            answer: answer.as_u16(),
        });
    }

    /// The slices from the oldest to the one of `now`, without those in which nothing happened.
    pub(crate) fn slices(&self) -> Vec<SliceStats> {
        let read = |slice: &Slice| SliceStats {
            at: slice.number * SLICE,
            statuses: slice.statuses,
            latency: Latency::new(slice.buckets.to_vec(), slice.total),
        };
        self.recent().slices.iter().map(read).collect()
    }

    /// How long requests took in the last minute.
    pub(crate) fn lately(&self, now: SystemTime) -> Latency {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (mut buckets, mut total) = (vec![0; BOUNDS.len() + 1], Duration::ZERO);
        for slice in self.recent().slices.iter().filter(|slice| slice.number * SLICE + 60 >= now) {
            buckets.iter_mut().zip(slice.buckets).for_each(|(sum, count)| *sum += count);
            total += slice.total;
        }
        Latency::new(buckets, total)
    }

    /// The last decisions, the newest first.
    pub(crate) fn decisions(&self) -> Vec<Decided> {
        let mut decisions: Vec<Decided> = self.recent().decisions.iter().flatten().cloned().collect();
        decisions.sort_by(|a, b| b.at.total_cmp(&a.at));
        decisions
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    /// The slice of this number, or the last one for a clock that went back.
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
