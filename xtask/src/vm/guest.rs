//! Inside a guest: runs the planned tests and reports each.
//!
//! The tests run as they do on the host, by the same [`Runner`]. `init` (see [`super::initramfs`]) has
//! prepared the guest. Only `init` and this program know that they run in a guest.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;

use super::report::{Line, Plan};
use crate::test::{filter_for, run::Runner, summary::Summary};

/// The interval of reports that the guest is alive.
const HEARTBEAT: Duration = Duration::from_secs(30);

#[derive(Args)]
pub struct Options {
    /// The path of the plan
    plan: std::path::PathBuf,
    /// The path of the serial port for reports
    port: std::path::PathBuf,
}

/// Carries out a plan. The last report says whether that succeeded.
pub fn run(options: &Options) -> Result<()> {
    let mut port = Port::open(&options.port)?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    port.send(&Line::Booted(release.trim().to_owned()))?;
    let result = carry_out(&options.plan, &mut port);
    port.send(&Line::End(result.err().map(|error| format!("{error:#}"))))
}

fn carry_out(plan: &Path, port: &mut Port) -> Result<()> {
    let text = fs::read_to_string(plan).with_context(|| format!("reading {}", plan.display()))?;
    let plan: Plan = serde_json::from_str(&text).context("reading the plan")?;
    let mut runner = Runner::new(plan.millrace, plan.verbose);
    for program in &plan.programs {
        let mut summary = Summary::default();
        let filter = filter_for(program, plan.filter.as_deref());
        port.while_running(&program.name, || runner.run(program, filter, &mut summary))?;
        for (program, test, outcome) in summary.into_entries() {
            port.send(&Line::Ended {
                program,
                test,
                outcome,
            })?;
        }
    }
    Ok(())
}

/// The serial port that the host reads.
struct Port(File);

impl Port {
    fn open(path: &Path) -> Result<Self> {
        let port = OpenOptions::new().write(true).open(path);
        port.map(Self)
            .with_context(|| format!("opening {}", path.display()))
    }

    /// Reports at intervals that the guest is alive while `work` runs. The runner in the guest watches for
    /// progress.
    fn while_running<T>(&self, program: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut port = Self(self.0.try_clone().context("sharing the port")?);
        let line = Line::Running(program.to_owned());
        port.send(&line)?;
        let (done, is_done) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                while is_done.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                    // If the host does not read the port, there is no remedy here.
                    let _ = port.send(&line);
                }
            });
            let result = work();
            drop(done);
            result
        })
    }

    fn send(&mut self, line: &Line) -> Result<()> {
        writeln!(self.0, "{}", line.encode()).context("reporting to the host")
    }
}
