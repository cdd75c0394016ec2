//! A response that may be stored: its entry, its placement, and the response to the client.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, AGE, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE,
    ETAG, EXPIRES, HeaderName, LAST_MODIFIED,
};
use http::{HeaderMap, Response, response};

use crate::headers::conditional::Validators;
use crate::headers::hop_by_hop::{end_to_end, remove_if};
use crate::headers::momentary::is_momentary;
use crate::headers::range::Selection;
use crate::policy::cache_status::{CacheStatus, WrittenThrough};
use crate::policy::hit::{Revalidation, cache_control, make_not_modified, no_cache, select, selection};
use crate::policy::rule::{Kind, Rule};
use crate::reason::Reason;
use crate::record::variants::Placement;
use crate::record::variants::Variants;
use crate::record::{Entry, Record};

/// A response with the entry made from it.
#[derive(Debug)]
#[must_use]
pub struct Admitted {
    pub(super) rule: Arc<Rule>,
    pub(super) reason: Reason,
    pub(super) entry: Entry,
    pub(super) parts: response::Parts,
    /// The fields by which the response varies, and the record of variants known before.
    pub(super) names: Vec<HeaderName>,
    pub(super) known: Option<Variants>,
    pub(super) request: HeaderMap,
    pub(super) is_range: bool,
    pub(super) validators: Validators,
}

impl Admitted {
    /// Returns how long the store keeps the entry: the freshness lifetime, and the time after it in which a stale response may
    /// be used. `None` means no expiry.
    #[must_use]
    pub fn retention(&self) -> Option<Duration> {
        self.rule.retention_of(&self.entry)
    }

    /// Returns the placement of the entry. `fresh_id` becomes the id of a new [`Variants`] record, if one is needed.
    pub fn place(&mut self, fresh_id: u64) -> Placement {
        let key = |variants: &Variants| self.rule.secondary_key(variants, &self.request);
        let (placement, variant) = Placement::of(self.known.as_ref(), &self.names, fresh_id, key);
        self.entry.variant = variant;
        // The record leads to its variants only the requests that they may answer.
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

    /// Returns how long the store keeps the record of variants: at least as long as any variant. `None` means no
    /// expiry.
    #[must_use]
    pub fn variants_retention(&self) -> Option<Duration> {
        self.rule.longest_retention()
    }

    /// Returns `true` if a write's response may replace the stored record. A write that isn't spelled canonically never
    /// replaces another pattern's response, and one response can't replace all variants: then evict instead.
    #[must_use]
    pub fn may_replace(&self, stored: &Record) -> bool {
        let provenance = self.entry.provenance;
        match stored {
            Record::Variants(_) => false,
            Record::Response(entry) => provenance.is_canonical || entry.provenance.serves(provenance),
        }
    }

    /// Returns the record for the store.
    #[must_use]
    pub fn record(&self) -> Bytes {
        self.entry.encode()
    }

    /// Returns the reason for which the handler ran, or for which its response isn't stored.
    #[must_use]
    pub const fn reason(&self, outcome: CommitResult) -> Reason {
        match (outcome, self.reason) {
            (CommitResult::Revoked, Reason::Busy | Reason::Waited | Reason::Spelling)
            | (CommitResult::Stored | CommitResult::Failed, _) => self.reason,
            (CommitResult::Revoked, _) => Reason::Evicted,
        }
    }

    /// Returns the response for the client. If the entry was evicted meanwhile, the response may be outdated, so its
    /// `Cache-Control` says `no-cache`. A failure of the store changes nothing for the client.
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
        let mut cache_status = CacheStatus::miss(&rule, reason);
        cache_status.stored = outcome == CommitResult::Stored;
        cache_status.write_to(&mut parts.headers);
        if rule.kind == Kind::Write {
            parts.extensions.insert(WrittenThrough);
        }
        let not_modified =
            parts.status.is_success() && validators.match_response(&parts.headers, entry.stored_at);
        let length = entry.body.len() as u64;
        let selection =
            if is_range && !not_modified { selection(&request, &entry, length) } else { Selection::Whole };
        if selection != Selection::Whole {
            // The handler's `Content-Length` is that of the whole body.
            parts.headers.remove(CONTENT_LENGTH);
        }
        let mut response = Response::from_parts(parts, entry.body);
        if not_modified {
            make_not_modified(&mut response, &rule);
        } else {
            select(&mut response, selection, length, &rule);
        }
        response
    }
}

/// The result of storing an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitResult {
    /// The entry is stored.
    Stored,
    /// The entry was evicted or overwritten while the handler ran.
    Revoked,
    /// The store failed, or wasn't asked.
    Failed,
}

/// Returns the fields of a write's response that describe the representation, and those that name its tags. `Location` and the
/// like concern only the client that wrote.
pub(super) fn representation_fields(response: &HeaderMap, rule: &Rule) -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(8);
    let names = [ACCEPT_RANGES, CONTENT_TYPE, CONTENT_ENCODING, CONTENT_LANGUAGE, ETAG, LAST_MODIFIED];
    for name in names.into_iter().chain(rule.tags.emitted.iter().map(|field| field.name())) {
        for value in response.get_all(&name) {
            fields.append(name.clone(), value.clone());
        }
    }
    fields
}

/// Returns all fields but those of one connection, of one moment, or of this cache itself (RFC 9111 §3.1).
pub(super) fn storable_fields(response: &HeaderMap, rule: &Rule) -> HeaderMap {
    let mut fields = end_to_end(response);
    remove_if(&mut fields, |name| match name.as_str() {
        // Downstream caches would age a stored `Date` twice; servers write a new one.
        "content-length" | "date" | "age" | "expires" | "cache-control" | "set-cookie" | "cache-status" => {
            true
        }
        other => {
            is_momentary(other)
                || rule.status_header.as_ref() == Some(name)
                || rule.unstored_fields.contains(name)
        }
    });
    fields
}
