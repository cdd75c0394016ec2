//! Routes commands to the nodes of a Redis Cluster.
//!
//! Every node has its own connections and circuit breaker, so a node that is down affects only its own keys. Redirections
//! correct the known layout:
//!
//! * `MOVED`: another node owns the slot. The command is sent there, and the layout is looked up again.
//! * `ASK`: this key has been migrated to the slot's next owner. Only this command is sent there.
//! * `TRYAGAIN`: some of the command's keys have been migrated and some have not. The command is sent again after a pause, until
//!   its deadline.
//! * `CLUSTERDOWN`: a master failed and no replica has been promoted yet. That takes seconds, so the command fails.
//!
//! A timeout also causes a lookup of the layout, at most every 100 ms, because a replica may have been promoted. Values are never
//! read from replicas, which may lack an eviction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use redis::{ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind, Value, from_redis_value};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout_at};

use super::address::Address;
use super::dialer::Dialer;
use super::failover::ServerChange;
use super::failover::change_log::Lost;
use super::node::Node;
use super::slots::{SLOTS, SlotSet, slot};
use super::transport::Transport;
use crate::store::{Breaker, StoreError};

/// The owner of a slot that no known node serves.
const NO_OWNER: u16 = u16::MAX;

/// The minimum time between two lookups of the layout.
const MIN_LOOKUP_INTERVAL: Duration = Duration::from_millis(100);

/// The number of nodes that are asked for the layout at once. The first answer is used.
const MAX_ASKED: usize = 8;

/// The deadline for the identity of a new master. Without it, all changes in its slots are repeated.
const IDENTITY_DEADLINE: Duration = Duration::from_millis(250);

/// The number of redirections that a command follows without a pause.
const MAX_IMMEDIATE_REDIRECTIONS: u32 = 3;

/// The longest pause before a command is sent again.
const LONGEST_PAUSE: Duration = Duration::from_millis(16);

/// A cluster. It is known by the configured addresses until a node answers with the layout.
pub(super) struct Cluster {
    dialer: Arc<Dialer>,
    slots: RwLock<Arc<Slots>>,
    nodes: Mutex<HashMap<Address, Arc<Node>>>,
    lookup: Mutex<LayoutLookup>,
    /// The number of lookups that ended, with or without success.
    lookups: watch::Sender<u64>,
    closed: AtomicBool,
}

#[derive(Default)]
struct LayoutLookup {
    task: Option<AbortHandle>,
    ended: Option<Instant>,
}

/// The owners of the slots.
#[derive(Clone)]
struct Slots {
    masters: Vec<Arc<Node>>,
    /// Masters that are known from redirections of single slots. Their other slots are not known yet.
    redirected: Vec<Arc<Node>>,
    /// The index of each slot's master.
    owners: Box<[u16]>,
}

impl Slots {
    fn unknown() -> Self {
        Self { masters: Vec::new(), redirected: Vec::new(), owners: vec![NO_OWNER; SLOTS].into() }
    }

    fn owner(&self, slot: u16) -> Option<&Arc<Node>> {
        self.masters.get(usize::from(self.owners[usize::from(slot)]))
    }

    /// Returns `true` if this node was no master, or is known as one only from redirections, so that its other slots are new.
    fn is_new(&self, master: &Arc<Node>) -> bool {
        let is_among = |nodes: &[Arc<Node>]| nodes.iter().any(|other| other.address() == master.address());
        !is_among(&self.masters) || is_among(&self.redirected)
    }

    fn assign(&mut self, slots: impl IntoIterator<Item = u16>, node: Arc<Node>) {
        let position = self.masters.iter().position(|master| Arc::ptr_eq(master, &node));
        let number = position.unwrap_or_else(|| {
            self.masters.push(node);
            self.masters.len() - 1
        });
        let number = u16::try_from(number).unwrap_or(NO_OWNER);
        for slot in slots {
            if let Some(owner) = self.owners.get_mut(usize::from(slot)) {
                *owner = number;
            }
        }
    }
}

/// The number of an earlier master's changes that a new master has, by the address of the new one and of the earlier one.
#[derive(Debug, Default)]
struct KeptChanges(HashMap<Address, HashMap<Address, u64>>);

impl KeptChanges {
    fn of(&self, before: &Address, new: &Address) -> u64 {
        self.0.get(new).and_then(|kept| kept.get(before)).copied().unwrap_or(0)
    }
}

/// The servers that hold keys, with the data that shows whether keys moved between them.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) nodes: Vec<Arc<Node>>,
    /// The name, epoch and slots of every node, as the node itself reports them.
    pub(super) described: BTreeSet<String>,
    pub(super) moving: bool,
}

impl Layout {
    pub(super) fn of_one(node: &Arc<Node>) -> Self {
        Self { nodes: vec![node.clone()], described: BTreeSet::new(), moving: false }
    }

    /// Returns `true` if no key can have moved between nodes since `before`.
    pub(super) fn is_steady_since(&self, before: &Self) -> bool {
        !self.moving && !before.moving && self.described == before.described
    }
}

/// The redirection in a node's refusal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Redirection {
    /// To the slot's new owner.
    Moved(Option<Address>),
    /// To the slot's next owner, for this command only.
    Ask(Option<Address>),
    /// None yet: the command can be sent again after a pause.
    Wait,
    /// None, for longer than a command can wait.
    Down,
}

impl Redirection {
    pub(super) fn of(error: &RedisError) -> Option<Self> {
        // Without a host, it is the host of the node that answered.
        let address = || error.redirect_node().and_then(|(address, _)| Address::parse(address));
        let ErrorKind::Server(kind) = error.kind() else { return None };
        match kind {
            ServerErrorKind::Moved => Some(Self::Moved(address())),
            ServerErrorKind::Ask => Some(Self::Ask(address())),
            ServerErrorKind::TryAgain => Some(Self::Wait),
            ServerErrorKind::ClusterDown => Some(Self::Down),
            _ => None,
        }
    }
}

impl Cluster {
    /// Connects to nothing yet.
    pub(super) fn new(dialer: Arc<Dialer>) -> Self {
        Self {
            dialer,
            slots: RwLock::new(Arc::new(Slots::unknown())),
            nodes: Mutex::default(),
            lookup: Mutex::default(),
            lookups: watch::Sender::new(0),
            closed: AtomicBool::new(false),
        }
    }

    /// Sends to the owner of the key and follows redirections, until `until`. [`Node::run`] describes the deadline.
    pub(super) async fn run<T, F, Fut>(
        self: &Arc<Self>,
        key: &str,
        until: Instant,
        deadline: Duration,
        resend: bool,
        send: F,
    ) -> Result<T, StoreError>
    where
        F: Fn(Transport, bool) -> Fut,
        Fut: Future<Output = RedisResult<T>>,
    {
        let slot = slot(key);
        let (mut node, mut asking) = (self.owner(slot, until).await?, false);
        let mut redirections = 0;
        loop {
            let error = match node.run(until, deadline, resend, |conn| send(conn, asking)).await {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(error)) => error,
                Err(silent) => {
                    self.look_up();
                    return Err(silent);
                }
            };
            let Some(redirection) = Redirection::of(&error) else { return Err(StoreError::refused(error)) };
            if redirection == Redirection::Down {
                self.look_up();
                return Err(StoreError::unavailable(error));
            }
            redirections += 1;
            if redirections > MAX_IMMEDIATE_REDIRECTIONS || redirection == Redirection::Wait {
                let pause = Duration::from_millis(1 << redirections.min(5)).min(LONGEST_PAUSE);
                // Otherwise a node without enough time to answer would be charged with a timeout.
                if Instant::now() + 2 * pause >= until {
                    return Err(StoreError::refused(error));
                }
                sleep(pause).await;
            }
            asking = matches!(redirection, Redirection::Ask(_));
            node = match redirection {
                Redirection::Moved(Some(address)) => {
                    let deadline = until.saturating_duration_since(Instant::now()) / 2;
                    self.record_owner(slot, &address.beside(node.address()), deadline).await
                }
                Redirection::Ask(Some(address)) => self.node(&address.beside(node.address())),
                Redirection::Moved(None) | Redirection::Ask(None) | Redirection::Wait | Redirection::Down => {
                    self.look_up();
                    self.owner(slot, until).await?
                }
            };
        }
    }

    /// Returns every master of these slots, and the masters without slots, which keys may be migrating to. Those that can't be
    /// reached are left out if no slot is moving.
    pub(super) async fn layout(
        self: &Arc<Self>,
        within: &Lost,
        deadline: Duration,
    ) -> Result<Layout, StoreError> {
        let slots = self.look_up_slots(deadline).await?;
        let owners: BTreeSet<u16> = (0..SLOTS as u16)
            .filter(|slot| within.has_slot(*slot))
            .map(|slot| slots.owners[usize::from(slot)])
            .collect();
        if owners.contains(&NO_OWNER) {
            return Err(StoreError::unavailable("the cluster does not serve every slot"));
        }
        let slots = self.update_slots(slots, deadline).await;
        let mut nodes: Vec<_> =
            owners.iter().filter_map(|owner| slots.masters.get(usize::from(*owner)).cloned()).collect();
        let (mut described, mut moving) = (BTreeSet::new(), false);
        let (mut next, owners) = (0, nodes.len());
        let mut left_out: Vec<Arc<Node>> = Vec::new();
        while let Some(node) = nodes.get(next).cloned() {
            let view = match View::of(&node, deadline).await {
                // It may be a failed master that a replica replaced, until the cluster agrees that it failed. It has no key that
                // can be read: a slot that began to move to it meanwhile would change the description of the slot's owner.
                Err(_) if next >= owners && !moving => {
                    left_out.push(nodes.remove(next));
                    continue;
                }
                view => view?,
            };
            next += 1;
            moving |= view.moving;
            described.insert(view.described);
            for address in view.empty_masters {
                let master = self.node(&address.beside(node.address()));
                if !nodes.iter().chain(&left_out).any(|known| Arc::ptr_eq(known, &master)) {
                    nodes.push(master);
                }
            }
        }
        Ok(Layout { nodes, described, moving })
    }

    /// Returns the known nodes and their breakers, sorted by address.
    pub(super) fn servers(&self) -> Vec<(Address, Breaker)> {
        let nodes = self.nodes();
        let mut servers: Vec<_> = nodes.iter().map(|(at, node)| (at.clone(), node.breaker())).collect();
        servers.sort_by_cached_key(|(address, _)| address.to_string());
        servers
    }

    /// Closes all connections. Later calls fail.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        if let Some(task) = self.lookup().task.take() {
            task.abort();
        }
        // Wakes the callers that wait for a lookup.
        self.lookups.send_modify(|lookups| *lookups += 1);
        for node in self.nodes().values() {
            node.close();
        }
    }

    async fn owner(self: &Arc<Self>, slot: u16, until: Instant) -> Result<Arc<Node>, StoreError> {
        let mut lookups = self.lookups.subscribe();
        let mut is_looked_up = false;
        loop {
            {
                let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
                if let Some(node) = slots.owner(slot) {
                    return Ok(node.clone());
                }
            }
            if self.closed.load(Ordering::Acquire) {
                return Err(StoreError::unavailable("the store was closed"));
            }
            if is_looked_up {
                return Err(StoreError::unavailable("no node of the cluster is known to serve this key"));
            }
            if !self.look_up() {
                is_looked_up = true;
            } else if timeout_at(until, lookups.changed()).await.is_err() {
                return Err(StoreError::unavailable("still connecting"));
            }
        }
    }

    /// Starts a lookup of the layout in the background. Returns `false` if the last one has just ended.
    fn look_up(self: &Arc<Self>) -> bool {
        let mut lookup = self.lookup();
        // A task ends with its runtime, so a finished one is replaced.
        if lookup.task.as_ref().is_some_and(|task| !task.is_finished()) {
            return true;
        }
        if self.closed.load(Ordering::Acquire)
            || lookup.ended.is_some_and(|ended| ended.elapsed() < MIN_LOOKUP_INTERVAL)
        {
            return false;
        }
        let weak = Arc::downgrade(self);
        let task = async move {
            let Some(cluster) = weak.upgrade() else { return };
            let deadline = cluster.dialer.options.connect_deadline;
            match cluster.look_up_slots(deadline).await {
                Ok(slots) => drop(cluster.update_slots(slots, deadline).await),
                Err(error) => tracing::debug!(%error, "no node of the Redis cluster says who serves what"),
            }
            let mut lookup = cluster.lookup();
            lookup.ended = Some(Instant::now());
            lookup.task = None;
            drop(lookup);
            cluster.lookups.send_modify(|lookups| *lookups += 1);
        };
        lookup.task = Some(tokio::spawn(task).abort_handle());
        true
    }

    /// Asks several nodes for the layout, and returns the first answer.
    async fn look_up_slots(&self, deadline: Duration) -> Result<Slots, StoreError> {
        let mut candidates = self.slots.read().unwrap_or_else(PoisonError::into_inner).masters.clone();
        fastrand::shuffle(&mut candidates);
        for seed in self.dialer.options.addresses() {
            let seed = self.node(seed);
            if !candidates.iter().any(|known| Arc::ptr_eq(known, &seed)) {
                candidates.push(seed);
            }
        }
        candidates.truncate(MAX_ASKED.max(self.dialer.options.addresses().len()));
        let mut answers: FuturesUnordered<_> = candidates
            .iter()
            .map(async |node| {
                let mut ask = redis::cmd("CLUSTER");
                ask.arg("SLOTS");
                let answer: Value = self::ask(node, &ask, deadline).await?;
                self.read(answer, node.address()).map_err(StoreError::refused)
            })
            .collect();
        let mut problem = None;
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(slots) if !slots.masters.is_empty() => return Ok(slots),
                Ok(_) => problem = Some(StoreError::unavailable("this cluster has no slots yet")),
                Err(error) => problem = Some(error),
            }
        }
        Err(problem.unwrap_or_else(|| StoreError::unavailable("no node to ask")))
    }

    /// Reads the answer to `CLUSTER SLOTS`.
    fn read(&self, answer: Value, asked: &Address) -> RedisResult<Slots> {
        let mut slots = Slots::unknown();
        for (first, last, address) in ranges(answer)? {
            if let Some(address) = address {
                slots.assign(first..=last, self.node(&address.beside(asked)));
            }
        }
        Ok(slots)
    }

    /// Replaces the known layout, and drops nodes that have left the cluster.
    async fn update_slots(&self, slots: Slots, deadline: Duration) -> Arc<Slots> {
        let kept = self.kept_changes(&slots.masters, deadline).await;
        let slots = Arc::new(slots);
        let mut known = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        self.recall_moved(&known, &slots, 0..SLOTS as u16, &kept);
        *known = slots.clone();
        let seeds = self.dialer.options.addresses();
        self.nodes().retain(|address, node| {
            seeds.contains(address) || slots.masters.iter().any(|master| Arc::ptr_eq(master, node))
        });
        slots
    }

    /// Recalls changes in slots whose new owner was no master before: it may be a promoted replica that lacks the last moments.
    /// A slot that moves between masters keeps all its keys.
    fn recall_moved(&self, known: &Slots, new: &Slots, slots: impl Iterator<Item = u16>, kept: &KeptChanges) {
        if known.masters.is_empty() || !new.masters.iter().any(|master| known.is_new(master)) {
            return;
        }
        let mut moved: HashMap<&Address, (SlotSet, u64)> = HashMap::new();
        for slot in slots {
            let (before, Some(owner)) = (known.owner(slot), new.owner(slot)) else { continue };
            // A slot that moved before has been recalled.
            if !known.is_new(owner) || before.is_some_and(|before| before.address() == owner.address()) {
                continue;
            }
            let kept = before.map_or(0, |before| kept.of(before.address(), owner.address()));
            let (lost, least) =
                moved.entry(owner.address()).or_insert_with(|| (SlotSet::from_iter([]), kept));
            lost.insert(slot);
            *least = kept.min(*least);
        }
        for (lost, kept) in moved.into_values() {
            self.dialer.change_handler.on_change(ServerChange::Owners(lost), kept);
        }
    }

    /// Asks the new ones among these masters for their identities, and computes how many changes of the earlier masters they have.
    ///
    /// Callers must not hold the lock of the slots: the handler of a changed identity takes it.
    async fn kept_changes(&self, masters: &[Arc<Node>], deadline: Duration) -> KeptChanges {
        let known = self.known_slots();
        let mut kept = KeptChanges::default();
        if known.masters.is_empty() || !self.dialer.change_handler.remembers() {
            return kept;
        }
        let deadline = deadline.min(IDENTITY_DEADLINE);
        let new = masters.iter().filter(|master| known.is_new(master));
        let identified = join_all(new.map(async |master| (master, master.identify(deadline).await))).await;
        for (master, identity) in identified {
            let Some(identity) = identity else { continue };
            let count = |before: &Address| self.dialer.server(before).kept_by(&identity);
            let counts = known.masters.iter().map(|before| before.address());
            let counts = counts.map(|before| (before.clone(), count(before))).collect();
            kept.0.insert(master.address().clone(), counts);
        }
        kept
    }

    /// Returns the known slots of the server at this address.
    pub(super) fn slots_of(&self, address: &Address) -> SlotSet {
        let known = self.known_slots();
        (0..SLOTS as u16)
            .filter(|slot| known.owner(*slot).is_some_and(|owner| owner.address() == address))
            .collect()
    }

    /// Looks up the layout, and then asks every master for its identity.
    ///
    /// In this order, the successor of a demoted master is compared with that master's last checkpoints.
    pub(super) async fn check(self: &Arc<Self>, deadline: Duration) {
        let slots = match self.look_up_slots(deadline).await {
            Ok(slots) => self.update_slots(slots, deadline).await,
            Err(_) => self.known_slots(),
        };
        join_all(slots.masters.iter().map(|master| master.check(deadline))).await;
    }

    fn known_slots(&self) -> Arc<Slots> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records the new owner of a slot. The deadline is that of the question for its identity.
    async fn record_owner(self: &Arc<Self>, slot: u16, address: &Address, deadline: Duration) -> Arc<Node> {
        let node = self.node(address);
        let kept = self.kept_changes(std::slice::from_ref(&node), deadline).await;
        let mut known = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        if !known.owner(slot).is_some_and(|owner| Arc::ptr_eq(owner, &node)) {
            let mut slots = Slots::clone(&known);
            let is_known = slots.masters.iter().any(|master| Arc::ptr_eq(master, &node));
            if !is_known {
                slots.redirected.push(node.clone());
            }
            slots.assign([slot], node.clone());
            self.recall_moved(&known, &slots, std::iter::once(slot), &kept);
            *known = Arc::new(slots);
        }
        drop(known);
        self.look_up();
        node
    }

    fn node(&self, address: &Address) -> Arc<Node> {
        let mut nodes = self.nodes();
        if let Some(node) = nodes.get(address) {
            return node.clone();
        }
        let node = Arc::new(Node::new(&self.dialer, address));
        if self.closed.load(Ordering::Acquire) {
            node.close();
        }
        nodes.insert(address.clone(), node.clone());
        node
    }

    // No code that holds this lock can panic in the middle of a change.
    fn nodes(&self) -> MutexGuard<'_, HashMap<Address, Arc<Node>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lookup(&self) -> MutexGuard<'_, LayoutLookup> {
        self.lookup.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("Cluster").field("masters", &slots.masters).finish_non_exhaustive()
    }
}

/// Sends a command to one node.
pub(super) async fn ask<T: FromRedisValue>(
    node: &Node,
    cmd: &redis::Cmd,
    deadline: Duration,
) -> Result<T, StoreError> {
    let until = Instant::now() + deadline;
    let send = |mut conn: Transport| async move { Ok(from_redis_value(conn.send(cmd).await?)?) };
    node.run(until, deadline, true, send).await?.map_err(StoreError::refused)
}

/// A node's view of itself and of the other nodes.
#[derive(Debug)]
pub(super) struct View {
    pub(super) myself: String,
    is_master: bool,
    /// Its name, epoch and slots.
    pub(super) described: String,
    pub(super) moving: bool,
    /// The descriptions of all masters with slots, by name.
    pub(super) serving: BTreeMap<String, String>,
    reaches_all: bool,
    /// The addresses of the masters without slots.
    pub(super) empty_masters: Vec<Address>,
}

impl View {
    /// Asks a master for its view.
    pub(super) async fn of(node: &Node, deadline: Duration) -> Result<Self, StoreError> {
        let list: String = ask(node, redis::cmd("CLUSTER").arg("NODES"), deadline).await?;
        Self::read(&list)
            .filter(|view| view.is_master)
            .ok_or_else(|| StoreError::unavailable("a failover is under way"))
    }

    /// Reads an answer to `CLUSTER NODES`.
    pub(super) fn read(list: &str) -> Option<Self> {
        let (mut own, mut serving, mut empty_masters) = (None, BTreeMap::new(), Vec::new());
        let mut reaches_all = true;
        for line in list.lines().filter_map(NodeLine::parse) {
            if line.is_master && !line.slots.is_empty() {
                reaches_all &= line.is_reachable;
                serving.insert(line.id.to_owned(), line.describe());
            }
            if line.is_myself {
                own = Some(line);
            } else if line.is_empty_master() {
                empty_masters.extend(Address::parse(line.address));
            }
        }
        let own = own?;
        Some(Self {
            myself: own.id.to_owned(),
            is_master: own.is_master,
            described: own.describe(),
            moving: own.is_moving(),
            serving,
            reaches_all,
            empty_masters,
        })
    }

    /// Returns `true` if it is a master, none of its slots is migrating, and it reaches all other masters.
    pub(super) fn is_settled(&self) -> bool {
        self.is_master && !self.moving && self.reaches_all
    }
}

/// Returns the ranges in an answer to `CLUSTER SLOTS`: first slot, last slot, and the master if its address is known.
pub(super) fn ranges(answer: Value) -> RedisResult<Vec<(u16, u16, Option<Address>)>> {
    let ranges: Vec<Vec<Value>> = from_redis_value(answer)?;
    let mut read = Vec::with_capacity(ranges.len());
    for range in ranges {
        let mut range = range.into_iter();
        let (Some(first), Some(last), Some(master)) = (range.next(), range.next(), range.next()) else {
            return Err((ErrorKind::UnexpectedReturnType, "CLUSTER SLOTS without a master").into());
        };
        let mut master = from_redis_value::<Vec<Value>>(master)?.into_iter();
        let (Some(host), Some(port)) = (master.next(), master.next()) else {
            return Err((ErrorKind::UnexpectedReturnType, "CLUSTER SLOTS without an address").into());
        };
        let host: Option<String> = from_redis_value(host)?;
        let (first, last) = (from_redis_value(first)?, from_redis_value(last)?);
        // A question mark stands for a node that doesn't know its own address.
        let address = match host.unwrap_or_default() {
            unknown if unknown == "?" => None,
            host => Some(Address { host, port: from_redis_value(port)? }),
        };
        read.push((first, last, address));
    }
    Ok(read)
}

/// A line of an answer to `CLUSTER NODES`.
struct NodeLine<'a> {
    id: &'a str,
    address: &'a str,
    is_myself: bool,
    is_master: bool,
    is_reachable: bool,
    epoch: &'a str,
    slots: Vec<&'a str>,
}

impl<'a> NodeLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (id, address, flags) = (fields.next()?, fields.next()?, fields.next()?);
        let epoch = fields.nth(3)?;
        let slots = fields.skip(1).collect();
        let has = |flag| flags.split(',').any(|other| other == flag);
        Some(Self {
            id,
            // The rest is the port of the cluster bus, and optionally a host name.
            address: address.split('@').next()?,
            is_myself: has("myself"),
            is_master: has("master"),
            is_reachable: !has("fail") && !has("noaddr") && !has("handshake"),
            epoch,
            slots,
        })
    }

    fn is_moving(&self) -> bool {
        self.slots.iter().any(|slots| slots.starts_with('['))
    }

    fn is_empty_master(&self) -> bool {
        self.is_master && self.is_reachable && self.slots.is_empty()
    }

    fn describe(&self) -> String {
        format!("{} {} {}", self.id, self.epoch, self.slots.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::super::key_names;
    use super::super::slots::crc16;
    use super::*;
    use crate::key::KeySpace;

    #[test]
    fn slots_are_those_of_redis() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        // From `CLUSTER KEYSLOT`.
        for (key, expected) in [("foo", 12182), ("{foo}bar", 12182), ("somekey", 11058), ("foo{}{bar}", 8363)]
        {
            assert_eq!(slot(key), expected, "{key}");
        }
        assert_eq!(slot("a{b}{c}"), slot("b"));
        assert_eq!(slot("a{{b}}c"), slot("{b"));
    }

    #[test]
    fn everything_of_a_key_is_in_one_slot() {
        for group in [Some("g"), None] {
            for suffix in ["a:b", "", "x{y}", "}{", "ü"] {
                let key = KeySpace::new("p:q", group).unwrap().key(suffix);
                let expected = slot(key.name());
                assert_eq!(slot(&key_names::lease(&key)), expected, "{key}");
                assert_eq!(slot(&key_names::tmp(&key, &[7; 16])), expected, "{key}");
                if let Some(group) = group {
                    assert_eq!(slot(key_names::nonce_of(&key).unwrap()), expected);
                    assert_eq!(slot(&key_names::index("p:q", group)), expected);
                }
            }
        }
    }

    #[test]
    fn refusals_say_where_to_go() {
        let redirection = |reply: &str| {
            let error = redis::parse_redis_value(reply.as_bytes()).unwrap().extract_error().unwrap_err();
            Redirection::of(&error)
        };
        let at = |host: &str, port| Some(Address { host: host.to_owned(), port });
        assert_eq!(
            redirection("-MOVED 3999 10.0.0.1:6381\r\n"),
            Some(Redirection::Moved(at("10.0.0.1", 6381)))
        );
        assert_eq!(redirection("-MOVED 3999 :6381\r\n"), Some(Redirection::Moved(at("", 6381))));
        assert_eq!(redirection("-ASK 3999 ::1:6381\r\n"), Some(Redirection::Ask(at("::1", 6381))));
        assert_eq!(redirection("-ASK 3999\r\n"), Some(Redirection::Ask(None)));
        assert_eq!(redirection("-TRYAGAIN Multiple keys\r\n"), Some(Redirection::Wait));
        assert_eq!(redirection("-CLUSTERDOWN The cluster is down\r\n"), Some(Redirection::Down));
        assert_eq!(redirection("-ERR no\r\n"), None);
        assert_eq!(redirection("-NOSCRIPT no\r\n"), None);
        assert_eq!(at("", 1).unwrap().beside(&at("h", 2).unwrap()), at("h", 1).unwrap());
    }

    #[test]
    fn slots_are_read() {
        let range = |first, last, host: Value| {
            let master = vec![host, Value::Int(7), Value::SimpleString("id".into()), Value::Array(vec![])];
            Value::Array(vec![Value::Int(first), Value::Int(last), Value::Array(master)])
        };
        let text = |host: &str| Value::BulkString(host.as_bytes().to_vec());
        let answer =
            Value::Array(vec![range(0, 10, text("h")), range(11, 20, Value::Nil), range(21, 30, text("?"))]);
        let at = |host: &str| Some(Address { host: host.to_owned(), port: 7 });
        assert_eq!(ranges(answer).unwrap(), [(0, 10, at("h")), (11, 20, at("")), (21, 30, None)]);
        for bad in [Value::Int(1), Value::Array(vec![Value::Array(vec![Value::Int(1)])])] {
            ranges(bad).unwrap_err();
        }
    }

    #[test]
    fn nodes_say_what_they_know() {
        let list = "a h:1@2 myself,master - 0 0 1 connected 0-10\nb h:2@3 master - 0 0 2 connected 11-20\n\
                    c h:3@4 slave a 0 0 1 connected\nd h:4@5 master - 0 0 0 connected\n";
        let view = View::read(list).unwrap();
        let serving = [("a", "a 1 0-10"), ("b", "b 2 11-20")];
        assert_eq!(view.myself, "a");
        assert_eq!(view.described, "a 1 0-10");
        assert_eq!(view.serving, serving.map(|(name, text)| (name.to_owned(), text.to_owned())).into());
        assert_eq!(view.empty_masters, [Address { host: "h".to_owned(), port: 4 }]);
        assert!(view.is_settled());
        for (change, to) in [
            ("0-10", "0-10 [5->-b]"),
            ("myself,master", "myself,slave"),
            ("h:2@3 master", "h:2@3 master,fail"),
        ] {
            assert!(!View::read(&list.replace(change, to)).unwrap().is_settled(), "{to}");
        }
        assert!(View::read("").is_none());
    }

    #[test]
    fn nodes_describe_themselves() {
        let line = NodeLine::parse(
            "07c3 127.0.0.1:7000@17000,host myself,master - 0 1426238317239 4 connected 0-10 12 [13->-67ad]",
        )
        .unwrap();
        assert_eq!((line.address, line.is_myself, line.is_master), ("127.0.0.1:7000", true, true));
        assert!(line.is_moving() && !line.is_empty_master());
        assert_eq!(line.describe(), "07c3 4 0-10 12 [13->-67ad]");
        assert!(NodeLine::parse("a h:1@2 master - 0 0 0 connected").unwrap().is_empty_master());
        assert!(!NodeLine::parse("a h:1@2 master,fail - 0 0 0 disconnected").unwrap().is_empty_master());
        assert!(!NodeLine::parse("a h:1@2 slave b 0 0 0 connected").unwrap().is_empty_master());
        assert!(NodeLine::parse("vars currentEpoch 6 lastVoteEpoch 0").is_none());
    }
}
