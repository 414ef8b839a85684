//! Modules of a guest's kernel: those that must be loaded before the root exists, and their order.
//!
//! depmod makes `modules.dep` when a kernel is unpacked; it lists the dependencies of each module. The kernel
//! itself loads the modules that the tests use on demand.

use std::{collections::BTreeMap, fs, os::unix::fs::symlink, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::{command, step::Step};

/// The modules for the root of a guest: a folder of the host over virtio, and a layer in memory over it.
pub const FOR_THE_ROOT: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Makes the index of the modules below a folder.
pub fn index(step: &Step, busybox: &Path, root: &Path) -> Result<()> {
    // Newer packages have the modules in /usr/lib only.
    let lib = root.join("lib");
    if !lib.exists() {
        symlink("usr/lib", &lib).with_context(|| format!("making {}", lib.display()))?;
    }
    let mut depmod = Command::new(busybox);
    depmod.args(["depmod", "-b"]).arg(root).arg(release(root)?);
    command::run_in(step, &mut depmod)
}

/// The full name of the kernel whose modules lie below a folder.
pub fn release(root: &Path) -> Result<String> {
    let modules = root.join("lib/modules");
    let entries = fs::read_dir(&modules).with_context(|| format!("listing {}", modules.display()))?;
    let mut names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .next()
        .with_context(|| format!("there are no modules in {}", modules.display()))
}

/// The files of these modules and of all their dependencies, in an order in which they can be loaded. A name
/// without a module file counts as built in.
pub fn in_order(dependencies: &str, wanted: &[&str]) -> Vec<String> {
    let by_name: BTreeMap<String, (&str, Vec<String>)> = dependencies
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| (name(file), (file, needs.split_whitespace().map(name).collect())))
        .collect();
    let mut ordered = Vec::new();
    for name in wanted {
        add(&name.replace('-', "_"), &by_name, &mut ordered);
    }
    ordered
}

fn add(name: &str, by_name: &BTreeMap<String, (&str, Vec<String>)>, ordered: &mut Vec<String>) {
    let Some((file, needs)) = by_name.get(name) else {
        return;
    };
    if ordered.iter().any(|added| added == file) {
        return;
    }
    for need in needs {
        add(need, by_name, ordered);
    }
    ordered.push((*file).to_owned());
}

/// The name by which the kernel knows the module in a file.
fn name(file: &str) -> String {
    let file = file.rsplit('/').next().unwrap_or(file);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// The index that [`index`] made.
pub fn dependencies(root: &Path, release: &str) -> Result<String> {
    let path = root.join("lib/modules").join(release).join("modules.dep");
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::in_order;

    #[test]
    fn dependencies_of_a_module_come_first_and_once() {
        let dependencies = "\
kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz
kernel/net/9p/9pnet.ko.xz:
kernel/fs/netfs/netfs.ko.xz:
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/drivers/virtio/virtio.ko.xz
kernel/drivers/virtio/virtio.ko.xz:
";
        assert_eq!(
            in_order(dependencies, &["9pnet-virtio", "9p", "built_in"]),
            [
                "kernel/net/9p/9pnet.ko.xz",
                "kernel/drivers/virtio/virtio.ko.xz",
                "kernel/net/9p/9pnet_virtio.ko.xz",
                "kernel/fs/netfs/netfs.ko.xz",
                "kernel/fs/9p/9p.ko.xz",
            ]
        );
    }
}
