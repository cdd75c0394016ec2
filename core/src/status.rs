//! How a request was answered, as it is counted: one of six words, and the reason if the cache didn't do more.

use std::fmt;

#[cfg(feature = "runtime")]
use crate::reason::Reason;

/// How a request was answered: what the metrics, [`Stats`](crate::Stats) and the console count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// With what is stored and fresh; a 304 too.
    Hit,
    /// By the handler, and the answer was one that can be stored; or with a 504 where the client wanted nothing else
    /// than a stored one. A write-through that stored its answer counts here too.
    Miss,
    /// With what is stored though it is stale, because it is being refreshed or the handler failed (RFC 5861).
    Stale,
    /// By the handler, whose answer is none of the cache's business.
    Bypass,
    /// By the handler, which failed: with an error, a panic or a status of 500 or more.
    Error,
    /// With what the handler answered to another request, which came first (RFC 9211 §2.6).
    Collapsed,
}

impl Status {
    /// Every status there is.
    pub const ALL: [Self; 6] =
        [Self::Hit, Self::Miss, Self::Stale, Self::Bypass, Self::Error, Self::Collapsed];

    /// The word for it. It never changes.
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

/// A status, and why it is no hit.
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

    /// The handler's own answer, which the cache let pass.
    pub(crate) fn passed(reason: Option<Reason>, answer: http::StatusCode) -> Self {
        let status = if answer.is_server_error() { Status::Error } else { Status::Bypass };
        Self { status, reason }
    }
}
