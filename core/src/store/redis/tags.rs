//! The tag clock and the tag table in Redis, and this process's knowledge of them. The rule is in [`tag`](crate::tag).
//!
//! Clock and table of a prefix share a slot of their own, so one script evicts by tag. Reading an entry takes one key more only if
//! it is known to be tagged: in the same `MGET` on a single server, in a second command at the same time in a cluster. If
//! something was evicted since the entry was stamped, the table is asked in another round trip, once for each entry after each
//! eviction: the entry that was judged fresh is remembered with the epoch.

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::RandomState;
use quick_cache::sync::Cache;
use tokio::time::Instant;

use super::client::Destination;
use super::command::{command, mget, parse_epoch, ttl_millis, unless_wrong_type, valid_under};
use super::failover::tag_log::{PendingTags, TagEpoch, TagLog};
use super::scripts::{self, ScriptCall};
use super::{RedisInner, RedisStore, key_names, random};
use crate::key::CacheKey;
use crate::store::StoreError;
use crate::tag::{
    EvictionMode, Headed, MAX_EVICTED_TAGS, TagEvictions, TagStamp, Tagged, Validity, has_header, soften,
    without_soft_marks,
};

/// The minimum lifetime of a clock that was read for a stamp.
const CLOCK_LASTS: Duration = Duration::from_secs(600);

/// The number of words in the set of tagged keys.
const WORDS: usize = 4096;

/// The maximum number of remembered judgements.
const MAX_JUDGED: usize = 16 * 1024;

/// The knowledge of this process about tags.
pub(super) struct TagState {
    pub(super) log: TagLog,
    /// `true` if any tagged entry was seen.
    any: AtomicBool,
    /// The keys whose entries had tags when they were last seen, by hash. A collision costs a needless key or a round trip.
    tagged: Box<[AtomicU64]>,
    hasher: RandomState,
    /// The clocks as they were last seen, by prefix.
    clocks: Mutex<HashMap<Box<str>, SeenClock>>,
    /// Headers of entries that the table judged fresh, and the epoch up to which it did.
    judged: Cache<Box<[u8]>, u64>,
}

#[derive(Clone, Copy)]
struct SeenClock {
    stamp: TagStamp,
    /// The earliest time at which the clock may expire, as far as this process knows. `None` if it does not expire.
    lasts_until: Option<Instant>,
}

impl Default for TagState {
    fn default() -> Self {
        Self {
            log: TagLog::default(),
            any: AtomicBool::new(false),
            tagged: (0..WORDS).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::default(),
            clocks: Mutex::default(),
            judged: Cache::new(MAX_JUDGED),
        }
    }
}

impl TagState {
    /// Returns `true` if the entry had tags when it was last seen.
    pub(super) fn expects(&self, key: &CacheKey) -> bool {
        self.any.load(Ordering::Relaxed) && {
            let (word, bit) = self.place(key);
            word.load(Ordering::Relaxed) & bit != 0
        }
    }

    /// Remembers whether an entry has tags.
    pub(super) fn saw(&self, key: &CacheKey, is_tagged: bool) {
        let (word, bit) = self.place(key);
        if is_tagged {
            word.fetch_or(bit, Ordering::Relaxed);
            self.any.store(true, Ordering::Relaxed);
        } else {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    fn place(&self, key: &CacheKey) -> (&AtomicU64, u64) {
        let hash = self.hasher.hash_one(key.name());
        (&self.tagged[usize::try_from(hash >> 6).unwrap_or(0) % WORDS], 1 << (hash % 64))
    }

    /// Remembers a clock that was read.
    fn learn(&self, prefix: &str, clock: Option<TagStamp>) {
        let mut clocks = self.clocks();
        let Some(stamp) = clock else {
            clocks.remove(prefix);
            return;
        };
        match clocks.get_mut(prefix) {
            Some(known) if known.stamp.nonce == stamp.nonce => {
                known.stamp.epoch = known.stamp.epoch.max(stamp.epoch);
            }
            Some(known) => *known = SeenClock { stamp, lasts_until: Some(Instant::now()) },
            None => {
                clocks.insert(prefix.into(), SeenClock { stamp, lasts_until: Some(Instant::now()) });
            }
        }
    }

    /// Returns `true` if the clock is known to last for a moment.
    fn is_lasting(&self, prefix: &str) -> bool {
        self.outlasts(prefix, Some(Duration::ZERO))
    }

    /// Returns `true` if the clock is known to outlast an entry that is written now.
    fn outlasts(&self, prefix: &str, ttl: Option<Duration>) -> bool {
        let clocks = self.clocks();
        let Some(known) = clocks.get(prefix) else { return false };
        known.lasts_until.is_none_or(|until| {
            ttl.and_then(|ttl| Instant::now().checked_add(ttl)).is_some_and(|needed| needed <= until)
        })
    }

    /// Remembers that the clock lasts at least this long.
    fn extended(&self, prefix: &str, from: Instant, ttl: Option<Duration>) {
        if let Some(known) = self.clocks().get_mut(prefix) {
            let until = ttl.and_then(|ttl| from.checked_add(ttl));
            known.lasts_until = match (known.lasts_until, until) {
                (Some(known), Some(until)) => Some(known.max(until)),
                (None, _) | (_, None) => None,
            };
        }
    }

    fn clocks(&self) -> MutexGuard<'_, HashMap<Box<str>, SeenClock>> {
        // Nothing under the lock can panic half way through a change.
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for TagState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TagState").field("log", &self.log).finish_non_exhaustive()
    }
}

/// The value under a key.
#[derive(Debug)]
pub(super) enum ReadValue {
    /// Nothing.
    Absent,
    /// An entry that was evicted by tag.
    Evicted,
    /// A valid value.
    Fresh(Bytes),
    /// A value that was evicted softly, at this epoch.
    Stale(Bytes, u64),
}

impl ReadValue {
    /// Returns the value as callers of the store get it.
    pub(super) fn into_answer(self) -> Option<Bytes> {
        match self {
            Self::Absent | Self::Evicted => None,
            Self::Fresh(value) => Some(value),
            Self::Stale(value, since) => Some(soften(&value, since)),
        }
    }
}

/// The clock that was read with an entry, or `None` if it was not read.
pub(super) type ReadClock = Option<Option<TagStamp>>;

impl RedisStore {
    pub(super) fn tag_log(&self) -> &TagLog {
        &self.inner.tags.log
    }

    /// Reads an entry that is expected to have tags, and the clock.
    pub(super) async fn read_with_clock(&self, key: &CacheKey) -> Result<ReadValue, StoreError> {
        let epoch = self.tag_log().epoch();
        let (stored, clock) = if self.inner.client.is_cluster() {
            tokio::try_join!(self.read_stored(key), self.read_clock(key.prefix()))?
        } else {
            let (name, nonce) = (key.name(), key_names::nonce_of(key));
            let clock = key_names::tag_clock(key.prefix());
            let names = [Some(name), Some(clock.as_str()), nonce];
            let RedisInner { options, client, .. } = &*self.inner;
            let get = mget(names.into_iter().flatten());
            let found: Vec<Option<Bytes>> =
                client.command(Destination::Key(name), &get, options.read_deadline).await?;
            let mut found = found.into_iter();
            let (record, clock, fence) =
                (found.next().flatten(), found.next().flatten(), found.next().flatten());
            let stored = if nonce.is_some() {
                record.zip(fence).and_then(|(record, fence)| valid_under(&fence, &record))
            } else {
                record
            };
            (stored, clock.as_deref().and_then(parse_clock))
        };
        self.open(key, stored, Some(clock), epoch).await
    }

    /// Judges the bytes that are stored under a key. `epoch` was taken before they were read.
    pub(super) async fn open(
        &self,
        key: &CacheKey,
        stored: Option<Bytes>,
        clock: ReadClock,
        epoch: TagEpoch,
    ) -> Result<ReadValue, StoreError> {
        let Some(stored) = stored else { return Ok(ReadValue::Absent) };
        if !has_header(&stored) {
            self.inner.tags.saw(key, false);
            return Ok(ReadValue::Fresh(stored));
        }
        let Some((stored, since)) = without_soft_marks(stored) else { return Ok(ReadValue::Absent) };
        if !has_header(&stored) {
            return Ok(since.map_or(ReadValue::Absent, |since| ReadValue::Stale(stored, since)));
        }
        let Some(header) = Headed::decode(&stored) else { return Ok(ReadValue::Absent) };
        let value = stored.slice(header.header_len()..);
        Ok(match self.judge(key, &header, &stored, clock, epoch).await?.softened(since) {
            Validity::Fresh => ReadValue::Fresh(value),
            Validity::Stale(since) => ReadValue::Stale(value, since),
            Validity::Gone => ReadValue::Evicted,
        })
    }

    /// Judges an entry by its header, with which `stored` begins. `epoch` was taken before the entry was read.
    pub(super) async fn judge(
        &self,
        key: &CacheKey,
        header: &Headed,
        stored: &[u8],
        clock: ReadClock,
        epoch: TagEpoch,
    ) -> Result<Validity, StoreError> {
        let tags = &self.inner.tags;
        let Headed::Tagged(tagged) = header else {
            tags.saw(key, false);
            return Ok(Validity::Fresh);
        };
        tags.saw(key, true);
        let header = stored.get(..tagged.header_len()).unwrap_or_default();
        let validity = self.judge_tagged(key.prefix(), tagged, header, clock).await?;
        if !self.tag_log().may_believe(key.prefix(), tagged.marks(), epoch) {
            self.retry_pending();
            return Ok(Validity::Gone);
        }
        Ok(validity)
    }

    async fn judge_tagged(
        &self,
        prefix: &str,
        tagged: &Tagged,
        header: &[u8],
        clock: ReadClock,
    ) -> Result<Validity, StoreError> {
        let tags = &self.inner.tags;
        if let Some(clock) = clock {
            tags.learn(prefix, clock);
            if let Some(validity) = tagged.judge_by_clock(clock) {
                return Ok(validity);
            }
            let is_known =
                |clock: TagStamp| tags.judged.get(header).is_some_and(|until| until >= clock.epoch);
            if clock.is_some_and(is_known) {
                return Ok(Validity::Fresh);
            }
        }
        let (clock, table) = self.read_table(prefix, tagged.marks()).await?;
        tags.learn(prefix, clock);
        if let Some(validity) = tagged.judge_by_clock(clock) {
            return Ok(validity);
        }
        let validity = tagged.judge_by_table(table);
        if let (Validity::Fresh, Some(clock)) = (validity, clock) {
            // The table was read after the clock, so it knew every eviction until then.
            tags.judged.insert(header.into(), clock.epoch);
        }
        Ok(validity)
    }

    async fn read_clock(&self, prefix: &str) -> Result<Option<TagStamp>, StoreError> {
        let name = key_names::tag_clock(prefix);
        let RedisInner { options, client, .. } = &*self.inner;
        let get = mget(std::iter::once(name.as_str()));
        let (clock,): (Option<Bytes>,) =
            client.command(Destination::Key(&name), &get, options.read_deadline).await?;
        Ok(clock.as_deref().and_then(parse_clock))
    }

    /// Reads the clock, and then the evictions of these marks in the table.
    async fn read_table(
        &self,
        prefix: &str,
        marks: &[u64],
    ) -> Result<(Option<TagStamp>, Option<TagEvictions>), StoreError> {
        let (clock, table) = (key_names::tag_clock(prefix), key_names::tag_table(prefix));
        let marks: Vec<[u8; 8]> = marks.iter().map(|mark| mark.to_be_bytes()).collect();
        let soft: Vec<[u8; 9]> = marks
            .iter()
            .map(|mark| {
                let mut field = [b's'; 9];
                field[1..].copy_from_slice(mark);
                field
            })
            .collect();
        let head: [&[u8]; 4] = [b"HMGET", table.as_bytes(), b"n", b"f"];
        let fields = marks.iter().map(|mark| &mark[..]).chain(soft.iter().map(|mark| &mark[..]));
        let mut pipe = redis::Pipeline::with_capacity(2);
        pipe.add_command(mget(std::iter::once(clock.as_str())));
        pipe.add_command(command(head.into_iter().chain(fields)));
        let RedisInner { options, client, .. } = &*self.inner;
        let read = client.pipeline(Destination::Key(&clock), &pipe, options.read_deadline).await;
        let Some(((clock,), table)) = unless_wrong_type::<((Option<Bytes>,), Vec<Option<Bytes>>)>(read)?
        else {
            // A key of another type in place of the table is no table.
            return Ok((self.read_clock(prefix).await?, None));
        };
        Ok((clock.as_deref().and_then(parse_clock), parse_table(&table, marks.len())))
    }

    /// Returns the clock of a prefix, and creates it if necessary.
    ///
    /// It is read each time: with an earlier state, the first fill after another process's eviction would be refused.
    pub(super) async fn stamp(&self, prefix: &str) -> Result<TagStamp, StoreError> {
        if !self.inner.tags.is_lasting(prefix) {
            return self.extend_clock(prefix, Some(CLOCK_LASTS)).await;
        }
        let clock = self.read_clock(prefix).await?;
        self.inner.tags.learn(prefix, clock);
        match clock {
            Some(stamp) => Ok(stamp),
            None => self.extend_clock(prefix, Some(CLOCK_LASTS)).await,
        }
    }

    /// Lets the clock of a prefix last as long as an entry that is written now, creates it if necessary, and returns it.
    async fn extend_clock(&self, prefix: &str, ttl: Option<Duration>) -> Result<TagStamp, StoreError> {
        let (clock, table) = (key_names::tag_clock(prefix), key_names::tag_table(prefix));
        let (fresh, ms): ([u8; 8], i64) = (random()?, ttl_millis(ttl));
        let (from, ms_arg) = (Instant::now(), ms.to_string());
        let call = ScriptCall {
            script: &scripts::TAG_CLOCK,
            keys: &[&clock, &table],
            args: &[&fresh, ms_arg.as_bytes()],
        };
        let found: Bytes = self.call(call, self.inner.options.fill_deadline).await?;
        let stamp =
            parse_clock(&found).ok_or_else(|| StoreError::refused("a tag clock that can't be read"))?;
        self.inner.tags.learn(prefix, Some(stamp));
        self.inner.tags.extended(prefix, from, ttl.filter(|_| ms >= 0));
        Ok(stamp)
    }

    /// Ensures that the clock outlasts an entry that is written now. Returns the clock if it was read.
    pub(super) async fn keep_clock(
        &self,
        prefix: &str,
        ttl: Option<Duration>,
    ) -> Result<ReadClock, StoreError> {
        if self.inner.tags.outlasts(prefix, ttl) {
            return Ok(None);
        }
        self.extend_clock(prefix, ttl).await.map(|stamp| Some(Some(stamp)))
    }

    /// Returns `true` if none of an entry's tags was evicted between its stamp and this call, and lets the clock outlast the
    /// entry.
    pub(super) async fn is_still_fresh(
        &self,
        key: &CacheKey,
        tagged: &Tagged,
        ttl: Option<Duration>,
    ) -> Result<bool, StoreError> {
        let (prefix, epoch) = (key.prefix(), self.tag_log().epoch());
        let clock = match self.keep_clock(prefix, ttl).await? {
            Some(clock) => clock,
            None => self.read_clock(prefix).await?,
        };
        let header = tagged.encode(b"");
        let validity = self.judge_tagged(prefix, tagged, &header, Some(clock)).await?;
        Ok(validity == Validity::Fresh && self.tag_log().may_believe(prefix, tagged.marks(), epoch))
    }

    /// Evicts by tag.
    pub(super) async fn evict_marks(
        &self,
        prefix: &str,
        marks: &[u64],
        how: EvictionMode,
    ) -> Result<(), StoreError> {
        let (clock, table) = (key_names::tag_clock(prefix), key_names::tag_table(prefix));
        let max = MAX_EVICTED_TAGS.to_string();
        let kind: &[u8] = if how == EvictionMode::Hard { b"H" } else { b"S" };
        let marks: Vec<[u8; 8]> = marks.iter().map(|mark| mark.to_be_bytes()).collect();
        let args: Vec<&[u8]> =
            [max.as_bytes(), kind].into_iter().chain(marks.iter().map(|mark| &mark[..])).collect();
        let call = ScriptCall { script: &scripts::EVICT_TAGS, keys: &[&clock, &table], args: &args };
        let RedisInner { options, .. } = &*self.inner;
        let found: Option<Bytes> = self.inner.change_client().script(call, options.evict_deadline).await?;
        self.inner.tags.learn(prefix, found.as_deref().and_then(parse_clock));
        Ok(())
    }

    /// Repeats a pending eviction by tag.
    pub(super) async fn repeat_tags(&self, eviction: &PendingTags) -> Result<(), StoreError> {
        let PendingTags { prefix, marks, how, .. } = eviction;
        if marks.is_empty() {
            // Every tag: without a clock, no tagged entry is valid.
            let names = [key_names::tag_clock(prefix), key_names::tag_table(prefix)];
            let deadline = self.inner.options.evict_deadline;
            self.inner.change_client().unlink(&[&names[0], &names[1]], deadline).await?;
            self.inner.tags.learn(prefix, None);
        } else {
            self.evict_marks(prefix, marks, *how).await?;
        }
        self.tag_log().confirm_pending(eviction);
        Ok(())
    }
}

fn parse_clock(bytes: &[u8]) -> Option<TagStamp> {
    let (nonce, epoch) = bytes.split_at_checked(8)?;
    Some(TagStamp { nonce: nonce.try_into().ok()?, epoch: parse_epoch(epoch)? })
}

/// Parses the table's reply about `count` marks. Returns `None` if there is no table, or if it can't be read.
fn parse_table(fields: &[Option<Bytes>], count: usize) -> Option<TagEvictions> {
    let (head, marks) = fields.split_at_checked(2)?;
    let [Some(nonce), Some(floor)] = head else { return None };
    let (hard, soft) = marks.split_at_checked(count)?;
    let latest = |epochs: &[Option<Bytes>]| {
        let epochs = epochs.iter().flatten().map(|epoch| parse_epoch(epoch));
        epochs.collect::<Option<Vec<u64>>>().map(|epochs| epochs.into_iter().max())
    };
    Some(TagEvictions {
        nonce: (**nonce).try_into().ok()?,
        floor: parse_epoch(floor)?,
        hard: latest(hard)?,
        soft: latest(soft)?,
    })
}
