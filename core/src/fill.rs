//! Fills: single flight in this process, leases between processes, and work that outlives its client.

pub(crate) mod background;
pub(crate) mod lease;
pub(crate) mod reentry;
pub(crate) mod single_flight;
mod variants;
