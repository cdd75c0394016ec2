//! Rules of evictions of groups and of whole prefixes.

use bytes::Bytes;

use super::{AFTER_SHORT, LONG, SHORT, Subject};
use crate::key::CacheKey;
use crate::store::CacheStore;

/// `delete_group` removes every entry of the group and returns their number.
pub async fn delete_group_removes_and_counts_entries<S: CacheStore>(subject: &Subject<S>) {
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
    assert_eq!(subject.store.delete_group(&group).await.unwrap(), 0, "the group is empty again");
    subject.clean_up().await;
}

/// `delete_group` counts valid entries only.
pub async fn delete_group_does_not_count_expired_entries<S: CacheStore>(subject: &Subject<S>) {
    let group = subject.group("g");
    for (suffix, ttl) in [("a", Some(SHORT)), ("b", Some(SHORT)), ("c", Some(LONG)), ("d", None)] {
        subject.store.set(&group.key(suffix), Bytes::from_static(b"v"), ttl).await.unwrap();
    }
    subject.advance(AFTER_SHORT).await;
    assert_eq!(subject.store.delete_group(&group).await.unwrap(), 2, "two of four had expired");
    subject.clean_up().await;
}

/// `delete_group` removes no entry of another group.
pub async fn delete_group_keeps_other_groups<S: CacheStore>(subject: &Subject<S>) {
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

/// `delete_group` of a key space without a group removes its whole prefix, and no other.
pub async fn deleting_a_prefix_removes_its_groups_and_ungrouped_keys<S: CacheStore>(subject: &Subject<S>) {
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
        subject.holds_nothing(key, "its prefix was deleted").await;
    }
    for key in &outside {
        subject.holds(key, "v", "another prefix was deleted").await;
    }
    assert_eq!(subject.store.delete_group(&subject.ungrouped()).await.unwrap(), 0, "deleted already");
    subject.clean_up().await;
}

/// An entry that is written after `delete_group` returned is valid, and the next `delete_group` counts it.
pub async fn group_is_filled_again_after_its_eviction<S: CacheStore>(subject: &Subject<S>) {
    let (group, key) = (subject.group("g"), subject.group("g").key("k"));
    for _ in 0..3 {
        subject.set(&key, "v").await;
        subject.holds(&key, "v", "written after the group was deleted").await;
        assert_eq!(subject.store.delete_group(&group).await.unwrap(), 1);
        subject.holds_nothing(&key, "its group was deleted").await;
    }
    subject.clean_up().await;
}

/// A group with more entries than a store handles in one step is removed as a whole.
pub async fn large_group_is_removed_as_a_whole<S: CacheStore>(subject: &Subject<S>) {
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
