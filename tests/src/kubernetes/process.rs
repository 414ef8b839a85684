//! A program of the control plane. Its log goes to a file, whose end is shown when a test panics. It is ended
//! by SIGKILL, which all these programs tolerate.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

/// How many lines of a log a panic shows.
const LOG_TAIL: usize = 15;

pub(super) struct Process {
    child: Child,
    log: PathBuf,
    kept: Arc<AtomicBool>,
}

impl Process {
    pub(super) fn start(mut command: Command, log: PathBuf, kept: Arc<AtomicBool>) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("opening {}", log.display()))?;
        let output = file.try_clone().context("duplicating a log")?;
        command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(file)
            .process_group(0);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        Ok(Self { child, log, kept })
    }

    /// Panics if the program has ended, so that a caller does not wait for it in vain.
    #[track_caller]
    pub(super) fn assert_running(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            panic!(
                "the program that logs to {} has ended: {status}",
                self.log.display()
            );
        }
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n");
            eprintln!("--- {} ends with:\n{tail}\n---", self.log.display());
        }
        if !self.kept.load(Ordering::Relaxed) {
            // The program may have ended by itself.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
