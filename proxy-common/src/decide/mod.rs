//! The decisions: what becomes of a packet or of a socket's peer.
//!
//! [`Tables`] is everything a decision may ask. [`packet`] holds the decision for packets that enter
//! the node's part of the network, [`select`] the choice of a backend, `translate` how a new flow is translated and
//! remembered, [`socket`] the decision of the socket hooks.

pub mod decision;
pub mod packet;
pub mod select;
pub mod socket;
mod translate;

use crate::Ip;
use crate::maps::{
    AddressFlags, Backend, Config, Flow, FlowKey, Frontend, FrontendKey, Slot, SocketKey, SocketPeer,
};
use crate::packet::Headers;

/// The tables as a decision sees them.
///
/// Every look-up gives a copy: what lies in a map may change at any time.
pub trait Tables {
    /// What is known of the node.
    fn config(&self) -> Option<&Config>;
    /// The frontend a client addresses.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// One slot of a slice.
    fn slot(&self, index: u32) -> Option<Slot>;
    /// A backend by id.
    fn backend(&self, id: u32) -> Option<Backend>;
    /// What is known of an address; no flags for a strange one.
    fn address(&self, address: &Ip) -> AddressFlags;
    /// Whether the address is a pod's, on whichever node of this cluster.
    fn is_pod(&self, address: &Ip) -> bool;
    /// Copies the conntrack entry of a packet; false if there is none.
    fn flow(&self, key: &FlowKey, into: &mut Flow) -> bool;
    /// Remembers a flow unless there is an entry with this key; false if there is.
    fn insert_flow(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// Remembers a flow, over an entry with this key.
    fn replace_flow(&self, key: &FlowKey, flow: &Flow);
    /// The translation of an unconnected socket's peer.
    fn socket_peer(&self, key: &SocketKey) -> Option<SocketPeer>;
    /// Remembers the translation of an unconnected socket's peer.
    fn replace_socket_peer(&self, key: &SocketKey, peer: &SocketPeer);
    /// From now on, pods answer clients whose requests the uplink translated without masquerading.
    fn pods_answer_outside(&self);
    /// Coarse time: ticks of about one second (2^30 ns) since boot.
    fn now(&self) -> u32;
    /// A random number.
    fn random(&self) -> u32;
}

/// What a decision about a packet works on.
///
/// A kernel program has 512 bytes of stack, which a few IPv6 addresses fill. The programs therefore keep this in a
/// per-CPU map; every field is written before it is read.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// The packet's headers, from the parser.
    pub headers: Headers,
    /// The packet's conntrack key.
    pub key: FlowKey,
    /// What the packet becomes, after [`packet::Decision::Translate`].
    pub flow: Flow,
    reply_key: FlowKey,
    reply: Flow,
    found: Flow,
}

impl Work {
    /// The work on a parsed packet.
    pub const fn new(headers: Headers) -> Self {
        let key = headers.flow_key();
        Self {
            headers,
            key,
            flow: Flow::EMPTY,
            reply_key: key,
            reply: Flow::EMPTY,
            found: Flow::EMPTY,
        }
    }

    /// Takes up another packet.
    #[inline(always)]
    pub const fn start(&mut self, headers: Headers) {
        self.headers = headers;
        self.key = headers.flow_key();
    }
}

#[cfg(test)]
mod packet_tests;
#[cfg(test)]
mod socket_tests;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
