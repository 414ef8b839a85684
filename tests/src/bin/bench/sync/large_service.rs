//! One endpoint of a large service changes: system calls and time must not depend on the number of its
//! endpoints.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::bpf_calls::BpfCalls;
use super::directory::{Directory, yaml};
use super::objects;
use super::site::Site;
use super::tables::Tables;
use crate::Effort;
use crate::cpu;
use crate::figures::{Figure, Figures};

/// The number of endpoints in a slice, as the EndpointSlice controller makes them.
const PER_SLICE: usize = 100;

/// After this time the agent has not noticed the change.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn measure(figures: &mut Figures, effort: &Effort) -> Result<()> {
    for endpoints in [10, 100, 1_000, 5_000] {
        measure_size(figures, endpoints, effort.pick(10, 50))?;
    }
    Ok(())
}

fn measure_size(figures: &mut Figures, count: usize, changes: usize) -> Result<()> {
    let site = Site::new();
    let directory = Directory::empty(&site, 1)?;
    let mut endpoints: Vec<Ipv4Addr> = (0..count).map(objects::replacement).collect();
    directory.write("service.yaml", &[objects::service(0)])?;
    for slice in 0..endpoints.len().div_ceil(PER_SLICE) {
        directory.write(&file(slice), &[slice_of(slice, &endpoints)])?;
    }
    let running = site.start()?;
    let bpf_root = site.node().bpf_root();
    let mut calls = BpfCalls::of(running.agent.pid(), site.node().dir())?;
    let (mut counts, mut latencies) = (Vec::new(), Vec::new());
    let mut random = fastrand::Rng::with_seed(2);
    for change in 0..changes {
        running.settle()?;
        let place = random.usize(..count);
        endpoints[place] = objects::replacement(count + change);
        let slice = place / PER_SLICE;
        let staged = directory.stage(&file(slice), &yaml(&[slice_of(slice, &endpoints)])?)?;
        let before = calls.count()?;
        let latency = cpu::beside(|| {
            let tables = Tables::open(bpf_root)?;
            let started = Instant::now();
            staged.put_in_place()?;
            while !tables.has_backend(0, endpoints[place]) {
                if started.elapsed() > PATIENCE {
                    bail!("the change of endpoint {place} of {count} does not show");
                }
            }
            Ok(started.elapsed())
        })?;
        latencies.push(latency.as_secs_f64() * 1e6);
        // Calls after the switch of the frontend count too.
        running.settle()?;
        counts.push(f64::from(u32::try_from(calls.count()? - before)?));
    }
    let name = |what: &str| format!("sync.large-service.one-endpoint.{what}");
    figures.add(Figure::new(name("bpf-calls"), count, "calls", &counts).limit(3.0));
    figures.add(Figure::new(name("time"), count, "µs", &latencies));
    Ok(())
}

fn slice_of(slice: usize, endpoints: &[Ipv4Addr]) -> serde_json::Value {
    let own = endpoints.chunks(PER_SLICE).nth(slice).unwrap_or_default();
    objects::numbered_slice(0, slice, own)
}

fn file(slice: usize) -> String {
    format!("slice-{slice}.yaml")
}
