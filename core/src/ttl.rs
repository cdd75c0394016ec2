//! Times to live, as people write them.

use std::time::Duration;

/// How long something is kept. Numbers are seconds; 0, as a number or a `Duration`, means no expiry.
///
/// ```
/// use larder_core::Ttl;
/// use std::time::Duration;
///
/// assert_eq!(Ttl::from(300), Ttl::from(Duration::from_secs(300)));
/// assert_eq!(Ttl::from(0), Ttl::NO_EXPIRY);
/// assert_eq!(Ttl::NO_EXPIRY.duration(), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ttl(Option<Duration>);

impl Ttl {
    /// Kept until it is evicted, or until the store needs the room.
    pub const NO_EXPIRY: Self = Self(None);

    /// The time, or `None` for no expiry.
    #[must_use]
    pub const fn duration(self) -> Option<Duration> {
        self.0
    }
}

impl From<Duration> for Ttl {
    fn from(duration: Duration) -> Self {
        Self((!duration.is_zero()).then_some(duration))
    }
}

impl From<u64> for Ttl {
    fn from(seconds: u64) -> Self {
        Duration::from_secs(seconds).into()
    }
}

impl From<u32> for Ttl {
    fn from(seconds: u32) -> Self {
        u64::from(seconds).into()
    }
}

/// What a bare number in source code is. A negative one is over before it began: the shortest time there is.
impl From<i32> for Ttl {
    fn from(seconds: i32) -> Self {
        u64::try_from(seconds).map_or(Self(Some(Duration::from_millis(1))), Self::from)
    }
}

impl From<Option<Duration>> for Ttl {
    fn from(duration: Option<Duration>) -> Self {
        duration.map_or(Self::NO_EXPIRY, Self::from)
    }
}
