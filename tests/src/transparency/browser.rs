//! A browser's cache (RFC 9111) in front of the application. What it stores must be right for the requests that it answers.

use std::collections::HashMap;

use http::{Method, StatusCode};

use super::accept::vary;
use super::request::{Ask, Content};
use crate::in_process::Answer;

/// The host, `true` for https, and the target as it was sent.
type Target = (&'static str, bool, String);

/// A private cache that stores what it may, until the application changes.
#[derive(Debug, Default)]
pub(super) struct Browser {
    kept: HashMap<Target, Vec<(Ask, Answer)>>,
}

/// Request fields that change how a cache answers. Requests with them are skipped.
const CONDITIONS: [&str; 6] =
    ["range", "if-none-match", "if-modified-since", "if-range", "cache-control", "pragma"];

fn is_plain(ask: &Ask) -> bool {
    ask.method == Method::GET
        && ask.content == Content::None
        && ask.fields.iter().all(|(name, _)| !CONDITIONS.contains(name))
}

fn key(ask: &Ask) -> (&'static str, bool, String) {
    (ask.host, ask.https, ask.target.clone())
}

impl Browser {
    pub(super) fn forget(&mut self) {
        self.kept.clear();
    }

    pub(super) fn keep(&mut self, ask: &Ask, answer: &Answer) {
        let all = answer.headers.get_all("cache-control").iter().filter_map(|value| value.to_str().ok());
        let directives: Vec<&str> = all.flat_map(|value| value.split(',')).map(str::trim).collect();
        let forbids = |directive: &&str| ["no-store", "no-cache", "max-age=0"].contains(directive);
        let allows = directives.iter().any(|directive| directive.starts_with("max-age="));
        if is_plain(ask)
            && answer.status == StatusCode::OK
            && allows
            && !directives.iter().any(forbids)
            && !vary(&answer.headers).contains(&"*".to_owned())
        {
            self.kept.entry(key(ask)).or_default().push((ask.clone(), answer.clone()));
        }
    }

    /// Returns the stored response for this request, and the request that it was stored for (RFC 9111 §4.1).
    pub(super) fn reuse(&self, ask: &Ask) -> Option<(&Ask, &Answer)> {
        if !is_plain(ask) {
            return None;
        }
        let found = self.kept.get(&key(ask))?.iter().find(|(kept, answer)| {
            vary(&answer.headers).iter().all(|name| kept.field(name) == ask.field(name))
        });
        found.map(|(kept, answer)| (kept, answer))
    }
}
