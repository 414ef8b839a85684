//! What the runtime tells this plugin: the environment of the process and the document on standard input.
//!
//! Everything is checked here, once, and becomes a type that cannot be wrong. DEL and GC read only what they need, since
//! they must work with a configuration under which ADD would fail.

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
