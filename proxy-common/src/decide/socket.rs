//! The decision of the socket hooks: translate a socket's peer once, instead of every packet to it.
//!
//! If a hook cannot decide, it leaves the address as it is: the packet path then decides.

use super::select::{Selected, select};
use super::{Tables, host_port};
use crate::maps::{
    Backend, Config, ConfigFlags, Direction, FlowKey, Frontend, FrontendFlags, FrontendKey, Reason,
    SocketKey, SocketPeer,
};
use crate::{Ip, Port, protocol};

/// The verdict on a socket's peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SocketDecision {
    /// The address stays as it is.
    Leave(Reason),
    /// The call fails with ECONNREFUSED, where the kernel lets a hook set the error.
    Refuse,
    /// The backend replaces the peer.
    Translate(Selected),
}

/// The owner of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The node itself.
    Node,
    /// A pod. Its source address is not known yet.
    Pod,
}

/// An unconnected UDP socket of the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sender {
    /// Its cookie (`SO_COOKIE`).
    pub cookie: u64,
    /// Its own port, which the process or the kernel has chosen by now.
    pub port: Port,
}

/// The client's address as far as the frontend needs it. An error says why the packet path has to decide.
#[inline(always)]
fn client<T: Tables>(
    tables: &T,
    config: &Config,
    owner: Owner,
    key: &FrontendKey,
    frontend: &Frontend,
) -> Result<Ip, Reason> {
    let is_node = matches!(owner, Owner::Node);
    let client = if is_node {
        config.node_address(&key.address)
    } else {
        Ip::UNSPECIFIED
    };
    // A hook can change the peer of a pod's socket, but not its source.
    if !is_node && config.has(ConfigFlags::MASQUERADE_ALL) {
        return Err(Reason::NotOurs);
    }
    let flags = frontend.flags();
    if flags.has(FrontendFlags::AFFINITY | FrontendFlags::SOURCE_RANGES) {
        if !is_node {
            return Err(Reason::NotOurs);
        }
        if flags.has(FrontendFlags::SOURCE_RANGES) && !tables.is_allowed(frontend.service, &client) {
            return Err(Reason::SourceNotAllowed);
        }
    }
    Ok(client)
}

/// Decides about `connect()`.
///
/// It decides about TCP only. A connected UDP socket runs no hook when it sends, so one that is translated
/// here would stay with a removed backend. The choice is random, because the source port is not known yet.
#[inline(always)]
pub fn connect<T: Tables>(
    tables: &T,
    config: &Config,
    owner: Owner,
    address: Ip,
    port: Port,
    protocol: u8,
) -> SocketDecision {
    if protocol != protocol::TCP {
        return SocketDecision::Leave(Reason::NotBalanced);
    }
    // A pod's loopback is its own.
    if address.is_loopback() && matches!(owner, Owner::Pod) {
        return SocketDecision::Leave(Reason::NotOurs);
    }
    let key = FrontendKey::new(address, port, protocol);
    let Some(frontend) = tables.frontend(&key) else {
        return match host_port::find(tables, config, &address, port, protocol) {
            Some(selected) => SocketDecision::Translate(selected),
            None => SocketDecision::Leave(Reason::NotOurs),
        };
    };
    let client = match client(tables, config, owner, &key, &frontend) {
        Ok(client) => client,
        Err(reason) => return SocketDecision::Leave(reason),
    };
    match select(tables, &key, frontend, &client, tables.random()) {
        Ok(selected) => SocketDecision::Translate(selected),
        Err(Reason::NoEndpoints) => SocketDecision::Refuse,
        Err(reason) => SocketDecision::Leave(reason),
    }
}

/// Decides about a datagram of an unconnected UDP socket of the node.
///
/// Datagrams from one socket to one virtual address go to one backend while that backend lives. There are two
/// cases in which the replies of the backend would be ambiguous. Either this socket uses the backend under
/// another virtual address, or the packet path has a flow of this client port to the backend. The packet path
/// can change the source port, so it then takes the new flow.
#[inline(always)]
pub fn send<T: Tables>(
    tables: &T,
    config: &Config,
    sender: &Sender,
    address: Ip,
    port: Port,
) -> SocketDecision {
    let cookie = sender.cookie;
    let key = FrontendKey::new(address, port, protocol::UDP);
    let forward = SocketKey::new(cookie, address, port, Direction::ToBackend);
    let Some(frontend) = tables.frontend(&key) else {
        let Some(selected) = host_port::find(tables, config, &address, port, protocol::UDP) else {
            return SocketDecision::Leave(Reason::NotOurs);
        };
        let is_known = tables.socket_peer(&forward).is_some_and(|peer| {
            peer.backend == selected.id && peer.generation == selected.backend.generation
        });
        let client = config.node_address(&address);
        return begin(tables, &forward, sender, &client, selected, !is_known);
    };
    let client = match client(tables, config, Owner::Node, &key, &frontend) {
        Ok(client) => client,
        Err(reason) => return SocketDecision::Leave(reason),
    };
    if let Some(peer) = tables.socket_peer(&forward)
        && let Some(backend) = tables.backend(peer.backend)
        && backend.generation == peer.generation
        && backend.is_alive()
    {
        let selected = Selected {
            id: peer.backend,
            service: backend.service,
            flags: frontend.flags(),
            backend,
        };
        return begin(tables, &forward, sender, &client, selected, false);
    }
    match select(tables, &key, frontend, &client, tables.random()) {
        Ok(selected) => begin(tables, &forward, sender, &client, selected, true),
        Err(reason) => SocketDecision::Leave(reason),
    }
}

/// Begins an exchange of datagrams with the selected backend, or continues it.
#[inline(always)]
fn begin<T: Tables>(
    tables: &T,
    forward: &SocketKey,
    sender: &Sender,
    client: &Ip,
    selected: Selected,
    is_new: bool,
) -> SocketDecision {
    let Backend { address, port, .. } = selected.backend;
    if is_new {
        let reply_key = FlowKey::new(address, *client, port, sender.port, protocol::UDP);
        if tables.has_flow(&reply_key) {
            if !forward.address.is_loopback() {
                return SocketDecision::Leave(Reason::NotOurs);
            }
            // The packet path does not handle loopback addresses, so here the older flow ends.
            tables.forget_flow(&reply_key, true);
            tables.forget_flow(&reply_key, false);
        }
    }
    let reverse = SocketKey::new(sender.cookie, address, port, Direction::FromBackend);
    bind(tables, forward, &reverse, selected, is_new)
}

/// Ensures that the virtual address replaces the backend's in replies from it.
#[inline(always)]
fn bind<T: Tables>(
    tables: &T,
    forward: &SocketKey,
    reverse: &SocketKey,
    selected: Selected,
    is_new: bool,
) -> SocketDecision {
    let peer = |key: &SocketKey| SocketPeer {
        address: key.address,
        port: key.port,
        reserved: [0; 2],
        backend: selected.id,
        generation: selected.backend.generation,
    };
    match tables.socket_peer(reverse) {
        Some(known) if known.address.same(&forward.address) && known.port == forward.port => {}
        Some(_) => return SocketDecision::Leave(Reason::NotOurs),
        None => tables.replace_socket_peer(reverse, &peer(forward)),
    }
    if is_new {
        tables.replace_socket_peer(forward, &peer(reverse));
    }
    SocketDecision::Translate(selected)
}

/// The virtual address behind the sender of a received datagram, if there is one.
#[inline(always)]
pub fn receive<T: Tables>(tables: &T, cookie: u64, address: Ip, port: Port) -> Option<(Ip, Port)> {
    let key = SocketKey::new(cookie, address, port, Direction::FromBackend);
    tables.socket_peer(&key).map(|peer| (peer.address, peer.port))
}

/// Whether a process of the node may bind this address and port: node ports belong to the proxy.
#[inline(always)]
pub fn may_bind<T: Tables>(tables: &T, address: Ip, port: Port, protocol: u8) -> bool {
    // Every node port has a frontend at the loopback address of its family.
    let asked = if address.is_unspecified() || address.is_v4_unspecified() {
        if address.is_v4() {
            Ip::LOOPBACK_V4
        } else {
            Ip::LOOPBACK_V6
        }
    } else {
        address
    };
    let is_node_port = |address| {
        tables
            .frontend(&FrontendKey::new(address, port, protocol))
            .is_some_and(|frontend| matches!(frontend.flags().kind(), crate::maps::FrontendKind::NodePort))
    };
    // A socket of the unspecified IPv6 address takes IPv4 packets too.
    let also_asked = address.is_unspecified() && is_node_port(Ip::LOOPBACK_V4);
    !(is_node_port(asked) || also_asked)
}
