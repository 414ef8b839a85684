//! Taking an attachment away, for DEL, GC and an ADD that failed.
//!
//! Every step finds what it removes by names alone and is content if it is gone, so the whole can be repeated after a
//! crash at any point. The order matters: first the interface, and with it addresses, routes, neighbours, limits and
//! programs; then what the kernel keeps apart from it; the leases last, so that nobody gets an address that something
//! still refers to.

use proxy_bpf::BpfError;

use crate::attachment::host_interface;
use crate::config::{Attachment, NetworkConfig};
use crate::datapath::{Datapath, DatapathError};
use crate::ipam::{Store, allocate};
use crate::netlink::{Conversation, link};
use crate::spec::CniError;

/// Takes an attachment away.
pub fn detach(
    config: &NetworkConfig,
    node: &mut Conversation,
    attachment: &Attachment,
) -> Result<(), CniError> {
    let name = host_interface(attachment);
    let store = Store::existing(&config.data_dir);
    let noted = match &store {
        Some(store) => store.note(&name)?,
        None => None,
    };
    let interface = link::find(node, &name)?.map(|link| link.index);
    if let Some(index) = interface {
        link::remove(node, index)?;
    }
    match Datapath::open(&config.bpf_root) {
        Ok(datapath) => datapath.forget(interface, noted.and_then(|note| note.netns_cookie))?,
        // Nothing of it is there, or it will be gone through by the agent that made it.
        Err(DatapathError::NotReady(_) | DatapathError::Bpf(BpfError::NewerLayout { .. })) => {}
        Err(error) => return Err(error.into()),
    }
    if let Some(store) = store {
        allocate::release(&store, attachment, &name)?;
    }
    Ok(())
}
