//! Provenance: the requests that a stored response may answer, beyond having its key.
//!
//! A router matches the path as the client sent it, but a key is made from the canonical spelling ([`key`]). So
//! `/products/%66eatured` may lead to `/products/{slug}` although `/products/featured` has a handler of its own, and
//! both paths have the same key. Therefore every stored response records the router's pattern that led to its handler:
//!
//! 1. Requests with the same pattern share an entry, whatever their spelling. A pattern with a catch-all counts as
//!    unknown, because a service behind it may route by the rest of the path.
//! 2. If the pattern is unknown, only the canonical spelling is looked up
//!    ([`Reason::Spelling`](crate::Reason::Spelling)).
//! 3. A canonically spelled request replaces the entry of another pattern
//!    ([`Reason::Pattern`](crate::Reason::Pattern)). A request with another spelling bypasses the cache.
//! 4. If a key builder chose the key, canonically spelled requests of several routes share the entry.

use xxhash_rust::xxh3::xxh3_64;

use crate::key;
use crate::request::RequestView;

/// The pattern that led to the handler, and the spelling of the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Provenance {
    /// A hash of the router's pattern, or 0 if that isn't known.
    pub pattern: u64,
    /// `true` if the path was spelled canonically.
    pub is_canonical: bool,
    /// `true` if a key builder chose the key.
    pub is_chosen: bool,
}

impl Provenance {
    /// Returns the provenance of a request. `is_chosen` is `true` on routes with a key builder.
    #[must_use]
    pub fn of(request: &RequestView<'_>, is_chosen: bool) -> Self {
        Self { pattern: pattern_of(request), is_canonical: is_canonical(request), is_chosen }
    }

    /// Returns `true` if a response of this provenance may answer `request`.
    #[must_use]
    pub const fn serves(self, request: Self) -> bool {
        self.pattern == request.pattern
            || ((self.is_chosen || request.is_chosen) && self.is_canonical && request.is_canonical)
    }
}

/// Returns `true` if the path is spelled canonically.
pub(crate) fn is_canonical(request: &RequestView<'_>) -> bool {
    key::is_canonical(request.uri.path())
}

/// Returns a hash of the pattern, or 0 if it is unknown.
pub(crate) fn pattern_of(request: &RequestView<'_>) -> u64 {
    match request.pattern {
        Some(pattern) if matches_segments(pattern, request.uri.path()) => xxh3_64(pattern.as_bytes()).max(1),
        _ => 0,
    }
}

/// Returns `true` if the pattern describes each segment of the path: `{name}`, `:name` and `<regex>` stand for one
/// segment, other segments for themselves. A pattern with a catch-all doesn't, and neither does the pattern of a nested
/// router, which frameworks may show without its end.
fn matches_segments(pattern: &str, path: &str) -> bool {
    let (pattern, path) = (pattern.as_bytes(), path.as_bytes());
    let end_of = |text: &[u8], from: usize| {
        text[from..].iter().position(|byte| *byte == b'/').map_or(text.len(), |len| from + len)
    };
    let (mut at, mut at_path) = (0, 0);
    while let Some(&byte) = pattern.get(at) {
        match byte {
            b'{' | b':' | b'<' if path.get(at_path).is_some_and(|byte| *byte != b'/') => {
                let end = end_of(pattern, at);
                if pattern[at..end].contains(&b'*') {
                    return false;
                }
                (at, at_path) = (end, end_of(path, at_path));
            }
            b'*' => return false,
            _ if path.get(at_path) == Some(&byte) => (at, at_path) = (at + 1, at_path + 1),
            _ => return false,
        }
    }
    at_path == path.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn of(pattern: Option<&str>, uri: &str, is_chosen: bool) -> Provenance {
        let request = Request::get(uri).body(()).unwrap();
        Provenance::of(&RequestView { pattern, ..RequestView::from(&request) }, is_chosen)
    }

    #[test]
    fn patterns_with_a_catch_all_or_an_open_end_are_unknown() {
        for (pattern, path, is_known) in [
            (Some("/products/{id}"), "/products/7", true),
            (Some("/products/:id"), "/products/a%40b", true),
            (Some("/"), "/", true),
            (None, "/products/7", false),
            (Some("/files/{*path}"), "/files/a", false),
            (Some("/files/*path"), "/files/a", false),
            (Some("/api"), "/api/products", false),
            (Some("/api"), "/api", true),
            (Some("/api"), "/about", false),
            (Some("/p/{a}/x/{b}"), "/p/1/x/2", true),
            (Some("/p/{a}/x/{b}"), "/p/1/y/2", false),
            (Some("/p/{a}"), "/p/", false),
            (Some("/p/:id<\\d*>"), "/p/1", false),
            (Some("/p/<[0-9]+>"), "/p/1", true),
        ] {
            assert_eq!(of(pattern, path, false).pattern != 0, is_known, "{pattern:?} {path}");
        }
    }

    #[test]
    fn entry_serves_its_own_pattern_and_canonical_requests_with_chosen_keys() {
        let (a, b) = (Some("/p/{id}"), Some("/p/featured"));
        for (entry, request, expected) in [
            (of(a, "/p/7", false), of(a, "/p/%37", false), true),
            (of(a, "/p/%37", false), of(a, "/p/7", false), true),
            (of(None, "/p/7", false), of(None, "/p/7", false), true),
            (of(a, "/p/%66eatured", false), of(b, "/p/featured", false), false),
            (of(b, "/p/featured", false), of(a, "/p/%66eatured", false), false),
            (of(a, "/p/7", false), of(None, "/p/7", false), false),
            (of(a, "/p/7", true), of(b, "/p/featured", true), true),
            (of(a, "/p/7", true), of(b, "/p/featured", false), true),
            (of(a, "/p/%66eatured", true), of(b, "/p/featured", true), false),
            (of(b, "/p/featured", true), of(a, "/p/%66eatured", true), false),
        ] {
            assert_eq!(entry.serves(request), expected, "{entry:?} {request:?}");
        }
    }
}
