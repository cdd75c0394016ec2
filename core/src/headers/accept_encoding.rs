//! `Accept-Encoding` (RFC 9110 §12.5.3): the content codings that a client accepts, in one spelling.

use std::slice;

#[cfg(feature = "runtime")]
use http::HeaderName;
use http::header::ACCEPT_ENCODING;
use http::{HeaderMap, HeaderValue};

use crate::headers::cache_control::list;

/// The weight of a coding without a parameter `q`, in thousandths.
const FULL_WEIGHT: u16 = 1000;

/// Returns the content codings that a request accepts, in one spelling: those that are `known`, sorted, each with its rank
/// among the weights. Servers compare weights, so only their order matters. If the codings of responses are declared, the
/// field is [`reduced`] to them first.
///
/// A refused coding means the same as a missing one, unless `*` accepts the missing ones or the coding is `identity`. If
/// `identity` is accepted, `*;q=0` has no further meaning, and a client that accepts only `identity` accepts the same as one with
/// an empty list. Codings that aren't `known` are left out.
pub(crate) fn accepted_codings(
    request: &HeaderMap,
    declared: Option<&[String]>,
    known: impl Fn(&[u8]) -> bool,
) -> Vec<u8> {
    let reduced = declared.and_then(|declared| reduced(request, declared));
    let mut accepted = match &reduced {
        Some(field) => weighted_codings(slice::from_ref(field)),
        None => weighted_codings(request.get_all(ACCEPT_ENCODING)),
    };
    accepted.retain(|(coding, _)| coding == b"*" || coding == b"identity" || known(coding));
    if accepted.iter().any(|(coding, weight)| coding == b"identity" && *weight > 0) {
        accepted.retain(|(coding, weight)| coding != b"*" || *weight > 0);
    }
    let has_any = accepted.iter().any(|(coding, _)| coding == b"*");
    accepted.retain(|(coding, weight)| *weight > 0 || has_any || coding == b"identity");
    if accepted.iter().all(|(coding, weight)| coding == b"identity" && *weight > 0) {
        accepted.clear();
    }
    accepted.sort_unstable();
    accepted.dedup();
    let weights = distinct_weights(&accepted);
    let mut text = Vec::with_capacity(32);
    // A missing field differs from an empty one: without the field any coding is acceptable.
    text.push(if request.contains_key(ACCEPT_ENCODING) { b'+' } else { b'-' });
    for (coding, weight) in accepted {
        let rank = weights.iter().filter(|&&other| other <= weight).count();
        text.extend_from_slice(&coding);
        text.extend_from_slice(format!("={rank},").as_bytes());
    }
    text
}

/// Replaces `Accept-Encoding` by the [`reduced`] field, if the codings of responses are declared.
pub(crate) fn reduce(request: &mut HeaderMap, declared: Option<&[String]>) {
    if let Some(field) = declared.and_then(|declared| reduced(request, declared)) {
        request.insert(ACCEPT_ENCODING, field);
    }
}

/// Returns `Accept-Encoding` without the codings that a response can't have. A client that accepts none of `declared` asks for
/// `identity`. Fields that mean the same become the same text.
///
/// Returns `None` if the field stays as it is: it is missing, it is already reduced, or the client refuses `identity` and
/// accepts none of `declared`.
fn reduced(request: &HeaderMap, declared: &[String]) -> Option<HeaderValue> {
    let mut fields = request.get_all(ACCEPT_ENCODING).iter();
    let first = fields.next()?;
    let offered = weighted_codings(request.get_all(ACCEPT_ENCODING));
    let weight_of =
        |name: &[u8]| offered.iter().find(|(coding, _)| coding == name).map(|(_, weight)| *weight);
    let others = weight_of(b"*");
    let mut accepted: Vec<(Vec<u8>, u16)> = declared
        .iter()
        .map(|coding| canonical(coding.as_bytes()))
        .filter(|coding| coding != b"identity")
        .filter_map(|coding| {
            let weight = weight_of(&coding).or(others).filter(|&weight| weight > 0)?;
            Some((coding, weight))
        })
        .collect();
    accepted.sort_unstable();
    accepted.dedup();
    // By default `identity` is acceptable, after everything that the client names.
    let identity = weight_of(b"identity");
    let refuses_identity = identity.or(others) == Some(0);
    if refuses_identity && accepted.is_empty() {
        return None;
    }
    let is_last = |weight| accepted.iter().all(|(_, other)| *other > weight);
    if let Some(weight) = identity.filter(|&weight| weight > 0 && !is_last(weight)) {
        accepted.push((b"identity".to_vec(), weight));
        accepted.sort_unstable();
    }
    let weights = distinct_weights(&accepted);
    let mut text = Vec::with_capacity(32);
    for &weight in weights.iter().rev() {
        let rank = weights.iter().filter(|&&other| other <= weight).count();
        for (coding, _) in accepted.iter().filter(|(_, other)| *other == weight) {
            if !text.is_empty() {
                text.extend_from_slice(b", ");
            }
            text.extend_from_slice(coding);
            if rank < weights.len() {
                text.extend_from_slice(format!(";q=0.{:03}", 1000 * rank / weights.len()).as_bytes());
            }
        }
    }
    if text.is_empty() {
        text.extend_from_slice(b"identity");
    } else if refuses_identity {
        text.extend_from_slice(b", identity;q=0");
    }
    let is_reduced = *first == text[..] && fields.next().is_none();
    // A coding that is no token can't be sent.
    HeaderValue::from_bytes(&text).ok().filter(|_| !is_reduced)
}

/// Returns the error about a text that is no content coding, or `None` if it is one (RFC 9110 §8.4.1: a token).
#[cfg(feature = "runtime")]
pub(crate) fn coding_error(coding: &str) -> Option<String> {
    HeaderName::from_bytes(coding.as_bytes()).is_err().then(|| format!("{coding:?} is no content coding"))
}

/// Returns `true` for the registered content codings that a response to any client may have (RFC 9110 §16.6.1).
pub(crate) fn is_registered(coding: &[u8]) -> bool {
    const REGISTERED: [&[u8]; 8] = [b"br", b"compress", b"dcb", b"dcz", b"deflate", b"exi", b"gzip", b"zstd"];
    REGISTERED.contains(&coding)
}

/// Returns the members of the list with their weights, in thousandths.
fn weighted_codings<'v>(fields: impl IntoIterator<Item = &'v HeaderValue>) -> Vec<(Vec<u8>, u16)> {
    let members = fields.into_iter().map(HeaderValue::as_bytes).flat_map(list);
    let weighted = members.map(|member| {
        let mut parts = member.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
        let coding = canonical(parts.next().unwrap_or_default());
        (coding, parts.find_map(weight).unwrap_or(FULL_WEIGHT))
    });
    weighted.collect()
}

/// Returns a coding in lower case, without the aliases of RFC 9110 §8.4.1.
fn canonical(coding: &[u8]) -> Vec<u8> {
    match &*coding.to_ascii_lowercase() {
        b"x-gzip" => b"gzip".to_vec(),
        b"x-compress" => b"compress".to_vec(),
        coding => coding.to_vec(),
    }
}

/// Returns the weights of accepted codings, in ascending order.
fn distinct_weights(codings: &[(Vec<u8>, u16)]) -> Vec<u16> {
    let mut weights: Vec<u16> =
        codings.iter().map(|(_, weight)| *weight).filter(|&weight| weight > 0).collect();
    weights.sort_unstable();
    weights.dedup();
    weights
}

/// Returns the value of a parameter `q` in thousandths (RFC 9110 §12.4.2). An unreadable value counts as 1.
fn weight(parameter: &[u8]) -> Option<u16> {
    let (name, value) = parameter.split_at_checked(2)?;
    if !name.eq_ignore_ascii_case(b"q=") {
        return None;
    }
    let value: f32 = std::str::from_utf8(value.trim_ascii()).ok()?.parse().ok()?;
    if !(0.0..=1.0).contains(&value) {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 0 and 1000")]
    let thousandths = (value * 1000.0).round() as u16;
    Some(thousandths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduced_to(declared: &[&str], fields: &[&str]) -> Option<String> {
        let mut request = HeaderMap::new();
        for field in fields {
            request.append(ACCEPT_ENCODING, HeaderValue::from_str(field).unwrap());
        }
        let declared: Vec<String> = declared.iter().map(|&coding| coding.to_owned()).collect();
        reduced(&request, &declared).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn codings_that_no_response_has_are_left_out() {
        for (possible, field, expected) in [
            (&["gzip"][..], "gzip, deflate, br, zstd", "gzip"),
            (&["gzip"], "br;q=1.0, GZIP;q=0.8, *;q=0.1", "gzip"),
            (&["gzip"], "x-gzip", "gzip"),
            (&["X-GZIP"], "x-gzip", "gzip"),
            (&["gzip"], "*", "gzip"),
            (&["gzip"], "*;q=0.001, gzip;q=0", "identity"),
            (&["gzip"], "gzip;q=0", "identity"),
            (&["gzip"], "br", "identity"),
            (&["gzip"], "", "identity"),
            (&["gzip"], "gzip, identity;q=0.5", "gzip"),
            (&["gzip"], "gzip;q=0.5, identity", "identity, gzip;q=0.500"),
            (&["gzip"], "identity;q=0.5, gzip;q=0.5", "gzip, identity"),
            (&["gzip"], "identity;q=0, gzip;q=0.3", "gzip, identity;q=0"),
            (&["gzip"], "gzip;q=0.3, *;q=0", "gzip, identity;q=0"),
            (&["gzip"], "gzip, identity, *;q=0", "gzip, identity"),
            (&["gzip", "br"], "deflate, br, gzip", "br, gzip"),
            (&["br", "gzip"], "gzip;q=0.2, br;q=0.9", "br, gzip;q=0.500"),
            (&["br", "gzip"], "gzip, *;q=0.5", "gzip, br;q=0.500"),
            (&["identity", "gzip", "gzip"], "zstd, gzip", "gzip"),
            (&["own"], "own, gzip", "own"),
            (&[], "gzip", "identity"),
        ] {
            assert_eq!(reduced_to(possible, &[field]).as_deref(), Some(expected), "{possible:?} {field:?}");
            assert_eq!(reduced_to(possible, &[expected]), None, "{possible:?} {expected:?} is reduced");
        }
        assert_eq!(reduced_to(&["gzip", "br"], &["gzip", "br"]).as_deref(), Some("br, gzip"));
    }

    #[test]
    fn field_that_only_other_codings_satisfy_stays() {
        for field in ["br, identity;q=0", "*;q=0", "br, *;q=0", "identity;q=0"] {
            assert_eq!(reduced_to(&["gzip"], &[field]), None, "{field:?}");
        }
        assert_eq!(reduced_to(&["gzip"], &[]), None);
        assert_eq!(reduced_to(&["not\na token"], &["*"]), None);
    }

    /// The weight of a coding in a field, in a scale in which `identity` is acceptable after all others by default.
    fn rank(field: &str, coding: &[u8]) -> u16 {
        let mut request = HeaderMap::new();
        request.insert(ACCEPT_ENCODING, HeaderValue::from_str(field).unwrap());
        let offered = weighted_codings(request.get_all(ACCEPT_ENCODING));
        let weight = |name: &[u8]| offered.iter().find(|(other, _)| other == name).map(|(_, weight)| *weight);
        let any = weight(b"*");
        match weight(coding) {
            Some(weight) => weight,
            None if coding == b"identity" => u16::from(any != Some(0)),
            None => any.unwrap_or(0),
        }
    }

    #[test]
    fn reduced_field_selects_what_the_whole_one_would() {
        let weights = ["", ";q=0", ";q=0.2", ";q=0.7"];
        let identities =
            ["zstd", "identity", "identity;q=0", "identity;q=0.2", "identity;q=0.5", "identity;q=0.9"];
        for (gzip, br) in weights.iter().flat_map(|gzip| weights.map(|br| (gzip, br))) {
            for (any, identity) in weights.iter().flat_map(|any| identities.map(|identity| (any, identity))) {
                let field = format!("gzip{gzip}, br{br}, *{any}, {identity}, zstd;q=0.4");
                let Some(short) = reduced_to(&["gzip", "br"], &[&field]) else { continue };
                for coding in [&b"gzip"[..], b"br", b"identity"] {
                    let is_acceptable = |field: &str| rank(field, coding) > 0;
                    assert_eq!(is_acceptable(&field), is_acceptable(&short), "{field:?} became {short:?}");
                    for other in [&b"gzip"[..], b"br", b"identity"] {
                        let order = |field: &str| rank(field, coding).cmp(&rank(field, other));
                        assert_eq!(order(&field), order(&short), "{field:?} became {short:?}");
                    }
                }
            }
        }
    }
}
