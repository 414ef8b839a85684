//! What the command line takes from the machine where it is not told.

use anyhow::{Context as _, bail};

/// The name of this host, as a kubelet makes a node's name of it: trimmed and in lower case.
pub fn node_name() -> anyhow::Result<String> {
    let names = nix::sys::utsname::uname().context("asking for the name of this host")?;
    let name = names.nodename().to_string_lossy().trim().to_lowercase();
    if name.is_empty() {
        bail!("this host has no name: say --node-name");
    }
    Ok(name)
}
