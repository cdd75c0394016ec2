//! The behaviour suite: tests of the rules for every store, which authors of stores run on theirs.
//!
//! [`store_suite!`](crate::store_suite) expands to one test for each rule of [`CacheStore`],
//! [`lease_suite!`](crate::lease_suite) to one for each rule of [`LeaseStore`], [`tag_suite!`](crate::tag_suite) to one for
//! each rule of tags, and [`soft_suite!`](crate::soft_suite) to one for each rule of soft evictions. All take a [`Subject`]:
//! a new or shared store, and the clock by which it expires entries. Every test uses a prefix of its own and removes its
//! entries, so that all of them may run concurrently on one server.
//!
//! In the `Cargo.toml` of a store:
//!
//! ```toml
//! [dev-dependencies]
//! larder-core = { version = "0.1", features = ["suite"] }
//! tokio = { version = "1", features = ["macros", "rt-multi-thread", "time"] }
//! ```
//!
//! # Example
//!
//! A store of four functions, its tests, and the tests of the fill protocol that [`ProcessLocal`](crate::ProcessLocal) adds:
//!
//! ```
//! use std::collections::HashMap;
//! use std::sync::{Arc, Mutex};
//! use std::time::{Duration, SystemTime};
//!
//! use bytes::Bytes;
//! use larder_core::store::suite::{self, Subject};
//! use larder_core::{CacheKey, CacheStore, Clock, ProcessLocal, KeySpace, ManualClock, StoreError};
//!
//! /// Keeps everything on one shelf.
//! struct Shelf {
//!     clock: Arc<dyn Clock>,
//!     entries: Mutex<HashMap<String, (Bytes, Option<SystemTime>)>>,
//! }
//!
//! impl Shelf {
//!     fn new(clock: &ManualClock) -> Self {
//!         Self { clock: Arc::new(clock.clone()), entries: Mutex::default() }
//!     }
//!
//!     fn is_valid(&self, expires: &Option<SystemTime>) -> bool {
//!         expires.is_none_or(|expires| expires > self.clock.now())
//!     }
//! }
//!
//! impl CacheStore for Shelf {
//!     async fn get(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
//!         let entries = self.entries.lock().unwrap();
//!         let entry = entries.get(key.name()).filter(|(_, expires)| self.is_valid(expires));
//!         Ok(entry.map(|(value, _)| value.clone()))
//!     }
//!
//!     async fn set(&self, key: &CacheKey, value: Bytes, ttl: Option<Duration>) -> Result<(), StoreError> {
//!         let expires = ttl.map(|ttl| self.clock.now() + ttl);
//!         self.entries.lock().unwrap().insert(key.name().to_owned(), (value, expires));
//!         Ok(())
//!     }
//!
//!     async fn delete(&self, key: &CacheKey) -> Result<bool, StoreError> {
//!         let removed = self.entries.lock().unwrap().remove(key.name());
//!         Ok(removed.is_some_and(|(_, expires)| self.is_valid(&expires)))
//!     }
//!
//!     async fn delete_group(&self, group: &KeySpace) -> Result<u64, StoreError> {
//!         let mut count = 0;
//!         self.entries.lock().unwrap().retain(|name, (_, expires)| {
//!             let goes = name.starts_with(group.head());
//!             count += u64::from(goes && self.is_valid(expires));
//!             !goes
//!         });
//!         Ok(count)
//!     }
//! }
//!
//! // In a test module, these two calls are enough.
//! larder_core::store_suite!({
//!     let clock = ManualClock::new();
//!     Subject::with_clock(Shelf::new(&clock), clock)
//! });
//! larder_core::lease_suite!({
//!     let clock = ManualClock::new();
//!     Subject::with_clock(ProcessLocal::new(Shelf::new(&clock)).with_clock(Arc::new(clock.clone())), clock)
//! });
//!
//! // Without a test runner, this runs all tests one after the other.
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let clock = ManualClock::new();
//! suite::run(&Subject::with_clock(Shelf::new(&clock), clock)).await;
//! # });
//! ```

#![expect(clippy::panic, clippy::unwrap_used, reason = "assertions are its purpose")]

mod entries;
mod groups;
mod late_reads;
mod leases;
mod model;
mod races;
mod revocations;
mod soft;
mod tags;
mod writes;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{Abandon, Acquired, CacheStore, Intent, Lease, LeaseStore};
use crate::clock::ManualClock;
use crate::key::{CacheKey, KeySpace};

pub use entries::*;
pub use groups::*;
pub use late_reads::*;
pub use leases::*;
pub use model::random_calls_match_the_model;
pub use races::*;
pub use revocations::*;
pub use soft::*;
pub use tags::*;
pub use writes::*;

/// A TTL that never ends during a test.
const LONG: Duration = Duration::from_secs(60);

/// A TTL that a test waits for. A test may be slow, so no test asserts that an entry is still there within it.
const SHORT: Duration = Duration::from_millis(150);

/// A wait after which [`SHORT`] is over, also for a store that counts whole milliseconds or whose clock differs slightly.
const AFTER_SHORT: Duration = Duration::from_millis(250);

/// A store under test, and its clock.
#[derive(Debug)]
pub struct Subject<S> {
    store: Arc<S>,
    /// Another process's view of the same entries, or the same store.
    other: Arc<S>,
    clock: Option<ManualClock>,
    rounds: u32,
    prefix: String,
    lose: Option<Lose>,
}

/// The state that a store on a server may lose at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The tag clock of a prefix.
    Clock,
    /// The tag table of a prefix.
    Table,
    /// Both.
    Both,
}

/// A callback that makes the server lose a part of a prefix's state.
struct Lose(Box<dyn Fn(Loss, String) -> BoxFuture<'static, ()> + Send + Sync>);

impl fmt::Debug for Lose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lose")
    }
}

impl<S: CacheStore> Subject<S> {
    /// Creates a subject that uses real time. Tests sleep for up to 250 ms at a time to let entries expire.
    #[must_use]
    pub fn new(store: S) -> Self {
        let store = Arc::new(store);
        Self {
            other: Arc::clone(&store),
            store,
            clock: None,
            rounds: 200,
            prefix: format!("suite:{:016x}", fastrand::u64(..)),
            lose: None,
        }
    }

    /// Creates a subject that uses a manual clock. Tests advance it, and never sleep.
    #[must_use]
    pub fn with_clock(store: S, clock: ManualClock) -> Self {
        Self { clock: Some(clock), ..Self::new(store) }
    }

    /// Sets another process's view of the same entries, for stores that are shared between processes. For a store that keeps
    /// copies, use one that receives changes late.
    #[must_use]
    pub fn beside(self, other: S) -> Self {
        Self { other: Arc::new(other), ..self }
    }

    /// Sets the number of evictions in each race. The default is 200. The comparison with the model runs a tenth as many times.
    #[must_use]
    pub fn rounds(mut self, rounds: u32) -> Self {
        self.rounds = rounds;
        self
    }

    /// Sets a callback that makes the server lose the tag clock or the tag table of a prefix, for stores on a server.
    #[must_use]
    pub fn losing<F>(self, lose: impl Fn(Loss, String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let lose = Lose(Box::new(move |loss, prefix| Box::pin(lose(loss, prefix))));
        Self { lose: Some(lose), ..self }
    }

    /// Returns the space of the keys without a group, under this test's prefix.
    fn ungrouped(&self) -> KeySpace {
        KeySpace::new(&self.prefix, None).unwrap()
    }

    fn group(&self, group: &str) -> KeySpace {
        KeySpace::new(&self.prefix, Some(group)).unwrap()
    }

    /// Returns a space of another prefix, whose name begins with this test's prefix.
    fn elsewhere(&self, group: Option<&str>) -> KeySpace {
        KeySpace::new(&format!("{}x", self.prefix), group).unwrap()
    }

    async fn advance(&self, by: Duration) {
        match &self.clock {
            Some(clock) => clock.advance(by),
            None => tokio::time::sleep(by).await,
        }
    }

    async fn get(&self, key: &CacheKey) -> Option<Bytes> {
        self.store.get(key).await.unwrap()
    }

    async fn set(&self, key: &CacheKey, value: &'static str) {
        self.store.set(key, Bytes::from_static(value.as_bytes()), Some(LONG)).await.unwrap();
    }

    async fn holds(&self, key: &CacheKey, value: &str, why: &str) {
        assert_eq!(self.get(key).await.as_deref(), Some(value.as_bytes()), "{key}: {why}");
        assert!(self.store.has(key).await.unwrap(), "`has` disagrees with `get` on {key}: {why}");
        let is_found = self.store.try_get(key).is_some() || !self.store.finds_at_once();
        assert!(is_found, "`try_get` disagrees with `get` on {key}, although the store finds at once: {why}");
    }

    async fn holds_nothing(&self, key: &CacheKey, why: &str) {
        assert_eq!(self.get(key).await, None, "{key}: {why}");
        assert!(!self.store.has(key).await.unwrap(), "`has` disagrees with `get` on {key}: {why}");
    }

    /// Reads until the store has a copy, at most this many times. Returns `true` if it has one.
    async fn warm(store: &S, key: &CacheKey, times: u32) -> bool {
        for _ in 0..times {
            let _ = store.get(key).await.unwrap();
            if store.try_get(key).is_some() {
                return true;
            }
            tokio::task::yield_now().await;
        }
        false
    }

    async fn clean_up(&self) {
        self.store.delete_group(&self.ungrouped()).await.unwrap();
        self.store.delete_group(&self.elsewhere(None)).await.unwrap();
    }
}

impl<S: LeaseStore> Subject<S> {
    async fn begin(&self, key: &CacheKey, intent: Intent) -> Acquired {
        self.store.begin(key, intent, LONG).await.unwrap()
    }

    async fn lease(&self, key: &CacheKey, intent: Intent) -> Lease {
        match self.begin(key, intent).await {
            Acquired::Lease(lease) => lease,
            other => panic!("`begin({intent:?})` should have granted a lease of {key}, not {other:?}"),
        }
    }

    async fn commit(&self, key: &CacheKey, lease: &Lease, value: &'static str) -> bool {
        let value = Bytes::from_static(value.as_bytes());
        self.store.commit(key, lease, value, Some(LONG)).await.unwrap()
    }

    async fn abandon(&self, key: &CacheKey, lease: &Lease, why: Abandon) {
        self.store.abandon(key, lease, why).await.unwrap();
    }

    async fn is_filling(&self, key: &CacheKey, why: &str) {
        for intent in [Intent::Fill, Intent::Refresh] {
            let begin = self.begin(key, intent).await;
            assert!(matches!(begin, Acquired::Filling), "{intent:?} should be Filling: {why}, not {begin:?}");
        }
    }

    async fn is_busy(&self, key: &CacheKey, why: &str) {
        for intent in [Intent::Fill, Intent::Refresh] {
            let begin = self.begin(key, intent).await;
            assert!(matches!(begin, Acquired::Busy(_)), "{intent:?} should be Busy: {why}, not {begin:?}");
        }
    }

    /// Asserts that the key is free, and leaves it free.
    async fn is_free(&self, key: &CacheKey, why: &str) {
        match self.begin(key, Intent::Refresh).await {
            Acquired::Lease(lease) => self.abandon(key, &lease, Abandon::Failed).await,
            other => panic!("{key} should be free: {why}, not {other:?}"),
        }
    }
}

/// Turns a list of cases into a function that runs them all, and a macro with a test for each.
macro_rules! cases {
    ($(#[$doc:meta])* $bound:ident, $run:ident, $tests:ident, $dollar:tt: $($case:ident)*) => {
        $(#[$doc])*
        ///
        /// Runs all cases one after the other, on the current runtime.
        ///
        /// # Panics
        ///
        /// Panics if the store breaks a rule or returns an error.
        pub async fn $run<S: $bound>(subject: &Subject<S>) {
            $($case(subject).await;)*
        }

        $(#[$doc])*
        ///
        /// Takes an expression that creates a [`Subject`](crate::store::suite::Subject). It may await, and is evaluated once
        /// for each test. The tests are in a module with the name of this macro.
        #[macro_export]
        macro_rules! $tests {
            ($dollar subject:expr) => {
                mod $tests {
                    #[allow(unused_imports, reason = "the expression may need nothing")]
                    use super::*;
                    $(
                        #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                        async fn $case() {
                            let subject = $dollar subject;
                            $dollar crate::store::suite::$case(&subject).await;
                        }
                    )*
                }
            };
        }
    };
}

cases! {
    /// The rules of [`CacheStore`].
    CacheStore, run, store_suite, $:
    written_value_is_read
    any_bytes_are_a_value
    large_value_is_read
    head_is_the_beginning_of_the_value
    range_belongs_to_the_value_with_the_given_head
    any_characters_are_a_key
    similar_keys_are_distinct
    set_replaces_the_value
    set_replaces_the_ttl
    entry_expires_after_its_ttl
    entry_without_a_ttl_does_not_expire
    zero_ttl_removes_the_entry
    very_long_ttl_is_accepted
    delete_returns_whether_a_valid_entry_was_there
    delete_of_an_expired_entry_returns_false
    delete_keeps_other_keys
    delete_group_removes_and_counts_entries
    delete_group_does_not_count_expired_entries
    delete_group_keeps_other_groups
    deleting_a_prefix_removes_its_groups_and_ungrouped_keys
    group_is_filled_again_after_its_eviction
    large_group_is_removed_as_a_whole
}

cases! {
    /// The rules of [`LeaseStore`].
    LeaseStore, run_leases, lease_suite, $:
    fill_finds_a_valid_entry
    fill_does_not_find_an_expired_entry
    one_caller_fills
    lease_commits_once
    committed_entry_expires_after_its_ttl
    commit_with_zero_ttl_removes_the_entry
    unknown_lease_commits_nothing
    lease_is_valid_for_its_key_only
    entry_stays_readable_during_a_refresh
    refresh_never_returns_found
    failed_fill_frees_the_key
    uncacheable_mark_makes_callers_busy_until_it_expires
    write_replaces_an_uncacheable_mark
    abandoning_a_lost_lease_has_no_effect
    lease_expires
    renewed_lease_stays_current
    lost_lease_is_not_renewed
    delete_revokes_a_fill
    delete_of_an_absent_entry_revokes_a_fill
    delete_group_revokes_a_fill
    deleting_a_prefix_revokes_a_fill
    set_revokes_a_fill
    evictions_remove_an_uncacheable_mark
    evictions_keep_other_leases
    write_lease_replaces_a_fill
    write_lease_keeps_the_entry
    readers_do_not_wait_for_a_write
    read_under_a_lease_is_not_older_than_the_lease
    read_that_began_before_a_lease_is_not_kept_under_it
    abandoned_write_lease_frees_the_key
    evictions_revoke_a_write_lease
    neither_of_two_overlapping_writes_commits
    latest_of_two_writes_commits
    random_calls_match_the_model
    delete_wins_races_against_fills
    delete_group_wins_races_against_fills
    deleting_a_prefix_wins_races_against_fills
    writes_win_races_against_fills
}

cases! {
    /// The rules of tags, for stores that keep tagged entries.
    LeaseStore, run_tags, tag_suite, $:
    tagged_value_comes_back
    parts_of_a_tagged_value_are_parts_of_the_value
    any_bytes_are_a_value_beside_tagged_ones
    tag_evicts_every_entry_that_carries_it
    tags_of_another_prefix_are_apart
    evicted_entry_is_filled_again
    eviction_during_a_fill_refuses_it
    tagged_commit_needs_its_lease
    eviction_outlasts_any_number_of_others
    soft_eviction_leaves_a_stale_entry
    eviction_by_another_process_is_seen
    lost_clock_or_table_is_a_miss
    tag_evictions_win_races_against_fills
}

cases! {
    /// The rules of soft evictions of keys and groups, for stores that keep stale entries.
    LeaseStore, run_soft, soft_suite, $:
    softly_evicted_value_is_stale
    softly_evicted_value_keeps_its_bytes
    soft_eviction_revokes_leases
    hard_eviction_removes_stale_values
    stale_value_expires_after_its_ttl
    any_number_of_soft_evictions_leaves_nothing_fresh
    soft_evictions_of_keys_and_tags_go_together
    soft_eviction_by_another_process_is_seen
    soft_evictions_win_races_against_fills
}

fn bytes_of(version: u64) -> Bytes {
    Bytes::copy_from_slice(&version.to_be_bytes())
}
