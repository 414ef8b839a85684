//! The errors of the node's network, with the remedy for an operator.

use std::io;
use std::path::PathBuf;

use crate::trouble::Trouble;

/// A failed operation. The agent continues without its result.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The agent could not make a netlink socket.
    #[error("opening a netlink socket: {0}")]
    Socket(io::Error),
    /// The kernel refused a netlink request.
    #[error("{what}: {error}{}", hint(.error))]
    Request {
        /// The operation that failed, and its object.
        what: String,
        /// The reason of the failure.
        error: io::Error,
    },
    /// The netlink socket was closed, which the kernel never does by itself.
    #[error("following the links of the node: the netlink socket was closed; restart the agent")]
    Closed,
    /// The agent could not read or write a setting of a device.
    #[error(
        "{what} {path}: {error}: the agent needs /proc/sys/net writable, or in a container the node's at /host/proc/sys/net"
    )]
    Sysctl {
        /// The operation that failed.
        what: &'static str,
        /// The path of the setting.
        path: PathBuf,
        /// The reason of the failure.
        error: io::Error,
    },
    /// A foreign device has the name of the agent's device.
    #[error("interface {name} is not ours ({what}): rename or remove it; nothing was changed")]
    ForeignDevice {
        /// The name of the interface.
        name: &'static str,
        /// A description of the foreign device.
        what: String,
    },
    /// The agent could not read the cookie of a network namespace.
    #[error("{what}: {error}{}", cookie_hint(.error))]
    Cookie {
        /// The operation that failed.
        what: &'static str,
        /// The reason of the failure.
        error: io::Error,
    },
    /// The agent could not use a file of the kernel's.
    #[error("{what} {path}: {error}")]
    File {
        /// The operation that failed.
        what: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The reason of the failure.
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

    /// The status code of this error.
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

    /// The error number of the kernel's reply, if there is one.
    pub(super) fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Request { error, .. } => error.raw_os_error(),
            _ => None,
        }
    }

    /// Whether a retry is useless: a capability is missing, or the kernel lacks the feature.
    pub(super) fn is_for_good(&self) -> bool {
        let Self::Cookie { error, .. } = self else {
            return false;
        };
        matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOPROTOOPT))
    }
}

/// The error number of the kernel's reply, if there is one.
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

/// A problem of the node's network that an operator should know of, as `millrace status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The status code of the problem.
    pub code: Trouble,
    /// The object of the problem: `interface eth7`, `route 10.96.0.0/12`.
    pub object: String,
    /// The problem and its remedy.
    pub message: String,
}
