//! What can go wrong with the network of the node, said so that an operator knows what to do.

use std::io;
use std::path::PathBuf;

use crate::trouble::Trouble;

/// A failed operation. The agent goes on without what it was for.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A netlink socket could not be made.
    #[error("opening a netlink socket: {0}")]
    Socket(io::Error),
    /// The kernel refused a netlink request.
    #[error("{what}: {error}{}", hint(.error))]
    Request {
        /// What was tried, on what.
        what: String,
        /// Why it failed.
        error: io::Error,
    },
    /// The netlink socket was lost, which the kernel never does by itself.
    #[error("following the links of the node: the netlink socket was closed; restart the agent")]
    Closed,
    /// A setting of a device could not be read or written.
    #[error(
        "{what} {path}: {error}: the agent needs /proc/sys/net writable, or in a container the node's at /host/proc/sys/net"
    )]
    Sysctl {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// The name of our device is taken.
    #[error("interface {name} is not ours ({what}): rename or remove it; nothing was changed")]
    ForeignDevice {
        /// The interface.
        name: &'static str,
        /// What it is.
        what: String,
    },
    /// The cookie of a network namespace could not be had.
    #[error("{what}: {error}{}", cookie_hint(.error))]
    Cookie {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        error: io::Error,
    },
    /// A file the kernel offers could not be used.
    #[error("{what} {path}: {error}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
}

impl NetworkError {
    /// For `map_err` on netlink requests.
    pub(super) fn request(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let what = what.into();
        move |error| Self::Request {
            what,
            error: io_error(error),
        }
    }

    /// What kind of trouble it is, wherever it happened.
    pub const fn trouble(&self) -> Trouble {
        match self {
            Self::Sysctl { .. } => Trouble::SettingRefused,
            Self::ForeignDevice { .. } => Trouble::ForeignInterface,
            Self::Socket(_)
            | Self::Request { .. }
            | Self::Closed
            | Self::Cookie { .. }
            | Self::File { .. } => Trouble::KernelRefused,
        }
    }

    /// The error number that the kernel answered with, if it did.
    pub(super) fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Request { error, .. } => error.raw_os_error(),
            _ => None,
        }
    }

    /// Whether trying again is useless: a capability or the kernel lacks.
    pub(super) fn is_for_good(&self) -> bool {
        let Self::Cookie { error, .. } = self else {
            return false;
        };
        matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOPROTOOPT))
    }
}

/// The error number the kernel answered with, where it answered.
fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => ": needs CAP_NET_ADMIN",
        Some(libc::EOPNOTSUPP) => ": the kernel was built without this kind of device",
        _ => "",
    }
}

fn cookie_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOPROTOOPT) => ": needs Linux 5.14",
        Some(libc::EPERM) => ": needs CAP_SYS_ADMIN, or Linux 6.18",
        _ => "",
    }
}

/// Something wrong with the node's network that an operator should know of, as `millrace status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Its kind.
    pub code: Trouble,
    /// What it is about: `interface eth7`, `route 10.96.0.0/12`.
    pub object: String,
    /// What is wrong and what to do.
    pub message: String,
}
