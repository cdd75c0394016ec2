//! Checks that imports go one way, and that every type name has one definition. Reads the source files as text: their `crate::`,
//! `super::` and `self::` paths, and their definitions of types.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module path, such as `store::redis::node`, with the modules that it names outside of its tests.
type Imports = BTreeMap<String, BTreeSet<String>>;

/// Modules that need the feature `runtime`. The pure engine names none of them.
const RUNTIME: [&str; 12] = [
    "backend",
    "body",
    "clock",
    "console",
    "exchange",
    "fill",
    "larder",
    "route",
    "shared::body",
    "shared::exchange",
    "stats",
    "telemetry",
];

/// The pure engine: the modules that are compiled without features.
const PURE: [&str; 13] = [
    "credentials",
    "explain",
    "headers",
    "key",
    "policy",
    "provenance",
    "reason",
    "record",
    "request",
    "shared",
    "status",
    "tag",
    "ttl",
];

/// Types that two files define on purpose.
const TWINS: [&str; 4] = [
    // The checked set of the core, and, in `tag/parts.rs`, the response part of the adapters.
    "Tags",
    // `telemetry/metrics.rs` and `telemetry/no_metrics.rs`: with and without the feature `metrics`.
    "RouteExport",
    // The axum and the poem adapter: each framework's extractor.
    "Backend",
    // The tower adapter, and the axum adapter, whose routers need another body.
    "SharedCacheLayer",
];

/// Names that the traits of std, tower, serde and sfv give to their associated types.
const ASSOCIATED: [&str; 10] =
    ["Body", "Data", "Error", "Future", "Item", "Ok", "Out", "Output", "Response", "Service"];

#[test]
fn pure_engine_names_no_runtime_module() {
    for (module, imports) in imports() {
        if is_in(&module, &PURE) && !is_in(&module, &RUNTIME) {
            let named: Vec<_> = imports
                .iter()
                // The parent module re-exports its runtime half behind the feature.
                .filter(|import| is_in(import, &RUNTIME) && !import.starts_with(&format!("{module}::")))
                .collect();
            assert!(named.is_empty(), "{module} is part of the pure engine and names {named:?}");
        }
    }
}

#[test]
fn stores_name_neither_telemetry_nor_the_facade() {
    for (module, imports) in imports() {
        if is_in(&module, &["store"]) {
            let named: Vec<_> = imports
                .iter()
                .filter(|import| {
                    is_in(import, &["telemetry", "larder", "route", "exchange", "backend", "console"])
                })
                .collect();
            assert!(named.is_empty(), "{module} is a store and names {named:?}");
        }
    }
}

#[test]
fn files_name_modules_and_not_the_re_exports_of_the_root() {
    // The other tests follow modules. A re-export would hide where a type comes from.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let lines = text.lines().take_while(|line| !line.starts_with("mod tests {"));
        let named: Vec<_> = lines.filter(|line| names_a_re_export(line)).collect();
        assert!(named.is_empty(), "{} names {named:?}", file.display());
    }
}

/// Returns `true` if a line of code names a type as `crate::Type`, other than in a macro for other crates.
fn names_a_re_export(line: &str) -> bool {
    let is_code = !line.trim_start().starts_with("//");
    let mut after = line.split("crate::").skip(1).zip(line.split("crate::"));
    is_code && after.any(|(after, before)| after.starts_with(char::is_uppercase) && !before.ends_with('$'))
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let imports = imports();
    let mut done = BTreeSet::new();
    for module in imports.keys() {
        let mut path = Vec::new();
        if let Some(circle) = circle_from(module, &imports, &mut path, &mut done) {
            panic!("these modules import each other in a circle: {}", circle.join(" -> "));
        }
    }
}

#[test]
fn every_type_name_has_one_definition() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for sources in ["src", "../adapter-axum/src", "../adapter-poem/src", "../adapter-tower/src"] {
        collect(&root.join(sources), &mut files);
    }
    let mut definitions: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
    for file in files {
        for name in types_in(&fs::read_to_string(&file).unwrap()) {
            definitions.entry(name).or_default().insert(file.clone());
        }
    }
    assert!(definitions.len() > 200, "the sources are not where they were: {definitions:?}");
    definitions.retain(|name, files| {
        files.len() > 1 && !TWINS.contains(&name.as_str()) && !ASSOCIATED.contains(&name.as_str())
    });
    assert!(definitions.is_empty(), "these type names are defined more than once: {definitions:#?}");
}

#[test]
fn reader_sees_definitions_of_every_form() {
    let text = "pub struct A;\npub(crate) enum B {}\n    type C = u8;\ntrait D {}\npub unsafe trait E {}\n\
                // struct F;\n/// enum G {}\nlet structure = Struct { x };\nstruct H<T>(T);\n\
                #[cfg(test)]\nmod tests {\n    struct I;\n}";
    assert_eq!(types_in(text), ["A", "B", "C", "D", "E", "H"]);
}

#[test]
fn reader_sees_imports_of_every_form() {
    let known = ["a", "a::b", "a::c", "d"].map(str::to_owned).into();
    let text = "use crate::{d, a::b::X};\nuse super::c::{self, Y};\n// use crate::nothing;\n\
                fn f() { crate::d::g() }\n#[cfg(test)]\nmod tests { use crate::a::c; }";
    let seen = named_in("a::b", text, &known);
    assert_eq!(seen, ["a::c", "d"].map(str::to_owned).into());
    assert!(named_in("a::b", "use super::X;\nuse crate::a::Y;", &known).is_empty(), "the file of the folder");
}

/// The types that a file defines outside of its tests.
fn types_in(text: &str) -> Vec<String> {
    let lines = text.lines().take_while(|line| !line.trim_start().starts_with("mod tests {"));
    let defined = lines.filter_map(|line| {
        let words = line.split_whitespace().skip_while(|word| word.starts_with("pub") || *word == "unsafe");
        let (kind, rest) = (words.clone().next()?, words.clone().nth(1)?);
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let is_type = ["struct", "enum", "trait", "type"].contains(&kind);
        (is_type && name.starts_with(char::is_uppercase)).then_some(name)
    });
    defined.collect()
}

fn is_in(module: &str, of: &[&str]) -> bool {
    of.iter()
        .any(|root| module == *root || module.strip_prefix(root).is_some_and(|rest| rest.starts_with("::")))
}

/// Searches depth first. `done` holds modules from which no circle can be reached.
fn circle_from<'a>(
    module: &'a str,
    imports: &'a Imports,
    path: &mut Vec<&'a str>,
    done: &mut BTreeSet<&'a str>,
) -> Option<Vec<&'a str>> {
    if let Some(at) = path.iter().position(|seen| *seen == module) {
        let mut circle = path[at..].to_vec();
        circle.push(module);
        return Some(circle);
    }
    if done.contains(module) {
        return None;
    }
    path.push(module);
    for import in imports.get(module).into_iter().flatten() {
        if let Some(circle) = circle_from(import, imports, path, done) {
            return Some(circle);
        }
    }
    path.pop();
    done.insert(module);
    None
}

fn imports() -> Imports {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let modules: BTreeMap<String, PathBuf> = files
        .into_iter()
        .filter_map(|file| {
            let relative = file.strip_prefix(&root).ok()?.with_extension("");
            let parts: Vec<_> = relative.iter().filter_map(|part| part.to_str()).collect();
            // `lib.rs` re-exports everything, and uses nothing itself.
            (parts != ["lib"]).then(|| (parts.join("::"), file.clone()))
        })
        .collect();
    assert!(modules.len() > 40, "the sources are not where they were: {modules:?}");
    let known = modules.keys().cloned().collect();
    modules
        .iter()
        .map(|(module, file)| {
            let text = fs::read_to_string(file).unwrap();
            (module.clone(), named_in(module, &text, &known))
        })
        .collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
}

/// Returns the modules that a file names outside of comments and tests.
fn named_in(module: &str, text: &str, known: &BTreeSet<String>) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .take_while(|line| !line.trim_start().starts_with("mod tests {"))
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join(" ");
    let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
    let mut named = BTreeSet::new();
    for (root, base) in [("crate::", ""), ("super::", parent), ("self::", module)] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back().unwrap_or(' ');
            if !before.is_alphanumeric() && before != '_' && before != ':' && before != '$' {
                walk(base, &code[at + root.len()..], known, &mut named);
            }
        }
    }
    // A file may use the types of the file that its folder belongs to.
    named.retain(|name| name != module && !module.starts_with(&format!("{name}::")));
    named
}

/// Follows a path, or a group in braces, as long as it names modules.
fn walk(base: &str, rest: &str, known: &BTreeSet<String>, named: &mut BTreeSet<String>) {
    if let Some(group) = rest.strip_prefix('{') {
        let mut depth = 0;
        let mut begin = 0;
        for (at, character) in group.char_indices() {
            match character {
                '{' => depth += 1,
                '}' if depth == 0 => return walk(base, group[begin..at].trim(), known, named),
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    walk(base, group[begin..at].trim(), known, named);
                    begin = at + 1;
                }
                _ => {}
            }
        }
        return;
    }
    let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let deeper = if base.is_empty() { word.clone() } else { format!("{base}::{word}") };
    if known.contains(&deeper) {
        match rest[word.len()..].strip_prefix("::") {
            Some(rest) => walk(&deeper, rest, known, named),
            None => {
                named.insert(deeper);
            }
        }
    } else if known.contains(base) {
        named.insert(base.to_owned());
    }
}
