//! Tests that did not run, and whether this machine is a valid reason.
//!
//! A test may find while it runs that the kernel lacks a feature. It then appends a line to the file that
//! [`FILE`] names, and returns; libtest counts it as passed. A whole layer is skipped where its requirements
//! are missing. [`EXPECTED`] lists every possible reason with the machines on which it is valid. A reason
//! that is not in the list, or not true of this machine, fails the run.

use std::{collections::BTreeMap, fs, io::ErrorKind, path::Path};

use anyhow::{Context as _, Result};
use nix::unistd::geteuid;
use serde::Deserialize;

use crate::setup::unpacked;

/// The variable that names the file for skips: one JSON object per line.
pub const FILE: &str = "MILLRACE_SKIPS";

pub const NOT_ROOT: &str = "needs root";
pub const NO_KUBERNETES: &str = "no Kubernetes programs";
pub const NO_GUESTS: &str = "no guests";
pub const NO_RUNTIMES: &str = "no container runtime";

/// A possible reason for a skip.
struct Expected {
    /// The prefix of the reason's text.
    start: &'static str,
    /// Whether the reason holds on this machine.
    holds: fn() -> bool,
}

const EXPECTED: &[Expected] = &[
    Expected {
        start: NOT_ROOT,
        holds: || !geteuid().is_root(),
    },
    // The guests of `cargo xtask vm` have them.
    Expected {
        start: "no SCTP sockets",
        holds: || !Path::new("/proc/net/sctp").exists(),
    },
    // This program gives the next three reasons itself, after a check.
    Expected {
        start: NO_GUESTS,
        holds: || true,
    },
    Expected {
        start: NO_KUBERNETES,
        holds: || true,
    },
    Expected {
        start: NO_RUNTIMES,
        holds: || true,
    },
    // Set-up unpacks host-local before, where that is possible.
    Expected {
        start: "no host-local",
        holds: || unpacked::unpacked_stock_plugins().is_none(),
    },
    // The kernel itself reported this.
    Expected {
        start: "no legacy iptables",
        holds: || true,
    },
    // The guests of `cargo xtask vm` have fq_codel.
    Expected {
        start: "no fq_codel",
        holds: || true,
    },
    // The guests have every kind of device that a test needs.
    Expected {
        start: "no devices of kind",
        holds: || true,
    },
    Expected {
        start: "no SO_NETNS_COOKIE",
        holds: || true,
    },
    // Set-up installs `nft` before, where that is possible.
    Expected {
        start: "no `nft`",
        holds: || !Path::new("/usr/sbin/nft").exists(),
    },
    Expected {
        start: "the kernel has no nftables",
        holds: || true,
    },
    Expected {
        start: "no tables of the legacy iptables",
        holds: || true,
    },
];

/// Whether a skip for this reason is right on this machine.
pub fn is_expected(reason: &str) -> bool {
    EXPECTED
        .iter()
        .any(|expected| reason.starts_with(expected.start) && (expected.holds)())
}

#[derive(Deserialize)]
struct Skip {
    test: String,
    reason: String,
}

/// The reasons, by test, that the tests of a program have given.
pub fn read(file: &Path) -> Result<BTreeMap<String, String>> {
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        text => text.with_context(|| format!("reading {}", file.display()))?,
    };
    parse(&text).with_context(|| format!("reading the skips in {}", file.display()))
}

fn parse(text: &str) -> Result<BTreeMap<String, String>> {
    let skips = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(serde_json::from_str::<Skip>);
    skips
        .map(|skip| skip.map(|skip| (skip.test, skip.reason)).map_err(Into::into))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{is_expected, parse};

    #[test]
    fn reasons_by_test() {
        let skips =
            parse("{\"test\": \"a::b\", \"reason\": \"no SCTP\"}\n\n{\"test\":\"c\",\"reason\":\"r\"}\n");
        let skips = skips.expect("both lines are whole");
        assert_eq!(skips.len(), 2);
        assert_eq!(skips["a::b"], "no SCTP");
        assert!(parse("{\"test\": \"a\"}").is_err());
    }

    #[test]
    fn an_unknown_reason_is_unexpected_everywhere() {
        assert!(!is_expected("felt like it"));
        assert!(!is_expected(""));
    }
}
