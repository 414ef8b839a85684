//! What can go wrong with addresses.

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
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// Somebody has held the lock for too long.
    #[error(
        "{path} has been locked by another process for {seconds} s: find it with `fuser {path}`, it seems to hang"
    )]
    Locked {
        /// The lock.
        path: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A set of ranges has no free address.
    #[error(
        "no address is left in range set {set} of {dir}: give the node a larger range, or free what is leaked with the verb GC"
    )]
    Exhausted {
        /// The number of the set.
        set: usize,
        /// Where leases are.
        dir: PathBuf,
    },
    /// An address that was asked for is in use.
    #[error("address {address} was asked for and is held by {holder}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// By whom.
        holder: String,
    },
    /// Addresses that were asked for cannot be given.
    #[error(
        "{} asked for, but {} not offered by the configured ranges, or more than one of a set",
        list(.addresses),
        if addresses.len() == 1 { "it is" } else { "they are" }
    )]
    NotOffered {
        /// The addresses.
        addresses: Vec<IpAddr>,
    },
    /// The attachment holds an address already.
    #[error("{address} was given to interface {if_name} of container {container_id} already: DEL it first")]
    Duplicate {
        /// The address.
        address: IpAddr,
        /// The container.
        container_id: String,
        /// Its interface.
        if_name: String,
    },
    /// Another attachment has the same name on the node.
    #[error(
        "interface {if_name} of container {container_id} has the name {host_interface} on the node already: DEL it first, or use another container id"
    )]
    SameName {
        /// The name.
        host_interface: String,
        /// The other's container.
        container_id: String,
        /// Its interface.
        if_name: String,
    },
}

fn list(addresses: &[IpAddr]) -> String {
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    addresses.join(", ")
}

impl IpamError {
    /// For `map_err` on file operations.
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
