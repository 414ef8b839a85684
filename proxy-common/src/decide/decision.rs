//! Where a packet is met, and what may become of it.

#[cfg(doc)]
use super::Work;
use crate::maps::Reason;

/// Where a packet is met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// It comes out of a pod.
    Pod,
    /// It comes in from the network.
    Uplink,
    /// It was routed to our own device, because it goes to a virtual address and nothing translated it before.
    Host,
    /// It goes from one of the node's own addresses to another, over the loopback.
    Loopback,
    /// It goes out to the network.
    Egress,
}

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// It goes on untouched.
    Pass(Reason),
    /// It ends here; whether its sender is told depends on the reason.
    Drop(Reason),
    /// It goes untouched to the pod that [`Work::receiver`] tells of.
    Deliver,
    /// It is an echo request to be answered on the spot.
    Echo,
    /// It becomes what [`Work::flow`] says.
    Translate(Reason),
    /// It is an ICMP error about a translated packet: it becomes one about that packet as its sender knows it, which
    /// [`Work::carried`] and [`Work::flow`] tell.
    TranslateError,
}
