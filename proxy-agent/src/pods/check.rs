//! Whether leases, notes, interfaces and maps say the same.
//!
//! Each attachment should have one note, a lease for each of its addresses, an interface with routes, neighbours and settings
//! around it, and an entry for the interface and for each address. Whatever lacks one of these, or is named by none, is a finding. Nothing is locked, so what is being
//! added or removed right now may show up, and is no finding a moment later.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cni_plugin::attachment::PREFIX;
use cni_plugin::datapath::Datapath;
use cni_plugin::ipam::boot::Moment;
use cni_plugin::ipam::collect::is_leaked;
use cni_plugin::ipam::{Lease, Note, Store, Unreadable};

use super::kernel::{Entries, Interfaces, Kernel, index_of};
use super::leases::note_of;
use super::owed::{Pod, Surroundings, host_mac_of, mac_of, mtu_of};
use super::{Places, PodsError};
use crate::control::ObjectError;
use crate::trouble::Trouble;

/// What was compared, and where it disagrees.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Checked {
    /// How many leases there are.
    pub leases: usize,
    /// How many pods' interfaces.
    pub interfaces: usize,
    /// Where they disagree.
    pub problems: Vec<ObjectError>,
}

/// Everything that is compared.
struct Found<'a> {
    leases: &'a [Lease],
    notes: &'a [Note],
    /// Interfaces whose notes cannot be read, which are named by themselves.
    half_noted: &'a BTreeSet<String>,
    interfaces: &'a Interfaces,
    entries: &'a Entries,
    surroundings: &'a Surroundings,
}

/// Compares everything with everything.
pub fn check(places: &Places) -> Result<Checked, PodsError> {
    let mut kernel = Kernel::read(&places.bpf_root)?;
    let surroundings = Surroundings::read(&mut kernel.node)?;
    let store = Store::existing(&places.lease_dir);
    let (mut leases, mut notes, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    let mut half_noted = BTreeSet::new();
    if let Some(store) = &store {
        (leases, notes) = (store.readable_leases()?.0, store.notes()?);
        problems.extend(unreadable(store)?);
        let names = kernel.interfaces.values().map(|interface| &interface.name);
        let names = names.filter(|name| is_pods(name) && store.unreadable_note(name).is_some());
        half_noted = names.cloned().collect();
        let now = Moment::now();
        notes.retain(|note| {
            let leaked = is_leaked(store, note, &now, |note| kernel.has(note));
            if leaked {
                problems.push(problem(
                    note.holder(),
                    "it is gone, and its addresses are leaked: the agent frees them within minutes",
                ));
            }
            // It is complete in a moment, or was given up.
            !leaked && !store.is_in_the_making(&note.host_interface)
        });
    }
    let found = Found {
        leases: &leases,
        notes: &notes,
        half_noted: &half_noted,
        interfaces: &kernel.interfaces,
        entries: &kernel.entries,
        surroundings: &surroundings,
    };
    problems.extend(found.problems());
    problems.extend(found.without_programs(places));
    let of_pods = kernel
        .interfaces
        .values()
        .filter(|interface| is_pods(&interface.name));
    let interfaces = of_pods.count();
    // The first ADD makes it.
    if store.is_none() && interfaces > 0 {
        let object = places.lease_dir.display().to_string();
        problems.insert(0, problem(object, "the directory of leases is missing"));
    }
    Ok(Checked {
        leases: leases.len(),
        interfaces,
        problems,
    })
}

/// Names what lies among leases and notes and can be read as neither.
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

/// Whether an interface has a name that the plugin gives to the node's side of a pod's.
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
            problems.extend(
                messages
                    .into_iter()
                    .map(|message| problem(note.holder(), message)),
            );
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
                lease.holder()
            ))
        } else if note_of(lease, self.notes).is_none() {
            Some(format!(
                "{} has it, of which there is no note: the agent writes one when it looks for leases of other plugins",
                lease.holder()
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
                    messages.push(format!("its address {address} is leased to {}", lease.holder()));
                }
                Some(_) => {}
            }
        }
        // Of one that was taken over nothing more is known.
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
            mac: mac_of(note, index, self.surroundings),
            host_mac: host_mac_of(note),
            mtu: mtu_of(note),
            addresses: &note.addresses,
        };
        let lacks = pod.lacks(self.interfaces, self.surroundings);
        messages.extend(lacks.into_iter().map(|lack| lack.message));
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
                    "PODS leads {address} to interface {}, and not to {index}, which is {name}",
                    pod.interface
                )),
                Some(_) => {}
            }
        }
    }

    /// Addresses that several notes name.
    fn named_twice(&self) -> Vec<ObjectError> {
        let mut holders: BTreeMap<IpAddr, Vec<&Note>> = BTreeMap::new();
        for note in self.notes {
            for address in &note.addresses {
                holders.entry(*address).or_default().push(note);
            }
        }
        let twice = holders.into_iter().filter(|(_, notes)| notes.len() > 1);
        let problem = |(address, notes): (IpAddr, Vec<&Note>)| {
            let names: Vec<_> = notes.into_iter().map(Note::holder).collect();
            problem(
                format!("address {address}"),
                format!("it belongs to {}", names.join(" and to ")),
            )
        };
        twice.map(problem).collect()
    }

    /// What belongs to nothing.
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
                let message = format!("it leads to interface {}, which is gone", pod.interface);
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
                format!("it leads to interface {}, which is gone", port.interface),
            ));
        }
        problems
    }

    /// Interfaces whose packets meet no program.
    fn without_programs(&self, places: &Places) -> Vec<ObjectError> {
        // Before an agent has been up there is nothing to attach.
        let Ok(datapath) = Datapath::open(&places.bpf_root) else {
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
                    note.holder(),
                    format!("not attached to {}: {}", note.host_interface, missing.join(", ")),
                )),
                Err(error) => problems.push(problem(note.holder(), error)),
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernel::Interface;
    use super::*;
    use cni_plugin::attachment::{host_interface, host_mac, pod_mac};
    use cni_plugin::config::Attachment;
    use proxy_common::maps::{self, PodLink};

    fn attachment(container: &str) -> Attachment {
        Attachment {
            container_id: container.into(),
            if_name: "eth0".into(),
        }
    }

    /// A node with two pods at which everything is as it should be.
    struct Node {
        leases: Vec<Lease>,
        notes: Vec<Note>,
        interfaces: Interfaces,
        entries: Entries,
        surroundings: Surroundings,
    }

    impl Node {
        fn new() -> Self {
            let mut node = Self {
                leases: Vec::new(),
                notes: Vec::new(),
                interfaces: Interfaces::new(),
                entries: Entries::default(),
                surroundings: Surroundings::default(),
            };
            for (index, container, address) in [(7, "a", "10.0.0.2"), (8, "b", "10.0.0.3")] {
                let attachment = attachment(container);
                let address: IpAddr = address.parse().unwrap();
                let name = host_interface(&attachment);
                node.leases.extend(Lease::read(
                    &address.to_string(),
                    Lease::contents(&attachment).as_bytes(),
                ));
                node.notes.push(Note {
                    adopted: false,
                    ..Note::adopting(&attachment, name.clone(), vec![address], &Moment::now())
                });
                node.interfaces.insert(
                    index,
                    Interface {
                        name,
                        mtu: 1450,
                        mac: Some(host_mac(&attachment)),
                        master: None,
                        is_up: true,
                        is_ifb: false,
                        is_veth: true,
                    },
                );
                node.surroundings.put(index, address, pod_mac(&attachment));
                let pod = maps::Pod {
                    interface: index,
                    ..maps::Pod::default()
                };
                node.entries.pods.insert(address, pod);
                node.entries.links.insert(index, PodLink::default());
            }
            node
        }

        fn problems(&self) -> Vec<String> {
            let found = Found {
                leases: &self.leases,
                notes: &self.notes,
                half_noted: &BTreeSet::new(),
                interfaces: &self.interfaces,
                entries: &self.entries,
                surroundings: &self.surroundings,
            };
            let problems = found.problems().into_iter();
            problems
                .map(|problem| format!("{}: {}", problem.object, problem.message))
                .collect()
        }
    }

    #[test]
    fn nothing_is_wrong_with_a_node_in_order() {
        assert_eq!(Node::new().problems(), [""; 0]);
    }

    #[test]
    fn whatever_is_missing_is_found() {
        type Damage = fn(&mut Node);
        let damages: [(&str, Damage); 10] = [
            ("its address 10.0.0.2 has no lease", |node| {
                drop(node.leases.remove(0));
            }),
            ("no note", |node| drop(node.notes.remove(0))),
            ("its lease was removed", |node| {
                node.notes.remove(0);
                node.leases.remove(0);
            }),
            ("the node has no interface", |node| {
                drop(node.interfaces.remove(&7));
            }),
            ("is switched off", |node| {
                node.interfaces.get_mut(&7).unwrap().is_up = false;
            }),
            ("PODS has no entry for 10.0.0.2", |node| {
                node.entries.pods.pop_first();
            }),
            ("POD_LINKS has no entry", |node| {
                node.entries.links.clear();
            }),
            ("leads 10.0.0.2 to interface 8", |node| {
                let pod = node.entries.pods.first_entry().unwrap().into_mut();
                pod.interface = 8;
            }),
            ("there is no route to 10.0.0.2", |node| {
                node.surroundings = Surroundings::default();
            }),
            ("it belongs to", |node| {
                node.notes[1].addresses = node.notes[0].addresses.clone();
            }),
        ];
        for (expected, damage) in damages {
            let mut node = Node::new();
            damage(&mut node);
            let problems = node.problems();
            assert!(
                problems.iter().any(|problem| problem.contains(expected)),
                "{expected}: {problems:?}"
            );
        }
    }

    #[test]
    fn what_was_taken_over_has_addresses_only() {
        let mut node = Node::new();
        for note in &mut node.notes {
            note.adopted = true;
        }
        node.interfaces.clear();
        node.entries = Entries::default();
        assert_eq!(node.problems(), [""; 0]);
        node.leases[0] = Lease::read("10.0.0.2", b"c\r\neth0").unwrap();
        assert_eq!(node.problems().len(), 2, "{:?}", node.problems());
    }
}
