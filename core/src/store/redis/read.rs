//! Commands that read a value, a part of it, or whether it exists.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::client::Destination;
use super::command::{command, current_nonce, mget, unless_wrong_type, valid_under};
use super::failover::tag_log::TagEpoch;
use super::readings::{Lifetime, ValueWithExpiry};
use super::tags::ReadValue;
use super::{RedisInner, RedisStore, key_names};
use crate::key::CacheKey;
use crate::store::{StoreError, ValueHead};
use crate::tag::{Headed, MAX_HEADER, Validity, has_header, is_softly_evicted};

impl RedisStore {
    /// Reads a value.
    pub(super) async fn read(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        Ok(self.read_judged(key).await?.into_answer())
    }

    /// Reads a value, and judges it if it is tagged.
    pub(super) async fn read_judged(&self, key: &CacheKey) -> Result<ReadValue, StoreError> {
        // Tagged entries are judged on the heap, so that the readers of others needn't have room for it.
        if self.inner.tags.expects(key) {
            return Box::pin(self.read_with_clock(key)).await;
        }
        let epoch = self.tag_log().epoch();
        match self.read_stored(key).await? {
            None => Ok(ReadValue::Absent),
            Some(value) if !has_header(&value) => Ok(ReadValue::Fresh(value)),
            stored => Box::pin(self.open(key, stored, None, epoch)).await,
        }
    }

    /// Reads what is stored under a key, with its header if it has one.
    pub(super) async fn read_stored(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        let RedisInner { options, client, .. } = &*self.inner;
        let Some(nonce) = key_names::nonce_of(key) else {
            let get = command([b"GET", key.name().as_bytes()].into_iter());
            let value = client.command(Destination::Key(key.name()), &get, options.read_deadline).await;
            return Ok(unless_wrong_type(value)?.flatten());
        };
        let both = mget([key.name(), nonce].into_iter());
        let (record, nonce): (Option<Bytes>, Option<Bytes>) =
            client.command(Destination::Key(key.name()), &both, options.read_deadline).await?;
        Ok(record.zip(nonce).and_then(|(record, nonce)| valid_under(&nonce, &record)))
    }

    /// Reads a value and its remaining TTL. Concurrent reads of a large value share one reply.
    pub(super) async fn read_whole(&self, key: &CacheKey) -> Result<ValueWithExpiry, StoreError> {
        if self.inner.readings.expect_large(key) {
            return Box::pin(self.read_shared(key)).await;
        }
        let found = self.read_with_expiry(key, self.inner.options.read_deadline).await?;
        self.inner.readings.remember_length(key, found.as_ref().map_or(0, |(value, _)| value.len()));
        Ok(found)
    }

    /// Reads a value and its remaining TTL, and shares the reply with concurrent callers.
    pub(super) async fn read_shared(&self, key: &CacheKey) -> Result<ValueWithExpiry, StoreError> {
        let weak = self.downgrade();
        let read = move |key: CacheKey| {
            let inner = weak.upgrade();
            async move {
                let inner = inner.ok_or_else(|| StoreError::unavailable("the store was dropped"))?;
                Self::from_inner(inner).read_with_expiry(&key, MAX_SHARED_READ).await
            }
        };
        let deadline = self.inner.options.read_deadline;
        match self.inner.readings.share(key, deadline, read).await {
            Some(found) => found,
            None => self.read_with_expiry(key, deadline).await,
        }
    }

    /// Returns `true` if there is a valid entry.
    pub(super) async fn exists(&self, key: &CacheKey) -> Result<bool, StoreError> {
        let RedisInner { options, client, .. } = &*self.inner;
        let (at, deadline) = (Destination::Key(key.name()), options.read_deadline);
        let mut first = redis::cmd("GETRANGE");
        first.arg(key.name()).arg(0).arg(fence_len(key));
        let (is_there, value) = if let Some(nonce) = key_names::nonce_of(key) {
            let mut pipe = redis::pipe();
            pipe.add_command(first).cmd("GET").arg(nonce);
            let read = client.pipeline(at, &pipe, deadline).await;
            let Some((start, nonce)) = unless_wrong_type::<(Bytes, Option<Bytes>)>(read)? else {
                return Ok(false);
            };
            let fence = start.slice(..start.len().min(8));
            let is_there = nonce.as_deref().and_then(current_nonce) == Some(&*fence);
            (is_there, start.slice(fence.len()..))
        } else {
            let read = client.command(at, &first, deadline).await;
            let Some(start) = unless_wrong_type::<Bytes>(read)? else { return Ok(false) };
            if start.is_empty() {
                // The same reply for an empty value and for none.
                let exists = command([b"EXISTS", key.name().as_bytes()].into_iter());
                return client.command(at, &exists, deadline).await;
            }
            (true, start)
        };
        if is_there && has_header(&value) {
            return Ok(matches!(Box::pin(self.read_judged(key)).await?, ReadValue::Fresh(_)));
        }
        Ok(is_there)
    }

    /// Reads a value and its remaining TTL. Counted from before the call, the TTL never ends after the entry does.
    ///
    /// Takes at most `longest` while the connection delivers without a pause of a read deadline.
    async fn read_with_expiry(
        &self,
        key: &CacheKey,
        longest: Duration,
    ) -> Result<ValueWithExpiry, StoreError> {
        let epoch = self.tag_log().epoch();
        let RedisInner { options, client, .. } = &*self.inner;
        let mut pipe = redis::pipe();
        match key_names::nonce_of(key) {
            Some(nonce) => pipe.cmd("MGET").arg(key.name()).arg(nonce),
            None => pipe.cmd("MGET").arg(key.name()),
        };
        pipe.cmd("PTTL").arg(key.name());
        let (found, left): (Vec<Option<Bytes>>, i64) = client
            .pipeline_while_delivered(Destination::Key(key.name()), &pipe, options.read_deadline, longest)
            .await?;
        let value = match &*found {
            [Some(value)] => Some(value.clone()),
            [Some(record), Some(nonce)] => valid_under(nonce, record),
            _ => None,
        };
        let Some(value) = value else { return Ok(None) };
        let left = remaining(left);
        if !has_header(&value) {
            return Ok(Some((value, Lifetime { left, is_tagged: false, is_fresh: true })));
        }
        let answer = Box::pin(self.open(key, Some(value), None, epoch)).await?;
        let is_fresh = matches!(answer, ReadValue::Fresh(_));
        Ok(answer.into_answer().map(|value| (value, Lifetime { left, is_tagged: true, is_fresh })))
    }

    /// Reads the beginning of a value and its remaining TTL. Counted from before the call, the TTL never ends after the entry
    /// does.
    ///
    /// The value may be replaced between these commands. The entry is read before the nonce, so an entry of that nonce was valid
    /// when it was read. The length may be that of another value. Callers compare it with the length inside the value.
    pub(super) async fn read_head(
        &self,
        key: &CacheKey,
        limit: usize,
    ) -> Result<Option<(ValueHead, Lifetime)>, StoreError> {
        let epoch = self.tag_log().epoch();
        let RedisInner { options, client, .. } = &*self.inner;
        let name = key.name();
        let limit = limit.max(1);
        let mut pipe = redis::pipe();
        pipe.cmd("GETRANGE").arg(name).arg(0).arg(limit - 1 + fence_len(key));
        pipe.cmd("STRLEN").arg(name).cmd("PTTL").arg(name);
        let (bytes, length, left) = if let Some(nonce) = key_names::nonce_of(key) {
            pipe.cmd("GET").arg(nonce);
            let read = client.pipeline(Destination::Key(name), &pipe, options.read_deadline).await;
            let Some((record, length, left, nonce)) =
                unless_wrong_type::<(Bytes, usize, i64, Option<Bytes>)>(read)?
            else {
                return Ok(None);
            };
            let Some(value) = nonce.and_then(|nonce| valid_under(&nonce, &record)) else { return Ok(None) };
            (value, length.saturating_sub(fence_len(key)), left)
        } else {
            let read = client.pipeline(Destination::Key(name), &pipe, options.read_deadline).await;
            let Some((value, length, left)) = unless_wrong_type::<(Bytes, usize, i64)>(read)? else {
                return Ok(None);
            };
            if value.is_empty() {
                // `GETRANGE` returns the same for an empty value and for none.
                let found = if left == PTTL_MISSING {
                    None
                } else {
                    self.read_with_expiry(key, options.read_deadline).await?
                };
                return Ok(found.map(|(value, lifetime)| (ValueHead::whole(value), lifetime)));
            }
            (value, length, left)
        };
        if has_header(&bytes) {
            return Box::pin(self.read_tagged_head(key, limit, (bytes, length, left), epoch)).await;
        }
        // Fewer bytes than the limit are the whole value.
        let length = if bytes.len() < limit { bytes.len() } else { length.max(bytes.len()) };
        self.inner.readings.remember_length(key, length);
        Ok(Some((
            ValueHead { bytes, length },
            Lifetime { left: remaining(left), is_tagged: false, is_fresh: true },
        )))
    }

    /// Reads the head of a value with tags, whose first bytes were read.
    async fn read_tagged_head(
        &self,
        key: &CacheKey,
        limit: usize,
        (mut bytes, mut length, mut left): (Bytes, usize, i64),
        epoch: TagEpoch,
    ) -> Result<Option<(ValueHead, Lifetime)>, StoreError> {
        // A stale value has another form, which has no parts.
        let stale = async || {
            let found = self.read_with_expiry(key, self.inner.options.read_deadline).await?;
            Ok(found.map(|(value, lifetime)| (ValueHead::whole(value), lifetime)))
        };
        if is_softly_evicted(&bytes) {
            return stale().await;
        }
        let is_enough = |bytes: &Bytes| {
            Headed::decode(bytes)
                .is_some_and(|header| bytes.len() >= header.header_len().saturating_add(limit))
        };
        // A shorter reply is the whole value.
        if bytes.len() >= limit && !is_enough(&bytes) {
            let RedisInner { options, client, .. } = &*self.inner;
            let (name, end) = (key.name(), limit.saturating_add(MAX_HEADER + fence_len(key)));
            let mut pipe = redis::pipe();
            pipe.cmd("GETRANGE").arg(name).arg(0).arg(end - 1).cmd("STRLEN").arg(name).cmd("PTTL").arg(name);
            let read = client.pipeline(Destination::Key(name), &pipe, options.read_deadline).await;
            let Some((record, whole, again)) = unless_wrong_type::<(Bytes, usize, i64)>(read)? else {
                return Ok(None);
            };
            // It was valid under its group's nonce a moment ago. If it is another one by now, it begins with another header.
            let fence = fence_len(key);
            let header = Headed::decode(&bytes).map_or(bytes.len(), |header| header.header_len());
            let (before, after) = (bytes.get(..header), record.get(fence..fence + header));
            if before != after {
                return Ok(None);
            }
            (bytes, left) = (record.slice(fence..), again);
            let is_all = bytes.len() < limit.saturating_add(MAX_HEADER);
            length = if is_all { bytes.len() } else { whole.saturating_sub(fence).max(bytes.len()) };
        } else if bytes.len() < limit {
            length = bytes.len();
        }
        let Some(header) = Headed::decode(&bytes) else { return Ok(None) };
        match self.judge(key, &header, &bytes, None, epoch).await? {
            Validity::Fresh => {}
            Validity::Stale(_) => return stale().await,
            Validity::Gone => return Ok(None),
        }
        let (bytes, length) =
            (bytes.slice(header.header_len()..), length.saturating_sub(header.header_len()));
        self.inner.readings.remember_length(key, length);
        let lifetime = Lifetime { left: remaining(left), is_tagged: true, is_fresh: true };
        Ok(Some((ValueHead { bytes, length }, lifetime)))
    }

    /// Reads a part of a value that may have a header.
    pub(super) async fn read_range(
        &self,
        key: &CacheKey,
        head: &[u8],
        range: Range<usize>,
    ) -> Result<Option<Bytes>, StoreError> {
        let epoch = self.tag_log().epoch();
        let (part, found) = match self.read_stored_range(key, head, range.clone()).await? {
            Some(read) => read,
            None => return Ok(None),
        };
        if !has_header(&found) {
            return Ok((found.starts_with(head) && part.len() == range.len()).then_some(part));
        }
        Box::pin(self.read_tagged_range(key, head, range, epoch)).await
    }

    async fn read_tagged_range(
        &self,
        key: &CacheKey,
        head: &[u8],
        range: Range<usize>,
        epoch: TagEpoch,
    ) -> Result<Option<Bytes>, StoreError> {
        let Some((_, found)) = self.read_stored_range(key, &[0; MAX_HEADER], 0..1).await? else {
            return Ok(None);
        };
        let Some(header) = Headed::decode(&found) else { return Ok(None) };
        if self.judge(key, &header, &found, None, epoch).await? != Validity::Fresh {
            return Ok(None);
        }
        let length = header.header_len();
        let whole_head = [&found[..length], head].concat();
        let shifted = range.start.saturating_add(length)..range.end.saturating_add(length);
        let read = self.read_stored_range(key, &whole_head, shifted).await?;
        let is_same =
            |(part, found): &(Bytes, Bytes)| found.starts_with(&whole_head) && part.len() == range.len();
        Ok(read.filter(is_same).map(|(part, _)| part))
    }

    /// Reads a part of the value that begins with `head`. Returns `None` if the entry holds another value, or none.
    ///
    /// The part is read first, then the beginning, then the nonce. No two values begin with the same bytes. So if the value begins
    /// with `head` after the part was read, the part belongs to it.
    async fn read_stored_range(
        &self,
        key: &CacheKey,
        head: &[u8],
        range: Range<usize>,
    ) -> Result<Option<(Bytes, Bytes)>, StoreError> {
        let RedisInner { options, client, .. } = &*self.inner;
        let (name, fence) = (key.name(), fence_len(key));
        let mut pipe = redis::pipe();
        pipe.cmd("GETRANGE").arg(name).arg(range.start + fence).arg(range.end - 1 + fence);
        pipe.cmd("GETRANGE").arg(name).arg(0).arg((head.len() + fence).max(1) - 1);
        let (part, found) = if let Some(nonce) = key_names::nonce_of(key) {
            pipe.cmd("GET").arg(nonce);
            let read = client.pipeline(Destination::Key(name), &pipe, options.read_deadline).await;
            let Some((part, found, nonce)) = unless_wrong_type::<(Bytes, Bytes, Option<Bytes>)>(read)? else {
                return Ok(None);
            };
            (part, nonce.and_then(|nonce| valid_under(&nonce, &found)))
        } else {
            let read = client.pipeline(Destination::Key(name), &pipe, options.read_deadline).await;
            let Some((part, found)) = unless_wrong_type::<(Bytes, Bytes)>(read)? else { return Ok(None) };
            (part, Some(found))
        };
        Ok(found.map(|found| (part, found)))
    }
}

/// Returns the number of bytes before the value in an entry.
fn fence_len(key: &CacheKey) -> usize {
    if key.group().is_some() { 8 } else { 0 }
}

/// The reply of `PTTL` for an absent key.
const PTTL_MISSING: i64 = -2;

/// Converts a reply of `PTTL`: `None` for no expiry, zero for an absent key.
fn remaining(left: i64) -> Option<Duration> {
    (left != -1).then(|| Duration::from_millis(left.try_into().unwrap_or(0)))
}

/// The longest time that a shared read of a large value continues after its callers have run out of time.
const MAX_SHARED_READ: Duration = Duration::from_secs(10);
