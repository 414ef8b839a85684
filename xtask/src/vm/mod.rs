//! `cargo xtask vm`: the tests of the kernel and world layers again, on the kernels that Debian ships.
//!
//! The test programs are those of `cargo xtask test`, built once on this machine. Each kernel boots in qemu
//! over this machine's own root, which is read-only with a layer in memory on top ([`initramfs`]). So every
//! path, tool and library in the guest is that of this machine. In the guest this same program runs the tests
//! ([`guest`]) and writes their outcomes to a serial port, one JSON line each ([`report`]). Only qemu is
//! installed; kernels are unpacked into the cache ([`kernels`]).
//!
//! A guest lacks only the features that [`kernels::Kernel::lacks`] names. A skip for any other reason fails
//! the run, and so does a guest that dies.

mod archive;
mod cpio;
pub mod guest;
mod initramfs;
mod kernels;
mod modules;
mod qemu;
mod report;

use std::{path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;

use self::{kernels::Kernel, report::Plan};
use crate::{
    paths, setup,
    test::{
        layer::{self, Layer, Programs, TestProgram},
        skips,
        summary::{Outcome, Summary},
    },
};

#[derive(Args)]
pub struct Options {
    /// Run only tests whose name, or whose program's name, contains this
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
    /// Run on this kernel only; can be given several times
    #[arg(long, value_name = "VERSION")]
    kernel: Vec<String>,
    /// Run only this layer: kernel or world (default: both)
    #[arg(long)]
    layer: Option<Layer>,
    /// Let the processor run the guests instead of emulating one: much faster, where it works
    #[arg(long)]
    kvm: bool,
    /// Show the output of tests, and the guests' consoles
    #[arg(long, short)]
    verbose: bool,
}

/// The layers whose results depend on the kernel, cheapest first. Tests with a control plane do not depend on
/// it.
const LAYERS: [Layer; 2] = [Layer::Kernel, Layer::World];

/// Runs the tests that the options select, one kernel after the other.
pub fn run(options: &Options) -> Result<ExitCode> {
    let kernels = kernels::select(&options.kernel)?;
    setup::run()?;
    setup::for_vm()?;
    let plan = plan(options)?;
    let mut summary = Summary::default();
    let mut guests = Vec::new();
    for kernel in &kernels {
        let result = on(kernel, &plan, options, &mut summary);
        if let Err(error) = result {
            eprintln!("error: Linux {}: {error:#}", kernel.name);
            let outcome = Outcome::Failed(format!("{error:#}"));
            summary.add(kernel.name, "(the guest as a whole)", outcome);
        }
        guests.push((kernel, std::mem::take(&mut summary)));
    }
    let mut success = true;
    for (kernel, found) in guests {
        let expected = |reason: &str| kernel.explains(reason);
        success &= found.is_success(expected) && !found.is_empty();
        print!("\nLinux {}:\n{}", kernel.name, found.render(expected));
    }
    Ok(if success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The kernels on which each `cargo xtask test` runs one test: the verifiers of the oldest accept the least.
const IN_TESTS: [&str; 2] = ["5.10", "6.1"];
/// That test loads each program, and each of them translates a packet and a reply.
const TEST_IN_TESTS: &str = "requests_and_replies_are_translated";

/// Boots the oldest kernels and runs one test on each. A machine that cannot get qemu or a kernel skips it.
pub fn in_tests(programs: &[TestProgram], millrace: &Path, summary: &mut Summary) {
    let options = Options {
        filter: Some(TEST_IN_TESTS.to_owned()),
        kernel: Vec::new(),
        layer: Some(Layer::Kernel),
        kvm: false,
        verbose: false,
    };
    let plan = Plan {
        programs: programs
            .iter()
            .filter(|program| program.layer == Layer::Kernel)
            .cloned()
            .collect(),
        millrace: millrace.to_owned(),
        filter: options.filter.clone(),
        verbose: options.verbose,
    };
    for name in IN_TESTS {
        let kernel = match ready(name) {
            Ok(kernel) => kernel,
            Err(error) => {
                let reason = format!("{}: {error:#}", skips::NO_GUESTS);
                summary.add(name, TEST_IN_TESTS, Outcome::Skipped(reason));
                continue;
            }
        };
        if let Err(error) = on(kernel, &plan, &options, summary) {
            let outcome = Outcome::Failed(format!("{error:#}"));
            summary.add(kernel.name, "(the guest as a whole)", outcome);
        }
    }
}

/// Installs qemu and fetches a kernel.
fn ready(name: &str) -> Result<&'static Kernel> {
    setup::for_vm()?;
    let kernel = kernels::find(name)?;
    kernels::fetch(kernel)?;
    Ok(kernel)
}

/// The plan for the guests.
fn plan(options: &Options) -> Result<Plan> {
    let Programs { mut tests, millrace } = layer::build(false)?;
    tests.retain(|program| {
        LAYERS.contains(&program.layer) && options.layer.is_none_or(|layer| layer == program.layer)
    });
    tests.sort_by(|a, b| (a.layer, &a.name).cmp(&(b.layer, &b.name)));
    Ok(Plan {
        programs: tests,
        millrace,
        filter: options.filter.clone(),
        verbose: options.verbose,
    })
}

/// Boots one kernel and records the outcomes of its tests.
fn on(kernel: &Kernel, plan: &Plan, options: &Options, summary: &mut Summary) -> Result<()> {
    let image = kernels::fetch(kernel)?;
    let directory = paths::repository()?.join("target/vm").join(kernel.name);
    std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let guest = initramfs::prepare(&image, plan, &directory)?;
    qemu::run(kernel, &guest, options, summary)
}

#[cfg(test)]
mod tests {
    use super::TEST_IN_TESTS;

    /// A guest whose filter matches no test would pass.
    #[test]
    fn the_test_of_the_guests_exists() {
        let source = include_str!("../../../proxy-agent/tests/packets/main.rs");
        assert!(source.contains(&format!("fn {TEST_IN_TESTS}(")));
    }
}
