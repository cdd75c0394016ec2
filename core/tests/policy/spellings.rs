//! Entries that answer requests of their own pattern, in any spelling.

use http::{Method, Uri};
use larder_core::policy::{Decision, OnEntry, OnRequest};
use larder_core::{Intent, Kind, Provenance, Reason, RequestView};

use super::engine::{entry, now, request, rule, with};
use super::{Reasons, answered, policy, stored};

/// The entries that may answer a spelling under a pattern.
pub(super) fn spellings() -> Reasons {
    const UNKNOWN: Option<&str> = None;
    const SLUG: Option<&str> = Some("/things/{slug}");
    const SEVEN: Option<&str> = Some("/things/7");
    const REST: Option<&str> = Some("/things/{*rest}");

    let mut seen = Reasons::new();
    let parts = request(Method::GET, &[]);
    let (canonical, spelled) = (Uri::from_static("/things/7"), Uri::from_static("/things/%37"));
    let view = |uri, pattern| RequestView::from(&parts).with_uri(uri).with_pattern(pattern);
    let policy = policy(rule(Kind::Read));
    let decide = |view: &RequestView<'_>, provenance| match policy.on_request(view) {
        OnRequest::Bypass(mark) => Err(mark.reason().unwrap()),
        OnRequest::Lookup(lookup) => {
            let found = stored(with(entry(&[]), |entry| entry.provenance = provenance));
            match lookup.on_entry(found, view, now()) {
                OnEntry::Decided(Decision::Hit(_)) => Ok(None),
                OnEntry::Decided(Decision::Miss(forward)) => {
                    assert_eq!(forward.intent(), Some(Intent::Refresh), "it replaces what is there");
                    Ok(Some(forward.reason()))
                }
                OnEntry::Decided(Decision::Bypass(mark)) => Err(mark.reason().unwrap()),
                other => panic!("{other:?}"),
            }
        }
        OnRequest::Forward(forward) => panic!("{forward:?}"),
    };
    for (stored_by, (uri, pattern), expected) in [
        ((&canonical, UNKNOWN), (&canonical, UNKNOWN), Ok(None)),
        ((&canonical, UNKNOWN), (&spelled, UNKNOWN), Err(Reason::Spelling)),
        ((&canonical, REST), (&spelled, REST), Err(Reason::Spelling)),
        ((&canonical, REST), (&canonical, REST), Ok(None)),
        ((&canonical, SLUG), (&spelled, SLUG), Ok(None)),
        ((&spelled, SLUG), (&canonical, SLUG), Ok(None)),
        ((&spelled, SLUG), (&canonical, SEVEN), Ok(Some(Reason::Pattern))),
        ((&canonical, SEVEN), (&spelled, SLUG), Err(Reason::Pattern)),
        ((&canonical, SEVEN), (&canonical, SLUG), Ok(Some(Reason::Pattern))),
        ((&canonical, UNKNOWN), (&canonical, SLUG), Ok(Some(Reason::Pattern))),
    ] {
        let provenance = Provenance::of(&view(stored_by.0, stored_by.1), false);
        let decided = decide(&view(uri, pattern), provenance);
        assert_eq!(decided, expected, "{stored_by:?} {uri} {pattern:?}");
        seen.extend(decided.unwrap_or_else(Some));
    }

    // A request rewritten under an unknown prefix is neither read nor stored.
    let mut obscured = view(&canonical, SLUG);
    obscured.is_obscured = true;
    assert_eq!(decide(&obscured, Provenance::default()), Err(Reason::Rewritten));
    seen.insert(Reason::Rewritten);
    for (view, reason) in [(obscured, Reason::Rewritten), (view(&spelled, UNKNOWN), Reason::Spelling)] {
        let OnRequest::Forward(forward) = self::policy(rule(Kind::Write)).on_request(&view) else { panic!() };
        assert_eq!(forward.intent(), None, "the store isn't asked");
        let Err((pass, _)) = answered(forward, 200, &[], "new") else { panic!("it is stored") };
        assert_eq!((pass.cache_status().reason(), pass.evicts()), (Some(reason), true));
    }
    seen
}

#[test]
fn entries_answer_only_their_own_pattern() {
    spellings();
}
