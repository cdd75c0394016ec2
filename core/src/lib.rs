//! The framework-agnostic heart of Larder, a response cache for Rust web services.
//!
//! Without features this crate is a pure engine: it decides, from plain `http` parts and a moment in time that is
//! handed to it, what a cache may do. It has no runtime, no I/O and no clock.

pub mod key;
pub mod store;

#[cfg(feature = "runtime")]
mod clock;

pub use key::{CacheKey, KeyError, KeySpace};
pub use store::{Abandon, Begin, CacheStore, Intent, Lease, LeaseStore, StoreError};

#[cfg(feature = "redis")]
pub use store::redis::{RedisOptions, RedisStore, RedisUrlError};

#[cfg(feature = "runtime")]
pub use clock::{Clock, ManualClock, SystemClock};
