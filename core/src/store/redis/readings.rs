//! Shares reads of large values between concurrent callers: one read per key at a time.
//!
//! A read that began before a call may return a value from before an eviction that the caller knows of. So callers that arrive
//! during a read share the next one, which begins when the current one ends. No caller waits for more than two reads. A read
//! continues while the connection delivers, even after its callers have timed out: the value is being transferred anyway, and
//! another request would only transfer it twice.
//!
//! The last known length of a value predicts whether it is large. For small values this costs one lookup.

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

/// The length from which on a value is large, in bytes.
const LARGE: usize = 64 * 1024;

/// The maximum number of remembered keys of large values.
const KNOWN: usize = 256;

/// A value and its lifetime, if there is a value.
pub(super) type ValueWithExpiry = Option<(Bytes, Lifetime)>;

/// The time for which a value that was read may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lifetime {
    /// The time until it expires, or `None` for no expiry.
    pub(super) left: Option<Duration>,
    /// `true` if an eviction by tag may end it earlier.
    pub(super) is_tagged: bool,
    /// `false` if it was evicted softly: it is not kept.
    pub(super) is_fresh: bool,
}

/// The result of a read, once it has ended.
type SharedRead = Option<Result<ValueWithExpiry, Arc<StoreError>>>;

/// The reads of a store. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Readings {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    hasher: RandomState,
    /// `true` if any key was remembered.
    any: AtomicBool,
    /// The hashes of the remembered keys.
    known: [AtomicU64; KNOWN],
    /// The reads under way by the names of their keys, with the callers that wait for the next one.
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
    /// Returns `true` if the last known length of the value was large.
    pub(super) fn expect_large(&self, key: &CacheKey) -> bool {
        self.shared.any.load(Ordering::Relaxed) && {
            let (slot, hash) = self.shared.place(key);
            slot.load(Ordering::Relaxed) == hash
        }
    }

    /// Remembers the key if the value is large.
    pub(super) fn remember_length(&self, key: &CacheKey, length: usize) {
        if length >= LARGE {
            let (slot, hash) = self.shared.place(key);
            slot.store(hash, Ordering::Relaxed);
            self.shared.any.store(true, Ordering::Relaxed);
        }
    }

    /// Shares a read that begins after this call. `None` if it didn't end because its runtime was dropped.
    ///
    /// # Errors
    ///
    /// The errors of the read, and a timeout if it doesn't end before the deadline.
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
            self.update_length(key, found.as_ref().map_or(0, |(value, _)| value.len()));
        }
        Some(found.map_err(|error| copy_error(&error)))
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
        tokio::spawn(async move { task.run(sender, read).await });
        receiver
    }

    /// Forgets the key if the value isn't large any more.
    fn update_length(&self, key: &CacheKey, length: usize) {
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

    // No code that holds this lock can panic in the middle of a change.
    fn under_way(&self) -> MutexGuard<'_, HashMap<Box<str>, Option<watch::Sender<SharedRead>>, RandomState>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that reads a key, and reads it again while callers wait for the next read.
struct Reading {
    shared: Arc<Shared>,
    key: CacheKey,
    is_over: bool,
}

impl Reading {
    async fn run<R, F>(mut self, mut sender: watch::Sender<SharedRead>, read: R)
    where
        R: Fn(CacheKey) -> F + Send,
        F: Future<Output = Result<ValueWithExpiry, StoreError>> + Send,
    {
        loop {
            let found = read(self.key.clone()).await;
            sender.send_replace(Some(found.map_err(Arc::new)));
            let mut under_way = self.shared.under_way();
            match under_way.get_mut(self.key.name()).and_then(Option::take) {
                // All of its callers may have timed out.
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
        // The runtime was dropped. The callers see that their channel is closed.
        if !self.is_over {
            self.shared.under_way().remove(self.key.name());
        }
    }
}

/// Copies an error for another caller.
fn copy_error(error: &Arc<StoreError>) -> StoreError {
    match &**error {
        StoreError::Timeout(deadline) => StoreError::Timeout(*deadline),
        StoreError::Unavailable(_) => StoreError::unavailable(Arc::clone(error)),
        StoreError::Refused(_) => StoreError::refused(Arc::clone(error)),
    }
}
