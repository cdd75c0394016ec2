//! The cost of a hit as caches grow: with entries, fields and bodies in this process, through the whole layer, and with clients
//! over HTTP.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use bytes::Bytes;
use http_body_util::{Empty, Full};
use larder_axum::larder_core::{Call, Route};
use larder_axum::{Larder, MemoryStore, RequestView};
use larder_benches::{Interval, at_once, get, route, runtime};
use serde::Serialize;

use crate::client::{Ask, Client};
use crate::contender::Contender;
use crate::plot::{Chart, charts};
use crate::process::{Cores, Server};
use crate::report;

const ENTRIES: [usize; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];
const FIELDS: [usize; 6] = [1, 5, 10, 20, 35, 50];
const BODIES: [usize; 6] = [100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000];
const CLIENTS: [usize; 6] = [1, 4, 16, 64, 256, 1_024];

/// The body of an entry, in bytes, if there are many entries.
const SMALL: usize = 100;

/// The most memory that an entry takes, in bytes, to know how many fit.
const ROOM: u64 = 1_200;

/// The number of hits that are timed together, and the number of such batches.
const BATCH: usize = 500;
const BATCHES: usize = 101;

const SLICE: Duration = Duration::from_millis(100);

/// A request, and the handler's response to it.
#[derive(Clone)]
struct Direct {
    request: Request<Empty<Bytes>>,
    fields: HeaderMap,
    body: Bytes,
}

impl Direct {
    fn new(path: &str, fields: usize, body: Bytes) -> Self {
        let content_type = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let others = (1..fields).map(|index| {
            let name = HeaderName::try_from(format!("x-field-{index}")).expect("a valid name");
            (name, HeaderValue::from_static("a value of the usual length"))
        });
        Self { request: get(path), fields: std::iter::once(content_type).chain(others).collect(), body }
    }
}

/// One of many entries.
impl Direct {
    /// A call with a body of its own, so that entries don't share one.
    fn answering(id: usize) -> Self {
        let mut body = vec![b'.'; SMALL];
        body[..8].copy_from_slice(&(id as u64).to_be_bytes());
        Self { body: body.into(), ..Self::asking(id) }
    }

    /// A call that is a hit and runs no handler.
    fn asking(id: usize) -> Self {
        Self { request: get(&format!("/products/{id}")), fields: HeaderMap::new(), body: Bytes::new() }
    }
}

impl Call for Direct {
    type Body = Full<Bytes>;
    type Error = Infallible;

    fn view(&self) -> RequestView<'_> {
        RequestView::from(&self.request)
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        self.request.headers_mut()
    }

    fn extensions_mut(&mut self) -> &mut axum::http::Extensions {
        self.request.extensions_mut()
    }

    async fn run(self) -> Result<Response<Full<Bytes>>, Infallible> {
        let mut response = Response::new(Full::new(self.body));
        *response.headers_mut() = self.fields;
        Ok(response)
    }
}

/// A measured point.
#[derive(Clone, Copy, Serialize)]
struct Point {
    size: usize,
    /// Nanoseconds per hit, in this process.
    nanoseconds: f64,
    low: f64,
    high: f64,
    /// Further measurements with this number of entries, if entries are counted.
    held: Option<Held>,
}

#[derive(Clone, Copy, Serialize)]
struct Held {
    /// Memory of this process per entry, in bytes.
    bytes_an_entry: f64,
    /// Nanoseconds to look up a key in a `HashMap` with the same number of values, and to read the last byte of the value: the
    /// cost of the machine's memory for any cache of this size.
    hash_map: f64,
}

impl Point {
    fn new(size: usize, time: Interval) -> Self {
        let Interval { median, low, high } = time;
        Self { size, nanoseconds: median, low, high, held: None }
    }
}

/// The results of this number of clients over HTTP.
#[derive(Clone, Copy, Serialize)]
struct Served {
    clients: usize,
    requests_per_second: f64,
    bare_requests_per_second: f64,
    /// The median of the pairs' ratios, which differs slightly from the ratio of the medians.
    ratio: f64,
    ratio_low: f64,
    ratio_high: f64,
    /// Microseconds until half of the responses, and until 99% of them, had arrived.
    p50: f64,
    p99: f64,
    bare_p50: f64,
    bare_p99: f64,
}

#[derive(Serialize)]
struct Results {
    date: String,
    machine: String,
    versions: String,
    entries: Vec<Point>,
    fields: Vec<Point>,
    bodies: Vec<Point>,
    clients: Vec<Served>,
}

/// Measures the growth, and writes the results.
pub(crate) fn run(quick: bool) {
    let (date, machine) = (report::date(), report::machine());
    let most = if quick { 100_000 } else { usize::MAX };
    let results = Results {
        date,
        machine,
        versions: report::versions(),
        entries: by_entries(most),
        fields: FIELDS.iter().map(|fields| by_one(*fields, *fields, 550)).collect(),
        bodies: BODIES.iter().map(|body| by_one(*body, 1, *body)).collect(),
        clients: by_clients(if quick { 3 } else { 21 }),
    };
    let date = &results.date;
    let json = serde_json::to_string_pretty(&results).expect("results without surprises");
    report::write(&format!("{date}-growth.json"), &json, quick);
    report::write(&format!("{date}-growth.svg"), &plot(&results), quick);
    report::write(&format!("{date}-growth.md"), &markdown(&results), quick);
}

/// Hits of random entries, with more and more entries in one store.
fn by_entries(most: usize) -> Vec<Point> {
    let available = available();
    let sizes = ENTRIES.into_iter().filter(|entries| {
        let fits = *entries <= most && *entries as u64 * ROOM < available;
        if !fits {
            eprintln!("{entries} entries were left out");
        }
        fits
    });
    let sizes: Vec<usize> = sizes.collect();
    let stored = in_larder(&sizes);
    let points = stored.into_iter().zip(in_hash_map(&sizes));
    points
        .map(|((point, bytes_an_entry), hash_map)| Point {
            held: Some(Held { bytes_an_entry, hash_map }),
            ..point
        })
        .collect()
}

/// Measures the time of a hit, and the memory of an entry.
fn in_larder(sizes: &[usize]) -> Vec<(Point, f64)> {
    let runtime = runtime();
    let larder = Larder::builder().store(MemoryStore::with_capacity(u64::MAX / 2)).build();
    let route = route(&larder);
    let before = resident();
    let mut held = 0;
    let grow = |entries: &usize| {
        eprintln!("{entries} entries");
        runtime.block_on(async {
            for id in held..*entries {
                let Ok(_) = Arc::clone(&route).handle(Direct::answering(id)).await;
            }
        });
        held = *entries;
        let grown = resident().saturating_sub(before) as f64 / held as f64;
        let mut random = fastrand::Rng::with_seed(7);
        (Point::new(held, hits(&route, || Direct::asking(random.usize(..held)))), grown)
    };
    sizes.iter().map(grow).collect()
}

/// Measures the nanoseconds of a lookup.
fn in_hash_map(sizes: &[usize]) -> Vec<f64> {
    let mut map = HashMap::new();
    let look_up = |entries: &usize| {
        for id in map.len()..*entries {
            let Direct { request, body, .. } = Direct::answering(id);
            map.insert(request.uri().path().to_owned(), body);
        }
        let mut random = fastrand::Rng::with_seed(7);
        let mut batch = || {
            let keys: Vec<_> =
                (0..BATCH).map(|_| format!("/products/{}", random.usize(..*entries))).collect();
            let started = Instant::now();
            let read = keys.iter().filter(|key| map.get(*key).is_some_and(|body| body[SMALL - 1] == b'.'));
            assert_eq!(read.count(), BATCH, "all of them are there");
            started.elapsed().as_nanos() as f64 / BATCH as f64
        };
        Interval::of((0..BATCHES).map(|_| batch()).collect()).median
    };
    sizes.iter().map(look_up).collect()
}

/// Hits of one entry with this number of fields and bytes.
fn by_one(size: usize, fields: usize, body: usize) -> Point {
    let larder = Larder::builder().max_body(u64::MAX).store(MemoryStore::with_capacity(u64::MAX / 2)).build();
    let route = route(&larder);
    let call = Direct::new("/products/7", fields, larder_benches::body(body));
    let Ok(_) = runtime().block_on(Arc::clone(&route).handle(call.clone()));
    Point::new(size, hits(&route, || call.clone()))
}

/// Measures the nanoseconds of a hit, without making requests and dropping responses.
fn hits(route: &Arc<Route>, mut call: impl FnMut() -> Direct) -> Interval {
    let mut batch = || {
        let calls: Vec<Direct> = (0..BATCH).map(|_| call()).collect();
        let mut answers = Vec::with_capacity(BATCH);
        let started = Instant::now();
        for call in calls {
            answers.push(at_once(Arc::clone(route).handle(call)));
        }
        let took = started.elapsed();
        let hits = answers.iter().flatten().filter(|answer| answer.headers()["x-redis-cache"] == "HIT");
        assert_eq!(hits.count(), BATCH, "all of them are hits");
        took.as_nanos() as f64 / BATCH as f64
    };
    batch();
    Interval::of((0..BATCHES).map(|_| batch()).collect())
}

/// Hits over HTTP, with more and more connections that always have a request in progress.
fn by_clients(rounds: usize) -> Vec<Served> {
    let cores = Cores::share_out();
    let start = |contender| Server::start(contender, cores, None).expect("a server that starts");
    let (bare, larder) = (start(Contender::Bare), start(Contender::Larder));
    let connect = |server: &Server, clients| {
        Client::connect(server.address(), clients, Ask::One("/small/7")).expect("a server that answers")
    };
    let measured = CLIENTS.into_iter().map(|clients| {
        eprintln!("{clients} clients");
        let (mut ours, mut theirs) = (connect(&larder, clients), connect(&bare, clients));
        let (mut rates, mut bare_rates, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let (mut latencies, mut bare_latencies) = (Vec::new(), Vec::new());
        // The first pair warms up.
        for round in 0..=rounds {
            let ask = |client: &mut Client| client.ask_for(SLICE, true).expect("answers");
            let (our, their) = if round % 2 == 0 {
                let our = ask(&mut ours);
                (our, ask(&mut theirs))
            } else {
                let their = ask(&mut theirs);
                (ask(&mut ours), their)
            };
            if round > 0 {
                rates.push(our.rate());
                bare_rates.push(their.rate());
                ratios.push(our.rate() / their.rate());
                latencies.extend(our.latencies);
                bare_latencies.extend(their.latencies);
            }
        }
        let ratio = Interval::of(ratios);
        Served {
            clients,
            requests_per_second: Interval::of(rates).median,
            bare_requests_per_second: Interval::of(bare_rates).median,
            ratio: ratio.median,
            ratio_low: ratio.low,
            ratio_high: ratio.high,
            p50: quantile(&mut latencies, 0.5),
            p99: quantile(&mut latencies, 0.99),
            bare_p50: quantile(&mut bare_latencies, 0.5),
            bare_p99: quantile(&mut bare_latencies, 0.99),
        }
    });
    measured.collect()
}

/// Returns a quantile in microseconds, from nanoseconds.
fn quantile(latencies: &mut [u64], quantile: f64) -> f64 {
    latencies.sort_unstable();
    let index = (latencies.len() as f64 * quantile) as usize;
    latencies[index.min(latencies.len() - 1)] as f64 / 1e3
}

/// Returns this process's memory in bytes, or zero if it can't be read.
fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * 4096
}

/// Returns the machine's free memory in bytes, or the maximum if it can't be read.
fn available() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib * 1024)
}

fn markdown(results: &Results) -> String {
    let mut text = format!(
        "# What a hit costs as things grow, {}\n\n{} {}\n\nMade by `benches/peers/run growth`. The first three are in \
         process, through the whole layer, medians with a 95% interval; the last is over HTTP with {} bytes. Entries are asked for at random, all equally often: \
         beside them what looking one up in a `HashMap` and reading its last byte costs there, for that is the machine's \
         memory and not the cache.\n\n\
         ![](./{}-growth.svg)\n",
        results.date,
        results.machine,
        results.versions,
        crate::app::SMALL,
        results.date
    );
    let table = |title: String, points: &[Point]| {
        let counted = points.iter().any(|point| point.held.is_some());
        let (head, rule) =
            if counted { (" in a `HashMap` | bytes an entry |", "--:|--:|") } else { ("", "") };
        let mut text = format!("\n| {title} | ns a hit |{head}\n|--:|--:|{rule}\n");
        for Point { size, nanoseconds, low, high, held } in points {
            text += &format!("| {size} | {nanoseconds:.0} ({low:.0} to {high:.0}) |");
            if let Some(Held { bytes_an_entry, hash_map }) = held {
                text += &format!(" {hash_map:.0} | {bytes_an_entry:.0} |");
            }
            text.push('\n');
        }
        text
    };
    text += &table(format!("entries of {SMALL} bytes"), &results.entries);
    text += &table("fields".to_owned(), &results.fields);
    text += &table("bytes of body".to_owned(), &results.bodies);
    text += "\n| clients | requests/s | bare handler | ratio | p50 | bare | p99 | bare |\n|--:|--:|--:|--:|--:|--:|--:|--:|\n";
    for served in &results.clients {
        text += &format!(
            "| {} | {:.0} | {:.0} | {:.2} ({:.2} to {:.2}) | {:.0} µs | {:.0} µs | {:.0} µs | {:.0} µs |\n",
            served.clients,
            served.requests_per_second,
            served.bare_requests_per_second,
            served.ratio,
            served.ratio_low,
            served.ratio_high,
            served.p50,
            served.bare_p50,
            served.p99,
            served.bare_p99,
        );
    }
    text
}

fn plot(results: &Results) -> String {
    let times = |points: &[Point]| {
        let points = points.iter().map(|point| (point.size as f64, point.nanoseconds)).collect();
        vec![("ns a hit".to_owned(), points)]
    };
    let mut entries = times(&results.entries);
    let hash_map = |point: &Point| point.held.map(|held| (point.size as f64, held.hash_map));
    entries.push(("ns in a HashMap".to_owned(), results.entries.iter().filter_map(hash_map).collect()));
    let chart =
        |title: &str, x, logarithmic, series| Chart { title: title.to_owned(), x, logarithmic, series };
    let served = |name: &str, value: fn(&Served) -> f64| {
        let points = results.clients.iter().map(|served| (served.clients as f64, value(served))).collect();
        (name.to_owned(), points)
    };
    charts(
        &format!("What a hit costs as things grow. {}", results.date),
        &[
            chart("Entries in memory", "entries", true, entries),
            chart("Fields of a response", "fields", false, times(&results.fields)),
            chart("Bytes of a body", "bytes", true, times(&results.bodies)),
            chart(
                "Clients at once, over HTTP",
                "connections",
                true,
                vec![
                    served("hits/s", |served| served.requests_per_second),
                    served("bare handler/s", |served| served.bare_requests_per_second),
                ],
            ),
        ],
    )
}
