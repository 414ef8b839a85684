//! `cargo xtask bench`: the costs of Millrace, measured on this machine.
//!
//! Every benchmark makes its own world of namespaces and runs the agent that operators run. Its figures go to
//! a table for people, with the limit of each figure, and to a JSON file for scripts and plots. A figure over
//! its limit is not a failure: the exit status says only whether everything could be measured.
#![forbid(unsafe_code)]

mod cni;
mod cpu;
mod figures;
mod machine;
mod packets;
mod quantiles;
mod sync;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;

use figures::Figures;

#[derive(Parser)]
#[command(name = "bench", about = "Measures Millrace")]
struct Arguments {
    /// Fewer repetitions and smaller sizes
    #[arg(long)]
    quick: bool,
    /// Where to write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Another build of the agent, whose packets are measured beside ours (`packets`)
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Measures on request, for another process of this program
    #[arg(long, hide = true)]
    subject: bool,
    /// Benchmarks (`cni`, `packets`, `sync`) or single quantities of one (`sync.cold`); default: all
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// A quantity and the function that measures it.
struct Quantity {
    name: &'static str,
    measure: fn(&mut Figures, &Effort) -> Result<()>,
}

/// The time that a run may take, and the build that it is compared with.
pub struct Effort {
    quick: bool,
    against: Option<PathBuf>,
}

impl Effort {
    /// Picks one of two values: for a quick run or for a whole run.
    fn pick<T>(&self, quick: T, whole: T) -> T {
        if self.quick { quick } else { whole }
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if let Some(missing) = harness::skip::missing() {
        bail!("{missing}");
    }
    if arguments.subject {
        return packets::serve();
    }
    let all = || {
        let first = cni::QUANTITIES.iter().chain(&packets::QUANTITIES);
        first.chain(&sync::QUANTITIES)
    };
    let wanted: Vec<_> = all()
        .filter(|quantity| is_wanted(quantity.name, &arguments.names))
        .collect();
    if wanted.is_empty() {
        let names: Vec<_> = all().map(|quantity| quantity.name).collect();
        bail!("no benchmark of that name; there are: {}", names.join(", "));
    }
    let machine = machine::describe()?;
    println!("{machine}");
    let mut figures = Figures::default();
    let effort = Effort {
        quick: arguments.quick,
        against: arguments.against.clone(),
    };
    let mut failed = Vec::new();
    for quantity in wanted {
        eprintln!("… {}", quantity.name);
        if let Err(error) = (quantity.measure)(&mut figures, &effort) {
            eprintln!("error: measuring {}: {error:#}", quantity.name);
            failed.push(quantity.name);
        }
    }
    // The table also shows the figures that were measured before a failure.
    print!("{}", figures.table());
    if let Some(path) = &arguments.json {
        figures.write(path, &machine)?;
    }
    if !failed.is_empty() {
        bail!("not everything could be measured: {}", failed.join(", "));
    }
    Ok(())
}

/// A name stands for itself and for all quantities below it.
fn is_wanted(name: &str, names: &[String]) -> bool {
    names.is_empty()
        || names.iter().any(|wanted| {
            name.strip_prefix(wanted.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
}
