//! Compares leases, notes, interfaces and maps with each other.
//!
//! Each attachment should have one note, and a lease for each of its addresses. It should have an interface
//! with routes, neighbours and settings, and an entry for the interface and for each address. An object that
//! lacks one of these, or that no note names, is a finding.
//!
//! The check takes no lock. So an attachment that the plugin adds or removes at that moment may be a finding,
//! and is none at the next check.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cni_plugin::attachment::PREFIX;
use cni_plugin::datapath::Datapath;
use cni_plugin::ipam::boot::BootTimestamp;
use cni_plugin::ipam::collect::is_leaked;
use cni_plugin::ipam::{Lease, Note, Store, Unreadable};

use super::kernel::{Entries, Interfaces, Kernel, index_of};
use super::leases::note_of;
use super::required::{KernelState, Pod, host_mac_of, mac_of, mtu_of};
use super::{PluginPaths, PodsError};
use crate::control::ObjectError;
use crate::trouble::Trouble;

/// The number of compared objects, and the findings.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Checked {
    /// The number of leases.
    pub leases: usize,
    /// The number of pods' interfaces.
    pub interfaces: usize,
    /// The findings, each with its object.
    pub problems: Vec<ObjectError>,
}

/// All compared objects.
struct Found<'a> {
    leases: &'a [Lease],
    notes: &'a [Note],
    /// Interfaces whose notes cannot be read, which have findings of their own.
    half_noted: &'a BTreeSet<String>,
    interfaces: &'a Interfaces,
    entries: &'a Entries,
    kernel_state: &'a KernelState,
}

/// Compares all objects with each other.
pub fn check(paths: &PluginPaths) -> Result<Checked, PodsError> {
    let mut kernel = Kernel::read(&paths.bpf_root)?;
    let kernel_state = KernelState::read(&mut kernel.node)?;
    let store = Store::existing(&paths.lease_dir);
    let (mut leases, mut notes, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    let mut half_noted = BTreeSet::new();
    if let Some(store) = &store {
        (leases, notes) = (store.readable_leases()?.0, store.notes()?);
        problems.extend(unreadable(store)?);
        let names = kernel.interfaces.values().map(|interface| &interface.name);
        let names = names.filter(|name| is_pods(name) && store.unreadable_note(name).is_some());
        half_noted = names.cloned().collect();
        let now = BootTimestamp::now();
        notes.retain(|note| {
            let leaked = is_leaked(store, note, &now, |note| kernel.has(note));
            if leaked {
                problems.push(problem(
                    note.owner(),
                    "it is gone, and its addresses are leaked: the agent frees them within minutes",
                ));
            }
            // The ADD completes soon, or has failed.
            !leaked && !store.is_in_the_making(&note.host_interface)
        });
    }
    let found = Found {
        leases: &leases,
        notes: &notes,
        half_noted: &half_noted,
        interfaces: &kernel.interfaces,
        entries: &kernel.entries,
        kernel_state: &kernel_state,
    };
    problems.extend(found.problems());
    problems.extend(found.without_programs(paths));
    let of_pods = kernel
        .interfaces
        .values()
        .filter(|interface| is_pods(&interface.name));
    let interfaces = of_pods.count();
    // The first ADD makes the directory.
    if store.is_none() && interfaces > 0 {
        let object = paths.lease_dir.display().to_string();
        problems.insert(0, problem(object, "the directory of leases is missing"));
    }
    Ok(Checked {
        leases: leases.len(),
        interfaces,
        problems,
    })
}

/// The files among leases and notes that can be read as neither.
pub(super) fn unreadable(store: &Store) -> Result<Vec<ObjectError>, PodsError> {
    let path = |found: &Unreadable| found.path.display().to_string();
    let (_, leases) = store.readable_leases()?;
    let leases = leases.into_iter().map(|found| {
        let message = format!(
            "it cannot be read as a lease ({}), and its address is given to no pod: remove it",
            found.why
        );
        problem(path(&found), message)
    });
    let (_, notes) = store.readable_notes()?;
    let notes = notes.into_iter().map(|found| {
        let message = format!("it cannot be read as a note on a pod ({}): remove it", found.why);
        problem(path(&found), message)
    });
    Ok(leases.chain(notes).collect())
}

/// Whether an interface has a name that the plugin gives to the node's side of a pod's veth.
pub(super) fn is_pods(name: &str) -> bool {
    let hash = name.strip_prefix(PREFIX);
    hash.is_some_and(|hash| hash.len() == 12 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn problem(object: String, message: impl std::fmt::Display) -> ObjectError {
    ObjectError::new(Trouble::PodRecordsBroken, object, &message)
}

impl Found<'_> {
    fn problems(&self) -> Vec<ObjectError> {
        let mut problems = Vec::new();
        for lease in self.leases {
            problems.extend(self.of_lease(lease).map(|message| {
                let object = format!("lease {}", lease.address);
                problem(object, message)
            }));
        }
        for note in self.notes {
            let messages = self.of_note(note);
            problems.extend(messages.into_iter().map(|message| problem(note.owner(), message)));
        }
        problems.extend(self.named_twice());
        problems.extend(self.without_owner());
        problems
    }

    fn of_lease(&self, lease: &Lease) -> Option<String> {
        if !lease.is_readable() {
            Some("the file says nothing, as a crash leaves it: the agent frees it within minutes".into())
        } else if lease.if_name.is_none() {
            Some(format!(
                "it is {}'s, of which no interface is known",
                lease.owner()
            ))
        } else if note_of(lease, self.notes).is_none() {
            Some(format!(
                "{} has it, of which there is no note: the agent writes one when it looks for leases of other plugins",
                lease.owner()
            ))
        } else {
            None
        }
    }

    fn of_note(&self, note: &Note) -> Vec<String> {
        let mut messages = Vec::new();
        for address in &note.addresses {
            let lease = self.leases.iter().find(|lease| lease.address == *address);
            match lease {
                None => messages.push(format!("its address {address} has no lease")),
                Some(lease) if !lease.is_of(&note.attachment()) => {
                    messages.push(format!("its address {address} is leased to {}", lease.owner()));
                }
                Some(_) => {}
            }
        }
        // The agent knows no more of an attachment that it adopted.
        if note.adopted {
            return messages;
        }
        let name = &note.host_interface;
        match index_of(self.interfaces, name) {
            None => messages.push(format!("the node has no interface {name}")),
            Some(index) => self.of_interface(note, index, &mut messages),
        }
        messages
    }

    fn of_interface(&self, note: &Note, index: u32, messages: &mut Vec<String>) {
        let name = &note.host_interface;
        let pod = Pod {
            index,
            name,
            mac: mac_of(note, index, self.kernel_state),
            host_mac: host_mac_of(note),
            mtu: mtu_of(note),
            addresses: &note.addresses,
        };
        let missing = pod.missing_objects(self.interfaces, self.kernel_state);
        messages.extend(missing.into_iter().map(|object| object.message));
        // A plugin that is older than these maps makes no entries.
        if self.entries.pods.is_empty() && self.entries.links.is_empty() {
            return;
        }
        if !self.entries.links.contains_key(&index) {
            messages.push(format!("POD_LINKS has no entry for interface {name}"));
        }
        for address in &note.addresses {
            match self.entries.pods.get(address) {
                None => messages.push(format!("PODS has no entry for {address}")),
                Some(pod) if pod.interface != index => messages.push(format!(
                    "PODS maps {address} to interface {}, and not to {index}, which is {name}",
                    pod.interface
                )),
                Some(_) => {}
            }
        }
    }

    /// Finds the addresses that several notes contain.
    fn named_twice(&self) -> Vec<ObjectError> {
        let mut notes_by_address: BTreeMap<IpAddr, Vec<&Note>> = BTreeMap::new();
        for note in self.notes {
            for address in &note.addresses {
                notes_by_address.entry(*address).or_default().push(note);
            }
        }
        let twice = notes_by_address.into_iter().filter(|(_, notes)| notes.len() > 1);
        let problem = |(address, notes): (IpAddr, Vec<&Note>)| {
            let names: Vec<_> = notes.into_iter().map(Note::owner).collect();
            problem(
                format!("address {address}"),
                format!("it belongs to {}", names.join(" and to ")),
            )
        };
        twice.map(problem).collect()
    }

    /// Finds the objects that belong to no note.
    fn without_owner(&self) -> Vec<ObjectError> {
        let noted: BTreeSet<&str> = self
            .notes
            .iter()
            .map(|note| note.host_interface.as_str())
            .chain(self.half_noted.iter().map(String::as_str))
            .collect();
        let mut problems = Vec::new();
        for interface in self.interfaces.values() {
            if is_pods(&interface.name) && !noted.contains(interface.name.as_str()) {
                problems.push(problem(
                    format!("interface {}", interface.name),
                    "there is no note of it: its lease was removed while it was in use",
                ));
            }
        }
        let leased: BTreeSet<IpAddr> = self.leases.iter().map(|lease| lease.address).collect();
        let is_gone = |index: &u32| !self.interfaces.contains_key(index);
        for (address, pod) in &self.entries.pods {
            if is_gone(&pod.interface) {
                let message = format!("it refers to interface {}, which does not exist", pod.interface);
                problems.push(problem(format!("entry of PODS for {address}"), message));
            } else if !leased.contains(address) {
                problems.push(problem(
                    format!("entry of PODS for {address}"),
                    "the address has no lease",
                ));
            }
        }
        for index in self.entries.links.keys().filter(|index| is_gone(index)) {
            let object = format!("entry of POD_LINKS for interface {index}");
            problems.push(problem(object, "the interface is gone"));
        }
        for (key, port) in self
            .entries
            .host_ports
            .iter()
            .filter(|(_, port)| is_gone(&port.interface))
        {
            let object = format!(
                "entry of HOST_PORTS for port {} of {}",
                key.port.number(),
                IpAddr::from(key.address)
            );
            problems.push(problem(
                object,
                format!("it refers to interface {}, which does not exist", port.interface),
            ));
        }
        problems
    }

    /// Finds the interfaces that have no programs attached.
    fn without_programs(&self, paths: &PluginPaths) -> Vec<ObjectError> {
        // Before the first start of an agent there are no programs to attach.
        let Ok(datapath) = Datapath::open(&paths.bpf_root) else {
            return Vec::new();
        };
        let mut problems = Vec::new();
        for note in self.notes.iter().filter(|note| !note.adopted) {
            let Some(index) = index_of(self.interfaces, &note.host_interface) else {
                continue;
            };
            match datapath.missing(index) {
                Ok(missing) if missing.is_empty() => {}
                Ok(missing) => problems.push(problem(
                    note.owner(),
                    format!("not attached to {}: {}", note.host_interface, missing.join(", ")),
                )),
                Err(error) => problems.push(problem(note.owner(), error)),
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests;
