//! Evictions of groups and of whole prefixes.

use bytes::Bytes;

use super::{AFTER_SHORT, LONG, SHORT, Subject};
use crate::key::CacheKey;
use crate::store::CacheStore;

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
