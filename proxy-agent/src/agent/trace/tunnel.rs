//! The payload of a packet for the nodes' tunnel: the programs would refuse such a packet without a payload.

use std::net::{IpAddr, SocketAddr};

use super::{Agent, craft};
use crate::agent::ranges::{inside, own_pod_cidrs};
use crate::control::{Protocol, TraceRequest};

const PORT: u16 = 9;

/// The payload of a traced packet to the tunnel's port: a datagram to a pod of this node. Its source is a pod
/// of the node that has the packet's source address; if no node has it, the packet's source. For other
/// packets the payload is empty.
pub fn payload(agent: &Agent, request: &TraceRequest, steps: &mut Vec<String>) -> Vec<u8> {
    let config = agent.programmer.store().config.get(0).unwrap_or_default();
    let port = config.tunnel_port.number();
    if request.protocol != Protocol::Udp || port == 0 || request.to.port() != port {
        return Vec::new();
    }
    let mut nodes = agent.cluster.nodes();
    let sender = nodes.find(|node| {
        let mut addresses = node.addresses.iter().chain(&node.other_addresses);
        addresses.any(|address| *address == request.from)
    });
    let own = own_pod_cidrs(&agent.cluster, &agent.options);
    let pair = own.iter().find_map(|own| {
        let to = inside(own);
        let Some(sender) = sender else {
            return (to.is_ipv4() == request.from.is_ipv4()).then_some((request.from, to));
        };
        let mut ranges = sender.pod_cidrs.iter().map(inside);
        Some((ranges.find(|from| from.is_ipv4() == to.is_ipv4())?, to))
    });
    let Some((from, to)) = pair else {
        steps.push(format!(
            "port {port} is the tunnel's; the packet carries nothing, since no two pods are known"
        ));
        return Vec::new();
    };
    steps.push(carried(port, (from, to), sender.map(|node| node.name.as_str())));
    let inner = craft::frame(from, SocketAddr::new(to, PORT), PORT, Protocol::Udp);
    craft::vxlan(agent.options.configuration.vxlan.id.get(), &inner)
}

fn carried(port: u16, (from, to): (IpAddr, IpAddr), sender: Option<&str>) -> String {
    let whose = match sender {
        Some(node) => format!("as from a pod of node {node}"),
        None => "and no node has this source".to_owned(),
    };
    format!("port {port} is the tunnel's: the packet carries one from {from} to {to}, {whose}")
}
