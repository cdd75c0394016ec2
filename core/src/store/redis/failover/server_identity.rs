//! Detects that the server behind an address is another one than before, and how much of the old one's writes it has.
//!
//! `run_id` changes when a server starts, and `master_replid` when a replica is promoted and when a server begins to follow
//! another. Both are compared when a connection opens, and twice a second on every open connection while any change is
//! remembered.
//!
//! # Changes that a new server has
//!
//! `master_replid` names a history of writes, and `master_repl_offset` is an offset in it. A promoted replica, a demoted
//! master, and a server that restarts from a snapshot report how much they have of the history that they continue
//! (`master_replid2`, `second_repl_offset`). A change that was confirmed before a master was asked lies before the offset in the
//! master's answer. So each answer is a *checkpoint*: the number of changes confirmed before the question, and the offset. A server
//! that has the history up to a checkpoint has these changes, and only later ones have to be repeated. After a failover that lost
//! nothing, those are the changes since the last question.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{Pipeline, RedisResult, Value, from_redis_value};
use tokio::time::Instant;

/// The number of changes of server within [`FLAPPING`] that means several servers behind one address.
const FLAPS: usize = 10;
const FLAPPING: Duration = Duration::from_secs(5);

/// The maximum number of checkpoints. At two per second they cover a lag of half a minute.
const MAX_CHECKPOINTS: usize = 64;

/// The identity of a server and of what it replicates.
#[derive(Clone, Debug)]
pub(in crate::store::redis) struct ServerIdentity {
    run_id: String,
    replication_id: String,
    history: Option<History>,
}

/// The replication history of a server, as `INFO replication` reports it.
#[derive(Clone, Debug)]
struct History {
    is_master: bool,
    /// The offset up to which the server has its history.
    offset: u64,
    /// The name of the history that this one continues, and the offset up to which the server has it.
    continued: Option<(String, u64)>,
}

impl ServerIdentity {
    /// The number of commands that [`ask`](Self::ask) adds.
    #[cfg(feature = "redis-pool")]
    pub(in crate::store::redis) const QUESTIONS: usize = 2;

    /// Adds the question to a pipeline: [`QUESTIONS`](Self::QUESTIONS) commands.
    pub(in crate::store::redis) fn ask(pipe: &mut Pipeline) {
        pipe.cmd("INFO").arg("server").cmd("INFO").arg("replication");
    }

    /// Reads the answers. `None` if the user may not run `INFO`.
    pub(in crate::store::redis) fn read(
        mut replies: impl Iterator<Item = RedisResult<Value>>,
    ) -> Option<Self> {
        let mut text = || from_redis_value::<String>(replies.next()?.ok()?).ok();
        let (server, replication) = (text()?, text()?);
        Some(Self {
            run_id: field(&server, "run_id")?.to_owned(),
            replication_id: field(&replication, "master_replid")?.to_owned(),
            history: History::read(&replication),
        })
    }

    /// Returns `true` if both are the same server with the same replication history.
    pub(in crate::store::redis) fn is_same_as(&self, other: &Self) -> bool {
        self.run_id == other.run_id && self.has_history_of(other)
    }

    /// Returns `true` if both have the same replication history: a master and its replicas.
    pub(in crate::store::redis) fn has_history_of(&self, other: &Self) -> bool {
        self.replication_id == other.replication_id
    }

    /// Returns the offset up to which this server has the other's history.
    fn offset_in(&self, other: &Self) -> Option<u64> {
        let history = self.history.as_ref()?;
        if self.has_history_of(other) {
            return Some(history.offset);
        }
        let (name, last) = history.continued.as_ref()?;
        (*name == other.replication_id).then_some(*last)
    }
}

impl History {
    /// Reads an answer to `INFO replication`. `None` if fields are missing, as with servers that only resemble Redis.
    fn read(replication: &str) -> Option<Self> {
        let offset = field(replication, "master_repl_offset")?.parse().ok()?;
        // The first offset that the server doesn't have. -1 without such a history.
        let end: Option<u64> = field(replication, "second_repl_offset")?.parse().ok();
        let name = field(replication, "master_replid2")?;
        let last = end.and_then(|end| end.checked_sub(1));
        let continued =
            last.filter(|_| name.contains(|digit| digit != '0')).map(|last| (name.to_owned(), last));
        Some(Self { is_master: field(replication, "role")? == "master", offset, continued })
    }
}

/// Returns the value of a line `name:value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim_end)
}

/// The known server behind one address, shared by every connection to it.
#[derive(Debug, Default)]
pub(in crate::store::redis) struct KnownServer {
    known: Mutex<Known>,
    /// The times of the last changes of the server.
    changes: Mutex<VecDeque<Instant>>,
    /// The number of changes of the server. A connection of an earlier generation may lead to an earlier server.
    generation: AtomicU64,
}

#[derive(Debug, Default)]
enum Known {
    #[default]
    NeverConnected,
    /// Unknown, because the user may not run `INFO`.
    Hidden,
    Identity(ServerIdentity, Checkpoints),
}

impl Known {
    fn new(found: ServerIdentity, confirmed: Option<u64>) -> Self {
        let mut checkpoints = Checkpoints::default();
        // Changes that the server lacks become pending, so they don't count as lost with the next server.
        if let (Some(confirmed), Some(history)) = (confirmed, &found.history) {
            checkpoints.add(confirmed, history.offset);
        }
        Self::Identity(found, checkpoints)
    }

    /// Returns the number of confirmed changes that the given server certainly has.
    fn kept_by(&self, found: &ServerIdentity) -> u64 {
        let Self::Identity(known, checkpoints) = self else { return 0 };
        found.offset_in(known).map_or(0, |offset| checkpoints.reached(offset))
    }
}

/// Pairs of a number of confirmed changes and an offset that is not before the last of them, in ascending order.
#[derive(Debug, Default)]
struct Checkpoints(VecDeque<(u64, u64)>);

impl Checkpoints {
    /// Adds an answer of the known server. A replica's offset may be before changes that its master confirmed.
    fn add_answer(&mut self, confirmed: Option<u64>, found: &ServerIdentity) {
        if let (Some(confirmed), Some(history)) = (confirmed, &found.history)
            && history.is_master
        {
            self.add(confirmed, history.offset);
        }
    }

    fn add(&mut self, changes: u64, offset: u64) {
        if let Some((known, reached)) = self.0.back() {
            if offset < *reached {
                // A history never gets shorter, so this server's offsets can't be used.
                return self.0.clear();
            }
            if changes <= *known {
                return;
            }
        }
        if self.0.len() >= MAX_CHECKPOINTS {
            self.0.pop_front();
        }
        self.0.push_back((changes, offset));
    }

    /// Returns the number of changes that are certainly before this offset.
    fn reached(&self, offset: u64) -> u64 {
        let before = self.0.iter().rev().find(|(_, reached)| *reached <= offset);
        before.map_or(0, |(changes, _)| *changes)
    }
}

impl KnownServer {
    pub(in crate::store::redis) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Returns `true` if the server told its identity.
    #[cfg(feature = "redis-pool")]
    pub(in crate::store::redis) fn is_identified(&self) -> bool {
        matches!(*self.lock(), Known::Identity(..))
    }

    /// Returns the number of this server's confirmed changes that another server certainly has.
    pub(in crate::store::redis) fn kept_by(&self, other: &ServerIdentity) -> u64 {
        self.lock().kept_by(other)
    }

    /// Compares the server on a new connection with the known one, and returns the generation of the connection.
    ///
    /// `confirmed` is the number of changes that were confirmed before the server was asked. `None` if another server behind the
    /// address may have confirmed some of them.
    ///
    /// If it is another server, `changed` is called with the number of changes that it certainly has, before any connection of the
    /// new generation is used. It is also called if the user may not run `INFO`, because then the server may be another one.
    pub(in crate::store::redis) fn opened(
        &self,
        found: Option<ServerIdentity>,
        confirmed: Option<u64>,
        changed: impl FnOnce(u64),
    ) -> u64 {
        // Held until `changed` returns, so that no other connection opens before.
        let mut known = self.lock();
        match (&mut *known, found) {
            (Known::Identity(same, checkpoints), Some(found)) if same.is_same_as(&found) => {
                checkpoints.add_answer(confirmed, &found);
            }
            (Known::NeverConnected, None) => *known = Known::Hidden,
            (_, None) => {
                // Other open connections stay in use: their servers can't be compared.
                changed(0);
                *known = Known::Hidden;
            }
            (_, Some(found)) => {
                if !matches!(*known, Known::NeverConnected) {
                    self.next_generation();
                    changed(known.kept_by(&found));
                }
                *known = Known::new(found, confirmed);
            }
        }
        self.generation()
    }

    /// Compares the server on an open connection of this generation with the known one. Returns `false` if the generation is over.
    /// [`opened`](Self::opened) describes the other arguments.
    pub(in crate::store::redis) fn checked(
        &self,
        generation: u64,
        found: Option<ServerIdentity>,
        confirmed: Option<u64>,
        changed: impl FnOnce(u64),
    ) -> bool {
        let mut known = self.lock();
        if generation != self.generation() {
            return false;
        }
        let Some(found) = found else { return true };
        match &mut *known {
            Known::Identity(same, checkpoints) if same.is_same_as(&found) => {
                checkpoints.add_answer(confirmed, &found);
            }
            _ => {
                self.next_generation();
                changed(known.kept_by(&found));
                *known = Known::new(found, confirmed);
            }
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // No code that holds this lock can panic in the middle of a change.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_generation(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.len() >= FLAPS {
            changes.pop_front();
        }
        changes.push_back(Instant::now());
    }

    /// Returns `true` if several servers behind the address take turns.
    pub(in crate::store::redis) fn is_flapping(&self) -> bool {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.len() >= FLAPS && changes.front().is_some_and(|first| first.elapsed() < FLAPPING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(run_id: &str, replication_id: &str) -> ServerIdentity {
        ServerIdentity { run_id: run_id.to_owned(), replication_id: replication_id.to_owned(), history: None }
    }

    fn with_history(run_id: &str, info: &str) -> ServerIdentity {
        let replies = [format!("run_id:{run_id}\r\n"), info.replace(' ', "\r\n")];
        let reply = |text: String| Ok(Value::BulkString(text.into_bytes()));
        ServerIdentity::read(replies.into_iter().map(reply)).unwrap()
    }

    fn master(
        run_id: &str,
        replication_id: &str,
        offset: u64,
        continued: Option<(&str, u64)>,
    ) -> ServerIdentity {
        let (name, end) = continued.map_or(("0000", "-1".to_owned()), |(name, end)| (name, end.to_string()));
        with_history(
            run_id,
            &format!(
                "role:master master_replid:{replication_id} master_replid2:{name} master_repl_offset:{offset} \
                 second_repl_offset:{end}"
            ),
        )
    }

    fn never(kept: u64) {
        panic!("changed, with {kept} changes");
    }

    #[test]
    fn another_server_outdates_earlier_connections() {
        let server = KnownServer::default();
        let first = server.opened(Some(identity("a", "1")), None, never);
        assert_eq!(server.opened(Some(identity("a", "1")), None, never), first);
        assert!(server.checked(first, Some(identity("a", "1")), None, never));

        let mut changes = 0;
        let second = server.opened(Some(identity("b", "1")), None, |_| changes += 1);
        assert_ne!(first, second);
        // An answer of the earlier server.
        assert!(!server.checked(first, Some(identity("a", "1")), None, never));
        assert!(server.checked(second, Some(identity("b", "2")), None, |_| changes += 1));
        assert_ne!(server.generation(), second);
        assert_eq!(changes, 2);
    }

    #[test]
    fn unknown_server_counts_as_another_on_every_connection() {
        let server = KnownServer::default();
        let mut changes = 0;
        let first = server.opened(None, Some(7), |_| changes += 1);
        let second = server.opened(None, Some(7), |_| changes += 1);
        server.checked(second, None, Some(7), |_| changes += 1);
        assert_eq!((first, changes), (second, 1));
    }

    #[test]
    fn promoted_replica_keeps_the_changes_before_the_position_that_it_reached() {
        let server = KnownServer::default();
        let generation = server.opened(Some(master("a", "1", 100, None)), Some(1), never);
        for (changes, offset) in [(1, 150), (5, 200), (9, 300)] {
            assert!(server.checked(generation, Some(master("a", "1", offset, None)), Some(changes), never));
        }
        for (end, expected) in [(301, 9), (300, 5), (201, 5), (151, 1), (101, 1), (100, 0)] {
            assert_eq!(server.kept_by(&master("b", "2", 400, Some(("1", end)))), expected, "{end}");
        }
        // Another history, or an unnoticed promotion in between.
        assert_eq!(server.kept_by(&master("b", "2", 400, None)), 0);
        assert_eq!(server.kept_by(&master("b", "3", 400, Some(("2", 400)))), 0);
        // A replica of the same master.
        assert_eq!(server.kept_by(&master("b", "1", 250, None)), 5);

        let mut kept = None;
        server
            .checked(generation, Some(master("b", "2", 310, Some(("1", 301)))), Some(12), |n| kept = Some(n));
        assert_eq!(kept, Some(9));
        // The lost changes are repeated, so the first checkpoint of the new server covers all.
        assert_eq!(server.kept_by(&master("c", "3", 310, Some(("2", 311)))), 12);
        assert_eq!(server.kept_by(&master("c", "3", 310, Some(("2", 310)))), 0);
    }

    #[test]
    fn positions_of_a_replica_and_those_that_go_back_count_for_nothing() {
        let server = KnownServer::default();
        let generation = server.opened(Some(master("a", "1", 100, None)), Some(1), never);
        let replica = with_history(
            "a",
            "role:slave master_replid:1 master_replid2:0000 master_repl_offset:200 second_repl_offset:-1",
        );
        assert!(server.checked(generation, Some(replica), Some(5), never));
        let promoted = master("b", "2", 400, Some(("1", 400)));
        assert_eq!(server.kept_by(&promoted), 1);
        assert!(server.checked(generation, Some(master("a", "1", 90, None)), Some(6), never));
        assert_eq!(server.kept_by(&promoted), 0);
        // Through a pool.
        assert!(server.checked(generation, Some(master("a", "1", 300, None)), None, never));
        assert_eq!(server.kept_by(&promoted), 0);
    }

    #[test]
    fn checkpoints_are_bounded() {
        let mut checkpoints = Checkpoints::default();
        for n in 0..1000 {
            checkpoints.add(n, n);
        }
        assert_eq!(checkpoints.0.len(), MAX_CHECKPOINTS);
        assert_eq!((checkpoints.reached(999), checkpoints.reached(10)), (999, 0));
    }
}
