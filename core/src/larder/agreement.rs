//! Warnings about routes of one key space whose keys never match, so that no route reads the entries that another writes or
//! evicts.

use std::panic::Location;
use std::sync::{Mutex, PoisonError};

use tracing::warn;

use crate::policy::rule::{Kind, Rule};

/// Maximum number of routes to compare. A program that exceeds it creates routes for each request.
const MAX_ROUTES: usize = 1024;

/// The key configurations of a cache's routes.
#[derive(Debug, Default)]
pub(crate) struct Agreement {
    known: Mutex<Vec<KeyConfig>>,
}

/// The key configuration of one route.
#[derive(Clone, Debug, PartialEq)]
struct KeyConfig {
    name: String,
    space: Box<str>,
    kind: Kind,
    is_private: bool,
    by_host: bool,
    is_chosen: bool,
    params: Option<Vec<String>>,
    ignored: Vec<String>,
}

impl Agreement {
    /// Compares a new route with the others of its key space, and logs a warning for each mismatch.
    pub(crate) fn compare(&self, rule: &Rule, name: Option<&str>, made_at: &Location<'_>) {
        let config = KeyConfig::new(rule, name, made_at);
        for (reader, writer, what) in self.add(config) {
            warn!(
                group = rule.space.group(),
                reads = reader.name,
                writes = writer.name,
                differ_in = what,
                "what one route writes or evicts, the other doesn't read: routes of one key space have to say the same \
                 about their keys"
            );
        }
    }

    /// Returns the pairs that mismatch because of this route. A writer needs only one matching reader.
    fn add(&self, config: KeyConfig) -> Vec<(KeyConfig, KeyConfig, &'static str)> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(config.kind, Kind::EvictGroup | Kind::EvictTags)
            || known.contains(&config)
            || known.len() >= MAX_ROUTES
        {
            return Vec::new();
        }
        known.push(config.clone());
        let neighbours = || known.iter().filter(|other| other.space == config.space);
        let reads = |other: &&KeyConfig| other.kind == Kind::Read;
        let is_read = |writer: &KeyConfig| {
            neighbours().filter(reads).any(|reader| difference(reader, writer).is_none())
        };
        let pairs: Vec<(&KeyConfig, &KeyConfig)> = if config.kind == Kind::Read {
            neighbours().filter(|other| !reads(other)).map(|writer| (&config, writer)).collect()
        } else {
            neighbours().filter(reads).map(|reader| (reader, &config)).collect()
        };
        pairs
            .into_iter()
            .filter(|(_, writer)| !is_read(writer))
            .filter_map(|(reader, writer)| {
                Some((reader.clone(), writer.clone(), difference(reader, writer)?))
            })
            .collect()
    }
}

impl KeyConfig {
    fn new(rule: &Rule, name: Option<&str>, made_at: &Location<'_>) -> Self {
        let params = rule.query_params.clone().map(|mut params| {
            params.sort();
            params
        });
        let mut ignored = rule.ignored_params.to_vec();
        ignored.sort();
        let verb = match rule.kind {
            Kind::Read => "cache",
            Kind::Write => "cache_put",
            Kind::EvictKey | Kind::EvictGroup | Kind::EvictTags => "cache_evict",
        };
        Self {
            name: name.map_or_else(|| format!("{verb} at {made_at}"), str::to_owned),
            space: rule.space.head().into(),
            kind: rule.kind,
            is_private: rule.audience.is_private(),
            by_host: rule.vary_by_host,
            is_chosen: rule.is_chosen,
            params,
            ignored,
        }
    }
}

/// Returns the option that keeps a writer from reaching a reader's entry. A writer's own key builder may return the key of
/// a reader without one.
fn difference(reader: &KeyConfig, writer: &KeyConfig) -> Option<&'static str> {
    if reader.is_private != writer.is_private {
        Some("audience")
    } else if reader.by_host != writer.by_host {
        Some("vary_by_host")
    } else if reader.is_chosen && !writer.is_chosen {
        Some("key_by")
    } else if !reader.is_chosen && !writer.is_chosen && reader.params != writer.params {
        Some("query_params")
    } else if !reader.is_chosen
        && !writer.is_chosen
        && reader.params.is_none()
        && reader.ignored != writer.ignored
    {
        Some("ignore_query_params")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(kind: Kind, name: &str) -> KeyConfig {
        KeyConfig {
            name: name.to_owned(),
            space: "p:{g}:".into(),
            kind,
            is_private: false,
            by_host: false,
            is_chosen: false,
            params: None,
            ignored: Vec::new(),
        }
    }

    #[test]
    fn writer_without_matching_reader_is_reported() {
        let private = |config| KeyConfig { is_private: true, ..config };
        let by_host = |config| KeyConfig { by_host: true, ..config };
        let chosen = |config| KeyConfig { is_chosen: true, ..config };
        let paged = |config| KeyConfig { params: Some(vec!["page".into()]), ..config };
        let as_it_is = |config| config;
        type KeyChange<'a> = &'a dyn Fn(KeyConfig) -> KeyConfig;
        let untracked = |config| KeyConfig { ignored: vec!["utm_*".into()], ..config };
        let rows: [(KeyChange<'_>, KeyChange<'_>, Option<&str>); 12] = [
            (&as_it_is, &as_it_is, None),
            (&private, &as_it_is, Some("audience")),
            (&as_it_is, &private, Some("audience")),
            (&by_host, &as_it_is, Some("vary_by_host")),
            (&chosen, &as_it_is, Some("key_by")),
            (&as_it_is, &chosen, None),
            (&chosen, &chosen, None),
            (&paged, &as_it_is, Some("query_params")),
            (&paged, &paged, None),
            (&untracked, &as_it_is, Some("ignore_query_params")),
            (&as_it_is, &untracked, Some("ignore_query_params")),
            (&untracked, &untracked, None),
        ];
        for (row, (reader, writer, expected)) in rows.into_iter().enumerate() {
            for kind in [Kind::Write, Kind::EvictKey] {
                let (reader, writer) = (reader(config(Kind::Read, "r")), writer(config(kind, "w")));
                for pair in [[&reader, &writer], [&writer, &reader]] {
                    let agreement = Agreement::default();
                    let warned: Vec<_> =
                        pair.into_iter().flat_map(|config| agreement.add(config.clone())).collect();
                    let warnings =
                        warned.iter().map(|(r, w, what)| (r.name.as_str(), w.name.as_str(), *what));
                    assert_eq!(
                        warnings.collect::<Vec<_>>(),
                        expected.map(|what| ("r", "w", what)).into_iter().collect::<Vec<_>>(),
                        "row {row}"
                    );
                    assert!(agreement.add(reader.clone()).is_empty(), "once");
                }
            }
        }
    }

    #[test]
    fn list_and_item_in_one_group_match() {
        let agreement = Agreement::default();
        let list = KeyConfig { params: Some(vec!["page".into()]), ..config(Kind::Read, "list") };
        let mut warnings = agreement.add(config(Kind::Read, "item"));
        warnings.extend(agreement.add(list));
        warnings.extend(agreement.add(config(Kind::EvictKey, "remove")));
        warnings.extend(agreement.add(config(Kind::EvictGroup, "clear")));
        warnings.extend(agreement.add(KeyConfig {
            space: "p:{h}:".into(),
            is_private: true,
            ..config(Kind::Write, "other")
        }));
        assert!(warnings.is_empty(), "{warnings:?}");
    }
}
