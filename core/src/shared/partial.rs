//! Parts of a body: requesting, cutting, storing and combining them (RFC 9110 §14, RFC 9111 §3.3 and §3.4).

use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, HeaderName, LAST_MODIFIED, RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::headers::cache_control::number;
use crate::headers::conditional::opaque;
use crate::headers::date::http_date;
use crate::headers::range::{self, RangeSpec, Selection};
use crate::record::shared::{StoredPart, StoredResponse};

/// The part of a stored response that a request gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The whole body.
    Whole,
    /// These bytes, with this `Content-Range`.
    Part(Bytes, HeaderValue),
    /// Nothing: a 416, with this `Content-Range`.
    Unsatisfiable(HeaderValue),
    /// The requested part isn't stored.
    Missing,
}

/// Returns the part that a GET requests of a whole stored response of this length. If the origin refuses ranges (RFC
/// 9110 §14.3), that is the whole.
pub(crate) fn selection(request: &HeaderMap, stored: &StoredResponse, complete: u64) -> Selection {
    if stored.status == StatusCode::OK
        && !range::is_refused(&stored.headers)
        && is_asked_for_a_part(request, stored)
    {
        range::select(request, complete)
    } else {
        Selection::Whole
    }
}

/// Returns `true` if there is a `Range` that counts for this response.
fn is_asked_for_a_part(request: &HeaderMap, stored: &StoredResponse) -> bool {
    request.contains_key(RANGE) && range::if_range_holds(request, &stored.headers, dated(stored))
}

/// Returns the time at which the origin answered. Every stored response has a date.
fn dated(stored: &StoredResponse) -> SystemTime {
    let date = stored.headers.get(DATE).and_then(|date| http_date(date, stored.received));
    date.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Cuts the part that a request wants from a stored response. The complete body is `complete` bytes long, and only the
/// part to cut may be present. A HEAD wants no part (RFC 9110 §14.2).
pub(crate) fn cut(request: &HeaderMap, is_head: bool, stored: &StoredResponse, complete: u64) -> Cut {
    let wanted = request.get(RANGE).filter(|_| !is_head && is_asked_for_a_part(request, stored));
    match (&stored.part, wanted) {
        (None, None) => Cut::Whole,
        (None, Some(_)) => match selection(request, stored, complete) {
            Selection::Whole => Cut::Whole,
            Selection::Part(part) => {
                let is_whole = stored.body.len() as u64 == complete;
                let body = if is_whole { part.cut(&stored.body) } else { stored.body.clone() };
                Cut::Part(body, part.content_range())
            }
            Selection::Unsatisfiable => Cut::Unsatisfiable(range::unsatisfied(complete)),
        },
        (Some(part), Some(wanted)) => cut_part(request, wanted, stored, part),
        // §3.3: an incomplete response answers no request for the whole.
        (Some(_), None) => Cut::Missing,
    }
}

fn cut_part(request: &HeaderMap, wanted: &HeaderValue, stored: &StoredResponse, part: &StoredPart) -> Cut {
    // The origin's response to the same `Range` answers it again.
    if wanted.as_bytes() == part.asked
        && request.get_all(RANGE).iter().count() == 1
        && let Some(range) = stored.headers.get(CONTENT_RANGE)
    {
        return Cut::Part(stored.body.clone(), range.clone());
    }
    let wanted = match (RangeSpec::of(request), part.complete) {
        (Some(asked), Some(complete)) => match asked.within(complete) {
            Selection::Part(part) => Some(part.positions()),
            Selection::Whole | Selection::Unsatisfiable => None,
        },
        (Some(RangeSpec::From(first, Some(last))), None) => Some((first, last)),
        _ => None,
    };
    match wanted {
        // §3.3: only a range that lies wholly within the part.
        Some((first, last)) if first >= part.first && last < part.first.saturating_add(part.claimed) => {
            slice(stored, part, first, last)
        }
        _ => Cut::Missing,
    }
}

/// Returns these bytes of a stored part. If the origin sent fewer bytes than it declared, the response is shorter, and
/// its `Content-Range` says so (RFC 9110 §15.3.7 allows to send less than requested).
fn slice(stored: &StoredResponse, part: &StoredPart, first: u64, last: u64) -> Cut {
    let end = last.saturating_add(1).min(part.first.saturating_add(stored.body.len() as u64));
    let place = |position: u64| usize::try_from(position.saturating_sub(part.first)).unwrap_or(usize::MAX);
    if first >= end {
        return Cut::Missing;
    }
    let complete = part.complete.map_or_else(|| "*".to_owned(), |complete| complete.to_string());
    match HeaderValue::try_from(format!("bytes {first}-{}/{complete}", end - 1)) {
        Ok(range) => Cut::Part(stored.body.slice(place(first)..place(end)), range),
        Err(_) => Cut::Missing,
    }
}

fn strong_tag(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\""))
}

/// Returns `true` if a response and a stored one have the same strong entity tag.
pub(crate) fn have_one_strong_tag(response: &HeaderMap, stored: &HeaderMap) -> bool {
    strong_tag(response).is_some_and(|tag| strong_tag(stored) == Some(tag))
}

/// Returns `true` if a 304 identifies a stored response, which it then updates (RFC 9111 §4.3.4): if they have a strong
/// validator in common, or else a weak one. A 304 without validators is about the only response that was to be
/// validated.
pub(crate) fn identifies(response: &HeaderMap, stored: &StoredResponse) -> bool {
    let date = |headers: &HeaderMap| http_date(headers.get(LAST_MODIFIED)?, stored.received);
    let modified = date(response);
    let is_same_date = modified.is_some() && modified == date(&stored.headers);
    // RFC 9110 §8.8.2.2.
    let is_strong = |modified: SystemTime| {
        dated(stored).duration_since(modified).is_ok_and(|age| age >= Duration::from_secs(1))
    };
    let has_strong_date = modified.is_some_and(is_strong);
    if strong_tag(response).is_some() || has_strong_date {
        return have_one_strong_tag(response, &stored.headers) || (has_strong_date && is_same_date);
    }
    let opaque = |headers: &HeaderMap| headers.get(ETAG).map(|tag| opaque(tag.as_bytes()).to_owned());
    let tag = opaque(response);
    match (&tag, modified) {
        (None, None) => true,
        _ => is_same_date || (tag.is_some() && tag == opaque(&stored.headers)),
    }
}

/// Returns the part that a 206 carries, if it is a single one.
pub(crate) fn part_of(request: &HeaderMap, response: &HeaderMap) -> Option<StoredPart> {
    let asked = Bytes::copy_from_slice(request.get(RANGE)?.as_bytes());
    let range = response.get(CONTENT_RANGE)?.to_str().ok()?.trim().strip_prefix("bytes ")?;
    let (positions, complete) = range.split_once('/')?;
    let (first, last) = positions.split_once('-')?;
    let (first, last) = (number(first.as_bytes())?, number(last.as_bytes())?);
    let complete = if complete == "*" { None } else { Some(number(complete.as_bytes())?) };
    let is_sound = first <= last && last < u64::MAX && complete.is_none_or(|complete| last < complete);
    is_sound.then(|| StoredPart { first, claimed: last - first + 1, complete, asked })
}

/// Combines a part with a stored one, if both belong to the same representation and leave no gap (RFC 9111 §3.4). A
/// whole becomes a 200. The stored fields that the new part doesn't have stay, but for those that it withholds (RFC
/// 9110 §15.3.7.3).
pub(crate) fn combine(new: &mut StoredResponse, old: &StoredResponse, withheld: &[HeaderName]) {
    let (Some(new_part), Some(old_part)) = (&new.part, &old.part) else { return };
    if !have_one_strong_tag(&new.headers, &old.headers) {
        return;
    }
    let mut fields = old.headers.clone();
    for name in withheld.iter().chain([&CONTENT_LENGTH]) {
        fields.remove(name);
    }
    // Replaces all values of a name.
    fields.extend(std::mem::take(&mut new.headers));
    new.headers = fields;
    let is_honest = |part: &StoredPart, body: &Bytes| part.claimed == body.len() as u64;
    let complete = new_part.complete.or(old_part.complete);
    if !is_honest(new_part, &new.body)
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
        // The combined part answers no `Range` of a client.
        new.part = Some(StoredPart { first, claimed, complete, asked: Bytes::new() });
    }
}
