//! The state diagram in ARCHITECTURE.md, compared with the observed one: this test drives the machine over the product of small
//! domains, records every edge, and compares the record with the drawing.
//!
//! `LARDER_BLESS=1 cargo test -p larder-core --test state_diagram` draws it again.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod engine;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, Uri, request};
use larder_core::policy::{
    Admitted, BodyLength, CommitResult, Decision, Forward, Hit, Lookup, OnEntry, OnRequest, OnResponse, Pass,
    Placement, Select,
};
use larder_core::{
    Audience, CachePolicy, Kind, MAX_VARIANTS, Provenance, Reason, Record, RequestView, Variants,
};

use engine::{Fields, TTL, entry, now, request, response, rule, with};

#[test]
fn drawing_matches_the_observed_machine() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../ARCHITECTURE.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the marker before the drawing");
    let (drawn, after) = rest.split_once(END).expect("the marker after the drawing");
    let observed = format!("\n```mermaid\n{}```\n", observed().draw());
    if drawn == observed {
        return;
    }
    if std::env::var_os("LARDER_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{observed}{END}{after}")).unwrap();
        return;
    }
    panic!(
        "the machine doesn't do what ARCHITECTURE.md shows (-), but this (+). If that is what you want, \
         LARDER_BLESS=1 draws it anew.\n{}",
        difference(drawn, &observed)
    );
}

#[test]
fn every_reason_is_on_an_edge() {
    let observed = observed();
    let words: BTreeSet<&str> = observed.edges.values().flatten().copied().collect();
    for reason in Reason::ALL {
        // Waiting for others, tags and commits are done by the exchange.
        let of_the_exchange =
            matches!(reason, Reason::Busy | Reason::Waited | Reason::Evicted | Reason::Nested | Reason::Tags);
        // The shared cache has its own machine. `shared_policy/` has its rules as tables.
        let of_the_shared_cache = matches!(reason, Reason::Incomplete | Reason::Budget);
        assert_ne!(words.contains(reason.as_str()), of_the_exchange || of_the_shared_cache, "{reason}");
    }
}

const BEGIN: &str = "<!-- observed: begin -->";
const END: &str = "<!-- observed: end -->";

fn difference(drawn: &str, observed: &str) -> String {
    let only = |sign, of: &str, other: &str| {
        let known: BTreeSet<&str> = other.lines().collect();
        of.lines()
            .filter(|line| !known.contains(line))
            .map(|line| format!("{sign}{line}\n"))
            .collect::<String>()
    };
    only('-', drawn, observed) + &only('+', observed, drawn)
}

/// A state, in the order of the drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Start,
    Lookup,
    Select,
    Fill,
    WriteThrough,
    Eviction,
    Admit,
    Admitted,
    Stale,
    Hit,
    NotModified,
    Unsatisfiable,
    Bypass,
    Pass,
    PassAndEvict,
    Answer,
    Error,
}

impl State {
    /// The text in the box, if it isn't the state's name.
    const TITLES: [(Self, &'static str); 7] = [
        (Self::Fill, "Forward of a read"),
        (Self::WriteThrough, "Forward of a write-through"),
        (Self::Eviction, "Forward of an eviction"),
        (Self::Stale, "Stale, a hit with a refresh"),
        (Self::PassAndEvict, "Pass, which evicts"),
        (Self::Answer, "the handler's answer"),
        (Self::Error, "the handler's error"),
    ];

    fn name(self) -> String {
        if self == Self::Start { "[*]".to_owned() } else { format!("{self:?}") }
    }

    const fn of(kind: Kind) -> Self {
        match kind {
            Kind::Read => Self::Fill,
            Kind::Write => Self::WriteThrough,
            Kind::EvictKey | Kind::EvictGroup | Kind::EvictTags => Self::Eviction,
        }
    }
}

/// Every edge that was taken, with the words on it.
#[derive(Default)]
struct Observed {
    edges: BTreeMap<(State, State, &'static str), BTreeSet<&'static str>>,
    /// The forwards that were driven already. Equal ones do the same.
    driven: HashSet<String>,
}

impl Observed {
    fn edge(&mut self, from: State, event: &'static str, to: State, word: impl Into<Option<&'static str>>) {
        self.edges.entry((from, to, event)).or_default().extend(word.into());
    }

    fn draw(&self) -> String {
        let mut out = "stateDiagram-v2\n".to_owned();
        for (state, title) in State::TITLES {
            writeln!(out, "    state \"{title}\" as {}", state.name()).unwrap();
        }
        for ((from, to), label) in self.labels() {
            writeln!(out, "    {} --> {} : {}", from.name(), to.name(), label.join("<br/>")).unwrap();
        }
        let ends: BTreeSet<State> = self.edges.keys().map(|(_, to, _)| *to).collect();
        let goes_on = |state: &State| self.edges.keys().any(|(from, ..)| from == state);
        for end in ends.iter().filter(|state| !goes_on(state)) {
            writeln!(out, "    {} --> [*]", end.name()).unwrap();
        }
        out
    }

    /// Returns one arrow between two states, with each event and its words below it.
    fn labels(&self) -> BTreeMap<(State, State), Vec<String>> {
        let mut labels: BTreeMap<(State, State), Vec<String>> = BTreeMap::new();
        for ((from, to, event), words) in &self.edges {
            let words: Vec<&str> = words.iter().copied().collect();
            let label = labels.entry((*from, *to)).or_default();
            label.push((*event).to_owned());
            label.extend(words.chunks(4).map(|line| line.join(", ")));
        }
        labels
    }
}

// ----------------------------------------------------------------------------------------------------------- domains

const AUDIENCES: [fn() -> Audience; 3] = [
    || Audience::Undeclared,
    || Audience::Public,
    || Audience::private_by(|request| Some(request.headers.get("x-user")?.to_str().ok()?.to_owned())),
];

const CREDENTIALS: [Fields<'static>; 5] = [
    &[],
    &[("authorization", "Bearer t")],
    &[("cookie", "a=1")],
    &[("x-api-key", "k")],
    &[("x-user", "alice")],
];

const DIRECTIVES: [Fields<'static>; 6] = [
    &[],
    &[("cache-control", "no-store")],
    &[("cache-control", "no-cache")],
    &[("cache-control", "max-age=5")],
    &[("cache-control", "min-fresh=55")],
    &[("cache-control", "only-if-cached")],
];

/// The last of these selects no listed variant if there are too many.
const OTHERS: [Fields<'static>; 12] = [
    &[],
    &[(TEST_SPELLED, "under an unknown pattern")],
    &[(TEST_SPELLED, "under a known pattern")],
    &[(TEST_OBSCURED, "")],
    &[("upgrade", "websocket")],
    &[("x-http-method-override", "PATCH")],
    &[("range", "bytes=0-1")],
    &[("range", "lines=0-1")],
    &[("content-length", "3")],
    &[("if-match", "\"e\"")],
    &[("if-none-match", "\"e\"")],
    &[("accept-language", "tlh")],
];

/// Request fields that stand for other facts that an adapter knows about a request.
const TEST_SPELLED: &str = "test-spelled";
const TEST_OBSCURED: &str = "test-obscured";

fn view(request: &request::Parts) -> RequestView<'_> {
    let mut view = RequestView::from(request);
    view.is_obscured = request.headers.contains_key(TEST_OBSCURED);
    match request.headers.get(TEST_SPELLED).map(|how| how.to_str().unwrap()) {
        None => view,
        Some("under a known pattern") => view.with_uri(spelled()).with_pattern(Some("/things/{id}")),
        Some(_) => view.with_uri(spelled()),
    }
}

fn spelled() -> &'static Uri {
    static SPELLED: OnceLock<Uri> = OnceLock::new();
    SPELLED.get_or_init(|| Uri::from_static("/things/%37"))
}

const STATUSES: [u16; 6] = [200, 204, 206, 303, 404, 500];

const ANSWERS: [Fields<'static>; 7] = [
    &[],
    &[("etag", "\"e\"")],
    &[("set-cookie", "a=1")],
    &[("cache-control", "no-store")],
    &[("vary", "*")],
    &[("vary", "accept-language")],
    &[("vary", "origin")],
];

const LIMIT: u64 = 10;
const LENGTHS: [BodyLength; 4] =
    [BodyLength::Known(0), BodyLength::Known(3), BodyLength::Known(LIMIT + 1), BodyLength::Unknown];

/// The times, after a freshness lifetime of a minute, during which an entry may still be served.
const WHILE_REFRESHED: u64 = 10;
const IF_FAILED: u64 = 20;

/// Returns the possible values under a key: fresh, old, stale and expired entries, variants, and nothing.
fn founds(id: u64) -> Vec<Result<Option<Record>, Reason>> {
    let aged = |seconds| {
        with(entry(&[("etag", "\"e\"")]), |entry| {
            entry.variant = id;
            entry.stored_at = now() - Duration::from_secs(seconds);
        })
    };
    let response = |entry| Ok(Some(Record::Response(entry)));
    let mut founds = vec![
        Ok(None),
        Err(Reason::Unreadable),
        Err(Reason::Down),
        response(aged(0)),
        response(aged(30)),
        response(aged(TTL.as_secs())),
        response(aged(TTL.as_secs() + WHILE_REFRESHED)),
        response(aged(TTL.as_secs() + IF_FAILED)),
        response(with(aged(0), |entry| entry.variant = id + 1)),
        response(with(aged(0), |entry| {
            entry.provenance = Provenance { pattern: 1, ..Provenance::default() }
        })),
    ];
    founds.extend(records_of_variants().iter().cloned().map(Record::Variants).map(Some).map(Ok));
    founds
}

const VARIANTS_ID: u64 = 7;

/// A resource with this many variants. The first is that of a request without the field.
fn varying(count: usize) -> Variants {
    let mut variants = Variants::new(VARIANTS_ID, vec![http::header::ACCEPT_LANGUAGE]);
    let policy = CachePolicy::new(Arc::new(rule(Kind::Read)));
    for language in 0..count {
        let mut request = request(Method::GET, &[]);
        if language > 0 {
            request.headers.insert("accept-language", language.into());
        }
        let view = (&request).into();
        let OnRequest::Lookup(lookup) = policy.on_request(&view) else { panic!() };
        let found = Ok(Some(Record::Variants(variants.clone())));
        let OnEntry::Select(select) = lookup.on_entry(found, &view, now()) else { panic!() };
        let Decision::Miss(forward) = select.on_entry(Ok(None), &view, now()) else { panic!() };
        let parts = response(200, &[("vary", "accept-language")]);
        let OnResponse::Admit(admit) = forward.on_response(&parts, BodyLength::Known(0), now()) else {
            panic!()
        };
        let Placement::NewVariant(secondary, _) = admit.on_body(parts, Bytes::new(), now()).place(1) else {
            panic!()
        };
        variants.add(secondary);
    }
    variants
}

/// Resources with no variant, with one, and with as many as possible.
fn records_of_variants() -> &'static [Variants; 3] {
    static RECORDS: OnceLock<[Variants; 3]> = OnceLock::new();
    RECORDS.get_or_init(|| [0, 1, MAX_VARIANTS].map(varying))
}

// ----------------------------------------------------------------------------------------------------------- driving

fn observed() -> &'static Observed {
    static OBSERVED: OnceLock<Observed> = OnceLock::new();
    OBSERVED.get_or_init(observe)
}

fn observe() -> Observed {
    let mut observed = Observed::default();
    for kind in [Kind::Read, Kind::Write, Kind::EvictKey, Kind::EvictGroup, Kind::EvictTags] {
        for audience in AUDIENCES {
            let rule = with(rule(kind), |rule| {
                rule.audience = audience();
                rule.ttl_for = vec![(StatusCode::NOT_FOUND, Some(Duration::ZERO))];
                rule.max_body = LIMIT;
                rule.stale_while_revalidate = Some(Duration::from_secs(WHILE_REFRESHED));
                rule.stale_if_error = Some(Duration::from_secs(IF_FAILED));
            });
            let policy = CachePolicy::new(Arc::new(rule));
            for method in [Method::GET, Method::HEAD, Method::PUT] {
                for (credentials, directives, others) in triples(&CREDENTIALS, &DIRECTIVES, &OTHERS) {
                    let fields = [credentials, directives, others].concat();
                    observed.request(&policy, &request(method.clone(), &fields));
                }
            }
        }
    }
    observed
}

fn triples<A: Copy, B: Copy, C: Copy>(
    a: &'static [A],
    b: &'static [B],
    c: &'static [C],
) -> impl Iterator<Item = (A, B, C)> {
    a.iter().flat_map(move |a| b.iter().flat_map(move |b| c.iter().map(move |c| (*a, *b, *c))))
}

impl Observed {
    fn request(&mut self, policy: &CachePolicy, request: &request::Parts) {
        let lookup = || match policy.on_request(&view(request)) {
            OnRequest::Lookup(lookup) => lookup,
            other => panic!("{other:?}"),
        };
        match policy.on_request(&view(request)) {
            OnRequest::Bypass(mark) => {
                self.edge(State::Start, "on_request", State::Bypass, mark.reason().map(Reason::as_str));
            }
            OnRequest::Forward(forward) => {
                let state = State::of(forward.kind());
                self.edge(State::Start, "on_request", state, None);
                let forward = || match policy.on_request(&view(request)) {
                    OnRequest::Forward(forward) => forward,
                    other => panic!("{other:?}"),
                };
                self.forward(&forward);
            }
            OnRequest::Lookup(first) => {
                self.edge(State::Start, "on_request", State::Lookup, None);
                let word = first.without_key().reason().map(Reason::as_str);
                self.edge(State::Lookup, "without_key", State::Bypass, word);
                for found in founds(0) {
                    self.lookup(&lookup, &found, request);
                }
            }
        }
    }

    fn lookup(
        &mut self,
        lookup: &dyn Fn() -> Lookup,
        found: &Result<Option<Record>, Reason>,
        request: &request::Parts,
    ) {
        let again = || lookup().on_entry(found.clone(), &view(request), now());
        match again() {
            OnEntry::Decided(_) => {
                let decide = || match again() {
                    OnEntry::Decided(decision) => decision,
                    OnEntry::Select(select) => panic!("{select:?}"),
                };
                self.decision(State::Lookup, &decide);
            }
            OnEntry::Select(_) => {
                self.edge(State::Lookup, "on_entry", State::Select, None);
                let select = || -> Select {
                    match again() {
                        OnEntry::Select(select) => select,
                        OnEntry::Decided(decision) => panic!("{decision:?}"),
                    }
                };
                for found in founds(VARIANTS_ID) {
                    self.decision(State::Select, &|| select().on_entry(found.clone(), &view(request), now()));
                }
            }
        }
    }

    fn decision(&mut self, from: State, decide: &dyn Fn() -> Decision) {
        match decide() {
            Decision::Hit(_) => self.edge(from, "on_entry", State::Hit, None),
            Decision::NotModified(_) => self.edge(from, "on_entry", State::NotModified, None),
            Decision::Unsatisfiable(_) => self.edge(from, "on_entry", State::Unsatisfiable, None),
            Decision::Bypass(mark) => {
                self.edge(from, "on_entry", State::Bypass, mark.reason().map(Reason::as_str));
            }
            Decision::Stale(hit, forward) => {
                self.edge(from, "on_entry", State::Stale, forward.reason().as_str());
                self.edge(State::Stale, "the answer", hit_state(hit), None);
                self.edge(State::Stale, "the refresh", State::Fill, None);
                let forward = || match decide() {
                    Decision::Stale(_, forward) => forward,
                    other => panic!("{other:?}"),
                };
                self.forward(&forward);
            }
            Decision::Miss(forward) => {
                self.edge(from, "on_entry", State::Fill, forward.reason().as_str());
                let forward = || match decide() {
                    Decision::Miss(forward) => forward,
                    other => panic!("{other:?}"),
                };
                self.forward(&forward);
            }
        }
    }

    fn forward(&mut self, forward: &dyn Fn() -> Forward) {
        if !self.driven.insert(format!("{:?}", forward())) {
            return;
        }
        let from = State::of(forward().kind());
        if from == State::Fill {
            for id in [0, VARIANTS_ID] {
                for found in founds(id) {
                    let Ok(record) = found else { continue };
                    let to = match forward().on_filled(record, now()) {
                        Ok(hit) => hit_state(hit),
                        // The forward is returned unchanged.
                        Err(_) => from,
                    };
                    self.edge(from, "on_filled", to, None);
                }
            }
        } else {
            let mark = forward().unstored(Reason::Keyless);
            self.edge(from, "unstored", State::Bypass, mark.reason().map(Reason::as_str));
        }
        for status in STATUSES.map(|status| StatusCode::from_u16(status).unwrap()) {
            match forward().on_error(status) {
                Some(hit) => self.edge(from, "on_error", hit_state(hit), None),
                None => self.edge(from, "on_error", State::Error, None),
            }
        }
        if let Ok(hit) = forward().or_fallback() {
            self.edge(from, "or_fallback", hit_state(hit), None);
        }
        for (status, fields, length) in triples(&STATUSES, &ANSWERS, &LENGTHS) {
            let parts = response(status, fields);
            match forward().on_response(&parts, length, now()) {
                OnResponse::Pass(pass) => self.pass(from, "on_response", &pass),
                OnResponse::ServeStale(hit) => self.edge(from, "on_response", hit_state(hit), None),
                OnResponse::Admit(admit) => {
                    self.edge(from, "on_response", State::Admit, None);
                    self.edge(State::Admit, "on_body", State::Admitted, None);
                    self.admitted(admit.on_body(parts.clone(), Bytes::from_static(b"new"), now()));
                }
            }
            if let OnResponse::Admit(admit) = forward().on_response(&parts, length, now()) {
                self.pass(State::Admit, "on_broken_body", &admit.on_broken_body());
            }
        }
    }

    fn pass(&mut self, from: State, event: &'static str, pass: &Pass) {
        let to = if pass.evicts() { State::PassAndEvict } else { State::Pass };
        self.edge(from, event, to, pass.cache_status().reason().map(Reason::as_str));
    }

    fn admitted(&mut self, mut admitted: Admitted) {
        let placement = match admitted.place(VARIANTS_ID) {
            Placement::Target => "target",
            Placement::NewVariant(..) => "new variant",
            Placement::FirstVariant(..) => "first variant",
            Placement::Widened(..) => "widened",
        };
        self.edge(State::Admitted, "place", State::Admitted, placement);
        let status = admitted.into_response(CommitResult::Stored).status();
        let to = if status == StatusCode::NOT_MODIFIED { State::NotModified } else { State::Answer };
        self.edge(State::Admitted, "into_response", to, None);
    }
}

/// A hit after a fill shows its kind only in its response.
fn hit_state(hit: Hit) -> State {
    match hit.into_response().status() {
        StatusCode::NOT_MODIFIED => State::NotModified,
        _ => State::Hit,
    }
}
