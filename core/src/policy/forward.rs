//! A request on its way to the handler, and the decision about the handler's response.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{
    CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName,
    IF_RANGE, LAST_MODIFIED, SET_COOKIE, TRAILER, TRANSFER_ENCODING,
};
use http::{HeaderMap, StatusCode, response};

use crate::headers::accept_encoding::reduce;
use crate::headers::cache_control::{RequestDirectives, ResponseDirectives};
use crate::headers::conditional::{Validators, request_matches, weak_etag};
use crate::headers::hop_by_hop::remove_if;
use crate::headers::range::{self, Part, Selection};
use crate::headers::vary::{add_vary, selecting_fields};
use crate::key::SecondaryKey;
use crate::policy::admitted::{Admitted, representation_fields, storable_fields};
use crate::policy::cache_status::CacheStatus;
use crate::policy::hit::{Hit, add_accept_ranges, selection};
use crate::policy::rule::{Audience, Kind, Principal, Rule};
use crate::policy::safety::{
    BodyLength, allows_stale_if_error, is_for_a_part, is_not_modified, is_success, leaves_outcome_unknown,
    may_lack_cors, why_not_storable, why_not_usable,
};
use crate::policy::storable_statuses::jittered;
use crate::provenance::Provenance;
use crate::reason::Reason;
use crate::record::variants::Variants;
use crate::record::{Entry, Record};
use crate::request::is_ordinary;
use crate::store::Intent;

/// The decision about the handler's response.
#[derive(Debug)]
pub enum OnResponse {
    /// Answer with it and store nothing.
    Pass(Pass),
    /// The handler failed: answer with the stale stored response (RFC 5861 §4).
    ServeStale(Hit),
    /// Collect the body.
    Admit(Admit),
}

/// A request for the handler, with the state to decide about its response.
#[derive(Debug)]
#[must_use]
pub struct Forward {
    pub(super) rule: Arc<Rule>,
    pub(super) reason: Reason,
    pub(super) directives: RequestDirectives,
    pub(super) why_not_storable: Option<Reason>,
    pub(super) principal: Option<Principal>,
    pub(super) provenance: Provenance,
    /// The fields of a read request; a write's response depends on none.
    pub(super) request: Option<HeaderMap>,
    pub(super) is_head: bool,
    /// `true` if a read has validators: a 304 is possible.
    pub(super) is_conditional: bool,
    pub(super) is_cross_origin: bool,
    /// `true` if the response is cut for the client.
    pub(super) is_range: bool,
    /// `true` if the handler sees the `Range` that the client sent.
    pub(super) keeps_range: bool,
    pub(super) intent: Intent,
    pub(super) variants: Option<Variants>,
    /// The stale response that answers if the handler fails.
    pub(super) fallback: Option<Box<Hit>>,
}

impl Forward {
    /// Returns the reason for which the handler has to run.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        self.reason
    }

    /// Returns the intent for the store's lease, or `None` if nothing will be stored and the store isn't asked.
    #[must_use]
    pub fn intent(&self) -> Option<Intent> {
        match self.rule.kind {
            // The response to a HEAD can't fill an entry.
            Kind::Read if self.is_head => None,
            Kind::Write if self.why_not_storable.is_some() => None,
            Kind::Read | Kind::Write => Some(self.intent),
            Kind::EvictKey | Kind::EvictGroup | Kind::EvictTags => None,
        }
    }

    /// Returns the reason for which no response of the handler will be stored, if one is known.
    #[must_use]
    pub const fn why_not_storable(&self) -> Option<Reason> {
        self.why_not_storable
    }

    /// Returns the kind of the route.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.rule.kind
    }

    /// Returns the principal of the request, for the key of a write.
    #[must_use]
    pub const fn principal(&self) -> Option<Principal> {
        self.principal
    }

    /// Returns the provenance of the response to be stored.
    #[must_use]
    pub const fn provenance(&self) -> Provenance {
        self.provenance
    }

    /// Returns the secondary key of the response, if the resource is already known to vary.
    #[must_use]
    pub fn secondary_key(&self) -> Option<SecondaryKey> {
        Some(self.rule.secondary_key(self.variants.as_ref()?, self.request.as_ref()?))
    }

    /// Answers with a response that another request stored meanwhile. Returns the request in `Err` if that response
    /// can't answer it.
    pub fn on_filled(self, record: Option<Record>, now: SystemTime) -> Result<Hit, Self> {
        let (Some(Record::Response(entry)), Some(request)) = (record, &self.request) else {
            return Err(self);
        };
        let expected = self.variants.as_ref().map_or(0, |variants| variants.id);
        let age = entry.age(now);
        if entry.variant != expected
            || !entry.provenance.serves(self.provenance)
            || why_not_usable(&self.directives, &entry, age).is_some()
            || (self.is_cross_origin && may_lack_cors(&entry, self.variants.as_ref()))
        {
            return Err(self);
        }
        let (is_head, not_modified) = (self.is_head, is_not_modified(request, &entry, &self.rule.templates));
        let length = entry.body.len() as u64;
        let selection = if self.is_range && !not_modified {
            selection(request, &entry, length)
        } else {
            Selection::Whole
        };
        Ok(Hit { rule: self.rule, entry, length, age, not_modified, is_head, selection, collapsed: false })
    }

    /// Removes the fields from the handler's request that its response must not depend on:
    ///
    /// - The conditions of a read. The whole response is compared with them afterwards, and may become a 304. A write
    ///   keeps its preconditions.
    /// - A `Range` that selects the whole, which is cut afterwards. Other ranges stay, because a handler that makes
    ///   parts needn't make the whole.
    /// - Credentials on a public route; on a private route, the credentials that the principal doesn't come from. A
    ///   write keeps them, for its handler to check.
    /// - Fields that change where a request goes, such as `X-Forwarded-Host`, unless the host is part of the key.
    /// - Content codings that the route doesn't declare, if it declares any.
    pub fn prepare(&self, request: &mut HeaderMap) {
        let is_whole = self.rule.kind == Kind::Read && !self.is_head;
        let is_removed = |name: &HeaderName| match name.as_str() {
            // Most fields are ordinary, and the rule hides those only if it lists them.
            ordinary if is_ordinary(ordinary) && self.rule.credential_fields.is_empty() => false,
            "if-none-match" | "if-modified-since" | "if-match" | "if-unmodified-since" if is_whole => true,
            "range" | "if-range" if is_whole && !self.keeps_range => true,
            _ => self.rule.hides(name),
        };
        remove_if(request, is_removed);
        reduce(request, self.rule.content_codings.as_deref());
    }

    /// Gives up storing: the handler's answer will be passed on with this reason.
    pub fn unstored(self, reason: Reason) -> CacheStatus {
        CacheStatus::refusal(&self.rule, reason)
    }

    /// Passes the handler's response on without storing it, for this reason.
    pub fn not_storable(mut self, reason: Reason) -> Self {
        self.why_not_storable = self.why_not_storable.or(Some(reason));
        self
    }

    /// Goes on to the handler, but for another reason than that nothing was found.
    pub fn because(self, reason: Reason) -> Self {
        Self { reason, ..self }
    }

    /// Returns `true` if the handler sees the requested range. It may answer with that part alone, which isn't stored.
    #[must_use]
    pub const fn keeps_range(&self) -> bool {
        self.keeps_range
    }

    /// Returns `true` if one run of the handler serves all requests that miss at the same time. A request that asks for a
    /// fresher response than the stored one never shares a run that began before it.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.intent().is_some()
            && !self.directives.wants_new()
            && !matches!(self.reason, Reason::NoCache | Reason::MaxAge | Reason::MinFresh | Reason::Down)
    }

    /// Returns `true` if other requests would wait for the run of this one and not get its response: the run isn't shared, and
    /// the canonical spelling of the path may belong to another route.
    #[must_use]
    pub fn holds_up_others(&self) -> bool {
        self.intent().is_some()
            && !self.is_shared()
            && !self.provenance.is_canonical
            && matches!(self.reason, Reason::Absent | Reason::Variant)
    }

    /// Returns the stale stored response after another request's run of the handler failed, if a stale response is
    /// allowed. `Err` returns the request.
    pub fn or_fallback(mut self) -> Result<Hit, Self> {
        self.fallback.take().map(|hit| *hit).ok_or(self)
    }

    /// Decides after the handler returned an error that will be answered with this status. Nothing is stored. Returns
    /// the stale stored response if it may answer (RFC 5861 §4).
    #[must_use]
    pub fn on_error(self, status: StatusCode) -> Option<Hit> {
        self.fallback.filter(|_| allows_stale_if_error(status)).map(|hit| *hit)
    }

    /// Decides about the handler's response, before its body. `now` is the time at which the handler answered.
    #[must_use]
    pub fn on_response(self, response: &response::Parts, length: BodyLength, now: SystemTime) -> OnResponse {
        match self.rule.kind {
            Kind::Read => self.on_read(response, length, now),
            Kind::Write => self.on_written(response, length),
            Kind::EvictKey | Kind::EvictGroup | Kind::EvictTags => self.on_evicting(response),
        }
    }

    fn on_read(mut self, response: &response::Parts, length: BodyLength, now: SystemTime) -> OnResponse {
        if allows_stale_if_error(response.status)
            && let Some(hit) = self.fallback.take()
        {
            return OnResponse::ServeStale(*hit);
        }
        let refusal = if response.headers.contains_key(SET_COOKIE) {
            // This reason comes first, because the next cache must be told about cookies.
            Some(Reason::SetCookie)
        } else if self.is_head {
            Some(Reason::Head)
        } else if self.keeps_range && is_for_a_part(response) {
            Some(Reason::Range)
        } else if self.rule.ttl_of(response.status).is_none() {
            Some(Reason::Status)
        } else {
            why_not_storable(response, length, &self.rule).or(self.why_not_storable)
        };
        match (refusal, selecting_fields(&response.headers), length) {
            (Some(reason), ..) => self.pass_read(reason, response, length, now),
            (None, Err(()), _) => self.pass_read(Reason::Vary, response, length, now),
            (None, Ok(_), BodyLength::Unknown) => self.pass_read(Reason::Stream, response, length, now),
            (None, Ok(names), BodyLength::Known(length)) => {
                OnResponse::Admit(Admit { forward: self, names, length })
            }
        }
    }

    /// Passes on a read's response. The handler didn't see the request's conditions, so they are evaluated here (RFC
    /// 9110 §13.2.1).
    fn pass_read(
        &self,
        reason: Reason,
        response: &response::Parts,
        length: BodyLength,
        now: SystemTime,
    ) -> OnResponse {
        let matches = |request| request_matches(request, &response.headers, now);
        let not_modified = response.status.is_success() && self.request.as_ref().is_some_and(matches);
        // With `If-Range`, the whole body is always correct (RFC 9110 §14.2).
        let wants_part = self.is_range
            && !self.keeps_range
            && !self.request.as_ref().is_some_and(|request| request.contains_key(IF_RANGE));
        let part = match length {
            BodyLength::Known(length)
                if wants_part
                    && response.status == StatusCode::OK
                    && !range::is_refused(&response.headers) =>
            {
                range::whole_as_part(length)
            }
            _ => None,
        };
        let cache_status = CacheStatus::refusal(&self.rule, reason);
        OnResponse::Pass(Pass { cache_status, evicts: false, not_modified, part })
    }

    fn pass(&self, reason: Reason, evicts: bool) -> OnResponse {
        let cache_status = CacheStatus::refusal(&self.rule, reason);
        OnResponse::Pass(Pass { cache_status, evicts, not_modified: false, part: None })
    }

    /// Decides about a write: a success stores or evicts, a refusal changes nothing, and an unknown outcome evicts.
    fn on_written(self, response: &response::Parts, length: BodyLength) -> OnResponse {
        if !is_success(response.status) {
            return self.pass(Reason::Failed, leaves_outcome_unknown(response.status));
        }
        let representation = [StatusCode::OK, StatusCode::CREATED, StatusCode::NON_AUTHORITATIVE_INFORMATION];
        let refusal = self
            .why_not_storable
            .or_else(|| (!representation.contains(&response.status)).then_some(Reason::Status))
            .or_else(|| why_not_storable(response, length, &self.rule))
            .or_else(|| (length == BodyLength::Known(0)).then_some(Reason::Empty))
            .or_else(|| (selecting_fields(&response.headers) != Ok(Vec::new())).then_some(Reason::Vary));
        match (refusal, length) {
            (Some(reason), _) => self.pass(reason, true),
            (None, BodyLength::Unknown) => self.pass(Reason::Stream, true),
            (None, BodyLength::Known(length)) => {
                OnResponse::Admit(Admit { forward: self, names: Vec::new(), length })
            }
        }
    }

    fn on_evicting(self, response: &response::Parts) -> OnResponse {
        let success = is_success(response.status);
        let evicts = success || leaves_outcome_unknown(response.status);
        self.pass(if success { self.reason } else { Reason::Failed }, evicts)
    }
}

/// A response that is passed on as it is.
#[derive(Debug)]
#[must_use]
pub struct Pass {
    pub(super) cache_status: CacheStatus,
    pub(super) evicts: bool,
    pub(super) not_modified: bool,
    pub(super) part: Option<Part>,
}

impl Pass {
    /// Returns `true` if the entry under the key, or the group, must be evicted first.
    #[must_use]
    pub const fn evicts(&self) -> bool {
        self.evicts
    }

    /// Returns `true` if the client already has this response: answer with [`as_not_modified`](Self::as_not_modified)
    /// and without the body.
    #[must_use]
    pub const fn is_not_modified(&self) -> bool {
        self.not_modified
    }

    /// Makes a 304 of the response. Removes only the fields that describe the body (RFC 9110 §15.4.5): the others, such
    /// as a cookie, are for this client and stored nowhere else.
    pub fn as_not_modified(&self, response: &mut response::Parts) {
        response.status = StatusCode::NOT_MODIFIED;
        for name in OF_THE_BODY {
            response.headers.remove(name);
        }
        if response.headers.contains_key(ETAG) {
            response.headers.remove(LAST_MODIFIED);
        }
    }

    /// Makes a 206 of the response if the client asked for `bytes=0-`, which the handler didn't see. The body stays as
    /// it is, because that part is the whole (RFC 9110 §15.3.7).
    pub fn as_part(&self, response: &mut response::Parts) {
        if let Some(part) = self.part.filter(|_| !self.not_modified) {
            response.status = StatusCode::PARTIAL_CONTENT;
            response.headers.insert(CONTENT_RANGE, part.content_range());
        }
    }

    /// Returns the cache's status for the response.
    pub const fn cache_status(&self) -> &CacheStatus {
        &self.cache_status
    }
}

/// The fields that a 304 leaves out.
const OF_THE_BODY: [HeaderName; 7] = [
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    TRAILER,
    TRANSFER_ENCODING,
];

/// A response whose body is to be collected and stored.
#[derive(Debug)]
#[must_use]
pub struct Admit {
    pub(super) forward: Forward,
    pub(super) names: Vec<HeaderName>,
    pub(super) length: u64,
}

impl Admit {
    /// Returns the length that the body reports, in bytes. A body of another length is [broken](Self::on_broken_body).
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Decides after the body could not be collected whole: pass on the part received. After a write, evict too.
    pub fn on_broken_body(self) -> Pass {
        let rule = &self.forward.rule;
        Pass {
            cache_status: CacheStatus::refusal(rule, Reason::Body),
            evicts: rule.kind == Kind::Write,
            not_modified: false,
            part: None,
        }
    }

    /// Makes the entry. `now` is the time at which the handler answered.
    pub fn on_body(self, mut parts: response::Parts, body: Bytes, now: SystemTime) -> Admitted {
        let Self { forward, names, .. } = self;
        let rule = forward.rule;
        let known = forward.variants.as_ref().map_or(&[][..], |variants| &variants.names);
        add_vary(&mut parts.headers, names.iter().chain(known));
        rule.add_vary(&mut parts.headers);
        let etag = parts.headers.entry(ETAG).or_insert_with(|| weak_etag(&body)).clone();
        let status = match rule.kind {
            // A GET would answer with this representation and a 200, whatever the status of the write.
            Kind::Write => StatusCode::OK,
            _ => parts.status,
        };
        let ttl = rule.lifetime_of(parts.status).map(|ttl| jittered(ttl, rule.jitter, &etag, now));
        let may_be_cut = status == StatusCode::OK && !body.is_empty();
        let headers = match rule.kind {
            Kind::Write => {
                let mut fields = representation_fields(&parts.headers, &rule);
                rule.add_vary(&mut fields);
                if may_be_cut {
                    add_accept_ranges(&mut fields);
                }
                fields
            }
            _ => {
                if may_be_cut {
                    add_accept_ranges(&mut parts.headers);
                }
                storable_fields(&parts.headers, &rule)
            }
        };
        let ResponseDirectives { must_revalidate, proxy_revalidate, .. } =
            ResponseDirectives::of(&parts.headers);
        let provenance = forward.provenance;
        let request = forward.request.unwrap_or_default();
        let entry = Entry {
            status,
            headers,
            body,
            stored_at: now,
            ttl,
            variant: 0,
            must_revalidate,
            proxy_revalidate,
            provenance,
            for_origin: forward.is_cross_origin,
            tells_credentials: matches!(rule.audience, Audience::Undeclared),
            is_response: false,
            templated: None,
        };
        let validators =
            if forward.is_conditional { Validators::of(&request) } else { Validators::default() };
        Admitted {
            rule,
            reason: forward.reason,
            entry,
            parts,
            names,
            known: forward.variants,
            request,
            is_range: forward.is_range,
            validators,
        }
    }
}
