//! Lengths of time in a route's options.

use std::time::Duration;

/// A length of time, as route options take it: a number of seconds or a `Duration`.
///
/// Unlike a [`Ttl`](crate::Ttl), 0 is a length of 0. A negative number is 0 too.
///
/// ```
/// use larder_core::route::Seconds;
/// use std::time::Duration;
///
/// assert_eq!(Seconds::from(300), Seconds::from(Duration::from_secs(300)));
/// assert_eq!(Seconds::from(0).duration(), Duration::ZERO);
/// assert_eq!(Seconds::from(-1).duration(), Duration::ZERO);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seconds(Duration);

impl Seconds {
    /// Returns the length as a `Duration`.
    #[must_use]
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl From<Duration> for Seconds {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl From<u64> for Seconds {
    fn from(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl From<u32> for Seconds {
    fn from(seconds: u32) -> Self {
        u64::from(seconds).into()
    }
}

/// The type of a number literal in source code.
impl From<i32> for Seconds {
    fn from(seconds: i32) -> Self {
        u64::try_from(seconds).unwrap_or(0).into()
    }
}
