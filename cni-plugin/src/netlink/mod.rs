//! The changes that the plugin makes in the kernel's network, by rtnetlink.
//!
//! There are two netlink sockets: one in the node's namespace and one in the pod's. Each socket stays in the
//! namespace in which it was opened. Each step is one datagram with all of its requests, and the plugin reads
//! all replies together. Invariant: no look-up here goes through a list that grows with the number of pods.

pub mod announce;
pub mod conflict;
pub mod error;
pub mod host_side;
pub mod ip;
pub mod limit;
pub mod limiter;
pub mod link;
pub mod namespace;
mod neighbour;
pub mod rates;
pub mod socket;
mod sys;
pub mod sysctl;

pub use error::NetlinkError;
pub use namespace::Namespace;
pub use socket::{NetlinkSocket, Request};
