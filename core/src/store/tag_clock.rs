//! The tag clocks of stores in this process. The rule is in [`tag`](crate::tag).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::SystemTime;

use foldhash::fast::RandomState;

#[cfg(feature = "memory")]
use crate::tag::Tags;
use crate::tag::{EvictionMode, MAX_EVICTED_TAGS, TagEvictions, TagStamp, Tagged, Validity};

/// The tag clocks of a store, by prefix. A clock is never dropped, so it is never replaced.
#[derive(Debug, Default)]
pub(crate) struct TagClocks(RwLock<BTreeMap<Box<str>, Arc<TagClock>>>);

impl TagClocks {
    /// Returns the clock of a prefix, which is created if necessary.
    pub(crate) fn of(&self, prefix: &str) -> Arc<TagClock> {
        if let Some(clock) = self.get(prefix) {
            return clock;
        }
        let mut clocks = self.0.write().unwrap_or_else(PoisonError::into_inner);
        clocks.entry(prefix.into()).or_default().clone()
    }

    /// Returns the clock of a prefix, if there is one.
    pub(crate) fn get(&self, prefix: &str) -> Option<Arc<TagClock>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(prefix).cloned()
    }
}

/// A tag clock and its table.
pub(crate) struct TagClock {
    nonce: [u8; 8],
    epoch: AtomicU64,
    table: Mutex<Table>,
}

/// The latest evictions of tags, by mark.
#[derive(Default)]
struct Table {
    floor: u64,
    hard: HashMap<u64, u64, RandomState>,
    soft: HashMap<u64, u64, RandomState>,
}

impl Default for TagClock {
    fn default() -> Self {
        let mut nonce = [0; 8];
        if getrandom::fill(&mut nonce).is_err() {
            nonce = fastrand::u64(..).to_be_bytes();
        }
        Self { nonce, epoch: AtomicU64::new(1), table: Mutex::default() }
    }
}

impl TagClock {
    /// Returns the present state.
    pub(crate) fn stamp(&self) -> TagStamp {
        TagStamp { nonce: self.nonce, epoch: self.epoch.load(Ordering::Acquire) }
    }

    /// Evicts every entry that carries one of these marks.
    pub(crate) fn evict(&self, marks: &[u64], how: EvictionMode, now: SystemTime) {
        let mut table = self.table();
        let TagStamp { epoch, .. } = self.stamp().advanced(now);
        let Table { hard, soft, .. } = &mut *table;
        let evicted = if how == EvictionMode::Hard { hard } else { soft };
        evicted.extend(marks.iter().map(|mark| (*mark, epoch)));
        if table.hard.len() + table.soft.len() > MAX_EVICTED_TAGS {
            *table = Table { floor: epoch, ..Table::default() };
        }
        // After the table is complete: an entry of this epoch isn't looked up in the table.
        self.epoch.store(epoch, Ordering::Release);
    }

    /// Judges an entry. The table is locked only if something was evicted since the entry's stamp.
    pub(crate) fn judge(&self, tagged: &Tagged) -> Validity {
        tagged.judge_by_clock(Some(self.stamp())).unwrap_or_else(|| self.table().judge(self.nonce, tagged))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn judge(&self, nonce: [u8; 8], tagged: &Tagged) -> Validity {
        let latest = |evicted: &HashMap<u64, u64, RandomState>| {
            tagged.marks().iter().filter_map(|mark| evicted.get(mark).copied()).max()
        };
        let (hard, soft) = (latest(&self.hard), latest(&self.soft));
        tagged.judge_by_table(Some(TagEvictions { nonce, floor: self.floor, hard, soft }))
    }
}

impl fmt::Debug for TagClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TagClock").field("stamp", &self.stamp()).finish_non_exhaustive()
    }
}

/// A tagged entry that is held in this process. It remembers until when it was judged, so that the table is asked once after
/// each eviction.
#[cfg(feature = "memory")]
#[derive(Debug)]
pub(crate) struct HeldTags {
    tagged: Tagged,
    clock: Arc<TagClock>,
    /// The epoch up to which no eviction concerns the entry.
    fresh_until: AtomicU64,
    /// The epoch of the first soft eviction by its key.
    soft: Option<u64>,
}

#[cfg(feature = "memory")]
impl HeldTags {
    pub(crate) fn new(tagged: Tagged, clock: Arc<TagClock>) -> Self {
        let fresh_until = AtomicU64::new(tagged.stamp().epoch);
        Self { tagged, clock, fresh_until, soft: None }
    }

    /// Creates the tags of an entry without tags.
    pub(crate) fn none(clock: Arc<TagClock>) -> Self {
        Self::new(Tagged::new(TagStamp { nonce: [0; 8], epoch: 0 }, &Tags::default()), clock)
    }

    /// Returns the same tags on an entry that was evicted softly by its key.
    pub(crate) fn softened(&self, epoch: u64) -> Self {
        let soft = Some(self.soft.map_or(epoch, |soft| soft.min(epoch)));
        Self { soft, ..Self::new(self.tagged.clone(), Arc::clone(&self.clock)) }
    }

    /// Returns the memory that the tags take, in bytes.
    pub(crate) fn weight(&self) -> u64 {
        64 + 8 * self.tagged.marks().len() as u64
    }

    pub(crate) fn judge(&self) -> Validity {
        self.judge_tags().softened(self.soft)
    }

    fn judge_tags(&self) -> Validity {
        let now = self.clock.stamp();
        if self.fresh_until.load(Ordering::Relaxed) == now.epoch && self.tagged.stamp().nonce == now.nonce {
            return Validity::Fresh;
        }
        let validity = self.clock.judge(&self.tagged);
        if validity == Validity::Fresh {
            // The table was read after the clock, so it knew every eviction until then.
            self.fresh_until.store(now.epoch, Ordering::Relaxed);
        }
        validity
    }
}
