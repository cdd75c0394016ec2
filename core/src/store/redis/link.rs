//! A connection that mends itself, its deadlines, and its breaker.
//!
//! It is always in one of these states:
//!
//! ```text
//!   Cold ──first call──▶ Joining ──────▶ Up
//!                        ▲     │         │ │
//!                        │  attempt      │ │ three commands in a row got no answer
//!                        │  failed       │ ▼
//!                        │     └──────▶ Open ──probe answered──▶ Up
//!                        └── it broke ───┘
//! ```
//!
//! While `Joining`, calls wait for the outcome as long as their own deadline lets them: it usually takes a millisecond.
//! While `Open`, calls fail at once and cost nothing; one task probes, at most a second apart. A probe is a new
//! connection and a `PING`, which a server that hangs or still loads its data does not answer.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, IntoConnectionInfo as _, ProtocolVersion,
    RedisConnectionInfo, RedisError, RedisResult, ServerErrorKind,
};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::options::{Address, RedisOptions};
#[cfg(feature = "redis-tls")]
use super::tls::Tls;
use crate::store::StoreError;

/// How many commands in a row may go without an answer before their connection is given up.
const STRIKES: u32 = 3;

/// The first pause between two probes; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause between two probes.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A connection that breaks sooner than this was no recovery: the pauses go on growing.
const STEADY: Duration = Duration::from_secs(5);

/// One server, and the one to four connections to it.
pub(super) struct Node {
    links: Box<[Arc<Link>]>,
    next: AtomicUsize,
}

impl Node {
    /// Connects to nothing yet.
    pub(super) fn new(dialer: &Arc<Dialer>, address: &Address) -> Self {
        let link = |_| Arc::new(Link::new(dialer.clone(), address.clone()));
        Self { links: (0..dialer.options.connections).map(link).collect(), next: AtomicUsize::new(0) }
    }

    pub(super) fn address(&self) -> &Address {
        &self.links[0].address
    }

    /// Sends, and waits for the answer until the deadline: what the server said, or that it said nothing.
    pub(super) async fn run<T, F, Fut>(
        &self,
        until: Instant,
        deadline: Duration,
        resend: bool,
        send: F,
    ) -> Result<RedisResult<T>, StoreError>
    where
        F: Fn(MultiplexedConnection) -> Fut,
        Fut: Future<Output = RedisResult<T>>,
    {
        let turn = if self.links.len() == 1 { 0 } else { self.next.fetch_add(1, Ordering::Relaxed) };
        self.links[turn % self.links.len()].run(until, deadline, resend, send).await
    }

    /// Lets go of everything. Later calls fail.
    pub(super) fn close(&self) {
        self.links.iter().for_each(|link| link.close());
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({})", self.address())
    }
}

/// One connection and whatever brings it back.
struct Link {
    dialer: Arc<Dialer>,
    address: Address,
    state: watch::Sender<State>,
}

enum State {
    Cold,
    /// The task tries to connect for the first time since things were well.
    Joining(AbortHandle),
    Up(Arc<Live>),
    /// The server is known to be away. The task probes.
    Open(AbortHandle),
    Closed,
}

/// A connection that worked when it was last heard of.
struct Live {
    line: Line,
    /// Commands without an answer since the last one with an answer.
    strikes: AtomicU32,
    since: Instant,
    /// How long the last pause was before this connection came about.
    pause: Duration,
}

impl Live {
    /// How long to wait before the first probe: not at all, unless servers come up and fail in quick succession.
    fn next_pause(&self) -> Duration {
        if self.since.elapsed() < STEADY { longer(self.pause) } else { Duration::ZERO }
    }
}

impl Link {
    fn new(dialer: Arc<Dialer>, address: Address) -> Self {
        Self { dialer, address, state: watch::Sender::new(State::Cold) }
    }

    /// Sends, and waits for the answer until the deadline.
    ///
    /// A connection that broke while nobody used it is only noticed by the next command, so that one is tried once
    /// more on a new connection, unless sending it twice could mean something else than sending it once.
    async fn run<T, F, Fut>(
        self: &Arc<Self>,
        until: Instant,
        deadline: Duration,
        resend: bool,
        send: F,
    ) -> Result<RedisResult<T>, StoreError>
    where
        F: Fn(MultiplexedConnection) -> Fut,
        Fut: Future<Output = RedisResult<T>>,
    {
        let mut again = resend;
        loop {
            let live = self.live(until).await?;
            match timeout_at(until, send(live.line.conn.clone())).await {
                Err(_) => {
                    self.struck(&live);
                    return Err(StoreError::Timeout(deadline));
                }
                Ok(Err(error)) if is_broken(&error) => {
                    self.broke(&live, &error);
                    if !again {
                        return Err(StoreError::unavailable(error));
                    }
                    again = false;
                }
                Ok(reply) => {
                    if live.strikes.load(Ordering::Relaxed) > 0 {
                        live.strikes.store(0, Ordering::Relaxed);
                    }
                    return Ok(reply);
                }
            }
        }
    }

    /// A connection to send on. Waits only while the first attempt to connect is under way.
    async fn live(self: &Arc<Self>, until: Instant) -> Result<Arc<Live>, StoreError> {
        if let State::Up(live) = &*self.state.borrow() {
            return Ok(live.clone());
        }
        let mut changes = self.state.subscribe();
        loop {
            match &*changes.borrow_and_update() {
                State::Up(live) => return Ok(live.clone()),
                State::Closed => return Err(StoreError::unavailable("the store was closed")),
                State::Open(task) if !task.is_finished() => {
                    return Err(StoreError::unavailable("no connection; trying again in the background"));
                }
                _ => {}
            }
            self.join();
            if timeout_at(until, changes.changed()).await.is_err() {
                return Err(StoreError::unavailable("still connecting"));
            }
        }
    }

    /// Sees to it that somebody is connecting. A task dies with its runtime, so a finished one is replaced.
    fn join(self: &Arc<Self>) {
        self.state.send_if_modified(|state| {
            let idle = match state {
                State::Cold => true,
                State::Joining(task) | State::Open(task) => task.is_finished(),
                State::Up(_) | State::Closed => false,
            };
            if idle {
                *state = State::Joining(self.connect(Duration::ZERO));
            }
            idle
        });
    }

    /// A command got no answer.
    fn struck(self: &Arc<Self>, live: &Arc<Live>) {
        if live.strikes.fetch_add(1, Ordering::Relaxed) + 1 >= STRIKES
            && self.replace(live, || State::Open(self.connect(live.next_pause())))
        {
            tracing::warn!(redis = %self.address, "Redis does not answer; doing without it until it does");
        }
    }

    /// The connection is no more, or no good.
    fn broke(self: &Arc<Self>, live: &Arc<Live>, error: &RedisError) {
        if error.is_io_error() {
            self.replace(live, || State::Joining(self.connect(Duration::ZERO)));
        } else if self.replace(live, || State::Open(self.connect(live.next_pause()))) {
            tracing::warn!(redis = %self.address, %error, "Redis can't serve; doing without it until it can");
        }
    }

    /// Moves on from `live`, unless somebody else has done so already.
    fn replace(&self, live: &Arc<Live>, next: impl FnOnce() -> State) -> bool {
        self.state.send_if_modified(|state| {
            let current = matches!(state, State::Up(current) if Arc::ptr_eq(current, live));
            if current {
                *state = next();
            }
            current
        })
    }

    /// Starts the task that connects, and goes on trying until it has. It ends when the store is dropped.
    ///
    /// Callers hold the lock of the state, so that the task's first change comes after theirs.
    fn connect(self: &Arc<Self>, pause: Duration) -> AbortHandle {
        let link = Arc::downgrade(self);
        let task = async move {
            let mut pause = pause;
            loop {
                if !pause.is_zero() {
                    // Many processes that lost the same server don't all come back at once.
                    sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                }
                let Some(link) = link.upgrade() else { return };
                match link.dialer.dial(&link.address).await {
                    Ok(line) => return link.came_up(line, pause),
                    Err(error) => link.stays_down(&error),
                }
                pause = longer(pause);
            }
        };
        tokio::spawn(task).abort_handle()
    }

    fn came_up(&self, line: Line, pause: Duration) {
        let live = Live { line, strikes: AtomicU32::new(0), since: Instant::now(), pause };
        self.state.send_if_modified(|state| {
            if matches!(state, State::Open(_)) {
                tracing::info!(redis = %self.address, "Redis answers again");
            }
            let open = !matches!(state, State::Closed);
            if open {
                *state = State::Up(Arc::new(live));
            }
            open
        });
    }

    fn close(&self) {
        self.state.send_modify(|state| {
            if let State::Joining(task) | State::Open(task) = state {
                task.abort();
            }
            *state = State::Closed;
        });
    }

    fn stays_down(&self, error: &RedisError) {
        self.state.send_if_modified(|state| {
            let State::Joining(task) = state else { return false };
            tracing::warn!(
                redis = %self.address,
                %error,
                "Redis can't be reached; doing without it until it can"
            );
            *state = State::Open(task.clone());
            true
        });
    }
}

/// A connection, and the task that serves it if the library does not keep that itself.
pub(super) struct Line {
    conn: MultiplexedConnection,
    driver: Option<AbortHandle>,
}

impl Line {
    pub(super) fn connection(&mut self) -> &mut MultiplexedConnection {
        &mut self.conn
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Left alone, it would wait for the answers of a server that hangs.
        if let Some(driver) = &self.driver {
            driver.abort();
        }
    }
}

/// Makes connections.
pub(super) struct Dialer {
    pub(super) options: RedisOptions,
    #[cfg(feature = "redis-tls")]
    tls: std::sync::OnceLock<Result<Tls, String>>,
}

impl Dialer {
    pub(super) fn new(options: RedisOptions) -> Self {
        Self {
            options,
            #[cfg(feature = "redis-tls")]
            tls: std::sync::OnceLock::new(),
        }
    }

    /// Connects, logs in and waits for the answer to a `PING`.
    async fn dial(&self, address: &Address) -> RedisResult<Line> {
        let RedisOptions { cluster, db, tls, .. } = self.options;
        if cluster && db != 0 {
            return Err((ErrorKind::InvalidClientConfig, "a cluster has no other database than 0").into());
        }
        let dialled = async {
            let (handshake, config) = (self.options.handshake(), config());
            let mut line = if tls {
                self.tls(address, &handshake, config).await?
            } else {
                self.plain(address, handshake, config).await?
            };
            redis::cmd("PING").exec_async(&mut line.conn).await?;
            Ok(line)
        };
        match timeout(self.options.connect_deadline, dialled).await {
            Ok(dialled) => dialled,
            Err(_) => Err((ErrorKind::Io, "no answer within the connect deadline").into()),
        }
    }

    /// Connects with the protocol that has pushes, which go to `on_push` in the order in which they come.
    pub(super) async fn dial_listener(
        &self,
        address: &Address,
        on_push: impl redis::aio::AsyncPushSender,
    ) -> RedisResult<Line> {
        let handshake = self.options.handshake().set_protocol(ProtocolVersion::RESP3);
        let config = config().set_push_sender(on_push);
        let dialled = async {
            if self.options.tls {
                self.tls(address, &handshake, config).await
            } else {
                self.plain(address, handshake, config).await
            }
        };
        match timeout(self.options.connect_deadline, dialled).await {
            Ok(dialled) => dialled,
            Err(_) => Err((ErrorKind::Io, "no answer within the connect deadline").into()),
        }
    }

    async fn plain(
        &self,
        address: &Address,
        handshake: RedisConnectionInfo,
        config: AsyncConnectionConfig,
    ) -> RedisResult<Line> {
        let info = ConnectionAddr::Tcp(address.host.clone(), address.port)
            .into_connection_info()?
            .set_tcp_settings(TcpSettings::default().set_nodelay(true))
            .set_redis_settings(handshake);
        let client = Client::open(info)?;
        let conn = client.get_multiplexed_async_connection_with_config(&config).await?;
        Ok(Line { conn, driver: None })
    }

    #[cfg(feature = "redis-tls")]
    async fn tls(
        &self,
        address: &Address,
        handshake: &RedisConnectionInfo,
        config: AsyncConnectionConfig,
    ) -> RedisResult<Line> {
        let tls = self.tls.get_or_init(|| Tls::new(&self.options.tls_options));
        let tls = tls
            .as_ref()
            .map_err(|error| (ErrorKind::InvalidClientConfig, "TLS is not set up well", error.clone()))?;
        let stream = tls.connect(&address.host, address.port).await?;
        let (conn, driver) = MultiplexedConnection::new_with_config(handshake, stream, config).await?;
        Ok(Line { conn, driver: Some(tokio::spawn(driver).abort_handle()) })
    }

    #[cfg(not(feature = "redis-tls"))]
    async fn tls(&self, _: &Address, _: &RedisConnectionInfo, _: AsyncConnectionConfig) -> RedisResult<Line> {
        Err((ErrorKind::InvalidClientConfig, "TLS needs the feature `redis-tls`").into())
    }
}

/// Deadlines are ours: the library's would drop the answer but keep a dead connection.
fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None)
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE)
}

/// Whether the connection is of no more use. A master that became a replica keeps the connection but refuses writes,
/// and its name may lead to the new master by now.
fn is_broken(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_unrecoverable_error()
        || matches!(
            error.kind(),
            ErrorKind::Server(
                ServerErrorKind::ReadOnly | ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown
            )
        )
}
