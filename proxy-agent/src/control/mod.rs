//! The control socket: how the command line asks a running agent.
//!
//! An agent listens on `RUN_DIR/agent.sock`. A client sends one [`Request`] as a line of JSON. It gets one
//! line back, with the reply or the reason why there is none; then the connection ends. [`mod@protocol`] has
//! the types, [`mod@server`] the agent's side, [`mod@client`] the command line's.
//!
//! Invariants:
//! - The agent replies to root only: the socket has the mode 0600, and the agent checks the peer's uid as
//!   well.
//! - A client can delay neither the agent nor another client for longer than a deadline.
//! - The process that holds the lock on the run directory is the one agent that uses it.

pub mod client;
pub mod node;
pub mod pod;
pub mod protocol;
pub mod run_dir;
pub mod server;
pub mod service;
pub mod status;
pub mod trace;

pub use client::{Client, ClientError};
pub use node::{NodeEntry, NodeMode};
pub use pod::{HostPortEntry, LeaseEntry, LeaseState, Leases, PodEntry};
pub use protocol::{Protocol, Reply, Request, Response};
pub use run_dir::{RunDir, RunDirError, SOCKET};
pub use server::{ControlSocket, PendingRequest, bind, serve};
pub use service::{BackendEntry, BackendState, PendingUpdate, ServiceEntry, ServiceKind, TrafficPolicy};
pub use status::{FirstSync, MapUsage, ObjectError, ProgramStatus, SharedAddress, Status, Writes};
pub use trace::{Entry, TraceBackend, TraceReply, TraceRequest, Verdict};

#[cfg(test)]
mod tests;
