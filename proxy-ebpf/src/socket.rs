//! The socket hooks: one translation per connection, and no work per packet.
//!
//! A hook sees every socket below its cgroup, in any network namespace. So the hooks that translate first
//! determine the owner of the socket: the node, or one of its pods. They ignore all other sockets. The hooks
//! that translate replies back find no entry for those.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use proxy_common::decide::socket::{Owner, SocketDecision, connect, receive, send};
use proxy_common::maps::{Config, ConfigFlags, Connected, Reason};
use proxy_common::{Ip, Port, Tables, protocol};

use crate::counters::count;
use crate::kernel::Peer;
use crate::maps::{HAS_SET_RETVAL, POD_NETNS};
use crate::tables::KernelMaps;

/// The call continues.
const ALLOW: i32 = 1;
/// The call fails, with EPERM unless the program sets another error.
const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = 111;

const MAPS: KernelMaps = KernelMaps::HOOK;

#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    let peer = Peer(&context);
    let (address, port) = peer.v4();
    on_connect(&peer, address, port, |address, port| peer.set_v4(address, port))
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    let peer = Peer(&context);
    let (address, port) = peer.v6();
    on_connect(&peer, address, port, |address, port| peer.set_v6(address, port))
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(context: SockAddrContext) -> i32 {
    let peer = Peer(&context);
    let (address, port) = peer.v4();
    on_getpeername(&peer, address, port, |address, port| peer.set_v4(address, port))
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(context: SockAddrContext) -> i32 {
    let peer = Peer(&context);
    let (address, port) = peer.v6();
    on_getpeername(&peer, address, port, |address, port| peer.set_v6(address, port))
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    let peer = Peer(&context);
    let (address, port) = peer.v4();
    on_send(&peer, address, port, |address, port| peer.set_v4(address, port))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    let peer = Peer(&context);
    let (address, port) = peer.v6();
    on_send(&peer, address, port, |address, port| peer.set_v6(address, port))
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(context: SockAddrContext) -> i32 {
    let peer = Peer(&context);
    let (address, port) = peer.v4();
    on_receive(&peer, address, port, |address, port| peer.set_v4(address, port))
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(context: SockAddrContext) -> i32 {
    let peer = Peer(&context);
    let (address, port) = peer.v6();
    on_receive(&peer, address, port, |address, port| peer.set_v6(address, port))
}

#[inline(always)]
fn on_connect(peer: &Peer<'_>, address: Ip, port: Port, translate: impl FnOnce(Ip, Port)) -> i32 {
    let Some(config) = MAPS.config() else { return ALLOW };
    if peer.protocol() != protocol::TCP {
        return ALLOW;
    }
    let Some(owner) = owner(config, peer.netns_cookie()) else {
        return ALLOW;
    };
    match connect(&MAPS, config, owner, address, port, protocol::TCP) {
        SocketDecision::Leave(_) => ALLOW,
        SocketDecision::Refuse if HAS_SET_RETVAL.load() == 0 => ALLOW,
        SocketDecision::Refuse => {
            count(Reason::SocketRefused, 0);
            peer.set_error(ECONNREFUSED);
            REFUSE
        }
        SocketDecision::Translate(selected) => {
            let (backend_address, backend_port) = (selected.backend.address, selected.backend.port);
            peer.remember(Connected {
                address,
                backend_address,
                port,
                backend_port,
            });
            translate(backend_address, backend_port);
            count(Reason::SocketConnect, 0);
            ALLOW
        }
    }
}

#[inline(always)]
fn on_getpeername(peer: &Peer<'_>, address: Ip, port: Port, translate: impl FnOnce(Ip, Port)) -> i32 {
    if let Some(connected) = peer.recall()
        && connected.backend_address.same(&address)
        && connected.backend_port == port
    {
        translate(connected.address, connected.port);
    }
    ALLOW
}

#[inline(always)]
fn on_send(peer: &Peer<'_>, address: Ip, port: Port, translate: impl FnOnce(Ip, Port)) -> i32 {
    let Some(config) = MAPS.config() else { return ALLOW };
    if !config.has(ConfigFlags::SOCKETS_OF_NODE) || config.node_netns != peer.netns_cookie() {
        return ALLOW;
    }
    if let SocketDecision::Translate(selected) = send(&MAPS, config, &peer.sender(), address, port) {
        translate(selected.backend.address, selected.backend.port);
        count(Reason::SocketSend, 0);
    }
    ALLOW
}

#[inline(always)]
fn on_receive(peer: &Peer<'_>, address: Ip, port: Port, translate: impl FnOnce(Ip, Port)) -> i32 {
    if let Some((address, port)) = receive(&MAPS, peer.cookie(), address, port) {
        translate(address, port);
    }
    ALLOW
}

/// The owner of sockets in this network namespace, if `connect()` translates them.
#[inline(always)]
fn owner(config: &Config, netns: u64) -> Option<Owner> {
    if config.node_netns == netns {
        config.has(ConfigFlags::SOCKETS_OF_NODE).then_some(Owner::Node)
    } else {
        (config.has(ConfigFlags::SOCKETS_OF_PODS) && is_pod_netns(netns)).then_some(Owner::Pod)
    }
}

/// Whether a network namespace belongs to a pod of this node.
#[inline(always)]
fn is_pod_netns(cookie: u64) -> bool {
    POD_NETNS.get_ptr(cookie).is_some()
}
