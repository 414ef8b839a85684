//! The little HTTP that the agent speaks: short answers to anybody who may reach a port.
//!
//! [`listen`] opens a port, [`serve`] answers on it, and [`keep_serving`] does both for as long as the agent runs: a port that
//! cannot be had is tried again, and [`Faults`] says so to whoever asks for the agent's state.
//!
//! Places are shared out by [`Seats`].
//!
//! Invariants: servers are tasks on the agent's one thread and hold nothing that they ask it for; a client that is slow or
//! silent, and a thousand like it, delay the answers of other addresses by no more than it takes to accept and cut them.

mod faults;
mod listen;
mod seats;
mod server;

pub use faults::Faults;
pub use listen::listen;
pub use seats::{AtShare, Cut, Seats, Use};
pub use server::{Answer, Response, Room, answer, keep_serving, not_found, serve};
