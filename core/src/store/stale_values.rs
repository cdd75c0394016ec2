//! Values that were evicted softly, for a store that can't keep them as stale ones: [`StaleValues`].

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use foldhash::fast::RandomState;

use super::lease_table::{head_of, heads_in};
use crate::key::{CacheKey, KeySpace};

/// The maximum memory of the values, in bytes. The oldest ones are dropped first.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The memory of a value besides its name and its bytes.
const OVERHEAD: usize = 200;

/// The maximum number of keys that are remembered as written. With one more, all of them are forgotten.
const MAX_WRITTEN: usize = 1024;

/// Values that were removed from a store by soft evictions, and the keys that were written last.
///
/// The store itself has no entry for such a value, so that nothing comes back as fresh when the process ends.
#[derive(Debug, Default)]
pub(crate) struct StaleValues {
    /// `true` while there is a value.
    any: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    values: HashMap<CacheKey, StaleValue, RandomState>,
    /// The keys of the values, the oldest first.
    order: BTreeMap<u64, CacheKey>,
    count: u64,
    bytes: usize,
    /// The keys that were written last, by the head of their key space, with the time of their expiry.
    written: BTreeMap<Box<str>, HashMap<CacheKey, Option<SystemTime>, RandomState>>,
    written_count: usize,
}

#[derive(Debug)]
struct StaleValue {
    stored: Bytes,
    /// The epoch of the eviction.
    since: u64,
    expires: Option<SystemTime>,
    number: u64,
}

impl StaleValues {
    /// Returns the stored bytes of a stale value, and the epoch of its eviction.
    pub(crate) fn get(&self, key: &CacheKey, now: SystemTime) -> Option<(Bytes, u64)> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let state = self.lock();
        let value = state.values.get(key)?;
        value.expires.is_none_or(|expires| expires > now).then(|| (value.stored.clone(), value.since))
    }

    /// Keeps the stored bytes of a value that was evicted softly, provided that its expiry is known.
    pub(crate) fn insert(&self, key: &CacheKey, stored: Bytes, since: u64) {
        let mut state = self.lock();
        state.remove(key);
        // The successor of this value, which another process may write, has another expiry.
        let Some(expires) = state.forget(key) else { return self.note(&state) };
        let weight = weight(key, &stored);
        if weight > MAX_BYTES {
            return self.note(&state);
        }
        while state.bytes + weight > MAX_BYTES {
            let Some((_, oldest)) = state.order.pop_first() else { break };
            state.remove(&oldest);
        }
        state.count += 1;
        let number = state.count;
        state.bytes += weight;
        state.order.insert(number, key.clone());
        state.values.insert(key.clone(), StaleValue { stored, since, expires, number });
        self.note(&state);
    }

    /// Drops the stale value of a key if the store has another, of which this is the beginning.
    pub(crate) fn found(&self, key: &CacheKey, beginning: &[u8], length: usize) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.lock();
        // A read that began before the eviction finds the same value. It must not make the eviction a hard one.
        let is_same =
            |value: &StaleValue| value.stored.len() == length && value.stored.starts_with(beginning);
        if state.values.get(key).is_some_and(|value| !is_same(value)) {
            state.remove(key);
            self.note(&state);
        }
    }

    /// Removes the value of a key, and forgets that the key was written.
    pub(crate) fn remove(&self, key: &CacheKey) {
        let mut state = self.lock();
        state.remove(key);
        state.forget(key);
        self.note(&state);
    }

    /// Removes the values of a group or a whole prefix, and forgets which of its keys were written.
    pub(crate) fn remove_space(&self, space: &KeySpace) {
        let mut state = self.lock();
        state.forget_space(space);
        let is_in = |key: &CacheKey| {
            key.prefix() == space.prefix() && (space.group().is_none() || key.group() == space.group())
        };
        let keys: Vec<CacheKey> = state.values.keys().filter(|key| is_in(key)).cloned().collect();
        keys.iter().for_each(|key| state.remove(key));
        self.note(&state);
    }

    /// Forgets that a key was written.
    pub(crate) fn forget(&self, key: &CacheKey) {
        self.lock().forget(key);
    }

    /// Forgets which keys of a group or a whole prefix were written.
    pub(crate) fn forget_space(&self, space: &KeySpace) {
        self.lock().forget_space(space);
    }

    /// Records that a key was written.
    pub(crate) fn wrote(&self, key: &CacheKey, expires: Option<SystemTime>) {
        let mut state = self.lock();
        if state.written_count >= MAX_WRITTEN {
            (state.written, state.written_count) = (BTreeMap::new(), 0);
        }
        let keys = match state.written.get_mut(head_of(key)) {
            Some(keys) => keys,
            None => state.written.entry(head_of(key).into()).or_default(),
        };
        if keys.insert(key.clone(), expires).is_none() {
            state.written_count += 1;
        }
    }

    /// Returns the keys of a group or a whole prefix that were written last.
    pub(crate) fn written_in(&self, space: &KeySpace) -> Vec<CacheKey> {
        let state = self.lock();
        let heads = heads_in(&state.written, space);
        let groups = heads.iter().filter_map(|head| state.written.get(head));
        groups.flat_map(HashMap::keys).cloned().collect()
    }

    /// Records whether there are values. The state must still be locked.
    fn note(&self, state: &State) {
        self.any.store(!state.values.is_empty(), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remove(&mut self, key: &CacheKey) {
        if let Some(value) = self.values.remove(key) {
            self.bytes -= weight(key, &value.stored).min(self.bytes);
            self.order.remove(&value.number);
        }
    }

    /// Forgets that a key was written. Returns the expiry of what was written, or `None` if it is unknown.
    fn forget(&mut self, key: &CacheKey) -> Option<Option<SystemTime>> {
        let keys = self.written.get_mut(head_of(key))?;
        let expires = keys.remove(key)?;
        self.written_count -= 1;
        if keys.is_empty() {
            self.written.remove(head_of(key));
        }
        Some(expires)
    }

    fn forget_space(&mut self, space: &KeySpace) {
        for head in heads_in(&self.written, space) {
            let keys = self.written.remove(&head);
            self.written_count -= keys.map_or(0, |keys| keys.len());
        }
    }
}

fn weight(key: &CacheKey, stored: &Bytes) -> usize {
    OVERHEAD + 2 * key.name().len() + stored.len()
}
