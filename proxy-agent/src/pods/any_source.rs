//! Pods that may send from addresses that are not their own: routers, and hosts of virtual machines.
//!
//! Only the operator's configuration chooses them. The flag stands in `POD_LINKS`, beside what the plugin entered there,
//! and is compared with each look: it comes when a chosen pod comes, and goes when the choice or the label goes.
//!
//! Invariant: an interface of which no note says the pod has no exemption.

use std::collections::BTreeMap;

use cni_plugin::ipam::{Note, Store};
use cni_plugin::netlink::Conversation;
use proxy_bpf::BpfError;
use proxy_common::maps::{PodLink, PodLinkFlags};

use super::kernel::{Tables, index_of, interfaces};
use super::{Places, PodsError};
use crate::cluster::PodNames;

/// What was done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Exempted {
    /// What was changed, in words.
    pub changes: Vec<String>,
    /// Whether some chosen pod was just being made, and has to be looked at again.
    pub early: bool,
}

/// Brings the exemptions of all pods in line.
pub fn apply(places: &Places, chosen: &PodNames) -> Result<Exempted, PodsError> {
    let mut exempted = Exempted::default();
    let Some(tables) = Tables::open(&places.bpf_root)? else {
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
    let interfaces = interfaces(&mut Conversation::open()?)?;
    let mut wanted = BTreeMap::new();
    for note in chosen_notes(places, chosen)? {
        let index = index_of(&interfaces, &note.host_interface);
        match index.filter(|index| links.contains_key(index)) {
            Some(index) => drop(wanted.insert(index, note.holder().clone())),
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

fn chosen_notes(places: &Places, chosen: &PodNames) -> Result<Vec<Note>, PodsError> {
    let Some(store) = Store::existing(&places.lease_dir) else {
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
