//! Large values are read once at a time, for all who ask.
//!
//! A reading that was under way when a caller asked may be older than an eviction that the caller knows of. So callers that
//! come meanwhile share the next one, which begins when that is over: there are never more than two readings ahead of an
//! answer, however many ask. A reading goes on while the connection delivers, even if those who asked have run out of
//! time: the value is on its way in any case, and asking again would only send it twice.
//!
//! Which values are large is a guess by what was seen of their keys last. Reading a small value costs a look at that.

use std::collections::HashMap;
use std::future::Future;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::RandomState;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::key::CacheKey;
use crate::store::StoreError;

/// From this length on a value is large, in bytes.
const LARGE: usize = 64 * 1024;

/// How many keys of large values are known at most.
const KNOWN: usize = 256;

/// What was read: the value, and how long it will still be there.
pub(super) type ValueWithExpiry = Option<(Bytes, Option<Duration>)>;

/// A reading, or the one that will follow it.
type SharedRead = Option<Result<ValueWithExpiry, Arc<StoreError>>>;

/// The readings of a store. Clones are the same ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Readings {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    hasher: RandomState,
    /// Whether any key is known.
    any: AtomicBool,
    /// The hashes of keys whose values were large.
    known: [AtomicU64; KNOWN],
    /// By the names of keys: who waits for the reading that follows the one under way.
    under_way: Mutex<HashMap<Box<str>, Option<watch::Sender<SharedRead>>, RandomState>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            hasher: RandomState::default(),
            any: AtomicBool::new(false),
            known: [const { AtomicU64::new(0) }; KNOWN],
            under_way: Mutex::default(),
        }
    }
}

impl Readings {
    /// Returns `true` if the value was large when it was last seen.
    pub(super) fn expect_large(&self, key: &CacheKey) -> bool {
        self.shared.any.load(Ordering::Relaxed) && {
            let (slot, hash) = self.shared.place(key);
            slot.load(Ordering::Relaxed) == hash
        }
    }

    /// Remembers how long the value is.
    pub(super) fn saw(&self, key: &CacheKey, length: usize) {
        if length >= LARGE {
            let (slot, hash) = self.shared.place(key);
            slot.store(hash, Ordering::Relaxed);
            self.shared.any.store(true, Ordering::Relaxed);
        }
    }

    /// Shares a reading that begins after this was called. `None` if it came to no end, as when its runtime is dropped.
    ///
    /// # Errors
    ///
    /// Those of the reading, and a timeout if it isn't over by the deadline.
    pub(super) async fn share<R, F>(
        &self,
        key: &CacheKey,
        deadline: Duration,
        read: R,
    ) -> Option<Result<ValueWithExpiry, StoreError>>
    where
        R: Fn(CacheKey) -> F + Send + 'static,
        F: Future<Output = Result<ValueWithExpiry, StoreError>> + Send,
    {
        let mut outcome = self.join(key, read);
        let over = timeout(deadline, outcome.wait_for(Option::is_some)).await;
        let Ok(over) = over else { return Some(Err(StoreError::Timeout(deadline))) };
        let found = over.ok()?.clone()?;
        if let Ok(found) = &found {
            self.saw_again(key, found.as_ref().map_or(0, |(value, _)| value.len()));
        }
        Some(found.map_err(|error| again(&error)))
    }

    fn join<R, F>(&self, key: &CacheKey, read: R) -> watch::Receiver<SharedRead>
    where
        R: Fn(CacheKey) -> F + Send + 'static,
        F: Future<Output = Result<ValueWithExpiry, StoreError>> + Send,
    {
        let mut under_way = self.shared.under_way();
        if let Some(next) = under_way.get_mut(key.name()) {
            return next.get_or_insert_with(|| watch::Sender::new(None)).subscribe();
        }
        under_way.insert(key.name().into(), None);
        drop(under_way);
        let (sender, receiver) = watch::channel(None);
        let task = Reading { shared: Arc::clone(&self.shared), key: key.clone(), is_over: false };
        tokio::spawn(async move { task.go_on(sender, read).await });
        receiver
    }

    /// Forgets a key whose value is large no more.
    fn saw_again(&self, key: &CacheKey, length: usize) {
        let (slot, hash) = self.shared.place(key);
        if length < LARGE {
            let _ = slot.compare_exchange(hash, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

impl Shared {
    fn place(&self, key: &CacheKey) -> (&AtomicU64, u64) {
        let hash = self.hasher.hash_one(key.name()) | 1;
        let slot = usize::try_from((hash >> 32) % KNOWN as u64).unwrap_or(0);
        (&self.known[slot], hash)
    }

    // Nothing under this lock can panic half way through a change.
    fn under_way(&self) -> MutexGuard<'_, HashMap<Box<str>, Option<watch::Sender<SharedRead>>, RandomState>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that reads a key, again and again while there are callers that came meanwhile.
struct Reading {
    shared: Arc<Shared>,
    key: CacheKey,
    is_over: bool,
}

impl Reading {
    async fn go_on<R, F>(mut self, mut sender: watch::Sender<SharedRead>, read: R)
    where
        R: Fn(CacheKey) -> F + Send,
        F: Future<Output = Result<ValueWithExpiry, StoreError>> + Send,
    {
        loop {
            let found = read(self.key.clone()).await;
            sender.send_replace(Some(found.map_err(Arc::new)));
            let mut under_way = self.shared.under_way();
            match under_way.get_mut(self.key.name()).and_then(Option::take) {
                // Those who asked for it may have given up by now.
                Some(next) if next.receiver_count() > 0 => sender = next,
                _ => {
                    under_way.remove(self.key.name());
                    self.is_over = true;
                    return;
                }
            }
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        // Its runtime is gone. Those who wait are told by the end of their channels.
        if !self.is_over {
            self.shared.under_way().remove(self.key.name());
        }
    }
}

/// An error once more, for another caller.
fn again(error: &Arc<StoreError>) -> StoreError {
    match &**error {
        StoreError::Timeout(deadline) => StoreError::Timeout(*deadline),
        StoreError::Unavailable(_) => StoreError::unavailable(Arc::clone(error)),
        StoreError::Refused(_) => StoreError::refused(Arc::clone(error)),
    }
}
