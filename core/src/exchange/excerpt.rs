//! Partial reads of large records: the part before the body, and a part of the body.

use std::ops::Range;

use bytes::Bytes;

use crate::key::CacheKey;
use crate::larder::context::CacheContext;
use crate::policy::Needs;
use crate::reason::Reason;

/// Size of the first read where it may suffice, in bytes. Small records are complete with it.
const HEAD: usize = 4096;

/// Largest part of a body that is always read alone, in bytes.
const SMALL_PART: u64 = 64 * 1024;

/// The bytes read of a record.
pub(crate) enum Excerpt<R> {
    /// The whole record, if there is one.
    Whole(Option<Bytes>),
    /// The part before the body, the needed bytes of the body, and the body's length.
    Part(R, Bytes, u64),
    /// Too little: the caller must read the whole record.
    TooLittle,
}

impl CacheContext {
    /// Reads the beginning of a record first, then the needed bytes of its body.
    ///
    /// `read` gets the beginning of a record and its length. It returns the parsed beginning and the position of the body.
    pub(crate) async fn excerpt<R>(
        &self,
        key: &CacheKey,
        read: impl Fn(&Bytes, usize) -> Option<(R, usize)>,
        needs: impl Fn(&R, u64) -> Needs,
    ) -> Result<Excerpt<R>, Reason> {
        let down = |error| {
            self.store_failed("get", key.name(), &error);
            Reason::Down
        };
        let found = match self.store.get_head(key, HEAD).await.map_err(down)? {
            None => return Ok(Excerpt::Whole(None)),
            Some(head) if head.is_whole() => return Ok(Excerpt::Whole(Some(head.bytes))),
            Some(head) => head,
        };
        let Some((record, body_at)) = read(&found.bytes, found.length) else { return Ok(Excerpt::TooLittle) };
        let length = found.length.saturating_sub(body_at);
        let body = match needs(&record, length as u64) {
            Needs::Nothing => Bytes::new(),
            Needs::Part(part) if is_worth_reading_alone(&part, length as u64) => {
                // The positions are within the body.
                let place = |position: u64| body_at + usize::try_from(position).unwrap_or(length);
                let range = place(part.start)..place(part.end);
                // The part before the body identifies the response: by the time of storage, its length and its tag.
                let head = found.bytes.slice(..body_at);
                let part = match found.cut(&head, range.clone()) {
                    None => self.store.get_range(key, &head, range).await.map_err(down)?,
                    part => part,
                };
                // The record was replaced, so it is read whole.
                let Some(part) = part else { return Ok(Excerpt::TooLittle) };
                part
            }
            Needs::Part(_) | Needs::Whole => return Ok(Excerpt::TooLittle),
        };
        Ok(Excerpt::Part(record, body, length as u64))
    }
}

/// Returns `true` if a part of a body of this length is read without the rest. A large part isn't: readers of whole records
/// share one read, so many requests for large parts cost less that way.
fn is_worth_reading_alone(part: &Range<u64>, length: u64) -> bool {
    let part = part.end - part.start;
    part <= SMALL_PART || part <= length / 4
}
