//! A small HTTP server: it sends short responses to every client that can reach a port.
//!
//! [`listen`] opens a port, [`serve`] responds on it, and [`keep_serving`] does both for as long as the agent
//! runs. It tries again to open a port that it cannot open, and [`Faults`] reports such a port in the agent's
//! state.
//!
//! [`ConnectionLimiter`] shares out the places for connections.
//!
//! Invariants: servers are tasks on the agent's one thread, and hold no lock or state that the loop waits
//! for. A thousand slow or silent clients delay the responses to other addresses by no more than it takes to
//! accept and cut their connections.

mod faults;
mod limiter;
mod listen;
mod server;

pub use faults::Faults;
pub use limiter::{AtShare, ConnectionLimiter, Cut, Use};
pub use listen::listen;
pub use server::{Handler, Response, Room, keep_serving, not_found, reply, serve};
