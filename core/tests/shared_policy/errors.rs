//! Stale responses in place of errors (§4.2.4, RFC 5861).

use larder_core::Reason;
use larder_core::policy::BodyLength;
use larder_core::shared::policy::{OriginFailed, SharedDecision, SharedOnResponse};

use super::engine::{Fields, now, response};
use super::{answer, ask, get, policy, seconds, stored};

#[test]
fn stale_response_is_served_when_the_origin_fails_within_its_time() {
    let rows: &[(&str, &str, u64, u16, bool)] = &[
        ("§4.2.4 a stale response for a 503", "max-age=60", 61, 503, true),
        ("§4.3.3 these errors only", "max-age=60", 61, 500, true),
        ("§4.3.3 these errors only", "max-age=60", 61, 501, false),
        ("§4.3.3 these errors only", "max-age=60", 61, 404, false),
        ("§4.2.4 within the rule's hour", "max-age=60", 3659, 503, true),
        ("§4.2.4 after the rule's hour", "max-age=60", 3660, 503, false),
        ("RFC 5861 §4 within a shorter stale-if-error", "max-age=60, stale-if-error=10", 69, 503, true),
        ("RFC 5861 §4 after a shorter stale-if-error", "max-age=60, stale-if-error=10", 70, 503, false),
        (
            "RFC 5861 §4 within a longer stale-if-error",
            "max-age=60, stale-if-error=100000",
            90_000,
            503,
            true,
        ),
        ("§5.2.2.2 must-revalidate", "max-age=60, must-revalidate", 61, 503, false),
        ("§5.2.2.8 proxy-revalidate", "max-age=60, proxy-revalidate", 61, 503, false),
        ("§5.2.2.10 s-maxage", "s-maxage=60, stale-if-error=100", 61, 503, false),
        ("§5.2.2.4 no-cache", "max-age=60, no-cache", 61, 503, false),
    ];
    for (what, control, after, status, expected) in rows {
        let fields: Fields<'_> = &[("cache-control", control), ("etag", "\"a\"")];
        let later = now() + seconds(*after);
        let found = answer(&policy(), &get(&[]), stored(fields), (*status, &[]), later);
        assert_eq!(
            matches!(found, SharedOnResponse::ServeStale(_)),
            *expected,
            "{what}: {control} after {after} s, {status}"
        );
        let SharedDecision::Forward(forward) = ask(&policy(), &get(&[]), stored(fields), later) else {
            panic!()
        };
        if *status == 503 {
            // Also after another reason was set.
            let forward = forward.because(Reason::Busy);
            assert_eq!(forward.on_error(later).is_ok(), *expected, "{what}: no answer");
        }
    }
}

#[test]
fn response_marked_as_origin_failed_counts_as_a_failure() {
    let mut made_up = response(502, &[("cache-control", "max-age=60")]);
    made_up.extensions.insert(OriginFailed);
    let forward = |stored| match ask(&policy(), &get(&[]), stored, now() + seconds(61)) {
        SharedDecision::Forward(forward) => forward,
        other => panic!("{other:?}"),
    };
    let at = now() + seconds(61);
    let found = forward(stored(&[("cache-control", "max-age=60")])).on_response(
        &made_up,
        BodyLength::Known(0),
        at,
        at,
    );
    let SharedOnResponse::ServeStale(answer) = found else { panic!("{found:?}") };
    assert_eq!(answer.into_response().headers()["cache-status"], "Larder; fwd=stale; detail=expired");
    let found = forward(None).on_response(&made_up, BodyLength::Known(0), at, at);
    assert!(matches!(found, SharedOnResponse::Pass(_)), "never stored: {found:?}");
}
