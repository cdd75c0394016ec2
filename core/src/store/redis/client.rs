//! The client of a store: sends commands to the one server, or to the node of a cluster that has the key.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use redis::{
    Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind, Value, from_redis_value,
};
use tokio::time::Instant;

use super::address::Address;
use super::cluster::{Cluster, Layout, Redirection};
use super::dialer::Dialer;
use super::failover::change_log::Lost;
use super::failover::{ServerChange, ServerChangeHandler};
use super::node::Node;
use super::options::{RedisOptions, Replicas};
#[cfg(feature = "redis-pool")]
use super::pooled_cluster::PooledCluster;
use super::refusals;
use super::scripts::ScriptCall;
use super::slots::slot;
use super::transport::Transport;
use crate::store::{Breaker, StoreError};

/// The client of a store. Clones share its connections.
#[derive(Clone)]
pub(super) struct Client {
    dialer: Arc<Dialer>,
    servers: Servers,
    /// The number of replicas that confirm each change, except those of [`command`](Self::command).
    replicas: Option<Replicas>,
}

/// The number of keys outside of groups that are removed concurrently if replicas must confirm the removal. They wait for each
/// other, and share one deadline.
const UNLINKS_AT_ONCE: usize = 16;

#[derive(Clone)]
enum Servers {
    One(Arc<Node>),
    Cluster(Arc<Cluster>),
    #[cfg(feature = "redis-pool")]
    PooledCluster(Arc<PooledCluster>),
}

/// The server that a command is sent to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Destination<'a> {
    /// The server that has this key, and all keys of its slot.
    Key(&'a str),
    /// This node.
    Node(&'a Node),
}

impl Client {
    /// Creates a client that connects when it is first used.
    ///
    /// `change_handler` is called when a server may have lost changes that it confirmed, before any reply of it is used.
    pub(super) fn new(options: &RedisOptions, change_handler: Arc<dyn ServerChangeHandler>) -> Self {
        Self::with_dialer(Arc::new(Dialer::new(options.clone(), change_handler)))
    }

    fn with_dialer(dialer: Arc<Dialer>) -> Self {
        let options = &dialer.options;
        #[cfg(feature = "redis-pool")]
        if options.is_cluster() && options.pool.is_some() {
            let servers = Servers::PooledCluster(Arc::new(PooledCluster::new(dialer.clone())));
            return Self { servers, dialer, replicas: None };
        }
        let servers = if options.cluster {
            Servers::Cluster(Arc::new(Cluster::new(dialer.clone())))
        } else {
            Servers::One(Arc::new(Node::new(&dialer, &options.addresses()[0])))
        };
        Self { servers, dialer, replicas: None }
    }

    /// Returns a client with other connections to the same servers. Each of its calls waits until this many replicas have
    /// confirmed it.
    pub(super) fn with_replicas(&self, replicas: Replicas) -> Self {
        Self { replicas: Some(replicas), ..Self::with_dialer(self.dialer.clone()) }
    }

    pub(super) fn dialer(&self) -> &Arc<Dialer> {
        &self.dialer
    }

    /// Asks every server for its identity. Calls the change handler for servers that changed before it returns.
    pub(super) async fn check_servers(&self) {
        let deadline = self.dialer.options.connect_deadline;
        match &self.servers {
            Servers::One(node) => node.check(deadline).await,
            Servers::Cluster(cluster) => cluster.check(deadline).await,
            #[cfg(feature = "redis-pool")]
            Servers::PooledCluster(cluster) => cluster.check(deadline).await,
        }
    }

    /// Returns what the changed servers may have lost.
    pub(super) fn lost(&self, change: &ServerChange<'_>) -> Lost {
        match (&self.servers, change) {
            (_, ServerChange::Owners(slots)) => Lost::Slots(slots.clone()),
            (Servers::Cluster(cluster), ServerChange::Server(address)) => {
                Lost::Slots(cluster.slots_of(address))
            }
            (_, ServerChange::Server(_)) => Lost::Everything,
        }
    }

    /// Sends one command, which reads.
    pub(super) async fn command<T: FromRedisValue>(
        &self,
        at: Destination<'_>,
        cmd: &Cmd,
        deadline: Duration,
    ) -> Result<T, StoreError> {
        let send = |mut conn: Transport, asking| async move {
            let reply = if asking || conn.has_identity_callback() {
                // On the heap, so that the futures of ordinary reads stay small.
                Box::pin(send_alone(&mut conn, cmd, asking)).await?
            } else {
                conn.send_read(cmd).await?
            };
            Ok(from_redis_value(reply)?)
        };
        self.run(at, deadline, true, send).await
    }

    /// Sends several commands about one slot as one pipeline. Fails if any of them fails.
    pub(super) async fn pipeline<T: FromRedisValue>(
        &self,
        at: Destination<'_>,
        pipe: &redis::Pipeline,
        deadline: Duration,
    ) -> Result<T, StoreError> {
        self.replies(at, pipe, (deadline, deadline), true).await
    }

    /// Like [`pipeline`](Self::pipeline), but the deadline starts again whenever the connection delivered bytes within it, until
    /// `longest` is over.
    pub(super) async fn pipeline_while_delivered<T: FromRedisValue>(
        &self,
        at: Destination<'_>,
        pipe: &redis::Pipeline,
        deadline: Duration,
        longest: Duration,
    ) -> Result<T, StoreError> {
        self.replies(at, pipe, (deadline, longest), true).await
    }

    /// Like [`pipeline`](Self::pipeline), for commands that must not be sent twice. See [`ScriptCall::may_be_sent_twice`].
    pub(super) async fn pipeline_once<T: FromRedisValue>(
        &self,
        at: Destination<'_>,
        pipe: &redis::Pipeline,
        deadline: Duration,
    ) -> Result<T, StoreError> {
        self.replies(at, pipe, (deadline, deadline), false).await
    }

    async fn replies<T: FromRedisValue>(
        &self,
        at: Destination<'_>,
        pipe: &redis::Pipeline,
        (deadline, longest): (Duration, Duration),
        resend: bool,
    ) -> Result<T, StoreError> {
        let send = |mut conn: Transport, asking| async move {
            let replies: Vec<Value> =
                send_all(&mut conn, pipe, asking).await?.into_iter().collect::<Result<_, _>>()?;
            Ok((from_redis_value(Value::Array(replies))?, self.is_replicated(&mut conn, at).await?))
        };
        let (deadline, longest) = (self.with_wait(deadline), self.with_wait(longest));
        if_replicated(self.run_while_delivered(at, deadline, longest, resend, send).await?)
    }

    /// Removes these keys on their servers. Returns the number of keys that existed.
    pub(super) async fn unlink(&self, names: &[&str], deadline: Duration) -> Result<u64, StoreError> {
        let removed: Vec<u64> = if let (Servers::One(node), Some(_)) = (&self.servers, names.first()) {
            let mut pipe = redis::pipe();
            for name in names {
                pipe.cmd("UNLINK").arg(name);
            }
            self.pipeline(Destination::Node(node), &pipe, deadline).await?
        } else {
            // The keys are in different slots, so each needs a command of its own.
            let unlink = async |name: &&str| {
                let mut pipe = redis::pipe();
                pipe.cmd("UNLINK").arg(name);
                let (removed,): (u64,) = self.pipeline(Destination::Key(name), &pipe, deadline).await?;
                Ok::<_, StoreError>(removed)
            };
            let at_once = if self.replicas.is_some() { UNLINKS_AT_ONCE } else { usize::MAX };
            let mut removed = Vec::with_capacity(names.len());
            for names in names.chunks(at_once) {
                removed.extend(try_join_all(names.iter().map(unlink)).await?);
            }
            removed
        };
        Ok(removed.iter().sum())
    }

    /// Calls a script.
    pub(super) async fn script<T: FromRedisValue>(
        &self,
        call: ScriptCall<'_>,
        deadline: Duration,
    ) -> Result<T, StoreError> {
        let (by_hash, at) = (&call.by_hash(), Destination::Key(call.slot_key()));
        let send = |mut conn: Transport, asking| async move {
            let reply = match send_one(&mut conn, by_hash, asking).await {
                Err(error) if is_no_script(&error) => send_one(&mut conn, &call.in_full(), asking).await?,
                reply => reply?,
            };
            Ok((from_redis_value(reply)?, self.is_replicated(&mut conn, at).await?))
        };
        if_replicated(self.run(at, self.with_wait(deadline), call.may_be_sent_twice(), send).await?)
    }

    /// Sends a command and calls a script in one round trip. The script must check the effect of the command.
    pub(super) async fn upload_and_script<T: FromRedisValue>(
        &self,
        upload: Cmd,
        call: ScriptCall<'_>,
        deadline: Duration,
    ) -> Result<T, StoreError> {
        let mut pipe = redis::pipe();
        pipe.add_command(upload).add_command(call.by_hash());
        let (pipe, at) = (&pipe, Destination::Key(call.slot_key()));
        let send = |mut conn: Transport, asking| async move {
            let mut replies = send_all(&mut conn, pipe, asking).await?.into_iter();
            // An upload to the wrong node has no effect, so both are sent again to the node that has the slot. An upload that the
            // user has no right to fails for good.
            if let Some(Err(error)) = replies.next()
                && (Redirection::of(&error).is_some() || refusals::is_refusal(&error))
            {
                return Err(error);
            }
            let reply = match replies.next() {
                // The upload succeeded, and only the script has to be sent again.
                Some(Err(error)) if is_no_script(&error) => {
                    send_one(&mut conn, &call.in_full(), asking).await?
                }
                Some(reply) => reply?,
                None => return Err((ErrorKind::UnexpectedReturnType, "two commands, one reply").into()),
            };
            Ok((from_redis_value(reply)?, self.is_replicated(&mut conn, at).await?))
        };
        if_replicated(self.run(at, self.with_wait(deadline), call.may_be_sent_twice(), send).await?)
    }

    /// Returns `true` if enough replicas have the changes that this connection sent.
    async fn is_replicated(&self, conn: &mut Transport, at: Destination<'_>) -> RedisResult<bool> {
        let Some(replicas) = self.replicas else { return Ok(true) };
        if let Destination::Key(key) = at {
            conn.route_to_master(slot(key));
        }
        let mut wait = redis::cmd("WAIT");
        wait.arg(replicas.count).arg(u64::try_from(replicas.timeout.as_millis()).unwrap_or(u64::MAX));
        // Boxed, so that the future of calls without replicas stays small.
        let count: u32 = from_redis_value(Box::pin(conn.send(&wait)).await?)?;
        Ok(count >= replicas.count)
    }

    /// Adds the wait for replicas to a deadline.
    fn with_wait(&self, deadline: Duration) -> Duration {
        self.replicas.map_or(deadline, |replicas| deadline.saturating_add(replicas.timeout))
    }

    /// Returns the servers that hold keys of these slots, for a scan of all of them. Each command has this deadline.
    pub(super) async fn layout(&self, within: &Lost, deadline: Duration) -> Result<Layout, StoreError> {
        match &self.servers {
            Servers::One(node) => Ok(Layout::of_one(node)),
            Servers::Cluster(cluster) => cluster.layout(within, deadline).await,
            #[cfg(feature = "redis-pool")]
            Servers::PooledCluster(cluster) => cluster.layout(within, deadline).await,
        }
    }

    /// Returns the servers and the states of their breakers.
    pub(super) fn servers(&self) -> Vec<(Address, Breaker)> {
        match &self.servers {
            Servers::One(node) => vec![(node.address().clone(), node.breaker())],
            Servers::Cluster(cluster) => cluster.servers(),
            #[cfg(feature = "redis-pool")]
            Servers::PooledCluster(cluster) => {
                vec![(cluster.any().address().clone(), cluster.any().breaker())]
            }
        }
    }

    pub(super) fn is_cluster(&self) -> bool {
        !matches!(self.servers, Servers::One(_))
    }

    /// Closes all connections. Later calls fail.
    pub(super) fn close(&self) {
        match &self.servers {
            Servers::One(node) => node.close(),
            Servers::Cluster(cluster) => cluster.close(),
            #[cfg(feature = "redis-pool")]
            Servers::PooledCluster(cluster) => cluster.close(),
        }
    }

    async fn run<T, F, Fut>(
        &self,
        at: Destination<'_>,
        deadline: Duration,
        resend: bool,
        send: F,
    ) -> Result<T, StoreError>
    where
        F: Fn(Transport, bool) -> Fut,
        Fut: Future<Output = RedisResult<T>>,
    {
        self.run_while_delivered(at, deadline, deadline, resend, send).await
    }

    /// Calls `send` with a connection to the destination. Its flag is `true` if the slot is being imported there, so that each
    /// command needs an `ASKING`.
    async fn run_while_delivered<T, F, Fut>(
        &self,
        at: Destination<'_>,
        deadline: Duration,
        longest: Duration,
        resend: bool,
        send: F,
    ) -> Result<T, StoreError>
    where
        F: Fn(Transport, bool) -> Fut,
        Fut: Future<Output = RedisResult<T>>,
    {
        let until = Instant::now() + longest.max(deadline);
        let node = match (&self.servers, at) {
            (Servers::Cluster(cluster), Destination::Key(key)) => {
                // Boxed, so that the future for a single server stays small.
                return Box::pin(cluster.run(key, until, deadline, resend, send)).await;
            }
            (Servers::One(node), Destination::Key(_)) => node,
            #[cfg(feature = "redis-pool")]
            (Servers::PooledCluster(cluster), Destination::Key(key)) => {
                cluster.identify_masters(deadline / 2).await;
                let send = |conn| send(cluster.with_identity_callback(conn, key), false);
                return cluster.any().run(until, deadline, resend, send).await?.map_err(StoreError::refused);
            }
            (_, Destination::Node(node)) => node,
        };
        node.run(until, deadline, resend, |conn| send(conn, false)).await?.map_err(StoreError::refused)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Client");
        match &self.servers {
            Servers::One(node) => debug.field("server", node),
            Servers::Cluster(cluster) => debug.field("cluster", cluster),
            #[cfg(feature = "redis-pool")]
            Servers::PooledCluster(_) => debug.field("cluster", &"a pool"),
        };
        debug.finish_non_exhaustive()
    }
}

/// Sends a command as a pipeline of its own, which carries `ASKING` and the request for the server's identity.
async fn send_alone(conn: &mut Transport, cmd: &Cmd, asking: bool) -> RedisResult<Value> {
    let mut pipe = redis::pipe();
    pipe.add_command(cmd.clone());
    send_all(conn, &pipe, asking).await?.pop().unwrap_or(Ok(Value::Nil))
}

/// Sends a command, after `ASKING` if `asking`.
async fn send_one(conn: &mut Transport, cmd: &Cmd, asking: bool) -> RedisResult<Value> {
    if asking { Box::pin(send_alone(conn, cmd, asking)).await } else { conn.send(cmd).await }
}

/// Sends a pipeline, with `ASKING` before each command if `asking`. Each command has its own reply or error.
async fn send_all(
    conn: &mut Transport,
    pipe: &redis::Pipeline,
    asking: bool,
) -> RedisResult<Vec<RedisResult<Value>>> {
    if !asking {
        let mut replies = conn.send_pipeline(pipe).await?;
        keep_together(&mut replies);
        return Ok(replies);
    }
    // `ASKING` applies to the next command only, and other callers share the connection. A pipeline keeps the two together.
    let mut asked = redis::pipe();
    for cmd in pipe.cmd_iter() {
        asked.cmd("ASKING").add_command(cmd.clone());
    }
    Ok(conn.send_pipeline(&asked).await?.into_iter().skip(1).step_by(2).collect())
}

/// Keeps a pipeline on one node while its slot moves. Once one of its commands has run on this node, an `ASK` for a later one
/// becomes a `TRYAGAIN`, so that the pipeline waits. Following the `ASK` would repeat the whole pipeline on the other node. A
/// lease would then be on both nodes, and the slot could not be moved.
///
/// Redis 6 replies `ASK` to every command that misses one of its keys, newer servers only to those that miss all of them.
fn keep_together(replies: &mut [RedisResult<Value>]) {
    let mut has_run = false;
    for reply in replies {
        match reply {
            Ok(_) => has_run = true,
            Err(error) if has_run && matches!(Redirection::of(error), Some(Redirection::Ask(_))) => {
                *error =
                    (ErrorKind::Server(ServerErrorKind::TryAgain), "the slot's keys are on two nodes").into();
            }
            Err(_) => {}
        }
    }
}

/// Returns the reply, or an error if too few replicas confirmed the change.
fn if_replicated<T>((reply, is_replicated): (T, bool)) -> Result<T, StoreError> {
    if is_replicated {
        Ok(reply)
    } else {
        Err(StoreError::unavailable("Redis has it, but too few of its replicas confirmed that in time"))
    }
}

fn is_no_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}
