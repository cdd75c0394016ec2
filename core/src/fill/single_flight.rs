//! Single flight and update queues inside one process.
//!
//! Of the requests that miss the same key at once, one leads and the others follow. Updates of the same key queue.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::RandomState;
use tokio::sync::watch;

use crate::key::CacheKey;
use crate::provenance::Provenance;

const SHARDS: usize = 64;

/// The flights that requests can join.
#[derive(Clone)]
pub(crate) struct SingleFlight {
    shards: Arc<[Mutex<Shard>]>,
    hasher: RandomState,
}

type Shard = HashMap<CacheKey, Flight, RandomState>;

/// A flight, and the requests that its answer may be for.
struct Flight {
    provenance: Provenance,
    channel: Arc<Channel>,
}

/// The channel from the leader to its followers. The first follower creates it, because most flights have none.
type Channel = OnceLock<watch::Sender<Option<FillOutcome>>>;

/// The outcome of a fill, for its followers.
#[derive(Clone, Debug)]
pub(crate) enum FillOutcome {
    /// This record was stored. It answers every follower.
    Stored(Bytes),
    /// Followers must look again: the stored entry isn't the answer for every follower, or it was evicted meanwhile.
    Retry,
    /// The handler failed. Followers that have a stale response serve it. The others run the handler themselves.
    HandlerFailed,
    /// The answer can't be shared. Each follower runs the handler itself.
    Uncacheable,
}

/// The role of a request in a flight.
pub(crate) enum Role {
    Leader(Leader),
    Follower(Follower),
    /// Another route's request fills the same key. Its answer isn't valid for this request, which doesn't wait.
    Apart,
}

impl SingleFlight {
    pub(crate) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, hasher: RandomState::default() }
    }

    /// Joins the flight for this key, or starts a new one as its leader.
    pub(crate) fn join(&self, key: &CacheKey, provenance: Provenance) -> Role {
        match self.shard(key).entry(key.clone()) {
            Entry::Occupied(flight) if !flight.get().provenance.serves(provenance) => Role::Apart,
            Entry::Occupied(flight) => {
                let channel = &flight.get().channel;
                let outcome = channel.get_or_init(|| watch::Sender::new(None)).subscribe();
                let channel = Arc::downgrade(channel);
                Role::Follower(Follower { single_flight: self.clone(), key: key.clone(), channel, outcome })
            }
            Entry::Vacant(vacant) => {
                let channel = Arc::default();
                vacant.insert(Flight { provenance, channel: Arc::clone(&channel) });
                Role::Leader(Leader { single_flight: self.clone(), key: key.clone(), channel, open: true })
            }
        }
    }

    fn shard(&self, key: &CacheKey) -> MutexGuard<'_, Shard> {
        self.shards[shard(&self.hasher, key)].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The request that runs the handler. If it is dropped without an outcome, its followers look again.
pub(crate) struct Leader {
    single_flight: SingleFlight,
    key: CacheKey,
    channel: Arc<Channel>,
    open: bool,
}

impl Leader {
    /// Stops accepting followers. Must be called before the commit: a later request may come after an eviction that
    /// followed the commit, and must not get this answer.
    pub(crate) fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            let mut shard = self.single_flight.shard(&self.key);
            // A follower may have closed the flight, and another request may have started a new one, which stays.
            if let Some((key, flight)) = shard.remove_entry(&self.key)
                && !Arc::ptr_eq(&flight.channel, &self.channel)
            {
                shard.insert(key, flight);
            }
        }
    }

    pub(crate) fn complete(mut self, outcome: FillOutcome) {
        self.close();
        // A closed flight gains no followers.
        if let Some(sender) = self.channel.get() {
            sender.send_replace(Some(outcome));
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.close();
    }
}

/// A request that waits for the leader.
pub(crate) struct Follower {
    single_flight: SingleFlight,
    key: CacheKey,
    /// Weak, because followers must notice that the leader is gone.
    channel: Weak<Channel>,
    outcome: watch::Receiver<Option<FillOutcome>>,
}

impl Follower {
    /// Returns the outcome of the fill, or `None` after `limit`. After a timeout no more requests join the flight.
    pub(crate) async fn wait(mut self, limit: Duration) -> Option<FillOutcome> {
        let outcome = tokio::time::timeout(limit, async {
            match self.outcome.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone(),
                // The leader was dropped without an outcome.
                Err(_) => Some(FillOutcome::Retry),
            }
        })
        .await;
        outcome.unwrap_or_else(|_| {
            let mut shard = self.single_flight.shard(&self.key);
            if shard
                .get(&self.key)
                .is_some_and(|flight| Arc::as_ptr(&flight.channel) == self.channel.as_ptr())
            {
                shard.remove(&self.key);
            }
            None
        })
    }
}

/// The queues of updates in this process, one for each key that is being updated. They keep updates from polling the store
/// against each other.
#[derive(Clone)]
pub(crate) struct UpdateQueue {
    shards: Arc<[Mutex<HashMap<CacheKey, Queue, RandomState>>]>,
    hasher: RandomState,
}

type Queue = Arc<tokio::sync::Mutex<()>>;

impl UpdateQueue {
    pub(crate) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, hasher: RandomState::default() }
    }

    /// Joins the queue of a key.
    pub(crate) fn join(&self, key: &CacheKey) -> Queued {
        let queue = self.shard(key).entry(key.clone()).or_default().clone();
        Queued { update_queue: self.clone(), key: key.clone(), queue }
    }

    fn shard(&self, key: &CacheKey) -> MutexGuard<'_, HashMap<CacheKey, Queue, RandomState>> {
        self.shards[shard(&self.hasher, key)].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue of a key. The last one to leave removes the queue.
pub(crate) struct Queued {
    update_queue: UpdateQueue,
    key: CacheKey,
    queue: Queue,
}

impl Queued {
    /// Waits for this update's turn, which lasts until the guard is dropped.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.queue.lock().await
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        let mut shard = self.update_queue.shard(&self.key);
        // One reference is the shard's, the other is this one. New references come from the shard, which is locked.
        if Arc::strong_count(&self.queue) == 2 {
            shard.remove(&self.key);
        }
    }
}

fn shard(hasher: &RandomState, key: &CacheKey) -> usize {
    // These bits differ from those that the shard's map uses.
    usize::try_from((hasher.hash_one(key) >> 32) % SHARDS as u64).unwrap_or(0)
}
