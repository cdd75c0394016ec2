//! Counters for many writing threads and few readers.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::stats::{BOUNDS, Latency};

/// The number of copies of each counter. Threads use different copies, so that they don't wait for each other's cache
/// lines.
const SHARDS: usize = 8;

/// Counters that every request increments.
pub(crate) struct Counters<const N: usize> {
    shards: [CounterShard<N>; SHARDS],
}

/// One copy of the counters, on cache lines of its own.
#[repr(align(64))]
struct CounterShard<const N: usize>([AtomicU64; N]);

impl<const N: usize> Counters<N> {
    pub(crate) const fn new() -> Self {
        Self { shards: [const { CounterShard([const { AtomicU64::new(0) }; N]) }; SHARDS] }
    }

    /// Increments a counter. Ignores an index out of range.
    pub(crate) fn count(&self, index: usize) {
        let shard = &self.shards[this_thread() % SHARDS];
        if let Some(number) = shard.0.get(index) {
            number.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the sums over all copies. They are read one after the other.
    pub(crate) fn sums(&self) -> [u64; N] {
        std::array::from_fn(|index| {
            self.shards.iter().map(|shard| shard.0[index].load(Ordering::Relaxed)).sum()
        })
    }
}

/// Returns the number of this thread. Threads are numbered in order of their first call.
fn this_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static THIS: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    THIS.try_with(|this| *this).unwrap_or(0)
}

/// Returns the index of a duration's bucket.
pub(crate) fn bucket(took: Duration) -> usize {
    BOUNDS.partition_point(|bound| *bound < micros(took))
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

/// A histogram of durations.
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    pub(crate) const fn new() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BOUNDS.len() + 1], micros: AtomicU64::new(0) }
    }

    pub(crate) fn record(&self, took: Duration) {
        self.buckets[bucket(took)].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros(took), Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Latency {
        let buckets = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        Latency::new(buckets, Duration::from_micros(self.micros.load(Ordering::Relaxed)))
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_threads_are_summed() {
        let counters = Counters::<3>::new();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| (0..1000).for_each(|turn| counters.count(turn % 4)));
            }
        });
        assert_eq!(counters.sums(), [5000, 5000, 5000]);
    }

    #[test]
    fn durations_fall_into_buckets() {
        let histogram = Histogram::new();
        for micros in [0, 1, 3, 90, 100, 101, 99_000_000] {
            histogram.record(Duration::from_micros(micros));
        }
        let latency = histogram.read();
        assert_eq!(latency.count(), 7);
        assert_eq!(latency.total(), Duration::from_micros(99_000_295));
        let filled: Vec<_> = latency.buckets().filter(|(_, count)| *count > 0).collect();
        let micros = |micros| Some(Duration::from_micros(micros));
        assert_eq!(filled, [(micros(1), 2), (micros(5), 1), (micros(100), 2), (micros(200), 1), (None, 1)]);
        // The fourth of seven durations is in the bucket of 90 and 100.
        assert_eq!(latency.quantile(0.5), micros(100));
        assert_eq!(Histogram::new().read().quantile(0.5), None);
    }
}
