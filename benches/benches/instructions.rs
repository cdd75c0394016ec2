//! The number of instructions that a request takes in this process, counted by valgrind. Other processes don't affect it.
//!
//! Each case runs in its own process, once with few rounds and once with many; the difference is the cost of the rounds.
//! Nanoseconds don't follow from instructions, because processors copy memory in bulk: see `parts`.

use std::env;
use std::hint::black_box;
use std::process::Command;

use http::header::{AUTHORIZATION, ETAG, IF_NONE_MATCH};
use http::{HeaderName, HeaderValue};
use larder_benches::{Direct, LARGE, PATH, SMALL, at_once, body, entry, get, machine, route, runtime};
use larder_core::{Call, KeySpace, Kind, Larder, Record, RequestView, Rule};

const ROUNDS: [u64; 2] = [500, 2500];

/// A counted case.
struct Case {
    name: &'static str,
    run: fn(u64),
    /// `true` to subtract the cost of the bare handler, which is included.
    has_bare: bool,
}

const CASES: [Case; 10] = [
    Case { name: "bare handler", run: |rounds| bare(rounds, SMALL), has_bare: false },
    Case { name: "hit, 550 B", run: |rounds| hit(rounds, SMALL, None), has_bare: true },
    Case { name: "hit, 50 KB", run: |rounds| hit(rounds, LARGE, None), has_bare: true },
    Case { name: "304, 550 B", run: |rounds| hit(rounds, SMALL, Some(IF_NONE_MATCH)), has_bare: true },
    Case { name: "bypass, 550 B", run: |rounds| hit(rounds, SMALL, Some(AUTHORIZATION)), has_bare: true },
    Case { name: "miss and store, 550 B", run: |rounds| miss(rounds, SMALL), has_bare: true },
    Case { name: "miss and store, 50 KB", run: |rounds| miss(rounds, LARGE), has_bare: true },
    Case { name: "key", run: key, has_bare: false },
    Case { name: "entry encoded, 550 B", run: encode, has_bare: false },
    Case { name: "entry decoded, 550 B", run: decode, has_bare: false },
];

fn main() {
    let mut args = env::args().skip(1);
    if let (Some("--run"), Some(name), Some(rounds)) = (args.next().as_deref(), args.next(), args.next()) {
        let case = CASES.into_iter().find(|case| case.name == name).expect("a name from the list");
        return (case.run)(rounds.parse().expect("a number of rounds"));
    }
    println!("{}.\n\n| case | instructions |\n|---|--:|", machine().trim_end_matches('.'));
    let mut bare = None;
    for Case { name, has_bare, .. } in CASES {
        let Some(count) = count(name) else {
            println!("\nNo `valgrind` here: nothing can be counted.");
            return;
        };
        // The bare handler is the first case.
        let bare = *bare.get_or_insert(count);
        println!("| {name} | {} |", if has_bare { count.saturating_sub(bare) } else { count });
    }
}

/// Returns the number of instructions in a round, or `None` without valgrind.
fn count(name: &str) -> Option<u64> {
    let [few, many] = ROUNDS.map(|rounds| {
        let output = Command::new("valgrind")
            .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
            .arg(env::current_exe().ok()?)
            .args(["--run", name, &rounds.to_string()])
            .output()
            .ok()?;
        let said = String::from_utf8(output.stderr).ok()?;
        let total = said.lines().find_map(|line| line.split_once("refs:"))?.1;
        total.trim().replace(',', "").parse::<u64>().ok()
    });
    Some((many? - few?) / (ROUNDS[1] - ROUNDS[0]))
}

fn bare(rounds: u64, len: usize) {
    let call = Direct { request: get(PATH), body: body(len) };
    for _ in 0..rounds {
        black_box(at_once(black_box(call.clone()).run()).expect("no errors"));
    }
}

/// A stored response, requested without or with an additional field.
fn hit(rounds: u64, len: usize, field: Option<HeaderName>) {
    let (larder, mut call) = (Larder::memory(), Direct { request: get(PATH), body: body(len) });
    let route = route(&larder);
    let stored = runtime().block_on(route.clone().handle(call.clone())).expect("no errors");
    if let Some(name) = field {
        let is_validator = name == IF_NONE_MATCH;
        let value =
            if is_validator { stored.headers()[ETAG].clone() } else { HeaderValue::from_static("Bearer x") };
        call.request.headers_mut().insert(name, value);
    }
    for _ in 0..rounds {
        black_box(at_once(route.clone().handle(black_box(call.clone()))).expect("no errors"));
    }
}

fn miss(rounds: u64, len: usize) {
    let (runtime, route, body) = (runtime(), route(&Larder::memory()), body(len));
    for id in 0..rounds {
        let call = Direct { request: get(&format!("/products/{id}")), body: body.clone() };
        black_box(runtime.block_on(route.clone().handle(call)).expect("no errors"));
    }
}

fn key(rounds: u64) {
    let space = KeySpace::new("redis:larder:cache", Some("products")).expect("a valid group");
    let (rule, request) = (Rule::new(Kind::Read, space), get(PATH));
    for _ in 0..rounds {
        black_box(rule.key(black_box(&RequestView::from(&request)), None));
    }
}

fn encode(rounds: u64) {
    let entry = entry(body(SMALL), 2);
    for _ in 0..rounds {
        black_box(black_box(&entry).encode());
    }
}

fn decode(rounds: u64) {
    let bytes = entry(body(SMALL), 2).encode();
    for _ in 0..rounds {
        black_box(Record::decode(black_box(&bytes)));
    }
}
