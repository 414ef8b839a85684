//! The pods that `millrace-cni` gave an interface to, for the agent and the command line.
//!
//! The plugin keeps its state in three places: leases and notes in a directory, entries in its own maps, and
//! interfaces in the kernel. Only the plugin and the agent write them, so this module keeps no copy: each
//! function reads all three as they are.
//!
//! [`list`] and [`leases`] show them, and [`check`] compares them. [`mod@restore`] makes lost parts of pods
//! again, and [`mod@collect`] removes the remains of a lost DEL. [`limits`] keeps the rates of pods in step
//! with their annotations, and [`any_source`] their permitted source addresses with the operator's choice.
//!
//! Every function here blocks, for some milliseconds on a full node, so the agent calls it on the blocking
//! pool. Invariant: an object that may still be in use is never removed, unless an operator forces it.

pub mod any_source;
pub mod check;
pub mod collect;
pub mod kernel;
pub mod leases;
pub mod limits;
pub mod list;
mod lost;
mod names;
pub mod required;
pub mod restore;

use std::net::IpAddr;
use std::path::PathBuf;

use cni_plugin::netlink::NetlinkError;
use cni_plugin::spec::CniError;
use proxy_bpf::BpfError;

pub use collect::{Collected, collect};

/// The plugin paths: the places where this node's plugin keeps its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginPaths {
    /// The directory of leases and notes.
    pub lease_dir: PathBuf,
    /// The bpf root with maps and programs.
    pub bpf_root: PathBuf,
}

/// Why a function on pods failed.
#[derive(Debug, thiserror::Error)]
pub enum PodsError {
    /// An operation on the leases failed.
    #[error(transparent)]
    Ipam(#[from] cni_plugin::ipam::IpamError),
    /// A netlink request failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// An operation on the maps failed.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// The removal of an attachment failed.
    #[error(transparent)]
    Plugin(#[from] CniError),
    /// An address cannot be released because it has no lease.
    #[error("{address} has no lease in {}: `millrace ipam list` shows those that there are", dir.display())]
    NoLease {
        /// The address to release.
        address: IpAddr,
        /// The directory of leases.
        dir: PathBuf,
    },
    /// An address cannot be released because a pod may use it.
    #[error("{address} is in use by {owner}: stop the pod, or take its interface away with --force")]
    InUse {
        /// The address to release.
        address: IpAddr,
        /// The owner of the address.
        owner: String,
    },
}
