//! Repeats pending evictions, and watches the servers while there is anything that they could lose.
//!
//! `change_log.rs` says what is remembered and why.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::change_log::{Lost, Pending};
use super::client::Client;
use super::{RedisInner, RedisStore};
use crate::store::StoreError;

/// The first pause between two attempts. While the breaker is open, an attempt costs nothing.
const FIRST_PAUSE: Duration = Duration::from_millis(25);

/// The longest pause between two attempts while the server is away.
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// The longest pause between two attempts when the server refuses: its configuration has to change first.
const LONGEST_AFTER_REFUSAL: Duration = Duration::from_secs(10);

/// How often the servers are asked who they are. Twice a second, so that a change is noticed and repaired within one.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// How many evictions are repeated at once.
const AT_ONCE: usize = 32;

/// The same if each waits for replicas and delays others: those of a single server wait on one connection, and
/// those of a pool would take all that it has.
const WAITING_AT_ONCE: usize = 2;

/// The outcome of an attempt to repeat everything that is pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Attempt {
    /// Redis confirmed everything.
    Confirmed,
    /// Redis refused some of it.
    Refused,
    /// Redis did not answer.
    Away,
}

impl Attempt {
    fn of<T>(result: &Result<T, StoreError>) -> Self {
        match result {
            Ok(_) => Self::Confirmed,
            Err(StoreError::Refused(_)) => Self::Refused,
            Err(_) => Self::Away,
        }
    }
}

impl RedisStore {
    /// Evicts once more what servers may have lost of what they confirmed lately: all but the first `kept` changes.
    pub(super) fn recall(&self, lost: &Lost, kept: u64) {
        let is_pending = self.log().recall(lost, kept);
        self.inner.on_recall.run();
        if is_pending {
            self.log().retry_now().notify_one();
            self.retry_pending();
        }
    }

    /// Starts the task that repeats pending evictions, unless it runs or there are none. Without a runtime that waits for
    /// the next call.
    pub(super) fn retry_pending(&self) {
        let mut state = self.log().lock();
        if state.is_settled() {
            return;
        }
        let (store, retry_now) = (self.downgrade(), self.log().retry_now());
        spawn_unless_running(&mut state.retrying, async move {
            let mut pause = FIRST_PAUSE;
            loop {
                if timeout(pause, retry_now.notified()).await.is_ok() {
                    pause = FIRST_PAUSE;
                }
                let Some(store) = store.upgrade().map(Self::from_inner) else { return };
                let attempt = store.attempt().await;
                let mut state = store.log().lock();
                if state.is_settled() {
                    state.retrying = None;
                    return;
                }
                pause = match attempt {
                    Attempt::Confirmed => FIRST_PAUSE,
                    Attempt::Refused => (pause * 2).min(LONGEST_AFTER_REFUSAL),
                    Attempt::Away => (pause * 2).min(LONGEST_PAUSE),
                };
            }
        });
    }

    /// Starts the task that asks the servers who they are, unless it runs. It ends when nothing is remembered any more.
    pub(super) fn watch_servers(&self) {
        let mut state = self.log().lock();
        let store = self.downgrade();
        spawn_unless_running(&mut state.watching, async move {
            let mut next = Instant::now() + WATCH_EVERY;
            loop {
                sleep_until(next).await;
                next = Instant::now() + WATCH_EVERY;
                let Some(store) = store.upgrade().map(Self::from_inner) else { return };
                if !store.log().remembers() {
                    let mut state = store.log().lock();
                    if state.is_empty() {
                        state.watching = None;
                        return;
                    }
                }
                let RedisInner { client, replicated, .. } = &*store.inner;
                let clients = [Some(client), replicated.as_ref()];
                join_all(clients.into_iter().flatten().map(Client::check_servers)).await;
            }
        });
    }

    /// Repeats everything that is pending once.
    pub(super) async fn attempt(&self) -> Attempt {
        let (pending, releases) = self.log().pending();
        // A single server that does not answer is not asked for the rest.
        let (stops, stopped) = (!self.inner.client.is_cluster(), AtomicBool::new(false));
        let note = |attempt: Attempt| {
            if stops && attempt == Attempt::Away {
                stopped.store(true, Ordering::Relaxed);
            }
            attempt
        };
        let (stopped, note) = (&stopped, &note);
        let evictions = pending.into_iter().map(|eviction| async move {
            if stopped.load(Ordering::Relaxed) { Attempt::Away } else { note(self.repeat(&eviction).await) }
        });
        let RedisInner { options, replicated, .. } = &*self.inner;
        let is_narrow = replicated.is_some() && (stops || options.is_pooled());
        let at_once = if is_narrow { WAITING_AT_ONCE } else { AT_ONCE };
        let evicted = worst(evictions, at_once).await;
        let releases = releases.into_iter().map(|release| async move {
            if stopped.load(Ordering::Relaxed) {
                return Attempt::Away;
            }
            let released = self.release(&release.lease, &release.token, Duration::ZERO).await;
            let attempt = note(Attempt::of(&released));
            if attempt != Attempt::Away {
                self.log().released(&release);
            }
            attempt
        });
        evicted.max(worst(releases, AT_ONCE).await)
    }

    /// Repeats one eviction.
    async fn repeat(&self, eviction: &Pending) -> Attempt {
        let recalls = self.log().recalls();
        let attempt = match eviction {
            Pending::Key(key, number) => {
                let _turn = self.log().turn(key).await;
                if self.log().pending_number(eviction.target()) != Some(*number) {
                    return Attempt::Confirmed;
                }
                let attempt = Attempt::of(&self.evict(key).await);
                // Before others have their turn.
                if attempt == Attempt::Confirmed {
                    self.log().confirm_pending(eviction, recalls);
                }
                return attempt;
            }
            Pending::Group(space, _) => Attempt::of(&self.evict_space(space).await),
            Pending::Prefix(space, lost, _) => Attempt::of(&self.evict_lost(space, lost).await),
        };
        if attempt == Attempt::Confirmed {
            self.log().confirm_pending(eviction, recalls);
        }
        attempt
    }

    /// Repeats what is pending until Redis confirmed it or the deadline has passed, and logs what is left.
    pub(super) async fn settle_pending(&self, deadline: Duration) {
        let until = Instant::now() + deadline;
        let attempts = async {
            while self.attempt().await != Attempt::Confirmed || !self.log().lock().is_settled() {
                sleep(FIRST_PAUSE).await;
            }
        };
        let _ = timeout_at(until, attempts).await;
        self.log().give_up();
    }
}

/// The worst of these attempts, so many of them at once.
async fn worst(attempts: impl Iterator<Item = impl Future<Output = Attempt>>, at_once: usize) -> Attempt {
    stream::iter(attempts)
        .buffer_unordered(at_once)
        .fold(Attempt::Confirmed, async |worst, attempt| worst.max(attempt))
        .await
}

/// A task dies with its runtime, so a finished one is replaced.
fn spawn_unless_running(slot: &mut Option<AbortHandle>, task: impl Future<Output = ()> + Send + 'static) {
    if slot.as_ref().is_none_or(AbortHandle::is_finished)
        && let Ok(runtime) = Handle::try_current()
    {
        *slot = Some(runtime.spawn(task).abort_handle());
    }
}
