//! Host ports: ports of the node's that lead to one pod of this node, as its container runtime asked for.
//!
//! A port may be asked for at one address, or at all of the node's; who asked for that address comes first. Frontends of
//! services come before either. What was found stands in for a selected backend, and everything that follows is a flow
//! like any other: the client keeps its address, since the pod is here and its answers pass by.

use super::admission::is_local_by_route;
use super::select::Selected;
use super::{Tables, Work};
use crate::maps::{Config, ConfigFlags, Flow, FrontendFlags, FrontendKind, HostPort, HostPortKey, InUse};
use crate::{Ip, Port};

/// Finds where a port at an address leads to. An address of the loopback counts as the node's: who may mean that is for the
/// caller to say.
#[inline(always)]
pub fn find<T: Tables>(
    tables: &T,
    config: &Config,
    address: &Ip,
    port: Port,
    protocol: u8,
) -> Option<Selected> {
    // The key of all addresses is an address too, but nobody's.
    if !tables.is_in_use(InUse::HOST_PORTS) || address.same(&address.unspecified_of_family()) {
        return None;
    }
    // A pod names the address of its port. What the node does not hold is not for it to take.
    let is_node = config.is_node_address(address)
        || (config.has(ConfigFlags::MORE_NODE_ADDRESSES) && tables.address(address).is_node())
        || address.is_loopback()
        || is_local_by_route(tables, config, address);
    if !is_node {
        return None;
    }
    let mut key = HostPortKey {
        address: *address,
        port,
        protocol,
        reserved: 0,
    };
    if let Some(found) = tables.host_port(&key) {
        return Some(selected(&found));
    }
    key.address = address.unspecified_of_family();
    tables.host_port(&key).map(|found| selected(&found))
}

/// Selects the pod that a packet goes to by a host port; false if there is none.
#[inline(always)]
pub fn choose<T: Tables>(tables: &T, config: &Config, work: &mut Work) -> bool {
    let headers = &work.headers;
    match find(tables, config, &headers.dst, headers.dport, headers.protocol) {
        Some(selected) => {
            work.selected = selected;
            true
        }
        None => false,
    }
}

/// A host port in place of a selected backend.
#[inline(always)]
const fn selected(found: &HostPort) -> Selected {
    Selected::stand_in(
        Flow::TO_HOST_PORT,
        FrontendFlags::KEEP_SOURCE | FrontendFlags::of_kind(FrontendKind::NodePort),
        found.pod,
        found.port,
        found.generation,
    )
}
