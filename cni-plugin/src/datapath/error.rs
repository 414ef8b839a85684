//! Errors of the data plane.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use proxy_bpf::BpfError;

use crate::config::HostPort;
use crate::netlink::NetlinkError;
use crate::spec::{CniError, Code};

/// An error of the data plane.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// No agent has pinned programs since the machine started.
    #[error(
        "{0} names no programs: `millrace agent` has not been up yet since the machine started; it pins them"
    )]
    NotReady(PathBuf),
    /// The agent that pinned the maps does not know host ports.
    #[error(
        "the agent whose maps are in force in {0} has layout {1}, which has no host ports: let the newer agent take over first"
    )]
    NoHostPorts(PathBuf, u32),
    /// A map has no free entry.
    #[error(
        "{map} is full with {capacity} entries: more pods than the agent made room for are on this node, or entries were leaked, which the agent removes every few minutes"
    )]
    Full {
        /// The name of the map.
        map: &'static str,
        /// The capacity of the map in entries.
        capacity: u32,
    },
    /// Another pod has the host port.
    #[error("{port} leads to the pod with address {pod} already")]
    PortTaken {
        /// The requested host port.
        port: HostPort,
        /// The address of the pod that has it.
        pod: IpAddr,
    },
    /// A request about interfaces failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A BPF operation failed.
    #[error(transparent)]
    Bpf(#[from] BpfError),
}

impl DatapathError {
    /// An error constructor for `map_err` on writes of a map.
    pub(super) fn writing(map: &'static str, capacity: u32) -> impl Fn(io::Error) -> Self {
        move |error| match error.raw_os_error() {
            Some(libc::E2BIG) => Self::Full { map, capacity },
            _ => BpfError::syscall(format!("writing an entry of {map}"))(error).into(),
        }
    }

    /// Whether a later attempt may succeed without action of the operator.
    fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::NotReady(_) | Self::NoHostPorts(..) | Self::Bpf(BpfError::NewerLayout { .. })
        )
    }
}

impl From<DatapathError> for CniError {
    fn from(error: DatapathError) -> Self {
        let (code, msg) = match &error {
            error if error.is_temporary() => (Code::TryAgainLater, "the data plane is not ready"),
            DatapathError::PortTaken { .. } => (Code::PortTaken, "a host port is in use"),
            _ => (Code::Datapath, "attaching to the data plane failed"),
        };
        Self::new(code, msg).with_details(error.to_string())
    }
}
