//! Settings of one interface under `/proc/sys/net`, which shows the namespace of the thread that opens it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::NetlinkError;

/// A setting: family, name and value.
pub type Setting = (&'static str, &'static str, &'static str);

/// Whether this kernel supports IPv6.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Makes settings of an interface. A setting that this kernel lacks is skipped.
pub fn set(interface: &str, settings: &[Setting]) -> Result<(), NetlinkError> {
    for (family, name, value) in settings {
        // A dot in an interface's name is part of one component here, as in any path.
        let path: PathBuf = format!("/proc/sys/net/{family}/conf/{interface}/{name}").into();
        match fs::write(&path, value) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(NetlinkError::Setting { path, value, error });
            }
            _ => {}
        }
    }
    Ok(())
}
