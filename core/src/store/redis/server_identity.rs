//! Tells whether the server behind an address is still the one that confirmed what this process changed.
//!
//! `run_id` changes when a server starts, and `master_replid` when a replica is promoted and when a server begins to follow
//! another. Both are compared when a connection opens, and twice a second on every open connection while there is anything to
//! remember.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use redis::{Pipeline, RedisResult, Value, from_redis_value};
use tokio::time::Instant;

/// So many changes within this time are several servers behind one address.
const FLAPS: usize = 10;
const FLAPPING: Duration = Duration::from_secs(5);

/// The identity of a server and of what it replicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerIdentity {
    run_id: String,
    replication_id: String,
}

impl ServerIdentity {
    /// How many commands [`ask`](Self::ask) adds.
    #[cfg(feature = "redis-pool")]
    pub(super) const QUESTIONS: usize = 2;

    /// Adds the question to a pipeline: [`QUESTIONS`](Self::QUESTIONS) commands.
    pub(super) fn ask(pipe: &mut Pipeline) {
        pipe.cmd("INFO").arg("server").cmd("INFO").arg("replication");
    }

    /// Reads the answers. `None` if the user may not run `INFO`.
    pub(super) fn read(mut replies: impl Iterator<Item = RedisResult<Value>>) -> Option<Self> {
        let mut field = |name: &str| {
            let text: String = from_redis_value(replies.next()?.ok()?).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(line.trim_end().to_owned())
        };
        let (run_id, replication_id) = (field("run_id"), field("master_replid"));
        run_id.zip(replication_id).map(|(run_id, replication_id)| Self { run_id, replication_id })
    }

    /// Whether both have the same history of writes: a master, and the replicas that follow it.
    #[cfg(feature = "redis-pool")]
    pub(super) fn has_history_of(&self, other: &Self) -> bool {
        self.replication_id == other.replication_id
    }
}

/// What is known of the server behind one address, shared by every connection to it.
#[derive(Debug, Default)]
pub(super) struct KnownServer {
    identity: Mutex<Known>,
    /// When it turned out to be another, lately.
    changes: Mutex<VecDeque<Instant>>,
    /// How often it turned out to be another. A connection of an earlier generation may lead to the server of then.
    generation: AtomicU64,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Known {
    #[default]
    NeverConnected,
    /// The user may not ask.
    Hidden,
    Identity(ServerIdentity),
}

impl KnownServer {
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether the server said who it is.
    #[cfg(feature = "redis-pool")]
    pub(super) fn is_identified(&self) -> bool {
        matches!(*self.identity.lock().unwrap_or_else(PoisonError::into_inner), Known::Identity(_))
    }

    /// Notes who answered on a new connection, and returns the generation of that connection.
    ///
    /// `changed` is called before any connection of the new generation is used, if it is another server than before, and
    /// also if nobody knows: a user who may not ask gets no hits that may be outdated.
    pub(super) fn opened(&self, found: Option<ServerIdentity>, changed: impl FnOnce()) -> u64 {
        let found = found.map_or(Known::Hidden, Known::Identity);
        // Held until the change is seen to, so that no other connection opens before that.
        let mut known = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != Known::NeverConnected && (*known != found || found == Known::Hidden) {
            // Connections that can't be told apart are left alone.
            if found != Known::Hidden {
                self.next_generation();
            }
            changed();
        }
        *known = found;
        self.generation()
    }

    /// Notes who answers on an open connection of this generation.
    pub(super) fn checked(&self, generation: u64, found: Option<ServerIdentity>, changed: impl FnOnce()) {
        let Some(found) = found.map(Known::Identity) else { return };
        let mut known = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        if generation == self.generation() && *known != found {
            self.next_generation();
            changed();
            *known = found;
        }
    }

    fn next_generation(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.len() >= FLAPS {
            changes.pop_front();
        }
        changes.push_back(Instant::now());
    }

    /// Whether several servers behind the address take turns.
    pub(super) fn is_flapping(&self) -> bool {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.len() >= FLAPS && changes.front().is_some_and(|first| first.elapsed() < FLAPPING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(run_id: &str, replication_id: &str) -> Option<ServerIdentity> {
        Some(ServerIdentity { run_id: run_id.to_owned(), replication_id: replication_id.to_owned() })
    }

    #[test]
    fn another_server_outdates_earlier_connections() {
        let server = KnownServer::default();
        let never = || panic!("nothing changed");
        let first = server.opened(identity("a", "1"), never);
        assert_eq!(server.opened(identity("a", "1"), never), first);
        server.checked(first, identity("a", "1"), never);

        let mut changes = 0;
        let second = server.opened(identity("b", "1"), || changes += 1);
        assert_ne!(first, second);
        // An answer of the server before, on one of its connections.
        server.checked(first, identity("a", "1"), never);
        server.checked(second, identity("b", "2"), || changes += 1);
        assert_ne!(server.generation(), second);
        assert_eq!(changes, 2);
    }

    #[test]
    fn unknown_server_counts_as_another_on_every_connection() {
        let server = KnownServer::default();
        let mut changes = 0;
        let first = server.opened(None, || changes += 1);
        let second = server.opened(None, || changes += 1);
        server.checked(second, None, || changes += 1);
        assert_eq!((first, changes), (second, 1));
    }
}
