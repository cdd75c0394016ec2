//! A budget for the bodies that a shared cache holds at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

/// A client that hasn't read for this long doesn't keep other responses from being stored.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// Shorter bodies fit into the buffers of sockets, so their clients can't hold them for long.
const SHORT_BODY: u64 = 64 * 1024;

/// The bytes that a shared cache may hold of bodies that are being stored, and of bodies with slow clients.
#[derive(Debug)]
pub(crate) struct Budget {
    state: Mutex<BudgetState>,
}

struct BudgetState {
    free: u64,
    holders: Vec<Weak<dyn BudgetHolder>>,
    /// The number of holders at which dropped ones are removed.
    prune_at: usize,
    last_reclaim: Option<Instant>,
}

impl std::fmt::Debug for BudgetState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BudgetState").field("free", &self.free).finish_non_exhaustive()
    }
}

/// The holder of a share.
pub(crate) trait BudgetHolder: Send + Sync {
    /// Gives the share back if the body is complete and its client hasn't read for this long. The client gets an error instead of
    /// the rest.
    fn reclaim_if_stalled(&self, stalled: Duration);
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Arc<Self> {
        let state = BudgetState { free: bytes, holders: Vec::new(), prune_at: 64, last_reclaim: None };
        Arc::new(Self { state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, BudgetState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a share of this size, if there is room.
    pub(crate) fn share(self: &Arc<Self>, bytes: u64) -> Option<Share> {
        let mut share = Share { budget: Arc::clone(self), bytes: 0 };
        if !share.grow_to(bytes) {
            self.reclaim();
            if !share.grow_to(bytes) {
                return None;
            }
        }
        Some(share)
    }

    /// Records the holder of a share, if its body may be long.
    pub(crate) fn register(&self, holder: &Arc<dyn BudgetHolder>, length: Option<u64>) {
        if length.is_some_and(|length| length <= SHORT_BODY) {
            return;
        }
        let mut state = self.state();
        if state.holders.len() >= state.prune_at {
            state.holders.retain(|holder| holder.strong_count() > 0);
            state.prune_at = (state.holders.len() * 2).max(64);
        }
        state.holders.push(Arc::downgrade(holder));
    }

    /// Takes back the shares of stalled clients, at most once a second.
    fn reclaim(&self) {
        let holders: Vec<Arc<dyn BudgetHolder>> = {
            let mut state = self.state();
            if state.last_reclaim.is_some_and(|last_reclaim| last_reclaim.elapsed() < Duration::from_secs(1))
            {
                return;
            }
            state.last_reclaim = Some(Instant::now());
            state.holders.iter().filter_map(Weak::upgrade).collect()
        };
        // Called without the lock, because shares are given back under it.
        for holder in holders {
            holder.reclaim_if_stalled(STALLED_AFTER);
        }
    }
}

/// A part of the budget. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Share {
    /// Grows to this size. Returns `false`, without a change, if there is no room.
    pub(crate) fn grow_to(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 {
            return true;
        }
        let mut state = self.budget.state();
        let Some(free) = state.free.checked_sub(more) else { return false };
        state.free = free;
        self.bytes = bytes;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.budget.state();
        state.free = state.free.saturating_add(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::super::body::tee;
    use super::*;
    use crate::policy::BodyLength;
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};

    const LENGTH: usize = 150_000;

    fn body() -> Full<Bytes> {
        Full::new(Bytes::from(vec![0; LENGTH]))
    }

    #[tokio::test(start_paused = true)]
    async fn share_of_a_stalled_client_is_reclaimed() {
        let budget = Budget::new(350_000);
        let split = || tee(body(), BodyLength::Known(LENGTH as u64), u64::MAX, &budget);
        let Ok((mut stalled, collector)) = split() else { panic!("no room") };
        let Ok(complete) = collector.read(STALLED_AFTER).await else { panic!("broken") };
        complete.release(None);
        // Its origin is slow, not its client.
        let Ok((mut coming, collector)) = split() else { panic!("no room") };
        tokio::time::advance(STALLED_AFTER - Duration::from_secs(1)).await;
        assert!(split().is_err(), "both may be read yet");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(split().is_ok(), "the stalled one gave way");
        assert!(stalled.frame().await.unwrap().is_err(), "what was cut doesn't pass for whole");
        let Ok(complete) = collector.read(STALLED_AFTER).await else { panic!("broken") };
        complete.release(None);
        let read = coming.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(read.len() == LENGTH && coming.frame().await.is_none());
    }

    #[test]
    fn dropped_shares_return_to_the_budget() {
        let budget = Budget::new(10);
        let mut first = budget.share(4).unwrap();
        assert!(first.grow_to(8) && !first.grow_to(11) && first.grow_to(2));
        assert!(budget.share(3).is_none());
        let second = budget.share(2).unwrap();
        drop((first, second));
        assert!(budget.share(10).is_some());
    }
}
