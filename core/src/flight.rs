//! Single flight inside one process: of the requests that miss the same key at once, one leads and the others follow.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::key::CacheKey;

const SHARDS: usize = 64;

/// The flights that can be joined.
#[derive(Clone)]
pub(crate) struct Flights {
    shards: Arc<[Mutex<Shard>]>,
    hasher: RandomState,
}

type Shard = HashMap<CacheKey, watch::Receiver<Option<Landing>>>;

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
}

impl Flights {
    pub(crate) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, hasher: RandomState::new() }
    }

    /// Follows the flight for this key, or leads a new one.
    pub(crate) fn join(&self, key: &CacheKey) -> Role {
        match self.shard(key).entry(key.clone()) {
            Entry::Occupied(flight) => Role::Follow(Follow { landing: flight.get().clone() }),
            Entry::Vacant(vacant) => {
                let (sender, receiver) = watch::channel(None);
                vacant.insert(receiver);
                Role::Lead(Lead { flights: self.clone(), key: key.clone(), sender, open: true })
            }
        }
    }

    fn shard(&self, key: &CacheKey) -> MutexGuard<'_, Shard> {
        let index = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or(0);
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
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
            self.flights.shard(&self.key).remove(&self.key);
        }
    }

    pub(crate) fn land(mut self, landing: Landing) {
        self.close();
        self.sender.send_replace(Some(landing));
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.close();
    }
}

/// One that waits.
pub(crate) struct Follow {
    landing: watch::Receiver<Option<Landing>>,
}

impl Follow {
    /// How the flight ended, or `None` if it took longer than `limit`.
    pub(crate) async fn wait(mut self, limit: Duration) -> Option<Landing> {
        let landed = tokio::time::timeout(limit, self.landing.wait_for(Option::is_some)).await.ok()?;
        match landed {
            Ok(landing) => landing.clone(),
            // The leader is gone without a word.
            Err(_) => Some(Landing::Again),
        }
    }
}
