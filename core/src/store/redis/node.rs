//! Connections to one server: reconnects, deadlines, and the states of a connection.
//!
//! A connection is in one of these states:
//!
//! ```text
//!   Cold ─first call─▶ Connecting ───────────▶ Up
//!                       ▲    │                │ │
//!                       │  attempt            │ │ three commands in a row got no answer,
//!                       │  failed             │ │ and the connection delivered nothing else
//!                       │    └─────▶ Open ◀───┘ │
//!                       │             └─ probe answered ─▶ Up
//!                       └─────── disconnected ──┘
//! ```
//!
//! In `Connecting`, calls wait for the outcome until their own deadline. That usually takes a millisecond.
//! In `Open`, calls fail at once, and one task probes at least once a second (`breaker.rs`). A probe is a new connection and a
//! `PING`. A server that hangs or still loads its data doesn't answer it.
//!
//! A connection that still delivers bytes is slow, not dead. A command that waits behind a large value times out, but that says
//! nothing about the server. How much a connection of a pool delivers isn't known, so every timeout counts there.

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use redis::{ErrorKind, RedisError, RedisResult, ServerErrorKind};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout_at};

use super::address::Address;
use super::breaker::{self, CircuitBreaker, LONGEST_PAUSE, next_pause};
use super::dialer::{ConnectionSource, Dialer};
use super::failover::server_identity::{KnownServer, ServerIdentity};
use super::transport::Transport;
use crate::store::{Breaker, StoreError};

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

    /// Returns the worst state among the connections.
    pub(super) fn breaker(&self) -> Breaker {
        let known = self.links.iter().map(|link| link.state.borrow().breaker());
        known.max().unwrap_or(Breaker::Idle)
    }

    /// Sends, and waits for the server's answer.
    ///
    /// If `until` is later than the deadline, the deadline starts again whenever the connection delivered something within it.
    ///
    /// # Errors
    ///
    /// The outer error means that there was no answer. The inner one is the server's.
    pub(super) async fn run<T, F, Fut>(
        &self,
        until: Instant,
        deadline: Duration,
        resend: bool,
        send: F,
    ) -> Result<RedisResult<T>, StoreError>
    where
        F: Fn(Transport) -> Fut,
        Fut: Future<Output = RedisResult<T>>,
    {
        let turn = if self.links.len() == 1 { 0 } else { self.next.fetch_add(1, Ordering::Relaxed) };
        self.links[turn % self.links.len()].run(until, deadline, resend, send).await
    }

    /// Asks the server for its identity, on every open connection.
    pub(super) async fn check(&self, deadline: Duration) {
        if self.links[0].dialer.has_one_server() {
            join_all(self.links.iter().map(|link| link.check(deadline))).await;
        }
    }

    /// Asks the server for its identity now, on a connection that is opened if there is none. `None` without an answer.
    pub(super) async fn identify(&self, deadline: Duration) -> Option<ServerIdentity> {
        self.links[0].identify(deadline).await
    }

    /// Closes every connection. Later calls fail.
    pub(super) fn close(&self) {
        self.links.iter().for_each(|link| link.close());
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({})", self.address())
    }
}

/// One connection, and the task that reconnects it.
struct Link {
    dialer: Arc<Dialer>,
    address: Address,
    server: Arc<KnownServer>,
    state: watch::Sender<LinkState>,
}

enum LinkState {
    Cold,
    /// The task makes its first attempt to connect.
    Connecting(AbortHandle),
    Up(Arc<OpenConnection>),
    /// The breaker is open. The task probes.
    Open(AbortHandle),
    Closed,
}

impl LinkState {
    /// Returns the connection, or the reason why there is none. `None` if one may be open soon.
    fn live(&self) -> Option<Result<Arc<OpenConnection>, StoreError>> {
        match self {
            Self::Up(live) => Some(Ok(live.clone())),
            Self::Closed => Some(Err(StoreError::unavailable("the store was closed"))),
            Self::Open(task) if !task.is_finished() => {
                Some(Err(StoreError::unavailable("no connection; trying again in the background")))
            }
            Self::Cold | Self::Connecting(_) | Self::Open(_) => None,
        }
    }

    fn breaker(&self) -> Breaker {
        match self {
            Self::Cold | Self::Closed => Breaker::Idle,
            Self::Connecting(_) => Breaker::Connecting,
            Self::Up(_) => Breaker::Closed,
            Self::Open(_) => Breaker::Open,
        }
    }
}

/// An open connection.
struct OpenConnection {
    source: ConnectionSource,
    /// The [generation](KnownServer::generation) of its server.
    generation: u64,
    breaker: CircuitBreaker,
    /// The number of answers, if the connections are a pool's.
    answers: AtomicU64,
}

/// The activity of a connection during a command that timed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silence {
    /// It delivered other bytes.
    Busy,
    /// It delivered nothing for this time.
    Dead(Duration),
}

impl OpenConnection {
    /// Waits for an answer. The deadline starts again while the connection delivers, until `until` at the latest.
    async fn answer<T>(
        &self,
        mut answer: Pin<&mut impl Future<Output = T>>,
        until: Instant,
        deadline: Duration,
    ) -> Result<T, Silence> {
        loop {
            let delivered = self.source.delivered();
            let start = Instant::now();
            let turn = until.min(start + deadline);
            if let Ok(answer) = timeout_at(turn, answer.as_mut()).await {
                return Ok(answer);
            }
            if self.source.delivered() == delivered {
                return Err(Silence::Dead(turn.saturating_duration_since(start)));
            }
            if turn == until {
                return Err(Silence::Busy);
            }
        }
    }
}

impl Link {
    fn new(dialer: Arc<Dialer>, address: Address) -> Self {
        let server = dialer.server(&address);
        Self { dialer, address, server, state: watch::Sender::new(LinkState::Cold) }
    }

    /// Sends, and waits for the answer until the deadline.
    ///
    /// A connection that broke while it was idle is noticed by the next command. With `resend`, that command is sent again on a
    /// new connection. Commands that must not run twice fail instead.
    async fn run<T, F, Fut>(
        self: &Arc<Self>,
        until: Instant,
        deadline: Duration,
        resend: bool,
        send: F,
    ) -> Result<RedisResult<T>, StoreError>
    where
        F: Fn(Transport) -> Fut,
        Fut: Future<Output = RedisResult<T>>,
    {
        let mut again = resend;
        loop {
            // Without a future for the ordinary case, in which the connection is open.
            let known = self.state.borrow().live();
            let live = match known {
                Some(known) => known?,
                None => self.wait_for_connection(until, deadline).await?,
            };
            if live.generation != self.server.generation() {
                self.outdated(&live);
                continue;
            }
            let (answers, is_sent) = (live.answers.load(Ordering::Relaxed), AtomicBool::new(false));
            let sent = pin!(async {
                let transport = live.source.transport().await?;
                is_sent.store(true, Ordering::Relaxed);
                #[cfg(feature = "redis-pool")]
                let transport = self.with_identity_callback(transport, &live);
                send(transport).await
            });
            match live.answer(sent, until, deadline).await {
                Err(silence) => {
                    // If all connections of a pool are in use, a timeout says nothing about Redis while other calls get answers.
                    let waited_for_others =
                        !is_sent.load(Ordering::Relaxed) && live.answers.load(Ordering::Relaxed) != answers;
                    if let Silence::Dead(waited) = silence
                        && !waited_for_others
                    {
                        self.on_timeout(&live, waited);
                    }
                    return Err(StoreError::Timeout(deadline));
                }
                Ok(Err(error)) if is_broken(&error) => {
                    self.on_disconnect(&live, &error);
                    if !again {
                        return Err(StoreError::unavailable(error));
                    }
                    again = false;
                }
                Ok(reply) => {
                    if let Err(error) = &reply {
                        self.dialer.refusals.note(&self.address, error);
                    }
                    live.breaker.on_answer();
                    if live.source.is_pooled() {
                        live.answers.fetch_add(1, Ordering::Relaxed);
                    }
                    return Ok(reply);
                }
            }
        }
    }

    /// Requests the server's identity with each answer while any change is remembered: a pool doesn't report whether its
    /// connection is a new one.
    #[cfg(feature = "redis-pool")]
    fn with_identity_callback(self: &Arc<Self>, transport: Transport, live: &OpenConnection) -> Transport {
        let is_asked = live.source.is_pooled() && self.dialer.has_one_server() && self.server.is_identified();
        if !is_asked || !self.dialer.change_handler.remembers() {
            return transport;
        }
        let (link, generation) = (self.clone(), live.generation);
        transport.with_identity_callback(Box::new(move |found| {
            link.server.checked(generation, found, None, |kept| link.dialer.changed(&link.address, kept));
        }))
    }

    /// Asks the server for its identity if the connection is open. A connection that opens asks for itself.
    async fn check(self: &Arc<Self>, deadline: Duration) {
        let live = self.state.borrow().live();
        let live = match live {
            Some(Ok(live)) => live,
            Some(Err(_)) => return,
            None => {
                // The task may have ended with its runtime.
                if !matches!(*self.state.borrow(), LinkState::Cold) {
                    self.ensure_connecting();
                }
                return;
            }
        };
        self.ask_identity(&live, deadline).await;
    }

    async fn identify(self: &Arc<Self>, deadline: Duration) -> Option<ServerIdentity> {
        let until = Instant::now() + deadline;
        while Instant::now() < until {
            let live = self.wait_for_connection(until, deadline).await.ok()?;
            let found = self.ask_identity(&live, until.saturating_duration_since(Instant::now())).await;
            // Another caller may have noticed first that the server changed: then the next connection is the one to ask on.
            if found.is_some() || live.generation == self.server.generation() {
                return found;
            }
            self.outdated(&live);
        }
        None
    }

    /// Asks on this connection. `None` without an answer, and if the connection may lead to a server of before.
    async fn ask_identity(
        self: &Arc<Self>,
        live: &Arc<OpenConnection>,
        deadline: Duration,
    ) -> Option<ServerIdentity> {
        if live.generation != self.server.generation() {
            self.outdated(live);
            return None;
        }
        let confirmed = self.dialer.confirmed();
        let is_sent = AtomicBool::new(false);
        let asked = pin!(async {
            let mut transport = live.source.transport().await?;
            is_sent.store(true, Ordering::Relaxed);
            transport.identity(|error| self.dialer.refusals.note(&self.address, error)).await
        });
        match live.answer(asked, Instant::now() + deadline, deadline).await {
            Ok(Ok(found)) => {
                let changed = |kept| self.dialer.changed(&self.address, kept);
                let is_current = self.server.checked(live.generation, found.clone(), confirmed, changed);
                return found.filter(|_| is_current);
            }
            Ok(Err(error)) if is_broken(&error) => self.on_disconnect(live, &error),
            Err(Silence::Dead(waited)) if is_sent.load(Ordering::Relaxed) => self.on_timeout(live, waited),
            Ok(Err(_)) | Err(_) => {}
        }
        None
    }

    /// Replaces a connection that may lead to an earlier server behind the address.
    fn outdated(self: &Arc<Self>, live: &Arc<OpenConnection>) {
        #[cfg(feature = "redis-pool")]
        if let ConnectionSource::Pool(pool, _) = &live.source {
            pool.forget_idle();
        }
        // Otherwise two servers that take turns behind one address would cause reconnects without a pause.
        if self.server.is_flapping() {
            self.replace(live, || LinkState::Open(self.connect(LONGEST_PAUSE)));
        } else {
            self.replace(live, || LinkState::Connecting(self.connect(Duration::ZERO)));
        }
    }

    /// Returns a connection to send on. Waits only during the first attempt to connect.
    async fn wait_for_connection(
        self: &Arc<Self>,
        until: Instant,
        deadline: Duration,
    ) -> Result<Arc<OpenConnection>, StoreError> {
        let until = until.min(Instant::now() + deadline);
        let mut changes = self.state.subscribe();
        loop {
            if let Some(known) = changes.borrow_and_update().live() {
                return known;
            }
            self.ensure_connecting();
            if timeout_at(until, changes.changed()).await.is_err() {
                return Err(StoreError::unavailable("still connecting"));
            }
        }
    }

    /// Starts the task that connects unless it runs. A task ends with its runtime, so a finished one is replaced.
    fn ensure_connecting(self: &Arc<Self>) {
        self.state.send_if_modified(|state| {
            let idle = match state {
                LinkState::Cold => true,
                LinkState::Connecting(task) | LinkState::Open(task) => task.is_finished(),
                LinkState::Up(_) | LinkState::Closed => false,
            };
            if idle {
                *state = LinkState::Connecting(self.connect(Duration::ZERO));
            }
            idle
        });
    }

    /// Opens the breaker if the connection delivered nothing for too long.
    fn on_timeout(self: &Arc<Self>, live: &Arc<OpenConnection>, silence: Duration) {
        if live.breaker.opens_after(silence, self.dialer.options.read_deadline) && self.open_breaker(live) {
            tracing::warn!(redis = %self.address, "Redis does not answer; doing without it until it does");
        }
    }

    /// Replaces a connection by probes. Returns `true` unless another caller has replaced it.
    fn open_breaker(self: &Arc<Self>, live: &Arc<OpenConnection>) -> bool {
        let pause = live.breaker.first_pause(Instant::now());
        let is_replaced = self.replace(live, || LinkState::Open(self.connect(pause)));
        if is_replaced {
            breaker::record(&self.address, Breaker::Open);
        }
        is_replaced
    }

    /// Replaces a connection that is closed or unusable.
    fn on_disconnect(self: &Arc<Self>, live: &Arc<OpenConnection>, error: &RedisError) {
        if error.is_io_error() {
            self.replace(live, || LinkState::Connecting(self.connect(Duration::ZERO)));
        } else if self.open_breaker(live) {
            tracing::warn!(redis = %self.address, %error, "Redis can't serve; doing without it until it can");
        }
    }

    /// Replaces `live` unless another caller has replaced it. Returns `true` if it was replaced.
    fn replace(&self, live: &Arc<OpenConnection>, next: impl FnOnce() -> LinkState) -> bool {
        self.state.send_if_modified(|state| {
            let current = matches!(state, LinkState::Up(current) if Arc::ptr_eq(current, live));
            if current {
                *state = next();
            }
            current
        })
    }

    /// Starts the task that tries to connect until it succeeds. It ends when the store is dropped.
    ///
    /// Callers hold the lock of the state, so that the task's first change comes after theirs.
    fn connect(self: &Arc<Self>, pause: Duration) -> AbortHandle {
        let link = Arc::downgrade(self);
        let task = async move {
            let mut pause = pause;
            loop {
                if !pause.is_zero() {
                    // Randomized, so that many processes don't reconnect to the same server at once.
                    sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                }
                let Some(link) = link.upgrade() else { return };
                match link.dialer.dial(&link.address, &link.server).await {
                    Ok((source, generation)) => return link.on_connect(source, generation, pause),
                    Err(error) => {
                        link.dialer.refusals.note(&link.address, &error);
                        link.on_failed_attempt(&error);
                    }
                }
                pause = next_pause(pause);
            }
        };
        tokio::spawn(task).abort_handle()
    }

    fn on_connect(&self, source: ConnectionSource, generation: u64, pause: Duration) {
        let live = OpenConnection {
            source,
            generation,
            breaker: CircuitBreaker::new(Instant::now(), pause),
            answers: AtomicU64::new(0),
        };
        self.state.send_if_modified(|state| {
            if matches!(state, LinkState::Open(_)) {
                tracing::info!(redis = %self.address, "Redis answers again");
            }
            let open = !matches!(state, LinkState::Closed);
            if open {
                breaker::record(&self.address, Breaker::Closed);
                *state = LinkState::Up(Arc::new(live));
            }
            open
        });
    }

    fn close(&self) {
        self.state.send_modify(|state| {
            if let LinkState::Connecting(task) | LinkState::Open(task) = state {
                task.abort();
            }
            *state = LinkState::Closed;
        });
    }

    fn on_failed_attempt(&self, error: &RedisError) {
        self.state.send_if_modified(|state| {
            let LinkState::Connecting(task) = state else { return false };
            breaker::record(&self.address, Breaker::Open);
            tracing::warn!(
                redis = %self.address,
                %error,
                "Redis can't be reached; doing without it until it can"
            );
            *state = LinkState::Open(task.clone());
            true
        });
    }
}

/// Returns `true` if the connection can't be used any more. A master that became a replica keeps its connections but refuses
/// writes, and its name may lead to the new master by now.
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
