//! Runs every file of the fuzzing corpus through the function that is fuzzed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "it is a library of its own, too")]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what does not hold fails by panicking"
)]
mod targets;

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

fn replay(target: &str, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files: Vec<_> = fs::read_dir(&corpus).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(files.len() > 5, "no corpus in {}", corpus.display());
    for file in files {
        let bytes = fs::read(&file).unwrap();
        assert!(catch_unwind(|| check(&bytes)).is_ok(), "{}", file.display());
    }
}

#[test]
fn records() {
    replay("record", targets::record);
}

#[cfg(feature = "memory")]
#[test]
fn values() {
    replay("value", targets::value);
}

#[test]
fn cache_control() {
    replay("cache_control", targets::cache_control);
}

#[test]
fn if_none_match() {
    replay("if_none_match", targets::if_none_match);
}

#[test]
fn keys() {
    replay("key", targets::key);
}
