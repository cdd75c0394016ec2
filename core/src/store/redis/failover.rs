//! Keeps evicted entries away when Redis loses changes that it confirmed: detects another server, and repeats the changes.

pub(super) mod change_log;
mod pending_evictions;
pub(super) mod server_identity;
pub(super) mod tag_log;
