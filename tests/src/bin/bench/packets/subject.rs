//! A contender: a process of its own, since the environment decides which build of the agent a world runs.
//!
//! For each measurement the benchmark writes a line `SCENARIO KIND COUNT` with indices into [`Scenario::ALL`]
//! and [`Kind::ALL`]. The subject replies with a line, the value. It ends when its standard input ends.

use std::env;
use std::io::{BufRead as _, BufReader, Write as _, stdin, stdout};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::scenarios::{Kind, Scenario, Site};
use super::{SUBJECT, existing};

/// The benchmark's handle to a subject. The subject ends when the handle is dropped.
pub struct Subject {
    process: Child,
    // None only during the drop.
    requests: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
}

impl Subject {
    /// Starts a subject with another build of the agent, or with the build of this source tree.
    pub fn start(program: Option<&Path>) -> Result<Self> {
        let mut command = Command::new(env::current_exe().context("finding the benchmark's program")?);
        command.arg(SUBJECT).stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(program) = program {
            existing(program)?;
            // The plugin of a build is in the directory of its agent.
            command
                .env("MILLRACE_BIN", program)
                .env_remove("MILLRACE_CNI_BIN");
        }
        let mut process = command.spawn().context("starting a subject")?;
        let (requests, replies) = (process.stdin.take(), process.stdout.take());
        let replies = BufReader::new(replies.context("the subject's standard output")?);
        Ok(Self {
            process,
            requests,
            replies,
        })
    }

    pub fn measure(&mut self, scenario: Scenario, kind: Kind, count: usize) -> Result<f64> {
        let place = |found: Option<usize>| found.unwrap_or_default();
        let scenario = place(Scenario::ALL.iter().position(|other| *other == scenario));
        let kind = place(Kind::ALL.iter().position(|other| *other == kind));
        let requests = self.requests.as_mut().context("the subject's standard input")?;
        writeln!(requests, "{scenario} {kind} {count}").context("asking a subject")?;
        let mut line = String::new();
        self.replies
            .read_line(&mut line)
            .context("reading from a subject")?;
        match line.trim().parse() {
            Ok(value) => Ok(value),
            Err(_) if line.is_empty() => bail!("the subject has ended"),
            Err(_) => bail!("{}", line.trim()),
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        drop(self.requests.take());
        // The subject removes its world, and ends.
        let _ = self.process.wait();
    }
}

/// The subject's side: makes the world, and measures until standard input ends.
pub fn serve() -> Result<()> {
    let site = Site::new()?;
    for line in stdin().lines() {
        let line = line.context("reading what to measure")?;
        let reply = match measure(&site, &line) {
            Ok(value) => value.to_string(),
            Err(error) => format!("{error:#}"),
        };
        writeln!(stdout(), "{reply}").context("writing a value")?;
    }
    Ok(())
}

fn measure(site: &Site, line: &str) -> Result<f64> {
    let numbers: Vec<usize> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let &[scenario, kind, count] = numbers.as_slice() else {
        bail!("{line:?} is not SCENARIO KIND COUNT");
    };
    let scenario = *Scenario::ALL.get(scenario).context("no such scenario")?;
    let kind = *Kind::ALL.get(kind).context("no such kind")?;
    site.measure(scenario, kind, count)
}
