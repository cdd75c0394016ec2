//! Remembers which tags this process evicted, so that no entry that carries one comes back.
//!
//! It does for tags what `change_log.rs` does for keys and groups, by the same rules. An eviction that Redis didn't confirm is
//! *pending*: it is repeated (`pending_evictions.rs`), and entries that carry one of its tags are treated as absent meanwhile.
//! *Recent* evictions, of the last five to ten minutes, become pending when a server may have lost them.
//!
//! After a server changed, the store ignores answers to earlier questions, and earlier requests confirm nothing. Too many
//! tags of a prefix become all its tags: then its tag clock is forgotten.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::store::redis::RedisStore;
use crate::tag::EvictionMode;

/// The maximum number of remembered tags of a prefix. With one more, all tags of the prefix count as evicted.
const MAX_REMEMBERED: usize = 16 * 1024;

/// The minimum time for which a confirmed eviction is remembered. The maximum is twice as long.
const RECENT: Duration = Duration::from_secs(300);

/// The bit of the stamp that is set while evictions are pending. The other bits count events after which earlier answers are not
/// believed.
const PENDING: u64 = 1;

/// The evictions by tag of one store.
#[derive(Debug)]
pub(in crate::store::redis) struct TagLog {
    state: Mutex<TagLogState>,
    /// Twice the number of changes of servers and of confirmed pending evictions, and [`PENDING`]. Read without the lock.
    stamp: AtomicU64,
}

#[derive(Debug)]
struct TagLogState {
    /// The pending evictions, each with the number of its last request.
    pending: EvictedTags<u64>,
    count: u64,
    recent: EvictedTags<()>,
    before: EvictedTags<()>,
    since: Instant,
    recalls: u64,
    /// The number of confirmations of pending evictions.
    settled: u64,
}

/// The state before a question to Redis. See [`TagLog::may_believe`].
#[derive(Clone, Copy, Debug)]
pub(in crate::store::redis) struct TagEpoch(u64);

/// Evicted tags by prefix.
#[derive(Debug)]
struct EvictedTags<T>(HashMap<Box<str>, PrefixTags<T>>);

#[derive(Debug)]
struct PrefixTags<T> {
    /// Set if every tag of the prefix counts as evicted.
    all: Option<T>,
    marks: HashMap<(u64, EvictionMode), T>,
}

impl<T> Default for EvictedTags<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Default for PrefixTags<T> {
    fn default() -> Self {
        Self { all: None, marks: HashMap::new() }
    }
}

impl<T: Copy> EvictedTags<T> {
    fn insert(&mut self, prefix: &str, mark: (u64, EvictionMode), with: T) {
        let tags = match self.0.get_mut(prefix) {
            Some(tags) => tags,
            None => self.0.entry(prefix.into()).or_default(),
        };
        if tags.all.is_some() || tags.marks.len() >= MAX_REMEMBERED {
            tags.marks = HashMap::new();
            tags.all = Some(with);
        } else {
            tags.marks.insert(mark, with);
        }
    }

    fn covers(&self, prefix: &str, marks: &[u64]) -> bool {
        self.0.get(prefix).is_some_and(|tags| {
            let is_evicted = |mark: &u64| {
                [EvictionMode::Hard, EvictionMode::Soft]
                    .iter()
                    .any(|how| tags.marks.contains_key(&(*mark, *how)))
            };
            tags.all.is_some() || marks.iter().any(is_evicted)
        })
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A pending eviction of some tags of a prefix, or of all of them.
#[derive(Debug)]
pub(in crate::store::redis) struct PendingTags {
    pub(in crate::store::redis) prefix: Box<str>,
    /// The marks of the tags. Empty for all tags.
    pub(in crate::store::redis) marks: Vec<u64>,
    pub(in crate::store::redis) how: EvictionMode,
    asked: AskedAt,
}

/// The state of the log when an eviction was sent to Redis.
#[derive(Clone, Copy, Debug)]
struct AskedAt {
    count: u64,
    recalls: u64,
}

/// A guard of an eviction by tag that runs. Dropped without [`confirmed`](Self::confirmed), after an error or when the caller has
/// gone away, it makes the eviction pending.
#[derive(Debug)]
#[must_use]
pub(in crate::store::redis) struct UnconfirmedTags<'a> {
    store: &'a RedisStore,
    prefix: &'a str,
    marks: &'a [u64],
    how: EvictionMode,
    asked: AskedAt,
    is_confirmed: bool,
}

impl<'a> UnconfirmedTags<'a> {
    pub(in crate::store::redis) fn new(
        store: &'a RedisStore,
        prefix: &'a str,
        marks: &'a [u64],
        how: EvictionMode,
    ) -> Self {
        Self { store, prefix, marks, how, asked: store.tag_log().asked(), is_confirmed: false }
    }

    /// Records that Redis confirmed the eviction. If a server turned out to be another meanwhile, it becomes pending.
    pub(in crate::store::redis) fn confirmed(mut self) {
        if self.store.tag_log().confirm(self.prefix, self.marks, self.how, self.asked) {
            self.is_confirmed = true;
            self.store.watch_servers();
        }
    }
}

impl Drop for UnconfirmedTags<'_> {
    fn drop(&mut self) {
        if !self.is_confirmed {
            self.store.tag_log().enqueue(self.prefix, self.marks, self.how);
            self.store.retry_pending();
        }
    }
}

impl Default for TagLog {
    fn default() -> Self {
        let state = TagLogState {
            pending: EvictedTags::default(),
            count: 0,
            recent: EvictedTags::default(),
            before: EvictedTags::default(),
            since: Instant::now(),
            recalls: 0,
            settled: 0,
        };
        Self { state: Mutex::new(state), stamp: AtomicU64::new(0) }
    }
}

impl TagLog {
    /// Returns the present state, for [`may_believe`](Self::may_believe). Call it before asking Redis.
    pub(in crate::store::redis) fn epoch(&self) -> TagEpoch {
        TagEpoch(self.stamp.load(Ordering::Acquire))
    }

    /// Returns `true` if an entry with these tags may be used that Redis returned: no pending eviction concerns it, and since `epoch`
    /// no server changed and no pending eviction was confirmed, which the answer may be older than.
    pub(in crate::store::redis) fn may_believe(&self, prefix: &str, marks: &[u64], epoch: TagEpoch) -> bool {
        let stamp = self.stamp.load(Ordering::Acquire);
        if stamp | PENDING != epoch.0 | PENDING {
            return false;
        }
        stamp & PENDING == 0 || !self.lock().pending.covers(prefix, marks)
    }

    fn asked(&self) -> AskedAt {
        let state = self.lock();
        AskedAt { count: state.count, recalls: state.recalls }
    }

    fn enqueue(&self, prefix: &str, marks: &[u64], how: EvictionMode) {
        let mut state = self.lock();
        state.count += 1;
        let TagLogState { pending, count, .. } = &mut *state;
        marks.iter().for_each(|mark| pending.insert(prefix, (*mark, how), *count));
        self.publish(&state);
    }

    /// Remembers a confirmed eviction. Returns `false` if servers changed since it was sent.
    fn confirm(&self, prefix: &str, marks: &[u64], how: EvictionMode, asked: AskedAt) -> bool {
        let mut state = self.lock();
        if state.recalls != asked.recalls {
            return false;
        }
        state.turn(Instant::now());
        let TagLogState { pending, recent, .. } = &mut *state;
        let mut is_settled = false;
        for mark in marks.iter().map(|mark| (*mark, how)) {
            recent.insert(prefix, mark, ());
            if let Some(tags) = pending.0.get_mut(prefix)
                // This eviction does not cover later requests.
                && tags.marks.get(&mark).is_some_and(|count| *count <= asked.count)
            {
                tags.marks.remove(&mark);
                is_settled = true;
            }
        }
        pending.0.retain(|_, tags| tags.all.is_some() || !tags.marks.is_empty());
        state.settled += u64::from(is_settled);
        self.publish(&state);
        true
    }

    /// Remembers the confirmation of an eviction that was repeated.
    pub(in crate::store::redis) fn confirm_pending(&self, eviction: &PendingTags) {
        if !eviction.marks.is_empty() {
            self.confirm(&eviction.prefix, &eviction.marks, eviction.how, eviction.asked);
            return;
        }
        let mut state = self.lock();
        if state.recalls != eviction.asked.recalls {
            return;
        }
        state.turn(Instant::now());
        if state
            .pending
            .0
            .get(&eviction.prefix)
            .is_some_and(|tags| tags.all.is_some_and(|n| n <= eviction.asked.count))
        {
            state.pending.0.remove(&eviction.prefix);
            state.settled += 1;
        }
        let all = PrefixTags { all: Some(()), ..PrefixTags::default() };
        state.recent.0.insert(eviction.prefix.clone(), all);
        self.publish(&state);
    }

    /// Makes every remembered eviction pending that a server may have lost. Returns `false` if nothing is pending.
    pub(super) fn recall(&self, is_lost: impl Fn(&str) -> bool) -> bool {
        let mut state = self.lock();
        state.recalls += 1;
        state.count += 1;
        state.turn(Instant::now());
        let TagLogState { pending, recent, before, count, .. } = &mut *state;
        for (prefix, tags) in recent.0.iter().chain(&before.0).filter(|(prefix, _)| is_lost(prefix)) {
            if tags.all.is_some() {
                pending.0.insert(prefix.clone(), PrefixTags { all: Some(*count), ..PrefixTags::default() });
            }
            tags.marks.keys().for_each(|mark| pending.insert(prefix, *mark, *count));
        }
        self.publish(&state);
        !state.pending.is_empty()
    }

    /// Returns the pending evictions.
    pub(super) fn pending(&self) -> Vec<PendingTags> {
        if self.is_settled() {
            return Vec::new();
        }
        let state = self.lock();
        let asked = AskedAt { count: state.count, recalls: state.recalls };
        let mut pending = Vec::new();
        for (prefix, tags) in &state.pending.0 {
            if tags.all.is_some() {
                let how = EvictionMode::Hard;
                pending.push(PendingTags { prefix: prefix.clone(), marks: Vec::new(), how, asked });
                continue;
            }
            for how in [EvictionMode::Hard, EvictionMode::Soft] {
                let marks: Vec<u64> =
                    tags.marks.keys().filter(|(_, of)| *of == how).map(|(mark, _)| *mark).collect();
                let chunks = marks.chunks(crate::tag::MAX_TAGS);
                pending.extend(chunks.map(|marks| PendingTags {
                    prefix: prefix.clone(),
                    marks: marks.into(),
                    how,
                    asked,
                }));
            }
        }
        pending
    }

    /// Returns `true` if there is nothing to repeat.
    pub(super) fn is_settled(&self) -> bool {
        self.stamp.load(Ordering::Acquire) & PENDING == 0
    }

    /// Returns `true` if there is anything that a server could lose.
    pub(in crate::store::redis) fn remembers(&self) -> bool {
        let mut state = self.lock();
        state.turn(Instant::now());
        !(state.pending.is_empty() && state.recent.is_empty() && state.before.is_empty())
    }

    /// Logs the evictions that Redis never confirmed.
    pub(super) fn give_up(&self) {
        let state = self.lock();
        if !state.pending.is_empty() {
            let count: usize = state.pending.0.values().map(|tags| tags.marks.len().max(1)).sum();
            tracing::error!(
                count,
                "closed with evictions by tag that Redis never confirmed; other processes may read what they concern until it \
                 expires"
            );
        }
    }

    fn publish(&self, state: &TagLogState) {
        let pending = if state.pending.is_empty() { 0 } else { PENDING };
        self.stamp.store((state.recalls + state.settled) << 1 | pending, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, TagLogState> {
        // Nothing under the lock can panic half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TagLogState {
    /// Forgets evictions that are no longer recent.
    fn turn(&mut self, now: Instant) {
        if now.duration_since(self.since) >= RECENT {
            self.before = std::mem::take(&mut self.recent);
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HARD: EvictionMode = EvictionMode::Hard;

    #[test]
    fn pending_eviction_covers_its_tags() {
        let log = TagLog::default();
        let epoch = log.epoch();
        assert!(log.may_believe("p", &[1, 2], epoch));
        log.enqueue("p", &[2, 3], HARD);
        assert!(!log.may_believe("p", &[1, 2], epoch));
        assert!(log.may_believe("p", &[1, 4], epoch));
        assert!(log.may_believe("q", &[1, 2], epoch));
        for eviction in log.pending() {
            log.confirm_pending(&eviction);
        }
        assert!(log.is_settled() && log.may_believe("p", &[1, 2], log.epoch()));
        assert!(!log.may_believe("p", &[1, 2], epoch), "the answer may be older than the eviction");
    }

    #[test]
    fn eviction_that_was_requested_again_stays_pending() {
        let log = TagLog::default();
        log.enqueue("p", &[1, 2], HARD);
        let repeated = log.pending();
        log.enqueue("p", &[2], HARD);
        repeated.iter().for_each(|eviction| log.confirm_pending(eviction));
        assert!(!log.may_believe("p", &[2], log.epoch()));
        assert!(log.may_believe("p", &[1], log.epoch()));
    }

    #[test]
    fn recall_makes_recent_evictions_pending_and_disbelieves_earlier_answers() {
        let log = TagLog::default();
        let (asked, epoch) = (log.asked(), log.epoch());
        assert!(log.confirm("p", &[1], HARD, asked));
        assert!(log.may_believe("p", &[2], epoch));
        assert!(log.recall(|prefix| prefix == "p"));
        assert!(!log.may_believe("p", &[2], epoch), "it was asked for before");
        assert!(log.may_believe("p", &[2], log.epoch()));
        assert!(!log.may_believe("p", &[1], log.epoch()), "its eviction may be lost");
        assert!(!log.confirm("p", &[3], HARD, asked), "the lost server may have confirmed it");
        for eviction in log.pending() {
            log.confirm_pending(&eviction);
        }
        assert!(log.is_settled());
        assert!(!log.recall(|_| false));
        assert!(log.recall(|_| true), "a repeated eviction may be lost again");
    }

    #[test]
    fn too_many_tags_become_all_of_the_prefix() {
        let log = TagLog::default();
        for mark in 0..=MAX_REMEMBERED as u64 {
            log.enqueue("p", &[mark], HARD);
        }
        assert!(!log.may_believe("p", &[u64::MAX], log.epoch()));
        assert!(log.may_believe("q", &[u64::MAX], log.epoch()));
        let pending = log.pending();
        assert!(matches!(&pending[..], [all] if all.marks.is_empty()));
        log.confirm_pending(&pending[0]);
        assert!(log.is_settled() && log.remembers());
        assert!(log.recall(|_| true));
        assert!(!log.may_believe("p", &[u64::MAX], log.epoch()));
    }
}
