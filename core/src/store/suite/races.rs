//! Readers fill a key while the database changes: no reader sees a value from before an eviction that returned.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;

use super::{LONG, Subject, bytes_of};
use crate::key::{CacheKey, KeySpace};
use crate::store::{Abandon, Acquired, Intent, LeaseStore};
use crate::tag::{EvictionMode, Tagged, Tags, stale_since};

/// After `delete` has returned, no reader gets a value from before the change.
pub async fn delete_wins_races_against_fills<S: LeaseStore>(subject: &Subject<S>) {
    race(subject, subject.group("race").key("k"), DatabaseChange::Delete).await;
    race(subject, subject.ungrouped().key("k"), DatabaseChange::Delete).await;
}

/// After `delete_group` has returned, no reader gets a value from before the change.
pub async fn delete_group_wins_races_against_fills<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("race").key("k");
    race(subject, key.clone(), DatabaseChange::Evict(key.space())).await;
}

/// After a prefix was deleted, no reader gets a value from before the change.
pub async fn deleting_a_prefix_wins_races_against_fills<S: LeaseStore>(subject: &Subject<S>) {
    race(subject, subject.group("race").key("k"), DatabaseChange::Evict(subject.ungrouped())).await;
    race(subject, subject.ungrouped().key("k"), DatabaseChange::Evict(subject.ungrouped())).await;
}

/// After a write-through has finished, no reader gets a value from before it, although other writes run concurrently.
pub async fn writes_win_races_against_fills<S: LeaseStore>(subject: &Subject<S>) {
    race(subject, subject.group("race").key("k"), DatabaseChange::WriteThrough).await;
}

/// After an eviction by tag has returned, no reader gets a value from before the change, although the tags of a value are known
/// only after it was read, and other tags are evicted concurrently.
pub async fn tag_evictions_win_races_against_fills<S: LeaseStore>(subject: &Subject<S>) {
    race(subject, subject.group("race").key("k"), DatabaseChange::EvictTag).await;
    race(subject, subject.ungrouped().key("k"), DatabaseChange::EvictTag).await;
}

/// After a soft eviction has returned, no reader gets a value from before the change as a fresh one.
pub async fn soft_evictions_win_races_against_fills<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("race").key("k");
    race(subject, key.clone(), DatabaseChange::EvictGroupSoftly(key.space())).await;
    race(subject, key, DatabaseChange::EvictSoftly).await;
    race(subject, subject.ungrouped().key("k"), DatabaseChange::EvictSoftly).await;
}

/// The call that follows a change of the database.
#[derive(Clone)]
enum DatabaseChange {
    Delete,
    Evict(KeySpace),
    EvictSoftly,
    EvictGroupSoftly(KeySpace),
    EvictTag,
    WriteThrough,
}

/// A database with one growing value, and the oldest version that readers may get.
#[derive(Default)]
struct Database {
    version: AtomicU64,
    /// Every version below this was evicted, and its eviction has returned.
    floor: AtomicU64,
    over: AtomicBool,
}

const READERS: usize = 6;

/// Readers fill a key from a database while others change the database and evict.
async fn race<S: LeaseStore>(subject: &Subject<S>, key: CacheKey, change: DatabaseChange) {
    let database = Arc::new(Database::default());
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let has_tags = matches!(change, DatabaseChange::EvictTag);
            tokio::spawn(read_on(Arc::clone(&subject.store), key.clone(), Arc::clone(&database), has_tags))
        })
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

/// Reads and fills the key until the race is over. Returns the number of committed fills.
async fn read_on<S: LeaseStore>(
    store: Arc<S>,
    key: CacheKey,
    database: Arc<Database>,
    has_tags: bool,
) -> u64 {
    let mut filled = 0;
    while !database.over.load(Ordering::SeqCst) {
        let floor = database.floor.load(Ordering::SeqCst);
        assert_recent(store.get(&key).await.unwrap(), floor, &key);
        let intent = if fastrand::u8(..4) == 0 { Intent::Refresh } else { Intent::Fill };
        let floor = database.floor.load(Ordering::SeqCst);
        match store.begin(&key, intent, LONG).await.unwrap() {
            Acquired::Found(found) => assert_recent(Some(found), floor, &key),
            Acquired::Lease(lease) => {
                let stamp = if has_tags { store.tag_clock(&key.space()).await.unwrap() } else { None };
                let version = database.version.load(Ordering::SeqCst);
                pause().await;
                if fastrand::u8(..16) == 0 {
                    store.abandon(&key, &lease, Abandon::Failed).await.unwrap();
                } else {
                    let value = bytes_of(version);
                    let commit = match stamp {
                        Some(stamp) => {
                            let tagged = Tagged::new(stamp, &tags(&["raced", "other"]));
                            store.commit_tagged(&key, &lease, value, Some(LONG), &tagged).await
                        }
                        None => store.commit(&key, &lease, value, Some(LONG)).await,
                    };
                    filled += u64::from(commit.unwrap());
                }
            }
            Acquired::Filling | Acquired::Busy(_) => {}
        }
        pause().await;
    }
    filled
}

/// Changes the database, then makes the call that a route makes after a change.
async fn change_once<S: LeaseStore>(store: &S, key: &CacheKey, database: &Database, change: &DatabaseChange) {
    let write_lease = match change {
        DatabaseChange::WriteThrough => match store.begin(key, Intent::Write, LONG).await.unwrap() {
            Acquired::Lease(write_lease) => Some(write_lease),
            other => panic!("`begin(Write)` always grants a lease, not {other:?}"),
        },
        DatabaseChange::Delete
        | DatabaseChange::Evict(_)
        | DatabaseChange::EvictSoftly
        | DatabaseChange::EvictGroupSoftly(_)
        | DatabaseChange::EvictTag => None,
    };
    let version = database.version.fetch_add(1, Ordering::SeqCst) + 1;
    pause().await;
    let committed = match &write_lease {
        Some(write_lease) => store.commit(key, write_lease, bytes_of(version), Some(LONG)).await.unwrap(),
        None => false,
    };
    match change {
        _ if committed => {}
        DatabaseChange::Evict(space) => drop(store.delete_group(space).await.unwrap()),
        DatabaseChange::EvictSoftly => store.evict_softly(key).await.unwrap(),
        DatabaseChange::EvictGroupSoftly(space) => store.evict_group_softly(space).await.unwrap(),
        DatabaseChange::EvictTag => {
            let names: &[&str] = if version.is_multiple_of(3) { &["unrelated", "raced"] } else { &["raced"] };
            store.evict_tags(&key.space(), &tags(names), EvictionMode::Hard).await.unwrap();
            if version.is_multiple_of(2) {
                store.evict_tags(&key.space(), &tags(&["unrelated"]), EvictionMode::Hard).await.unwrap();
            }
        }
        DatabaseChange::Delete | DatabaseChange::WriteThrough => drop(store.delete(key).await.unwrap()),
    }
    database.floor.fetch_max(version, Ordering::SeqCst);
}

fn tags(names: &[&str]) -> Tags {
    Tags::new(names).unwrap()
}

/// Returns the result of a task, or resumes its panic, which names the broken rule.
fn outcome<T>(task: Result<T, tokio::task::JoinError>) -> T {
    task.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn assert_recent(value: Option<Bytes>, floor: u64, key: &CacheKey) {
    let Some(value) = value.filter(|value| stale_since(value).is_none()) else { return };
    let version = u64::from_be_bytes(value[..].try_into().unwrap());
    assert!(version >= floor, "{key} holds version {version}, but everything below {floor} was evicted");
}

/// Yields to other tasks, a random number of times.
async fn pause() {
    for _ in 0..fastrand::u8(..4) {
        tokio::task::yield_now().await;
    }
}
