//! Step: the scene, and the path from a YAML file to the first reply.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use harness::{Node, Place, Probe};

use crate::console::{Console, time};
use crate::topology::{self, HTTP, HTTP6, SERVICE, SERVICE_FILE, Topology};

const READY: Duration = Duration::from_secs(20);
const A_SECOND: Duration = Duration::from_secs(1);

pub fn run(console: &mut Console, topology: &mut Topology) -> Result<()> {
    console.step(
        "Three nodes and a Service",
        "Nodes and pods are network namespaces of this machine, with real sockets. Each node runs a real agent. In a \
         cluster, agents watch the API server. Here each agent watches a directory of YAML files.",
    );
    let lines = topology.world.nodes().iter().map(|node| line(topology, node));
    console.show(&lines.collect::<String>());
    console.doing("starting an agent on each node");
    let started = Instant::now();
    topology.agents = topology
        .world
        .nodes()
        .iter()
        .map(|node| node.agent().start())
        .collect();
    for agent in &mut topology.agents {
        agent.wait_ready(READY);
    }
    let count = topology.agents.len();
    console.result(&format!(
        "{count} agents are ready after {}",
        time(started.elapsed())
    ));
    console.command(&format!("cat {SERVICE_FILE}"), SERVICE);
    console.doing("waiting for the first reply of the Service");
    let written = Instant::now();
    topology.publish();
    for (place, _) in topology.clients() {
        for to in [HTTP, HTTP6] {
            first_reply(place, to, written)?;
        }
    }
    console.result(&format!(
        "three directories have the file; {} later pod and node get replies",
        time(written.elapsed())
    ));
    Ok(())
}

/// `n1  192.168.50.11  client, shop-1`
fn line(topology: &Topology, node: &Node) -> String {
    let mut pods = Vec::new();
    if topology.client.node().name() == node.name() {
        pods.push(topology.client.name());
    }
    let here = topology.backends.iter().map(|backend| &backend.pod);
    pods.extend(
        here.filter(|pod| pod.node().name() == node.name())
            .map(|pod| pod.name()),
    );
    let mut line = format!(
        "{}  {:<14}  pods {:<15}",
        node.name(),
        node.ip(),
        node.pod_cidrs()[0]
    );
    // write! to a String cannot fail.
    let _ = writeln!(line, "  {}", pods.join("  "));
    line
}

fn first_reply(place: &Place, to: &str, written: Instant) -> Result<()> {
    let address = topology::address(to)?;
    // The node drops a packet that comes too early, and the kernel sends it again only a second later. A new
    // question is faster, each time with twice the patience.
    let mut patience = Duration::from_millis(1);
    while let Err(error) = place.ask_within(Probe::Tcp, address, patience) {
        if written.elapsed() > A_SECOND {
            bail!("{to} does not reply within a second: {error}");
        }
        patience *= 2;
    }
    Ok(())
}
