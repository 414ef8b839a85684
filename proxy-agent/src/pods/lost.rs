//! Leases that are missing while their pods run, since the directory of leases was emptied, or a part of it.
//!
//! A note names the holder of an address, so the agent can make its lease again. Without the note the
//! container is unknown: the name of an interface is a hash of it. Such a pod continues to run, and its
//! routes keep the plugin from giving its addresses twice. But an ADD that draws one of them fails, so the
//! agent reports the pod until it is deleted.
//!
//! An unreadable note has a message of its own, since the collection may write a new one.

use std::net::IpAddr;
use std::path::Path;

use cni_plugin::ipam::{Note, Store, Unreadable};
use cni_plugin::netlink::{NetlinkSocket, link};
use proxy_common::Ip;

use super::check::is_pods;
use super::kernel::{Interfaces, Tables};
use super::{PluginPaths, PodsError};
use crate::control::ObjectError;
use crate::trouble::Trouble;

/// Whether an address of a note has no lease, or a lease of another attachment.
pub fn lacks_lease(store: &Store, note: &Note) -> bool {
    let attachment = note.attachment();
    let has_lease = |address: &IpAddr| {
        let lease = store.lease(*address);
        lease.is_some_and(|lease| lease.is_of(&attachment))
    };
    !note.addresses.iter().all(has_lease)
}

/// Our interfaces without a note. ADD writes the note before it makes the interface, and DEL removes it after
/// the interface. So if the note is missing and the interface still exists afterwards, the note was lost.
pub fn without_notes(
    paths: &PluginPaths,
    node: &mut NetlinkSocket,
    interfaces: &Interfaces,
) -> Result<Vec<ObjectError>, PodsError> {
    let store = Store::existing(&paths.lease_dir);
    let written = |name: &str| {
        let store = store.as_ref();
        store.is_some_and(|store| matches!(store.note(name), Ok(Some(_))))
    };
    let mut lost = Vec::new();
    for (index, interface) in interfaces
        .iter()
        .filter(|(_, interface)| is_pods(&interface.name))
    {
        let name = &interface.name;
        if !written(name) && link::find(node, name)?.is_some_and(|found| found.index == *index) {
            lost.push((*index, name));
        }
    }
    if lost.is_empty() {
        return Ok(Vec::new());
    }
    let Some(tables) = Tables::open(&paths.bpf_root)? else {
        return Ok(Vec::new());
    };
    let (entries, config) = (tables.read()?, tables.config()?);
    let unreadable = |name: &str| store.as_ref()?.unreadable_note(name);
    let problem = |(index, name): (u32, &String)| {
        let of_pod = entries.pods.iter().filter(|(_, pod)| pod.interface == index);
        let addresses: Vec<IpAddr> = of_pod.map(|(address, _)| *address).collect();
        // Another pod network keeps its leases elsewhere, and has other ranges.
        let is_own = |address: &IpAddr| config.is_own_pod_address(&Ip::from(*address));
        let is_of_network = addresses.iter().any(is_own);
        is_of_network.then(|| ObjectError {
            code: Trouble::PodNotWhole,
            object: format!("interface {name}"),
            message: message(&paths.lease_dir, &addresses, unreadable(name).as_ref()),
        })
    };
    Ok(lost.into_iter().filter_map(problem).collect())
}

fn message(dir: &Path, addresses: &[IpAddr], unreadable: Option<&Unreadable>) -> String {
    if let Some(Unreadable { path, why }) = unreadable {
        let path = path.display();
        return format!(
            "the note on its pod{} cannot be read: {path}: {why}: the agent writes a new one from the leases within \
             minutes; if this stays, remove the file and delete the pod",
            listed(addresses)
        );
    }
    let dir = dir.display();
    let Some(first) = addresses.first() else {
        return format!("the leases of its pod are gone from {dir}: delete the pod, so that it is made anew");
    };
    format!(
        "the leases of its pod{} are gone from {dir}, and an ADD that comes to one of these addresses fails: delete the \
         pod, which `kubectl get pods -A -o wide | grep -wF {first}` names",
        listed(addresses)
    )
}

/// Addresses in brackets, for use behind a word.
fn listed(addresses: &[IpAddr]) -> String {
    let all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    if all.is_empty() {
        String::new()
    } else {
        format!(" ({})", all.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_whose_leases_are_gone_is_named_by_its_addresses() {
        let dir = Path::new("/var/lib/x");
        let addresses = ["10.244.1.2", "fd00::2"].map(|text| text.parse().unwrap());
        assert_eq!(
            message(dir, &addresses, None),
            "the leases of its pod (10.244.1.2, fd00::2) are gone from /var/lib/x, and an ADD that comes to one of these \
             addresses fails: delete the pod, which `kubectl get pods -A -o wide | grep -wF 10.244.1.2` names"
        );
        assert!(message(dir, &[], None).ends_with("delete the pod, so that it is made anew"));
        let half = Unreadable {
            path: "/var/lib/x/millrace/mr0".into(),
            why: "EOF".into(),
        };
        let text = message(dir, &addresses, Some(&half));
        assert!(
            text.starts_with(
                "the note on its pod (10.244.1.2, fd00::2) cannot be read: /var/lib/x/millrace/mr0: EOF: "
            ),
            "{text}"
        );
    }
}
