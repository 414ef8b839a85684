//! The names of a world. Everything that a world creates outside of its namespaces carries the world's random
//! tag. So two worlds never share a name, and the tag is enough to remove a world.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail};

use crate::cgroup;

/// The directory of named network namespaces. It is that of iproute2, so that `ip netns` and `nsenter
/// --net=…` work for a person too.
pub(crate) const NETNS_DIR: &str = "/run/netns";

const PREFIX: &str = "mr-";

/// The tag of one world, `mr-` and eight random hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tag(String);

impl Tag {
    pub(crate) fn random() -> Self {
        // The system seeds RandomState, which is used here for its random seed only.
        let random = RandomState::new().build_hasher().finish();
        Self(format!("{PREFIX}{:08x}", random as u32))
    }

    /// Name of the network namespace of a place.
    pub(crate) fn netns(&self, place: &str) -> String {
        format!("{}-{place}", self.0)
    }

    /// Whether a namespace of this name belongs to this world.
    pub(crate) fn owns_netns(&self, name: &str) -> bool {
        name.strip_prefix(&self.0)
            .is_some_and(|rest| rest.starts_with('-'))
    }

    /// The world's directory: sources, logs, state, the private bpffs.
    pub(crate) fn dir(&self) -> PathBuf {
        std::env::temp_dir().join(&self.0)
    }

    /// The mount point of the private bpffs.
    pub(crate) fn bpffs(&self) -> PathBuf {
        self.dir().join("bpf")
    }

    /// The cgroup below which all processes and sockets of the world live.
    pub(crate) fn cgroup(&self) -> Result<PathBuf> {
        Ok(cgroup::mount_point()?.join(&self.0))
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Tag {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix(PREFIX) {
            Some(digits) if digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Ok(Self(text.to_owned()))
            }
            _ => bail!("`{text}` is not the tag of a world: expected {PREFIX} and eight hexadecimal digits"),
        }
    }
}
