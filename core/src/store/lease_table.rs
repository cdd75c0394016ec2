//! The lease table of stores that live in this process: who may write which entry, and until when.
//!
//! Pure bookkeeping. The time is always an argument, and whoever owns a table puts the lock around it.
//!
//! A key is free or held by one of three: a *fill* lease, a *write* ticket, or an *uncacheable* marker.
//!
//! | `begin` with | free | fill | write | uncacheable |
//! |---|---|---|---|---|
//! | `Fill`, `Refresh` | lease | Filling | Busy | Busy |
//! | `Write` | lease | lease | lease | lease |
//!
//! A lease is given under a token that is never used again, so that a lost lease can't be taken for its successor.
//! What has run out counts as free at once, and is removed whenever the table has doubled: it stays as small as what
//! is in flight.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use foldhash::fast::RandomState;

use crate::key::{CacheKey, KeySpace};
use crate::store::{Abandon, Begin, Intent, Lease};

/// The leases of many groups, for a store that keeps no groups of its own.
///
/// Revoking a group drops its table, which costs what is in flight there and never looks at other groups.
#[derive(Debug, Default)]
pub(crate) struct LeaseTable {
    /// By the head of the key space. Sorted, so that the groups of a prefix are neighbours.
    groups: BTreeMap<Box<str>, Leases>,
    sweep: Sweep,
}

impl LeaseTable {
    /// Asks for a lease. Never answers [`Begin::Found`]: entries are the store's business.
    pub(crate) fn begin(&mut self, key: &CacheKey, intent: Intent, hold: Duration, now: SystemTime) -> Begin {
        let head = head_of(key);
        if let Some(leases) = self.groups.get_mut(head) {
            return leases.begin(key.suffix(), intent, hold, now);
        }
        if self.sweep.is_due(self.groups.len()) {
            self.groups.retain(|_, leases| !leases.is_idle(now));
            self.sweep.done(self.groups.len());
        }
        self.groups.entry(head.into()).or_default().begin(key.suffix(), intent, hold, now)
    }

    /// Takes the lease back for a commit. True if it was still the current one.
    pub(crate) fn finish(&mut self, key: &CacheKey, lease: &Lease, now: SystemTime) -> bool {
        self.of(key).is_some_and(|leases| leases.finish(key.suffix(), lease, now))
    }

    /// Extends a current lease to `hold` from now.
    pub(crate) fn renew(&mut self, key: &CacheKey, lease: &Lease, hold: Duration, now: SystemTime) -> bool {
        self.of(key).is_some_and(|leases| leases.renew(key.suffix(), lease, hold, now))
    }

    /// Gives a lease back, unless it is lost.
    pub(crate) fn abandon(&mut self, key: &CacheKey, lease: &Lease, why: Abandon, now: SystemTime) {
        if let Some(leases) = self.of(key) {
            leases.abandon(key.suffix(), lease, why, now);
        }
    }

    /// Frees a key, whoever holds it.
    pub(crate) fn revoke(&mut self, key: &CacheKey) {
        if let Some(leases) = self.of(key) {
            leases.revoke(key.suffix());
        }
    }

    /// Frees every key of a group, or of a whole prefix.
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
    held: HashMap<Box<str>, Held, RandomState>,
    sweep: Sweep,
}

/// What holds a key, and until when.
#[derive(Debug)]
struct Held {
    by: Holder,
    until: SystemTime,
}

#[derive(Debug, PartialEq)]
enum Holder {
    Fill(Lease),
    Write(Lease),
    Uncacheable,
}

impl Leases {
    /// See [`LeaseTable::begin`].
    pub(crate) fn begin(&mut self, suffix: &str, intent: Intent, hold: Duration, now: SystemTime) -> Begin {
        if intent != Intent::Write {
            match self.held.get(suffix).filter(|held| held.until > now).map(|held| &held.by) {
                Some(Holder::Fill(_)) => return Begin::Filling,
                Some(Holder::Write(_) | Holder::Uncacheable) => return Begin::Busy,
                None => {}
            }
        }
        let lease = new_lease();
        let by = match intent {
            Intent::Write => Holder::Write(lease.clone()),
            Intent::Fill | Intent::Refresh => Holder::Fill(lease.clone()),
        };
        self.hold(suffix, Held { by, until: later(now, hold) }, now);
        Begin::Lease(lease)
    }

    /// See [`LeaseTable::finish`].
    pub(crate) fn finish(&mut self, suffix: &str, lease: &Lease, now: SystemTime) -> bool {
        let current = self.current(suffix, lease, now).is_some();
        if current {
            self.held.remove(suffix);
        }
        current
    }

    /// See [`LeaseTable::renew`].
    pub(crate) fn renew(&mut self, suffix: &str, lease: &Lease, hold: Duration, now: SystemTime) -> bool {
        match self.current(suffix, lease, now) {
            Some(held) => {
                held.until = later(now, hold);
                true
            }
            None => false,
        }
    }

    /// See [`LeaseTable::abandon`].
    pub(crate) fn abandon(&mut self, suffix: &str, lease: &Lease, why: Abandon, now: SystemTime) {
        match (self.current(suffix, lease, now), why) {
            (Some(held), Abandon::Uncacheable(pause)) => {
                *held = Held { by: Holder::Uncacheable, until: later(now, pause) };
            }
            (Some(_), Abandon::Failed) => self.revoke(suffix),
            (None, _) => {}
        }
    }

    /// See [`LeaseTable::revoke`].
    pub(crate) fn revoke(&mut self, suffix: &str) {
        self.held.remove(suffix);
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_idle(&self, now: SystemTime) -> bool {
        self.held.values().all(|held| held.until <= now)
    }

    /// The hold of this very lease, if it is still good.
    fn current(&mut self, suffix: &str, lease: &Lease, now: SystemTime) -> Option<&mut Held> {
        self.held.get_mut(suffix).filter(|held| held.until > now && held.by.is(lease))
    }

    fn hold(&mut self, suffix: &str, held: Held, now: SystemTime) {
        if let Some(slot) = self.held.get_mut(suffix) {
            *slot = held;
            return;
        }
        if self.sweep.is_due(self.held.len()) {
            self.held.retain(|_, held| held.until > now);
            self.held.shrink_to(self.held.len() * 2);
            self.sweep.done(self.held.len());
        }
        self.held.insert(suffix.into(), held);
    }
}

impl Holder {
    fn is(&self, lease: &Lease) -> bool {
        matches!(self, Self::Fill(held) | Self::Write(held) if held == lease)
    }
}

/// When to look for what has run out: each time the size has doubled since the last look, so that looking costs
/// every insertion a constant.
#[derive(Debug)]
pub(crate) struct Sweep {
    at: usize,
}

impl Sweep {
    const SMALLEST: usize = 64;

    pub(crate) fn is_due(&self, len: usize) -> bool {
        len >= self.at
    }

    pub(crate) fn done(&mut self, len: usize) {
        self.at = (len * 2).max(Self::SMALLEST);
    }
}

impl Default for Sweep {
    fn default() -> Self {
        Self { at: Self::SMALLEST }
    }
}

/// What the name of a key begins with: the head of its space.
pub(crate) fn head_of(key: &CacheKey) -> &str {
    &key.name()[..key.name().len() - key.suffix().len()]
}

/// Takes what belongs to a group, or to every group of a prefix, out of a map by heads.
pub(crate) fn split_off_space<T>(groups: &mut BTreeMap<Box<str>, T>, space: &KeySpace) -> Vec<T> {
    let mut heads: Vec<Box<str>> = vec![space.head().into()];
    if space.group().is_none() {
        // A prefix holds no brace, so these are the groups of this prefix and of no other.
        let first = format!("{}{{", space.head());
        heads.extend(
            groups
                .range::<str, _>((std::ops::Bound::Included(&*first), std::ops::Bound::Unbounded))
                .map(|(head, _)| head)
                .take_while(|head| head.starts_with(&first))
                .cloned(),
        );
    }
    heads.iter().filter_map(|head| groups.remove(head)).collect()
}

/// Which of `count` locks guards `name`.
pub(crate) fn stripe(name: &str, count: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    usize::try_from(hasher.finish() % (count.max(1) as u64)).unwrap_or_default()
}

/// A lease that no table in this process has given before.
fn new_lease() -> Lease {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let token = u128::from(NEXT.fetch_add(1, Ordering::Relaxed));
    Lease::new(token.to_be_bytes(), [0; 8])
}

/// A hold too long for the calendar is no hold: it can't be told from one that never ends.
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

    fn lease(begin: Begin) -> Lease {
        match begin {
            Begin::Lease(lease) => lease,
            other => panic!("no lease: {other:?}"),
        }
    }

    #[test]
    fn what_ran_out_is_swept() {
        let mut table = LeaseTable::default();
        let mut now = ManualClock::new().now();
        for i in 0..10_000 {
            let space = KeySpace::new("p", Some(&format!("group{}", i % 500))).unwrap();
            lease(table.begin(&space.key(&i.to_string()), Intent::Fill, SECOND, now));
            now += Duration::from_millis(100);
        }
        let held: usize = table.groups.values().map(|leases| leases.held.len()).sum();
        assert!(table.groups.len() <= Sweep::SMALLEST, "{} groups", table.groups.len());
        assert!(held <= Sweep::SMALLEST * 2, "{held} leases");
    }

    #[test]
    fn a_busy_group_sweeps_its_own() {
        let (mut leases, now) = (Leases::default(), ManualClock::new().now());
        for i in 0..10_000 {
            lease(leases.begin(&i.to_string(), Intent::Fill, SECOND, now + SECOND * i));
        }
        assert!(leases.held.len() <= Sweep::SMALLEST, "{}", leases.held.len());
    }

    #[test]
    fn a_hold_without_end_is_a_long_one() {
        let (mut leases, now) = (Leases::default(), ManualClock::new().now());
        lease(leases.begin("k", Intent::Fill, Duration::MAX, now));
        assert!(matches!(leases.begin("k", Intent::Fill, SECOND, now + SECOND * 1_000_000), Begin::Filling));
    }

    /// The same rules, as plainly as possible: a list of all that was ever held, the latest last.
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
    enum Op {
        Begin(usize, Intent, u64),
        Finish(usize, usize),
        Renew(usize, usize, u64),
        Abandon(usize, usize, Option<u64>),
        Revoke(usize),
        RevokeSpace(usize),
        Wait(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let (key, time, pick) = (0..8usize, 0..4u64, 0..4usize);
        let intent = prop_oneof![Just(Intent::Fill), Just(Intent::Refresh), Just(Intent::Write)];
        prop_oneof![
            6 => (key.clone(), intent, time.clone()).prop_map(|(k, i, t)| Op::Begin(k, i, t)),
            3 => (key.clone(), pick.clone()).prop_map(|(k, l)| Op::Finish(k, l)),
            1 => (key.clone(), pick.clone(), time.clone()).prop_map(|(k, l, t)| Op::Renew(k, l, t)),
            2 => (key.clone(), pick, prop::option::of(time.clone())).prop_map(|(k, l, t)| Op::Abandon(k, l, t)),
            1 => key.prop_map(Op::Revoke),
            1 => (0..5usize).prop_map(Op::RevokeSpace),
            2 => time.prop_map(Op::Wait),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn the_table_keeps_the_rules(ops in prop::collection::vec(op(), 1..60)) {
            let spaces: Vec<KeySpace> = [("p", None), ("p", Some("a")), ("p", Some("b")), ("q", None), ("q", Some("a"))]
                .into_iter()
                .map(|(prefix, group)| KeySpace::new(prefix, group).unwrap())
                .collect();
            let keys: Vec<CacheKey> =
                (0..8).map(|i| spaces[i % 5].key(if i < 5 { "x" } else { "y" })).collect();
            let (mut table, mut model) = (LeaseTable::default(), Model::default());
            let mut now = ManualClock::new().now();
            // Leases are tried on their own key only: a store never mixes them up, and tokens are unique anyway.
            let mut given: Vec<Vec<Lease>> = vec![Vec::new(); keys.len()];
            let recent = |given: &[Lease], back: usize| given.iter().rev().nth(back).cloned();
            for op in ops {
                match op {
                    Op::Begin(k, intent, hold) => {
                        let answer = table.begin(&keys[k], intent, SECOND * hold as u32, now);
                        let expected = match (intent, model.kind(&keys[k], now)) {
                            (Intent::Write, _) | (_, "free") => "lease",
                            (_, "fill") => "filling",
                            (_, _) => "busy",
                        };
                        let name = match &answer {
                            Begin::Lease(_) => "lease",
                            Begin::Filling => "filling",
                            Begin::Busy => "busy",
                            Begin::Found(_) => "found",
                        };
                        prop_assert_eq!(name, expected);
                        if let Begin::Lease(lease) = answer {
                            model.free(now, |key| *key == keys[k]);
                            let kind = if intent == Intent::Write { "write" } else { "fill" };
                            model.held.push((keys[k].clone(), kind, Some(lease.clone()), now + SECOND * hold as u32));
                            given[k].push(lease);
                        }
                    }
                    Op::Finish(k, back) => if let Some(lease) = recent(&given[k], back) {
                        let expected = model.is_current(&keys[k], &lease, now);
                        prop_assert_eq!(table.finish(&keys[k], &lease, now), expected);
                        if expected {
                            model.free(now, |key| *key == keys[k]);
                        }
                    },
                    Op::Renew(k, back, hold) => if let Some(lease) = recent(&given[k], back) {
                        let expected = model.is_current(&keys[k], &lease, now);
                        prop_assert_eq!(table.renew(&keys[k], &lease, SECOND * hold as u32, now), expected);
                        if expected {
                            let held = model.held.iter_mut().find(|held| held.2.as_ref() == Some(&lease)).unwrap();
                            held.3 = now + SECOND * hold as u32;
                        }
                    },
                    Op::Abandon(k, back, pause) => if let Some(lease) = recent(&given[k], back) {
                        let why = pause.map_or(Abandon::Failed, |p| Abandon::Uncacheable(SECOND * p as u32));
                        table.abandon(&keys[k], &lease, why, now);
                        if model.is_current(&keys[k], &lease, now) {
                            model.free(now, |key| *key == keys[k]);
                            if let Some(pause) = pause {
                                model.held.push((keys[k].clone(), "marker", None, now + SECOND * pause as u32));
                            }
                        }
                    },
                    Op::Revoke(k) => {
                        table.revoke(&keys[k]);
                        model.free(now, |key| *key == keys[k]);
                    }
                    Op::RevokeSpace(s) => {
                        table.revoke_space(&spaces[s]);
                        model.free(now, |key| {
                            key.prefix() == spaces[s].prefix()
                                && (spaces[s].group().is_none() || key.group() == spaces[s].group())
                        });
                    }
                    Op::Wait(seconds) => now += SECOND * seconds as u32,
                }
            }
        }
    }
}
