//! Rules of revocation: evictions and `set` revoke leases.

use super::{LONG, Subject};
use crate::key::CacheKey;
use crate::store::{Abandon, Intent, Lease, LeaseStore};

/// A fill that began before a `delete` is not committed after it.
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
pub async fn delete_of_an_absent_entry_revokes_a_fill<S: LeaseStore>(subject: &Subject<S>) {
    for key in [subject.ungrouped().key("k"), subject.group("g").key("k")] {
        let lease = subject.lease(&key, Intent::Fill).await;
        assert!(!subject.store.delete(&key).await.unwrap(), "a lease is not an entry");
        is_revoked(subject, &key, &lease, "the key was deleted").await;
    }
    subject.clean_up().await;
}

/// A fill that began before a `delete_group` is not committed after it, whether the group is empty or not.
pub async fn delete_group_revokes_a_fill<S: LeaseStore>(subject: &Subject<S>) {
    let (group, key) = (subject.group("g"), subject.group("g").key("k"));
    let lease = subject.lease(&key, Intent::Fill).await;
    assert_eq!(subject.store.delete_group(&group).await.unwrap(), 0, "a lease is not an entry");
    is_revoked(subject, &key, &lease, "its empty group was deleted").await;

    subject.set(&group.key("neighbour"), "v").await;
    let (lease, write_lease) =
        (subject.lease(&key, Intent::Fill).await, subject.lease(&group.key("written"), Intent::Write).await);
    assert_eq!(subject.store.delete_group(&group).await.unwrap(), 1);
    // The leases stay revoked after the group has new entries.
    subject.set(&group.key("neighbour"), "v").await;
    is_revoked(subject, &key, &lease, "its group was deleted").await;
    is_revoked(subject, &group.key("written"), &write_lease, "its group was deleted").await;
    subject.clean_up().await;
}

/// A fill that began before the whole prefix was deleted is not committed after it.
pub async fn deleting_a_prefix_revokes_a_fill<S: LeaseStore>(subject: &Subject<S>) {
    let keys = [subject.ungrouped().key("k"), subject.group("g").key("k"), subject.group("h").key("k")];
    let mut leases = Vec::new();
    for key in &keys {
        leases.push(subject.lease(key, Intent::Fill).await);
    }
    subject.set(&subject.group("h").key("entry"), "v").await;
    assert_eq!(subject.store.delete_group(&subject.ungrouped()).await.unwrap(), 1);
    for (key, lease) in keys.iter().zip(&leases) {
        is_revoked(subject, key, lease, "its prefix was deleted").await;
    }
    subject.clean_up().await;
}

/// A fill that began before a `set` doesn't overwrite it.
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

/// An eviction or a `set` removes the mark of an uncacheable answer.
pub async fn evictions_remove_an_uncacheable_mark<S: LeaseStore>(subject: &Subject<S>) {
    for how in ["delete", "delete_group", "delete_prefix", "set"] {
        let key = subject.group("g").key(how);
        let lease = subject.lease(&key, Intent::Fill).await;
        subject.abandon(&key, &lease, Abandon::Uncacheable(LONG)).await;
        evict(subject, &key, how).await;
        subject.is_free(&key, how).await;
    }
    subject.clean_up().await;
}

/// Evicting a key or a group revokes no lease of another.
pub async fn evictions_keep_other_leases<S: LeaseStore>(subject: &Subject<S>) {
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
            "delete_prefix",
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

/// Evictions and `set` revoke write leases.
pub async fn evictions_revoke_a_write_lease<S: LeaseStore>(subject: &Subject<S>) {
    for how in ["delete", "delete_group", "delete_prefix", "set"] {
        for key in [subject.group("g").key(how), subject.ungrouped().key(how)] {
            if how == "delete_group" && key.group().is_none() {
                continue;
            }
            let write_lease = subject.lease(&key, Intent::Write).await;
            evict(subject, &key, how).await;
            assert!(
                !subject.commit(&key, &write_lease, "older").await,
                "`{how}` of {key} did not revoke the write lease"
            );
            subject.is_free(&key, how).await;
        }
    }
    subject.clean_up().await;
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
        "delete_prefix" => drop(subject.store.delete_group(&subject.ungrouped()).await.unwrap()),
        _ => subject.set(key, "set").await,
    }
}
