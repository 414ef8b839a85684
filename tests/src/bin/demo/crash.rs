//! Act: a backend dies, its endpoint is removed, and requests reach the other backends from then on.

use std::io;

use anyhow::{Result, ensure};
use harness::{Place, Probe};

use crate::settle::settle;
use crate::shop::{self, Listed, SHOP, Shop};
use crate::spread::{self, MANY};
use crate::stage::Stage;

const VICTIM: &str = "shop-2";

pub fn play(stage: &mut Stage, shop: &mut Shop) -> Result<()> {
    stage.act(
        "A backend crashes",
        "Its program is killed. Until Kubernetes takes notice, connections to it are refused; once its endpoint is taken \
         out of the slices, new connections reach only the others.",
    );
    let to = shop::address(SHOP)?;
    stage.doing(format!("killing {VICTIM}"));
    shop.kill(VICTIM)?;
    let meanwhile = harness::spread(&shop.client, Probe::Tcp, to, 100);
    let refused: usize = meanwhile.failures.values().sum();
    ensure!(
        !meanwhile.answers.contains_key(VICTIM),
        "{VICTIM} is dead and still answers: {meanwhile:?}"
    );
    stage.say(&format!(
        "{VICTIM} is dead and still listed: {refused} of 100 connections are refused."
    ));

    stage.doing(format!("asking on while the endpoint of {VICTIM} is removed"));
    let client = Place::clone(&shop.client);
    let settled = settle(&client, || shop.list(VICTIM, Listed::No), io::Result::is_err)?;
    stage.result(&format!(
        "its endpoint is removed: {}",
        settled.describe("failure", "failures")
    ));
    let spread = spread::ask(&shop.client, SHOP, MANY)?;
    spread::even(shop, &spread)?;
    stage.bars(&spread::bars(shop, &spread));
    stage.result(&format!(
        "since then: {MANY} connections, {MANY} answers, from the four that are left"
    ));
    Ok(())
}
