//! Repeats pending evictions, and checks the identities of the servers while any change is remembered.
//!
//! `change_log.rs` describes the remembered changes.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::change_log::{Lost, PendingEviction};
use crate::store::StoreError;
use crate::store::redis::client::Client;
use crate::store::redis::{RedisInner, RedisStore, key_names};

/// The first pause between two attempts. While the breaker is open, an attempt costs nothing.
const FIRST_PAUSE: Duration = Duration::from_millis(25);

/// The longest pause between two attempts while the server doesn't answer.
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// The longest pause between two attempts after a refusal, which lasts until the server's configuration changes.
const LONGEST_AFTER_REFUSAL: Duration = Duration::from_secs(10);

/// The interval between two checks of the servers' identities. Half a second, so that a change is detected and repaired within one
/// second.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// The number of evictions that are repeated at once.
const AT_ONCE: usize = 32;

/// The same with `wait_for_replicas`, where evictions delay other calls: with a single server they block one connection, and with
/// a pool they could occupy every connection.
const AT_ONCE_WITH_REPLICAS: usize = 2;

/// The outcome of an attempt to repeat everything that is pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Attempt {
    /// Redis confirmed everything.
    Confirmed,
    /// Redis refused some of it.
    Refused,
    /// Redis did not answer.
    NoAnswer,
}

impl Attempt {
    fn of<T>(result: &Result<T, StoreError>) -> Self {
        match result {
            Ok(_) => Self::Confirmed,
            Err(StoreError::Refused(_)) => Self::Refused,
            Err(_) => Self::NoAnswer,
        }
    }
}

impl RedisStore {
    /// Evicts again what servers may have lost of the remembered changes. They still have the first `kept` changes.
    pub(in crate::store::redis) fn recall(&self, lost: &Lost, kept: u64) {
        let is_pending = self.log().recall(lost, kept);
        let has_tags = self.tag_log().recall(|prefix| lost.concerns(&key_names::tag_clock(prefix)));
        self.inner.on_recall.run();
        if is_pending || has_tags {
            self.log().retry_now().notify_one();
            self.retry_pending();
        }
    }

    /// Starts the task that repeats pending evictions, unless it runs or there are none. Without a runtime, the next call starts
    /// it.
    pub(in crate::store::redis) fn retry_pending(&self) {
        let mut state = self.log().lock();
        if state.is_settled() && self.tag_log().is_settled() {
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
                if state.is_settled() && store.tag_log().is_settled() {
                    state.retrying = None;
                    return;
                }
                pause = match attempt {
                    Attempt::Confirmed => FIRST_PAUSE,
                    Attempt::Refused => (pause * 2).min(LONGEST_AFTER_REFUSAL),
                    Attempt::NoAnswer => (pause * 2).min(LONGEST_PAUSE),
                };
            }
        });
    }

    /// Starts the task that checks the servers' identities, unless it runs. It ends when no change is remembered any more.
    pub(super) fn watch_servers(&self) {
        let mut state = self.log().lock();
        let store = self.downgrade();
        spawn_unless_running(&mut state.watching, async move {
            let mut next = Instant::now() + WATCH_EVERY;
            loop {
                sleep_until(next).await;
                next = Instant::now() + WATCH_EVERY;
                let Some(store) = store.upgrade().map(Self::from_inner) else { return };
                if !store.log().remembers() && !store.tag_log().remembers() {
                    let mut state = store.log().lock();
                    if state.is_empty() && !store.tag_log().remembers() {
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

    /// Makes one attempt to repeat everything that is pending.
    pub(super) async fn attempt(&self) -> Attempt {
        let (pending, releases) = self.log().pending();
        // If a single server doesn't answer, the rest is skipped.
        let (stops, stopped) = (!self.inner.client.is_cluster(), AtomicBool::new(false));
        let note = |attempt: Attempt| {
            if stops && attempt == Attempt::NoAnswer {
                stopped.store(true, Ordering::Relaxed);
            }
            attempt
        };
        let (stopped, note) = (&stopped, &note);
        let evictions = pending.into_iter().map(|eviction| async move {
            if stopped.load(Ordering::Relaxed) {
                Attempt::NoAnswer
            } else {
                note(self.repeat(&eviction).await)
            }
        });
        let RedisInner { options, replicated, .. } = &*self.inner;
        let is_blocking = replicated.is_some() && (stops || options.is_pooled());
        let at_once = if is_blocking { AT_ONCE_WITH_REPLICAS } else { AT_ONCE };
        let evicted = worst(evictions, at_once).await;
        let by_tag = self.tag_log().pending().into_iter().map(|eviction| async move {
            if stopped.load(Ordering::Relaxed) {
                return Attempt::NoAnswer;
            }
            note(Attempt::of(&self.repeat_tags(&eviction).await))
        });
        let evicted = evicted.max(worst(by_tag, at_once).await);
        let releases = releases.into_iter().map(|release| async move {
            if stopped.load(Ordering::Relaxed) {
                return Attempt::NoAnswer;
            }
            let released = self.release(&release.lease, &release.token, Duration::ZERO).await;
            let attempt = note(Attempt::of(&released));
            if attempt != Attempt::NoAnswer {
                self.log().released(&release);
            }
            attempt
        });
        evicted.max(worst(releases, AT_ONCE).await)
    }

    /// Repeats one eviction.
    async fn repeat(&self, eviction: &PendingEviction) -> Attempt {
        let recalls = self.log().recalls();
        let attempt = match eviction {
            PendingEviction::Key(key, number) => {
                let _turn = self.log().turn(key).await;
                if self.log().pending_number(eviction.target()) != Some(*number) {
                    return Attempt::Confirmed;
                }
                let attempt = Attempt::of(&self.evict(key).await);
                // Before another caller gets the lock.
                if attempt == Attempt::Confirmed {
                    self.log().confirm_pending(eviction, recalls);
                }
                return attempt;
            }
            PendingEviction::Group(space, _) => Attempt::of(&self.evict_space(space).await),
            PendingEviction::Prefix(space, lost, _) => Attempt::of(&self.evict_lost(space, lost).await),
        };
        if attempt == Attempt::Confirmed {
            self.log().confirm_pending(eviction, recalls);
        }
        attempt
    }

    /// Repeats pending evictions until Redis has confirmed all of them or the deadline has passed, and logs the remaining ones.
    pub(in crate::store::redis) async fn settle_pending(&self, deadline: Duration) {
        let until = Instant::now() + deadline;
        let attempts = async {
            while self.attempt().await != Attempt::Confirmed || !self.is_settled() {
                sleep(FIRST_PAUSE).await;
            }
        };
        let _ = timeout_at(until, attempts).await;
        self.log().give_up();
        self.tag_log().give_up();
    }

    /// Returns `true` if there is nothing to repeat.
    fn is_settled(&self) -> bool {
        self.log().lock().is_settled() && self.tag_log().is_settled()
    }
}

/// Runs the attempts, at most `at_once` concurrently, and returns the worst outcome.
async fn worst(attempts: impl Iterator<Item = impl Future<Output = Attempt>>, at_once: usize) -> Attempt {
    stream::iter(attempts)
        .buffer_unordered(at_once)
        .fold(Attempt::Confirmed, async |worst, attempt| worst.max(attempt))
        .await
}

/// Spawns the task unless it runs. A task ends with its runtime, so a finished one is replaced.
fn spawn_unless_running(slot: &mut Option<AbortHandle>, task: impl Future<Output = ()> + Send + 'static) {
    if slot.as_ref().is_none_or(AbortHandle::is_finished)
        && let Ok(runtime) = Handle::try_current()
    {
        *slot = Some(runtime.spawn(task).abort_handle());
    }
}
