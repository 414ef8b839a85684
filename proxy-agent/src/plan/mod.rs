//! The third stage: from the state of the cluster to the content of the tables, as pure functions.
//!
//! [`service::plan`] computes for one service its frontends and the backends that each of them may use on
//! this node. [`diff::diff`] compares that with the programmed state. It returns the writes that lead from
//! one to the other, in the order in which they must be made. Neither does any I/O.

pub mod allocator;
pub mod diff;
pub mod endpoints;
pub mod frontends;
pub mod programmed;
pub mod service;
pub mod source_ranges;
pub mod writes;

pub use allocator::{Allocator, Full};
pub use diff::diff;
pub use frontends::{Frontends, PlannedFrontend};
pub use programmed::{Programmed, ProgrammedGroup};
pub use service::{Group, NodeContext, ServicePlan, Target, plan};
pub use writes::Writes;
