//! Soft evictions of keys and groups: the entry stays, but stale as of that moment, and no fill that began before makes it fresh.

use std::time::Duration;

use bytes::Bytes;

use super::{AFTER_SHORT, LONG, SHORT, Subject};
use crate::key::{CacheKey, KeySpace};
use crate::store::{Acquired, Intent, LeaseStore};
use crate::tag::{EvictionMode, Tagged, Tags, stale_since};

/// The maximum time until a store that keeps copies notices another process's eviction.
const NOTICED_WITHIN: Duration = Duration::from_secs(2);

/// The number of soft evictions of a group after which its oldest entries may be gone.
const KEPT_THROUGH: usize = 8;

/// The target of a soft eviction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SoftTarget {
    Key,
    Group,
    Prefix,
}

const TARGETS: [SoftTarget; 3] = [SoftTarget::Key, SoftTarget::Group, SoftTarget::Prefix];

impl<S: LeaseStore> Subject<S> {
    /// Evicts the key softly, or its group or prefix. Without a group, its group is the prefix.
    async fn evict_softly(&self, key: &CacheKey, target: SoftTarget) {
        evict_softly(&*self.store, key, target).await;
    }

    async fn is_stale(&self, key: &CacheKey, value: &[u8], why: &str) {
        let answer = self.get(key).await;
        let found = answer.as_ref().and_then(stale_since).map(|(_, value)| value);
        assert_eq!(found.as_deref(), Some(value), "{key}: {why}, so it is stale, not {answer:?}");
        assert!(!self.store.has(key).await.unwrap(), "`has` disagrees with `get` on {key}: {why}");
    }

    /// Asserts that there is no fresh value, and returns `true` if there is a stale one.
    async fn is_not_fresh(&self, key: &CacheKey, why: &str) -> bool {
        let answer = self.get(key).await;
        assert!(answer.as_ref().is_none_or(|answer| stale_since(answer).is_some()), "{key}: {why}");
        assert!(!self.store.has(key).await.unwrap(), "`has` disagrees with `get` on {key}: {why}");
        answer.is_some()
    }
}

async fn evict_softly<S: LeaseStore>(store: &S, key: &CacheKey, target: SoftTarget) {
    match target {
        SoftTarget::Key => store.evict_softly(key).await.unwrap(),
        SoftTarget::Group => store.evict_group_softly(&key.space()).await.unwrap(),
        SoftTarget::Prefix => {
            let prefix = KeySpace::new(key.prefix(), None).unwrap();
            store.evict_group_softly(&prefix).await.unwrap();
        }
    }
}

/// A soft eviction leaves the value, stale since that moment, and concerns no other key. A caller that wants to fill gets a lease.
pub async fn softly_evicted_value_is_stale<S: LeaseStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        for target in TARGETS {
            let (key, other) = (space.key("k"), subject.elsewhere(space.group()).key("k"));
            let (sibling, in_other_group) = (space.key("sibling"), subject.group("h").key("k"));
            for key in [&key, &other, &sibling, &in_other_group] {
                subject.set(key, "v").await;
            }
            subject.evict_softly(&key, target).await;
            let mut since = None;
            for _ in 0..3 {
                subject.is_stale(&key, b"v", "it was evicted softly").await;
                let found = subject.get(&key).await.and_then(|answer| stale_since(&answer));
                let found = found.map(|(since, _)| since);
                assert!(since.is_none() || since == found, "{key}: the time of the eviction changed");
                since = found;
                subject.evict_softly(&key, SoftTarget::Key).await;
            }
            subject.holds(&other, "v", "another prefix was evicted").await;
            if target == SoftTarget::Key {
                subject.holds(&sibling, "v", "another key was evicted").await;
            }
            if target != SoftTarget::Prefix && space.group().is_some() {
                subject.holds(&in_other_group, "v", "another group was evicted").await;
            }
            subject.lease(&key, Intent::Fill).await;
            subject.is_stale(&key, b"v", "it is readable during a refresh").await;
            subject.clean_up().await;
        }
    }
}

/// A value of any bytes and any length, with tags or without, comes back from a soft eviction unchanged.
pub async fn softly_evicted_value_keeps_its_bytes<S: LeaseStore>(subject: &Subject<S>) {
    let whole: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let tagged = Tagged::new(
        subject.store.tag_clock(&subject.ungrouped()).await.unwrap().unwrap(),
        &Tags::new(["a", "b"]).unwrap(),
    );
    let nested = tagged.encode(b"value");
    let begins_alike =
        [&nested[..], b"\xa7", b"\xa7K", b"\xa7S12345678", b"\xa7K\x13000000000000001x", b"\xa7Pv"];
    let lengths = [0, 1, 7, 8, 9, 18, 19, 20, 27, 5_000, 100_000].map(|length| &whole[..length]);
    for space in [subject.ungrouped(), subject.group("g")] {
        for (index, value) in lengths.into_iter().chain(begins_alike).enumerate() {
            let value = Bytes::copy_from_slice(value);
            // Without a group, the group is the whole prefix.
            let targets: &[_] = if space.group().is_some() { &TARGETS[..2] } else { &TARGETS[..1] };
            for target in targets.iter().copied() {
                let (plain, with_tags) =
                    (space.key(&format!("plain {index}")), space.key(&format!("tagged {index}")));
                subject.store.set(&plain, value.clone(), Some(LONG)).await.unwrap();
                subject.store.set_tagged(&with_tags, value.clone(), Some(LONG), &tagged).await.unwrap();
                for key in [&plain, &with_tags] {
                    subject.evict_softly(key, target).await;
                    subject.is_stale(key, &value, "it was evicted softly").await;
                    // By both, and a group twice.
                    subject.evict_softly(key, SoftTarget::Key).await;
                    subject.evict_softly(key, target).await;
                    subject.is_stale(key, &value, "it was evicted softly again").await;
                    // The head is the whole stale value, which has no parts.
                    let head = subject.store.get_head(key, 10).await.unwrap().map(|head| head.bytes);
                    let head = head.and_then(|head| stale_since(&head)).map(|(_, value)| value);
                    assert_eq!(head.as_ref(), Some(&value), "{key}: the head of a stale value");
                    let first = value.slice(..value.len().min(30));
                    let part = subject.store.get_range(key, &first, 0..first.len().min(1)).await.unwrap();
                    // The head must tell a value from any other, and these begin as the form of a stale value does.
                    let is_ambiguous = value.starts_with(b"\xa7");
                    assert!(
                        is_ambiguous || part.is_none_or(|part| part.is_empty()),
                        "{key}: a part of a stale value"
                    );
                }
            }
        }
        subject.clean_up().await;
    }
}

/// A fill or a write that began before a soft eviction is refused, and one that began after it makes the entry fresh.
pub async fn soft_eviction_revokes_leases<S: LeaseStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        for target in TARGETS {
            let intents = [Intent::Fill, Intent::Refresh, Intent::Write];
            // A whole prefix takes longer.
            let intents = if target == SoftTarget::Prefix { &intents[..1] } else { &intents[..] };
            for intent in intents.iter().copied() {
                for is_there in [false, true] {
                    let key = space.key(&format!("{intent:?}"));
                    subject.store.delete(&key).await.unwrap();
                    if is_there && intent != Intent::Fill {
                        subject.set(&key, "old").await;
                    }
                    let lease = subject.lease(&key, intent).await;
                    subject.evict_softly(&key, target).await;
                    assert!(
                        !subject.store.renew(&key, &lease, LONG).await.unwrap(),
                        "{key}: the lease was revoked"
                    );
                    assert!(
                        !subject.commit(&key, &lease, "late").await,
                        "{key}: {target:?} was evicted during the fill"
                    );
                    if subject.is_not_fresh(&key, "the fill began before").await {
                        subject.is_stale(&key, b"old", "the fill began before").await;
                    }
                    let lease = subject.lease(&key, Intent::Fill).await;
                    assert!(
                        subject.commit(&key, &lease, "new").await,
                        "{key}: the fill began after {target:?}"
                    );
                    subject.holds(&key, "new", "it was filled after the eviction").await;
                    let begin = subject.begin(&key, Intent::Fill).await;
                    assert!(matches!(begin, Acquired::Found(found) if found == "new"), "{key}: it is fresh");
                    subject.evict_softly(&key, target).await;
                    subject.set(&key, "set").await;
                    subject.holds(&key, "set", "it was written after the eviction").await;
                }
            }
        }
        subject.clean_up().await;
    }
}

/// A hard eviction removes what was evicted softly, and the value doesn't come back when the key is evicted softly again.
pub async fn hard_eviction_removes_stale_values<S: LeaseStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        for target in TARGETS {
            for hard in TARGETS {
                let (key, other) = (space.key("k"), space.key("other"));
                subject.set(&key, "v").await;
                subject.evict_softly(&key, target).await;
                subject.set(&other, "other").await;
                match hard {
                    SoftTarget::Key => assert!(subject.store.delete(&key).await.is_ok()),
                    SoftTarget::Group => assert!(subject.store.delete_group(&space).await.is_ok()),
                    SoftTarget::Prefix => {
                        assert!(subject.store.delete_group(&subject.ungrouped()).await.is_ok())
                    }
                }
                for again in TARGETS {
                    subject.holds_nothing(&key, "a hard eviction followed the soft one").await;
                    subject.evict_softly(&key, again).await;
                }
                subject.set(&key, "new").await;
                subject.holds(&key, "new", "written after the evictions").await;
                subject.clean_up().await;
            }
        }
    }
}

/// A soft eviction doesn't extend the time to live.
pub async fn stale_value_expires_after_its_ttl<S: LeaseStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        for target in TARGETS {
            let key = space.key(&format!("{target:?}"));
            subject.store.set(&key, "v".into(), Some(SHORT)).await.unwrap();
            subject.evict_softly(&key, target).await;
        }
    }
    subject.advance(AFTER_SHORT).await;
    for space in [subject.ungrouped(), subject.group("g")] {
        for target in TARGETS {
            subject.holds_nothing(&space.key(&format!("{target:?}")), "its time to live is over").await;
        }
    }
    subject.clean_up().await;
}

/// After any number of soft evictions, entries from before are stale or gone, and later ones fresh.
pub async fn any_number_of_soft_evictions_leaves_nothing_fresh<S: LeaseStore>(subject: &Subject<S>) {
    let group = subject.group("g");
    let key = |number: usize| group.key(&number.to_string());
    for round in 0..20 {
        subject.set(&key(round), "v").await;
        subject.evict_softly(&key(round), SoftTarget::Group).await;
        for earlier in (0..=round).rev().take(20) {
            let is_there = subject.is_not_fresh(&key(earlier), "its group was evicted softly").await;
            assert!(
                is_there || round - earlier >= KEPT_THROUGH,
                "{round}: it was evicted softly {} times",
                round - earlier
            );
        }
    }
    subject.set(&key(0), "new").await;
    subject.holds(&key(0), "new", "written after the evictions").await;
    subject.store.delete_group(&group).await.unwrap();
    for number in 0..20 {
        subject.holds_nothing(&key(number), "its group was evicted").await;
    }
    subject.clean_up().await;
}

/// A soft eviction and tags go together: the earlier soft eviction counts, and a hard one removes.
pub async fn soft_evictions_of_keys_and_tags_go_together<S: LeaseStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        for target in TARGETS {
            for tag_first in [false, true] {
                for how in [EvictionMode::Soft, EvictionMode::Hard] {
                    let key = space.key("k");
                    let tags = Tags::new(["a"]).unwrap();
                    let stamp = subject.store.tag_clock(&space).await.unwrap().unwrap();
                    subject
                        .store
                        .set_tagged(&key, "v".into(), Some(LONG), &Tagged::new(stamp, &tags))
                        .await
                        .unwrap();
                    for by_tag in [tag_first, !tag_first] {
                        if by_tag {
                            subject.store.evict_tags(&space, &tags, how).await.unwrap();
                        } else {
                            subject.evict_softly(&key, target).await;
                        }
                    }
                    match how {
                        EvictionMode::Soft => subject.is_stale(&key, b"v", "both are soft").await,
                        EvictionMode::Hard => subject.holds_nothing(&key, "its tag was evicted").await,
                    }
                }
            }
        }
        subject.clean_up().await;
    }
}

/// Another process's soft eviction is seen here, at once or after a short time, and its refill too.
pub async fn soft_eviction_by_another_process_is_seen<S: LeaseStore>(subject: &Subject<S>) {
    for round in 0..9 {
        let key = subject.group("g").key(&format!("k{}", round % 2));
        let target = TARGETS[round % 3];
        subject.set(&key, "v").await;
        Subject::warm(&*subject.store, &key, 20).await;
        evict_softly(&*subject.other, &key, target).await;
        let there = subject.other.get(&key).await.unwrap().and_then(|answer| stale_since(&answer));
        assert_eq!(there.map(|(_, value)| value).as_deref(), Some(&b"v"[..]), "{key}: evicted there");
        let mut waited = Duration::ZERO;
        while subject.get(&key).await.is_some_and(|answer| stale_since(&answer).is_none()) {
            assert!(waited < NOTICED_WITHIN, "{key}: evicted softly by another process, and still fresh");
            waited += Duration::from_millis(5);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The holder of a lease doesn't read anything older than the lease.
        subject.set(&key, "v").await;
        Subject::warm(&*subject.store, &key, 20).await;
        evict_softly(&*subject.other, &key, target).await;
        let lease = subject.lease(&key, Intent::Fill).await;
        subject.is_stale(&key, b"v", "it was evicted before the lease").await;
        assert!(subject.commit(&key, &lease, "new").await, "{key}: the fill began after the eviction");
        subject.holds(&key, "new", "filled after the eviction").await;
    }
    subject.clean_up().await;
}
