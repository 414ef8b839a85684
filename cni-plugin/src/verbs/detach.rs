//! Taking an attachment away, for DEL, GC and an ADD that failed.
//!
//! Every step finds what it removes by names alone and is content if it is gone, so the whole can be repeated after a
//! crash at any point. The order matters: first the interface, and with it addresses, routes, neighbours, limits and
//! programs; then what the kernel keeps apart from it; the leases last, so that nobody gets an address that something
//! still refers to. Entries of maps go while no other attachment can get a lease: what is entered for an address that is leased
//! to this attachment is its own, unless it names the interface of another pod, whose lease was lost.

use std::net::IpAddr;
use std::path::Path;

use proxy_bpf::BpfError;

use crate::attachment::{host_interface, limiter};
use crate::config::{Attachment, NetworkConfig};
use crate::datapath::{Datapath, DatapathError, Traces};
use crate::ipam::{Note, Store, allocate};
use crate::netlink::{Conversation, NetlinkError, link};
use crate::spec::CniError;

/// Takes an attachment away.
pub fn detach(
    config: &NetworkConfig,
    node: &mut Conversation,
    attachment: &Attachment,
) -> Result<(), CniError> {
    let store = Store::existing(&config.data_dir);
    detach_at(&config.bpf_root, store.as_ref(), node, attachment)
}

/// The same for whoever has no configuration at hand.
pub fn detach_at(
    bpf_root: &Path,
    store: Option<&Store>,
    node: &mut Conversation,
    attachment: &Attachment,
) -> Result<(), CniError> {
    let name = host_interface(attachment);
    let noted = match store {
        Some(store) => store.note(&name)?,
        None => None,
    };
    // Names on the node are hashes. In the unlikely case of a clash they are the other attachment's, as is the note.
    let is_others = noted
        .as_ref()
        .is_some_and(|note| note.attachment() != *attachment);
    let noted = noted.filter(|_| !is_others);
    let interface = if is_others {
        None
    } else {
        remove_interfaces(node, attachment)?
    };
    let datapath = datapath(bpf_root)?;
    // The note goes last: without one nothing else is left to be looked for.
    if let Some(datapath) = &datapath
        && (interface.is_some() || noted.is_some())
    {
        datapath.unpin(interface)?;
    }
    let erase = |leased: &[IpAddr]| match &datapath {
        Some(datapath) => datapath.erase(&traces(interface, noted.as_ref(), leased)),
        None => Ok(()),
    };
    let Some(store) = store else {
        return Ok(erase(&[])?);
    };
    let locked = store.lock()?;
    let leased = allocate::leased(store, attachment, noted.as_ref())?;
    erase(&leased)?;
    for address in leased {
        locked.remove_lease(address)?;
    }
    if !is_others {
        locked.remove_note(&name)?;
    }
    Ok(())
}

/// Removes what the kernel keeps of an attachment whose interface is gone; pins are left to whoever goes through all of
/// them. The caller holds the lock of the leases, and may free `leased` after this.
pub fn forget(
    bpf_root: &Path,
    node: &mut Conversation,
    noted: &Note,
    leased: &[IpAddr],
) -> Result<(), CniError> {
    let attachment = noted.attachment();
    if link::find(node, &host_interface(&attachment))?.is_some() {
        let name = noted.host_interface.clone();
        return Err(NetlinkError::HostInterfaceExists(name).into());
    }
    if let Some(limiter) = link::find(node, &limiter(&attachment))? {
        link::remove(node, limiter.index)?;
    }
    match datapath(bpf_root)? {
        Some(datapath) => Ok(datapath.erase(&traces(None, Some(noted), leased))?),
        None => Ok(()),
    }
}

/// The pins in force. If there are none, nothing is in them, or it will be gone through by the agent that made it.
fn datapath(bpf_root: &Path) -> Result<Option<Datapath>, CniError> {
    match Datapath::open(bpf_root) {
        Ok(datapath) => Ok(Some(datapath)),
        Err(DatapathError::NotReady(_) | DatapathError::Bpf(BpfError::NewerLayout { .. })) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes the interface, and the device that limits what it sends. Gives the interface's index, if it was there.
fn remove_interfaces(node: &mut Conversation, attachment: &Attachment) -> Result<Option<u32>, NetlinkError> {
    let interface = link::find(node, &host_interface(attachment))?.map(|link| link.index);
    if let Some(index) = interface {
        link::remove(node, index)?;
    }
    // The agent may have made it, so the note need not know of it.
    if let Some(limiter) = link::find(node, &limiter(attachment))? {
        link::remove(node, limiter.index)?;
    }
    Ok(interface)
}

fn traces<'a>(interface: Option<u32>, noted: Option<&'a Note>, leased: &'a [IpAddr]) -> Traces<'a> {
    Traces {
        interface,
        netns_cookie: noted.and_then(|note| note.netns_cookie),
        addresses: noted.map_or(leased, |note| &note.addresses),
        leased,
        host_ports: noted.map(|note| note.host_ports.as_slice()),
    }
}
