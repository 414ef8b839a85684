//! The entries of a pod in the tables that this plugin alone writes: which pod has an address, and which
//! packets it may send.
//!
//! Programs look a pod up by its address (`PODS`) and by its interface (`POD_LINKS`). `IN_USE` tells them
//! whether a table has entries at all. An entry names the interface that it was made for. A caller removes
//! only entries of its own attachment: those that name its interface, or those whose address is leased to it.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use proxy_bpf::pins::LayoutDir;
use proxy_bpf::{BpfError, HashTable, sys};
use proxy_common::maps::{InUse, Pod, PodFlags, PodLink, PodLinkFlags};
use proxy_common::{Ip, LAYOUT_VERSION, Plain};

use super::error::DatapathError;
use super::{Entry, Traces};
use crate::netlink::link;

const PODS: &str = "PODS";
const POD_LINKS: &str = "POD_LINKS";
const IN_USE: &str = "IN_USE";

/// The tables of pods.
pub(super) struct Tables {
    pods: HashTable<Ip, Pod>,
    links: HashTable<u32, PodLink>,
    in_use: HashTable<u32, u32>,
}

/// Opens a pinned table. The caller has checked that the layout is the one that is known here.
pub(super) fn table<K: Plain, V: Plain>(dir: &LayoutDir, name: &str) -> Result<HashTable<K, V>, BpfError> {
    let path = dir.map(name);
    let map: OwnedFd = sys::open_pin(&path).map_err(BpfError::file("opening", &path))?;
    HashTable::new(map).map_err(BpfError::file("reading", &path))
}

/// Whether the maps in force have the layout that is known here. Those of an older agent have no tables of
/// pods, and its programs do not need them.
pub(super) fn is_known(dir: &LayoutDir) -> bool {
    dir.layout == LAYOUT_VERSION
}

/// Notes in `IN_USE` that a table has entries.
pub(super) fn note_use(in_use: &HashTable<u32, u32>, which: u32) -> Result<(), DatapathError> {
    in_use
        .set(&which, &1)
        .map_err(DatapathError::writing(IN_USE, InUse::COUNT))
}

/// Restores the note that a table has entries, if it was lost. Returns the message of that.
pub(super) fn restore_use(in_use: &HashTable<u32, u32>, which: u32) -> Result<Option<String>, DatapathError> {
    let noted = in_use.get(&which).map_err(BpfError::syscall("reading IN_USE"))?;
    if noted == Some(1) {
        return Ok(None);
    }
    note_use(in_use, which)?;
    Ok(Some(format!("{IN_USE} lacks table {which}")))
}

/// Opens the table that notes which of the others have entries.
pub(super) fn in_use(dir: &LayoutDir) -> Result<HashTable<u32, u32>, BpfError> {
    table(dir, IN_USE)
}

impl Tables {
    pub(super) fn open(dir: &LayoutDir) -> Result<Option<Self>, BpfError> {
        if !is_known(dir) {
            return Ok(None);
        }
        Ok(Some(Self {
            pods: table(dir, PODS)?,
            links: table(dir, POD_LINKS)?,
            in_use: in_use(dir)?,
        }))
    }

    /// Enters a pod.
    pub(super) fn enter(&self, entry: &Entry<'_>) -> Result<(), DatapathError> {
        let link = link_of(entry);
        self.links
            .set(&entry.interface, &link)
            .map_err(DatapathError::writing(POD_LINKS, self.links.capacity()))?;
        let pod = pod_of(entry);
        for address in entry.addresses {
            self.pods
                .set(&Ip::from(*address), &pod)
                .map_err(DatapathError::writing(PODS, self.pods.capacity()))?;
        }
        note_use(&self.in_use, InUse::PODS)
    }

    /// Enters data that is missing or another pod's. Returns a message if the note of use was lost too.
    pub(super) fn restore(&self, entry: &Entry<'_>) -> Result<Option<String>, DatapathError> {
        let reading = |map: &str| BpfError::syscall(format!("reading {map}"));
        let found = self.links.get(&entry.interface).map_err(reading(POD_LINKS))?;
        if found.is_none_or(|link| link.mac != entry.mac) {
            self.links
                .set(&entry.interface, &link_of(entry))
                .map_err(DatapathError::writing(POD_LINKS, self.links.capacity()))?;
        }
        for address in entry.addresses {
            let key = Ip::from(*address);
            let found = self.pods.get(&key).map_err(reading(PODS))?;
            if found.is_none_or(|pod| (pod.interface, pod.mac) != (entry.interface, entry.mac)) {
                self.pods
                    .set(&key, &pod_of(entry))
                    .map_err(DatapathError::writing(PODS, self.pods.capacity()))?;
            }
        }
        restore_use(&self.in_use, InUse::PODS)
    }

    /// Removes a pod's entries. The entries of `PODS`, which name the interface, go last: a repeated DEL
    /// finds the interface only there.
    pub(super) fn erase(&self, traces: &Traces<'_>) -> Result<(), DatapathError> {
        let removing = |map: &str| BpfError::syscall(format!("removing an entry of {map}"));
        let mut ours = Vec::new();
        for address in traces.addresses {
            let key = Ip::from(*address);
            let found = self.pods.get(&key).map_err(BpfError::syscall("reading PODS"))?;
            let pod = found.filter(|pod| traces.is_ours(*address, pod.interface));
            ours.extend(pod.map(|pod| (key, pod.interface)));
        }
        let mut interfaces: Vec<u32> = ours.iter().map(|(_, interface)| *interface).collect();
        interfaces.extend(traces.interface);
        interfaces.sort_unstable();
        interfaces.dedup();
        for interface in interfaces {
            self.links.remove(&interface).map_err(removing(POD_LINKS))?;
        }
        for (key, _) in ours {
            self.pods.remove(&key).map_err(removing(PODS))?;
        }
        Ok(())
    }

    /// The differences between the tables and `entry`, as messages.
    pub(super) fn differences(&self, entry: &Entry<'_>) -> Result<Vec<String>, DatapathError> {
        let reading = |map: &str| BpfError::syscall(format!("reading {map}"));
        let mut differences = Vec::new();
        let link = self.links.get(&entry.interface).map_err(reading(POD_LINKS))?;
        // Only the Ethernet address counts: the agent changes limits while the pod lives.
        if link.is_none_or(|link| link.mac != entry.mac) {
            differences.push(format!(
                "{POD_LINKS} lacks interface {} with its Ethernet address",
                entry.interface
            ));
        }
        for address in entry.addresses {
            let found = self.pods.get(&Ip::from(*address)).map_err(reading(PODS))?;
            if found.is_none_or(|pod| (pod.interface, pod.mac) != (entry.interface, entry.mac)) {
                differences.push(format!("{PODS} lacks {address} at interface {}", entry.interface));
            }
        }
        Ok(differences)
    }
}

fn link_of(entry: &Entry<'_>) -> PodLink {
    PodLink {
        mac: entry.mac,
        reserved: [0; 2],
        flags: entry.limiter.map_or(0, |_| PodLinkFlags::LIMITED_FIRST),
        limiter: entry.limiter.unwrap_or_default(),
    }
}

fn pod_of(entry: &Entry<'_>) -> Pod {
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    Pod {
        netns: entry.netns_cookie.unwrap_or_default(),
        interface: entry.interface,
        flags: flag(entry.is_limited, PodFlags::LIMITED_INGRESS)
            | flag(entry.limiter.is_some(), PodFlags::LIMITED_EGRESS),
        mac: entry.mac,
        reserved: [0; 2],
    }
}

impl Traces<'_> {
    /// Whether an entry for an address belongs to the attachment. An entry at another pod's interface does
    /// not, although the address is leased to this attachment: the lease of that pod may have been lost.
    pub(super) fn is_ours(&self, address: IpAddr, interface: u32) -> bool {
        let is_anothers = || link::name_of(interface).is_some();
        self.interface == Some(interface) || (self.leased.contains(&address) && !is_anothers())
    }
}
