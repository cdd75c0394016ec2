//! Clocks. This is the only file that reads the system's clock; all other code takes `now` as an argument or asks a
//! [`Clock`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// A source of the current time. Replace it in tests to make entries expire without sleeping.
///
/// ```
/// use larder_core::{Clock, ManualClock};
/// use std::time::Duration;
///
/// let clock = ManualClock::new();
/// let before = clock.now();
/// clock.advance(Duration::from_secs(60));
/// assert_eq!(clock.now().duration_since(before).unwrap(), Duration::from_secs(60));
/// ```
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Returns the current wall-clock time. A monotonic clock is not enough, because machines share entries.
    fn now(&self) -> SystemTime;
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A clock that moves only when [`advance`](Self::advance) is called. Clones share the same time.
#[derive(Clone, Debug)]
pub struct ManualClock {
    millis: Arc<AtomicU64>,
}

impl ManualClock {
    /// Creates a clock that starts at a fixed moment in 2026.
    #[must_use]
    pub fn new() -> Self {
        Self { millis: Arc::new(AtomicU64::new(1_767_225_600_000)) }
    }

    /// Moves the time forward by `by`, truncated to milliseconds. Zero, or less than a millisecond, moves nothing.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.millis.fetch_add(by, Ordering::SeqCst);
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.millis.load(Ordering::SeqCst))
    }
}
