//! The Lua scripts. Sent by hash, and in full if the server doesn't have them.

use std::sync::LazyLock;

use redis::Cmd;

use super::command::command;

/// A script and its hash.
#[derive(Debug)]
pub(super) struct Script {
    code: &'static str,
    sha: String,
}

impl Script {
    fn new(code: &'static str) -> Self {
        Self { code, sha: redis::Script::new(code).get_hash().to_owned() }
    }
}

/// One call of a script. `keys` contains every key that the script uses, and all of them are in one slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScriptCall<'a> {
    pub(super) script: &'a Script,
    pub(super) keys: &'a [&'a str],
    pub(super) args: &'a [&'a [u8]],
}

impl ScriptCall<'_> {
    pub(super) fn by_hash(&self) -> Cmd {
        self.command("EVALSHA", &self.script.sha)
    }

    pub(super) fn in_full(&self) -> Cmd {
        self.command("EVAL", self.script.code)
    }

    /// Returns the key that determines the slot of all of them.
    pub(super) fn slot_key(&self) -> &str {
        self.keys.first().copied().unwrap_or_default()
    }

    /// Returns `true` if the script is idempotent. A commit releases its lease, so a second run is refused as if the first had
    /// failed. A second `BEGIN` could restore a lease, or a nonce, that an eviction revoked in between.
    pub(super) fn may_be_sent_twice(&self) -> bool {
        ![&BEGIN, &COMMIT, &COMMIT_SMALL].into_iter().any(|script| std::ptr::eq(self.script, &**script))
    }

    fn command(&self, verb: &str, script: &str) -> Cmd {
        let count = self.keys.len().to_string();
        let head = [verb.as_bytes(), script.as_bytes(), count.as_bytes()];
        let keys = self.keys.iter().map(|key| key.as_bytes());
        command(head.into_iter().chain(keys).chain(self.args.iter().copied()))
    }
}

/// Returns the code of the script with this hash.
pub(super) fn code(hash: &str) -> Option<&'static str> {
    all().find(|script| script.sha == hash).map(|script| script.code)
}

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $file:literal;)*) => {
        fn all() -> impl Iterator<Item = &'static Script> {
            [$(&$name),*].into_iter().map(|script| &**script)
        }

        $(
            $(#[$doc])*
            pub(super) static $name: LazyLock<Script> =
                LazyLock::new(|| Script::new(concat!(include_str!("lua/prelude.lua"), include_str!($file))));
        )*
    };
}

scripts! {
    /// Acquires a lease, or returns what prevents it.
    BEGIN = "lua/begin.lua";
    /// Moves an uploaded value into place if the lease still holds.
    COMMIT = "lua/commit.lua";
    /// Writes a small value if the lease still holds, or removes the entry.
    COMMIT_SMALL = "lua/commit_small.lua";
    /// Extends a lease that still holds.
    RENEW = "lua/renew.lua";
    /// Releases a lease.
    ABANDON = "lua/abandon.lua";
    /// Removes an entry and revokes its lease.
    DELETE = "lua/delete.lua";
    /// Makes an entry stale and revokes its lease.
    SOFTEN = "lua/soften.lua";
    /// Makes every entry of a group stale.
    SOFTEN_GROUP = "lua/soften_group.lua";
    /// Reads the tag clock, creates it if necessary, and extends its expiry.
    TAG_CLOCK = "lua/tag_clock.lua";
    /// Invalidates every entry that carries a tag.
    EVICT_TAGS = "lua/evict_tags.lua";
    /// Invalidates a whole group at once.
    DROP_GROUP = "lua/drop_group.lua";
    /// Unlinks the entries of a dropped group.
    SWEEP = "lua/sweep.lua";
    /// Removes the detached index of a dropped group.
    FORGET_INDEX = "lua/forget_index.lua";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::refusals::called_in;
    use super::*;

    /// The error of Redis 6 and 7.0 for a refused command names only its line.
    #[test]
    fn no_line_of_a_script_calls_two_commands() {
        for line in all().flat_map(|script| script.code.lines()) {
            assert!(called_in(line).collect::<BTreeSet<_>>().len() <= 1, "{line}");
        }
    }
}
