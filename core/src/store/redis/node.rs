//! A connection that mends itself, its deadlines, and its breaker.
//!
//! It is always in one of these states:
//!
//! ```text
//!   Cold ──first call──▶ Joining ──────▶ Up
//!                        ▲     │         │ │
//!                        │  attempt      │ │ three commands in a row got no answer, and nothing else came either
//!                        │  failed       │ ▼
//!                        │     └──────▶ Open ──probe answered──▶ Up
//!                        └── it broke ───┘
//! ```
//!
//! While `Joining`, calls wait for the outcome as long as their own deadline lets them: it usually takes a millisecond.
//! While `Open`, calls fail at once and cost nothing; one task probes, at most a second apart. A probe is a new
//! connection and a `PING`, which a server that hangs or still loads its data does not answer.
//!
//! A connection that still delivers bytes is slow, not dead: what waits behind a large value runs into its own deadline, but
//! that says nothing about the server. Connections of a pool aren't ours to watch, and every timeout counts there.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, ErrorKind, ProtocolVersion, RedisConnectionInfo, RedisError, RedisResult,
    ServerErrorKind,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::address::Address;
use super::breaker_gauge;
use super::meter::{Delivered, Metered};
use super::options::RedisOptions;
use super::refusals::Refusals;
use super::server_identity::{KnownServer, ServerIdentity};
use super::slots::SlotSet;
#[cfg(feature = "redis-tls")]
use super::tls::Tls;
use super::transport::Transport;
#[cfg(feature = "redis-pool")]
use super::transport::{ClusterRoute, Pool};
use crate::store::{Breaker, StoreError};

/// How many read deadlines in a row may pass without an answer before a connection is given up.
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

    /// Whether the server is asked: the worst that its connections know.
    pub(super) fn breaker(&self) -> Breaker {
        let known = self.links.iter().map(|link| link.state.borrow().breaker());
        known.max().unwrap_or(Breaker::Idle)
    }

    /// Sends, and waits for the answer: what the server said, or that it said nothing.
    ///
    /// If `until` lies beyond the deadline, the deadline begins anew whenever the connection delivered something within it.
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

    /// Asks the server who it is, on every open connection.
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

/// One connection and whatever brings it back.
struct Link {
    dialer: Arc<Dialer>,
    address: Address,
    server: Arc<KnownServer>,
    state: watch::Sender<LinkState>,
}

enum LinkState {
    Cold,
    /// The task tries to connect for the first time since things were well.
    Joining(AbortHandle),
    Up(Arc<Live>),
    /// The server is known to be away. The task probes.
    Open(AbortHandle),
    Closed,
}

impl LinkState {
    /// The connection, or why there is none. `None` if there may be one soon.
    fn live(&self) -> Option<Result<Arc<Live>, StoreError>> {
        match self {
            Self::Up(live) => Some(Ok(live.clone())),
            Self::Closed => Some(Err(StoreError::unavailable("the store was closed"))),
            Self::Open(task) if !task.is_finished() => {
                Some(Err(StoreError::unavailable("no connection; trying again in the background")))
            }
            Self::Cold | Self::Joining(_) | Self::Open(_) => None,
        }
    }

    fn breaker(&self) -> Breaker {
        match self {
            Self::Cold | Self::Closed => Breaker::Idle,
            Self::Joining(_) => Breaker::Connecting,
            Self::Up(_) => Breaker::Closed,
            Self::Open(_) => Breaker::Open,
        }
    }
}

/// A connection that worked when it was last heard of.
struct Live {
    source: ConnectionSource,
    /// The [generation](KnownServer::generation) of its server.
    generation: u64,
    /// Read deadlines that commands waited in vain since the last one with an answer.
    strikes: AtomicU32,
    /// Answers that came through a pool.
    answers: AtomicU64,
    since: Instant,
    /// How long the last pause was before this connection came about.
    pause: Duration,
}

/// What a connection did while a command waited in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silence {
    /// It delivered something else.
    Busy,
    /// It delivered nothing for so long.
    Dead(Duration),
}

impl Live {
    /// Waits for an answer, for one deadline after another while the connection delivers, until `until` at most.
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

    /// How long to wait before the first probe: not at all, unless servers come up and fail in quick succession.
    fn next_pause(&self) -> Duration {
        if self.since.elapsed() < STEADY { longer(self.pause) } else { Duration::ZERO }
    }
}

impl Link {
    fn new(dialer: Arc<Dialer>, address: Address) -> Self {
        let server = dialer.server(&address);
        Self { dialer, address, server, state: watch::Sender::new(LinkState::Cold) }
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
        F: Fn(Transport) -> Fut,
        Fut: Future<Output = RedisResult<T>>,
    {
        let mut again = resend;
        loop {
            let live = self.live(until, deadline).await?;
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
                    // A pool whose connections are all in use says nothing about Redis while others get answers.
                    let waited_for_others =
                        !is_sent.load(Ordering::Relaxed) && live.answers.load(Ordering::Relaxed) != answers;
                    if let Silence::Dead(waited) = silence
                        && !waited_for_others
                    {
                        self.struck(&live, waited);
                    }
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
                    if let Err(error) = &reply {
                        self.dialer.refusals.note(&self.address, error);
                    }
                    if live.strikes.load(Ordering::Relaxed) > 0 {
                        live.strikes.store(0, Ordering::Relaxed);
                    }
                    if live.source.is_pooled() {
                        live.answers.fetch_add(1, Ordering::Relaxed);
                    }
                    return Ok(reply);
                }
            }
        }
    }

    /// A pool doesn't say whether the connection that it lent is new, so the server says with each answer who it is, as long
    /// as there is anything that it could have lost.
    #[cfg(feature = "redis-pool")]
    fn with_identity_callback(self: &Arc<Self>, transport: Transport, live: &Live) -> Transport {
        let is_asked = live.source.is_pooled() && self.dialer.has_one_server() && self.server.is_identified();
        if !is_asked || !self.dialer.change_handler.remembers() {
            return transport;
        }
        let (link, generation) = (self.clone(), live.generation);
        transport.with_identity_callback(Box::new(move |found| {
            link.server.checked(generation, found, None, |kept| link.dialer.changed(&link.address, kept));
        }))
    }

    /// Asks the server who it is, on a connection that is open. One that opens asks for itself.
    async fn check(self: &Arc<Self>, deadline: Duration) {
        let live = self.state.borrow().live();
        let live = match live {
            Some(Ok(live)) => live,
            Some(Err(_)) => return,
            None => {
                // Its task may have ended with its runtime.
                if !matches!(*self.state.borrow(), LinkState::Cold) {
                    self.join();
                }
                return;
            }
        };
        self.ask_identity(&live, deadline).await;
    }

    async fn identify(self: &Arc<Self>, deadline: Duration) -> Option<ServerIdentity> {
        let until = Instant::now() + deadline;
        while Instant::now() < until {
            let live = self.live(until, deadline).await.ok()?;
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
    async fn ask_identity(self: &Arc<Self>, live: &Arc<Live>, deadline: Duration) -> Option<ServerIdentity> {
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
            Ok(Err(error)) if is_broken(&error) => self.broke(live, &error),
            Err(Silence::Dead(waited)) if is_sent.load(Ordering::Relaxed) => self.struck(live, waited),
            Ok(Err(_)) | Err(_) => {}
        }
        None
    }

    /// The connection may lead to a server that another has replaced.
    fn outdated(self: &Arc<Self>, live: &Arc<Live>) {
        #[cfg(feature = "redis-pool")]
        if let ConnectionSource::Pool(pool, _) = &live.source {
            pool.forget_idle();
        }
        // Two servers behind one address would take turns without a pause.
        if self.server.is_flapping() {
            self.replace(live, || LinkState::Open(self.connect(LONGEST_PAUSE)));
        } else {
            self.replace(live, || LinkState::Joining(self.connect(Duration::ZERO)));
        }
    }

    /// A connection to send on. Waits only while the first attempt to connect is under way.
    async fn live(self: &Arc<Self>, until: Instant, deadline: Duration) -> Result<Arc<Live>, StoreError> {
        if let Some(known) = self.state.borrow().live() {
            return known;
        }
        let until = until.min(Instant::now() + deadline);
        let mut changes = self.state.subscribe();
        loop {
            if let Some(known) = changes.borrow_and_update().live() {
                return known;
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
                LinkState::Cold => true,
                LinkState::Joining(task) | LinkState::Open(task) => task.is_finished(),
                LinkState::Up(_) | LinkState::Closed => false,
            };
            if idle {
                *state = LinkState::Joining(self.connect(Duration::ZERO));
            }
            idle
        });
    }

    /// A command got no answer while the connection delivered nothing for `waited`.
    ///
    /// A silence of several read deadlines counts as that many commands. Otherwise a request with stacked evictions would wait
    /// for each of them in turn.
    fn struck(self: &Arc<Self>, live: &Arc<Live>, waited: Duration) {
        let read_deadline = self.dialer.options.read_deadline.as_nanos().max(1);
        // Rounded: the deadline began a moment before the command was sent.
        let strikes =
            ((waited.as_nanos() + read_deadline / 2) / read_deadline).clamp(1, u128::from(STRIKES)) as u32;
        if live.strikes.fetch_add(strikes, Ordering::Relaxed) + strikes >= STRIKES
            && self.replace(live, || LinkState::Open(self.connect(live.next_pause())))
        {
            breaker_gauge::record(&self.address, Breaker::Open);
            tracing::warn!(redis = %self.address, "Redis does not answer; doing without it until it does");
        }
    }

    /// The connection is no more, or no good.
    fn broke(self: &Arc<Self>, live: &Arc<Live>, error: &RedisError) {
        if error.is_io_error() {
            self.replace(live, || LinkState::Joining(self.connect(Duration::ZERO)));
        } else if self.replace(live, || LinkState::Open(self.connect(live.next_pause()))) {
            breaker_gauge::record(&self.address, Breaker::Open);
            tracing::warn!(redis = %self.address, %error, "Redis can't serve; doing without it until it can");
        }
    }

    /// Moves on from `live`, unless somebody else has done so already.
    fn replace(&self, live: &Arc<Live>, next: impl FnOnce() -> LinkState) -> bool {
        self.state.send_if_modified(|state| {
            let current = matches!(state, LinkState::Up(current) if Arc::ptr_eq(current, live));
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
                match link.dialer.dial(&link.address, &link.server).await {
                    Ok((source, generation)) => return link.came_up(source, generation, pause),
                    Err(error) => {
                        link.dialer.refusals.note(&link.address, &error);
                        link.stays_down(&error);
                    }
                }
                pause = longer(pause);
            }
        };
        tokio::spawn(task).abort_handle()
    }

    fn came_up(&self, source: ConnectionSource, generation: u64, pause: Duration) {
        let live = Live {
            source,
            generation,
            strikes: AtomicU32::new(0),
            answers: AtomicU64::new(0),
            since: Instant::now(),
            pause,
        };
        self.state.send_if_modified(|state| {
            if matches!(state, LinkState::Open(_)) {
                tracing::info!(redis = %self.address, "Redis answers again");
            }
            let open = !matches!(state, LinkState::Closed);
            if open {
                breaker_gauge::record(&self.address, Breaker::Closed);
                *state = LinkState::Up(Arc::new(live));
            }
            open
        });
    }

    fn close(&self) {
        self.state.send_modify(|state| {
            if let LinkState::Joining(task) | LinkState::Open(task) = state {
                task.abort();
            }
            *state = LinkState::Closed;
        });
    }

    fn stays_down(&self, error: &RedisError) {
        self.state.send_if_modified(|state| {
            let LinkState::Joining(task) = state else { return false };
            breaker_gauge::record(&self.address, Breaker::Open);
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

/// Where calls get their connections from.
pub(super) enum ConnectionSource {
    /// All share this one. The task serves it: left alone, it would wait for the answers of a server that hangs.
    Own { conn: MultiplexedConnection, delivered: Delivered, _driver: AbortOnDropHandle<()> },
    /// Each borrows one.
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

    fn is_pooled(&self) -> bool {
        !matches!(self, Self::Own { .. })
    }

    /// How many bytes it has delivered, as far as that is known.
    fn delivered(&self) -> u64 {
        match self {
            Self::Own { delivered, .. } => delivered.bytes(),
            #[cfg(feature = "redis-pool")]
            Self::Pool(..) => 0,
        }
    }
}

/// Makes connections.
pub(super) struct Dialer {
    pub(super) options: RedisOptions,
    #[cfg(feature = "redis-tls")]
    tls: std::sync::OnceLock<Result<Tls, String>>,
    /// Whom connections from a cluster's pool are for.
    #[cfg(feature = "redis-pool")]
    route: ClusterRoute,
    servers: Mutex<HashMap<Address, Arc<KnownServer>>>,
    pub(super) change_handler: Arc<dyn ServerChangeHandler>,
    pub(super) refusals: Arc<Refusals>,
}

/// What this process remembers of what servers confirmed.
pub(super) trait ServerChangeHandler: Send + Sync {
    /// Called when servers may have lost what they confirmed, before anything that is read from them is believed. They still
    /// have the first `kept` changes.
    fn on_change(&self, change: ServerChange<'_>, kept: u64);

    /// Returns `true` if there is anything that a server could lose.
    fn remembers(&self) -> bool;

    /// The number of changes that servers confirmed so far.
    fn confirmed(&self) -> u64;
}

/// A server that took another's place.
#[derive(Debug)]
pub(super) enum ServerChange<'a> {
    /// The one at this address.
    Server(&'a Address),
    /// The owners of these slots of a cluster.
    Owners(SlotSet),
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

    /// Commands reach the master of this slot, through a cluster's pool.
    #[cfg(feature = "redis-pool")]
    pub(super) fn to_master(&self, slot: u16) -> Self {
        Self {
            route: ClusterRoute::Master(slot),
            refusals: self.refusals.clone(),
            ..Self::new(self.options.clone(), self.change_handler.clone())
        }
    }

    /// Connects, logs in and waits for the answer to a `PING`.
    async fn dial(&self, address: &Address, server: &KnownServer) -> RedisResult<(ConnectionSource, u64)> {
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

    /// Waits for the answer to a `PING`, and notes whether it is the server that it was. Returns the generation of the
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

    /// Whether every connection leads to the server at its address. Those of a cluster's pool lead to any node.
    fn has_one_server(&self) -> bool {
        !(self.options.is_pooled() && self.options.is_cluster())
    }

    /// The number of changes that were confirmed so far. `None` with a pool, whose connections may lead to several servers.
    fn confirmed(&self) -> Option<u64> {
        (!self.options.is_pooled()).then(|| self.change_handler.confirmed())
    }

    fn changed(&self, address: &Address, kept: u64) {
        tracing::info!(redis = %address, "Redis is another server than before; repeating what was evicted lately");
        self.change_handler.on_change(ServerChange::Server(address), kept);
    }

    /// The server at this address. Known for as long as the store lives: a node that leaves a cluster may come back.
    pub(super) fn server(&self, address: &Address) -> Arc<KnownServer> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.entry(address.clone()).or_default().clone()
    }

    /// Tries one of a pool's connections. Each call then borrows one of its own.
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

    /// Connects with the protocol that has pushes, which go to `on_push` in the order in which they come.
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

/// Speaks Redis on a stream.
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
