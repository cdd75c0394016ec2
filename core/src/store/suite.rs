//! The behaviour suite: what every store must do, as tests that authors of stores run on theirs.
//!
//! [`store_suite!`](crate::store_suite) expands to one test for each rule of [`CacheStore`], and
//! [`lease_suite!`](crate::lease_suite) to one for each rule of [`LeaseStore`]. Both take a [`Subject`]: a fresh or shared
//! store, and how to let time pass for it. Every test works under a prefix of its own, so that all of them may run at
//! once on one server, and removes what it wrote.
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
//! // In a test module, these two lines are all it takes.
//! larder_core::store_suite!({
//!     let clock = ManualClock::new();
//!     Subject::with_clock(Shelf::new(&clock), clock)
//! });
//! larder_core::lease_suite!({
//!     let clock = ManualClock::new();
//!     Subject::with_clock(ProcessLocal::new(Shelf::new(&clock), Arc::new(clock.clone())), clock)
//! });
//!
//! // The same, all in a row, where there is no test runner.
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let clock = ManualClock::new();
//! suite::run(&Subject::with_clock(Shelf::new(&clock), clock)).await;
//! # });
//! ```

#![expect(clippy::panic, clippy::unwrap_used, reason = "assertions are its purpose")]

mod model;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::{Abandon, Begin, CacheStore, Intent, Lease, LeaseStore};
use crate::clock::ManualClock;
use crate::key::{CacheKey, KeySpace};

pub use model::any_calls_in_any_order;

/// Long enough that it never ends during a test.
const LONG: Duration = Duration::from_secs(60);

/// Short enough to wait for. A test may be slow, so nothing is asserted to be still there within it.
const SHORT: Duration = Duration::from_millis(150);

/// After this, [`SHORT`] is over, also for stores that count in whole milliseconds and clocks that disagree a little.
const AFTER_SHORT: Duration = Duration::from_millis(250);

/// A store under test, and how time passes for it.
#[derive(Debug)]
pub struct Subject<S> {
    store: Arc<S>,
    /// Another process's view of the same entries, or the same store.
    other: Arc<S>,
    clock: Option<ManualClock>,
    rounds: u32,
    prefix: String,
}

impl<S: CacheStore> Subject<S> {
    /// A store in real time: to let something expire, tests sleep, for up to 250 ms at a time.
    #[must_use]
    pub fn new(store: S) -> Self {
        let store = Arc::new(store);
        Self {
            other: Arc::clone(&store),
            store,
            clock: None,
            rounds: 200,
            prefix: format!("suite:{:016x}", fastrand::u64(..)),
        }
    }

    /// A store that goes by a manual clock: tests move it, and never sleep.
    #[must_use]
    pub fn with_clock(store: S, clock: ManualClock) -> Self {
        Self { clock: Some(clock), ..Self::new(store) }
    }

    /// Another process's view of the same entries, for stores that are shared between processes. Give one that hears of
    /// changes late to a store that keeps copies.
    #[must_use]
    pub fn beside(self, other: S) -> Self {
        Self { other: Arc::new(other), ..self }
    }

    /// How many evictions a race runs through, 200 unless told, and a tenth of that many times calls at random.
    #[must_use]
    pub fn rounds(mut self, rounds: u32) -> Self {
        self.rounds = rounds;
        self
    }

    /// Ungrouped keys of this test's prefix.
    fn ungrouped(&self) -> KeySpace {
        KeySpace::new(&self.prefix, None).unwrap()
    }

    fn group(&self, group: &str) -> KeySpace {
        KeySpace::new(&self.prefix, Some(group)).unwrap()
    }

    /// Another prefix, which begins with the same letters.
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
    }

    async fn holds_nothing(&self, key: &CacheKey, why: &str) {
        assert_eq!(self.get(key).await, None, "{key}: {why}");
        assert!(!self.store.has(key).await.unwrap(), "`has` disagrees with `get` on {key}: {why}");
    }

    /// Reads until the store has a copy, so many times at most. Whether it has one.
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
    async fn begin(&self, key: &CacheKey, intent: Intent) -> Begin {
        self.store.begin(key, intent, LONG).await.unwrap()
    }

    async fn lease(&self, key: &CacheKey, intent: Intent) -> Lease {
        match self.begin(key, intent).await {
            Begin::Lease(lease) => lease,
            other => panic!("`begin({intent:?})` should have given a lease of {key}, not {other:?}"),
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
            assert!(matches!(begin, Begin::Filling), "{intent:?} should be Filling: {why}, not {begin:?}");
        }
    }

    async fn is_busy(&self, key: &CacheKey, why: &str) {
        for intent in [Intent::Fill, Intent::Refresh] {
            let begin = self.begin(key, intent).await;
            assert!(matches!(begin, Begin::Busy), "{intent:?} should be Busy: {why}, not {begin:?}");
        }
    }

    /// Asserts that nobody holds the key, and leaves it so.
    async fn is_free(&self, key: &CacheKey, why: &str) {
        match self.begin(key, Intent::Refresh).await {
            Begin::Lease(lease) => self.abandon(key, &lease, Abandon::Failed).await,
            other => panic!("{key} should be free: {why}, not {other:?}"),
        }
    }
}

/// Makes a list of cases into a function that runs them all and a macro with a test for each.
macro_rules! cases {
    ($(#[$doc:meta])* $bound:ident, $run:ident, $tests:ident, $dollar:tt: $($case:ident)*) => {
        $(#[$doc])*
        ///
        /// Runs all cases one after the other, on the current runtime.
        ///
        /// # Panics
        ///
        /// When the store breaks a rule, or answers with an error.
        pub async fn $run<S: $bound>(subject: &Subject<S>) {
            $($case(subject).await;)*
        }

        $(#[$doc])*
        ///
        /// Takes an expression that makes a [`Subject`](crate::store::suite::Subject). It may await, and is evaluated once
        /// for each test. The tests land in a module named like this macro.
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
    a_value_comes_back
    any_bytes_are_a_value
    a_large_value_comes_back
    the_head_of_a_value_is_its_beginning
    a_range_is_of_the_value_that_begins_so
    any_characters_are_a_key
    look_alike_keys_are_apart
    set_replaces
    set_replaces_the_time_to_live
    a_time_to_live_ends
    no_time_to_live_is_no_end
    a_time_to_live_of_zero_removes
    a_very_long_time_to_live_is_accepted
    delete_tells_whether_something_was_there
    delete_does_not_count_what_expired
    delete_leaves_the_neighbours
    delete_group_counts_and_removes
    delete_group_does_not_count_what_expired
    delete_group_leaves_other_groups
    a_prefix_is_every_group_and_every_ungrouped_key
    a_group_fills_again_after_its_eviction
    a_large_group_goes_at_once
}

cases! {
    /// The rules of [`LeaseStore`].
    LeaseStore, run_leases, lease_suite, $:
    fill_finds_what_is_there
    fill_does_not_find_what_expired
    one_caller_fills
    a_fill_is_committed_once
    a_commit_has_its_time_to_live
    a_commit_of_zero_time_to_live_removes
    an_unknown_lease_commits_nothing
    a_lease_is_good_for_its_key_only
    the_entry_stays_during_a_refresh
    a_refresh_never_finds
    a_failed_fill_frees_the_key
    an_uncacheable_answer_is_remembered_for_a_while
    an_uncacheable_answer_can_be_overwritten
    a_lost_lease_is_abandoned_in_vain
    a_lease_runs_out
    a_renewed_lease_lives_on
    a_lost_lease_is_not_renewed
    delete_revokes_a_fill
    delete_revokes_where_nothing_is_there
    delete_group_revokes_a_fill
    a_wiped_prefix_revokes_a_fill
    set_revokes_a_fill
    evictions_end_an_uncacheable_mark
    evictions_leave_other_leases
    a_write_ticket_replaces_a_fill
    a_write_ticket_leaves_the_entry_alone
    readers_do_not_wait_for_a_write
    a_read_under_a_lease_is_not_older_than_the_lease
    a_read_that_began_before_a_lease_is_not_kept_under_it
    a_released_ticket_frees_the_key
    evictions_revoke_a_ticket
    of_two_overlapping_writes_neither_commits
    the_latest_of_two_writes_commits
    any_calls_in_any_order
    racing_against_delete
    racing_against_delete_group
    racing_against_a_wiped_prefix
    racing_against_writes
}

/// `get` answers what `set` wrote, in a group and outside, and nothing for a key never written.
pub async fn a_value_comes_back<S: CacheStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        let key = space.key("greeting");
        subject.holds_nothing(&key, "never written").await;
        subject.set(&key, "hello").await;
        subject.holds(&key, "hello", "just written").await;
        subject.holds_nothing(&space.key("other"), "never written").await;
    }
    subject.clean_up().await;
}

/// Values are bytes: empty, with zeros and line ends, not UTF-8.
pub async fn any_bytes_are_a_value<S: CacheStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("bytes");
    let all: Vec<u8> = (0..=255).collect();
    for value in
        [Bytes::new(), Bytes::from_static(b"\0"), Bytes::from_static(b"a\r\n$-1\r\n\0\xff"), Bytes::from(all)]
    {
        subject.store.set(&key, value.clone(), Some(LONG)).await.unwrap();
        assert_eq!(subject.get(&key).await, Some(value), "not the bytes that were written");
        assert!(subject.store.has(&key).await.unwrap(), "`has` must count an empty value, too");
    }
    assert!(subject.store.delete(&key).await.unwrap());
    subject.clean_up().await;
}

/// A value of a megabyte comes back whole.
pub async fn a_large_value_comes_back<S: CacheStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("large");
    let value: Bytes = (0..1_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    subject.store.set(&key, value.clone(), Some(LONG)).await.unwrap();
    assert!(subject.get(&key).await == Some(value), "a value of 1 MB did not come back as it was");
    subject.clean_up().await;
}

/// `get_head` answers the beginning and the length of what `get` answers, and nothing where that answers nothing.
pub async fn the_head_of_a_value_is_its_beginning<S: CacheStore>(subject: &Subject<S>) {
    const LIMIT: usize = 100;
    for space in [subject.ungrouped(), subject.group("g")] {
        let key = space.key("head");
        let head = async || subject.store.get_head(&key, LIMIT).await.unwrap();
        assert_eq!(head().await, None, "never written");
        for length in [0, 1, LIMIT - 1, LIMIT, LIMIT + 1, 10_000] {
            let value: Bytes = (0..length).map(|at| at.to_le_bytes()[0]).collect();
            subject.store.set(&key, value.clone(), Some(LONG)).await.unwrap();
            let Some(found) = head().await else { panic!("no head of a value of {length} bytes") };
            assert_eq!(found.length, length, "the length of the whole value");
            assert!(found.bytes.len() >= length.min(LIMIT), "less than the limit of {length} bytes");
            assert!(value.starts_with(&found.bytes), "not the beginning of {length} bytes");
        }
        subject.store.delete(&key).await.unwrap();
        assert_eq!(head().await, None, "deleted");
        subject.set(&key, "again").await;
        subject.store.delete_group(&space).await.unwrap();
        assert_eq!(head().await, None, "its group was deleted");
    }
    subject.clean_up().await;
}

/// `get_range` answers bytes of the value that begins as asked, and nothing once there is another or none.
pub async fn a_range_is_of_the_value_that_begins_so<S: CacheStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        let key = space.key("range");
        let (old, new) = (Bytes::from_static(b"old: 0123456789"), Bytes::from_static(b"new: 0123456789"));
        let cut = async |head: &'static [u8], range| {
            subject.store.get_range(&key, &Bytes::from_static(head), range).await.unwrap()
        };
        assert_eq!(cut(b"old", 5..8).await, None, "never written");
        subject.store.set(&key, old.clone(), Some(LONG)).await.unwrap();
        for (range, expected) in [
            (0..3, Some("old")),
            (5..8, Some("012")),
            (14..15, Some("9")),
            (0..15, Some("old: 0123456789")),
            (5..5, Some("")),
            (0..0, Some("")),
            (14..16, None),
            (20..21, None),
        ] {
            let found = cut(b"old", range.clone()).await;
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{range:?}");
        }
        assert_eq!(cut(b"", 5..8).await.as_deref(), Some(&b"012"[..]), "every value begins with nothing");
        subject.store.set(&key, new, Some(LONG)).await.unwrap();
        assert_eq!(cut(b"old", 5..8).await, None, "a value that begins otherwise");
        assert_eq!(cut(b"new", 5..8).await.as_deref(), Some(&b"012"[..]));
        subject.store.delete(&key).await.unwrap();
        assert_eq!(cut(b"", 5..8).await, None, "deleted");
        subject.store.set(&key, old, Some(LONG)).await.unwrap();
        subject.store.delete_group(&space).await.unwrap();
        assert_eq!(cut(b"old", 5..8).await, None, "its group was deleted");
    }
    subject.clean_up().await;
}

/// Keys hold any character, and may be as long as they get.
pub async fn any_characters_are_a_key<S: CacheStore>(subject: &Subject<S>) {
    let long = "long/".repeat(1000);
    let longer = format!("{long}er");
    let suffixes = [
        "",
        " ",
        "a b",
        "a\r\nb",
        "\0",
        "*",
        "?[a-z]",
        "{x}",
        "%",
        "\\",
        "'\"",
        "a:b",
        "|",
        "grüße:世界:🦀",
        &long,
        &longer,
    ];
    for space in [subject.ungrouped(), subject.group("g"), subject.group("größe")] {
        for suffix in suffixes {
            let key = space.key(suffix);
            subject.store.set(&key, Bytes::from(suffix.to_owned()), Some(LONG)).await.unwrap();
        }
        for suffix in suffixes {
            subject.holds(&space.key(suffix), suffix, "written under an unusual key").await;
        }
        for suffix in suffixes {
            assert!(
                subject.store.delete(&space.key(suffix)).await.unwrap(),
                "{suffix:?} could not be deleted"
            );
            subject.holds_nothing(&space.key(suffix), "deleted").await;
        }
    }
    subject.clean_up().await;
}

/// The same suffix in another group, in no group or under another prefix is another key.
pub async fn look_alike_keys_are_apart<S: CacheStore>(subject: &Subject<S>) {
    let spaces = [
        (subject.ungrouped(), "ungrouped"),
        (subject.group("a"), "group a"),
        (subject.group("ab"), "group ab"),
        (subject.group("A"), "group A"),
        (subject.elsewhere(None), "elsewhere"),
        (subject.elsewhere(Some("a")), "elsewhere, group a"),
    ];
    for (space, value) in &spaces {
        subject.set(&space.key("same"), value).await;
    }
    for (space, value) in &spaces {
        subject.holds(&space.key("same"), value, "others have the same suffix").await;
        for near in ["sam", "same:", "same:7", "Same"] {
            subject.holds_nothing(&space.key(near), "only a similar key was written").await;
        }
    }
    subject.clean_up().await;
}

/// `set` writes whatever was there.
pub async fn set_replaces<S: CacheStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    for value in ["first", "second, which is longer", ""] {
        subject.set(&key, value).await;
        subject.holds(&key, value, "the latest `set`").await;
    }
    assert_eq!(subject.store.delete_group(&key.space()).await.unwrap(), 1, "three writes are one entry");
    subject.clean_up().await;
}

/// The time to live is that of the latest write, not of the one before.
pub async fn set_replaces_the_time_to_live<S: CacheStore>(subject: &Subject<S>) {
    let (longer, endless, shorter) = (
        subject.group("g").key("longer"),
        subject.ungrouped().key("endless"),
        subject.group("g").key("shorter"),
    );
    let value = Bytes::from_static(b"v");
    for (key, first, second) in
        [(&longer, Some(SHORT), Some(LONG)), (&endless, Some(SHORT), None), (&shorter, None, Some(SHORT))]
    {
        subject.store.set(key, value.clone(), first).await.unwrap();
        subject.store.set(key, value.clone(), second).await.unwrap();
    }
    subject.advance(AFTER_SHORT).await;
    subject.holds(&longer, "v", "the second write gave it a longer life").await;
    subject.holds(&endless, "v", "the second write gave it an endless life").await;
    subject.holds_nothing(&shorter, "the second write gave it a shorter life").await;
    subject.clean_up().await;
}

/// An entry is there within its time to live and gone after it.
pub async fn a_time_to_live_ends<S: CacheStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        let (brief, lasting) = (space.key("brief"), space.key("lasting"));
        subject.store.set(&brief, Bytes::from_static(b"v"), Some(SHORT)).await.unwrap();
        subject.store.set(&lasting, Bytes::from_static(b"v"), Some(LONG)).await.unwrap();
        subject.holds(&lasting, "v", "its time is not over").await;
        subject.advance(AFTER_SHORT).await;
        subject.holds_nothing(&brief, "its time to live is over").await;
        subject.holds(&lasting, "v", "its time is not over").await;
    }
    subject.clean_up().await;
}

/// Without a time to live an entry stays.
pub async fn no_time_to_live_is_no_end<S: CacheStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        let (key, brief) = (space.key("k"), space.key("brief"));
        subject.store.set(&key, Bytes::from_static(b"v"), None).await.unwrap();
        // What comes and goes in the same group must not take it along.
        subject.store.set(&brief, Bytes::from_static(b"v"), Some(SHORT)).await.unwrap();
        subject.advance(AFTER_SHORT).await;
        subject.holds(&key, "v", "it has no time to live").await;
    }
    subject.clean_up().await;
}

/// A write that is already over removes the entry.
pub async fn a_time_to_live_of_zero_removes<S: CacheStore>(subject: &Subject<S>) {
    for key in [subject.ungrouped().key("k"), subject.group("g").key("k")] {
        subject.store.set(&key, Bytes::from_static(b"v"), Some(Duration::ZERO)).await.unwrap();
        subject.holds_nothing(&key, "it was written with no time to live").await;
        subject.set(&key, "old").await;
        subject.store.set(&key, Bytes::from_static(b"v"), Some(Duration::ZERO)).await.unwrap();
        subject.holds_nothing(&key, "it was overwritten with no time to live").await;
        assert!(!subject.store.delete(&key).await.unwrap(), "there was nothing to delete");
    }
    subject.clean_up().await;
}

/// A time to live that is too long for the store's calendar is as good as none.
pub async fn a_very_long_time_to_live_is_accepted<S: CacheStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    for ttl in [Duration::from_secs(400 * 24 * 3600), Duration::from_secs(100 * 365 * 24 * 3600)] {
        subject.store.set(&key, Bytes::from_static(b"v"), Some(ttl)).await.unwrap();
        subject.holds(&key, "v", "its time is far off").await;
    }
    subject.clean_up().await;
}

/// `delete` is true once, and false when nothing was there.
pub async fn delete_tells_whether_something_was_there<S: CacheStore>(subject: &Subject<S>) {
    for key in [subject.ungrouped().key("k"), subject.group("g").key("k")] {
        assert!(!subject.store.delete(&key).await.unwrap(), "nothing was written yet");
        subject.set(&key, "v").await;
        assert!(subject.store.delete(&key).await.unwrap(), "a valid entry was there");
        subject.holds_nothing(&key, "deleted").await;
        assert!(!subject.store.delete(&key).await.unwrap(), "it was deleted before");
        subject.set(&key, "again").await;
        subject.holds(&key, "again", "written again after a delete").await;
    }
    subject.clean_up().await;
}

/// `delete` of what expired is false.
pub async fn delete_does_not_count_what_expired<S: CacheStore>(subject: &Subject<S>) {
    let keys = [subject.ungrouped().key("k"), subject.group("g").key("k")];
    for key in &keys {
        subject.store.set(key, Bytes::from_static(b"v"), Some(SHORT)).await.unwrap();
    }
    subject.advance(AFTER_SHORT).await;
    for key in &keys {
        assert!(!subject.store.delete(key).await.unwrap(), "{key} had expired");
    }
    subject.clean_up().await;
}

/// `delete` removes one entry.
pub async fn delete_leaves_the_neighbours<S: CacheStore>(subject: &Subject<S>) {
    let neighbours = [
        subject.group("g").key("products:70"),
        subject.group("g").key("products:7:reviews"),
        subject.group("g").key("products"),
        subject.group("h").key("products:7"),
        subject.ungrouped().key("products:7"),
        subject.elsewhere(Some("g")).key("products:7"),
    ];
    for key in &neighbours {
        subject.set(key, "v").await;
    }
    let key = subject.group("g").key("products:7");
    subject.set(&key, "v").await;
    assert!(subject.store.delete(&key).await.unwrap());
    for key in &neighbours {
        subject.holds(key, "v", "only products:7 of group g was deleted").await;
    }
    subject.clean_up().await;
}

/// `delete_group` removes every entry of the group and answers how many there were.
pub async fn delete_group_counts_and_removes<S: CacheStore>(subject: &Subject<S>) {
    let group = subject.group("g");
    assert_eq!(subject.store.delete_group(&group).await.unwrap(), 0, "the group is empty");
    let keys: Vec<CacheKey> = (0..5).map(|i| group.key(&format!("item:{i}"))).collect();
    for key in &keys {
        subject.set(key, "v").await;
        subject.set(key, "overwritten").await;
    }
    assert!(subject.store.delete(&keys[0]).await.unwrap());
    assert_eq!(subject.store.delete_group(&group).await.unwrap(), 4, "five entries, one deleted before");
    for key in &keys {
        subject.holds_nothing(key, "its group was deleted").await;
        assert!(!subject.store.delete(key).await.unwrap(), "{key}: its group was deleted");
    }
    assert_eq!(subject.store.delete_group(&group).await.unwrap(), 0, "everything is gone already");
    subject.clean_up().await;
}

/// `delete_group` counts what was valid.
pub async fn delete_group_does_not_count_what_expired<S: CacheStore>(subject: &Subject<S>) {
    let group = subject.group("g");
    for (suffix, ttl) in [("a", Some(SHORT)), ("b", Some(SHORT)), ("c", Some(LONG)), ("d", None)] {
        subject.store.set(&group.key(suffix), Bytes::from_static(b"v"), ttl).await.unwrap();
    }
    subject.advance(AFTER_SHORT).await;
    assert_eq!(subject.store.delete_group(&group).await.unwrap(), 2, "two of four had expired");
    subject.clean_up().await;
}

/// `delete_group` touches nothing outside the group.
pub async fn delete_group_leaves_other_groups<S: CacheStore>(subject: &Subject<S>) {
    let others = [
        subject.group("other").key("k"),
        subject.group("gg").key("k"),
        subject.group("G").key("k"),
        subject.ungrouped().key("k"),
        subject.ungrouped().key("g"),
        subject.ungrouped().key("{g}:k"),
        subject.elsewhere(Some("g")).key("k"),
        subject.elsewhere(None).key("k"),
    ];
    for key in others.iter().chain([&subject.group("g").key("k")]) {
        subject.set(key, "v").await;
    }
    assert_eq!(subject.store.delete_group(&subject.group("g")).await.unwrap(), 1);
    for key in &others {
        subject.holds(key, "v", "only group g was deleted").await;
    }
    subject.clean_up().await;
}

/// A key space without a group stands for its whole prefix, and for no other prefix.
pub async fn a_prefix_is_every_group_and_every_ungrouped_key<S: CacheStore>(subject: &Subject<S>) {
    let inside = [
        subject.ungrouped().key("k"),
        subject.ungrouped().key("l:m"),
        subject.group("a").key("k"),
        subject.group("a").key("l"),
        subject.group("b").key("k"),
    ];
    let outside = [subject.elsewhere(None).key("k"), subject.elsewhere(Some("a")).key("k")];
    for key in inside.iter().chain(&outside) {
        subject.set(key, "v").await;
    }
    assert_eq!(subject.store.delete_group(&subject.ungrouped()).await.unwrap(), 5);
    for key in &inside {
        subject.holds_nothing(key, "its prefix was wiped").await;
    }
    for key in &outside {
        subject.holds(key, "v", "another prefix was wiped").await;
    }
    assert_eq!(subject.store.delete_group(&subject.ungrouped()).await.unwrap(), 0, "wiped already");
    subject.clean_up().await;
}

/// What is written after `delete_group` returned is there, and counts for the next one.
pub async fn a_group_fills_again_after_its_eviction<S: CacheStore>(subject: &Subject<S>) {
    let (group, key) = (subject.group("g"), subject.group("g").key("k"));
    for _ in 0..3 {
        subject.set(&key, "v").await;
        subject.holds(&key, "v", "written after the group was deleted").await;
        assert_eq!(subject.store.delete_group(&group).await.unwrap(), 1);
        subject.holds_nothing(&key, "its group was deleted").await;
    }
    subject.clean_up().await;
}

/// A group of more entries than a store handles in one step goes as a whole.
pub async fn a_large_group_goes_at_once<S: CacheStore>(subject: &Subject<S>) {
    const MANY: u64 = 1_200;
    let group = subject.group("large");
    for i in 0..MANY {
        subject.set(&group.key(&i.to_string()), "v").await;
    }
    assert_eq!(subject.store.delete_group(&group).await.unwrap(), MANY);
    for i in 0..MANY {
        assert_eq!(subject.get(&group.key(&i.to_string())).await, None, "entry {i} of {MANY} survived");
    }
    subject.clean_up().await;
}

/// `Fill` answers `Found` with the entry, and takes no lease for that.
pub async fn fill_finds_what_is_there<S: LeaseStore>(subject: &Subject<S>) {
    for key in [subject.ungrouped().key("k"), subject.group("g").key("k")] {
        subject.set(&key, "there").await;
        match subject.begin(&key, Intent::Fill).await {
            Begin::Found(value) => assert_eq!(value, "there"),
            other => panic!("`Fill` should have found the entry of {key}, not {other:?}"),
        }
        subject.is_free(&key, "finding an entry holds nothing").await;
    }
    subject.clean_up().await;
}

/// `Fill` finds valid entries only.
pub async fn fill_does_not_find_what_expired<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    subject.store.set(&key, Bytes::from_static(b"old"), Some(SHORT)).await.unwrap();
    subject.advance(AFTER_SHORT).await;
    let lease = subject.lease(&key, Intent::Fill).await;
    assert!(subject.commit(&key, &lease, "new").await, "nothing happened to the lease");
    subject.holds(&key, "new", "committed").await;
    subject.clean_up().await;
}

/// While one fills, others are told so; after the commit they find it.
pub async fn one_caller_fills<S: LeaseStore>(subject: &Subject<S>) {
    for intent in [Intent::Fill, Intent::Refresh] {
        for space in [subject.ungrouped(), subject.group("g")] {
            let key = space.key(&format!("{intent:?}"));
            let lease = subject.lease(&key, intent).await;
            subject.is_filling(&key, "somebody holds the lease").await;
            subject.holds_nothing(&key, "a lease is not an entry").await;
            subject.is_free(&space.key("other"), "only its neighbour is being filled").await;
            assert!(subject.commit(&key, &lease, "filled").await, "nothing happened to the lease");
            subject.holds(&key, "filled", "committed").await;
            assert!(
                matches!(subject.begin(&key, Intent::Fill).await, Begin::Found(found) if found == "filled")
            );
        }
    }
    subject.clean_up().await;
}

/// A commit gives the lease back: it can't be used again, and the key is free.
pub async fn a_fill_is_committed_once<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    let lease = subject.lease(&key, Intent::Fill).await;
    assert!(subject.commit(&key, &lease, "first").await);
    assert!(!subject.commit(&key, &lease, "second").await, "the lease was given back by the first commit");
    subject.holds(&key, "first", "the second commit was refused").await;
    subject.is_free(&key, "the lease was committed").await;
    assert_eq!(
        subject.store.delete_group(&key.space()).await.unwrap(),
        1,
        "a committed entry belongs to its group"
    );
    subject.clean_up().await;
}

/// The time to live of a commit is kept like that of a `set`.
pub async fn a_commit_has_its_time_to_live<S: LeaseStore>(subject: &Subject<S>) {
    let space = subject.group("g");
    for (suffix, ttl) in [("brief", Some(SHORT)), ("lasting", Some(LONG)), ("endless", None)] {
        let key = space.key(suffix);
        let lease = subject.lease(&key, Intent::Fill).await;
        assert!(subject.store.commit(&key, &lease, Bytes::from_static(b"v"), ttl).await.unwrap());
    }
    subject.advance(AFTER_SHORT).await;
    subject.holds_nothing(&space.key("brief"), "its time to live is over").await;
    subject.holds(&space.key("lasting"), "v", "its time is not over").await;
    subject.holds(&space.key("endless"), "v", "it has no time to live").await;
    subject.clean_up().await;
}

/// A commit that is already over removes the entry and gives the lease back.
pub async fn a_commit_of_zero_time_to_live_removes<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    subject.set(&key, "old").await;
    let lease = subject.lease(&key, Intent::Refresh).await;
    subject.store.commit(&key, &lease, Bytes::from_static(b"v"), Some(Duration::ZERO)).await.unwrap();
    subject.holds_nothing(&key, "it was overwritten with no time to live").await;
    subject.is_free(&key, "the lease was committed").await;
    subject.clean_up().await;
}

/// A lease that the store never gave is worth nothing.
pub async fn an_unknown_lease_commits_nothing<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    let made_up = Lease::new([0x5a; 16], [0xa5; 8]);
    assert!(!subject.commit(&key, &made_up, "forged").await, "nobody holds a lease");
    subject.holds_nothing(&key, "the commit was refused").await;
    let lease = subject.lease(&key, Intent::Fill).await;
    assert!(!subject.commit(&key, &made_up, "forged").await, "somebody else holds the lease");
    assert!(!subject.store.renew(&key, &made_up, LONG).await.unwrap(), "somebody else holds the lease");
    subject.abandon(&key, &made_up, Abandon::Failed).await;
    assert!(subject.commit(&key, &lease, "true").await, "a made-up lease harmed the real one");
    subject.clean_up().await;
}

/// A lease of one key does not write another.
pub async fn a_lease_is_good_for_its_key_only<S: LeaseStore>(subject: &Subject<S>) {
    let (key, other) = (subject.group("g").key("k"), subject.group("g").key("other"));
    let lease = subject.lease(&key, Intent::Fill).await;
    let others = subject.lease(&other, Intent::Fill).await;
    assert!(!subject.commit(&other, &lease, "wrong").await, "the lease is another key's");
    assert!(subject.commit(&other, &others, "right").await);
    assert!(subject.commit(&key, &lease, "right").await);
    subject.clean_up().await;
}

/// A lease lives beside the entry: the old one is readable until the new one is committed.
pub async fn the_entry_stays_during_a_refresh<S: LeaseStore>(subject: &Subject<S>) {
    for key in [subject.ungrouped().key("k"), subject.group("g").key("k")] {
        subject.set(&key, "old").await;
        let lease = subject.lease(&key, Intent::Refresh).await;
        subject.holds(&key, "old", "a refresh is under way").await;
        assert!(matches!(subject.begin(&key, Intent::Fill).await, Begin::Found(old) if old == "old"));
        assert!(subject.commit(&key, &lease, "new").await, "nothing happened to the lease");
        subject.holds(&key, "new", "the refresh was committed").await;
        let lease = subject.lease(&key, Intent::Refresh).await;
        subject.abandon(&key, &lease, Abandon::Failed).await;
        subject.holds(&key, "new", "a failed refresh leaves the entry alone").await;
    }
    subject.clean_up().await;
}

/// `Refresh` answers `Lease` or `Filling` where `Fill` would answer `Found`.
pub async fn a_refresh_never_finds<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    subject.set(&key, "there").await;
    let _lease = subject.lease(&key, Intent::Refresh).await;
    let begin = subject.begin(&key, Intent::Refresh).await;
    assert!(matches!(begin, Begin::Filling), "another refresh is under way, not {begin:?}");
    subject.clean_up().await;
}

/// After a failed fill the next caller may try at once.
pub async fn a_failed_fill_frees_the_key<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    let lease = subject.lease(&key, Intent::Fill).await;
    subject.abandon(&key, &lease, Abandon::Failed).await;
    assert!(!subject.commit(&key, &lease, "late").await, "the lease was abandoned");
    subject.holds_nothing(&key, "the commit was refused").await;
    let lease = subject.lease(&key, Intent::Fill).await;
    assert!(subject.commit(&key, &lease, "second try").await);
    subject.clean_up().await;
}

/// An uncacheable answer makes callers `Busy` for as long as was said, and then no more.
pub async fn an_uncacheable_answer_is_remembered_for_a_while<S: LeaseStore>(subject: &Subject<S>) {
    let (brief, lasting) = (subject.group("g").key("brief"), subject.group("g").key("lasting"));
    for (key, pause) in [(&brief, SHORT), (&lasting, LONG)] {
        let lease = subject.lease(key, Intent::Fill).await;
        subject.abandon(key, &lease, Abandon::Uncacheable(pause)).await;
        assert!(!subject.commit(key, &lease, "late").await, "the lease was abandoned");
    }
    subject.is_busy(&lasting, "the answer was uncacheable").await;
    subject.holds_nothing(&lasting, "a mark is not an entry").await;
    subject.advance(AFTER_SHORT).await;
    subject.is_free(&brief, "the mark has run out").await;
    subject.is_busy(&lasting, "the mark has not run out").await;
    subject.clean_up().await;
}

/// A write after an uncacheable answer is a change like any other.
pub async fn an_uncacheable_answer_can_be_overwritten<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    let lease = subject.lease(&key, Intent::Fill).await;
    subject.abandon(&key, &lease, Abandon::Uncacheable(LONG)).await;
    let ticket = subject.lease(&key, Intent::Write).await;
    assert!(subject.commit(&key, &ticket, "written").await, "nothing happened to the ticket");
    subject.holds(&key, "written", "committed").await;
    subject.is_free(&key, "the ticket replaced the mark, and was committed").await;
    subject.clean_up().await;
}

/// Abandoning a lost lease harms neither its successor nor a free key.
pub async fn a_lost_lease_is_abandoned_in_vain<S: LeaseStore>(subject: &Subject<S>) {
    for why in [Abandon::Failed, Abandon::Uncacheable(LONG)] {
        let key = subject.group("g").key(&format!("{why:?}"));
        let lost = subject.lease(&key, Intent::Fill).await;
        subject.store.delete(&key).await.unwrap();
        subject.abandon(&key, &lost, why).await;
        subject.is_free(&key, "a lost lease can't mark a key").await;
        let current = subject.lease(&key, Intent::Fill).await;
        subject.abandon(&key, &lost, why).await;
        subject.is_filling(&key, "the current lease is another one").await;
        assert!(subject.commit(&key, &current, "v").await, "a lost lease took the current one along");
    }
    subject.clean_up().await;
}

/// A lease neither committed nor abandoned runs out, and then belongs to whoever comes next.
pub async fn a_lease_runs_out<S: LeaseStore>(subject: &Subject<S>) {
    for intent in [Intent::Fill, Intent::Refresh, Intent::Write] {
        let keys = ["taken", "left"].map(|suffix| subject.group("g").key(&format!("{intent:?}:{suffix}")));
        let mut leases = Vec::new();
        for key in &keys {
            match subject.store.begin(key, intent, SHORT).await.unwrap() {
                Begin::Lease(lease) => leases.push(lease),
                other => panic!("{key} is free, not {other:?}"),
            }
        }
        subject.advance(AFTER_SHORT).await;
        assert!(!subject.commit(&keys[1], &leases[1], "late").await, "{intent:?}: the lease ran out");
        let next = subject.lease(&keys[0], Intent::Fill).await;
        assert!(!subject.commit(&keys[0], &leases[0], "late").await, "{intent:?}: it is somebody else's now");
        assert!(
            subject.commit(&keys[0], &next, "next").await,
            "{intent:?}: nothing happened to the new lease"
        );
        subject.holds(&keys[0], "next", "the late commit was refused").await;
        subject.holds_nothing(&keys[1], "the late commit was refused").await;
    }
    subject.clean_up().await;
}

/// `renew` extends a lease from now.
pub async fn a_renewed_lease_lives_on<S: LeaseStore>(subject: &Subject<S>) {
    // Long enough not to run out between the first two lines of a slow test.
    const HOLD: Duration = Duration::from_millis(600);
    for intent in [Intent::Fill, Intent::Write] {
        let key = subject.group("g").key(&format!("{intent:?}"));
        let Begin::Lease(lease) = subject.store.begin(&key, intent, HOLD).await.unwrap() else {
            panic!("{key} is free");
        };
        assert!(subject.store.renew(&key, &lease, LONG).await.unwrap(), "the lease is current");
        subject.advance(HOLD + AFTER_SHORT).await;
        let begin = subject.begin(&key, Intent::Fill).await;
        assert!(matches!(begin, Begin::Filling | Begin::Busy), "{intent:?}: it was renewed, not {begin:?}");
        assert!(subject.commit(&key, &lease, "v").await, "{intent:?}: the lease was renewed");
    }
    // It may be shortened, too.
    let key = subject.group("g").key("shorter");
    let lease = subject.lease(&key, Intent::Fill).await;
    assert!(subject.store.renew(&key, &lease, SHORT).await.unwrap(), "the lease is current");
    subject.advance(AFTER_SHORT).await;
    assert!(!subject.commit(&key, &lease, "late").await, "renewed for a short time, which is over");
    subject.clean_up().await;
}

/// `renew` is false for a lease that was committed, abandoned, revoked or replaced, or ran out, and revives none.
pub async fn a_lost_lease_is_not_renewed<S: LeaseStore>(subject: &Subject<S>) {
    let space = subject.group("g");
    let mut lost = Vec::new();
    for suffix in ["committed", "abandoned", "deleted", "overwritten", "replaced"] {
        let key = space.key(suffix);
        let lease = subject.lease(&key, Intent::Fill).await;
        match suffix {
            "committed" => assert!(subject.commit(&key, &lease, "v").await),
            "abandoned" => subject.abandon(&key, &lease, Abandon::Failed).await,
            "deleted" => assert!(!subject.store.delete(&key).await.unwrap()),
            "overwritten" => subject.set(&key, "v").await,
            _ => {
                let _ticket = subject.lease(&key, Intent::Write).await;
            }
        }
        lost.push((key, lease));
    }
    let key = space.key("ran out");
    let Begin::Lease(lease) = subject.store.begin(&key, Intent::Fill, SHORT).await.unwrap() else {
        panic!("{key} is free");
    };
    subject.advance(AFTER_SHORT).await;
    lost.push((key, lease));
    for (key, lease) in &lost {
        assert!(!subject.store.renew(key, lease, LONG).await.unwrap(), "{key}: the lease is lost");
        assert!(!subject.commit(key, lease, "revived").await, "{key}: the lease is lost");
    }
    subject.clean_up().await;
}

/// A fill that began before a `delete` is not written after it.
pub async fn delete_revokes_a_fill<S: LeaseStore>(subject: &Subject<S>) {
    for key in [subject.ungrouped().key("k"), subject.group("g").key("k")] {
        subject.set(&key, "old").await;
        let lease = subject.lease(&key, Intent::Refresh).await;
        assert!(subject.store.delete(&key).await.unwrap(), "the entry was there during the refresh");
        is_revoked(subject, &key, &lease, "the key was deleted").await;
    }
    subject.clean_up().await;
}

/// `delete` revokes the lease of a key that holds no entry yet.
pub async fn delete_revokes_where_nothing_is_there<S: LeaseStore>(subject: &Subject<S>) {
    for key in [subject.ungrouped().key("k"), subject.group("g").key("k")] {
        let lease = subject.lease(&key, Intent::Fill).await;
        assert!(!subject.store.delete(&key).await.unwrap(), "a lease is not an entry");
        is_revoked(subject, &key, &lease, "the key was deleted").await;
    }
    subject.clean_up().await;
}

/// A fill that began before a `delete_group` is not written after it, be the group empty or not.
pub async fn delete_group_revokes_a_fill<S: LeaseStore>(subject: &Subject<S>) {
    let (group, key) = (subject.group("g"), subject.group("g").key("k"));
    let lease = subject.lease(&key, Intent::Fill).await;
    assert_eq!(subject.store.delete_group(&group).await.unwrap(), 0, "a lease is not an entry");
    is_revoked(subject, &key, &lease, "its empty group was deleted").await;

    subject.set(&group.key("neighbour"), "v").await;
    let (lease, ticket) =
        (subject.lease(&key, Intent::Fill).await, subject.lease(&group.key("written"), Intent::Write).await);
    assert_eq!(subject.store.delete_group(&group).await.unwrap(), 1);
    // Whatever began before, also after the group has come to life again.
    subject.set(&group.key("neighbour"), "v").await;
    is_revoked(subject, &key, &lease, "its group was deleted").await;
    is_revoked(subject, &group.key("written"), &ticket, "its group was deleted").await;
    subject.clean_up().await;
}

/// A fill that began before the whole prefix was wiped is not written after it.
pub async fn a_wiped_prefix_revokes_a_fill<S: LeaseStore>(subject: &Subject<S>) {
    let keys = [subject.ungrouped().key("k"), subject.group("g").key("k"), subject.group("h").key("k")];
    let mut leases = Vec::new();
    for key in &keys {
        leases.push(subject.lease(key, Intent::Fill).await);
    }
    subject.set(&subject.group("h").key("entry"), "v").await;
    assert_eq!(subject.store.delete_group(&subject.ungrouped()).await.unwrap(), 1);
    for (key, lease) in keys.iter().zip(&leases) {
        is_revoked(subject, key, lease, "its prefix was wiped").await;
    }
    subject.clean_up().await;
}

/// A fill that began before a `set` does not overwrite it.
pub async fn set_revokes_a_fill<S: LeaseStore>(subject: &Subject<S>) {
    for key in [subject.ungrouped().key("k"), subject.group("g").key("k")] {
        for intent in [Intent::Refresh, Intent::Write] {
            let lease = subject.lease(&key, intent).await;
            subject.set(&key, "set meanwhile").await;
            assert!(!subject.commit(&key, &lease, "older").await, "the key was set since {intent:?} began");
            subject.holds(&key, "set meanwhile", "the commit was refused").await;
            subject.is_free(&key, "the lease was revoked").await;
        }
    }
    subject.clean_up().await;
}

/// What was uncacheable may be cacheable after an eviction or a write.
pub async fn evictions_end_an_uncacheable_mark<S: LeaseStore>(subject: &Subject<S>) {
    for how in ["delete", "delete_group", "wipe", "set"] {
        let key = subject.group("g").key(how);
        let lease = subject.lease(&key, Intent::Fill).await;
        subject.abandon(&key, &lease, Abandon::Uncacheable(LONG)).await;
        evict(subject, &key, how).await;
        subject.is_free(&key, how).await;
    }
    subject.clean_up().await;
}

/// Evicting a key or a group leaves the fills of others alone.
pub async fn evictions_leave_other_leases<S: LeaseStore>(subject: &Subject<S>) {
    let gone = subject.group("g").key("k");
    for (how, others) in [
        (
            "delete",
            [subject.group("g").key("other"), subject.group("h").key("k"), subject.ungrouped().key("k")],
        ),
        ("set", [subject.group("g").key("other"), subject.group("h").key("k"), subject.ungrouped().key("k")]),
        (
            "delete_group",
            [
                subject.ungrouped().key("g"),
                subject.group("h").key("k"),
                subject.elsewhere(Some("g")).key("k"),
            ],
        ),
        (
            "wipe",
            [
                subject.elsewhere(None).key("k"),
                subject.elsewhere(Some("g")).key("k"),
                subject.elsewhere(Some("h")).key("k"),
            ],
        ),
    ] {
        let mut leases = Vec::new();
        for key in &others {
            leases.push(subject.lease(key, Intent::Refresh).await);
        }
        evict(subject, &gone, how).await;
        for (key, lease) in others.iter().zip(&leases) {
            assert!(subject.commit(key, lease, "v").await, "`{how}` of {gone} revoked the lease of {key}");
        }
    }
    subject.clean_up().await;
}

/// A write replaces any other lease: what was read before the change must not be stored.
pub async fn a_write_ticket_replaces_a_fill<S: LeaseStore>(subject: &Subject<S>) {
    for intent in [Intent::Fill, Intent::Refresh] {
        for space in [subject.ungrouped(), subject.group("g")] {
            let key = space.key(&format!("{intent:?}"));
            let fill = subject.lease(&key, intent).await;
            let ticket = subject.lease(&key, Intent::Write).await;
            assert!(!subject.commit(&key, &fill, "read before the change").await, "a write has begun since");
            subject.holds_nothing(&key, "the fill was refused").await;
            assert!(subject.commit(&key, &ticket, "written").await, "a refused fill took the ticket along");
            subject.holds(&key, "written", "the ticket was committed").await;
        }
    }
    subject.clean_up().await;
}

/// Until a write commits, the entry is what it was.
pub async fn a_write_ticket_leaves_the_entry_alone<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    subject.set(&key, "old").await;
    let ticket = subject.lease(&key, Intent::Write).await;
    subject.holds(&key, "old", "the write has not finished").await;
    assert!(matches!(subject.begin(&key, Intent::Fill).await, Begin::Found(old) if old == "old"));
    assert!(subject.commit(&key, &ticket, "new").await);
    subject.holds(&key, "new", "the write was committed").await;
    subject.clean_up().await;
}

/// While a write is under way, whoever misses runs, without waiting and without storing.
pub async fn readers_do_not_wait_for_a_write<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    let ticket = subject.lease(&key, Intent::Write).await;
    subject.is_busy(&key, "a write is under way").await;
    assert!(subject.commit(&key, &ticket, "v").await, "readers harmed the ticket");
    subject.is_free(&key, "the write is over").await;
    subject.clean_up().await;
}

/// The holder of a lease reads what every process sees, however late the store hears of changes: the last value, and nothing
/// after an eviction.
pub async fn a_read_under_a_lease_is_not_older_than_the_lease<S: LeaseStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        let key = space.key("counter");
        subject.set(&key, "0").await;
        let keeps_copies = Subject::warm(&*subject.store, &key, 100).await;
        for round in 0..subject.rounds / 4 {
            let [mine, other] = match round % 2 {
                0 => [&subject.store, &subject.other],
                _ => [&subject.other, &subject.store],
            };
            Subject::warm(&**mine, &key, if keeps_copies { 100 } else { 1 }).await;
            let expected = match round % 5 {
                3 => other.delete(&key).await.map(|_| None),
                4 => other.delete_group(&space).await.map(|_| None),
                _ => {
                    let value = Bytes::from(round.to_string());
                    other.set(&key, value.clone(), Some(LONG)).await.map(|()| Some(value))
                }
            }
            .unwrap();
            let intent = if round % 3 == 0 { Intent::Write } else { Intent::Refresh };
            let Begin::Lease(lease) = mine.begin(&key, intent, LONG).await.unwrap() else {
                panic!("no process holds {key}");
            };
            assert_eq!(
                mine.try_get(&key).or(expected.clone()),
                expected,
                "{key}: a copy is older than the lease"
            );
            assert_eq!(
                mine.has(&key).await.unwrap(),
                expected.is_some(),
                "{key}: `has` is older than the lease"
            );
            assert_eq!(mine.get(&key).await.unwrap(), expected, "{key}: `get` is older than the lease");
            let next = Bytes::from(format!("{round} again"));
            assert!(
                mine.commit(&key, &lease, next, Some(LONG)).await.unwrap(),
                "{key}: the lease is the only one"
            );
        }
    }
    subject.clean_up().await;
}

/// A read that is answered late is not kept as a copy that a later lease would find.
pub async fn a_read_that_began_before_a_lease_is_not_kept_under_it<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("late");
    for round in 0..subject.rounds / 4 {
        subject.set(&key, "old").await;
        let mut early = std::pin::pin!(subject.store.get(&key));
        let early_value = futures_util::poll!(&mut early);
        let new = Bytes::from(round.to_string());
        subject.other.set(&key, new.clone(), Some(LONG)).await.unwrap();
        let lease = subject.lease(&key, Intent::Refresh).await;
        if early_value.is_pending() {
            let _ = early.await.unwrap();
        }
        assert_eq!(subject.get(&key).await, Some(new), "{key}: `get` is older than the lease");
        subject.abandon(&key, &lease, Abandon::Failed).await;
    }
    subject.clean_up().await;
}

/// A write that failed before it changed anything is released: the entry stays, and the key is free.
pub async fn a_released_ticket_frees_the_key<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    subject.set(&key, "old").await;
    let ticket = subject.lease(&key, Intent::Write).await;
    subject.abandon(&key, &ticket, Abandon::Failed).await;
    subject.holds(&key, "old", "the write was released").await;
    assert!(!subject.commit(&key, &ticket, "late").await, "the ticket was released");
    subject.is_free(&key, "the ticket was released").await;
    subject.clean_up().await;
}

/// Evictions and `set` revoke tickets like leases.
pub async fn evictions_revoke_a_ticket<S: LeaseStore>(subject: &Subject<S>) {
    for how in ["delete", "delete_group", "wipe", "set"] {
        for key in [subject.group("g").key(how), subject.ungrouped().key(how)] {
            if how == "delete_group" && key.group().is_none() {
                continue;
            }
            let ticket = subject.lease(&key, Intent::Write).await;
            evict(subject, &key, how).await;
            assert!(
                !subject.commit(&key, &ticket, "older").await,
                "`{how}` of {key} did not revoke the ticket"
            );
            subject.is_free(&key, how).await;
        }
    }
    subject.clean_up().await;
}

/// Two writes that overlap may finish in the database in either order. The first's commit is refused; it evicts; and
/// then the second's is refused, too.
pub async fn of_two_overlapping_writes_neither_commits<S: LeaseStore>(subject: &Subject<S>) {
    for key in [subject.ungrouped().key("k"), subject.group("g").key("k")] {
        subject.set(&key, "old").await;
        let first = subject.lease(&key, Intent::Write).await;
        let second = subject.lease(&key, Intent::Write).await;
        assert!(!subject.commit(&key, &first, "first").await, "a second write has begun since");
        assert!(subject.store.delete(&key).await.unwrap(), "the old entry was still there");
        assert!(!subject.commit(&key, &second, "second").await, "the first write evicted");
        subject.holds_nothing(&key, "neither was committed").await;
    }
    subject.clean_up().await;
}

/// If the second of two overlapping writes finishes first it commits; the first evicts that when it finishes.
pub async fn the_latest_of_two_writes_commits<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    let first = subject.lease(&key, Intent::Write).await;
    let second = subject.lease(&key, Intent::Write).await;
    assert!(subject.commit(&key, &second, "second").await, "it holds the current ticket");
    subject.holds(&key, "second", "committed").await;
    assert!(!subject.commit(&key, &first, "first").await, "its ticket was replaced");
    subject.holds(&key, "second", "the first was refused").await;
    assert!(subject.store.delete(&key).await.unwrap());
    subject.clean_up().await;
}

/// After `delete` has returned nobody reads what the database held before.
pub async fn racing_against_delete<S: LeaseStore>(subject: &Subject<S>) {
    race(subject, subject.group("race").key("k"), Change::Delete).await;
    race(subject, subject.ungrouped().key("k"), Change::Delete).await;
}

/// After `delete_group` has returned nobody reads what the database held before.
pub async fn racing_against_delete_group<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("race").key("k");
    race(subject, key.clone(), Change::Evict(key.space())).await;
}

/// After a prefix was wiped nobody reads what the database held before.
pub async fn racing_against_a_wiped_prefix<S: LeaseStore>(subject: &Subject<S>) {
    race(subject, subject.group("race").key("k"), Change::Evict(subject.ungrouped())).await;
    race(subject, subject.ungrouped().key("k"), Change::Evict(subject.ungrouped())).await;
}

/// After a write-through has finished nobody reads what the database held before, though others write, too.
pub async fn racing_against_writes<S: LeaseStore>(subject: &Subject<S>) {
    race(subject, subject.group("race").key("k"), Change::WriteThrough).await;
}

async fn is_revoked<S: LeaseStore>(subject: &Subject<S>, key: &CacheKey, lease: &Lease, why: &str) {
    assert!(!subject.store.renew(key, lease, LONG).await.unwrap(), "{key}: the lease was revoked: {why}");
    assert!(!subject.commit(key, lease, "older").await, "{key}: the lease was revoked: {why}");
    subject.holds_nothing(key, "a refused commit writes nothing").await;
    subject.is_free(key, why).await;
}

async fn evict<S: LeaseStore>(subject: &Subject<S>, key: &CacheKey, how: &str) {
    match how {
        "delete" => drop(subject.store.delete(key).await.unwrap()),
        "delete_group" => drop(subject.store.delete_group(&key.space()).await.unwrap()),
        "wipe" => drop(subject.store.delete_group(&subject.ungrouped()).await.unwrap()),
        _ => subject.set(key, "set").await,
    }
}

/// How the database's changes reach the store.
#[derive(Clone)]
enum Change {
    Delete,
    Evict(KeySpace),
    WriteThrough,
}

/// One value in a database that only ever grows, and what readers may still see of it.
#[derive(Default)]
struct Database {
    version: AtomicU64,
    /// Every version below this was evicted, and that eviction has returned.
    floor: AtomicU64,
    over: AtomicBool,
}

const READERS: usize = 6;

/// Readers fill a key from a database while others change the database and evict.
async fn race<S: LeaseStore>(subject: &Subject<S>, key: CacheKey, change: Change) {
    let database = Arc::new(Database::default());
    let readers: Vec<_> = (0..READERS)
        .map(|_| tokio::spawn(read_on(Arc::clone(&subject.store), key.clone(), Arc::clone(&database))))
        .collect();
    let changers: Vec<_> = (0..2)
        .map(|_| {
            let (store, key, database) = (Arc::clone(&subject.store), key.clone(), Arc::clone(&database));
            let (change, rounds) = (change.clone(), subject.rounds / 2);
            tokio::spawn(async move {
                for _ in 0..rounds {
                    change_once(&*store, &key, &database, &change).await;
                    let floor = database.floor.load(Ordering::SeqCst);
                    assert_recent(store.get(&key).await.unwrap(), floor, &key);
                    pause().await;
                }
            })
        })
        .collect();
    // The readers stop before a changer's panic is passed on.
    let changes = futures_util::future::join_all(changers).await;
    database.over.store(true, Ordering::SeqCst);
    let mut filled = 0;
    for reader in readers {
        filled += outcome(reader.await);
    }
    changes.into_iter().for_each(outcome);
    assert!(filled > 0, "no fill was ever committed, so the race shows nothing");
    subject.clean_up().await;
}

/// Reads, and fills what is missing, until the race is over. Answers how many fills were committed.
async fn read_on<S: LeaseStore>(store: Arc<S>, key: CacheKey, database: Arc<Database>) -> u64 {
    let mut filled = 0;
    while !database.over.load(Ordering::SeqCst) {
        let floor = database.floor.load(Ordering::SeqCst);
        assert_recent(store.get(&key).await.unwrap(), floor, &key);
        let intent = if fastrand::u8(..4) == 0 { Intent::Refresh } else { Intent::Fill };
        let floor = database.floor.load(Ordering::SeqCst);
        match store.begin(&key, intent, LONG).await.unwrap() {
            Begin::Found(found) => assert_recent(Some(found), floor, &key),
            Begin::Lease(lease) => {
                let version = database.version.load(Ordering::SeqCst);
                pause().await;
                if fastrand::u8(..16) == 0 {
                    store.abandon(&key, &lease, Abandon::Failed).await.unwrap();
                } else {
                    filled +=
                        u64::from(store.commit(&key, &lease, bytes_of(version), Some(LONG)).await.unwrap());
                }
            }
            Begin::Filling | Begin::Busy => {}
        }
        pause().await;
    }
    filled
}

/// Changes the database, then does what a route does after a change.
async fn change_once<S: LeaseStore>(store: &S, key: &CacheKey, database: &Database, change: &Change) {
    let ticket = match change {
        Change::WriteThrough => match store.begin(key, Intent::Write, LONG).await.unwrap() {
            Begin::Lease(ticket) => Some(ticket),
            other => panic!("`begin(Write)` always gives a ticket, not {other:?}"),
        },
        Change::Delete | Change::Evict(_) => None,
    };
    let version = database.version.fetch_add(1, Ordering::SeqCst) + 1;
    pause().await;
    let committed = match &ticket {
        Some(ticket) => store.commit(key, ticket, bytes_of(version), Some(LONG)).await.unwrap(),
        None => false,
    };
    match change {
        _ if committed => {}
        Change::Evict(space) => drop(store.delete_group(space).await.unwrap()),
        Change::Delete | Change::WriteThrough => drop(store.delete(key).await.unwrap()),
    }
    database.floor.fetch_max(version, Ordering::SeqCst);
}

/// What a task answered; its panic goes on in here, so that the test shows the rule that was broken.
fn outcome<T>(task: Result<T, tokio::task::JoinError>) -> T {
    task.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn assert_recent(value: Option<Bytes>, floor: u64, key: &CacheKey) {
    let Some(value) = value else { return };
    let version = u64::from_be_bytes(value[..].try_into().unwrap());
    assert!(version >= floor, "{key} holds version {version}, but everything below {floor} was evicted");
}

fn bytes_of(version: u64) -> Bytes {
    Bytes::copy_from_slice(&version.to_be_bytes())
}

/// Lets the others in, for a while that differs from time to time.
async fn pause() {
    for _ in 0..fastrand::u8(..4) {
        tokio::task::yield_now().await;
    }
}
