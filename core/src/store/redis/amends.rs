//! What the server could not be told, and will be: evictions nobody confirmed, and leases nobody may want.
//!
//! An eviction without an answer may or may not have happened, and a server that comes back may still hold what was
//! to be evicted. So it is kept here and repeated in the background until it is confirmed; meanwhile the store
//! answers for its keys as if there were nothing, and lets nobody fill them. Who sets a key, or evicts it again, has seen to
//! it.
//!
//! The queue is bounded by being less exact: too many keys become their groups, too many groups their prefixes.
//! Evicting too much is only slow.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::RedisStore;
use crate::key::{CacheKey, KeySpace};
use crate::store::StoreError;

/// How many single keys are remembered before they become groups.
const MAX_KEYS: usize = 1024;

/// How many groups are remembered before they become prefixes.
const MAX_SPACES: usize = 256;

/// How many single keys that were evicted lately are kept in mind before they become groups.
const MAX_RECENT_KEYS: usize = 16 * 1024;

/// What was evicted is kept in mind for so long, and for at most twice as long.
const RECENT: Duration = Duration::from_secs(300);

/// How many leases are remembered. The others run out by themselves.
const MAX_RELEASES: usize = 1024;

/// The first pause between two attempts. While the breaker is open, an attempt costs nothing.
const FIRST_PAUSE: Duration = Duration::from_millis(25);

/// The longest pause between two attempts while the server is away.
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// The longest pause between two attempts when the server refuses: somebody has to change that first.
const LONGEST_AFTER_REFUSAL: Duration = Duration::from_secs(10);

/// What came of telling the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Told {
    /// It heard everything.
    All,
    /// It doesn't want to hear some of it.
    Refused,
    /// It does not listen.
    Away,
}

/// What is still to be told.
#[derive(Debug, Default)]
pub(super) struct Amends {
    owed: Mutex<Owed>,
    /// How many evictions there are, to be read without the lock: nearly always none.
    evictions: AtomicUsize,
    recent: Mutex<Recent>,
    /// Whose turn it is with a key whose eviction is owed: an eviction that is late must not remove what was written since.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Owed {
    /// Each with the number of the last time it was asked for.
    evictions: Evictions<u64>,
    releases: VecDeque<Release>,
    /// How many were asked for.
    count: u64,
    task: Option<AbortHandle>,
}

/// Evictions, not more than so many: too many keys become their groups, and too many groups their prefixes.
#[derive(Debug)]
struct Evictions<T> {
    max_keys: usize,
    /// By name.
    keys: HashMap<Box<str>, (CacheKey, T)>,
    /// By head. Without a group it stands for the whole prefix.
    spaces: HashMap<Box<str>, (KeySpace, T)>,
}

/// What was evicted lately, and confirmed. A server that lost its last moments has it again.
#[derive(Debug)]
struct Recent {
    since: Instant,
    now: Evictions<()>,
    before: Evictions<()>,
}

/// A lease that may have been granted without anybody knowing.
#[derive(Clone, Debug)]
struct Release {
    lease: String,
    token: [u8; 16],
}

/// What a command that is under way would leave behind if it were never heard of again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stake<'a> {
    /// A key that may hold what was to be removed or replaced.
    Key(&'a CacheKey),
    /// The same of a group or a prefix.
    Space(&'a KeySpace),
    /// A lease that may stand in everybody's way.
    Lease(&'a str, [u8; 16]),
}

/// Held while a command is under way. Unless it is [settled](Doubt::settle), what was at stake is amended: after an
/// error, and also when the caller has gone away.
#[derive(Debug)]
#[must_use]
pub(super) struct Doubt<'a> {
    store: &'a RedisStore,
    stake: Option<Stake<'a>>,
    /// The number of the eviction that was owed before, if it is the same.
    owed: Option<u64>,
}

impl<'a> Doubt<'a> {
    pub(super) fn new(store: &'a RedisStore, stake: Stake<'a>) -> Self {
        Self { store, stake: Some(stake), owed: store.amends().owed(stake) }
    }

    /// Waits until nobody else sees to an eviction of this key that is owed from before.
    pub(super) async fn turn(
        &self,
        deadline: Duration,
    ) -> Result<Option<tokio::sync::MutexGuard<'a, ()>>, StoreError> {
        if self.owed.is_none() {
            return Ok(None);
        }
        let turn = timeout(deadline, self.store.amends().turn.lock()).await;
        turn.map(Some).map_err(|_| StoreError::unavailable("an eviction of this key is not confirmed yet"))
    }

    /// The server answered.
    pub(super) fn settle(mut self) {
        self.stake = None;
    }

    /// The server removed or replaced what was at stake, and with it what it was to remove before.
    pub(super) fn settle_all(mut self) {
        if let (Some(stake), Some(asked)) = (self.stake.take(), self.owed) {
            self.store.amends().confirm(stake, asked);
        }
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if let Some(stake) = self.stake {
            self.store.amends().owe(stake);
            self.store.make_amends();
        }
    }
}

impl Amends {
    /// Whether an eviction that concerns this key is not confirmed yet.
    pub(super) fn concern(&self, key: &CacheKey) -> bool {
        self.evictions.load(Ordering::Acquire) > 0 && self.lock().evictions.concern(key)
    }

    fn owe(&self, stake: Stake<'_>) {
        let mut owed = self.lock();
        match stake {
            Stake::Key(key) => owed.add_key(key),
            Stake::Space(space) => owed.add_space(space.clone()),
            Stake::Lease(lease, token) => owed.add_release(Release { lease: lease.to_owned(), token }),
        }
        self.publish(&owed);
    }

    /// Keeps in mind an eviction that was confirmed.
    pub(super) fn remember(&self, stake: Stake<'_>) {
        let mut recent = self.recent();
        recent.turn();
        match stake {
            Stake::Key(key) => recent.now.add_key(key, ()),
            Stake::Space(space) => recent.now.add_space(space.clone(), ()),
            Stake::Lease(..) => {}
        }
    }

    /// A key that was evicted has been given a value since, on purpose.
    pub(super) fn forget(&self, key: &CacheKey) {
        let mut recent = self.recent();
        recent.now.keys.remove(key.name());
        recent.before.keys.remove(key.name());
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, owed: &Owed) {
        let (now, before) = (owed.evictions(), self.evictions.load(Ordering::Relaxed));
        self.evictions.store(now, Ordering::Release);
        match (before, now) {
            (0, 1..) => {
                tracing::warn!(
                    "an eviction could not be confirmed; doing without what it concerns until it is"
                );
            }
            (1.., 0) => tracing::info!("every eviction is confirmed"),
            _ => {}
        }
    }

    /// Says what will never be told.
    pub(super) fn give_up(&self) {
        let owed = self.lock();
        if owed.evictions() > 0 {
            tracing::error!(
                keys = owed.evictions.keys.len(),
                groups = owed.evictions.spaces.len(),
                "closed with evictions that Redis never confirmed; what they concern is stale for other processes until it expires"
            );
        }
    }

    /// The number of the eviction that is owed.
    fn owed(&self, stake: Stake<'_>) -> Option<u64> {
        if self.evictions.load(Ordering::Acquire) > 0 { self.lock().asked(stake) } else { None }
    }

    /// Owes no longer what was confirmed, and keeps it in mind, unless it was asked for again since: the later one happened
    /// after a later change, which the confirmed one may have come before.
    fn confirm(&self, stake: Stake<'_>, asked: u64) {
        let mut owed = self.lock();
        if owed.asked(stake) == Some(asked) {
            owed.remove(stake);
            self.publish(&owed);
            drop(owed);
            self.remember(stake);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Owed> {
        // Nothing here can panic half way through a change.
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Copy> Evictions<T> {
    fn new(max_keys: usize) -> Self {
        Self { max_keys, keys: HashMap::new(), spaces: HashMap::new() }
    }

    fn concern(&self, key: &CacheKey) -> bool {
        let (name, prefix) = (key.name(), key.prefix().len());
        self.keys.contains_key(name)
            || self.spaces.contains_key(&name[..name.len() - key.suffix().len()])
            || self.spaces.contains_key(&name[..=prefix])
    }

    fn add_key(&mut self, key: &CacheKey, with: T) {
        if self.keys.len() >= self.max_keys && !self.keys.contains_key(key.name()) {
            return self.add_space(key.space(), with);
        }
        self.keys.insert(key.name().into(), (key.clone(), with));
    }

    fn add_space(&mut self, space: KeySpace, with: T) {
        self.spaces.insert(space.head().into(), (space, with));
        if self.spaces.len() > MAX_SPACES {
            for (space, _) in std::mem::take(&mut self.spaces).into_values() {
                let whole = KeySpace::new(space.prefix(), None).unwrap_or(space);
                self.spaces.insert(whole.head().into(), (whole, with));
            }
        }
    }

    fn len(&self) -> usize {
        self.keys.len() + self.spaces.len()
    }
}

impl Default for Recent {
    fn default() -> Self {
        let none = || Evictions::new(MAX_RECENT_KEYS);
        Self { since: Instant::now(), now: none(), before: none() }
    }
}

impl Recent {
    /// Forgets what is long past.
    fn turn(&mut self) {
        if self.since.elapsed() >= RECENT {
            self.before = std::mem::replace(&mut self.now, Evictions::new(MAX_RECENT_KEYS));
            self.since = Instant::now();
        }
    }
}

impl Default for Owed {
    fn default() -> Self {
        Self { evictions: Evictions::new(MAX_KEYS), releases: VecDeque::new(), count: 0, task: None }
    }
}

impl Owed {
    /// When this very eviction was last asked for.
    fn asked(&self, stake: Stake<'_>) -> Option<u64> {
        match stake {
            Stake::Key(key) => self.evictions.keys.get(key.name()).map(|(_, asked)| *asked),
            Stake::Space(space) => self.evictions.spaces.get(space.head()).map(|(_, asked)| *asked),
            Stake::Lease(..) => None,
        }
    }

    fn remove(&mut self, stake: Stake<'_>) {
        match stake {
            Stake::Key(key) => drop(self.evictions.keys.remove(key.name())),
            Stake::Space(space) => drop(self.evictions.spaces.remove(space.head())),
            Stake::Lease(..) => {}
        }
    }

    fn add_key(&mut self, key: &CacheKey) {
        self.count += 1;
        self.evictions.add_key(key, self.count);
    }

    fn add_space(&mut self, space: KeySpace) {
        self.count += 1;
        self.evictions.add_space(space, self.count);
    }

    fn add_release(&mut self, release: Release) {
        if self.releases.len() >= MAX_RELEASES {
            self.releases.pop_front();
        }
        self.releases.push_back(release);
    }

    fn evictions(&self) -> usize {
        self.evictions.len()
    }

    fn is_empty(&self) -> bool {
        self.evictions() == 0 && self.releases.is_empty()
    }
}

impl RedisStore {
    /// The server may have forgotten what it confirmed lately: it is to be told once more.
    pub(super) fn recall(&self) {
        {
            let (mut owed, recent) = (self.amends().lock(), self.amends().recent());
            for evictions in [&recent.now, &recent.before] {
                evictions.keys.values().for_each(|(key, ())| owed.add_key(key));
                evictions.spaces.values().for_each(|(space, ())| owed.add_space(space.clone()));
            }
            self.amends().publish(&owed);
        }
        self.make_amends();
    }

    /// Sees to it that somebody makes amends while there are any to make. A task dies with its runtime, so a
    /// finished one is replaced; without a runtime it waits for the next call.
    pub(super) fn make_amends(&self) {
        let mut owed = self.amends().lock();
        if owed.is_empty() || owed.task.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        let store = self.downgrade();
        let task = async move {
            let mut pause = FIRST_PAUSE;
            loop {
                sleep(pause).await;
                let Some(store) = store.upgrade().map(Self::from_inner) else { return };
                let told = store.amend().await;
                let mut owed = store.amends().lock();
                if owed.is_empty() {
                    owed.task = None;
                    return;
                }
                pause = match told {
                    Told::All => FIRST_PAUSE,
                    Told::Refused => (pause * 2).min(LONGEST_AFTER_REFUSAL),
                    Told::Away => (pause * 2).min(LONGEST_PAUSE),
                };
            }
        };
        owed.task = Some(runtime.spawn(task).abort_handle());
    }

    /// Tells the server once. Stops at the first sign that it does not listen, unless it is but one of a cluster.
    pub(super) async fn amend(&self) -> Told {
        let is_alone = !self.inner.connection.is_cluster();
        let (spaces, keys, releases) = {
            let owed = self.amends().lock();
            let spaces: Vec<_> = owed.evictions.spaces.values().cloned().collect();
            let keys: Vec<_> = owed.evictions.keys.values().cloned().collect();
            (spaces, keys, owed.releases.clone())
        };
        let mut told = Told::All;
        for (space, asked) in spaces {
            match self.evict_space(&space).await {
                Ok(_) => self.amends().confirm(Stake::Space(&space), asked),
                Err(StoreError::Refused(_)) => told = told.max(Told::Refused),
                Err(_) if is_alone => return Told::Away,
                Err(_) => told = Told::Away,
            }
        }
        for (key, asked) in keys {
            let _turn = self.amends().turn.lock().await;
            if self.amends().owed(Stake::Key(&key)) != Some(asked) {
                continue;
            }
            match self.evict(&key).await {
                Ok(_) => self.amends().confirm(Stake::Key(&key), asked),
                Err(StoreError::Refused(_)) => told = told.max(Told::Refused),
                Err(_) if is_alone => return Told::Away,
                Err(_) => told = Told::Away,
            }
        }
        for release in releases {
            match self.release(&release.lease, &release.token, Duration::ZERO).await {
                Ok(()) | Err(StoreError::Refused(_)) => {
                    self.amends().lock().releases.retain(|other| other.token != release.token);
                }
                Err(_) if is_alone => return Told::Away,
                Err(_) => told = Told::Away,
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(group: Option<&str>) -> KeySpace {
        KeySpace::new("p", group).unwrap()
    }

    #[test]
    fn an_eviction_concerns_what_it_would_have_removed() {
        let amends = Amends::default();
        amends.owe(Stake::Key(&space(Some("g")).key("a")));
        assert!(amends.concern(&space(Some("g")).key("a")));
        assert!(!amends.concern(&space(Some("g")).key("b")));

        amends.owe(Stake::Space(&space(Some("h"))));
        assert!(amends.concern(&space(Some("h")).key("b")));
        assert!(!amends.concern(&space(Some("hh")).key("b")));
        assert!(!amends.concern(&space(None).key("b")));

        amends.owe(Stake::Space(&space(None)));
        assert!(amends.concern(&space(None).key("b")));
        assert!(amends.concern(&space(Some("x")).key("b")));
        assert!(!amends.concern(&KeySpace::new("pp", None).unwrap().key("b")));
    }

    #[test]
    fn a_confirmation_does_not_settle_a_later_request() {
        let amends = Amends::default();
        let key = space(None).key("a");
        amends.owe(Stake::Key(&key));
        let asked = amends.lock().count;
        amends.owe(Stake::Key(&key));
        amends.confirm(Stake::Key(&key), asked);
        assert!(amends.concern(&key));
        amends.confirm(Stake::Key(&key), asked + 1);
        assert!(!amends.concern(&key));
    }

    #[test]
    fn too_many_become_fewer_and_wider() {
        let amends = Amends::default();
        for group in 0..3 {
            for key in 0..MAX_KEYS {
                amends.owe(Stake::Key(&space(Some(&format!("g{group}"))).key(&format!("k{key}"))));
            }
        }
        assert_eq!(amends.lock().evictions(), MAX_KEYS + 2);
        assert!(amends.concern(&space(Some("g2")).key("k7")));
        assert!(!amends.concern(&space(Some("g0")).key("other")));

        for group in 0..2 * MAX_SPACES {
            amends.owe(Stake::Space(&space(Some(&format!("s{group}")))));
        }
        assert!(amends.lock().evictions.spaces.len() <= MAX_SPACES + 1);
        for group in 0..2 * MAX_SPACES {
            assert!(amends.concern(&space(Some(&format!("s{group}"))).key("x")));
        }
        assert!(!amends.concern(&KeySpace::new("q", Some("s1")).unwrap().key("x")));

        for lease in 0..2 * MAX_RELEASES {
            amends.owe(Stake::Lease(&lease.to_string(), [0; 16]));
        }
        assert_eq!(amends.lock().releases.len(), MAX_RELEASES);
    }
}
