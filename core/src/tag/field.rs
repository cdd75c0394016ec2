//! Response fields that name the tags of a response to other caches, or to a shared cache.

use std::borrow::Cow;
use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::headers::string_list::{string_list, string_list_value};
use crate::tag::TagError;

pub(crate) const CACHE_GROUPS: HeaderName = HeaderName::from_static("cache-groups");
pub(crate) const CACHE_GROUP_INVALIDATION: HeaderName = HeaderName::from_static("cache-group-invalidation");
const SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");
const CACHE_TAG: HeaderName = HeaderName::from_static("cache-tag");

/// A response field that names the tags of the response.
///
/// Routes write it by `.emit_tags(..)`, for CDNs. A shared cache reads it by
/// [`SharedRule::tag_fields`](crate::shared::SharedRule::tag_fields).
///
/// ```
/// use larder_core::tag::TagField;
///
/// // A field holds most tags as they are. Others are percent-encoded.
/// assert_eq!(TagField::SurrogateKey.spell("product:7"), "product:7");
/// assert_eq!(TagField::SurrogateKey.spell("green tea"), "green%20tea");
/// assert_eq!(TagField::CacheGroups.spell("green tea"), "green tea");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TagField {
    /// `Cache-Groups` (RFC 9875), a List of Strings. Writes name the groups that they evict in `Cache-Group-Invalidation`.
    CacheGroups,
    /// `Surrogate-Key`, a list separated by spaces, which Fastly and others read.
    SurrogateKey,
    /// `Cache-Tag`, a list separated by commas, which Cloudflare and others read.
    CacheTag,
}

impl TagField {
    /// Returns the name of the field.
    #[must_use]
    pub const fn name(self) -> HeaderName {
        match self {
            Self::CacheGroups => CACHE_GROUPS,
            Self::SurrogateKey => SURROGATE_KEY,
            Self::CacheTag => CACHE_TAG,
        }
    }

    /// Returns the spelling of a tag in the field: the tag itself if the field can hold it, otherwise the tag percent-encoded.
    ///
    /// All fields hold the visible characters of ASCII, `Cache-Tag` without the comma, and `Cache-Groups` also the space. The other
    /// characters are encoded rather than left out, because a CDN couldn't purge the response by a tag that it doesn't know.
    #[must_use]
    pub fn spell(self, tag: &str) -> Cow<'_, str> {
        if tag.bytes().all(|byte| self.holds(byte)) {
            return Cow::Borrowed(tag);
        }
        let mut spelled = String::with_capacity(tag.len() + 16);
        for byte in tag.bytes() {
            if self.holds(byte) && byte != b'%' {
                spelled.push(char::from(byte));
            } else {
                // Writing to a string doesn't fail.
                let _ = write!(spelled, "%{byte:02X}");
            }
        }
        Cow::Owned(spelled)
    }

    const fn holds(self, byte: u8) -> bool {
        match self {
            Self::CacheGroups => matches!(byte, b' '..=b'~'),
            Self::SurrogateKey => byte.is_ascii_graphic(),
            Self::CacheTag => byte.is_ascii_graphic() && byte != b',',
        }
    }

    /// Adds tags to the field of a response. A handler's own lines stay, and all are combined into one.
    pub fn add<'a>(self, response: &mut HeaderMap, tags: impl Iterator<Item = &'a str>) {
        let mut tags = tags.map(|tag| self.spell(tag)).peekable();
        if tags.peek().is_none() {
            return;
        }
        match self {
            Self::CacheGroups => add_groups(response, &CACHE_GROUPS, tags),
            Self::SurrogateKey => add_words(response, &SURROGATE_KEY, tags, " "),
            Self::CacheTag => add_words(response, &CACHE_TAG, tags, ","),
        }
    }

    /// Adds tags that a write evicted to its response: groups to `Cache-Group-Invalidation` (RFC 9875 §3). CDNs have no such field.
    pub fn add_evicted<'a>(self, response: &mut HeaderMap, tags: impl Iterator<Item = &'a str>) {
        if self == Self::CacheGroups {
            add_groups(response, &CACHE_GROUP_INVALIDATION, tags.map(|tag| self.spell(tag)));
        }
    }

    /// Returns the tags in the field of a response.
    ///
    /// # Errors
    ///
    /// Returns an error if a list that isn't one of Strings is no UTF-8. A malformed List of Strings is ignored.
    pub(crate) fn read(self, response: &HeaderMap) -> Result<Vec<String>, TagError> {
        let is_separator = match self {
            Self::CacheGroups => return Ok(string_list(response, &CACHE_GROUPS).unwrap_or_default()),
            Self::SurrogateKey => |character: char| matches!(character, ' ' | '\t'),
            Self::CacheTag => |character: char| character == ',',
        };
        let mut tags = Vec::new();
        for line in response.get_all(self.name()) {
            let line = std::str::from_utf8(line.as_bytes()).map_err(|_| TagError::Encoding)?;
            let words = line.split(is_separator).map(|word| word.trim_matches([' ', '\t']));
            tags.extend(words.filter(|word| !word.is_empty()).map(str::to_owned));
        }
        Ok(tags)
    }
}

/// Returns `true` for the fields of [`TagField`].
pub(crate) fn is_tag_field(name: &HeaderName) -> bool {
    matches!(name.as_str(), "cache-groups" | "surrogate-key" | "cache-tag")
}

/// Adds members to a List of Strings. Caches ignore a malformed one as a whole, so it is replaced.
fn add_groups<'a>(response: &mut HeaderMap, name: &HeaderName, groups: impl Iterator<Item = Cow<'a, str>>) {
    let mut groups = groups.peekable();
    if groups.peek().is_none() {
        return;
    }
    let mut all = string_list(response, name).unwrap_or_default();
    for group in groups {
        if !all.iter().any(|known| *known == group) {
            all.push(group.into_owned());
        }
    }
    if let Some(value) = string_list_value(all.iter().map(String::as_str)) {
        response.insert(name, value);
    }
}

fn add_words<'a>(
    response: &mut HeaderMap,
    name: &HeaderName,
    words: impl Iterator<Item = Cow<'a, str>>,
    separator: &str,
) {
    let mut all: Vec<Vec<u8>> =
        response.get_all(name).iter().map(|line| line.as_bytes().trim_ascii().to_vec()).collect();
    all.extend(words.map(|word| word.into_owned().into_bytes()));
    if let Ok(value) = HeaderValue::try_from(all.join(separator.as_bytes())) {
        response.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TagField::{CacheGroups, CacheTag, SurrogateKey};

    #[test]
    fn tags_that_a_field_cannot_hold_are_encoded() {
        for (tag, groups, key, cache_tag) in [
            ("product:7", "product:7", "product:7", "product:7"),
            ("100%", "100%", "100%", "100%"),
            ("a b", "a b", "a%20b", "a%20b"),
            ("a,b", "a,b", "a,b", "a%2Cb"),
            ("a \"b\"", "a \"b\"", "a%20\"b\"", "a%20\"b\""),
            ("caf\u{e9} 5%", "caf%C3%A9 5%25", "caf%C3%A9%205%25", "caf%C3%A9%205%25"),
        ] {
            assert_eq!(CacheGroups.spell(tag), groups);
            assert_eq!(SurrogateKey.spell(tag), key);
            assert_eq!(CacheTag.spell(tag), cache_tag);
        }
    }

    #[test]
    fn lists_are_read_from_all_lines() {
        let read = |field: TagField, lines: &[u8]| {
            let mut headers = HeaderMap::new();
            for line in lines.split(|byte| *byte == b'\n') {
                headers.append(field.name(), HeaderValue::from_bytes(line).unwrap());
            }
            field.read(&headers).map(|tags| tags.join("|"))
        };
        let rows: [(TagField, &[u8], Result<&str, TagError>); 8] = [
            (SurrogateKey, b"", Ok("")),
            (SurrogateKey, b"  a b,c\td  \ne", Ok("a|b,c|d|e")),
            (CacheTag, b" a,b c , ,d,\ne", Ok("a|b c|d|e")),
            (CacheTag, "caf\u{e9}".as_bytes(), Ok("caf\u{e9}")),
            (CacheTag, b"a, \xFF", Err(TagError::Encoding)),
            (SurrogateKey, b"a \xFF", Err(TagError::Encoding)),
            (CacheGroups, b"\"a b\";x, \"c\"\n\"d\"", Ok("a b|c|d")),
            (CacheGroups, br#""a", b"#, Ok("")),
        ];
        for (field, lines, expected) in rows {
            assert_eq!(read(field, lines), expected.map(str::to_owned), "{field:?} {lines:?}");
        }
    }

    #[test]
    fn added_tags_are_combined_with_the_handlers_own_into_one_line() {
        for (field, own, expected) in [
            (CacheGroups, &[r#""x";p, "a""#, r#""y""#][..], r#""x", "a", "y", "b c""#),
            (CacheGroups, &["malformed"], r#""a", "b c""#),
            (CacheGroups, &[], r#""a", "b c""#),
            (SurrogateKey, &["x ", "y z"], "x y z a b%20c"),
            (CacheTag, &["x, y", "z"], "x, y,z,a,b%20c"),
        ] {
            let mut headers = HeaderMap::new();
            for line in own {
                headers.append(field.name(), HeaderValue::from_static(line));
            }
            field.add(&mut headers, ["a", "b c"].into_iter());
            let lines: Vec<_> = headers.get_all(field.name()).iter().collect();
            assert_eq!(lines, [expected], "{field:?} {own:?}");
            field.add(&mut headers, std::iter::empty());
            assert_eq!(headers.get_all(field.name()).iter().count(), 1);
        }
        let mut headers = HeaderMap::new();
        CacheTag.add(&mut headers, std::iter::empty());
        assert!(headers.is_empty(), "no tags, no field");
        for field in [CacheTag, SurrogateKey, CacheGroups] {
            field.add_evicted(&mut headers, ["a", "caf\u{e9}"].into_iter());
        }
        assert_eq!(headers.len(), 1);
        assert_eq!(headers["cache-group-invalidation"], r#""a", "caf%C3%A9""#);
    }
}
