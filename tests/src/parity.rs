//! One table for all adapters: the options of a route, the requests to it, and the expected responses.
//!
//! Each [`Row`] is data. [`check_on_memory`] builds the same small service from it with plain tower, axum or poem, serves it over
//! a real connection, and compares every response. All rows run through every adapter, on every store.
//!
//! Each service has the resources `/x` and `/y`, at the top and under the nested routers `/v1` and `/v2`. GET and HEAD use
//! `cache`, PUT uses `cache_put`, DELETE uses `cache_evict` of the key, and POST uses `cache_evict` of the whole group.

mod apps;
mod origin;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use larder_core::key::DEFAULT_PREFIX;
use larder_core::store::redis::{RedisOptions, RedisStore};
use larder_core::store::{LeaseStore, MemoryStore};
use larder_core::{CacheKey, Clock, KeySpace, Larder, ManualClock, RequestView};

use crate::in_process::{Answer, Runs};
use crate::redis_server::RedisServer;

pub use apps::Adapter;
pub use origin::{Content, Origin, says};

/// The TTL, in seconds, of routes that set none.
pub const DEFAULT_TTL: u64 = 900;

/// In a request, the value of a field that stands for the entity tag of the previous response.
pub const LAST_ETAG: &str = "@etag";

/// In an expected response, the value of a field that must be present and may have any value.
pub const ANY: &str = "@any";

/// A scenario.
#[derive(Clone, Debug)]
pub struct Row {
    name: &'static str,
    options: Vec<Opt>,
    reads: Origin,
    writes: Origin,
    only: Vec<Adapter>,
    steps: Vec<Step>,
}

/// An option of a route. It is set on all routes of a row that have it.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each is the builder method of the same name")]
pub enum Opt {
    Group(&'static str),
    Prefix(&'static str),
    Ttl(u64),
    NoExpiry,
    Public,
    Private,
    Params(&'static [&'static str]),
    ByHost,
    MaxBody(u64),
    DownstreamTtl(u64),
    StaleIfError(u64),
    Also(u16, u64),
    KeyBy(fn(&RequestView<'_>) -> Option<String>),
    /// `key_by_async` with a builder that sleeps first.
    KeyByAsync(fn(&RequestView<'_>) -> Option<String>),
}

#[derive(Clone, Debug)]
enum Step {
    Ask(Ask, Expect),
    Later(Duration),
    Runs(usize),
    Holds(&'static str, bool),
}

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    method: Method,
    uri: &'static str,
    fields: Vec<(&'static str, &'static str)>,
    body: &'static str,
}

/// The expected response. Parts that are not set are not checked.
#[derive(Clone, Debug)]
pub struct Expect {
    status: u16,
    word: Option<&'static str>,
    why: Option<&'static str>,
    text: Option<&'static str>,
    fields: Vec<(&'static str, Option<&'static str>)>,
}

impl Row {
    /// Creates a scenario of routes with these options. Their handlers answer 200 and count.
    #[must_use]
    pub fn new(name: &'static str, options: &[Opt]) -> Self {
        let (options, reads, writes) = (options.to_vec(), Origin::default(), Origin::default());
        Self { name, options, reads, writes, only: Vec::new(), steps: Vec::new() }
    }

    /// Sets the handler of GET.
    #[must_use]
    pub fn reads(self, reads: Origin) -> Self {
        Self { reads, ..self }
    }

    /// Sets the handlers of PUT, DELETE and POST.
    #[must_use]
    pub fn writes(self, writes: Origin) -> Self {
        Self { writes, ..self }
    }

    /// Limits the row to these adapters, for what frameworks do differently.
    #[must_use]
    pub fn only(self, adapters: &[Adapter]) -> Self {
        Self { only: adapters.to_vec(), ..self }
    }

    /// Adds a request and the expected response.
    #[must_use]
    pub fn on(self, ask: Ask, expect: Expect) -> Self {
        self.step(Step::Ask(ask, expect))
    }

    /// Advances the clock.
    #[must_use]
    pub fn later(self, seconds: u64) -> Self {
        self.step(Step::Later(Duration::from_secs(seconds)))
    }

    /// Expects this number of runs of all handlers together.
    #[must_use]
    pub fn runs(self, total: usize) -> Self {
        self.step(Step::Runs(total))
    }

    /// Expects an entry with this key in the store.
    #[must_use]
    pub fn holds(self, name: &'static str) -> Self {
        self.step(Step::Holds(name, true))
    }

    /// Expects no entry with this key in the store.
    #[must_use]
    pub fn lacks(self, name: &'static str) -> Self {
        self.step(Step::Holds(name, false))
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Returns the prefix of the row's keys.
    fn prefix(&self) -> &'static str {
        let named = |option: &Opt| if let Opt::Prefix(prefix) = option { Some(*prefix) } else { None };
        self.options.iter().find_map(named).unwrap_or(DEFAULT_PREFIX)
    }

    /// Returns the key with this full name.
    fn key(&self, name: &str) -> CacheKey {
        let rest = name.strip_prefix(self.prefix()).and_then(|rest| rest.strip_prefix(':'));
        let rest = rest.unwrap_or_else(|| panic!("{name} is no name in this row"));
        let (group, suffix) = match rest.strip_prefix('{').and_then(|rest| rest.split_once("}:")) {
            Some((group, suffix)) => (Some(group), suffix),
            None => (None, rest),
        };
        let key = KeySpace::new(self.prefix(), group).unwrap().key(suffix);
        assert_eq!(key.name(), name);
        key
    }
}

/// Makes a request with this method.
#[must_use]
pub fn ask(method: Method, uri: &'static str) -> Ask {
    Ask { method, uri, fields: Vec::new(), body: "" }
}

/// Makes a GET.
#[must_use]
pub fn get(uri: &'static str) -> Ask {
    ask(Method::GET, uri)
}

impl Ask {
    /// Adds a field.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.fields.push((name, value));
        self
    }

    /// Sets the content.
    #[must_use]
    pub fn content(self, body: &'static str) -> Self {
        Self { body, ..self }
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.method, self.uri, self.fields)
    }
}

/// An answer with this status, whatever the cache says about it.
#[must_use]
pub fn status(status: u16) -> Expect {
    Expect { status, word: None, why: None, text: None, fields: Vec::new() }
}

/// A stored 200 with this text.
#[must_use]
pub fn hit(text: &'static str) -> Expect {
    status(200).says("HIT").text(text)
}

/// A 200 with this text from the handler, which could be stored.
#[must_use]
pub fn miss(text: &'static str) -> Expect {
    status(200).says("MISS").text(text)
}

/// A 200 with this text that bypassed the cache for this reason.
#[must_use]
pub fn bypass(why: &'static str, text: &'static str) -> Expect {
    status(200).says("BYPASS").because(why).text(text)
}

/// A 304 without a body.
#[must_use]
pub fn not_modified(word: &'static str) -> Expect {
    status(304).says(word).text("").without("content-type")
}

impl Expect {
    /// Expects HIT, MISS or BYPASS.
    #[must_use]
    pub fn says(self, word: &'static str) -> Self {
        Self { word: Some(word), ..self }
    }

    /// Expects this reason in `Cache-Status`.
    #[must_use]
    pub fn because(self, why: &'static str) -> Self {
        Self { why: Some(why), ..self }
    }

    /// Expects this body.
    #[must_use]
    pub fn text(self, text: &'static str) -> Self {
        Self { text: Some(text), ..self }
    }

    /// Expects another status.
    #[must_use]
    pub fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    /// Expects this field.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.fields.push((name, Some(value)));
        self
    }

    /// Expects that this field is missing.
    #[must_use]
    pub fn without(mut self, name: &'static str) -> Self {
        self.fields.push((name, None));
        self
    }

    fn check(&self, answer: &Answer) -> Result<(), String> {
        let same = |what: &str, expected: &str, found: &str| match expected == found {
            true => Ok(()),
            false => Err(format!("{what} is {found:?}, not {expected:?}; {answer:?}")),
        };
        same("the status", &self.status.to_string(), answer.status.as_str())?;
        if let Some(word) = self.word {
            same("the cache's word", word, answer.cache())?;
        }
        if let Some(why) = self.why {
            let found = answer.header("cache-status").rsplit("detail=").next().unwrap_or_default();
            same("the reason", why, found)?;
        }
        if let Some(text) = self.text {
            same("the body", text, answer.text())?;
        }
        for (name, expected) in &self.fields {
            match (expected, answer.headers.get(*name)) {
                (None, None) => {}
                (Some(value), Some(_)) if *value == ANY => {}
                (Some(value), _) => same(name, value, answer.header(name))?,
                (None, Some(_)) => return Err(format!("there is a {name}; {answer:?}")),
            }
        }
        // Stored bodies are complete, so a hit always has a `Content-Length`.
        if self.word == Some("HIT") && self.status == 200 && answer.header("content-length").is_empty() {
            return Err(format!("a hit has no length; {answer:?}"));
        }
        Ok(())
    }
}

/// Runs all rows through one adapter, on the store in memory. Panics with the list of all mismatches.
pub async fn check_on_memory(adapter: Adapter, rows: &[Row]) {
    let mut wrong = Vec::new();
    for row in rows.iter().filter(|row| row.is_for(adapter)) {
        wrong.extend(row.run(adapter, MemoryStore::new()).await.err());
    }
    report(adapter, &wrong);
}

/// Runs all rows through one adapter, on Redis. Panics with the list of all mismatches.
pub async fn check_on_redis(adapter: Adapter, rows: &[Row]) {
    let server = RedisServer::start();
    // Long deadlines: the rows must not fail on a busy machine.
    let long = Duration::from_secs(10);
    let options = RedisOptions::from_url(&server.url()).unwrap();
    let options = options.read_deadline(long).fill_deadline(long).evict_deadline(long).connect_deadline(long);
    let client = redis::Client::open(server.url()).unwrap();
    let mut commands = client.get_multiplexed_async_connection().await.unwrap();
    let mut wrong = Vec::new();
    for row in rows.iter().filter(|row| row.is_for(adapter)) {
        wrong.extend(row.run(adapter, RedisStore::new(options.clone())).await.err());
        let () = redis::cmd("FLUSHALL").query_async(&mut commands).await.unwrap();
    }
    report(adapter, &wrong);
}

fn report(adapter: Adapter, wrong: &[String]) {
    assert!(wrong.is_empty(), "through {adapter:?}:\n{}", wrong.join("\n"));
}

impl Row {
    fn is_for(&self, adapter: Adapter) -> bool {
        self.only.is_empty() || self.only.contains(&adapter)
    }

    async fn run(&self, adapter: Adapter, mut store: impl LeaseStore + Clone) -> Result<(), String> {
        let clock = ManualClock::new();
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        // The builder sets the clock of its own copy only.
        store.set_clock(&shared);
        let larder = Larder::builder()
            .default_ttl(DEFAULT_TTL)
            .cache_status(true)
            .clock(shared)
            .store(store.clone())
            .build();
        let runs = Runs::new();
        let app = apps::serve(adapter, &larder, self, &runs).await;
        let client: Client<HttpConnector, Full<Bytes>> =
            Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        let mut etag = String::new();
        for (index, step) in self.steps.iter().enumerate() {
            let wrong = |what: String| format!("- {}, step {}: {what}", self.name, index + 1);
            match step {
                Step::Later(duration) => clock.advance(*duration),
                Step::Runs(total) if *total == runs.total() => {}
                Step::Runs(total) => return Err(wrong(format!("{} runs, not {total}", runs.total()))),
                Step::Holds(name, expected) => {
                    if store.has(&self.key(name)).await.unwrap() != *expected {
                        return Err(wrong(format!("{name} should be there: {expected}")));
                    }
                }
                Step::Ask(ask, expect) => {
                    let mut request = Request::builder()
                        .method(&ask.method)
                        .uri(format!("http://{}{}", app.address, ask.uri));
                    for (name, value) in &ask.fields {
                        request = request.header(*name, if *value == LAST_ETAG { &etag } else { *value });
                    }
                    let request = request.body(Full::from(ask.body)).unwrap();
                    let (parts, body) = client.request(request).await.unwrap().into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    let answer = Answer { status: parts.status, headers: parts.headers, body };
                    expect.check(&answer).map_err(|what| wrong(format!("{ask}: {what}")))?;
                    if !answer.header("etag").is_empty() {
                        etag = answer.header("etag").to_owned();
                    }
                }
            }
        }
        larder.close().await;
        Ok(())
    }
}
