//! Calls at random, beside a model that is as plain as can be.

use std::fmt::{Arguments, Write as _};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;

use super::{LONG, Subject, bytes_of};
use crate::key::{CacheKey, KeySpace};
use crate::store::{Abandon, Acquired, Intent, Lease, LeaseStore};

/// How many calls follow each other before everything is removed.
const CALLS: usize = 60;

/// Whatever is called in whatever order, the store answers as a plain map would.
pub async fn any_calls_in_any_order<S: LeaseStore>(subject: &Subject<S>) {
    for _ in 0..subject.rounds.div_ceil(10) {
        let seed = fastrand::u64(..);
        let mut run = Run::new(subject, seed);
        for _ in 0..CALLS {
            run.call_anything().await;
            run.compare().await;
        }
        subject.clean_up().await;
    }
}

/// What a key should hold, and who may write it.
#[derive(Default)]
struct Slot {
    entry: Option<(Bytes, Until)>,
    held: Option<(Hold, Until)>,
    /// Every lease there ever was, the latest last.
    given: Vec<Lease>,
}

enum Hold {
    Fill(Lease),
    Ticket(Lease),
    Uncacheable,
}

/// On the model's own clock; `None` for never.
type Until = Option<Duration>;

fn is_ahead(until: Until, now: Duration) -> bool {
    until.is_none_or(|until| until > now)
}

impl Slot {
    fn value(&self, now: Duration) -> Option<&Bytes> {
        self.entry.as_ref().filter(|entry| is_ahead(entry.1, now)).map(|entry| &entry.0)
    }

    fn hold(&self, now: Duration) -> Option<&Hold> {
        self.held.as_ref().filter(|held| is_ahead(held.1, now)).map(|held| &held.0)
    }

    fn is_current(&self, lease: &Lease, now: Duration) -> bool {
        matches!(self.hold(now), Some(Hold::Fill(held) | Hold::Ticket(held)) if held == lease)
    }

    /// Takes out the value, and the right to write one with it.
    fn evict(&mut self, now: Duration) -> bool {
        let was_there = self.value(now).is_some();
        (self.entry, self.held) = (None, None);
        was_there
    }
}

struct Run<'a, S> {
    subject: &'a Subject<S>,
    rng: Rng,
    now: Duration,
    spaces: [KeySpace; 4],
    slots: Vec<(CacheKey, Slot)>,
    /// What was called so far, for whoever has to find out what went wrong.
    story: String,
}

impl<'a, S: LeaseStore> Run<'a, S> {
    fn new(subject: &'a Subject<S>, seed: u64) -> Self {
        let spaces =
            [subject.ungrouped(), subject.group("a"), subject.group("b"), subject.elsewhere(Some("a"))];
        let keys = spaces.iter().flat_map(|space| ["x", "y"].map(|suffix| space.key(suffix)));
        let slots = keys.map(|key| (key, Slot::default())).collect();
        let rng = Rng::with_seed(seed);
        Self { subject, rng, now: Duration::ZERO, spaces, slots, story: format!("seed {seed}") }
    }

    async fn call_anything(&mut self) {
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
        self.tell_of(index, format_args!("set to {value:?} for {ttl:?}"));
        let (key, slot) = &mut self.slots[index];
        self.subject.store.set(key, value.clone(), ttl).await.unwrap();
        slot.entry = Some((value, ttl.map(|ttl| self.now + ttl)));
        slot.held = None;
    }

    async fn delete(&mut self, index: usize) {
        self.tell_of(index, format_args!("delete"));
        let (key, slot) = &mut self.slots[index];
        let was_there = self.subject.store.delete(key).await.unwrap();
        assert_eq!(was_there, slot.evict(self.now), "{}", self.story);
    }

    async fn delete_group(&mut self) {
        let space = &self.spaces[self.rng.usize(..self.spaces.len())].clone();
        self.tell(format_args!("delete group {}", space.head()));
        let count = self.subject.store.delete_group(space).await.unwrap();
        let is_in = |key: &CacheKey| {
            key.prefix() == space.prefix() && (space.group().is_none() || key.group() == space.group())
        };
        let members = self.slots.iter_mut().filter(|(key, _)| is_in(key));
        let expected = members.map(|(_, slot)| u64::from(slot.evict(self.now))).sum::<u64>();
        assert_eq!(count, expected, "{}", self.story);
    }

    async fn begin(&mut self, index: usize) {
        let intent = [Intent::Fill, Intent::Refresh, Intent::Write][self.rng.usize(..3)];
        let hold = self.any_time();
        self.tell_of(index, format_args!("begin {intent:?} for {hold:?}"));
        let (key, slot) = &mut self.slots[index];
        let begin = self.subject.store.begin(key, intent, hold).await.unwrap();
        let is_right = match (&begin, intent, slot.value(self.now), slot.hold(self.now)) {
            (Acquired::Found(found), Intent::Fill, Some(value), _) => found == value,
            (_, Intent::Fill, Some(_), _) => false,
            (Acquired::Lease(_), Intent::Write, _, _) | (Acquired::Lease(_), _, _, None) => true,
            (Acquired::Filling, Intent::Fill | Intent::Refresh, _, Some(Hold::Fill(_))) => true,
            (
                Acquired::Busy(_),
                Intent::Fill | Intent::Refresh,
                _,
                Some(Hold::Ticket(_) | Hold::Uncacheable),
            ) => true,
            _ => false,
        };
        assert!(is_right, "{begin:?} after {}", self.story);
        if let Acquired::Lease(lease) = begin {
            slot.given.push(lease.clone());
            let hold_of = if intent == Intent::Write { Hold::Ticket } else { Hold::Fill };
            slot.held = Some((hold_of(lease), Some(self.now + hold)));
        }
    }

    async fn commit(&mut self, index: usize) {
        let Some(lease) = self.any_lease(index) else { return };
        let (value, ttl) = (self.any_value(), self.any_ttl());
        self.tell_of(index, format_args!("commit {value:?} with {lease:?} for {ttl:?}"));
        let (key, slot) = &mut self.slots[index];
        let is_committed = self.subject.store.commit(key, &lease, value.clone(), ttl).await.unwrap();
        assert_eq!(is_committed, slot.is_current(&lease, self.now), "{}", self.story);
        if is_committed {
            slot.entry = Some((value, ttl.map(|ttl| self.now + ttl)));
            slot.held = None;
        }
    }

    async fn renew(&mut self, index: usize) {
        let Some(lease) = self.any_lease(index) else { return };
        let hold = self.any_time();
        self.tell_of(index, format_args!("renew {lease:?} for {hold:?}"));
        let (key, slot) = &mut self.slots[index];
        let is_renewed = self.subject.store.renew(key, &lease, hold).await.unwrap();
        assert_eq!(is_renewed, slot.is_current(&lease, self.now), "{}", self.story);
        if let (true, Some((_, until))) = (is_renewed, &mut slot.held) {
            *until = Some(self.now + hold);
        }
    }

    async fn abandon(&mut self, index: usize) {
        let Some(lease) = self.any_lease(index) else { return };
        let mark = self.rng.bool().then(|| self.any_time());
        let why = mark.map_or(Abandon::Failed, Abandon::Uncacheable);
        self.tell_of(index, format_args!("abandon {lease:?} as {why:?}"));
        let (key, slot) = &mut self.slots[index];
        self.subject.store.abandon(key, &lease, why).await.unwrap();
        if slot.is_current(&lease, self.now) {
            slot.held = mark.map(|mark| (Hold::Uncacheable, Some(self.now + mark)));
        }
    }

    /// In real time nothing is let run out: it would take too long, and never end when it was meant to.
    async fn wait(&mut self) {
        if self.subject.clock.is_some() {
            let time = self.any_time();
            self.tell(format_args!("wait {time:?}"));
            self.subject.advance(time).await;
            self.now += time;
        }
    }

    async fn compare(&self) {
        for (key, slot) in &self.slots {
            let expected = slot.value(self.now);
            assert_eq!(self.subject.get(key).await.as_ref(), expected, "{key} after {}", self.story);
            let is_there = self.subject.store.has(key).await.unwrap();
            assert_eq!(is_there, expected.is_some(), "`has` {key} after {}", self.story);
        }
    }

    fn tell_of(&mut self, index: usize, what: Arguments<'_>) {
        let _ = write!(self.story, "\n  {}: {what}", self.slots[index].0);
    }

    fn tell(&mut self, what: Arguments<'_>) {
        let _ = write!(self.story, "\n  {what}");
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

    /// One of the latest of a key, current or not.
    fn any_lease(&mut self, index: usize) -> Option<Lease> {
        let back = self.rng.usize(..3) * self.rng.usize(..2);
        self.slots[index].1.given.iter().rev().nth(back).cloned()
    }
}
