//! Act: new connections are spread evenly over all backends, from pods and nodes, over IPv4 and IPv6.

use std::time::Instant;

use anyhow::{Result, ensure};
use harness::{Place, Probe, Spread, uniform_p_value};

use crate::shop::{self, SHOP, SHOP6, Shop};
use crate::stage::{Bar, Stage, time};

pub const MANY: usize = 1000;

/// A spread less probable than this counts as uneven. Chance alone gets there once in a million runs.
const UNEVEN: f64 = 1e-6;

pub fn play(stage: &mut Stage, shop: &mut Shop) -> Result<()> {
    stage.act(
        "Requests are spread evenly",
        "The Service's address belongs to no machine. When a pod connects to it, a small program in the kernel puts the \
         address of a backend in its place, another one each time. From then on it is an ordinary connection.",
    );
    for (place, kind) in shop.askers() {
        for (to, family) in [(SHOP, "IPv4"), (SHOP6, "IPv6")] {
            let what = format!("{MANY} connections from {kind} over {family}");
            stage.doing(format!("making {what}"));
            let started = Instant::now();
            let spread = ask(place, to, MANY)?;
            let each = time(started.elapsed() / MANY as u32);
            even(shop, &spread)?;
            if (to, kind) == (SHOP, "a pod") {
                stage.bars(&bars(shop, &spread));
            }
            stage.result(&format!("{what}: all answered, {each} each, evenly spread"));
        }
    }
    stage.doing("asking a backend whom it sees");
    let answer = shop.client.ask(Probe::Tcp, shop::address(SHOP)?)?;
    ensure!(
        answer.peer.ip() == shop.client.ip(),
        "{} is {} but a backend sees it as {}",
        shop.client.name(),
        shop.client.ip(),
        answer.peer
    );
    stage.result(&format!(
        "{} sees the client by its own address, {}: nobody stands in between",
        answer.backend,
        answer.peer.ip()
    ));
    Ok(())
}

/// Asks by new connections; every one must be answered.
pub fn ask(place: &Place, to: &str, count: usize) -> Result<Spread> {
    let spread = harness::spread(place, Probe::Tcp, shop::address(to)?, count);
    ensure!(
        spread.failures.is_empty(),
        "{count} connections to {to}: {:?}",
        spread.failures
    );
    Ok(spread)
}

/// Whether exactly the backends that take requests have answered, and the spread over them fits an even
/// choice.
pub fn even(shop: &Shop, spread: &Spread) -> Result<()> {
    let (expected, found) = (shop.open(), spread.backends());
    ensure!(found == expected, "{expected:?} should answer, {found:?} did");
    let p = uniform_p_value(spread.answers.values().copied());
    ensure!(
        p > UNEVEN,
        "the spread is uneven (p = {p:e}): {:?}",
        spread.answers
    );
    Ok(())
}

/// Answers per backend, including backends that gave none.
pub fn bars(shop: &Shop, spread: &Spread) -> Vec<Bar> {
    let bar = |backend: &shop::Backend| Bar {
        label: format!("{} on {}", backend.pod.name(), backend.pod.node().name()),
        value: spread.answers.get(backend.pod.name()).copied().unwrap_or(0),
        note: backend.state().to_owned(),
    };
    shop.backends.iter().map(bar).collect()
}
