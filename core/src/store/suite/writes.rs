//! Rules of write leases: a write lease replaces any other lease, and the latest one commits.

use super::Subject;
use crate::store::{Abandon, Acquired, Intent, LeaseStore};

/// A write lease replaces a fill, because the fill may have read the origin before the change.
pub async fn write_lease_replaces_a_fill<S: LeaseStore>(subject: &Subject<S>) {
    for intent in [Intent::Fill, Intent::Refresh] {
        for space in [subject.ungrouped(), subject.group("g")] {
            let key = space.key(&format!("{intent:?}"));
            let fill = subject.lease(&key, intent).await;
            let write_lease = subject.lease(&key, Intent::Write).await;
            assert!(!subject.commit(&key, &fill, "read before the change").await, "a write has begun since");
            subject.holds_nothing(&key, "the fill was refused").await;
            assert!(
                subject.commit(&key, &write_lease, "written").await,
                "a refused fill ended the write lease"
            );
            subject.holds(&key, "written", "the write lease was committed").await;
        }
    }
    subject.clean_up().await;
}

/// The old entry stays readable until the write commits.
pub async fn write_lease_keeps_the_entry<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    subject.set(&key, "old").await;
    let write_lease = subject.lease(&key, Intent::Write).await;
    subject.holds(&key, "old", "the write has not finished").await;
    assert!(matches!(subject.begin(&key, Intent::Fill).await, Acquired::Found(old) if old == "old"));
    assert!(subject.commit(&key, &write_lease, "new").await);
    subject.holds(&key, "new", "the write was committed").await;
    subject.clean_up().await;
}

/// While a write is under way, callers get `Busy`, so that they run without waiting and without storing.
pub async fn readers_do_not_wait_for_a_write<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    let write_lease = subject.lease(&key, Intent::Write).await;
    subject.is_busy(&key, "a write is under way").await;
    assert!(subject.commit(&key, &write_lease, "v").await, "readers revoked the write lease");
    subject.is_free(&key, "the write is over").await;
    subject.clean_up().await;
}

/// After an abandoned write, the entry stays, and the key is free.
pub async fn abandoned_write_lease_frees_the_key<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    subject.set(&key, "old").await;
    let write_lease = subject.lease(&key, Intent::Write).await;
    subject.abandon(&key, &write_lease, Abandon::Failed).await;
    subject.holds(&key, "old", "the write was released").await;
    assert!(!subject.commit(&key, &write_lease, "late").await, "the write lease was released");
    subject.is_free(&key, "the write lease was released").await;
    subject.clean_up().await;
}

/// Two overlapping writes may reach the database in either order. The commit of the first one is refused, so it evicts. That
/// revokes the lease of the second one.
pub async fn neither_of_two_overlapping_writes_commits<S: LeaseStore>(subject: &Subject<S>) {
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

/// If the second of two overlapping writes finishes first, it commits. The first one evicts that entry when it finishes.
pub async fn latest_of_two_writes_commits<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    let first = subject.lease(&key, Intent::Write).await;
    let second = subject.lease(&key, Intent::Write).await;
    assert!(subject.commit(&key, &second, "second").await, "it holds the current write lease");
    subject.holds(&key, "second", "committed").await;
    assert!(!subject.commit(&key, &first, "first").await, "its write lease was replaced");
    subject.holds(&key, "second", "the first was refused").await;
    assert!(subject.store.delete(&key).await.unwrap());
    subject.clean_up().await;
}
