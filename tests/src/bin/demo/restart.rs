//! Act: the agents are killed under load, and no request fails.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::{ConnectStream, LongFlows, Probe};

use crate::shop::{self, SHOP, SHOP_UDP, Shop};
use crate::stage::{Stage, time};

const FLOWS: usize = 100;
const PATIENCE: Duration = Duration::from_secs(20);

pub fn play(stage: &mut Stage, shop: &mut Shop) -> Result<()> {
    stage.act(
        "All agents are killed",
        "The agents only write down where packets go; the kernel does the rest, with what is pinned in its memory. So an \
         agent can crash and come back under full load.",
    );
    stage.doing("starting the load");
    let (http, dns) = (shop::address(SHOP)?, shop::address(SHOP_UDP)?);
    let flows = LongFlows::start(&shop.client, http, FLOWS, Duration::from_millis(20))?;
    let pause = Duration::from_millis(1);
    let streams = [
        ConnectStream::start(&shop.client, Probe::Tcp, http, pause),
        ConnectStream::start(&shop.client, Probe::Udp, dns, pause),
        ConnectStream::start(shop.world.node(2), Probe::Tcp, http, pause),
    ];
    for stream in &streams {
        stream.wait_more(20, PATIENCE);
    }
    stage.doing("killing the agents, by SIGKILL");
    for agent in &mut shop.agents {
        agent.kill();
    }
    let before = asked(&streams);
    for stream in &streams {
        stream.wait_more(200, PATIENCE);
    }
    flows.wait_progress(PATIENCE);
    stage.doing("counting failures while no agent runs");
    unharmed(&streams, &flows)?;
    let orphaned = asked(&streams) - before;
    stage.result(&format!(
        "no agent runs, and {orphaned} new connections and datagrams were answered"
    ));

    stage.doing("starting the agents again");
    let started = Instant::now();
    for agent in &mut shop.agents {
        agent.start_again();
    }
    for agent in &mut shop.agents {
        agent.wait_ready(PATIENCE);
    }
    let ready = started.elapsed();
    for agent in &shop.agents {
        let writes = &agent.cli(&["status"])["writes"]["sinceStart"];
        ensure!(
            writes == 0,
            "the restarted agent on {} wrote to maps: {writes}",
            agent.node().name()
        );
    }
    flows.wait_progress(PATIENCE);
    stage.doing("counting failures in the end");
    unharmed(&streams, &flows)?;
    stage.result(&format!(
        "the agents are back, ready after {}: all was in place, they wrote 0 map entries",
        time(ready)
    ));
    stage.result(&format!(
        "{} new connections and datagrams from a pod and a node: 0 failed",
        asked(&streams)
    ));
    let report = flows.stop();
    stage.result(&format!(
        "{FLOWS} long connections, {} lines answered: 0 interrupted, longest wait {}",
        report.exchanges,
        time(report.longest_wait)
    ));
    Ok(())
}

fn asked(streams: &[ConnectStream]) -> usize {
    streams.iter().map(|stream| stream.report().asked).sum()
}

fn unharmed(streams: &[ConnectStream], flows: &LongFlows) -> Result<()> {
    let mut harm: Vec<_> = streams
        .iter()
        .flat_map(|stream| stream.report().failures)
        .collect();
    harm.extend(flows.report().interruptions);
    ensure!(harm.is_empty(), "{} failures:\n{}", harm.len(), harm.join("\n"));
    Ok(())
}
