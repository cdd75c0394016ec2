//! The names of keys in Redis.
//!
//! | name | what | type |
//! |---|---|---|
//! | `p:{g}:suffix` | entry of a group: its nonce (8 bytes), then the value | string |
//! | `p:suffix` | entry outside any group: the value | string |
//! | `p:{g}` | the group's nonce; an entry with another one is not valid | string |
//! | `p-idx:{g}` | the group's entries: suffix, and when it expires in ms since 1970 | sorted set |
//! | `p-lease:{g}:suffix`, `p-lease:{p:suffix}` | nonce (8), kind (`F`ill, `W`rite, `U`ncacheable), token (16) | string |
//! | `p-tmp:{g}:token`, `p-tmp:{p:suffix}:token` | an uploaded value that is not committed yet, or the detached index of an evicted group | string, sorted set |
//! | `p-tmp:{g}:left` | the detached indexes of a group, each with the nonce of its entries | hash |
//! | `p:{p-tags}clock` | the tag clock: nonce (8), then its epoch in digits | string |
//! | `p-idx:{p-tags}evicted` | the tag table: the clock's nonce `n`, the floor `f`, and for each mark (8) the epoch of its last hard eviction, and after `s` of its last soft one | hash |
//!
//! All keys of an entry share its hash tag, and so its slot in a cluster; the tag clock and the tag table share another. Only
//! entries, nonces and the tag clock begin with `p:`, so that invalidation messages for `p:` concern nothing else. All other names
//! begin with `p-`. An entry with tags has a header before its value: see [`tag`](crate::tag).

use std::fmt::Write as _;

use crate::key::{CacheKey, KeySpace};

/// Returns the nonce of a key's group, or `None` for a key without a group.
pub(super) fn nonce_of(key: &CacheKey) -> Option<&str> {
    let name = key.name();
    key.group().map(|_| &name[..name.len() - key.suffix().len() - 1])
}

/// Returns the nonce of a group.
pub(super) fn nonce(space: &KeySpace) -> &str {
    space.head().strip_suffix(':').unwrap_or(space.head())
}

/// Returns the index of a group.
pub(super) fn index(prefix: &str, group: &str) -> String {
    [prefix, "-idx:{", group, "}"].concat()
}

/// Returns the tag clock of a prefix. No entry is called so: after a group's brace comes a colon or nothing.
pub(super) fn tag_clock(prefix: &str) -> String {
    [prefix, ":{", prefix, TAG_CLOCK].concat()
}

const TAG_CLOCK: &str = "-tags}clock";

/// Returns `true` if this is the tag clock of a prefix.
pub(super) fn is_tag_clock(name: &str) -> bool {
    name.ends_with(TAG_CLOCK)
}

/// Returns the tag table of a prefix.
pub(super) fn tag_table(prefix: &str) -> String {
    [prefix, "-idx:{", prefix, "-tags}evicted"].concat()
}

/// Returns the lease of a key.
pub(super) fn lease(key: &CacheKey) -> String {
    match key.group() {
        Some(group) => [key.prefix(), "-lease:{", group, "}:", key.suffix()].concat(),
        None => [key.prefix(), "-lease:{", key.name(), "}"].concat(),
    }
}

/// Returns the key to which a value is uploaded before its commit.
pub(super) fn tmp(key: &CacheKey, token: &[u8; 16]) -> String {
    tmp_in(key.prefix(), key.group().unwrap_or(key.name()), token)
}

/// Returns a temporary key in the slot of `tag`.
pub(super) fn tmp_in(prefix: &str, tag: &str, token: &[u8; 16]) -> String {
    let mut name = format!("{prefix}-tmp:{{{tag}}}:");
    // Writing to a string can't fail.
    let _ = write!(name, "{:032x}", u128::from_be_bytes(*token));
    name
}

/// Returns the hash that lists the detached indexes of a group, whose evictions are not finished.
pub(super) fn unfinished(prefix: &str, group: &str) -> String {
    [prefix, "-tmp:{", group, UNFINISHED].concat()
}

const UNFINISHED: &str = "}:left";

/// The keys of an entry's group.
pub(super) struct GroupNames<'a> {
    nonce: &'a str,
    index: String,
}

impl<'a> GroupNames<'a> {
    pub(super) fn of(key: &'a CacheKey) -> Option<Self> {
        let nonce = nonce_of(key)?;
        Some(Self { nonce, index: index(key.prefix(), key.group()?) })
    }
}

/// Returns the keys of a script: its own, then the nonce of the key's group if it has one.
pub(super) fn with_nonce<'a>(own: &[&'a str], key: &'a CacheKey) -> Vec<&'a str> {
    own.iter().copied().chain(nonce_of(key)).collect()
}

/// Returns the keys of a script: its own, then those of the group if there is one.
pub(super) fn with_group<'a>(own: &[&'a str], group: Option<&'a GroupNames<'a>>) -> Vec<&'a str> {
    let mut keys = Vec::with_capacity(own.len() + 2);
    keys.extend_from_slice(own);
    keys.extend(group.into_iter().flat_map(|group| [group.nonce, group.index.as_str()]));
    keys
}

/// Returns a `SCAN` pattern that matches everything a prefix owns, and some other names. [`Owned::of`] tells them apart.
pub(super) fn pattern(prefix: &str) -> String {
    // The hyphen is first: between two characters it would be a range.
    literally(prefix) + "[-:]*"
}

/// Returns a `SCAN` pattern that matches every name with this beginning.
pub(super) fn pattern_of(head: &str) -> String {
    literally(head) + "*"
}

fn literally(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}

/// The kind of a key that belongs to a prefix.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Owned<'a> {
    /// The nonce or the index of this group, or the hash of its detached indexes.
    Group(&'a str),
    /// An entry of this group.
    Grouped(&'a str),
    /// An entry outside any group.
    Plain,
    /// A lease.
    Lease,
}

impl<'a> Owned<'a> {
    /// Parses a name. Returns `None` for names of another prefix (`p-x:…`, or the groups of `p:x`), and for temporary keys, which
    /// are not read and expire by themselves.
    pub(super) fn of(name: &'a str, prefix: &str) -> Option<Self> {
        let rest = name.strip_prefix(prefix)?;
        if rest.starts_with("-lease:{") {
            return Some(Self::Lease);
        }
        if let Some(group) = rest.strip_prefix("-idx:{") {
            return group.strip_suffix('}').map(Self::Group);
        }
        if let Some(group) = rest.strip_prefix("-tmp:{") {
            return group
                .strip_suffix(UNFINISHED)
                .filter(|group| !group.contains(['{', '}']))
                .map(Self::Group);
        }
        let rest = rest.strip_prefix(':')?;
        match rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            Some((group, "")) => Some(Self::Group(group)),
            Some((group, suffix)) => suffix.starts_with(':').then_some(Self::Grouped(group)),
            None => (!rest.contains(['{', '}'])).then_some(Self::Plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_names_of_a_key_share_its_hash_tag() {
        let tag = |name: &str| {
            let tagged = name.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
            tagged.map_or(name, |(tag, _)| tag).to_owned()
        };
        for group in [Some("g"), None] {
            for suffix in ["a:b", "", "x{y}"] {
                let key = KeySpace::new("p:q", group).unwrap().key(suffix);
                let expected = tag(key.name());
                assert_eq!(tag(&lease(&key)), expected);
                assert_eq!(tag(&tmp(&key, &[7; 16])), expected);
                if let Some(group) = group {
                    assert_eq!(tag(nonce_of(&key).unwrap()), expected);
                    assert_eq!(nonce_of(&key).unwrap(), nonce(&key.space()));
                    assert_eq!(tag(&index("p:q", group)), expected);
                    assert_eq!(tag(&unfinished("p:q", group)), expected);
                }
            }
        }
    }

    #[test]
    fn prefix_owns_its_names_only() {
        assert!(
            is_tag_clock(&tag_clock("a:b")) && !is_tag_clock("a:b:{g}:clock") && !is_tag_clock("a:b:{clock}")
        );
        for (name, expected) in [
            ("a:b:x", Some(Owned::Plain)),
            ("a:b:", Some(Owned::Plain)),
            ("a:b:{g}", Some(Owned::Group("g"))),
            ("a:b:{g}:", Some(Owned::Grouped("g"))),
            ("a:b:{g}:x:y", Some(Owned::Grouped("g"))),
            ("a:b-idx:{g}", Some(Owned::Group("g"))),
            ("a:b-lease:{g}:x", Some(Owned::Lease)),
            ("a:b-lease:{a:b:x}", Some(Owned::Lease)),
            ("a:b-tmp:{g}:00", None),
            ("a:b-tmp:{a:b:x}:00", None),
            ("a:b-tmp:{g}:left", Some(Owned::Group("g"))),
            ("a:b:{a:b-tags}clock", None),
            ("a:b-idx:{a:b-tags}evicted", None),
            ("a:bc:x", None),
            ("a:b-c:x", None),
            ("a:b-c:{g}:x", None),
            ("a:b-idxes:{g}", None),
            ("a:b:c:{g}", None),
            ("a:b:c:{g}:x", None),
            ("a:b:c-idx:{g}", None),
            ("a:b", None),
            ("other", None),
        ] {
            assert_eq!(Owned::of(name, "a:b"), expected, "{name}");
        }
    }

    #[test]
    fn pattern_escapes_the_prefix() {
        assert_eq!(pattern("a*b?[c]\\d"), "a\\*b\\?\\[c\\]\\\\d[-:]*");
    }
}
