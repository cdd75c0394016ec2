//! Taking turns inside one process. Single flight: of the requests that miss the same key at once, one leads and the
//! others follow. And updates of the same key queue.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::RandomState;
use tokio::sync::watch;

use crate::key::CacheKey;
use crate::provenance::Provenance;

const SHARDS: usize = 64;

/// The flights that can be joined.
#[derive(Clone)]
pub(crate) struct SingleFlight {
    shards: Arc<[Mutex<Shard>]>,
    hasher: RandomState,
}

type Shard = HashMap<CacheKey, Flight, RandomState>;

/// One that can be joined, by requests that its answer may be for.
struct Flight {
    provenance: Provenance,
    outcome: watch::Receiver<Option<FillOutcome>>,
}

/// How a flight ended, for those who followed it.
#[derive(Clone, Debug)]
pub(crate) enum FillOutcome {
    /// This record was stored: it answers every follower.
    Stored(Bytes),
    /// Something is stored, but not this answer for everybody, or it was evicted meanwhile: look again.
    Retry,
    /// The handler failed: whoever has something stale to answer with does, and the others run it for themselves.
    HandlerFailed,
    /// The answer can't be shared: each follower runs the handler for itself.
    Uncacheable,
}

/// What a request is in a flight.
pub(crate) enum Role {
    Leader(Leader),
    Follower(Follower),
    /// Another route's request fills the same key. Its answer isn't for this one, which doesn't wait.
    Apart,
}

impl SingleFlight {
    pub(crate) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, hasher: RandomState::default() }
    }

    /// Follows the flight for this key, or leads a new one.
    pub(crate) fn join(&self, key: &CacheKey, provenance: Provenance) -> Role {
        match self.shard(key).entry(key.clone()) {
            Entry::Occupied(flight) if !flight.get().provenance.serves(provenance) => Role::Apart,
            Entry::Occupied(flight) => {
                let outcome = flight.get().outcome.clone();
                Role::Follower(Follower { single_flight: self.clone(), key: key.clone(), outcome })
            }
            Entry::Vacant(vacant) => {
                let (sender, outcome) = watch::channel(None);
                vacant.insert(Flight { provenance, outcome });
                Role::Leader(Leader { single_flight: self.clone(), key: key.clone(), sender, open: true })
            }
        }
    }

    fn shard(&self, key: &CacheKey) -> MutexGuard<'_, Shard> {
        self.shards[shard(&self.hasher, key)].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one that runs the handler. Dropped without an outcome, its followers look again.
pub(crate) struct Leader {
    single_flight: SingleFlight,
    key: CacheKey,
    sender: watch::Sender<Option<FillOutcome>>,
    open: bool,
}

impl Leader {
    /// Takes no more followers. To be called before the commit: whoever comes later may come after an eviction that
    /// came after the commit, and must not be given this answer.
    pub(crate) fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            let mut shard = self.single_flight.shard(&self.key);
            // A follower may have closed it, and somebody else may have begun another one since.
            if shard
                .get(&self.key)
                .is_some_and(|flight| flight.outcome.same_channel(&self.sender.subscribe()))
            {
                shard.remove(&self.key);
            }
        }
    }

    pub(crate) fn complete(mut self, outcome: FillOutcome) {
        self.close();
        // Closed, it gains no followers, and mostly there are none to tell.
        if self.sender.receiver_count() > 0 {
            self.sender.send_replace(Some(outcome));
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.close();
    }
}

/// One that waits.
pub(crate) struct Follower {
    single_flight: SingleFlight,
    key: CacheKey,
    outcome: watch::Receiver<Option<FillOutcome>>,
}

impl Follower {
    /// How the flight ended, or `None` if it took longer than `limit`. Then nobody else joins it either.
    pub(crate) async fn wait(mut self, limit: Duration) -> Option<FillOutcome> {
        let landed = tokio::time::timeout(limit, async {
            match self.outcome.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone(),
                // The leader is gone without a word.
                Err(_) => Some(FillOutcome::Retry),
            }
        })
        .await;
        landed.unwrap_or_else(|_| {
            let mut shard = self.single_flight.shard(&self.key);
            if shard.get(&self.key).is_some_and(|flight| flight.outcome.same_channel(&self.outcome)) {
                shard.remove(&self.key);
            }
            None
        })
    }
}

/// The queues of updates in this process, one for each key that is being updated, so that updates don't poll the store against
/// each other.
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

    /// A place in the queue of a key.
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
        // The shard's and this one. New ones come from the shard, which is locked.
        if Arc::strong_count(&self.queue) == 2 {
            shard.remove(&self.key);
        }
    }
}

fn shard(hasher: &RandomState, key: &CacheKey) -> usize {
    // By other bits than the map in the shard goes by.
    usize::try_from((hasher.hash_one(key) >> 32) % SHARDS as u64).unwrap_or(0)
}
