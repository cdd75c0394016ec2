//! `Cache-Control` in requests and responses (RFC 9111 §5.2).
//!
//! The parser accepts anything that a peer may send: several fields, any case, quoted strings with escapes and commas, empty list
//! elements, and invalid bytes. It skips what it can't understand (RFC 9111 §5.2.3). It never relaxes a restriction: of two
//! lifetimes the shorter applies, and a lifetime that isn't a number is 0.

use http::header::{CACHE_CONTROL, PRAGMA};
use http::{HeaderMap, HeaderName, HeaderValue};

/// The directives of a request (RFC 9111 §5.2.1). Times are in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    /// `no-cache`: the response must come from the origin or be validated by it (§5.2.1.4).
    pub no_cache: bool,
    /// `no-store`: the response must not be stored, and the request bypasses the cache (§5.2.1.5).
    pub no_store: bool,
    /// `max-age`: the greatest acceptable age (§5.2.1.1).
    pub max_age: Option<u64>,
    /// `max-stale`: the longest acceptable time after the freshness lifetime; `u64::MAX` for any time (§5.2.1.2).
    pub max_stale: Option<u64>,
    /// `min-fresh`: the least time that the response must stay fresh (§5.2.1.3).
    pub min_fresh: Option<u64>,
    /// `only-if-cached`: the response must come from the cache (§5.2.1.7).
    pub only_if_cached: bool,
}

impl RequestDirectives {
    /// Reads the directives from a request's header fields.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        if !headers.contains_key(CACHE_CONTROL) {
            // RFC 9111 §5.4: old clients have only this field.
            found.no_cache = directives(headers, &PRAGMA).any(|d| d.is("no-cache"));
            return found;
        }
        for directive in directives(headers, &CACHE_CONTROL) {
            match_directive(directive, |name, seconds| match name {
                b"no-cache" => found.no_cache = true,
                b"no-store" => found.no_store = true,
                b"only-if-cached" => found.only_if_cached = true,
                b"max-age" => shortest(&mut found.max_age, seconds()),
                b"max-stale" if directive.value.is_none() => shortest(&mut found.max_stale, u64::MAX),
                b"max-stale" => shortest(&mut found.max_stale, seconds()),
                b"min-fresh" => longest(&mut found.min_fresh, seconds()),
                _ => {}
            });
        }
        found
    }

    /// Returns `true` if only a new response of the handler is acceptable: `max-age=0` means the same as `no-cache`, whatever the
    /// clock says.
    pub(crate) fn wants_new(&self) -> bool {
        self.no_cache || self.max_age == Some(0)
    }
}

/// The directives of a response (RFC 9111 §5.2.2, RFC 5861, RFC 8246). Times are in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseDirectives {
    /// `no-store`: the response must not be stored (§5.2.2.5).
    pub no_store: bool,
    /// `no-cache`: the response must be validated before each use (§5.2.2.4). Also set if the directive names fields, which asks
    /// for less.
    pub no_cache: bool,
    /// `private`: a shared cache must not store the response (§5.2.2.7). Also set if the directive names fields.
    pub private: bool,
    /// `public`: a shared cache may store the response although the request had credentials (§5.2.2.9).
    pub public: bool,
    /// `must-revalidate`: the response must not be used once it is stale (§5.2.2.2).
    pub must_revalidate: bool,
    /// `proxy-revalidate`: the same, for shared caches (§5.2.2.8).
    pub proxy_revalidate: bool,
    /// `must-understand`: the response must be stored only if the cache understands its status code (§5.2.2.3).
    pub must_understand: bool,
    /// `no-transform`: the content must not be transformed (§5.2.2.6).
    pub no_transform: bool,
    /// `immutable`: the content doesn't change while it is fresh (RFC 8246).
    pub immutable: bool,
    /// `max-age`: the freshness lifetime (§5.2.2.1).
    pub max_age: Option<u64>,
    /// `s-maxage`: the freshness lifetime in shared caches (§5.2.2.10).
    pub s_maxage: Option<u64>,
    /// `stale-while-revalidate`: the time after the freshness lifetime in which the response may be used during a refresh (RFC
    /// 5861 §3).
    pub stale_while_revalidate: Option<u64>,
    /// `stale-if-error`: the time after the freshness lifetime in which the response may be used if the origin fails (RFC 5861
    /// §4).
    pub stale_if_error: Option<u64>,
}

impl ResponseDirectives {
    /// Reads the directives from a response's header fields.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        Self::of_field(headers, &CACHE_CONTROL)
    }

    /// Reads the directives from another field with the same grammar.
    #[must_use]
    pub fn of_field(headers: &HeaderMap, field: &HeaderName) -> Self {
        let mut found = Self::default();
        for directive in directives(headers, field) {
            match_directive(directive, |name, seconds| match name {
                b"no-store" => found.no_store = true,
                b"no-cache" => found.no_cache = true,
                b"private" => found.private = true,
                b"public" => found.public = true,
                b"must-revalidate" => found.must_revalidate = true,
                b"proxy-revalidate" => found.proxy_revalidate = true,
                b"must-understand" => found.must_understand = true,
                b"no-transform" => found.no_transform = true,
                b"immutable" => found.immutable = true,
                b"max-age" => shortest(&mut found.max_age, seconds()),
                b"s-maxage" => shortest(&mut found.s_maxage, seconds()),
                b"stale-while-revalidate" => shortest(&mut found.stale_while_revalidate, seconds()),
                b"stale-if-error" => shortest(&mut found.stale_if_error, seconds()),
                _ => {}
            });
        }
        found
    }
}

/// `no-cache` and `private`, with and without field names (RFC 9111 §5.2.2.4 and §5.2.2.7).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Qualified {
    /// `no-cache` for the whole response.
    pub(crate) no_cache: bool,
    /// `private` for the whole response.
    pub(crate) private: bool,
    /// The fields that either directive names.
    pub(crate) fields: Vec<HeaderName>,
}

impl Qualified {
    pub(crate) fn of_field(headers: &HeaderMap, field: &HeaderName) -> Self {
        let mut found = Self::default();
        for directive in directives(headers, field) {
            let whole = match () {
                () if directive.is("no-cache") => &mut found.no_cache,
                () if directive.is("private") => &mut found.private,
                () => continue,
            };
            match directive.value.and_then(field_names) {
                Some(names) => found.fields.extend(names),
                // An argument without a valid name restricts the whole response.
                None => *whole = true,
            }
        }
        found
    }
}

/// Returns the names in a directive's argument, or `None` if it contains anything else.
pub(crate) fn field_names(argument: &[u8]) -> Option<Vec<HeaderName>> {
    let names =
        list(unquote(argument)).map(|name| HeaderName::from_bytes(name).ok()).collect::<Option<Vec<_>>>()?;
    (!names.is_empty()).then_some(names)
}

/// A directive as it is written in the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Directive<'a> {
    name: &'a [u8],
    value: Option<&'a [u8]>,
}

impl Directive<'_> {
    fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }
}

/// The length of the longest known name.
const LONGEST_NAME: usize = 24;

/// Calls `apply` with the name in lower case and a function that reads the value as seconds.
fn match_directive(directive: Directive<'_>, apply: impl FnOnce(&[u8], &dyn Fn() -> u64)) {
    let mut lower = [0; LONGEST_NAME];
    let Some(lower) = lower.get_mut(..directive.name.len()) else { return };
    lower.copy_from_slice(directive.name);
    lower.make_ascii_lowercase();
    apply(lower, &|| delta_seconds(directive.value));
}

/// Parses a number of seconds (RFC 9111 §1.2.2). A number that is too large saturates. Anything else is 0, which is the safe
/// value for all directives but `min-fresh`, where it has no effect.
fn delta_seconds(value: Option<&[u8]>) -> u64 {
    value.map(unquote).and_then(number).unwrap_or(0)
}

/// Parses digits without a sign. Returns the maximum if the number is too large.
pub(crate) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |number: u64, digit: &u8| number.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    Some(digits.iter().fold(0, add))
}

/// Removes the quotes of an argument: recipients should accept both forms (RFC 9111 §5.2). Numbers need no unescaping.
fn unquote(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value)
}

fn shortest(held: &mut Option<u64>, seconds: u64) {
    *held = Some(held.map_or(seconds, |held| held.min(seconds)));
}

fn longest(held: &mut Option<u64>, seconds: u64) {
    *held = Some(held.map_or(seconds, |held| held.max(seconds)));
}

/// Returns the directives of all fields of one name, in order (several fields are one list, RFC 9110 §5.3).
fn directives<'a>(headers: &'a HeaderMap, field: &HeaderName) -> impl Iterator<Item = Directive<'a>> {
    headers.get_all(field).iter().map(HeaderValue::as_bytes).flat_map(|text| list(text).filter_map(directive))
}

fn directive(element: &[u8]) -> Option<Directive<'_>> {
    let (name, value) = match element.iter().position(|&byte| byte == b'=') {
        Some(at) => (element[..at].trim_ascii(), Some(element[at + 1..].trim_ascii())),
        None => (element, None),
    };
    (!name.is_empty()).then_some(Directive { name, value })
}

/// Returns the elements of a comma-separated list, trimmed, without empty ones. Commas in quoted strings don't separate (RFC 9110
/// §5.6.1). A quote without an end extends to the end of the field.
pub(crate) fn list(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = element_end(text);
        rest = text.get(end + 1..);
        Some(text[..end].trim_ascii())
    })
    .filter(|element| !element.is_empty())
}

fn element_end(text: &[u8]) -> usize {
    let (mut quoted, mut escaped) = (false, false);
    for (index, &byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return index,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(fields: &[&str]) -> HeaderMap {
        fields
            .iter()
            .map(|value| (CACHE_CONTROL, HeaderValue::from_bytes(value.as_bytes()).unwrap()))
            .collect()
    }

    fn request(fields: &[&str]) -> RequestDirectives {
        RequestDirectives::of(&headers(fields))
    }

    fn response(fields: &[&str]) -> ResponseDirectives {
        ResponseDirectives::of(&headers(fields))
    }

    #[test]
    fn requests() {
        let none = RequestDirectives::default();
        for (fields, expected) in [
            (&["no-cache"][..], RequestDirectives { no_cache: true, ..none }),
            (&["No-Cache"], RequestDirectives { no_cache: true, ..none }),
            (&["no-store, max-age=5"], RequestDirectives { no_store: true, max_age: Some(5), ..none }),
            (&["max-age=5", "no-cache"], RequestDirectives { max_age: Some(5), no_cache: true, ..none }),
            (&["max-age=\"5\""], RequestDirectives { max_age: Some(5), ..none }),
            (&["max-age = 5"], RequestDirectives { max_age: Some(5), ..none }),
            (&["max-age=9, max-age=5"], RequestDirectives { max_age: Some(5), ..none }),
            (&["max-age=99999999999999999999999"], RequestDirectives { max_age: Some(u64::MAX), ..none }),
            (&["max-age=-1"], RequestDirectives { max_age: Some(0), ..none }),
            (&["max-age=1.5"], RequestDirectives { max_age: Some(0), ..none }),
            (&["max-age"], RequestDirectives { max_age: Some(0), ..none }),
            (&["max-age="], RequestDirectives { max_age: Some(0), ..none }),
            (&["max-stale"], RequestDirectives { max_stale: Some(u64::MAX), ..none }),
            (
                &["max-stale=3, min-fresh=2"],
                RequestDirectives { max_stale: Some(3), min_fresh: Some(2), ..none },
            ),
            (&[",, ,only-if-cached,"], RequestDirectives { only_if_cached: true, ..none }),
            (&["x=\"no-store, no-cache\""], none),
            (&["x=\"a\\\"b, no-store\", no-cache"], RequestDirectives { no_cache: true, ..none }),
            (&["x=\"never closed, no-store"], none),
            (&["no-storex, xno-store, =, =no-store"], none),
            (&["a-name-far-longer-than-any-directive-known=1"], none),
            (&["\u{e9}, no-cache"], RequestDirectives { no_cache: true, ..none }),
        ] {
            assert_eq!(request(fields), expected, "{fields:?}");
        }
    }

    #[test]
    fn directives_with_field_names() {
        let qualified = |text: &str| Qualified::of_field(&headers(&[text]), &CACHE_CONTROL);
        let none = Qualified::default();
        let names = |names: &[&'static str]| names.iter().map(|name| HeaderName::from_static(name)).collect();
        for (text, expected) in [
            ("max-age=1", none.clone()),
            ("no-cache", Qualified { no_cache: true, ..none.clone() }),
            ("private, max-age=1", Qualified { private: true, ..none.clone() }),
            ("no-cache=\"A, b\"", Qualified { fields: names(&["a", "b"]), ..none.clone() }),
            ("private=a", Qualified { fields: names(&["a"]), ..none.clone() }),
            ("private=a, private", Qualified { private: true, fields: names(&["a"]), ..none.clone() }),
            ("no-cache=\"\"", Qualified { no_cache: true, ..none.clone() }),
            ("no-cache=\"not a name\"", Qualified { no_cache: true, ..none.clone() }),
        ] {
            assert_eq!(qualified(text), expected, "{text}");
        }
    }

    #[test]
    fn pragma_applies_only_without_cache_control() {
        let mut headers = HeaderMap::new();
        headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
        assert!(RequestDirectives::of(&headers).no_cache);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
        assert!(!RequestDirectives::of(&headers).no_cache);
    }

    #[test]
    fn responses() {
        let none = ResponseDirectives::default();
        for (fields, expected) in [
            (&["private, max-age=60"][..], ResponseDirectives { private: true, max_age: Some(60), ..none }),
            (&["private=\"set-cookie\""], ResponseDirectives { private: true, ..none }),
            (&["no-cache=\"a, b\", PUBLIC"], ResponseDirectives { no_cache: true, public: true, ..none }),
            (&["s-maxage=10", "s-maxage=20"], ResponseDirectives { s_maxage: Some(10), ..none }),
            (
                &["max-age=1, stale-while-revalidate=2, stale-if-error=3"],
                ResponseDirectives {
                    max_age: Some(1),
                    stale_while_revalidate: Some(2),
                    stale_if_error: Some(3),
                    ..none
                },
            ),
            (
                &["must-revalidate, proxy-revalidate, must-understand, no-store, immutable, no-transform"],
                ResponseDirectives {
                    must_revalidate: true,
                    proxy_revalidate: true,
                    must_understand: true,
                    no_store: true,
                    immutable: true,
                    no_transform: true,
                    ..none
                },
            ),
        ] {
            assert_eq!(response(fields), expected, "{fields:?}");
        }
    }

    proptest! {
        #[test]
        fn directive_is_found_next_to_any_bytes(
            noise in proptest::collection::vec(32u8..=255, 0..40).prop_filter("no quotes or DEL", |b| !b.contains(&b'"') && !b.contains(&127)),
        ) {
            let mut headers = HeaderMap::new();
            headers.append(CACHE_CONTROL, HeaderValue::from_bytes(&noise).unwrap());
            headers.append(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            prop_assert!(RequestDirectives::of(&headers).no_store);
            prop_assert!(ResponseDirectives::of(&headers).no_store);
        }
    }
}
