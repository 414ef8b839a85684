//! Everything that is fetched from the distribution and only unpacked is listed in this file.
//!
//! A cluster's nodes and images need programs that a machine which builds Millrace has no use for, and some
//! that would change it (a container runtime, a firewall's tools). Their packages are downloaded and unpacked
//! into the cache folder; nothing of them is installed. Only apt can do that so far: elsewhere there are no
//! clusters.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{command, paths, step::Step};

/// What nodes run beside what is built from Go modules, with the libraries that a small machine may lack.
const OF_NODES: &[&str] = &[
    "runc",
    "containernetworking-plugins",
    // kube-proxy calls `nft` and `conntrack`, the plugin for host ports `iptables`.
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

/// What the images hold that specs call; everything that these depend on is unpacked with them.
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

/// Where the tools of nodes are.
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

/// Names the root of the unpacked packages that have the stock CNI plugins to tests and benchmarks.
pub const STOCK_PLUGINS: &str = "MILLRACE_CNI_PLUGINS";

/// Where the stock CNI plugins are, which ours is compared with; they are unpacked with the tools of nodes. `None` where
/// packages cannot be unpacked.
pub fn stock_plugins() -> Result<Option<PathBuf>> {
    match unpacked_stock_plugins() {
        Some(root) => Ok(Some(root)),
        None if missing_program().is_some() => Ok(None),
        None => tools_of_nodes().map(Some),
    }
}

/// The same if they are there already.
pub fn unpacked_stock_plugins() -> Option<PathBuf> {
    let root = paths::cache().ok()?.join("debian/nodes/root");
    root.join("usr/lib/cni/host-local").exists().then_some(root)
}

/// A root file system with everything that images share.
pub fn root_of_images() -> Result<PathBuf> {
    let download = |archives: &Path, step: &Step| {
        fs::create_dir_all(archives.join("partial")).context("making a folder for apt")?;
        let mut apt = Command::new("apt-get");
        // With nothing installed, as far as apt can see, it downloads whatever the packages depend on.
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

/// The libraries in an unpacked root.
pub fn libraries(root: &Path) -> [PathBuf; 2] {
    let folder = format!("{}-linux-gnu", std::env::consts::ARCH);
    [root.join("usr/lib").join(&folder), root.join("lib").join(&folder)]
}

/// Unpacks packages below the cache folder, unless those of the same list are there.
///
/// A folder is whole once it has its name, and holds the list that it was made from.
fn unpacked(name: &str, packages: &[&str], download: impl Fn(&Path, &Step) -> Result<()>) -> Result<PathBuf> {
    let folder = paths::cache()?.join("debian").join(name);
    let root = folder.join("root");
    let list = packages.join("\n");
    if fs::read_to_string(folder.join("packages")).is_ok_and(|made_from| made_from == list) {
        return Ok(root);
    }
    if let Some(program) = missing_program() {
        bail!("this is made from Debian's packages, and there is no {program} here to unpack them with");
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
    for entry in fs::read_dir(&archives).context("listing what was downloaded")? {
        let archive = entry.context("listing what was downloaded")?.path();
        if archive.extension().is_some_and(|extension| extension == "deb") {
            let mut dpkg = Command::new("dpkg");
            dpkg.arg("--extract").arg(&archive).arg(partial.join("root"));
            command::run_in(&step, &mut dpkg)?;
        }
    }
    fs::remove_dir_all(&archives).context("removing what was unpacked")?;
    fs::write(partial.join("packages"), list).context("writing down what was unpacked")?;
    fs::rename(&partial, &folder).with_context(|| format!("creating {}", folder.display()))?;
    step.done();
    Ok(root)
}

/// What would be needed to unpack packages and is not there.
fn missing_program() -> Option<&'static str> {
    ["apt-get", "dpkg"]
        .into_iter()
        .find(|program| paths::program(program).is_none())
}

/// Unpacked, `iptables` lacks the names that an installation would give it.
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
