//! Following one test program until it ends, normally or not.
//!
//! If a program dies, or none of its tests ends any more, the running tests fail and the rest of the run
//! continues. The program's output pipe does not show whether it lives, since a child may hold the pipe open.
//! So the process itself is checked at intervals.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{libtest, report::Report};
use crate::{command, step::Step};

/// A program whose tests neither begin nor end for this long is stuck.
const STUCK: Duration = Duration::from_mins(10);

/// The interval of checks on a silent program.
const LOOK: Duration = Duration::from_secs(1);

/// The number of lines of a dead program's log in an error.
const LINES_OF_LOG: usize = 40;

/// The destination of output that the program and its children write past libtest.
pub struct Log(Option<(PathBuf, File)>);

impl Log {
    /// The log goes to the screen as it arrives.
    pub fn screen() -> Self {
        Self(None)
    }

    /// The log goes to a file, for the analysis of a failure.
    pub fn file(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self(Some((path, file))))
    }

    fn stderr(&self) -> Result<Stdio> {
        match &self.0 {
            None => Ok(Stdio::inherit()),
            Some((path, file)) => {
                let copy = file
                    .try_clone()
                    .with_context(|| format!("sharing {}", path.display()))?;
                Ok(copy.into())
            }
        }
    }

    fn write(&mut self, line: &str) {
        match &mut self.0 {
            None => eprintln!("{line}"),
            // A full disk must not fail a test.
            Some((_, file)) => drop(writeln!(file, "{line}")),
        }
    }

    /// The end of the log, for an error.
    fn tail(&self) -> String {
        let Some((path, _)) = &self.0 else {
            return String::new();
        };
        let text = fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LINES_OF_LOG)..];
        format!("; the end of {}:\n{}", path.display(), tail.join("\n"))
    }
}

/// Runs a test program to its end.
pub fn watch(mut program: Command, mut log: Log, planned: usize, step: &Step) -> Result<Report> {
    program.stdout(Stdio::piped()).stderr(log.stderr()?);
    let name = command::describe(&program);
    let mut child = program
        .spawn()
        .with_context(|| format!("cannot start `{name}`"))?;
    let lines = lines_of(&mut child);
    let stuck = STUCK * slowness();
    let mut report = Report::default();
    let mut last_event = Instant::now();
    let death = loop {
        let line = match lines.recv_timeout(LOOK) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) if last_event.elapsed() > stuck => {
                child.kill().with_context(|| format!("ending `{name}`"))?;
                break Some(format!(
                    "no test of this program ended within {} minutes",
                    stuck.as_secs() / 60
                ));
            }
            Err(RecvTimeoutError::Timeout) => {
                match child.try_wait().with_context(|| format!("looking at `{name}`"))? {
                    None => continue,
                    Some(_) => break Some("the test program died".to_owned()),
                }
            }
            Err(RecvTimeoutError::Disconnected) => break Some("the test program died".to_owned()),
        };
        let (noise, event) = libtest::parse(&line);
        if !noise.is_empty() {
            log.write(noise);
        }
        if let Some(event) = event {
            last_event = Instant::now();
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
    let status = child.wait().with_context(|| format!("waiting for `{name}`"))?;
    if let Some(death) = death {
        report.died(&format!("{death} ({status}){}", log.tail()));
    }
    Ok(report)
}

/// The factor by which this machine may be slower than an idle one; tests use it too.
fn slowness() -> u32 {
    let given = std::env::var("MILLRACE_SLOWNESS");
    given.ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// The lines that a program writes, until it ends. A child that outlives it may hold the pipe open, so no
/// code waits for the reading thread.
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
