//! The handler that all frameworks run: a function of the state and of the fields that its route reads.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, Uri};
use larder_core::CacheBackend;

use super::request::{OUTCOME, SLOW};
use super::world::{Audience, NAMED, Query, Read, Route, Shape, World};

/// The versions of all resources.
#[derive(Clone, Debug, Default)]
pub(super) struct State(Arc<Mutex<HashMap<String, Version>>>);

#[derive(Clone, Copy, Debug, Default)]
struct Version {
    number: u64,
    is_deleted: bool,
}

impl State {
    fn of(&self, resource: &str) -> Option<Version> {
        self.0.lock().unwrap().get(resource).copied()
    }

    fn change(&self, resource: &str, is_deleted: bool) {
        let mut all = self.0.lock().unwrap();
        let version = all.entry(resource.to_owned()).or_default();
        *version = Version { number: version.number + 1, is_deleted };
    }
}

/// The time that a handler hangs, in real and in virtual time.
pub(super) const HANGS: Duration = Duration::from_millis(60);

/// The time that a slow handler takes to respond.
pub(super) const SLOWLY: Duration = Duration::from_millis(8);

/// The deadline of a timeout layer.
pub(super) const TIMEOUT: Duration = Duration::from_millis(20);

/// The request as a framework passes it to a handler.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) method: Method,
    /// The pattern that the router matched, with the mounts in front.
    pub(super) pattern: String,
    /// The decoded values of the pattern's captures.
    pub(super) params: Vec<String>,
    /// The URI that the router passes on.
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) content: Bytes,
    pub(super) is_poem: bool,
}

/// A handler's route, state and backend.
#[derive(Clone, Debug)]
pub(super) struct Handling {
    pub(super) route: Arc<Route>,
    pub(super) mount: &'static str,
    pub(super) state: State,
    pub(super) backend: Option<CacheBackend>,
    /// The route of the resource that a POST creates.
    pub(super) created: Option<Arc<Route>>,
    /// Resources differ by scheme, host and the spelling of the query, as in a shared cache.
    pub(super) by_uri: bool,
}

/// The last segment of the resource that a POST to `/items` creates.
pub(super) const CREATED: &str = "new1";

/// Returns the pairs of a query as a form decoder sees them, sorted by name.
pub(super) fn pairs(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| percent_decode(&text.replace('+', " "));
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let mut pairs: Vec<_> = pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect();
    pairs.sort_by(|a, b| a.0.cmp(&b.0));
    pairs
}

/// Decodes every valid escape.
pub(super) fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let hex = text.get(index + 1..index + 3).filter(|_| bytes[index] == b'%');
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                index += 3;
            }
            None => {
                decoded.push(bytes[index]);
                index += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Decodes a query's escapes of unreserved characters and puts the others in upper case (RFC 3986 §6.2.2).
fn normalise(query: &str) -> String {
    let mut normal = String::new();
    let mut rest = query;
    while let Some((before, after)) = rest.split_once('%') {
        normal += before;
        match after.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                normal.push(char::from(byte))
            }
            Some(byte) => normal += &format!("%{byte:02X}"),
            None => normal.push('%'),
        }
        rest = after.get(2..).unwrap_or_default();
    }
    normal + rest
}

/// Returns `true` if `gzip` is acceptable.
pub(super) fn takes_gzip(headers: &HeaderMap) -> bool {
    let all = headers.get_all("accept-encoding").iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(',')).any(|coding| {
        let (name, quality) = coding.split_once(';').unwrap_or((coding, "q=1"));
        name.trim().eq_ignore_ascii_case("gzip") && quality.trim() != "q=0"
    })
}

impl Handling {
    pub(super) fn new(
        world: &World,
        route: &Route,
        mount: &'static str,
        state: State,
        backend: Option<CacheBackend>,
    ) -> Self {
        let created = world.created().cloned().map(Arc::new);
        let by_uri = world.place.is_shared();
        Self { route: Arc::new(route.clone()), mount, state, backend, created, by_uri }
    }

    pub(super) async fn answer(&self, facts: Facts) -> Response<Bytes> {
        let handler = &self.route.handler;
        let field = |name: &str| facts.headers.get(name).map_or("", |value| value.to_str().unwrap_or("?"));
        let host =
            facts.uri.authority().map_or(field("host"), |authority| authority.as_str()).to_ascii_lowercase();
        let mut resource = self.resource(&self.route, &facts.pattern, &facts.params, &facts, &host);
        let list = format!("list {}", self.mount);
        if handler.is_list {
            resource = list.clone();
        }
        let is_write = [Method::PUT, Method::DELETE].contains(&facts.method);
        let mut count = None;
        if is_write && !handler.is_read_only {
            let refused = match field(OUTCOME) {
                "403" => Some(StatusCode::FORBIDDEN),
                "409" => Some(StatusCode::CONFLICT),
                _ => None,
            };
            if let Some(status) = refused {
                return plain(status, "refused");
            }
            self.state.change(&resource, facts.method == Method::DELETE);
            self.state.change(&list, false);
            count = self.count(&resource).await;
            match field(OUTCOME) {
                "408" => return plain(StatusCode::REQUEST_TIMEOUT, "too late"),
                "500" => return plain(StatusCode::INTERNAL_SERVER_ERROR, "failed after the change"),
                "502" => return plain(StatusCode::BAD_GATEWAY, "failed after the change"),
                "hang" => tokio::time::sleep(HANGS).await,
                // Unlike `panic!`, this prints no message.
                "panic" => std::panic::resume_unwind(Box::new("after the change")),
                _ => {}
            }
            if facts.method == Method::DELETE {
                let mut response = Response::new(Bytes::new());
                *response.status_mut() = StatusCode::NO_CONTENT;
                return counted(response, count);
            }
        }
        if facts.method == Method::POST {
            return self.create(&facts, &host, &list);
        }
        let response = self.represent(&facts, &resource, &host).await;
        if !field(SLOW).is_empty() {
            tokio::time::sleep(SLOWLY).await;
        }
        counted(response, count)
    }

    fn create(&self, facts: &Facts, host: &str, list: &str) -> Response<Bytes> {
        let Some(created) = self.created.as_ref().filter(|_| self.route.pattern == "/items") else {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "nothing to create");
        };
        let capture = if facts.is_poem { ":id" } else { "{id}" };
        let pattern = format!("{}/{capture}", facts.pattern);
        let resource = self.resource(created, &pattern, &[CREATED.to_owned()], facts, host);
        self.state.change(&resource, false);
        self.state.change(list, false);
        let mut response = plain(StatusCode::CREATED, "created");
        let location = format!("{}/{CREATED}", facts.pattern);
        if let Ok(location) = location.parse() {
            response.headers_mut().insert("location", location);
        }
        response
    }

    /// Returns the name of the resource that is read or written.
    fn resource(&self, route: &Route, pattern: &str, params: &[String], facts: &Facts, host: &str) -> String {
        let field = |name: &str| facts.headers.get(name).map_or("", |value| value.to_str().unwrap_or("?"));
        let mut resource = format!("{pattern} {params:?}");
        if self.by_uri {
            let query = facts.uri.query().map(normalise);
            resource += &format!(" {query:?} at {:?} {host}", facts.uri.scheme_str().unwrap_or("http"));
        } else if route.handler.query == Query::Part {
            resource += &format!(" {:?}", pairs(facts.uri.query().unwrap_or_default()));
        }
        if route.handler.reads.contains(&Read::Host) || route.rule.by_host {
            resource += &format!(" at {host}");
        }
        match route.rule.audience {
            Audience::Private => resource += &format!(" of {}", field("authorization")),
            Audience::PrivateByCookie => resource += &format!(" of {}", field("cookie")),
            Audience::Undeclared | Audience::Public => {}
        }
        resource
    }

    async fn represent(&self, facts: &Facts, resource: &str, host: &str) -> Response<Bytes> {
        let handler = &self.route.handler;
        let field = |name: &str| facts.headers.get(name).map_or("", |value| value.to_str().unwrap_or("?"));
        let known = self.state.of(resource);
        let version = known.unwrap_or_default();
        let mut text = format!("{} {resource} v{}", handler.name, version.number);
        let mut response = Response::builder().header("content-type", "text/plain");
        let status = match handler.shape {
            _ if version.is_deleted => StatusCode::NOT_FOUND,
            Shape::Missing if known.is_none() => StatusCode::NOT_FOUND,
            Shape::Moved => StatusCode::MOVED_PERMANENTLY,
            Shape::Failing if version.number % 2 == 1 => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::OK,
        };
        if status == StatusCode::MOVED_PERMANENTLY {
            response = response.header("location", "/moved");
        }
        match handler.query {
            Query::Read => text += &format!(" query {:?}", pairs(facts.uri.query().unwrap_or_default())),
            Query::Named => {
                let named = pairs(facts.uri.query().unwrap_or_default())
                    .into_iter()
                    .filter(|(name, _)| NAMED.contains(&name.as_str()));
                text += &format!(" query {:?}", named.collect::<Vec<_>>());
            }
            Query::Ignored | Query::Part => {}
        }
        let mut encoded = false;
        for read in &handler.reads {
            match read {
                Read::Host => text += &format!(" host {host}"),
                Read::Language => {
                    text += &format!(" language {}", field("accept-language"));
                    response = response.header("vary", "accept-language");
                }
                Read::Encoding | Read::EncodingSometimes | Read::EncodingSilently => {
                    encoded = takes_gzip(&facts.headers);
                    if *read == Read::Encoding || (encoded && *read == Read::EncodingSometimes) {
                        response = response.header("vary", "Accept-Encoding");
                    }
                }
                Read::Origin | Read::OriginSometimes => {
                    let origin = field("origin");
                    if !origin.is_empty() {
                        response = response.header("access-control-allow-origin", origin);
                    }
                    if !origin.is_empty() || *read == Read::Origin {
                        response = response.header("vary", "origin");
                    }
                }
                Read::Credential(name) | Read::Steering(name) => text += &format!(" {name} {}", field(name)),
                Read::Content => text += &format!(" content {:?}", facts.content),
                Read::Scheme => text += &format!(" scheme {:?}", facts.uri.scheme_str()),
                // Reading makes a local tier keep the count.
                Read::Counter => drop(self.counter(resource).await),
                Read::Backend => text += &format!(" number {}", self.number(resource, version.number).await),
            }
        }
        if handler.sets_cookie {
            response = response.header("set-cookie", format!("s={}", field("x-client")));
        }
        if let Some(value) = handler.cache_control {
            response = response.header("cache-control", value);
        }
        if encoded {
            text.insert_str(0, "gzipped: ");
            response = response.header("content-encoding", "gzip");
        }
        if handler.etag {
            response = response.header("etag", format!("\"{:x}\"", hash(&text)));
        }
        if handler.last_modified {
            let minute = version.number % 60;
            response = response.header("last-modified", format!("Wed, 01 Jan 2025 10:{minute:02}:00 GMT"));
        }
        response.status(status).body(Bytes::from(text)).unwrap()
    }

    /// Counts a write, if the handler counts. Each process must see the others' counts.
    async fn count(&self, resource: &str) -> Option<u64> {
        if !self.route.handler.reads.contains(&Read::Counter) {
            return None;
        }
        let Some(backend) = self.counts() else {
            let key = format!("count {resource}");
            self.state.change(&key, false);
            return self.state.of(&key).map(|version| version.number);
        };
        let more = |count: Option<u64>| count.unwrap_or_default() + 1;
        backend.update(&key_of(resource), Duration::from_secs(1 << 20), more).await.ok()
    }

    /// Returns the number of writes that the cache has counted.
    async fn counter(&self, resource: &str) -> Option<u64> {
        self.counts()?.get(&key_of(resource)).await
    }

    fn counts(&self) -> Option<CacheBackend> {
        self.backend.as_ref().map(|backend| backend.group("counts"))
    }

    /// Computes a number that differs for each resource and version.
    async fn number(&self, resource: &str, version: u64) -> f64 {
        // Seventeen digits, the most that an `f64` needs.
        let number = (hash(&format!("{resource} {version}")) >> 11) as f64 / 9_007_199_254.740_993;
        let Some(backend) = &self.backend else { return number };
        let key = format!("number {:x} {version}", hash(resource));
        let backend = backend.group("numbers");
        backend.get_or_set(&key, 600, || async { Ok::<_, ()>(number) }).await.unwrap_or(f64::NAN)
    }
}

fn key_of(resource: &str) -> String {
    format!("{:x}", hash(resource))
}

fn counted(mut response: Response<Bytes>, count: Option<u64>) -> Response<Bytes> {
    if let Some(count) = count {
        response.headers_mut().insert("x-count", count.into());
    }
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Bytes> {
    Response::builder().status(status).body(Bytes::from_static(text.as_bytes())).unwrap()
}

/// FNV-1a.
pub(super) fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
