//! Compiler errors for common mistakes: short, with the remedy.
//!
//! The wording is the compiler's, so it is compared only on the version that it was recorded with. To record it again:
//! `TRYBUILD=overwrite cargo test -p larder-axum --test ui`

const RECORDED_WITH: &str = "rustc 1.95.";

#[test]
fn mistakes_are_explained() {
    let version = std::process::Command::new("rustc").arg("--version").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    if !version.starts_with(RECORDED_WITH) {
        println!("not compared: the errors were recorded with {RECORDED_WITH}x, this is {version}");
        return;
    }
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/*.rs");
    if cfg!(feature = "console") {
        cases.compile_fail("tests/ui/console/*.rs");
    }
}
