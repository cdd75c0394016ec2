//! Cache keys (RFC 9111 §2, "cache key").
//!
//! # Format
//!
//! `{prefix}:{{group}}:{path, slashes as colons}:{sorted query}`, and without a group `{prefix}:{path}:{sorted query}`.
//! The braces are a Redis hash tag: they put a whole eviction group in one slot of a cluster.
//!
//! # One resource, one key
//!
//! A key is made from the canonical spelling, so that an eviction by one spelling reaches the entries of all others:
//!
//! - In a path, every escape of a character that may stand there itself is decoded (`pchar`, RFC 3986 §3.3): `/%37`, `/a%40b`
//!   and `/a%3Ab` are `/7`, `/a@b` and `/a:b`. Every other byte is an escape in upper case: `%2F`, `%25`, `%C3%A9`.
//! - A query is decoded like a form: `+` is a space, `?a` is `?a=`, and empty pairs (`?a=1&`, a bare `?`) don't count.
//!   Parameters are sorted by their decoded names; several values of one name keep their order. An escaped `+`, `&` or
//!   `=` has no such meaning.
//!
//! Routers match the path as the client sent it, so two spellings may lead to different handlers.
//! [`Provenance`](crate::provenance::Provenance) decides which entry answers which request.
//!
//! # Two different requests never share a key
//!
//! The format uses a few characters itself, so these are percent-encoded where a request contains them: `:` and `=` in
//! a path, `:` in a query, and `{`, `}`, `|` anywhere. A `%` stays unless the characters after it could be read as one
//! of those escapes. Suffixes longer than 512 bytes end in a hash of the whole.
//!
//! `|` introduces the parts beside path and query: `|target=*` for a request without a path, `|host=…`, `|user=…` (a keyed
//! hash) and `|vary=…` (a secondary key).

mod escape;
pub(crate) mod ignored;
pub(crate) mod rewritten;
mod uri;

#[cfg(test)]
mod read_back;
#[cfg(test)]
mod tests;

use std::fmt;
use std::hash::{Hash, Hasher};

use http::Uri;

pub(crate) use escape::{decoded_param, write_chosen, write_part};
pub use ignored::TRACKING_PARAMS;
pub use uri::uri_suffix;
pub(crate) use uri::{Params, is_canonical, uri_len, write_uri};

/// The default prefix of keys.
pub const DEFAULT_PREFIX: &str = "redis:larder:cache";

/// The longest suffix that is kept unchanged, in bytes. Longer ones are cut and end in a hash.
#[doc(hidden)]
pub const MAX_SUFFIX: usize = 512;

/// The length kept of a suffix that was too long, so that people can read the key.
const KEPT_OF_LONG: usize = 128;

/// The endings of prefixes that stores reserve for their own keys.
const RESERVED_ENDINGS: [&str; 3] = ["-lease", "-idx", "-tmp"];

/// A prefix with an optional eviction group: the space of keys that `delete_group` clears.
///
/// ```
/// use larder_core::KeySpace;
///
/// let products = KeySpace::new("redis:larder:cache", Some("products"))?;
/// assert_eq!(products.key("products:7").name(), "redis:larder:cache:{products}:products:7");
/// # Ok::<(), larder_core::KeyError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeySpace {
    /// The start of each key, before the suffix, including the last colon.
    head: Box<str>,
    prefix_len: usize,
    group_len: usize,
}

impl KeySpace {
    /// Creates a key space. Checks the parts once, so that building keys can't fail.
    ///
    /// # Errors
    ///
    /// Returns an error if the prefix or the group is empty, or contains a brace, a control character or white space,
    /// or if the prefix ends in `-lease`, `-idx` or `-tmp`, which stores reserve.
    pub fn new(prefix: &str, group: Option<&str>) -> Result<Self, KeyError> {
        check("prefix", prefix)?;
        if let Some(ending) = RESERVED_ENDINGS.into_iter().find(|ending| prefix.ends_with(ending)) {
            return Err(KeyError::Reserved { prefix: prefix.to_owned(), ending });
        }
        let head = match group {
            Some(group) => {
                check("eviction group", group)?;
                format!("{prefix}:{{{group}}}:")
            }
            None => format!("{prefix}:"),
        };
        Ok(Self { head: head.into(), prefix_len: prefix.len(), group_len: group.map_or(0, str::len) })
    }

    /// Returns the prefix.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.head[..self.prefix_len]
    }

    /// Returns the eviction group, or `None` for keys outside any group.
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        group_of(&self.head, self.prefix_len, self.group_len)
    }

    /// Returns the start of every key of this space, including the last colon.
    #[must_use]
    pub fn head(&self) -> &str {
        &self.head
    }

    /// Returns the key for a suffix that a person or a key builder chose. Braces and bars in it are escaped.
    #[must_use]
    pub fn key(&self, suffix: &str) -> CacheKey {
        self.key_with(suffix.len(), |out| write_chosen(out, suffix))
    }

    /// Returns the key for a URI, as routes build it.
    #[must_use]
    pub fn key_for(&self, uri: &Uri) -> CacheKey {
        self.key_for_params(uri, Params::All)
    }

    /// Returns the key for a URI, with these parameters only.
    pub(crate) fn key_for_params(&self, uri: &Uri, params: Params<'_>) -> CacheKey {
        self.key_with(uri_len(uri), |out| write_uri(out, uri, params))
    }

    /// Returns the key whose suffix `write` appends. The suffix must already be escaped. If it has the `expected`
    /// length, the name is allocated once.
    pub(crate) fn key_with(&self, expected: usize, write: impl FnOnce(&mut String)) -> CacheKey {
        let mut name = String::with_capacity(self.head.len() + expected);
        name.push_str(&self.head);
        write(&mut name);
        cap(&mut name, self.head.len());
        CacheKey {
            name: name.into(),
            prefix_len: self.prefix_len,
            group_len: self.group_len,
            head_len: self.head.len(),
        }
    }
}

/// A hash of the fields that select a variant. Their values may be secrets, so they never appear in a key themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SecondaryKey(pub(crate) [u8; 16]);

/// The name of one entry in a store.
#[derive(Clone, PartialEq, Eq)]
pub struct CacheKey {
    name: Box<str>,
    prefix_len: usize,
    group_len: usize,
    head_len: usize,
}

impl CacheKey {
    /// Returns the whole key, as it is written in the store.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the prefix.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.name[..self.prefix_len]
    }

    /// Returns the eviction group, or `None` for a key outside any group.
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        group_of(&self.name, self.prefix_len, self.group_len)
    }

    /// Returns the part after the prefix and the group.
    #[must_use]
    pub fn suffix(&self) -> &str {
        &self.name[self.head_len..]
    }

    /// Returns the key space of the key.
    #[must_use]
    pub fn space(&self) -> KeySpace {
        KeySpace {
            head: self.name[..self.head_len].into(),
            prefix_len: self.prefix_len,
            group_len: self.group_len,
        }
    }

    /// Returns the key of a variant of this resource (RFC 9111 §4.1).
    #[must_use]
    pub fn variant(&self, secondary: SecondaryKey) -> Self {
        let name = format!("{}|vary={}", self.name, secondary.to_hex()).into();
        Self { name, ..*self }
    }
}

impl Hash for CacheKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CacheKey({:?})", self.name)
    }
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// An error about a prefix or a group that can't be part of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The part is empty.
    #[error("the {part} is empty")]
    Empty {
        /// The name of the part.
        part: &'static str,
    },
    /// The part contains a character that is not allowed in keys.
    #[error(
        "the {part} {value:?} holds {character:?}; braces, bars, white space and control characters are not allowed"
    )]
    Character {
        /// The name of the part.
        part: &'static str,
        /// The part as given.
        value: String,
        /// The first character that is not allowed.
        character: char,
    },
    /// The prefix has an ending that stores reserve for their own keys.
    #[error("the prefix {prefix:?} ends in {ending:?}, which is kept for the store's own keys")]
    Reserved {
        /// The prefix as given.
        prefix: String,
        /// The ending that is reserved.
        ending: &'static str,
    },
}

/// Cuts a suffix that is too long, and appends a hash of the whole name.
fn cap(name: &mut String, head_len: usize) {
    if name.len() - head_len <= MAX_SUFFIX {
        return;
    }
    let hash = blake3::hash(name.as_bytes()).to_hex();
    let mut kept = head_len + KEPT_OF_LONG;
    while !name.is_char_boundary(kept) {
        kept -= 1;
    }
    name.truncate(kept);
    name.push_str("|hash=");
    name.push_str(&hash);
}

fn group_of(name: &str, prefix_len: usize, group_len: usize) -> Option<&str> {
    (group_len > 0).then(|| &name[prefix_len + 2..prefix_len + 2 + group_len])
}

fn check(part: &'static str, value: &str) -> Result<(), KeyError> {
    if value.is_empty() {
        return Err(KeyError::Empty { part });
    }
    match value.chars().find(|c| matches!(c, '{' | '}' | '|') || c.is_whitespace() || c.is_control()) {
        Some(character) => Err(KeyError::Character { part, value: value.to_owned(), character }),
        None => Ok(()),
    }
}
