//! Interfaces of pods that have another name than the plugin gave them.
//!
//! DEL, the programs' roles and the agent find a pod's interface by its name, which follows from the
//! container. A pod cannot change the name on the node's side, but a udev rule or an administrator can. The
//! agent recognises the interface by its Ethernet address, which follows from the container too, and by its
//! index, which the pod's entries contain. The kernel does not reuse an index.

use cni_plugin::attachment::is_of_limiter;
use cni_plugin::ipam::Note;
use cni_plugin::netlink::socket::errno;
use cni_plugin::netlink::{NetlinkError, NetlinkSocket, link};

use super::check::is_pods;
use super::kernel::{Entries, Interfaces, Tables, index_of};
use super::required::host_mac_of;
use super::{PluginPaths, PodsError};

/// An interface that has another name.
#[derive(Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The index of the interface.
    pub index: u32,
    /// The present name.
    pub now: String,
    /// The name that the plugin gave it.
    pub expected: String,
    /// The pod of the interface.
    pub pod: String,
}

/// The interfaces of noted pods that have another name.
pub fn renamed(
    paths: &PluginPaths,
    interfaces: &Interfaces,
    notes: &[Note],
) -> Result<Vec<Renamed>, PodsError> {
    let missing: Vec<_> = notes
        .iter()
        .filter(|note| !note.adopted && index_of(interfaces, &note.host_interface).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let tables = Tables::open(&paths.bpf_root)?;
    let entries = tables
        .map(|tables| tables.read())
        .transpose()?
        .unwrap_or_default();
    Ok(missing
        .into_iter()
        .filter_map(|note| find(interfaces, &entries, note))
        .collect())
}

fn find(interfaces: &Interfaces, entries: &Entries, note: &Note) -> Option<Renamed> {
    let mac = host_mac_of(note)?;
    let mut found = interfaces.iter().filter(|(_, interface)| {
        // Both ends of a limiter have this Ethernet address too.
        interface.is_veth
            && interface.mac == Some(mac)
            && !is_pods(&interface.name)
            && !is_of_limiter(&interface.name)
    });
    let (index, interface) = found.next().filter(|_| found.next().is_none())?;
    let entered = note
        .addresses
        .iter()
        .find_map(|address| entries.pods.get(address));
    entered
        .is_none_or(|pod| pod.interface == *index)
        .then(|| Renamed {
            index: *index,
            now: interface.name.clone(),
            expected: note.host_interface.clone(),
            pod: note.owner(),
        })
}

/// Sets the original name of an interface. Before Linux 6.2 the kernel renames an interface only while it is
/// switched off. The agent restores what the interface loses thereby, as after any other loss.
pub fn restore_name(node: &mut NetlinkSocket, index: u32, name: &str) -> Result<(), NetlinkError> {
    match node.ask(link::rename(index, name)) {
        Err(error) if errno(&error) == Some(libc::EBUSY) => {
            let requests = vec![link::down(index), link::rename(index, name), link::up(index)];
            node.batch(requests).map(drop)
        }
        done => done.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use cni_plugin::attachment::host_mac;
    use cni_plugin::config::Attachment;
    use cni_plugin::ipam::boot::BootTimestamp;
    use proxy_common::maps::Pod;

    use super::super::kernel::Interface;
    use super::*;

    #[test]
    fn a_renamed_interface_is_known_by_what_does_not_change() {
        let attachment = Attachment {
            container_id: "c".into(),
            if_name: "eth0".into(),
        };
        let address = "10.244.1.2".parse().unwrap();
        let note = Note {
            adopted: false,
            ..Note::adopting(
                &attachment,
                "mr0123456789ab".into(),
                vec![address],
                &BootTimestamp::now(),
            )
        };
        let interface = |name: &str| Interface {
            name: name.into(),
            mtu: 1500,
            mac: Some(host_mac(&attachment)),
            master: None,
            is_up: true,
            is_ifb: false,
            is_veth: true,
        };
        let entries = |interface| Entries {
            pods: [(
                address,
                Pod {
                    interface,
                    ..Pod::default()
                },
            )]
            .into(),
            ..Entries::default()
        };
        let limiter = (8, interface("ml0123456789ab"));
        let mut all = Interfaces::from([(7, interface("tap0")), limiter]);
        let found = find(&all, &entries(7), &note).expect("the interface");
        assert_eq!(
            (found.index, &*found.now, &*found.expected),
            (7, "tap0", "mr0123456789ab")
        );
        assert_eq!(
            find(&all, &Entries::default(), &note),
            Some(found),
            "its entries are lost too"
        );
        assert_eq!(
            find(&all, &entries(9), &note),
            None,
            "the pod's interface is another one"
        );
        all.insert(9, interface("tap1"));
        assert_eq!(find(&all, &entries(7), &note), None, "which one is not known");
        all.retain(|index, _| *index == 8);
        assert_eq!(find(&all, &entries(7), &note), None, "the limiter is not it");
    }
}
