//! The lease table of stores in this process.
//!
//! It is pure bookkeeping: time is always an argument, and the owner of a table locks it.
//!
//! A key is free, or has one of three holders: a *fill* lease, a *write* lease, or an *uncacheable* marker.
//!
//! | `begin` with | free | fill | write | uncacheable |
//! |---|---|---|---|---|
//! | `Fill`, `Refresh` | lease | Filling | Busy | Busy |
//! | `Write` | lease | lease | lease | lease |
//!
//! Each lease has a token that is never used again, so that a lost lease can't be mistaken for its successor. An expired
//! lease counts as free at once. Expired leases are removed whenever the table has doubled in size, so it stays as small as
//! the number of leases in use.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use foldhash::fast::RandomState;

use crate::key::{CacheKey, KeySpace};
use crate::reason::Reason;
use crate::store::{Abandon, Acquired, Intent, Lease};

/// The leases of all groups, for a store that has no groups of its own.
///
/// Revoking a group drops its table. That costs time for the leases of that group only.
#[derive(Debug, Default)]
pub(crate) struct LeaseTable {
    /// Tables by the head of their key space. Sorted, so that the groups of a prefix are adjacent.
    groups: BTreeMap<Box<str>, Leases>,
    sweep: Sweep,
}

impl LeaseTable {
    /// Requests a lease. Never returns [`Acquired::Found`]: the store checks for entries.
    pub(crate) fn begin(
        &mut self,
        key: &CacheKey,
        intent: Intent,
        lease_ttl: Duration,
        now: SystemTime,
    ) -> Acquired {
        let head = head_of(key);
        if let Some(leases) = self.groups.get_mut(head) {
            return leases.begin(key.suffix(), intent, lease_ttl, now);
        }
        if self.sweep.is_due(self.groups.len()) {
            self.groups.retain(|_, leases| !leases.is_idle(now));
            self.sweep.done(self.groups.len());
        }
        self.groups.entry(head.into()).or_default().begin(key.suffix(), intent, lease_ttl, now)
    }

    /// Removes a lease for a commit. Returns `true` if it was still current.
    pub(crate) fn finish(&mut self, key: &CacheKey, lease: &Lease, now: SystemTime) -> bool {
        self.of(key).is_some_and(|leases| leases.finish(key.suffix(), lease, now))
    }

    /// Extends a current lease to `lease_ttl` from now. Returns `false` if the lease is lost.
    pub(crate) fn renew(
        &mut self,
        key: &CacheKey,
        lease: &Lease,
        lease_ttl: Duration,
        now: SystemTime,
    ) -> bool {
        self.of(key).is_some_and(|leases| leases.renew(key.suffix(), lease, lease_ttl, now))
    }

    /// Ends a lease, unless it is lost.
    pub(crate) fn abandon(&mut self, key: &CacheKey, lease: &Lease, why: Abandon, now: SystemTime) {
        if let Some(leases) = self.of(key) {
            leases.abandon(key.suffix(), lease, why, now);
        }
    }

    /// Revokes any lease or marker of a key.
    pub(crate) fn revoke(&mut self, key: &CacheKey) {
        if let Some(leases) = self.of(key) {
            leases.revoke(key.suffix());
        }
    }

    /// Revokes the leases and markers of every key in a group, or under a whole prefix.
    pub(crate) fn revoke_space(&mut self, space: &KeySpace) {
        drop(split_off_space(&mut self.groups, space));
    }

    fn of(&mut self, key: &CacheKey) -> Option<&mut Leases> {
        self.groups.get_mut(head_of(key))
    }
}

/// The leases of one group, by key suffix.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    states: HashMap<Box<str>, LeaseState, RandomState>,
    sweep: Sweep,
}

/// The holder of a key, and the time at which its lease or marker expires.
#[derive(Debug)]
struct LeaseState {
    holder: Holder,
    expires: SystemTime,
}

/// The holder of a key: the lease of a fill or of a write, or an *uncacheable* marker.
#[derive(Debug, PartialEq)]
enum Holder {
    Fill(Lease),
    Write(Lease),
    Uncacheable,
}

impl Leases {
    /// See [`LeaseTable::begin`].
    pub(crate) fn begin(
        &mut self,
        suffix: &str,
        intent: Intent,
        lease_ttl: Duration,
        now: SystemTime,
    ) -> Acquired {
        if intent != Intent::Write {
            match self.states.get(suffix).filter(|state| state.expires > now).map(|state| &state.holder) {
                Some(Holder::Fill(_)) => return Acquired::Filling,
                Some(Holder::Write(_) | Holder::Uncacheable) => return Acquired::Busy(Reason::Busy),
                None => {}
            }
        }
        let lease = new_lease();
        let holder = match intent {
            Intent::Write => Holder::Write(lease.clone()),
            Intent::Fill | Intent::Refresh => Holder::Fill(lease.clone()),
        };
        self.insert(suffix, LeaseState { holder, expires: later(now, lease_ttl) }, now);
        Acquired::Lease(lease)
    }

    /// See [`LeaseTable::finish`].
    pub(crate) fn finish(&mut self, suffix: &str, lease: &Lease, now: SystemTime) -> bool {
        let current = self.current(suffix, lease, now).is_some();
        if current {
            self.states.remove(suffix);
        }
        current
    }

    /// See [`LeaseTable::renew`].
    pub(crate) fn renew(
        &mut self,
        suffix: &str,
        lease: &Lease,
        lease_ttl: Duration,
        now: SystemTime,
    ) -> bool {
        match self.current(suffix, lease, now) {
            Some(state) => {
                state.expires = later(now, lease_ttl);
                true
            }
            None => false,
        }
    }

    /// See [`LeaseTable::abandon`].
    pub(crate) fn abandon(&mut self, suffix: &str, lease: &Lease, why: Abandon, now: SystemTime) {
        match (self.current(suffix, lease, now), why) {
            (Some(state), Abandon::Uncacheable(pause)) => {
                *state = LeaseState { holder: Holder::Uncacheable, expires: later(now, pause) };
            }
            (Some(_), Abandon::Failed) => self.revoke(suffix),
            (None, _) => {}
        }
    }

    /// See [`LeaseTable::revoke`].
    pub(crate) fn revoke(&mut self, suffix: &str) {
        self.states.remove(suffix);
    }

    /// Returns `true` if there is no current lease or marker.
    pub(crate) fn is_idle(&self, now: SystemTime) -> bool {
        self.states.values().all(|state| state.expires <= now)
    }

    /// Returns the state of this lease, if it is still current.
    fn current(&mut self, suffix: &str, lease: &Lease, now: SystemTime) -> Option<&mut LeaseState> {
        self.states.get_mut(suffix).filter(|state| state.expires > now && state.holder.is(lease))
    }

    fn insert(&mut self, suffix: &str, state: LeaseState, now: SystemTime) {
        if let Some(slot) = self.states.get_mut(suffix) {
            *slot = state;
            return;
        }
        if self.sweep.is_due(self.states.len()) {
            self.states.retain(|_, state| state.expires > now);
            self.states.shrink_to(self.states.len() * 2);
            self.sweep.done(self.states.len());
        }
        self.states.insert(suffix.into(), state);
    }
}

impl Holder {
    fn is(&self, lease: &Lease) -> bool {
        matches!(self, Self::Fill(held) | Self::Write(held) if held == lease)
    }
}

/// A schedule for removing expired entries: each time the size has doubled since the last removal, so that an insertion
/// costs constant time on average.
#[derive(Debug)]
pub(crate) struct Sweep {
    at: usize,
}

impl Sweep {
    const SMALLEST: usize = 64;

    /// Returns `true` if expired entries must be removed before the next insertion.
    pub(crate) fn is_due(&self, len: usize) -> bool {
        len >= self.at
    }

    /// Records the size after a removal.
    pub(crate) fn done(&mut self, len: usize) {
        self.at = (len * 2).max(Self::SMALLEST);
    }
}

impl Default for Sweep {
    fn default() -> Self {
        Self { at: Self::SMALLEST }
    }
}

/// Returns the head of the key's space, which its name begins with.
pub(crate) fn head_of(key: &CacheKey) -> &str {
    &key.name()[..key.name().len() - key.suffix().len()]
}

/// Removes the values of a group, or of every group of a prefix, from a map by heads.
pub(crate) fn split_off_space<T>(groups: &mut BTreeMap<Box<str>, T>, space: &KeySpace) -> Vec<T> {
    heads_in(groups, space).iter().filter_map(|head| groups.remove(head)).collect()
}

/// Returns the head of a group, or those of every group of a prefix in a map by heads.
pub(crate) fn heads_in<T>(groups: &BTreeMap<Box<str>, T>, space: &KeySpace) -> Vec<Box<str>> {
    let mut heads: Vec<Box<str>> = vec![space.head().into()];
    if space.group().is_none() {
        // A prefix contains no brace, so these are the groups of this prefix and of no other.
        let first = format!("{}{{", space.head());
        heads.extend(
            groups
                .range::<str, _>((std::ops::Bound::Included(&*first), std::ops::Bound::Unbounded))
                .map(|(head, _)| head)
                .take_while(|head| head.starts_with(&first))
                .cloned(),
        );
    }
    heads
}

/// Returns the index of the lock that guards `name`, out of `count` locks.
pub(crate) fn stripe(name: &str, count: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    usize::try_from(hasher.finish() % (count.max(1) as u64)).unwrap_or_default()
}

/// Creates a lease whose token no table in this process has used before.
fn new_lease() -> Lease {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let token = u128::from(NEXT.fetch_add(1, Ordering::Relaxed));
    Lease::new(token.to_be_bytes(), [0; 8])
}

/// Adds a duration to a time. If the sum is out of range, the lease never expires.
fn later(now: SystemTime, by: Duration) -> SystemTime {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    now.checked_add(by.min(CENTURY)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ManualClock};
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn lease(begin: Acquired) -> Lease {
        match begin {
            Acquired::Lease(lease) => lease,
            other => panic!("no lease: {other:?}"),
        }
    }

    #[test]
    fn expired_leases_are_removed() {
        let mut table = LeaseTable::default();
        let mut now = ManualClock::new().now();
        for i in 0..10_000 {
            let space = KeySpace::new("p", Some(&format!("group{}", i % 500))).unwrap();
            lease(table.begin(&space.key(&i.to_string()), Intent::Fill, SECOND, now));
            now += Duration::from_millis(100);
        }
        let held: usize = table.groups.values().map(|leases| leases.states.len()).sum();
        assert!(table.groups.len() <= Sweep::SMALLEST, "{} groups", table.groups.len());
        assert!(held <= Sweep::SMALLEST * 2, "{held} leases");
    }

    #[test]
    fn busy_group_removes_its_expired_leases() {
        let (mut leases, now) = (Leases::default(), ManualClock::new().now());
        for i in 0..10_000 {
            lease(leases.begin(&i.to_string(), Intent::Fill, SECOND, now + SECOND * i));
        }
        assert!(leases.states.len() <= Sweep::SMALLEST, "{}", leases.states.len());
    }

    #[test]
    fn lease_with_the_longest_ttl_does_not_expire() {
        let (mut leases, now) = (Leases::default(), ManualClock::new().now());
        lease(leases.begin("k", Intent::Fill, Duration::MAX, now));
        assert!(matches!(
            leases.begin("k", Intent::Fill, SECOND, now + SECOND * 1_000_000),
            Acquired::Filling
        ));
    }

    /// A reference model of the same rules: a list of all holders, the latest last.
    #[derive(Default)]
    struct Model {
        held: Vec<(CacheKey, &'static str, Option<Lease>, SystemTime)>,
    }

    impl Model {
        fn free(&mut self, now: SystemTime, of: impl Fn(&CacheKey) -> bool) {
            self.held.retain(|(key, _, _, until)| *until > now && !of(key));
        }

        fn kind(&self, key: &CacheKey, now: SystemTime) -> &'static str {
            self.held.iter().find(|(held, _, _, until)| held == key && *until > now).map_or("free", |h| h.1)
        }

        fn is_current(&self, key: &CacheKey, lease: &Lease, now: SystemTime) -> bool {
            self.held
                .iter()
                .any(|(held, _, l, until)| held == key && l.as_ref() == Some(lease) && *until > now)
        }
    }

    #[derive(Clone, Debug)]
    enum LeaseOp {
        Begin(usize, Intent, u64),
        Finish(usize, usize),
        Renew(usize, usize, u64),
        Abandon(usize, usize, Option<u64>),
        Revoke(usize),
        RevokeSpace(usize),
        Wait(u64),
    }

    fn op() -> impl Strategy<Value = LeaseOp> {
        let (key, time, pick) = (0..8usize, 0..4u64, 0..4usize);
        let intent = prop_oneof![Just(Intent::Fill), Just(Intent::Refresh), Just(Intent::Write)];
        prop_oneof![
            6 => (key.clone(), intent, time.clone()).prop_map(|(k, i, t)| LeaseOp::Begin(k, i, t)),
            3 => (key.clone(), pick.clone()).prop_map(|(k, l)| LeaseOp::Finish(k, l)),
            1 => (key.clone(), pick.clone(), time.clone()).prop_map(|(k, l, t)| LeaseOp::Renew(k, l, t)),
            2 => (key.clone(), pick, prop::option::of(time.clone())).prop_map(|(k, l, t)| LeaseOp::Abandon(k, l, t)),
            1 => key.prop_map(LeaseOp::Revoke),
            1 => (0..5usize).prop_map(LeaseOp::RevokeSpace),
            2 => time.prop_map(LeaseOp::Wait),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn random_operations_match_the_reference_model(ops in prop::collection::vec(op(), 1..60)) {
            let spaces: Vec<KeySpace> = [("p", None), ("p", Some("a")), ("p", Some("b")), ("q", None), ("q", Some("a"))]
                .into_iter()
                .map(|(prefix, group)| KeySpace::new(prefix, group).unwrap())
                .collect();
            let keys: Vec<CacheKey> =
                (0..8).map(|i| spaces[i % 5].key(if i < 5 { "x" } else { "y" })).collect();
            let (mut table, mut model) = (LeaseTable::default(), Model::default());
            let mut now = ManualClock::new().now();
            // Leases are tried only on their own key: a store never mixes them up, and tokens are unique.
            let mut given: Vec<Vec<Lease>> = vec![Vec::new(); keys.len()];
            let recent = |given: &[Lease], back: usize| given.iter().rev().nth(back).cloned();
            for op in ops {
                match op {
                    LeaseOp::Begin(k, intent, hold) => {
                        let answer = table.begin(&keys[k], intent, SECOND * hold as u32, now);
                        let expected = match (intent, model.kind(&keys[k], now)) {
                            (Intent::Write, _) | (_, "free") => "lease",
                            (_, "fill") => "filling",
                            (_, _) => "busy",
                        };
                        let name = match &answer {
                            Acquired::Lease(_) => "lease",
                            Acquired::Filling => "filling",
                            Acquired::Busy(_) => "busy",
                            Acquired::Found(_) => "found",
                        };
                        prop_assert_eq!(name, expected);
                        if let Acquired::Lease(lease) = answer {
                            model.free(now, |key| *key == keys[k]);
                            let kind = if intent == Intent::Write { "write" } else { "fill" };
                            model.held.push((keys[k].clone(), kind, Some(lease.clone()), now + SECOND * hold as u32));
                            given[k].push(lease);
                        }
                    }
                    LeaseOp::Finish(k, back) => if let Some(lease) = recent(&given[k], back) {
                        let expected = model.is_current(&keys[k], &lease, now);
                        prop_assert_eq!(table.finish(&keys[k], &lease, now), expected);
                        if expected {
                            model.free(now, |key| *key == keys[k]);
                        }
                    },
                    LeaseOp::Renew(k, back, hold) => if let Some(lease) = recent(&given[k], back) {
                        let expected = model.is_current(&keys[k], &lease, now);
                        prop_assert_eq!(table.renew(&keys[k], &lease, SECOND * hold as u32, now), expected);
                        if expected {
                            let held = model.held.iter_mut().find(|held| held.2.as_ref() == Some(&lease)).unwrap();
                            held.3 = now + SECOND * hold as u32;
                        }
                    },
                    LeaseOp::Abandon(k, back, pause) => if let Some(lease) = recent(&given[k], back) {
                        let why = pause.map_or(Abandon::Failed, |p| Abandon::Uncacheable(SECOND * p as u32));
                        table.abandon(&keys[k], &lease, why, now);
                        if model.is_current(&keys[k], &lease, now) {
                            model.free(now, |key| *key == keys[k]);
                            if let Some(pause) = pause {
                                model.held.push((keys[k].clone(), "marker", None, now + SECOND * pause as u32));
                            }
                        }
                    },
                    LeaseOp::Revoke(k) => {
                        table.revoke(&keys[k]);
                        model.free(now, |key| *key == keys[k]);
                    }
                    LeaseOp::RevokeSpace(s) => {
                        table.revoke_space(&spaces[s]);
                        model.free(now, |key| {
                            key.prefix() == spaces[s].prefix()
                                && (spaces[s].group().is_none() || key.group() == spaces[s].group())
                        });
                    }
                    LeaseOp::Wait(seconds) => now += SECOND * seconds as u32,
                }
            }
        }
    }
}
