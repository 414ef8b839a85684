//! Cold sync: the time from the first complete list of every kind to complete maps. Nothing is programmed
//! before.

use anyhow::{Context as _, Result, ensure};

use super::directory::{Directory, Layout};
use super::site::{Running, Site};
use crate::Effort;
use crate::figures::{Figure, Figures};

pub fn measure(figures: &mut Figures, effort: &Effort) -> Result<()> {
    for services in effort.pick(&[1_000, 10_000][..], &[1_000, 10_000, 100_000]) {
        let site = Site::new();
        Directory::fill(&site, *services, Layout::LargeFiles)?;
        repeat(
            figures,
            &site,
            *services,
            "directory",
            effort.pick(3, 7),
            Site::start,
        )?;
    }
    Ok(())
}

/// Starts agents, one after the other, that find no maps of a predecessor.
pub fn repeat(
    figures: &mut Figures,
    site: &Site,
    services: usize,
    source: &str,
    runs: usize,
    start: impl Fn(&Site) -> Result<Running>,
) -> Result<()> {
    let (mut sync, mut attach, mut ready) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        site.forget()?;
        let running = start(site)?;
        let first = running
            .status()?
            .sync
            .context("the status has no duration of the first sync")?;
        ensure!(
            first.services >= services as u64,
            "{} of {services} services were programmed",
            first.services
        );
        sync.push(milliseconds(first.micros));
        attach.push(milliseconds(first.attach_micros));
        ready.push(running.ready_after.as_secs_f64() * 1e3);
    }
    let limit = match services {
        ..=10_000 => 50.0,
        _ => 500.0,
    };
    let name = |what: &str| format!("sync.cold.{source}.{what}");
    figures.add(Figure::new(name("programmed"), services, "ms", &sync).limit(limit));
    figures.add(Figure::new(name("attached"), services, "ms", &attach));
    figures.add(Figure::new(name("start-to-ready"), services, "ms", &ready));
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "durations are short")]
fn milliseconds(micros: u64) -> f64 {
    micros as f64 / 1e3
}
