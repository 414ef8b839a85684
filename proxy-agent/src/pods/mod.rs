//! The pods that `millrace-cni` gave an interface to, as the agent and the command line see them.
//!
//! The plugin keeps what it knows in three places: leases and notes in a directory, entries in its own maps, and interfaces
//! in the kernel. Nobody else writes them, so nothing is kept here: each question reads all three as they are. [`list`] and
//! [`leases`] show them, [`check`] says where they disagree, [`mod@restore`] gives pods back what they lost of it, and
//! [`mod@collect`] removes what a lost DEL left behind. [`limits`] keeps what pods may receive and send in step with their
//! annotations, [`any_source`] what addresses they may send from with the operator's choice.
//!
//! Everything here blocks, for some milliseconds on a full node, so the agent calls it on the blocking pool. Invariant: what
//! may still be in use is never removed, unless an operator forces it.

pub mod any_source;
pub mod check;
pub mod collect;
pub mod kernel;
pub mod leases;
pub mod limits;
pub mod list;
mod lost;
mod names;
pub mod owed;
pub mod restore;

use std::net::IpAddr;
use std::path::PathBuf;

use cni_plugin::netlink::NetlinkError;
use cni_plugin::spec::CniError;
use proxy_bpf::BpfError;

pub use collect::{Collected, collect};

/// Where the plugin of this node keeps what it knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Leases and notes.
    pub lease_dir: PathBuf,
    /// Maps and programs.
    pub bpf_root: PathBuf,
}

/// Why pods cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum PodsError {
    /// The leases.
    #[error(transparent)]
    Ipam(#[from] cni_plugin::ipam::IpamError),
    /// The interfaces.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The maps.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// Taking something away.
    #[error(transparent)]
    Plugin(#[from] CniError),
    /// An address cannot be freed because it is free.
    #[error("{address} has no lease in {}: `millrace ipam list` shows those that there are", dir.display())]
    NoLease {
        /// The address.
        address: IpAddr,
        /// Where leases are.
        dir: PathBuf,
    },
    /// An address cannot be freed because somebody has it.
    #[error("{address} is in use by {holder}: stop the pod, or take its interface away with --force")]
    InUse {
        /// The address.
        address: IpAddr,
        /// Who has it.
        holder: String,
    },
}
