//! A Redis Cluster through the application's own pool, whose client routes the commands.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use redis::{RedisError, RedisResult};
use tokio::time::timeout;

use super::address::Address;
use super::cluster::{Layout, View, ask, ranges};
use super::dialer::Dialer;
use super::failover::ServerChange;
use super::failover::change_log::Lost;
use super::failover::server_identity::ServerIdentity;
use super::node::Node;
use super::slots::{SlotSet, slot};
use super::transport::{ClusterRoute, Transport};
use crate::store::StoreError;

/// A cluster that is used like one server. To iterate over all keys, each master is addressed separately.
pub(super) struct PooledCluster {
    dialer: Arc<Dialer>,
    any: Arc<Node>,
    /// The masters as of the last check.
    masters: Mutex<Option<Masters>>,
    is_known: AtomicBool,
    /// `true` if commands were sent before the masters were identified.
    was_unknown: AtomicBool,
}

/// The masters and their slots.
#[derive(Clone, Default)]
struct Masters {
    ranges: Vec<(u16, u16, Address)>,
    /// The identities of the masters that answered.
    identities: HashMap<Address, ServerIdentity>,
}

impl Masters {
    fn is_known(&self, address: &Address) -> bool {
        self.ranges.iter().any(|(.., known)| known == address)
    }

    /// Returns `true` if this server has the replication history of one of the masters.
    fn has_history_of(&self, found: &ServerIdentity) -> bool {
        self.identities.values().any(|known| known.has_history_of(found))
    }

    fn owner(&self, slot: u16) -> Option<&Address> {
        let range = self.ranges.iter().find(|(first, last, _)| (*first..=*last).contains(&slot));
        range.map(|(.., address)| address)
    }

    /// Returns every slot of the master that owns this one.
    fn slots_of_owner(&self, slot: u16) -> SlotSet {
        let owner = self.owner(slot);
        let owned = self.ranges.iter().filter(|(.., address)| owner == Some(address));
        owned.flat_map(|(first, last, _)| *first..=*last).chain([slot]).collect()
    }

    /// Returns the slots whose owner may lack confirmed changes: its identity changed, or it was no master before.
    fn lost_since(&self, before: &Self) -> SlotSet {
        let is_lost = |address: &Address| match (before.identities.get(address), self.identities.get(address))
        {
            (Some(before), Some(now)) => !before.is_same_as(now),
            _ => !before.is_known(address),
        };
        let lost = self.ranges.iter().filter(|(.., address)| is_lost(address));
        lost.flat_map(|(first, last, _)| *first..=*last).collect()
    }
}

impl PooledCluster {
    pub(super) fn new(dialer: Arc<Dialer>) -> Self {
        let any = Arc::new(Node::new(&dialer, &dialer.options.addresses()[0]));
        Self {
            dialer,
            any,
            masters: Mutex::default(),
            is_known: AtomicBool::new(false),
            was_unknown: AtomicBool::new(false),
        }
    }

    /// Identifies the masters before the first command, as the base of later comparisons.
    pub(super) async fn identify_masters(&self, deadline: Duration) {
        if !self.is_known.load(Ordering::Acquire) {
            // On the heap, so that the futures of other calls stay small.
            Box::pin(self.check(deadline)).await;
        }
    }

    /// Looks up the masters, and asks every one for its identity.
    pub(super) async fn check(&self, deadline: Duration) {
        let Ok(mut masters) = self.masters(deadline).await else {
            self.was_unknown.store(true, Ordering::Release);
            return;
        };
        let asked: HashMap<&Address, u16> =
            masters.ranges.iter().map(|(first, _, address)| (address, *first)).collect();
        let asked = join_all(asked.into_iter().map(async |(address, slot)| {
            let found = timeout(deadline, self.identity_of(slot)).await.ok()?.ok()??;
            Some((address.clone(), found))
        }))
        .await;
        masters.identities = asked.into_iter().flatten().collect();
        let mut known = self.masters_lock();
        match &*known {
            Some(before) => {
                let lost = masters.lost_since(before);
                if !lost.is_empty() {
                    tracing::info!("masters of the Redis cluster changed; repeating what was evicted lately");
                    self.dialer.change_handler.on_change(ServerChange::Owners(lost), 0);
                }
                for (address, identity) in &before.identities {
                    masters.identities.entry(address.clone()).or_insert_with(|| identity.clone());
                }
            }
            // Commands were sent to masters that had not been identified.
            None if self.was_unknown.load(Ordering::Acquire) => {
                self.dialer.change_handler.on_change(ServerChange::Server(self.any.address()), 0);
            }
            None => {}
        }
        *known = Some(masters);
        self.is_known.store(true, Ordering::Release);
    }

    /// Requests the server's identity with each answer while any change is remembered: the pool's client follows a failover
    /// without reporting it.
    pub(super) fn with_identity_callback(self: &Arc<Self>, transport: Transport, key: &str) -> Transport {
        let is_asked = self.masters_lock().as_ref().is_some_and(|masters| !masters.identities.is_empty());
        if !is_asked || !self.dialer.change_handler.remembers() {
            return transport;
        }
        let (cluster, slot) = (self.clone(), slot(key));
        transport.with_identity_callback(Box::new(move |found| cluster.on_identity(slot, found)))
    }

    /// Compares the identity of the server that answered for a slot.
    fn on_identity(&self, slot: u16, found: Option<ServerIdentity>) {
        let Some(found) = found else { return };
        let mut known = self.masters_lock();
        let Some(masters) = known.as_mut().filter(|masters| !masters.has_history_of(&found)) else { return };
        self.dialer.change_handler.on_change(ServerChange::Owners(masters.slots_of_owner(slot)), 0);
        // From now on an answer of the earlier master isn't used.
        if let Some(owner) = masters.owner(slot).cloned() {
            masters.identities.insert(owner, found);
        }
    }

    fn masters_lock(&self) -> MutexGuard<'_, Option<Masters>> {
        self.masters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn masters(&self, deadline: Duration) -> Result<Masters, StoreError> {
        let slots = ask(&self.any, redis::cmd("CLUSTER").arg("SLOTS"), deadline).await?;
        let ranges = ranges(slots).map_err(StoreError::refused)?;
        let ranges = ranges.into_iter().filter_map(|(first, last, address)| Some((first, last, address?)));
        Ok(Masters { ranges: ranges.collect(), identities: HashMap::new() })
    }

    async fn identity_of(&self, slot: u16) -> RedisResult<Option<ServerIdentity>> {
        let Some(pool) = &self.dialer.options.pool else { return Ok(None) };
        let refused = |error: &RedisError| self.dialer.refusals.note(self.any.address(), error);
        pool.get(ClusterRoute::Master(slot)).await?.identity(refused).await
    }

    /// Returns the node for commands that name a key: the pool's client finds the owner.
    pub(super) fn any(&self) -> &Arc<Node> {
        &self.any
    }

    pub(super) fn close(&self) {
        self.any.close();
    }

    /// Returns every master of these slots. Masters without slots can't be reached through the pool.
    pub(super) async fn layout(&self, within: &Lost, deadline: Duration) -> Result<Layout, StoreError> {
        let slots = ask(&self.any, redis::cmd("CLUSTER").arg("SLOTS"), deadline).await?;
        let mut masters: BTreeMap<String, (Address, u16)> = BTreeMap::new();
        for (first, last, address) in ranges(slots).map_err(StoreError::refused)? {
            if !(first..=last).any(|slot| within.has_slot(slot)) {
                continue;
            }
            let address =
                address.ok_or_else(|| StoreError::unavailable("a node does not know how to be reached"))?;
            masters.entry(address.to_string()).or_insert((address, first));
        }
        let (mut nodes, mut described) = (Vec::new(), BTreeSet::new());
        let (mut moving, mut has_empty) = (false, false);
        for (address, slot) in masters.into_values() {
            let node = Arc::new(Node::new(&Arc::new(self.dialer.to_master(slot)), &address));
            let view = View::of(&node, deadline).await?;
            moving |= view.moving;
            has_empty |= !view.empty_masters.is_empty();
            described.insert(view.described);
            nodes.push(node);
        }
        if moving && has_empty {
            return Err(StoreError::unavailable("keys are moving to a master without a slot"));
        }
        Ok(Layout { nodes, described, moving })
    }
}
