//! Readers fill a key while the database changes: no reader sees a value from before an eviction that returned.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;

use super::{LONG, Subject, bytes_of};
use crate::key::{CacheKey, KeySpace};
use crate::store::{Abandon, Acquired, Intent, LeaseStore};
use crate::tag::{TagEviction, Tagged, Tags};

/// After `delete` has returned nobody reads what the database held before.
pub async fn racing_against_delete<S: LeaseStore>(subject: &Subject<S>) {
    race(subject, subject.group("race").key("k"), DatabaseChange::Delete).await;
    race(subject, subject.ungrouped().key("k"), DatabaseChange::Delete).await;
}

/// After `delete_group` has returned nobody reads what the database held before.
pub async fn racing_against_delete_group<S: LeaseStore>(subject: &Subject<S>) {
    let key = subject.group("race").key("k");
    race(subject, key.clone(), DatabaseChange::Evict(key.space())).await;
}

/// After a prefix was wiped nobody reads what the database held before.
pub async fn racing_against_a_wiped_prefix<S: LeaseStore>(subject: &Subject<S>) {
    race(subject, subject.group("race").key("k"), DatabaseChange::Evict(subject.ungrouped())).await;
    race(subject, subject.ungrouped().key("k"), DatabaseChange::Evict(subject.ungrouped())).await;
}

/// After a write-through has finished nobody reads what the database held before, though others write, too.
pub async fn racing_against_writes<S: LeaseStore>(subject: &Subject<S>) {
    race(subject, subject.group("race").key("k"), DatabaseChange::WriteThrough).await;
}

/// After an eviction by tag has returned nobody reads what the database held before, though a value's tags are known only after
/// it was read, and other tags are evicted all the time.
pub async fn racing_against_tag_evictions<S: LeaseStore>(subject: &Subject<S>) {
    race(subject, subject.group("race").key("k"), DatabaseChange::EvictTag).await;
    race(subject, subject.ungrouped().key("k"), DatabaseChange::EvictTag).await;
}

/// How the database's changes reach the store.
#[derive(Clone)]
enum DatabaseChange {
    Delete,
    Evict(KeySpace),
    EvictTag,
    WriteThrough,
}

/// One value in a database that only ever grows, and what readers may still see of it.
#[derive(Default)]
struct Database {
    version: AtomicU64,
    /// Every version below this was evicted, and that eviction has returned.
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

/// Reads, and fills what is missing, until the race is over. Answers how many fills were committed.
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

/// Changes the database, then does what a route does after a change.
async fn change_once<S: LeaseStore>(store: &S, key: &CacheKey, database: &Database, change: &DatabaseChange) {
    let ticket = match change {
        DatabaseChange::WriteThrough => match store.begin(key, Intent::Write, LONG).await.unwrap() {
            Acquired::Lease(ticket) => Some(ticket),
            other => panic!("`begin(Write)` always gives a ticket, not {other:?}"),
        },
        DatabaseChange::Delete | DatabaseChange::Evict(_) | DatabaseChange::EvictTag => None,
    };
    let version = database.version.fetch_add(1, Ordering::SeqCst) + 1;
    pause().await;
    let committed = match &ticket {
        Some(ticket) => store.commit(key, ticket, bytes_of(version), Some(LONG)).await.unwrap(),
        None => false,
    };
    match change {
        _ if committed => {}
        DatabaseChange::Evict(space) => drop(store.delete_group(space).await.unwrap()),
        DatabaseChange::EvictTag => {
            let names: &[&str] = if version.is_multiple_of(3) { &["unrelated", "raced"] } else { &["raced"] };
            store.evict_tags(&key.space(), &tags(names), TagEviction::Hard).await.unwrap();
            if version.is_multiple_of(2) {
                store.evict_tags(&key.space(), &tags(&["unrelated"]), TagEviction::Hard).await.unwrap();
            }
        }
        DatabaseChange::Delete | DatabaseChange::WriteThrough => drop(store.delete(key).await.unwrap()),
    }
    database.floor.fetch_max(version, Ordering::SeqCst);
}

fn tags(names: &[&str]) -> Tags {
    Tags::new(names).unwrap()
}

/// What a task answered; its panic goes on in here, so that the test shows the rule that was broken.
fn outcome<T>(task: Result<T, tokio::task::JoinError>) -> T {
    task.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn assert_recent(value: Option<Bytes>, floor: u64, key: &CacheKey) {
    let Some(value) = value else { return };
    let version = u64::from_be_bytes(value[..].try_into().unwrap());
    assert!(version >= floor, "{key} holds version {version}, but everything below {floor} was evicted");
}

/// Lets the others in, for a while that differs from time to time.
async fn pause() {
    for _ in 0..fastrand::u8(..4) {
        tokio::task::yield_now().await;
    }
}
