//! A bounded set of keys that a process remembers.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_64;

use crate::key::CacheKey;

/// Maximum number of remembered keys.
const SLOTS: usize = 4096;

/// A set of keys of bounded size, stored as hashes. A newer key replaces an older one in the same slot.
///
/// A key may be forgotten early, and may rarely be confused with another one of the same hash. So only decisions that are
/// safe in both cases may depend on it.
#[derive(Default)]
pub(crate) struct RememberedKeys {
    slots: OnceLock<Box<[AtomicU64]>>,
}

impl RememberedKeys {
    pub(crate) fn insert(&self, key: &CacheKey) {
        let slots = self.slots.get_or_init(|| (0..SLOTS).map(|_| AtomicU64::new(0)).collect());
        let (hash, index) = place(key);
        if let Some(slot) = slots.get(index) {
            slot.store(hash, Ordering::Relaxed);
        }
    }

    pub(crate) fn contains(&self, key: &CacheKey) -> bool {
        let Some(slots) = self.slots.get() else { return false };
        let (hash, index) = place(key);
        slots.get(index).is_some_and(|slot| slot.load(Ordering::Relaxed) == hash)
    }
}

/// Returns the hash of a key, which is never 0, and its slot.
fn place(key: &CacheKey) -> (u64, usize) {
    let hash = xxh3_64(key.name().as_bytes()).max(1);
    (hash, usize::try_from(hash % SLOTS as u64).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeySpace;

    #[test]
    fn keys_are_remembered_while_there_is_room() {
        let space = KeySpace::new("p", None).unwrap();
        let key = |i: usize| space.key_for(&format!("/{i}").parse().unwrap());
        let remembered = RememberedKeys::default();
        assert!(!remembered.contains(&key(0)));
        for i in 0..SLOTS * 4 {
            remembered.insert(&key(i));
            assert!(remembered.contains(&key(i)));
        }
        assert!((0..SLOTS * 4).filter(|&i| remembered.contains(&key(i))).count() <= SLOTS);
    }
}
