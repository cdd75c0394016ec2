//! Requests that wait for a fill and use its response.

use std::time::Duration;

use http::{Method, StatusCode};
use larder_core::{Intent, Kind, Reason, Record, Variants};

use super::engine::{TTL, entry, now, request, rule, with};
use super::variants::{first_variant, select, speaking};
use super::{ask, forward, miss, stored};

/// A request that waited for a fill gets its entry only if it would have got it from the store.
#[test]
fn followers_get_only_entries_that_they_may_use() {
    let filled = || Some(Record::Response(entry(&[("etag", "\"e\"")])));
    let at = now() + Duration::from_secs(5);
    for (fields, record, expected) in [
        (&[][..], filled(), Some(StatusCode::OK)),
        (&[("if-none-match", "\"e\"")], filled(), Some(StatusCode::NOT_MODIFIED)),
        (&[("cache-control", "max-age=5")], filled(), Some(StatusCode::OK)),
        (&[("cache-control", "max-age=4")], filled(), None),
        (&[("cache-control", "no-cache")], filled(), None),
        (&[], Some(Record::Response(with(entry(&[]), |entry| entry.variant = 1))), None),
        (&[], Some(Record::Variants(Variants::new(1, Vec::new()))), None),
        (&[], None, None),
    ] {
        let waiting = forward(rule(Kind::Read), &request(Method::GET, fields));
        let answer = waiting.on_filled(record, at).map(|hit| hit.into_response().status());
        assert_eq!(answer.as_ref().ok().copied(), expected, "{fields:?}");
        if let Err(waiting) = answer {
            assert_eq!(waiting.reason(), Reason::Absent, "the request comes back as it was");
        }
    }
    let write = forward(rule(Kind::Write), &request(Method::PUT, &[]));
    assert!(write.on_filled(filled(), at).is_err(), "a write is never answered from the cache");
}

/// The misses that one run of the handler may serve.
#[test]
fn only_compatible_misses_share_a_run() {
    let fresh = || stored(entry(&[]));
    let expired = || stored(with(entry(&[]), |entry| entry.stored_at = now() - TTL));
    for (method, fields, found, expected) in [
        (Method::GET, &[][..], Ok(None), true),
        (Method::GET, &[], expired(), true),
        (Method::GET, &[], Err(Reason::Unreadable), true),
        (Method::GET, &[], Err(Reason::Down), false),
        (Method::HEAD, &[], Ok(None), false),
        (Method::GET, &[("cache-control", "no-cache")], fresh(), false),
        (Method::GET, &[("cache-control", "min-fresh=90")], fresh(), false),
        (Method::GET, &[("cache-control", "no-cache")], Ok(None), false),
        (Method::GET, &[("cache-control", "max-age=0")], Ok(None), false),
        (Method::GET, &[("cache-control", "max-age=1")], Ok(None), true),
    ] {
        let forward = miss(ask(rule(Kind::Read), &request(method, fields), found, now()));
        assert_eq!(forward.is_shared(), expected, "{fields:?} {:?}", forward.reason());
    }
}

/// A request that wants a newer response doesn't wait for a fill that started earlier, with or without a stored entry: the
/// response would be refused after the wait.
#[test]
fn requests_for_a_new_response_do_not_wait_for_an_older_fill() {
    let (variants, ..) = first_variant(&speaking("fr"));
    for (directive, expected) in [
        ("no-cache", Intent::Refresh),
        ("max-age=0", Intent::Refresh),
        ("max-age=1", Intent::Fill),
        ("min-fresh=1", Intent::Fill),
    ] {
        let get = request(Method::GET, &[("cache-control", directive)]);
        assert_eq!(forward(rule(Kind::Read), &get).intent(), Some(expected), "{directive}");
        let variant = miss(select(&get, &variants).on_entry(Ok(None), &(&get).into(), now()));
        assert_eq!(variant.intent(), Some(expected), "{directive}");
    }
}
