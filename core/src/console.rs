//! The console: a page that shows and explains a cache's decisions, and evicts. Adapters mount it.
//!
//! # Security
//!
//! 1. Every console has an [`Authorize`], which checks every request, also the one for the page.
//! 2. Other requests are a `POST` or `GET` under `/api/`. Each must carry a header field that no form can send and no other
//!    origin may send, and the browser must report the same origin (`Sec-Fetch-Site`, or `Origin`). A `GET` changes nothing.
//! 3. The page runs only its own script (`Content-Security-Policy`, Trusted Types), can't be framed, isn't stored, and sends
//!    requests to no other host. URIs and keys are untrusted input, and are written as text.
//! 4. Bodies and header fields of stored responses are never shown.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderName, ORIGIN, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, request, response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::explain::FoundEntry;
use crate::fill::background::Target;
use crate::key::{CacheKey, KeySpace};
use crate::larder::Larder;
use crate::policy::rule::Kind;
use crate::policy::{BodyLength, OnRequest};
use crate::reason::Reason;
use crate::record::Record;
use crate::request::RequestView;
use crate::route::Route;
use crate::stats::Latency;
use crate::status::Status;
use crate::tag::TagsToEvict;
use crate::telemetry::history::SLICE;

/// The header field that the page's script sends, and that other origins can't.
const FROM_PAGE: HeaderName = HeaderName::from_static("x-larder-console");
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

const PAGE: &str = include_str!("console/page.html");
const STYLE: &str = include_str!("console/style.css");
const SCRIPT: &str = include_str!("console/script.js");

/// Authorization for the console.
///
/// A function from the request to `true` or `false` implements it. Layers around the console can attach data to the
/// request's extensions. Implement the trait for asynchronous checks:
///
/// ```
/// use larder_core::RequestView;
/// use larder_core::console::Authorize;
///
/// struct Staff;
///
/// impl Authorize for Staff {
///     async fn allows(&self, request: &RequestView<'_>) -> bool {
///         let Some(session) = request.headers.get("x-session") else { return false };
///         // … ask the database …
///         session == "staff"
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` doesn't say who may see the console",
    label = "expected a function `|request: &RequestView<'_>| -> bool`, or a type that implements `Authorize`"
)]
pub trait Authorize: Send + Sync + 'static {
    /// Returns `true` if this request may see the console and evict. Called for every request to the console.
    fn allows(&self, request: &RequestView<'_>) -> impl Future<Output = bool> + Send;
}

impl<F: Fn(&RequestView<'_>) -> bool + Send + Sync + 'static> Authorize for F {
    fn allows(&self, request: &RequestView<'_>) -> impl Future<Output = bool> + Send {
        std::future::ready(self(request))
    }
}

/// [`Authorize`] as a trait object.
trait DynAuthorize: Send + Sync {
    fn ask<'a>(&'a self, request: &'a RequestView<'_>) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>>;
}

impl<A: Authorize> DynAuthorize for A {
    fn ask<'a>(&'a self, request: &'a RequestView<'_>) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(self.allows(request))
    }
}

/// A cache's console, for adapters to mount. Clones share one console.
#[derive(Clone)]
pub struct Console {
    larder: Larder,
    authorize: Arc<dyn DynAuthorize>,
}

impl Console {
    /// Maximum size of a request body, in bytes. Adapters read no more.
    #[doc(hidden)]
    pub const MAX_BODY: usize = 16 * 1024;

    /// Creates a console of this cache, for the requests that `authorize` allows.
    ///
    /// From now on each request to the cache's routes also reads the clock and copies its URI, for the console's history.
    pub fn new(larder: &Larder, authorize: impl Authorize) -> Self {
        larder.context.telemetry.history();
        Self { larder: larder.clone(), authorize: Arc::new(authorize) }
    }

    /// Answers a request. `path` is its path without the prefix under which the console is mounted.
    pub async fn answer(&self, request: &RequestView<'_>, path: &str, body: &[u8]) -> Response<Bytes> {
        let mut response = match self.route(request, path, body).await {
            Ok(response) => response,
            Err(refusal) => refusal.into_response(),
        };
        for (name, value) in [
            (CACHE_CONTROL, "no-store"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (X_FRAME_OPTIONS, "DENY"),
            (REFERRER_POLICY, "no-referrer"),
            (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
            (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        ] {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }

    async fn route(
        &self,
        request: &RequestView<'_>,
        path: &str,
        body: &[u8],
    ) -> Result<Response<Bytes>, Refusal> {
        if !self.authorize.ask(request).await {
            return Err(Refusal::new(StatusCode::FORBIDDEN, "you may not see this console"));
        }
        let path = path.trim_matches('/');
        if !path.is_empty() && !is_from_page(request.headers) {
            return Err(Refusal::new(StatusCode::FORBIDDEN, "only the console's own page may ask this"));
        }
        match (path, request.method) {
            ("", &Method::GET | &Method::HEAD) => page(),
            ("api/state", &Method::GET) => Ok(as_json(&self.state())),
            ("api/explain", &Method::POST) => Ok(as_json(&self.explain(parse(body)?).await?)),
            ("api/evict", &Method::POST) => Ok(as_json(&self.evict(parse(body)?).await?)),
            ("" | "api/state" | "api/explain" | "api/evict", _) => {
                Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "another method is needed"))
            }
            _ => Err(Refusal::new(StatusCode::NOT_FOUND, "there is no such thing here")),
        }
    }

    fn state(&self) -> ConsoleState {
        let context = &self.larder.context;
        let stats = self.larder.stats();
        let requests = stats.requests();
        let history = context.telemetry.history();
        ConsoleState {
            now: context.now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            slice_seconds: SLICE,
            prefix: self.larder.prefix().to_owned(),
            statuses: Status::ALL,
            total: requests.total(),
            lately: history.lately(context.now()),
            hit_ratio: requests.hit_ratio(),
            is_impaired: stats.store.health.is_impaired(),
            stats: json!(stats),
            slices: json!(history.slices()),
            decisions: json!(history.decisions()),
            reasons: Reason::ALL.iter().map(|reason| (reason.to_string(), reason.meaning().into())).collect(),
        }
    }

    async fn explain(&self, query: LookupQuery) -> Result<Value, Refusal> {
        let target = query.target.trim();
        if let Some(key) = self.key_named(target) {
            return Ok(json!({ "key": key.name(), "entry": self.describe_entry(&key).await }));
        }
        let request = query.request()?;
        let routes = self.larder.context.telemetry.routes::<Route>();
        let (name, route) = find_route(&routes, &query, &request)?;
        let answer = query.answer()?;
        let answer = answer.as_ref().map(|(parts, length)| (parts, *length));
        let explanation = route.explain(routed(name, &request), answer).await;
        let key = route_key(route, &routed(name, &request)).await;
        let entry = match &key {
            Some(key) => self.describe_entry(key).await,
            None => Value::Null,
        };
        Ok(json!({
            "route": **name,
            "kind": route.policy.rule().kind,
            "text": explanation.to_string(),
            "explanation": explanation,
            "key": key.as_ref().map(CacheKey::name),
            "entry": entry,
        }))
    }

    /// Describes the record under a key, without its content.
    async fn describe_entry(&self, key: &CacheKey) -> Value {
        let context = &self.larder.context;
        match context.store.get(key).await {
            Err(_) => json!({ "found": "unknown", "text": "The store failed." }),
            Ok(None) => json!({ "found": "nothing", "text": "Nothing is stored under it." }),
            Ok(Some(bytes)) => match Record::decode(&bytes) {
                Some(Record::Response(entry)) => {
                    json!({ "found": "response", "response": FoundEntry::of(&entry, context.now()) })
                }
                Some(Record::Variants(variants)) => json!({
                    "found": "variants",
                    "count": variants.secondary_keys().count(),
                    "text": "A list of variants, each under a key of its own.",
                }),
                None => json!({ "found": "value", "bytes": bytes.len(), "text": "A value of a backend." }),
            },
        }
    }

    async fn evict(&self, query: EvictQuery) -> Result<Value, Refusal> {
        let context = &self.larder.context;
        let soft = query.soft;
        let target = |target: Target| if soft { target.soft() } else { target };
        let (what, confirmed) = match query.what()? {
            EvictRequest::Group(group) => {
                let mut spaces = vec![self.space(&group)?];
                // Routes may have a prefix of their own.
                for (_, route) in context.telemetry.routes::<Route>() {
                    let space = &route.policy.rule().space;
                    if space.group() == Some(&group) && !spaces.contains(space) {
                        spaces.push(space.clone());
                    }
                }
                let mut confirmed = true;
                for space in &spaces {
                    confirmed &= context.evict_target(&target(Target::Group(space.clone()))).await;
                }
                (group, confirmed)
            }
            EvictRequest::Tag(tag) => {
                let tags = Arc::new(TagsToEvict::of([&tag]));
                if let Some(error) = tags.invalid() {
                    return Err(Refusal { status: StatusCode::BAD_REQUEST, text: error.to_string() });
                }
                let mut prefixes = BTreeSet::from([self.larder.prefix().to_owned()]);
                let routes = context.telemetry.routes::<Route>();
                prefixes
                    .extend(routes.iter().map(|(_, route)| route.policy.rule().space.prefix().to_owned()));
                let mut confirmed = true;
                for prefix in &prefixes {
                    let space = KeySpace::new(prefix, None);
                    confirmed &= match space {
                        Ok(space) => {
                            context.evict_target(&target(Target::Tags(space, Arc::clone(&tags)))).await
                        }
                        Err(_) => false,
                    };
                }
                (tag, confirmed)
            }
            EvictRequest::Key(name) => {
                let key = self.key_named(name.trim());
                let key = key.ok_or(Refusal::new(StatusCode::BAD_REQUEST, "that is no key of this cache"))?;
                let confirmed = context.evict_target(&target(Target::Key(key.clone()))).await;
                (key.name().to_owned(), confirmed)
            }
        };
        tracing::info!(evicted = what, confirmed, "evicted from the console");
        Ok(json!({ "evicted": what, "confirmed": confirmed }))
    }

    fn space(&self, group: &str) -> Result<KeySpace, Refusal> {
        KeySpace::new(self.larder.prefix(), Some(group))
            .map_err(|error| Refusal { status: StatusCode::BAD_REQUEST, text: error.to_string() })
    }

    /// Parses a key as it is written in the store. Returns `None` if it is not under the prefix of this cache or of one of
    /// its routes.
    fn key_named(&self, name: &str) -> Option<CacheKey> {
        let routes = self.larder.context.telemetry.routes::<Route>();
        let own = KeySpace::new(self.larder.prefix(), None).ok();
        let of_routes = routes.iter().map(|(_, route)| route.policy.rule().space.clone());
        let spaces = of_routes.chain(own).filter_map(|space| {
            let rest = name.strip_prefix(space.prefix())?.strip_prefix(':')?;
            let (group, suffix) = match rest.strip_prefix('{').and_then(|rest| rest.split_once("}:")) {
                Some((group, suffix)) => (Some(group), suffix),
                None => (None, rest),
            };
            let space = KeySpace::new(space.prefix(), group).ok()?;
            // The suffix is already escaped.
            Some(space.key_with(suffix.len(), |out| out.push_str(suffix)))
        });
        // The longest matching prefix is the right one.
        spaces.max_by_key(|key| key.prefix().len())
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("larder", &self.larder).finish_non_exhaustive()
    }
}

/// The console's data for one update of the page.
#[derive(Serialize)]
struct ConsoleState {
    now: f64,
    slice_seconds: u64,
    prefix: String,
    statuses: [Status; Status::ALL.len()],
    total: u64,
    /// Durations of requests in the last minute.
    lately: Latency,
    hit_ratio: Option<f64>,
    is_impaired: bool,
    stats: Value,
    slices: Value,
    decisions: Value,
    reasons: serde_json::Map<String, Value>,
}

/// A lookup of a key or of a request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LookupQuery {
    /// A whole key, or a path with its query.
    target: String,
    #[serde(default = "get")]
    method: String,
    /// Request fields, one `name: value` per line.
    #[serde(default)]
    fields: String,
    /// The route's label, if the path doesn't determine the route.
    #[serde(default)]
    route: Option<String>,
    /// A handler's response to be explained too.
    #[serde(default)]
    answer: Option<LookupAnswer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LookupAnswer {
    status: u16,
    #[serde(default)]
    fields: String,
    /// The length of its body in bytes, or `None` for a stream.
    length: Option<u64>,
}

/// An eviction of exactly one target.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EvictQuery {
    key: Option<String>,
    group: Option<String>,
    tag: Option<String>,
    /// `true` to make the entries stale instead of removing them.
    #[serde(default)]
    soft: bool,
}

/// The target of an eviction.
enum EvictRequest {
    Key(String),
    Group(String),
    Tag(String),
}

impl EvictQuery {
    fn what(self) -> Result<EvictRequest, Refusal> {
        match (self.key, self.group, self.tag) {
            (Some(key), None, None) => Ok(EvictRequest::Key(key)),
            (None, Some(group), None) => Ok(EvictRequest::Group(group)),
            (None, None, Some(tag)) => Ok(EvictRequest::Tag(tag)),
            _ => Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                "an eviction has exactly one of `key`, `group` and `tag`",
            )),
        }
    }
}

fn get() -> String {
    "GET".to_owned()
}

impl LookupQuery {
    fn request(&self) -> Result<request::Parts, Refusal> {
        let target = self.target.trim();
        let bad = |text| Refusal::new(StatusCode::BAD_REQUEST, text);
        let uri: Uri = target.parse().map_err(|_| bad("that is neither a path nor a key of this cache"))?;
        if !uri.path().starts_with('/') {
            return Err(bad("that is neither a path nor a key of this cache"));
        }
        let method: Method = self.method.parse().map_err(|_| bad("there is no such method"))?;
        let mut request = Request::new(());
        (*request.method_mut(), *request.uri_mut()) = (method, uri);
        *request.headers_mut() = headers(&self.fields)?;
        Ok(request.into_parts().0)
    }

    fn answer(&self) -> Result<Option<(response::Parts, BodyLength)>, Refusal> {
        let Some(answer) = &self.answer else { return Ok(None) };
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(answer.status)
            .map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, "there is no such status"))?;
        *response.headers_mut() = headers(&answer.fields)?;
        let length = answer.length.map_or(BodyLength::Unknown, BodyLength::Known);
        Ok(Some((response.into_parts().0, length)))
    }
}

fn headers(lines: &str) -> Result<HeaderMap, Refusal> {
    let mut headers = HeaderMap::new();
    for line in lines.lines().filter(|line| !line.trim().is_empty()) {
        let field = line.split_once(':').and_then(|(name, value)| {
            Some((HeaderName::try_from(name.trim()).ok()?, HeaderValue::try_from(value.trim()).ok()?))
        });
        let Some((name, value)) = field else {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "a header field is `name: value`, one a line"));
        };
        headers.append(name, value);
    }
    Ok(headers)
}

type Named = (Arc<str>, Arc<Route>);

/// Returns the route that would get the request: the requested route, or one whose pattern matches the path.
fn find_route<'a>(
    routes: &'a [Named],
    query: &LookupQuery,
    request: &request::Parts,
) -> Result<&'a Named, Refusal> {
    let kinds: &[Kind] = match request.method {
        Method::GET | Method::HEAD => &[Kind::Read],
        _ => &[Kind::Write, Kind::EvictKey, Kind::EvictGroup, Kind::EvictTags],
    };
    let mut known = routes.iter().filter(|(_, route)| kinds.contains(&route.policy.rule().kind));
    let found = match query.route.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => known.find(|(known, _)| **known == *name),
        None => known.find(|(pattern, _)| matches(pattern, request.uri.path())),
    };
    found.ok_or(Refusal::new(
        StatusCode::NOT_FOUND,
        "no route for this was asked yet, by its pattern: choose one by its name",
    ))
}

/// Returns `true` if a path matches a router's pattern: `{name}` or `:name` for a segment, `{*name}` or `*name` for the
/// rest.
fn matches(pattern: &str, path: &str) -> bool {
    let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
    loop {
        match (pattern.next(), path.next()) {
            (None, None) => return true,
            (Some(rest), Some(_)) if rest.starts_with('*') || rest.starts_with("{*") => return true,
            (Some(any), Some(segment))
                if any.starts_with(':') || (any.starts_with('{') && any.ends_with('}')) =>
            {
                if segment.is_empty() {
                    return false;
                }
            }
            (Some(wanted), Some(segment)) if wanted == segment => {}
            _ => return false,
        }
    }
}

/// Returns the request as the router passes it on, if the route's label is its pattern.
fn routed<'a>(name: &'a str, request: &'a request::Parts) -> RequestView<'a> {
    let is_pattern = matches(name, request.uri.path());
    RequestView::from(request).with_pattern(is_pattern.then_some(name))
}

/// Returns the key of a request, even of one that would bypass the cache.
async fn route_key(route: &Route, view: &RequestView<'_>) -> Option<CacheKey> {
    match route.policy.on_request(view) {
        OnRequest::Lookup(lookup) => route.key(view, lookup.principal()).await,
        OnRequest::Forward(forward) if !matches!(forward.kind(), Kind::EvictGroup | Kind::EvictTags) => {
            route.key(view, forward.principal()).await
        }
        OnRequest::Forward(_) => None,
        OnRequest::Bypass(_) if route.policy.rule().audience.is_private() => None,
        OnRequest::Bypass(_) => route.key(view, None).await,
    }
}

/// Returns `true` if the request comes from the console's own page.
fn is_from_page(headers: &HeaderMap) -> bool {
    if !headers.contains_key(FROM_PAGE) {
        return false;
    }
    // The browser sets this field, and scripts can't change it. It is absent over insecure connections.
    if let Some(site) = headers.get(SEC_FETCH_SITE) {
        return site == "same-origin";
    }
    match headers.get(ORIGIN) {
        // The client isn't a browser, or this is the `GET` of the page.
        None => true,
        Some(origin) => {
            let host = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
            host.is_some_and(|(_, host)| headers.get(HOST).is_some_and(|own| own == host))
        }
    }
}

/// Returns the page with its style and script, and with a nonce that admits only these.
fn page() -> Result<Response<Bytes>, Refusal> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)
        .map_err(|_| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "there is no randomness"))?;
    let nonce = format!("{:032x}", u128::from_be_bytes(random));
    let page = PAGE.replace("{style}", STYLE).replace("{script}", SCRIPT).replace("{nonce}", &nonce);
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    );
    let mut response = Response::new(Bytes::from(page));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    if let Ok(policy) = HeaderValue::try_from(policy) {
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    }
    Ok(response)
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal { status: StatusCode::BAD_REQUEST, text: error.to_string() })
}

fn as_json(value: &impl Serialize) -> Response<Bytes> {
    let mut response = Response::new(serde_json::to_vec(value).unwrap_or_default().into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The reason why a request to the console is refused.
struct Refusal {
    status: StatusCode,
    text: String,
}

impl Refusal {
    fn new(status: StatusCode, text: &str) -> Self {
        Self { status, text: text.to_owned() }
    }

    fn into_response(self) -> Response<Bytes> {
        let mut response = as_json(&json!({ "error": self.text }));
        *response.status_mut() = self.status;
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_both_routers_match() {
        for (pattern, path, expected) in [
            ("/products/{id}", "/products/7", true),
            ("/products/:id", "/products/7", true),
            ("/products/{id}", "/products/", false),
            ("/products/{id}", "/products/7/view", false),
            ("/files/{*path}", "/files/a/b", true),
            ("/files/*path", "/files/a/b", true),
            ("/products", "/products", true),
            ("/products", "/product", false),
            ("hello", "/hello", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn only_requests_from_the_page_are_accepted() {
        let ask = |fields: &[(&str, &str)]| {
            let mut headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("a.example"))]);
            for (name, value) in fields {
                headers.insert(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
            }
            is_from_page(&headers)
        };
        let page = ("x-larder-console", "1");
        assert!(ask(&[page]));
        assert!(ask(&[page, ("sec-fetch-site", "same-origin")]));
        assert!(ask(&[page, ("origin", "http://a.example")]));
        assert!(!ask(&[]));
        assert!(!ask(&[("sec-fetch-site", "same-origin")]));
        assert!(!ask(&[page, ("sec-fetch-site", "same-site")]));
        assert!(!ask(&[page, ("sec-fetch-site", "cross-site")]));
        assert!(!ask(&[page, ("sec-fetch-site", "none")]));
        assert!(!ask(&[page, ("origin", "http://b.example")]));
        assert!(!ask(&[page, ("origin", "null")]));
    }
}
