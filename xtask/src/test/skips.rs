//! Tests that did not run, and whether this machine is a reason for that.
//!
//! A test finds out while it runs that the kernel lacks something, appends a line to the file that [`FILE`]
//! names, and returns; libtest knows only that it passed. A whole layer is skipped where what it needs is
//! missing. Every reason that may come up stands in [`EXPECTED`] with the machines on which it is a good one:
//! a reason that is not in the list, or not true of this machine, fails the run.

use std::{collections::BTreeMap, fs, io::ErrorKind, path::Path};

use anyhow::{Context as _, Result};
use nix::unistd::geteuid;
use serde::Deserialize;

use crate::setup::unpacked;

/// Names the file that a test appends its skip to: one JSON object per line.
pub const FILE: &str = "MILLRACE_SKIPS";

pub const NOT_ROOT: &str = "needs root";
pub const NO_KUBERNETES: &str = "no Kubernetes programs";
pub const NO_RUNTIMES: &str = "no container runtime";

/// A reason that may come up.
struct Expected {
    /// How its text starts.
    start: &'static str,
    /// Whether it holds on this machine.
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
    // Given by this program, and only after it has looked.
    Expected {
        start: NO_KUBERNETES,
        holds: || true,
    },
    Expected {
        start: NO_RUNTIMES,
        holds: || true,
    },
    // It is unpacked before, where that can be done.
    Expected {
        start: "no host-local",
        holds: || unpacked::unpacked_stock_plugins().is_none(),
    },
    // The kernel said so itself.
    Expected {
        start: "no legacy iptables",
        holds: || true,
    },
    // The guests have it.
    Expected {
        start: "no fq_codel",
        holds: || true,
    },
    // The guests have every kind that a test asks for.
    Expected {
        start: "no devices of kind",
        holds: || true,
    },
    Expected {
        start: "no SO_NETNS_COOKIE",
        holds: || true,
    },
    // It is installed before, where that can be done.
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

/// The reasons by test that a test program's tests have given.
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
