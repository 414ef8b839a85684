//! The paths of a container runtime's programs.

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// The programs of a container runtime. Returns from the test and records a skip if one of them is missing.
#[macro_export]
macro_rules! require_container_runtime {
    () => {
        match $crate::containers::Programs::find() {
            Ok(programs) => programs,
            Err(reason) => return $crate::skip::skip($crate::current_test!(), &reason),
        }
    };
}

/// The programs of a container runtime.
#[derive(Clone, Debug)]
pub struct Programs {
    folders: Vec<PathBuf>,
}

impl Programs {
    /// Finds all of them. The error names the missing one.
    pub fn find() -> Result<Self, String> {
        let folders = match env::var_os("MILLRACE_RUNTIMES") {
            Some(folders) => env::split_paths(&folders).collect(),
            None => built(),
        };
        let programs = Self { folders };
        for name in [
            "containerd",
            "containerd-shim-runc-v2",
            "ctr",
            "cnitool",
            "cri",
            "runc",
        ] {
            programs
                .path(name)
                .map_err(|error| format!("no container runtime: {error}"))?;
        }
        Ok(programs)
    }

    /// The path of a program.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        let mut candidates = self.folders.iter().map(|folder| folder.join(name));
        let found = candidates.find(|path| path.is_file());
        found.with_context(|| format!("no {name} in MILLRACE_RUNTIMES: run the test by `cargo xtask test`"))
    }

    /// The value of `PATH` for these programs.
    pub(super) fn search_path(&self) -> Result<std::ffi::OsString> {
        let inherited = env::var_os("PATH").unwrap_or_default();
        let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
        let folders = self.folders.iter().cloned().chain(env::split_paths(&inherited));
        env::join_paths(folders.chain(system)).context("joining paths")
    }
}

/// The directories of the builds of `cargo xtask`, of any version.
fn built() -> Vec<PathBuf> {
    let cache = env::var_os("MILLRACE_CACHE").map(PathBuf::from);
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cache/millrace"));
    let Some(cache) = cache.or_else(home) else {
        return Vec::new();
    };
    let versions = fs::read_dir(cache.join("containerd"))
        .into_iter()
        .flatten()
        .flatten();
    let mut folders: Vec<_> = versions.map(|entry| entry.path()).collect();
    folders.push(cache.join("debian/nodes/root/usr/sbin"));
    folders
}
