//! Cache groups (RFC 9875), and the tags in fields of CDNs.
//!
//! A group is a tag that is scoped by the origin of the response, so it is one of the cache's own: no other origin, no handler and
//! no caller can name it by chance. The tags of `Surrogate-Key` and `Cache-Tag` are ordinary ones.

use http::{HeaderMap, StatusCode};

use super::SharedRule;
use super::freshness::Control;
use crate::headers::string_list::string_list;
use crate::tag::field::{CACHE_GROUP_INVALIDATION, TagField};
use crate::tag::{MAX_TAG_BYTES, MAX_TAGS, TagError, Tags, TagsToEvict};

/// The origin of a URI (RFC 9110 §4.3.1), in one spelling: a lower-case scheme and host, and a port unless it is the scheme's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UriOrigin(Box<str>);

impl UriOrigin {
    /// `scheme` and `host`, which may end with a port, are in lower case.
    pub(super) fn new(scheme: &str, host: &str) -> Self {
        let (host, port) = match host.rsplit_once(':') {
            // An empty port is the default one (RFC 3986 §6.2.3).
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (host, port),
            _ => (host, ""),
        };
        let default = match scheme {
            "http" => "80",
            "https" => "443",
            _ => "",
        };
        let port = port.trim_start_matches('0');
        let port = if port == default { "" } else { port };
        Self(format!("{scheme}://{host}:{port}").into())
    }

    /// Returns the tags of groups.
    ///
    /// # Errors
    ///
    /// Returns an error if an entry can't have these tags: there are too many, or a name is too long.
    pub(super) fn tags<T: AsRef<str>>(&self, groups: impl IntoIterator<Item = T>) -> Result<Tags, TagError> {
        let mut names = Vec::new();
        for group in groups {
            let group = group.as_ref();
            if group.len() > MAX_TAG_BYTES {
                return Err(TagError::TooLong { length: group.len() });
            }
            // With the length of the origin, no origin can imitate a group of another.
            names.push(format!("{}:{}{group}", self.0.len(), self.0));
        }
        Tags::all_reserved("group", names)
    }
}

/// Returns the tags of a response with these fields (RFC 9875 §2): its groups, and the tags in fields of CDNs that the rule lists.
///
/// # Errors
///
/// Returns an error if an entry can't have them. It then can't be stored: an invalidation of a tag that was left out would miss it.
pub(super) fn tags_of(headers: &HeaderMap, origin: &UriOrigin, rule: &SharedRule) -> Result<Tags, TagError> {
    rule.tag_fields.iter().try_fold(Tags::default(), |tags, field| {
        let found = field.read(headers)?;
        tags.union(match field {
            TagField::CacheGroups => origin.tags(found)?,
            TagField::SurrogateKey | TagField::CacheTag => Tags::new(found)?,
        })
    })
}

/// Returns `true` if each field with tags is stored as the origin sent it. It isn't if a directive names it (RFC 9111 §5.2.2.4,
/// §5.2.2.7), or `Connection` does.
pub(super) fn keeps_tags(response: &HeaderMap, stored: &HeaderMap, rule: &SharedRule) -> bool {
    let control = Control::of(response, rule);
    rule.tag_fields.iter().map(|field| field.name()).all(|name| {
        let is_same = || response.get_all(&name).iter().eq(stored.get_all(&name));
        !control.qualified.fields.contains(&name) && (!response.contains_key(&name) || is_same())
    })
}

/// Returns the groups that the response to a write invalidates (RFC 9875 §3): those of its own origin, if the write succeeded. The
/// groups of the evicted responses aren't looked at, so an invalidation doesn't cascade (§2.2.1).
pub(super) fn groups_to_evict<'o>(
    (status, headers): (StatusCode, &HeaderMap),
    origins: impl IntoIterator<Item = &'o UriOrigin>,
    rule: &SharedRule,
) -> TagsToEvict {
    let succeeded = status.is_success() || status.is_redirection();
    if !succeeded || !rule.tag_fields.contains(&TagField::CacheGroups) {
        return TagsToEvict::default();
    }
    // No response with a group that is too long is stored.
    let groups = string_list(headers, &CACHE_GROUP_INVALIDATION).unwrap_or_default();
    let groups: Vec<_> = groups.into_iter().filter(|group| group.len() <= MAX_TAG_BYTES).collect();
    let tags_of = |origin: &'o UriOrigin| {
        groups.chunks(MAX_TAGS).filter_map(|groups| origin.tags(groups).ok()).collect::<Vec<_>>()
    };
    origins.into_iter().flat_map(tags_of).fold(TagsToEvict::default(), TagsToEvict::and)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeySpace;
    use http::{HeaderName, HeaderValue};

    fn rule() -> SharedRule {
        SharedRule::new(KeySpace::new("p", None).unwrap())
    }

    fn fields(fields: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = fields.iter().map(|(name, value)| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap())
        });
        let mut headers = HeaderMap::new();
        headers.extend(pairs);
        headers
    }

    #[test]
    fn spellings_of_an_origin_are_one() {
        let one = UriOrigin::new("http", "a.example");
        for host in ["a.example:80", "a.example:", "a.example:080"] {
            assert_eq!(UriOrigin::new("http", host), one, "{host}");
        }
        assert_eq!(UriOrigin::new("https", "a.example:443"), UriOrigin::new("https", "a.example"));
        assert_eq!(UriOrigin::new("http", "[::1]:80"), UriOrigin::new("http", "[::1]"));
        let all = [
            ("http", "a.example"),
            ("https", "a.example"),
            ("http", "a.example:443"),
            ("https", "a.example:80"),
            ("http", "a.example:8080"),
            ("http", "b.example"),
            ("http", "x.a.example"),
            ("http", "a.example."),
            ("http", "[::1]"),
            ("http", "[::2]"),
            ("http", "[::1]:81"),
            ("http", "a.example,b.example"),
            ("http", ""),
        ];
        for (index, (scheme, host)) in all.iter().enumerate() {
            for (other_scheme, other_host) in all.iter().take(index) {
                let (one, other) = (UriOrigin::new(scheme, host), UriOrigin::new(other_scheme, other_host));
                assert_ne!(one, other);
                assert_ne!(one.tags(["g"]), other.tags(["g"]), "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn groups_are_compared_exactly_and_are_apart_from_tags() {
        let (origin, rule) = (UriOrigin::new("http", "a.example"), rule());
        let tags = |value| tags_of(&fields(&[("cache-groups", value)]), &origin, &rule).unwrap();
        assert_eq!(tags(r#""a", "b""#), tags(r#""b";x=1, "a""#));
        assert_ne!(tags(r#""a""#), tags(r#""A""#));
        assert_ne!(tags(r#""a""#), tags(r#"" a""#));
        assert!(!tags(r#""""#).is_empty(), "an empty string is a group");
        assert_eq!(tags(r#""a""#).iter().count(), 0, "it is one of the cache's own");
        for ignored in ["", "a", r#""a", b"#] {
            assert!(tags(ignored).is_empty(), "{ignored}");
        }
        // No group of one origin is spelled like one of another.
        let (short, long) = (UriOrigin::new("http", "a"), UriOrigin::new("http", "a:1"));
        assert_ne!(short.tags(["1g"]), long.tags(["g"]));
    }

    #[test]
    fn responses_with_too_many_groups_have_no_tags() {
        let (origin, rule) = (UriOrigin::new("http", "a.example"), rule());
        let list = |count: usize, length: usize| {
            let groups = (0..count).map(|i| format!("\"{i:0length$}\""));
            groups.collect::<Vec<_>>().join(", ")
        };
        let tags = |value: &str| {
            let tags = tags_of(&fields(&[("cache-groups", value)]), &origin, &rule);
            tags.map(|tags| tags.marks().len())
        };
        // RFC 9875 §2 asks for 32 groups of 32 characters.
        assert_eq!(tags(&list(32, 32)), Ok(32));
        assert_eq!(tags(&list(MAX_TAGS, MAX_TAG_BYTES)), Ok(MAX_TAGS));
        assert_eq!(tags(&list(MAX_TAGS + 1, 8)), Err(TagError::TooMany { count: MAX_TAGS + 1 }));
        assert_eq!(tags(&list(1, 257)), Err(TagError::TooLong { length: 257 }));
    }

    #[test]
    fn fields_of_cdns_are_read_if_the_rule_lists_them() {
        let origin = UriOrigin::new("http", "a.example");
        let headers = fields(&[
            ("surrogate-key", "a b"),
            ("cache-tag", "c,d"),
            ("surrogate-key", "e"),
            ("cache-groups", r#""g""#),
        ]);
        let names = |tag_fields: Vec<TagField>| {
            let tags = tags_of(&headers, &origin, &SharedRule { tag_fields, ..rule() }).unwrap();
            (tags.iter().collect::<String>(), tags.marks().len())
        };
        use TagField::{CacheGroups, CacheTag, SurrogateKey};
        assert_eq!(names(vec![]), (String::new(), 0));
        assert_eq!(names(vec![CacheGroups]), (String::new(), 1));
        assert_eq!(names(vec![SurrogateKey]), ("abe".to_owned(), 3));
        assert_eq!(names(vec![CacheTag, CacheGroups, SurrogateKey]), ("abcde".to_owned(), 6));
    }

    #[test]
    fn only_successful_writes_name_groups_to_evict() {
        let (origin, rule) = (UriOrigin::new("http", "a.example"), rule());
        let evicted = |status: u16, value: &str| {
            let headers = fields(&[("cache-group-invalidation", value)]);
            let status = StatusCode::from_u16(status).unwrap();
            let sets = groups_to_evict((status, &headers), [&origin], &rule).sets().to_vec();
            sets.iter().map(|set| set.marks().len()).sum::<usize>()
        };
        for (status, expected) in
            [(200, 1), (201, 1), (204, 1), (303, 1), (400, 0), (404, 0), (408, 0), (500, 0), (503, 0)]
        {
            assert_eq!(evicted(status, r#""a""#), expected, "{status}");
        }
        for (value, expected) in [(r#""a", "b";x"#, 2), (r#""a", b"#, 0), ("a", 0), ("", 0)] {
            assert_eq!(evicted(200, value), expected, "{value}");
        }
        let many: Vec<_> = (0..300).map(|i| format!("\"{i}\"")).collect();
        assert_eq!(evicted(200, &many.join(",")), 300);
        assert_eq!(evicted(200, &format!("\"a\", \"{}\"", "x".repeat(257))), 1);
    }
}
