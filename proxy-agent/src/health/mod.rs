//! Whether this node should be sent traffic, told to whoever asks.
//!
//! [`Health`] is what the agent's loop says of itself: since when something waits to be applied, and whether the node is on its
//! way out. [`proxy`] answers for the whole proxy (`:10256/healthz` and `/livez`), [`ServiceChecks`] for one service each, at its
//! `healthCheckNodePort`; [`endpoints`] counts what those tell.
//!
//! Invariant: the loop writes, servers read; a server never makes the loop wait. Time is compared when somebody asks, so a loop
//! that hangs is found out.

pub mod endpoints;
pub mod proxy;
pub mod services;
pub mod state;

pub use services::{ServiceCheck, ServiceChecks};
pub use state::{Health, Report};
