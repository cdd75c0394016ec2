//! Writes results to `benches/results`, and into the README between two markers. With `--quick`, writes only to a directory that
//! git ignores.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::safety::Matrix;

/// The exact versions of all compiled contenders.
const LOCK: &str = include_str!("../Cargo.lock");

const REQUIREMENTS: &str = include_str!("../python/requirements.txt");

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn results(quick: bool) -> PathBuf {
    let dir = project().join(if quick { "benches/results/tmp" } else { "benches/results" });
    fs::create_dir_all(&dir).expect("a directory for results");
    dir
}

/// Writes a result and prints its path.
pub(crate) fn write(name: &str, text: &str, quick: bool) {
    let path = results(quick).join(name);
    fs::write(&path, text).expect("a result that can be written");
    eprintln!("wrote {}", path.canonicalize().unwrap_or(path).display());
}

/// Writes a text between the README's two markers of this name.
pub(crate) fn into_readme(name: &str, text: &str, quick: bool) {
    if quick {
        return;
    }
    let path = project().join("README.md");
    let readme = fs::read_to_string(&path).expect("a README");
    let (begin, end) = (format!("<!-- {name}:begin -->"), format!("<!-- {name}:end -->"));
    let (before, rest) = readme.split_once(&begin).expect("a marker where it begins");
    let (_, after) = rest.split_once(&end).expect("a marker where it ends");
    fs::write(path, format!("{before}{begin}\n{text}\n{end}{after}")).expect("a README that can be written");
}

/// Writes the whole safety matrix into its file, and an excerpt into the README.
pub(crate) fn safety(matrix: &Matrix, quick: bool) {
    let text = format!(
        "# What goes wrong behind which cache\n\n`benches/peers/run safety` put the same little app behind each \
         of them on {} and tried it over HTTP. Bold is what went wrong, with what was seen.\n\n{}\n\n{}\n",
        date(),
        matrix.markdown(),
        versions(),
    );
    write("safety.md", &text, quick);
    into_readme("safety", &matrix.excerpt(), quick);
}

/// Returns today's date, in UTC.
pub(crate) fn date() -> String {
    output("date", &["-u", "+%F"])
}

/// Describes the machine.
pub(crate) fn machine() -> String {
    format!("{} Linux {}.", larder_benches::machine(), output("uname", &["-r"])).replace("Linux .", "")
}

/// Lists the contenders with their versions and settings.
pub(crate) fn versions() -> String {
    let rust = |name: &str| {
        let package =
            LOCK.split("[[package]]").find(|package| package.contains(&format!("name = \"{name}\"\n")));
        let version = package.and_then(|package| package.split("version = \"").nth(1)?.split('"').next());
        format!("{name} {}", version.unwrap_or("of an unknown version"))
    };
    let python = |name: &str| {
        let line = REQUIREMENTS.lines().find(|line| line.starts_with(name)).unwrap_or(name);
        line.replace("==", " ")
    };
    let larder = output("git", &["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "--short", "HEAD"]);
    let mut versions = vec![format!("Larder at {larder}")];
    let crates = ["axum", "axum-response-cache", "tower-http-cache", "hitbox", "hitbox-tower", "hitbox-moka"];
    versions.extend(crates.map(rust));
    versions.extend(["hitbox-redis", "http-cache-tower-server"].map(rust));
    versions.push(output("sh", &["-c", "nginx -v 2>&1 | sed 's/.*nginx\\//nginx /'"]));
    versions.extend(["fastapi-redis-sdk", "uvicorn[standard]"].map(python));
    versions.push(output("sh", &["-c", "redis-server --version | sed 's/.* v=\\([^ ]*\\).*/Redis \\1/'"]));
    versions.push(output("rustc", &["--version"]));
    format!("Versions: {}.", versions.join(", "))
}

/// Returns the output of a program, in one line.
pub(crate) fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_default()
}
