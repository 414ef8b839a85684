//! `cargo xtask`: every task of this repository that is more than one cargo command.
//!
//! Each verb works from a clean clone: it sets up its requirements first (see [`setup`]) and reports each
//! step. It writes outside the repository only into Millrace's cache folder (see [`paths`]). No part of this
//! program runs on a node, and the agent does not depend on it.

#![forbid(unsafe_code)]

mod bench;
mod build;
mod cluster;
mod command;
mod demo;
mod e2e;
mod faults;
mod image;
mod kubernetes;
mod manifests;
mod paths;
mod setup;
mod step;
mod test;
mod vm;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "The tasks of the Millrace repository"
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install the requirements of builds and tests: packages, the eBPF compiler, bpf-linker
    Setup,
    /// Build `millrace` for use: optimised, with the eBPF programs inside
    Build {
        /// Build with the profile of tests and demo: less optimised, quicker to build
        #[arg(long)]
        dev: bool,
    },
    /// Make the container image, as an archive that runtimes import
    Image {
        /// The path of the archive (default: target/millrace-image.tar)
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Render manifests/install.yaml and uninstall.yaml from the folders base and uninstall
    Manifests {
        /// Change nothing, and fail if the files differ from the rendered ones
        #[arg(long)]
        check: bool,
    },
    /// Run every check and test that this machine can run
    Test(test::Options),
    /// Put each fault of xtask/faults.yaml into a copy of the last commit, and check that its test fails
    Faults {
        /// Only faults whose name, file or test contains this
        #[arg(value_name = "FILTER")]
        filter: Option<String>,
    },
    /// Show Millrace at work: nodes, pods, real traffic, every step checked
    Demo {
        /// Leave the nodes and pods running for experiments
        #[arg(long)]
        keep: bool,
    },
    /// Run benchmarks; the result is a table and a JSON file
    Bench {
        /// Use fewer repetitions and smaller sizes
        #[arg(long)]
        quick: bool,
        /// The path of the results in JSON
        #[arg(long, value_name = "FILE")]
        json: PathBuf,
        /// Another build of the agent, for comparison of packet paths; its plugin lies beside it
        #[arg(long, value_name = "FILE")]
        against: Option<PathBuf>,
        /// The benchmarks to run (default: all)
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
    /// Run the tests of the kernel and world layers on Debian's kernels, in virtual machines
    Vm(vm::Options),
    /// The command that `vm` runs inside its guests
    #[command(hide = true)]
    Guest(vm::guest::Options),
    /// Manage a real Kubernetes cluster on this machine
    #[command(subcommand)]
    Cluster(cluster::Verb),
    /// Run Kubernetes' end-to-end suite for networking in a cluster
    E2e(e2e::Options),
    /// Build the Go programs that tests and clusters run
    Kubernetes {
        /// Programs in place of those that tests need
        #[arg(value_name = "PROGRAM")]
        programs: Vec<kubernetes::Program>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Setup => setup::run()?,
        Verb::Build { dev } => build::run(dev)?,
        Verb::Image { output } => image::run(output.as_deref())?,
        Verb::Manifests { check } => manifests::run(check)?,
        Verb::Test(options) => return test::run(&options),
        Verb::Faults { filter } => return faults::run(filter.as_deref()),
        Verb::Demo { keep } => demo::run(keep)?,
        Verb::Bench {
            quick,
            json,
            against,
            names,
        } => bench::run(quick, &json, against.as_deref(), &names)?,
        Verb::Vm(options) => return vm::run(&options),
        Verb::Guest(options) => vm::guest::run(&options)?,
        Verb::Cluster(verb) => return cluster::run(verb),
        Verb::E2e(options) => return e2e::run(&options),
        Verb::Kubernetes { programs } => kubernetes::run(&programs)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Arguments;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
