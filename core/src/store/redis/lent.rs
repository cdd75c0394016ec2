//! A Redis Cluster through a pool of the application's own: its client knows who has which key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::cluster::{Layout, View, ask, ranges};
use super::link::{Dialer, Node};
use super::options::Address;
use crate::store::StoreError;

/// A cluster that looks like one server, and like one more for each master when it comes to walking over all keys.
pub(super) struct LentCluster {
    dialer: Arc<Dialer>,
    any: Arc<Node>,
}

impl LentCluster {
    pub(super) fn new(dialer: Arc<Dialer>) -> Self {
        let any = Arc::new(Node::new(&dialer, &dialer.options.addresses()[0]));
        Self { dialer, any }
    }

    /// Whoever has the key that a command names.
    pub(super) fn any(&self) -> &Arc<Node> {
        &self.any
    }

    pub(super) fn close(&self) {
        self.any.close();
    }

    /// Every master that has a slot: the others can't be reached through the pool.
    pub(super) async fn layout(&self, deadline: Duration) -> Result<Layout, StoreError> {
        let slots = ask(&self.any, redis::cmd("CLUSTER").arg("SLOTS"), deadline).await?;
        let mut masters: BTreeMap<String, (Address, u16)> = BTreeMap::new();
        for (first, _, address) in ranges(slots).map_err(StoreError::refused)? {
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
