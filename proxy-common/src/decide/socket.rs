//! The decision of the socket hooks: translate a peer once, instead of every packet to it.
//!
//! What a hook cannot say, it leaves to the packet path by leaving the address alone: that path decides everything.

use super::Tables;
use super::select::{Selected, select};
use crate::maps::{Backend, Direction, FrontendKey, Reason, SocketKey, SocketPeer};
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

/// Decides about `connect()`.
///
/// TCP only: a connected UDP socket runs no hook when it sends, so one translated here would stay with a backend
/// that is gone. The choice is random: the source port is not known yet.
#[inline(always)]
pub fn connect<T: Tables>(tables: &T, address: Ip, port: Port, protocol: u8) -> SocketDecision {
    if protocol != protocol::TCP {
        return SocketDecision::Leave(Reason::NotBalanced);
    }
    let key = FrontendKey::new(address, port, protocol);
    let Some(frontend) = tables.frontend(&key) else {
        return SocketDecision::Leave(Reason::NotOurs);
    };
    match select(tables, &key, frontend, tables.random()) {
        Ok(selected) => SocketDecision::Translate(selected),
        Err(Reason::NoEndpoints) => SocketDecision::Refuse,
        Err(reason) => SocketDecision::Leave(reason),
    }
}

/// Decides about a datagram of an unconnected UDP socket.
///
/// Datagrams from one socket to one virtual address stay together while the backend lives. If the backend is already
/// known to this socket under another virtual address, its answers could not be told apart: the packet path, which
/// can change the source port, takes the second conversation.
#[inline(always)]
pub fn send<T: Tables>(tables: &T, cookie: u64, address: Ip, port: Port) -> SocketDecision {
    let key = FrontendKey::new(address, port, protocol::UDP);
    let Some(frontend) = tables.frontend(&key) else {
        return SocketDecision::Leave(Reason::NotOurs);
    };
    let forward = SocketKey::new(cookie, address, port, Direction::ToBackend);
    if let Some(peer) = tables.socket_peer(&forward)
        && let Some(backend) = tables.backend(peer.backend)
        && backend.generation == peer.generation
        && backend.is_alive()
    {
        let reverse = SocketKey::new(cookie, peer.address, peer.port, Direction::FromBackend);
        let selected = Selected {
            id: peer.backend,
            service: backend.service,
            backend,
        };
        return bind(tables, &forward, &reverse, selected, false);
    }
    match select(tables, &key, frontend, tables.random()) {
        Ok(selected) => {
            let Backend { address, port, .. } = selected.backend;
            let reverse = SocketKey::new(cookie, address, port, Direction::FromBackend);
            bind(tables, &forward, &reverse, selected, true)
        }
        Err(reason) => SocketDecision::Leave(reason),
    }
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
