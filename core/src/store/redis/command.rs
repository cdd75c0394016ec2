//! Commands, made with room for all of their parts.

use redis::Cmd;

/// A command of these parts, with room for all of them from the beginning: to grow costs more than to write.
pub(super) fn command<'a>(parts: impl Iterator<Item = &'a [u8]> + Clone) -> Cmd {
    let (count, len) = parts.clone().fold((0, 0), |(count, len), part| (count + 1, len + part.len()));
    let mut cmd = Cmd::with_capacity(count, len);
    for part in parts {
        cmd.arg(part);
    }
    cmd
}
