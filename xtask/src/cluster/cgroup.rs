//! The cgroups of a node: one subtree for each node in every hierarchy.
//!
//! All processes of a node are in its subtree of cgroup v2, so socket hooks attached there see the sockets of
//! this node alone. On machines that still use version 1 controllers, those limit pods, and kubelet wants its
//! part of each hierarchy to exist beforehand. On machines with version 2 alone, the node's own processes are
//! in a leaf: a cgroup with controllers for its children may hold no process.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};

use super::{site::Node, wait::wait_for};

/// The cgroup of the node's own processes, below its subtree.
const LEAF: &str = "node";

/// The mount point of cgroup v2, on this machine and on its nodes.
pub fn hierarchy() -> Result<PathBuf> {
    let mounted = mounts()?.into_iter().find(|mount| mount.unified);
    let mounted = mounted.context("no cgroup v2 is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")?;
    Ok(mounted.at)
}

/// The node's subtree of cgroup v2, for socket hooks.
pub fn subtree(node: Node) -> Result<PathBuf> {
    Ok(hierarchy()?.join(node.tag()))
}

/// The cgroup of the node's own processes.
pub fn of(node: Node) -> Result<PathBuf> {
    Ok(subtree(node)?.join(LEAF))
}

/// Makes the cgroups of a node.
pub fn create(node: Node) -> Result<()> {
    for mount in mounts()? {
        let group = mount.at.join(node.tag());
        fs::create_dir_all(&group).with_context(|| format!("making cgroup {}", group.display()))?;
        // No process can enter a cpuset before these files have values.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(parents) = fs::read_to_string(mount.at.join(file)) {
                let own = group.join(file);
                fs::write(&own, parents.trim()).with_context(|| format!("writing {}", own.display()))?;
            }
        }
    }
    let leaf = of(node)?;
    fs::create_dir_all(&leaf).with_context(|| format!("making cgroup {}", leaf.display()))
}

/// Removes the cgroups of a node, once its last processes are gone.
pub fn remove(node: Node) -> Result<()> {
    for mount in mounts()? {
        let group = mount.at.join(node.tag());
        wait_for("the processes of a node to end", Duration::from_secs(20), || {
            remove_tree(&group)
        })?;
    }
    Ok(())
}

fn remove_tree(group: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(group) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(group).map_err(|error| anyhow!("removing cgroup {}: {error}", group.display()))
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    at: PathBuf,
    unified: bool,
}

fn mounts() -> Result<Vec<Mount>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    Ok(parse(&text))
}

/// See proc(5): the fifth field is the mount point; the file system's type follows " - ".
fn parse(mountinfo: &str) -> Vec<Mount> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let unified = match filesystem.split(' ').next()? {
            "cgroup2" => true,
            "cgroup" => false,
            _ => return None,
        };
        let at = mount.split(' ').nth(4)?.into();
        Some(Mount { at, unified })
    });
    mounts.collect()
}

#[cfg(test)]
mod tests {
    use super::{Mount, parse};

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let mountinfo = "25 20 0:22 / /proc rw - proc proc rw\n\
                         30 24 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                         31 24 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
        let mount = |at: &str, unified| Mount {
            at: at.into(),
            unified,
        };
        assert_eq!(
            parse(mountinfo),
            [
                mount("/sys/fs/cgroup/cpu", false),
                mount("/sys/fs/cgroup/unified", true)
            ]
        );
    }
}
