//! Where things lie: the repository, and the cache folder that outlives `target/`.
//!
//! What takes minutes to build and does not depend on the sources here (bpf-linker, the Kubernetes control
//! plane) goes to the cache, so that neither `cargo clean` nor a second clone pays for it again.
//! `proxy-agent/build.rs` looks for bpf-linker in the same place: change both or neither.

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

/// Finds a program the way a root shell would: the folders of administrators' commands count even where
/// `PATH` leaves them out.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}
