//! Set-up: installs the requirements for all builds and runs of this repository.
//!
//! It is part of every other verb, so it must be fast where nothing is missing. It checks a few files and
//! versions in well under a second, without the network. It installs missing parts in three steps, each of
//! which relies on the one before:
//!
//! - Debian packages ([`packages`]);
//! - a compiler that can build `core` for the BPF target ([`compiler`]);
//! - bpf-linker, built on that compiler's LLVM ([`linker`]).

mod compiler;
mod linker;
mod packages;
pub mod unpacked;

use anyhow::{Context as _, Result};

use crate::paths;

/// Installs the requirements of virtual machines. No other verb needs them, so they are not part of [`run`].
pub fn for_vm() -> Result<()> {
    packages::install(&packages::missing_for_vm())
}

/// Installs missing parts and reports them; prints one line where nothing is missing.
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
