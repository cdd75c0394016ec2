//! Variants: one resource, several stored responses (RFC 9111 §4.1).
//!
//! The key of the resource holds a [`Variants`] record with the selecting fields and an id. Each variant has a key of
//! its own and carries the id, so deleting the record deletes every variant.

use http::header::{
    ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, CONTENT_LOCATION, CONTENT_TYPE, COOKIE,
    DATE, FROM, HOST, IF_MODIFIED_SINCE, IF_RANGE, IF_UNMODIFIED_SINCE, ORIGIN, PROXY_AUTHORIZATION, RANGE,
    REFERER, USER_AGENT,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::credentials::may_send_elsewhere;
use crate::headers::accept_encoding::{accepted_codings, is_registered};
use crate::headers::cache_control::list;
use crate::headers::vary::{EVERY_CODING, MAX_NAMES, sorted};
use crate::key::SecondaryKey;
use crate::provenance::Provenance;

/// Request fields that hold one value. In all others, whitespace around commas and empty members have no meaning (RFC 9110
/// §5.6.1), which isn't so in a comment of `User-Agent`, for instance.
const WITH_ONE_VALUE: [HeaderName; 15] = [
    AUTHORIZATION,
    CONTENT_LOCATION,
    CONTENT_TYPE,
    COOKIE,
    DATE,
    FROM,
    HOST,
    IF_MODIFIED_SINCE,
    IF_RANGE,
    IF_UNMODIFIED_SINCE,
    ORIGIN,
    PROXY_AUTHORIZATION,
    RANGE,
    REFERER,
    USER_AGENT,
];

/// The greatest number of variants of a resource. A new one replaces the oldest.
pub const MAX_VARIANTS: usize = 64;

/// The request fields that select a variant of a resource, and the list of its variants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variants {
    pub(crate) id: u64,
    /// The provenance of the requests that the record is for.
    pub(crate) provenance: Provenance,
    pub(crate) names: Vec<HeaderName>,
    pub(crate) secondary_keys: Vec<[u8; 16]>,
}

impl Variants {
    /// Creates a record for a resource that varies by these fields. `id` distinguishes it from other records under the
    /// same key.
    #[must_use]
    pub fn new(id: u64, names: Vec<HeaderName>) -> Self {
        Self { id, provenance: Provenance::default(), names, secondary_keys: Vec::new() }
    }

    /// Returns the same record for requests of this provenance.
    #[must_use]
    pub fn by(self, provenance: Provenance) -> Self {
        Self { provenance, ..self }
    }

    /// Returns the id that the variants of this record carry.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Returns the selecting fields, sorted.
    #[must_use]
    pub fn names(&self) -> &[HeaderName] {
        &self.names
    }

    /// Returns the secondary key of a request: a hash of the selecting fields.
    #[must_use]
    pub fn secondary_key(&self, request: &HeaderMap) -> SecondaryKey {
        self.secondary_key_of(request, None)
    }

    /// Returns the secondary key of a request, if responses have only the `declared` content codings.
    pub(crate) fn secondary_key_of(&self, request: &HeaderMap, declared: Option<&[String]>) -> SecondaryKey {
        SecondaryKey::hash(&self.names, request, declared, |_| false)
    }

    /// Returns the secondary key of a request in a shared cache, which normalises fields (RFC 9111 §4.1) if their meaning doesn't
    /// change. The order of a list with weights has no meaning (RFC 9110 §12.5.4), and languages and character sets are
    /// case-insensitive.
    pub(crate) fn normalised_key(&self, request: &HeaderMap, declared: Option<&[String]>) -> SecondaryKey {
        let is_set = |name: &HeaderName| [ACCEPT_LANGUAGE, ACCEPT_CHARSET].contains(name);
        SecondaryKey::hash(&self.names, request, declared, is_set)
    }

    /// Returns the listed variants, the oldest first.
    pub fn secondary_keys(&self) -> impl Iterator<Item = SecondaryKey> {
        self.secondary_keys.iter().copied().map(SecondaryKey)
    }

    /// Returns `true` if a variant is listed.
    fn lists(&self, key: SecondaryKey) -> bool {
        self.secondary_keys.contains(&key.0)
    }

    /// Lists a variant. Returns the oldest variant if the list was full. Otherwise a client with made-up languages
    /// could exclude all other variants permanently.
    pub fn add(&mut self, key: SecondaryKey) -> Option<SecondaryKey> {
        if self.lists(key) {
            return None;
        }
        let oldest = (self.secondary_keys.len() >= MAX_VARIANTS).then(|| self.secondary_keys.remove(0));
        self.secondary_keys.push(key.0);
        oldest.map(SecondaryKey)
    }
}

/// The placement of a response in the store.
#[derive(Debug, PartialEq, Eq)]
pub enum Placement {
    /// Under the requested key: that of the request, or the secondary key of a listed variant.
    Target,
    /// Under this secondary key, which was requested. The record with this id, under the key of the request, must list
    /// it.
    NewVariant(SecondaryKey, u64),
    /// Under this secondary key, and then this first record under the key of the request.
    FirstVariant(SecondaryKey, Variants),
    /// Under this secondary key, and then this record under the key of the request, in place of the one with this id.
    /// The resource varies by more fields than were known.
    Widened(SecondaryKey, Variants, u64),
}

impl Placement {
    /// Returns the placement of a response that varies by `names`, and the id of its record (0 if it doesn't vary).
    /// `fresh_id` becomes the id of a new record. `secondary_key` makes the key of the request.
    ///
    /// A resource whose responses vary by different fields varies by all of them (RFC 9111 §4.1). With only the fields
    /// of the latest response, its variants would replace each other.
    pub(crate) fn of(
        known: Option<&Variants>,
        names: &[HeaderName],
        fresh_id: u64,
        secondary_key: impl Fn(&Variants) -> SecondaryKey,
    ) -> (Self, u64) {
        let begin = |names| {
            let mut variants = Variants::new(fresh_id.max(1), names);
            let secondary = secondary_key(&variants);
            variants.add(secondary);
            (secondary, variants)
        };
        match known {
            None if names.is_empty() => (Self::Target, 0),
            None => {
                let (secondary, variants) = begin(names.to_vec());
                let id = variants.id;
                (Self::FirstVariant(secondary, variants), id)
            }
            Some(known) if names.iter().any(|name| !known.names.contains(name)) => {
                let mut all = union(&known.names, names);
                if all.len() > MAX_NAMES {
                    all = names.to_vec();
                }
                let (secondary, variants) = begin(all);
                let id = variants.id;
                (Self::Widened(secondary, variants, known.id), id)
            }
            Some(known) => {
                let secondary = secondary_key(known);
                let placement =
                    if known.lists(secondary) { Self::Target } else { Self::NewVariant(secondary, known.id) };
                (placement, known.id)
            }
        }
    }
}

/// Returns the fields of both, sorted.
pub(crate) fn union(some: &[HeaderName], others: &[HeaderName]) -> Vec<HeaderName> {
    sorted([some, others].concat())
}

impl SecondaryKey {
    fn hash(
        names: &[HeaderName],
        request: &HeaderMap,
        declared: Option<&[String]>,
        is_set: impl Fn(&HeaderName) -> bool,
    ) -> Self {
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_be_bytes());
            hasher.update(bytes);
        };
        for name in names {
            part(name.as_str().as_bytes());
            if *name == ACCEPT_ENCODING {
                part(&accepted_codings(request, declared, is_registered));
                continue;
            }
            if *name == EVERY_CODING {
                part(&accepted_codings(request, declared, |_| true));
                continue;
            }
            // A missing field differs from an empty one. Several fields are one list (RFC 9110 §5.3).
            let mut values = request.get_all(name).iter().map(HeaderValue::as_bytes).peekable();
            part(if values.peek().is_some() { b"+" } else { b"-" });
            if WITH_ONE_VALUE.contains(name) || may_send_elsewhere(name.as_str()) {
                values.map(<[u8]>::trim_ascii).for_each(&mut part);
                part(b"");
                continue;
            }
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

    /// Returns the key in hexadecimal digits.
    #[must_use]
    pub fn to_hex(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(HeaderName, &str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| (n.clone(), HeaderValue::from_str(v).unwrap())).collect()
    }

    #[test]
    fn different_selecting_fields_give_different_keys() {
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
    fn shared_cache_normalises_only_weighted_lists() {
        let variants = Variants::new(1, vec![ACCEPT_LANGUAGE, ORIGIN]);
        let key = |request: &[(HeaderName, &str)]| variants.normalised_key(&map(request), None);
        let expected = key(&[(ACCEPT_LANGUAGE, "en, de;q=0.5")]);
        assert_eq!(key(&[(ACCEPT_LANGUAGE, "DE;q=0.5"), (ACCEPT_LANGUAGE, "  eN")]), expected);
        assert_ne!(key(&[(ACCEPT_LANGUAGE, "en, de;q=0.6")]), expected);
        assert_ne!(key(&[(ORIGIN, "a, b")]), key(&[(ORIGIN, "b, a")]));
        assert_ne!(key(&[(ORIGIN, "a")]), key(&[(ORIGIN, "A")]));
        assert_ne!(key(&[(ACCEPT_LANGUAGE, "")]), key(&[]));
    }

    #[test]
    fn fields_with_one_value_are_compared_exactly() {
        for name in [
            "user-agent",
            "cookie",
            "referer",
            "authorization",
            "if-modified-since",
            "content-type",
            "x-original-url",
            "x-forwarded-host",
            "forwarded",
        ] {
            let name = HeaderName::from_static(name);
            let variants = Variants::new(1, vec![name.clone()]);
            let fields: [&[(HeaderName, &str)]; 5] = [
                &[(name.clone(), "X (a, b)")],
                &[(name.clone(), "X (a,b)")],
                &[(name.clone(), "X (a, b),")],
                &[(name.clone(), "X (a"), (name.clone(), "b)")],
                &[(name.clone(), "X (a,, b)")],
            ];
            for key in [Variants::secondary_key_of, Variants::normalised_key] {
                let keys: std::collections::HashSet<_> =
                    fields.iter().map(|fields| key(&variants, &map(fields), None).to_hex()).collect();
                assert_eq!(keys.len(), fields.len(), "{name}");
            }
        }
        // Where the syntax allows whitespace, it says nothing.
        let variants = Variants::new(1, vec![http::header::ACCEPT]);
        let key = |text: &str| variants.secondary_key(&map(&[(http::header::ACCEPT, text)]));
        assert_eq!(key("text/html, text/plain"), key("text/html,text/plain,"));
    }

    #[test]
    fn oldest_variant_is_dropped() {
        let mut variants = Variants::new(1, vec![ORIGIN]);
        let key = |variants: &Variants, i: usize| variants.secondary_key(&map(&[(ORIGIN, &i.to_string())]));
        for i in 0..MAX_VARIANTS {
            let key = key(&variants, i);
            assert_eq!((variants.add(key), variants.add(key)), (None, None));
        }
        let (oldest, one_more) = (key(&variants, 0), key(&variants, MAX_VARIANTS));
        assert_eq!(variants.add(one_more), Some(oldest));
        assert_eq!(variants.secondary_keys().count(), MAX_VARIANTS);
        assert!(variants.lists(one_more) && !variants.lists(oldest));
    }

    #[test]
    fn spellings_of_accept_encoding_share_a_variant() {
        let variants = Variants::new(1, vec![ACCEPT_ENCODING]);
        let key = |field: &str| variants.secondary_key(&map(&[(ACCEPT_ENCODING, field)]));
        for same in [
            &[
                "gzip, br",
                "br,gzip",
                "GZIP;q=1.0, br;q=1",
                "x-gzip, br",
                "br, gzip, sdch",
                "gzip, br, zstd;q=0",
            ][..],
            &["gzip;q=0.8, br;q=0.5", "br;q=0.2,gzip;q=0.9", "gzip, br;q=0.1"],
            &[
                "",
                "gzip;q=0",
                "unheard-of",
                "identity",
                "identity;q=0.5",
                "identity;q=1, *;q=0",
                "br;q=0, identity",
            ],
            &[
                "gzip, identity;q=0.5",
                "gzip, identity;q=0.5, *;q=0",
                "identity;q=0.1, *;q=0.000, br;q=0, gzip",
            ],
            &["identity;q=0, gzip", "gzip, Identity; q=0"],
            &["*;q=0.5, gzip;q=0", "gzip;q=0.0, *"],
        ] {
            for spelling in same {
                assert_eq!(key(spelling), key(same[0]), "{spelling:?} and {:?}", same[0]);
                assert_eq!(variants.normalised_key(&map(&[(ACCEPT_ENCODING, spelling)]), None), key(same[0]));
            }
        }
        let different = [
            "",
            "gzip",
            "br",
            "gzip, br",
            "gzip;q=0.5, br",
            "gzip, identity;q=0",
            "*",
            "*, gzip;q=0",
            "*;q=0",
            "identity;q=0",
            "identity, *",
        ];
        let keys: std::collections::HashSet<String> =
            different.iter().map(|field| key(field).to_hex()).collect();
        assert_eq!(keys.len(), different.len());
        assert_ne!(key(""), variants.secondary_key(&map(&[])));
    }

    #[test]
    fn unregistered_codings_select_only_if_a_response_has_one() {
        let names = [[ACCEPT_ENCODING].to_vec(), [ACCEPT_ENCODING, EVERY_CODING].to_vec()];
        for (names, tells_apart) in names.into_iter().zip([false, true]) {
            let variants = Variants::new(1, names);
            let key = |field: &str| variants.secondary_key(&map(&[(ACCEPT_ENCODING, field)]));
            assert_eq!(key("gzip, own") != key("gzip"), tells_apart);
            assert_eq!(key("gzip, own"), key("own,gzip"));
        }
    }
}
