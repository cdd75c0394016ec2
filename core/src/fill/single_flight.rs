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
pub(crate) struct Flights {
    shards: Arc<[Mutex<Shard>]>,
    hasher: RandomState,
}

type Shard = HashMap<CacheKey, Flight, RandomState>;

/// One that can be joined, by requests that its answer may be for.
struct Flight {
    provenance: Provenance,
    landing: watch::Receiver<Option<Landing>>,
}

/// How a flight ended, for those who followed it.
#[derive(Clone, Debug)]
pub(crate) enum Landing {
    /// This record was stored: it answers every follower.
    Filled(Bytes),
    /// Something is stored, but not this answer for everybody, or it was evicted meanwhile: look again.
    Again,
    /// The handler failed: whoever has something stale to answer with does, and the others run it for themselves.
    Failed,
    /// The answer can't be shared: each follower runs the handler for itself.
    Alone,
}

/// What a request is in a flight.
pub(crate) enum Role {
    Lead(Lead),
    Follow(Follow),
    /// Another route's request fills the same key. Its answer isn't for this one, which doesn't wait.
    Apart,
}

impl Flights {
    pub(crate) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, hasher: RandomState::default() }
    }

    /// Follows the flight for this key, or leads a new one.
    pub(crate) fn join(&self, key: &CacheKey, provenance: Provenance) -> Role {
        match self.shard(key).entry(key.clone()) {
            Entry::Occupied(flight) if !flight.get().provenance.serves(provenance) => Role::Apart,
            Entry::Occupied(flight) => {
                let landing = flight.get().landing.clone();
                Role::Follow(Follow { flights: self.clone(), key: key.clone(), landing })
            }
            Entry::Vacant(vacant) => {
                let (sender, landing) = watch::channel(None);
                vacant.insert(Flight { provenance, landing });
                Role::Lead(Lead { flights: self.clone(), key: key.clone(), sender, open: true })
            }
        }
    }

    fn shard(&self, key: &CacheKey) -> MutexGuard<'_, Shard> {
        self.shards[shard(&self.hasher, key)].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one that runs the handler. Dropped without landing, its followers look again.
pub(crate) struct Lead {
    flights: Flights,
    key: CacheKey,
    sender: watch::Sender<Option<Landing>>,
    open: bool,
}

impl Lead {
    /// Takes no more followers. To be called before the commit: whoever comes later may come after an eviction that
    /// came after the commit, and must not be given this answer.
    pub(crate) fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            let mut shard = self.flights.shard(&self.key);
            // A follower may have closed it, and somebody else may have begun another one since.
            if shard
                .get(&self.key)
                .is_some_and(|flight| flight.landing.same_channel(&self.sender.subscribe()))
            {
                shard.remove(&self.key);
            }
        }
    }

    pub(crate) fn land(mut self, landing: Landing) {
        self.close();
        // Closed, it gains no followers, and mostly there are none to tell.
        if self.sender.receiver_count() > 0 {
            self.sender.send_replace(Some(landing));
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.close();
    }
}

/// One that waits.
pub(crate) struct Follow {
    flights: Flights,
    key: CacheKey,
    landing: watch::Receiver<Option<Landing>>,
}

impl Follow {
    /// How the flight ended, or `None` if it took longer than `limit`. Then nobody else joins it either.
    pub(crate) async fn wait(mut self, limit: Duration) -> Option<Landing> {
        let landed = tokio::time::timeout(limit, async {
            match self.landing.wait_for(Option::is_some).await {
                Ok(landing) => landing.clone(),
                // The leader is gone without a word.
                Err(_) => Some(Landing::Again),
            }
        })
        .await;
        landed.unwrap_or_else(|_| {
            let mut shard = self.flights.shard(&self.key);
            if shard.get(&self.key).is_some_and(|flight| flight.landing.same_channel(&self.landing)) {
                shard.remove(&self.key);
            }
            None
        })
    }
}

/// The queues of updates in this process, one for each key that is being updated, so that updates don't poll the store against
/// each other.
#[derive(Clone)]
pub(crate) struct Updates {
    shards: Arc<[Mutex<HashMap<CacheKey, Queue, RandomState>>]>,
    hasher: RandomState,
}

type Queue = Arc<tokio::sync::Mutex<()>>;

impl Updates {
    pub(crate) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, hasher: RandomState::default() }
    }

    /// A place in the queue of a key.
    pub(crate) fn join(&self, key: &CacheKey) -> Queued {
        let queue = self.shard(key).entry(key.clone()).or_default().clone();
        Queued { updates: self.clone(), key: key.clone(), queue }
    }

    fn shard(&self, key: &CacheKey) -> MutexGuard<'_, HashMap<CacheKey, Queue, RandomState>> {
        self.shards[shard(&self.hasher, key)].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue of a key. The last one to leave removes the queue.
pub(crate) struct Queued {
    updates: Updates,
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
        let mut shard = self.updates.shard(&self.key);
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
