//! The kernel side as the agent handles it: loading and pinning programs, and typed access to their maps.
//!
//! Everything that must outlive the agent is pinned below the bpf root; see [`pins`]. The agent loads programs only
//! if the pinned ones were built from another object than its own, or if a map must grow. What the CNI plugin needs too is
//! in the crate `proxy-bpf` and only named here.

pub mod array;
pub mod datapath;
pub mod grace;
pub mod object;
pub mod skb_layout;
pub mod test_run;
pub mod witness;

pub use array::MappedArray;
pub use datapath::Datapath;
pub use proxy_bpf::{
    BpfError, HashTable, capabilities, clsact, error, hash, links, pins, sys, traffic_control,
};
