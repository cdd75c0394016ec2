//! The part of a [`Rule`](crate::Rule) about tags.

use std::fmt;
use std::sync::Arc;

use crate::request::RequestView;
use crate::tag::{TagError, TagField, Tags, TagsToEvict, path_tag};

/// A function that returns the tags of a request.
pub type TagsOf = Arc<dyn Fn(&RequestView<'_>) -> Vec<String> + Send + Sync>;

/// The tags of a route: those of its responses, or, on an evicting route, those to evict.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct TagRule {
    /// The tags for every request.
    pub fixed: Tags,
    /// Functions that return tags for a request.
    pub by_request: Vec<TagsOf>,
    /// Functions that return paths for a request, on an evicting route.
    pub paths_by: Vec<TagsOf>,
    /// Functions that return principals for a request, on an evicting route.
    pub principals_by: Vec<TagsOf>,
    /// `true` if entries carry a tag for the request's principal.
    pub by_principal: bool,
    /// `true` if entries carry a tag for the request's path.
    pub by_path: bool,
    /// The fields of responses that name the tags to other caches, without those of the cache's own.
    pub emitted: Vec<TagField>,
}

impl TagRule {
    /// Returns `true` if the route adds no tags to those that its handler names.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { fixed, by_request, paths_by, principals_by, by_principal, by_path, .. } = self;
        let has_functions = [by_request, paths_by, principals_by].iter().any(|by| !by.is_empty());
        fixed.is_empty() && !has_functions && !by_principal && !by_path
    }

    /// Returns the tags of an entry that a request fills. `principal` is the tag of its principal.
    ///
    /// # Errors
    ///
    /// Returns an error if an entry can't have these tags.
    pub fn of_entry(&self, request: &RequestView<'_>, principal: Option<Tags>) -> Result<Tags, TagError> {
        let mut tags = self.fixed.clone();
        for of in &self.by_request {
            tags = tags.union(Tags::new(of(request))?)?;
        }
        if let Some(principal) = principal.filter(|_| self.by_principal) {
            tags = tags.union(principal)?;
        }
        if self.by_path {
            tags = tags.union(path_tag(request.uri))?;
        }
        Ok(tags)
    }

    /// Returns the tags that a request to an evicting route evicts.
    pub fn to_evict(&self, request: &RequestView<'_>) -> TagsToEvict {
        let names = self.by_request.iter().flat_map(|of| of(request));
        let mut tags = TagsToEvict::of(names).and(self.fixed.clone());
        for path in self.paths_by.iter().flat_map(|of| of(request)) {
            tags = tags.and_path(&path);
        }
        for principal in self.principals_by.iter().flat_map(|of| of(request)) {
            tags = tags.and_principal(&principal);
        }
        tags
    }
}

impl fmt::Debug for TagRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TagRule")
            .field("fixed", &self.fixed)
            .field("by_request", &self.by_request.len())
            .field("paths_by", &self.paths_by.len())
            .field("principals_by", &self.principals_by.len())
            .field("by_principal", &self.by_principal)
            .field("by_path", &self.by_path)
            .field("emitted", &self.emitted)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(uri: &str) -> Tags {
        path_tag(&uri.parse().unwrap())
    }

    #[test]
    fn queries_share_the_tag_of_their_path() {
        assert_eq!(tag("/products"), tag("/products?page=3"));
        assert_eq!(tag("/a%2Db"), tag("/a-b"));
        for other in ["/", "/products/7", "/Products", "/products%2F7", "/product"] {
            assert_ne!(tag("/products"), tag(other), "{other}");
        }
    }

    #[test]
    fn entries_get_the_tags_of_the_route_and_the_request() {
        let request = http::Request::get("/products/7").body(()).unwrap();
        let view = RequestView::from(&request);
        let by_request: TagsOf = Arc::new(|request| vec![format!("at:{}", request.uri.path())]);
        let mut rule = TagRule::default();
        assert!(rule.is_empty());
        rule.fixed = Tags::new(["all"]).unwrap();
        rule.by_request.push(by_request);
        let expected = Tags::new(["all", "at:/products/7"]).unwrap();
        assert_eq!(rule.of_entry(&view, None), Ok(expected.clone()));
        rule.by_path = true;
        assert_eq!(rule.of_entry(&view, None), Ok(expected.union(tag("/products/7")).unwrap()));
        rule.by_request.push(Arc::new(|_| vec![String::new()]));
        assert_eq!(rule.of_entry(&view, None), Err(TagError::Empty));
        assert_eq!(rule.to_evict(&view).invalid(), Some(&TagError::Empty));
    }
}
