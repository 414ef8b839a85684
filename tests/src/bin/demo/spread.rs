//! Step: new connections are spread evenly over all backends, from pods and nodes, over IPv4 and IPv6.

use std::time::Instant;

use anyhow::{Result, ensure};
use harness::{Place, Probe, Spread, uniform_p_value};

use crate::console::{Bar, Console, time};
use crate::topology::{self, HTTP, HTTP6, Topology};

pub const MANY: usize = 1000;

/// A spread less probable than this counts as uneven. Chance alone gets there once in a million runs.
const UNEVEN: f64 = 1e-6;

pub fn run(console: &mut Console, topology: &mut Topology) -> Result<()> {
    console.step(
        "Backends get equal shares of requests",
        "No machine has the Service's address. When a pod connects to it, an eBPF program replaces it by the address of \
         a random backend. The connection needs no further translation.",
    );
    for (place, kind) in topology.clients() {
        for (to, family) in [(HTTP, "IPv4"), (HTTP6, "IPv6")] {
            let what = format!("{MANY} connections from {kind} over {family}");
            console.doing(format!("making {what}"));
            let started = Instant::now();
            let spread = ask(place, to, MANY)?;
            let each = time(started.elapsed() / MANY as u32);
            even(topology, &spread)?;
            if (to, kind) == (HTTP, "a pod") {
                console.bars(&bars(topology, &spread));
            }
            console.result(&format!("{what}: all get replies, {each} each, in equal shares"));
        }
    }
    console.doing("asking a backend for the client's address");
    let reply = topology.client.ask(Probe::Tcp, topology::address(HTTP)?)?;
    ensure!(
        reply.peer.ip() == topology.client.ip(),
        "{} is {} but a backend sees it as {}",
        topology.client.name(),
        topology.client.ip(),
        reply.peer
    );
    console.result(&format!(
        "{} sees the client's own address, {}: no proxy is in between",
        reply.backend,
        reply.peer.ip()
    ));
    Ok(())
}

/// Asks by new connections; every one must be answered.
pub fn ask(place: &Place, to: &str, count: usize) -> Result<Spread> {
    let spread = harness::spread(place, Probe::Tcp, topology::address(to)?, count);
    ensure!(
        spread.failures.is_empty(),
        "{count} connections to {to}: {:?}",
        spread.failures
    );
    Ok(spread)
}

/// Whether exactly the backends that take requests have answered, and the spread over them fits an even
/// choice.
pub fn even(topology: &Topology, spread: &Spread) -> Result<()> {
    let (expected, found) = (topology.open(), spread.backends());
    ensure!(found == expected, "{expected:?} must reply, {found:?} did");
    let p = uniform_p_value(spread.replies.values().copied());
    ensure!(
        p > UNEVEN,
        "the spread is uneven (p = {p:e}): {:?}",
        spread.replies
    );
    Ok(())
}

/// Answers per backend, including backends that gave none.
pub fn bars(topology: &Topology, spread: &Spread) -> Vec<Bar> {
    let bar = |backend: &topology::Backend| Bar {
        label: format!("{} on {}", backend.pod.name(), backend.pod.node().name()),
        value: spread.replies.get(backend.pod.name()).copied().unwrap_or(0),
        note: backend.state().to_owned(),
    };
    topology.backends.iter().map(bar).collect()
}
