//! The programs at a pod's interface, as the agent would hang them there.
//!
//! `BPF_ROOT/current` leads to the programs in force. They are attached and pinned under the names that the agent uses, so
//! that it finds its own work done; no agent has to run. While that happens a shared lock keeps the agent from exchanging
//! what is in force. The pod's namespace is entered in `POD_NETNS` too, so that the first connection of the pod is
//! translated even before the agent has seen the pod.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use proxy_bpf::links::{InterfaceRole, Links, Means, Programs};
use proxy_bpf::pins::{LayoutDir, Pins};
use proxy_bpf::{BpfError, HashTable, sys};
use proxy_common::LAYOUT_VERSION;

use crate::spec::{CniError, Code};

/// What hangs on a pod's interface.
const PROGRAMS: [&str; 2] = ["from_pod", "to_pod"];
const NAMESPACES: &str = "POD_NETNS";

/// An error of the data plane.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// No agent has pinned anything since the machine was started.
    #[error(
        "{0} names no programs: `millrace agent` has not been up yet since the machine started; it pins them"
    )]
    NotReady(PathBuf),
    /// Something failed.
    #[error(transparent)]
    Bpf(#[from] BpfError),
}

/// The pins, and what is in force.
pub struct Datapath {
    pins: Pins,
    dir: LayoutDir,
}

impl Datapath {
    /// Finds what is in force below a bpf root.
    pub fn open(root: &Path) -> Result<Self, DatapathError> {
        let not_ready = || DatapathError::NotReady(root.join("current"));
        let pins = Pins::existing(root).ok_or_else(not_ready)?;
        let dir = pins.current()?.ok_or_else(not_ready)?;
        if PROGRAMS.iter().any(|name| !dir.program(name).exists()) {
            return Err(not_ready());
        }
        Ok(Self { pins, dir })
    }

    /// Hangs the programs on a pod's interface, and says whose namespace it leads to.
    pub fn attach(self, interface: u32, netns_cookie: Option<u64>) -> Result<(), DatapathError> {
        let _lock = self.pins.hold()?;
        // Perhaps the agent has exchanged it since.
        let Self { pins, dir } = Self::open(self.pins.root())?;
        let programs = programs(&dir)?;
        let mut links = Links::beside(pins.links(), pins.qdiscs(), Means::probe(&programs))?;
        links.attach_interface(interface, InterfaceRole::Pod, &programs)?;
        if let (Some(cookie), Some(namespaces)) = (netns_cookie, namespaces(&dir)) {
            // Without the entry the pod's sockets are left to the packet path, as the agent does with a full table.
            let _ = namespaces.set(&cookie, &interface);
        }
        Ok(())
    }

    /// The programs that should hang on a pod's interface and do not.
    pub fn missing(&self, interface: u32) -> Result<Vec<&'static str>, DatapathError> {
        let means = Means::probe(&programs(&self.dir)?);
        let mut links = Links::beside(self.pins.links(), self.pins.qdiscs(), means)?;
        Ok(links.missing(interface, InterfaceRole::Pod)?)
    }

    /// Removes what is left of an interface that is gone: pins of links, the note of a qdisc, the entry of the namespace.
    /// `interface` is its index, where that is known.
    pub fn forget(&self, interface: Option<u32>, netns_cookie: Option<u64>) -> Result<(), DatapathError> {
        let means = Means::probe(&programs(&self.dir)?);
        let mut links = Links::beside(self.pins.links(), self.pins.qdiscs(), means)?;
        match interface {
            Some(index) => links.detach_interface(index, InterfaceRole::Pod)?,
            None => links.forget_gone()?,
        }
        if let (Some(cookie), Some(namespaces)) = (netns_cookie, namespaces(&self.dir)) {
            // Another interface of the same pod may have taken the entry.
            let entered = namespaces.get(&cookie).ok().flatten();
            let ours = entered.is_some_and(|entered| interface.is_none_or(|index| index == entered));
            if ours {
                namespaces
                    .remove(&cookie)
                    .map_err(BpfError::syscall(format!("removing an entry of {NAMESPACES}")))?;
            }
        }
        Ok(())
    }
}

fn programs(dir: &LayoutDir) -> Result<Programs, BpfError> {
    let mut programs = BTreeMap::new();
    for name in PROGRAMS {
        programs.insert(name, open(&dir.program(name))?);
    }
    Ok(programs)
}

fn open(path: &Path) -> Result<OwnedFd, BpfError> {
    sys::open_pin(path).map_err(BpfError::file("opening", path))
}

/// The table of pods' namespaces, if it has the layout that is known here.
fn namespaces(dir: &LayoutDir) -> Option<HashTable<u64, u32>> {
    let map = (dir.layout == LAYOUT_VERSION).then(|| open(&dir.map(NAMESPACES)))?;
    HashTable::new(map.ok()?).ok()
}

impl DatapathError {
    /// Whether it may go away by itself.
    fn is_temporary(&self) -> bool {
        matches!(self, Self::NotReady(_) | Self::Bpf(BpfError::NewerLayout { .. }))
    }
}

impl From<DatapathError> for CniError {
    fn from(error: DatapathError) -> Self {
        let (code, msg) = if error.is_temporary() {
            (Code::TryAgainLater, "the data plane is not ready")
        } else {
            (Code::Datapath, "attaching to the data plane failed")
        };
        Self::new(code, msg).with_details(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_pins_it_is_to_be_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        for root in [dir.path().to_path_buf(), dir.path().join("missing")] {
            let error = CniError::from(Datapath::open(&root).err().unwrap());
            assert_eq!(error.code, Code::TryAgainLater, "{error}");
            assert!(error.details.contains("millrace agent"), "{error}");
        }
    }
}
