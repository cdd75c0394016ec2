//! `Vary`: one resource, several stored responses (RFC 9111 §4.1).
//!
//! Under the resource's key lies a [`Variants`] record with the fields that select and an id. Each variant lies under
//! a key of its own and carries the id: whoever deletes the record has deleted every variant with it.

use http::header::{ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CONTENT_ENCODING, VARY};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::directives::list;
use crate::provenance::Provenance;

/// More fields than this in `Vary`, and the response is not stored.
const MAX_NAMES: usize = 16;

/// More variants than this of one resource are not stored.
pub const MAX_VARIANTS: usize = 64;

/// Which request fields select a variant of a resource, and which variants there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variants {
    pub(crate) id: u64,
    /// Which requests it is for.
    pub(crate) provenance: Provenance,
    pub(crate) names: Vec<HeaderName>,
    pub(crate) secondary_keys: Vec<[u8; 16]>,
}

impl Variants {
    /// A resource that varies by these fields. `id` tells this record from every other that lay under the same key.
    #[must_use]
    pub fn new(id: u64, names: Vec<HeaderName>) -> Self {
        Self { id, provenance: Provenance::default(), names, secondary_keys: Vec::new() }
    }

    /// The same, found by requests of this provenance.
    #[must_use]
    pub fn by(self, provenance: Provenance) -> Self {
        Self { provenance, ..self }
    }

    /// What the variants carry to show that they belong to this record.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// The selecting fields, sorted.
    #[must_use]
    pub fn names(&self) -> &[HeaderName] {
        &self.names
    }

    /// The secondary key of a request: a hash of the selecting fields.
    #[must_use]
    pub fn secondary_key(&self, request: &HeaderMap) -> SecondaryKey {
        SecondaryKey::of(&self.names, request)
    }

    /// The same for a shared cache, which normalises what it may (RFC 9111 §4.1).
    pub(crate) fn normalised_key(&self, request: &HeaderMap) -> SecondaryKey {
        SecondaryKey::normalised(&self.names, request)
    }

    /// The variants that are listed.
    pub fn secondary_keys(&self) -> impl Iterator<Item = SecondaryKey> {
        self.secondary_keys.iter().copied().map(SecondaryKey)
    }

    /// Adds the variants of another record of the same resource, as far as there is room.
    pub fn add_all(&mut self, other: &Self) {
        for key in other.secondary_keys() {
            self.add(key);
        }
    }

    /// Adds a variant to the list. `None` when it is there already; `Some(false)` when the list is full.
    pub(crate) fn add(&mut self, key: SecondaryKey) -> Option<bool> {
        if self.secondary_keys.contains(&key.0) {
            return None;
        }
        let room = self.secondary_keys.len() < MAX_VARIANTS;
        if room {
            self.secondary_keys.push(key.0);
        }
        Some(room)
    }
}

/// A hash of the fields that select a variant. Their values may be secrets, so they never appear in a key themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SecondaryKey(pub(crate) [u8; 16]);

impl SecondaryKey {
    fn of(names: &[HeaderName], request: &HeaderMap) -> Self {
        Self::hash(names, request, |_| false)
    }

    /// RFC 9111 §4.1 allows what is known not to change a field's meaning. Where the elements of a list are weighted, their
    /// order has none (RFC 9110 §12.5.4), and languages, codings and character sets are the same in any case.
    fn normalised(names: &[HeaderName], request: &HeaderMap) -> Self {
        Self::hash(names, request, |name| [ACCEPT_LANGUAGE, ACCEPT_ENCODING, ACCEPT_CHARSET].contains(name))
    }

    fn hash(names: &[HeaderName], request: &HeaderMap, is_set: impl Fn(&HeaderName) -> bool) -> Self {
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_be_bytes());
            hasher.update(bytes);
        };
        for name in names {
            part(name.as_str().as_bytes());
            // Absent and empty are not the same; several fields are one list (RFC 9110 §5.3).
            let mut values = request.get_all(name).iter().map(HeaderValue::as_bytes).peekable();
            part(if values.peek().is_some() { b"+" } else { b"-" });
            let elements = values.flat_map(list);
            if is_set(name) {
                let mut elements: Vec<_> = elements.map(<[u8]>::to_ascii_lowercase).collect();
                elements.sort_unstable();
                elements.iter().for_each(|element| part(element));
            } else {
                elements.for_each(&mut part);
            }
            part(b"");
        }
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(key)
    }

    /// In hexadecimal digits.
    #[must_use]
    pub fn to_hex(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }
}

/// By which request fields a response varies. `Err` when it can't be stored for that: `Vary: *`, a name that is
/// none, too many names.
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
    // A coding was chosen for this client. Handlers that forget to say so must not hand gzip to everybody.
    if response.contains_key(CONTENT_ENCODING) {
        names.push(ACCEPT_ENCODING);
    }
    names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    if names.len() > MAX_NAMES { Err(()) } else { Ok(names) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::ORIGIN;

    fn map(fields: &[(HeaderName, &str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| (n.clone(), HeaderValue::from_str(v).unwrap())).collect()
    }

    #[test]
    fn the_fields_that_select() {
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
    fn requests_that_differ_in_a_selecting_field_differ_in_key() {
        let variants = Variants::new(1, vec![ACCEPT_LANGUAGE, ORIGIN]);
        let key = |request: &[(HeaderName, &str)]| variants.secondary_key(&map(request)).to_hex();
        let requests: [&[(HeaderName, &str)]; 7] = [
            &[],
            &[(ACCEPT_LANGUAGE, "")],
            &[(ACCEPT_LANGUAGE, "fr")],
            &[(ORIGIN, "fr")],
            &[(ACCEPT_LANGUAGE, "fr"), (ORIGIN, "")],
            &[(ACCEPT_LANGUAGE, "fr,en")],
            &[(ACCEPT_LANGUAGE, "fren")],
        ];
        let keys: std::collections::HashSet<String> = requests.iter().map(|r| key(r)).collect();
        assert_eq!(keys.len(), requests.len());
        assert_eq!(
            key(&[(ACCEPT_LANGUAGE, "fr, en")]),
            key(&[(ACCEPT_LANGUAGE, "fr"), (ACCEPT_LANGUAGE, "en"), (http::header::HOST, "x")])
        );
    }

    #[test]
    fn a_shared_cache_normalises_weighted_lists_and_nothing_else() {
        let variants = Variants::new(1, vec![ACCEPT_LANGUAGE, ORIGIN]);
        let key = |request: &[(HeaderName, &str)]| variants.normalised_key(&map(request));
        let expected = key(&[(ACCEPT_LANGUAGE, "en, de;q=0.5")]);
        assert_eq!(key(&[(ACCEPT_LANGUAGE, "DE;q=0.5"), (ACCEPT_LANGUAGE, "  eN")]), expected);
        assert_ne!(key(&[(ACCEPT_LANGUAGE, "en, de;q=0.6")]), expected);
        assert_ne!(key(&[(ORIGIN, "a, b")]), key(&[(ORIGIN, "b, a")]));
        assert_ne!(key(&[(ORIGIN, "a")]), key(&[(ORIGIN, "A")]));
        assert_ne!(key(&[(ACCEPT_LANGUAGE, "")]), key(&[]));
    }

    #[test]
    fn variants_are_capped() {
        let mut variants = Variants::new(1, vec![ORIGIN]);
        for i in 0..MAX_VARIANTS {
            let key = variants.secondary_key(&map(&[(ORIGIN, &i.to_string())]));
            assert_eq!(variants.add(key), Some(true));
            assert_eq!(variants.add(key), None);
        }
        let one_more = variants.secondary_key(&map(&[(ORIGIN, "more")]));
        assert_eq!(variants.add(one_more), Some(false));
    }
}
