//! How packets reach each node, and which objects that needs: a pure function of the known state.
//!
//! Each family of a node's pods has its own path. It is *direct* if an address of that node and family is in
//! a subnet of one of our uplinks. Otherwise it goes through the tunnel. So a node that loses its addresses
//! of one family keeps the other. One tunnel serves both families of pods. It runs over IPv4 if this node has
//! an IPv4 address, else over IPv6.
//!
//! Two nodes may decide differently. So a node has its end of the tunnel as soon as another node may send
//! through it. That holds even if it reaches all nodes directly itself.

use std::collections::BTreeMap;
use std::hash::Hasher as _;
use std::net::IpAddr;

use ipnet::IpNet;
use siphasher::sip::SipHasher24;

use crate::config::{RoutingMode, Vxlan};
use crate::network::Problem;
use crate::trouble::Trouble;

/// A hardware address.
pub type Mac = [u8; 6];

/// A node, as its object describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The name of the node.
    pub name: String,
    /// Its internal addresses, in the order of the object.
    pub addresses: Vec<IpAddr>,
    /// The ranges that its pods get their addresses from.
    pub pod_cidrs: Vec<IpNet>,
    /// The MAC address of its end of the tunnel, if the object has it.
    pub tunnel_mac: Option<Mac>,
}

/// The input of the plan.
#[derive(Clone, Debug, Default)]
pub struct Situation {
    /// The routing mode for packets to other nodes.
    pub mode: RoutingMode,
    /// The settings of the tunnel.
    pub vxlan: Vxlan,
    /// The description of this node.
    pub own: Peer,
    /// The other nodes, in the order of names.
    pub peers: Vec<Peer>,
    /// The subnets on our uplinks, with the indices of their interfaces.
    pub subnets: Vec<(u32, IpNet)>,
    /// The smallest MTU of the uplinks, in bytes.
    pub underlay_mtu: u32,
}

/// The path to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The network between the nodes routes the packets.
    Direct,
    /// The packets of at least one family go through the tunnel.
    Vxlan,
}

/// The next hop of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// The next hop is a node on one of our links.
    Direct {
        /// The address of the node.
        via: IpAddr,
        /// The index of the link's interface.
        interface: u32,
    },
    /// The next hop is a node's end of the tunnel.
    Tunnel {
        /// The address of that end.
        via: IpAddr,
    },
    /// The route has no next hop. It is for this node's own range, where each pod has a route of its own. A
    /// packet to any other address there goes no further.
    Nowhere,
}

/// The wanted state of the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelPlan {
    /// The port and the segment.
    pub vxlan: Vxlan,
    /// The source address of its outer packets.
    pub local: IpAddr,
    /// The MAC address of our end.
    pub mac: Mac,
    /// The largest inner packet that fits, in bytes.
    pub mtu: u32,
    /// The addresses of our end.
    pub addresses: Vec<IpAddr>,
    /// The ends of other nodes, by MAC address: the nodes' own addresses, and the addresses of the ends.
    pub ends: BTreeMap<Mac, (IpAddr, Vec<IpAddr>)>,
}

/// The wanted objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// How packets reach each other node; a node that packets cannot reach is missing.
    pub modes: BTreeMap<String, DeliveryMode>,
    /// The tunnel, if other nodes may send through it.
    pub tunnel: Option<TunnelPlan>,
    /// The wanted routes, by prefix.
    pub routes: BTreeMap<IpNet, Hop>,
    /// The MTU of pods, in bytes.
    pub pod_mtu: u32,
    /// The problems that keep packets from nodes.
    pub problems: Vec<Problem>,
}

impl Plan {
    /// The address of our end of the tunnel in a family.
    pub fn tunnel_address(&self, v4: bool) -> Option<IpAddr> {
        let addresses = self.tunnel.iter().flat_map(|tunnel| &tunnel.addresses);
        addresses.copied().find(|ip| ip.is_ipv4() == v4)
    }

    /// The ranges whose packets go through the tunnel.
    pub fn tunnelled(&self) -> impl Iterator<Item = IpNet> {
        let through = |hop: &Hop| matches!(hop, Hop::Tunnel { .. });
        let routes = self.routes.iter().filter(move |(_, hop)| through(hop));
        routes.map(|(range, _)| *range)
    }
}

/// Computes the plan.
pub fn plan(situation: &Situation) -> Plan {
    let Situation { mode, own, .. } = situation;
    let mut planner = Planner {
        situation,
        local: first_address(&own.addresses),
        plan: Plan {
            pod_mtu: situation.underlay_mtu,
            ..Plan::default()
        },
        ends: BTreeMap::new(),
    };
    if *mode != RoutingMode::Direct {
        planner.plan.pod_mtu = inner_mtu(situation.underlay_mtu, planner.local);
    }
    for range in &own.pod_cidrs {
        planner.route(&own.name, range.trunc(), Hop::Nowhere);
    }
    for peer in &situation.peers {
        planner.reach(peer);
    }
    planner.finish()
}

/// The MAC address of a node's end of the tunnel, which follows from the node's address. Every node can
/// compute it for every other. The MAC addresses of two IPv4 addresses always differ.
pub fn tunnel_mac(node: IpAddr) -> Mac {
    // The address is locally administered and unicast.
    match node {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            [0x0a, 0x6d, a, b, c, d]
        }
        IpAddr::V6(ip) => {
            let mut hasher = SipHasher24::new_with_keys(0, 0);
            hasher.write(&ip.octets());
            let mut mac = [0x0e; 6];
            mac[1..].copy_from_slice(&hasher.finish().to_be_bytes()[..5]);
            mac
        }
    }
}

/// The MTU inside the tunnel, in bytes. The headers of Ethernet, VXLAN, UDP and IP take the rest (RFC 7348,
/// section 5).
fn inner_mtu(underlay: u32, local: Option<IpAddr>) -> u32 {
    let headers = if local.is_some_and(|ip| ip.is_ipv6()) {
        70
    } else {
        50
    };
    underlay.saturating_sub(headers)
}

/// The address of an end of the tunnel if its family is not yet fixed: the first IPv4 address, else the
/// first.
fn first_address(addresses: &[IpAddr]) -> Option<IpAddr> {
    let v4 = addresses.iter().find(|ip| ip.is_ipv4());
    v4.or(addresses.first()).copied()
}

/// The address of a node's end of the tunnel in each family: the network address of its first pod range.
fn end_addresses(pod_cidrs: &[IpNet]) -> Vec<IpAddr> {
    let first = |v4: bool| pod_cidrs.iter().find(|range| range.addr().is_ipv4() == v4);
    let ranges = [first(true), first(false)];
    ranges.into_iter().flatten().map(IpNet::network).collect()
}

struct Planner<'a> {
    situation: &'a Situation,
    local: Option<IpAddr>,
    plan: Plan,
    ends: BTreeMap<Mac, (IpAddr, Vec<IpAddr>)>,
}

impl Planner<'_> {
    fn reach(&mut self, peer: &Peer) {
        if peer.pod_cidrs.is_empty() {
            // The node is new, and the controller has assigned no range yet.
            return;
        }
        let (mut direct, mut tunnelled) = (Vec::new(), Vec::new());
        for range in &peer.pod_cidrs {
            match (self.situation.mode, self.on_link(peer, range.addr().is_ipv4())) {
                (RoutingMode::Direct | RoutingMode::Auto, Some(hop)) => direct.push((range.trunc(), hop)),
                // In this mode the network between the nodes routes these packets, so an existing route of
                // the node leads there.
                (RoutingMode::Direct, None) => {}
                (RoutingMode::Auto, None) | (RoutingMode::Vxlan, _) => tunnelled.push(*range),
            }
        }
        for (range, hop) in &direct {
            self.route(&peer.name, *range, *hop);
        }
        let mode = if tunnelled.is_empty() {
            DeliveryMode::Direct
        } else {
            DeliveryMode::Vxlan
        };
        if let Err(why) = self.tunnel_to(peer, &tunnelled) {
            self.problem(&peer.name, &why);
            if direct.is_empty() {
                return;
            }
        }
        self.plan.modes.insert(peer.name.clone(), mode);
    }

    /// The peer's address of a family that is on one of our links.
    fn on_link(&self, peer: &Peer, v4: bool) -> Option<Hop> {
        let addresses = peer.addresses.iter().filter(|ip| ip.is_ipv4() == v4);
        addresses.copied().find_map(|via| {
            let subnets = &self.situation.subnets;
            let (interface, _) = subnets.iter().find(|(_, subnet)| subnet.contains(&via))?;
            Some(Hop::Direct {
                via,
                interface: *interface,
            })
        })
    }

    fn tunnel_to(&mut self, peer: &Peer, ranges: &[IpNet]) -> Result<(), String> {
        if ranges.is_empty() {
            return Ok(());
        }
        let Some(local) = self.local else {
            return Err("this node has no address, so there is no tunnel to that one's pods".into());
        };
        let family = if local.is_ipv4() { "IPv4" } else { "IPv6" };
        let mut addresses = peer.addresses.iter();
        let Some(remote) = addresses.find(|ip| ip.is_ipv4() == local.is_ipv4()) else {
            return Err(format!(
                "its pods are not reached: the tunnel goes over {family}, and it has no such address"
            ));
        };
        if self.situation.own.pod_cidrs.is_empty() {
            return Err(
                "its pods are not reached yet: the tunnel waits for this node's own pod range".into(),
            );
        }
        let mac = peer.tunnel_mac.unwrap_or_else(|| tunnel_mac(*remote));
        let ends = end_addresses(&peer.pod_cidrs);
        if self.ends.contains_key(&mac) {
            return Err(format!(
                "its pods are not reached: another node's end of the tunnel has its MAC address {}",
                mac_text(mac)
            ));
        }
        self.ends.insert(mac, (*remote, ends.clone()));
        for range in ranges {
            let end = ends.iter().find(|ip| ip.is_ipv4() == range.addr().is_ipv4());
            if let Some(via) = end.copied() {
                self.route(&peer.name, range.trunc(), Hop::Tunnel { via });
            }
        }
        Ok(())
    }

    fn route(&mut self, node: &str, range: IpNet, hop: Hop) {
        if self.plan.routes.contains_key(&range) {
            return self.problem(
                node,
                &format!("its pod range {range} is another node's too, which keeps it"),
            );
        }
        self.plan.routes.insert(range, hop);
    }

    fn problem(&mut self, node: &str, message: &str) {
        self.plan.problems.push(Problem {
            code: Trouble::PodsUnreachable,
            object: format!("node {node}"),
            message: message.to_owned(),
        });
    }

    fn finish(mut self) -> Plan {
        let Situation { mode, own, peers, .. } = self.situation;
        let may_be_sent_to = *mode != RoutingMode::Direct
            && !own.pod_cidrs.is_empty()
            && peers.iter().any(|peer| !peer.pod_cidrs.is_empty());
        if let Some(local) = self.local.filter(|_| may_be_sent_to) {
            self.plan.tunnel = Some(TunnelPlan {
                vxlan: self.situation.vxlan,
                local,
                mac: own.tunnel_mac.unwrap_or_else(|| tunnel_mac(local)),
                mtu: self.plan.pod_mtu,
                addresses: end_addresses(&own.pod_cidrs),
                ends: self.ends,
            });
        }
        self.plan
    }
}

/// A MAC address in its usual notation.
pub(super) fn mac_text(mac: Mac) -> String {
    let parts: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(":")
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
