//! `Vary` and the request fields that it names (RFC 9110 §12.5.5).

use http::header::{ACCEPT_ENCODING, ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_ENCODING, ORIGIN, VARY};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::headers::accept_encoding::is_registered;
use crate::headers::cache_control::list;

/// Stands for all codings in `Accept-Encoding`, including unregistered ones, among the names of the selecting fields. Only
/// responses in an unregistered coding need it. Otherwise each made-up coding would have a variant of its own.
pub(crate) const EVERY_CODING: HeaderName = HeaderName::from_static("larder-every-coding");

/// The greatest number of fields in `Vary`. A response with more is not stored.
pub(crate) const MAX_NAMES: usize = 16;

pub(crate) fn sorted(mut names: Vec<HeaderName>) -> Vec<HeaderName> {
    names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    names
}

/// The `Vary` of a response on an undeclared route that varies by nothing else.
pub(crate) const USUAL_CREDENTIALS: &str = "Authorization, Cookie";

/// Adds names to `Vary`, in one field, unless they are present or `*` covers them.
pub(crate) fn add_vary<'a>(response: &mut HeaderMap, names: impl Iterator<Item = &'a HeaderName>) {
    let is_told = |name: &HeaderName| {
        let told = response.get_all(VARY).iter().flat_map(|field| list(field.as_bytes()));
        let mut told =
            told.filter(|told| *told == b"*" || told.eq_ignore_ascii_case(name.as_str().as_bytes()));
        told.next().is_some()
    };
    let missing: Vec<&HeaderName> = names.filter(|name| **name != EVERY_CODING && !is_told(name)).collect();
    if missing.is_empty() {
        return;
    }
    let mut text = Vec::with_capacity(64);
    for field in response.get_all(VARY) {
        push_listed(&mut text, field.as_bytes());
    }
    for name in missing {
        push_listed(&mut text, capitalised(name).as_bytes());
    }
    if let Ok(value) = HeaderValue::from_bytes(&text) {
        response.insert(VARY, value);
    }
}

fn push_listed(text: &mut Vec<u8>, more: &[u8]) {
    if !text.is_empty() && !more.is_empty() {
        text.extend_from_slice(b", ");
    }
    text.extend_from_slice(more);
}

/// Returns a name in the capitalisation of the RFCs: `Accept-Encoding`.
fn capitalised(name: &HeaderName) -> String {
    let mut begins = true;
    let letters = name.as_str().chars().map(|letter| {
        let letter = if begins { letter.to_ascii_uppercase() } else { letter };
        begins = letter == '-';
        letter
    });
    letters.collect()
}

/// Returns the request fields by which a response varies. `Err` if it can't be stored: `Vary: *`, an invalid name, or
/// too many names.
pub(crate) fn selecting_fields(response: &HeaderMap) -> Result<Vec<HeaderName>, ()> {
    let mut names = Vec::new();
    for field in response.get_all(VARY) {
        for name in list(field.as_bytes()) {
            if name == b"*" {
                return Err(());
            }
            names.push(HeaderName::from_bytes(name).map_err(|_| ())?);
        }
    }
    // The coding was chosen for this client. A handler may omit it from `Vary`, and gzip must not reach every client.
    for coding in response.get_all(CONTENT_ENCODING).iter().flat_map(|field| list(field.as_bytes())) {
        let coding = coding.to_ascii_lowercase();
        let known = [&b"identity"[..], b"x-gzip", b"x-compress", b"aws-chunked"];
        if !is_registered(&coding) && !known.contains(&&*coding) {
            names.push(EVERY_CODING);
        }
        names.push(ACCEPT_ENCODING);
    }
    // The handler allowed one origin by name (Fetch §3.3.3). The browser of another origin would refuse the response.
    if response.get(ACCESS_CONTROL_ALLOW_ORIGIN).is_some_and(|origin| origin != "*") {
        names.push(ORIGIN);
    }
    let names = sorted(names);
    if names.len() > MAX_NAMES { Err(()) } else { Ok(names) }
}

#[cfg(test)]
mod tests {
    use http::header::ACCEPT_LANGUAGE;

    use super::*;

    fn map(fields: &[(HeaderName, &str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| (n.clone(), HeaderValue::from_str(v).unwrap())).collect()
    }

    #[test]
    fn selecting_fields_of_responses() {
        let fields = |response: &[(HeaderName, &str)]| selecting_fields(&map(response));
        assert_eq!(fields(&[]), Ok(vec![]));
        assert_eq!(
            fields(&[(VARY, "Origin, accept-language"), (VARY, "ORIGIN")]),
            Ok(vec![ACCEPT_LANGUAGE, ORIGIN])
        );
        assert_eq!(fields(&[(CONTENT_ENCODING, "gzip")]), Ok(vec![ACCEPT_ENCODING]));
        assert_eq!(fields(&[(VARY, "origin, *")]), Err(()));
        assert_eq!(fields(&[(VARY, "not a name")]), Err(()));
        let many = (0..=MAX_NAMES).map(|i| format!("x-{i}")).collect::<Vec<_>>().join(",");
        assert_eq!(fields(&[(VARY, &many)]), Err(()));
    }

    #[test]
    fn vary_lists_each_name_once_in_one_field() {
        let names = [http::header::AUTHORIZATION, http::header::COOKIE];
        for (said, expected) in [
            (&[][..], &["Authorization, Cookie"][..]),
            (&["accept-encoding"], &["accept-encoding, Authorization, Cookie"]),
            (&["origin", "COOKIE, accept"], &["origin, COOKIE, accept, Authorization"]),
            (&["cookie,authorization"], &["cookie,authorization"]),
            (&["*"], &["*"]),
            (&[""], &["Authorization, Cookie"]),
        ] {
            let mut response: HeaderMap = HeaderMap::new();
            for value in said {
                response.append(VARY, HeaderValue::from_static(value));
            }
            for _ in 0..2 {
                add_vary(&mut response, names.iter());
                let told: Vec<_> =
                    response.get_all(VARY).iter().map(|value| value.to_str().unwrap()).collect();
                assert_eq!(told, expected, "{said:?}");
            }
        }
    }

    #[test]
    fn negotiated_responses_vary_without_a_vary_field() {
        let fields = |response: &[(HeaderName, &str)]| selecting_fields(&map(response));
        assert_eq!(fields(&[(ACCESS_CONTROL_ALLOW_ORIGIN, "https://a.example")]), Ok(vec![ORIGIN]));
        assert_eq!(fields(&[(ACCESS_CONTROL_ALLOW_ORIGIN, "*")]), Ok(vec![]));
        assert_eq!(fields(&[(CONTENT_ENCODING, "zstd")]), Ok(vec![ACCEPT_ENCODING]));
        assert_eq!(fields(&[(CONTENT_ENCODING, "made-up")]), Ok(vec![ACCEPT_ENCODING, EVERY_CODING]));
    }

    #[test]
    fn vary_does_not_name_the_stand_in_for_every_coding() {
        let mut response = HeaderMap::new();
        add_vary(&mut response, [ACCEPT_ENCODING, EVERY_CODING].iter());
        assert_eq!(response.get(VARY), Some(&HeaderValue::from_static("Accept-Encoding")));
    }
}
