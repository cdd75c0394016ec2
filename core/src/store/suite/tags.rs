//! Tags: an eviction by tag reaches every entry that carries the tag, and no fill that began before it brings one back.

use std::time::Duration;

use bytes::Bytes;

use super::{LONG, Loss, Subject};
use crate::key::{CacheKey, KeySpace};
use crate::store::{Acquired, Intent, LeaseStore};
use crate::tag::{EvictionMode, MAX_EVICTED_TAGS, MAX_TAGS, TagStamp, Tagged, Tags, stale_since};

/// The maximum time until a store that keeps copies notices another process's eviction.
const NOTICED_WITHIN: Duration = Duration::from_secs(2);

fn tags(names: &[&str]) -> Tags {
    Tags::new(names).unwrap()
}

impl<S: LeaseStore> Subject<S> {
    async fn stamp(&self) -> TagStamp {
        self.store.tag_clock(&self.ungrouped()).await.unwrap().unwrap()
    }

    async fn set_tagged(&self, key: &CacheKey, value: &'static str, names: &[&str]) {
        let tagged = Tagged::new(self.stamp().await, &tags(names));
        self.store.set_tagged(key, value.into(), Some(LONG), &tagged).await.unwrap();
    }

    async fn fill_tagged(&self, key: &CacheKey, value: &'static str, names: &[&str]) {
        let stamp = self.stamp().await;
        let lease = self.lease(key, Intent::Fill).await;
        let tagged = Tagged::new(stamp, &tags(names));
        let is_stored =
            self.store.commit_tagged(key, &lease, value.into(), Some(LONG), &tagged).await.unwrap();
        assert!(is_stored, "{key}: nothing was evicted during the fill");
    }

    async fn evict_tags(&self, names: &[&str]) {
        self.store.evict_tags(&self.ungrouped(), &tags(names), EvictionMode::Hard).await.unwrap();
    }

    async fn lose(&self, loss: Loss) -> bool {
        let Some(lose) = &self.lose else { return false };
        (lose.0)(loss, self.prefix.clone()).await;
        true
    }
}

/// A tagged value is read like any other: whole, in parts, by a caller that wants to fill it.
pub async fn tagged_value_comes_back<S: LeaseStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        let (set, filled) = (space.key("set"), space.key("filled"));
        subject.set_tagged(&set, "hello", &["a", "b"]).await;
        subject.fill_tagged(&filled, "world", &["a"]).await;
        for _ in 0..3 {
            subject.holds(&set, "hello", "just written with tags").await;
            subject.holds(&filled, "world", "just filled with tags").await;
        }
        let begin = subject.begin(&set, Intent::Fill).await;
        assert!(matches!(begin, Acquired::Found(found) if found == "hello"), "{set}");
        assert!(subject.store.delete(&set).await.unwrap(), "{set}: there was an entry");
        subject.holds_nothing(&set, "deleted").await;

        // Without tags, and the other way round.
        subject.set(&filled, "plain").await;
        subject.evict_tags(&["a"]).await;
        subject.holds(&filled, "plain", "it was replaced by a value without tags").await;
        subject.set_tagged(&filled, "", &["a"]).await;
        assert_eq!(subject.get(&filled).await.as_deref(), Some(&b""[..]), "an empty value with tags");
        assert_eq!(subject.store.delete_group(&space).await.unwrap(), 1);
    }
    subject.clean_up().await;
}

/// The beginning and the parts of a tagged value are those of the value, whatever the store puts before it.
pub async fn parts_of_a_tagged_value_are_parts_of_the_value<S: LeaseStore>(subject: &Subject<S>) {
    let whole: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let many: Vec<String> = (0..MAX_TAGS).map(|i| format!("tag {i}")).collect();
    for space in [subject.ungrouped(), subject.group("g")] {
        for (count, length) in [(1, 0), (1, 5), (1, 100_000), (MAX_TAGS, 5), (MAX_TAGS, 100_000)] {
            let key = space.key(&format!("{count} {length}"));
            let value = Bytes::copy_from_slice(&whole[..length]);
            let tagged = Tagged::new(subject.stamp().await, &Tags::new(&many[..count]).unwrap());
            subject.store.set_tagged(&key, value.clone(), Some(LONG), &tagged).await.unwrap();
            for _ in 0..3 {
                let head = subject.store.get_head(&key, 100).await.unwrap().unwrap();
                assert_eq!(head.length, length, "{key}: the length of the value");
                assert!(head.bytes.len() >= length.min(100) && value.starts_with(&head.bytes), "{key}");
                for range in [0..length, length / 3..length / 2, length..length] {
                    let head = value.slice(..length.min(40));
                    let part = subject.store.get_range(&key, &head, range.clone()).await.unwrap();
                    assert_eq!(part, Some(value.slice(range.clone())), "{key} {range:?}");
                }
                let other = Bytes::from_static(b"another value begins so");
                assert_eq!(subject.store.get_range(&key, &other, 0..1).await.unwrap(), None, "{key}");
                assert_eq!(subject.get(&key).await, Some(value.clone()), "{key}");
            }
            subject.evict_tags(&["tag 0"]).await;
            assert_eq!(subject.store.get_head(&key, 100).await.unwrap(), None, "{key}: evicted");
            let part = subject.store.get_range(&key, &value.slice(..length.min(40)), 0..length.min(3)).await;
            assert_eq!(part.unwrap(), None, "{key}: a part of an evicted value");
            subject.holds_nothing(&key, "evicted").await;
        }
    }
    subject.clean_up().await;
}

/// Bytes that look like those a store puts before a tagged value are a value like any other.
pub async fn any_bytes_are_a_value_beside_tagged_ones<S: LeaseStore>(subject: &Subject<S>) {
    let tagged = Tagged::new(subject.stamp().await, &tags(&["a"]));
    let nested = tagged.encode(b"value");
    let values =
        [&nested[..], &nested[..1], &nested[..9], b"\xa7P", b"\xa7Pvalue", b"\xa7S12345678", b"\xa7"];
    for value in values.map(Bytes::copy_from_slice) {
        let key = subject.group("g").key("k");
        subject.store.set(&key, value.clone(), Some(LONG)).await.unwrap();
        assert_eq!(subject.get(&key).await, Some(value.clone()), "not the bytes that were written");
        assert!(subject.store.has(&key).await.unwrap());
        let head = subject.store.get_head(&key, 1000).await.unwrap().unwrap();
        assert_eq!((head.length, head.bytes), (value.len(), value.clone()), "not the head that was written");
        let part = subject.store.get_range(&key, &value, 0..1).await.unwrap();
        assert_eq!(part, Some(value.slice(..1)), "not the part that was written");
        let lease = subject.lease(&key, Intent::Refresh).await;
        assert!(subject.store.commit(&key, &lease, value.clone(), Some(LONG)).await.unwrap());
        assert_eq!(subject.get(&key).await, Some(value.clone()), "not the bytes that were committed");
        subject.store.set_tagged(&key, value.clone(), Some(LONG), &tagged).await.unwrap();
        assert_eq!(subject.get(&key).await, Some(value), "not the bytes that were written with tags");
    }
    subject.clean_up().await;
}

/// An eviction by tag removes every entry that carries the tag, in any group, and leaves all others.
pub async fn tag_evicts_every_entry_that_carries_it<S: LeaseStore>(subject: &Subject<S>) {
    for round in 0..3 {
        for space in [subject.ungrouped(), subject.group("g"), subject.group("h")] {
            subject.set(&space.key("plain"), "plain").await;
            subject.set_tagged(&space.key("a"), "a", &["a"]).await;
            subject.fill_tagged(&space.key("ab"), "ab", &["a", "b"]).await;
            subject.fill_tagged(&space.key("b"), "b", &["b", "c"]).await;
            subject.set_tagged(&space.key("none"), "none", &[]).await;
        }
        subject.evict_tags(&["a"]).await;
        for space in [subject.ungrouped(), subject.group("g"), subject.group("h")] {
            subject.holds_nothing(&space.key("a"), "its tag was evicted").await;
            subject.holds_nothing(&space.key("ab"), "one of its tags was evicted").await;
            subject.holds(&space.key("plain"), "plain", "it has no tags").await;
            subject.holds(&space.key("none"), "none", "it has no tags").await;
            subject.holds(&space.key("b"), "b", "another tag was evicted").await;
        }
        match round {
            0 => subject.evict_tags(&["x", "c", "y"]).await,
            _ => subject.evict_tags(&["b"]).await,
        }
        for space in [subject.ungrouped(), subject.group("g"), subject.group("h")] {
            subject.holds_nothing(&space.key("b"), "any of several tags evicts").await;
            subject.store.delete(&space.key("ab")).await.unwrap();
            subject.store.delete(&space.key("b")).await.unwrap();
        }
    }
    subject.clean_up().await;
}

/// Each prefix has tags of its own.
pub async fn tags_of_another_prefix_are_apart<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    subject.set_tagged(&key, "here", &["a"]).await;
    let elsewhere = subject.elsewhere(None);
    subject.store.tag_clock(&elsewhere).await.unwrap();
    subject.store.evict_tags(&elsewhere, &tags(&["a"]), EvictionMode::Hard).await.unwrap();
    subject.holds(&key, "here", "the tag of another prefix was evicted").await;
    // The group of a space makes no difference.
    subject.store.evict_tags(&subject.group("h"), &tags(&["a"]), EvictionMode::Hard).await.unwrap();
    subject.holds_nothing(&key, "its tag was evicted").await;
    subject.clean_up().await;
}

/// An evicted entry can be filled again at once, and stays while other tags are evicted.
pub async fn evicted_entry_is_filled_again<S: LeaseStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        let key = space.key("k");
        for _ in 0..3 {
            subject.fill_tagged(&key, "v", &["a"]).await;
            for other in ["x", "y", "z"] {
                subject.evict_tags(&[other]).await;
                subject.holds(&key, "v", "other tags were evicted").await;
                subject.holds(&key, "v", "other tags were evicted before").await;
            }
            let begin = subject.begin(&key, Intent::Fill).await;
            assert!(matches!(begin, Acquired::Found(found) if found == "v"), "{key}: it is valid");
            subject.evict_tags(&["a", "y"]).await;
            subject.holds_nothing(&key, "its tag was evicted").await;
        }
    }
    subject.clean_up().await;
}

/// A fill during which one of its tags was evicted is refused, even though the tags are known only at its end.
pub async fn eviction_during_a_fill_refuses_it<S: LeaseStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        for intent in [Intent::Fill, Intent::Refresh, Intent::Write] {
            let key = space.key(&format!("{intent:?}"));
            let stamp = subject.stamp().await;
            let lease = subject.lease(&key, intent).await;
            subject.evict_tags(&["a"]).await;
            let tagged = Tagged::new(stamp, &tags(&["a", "b"]));
            let is_stored =
                subject.store.commit_tagged(&key, &lease, "old".into(), Some(LONG), &tagged).await;
            assert!(!is_stored.unwrap(), "{key}: its tag was evicted during the fill");
            subject.holds_nothing(&key, "its tag was evicted during the fill").await;

            let stamp = subject.stamp().await;
            let lease = subject.lease(&key, intent).await;
            subject.evict_tags(&["x"]).await;
            let tagged = Tagged::new(stamp, &tags(&["a", "b"]));
            let is_stored =
                subject.store.commit_tagged(&key, &lease, "new".into(), Some(LONG), &tagged).await;
            assert!(is_stored.unwrap(), "{key}: another tag was evicted during the fill");
            subject.holds(&key, "new", "another tag was evicted during the fill").await;

            // The same for a value that was set.
            let tagged = Tagged::new(subject.stamp().await, &tags(&["a"]));
            subject.evict_tags(&["a"]).await;
            subject.store.set_tagged(&key, "old".into(), Some(LONG), &tagged).await.unwrap();
            subject.holds_nothing(&key, "its tag was evicted after its stamp").await;
        }
    }
    subject.clean_up().await;
}

/// A lease that was lost writes no tagged value, and one that is current is used up.
pub async fn tagged_commit_needs_its_lease<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    let tagged = Tagged::new(subject.stamp().await, &tags(&["a"]));
    let lease = subject.lease(&key, Intent::Fill).await;
    subject.store.delete(&key).await.unwrap();
    let commit = subject.store.commit_tagged(&key, &lease, "v".into(), Some(LONG), &tagged).await;
    assert!(!commit.unwrap(), "the lease was revoked");
    let lease = subject.lease(&key, Intent::Fill).await;
    subject.store.set_tagged(&key, "set".into(), Some(LONG), &tagged).await.unwrap();
    let commit = subject.store.commit_tagged(&key, &lease, "v".into(), Some(LONG), &tagged).await;
    assert!(!commit.unwrap(), "a write with tags revokes a lease");
    subject.holds(&key, "set", "the fill was refused").await;
    subject.is_free(&key, "the lease was used up").await;
    subject.store.set_tagged(&key, "set".into(), Some(Duration::ZERO), &tagged).await.unwrap();
    subject.holds_nothing(&key, "a time to live of zero removes").await;
    subject.clean_up().await;
}

/// An evicted entry is gone however many tags were evicted since, and the store's memory of them is bounded.
pub async fn eviction_outlasts_any_number_of_others<S: LeaseStore>(subject: &Subject<S>) {
    let key = |name: &str| subject.group("g").key(name);
    subject.fill_tagged(&key("evicted"), "old", &["a"]).await;
    subject.fill_tagged(&key("kept"), "kept", &["b"]).await;
    let early = subject.stamp().await;
    subject.evict_tags(&["a"]).await;
    for start in (0..=MAX_EVICTED_TAGS).step_by(MAX_TAGS) {
        let others = Tags::new((start..start + MAX_TAGS).map(|i| format!("other {i}"))).unwrap();
        subject.store.evict_tags(&subject.ungrouped(), &others, EvictionMode::Hard).await.unwrap();
    }
    subject.holds_nothing(&key("evicted"), "its tag was evicted, long ago").await;
    // A store may have lost the proof that the other entry is valid.
    let kept = subject.get(&key("kept")).await;
    assert!(kept.is_none_or(|value| value == "kept"));
    let tagged = Tagged::new(early, &tags(&["a"]));
    subject.store.set_tagged(&key("late"), "old".into(), Some(LONG), &tagged).await.unwrap();
    subject.holds_nothing(&key("late"), "its tag was evicted after its stamp").await;
    subject.fill_tagged(&key("evicted"), "new", &["a"]).await;
    subject.holds(&key("evicted"), "new", "it was filled after every eviction").await;
    subject.clean_up().await;
}

/// A soft eviction leaves the entry, but stale, and no fill that began before makes it fresh.
pub async fn soft_eviction_leaves_a_stale_entry<S: LeaseStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        let (key, other) = (space.key("k"), space.key("other"));
        subject.fill_tagged(&key, "v", &["a"]).await;
        subject.fill_tagged(&other, "other", &["b"]).await;
        let early = subject.stamp().await;
        subject.store.evict_tags(&space, &tags(&["a"]), EvictionMode::Soft).await.unwrap();
        for _ in 0..2 {
            let found = subject.get(&key).await.and_then(|answer| stale_since(&answer));
            assert_eq!(found.map(|(_, value)| value).as_deref(), Some(&b"v"[..]), "{key}: it is stale");
            subject.holds(&other, "other", "its tag was not evicted").await;
        }
        let lease = subject.lease(&key, Intent::Fill).await;
        let tagged = Tagged::new(early, &tags(&["a"]));
        let commit = subject.store.commit_tagged(&key, &lease, "late".into(), Some(LONG), &tagged).await;
        assert!(!commit.unwrap(), "{key}: it was evicted during the fill");
        let found = subject.get(&key).await;
        assert!(found.is_none_or(|answer| stale_since(&answer).is_some()), "{key}: a late fill is not fresh");
        subject.fill_tagged(&key, "new", &["a"]).await;
        subject.holds(&key, "new", "it was filled after the eviction").await;
        subject.store.evict_tags(&space, &tags(&["a"]), EvictionMode::Soft).await.unwrap();
        subject.evict_tags(&["a"]).await;
        subject.holds_nothing(&key, "a hard eviction follows a soft one").await;
    }
    subject.clean_up().await;
}

/// Another process's eviction by tag is seen here, at once or after a short time, and a copy is not kept against it.
pub async fn eviction_by_another_process_is_seen<S: LeaseStore>(subject: &Subject<S>) {
    for round in 0..10 {
        let key = subject.group("g").key(&format!("k{}", round % 3));
        subject.set_tagged(&key, "v", &["a", "b"]).await;
        Subject::warm(&*subject.store, &key, 20).await;
        let names: &[&str] = if round % 2 == 0 { &["a"] } else { &["x", "b"] };
        let space: KeySpace = subject.ungrouped();
        subject.other.evict_tags(&space, &tags(names), EvictionMode::Hard).await.unwrap();
        // A fill that begins after another process's eviction is stored, without a read before.
        let other = subject.group("g").key(&format!("filled{round}"));
        subject.fill_tagged(&other, "filled", &["a", "b"]).await;
        subject.holds(&other, "filled", "the fill began after the eviction").await;
        assert_eq!(subject.other.get(&key).await.unwrap(), None, "{key}: evicted there");
        let mut waited = Duration::ZERO;
        while subject.get(&key).await.is_some() {
            assert!(waited < NOTICED_WITHIN, "{key}: evicted by another process, and still here");
            waited += Duration::from_millis(5);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The holder of a lease doesn't read anything older than the lease.
        subject.set_tagged(&key, "v", &["a"]).await;
        Subject::warm(&*subject.store, &key, 20).await;
        subject.other.evict_tags(&space, &tags(&["a"]), EvictionMode::Hard).await.unwrap();
        let lease = subject.lease(&key, Intent::Refresh).await;
        subject.holds_nothing(&key, "it was evicted before the lease").await;
        subject.abandon(&key, &lease, crate::store::Abandon::Failed).await;
    }
    subject.clean_up().await;
}

/// A store that loses its tag clock or its tag table forgets entries, and never an eviction.
pub async fn lost_clock_or_table_is_a_miss<S: LeaseStore>(subject: &Subject<S>) {
    for loss in [Loss::Clock, Loss::Table, Loss::Both] {
        for evict_after in [false, true] {
            let key = subject.group("g").key("k");
            let other = subject.ungrouped().key("other");
            subject.store.delete(&key).await.unwrap();
            subject.store.delete(&other).await.unwrap();
            fill_until_stored(subject, &key, "old").await;
            fill_until_stored(subject, &other, "old").await;
            let early = subject.stamp().await;
            subject.evict_tags(&["a"]).await;
            if !subject.lose(loss).await {
                return subject.clean_up().await;
            }
            if evict_after {
                subject.evict_tags(&["unrelated"]).await;
            }
            subject.holds_nothing(&key, "its tag was evicted before the loss").await;
            subject.holds_nothing(&other, "its tag was evicted before the loss").await;
            let tagged = Tagged::new(early, &tags(&["a"]));
            let lease = subject.lease(&key, Intent::Fill).await;
            let commit = subject.store.commit_tagged(&key, &lease, "late".into(), Some(LONG), &tagged).await;
            assert!(!commit.unwrap(), "{key}: a fill from before the eviction, after {loss:?} was lost");
            subject.holds_nothing(&key, "filled with what was read before the eviction").await;
            fill_until_stored(subject, &key, "new").await;
            subject.holds(&key, "new", "filled after the loss").await;
            subject.evict_tags(&["a"]).await;
            subject.holds_nothing(&key, "evicted after the loss").await;
        }
    }
    subject.clean_up().await;
}

/// Fills until the value is stored. The first fill after a clock was lost may carry the lost clock's stamp: it is a miss, and the
/// next one is stored.
async fn fill_until_stored<S: LeaseStore>(subject: &Subject<S>, key: &CacheKey, value: &'static str) {
    for _ in 0..3 {
        let tagged = Tagged::new(subject.stamp().await, &tags(&["a"]));
        let lease = subject.lease(key, Intent::Fill).await;
        let commit = subject.store.commit_tagged(key, &lease, value.into(), Some(LONG), &tagged).await;
        if commit.unwrap() && subject.get(key).await.is_some() {
            return;
        }
    }
    panic!("{key}: nothing with tags is stored any more");
}
