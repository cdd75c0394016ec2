//! The tables of the guide's page `conformance`: each row is complete, and each test that it names exists.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// The number of cells in a row: section, requirement, routes, shared cache, and what shows it.
const CELLS: usize = 5;

#[test]
fn rows_are_complete_and_their_tests_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let sources = sources(root);
    let page = fs::read_to_string(root.join("core/src/docs/conformance.md")).unwrap();
    let rows: Vec<Vec<&str>> = page.lines().filter(|line| line.starts_with("| §")).map(cells).collect();
    assert!(rows.len() > 100, "the page lists the requirements");
    for row in rows {
        assert!(row.len() == CELLS && row.iter().all(|cell| !cell.is_empty()), "{row:?}");
        let [section, requirement, routes, shared, shown] = row[..] else { panic!("{row:?}") };
        let tests: Vec<&str> = code(shown).filter(|code| code.contains("::")).collect();
        if [routes, shared].contains(&"kept") {
            assert!(!tests.is_empty(), "{section} {requirement} names no test");
        }
        for test in tests {
            let (file, name) = test.split_once("::").unwrap();
            let declaration = format!("fn {name}(");
            let is_declared = |(path, source): &(PathBuf, String)| {
                is_named(path, file) && is_test(path, source, &declaration)
            };
            assert!(sources.iter().any(is_declared), "{section}: {test} doesn't exist");
        }
    }
}

fn cells(row: &str) -> Vec<&str> {
    row.trim_matches('|').split('|').map(str::trim).collect()
}

/// Returns the texts in backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Returns `true` if a path is that of a file or a folder of this name.
fn is_named(path: &Path, name: &str) -> bool {
    path.file_stem().is_some_and(|stem| stem == name)
        || path.parent().is_some_and(|folder| folder.ends_with(name))
}

/// Returns `true` if a source declares this function as a test: in a folder, a file or a module of tests.
fn is_test(path: &Path, source: &str, declaration: &str) -> bool {
    let is_of_tests =
        path.components().any(|part| ["tests", "tests.rs"].map(OsStr::new).contains(&part.as_os_str()));
    let source =
        if is_of_tests { source } else { source.split_once("#[cfg(test)]").map_or("", |(_, tests)| tests) };
    source.contains(declaration)
}

/// Returns all Rust files of the workspace's members, relative to its root.
fn sources(root: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = ["core", "adapter-axum", "adapter-poem", "adapter-tower", "tests"]
        .iter()
        .flat_map(|member| [root.join(member).join("src"), root.join(member).join("tests")])
        .filter(|folder| folder.is_dir())
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root).unwrap().to_owned(), source));
            }
        }
    }
    found
}
