//! The safety matrix: failures that must not happen behind a response cache, tested over HTTP on each of them.

use std::fmt;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use larder_benches::RedisServer;
use reqwest::header::{ACCEPT_LANGUAGE, AUTHORIZATION, COOKIE, SET_COOKIE};
use reqwest::{Client, Method, RequestBuilder};
use tokio::time::{sleep, timeout};

use crate::app::{COLD, OVER, SLOW};
use crate::contender::{Contender, Store};
use crate::process::{Cores, Server, signal};

/// The number of concurrent requests to a resource that isn't stored yet.
const CROWD: usize = 50;

/// The time that a stream's first event may take.
const FIRST_EVENT: Duration = Duration::from_secs(2);

/// The time that a request may take while Redis fails. It takes no measurable time while Redis works.
const PATIENCE: Duration = Duration::from_millis(300);

/// The longest wait for one request while Redis fails, and for all of them.
const LONGEST: Duration = Duration::from_secs(60);
const LONGEST_IN_ALL: Duration = Duration::from_secs(30);

/// A failure that must not happen, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hazard {
    Authorization,
    Cookie,
    SetCookie,
    Vary,
    NoStore,
    Private,
    Post,
    Head,
    Stream,
    Crowd,
    Eviction,
    Limit,
    RedisKilled,
    RedisHung,
}

const HAZARDS: [Hazard; 14] = [
    Hazard::Authorization,
    Hazard::Cookie,
    Hazard::SetCookie,
    Hazard::Vary,
    Hazard::NoStore,
    Hazard::Private,
    Hazard::Post,
    Hazard::Head,
    Hazard::Stream,
    Hazard::Crowd,
    Hazard::Eviction,
    Hazard::Limit,
    Hazard::RedisKilled,
    Hazard::RedisHung,
];

/// The rows in the README: one for each of its promises that can be compared.
const EXCERPT: [Hazard; 4] = [Hazard::Authorization, Hazard::Crowd, Hazard::Eviction, Hazard::RedisHung];

/// The columns: each cache with all its forms.
const COLUMNS: [&[Contender]; 7] = [
    &[Contender::Larder, Contender::LarderRedis],
    &[Contender::AxumResponseCache],
    &[Contender::TowerHttpCache, Contender::TowerHttpCacheRedis],
    &[Contender::Hitbox, Contender::HitboxRedis],
    &[Contender::HttpCacheTowerServer],
    &[Contender::Nginx],
    &[Contender::Python],
];

impl Hazard {
    fn title(self) -> String {
        match self {
            Self::Authorization => "one user's answer goes to another (`Authorization`)".to_owned(),
            Self::Cookie => "one user's answer goes to another (`Cookie`)".to_owned(),
            Self::SetCookie => "`Set-Cookie` is replayed to the next visitor".to_owned(),
            Self::Vary => "`Vary` is ignored".to_owned(),
            Self::NoStore => "a `no-store` response is stored".to_owned(),
            Self::Private => "a `private` response is stored for everybody".to_owned(),
            Self::Post => "a POST is answered from the cache".to_owned(),
            Self::Head => "a HEAD empties the next GET".to_owned(),
            Self::Stream => "an endless stream (SSE) hangs".to_owned(),
            Self::Crowd => format!("{CROWD} cold requests run the handler more than once"),
            Self::Eviction => "a fill that began before an eviction lands after it".to_owned(),
            Self::Limit => "a body over the limit isn't delivered".to_owned(),
            Self::RedisKilled => "Redis is killed, and requests wait or fail".to_owned(),
            Self::RedisHung => "Redis hangs, and requests wait or fail".to_owned(),
        }
    }

    async fn probe(self, on: &Subject<'_>) -> Result<Verdict, Failed> {
        match self {
            Self::Authorization => one_for_another(on, "/me/token", AUTHORIZATION.as_str(), "Bearer ").await,
            Self::Cookie => one_for_another(on, "/me/cookie", COOKIE.as_str(), "session=").await,
            Self::SetCookie => set_cookie(on).await,
            Self::Vary => vary(on).await,
            Self::NoStore => stored(on, Method::GET, "/no-store").await,
            Self::Private => stored(on, Method::GET, "/private").await,
            Self::Post => stored(on, Method::POST, "/order").await,
            Self::Head => head(on).await,
            Self::Stream => stream(on).await,
            Self::Crowd => crowd(on).await,
            Self::Eviction => eviction(on).await,
            Self::Limit => limit(on).await,
            Self::RedisKilled => without_redis(on.contender, "KILL").await,
            Self::RedisHung => without_redis(on.contender, "STOP").await,
        }
    }
}

/// Remedies that the documentation of a cache names.
const REMEDIES: [(Contender, &[Hazard], &str); 16] = [
    (
        Contender::AxumResponseCache,
        &[Hazard::Authorization, Hazard::Cookie, Hazard::Vary],
        "a keyer of one's own can put the field into the key",
    ),
    (Contender::AxumResponseCache, &[Hazard::Post], "the layer can be put on GET handlers alone"),
    (
        Contender::TowerHttpCache,
        &[Hazard::Stream],
        "`StreamingPolicy::excluded_content_types` can name `text/event-stream`",
    ),
    (
        Contender::TowerHttpCache,
        &[Hazard::Authorization, Hazard::Cookie],
        "a handler that answers with `Cache-Control: private` isn't stored",
    ),
    (Contender::TowerHttpCache, &[Hazard::SetCookie], "`header_allowlist` stores only the fields it names"),
    (Contender::TowerHttpCache, &[Hazard::Head], "`method_predicate` can leave HEAD out"),
    (
        Contender::Hitbox,
        &[
            Hazard::Authorization,
            Hazard::Cookie,
            Hazard::Vary,
            Hazard::NoStore,
            Hazard::Private,
            Hazard::Post,
            Hazard::SetCookie,
            Hazard::Stream,
        ],
        "predicates and extractors can refuse such requests and responses, or put a field into the key",
    ),
    (
        Contender::TowerHttpCache,
        &[Hazard::RedisKilled, Hazard::RedisHung],
        "the timeouts are its README's, 10 s and 5 s; its `ConnectionManager` can have shorter ones and fewer retries",
    ),
    (
        Contender::Hitbox,
        &[Hazard::RedisKilled, Hazard::RedisHung],
        "`connection_timeout`, `response_timeout` and `retries` of its builder",
    ),
    (
        Contender::Hitbox,
        &[Hazard::Crowd],
        "`BroadcastConcurrencyManager` and `PolicyConfig::concurrency` are for this",
    ),
    (
        Contender::HttpCacheTowerServer,
        &[Hazard::Cookie, Hazard::Post],
        "a `CustomKeyer` can put the field or more into the key, and `Cache-Control: private` isn't stored",
    ),
    (
        Contender::Nginx,
        &[Hazard::Authorization, Hazard::Cookie],
        "`proxy_cache_bypass` and `proxy_no_cache` on the field, and `Cache-Control: private` isn't stored",
    ),
    (Contender::Nginx, &[Hazard::Crowd], "`proxy_cache_lock on`"),
    (Contender::Nginx, &[Hazard::Stream], "`proxy_buffering off`, or `X-Accel-Buffering: no` from the app"),
    (
        Contender::Python,
        &[Hazard::Authorization, Hazard::Cookie, Hazard::Vary],
        "a key builder of one's own can put the field into the key; `private=True` was set, as its guide says",
    ),
    (Contender::Python, &[Hazard::RedisHung], "`REDIS_SOCKET_TIMEOUT`"),
];

/// The outcome of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// The failure didn't happen. Contains the observation, if that is a number.
    Ok(Option<String>),
    /// The failure happened.
    Broken(String),
    /// The failure can't happen here.
    NotApplicable(&'static str),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok(None) => f.write_str("ok"),
            Self::Ok(Some(seen)) => write!(f, "ok: {seen}"),
            Self::Broken(seen) => write!(f, "**{seen}**"),
            Self::NotApplicable(why) => write!(f, "– ({why})"),
        }
    }
}

/// A request without any response.
#[derive(Debug)]
struct Failed(String);

impl From<reqwest::Error> for Failed {
    fn from(error: reqwest::Error) -> Self {
        let timed_out = if error.is_timeout() { "no answer in time" } else { "no answer" };
        Self(timed_out.to_owned())
    }
}

fn verdict(ok: bool, broken: impl Into<String>) -> Verdict {
    if ok { Verdict::Ok(None) } else { Verdict::Broken(broken.into()) }
}

/// A running contender, and a client for it.
struct Subject<'a> {
    contender: Contender,
    server: &'a Server,
    client: Client,
}

impl<'a> Subject<'a> {
    fn new(contender: Contender, server: &'a Server) -> Self {
        let client = Client::builder().timeout(LONGEST).no_proxy().build().expect("a client");
        Self { contender, server, client }
    }

    fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.server.address()))
    }

    async fn body(&self, method: Method, path: &str) -> Result<String, Failed> {
        Ok(self.ask(method, path).send().await?.text().await?)
    }

    async fn get(&self, path: &str) -> Result<String, Failed> {
        self.body(Method::GET, path).await
    }

    async fn set_value(&self, value: u32) -> Result<(), Failed> {
        let url = format!("http://{}/control/value/{value}", self.server.control());
        self.client.put(url).send().await?.error_for_status()?;
        Ok(())
    }
}

/// Returns `true` if it answers a plain GET from the cache. A contender that doesn't is safe, but no cache.
pub(crate) async fn caches(contender: Contender, server: &Server) -> bool {
    let on = Subject::new(contender, server);
    let first = on.get("/plain").await;
    // Some caches store in the background.
    sleep(Duration::from_millis(100)).await;
    let second = on.get("/plain").await;
    first.is_ok_and(|first| second.is_ok_and(|second| first == second))
}

async fn one_for_another(on: &Subject<'_>, path: &str, field: &str, scheme: &str) -> Result<Verdict, Failed> {
    for who in ["Alice", "Bob"] {
        let response = on.ask(Method::GET, path).header(field, format!("{scheme}{who}")).send().await?;
        let body = response.text().await?;
        if body != format!("for {who}") {
            return Ok(Verdict::Broken(format!("{who} got what was {body}")));
        }
        sleep(Duration::from_millis(100)).await;
    }
    let body = on.get(path).await?;
    Ok(verdict(body == "for anonymous", format!("a stranger got what was {body}")))
}

async fn set_cookie(on: &Subject<'_>) -> Result<Verdict, Failed> {
    let cookie = async || {
        let response = on.ask(Method::GET, "/login").send().await?;
        Ok::<_, Failed>(response.headers().get(SET_COOKIE).cloned())
    };
    let first = cookie().await?;
    sleep(Duration::from_millis(100)).await;
    let second = cookie().await?;
    Ok(verdict(first.is_some() && first != second, "the second visitor got the first one's"))
}

async fn vary(on: &Subject<'_>) -> Result<Verdict, Failed> {
    for (language, greeting) in [("de", "Guten Tag"), ("en", "Good day"), ("de", "Guten Tag")] {
        let request = on.ask(Method::GET, "/greeting").header(ACCEPT_LANGUAGE, language);
        let body = request.send().await?.text().await?;
        if body != greeting {
            return Ok(Verdict::Broken(format!("`{language}` got “{body}”")));
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(Verdict::Ok(None))
}

async fn stored(on: &Subject<'_>, method: Method, path: &str) -> Result<Verdict, Failed> {
    let first = on.body(method.clone(), path).await?;
    sleep(Duration::from_millis(100)).await;
    let second = on.body(method, path).await?;
    Ok(verdict(first != second, "the first one's answer"))
}

async fn head(on: &Subject<'_>) -> Result<Verdict, Failed> {
    // A route whose HEAD runs its GET handler, and one with its own handler for HEAD.
    for path in ["/page", "/page/own"] {
        on.ask(Method::HEAD, path).send().await?;
        sleep(Duration::from_millis(100)).await;
        let body = on.get(path).await.unwrap_or_default();
        if !body.starts_with("run") {
            return Ok(Verdict::Broken(format!("the GET got {} bytes", body.len())));
        }
    }
    Ok(Verdict::Ok(None))
}

async fn stream(on: &Subject<'_>) -> Result<Verdict, Failed> {
    let first = async {
        let mut response = on.ask(Method::GET, "/events").send().await?;
        response.chunk().await
    };
    match timeout(FIRST_EVENT, first).await {
        Ok(chunk) => Ok(verdict(chunk?.is_some_and(|chunk| chunk.starts_with(b"data: 0")), "no event came")),
        Err(_) => Ok(Verdict::Broken(format!("no event within {} s", FIRST_EVENT.as_secs()))),
    }
}

async fn crowd(on: &Subject<'_>) -> Result<Verdict, Failed> {
    let started = Instant::now();
    let answers = join_all((0..CROWD).map(|_| on.get("/cold"))).await;
    let took = started.elapsed();
    let mut runs = answers.into_iter().collect::<Result<Vec<_>, _>>()?;
    runs.sort_unstable();
    runs.dedup();
    if runs.len() == 1 {
        // A cache that runs the handler for each request in turn doesn't coalesce, but takes too long.
        let one = "1 run".to_owned();
        return Ok(if took < COLD * 10 {
            Verdict::Ok(Some(one))
        } else {
            Verdict::Broken(format!("{one}, but {} ms", took.as_millis()))
        });
    }
    Ok(Verdict::Broken(format!("{} runs", runs.len())))
}

async fn eviction(on: &Subject<'_>) -> Result<Verdict, Failed> {
    let Some(eviction) = on.contender.eviction() else {
        return Ok(Verdict::NotApplicable("nothing to evict with"));
    };
    let evict = async || {
        let request = on.ask(eviction.method.clone(), eviction.path);
        let request = eviction.header.into_iter().fold(request, |request, name| request.header(name, "true"));
        request.send().await
    };
    on.set_value(1).await?;
    let (filled, evicted) = tokio::join!(on.get("/slow"), async {
        sleep(SLOW / 3).await;
        on.set_value(2).await?;
        Ok::<_, Failed>(evict().await?)
    });
    evicted?;
    let filled = filled?;
    assert_eq!(filled, "value 1", "the fill began before the eviction");
    // Some caches store in the background.
    sleep(Duration::from_millis(100)).await;
    if on.get("/slow").await? == "value 2" {
        return Ok(Verdict::Ok(None));
    }
    // Checks the eviction itself: it must work while no request is in progress.
    evict().await?;
    sleep(Duration::from_millis(100)).await;
    let again = on.get("/slow").await?;
    assert_eq!(again, "value 2", "{} can evict", on.contender.id());
    Ok(Verdict::Broken("the old answer was served".to_owned()))
}

async fn limit(on: &Subject<'_>) -> Result<Verdict, Failed> {
    if !on.contender.has_limit() {
        return Ok(Verdict::NotApplicable("no limit"));
    }
    let response = on.ask(Method::GET, "/big").send().await?;
    let status = response.status();
    let length = response.bytes().await?.len();
    Ok(verdict(status == 200 && length == OVER, format!("{} with {length} bytes", status.as_u16())))
}

/// Sends ten requests after a signal to Redis, on separate servers.
async fn without_redis(contender: Contender, sent: &str) -> Result<Verdict, Failed> {
    if !contender.store().needs_redis() {
        return Ok(Verdict::NotApplicable("no Redis"));
    }
    let redis = RedisServer::start().ok_or_else(|| Failed("no redis-server".to_owned()))?;
    let server = Server::start(contender, Cores::any(), Some(&redis)).map_err(Failed)?;
    let on = Subject::new(contender, &server);
    for id in 0..3 {
        on.get(&format!("/small/{id}")).await?;
    }
    signal(redis.pid(), sent);
    sleep(Duration::from_millis(50)).await;
    let (started, mut longest, mut failed) = (Instant::now(), Duration::ZERO, 0);
    // Stored entries, and others.
    for id in 0..10 {
        if started.elapsed() > LONGEST_IN_ALL {
            break;
        }
        let asked = Instant::now();
        let answer = on.ask(Method::GET, &format!("/small/{id}")).send().await;
        let whole = match answer {
            Ok(answer) if answer.status() == 200 => answer.bytes().await.is_ok(),
            _ => false,
        };
        failed += u32::from(!whole);
        longest = longest.max(asked.elapsed());
    }
    let seen = if longest < Duration::from_secs(1) {
        format!("{} ms at most", longest.as_millis())
    } else {
        format!("up to {:.1} s a request", longest.as_secs_f64())
    };
    Ok(if failed > 0 {
        Verdict::Broken(format!("{failed} requests failed; {seen}"))
    } else if longest > PATIENCE {
        Verdict::Broken(seen)
    } else {
        Verdict::Ok(Some(seen))
    })
}

/// A column of the table.
struct Column {
    title: &'static str,
    /// For each hazard, the verdicts of the column's contenders.
    verdicts: Vec<Vec<(Store, Verdict)>>,
}

/// The safety matrix: every hazard, tried on every contender.
pub(crate) struct Matrix {
    columns: Vec<Column>,
    /// The contenders that were skipped, with the reason.
    missing: Vec<String>,
}

impl Matrix {
    /// Returns the whole matrix in Markdown, with notes on how to avoid what went wrong.
    pub(crate) fn markdown(&self) -> String {
        let mut notes = Vec::new();
        let mut text = table(&self.columns, &HAZARDS, &mut |note| {
            let known = notes.iter().position(|known| *known == note);
            let index = known.unwrap_or_else(|| {
                notes.push(note);
                notes.len() - 1
            });
            format!(" ({})", index + 1)
        });
        text.push('\n');
        for (number, note) in notes.iter().enumerate() {
            text += &format!("\n{}. {note}.", number + 1);
        }
        for missing in &self.missing {
            text += &format!("\n\n{missing}");
        }
        text
    }

    /// Returns the rows for the README in Markdown, without notes.
    pub(crate) fn excerpt(&self) -> String {
        table(&self.columns, &EXCERPT, &mut |_| String::new())
    }
}

/// Probes every hazard on every contender.
pub(crate) async fn matrix() -> Matrix {
    check_the_probes().await;
    let mut columns = Vec::new();
    let mut missing = Vec::new();
    for contenders in COLUMNS {
        let title = contenders[0].title();
        let mut verdicts: Vec<Vec<(Store, Verdict)>> = vec![Vec::new(); HAZARDS.len()];
        for &contender in contenders {
            match probe_all(contender).await {
                Ok(probed) => {
                    for (all, verdict) in verdicts.iter_mut().zip(probed) {
                        all.push((contender.store(), verdict));
                    }
                }
                Err(why) => missing.push(format!("{} was left out: {why}.", contender.full_title())),
            }
        }
        if verdicts.iter().any(|verdicts| !verdicts.is_empty()) {
            columns.push(Column { title, verdicts });
        }
    }
    Matrix { columns, missing }
}

/// Checks the probes on the app without a cache: no failure may happen, or caches would be blamed for it. The handler runs for
/// each request.
async fn check_the_probes() {
    let server = Server::start(Contender::Bare, Cores::any(), None).expect("the app alone");
    let subject = Subject::new(Contender::Bare, &server);
    for hazard in HAZARDS.into_iter().filter(|hazard| *hazard != Hazard::Crowd) {
        let verdict = hazard.probe(&subject).await.expect("an answer");
        assert!(!matches!(verdict, Verdict::Broken(_)), "{hazard:?} of the app alone: {verdict}");
    }
    assert_eq!(crowd(&subject).await.expect("answers"), Verdict::Broken(format!("{CROWD} runs")));
    assert!(!caches(Contender::Bare, &server).await, "the app alone caches nothing");
}

async fn probe_all(contender: Contender) -> Result<Vec<Verdict>, String> {
    eprintln!("probing {}", contender.id());
    let redis = contender.store().needs_redis().then(RedisServer::start).flatten();
    let server = Server::start(contender, Cores::any(), redis.as_ref())?;
    let subject = Subject::new(contender, &server);
    if !caches(contender, &server).await {
        return Err("it didn't cache a plain GET".to_owned());
    }
    let mut verdicts = Vec::new();
    for hazard in HAZARDS {
        let verdict = hazard.probe(&subject).await.unwrap_or_else(|Failed(why)| Verdict::Broken(why));
        eprintln!("  {hazard:?}: {verdict}");
        verdicts.push(verdict);
    }
    Ok(verdicts)
}

/// Returns these rows as a table. `refer` turns the note on a failure into a reference to it.
fn table(columns: &[Column], rows: &[Hazard], refer: &mut dyn FnMut(String) -> String) -> String {
    let mut text = String::from("| what must not happen |");
    for column in columns {
        text += &format!(" {} |", column.title);
    }
    text += "\n|---|";
    text += &"---|".repeat(columns.len());
    for (row, hazard) in HAZARDS.into_iter().enumerate().filter(|(_, hazard)| rows.contains(hazard)) {
        text += &format!("\n| {} |", hazard.title());
        for column in columns {
            let reference = remedy(column, row, hazard).map(&mut *refer).unwrap_or_default();
            text += &format!(" {}{reference} |", cell(&column.verdicts[row]));
        }
    }
    text
}

/// Formats the verdict of all the contender's forms, or each verdict if they differ.
fn cell(verdicts: &[(Store, Verdict)]) -> String {
    let applicable: Vec<_> =
        verdicts.iter().filter(|(_, verdict)| !matches!(verdict, Verdict::NotApplicable(_))).collect();
    match applicable[..] {
        [] => verdicts.first().map(|(_, verdict)| verdict.to_string()).unwrap_or_default(),
        [(_, first), ref others @ ..] if others.iter().all(|(_, verdict)| verdict == first) => {
            first.to_string()
        }
        ref all => {
            let all = all.iter().map(|(store, verdict)| format!("{}: {verdict}", store.title()));
            all.collect::<Vec<_>>().join("; ")
        }
    }
}

fn remedy(column: &Column, row: usize, hazard: Hazard) -> Option<String> {
    let broken = column.verdicts[row].iter().any(|(_, verdict)| matches!(verdict, Verdict::Broken(_)));
    let known = REMEDIES.iter().find(|(contender, hazards, _)| {
        broken && contender.title() == column.title && hazards.contains(&hazard)
    });
    known.map(|(contender, _, note)| format!("{}: {note}", contender.title()))
}
