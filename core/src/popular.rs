//! Answers to what many ask for are made once a second, not once a request.
//!
//! To read a stored response and to make an answer of it takes about as long as all the rest of a hit. But for a second that
//! answer stays the same, down to its `max-age`, and where hundreds ask for one thing in that second, all but the first few
//! are given a copy of its fields.
//!
//! Nothing here is a second cache: the store is asked for every request, and what is ready belongs to just those bytes that
//! it returned. They are compared, but for the body, which goes from the store to the client as ever and is not held here.

use std::sync::{Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Response;

use crate::entry::{self, body_at};
use crate::policy::{Lookup, Ready};
use crate::request::RequestView;

/// How many answers a route has ready at most.
const SLOTS: usize = 256;

/// How often something is asked for in a second before its answer is kept: what making it ready costs has to come in again.
const OFTEN: u32 = 4;

/// What comes before the body, in bytes, is kept up to this length.
const LONGEST_HEAD: usize = 4096;

/// The answers that a route has ready.
#[derive(Debug, Default)]
pub(crate) struct Popular {
    slots: OnceLock<Box<[Mutex<Slot>]>>,
}

/// A place for one answer. What is ready stays to the end of its second.
#[derive(Debug)]
struct Slot {
    print: u64,
    /// Until when it is counted, or the answer is valid.
    until: SystemTime,
    asked: u32,
    kept: Option<Box<Kept>>,
}

/// What came before the body, which tells how long that is, and the answers.
#[derive(Debug)]
struct Kept {
    head: Bytes,
    ready: Ready,
}

impl Popular {
    /// Answers with what is ready for this record, and makes it ready if it is worth it. `variant` is the id of the record
    /// that led here, or 0. `None` if the answer has to be made.
    pub(crate) fn answer(
        &self,
        (lookup, variant): (&Lookup, u64),
        record: &Bytes,
        request: &RequestView<'_>,
        now: SystemTime,
    ) -> Option<Response<Bytes>> {
        if !lookup.is_plain() {
            return None;
        }
        let body_at = body_at(record).filter(|at| *at <= LONGEST_HEAD)?;
        let head = &record[..body_at];
        let print = print(head);
        // Nobody waits here: who finds the slot taken makes the answer.
        let mut slot = self.slot(print)?.try_lock().ok()?;
        if now >= slot.until || (slot.print != print && slot.kept.is_none()) {
            *slot = Slot { print, until: now.checked_add(Duration::from_secs(1))?, asked: 0, kept: None };
        }
        if slot.kept.is_none() {
            slot.asked = slot.asked.saturating_add(1);
            if slot.asked != OFTEN {
                return None;
            }
            let kept = Kept::of(lookup, head, now)?;
            slot.until = kept.ready.end();
            slot.kept = Some(Box::new(kept));
        }
        let kept = slot.kept.as_ref().filter(|kept| kept.head == head)?;
        lookup.on_ready(&kept.ready, variant, record.slice(body_at..), request, now)
    }

    fn slot(&self, print: u64) -> Option<&Mutex<Slot>> {
        let empty = || Mutex::new(Slot { print: 0, until: SystemTime::UNIX_EPOCH, asked: 0, kept: None });
        let slots = self.slots.get_or_init(|| (0..SLOTS).map(|_| empty()).collect());
        slots.get(usize::try_from(print).ok()? % SLOTS)
    }
}

impl Kept {
    fn of(lookup: &Lookup, head: &[u8], now: SystemTime) -> Option<Self> {
        // A copy, so that the fields don't keep the body alive.
        let head = Bytes::copy_from_slice(head);
        let entry = entry::read_response(&head, head.len(), Bytes::new())?;
        Some(Self { ready: Ready::of(lookup, &entry, now)?, head })
    }
}

/// Tells records apart well enough to share out the slots: when it was stored, its lengths, and the end of its head, where
/// mostly the entity tag is.
fn print(head: &[u8]) -> u64 {
    let word =
        |at: usize| head.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_ne_bytes);
    let mixed = word(5) ^ word(33).rotate_left(24) ^ word(head.len().saturating_sub(8)).rotate_left(48);
    let mixed = mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ (mixed >> 32)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::header::{
        CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, RANGE,
    };
    use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
    use proptest::prelude::*;

    use super::*;
    use crate::entry::{Entry, Record, from_millis};
    use crate::key::KeySpace;
    use crate::policy::{CachePolicy, Decision, OnEntry, OnRequest};
    use crate::rule::{Audience, Kind, Rule};

    const STORED: u64 = 1_000_000;
    const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn policy() -> CachePolicy {
        CachePolicy::new(Arc::new(Rule::new(Kind::Read, KeySpace::new("test", None).unwrap())))
    }

    fn entry(body: &'static str) -> Entry {
        Entry {
            status: StatusCode::OK,
            headers: [(ETAG, HeaderValue::from_static("\"a\""))].into_iter().collect(),
            body: Bytes::from_static(body.as_bytes()),
            stored_at: at(0),
            ttl: Some(Duration::from_secs(60)),
            variant: 0,
            must_revalidate: false,
        }
    }

    /// So many milliseconds after the entry was stored.
    fn at(millis: u64) -> SystemTime {
        from_millis(STORED + millis).unwrap()
    }

    fn get() -> Request<()> {
        Request::get("/").body(()).unwrap()
    }

    fn looked_up<'a>(policy: &CachePolicy, request: &'a Request<()>) -> (RequestView<'a>, Lookup) {
        let view = RequestView::from(request);
        let OnRequest::Lookup(lookup) = policy.on_request(&view) else { panic!("no look-up") };
        (view, lookup)
    }

    fn ask(
        (popular, policy): (&Popular, &CachePolicy),
        record: &Bytes,
        request: &Request<()>,
        now: SystemTime,
    ) -> Option<Response<Bytes>> {
        let (view, lookup) = looked_up(policy, request);
        popular.answer((&lookup, 0), record, &view, now)
    }

    /// What is answered when nothing is ready, if that is a hit.
    fn made(
        policy: &CachePolicy,
        record: &Bytes,
        request: &Request<()>,
        now: SystemTime,
    ) -> Option<Response<Bytes>> {
        let (view, lookup) = looked_up(policy, request);
        match lookup.on_entry(Ok(Record::decode(record)), &view, now) {
            OnEntry::Decided(Decision::Hit(hit) | Decision::NotModified(hit)) => Some(hit.into_response()),
            _ => None,
        }
    }

    #[test]
    fn who_asks_often_is_answered_for_the_rest_of_the_second() {
        let (cache, record) = ((&Popular::default(), &policy()), entry("tea").encode());
        for _ in 1..OFTEN {
            assert!(ask(cache, &record, &get(), at(10)).is_none());
        }
        let max_age = |millis| {
            let answer = ask(cache, &record, &get(), at(millis))?;
            assert_eq!(answer.body(), "tea");
            Some(answer.headers()[CACHE_CONTROL].clone())
        };
        assert_eq!(max_age(10).unwrap(), "max-age=60");
        assert_eq!(max_age(999).unwrap(), "max-age=60");
        assert_eq!(max_age(9), None, "a clock that went back");
        for _ in 1..OFTEN {
            assert_eq!(max_age(1_000), None);
        }
        assert_eq!(max_age(1_000).unwrap(), "max-age=59");
    }

    #[test]
    fn another_record_is_another_answer() {
        let (cache, first) = ((&Popular::default(), &policy()), entry("tea").encode());
        for _ in 0..OFTEN {
            ask(cache, &first, &get(), at(10));
        }
        assert!(ask(cache, &first, &get(), at(10)).is_some());
        let other = entry("mug").encode();
        assert_eq!(ask(cache, &other, &get(), at(10)).unwrap().body(), "mug", "the same but for its body");
        let later = Entry { stored_at: at(5), ..entry("tea") }.encode();
        assert!(ask(cache, &later, &get(), at(10)).is_none());
        let variant = Entry { variant: 7, ..entry("tea") }.encode();
        for _ in 0..=OFTEN {
            assert!(ask(cache, &variant, &get(), at(10)).is_none(), "nobody asked for that variant");
        }
    }

    #[test]
    fn what_is_kept_does_not_keep_bodies() {
        let (popular, policy, record) = (Popular::default(), policy(), entry("tea").encode());
        for _ in 0..=OFTEN {
            ask((&popular, &policy), &record, &get(), at(10));
        }
        assert!(ask((&popular, &policy), &record, &get(), at(10)).is_some());
        assert!(record.is_unique());
    }

    fn request() -> impl Strategy<Value = Request<()>> {
        let fields = prop_oneof![
            6 => Just(None),
            2 => Just(Some((IF_NONE_MATCH, "\"a\""))),
            1 => Just(Some((IF_NONE_MATCH, "\"b\""))),
            1 => Just(Some((IF_MODIFIED_SINCE, MODIFIED))),
            1 => Just(Some((CACHE_CONTROL, "no-cache"))),
            1 => Just(Some((CACHE_CONTROL, "max-stale=5"))),
            1 => Just(Some((CACHE_CONTROL, "min-fresh=2"))),
            1 => Just(Some((RANGE, "bytes=0-1"))),
        ];
        (fields, proptest::bool::weighted(0.1)).prop_map(|(field, is_head)| {
            let mut request = get();
            if is_head {
                *request.method_mut() = Method::HEAD;
            }
            request.headers_mut().extend(field.map(|(name, value)| (name, HeaderValue::from_static(value))));
            request
        })
    }

    fn stored() -> impl Strategy<Value = Entry> {
        let name = HeaderName::from_static("x-other");
        let fields = prop_oneof![
            Just(vec![(ETAG, "\"a\"")]),
            Just(vec![(CONTENT_TYPE, "text/plain"), (ETAG, "\"a\""), (name, "1"), (LAST_MODIFIED, MODIFIED)]),
            Just(vec![(LAST_MODIFIED, MODIFIED)]),
        ];
        let ttl = proptest::option::of(prop_oneof![Just(1_500u64), Just(3_000), Just(60_000)]);
        (fields, ttl, prop_oneof![Just(200u16), Just(204), Just(404)], any::<bool>()).prop_map(
            |(fields, ttl, status, must_revalidate)| Entry {
                status: StatusCode::from_u16(status).unwrap(),
                headers: fields.into_iter().map(|(n, v)| (n, HeaderValue::from_static(v))).collect(),
                ttl: ttl.map(Duration::from_millis),
                must_revalidate,
                ..entry("the body")
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_ready_is_what_would_be_made(
            entries in proptest::collection::vec(stored(), 1..3),
            steps in proptest::collection::vec((any::<prop::sample::Index>(), request(), 0u64..300), 1..60),
            (is_private, cache_status, is_shown) in any::<(bool, bool, bool)>(),
            downstream in proptest::option::of(0u64..5),
            stale in proptest::option::of(1u64..5),
        ) {
            let mut rule = Rule::new(Kind::Read, KeySpace::new("test", None).unwrap());
            if is_private {
                rule.audience = Audience::Private(Arc::new(|_| Some("me".to_owned())));
            }
            rule.cache_status = cache_status;
            rule.status_header = rule.status_header.filter(|_| is_shown);
            rule.downstream_ttl = downstream.map(Duration::from_secs);
            rule.stale_if_error = stale.map(Duration::from_secs);
            let (popular, policy) = (Popular::default(), CachePolicy::new(Arc::new(rule)));
            let records: Vec<_> = entries.iter().map(Entry::encode).collect();
            let mut millis = 0;
            for (which, request, pause) in steps {
                millis += pause;
                let record = &records[which.index(records.len())];
                if let Some(ready) = ask((&popular, &policy), record, &request, at(millis)) {
                    let made = made(&policy, record, &request, at(millis)).expect("a hit");
                    prop_assert_eq!(ready.status(), made.status());
                    prop_assert_eq!(ready.headers(), made.headers());
                    prop_assert_eq!(ready.body(), made.body());
                    prop_assert!(ready.headers().capacity() > ready.headers().len(), "no room for the length");
                }
            }
        }
    }

    #[test]
    fn a_head_that_is_too_long_is_not_kept() {
        let mut headers = HeaderMap::new();
        headers.insert(ETAG, HeaderValue::try_from(format!("\"{}\"", "a".repeat(LONGEST_HEAD))).unwrap());
        let (cache, record) = ((&Popular::default(), &policy()), Entry { headers, ..entry("tea") }.encode());
        for _ in 0..=OFTEN {
            assert!(ask(cache, &record, &get(), at(10)).is_none());
        }
    }
}
