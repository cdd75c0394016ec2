//! A shared cache's records, and their encoding.
//!
//! # Layout, version 1
//!
//! Big-endian numbers, times in milliseconds, like the other records (`record.rs`). Damage is a miss.
//!
//! ```text
//! shared   1 'S' status:2 flags:1 received:8 initial_age:8 lifetime:8 while_revalidate:8 if_error:8 variant:8
//!          part head_len:4 body_len:8 head body
//!          flags = 1 forbids_stale | 2 no_cache | 4 a part, else `part` is empty | 8 sets a cookie
//!          part  = first:8 claimed:8 complete:8 asked_len:2 asked        complete: 2^64-1 = unknown
//! ```
//!
//! A resource that varies has a record of variants under its key, the same one that routes use.

use std::time::{Duration, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, StatusCode};

use crate::record::variants::Variants;
use crate::record::{
    Reader, Record, VERSION, from_millis, head_len, put_head, read_head, saturating_millis, to_millis,
};

const SHARED: u8 = b'S';

const FORBIDS_STALE: u8 = 1;
const NO_CACHE: u8 = 2;
const PART: u8 = 4;
const SETS_COOKIE: u8 = 8;

const UNKNOWN: u64 = u64::MAX;

/// Version, kind, status, flags, six times 8 bytes.
const FIXED: usize = 2 + 2 + 1 + 6 * 8;

/// A stored response of a shared cache (RFC 9111 §3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredResponse {
    /// The status code.
    pub status: StatusCode,
    /// All fields but those of the connection (§3.1). `Age` is [`initial_age`](Self::initial_age).
    pub headers: HeaderMap,
    /// The body, or the part of it that is known.
    pub body: Bytes,
    /// The time at which the response was received or last validated.
    pub received: SystemTime,
    /// The age of the response at that time (§4.2.3).
    pub initial_age: Duration,
    /// The freshness lifetime, as an age (§4.2.1).
    pub lifetime: Duration,
    /// The time after that during which it may be used while it is refreshed (RFC 5861 §3).
    pub stale_while_revalidate: Duration,
    /// The time after that during which it may be used when the origin fails (RFC 5861 §4).
    pub stale_if_error: Duration,
    /// `true` if it must never be used stale (RFC 9111 §5.2.2.2).
    pub forbids_stale: bool,
    /// `true` if it must be validated before each use (§5.2.2.4).
    pub no_cache: bool,
    /// `true` if it was evicted, and is used all the same: softly, or while the origin validated it. Not part of the record.
    pub is_evicted: bool,
    /// `true` if `Set-Cookie` is among its fields.
    pub sets_cookie: bool,
    /// The id of the [`Variants`] record that this is a variant of; 0 for a response that doesn't vary.
    pub variant: u64,
    /// The part of the body that is stored; `None` for the whole body.
    pub part: Option<StoredPart>,
}

/// The position of a partial body in the complete one (RFC 9110 §14.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPart {
    /// The position of the first byte.
    pub first: u64,
    /// The number of bytes that `Content-Range` declares. Origins may have sent fewer.
    pub claimed: u64,
    /// The length of the complete body, if the origin stated it.
    pub complete: Option<u64>,
    /// The `Range` of the request that it answered.
    pub asked: Bytes,
}

impl StoredResponse {
    /// Returns the current age (§4.2.3). A clock that went back adds nothing.
    #[must_use]
    pub fn age(&self, now: SystemTime) -> Duration {
        self.initial_age.saturating_add(now.duration_since(self.received).unwrap_or_default())
    }

    /// Returns the remaining freshness lifetime; zero once it is stale.
    #[must_use]
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.lifetime.saturating_sub(self.age(now))
    }

    /// Returns the time since it became stale; zero while it is fresh.
    #[must_use]
    pub fn staleness(&self, now: SystemTime) -> Duration {
        self.age(now).saturating_sub(self.lifetime)
    }

    /// Returns `true` if the age has not reached the freshness lifetime (§4.2).
    #[must_use]
    pub fn is_fresh(&self, now: SystemTime) -> bool {
        self.age(now) < self.lifetime
    }

    /// Returns the response with a freshness lifetime that ended at this time, or at `now` if that is earlier.
    #[cfg(feature = "runtime")]
    pub(crate) fn stale_since(mut self, since: SystemTime, now: SystemTime) -> Self {
        self.lifetime = self.lifetime.min(self.age(since.min(now)));
        self.is_evicted = true;
        self
    }

    /// Returns the record for a store. Copies the body once.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let head_len = head_len(&self.headers);
        let part_len = self.part.as_ref().map_or(0, |part| 26 + part.asked.len());
        let mut out = BytesMut::with_capacity(FIXED + part_len + 12 + head_len + self.body.len());
        out.put_slice(&[VERSION, SHARED]);
        out.put_u16(self.status.as_u16());
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        out.put_u8(
            flag(self.forbids_stale, FORBIDS_STALE)
                | flag(self.no_cache, NO_CACHE)
                | flag(self.part.is_some(), PART)
                | flag(self.sets_cookie, SETS_COOKIE),
        );
        out.put_u64(to_millis(self.received));
        for time in [self.initial_age, self.lifetime, self.stale_while_revalidate, self.stale_if_error] {
            out.put_u64(saturating_millis(time));
        }
        out.put_u64(self.variant);
        if let Some(part) = &self.part {
            out.put_u64(part.first);
            out.put_u64(part.claimed);
            out.put_u64(part.complete.unwrap_or(UNKNOWN));
            // `http` keeps values far below this size.
            out.put_u16(u16::try_from(part.asked.len()).unwrap_or(u16::MAX));
            out.put_slice(&part.asked);
        }
        out.put_u32(u32::try_from(head_len).unwrap_or(u32::MAX));
        out.put_u64(self.body.len() as u64);
        put_head(&mut out, &self.headers);
        out.put_slice(&self.body);
        out.freeze()
    }

    /// Decodes a response from the beginning of its record, which is `length` bytes long. Returns the response with the
    /// available part of the body, and the position of the body in the record. Returns `None` if the record is not a
    /// shared cache's response, or is cut before the body.
    #[cfg(feature = "runtime")]
    pub(crate) fn read_beginning(bytes: &Bytes, length: usize) -> Option<(Self, usize)> {
        bytes.starts_with(&[VERSION, SHARED]).then(|| Self::read(bytes, length))?
    }

    fn decode(bytes: &Bytes) -> Option<Self> {
        Self::read(bytes, bytes.len()).map(|(stored, _)| stored)
    }

    fn read(bytes: &Bytes, length: usize) -> Option<(Self, usize)> {
        let mut reader = Reader { rest: bytes.get(2..)? };
        let status = StatusCode::from_u16(reader.u16()?).ok()?;
        let [flags] = reader.array()?;
        if flags & !(FORBIDS_STALE | NO_CACHE | PART | SETS_COOKIE) != 0 {
            return None;
        }
        let received = from_millis(reader.u64()?)?;
        let mut time = || Some(Duration::from_millis(reader.u64()?));
        let (initial_age, lifetime) = (time()?, time()?);
        let (stale_while_revalidate, stale_if_error) = (time()?, time()?);
        let variant = reader.u64()?;
        let part = if flags & PART == 0 {
            None
        } else {
            let (first, claimed, complete) = (reader.u64()?, reader.u64()?, reader.u64()?);
            let asked_len = usize::from(reader.u16()?);
            let asked = bytes.slice_ref(reader.take(asked_len)?);
            Some(StoredPart { first, claimed, complete: (complete != UNKNOWN).then_some(complete), asked })
        };
        let head_len = reader.u32()? as usize;
        let body_len = usize::try_from(reader.u64()?).ok()?;
        let head_at = bytes.len() - reader.rest.len();
        let body_at = head_at.checked_add(head_len)?;
        if length != body_at.checked_add(body_len)? || bytes.len() < body_at {
            return None;
        }
        let stored = Self {
            status,
            headers: read_head(bytes, head_at..body_at)?,
            body: bytes.slice(body_at..),
            received,
            initial_age,
            lifetime,
            stale_while_revalidate,
            stale_if_error,
            forbids_stale: flags & FORBIDS_STALE != 0,
            no_cache: flags & NO_CACHE != 0,
            is_evicted: false,
            sets_cookie: flags & SETS_COOKIE != 0,
            variant,
            part,
        };
        Some((stored, body_at))
    }
}

/// A record that a store may hold under a key of a shared cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SharedRecord {
    /// A response.
    Response(Box<StoredResponse>),
    /// The selecting fields of a resource that varies (RFC 9111 §4.1).
    Variants(Variants),
}

impl SharedRecord {
    /// Decodes a record. Returns `None` if it is damaged, from another version, or not a shared cache's record.
    #[must_use]
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        if bytes.starts_with(&[VERSION, SHARED]) {
            return StoredResponse::decode(bytes).map(Box::new).map(Self::Response);
        }
        match Record::decode(bytes)? {
            Record::Variants(variants) => Some(Self::Variants(variants)),
            Record::Response(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn stored() -> impl Strategy<Value = StoredResponse> {
        let field = ("[a-z][a-z0-9-]{0,12}", proptest::collection::vec(0x20u8..0x7f, 0..30));
        let body = || proptest::collection::vec(any::<u8>(), 0..100).prop_map(Bytes::from);
        let part = (any::<u64>(), any::<u64>(), proptest::option::of(0..UNKNOWN), body())
            .prop_map(|(first, claimed, complete, asked)| StoredPart { first, claimed, complete, asked });
        let millis = || (0u64..10_000_000_000_000).prop_map(Duration::from_millis);
        (
            (200u16..600, proptest::collection::vec(field, 0..8), body(), 0u64..4_000_000_000_000),
            (millis(), millis(), millis(), millis()),
            (any::<[bool; 3]>(), any::<u64>(), proptest::option::of(part)),
        )
            .prop_map(
                |(
                    (status, fields, body, received),
                    times,
                    ([forbids_stale, no_cache, sets_cookie], variant, part),
                )| {
                    StoredResponse {
                        status: StatusCode::from_u16(status).unwrap(),
                        headers: fields
                            .into_iter()
                            .map(|(n, v)| {
                                (HeaderName::try_from(n).unwrap(), HeaderValue::from_bytes(&v).unwrap())
                            })
                            .collect(),
                        body,
                        received: from_millis(received).unwrap(),
                        initial_age: times.0,
                        lifetime: times.1,
                        stale_while_revalidate: times.2,
                        stale_if_error: times.3,
                        forbids_stale,
                        no_cache,
                        is_evicted: false,
                        sets_cookie,
                        variant,
                        part,
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(stored in stored()) {
            prop_assert_eq!(SharedRecord::decode(&stored.encode()), Some(SharedRecord::Response(Box::new(stored))));
        }

        #[test]
        #[cfg(feature = "runtime")]
        fn the_beginning_of_a_record_is_enough_for_all_but_the_body(
            stored in stored(),
            at in any::<prop::sample::Index>(),
        ) {
            let whole = stored.encode();
            let (there, body_at) = (at.index(whole.len() + 1), whole.len() - stored.body.len());
            let read = StoredResponse::read_beginning(&whole.slice(..there), whole.len());
            let expected = (there >= body_at)
                .then(|| (StoredResponse { body: whole.slice(body_at..there), ..stored }, body_at));
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn what_is_cut_or_longer_is_no_record(stored in stored(), at in any::<prop::sample::Index>()) {
            let bytes = stored.encode();
            prop_assert_eq!(SharedRecord::decode(&bytes.slice(..at.index(bytes.len()))), None);
            prop_assert_eq!(SharedRecord::decode(&[&bytes[..], b"x"].concat().into()), None);
        }

        #[test]
        fn damage_never_panics(stored in stored(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = stored.encode().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = SharedRecord::decode(&bytes.into());
        }

        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if bytes.len() > 2 {
                bytes[..2].copy_from_slice(&[VERSION, SHARED]);
            }
            let _ = SharedRecord::decode(&bytes.into());
        }
    }
}
