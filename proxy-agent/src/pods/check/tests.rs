//! Tests of `check`.

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

/// A node with two pods and no findings.
struct Node {
    leases: Vec<Lease>,
    notes: Vec<Note>,
    interfaces: Interfaces,
    entries: Entries,
    kernel_state: KernelState,
}

impl Node {
    fn new() -> Self {
        let mut node = Self {
            leases: Vec::new(),
            notes: Vec::new(),
            interfaces: Interfaces::new(),
            entries: Entries::default(),
            kernel_state: KernelState::default(),
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
                ..Note::adopting(&attachment, name.clone(), vec![address], &BootTimestamp::now())
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
            node.kernel_state.put(index, address, pod_mac(&attachment));
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
            kernel_state: &self.kernel_state,
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
fn each_missing_object_is_reported() {
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
        ("maps 10.0.0.2 to interface 8", |node| {
            let pod = node.entries.pods.first_entry().unwrap().into_mut();
            pod.interface = 8;
        }),
        ("there is no route to 10.0.0.2", |node| {
            node.kernel_state = KernelState::default();
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
