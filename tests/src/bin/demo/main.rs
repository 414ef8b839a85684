//! The demo: a sequence of steps that shows Millrace at work.
//!
//! Nodes, pods and clients are network namespaces of a world (see [`harness`]), and each node runs a real
//! agent. Every number is measured while it is shown. A step announces a property and why it matters,
//! demonstrates it, and checks it. The first failed check ends the demo. The message then names the step, the
//! action and the cause, and the logs of the agents follow.
//!
//! A step is a file here, with one function that takes the [`Console`] and the [`Topology`]. All steps share
//! one topology: a step that changes it restores it.
#![forbid(unsafe_code)]

mod attempt;
mod console;
mod crash;
mod datagrams;
mod drain;
mod instructions;
mod opening;
mod programmed;
mod restart;
mod settle;
mod spread;
mod topology;
mod traced;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;

use attempt::attempt;
use console::{Console, Pace};
use topology::Topology;

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

type Step = fn(&mut Console, &mut Topology) -> Result<()>;

const STEPS: [Step; 8] = [
    opening::run,
    spread::run,
    crash::run,
    drain::run,
    restart::run,
    traced::run,
    datagrams::run,
    programmed::run,
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    attempt::catch_panics();
    let mut console = Console::new(if arguments.fast {
        Pace::Fast
    } else {
        Pace::Readable
    });
    match run_steps(&mut console, arguments.keep) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console.failed(&error);
            ExitCode::FAILURE
        }
    }
}

fn run_steps(console: &mut Console, keep: bool) -> Result<()> {
    if let Some(reason) = harness::skip::missing() {
        bail!("the demo cannot run here: {reason}");
    }
    console.title("Millrace: Kubernetes Services, balanced in the kernel by eBPF");
    console.doing("making three nodes with their pods");
    let mut topology = attempt(|| Ok(Topology::build()))?;
    let outcome = STEPS
        .iter()
        .try_for_each(|step| attempt(|| step(console, &mut topology)));
    match &outcome {
        Ok(()) => console.finished(),
        Err(_) => topology.logs().iter().for_each(|log| console.attach(log)),
    }
    if keep {
        console.note(&instructions::instructions(topology));
    } else if outcome.is_ok() {
        console.note("To play in it yourself: cargo xtask demo --keep\n");
    }
    outcome
}
