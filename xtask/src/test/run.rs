//! Running one test program and turning what it reports into outcomes.
//!
//! Programs that make namespaces run in a mount namespace of their own: whatever they mount, a bpffs above
//! all, is gone with them, also when they are killed. A program that dies, or whose tests all hang, fails the
//! tests that were running and leaves the rest of the run alone.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::unistd::geteuid;

use super::{
    layer::{Layer, TestProgram},
    libtest::{self, Event},
    skips,
    summary::{Counts, Outcome, Summary},
};
use crate::{
    build::MILLRACE_BIN,
    command,
    kubernetes::{self, Assets},
    step::Step,
};

/// A program none of whose tests has begun or ended for this long is stuck.
const STUCK: Duration = Duration::from_mins(10);

/// How much of a dead program's log is shown.
const LINES_OF_LOG: usize = 40;

/// What test programs are run with.
pub struct World {
    millrace: PathBuf,
    /// Made when the first test wants it.
    kubernetes: Option<Assets>,
    verbose: bool,
}

impl World {
    pub fn new(millrace: PathBuf, verbose: bool) -> Self {
        Self {
            millrace,
            kubernetes: None,
            verbose,
        }
    }

    /// Runs the tests of a program that match, or says for each why it cannot be run.
    pub fn run(&mut self, program: &TestProgram, filter: Option<&str>, summary: &mut Summary) -> Result<()> {
        let mut list = Command::new(&program.executable);
        list.args(filter).args(["--list", "--format", "terse"]);
        let names = libtest::listed(&command::output(&mut list)?);
        if names.is_empty() {
            return Ok(());
        }
        if let Some(reason) = self.why_not(program.layer)? {
            eprintln!("– {}: {} skipped: {reason}", program.name, names.len());
            for name in names {
                summary.add(&program.name, name, Outcome::Skipped(reason.clone()));
            }
            return Ok(());
        }
        let step = Step::start(format!("{}: {}", program.layer.name(), program.name));
        let outcomes = self.outcomes(program, filter, names.len(), &step)?;
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

    fn why_not(&mut self, layer: Layer) -> Result<Option<String>> {
        if layer.needs_root() && !geteuid().is_root() {
            return Ok(Some(skips::NOT_ROOT.to_owned()));
        }
        if layer == Layer::Kubernetes && self.kubernetes.is_none() {
            self.kubernetes = Some(kubernetes::for_tests()?);
        }
        Ok(match &self.kubernetes {
            Some(Assets::Unavailable(reason)) if layer == Layer::Kubernetes => {
                Some(format!("{}: {reason}", skips::NO_KUBERNETES))
            }
            _ => None,
        })
    }

    fn command(&self, program: &TestProgram, filter: Option<&str>, skips: &Path) -> Command {
        let mut command = if program.layer.needs_root() {
            let mut unshare = Command::new("unshare");
            unshare
                .args(["--mount", "--propagation", "private", "--"])
                .arg(&program.executable);
            unshare
        } else {
            Command::new(&program.executable)
        };
        // Never one: libtest then runs tests on the main thread, where a test cannot tell its own name.
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
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if self.verbose {
            command.arg("--nocapture");
        }
        if let Some(Assets::Ready(folder)) = &self.kubernetes {
            command.env(kubernetes::ASSETS, folder);
        }
        command
    }

    fn outcomes(
        &self,
        program: &TestProgram,
        filter: Option<&str>,
        planned: usize,
        step: &Step,
    ) -> Result<Vec<(String, Outcome)>> {
        let skips_file = program.executable.with_extension("skips");
        let log_file = program.executable.with_extension("log");
        if skips_file.exists() {
            fs::remove_file(&skips_file).with_context(|| format!("removing {}", skips_file.display()))?;
        }
        let mut log = File::create(&log_file).with_context(|| format!("creating {}", log_file.display()))?;
        let mut command = self.command(program, filter, &skips_file);
        if !self.verbose {
            command.stderr(
                log.try_clone()
                    .with_context(|| format!("sharing {}", log_file.display()))?,
            );
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.executable.display()))?;
        let lines = lines_of(&mut child);
        let mut report = Report::default();
        let death = loop {
            let line = match lines.recv_timeout(STUCK) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    child.kill().with_context(|| format!("ending {}", program.name))?;
                    break Some(format!(
                        "no test of this program ended within {} minutes",
                        STUCK.as_secs() / 60
                    ));
                }
                Err(RecvTimeoutError::Disconnected) => break Some("the test program died".to_owned()),
            };
            let (noise, event) = libtest::parse(&line);
            if self.verbose && !noise.is_empty() {
                eprintln!("{noise}");
            } else if !noise.is_empty() {
                // The log is for reading after a failure; a full disk must not be one.
                let _ = writeln!(log, "{noise}");
            }
            if let Some(event) = event {
                if report.take(event) {
                    break None;
                }
                step.note(&format!(
                    "{}/{planned} {}",
                    report.outcomes.len(),
                    report.running()
                ));
            }
        };
        let status = child
            .wait()
            .with_context(|| format!("waiting for {}", program.name))?;
        if let Some(death) = death {
            let log = fs::read_to_string(&log_file).unwrap_or_default();
            report.died(&format!(
                "{death} ({status}); the end of {}:\n{}",
                log_file.display(),
                tail(&log)
            ));
        }
        report.skip(skips::read(&skips_file)?);
        Ok(report.outcomes)
    }
}

/// The lines that a program writes, until it ends. A child of its own that lives on may hold the pipe open,
/// so nobody waits for the reader.
fn lines_of(child: &mut Child) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
    }
    receiver
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES_OF_LOG)..].join("\n")
}

/// What is known about a program's tests so far.
#[derive(Default)]
struct Report {
    running: BTreeSet<String>,
    outcomes: Vec<(String, Outcome)>,
}

impl Report {
    /// Takes an event in; true if it was the last.
    fn take(&mut self, event: Event) -> bool {
        let (name, outcome) = match event {
            Event::Planned(_) => return false,
            Event::Finished => return true,
            Event::Started(name) => {
                self.running.insert(name);
                return false;
            }
            Event::Passed(name) => (name, Outcome::Passed),
            Event::Failed(name, output) => (name, Outcome::Failed(output)),
            Event::Ignored(name, reason) => (
                name,
                Outcome::Skipped(reason.unwrap_or_else(|| "ignored without a reason".to_owned())),
            ),
        };
        self.running.remove(&name);
        self.outcomes.push((name, outcome));
        false
    }

    fn running(&self) -> String {
        self.running
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// The program is gone before it was finished: what ran then has failed, or else the program as such.
    fn died(&mut self, why: &str) {
        let mut running = std::mem::take(&mut self.running);
        if running.is_empty() {
            running.insert("(the program as a whole)".to_owned());
        }
        self.outcomes.extend(
            running
                .into_iter()
                .map(|name| (name, Outcome::Failed(why.to_owned()))),
        );
    }

    /// Tests that skipped themselves look like passed ones. A skip under a name that is no test's is a
    /// mistake in that test, and must not be lost.
    fn skip(&mut self, reasons: impl IntoIterator<Item = (String, String)>) {
        for (test, reason) in reasons {
            // A test knows its path with the crate's name in front, libtest without.
            let within = test.split_once("::").map_or(test.as_str(), |(_, path)| path);
            match self
                .outcomes
                .iter_mut()
                .find(|(name, _)| *name == test || name == within)
            {
                Some((_, outcome @ Outcome::Passed)) => *outcome = Outcome::Skipped(reason),
                Some(_) => {}
                None => {
                    let why = format!("a skip was reported for this name, which is no test's: {reason}");
                    self.outcomes.push((test, Outcome::Failed(why)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, Outcome, Report};

    fn report(events: impl IntoIterator<Item = Event>) -> Report {
        let mut report = Report::default();
        for event in events {
            report.take(event);
        }
        report
    }

    fn outcome<'a>(report: &'a Report, test: &str) -> &'a Outcome {
        let found = report.outcomes.iter().find(|(name, _)| name == test);
        &found.expect("the test has an outcome").1
    }

    #[test]
    fn only_what_was_running_fails_with_its_program() {
        let mut report = report([
            Event::Started("a".into()),
            Event::Started("b".into()),
            Event::Passed("a".into()),
        ]);
        report.died("killed");
        assert_eq!(*outcome(&report, "a"), Outcome::Passed);
        assert_eq!(*outcome(&report, "b"), Outcome::Failed("killed".into()));
        assert_eq!(report.outcomes.len(), 2);
    }

    #[test]
    fn a_program_that_dies_between_tests_is_a_failure_too() {
        let mut report = report([Event::Planned(1)]);
        report.died("killed");
        assert_eq!(report.outcomes.len(), 1);
    }

    #[test]
    fn a_skip_turns_a_pass_into_a_skip_but_hides_no_failure() {
        let mut report = report([Event::Passed("a".into()), Event::Failed("b".into(), "x".into())]);
        let skip = |test: &str| (test.to_owned(), "no SCTP".to_owned());
        report.skip([skip("a"), skip("program::b"), skip("main")]);
        assert_eq!(*outcome(&report, "a"), Outcome::Skipped("no SCTP".into()));
        assert_eq!(*outcome(&report, "b"), Outcome::Failed("x".into()));
        assert!(matches!(outcome(&report, "main"), Outcome::Failed(_)));
    }

    #[test]
    fn ignoring_needs_a_reason() {
        let report = report([Event::Ignored("a".into(), None)]);
        assert_eq!(
            *outcome(&report, "a"),
            Outcome::Skipped("ignored without a reason".into())
        );
    }
}
