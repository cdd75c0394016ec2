//! Range requests on complete bodies (RFC 9110 §14): the selected part, and cutting it.
//!
//! One range is cut. Several ranges are answered with the whole body, and so is anything that can't be understood: a server may
//! ignore `Range` (§14.2).

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{ACCEPT_RANGES, ETAG, IF_RANGE, LAST_MODIFIED, RANGE};
use http::{HeaderMap, HeaderValue};

use crate::headers::cache_control::{list, number};
use crate::headers::date::http_date;
use crate::headers::the_only;

/// The part of a body that a request selects.
///
/// ```
/// use bytes::Bytes;
/// use http::{HeaderMap, HeaderValue, header::RANGE};
/// use larder_core::headers::range::{Selection, select};
///
/// let body = Bytes::from("0123456789");
/// let request: HeaderMap = [(RANGE, HeaderValue::from_static("bytes=-3"))].into_iter().collect();
/// let Selection::Part(part) = select(&request, body.len() as u64) else { panic!() };
/// assert_eq!(part.cut(&body), "789");
/// assert_eq!(part.content_range(), "bytes 7-9/10");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The whole body: respond with 200.
    Whole,
    /// A part: respond with 206 and [`Part::content_range`].
    Part(Part),
    /// Nothing, because the body is shorter: respond with 416 and [`unsatisfied`].
    Unsatisfiable,
}

/// A part of a body; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    first: u64,
    last: u64,
    complete: u64,
}

impl Part {
    /// Returns the positions of its first and its last byte.
    pub(crate) const fn positions(&self) -> (u64, u64) {
        (self.first, self.last)
    }

    /// Returns the range of its bytes in the body.
    #[cfg(feature = "runtime")]
    pub(crate) const fn positions_in_body(&self) -> std::ops::Range<u64> {
        self.first..self.last + 1
    }

    /// Returns the value of `Content-Range` (RFC 9110 §14.4).
    #[must_use]
    pub fn content_range(&self) -> HeaderValue {
        let Self { first, last, complete } = self;
        valid(&format!("bytes {first}-{last}/{complete}"))
    }

    /// Returns the part's bytes, without copying them. Empty if this is not the body that the part was selected for.
    #[must_use]
    pub fn cut(&self, body: &Bytes) -> Bytes {
        if body.len() as u64 != self.complete {
            return Bytes::new();
        }
        // Both are less than the length of a body in memory.
        let index = |at| usize::try_from(at).unwrap_or(body.len());
        body.slice(index(self.first)..index(self.last + 1))
    }
}

/// Returns the value of `Content-Range` for a 416 (RFC 9110 §14.4).
#[must_use]
pub fn unsatisfied(complete: u64) -> HeaderValue {
    valid(&format!("bytes */{complete}"))
}

/// Returns the part of a body of `complete` bytes that a GET selects (RFC 9110 §14.1.2). Ignores `If-Range`: call
/// [`if_range_holds`] first.
#[must_use]
pub fn select(request: &HeaderMap, complete: u64) -> Selection {
    RangeSpec::of(request).map_or(Selection::Whole, |asked| asked.within(complete))
}

/// Returns `true` if `Range` applies: there is no `If-Range`, or it names exactly this response (RFC 9110 §13.1.5). Tags are
/// compared strongly, so a weak tag never matches. A date must be the response's `Last-Modified`, and at least a second before
/// `answered_at`. Otherwise there may have been two bodies with that date (§8.8.2.2).
#[must_use]
pub fn if_range_holds(request: &HeaderMap, response: &HeaderMap, answered_at: SystemTime) -> bool {
    let mut fields = request.get_all(IF_RANGE).iter();
    let condition = match (fields.next(), fields.next()) {
        (None, _) => return true,
        (Some(condition), None) => condition,
        (Some(_), Some(_)) => return false,
    };
    let tag = condition.as_bytes().trim_ascii();
    if tag.starts_with(b"\"") {
        return response.get(ETAG).is_some_and(|etag| etag.as_bytes() == tag);
    }
    let date = |value| http_date(value, answered_at);
    match (date(condition), the_only(response, &LAST_MODIFIED).and_then(date)) {
        (Some(condition), Some(modified)) => {
            condition == modified
                && answered_at.duration_since(modified).is_ok_and(|age| age >= Duration::from_secs(1))
        }
        _ => false,
    }
}

/// Returns `true` if a request asks for one or more ranges in bytes.
pub(crate) fn is_in_bytes(request: &HeaderMap) -> bool {
    let mut fields = request.get_all(RANGE).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else { return false };
    of_bytes(field.as_bytes()).is_some()
}

/// Returns `true` if a request asks for one range from the first byte to the last.
pub(crate) fn is_of_the_whole(request: &HeaderMap) -> bool {
    matches!(RangeSpec::of(request), Some(RangeSpec::From(0, None)))
}

/// Returns the whole body as a part, unless the body is empty.
pub(crate) const fn whole_as_part(complete: u64) -> Option<Part> {
    match complete.checked_sub(1) {
        Some(last) => Some(Part { first: 0, last, complete }),
        None => None,
    }
}

/// Returns `true` if a response declares that it doesn't support ranges (RFC 9110 §14.3).
pub(crate) fn is_refused(response: &HeaderMap) -> bool {
    let mut units = response.get_all(ACCEPT_RANGES).iter().flat_map(|field| list(field.as_bytes()));
    units.any(|unit| unit.eq_ignore_ascii_case(b"none"))
}

/// A requested range.
#[derive(Clone, Copy)]
pub(crate) enum RangeSpec {
    /// `first-last` or `first-`.
    From(u64, Option<u64>),
    /// `-length`.
    Last(u64),
}

impl RangeSpec {
    /// Returns the requested range, if it is one well-formed range of bytes.
    pub(crate) fn of(request: &HeaderMap) -> Option<Self> {
        let mut fields = request.get_all(RANGE).iter();
        let (field, None) = (fields.next()?, fields.next()) else { return None };
        one_range(field.as_bytes())
    }

    pub(crate) fn within(self, complete: u64) -> Selection {
        let first = match self {
            Self::From(first, _) if first >= complete => return Selection::Unsatisfiable,
            Self::From(first, _) => first,
            Self::Last(0) => return Selection::Unsatisfiable,
            // The last bytes of an empty body are the whole body.
            Self::Last(_) if complete == 0 => return Selection::Whole,
            Self::Last(length) => complete.saturating_sub(length),
        };
        let end = complete - 1;
        let last = match self {
            Self::From(_, Some(last)) => last.min(end),
            _ => end,
        };
        Selection::Part(Part { first, last, complete })
    }
}

/// Returns the text after the unit, if the unit is bytes.
fn of_bytes(field: &[u8]) -> Option<&[u8]> {
    let at = field.iter().position(|&byte| byte == b'=')?;
    let (unit, set) = (&field[..at], &field[at + 1..]);
    unit.trim_ascii().eq_ignore_ascii_case(b"bytes").then_some(set)
}

/// Returns the range in a field, if there is one well-formed range of bytes.
fn one_range(field: &[u8]) -> Option<RangeSpec> {
    let mut ranges = list(of_bytes(field)?);
    let (Some(range), None) = (ranges.next(), ranges.next()) else { return None };
    let dash = range.iter().position(|&byte| byte == b'-')?;
    let (first, last) = (&range[..dash], &range[dash + 1..]);
    match (first, last) {
        (b"", length) => Some(RangeSpec::Last(number(length)?)),
        (first, b"") => Some(RangeSpec::From(number(first)?, None)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(RangeSpec::From(first, Some(last)))
        }
    }
}

/// Digits and punctuation are always a valid value.
fn valid(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("bytes */*"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(fields: &[(http::HeaderName, &str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| (n.clone(), HeaderValue::from_str(v).unwrap())).collect()
    }

    /// Returns `first-last` of the part that a field selects, `whole`, or `416`.
    fn selected(field: &str, complete: u64) -> String {
        match select(&map(&[(RANGE, field)]), complete) {
            Selection::Whole => "whole".into(),
            Selection::Part(part) => format!("{}-{}", part.first, part.last),
            Selection::Unsatisfiable => "416".into(),
        }
    }

    #[test]
    fn fields_select_parts_of_a_body() {
        for (field, expected) in [
            ("bytes=0-4", "0-4"),
            ("bytes=0-0", "0-0"),
            ("bytes=5-", "5-9"),
            ("bytes=9-", "9-9"),
            ("bytes=-3", "7-9"),
            ("bytes=-10", "0-9"),
            ("bytes=-99", "0-9"),
            ("bytes=8-99", "8-9"),
            ("bytes=8-99999999999999999999999", "8-9"),
            ("Bytes=0-4", "0-4"),
            ("bytes= 0-4 ,", "0-4"),
            ("bytes=10-", "416"),
            ("bytes=10-12", "416"),
            ("bytes=99999999999999999999999-", "416"),
            ("bytes=-0", "416"),
            ("bytes=0-1,3-4", "whole"),
            ("bytes=4-2", "whole"),
            ("bytes=", "whole"),
            ("bytes=-", "whole"),
            ("bytes=--1", "whole"),
            ("bytes=+1-2", "whole"),
            ("bytes=1-2x", "whole"),
            ("bytes=a-b", "whole"),
            ("bytes", "whole"),
            ("items=0-4", "whole"),
            ("", "whole"),
        ] {
            assert_eq!(selected(field, 10), expected, "{field}");
        }
        assert_eq!(selected("bytes=0-", 0), "416");
        assert_eq!(selected("bytes=-5", 0), "whole");
        assert_eq!(select(&map(&[]), 10), Selection::Whole);
        assert_eq!(select(&map(&[(RANGE, "bytes=0-1"), (RANGE, "bytes=0-1")]), 10), Selection::Whole);
    }

    #[test]
    fn part_has_its_position_and_shares_the_body() {
        let body = Bytes::from_static(b"0123456789");
        let Selection::Part(part) = select(&map(&[(RANGE, "bytes=2-4")]), 10) else { panic!("no part") };
        assert_eq!(part.content_range(), "bytes 2-4/10");
        assert_eq!(part.cut(&body), "234");
        assert_eq!(part.cut(&body).as_ptr(), body[2..].as_ptr());
        assert_eq!(part.cut(&Bytes::from_static(b"other")), "", "another body");
        assert_eq!(unsatisfied(10), "bytes */10");
    }

    #[test]
    fn if_range_is_compared_strongly() {
        let (early, late) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Mon, 07 Nov 1994 08:49:37 GMT");
        let at = |seconds| httpdate::parse_http_date(early).unwrap() + Duration::from_secs(seconds);
        for (condition, response, answered_at, expected) in [
            ("\"a\"", &[(ETAG, "\"a\"")][..], at(0), true),
            ("\"a\"", &[(ETAG, "\"b\"")], at(0), false),
            ("\"a\"", &[(ETAG, "W/\"a\"")], at(0), false),
            ("W/\"a\"", &[(ETAG, "W/\"a\"")], at(0), false),
            ("\"a\"", &[], at(0), false),
            ("*", &[(ETAG, "\"a\"")], at(0), false),
            (early, &[(LAST_MODIFIED, early)], at(1), true),
            (early, &[(LAST_MODIFIED, early)], at(0), false),
            (late, &[(LAST_MODIFIED, early)], at(1), false),
            ("SUN, 06 nov 1994 08:49:37 gmt", &[(LAST_MODIFIED, early)], at(1), true),
            ("Sunday, 06-Nov-94 08:49:37 GMT", &[(LAST_MODIFIED, early)], at(1), true),
            ("Sun Nov  6 08:49:37 1994", &[(LAST_MODIFIED, early)], at(1), true),
            ("Sun Nov  6 08:49:37 1994", &[(LAST_MODIFIED, "Sunday, 06-Nov-94 08:49:37 GMT")], at(1), true),
            ("Monday, 07-Nov-94 08:49:37 GMT", &[(LAST_MODIFIED, early)], at(1), false),
            (early, &[], at(1), false),
            ("yesterday", &[(LAST_MODIFIED, early)], at(1), false),
        ] {
            let holds = if_range_holds(&map(&[(IF_RANGE, condition)]), &map(response), answered_at);
            assert_eq!(holds, expected, "{condition} against {response:?}");
        }
        assert!(if_range_holds(&map(&[]), &map(&[]), at(0)));
        assert!(!if_range_holds(
            &map(&[(IF_RANGE, "\"a\""), (IF_RANGE, "\"a\"")]),
            &map(&[(ETAG, "\"a\"")]),
            at(0)
        ));
    }

    proptest! {
        #[test]
        fn selected_parts_are_within_the_body(field in "bytes=[-0-9, ]{0,12}", length in 0usize..40) {
            let body = Bytes::from(vec![7; length]);
            if let Selection::Part(part) = select(&map(&[(RANGE, &field)]), length as u64) {
                prop_assert!(part.first <= part.last && part.last < length as u64);
                prop_assert_eq!(part.cut(&body).len() as u64, part.last - part.first + 1);
            }
        }
    }
}
