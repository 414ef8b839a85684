//! Act: the scene, and the path from a YAML file to the first answer.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use harness::{Node, Place, Probe};

use crate::shop::{self, SERVICE, SERVICE_FILE, SHOP, SHOP6, Shop};
use crate::stage::{Stage, time};

const READY: Duration = Duration::from_secs(20);
const A_SECOND: Duration = Duration::from_secs(1);

pub fn play(stage: &mut Stage, shop: &mut Shop) -> Result<()> {
    stage.act(
        "Three nodes and a Service",
        "Nodes and pods are network namespaces of this machine, with real sockets in them, and each node runs a real \
         agent. In a cluster the agents would listen to the API server; here each follows a directory of YAML files.",
    );
    let lines = shop.world.nodes().iter().map(|node| line(shop, node));
    stage.show(&lines.collect::<String>());
    stage.doing("starting an agent on each node");
    let started = Instant::now();
    shop.agents = shop
        .world
        .nodes()
        .iter()
        .map(|node| node.agent().start())
        .collect();
    for agent in &mut shop.agents {
        agent.wait_ready(READY);
    }
    let count = shop.agents.len();
    stage.result(&format!(
        "{count} agents are ready after {}",
        time(started.elapsed())
    ));
    stage.command(&format!("cat {SERVICE_FILE}"), SERVICE);
    stage.doing("waiting for the first answer after the Service was written");
    let written = Instant::now();
    shop.publish();
    for (place, _) in shop.askers() {
        for to in [SHOP, SHOP6] {
            first_answer(place, to, written)?;
        }
    }
    stage.result(&format!(
        "the file is put into the three directories; {} later pod and node have answers",
        time(written.elapsed())
    ));
    Ok(())
}

/// `n1  192.168.50.11  client, shop-1`
fn line(shop: &Shop, node: &Node) -> String {
    let mut pods = Vec::new();
    if shop.client.node().name() == node.name() {
        pods.push(shop.client.name());
    }
    let here = shop.backends.iter().map(|backend| &backend.pod);
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

fn first_answer(place: &Place, to: &str, written: Instant) -> Result<()> {
    let address = shop::address(to)?;
    // The node drops a packet that comes too early, and the kernel sends it again only a second later. A new
    // question is faster, each time with twice the patience.
    let mut patience = Duration::from_millis(1);
    while let Err(error) = place.ask_within(Probe::Tcp, address, patience) {
        if written.elapsed() > A_SECOND {
            bail!("{to} does not answer within a second: {error}");
        }
        patience *= 2;
    }
    Ok(())
}
