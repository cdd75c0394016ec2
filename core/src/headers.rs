//! Header fields, parsed and evaluated. Nothing here knows that there is a cache.

pub mod cache_control;
pub(crate) mod conditional;
pub mod range;
pub(crate) mod vary;
