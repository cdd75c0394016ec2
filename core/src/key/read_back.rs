//! The way back from a key to what was asked for, for tests and for fuzzing.

use std::collections::BTreeMap;

use http::Uri;

/// A text in which it makes no difference how an unreserved character is spelled (RFC 3986 §6.2.2): characters, and
/// above all of them the other escapes.
pub(crate) type Text = Vec<u16>;

/// The parameters of a request, apart from the order of differently named parameters, which may not matter.
pub(crate) type Query = BTreeMap<Text, Vec<Option<Text>>>;

/// What a request asks for: equal for two URIs if, and only if, they may share a key.
pub(crate) fn meaning(uri: &Uri) -> (Text, Option<Query>) {
    let query = uri.query().map(|query| {
        let mut params: Query = BTreeMap::new();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').map_or((pair, None), |(n, v)| (n, Some(text(v))));
            params.entry(text(name)).or_default().push(value);
        }
        params
    });
    (text(uri.path()), query)
}

fn text(spelled: &str) -> Text {
    let bytes = spelled.as_bytes();
    let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
    let (mut at, mut text) = (0, Vec::new());
    while let Some(&byte) = bytes.get(at) {
        let escaped = digit(at + 1).zip(digit(at + 2)).filter(|_| byte == b'%');
        let escaped = escaped.and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
        text.push(match escaped {
            Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => byte.into(),
            Some(byte) => 256 + u16::from(byte),
            None => byte.into(),
        });
        at += if escaped.is_some() { 3 } else { 1 };
    }
    text
}

/// The inverse of `uri_suffix`: that it exists is what makes the format injective.
pub(crate) fn read_back(suffix: &str) -> (Text, Option<Query>) {
    let unescape = |text: &str| {
        ["3A:", "3D=", "3F?", "7B{", "7C|", "7D}", "25%"]
            .iter()
            .fold(text.to_owned(), |text, escape| text.replace(&format!("%{}", &escape[..2]), &escape[2..]))
    };
    let segments: Vec<&str> = suffix.split(':').collect();
    let is_param = |segment: &&str| segment.contains('=') || segment.starts_with('?');
    let path_len = segments.iter().position(is_param).unwrap_or(segments.len());
    let path = format!("/{}", segments[..path_len].iter().map(|s| unescape(s)).collect::<Vec<_>>().join("/"));
    let mut params: Query = BTreeMap::new();
    for segment in &segments[path_len..] {
        match segment.split_once('=') {
            Some((name, value)) => {
                params.entry(text(&unescape(name))).or_default().push(Some(text(&unescape(value))))
            }
            None => params.entry(text(&unescape(&segment[1..]))).or_default().push(None),
        }
    }
    (text(&path), (path_len < segments.len()).then_some(params))
}
