//! Leases that are gone while their pods run: the directory of leases was emptied, or a part of it.
//!
//! A note tells whose an address is, so its lease can be made again. Where the note is gone too, the
//! container is unknown: the name of an interface is a hash of it. Such a pod goes on, and its routes keep
//! its addresses from being given twice. But an ADD that comes to one of them fails, so the pod is named
//! until it is deleted.

use std::net::IpAddr;
use std::path::Path;

use cni_plugin::ipam::{Note, Store};
use cni_plugin::netlink::{Conversation, link};
use proxy_common::Ip;

use super::check::is_pods;
use super::kernel::{Interfaces, Tables};
use super::{Places, PodsError};
use crate::control::ObjectError;
use crate::trouble::Trouble;

/// Whether a lease is missing of those that a note names, or another attachment's.
pub fn lacks_lease(store: &Store, note: &Note) -> Result<bool, PodsError> {
    let attachment = note.attachment();
    for address in &note.addresses {
        if !store
            .lease(*address)?
            .is_some_and(|lease| lease.is_of(&attachment))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Interfaces of ours without a note. ADD writes the note before it makes the interface, and DEL removes it
/// after the interface; so an interface that is there after its note was found missing has lost it.
pub fn without_notes(
    places: &Places,
    node: &mut Conversation,
    interfaces: &Interfaces,
) -> Result<Vec<ObjectError>, PodsError> {
    let store = Store::existing(&places.lease_dir);
    let written = |name: &str| store.as_ref().map_or(Ok(None), |store| store.note(name));
    let mut lost = Vec::new();
    for (index, interface) in interfaces
        .iter()
        .filter(|(_, interface)| is_pods(&interface.name))
    {
        let name = &interface.name;
        if written(name)?.is_none() && link::find(node, name)?.is_some_and(|found| found.index == *index) {
            lost.push((*index, name));
        }
    }
    if lost.is_empty() {
        return Ok(Vec::new());
    }
    let Some(tables) = Tables::open(&places.bpf_root)? else {
        return Ok(Vec::new());
    };
    let (entries, config) = (tables.read()?, tables.config()?);
    let problem = |(index, name): (u32, &String)| {
        let of_pod = entries.pods.iter().filter(|(_, pod)| pod.interface == index);
        let addresses: Vec<IpAddr> = of_pod.map(|(address, _)| *address).collect();
        // Another network keeps its leases elsewhere, and has other ranges.
        let is_own = |address: &IpAddr| config.is_own_pod_address(&Ip::from(*address));
        let is_of_network = addresses.iter().any(is_own);
        is_of_network.then(|| ObjectError {
            code: Trouble::PodNotWhole,
            object: format!("interface {name}"),
            message: message(&places.lease_dir, &addresses),
        })
    };
    Ok(lost.into_iter().filter_map(problem).collect())
}

fn message(dir: &Path, addresses: &[IpAddr]) -> String {
    let dir = dir.display();
    let Some(first) = addresses.first() else {
        return format!("the leases of its pod are gone from {dir}: delete the pod, so that it is made anew");
    };
    let all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    format!(
        "the leases of its pod ({}) are gone from {dir}, and an ADD that comes to one of these addresses fails: delete the \
         pod, which `kubectl get pods -A -o wide | grep -wF {first}` names",
        all.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_whose_leases_are_gone_is_named_by_its_addresses() {
        let dir = Path::new("/var/lib/x");
        let addresses = ["10.244.1.2", "fd00::2"].map(|text| text.parse().unwrap());
        assert_eq!(
            message(dir, &addresses),
            "the leases of its pod (10.244.1.2, fd00::2) are gone from /var/lib/x, and an ADD that comes to one of these \
             addresses fails: delete the pod, which `kubectl get pods -A -o wide | grep -wF 10.244.1.2` names"
        );
        assert!(message(dir, &[]).ends_with("delete the pod, so that it is made anew"));
    }
}
