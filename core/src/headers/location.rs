//! The other resources that a response names: `Location` and `Content-Location` (RFC 9111 §4.4).

use http::header::HeaderName;
use http::uri::PathAndQuery;
use http::{HeaderMap, Uri};

/// Returns the URI in a field, if it has the same host: an origin can't invalidate resources of another (§4.4).
/// Resolved by RFC 3986 §5.2, without the fragment.
pub(crate) fn same_site(headers: &HeaderMap, name: &HeaderName, base: &Uri, host: &str) -> Option<Uri> {
    let field = headers.get(name)?.to_str().ok()?.trim();
    let reference = field.split('#').next().unwrap_or_default();
    let target = match authority_and_rest(reference) {
        Some((authority, rest)) if authority.eq_ignore_ascii_case(host) => {
            if rest.starts_with('/') {
                rest.to_owned()
            } else {
                format!("/{rest}")
            }
        }
        Some(_) => return None,
        None => resolve(base, reference),
    };
    PathAndQuery::try_from(without_dots(&target)).ok().map(Uri::from)
}

/// Splits an absolute or network-path reference from a relative path.
fn authority_and_rest(reference: &str) -> Option<(&str, &str)> {
    let after = match reference.split_once(':') {
        Some((scheme, after)) if !scheme.contains(['/', '?']) => after,
        _ => reference,
    };
    let after = after.strip_prefix("//")?;
    Some(after.split_at(after.find(['/', '?']).unwrap_or(after.len())))
}

fn resolve(base: &Uri, reference: &str) -> String {
    let path = base.path();
    let directory = path.rfind('/').map_or("/", |slash| &path[..=slash]);
    match reference.as_bytes().first() {
        None => base.path_and_query().map_or(path, PathAndQuery::as_str).to_owned(),
        Some(b'/') => reference.to_owned(),
        Some(b'?') => format!("{path}{reference}"),
        Some(_) => format!("{directory}{reference}"),
    }
}

/// Removes dot segments (RFC 3986 §5.2.4).
pub(crate) fn without_dots(target: &str) -> String {
    let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            segment => kept.push(segment),
        }
        if is_last && matches!(segment, "." | "..") {
            kept.push("");
        }
    }
    format!("/{}{query}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::LOCATION;

    #[test]
    fn references_are_resolved_on_the_same_host_only() {
        let base: Uri = "/a/b/c?d=1".parse().unwrap();
        for (reference, expected) in [
            ("", Some("/a/b/c?d=1")),
            ("e", Some("/a/b/e")),
            ("./e/.", Some("/a/b/e/")),
            ("../e?f=g/..", Some("/a/e?f=g/..")),
            ("../../../e", Some("/e")),
            ("..", Some("/a/")),
            ("?x", Some("/a/b/c?x")),
            ("/x:y/z#fragment", Some("/x:y/z")),
            ("e?u=http://elsewhere.example/", Some("/a/b/e?u=http://elsewhere.example/")),
            ("http://Here.example/x", Some("/x")),
            ("https://here.example", Some("/")),
            ("//here.example?x", Some("/?x")),
            ("http://elsewhere.example/x", None),
            ("//elsewhere.example/x", None),
            ("http://here.example:81/x", None),
        ] {
            let headers = [(LOCATION, reference.parse().unwrap())].into_iter().collect();
            let found = same_site(&headers, &LOCATION, &base, "here.example");
            assert_eq!(found.map(|uri| uri.to_string()).as_deref(), expected, "{reference}");
        }
    }
}
