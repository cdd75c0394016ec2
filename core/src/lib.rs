//! The framework-agnostic heart of Larder, a response cache for Rust web services.
//!
//! Without features this crate is a pure engine: it decides, from plain `http` parts and a moment in time that is
//! handed to it, what a cache may do. It has no runtime, no I/O and no clock.

pub mod directives;
mod entry;
mod etag;
pub mod key;
pub mod policy;
mod reason;
mod request;
mod rule;
pub mod store;
mod vary;

#[cfg(feature = "runtime")]
mod clock;

pub use entry::{Entry, Record};
pub use etag::{Validators, weak_etag};
pub use key::{CacheKey, KeyError, KeySpace};
pub use policy::CachePolicy;
pub use reason::Reason;
pub use request::RequestView;
pub use rule::{Audience, DEFAULT_MAX_BODY, Kind, Principal, PrincipalOf, PrincipalSecret, Rule};
pub use store::{Abandon, Begin, CacheStore, Intent, Lease, LeaseStore, StoreError};
pub use vary::{MAX_VARIANTS, SecondaryKey, Variants};

#[cfg(feature = "runtime")]
pub use clock::{Clock, ManualClock, SystemClock};
