//! Runs a case: sends the same requests to both applications, and compares the responses.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join, join_all};
use http::{Method, StatusCode};
use larder_core::store::MemoryStore;
use larder_core::store::redis::{RedisOptions, RedisStore};
use larder_core::{CacheStore as _, KeySpace, Larder, ManualClock};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep, timeout};

use super::Case;
use super::accept::{as_seen_by, follows, may_be_missing, same, says_what_it_depends_on};
use super::apps::{self, Kit};
use super::browser::Browser;
use super::handler::{SLOWLY, State, pairs, percent_decode};
use super::late::{LATE, proxy};
use super::request::{Ask, Op};
use super::wire::App;
use super::world::{Route, Store, World, Wrap};
use crate::in_process::Answer;
use crate::redis_server::{RedisServer, patient};
use crate::tier;

/// A difference that is not allowed.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The kind of difference: `status`, `body`, `field vary`, `waited`, …
    pub kind: String,
    /// The values that differ.
    pub detail: String,
    /// The index of the operation.
    pub at: usize,
}

impl Difference {
    pub(super) fn of(kind: &str, detail: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), detail: detail.into(), at: 0 }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.detail)
    }
}

/// The longest time that a response may take, in virtual time and in real time on a busy machine.
const VIRTUAL_LIMIT: Duration = Duration::from_millis(500);
const REAL_LIMIT: Duration = Duration::from_secs(5);

/// The runtimes of cases, and a Redis for those that need one. They start when they are first used.
#[derive(Debug, Default)]
pub struct Stores {
    real: Option<Runtime>,
    redis: Option<RedisServer>,
    proxy: Option<u16>,
    cases: u64,
    /// The number of requests so far.
    pub requests: u64,
    /// Compares the application without Larder with itself. The harness must find no difference then.
    pub without_larder: bool,
}

impl Stores {
    /// Runs a case to its end or its first difference.
    ///
    /// # Errors
    ///
    /// Returns that difference.
    pub fn run(&mut self, case: &Case) -> Result<(), Difference> {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.run_here(case)));
        outcome.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Err(Difference::of("panic", text.or(panic.downcast_ref().copied()).unwrap_or("of another kind")))
        })
    }

    fn run_here(&mut self, case: &Case) -> Result<(), Difference> {
        let count = |op: &Op| match op {
            Op::Together(asks) => asks.len() as u64,
            Op::Ask(_) | Op::Hanging(_) => 1,
            Op::Across(..) => 2,
            Op::Later(_) | Op::Settle => 0,
        };
        self.requests += case.ops.iter().map(count).sum::<u64>();
        self.cases += 1;
        if case.world.is_virtual() {
            let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            let clock = ManualClock::new();
            let store = MemoryStore::with_capacity(4 << 20);
            let larder = Larder::builder().clock(Arc::new(clock.clone())).store(store).build();
            return runtime.block_on(whole(case, clock, vec![larder], !self.without_larder));
        }
        let runtime =
            self.real.take().unwrap_or_else(|| Builder::new_current_thread().enable_all().build().unwrap());
        let outcome = self.run_in_real_time(&runtime, case);
        self.real = Some(runtime);
        outcome
    }

    fn run_in_real_time(&mut self, runtime: &Runtime, case: &Case) -> Result<(), Difference> {
        let clock = ManualClock::new();
        let prefix = format!("t{}", self.cases);
        let builder = || Larder::builder().prefix(&prefix).clock(Arc::new(clock.clone()));
        if case.world.store == Store::Memory {
            let store = MemoryStore::with_capacity(4 << 20);
            let larder = builder().store(store).build();
            return runtime.block_on(whole(case, clock.clone(), vec![larder], !self.without_larder));
        }
        let server = self.redis.get_or_insert_with(RedisServer::start);
        let port = server.port();
        runtime.block_on(async {
            let is_tier = case.world.store == Store::Tier;
            let port = match is_tier {
                true if self.proxy.is_some() => self.proxy.unwrap_or(port),
                true => *self.proxy.insert(proxy(port).await),
                false => port,
            };
            let mut larders = Vec::new();
            for number in 0..case.world.processes() {
                let options = patient(RedisOptions::from_url(&format!("redis://127.0.0.1:{port}/")).unwrap());
                let store = RedisStore::new(options);
                if !is_tier {
                    larders.push(builder().store(store).build());
                    continue;
                }
                let store = store.with_local(&prefix, 1 << 20);
                // Until its connection for messages is ready, a process reads everything from Redis.
                let key = KeySpace::new(&prefix, Some("warm")).unwrap().key(&number.to_string());
                store.set(&key, "warm".into(), tier::MINUTE).await.unwrap();
                tier::comes_here(&store, &key, Duration::from_secs(10)).await;
                larders.push(builder().store(store).build());
            }
            whole(case, clock.clone(), larders, !self.without_larder).await
        })
    }
}

/// Returns a name for what a request reads or writes, at least as narrow as any route's.
fn resource(ask: &Ask) -> String {
    let (path, query) = ask.target.split_once('?').unwrap_or((&ask.target, ""));
    let (path, pairs) = (percent_decode(path), pairs(query));
    let (user, cookie) = (ask.field("authorization"), ask.field("cookie"));
    format!("{} {} {path} {pairs:?} {user} {cookie}", ask.https, ask.host)
}

/// The state of one run.
struct Run<'a> {
    world: &'a World,
    bare: App,
    cached: Vec<Arc<App>>,
    clock: ManualClock,
    browser: Browser,
    /// The bodies of responses, by target, tag and coding.
    tagged: HashMap<(String, String, String), Bytes>,
    last_etag: String,
    /// The tag that the requests in progress were sent with.
    sent_etag: String,
    /// The writes since all messages arrived: the process that wrote, and the resource.
    written: Vec<(usize, String)>,
    hanging: Vec<tokio::task::JoinHandle<()>>,
    with_larder: bool,
}

async fn whole(
    case: &Case,
    clock: ManualClock,
    larders: Vec<Larder>,
    with_larder: bool,
) -> Result<(), Difference> {
    let world = &case.world;
    let bare = apps::build(world, &Kit { larder: None, state: State::default() }).await;
    let state = State::default();
    let mut cached = Vec::new();
    for larder in &larders {
        let kit = Kit { larder: with_larder.then(|| larder.clone()), state: state.clone() };
        cached.push(Arc::new(apps::build(world, &kit).await));
    }
    let (browser, tagged) = (Browser::default(), HashMap::new());
    let hanging = Vec::new();
    let mut run = Run {
        world,
        bare,
        cached,
        clock,
        browser,
        tagged,
        last_etag: "\"none\"".to_owned(),
        sent_etag: String::new(),
        written: Vec::new(),
        hanging,
        with_larder,
    };
    for (at, op) in case.ops.iter().enumerate() {
        run.op(op).await.map_err(|difference| Difference { at, ..difference })?;
    }
    for task in &run.hanging {
        task.abort();
    }
    Ok(())
}

impl Run<'_> {
    async fn op(&mut self, op: &Op) -> Result<(), Difference> {
        self.sent_etag.clone_from(&self.last_etag);
        match op {
            Op::Later(seconds) => {
                self.clock.advance(Duration::from_secs(*seconds));
                self.browser.forget();
            }
            Op::Settle => {
                if self.world.store == Store::Tier {
                    sleep(4 * LATE).await;
                }
                self.written.clear();
            }
            Op::Ask(ask) => {
                let cached = self.send(ask).await?;
                self.check(ask, &cached).await?;
            }
            Op::Together(asks) => {
                let answers = join_all(asks.iter().map(|ask| self.send(ask))).await;
                for (ask, answer) in asks.iter().zip(answers) {
                    self.check(ask, &answer?).await?;
                }
            }
            Op::Across(read, write) => {
                let later = async {
                    sleep(SLOWLY / 4).await;
                    self.send(write).await
                };
                let is_told = self.is_told(read);
                let (read_answer, written) = join(self.send(read), later).await;
                let (read_answer, written) = (read_answer?, written?);
                // The read may return the value before the write or after it.
                let bare = self.bare(read).await?;
                let is_old = self.is_right(read, &read_answer, &bare).await?;
                self.check(write, &written).await?;
                // The read started before the write that would have evicted the entry in its process.
                if !is_old && is_told {
                    self.check(read, &read_answer).await?;
                }
            }
            Op::Hanging(ask) => {
                // Its own response doesn't matter. It only has to stay open.
                let app = Arc::clone(self.process(ask));
                let (ask, etag) = (ask.clone(), self.last_etag.clone());
                self.hanging.push(tokio::spawn(async move {
                    let _ = app.send(&ask, &etag).await;
                }));
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
            }
        }
        Ok(())
    }

    fn process(&self, ask: &Ask) -> &Arc<App> {
        &self.cached[ask.process % self.cached.len()]
    }

    /// Sends a request to the application with Larder.
    fn send<'a>(&'a self, ask: &'a Ask) -> impl Future<Output = Result<Answer, Difference>> + 'a {
        let limit = if self.world.is_virtual() { VIRTUAL_LIMIT } else { REAL_LIMIT };
        async move {
            let start = Instant::now();
            match timeout(limit, self.process(ask).send(ask, &self.sent_etag)).await {
                Err(_) => Err(Difference::of("waited", format!("no answer after {:?}", start.elapsed()))),
                Ok(Err(error)) => Err(Difference::of("no answer", error)),
                Ok(Ok(answer)) => Ok(answer),
            }
        }
    }

    async fn bare(&self, ask: &Ask) -> Result<Answer, Difference> {
        let sent = timeout(REAL_LIMIT, self.bare.send(ask, &self.sent_etag)).await;
        sent.unwrap_or_else(|_| Err("no answer in time".to_owned()))
            .map_err(|error| Difference::of("harness", format!("without a cache: {error}")))
    }

    /// Returns `true` if the process that gets this request has seen all writes. Messages about other processes' writes may still
    /// be on their way, but its own later write to the same resource evicts there too.
    fn is_told(&self, ask: &Ask) -> bool {
        let process = ask.process % self.cached.len();
        let Some(last) = self.written.iter().rposition(|(writer, _)| *writer != process) else { return true };
        let asked = resource(ask);
        self.written[last..].iter().any(|(writer, written)| *writer == process && *written == asked)
    }

    /// Compares a response with that of the application without Larder.
    async fn check(&mut self, ask: &Ask, cached: &Answer) -> Result<(), Difference> {
        let bare = self.bare(ask).await?;
        if ask.is_write() {
            self.browser.forget();
            // A refused write changed nothing, and evicts nothing.
            let is_refused = bare.status.is_client_error() && bare.status != StatusCode::REQUEST_TIMEOUT;
            if self.world.store == Store::Tier && !is_refused {
                self.written.push((ask.process % self.cached.len(), resource(ask)));
            }
            return same(cached, &bare);
        }
        if !self.is_told(ask) {
            return Ok(());
        }
        if !self.is_right(ask, cached, &bare).await? {
            return match same(cached, &bare) {
                Err(difference) => Err(difference),
                Ok(()) => Err(Difference::of("status", "an unexpected answer")),
            };
        }
        self.check_tag(ask, cached)?;
        if self.with_larder && !self.world.place.is_shared() {
            self.check_browser(ask, cached, &bare).await?;
        }
        Ok(())
    }

    /// Returns the route whose handler answers this request.
    async fn route(&self, ask: &Ask) -> Result<Option<&Route>, Difference> {
        let mut plain =
            ask.without(|name| ["accept-encoding", "range", "if-none-match", "if-range"].contains(&name));
        plain.method = Method::GET;
        let answer = self.bare(&plain).await?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let name = text.split(' ').next().unwrap_or_default();
        Ok(self.world.all().find(|route| route.handler.name == name))
    }

    /// Returns the requests that a handler may see instead of this one, when the cache answers.
    async fn seen(&self, ask: &Ask, cached: &Answer) -> Result<Vec<Ask>, Difference> {
        let mut seen = vec![ask.clone()];
        if !self.world.place.is_shared() {
            seen.extend(as_seen_by(self.route(ask).await?, ask));
        }
        if !cached.headers.contains_key("content-encoding") {
            let plain: Vec<_> =
                seen.iter().map(|ask| ask.without(|name| name == "accept-encoding")).collect();
            seen.extend(plain);
        }
        Ok(seen)
    }

    /// Returns `true` if a read's response is the one without a cache, or follows from it.
    async fn is_right(&self, ask: &Ask, cached: &Answer, bare: &Answer) -> Result<bool, Difference> {
        if same(cached, bare).is_ok() || may_be_missing(ask, cached) {
            return Ok(true);
        }
        let seen = self.seen(ask, cached).await?;
        const CONDITIONS: [&str; 4] = ["range", "if-none-match", "if-modified-since", "if-range"];
        for ask in seen {
            let mut whole = ask.without(|name| CONDITIONS.contains(&name));
            if same(cached, &self.bare(&ask).await?).is_ok() {
                return Ok(true);
            }
            whole.method = Method::GET;
            if follows(&ask, &self.sent_etag, cached, &self.bare(&whole).await?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Checks that one tag never stands for two bodies.
    fn check_tag(&mut self, ask: &Ask, cached: &Answer) -> Result<(), Difference> {
        let etag = cached.header("etag").to_owned();
        if etag.is_empty() || ask.method != Method::GET || cached.status != StatusCode::OK {
            return Ok(());
        }
        let key = (
            format!("{}{}", ask.host, ask.target),
            etag.clone(),
            cached.header("content-encoding").to_owned(),
        );
        self.last_etag = etag;
        let known = self.tagged.entry(key).or_insert_with(|| cached.body.clone());
        if *known != cached.body {
            return Err(Difference::of("tag", format!("{} stands for two bodies", self.last_etag)));
        }
        Ok(())
    }

    /// Checks that a response which a browser may store is right for the requests that the browser answers with it.
    async fn check_browser(&mut self, ask: &Ask, cached: &Answer, bare: &Answer) -> Result<(), Difference> {
        if self.world.has(Wrap::Compression) {
            return Ok(());
        }
        if let Some((first, kept)) = self.browser.reuse(ask)
            && kept.body != bare.body
            && says_what_it_depends_on(self.world, self.route(ask).await?, first, ask)
            && !self.has_body_for(ask, kept).await?
        {
            let text = |answer: &Answer| String::from_utf8_lossy(&answer.body).into_owned();
            let said = [kept.header("cache-control"), kept.header("vary")].join("; vary: ");
            let detail = format!(
                "a browser would reuse {:?} (of {:?}; {said}) instead of {:?}",
                text(kept),
                first.fields,
                text(bare)
            );
            return Err(Difference::of("browser", detail));
        }
        self.browser.keep(ask, cached);
        Ok(())
    }

    /// Returns `true` if the handler may answer a plain request with this body. Layers outside of the cache add the rest.
    async fn has_body_for(&self, ask: &Ask, kept: &Answer) -> Result<bool, Difference> {
        for seen in self.seen(ask, kept).await? {
            if self.bare(&seen).await?.body == kept.body {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
