//! The decision of the socket hooks: translate a peer once, instead of every packet to it.
//!
//! What a hook cannot say, it leaves to the packet path by leaving the address alone: that path decides everything.

use super::select::{Selected, select};
use super::{Tables, host_port};
use crate::maps::{
    Backend, Config, ConfigFlags, Direction, FlowKey, Frontend, FrontendFlags, FrontendKey, Reason,
    SocketKey, SocketPeer,
};
use crate::{Ip, Port, protocol};

/// What becomes of a socket's peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SocketDecision {
    /// The address stays as it is.
    Leave(Reason),
    /// The call fails with ECONNREFUSED, where the kernel lets a hook choose the error.
    Refuse,
    /// The peer is exchanged for this backend.
    Translate(Selected),
}

/// Whose socket it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The node's.
    Node,
    /// A pod's. Which address it will use is not known yet.
    Pod,
}

/// An unconnected UDP socket of the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sender {
    /// Its cookie (`SO_COOKIE`).
    pub cookie: u64,
    /// Its own port, which the kernel has chosen by now if nobody else did.
    pub port: Port,
}

/// Who the client of a frontend is, as far as that matters there; or why the packet path has to decide.
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
    // A hook gives a pod's socket another peer, and no other source.
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
/// TCP only: a connected UDP socket runs no hook when it sends, so one translated here would stay with a backend
/// that is gone. The choice is random: the source port is not known yet.
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
/// Datagrams from one socket to one virtual address stay together while the backend lives. If the backend is already
/// known to this socket under another virtual address, or answers this client port by way of the packet path, its
/// answers could not be told apart: the packet path, which can change the source port, takes the second conversation.
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

/// Begins a conversation with the backend that was selected, or goes on with it.
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
        let answers = FlowKey::new(address, *client, port, sender.port, protocol::UDP);
        if tables.has_flow(&answers) {
            if !forward.address.is_loopback() {
                return SocketDecision::Leave(Reason::NotOurs);
            }
            // The packet path does not serve those: here the older conversation gives way.
            tables.forget_flow(&answers, true);
            tables.forget_flow(&answers, false);
        }
    }
    let reverse = SocketKey::new(sender.cookie, address, port, Direction::FromBackend);
    bind(tables, forward, &reverse, selected, is_new)
}

/// Makes sure that answers from the backend find the virtual address.
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

/// Whether a process of the node may bind this address and port: node ports are the proxy's.
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
