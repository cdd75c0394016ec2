//! How much of answers that are being kept may be held at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

/// A client that hasn't read for so long doesn't keep others' answers from being stored.
const STALLED: Duration = Duration::from_secs(60);

/// Shorter bodies fit into what sockets buffer, so that their clients can't hold them for long.
const SHORT: u64 = 64 * 1024;

/// The bytes that a shared cache may hold of bodies that are being kept, and of those whose clients are slow to read them.
#[derive(Debug)]
pub(crate) struct Budget {
    room: Mutex<Room>,
}

struct Room {
    free: u64,
    holders: Vec<Weak<dyn BudgetHolder>>,
    /// How many holders make it worth looking for those that are gone.
    crowded: usize,
    searched: Option<Instant>,
}

impl std::fmt::Debug for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Room").field("free", &self.free).finish_non_exhaustive()
    }
}

/// What holds a share.
pub(crate) trait BudgetHolder: Send + Sync {
    /// Gives the share back if it is held for a client alone that hasn't read for so long. The client sees that its response
    /// broke off.
    fn give_up(&self, stalled: Duration);
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Arc<Self> {
        let room = Room { free: bytes, holders: Vec::new(), crowded: 64, searched: None };
        Arc::new(Self { room: Mutex::new(room) })
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A share of so many bytes, if there is room.
    pub(crate) fn share(self: &Arc<Self>, bytes: u64) -> Option<Share> {
        let mut share = Share { budget: Arc::clone(self), bytes: 0 };
        if !share.grow_to(bytes) {
            self.relieve();
            if !share.grow_to(bytes) {
                return None;
            }
        }
        Some(share)
    }

    /// Remembers who has a share, if its body may be long.
    pub(crate) fn register(&self, holder: &Arc<dyn BudgetHolder>, length: Option<u64>) {
        if length.is_some_and(|length| length <= SHORT) {
            return;
        }
        let mut room = self.room();
        if room.holders.len() >= room.crowded {
            room.holders.retain(|holder| holder.strong_count() > 0);
            room.crowded = (room.holders.len() * 2).max(64);
        }
        room.holders.push(Arc::downgrade(holder));
    }

    /// Takes shares back that are held for clients that have stalled. Looks for them once a second.
    fn relieve(&self) {
        let holders: Vec<Arc<dyn BudgetHolder>> = {
            let mut room = self.room();
            if room.searched.is_some_and(|searched| searched.elapsed() < Duration::from_secs(1)) {
                return;
            }
            room.searched = Some(Instant::now());
            room.holders.iter().filter_map(Weak::upgrade).collect()
        };
        // Without the lock: shares come back through it.
        for holder in holders {
            holder.give_up(STALLED);
        }
    }
}

/// A part of the budget, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Share {
    /// Makes it so large. False if there is no room for that; then it stays as it is.
    pub(crate) fn grow_to(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 {
            return true;
        }
        let mut room = self.budget.room();
        let Some(free) = room.free.checked_sub(more) else { return false };
        room.free = free;
        self.bytes = bytes;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut room = self.budget.room();
        room.free = room.free.saturating_add(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::super::body::keep;
    use super::*;
    use crate::policy::BodyLength;
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};

    const LENGTH: usize = 150_000;

    fn body() -> Full<Bytes> {
        Full::new(Bytes::from(vec![0; LENGTH]))
    }

    #[tokio::test(start_paused = true)]
    async fn stalled_client_gives_way_and_another_does_not() {
        let budget = Budget::new(350_000);
        let kept = || keep(body(), BodyLength::Known(LENGTH as u64), u64::MAX, &budget);
        let Ok((mut stalled, keeper)) = kept() else { panic!("no room") };
        let Ok(complete) = keeper.read(STALLED).await else { panic!("broken") };
        complete.release(None);
        // Its origin is slow, not its client.
        let Ok((mut coming, keeper)) = kept() else { panic!("no room") };
        tokio::time::advance(STALLED - Duration::from_secs(1)).await;
        assert!(kept().is_err(), "both may be read yet");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(kept().is_ok(), "the stalled one gave way");
        assert!(stalled.frame().await.unwrap().is_err(), "what was cut doesn't pass for whole");
        let Ok(complete) = keeper.read(STALLED).await else { panic!("broken") };
        complete.release(None);
        let read = coming.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(read.len() == LENGTH && coming.frame().await.is_none());
    }

    #[test]
    fn shares_come_back() {
        let budget = Budget::new(10);
        let mut first = budget.share(4).unwrap();
        assert!(first.grow_to(8) && !first.grow_to(11) && first.grow_to(2));
        assert!(budget.share(3).is_none());
        let second = budget.share(2).unwrap();
        drop((first, second));
        assert!(budget.share(10).is_some());
    }
}
