//! Stored responses, and their encoding.
//!
//! # Layout
//!
//! Numbers are big-endian. The first byte is the version of the kind, the second the kind of the record. A record that
//! is damaged or from another version is a miss and never an error, because old and new deployments overlap.
//!
//! ```text
//! response   2 'R' status:2 flags:1 stored_at:8 ttl:8 variant:8 pattern:8 head_len:4 body_len:8 head body
//!            head = (name_len:2 value_len:4 name value)*       times in milliseconds; ttl 0 = no expiry
//!            flags = 1 must_revalidate | 2 is_canonical | 4 is_chosen | 8 proxy_revalidate | 16 for_origin
//!                    | 32 tells_credentials
//! variants   2 'V' id:8 flags:1 pattern:8 names:1 (len:2 name)* secondary_keys:2 (key:16)*
//! value      1 'B' coder:1 bytes                               what a CacheBackend stores
//! shared     1 'S' …                                           what a shared cache stores: see `record/shared.rs`
//! ```
//!
//! The body comes last, so that the body and the field values are slices of the store's buffer.

pub(crate) mod shared;
pub(crate) mod template;
pub(crate) mod variants;

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{ACCEPT_RANGES, CONTENT_TYPE, ETAG, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::headers::vary::USUAL_CREDENTIALS;
use crate::provenance::Provenance;
#[cfg(feature = "runtime")]
use template::{HeadUse, ResponseFields};
use template::{RecordHead, TemplatedHead};
use variants::Variants;

/// The version of values and of shared caches' records.
pub(crate) const VERSION: u8 = 1;
/// The version of routes' records. Version 1 had no provenance.
const ROUTE_VERSION: u8 = 2;
const RESPONSE: u8 = b'R';
const VARIANTS: u8 = b'V';
#[cfg(feature = "runtime")]
const VALUE: u8 = b'B';

/// Version, kind, status, flags, four times 8 bytes, the lengths of head and body.
const RESPONSE_FIXED: usize = 2 + 2 + 1 + 8 + 8 + 8 + 8 + 4 + 8;

/// The lengths of a field's name and value.
const FIELD_FIXED: usize = 2 + 4;

/// `Cache-Control` and the status field. The map grows for `Cache-Status`, which is off by default: with room for it, the usual map
/// would be twice as large.
const ADDED_BY_A_HIT: usize = 2;

const MUST_REVALIDATE: u8 = 1;
const IS_CANONICAL: u8 = 2;
const IS_CHOSEN: u8 = 4;
const PROXY_REVALIDATE: u8 = 8;
const FOR_ORIGIN: u8 = 16;
const TELLS_CREDENTIALS: u8 = 32;

/// A stored response (RFC 9111 §3).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The status code.
    pub status: StatusCode,
    /// The stored fields: no hop-by-hop fields, no `Date`, `Age`, `Expires`, `Cache-Control` or `Set-Cookie`.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The time at which the handler answered, to the millisecond.
    pub stored_at: SystemTime,
    /// The freshness lifetime. `None` means no expiry.
    pub ttl: Option<Duration>,
    /// The id of the [`Variants`] record that this is a variant of; 0 for a response that doesn't vary.
    pub variant: u64,
    /// `true` if the handler forbade the use of the stale response (RFC 9111 §5.2.2.2).
    pub must_revalidate: bool,
    /// The provenance of the requests that it may answer.
    pub provenance: Provenance,
    /// `true` if the handler forbade the use of the stale response to shared caches (RFC 9111 §5.2.2.8).
    pub proxy_revalidate: bool,
    /// `true` if the request that it answered named an `Origin` (RFC 6454 §7).
    pub for_origin: bool,
    /// `true` if its `Vary` names `Authorization` and `Cookie`, as on an undeclared route.
    pub tells_credentials: bool,
    /// `true` if `headers` hold the fields that a response has besides the stored ones, after these: see
    /// [`ResponseFields`](template::ResponseFields). Only [`Record::decode_for`] makes such an entry, for a lookup.
    pub(crate) is_response: bool,
    /// The stored fields, in place of `headers`, if the response may become a 304. Only [`Record::decode_for`] makes such an entry.
    pub(crate) templated: Option<TemplatedHead>,
}

impl Entry {
    /// Creates a response that never expires, doesn't vary, and has no provenance.
    #[must_use]
    pub fn new(status: StatusCode, headers: HeaderMap, body: Bytes, stored_at: SystemTime) -> Self {
        Self {
            status,
            headers,
            body,
            stored_at,
            ttl: None,
            variant: 0,
            must_revalidate: false,
            provenance: Provenance::default(),
            proxy_revalidate: false,
            for_origin: false,
            tells_credentials: false,
            is_response: false,
            templated: None,
        }
    }

    /// Returns the time since the response was stored. Zero if the clock went back.
    #[must_use]
    pub fn age(&self, now: SystemTime) -> Duration {
        now.duration_since(self.stored_at).unwrap_or_default()
    }

    /// Returns the remaining freshness lifetime in whole seconds of age, or `None` for no expiry.
    #[must_use]
    pub fn remaining(&self, now: SystemTime) -> Option<Duration> {
        self.remaining_at(self.age(now))
    }

    pub(crate) fn remaining_at(&self, age: Duration) -> Option<Duration> {
        self.ttl.map(|ttl| ttl.saturating_sub(Duration::from_secs(age.as_secs())))
    }

    /// Returns `true` if the freshness lifetime is over.
    #[must_use]
    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.is_expired_at(self.age(now))
    }

    pub(crate) fn is_expired_at(&self, age: Duration) -> bool {
        self.ttl.is_some_and(|ttl| age >= ttl)
    }

    /// Returns the time since the freshness lifetime ended; zero while the response is fresh.
    #[must_use]
    pub fn staleness(&self, now: SystemTime) -> Duration {
        self.staleness_at(self.age(now))
    }

    pub(crate) fn staleness_at(&self, age: Duration) -> Duration {
        self.ttl.map_or(Duration::ZERO, |ttl| age.saturating_sub(ttl))
    }

    /// Returns the entry with a freshness lifetime that ended at this time, or at `now` if that is earlier.
    #[cfg(feature = "runtime")]
    pub(crate) fn stale_since(mut self, since: SystemTime, now: SystemTime) -> Self {
        let fresh_for = since.min(now).duration_since(self.stored_at).unwrap_or_default();
        self.ttl = Some(self.ttl.map_or(fresh_for, |ttl| ttl.min(fresh_for)));
        self
    }

    /// Returns `true` if this cache must not use the response once it is stale.
    pub(crate) const fn forbids_stale(&self) -> bool {
        self.must_revalidate || self.proxy_revalidate
    }

    fn flags(&self) -> u8 {
        let flags = [
            (self.must_revalidate, MUST_REVALIDATE),
            (self.proxy_revalidate, PROXY_REVALIDATE),
            (self.for_origin, FOR_ORIGIN),
            (self.tells_credentials, TELLS_CREDENTIALS),
        ];
        flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).sum()
    }

    /// Returns the record for a store. Copies the body once.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let head_len = head_len(&self.headers);
        let mut out = BytesMut::with_capacity(RESPONSE_FIXED + head_len + self.body.len());
        out.put_u8(ROUTE_VERSION);
        out.put_u8(RESPONSE);
        out.put_u16(self.status.as_u16());
        out.put_u8(self.flags() | flags_of(self.provenance));
        out.put_u64(to_millis(self.stored_at));
        out.put_u64(self.ttl.map_or(0, |ttl| saturating_millis(ttl).max(1)));
        out.put_u64(self.variant);
        out.put_u64(self.provenance.pattern);
        out.put_u32(u32::try_from(head_len).unwrap_or(u32::MAX));
        out.put_u64(self.body.len() as u64);
        put_head(&mut out, &self.headers);
        out.put_slice(&self.body);
        out.freeze()
    }
}

/// A record that a store may hold under a route's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A response.
    Response(Entry),
    /// The selecting fields of a resource that varies (RFC 9111 §4.1).
    Variants(Variants),
}

impl Record {
    /// Decodes a record. Returns `None` if it is damaged, from another version, or not a route's record.
    #[inline]
    #[must_use]
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        match bytes.get(..2)? {
            [ROUTE_VERSION, RESPONSE] => {
                read_response(bytes, bytes.len(), decode_head).map(|(entry, _)| Self::Response(entry))
            }
            [ROUTE_VERSION, VARIANTS] => decode_variants(bytes).map(Self::Variants),
            _ => None,
        }
    }

    /// Decodes a record as [`decode`](Self::decode) does, for a response of this route. A head that has the form of a template is
    /// decoded for this use.
    #[cfg(feature = "runtime")]
    pub(crate) fn decode_for(bytes: &Bytes, answer: HeadUse, route: &impl ResponseFields) -> Option<Self> {
        if !bytes.starts_with(&[ROUTE_VERSION, RESPONSE]) {
            return Self::decode(bytes);
        }
        let read_head = |bytes: &Bytes, place| route.templates().read(bytes, place, answer, route);
        read_response(bytes, bytes.len(), read_head).map(|(entry, _)| Self::Response(entry))
    }
}

impl Variants {
    /// Returns the record for a store.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        out.put_u8(ROUTE_VERSION);
        out.put_u8(VARIANTS);
        out.put_u64(self.id);
        out.put_u8(flags_of(self.provenance));
        out.put_u64(self.provenance.pattern);
        out.put_u8(u8::try_from(self.names.len()).unwrap_or(u8::MAX));
        for name in &self.names {
            out.put_u16(u16::try_from(name.as_str().len()).unwrap_or(u16::MAX));
            out.put_slice(name.as_str().as_bytes());
        }
        out.put_u16(u16::try_from(self.secondary_keys.len()).unwrap_or(u16::MAX));
        for key in &self.secondary_keys {
            out.put_slice(key);
        }
        out.freeze()
    }
}

/// Returns the record of a `CacheBackend` value, marked with the coder that wrote it.
#[cfg(feature = "runtime")]
pub(crate) fn encode_value(coder: u8, value: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(3 + value.len());
    out.put_slice(&[VERSION, VALUE, coder]);
    out.put_slice(value);
    out.freeze()
}

/// Returns the value, if these bytes hold one of that coder.
#[cfg(feature = "runtime")]
pub(crate) fn decode_value(coder: u8, bytes: &Bytes) -> Option<Bytes> {
    bytes.starts_with(&[VERSION, VALUE, coder]).then(|| bytes.slice(3..))
}

/// Decodes a response from the beginning of its record, which is `length` bytes long. Returns the entry with the
/// available part of the body, and the position of the body in the record. Returns `None` if the record is no response,
/// or is cut before the body.
#[cfg(feature = "runtime")]
pub(crate) fn read_beginning(bytes: &Bytes, length: usize) -> Option<(Entry, usize)> {
    bytes.starts_with(&[ROUTE_VERSION, RESPONSE]).then(|| read_response(bytes, length, decode_head))?
}

fn decode_head(bytes: &Bytes, place: Range<usize>) -> Option<RecordHead> {
    read_head(bytes, place).map(RecordHead::Stored)
}

#[inline]
fn read_response(
    bytes: &Bytes,
    length: usize,
    read_head: impl FnOnce(&Bytes, Range<usize>) -> Option<RecordHead>,
) -> Option<(Entry, usize)> {
    let fixed = bytes.first_chunk()?;
    let status = StatusCode::from_u16(u16::from_be_bytes(part(fixed, 2))).ok()?;
    let [flags] = part(fixed, 4);
    if flags
        & !(MUST_REVALIDATE | IS_CANONICAL | IS_CHOSEN | PROXY_REVALIDATE | FOR_ORIGIN | TELLS_CREDENTIALS)
        != 0
    {
        return None;
    }
    let number = |at| u64::from_be_bytes(part(fixed, at));
    let stored_at = from_millis(number(5))?;
    let ttl = match number(13) {
        0 => None,
        millis => Some(Duration::from_millis(millis)),
    };
    let variant = number(21);
    let provenance = provenance_of(flags, number(29));
    let body_at = RESPONSE_FIXED.checked_add(u32::from_be_bytes(part(fixed, 37)) as usize)?;
    let body_len = usize::try_from(number(41)).ok()?;
    if length != body_at.checked_add(body_len)? || bytes.len() < body_at {
        return None;
    }
    let (headers, is_response, templated) = match read_head(bytes, RESPONSE_FIXED..body_at)? {
        RecordHead::Stored(headers) => (headers, false, None),
        RecordHead::Response(headers) => (headers, true, None),
        RecordHead::Templated(head) => (HeaderMap::new(), false, Some(head)),
    };
    let body = bytes.slice(body_at..);
    let is_set = |flag| flags & flag != 0;
    let entry = Entry {
        status,
        headers,
        body,
        stored_at,
        ttl,
        variant,
        must_revalidate: is_set(MUST_REVALIDATE),
        provenance,
        proxy_revalidate: is_set(PROXY_REVALIDATE),
        for_origin: is_set(FOR_ORIGIN),
        tells_credentials: is_set(TELLS_CREDENTIALS),
        is_response,
        templated,
    };
    Some((entry, body_at))
}

/// Returns the bytes of a number in the part of a record before its head.
#[inline]
fn part<const N: usize>(fixed: &[u8; RESPONSE_FIXED], at: usize) -> [u8; N] {
    std::array::from_fn(|index| fixed[at + index])
}

const fn flag(flag: u8, is_set: bool) -> u8 {
    if is_set { flag } else { 0 }
}

const fn flags_of(provenance: Provenance) -> u8 {
    flag(IS_CANONICAL, provenance.is_canonical) | flag(IS_CHOSEN, provenance.is_chosen)
}

const fn provenance_of(flags: u8, pattern: u64) -> Provenance {
    Provenance { pattern, is_canonical: flags & IS_CANONICAL != 0, is_chosen: flags & IS_CHOSEN != 0 }
}

/// Returns the encoded length of a head.
pub(crate) fn head_len(headers: &HeaderMap) -> usize {
    headers.iter().map(|(n, v)| FIELD_FIXED + n.as_str().len() + v.len()).sum()
}

pub(crate) fn put_head(out: &mut BytesMut, headers: &HeaderMap) {
    for (name, value) in headers {
        // `http` keeps names and values far below these sizes.
        out.put_u16(u16::try_from(name.as_str().len()).unwrap_or(u16::MAX));
        out.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        out.put_slice(name.as_str().as_bytes());
        out.put_slice(value.as_bytes());
    }
}

/// Decodes the head at `place`, which must be inside `bytes`.
pub(crate) fn read_head(bytes: &Bytes, place: Range<usize>) -> Option<HeaderMap> {
    // The exact capacity: a map with a few fields is a small allocation, and a large map doesn't grow.
    let head = bytes.get(place.clone())?;
    let mut headers = HeaderMap::try_with_capacity(count_fields(head)? + ADDED_BY_A_HIT).ok()?;
    let (mut rest, mut at) = (head, place.start);
    while let Some((&lengths, fields)) = rest.split_first_chunk() {
        let (name_len, value_len) = field_lengths(lengths);
        let (name, fields) = fields.split_at_checked(name_len)?;
        let (value, fields) = fields.split_at_checked(value_len)?;
        let value_at = at + FIELD_FIXED + name_len;
        (rest, at) = (fields, value_at + value_len);
        let (name, value) = match (name, value) {
            (b"accept-ranges", b"bytes") => (ACCEPT_RANGES, const { HeaderValue::from_static("bytes") }),
            (b"vary", value) if value == USUAL_CREDENTIALS.as_bytes() => {
                (VARY, const { HeaderValue::from_static(USUAL_CREDENTIALS) })
            }
            (name, _) => (name_of(name)?, HeaderValue::from_maybe_shared(bytes.slice(value_at..at)).ok()?),
        };
        headers.try_append(name, value).ok()?;
    }
    Some(headers)
}

/// Returns the number of fields in a head, or `None` if the head is damaged.
fn count_fields(head: &[u8]) -> Option<usize> {
    let (mut rest, mut count) = (head, 0);
    while let Some((&lengths, fields)) = rest.split_first_chunk() {
        let (name_len, value_len) = field_lengths(lengths);
        rest = fields.get(name_len.checked_add(value_len)?..)?;
        count += 1;
    }
    rest.is_empty().then_some(count)
}

/// Returns the lengths of a field's name and value.
fn field_lengths([a, b, c, d, e, f]: [u8; FIELD_FIXED]) -> (usize, usize) {
    (usize::from(u16::from_be_bytes([a, b])), u32::from_be_bytes([c, d, e, f]) as usize)
}

/// Reads the name of a field. Nearly all stored responses have the first two, which are recognised without a look-up.
fn name_of(name: &[u8]) -> Option<HeaderName> {
    match name {
        b"content-type" => Some(CONTENT_TYPE),
        b"etag" => Some(ETAG),
        _ => HeaderName::from_bytes(name).ok(),
    }
}

fn decode_variants(bytes: &Bytes) -> Option<Variants> {
    let mut reader = Reader { rest: bytes.get(2..)? };
    let id = reader.u64()?;
    let [flags] = reader.array()?;
    if flags & !(IS_CANONICAL | IS_CHOSEN) != 0 {
        return None;
    }
    let provenance = provenance_of(flags, reader.u64()?);
    let names = usize::from(reader.take(1)?[0]);
    let names = (0..names)
        .map(|_| {
            let len = usize::from(reader.u16()?);
            HeaderName::from_bytes(reader.take(len)?).ok()
        })
        .collect::<Option<Vec<_>>>()?;
    let keys = usize::from(reader.u16()?);
    let secondary_keys =
        (0..keys).map(|_| reader.take(16)?.try_into().ok()).collect::<Option<Vec<[u8; 16]>>>()?;
    reader.rest.is_empty().then_some(Variants { id, provenance, names, secondary_keys })
}

/// A reader that takes numbers off the front of a slice. The slice may be shorter than it claims.
pub(crate) struct Reader<'a> {
    pub(crate) rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

pub(crate) fn saturating_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn to_millis(time: SystemTime) -> u64 {
    saturating_millis(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

pub(crate) fn from_millis(millis: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry() -> impl Strategy<Value = Entry> {
        let field = ("[a-z][a-z0-9-]{0,12}", proptest::collection::vec(0x20u8..0x7f, 0..30));
        (
            200u16..600,
            proptest::collection::vec(field, 0..8),
            proptest::collection::vec(any::<u8>(), 0..300),
            0u64..4_000_000_000_000,
            proptest::option::of(1u64..10_000_000),
            any::<u64>(),
            any::<[bool; 6]>(),
            any::<u64>(),
        )
            .prop_map(|(status, fields, body, stored_at, ttl, variant, flags, pattern)| Entry {
                status: StatusCode::from_u16(status).unwrap(),
                headers: fields
                    .into_iter()
                    .map(|(n, v)| (HeaderName::try_from(n).unwrap(), HeaderValue::from_bytes(&v).unwrap()))
                    .collect(),
                body: body.into(),
                stored_at: from_millis(stored_at).unwrap(),
                ttl: ttl.map(Duration::from_millis),
                variant,
                must_revalidate: flags[0],
                provenance: Provenance { pattern, is_canonical: flags[1], is_chosen: flags[2] },
                proxy_revalidate: flags[3],
                for_origin: flags[4],
                tells_credentials: flags[5],
                is_response: false,
                templated: None,
            })
    }

    fn sample() -> Entry {
        Entry {
            status: StatusCode::OK,
            headers: [(http::header::ETAG, HeaderValue::from_static("\"a\""))].into_iter().collect(),
            body: Bytes::from_static(b"body"),
            stored_at: from_millis(1_000_000).unwrap(),
            ttl: Some(Duration::from_secs(60)),
            variant: 0,
            must_revalidate: false,
            provenance: Provenance::default(),
            proxy_revalidate: false,
            for_origin: false,
            tells_credentials: false,
            is_response: false,
            templated: None,
        }
    }

    #[test]
    fn age_and_what_remains() {
        let at = |millis| from_millis(1_000_000 + millis).unwrap();
        let entry = sample();
        assert_eq!(entry.remaining(at(0)), Some(Duration::from_secs(60)));
        assert_eq!(entry.remaining(at(999)), Some(Duration::from_secs(60)));
        assert_eq!(entry.remaining(at(1_000)), Some(Duration::from_secs(59)));
        assert!(!entry.is_expired(at(59_999)));
        assert!(entry.is_expired(at(60_000)));
        assert_eq!(entry.remaining(at(100_000)), Some(Duration::ZERO));
        assert_eq!(entry.age(from_millis(0).unwrap()), Duration::ZERO, "a clock that went back");
        let forever = Entry { ttl: None, ..sample() };
        assert!(!forever.is_expired(at(u64::from(u32::MAX))));
        assert_eq!(forever.remaining(at(5)), None);
    }

    #[test]
    fn more_fields_than_any_response_has_are_unreadable() {
        let mut bytes = sample().encode().to_vec();
        let head = vec![0; 6 * 40_000];
        bytes.truncate(RESPONSE_FIXED);
        bytes[RESPONSE_FIXED - 12..RESPONSE_FIXED - 8].copy_from_slice(&(head.len() as u32).to_be_bytes());
        bytes[RESPONSE_FIXED - 8..].copy_from_slice(&0u64.to_be_bytes());
        bytes.extend(head);
        assert_eq!(Record::decode(&bytes.into()), None);
    }

    #[test]
    #[cfg(feature = "runtime")]
    fn the_beginning_of_a_record_is_enough_for_all_but_the_body() {
        let (entry, whole) = (sample(), sample().encode());
        let body_at = whole.len() - entry.body.len();
        for there in 0..=whole.len() {
            let read = read_beginning(&whole.slice(..there), whole.len());
            let expected = (there >= body_at)
                .then(|| (Entry { body: whole.slice(body_at..there), ..entry.clone() }, body_at));
            assert_eq!(read, expected, "{there} bytes");
        }
        assert_eq!(read_beginning(&whole, whole.len() + 1), None, "of another length than it says");
        assert_eq!(read_beginning(&Variants::new(7, Vec::new()).encode(), 1000), None);
    }

    #[test]
    fn a_hit_copies_no_body() {
        let bytes = sample().encode();
        let Some(Record::Response(entry)) = Record::decode(&bytes) else { panic!("not a response") };
        assert_eq!(entry.body.as_ptr_range().end, bytes.as_ptr_range().end);
    }

    #[test]
    fn every_truncation_and_every_other_version_is_unreadable() {
        let variants = Variants::new(7, vec![http::header::ACCEPT_LANGUAGE]);
        for whole in [sample().encode(), variants.encode()] {
            assert!(Record::decode(&whole).is_some());
            for len in 0..whole.len() {
                assert_eq!(Record::decode(&whole.slice(..len)), None, "{len}");
            }
            let longer = Bytes::from([&whole[..], b"x"].concat());
            assert_eq!(Record::decode(&longer), None);
            for other in [ROUTE_VERSION - 1, ROUTE_VERSION + 1] {
                let bytes = Bytes::from([&[other], &whole[1..]].concat());
                assert_eq!(Record::decode(&bytes), None);
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_stored_comes_back(entry in entry()) {
            prop_assert_eq!(Record::decode(&entry.encode()), Some(Record::Response(entry)));
        }

        #[test]
        fn damage_never_panics(entry in entry(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = entry.encode().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Record::decode(&bytes.into());
        }

        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0usize..4) {
            if bytes.len() > 2 && kind < 3 {
                bytes[..2].copy_from_slice(&[[ROUTE_VERSION, ROUTE_VERSION, VERSION][kind], [b'R', b'V', b'B'][kind]]);
            }
            let _ = Record::decode(&bytes.into());
        }
    }
}
