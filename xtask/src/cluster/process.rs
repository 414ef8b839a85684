//! Processes that outlive the command that started them. The command that removes the cluster ends them.
//!
//! A file records the process id and the start time. So a process id that meanwhile belongs to another
//! process is left alone. Invariant: no process is ended by name.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const SUFFIX: &str = "pid";

/// A process of the cluster.
pub struct Process {
    note: PathBuf,
    pid: i32,
    started: u64,
}

impl Process {
    /// Starts a process that logs to `FOLDER/NAME.log`.
    pub fn start(command: &mut Command, folder: &Path, name: &str) -> Result<Self> {
        let log_path = folder.join(format!("{name}.log"));
        let log = File::create(&log_path).with_context(|| format!("creating {}", log_path.display()))?;
        let errors = log.try_clone().context("duplicating a log")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // A Ctrl-C at the terminal does not reach the cluster.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let pid = i32::try_from(child.id()).context("an invalid process id")?;
        let started = stat(pid)
            .map(|(_, started)| started)
            .with_context(|| format!("{name} ended at once: see {}", log_path.display()))?;
        let note = folder.join(format!("{name}.{SUFFIX}"));
        fs::write(&note, format!("{pid} {started}"))
            .with_context(|| format!("writing {}", note.display()))?;
        Ok(Self { note, pid, started })
    }

    /// All processes with a file in a folder.
    pub fn all(folder: &Path) -> Vec<Self> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        let mut found: Vec<_> = paths
            .filter(|path| path.extension().is_some_and(|extension| extension == SUFFIX))
            .filter_map(|path| Self::noted(&path))
            .collect();
        found.sort_by(|a, b| a.note.cmp(&b.note));
        found
    }

    /// The process with a file of this name in a folder.
    pub fn find(folder: &Path, name: &str) -> Option<Self> {
        Self::noted(&folder.join(format!("{name}.{SUFFIX}")))
    }

    fn noted(note: &Path) -> Option<Self> {
        let text = fs::read_to_string(note).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        Some(Self {
            note: note.to_owned(),
            pid: pid.parse().ok()?,
            started: started.parse().ok()?,
        })
    }

    pub fn name(&self) -> String {
        let name = self.note.file_stem().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Whether the process still runs.
    pub fn runs(&self) -> bool {
        // A zombie has ended, and its parent has not waited for it yet.
        stat(self.pid).is_some_and(|(state, started)| started == self.started && state != 'Z')
    }

    /// The first child of the process, if there is one.
    pub fn child(&self) -> Option<i32> {
        let path = format!("/proc/{pid}/task/{pid}/children", pid = self.pid);
        let children = fs::read_to_string(path).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Ends the process if it runs, without waiting.
    pub fn kill(&self) -> Result<()> {
        if !self.runs() {
            return Ok(());
        }
        self.signal(self.pid, Signal::SIGKILL)
    }

    /// Asks the process's child to end. The process waits for the child.
    pub fn end_child(&self) -> Result<()> {
        match self.child() {
            Some(child) if self.runs() => self.signal(child, Signal::SIGTERM),
            _ => Ok(()),
        }
    }

    fn signal(&self, pid: i32, signal: Signal) -> Result<()> {
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("ending {} ({pid})", self.name())),
        }
    }
}

/// State and start time of a process, from proc(5): fields 3 and 22. The name before them may contain any
/// character.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&text)
}

fn parse_stat(text: &str) -> Option<(char, u64)> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields.first()?.chars().next()?, fields.get(19)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::parse_stat;

    #[test]
    fn a_process_may_be_called_anything() {
        let text = "42 (a) b) S 1 42 42 0 -1 4194560 100 0 0 0 1 2 3 4 20 0 1 0 987654 1 2 3";
        assert_eq!(parse_stat(text), Some(('S', 987_654)));
        assert_eq!(parse_stat("42 (a"), None);
    }
}
