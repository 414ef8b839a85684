//! The programs at a pod's interface, as the agent would attach them there, and the pod's entries in maps.
//!
//! `BPF_ROOT/current` leads to the programs in force. The plugin attaches them at the agent's hooks and under
//! the agent's names. So an agent finds them as its own work, and no agent has to run. Meanwhile a shared
//! lock keeps the agent from exchanging the programs and maps in force. The plugin also enters the pod's
//! namespace in `POD_NETNS`. So the pod's first connection is translated even before the agent has seen the
//! pod. [`tables`] and [`host_ports`] hold the entries that this plugin alone writes.

mod error;
mod host_ports;
mod tables;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use proxy_bpf::links::{AttachMode, InterfaceRole, Links, Programs};
use proxy_bpf::pins::{LayoutDir, Pins};
use proxy_bpf::{BpfError, HashTable, sys};
use proxy_common::maps::{AddressFlags, Config};
use proxy_common::{Ip, Plain};

pub use self::error::DatapathError;
use self::host_ports::HostPorts;
use self::tables::{Tables, is_known, table};
use crate::config::HostPort;
use crate::netlink::NetlinkSocket;

/// The programs that are attached to a pod's interface.
const PROGRAMS: [&str; 2] = ["from_own_pod", "to_pod"];
const NAMESPACES: &str = "POD_NETNS";
const ADDRESSES: &str = "ADDRESSES";
const CONFIG: &str = "CONFIG";

/// The data of one pod for the maps.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// The index of the interface on the node's side.
    pub interface: u32,
    /// The kernel's cookie of the pod's namespace, where the kernel gives one.
    pub netns_cookie: Option<u64>,
    /// The Ethernet address of the pod's side.
    pub mac: [u8; 6],
    /// The pod's addresses.
    pub addresses: &'a [IpAddr],
    /// Whether a queue limits the packets towards the pod.
    pub is_limited: bool,
    /// The index of the device that limits the packets from the pod.
    pub limiter: Option<u32>,
    /// The ports of the node that lead to the pod.
    pub host_ports: &'a [HostPort],
}

/// The known data of an attachment whose interface is gone.
#[derive(Debug, Clone, Copy)]
pub struct Traces<'a> {
    /// The index of the interface on the node's side, if it existed.
    pub interface: Option<u32>,
    /// The kernel's cookie of the pod's namespace.
    pub netns_cookie: Option<u64>,
    /// The addresses that the attachment has or had.
    pub addresses: &'a [IpAddr],
    /// The addresses that are still leased to it, so that no other pod can have entries for them.
    pub leased: &'a [IpAddr],
    /// Its host ports, where they are known.
    pub host_ports: Option<&'a [HostPort]>,
}

/// The pins, and the directory of the layout in force.
pub struct Datapath {
    pins: Pins,
    dir: LayoutDir,
}

impl Datapath {
    /// Finds the programs and maps in force below a BPF root.
    pub fn open(root: &Path) -> Result<Self, DatapathError> {
        let not_ready = || DatapathError::NotReady(root.join("current"));
        let pins = Pins::existing(root).ok_or_else(not_ready)?;
        let dir = pins.current()?.ok_or_else(not_ready)?;
        if PROGRAMS.iter().any(|name| !dir.program(name).exists()) {
            return Err(not_ready());
        }
        Ok(Self { pins, dir })
    }

    /// The data plane of a layout that the caller is about to bring into force.
    pub fn in_dir(pins: Pins, dir: LayoutDir) -> Self {
        Self { pins, dir }
    }

    /// Restores the lost entries of a pod whose interface exists, and returns a message for each. Correct
    /// entries stay, limits and exemptions included. The caller holds the lock of the leases.
    pub fn restore(&self, node: &mut NetlinkSocket, entry: &Entry<'_>) -> Result<Vec<String>, DatapathError> {
        let mut restored = Vec::new();
        if let Some(tables) = Tables::open(&self.dir)? {
            restored = tables.differences(entry)?;
            restored.extend(tables.restore(entry)?);
        }
        if !entry.host_ports.is_empty() {
            let _claim = self.pins.claim()?;
            let host_ports = self.host_ports()?;
            let lost = host_ports.lost(entry)?;
            if !lost.is_empty() {
                let entry = Entry {
                    host_ports: &lost,
                    ..*entry
                };
                restored.extend(host_ports.differences(&entry)?);
                host_ports.enter(node, &entry)?;
            }
            restored.extend(host_ports.restore_use()?);
        }
        Ok(restored)
    }

    /// Checks that a pod with the addresses `pod` could have host ports. The result holds for this moment
    /// only.
    pub fn check_host_ports(
        &self,
        node: &mut NetlinkSocket,
        ports: &[HostPort],
        pod: &[IpAddr],
    ) -> Result<(), DatapathError> {
        if ports.is_empty() {
            return Ok(());
        }
        self.host_ports()?.check_free(node, ports, pod).map(drop)
    }

    /// Enters the data of a pod, whose interface was made a moment ago, into the maps and attaches the
    /// programs to the interface.
    pub fn attach(self, node: &mut NetlinkSocket, entry: &Entry<'_>) -> Result<(), DatapathError> {
        let _lock = self.pins.hold()?;
        // The agent may have exchanged the directory before the lock was taken.
        let this = Self::open(self.pins.root())?;
        let programs = programs(&this.dir)?;
        // The entry that permits the pod's packets exists before the program that looks it up is attached.
        if let Some(tables) = Tables::open(&this.dir)? {
            tables.enter(entry)?;
        }
        this.links()?
            .attach_new(entry.interface, InterfaceRole::OwnPod, &programs)?;
        if let (Some(cookie), Some(namespaces)) = (entry.netns_cookie, namespaces(&this.dir)) {
            // Without the entry the packet path handles the pod's sockets. The agent does the same with a
            // full table.
            let _ = namespaces.set(&cookie, &entry.interface);
        }
        if entry.host_ports.is_empty() {
            return Ok(());
        }
        let _claim = this.pins.claim()?;
        this.host_ports()?.enter(node, entry)
    }

    /// Whether an address belongs to a service and not also to the node, by the agent's entries.
    pub fn is_virtual(&self, address: IpAddr) -> Result<bool, DatapathError> {
        let known = self.noted::<Ip, u32>(ADDRESSES, &Ip::from(address))?;
        Ok(known.is_some_and(|flags| AddressFlags(flags).is_virtual_only()))
    }

    /// Whether an address belongs to the node, by the agent's entries.
    pub fn is_node(&self, address: IpAddr) -> Result<bool, DatapathError> {
        let known = self.noted::<Ip, u32>(ADDRESSES, &Ip::from(address))?;
        Ok(known.is_some_and(|flags| AddressFlags(flags).is_node()))
    }

    /// The UDP port of the nodes' tunnels, by the agent's entries.
    pub fn tunnel_port(&self) -> Result<Option<u16>, DatapathError> {
        let config = self.noted::<u32, Config>(CONFIG, &0)?;
        let port = config.map(|config| config.tunnel_port.number());
        Ok(port.filter(|port| *port != 0))
    }

    /// The agent's entry for a key of a table; `None` also for a missing table and an unknown layout.
    fn noted<K: Plain, V: Plain>(&self, name: &str, key: &K) -> Result<Option<V>, DatapathError> {
        if !is_known(&self.dir) || !self.dir.map(name).exists() {
            return Ok(None);
        }
        let found = table::<K, V>(&self.dir, name)?.get(key);
        Ok(found.map_err(BpfError::syscall(format!("reading {name}")))?)
    }

    fn host_ports(&self) -> Result<HostPorts, DatapathError> {
        let none = || DatapathError::NoHostPorts(self.pins.root().to_path_buf(), self.dir.layout);
        HostPorts::open(&self.dir)?.ok_or_else(none)
    }

    /// The differences between a pod's entries and `entry`, as messages.
    pub fn differences(&self, entry: &Entry<'_>) -> Result<Vec<String>, DatapathError> {
        let mut differences = Vec::new();
        if let Some(tables) = Tables::open(&self.dir)? {
            differences.extend(tables.differences(entry)?);
        }
        if !entry.host_ports.is_empty() {
            differences.extend(self.host_ports()?.differences(entry)?);
        }
        Ok(differences)
    }

    /// The programs that should be attached to a pod's interface and are not.
    pub fn missing(&self, interface: u32) -> Result<Vec<&'static str>, DatapathError> {
        Ok(self.links()?.missing(interface, InterfaceRole::OwnPod)?)
    }

    /// Removes the pins and notes of an interface that is gone. `interface` is its index, if it existed a
    /// moment ago.
    pub fn unpin(&self, interface: Option<u32>) -> Result<(), DatapathError> {
        match interface {
            Some(index) => Links::forget_pod(&self.pins.links(), &self.pins.qdiscs(), index),
            None => self.links()?.forget_gone()?,
        }
        Ok(())
    }

    fn links(&self) -> Result<Links, BpfError> {
        Links::open(self.pins.links(), self.pins.qdiscs(), AttachMode::Clsact)
    }

    /// Removes the entries of an attachment whose interface is gone. A table without a pin is skipped: an
    /// agent that holds it open looks for entries of interfaces that are gone.
    pub fn erase(&self, traces: &Traces<'_>) -> Result<(), DatapathError> {
        if let Some(host_ports) = if_pinned(HostPorts::open(&self.dir))? {
            host_ports.erase(traces)?;
        }
        if let Some(tables) = if_pinned(Tables::open(&self.dir))? {
            tables.erase(traces)?;
        }
        if let (Some(cookie), Some(namespaces)) = (traces.netns_cookie, namespaces(&self.dir)) {
            // Another interface of the same pod may have taken over the entry.
            let entered = namespaces.get(&cookie).ok().flatten();
            let ours = |entered| traces.interface.is_none_or(|index| index == entered);
            if entered.is_some_and(ours) {
                namespaces
                    .remove(&cookie)
                    .map_err(BpfError::syscall(format!("removing an entry of {NAMESPACES}")))?;
            }
        }
        Ok(())
    }
}

/// The opened table; `None` if its pin is missing.
fn if_pinned<T>(opened: Result<Option<T>, BpfError>) -> Result<Option<T>, BpfError> {
    match opened {
        Err(BpfError::File { error, .. }) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        opened => opened,
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
    is_known(dir).then(|| table(dir, NAMESPACES).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{CniError, Code};

    #[test]
    fn without_pins_the_error_is_temporary() {
        let dir = tempfile::tempdir().unwrap();
        for root in [dir.path().to_path_buf(), dir.path().join("missing")] {
            let error = CniError::from(Datapath::open(&root).err().unwrap());
            assert_eq!(error.code, Code::TryAgainLater, "{error}");
            assert!(error.details.contains("millrace agent"), "{error}");
        }
    }
}
