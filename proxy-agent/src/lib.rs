//! The Millrace agent: its stages carry the objects of the cluster, in one direction, into the kernel's maps.
//!
//! ```text
//! source → cluster → plan → apply → bpf
//!                 network, cni, pods, control, health, metrics, events, cli beside it; agent ties them together
//! ```
//!
//! A stage depends on the stages before it, never on those after it. Of the stages only `apply` uses `bpf`,
//! and `bpf` depends on no stage. ARCHITECTURE.md describes the whole.

#![deny(unsafe_code)]

pub mod agent;
pub mod apply;
pub mod bpf;
pub mod cli;
pub mod cluster;
pub mod cni;
pub mod config;
pub mod control;
pub mod events;
pub mod flows;
pub mod health;
pub mod http;
pub mod metrics;
pub mod network;
pub mod plan;
pub mod pods;
pub mod private_dir;
pub mod source;
pub mod trouble;
