//! The inverse of a key: the request that it stands for. For tests and fuzzing.

use std::collections::BTreeMap;

use http::Uri;

/// The decoded bytes of a handler's path or parameter.
pub(crate) type Text = Vec<u8>;

/// The parameters of a request, apart from the order of differently named parameters, which may not matter.
pub(crate) type Query = BTreeMap<Text, Vec<Text>>;

/// The target of a request: equal for two URIs if and only if they may share a key. The segments of the path, and the
/// parameters after form decoding.
pub(crate) fn meaning(uri: &Uri) -> (Vec<Text>, Query) {
    let mut params = Query::new();
    for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        params.entry(decode(&name.replace('+', " "))).or_default().push(decode(&value.replace('+', " ")));
    }
    (uri.path().split('/').map(decode).collect(), params)
}

fn decode(spelled: &str) -> Text {
    let bytes = spelled.as_bytes();
    let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
    let (mut at, mut text) = (0, Vec::new());
    while let Some(&byte) = bytes.get(at) {
        let escaped = digit(at + 1).zip(digit(at + 2)).filter(|_| byte == b'%');
        let escaped = escaped.and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
        text.push(escaped.unwrap_or(byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    text
}

/// The inverse of `uri_suffix`. Its existence makes the format injective.
pub(crate) fn read_back(suffix: &str) -> (Vec<Text>, Query) {
    let unescape = |text: &str| {
        let text = ["3A:", "3D=", "7B{", "7C|", "7D}", "25%"]
            .iter()
            .fold(text.to_owned(), |text, escape| text.replace(&format!("%{}", &escape[..2]), &escape[2..]));
        decode(&text)
    };
    let segments: Vec<&str> = suffix.split(':').collect();
    let path_len = segments.iter().position(|segment| segment.contains('=')).unwrap_or(segments.len());
    let path = std::iter::once(Vec::new()).chain(segments[..path_len].iter().map(|s| unescape(s))).collect();
    let mut params = Query::new();
    for segment in &segments[path_len..] {
        // Every parameter has a `=`.
        let (name, value) = segment.split_once('=').unwrap_or((segment, ""));
        params.entry(unescape(name)).or_default().push(unescape(value));
    }
    (path, params)
}
