//! The twin of `metrics` without the feature `metrics`. Exports nothing.

use std::sync::Arc;
use std::time::Duration;

use super::{EvictionOutcome, Labels, Operation, RouteCounters, WriteOutcome};
use crate::status::Outcome;

pub(super) struct RouteExport;

impl RouteExport {
    pub(super) const fn new(_: Labels<'_>) -> Self {
        Self
    }

    pub(super) const fn request(&self, _: &RouteCounters, _: Outcome) {}
}

pub(super) const fn fill_wait(_: Duration, _: bool) {}

pub(super) const fn store_call(_: Operation, _: Duration, _: bool) {}

pub(super) const fn write(_: Option<&Arc<str>>, _: WriteOutcome) {}

pub(super) const fn eviction(_: Option<&Arc<str>>, _: EvictionOutcome) {}
