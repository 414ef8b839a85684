//! The decisions: what becomes of a packet or of a socket's peer.
//!
//! [`Tables`] is everything a decision may ask. [`packet`](self::packet) holds the decision for packets that enter
//! the node's part of the network, [`select`] the choice of a backend, [`translate`] how a new flow is translated and
//! remembered, [`socket`] the decision of the socket hooks.

pub mod packet;
pub mod select;
pub mod socket;
mod translate;

use crate::Ip;
use crate::maps::{
    AddressFlags, Backend, Config, Flow, FlowKey, Frontend, FrontendKey, Slot, SocketKey, SocketPeer,
};

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
    /// The conntrack entry of a packet.
    fn flow(&self, key: &FlowKey) -> Option<Flow>;
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

#[cfg(test)]
mod packet_tests;
#[cfg(test)]
mod socket_tests;
#[cfg(test)]
pub(crate) mod testing;
