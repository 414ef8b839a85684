//! The third stage: from what the cluster looks like to what the tables should hold, as pure functions.
//!
//! [`service::plan`] says for one service which frontends it has and which backends each of them may use on this node.
//! [`diff::diff`] compares that with what is programmed and gives the writes that lead from one to the other, in the
//! order in which they must be made. Neither does any I/O.

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
