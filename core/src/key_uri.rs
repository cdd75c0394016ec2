//! From which URI a key is made, when something on the way has changed what the handler sees.

use http::Uri;
use http::uri::PathAndQuery;

/// The URI that a key is made from.
///
/// A nested router hands on the end of the path, and `/v1/items` and `/v2/items` come to the same `/items`. So keys are made from
/// the URI that the client sent, as long as nesting alone explains what the handler sees. If something rewrote it, the
/// handler's answer depends on what it was rewritten to (a page by host, a language), and evictions have to reach that.
///
/// ```
/// use http::Uri;
/// use larder_core::KeyUri;
///
/// let (sent, seen) = (Uri::from_static("/shop/p/7/"), Uri::from_static("/p/7"));
/// assert_eq!(KeyUri::of(&sent, &seen, Some("/shop")), KeyUri::Rewritten(Uri::from_static("/shop/p/7")));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KeyUri {
    /// The URI that the client sent.
    #[default]
    AsSent,
    /// What the handler sees, with the prefix in front that routers have cut.
    Rewritten(Uri),
    /// The handler sees another URI, under a prefix that isn't known: nothing is read or stored.
    Unknown,
}

impl KeyUri {
    /// Decides from the URI that the client `sent`, the one that the handler has `seen`, and the path under which the router
    /// is nested, which may have parameters: `/shops/{shop}`.
    #[must_use]
    pub fn of(sent: &Uri, seen: &Uri, mount: Option<&str>) -> Self {
        let mount = mount.unwrap_or_default().trim_end_matches('/');
        if sent.query() == seen.query()
            && behind(sent.path(), mount).is_some_and(|rest| is_tail(seen.path(), rest))
        {
            return Self::AsSent;
        }
        if !is_static(mount) {
            return Self::Unknown;
        }
        let absolute = match (mount, seen.path(), seen.query()) {
            // A nested router is shown `/` where its own path was asked for.
            ("", path, query) => with_path(sent, path, "", query),
            (mount, "/", query) => with_path(sent, mount, "", query),
            (mount, path, query) => with_path(sent, mount, path, query),
        };
        absolute.map_or(Self::Unknown, Self::Rewritten)
    }

    /// The path under which a router is nested whose whole pattern this is, if it left this path of the request. `None` if that
    /// can't be told from the pattern.
    #[must_use]
    pub fn mount_of<'p>(pattern: &'p str, seen: &str) -> Option<&'p str> {
        if pattern.contains('*') {
            return None;
        }
        let slashes = |text: &str| text.matches('/').count();
        let cut = slashes(pattern).checked_sub(if seen == "/" { 0 } else { slashes(seen) })?;
        let mut ends = pattern.match_indices('/').map(|(at, _)| at).chain([pattern.len()]);
        ends.nth(cut).map(|end| &pattern[..end])
    }
}

/// What is left of a path behind a mount. `None` if it doesn't lie there.
fn behind<'p>(path: &'p str, mount: &str) -> Option<&'p str> {
    let mut rest = path;
    for expected in mount.split('/').skip(1) {
        let segment = rest.strip_prefix('/')?;
        let len = segment.find('/').unwrap_or(segment.len());
        if !is_parameter(expected) && segment[..len] != *expected {
            return None;
        }
        rest = &segment[len..];
    }
    Some(if rest.is_empty() { "/" } else { rest })
}

/// Whether a path is the end of another, from a slash on. Routers cut segments, and no slashes alone: that is normalising.
fn is_tail(path: &str, of: &str) -> bool {
    match of.strip_suffix(path) {
        Some("") => true,
        Some(cut) => path.starts_with('/') && !cut.ends_with('/') && !cut.contains("//"),
        None => false,
    }
}

/// Whether a pattern leads to one path alone.
fn is_static(pattern: &str) -> bool {
    !pattern.split('/').any(is_parameter)
}

/// A segment of a pattern that stands for more than itself: `{name}`, `:name`, `*rest`, `<regex>`.
fn is_parameter(segment: &str) -> bool {
    segment.contains(['{', '*', '<']) || segment.starts_with(':')
}

/// The same scheme and host with another path and query.
fn with_path(uri: &Uri, mount: &str, path: &str, query: Option<&str>) -> Option<Uri> {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(format!("{mount}{path}{query}")).ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sent: &str, seen: &str, mount: Option<&str>) -> KeyUri {
        KeyUri::of(&sent.parse().unwrap(), &seen.parse().unwrap(), mount)
    }

    #[test]
    fn nesting_alone_leaves_the_uri_that_was_sent() {
        for (sent, seen, mount) in [
            ("/items?a=1", "/items?a=1", None),
            ("/v1/items", "/items", Some("/v1")),
            ("/v1/items", "/items", Some("/{version}")),
            ("/v1/items", "/items", Some("/:version")),
            ("/a/b/items?x", "/items?x", Some("/a/b")),
            ("/v1", "/", Some("/v1")),
            ("/v1/", "/", Some("/v1")),
            ("/v1/items", "/items", Some("/v1/")),
            // A layer of its own cuts it.
            ("/v1/items", "/items", None),
            ("/api/v1/items", "/items", Some("/api")),
            ("*", "*", None),
        ] {
            assert_eq!(of(sent, seen, mount), KeyUri::AsSent, "{sent} {seen} {mount:?}");
        }
    }

    #[test]
    fn what_was_rewritten_is_known_by_what_the_handler_sees() {
        for (sent, seen, mount, expected) in [
            ("/p/7/", "/p/7", None, "/p/7"),
            ("/shop/p/7/", "/p/7", Some("/shop"), "/shop/p/7"),
            ("/shop//", "/", Some("/shop"), "/shop"),
            ("///", "/", None, "/"),
            ("//p/7", "/p/7", None, "/p/7"),
            ("/shop//p/7", "/p/7", Some("/shop"), "/shop/p/7"),
            ("/home", "/two.example/home", None, "/two.example/home"),
            ("/home", "/home", Some("/two.example"), "/two.example/home"),
            ("/page", "/page?lang=de", None, "/page?lang=de"),
            ("/a/page?x", "/page?x&lang=de", Some("/a"), "/a/page?x&lang=de"),
            ("/a/page?x", "/page", Some("/a"), "/a/page"),
            ("/abc", "/bc", None, "/bc"),
            // As HTTP/2 sends it.
            ("https://a.example/p/7/", "https://a.example/p/7", None, "https://a.example/p/7"),
        ] {
            let expected = KeyUri::Rewritten(expected.parse().unwrap());
            assert_eq!(of(sent, seen, mount), expected, "{sent} {seen} {mount:?}");
        }
    }

    #[test]
    fn under_a_mount_with_parameters_what_was_rewritten_is_unknown() {
        for (sent, seen, mount) in [
            ("/home", "/home", "/{shop}"),
            ("/one/home/", "/home", "/{shop}"),
            ("/one/home/", "/home", "/:shop"),
            ("/one/home", "/home?lang=de", "/<\\d+>"),
        ] {
            assert_eq!(of(sent, seen, Some(mount)), KeyUri::Unknown, "{sent} {seen} {mount}");
        }
    }

    #[test]
    fn mounts_are_what_a_pattern_has_more_than_the_path() {
        for (pattern, seen, expected) in [
            ("/v1/products/:id", "/products/7", Some("/v1")),
            ("/products/:id", "/products/7", Some("")),
            ("/a/:b/c", "/c", Some("/a/:b")),
            ("/v1", "/", Some("/v1")),
            ("/", "/", Some("/")),
            ("/files/*path", "/a", None),
            ("/v1", "/a/b", None),
        ] {
            assert_eq!(KeyUri::mount_of(pattern, seen), expected, "{pattern} {seen}");
        }
    }
}
