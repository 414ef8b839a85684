//! Finds the programs that worlds run: the agent under test, and the tool for the parts that need a process
//! of their own.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::failure::OrPanic;

/// The `millrace` binary: `MILLRACE_BIN`, else the one of the build that the
/// current executable belongs to.
pub fn millrace() -> PathBuf {
    find("MILLRACE_BIN", "millrace", "cargo build -p proxy-agent").or_panic()
}

/// The `millrace-cni` binary: `MILLRACE_CNI_BIN`, else the one beside [`millrace`], else the one of the build
/// that the current executable belongs to.
pub fn millrace_cni() -> PathBuf {
    const NAME: &str = "millrace-cni";
    let variable = "MILLRACE_CNI_BIN";
    let beside = env::var_os("MILLRACE_BIN").map(|path| PathBuf::from(path).with_file_name(NAME));
    match beside.filter(|path| env::var_os(variable).is_none() && path.is_file()) {
        Some(path) => path,
        None => find(variable, NAME, "cargo build -p cni-plugin").or_panic(),
    }
}

/// The `millrace-world` binary of this package.
pub(crate) fn world_tool() -> Result<PathBuf> {
    find(
        "MILLRACE_WORLD_BIN",
        "millrace-world",
        "cargo build -p millrace-tests --bins",
    )
}

fn find(variable: &str, name: &str, build: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        return Ok(PathBuf::from(path));
    }
    let current = env::current_exe().context("finding the current executable")?;
    // Test executables are in target/<profile>/deps, examples in …/examples, binaries in the directory above.
    let candidates = current
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir: &Path| dir.join(name));
    match candidates.clone().find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("{name} is not built: run `{build}`, or name it by {variable}"),
    }
}

/// The path of `millrace` for a message; its plain name if the binary is not found.
pub(crate) fn millrace_or_name() -> String {
    match find("MILLRACE_BIN", "millrace", "") {
        Ok(path) => path.display().to_string(),
        Err(_) => "millrace".to_owned(),
    }
}
