//! Event to entry: from the rename of a small file to the entry in the kernel's map.
//!
//! There are two kinds of events: a slice in which one endpoint changes, and a new service. In the slow pace,
//! each event comes after the agent has gone back to sleep. In the fast pace, 1 000 events a second come
//! whether or not the agent has dealt with the ones before. One thread makes the events and looks for their
//! effects in turn. So every figure is too large by up to the time that making one event takes.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::directory::{Directory, Layout, Staged, changed_slice, slice_file, yaml};
use super::objects;
use super::site::{Running, Site};
use super::tables::Tables;
use crate::Effort;
use crate::cpu;
use crate::figures::{Figure, Figures};
use crate::quantiles::quantile;

/// The upper limit of p99, in microseconds.
pub const LIMIT: f64 = 1_000.0;

/// After this time an effect counts as missing.
const PATIENCE: Duration = Duration::from_secs(10);

/// After this time an effect may show in other tables: the agent may have moved to larger ones.
const OVERDUE: Duration = Duration::from_millis(50);

/// The pace of events.
#[derive(Clone, Copy)]
struct Pace {
    name: &'static str,
    interval: Duration,
    events: usize,
}

/// The change that an event makes.
#[derive(Clone, Copy)]
enum Kind {
    Endpoint,
    NewService,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::NewService => "new-service",
        }
    }
}

/// The change in the tables once the agent has dealt with an event.
#[derive(Clone, Copy)]
pub struct Effect {
    pub service: usize,
    pub endpoint: Ipv4Addr,
}

pub fn measure(figures: &mut Figures, effort: &Effort) -> Result<()> {
    let sizes = effort.pick(&[1_000, 10_000][..], &[1_000, 10_000, 100_000]);
    for services in sizes {
        measure_layout(figures, effort, *services, Layout::LargeFiles)?;
    }
    if !effort.quick {
        measure_layout(figures, effort, 10_000, Layout::SmallFiles)?;
    }
    Ok(())
}

fn measure_layout(figures: &mut Figures, effort: &Effort, services: usize, layout: Layout) -> Result<()> {
    let site = Site::new();
    let directory = Directory::fill(&site, services, layout)?;
    let running = site.start()?;
    let mut source = Source {
        directory: &directory,
        bpf_root: site.node().bpf_root(),
        services,
        next: 0,
    };
    let paces = [
        Pace {
            name: "idle",
            interval: Duration::from_millis(10),
            events: effort.pick(200, 500),
        },
        Pace {
            name: "1000/s",
            interval: Duration::from_millis(1),
            events: effort.pick(2_000, 5_000),
        },
    ];
    for kind in [Kind::Endpoint, Kind::NewService] {
        for pace in paces {
            let (mut p50, mut p99) = (Vec::new(), Vec::new());
            for _ in 0..effort.pick(3, 7) {
                running.settle()?;
                let latencies = cpu::beside(|| source.run(pace, kind))?;
                p50.push(quantile(&latencies, 0.5));
                p99.push(quantile(&latencies, 0.99));
            }
            let name = format!("sync.event.{}.{}.{}", layout.name(), kind.name(), pace.name);
            figures.add(Figure::new(format!("{name}.p50"), services, "µs", &p50));
            figures.add(Figure::new(format!("{name}.p99"), services, "µs", &p99).limit(LIMIT));
        }
    }
    drop::<Running>(running);
    Ok(())
}

/// The source of events, and the tables that show their effects.
struct Source<'a> {
    directory: &'a Directory,
    bpf_root: &'a Path,
    services: usize,
    next: usize,
}

impl Source<'_> {
    /// An event in which a service gets another first endpoint.
    fn change_endpoint(&mut self) -> Result<(Staged, Effect)> {
        let service = self.directory.changing[self.next % self.directory.changing.len()];
        let endpoint = objects::replacement(self.next);
        self.next += 1;
        let text = yaml(&[changed_slice(service, endpoint)])?;
        let staged = self.directory.stage(&slice_file(service), &text)?;
        Ok((staged, Effect { service, endpoint }))
    }

    /// An event in which a service appears, with its endpoints.
    fn add_service(&mut self) -> Result<(Staged, Effect)> {
        let service = self.services + self.next;
        let endpoint = objects::replacement(self.next);
        self.next += 1;
        let text = yaml(&[objects::service(service), changed_slice(service, endpoint)])?;
        let staged = self.directory.stage(&format!("new-{service}.yaml"), &text)?;
        Ok((staged, Effect { service, endpoint }))
    }

    /// Makes events and returns how many microseconds each took to show.
    fn run(&mut self, pace: Pace, kind: Kind) -> Result<Vec<f64>> {
        let mut tables = Tables::open(self.bpf_root)?;
        let mut watch = Watch::default();
        let mut due = Instant::now();
        for _ in 0..pace.events {
            let (staged, effect) = match kind {
                Kind::Endpoint => self.change_endpoint()?,
                Kind::NewService => self.add_service()?,
            };
            while Instant::now() < due {
                watch.look(&mut tables)?;
            }
            let started = Instant::now();
            staged.put_in_place()?;
            watch.expect(effect, started);
            due += pace.interval;
        }
        while !watch.is_done() {
            watch.look(&mut tables)?;
        }
        Ok(watch.latencies)
    }
}

/// Effects that are waited for.
#[derive(Default)]
struct Watch {
    awaited: VecDeque<(Effect, Instant)>,
    latencies: Vec<f64>,
}

impl Watch {
    fn expect(&mut self, effect: Effect, since: Instant) {
        self.awaited.push_back((effect, since));
    }

    fn is_done(&self) -> bool {
        self.awaited.is_empty()
    }

    /// Looks at every awaited effect once. If a later event of the same service has overtaken an effect, that
    /// effect does not show by itself. It counts as taking as long as the later one.
    fn look(&mut self, tables: &mut Tables) -> Result<()> {
        // The agent may have moved to larger tables.
        if self
            .awaited
            .front()
            .is_some_and(|(_, since)| since.elapsed() > OVERDUE)
        {
            tables.follow()?;
        }
        for place in (0..self.awaited.len()).rev() {
            let Some((Effect { service, endpoint }, _)) = self.awaited.get(place).copied() else {
                continue;
            };
            if !tables.has_backend(service, endpoint) {
                continue;
            }
            let latencies = &mut self.latencies;
            let mut seen = 0;
            self.awaited.retain(|(effect, since)| {
                let is_done = seen <= place && effect.service == service;
                seen += 1;
                if is_done {
                    latencies.push(since.elapsed().as_secs_f64() * 1e6);
                }
                !is_done
            });
        }
        match self.awaited.front() {
            Some((effect, since)) if since.elapsed() > PATIENCE => {
                bail!(
                    "service {} does not lead to {} after {PATIENCE:?}",
                    effect.service,
                    effect.endpoint
                )
            }
            Some(_) => Ok(()),
            None => {
                thread::yield_now();
                Ok(())
            }
        }
    }
}
