//! `cargo xtask bench`: sets up, builds the released binaries, and becomes the benchmark program.
//!
//! Figures count only for the released code, so all binaries are built with the release profile. The
//! Kubernetes programs are made too. A benchmark that needs them and finds none reports that in its result.

use std::{os::unix::process::CommandExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;

use crate::{
    build::{self, MILLRACE_BIN, Profile},
    kubernetes::{self, Assets},
    setup::{self, unpacked},
};

/// Returns only if the benchmarks could not be started.
pub fn run(quick: bool, json: &Path, against: Option<&Path>, names: &[String]) -> Result<()> {
    if !geteuid().is_root() {
        bail!("benchmarks make network namespaces and load eBPF programs: run them as root");
    }
    setup::run()?;
    let assets = kubernetes::for_tests()?;
    let stock = unpacked::stock_plugins()?;
    let built = build::binaries(
        Profile::Release,
        &["bench", "millrace", "millrace-cni", "millrace-world"],
    )?;
    let mut bench = Command::new(&built["bench"]);
    bench
        .env(MILLRACE_BIN, &built["millrace"])
        .env("MILLRACE_CNI_BIN", &built["millrace-cni"])
        .envs(stock.map(|root| (unpacked::STOCK_PLUGINS, root)))
        .arg("--json")
        .arg(json)
        .args(names);
    if quick {
        bench.arg("--quick");
    }
    if let Some(program) = against {
        bench.arg("--against").arg(program);
    }
    match assets {
        Assets::Ready(folder) => {
            bench.env(kubernetes::ASSETS, folder);
        }
        Assets::Unavailable(reason) => eprintln!("  benchmarks against an API server cannot run: {reason}"),
    }
    Err(bench.exec()).with_context(|| format!("cannot start {}", built["bench"].display()))
}
