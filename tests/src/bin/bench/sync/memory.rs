//! Memory: of the agent's process, and of the maps.

use std::fs;

use anyhow::{Context as _, Result};

use super::directory::{Directory, Layout};
use super::site::Site;
use crate::Effort;
use crate::figures::{Figure, Figures};

/// The maps whose size grows with services and endpoints.
const CLUSTER_MAPS: [&str; 3] = ["FRONTENDS", "SLOTS", "BACKENDS"];

/// The maps whose size does not depend on the cluster.
const FLOW_MAPS: [&str; 2] = ["FLOWS", "SOCKET_PEERS"];

pub fn measure(figures: &mut Figures, effort: &Effort) -> Result<()> {
    let services = effort.pick(10_000, 100_000);
    let site = Site::new();
    Directory::fill(&site, services, Layout::LargeFiles)?;
    let running = site.start()?;
    running.settle()?;
    let pid = running.agent.pid();
    let add = |figures: &mut Figures, name: &str, mebibytes: f64, limit: Option<f64>| {
        let figure = Figure::new(format!("sync.memory.{name}"), services, "MiB", &[mebibytes]);
        figures.add(match limit {
            Some(limit) => figure.limit(limit),
            None => figure,
        });
    };
    add(
        figures,
        "agent.rss",
        process_memory(pid, "status", "VmRSS:")?,
        Some(64.0),
    );
    for (name, file, field) in [
        ("agent.rss-peak", "status", "VmHWM:"),
        ("agent.rss-anonymous", "status", "RssAnon:"),
        ("agent.rss-files-and-maps", "status", "RssFile:"),
        ("agent.pss", "smaps_rollup", "Pss:"),
    ] {
        add(figures, name, process_memory(pid, file, field)?, None);
    }
    let tables = site.tables()?;
    let sum = |maps: &[&str]| -> Result<f64> {
        let bytes: u64 = maps.iter().map(|name| tables.memory(name)).sum::<Result<u64>>()?;
        Ok(mebibytes(bytes))
    };
    add(figures, "maps.cluster", sum(&CLUSTER_MAPS)?, Some(40.0));
    for name in CLUSTER_MAPS {
        add(
            figures,
            &format!("maps.{}", name.to_lowercase()),
            sum(&[name])?,
            None,
        );
    }
    add(figures, "maps.addresses", sum(&["ADDRESSES"])?, None);
    add(figures, "maps.flows", sum(&FLOW_MAPS)?, None);
    Ok(())
}

/// A field of a file below `/proc/PID` that counts kibibytes, in mebibytes.
fn process_memory(pid: u32, file: &str, field: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(field));
    let value = value.with_context(|| format!("no {field} in {path}"))?;
    let kibibytes: u64 = value.trim().trim_end_matches(" kB").parse().context(path)?;
    Ok(mebibytes(kibibytes * 1024))
}

#[expect(clippy::cast_precision_loss, reason = "no machine has petabytes")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
