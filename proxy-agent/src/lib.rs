//! The Millrace agent: one direction of flow, from what the cluster says to what the kernel holds.
//!
//! ```text
//! source → cluster → plan → apply → bpf
//!                 network, cni, pods, control, health, metrics, events, cli beside it; agent ties them together
//! ```
//!
//! Each stage knows those before it and nothing of those after it; `apply` alone knows the kernel, and `bpf` knows no stage.
//! ARCHITECTURE.md has the whole picture.

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
