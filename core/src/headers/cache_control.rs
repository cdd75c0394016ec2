//! `Cache-Control`, as requests and responses use it (RFC 9111 §5.2).
//!
//! The parser takes whatever a peer may send: several fields, any case, quoted strings with escapes and commas in
//! them, empty list elements, garbage. What can't be understood is skipped (RFC 9111 §5.2.3) and never restricts less
//! than what could be understood: of two lifetimes the shorter counts, and a lifetime that is no number counts as 0.

use http::header::{CACHE_CONTROL, PRAGMA};
use http::{HeaderMap, HeaderName, HeaderValue};

/// What a request asks of caches (RFC 9111 §5.2.1). Times are in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    /// Don't answer from the cache without asking the origin (§5.2.1.4).
    pub no_cache: bool,
    /// Don't store the answer, and keep out of the way (§5.2.1.5).
    pub no_store: bool,
    /// The greatest age that is acceptable (§5.2.1.1).
    pub max_age: Option<u64>,
    /// How long past its freshness an answer is still acceptable; `u64::MAX` for any time (§5.2.1.2).
    pub max_stale: Option<u64>,
    /// How much longer the answer must stay fresh (§5.2.1.3).
    pub min_fresh: Option<u64>,
    /// Answer from the cache or not at all (§5.2.1.7).
    pub only_if_cached: bool,
}

impl RequestDirectives {
    /// Reads them from a request's header fields.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        if !headers.contains_key(CACHE_CONTROL) {
            // RFC 9111 §5.4: an old client's only way to say it.
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

    /// Whether only an answer will do that the handler gives from now on: `max-age=0` means the same as `no-cache`,
    /// whatever the clock says.
    pub(crate) fn wants_new(&self) -> bool {
        self.no_cache || self.max_age == Some(0)
    }
}

/// What a response allows caches to do (RFC 9111 §5.2.2, RFC 5861, RFC 8246). Times are in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseDirectives {
    /// Don't store it (§5.2.2.5).
    pub no_store: bool,
    /// Store it, but ask before each use (§5.2.2.4). Also set when it names fields: that asks for less, never for more.
    pub no_cache: bool,
    /// Not for shared caches (§5.2.2.7). Also set when it names fields.
    pub private: bool,
    /// Shared caches may store it though the request carried credentials (§5.2.2.9).
    pub public: bool,
    /// Not to be used once stale (§5.2.2.2).
    pub must_revalidate: bool,
    /// The same, for shared caches (§5.2.2.8).
    pub proxy_revalidate: bool,
    /// Store it only if the status code is understood (§5.2.2.3).
    pub must_understand: bool,
    /// Not to be converted (§5.2.2.6).
    pub no_transform: bool,
    /// Won't change while it is fresh (RFC 8246).
    pub immutable: bool,
    /// Freshness lifetime (§5.2.2.1).
    pub max_age: Option<u64>,
    /// Freshness lifetime for shared caches (§5.2.2.10).
    pub s_maxage: Option<u64>,
    /// For how long after that it may be used while it is refreshed (RFC 5861 §3).
    pub stale_while_revalidate: Option<u64>,
    /// For how long after that it may be used when the origin fails (RFC 5861 §4).
    pub stale_if_error: Option<u64>,
}

impl ResponseDirectives {
    /// Reads them from a response's header fields.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        Self::of_field(headers, &CACHE_CONTROL)
    }

    /// Reads them from a field of another name with the same grammar.
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

/// `no-cache` and `private` with and without field names (RFC 9111 §5.2.2.4 and §5.2.2.7).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Qualified {
    /// `no-cache` for the whole response.
    pub(crate) no_cache: bool,
    /// `private` for the whole response.
    pub(crate) private: bool,
    /// The fields that either names.
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
                // What names nothing that can be understood restricts everything.
                None => *whole = true,
            }
        }
        found
    }
}

/// The names in the argument of a directive, if it is nothing else.
fn field_names(argument: &[u8]) -> Option<Vec<HeaderName>> {
    let names =
        list(unquote(argument)).map(|name| HeaderName::from_bytes(name).ok()).collect::<Option<Vec<_>>>()?;
    (!names.is_empty()).then_some(names)
}

/// One directive, as it stands in the field.
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

/// The longest name that is known here.
const LONGEST_NAME: usize = 24;

/// Calls `apply` with the name in lower case and a way to read the value as seconds.
fn match_directive(directive: Directive<'_>, apply: impl FnOnce(&[u8], &dyn Fn() -> u64)) {
    let mut lower = [0; LONGEST_NAME];
    let Some(lower) = lower.get_mut(..directive.name.len()) else { return };
    lower.copy_from_slice(directive.name);
    lower.make_ascii_lowercase();
    apply(lower, &|| delta_seconds(directive.value));
}

/// RFC 9111 §1.2.2. Too large a number saturates; what is no number counts as no time at all, which is the safe side
/// for every directive but `min-fresh`, where it is the same as not having said it.
fn delta_seconds(value: Option<&[u8]>) -> u64 {
    value.map(unquote).and_then(number).unwrap_or(0)
}

/// Digits alone, without a sign; more than fit are the greatest number.
pub(crate) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |number: u64, digit: &u8| number.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    Some(digits.iter().fold(0, add))
}

/// Recipients ought to take both forms of an argument (RFC 9111 §5.2). Numbers need no unescaping.
fn unquote(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value)
}

fn shortest(held: &mut Option<u64>, seconds: u64) {
    *held = Some(held.map_or(seconds, |held| held.min(seconds)));
}

fn longest(held: &mut Option<u64>, seconds: u64) {
    *held = Some(held.map_or(seconds, |held| held.max(seconds)));
}

/// The directives of all fields of one name, in order (RFC 9110 §5.3: several fields are one list).
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

/// The elements of a comma-separated list, trimmed, without the empty ones; commas in quoted strings don't separate
/// (RFC 9110 §5.6.1). A quote that is never closed runs to the end.
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
    fn directives_that_name_fields() {
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
    fn pragma_counts_only_without_cache_control() {
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
        fn any_bytes_are_survived_and_a_directive_beside_them_is_found(
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
