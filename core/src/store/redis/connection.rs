//! The one place that sends commands: connections that mend themselves, deadlines, and the breaker.
//!
//! A connection is always in one of these states:
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
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, FromRedisValue, IntoConnectionInfo as _,
    RedisError, RedisResult, ServerErrorKind, Value, from_redis_value,
};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::options::RedisOptions;
use super::scripts::Call;
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

/// One to four multiplexed connections. Clones share them.
#[derive(Clone)]
pub(super) struct Connection {
    links: Arc<[Arc<Link>]>,
    next: Arc<AtomicUsize>,
}

impl Connection {
    /// Connects to nothing yet.
    pub(super) fn new(options: &RedisOptions) -> Self {
        let dialer = Arc::new(Dialer::new(options.clone()));
        let links = (0..options.connections).map(|_| Arc::new(Link::new(dialer.clone()))).collect();
        Self { links, next: Arc::default() }
    }

    /// Sends one command.
    pub(super) async fn command<T: FromRedisValue>(
        &self,
        cmd: &Cmd,
        deadline: Duration,
    ) -> Result<T, StoreError> {
        self.link().run(deadline, |mut conn| async move { cmd.query_async(&mut conn).await }).await
    }

    /// Sends several commands in one go. Fails if any of them does.
    pub(super) async fn pipeline<T: FromRedisValue>(
        &self,
        pipe: &redis::Pipeline,
        deadline: Duration,
    ) -> Result<T, StoreError> {
        self.link().run(deadline, |mut conn| async move { pipe.query_async(&mut conn).await }).await
    }

    /// Calls a script.
    pub(super) async fn script<T: FromRedisValue>(
        &self,
        call: Call<'_>,
        deadline: Duration,
    ) -> Result<T, StoreError> {
        let by_hash = &call.by_hash();
        let send = |mut conn: MultiplexedConnection| async move {
            match by_hash.query_async(&mut conn).await {
                Err(error) if is_no_script(&error) => call.in_full().query_async(&mut conn).await,
                reply => reply,
            }
        };
        self.link().run(deadline, send).await
    }

    /// Sends a command and calls a script in one round trip. It is for the script to find out whether the command
    /// did what it should.
    pub(super) async fn upload_and_script<T: FromRedisValue>(
        &self,
        upload: Cmd,
        call: Call<'_>,
        deadline: Duration,
    ) -> Result<T, StoreError> {
        let mut pipe = redis::pipe();
        pipe.ignore_errors().add_command(upload).add_command(call.by_hash());
        let pipe = &pipe;
        let send = |mut conn: MultiplexedConnection| async move {
            let (_, reply): (RedisResult<Value>, RedisResult<Value>) = pipe.query_async(&mut conn).await?;
            match reply {
                // The upload is still there, and only the script has to be sent again.
                Err(error) if is_no_script(&error) => call.in_full().query_async(&mut conn).await,
                reply => Ok(from_redis_value(reply?)?),
            }
        };
        self.link().run(deadline, send).await
    }

    /// Lets go of everything. Later calls fail.
    pub(super) fn close(&self) {
        for link in self.links.iter() {
            link.state.send_modify(|state| {
                if let State::Joining(task) | State::Open(task) = state {
                    task.abort();
                }
                *state = State::Closed;
            });
        }
    }

    fn link(&self) -> &Arc<Link> {
        let turn = if self.links.len() == 1 { 0 } else { self.next.fetch_add(1, Ordering::Relaxed) };
        &self.links[turn % self.links.len()]
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("links", &self.links.len()).finish_non_exhaustive()
    }
}

/// One connection and whatever brings it back.
struct Link {
    dialer: Arc<Dialer>,
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
    fn new(dialer: Arc<Dialer>) -> Self {
        Self { dialer, state: watch::Sender::new(State::Cold) }
    }

    /// Sends, and waits for the answer until the deadline.
    ///
    /// A connection that broke while nobody used it is only noticed by the next command, so that one is tried once
    /// more on a new connection. Every command here can be sent twice.
    async fn run<T, F, Fut>(self: &Arc<Self>, deadline: Duration, send: F) -> Result<T, StoreError>
    where
        F: Fn(MultiplexedConnection) -> Fut,
        Fut: Future<Output = RedisResult<T>>,
    {
        let until = Instant::now() + deadline;
        let mut again = true;
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
                    return reply.map_err(StoreError::refused);
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
            tracing::warn!(redis = %self.address(), "Redis does not answer; doing without it until it does");
        }
    }

    /// The connection is no more, or no good.
    fn broke(self: &Arc<Self>, live: &Arc<Live>, error: &RedisError) {
        if error.is_io_error() {
            self.replace(live, || State::Joining(self.connect(Duration::ZERO)));
        } else if self.replace(live, || State::Open(self.connect(live.next_pause()))) {
            tracing::warn!(redis = %self.address(), %error, "Redis can't serve; doing without it until it can");
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
                match link.dialer.dial().await {
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
                tracing::info!(redis = %self.address(), "Redis answers again");
            }
            let open = !matches!(state, State::Closed);
            if open {
                *state = State::Up(Arc::new(live));
            }
            open
        });
    }

    fn stays_down(&self, error: &RedisError) {
        self.state.send_if_modified(|state| {
            let State::Joining(task) = state else { return false };
            tracing::warn!(
                redis = %self.address(),
                %error,
                "Redis can't be reached; doing without it until it can"
            );
            *state = State::Open(task.clone());
            true
        });
    }

    fn address(&self) -> String {
        format!("{}:{}", self.dialer.options.host, self.dialer.options.port)
    }
}

/// A connection, and the task that serves it if the library does not keep that itself.
struct Line {
    conn: MultiplexedConnection,
    driver: Option<AbortHandle>,
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
struct Dialer {
    options: RedisOptions,
    #[cfg(feature = "redis-tls")]
    tls: std::sync::OnceLock<Result<Tls, String>>,
}

impl Dialer {
    fn new(options: RedisOptions) -> Self {
        Self {
            options,
            #[cfg(feature = "redis-tls")]
            tls: std::sync::OnceLock::new(),
        }
    }

    /// Connects, logs in and waits for the answer to a `PING`.
    async fn dial(&self) -> RedisResult<Line> {
        let dialled = async {
            let mut line = if self.options.tls { self.tls().await? } else { self.plain().await? };
            redis::cmd("PING").exec_async(&mut line.conn).await?;
            Ok(line)
        };
        match timeout(self.options.connect_deadline, dialled).await {
            Ok(dialled) => dialled,
            Err(_) => Err((ErrorKind::Io, "no answer within the connect deadline").into()),
        }
    }

    async fn plain(&self) -> RedisResult<Line> {
        let info = ConnectionAddr::Tcp(self.options.host.clone(), self.options.port)
            .into_connection_info()?
            .set_tcp_settings(TcpSettings::default().set_nodelay(true))
            .set_redis_settings(self.options.handshake());
        let client = Client::open(info)?;
        let conn = client.get_multiplexed_async_connection_with_config(&config()).await?;
        Ok(Line { conn, driver: None })
    }

    #[cfg(feature = "redis-tls")]
    async fn tls(&self) -> RedisResult<Line> {
        let RedisOptions { host, port, .. } = &self.options;
        let tls = self.tls.get_or_init(|| Tls::new(&self.options.tls_options));
        let tls = tls
            .as_ref()
            .map_err(|error| (ErrorKind::InvalidClientConfig, "TLS is not set up well", error.clone()))?;
        let stream = tls.connect(host, *port).await?;
        let (conn, driver) =
            MultiplexedConnection::new_with_config(&self.options.handshake(), stream, config()).await?;
        Ok(Line { conn, driver: Some(tokio::spawn(driver).abort_handle()) })
    }

    #[cfg(not(feature = "redis-tls"))]
    async fn tls(&self) -> RedisResult<Line> {
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

fn is_no_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
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
