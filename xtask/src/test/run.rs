//! Running the tests of one program: whether this machine can, the environment of the tests, and the
//! displayed output.
//!
//! Programs that make namespaces run in a mount namespace of their own. So their mounts, above all a bpffs,
//! disappear with them, also when they are killed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result};
use nix::unistd::geteuid;

use super::{
    layer::{Layer, TestProgram},
    libtest, skips,
    summary::{Counts, Outcome, Summary},
    watch::{self, Log},
};
use crate::{
    build::MILLRACE_BIN,
    command,
    kubernetes::{self, Assets},
    setup::unpacked,
    step::Step,
};

/// The environment of test programs.
pub struct Runner {
    millrace: PathBuf,
    /// The Kubernetes programs, made when the first test needs them.
    kubernetes: Option<Assets>,
    /// The programs of container runtimes, made when the first test needs them.
    runtimes: Option<Assets>,
    verbose: bool,
}

/// The tests that need a container runtime.
const WITH_CONTAINERS: &str = "tests/container_runtimes";

impl Runner {
    pub fn new(millrace: PathBuf, verbose: bool) -> Self {
        Self {
            millrace,
            kubernetes: None,
            runtimes: None,
            verbose,
        }
    }

    /// Runs the matching tests of a program, or records for each the reason why it cannot run.
    pub fn run(&mut self, program: &TestProgram, filter: Option<&str>, summary: &mut Summary) -> Result<()> {
        let mut list = Command::new(&program.executable);
        list.args(filter).args(["--list", "--format", "terse"]);
        let names = libtest::listed(&command::output(&mut list)?);
        if names.is_empty() {
            return Ok(());
        }
        if let Some(reason) = self.why_not(program)? {
            eprintln!("– {}: {} skipped: {reason}", program.name, names.len());
            for name in names {
                summary.add(&program.name, name, Outcome::Skipped(reason.clone()));
            }
            return Ok(());
        }
        let step = Step::start(format!("{}: {}", program.layer.name(), program.name));
        let outcomes = self.outcomes(program, filter.as_slice(), names.len(), &step)?;
        let mut counts = Counts::default();
        for (_, outcome) in &outcomes {
            counts.add(outcome);
        }
        let mark = if counts.failed == 0 { '✔' } else { '✘' };
        step.end(
            mark,
            &format!("{}: {}: {counts}", program.layer.name(), program.name),
        );
        for (name, outcome) in outcomes {
            if let Outcome::Failed(output) = &outcome {
                eprintln!("\n✘ {}: {name}\n{}\n", program.name, output.trim_end());
            }
            summary.add(&program.name, name, outcome);
        }
        Ok(())
    }

    /// Whether a test passes with no other one beside it.
    pub fn passes_alone(&self, program: &TestProgram, test: &str) -> Result<bool> {
        let step = Step::start(format!("again: {}: {test}", program.name));
        let outcomes = self.outcomes(program, &["--exact", test], 1, &step)?;
        let passed = outcomes == [(test.to_owned(), Outcome::Passed)];
        step.end(
            if passed { '✔' } else { '✘' },
            &format!("again: {}: {test}", program.name),
        );
        Ok(passed)
    }

    fn why_not(&mut self, program: &TestProgram) -> Result<Option<String>> {
        let (layer, containers) = (program.layer, program.name == WITH_CONTAINERS);
        if layer.needs_root() && !geteuid().is_root() {
            return Ok(Some(skips::NOT_ROOT.to_owned()));
        }
        if layer == Layer::Kubernetes && self.kubernetes.is_none() {
            self.kubernetes = Some(kubernetes::for_tests()?);
        }
        if containers && self.runtimes.is_none() {
            self.runtimes = Some(kubernetes::for_runtimes()?);
        }
        if let Some(Assets::Unavailable(reason)) = self.runtimes.as_ref().filter(|_| containers) {
            return Ok(Some(format!("{}: {reason}", skips::NO_RUNTIMES)));
        }
        Ok(match &self.kubernetes {
            Some(Assets::Unavailable(reason)) if layer == Layer::Kubernetes => {
                Some(format!("{}: {reason}", skips::NO_KUBERNETES))
            }
            _ => None,
        })
    }

    fn command(&self, program: &TestProgram, filter: &[&str], skips: &Path) -> Command {
        let mut command = if program.layer.needs_root() {
            let mut unshare = Command::new("unshare");
            unshare
                .args(["--mount", "--propagation", "private", "--"])
                .arg(&program.executable);
            unshare
        } else {
            Command::new(&program.executable)
        };
        // At least two: with one thread, libtest runs tests on the main thread, where a test cannot find its
        // own name.
        let threads = thread::available_parallelism().map_or(2, |cpus| cpus.get().max(2));
        command
            .args(filter)
            .args(libtest::ARGUMENTS)
            .arg(format!("--test-threads={threads}"))
            .current_dir(&program.folder)
            .env("CARGO_MANIFEST_DIR", &program.folder)
            .env(libtest::ENABLED_BY, "1")
            .env(MILLRACE_BIN, &self.millrace)
            .env(skips::FILE, skips)
            .envs(unpacked::unpacked_stock_plugins().map(|root| (unpacked::STOCK_PLUGINS, root)))
            .stdin(Stdio::null());
        if self.verbose {
            command.arg("--nocapture");
        }
        if let Some(Assets::Ready(folder)) = &self.kubernetes {
            command.env(kubernetes::ASSETS, folder);
        }
        if let Some(Assets::Ready(folders)) = &self.runtimes {
            command.env(kubernetes::RUNTIMES, folders);
        }
        command
    }

    /// The outcome of each test of a program whose name contains one of the filters.
    pub fn outcomes(
        &self,
        program: &TestProgram,
        filter: &[&str],
        planned: usize,
        step: &Step,
    ) -> Result<Vec<(String, Outcome)>> {
        let skips_file = program.executable.with_extension("skips");
        if skips_file.exists() {
            fs::remove_file(&skips_file).with_context(|| format!("removing {}", skips_file.display()))?;
        }
        let command = self.command(program, filter, &skips_file);
        let log = if self.verbose {
            Log::screen()
        } else {
            Log::file(program.executable.with_extension("log"))?
        };
        let mut report = watch::watch(command, log, planned, step)?;
        report.skip(skips::read(&skips_file)?);
        Ok(report.outcomes)
    }
}
