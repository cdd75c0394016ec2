//! Entity tags and conditional requests (RFC 9110 §8.8.3 and §13.1).

use std::time::SystemTime;

use http::header::{ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
use http::{HeaderMap, HeaderValue};
use xxhash_rust::xxh3::xxh3_128;

use crate::headers::date::http_date;
use crate::headers::the_only;

/// Returns a weak entity tag for a body: its 128-bit XXH3 hash, which is the same on every machine.
///
/// The tag is weak because the same body may be sent with other fields or in another transfer coding. The hash is not
/// cryptographic. An author who makes two bodies with the same tag only makes clients keep the first of the author's own two
/// bodies. A cryptographic hash would be a large part of the cost of a miss.
#[must_use]
pub fn weak_etag(body: &[u8]) -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";

    let mut tag = *b"W/\"00000000000000000000000000000000\"";
    for (digits, byte) in tag[3..35].chunks_exact_mut(2).zip(xxh3_128(body).to_be_bytes()) {
        digits.copy_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
    // Hex digits and quotes are always a valid value.
    HeaderValue::from_bytes(&tag).unwrap_or_else(|_| HeaderValue::from_static("W/\"\""))
}

/// The validators of a request, which the handler gets without them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validators {
    none_match: Vec<HeaderValue>,
    modified_since: Option<HeaderValue>,
}

impl Validators {
    /// Copies the validators of a request. Costs nothing if there are none.
    #[must_use]
    pub fn of(request: &HeaderMap) -> Self {
        Self {
            none_match: request.get_all(IF_NONE_MATCH).iter().cloned().collect(),
            modified_since: the_only(request, &IF_MODIFIED_SINCE).cloned(),
        }
    }

    /// Returns `true` if the client has this response already, so that a 304 answers it. `now` decides the century of a date
    /// whose year has two digits.
    #[must_use]
    pub fn match_response(&self, response: &HeaderMap, now: SystemTime) -> bool {
        let (etag, last_modified) = (|| response.get(ETAG), || the_only(response, &LAST_MODIFIED));
        not_modified(self.none_match.iter(), || self.modified_since.as_ref(), etag, last_modified, now)
    }
}

/// Returns `true` if the validators of a request match a response.
pub(crate) fn request_matches(request: &HeaderMap, response: &HeaderMap, now: SystemTime) -> bool {
    request_matches_validators(request, || response.get(ETAG), || the_only(response, &LAST_MODIFIED), now)
}

/// Returns `true` if the validators of a request match those of a response.
pub(crate) fn request_matches_validators<'a>(
    request: &HeaderMap,
    etag: impl FnOnce() -> Option<&'a HeaderValue>,
    last_modified: impl FnOnce() -> Option<&'a HeaderValue>,
    now: SystemTime,
) -> bool {
    let modified_since = || the_only(request, &IF_MODIFIED_SINCE);
    not_modified(request.get_all(IF_NONE_MATCH).iter(), modified_since, etag, last_modified, now)
}

/// `If-None-Match` decides if it is present; `If-Modified-Since` applies only without it (RFC 9110 §13.2.2), and only if
/// there is one (§13.1.3).
fn not_modified<'a, 'b>(
    none_match: impl Iterator<Item = &'a HeaderValue>,
    modified_since: impl FnOnce() -> Option<&'a HeaderValue>,
    etag: impl FnOnce() -> Option<&'b HeaderValue>,
    last_modified: impl FnOnce() -> Option<&'b HeaderValue>,
    now: SystemTime,
) -> bool {
    let mut none_match = none_match.peekable();
    if none_match.peek().is_some() {
        let etag = etag().map(HeaderValue::as_bytes);
        return none_match.any(|field| matches(field.as_bytes(), etag).unwrap_or(false));
    }
    let Some(since) = modified_since().and_then(|value| http_date(value, now)) else { return false };
    last_modified().and_then(|value| http_date(value, now)).is_some_and(|modified| modified <= since)
}

/// Compares `If-None-Match` with an entity tag, weakly (RFC 9110 §13.1.2 and §8.8.3.2). `*` matches any stored response. Returns
/// `None` for a malformed field, which matches nothing because its meaning is unknown.
fn matches(field: &[u8], etag: Option<&[u8]>) -> Option<bool> {
    if field.trim_ascii() == b"*" {
        return Some(true);
    }
    let etag = etag.map(opaque);
    let (mut rest, mut found) = (field, false);
    loop {
        rest = rest.trim_ascii_start();
        // A recipient accepts empty elements (RFC 9110 §5.6.1.2).
        while let Some(after) = rest.strip_prefix(b",") {
            rest = after.trim_ascii_start();
        }
        if rest.is_empty() {
            return Some(found);
        }
        let (tag, after) = leading_tag(rest)?;
        found |= etag == Some(opaque(tag));
        rest = after.trim_ascii_start();
        if !rest.is_empty() && !rest.starts_with(b",") {
            return None;
        }
    }
}

/// Returns the part of a tag that a weak comparison uses.
pub(crate) fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Splits a text after the entity tag at its start. An opaque tag has no escapes: a backslash in it is an ordinary character and
/// a comma doesn't separate. So this isn't the list grammar of quoted strings.
fn leading_tag(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let opening = if text.starts_with(b"W/") { 2 } else { 0 };
    let inside = text[opening..].strip_prefix(b"\"")?;
    let closing = opening + 1 + inside.iter().position(|&byte| byte == b'"')?;
    Some(text.split_at(closing + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The year 1970 is near enough to that of all dates here.
    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn weak_tag_depends_only_on_the_body() {
        let tag = weak_etag(b"hello");
        assert_eq!(tag, weak_etag(b"hello"));
        assert_eq!(tag, format!("W/\"{:032x}\"", xxh3_128(b"hello")).as_str());
        assert_ne!(tag, weak_etag(b"hellp"));
        assert_eq!(tag.len(), "W/\"\"".len() + 32);
        assert!(tag.to_str().unwrap().starts_with("W/\""));
    }

    #[test]
    fn if_none_match() {
        for (field, etag, expected) in [
            ("\"a\"", Some("\"a\""), true),
            ("W/\"a\"", Some("\"a\""), true),
            ("\"a\"", Some("W/\"a\""), true),
            ("\"a\"", Some("\"b\""), false),
            ("\"x\", W/\"a\" ,\"y\"", Some("W/\"a\""), true),
            ("\"x\",,\"a\"", Some("\"a\""), true),
            ("\"x,y\"", Some("\"y\""), false),
            ("\"x,\\\", \"a\"", Some("\"a\""), true),
            ("*", Some("\"a\""), true),
            (" * ", None, true),
            ("\"*\"", Some("\"a\""), false),
            ("a", Some("\"a\""), false),
            ("a, \"a\"", Some("\"a\""), false),
            ("\"a\", b", Some("\"a\""), false),
            ("W/\"a\"-gzip", Some("\"a\""), false),
            ("\"a\"-gzip, \"a\"", Some("\"a\""), false),
            ("\"a\" \"b\"", Some("\"a\""), false),
            ("*, \"a\"", Some("\"a\""), false),
            ("\"b\",\t\"a\" , ", Some("\"a\""), true),
            ("w/\"a\"", Some("\"a\""), false),
            ("\"a", Some("\"a\""), false),
            ("", Some("\"a\""), false),
            ("\"\"", Some("W/\"\""), true),
            ("\"a\"", None, false),
        ] {
            assert_eq!(
                matches(field.as_bytes(), etag.map(str::as_bytes)).unwrap_or(false),
                expected,
                "{field} against {etag:?}"
            );
        }
    }

    #[test]
    fn if_modified_since_applies_only_without_if_none_match() {
        let (early, late) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Mon, 07 Nov 1994 08:49:37 GMT");
        let check = |request: &[(http::HeaderName, &str)], response: &[(http::HeaderName, &str)]| {
            let map = |fields: &[(http::HeaderName, &str)]| -> HeaderMap {
                fields.iter().map(|(n, v)| (n.clone(), HeaderValue::from_str(v).unwrap())).collect()
            };
            let (request, response) = (map(request), map(response));
            let direct = request_matches(&request, &response, NOW);
            assert_eq!(Validators::of(&request).match_response(&response, NOW), direct);
            direct
        };
        assert!(check(&[(IF_MODIFIED_SINCE, late)], &[(LAST_MODIFIED, early)]));
        assert!(check(&[(IF_MODIFIED_SINCE, early)], &[(LAST_MODIFIED, early)]));
        assert!(!check(&[(IF_MODIFIED_SINCE, early)], &[(LAST_MODIFIED, late)]));
        assert!(!check(&[(IF_MODIFIED_SINCE, late)], &[]));
        assert!(!check(&[(IF_MODIFIED_SINCE, "yesterday")], &[(LAST_MODIFIED, early)]));
        let etag = [(LAST_MODIFIED, early), (ETAG, "\"a\"")];
        assert!(!check(&[(IF_MODIFIED_SINCE, late), (IF_NONE_MATCH, "\"b\"")], &etag));
        assert!(check(&[(IF_NONE_MATCH, "\"b\""), (IF_NONE_MATCH, "\"a\"")], &etag));
        // Of two, neither counts.
        let twice = [(IF_MODIFIED_SINCE, late), (IF_MODIFIED_SINCE, late)];
        assert!(!check(&twice, &[(LAST_MODIFIED, early)]));
        let listed = format!("{late}, {late}");
        assert!(!check(&[(IF_MODIFIED_SINCE, &listed)], &[(LAST_MODIFIED, early)]));
        assert!(!check(&[(IF_MODIFIED_SINCE, late)], &[(LAST_MODIFIED, early), (LAST_MODIFIED, early)]));
    }

    #[test]
    fn dates_of_conditions_are_read_in_every_format() {
        let formats = [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "SUN, 06 nov 1994 08:49:37 gmt",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "sunday, 06-NOV-94 08:49:37 gmt",
            "Sun Nov  6 08:49:37 1994",
            "sun nov  6 08:49:37 1994",
        ];
        let map = |name, value: &str| HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())]);
        for since in formats {
            for modified in formats {
                let (request, response) = (map(IF_MODIFIED_SINCE, since), map(LAST_MODIFIED, modified));
                assert!(request_matches(&request, &response, NOW), "{since} and {modified}");
            }
            let response = map(LAST_MODIFIED, "Sun, 06 Nov 1994 08:49:38 GMT");
            assert!(!request_matches(&map(IF_MODIFIED_SINCE, since), &response, NOW), "{since}");
        }
    }

    proptest! {
        #[test]
        fn listed_tag_is_found_among_any_others(
            before in proptest::collection::vec("(W/)?\"[!#-~]{0,6}\"", 0..4),
            tag in "\"[!#-~]{0,6}\"",
            after in proptest::collection::vec("(W/)?\"[!#-~]{0,6}\"", 0..4),
        ) {
            let list = [&before[..], std::slice::from_ref(&tag), &after[..]].concat().join(", ");
            prop_assert_eq!(matches(list.as_bytes(), Some(tag.as_bytes())), Some(true));
        }

        #[test]
        fn any_bytes_are_accepted(field in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = matches(&field, Some(b"\"a\""));
        }
    }
}
