//! The engine's view of a request. It borrows, so that an adapter copies nothing.

use http::request::Parts;
use http::{Extensions, HeaderMap, HeaderName, Method, Request, Uri};

use crate::credentials::is_other_credential;
use crate::key::rewritten::KeyUri;

/// A borrowed view of a request.
///
/// ```
/// use http::Request;
/// use larder_core::RequestView;
///
/// let request = Request::get("/products/7").body(())?;
/// let view = RequestView::from(&request).with_pattern(Some("/products/{id}"));
/// assert_eq!(view.uri.path(), "/products/7");
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RequestView<'a> {
    /// The request method.
    pub method: &'a Method,
    /// The URI that keys are made from. This is the URI that the client sent, also inside a nested router, which sees
    /// only the end of it. If middleware rewrote the URI, this is the URI that the handler sees, after the path that
    /// routers have cut: see [`KeyUri`](crate::KeyUri).
    pub uri: &'a Uri,
    /// The header fields.
    pub headers: &'a HeaderMap,
    /// The extensions that outer layers attached, such as an authenticated user.
    pub extensions: &'a Extensions,
    /// The pattern of the framework's router that led to the handler, such as `/products/{id}`: see
    /// [`provenance`](crate::provenance).
    pub pattern: Option<&'a str>,
    /// `true` if the body reports content. HTTP/2 needs no field for that.
    pub has_content: bool,
    /// `true` if `uri` may differ from the URI that the handler sees, because middleware rewrote it under an unknown prefix.
    pub is_obscured: bool,
    /// The URIs that the handler may see if `is_obscured`. A write evicts the entries of these URIs too.
    pub alternatives: &'a [Uri],
}

impl<'a> RequestView<'a> {
    /// Creates a view without a pattern, content or rewritten URI.
    #[must_use]
    pub const fn new(
        method: &'a Method,
        uri: &'a Uri,
        headers: &'a HeaderMap,
        extensions: &'a Extensions,
    ) -> Self {
        Self {
            method,
            uri,
            headers,
            extensions,
            pattern: None,
            has_content: false,
            is_obscured: false,
            alternatives: &[],
        }
    }

    /// Returns the same request with another URI. Adapters use it to restore the original URI.
    #[must_use]
    pub const fn with_uri(self, uri: &'a Uri) -> Self {
        Self { uri, ..self }
    }

    /// Returns the same request with the URI that its key is made from. `sent` is the URI that the client sent.
    #[must_use]
    pub fn with_key_uri(self, sent: &'a Uri, key_uri: &'a KeyUri) -> Self {
        match key_uri {
            KeyUri::AsSent => Self { uri: sent, ..self },
            KeyUri::Rewritten(uri) => Self { uri, ..self },
            KeyUri::Unknown(alternatives) => Self { uri: sent, is_obscured: true, alternatives, ..self },
        }
    }

    /// Returns the same request with the pattern that the framework's router matched.
    #[must_use]
    pub const fn with_pattern(self, pattern: Option<&'a str>) -> Self {
        Self { pattern, ..self }
    }

    /// Returns the same request with `has_content`: `true` unless the body is known to be empty. A cache doesn't answer
    /// a GET with content.
    #[must_use]
    pub const fn with_content(self, has_content: bool) -> Self {
        Self { has_content, ..self }
    }

    /// Returns the token of `Authorization: Bearer …`, if the request has exactly one such field (RFC 6750 §2.1).
    #[must_use]
    pub fn bearer_token(&self) -> Option<&'a str> {
        let mut fields = self.headers.get_all(http::header::AUTHORIZATION).iter();
        let (field, None) = (fields.next()?.to_str().ok()?, fields.next()) else { return None };
        let (scheme, token) = field.trim().split_once(' ')?;
        let token = token.trim();
        (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
    }
}

impl<'a, B> From<&'a Request<B>> for RequestView<'a> {
    fn from(request: &'a Request<B>) -> Self {
        Self::new(request.method(), request.uri(), request.headers(), request.extensions())
    }
}

impl<'a> From<&'a Parts> for RequestView<'a> {
    fn from(parts: &'a Parts) -> Self {
        Self::new(&parts.method, &parts.uri, &parts.headers, &parts.extensions)
    }
}

/// The presence of the request fields that concern a cache, found in one pass over the names. One pass is faster than
/// separate look-ups: a look-up hashes the name, and a request has about as many fields as there are names to look for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RequestFields {
    /// `Cache-Control` or `Pragma`.
    pub(crate) directives: bool,
    /// `If-None-Match` or `If-Modified-Since`: a 304 is possible.
    pub(crate) validators: bool,
    /// `If-Match` or `If-Unmodified-Since`.
    pub(crate) preconditions: bool,
    /// `Content-Length` or `Transfer-Encoding`.
    pub(crate) content: bool,
    pub(crate) authorization: bool,
    pub(crate) cookie: bool,
    /// Another field with credentials.
    pub(crate) credentials: bool,
    pub(crate) origin: bool,
    pub(crate) range: bool,
    pub(crate) upgrade: bool,
}

impl RequestFields {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for name in headers.keys().map(HeaderName::as_str).filter(|name| !is_ordinary(name)) {
            match name {
                "cache-control" | "pragma" => found.directives = true,
                "if-none-match" | "if-modified-since" => found.validators = true,
                "if-match" | "if-unmodified-since" => found.preconditions = true,
                "content-length" | "transfer-encoding" => found.content = true,
                "authorization" => found.authorization = true,
                "cookie" => found.cookie = true,
                "origin" => found.origin = true,
                "range" => found.range = true,
                "upgrade" => found.upgrade = true,
                other => found.credentials |= is_other_credential(other),
            }
        }
        found
    }
}

/// Returns `true` for fields that every browser sends and that don't concern a cache.
pub(crate) fn is_ordinary(name: &str) -> bool {
    matches!(name, "host" | "user-agent" | "referer")
        || name.starts_with("accept")
        || name.starts_with("sec-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::ORIGIN_FIELDS;
    use http::HeaderValue;

    #[test]
    fn ordinary_fields_concern_no_cache() {
        for name in [
            "cache-control",
            "pragma",
            "if-none-match",
            "if-modified-since",
            "if-match",
            "if-unmodified-since",
            "content-length",
            "transfer-encoding",
            "authorization",
            "cookie",
            "origin",
            "range",
            "upgrade",
            "access-token",
            "auth-token",
            "remote-user",
            "session-token",
            "ssl-client-cert",
        ] {
            assert!(!is_ordinary(name) && is_found(name), "{name}");
        }
        for name in ["host", "user-agent", "referer", "accept", "accept-language", "sec-fetch-mode"] {
            assert!(is_ordinary(name) && !is_found(name), "{name}");
        }
        for name in ORIGIN_FIELDS {
            assert!(!is_ordinary(name), "{name}");
        }
    }

    fn is_found(name: &'static str) -> bool {
        let headers = [(HeaderName::from_static(name), HeaderValue::from_static("x"))].into_iter().collect();
        format!("{:?}", RequestFields::of(&headers)).contains("true")
    }
}
