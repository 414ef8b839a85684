//! The connection to the pods of other nodes: routes, and a tunnel to those nodes that are on no link of this
//! node.
//!
//! [`mod@plan`] decides, without I/O, how packets reach each node and which objects that needs. [`Tunnel`] is
//! the VXLAN device with its neighbours and forwarding entries. [`routes`] sets the routes to it and to other
//! nodes, and [`forwarding`] enables forwarding. The agent adds objects in this order, so that no route leads
//! to a missing device: device, entries, routes. It removes them in the opposite order.
//!
//! The tunnel has the layout of flannel's backend `vxlan`, so that the two can interoperate. A node's end of
//! it has the network address of the node's pod range. Its MAC address is in flannel's annotation, or follows
//! from the node's address.

pub mod forwarding;
pub mod plan;
pub mod routes;
mod tunnel;
mod tunnel_entries;

pub use plan::{DeliveryMode, Hop, Peer, Plan, Situation, TunnelPlan, plan, tunnel_mac};
pub use tunnel::Tunnel;

/// The name of the tunnel's device.
pub const TUNNEL_DEVICE: &str = "millrace-vxlan";
