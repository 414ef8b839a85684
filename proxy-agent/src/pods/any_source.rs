//! Pods that may send from addresses that are not their own: routers, and hosts of virtual machines.
//!
//! Only the operator's configuration chooses them. The flag is in `POD_LINKS`, beside the plugin's entry.
//! Each look compares it: the agent sets it for a new chosen pod, and clears it if the choice or the label is
//! removed.
//!
//! Invariant: an interface without a pod's note has no exemption.

use std::collections::BTreeMap;

use cni_plugin::ipam::{Note, Store};
use cni_plugin::netlink::NetlinkSocket;
use proxy_bpf::BpfError;
use proxy_common::maps::{PodLink, PodLinkFlags};

use super::kernel::{Tables, index_of, interfaces};
use super::{PluginPaths, PodsError};
use crate::cluster::PodNames;

/// The result of a look.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Exempted {
    /// The changes, in words.
    pub changes: Vec<String>,
    /// Whether an ADD for some chosen pod is still running, so that another look is necessary.
    pub early: bool,
}

/// Sets or clears the exemptions of all pods as chosen.
pub fn apply(paths: &PluginPaths, chosen: &PodNames) -> Result<Exempted, PodsError> {
    let mut exempted = Exempted::default();
    let Some(tables) = Tables::open(&paths.bpf_root)? else {
        return Ok(exempted);
    };
    let mut links = BTreeMap::new();
    let failed = || BpfError::syscall("reading the map POD_LINKS");
    tables
        .links
        .for_each(|index, link| links.extend([(index, link)]))
        .map_err(failed())?;
    let has_flag = |link: &PodLink| link.flags & PodLinkFlags::ANY_SOURCE != 0;
    if chosen.is_empty() && !links.values().any(has_flag) {
        return Ok(exempted);
    }
    let interfaces = interfaces(&mut NetlinkSocket::open()?)?;
    let mut wanted = BTreeMap::new();
    for note in chosen_notes(paths, chosen)? {
        let index = index_of(&interfaces, &note.host_interface);
        match index.filter(|index| links.contains_key(index)) {
            Some(index) => drop(wanted.insert(index, note.owner().clone())),
            // ADD makes the interface first and the entry last.
            None => exempted.early |= index.is_some(),
        }
    }
    for (index, mut link) in links {
        let pod = wanted.get(&index);
        if pod.is_some() == has_flag(&link) {
            continue;
        }
        link.flags ^= PodLinkFlags::ANY_SOURCE;
        let changed = || BpfError::syscall("changing an entry of POD_LINKS");
        tables.links.set(&index, &link).map_err(changed())?;
        exempted.changes.push(match pod {
            Some(pod) => format!("{pod} may send from any address now"),
            None => format!("the pod at interface {index} may send from its own addresses only now"),
        });
    }
    Ok(exempted)
}

fn chosen_notes(paths: &PluginPaths, chosen: &PodNames) -> Result<Vec<Note>, PodsError> {
    let Some(store) = Store::existing(&paths.lease_dir) else {
        return Ok(Vec::new());
    };
    let is_chosen = |note: &Note| {
        let pod = note.pod_namespace.clone().zip(note.pod_name.clone());
        pod.is_some_and(|pod| chosen.contains(&pod))
    };
    let mut notes = store.notes()?;
    notes.retain(is_chosen);
    Ok(notes)
}
