//! Step: a backend is drained and no connection breaks, and then backends come back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::{LongFlows, Place};

use crate::console::{Console, time};
use crate::settle::settle;
use crate::spread::{self, MANY};
use crate::topology::{self, HTTP, Listed, Topology};

const LEAVING: &str = "shop-4";
const CRASHED: &str = "shop-2";
/// The step needs a flow on the backend that leaves. With this many flows, chance leaves it without one once
/// in a million runs.
const FLOWS: usize = 60;
const PATIENCE: Duration = Duration::from_secs(5);

pub fn run(console: &mut Console, topology: &mut Topology) -> Result<()> {
    console.step(
        "A backend drains, and all backends return",
        "Before Kubernetes ends a pod, it marks the endpoint as terminating. The endpoint then gets no new connections. \
         Existing connections continue, so a rolling update interrupts no client.",
    );
    console.doing(format!("opening {FLOWS} long connections"));
    let flows = LongFlows::start(
        &topology.client,
        topology::address(HTTP)?,
        FLOWS,
        Duration::from_millis(10),
    )?;
    let held = flows.backends().get(LEAVING).copied().unwrap_or(0);
    ensure!(
        held > 0,
        "none of {FLOWS} connections reaches {LEAVING}: {:?}",
        flows.backends()
    );
    flows.wait_progress(PATIENCE);

    console.doing(format!("marking {LEAVING} as terminating under requests"));
    let client = Place::clone(&topology.client);
    let settled = settle(
        &client,
        || topology.list(LEAVING, Listed::Terminating),
        |outcome| outcome.as_ref().is_ok_and(|reply| reply.backend == LEAVING),
    )?;
    console.result(&format!(
        "{LEAVING} is terminating: {}",
        settled.describe("new connection to it", "new connections to it")
    ));
    let spread = spread::ask(&topology.client, HTTP, MANY)?;
    spread::even(topology, &spread)?;
    console.bars(&spread::bars(topology, &spread));
    console.doing(format!("using the connections to {LEAVING}"));
    let before = flows.report().exchanges;
    flows.wait_progress(PATIENCE);
    let report = flows.stop();
    ensure!(
        report.interruptions.is_empty(),
        "{}",
        report.interruptions.join("\n")
    );
    console.result(&format!(
        "its {held} connections continue, as do all {FLOWS}: {} replies, 0 interruptions",
        report.exchanges - before
    ));

    console.doing("bringing both backends back");
    topology.list(LEAVING, Listed::No)?;
    topology.kill(LEAVING)?;
    let revived = Instant::now();
    topology.revive(LEAVING)?;
    topology.revive(CRASHED)?;
    let taken = revived.elapsed();
    let spread = spread::ask(&topology.client, HTTP, MANY)?;
    spread::even(topology, &spread)?;
    console.result(&format!(
        "{LEAVING} and {CRASHED} start again: {} later every node uses all five backends",
        time(taken)
    ));
    Ok(())
}
