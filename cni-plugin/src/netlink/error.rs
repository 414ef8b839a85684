//! Errors of the kernel's network.

use std::io;
use std::path::PathBuf;

use crate::spec::{CniError, Code};

/// An error of the kernel's network.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused a request.
    #[error("{what}: {error}{}", hint(.error))]
    Refused {
        /// The purpose of the request.
        what: String,
        /// The error of the kernel.
        error: io::Error,
    },
    /// The container has an interface of this name.
    #[error(
        "interface {0} exists in the container already: it is left alone; choose another name with CNI_IFNAME"
    )]
    InterfaceExists(String),
    /// The node has an interface of the name that follows from container and interface.
    #[error("interface {0} exists on the node already: DEL this attachment before it is made again")]
    HostInterfaceExists(String),
    /// The network namespace does not exist.
    #[error("network namespace {path}: {error}: the container is gone, or was never there")]
    NoNamespace {
        /// The path of the namespace.
        path: PathBuf,
        /// The error of the kernel.
        error: io::Error,
    },
    /// The file is no namespace that a container can have.
    #[error("{path} {what}")]
    BadNamespace {
        /// The path of the file.
        path: PathBuf,
        /// The reason, as the end of a sentence.
        what: &'static str,
    },
    /// Writing a setting under /proc/sys/net failed.
    #[error("writing {value} to {path}: {error}")]
    Setting {
        /// The path of the setting.
        path: PathBuf,
        /// The intended value.
        value: &'static str,
        /// The error of the kernel.
        error: io::Error,
    },
    /// The pod should get an IPv6 address, and the kernel has no IPv6.
    #[error("the kernel does no IPv6: leave out the ranges of IPv6, or boot without ipv6.disable=1")]
    NoIpv6,
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => ": needs CAP_NET_ADMIN and CAP_SYS_ADMIN",
        Some(libc::EOPNOTSUPP) => ": the kernel lacks support for it",
        Some(libc::EEXIST) => ": this ADD did not make what is there; it is left alone",
        _ => "",
    }
}

impl NetlinkError {
    /// An error constructor for `map_err` on requests.
    pub fn refused(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Refused { what, error }
    }
}

impl From<NetlinkError> for CniError {
    fn from(error: NetlinkError) -> Self {
        let (code, msg) = match error {
            NetlinkError::NoNamespace { .. } => {
                (Code::UnknownContainer, "the container has no network namespace")
            }
            NetlinkError::BadNamespace { .. } => (Code::InvalidEnvironment, "CNI_NETNS is invalid"),
            NetlinkError::InterfaceExists(_) | NetlinkError::HostInterfaceExists(_) => {
                (Code::Duplicate, "the interface exists")
            }
            _ => (Code::Netlink, "setting up the network failed"),
        };
        Self::new(code, msg).with_details(error.to_string())
    }
}
