//! The agent's part of the pod network. The agent makes a plan from Node objects and interfaces, and sets the
//! kernel's state by the plan. Once all of it is in place, the agent installs the description for container
//! runtimes.
//!
//! The agent does this only if a directory for that description is named; beside another plugin it touches no
//! part of it. It looks at the kernel again after a change of the plan or of the kernel's state, and until
//! all of the plan is set.
//!
//! Invariant: the agent removes no route before the first full lists are complete, since this module does not
//! run before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use jiff::Timestamp;

use super::ranges::{node_addresses, own_pod_cidrs};
use crate::cluster::ClusterState;
use crate::cni::{Installer, Network, preferred_to_ours};
use crate::config::{AgentOptions, RoutingMode};
use crate::control::{NodeEntry, NodeMode, ObjectError};
use crate::network::inside::NextHop;
use crate::network::on_link::subnets_of_nodes;
use crate::network::pods::{
    self, DeliveryMode, Peer, Plan, Situation, TUNNEL_DEVICE, Tunnel, forwarding, routes,
};
use crate::network::{Change, Links, Netlink, NetworkError, NodeAddresses, Role, Roles};
use crate::trouble::Trouble;

/// The MTU of pods while the node has no uplink. An uplink has an MTU of its own.
const DEFAULT_MTU: u32 = 1500;

/// The agent's state of the pod network, and its actions on it.
pub struct PodNetwork {
    netlink: Netlink,
    tunnel: Tunnel,
    installer: Installer,
    own: Peer,
    plan: Plan,
    /// Prefixes whose routes were all set.
    applied: BTreeSet<ipnet::IpNet>,
    underlay: Vec<u32>,
    /// Interfaces by which packets of pods are let in.
    open_uplinks: Vec<String>,
    /// Whether the kernel's state may differ from the plan.
    unsettled: bool,
    /// The problems that the last look at the kernel found.
    found: Vec<ObjectError>,
    /// The reason why other nodes cannot send through the tunnel, on a node that does not need the tunnel
    /// itself.
    tunnel_error: Option<ObjectError>,
    nodes: BTreeMap<String, NodeEntry>,
}

/// The results that the rest of the node's side needs.
pub struct Prepared {
    /// The device of the tunnel, if there is one.
    pub tunnel: Option<u32>,
    /// The MTU of pods, if the pod network is ours.
    pub mtu: Option<u32>,
}

impl PodNetwork {
    /// A pod network that has not looked at the kernel yet.
    pub fn new(netlink: &Netlink, options: &AgentOptions) -> Self {
        Self {
            netlink: netlink.clone(),
            tunnel: Tunnel::new(netlink.clone()),
            installer: Installer::new(
                &options.state_dir,
                options.cni_conf_dir.as_deref(),
                options.cni_bin_dir.as_deref(),
            ),
            own: Peer::default(),
            plan: Plan::default(),
            applied: BTreeSet::new(),
            underlay: Vec::new(),
            open_uplinks: Vec::new(),
            unsettled: true,
            found: Vec::new(),
            tunnel_error: None,
            nodes: BTreeMap::new(),
        }
    }

    /// Makes the devices that packets go through; no route leads there yet.
    pub async fn prepare(
        &mut self,
        cluster: &ClusterState,
        options: &AgentOptions,
        (links, roles, addresses): (&Links, &Roles, &NodeAddresses),
        problems: &mut Vec<ObjectError>,
    ) -> Prepared {
        let situation = situation(cluster, options, (links, roles, addresses));
        let enabled = options.cni_conf_dir.is_some();
        let plan = if enabled {
            pods::plan(&situation)
        } else {
            Plan::default()
        };
        self.note_nodes(&situation, &plan, enabled);
        self.own = situation.own;
        if !enabled {
            return Prepared {
                tunnel: None,
                mtu: None,
            };
        }
        problems.extend(plan.problems.iter().map(ObjectError::from));
        problems.extend(missing_addresses(&self.own, addresses));
        let underlay: Vec<u32> = roles.of(Role::Uplink).map(|uplink| uplink.index).collect();
        self.unsettled |= plan != self.plan || underlay != self.underlay;
        self.plan = plan;
        if self.unsettled {
            self.found.clear();
            self.tunnel_error = None;
            self.underlay = underlay;
            self.let_through(roles);
            if let Some(plan) = &self.plan.tunnel
                && let Err(error) = self.tunnel.ensure(plan).await
            {
                let object = format!("interface {TUNNEL_DEVICE}");
                let error = ObjectError::new(error.trouble(), object, &error);
                if plan.ends.is_empty() {
                    // No route leads there: the error is reported, and the next change tries it again.
                    self.tunnel_error = Some(error);
                } else {
                    self.found.push(error);
                }
            }
        }
        problems.extend(self.tunnel_error.iter().cloned());
        Prepared {
            tunnel: self.tunnel(),
            mtu: Some(self.plan.pod_mtu),
        }
    }

    /// Sets the routes to these devices, and removes the devices that no route uses any more. Then it
    /// installs the description for container runtimes, if all programs are attached (`ready`).
    pub async fn finish(&mut self, options: &AgentOptions, ready: bool, problems: &mut Vec<ObjectError>) {
        if options.cni_conf_dir.is_some() && self.unsettled {
            let settled = self.found.is_empty() & self.sync_routes().await;
            self.unsettled = !settled;
        }
        problems.extend(self.found.iter().cloned());
        if let Err(error) = self.describe(options, ready) {
            problems.push(error);
        }
    }

    /// Takes in a change; true if the pod network may depend on it.
    pub fn is_concerned(&mut self, change: &Change) -> bool {
        let mut ours = self.underlay.iter().copied().chain(self.tunnel.index());
        let concerned = change.resynced
            || change.addresses
            || ours.any(|index| change.links.contains(&index))
            || self
                .tunnel
                .index()
                .is_some_and(|index| change.touched.contains(&index))
            || change
                .routes
                .iter()
                .any(|prefix| self.plan.routes.contains_key(prefix));
        self.unsettled |= concerned;
        concerned
    }

    /// Asks for another look at the kernel: a route with our protocol number that is not in the plan may have
    /// appeared.
    pub fn look_again(&mut self) {
        self.unsettled = true;
    }

    /// Whether a part has to be tried again.
    pub fn is_unfinished(&self) -> bool {
        self.unsettled && !self.found.is_empty()
    }

    /// The plan in force.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The device of the tunnel, if there is one.
    pub fn tunnel(&self) -> Option<u32> {
        self.plan.tunnel.as_ref().and(self.tunnel.index())
    }

    /// Every node, by name.
    pub fn nodes(&self) -> Vec<NodeEntry> {
        self.nodes.values().cloned().collect()
    }

    fn let_through(&mut self, roles: &Roles) {
        let uplinks: Vec<_> = roles
            .of(Role::Uplink)
            .filter(|uplink| !roles.trunks.contains(&uplink.index))
            .map(|uplink| uplink.name.as_str())
            .collect();
        if let Err(error) = forwarding::ensure(&uplinks, self.has(true), self.has(false)) {
            self.note("forwarding".into(), &error);
        }
        self.open_uplinks = uplinks.into_iter().map(str::to_owned).collect();
    }

    /// Whether there are pods of a family.
    fn has(&self, v4: bool) -> bool {
        let ranges = self.plan.routes.keys();
        ranges.map(ipnet::IpNet::addr).any(|ip| ip.is_ipv4() == v4)
    }

    /// Settings that the agent made and that have another value now. The next look makes them again.
    pub fn changed_settings(&mut self) -> Vec<String> {
        let names: Vec<_> = self.open_uplinks.iter().map(String::as_str).collect();
        let mut changed = forwarding::changed(&names, self.has(true), self.has(false));
        if let Some(plan) = &self.plan.tunnel {
            changed.extend(self.tunnel.changed_settings(plan));
        }
        self.unsettled |= !changed.is_empty();
        changed
    }

    /// Whether the tunnel is as the agent made it. If not, the next look repairs it.
    pub async fn is_tunnel_whole(&mut self) -> bool {
        let is_whole = self.plan.tunnel.is_none() || self.tunnel.is_whole().await.unwrap_or(false);
        self.unsettled |= !is_whole;
        is_whole
    }

    /// Whether the files in the directories of container runtimes are as the agent wrote them.
    pub fn is_installed(&mut self) -> bool {
        self.installer.is_whole()
    }

    /// The files that the agent has written there again since the last call.
    pub fn take_reinstalled(&mut self) -> Vec<PathBuf> {
        self.installer.take_restored()
    }

    /// The routes that packets to pods of other nodes should take: prefixes and output devices.
    pub fn routes(&self) -> impl Iterator<Item = (ipnet::IpNet, u32)> {
        let tunnel = self.tunnel.index();
        let routes = self
            .plan
            .routes
            .iter()
            .filter_map(move |(prefix, hop)| match hop {
                pods::Hop::Direct { interface, .. } => Some((*prefix, *interface)),
                pods::Hop::Tunnel { .. } => Some((*prefix, tunnel?)),
                pods::Hop::Nowhere => None,
            });
        routes.filter(|(prefix, _)| self.applied.contains(prefix))
    }

    /// How packets to pods of other nodes should be routed, by range.
    pub fn next_hops(&self) -> impl Iterator<Item = (ipnet::IpNet, NextHop)> {
        let tunnel = self.tunnel.index();
        let routes = self.plan.routes.iter();
        routes.filter_map(move |(range, hop)| {
            let (via, interface) = match *hop {
                pods::Hop::Direct { via, interface } => (via, interface),
                pods::Hop::Tunnel { via } => (via, tunnel?),
                pods::Hop::Nowhere => return None,
            };
            let via = Some(via);
            Some((*range, NextHop { interface, via }))
        })
    }

    /// Sets routes and removes those that are left behind; true if all of it succeeded.
    async fn sync_routes(&mut self) -> bool {
        let tunnel = self.tunnel();
        let complete = match routes::sync(&self.netlink, &self.plan.routes, tunnel, &self.applied).await {
            Ok((problems, complete)) => {
                if problems.is_empty() {
                    self.applied = self.plan.routes.keys().copied().collect();
                }
                self.found.extend(problems.iter().map(ObjectError::from));
                complete
            }
            Err(error) => {
                self.note("routes to pods".into(), &error);
                false
            }
        };
        let cleaned = match &self.plan.tunnel {
            Some(plan) => self.tunnel.forget_others(plan).await,
            None => match self.tunnel.remove().await {
                // Without a tunnel in the plan a foreign device may have the name.
                Ok(_) | Err(NetworkError::ForeignDevice { .. }) => Ok(()),
                Err(error) => Err(error),
            },
        };
        if let Err(error) = &cleaned {
            self.note(format!("interface {TUNNEL_DEVICE}"), error);
        }
        complete && cleaned.is_ok()
    }

    fn describe(&mut self, options: &AgentOptions, ready: bool) -> Result<(), ObjectError> {
        let problem = |code, message: String| ObjectError {
            code,
            object: "pod network".into(),
            message,
        };
        let network = Network {
            mtu: self.plan.pod_mtu,
            bpf_root: options.bpf_root.clone(),
            state_dir: options.state_dir.clone(),
            pod_cidrs: self.own.pod_cidrs.clone(),
        };
        let why_not = if options.cni_conf_dir.is_none() {
            None
        } else if network.pod_cidrs.is_empty() {
            Some(
                "this node has no pod ranges yet: a controller assigns them (spec.podCIDRs of the Node), or podCIDRs in the \
                 configuration names them; until then the network is not described to container runtimes"
                    .to_owned(),
            )
        } else {
            network.unusable()
        };
        let can_take_pods = ready && why_not.is_none() && options.cni_conf_dir.is_some();
        self.installer
            .install(can_take_pods.then_some(&network))
            .map_err(|error| problem(Trouble::PodNetworkNotInstalled, error.to_string()))?;
        if let Some(why) = why_not {
            return Err(problem(Trouble::PodRangeMissing, why));
        }
        let other = options.cni_conf_dir.as_deref().and_then(preferred_to_ours);
        other.map_or(Ok(()), |other| {
            let other = other.display();
            let message = format!(
                "container runtimes use {other}, which comes before ours by name: remove it to have Millrace make pods"
            );
            Err(problem(Trouble::PodNetworkNotInstalled, message))
        })
    }

    fn note(&mut self, object: String, error: &NetworkError) {
        self.found.push(ObjectError::new(error.trouble(), object, error));
    }

    /// Notes how each node is reached, and when the path to it last changed.
    fn note_nodes(&mut self, situation: &Situation, plan: &Plan, enabled: bool) {
        let now = Timestamp::now();
        let mut old = std::mem::take(&mut self.nodes);
        for peer in situation.peers.iter().chain([&situation.own]) {
            let mode = if peer.name == situation.own.name {
                Some(NodeMode::Own)
            } else {
                plan.modes.get(&peer.name).map(|mode| match mode {
                    DeliveryMode::Direct => NodeMode::Direct,
                    DeliveryMode::Vxlan => NodeMode::Vxlan,
                })
            };
            let entry = NodeEntry {
                name: peer.name.clone(),
                addresses: peer.addresses.clone(),
                pod_cidrs: peer.pod_cidrs.clone(),
                mode: mode.filter(|_| enabled),
                last_change: now,
            };
            let entry = match old.remove(&peer.name) {
                Some(old) if old.has_same_content(&entry) => old,
                _ => entry,
            };
            self.nodes.insert(entry.name.clone(), entry);
        }
    }
}

/// Addresses that other nodes take for this node's, and that this node does not hold.
fn missing_addresses(own: &Peer, held: &NodeAddresses) -> Vec<ObjectError> {
    let missing = own.addresses.iter().filter(|ip| !held.holds(**ip));
    let error = |ip: &IpAddr| {
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        ObjectError {
            code: Trouble::NodeAddressMissing,
            object: format!("node {}", own.name),
            message: format!(
                "the address {ip} of this Node is on no interface: other nodes' {family} packets to this node and its pods \
                 may be lost; give it to an interface (ip address add {ip} …), or have the kubelet register another one"
            ),
        }
    };
    missing.map(error).collect()
}

fn situation(
    cluster: &ClusterState,
    options: &AgentOptions,
    (links, roles, addresses): (&Links, &Roles, &NodeAddresses),
) -> Situation {
    let peer = |node: &crate::cluster::Node| Peer {
        name: node.name.to_string(),
        addresses: node.addresses.clone(),
        pod_cidrs: node.pod_cidrs.clone(),
        tunnel_mac: node.tunnel_mac,
    };
    let others = cluster.nodes().filter(|node| node.name != options.node_name);
    // Other nodes know this node by its object, so the object's addresses come before configured ones.
    let object = cluster.node(&options.node_name).map(peer).unwrap_or_default();
    let mut own = Peer {
        name: options.node_name.clone(),
        pod_cidrs: own_pod_cidrs(cluster, options),
        ..object
    };
    if own.addresses.is_empty() {
        own.addresses = node_addresses(cluster, options);
    }
    if own.addresses.is_empty() {
        let primary = [
            addresses.primary_v4.map(Into::into),
            addresses.primary_v6.map(Into::into),
        ];
        own.addresses = primary.into_iter().flatten().collect();
    }
    let is_direct = options.configuration.routing_mode == RoutingMode::Direct;
    let uplinks = roles.of(Role::Uplink).map(|uplink| uplink.index);
    let subnets = subnets_of_nodes(links, uplinks, is_direct);
    let configuration = &options.configuration;
    Situation {
        mode: configuration.routing_mode,
        vxlan: configuration.vxlan,
        own,
        peers: others.map(peer).collect(),
        subnets,
        underlay_mtu: roles.uplink_mtu(links).unwrap_or(DEFAULT_MTU),
    }
}
