//! GC: removing attachments that belong to no container any more.
//!
//! The runtime names the attachments that exist and ensures that no ADD runs meanwhile. All other attachments
//! with a note or a lease in this network's directory are removed. One failure does not prevent the removal
//! of the others, and the plugin reports all failures in the end.

use std::collections::BTreeSet;

use super::detach::detach;
use crate::config::{Attachment, NetworkConfig};
use crate::ipam::{IpamError, Store};
use crate::netlink::NetlinkSocket;
use crate::spec::{CniError, Code};

/// Removes the attachments that the runtime does not name.
pub fn gc(config: &NetworkConfig) -> Result<(), CniError> {
    let valid: BTreeSet<Attachment> = config.valid_attachments()?.into_iter().collect();
    let Some(store) = Store::existing(&config.data_dir) else {
        return Ok(());
    };
    let mut node = NetlinkSocket::open()?;
    let mut failures = Vec::new();
    for attachment in known(&store)?.difference(&valid) {
        if let Err(error) = detach(config, &mut node, attachment) {
            let Attachment {
                container_id,
                if_name,
            } = attachment;
            failures.push(format!("{container_id} {if_name}: {error}"));
        }
    }
    if let Err(error) = free_nameless(&store, &valid) {
        failures.push(error.to_string());
    }
    if failures.is_empty() {
        return Ok(());
    }
    let message = format!(
        "{} of the attachments that are gone could not be freed",
        failures.len()
    );
    Err(CniError::new(Code::Incomplete, message).with_details(failures.join("; ")))
}

/// All attachments that have a note or a lease.
fn known(store: &Store) -> Result<BTreeSet<Attachment>, IpamError> {
    let mut known: BTreeSet<_> = store.notes()?.iter().map(crate::ipam::Note::attachment).collect();
    for lease in store
        .leases()?
        .into_iter()
        .filter(crate::ipam::Lease::is_readable)
    {
        known.extend(lease.if_name.map(|if_name| Attachment {
            container_id: lease.container_id,
            if_name,
        }));
    }
    Ok(known)
}

/// Frees leases that name no interface, or not even a container: they belong to no attachment that could be
/// detached.
fn free_nameless(store: &Store, valid: &BTreeSet<Attachment>) -> Result<(), IpamError> {
    let (mut leases, _) = store.readable_leases()?;
    leases.retain(|lease| lease.if_name.is_none());
    if leases.is_empty() {
        return Ok(());
    }
    let locked = store.lock()?;
    for lease in leases {
        if !valid
            .iter()
            .any(|attachment| lease.is_readable() && lease.is_of(attachment))
        {
            locked.remove_lease(lease.address)?;
        }
    }
    Ok(())
}
