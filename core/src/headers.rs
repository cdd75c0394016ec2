//! Header fields, parsed and evaluated. These modules are independent of the cache.

pub mod cache_control;
pub(crate) mod conditional;
pub(crate) mod hop_by_hop;
pub mod range;
pub(crate) mod vary;
