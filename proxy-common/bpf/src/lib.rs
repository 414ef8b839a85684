//! The kernel side for every process of ours: bpf(2), the pins below the bpf root, and the attachments of
//! programs.
//!
//! The agent and `millrace-cni` attach the same programs to the same interfaces, and each must find the
//! attachments of the other. So this crate alone defines the names of pins, the order of steps and the lock
//! for them. Steps that only the agent needs (loading an object, growing maps, reading tables) are in
//! `proxy-agent`, so that the plugin stays small.

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
