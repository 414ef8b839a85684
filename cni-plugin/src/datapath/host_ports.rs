//! Host ports of pods. The first pod that asks for a host port gets it.
//!
//! Two entries clash, although their keys differ, if one is for all addresses. So the plugin reads the whole
//! table, which is short, before it enters ports, and a lock keeps out other writers meanwhile. An entry
//! whose interface is gone belongs to no pod: its pod ended, and DEL is late or never comes.

use std::collections::hash_map::Entry as Known;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use proxy_bpf::pins::LayoutDir;
use proxy_bpf::{BpfError, HashTable};
use proxy_common::maps::{HostPort as Value, HostPortKey, InUse};
use proxy_common::{Ip, Port};

use super::error::DatapathError;
use super::tables::{in_use, is_known, note_use, restore_use, table};
use super::{Entry, Traces};
use crate::config::HostPort;
use crate::config::host_port::clash;
use crate::netlink::{NetlinkSocket, link};

const HOST_PORTS: &str = "HOST_PORTS";

/// The table of host ports.
pub(super) struct HostPorts {
    table: HashTable<HostPortKey, Value>,
    in_use: HashTable<u32, u32>,
}

impl HostPorts {
    /// Opens the table; `None` if the maps of an older agent are in force.
    pub(super) fn open(dir: &LayoutDir) -> Result<Option<Self>, BpfError> {
        if !is_known(dir) {
            return Ok(None);
        }
        Ok(Some(Self {
            table: table(dir, HOST_PORTS)?,
            in_use: in_use(dir)?,
        }))
    }

    /// Checks that a pod with the addresses `pod` could have the ports. Returns the entries without a pod
    /// that clash with them. Only entries of the same port can clash, and a pod may have thousands of ports:
    /// so the entries are indexed by port.
    pub(super) fn check_free(
        &self,
        node: &mut NetlinkSocket,
        ports: &[HostPort],
        pod: &[IpAddr],
    ) -> Result<Vec<HostPortKey>, DatapathError> {
        let mut orphans = Vec::new();
        let mut entered = HashMap::<_, Vec<_>>::new();
        let add = |key: HostPortKey, value| entered.entry(by_port(&key)).or_default().push((key, value));
        let read = self.table.for_each(add);
        read.map_err(BpfError::syscall("reading HOST_PORTS"))?;
        let mut exists = HashMap::new();
        for port in ports {
            for (key, _) in port.keys(pod) {
                let others: &[(HostPortKey, Value)] = entered.get(&by_port(&key)).map_or(&[], Vec::as_slice);
                for (other, owner) in others.iter().filter(|(other, _)| clash(&key, other)) {
                    let exists = match exists.entry(owner.interface) {
                        Known::Occupied(known) => *known.get(),
                        Known::Vacant(new) => *new.insert(link::exists(node, owner.interface)?),
                    };
                    if exists {
                        return Err(DatapathError::PortTaken {
                            port: *port,
                            pod: owner.pod.into(),
                        });
                    }
                    orphans.push(*other);
                }
            }
        }
        Ok(orphans)
    }

    /// Enters a pod's ports. The caller holds the lock and has made the pod's interface.
    pub(super) fn enter(&self, node: &mut NetlinkSocket, entry: &Entry<'_>) -> Result<(), DatapathError> {
        let orphans = self.check_free(node, entry.host_ports, entry.addresses)?;
        for port in entry.host_ports {
            for (key, pod) in port.keys(entry.addresses) {
                let before = self.get(&key)?.map_or(0, |value| value.generation);
                let value = Value {
                    pod: Ip::from(pod),
                    port: Port::new(port.container_port),
                    reserved: [0; 2],
                    interface: entry.interface,
                    generation: generation(before),
                };
                self.table
                    .set(&key, &value)
                    .map_err(DatapathError::writing(HOST_PORTS, self.table.capacity()))?;
            }
        }
        let keys = entry
            .host_ports
            .iter()
            .flat_map(|port| port.keys(entry.addresses));
        let ours: HashSet<HostPortKey> = keys.map(|(key, _)| key).collect();
        for orphan in orphans.iter().filter(|key| !ours.contains(key)) {
            self.remove(orphan)?;
        }
        note_use(&self.in_use, InUse::HOST_PORTS)
    }

    /// Removes a pod's ports. Where they are not known, it removes all ports that lead to the pod's
    /// interface.
    pub(super) fn erase(&self, traces: &Traces<'_>) -> Result<(), DatapathError> {
        let mut keys = Vec::new();
        match (traces.host_ports, traces.interface) {
            (Some(ports), _) => {
                let of_ports = ports.iter().flat_map(|port| port.keys(traces.addresses));
                keys.extend(of_ports.map(|(key, _)| key));
            }
            (None, Some(interface)) => {
                let of_interface = |key, value: Value| {
                    if value.interface == interface {
                        keys.push(key);
                    }
                };
                let read = self.table.for_each(of_interface);
                read.map_err(BpfError::syscall("reading HOST_PORTS"))?;
            }
            (None, None) => {}
        }
        for key in keys {
            let ours = |value: Value| traces.is_ours(value.pod.into(), value.interface);
            if self.get(&key)?.is_some_and(ours) {
                self.remove(&key)?;
            }
        }
        Ok(())
    }

    fn remove(&self, key: &HostPortKey) -> Result<(), DatapathError> {
        let removed = self.table.remove(key);
        Ok(removed.map_err(BpfError::syscall("removing an entry of HOST_PORTS"))?)
    }

    /// The differences between the table and `entry`, as messages.
    pub(super) fn differences(&self, entry: &Entry<'_>) -> Result<Vec<String>, DatapathError> {
        let mut differences = Vec::new();
        for port in entry.host_ports {
            for (key, pod) in port.keys(entry.addresses) {
                let is_own_entry = |value: Value| {
                    (value.pod, value.port, value.interface)
                        == (Ip::from(pod), Port::new(port.container_port), entry.interface)
                };
                if !self.get(&key)?.is_some_and(is_own_entry) {
                    differences.push(format!(
                        "{port} does not lead to port {} of {pod}",
                        port.container_port
                    ));
                }
            }
        }
        Ok(differences)
    }

    /// The ports with an entry that is missing or leads elsewhere.
    pub(super) fn lost(&self, entry: &Entry<'_>) -> Result<Vec<HostPort>, DatapathError> {
        let mut lost = Vec::new();
        for port in entry.host_ports {
            let alone = Entry {
                host_ports: std::slice::from_ref(port),
                ..*entry
            };
            if !self.differences(&alone)?.is_empty() {
                lost.push(*port);
            }
        }
        Ok(lost)
    }

    /// Restores the note of use for host ports, if it was lost. Returns the message of that.
    pub(super) fn restore_use(&self) -> Result<Option<String>, DatapathError> {
        restore_use(&self.in_use, InUse::HOST_PORTS)
    }

    fn get(&self, key: &HostPortKey) -> Result<Option<Value>, DatapathError> {
        let found = self.table.get(key);
        Ok(found.map_err(BpfError::syscall("reading HOST_PORTS"))?)
    }
}

/// The part of the key that two clashing entries share.
fn by_port(key: &HostPortKey) -> (Port, u8) {
    (key.port, key.protocol)
}

/// A number that differs from that of the entry that had the same key before, even a removed one. It is the
/// time since boot in microseconds, which repeats after 72 minutes.
fn generation(before: u32) -> u32 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    let number = (now.as_micros() as u32).max(1);
    if number == before {
        number.checked_add(1).unwrap_or(1)
    } else {
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_differ_and_are_never_zero() {
        let one = generation(0);
        assert!(one != 0 && generation(one) != one);
    }
}
