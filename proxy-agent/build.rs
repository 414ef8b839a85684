//! Compiles the kernel programs into the agent, and notes the git revision.
//!
//! The programs need a compiler that has the source of `core`. This is the toolchain that `cargo xtask setup`
//! links under the name `millrace-bpf`, or else a rustup nightly with `rust-src`. The script looks for
//! `bpf-linker` in the project's own tools directory first.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

/// The toolchain that `cargo xtask setup` links.
const LINKED_TOOLCHAIN: &str = "millrace-bpf";

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-changed=../proxy-common/src");
    if let Some(head) = head() {
        println!("cargo:rerun-if-changed={}", head.display());
    }
    println!("cargo:rustc-env=MILLRACE_REVISION={}", revision());

    let path = env::var_os("PATH").context("PATH is not set")?;
    let path = env::join_paths(tools().into_iter().chain(env::split_paths(&path)))?;
    let toolchain = if has_source(LINKED_TOOLCHAIN) {
        Toolchain::Custom(LINKED_TOOLCHAIN)
    } else {
        Toolchain::Nightly
    };
    // SAFETY: a build script's main thread is its only one here.
    unsafe {
        env::set_var("PATH", path);
        env::set_var("RUSTC_BOOTSTRAP", "1");
    }
    let features: &[&str] = if env::var_os("CARGO_FEATURE_LOG").is_some() {
        &["log"]
    } else {
        &[]
    };
    let package = Package {
        name: "proxy-ebpf",
        root_dir: "../proxy-ebpf",
        features,
        ..Package::default()
    };
    aya_build::build_ebpf([package], toolchain)
        .context("building the kernel programs; `cargo xtask setup` installs what this needs")
}

/// The file that names the checked-out branch. In a worktree `.git` is a file that names the directory.
/// (Cargo would count a file that does not exist as changed at each build.)
fn head() -> Option<PathBuf> {
    let git = Path::new("../.git");
    let folder = match fs::read_to_string(git) {
        Ok(text) => git.parent()?.join(text.strip_prefix("gitdir:")?.trim()),
        Err(_) => git.to_owned(),
    };
    Some(folder.join("HEAD")).filter(|head| head.exists())
}

/// The commit of the checkout, or `unknown` outside a git checkout.
fn revision() -> String {
    let output = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}

/// The directory into which `cargo xtask setup` puts bpf-linker.
fn tools() -> Option<PathBuf> {
    let cache = env::var_os("MILLRACE_CACHE").map(PathBuf::from).or_else(|| {
        let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        base.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))
            .map(|base| base.join("millrace"))
    });
    cache.map(|cache| cache.join("tools/bin"))
}

fn has_source(toolchain: &str) -> bool {
    let output = Command::new("rustup")
        .args(["run", toolchain, "rustc", "--print", "sysroot"])
        .output();
    output.is_ok_and(|output| {
        let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        output.status.success()
            && sysroot
                .join("lib/rustlib/src/rust/library/core/Cargo.toml")
                .exists()
    })
}
