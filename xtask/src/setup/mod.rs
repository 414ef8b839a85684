//! Set-up: brings a machine to where everything in this repository builds and runs.
//!
//! It is part of every other verb, so the case that counts is the machine where nothing is missing: that one
//! is recognised by looking at a few files and versions, well under a second, without the network. What is
//! missing is installed in three steps, each of which relies on the one before: Debian packages
//! ([`packages`]), a compiler that can build `core` for the BPF target ([`compiler`]), and bpf-linker built
//! on that compiler's LLVM ([`linker`]).

mod compiler;
mod linker;
mod packages;
pub mod unpacked;

use anyhow::{Context as _, Result};

use crate::paths;

/// Installs what virtual machines need as well. No other verb needs it, so it is not part of [`run`].
pub fn for_vm() -> Result<()> {
    packages::install(&packages::missing_for_vm())
}

/// Installs what is missing and says so; says one line where nothing is.
pub fn run() -> Result<()> {
    let mut needs = packages::missing_tools();
    let mut compiler = compiler::find()?;
    if compiler.is_none() {
        needs.push(&packages::BPF_COMPILER);
    }
    packages::install(&needs)?;
    if compiler.is_none() {
        compiler = compiler::find()?;
    }
    let compiler = compiler.with_context(|| {
        let elsewhere = packages::BPF_COMPILER.elsewhere;
        format!("the distribution's Rust compiler is too old for the eBPF programs; instead: {elsewhere}")
    })?;
    compiler::name_for_rustup(&compiler)?;
    linker::ensure(&compiler)?;
    eprintln!(
        "✔ set-up: eBPF compiler {compiler}, bpf-linker {}",
        linker::VERSION
    );
    if paths::program("go").is_none() {
        eprintln!(
            "  no `go` here: tests against a real Kubernetes API server will be skipped (https://go.dev/dl)"
        );
    }
    Ok(())
}
