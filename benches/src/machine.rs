//! The machine that the benches ran on.

use std::fs;

/// Returns a sentence with the processor, the number of cores, the system, and its load.
#[must_use]
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("unknown").to_owned();
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    format!(
        "{cores} cores ({}), {os} {arch}, load {load} at the start.",
        model.trim_start_matches([' ', '\t', ':'])
    )
}
