//! The agent's view of the kernel side: it loads and pins programs, and has typed access to their maps.
//!
//! All objects that must outlive the agent are pinned below the bpf root; see [`pins`]. The agent loads
//! programs only if the pinned ones were built from another object than its own, or if a map must grow. The
//! parts that the CNI plugin needs too are in the crate `proxy-bpf`; this module only re-exports them.

pub mod array;
pub mod datapath;
pub mod grace;
#[cfg(feature = "log")]
mod log;
pub mod object;
pub mod skb_layout;
pub mod test_run;
pub mod witness;

pub use array::MappedArray;
pub use datapath::Datapath;
pub use proxy_bpf::{
    BpfError, HashTable, capabilities, clsact, error, hash, links, pins, sys, traffic_control,
};
