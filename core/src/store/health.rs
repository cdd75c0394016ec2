//! What a store says about itself.

use std::fmt;

/// How a store is doing, as far as it can tell without being asked anything that takes time.
///
/// ```
/// use larder_core::store::{Breaker, Health};
///
/// let near = Health::of("memory").entries(3).bytes(4096, Some(1 << 20));
/// let far = Health::of("redis").server("10.0.0.7:6379", Breaker::Closed);
/// let health = Health::of("tiered").tier(near).tier(far);
/// assert_eq!(health.tiers[0].bytes, Some(4096));
/// assert!(!health.is_impaired());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Health {
    /// What kind of store it is, in one word.
    pub store: &'static str,
    /// How many entries it holds, if that is known.
    pub entries: Option<u64>,
    /// The memory they take in this process, in bytes, if that is known.
    pub bytes: Option<u64>,
    /// The most they may take, in bytes, if there is a bound.
    pub capacity_bytes: Option<u64>,
    /// The servers it talks to.
    pub servers: Vec<ServerHealth>,
    /// The stores it is made of, nearest first.
    pub tiers: Vec<Health>,
}

impl Health {
    /// A store of this kind, of which nothing else is known.
    #[must_use]
    pub fn of(store: &'static str) -> Self {
        Self { store, ..Self::default() }
    }

    /// With so many entries.
    #[must_use]
    pub const fn entries(mut self, entries: u64) -> Self {
        self.entries = Some(entries);
        self
    }

    /// With so many bytes in use in this process, of so many at most.
    #[must_use]
    pub const fn bytes(mut self, used: u64, capacity: Option<u64>) -> Self {
        (self.bytes, self.capacity_bytes) = (Some(used), capacity);
        self
    }

    /// With one more server.
    #[must_use]
    pub fn server(mut self, address: impl fmt::Display, breaker: Breaker) -> Self {
        self.servers.push(ServerHealth { address: address.to_string(), breaker });
        self
    }

    /// With one more store inside it, farther away than the others.
    #[must_use]
    pub fn tier(mut self, tier: Self) -> Self {
        self.tiers.push(tier);
        self
    }

    /// Whether some server is known to be away, here or in a tier.
    #[must_use]
    pub fn is_impaired(&self) -> bool {
        self.servers.iter().any(|server| server.breaker == Breaker::Open)
            || self.tiers.iter().any(Self::is_impaired)
    }
}

/// One server of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ServerHealth {
    /// Host and port. Never a password.
    pub address: String,
    /// Whether it is asked.
    pub breaker: Breaker,
}

/// The circuit breaker between this process and one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "runtime", derive(serde::Serialize), serde(rename_all = "lowercase"))]
pub enum Breaker {
    /// Nothing was sent yet, or the store was closed.
    Idle,
    /// The first attempt to connect since things were well.
    Connecting,
    /// The server is asked: all is well.
    Closed,
    /// The server is known to be away, and isn't asked until a probe is answered.
    Open,
}

impl Breaker {
    /// The word for it. It never changes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Connecting => "connecting",
            Self::Closed => "closed",
            Self::Open => "open",
        }
    }
}

impl fmt::Display for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
