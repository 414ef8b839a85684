//! The paths of the control plane's programs: `KUBEBUILDER_ASSETS`, as in other projects' tests, else the
//! build of `cargo xtask kubernetes`.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// The release that `cargo xtask kubernetes` builds.
const VERSION: &str = "v1.36.3";

/// The directory that holds `etcd` and `kube-apiserver`.
pub(super) fn dir() -> Result<PathBuf> {
    let dir = match env::var_os("KUBEBUILDER_ASSETS") {
        Some(path) => PathBuf::from(path),
        None => built()?,
    };
    for name in ["etcd", "kube-apiserver"] {
        if !dir.join(name).is_file() {
            bail!(
                "no {name} in {}: run `cargo xtask kubernetes`, or set KUBEBUILDER_ASSETS",
                dir.display()
            );
        }
    }
    Ok(dir)
}

/// The path of `kubectl`, which is in the same folder.
pub(super) fn kubectl() -> Result<PathBuf> {
    Ok(dir()?.join("kubectl"))
}

/// The path of kube-proxy. Other projects do without it, so a directory from the environment may lack it.
pub(super) fn kube_proxy() -> Result<PathBuf> {
    let built = built()?.join("kube-proxy");
    let candidates = [dir()?.join("kube-proxy"), built.clone()];
    match candidates.into_iter().find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("no {}: run `cargo xtask kubernetes kube-proxy`", built.display()),
    }
}

/// The directory of the builds of `cargo xtask kubernetes`.
fn built() -> Result<PathBuf> {
    let cache = cache().context("there is no HOME to find a cache below")?;
    Ok(cache.join("kubernetes").join(VERSION))
}

fn cache() -> Option<PathBuf> {
    let path = |name| env::var_os(name).map(PathBuf::from);
    if let Some(own) = path("MILLRACE_CACHE") {
        return Some(own);
    }
    let caches = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")))?;
    Some(caches.join("millrace"))
}
