//! `cargo xtask demo`: sets up, builds, and becomes the demo.
//!
//! The demo is a program of the `millrace-tests` package, since it uses the same worlds of namespaces as the
//! tests. It replaces this process, so that it receives the signals and owns the terminal.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;

use crate::{
    build::{self, MILLRACE_BIN, Profile},
    setup,
};

/// Returns only if the demo could not be started.
pub fn run(keep: bool) -> Result<()> {
    if !geteuid().is_root() {
        bail!("the demo makes network namespaces and loads eBPF programs: run it as root");
    }
    setup::run()?;
    // The harness finds `millrace-world` next to the demo.
    let built = build::binaries(Profile::Dev, &["demo", "millrace", "millrace-world"])?;
    let mut demo = Command::new(&built["demo"]);
    demo.env(MILLRACE_BIN, &built["millrace"]);
    if keep {
        demo.arg("--keep");
    }
    Err(demo.exec()).with_context(|| format!("cannot start {}", built["demo"].display()))
}
