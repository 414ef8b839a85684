//! The little HTTP that the agent speaks: short answers to anybody who may reach a port.
//!
//! [`listen`] opens a port, [`serve`] answers on it, and [`keep_serving`] does both for as long as the agent runs: a port that
//! cannot be had is tried again, and [`Faults`] says so to whoever asks for the agent's state.
//!
//! Invariants: servers are tasks on the agent's one thread and hold nothing that they ask it for; a client that is slow or
//! silent holds up itself, for ten seconds, and with sixty-three others like it the one port that they are at.

mod faults;
mod listen;
mod server;

pub use faults::Faults;
pub use listen::listen;
pub use server::{Answer, Response, answer, keep_serving, not_found, serve};
