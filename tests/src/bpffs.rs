//! A bpffs of the world's own, so that agents under test pin nothing where a
//! real agent of this machine would.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Mounts a new, empty bpffs.
pub(crate) fn mount_at(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
    mount(
        Some("bpf"),
        path,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .with_context(|| {
        format!(
            "mounting a bpffs on {}: needs root and CONFIG_BPF_SYSCALL",
            path.display()
        )
    })
}

/// Makes the directory of one node below the mount, for the agent's option `--bpf-root`.
pub(crate) fn node_root(mount: &Path, node: &str) -> Result<PathBuf> {
    let root = mount.join(node);
    fs::create_dir(&root).with_context(|| format!("making {}", root.display()))?;
    Ok(root)
}

/// Unmounts the bpffs, which frees every pinned object that has no other reference.
pub(crate) fn unmount(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // EINVAL: not a mount point; ENOENT: the path does not exist. In both cases nothing is mounted.
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("unmounting {}", path.display())),
    }
}
