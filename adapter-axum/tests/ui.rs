//! What the compiler says about the common mistakes: short, and what to do instead.
//!
//! The wording is the compiler's, so it is only compared on the version that it was written down with:
//! `TRYBUILD=overwrite cargo test -p larder-axum --test ui` writes it down anew.

const WRITTEN_DOWN_WITH: &str = "rustc 1.95.";

#[test]
fn mistakes_are_explained() {
    let version = std::process::Command::new("rustc").arg("--version").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    if !version.starts_with(WRITTEN_DOWN_WITH) {
        println!("not compared: the errors were written down with {WRITTEN_DOWN_WITH}x, this is {version}");
        return;
    }
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/*.rs");
    if cfg!(feature = "console") {
        cases.compile_fail("tests/ui/console/*.rs");
    }
}
