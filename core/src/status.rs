//! The status of an answered request, as the metrics count it.

use std::fmt;

#[cfg(feature = "runtime")]
use crate::reason::Reason;

/// The way in which a request was answered. Metrics, [`Stats`](crate::Stats) and the console count requests by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Status {
    /// A fresh stored response answered, or a 304 for it.
    Hit,
    /// The handler answered, and its response can be stored. Also a 504, where the client accepts only a stored
    /// response, and a write-through that stored its response.
    Miss,
    /// A stale stored response answered, because it is being refreshed or because the handler failed (RFC 5861).
    Stale,
    /// The handler answered, and the cache took no part.
    Bypass,
    /// The handler failed: with an error, a panic or a status of 500 or more.
    Error,
    /// The handler's response to an earlier concurrent request answered (RFC 9211 §2.6).
    Collapsed,
}

impl Status {
    /// All statuses.
    pub const ALL: [Self; 6] =
        [Self::Hit, Self::Miss, Self::Stale, Self::Bypass, Self::Error, Self::Collapsed];

    /// Returns the word for the status. It never changes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Stale => "stale",
            Self::Bypass => "bypass",
            Self::Error => "error",
            Self::Collapsed => "collapsed",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(feature = "runtime")]
impl serde::Serialize for Status {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A status, with the reason if it is not a hit.
#[cfg(feature = "runtime")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Outcome {
    pub(crate) status: Status,
    pub(crate) reason: Option<Reason>,
}

#[cfg(feature = "runtime")]
impl Outcome {
    pub(crate) const HIT: Self = Self { status: Status::Hit, reason: None };
    pub(crate) const COLLAPSED: Self = Self { status: Status::Collapsed, reason: None };
    pub(crate) const ERROR: Self = Self { status: Status::Error, reason: Some(Reason::Failed) };

    pub(crate) fn miss(reason: impl Into<Option<Reason>>) -> Self {
        Self { status: Status::Miss, reason: reason.into() }
    }

    pub(crate) const fn stale(reason: Reason) -> Self {
        Self { status: Status::Stale, reason: Some(reason) }
    }

    pub(crate) const fn bypass(reason: Option<Reason>) -> Self {
        Self { status: Status::Bypass, reason }
    }

    /// The outcome of a request whose response the cache passed on.
    pub(crate) fn passed(reason: Option<Reason>, answer: http::StatusCode) -> Self {
        let status = if answer.is_server_error() { Status::Error } else { Status::Bypass };
        Self { status, reason }
    }
}
