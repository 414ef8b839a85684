//! Repeated objects cost nothing: all files are written again unchanged, and an agent starts with complete
//! maps.

use anyhow::{Context as _, Result};

use super::directory::{Directory, Layout};
use super::site::{Running, Site};
use crate::Effort;
use crate::figures::{Figure, Figures};

/// The number of services in the cluster.
const SERVICES: usize = 10_000;

pub fn measure(figures: &mut Figures, effort: &Effort) -> Result<()> {
    let layouts = [Layout::LargeFiles, Layout::SmallFiles];
    for layout in effort.pick(&layouts[..1], &layouts) {
        let site = Site::new();
        let directory = Directory::fill(&site, SERVICES, *layout)?;
        let running = site.start()?;
        resync(figures, &running, *layout, &directory, effort.pick(2, 5))?;
        drop(running);
        restart(figures, &site, layout.name(), effort.pick(3, 7), Site::start)?;
    }
    Ok(())
}

/// Replaces every file by a file of the same content.
fn resync(
    figures: &mut Figures,
    running: &Running,
    layout: Layout,
    directory: &Directory,
    runs: usize,
) -> Result<()> {
    let (mut writes, mut cpu) = (Vec::new(), Vec::new());
    let mut used = running.settle()?;
    for _ in 0..runs {
        let before = running.writes()?;
        directory.replace_all()?;
        let now = running.settle()?;
        writes.push(count(running.writes()? - before));
        cpu.push(now.saturating_sub(used).as_secs_f64() * 1e3);
        used = now;
    }
    let name = |what: &str| format!("sync.unchanged.{}.files-replaced.{what}", layout.name());
    figures.add(Figure::new(name("writes"), SERVICES, "writes", &writes).limit(0.0));
    figures.add(Figure::new(name("cpu"), SERVICES, "ms", &cpu));
    Ok(())
}

/// Starts agents one after the other, which find the entries that the first one programmed.
pub fn restart(
    figures: &mut Figures,
    site: &Site,
    source: &str,
    runs: usize,
    start: impl Fn(&Site) -> Result<Running>,
) -> Result<()> {
    let (mut writes, mut ready, mut sync) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        let running = start(site)?;
        ready.push(running.ready_after.as_secs_f64() * 1e3);
        let status = running.status()?;
        writes.push(count(status.writes.since_start));
        let first = status
            .sync
            .context("the status has no duration of the first sync")?;
        sync.push(count(first.micros) / 1e3);
    }
    let name = |what: &str| format!("sync.unchanged.{source}.warm-restart.{what}");
    figures.add(Figure::new(name("writes"), SERVICES, "writes", &writes).limit(0.0));
    figures.add(Figure::new(name("start-to-ready"), SERVICES, "ms", &ready).limit(1_000.0));
    figures.add(Figure::new(name("programmed"), SERVICES, "ms", &sync));
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn count(number: u64) -> f64 {
    number as f64
}
