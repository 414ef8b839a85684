//! The control socket: how the command line asks a running agent.
//!
//! An agent listens on `RUN_DIR/agent.sock`. A client sends one [`Request`] as a line of JSON and gets one line back,
//! the reply or why there is none; then the connection ends. [`mod@protocol`] has the types, [`mod@server`] the agent's
//! side, [`mod@client`] the command line's.
//!
//! Invariants: only root is answered (the socket is 0600, and the peer's uid is checked as well); a client can hold up
//! neither the agent nor another client for longer than a deadline; whoever holds the lock on the run directory is the
//! one agent that uses it.

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
pub use protocol::{Answer, Protocol, Reply, Request};
pub use run_dir::{RunDir, RunDirError, SOCKET};
pub use server::{ControlSocket, Question, bind, serve};
pub use service::{BackendEntry, BackendState, ServiceEntry, ServiceKind, TrafficPolicy};
pub use status::{FirstSync, MapUsage, ObjectError, ProgramStatus, SharedAddress, Status, Writes};
pub use trace::{Entry, TraceBackend, TraceReply, TraceRequest, Verdict};

#[cfg(test)]
mod tests;
