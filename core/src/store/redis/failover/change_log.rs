//! Remembers the changes of this process, so that a failover or an old snapshot doesn't bring back what they removed.
//!
//! Redis confirms a change before a replica or a snapshot has it. A promoted replica, and a server that restarts from an old
//! snapshot, may still hold what the change removed. So every change is in one of these states:
//!
//! ```text
//!                        confirmed
//!   UnconfirmedGuard ───────────────▶ recent ────── recall: a server may lack it ──────┐
//!          │                            ▲                                              │
//!          │ no answer, or the server   └─────────── confirmed ──────────┐             │
//!          │ changed meanwhile                                           │             ▼
//!          └────────────────────────────────────────────────────────▶ pending ◀────────┘
//! ```
//!
//! *Recent* changes are kept for five to ten minutes. A *recall* makes those pending that a server may have lost
//! (`server_identity.rs`). *Pending* evictions are repeated in the background until Redis confirms them
//! (`pending_evictions.rs`). Meanwhile the store answers for their keys as if they were absent, and grants no lease to fill them.
//!
//! [`ChangeLog::may_believe`] is called after every answer of Redis. An answer isn't used if a pending eviction covers its
//! key, or if there was a recall since the question: the answer may come from a server that lost changes.
//!
//! If there are too many keys, they are replaced by their groups, and too many groups by their prefixes. Evicting too much costs
//! misses, and is never unsafe.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use crate::key::{CacheKey, KeySpace};
use crate::store::StoreError;
use crate::store::redis::RedisStore;
use crate::store::redis::slots::{SlotSet, slot};

/// The maximum number of single keys. More of them become groups.
const MAX_KEYS: usize = 16 * 1024;

/// The maximum number of groups. More of them become prefixes.
const MAX_GROUPS: usize = 16 * 1024;

/// The minimum time that a confirmed change is remembered. The maximum is twice as long.
const RECENT_FOR: Duration = Duration::from_secs(300);

/// The maximum number of leases to release. The others expire.
const MAX_RELEASES: usize = 1024;

/// The number of locks that the keys of pending evictions share.
const TURN_LOCKS: usize = 64;

/// The maximum number of names in a log message.
const MAX_NAMES: usize = 20;

/// The number of recalls whose slots are kept.
const MAX_HISTORY: usize = 32;

/// The bit of the stamp that is set while evictions are pending.
const PENDING: u64 = 1;

/// The changes of one store.
#[derive(Debug)]
pub(in crate::store::redis) struct ChangeLog {
    state: Mutex<LogState>,
    /// Twice the number of recalls, plus [`PENDING`]. Read without the lock.
    stamp: AtomicU64,
    /// Locks held during an eviction or a write of a key whose eviction is pending: a repeated eviction must not remove a newer
    /// value.
    turns: Box<[tokio::sync::Mutex<()>]>,
    hasher: RandomState,
    /// Ends the pause between two attempts to repeat pending evictions.
    retry: Arc<Notify>,
}

/// The parts that change together.
#[derive(Debug)]
pub(super) struct LogState {
    /// Each with the number of its last request.
    pending: Changes,
    releases: VecDeque<Release>,
    /// The number of requested evictions.
    count: u64,
    /// Each with its position in the order of confirmations.
    recent: Recent,
    /// The number of confirmed changes.
    confirmed: u64,
    recalls: u64,
    /// The losses of the last [`MAX_HISTORY`] recalls.
    history: VecDeque<Lost>,
    /// The task that repeats pending evictions.
    pub(super) retrying: Option<AbortHandle>,
    /// The task that checks the servers' identities.
    pub(super) watching: Option<AbortHandle>,
}

/// The stamp before a question to Redis. See [`ChangeLog::may_believe`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store::redis) struct Epoch(u64);

/// The part of the keys whose changes servers may have lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store::redis) enum Lost {
    Everything,
    /// The keys in these slots of a cluster.
    Slots(SlotSet),
}

impl Lost {
    /// Returns `true` if the key or group with this name is affected.
    pub(in crate::store::redis) fn concerns(&self, name: &str) -> bool {
        matches!(self, Self::Everything) || self.has_slot(slot(name))
    }

    /// Returns `true` if this slot is affected.
    pub(in crate::store::redis) fn has_slot(&self, slot: u16) -> bool {
        match self {
            Self::Everything => true,
            Self::Slots(slots) => slots.contains(slot),
        }
    }

    /// Adds the losses of `other`.
    pub(in crate::store::redis) fn extend(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::Slots(slots), Self::Slots(others)) => slots.extend(others),
            _ => *self = Self::Everything,
        }
    }
}

/// A bounded set of changes, each with a number.
#[derive(Debug)]
struct Changes {
    max_keys: usize,
    max_groups: usize,
    /// By name.
    keys: HashMap<Box<str>, (CacheKey, u64)>,
    /// By head.
    groups: HashMap<Box<str>, (KeySpace, u64)>,
    /// By head, with the affected slots.
    prefixes: HashMap<Box<str>, (KeySpace, Lost, u64)>,
}

/// Confirmed changes, in two generations by age.
#[derive(Debug)]
struct Recent {
    since: Instant,
    now: Changes,
    before: Changes,
}

/// A lease that may have been granted although no answer arrived.
#[derive(Clone, Debug)]
pub(super) struct Release {
    pub(super) lease: String,
    pub(super) token: [u8; 16],
}

/// The keys that a command may leave unchanged, or the lease that it may leave behind, if no answer arrives.
#[derive(Clone, Copy, Debug)]
pub(in crate::store::redis) enum ChangeTarget<'a> {
    /// A key that may hold the old value.
    Key(&'a CacheKey),
    /// A group or a prefix that may hold old values.
    Space(&'a KeySpace),
    /// A lease that may block fills.
    Lease(&'a str, [u8; 16]),
}

/// A copy of a pending eviction, to repeat it.
#[derive(Clone, Debug)]
pub(super) enum PendingEviction {
    Key(CacheKey, u64),
    Group(KeySpace, u64),
    Prefix(KeySpace, Lost, u64),
}

/// A guard for a command that changes something. If it is dropped without [`confirmed`](Self::confirmed) or
/// [`settle`](Self::settle), after an error or because the caller was cancelled, its target becomes pending.
#[derive(Debug)]
#[must_use]
pub(in crate::store::redis) struct UnconfirmedGuard<'a> {
    store: &'a RedisStore,
    target: Option<ChangeTarget<'a>>,
    /// The number of the pending eviction of the same target, if there was one.
    pending: Option<u64>,
    recalls: u64,
}

impl<'a> UnconfirmedGuard<'a> {
    pub(in crate::store::redis) fn new(store: &'a RedisStore, target: ChangeTarget<'a>) -> Self {
        let (pending, recalls) = store.log().before(target);
        Self { store, target: Some(target), pending, recalls }
    }

    /// Returns `true` if an eviction of the same target is pending.
    pub(in crate::store::redis) const fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Waits while a pending eviction of this key is repeated.
    ///
    /// # Errors
    ///
    /// If that takes longer than the deadline.
    pub(in crate::store::redis) async fn turn(
        &self,
        key: &CacheKey,
        deadline: Duration,
    ) -> Result<Option<tokio::sync::MutexGuard<'a, ()>>, StoreError> {
        if self.pending.is_none() {
            return Ok(None);
        }
        let turn = timeout(deadline, self.store.log().turn(key)).await;
        turn.map(Some).map_err(|_| StoreError::unavailable("an eviction of this key is not confirmed yet"))
    }

    /// Ends the guard: Redis answered, and changed nothing that must be remembered.
    pub(in crate::store::redis) fn settle(mut self) {
        self.target = None;
    }

    /// Ends the guard and remembers the change: Redis removed or replaced the target. `false` if there was a recall since the guard
    /// was made: the confirmation may be the earlier server's, so the target is pending.
    pub(in crate::store::redis) fn confirmed(mut self) -> bool {
        self.target.take().is_none_or(|target| self.confirm(target))
    }

    /// The same for another target than the one that an error would make pending.
    pub(in crate::store::redis) fn confirmed_as(mut self, target: ChangeTarget<'_>) -> bool {
        self.target = None;
        self.confirm(target)
    }

    fn confirm(&self, target: ChangeTarget<'_>) -> bool {
        let is_confirmed = self.store.log().confirm(target, self.pending, self.recalls);
        if is_confirmed {
            self.store.watch_servers();
        } else {
            self.store.retry_pending();
        }
        is_confirmed
    }
}

impl Drop for UnconfirmedGuard<'_> {
    fn drop(&mut self) {
        if let Some(target) = self.target {
            self.store.log().enqueue(target);
            self.store.retry_pending();
        }
    }
}

impl Default for ChangeLog {
    fn default() -> Self {
        Self {
            state: Mutex::new(LogState {
                // Both generations of recent changes may be recalled at once.
                pending: Changes::new(2 * MAX_KEYS, 2 * MAX_GROUPS),
                releases: VecDeque::new(),
                count: 0,
                recent: Recent::new(Instant::now()),
                confirmed: 0,
                recalls: 0,
                history: VecDeque::new(),
                retrying: None,
                watching: None,
            }),
            stamp: AtomicU64::new(0),
            turns: (0..TURN_LOCKS).map(|_| tokio::sync::Mutex::default()).collect(),
            hasher: RandomState::new(),
            retry: Arc::default(),
        }
    }
}

impl ChangeLog {
    /// Returns the stamp for a question about this key. `None` if a pending eviction covers the key, so that it counts as absent.
    #[inline]
    pub(in crate::store::redis) fn epoch_for(&self, key: &CacheKey) -> Option<Epoch> {
        let stamp = self.stamp.load(Ordering::Acquire);
        (stamp & PENDING == 0 || !self.is_covered(key)).then_some(Epoch(stamp))
    }

    /// Returns `true` if an answer about this key may be used. Called after it arrived, with the epoch from before the question.
    #[inline]
    pub(in crate::store::redis) fn may_believe(&self, key: &CacheKey, epoch: Epoch) -> bool {
        let stamp = self.stamp.load(Ordering::Acquire);
        let is_unchanged = stamp & PENDING == 0 && stamp | PENDING == epoch.0 | PENDING;
        is_unchanged || self.is_unaffected_since(key, epoch)
    }

    // Out of line, because hits rarely need it.
    #[cold]
    fn is_covered(&self, key: &CacheKey) -> bool {
        self.lock().pending.covers(key)
    }

    #[cold]
    fn is_unaffected_since(&self, key: &CacheKey, epoch: Epoch) -> bool {
        let state = self.lock();
        !state.pending.covers(key) && !state.was_recalled_since(epoch.0 >> 1, ChangeTarget::Key(key))
    }

    /// Locks a key whose eviction is pending, to evict or to write it.
    pub(super) async fn turn(&self, key: &CacheKey) -> tokio::sync::MutexGuard<'_, ()> {
        let number = self.hasher.hash_one(key.name()) % TURN_LOCKS as u64;
        self.turns[usize::try_from(number).unwrap_or(0)].lock().await
    }

    /// Returns the number of recalls.
    pub(super) fn recalls(&self) -> u64 {
        self.stamp.load(Ordering::Acquire) >> 1
    }

    /// Returns the number of the pending eviction of this target, if there is one.
    pub(super) fn pending_number(&self, target: ChangeTarget<'_>) -> Option<u64> {
        self.before(target).0
    }

    /// Returns the number of the pending eviction of this target, if there is one, and the number of recalls.
    fn before(&self, target: ChangeTarget<'_>) -> (Option<u64>, u64) {
        let stamp = self.stamp.load(Ordering::Acquire);
        if stamp & PENDING == 0 {
            return (None, stamp >> 1);
        }
        let state = self.lock();
        (state.pending.get(target), state.recalls)
    }

    /// Makes an eviction or a release pending.
    pub(super) fn enqueue(&self, target: ChangeTarget<'_>) {
        let mut state = self.lock();
        state.enqueue(target);
        self.publish(&state);
    }

    /// Remembers a confirmed change, and removes the pending eviction with this number. `false` if the target was recalled since
    /// there were `recalls` recalls: then it is pending.
    pub(super) fn confirm(&self, target: ChangeTarget<'_>, pending: Option<u64>, recalls: u64) -> bool {
        let mut state = self.lock();
        if state.was_recalled_since(recalls, target) {
            if state.pending.get(target).is_none() {
                state.enqueue(target);
                self.publish(&state);
            }
            return false;
        }
        // A later request has another number. It may belong to a later change, which this confirmation doesn't include.
        if pending.is_some() && state.pending.get(target) == pending {
            state.pending.remove(target);
            self.publish(&state);
        }
        state.recent.turn(Instant::now());
        state.confirmed += 1;
        let LogState { recent, confirmed, .. } = &mut *state;
        recent.now.insert(target, &Lost::Everything, *confirmed);
        true
    }

    /// The same for a repeated eviction.
    pub(super) fn confirm_pending(&self, pending: &PendingEviction, recalls: u64) -> bool {
        self.confirm(pending.target(), Some(pending.number()), recalls)
    }

    /// Returns the number of confirmed changes.
    pub(in crate::store::redis) fn confirmed(&self) -> u64 {
        self.lock().confirmed
    }

    /// Makes every remembered change pending that servers may have lost. They still have the first `kept` changes. Returns `false`
    /// if nothing is pending.
    ///
    /// Answers to earlier questions aren't used, and changes that began earlier become pending when they are confirmed.
    pub(super) fn recall(&self, lost: &Lost, kept: u64) -> bool {
        let mut state = self.lock();
        state.recalls += 1;
        state.recent.turn(Instant::now());
        if state.history.len() >= MAX_HISTORY {
            state.history.pop_front();
        }
        state.history.push_back(lost.clone());
        let LogState { pending, recent, count, .. } = &mut *state;
        for changes in [&recent.now, &recent.before] {
            let is_lost = |name: &str, number: u64| number > kept && lost.concerns(name);
            for (key, _) in changes.keys.values().filter(|(key, number)| is_lost(key.name(), *number)) {
                *count += 1;
                pending.insert(ChangeTarget::Key(key), lost, *count);
            }
            for (group, _) in changes.groups.values().filter(|(group, number)| is_lost(group.head(), *number))
            {
                *count += 1;
                pending.insert(ChangeTarget::Space(group), lost, *count);
            }
            for (prefix, ..) in changes.prefixes.values().filter(|(.., number)| *number > kept) {
                *count += 1;
                pending.insert(ChangeTarget::Space(prefix), lost, *count);
            }
        }
        self.publish(&state);
        !state.pending.is_empty()
    }

    /// Returns the notification that ends the pause before the next attempt.
    pub(super) fn retry_now(&self) -> Arc<Notify> {
        self.retry.clone()
    }

    /// Returns `true` if any change is remembered.
    pub(in crate::store::redis) fn remembers(&self) -> bool {
        let mut state = self.lock();
        state.recent.turn(Instant::now());
        !state.recent.is_empty() || !state.pending.is_empty()
    }

    /// Returns everything that is pending.
    pub(super) fn pending(&self) -> (Vec<PendingEviction>, Vec<Release>) {
        let state = self.lock();
        let Changes { keys, groups, prefixes, .. } = &state.pending;
        let prefixes = prefixes
            .values()
            .map(|(space, lost, number)| PendingEviction::Prefix(space.clone(), lost.clone(), *number));
        let groups = groups.values().map(|(space, number)| PendingEviction::Group(space.clone(), *number));
        let keys = keys.values().map(|(key, number)| PendingEviction::Key(key.clone(), *number));
        (prefixes.chain(groups).chain(keys).collect(), state.releases.iter().cloned().collect())
    }

    /// Forgets a lease that was released, or whose release Redis refuses.
    pub(super) fn released(&self, release: &Release) {
        self.lock().releases.retain(|other| other.token != release.token);
    }

    /// Logs the names of the evictions that Redis never confirmed.
    pub(super) fn give_up(&self) {
        let state = self.lock();
        let pending = &state.pending;
        if pending.is_empty() {
            return;
        }
        let groups = pending.prefixes.keys().chain(pending.groups.keys()).map(|head| format!("{head}*"));
        let names: Vec<String> =
            groups.chain(pending.keys.keys().map(|name| name.to_string())).take(MAX_NAMES).collect();
        tracing::error!(
            count = pending.len(),
            names = names.join(" "),
            "closed with evictions that Redis never confirmed; other processes may read what they concern until it expires"
        );
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, LogState> {
        // No code that holds this lock can panic in the middle of a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, state: &LogState) {
        let before = self.stamp.load(Ordering::Relaxed);
        let stamp = state.recalls << 1 | if state.pending.is_empty() { 0 } else { PENDING };
        self.stamp.store(stamp, Ordering::Release);
        match (before & PENDING, stamp & PENDING) {
            (0, PENDING) => {
                tracing::warn!("evictions are not confirmed; what they concern is not read until they are");
            }
            (PENDING, 0) => tracing::info!("every eviction is confirmed"),
            _ => {}
        }
    }
}

impl LogState {
    fn enqueue(&mut self, target: ChangeTarget<'_>) {
        if let ChangeTarget::Lease(lease, token) = target {
            if self.releases.len() >= MAX_RELEASES {
                self.releases.pop_front();
            }
            return self.releases.push_back(Release { lease: lease.to_owned(), token });
        }
        self.count += 1;
        self.pending.insert(target, &Lost::Everything, self.count);
    }

    /// Returns `true` if this target was affected by a recall since there were `recalls` recalls.
    fn was_recalled_since(&self, recalls: u64, target: ChangeTarget<'_>) -> bool {
        let since = usize::try_from(self.recalls.saturating_sub(recalls)).unwrap_or(usize::MAX);
        let concerns = |lost: &Lost| match target {
            ChangeTarget::Key(key) => lost.concerns(key.name()),
            ChangeTarget::Space(space) => space.group().is_none() || lost.concerns(space.head()),
            ChangeTarget::Lease(..) => false,
        };
        since > self.history.len() || self.history.iter().rev().take(since).any(concerns)
    }

    /// Returns `true` if nothing is pending.
    pub(super) fn is_settled(&self) -> bool {
        self.pending.is_empty() && self.releases.is_empty()
    }

    /// Returns `true` if no change is remembered or pending.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.recent.is_empty()
    }
}

impl PendingEviction {
    pub(super) fn target(&self) -> ChangeTarget<'_> {
        match self {
            Self::Key(key, _) => ChangeTarget::Key(key),
            Self::Group(space, _) | Self::Prefix(space, ..) => ChangeTarget::Space(space),
        }
    }

    pub(super) fn number(&self) -> u64 {
        match self {
            Self::Key(_, number) | Self::Group(_, number) | Self::Prefix(.., number) => *number,
        }
    }
}

impl Changes {
    fn new(max_keys: usize, max_groups: usize) -> Self {
        Self { max_keys, max_groups, keys: HashMap::new(), groups: HashMap::new(), prefixes: HashMap::new() }
    }

    fn covers(&self, key: &CacheKey) -> bool {
        let (name, prefix) = (key.name(), key.prefix().len());
        self.keys.contains_key(name)
            || self.groups.contains_key(&name[..name.len() - key.suffix().len()])
            || self.prefixes.get(&name[..=prefix]).is_some_and(|(_, lost, _)| lost.concerns(name))
    }

    fn get(&self, target: ChangeTarget<'_>) -> Option<u64> {
        match target {
            ChangeTarget::Key(key) => self.keys.get(key.name()).map(|(_, number)| *number),
            ChangeTarget::Space(space) if space.group().is_some() => {
                self.groups.get(space.head()).map(|(_, number)| *number)
            }
            ChangeTarget::Space(space) => self.prefixes.get(space.head()).map(|(.., number)| *number),
            ChangeTarget::Lease(..) => None,
        }
    }

    /// Adds a change, or updates its number. For a prefix, `lost` restricts it to slots.
    fn insert(&mut self, target: ChangeTarget<'_>, lost: &Lost, number: u64) {
        match target {
            ChangeTarget::Key(key) => {
                if let Some(known) = self.keys.get_mut(key.name()) {
                    known.1 = known.1.max(number);
                    return;
                }
                if self.keys.len() >= self.max_keys {
                    self.widen_keys();
                }
                self.keys.insert(key.name().into(), (key.clone(), number));
            }
            ChangeTarget::Space(space) if space.group().is_some() => {
                if let Some(known) = self.groups.get_mut(space.head()) {
                    known.1 = known.1.max(number);
                    return;
                }
                if self.groups.len() >= self.max_groups {
                    self.widen_groups();
                }
                self.groups.insert(space.head().into(), (space.clone(), number));
            }
            ChangeTarget::Space(space) => self.insert_prefix(space, lost, number),
            ChangeTarget::Lease(..) => {}
        }
    }

    fn insert_prefix(&mut self, space: &KeySpace, lost: &Lost, number: u64) {
        if let Some((_, known, latest)) = self.prefixes.get_mut(space.head()) {
            known.extend(lost);
            *latest = number.max(*latest);
            return;
        }
        self.prefixes.insert(space.head().into(), (space.clone(), lost.clone(), number));
    }

    /// Replaces keys by their groups, and if too many are left, all keys by their prefixes.
    fn widen_keys(&mut self) {
        let grouped: Vec<_> =
            self.keys.extract_if(|_, (key, _)| key.group().is_some()).map(|(_, known)| known).collect();
        for (key, number) in grouped {
            self.insert(ChangeTarget::Space(&key.space()), &Lost::Everything, number);
        }
        // Leaves a reserve, so that this isn't repeated for each of the next keys.
        if self.keys.len() > self.max_keys / 4 * 3 {
            for (key, number) in std::mem::take(&mut self.keys).into_values() {
                self.insert_prefix(&key.space(), &Lost::Everything, number);
            }
        }
    }

    fn widen_groups(&mut self) {
        for (space, number) in std::mem::take(&mut self.groups).into_values() {
            let whole = KeySpace::new(space.prefix(), None).unwrap_or(space);
            self.insert_prefix(&whole, &Lost::Everything, number);
        }
    }

    fn remove(&mut self, target: ChangeTarget<'_>) {
        match target {
            ChangeTarget::Key(key) => drop(self.keys.remove(key.name())),
            ChangeTarget::Space(space) => {
                self.groups.remove(space.head());
                self.prefixes.remove(space.head());
            }
            ChangeTarget::Lease(..) => {}
        }
    }

    fn len(&self) -> usize {
        self.keys.len() + self.groups.len() + self.prefixes.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Recent {
    fn new(now: Instant) -> Self {
        let none = || Changes::new(MAX_KEYS, MAX_GROUPS);
        Self { since: now, now: none(), before: none() }
    }

    /// Starts a new generation, and forgets the oldest one, if it is time.
    fn turn(&mut self, now: Instant) {
        if now.duration_since(self.since) >= RECENT_FOR {
            let none = Changes::new(MAX_KEYS, MAX_GROUPS);
            self.before = std::mem::replace(&mut self.now, none);
            self.since = now;
        }
    }

    fn is_empty(&self) -> bool {
        self.now.is_empty() && self.before.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(group: Option<&str>) -> KeySpace {
        KeySpace::new("p", group).unwrap()
    }

    fn covers(log: &ChangeLog, key: &CacheKey) -> bool {
        log.epoch_for(key).is_none()
    }

    #[test]
    fn pending_eviction_covers_what_it_removes() {
        let log = ChangeLog::default();
        log.enqueue(ChangeTarget::Key(&space(Some("g")).key("a")));
        assert!(covers(&log, &space(Some("g")).key("a")));
        assert!(!covers(&log, &space(Some("g")).key("b")));

        log.enqueue(ChangeTarget::Space(&space(Some("h"))));
        assert!(covers(&log, &space(Some("h")).key("b")));
        assert!(!covers(&log, &space(Some("hh")).key("b")));
        assert!(!covers(&log, &space(None).key("b")));

        log.enqueue(ChangeTarget::Space(&space(None)));
        assert!(covers(&log, &space(None).key("b")));
        assert!(covers(&log, &space(Some("x")).key("b")));
        assert!(!covers(&log, &KeySpace::new("pp", None).unwrap().key("b")));
    }

    #[test]
    fn confirmation_does_not_settle_a_later_eviction() {
        let log = ChangeLog::default();
        let key = space(None).key("a");
        log.enqueue(ChangeTarget::Key(&key));
        let asked = log.pending_number(ChangeTarget::Key(&key));
        log.enqueue(ChangeTarget::Key(&key));
        log.confirm(ChangeTarget::Key(&key), asked, 0);
        assert!(covers(&log, &key));
        log.confirm(ChangeTarget::Key(&key), log.pending_number(ChangeTarget::Key(&key)), 0);
        assert!(!covers(&log, &key));
    }

    #[test]
    fn confirmation_from_before_a_recall_becomes_pending() {
        let log = ChangeLog::default();
        let (key, group) = (space(None).key("a"), space(Some("g")));
        assert!(!log.recall(&Lost::Everything, 0), "nothing is remembered yet");
        assert!(!log.confirm(ChangeTarget::Key(&key), None, 0));
        assert!(!log.confirm(ChangeTarget::Space(&group), None, 0));
        assert!(covers(&log, &key) && covers(&log, &group.key("b")));
        for target in [ChangeTarget::Key(&key), ChangeTarget::Space(&group)] {
            assert!(log.confirm(target, log.pending_number(target), 1));
        }
        assert!(!covers(&log, &key) && !covers(&log, &group.key("b")));
    }

    #[test]
    fn recall_repeats_only_what_lies_in_the_lost_slots() {
        let log = ChangeLog::default();
        let (lost, kept) = (space(Some("lost")), space(Some("kept")));
        for target in
            [ChangeTarget::Key(&lost.key("a")), ChangeTarget::Space(&kept), ChangeTarget::Space(&lost)]
        {
            assert!(log.confirm(target, None, 0));
        }
        let slots = SlotSet::from_iter([slot(lost.head())]);
        assert!(log.recall(&Lost::Slots(slots.clone()), 0));
        assert!(covers(&log, &lost.key("a")) && covers(&log, &lost.key("b")));
        assert!(!covers(&log, &kept.key("a")));

        let log = ChangeLog::default();
        assert!(log.confirm(ChangeTarget::Space(&space(None)), None, 0));
        assert!(log.recall(&Lost::Slots(slots), 0));
        assert!(covers(&log, &lost.key("a")));
        assert!(!covers(&log, &kept.key("a")), "the prefix is evicted only where it was lost");
    }

    #[test]
    fn recall_repeats_only_what_was_confirmed_after_the_kept_changes() {
        let log = ChangeLog::default();
        let names = ["a", "b", "c", "d"];
        let [first, again, group, last] = names.map(|name| space((name == "c").then_some("g")).key(name));
        for target in
            [ChangeTarget::Key(&first), ChangeTarget::Key(&again), ChangeTarget::Space(&group.space())]
        {
            assert!(log.confirm(target, None, 0));
        }
        let kept = log.confirmed();
        for key in [&again, &last] {
            assert!(log.confirm(ChangeTarget::Key(key), None, 0));
        }
        assert!(log.recall(&Lost::Everything, kept));
        assert_eq!([&first, &again, &group, &last].map(|key| covers(&log, key)), [false, true, false, true]);
        // Changes that were kept are still remembered.
        assert!(log.recall(&Lost::Everything, kept - 1));
        assert_eq!([&first, &group].map(|key| covers(&log, key)), [false, true]);
        assert!(log.confirm(ChangeTarget::Space(&space(None)), None, 2));
        assert!(log.recall(&Lost::Everything, log.confirmed() - 1));
        assert!(covers(&log, &first));
    }

    #[test]
    fn what_becomes_a_group_is_as_late_as_its_last_key() {
        let mut changes = Changes::new(2, 1);
        changes.insert(ChangeTarget::Space(&space(Some("g"))), &Lost::Everything, 1);
        for (name, number) in [("a", 7), ("b", 5), ("c", 6)] {
            changes.insert(ChangeTarget::Key(&space(Some("g")).key(name)), &Lost::Everything, number);
        }
        assert_eq!(changes.get(ChangeTarget::Space(&space(Some("g")))), Some(7));
        changes.insert(ChangeTarget::Space(&space(Some("h"))), &Lost::Everything, 3);
        assert_eq!(changes.get(ChangeTarget::Space(&space(None))), Some(7));
    }

    #[test]
    fn answer_is_believed_unless_servers_changed_since_the_question() {
        let log = ChangeLog::default();
        let (key, other) = (space(None).key("a"), space(None).key("b"));
        let epoch = log.epoch_for(&key).unwrap();
        assert!(log.may_believe(&key, epoch));
        log.enqueue(ChangeTarget::Key(&key));
        assert!(!log.may_believe(&key, epoch));
        assert!(log.may_believe(&other, epoch));
        log.confirm(ChangeTarget::Key(&key), log.pending_number(ChangeTarget::Key(&key)), 0);
        assert!(log.may_believe(&key, epoch));
        log.recall(&Lost::Slots(SlotSet::from_iter([slot(key.name())])), 0);
        assert!(!log.may_believe(&key, epoch) && log.may_believe(&other, epoch));
        log.recall(&Lost::Everything, 0);
        assert!(!log.may_believe(&key, epoch) && !log.may_believe(&other, epoch));
        let epoch = log.epoch_for(&other).unwrap();
        assert!(log.may_believe(&other, epoch));
    }

    #[test]
    fn everything_that_is_remembered_can_be_recalled() {
        let log = ChangeLog::default();
        let keys: Vec<_> = (0..MAX_KEYS).map(|n| space(None).key(&format!("k{n}"))).collect();
        for key in &keys {
            log.confirm(ChangeTarget::Key(key), None, 0);
        }
        assert!(log.recall(&Lost::Everything, 0));
        assert!(keys.iter().all(|key| covers(&log, key)));
        assert!(!covers(&log, &space(None).key("other")));
        assert!(!covers(&log, &space(Some("g")).key("other")));
    }

    #[test]
    fn too_many_keys_become_groups_and_only_then_prefixes() {
        let mut changes = Changes::new(4, 2);
        for name in ["a", "b"] {
            changes.insert(ChangeTarget::Key(&space(None).key(name)), &Lost::Everything, 1);
            changes.insert(ChangeTarget::Key(&space(Some("g")).key(name)), &Lost::Everything, 1);
        }
        changes.insert(ChangeTarget::Key(&space(None).key("c")), &Lost::Everything, 1);
        assert!(changes.covers(&space(Some("g")).key("other")));
        assert!(changes.covers(&space(None).key("a")) && !changes.covers(&space(None).key("other")));

        for group in ["h", "i"] {
            changes.insert(ChangeTarget::Space(&space(Some(group))), &Lost::Everything, 1);
        }
        for group in [Some("g"), Some("h"), Some("i"), None] {
            assert!(changes.covers(&space(group).key("other")), "{group:?}");
        }
        assert!(!changes.covers(&KeySpace::new("q", Some("g")).unwrap().key("other")));
    }

    #[test]
    fn changes_are_forgotten_after_a_while() {
        let start = Instant::now();
        let mut recent = Recent::new(start);
        recent.now.insert(ChangeTarget::Space(&space(None)), &Lost::Everything, 1);
        for (after, expected) in [(RECENT_FOR / 2, false), (RECENT_FOR, false), (RECENT_FOR * 2, true)] {
            recent.turn(start + after);
            assert_eq!(recent.is_empty(), expected, "{after:?}");
        }
    }

    #[test]
    fn leases_are_bounded() {
        let log = ChangeLog::default();
        for lease in 0..2 * MAX_RELEASES {
            log.enqueue(ChangeTarget::Lease(&lease.to_string(), [0; 16]));
        }
        assert_eq!(log.pending().1.len(), MAX_RELEASES);
    }
}
