//! The hooks at which programs see packets, and the verdicts on packets.

#[cfg(doc)]
use super::PacketContext;
use crate::maps::Reason;

/// The hook at which a program sees a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// It comes out of a pod.
    Pod,
    /// It comes in from the network.
    Uplink,
    /// The kernel has routed it to our own device, because it goes to a virtual address and no hook
    /// translated it before.
    Host,
    /// It goes from one of the node's own addresses to another, over the loopback.
    Loopback,
    /// It goes out to the network.
    Egress,
}

/// The verdict on a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// It continues unchanged.
    Pass(Reason),
    /// It is dropped. The reason decides whether its sender gets an error.
    Drop(Reason),
    /// It goes unchanged to the pod in [`PacketContext::receiver`].
    Deliver,
    /// It is an echo request, to which the program sends the reply.
    Echo,
    /// It is translated (DNAT, SNAT or both) as [`PacketContext::flow`] says.
    Translate(Reason),
    /// It is an ICMP error about a translated packet. It becomes an error about that packet as its sender
    /// sent it, see [`PacketContext::embedded`] and [`PacketContext::flow`].
    TranslateError,
}
