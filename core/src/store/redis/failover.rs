//! Keeps evicted entries away when Redis loses changes that it confirmed: detects another server, and repeats the changes.

pub(super) mod change_log;
mod pending_evictions;
pub(super) mod server_identity;
pub(super) mod tag_log;

use super::address::Address;
use super::slots::SlotSet;

/// Reacts when a server may have lost changes that it confirmed.
pub(super) trait ServerChangeHandler: Send + Sync {
    /// Called when servers may have lost changes, before any value that was read from them is used. They still have the first
    /// `kept` changes.
    fn on_change(&self, change: ServerChange<'_>, kept: u64);

    /// Returns `true` if any change is remembered.
    fn remembers(&self) -> bool;

    /// Returns the number of changes that servers have confirmed.
    fn confirmed(&self) -> u64;
}

/// The servers that replaced others.
#[derive(Debug)]
pub(super) enum ServerChange<'a> {
    /// The server at this address.
    Server(&'a Address),
    /// The owners of these slots of a cluster.
    Owners(SlotSet),
}
