//! The URI that a key is made from, if middleware or nested routers changed the handler's URI.

use http::Uri;
use http::uri::PathAndQuery;

use super::escape::{NOWHERE, PCHAR, decoded_segment, write_canonical};

/// The URI that a key is made from.
///
/// A nested router passes on only the end of the path, so `/v1/items` and `/v2/items` both become `/items`. Therefore
/// keys are made from the URI that the client sent, as long as nesting alone explains the handler's URI. If middleware
/// rewrote the URI, the handler's response depends on the rewritten one (a page by host, a language), and evictions
/// must reach that.
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
    /// The URI that the handler sees, after the prefix that routers have cut.
    Rewritten(Uri),
    /// The handler sees another URI under an unknown prefix: nothing is read or stored. A write evicts the entries
    /// under the URI that the client sent, and under each of these possible URIs.
    Unknown(Vec<Uri>),
}

impl KeyUri {
    /// Decides from the URI that the client `sent`, the URI that the handler has `seen`, and the path at which the
    /// router is nested, which may have parameters: `/shops/{shop}`.
    #[must_use]
    pub fn of(sent: &Uri, seen: &Uri, mount: Option<&str>) -> Self {
        let mount = mount.unwrap_or_default().trim_end_matches('/');
        let rest = behind(sent.path(), mount);
        if sent.query() == seen.query() && rest.is_some_and(|rest| is_tail(seen.path(), rest)) {
            return Self::AsSent;
        }
        if is_static(mount) {
            return under(sent, mount, seen);
        }
        // The value of a parameter precedes the rest.
        let front = rest.and_then(|rest| {
            let cut = cut_off(sent.path(), seen.path())?;
            let is_behind = cut.len() + rest.len() >= sent.path().len();
            (sent.query() == seen.query() && is_behind && !cut.contains("//")).then_some(cut)
        });
        front.map_or_else(|| Self::unknown(sent, seen, mount), |front| under(sent, front, seen))
    }

    /// Decides like [`of`](Self::of), for a router whose mount has parameters. `values` are the names and decoded values of the
    /// parameters, those of the mount first.
    ///
    /// Middleware can choose the value of a parameter, from the host for instance. The end of the path is then the same in
    /// both URIs, although the URI was rewritten.
    ///
    /// ```
    /// use http::Uri;
    /// use larder_core::KeyUri;
    ///
    /// let (sent, seen) = (Uri::from_static("/my/home"), Uri::from_static("/home"));
    /// let key_uri = KeyUri::of_mount(&sent, &seen, "/{shop}", [("shop", "one")]);
    /// assert_eq!(key_uri, KeyUri::Rewritten(Uri::from_static("/one/home")));
    /// ```
    #[must_use]
    pub fn of_mount<'v>(
        sent: &Uri,
        seen: &Uri,
        mount: &str,
        values: impl IntoIterator<Item = (&'v str, &'v str)>,
    ) -> Self {
        let mount = mount.trim_end_matches('/');
        let mut values = values.into_iter();
        let mut front = String::with_capacity(mount.len());
        // The start of the sent path, as long as its segments are those of the mount.
        let mut sent_rest = Some(sent.path());
        for segment in mount.split('/').skip(1) {
            let value = match segment.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
                None if is_parameter(segment) => return Self::unknown(sent, seen, mount),
                None => segment,
                Some(name) => match values.next() {
                    Some((known, value)) if known == name => value,
                    _ => return Self::unknown(sent, seen, mount),
                },
            };
            front.push('/');
            write_segment(&mut front, value);
            sent_rest = sent_rest.and_then(|rest| behind_segment(rest, value));
        }
        let rest = sent_rest.map(|rest| if rest.is_empty() { "/" } else { rest });
        if sent.query() == seen.query() && rest.is_some_and(|rest| is_tail(seen.path(), rest)) {
            return Self::AsSent;
        }
        under(sent, &front, seen)
    }

    /// Returns the key URI under a mount whose parameters have unknown values.
    fn unknown(sent: &Uri, seen: &Uri, mount: &str) -> Self {
        let rest = behind(sent.path(), mount);
        let front = rest.map(|rest| sent.path().strip_suffix(rest).unwrap_or(sent.path()));
        Self::Unknown(
            front.map_or_else(|| vec![seen.clone()], |front| joined(sent, front, seen).into_iter().collect()),
        )
    }

    /// Decides from the URI that the client `sent`, the URI `seen` here, and the whole `pattern` that matched,
    /// including the paths of nested routers. For routers whose mounts have no parameters, as poem's.
    ///
    /// ```
    /// use http::Uri;
    /// use larder_core::KeyUri;
    ///
    /// let (sent, seen) = (Uri::from_static("/shop/files/a/"), Uri::from_static("/files/a"));
    /// let key_uri = KeyUri::of_pattern(&sent, &seen, "/shop/files/*path");
    /// assert_eq!(key_uri, KeyUri::Rewritten(Uri::from_static("/shop/files/a")));
    /// ```
    #[must_use]
    pub fn of_pattern(sent: &Uri, seen: &Uri, pattern: &str) -> Self {
        let path = seen.path();
        // If only slashes were changed, the mount is the start of the sent path.
        if let Some(cut) = cut_off(sent.path(), path)
            && mounts(pattern).any(|mount| mount == cut && leads_to(&pattern[cut.len()..], path))
        {
            // poem nests both `/v1` and `/v1/`, and leaves `/` of either.
            let is_root = path == "/" && !cut.is_empty() && sent.path().ends_with('/');
            return if is_root { under(sent, cut, seen) } else { Self::of(sent, seen, Some(cut)) };
        }
        let possible = |leads: fn(&str, &str) -> bool| {
            mounts(pattern).filter(move |mount| leads(&pattern[mount.len()..], path))
        };
        let (mut exact, mut all) = (possible(is_whole), possible(leads_to));
        let mount = match (exact.next(), exact.next()) {
            (Some(only), None) => Some(only),
            // Not nested.
            (Some(""), _) => Some(""),
            _ => all.next().filter(|_| all.next().is_none()),
        };
        match mount {
            Some(mount) => Self::of(sent, seen, Some(mount)),
            // The pattern is of an unknown kind.
            None if possible(leads_to).next().is_none() => Self::of(sent, seen, Some("*")),
            None => Self::Unknown(possible(leads_to).filter_map(|mount| joined(sent, mount, seen)).collect()),
        }
    }
}

/// Returns the key URI for a handler's URI, with the path in front that routers have cut.
fn under(sent: &Uri, front: &str, seen: &Uri) -> KeyUri {
    joined(sent, front, seen).map_or_else(|| KeyUri::Unknown(Vec::new()), KeyUri::Rewritten)
}

fn joined(sent: &Uri, front: &str, seen: &Uri) -> Option<Uri> {
    match (front, seen.path()) {
        // A nested router sees `/` if its own path was requested.
        ("", path) => with_path(sent, path, "", seen.query()),
        (front, "/") => with_path(sent, front, "", seen.query()),
        (front, path) => with_path(sent, front, path, seen.query()),
    }
}

/// Returns the segments of a path. Layers that normalise paths add, remove and merge slashes, which make no segment.
fn segments(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

/// Returns the start of the `sent` path before the segments that were `seen`. `None` if those aren't its last.
fn cut_off<'p>(sent: &'p str, seen: &str) -> Option<&'p str> {
    let mut front = sent.trim_end_matches('/');
    for segment in segments(seen).rev() {
        front = front.strip_suffix(segment)?.strip_suffix('/')?.trim_end_matches('/');
    }
    Some(front)
}

/// Returns the paths at which a router with this pattern may be nested: those before its first parameter.
fn mounts(pattern: &str) -> impl Iterator<Item = &str> {
    let ends = pattern.match_indices('/').map(|(at, _)| at).chain([pattern.len()]);
    let mounts = ends.map(|end| &pattern[..end]).take_while(|mount| is_static(mount));
    mounts.filter(|mount| !mount.ends_with('/'))
}

/// Returns `true` if a pattern describes this path, or its start. A nested router has a static pattern that omits the
/// rest of the path.
fn leads_to(pattern: &str, path: &str) -> bool {
    describes(pattern, path, is_static(pattern))
}

/// Returns `true` if a pattern describes the whole of this path.
fn is_whole(pattern: &str, path: &str) -> bool {
    describes(pattern, path, false)
}

fn describes(pattern: &str, path: &str, may_go_on: bool) -> bool {
    let (mut pattern, mut path) = (segments(pattern), segments(path));
    loop {
        match (pattern.next(), path.next()) {
            (Some(expected), _) if expected.starts_with('*') => return true,
            (Some(expected), Some(segment)) if is_parameter(expected) || expected == segment => {}
            (None, None) => return true,
            (None, Some(_)) => return may_go_on,
            (Some(_), _) => return false,
        }
    }
}

/// Returns the rest of a path after a mount. `None` if the path isn't under it.
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

/// Returns the rest of a path after its first segment, if that is this decoded one.
fn behind_segment<'p>(path: &'p str, decoded: &str) -> Option<&'p str> {
    let segment = path.strip_prefix('/')?;
    let (segment, rest) = segment.split_at(segment.find('/').unwrap_or(segment.len()));
    (*decoded_segment(segment) == *decoded.as_bytes()).then_some(rest)
}

/// Appends a decoded segment to a path, in its canonical spelling.
fn write_segment(path: &mut String, decoded: &str) {
    write_canonical(path, decoded.as_bytes(), PCHAR, NOWHERE);
}

/// Returns `true` if a path is the end of another, from a slash on. Routers cut segments, never slashes alone: that is
/// normalising.
fn is_tail(path: &str, of: &str) -> bool {
    match of.strip_suffix(path) {
        Some("") => true,
        Some(cut) => path.starts_with('/') && !cut.ends_with('/') && !cut.contains("//"),
        None => false,
    }
}

/// Returns `true` if a pattern matches one path only.
fn is_static(pattern: &str) -> bool {
    !pattern.split('/').any(is_parameter)
}

/// Returns `true` for a segment of a pattern that is a parameter: `{name}`, `:name`, `*rest`, `<regex>`.
fn is_parameter(segment: &str) -> bool {
    segment.contains(['{', '*', '<']) || segment.starts_with(':')
}

/// Returns the same scheme and host with another path and query.
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
        for (sent, seen, mount, evicted) in [
            ("/home", "/home", "/{shop}", "/home/home"),
            ("/one/page", "/other", "/{shop}", "/one/other"),
            ("/one/home", "/home?lang=de", "/<\\d+>", "/one/home?lang=de"),
            ("/", "/home", "/{shop}", "/home"),
        ] {
            let evicted = KeyUri::Unknown(vec![evicted.parse().unwrap()]);
            assert_eq!(of(sent, seen, Some(mount)), evicted, "{sent} {seen} {mount}");
        }
    }

    #[test]
    fn values_of_its_parameters_tell_the_mount() {
        let of_mount = |sent: &str, seen: &str, mount: &str, values: &[(&'static str, &'static str)]| {
            let (sent, seen) = (sent.parse().unwrap(), seen.parse().unwrap());
            KeyUri::of_mount(&sent, &seen, mount, values.iter().copied())
        };
        for (sent, seen, mount, values) in [
            ("/one/home", "/home", "/{shop}", &[("shop", "one"), ("id", "7")][..]),
            ("/one/home?a", "/home?a", "/{shop}/", &[("shop", "one")]),
            ("/%6fne%2F/home", "/home", "/{shop}", &[("shop", "one/")]),
            ("/one", "/", "/{shop}", &[("shop", "one")]),
            ("/a/one/b/two/home/x", "/home/x", "/a/{shop}/b/{part}", &[("shop", "one"), ("part", "two")]),
        ] {
            assert_eq!(of_mount(sent, seen, mount, values), KeyUri::AsSent, "{sent} {seen} {mount}");
        }
        for (sent, seen, mount, values, expected) in [
            ("/my/home", "/home", "/{shop}", &[("shop", "one")][..], "/one/home"),
            ("/home", "/home", "/{shop}", &[("shop", "one.example")], "/one.example/home"),
            ("/one/page?x", "/other?x", "/{shop}", &[("shop", "one")], "/one/other?x"),
            ("/one/home/", "/home", "/{shop}", &[("shop", "one")], "/one/home"),
            ("/one/page", "/page?lang=de", "/{shop}", &[("shop", "one")], "/one/page?lang=de"),
            ("/x", "/", "/{shop}", &[("shop", "a/b%c@\u{e9}")], "/a%2Fb%25c@%C3%A9"),
        ] {
            let expected = KeyUri::Rewritten(expected.parse().unwrap());
            assert_eq!(of_mount(sent, seen, mount, values), expected, "{sent} {seen} {mount}");
        }
        for (values, mount) in
            [(&[][..], "/{shop}"), (&[("id", "one")], "/{shop}"), (&[("shop", "one")], "/:shop")]
        {
            let unknown = KeyUri::Unknown(vec!["/one/home".parse().unwrap()]);
            assert_eq!(of_mount("/one/home", "/home", mount, values), unknown, "{values:?} {mount}");
        }
    }

    #[test]
    fn slashes_alone_leave_the_mount_known() {
        for (sent, seen, mount, expected) in [
            ("/one/home/", "/home", "/{shop}", "/one/home"),
            ("/one/home/", "/home", "/:shop", "/one/home"),
            ("/one/home", "/home/", "/{shop}", "/one/home/"),
            ("/one//home?a", "/home?a", "/{shop}", "/one/home?a"),
            ("/one//", "/", "/{shop}", "/one"),
        ] {
            let expected = KeyUri::Rewritten(expected.parse().unwrap());
            assert_eq!(of(sent, seen, Some(mount)), expected, "{sent} {seen} {mount}");
        }
    }

    fn of_pattern(sent: &str, seen: &str, pattern: &str) -> KeyUri {
        KeyUri::of_pattern(&sent.parse().unwrap(), &seen.parse().unwrap(), pattern)
    }

    #[test]
    fn patterns_tell_the_mount() {
        for (sent, seen, pattern) in [
            ("/v1/products/7", "/products/7", "/v1/products/:id"),
            ("/products/7?a", "/products/7?a", "/products/:id"),
            ("/a/b/c", "/b/c", "/a/:b/c"),
            ("/v1", "/", "/v1"),
            ("/", "/", "/"),
            ("/files/a/b", "/files/a/b", "/files/*path"),
            ("/v1/files/a/", "/files/a/", "/v1/files/*path"),
            ("/files/files/a", "/files/a", "/files/*path"),
            // A router, or an endpoint, that is nested.
            ("/v1/products/7", "/products/7", "/v1"),
            ("/v1/v1", "/v1", "/v1"),
            ("/v1/about", "/about", "/v1/about"),
            // A layer of its own cuts it.
            ("/old/files/a", "/files/a", "/files/*path"),
            ("/old/about", "/about", "/about"),
            ("/v1/a/b", "/a/b", "/v1/<a/.+>"),
        ] {
            assert_eq!(of_pattern(sent, seen, pattern), KeyUri::AsSent, "{sent} {seen} {pattern}");
        }
    }

    #[test]
    fn patterns_tell_the_mount_of_what_was_rewritten() {
        for (sent, seen, pattern, expected) in [
            // Trimmed, appended, merged.
            ("/files/d/f.txt/", "/files/d/f.txt", "/files/*rest", "/files/d/f.txt"),
            ("/v1/files/d/f.txt/", "/files/d/f.txt", "/v1/files/*rest", "/v1/files/d/f.txt"),
            ("/v1/files/d//?a=1", "/files/d?a=1", "/v1/files/*rest", "/v1/files/d?a=1"),
            ("/v1/files/d", "/files/d/", "/v1/files/*rest", "/v1/files/d/"),
            ("/v1//files//d", "/files/d", "/v1/files/*rest", "/v1/files/d"),
            ("/v1/d/", "/d", "/v1/*rest", "/v1/d"),
            ("/v1//", "/", "/v1/*rest", "/v1"),
            ("/v1/", "/", "/v1/", "/v1"),
            ("/v1/?a", "/?a", "/v1", "/v1?a"),
            ("/d/", "/d", "/*rest", "/d"),
            ("/files/files/a/", "/files/a", "/files/*rest", "/files/files/a"),
            // A layer around a nested router, which sees the outer pattern alone.
            ("/v1/about/", "/about", "/v1", "/v1/about"),
            ("/v1/products/7/", "/products/7", "/v1", "/v1/products/7"),
            // In front of the routers.
            ("/home", "/two.example/home", "/*rest", "/two.example/home"),
            ("/a", "/files/two/a", "/files/*rest", "/files/two/a"),
            ("/home", "/home", "/two.example/home", "/two.example/home"),
            ("/old/7", "/products/7", "/v1/products/:id", "/v1/products/7"),
            ("/v1/files/a", "/files/a?lang=de", "/v1/files/*rest", "/v1/files/a?lang=de"),
            ("/x", "/a", "/v1/b/*rest", "/v1/b/a"),
        ] {
            let expected = KeyUri::Rewritten(expected.parse().unwrap());
            assert_eq!(of_pattern(sent, seen, pattern), expected, "{sent} {seen} {pattern}");
        }
    }

    #[test]
    fn mounts_that_a_pattern_leaves_open_are_all_evicted() {
        for (sent, seen, pattern, evicted) in [
            ("/a", "/files/two/a", "/v1/files/*rest", &["/v1/files/two/a", "/v1/files/files/two/a"][..]),
            ("/other/a", "/files/a", "/v1/files/*rest", &["/v1/files/a", "/v1/files/files/a"]),
            ("/a", "/b", "/c/:d/e", &["/b"]),
        ] {
            let evicted = KeyUri::Unknown(evicted.iter().map(|uri| uri.parse().unwrap()).collect());
            assert_eq!(of_pattern(sent, seen, pattern), evicted, "{sent} {seen} {pattern}");
        }
    }
}
