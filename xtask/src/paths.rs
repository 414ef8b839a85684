//! The paths of the repository and of the cache folder, which outlives `target/`.
//!
//! The cache holds programs that take minutes to build and do not depend on the sources here (bpf-linker, the
//! Kubernetes control plane). So neither `cargo clean` nor a second clone needs to build them again.
//! `proxy-agent/build.rs` looks for bpf-linker in the same folder: change both or neither.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The root of the repository.
pub fn repository() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the folder of xtask has no parent, so there is no repository around it")
}

/// `$MILLRACE_CACHE`, else `millrace` in the user's cache folder.
pub fn cache() -> Result<PathBuf> {
    let given = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(cache) = given("MILLRACE_CACHE") {
        return Ok(cache);
    }
    given("XDG_CACHE_HOME")
        .or_else(|| given("HOME").map(|home| home.join(".cache")))
        .map(|base| base.join("millrace"))
        .context("no place for caches: set HOME, XDG_CACHE_HOME or MILLRACE_CACHE")
}

/// Finds a program as root's shell does: it searches the folders of administrators' commands even where
/// `PATH` lacks them.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}
