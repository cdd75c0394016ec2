//! What fuzzing once found interesting, replayed: see `core/fuzz`.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

#[path = "../fuzz/checks.rs"]
mod checks;

/// Runs a check on every file of its corpus, and on beginnings and damaged copies of it.
fn replay(name: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files = 0;
    for file in folder.read_dir().expect("a corpus") {
        let data = std::fs::read(file.expect("a file").path()).expect("its bytes");
        check(&data);
        for at in 0..data.len() {
            check(&data[..at]);
            let mut damaged = data.clone();
            damaged[at] ^= 1 << (at % 8);
            check(&damaged);
        }
        files += 1;
    }
    assert!(files >= 5, "{} has {files} files", folder.display());
}

#[test]
fn records() {
    replay("record", checks::record);
}

#[test]
fn directives() {
    replay("directives", checks::directives);
}

#[test]
fn conditions() {
    replay("conditions", checks::conditions);
}

#[test]
fn keys() {
    replay("key", checks::key);
}
