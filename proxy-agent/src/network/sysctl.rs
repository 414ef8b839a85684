//! Settings of one device under `/proc/sys/net`, written only where they differ.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::NetworkError;

/// A setting of our device: `ipv4` or `ipv6`, device, name, value.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// The device.
    pub device: &'static str,
    /// The setting.
    pub name: &'static str,
    /// What it must be.
    pub value: &'static str,
}

impl Setting {
    fn path(&self) -> PathBuf {
        let Self {
            family, device, name, ..
        } = self;
        format!("/proc/sys/net/{family}/conf/{device}/{name}").into()
    }

    /// Sees to it that the setting has its value. Says whether it had to be written.
    ///
    /// `/proc/sys/net` shows the namespace of the thread that opens it, which is why this does not go through
    /// tokio's threads.
    pub fn ensure(&self) -> Result<bool, NetworkError> {
        let path = self.path();
        let found = fs::read_to_string(&path).map_err(|error| failed("reading", &path, error))?;
        if found.trim_end() == self.value {
            return Ok(false);
        }
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
