//! What the engine sees of a request: borrowed, so that an adapter copies nothing to ask a question.

use http::request::Parts;
use http::{Extensions, HeaderMap, Method, Request, Uri};

/// A borrowed view of a request. `uri` is the one the client asked for, not what a nested router left of it.
///
/// ```
/// use http::Request;
/// use larder_core::RequestView;
///
/// let request = Request::get("/products/7").body(())?;
/// let view = RequestView::from(&request);
/// assert_eq!(view.uri.path(), "/products/7");
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// The method.
    pub method: &'a Method,
    /// The URI that the client sent.
    pub uri: &'a Uri,
    /// The header fields.
    pub headers: &'a HeaderMap,
    /// What outer layers attached, such as an authenticated user.
    pub extensions: &'a Extensions,
}

impl<'a> RequestView<'a> {
    /// The same request under another URI: adapters put the original one back this way.
    #[must_use]
    pub const fn with_uri(self, uri: &'a Uri) -> Self {
        Self { uri, ..self }
    }

    /// The token of `Authorization: Bearer …`, if that is how the request was authenticated (RFC 6750 §2.1).
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
        Self {
            method: request.method(),
            uri: request.uri(),
            headers: request.headers(),
            extensions: request.extensions(),
        }
    }
}

impl<'a> From<&'a Parts> for RequestView<'a> {
    fn from(parts: &'a Parts) -> Self {
        Self {
            method: &parts.method,
            uri: &parts.uri,
            headers: &parts.headers,
            extensions: &parts.extensions,
        }
    }
}

/// Which of the fields that concern a cache a request has, found in one pass over the names. Looking for each of them
/// takes longer: a look-up hashes the name, and requests have about as many fields as there are to look for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Present {
    /// `Cache-Control` or `Pragma`.
    pub(crate) directives: bool,
    /// `If-None-Match` or `If-Modified-Since`: a 304 may answer.
    pub(crate) validators: bool,
    /// `If-Match` or `If-Unmodified-Since`.
    pub(crate) preconditions: bool,
    /// `Content-Length` or `Transfer-Encoding`.
    pub(crate) content: bool,
    pub(crate) authorization: bool,
    pub(crate) cookie: bool,
    pub(crate) range: bool,
    pub(crate) upgrade: bool,
}

impl Present {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "cache-control" | "pragma" => found.directives = true,
                "if-none-match" | "if-modified-since" => found.validators = true,
                "if-match" | "if-unmodified-since" => found.preconditions = true,
                "content-length" | "transfer-encoding" => found.content = true,
                "authorization" => found.authorization = true,
                "cookie" => found.cookie = true,
                "range" => found.range = true,
                "upgrade" => found.upgrade = true,
                _ => {}
            }
        }
        found
    }
}
