//! The connections that carry commands: the store's own, or one borrowed from the application's pool.

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, RedisError, RedisResult, Value};
#[cfg(feature = "redis-pool")]
use {
    deadpool_redis::{PoolError, TimeoutType},
    redis::cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr},
    std::time::Duration,
    tokio::time::sleep,
};

use super::failover::server_identity::ServerIdentity;
use super::refusals;

/// The pause before the next request to a pool without a free connection.
#[cfg(feature = "redis-pool")]
const PAUSE: Duration = Duration::from_millis(1);

/// A connection for one call. Dropping a borrowed one returns it to its pool.
pub(super) enum Transport {
    Own(MultiplexedConnection),
    #[cfg(feature = "redis-pool")]
    Pooled(deadpool_redis::Connection, Option<IdentityCallback>),
    #[cfg(feature = "redis-pool")]
    PooledCluster(deadpool_redis::cluster::Connection, ClusterRoute, Option<IdentityCallback>),
}

/// A callback that receives the identity of the server that answered, before the answer is used.
#[cfg(feature = "redis-pool")]
pub(super) type IdentityCallback = Box<dyn Fn(Option<ServerIdentity>) + Send + Sync>;

/// The node that a command reaches through a connection that knows a whole cluster.
#[cfg(feature = "redis-pool")]
#[derive(Clone, Copy, Debug)]
pub(super) enum ClusterRoute {
    /// The node that has the key that the command names.
    Key,
    /// The master of this slot.
    Master(u16),
}

impl Transport {
    /// Asks the server for its identity. Returns `None` if the user may not run `INFO`, after a call of `refused`.
    pub(super) async fn identity(
        &mut self,
        refused: impl Fn(&RedisError),
    ) -> RedisResult<Option<ServerIdentity>> {
        let mut pipe = redis::pipe();
        ServerIdentity::ask(&mut pipe);
        let replies = self.send_pipeline(&pipe).await?;
        Ok(ServerIdentity::read(replies.into_iter().map(|reply| reply.inspect_err(&refused))))
    }

    /// Makes every pipeline ask for the server's identity, and passes it to the callback. Own connections don't.
    #[cfg(feature = "redis-pool")]
    pub(super) fn with_identity_callback(self, on_identity: IdentityCallback) -> Self {
        match self {
            Self::Own(conn) => Self::Own(conn),
            Self::Pooled(conn, _) => Self::Pooled(conn, Some(on_identity)),
            Self::PooledCluster(conn, route, _) => Self::PooledCluster(conn, route, Some(on_identity)),
        }
    }

    /// Returns `true` if every pipeline asks for the server's identity.
    pub(super) fn has_identity_callback(&self) -> bool {
        match self {
            Self::Own(_) => false,
            #[cfg(feature = "redis-pool")]
            Self::Pooled(_, on_identity) | Self::PooledCluster(_, _, on_identity) => on_identity.is_some(),
        }
    }

    /// Sends the next command to the master of this slot, although it names no key.
    pub(super) fn route_to_master(&mut self, slot: u16) {
        #[cfg(feature = "redis-pool")]
        if let Self::PooledCluster(_, route @ ClusterRoute::Key, _) = self {
            *route = ClusterRoute::Master(slot);
        }
        #[cfg(not(feature = "redis-pool"))]
        let _ = (self, slot);
    }

    /// Sends one command, like [`send`](Self::send), without an allocation for the connection's future. This future is a
    /// kilobyte larger for it, so only reads use it.
    pub(super) async fn send_read(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Own(conn) => answer_to(cmd, conn.send_packed_command(cmd).await),
            #[cfg(feature = "redis-pool")]
            Self::Pooled(..) | Self::PooledCluster(..) => Box::pin(self.send(cmd)).await,
        }
    }

    /// Sends one command.
    pub(super) async fn send(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        let reply = match self {
            Self::Own(conn) => conn.req_packed_command(cmd).await,
            #[cfg(feature = "redis-pool")]
            Self::Pooled(conn, _) => conn.req_packed_command(cmd).await,
            #[cfg(feature = "redis-pool")]
            Self::PooledCluster(conn, ClusterRoute::Key, _) => conn.req_packed_command(cmd).await,
            #[cfg(feature = "redis-pool")]
            Self::PooledCluster(conn, ClusterRoute::Master(slot), _) => {
                let master = SingleNodeRoutingInfo::SpecificNode(Route::new(*slot, SlotAddr::Master));
                Box::pin(conn.route_command(cmd.clone(), RoutingInfo::SingleNode(master))).await
            }
        };
        answer_to(cmd, reply)
    }

    /// Sends several commands as one pipeline. Each has its own reply or error. A callback receives the server's identity.
    pub(super) async fn send_pipeline(&mut self, pipe: &Pipeline) -> RedisResult<Vec<RedisResult<Value>>> {
        #[cfg(feature = "redis-pool")]
        if let Self::Pooled(_, Some(_)) | Self::PooledCluster(.., Some(_)) = self {
            let mut asked = pipe.clone();
            ServerIdentity::ask(&mut asked);
            let mut replies = self.send_pipeline_only(&asked).await?;
            let identity = replies.split_off(replies.len().saturating_sub(ServerIdentity::QUESTIONS));
            if let Self::Pooled(_, Some(on_identity)) | Self::PooledCluster(.., Some(on_identity)) = self {
                on_identity(ServerIdentity::read(identity.into_iter()));
            }
            return Ok(replies);
        }
        self.send_pipeline_only(pipe).await
    }

    async fn send_pipeline_only(&mut self, pipe: &Pipeline) -> RedisResult<Vec<RedisResult<Value>>> {
        let replies = match self {
            Self::Own(conn) => conn.req_packed_commands(pipe, 0, pipe.len()).await,
            #[cfg(feature = "redis-pool")]
            Self::Pooled(conn, _) => conn.req_packed_commands(pipe, 0, pipe.len()).await,
            #[cfg(feature = "redis-pool")]
            Self::PooledCluster(conn, ClusterRoute::Key, _) => {
                conn.req_packed_commands(pipe, 0, pipe.len()).await
            }
            #[cfg(feature = "redis-pool")]
            Self::PooledCluster(conn, ClusterRoute::Master(slot), _) => {
                let (count, master) = (pipe.len(), Route::new(*slot, SlotAddr::Master));
                let route = SingleNodeRoutingInfo::SpecificNode(master);
                Box::pin(conn.route_pipeline(pipe.clone(), 0, count, route)).await
            }
        };
        let replies = pipe.cmd_iter().zip(replies?);
        let named =
            |(cmd, reply): (&Cmd, Value)| reply.extract_error().map_err(|error| refusals::named(cmd, error));
        Ok(replies.map(named).collect())
    }
}

/// Returns the reply to a command, or its error with the command's name.
fn answer_to(cmd: &Cmd, reply: RedisResult<Value>) -> RedisResult<Value> {
    reply.and_then(Value::extract_error).map_err(|error| refusals::named(cmd, error))
}

/// The application's own pool.
#[cfg(feature = "redis-pool")]
#[derive(Clone)]
pub(super) enum Pool {
    One(deadpool_redis::Pool),
    Cluster(deadpool_redis::cluster::Pool),
}

#[cfg(feature = "redis-pool")]
impl Pool {
    /// Borrows a connection. Retries after the pool's own wait timeout, which isn't a failure of Redis. Callers have a deadline.
    pub(super) async fn get(&self, route: ClusterRoute) -> RedisResult<Transport> {
        loop {
            // Boxed, because these futures are large and deeply nested.
            let got = match self {
                Self::One(pool) => Box::pin(pool.get()).await.map(|conn| Transport::Pooled(conn, None)),
                Self::Cluster(pool) => {
                    Box::pin(pool.get()).await.map(|conn| Transport::PooledCluster(conn, route, None))
                }
            };
            return match got {
                Ok(transport) => Ok(transport),
                Err(PoolError::Timeout(TimeoutType::Wait)) => {
                    sleep(PAUSE).await;
                    continue;
                }
                Err(PoolError::Backend(error)) => Err(error),
                Err(error) => Err(RedisError::from(std::io::Error::other(error))),
            };
        }
    }

    /// Drops all idle connections, which may be broken too after one of them failed.
    pub(super) fn forget_idle(&self) {
        match self {
            Self::One(pool) => drop(pool.retain(|_, _| false)),
            Self::Cluster(pool) => drop(pool.retain(|_, _| false)),
        }
    }
}
