//! Commands that acquire, renew and release leases.

use std::time::Duration;

use bytes::Bytes;
use redis::Value;

use super::client::Destination;
use super::command::{bounded_millis, command, current_nonce, mget, valid_under};
use super::failover::change_log::{ChangeTarget, UnconfirmedGuard};
use super::key_names::{self, with_nonce};
use super::scripts::{self, ScriptCall};
use super::tags::ReadValue;
use super::{RedisInner, RedisStore, random};
use crate::key::CacheKey;
use crate::reason::Reason;
use crate::store::{Acquired, Intent, Lease, StoreError};
use crate::tag::has_header;

impl RedisStore {
    /// Acquires a lease, or returns what prevents it.
    ///
    /// The commands are never sent twice. But an idle connection may have broken unnoticed, so there is a second attempt, for
    /// another lease with another token.
    pub(super) async fn acquire(
        &self,
        key: &CacheKey,
        intent: Intent,
        lease_ttl: Duration,
    ) -> Result<Acquired, StoreError> {
        match self.try_acquire(key, intent, lease_ttl).await {
            Err(StoreError::Unavailable(_)) => self.try_acquire(key, intent, lease_ttl).await,
            begin => begin,
        }
    }

    async fn try_acquire(
        &self,
        key: &CacheKey,
        intent: Intent,
        lease_ttl: Duration,
    ) -> Result<Acquired, StoreError> {
        /// The number of times that the script finds an entry which is gone when it is read. After that the key counts as being
        /// filled.
        const MAX_ATTEMPTS: usize = 3;

        let kind = match intent {
            Intent::Fill => b"F",
            Intent::Refresh => b"R",
            Intent::Write => b"W",
        };
        let lease = key_names::lease(key);
        let mut token: [u8; 16] = random()?;
        token[0] = kind[0];
        let whole_ttl = lease_ttl;
        let lease_ttl = bounded_millis(lease_ttl).max(1).to_string();
        if intent == Intent::Fill
            && let Some(begin) = self.acquire_optimistic(key, &lease, token, &lease_ttl).await?
        {
            return Ok(begin);
        }
        let fresh: [u8; 8] = random()?;
        let call = ScriptCall {
            script: &scripts::BEGIN,
            keys: &with_nonce(&[key.name(), &lease], key),
            args: &[kind, &token, lease_ttl.as_bytes(), &fresh],
        };
        for _ in 0..MAX_ATTEMPTS {
            // Redis may run a command whose answer never arrives. Then its lease would block other fills until it expires.
            let guard = UnconfirmedGuard::new(self, ChangeTarget::Lease(&lease, token));
            let (state, fence): (Bytes, Bytes) = self.call(call, self.inner.options.fill_deadline).await?;
            guard.settle();
            self.cache_nonce(key, &fence);
            match &*state {
                b"E" => match self.read_judged(key).await? {
                    ReadValue::Fresh(found) => return Ok(Acquired::Found(found)),
                    ReadValue::Absent => {}
                    // The script doesn't know tags. A refresh replaces an entry that can't be used.
                    ReadValue::Evicted | ReadValue::Stale(..) => {
                        return Box::pin(self.try_acquire(key, Intent::Refresh, whole_ttl)).await;
                    }
                },
                b"L" => {
                    let fence = (*fence)
                        .try_into()
                        .map_err(|_| StoreError::refused("a nonce of the wrong length"))?;
                    return Ok(Acquired::Lease(Lease::new(token, fence)));
                }
                b"F" => return Ok(Acquired::Filling),
                _ => return Ok(Acquired::Busy(Reason::Busy)),
            }
        }
        Ok(Acquired::Filling)
    }

    /// Acquires a lease with the cached nonce, at a third of the script's cost to the server. Returns `None` if the nonce
    /// is outdated or a lease of an older nonce is left: then the script must decide.
    ///
    /// The lease is set before the entry and the nonce are read, so no change between the two is missed. Later changes revoke
    /// the lease, which the commit checks.
    async fn acquire_optimistic(
        &self,
        key: &CacheKey,
        lease: &str,
        token: [u8; 16],
        lease_ttl: &str,
    ) -> Result<Option<Acquired>, StoreError> {
        let nonce = key_names::nonce_of(key);
        let Some(fence) = self.inner.nonces.get(nonce.unwrap_or(key.prefix())) else { return Ok(None) };
        let ours = [&fence[..], b"F", &token].concat();
        let names = [Some(lease), Some(key.name()), nonce];
        let mut pipe = redis::Pipeline::with_capacity(2);
        pipe.add_command(command(
            [b"SET", lease.as_bytes(), &ours, b"NX", b"PX", lease_ttl.as_bytes()].into_iter(),
        ));
        pipe.add_command(mget(names.into_iter().flatten()));
        let epoch = self.tag_log().epoch();
        let guard = UnconfirmedGuard::new(self, ChangeTarget::Lease(lease, token));
        let RedisInner { options, client, .. } = &*self.inner;
        let (_, found): (Value, Vec<Option<Bytes>>) =
            client.pipeline_once(Destination::Key(key.name()), &pipe, options.fill_deadline).await?;
        let mut found = found.into_iter();
        let (held, entry, present) = (found.next().flatten(), found.next().flatten(), found.next().flatten());
        if nonce.is_some() && present.as_deref().and_then(current_nonce) != Some(&fence) {
            // A lease of another nonce blocks no fill, and the script replaces it.
            guard.settle();
            return Ok(None);
        }
        let is_ours = held.as_ref().is_some_and(|held| *held == ours);
        let entry = if nonce.is_some() { entry.and_then(|entry| valid_under(&fence, &entry)) } else { entry };
        let entry = match entry {
            Some(entry) if has_header(&entry) => {
                let opened = Box::pin(self.open(key, Some(entry), None, epoch)).await;
                if opened.is_err() && is_ours {
                    let _ = self.release(lease, &token, Duration::ZERO).await;
                }
                match opened? {
                    ReadValue::Fresh(entry) => Some(entry),
                    // The lease is for its replacement.
                    ReadValue::Absent | ReadValue::Evicted | ReadValue::Stale(..) => None,
                }
            }
            entry => entry,
        };
        if let Some(entry) = entry {
            if !is_ours || self.release(lease, &token, Duration::ZERO).await.is_ok() {
                guard.settle();
            }
            return Ok(Some(Acquired::Found(entry)));
        }
        guard.settle();
        Ok(match held {
            Some(_) if is_ours => Some(Acquired::Lease(Lease::new(token, fence))),
            Some(held) if held.starts_with(&fence) => Some(if held.get(8) == Some(&b'F') {
                Acquired::Filling
            } else {
                Acquired::Busy(Reason::Busy)
            }),
            _ => None,
        })
    }

    /// Extends a lease. Returns `false` if it is no longer the current one.
    pub(super) async fn extend(
        &self,
        key: &CacheKey,
        lease: &Lease,
        lease_ttl: Duration,
    ) -> Result<bool, StoreError> {
        let name = key_names::lease(key);
        let lease_ttl = bounded_millis(lease_ttl).max(1).to_string();
        let call = ScriptCall {
            script: &scripts::RENEW,
            keys: &with_nonce(&[&name], key),
            args: &[lease.fence(), lease.token(), lease_ttl.as_bytes()],
        };
        self.call(call, self.inner.options.fill_deadline).await
    }

    /// Caches the nonce of a key's leases.
    fn cache_nonce(&self, key: &CacheKey, fence: &[u8]) {
        if let Ok(fence) = fence.try_into() {
            self.inner.nonces.insert(key_names::nonce_of(key).unwrap_or(key.prefix()).into(), fence);
        }
    }

    /// Releases a lease, and marks the key as uncacheable for this long unless it is zero.
    pub(super) async fn release(
        &self,
        lease: &str,
        token: &[u8; 16],
        uncacheable_for: Duration,
    ) -> Result<(), StoreError> {
        let uncacheable_for = bounded_millis(uncacheable_for).to_string();
        let call = ScriptCall {
            script: &scripts::ABANDON,
            keys: &[lease],
            args: &[token, uncacheable_for.as_bytes()],
        };
        let _: i64 = self.call(call, self.inner.options.fill_deadline).await?;
        Ok(())
    }
}
