//! The kernel side as the agent handles it: loading and pinning programs, and typed access to their maps.
//!
//! Everything that must outlive the agent is pinned below the bpf root; see [`pins`]. The agent loads programs only
//! if the pinned ones were built from another object than its own, or if a map must grow.

pub mod array;
pub mod capabilities;
pub mod clsact;
pub mod datapath;
pub mod error;
pub mod grace;
pub mod hash;
pub mod links;
pub mod object;
pub mod pins;
pub mod sys;
pub mod test_run;
pub mod traffic_control;
pub mod witness;

pub use array::MappedArray;
pub use datapath::Datapath;
pub use error::BpfError;
pub use hash::HashTable;
