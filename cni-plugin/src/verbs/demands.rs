//! What a pod asks for by its runtime is checked against what the node owns, before anything is made.
//!
//! These values come from pod specs and annotations, and become keys of tables that serve the whole node. So they may narrow
//! what their own pod has, and never reach what another has. Each refusal names the value.

use std::net::IpAddr;

use crate::attachment::{host_mac, mac_text};
use crate::config::{Attachment, HostPort};
use crate::datapath::Datapath;
use crate::ipam::RangeSet;
use crate::netlink::{Conversation, ip};
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

/// Refuses a port of an address that is not the node's: packets for somebody else would be led to the pod.
///
/// An address is the node's if the kernel takes in packets for it, which is what portmap asks for (`addrtype --dst-type LOCAL`):
/// addresses of interfaces, the loopback's, and those that a route makes local. A service's address never is, even where an
/// interface has it, as those of a proxy by IPVS do; unless the agent knows it as the node's own.
pub fn check_host_addresses(
    node: &mut Conversation,
    datapath: &Datapath,
    ports: &[HostPort],
) -> Result<(), CniError> {
    let mut addresses: Vec<IpAddr> = ports.iter().filter_map(|port| port.host_ip).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.retain(|ip| !ip.is_unspecified() && !ip.is_loopback());
    for address in addresses {
        let why = if !ip::is_local(node, address)? {
            "it is no address of this node"
        } else if datapath.is_virtual(address)? {
            "it is the address of a Service"
        } else {
            continue;
        };
        let message = format!("runtimeConfig.portMappings: hostIP {address} cannot have host ports");
        return Err(CniError::new(Code::ForeignAddress, message).with_details(format!(
            "{why}: use one of the node's own addresses, or leave hostIP out"
        )));
    }
    Ok(())
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
