//! DEL: removing an interface of a container.
//!
//! It succeeds if there is nothing to remove. It needs neither the container's namespace nor a result of ADD
//! nor an agent. The kernel removes the pod's side with the node's.

use super::detach::detach;
use crate::config::{Environment, NetworkConfig};
use crate::netlink::NetlinkSocket;
use crate::spec::CniError;

/// Removes the interface.
pub fn del(environment: &Environment, config: &NetworkConfig) -> Result<(), CniError> {
    let mut node = NetlinkSocket::open()?;
    detach(config, &mut node, environment.attachment()?)
}
