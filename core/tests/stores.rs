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

/// A minimal store, slow enough that other calls run between any two of its steps.
struct Shelf {
    clock: ManualClock,
    entries: Mutex<HashMap<String, (Bytes, Option<SystemTime>)>>,
}

impl Shelf {
    fn new(clock: &ManualClock) -> Self {
        Self { clock: clock.clone(), entries: Mutex::default() }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, (Bytes, Option<SystemTime>)>> {
        self.entries.lock().unwrap()
    }

    fn is_valid(&self, expires: Option<SystemTime>) -> bool {
        expires.is_none_or(|expires| expires > self.clock.now())
    }
}

impl CacheStore for Shelf {
    async fn get(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        pause().await;
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
