//! The suffix of a URI: its path with slashes as colons, then its parameters sorted by name.

use std::borrow::Cow;
use std::mem;

use http::Uri;

use super::escape::{
    CLASSES, IN_NAME, IN_PATH, IN_VALUE, PARAM, PCHAR, PLAIN_PARAM, PLAIN_SEGMENT, SEGMENT, decoded_param,
    decoded_segment, escaped_byte, write_canonical, write_part,
};
use super::ignored::is_ignored;

/// The query parameters that are part of the key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Params<'a> {
    /// All of them.
    All,
    /// Only these names; the others are ignored.
    Only(&'a [String]),
    /// All but those that match one of these patterns.
    AllBut(&'a [String]),
}

impl Params<'_> {
    /// Returns `true` if the parameter with this decoded name is part of the key. If a handler reads a parameter that
    /// is not in the key, any client can choose the response that other clients get.
    fn counts(self, name: &[u8], value: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.iter().any(|known| known.as_bytes() == name),
            Self::AllBut(patterns) => !is_ignored(patterns, name, value),
        }
    }
}

/// Returns the default suffix of a URI: its path with slashes as colons, then its parameters sorted by name.
///
/// ```
/// let uri: http::Uri = "/items?z=2&a=1".parse()?;
/// assert_eq!(larder_core::key::uri_suffix(&uri), "items:a=1:z=2");
/// # Ok::<(), http::uri::InvalidUri>(())
/// ```
#[must_use]
pub fn uri_suffix(uri: &Uri) -> String {
    let mut suffix = String::with_capacity(uri_len(uri));
    write_uri(&mut suffix, uri, Params::All);
    suffix
}

/// Returns the length of the suffix of a URI, if nothing in it is escaped or left out.
pub(crate) fn uri_len(uri: &Uri) -> usize {
    // A path begins with a slash, which isn't written.
    uri.path().len().saturating_sub(1) + uri.query().map_or(0, |query| 1 + query.len())
}

/// Appends the suffix of a URI.
pub(crate) fn write_uri(out: &mut String, uri: &Uri, params: Params<'_>) {
    let before = out.len();
    // The short way copies the whole query.
    let is_whole = uri.query().is_none() || matches!(params, Params::All | Params::AllBut([]));
    if is_whole && write_plain(out, uri).is_some() {
        return;
    }
    out.truncate(before);
    write_any(out, uri, params);
}

/// Does the same as [`write_any`] in one pass, if nothing must be escaped, decoded or sorted, which is the usual case.
/// Otherwise returns `None`.
fn write_plain(out: &mut String, uri: &Uri) -> Option<()> {
    // As bytes, so that separators can be replaced in place. Only ASCII bytes are replaced, and by ASCII bytes.
    let mut bytes = mem::take(out).into_bytes();
    let written = write_plain_bytes(&mut bytes, uri);
    *out = String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    written
}

fn write_plain_bytes(out: &mut Vec<u8>, uri: &Uri) -> Option<()> {
    let path = uri.path().strip_prefix('/')?.as_bytes();
    let begin = out.len();
    out.extend_from_slice(path);
    for byte in &mut out[begin..] {
        if CLASSES[usize::from(*byte)] & PLAIN_SEGMENT != 0 {
            continue;
        }
        if *byte != b'/' {
            return None;
        }
        *byte = b':';
    }
    let Some(query) = uri.query().map(str::as_bytes) else { return Some(()) };
    out.push(b':');
    let begin = out.len();
    out.extend_from_slice(query);
    let (mut last, mut begins_at, mut name) = (&query[..0], 0, None);
    for (at, byte) in out[begin..].iter_mut().enumerate() {
        if CLASSES[usize::from(*byte)] & PLAIN_PARAM != 0 {
            continue;
        }
        match *byte {
            b'&' => {
                *byte = b':';
                let name = name.take().filter(|name| *name >= last)?;
                (last, begins_at) = (name, at + 1);
            }
            b'=' => name = name.or(query.get(begins_at..at)),
            _ => return None,
        }
    }
    name.filter(|name| *name >= last)?;
    Some(())
}

fn write_any(out: &mut String, uri: &Uri, params: Params<'_>) {
    match uri.path().strip_prefix('/') {
        Some(path) => write_path(out, path),
        // `*` and `host:port` (RFC 9112 §3.2) are no paths, and must not share keys with paths.
        None => write_part(out, "target", uri.path()),
    }
    if let Some(query) = uri.query() {
        write_query(out, query, params);
    }
}

fn write_path(out: &mut String, path: &str) {
    for (index, segment) in path.split('/').enumerate() {
        if index > 0 {
            out.push(':');
        }
        write_canonical(out, &decoded_segment(segment), PCHAR, SEGMENT);
    }
}

fn write_query(out: &mut String, query: &str, params: Params<'_>) {
    let pairs = || pairs(query).filter(|(name, value)| params.counts(name, value));
    if pairs().is_sorted_by(|(one, _), (next, _)| one <= next) {
        return pairs().for_each(|pair| write_pair(out, &pair));
    }
    // A stable sort by name alone keeps several values of one name in the order they came.
    let mut pairs: Vec<_> = pairs().collect();
    pairs.sort_by(|(one, _), (other, _)| one.cmp(other));
    pairs.iter().for_each(|pair| write_pair(out, pair));
}

/// The decoded name of a parameter, and its value as it is spelled.
type Pair<'a> = (Cow<'a, [u8]>, &'a str);

/// Returns the parameters of a query. Empty pairs are skipped.
fn pairs(query: &str) -> impl Iterator<Item = Pair<'_>> {
    let mut rest = Some(query);
    std::iter::from_fn(move || {
        loop {
            let (pair, after) = split_at_byte(rest?, b'&');
            rest = after;
            if !pair.is_empty() {
                let (name, value) = split_at_byte(pair, b'=');
                return Some((decoded_param(name), value.unwrap_or_default()));
            }
        }
    })
}

/// `split_once` for an ASCII character. In such a short text, comparing each byte is faster.
fn split_at_byte(text: &str, byte: u8) -> (&str, Option<&str>) {
    match text.bytes().position(|b| b == byte) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

fn write_pair(out: &mut String, (name, value): &Pair<'_>) {
    out.push(':');
    write_canonical(out, name, IN_NAME, PARAM);
    // A path can't hold a `=` that isn't escaped, so that this begins a parameter.
    out.push('=');
    write_canonical(out, &decoded_param(value), IN_VALUE, PARAM);
}

/// Returns `true` if this is the canonical spelling of a path: the one whose key every other spelling shares.
pub(crate) fn is_canonical(path: &str) -> bool {
    let bytes = path.as_bytes();
    let is_literal = |byte: &u8| CLASSES[usize::from(*byte)] & IN_PATH != 0;
    let Some(mut at) = bytes.iter().position(|byte| !is_literal(byte)) else { return true };
    while let Some(&byte) = bytes.get(at) {
        if is_literal(&byte) {
            at += 1;
            continue;
        }
        let digits = bytes.get(at + 1..at + 3).filter(|_| byte == b'%');
        let Some(digits) = digits.filter(|digits| !digits.iter().any(u8::is_ascii_lowercase)) else {
            return false;
        };
        if escaped_byte(digits).is_none_or(|escaped| CLASSES[usize::from(escaped)] & PCHAR != 0) {
            return false;
        }
        at += 3;
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::target;
    use super::*;

    #[test]
    fn ordinary_uris_take_the_short_way() {
        for (uri, is_plain) in [
            ("/products/7?currency=eur&lang=en", true),
            ("/a/b/c/", true),
            ("/a?b=c=d&b=/e", true),
            ("/a?b=2&a=1", false),
            ("/a?b", false),
            ("/a%20b", false),
            ("/a?b=c:d", false),
        ] {
            let uri: Uri = uri.parse().unwrap();
            assert_eq!(write_plain(&mut String::new(), &uri).is_some(), is_plain, "{uri}");
        }
    }

    #[test]
    fn one_spelling_of_each_path_is_canonical() {
        for path in ["/", "/a/b@c:d,e$f", "/a%2Fb", "/50%25", "/caf%C3%A9", "/a+b", "*", "//a//"] {
            assert!(is_canonical(path), "{path}");
        }
        for path in ["/%61", "/a%40b", "/a%2fb", "/50%", "/%2", "/caf%c3%a9", "/caf\u{e9}", "/a|b", "/a%2e"] {
            assert!(!is_canonical(path), "{path}");
        }
    }

    #[test]
    fn ignored_parameters_are_left_out_in_any_spelling() {
        let ignored = ["utm_*".to_owned(), "a b".to_owned()];
        for (uri, expected) in [
            ("/x?utm_source=mail", "x"),
            ("/x?utm_source=mail&b=1&a=2&utm_medium", "x:a=2:b=1"),
            ("/x?%75tm_source=1&a+b=2&a%20b&c", "x:c="),
            ("/x?utm=1", "x:utm=1"),
            ("/x?utm_source=a;id=7", "x:utm_source=a;id=7"),
            ("/x", "x"),
            ("/x?", "x"),
        ] {
            let mut suffix = String::new();
            write_uri(&mut suffix, &uri.parse().unwrap(), Params::AllBut(&ignored));
            assert_eq!(suffix, expected, "{uri}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn the_canonical_spelling_is_one_of_its_own_key(path in "/[ab/:=%|{}&@+2-7A-Fa-f]{0,10}") {
            let spelled: Vec<String> = path[1..]
                .split('/')
                .map(|segment| {
                    let mut out = String::new();
                    write_canonical(&mut out, &decoded_segment(segment), PCHAR, 0);
                    out
                })
                .collect();
            let canonical = format!("/{}", spelled.join("/"));
            prop_assert!(is_canonical(&canonical), "{canonical}");
            prop_assert_eq!(is_canonical(&path), path == canonical);
            prop_assert_eq!(decoded_segment(&canonical), decoded_segment(&path));
            if let (Ok(one), Ok(other)) = (path.parse::<Uri>(), canonical.parse::<Uri>()) {
                prop_assert_eq!(uri_suffix(&one), uri_suffix(&other));
            }
        }

        #[test]
        fn the_short_way_leads_to_the_same_key(uri in target()) {
            let (mut short, mut long) = (String::new(), String::new());
            if write_plain(&mut short, &uri).is_some() {
                write_any(&mut long, &uri, Params::All);
                prop_assert_eq!(short, long);
            }
        }
    }
}
