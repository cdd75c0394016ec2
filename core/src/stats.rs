//! [`Stats`]: what a cache did so far, in numbers.

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::policy::rule::Kind;
use crate::reason::Reason;
use crate::status::Status;
use crate::store::Health;
use crate::telemetry::BOUNDS;

/// What a [`Larder`](crate::Larder) did since it was made, in this process: the answer to
/// [`Larder::stats`](crate::Larder::stats).
///
/// All numbers only grow. They are counted one by one while requests go on, so that sums may differ by what happened
/// while they were read.
///
/// ```
/// # #[cfg(feature = "memory")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use larder_core::Larder;
///
/// let larder = Larder::memory();
/// larder.backend().group("items").set("1", "pear", 60).await;
///
/// let stats = larder.stats();
/// assert_eq!(stats.groups[0].writes.stored, 1);
/// assert_eq!(stats.store.health.entries, Some(1));
/// assert_eq!(stats.requests().hit_ratio(), None);
/// # }
/// # #[cfg(not(feature = "memory"))] fn main() {}
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// By route, in alphabetical order. A route is here from its first request on.
    pub routes: Vec<RouteStats>,
    /// By eviction group, in alphabetical order, what is in none first.
    pub groups: Vec<GroupStats>,
    /// Requests that waited for another one's fill.
    pub fill_waits: FillWaits,
    /// The store.
    pub store: StoreStats,
}

impl Stats {
    /// The requests of all routes that read.
    #[must_use]
    pub fn requests(&self) -> Requests {
        let reads = self.routes.iter().filter(|route| route.kind == Kind::Read);
        reads.fold(Requests::default(), |sum, route| sum.plus(&route.requests))
    }
}

/// How requests were answered. See [`Status`] for the words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "`Status` says it")]
#[non_exhaustive]
pub struct Requests {
    pub hit: u64,
    pub miss: u64,
    pub stale: u64,
    pub bypass: u64,
    pub error: u64,
    pub collapsed: u64,
}

impl Requests {
    pub(crate) fn new(counts: [u64; Status::ALL.len()]) -> Self {
        let [hit, miss, stale, bypass, error, collapsed] = counts;
        Self { hit, miss, stale, bypass, error, collapsed }
    }

    pub(crate) const fn plus(self, other: &Self) -> Self {
        Self {
            hit: self.hit + other.hit,
            miss: self.miss + other.miss,
            stale: self.stale + other.stale,
            bypass: self.bypass + other.bypass,
            error: self.error + other.error,
            collapsed: self.collapsed + other.collapsed,
        }
    }

    /// How many were answered with this status.
    #[must_use]
    pub const fn of(&self, status: Status) -> u64 {
        match status {
            Status::Hit => self.hit,
            Status::Miss => self.miss,
            Status::Stale => self.stale,
            Status::Bypass => self.bypass,
            Status::Error => self.error,
            Status::Collapsed => self.collapsed,
        }
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        Status::ALL.into_iter().map(|status| self.of(status)).sum()
    }

    /// Of those that the cache took part in, the part that needed no run of the handler of their own, between 0 and 1.
    /// Those that went past the cache don't count. `None` before the first.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    pub fn hit_ratio(&self) -> Option<f64> {
        let served = self.hit + self.stale + self.collapsed;
        let asked = served + self.miss + self.error;
        (asked > 0).then(|| served as f64 / asked as f64)
    }
}

/// The requests of one route.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RouteStats {
    /// Its `.name(..)`, or else the pattern that the framework's router matched, or else `unnamed`. All shared caches
    /// together are the `shared cache`, whose requests of whatever method count as those of a route that reads.
    pub route: String,
    /// What it does to the cache.
    pub kind: Kind,
    /// Its eviction group.
    pub group: Option<String>,
    /// How its requests were answered.
    pub requests: Requests,
    /// Why requests were no hits, the most frequent reason first.
    pub reasons: Vec<ReasonCount>,
}

/// How often something had this reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ReasonCount {
    /// The reason.
    pub reason: Reason,
    /// How often.
    pub count: u64,
}

/// What happened in one eviction group.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct GroupStats {
    /// Its name; `None` for what is in no group.
    pub group: Option<String>,
    /// The requests of the group's routes that read.
    pub requests: Requests,
    /// Values that were written to the store, by routes and backends.
    pub writes: Writes,
    /// Evictions that routes, backends and people asked for.
    pub evictions: Evictions,
}

/// What became of values that were to be stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Writes {
    /// They are stored.
    pub stored: u64,
    /// They aren't: the key was evicted or overwritten while the handler ran.
    pub refused: u64,
    /// The store failed.
    pub failed: u64,
}

/// What became of evictions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Evictions {
    /// Of single entries.
    pub keys: u64,
    /// Of whole groups.
    pub groups: u64,
    /// The store failed. It repeats what it can.
    pub failed: u64,
}

/// How often requests waited for a fill that another request, here or in another process, was already at.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct FillWaits {
    /// In vain: it took too long, failed, or its answer can't be shared.
    pub in_vain: u64,
    /// How long they waited, in vain or not.
    pub waited: Latency,
}

/// The store, and how it answers.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct StoreStats {
    /// How it is doing now.
    pub health: Health,
    /// What was asked of it.
    pub operations: Vec<OperationStats>,
}

/// One function of the store.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct OperationStats {
    /// Its name, as in [`CacheStore`](crate::CacheStore) and [`LeaseStore`](crate::LeaseStore).
    pub operation: &'static str,
    /// How often it was called.
    pub calls: u64,
    /// How often it failed.
    pub failures: u64,
    /// How long it took, where its answer had to be waited for. What answers at once, as a store in this process does,
    /// isn't timed: reading the clock would take as long.
    pub latency: Latency,
}

/// How often something took how long, in buckets that grow from a microsecond to ten seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    buckets: Vec<u64>,
    total: Duration,
}

impl Latency {
    pub(crate) const fn new(buckets: Vec<u64>, total: Duration) -> Self {
        Self { buckets, total }
    }

    /// How often.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All of it together.
    #[must_use]
    pub const fn total(&self) -> Duration {
        self.total
    }

    /// The buckets: the longest time that belongs to each, and how many there were. The last has no end.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> + '_ {
        let ends = BOUNDS.iter().map(|micros| Some(Duration::from_micros(*micros))).chain([None]);
        ends.zip(self.buckets.iter().copied())
    }

    /// The time that this part of them, between 0 and 1, took at most: to the end of its bucket. `None` if there were
    /// none; ten seconds for all that took longer.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank between 1 and the count"
    )]
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let count = self.count();
        let rank = ((count as f64 * part.clamp(0.0, 1.0)).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        self.buckets().find_map(|(end, count)| {
            seen += count;
            (count > 0 && seen >= rank)
                .then(|| end.unwrap_or(Duration::from_micros(BOUNDS[BOUNDS.len() - 1])))
        })
    }
}

/// As `{count, total_us, p50_us, p95_us, p99_us}`.
impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;

        let micros = |part| self.quantile(part).map(|time| time.as_micros());
        let mut fields = serializer.serialize_struct("Latency", 5)?;
        fields.serialize_field("count", &self.count())?;
        fields.serialize_field("total_us", &self.total.as_micros())?;
        fields.serialize_field("p50_us", &micros(0.5))?;
        fields.serialize_field("p95_us", &micros(0.95))?;
        fields.serialize_field("p99_us", &micros(0.99))?;
        fields.end()
    }
}
