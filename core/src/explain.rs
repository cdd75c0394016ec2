//! Explanations of the engine's decisions about a request, step by step.
//!
//! The explanation runs the same [`CachePolicy`] that answers requests, so it shows the actual decision.

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{StatusCode, response};

use crate::key::CacheKey;
use crate::policy::rule::{Kind, Principal};
use crate::policy::{
    Admit, BodyLength, CachePolicy, CommitResult, Decision, Forward, Hit, OnEntry, OnRequest, OnResponse,
    Placement,
};
use crate::provenance::Provenance;
use crate::reason::Reason;
use crate::record::{Entry, Record};
use crate::request::RequestView;
use crate::status::Status;

/// A question to the engine about one request.
///
/// ```
/// use std::time::SystemTime;
///
/// use http::{Request, Response, header::SET_COOKIE};
/// use larder_core::explain::Explain;
/// use larder_core::policy::{BodyLength, CachePolicy};
/// use larder_core::{KeySpace, Kind, Reason, RequestView, Rule, Status};
///
/// let rule = Rule::new(Kind::Read, KeySpace::new("example", None)?);
/// let policy = CachePolicy::new(rule.into());
/// let request = Request::get("/login").body(())?;
/// let (answer, ()) = Response::builder().header(SET_COOKIE, "session=1").body(())?.into_parts();
///
/// let explanation = Explain::new(&policy, RequestView::from(&request), SystemTime::now())
///     .answer(&answer, BodyLength::Known(5))
///     .with_nothing_stored();
/// assert_eq!((explanation.status, explanation.reason), (Status::Bypass, Some(Reason::SetCookie)));
/// assert!(!explanation.stores);
/// assert!(explanation.to_string().contains("The response sets a cookie."));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Explain<'a> {
    policy: &'a CachePolicy,
    request: RequestView<'a>,
    now: SystemTime,
    key: Option<Option<CacheKey>>,
    answer: Option<(&'a response::Parts, BodyLength)>,
}

impl<'a> Explain<'a> {
    /// Creates a question about this request at this time.
    pub const fn new(policy: &'a CachePolicy, request: RequestView<'a>, now: SystemTime) -> Self {
        Self { policy, request, now, key: None, answer: None }
    }

    /// Sets the key from a key builder, or no key. Otherwise the key is made from the URI.
    pub fn key(self, key: Option<CacheKey>) -> Self {
        Self { key: Some(key), ..self }
    }

    /// Sets the handler's response. Without it, the explanation ends where the handler runs.
    pub const fn answer(mut self, answer: &'a response::Parts, length: BodyLength) -> Self {
        self.answer = Some((answer, length));
        self
    }

    /// Explains the request for an empty store.
    #[must_use]
    pub fn with_nothing_stored(self) -> Explanation {
        self.with_stored(|_| Ok(None))
    }

    /// Explains the request with the records that `stored` returns for a key. An `Err` is [`Reason::Down`] or
    /// [`Reason::Unreadable`].
    #[must_use]
    pub fn with_stored(
        self,
        mut stored: impl FnMut(&CacheKey) -> Result<Option<Record>, Reason>,
    ) -> Explanation {
        let mut stored =
            |key: &CacheKey| Ok(stored(key)?.map(|record| self.with_provenance_of_request(record)));
        let mut explanation = Explanation::new(&self);
        match self.policy.on_request(&self.request) {
            OnRequest::Bypass(mark) => {
                explanation.step("on_request", "Bypass", mark.reason(), "The cache takes no part.");
                explanation.conclude(self.passing(), mark.reason());
            }
            OnRequest::Forward(forward) => self.explain_write(&mut explanation, forward),
            OnRequest::Lookup(lookup) => {
                explanation.step("on_request", "Lookup", None, "The request may be answered from the cache.");
                let Some(key) = self.key_of(lookup.principal()) else {
                    let mark = lookup.without_key();
                    explanation.step("without_key", "Bypass", mark.reason(), "The cache takes no part.");
                    explanation.conclude(self.passing(), mark.reason());
                    return explanation;
                };
                explanation.set_key(&key);
                let decision = match lookup.on_entry(stored(&key), &self.request, self.now) {
                    OnEntry::Decided(decision) => decision,
                    OnEntry::Select(select) => {
                        let text = "The resource varies: its variant lies under a key of its own.";
                        explanation.step("on_entry", "Select", None, text);
                        let variant = key.variant(select.secondary_key(&self.request));
                        explanation.set_key(&variant);
                        select.on_entry(stored(&variant), &self.request, self.now)
                    }
                };
                self.explain_read(&mut explanation, decision);
            }
        }
        explanation
    }

    /// Gives the record the request's provenance if the request has no pattern: the question is then about a request that leads
    /// to the stored handler.
    fn with_provenance_of_request(&self, mut record: Record) -> Record {
        if self.request.pattern.is_none() {
            let own = Provenance::of(&self.request, self.policy.rule().is_chosen);
            match &mut record {
                Record::Response(entry) => entry.provenance = own,
                Record::Variants(variants) => variants.provenance = own,
            }
        }
        record
    }

    fn key_of(&self, principal: Option<Principal>) -> Option<CacheKey> {
        match &self.key {
            Some(given) => given.clone(),
            None => Some(self.policy.rule().key(&self.request, principal)),
        }
    }

    /// Returns the status of a request whose response is passed on.
    fn passing(&self) -> Status {
        let failed = self.answer.is_some_and(|(answer, _)| answer.status.is_server_error());
        if failed { Status::Error } else { Status::Bypass }
    }

    fn explain_read(&self, explanation: &mut Explanation, decision: Decision) {
        match decision {
            Decision::Hit(hit) => {
                explanation.set_found(&hit, self.now);
                explanation.step("on_entry", "Hit", None, "What is stored answers.");
                explanation.conclude(Status::Hit, None);
            }
            Decision::NotModified(hit) => {
                explanation.set_found(&hit, self.now);
                explanation.step(
                    "on_entry",
                    "NotModified",
                    None,
                    "The client has what is stored: 304 answers.",
                );
                explanation.conclude(Status::Hit, None);
            }
            Decision::Stale(hit, forward) => {
                explanation.set_found(&hit, self.now);
                let text = "What is stored answers though it is stale, and the handler refreshes it in the background.";
                let reason = Some(forward.reason());
                explanation.step("on_entry", "Stale", reason, text);
                explanation.conclude(Status::Stale, reason);
                // The refresh stores its response, but doesn't change the answer.
                self.explain_answer(&mut explanation.refreshing_run(), forward);
            }
            Decision::Unsatisfiable(answer) => {
                let text = "The client wants what is stored or nothing: 504 answers.";
                explanation.step("on_entry", "Unsatisfiable", answer.reason(), text);
                explanation.conclude(Status::Miss, answer.reason());
            }
            Decision::Bypass(mark) => {
                let text = "The handler runs, and the cache takes no part.";
                explanation.step("on_entry", "Bypass", mark.reason(), text);
                explanation.conclude(self.passing(), mark.reason());
            }
            Decision::Miss(forward) => {
                let reason = Some(forward.reason());
                explanation.step("on_entry", "Miss", reason, "The handler runs.");
                explanation.conclude(Status::Miss, reason);
                self.explain_answer(&mut explanation.answering_run(), forward);
            }
        }
    }

    fn explain_write(&self, explanation: &mut Explanation, forward: Forward) {
        let text = "The handler runs, and its success writes or evicts.";
        explanation.step("on_request", "Forward", Some(forward.reason()), text);
        explanation.conclude(Status::Bypass, Some(forward.reason()));
        if !matches!(forward.kind(), Kind::EvictGroup | Kind::EvictTags) {
            let Some(key) = self.key_of(forward.principal()) else {
                explanation.step("unstored", "Bypass", Some(Reason::Keyless), "The cache takes no part.");
                return explanation.conclude(self.passing(), Some(Reason::Keyless));
            };
            explanation.set_key(&key);
        }
        self.explain_answer(&mut explanation.answering_run(), forward);
    }

    fn explain_answer(&self, run: &mut HandlerRun<'_>, forward: Forward) {
        let Some((answer, length)) = self.answer else { return };
        match forward.on_response(answer, length, self.now) {
            OnResponse::Pass(pass) => {
                let text = if pass.evicts() {
                    "The answer is passed on and not stored, and what was stored is evicted."
                } else {
                    "The answer is passed on as it is, and not stored."
                };
                let reason = pass.cache_status().reason();
                run.step("on_response", "Pass", reason, text);
                run.explanation.evicts = pass.evicts();
                run.conclude(self.passing(), reason);
            }
            OnResponse::ServeStale(hit) => {
                run.explanation.set_found(&hit, self.now);
                let text = "The handler failed, and what is stored answers though it is stale.";
                run.step("on_response", "ServeStale", Some(Reason::Failed), text);
                run.conclude(Status::Stale, Some(Reason::Failed));
            }
            OnResponse::Admit(admit) => self.explain_storing(run, admit, answer),
        }
    }

    fn explain_storing(&self, run: &mut HandlerRun<'_>, admit: Admit, answer: &response::Parts) {
        run.step(
            "on_response",
            "Admit",
            None,
            "The answer may be stored, if its body is as long as it says.",
        );
        let mut admitted = admit.on_body(answer.clone(), Bytes::new(), self.now);
        let retention = admitted.retention();
        let placement = if self.policy.rule().kind == Kind::Write {
            // One answer can't stand for all variants, which the store finds out.
            Placement::Target
        } else {
            admitted.place(1)
        };
        let (decision, text) = match placement {
            Placement::Target => {
                ("Target", "It is stored under the key, or as a variant that was known already.")
            }
            Placement::NewVariant(..) => ("NewVariant", "It is stored as a new variant."),
            Placement::FirstVariant(..) => ("FirstVariant", "It is stored as the first variant."),
            Placement::Widened(..) => (
                "Widened",
                "It is stored as the first variant by more fields than before. The older ones are gone.",
            ),
        };
        run.step("place", decision, None, text);
        run.explanation.stores = true;
        run.explanation.kept_for = retention;
        run.conclude(Status::Miss, Some(admitted.reason(CommitResult::Stored)));
    }
}

/// The outcome of a request with its reasons, from [`Explain`]. `Display` writes a few lines for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Explanation {
    /// The method and the path with its query.
    pub request: String,
    /// The kind of the route.
    pub kind: Kind,
    /// The status of the answer. Without the handler's response, the status known so far.
    pub status: Status,
    /// The reason for which it is not a hit.
    pub reason: Option<Reason>,
    /// The key of the last lookup, if there was one.
    pub key: Option<String>,
    /// The stored response that answers.
    pub entry: Option<FoundEntry>,
    /// `true` if the handler's response is stored.
    pub stores: bool,
    /// The time that the store keeps the response. `None` if it isn't stored, or for no expiry.
    #[cfg_attr(feature = "runtime", serde(serialize_with = "seconds"))]
    pub kept_for: Option<Duration>,
    /// `true` if the key, or the group, is evicted.
    pub evicts: bool,
    /// The engine's transitions, in order.
    pub steps: Vec<Transition>,
}

/// Facts about a stored response, without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(serde::Serialize))]
#[non_exhaustive]
pub struct FoundEntry {
    /// Its status code.
    #[cfg_attr(feature = "runtime", serde(serialize_with = "code"))]
    pub status: StatusCode,
    /// The length of its body, in bytes.
    pub body_bytes: u64,
    /// The age, in seconds.
    pub age: u64,
    /// The remaining freshness lifetime, in seconds; `None` for no expiry.
    pub remaining: Option<u64>,
    /// The time since it became stale, in seconds.
    pub stale_for: u64,
}

impl FoundEntry {
    /// Returns the facts about an entry at this time.
    #[must_use]
    pub fn of(entry: &Entry, now: SystemTime) -> Self {
        Self {
            status: entry.status,
            body_bytes: entry.body.len() as u64,
            age: entry.age(now).as_secs(),
            remaining: entry.remaining(now).map(|remaining| remaining.as_secs()),
            stale_for: entry.staleness(now).as_secs(),
        }
    }
}

/// One transition of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Transition {
    /// The transition's name, as in [`policy`](crate::policy).
    pub event: &'static str,
    /// The result.
    pub decision: &'static str,
    /// The reason.
    pub reason: Option<Reason>,
    /// A few sentences about the result, with advice.
    pub text: String,
}

impl Explanation {
    fn new(question: &Explain<'_>) -> Self {
        let RequestView { method, uri, .. } = question.request;
        let path = uri.path_and_query().map_or(uri.path(), |path| path.as_str());
        Self {
            request: format!("{method} {path}"),
            kind: question.policy.rule().kind,
            status: Status::Bypass,
            reason: None,
            key: None,
            entry: None,
            stores: false,
            kept_for: None,
            evicts: false,
            steps: Vec::new(),
        }
    }

    fn step(
        &mut self,
        event: &'static str,
        decision: &'static str,
        reason: impl Into<Option<Reason>>,
        text: &str,
    ) {
        let reason = reason.into();
        let sentences = [Some(text), reason.map(Reason::meaning), reason.and_then(advice)];
        let text = sentences.into_iter().flatten().collect::<Vec<_>>().join(" ");
        self.steps.push(Transition { event, decision, reason, text });
    }

    fn conclude(&mut self, status: Status, reason: Option<Reason>) {
        (self.status, self.reason) = (status, reason);
    }

    fn set_key(&mut self, key: &CacheKey) {
        self.key = Some(key.name().to_owned());
    }

    fn set_found(&mut self, hit: &Hit, now: SystemTime) {
        self.entry = Some(FoundEntry::of(hit.entry(), now));
    }

    fn answering_run(&mut self) -> HandlerRun<'_> {
        HandlerRun { explanation: self, is_answer: true }
    }

    fn refreshing_run(&mut self) -> HandlerRun<'_> {
        HandlerRun { explanation: self, is_answer: false }
    }
}

/// Adds the steps of one run of the handler, whose response answers the request or only refreshes the entry.
struct HandlerRun<'a> {
    explanation: &'a mut Explanation,
    is_answer: bool,
}

impl HandlerRun<'_> {
    fn step(&mut self, event: &'static str, decision: &'static str, reason: Option<Reason>, text: &str) {
        self.explanation.step(event, decision, reason, text);
    }

    fn conclude(&mut self, status: Status, reason: Option<Reason>) {
        if self.is_answer {
            self.explanation.conclude(status, reason);
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.request, self.status)?;
        if let Some(reason) = self.reason {
            write!(f, " ({reason})")?;
        }
        if let Some(key) = &self.key {
            write!(f, "\n  key: {key}")?;
        }
        if let Some(entry) = &self.entry {
            write!(
                f,
                "\n  stored: status {}, {} bytes, {} s old",
                entry.status, entry.body_bytes, entry.age
            )?;
            match (entry.remaining, entry.stale_for) {
                (None, _) => f.write_str(", fresh without end")?,
                (Some(0), stale) => write!(f, ", stale for {stale} s")?,
                (Some(remaining), _) => write!(f, ", fresh for another {remaining} s")?,
            }
        }
        for (index, step) in self.steps.iter().enumerate() {
            write!(f, "\n  {}. {}", index + 1, step.text)?;
        }
        match (self.stores, self.kept_for) {
            (true, Some(kept_for)) => write!(f, "\n  The answer is kept for {} s.", kept_for.as_secs()),
            (true, None) => f.write_str("\n  The answer is kept until it is evicted."),
            (false, _) => Ok(()),
        }
    }
}

/// Returns advice for the author of a route, if there is any.
fn advice(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::Authorization | Reason::Cookie => {
            "If everybody gets the same, declare the route .public(); if everybody has a copy of their own, .private() or \
             .private_by(..)."
        }
        Reason::Anonymous => "Private routes are for requests that say whose they are.",
        Reason::Spelling => {
            "Put the cache around handlers rather than around a router, and let the router tell its pattern."
        }
        Reason::Rewritten => {
            "Rewrite outside of the nested router, or nest it under a path without parameters."
        }
        Reason::Pattern => {
            "Routes that share entries on purpose use the same .key_by(..); else give them groups of their own."
        }
        Reason::Nested => "Layer the cache once around each handler.",
        Reason::Keyless => "Its answer for this request was None.",
        Reason::Status => "To store responses with this status, say .ttl_for(status, ttl).",
        Reason::SetCookie => "Set cookies on another route, or in a layer outside the cache.",
        Reason::Withheld => "If the route may be cached, let the handler say nothing about it.",
        Reason::Stream => {
            "If it has an end, answer with a body whose length is known, or with `Content-Length`."
        }
        Reason::Size => "The limit is .max_body(bytes), and the store's own.",
        Reason::Vary => {
            "Layers that vary their answers, as CORS and compression do, belong outside the cache."
        }
        Reason::Down => "The store's health says more.",
        _ => return None,
    })
}

#[cfg(feature = "runtime")]
fn seconds<S: serde::Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&duration.map(|duration| duration.as_secs()), serializer)
}

#[cfg(feature = "runtime")]
fn code<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}
