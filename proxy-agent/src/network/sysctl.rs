//! Settings of devices under `/proc/sys/net`, written only where they differ.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::NetworkError;

/// A setting of a device: `ipv4` or `ipv6`, device, name, value.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// The device.
    pub device: &'a str,
    /// The setting.
    pub name: &'static str,
    /// What it must be.
    pub value: &'static str,
}

impl Setting<'_> {
    fn path(&self) -> PathBuf {
        let Self {
            family, device, name, ..
        } = self;
        format!("/proc/sys/net/{family}/conf/{device}/{name}").into()
    }

    /// Whether it has its value.
    pub fn is_so(&self) -> Result<bool, NetworkError> {
        let path = self.path();
        let found = fs::read_to_string(&path).map_err(|error| failed("reading", &path, error))?;
        Ok(found.trim_end() == self.value)
    }

    /// Sees to it that the setting has its value. Says whether it had to be written.
    ///
    /// `/proc/sys/net` shows the namespace of the thread that opens it, which is why this does not go through
    /// tokio's threads.
    pub fn ensure(&self) -> Result<bool, NetworkError> {
        if self.is_so()? {
            return Ok(false);
        }
        let path = self.path();
        fs::write(&path, self.value).map_err(|error| failed("writing", &path, error))?;
        Ok(true)
    }
}

/// Whether this kernel does IPv6 at all.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

fn failed(what: &'static str, path: &Path, error: std::io::Error) -> NetworkError {
    NetworkError::Sysctl {
        what,
        path: path.to_path_buf(),
        error,
    }
}
