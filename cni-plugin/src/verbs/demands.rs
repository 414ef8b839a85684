//! What a pod asks for by its runtime is checked against what the node owns, before anything is made.
//!
//! These values come from pod specs and annotations, and become keys of tables that serve the whole node. So they may narrow
//! what their own pod has, and never reach what another has. Each refusal names the value.

use crate::attachment::{host_mac, mac_text};
use crate::config::{Attachment, HostPort};
use crate::ipam::RangeSet;
use crate::spec::{CniError, Code};

/// Refuses the Ethernet address of the pod's own gateway: the pod would take what it sends for its own.
pub fn check_mac(attachment: &Attachment, asked: Option<[u8; 6]>) -> Result<(), CniError> {
    match asked {
        Some(mac) if mac == host_mac(attachment) => {
            let message = format!("the Ethernet address {} cannot be the pod's", mac_text(&mac));
            Err(CniError::new(Code::InvalidConfig, message)
                .with_details("the node's side of the pod's interface has it: ask for another one"))
        }
        _ => Ok(()),
    }
}

/// Refuses a port of an address of the node where the pod has no address of that family: it would lead nowhere.
pub fn check_families(ports: &[HostPort], sets: &[RangeSet]) -> Result<(), CniError> {
    let lacks = |port: &&HostPort| {
        let is_ipv6 = port.host_ip.map(|ip| ip.is_ipv6());
        is_ipv6.is_some_and(|is_ipv6| !sets.iter().any(|set| set.is_ipv6() == is_ipv6))
    };
    match ports.iter().find(lacks) {
        None => Ok(()),
        Some(port) => {
            let message = format!("runtimeConfig.portMappings: {port} has no pod's address to lead to");
            Err(CniError::new(Code::InvalidConfig, message)
                .with_details("the network has no range of that family: leave hostIP out, or add a range"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateways_ethernet_address_is_not_for_the_pod() {
        let attachment = |id: &str| Attachment {
            container_id: id.into(),
            if_name: "eth0".into(),
        };
        let (one, other) = (attachment("one"), attachment("other"));
        let error = check_mac(&one, Some(host_mac(&one))).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig);
        assert!(error.msg.contains(&mac_text(&host_mac(&one))), "{error}");
        assert!(check_mac(&one, Some(host_mac(&other))).is_ok() && check_mac(&one, None).is_ok());
    }
}
