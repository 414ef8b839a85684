//! Host ports: ports of the node that lead to one pod of this node, at the request of its container runtime.
//!
//! A host port is for one address of the node, or for all. A host port for one address comes before one for
//! all, and a service's frontend comes before both. The host port replaces a selected backend, and the flow
//! is then like any other. The client keeps its address, since the pod is on this node and the programs see
//! its replies.

use super::admission::is_local_by_route;
use super::select::Selected;
use super::{PacketContext, Tables};
use crate::maps::{Config, ConfigFlags, Flow, FrontendFlags, FrontendKind, HostPort, HostPortKey, InUse};
use crate::{Ip, Port};

/// Finds the pod that a port at an address leads to. A loopback address counts as the node's: the caller
/// checks whether the client may use it.
#[inline(always)]
pub fn find<T: Tables>(
    tables: &T,
    config: &Config,
    address: &Ip,
    port: Port,
    protocol: u8,
) -> Option<Selected> {
    // The unspecified address is the key for all addresses, and no host has it.
    if !tables.is_in_use(InUse::HOST_PORTS) || address.same(&address.unspecified_of_family()) {
        return None;
    }
    // A pod names the address of its host port. The pod may not take an address that the node does not hold.
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

/// Selects the pod behind a host port as the packet's destination; false if there is none.
#[inline(always)]
pub fn choose<T: Tables>(tables: &T, config: &Config, ctx: &mut PacketContext) -> bool {
    let headers = &ctx.headers;
    match find(tables, config, &headers.dst, headers.dport, headers.protocol) {
        Some(selected) => {
            ctx.selected = selected;
            true
        }
        None => false,
    }
}

/// A host port in the form of a selected backend.
#[inline(always)]
const fn selected(found: &HostPort) -> Selected {
    Selected::synthetic(
        Flow::TO_HOST_PORT,
        FrontendFlags::KEEP_SOURCE | FrontendFlags::of_kind(FrontendKind::NodePort),
        found.pod,
        found.port,
        found.generation,
    )
}
