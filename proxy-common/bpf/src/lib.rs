//! The kernel side as every process of ours handles it: bpf(2), what lies pinned below the bpf root, and what hangs where.
//!
//! The agent and `millrace-cni` attach the same programs to the same interfaces, and must find what the other left. So
//! there is one place that knows the names of pins, the order of steps and the lock under which they are made. What only
//! the agent does (loading an object, growing maps, reading tables) is in `proxy-agent`, so that the plugin stays small.

#![deny(unsafe_code)]

pub mod capabilities;
pub mod clsact;
pub mod error;
pub mod hash;
pub mod links;
pub mod pins;
mod role;
pub mod sys;
pub mod traffic_control;

pub use error::BpfError;
pub use hash::HashTable;
