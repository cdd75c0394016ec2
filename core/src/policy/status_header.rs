//! The field `X-Redis-Cache`: its name and its values.

use http::{HeaderName, HeaderValue};

/// The name of the field, unless the author of a route or of the cache chooses another.
pub(crate) const DEFAULT_STATUS_HEADER: HeaderName = HeaderName::from_static("x-redis-cache");

/// The value of the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StatusWord {
    Hit,
    Miss,
    Bypass,
}

impl StatusWord {
    /// Returns the value, which is validated at compile time.
    pub(super) const fn value(self) -> HeaderValue {
        match self {
            Self::Hit => const { HeaderValue::from_static("HIT") },
            Self::Miss => const { HeaderValue::from_static("MISS") },
            Self::Bypass => const { HeaderValue::from_static("BYPASS") },
        }
    }
}
