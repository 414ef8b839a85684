//! The demo: a sequence of acts that shows Millrace at work.
//!
//! Nodes, pods and clients are network namespaces of a world (see [`harness`]), and each node runs a real
//! agent. Every number is measured while it is shown. An act announces a property and why it matters,
//! demonstrates it, and checks it. The first failed check ends the demo. The message then names the act, the
//! step and the cause, and the logs of the agents follow.
//!
//! An act is a file here, with one function that takes the [`Stage`] and the [`Shop`]. All acts share one
//! shop: an act that changes it restores it.
#![forbid(unsafe_code)]

mod attempt;
mod crash;
mod datagrams;
mod drain;
mod farewell;
mod opening;
mod programmed;
mod restart;
mod settle;
mod shop;
mod spread;
mod stage;
mod traced;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;

use attempt::attempt;
use shop::Shop;
use stage::{Pace, Stage};

/// See Millrace work: three nodes, real agents, real traffic, every step checked
#[derive(Parser)]
#[command(name = "demo")]
struct Arguments {
    /// Leave the nodes and pods in place to play with
    #[arg(long)]
    keep: bool,
    /// Leave no time to read
    #[arg(long)]
    fast: bool,
}

type Act = fn(&mut Stage, &mut Shop) -> Result<()>;

const ACTS: [Act; 8] = [
    opening::play,
    spread::play,
    crash::play,
    drain::play,
    restart::play,
    traced::play,
    datagrams::play,
    programmed::play,
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    attempt::catch_panics();
    let mut stage = Stage::new(if arguments.fast {
        Pace::Fast
    } else {
        Pace::Readable
    });
    match perform(&mut stage, arguments.keep) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            stage.failed(&error);
            ExitCode::FAILURE
        }
    }
}

fn perform(stage: &mut Stage, keep: bool) -> Result<()> {
    if let Some(reason) = harness::skip::missing() {
        bail!("the demo cannot run here: {reason}");
    }
    stage.title("Millrace: Kubernetes Services, balanced in the kernel by eBPF");
    stage.doing("making three nodes with their pods");
    let mut shop = attempt(|| Ok(Shop::build()))?;
    let outcome = ACTS.iter().try_for_each(|act| attempt(|| act(stage, &mut shop)));
    match &outcome {
        Ok(()) => stage.finished(),
        Err(_) => shop.logs().iter().for_each(|log| stage.attach(log)),
    }
    if keep {
        stage.note(&farewell::instructions(shop));
    } else if outcome.is_ok() {
        stage.note("To play in it yourself: cargo xtask demo --keep\n");
    }
    outcome
}
