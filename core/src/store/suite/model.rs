//! A comparison of random calls with a model of the rules.

use std::fmt::{Arguments, Write as _};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;

use super::{LONG, Subject, bytes_of};
use crate::key::{CacheKey, KeySpace};
use crate::store::{Abandon, Acquired, Intent, Lease, LeaseStore};

/// The number of calls before all entries are removed.
const CALLS: usize = 60;

/// The store returns the same results as the model, for random calls in random order.
pub async fn random_calls_match_the_model<S: LeaseStore>(subject: &Subject<S>) {
    for _ in 0..subject.rounds.div_ceil(10) {
        let seed = fastrand::u64(..);
        let mut run = ModelRun::new(subject, seed);
        for _ in 0..CALLS {
            run.call_at_random().await;
            run.compare().await;
        }
        subject.clean_up().await;
    }
}

/// The state of a key in the model: its entry, and the current lease or mark.
#[derive(Default)]
struct Slot {
    entry: Option<(Bytes, Expires)>,
    held: Option<(ModelHolder, Expires)>,
    /// All leases that were granted, the latest last.
    leases: Vec<Lease>,
}

enum ModelHolder {
    Fill(Lease),
    Write(Lease),
    Uncacheable,
}

/// A time on the model's own clock. `None` is never.
type Expires = Option<Duration>;

fn is_valid(until: Expires, now: Duration) -> bool {
    until.is_none_or(|until| until > now)
}

impl Slot {
    fn value(&self, now: Duration) -> Option<&Bytes> {
        self.entry.as_ref().filter(|entry| is_valid(entry.1, now)).map(|entry| &entry.0)
    }

    fn holder(&self, now: Duration) -> Option<&ModelHolder> {
        self.held.as_ref().filter(|held| is_valid(held.1, now)).map(|held| &held.0)
    }

    fn is_current(&self, lease: &Lease, now: Duration) -> bool {
        matches!(self.holder(now), Some(ModelHolder::Fill(held) | ModelHolder::Write(held)) if held == lease)
    }

    /// Removes the entry and the lease. Returns `true` if the entry was valid.
    fn evict(&mut self, now: Duration) -> bool {
        let was_there = self.value(now).is_some();
        (self.entry, self.held) = (None, None);
        was_there
    }
}

struct ModelRun<'a, S> {
    subject: &'a Subject<S>,
    rng: Rng,
    now: Duration,
    spaces: [KeySpace; 4],
    slots: Vec<(CacheKey, Slot)>,
    /// The calls so far, for the message of a failed assertion.
    history: String,
}

impl<'a, S: LeaseStore> ModelRun<'a, S> {
    fn new(subject: &'a Subject<S>, seed: u64) -> Self {
        let spaces =
            [subject.ungrouped(), subject.group("a"), subject.group("b"), subject.elsewhere(Some("a"))];
        let keys = spaces.iter().flat_map(|space| ["x", "y"].map(|suffix| space.key(suffix)));
        let slots = keys.map(|key| (key, Slot::default())).collect();
        let rng = Rng::with_seed(seed);
        Self { subject, rng, now: Duration::ZERO, spaces, slots, history: format!("seed {seed}") }
    }

    async fn call_at_random(&mut self) {
        let index = self.rng.usize(..self.slots.len());
        match self.rng.u8(..20) {
            0..3 => self.set(index).await,
            3..5 => self.delete(index).await,
            5 => self.delete_group().await,
            6..11 => self.begin(index).await,
            11..15 => self.commit(index).await,
            15 => self.renew(index).await,
            16..18 => self.abandon(index).await,
            _ => self.wait().await,
        }
    }

    async fn set(&mut self, index: usize) {
        let (value, ttl) = (self.any_value(), self.any_ttl());
        self.log_call(index, format_args!("set to {value:?} for {ttl:?}"));
        let (key, slot) = &mut self.slots[index];
        self.subject.store.set(key, value.clone(), ttl).await.unwrap();
        slot.entry = Some((value, ttl.map(|ttl| self.now + ttl)));
        slot.held = None;
    }

    async fn delete(&mut self, index: usize) {
        self.log_call(index, format_args!("delete"));
        let (key, slot) = &mut self.slots[index];
        let was_there = self.subject.store.delete(key).await.unwrap();
        assert_eq!(was_there, slot.evict(self.now), "{}", self.history);
    }

    async fn delete_group(&mut self) {
        let space = &self.spaces[self.rng.usize(..self.spaces.len())].clone();
        self.log(format_args!("delete group {}", space.head()));
        let count = self.subject.store.delete_group(space).await.unwrap();
        let is_in = |key: &CacheKey| {
            key.prefix() == space.prefix() && (space.group().is_none() || key.group() == space.group())
        };
        let members = self.slots.iter_mut().filter(|(key, _)| is_in(key));
        let expected = members.map(|(_, slot)| u64::from(slot.evict(self.now))).sum::<u64>();
        assert_eq!(count, expected, "{}", self.history);
    }

    async fn begin(&mut self, index: usize) {
        let intent = [Intent::Fill, Intent::Refresh, Intent::Write][self.rng.usize(..3)];
        let lease_ttl = self.any_time();
        self.log_call(index, format_args!("begin {intent:?} for {lease_ttl:?}"));
        let (key, slot) = &mut self.slots[index];
        let begin = self.subject.store.begin(key, intent, lease_ttl).await.unwrap();
        let is_right = match (&begin, intent, slot.value(self.now), slot.holder(self.now)) {
            (Acquired::Found(found), Intent::Fill, Some(value), _) => found == value,
            (_, Intent::Fill, Some(_), _) => false,
            (Acquired::Lease(_), Intent::Write, _, _) | (Acquired::Lease(_), _, _, None) => true,
            (Acquired::Filling, Intent::Fill | Intent::Refresh, _, Some(ModelHolder::Fill(_))) => true,
            (
                Acquired::Busy(_),
                Intent::Fill | Intent::Refresh,
                _,
                Some(ModelHolder::Write(_) | ModelHolder::Uncacheable),
            ) => true,
            _ => false,
        };
        assert!(is_right, "{begin:?} after {}", self.history);
        if let Acquired::Lease(lease) = begin {
            slot.leases.push(lease.clone());
            let holder = if intent == Intent::Write { ModelHolder::Write } else { ModelHolder::Fill };
            slot.held = Some((holder(lease), Some(self.now + lease_ttl)));
        }
    }

    async fn commit(&mut self, index: usize) {
        let Some(lease) = self.any_lease(index) else { return };
        let (value, ttl) = (self.any_value(), self.any_ttl());
        self.log_call(index, format_args!("commit {value:?} with {lease:?} for {ttl:?}"));
        let (key, slot) = &mut self.slots[index];
        let is_committed = self.subject.store.commit(key, &lease, value.clone(), ttl).await.unwrap();
        assert_eq!(is_committed, slot.is_current(&lease, self.now), "{}", self.history);
        if is_committed {
            slot.entry = Some((value, ttl.map(|ttl| self.now + ttl)));
            slot.held = None;
        }
    }

    async fn renew(&mut self, index: usize) {
        let Some(lease) = self.any_lease(index) else { return };
        let lease_ttl = self.any_time();
        self.log_call(index, format_args!("renew {lease:?} for {lease_ttl:?}"));
        let (key, slot) = &mut self.slots[index];
        let is_renewed = self.subject.store.renew(key, &lease, lease_ttl).await.unwrap();
        assert_eq!(is_renewed, slot.is_current(&lease, self.now), "{}", self.history);
        if let (true, Some((_, until))) = (is_renewed, &mut slot.held) {
            *until = Some(self.now + lease_ttl);
        }
    }

    async fn abandon(&mut self, index: usize) {
        let Some(lease) = self.any_lease(index) else { return };
        let mark = self.rng.bool().then(|| self.any_time());
        let why = mark.map_or(Abandon::Failed, Abandon::Uncacheable);
        self.log_call(index, format_args!("abandon {lease:?} as {why:?}"));
        let (key, slot) = &mut self.slots[index];
        self.subject.store.abandon(key, &lease, why).await.unwrap();
        if slot.is_current(&lease, self.now) {
            slot.held = mark.map(|mark| (ModelHolder::Uncacheable, Some(self.now + mark)));
        }
    }

    /// Advances a manual clock. In real time nothing expires, because waiting would be slow and inexact.
    async fn wait(&mut self) {
        if self.subject.clock.is_some() {
            let time = self.any_time();
            self.log(format_args!("wait {time:?}"));
            self.subject.advance(time).await;
            self.now += time;
        }
    }

    async fn compare(&self) {
        for (key, slot) in &self.slots {
            let expected = slot.value(self.now);
            assert_eq!(self.subject.get(key).await.as_ref(), expected, "{key} after {}", self.history);
            let is_there = self.subject.store.has(key).await.unwrap();
            assert_eq!(is_there, expected.is_some(), "`has` {key} after {}", self.history);
        }
    }

    fn log_call(&mut self, index: usize, what: Arguments<'_>) {
        let _ = write!(self.history, "\n  {}: {what}", self.slots[index].0);
    }

    fn log(&mut self, what: Arguments<'_>) {
        let _ = write!(self.history, "\n  {what}");
    }

    fn any_value(&mut self) -> Bytes {
        bytes_of(self.rng.u64(..))
    }

    fn any_ttl(&mut self) -> Option<Duration> {
        match self.rng.u8(..6) {
            0 => None,
            1 => Some(Duration::ZERO),
            _ => Some(self.any_time()),
        }
    }

    fn any_time(&mut self) -> Duration {
        if self.subject.clock.is_some() { Duration::from_secs(self.rng.u64(1..5)) } else { LONG }
    }

    /// Returns one of the latest leases of a key, current or not.
    fn any_lease(&mut self, index: usize) -> Option<Lease> {
        let back = self.rng.usize(..3) * self.rng.usize(..2);
        self.slots[index].1.leases.iter().rev().nth(back).cloned()
    }
}
