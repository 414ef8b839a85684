//! The list of all packages that are fetched from the distribution and only unpacked.
//!
//! A cluster's nodes and images need programs that a build of Millrace does not need. Some of them would
//! change the machine (a container runtime, a firewall's tools). So their packages are downloaded and
//! unpacked into the cache folder, and not installed. Only apt supports that so far: machines without apt
//! have no clusters.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{command, paths, step::Step};

/// The packages of nodes beside the programs from Go modules, with libraries that a small machine may lack.
const OF_NODES: &[&str] = &[
    "runc",
    "containernetworking-plugins",
    // kube-proxy calls `nft` and `conntrack`, and the plugin for host ports calls `iptables`.
    "nftables",
    "conntrack",
    "iptables",
    "libnftables1",
    "libxtables12",
    "libip4tc2",
    "libip6tc2",
    "libnftnl11",
    "libmnl0",
    "libnetfilter-conntrack3",
    "libnfnetlink0",
    "libjansson4",
    "libedit2",
    "libbsd0",
    "libgmp10",
];

/// The packages in images whose programs specs call; their dependencies are unpacked with them.
const OF_IMAGES: &[&str] = &[
    "bash",
    "busybox",
    "curl",
    "wget",
    "netcat-openbsd",
    "iproute2",
    "bind9-dnsutils",
    "iputils-ping",
    "iperf",
    "util-linux",
    "conntrack",
    "nftables",
    "iptables",
    "libc-bin",
];

/// The folder of the tools of nodes.
pub fn tools_of_nodes() -> Result<PathBuf> {
    let download = |archives: &Path, step: &Step| {
        let mut apt = Command::new("apt-get");
        apt.arg("download").args(OF_NODES).current_dir(archives);
        command::run_in(step, &mut apt)
    };
    let root = unpacked("nodes", OF_NODES, download)?;
    name_iptables(&root)?;
    Ok(root)
}

/// The variable that names the root with the stock CNI plugins to tests and benchmarks.
pub const STOCK_PLUGINS: &str = "MILLRACE_CNI_PLUGINS";

/// The root with the stock CNI plugins, for comparisons; they are unpacked with the tools of nodes. `None`
/// where packages cannot be unpacked.
pub fn stock_plugins() -> Result<Option<PathBuf>> {
    match unpacked_stock_plugins() {
        Some(root) => Ok(Some(root)),
        None if missing_program().is_some() => Ok(None),
        None => tools_of_nodes().map(Some),
    }
}

/// The root with the stock CNI plugins, if they are unpacked already.
pub fn unpacked_stock_plugins() -> Option<PathBuf> {
    let root = paths::cache().ok()?.join("debian/nodes/root");
    root.join("usr/lib/cni/host-local").exists().then_some(root)
}

/// A root file system with the packages that images share.
pub fn root_of_images() -> Result<PathBuf> {
    let download = |archives: &Path, step: &Step| {
        fs::create_dir_all(archives.join("partial")).context("making a folder for apt")?;
        let mut apt = Command::new("apt-get");
        // With an empty list of installed packages, apt downloads all dependencies of the packages.
        apt.args(["-o", "Dir::State::status=/dev/null", "-o"])
            .arg(format!("Dir::Cache::archives={}", archives.display()))
            .args(["-o", "APT::Install-Recommends=false", "--yes", "--download-only"])
            .arg("install")
            .args(OF_IMAGES);
        command::run_in(step, &mut apt)
    };
    let root = unpacked("images", OF_IMAGES, download)?;
    name_iptables(&root)?;
    Ok(root)
}

/// The folders of libraries in an unpacked root.
pub fn libraries(root: &Path) -> [PathBuf; 2] {
    let folder = format!("{}-linux-gnu", std::env::consts::ARCH);
    [root.join("usr/lib").join(&folder), root.join("lib").join(&folder)]
}

/// Unpacks packages below the cache folder, unless those of the same list exist there.
///
/// A folder with its final name is whole, and holds the list that it was made from.
fn unpacked(name: &str, packages: &[&str], download: impl Fn(&Path, &Step) -> Result<()>) -> Result<PathBuf> {
    let folder = paths::cache()?.join("debian").join(name);
    let root = folder.join("root");
    let list = packages.join("\n");
    if fs::read_to_string(folder.join("packages")).is_ok_and(|made_from| made_from == list) {
        return Ok(root);
    }
    if let Some(program) = missing_program() {
        bail!("this machine has no {program}, which unpacks Debian's packages");
    }
    let step = Step::start(format!("unpacking Debian packages for {name} (once)"));
    let partial = folder.with_extension("partial");
    for old in [&folder, &partial] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("removing {}", old.display()))?;
        }
    }
    let archives = partial.join("archives");
    for new in [&archives, &partial.join("root")] {
        fs::create_dir_all(new).with_context(|| format!("creating {}", new.display()))?;
    }
    download(&archives, &step).context(
        "downloading packages: is Debian's mirror in /etc/apt reachable, and are its lists new (apt-get update)?",
    )?;
    for entry in fs::read_dir(&archives).context("listing the downloaded packages")? {
        let archive = entry.context("listing the downloaded packages")?.path();
        if archive.extension().is_some_and(|extension| extension == "deb") {
            let mut dpkg = Command::new("dpkg");
            dpkg.arg("--extract").arg(&archive).arg(partial.join("root"));
            command::run_in(&step, &mut dpkg)?;
        }
    }
    fs::remove_dir_all(&archives).context("removing the unpacked packages")?;
    fs::write(partial.join("packages"), list).context("recording the unpacked packages")?;
    fs::rename(&partial, &folder).with_context(|| format!("creating {}", folder.display()))?;
    step.done();
    Ok(root)
}

/// A program that is needed to unpack packages and is missing.
fn missing_program() -> Option<&'static str> {
    ["apt-get", "dpkg"]
        .into_iter()
        .find(|program| paths::program(program).is_none())
}

/// Makes the links of `iptables` that an installation would make.
fn name_iptables(root: &Path) -> Result<()> {
    for family in ["iptables", "ip6tables"] {
        for suffix in ["", "-save", "-restore"] {
            let link = root.join("usr/sbin").join(format!("{family}{suffix}"));
            if fs::symlink_metadata(&link).is_err() {
                std::os::unix::fs::symlink("xtables-nft-multi", &link)
                    .with_context(|| format!("creating {}", link.display()))?;
            }
        }
    }
    Ok(())
}
