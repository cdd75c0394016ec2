//! The gauge `larder_breaker_open`, for the recorder that the application installs.

use std::fmt::Display;

use crate::store::Breaker;

/// Records the state of a server's circuit breaker.
#[cfg(feature = "metrics")]
pub(super) fn record(server: &impl Display, breaker: Breaker) {
    const NAME: &str = "larder_breaker_open";

    static DESCRIBED: std::sync::Once = std::sync::Once::new();
    DESCRIBED.call_once(|| {
        metrics::describe_gauge!(
            NAME,
            metrics::Unit::Count,
            "1 while a server of the store is known to be away"
        );
    });
    let is_open = breaker == Breaker::Open;
    metrics::gauge!(NAME, "server" => server.to_string()).set(f64::from(u8::from(is_open)));
}

/// Records nothing without the feature `metrics`.
#[cfg(not(feature = "metrics"))]
pub(super) fn record(_: &impl Display, _: Breaker) {}
