//! Act: a backend is drained and no connection breaks, and then backends come back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::{LongFlows, Place};

use crate::settle::settle;
use crate::shop::{self, Listed, SHOP, Shop};
use crate::spread::{self, MANY};
use crate::stage::{Stage, time};

const LEAVING: &str = "shop-4";
const CRASHED: &str = "shop-2";
/// The act needs a flow on the backend that leaves. With this many flows, chance leaves it without one once
/// in a million runs.
const FLOWS: usize = 60;
const PATIENCE: Duration = Duration::from_secs(5);

pub fn play(stage: &mut Stage, shop: &mut Shop) -> Result<()> {
    stage.act(
        "A backend is drained, and all come back",
        "When Kubernetes ends a pod it first calls it terminating. Then nobody new is sent to it, but whoever is connected \
         goes on until done: that is what makes a rolling update painless.",
    );
    stage.doing(format!("opening {FLOWS} long connections"));
    let flows = LongFlows::start(
        &shop.client,
        shop::address(SHOP)?,
        FLOWS,
        Duration::from_millis(10),
    )?;
    let held = flows.backends().get(LEAVING).copied().unwrap_or(0);
    ensure!(
        held > 0,
        "none of {FLOWS} connections leads to {LEAVING}: {:?}",
        flows.backends()
    );
    flows.wait_progress(PATIENCE);

    stage.doing(format!("asking on while {LEAVING} is called terminating"));
    let client = Place::clone(&shop.client);
    let settled = settle(
        &client,
        || shop.list(LEAVING, Listed::Terminating),
        |outcome| outcome.as_ref().is_ok_and(|answer| answer.backend == LEAVING),
    )?;
    stage.result(&format!(
        "{LEAVING} is called terminating: {}",
        settled.describe("new connection to it", "new connections to it")
    ));
    let spread = spread::ask(&shop.client, SHOP, MANY)?;
    spread::even(shop, &spread)?;
    stage.bars(&spread::bars(shop, &spread));
    stage.doing(format!("talking on over the connections to {LEAVING}"));
    let before = flows.report().exchanges;
    flows.wait_progress(PATIENCE);
    let report = flows.stop();
    ensure!(
        report.interruptions.is_empty(),
        "{}",
        report.interruptions.join("\n")
    );
    stage.result(&format!(
        "its {held} connections go on, as do all {FLOWS}: {} lines answered, 0 interrupted",
        report.exchanges - before
    ));

    stage.doing("bringing both backends back");
    shop.list(LEAVING, Listed::No)?;
    shop.kill(LEAVING)?;
    let revived = Instant::now();
    shop.revive(LEAVING)?;
    shop.revive(CRASHED)?;
    let taken = revived.elapsed();
    let spread = spread::ask(&shop.client, SHOP, MANY)?;
    spread::even(shop, &spread)?;
    stage.result(&format!(
        "{LEAVING} and {CRASHED} are started anew: {} later every node uses all five again",
        time(taken)
    ));
    Ok(())
}
