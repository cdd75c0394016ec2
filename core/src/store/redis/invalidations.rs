//! Connections that receive `CLIENT TRACKING` invalidations: one to the server, or one to each master of a cluster.
//!
//! Redis sends messages and replies on one connection in the order in which they happen. So a reply proves that every message
//! about an earlier change has arrived. In a cluster that isn't enough: a slot may have moved to a master without a connection.
//! So each master is also asked for the slots' owners. No message is missing only if all masters agree, and each owner has a
//! connection here. A master that is cut off from the others reports that itself. Until then, reads from it are just as outdated.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::try_join_all;
use redis::aio::AsyncPushSender;
use redis::{RedisResult, Value, from_redis_value};

use super::address::Address;
use super::cluster::View;
use super::dialer::{ConnectionSource, Dialer};
use super::failover::server_identity::KnownServer;
use super::transport::Transport;

/// The connections that receive invalidation messages.
pub(super) struct InvalidationListener {
    /// Keeps each connection open.
    _sources: Vec<ConnectionSource>,
    transports: Vec<Transport>,
    /// The connected servers, each with the generation of its connection.
    servers: Vec<(Arc<KnownServer>, u64)>,
    is_cluster: bool,
    /// The owners of a cluster's slots, once known.
    serving: Option<BTreeMap<String, String>>,
}

impl InvalidationListener {
    /// Connects to each address, and turns on tracking for keys that begin with `head`.
    pub(super) async fn open(
        dialer: &Dialer,
        addresses: &[Address],
        head: &str,
        on_push: impl AsyncPushSender + Clone,
    ) -> RedisResult<Self> {
        let mut track = redis::cmd("CLIENT");
        track.arg("TRACKING").arg("ON").arg("BCAST").arg("PREFIX").arg(head);
        let opened = addresses.iter().map(async |address| {
            let (source, generation) = dialer.dial_listener(address, on_push.clone()).await?;
            let mut transport = source.transport().await?;
            transport.send(&track).await?;
            Ok::<_, redis::RedisError>(((source, transport), (dialer.server(address), generation)))
        });
        let (sources, servers): (Vec<_>, _) = try_join_all(opened).await?.into_iter().unzip();
        let (sources, transports) = sources.into_iter().unzip();
        Ok(Self {
            _sources: sources,
            transports,
            servers,
            is_cluster: dialer.options.is_cluster(),
            serving: None,
        })
    }

    /// Returns `true` if every message about a change before this call has arrived. After `false` the connections must be replaced.
    pub(super) async fn is_caught_up(&mut self) -> RedisResult<bool> {
        // Commands may reach another server than these connections.
        if self.servers.iter().any(|(server, generation)| server.generation() != *generation) {
            return Ok(false);
        }
        if !self.is_cluster {
            try_join_all(
                self.transports.iter_mut().map(async |transport| transport.send(&redis::cmd("PING")).await),
            )
            .await?;
            return Ok(true);
        }
        let views = try_join_all(self.transports.iter_mut().map(view_of)).await?;
        let Some(views) = views.into_iter().collect::<Option<Vec<View>>>() else { return Ok(false) };
        let Some(first) = views.first() else { return Ok(false) };
        let serving = self.serving.get_or_insert_with(|| first.serving.clone());
        let is_connected = |master: &String| views.iter().any(|view| view.myself == *master);
        Ok(serving.keys().all(is_connected)
            && views.iter().all(|view| view.is_settled() && view.serving == *serving))
    }
}

/// Asks a master for its view of the cluster. Returns `None` if the master reports a fault.
async fn view_of(transport: &mut Transport) -> RedisResult<Option<View>> {
    let mut pipe = redis::pipe();
    pipe.cmd("CLUSTER").arg("INFO").cmd("CLUSTER").arg("NODES");
    let mut replies = transport.send_pipeline(&pipe).await?.into_iter();
    let mut text =
        || -> RedisResult<String> { Ok(from_redis_value(replies.next().unwrap_or(Ok(Value::Nil))?)?) };
    let (info, nodes) = (text()?, text()?);
    let is_well = info.lines().any(|line| line == "cluster_state:ok");
    Ok(View::read(&nodes).filter(|_| is_well))
}
