//! The framework-agnostic core of Larder, a response cache for Rust web services.
//!
//! To cache routes of axum, poem, or tower and hyper, use [larder-axum](https://docs.rs/larder-axum),
//! [larder-poem](https://docs.rs/larder-poem) or [larder-tower](https://docs.rs/larder-tower). They re-export what an
//! application needs of this crate. Use this crate itself to cache values without routes, to write an adapter, or to write a store:
//!
//! ```
//! # #[cfg(feature = "memory")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use larder_core::Larder;
//!
//! async fn exchange_rate(currency: &str) -> Result<f64, std::io::Error> { Ok(if currency == "EUR" { 1.08 } else { 1.0 }) }
//!
//! let larder = Larder::memory(); // or Larder::from_env(), or Larder::redis("redis://…")
//! let rates = larder.backend().group("rates");
//! // All concurrent callers share one request to the bank, once a minute.
//! let rate = rates.get_or_set("EUR", 60, || exchange_rate("EUR")).await;
//! assert_eq!(rate.unwrap(), 1.08);
//! rates.delete_group().await;
//! # }
//! # #[cfg(not(feature = "memory"))] fn main() {}
//! ```
//!
//! Without features this crate is a pure engine: it decides what a cache may do from plain `http` parts and a point in
//! time. It has no runtime, no I/O and no clock. [`policy`] has an example.
//!
//! | feature | what it adds |
//! |---|---|
//! | `runtime` | [`Larder`], [`CacheBackend`] and [`Route`], which connect the engine to a store; needs tokio |
//! | `memory` | the in-process store |
//! | `redis` | the Redis store |
//! | `redis-tls` | TLS to Redis |
//! | `redis-pool` | the Redis store on a `deadpool_redis` pool of the application |
//! | `metrics` | exports the counters of [`Larder::stats`] through the facade [`metrics`](https://docs.rs/metrics) |
//! | `tracing` | spans around the cache's operations: `cache.get`, `cache.set`, `cache.put`, `cache.evict`, `cache.backend.*` |
//! | `console` | a page that shows the cache's decisions with their reasons, and evicts entries |
//! | `suite` | the behaviour suite for authors of stores |
#![cfg_attr(
    all(feature = "memory", feature = "redis"),
    doc = "",
    doc = "The [`guide`] has pages on [concepts](guide::concepts), [configuration](guide::configuration), [keys](guide::keys),",
    doc = "[groups and clusters](guide::groups), [tags](guide::tags), [values](guide::backend), [safety](guide::safety), [Redis](guide::redis),",
    doc = "[the local tier](guide::local), [the shared cache](guide::shared), [conformance](guide::conformance) to the RFCs,",
    doc = "[telemetry](guide::telemetry), [testing](guide::testing), [writing a store](guide::stores), [writing an adapter](guide::adapters), and moving",
    doc = "[from Python](guide::from_python) or [from other layers](guide::from_tower)."
)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod credentials;
pub mod explain;
// The guide's examples use the memory store, and its pages link to both stores.
#[cfg(all(feature = "memory", feature = "redis"))]
pub mod guide;
pub mod headers;
pub mod key;
pub mod policy;
pub mod provenance;
mod reason;
mod record;
mod request;
pub mod shared;
mod status;
pub mod store;
pub mod tag;
mod ttl;

#[cfg(feature = "runtime")]
mod backend;
#[cfg(feature = "runtime")]
mod body;
#[cfg(feature = "runtime")]
mod clock;
#[cfg(feature = "console")]
pub mod console;
#[cfg(feature = "runtime")]
mod exchange;
#[cfg(feature = "runtime")]
mod fill;
#[cfg(feature = "runtime")]
mod larder;
#[cfg(feature = "runtime")]
pub mod route;
#[cfg(feature = "runtime")]
pub mod stats;
#[cfg(feature = "runtime")]
mod telemetry;

pub use headers::conditional::{Validators, weak_etag};
pub use key::rewritten::KeyUri;
pub use key::{CacheKey, KeyError, KeySpace, SecondaryKey};
pub use policy::CachePolicy;
pub use policy::rule::{Audience, DEFAULT_MAX_BODY, Kind, Principal, PrincipalOf, PrincipalSecret, Rule};
pub use provenance::Provenance;
pub use reason::Reason;
pub use record::variants::Variants;
pub use record::{Entry, Record};
pub use request::RequestView;
pub use status::Status;
pub use store::{Abandon, Acquired, CacheStore, Intent, Lease, LeaseStore, StoreError, ValueHead};
pub use ttl::Ttl;

#[cfg(feature = "memory")]
pub use store::MemoryStore;
#[cfg(feature = "redis")]
pub use store::redis::{RedisOptions, RedisStore, RedisUrlError, TieredStore};
#[cfg(feature = "runtime")]
pub use {
    backend::coder::{Coder, CoderError, Json, MessagePack},
    backend::{CacheBackend, CacheError, Eviction},
    body::ReplyBody,
    clock::{Clock, ManualClock, SystemClock},
    exchange::{Call, Reply, ResponseFuture},
    larder::env::{self, ConfigError},
    larder::{Larder, LarderBuilder},
    route::{KeyBuilder, Route, default_key},
    stats::Stats,
    store::ProcessLocal,
};

// The macro that makes an adapter's layers refers to it.
#[doc(hidden)]
pub use http;
// Adapters of this workspace, tests and benches refer to them.
#[cfg(feature = "runtime")]
#[doc(hidden)]
pub use exchange::Deferred;
#[doc(hidden)]
pub use record::variants::MAX_VARIANTS;
