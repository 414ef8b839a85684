//! Step: a backend dies, its endpoint is removed, and requests reach the other backends from then on.

use std::io;

use anyhow::{Result, ensure};
use harness::{Place, Probe};

use crate::console::Console;
use crate::settle::settle;
use crate::spread::{self, MANY};
use crate::topology::{self, HTTP, Listed, Topology};

const VICTIM: &str = "shop-2";

pub fn run(console: &mut Console, topology: &mut Topology) -> Result<()> {
    console.step(
        "A backend crashes",
        "The demo kills its program. Until Kubernetes notices, the kernel refuses connections to it. After its endpoint \
         leaves the slices, new connections reach only the other backends.",
    );
    let to = topology::address(HTTP)?;
    console.doing(format!("killing {VICTIM}"));
    topology.kill(VICTIM)?;
    let meanwhile = harness::spread(&topology.client, Probe::Tcp, to, 100);
    let refused: usize = meanwhile.failures.values().sum();
    ensure!(
        !meanwhile.replies.contains_key(VICTIM),
        "{VICTIM} is dead and still replies: {meanwhile:?}"
    );
    console.paragraph(&format!(
        "{VICTIM} is dead and still listed: {refused} of 100 connections fail."
    ));

    console.doing(format!("removing the endpoint of {VICTIM} under requests"));
    let client = Place::clone(&topology.client);
    let settled = settle(&client, || topology.list(VICTIM, Listed::No), io::Result::is_err)?;
    console.result(&format!(
        "its endpoint is removed: {}",
        settled.describe("failure", "failures")
    ));
    let spread = spread::ask(&topology.client, HTTP, MANY)?;
    spread::even(topology, &spread)?;
    console.bars(&spread::bars(topology, &spread));
    console.result(&format!(
        "the next {MANY} connections get {MANY} replies from the four other backends"
    ));
    Ok(())
}
