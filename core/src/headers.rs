//! Header fields, parsed and evaluated. Nothing here knows that there is a cache.

pub mod cache_control;
pub(crate) mod conditional;
pub(crate) mod hop_by_hop;
pub mod range;
pub(crate) mod vary;
