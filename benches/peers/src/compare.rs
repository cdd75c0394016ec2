//! The cost of requests with each contender, compared with the bare handler.
//!
//! Every contender runs in its own process, and only one gets requests at a time: for a tenth of a second the contender, then the
//! bare handler, in changing order, and then the next contender. A round ends when all have been measured. So a disturbance of
//! the machine affects all equally. Each pair gives a ratio. The table has the median of the ratios and its 95% interval.

use std::collections::BTreeMap;
use std::time::Duration;

use larder_benches::{Interval, RedisServer};
use serde::Serialize;

use crate::app::{LARGE, SMALL};
use crate::client::{Ask, Client};
use crate::contender::{ALL, Contender};
use crate::plot::{Bar, Panel, bars};
use crate::process::{Cores, Server};
use crate::report;
use crate::safety::caches;

/// The number of connections that the client keeps busy.
const CONNECTIONS: usize = 32;

/// The time for each measurement.
const SLICE: Duration = Duration::from_millis(100);

/// The number of pairs for each contender, in a full run and in a quick one.
const ROUNDS: usize = 41;
const QUICK: usize = 3;

/// The requests to every contender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Workload {
    HitSmall,
    HitLarge,
    Miss,
    NotModified,
}

const WORKLOADS: [Workload; 4] =
    [Workload::HitSmall, Workload::HitLarge, Workload::Miss, Workload::NotModified];

impl Workload {
    fn title(self) -> String {
        match self {
            Self::HitSmall => format!("A hit of {SMALL} bytes"),
            Self::HitLarge => format!("A hit of {LARGE} bytes"),
            Self::Miss => format!("A miss of {SMALL} bytes, and storing it"),
            Self::NotModified => format!("A 304, against {SMALL} bytes of the bare handler"),
        }
    }

    fn ask(self) -> Ask {
        match self {
            Self::HitSmall => Ask::One("/small/7"),
            Self::HitLarge => Ask::One("/large/7"),
            Self::Miss => Ask::Many("/small/m"),
            Self::NotModified => Ask::Revalidate("/tagged/7"),
        }
    }

    /// The requests to the bare handler that it is compared with.
    fn ask_bare(self) -> Ask {
        match self {
            Self::NotModified => Ask::One("/tagged/7"),
            _ => self.ask(),
        }
    }
}

/// A contender with a workload, and its measurements.
struct Cell<'a> {
    contender: Contender,
    server: &'a Server,
    client: Client,
    workload: Workload,
    samples: Vec<Sample>,
    /// The error that ended its measurements.
    failed: Option<String>,
}

/// The measurements of one pair.
struct Sample {
    round: usize,
    ours: Measured,
    bare: Measured,
}

#[derive(Clone, Copy)]
struct Measured {
    /// Requests per second.
    rate: f64,
    /// Seconds of processor time per request.
    cpu: f64,
}

fn measure(server: &Server, client: &mut Client) -> Result<Measured, String> {
    let before = server.cpu();
    let tally = client.ask_for(SLICE, false)?;
    let cpu = server.cpu().saturating_sub(before);
    Ok(Measured { rate: tally.rate(), cpu: cpu.as_secs_f64() / tally.answers as f64 })
}

/// A row of the results.
#[derive(Serialize)]
struct Row {
    workload: Workload,
    contender: &'static str,
    store: &'static str,
    pairs: usize,
    requests_per_second: f64,
    /// Requests per second, relative to the bare handler.
    ratio: Figure,
    cpu_micros: f64,
    /// Processor time of the bare handler's server divided by this one's.
    cpu_ratio: Figure,
    /// Requests per second, relative to the cache written by hand.
    by_hand: Option<Figure>,
    #[serde(skip)]
    who: Contender,
}

#[derive(Clone, Copy, Serialize)]
struct Figure {
    median: f64,
    low: f64,
    high: f64,
}

impl Figure {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let Interval { median, low, high } = Interval::of(values.collect());
        Self { median, low, high }
    }

    fn show(self) -> String {
        let digits = if self.median < 0.1 { 3 } else { 2 };
        format!("{:.digits$} ({:.digits$} to {:.digits$})", self.median, self.low, self.high)
    }
}

/// All results in one file, for programs.
#[derive(Serialize)]
struct Results<'a> {
    date: &'a str,
    machine: &'a str,
    method: &'a str,
    versions: &'a str,
    rows: &'a [Row],
    left_out: &'a [String],
}

/// Measures all contenders, and writes the results.
pub(crate) fn run(quick: bool) {
    let rounds = if quick { QUICK } else { ROUNDS };
    let (date, machine) = (report::date(), report::machine());
    let cores = Cores::share_out();
    let redis = RedisServer::start();
    if let Some(redis) = &redis {
        cores.place_redis(redis);
    }
    let runtime = larder_benches::runtime();
    let mut left_out = Vec::new();
    let mut servers = Vec::new();
    for contender in ALL {
        match Server::start(contender, cores, redis.as_ref()) {
            Ok(server) if must_cache(contender) && !runtime.block_on(caches(contender, &server)) => {
                left_out
                    .push(format!("{} was left out: it didn't cache a plain GET.", contender.full_title()));
            }
            Ok(server) => servers.push((contender, server)),
            Err(why) => left_out.push(format!("{} was left out: {why}.", contender.full_title())),
        }
    }
    let bare = servers.iter().find(|(contender, _)| *contender == Contender::Bare);
    let bare = &bare.expect("the bare handler").1;
    let (rows, refused) = measure_all(&servers, bare, rounds);
    left_out.extend(refused);

    let method = format!(
        "{rounds} pairs of {} ms each, {CONNECTIONS} connections from one thread, {}.",
        SLICE.as_millis(),
        cores.describe()
    );
    let versions = report::versions();
    let results = Results {
        date: &date,
        machine: &machine,
        method: &method,
        versions: &versions,
        rows: &rows,
        left_out: &left_out,
    };
    let json = serde_json::to_string_pretty(&results).expect("results without surprises");
    let (svg, alternative) = plot(&rows, &date);
    report::write(&format!("{date}.json"), &json, quick);
    report::write(&format!("{date}.svg"), &svg, quick);
    report::write(&format!("{date}.md"), &markdown(&results), quick);
    report::into_readme("comparison", &readme(&results, &alternative), quick);
}

/// Returns `true` if the probes are behind the cache. The other contenders only serve the measured routes.
fn must_cache(contender: Contender) -> bool {
    !matches!(contender, Contender::Bare | Contender::ByHand)
}

fn measure_all(servers: &[(Contender, Server)], bare: &Server, rounds: usize) -> (Vec<Row>, Vec<String>) {
    let mut refused: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut cells = Vec::new();
    let mut bares = Vec::new();
    for workload in WORKLOADS {
        let client = Client::connect(bare.address(), CONNECTIONS, workload.ask_bare());
        bares.push(client.expect("the bare handler answers"));
        for (contender, server) in servers.iter().filter(|(contender, _)| *contender != Contender::Bare) {
            let client = Client::connect(server.address(), CONNECTIONS, workload.ask());
            let warmed = client.and_then(|mut client| client.ask_for(SLICE, false).map(|_| client));
            match warmed {
                Ok(client) => {
                    cells.push(Cell {
                        contender: *contender,
                        server,
                        client,
                        workload,
                        samples: Vec::new(),
                        failed: None,
                    });
                }
                Err(why) => {
                    let what = format!("{}: {why}", workload.title());
                    refused.entry(what).or_default().push(contender.full_title());
                }
            }
        }
    }
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        // Each contender starts about the same number of rounds.
        let count = cells.len();
        cells.rotate_left(7 % count.max(1));
        for cell in &mut cells {
            let index = WORKLOADS.iter().position(|workload| *workload == cell.workload).unwrap_or_default();
            let base = &mut bares[index];
            let pair = if round % 2 == 0 {
                measure(cell.server, &mut cell.client).and_then(|ours| Ok((ours, measure(bare, base)?)))
            } else {
                measure(bare, base).and_then(|bare| Ok((measure(cell.server, &mut cell.client)?, bare)))
            };
            match pair {
                Ok((ours, bare)) => cell.samples.push(Sample { round, ours, bare }),
                Err(why) => {
                    cell.failed = Some(format!("{}, in round {}: {why}", cell.workload.title(), round + 1))
                }
            }
        }
        for failed in cells.extract_if(.., |cell| cell.failed.is_some()) {
            refused.entry(failed.failed.unwrap_or_default()).or_default().push(failed.contender.full_title());
        }
    }
    let refused = refused.into_iter().map(|(what, who)| format!("{what}, with {}.", who.join("; ")));
    (rows(&cells), refused.collect())
}

fn rows(cells: &[Cell<'_>]) -> Vec<Row> {
    let mut rows = Vec::new();
    for workload in WORKLOADS {
        let cells: Vec<_> = cells.iter().filter(|cell| cell.workload == workload).collect();
        let by_hand = cells.iter().find(|cell| cell.contender == Contender::ByHand);
        let mut here: Vec<Row> = cells.iter().map(|cell| row(cell, by_hand.copied())).collect();
        here.sort_by(|a, b| b.ratio.median.total_cmp(&a.ratio.median));
        let bare = cells.iter().flat_map(|cell| &cell.samples).map(|sample| sample.bare);
        if let Some(first) = cells.first() {
            let one = Figure { median: 1.0, low: 1.0, high: 1.0 };
            here.push(Row {
                workload,
                contender: Contender::Bare.title(),
                store: Contender::Bare.store().title(),
                pairs: first.samples.len(),
                requests_per_second: Figure::of(bare.clone().map(|bare| bare.rate)).median,
                ratio: one,
                cpu_micros: Figure::of(bare.map(|bare| bare.cpu * 1e6)).median,
                cpu_ratio: one,
                by_hand: None,
                who: Contender::Bare,
            });
        }
        rows.extend(here);
    }
    rows
}

fn row(cell: &Cell<'_>, by_hand: Option<&Cell<'_>>) -> Row {
    let samples = || cell.samples.iter();
    let ratio = |sample: &Sample| sample.ours.rate / sample.bare.rate;
    // Of the same round: both were measured within seconds, each next to the bare handler.
    let by_hand = by_hand.filter(|_| cell.contender.store().needs_redis()).map(|by_hand| {
        Figure::of(samples().filter_map(|sample| {
            let theirs = by_hand.samples.iter().find(|theirs| theirs.round == sample.round)?;
            Some(ratio(sample) / ratio(theirs))
        }))
    });
    Row {
        workload: cell.workload,
        contender: cell.contender.title(),
        store: cell.contender.store().title(),
        pairs: cell.samples.len(),
        requests_per_second: Figure::of(samples().map(|sample| sample.ours.rate)).median,
        ratio: Figure::of(samples().map(ratio)),
        cpu_micros: Figure::of(samples().map(|sample| sample.ours.cpu * 1e6)).median,
        cpu_ratio: Figure::of(samples().map(|sample| sample.bare.cpu / sample.ours.cpu)),
        by_hand,
        who: cell.contender,
    }
}

fn markdown(results: &Results<'_>) -> String {
    let mut text = format!(
        "# What requests cost, {}\n\n{}\n\n{}\n\n{}\n\nMade by `benches/peers/run compare`. The ratio is of requests a \
         second to those of the bare handler, which has its answer ready; “CPU a request” is the processor time of the \
         contender's own processes, its ratio that of the bare handler's to it. “By hand” is a handler that does one GET \
         on one multiplexed connection, and SETEX after a miss.\n",
        results.date, results.machine, results.method, results.versions
    );
    for workload in WORKLOADS {
        text += &format!(
            "\n## {}\n\n| contender | store | requests/s | ratio (95% interval) | CPU a request | ratio of CPU | to “by \
             hand” |\n|---|---|--:|--:|--:|--:|--:|\n",
            workload.title()
        );
        for row in results.rows.iter().filter(|row| row.workload == workload) {
            text += &format!(
                "| {} | {} | {:.0} | {} | {:.1} µs | {} | {} |\n",
                row.contender,
                row.store,
                row.requests_per_second,
                row.ratio.show(),
                row.cpu_micros,
                row.cpu_ratio.show(),
                row.by_hand.map(Figure::show).unwrap_or_default(),
            );
        }
    }
    for left_out in results.left_out {
        text += &format!("\n{left_out}\n");
    }
    text
}

/// Returns the plot, and its content in words.
fn plot(rows: &[Row], date: &str) -> (String, String) {
    let panel = |title: &str, workloads: &[(Workload, String)]| {
        let of = |workload: Workload, who: Contender| {
            rows.iter().find(|row| row.workload == workload && row.who == who)
        };
        // In the order of the first workload, the fastest first.
        let order =
            rows.iter().filter(|row| row.workload == workloads[0].0).filter(|row| row.who != Contender::Bare);
        let bars = order.map(|row| Bar {
            label: row.who.full_title(),
            ours: row.contender == Contender::Larder.title(),
            values: workloads
                .iter()
                .map(|(workload, _)| of(*workload, row.who).map(|row| row.ratio))
                .map(|ratio| ratio.map(|ratio| (ratio.median, ratio.low, ratio.high)))
                .collect(),
        });
        Panel {
            title: title.to_owned(),
            series: workloads.iter().map(|(_, name)| name.clone()).collect(),
            bars: bars.collect(),
        }
    };
    let hits = panel(
        "A hit",
        &[
            (Workload::HitSmall, format!("{SMALL} bytes")),
            (Workload::HitLarge, format!("{} KB", LARGE / 1000)),
        ],
    );
    let misses = panel("A miss, and storing it", &[(Workload::Miss, format!("{SMALL} bytes"))]);
    let alternative = "Requests a second with each cache, those of the bare axum handler being 1";
    (bars(&format!("{alternative}. {date}"), &[hits, misses]), alternative.to_owned())
}

fn readme(results: &Results<'_>, alternative: &str) -> String {
    let date = results.date;
    format!(
        "![{alternative}](benches/results/{date}.svg)\n\nThe same handler behind each, over HTTP, against the bare \
         handler, which has its answer ready: {} {} [All figures](benches/results/{date}.md), with processor time, 304s \
         and versions; `benches/peers/run compare` measures them again.",
        results.method, results.machine
    )
}
