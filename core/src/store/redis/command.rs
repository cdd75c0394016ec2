//! Building blocks of commands and replies: allocation in one piece, times in milliseconds, and keys of another type.

use std::time::Duration;

use bytes::Bytes;
use redis::{Cmd, RedisError};

use crate::store::StoreError;
use crate::tag::soften;

/// Builds a command from its parts. Allocates once: growing costs more than writing.
pub(super) fn command<'a>(parts: impl Iterator<Item = &'a [u8]> + Clone) -> Cmd {
    let (count, len) = parts.clone().fold((0, 0), |(count, len), part| (count + 1, len + part.len()));
    let mut cmd = Cmd::with_capacity(count, len);
    for part in parts {
        cmd.arg(part);
    }
    cmd
}

/// Builds an `MGET` of these keys.
pub(super) fn mget<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Cmd {
    command(std::iter::once("MGET").chain(names).map(str::as_bytes))
}

/// A hundred years in milliseconds. Longer times count as no expiry.
const MAX_MILLIS: i64 = 100 * 365 * 24 * 60 * 60 * 1000;

/// Converts a TTL for scripts: to milliseconds, 0 if it is zero, and -1 for no expiry.
pub(super) fn ttl_millis(ttl: Option<Duration>) -> i64 {
    ttl.map(bounded_millis).filter(|ms| *ms < MAX_MILLIS).unwrap_or(-1)
}

/// Converts a duration to milliseconds: at least 1 unless it is zero, and at most a hundred years, because Redis refuses times
/// that overflow its clock.
pub(super) fn bounded_millis(duration: Duration) -> i64 {
    let shortest = i64::from(!duration.is_zero());
    i64::try_from(duration.as_millis()).unwrap_or(MAX_MILLIS).clamp(shortest, MAX_MILLIS)
}

/// Converts the error for a key that is no string to `None`. Another program wrote it, and the next write replaces it.
#[inline]
pub(super) fn unless_wrong_type<T>(reply: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match reply {
        Err(StoreError::Refused(error))
            if error.downcast_ref::<RedisError>().and_then(RedisError::code) == Some("WRONGTYPE") =>
        {
            Ok(None)
        }
        reply => reply.map(Some),
    }
}

/// Returns the value of a group's entry if the entry begins with the group's nonce. If it begins with a former nonce, the value has
/// the mark of the soft eviction that replaced the nonce.
#[inline]
pub(super) fn valid_under(nonces: &[u8], record: &Bytes) -> Option<Bytes> {
    if nonces.len() == 8 {
        return record.starts_with(nonces).then(|| record.slice(8..));
    }
    valid_under_any(nonces, record)
}

/// Returns the nonce of a group from the value of its key.
pub(super) fn current_nonce(nonces: &[u8]) -> Option<&[u8]> {
    let (nonce, former) = nonces.split_at_checked(8)?;
    former.len().is_multiple_of(FORMER_NONCE).then_some(nonce)
}

/// The length of a former nonce with the epoch of the soft eviction that replaced it, in digits.
const FORMER_NONCE: usize = 8 + 16;

fn valid_under_any(nonces: &[u8], record: &Bytes) -> Option<Bytes> {
    let nonce = current_nonce(nonces)?;
    if record.starts_with(nonce) {
        return Some(record.slice(8..));
    }
    let former = nonces[8..].chunks_exact(FORMER_NONCE).find(|former| record.starts_with(&former[..8]))?;
    Some(soften(record.get(8..)?, parse_epoch(&former[8..])?))
}

/// Parses an epoch that a script wrote.
pub(super) fn parse_epoch(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}
