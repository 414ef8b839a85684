//! Lists the addresses with their holders, and releases an address at an operator's command.
//!
//! An address counts as leaked by the same rule by which [`super::collect`] frees it, so the next collection
//! frees each listed leak. The release of an address removes its whole attachment, in the order of DEL. An
//! address must not be free while an object on the node still leads to its former pod.

use std::net::IpAddr;

use cni_plugin::config::Attachment;
use cni_plugin::ipam::boot::BootTimestamp;
use cni_plugin::ipam::collect::is_leaked;
use cni_plugin::ipam::{Lease, Note, Store};
use cni_plugin::verbs::detach::detach_at;

use super::kernel::Kernel;
use super::{PluginPaths, PodsError};
use crate::control::{LeaseEntry, LeaseState};

/// All leases, by address.
pub fn list(paths: &PluginPaths) -> Result<Vec<LeaseEntry>, PodsError> {
    let Some(store) = Store::existing(&paths.lease_dir) else {
        return Ok(Vec::new());
    };
    let mut kernel = Kernel::read(&paths.bpf_root)?;
    let (notes, now) = (store.notes()?, BootTimestamp::now());
    let (mut leases, _) = store.readable_leases()?;
    leases.sort_by_key(|lease| lease.address);
    let entry = |lease: Lease| LeaseEntry {
        address: lease.address,
        state: state(&store, &lease, &notes, &now, &mut kernel),
        container_id: lease.container_id,
        if_name: lease.if_name,
    };
    Ok(leases.into_iter().map(entry).collect())
}

fn state(
    store: &Store,
    lease: &Lease,
    notes: &[Note],
    now: &BootTimestamp,
    kernel: &mut Kernel,
) -> LeaseState {
    let leaked = match note_of(lease, notes) {
        Some(note) => is_leaked(store, note, now, |note| kernel.has(note)),
        // An unreadable lease is the remains of a crash. Every other one belongs to a holder without a note.
        None => !lease.is_readable(),
    };
    if leaked {
        LeaseState::Leaked
    } else {
        LeaseState::Used
    }
}

/// The note that belongs to a lease.
pub fn note_of<'a>(lease: &Lease, notes: &'a [Note]) -> Option<&'a Note> {
    notes
        .iter()
        .find(|note| note.addresses.contains(&lease.address) && lease.is_of(&note.attachment()))
}

/// Releases an address, with all others of its attachment. It releases an address that may be in use only
/// with `force`. Returns the addresses that are free now.
pub fn release(paths: &PluginPaths, address: IpAddr, force: bool) -> Result<Vec<LeaseEntry>, PodsError> {
    let no_lease = || PodsError::NoLease {
        address,
        dir: paths.lease_dir.clone(),
    };
    let store = Store::existing(&paths.lease_dir).ok_or_else(no_lease)?;
    let lease = store.lease(address).ok_or_else(no_lease)?;
    let before = list(paths)?;
    let of_lease = |entry: &&LeaseEntry| entry.address == address;
    let used = before.iter().find(of_lease).map(|entry| entry.state) == Some(LeaseState::Used);
    let notes = store.notes()?;
    if used && !force {
        let owner = note_of(&lease, &notes).map_or_else(|| lease.owner(), Note::owner);
        return Err(PodsError::InUse { address, owner });
    }
    if let Some(if_name) = &lease.if_name {
        let attachment = Attachment {
            container_id: lease.container_id.clone(),
            if_name: if_name.clone(),
        };
        let mut kernel = Kernel::read(&paths.bpf_root)?;
        detach_at(&paths.bpf_root, Some(&store), &mut kernel.node, &attachment)?;
    } else {
        store.lock()?.remove_lease(address)?;
    }
    let mut released = Vec::new();
    for entry in before {
        if store.lease(entry.address).is_none() {
            released.push(entry);
        }
    }
    Ok(released)
}
