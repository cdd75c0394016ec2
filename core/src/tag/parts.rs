//! Tags that handlers and callers name: the tags of a response, and the tags to evict.

use http::Uri;

use crate::key::{Params, write_uri};
use crate::tag::{EvictionMode, MAX_TAGS, TagError, Tags, check};

/// The tags of a handler's response, in the extensions of the response.
///
/// The names come from data, so they are not checked here. A response with an invalid tag is delivered, but not stored, for the
/// reason [`Reason::Tags`](crate::Reason::Tags).
///
/// ```
/// use http::Response;
/// use larder_core::tag::ResponseTags;
///
/// let mut response = Response::new(r#"{"id":7,"shop":3}"#);
/// response.extensions_mut().insert(ResponseTags::of(["product:7", "shop:3"]));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseTags(Result<Tags, TagError>);

impl ResponseTags {
    /// Creates the tags of a response.
    #[must_use]
    pub fn of<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> Self {
        Self(Tags::new(names))
    }

    /// Returns the tags.
    ///
    /// # Errors
    ///
    /// Returns an error if an entry can't have these tags.
    pub fn tags(&self) -> Result<&Tags, TagError> {
        self.0.as_ref().map_err(Clone::clone)
    }
}

impl From<Tags> for ResponseTags {
    fn from(tags: Tags) -> Self {
        Self(Ok(tags))
    }
}

/// Tags to evict: any number of them. In the extensions of a write's response they are evicted by the `cache_evict` or
/// `cache_put` around the handler.
///
/// No entry has an invalid tag, so such a tag is skipped, and logged.
///
/// ```
/// use http::Response;
/// use larder_core::tag::TagsToEvict;
///
/// let mut response = Response::new("");
/// response.extensions_mut().insert(TagsToEvict::of(["product:7"]).soft());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "tags are evicted only by a layer or a cache that gets them"]
pub struct TagsToEvict {
    /// Sets of at most [`MAX_TAGS`] tags.
    sets: Vec<Tags>,
    /// Principals, whose tags depend on the secret of the cache.
    principals: Vec<Box<str>>,
    how: EvictionMode,
    invalid: Option<TagError>,
}

impl TagsToEvict {
    /// Creates an eviction of every entry that carries at least one of these tags.
    pub fn of<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> Self {
        let mut invalid = None;
        let mut valid = Vec::new();
        for name in names {
            match check(name.as_ref()) {
                Ok(()) => valid.push(name),
                Err(error) => invalid = invalid.or(Some(error)),
            }
        }
        let sets = valid.chunks(MAX_TAGS).filter_map(|names| Tags::new(names).ok()).collect();
        Self { sets, invalid, ..Self::default() }
    }

    /// Creates an eviction of nothing, because this tag is invalid.
    #[cfg(feature = "runtime")]
    pub(crate) fn none(invalid: TagError) -> Self {
        Self { invalid: Some(invalid), ..Self::default() }
    }

    /// Makes the entries stale as of now instead of removing them: `stale_while_revalidate` and `stale_if_error` apply.
    pub const fn soft(mut self) -> Self {
        self.how = EvictionMode::Soft;
        self
    }

    /// Evicts entries with these tags too.
    pub fn and(mut self, tags: Tags) -> Self {
        if !tags.is_empty() {
            self.sets.push(tags);
        }
        self
    }

    /// Evicts the responses of a path too, with all its queries, variants, hosts and principals, on routes with
    /// `.evict_by_path()`. The path may be percent-encoded in any way, and a query is ignored. A text that is no path is
    /// skipped, and logged.
    pub fn and_path(mut self, path: &str) -> Self {
        match path_of(path) {
            Ok(uri) => self.and(path_tag(&uri)),
            Err(error) => {
                self.invalid = self.invalid.or(Some(error));
                self
            }
        }
    }

    /// Evicts the responses of a principal too, on routes with `.evict_by_principal()`. The principal is what the
    /// `.private_by(..)` of these routes returns, or the Bearer token of a `.private()` route.
    pub fn and_principal(mut self, principal: &str) -> Self {
        self.principals.push(principal.into());
        self
    }

    /// Returns the effect of the eviction on the entries.
    #[must_use]
    pub const fn how(&self) -> EvictionMode {
        self.how
    }

    /// Returns the valid tags, in sets for [`LeaseStore::evict_tags`](crate::LeaseStore::evict_tags).
    #[must_use]
    pub fn sets(&self) -> &[Tags] {
        &self.sets
    }

    /// Returns the principals.
    #[cfg(feature = "runtime")]
    pub(crate) fn principals(&self) -> &[Box<str>] {
        &self.principals
    }

    /// Returns the error of the first invalid tag or path, if there is one.
    #[must_use]
    pub const fn invalid(&self) -> Option<&TagError> {
        self.invalid.as_ref()
    }
}

impl From<Tags> for TagsToEvict {
    fn from(tags: Tags) -> Self {
        Self::default().and(tags)
    }
}

/// Parses a path, which may have a query.
pub(crate) fn path_of(path: &str) -> Result<Uri, TagError> {
    let uri = path.parse().ok().filter(|uri: &Uri| uri.path().starts_with('/'));
    uri.ok_or_else(|| TagError::Path { path: path.to_owned() })
}

/// Returns the tag of the entries of a path, whatever their query is. Paths that share keys share the tag.
pub(crate) fn path_tag(uri: &Uri) -> Tags {
    let mut path = String::new();
    write_uri(&mut path, uri, Params::Only(&[]));
    Tags::reserved("path", &path)
}

/// Defines `Tags` and `EvictTags` of an adapter, with which handlers name tags. The adapter implements its framework's traits for
/// them.
#[doc(hidden)]
#[macro_export]
macro_rules! tag_parts {
    () => {
        /// The tags of a response, which its handler knows from its data. They never reach the client.
        ///
        /// The `cache` or `cache_put` around the handler stores them with the response, in addition to those of the route. A
        /// response with an invalid tag is delivered, but not stored ([`Reason::Tags`]).
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Tags($crate::tag::ResponseTags);

        impl Tags {
            /// Creates the tags of a response: up to 128, of 1 to 256 bytes each, without control characters.
            #[must_use]
            pub fn of<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> Self {
                Self($crate::tag::ResponseTags::of(names))
            }
        }

        /// Tags to evict, which the handler of a write knows from its data. They never reach the client.
        ///
        /// The `cache_evict` or `cache_put` around the handler evicts them if the handler succeeded, or if its outcome is unknown
        /// (a response with 408 or 5xx). A handler that panics, or that a timeout inside the layer ends, names no tags. To evict
        /// tags then too, declare them with `cache_evict(..).tag(..)` or `.tags_by(..)`.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[must_use = "tags are evicted only as a part of a response"]
        pub struct EvictTags($crate::tag::TagsToEvict);

        impl EvictTags {
            /// Creates an eviction of every entry that carries at least one of these tags.
            pub fn of<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> Self {
                Self($crate::tag::TagsToEvict::of(names))
            }

            /// Evicts the responses of a path too, with all its queries and variants, on routes with `.evict_by_path()`.
            pub fn and_path(self, path: &str) -> Self {
                Self(self.0.and_path(path))
            }

            /// Evicts the responses of a principal too, on routes with `.evict_by_principal()`: after a log-out, a ban, or a change
            /// of roles.
            pub fn and_principal(self, principal: &str) -> Self {
                Self(self.0.and_principal(principal))
            }

            /// Makes the entries stale as of now instead of removing them.
            pub fn soft(self) -> Self {
                Self(self.0.soft())
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_tags_can_be_evicted_and_invalid_ones_are_skipped() {
        let names: Vec<String> = (0..300).map(|i| i.to_string()).collect();
        let evict = TagsToEvict::of(&names);
        let found: Vec<&str> = evict.sets().iter().flat_map(Tags::iter).collect();
        assert_eq!((found.len(), evict.sets().len(), evict.invalid()), (300, 3, None));
        let evict = TagsToEvict::of(["a", "", "b"]).soft();
        assert_eq!(evict.sets(), [Tags::new(["a", "b"]).unwrap()]);
        assert_eq!((evict.invalid(), evict.how()), (Some(&TagError::Empty), EvictionMode::Soft));
        assert!(TagsToEvict::of([""]).sets().is_empty());
    }

    #[test]
    fn response_tags_keep_their_error() {
        assert_eq!(ResponseTags::of([""]).tags(), Err(TagError::Empty));
        assert_eq!(ResponseTags::of(["a"]).tags(), Ok(&Tags::new(["a"]).unwrap()));
    }
}
