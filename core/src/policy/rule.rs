//! The configuration of a route. A [`Rule`] is data; other modules make the decisions.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, COOKIE, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::credentials::{ORIGIN_FIELDS, is_credential, names_origin, replaces_target};
use crate::headers::vary::{USUAL_CREDENTIALS, add_vary};
use crate::key::{self, CacheKey, KeySpace, Params, SecondaryKey};
use crate::policy::status_header::DEFAULT_STATUS_HEADER;
use crate::policy::tag_rule::TagRule;
use crate::record::template::HeadTemplates;
use crate::record::variants::Variants;
use crate::request::RequestView;
use crate::tag::EvictionMode;
#[cfg(feature = "runtime")]
use crate::tag::Tags;

/// The default limit on the size of stored bodies, in bytes.
pub const DEFAULT_MAX_BODY: u64 = 10 * 1024 * 1024;

/// The configuration of one cached, written-through or evicting route.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Rule {
    /// The effect of the route on the cache.
    pub kind: Kind,
    /// The prefix and the eviction group of its keys.
    pub space: KeySpace,
    /// The freshness lifetime of responses. `None` means no expiry; with zero, responses are not stored.
    pub ttl: Option<Duration>,
    /// Other statuses than 200 that are stored, each with its own lifetime: negative caching.
    pub ttl_for: Vec<(StatusCode, Option<Duration>)>,
    /// The clients that may share the responses.
    pub audience: Audience,
    /// Request fields that carry credentials beside the usual ones.
    pub credential_fields: Arc<[HeaderName]>,
    /// Request fields that the handler sees although they carry credentials or change where a request goes.
    pub passed_fields: Vec<HeaderName>,
    /// Response fields that are not stored, beside those that describe one exchange.
    pub unstored_fields: Vec<HeaderName>,
    /// The largest body that is stored, in bytes.
    pub max_body: u64,
    /// The greatest `max-age` to tell browsers and CDNs, which evictions never reach. `None` tells what remains of `ttl`.
    pub downstream_ttl: Option<Duration>,
    /// `true` if the content of a URI never changes, so that browsers needn't validate it while it is fresh (RFC 8246).
    pub is_immutable: bool,
    /// The time after its freshness lifetime in which a response is used while it is refreshed (RFC 5861 §3).
    pub stale_while_revalidate: Option<Duration>,
    /// The time after its freshness lifetime in which a response is used when the handler fails (RFC 5861 §4).
    pub stale_if_error: Option<Duration>,
    /// The largest fraction by which lifetimes are shortened at random, so that entries don't all expire at once.
    pub jitter: f64,
    /// The query parameters that are part of the key; `None` means all.
    pub query_params: Option<Vec<String>>,
    /// The query parameters that are not part of the key, unless `query_params` lists those that are. A `*` in a name stands for any
    /// characters.
    pub ignored_params: Arc<[String]>,
    /// The content codings that the handler's responses can have; `None` means any. Other codings are taken out of
    /// `Accept-Encoding` before the handler and the variants see it.
    pub content_codings: Option<Vec<String>>,
    /// `true` if the host is part of the key.
    pub vary_by_host: bool,
    /// `true` if a key builder chooses the keys, so that routes with other patterns may share entries.
    pub is_chosen: bool,
    /// The field with HIT, MISS or BYPASS; `None` for no such field.
    pub status_header: Option<HeaderName>,
    /// `true` if responses carry `Cache-Status` (RFC 9211) with the reason.
    pub cache_status: bool,
    /// The tags of the responses, or those that the route evicts.
    pub tags: TagRule,
    /// The effect of an evicting route on the entries.
    pub eviction: EvictionMode,
    /// The forms of the records that answer the route's requests.
    pub(crate) templates: HeadTemplates,
}

/// The effect of a route on the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "runtime", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum Kind {
    /// Answers from the cache and fills it: `cache()`.
    Read,
    /// Stores the handler's response, for the next read: `cache_put()`.
    Write,
    /// Removes the entry of the same URI after the handler succeeded: `cache_evict().key()`.
    EvictKey,
    /// Removes the whole eviction group after the handler succeeded: `cache_evict().whole_group()`.
    EvictGroup,
    /// Removes the entries that carry the route's tags after the handler succeeded: `cache_evict().tag(..)`.
    EvictTags,
}

/// A function that returns the principal of a request, such as a user's id or a tenant. `None` means that the request
/// has none.
pub type PrincipalOf = Arc<dyn Fn(&RequestView<'_>) -> Option<String> + Send + Sync>;

/// The clients that may get a response made for another client's request.
#[derive(Clone, Default)]
pub enum Audience {
    /// Not declared: requests that carry credentials stay out of the cache.
    #[default]
    Undeclared,
    /// Every client. The handler sees no credentials, so that its response depends on none.
    Public,
    /// Only the same principal, who becomes part of the key as a keyed hash. The names are those of the request fields that
    /// the principal comes from: the handler sees no other credentials, and `Vary` tells the names to other caches.
    Private(PrincipalOf, Vec<HeaderName>),
}

impl Audience {
    /// Returns the audience of the holder of the same Bearer token. Two tokens of one user are two principals.
    #[must_use]
    pub fn bearer() -> Self {
        Self::Private(Arc::new(|request| request.bearer_token().map(str::to_owned)), vec![AUTHORIZATION])
    }

    /// Returns the audience of the principal that a function names, derived from `Authorization` or `Cookie`.
    #[must_use]
    pub fn private_by(of: impl Fn(&RequestView<'_>) -> Option<String> + Send + Sync + 'static) -> Self {
        Self::Private(Arc::new(of), vec![AUTHORIZATION, COOKIE])
    }

    /// Returns `true` if responses are for one principal only.
    #[must_use]
    pub const fn is_private(&self) -> bool {
        matches!(self, Self::Private(..))
    }
}

impl fmt::Debug for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Undeclared => "Undeclared",
            Self::Public => "Public",
            Self::Private(..) => "Private(..)",
        })
    }
}

/// The owner of a private response: a keyed hash, never the name itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Principal([u8; 16]);

impl Principal {
    /// Hashes a name. Without `secret`, readers of the store's keys could guess likely names.
    #[must_use]
    pub fn new(secret: &PrincipalSecret, name: &str) -> Self {
        let hash = blake3::keyed_hash(&secret.0, name.as_bytes());
        let mut short = [0; 16];
        short.copy_from_slice(&hash.as_bytes()[..16]);
        Self(short)
    }
}

impl Principal {
    /// Returns the tag of this principal's entries. It holds the hash, so readers of the store can't guess the name.
    #[cfg(feature = "runtime")]
    pub(crate) fn tag(self) -> Tags {
        Tags::reserved("principal", &format!("{:032x}", u128::from_be_bytes(self.0)))
    }
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Principal(..)")
    }
}

/// The secret that principals are hashed with. All processes that share a store need the same secret.
#[derive(Clone)]
pub struct PrincipalSecret([u8; 32]);

impl PrincipalSecret {
    /// Derives the secret from any bytes.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        Self(blake3::derive_key("larder principal 2026-11", secret))
    }
}

impl Default for PrincipalSecret {
    /// Returns a constant. It is enough for principals that can't be guessed, such as tokens.
    fn default() -> Self {
        Self::new(b"")
    }
}

impl fmt::Debug for PrincipalSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrincipalSecret(..)")
    }
}

impl Rule {
    /// Creates a rule with the defaults: no expiry, undeclared audience, 10 MiB, `X-Redis-Cache`.
    #[must_use]
    pub fn new(kind: Kind, space: KeySpace) -> Self {
        Self {
            kind,
            space,
            ttl: None,
            ttl_for: Vec::new(),
            audience: Audience::Undeclared,
            credential_fields: Arc::new([]),
            passed_fields: Vec::new(),
            unstored_fields: Vec::new(),
            max_body: DEFAULT_MAX_BODY,
            downstream_ttl: None,
            is_immutable: false,
            stale_while_revalidate: None,
            stale_if_error: None,
            jitter: 0.0,
            query_params: None,
            ignored_params: Arc::new([]),
            content_codings: None,
            vary_by_host: false,
            is_chosen: false,
            status_header: Some(DEFAULT_STATUS_HEADER),
            cache_status: false,
            tags: TagRule::default(),
            eviction: EvictionMode::Hard,
            templates: HeadTemplates::default(),
        }
    }

    /// Returns the key of a request, made from its URI.
    #[must_use]
    pub fn key(&self, request: &RequestView<'_>, principal: Option<Principal>) -> CacheKey {
        let ignored = Params::AllBut(&self.ignored_params);
        let params = self.query_params.as_deref().map_or(ignored, Params::Only);
        let expected = key::uri_len(request.uri);
        self.whole_key(request, principal, expected, |out| key::write_uri(out, request.uri, params))
    }

    /// Returns the key of a request, made from the suffix that a key builder chose.
    #[must_use]
    pub fn chosen_key(
        &self,
        suffix: &str,
        request: &RequestView<'_>,
        principal: Option<Principal>,
    ) -> CacheKey {
        self.whole_key(request, principal, suffix.len(), |out| key::write_chosen(out, suffix))
    }

    fn whole_key(
        &self,
        request: &RequestView<'_>,
        principal: Option<Principal>,
        expected: usize,
        suffix: impl FnOnce(&mut String),
    ) -> CacheKey {
        // `|user=` and the hash.
        let expected = expected + principal.map_or(0, |_| 38);
        self.space.key_with(expected, |out| {
            suffix(out);
            if self.vary_by_host {
                key::write_part(out, "host", &host(request));
                let forwarded = forwarded_origin(request);
                if !forwarded.is_empty() {
                    key::write_part(out, "proxy", &forwarded);
                }
            }
            if let Some(Principal(hash)) = principal {
                key::write_part(out, "user", &format!("{:032x}", u128::from_be_bytes(hash)));
            }
        })
    }

    /// Returns the secondary key of a request, which selects one of these variants.
    pub(crate) fn secondary_key(&self, variants: &Variants, request: &HeaderMap) -> SecondaryKey {
        variants.secondary_key_of(request, self.content_codings.as_deref())
    }

    /// Returns `true` if a field of a request carries credentials.
    pub(crate) fn is_credential(&self, name: &HeaderName) -> bool {
        is_credential(name.as_str()) || self.credential_fields.contains(name)
    }

    /// Returns `true` if a field is hidden from a handler whose response may be stored. A response that depended on the
    /// field would answer requests with another value.
    pub(crate) fn hides(&self, name: &HeaderName) -> bool {
        let hides_origin = || !self.vary_by_host && names_origin(name.as_str());
        let hidden = match self.kind {
            Kind::Read => {
                let hides_credential = match &self.audience {
                    // Requests with credentials stay out of the cache.
                    Audience::Undeclared => false,
                    Audience::Public => self.is_credential(name),
                    Audience::Private(_, from) => self.is_credential(name) && !from.contains(name),
                };
                hides_credential || replaces_target(name.as_str()) || hides_origin()
            }
            // A write has to be authorised by its handler. Its answer is for readers all the same.
            Kind::Write => hides_origin(),
            Kind::EvictKey | Kind::EvictGroup | Kind::EvictTags => false,
        };
        hidden && !self.passed_fields.contains(name)
    }

    /// Adds the [fields](Self::vary_fields) to the `Vary` of a response.
    pub(crate) fn add_vary(&self, response: &mut HeaderMap) {
        let is_usual = matches!(self.audience, Audience::Undeclared)
            && matches!(self.kind, Kind::Read | Kind::Write)
            && self.credential_fields.is_empty();
        if is_usual {
            // `HeaderMap::entry` reserves room even if the field is present.
            match response.get(VARY) {
                None => {
                    response.insert(VARY, const { HeaderValue::from_static(USUAL_CREDENTIALS) });
                    return;
                }
                Some(value) if value == USUAL_CREDENTIALS => return,
                Some(_) => {}
            }
        }
        add_vary(response, self.vary_fields());
    }

    /// Returns the request fields that `Vary` names on the route's responses. Other caches must not share responses
    /// that this cache doesn't share.
    fn vary_fields(&self) -> impl Iterator<Item = &HeaderName> {
        static BOTH: [HeaderName; 2] = [AUTHORIZATION, COOKIE];
        let (fields, more): (&[HeaderName], &[HeaderName]) = match &self.audience {
            _ if matches!(self.kind, Kind::EvictKey | Kind::EvictGroup | Kind::EvictTags) => (&[], &[]),
            Audience::Undeclared => (&BOTH, &self.credential_fields),
            Audience::Public => (&[], &[]),
            Audience::Private(_, from) => (from, &[]),
        };
        fields.iter().chain(more)
    }
}

/// Returns the origin that the client of a proxy requested, from the proxy's fields. Each field is preceded by its
/// length, so that no value can imitate another field. Empty without such fields. Of `Forwarded` only `host` and
/// `proto` count, because the rest differs between clients (RFC 7239 §5).
fn forwarded_origin(request: &RequestView<'_>) -> String {
    let mut text = String::new();
    for name in ORIGIN_FIELDS {
        for value in request.headers.get_all(name) {
            let mut value = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
            if name == "forwarded" && !value.contains('"') {
                let pairs = value.split([',', ';']).map(str::trim);
                let pairs: Vec<_> =
                    pairs.filter(|pair| pair.starts_with("host=") || pair.starts_with("proto=")).collect();
                value = pairs.join(";");
            }
            text.push_str(&format!("{name}={}:{value};", value.len()));
        }
    }
    text
}

/// Returns the requested host in lower case (RFC 9110 §4.2.3). A request that names several hosts has a key of its own,
/// because it isn't known which one the handler uses.
pub(crate) fn host(request: &RequestView<'_>) -> String {
    let authority = request.uri.authority().map(|authority| authority.as_str().to_ascii_lowercase());
    let fields = request.headers.get_all(http::header::HOST).iter();
    let fields = fields.map(|value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase());
    let mut hosts: Vec<String> = authority.into_iter().chain(fields).collect();
    hosts.dedup();
    hosts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, request};

    fn parts(uri: &str, fields: &[(&str, &str)]) -> request::Parts {
        let mut builder = Request::get(uri);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn rule() -> Rule {
        Rule::new(Kind::Read, KeySpace::new("p", None).unwrap())
    }

    #[test]
    fn principals_are_apart_and_never_spelled_out() {
        let parts = parts("/me", &[]);
        let key = |secret: &[u8], name| {
            let principal = Principal::new(&PrincipalSecret::new(secret), name);
            rule().key(&RequestView::from(&parts), Some(principal)).name().to_owned()
        };
        assert!(key(b"s", "alice").starts_with("p:me|user="));
        assert!(!key(b"s", "alice").contains("alice"));
        assert_ne!(key(b"s", "alice"), key(b"s", "bob"));
        assert_ne!(key(b"s", "alice"), key(b"t", "alice"));
        assert_eq!(key(b"s", "alice"), key(b"s", "alice"));
    }

    #[test]
    fn a_path_or_a_key_builder_cannot_pose_as_a_principal() {
        let principal = Principal::new(&PrincipalSecret::default(), "alice");
        let me = parts("/me", &[]);
        let private = rule().key(&RequestView::from(&me), Some(principal));
        let posing = parts(&format!("/{}", private.suffix()), &[]);
        assert_ne!(rule().key(&RequestView::from(&posing), None), private);
        assert_ne!(rule().chosen_key(private.suffix(), &RequestView::from(&me), None), private);
    }

    #[test]
    fn the_host_can_be_part_of_the_key() {
        let rule = Rule { vary_by_host: true, ..rule() };
        let key =
            |uri, fields: &[_]| rule.key(&RequestView::from(&parts(uri, fields)), None).name().to_owned();
        assert_eq!(key("/a", &[("host", "A.example:80")]), "p:a|host=a.example:80");
        assert_eq!(key("http://b.example/a", &[("host", "a.example")]), "p:a|host=b.example,a.example");
        assert_eq!(key("http://a.example/a", &[("host", "A.example")]), "p:a|host=a.example");
        assert_eq!(key("/a", &[]), "p:a|host=");
        assert_ne!(key("/a", &[("host", "x|user=1")]), "p:a|host=x|user=1");
    }

    /// The key contains the host and the scheme of `Forwarded`, because a handler may make links of them, and no other parameter.
    #[test]
    fn with_the_host_the_origin_that_a_proxy_names_is_part_of_the_key() {
        let rule = Rule { vary_by_host: true, ..rule() };
        let key = |fields: &[_]| rule.key(&RequestView::from(&parts("/a", fields)), None).name().to_owned();
        let forwarded = key(&[("forwarded", "for=192.0.2.1;host=a.example;proto=https")]);
        assert_eq!(forwarded, key(&[("forwarded", "host=a.example;for=192.0.2.2 ; Proto=https, for=_x")]));
        let others: [&[(&str, &str)]; 6] = [
            &[],
            &[("forwarded", "host=b.example")],
            &[("x-forwarded-host", "a.example")],
            &[("x-forwarded-host", "a.example"), ("x-forwarded-proto", "https")],
            &[("x-forwarded-host", "a.example;x-forwarded-proto=5:https;")],
            &[("x-forwarded-for", "192.0.2.1"), ("x-forwarded-port", "81")],
        ];
        let keys: std::collections::HashSet<String> = others.iter().map(|fields| key(fields)).collect();
        assert_eq!(keys.len(), others.len());
        assert!(!keys.contains(&forwarded));
        assert_eq!(key(&[("x-forwarded-for", "192.0.2.1")]), key(&[]));
    }

    #[test]
    fn only_the_listed_parameters_count() {
        let rule = Rule { query_params: Some(vec!["limit".into(), "page".into()]), ..rule() };
        let key = |uri| rule.key(&RequestView::from(&parts(uri, &[])), None).name().to_owned();
        assert_eq!(key("/a?utm=1&page=2&limit=3&x"), "p:a:limit=3:page=2");
        assert_eq!(key("/a?utm=1"), key("/a"));
        let rule = Rule { query_params: Some(vec!["ids[]".into(), "at most".into()]), ..rule };
        let key = |uri: &str| rule.key(&RequestView::from(&parts(uri, &[])), None).name().to_owned();
        for seen in ["ids[]=1", "ids%5B%5d=1", "%69ds%5B%5D=1", "at+most=1", "at%20most=1"] {
            assert_ne!(key(&format!("/a?{seen}")), key("/a"), "a handler sees {seen}");
        }
        assert_eq!(key("/a?ids=1&ids%5B=1&at=1&ids%5B%5D%5B=1"), key("/a"));
    }

    #[test]
    fn bearer_tokens() {
        for (fields, expected) in [
            (&[("authorization", "Bearer t1")][..], Some("t1")),
            (&[("authorization", "bearer  t1 ")], Some("t1")),
            (&[("authorization", "Basic dTpw")], None),
            (&[("authorization", "Bearer ")], None),
            (&[("authorization", "Bearer a"), ("authorization", "Bearer b")], None),
            (&[], None),
        ] {
            let parts = parts("/", fields);
            assert_eq!(RequestView::from(&parts).bearer_token(), expected, "{fields:?}");
        }
    }
}
