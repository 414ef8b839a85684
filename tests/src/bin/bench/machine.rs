//! The surroundings of a run's figures: machine, kernel, load and revision.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The machine and the revision of a run.
#[derive(Serialize)]
pub struct Machine {
    #[serde(rename = "machine")]
    hardware: String,
    kernel: String,
    /// Load averages when the run began, as a measure of the machine's other work.
    load: String,
    revision: String,
}

/// Describes this machine and this source tree.
pub fn describe() -> Result<Machine> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("reading {path}"));
    let cpuinfo = read("/proc/cpuinfo")?;
    let model = field(&cpuinfo, "model name").unwrap_or("unknown CPU");
    let cpus = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let memory: u64 = field(&read("/proc/meminfo")?, "MemTotal")
        .and_then(|text| text.trim_end_matches(" kB").parse().ok())
        .unwrap_or(0);
    let guest = if cpuinfo.contains("hypervisor") {
        ", virtual"
    } else {
        ""
    };
    Ok(Machine {
        hardware: format!("{cpus} × {model}{guest}, {} MiB", memory / 1024),
        kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        load: read("/proc/loadavg")?
            .split(' ')
            .take(3)
            .collect::<Vec<_>>()
            .join(" "),
        revision: revision(),
    })
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_once(':').map(|(_, value)| value.trim())
}

/// The commit that is checked out; `-dirty` if the built files may differ from it.
fn revision() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .arg("-C")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")))
            .args(arguments)
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => commit,
        _ => format!("{commit}-dirty"),
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            hardware,
            kernel,
            load,
            revision,
        } = self;
        write!(f, "{hardware}; Linux {kernel}; load {load}; revision {revision}")
    }
}
