//! The health of a store.

use std::fmt;

/// The health of a store, as far as the store knows it without I/O.
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
    /// The kind of store, in one word.
    pub store: &'static str,
    /// The number of entries, if known.
    pub entries: Option<u64>,
    /// The memory of the entries in this process, in bytes, if known.
    pub bytes: Option<u64>,
    /// The limit of that memory, in bytes, if there is one.
    pub capacity_bytes: Option<u64>,
    /// The store's servers.
    pub servers: Vec<ServerHealth>,
    /// The stores that it consists of, nearest first.
    pub tiers: Vec<Health>,
}

impl Health {
    /// Creates the health of a store of this kind, with everything else unknown.
    #[must_use]
    pub fn of(store: &'static str) -> Self {
        Self { store, ..Self::default() }
    }

    /// Sets the number of entries.
    #[must_use]
    pub const fn entries(mut self, entries: u64) -> Self {
        self.entries = Some(entries);
        self
    }

    /// Sets the memory in use in this process and its limit, in bytes.
    #[must_use]
    pub const fn bytes(mut self, used: u64, capacity: Option<u64>) -> Self {
        (self.bytes, self.capacity_bytes) = (Some(used), capacity);
        self
    }

    /// Adds a server.
    #[must_use]
    pub fn server(mut self, address: impl fmt::Display, breaker: Breaker) -> Self {
        self.servers.push(ServerHealth { address: address.to_string(), breaker });
        self
    }

    /// Adds a tier, farther away than those before it.
    #[must_use]
    pub fn tier(mut self, tier: Self) -> Self {
        self.tiers.push(tier);
        self
    }

    /// Returns `true` if a server is known to be down, here or in a tier.
    #[must_use]
    pub fn is_impaired(&self) -> bool {
        self.servers.iter().any(|server| server.breaker == Breaker::Open)
            || self.tiers.iter().any(Self::is_impaired)
    }
}

/// The health of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ServerHealth {
    /// The host and port. Never contains a password.
    pub address: String,
    /// The state of the circuit breaker.
    pub breaker: Breaker,
}

/// The circuit breaker between this process and one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "runtime", derive(serde::Serialize), serde(rename_all = "lowercase"))]
pub enum Breaker {
    /// No command was sent yet, or the store was closed.
    Idle,
    /// The first attempt to connect, with no failure before it.
    Connecting,
    /// The server is in use.
    Closed,
    /// The server is known to be down. It isn't asked until a probe succeeds.
    Open,
}

impl Breaker {
    /// Returns the state as a word. The words are stable.
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
