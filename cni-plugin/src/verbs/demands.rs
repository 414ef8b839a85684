//! Checks of a pod's requests against the addresses and ports of the node, before any change.
//!
//! The values come from pod specs and annotations, and become keys of tables that serve the whole node. So
//! they may narrow the resources of their own pod, and never reach those of another pod. Each refusal names
//! the value.

use std::net::IpAddr;

use crate::attachment::{host_mac, mac_text};
use crate::config::host_port::Protocol;
use crate::config::{Attachment, HostPort};
use crate::datapath::Datapath;
use crate::ipam::RangeSet;
use crate::netlink::{NetlinkSocket, ip};
use crate::spec::{CniError, Code};

/// Refuses the Ethernet address of the pod's own gateway: the pod would take its own packets for itself.
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

/// Refuses a host port of one address of the node if the pod has no address of that family: the port would
/// lead nowhere.
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

/// Refuses the UDP port of the nodes' tunnels, if there is one: no packet to it reaches a pod, at any
/// address.
pub fn check_tunnel_port(tunnel: Option<u16>, ports: &[HostPort]) -> Result<(), CniError> {
    let is_tunnels = |port: &&HostPort| port.protocol == Protocol::Udp && Some(port.host_port) == tunnel;
    match ports.iter().find(is_tunnels) {
        None => Ok(()),
        Some(port) => Err(
            CniError::new(Code::PortTaken, format!("{port} is in use")).with_details(
                "it is the port of the nodes' tunnels, at each address: choose another port, or another one \
                 for the tunnels (vxlan.port)",
            ),
        ),
    }
}

/// Refuses a port of an address that is not the node's: the pod would receive packets for another host.
///
/// An address is the node's if the kernel takes in packets for it. portmap has the same rule
/// (`addrtype --dst-type LOCAL`). Such addresses are those of interfaces, those of the loopback, and those
/// that a route makes local.
///
/// A service's address is not the node's, even where an interface has it, as with an IPVS proxy. The
/// exception is an address that the agent knows as the node's own. A link-local address means another host on
/// each link, and [`ip::GATEWAY_V6`] is on the interfaces of all pods. So programs take no link-local address
/// for the node's, unless a route makes it local.
pub fn check_host_addresses(
    node: &mut NetlinkSocket,
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
        } else if is_link_local(address) && !datapath.is_node(address)? {
            "it is a link-local address, where no host ports are served"
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

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tunnels_port_is_not_for_a_pod() {
        let port = |host_port, protocol, host_ip: Option<&str>| HostPort {
            host_port,
            container_port: 8472,
            protocol,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        };
        for host_ip in [None, Some("192.0.2.1"), Some("::")] {
            let asked = [port(80, Protocol::Udp, None), port(8472, Protocol::Udp, host_ip)];
            let error = check_tunnel_port(Some(8472), &asked).unwrap_err();
            assert_eq!(error.code, Code::PortTaken);
            assert!(error.msg.contains("host port 8472/udp"), "{error}");
            assert!(error.details.contains("tunnels"), "{error}");
            assert!(check_tunnel_port(Some(4789), &asked).is_ok());
            assert!(check_tunnel_port(None, &asked).is_ok());
        }
        let others = [port(8472, Protocol::Tcp, None), port(8472, Protocol::Sctp, None)];
        assert!(check_tunnel_port(Some(8472), &others).is_ok());
    }

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
