//! Removes a world by its tag alone. It runs in a process of its own (see [`crate::guard`]), so that the
//! removal does not depend on how the owner ended.
//!
//! A failed step does not stop the steps after it; the first failure is reported in the end.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};

use crate::names::{NETNS_DIR, Tag};
use crate::{bpffs, cgroup};

/// Fails if a text is not the tag of a world. The error shows the form of a tag.
pub fn check_tag(text: &str) -> Result<()> {
    text.parse::<Tag>().map(drop)
}

/// Removes the world of this tag, processes first; also a world that was kept.
pub fn remove(tag: &str) -> Result<()> {
    let tag: Tag = tag.parse()?;
    let group = tag.cgroup()?;
    let steps = [
        cgroup::kill_all(&group),
        // The unmount comes before the removal of the cgroup and the interfaces: it detaches pinned programs
        // from both.
        bpffs::unmount(&tag.bpffs()),
        cgroup::remove(&group),
        remove_namespaces(&tag),
        remove_dir(&tag.dir()),
    ];
    steps.into_iter().collect()
}

fn remove_namespaces(tag: &Tag) -> Result<()> {
    let mut outcome = Ok(());
    for entry in fs::read_dir(NETNS_DIR).into_iter().flatten().flatten() {
        if tag.owns_netns(&entry.file_name().to_string_lossy()) {
            outcome = outcome.and(remove_namespace(&entry.path()));
        }
    }
    outcome
}

/// Removes the name of a namespace; the namespace ends with its last user.
pub(crate) fn remove_namespace(path: &Path) -> Result<()> {
    // EINVAL: the file exists but nothing is mounted on it. The file must be removed in any case.
    let _ = umount2(path, MntFlags::MNT_DETACH);
    fs::remove_file(path).with_context(|| format!("removing namespace {}", path.display()))
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
