//! Times to live.

use std::time::Duration;

/// A time to live: a number of seconds, a `Duration`, or no expiry.
///
/// The number 0 means no expiry, like [`Ttl::NO_EXPIRY`]. A `Duration` of zero means not stored, and so does a negative number.
/// So `deadline - now` may reach zero without keeping an entry for ever.
///
/// A route doesn't store a response with a lifetime of zero ([`Reason::Lifetime`](crate::Reason::Lifetime)).
/// `CacheBackend::set` removes the value instead of storing it.
///
/// ```
/// use larder_core::Ttl;
/// use std::time::Duration;
///
/// assert_eq!(Ttl::from(300), Ttl::from(Duration::from_secs(300)));
/// assert_eq!(Ttl::from(0), Ttl::NO_EXPIRY);
/// assert_eq!(Ttl::NO_EXPIRY.duration(), None);
/// assert_eq!(Ttl::from(Duration::ZERO), Ttl::NOT_STORED);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ttl(Option<Duration>);

impl Ttl {
    /// No expiry: the entry stays until it is evicted, or until the store needs the memory.
    pub const NO_EXPIRY: Self = Self(None);

    /// A lifetime of zero: nothing is stored.
    pub const NOT_STORED: Self = Self(Some(Duration::ZERO));

    /// Returns the time to live, or `None` for no expiry. Zero means not stored.
    #[must_use]
    pub const fn duration(self) -> Option<Duration> {
        self.0
    }
}

/// A `Duration` of zero means not stored.
impl From<Duration> for Ttl {
    fn from(duration: Duration) -> Self {
        Self(Some(duration))
    }
}

/// Seconds. The number 0 means no expiry.
impl From<u64> for Ttl {
    fn from(seconds: u64) -> Self {
        Self((seconds != 0).then(|| Duration::from_secs(seconds)))
    }
}

/// Seconds. The number 0 means no expiry.
impl From<u32> for Ttl {
    fn from(seconds: u32) -> Self {
        u64::from(seconds).into()
    }
}

/// Seconds, the type of a number literal in source code. The number 0 means no expiry, a negative one not stored.
impl From<i32> for Ttl {
    fn from(seconds: i32) -> Self {
        u64::try_from(seconds).map_or(Self::NOT_STORED, Self::from)
    }
}

/// `None` means no expiry. `Some(Duration::ZERO)` means not stored.
impl From<Option<Duration>> for Ttl {
    fn from(duration: Option<Duration>) -> Self {
        Self(duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_number_zero_means_no_expiry() {
        for ttl in [Ttl::from(0_i32), Ttl::from(0_u32), Ttl::from(0_u64), Ttl::from(None)] {
            assert_eq!(ttl, Ttl::NO_EXPIRY);
        }
        for ttl in [Ttl::from(Duration::ZERO), Ttl::from(Some(Duration::ZERO)), Ttl::from(-1)] {
            assert_eq!((ttl, ttl.duration()), (Ttl::NOT_STORED, Some(Duration::ZERO)));
        }
        assert_eq!(Ttl::from(Duration::from_nanos(1)).duration(), Some(Duration::from_nanos(1)));
    }
}
