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
//! of those escapes. Keys longer than [`MAX_SUFFIX`] bytes end in a hash of the whole.
//!
//! `|` introduces the parts beside path and query: `|target=*` for a request without a path, `|host=…`, `|user=…` (a keyed hash) and `|vary=…` (a secondary key).

pub(crate) mod uri;

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};

use http::Uri;

/// The default prefix of keys.
pub const DEFAULT_PREFIX: &str = "redis:larder:cache";

/// The longest suffix that is kept unchanged, in bytes. Longer ones are cut and end in a hash.
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
        self.key_with(uri_len(uri), |out| write_uri(out, uri, Params::All))
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

/// The query parameters that are part of the key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Params<'a> {
    /// All of them.
    All,
    /// Only these names; the others are ignored.
    Only(&'a [String]),
}

impl Params<'_> {
    /// Returns `true` if the parameter with this decoded name is part of the key. If a handler reads a parameter that
    /// is not in the key, any client can choose the response that other clients get.
    fn counts(self, name: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.iter().any(|known| known.as_bytes() == name),
        }
    }
}

/// Returns the default suffix of a URI: its path with slashes as colons, then its parameters sorted by name.
///
/// ```
/// let uri: http::Uri = "/items?z=2&a=1".parse()?;
/// assert_eq!(larder_core::key::uri_suffix(&uri), "items:a=1:z=2");
/// # Ok::<(), http::uri::InvalidUri>(())
/// ```
#[must_use]
pub fn uri_suffix(uri: &Uri) -> String {
    let mut suffix = String::with_capacity(uri_len(uri));
    write_uri(&mut suffix, uri, Params::All);
    suffix
}

/// Returns the length of the suffix of a URI, if nothing in it is escaped or left out.
pub(crate) fn uri_len(uri: &Uri) -> usize {
    // A path begins with a slash, which isn't written.
    uri.path().len().saturating_sub(1) + uri.query().map_or(0, |query| 1 + query.len())
}

/// Appends the suffix of a URI.
pub(crate) fn write_uri(out: &mut String, uri: &Uri, params: Params<'_>) {
    let before = out.len();
    if matches!(params, Params::All) && write_plain(out, uri).is_some() {
        return;
    }
    out.truncate(before);
    write_any(out, uri, params);
}

/// Does the same as [`write_any`] in one pass, if nothing must be escaped, decoded or sorted, which is the usual case.
/// Otherwise returns `None`.
fn write_plain(out: &mut String, uri: &Uri) -> Option<()> {
    let path = uri.path().strip_prefix('/')?;
    let mut copied = 0;
    for (at, byte) in path.bytes().enumerate() {
        if CLASSES[usize::from(byte)] & PLAIN_SEGMENT != 0 {
            continue;
        }
        if byte != b'/' {
            return None;
        }
        out.push_str(&path[copied..at]);
        out.push(':');
        copied = at + 1;
    }
    out.push_str(&path[copied..]);
    let Some(query) = uri.query() else { return Some(()) };
    let (mut last, mut begin, mut name) = ("", 0, None);
    for (at, byte) in query.bytes().enumerate() {
        if CLASSES[usize::from(byte)] & PLAIN_PARAM != 0 {
            continue;
        }
        match byte {
            b'&' => {
                let name = name.take().filter(|name| *name >= last)?;
                out.push(':');
                out.push_str(&query[begin..at]);
                (last, begin) = (name, at + 1);
            }
            b'=' => name = name.or(Some(&query[begin..at])),
            _ => return None,
        }
    }
    name.filter(|name| *name >= last)?;
    out.push(':');
    out.push_str(&query[begin..]);
    Some(())
}

fn write_any(out: &mut String, uri: &Uri, params: Params<'_>) {
    match uri.path().strip_prefix('/') {
        Some(path) => write_path(out, path),
        // `*` and `host:port` (RFC 9112 §3.2) are no paths, and must not share keys with paths.
        None => write_part(out, "target", uri.path()),
    }
    if let Some(query) = uri.query() {
        write_query(out, query, params);
    }
}

/// Returns `true` if this is the canonical spelling of a path: the one whose key every other spelling shares.
pub(crate) fn is_canonical(path: &str) -> bool {
    let bytes = path.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if CLASSES[usize::from(byte)] & IN_PATH != 0 {
            at += 1;
            continue;
        }
        let digits = bytes.get(at + 1..at + 3).filter(|_| byte == b'%');
        let Some(digits) = digits.filter(|digits| !digits.iter().any(u8::is_ascii_lowercase)) else {
            return false;
        };
        if escaped_byte(digits).is_none_or(|escaped| CLASSES[usize::from(escaped)] & PCHAR != 0) {
            return false;
        }
        at += 3;
    }
    true
}

/// Returns the decoded bytes of a segment. A `%` that begins no escape stands for itself.
fn decoded_segment(text: &str) -> Cow<'_, [u8]> {
    decoded(text, |byte| byte)
}

/// Returns the bytes of a name or a value after form decoding (<https://url.spec.whatwg.org/#urlencoded-parsing>).
fn decoded_param(text: &str) -> Cow<'_, [u8]> {
    decoded(text, |byte| if byte == b'+' { b' ' } else { byte })
}

fn decoded(text: &str, literal: impl Fn(u8) -> u8) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if bytes.iter().all(|&byte| byte != b'%' && literal(byte) == byte) {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match escaped_byte(&bytes[at + 1..]).filter(|_| byte == b'%') {
            Some(escaped) => {
                out.push(escaped);
                at += 3;
            }
            None => {
                out.push(literal(byte));
                at += 1;
            }
        }
    }
    Cow::Owned(out)
}

/// Returns the byte that the two digits after a `%` stand for.
fn escaped_byte(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*digits.get(at)?).to_digit(16);
    u8::try_from(digit(0)? << 4 | digit(1)?).ok()
}

fn write_path(out: &mut String, path: &str) {
    for (index, segment) in path.split('/').enumerate() {
        if index > 0 {
            out.push(':');
        }
        write_canonical(out, &decoded_segment(segment), PCHAR, SEGMENT);
    }
}

/// Appends the canonical spelling of these bytes: those of the class are copied, all others escaped.
fn write_canonical(out: &mut String, bytes: &[u8], literal: Class, place: Place) {
    let is_literal = |byte: &u8| CLASSES[usize::from(*byte)] & literal != 0;
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.iter().all(is_literal) => escape_into(out, text, place),
        _ => {
            let mut text = String::with_capacity(bytes.len() + 16);
            for byte in bytes {
                if is_literal(byte) {
                    text.push(char::from(*byte));
                } else {
                    push_escape(&mut text, *byte);
                }
            }
            escape_into(out, &text, place);
        }
    }
}

fn write_query(out: &mut String, query: &str, params: Params<'_>) {
    let pairs = || pairs(query).filter(|(name, _)| params.counts(name));
    if pairs().is_sorted_by(|(one, _), (next, _)| one <= next) {
        return pairs().for_each(|pair| write_pair(out, &pair));
    }
    // A stable sort by name alone keeps several values of one name in the order they came.
    let mut pairs: Vec<_> = pairs().collect();
    pairs.sort_by(|(one, _), (other, _)| one.cmp(other));
    pairs.iter().for_each(|pair| write_pair(out, pair));
}

/// The decoded name of a parameter, and its value as it is spelled.
type Pair<'a> = (Cow<'a, [u8]>, &'a str);

/// Returns the parameters of a query. Empty pairs are skipped.
fn pairs(query: &str) -> impl Iterator<Item = Pair<'_>> {
    let mut rest = Some(query);
    std::iter::from_fn(move || {
        loop {
            let (pair, after) = split_at_byte(rest?, b'&');
            rest = after;
            if !pair.is_empty() {
                let (name, value) = split_at_byte(pair, b'=');
                return Some((decoded_param(name), value.unwrap_or_default()));
            }
        }
    })
}

/// `split_once` for an ASCII character. In such a short text, comparing each byte is faster.
fn split_at_byte(text: &str, byte: u8) -> (&str, Option<&str>) {
    match text.bytes().position(|b| b == byte) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

fn write_pair(out: &mut String, (name, value): &Pair<'_>) {
    out.push(':');
    write_canonical(out, name, IN_NAME, PARAM);
    // A path can't hold a `=` that isn't escaped, so that this begins a parameter.
    out.push('=');
    write_canonical(out, &decoded_param(value), IN_VALUE, PARAM);
}

/// Appends `|name=value`, for parts that are not in the URI.
pub(crate) fn write_part(out: &mut String, name: &str, value: &str) {
    out.push('|');
    out.push_str(name);
    out.push('=');
    escape_into(out, value, ANYWHERE);
}

/// Appends a suffix chosen by a person or a key builder, with the format's characters escaped.
pub(crate) fn write_chosen(out: &mut String, suffix: &str) {
    escape_into(out, suffix, ANYWHERE);
}

/// The classes of bytes in a canonical spelling.
type Class = u8;
/// `pchar` (RFC 3986 §3.3).
const PCHAR: Class = 1;
/// Stands for itself in the name of a parameter (RFC 3986 §3.4, without what separates parameters).
const IN_NAME: Class = 2;
/// The same in a value, which a `=` doesn't end.
const IN_VALUE: Class = 4;
/// Is copied from a path into a key as it is.
const PLAIN_SEGMENT: Class = 8;
/// Is copied from a parameter into a key as it is, and isn't the `=` after its name.
const PLAIN_PARAM: Class = 16;
/// `pchar`, or the slash between segments.
const IN_PATH: Class = 32;

const CLASSES: [Class; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 128 {
        let character = byte as u8;
        let unreserved = character.is_ascii_alphanumeric() || matches!(character, b'-' | b'.' | b'_' | b'~');
        let sub_delim =
            matches!(character, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=');
        let pchar = unreserved || sub_delim || matches!(character, b':' | b'@');
        let in_value = (pchar || matches!(character, b'/' | b'?')) && !matches!(character, b'&' | b'+');
        if pchar {
            classes[byte] |= PCHAR;
        }
        if pchar || character == b'/' {
            classes[byte] |= IN_PATH;
        }
        if in_value {
            classes[byte] |= IN_VALUE;
        }
        if in_value && character != b'=' {
            classes[byte] |= IN_NAME;
        }
        if pchar && SPECIAL[byte] & SEGMENT == 0 {
            classes[byte] |= PLAIN_SEGMENT;
        }
        if in_value && character != b'=' && SPECIAL[byte] & PARAM == 0 {
            classes[byte] |= PLAIN_PARAM;
        }
        byte += 1;
    }
    classes
};

/// The place of a text in a key, which decides the characters that must be escaped.
type Place = u8;
const ANYWHERE: Place = 1;
const PARAM: Place = 2;
const SEGMENT: Place = 4;

/// The places in which each byte must be escaped.
const SPECIAL: [Place; 256] = {
    let mut special = [0; 256];
    let mut byte = 0;
    while byte < 128 {
        special[byte] = match byte as u8 {
            b'{' | b'}' | b'|' | b'%' => ANYWHERE | PARAM | SEGMENT,
            b':' => PARAM | SEGMENT,
            b'=' => SEGMENT,
            _ => 0,
        };
        byte += 1;
    }
    special
};

fn escape_into(out: &mut String, text: &str, place: Place) {
    let bytes = text.as_bytes();
    let mut copied = 0;
    for (index, &byte) in bytes.iter().enumerate() {
        if SPECIAL[usize::from(byte)] & place == 0 {
            continue;
        }
        if byte != b'%' || reads_as_escape(&bytes[index + 1..]) {
            // Every escaped byte is ASCII, so these are boundaries of characters.
            out.push_str(&text[copied..index]);
            push_escape(out, byte);
            copied = index + 1;
        }
    }
    out.push_str(&text[copied..]);
}

fn push_escape(out: &mut String, byte: u8) {
    out.push('%');
    out.push(hex_digit(byte >> 4));
    out.push(hex_digit(byte & 0xf));
}

/// Returns `true` if a `%` before `rest` could be read as an escape of this format. These escapes are in upper case.
fn reads_as_escape(rest: &[u8]) -> bool {
    matches!(rest.get(..2), Some(b"25" | b"3A" | b"3D" | b"7B" | b"7C" | b"7D"))
}

const fn hex_digit(nibble: u8) -> char {
    b"0123456789ABCDEF"[(nibble & 0xf) as usize] as char
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

#[cfg(test)]
mod read_back;

#[cfg(test)]
mod tests {
    use super::read_back::{meaning, read_back};
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn key(group: Option<&str>, uri: &str) -> String {
        let uri: Uri = uri.parse().unwrap();
        KeySpace::new(DEFAULT_PREFIX, group).unwrap().key_for(&uri).name().to_owned()
    }

    #[test]
    fn the_documented_table() {
        for (group, uri, expected) in [
            (Some("products"), "/api/v1/items", "redis:larder:cache:{products}:api:v1:items"),
            (Some("products"), "/items?z=2&a=1", "redis:larder:cache:{products}:items:a=1:z=2"),
            (None, "/api/v1/items", "redis:larder:cache:api:v1:items"),
            (Some("products"), "/products/7", "redis:larder:cache:{products}:products:7"),
            (Some("products"), "/", "redis:larder:cache:{products}:"),
            (None, "http://example.com/items?a", "redis:larder:cache:items:a="),
            (None, "/items/a%40b?q=a+b&", "redis:larder:cache:items:a@b:q=a%20b"),
            (None, "/items/50%25/caf%c3%a9", "redis:larder:cache:items:50%2525:caf%C3%A9"),
        ] {
            assert_eq!(key(group, uri), expected);
        }
    }

    #[test]
    fn ordinary_uris_take_the_short_way() {
        for (uri, is_plain) in [
            ("/products/7?currency=eur&lang=en", true),
            ("/a/b/c/", true),
            ("/a?b=c=d&b=/e", true),
            ("/a?b=2&a=1", false),
            ("/a?b", false),
            ("/a%20b", false),
            ("/a?b=c:d", false),
        ] {
            let uri: Uri = uri.parse().unwrap();
            assert_eq!(write_plain(&mut String::new(), &uri).is_some(), is_plain, "{uri}");
        }
    }

    #[test]
    fn look_alikes_have_keys_of_their_own() {
        let uris = [
            "/a/b",
            "/a:b",
            "/a%253Ab",
            "/a%2Fb",
            "/a%252Fb",
            "/a/b/",
            "//a/b",
            "/a//b",
            "/a|b",
            "/a%257Cb",
            "/",
            "//",
            "/?a",
            "/?=a",
            "/?a&b",
            "/?a=1&a=2",
            "/?a=2&a=1",
            "/?a=1=2",
            "/?a==2",
            "/?a=1&b=2",
            "/?a=1%26b=2",
            "/?a=1:b=2",
            "/?a+b",
            "/?a%2Bb",
            "/a+b",
            "/a%20b",
            "/a=1",
            "/:a=1",
            "/?a%3D=1",
            "/?a?=1",
            "/??a",
            "/?a%25",
            "/?ids[]=1&ids%5B%5D=2",
            "/?ids%5B%5D=2&ids[]=1",
            "/products?limit=2",
            "/products/limit=2",
            "/products:limit=2",
            "/products/?limit=2",
            "/products?limit",
            "/products/%3Flimit",
            "/products",
            "*",
            "/*",
            "example.com:443",
        ];
        let keys: BTreeMap<String, &str> = uris.iter().map(|uri| (key(None, uri), *uri)).collect();
        assert_eq!(keys.len(), uris.len(), "{keys:#?}");
    }

    #[test]
    fn spellings_share_a_key() {
        for (one, other) in [
            ("/p/%37", "/p/7"),
            ("/%7Euser/%2d%5F%2E", "/~user/-_."),
            ("/a%2fb", "/a%2Fb"),
            ("/%c3%a9", "/%C3%A9"),
            ("/a%40b%3A%2C%24%21%27%28%29%2A%2B%3D%26%3B", "/a@b:,$!'()*+=&;"),
            ("/a|b^c", "/a%7Cb%5Ec"),
            ("/%", "/%25"),
            ("/%%33A", "/%253A"),
            ("/?%6Cimit=%32", "/?limit=2"),
            ("/?b=1&%61=2", "/?a=2&b=1"),
            ("/?%62=1&a=2", "/?a=2&b=1"),
            ("/?a+b", "/?a%20b"),
            ("/?a", "/?a="),
            ("/?a&", "/?a"),
            ("/?&&a=1&&b=2&", "/?a=1&b=2"),
            ("/a?", "/a"),
            ("/a?&", "/a"),
            ("/?a=1%3D2", "/?a=1=2"),
            ("/?a=%2f%3f%40%3A", "/?a=/?@:"),
            ("/?ids[]=1&ids%5B%5D=2", "/?ids%5b]=1&ids[%5D=2"),
        ] {
            assert_eq!(key(None, one), key(None, other), "{one}");
        }
        for (one, other) in [
            ("/%2541", "/%41"),
            ("/%%33A", "/%3A"),
            ("/%3%41", "/%3A"),
            ("/a%2Fb", "/a/b"),
            ("/?a%26b", "/?a&b"),
            ("/?a=%2B", "/?a=+"),
            ("/?a%3Db", "/?a=b"),
            ("/?a=%2541", "/?a=%41"),
        ] {
            assert_ne!(key(None, one), key(None, other), "{one}");
        }
    }

    #[test]
    fn one_spelling_of_each_path_is_canonical() {
        for path in ["/", "/a/b@c:d,e$f", "/a%2Fb", "/50%25", "/caf%C3%A9", "/a+b", "*", "//a//"] {
            assert!(is_canonical(path), "{path}");
        }
        for path in ["/%61", "/a%40b", "/a%2fb", "/50%", "/%2", "/caf%c3%a9", "/caf\u{e9}", "/a|b", "/a%2e"] {
            assert!(!is_canonical(path), "{path}");
        }
    }

    #[test]
    fn order_of_parameters_does_not_matter_but_order_of_values_does() {
        assert_eq!(key(None, "/x?b=2&a=1"), key(None, "/x?a=1&b=2"));
        assert_ne!(key(None, "/x?a=2&a=1"), key(None, "/x?a=1&a=2"));
    }

    #[test]
    fn parts_of_a_key_come_back() {
        let space = KeySpace::new("custom:prefix", Some("v2")).unwrap();
        let key = space.key("a{b}|c");
        assert_eq!(key.name(), "custom:prefix:{v2}:a%7Bb%7D%7Cc");
        assert_eq!((key.prefix(), key.group(), key.suffix()), ("custom:prefix", Some("v2"), "a%7Bb%7D%7Cc"));
        assert_eq!(key.space(), space);
        assert_eq!(KeySpace::new("p", None).unwrap().key("x").group(), None);
    }

    #[test]
    fn bad_parts_are_refused_with_their_name() {
        assert_eq!(KeySpace::new("", None), Err(KeyError::Empty { part: "prefix" }));
        assert_eq!(KeySpace::new("p", Some("")), Err(KeyError::Empty { part: "eviction group" }));
        for bad in ["a{", "a}b", "a b", "a\n", "a|b"] {
            assert!(matches!(KeySpace::new("p", Some(bad)), Err(KeyError::Character { .. })), "{bad:?}");
        }
        assert!(matches!(KeySpace::new("p-idx", None), Err(KeyError::Reserved { ending: "-idx", .. })));
    }

    #[test]
    fn long_keys_are_capped_and_stay_apart() {
        let (a, b) =
            (key(None, &format!("/{}a", "x".repeat(3000))), key(None, &format!("/{}b", "x".repeat(3000))));
        assert_ne!(a, b);
        assert!(a.len() < DEFAULT_PREFIX.len() + 1 + MAX_SUFFIX, "{}", a.len());
        let wide = KeySpace::new("p", None).unwrap().key(&"é".repeat(1000));
        assert!(wide.name().contains("|hash="));
    }

    fn target() -> impl Strategy<Value = Uri> {
        // A small alphabet of troublemakers makes collisions likely if they are possible at all.
        "/[ab/:=%|{}&@+2-7A-F]{0,10}(\\?[ab/:=%?|{}&+2-7A-F]{0,10})?"
            .prop_filter_map("not a URI", |text| text.parse::<Uri>().ok())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn keys_are_injective_but_for_spelling(a in target(), b in target()) {
            let space = KeySpace::new(DEFAULT_PREFIX, Some("g")).unwrap();
            prop_assert_eq!(space.key_for(&a) == space.key_for(&b), meaning(&a) == meaning(&b));
        }

        #[test]
        fn the_canonical_spelling_is_one_of_its_own_key(path in "/[ab/:=%|{}&@+2-7A-Fa-f]{0,10}") {
            let spelled: Vec<String> = path[1..]
                .split('/')
                .map(|segment| {
                    let mut out = String::new();
                    write_canonical(&mut out, &decoded_segment(segment), PCHAR, 0);
                    out
                })
                .collect();
            let canonical = format!("/{}", spelled.join("/"));
            prop_assert!(is_canonical(&canonical), "{canonical}");
            prop_assert_eq!(is_canonical(&path), path == canonical);
            prop_assert_eq!(decoded_segment(&canonical), decoded_segment(&path));
            if let (Ok(one), Ok(other)) = (path.parse::<Uri>(), canonical.parse::<Uri>()) {
                prop_assert_eq!(uri_suffix(&one), uri_suffix(&other));
            }
        }

        #[test]
        fn the_short_way_leads_to_the_same_key(uri in target()) {
            let (mut short, mut long) = (String::new(), String::new());
            if write_plain(&mut short, &uri).is_some() {
                write_any(&mut long, &uri, Params::All);
                prop_assert_eq!(short, long);
            }
        }

        #[test]
        fn a_key_can_be_read_back(uri in target()) {
            let suffix = uri_suffix(&uri);
            prop_assert_eq!(read_back(&suffix), meaning(&uri));
        }

        #[test]
        fn chosen_suffixes_are_injective(a in "[ab%{}|2-7BCD:]{0,8}", b in "[ab%{}|2-7BCD:]{0,8}") {
            let space = KeySpace::new(DEFAULT_PREFIX, None).unwrap();
            prop_assert_eq!(space.key(&a) == space.key(&b), a == b);
        }
    }
}
