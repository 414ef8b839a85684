//! Removing an attachment, for DEL, GC and a failed ADD.
//!
//! Every step finds its objects by names alone and accepts that they are gone. So the whole removal can be
//! repeated after a crash at any point. The order matters:
//!
//! 1. The interface, and with it addresses, routes, neighbours, limits and programs.
//! 2. The kernel's other objects of the attachment, such as entries of maps.
//! 3. The leases, so that no pod gets an address that an object still refers to.
//!
//! Entries of maps are removed while no other attachment can get a lease. So an entry for an address that is
//! leased to this attachment is its own. The exception is an entry that names the interface of another pod,
//! whose lease was lost.

use std::net::IpAddr;
use std::path::Path;

use proxy_bpf::BpfError;

use crate::attachment::{host_interface, limiter};
use crate::config::{Attachment, NetworkConfig};
use crate::datapath::{Datapath, DatapathError, Traces};
use crate::ipam::{Note, Store, allocate};
use crate::netlink::{NetlinkError, NetlinkSocket, link};
use crate::spec::CniError;

/// Removes an attachment.
pub fn detach(
    config: &NetworkConfig,
    node: &mut NetlinkSocket,
    attachment: &Attachment,
) -> Result<(), CniError> {
    let store = Store::existing(&config.data_dir);
    detach_at(&config.bpf_root, store.as_ref(), node, attachment)
}

/// Like [`detach`], for a caller without a configuration.
pub fn detach_at(
    bpf_root: &Path,
    store: Option<&Store>,
    node: &mut NetlinkSocket,
    attachment: &Attachment,
) -> Result<(), CniError> {
    let name = host_interface(attachment);
    let noted = match store {
        Some(store) => store.note(&name)?,
        None => None,
    };
    // Names on the node are hashes. If two names clash, the interface and the note are the other
    // attachment's.
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
    // The note goes last. If neither it nor the interface exists, no pins are left to look for.
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

/// Removes the kernel's objects of an attachment whose interface is gone. It leaves the pins to the agent,
/// which checks all of them. The caller holds the lock of the leases, and may free `leased` after this.
pub fn forget(
    bpf_root: &Path,
    node: &mut NetlinkSocket,
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

/// The pins in force. `None` if there are none, or if a newer agent made them, which removes stale entries
/// itself.
fn datapath(bpf_root: &Path) -> Result<Option<Datapath>, CniError> {
    match Datapath::open(bpf_root) {
        Ok(datapath) => Ok(Some(datapath)),
        Err(DatapathError::NotReady(_) | DatapathError::Bpf(BpfError::NewerLayout { .. })) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes the interface, and the device that limits packets from the pod. Returns the interface's index, if
/// it existed.
fn remove_interfaces(node: &mut NetlinkSocket, attachment: &Attachment) -> Result<Option<u32>, NetlinkError> {
    let interface = link::find(node, &host_interface(attachment))?.map(|link| link.index);
    if let Some(index) = interface {
        link::remove(node, index)?;
    }
    // The agent may have made the limiter, so the note need not mention it.
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
