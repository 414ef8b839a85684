//! `cargo xtask test`: every check and test that can run on this machine, as one command with one verdict.
//!
//! Tests come in layers ([`layer`]), cheapest first. Cargo builds each test program once, and this program
//! runs it ([`run`]). Cargo itself stops at the first program that fails. It also knows no test that skips
//! itself for want of a kernel feature, and cannot list the tests that did not run. A skip without a reason
//! in this machine fails the run ([`skips`]), since a suite that silently tests less is worse than a failure.
//! The last line is always `N passed, N failed, N skipped`.
//!
//! At the end the oldest kernels run one test each in a guest ([`crate::vm`]).
//!
//! Tests on real traffic measure times, and the machine may pause meanwhile. So up to [`RUN_AGAIN_AT_MOST`]
//! failed ones run again, alone, at the end. The summary names a test that passes then. Such a test shows a
//! fault of the test or of the code, but the run passes. A unit test does not run again.

mod checks;
pub mod layer;
mod libtest;
mod report;
pub mod run;
pub mod skips;
pub mod summary;
mod watch;

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use self::{
    layer::{Layer, Programs, TestProgram},
    summary::{Outcome, Summary},
};
use crate::{
    setup::{self, unpacked},
    vm,
};

#[derive(Args)]
pub struct Options {
    /// Run only tests whose name, or whose program's name, contains this
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
    /// Run only this layer
    #[arg(long)]
    layer: Option<Layer>,
    /// Do not run a failed test again
    #[arg(long)]
    once: bool,
    /// Show the output of tests while they run; with `--layer kernel` also each decision of the programs
    #[arg(long, short)]
    verbose: bool,
}

/// Runs the tests that the options select. An error counts as a failure of the run, so that the last line is
/// printed.
#[expect(clippy::unnecessary_wraps, reason = "every verb returns a result")]
pub fn run(options: &Options) -> Result<ExitCode> {
    let mut summary = Summary::default();
    if let Err(error) = run_all(options, &mut summary) {
        fail(&mut summary, "set-up and build", &format!("{error:#}"));
    }
    if summary.is_empty() {
        fail(
            &mut summary,
            "selection",
            "no test matches the filter and the layer",
        );
    }
    print!("{}", summary.render(skips::is_expected));
    Ok(if summary.is_success(skips::is_expected) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Counts an error that made the run incomplete as a failed test.
fn fail(summary: &mut Summary, what: &str, error: &str) {
    eprintln!("error: {error}");
    summary.add("xtask", what, Outcome::Failed(error.to_owned()));
}

fn run_all(options: &Options, summary: &mut Summary) -> Result<()> {
    setup::run()?;
    if options.filter.is_none() && options.layer.is_none_or(|layer| layer == Layer::Host) {
        checks::run(summary);
    }
    // A test compares the plugin with them.
    unpacked::stock_plugins()?;
    let Programs { mut tests, millrace } =
        layer::build(options.verbose && options.layer == Some(Layer::Kernel))?;
    tests.retain(|program| options.layer.is_none_or(|layer| layer == program.layer));
    tests.sort_by(|a, b| (a.layer, &a.name).cmp(&(b.layer, &b.name)));
    let mut runner = run::Runner::new(millrace.clone(), options.verbose);
    for program in &tests {
        runner.run(program, filter_for(program, options.filter.as_deref()), summary)?;
    }
    if options.filter.is_none() && options.layer.is_none() {
        vm::in_tests(&tests, &millrace, summary);
    }
    if !options.once {
        run_again(&mut runner, &tests, summary)?;
    }
    Ok(())
}

/// More failures than this are no accident.
const RUN_AGAIN_AT_MOST: usize = 3;

/// Runs failed tests on real traffic once more, one test at a time.
fn run_again(runner: &mut run::Runner, tests: &[TestProgram], summary: &mut Summary) -> Result<()> {
    if summary.failed().count() > RUN_AGAIN_AT_MOST {
        return Ok(());
    }
    for failed in summary.failed() {
        let mut programs = tests.iter().filter(|program| program.layer != Layer::Host);
        if let Some(program) = programs.find(|program| program.name == failed.program)
            && runner.passes_alone(program, failed.test)?
        {
            *failed.outcome = Outcome::PassedAgain;
        }
    }
    Ok(())
}

/// The filter within a program; a filter that matches the program's name selects all its tests.
pub fn filter_for<'a>(program: &TestProgram, filter: Option<&'a str>) -> Option<&'a str> {
    filter.filter(|filter| !program.name.contains(filter))
}
