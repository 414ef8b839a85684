//! The kernel's network as the plugin changes it, by rtnetlink.
//!
//! There are two conversations: one with the node's namespace and one with the pod's, over sockets that stay in the
//! namespace they were opened in. Each step is one datagram with all of its requests, and the answers are read together.
//! Invariant: nothing here is found by looking through lists that grow with the number of pods.

pub mod announce;
pub mod conversation;
pub mod error;
pub mod holder;
pub mod host_side;
pub mod ip;
pub mod limit;
pub mod limiter;
pub mod link;
pub mod namespace;
mod neighbour;
pub mod rates;
mod sys;
pub mod sysctl;

pub use conversation::{Conversation, Request};
pub use error::NetlinkError;
pub use namespace::Namespace;
