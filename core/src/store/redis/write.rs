//! Commands that write or remove one entry.

use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use redis::{Cmd, RedisWrite, ToRedisArgs};
use tokio::time::Instant;

use super::command::ttl_millis;
use super::failover::change_log::{ChangeTarget, UnconfirmedGuard};
use super::key_names::{self, GroupNames, with_group, with_nonce};
use super::scripts::{self, ScriptCall};
use super::{RedisInner, RedisStore, random};
use crate::key::CacheKey;
use crate::store::{Acquired, Intent, Lease, StoreError};

impl RedisStore {
    /// Writes a value, and records in the change log that it replaced another. Returns `false` if servers changed meanwhile.
    pub(super) async fn set_and_record(
        &self,
        key: &CacheKey,
        value: &Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, StoreError> {
        let guard = UnconfirmedGuard::new(self, ChangeTarget::Key(key));
        let _turn = guard.turn(key, self.inner.options.fill_deadline).await?;
        let written = match self.write_under_new_lease(key, value.clone(), ttl).await {
            // A commit is never sent twice. But an idle connection may have broken unnoticed, so there is a second attempt.
            Err(StoreError::Unavailable(_)) => self.write_under_new_lease(key, value.clone(), ttl).await?,
            written => written?,
        };
        if written {
            return Ok(guard.confirmed());
        }
        // An eviction or another write came later, and wins.
        guard.settle();
        Ok(true)
    }

    /// Acquires a write lease and writes. Returns `false` if an eviction or another write came in between.
    ///
    /// Redis may run a command whose answer never arrives at any later time, even after an eviction on another connection. The
    /// lease prevents that, because an eviction revokes it.
    async fn write_under_new_lease(
        &self,
        key: &CacheKey,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, StoreError> {
        let until = Instant::now() + WRITE_LEASE_TTL;
        // Also while an eviction of this key is pending: the value is newer than the one to be removed.
        let Acquired::Lease(lease) = self.acquire(key, Intent::Write, WRITE_LEASE_TTL).await? else {
            return Err(StoreError::refused("no lease for a write"));
        };
        let stored = self.write(key, &lease, value, ttl).await?;
        if stored || Instant::now() < until { Ok(stored) } else { Err(StoreError::Timeout(WRITE_LEASE_TTL)) }
    }

    /// Writes under a lease, and releases it. Returns `false` if the lease is no longer the current one, or if there is no room.
    pub(super) async fn write(
        &self,
        key: &CacheKey,
        lease: &Lease,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, StoreError> {
        let fits = value.len() <= self.inner.options.max_value_bytes;
        let ttl = if fits { ttl_millis(ttl) } else { 0 };
        let group = GroupNames::of(key);
        let (lease_name, token) = (key_names::lease(key), lease.token());
        let record = FencedValue { fence: group.is_some().then_some(lease.fence()), value: &value };
        let (ttl_arg, suffix) = (ttl.to_string(), key.suffix());
        let args: [&[u8]; 4] = [lease.fence(), token, ttl_arg.as_bytes(), suffix.as_bytes()];
        let RedisInner { options, client, .. } = &*self.inner;
        // A fill of a missing entry replaces nothing that a failover could bring back.
        let client = if replaces(lease) { self.inner.change_client() } else { client };
        let stored: i64 = if ttl == 0 || value.len() <= MAX_INLINE_BYTES {
            let record = if ttl == 0 { Vec::new() } else { record.to_bytes() };
            let call = ScriptCall {
                script: &scripts::COMMIT_SMALL,
                keys: &with_group(&[key.name(), &lease_name], group.as_ref()),
                args: &[&args[..], &[&record]].concat(),
            };
            client.script(call, options.fill_deadline).await?
        } else {
            let tmp = key_names::tmp(key, token);
            let call = ScriptCall {
                script: &scripts::COMMIT,
                keys: &with_group(&[key.name(), &lease_name, &tmp], group.as_ref()),
                args: &args,
            };
            // The body expires if no script moves it into place.
            let mut upload = Cmd::with_capacity(5, record.value.len() + tmp.len() + 32);
            upload.arg("SET").arg(&tmp).arg(&record).arg("PX").arg(10_000);
            client.upload_and_script(upload, call, options.fill_deadline).await?
        };
        self.inner.readings.remember_length(key, value.len());
        Ok(stored == 1 && fits)
    }

    /// Removes an entry and revokes its lease. Returns `true` if a valid entry was there.
    pub(super) async fn evict(&self, key: &CacheKey) -> Result<bool, StoreError> {
        let lease = key_names::lease(key);
        let group = GroupNames::of(key);
        let call = ScriptCall {
            script: &scripts::DELETE,
            keys: &with_group(&[key.name(), &lease], group.as_ref()),
            args: &[key.suffix().as_bytes()],
        };
        self.inner.change_client().script(call, self.inner.options.evict_deadline).await
    }

    /// Makes an entry stale and revokes its lease.
    pub(super) async fn soften(&self, key: &CacheKey) -> Result<(), StoreError> {
        let lease = key_names::lease(key);
        let call =
            ScriptCall { script: &scripts::SOFTEN, keys: &with_nonce(&[key.name(), &lease], key), args: &[] };
        let RedisInner { options, .. } = &*self.inner;
        let _: i64 = self.inner.change_client().script(call, options.evict_deadline).await?;
        Ok(())
    }

    /// Makes every entry of a group stale and revokes the group's leases.
    pub(super) async fn soften_group(&self, nonce: &str) -> Result<(), StoreError> {
        let (fresh, max): ([u8; 8], _) = (random()?, FORMER_NONCES.to_string());
        let call =
            ScriptCall { script: &scripts::SOFTEN_GROUP, keys: &[nonce], args: &[&fresh, max.as_bytes()] };
        let RedisInner { options, .. } = &*self.inner;
        let _: i64 = self.inner.change_client().script(call, options.evict_deadline).await?;
        Ok(())
    }
}

/// The number of former nonces of a group whose entries are stale. Entries with older ones are gone.
const FORMER_NONCES: usize = 8;

/// The bytes of an entry: the nonce if it is in a group, then the value. Written in one piece, copied once.
struct FencedValue<'a> {
    fence: Option<&'a [u8; 8]>,
    value: &'a [u8],
}

impl FencedValue<'_> {
    fn to_bytes(&self) -> Vec<u8> {
        [self.fence.map_or(&[][..], |fence| fence), self.value].concat()
    }
}

impl ToRedisArgs for FencedValue<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        let mut out = out.writer_for_next_arg();
        // Writing to memory can't fail.
        let _ = out.write_all(self.fence.map_or(&[], |fence| fence));
        let _ = out.write_all(self.value);
    }
}

/// The largest value that is sent as an argument of its script, in bytes. Larger ones are uploaded to a key and renamed.
const MAX_INLINE_BYTES: usize = 4096;

/// The duration of the lease of a plain `set`. It is far longer than a write takes. A lost lease prevents other processes from
/// storing for this long.
const WRITE_LEASE_TTL: Duration = Duration::from_secs(2);

/// Returns `true` for the lease of a write.
pub(super) fn is_write(lease: &Lease) -> bool {
    lease.token()[0] == b'W'
}

/// Returns `true` if a commit under this lease replaces an entry: for every lease except a fill's.
pub(super) fn replaces(lease: &Lease) -> bool {
    lease.token()[0] != b'F'
}
