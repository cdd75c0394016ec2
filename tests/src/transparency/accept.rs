//! All differences that are allowed between an application with Larder and the same application without it.
//!
//! | difference | why |
//! |---|---|
//! | `X-Redis-Cache`, `Cache-Status` | the cache's own fields |
//! | `Cache-Control`, `Expires`, `Age` | the cache sets them on its routes (guide: headers) |
//! | `Date` | the time of a response, which no stored response can repeat |
//! | an added `ETag` | the cache adds one where the handler sets none |
//! | added members of `Vary` | the cache names the fields that its responses depend on |
//! | an added `Accept-Ranges` | the cache serves ranges of stored responses |
//! | presence of `Content-Length`, and framing fields | a stored body has a known length |
//! | 304 instead of a 200 | if the condition holds for the `ETag` or the `Last-Modified` of the response (RFC 9110 §13) |
//! | 206 or 416 instead of a 200 | if it follows from the range and the 200 (RFC 9110 §14) |
//! | 504 | to `Cache-Control: only-if-cached` (RFC 9111 §5.2.1.7) |
//! | an identity body for a client that accepts codings | identity is always acceptable (RFC 9110 §12.5.3) |
//! | the response to the request without [`STEERING`] fields | they don't reach handlers whose response may be stored (guide: safety) |
//! | the response to the request without credentials, on `.public()` routes | the same |
//! | the response to the request without credentials except the principal's, on private routes | the same |
//!
//! Not compared:
//!
//! | not compared | why |
//! |---|---|
//! | the body of the response to HEAD | it has none (RFC 9110 §9.3.2), but poem's server sends that of an error |
//! | reads by a process with a local tier after a write by another, until messages have arrived | messages invalidate the tier (guide: local tier) |
//! | responses from a browser's cache where `says_what_it_depends_on` is `false` | the response couldn't name the dependency |
//!
//! Left out of generated applications (`World::is_lawful`):
//!
//! | left out | why |
//! |---|---|
//! | fallbacks that write | only they could evict the resource that they change |
//! | `Forwarded` and `X-Forwarded-Host` with `.vary_by_host()` | they are in the key, and an eviction covers one host |
//! | a shared cache around resources that only a decoded query tells apart | there, URIs name resources (RFC 9111 §4.4) |
//! | layers with a timeout in real time | a busy machine can be late by any time |
//! | compression around handlers that negotiate codings themselves | both would negotiate |

use http::{HeaderMap, Method, StatusCode};

use super::request::{Ask, LAST_ETAG};
use super::run::Difference;
use super::world::{Audience, Place, Read, Route, World};
use crate::in_process::Answer;

/// Fields that change the target of a request, or its method.
pub const STEERING: [&str; 5] =
    ["x-forwarded-host", "forwarded", "x-original-url", "x-rewrite-url", "x-http-method-override"];

/// Fields with credentials.
pub const CREDENTIALS: [&str; 9] = [
    "authorization",
    "cookie",
    "proxy-authorization",
    "x-api-key",
    "x-auth-token",
    "x-access-token",
    "x-forwarded-user",
    "x-amzn-oidc-data",
    "cf-access-jwt-assertion",
];

const OWN: [&str; 6] = ["x-redis-cache", "cache-status", "cache-control", "expires", "age", "date"];
const MAY_BE_ADDED: [&str; 3] = ["etag", "vary", "accept-ranges"];
const FRAMING: [&str; 3] = ["content-length", "transfer-encoding", "connection"];

/// Returns the requests that a handler of this route may see instead of this one, if the response may be stored.
pub(super) fn as_seen_by(route: Option<&Route>, ask: &Ask) -> Vec<Ask> {
    let mut seen = Vec::new();
    let stripped = ask.without(|name| STEERING.contains(&name));
    let kept: Option<&[&str]> = match route.map(|route| route.rule.audience) {
        Some(Audience::Public) => Some(&[]),
        Some(Audience::Private) => Some(&["authorization"]),
        Some(Audience::PrivateByCookie) => Some(&["authorization", "cookie"]),
        Some(Audience::Undeclared) | None => None,
    };
    if let Some(kept) = kept {
        seen.push(stripped.without(|name| CREDENTIALS.contains(&name) && !kept.contains(&name)));
    }
    seen.push(stripped);
    seen
}

/// Returns the members of all `Vary` fields, in lower case.
pub(super) fn vary(headers: &HeaderMap) -> Vec<String> {
    let all = headers.get_all("vary").iter().filter_map(|value| value.to_str().ok());
    let members = all.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase());
    members.filter(|name| !name.is_empty()).collect()
}

/// Checks that the response with the cache is the one without, except for the allowed differences.
pub(super) fn same(cached: &Answer, bare: &Answer) -> Result<(), Difference> {
    if cached.headers.get_all("x-redis-cache").iter().count() > 1 {
        return Err(Difference::of("field x-redis-cache", "is there twice"));
    }
    if cached.status != bare.status {
        return Err(Difference::of("status", format!("{} instead of {}", cached.status, bare.status)));
    }
    if cached.body != bare.body {
        let text = |answer: &Answer| String::from_utf8_lossy(&answer.body).into_owned();
        return Err(Difference::of("body", format!("{:?} instead of {:?}", text(cached), text(bare))));
    }
    let values = |headers: &HeaderMap, name: &str| -> Vec<String> {
        headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect()
    };
    let names = cached.headers.keys().chain(bare.headers.keys());
    for name in names.map(http::HeaderName::as_str) {
        if OWN.contains(&name) || FRAMING.contains(&name) {
            continue;
        }
        let (mine, theirs) = (values(&cached.headers, name), values(&bare.headers, name));
        if theirs.is_empty() && MAY_BE_ADDED.contains(&name) {
            continue;
        }
        if name == "vary" {
            let mine = vary(&cached.headers);
            if vary(&bare.headers).iter().all(|member| mine.contains(member)) {
                continue;
            }
        }
        if mine != theirs {
            return Err(Difference::of(&format!("field {name}"), format!("{mine:?} instead of {theirs:?}")));
        }
    }
    Ok(())
}

/// Returns `true` if the response is a 304, 206 or 416 that follows from this 200.
pub(super) fn follows(ask: &Ask, last_etag: &str, cached: &Answer, whole: &Answer) -> bool {
    if whole.status != StatusCode::OK {
        return false;
    }
    let field = |name: &str| ask.field(name).replace(LAST_ETAG, last_etag);
    match cached.status {
        StatusCode::NOT_MODIFIED => {
            let list = field("if-none-match");
            if !list.is_empty() {
                return list.trim() == "*"
                    || etags(&list).is_some_and(|tags| {
                        tags.iter().any(|tag| opaque(tag) == opaque(cached.header("etag")))
                    });
            }
            let date = field("if-modified-since");
            !date.is_empty() && !whole.header("last-modified").is_empty()
        }
        StatusCode::PARTIAL_CONTENT if ask.method == Method::GET => {
            let range =
                ask.field("range").strip_prefix("bytes=").and_then(|range| part(range, whole.body.len()));
            let if_range = field("if-range");
            let condition = if_range.is_empty()
                || (if_range == cached.header("etag") && !if_range.starts_with("W/"))
                || if_range == cached.header("last-modified");
            condition
                && range.is_some_and(|(first, last)| {
                    cached.body == whole.body.slice(first..=last)
                        && cached.header("content-range")
                            == format!("bytes {first}-{last}/{}", whole.body.len())
                })
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            let range = ask.field("range").strip_prefix("bytes=");
            range.is_some_and(|range| part(range, whole.body.len()).is_none())
        }
        _ => false,
    }
}

fn opaque(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// Parses a valid list of entity tags (RFC 9110 §8.8.3).
fn etags(list: &str) -> Option<Vec<String>> {
    let mut tags = Vec::new();
    let mut rest = list.trim();
    loop {
        let weak = rest.strip_prefix("W/");
        let opened = weak.unwrap_or(rest).strip_prefix('"')?;
        let (tag, after) = opened.split_once('"')?;
        tags.push(format!("{}\"{tag}\"", if weak.is_some() { "W/" } else { "" }));
        rest = after.trim_start();
        if rest.is_empty() {
            return Some(tags);
        }
        rest = rest.strip_prefix(',')?.trim_start();
    }
}

/// Returns the first and the last byte that a range of a body of this length selects.
fn part(range: &str, length: usize) -> Option<(usize, usize)> {
    let (first, last) = range.split_once('-')?;
    let end = length.checked_sub(1)?;
    let (first, last) = match (first.parse::<usize>(), last.parse::<usize>()) {
        (Ok(first), Ok(last)) => (first, last.min(end)),
        (Ok(first), Err(_)) => (first, end),
        (Err(_), Ok(0)) => return None,
        (Err(_), Ok(suffix)) => (length.saturating_sub(suffix), end),
        (Err(_), Err(_)) => return None,
    };
    (first <= last && first <= end).then_some((first, last))
}

/// Returns `true` if the cache may answer this request with a 504, because nothing is stored.
pub(super) fn may_be_missing(ask: &Ask, cached: &Answer) -> bool {
    cached.status == StatusCode::GATEWAY_TIMEOUT && ask.field("cache-control").contains("only-if-cached")
}

/// Returns `true` if a browser that stored the first response can tell that it doesn't answer the second request. It can't if the
/// requests differ in a field that Larder can't name downstream:
///
/// - `Vary: Origin` or `Vary: Accept-Encoding` on only some responses of a handler: the stored response may lack it.
/// - Credentials in other fields than `Authorization` and `Cookie`, on routes without a declared audience. The list of such
///   fields is long and open, so `Vary` names only those two (guide: safety). `.public()` and `.private_by()` are for the others.
/// - Fields that a handler sees only when it bypasses the cache ([`STEERING`], credentials on `.public()` routes), and a
///   forgotten `Vary: Accept-Encoding`, if the handler's own `Cache-Control` allows such a response to be stored.
///
/// A fallback outside of the cached router sets its own fields, so it can always tell.
pub(super) fn says_what_it_depends_on(
    world: &World,
    route: Option<&Route>,
    first: &Ask,
    second: &Ask,
) -> bool {
    let Some(route) = route else { return false };
    let is_outside =
        world.fallback.as_ref().is_some_and(|fallback| fallback.handler.name == route.handler.name);
    let said = route.handler.cache_control;
    let unspoken = route.handler.reads.iter().filter_map(|read| match read {
        Read::OriginSometimes => Some("origin"),
        Read::EncodingSometimes => Some("accept-encoding"),
        Read::Credential(field) => match route.rule.audience {
            Audience::Undeclared => (!["authorization", "cookie"].contains(field)).then_some(*field),
            Audience::Public => said.and(Some(*field)),
            Audience::Private | Audience::PrivateByCookie => None,
        },
        Read::EncodingSilently => said.and(Some("accept-encoding")),
        Read::Steering(field) => said.and(Some(*field)),
        _ => None,
    });
    let mut unspoken = unspoken.filter(|field| first.field(field) != second.field(field));
    unspoken.next().is_none() && !(is_outside && world.place == Place::Router)
}
