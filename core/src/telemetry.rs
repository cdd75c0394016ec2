//! Counters, histograms and spans of a cache, and their export.
//!
//! Three places record events, and none of them can change an answer. [`Route::handle`] records how a request was
//! [answered](Telemetry::answered). [`MeteredStore`] wraps the store and records every call, and so every write and
//! eviction. A request that waits for another request's fill records [its wait](Telemetry::waited).
//!
//! A hit increments two counters. Anything that costs more, such as times and recent requests, is recorded only while a
//! console exists.

mod counters;
#[cfg(feature = "console")]
pub(crate) mod history;
mod metered_store;
// Without the feature, the same functions do nothing.
#[cfg_attr(not(feature = "metrics"), path = "telemetry/no_metrics.rs")]
mod metrics;
pub(crate) mod spans;

use std::any::Any;
use std::collections::HashMap;
#[cfg(feature = "console")]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime};

use http::StatusCode;

use crate::policy::rule::Kind;
use crate::reason::Reason;
use crate::request::RequestView;
use crate::stats::{
    Evictions, FillWaits, GroupStats, OperationStats, ReasonCount, Requests, RouteStats, Stats, StoreStats,
    Writes,
};
use crate::status::{Outcome, Status};
use crate::store::Health;

use self::counters::{Counters, Histogram};
pub(crate) use self::metered_store::MeteredStore;

/// A route of any type, for the console. This module names no route, so that imports go one way.
pub(crate) type AnyRoute = Weak<dyn Any + Send + Sync>;

/// The label of shared caches, which see every request of a service and know no routes.
const SHARED_CACHE: &str = "shared cache";

/// Maximum number of groups counted separately. A backend may use one group per user; further groups are counted under
/// [`OTHER_GROUPS`].
const MOST_GROUPS: usize = 512;
const OTHER_GROUPS: &str = "(others)";

/// All counters of one cache.
#[derive(Default)]
pub(crate) struct Telemetry {
    routes: RwLock<Vec<Arc<RouteCounters>>>,
    ungrouped: GroupCounters,
    groups: RwLock<HashMap<Arc<str>, Arc<GroupCounters>>>,
    waited: Histogram,
    wait_failures: AtomicU64,
    operations: [OperationCounters; Operation::ALL.len()],
    /// Set once there is a console.
    #[cfg(feature = "console")]
    history: OnceLock<history::RequestHistory>,
}

impl Telemetry {
    /// Returns the history, and starts recording it.
    #[cfg(feature = "console")]
    pub(crate) fn history(&self) -> &history::RequestHistory {
        self.history.get_or_init(history::RequestHistory::default)
    }

    /// Returns the routes that have had requests.
    #[cfg(feature = "console")]
    pub(crate) fn routes<R: Send + Sync + 'static>(&self) -> Vec<(Arc<str>, Arc<R>)> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let routes = routes.iter().filter_map(|known| {
            let route = known.route.as_ref()?.upgrade()?.downcast().ok()?;
            Some((Arc::clone(&known.name), route))
        });
        routes.collect()
    }

    /// Records that a request was answered.
    pub(crate) fn answered(&self, route: &RouteCounters, outcome: Outcome) {
        route.statuses.count(outcome.status as usize);
        if let Some(reason) = outcome.reason {
            route.reasons[reason as usize].fetch_add(1, Ordering::Relaxed);
        }
        route.exported.request(route, outcome);
    }

    /// Records a wait for another request's fill. `in_vain` is `true` if it gave no usable result.
    pub(crate) fn waited(&self, took: Duration, in_vain: bool) {
        self.waited.record(took);
        self.wait_failures.fetch_add(in_vain.into(), Ordering::Relaxed);
        metrics::fill_wait(took, in_vain);
    }

    /// Records a call of the store, with its duration if it had to wait.
    fn called(&self, operation: Operation, took: Option<Duration>, ok: bool) {
        let counters = &self.operations[operation as usize];
        counters.calls.count(usize::from(!ok));
        if let Some(took) = took {
            counters.latency.record(took);
            metrics::store_call(operation, took, ok);
        }
    }

    /// Records the result of a write.
    fn wrote(&self, group: Option<&str>, write: WriteOutcome) {
        self.in_group(group, |name, group| {
            group.writes[write as usize].fetch_add(1, Ordering::Relaxed);
            metrics::write(name, write);
        });
    }

    /// Records the result of an eviction.
    fn evicted(&self, group: Option<&str>, eviction: EvictionOutcome) {
        self.in_group(group, |name, group| {
            group.evictions[eviction as usize].fetch_add(1, Ordering::Relaxed);
            metrics::eviction(name, eviction);
        });
    }

    fn in_group(&self, group: Option<&str>, record: impl FnOnce(Option<&Arc<str>>, &GroupCounters)) {
        let Some(name) = group else { return record(None, &self.ungrouped) };
        let known = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((name, counters)) = known.get_key_value(name) {
            return record(Some(name), counters);
        }
        drop(known);
        let mut known = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        let name: Arc<str> = if known.len() < MOST_GROUPS { name } else { OTHER_GROUPS }.into();
        let counters = Arc::clone(known.entry(Arc::clone(&name)).or_default());
        drop(known);
        record(Some(&name), &counters);
    }

    /// Returns the counters of shared caches.
    pub(crate) fn shared_cache(&self) -> Arc<RouteCounters> {
        self.counters(SHARED_CACHE, Kind::Read, None, None)
    }

    /// Returns the counters for a name, kind and group. Routes with the same labels share them.
    #[cfg_attr(not(feature = "console"), expect(unused_variables, reason = "only the console uses it"))]
    pub(crate) fn counters(
        &self,
        name: &str,
        kind: Kind,
        group: Option<&str>,
        route: Option<AnyRoute>,
    ) -> Arc<RouteCounters> {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        let same = |known: &&Arc<RouteCounters>| {
            &*known.name == name && known.kind == kind && known.group.as_deref() == group
        };
        if let Some(known) = routes.iter().find(same) {
            return Arc::clone(known);
        }
        let (name, group) = (name.into(), group.map(Into::into));
        let counters = Arc::new(RouteCounters {
            exported: metrics::RouteExport::new((&name, kind, group.as_ref())),
            name,
            kind,
            group,
            #[cfg(feature = "console")]
            route,
            statuses: Counters::new(),
            reasons: [const { AtomicU64::new(0) }; Reason::ALL.len()],
        });
        routes.push(Arc::clone(&counters));
        counters
    }

    pub(crate) fn stats(&self, health: Health) -> Stats {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let mut routes: Vec<RouteStats> = routes.iter().map(|route| route.read()).collect();
        routes.sort_by(|a, b| (&a.route, a.kind as u8, &a.group).cmp(&(&b.route, b.kind as u8, &b.group)));

        let mut groups = HashMap::from([(None, self.ungrouped.read(None))]);
        for (name, counters) in &*self.groups.read().unwrap_or_else(PoisonError::into_inner) {
            groups.insert(Some(name.to_string()), counters.read(Some(name)));
        }
        for route in routes.iter().filter(|route| route.kind == Kind::Read) {
            let group = groups
                .entry(route.group.clone())
                .or_insert_with(|| GroupCounters::default().read(route.group.as_deref()));
            group.requests = group.requests.plus(&route.requests);
        }
        let mut groups: Vec<GroupStats> = groups.into_values().filter(GroupStats::is_used).collect();
        groups.sort_by(|a, b| a.group.cmp(&b.group));

        let operations = Operation::ALL.into_iter().map(|operation| {
            let counters = &self.operations[operation as usize];
            let [ok, failures] = counters.calls.sums();
            let latency = counters.latency.read();
            OperationStats { operation: operation.as_str(), calls: ok + failures, failures, latency }
        });
        Stats {
            routes,
            groups,
            fill_waits: FillWaits {
                in_vain: self.wait_failures.load(Ordering::Relaxed),
                waited: self.waited.read(),
            },
            store: StoreStats { health, operations: operations.collect() },
        }
    }
}

/// A timer of one request, from its arrival to its answer. A request whose client disconnects before is not counted.
pub(crate) struct RequestTimer {
    /// The request's details, if there is a console.
    #[cfg(feature = "console")]
    details: Option<Box<history::PendingRequest>>,
}

impl RequestTimer {
    #[cfg_attr(not(feature = "console"), expect(unused_variables, reason = "there is no console"))]
    pub(crate) fn new(
        telemetry: &Telemetry,
        now: impl FnOnce() -> SystemTime,
        request: &RequestView<'_>,
    ) -> Self {
        Self {
            #[cfg(feature = "console")]
            details: telemetry
                .history
                .get()
                .map(|_| Box::new(history::PendingRequest::new(now(), request.method, request.uri))),
        }
    }

    /// Records the answer of a request that needed no handler.
    #[cfg_attr(not(feature = "console"), expect(unused_variables, reason = "there is no console"))]
    pub(crate) fn answered(
        self,
        telemetry: &Telemetry,
        counters: &RouteCounters,
        outcome: Outcome,
        answer: StatusCode,
    ) {
        telemetry.answered(counters, outcome);
        #[cfg(feature = "console")]
        if let (Some(history), Some(details)) = (telemetry.history.get(), self.details) {
            history.record(counters, *details, outcome, answer);
        }
    }

    /// Adds the route's counters, for a request that goes to the handler: the handler takes the request, from which the
    /// counters are found.
    pub(crate) fn keep(self, telemetry: &Telemetry, counters: Arc<RouteCounters>) -> RunningRequest<'_> {
        RunningRequest { timer: Some(self), telemetry, counters }
    }
}

/// The timer of a request whose handler runs. If the handler panics, the request counts as an error.
pub(crate) struct RunningRequest<'a> {
    timer: Option<RequestTimer>,
    telemetry: &'a Telemetry,
    counters: Arc<RouteCounters>,
}

impl RunningRequest<'_> {
    /// Records the answer.
    pub(crate) fn answered(mut self, outcome: Outcome, answer: StatusCode) {
        self.record(outcome, answer);
    }

    fn record(&mut self, outcome: Outcome, answer: StatusCode) {
        if let Some(timer) = self.timer.take() {
            timer.answered(self.telemetry, &self.counters, outcome, answer);
        }
    }
}

impl Drop for RunningRequest<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.record(Outcome::ERROR, StatusCode::INTERNAL_SERVER_ERROR);
        }
    }
}

/// The counters of one route.
pub(crate) struct RouteCounters {
    pub(crate) name: Arc<str>,
    kind: Kind,
    group: Option<Arc<str>>,
    /// The route, to explain its decisions.
    #[cfg(feature = "console")]
    route: Option<AnyRoute>,
    statuses: Counters<{ Status::ALL.len() }>,
    reasons: [AtomicU64; Reason::ALL.len()],
    exported: metrics::RouteExport,
}

/// The labels that identify a route's counters.
type Labels<'a> = (&'a Arc<str>, Kind, Option<&'a Arc<str>>);

impl RouteCounters {
    #[cfg(feature = "metrics")]
    fn labels(&self) -> Labels<'_> {
        (&self.name, self.kind, self.group.as_ref())
    }

    fn read(&self) -> RouteStats {
        let counts = Reason::ALL.iter().zip(&self.reasons);
        let counts = counts
            .map(|(reason, count)| ReasonCount { reason: *reason, count: count.load(Ordering::Relaxed) });
        let mut reasons: Vec<_> = counts.filter(|reason| reason.count > 0).collect();
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.count));
        RouteStats {
            route: (*self.name).into(),
            kind: self.kind,
            group: self.group.as_deref().map(Into::into),
            requests: Requests::new(self.statuses.sums()),
            reasons,
        }
    }
}

#[derive(Default)]
struct GroupCounters {
    writes: [AtomicU64; 3],
    evictions: [AtomicU64; 4],
}

impl GroupCounters {
    fn read(&self, group: Option<&str>) -> GroupStats {
        let [stored, refused, failed] = [0, 1, 2].map(|index| self.writes[index].load(Ordering::Relaxed));
        let writes = Writes { stored, refused, failed };
        let [keys, groups, tags, failed] =
            [0, 1, 2, 3].map(|index| self.evictions[index].load(Ordering::Relaxed));
        let evictions = Evictions { keys, groups, tags, failed };
        GroupStats { group: group.map(Into::into), requests: Requests::default(), writes, evictions }
    }
}

impl GroupStats {
    fn is_used(&self) -> bool {
        self.group.is_some()
            || self.requests != Requests::default()
            || self.writes != Writes::default()
            || self.evictions != Evictions::default()
    }
}

struct OperationCounters {
    /// Successful calls, and failed calls.
    calls: Counters<2>,
    latency: Histogram,
}

impl Default for OperationCounters {
    fn default() -> Self {
        Self { calls: Counters::new(), latency: Histogram::new() }
    }
}

/// A function of the store.
#[derive(Clone, Copy)]
enum Operation {
    Get,
    Set,
    Delete,
    DeleteGroup,
    EvictTags,
    TagClock,
    Has,
    Begin,
    Commit,
    Renew,
    Abandon,
}

impl Operation {
    const ALL: [Self; 11] = [
        Self::Get,
        Self::Set,
        Self::Delete,
        Self::DeleteGroup,
        Self::EvictTags,
        Self::TagClock,
        Self::Has,
        Self::Begin,
        Self::Commit,
        Self::Renew,
        Self::Abandon,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Set => "set",
            Self::Delete => "delete",
            Self::DeleteGroup => "delete_group",
            Self::EvictTags => "evict_tags",
            Self::TagClock => "tag_clock",
            Self::Has => "has",
            Self::Begin => "begin",
            Self::Commit => "commit",
            Self::Renew => "renew",
            Self::Abandon => "abandon",
        }
    }
}

/// The result of a write.
#[derive(Clone, Copy)]
enum WriteOutcome {
    Stored,
    Refused,
    Failed,
}

/// The result of an eviction.
#[derive(Clone, Copy)]
enum EvictionOutcome {
    Key,
    Group,
    Tags,
    Failed,
}
