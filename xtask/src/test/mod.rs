//! `cargo xtask test`: every check and test that can run on this machine, as one command with one verdict.
//!
//! Tests come in layers ([`layer`]), cheapest first. Each test program is built once by cargo and then run
//! from here ([`run`]), because cargo stops at the first program that fails, knows no test that skips itself
//! for want of a kernel feature, and cannot say in the end what was run and what was not. A skip that this
//! machine does not explain fails the run ([`skips`]): a suite that quietly tests less is worse than one that
//! fails. The last line is always `N passed, N failed, N skipped`.
//!
//! Tests on real traffic measure times, and a machine may stand still meanwhile. So up to
//! [`RUN_AGAIN_AT_MOST`] of them that failed are run again, alone, at the end. One that passes then is named
//! by the summary: it is a fault of the test or of the code, but the run passes. A unit test is not run
//! again.

mod checks;
pub mod layer;
mod libtest;
mod report;
pub mod run;
mod skips;
pub mod summary;
mod watch;

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use self::{
    layer::{Layer, Programs, TestProgram},
    summary::{Outcome, Summary},
};
use crate::setup::{self, unpacked};

#[derive(Args)]
pub struct Options {
    /// Run only tests whose name, or whose program's name, contains this
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
    /// Run only this layer
    #[arg(long)]
    layer: Option<Layer>,
    /// Do not run a test again that failed
    #[arg(long)]
    once: bool,
    /// Show what tests print while they run
    #[arg(long, short)]
    verbose: bool,
}

/// Runs what the options select. Errors are failures of the run like any other, so that the last line is
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

/// Counts what kept the run from being whole as a test that failed.
fn fail(summary: &mut Summary, what: &str, error: &str) {
    eprintln!("error: {error}");
    summary.add("xtask", what, Outcome::Failed(error.to_owned()));
}

fn run_all(options: &Options, summary: &mut Summary) -> Result<()> {
    setup::run()?;
    if options.filter.is_none() && options.layer.is_none_or(|layer| layer == Layer::Host) {
        checks::run(summary);
    }
    // A test compares with them.
    unpacked::stock_plugins()?;
    let Programs { mut tests, millrace } = layer::build()?;
    tests.retain(|program| options.layer.is_none_or(|layer| layer == program.layer));
    tests.sort_by(|a, b| (a.layer, &a.name).cmp(&(b.layer, &b.name)));
    let mut runner = run::Runner::new(millrace, options.verbose);
    for program in &tests {
        runner.run(program, filter_for(program, options.filter.as_deref()), summary)?;
    }
    if !options.once {
        run_again(&mut runner, &tests, summary)?;
    }
    Ok(())
}

/// More failures than this are no accident.
const RUN_AGAIN_AT_MOST: usize = 3;

/// Runs what failed on real traffic once more, one test at a time.
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

/// Naming a program selects all its tests.
pub fn filter_for<'a>(program: &TestProgram, filter: Option<&'a str>) -> Option<&'a str> {
    filter.filter(|filter| !program.name.contains(filter))
}
