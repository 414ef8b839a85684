//! Cgroups: every place has its own, below the world's, below the cgroup v2 root. A socket belongs for good
//! to the cgroup of the process that created it. Cgroup-attached programs go by that cgroup.
//!
//! No controller is enabled, so processes may live at every level.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// The mount point of cgroup v2: `/sys/fs/cgroup` on most machines. It differs where version 1 controllers
/// are still in use.
pub(crate) fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    // proc(5): fields up to " - " end with mount point (5th), then the file system type follows.
    let found = mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        filesystem
            .starts_with("cgroup2 ")
            .then(|| mount.split(' ').nth(4))
            .flatten()
    });
    match found {
        Some(path) => Ok(PathBuf::from(path)),
        None => bail!("no cgroup v2 is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified"),
    }
}

/// Makes a cgroup, with its parents.
pub(crate) fn create(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("making cgroup {}", path.display()))
}

/// Moves the calling process into a cgroup.
pub(crate) fn join(path: &Path) -> Result<()> {
    fs::write(path.join("cgroup.procs"), "0").with_context(|| format!("joining cgroup {}", path.display()))
}

/// Kills every process in a cgroup and below it, each by its id, and waits until they have ended.
pub(crate) fn kill_all(path: &Path) -> Result<()> {
    wait::poll(Duration::from_secs(10), || match kill_once(path).as_slice() {
        [] => Ok(()),
        left => Err(anyhow!(
            "ending the processes of cgroup {}: {left:?} survive SIGKILL",
            path.display()
        )),
    })
}

/// Removes a cgroup with its children and the processes that are left in them.
pub(crate) fn remove(path: &Path) -> Result<()> {
    wait::poll(Duration::from_secs(10), || {
        // A process that was starting may have joined after all others were killed.
        kill_once(path);
        descendants(path).iter().rev().try_for_each(fs::remove_dir)
    })
    .with_context(|| format!("removing cgroup {}", path.display()))
}

/// Sends SIGKILL to every process in a cgroup and below it, and returns their ids.
fn kill_once(path: &Path) -> Vec<i32> {
    let pids: Vec<i32> = descendants(path)
        .iter()
        .flat_map(|group| processes(group))
        .collect();
    for &pid in &pids {
        // ESRCH: it ended by itself meanwhile.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    pids
}

/// `path` and all cgroups below it, parents first; none if it does not exist.
fn descendants(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if path.is_dir() {
        found.push(path.to_owned());
    }
    let mut next = 0;
    while let Some(group) = found.get(next) {
        let children = fs::read_dir(group).into_iter().flatten().flatten();
        let dirs: Vec<_> = children
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .collect();
        found.extend(dirs.iter().map(fs::DirEntry::path));
        next += 1;
    }
    found
}

fn processes(group: &Path) -> Vec<i32> {
    let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    listed.lines().filter_map(|line| line.parse().ok()).collect()
}
