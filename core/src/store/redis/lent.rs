//! A Redis Cluster through a pool of the application's own: its client knows who has which key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, FromRedisValue, from_redis_value};
use tokio::time::Instant;

use super::cluster::{Layout, Line, ranges};
use super::link::{Dialer, Node};
use super::options::Address;
use super::wire::Wire;
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
            let list: String = ask(&node, redis::cmd("CLUSTER").arg("NODES"), deadline).await?;
            for line in list.lines().filter_map(Line::parse) {
                has_empty |= line.is_empty_master();
                if line.is_myself {
                    if !line.is_master {
                        return Err(StoreError::unavailable("a failover is under way"));
                    }
                    moving |= line.is_moving();
                    described.insert(line.describe());
                }
            }
            nodes.push(node);
        }
        if moving && has_empty {
            return Err(StoreError::unavailable("keys are moving to a master without a slot"));
        }
        Ok(Layout { nodes, described, moving })
    }
}

async fn ask<T: FromRedisValue>(node: &Node, cmd: &Cmd, deadline: Duration) -> Result<T, StoreError> {
    let send = |mut conn: Wire| async move { Ok(from_redis_value(conn.one(cmd).await?)?) };
    node.run(Instant::now() + deadline, deadline, true, send).await?.map_err(StoreError::refused)
}
