//! Tells authors of routes whose keys don't meet: what one route writes or evicts, no route reads.

use std::panic::Location;
use std::sync::{Mutex, PoisonError};

use tracing::warn;

use crate::policy::rule::{Kind, Rule};
use crate::route::KeySource;

/// Routes beyond this many are not compared: something makes a new one for each request.
const MOST: usize = 1024;

/// What the routes of a cache say about their keys.
#[derive(Debug, Default)]
pub(crate) struct Agreement {
    known: Mutex<Vec<Said>>,
}

/// What one route says about its keys.
#[derive(Clone, Debug, PartialEq)]
struct Said {
    name: String,
    space: Box<str>,
    kind: Kind,
    is_private: bool,
    by_host: bool,
    is_chosen: bool,
    params: Option<Vec<String>>,
}

impl Agreement {
    /// Compares a new route with those of its key space, and warns of those with which it doesn't agree.
    pub(crate) fn compare(
        &self,
        rule: &Rule,
        source: &KeySource,
        name: Option<&str>,
        made_at: &Location<'_>,
    ) {
        let said = Said::new(rule, source, name, made_at);
        for (reader, writer, what) in self.add(said) {
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

    /// The pairs that disagree because of this route. One that reads is enough for one that writes.
    fn add(&self, said: Said) -> Vec<(Said, Said, &'static str)> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if said.kind == Kind::EvictGroup || known.contains(&said) || known.len() >= MOST {
            return Vec::new();
        }
        known.push(said.clone());
        let neighbours = || known.iter().filter(|other| other.space == said.space);
        let reads = |other: &&Said| other.kind == Kind::Read;
        let is_read =
            |writer: &Said| neighbours().filter(reads).any(|reader| difference(reader, writer).is_none());
        let pairs: Vec<(&Said, &Said)> = if said.kind == Kind::Read {
            neighbours().filter(|other| !reads(other)).map(|writer| (&said, writer)).collect()
        } else {
            neighbours().filter(reads).map(|reader| (reader, &said)).collect()
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

impl Said {
    fn new(rule: &Rule, source: &KeySource, name: Option<&str>, made_at: &Location<'_>) -> Self {
        let params = rule.params.clone().map(|mut params| {
            params.sort();
            params
        });
        let verb = match rule.kind {
            Kind::Read => "cache",
            Kind::Write => "cache_put",
            Kind::EvictKey | Kind::EvictGroup => "cache_evict",
        };
        Self {
            name: name.map_or_else(|| format!("{verb} at {made_at}"), str::to_owned),
            space: rule.space.head().into(),
            kind: rule.kind,
            is_private: rule.audience.is_private(),
            by_host: rule.by_host,
            is_chosen: !matches!(source, KeySource::Uri),
            params,
        }
    }
}

/// What keeps a write from reaching the entry of a read, if something does. A key builder of a write may well name the key of
/// a read that has none.
fn difference(reader: &Said, writer: &Said) -> Option<&'static str> {
    if reader.is_private != writer.is_private {
        Some("audience")
    } else if reader.by_host != writer.by_host {
        Some("vary_by_host")
    } else if reader.is_chosen && !writer.is_chosen {
        Some("key_by")
    } else if !reader.is_chosen && !writer.is_chosen && reader.params != writer.params {
        Some("query_params")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(kind: Kind, name: &str) -> Said {
        Said {
            name: name.to_owned(),
            space: "p:{g}:".into(),
            kind,
            is_private: false,
            by_host: false,
            is_chosen: false,
            params: None,
        }
    }

    #[test]
    fn a_write_that_no_read_agrees_with_is_named() {
        let private = |said| Said { is_private: true, ..said };
        let by_host = |said| Said { by_host: true, ..said };
        let chosen = |said| Said { is_chosen: true, ..said };
        let paged = |said| Said { params: Some(vec!["page".into()]), ..said };
        let as_it_is = |said| said;
        type Change<'a> = &'a dyn Fn(Said) -> Said;
        let rows: [(Change<'_>, Change<'_>, Option<&str>); 9] = [
            (&as_it_is, &as_it_is, None),
            (&private, &as_it_is, Some("audience")),
            (&as_it_is, &private, Some("audience")),
            (&by_host, &as_it_is, Some("vary_by_host")),
            (&chosen, &as_it_is, Some("key_by")),
            (&as_it_is, &chosen, None),
            (&chosen, &chosen, None),
            (&paged, &as_it_is, Some("query_params")),
            (&paged, &paged, None),
        ];
        for (row, (reader, writer, expected)) in rows.into_iter().enumerate() {
            for kind in [Kind::Write, Kind::EvictKey] {
                let (reader, writer) = (reader(said(Kind::Read, "r")), writer(said(kind, "w")));
                for pair in [[&reader, &writer], [&writer, &reader]] {
                    let agreement = Agreement::default();
                    let warned: Vec<_> =
                        pair.into_iter().flat_map(|said| agreement.add(said.clone())).collect();
                    let told = warned.iter().map(|(r, w, what)| (r.name.as_str(), w.name.as_str(), *what));
                    assert_eq!(
                        told.collect::<Vec<_>>(),
                        expected.map(|what| ("r", "w", what)).into_iter().collect::<Vec<_>>(),
                        "row {row}"
                    );
                    assert!(agreement.add(reader.clone()).is_empty(), "once");
                }
            }
        }
    }

    #[test]
    fn a_list_and_an_item_in_one_group_are_fine() {
        let agreement = Agreement::default();
        let list = Said { params: Some(vec!["page".into()]), ..said(Kind::Read, "list") };
        let mut told = agreement.add(said(Kind::Read, "item"));
        told.extend(agreement.add(list));
        told.extend(agreement.add(said(Kind::EvictKey, "remove")));
        told.extend(agreement.add(said(Kind::EvictGroup, "clear")));
        told.extend(agreement.add(Said {
            space: "p:{h}:".into(),
            is_private: true,
            ..said(Kind::Write, "other")
        }));
        assert!(told.is_empty(), "{told:?}");
    }
}
