//! The circuit breaker of a connection: when it opens, how often a server that is away is probed, and the gauge
//! `larder_breaker_open`.
//!
//! `node.rs` draws the states of a connection, and connects again.

use std::fmt::Display;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::store::Breaker;

/// The number of read deadlines in a row without an answer that opens the breaker.
const MAX_TIMEOUTS: u32 = 3;

/// The first pause between two probes. Each pause is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause between two probes.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A connection that lasts for less than this doesn't reset the pauses.
const STEADY: Duration = Duration::from_secs(5);

/// The circuit breaker of one open connection. Once it opens, the connection is replaced by another one with its own breaker.
#[derive(Debug)]
pub(super) struct CircuitBreaker {
    /// The number of read deadlines that passed without an answer since the last answer.
    timeouts: AtomicU32,
    /// The time at which the connection was opened.
    since: Instant,
    /// The last pause before the connection was opened.
    pause: Duration,
}

impl CircuitBreaker {
    /// Returns the breaker of a connection that was opened now, after a pause.
    pub(super) fn new(now: Instant, pause: Duration) -> Self {
        Self { timeouts: AtomicU32::new(0), since: now, pause }
    }

    /// Counts a command that got no answer while the connection delivered nothing for `silence`. Returns `true` if the breaker
    /// opens.
    ///
    /// A silence of several read deadlines counts as that many commands. Otherwise a request with several evictions would wait
    /// for each of them in turn.
    pub(super) fn opens_after(&self, silence: Duration, read_deadline: Duration) -> bool {
        let read_deadline = read_deadline.as_nanos().max(1);
        // Rounded, because the deadline began shortly before the command was sent.
        let timeouts = ((silence.as_nanos() + read_deadline / 2) / read_deadline)
            .clamp(1, u128::from(MAX_TIMEOUTS)) as u32;
        self.timeouts.fetch_add(timeouts, Ordering::Relaxed) + timeouts >= MAX_TIMEOUTS
    }

    /// Notes an answer.
    #[inline]
    pub(super) fn on_answer(&self) {
        // Most answers follow another one, and then nothing is written.
        if self.timeouts.load(Ordering::Relaxed) > 0 {
            self.timeouts.store(0, Ordering::Relaxed);
        }
    }

    /// Returns the pause before the first probe: zero, unless the connection failed soon after it was opened.
    pub(super) fn first_pause(&self, now: Instant) -> Duration {
        if now.duration_since(self.since) < STEADY { next_pause(self.pause) } else { Duration::ZERO }
    }
}

/// Returns the pause after a probe that failed.
pub(super) fn next_pause(pause: Duration) -> Duration {
    (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE)
}

/// Records the state of a server's breaker in the gauge, for the recorder that the application installs.
#[cfg(feature = "metrics")]
pub(super) fn record(server: &impl Display, breaker: Breaker) {
    const NAME: &str = "larder_breaker_open";

    static DESCRIBED: std::sync::Once = std::sync::Once::new();
    DESCRIBED.call_once(|| {
        metrics::describe_gauge!(
            NAME,
            metrics::Unit::Count,
            "1 while a server of the store is known to be away"
        );
    });
    let is_open = breaker == Breaker::Open;
    metrics::gauge!(NAME, "server" => server.to_string()).set(f64::from(u8::from(is_open)));
}

/// Records nothing without the feature `metrics`.
#[cfg(not(feature = "metrics"))]
pub(super) fn record(_: &impl Display, _: Breaker) {}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_millis(50);

    fn breaker() -> CircuitBreaker {
        CircuitBreaker::new(Instant::now(), Duration::ZERO)
    }

    #[test]
    fn three_read_deadlines_without_an_answer_open_the_breaker() {
        let breaker = breaker();
        assert!(!breaker.opens_after(DEADLINE, DEADLINE) && !breaker.opens_after(DEADLINE, DEADLINE));
        breaker.on_answer();
        assert!(!breaker.opens_after(DEADLINE, DEADLINE) && !breaker.opens_after(DEADLINE, DEADLINE));
        assert!(breaker.opens_after(DEADLINE, DEADLINE));
    }

    #[test]
    fn long_silence_counts_as_several_timeouts() {
        for (silence, opens) in [(0.0, false), (2.4, false), (2.6, true), (1e9, true)] {
            assert_eq!(breaker().opens_after(DEADLINE.mul_f64(silence), DEADLINE), opens, "{silence}");
        }
        assert!(
            breaker().opens_after(DEADLINE, Duration::ZERO),
            "without a deadline nothing is divided by zero"
        );
    }

    #[test]
    fn pauses_grow_until_a_connection_is_steady() {
        let pauses = std::iter::successors(Some(Duration::ZERO), |pause| Some(next_pause(*pause)));
        let pauses: Vec<_> = pauses.take(7).map(|pause| pause.as_millis()).collect();
        assert_eq!(pauses, [0, 50, 100, 200, 400, 800, 1000]);

        let now = Instant::now();
        let breaker = CircuitBreaker::new(now, FIRST_PAUSE);
        assert_eq!(breaker.first_pause(now + STEADY / 2), FIRST_PAUSE * 2);
        assert_eq!(breaker.first_pause(now + STEADY), Duration::ZERO);
    }
}
