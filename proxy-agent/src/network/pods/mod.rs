//! The way to the pods of other nodes: routes, and a tunnel to those nodes that no link of ours leads to.
//!
//! [`mod@plan`] decides, without I/O, how each node is reached and what that takes; [`Tunnel`] is the VXLAN device with
//! its neighbours and forwarding entries, [`routes`] what points at it or straight at other nodes, [`forwarding`] the kernel's
//! leave to pass packets on. A packet's way is there before anything leads to it: device, entries, routes; and what is
//! given up goes in the opposite order.
//!
//! The tunnel is laid out as flannel's backend `vxlan` does it, so that the two can meet: a node's end of it has the
//! network address of the node's pod range, and its MAC address is told by flannel's annotation, or follows from the
//! node's address.

pub mod forwarding;
pub mod plan;
pub mod routes;
mod tunnel;
mod tunnel_entries;

pub use plan::{Hop, Peer, Plan, Situation, TunnelPlan, Way, plan, tunnel_mac};
pub use tunnel::Tunnel;

/// The tunnel's device.
pub const TUNNEL_DEVICE: &str = "millrace-vxlan";
