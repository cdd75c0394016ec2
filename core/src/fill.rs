//! Fills: which request runs the handler, which ones wait for it, and who may write what it answers.

pub(crate) mod background;
pub(crate) mod lease;
pub(crate) mod reentry;
pub(crate) mod single_flight;
