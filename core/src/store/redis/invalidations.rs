//! Whom Redis tells of changes: a connection to the server, or to each master of a cluster.
//!
//! Changes are told on the connection on which they were asked for, in the order in which they happen, and answers come
//! in between. So an answer proves that every change before the question was heard of. In a cluster that isn't enough:
//! a slot may have gone to somebody who isn't listened to. So each master is also asked who serves what, and only if all
//! of them say the same, and say it of those who are listened to, nothing can have been missed. A master that was cut off
//! from the others notices that itself, and says so; until it does, it would answer a read no better.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::try_join_all;
use redis::aio::AsyncPushSender;
use redis::{RedisResult, Value, from_redis_value};

use super::address::Address;
use super::cluster::View;
use super::node::{Dialer, Line};
use super::server_identity::KnownServer;
use super::transport::Wire;

/// Connections on which changes are told.
pub(super) struct Ears {
    /// What holds each connection open.
    _lines: Vec<Line>,
    wires: Vec<Wire>,
    /// The servers that they lead to, each with the generation of its connection.
    servers: Vec<(Arc<KnownServer>, u64)>,
    is_cluster: bool,
    /// Who serves what in a cluster, once it has been asked.
    serving: Option<BTreeMap<String, String>>,
}

impl Ears {
    /// Asks each of these to tell of every change to keys that begin so.
    pub(super) async fn open(
        dialer: &Dialer,
        addresses: &[Address],
        head: &str,
        on_push: impl AsyncPushSender + Clone,
    ) -> RedisResult<Self> {
        let mut track = redis::cmd("CLIENT");
        track.arg("TRACKING").arg("ON").arg("BCAST").arg("PREFIX").arg(head);
        let opened = addresses.iter().map(async |address| {
            let (line, generation) = dialer.dial_listener(address, on_push.clone()).await?;
            let mut wire = line.wire().await?;
            wire.one(&track).await?;
            Ok::<_, redis::RedisError>(((line, wire), (dialer.server(address), generation)))
        });
        let (lines, servers): (Vec<_>, _) = try_join_all(opened).await?.into_iter().unzip();
        let (lines, wires) = lines.into_iter().unzip();
        Ok(Self { _lines: lines, wires, servers, is_cluster: dialer.options.is_cluster(), serving: None })
    }

    /// Whether every change before this call has been heard of. If not, only new ears will do.
    pub(super) async fn hear_everything(&mut self) -> RedisResult<bool> {
        // Commands may go to another server than these connections do.
        if self.servers.iter().any(|(server, generation)| server.generation() != *generation) {
            return Ok(false);
        }
        if !self.is_cluster {
            try_join_all(self.wires.iter_mut().map(async |wire| wire.one(&redis::cmd("PING")).await)).await?;
            return Ok(true);
        }
        let views = try_join_all(self.wires.iter_mut().map(view_of)).await?;
        let Some(views) = views.into_iter().collect::<Option<Vec<View>>>() else { return Ok(false) };
        let Some(first) = views.first() else { return Ok(false) };
        let serving = self.serving.get_or_insert_with(|| first.serving.clone());
        let is_heard = |master: &String| views.iter().any(|view| view.myself == *master);
        Ok(serving.keys().all(is_heard)
            && views.iter().all(|view| view.is_settled() && view.serving == *serving))
    }
}

/// What a master says about the cluster. `None` if it says that something is wrong.
async fn view_of(wire: &mut Wire) -> RedisResult<Option<View>> {
    let mut pipe = redis::pipe();
    pipe.cmd("CLUSTER").arg("INFO").cmd("CLUSTER").arg("NODES");
    let mut replies = wire.several(&pipe).await?.into_iter();
    let mut text =
        || -> RedisResult<String> { Ok(from_redis_value(replies.next().unwrap_or(Ok(Value::Nil))?)?) };
    let (info, nodes) = (text()?, text()?);
    let is_well = info.lines().any(|line| line == "cluster_state:ok");
    Ok(View::read(&nodes).filter(|_| is_well))
}
