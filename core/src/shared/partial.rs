//! Parts of a body: asking for them, cutting them, keeping them and putting them together (RFC 9110 §14, RFC 9111 §3.3
//! and §3.4).

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_RANGE, DATE, ETAG, IF_RANGE, LAST_MODIFIED, RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::freshness::http_date;
use super::stored::{Part, StoredResponse};

/// One range of bytes (RFC 9110 §14.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// From the first position to the last, or to the end.
    From(u64, Option<u64>),
    /// So many bytes before the end.
    Last(u64),
}

impl Asked {
    /// What the request asks for, if it is one range of bytes. Another unit, several ranges or garbage may all be ignored
    /// (§14.2).
    fn of(request: &HeaderMap) -> Option<Self> {
        let mut fields = request.get_all(RANGE).iter();
        let (field, None) = (fields.next()?, fields.next()) else { return None };
        let (unit, range) = field.to_str().ok()?.split_once('=')?;
        let (first, last) = range.trim().split_once('-')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        match (first, last) {
            ("", suffix) => Some(Self::Last(number(suffix)?)),
            (first, "") => Some(Self::From(number(first)?, None)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::From(first, Some(last)))
            }
        }
    }

    /// The positions, the last one excluded, in a body of this length. `Err` if there are none (§14.1.1).
    fn within(self, complete: u64) -> Result<(u64, u64), ()> {
        match self {
            Self::From(first, _) if first >= complete => Err(()),
            Self::From(first, last) => {
                Ok((first, last.map_or(complete, |last| last.saturating_add(1).min(complete))))
            }
            Self::Last(0) => Err(()),
            Self::Last(suffix) if complete > 0 => Ok((complete.saturating_sub(suffix), complete)),
            Self::Last(_) => Err(()),
        }
    }
}

/// Digits only: `parse` alone would take a sign.
fn number(digits: &str) -> Option<u64> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// What of a stored response a request gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// All of it.
    Whole,
    /// These bytes, with this `Content-Range`.
    Part(Bytes, HeaderValue),
    /// Nothing: 416, and the complete length.
    Unsatisfiable(u64),
    /// It isn't there.
    Missing,
}

/// Cuts what a GET asks for out of a stored response.
pub(crate) fn cut(request: &HeaderMap, stored: &StoredResponse) -> Cut {
    let wanted = request.get(RANGE).filter(|_| if_range_holds(request, &stored.headers));
    match (&stored.part, wanted) {
        (None, Some(_)) if stored.status == StatusCode::OK => cut_complete(request, stored),
        (None, _) => Cut::Whole,
        (Some(part), Some(wanted)) => cut_part(request, wanted, stored, part),
        // §3.3: an incomplete response answers no request for all of it.
        (Some(_), None) => Cut::Missing,
    }
}

fn cut_complete(request: &HeaderMap, stored: &StoredResponse) -> Cut {
    let complete = stored.body.len() as u64;
    match Asked::of(request).map(|asked| asked.within(complete)) {
        None => Cut::Whole,
        Some(Err(())) => Cut::Unsatisfiable(complete),
        Some(Ok((first, end))) => slice(stored, first, end, 0, Some(complete)),
    }
}

fn cut_part(request: &HeaderMap, wanted: &HeaderValue, stored: &StoredResponse, part: &Part) -> Cut {
    // What the origin answered to the very same `Range` answers it again.
    if wanted.as_bytes() == part.asked
        && request.get_all(RANGE).iter().count() == 1
        && let Some(range) = stored.headers.get(CONTENT_RANGE)
    {
        return Cut::Part(stored.body.clone(), range.clone());
    }
    let resolved = match (Asked::of(request), part.complete) {
        (Some(asked), Some(complete)) => asked.within(complete).ok(),
        (Some(Asked::From(first, Some(last))), None) => last.checked_add(1).map(|end| (first, end)),
        _ => None,
    };
    match resolved {
        // §3.3: only what lies wholly within it.
        Some((first, end)) if first >= part.first && end <= part.first.saturating_add(part.claimed) => {
            slice(stored, first, end, part.first, part.complete)
        }
        _ => Cut::Missing,
    }
}

/// The bytes from `first` to `end` of a body whose known bytes begin at `known`. An origin that sent fewer bytes than it
/// said leaves the answer shorter, and so it says (RFC 9110 §15.3.7 allows to send less than was asked for).
fn slice(stored: &StoredResponse, first: u64, end: u64, known: u64, complete: Option<u64>) -> Cut {
    let end = end.min(known.saturating_add(stored.body.len() as u64));
    let place = |position: u64| usize::try_from(position.saturating_sub(known)).unwrap_or(usize::MAX);
    if first >= end {
        return Cut::Missing;
    }
    let complete = complete.map_or_else(|| "*".to_owned(), |complete| complete.to_string());
    match HeaderValue::try_from(format!("bytes {first}-{}/{complete}", end - 1)) {
        Ok(range) => Cut::Part(stored.body.slice(place(first)..place(end)), range),
        Err(_) => Cut::Missing,
    }
}

/// RFC 9110 §13.1.5: `Range` counts only if the client's part is of this very representation, which takes a strong
/// validator.
fn if_range_holds(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let Some(condition) = request.get(IF_RANGE) else { return true };
    if condition.as_bytes().first().is_some_and(|first| matches!(first, b'"' | b'W')) && is_tag(condition) {
        return strong_tag(stored).is_some_and(|tag| tag == condition);
    }
    // §8.8.2.2: what was changed in the second of the answer may have changed again in it.
    let (Some(modified), Some(date)) = (stored.get(LAST_MODIFIED), stored.get(DATE)) else { return false };
    let is_strong =
        matches!((http_date(modified), http_date(date)), (Some(modified), Some(date)) if modified < date);
    is_strong && modified.as_bytes() == condition.as_bytes()
}

fn is_tag(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    bytes.starts_with(b"\"") || bytes.starts_with(b"W/\"")
}

fn strong_tag(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\""))
}

/// What part a 206 brings, if it is a single one.
pub(crate) fn part_of(request: &HeaderMap, response: &HeaderMap) -> Option<Part> {
    let asked = Bytes::copy_from_slice(request.get(RANGE)?.as_bytes());
    let range = response.get(CONTENT_RANGE)?.to_str().ok()?.trim().strip_prefix("bytes ")?;
    let (positions, complete) = range.split_once('/')?;
    let (first, last) = positions.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let complete = if complete == "*" { None } else { Some(number(complete)?) };
    let is_sound = first <= last && last < u64::MAX && complete.is_none_or(|complete| last < complete);
    is_sound.then_some(Part { first, claimed: last - first + 1, complete, asked })
}

/// Puts a part together with one that was stored before, if both are of the same representation and leave no gap between
/// them (RFC 9111 §3.4). A whole becomes a 200.
pub(crate) fn combine(new: &mut StoredResponse, old: &StoredResponse) {
    let (Some(new_part), Some(old_part)) = (&new.part, &old.part) else { return };
    let same = strong_tag(&new.headers).is_some_and(|tag| strong_tag(&old.headers) == Some(tag));
    let is_honest = |part: &Part, body: &Bytes| part.claimed == body.len() as u64;
    let complete = new_part.complete.or(old_part.complete);
    if !same
        || !is_honest(new_part, &new.body)
        || !is_honest(old_part, &old.body)
        || old_part.complete.is_some_and(|old| complete != Some(old))
    {
        return;
    }
    let (new_end, old_end) = (new_part.first + new_part.claimed, old_part.first + old_part.claimed);
    if new_part.first > old_end || old_part.first > new_end {
        return;
    }
    let mut body = BytesMut::new();
    let before = new_part.first.saturating_sub(old_part.first);
    body.extend_from_slice(&old.body[..usize::try_from(before).unwrap_or(0).min(old.body.len())]);
    body.extend_from_slice(&new.body);
    if old_end > new_end {
        let known = usize::try_from(old_end - new_end).unwrap_or(0).min(old.body.len());
        body.extend_from_slice(&old.body[old.body.len() - known..]);
    }
    let first = new_part.first.min(old_part.first);
    let claimed = body.len() as u64;
    new.body = body.freeze();
    if first == 0 && complete == Some(claimed) {
        new.status = StatusCode::OK;
        new.headers.remove(CONTENT_RANGE);
        new.part = None;
    } else {
        // No `Range` was answered with this.
        new.part = Some(Part { first, claimed, complete, asked: Bytes::new() });
    }
}
