//! Opens connections: addresses, Unix sockets and TLS, the handshake, and the server's identity.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, ErrorKind, ProtocolVersion, RedisConnectionInfo, RedisError, RedisResult,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::address::Address;
use super::failover::server_identity::KnownServer;
use super::failover::{ServerChange, ServerChangeHandler};
use super::meter::{Delivered, Metered};
use super::options::RedisOptions;
use super::refusals::Refusals;
#[cfg(feature = "redis-tls")]
use super::tls::Tls;
use super::transport::Transport;
#[cfg(feature = "redis-pool")]
use super::transport::{ClusterRoute, Pool};

/// The source of the connections that calls use.
pub(super) enum ConnectionSource {
    /// One connection that all calls share. Dropping this value ends the task that serves it, which would otherwise wait for a
    /// server that hangs.
    Own { conn: MultiplexedConnection, delivered: Delivered, _driver: AbortOnDropHandle<()> },
    /// A pool that lends a connection to each call.
    #[cfg(feature = "redis-pool")]
    Pool(Pool, ClusterRoute),
}

impl ConnectionSource {
    #[cfg_attr(not(feature = "redis-pool"), expect(clippy::unused_async, reason = "only a pool has to wait"))]
    pub(super) async fn transport(&self) -> RedisResult<Transport> {
        match self {
            Self::Own { conn, .. } => Ok(Transport::Own(conn.clone())),
            #[cfg(feature = "redis-pool")]
            Self::Pool(pool, route) => pool.get(*route).await,
        }
    }

    pub(super) fn is_pooled(&self) -> bool {
        !matches!(self, Self::Own { .. })
    }

    /// Returns the number of bytes that were delivered. 0 for a pool, where it isn't known.
    pub(super) fn delivered(&self) -> u64 {
        match self {
            Self::Own { delivered, .. } => delivered.bytes(),
            #[cfg(feature = "redis-pool")]
            Self::Pool(..) => 0,
        }
    }
}

/// Opens connections.
pub(super) struct Dialer {
    pub(super) options: RedisOptions,
    #[cfg(feature = "redis-tls")]
    tls: std::sync::OnceLock<Result<Tls, String>>,
    /// The nodes that commands reach through a cluster's pool.
    #[cfg(feature = "redis-pool")]
    route: ClusterRoute,
    servers: Mutex<HashMap<Address, Arc<KnownServer>>>,
    pub(super) change_handler: Arc<dyn ServerChangeHandler>,
    pub(super) refusals: Arc<Refusals>,
}

impl Dialer {
    pub(super) fn new(options: RedisOptions, change_handler: Arc<dyn ServerChangeHandler>) -> Self {
        Self {
            options,
            #[cfg(feature = "redis-tls")]
            tls: std::sync::OnceLock::new(),
            #[cfg(feature = "redis-pool")]
            route: ClusterRoute::Key,
            servers: Mutex::default(),
            change_handler,
            refusals: Arc::default(),
        }
    }

    /// Returns a dialer for commands that a cluster's pool sends to the master of this slot.
    #[cfg(feature = "redis-pool")]
    pub(super) fn to_master(&self, slot: u16) -> Self {
        Self {
            route: ClusterRoute::Master(slot),
            refusals: self.refusals.clone(),
            ..Self::new(self.options.clone(), self.change_handler.clone())
        }
    }

    /// Connects, logs in and waits for the answer to a `PING`.
    pub(super) async fn dial(
        &self,
        address: &Address,
        server: &KnownServer,
    ) -> RedisResult<(ConnectionSource, u64)> {
        #[cfg(feature = "redis-pool")]
        if let Some(pool) = &self.options.pool {
            return self.borrow(pool, address, server).await;
        }
        let RedisOptions { cluster, db, .. } = self.options;
        if cluster && db != 0 {
            return Err((ErrorKind::InvalidClientConfig, "a cluster has no other database than 0").into());
        }
        let dialled = async {
            let source = self.connect(address, self.options.handshake(), config()).await?;
            let generation = self.greet(address, server, source.transport().await?).await?;
            Ok((source, generation))
        };
        self.in_time(dialled).await
    }

    /// Waits for the answer to a `PING`, and compares the server's identity with the known one. Returns the generation of the
    /// connection.
    async fn greet(
        &self,
        address: &Address,
        server: &KnownServer,
        mut transport: Transport,
    ) -> RedisResult<u64> {
        transport.send(&redis::cmd("PING")).await?;
        if !self.has_one_server() {
            return Ok(server.generation());
        }
        let refused = |error: &RedisError| self.refusals.note(address, error);
        let confirmed = self.confirmed();
        let found = transport.identity(refused).await?;
        Ok(server.opened(found, confirmed, |kept| self.changed(address, kept)))
    }

    /// Returns `true` if every connection leads to the server at its address. A cluster's pool connects to any node.
    pub(super) fn has_one_server(&self) -> bool {
        !(self.options.is_pooled() && self.options.is_cluster())
    }

    /// Returns the number of changes that servers have confirmed. `None` with a pool, whose connections may lead to several
    /// servers.
    pub(super) fn confirmed(&self) -> Option<u64> {
        (!self.options.is_pooled()).then(|| self.change_handler.confirmed())
    }

    pub(super) fn changed(&self, address: &Address, kept: u64) {
        tracing::info!(redis = %address, "Redis is another server than before; repeating what was evicted lately");
        self.change_handler.on_change(ServerChange::Server(address), kept);
    }

    /// Returns what is known of the server at this address. It is kept as long as the store, because a node that leaves a cluster
    /// may return.
    pub(super) fn server(&self, address: &Address) -> Arc<KnownServer> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.entry(address.clone()).or_default().clone()
    }

    /// Tests one of the pool's connections. Each call then borrows its own.
    #[cfg(feature = "redis-pool")]
    async fn borrow(
        &self,
        pool: &Pool,
        address: &Address,
        server: &KnownServer,
    ) -> RedisResult<(ConnectionSource, u64)> {
        let tried = async { self.greet(address, server, pool.get(self.route).await?).await };
        let tried = timeout(self.options.connect_deadline, tried).await;
        if !matches!(tried, Ok(Ok(_))) {
            pool.forget_idle();
        }
        match tried {
            Ok(Ok(generation)) => Ok((ConnectionSource::Pool(pool.clone(), self.route), generation)),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                Err((ErrorKind::Io, "the pool had no working connection within the connect deadline").into())
            }
        }
    }

    /// Connects with RESP3. Push messages are passed to `on_push` in the order of their arrival.
    pub(super) async fn dial_listener(
        &self,
        address: &Address,
        on_push: impl redis::aio::AsyncPushSender,
    ) -> RedisResult<(ConnectionSource, u64)> {
        let handshake = self.options.handshake().set_protocol(ProtocolVersion::RESP3);
        let config = config().set_push_sender(on_push);
        let dialled = async {
            let source = self.connect(address, handshake, config).await?;
            let generation = self.greet(address, &self.server(address), source.transport().await?).await?;
            Ok((source, generation))
        };
        self.in_time(dialled).await
    }

    async fn in_time<T>(&self, dialled: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        match timeout(self.options.connect_deadline, dialled).await {
            Ok(dialled) => dialled,
            Err(_) => Err((ErrorKind::Io, "no answer within the connect deadline").into()),
        }
    }

    async fn connect(
        &self,
        address: &Address,
        handshake: RedisConnectionInfo,
        config: AsyncConnectionConfig,
    ) -> RedisResult<ConnectionSource> {
        if let Some(path) = address.socket() {
            return self.socket(path, &handshake, config).await;
        }
        if self.options.tls {
            return self.tls(address, &handshake, config).await;
        }
        let stream = TcpStream::connect((&*address.host, address.port)).await?;
        stream.set_nodelay(true)?;
        open_source(stream, &handshake, config).await
    }

    #[cfg(unix)]
    async fn socket(
        &self,
        path: &str,
        handshake: &RedisConnectionInfo,
        config: AsyncConnectionConfig,
    ) -> RedisResult<ConnectionSource> {
        if self.options.tls || self.options.cluster {
            let problem = "a Unix socket has neither TLS nor a cluster behind it";
            return Err((ErrorKind::InvalidClientConfig, problem).into());
        }
        open_source(tokio::net::UnixStream::connect(path).await?, handshake, config).await
    }

    #[cfg(not(unix))]
    async fn socket(
        &self,
        _: &str,
        _: &RedisConnectionInfo,
        _: AsyncConnectionConfig,
    ) -> RedisResult<ConnectionSource> {
        Err((ErrorKind::InvalidClientConfig, "this system has no Unix sockets").into())
    }

    #[cfg(feature = "redis-tls")]
    async fn tls(
        &self,
        address: &Address,
        handshake: &RedisConnectionInfo,
        config: AsyncConnectionConfig,
    ) -> RedisResult<ConnectionSource> {
        let tls = self.tls.get_or_init(|| Tls::new(&self.options.tls_options));
        let tls = tls
            .as_ref()
            .map_err(|error| (ErrorKind::InvalidClientConfig, "TLS is not set up well", error.clone()))?;
        open_source(tls.connect(&address.host, address.port).await?, handshake, config).await
    }

    #[cfg(not(feature = "redis-tls"))]
    async fn tls(
        &self,
        _: &Address,
        _: &RedisConnectionInfo,
        _: AsyncConnectionConfig,
    ) -> RedisResult<ConnectionSource> {
        Err((ErrorKind::InvalidClientConfig, "TLS needs the feature `redis-tls`").into())
    }
}

/// Opens a Redis connection on a stream.
async fn open_source(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    handshake: &RedisConnectionInfo,
    config: AsyncConnectionConfig,
) -> RedisResult<ConnectionSource> {
    let delivered = Delivered::default();
    let stream = Metered::new(stream, delivered.clone());
    let (conn, driver) = MultiplexedConnection::new_with_config(handshake, stream, config).await?;
    Ok(ConnectionSource::Own { conn, delivered, _driver: AbortOnDropHandle::new(tokio::spawn(driver)) })
}

/// Without the library's deadlines, which would drop the answer but keep a dead connection.
fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None)
}
