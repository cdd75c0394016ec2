//! The counters of one route, by its name or by the patterns that its requests matched.

use std::any::Any;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use crate::route::Route;
use crate::telemetry::{AnyRoute, RouteCounters};

/// The label of routes without a name.
const UNNAMED: &str = "unnamed";

/// The counters of one route: under its name, or under each pattern that its requests matched.
pub(crate) struct RouteMetrics {
    name: Option<Box<str>>,
    /// The first pattern. Nearly every route has only one.
    first: OnceLock<Arc<RouteCounters>>,
    others: RwLock<Vec<Arc<RouteCounters>>>,
}

impl RouteMetrics {
    pub(crate) const fn new(name: Option<Box<str>>) -> Self {
        Self { name, first: OnceLock::new(), others: RwLock::new(Vec::new()) }
    }
}

impl Route {
    /// Returns the route's label: its name, or the pattern that a request matched.
    pub(crate) fn label<'a>(&'a self, pattern: Option<&'a str>) -> &'a str {
        self.metrics.name.as_deref().or(pattern).unwrap_or(UNNAMED)
    }

    /// Calls `with` with the counters of this route for requests that matched this pattern.
    pub(crate) fn metrics<T>(
        self: &Arc<Self>,
        pattern: Option<&str>,
        with: impl FnOnce(&Arc<RouteCounters>) -> T,
    ) -> T {
        let RouteMetrics { first, others, .. } = &self.metrics;
        let name = self.label(pattern);
        let first = first.get_or_init(|| self.counters(name));
        if *first.name == *name {
            return with(first);
        }
        let known = others.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.iter().find(|known| *known.name == *name) {
            return with(known);
        }
        drop(known);
        let counters = self.counters(name);
        others.write().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&counters));
        with(&counters)
    }

    fn counters(self: &Arc<Self>, name: &str) -> Arc<RouteCounters> {
        let rule = self.policy.rule();
        let route: AnyRoute = Arc::downgrade(&(Arc::clone(self) as Arc<dyn Any + Send + Sync>));
        self.context.telemetry.counters(name, rule.kind, rule.space.group(), Some(route))
    }
}
