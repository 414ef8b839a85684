//! Defaults that the command line takes from the machine.

use anyhow::{Context as _, bail};

/// The name of this host in the form of a kubelet's node name: trimmed and in lower case.
pub fn node_name() -> anyhow::Result<String> {
    let names = nix::sys::utsname::uname().context("asking for the name of this host")?;
    let name = names.nodename().to_string_lossy().trim().to_lowercase();
    if name.is_empty() {
        bail!("this host has no name: say --node-name");
    }
    Ok(name)
}
