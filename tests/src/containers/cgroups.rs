//! The cgroups of containers.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::node::Node;
use crate::wait;

/// The parent of containers' cgroups, below the mount point of any hierarchy.
pub(super) fn parent(node: &Node) -> Result<String> {
    let names = node
        .cgroup()
        .components()
        .map(|part| part.as_os_str().to_string_lossy());
    let own: Vec<_> = names.skip_while(|name| !name.starts_with("mr-")).collect();
    ensure!(!own.is_empty(), "{} is in no world", node.cgroup().display());
    Ok(format!("/{}/containers", own.join("/")))
}

/// Removes the cgroups that containers leave behind, once the containers have ended.
pub(super) fn remove(node: &Node) {
    let Ok(parent) = parent(node) else {
        return;
    };
    // Where version 1 controllers are in use, containers had cgroups in each of them.
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let group = hierarchy.path().join(parent.trim_start_matches('/'));
        let _ = wait::poll(Duration::from_secs(5), || remove_tree(&group));
        // The world's own cgroup is empty by now in these hierarchies.
        if let Some(world) = group.parent().filter(|_| hierarchy.file_name() != "unified") {
            let _ = fs::remove_dir(world).and_then(|()| fs::remove_dir(world.parent().unwrap_or(world)));
        }
    }
}

fn remove_tree(group: &Path) -> Result<()> {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", group.display()))
        }
        _ => Ok(()),
    }
}
