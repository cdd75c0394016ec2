//! A response that may be stored: the entry made of it, where it belongs, and what the client gets.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, AGE, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE,
    DATE, ETAG, EXPIRES, HeaderName, LAST_MODIFIED, SET_COOKIE,
};
use http::{HeaderMap, HeaderValue, Response, response};

use crate::headers::conditional::Validators;
use crate::headers::hop_by_hop::{end_to_end, remove_all};
use crate::headers::range::Selection;
use crate::headers::vary::Placement;
use crate::headers::vary::Variants;
use crate::policy::cache_status::{CACHE_STATUS, Mark, WrittenThrough};
use crate::policy::hit::{
    Revalidation, cache_control, into_not_modified, into_selected, no_cache, selection,
};
use crate::policy::rule::{Kind, Rule};
use crate::reason::Reason;
use crate::record::{Entry, Record};

/// A response with the entry made of it.
#[derive(Debug)]
#[must_use]
pub struct Admitted {
    pub(super) rule: Arc<Rule>,
    pub(super) reason: Reason,
    pub(super) entry: Entry,
    pub(super) parts: response::Parts,
    /// By what the response varies, and what was known about that before.
    pub(super) names: Vec<HeaderName>,
    pub(super) known: Option<Variants>,
    pub(super) request: HeaderMap,
    pub(super) is_range: bool,
    pub(super) validators: Validators,
}

impl Admitted {
    /// How long the store shall keep it: its freshness lifetime, and for as long after that as it may still be of use.
    /// `None` means without end.
    #[must_use]
    pub fn retention(&self) -> Option<Duration> {
        let stale_for = if self.entry.forbids_stale() { Duration::ZERO } else { self.rule.stale_for() };
        self.entry.ttl.map(|ttl| ttl.saturating_add(stale_for))
    }

    /// Where the entry belongs. `fresh_id` becomes the id of a new [`Variants`] record, if there must be one.
    pub fn place(&mut self, fresh_id: u64) -> Placement {
        let key = |variants: &Variants| variants.secondary_key(&self.request);
        let (placement, variant) = Placement::of(self.known.as_ref(), &self.names, fresh_id, key);
        self.entry.variant = variant;
        // The record leads only the requests to its variants that they may answer.
        let provenance = self.entry.provenance;
        match placement {
            Placement::FirstVariant(secondary, variants) => {
                Placement::FirstVariant(secondary, variants.by(provenance))
            }
            Placement::Widened(secondary, variants, instead_of) => {
                Placement::Widened(secondary, variants.by(provenance), instead_of)
            }
            placement => placement,
        }
    }

    /// How long the store shall keep the record that leads to the variants: at least as long as any of them.
    #[must_use]
    pub fn variants_retention(&self) -> Option<Duration> {
        self.rule.longest_retention()
    }

    /// Whether a write's answer may replace what is stored. One that isn't spelled canonically never replaces what another
    /// pattern stored, and one answer can't stand for all variants: then an eviction has to do.
    #[must_use]
    pub fn may_replace(&self, stored: &Record) -> bool {
        let provenance = self.entry.provenance;
        match stored {
            Record::Variants(_) => false,
            Record::Response(entry) => provenance.is_canonical || entry.provenance.serves(provenance),
        }
    }

    /// The record for the store.
    #[must_use]
    pub fn record(&self) -> Bytes {
        self.entry.encode()
    }

    /// Why the handler had to run, or why its answer isn't stored.
    #[must_use]
    pub const fn reason(&self, outcome: CommitResult) -> Reason {
        match (outcome, self.reason) {
            (CommitResult::Revoked, Reason::Busy | Reason::Waited | Reason::Spelling)
            | (CommitResult::Stored | CommitResult::Failed, _) => self.reason,
            (CommitResult::Revoked, _) => Reason::Evicted,
        }
    }

    /// The response for the client. What could not be stored because it was evicted meanwhile may be outdated already,
    /// so nobody is told to keep it; a store that failed changes nothing for the client.
    #[must_use]
    pub fn into_response(self, outcome: CommitResult) -> Response<Bytes> {
        let reason = self.reason(outcome);
        let Self { rule, entry, mut parts, request, is_range, validators, .. } = self;
        let control = match outcome {
            CommitResult::Revoked => no_cache(&rule),
            CommitResult::Stored | CommitResult::Failed => {
                cache_control(&rule, entry.ttl, !entry.forbids_stale(), Revalidation::of(&entry))
            }
        };
        parts.headers.insert(CACHE_CONTROL, control);
        parts.headers.remove(EXPIRES);
        parts.headers.remove(AGE);
        let mut mark = Mark::miss(&rule, reason);
        mark.stored = outcome == CommitResult::Stored;
        mark.stamp(&mut parts.headers);
        if rule.kind == Kind::Write {
            parts.extensions.insert(WrittenThrough);
        }
        let not_modified = parts.status.is_success() && validators.match_response(&parts.headers);
        let length = entry.body.len() as u64;
        let selection =
            if is_range && !not_modified { selection(&request, &entry, length) } else { Selection::Whole };
        if selection != Selection::Whole {
            // The handler's is that of the whole.
            parts.headers.remove(CONTENT_LENGTH);
        }
        let response = Response::from_parts(parts, entry.body);
        if not_modified {
            into_not_modified(response, &rule)
        } else {
            into_selected(response, selection, length, &rule)
        }
    }
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitResult {
    /// It is stored.
    Stored,
    /// It was evicted or overwritten while the handler ran.
    Revoked,
    /// The store failed, or wasn't asked.
    Failed,
}

/// Shortens a lifetime by a fraction between nothing and `jitter`, drawn from the entry itself.
pub(super) fn jittered(ttl: Duration, jitter: f64, etag: &HeaderValue, now: SystemTime) -> Duration {
    if jitter <= 0.0 {
        return ttl;
    }
    let nanos = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let mut hasher = blake3::Hasher::new();
    hasher.update(etag.as_bytes()).update(&nanos.to_be_bytes());
    let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
    let draw = f64::from(u32::from_be_bytes([a, b, c, d])) / f64::from(u32::MAX);
    ttl.mul_f64(1.0 - jitter.min(1.0) * draw).max(Duration::from_millis(1))
}

/// What of a write's answer describes the representation. Never `Location` and the like: the next reader didn't write.
pub(super) fn representation_fields(response: &HeaderMap) -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(8);
    for name in [ACCEPT_RANGES, CONTENT_TYPE, CONTENT_ENCODING, CONTENT_LANGUAGE, ETAG, LAST_MODIFIED] {
        for value in response.get_all(&name) {
            fields.append(name.clone(), value.clone());
        }
    }
    fields
}

/// Everything but what belongs to one connection, one moment or this cache itself (RFC 9111 §3.1).
pub(super) fn storable_fields(response: &HeaderMap, rule: &Rule) -> HeaderMap {
    /// A stored `Date` would be aged twice downstream; servers write a new one.
    const PASSING: [HeaderName; 7] =
        [CONTENT_LENGTH, DATE, AGE, EXPIRES, CACHE_CONTROL, SET_COOKIE, CACHE_STATUS];

    let mut fields = end_to_end(response);
    remove_all(&mut fields, &PASSING);
    if let Some(name) = &rule.status_header {
        fields.remove(name);
    }
    fields
}
