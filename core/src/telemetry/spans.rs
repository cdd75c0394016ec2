//! Spans for `tracing` around single operations of the cache, never around the handler. (The functions passed to
//! `get_or_set` and `update` run within their spans.)
//!
//! Without the feature `tracing` there are no spans, and they cost nothing.

use std::future::Future;
use std::time::Duration;

use crate::key::{CacheKey, KeySpace};
use crate::policy::CommitResult;
use crate::status::Outcome;

/// A span, or nothing without the feature.
pub(crate) struct Span {
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

#[cfg(feature = "tracing")]
impl Span {
    pub(crate) const NONE: Self = Self { span: tracing::Span::none() };

    /// Runs the work within the span.
    pub(crate) fn around<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        tracing::Instrument::instrument(work, self.span.clone())
    }

    fn record(&self, field: &'static str, value: impl tracing::Value) {
        self.span.record(field, value);
    }
}

#[cfg(not(feature = "tracing"))]
impl Span {
    pub(crate) const NONE: Self = Self {};

    /// Runs the work.
    pub(crate) const fn around<F: Future>(&self, work: F) -> F {
        work
    }

    const fn record<V: Copy>(&self, _: &'static str, _: V) {}
}

impl Span {
    /// Records the key.
    pub(crate) fn key(&self, key: &CacheKey) {
        self.record("key", key.name());
    }

    /// Records the time to live in seconds. Records nothing without an expiry.
    pub(crate) fn lasting(&self, ttl: Option<Duration>) {
        if let Some(ttl) = ttl {
            self.record("ttl", ttl.as_secs_f64());
        }
    }

    /// Records how a request was answered, or that it isn't answered yet.
    pub(crate) fn outcome(&self, outcome: Outcome) {
        self.record("status", outcome.status.as_str());
        if let Some(reason) = outcome.reason {
            self.record("reason", reason.as_str());
        }
    }

    /// Records the result of a commit.
    pub(crate) fn stored(&self, stored: CommitResult) {
        let word = match stored {
            CommitResult::Stored => "stored",
            CommitResult::Revoked => "evicted",
            CommitResult::Failed => "failed",
        };
        self.record("status", word);
    }

    /// Records the word `yes` if the store confirmed an eviction, `no` otherwise.
    pub(crate) fn evicted(&self, confirmed: bool) {
        self.record("status", if confirmed { "evicted" } else { "failed" });
    }

    /// Records the result of a backend call: the word `yes` for `true`, `no` for `false`.
    pub(crate) fn result<E>(&self, [yes, no]: [&'static str; 2], result: Result<bool, &E>) {
        let word = match result {
            Ok(true) => yes,
            Ok(false) => no,
            Err(_) => "failed",
        };
        self.record("status", word);
    }
}

/// Creates a span with the common fields. Fields that aren't known yet are recorded later.
#[cfg(feature = "tracing")]
macro_rules! span {
    ($name:literal, $key:expr, $group:expr) => {
        Span {
            span: tracing::info_span!(
                target: "larder",
                $name,
                key = $key,
                group = $group,
                ttl = tracing::field::Empty,
                status = tracing::field::Empty,
                reason = tracing::field::Empty,
            ),
        }
    };
}
#[cfg(not(feature = "tracing"))]
macro_rules! span {
    ($name:literal, $key:expr, $group:expr) => {{
        let _ = ($key, $group);
        Span::NONE
    }};
}

/// A lookup of a stored response. The key is recorded once it is known.
pub(crate) fn get(space: &KeySpace) -> Span {
    span!("cache.get", tracing::field::Empty, space.group())
}

/// The write of a handler's answer to a read.
pub(crate) fn set(key: &CacheKey, ttl: Option<Duration>) -> Span {
    with_ttl(span!("cache.set", key.name(), key.group()), ttl)
}

/// The write of a handler's answer to a write.
pub(crate) fn put(key: &CacheKey, ttl: Option<Duration>) -> Span {
    with_ttl(span!("cache.put", key.name(), key.group()), ttl)
}

/// The eviction of an entry with all its variants.
pub(crate) fn evict(key: &CacheKey) -> Span {
    span!("cache.evict", key.name(), key.group())
}

/// The eviction of a group.
pub(crate) fn evict_group(space: &KeySpace) -> Span {
    span!("cache.evict", tracing::field::Empty, space.group())
}

/// An eviction by tag.
pub(crate) fn evict_tags() -> Span {
    span!("cache.evict", tracing::field::Empty, tracing::field::Empty)
}

/// A wait for another request's fill in this process.
pub(crate) fn wait() -> Span {
    span!("cache.wait", tracing::field::Empty, tracing::field::Empty)
}

/// Spans of a [`CacheBackend`](crate::CacheBackend).
pub(crate) mod backend {
    use super::{CacheKey, Duration, KeySpace, Span, with_ttl};

    pub(crate) fn get(key: &CacheKey) -> Span {
        span!("cache.backend.get", key.name(), key.group())
    }

    pub(crate) fn get_or_set(key: &CacheKey, ttl: Option<Duration>) -> Span {
        with_ttl(span!("cache.backend.get_or_set", key.name(), key.group()), ttl)
    }

    pub(crate) fn set(key: &CacheKey, ttl: Option<Duration>) -> Span {
        with_ttl(span!("cache.backend.set", key.name(), key.group()), ttl)
    }

    pub(crate) fn update(key: &CacheKey, ttl: Option<Duration>) -> Span {
        with_ttl(span!("cache.backend.update", key.name(), key.group()), ttl)
    }

    pub(crate) fn delete(key: &CacheKey) -> Span {
        span!("cache.backend.delete", key.name(), key.group())
    }

    pub(crate) fn has(key: &CacheKey) -> Span {
        span!("cache.backend.has", key.name(), key.group())
    }

    pub(crate) fn delete_group(space: &KeySpace) -> Span {
        span!("cache.backend.delete_group", tracing::field::Empty, space.group())
    }
}

fn with_ttl(span: Span, ttl: Option<Duration>) -> Span {
    span.lasting(ttl);
    span
}
