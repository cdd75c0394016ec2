//! The parts of a request's target that select a response besides the key.
//!
//! A key contains the target in a canonical spelling, so that a write to any spelling of a URI invalidates all of them. But
//! routers of origins see the raw path, and may treat spellings differently. So requests with another spelling, or with fields
//! that may change their target, have a secondary key: each of them is a variant, as if the response varied by these properties.
//! The canonical form may therefore unite more spellings than RFC 3986 §6.2.2 does: they are invalidated together, but never get
//! the same response. Requests with a secondary key neither replace the usual response nor make other requests wait.

use std::borrow::Cow;

use http::header::{CONTENT_LOCATION, FORWARDED, LOCATION};
use http::uri::Scheme;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::{SchemeSource, SharedRule};
use crate::credentials::{may_send_elsewhere, replaces_method};
use crate::key::decoded_param;
use crate::key::ignored::is_ignored;
use crate::policy::rule::host;
use crate::request::RequestView;

/// Stands for the spelling of the target among the names of the selecting fields.
const SPELLING: HeaderName = HeaderName::from_static("larder-spelling");

const X_FORWARDED_PROTO: &str = "x-forwarded-proto";

/// The properties that select a response besides the key and the fields in `Vary`. Empty for nearly all requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Unkeyed {
    names: Vec<HeaderName>,
    /// The target as it was sent, if it isn't in canonical spelling.
    spelling: Option<HeaderValue>,
    /// `true` if the target has query parameters that the key ignores.
    has_ignored_params: bool,
}

impl Unkeyed {
    pub(super) fn of(request: &RequestView<'_>, rule: &SharedRule) -> Self {
        let source = &rule.scheme;
        let mut unkeyed = Self::default();
        let target = without_ignored_params(target_of(request.uri), &rule.ignored_params);
        unkeyed.has_ignored_params = matches!(target, Cow::Owned(_));
        if let Cow::Owned(_) = canonical(&target) {
            // A target in a URI contains no control characters.
            unkeyed.spelling = HeaderValue::from_str(&target).ok();
            unkeyed.names.push(SPELLING);
        }
        for name in request.headers.keys() {
            if may_send_elsewhere(name.as_str()) && !repeats_the_key(name, request, source) {
                unkeyed.names.push(name.clone());
            }
        }
        unkeyed
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Returns `true` if a response may repeat a parameter that the key ignores in a URI: it would send other clients there.
    pub(super) fn may_be_repeated_in(&self, response: &HeaderMap) -> bool {
        self.has_ignored_params && [LOCATION, CONTENT_LOCATION].iter().any(|name| response.contains_key(name))
    }

    pub(super) fn names(&self) -> &[HeaderName] {
        &self.names
    }

    /// Returns `true` if a resource that varies by these fields separates this request from others.
    pub(super) fn is_covered_by(&self, names: &[HeaderName]) -> bool {
        self.names.iter().all(|name| names.contains(name))
    }

    /// Writes the spelling into a field, from which the secondary key is made.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        match &self.spelling {
            Some(spelling) => headers.insert(SPELLING, spelling.clone()),
            // A field of this name from the client is removed.
            None => headers.remove(SPELLING),
        };
    }

    /// Returns the fields from which a secondary key is made.
    pub(super) fn selecting<'a>(&self, headers: &'a HeaderMap, names: &[HeaderName]) -> Cow<'a, HeaderMap> {
        if !names.contains(&SPELLING) {
            return Cow::Borrowed(headers);
        }
        let mut headers = headers.clone();
        self.write(&mut headers);
        Cow::Owned(headers)
    }
}

/// Returns `true` if frameworks may treat a request as one with another method. A proxy that repeats the method changes nothing.
pub(super) fn overrides_method(request: &RequestView<'_>) -> bool {
    let differs = |name| single_value(request.headers, name) != Some(request.method.as_str());
    request.headers.keys().any(|name| replaces_method(name.as_str()) && differs(name))
}

/// Returns `true` if a field only repeats the key: a proxy in front of this cache sends the host, scheme and port of the client's
/// request.
fn repeats_the_key(name: &HeaderName, request: &RequestView<'_>, source: &SchemeSource) -> bool {
    let Some(value) = single_value(request.headers, name) else { return false };
    let is_scheme = |value: &str| value.eq_ignore_ascii_case(&scheme(request, source));
    let is_host = |value: &str| value.eq_ignore_ascii_case(&host(request));
    match name.as_str() {
        X_FORWARDED_PROTO | "x-forwarded-protocol" | "x-forwarded-scheme" | "x-scheme" | "x-url-scheme" => {
            is_scheme(value)
        }
        "x-forwarded-host" | "x-original-host" | "x-host" | "x-http-host-override" => is_host(value),
        "x-forwarded-port" => {
            value
                == host(request).rsplit_once(':').map_or_else(
                    || if is_scheme("https") { "443" } else { "80" }.to_owned(),
                    |(_, port)| port.to_owned(),
                )
        }
        "x-forwarded-uri" | "x-original-uri" => value == target_of(request.uri),
        // If the field contains only the path, the query would be lost.
        "x-forwarded-path" => request.uri.query().is_none() && value == target_of(request.uri),
        "forwarded" => parameters(value).all(|(name, value)| match () {
            () if name.eq_ignore_ascii_case("proto") => is_scheme(value),
            () if name.eq_ignore_ascii_case("host") => is_host(value),
            () => true,
        }),
        _ => false,
    }
}

/// Returns the scheme of the requested resource (RFC 9110 §4.2), in lower case.
pub(super) fn scheme<'a>(request: &RequestView<'a>, source: &'a SchemeSource) -> Cow<'a, str> {
    let of_uri = || request.uri.scheme_str().unwrap_or("http");
    let scheme = match source {
        SchemeSource::Uri => of_uri(),
        SchemeSource::Always(scheme) => scheme.as_str(),
        SchemeSource::Forwarded => forwarded_scheme(request.headers).map_or_else(of_uri, Scheme::as_str),
    };
    // `http` already writes the two usual schemes in lower case.
    if scheme.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(scheme.to_ascii_lowercase())
    } else {
        Cow::Borrowed(scheme)
    }
}

/// Returns `true` if the scheme of the requested resource is stated, by the URI, the rule or a proxy. Otherwise `http` is a guess.
pub(super) fn states_scheme(request: &RequestView<'_>, source: &SchemeSource) -> bool {
    match source {
        SchemeSource::Always(_) => true,
        SchemeSource::Forwarded if forwarded_scheme(request.headers).is_some() => true,
        SchemeSource::Uri | SchemeSource::Forwarded => request.uri.scheme().is_some(),
    }
}

/// Returns the scheme that a proxy reports in `X-Forwarded-Proto`, or in `proto` of a single `Forwarded` element (RFC 7239 §5.4).
fn forwarded_scheme(headers: &HeaderMap) -> Option<&'static Scheme> {
    const PROTO: HeaderName = HeaderName::from_static(X_FORWARDED_PROTO);
    let scheme_of_proxy = single_value(headers, &PROTO).or_else(|| {
        let mut parameters = parameters(single_value(headers, &FORWARDED)?);
        parameters.find(|(name, _)| name.eq_ignore_ascii_case("proto")).map(|(_, value)| value)
    })?;
    [&Scheme::HTTP, &Scheme::HTTPS]
        .into_iter()
        .find(|scheme| scheme_of_proxy.eq_ignore_ascii_case(scheme.as_str()))
}

/// Returns the `name=value` pairs of all elements, with or without quotes.
fn parameters(field: &str) -> impl Iterator<Item = (&str, &str)> {
    field.split([',', ';']).filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        Some((name.trim(), value.trim().trim_matches('"')))
    })
}

/// Returns the value of a field that is present exactly once.
fn single_value<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    Some(value.to_str().ok()?.trim())
}

pub(super) fn target_of(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", |target| target.as_str())
}

/// Returns the target without the query parameters that the cache ignores.
pub(super) fn without_ignored_params<'t>(target: &'t str, ignored: &[String]) -> Cow<'t, str> {
    let Some((path, query)) = target.split_once('?').filter(|_| !ignored.is_empty()) else {
        return Cow::Borrowed(target);
    };
    let counts = |pair: &&str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        !is_ignored(ignored, &decoded_param(name), value)
    };
    if query.split('&').all(|pair| counts(&pair)) {
        return Cow::Borrowed(target);
    }
    let left: Vec<&str> = query.split('&').filter(counts).collect();
    Cow::Owned(if left.is_empty() { path.to_owned() } else { format!("{path}?{}", left.join("&")) })
}

/// Returns one spelling for all spellings of a target that some origin treats as equal: with escapes only where RFC 3986 §3.3 and
/// §3.4 require them, without dot segments (§5.2.4), and with a query like that of a form, without empty pairs, without `=`
/// before an empty value, and with `+` for a space. Borrowed if the target is already spelled like this.
pub(super) fn canonical(target: &str) -> Cow<'_, str> {
    if is_canonical(target) {
        return Cow::Borrowed(target);
    }
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let mut spelled = String::with_capacity(target.len());
    push_normalised(&mut spelled, path, Component::Path);
    if spelled.contains("/.") {
        spelled = crate::headers::location::without_dots(&spelled);
    }
    let pairs = query.into_iter().flat_map(|query| query.split('&'));
    let mut pairs = pairs
        .map(|pair| match pair.split_once('=') {
            Some((name, "")) => name,
            _ => pair,
        })
        .filter(|pair| !pair.is_empty());
    if let Some(first) = pairs.next() {
        let mut separator = '?';
        for pair in std::iter::once(first).chain(pairs) {
            spelled.push(separator);
            separator = '&';
            push_normalised(&mut spelled, pair, Component::Query);
        }
    }
    if spelled == target { Cow::Borrowed(target) } else { Cow::Owned(spelled) }
}

/// Returns `true` if a fast check shows that the target is in canonical spelling, which is usual.
fn is_canonical(target: &str) -> bool {
    let (mut before, mut is_query) = (b' ', false);
    for &byte in target.as_bytes() {
        let is_usual = match (byte, before) {
            (b'?', _) if !is_query => {
                is_query = true;
                true
            }
            (b'.', b'/') => is_query,
            (b'&', b'?' | b'&' | b'=') => !is_query,
            _ if is_query => Component::Query.may_hold(byte) || matches!(byte, b'&' | b'=' | b'+'),
            _ => byte == b'/' || Component::Path.may_hold(byte),
        };
        if !is_usual {
            return false;
        }
        before = byte;
    }
    !(is_query && matches!(before, b'?' | b'&' | b'='))
}

/// The component of a URI, which determines the characters that need no escape.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Component {
    Path,
    Query,
}

impl Component {
    /// Returns `true` for the characters that RFC 3986 §3.3 and §3.4 allow, except those with a meaning in forms.
    const fn may_hold(self, byte: u8) -> bool {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => true,
            b'!' | b'$' | b'\'' | b'(' | b')' | b'*' | b',' | b';' | b':' | b'@' => true,
            b'&' | b'=' | b'+' => matches!(self, Self::Path),
            b'/' | b'?' => matches!(self, Self::Query),
            _ => false,
        }
    }
}

fn push_normalised(out: &mut String, text: &str, part: Component) {
    let bytes = text.as_bytes();
    let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = (byte == b'%').then(|| digit(at + 1).zip(digit(at + 2))).flatten();
        let escaped = escaped.and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
        match (escaped, byte) {
            (Some(b' '), _) if part == Component::Query => out.push('+'),
            (Some(byte), _) if part.may_hold(byte) => out.push(char::from(byte)),
            (None, b'/' | b'&' | b'=' | b'+' | b'%') => out.push(char::from(byte)),
            (None, byte) if part.may_hold(byte) => out.push(char::from(byte)),
            (Some(byte), _) | (None, byte) => out.push_str(&format!("%{byte:02X}")),
        }
        at += if escaped.is_some() { 3 } else { 1 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeySpace;
    use http::Request;

    #[test]
    fn equal_spellings_have_one_canonical_form() {
        let rows: &[(&str, &[&str])] = &[
            (
                "/p/7",
                &[
                    "/p/7?=",
                    "/p/7?=&&",
                    "/p/%37",
                    "/%70/7",
                    "/x/../p/7",
                    "/./p/7",
                    "/x/%2e%2E/p/7",
                    "/p/7?",
                    "/p/7?&",
                ],
            ),
            ("/users/a@b.example", &["/users/a%40b.example", "/users/a%40b%2Eexample"]),
            ("/a,b:c'(d)*!$&+=;", &["/a%2cb%3Ac%27%28d%29%2A%21%24%26%2b%3D%3b"]),
            ("/%C3%A9%20x%2Fy", &["/%c3%a9%20x%2fy"]),
            ("/s?q=a+b", &["/s?q=a%20b", "/s?q=a+b&", "/s?&q=%61+b", "/%73?q=a%20b"]),
            ("/s?q", &["/s?q=", "/s?&q=&"]),
            ("/s?at=/x?y:@,", &["/s?at=%2Fx%3fy%3A%40%2c"]),
            ("/s?a=%26%3D%2B%25", &["/s?a=%26%3d%2b%25"]),
            ("/100%", &[]),
            ("/100%zz?a=%", &[]),
            ("*", &[]),
        ];
        for (expected, spellings) in rows {
            assert!(matches!(canonical(expected), Cow::Borrowed(_)), "{expected}");
            for spelling in *spellings {
                let found = canonical(spelling);
                assert_eq!(&found, expected, "{spelling}");
                assert!(matches!(found, Cow::Owned(_)), "{spelling}");
            }
        }
        let apart =
            ["/a/b", "/a%2Fb", "/a%252Fb", "/a?b", "/a%3Fb", "/a?b=1&c=2", "/a?c=2&b=1", "/a/", "/A/b"];
        let found: std::collections::HashSet<_> = apart.iter().map(|target| canonical(target)).collect();
        assert_eq!(found.len(), apart.len());
    }

    #[test]
    fn ignored_parameters_neither_count_nor_select() {
        let space = KeySpace::new("p", None).unwrap();
        let rule = SharedRule { ignored_params: vec!["utm_*".into()], ..SharedRule::new(space) };
        let keyed = |target: &str| {
            let request = Request::get(target).header("host", "a.example").body(()).unwrap();
            let request = RequestView::from(&request);
            (rule.key(&request), Unkeyed::of(&request, &rule).is_empty())
        };
        for (target, same, is_canonical) in [
            ("/a?utm_source=mail", "/a", true),
            ("/a?utm_source=mail&b=1", "/a?b=1", true),
            ("/a?b=1&%75tm_source=a%2Cb&c=2", "/a?b=1&c=2", true),
            ("/a?utm=1", "/a?utm=1", true),
            ("/a?utm_source=x;id=7", "/a?utm_source=x;id=7", true),
            ("/%61?utm_source=mail", "/%61", false),
        ] {
            assert_eq!(keyed(target), keyed(same), "{target}");
            assert_eq!(keyed(target).1, is_canonical, "{target}");
        }
        for target in ["/a?utm=1", "/a?utm_source=x;id=7", "/a?utm_source=x%3Bid=7", "/a?utm_source;id=7"] {
            assert_ne!(keyed(target).0, keyed("/a").0, "{target}");
        }
    }

    proptest::proptest! {
        #[test]
        fn canonical_is_canonical(
            target in "/([ab2:@,-]|/|[.]|[?]|&|=|[+]|%2e|%2E|%61|%46|%40|%20|%2f|%3d|%25|%c3|%C3){0,10}"
        ) {
            let once = canonical(&target);
            proptest::prop_assert!(matches!(canonical(&once), Cow::Borrowed(_)), "{} {}", once, canonical(&once));
            proptest::prop_assert_eq!(once == target, matches!(once, Cow::Borrowed(_)));
        }
    }

    #[test]
    fn fields_that_repeat_the_key_do_not_select() {
        let names = |uri: &str, fields: &[(&str, &str)], source: &SchemeSource| {
            let mut request = Request::get(uri).header("host", "Shop.example:8443");
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let request = request.body(()).unwrap();
            let rule =
                SharedRule { scheme: source.clone(), ..SharedRule::new(KeySpace::new("p", None).unwrap()) };
            let unkeyed = Unkeyed::of(&RequestView::from(&request), &rule);
            unkeyed.names().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let https = SchemeSource::Always(Scheme::HTTPS);
        type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a SchemeSource, &'a str);
        let rows: &[Row<'_>] = &[
            ("/a", &[("accept", "x"), ("x-forwarded-for", "1.2.3.4")], &SchemeSource::Uri, ""),
            ("/%61", &[], &SchemeSource::Uri, "larder-spelling"),
            ("/a", &[("x-forwarded-proto", "http")], &SchemeSource::Uri, ""),
            ("/a", &[("x-forwarded-proto", "https")], &SchemeSource::Uri, "x-forwarded-proto"),
            ("/a", &[("x-forwarded-proto", "https")], &https, ""),
            ("/a", &[("x-forwarded-proto", "https")], &SchemeSource::Forwarded, ""),
            ("/a", &[("x-forwarded-proto", "https, http")], &SchemeSource::Forwarded, "x-forwarded-proto"),
            ("/a", &[("x-forwarded-host", "shop.example:8443")], &https, ""),
            ("/a", &[("x-forwarded-host", "evil.example")], &https, "x-forwarded-host"),
            ("/a", &[("x-forwarded-port", "8443")], &https, ""),
            ("/a", &[("forwarded", "for=1.2.3.4;Proto=https;host=\"shop.example:8443\"")], &https, ""),
            ("/a", &[("forwarded", "for=1.2.3.4, host=evil.example")], &https, "forwarded"),
            ("/a", &[("forwarded", "proto=http"), ("forwarded", "proto=https")], &https, "forwarded"),
            (
                "/a",
                &[("x-original-url", "/a"), ("x-rewrite-url", "/b")],
                &https,
                "x-original-url x-rewrite-url",
            ),
            ("/a", &[("x-forwarded-path", "/b"), ("x-scheme", "http")], &https, "x-forwarded-path x-scheme"),
            ("/a", &[("x-forwarded-path", "/a"), ("x-scheme", "https")], &https, ""),
            ("/a?b", &[("x-forwarded-path", "/a")], &https, "x-forwarded-path"),
            ("/a?b", &[("x-forwarded-path", "/a?b")], &https, "x-forwarded-path"),
            ("/a", &[("x-http-path-override", "/a")], &https, "x-http-path-override"),
            ("/a", &[("x-http-host-override", "evil.example")], &https, "x-http-host-override"),
            (
                "/a",
                &[("x-override-url", "/b"), ("x-script-name", "/c")],
                &https,
                "x-override-url x-script-name",
            ),
        ];
        for (uri, fields, source, expected) in rows {
            assert_eq!(names(uri, fields, source), *expected, "{uri} {fields:?} {source:?}");
        }
    }
}
