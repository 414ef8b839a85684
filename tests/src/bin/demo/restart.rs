//! Step: the agents are killed under load, and no request fails.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::{ConnectStream, LongFlows, Probe};

use crate::console::{Console, time};
use crate::topology::{self, DNS, HTTP, Topology};

const FLOWS: usize = 100;
const PATIENCE: Duration = Duration::from_secs(20);

pub fn run(console: &mut Console, topology: &mut Topology) -> Result<()> {
    console.step(
        "All agents crash",
        "Agents only write entries into maps. The kernel's programs forward the packets, and both stay pinned. So an \
         agent can crash and restart under full load.",
    );
    console.doing("starting the load");
    let (http, dns) = (topology::address(HTTP)?, topology::address(DNS)?);
    let flows = LongFlows::start(&topology.client, http, FLOWS, Duration::from_millis(20))?;
    let pause = Duration::from_millis(1);
    let streams = [
        ConnectStream::start(&topology.client, Probe::Tcp, http, pause),
        ConnectStream::start(&topology.client, Probe::Udp, dns, pause),
        ConnectStream::start(topology.world.node(2), Probe::Tcp, http, pause),
    ];
    for stream in &streams {
        stream.wait_more(20, PATIENCE);
    }
    console.doing("killing the agents, by SIGKILL");
    for agent in &mut topology.agents {
        agent.kill();
    }
    let before = request_count(&streams);
    for stream in &streams {
        stream.wait_more(200, PATIENCE);
    }
    flows.wait_progress(PATIENCE);
    console.doing("counting failures while no agent runs");
    check_no_failures(&streams, &flows)?;
    let orphaned = request_count(&streams) - before;
    console.result(&format!(
        "no agent runs, and {orphaned} new connections and datagrams get replies"
    ));

    console.doing("starting the agents again");
    let started = Instant::now();
    for agent in &mut topology.agents {
        agent.start_again();
    }
    for agent in &mut topology.agents {
        agent.wait_ready(PATIENCE);
    }
    let ready = started.elapsed();
    for agent in &topology.agents {
        let writes = &agent.cli(&["status"])["writes"]["sinceStart"];
        ensure!(
            writes == 0,
            "the restarted agent on {} wrote to maps: {writes}",
            agent.node().name()
        );
    }
    flows.wait_progress(PATIENCE);
    console.doing("counting failures in the end");
    check_no_failures(&streams, &flows)?;
    console.result(&format!(
        "the agents are ready again after {}, with 0 writes to maps",
        time(ready)
    ));
    console.result(&format!(
        "{} new connections and datagrams from a pod and a node: 0 failed",
        request_count(&streams)
    ));
    let report = flows.stop();
    console.result(&format!(
        "{FLOWS} long connections, {} replies: 0 interruptions, longest wait {}",
        report.exchanges,
        time(report.longest_wait)
    ));
    Ok(())
}

fn request_count(streams: &[ConnectStream]) -> usize {
    streams.iter().map(|stream| stream.report().asked).sum()
}

fn check_no_failures(streams: &[ConnectStream], flows: &LongFlows) -> Result<()> {
    let mut harm: Vec<_> = streams
        .iter()
        .flat_map(|stream| stream.report().failures)
        .collect();
    harm.extend(flows.report().interruptions);
    ensure!(harm.is_empty(), "{} failures:\n{}", harm.len(), harm.join("\n"));
    Ok(())
}
