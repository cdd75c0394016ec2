//! The behaviour suite, run on the in-memory store, on a store of four functions inside `ProcessLocal`, and on a store that
//! breaks the rules.

#![cfg(all(feature = "memory", feature = "suite"))]
#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use larder_core::store::suite::{Subject, delete_wins_races_against_fills};
use larder_core::{
    Abandon, Acquired, CacheKey, CacheStore, Clock, Intent, KeySpace, Larder, Lease, LeaseStore, ManualClock,
    MemoryStore, ProcessLocal, StoreError,
};

type Entries = HashMap<String, (Bytes, Option<SystemTime>)>;

/// A minimal store, slow enough that other calls run between any two of its steps. Clones share their entries.
#[derive(Clone)]
struct Shelf {
    clock: ManualClock,
    entries: Arc<Mutex<Entries>>,
    /// The duration of a read, by tokio's clock.
    read_time: Duration,
}

impl Shelf {
    fn new(clock: &ManualClock) -> Self {
        Self { clock: clock.clone(), entries: Arc::default(), read_time: Duration::ZERO }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap()
    }

    fn is_valid(&self, expires: Option<SystemTime>) -> bool {
        expires.is_none_or(|expires| expires > self.clock.now())
    }
}

impl CacheStore for Shelf {
    async fn get(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        pause().await;
        if !self.read_time.is_zero() {
            tokio::time::sleep(self.read_time).await;
        }
        let found =
            self.entries().get(key.name()).filter(|entry| self.is_valid(entry.1)).map(|e| e.0.clone());
        pause().await;
        Ok(found)
    }

    async fn set(&self, key: &CacheKey, value: Bytes, ttl: Option<Duration>) -> Result<(), StoreError> {
        pause().await;
        self.entries().insert(key.name().to_owned(), (value, ttl.map(|ttl| self.clock.now() + ttl)));
        pause().await;
        Ok(())
    }

    async fn delete(&self, key: &CacheKey) -> Result<bool, StoreError> {
        pause().await;
        let removed = self.entries().remove(key.name());
        pause().await;
        Ok(removed.is_some_and(|(_, expires)| self.is_valid(expires)))
    }

    async fn delete_group(&self, group: &KeySpace) -> Result<u64, StoreError> {
        pause().await;
        let mut count = 0;
        self.entries().retain(|name, (_, expires)| {
            let goes = name.starts_with(group.head());
            count += u64::from(goes && self.is_valid(*expires));
            !goes
        });
        pause().await;
        Ok(count)
    }
}

mod shelf {
    use super::*;

    larder_core::store_suite!({
        let clock = ManualClock::new();
        Subject::with_clock(Shelf::new(&clock), clock)
    });
}

fn shelf_in_process() -> Subject<ProcessLocal<Shelf>> {
    let clock = ManualClock::new();
    let store = ProcessLocal::new(Shelf::new(&clock)).with_clock(Arc::new(clock.clone()));
    Subject::with_clock(store, clock).rounds(1_000)
}

mod in_process {
    use super::*;

    larder_core::store_suite!(shelf_in_process());
    larder_core::lease_suite!(shelf_in_process());
    larder_core::tag_suite!(shelf_in_process());
    larder_core::soft_suite!(shelf_in_process());
}

/// Soft evictions of a store that other processes, here other `ProcessLocal`s, share.
mod in_several_processes {
    use larder_core::tag::stale_since;

    use super::*;

    const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

    fn in_process(shelf: &Shelf) -> ProcessLocal<Shelf> {
        ProcessLocal::new(shelf.clone()).with_clock(Arc::new(shelf.clock.clone()))
    }

    fn keys(count: usize) -> Vec<CacheKey> {
        let space = KeySpace::new("p", Some("g")).unwrap();
        (0..count).map(|number| space.key(&number.to_string())).collect()
    }

    #[tokio::test]
    async fn stale_value_is_dropped_once_a_read_finds_another() {
        let shelf = Shelf::new(&ManualClock::new());
        let (here, there) = (in_process(&shelf), in_process(&shelf));
        for (number, key) in keys(5).iter().enumerate() {
            here.set(key, "1".into(), MINUTE).await.unwrap();
            here.evict_softly(key).await.unwrap();
            let stale = here.get(key).await.unwrap().and_then(|found| stale_since(&found));
            assert_eq!(stale.map(|(_, value)| value).as_deref(), Some(&b"1"[..]));
            there.set(key, "2".into(), MINUTE).await.unwrap();
            let found = match number {
                0 => here.get(key).await.unwrap(),
                1 => here.get_shared(key).await.unwrap(),
                2 => here.get_head(key, 100).await.unwrap().map(|head| head.bytes),
                3 => here.has(key).await.unwrap().then(|| "2".into()),
                _ => match here.begin(key, Intent::Fill, Duration::from_secs(5)).await.unwrap() {
                    Acquired::Found(found) => Some(found),
                    _ => None,
                },
            };
            assert_eq!(found.as_deref(), Some(&b"2"[..]), "{number}");
            assert!(there.delete(key).await.unwrap());
            assert_eq!(here.get(key).await.unwrap(), None, "{number}: it was evicted there");
            assert_eq!(here.get_head(key, 100).await.unwrap().map(|head| head.bytes), None, "{number}");
        }
    }

    #[tokio::test]
    async fn soft_eviction_of_a_value_with_an_unknown_expiry_removes_it() {
        let shelf = Shelf::new(&ManualClock::new());
        let (here, there) = (in_process(&shelf), in_process(&shelf));
        let keys = keys(2_000);
        let (first, last) = (&keys[0], &keys[1_999]);
        for key in &keys {
            here.set(key, "1".into(), MINUTE).await.unwrap();
        }
        for key in [first, last] {
            here.evict_softly(key).await.unwrap();
        }
        assert_eq!(here.get(first).await.unwrap(), None, "forgotten among later writes");
        assert!(here.get(last).await.unwrap().is_some(), "written last");
        shelf.clock.advance(Duration::from_secs(61));
        assert_eq!(here.get(last).await.unwrap(), None, "its time to live is over");
        // The expiry of a removed value doesn't apply to the value that another process writes next.
        for what in ["never written here", "deleted", "evicted softly", "group deleted"] {
            let key = &keys[1];
            match what {
                "deleted" => drop(here.delete(key).await.unwrap()),
                "evicted softly" => here.evict_softly(key).await.unwrap(),
                "group deleted" => drop(here.delete_group(&key.space()).await.unwrap()),
                _ => {}
            }
            there.set(key, "2".into(), Some(Duration::from_secs(1))).await.unwrap();
            here.evict_softly(key).await.unwrap();
            assert_eq!(here.get(key).await.unwrap(), None, "{what}");
            here.set(key, "1".into(), None).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn soft_eviction_of_a_group_takes_a_bounded_time() {
        let clock = ManualClock::new();
        for (milliseconds, all) in [(1, true), (100, false), (60_000, false)] {
            let read_time = Duration::from_millis(milliseconds);
            let store = in_process(&Shelf { read_time, ..Shelf::new(&clock) });
            let keys = keys(1_000);
            for key in &keys {
                store.set(key, "1".into(), MINUTE).await.unwrap();
            }
            let began = tokio::time::Instant::now();
            store.evict_group_softly(&keys[0].space()).await.unwrap();
            assert!(began.elapsed() < Duration::from_secs(1), "{read_time:?}: {:?}", began.elapsed());
            let mut kept = 0;
            for key in &keys {
                let found = store.inner().entries().contains_key(key.name());
                assert!(!found, "{key}: it left the store");
            }
            for key in keys.iter().take(if all { 1_000 } else { 0 }) {
                kept += usize::from(store.get(key).await.unwrap().is_some_and(|v| stale_since(&v).is_some()));
            }
            assert_eq!(kept, if all { 1_000 } else { 0 });
        }
    }
}

#[tokio::test]
async fn the_clock_of_the_builder_is_the_clock_of_its_store() {
    let clock = Arc::new(ManualClock::new());
    let builder = || Larder::builder().clock(clock.clone());
    let memory = builder().store(MemoryStore::new()).build();
    let wrapped = builder().store(ProcessLocal::new(MemoryStore::new())).build();
    for larder in [memory, wrapped] {
        let rates = larder.backend();
        rates.set("EUR", &1.08, 60).await;
        clock.advance(Duration::from_secs(59));
        assert!(rates.has("EUR").await, "a second is left");
        clock.advance(Duration::from_secs(1));
        assert!(!rates.has("EUR").await, "the minute is over");
    }
}

mod memory {
    use super::*;

    fn subject() -> Subject<MemoryStore> {
        let clock = ManualClock::new();
        Subject::with_clock(MemoryStore::new().with_clock(Arc::new(clock.clone())), clock).rounds(5_000)
    }

    larder_core::store_suite!(subject());
    larder_core::lease_suite!(subject());
    larder_core::tag_suite!(subject());
    larder_core::soft_suite!(subject());

    /// Run as by authors of stores on a server, whose clock can't be set.
    mod in_real_time {
        use super::*;

        larder_core::store_suite!(Subject::new(MemoryStore::new()));
        larder_core::lease_suite!(Subject::new(MemoryStore::new()));
        larder_core::tag_suite!(Subject::new(MemoryStore::new()));
    }
}

/// Lets other tasks run, for a random time.
async fn pause() {
    for _ in 0..fastrand::u8(..3) {
        tokio::task::yield_now().await;
    }
}

/// A store without fences, on which the race must fail: a suite that can't fail proves nothing.
struct Unfenced(Shelf);

impl CacheStore for Unfenced {
    async fn get(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        self.0.get(key).await
    }

    async fn set(&self, key: &CacheKey, value: Bytes, ttl: Option<Duration>) -> Result<(), StoreError> {
        self.0.set(key, value, ttl).await
    }

    async fn delete(&self, key: &CacheKey) -> Result<bool, StoreError> {
        self.0.delete(key).await
    }

    async fn delete_group(&self, group: &KeySpace) -> Result<u64, StoreError> {
        self.0.delete_group(group).await
    }
}

impl LeaseStore for Unfenced {
    async fn begin(&self, key: &CacheKey, intent: Intent, _: Duration) -> Result<Acquired, StoreError> {
        match self.get(key).await? {
            Some(found) if intent == Intent::Fill => Ok(Acquired::Found(found)),
            _ => Ok(Acquired::Lease(Lease::new([0; 16], [0; 8]))),
        }
    }

    async fn commit(
        &self,
        key: &CacheKey,
        _: &Lease,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, StoreError> {
        self.set(key, value, ttl).await?;
        Ok(true)
    }

    async fn renew(&self, _: &CacheKey, _: &Lease, _: Duration) -> Result<bool, StoreError> {
        Ok(true)
    }

    async fn abandon(&self, _: &CacheKey, _: &Lease, _: Abandon) -> Result<(), StoreError> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[should_panic(expected = "was evicted")]
async fn race_detects_a_store_without_fences() {
    let clock = ManualClock::new();
    delete_wins_races_against_fills(&Subject::with_clock(Unfenced(Shelf::new(&clock)), clock).rounds(2_000))
        .await;
}

#[test]
fn every_case_is_in_a_list() {
    let source = include_str!("../src/store/suite.rs");
    let listed = |case: &str| source.lines().filter(|line| line.trim() == case).count() == 1;
    let cases = source.lines().filter_map(|line| line.strip_prefix("pub async fn ")?.split('<').next());
    for case in cases {
        assert!(listed(case), "{case} is in no list");
    }
}
