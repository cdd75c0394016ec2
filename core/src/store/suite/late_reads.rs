//! Rules of stores that keep copies: a read under a lease is never older than the lease.

use bytes::Bytes;

use super::{LONG, Subject};
use crate::store::{Abandon, Acquired, Intent, LeaseStore};

/// The holder of a lease reads the last value that any process wrote, and nothing after an eviction, however late the store
/// receives changes.
pub async fn read_under_a_lease_is_not_older_than_the_lease<S: LeaseStore>(subject: &Subject<S>) {
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
            let Acquired::Lease(lease) = mine.begin(&key, intent, LONG).await.unwrap() else {
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

/// The answer of a read that began before a lease is not kept as a copy, which the holder of the lease would find.
pub async fn read_that_began_before_a_lease_is_not_kept_under_it<S: LeaseStore>(subject: &Subject<S>) {
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
