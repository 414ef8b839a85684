//! The list of all packages that set-up installs from the distribution.
//!
//! A tool counts as installed when its program is found, from any source. So a machine of another
//! distribution passes once its owner has installed the same tools. Set-up runs only Debian's own package
//! manager, and only for missing packages. It may not remove other packages.

use std::{fs, process::Command};

use anyhow::{Result, bail};
use nix::unistd::geteuid;

use crate::{command, paths, step::Step};

/// A tool that the distribution has to provide.
pub struct Need {
    /// The description of the tool in a message about its absence.
    pub what: &'static str,
    /// The purpose of the tool.
    pub why: &'static str,
    /// The Debian packages that contain it.
    pub packages: &'static [&'static str],
    /// The advice for machines without those packages.
    pub elsewhere: &'static str,
}

/// The tools, each with the program that proves its presence.
const TOOLS: &[(&str, Need)] = &[
    (
        "cc",
        Need {
            what: "a C compiler with the C library's headers",
            why: "cargo links with it, and crates compile C and assembly with it",
            packages: &["gcc", "libc6-dev"],
            elsewhere: "install gcc and the headers of the C library",
        },
    ),
    (
        "ip",
        Need {
            what: "`ip`",
            why: "tests and demo show interfaces, addresses and routes with it",
            packages: &["iproute2"],
            elsewhere: "install iproute2 (on Fedora: iproute)",
        },
    ),
    (
        "openssl",
        Need {
            what: "`openssl`",
            why: "keys and certificates of the API server that tests run",
            packages: &["openssl"],
            elsewhere: "install openssl",
        },
    ),
    (
        "nft",
        Need {
            what: "`nft`",
            why: "kube-proxy, with which a test compares Millrace, writes its rules by it",
            packages: &["nftables"],
            elsewhere: "install nftables",
        },
    ),
    (
        "iptables-legacy",
        Need {
            what: "`iptables-legacy`",
            why: "a test makes the rules of an older kube-proxy with it",
            packages: &["iptables"],
            elsewhere: "install the legacy variant of iptables",
        },
    ),
];

/// The further tools of `cargo xtask vm`: no other verb installs them.
const VM_TOOLS: &[(&str, Need)] = &[
    (
        "qemu-system-x86_64",
        Need {
            what: "`qemu-system-x86_64`",
            why: "the kernels of `cargo xtask vm` run in it",
            packages: &["qemu-system-x86"],
            elsewhere: "install qemu for x86_64 guests",
        },
    ),
    (
        "dpkg-deb",
        Need {
            what: "`dpkg-deb` and `apt-get`",
            why: "kernels are Debian packages, unpacked without being installed",
            packages: &["dpkg", "debian-archive-keyring"],
            elsewhere: "install dpkg, apt and debian-archive-keyring",
        },
    ),
    (
        "wg",
        Need {
            what: "`wg`",
            why: "tests of a WireGuard uplink give its keys",
            packages: &["wireguard-tools"],
            elsewhere: "install wireguard-tools",
        },
    ),
];

/// The compiler for the eBPF programs, needed only where no rustup toolchain can build them (see `compiler`).
///
/// Debian's plain `rustc` is years old; Debian keeps these packages current for building browsers.
pub const BPF_COMPILER: Need = Need {
    what: "a Rust compiler with the source of `core`",
    why: "the BPF target has no precompiled `core`",
    packages: &["rustc-web", "cargo-web", "rust-web-src"],
    elsewhere: "rustup toolchain install nightly --profile minimal --component rust-src",
};

/// The tools that this machine lacks.
pub fn missing_tools() -> Vec<&'static Need> {
    missing(TOOLS)
}

/// The tools for virtual machines that this machine lacks.
pub fn missing_for_vm() -> Vec<&'static Need> {
    missing(VM_TOOLS)
}

fn missing(tools: &'static [(&'static str, Need)]) -> Vec<&'static Need> {
    tools
        .iter()
        .filter(|(program, _)| paths::program(program).is_none())
        .map(|(_, need)| need)
        .collect()
}

/// Installs missing tools with apt, or fails with a list of tools and advice.
pub fn install(needs: &[&Need]) -> Result<()> {
    if needs.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = needs.iter().flat_map(|need| need.packages).copied().collect();
    let by_hand = || by_hand(needs);
    if paths::program("apt-get").is_none() {
        bail!(
            "set-up installs packages only with apt, and {} has none. Missing:\n{}",
            distribution(),
            by_hand()
        );
    }
    if !geteuid().is_root() {
        bail!(
            "only root can install packages. Run `cargo xtask setup` as root, or:\n  \
             sudo apt-get install --no-install-recommends {}\nMissing:\n{}",
            packages.join(" "),
            by_hand()
        );
    }
    let step = Step::start(format!("installing {}", packages.join(", ")));
    // The package lists of a fresh image are empty or old. A failed third-party mirror makes the whole update
    // fail, even if Debian's own lists arrived. So a failed update is an error only if the installation fails
    // too.
    let updated = command::run_in(&step, apt().arg("update"));
    let installed = command::run_in(
        &step,
        apt()
            .args(["install", "--yes", "--no-install-recommends", "--no-remove"])
            .args(&packages),
    );
    if let Err(error) = installed {
        let lists = updated
            .err()
            .map(|error| format!("{error:#}\n"))
            .unwrap_or_default();
        bail!(
            "{lists}{error:#}\nIs Debian's mirror in /etc/apt reachable? Or provide yourself:\n{}",
            by_hand()
        );
    }
    step.done();
    Ok(())
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    // Another apt (unattended upgrades, for example) may hold the lock for a while.
    apt.env("DEBIAN_FRONTEND", "noninteractive")
        .args(["--quiet", "-o", "DPkg::Lock::Timeout=120"]);
    apt
}

/// The name of this machine's distribution.
fn distribution() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or("this distribution", |name| name.trim_matches('"'))
        .to_owned()
}

fn by_hand(needs: &[&Need]) -> String {
    let lines = needs
        .iter()
        .map(|need| format!("  {} ({}): {}", need.what, need.why, need.elsewhere));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::{BPF_COMPILER, TOOLS, VM_TOOLS, by_hand};

    #[test]
    fn every_need_names_its_packages_and_an_alternative() {
        let tools = TOOLS.iter().chain(VM_TOOLS).map(|(_, need)| need);
        for need in tools.chain([&BPF_COMPILER]) {
            assert!(!need.packages.is_empty(), "{}", need.what);
            let line = by_hand(&[need]);
            assert!(
                line.contains(need.what) && line.contains(need.elsewhere),
                "{line}"
            );
        }
    }
}
