//! Whether load balancers and the kubelet should send traffic to this node.
//!
//! [`Health`] holds the state that the agent's loop reports: since when a change waits to be applied, and
//! whether the node leaves the cluster. [`proxy`] responds for the whole proxy (`:10256/healthz` and
//! `/livez`), [`ServiceChecks`] for one service each, at its `healthCheckNodePort`. [`endpoints`] has the
//! counts for both.
//!
//! Invariant: the loop writes, servers read; a server never makes the loop wait. A server compares the time
//! at each request, so it detects a loop that hangs.

pub mod endpoints;
pub mod proxy;
pub mod services;
pub mod state;

pub use services::{ServiceCheck, ServiceChecks};
pub use state::{Health, Report};
