//! The memory of a route about the tags of its responses, so that a route without tags doesn't read the tag clock for each fill.
//!
//! A handler may name tags on any route. A route of which no response had tags reads the clock once, before its first fill. Later
//! fills use that stamp: it is older than necessary, which is safe. The first response with tags makes the route read the clock for
//! each fill.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::tag::TagStamp;

#[derive(Debug, Default)]
pub(crate) struct TagMemory {
    has_tags: AtomicBool,
    /// The clock before the first fill. The inner `None` means that the store keeps no tagged entries, or couldn't tell.
    first_stamp: OnceLock<Option<TagStamp>>,
}

impl TagMemory {
    /// Returns `true` if a handler of the route has named tags.
    pub(crate) fn has_tags(&self) -> bool {
        self.has_tags.load(Ordering::Relaxed)
    }

    /// Records that a handler of the route has named tags.
    pub(crate) fn record_tags(&self) {
        if !self.has_tags() {
            self.has_tags.store(true, Ordering::Relaxed);
        }
    }

    /// Returns the clock before the first fill, once it was read.
    pub(crate) fn first_stamp(&self) -> Option<Option<TagStamp>> {
        self.first_stamp.get().copied()
    }

    /// Records a clock. The first one stays.
    pub(crate) fn record_first_stamp(&self, stamp: Option<TagStamp>) {
        self.first_stamp.get_or_init(|| stamp);
    }
}
