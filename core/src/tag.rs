//! Tags: names for what a stored value is made of, and the rule that says when a tagged value is valid.
//!
//! # The tag clock
//!
//! An eviction by tag touches no entry. Each prefix has a *tag clock*, a nonce and an epoch, and a *tag table*: the epoch of each
//! tag's last eviction, and a floor. An eviction advances the epoch and notes it in the table. An entry carries a [`TagStamp`], the
//! clock as it was read **before** its value was made, and a mark for each of its tags. It is valid if
//!
//! * its nonce is the clock's, and
//! * its epoch is not older than the clock's; or the table belongs to the same nonce, its floor is not newer than the entry's epoch,
//!   and it has no newer epoch for any of the entry's tags.
//!
//! An older stamp than necessary is safe: more evictions count against the entry. A clock that was lost is replaced by one with
//! another nonce, so that every older entry is a miss; a table that was lost or became too long is replaced by an empty one with a
//! higher floor. Nothing has to be atomic between an entry and the clock, and both may be read in any order, if the table is read
//! after the clock.
//!
//! Epochs are microseconds since 1970, and at least one more than the last. So a clock that a failover set back doesn't use an epoch
//! twice, as long as the servers' clocks differ by less than a failover takes.
//!
//! # Encoding
//!
//! ```text
//! A7 'T' nonce:8 epoch:8 marks:1 (mark:8)* value     a tagged value
//! A7 'P' value                                       a value without tags that begins with A7
//! A7 'K' count:1 epoch:16 rest first                 a value that was evicted softly by its key, in place
//! A7 'S' epoch:8 value                               a value that was evicted softly, only as the answer of a store
//! ```
//!
//! An eviction in place overwrites the first `count` bytes of what is stored, at most as many as its mark has, and appends
//! them, so that a server moves nothing else. Its epoch is written in digits, because a script writes it.
//!
//! Every other value is stored as it is. A record of a route never begins with A7, so a version without tags takes a tagged
//! record for one of another version, which is a miss.

pub(crate) mod field;
mod parts;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64;

pub use field::TagField;
#[cfg(feature = "runtime")]
pub(crate) use parts::path_of;
pub(crate) use parts::path_tag;
pub use parts::{ResponseTags, TagsToEvict};

/// The largest number of tags of an entry.
pub const MAX_TAGS: usize = 128;

/// The longest tag, in bytes.
pub const MAX_TAG_BYTES: usize = 256;

/// The number of evicted tags that a tag table holds. One more, and it is replaced by an empty one with a higher floor.
pub const MAX_EVICTED_TAGS: usize = 65_536;

/// The longest header of a tagged value.
pub const MAX_HEADER: usize = FIXED + 8 * MAX_TAGS;

/// The first byte of a header.
const MAGIC: u8 = 0xA7;
const TAGGED: u8 = b'T';
const PLAIN: u8 = b'P';
const SOFT: u8 = b'S';
const SOFT_IN_PLACE: u8 = b'K';

/// The length of the mark of a soft eviction in place.
const IN_PLACE: usize = 2 + 1 + 16;

/// The length of a header without marks.
const FIXED: usize = 2 + 8 + 8 + 1;

/// A set of tags, for an entry or for an eviction.
///
/// A tag has 1 to 256 bytes and no control characters; an entry has up to 128 tags. Tags are compared byte by byte.
///
/// ```
/// use larder_core::tag::Tags;
///
/// let tags = Tags::new(["product:7", "shop:3", "product:7"])?;
/// assert_eq!(tags.iter().collect::<Vec<_>>(), ["product:7", "shop:3"]);
/// assert!(Tags::new([""]).is_err());
/// # Ok::<(), larder_core::tag::TagError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tags {
    /// Sorted, without duplicates.
    names: Box<[Box<str>]>,
}

impl Tags {
    /// Creates a set of tags. It may be empty.
    ///
    /// # Errors
    ///
    /// Returns an error if a tag is empty, too long or contains a control character, or if there are too many.
    pub fn new<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> Result<Self, TagError> {
        let names = names.into_iter().map(|name| {
            check(name.as_ref())?;
            Ok(Box::from(name.as_ref()))
        });
        Self::of(names.collect::<Result<_, _>>()?)
    }

    /// Creates the set of one tag of the cache's own. It begins with a control character, so no other tag is equal to it.
    #[must_use]
    pub fn reserved(kind: &str, name: &str) -> Self {
        Self { names: [reserved(kind, name)].into() }
    }

    /// Creates a set of the cache's own tags, as [`reserved`](Self::reserved) does.
    ///
    /// # Errors
    ///
    /// Returns an error if these are too many.
    pub(crate) fn all_reserved(
        kind: &str,
        names: impl IntoIterator<Item = String>,
    ) -> Result<Self, TagError> {
        Self::of(names.into_iter().map(|name| reserved(kind, &name)).collect())
    }

    /// Returns the tags of both sets.
    ///
    /// # Errors
    ///
    /// Returns an error if these are too many.
    pub fn union(self, other: Self) -> Result<Self, TagError> {
        if self.is_empty() {
            return Ok(other);
        }
        Self::of(self.names.into_iter().chain(other.names).collect())
    }

    fn of(mut names: Vec<Box<str>>) -> Result<Self, TagError> {
        names.sort_unstable();
        names.dedup();
        if names.len() > MAX_TAGS {
            return Err(TagError::TooMany { count: names.len() });
        }
        Ok(Self { names: names.into() })
    }

    /// Returns an iterator over the tags, in order, without those of the cache's own.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| &**name).filter(|name| !name.starts_with('\u{1}'))
    }

    /// Returns `true` if there are no tags.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Returns the marks of the tags: hashes, which stores keep in place of the names. Two tags with equal marks are evicted
    /// together.
    #[must_use]
    pub fn marks(&self) -> Vec<u64> {
        self.names.iter().map(|name| xxh3_64(name.as_bytes())).collect()
    }
}

/// Returns a tag of the cache's own. A long one is a hash.
fn reserved(kind: &str, name: &str) -> Box<str> {
    let tag = format!("\u{1}{kind}:{name}");
    if tag.len() > MAX_TAG_BYTES {
        return format!("\u{1}{kind}:\u{1}{}", blake3::hash(name.as_bytes()).to_hex()).into();
    }
    tag.into()
}

fn check(name: &str) -> Result<(), TagError> {
    if name.is_empty() {
        return Err(TagError::Empty);
    }
    if name.len() > MAX_TAG_BYTES {
        return Err(TagError::TooLong { length: name.len() });
    }
    match name.chars().find(|character| character.is_control()) {
        Some(character) => Err(TagError::Control { tag: name.to_owned(), character }),
        None => Ok(()),
    }
}

/// An error about tags that an entry can't have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TagError {
    /// An empty tag.
    #[error("a tag is empty")]
    Empty,
    /// A tag that is too long.
    #[error("a tag has {length} bytes; {MAX_TAG_BYTES} are allowed")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// Too many tags.
    #[error("{count} tags are too many; {MAX_TAGS} are allowed")]
    TooMany {
        /// The number of different tags.
        count: usize,
    },
    /// A tag with a control character.
    #[error("the tag {tag:?} holds {character:?}; control characters are not allowed")]
    Control {
        /// The tag.
        tag: String,
        /// The first control character.
        character: char,
    },
    /// A list of tags that is not UTF-8.
    #[error("a list of tags is no UTF-8")]
    Encoding,
    /// A text that is not a path, so that nothing can be evicted by it.
    #[error("{path:?} is not a path")]
    Path {
        /// The text.
        path: String,
    },
}

/// The effect of an eviction on the entries that it concerns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EvictionMode {
    /// Removes the entries.
    #[default]
    Hard,
    /// Makes the entries stale as of now. They may be used as stale ones may.
    Soft,
}

/// The state of a tag clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TagStamp {
    /// Random bytes, different for every clock.
    pub nonce: [u8; 8],
    /// The time of the last eviction by tag, in microseconds since 1970.
    pub epoch: u64,
}

impl TagStamp {
    /// Returns the clock after an eviction at `now`.
    #[must_use]
    pub fn advanced(self, now: SystemTime) -> Self {
        Self { epoch: epoch_at(now).max(self.epoch.saturating_add(1)), ..self }
    }
}

/// Returns the epoch of a point in time.
#[must_use]
pub fn epoch_at(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// The tags of an entry as stores keep them: the clock as it was read before the value was made, and a mark for each tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tagged {
    stamp: TagStamp,
    marks: Box<[u64]>,
}

/// The validity of a tagged entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// A valid entry.
    Fresh,
    /// An entry that was evicted softly at this epoch.
    Stale(u64),
    /// An entry that was evicted, or may have been.
    Gone,
}

impl Validity {
    /// Returns the validity of an entry that was also evicted softly by its key or group at this epoch.
    #[must_use]
    pub fn softened(self, since: Option<u64>) -> Self {
        match (self, since) {
            (Self::Fresh, Some(since)) => Self::Stale(since),
            (Self::Stale(earlier), Some(since)) => Self::Stale(earlier.min(since)),
            (validity, _) => validity,
        }
    }
}

/// The evictions in a tag table that concern one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagEvictions {
    /// The nonce of the clock that the table belongs to.
    pub nonce: [u8; 8],
    /// The epoch after which the table knows every eviction.
    pub floor: u64,
    /// The latest hard eviction of any of the entry's tags.
    pub hard: Option<u64>,
    /// The latest soft eviction of any of the entry's tags.
    pub soft: Option<u64>,
}

impl Tagged {
    /// Creates the stored form of these tags. `stamp` must have been read before the value was made.
    #[must_use]
    pub fn new(stamp: TagStamp, tags: &Tags) -> Self {
        Self { stamp, marks: tags.marks().into() }
    }

    /// Returns the stamp.
    #[must_use]
    pub const fn stamp(&self) -> TagStamp {
        self.stamp
    }

    /// Returns the marks of the tags.
    #[must_use]
    pub fn marks(&self) -> &[u64] {
        &self.marks
    }

    /// Judges the entry by the clock alone. Returns `None` if only the table can tell: something was evicted since the stamp.
    #[must_use]
    pub fn judge_by_clock(&self, clock: Option<TagStamp>) -> Option<Validity> {
        if self.marks.is_empty() {
            return Some(Validity::Fresh);
        }
        match clock {
            Some(clock) if clock.nonce == self.stamp.nonce => {
                (self.stamp.epoch >= clock.epoch).then_some(Validity::Fresh)
            }
            _ => Some(Validity::Gone),
        }
    }

    /// Judges the entry by a table that was read after a clock of the entry's nonce.
    #[must_use]
    pub fn judge_by_table(&self, table: Option<TagEvictions>) -> Validity {
        let TagStamp { nonce, epoch } = self.stamp;
        let is_newer = |eviction: &u64| *eviction > epoch;
        match table {
            Some(table) if table.nonce == nonce && table.floor <= epoch => {
                match (table.hard.filter(is_newer), table.soft.filter(is_newer)) {
                    (Some(_), _) => Validity::Gone,
                    (None, Some(since)) => Validity::Stale(since),
                    (None, None) => Validity::Fresh,
                }
            }
            _ => Validity::Gone,
        }
    }

    /// Returns the length of the header that [`encode`](Self::encode) puts before the value.
    #[must_use]
    pub fn header_len(&self) -> usize {
        FIXED + 8 * self.marks.len()
    }

    /// Returns the value with its header. Copies the value once.
    #[must_use]
    pub fn encode(&self, value: &[u8]) -> Bytes {
        // A value without tags has no header.
        if self.marks.is_empty() {
            return encode_plain(Bytes::copy_from_slice(value));
        }
        let mut out = BytesMut::with_capacity(self.header_len() + value.len());
        out.put_slice(&[MAGIC, TAGGED]);
        out.put_slice(&self.stamp.nonce);
        out.put_u64(self.stamp.epoch);
        out.put_u8(u8::try_from(self.marks.len()).unwrap_or(u8::MAX));
        for mark in &self.marks {
            out.put_u64(*mark);
        }
        out.put_slice(value);
        out.freeze()
    }

    /// Decodes the header of a tagged value, which may be cut after the header. Returns `None` if there is none, or if it is
    /// damaged.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (fixed, rest) = bytes.split_at_checked(FIXED)?;
        let nonce = fixed.get(2..10)?.try_into().ok()?;
        let epoch = u64::from_be_bytes(fixed.get(10..18)?.try_into().ok()?);
        let count = usize::from(*fixed.get(18)?);
        let is_whole = fixed.starts_with(&[MAGIC, TAGGED]) && (1..=MAX_TAGS).contains(&count);
        let (marks, _) = rest.split_at_checked(8 * count).filter(|_| is_whole)?;
        let marks = marks.chunks_exact(8).filter_map(|mark| Some(u64::from_be_bytes(mark.try_into().ok()?)));
        Some(Self { stamp: TagStamp { nonce, epoch }, marks: marks.collect() })
    }
}

/// Returns the stored form of a value without tags: the value itself, unless it begins like a header.
#[must_use]
pub fn encode_plain(value: Bytes) -> Bytes {
    if !has_header(&value) {
        return value;
    }
    [&[MAGIC, PLAIN], &*value].concat().into()
}

/// Returns `true` if stored bytes begin with a header. All others are the value.
#[must_use]
pub fn has_header(bytes: &[u8]) -> bool {
    bytes.first() == Some(&MAGIC)
}

/// Returns `true` if stored bytes begin with the mark of a soft eviction.
#[must_use]
pub fn is_softly_evicted(stored: &[u8]) -> bool {
    stored.starts_with(&[MAGIC, SOFT]) || stored.starts_with(&[MAGIC, SOFT_IN_PLACE])
}

/// Stored bytes that begin with a header, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Headed {
    /// A value without tags, after this many bytes.
    Plain(usize),
    /// A tagged value.
    Tagged(Tagged),
}

impl Headed {
    /// Decodes a header. Returns `None` if it is damaged.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.get(..2)? {
            [MAGIC, PLAIN] => Some(Self::Plain(2)),
            [MAGIC, TAGGED] => Tagged::decode(bytes).map(Self::Tagged),
            _ => None,
        }
    }

    /// Returns the length of the header.
    #[must_use]
    pub fn header_len(&self) -> usize {
        match self {
            Self::Plain(length) => *length,
            Self::Tagged(tagged) => tagged.header_len(),
        }
    }
}

/// Returns a value that was evicted softly, as a store returns it. Only callers that ask for [`stale_since`] can read it.
#[must_use]
pub fn soften(value: &[u8], epoch: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(10 + value.len());
    out.put_slice(&[MAGIC, SOFT]);
    out.put_u64(epoch);
    out.put_slice(value);
    out.freeze()
}

/// Returns stored bytes as they were before soft evictions, and the epoch of the earliest one if there was one. Returns `None` if a
/// mark is damaged.
#[must_use]
pub fn without_soft_marks(mut stored: Bytes) -> Option<(Bytes, Option<u64>)> {
    let mut since: Option<u64> = None;
    loop {
        let (before, epoch) = match stored.get(..2) {
            Some([MAGIC, SOFT]) => (
                stored.slice(10.min(stored.len())..),
                u64::from_be_bytes(stored.get(2..10)?.try_into().ok()?),
            ),
            Some([MAGIC, SOFT_IN_PLACE]) => restore(&stored)?,
            _ => return Some((stored, since)),
        };
        since = Some(since.map_or(epoch, |since| since.min(epoch)));
        stored = before;
    }
}

/// Returns the bytes that a soft eviction in place overwrote in part, and its epoch.
fn restore(stored: &Bytes) -> Option<(Bytes, u64)> {
    let (mark, rest) = stored.split_at_checked(IN_PLACE)?;
    let count = usize::from(*mark.get(2)?);
    let epoch = std::str::from_utf8(mark.get(3..)?).ok()?.parse().ok()?;
    let (rest, first) = rest.split_at_checked(rest.len().checked_sub(count)?)?;
    Some(([first, rest].concat().into(), epoch))
}

/// Returns the value and the time since which it is stale, if a store returned a value that was evicted softly.
#[must_use]
pub fn stale_since(answer: &Bytes) -> Option<(SystemTime, Bytes)> {
    if !answer.starts_with(&[MAGIC, SOFT]) {
        return None;
    }
    let epoch = u64::from_be_bytes(answer.get(2..10)?.try_into().ok()?);
    Some((UNIX_EPOCH.checked_add(Duration::from_micros(epoch))?, answer.slice(10..)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NONCE: [u8; 8] = *b"nonce-01";

    fn tagged(epoch: u64, tags: &[&str]) -> Tagged {
        Tagged::new(TagStamp { nonce: NONCE, epoch }, &Tags::new(tags).unwrap())
    }

    fn clock(epoch: u64) -> Option<TagStamp> {
        Some(TagStamp { nonce: NONCE, epoch })
    }

    #[test]
    fn tags_are_checked_sorted_and_deduplicated() {
        let tags = Tags::new(["b", "a", "b"]).unwrap();
        assert_eq!(tags.iter().collect::<Vec<_>>(), ["a", "b"]);
        assert!(Tags::new([""; 0]).unwrap().is_empty());
        assert_eq!(Tags::new([""]), Err(TagError::Empty));
        assert_eq!(Tags::new(["a".repeat(256)]).unwrap().marks().len(), 1);
        assert_eq!(Tags::new(["a".repeat(257)]), Err(TagError::TooLong { length: 257 }));
        assert!(matches!(Tags::new(["a\nb"]), Err(TagError::Control { character: '\n', .. })));
        let many = |count: usize| Tags::new((0..count).map(|i| i.to_string()));
        assert_eq!(many(128).unwrap().marks().len(), 128);
        assert_eq!(many(129), Err(TagError::TooMany { count: 129 }));
        assert!(Tags::new((0..1000).map(|i| (i % 128).to_string())).is_ok(), "duplicates don't count");
        assert!(Tags::new(["ünïcode", "with space", "a,b"]).is_ok());
    }

    #[test]
    fn union_keeps_the_limit() {
        let many = |range: std::ops::Range<usize>| Tags::new(range.map(|i| i.to_string())).unwrap();
        assert_eq!(many(0..100).union(many(50..128)).unwrap(), many(0..128));
        assert_eq!(many(0..100).union(many(100..129)), Err(TagError::TooMany { count: 129 }));
        assert_eq!(Tags::default().union(many(0..1)).unwrap(), many(0..1));
    }

    #[test]
    fn reserved_tags_are_never_those_of_callers() {
        let own = Tags::reserved("path", "/products");
        assert_eq!((own.iter().count(), own.marks().len()), (0, 1));
        assert_ne!(own.marks(), Tags::reserved("user", "/products").marks());
        assert_ne!(own.marks(), Tags::new(["path:/products"]).unwrap().marks());
        let (a, b) = ("x".repeat(600) + "a", "x".repeat(600) + "b");
        assert_ne!(Tags::reserved("path", &a).marks(), Tags::reserved("path", &b).marks());
    }

    #[test]
    fn clock_alone_judges_only_what_is_not_older() {
        let entry = tagged(5, &["a"]);
        assert_eq!(entry.judge_by_clock(clock(5)), Some(Validity::Fresh));
        assert_eq!(entry.judge_by_clock(clock(4)), Some(Validity::Fresh));
        assert_eq!(entry.judge_by_clock(clock(6)), None);
        assert_eq!(entry.judge_by_clock(None), Some(Validity::Gone));
        let other = TagStamp { nonce: *b"nonce-02", epoch: 5 };
        assert_eq!(entry.judge_by_clock(Some(other)), Some(Validity::Gone));
        assert_eq!(tagged(5, &[]).judge_by_clock(clock(6)), Some(Validity::Fresh), "nothing evicts it");
    }

    #[test]
    fn table_judges_by_nonce_floor_and_tags() {
        let entry = tagged(5, &["a"]);
        let table = TagEvictions { nonce: NONCE, floor: 0, hard: None, soft: None };
        for (table, expected) in [
            (None, Validity::Gone),
            (Some(table), Validity::Fresh),
            (Some(TagEvictions { floor: 5, ..table }), Validity::Fresh),
            (Some(TagEvictions { floor: 6, ..table }), Validity::Gone),
            (Some(TagEvictions { nonce: *b"nonce-02", ..table }), Validity::Gone),
            (Some(TagEvictions { hard: Some(5), ..table }), Validity::Fresh),
            (Some(TagEvictions { hard: Some(6), ..table }), Validity::Gone),
            (Some(TagEvictions { soft: Some(5), ..table }), Validity::Fresh),
            (Some(TagEvictions { soft: Some(6), ..table }), Validity::Stale(6)),
            (Some(TagEvictions { hard: Some(6), soft: Some(7), ..table }), Validity::Gone),
        ] {
            assert_eq!(entry.judge_by_table(table), expected, "{table:?}");
        }
    }

    #[test]
    fn epochs_follow_the_time_and_never_repeat() {
        let at = |micros| UNIX_EPOCH + Duration::from_micros(micros);
        let stamp = TagStamp { nonce: NONCE, epoch: 100 };
        assert_eq!(stamp.advanced(at(200)).epoch, 200);
        assert_eq!(stamp.advanced(at(100)).epoch, 101);
        assert_eq!(stamp.advanced(at(3)).epoch, 101);
    }

    #[test]
    fn soft_answers_tell_since_when() {
        let answer = soften(b"value", 7);
        let (since, value) = stale_since(&answer).unwrap();
        assert_eq!((since, &value[..]), (UNIX_EPOCH + Duration::from_micros(7), &b"value"[..]));
        assert_eq!(stale_since(&Bytes::from_static(b"value")), None);
        assert_eq!(stale_since(&answer.slice(..9)), None);
    }

    proptest! {
        #[test]
        fn headers_come_back(epoch: u64, count in 1..=MAX_TAGS, value: Vec<u8>) {
            let entry = Tagged::new(
                TagStamp { nonce: NONCE, epoch },
                &Tags::new((0..count).map(|i| i.to_string())).unwrap(),
            );
            let stored = entry.encode(&value);
            prop_assert!(has_header(&stored));
            let Some(Headed::Tagged(found)) = Headed::decode(&stored) else { panic!("no header") };
            prop_assert_eq!(&stored[found.header_len()..], &value[..]);
            prop_assert_eq!(found, entry);
        }

        #[test]
        fn values_without_tags_come_back(value: Vec<u8>, begins_like_a_header: bool) {
            let value: Bytes = if begins_like_a_header { [&[MAGIC], &*value].concat() } else { value }.into();
            let stored = encode_plain(value.clone());
            let at = if has_header(&stored) { Headed::decode(&stored).unwrap().header_len() } else { 0 };
            prop_assert_eq!(stored.slice(at..), value);
        }

        #[test]
        fn damaged_headers_are_no_headers(bytes: Vec<u8>, cut in 0..1043usize) {
            let _ = Headed::decode(&[&[MAGIC], &*bytes].concat());
            let stored = tagged(1, &["a", "b"]).encode(b"");
            let cut = cut % stored.len();
            prop_assert_eq!(Headed::decode(&stored[..cut]), None);
        }
    }
}
