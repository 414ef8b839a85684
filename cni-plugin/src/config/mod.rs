//! The input of a call: the environment of the process and the document on standard input, both from the
//! runtime.
//!
//! This module checks all input once and turns it into types that hold valid values only. DEL and GC read
//! only the parts that they need, since they must work with a configuration that ADD refuses.

pub mod args;
pub mod environment;
pub mod go;
pub mod host_port;
pub mod network;
pub mod requests;
pub mod runtime;

pub use args::Args;
pub use environment::{Attachment, Command, Environment};
pub use host_port::HostPort;
pub use network::NetworkConfig;
pub use requests::Requests;
