//! DEL: taking an interface away from a container.
//!
//! It succeeds if there is nothing to take away, and needs neither the container's namespace nor a result of ADD nor an
//! agent. The pod's side goes with the node's.

use super::detach::detach;
use crate::config::{Environment, NetworkConfig};
use crate::netlink::Conversation;
use crate::spec::CniError;

/// Takes the interface away.
pub fn del(environment: &Environment, config: &NetworkConfig) -> Result<(), CniError> {
    let mut node = Conversation::open()?;
    detach(config, &mut node, environment.attachment()?)
}
