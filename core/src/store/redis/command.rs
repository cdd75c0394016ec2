//! Commands of Redis, allocated once.

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
