//! The way back from a key to what was asked for, for tests and for fuzzing.

use std::collections::BTreeMap;

use http::Uri;

/// The parameters of a request, apart from the order of differently named parameters, which may not matter.
pub(crate) type Query = BTreeMap<String, Vec<Option<String>>>;

/// What a request asks for: equal for two URIs if, and only if, they may share a key.
pub(crate) fn meaning(uri: &Uri) -> (String, Option<Query>) {
    let query = uri.query().map(|query| {
        let mut params: BTreeMap<String, Vec<Option<String>>> = BTreeMap::new();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').map_or((pair, None), |(n, v)| (n, Some(v.to_owned())));
            params.entry(name.to_owned()).or_default().push(value);
        }
        params
    });
    (uri.path().to_owned(), query)
}

/// The inverse of `uri_suffix`: that it exists is what makes the format injective.
pub(crate) fn read_back(suffix: &str) -> (String, Option<Query>) {
    let unescape = |text: &str| {
        ["3A:", "3D=", "3F?", "7B{", "7C|", "7D}", "25%"]
            .iter()
            .fold(text.to_owned(), |text, escape| text.replace(&format!("%{}", &escape[..2]), &escape[2..]))
    };
    let segments: Vec<&str> = suffix.split(':').collect();
    let is_param = |segment: &&str| segment.contains('=') || segment.starts_with('?');
    let path_len = segments.iter().position(is_param).unwrap_or(segments.len());
    let path = format!("/{}", segments[..path_len].iter().map(|s| unescape(s)).collect::<Vec<_>>().join("/"));
    let mut params: BTreeMap<String, Vec<Option<String>>> = BTreeMap::new();
    for segment in &segments[path_len..] {
        match segment.split_once('=') {
            Some((name, value)) => params.entry(unescape(name)).or_default().push(Some(unescape(value))),
            None => params.entry(unescape(&segment[1..])).or_default().push(None),
        }
    }
    (path, (path_len < segments.len()).then_some(params))
}
