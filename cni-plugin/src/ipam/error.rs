//! Errors of address management.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::spec::{CniError, Code};

/// An error of address management.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// A file operation failed.
    #[error("{what} {path}: {error}")]
    File {
        /// The attempted operation.
        what: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The error of the kernel.
        error: io::Error,
    },
    /// Another process has held the lock for too long.
    #[error("{path} is locked by another process for {seconds} s: find it with `fuser {path}`")]
    Locked {
        /// The path of the lock.
        path: PathBuf,
        /// How long the plugin waited, in seconds.
        seconds: u64,
    },
    /// A set of ranges has no free address.
    #[error(
        "no address is left in range set {set} of {dir}: give the node a larger range, or free what is leaked with the verb GC"
    )]
    Exhausted {
        /// The index of the set.
        set: usize,
        /// The directory of the leases.
        dir: PathBuf,
    },
    /// A requested address is in use.
    #[error("address {address} was asked for and is held by {owner}")]
    Taken {
        /// The requested address.
        address: IpAddr,
        /// The pod or container that holds it.
        owner: String,
    },
    /// The configured ranges do not offer the requested addresses.
    #[error(
        "{} asked for, but {} not offered by the configured ranges, or more than one of a set",
        list(.addresses),
        if addresses.len() == 1 { "it is" } else { "they are" }
    )]
    NotOffered {
        /// The refused addresses.
        addresses: Vec<IpAddr>,
    },
    /// The attachment holds an address already.
    #[error("{address} was given to interface {if_name} of container {container_id} already: DEL it first")]
    Duplicate {
        /// The address that it holds.
        address: IpAddr,
        /// The container's id.
        container_id: String,
        /// The name of its interface.
        if_name: String,
    },
    /// Another attachment has the same name on the node.
    #[error(
        "interface {if_name} of container {container_id} has the name {host_interface} on the node already: DEL it first, or use another container id"
    )]
    SameName {
        /// The name on the node.
        host_interface: String,
        /// The id of the other attachment's container.
        container_id: String,
        /// The name of the other attachment's interface.
        if_name: String,
    },
}

fn list(addresses: &[IpAddr]) -> String {
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    addresses.join(", ")
}

impl IpamError {
    /// An error constructor for `map_err` on file operations.
    pub(super) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |error| Self::File { what, path, error }
    }
}

impl From<IpamError> for CniError {
    fn from(error: IpamError) -> Self {
        let code = match error {
            IpamError::File { .. } => Code::Ipam,
            IpamError::Locked { .. } => Code::TryAgainLater,
            IpamError::Exhausted { .. } => Code::Exhausted,
            IpamError::Taken { .. } | IpamError::NotOffered { .. } => Code::AddressUnavailable,
            IpamError::Duplicate { .. } | IpamError::SameName { .. } => Code::Duplicate,
        };
        Self::new(code, "giving or freeing addresses failed").with_details(error.to_string())
    }
}
