//! Commands that read a value, a part of it, or whether it exists.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use redis::RedisError;

use super::client::Destination;
use super::command::{command, mget};
use super::readings::ValueWithExpiry;
use super::{RedisInner, RedisStore, key_names};
use crate::key::CacheKey;
use crate::store::{StoreError, ValueHead};

impl RedisStore {
    /// Reads a value.
    pub(super) async fn read(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
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
        let Some(nonce) = key_names::nonce_of(key) else {
            let kind = redis::cmd("TYPE").arg(key.name()).take();
            let kind: String =
                client.command(Destination::Key(key.name()), &kind, options.read_deadline).await?;
            return Ok(kind == "string");
        };
        let mut pipe = redis::pipe();
        pipe.cmd("GETRANGE").arg(key.name()).arg(0).arg(7).cmd("GET").arg(nonce);
        let both = client.pipeline(Destination::Key(key.name()), &pipe, options.read_deadline).await;
        let Some((fence, nonce)) = unless_wrong_type::<(Bytes, Option<Bytes>)>(both)? else {
            return Ok(false);
        };
        Ok(nonce.is_some_and(|nonce| nonce == fence))
    }

    /// Reads a value and its remaining TTL. Counted from before the call, the TTL never ends after the entry does.
    ///
    /// Takes at most `longest` while the connection delivers without a pause of a read deadline.
    async fn read_with_expiry(
        &self,
        key: &CacheKey,
        longest: Duration,
    ) -> Result<ValueWithExpiry, StoreError> {
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
        Ok(Some((value, remaining(left))))
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
    ) -> Result<Option<(ValueHead, Option<Duration>)>, StoreError> {
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
                return Ok(found.map(|(value, left)| (ValueHead::whole(value), left)));
            }
            (value, length, left)
        };
        // Fewer bytes than the limit are the whole value.
        let length = if bytes.len() < limit { bytes.len() } else { length.max(bytes.len()) };
        self.inner.readings.remember_length(key, length);
        Ok(Some((ValueHead { bytes, length }, remaining(left))))
    }

    /// Reads a part of the value that begins with `head`. Returns `None` if the entry holds another value, or none.
    ///
    /// The part is read first, then the beginning, then the nonce. No two values begin with the same bytes. So if the value begins
    /// with `head` after the part was read, the part belongs to it.
    pub(super) async fn read_range(
        &self,
        key: &CacheKey,
        head: &[u8],
        range: Range<usize>,
    ) -> Result<Option<Bytes>, StoreError> {
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
        let is_same = found.is_some_and(|found| found.starts_with(head));
        Ok((is_same && part.len() == range.len()).then_some(part))
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

/// Converts the error for a key that is no string to `None`. Another program wrote it, and the next write replaces it.
#[inline]
fn unless_wrong_type<T>(reply: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match reply {
        Err(StoreError::Refused(error))
            if error.downcast_ref::<RedisError>().and_then(RedisError::code) == Some("WRONGTYPE") =>
        {
            Ok(None)
        }
        reply => reply.map(Some),
    }
}

/// The longest time that a shared read of a large value continues after its callers have run out of time.
const MAX_SHARED_READ: Duration = Duration::from_secs(10);

/// Returns the value of a group's entry if the entry begins with this nonce.
pub(super) fn valid_under(nonce: &[u8], record: &Bytes) -> Option<Bytes> {
    (nonce.len() == 8 && record.starts_with(nonce)).then(|| record.slice(8..))
}
