//! Write-throughs: a lease for a write replaces the lease of a fill, and the latest write commits.

use super::Subject;
use crate::store::{Abandon, Acquired, Intent, LeaseStore};

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
    assert!(matches!(subject.begin(&key, Intent::Fill).await, Acquired::Found(old) if old == "old"));
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
