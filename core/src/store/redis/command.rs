//! Commands of Redis, allocated once.

use std::time::Duration;

use redis::Cmd;

/// Builds a command of these parts. It has room for all of them from the start, because growing costs more than writing.
pub(super) fn command<'a>(parts: impl Iterator<Item = &'a [u8]> + Clone) -> Cmd {
    let (count, len) = parts.clone().fold((0, 0), |(count, len), part| (count + 1, len + part.len()));
    let mut cmd = Cmd::with_capacity(count, len);
    for part in parts {
        cmd.arg(part);
    }
    cmd
}

pub(super) fn mget<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Cmd {
    command(std::iter::once("MGET").chain(names).map(str::as_bytes))
}

/// The longest time that makes a difference, in milliseconds.
const MAX_MILLIS: i64 = 100 * 365 * 24 * 60 * 60 * 1000;

/// A time to live as scripts take it: milliseconds; 0 for what is over already; -1 for no expiry, or none to speak of.
pub(super) fn ttl_millis(ttl: Option<Duration>) -> i64 {
    ttl.map(bounded_millis).filter(|ms| *ms < MAX_MILLIS).unwrap_or(-1)
}

/// A duration in milliseconds, at least one unless it is zero. Redis refuses what overflows its clock.
pub(super) fn bounded_millis(duration: Duration) -> i64 {
    let shortest = i64::from(!duration.is_zero());
    i64::try_from(duration.as_millis()).unwrap_or(MAX_MILLIS).clamp(shortest, MAX_MILLIS)
}
