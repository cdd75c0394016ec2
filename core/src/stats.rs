//! [`Stats`]: the numbers that a cache counts.

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::policy::rule::Kind;
use crate::reason::Reason;
use crate::status::Status;
use crate::store::Health;

/// The upper bounds of a histogram's buckets, in microseconds. One more bucket has no bound.
pub(crate) const BOUNDS: [u64; 22] = [
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000,
    500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
];

/// The numbers of one [`Larder`](crate::Larder) since it was created, in this process. Returned by
/// [`Larder::stats`](crate::Larder::stats).
///
/// Numbers only grow. Each is read separately while requests continue, so sums may differ slightly.
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
    /// Numbers by route, in alphabetical order. A route appears after its first request.
    pub routes: Vec<RouteStats>,
    /// Numbers by eviction group, in alphabetical order. Entries without a group come first.
    pub groups: Vec<GroupStats>,
    /// Requests that waited for another request's fill.
    pub fill_waits: FillWaits,
    /// The store's health and operations.
    pub store: StoreStats,
}

impl Stats {
    /// Returns the sum over all routes that read.
    #[must_use]
    pub fn requests(&self) -> Requests {
        let reads = self.routes.iter().filter(|route| route.kind == Kind::Read);
        reads.fold(Requests::default(), |sum, route| sum.plus(&route.requests))
    }
}

/// Counts of requests by [`Status`].
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

    /// Returns the number of requests with this status.
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

    /// Returns the number of all requests.
    #[must_use]
    pub fn total(&self) -> u64 {
        Status::ALL.into_iter().map(|status| self.of(status)).sum()
    }

    /// Returns the fraction of requests, between 0 and 1, that needed no handler run of their own. Requests that bypassed
    /// the cache don't count. Returns `None` before the first request.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    pub fn hit_ratio(&self) -> Option<f64> {
        let served = self.hit + self.stale + self.collapsed;
        let asked = served + self.miss + self.error;
        (asked > 0).then(|| served as f64 / asked as f64)
    }
}

/// The numbers of one route.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RouteStats {
    /// The route's `.name(..)`. Without one, the pattern that the framework's router matched, or `unnamed`. All shared
    /// caches are counted together as `shared cache`; their requests of any method count as those of a route that reads.
    pub route: String,
    /// The route's effect on the cache.
    pub kind: Kind,
    /// The route's eviction group.
    pub group: Option<String>,
    /// Requests by status.
    pub requests: Requests,
    /// The reasons for which requests were not hits, the most frequent first.
    pub reasons: Vec<ReasonCount>,
}

/// The count of one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ReasonCount {
    /// The reason.
    pub reason: Reason,
    /// The number of requests with this reason.
    pub count: u64,
}

/// The numbers of one eviction group.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct GroupStats {
    /// The group's name, or `None` for entries without a group.
    pub group: Option<String>,
    /// The requests of the group's routes that read.
    pub requests: Requests,
    /// Writes to the store, by routes and backends.
    pub writes: Writes,
    /// Evictions by routes, backends and operators.
    pub evictions: Evictions,
}

/// Counts of writes by result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Writes {
    /// The value was stored.
    pub stored: u64,
    /// The value was not stored: the key was evicted or overwritten while the handler ran.
    pub refused: u64,
    /// The store failed.
    pub failed: u64,
}

/// Counts of evictions by kind and result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Evictions {
    /// Evictions of single entries.
    pub keys: u64,
    /// Evictions of whole groups.
    pub groups: u64,
    /// Evictions by tags, counted without a group.
    pub tags: u64,
    /// Evictions for which the store failed. The store retries what it can.
    pub failed: u64,
}

/// Counts and times of waits for a fill that another request, in this or another process, had started.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct FillWaits {
    /// Waits without a usable result: the fill took too long, failed, or its answer can't be shared.
    pub in_vain: u64,
    /// The times of all waits, with and without a result.
    pub waited: Latency,
}

/// The store's health, and its operations.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct StoreStats {
    /// The store's present health.
    pub health: Health,
    /// Numbers by operation.
    pub operations: Vec<OperationStats>,
}

/// The numbers of one store operation.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct OperationStats {
    /// The function's name, as in [`CacheStore`](crate::CacheStore) and [`LeaseStore`](crate::LeaseStore).
    pub operation: &'static str,
    /// The number of calls.
    pub calls: u64,
    /// The number of failed calls.
    pub failures: u64,
    /// The times of calls that had to wait. A call that returns at once, as in a store in this process, isn't timed,
    /// because reading the clock would take as long.
    pub latency: Latency,
}

/// A histogram of durations, with buckets from a microsecond to ten seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    buckets: Vec<u64>,
    total: Duration,
}

impl Latency {
    pub(crate) const fn new(buckets: Vec<u64>, total: Duration) -> Self {
        Self { buckets, total }
    }

    /// Returns the number of durations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Returns the sum of all durations.
    #[must_use]
    pub const fn total(&self) -> Duration {
        self.total
    }

    /// Returns the buckets: the upper bound of each, and its count. The last bucket has no bound.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> + '_ {
        let ends = BOUNDS.iter().map(|micros| Some(Duration::from_micros(*micros))).chain([None]);
        ends.zip(self.buckets.iter().copied())
    }

    /// Returns the duration that a fraction of the calls, between 0 and 1, didn't exceed, rounded up to the end of its
    /// bucket. Returns `None` without any calls, and ten seconds for durations beyond the last bound.
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

/// Serialises as `{count, total_us, p50_us, p95_us, p99_us}`.
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
