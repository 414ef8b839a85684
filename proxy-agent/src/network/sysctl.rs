//! Settings of devices under `/proc/sys/net`, which the agent writes only if they differ.
//!
//! Container runtimes mount all of `/proc/sys` read-only and allow no mount there. So a container that shares
//! the node's network has the node's `/proc/sys/net` at another path, where it can write the same settings.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use nix::sys::statvfs::{FsFlags, statvfs};

use super::error::NetworkError;

/// The usual path of the network settings.
const USUAL: &str = "/proc/sys/net";
/// The path of the writable settings in a container.
const IN_CONTAINER: &str = "/host/proc/sys/net";

/// The path where the settings can be written.
pub static ROOT: LazyLock<&Path> = LazyLock::new(|| {
    let read_only = statvfs(USUAL).is_ok_and(|found| found.flags().contains(FsFlags::ST_RDONLY));
    Path::new(if read_only { IN_CONTAINER } else { USUAL })
});

/// A setting of a device: `ipv4` or `ipv6`, device, name, value.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// The family: `ipv4` or `ipv6`.
    pub family: &'static str,
    /// The name of the device.
    pub device: &'a str,
    /// The name of the setting.
    pub name: &'static str,
    /// The wanted value.
    pub value: &'static str,
}

impl std::fmt::Display for Setting<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            family, device, name, ..
        } = self;
        write!(f, "net.{family}.conf.{device}.{name}")
    }
}

impl Setting<'_> {
    fn path(&self) -> PathBuf {
        let Self {
            family, device, name, ..
        } = self;
        ROOT.join(family).join("conf").join(device).join(name)
    }

    /// Whether the setting has its value.
    pub fn is_so(&self) -> Result<bool, NetworkError> {
        let path = self.path();
        let found = fs::read_to_string(&path).map_err(|error| failed("reading", &path, error))?;
        Ok(found.trim_end() == self.value)
    }

    /// Whether the setting has another value. A setting that cannot be read, since its device was removed,
    /// has none.
    pub fn is_changed(&self) -> bool {
        matches!(self.is_so(), Ok(false))
    }

    /// Sets the setting to its value. Returns whether it had to be written.
    ///
    /// `/proc/sys/net` shows the namespace of the thread that opens it, so this does not use tokio's threads.
    pub fn ensure(&self) -> Result<bool, NetworkError> {
        if self.is_so()? {
            return Ok(false);
        }
        let path = self.path();
        fs::write(&path, self.value).map_err(|error| failed("writing", &path, error))?;
        Ok(true)
    }
}

/// Whether a device has strict reverse-path filtering. The greater of its own setting and of `all` counts
/// (`Documentation/networking/ip-sysctl.rst`).
pub fn is_strict(device: &str) -> bool {
    let of = |device: &str| {
        let path = ROOT.join("ipv4/conf").join(device).join("rp_filter");
        let text = fs::read_to_string(path).ok();
        text.and_then(|text| text.trim_end().parse::<u8>().ok())
    };
    of(device).max(of("all")) == Some(1)
}

/// Whether this kernel supports IPv6 at all.
pub fn has_ipv6() -> bool {
    Path::new(USUAL).join("ipv6").exists()
}

fn failed(what: &'static str, path: &Path, error: std::io::Error) -> NetworkError {
    NetworkError::Sysctl {
        what,
        path: path.to_path_buf(),
        error,
    }
}
