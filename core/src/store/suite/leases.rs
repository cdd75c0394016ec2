//! Rules of leases: `begin`, `commit`, `renew`, `abandon` and the expiry of a lease.

use std::time::Duration;

use bytes::Bytes;

use super::{AFTER_SHORT, LONG, SHORT, Subject};
use crate::store::{Abandon, Acquired, Intent, Lease, LeaseStore};

/// `Fill` returns `Found` with the valid entry, and acquires no lease.
pub async fn fill_finds_a_valid_entry<S: LeaseStore>(subject: &Subject<S>) {
    for key in [subject.ungrouped().key("k"), subject.group("g").key("k")] {
        subject.set(&key, "there").await;
        match subject.begin(&key, Intent::Fill).await {
            Acquired::Found(value) => assert_eq!(value, "there"),
            other => panic!("`Fill` should have found the entry of {key}, not {other:?}"),
        }
        subject.is_free(&key, "finding an entry holds nothing").await;
    }
    subject.clean_up().await;
}

/// `Fill` doesn't return an expired entry.
pub async fn fill_does_not_find_an_expired_entry<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    subject.store.set(&key, Bytes::from_static(b"old"), Some(SHORT)).await.unwrap();
    subject.advance(AFTER_SHORT).await;
    let lease = subject.lease(&key, Intent::Fill).await;
    assert!(subject.commit(&key, &lease, "new").await, "nothing happened to the lease");
    subject.holds(&key, "new", "committed").await;
    subject.clean_up().await;
}

/// While one caller fills, others get `Filling`. After the commit they get `Found`.
pub async fn one_caller_fills<S: LeaseStore>(subject: &Subject<S>) {
    for intent in [Intent::Fill, Intent::Refresh] {
        for space in [subject.ungrouped(), subject.group("g")] {
            let key = space.key(&format!("{intent:?}"));
            let lease = subject.lease(&key, intent).await;
            subject.is_filling(&key, "another caller holds the lease").await;
            subject.holds_nothing(&key, "a lease is not an entry").await;
            subject.is_free(&space.key("other"), "only its neighbour is being filled").await;
            assert!(subject.commit(&key, &lease, "filled").await, "nothing happened to the lease");
            subject.holds(&key, "filled", "committed").await;
            assert!(
                matches!(subject.begin(&key, Intent::Fill).await, Acquired::Found(found) if found == "filled")
            );
        }
    }
    subject.clean_up().await;
}

/// A commit ends the lease: it can't be used again, and the key is free.
pub async fn lease_commits_once<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    let lease = subject.lease(&key, Intent::Fill).await;
    assert!(subject.commit(&key, &lease, "first").await);
    assert!(!subject.commit(&key, &lease, "second").await, "the first commit ended the lease");
    subject.holds(&key, "first", "the second commit was refused").await;
    subject.is_free(&key, "the lease was committed").await;
    assert_eq!(
        subject.store.delete_group(&key.space()).await.unwrap(),
        1,
        "a committed entry belongs to its group"
    );
    subject.clean_up().await;
}

/// The TTL of a commit works as that of a `set`.
pub async fn committed_entry_expires_after_its_ttl<S: LeaseStore>(subject: &Subject<S>) {
    let space = subject.group("g");
    for (suffix, ttl) in [("brief", Some(SHORT)), ("lasting", Some(LONG)), ("endless", None)] {
        let key = space.key(suffix);
        let lease = subject.lease(&key, Intent::Fill).await;
        assert!(subject.store.commit(&key, &lease, Bytes::from_static(b"v"), ttl).await.unwrap());
    }
    subject.advance(AFTER_SHORT).await;
    subject.holds_nothing(&space.key("brief"), "its TTL is over").await;
    subject.holds(&space.key("lasting"), "v", "its TTL is not over").await;
    subject.holds(&space.key("endless"), "v", "it has no TTL").await;
    subject.clean_up().await;
}

/// A commit with a TTL of zero removes the entry and ends the lease.
pub async fn commit_with_zero_ttl_removes_the_entry<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    subject.set(&key, "old").await;
    let lease = subject.lease(&key, Intent::Refresh).await;
    subject.store.commit(&key, &lease, Bytes::from_static(b"v"), Some(Duration::ZERO)).await.unwrap();
    subject.holds_nothing(&key, "it was overwritten with a TTL of zero").await;
    subject.is_free(&key, "the lease was committed").await;
    subject.clean_up().await;
}

/// A lease that the store never granted commits nothing.
pub async fn unknown_lease_commits_nothing<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    let made_up = Lease::new([0x5a; 16], [0xa5; 8]);
    assert!(!subject.commit(&key, &made_up, "forged").await, "the key is free");
    subject.holds_nothing(&key, "the commit was refused").await;
    let lease = subject.lease(&key, Intent::Fill).await;
    assert!(!subject.commit(&key, &made_up, "forged").await, "another caller holds the lease");
    assert!(!subject.store.renew(&key, &made_up, LONG).await.unwrap(), "another caller holds the lease");
    subject.abandon(&key, &made_up, Abandon::Failed).await;
    assert!(subject.commit(&key, &lease, "true").await, "a made-up lease harmed the real one");
    subject.clean_up().await;
}

/// A lease of one key doesn't write another.
pub async fn lease_is_valid_for_its_key_only<S: LeaseStore>(subject: &Subject<S>) {
    let (key, other) = (subject.group("g").key("k"), subject.group("g").key("other"));
    let lease = subject.lease(&key, Intent::Fill).await;
    let others = subject.lease(&other, Intent::Fill).await;
    assert!(!subject.commit(&other, &lease, "wrong").await, "the lease belongs to another key");
    assert!(subject.commit(&other, &others, "right").await);
    assert!(subject.commit(&key, &lease, "right").await);
    subject.clean_up().await;
}

/// A lease is stored beside the entry: the old entry is readable until the new one is committed.
pub async fn entry_stays_readable_during_a_refresh<S: LeaseStore>(subject: &Subject<S>) {
    for key in [subject.ungrouped().key("k"), subject.group("g").key("k")] {
        subject.set(&key, "old").await;
        let lease = subject.lease(&key, Intent::Refresh).await;
        subject.holds(&key, "old", "a refresh is under way").await;
        assert!(matches!(subject.begin(&key, Intent::Fill).await, Acquired::Found(old) if old == "old"));
        assert!(subject.commit(&key, &lease, "new").await, "nothing happened to the lease");
        subject.holds(&key, "new", "the refresh was committed").await;
        let lease = subject.lease(&key, Intent::Refresh).await;
        subject.abandon(&key, &lease, Abandon::Failed).await;
        subject.holds(&key, "new", "a failed refresh keeps the entry").await;
    }
    subject.clean_up().await;
}

/// `Refresh` returns `Lease` or `Filling` where `Fill` would return `Found`.
pub async fn refresh_never_returns_found<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    subject.set(&key, "there").await;
    let _lease = subject.lease(&key, Intent::Refresh).await;
    let begin = subject.begin(&key, Intent::Refresh).await;
    assert!(matches!(begin, Acquired::Filling), "another refresh is under way, not {begin:?}");
    subject.clean_up().await;
}

/// After a failed fill the next caller acquires the lease at once.
pub async fn failed_fill_frees_the_key<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    let lease = subject.lease(&key, Intent::Fill).await;
    subject.abandon(&key, &lease, Abandon::Failed).await;
    assert!(!subject.commit(&key, &lease, "late").await, "the lease was abandoned");
    subject.holds_nothing(&key, "the commit was refused").await;
    let lease = subject.lease(&key, Intent::Fill).await;
    assert!(subject.commit(&key, &lease, "second try").await);
    subject.clean_up().await;
}

/// After an uncacheable answer, callers get `Busy` for the given time.
pub async fn uncacheable_mark_makes_callers_busy_until_it_expires<S: LeaseStore>(subject: &Subject<S>) {
    let (brief, lasting) = (subject.group("g").key("brief"), subject.group("g").key("lasting"));
    for (key, pause) in [(&brief, SHORT), (&lasting, LONG)] {
        let lease = subject.lease(key, Intent::Fill).await;
        subject.abandon(key, &lease, Abandon::Uncacheable(pause)).await;
        assert!(!subject.commit(key, &lease, "late").await, "the lease was abandoned");
    }
    subject.is_busy(&lasting, "the answer was uncacheable").await;
    subject.holds_nothing(&lasting, "a mark is not an entry").await;
    subject.advance(AFTER_SHORT).await;
    subject.is_free(&brief, "the mark has expired").await;
    subject.is_busy(&lasting, "the mark has not expired").await;
    subject.clean_up().await;
}

/// A write lease replaces the mark of an uncacheable answer.
pub async fn write_replaces_an_uncacheable_mark<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    let lease = subject.lease(&key, Intent::Fill).await;
    subject.abandon(&key, &lease, Abandon::Uncacheable(LONG)).await;
    let write_lease = subject.lease(&key, Intent::Write).await;
    assert!(subject.commit(&key, &write_lease, "written").await, "nothing happened to the write lease");
    subject.holds(&key, "written", "committed").await;
    subject.is_free(&key, "the write lease replaced the mark, and was committed").await;
    subject.clean_up().await;
}

/// Abandoning a lost lease affects neither its successor nor a free key.
pub async fn abandoning_a_lost_lease_has_no_effect<S: LeaseStore>(subject: &Subject<S>) {
    for why in [Abandon::Failed, Abandon::Uncacheable(LONG)] {
        let key = subject.group("g").key(&format!("{why:?}"));
        let lost = subject.lease(&key, Intent::Fill).await;
        subject.store.delete(&key).await.unwrap();
        subject.abandon(&key, &lost, why).await;
        subject.is_free(&key, "a lost lease can't mark a key").await;
        let current = subject.lease(&key, Intent::Fill).await;
        subject.abandon(&key, &lost, why).await;
        subject.is_filling(&key, "the current lease is another one").await;
        assert!(subject.commit(&key, &current, "v").await, "a lost lease ended the current one");
    }
    subject.clean_up().await;
}

/// A lease that is neither committed nor abandoned expires. Then the next caller can acquire it.
pub async fn lease_expires<S: LeaseStore>(subject: &Subject<S>) {
    for intent in [Intent::Fill, Intent::Refresh, Intent::Write] {
        let keys = ["taken", "left"].map(|suffix| subject.group("g").key(&format!("{intent:?}:{suffix}")));
        let mut leases = Vec::new();
        for key in &keys {
            match subject.store.begin(key, intent, SHORT).await.unwrap() {
                Acquired::Lease(lease) => leases.push(lease),
                other => panic!("{key} is free, not {other:?}"),
            }
        }
        subject.advance(AFTER_SHORT).await;
        assert!(!subject.commit(&keys[1], &leases[1], "late").await, "{intent:?}: the lease has expired");
        let next = subject.lease(&keys[0], Intent::Fill).await;
        assert!(
            !subject.commit(&keys[0], &leases[0], "late").await,
            "{intent:?}: another caller holds the lease"
        );
        assert!(
            subject.commit(&keys[0], &next, "next").await,
            "{intent:?}: nothing happened to the new lease"
        );
        subject.holds(&keys[0], "next", "the late commit was refused").await;
        subject.holds_nothing(&keys[1], "the late commit was refused").await;
    }
    subject.clean_up().await;
}

/// `renew` sets the expiry of a lease, counted from now.
pub async fn renewed_lease_stays_current<S: LeaseStore>(subject: &Subject<S>) {
    // Long enough not to expire between the first two lines of a slow test.
    const LEASE_TTL: Duration = Duration::from_millis(600);
    for intent in [Intent::Fill, Intent::Write] {
        let key = subject.group("g").key(&format!("{intent:?}"));
        let Acquired::Lease(lease) = subject.store.begin(&key, intent, LEASE_TTL).await.unwrap() else {
            panic!("{key} is free");
        };
        assert!(subject.store.renew(&key, &lease, LONG).await.unwrap(), "the lease is current");
        subject.advance(LEASE_TTL + AFTER_SHORT).await;
        let begin = subject.begin(&key, Intent::Fill).await;
        assert!(
            matches!(begin, Acquired::Filling | Acquired::Busy(_)),
            "{intent:?}: it was renewed, not {begin:?}"
        );
        assert!(subject.commit(&key, &lease, "v").await, "{intent:?}: the lease was renewed");
    }
    // `renew` may also shorten a lease.
    let key = subject.group("g").key("shorter");
    let lease = subject.lease(&key, Intent::Fill).await;
    assert!(subject.store.renew(&key, &lease, SHORT).await.unwrap(), "the lease is current");
    subject.advance(AFTER_SHORT).await;
    assert!(!subject.commit(&key, &lease, "late").await, "renewed for a short time, which is over");
    subject.clean_up().await;
}

/// `renew` returns `false` for a lease that was committed, abandoned, revoked or replaced, or that expired, and restores none.
pub async fn lost_lease_is_not_renewed<S: LeaseStore>(subject: &Subject<S>) {
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
                let _write_lease = subject.lease(&key, Intent::Write).await;
            }
        }
        lost.push((key, lease));
    }
    let key = space.key("expired");
    let Acquired::Lease(lease) = subject.store.begin(&key, Intent::Fill, SHORT).await.unwrap() else {
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
