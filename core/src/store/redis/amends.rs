//! What the server could not be told, and will be: evictions nobody confirmed, and leases nobody may want.
//!
//! An eviction without an answer may or may not have happened, and a server that comes back may still hold what was
//! to be evicted. So it is kept here and repeated in the background until it is confirmed; meanwhile the store
//! answers for its keys as if there were nothing, and lets nobody fill them.
//!
//! The queue is bounded by being less exact: too many keys become their groups, too many groups their prefixes.
//! Evicting too much is only slow.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::RedisStore;
use crate::key::{CacheKey, KeySpace};
use crate::store::StoreError;

/// How many single keys are remembered before they become groups.
const MAX_KEYS: usize = 1024;

/// How many groups are remembered before they become prefixes.
const MAX_SPACES: usize = 256;

/// How many leases are remembered. The others run out by themselves.
const MAX_RELEASES: usize = 1024;

/// The first pause between two attempts. While the breaker is open, an attempt costs nothing.
const FIRST_PAUSE: Duration = Duration::from_millis(25);

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// What is still to be told.
#[derive(Debug, Default)]
pub(super) struct Amends {
    owed: Mutex<Owed>,
    /// How many evictions there are, to be read without the lock: nearly always none.
    evictions: AtomicUsize,
}

#[derive(Debug, Default)]
struct Owed {
    /// By name, with the number of the last time it was asked for.
    keys: HashMap<Box<str>, (CacheKey, u64)>,
    /// By head. Without a group it stands for the whole prefix.
    spaces: HashMap<Box<str>, (KeySpace, u64)>,
    releases: VecDeque<Release>,
    asked: u64,
    task: Option<AbortHandle>,
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
}

impl<'a> Doubt<'a> {
    pub(super) fn new(store: &'a RedisStore, stake: Stake<'a>) -> Self {
        Self { store, stake: Some(stake) }
    }

    /// The server answered.
    pub(super) fn settle(mut self) {
        self.stake = None;
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
        self.evictions.load(Ordering::Acquire) > 0 && self.lock().concern(key)
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

    /// Forgets an eviction that was confirmed, unless it was asked for again since: the later one happened after a
    /// later change, which the confirmed one may have come before.
    fn confirm<T>(
        &self,
        of: impl FnOnce(&mut Owed) -> &mut HashMap<Box<str>, (T, u64)>,
        name: &str,
        asked: u64,
    ) {
        let mut owed = self.lock();
        let entries = of(&mut owed);
        if entries.get(name).is_some_and(|(_, last)| *last == asked) {
            entries.remove(name);
        }
        self.publish(&owed);
    }

    fn lock(&self) -> MutexGuard<'_, Owed> {
        // Nothing here can panic half way through a change.
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Owed {
    fn concern(&self, key: &CacheKey) -> bool {
        let (name, prefix) = (key.name(), key.prefix().len());
        self.keys.contains_key(name)
            || self.spaces.contains_key(&name[..name.len() - key.suffix().len()])
            || self.spaces.contains_key(&name[..=prefix])
    }

    fn add_key(&mut self, key: &CacheKey) {
        if self.keys.len() >= MAX_KEYS && !self.keys.contains_key(key.name()) {
            return self.add_space(key.space());
        }
        self.asked += 1;
        self.keys.insert(key.name().into(), (key.clone(), self.asked));
    }

    fn add_space(&mut self, space: KeySpace) {
        self.asked += 1;
        self.spaces.insert(space.head().into(), (space, self.asked));
        if self.spaces.len() > MAX_SPACES {
            for (space, _) in std::mem::take(&mut self.spaces).into_values() {
                let whole = KeySpace::new(space.prefix(), None).unwrap_or(space);
                self.spaces.insert(whole.head().into(), (whole, self.asked));
            }
        }
    }

    fn add_release(&mut self, release: Release) {
        if self.releases.len() >= MAX_RELEASES {
            self.releases.pop_front();
        }
        self.releases.push_back(release);
    }

    fn evictions(&self) -> usize {
        self.keys.len() + self.spaces.len()
    }

    fn is_empty(&self) -> bool {
        self.evictions() == 0 && self.releases.is_empty()
    }
}

impl RedisStore {
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
                pause = if told { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            }
        };
        owed.task = Some(runtime.spawn(task).abort_handle());
    }

    /// Tells the server once. Stops at the first sign that it does not listen, unless it is but one of a cluster;
    /// true if it heard everything.
    pub(super) async fn amend(&self) -> bool {
        let is_alone = !self.inner.connection.is_cluster();
        let (spaces, keys, releases) = {
            let owed = self.amends().lock();
            let spaces: Vec<_> = owed.spaces.values().cloned().collect();
            let keys: Vec<_> = owed.keys.values().cloned().collect();
            (spaces, keys, owed.releases.clone())
        };
        let mut told = true;
        for (space, asked) in spaces {
            match self.evict_space(&space).await {
                Ok(_) => self.amends().confirm(|owed| &mut owed.spaces, space.head(), asked),
                Err(StoreError::Refused(_)) => told = false,
                Err(_) if is_alone => return false,
                Err(_) => told = false,
            }
        }
        for (key, asked) in keys {
            match self.evict(&key).await {
                Ok(_) => self.amends().confirm(|owed| &mut owed.keys, key.name(), asked),
                Err(StoreError::Refused(_)) => told = false,
                Err(_) if is_alone => return false,
                Err(_) => told = false,
            }
        }
        for release in releases {
            match self.release(&release.lease, &release.token, Duration::ZERO).await {
                Ok(()) | Err(StoreError::Refused(_)) => {
                    self.amends().lock().releases.retain(|other| other.token != release.token);
                }
                Err(_) if is_alone => return false,
                Err(_) => told = false,
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
        let asked = amends.lock().asked;
        amends.owe(Stake::Key(&key));
        amends.confirm(|owed| &mut owed.keys, key.name(), asked);
        assert!(amends.concern(&key));
        amends.confirm(|owed| &mut owed.keys, key.name(), asked + 1);
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
        assert!(amends.lock().spaces.len() <= MAX_SPACES + 1);
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
