//! Removes our files from directories that may hold others.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{Left, Uninstalled};
use crate::bpf::pins::Removed;
use crate::cni::{self, Installed, NOTE};
use crate::control::SOCKET;

/// The files of an agent in its run directory.
pub const RUN: &[&str] = &[SOCKET];
/// The files of an agent in its state directory.
pub const STATE: &[&str] = &[NOTE];

/// Whether `path` lies on a bpf file system; false if there is no such path.
pub fn is_bpffs(path: &Path) -> anyhow::Result<bool> {
    match statfs(path) {
        Ok(system) => Ok(system.filesystem_type() == BPF_FS_MAGIC),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno).with_context(|| format!("looking at {}", path.display())),
    }
}

/// Removes an agent's files from the directories of container runtimes. The description of the network goes
/// first, since it names the plugin to execute. The leases go too, if no pod has one.
pub fn remove_installed(state_dir: &Path, uninstalled: &mut Uninstalled) -> anyhow::Result<()> {
    let Installed { files } = Installed::read(state_dir)?;
    let (plugins, descriptions): (Vec<_>, Vec<_>) =
        files.into_iter().partition(|path| path.ends_with(cni::PLUGIN));
    for path in descriptions.iter().chain(&plugins) {
        match fs::remove_file(path) {
            Ok(()) => uninstalled.removed.push(removed("file", path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("removing {}", path.display())),
        }
    }
    let leases = cni::lease_dir(state_dir);
    remove_leases(&leases, uninstalled)?;
    if let Some(networks) = leases.parent().filter(|path| path.starts_with(state_dir)) {
        // The directory goes with the last network in it.
        let _ = fs::remove_dir(networks);
    }
    Ok(())
}

/// Removes host-local's directory with our notes. The files beside the leases mean nothing without them.
fn remove_leases(dir: &Path, uninstalled: &mut Uninstalled) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(());
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    let mut allocation_files = Vec::new();
    for name in names {
        let text = name.to_string_lossy();
        if text == "lock" || text.starts_with("last_reserved_ip.") {
            allocation_files.push(dir.join(&name));
        } else if text.parse::<std::net::IpAddr>().is_ok() {
            let reason =
                "addresses of pods are noted there: take the pods away first, and then run this again";
            uninstalled.left.push(left(dir, reason));
            return Ok(());
        }
    }
    for path in allocation_files {
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    // Only an empty directory is removed.
    let _ = fs::remove_dir(dir.join("millrace"));
    if fs::remove_dir(dir).is_ok() {
        uninstalled.removed.push(removed("directory", dir));
    }
    Ok(())
}

/// Removes our files in a directory, and the directory if it is empty then.
pub fn remove_directory(path: &Path, ours: &[&str], uninstalled: &mut Uninstalled) -> anyhow::Result<()> {
    for name in ours {
        let path = path.join(name);
        match fs::remove_file(&path) {
            Ok(()) => uninstalled.removed.push(removed("file", &path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("removing {}", path.display())),
        }
    }
    match fs::remove_dir(path) {
        Ok(()) => uninstalled.removed.push(removed("directory", path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            report_left(path, "not ours", uninstalled)?;
        }
        // A container's volume cannot be removed from inside the container; on a read-only root the kernel
        // reports that first. Both errors come for empty directories and for others.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ResourceBusy | io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            let before = uninstalled.left.len();
            report_left(path, "not ours", uninstalled)?;
            if uninstalled.left.len() == before {
                uninstalled.left.push(left(path, "empty, and a mount point"));
            }
        }
        Err(error) => return Err(error).with_context(|| format!("removing {}", path.display())),
    }
    Ok(())
}

/// Reports all files that are still in a directory.
pub fn report_left(path: &Path, reason: &str, uninstalled: &mut Uninstalled) -> anyhow::Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("listing {}", path.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        found.push(
            entry
                .with_context(|| format!("listing {}", path.display()))?
                .path(),
        );
    }
    found.sort();
    uninstalled
        .left
        .extend(found.iter().map(|path| left(path, reason)));
    Ok(())
}

fn removed(kind: &str, path: &Path) -> Removed {
    Removed {
        kind: kind.into(),
        name: path.display().to_string(),
    }
}

fn left(path: &Path, reason: &str) -> Left {
    Left {
        name: path.display().to_string(),
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_files_go_and_others_stay() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run");
        fs::create_dir(&path).unwrap();
        fs::write(path.join(SOCKET), "").unwrap();
        fs::write(path.join("other"), "").unwrap();
        let mut uninstalled = Uninstalled::default();
        remove_directory(&path, RUN, &mut uninstalled).unwrap();
        assert_eq!(uninstalled.removed, [removed("file", &path.join(SOCKET))]);
        assert_eq!(uninstalled.left, [left(&path.join("other"), "not ours")]);

        fs::remove_file(path.join("other")).unwrap();
        let mut uninstalled = Uninstalled::default();
        remove_directory(&path, RUN, &mut uninstalled).unwrap();
        assert_eq!(uninstalled.removed, [removed("directory", &path)]);

        let mut uninstalled = Uninstalled::default();
        remove_directory(&path, RUN, &mut uninstalled).unwrap();
        assert_eq!(uninstalled, Uninstalled::default());
    }

    #[test]
    fn a_bpf_root_elsewhere_is_not_touched() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("current"), "").unwrap();
        assert!(!is_bpffs(root.path()).unwrap());
        assert!(!is_bpffs(&root.path().join("missing")).unwrap());
    }
}
