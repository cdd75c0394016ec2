//! Larder, the response cache, for [tower](https://docs.rs/tower) services: anything that takes an
//! `http::Request` and answers with an `http::Response`.
//!
//! [`cache`], [`cache_put`] and [`cache_evict`] make layers for routes, whose options decide what is stored.
//! [`SharedCacheLayer`] wraps a whole service, whose responses decide (RFC 9111). The inner service must be `Clone`. The request's
//! body is an `http_body::Body`, which tells whether the request has content. The service's errors and the request's
//! extensions pass through.
//!
//! The cache is always ready. A request that reaches the inner service waits in its call until the service is ready. Hits don't
//! count towards a concurrency limit under the cache. Put a load-shedding layer under the cache too.
//!
//! ```
//! # #[cfg(feature = "memory")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use std::convert::Infallible;
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use larder_tower::{Larder, cache};
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! let larder = Larder::memory();
//! let service = ServiceBuilder::new()
//!     .layer(cache(&larder).group("greetings").ttl(60))
//!     .service_fn(|_: Request<Full<Bytes>>| async {
//!         Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("hello"))))
//!     });
//!
//! let get = || Request::get("/hello").body(Full::default()).unwrap();
//! let first = service.clone().oneshot(get()).await.unwrap();
//! assert_eq!(first.headers()["x-redis-cache"], "MISS");
//! let second = service.clone().oneshot(get()).await.unwrap();
//! assert_eq!(second.headers()["x-redis-cache"], "HIT");
//! # }
//! # #[cfg(not(feature = "memory"))] fn main() {}
//! ```
//!
//! Options, headers and safety rules are the same in every adapter. [The guide of
//! larder-axum](https://docs.rs/larder-axum/latest/larder_axum/guide/) describes them with examples for axum. [The core's
//! guide](https://docs.rs/larder-core/latest/larder_core/guide/) covers the topics that don't depend on a framework.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod service;
mod shared_cache;

use tower_layer::Layer;

// The names that routes need. Everything else is in `larder_core`.
pub use larder_core;
#[cfg(feature = "memory")]
pub use larder_core::MemoryStore;
pub use larder_core::{
    CacheBackend, CacheError, CacheKey, CacheStore, ConfigError, KeyBuilder, KeySpace, Larder, LarderBuilder,
    ManualClock, Reason, ReplyBody, RequestView, Stats, Status, StoreError, Ttl, default_key,
};
// A handler names tags in the extensions of its response.
pub use larder_core::tag::{ResponseTags, TagField, TagsToEvict};
#[cfg(feature = "redis")]
pub use larder_core::{RedisOptions, RedisStore};
pub use service::{AsReceived, CacheService, UriSource};
pub use shared_cache::{SharedCacheLayer, SharedCacheService};

larder_core::route_layers!();

impl<S> Layer<S> for Cache {
    type Service = CacheService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CacheService::new(inner, self.route())
    }
}

impl<S> Layer<S> for CachePut {
    type Service = CacheService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CacheService::new(inner, self.route())
    }
}

impl<S, Target: larder_core::route::EvictTarget> Layer<S> for CacheEvict<Target> {
    type Service = CacheService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CacheService::new(inner, self.route())
    }
}
