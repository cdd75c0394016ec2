//! Reading no more of a large response than a request needs: what comes before its body, and maybe a part of that.

use std::ops::Range;

use bytes::Bytes;

use crate::key::CacheKey;
use crate::larder::CacheContext;
use crate::policy::Needs;
use crate::reason::Reason;

/// How much of a record is read first where that may be all that is needed, in bytes. Small records come whole with it.
const HEAD: usize = 4096;

/// The largest part of a body that is always read alone, in bytes.
const SMALL_PART: u64 = 64 * 1024;

/// What was read of a record.
pub(crate) enum Excerpt<R> {
    /// All of it, if there is one.
    Whole(Option<Bytes>),
    /// What comes before the body, what is needed of the body, and the body's length.
    Part(R, Bytes, u64),
    /// Not what is needed: the whole record has to be read.
    TooLittle,
}

impl CacheContext {
    /// Reads the head of a record first, and of its body what a request needs.
    ///
    /// `read` gets the beginning of a record and its length, and answers what it says and where its body begins.
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
                // The positions lie within the body.
                let place = |position: u64| body_at + usize::try_from(position).unwrap_or(length);
                let range = place(part.start)..place(part.end);
                // What comes before the body tells one response from another: when it was stored, its length, its tag.
                let head = found.bytes.slice(..body_at);
                let part = match found.cut(&head, range.clone()) {
                    None => self.store.get_range(key, &head, range).await.map_err(down)?,
                    part => part,
                };
                // If it is another one by now, that is read whole.
                let Some(part) = part else { return Ok(Excerpt::TooLittle) };
                part
            }
            Needs::Part(_) | Needs::Whole => return Ok(Excerpt::TooLittle),
        };
        Ok(Excerpt::Part(record, body, length as u64))
    }
}

/// Returns `true` if a part of a body of this length is read without the rest. A large part isn't: readers of the whole share
/// one reading, so that many requests for large parts cost less that way.
fn is_worth_reading_alone(part: &Range<u64>, length: u64) -> bool {
    let part = part.end - part.start;
    part <= SMALL_PART || part <= length / 4
}
