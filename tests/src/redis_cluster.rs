//! A real Redis Cluster for one test: three masters and three replicas on the loopback interface, whose nodes can be killed and
//! whose slots can be moved.

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use larder_core::{CacheKey, KeySpace};

use crate::certificates::{Authority, Certificate, text};
use crate::redis_server::{RedisServer, free_port_below};

/// The number of slots in a cluster.
const SLOTS: u16 = 16384;

/// The highest port of a node: the cluster's bus is 10,000 further up.
const HIGHEST: u16 = 55_000;

/// The number of nodes that are masters at first.
pub const MASTERS: usize = 3;

/// A cluster. Nodes 0 to 2 are masters of a third of the slots each; node 3 is a replica of node 0, and so on.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
    ids: Vec<String>,
    /// The ports by which the nodes know each other: those for TLS, if the nodes speak TLS.
    ports: Vec<u16>,
}

impl RedisCluster {
    /// Starts a cluster and waits until every node serves. Blocks, for two or three seconds.
    #[must_use]
    pub fn start() -> Self {
        Self::with_args(&[])
    }

    /// Starts a cluster with options for every node, as on the command line of `redis-server`.
    #[must_use]
    pub fn with_args(args: &[&str]) -> Self {
        Self::start_each(args, |_| Vec::new())
    }

    /// Starts a cluster whose nodes speak TLS to each other and, on [other ports](Self::url), to clients. The certificate must be
    /// valid for a server and for a client.
    #[must_use]
    pub fn with_tls(authority: &Authority, certificate: &Certificate) -> Self {
        let (ca, certificate, key) = (authority.certificate(), &certificate.certificate, &certificate.key);
        let args = [
            ["--tls-cluster", "yes"],
            ["--tls-replication", "yes"],
            ["--tls-auth-clients", "no"],
            ["--tls-ca-cert-file", text(&ca)],
            ["--tls-cert-file", text(certificate)],
            ["--tls-key-file", text(key)],
        ];
        Self::start_each(&args.concat(), |port| vec!["--tls-port".to_owned(), port.to_string()])
    }

    fn start_each(args: &[&str], own: impl Fn(u16) -> Vec<String>) -> Self {
        let common =
            ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0"];
        let (mut nodes, mut ports) = (Vec::new(), Vec::new());
        for _ in 0..2 * MASTERS {
            let secure = free_port_below(HIGHEST);
            let own = own(secure);
            let own: Vec<_> = own.iter().map(String::as_str).collect();
            let node = RedisServer::with_args_below(&[&common, args, &own].concat(), HIGHEST);
            ports.push(if own.is_empty() { node.port() } else { secure });
            nodes.push(node);
        }
        let ids = nodes.iter().map(|node| cli(node.port(), &["cluster", "myid"])).collect();
        let cluster = Self { nodes, ids, ports };
        cluster.join();
        cluster
    }

    fn join(&self) {
        for (index, port) in self.ports.iter().enumerate() {
            // Without an epoch for each, the nodes resolve the conflict among themselves, which takes time.
            self.cli(index, &["cluster", "set-config-epoch", &(index + 1).to_string()]);
            if index > 0 {
                self.cli(0, &["cluster", "meet", "127.0.0.1", &port.to_string()]);
            }
        }
        for master in 0..MASTERS {
            let share = |of: usize| usize::from(SLOTS) * of / MASTERS;
            // One by one: Redis 6 has no `ADDSLOTSRANGE`.
            let slots: Vec<_> = (share(master)..share(master + 1)).map(|slot| slot.to_string()).collect();
            let slots = slots.iter().map(String::as_str);
            self.cli(master, &["cluster", "addslots"].into_iter().chain(slots).collect::<Vec<_>>());
        }
        until("the nodes know each other", || {
            (0..self.nodes.len())
                .all(|node| self.cli(node, &["cluster", "nodes"]).lines().count() == self.nodes.len())
        });
        for replica in MASTERS..self.nodes.len() {
            self.cli(replica, &["cluster", "replicate", &self.ids[replica - MASTERS]]);
        }
        // If a node still sees a replica as a master, that looks like a failover.
        until("the cluster serves", || {
            (0..self.nodes.len()).all(|node| {
                let linked = node < MASTERS
                    || self.cli(node, &["info", "replication"]).contains("master_link_status:up");
                let known = self.cli(node, &["cluster", "nodes"]).matches("slave").count();
                linked && self.serves(node) && known == self.nodes.len() - MASTERS
            })
        });
    }

    /// Returns `true` if this node reports the cluster's state as ok.
    #[must_use]
    pub fn serves(&self, node: usize) -> bool {
        self.cli(node, &["cluster", "info"]).contains("cluster_state:ok")
    }

    /// Returns a URL with every node, `rediss://` if they speak TLS.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let is_secure = self.ports[0] != self.nodes[0].port();
        format!("{}://{}", if is_secure { "rediss" } else { "redis" }, hosts.join(","))
    }

    /// Returns a node.
    #[must_use]
    pub fn node(&self, index: usize) -> &RedisServer {
        &self.nodes[index]
    }

    /// Returns a node, to kill or restart it.
    pub fn node_mut(&mut self, index: usize) -> &mut RedisServer {
        &mut self.nodes[index]
    }

    /// Runs a command on a node and returns the reply.
    pub fn cli(&self, node: usize, command: &[&str]) -> String {
        cli(self.nodes[node].port(), command)
    }

    /// Returns the slot of a key, as Redis computes it.
    #[must_use]
    pub fn slot(&self, key: &str) -> u16 {
        self.cli(0, &["cluster", "keyslot", key]).parse().expect("a slot")
    }

    /// Returns the index of the master that had this slot at first.
    #[must_use]
    pub fn home(slot: u16) -> usize {
        (0..MASTERS)
            .find(|master| usize::from(slot) < usize::from(SLOTS) * (master + 1) / MASTERS)
            .expect("a slot below 16384")
    }

    /// Moves a slot from one master to another in the usual steps, with a pause before each key.
    pub fn reshard(&self, slot: u16, from: usize, to: usize, pause: Duration) {
        self.begin_move(slot, from, to);
        self.move_keys(slot, from, to, pause);
        self.end_move(slot, from, to);
    }

    /// Starts to move a slot, without moving a key.
    pub fn begin_move(&self, slot: u16, from: usize, to: usize) {
        let slot = slot.to_string();
        assert_eq!(self.cli(to, &["cluster", "setslot", &slot, "importing", &self.ids[from]]), "OK");
        assert_eq!(self.cli(from, &["cluster", "setslot", &slot, "migrating", &self.ids[to]]), "OK");
    }

    /// Moves the keys of a slot that is being moved: one by one with a pause before each, or all at once if there is no pause.
    pub fn move_keys(&self, slot: u16, from: usize, to: usize, pause: Duration) {
        let (slot, port) = (slot.to_string(), self.ports[to].to_string());
        let at_once = if pause.is_zero() { "1000" } else { "1" };
        loop {
            sleep(pause);
            let keys = self.cli(from, &["cluster", "getkeysinslot", &slot, at_once]);
            if keys.is_empty() {
                break;
            }
            let migrate = ["migrate", "127.0.0.1", &port, "", "0", "5000", "keys"];
            let reply = self.cli(from, &migrate.into_iter().chain(keys.lines()).collect::<Vec<_>>());
            assert!(reply == "OK" || reply == "NOKEY", "migrate: {reply}");
        }
    }

    /// Assigns the slot to its new owner.
    pub fn end_move(&self, slot: u16, from: usize, to: usize) {
        // The new owner first, so that no client is redirected back and forth.
        for node in [to, from] {
            assert_eq!(
                self.cli(node, &["cluster", "setslot", &slot.to_string(), "node", &self.ids[to]]),
                "OK"
            );
        }
    }
}

/// Waits until a condition holds.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if is_so() {
            return;
        }
        sleep(Duration::from_millis(20));
    }
    panic!("it is never so that {what}");
}

fn cli(port: u16, command: &[&str]) -> String {
    let output = Command::new("redis-cli")
        .args(["-p", &port.to_string()])
        .args(command)
        .stdin(Stdio::null())
        .output()
        .expect("redis-cli to be installed");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Returns a key under the prefix `p`.
#[must_use]
pub fn key(group: Option<&str>, suffix: &str) -> CacheKey {
    KeySpace::new("p", group).unwrap().key(suffix)
}

/// Returns `count` keys of every master, some in groups and some not.
#[must_use]
pub fn everywhere(cluster: &RedisCluster, count: usize) -> Vec<Vec<CacheKey>> {
    let mut keys = vec![Vec::new(); MASTERS];
    for number in 0.. {
        let (group, suffix) = (format!("g{}", number / 2), format!("k{number}"));
        let key = key((number % 3 > 0).then_some(&*group), &suffix);
        let home = &mut keys[RedisCluster::home(cluster.slot(key.name()))];
        if home.len() < count {
            home.push(key);
        }
        if keys.iter().all(|home| home.len() == count) {
            break;
        }
    }
    keys
}
