//! The owners of addresses (this node, another node, another machine), as the maps and `millrace status` have
//! them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use proxy_common::maps::{AddressFlags, FrontendKey, NodeNumber};
use proxy_common::{Ip, protocol};

use super::Node;
use super::owners::{AddressOwner, Evidence};
use crate::agent::ranges::{node_names, own_addresses, peers};
use crate::apply::{ANOTHERS, Programmer};
use crate::bpf::Datapath;
use crate::cluster::ClusterState;
use crate::config::{AgentOptions, NodePortAddress};
use crate::control::{ObjectError, SharedAddress};
use crate::network::NodeAddresses;
use crate::network::port_rules::PortAt;
use crate::plan::ProgrammedGroup;

/// The most addresses of other nodes for which the agent makes rules for ports of services.
const MAX_NODES_WITH_RULES: usize = 8;

impl Node {
    /// The node's addresses that node ports are served on.
    pub fn node_port_addresses(&self, options: &AgentOptions) -> Vec<IpAddr> {
        let NodeAddresses {
            primary_v4,
            primary_v6,
            ..
        } = self.addresses;
        let primary = || {
            [primary_v4.map(IpAddr::from), primary_v6.map(IpAddr::from)]
                .into_iter()
                .flatten()
        };
        let mut chosen: Vec<IpAddr> = options
            .configuration
            .node_port_addresses
            .iter()
            .flat_map(|choice| -> Vec<IpAddr> {
                match choice {
                    NodePortAddress::Primary => primary().collect(),
                    NodePortAddress::In(range) => {
                        let all = self.addresses.all.iter().copied();
                        all.filter(|address| range.contains(address)).collect()
                    }
                }
            })
            .collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }

    /// Addresses of services that another machine has as well, and that machine.
    pub fn shared_addresses(&self) -> Vec<SharedAddress> {
        let nodes = self.shared_with_nodes.iter();
        let nodes = nodes.map(|(address, node)| (*address, format!("Node {node}")));
        let others = self.owners.named();
        let others = others.map(|(address, owner)| (address, owner.to_string()));
        let all: BTreeMap<IpAddr, String> = others.chain(nodes).collect();
        let shared = all.into_iter();
        shared
            .map(|(address, owner)| SharedAddress { address, owner })
            .collect()
    }

    /// Whether packets to a virtual address follow the kernel's routes, except those to the ports of
    /// services.
    pub fn is_anothers(&self, address: IpAddr) -> bool {
        self.shared_with_nodes.contains_key(&address) || self.owners.of(address).is_some()
    }

    /// Ports of services at addresses that other machines have as well.
    ///
    /// Each costs a rule, and the kernel walks over all rules at each look-up. So addresses of other nodes
    /// count in small clusters only. In larger ones the other node itself serves the packets to its address.
    /// The tunnel's port is none of them: packets from this node to other tunnels would match the same rules.
    fn shared_ports(&self, cluster: &ClusterState, programmer: &Programmer<Datapath>) -> BTreeSet<PortAt> {
        let mut ports = BTreeSet::new();
        let with_others = self.owners.named().map(|(address, _)| address);
        let with_nodes = self.shared_with_nodes.keys().copied();
        let with_nodes = with_nodes.filter(|_| self.shared_with_nodes.len() <= MAX_NODES_WITH_RULES);
        for address in with_nodes.chain(with_others) {
            let services = cluster.services_naming(address);
            let served = services.filter_map(|(id, _)| programmer.programmed(id));
            let groups = served.flat_map(|service| &service.groups);
            let keys = groups.flat_map(ProgrammedGroup::keys);
            let is_tunnels = |key: &FrontendKey| {
                key.protocol == protocol::UDP && self.tunnel_port == Some(key.port.number())
            };
            let there = keys.filter(|key| IpAddr::from(key.address) == address && !is_tunnels(key));
            ports.extend(there.map(|key| PortAt {
                address,
                protocol: key.protocol,
                port: key.port.number(),
            }));
        }
        ports
    }

    /// Routes the node's own packets to those ports to our device, and no other packet to these addresses.
    pub(super) async fn sync_port_rules(
        &mut self,
        cluster: &ClusterState,
        programmer: &Programmer<Datapath>,
    ) -> Vec<ObjectError> {
        let wanted = self.shared_ports(cluster, programmer);
        match self.device.sync_rules(&self.addresses, wanted).await {
            Ok(found) => found.iter().map(ObjectError::from).collect(),
            Err(error) => vec![ObjectError::new(error.trouble(), "rules", &error)],
        }
    }

    /// Whether the ports of services at such addresses have changed.
    pub fn has_other_ports(&self, cluster: &ClusterState, programmer: &Programmer<Datapath>) -> bool {
        let wanted = self.shared_ports(cluster, programmer);
        self.device.rules().differ(&wanted)
    }

    /// Whether the node's packets to a port of another machine's address go to our device.
    pub fn has_port_rule(&self, address: IpAddr, protocol: u8, port: u16) -> bool {
        self.device.rules().contains(&PortAt {
            address,
            protocol,
            port,
        })
    }

    /// Finds the other owners of the addresses that services name from outside (`named`), and writes the
    /// owner of each address into the maps.
    pub async fn write_addresses(
        &mut self,
        cluster: &ClusterState,
        options: &AgentOptions,
        programmer: &mut Programmer<Datapath>,
        (named, api_servers): (&BTreeSet<IpAddr>, &BTreeSet<SocketAddr>),
    ) -> Option<ObjectError> {
        let peers = peers(cluster, options);
        let of_node = own_addresses(cluster, options).into_iter();
        let of_node = of_node.map(|address| (address, AddressOwner::ThisNode));
        let servers = api_servers.iter();
        let servers = servers.map(|server| (server.ip(), AddressOwner::ApiServer));
        let mut known: BTreeMap<IpAddr, AddressOwner> = of_node.chain(servers).collect();
        known.retain(|address, _| !peers.contains_key(address) && !self.addresses.holds(*address));
        let evidence = Evidence {
            netlink: &self.netlink,
            links: self.monitor.links(),
            roles: &self.roles,
            addresses: &self.addresses,
            cluster,
        };
        let open = named.iter().filter(|address| !peers.contains_key(*address));
        let open = open.copied().collect();
        let looked = self.owners.look(&evidence, open, known).await;
        self.shared_with_nodes = node_names(cluster, options, named);
        self.shared_with_nodes
            .retain(|address, _| !self.addresses.holds(*address));
        let of_services = named.iter().filter(|address| self.addresses.holds(**address));
        let held = self.addresses.all.iter().chain(of_services);
        let held: BTreeSet<Ip> = held.copied().map(Ip::from).collect();
        let held: Vec<Ip> = held.into_iter().collect();
        programmer.set_node_addresses(&held, self.other_addresses(&peers));
        looked
            .err()
            .map(|error| ObjectError::new(error.trouble(), "addresses", &error))
    }

    /// The flags in the maps of addresses that are not the node's: addresses of other machines, and those of
    /// no host.
    fn other_addresses(&self, peers: &BTreeMap<IpAddr, NodeNumber>) -> HashMap<Ip, AddressFlags> {
        let others = self.owners.addresses().map(|ip| (Ip::from(ip), ANOTHERS));
        let broadcasts = self.addresses.broadcasts.iter();
        let broadcasts = broadcasts.map(|ip| (Ip::from(*ip), AddressFlags(AddressFlags::BROADCAST)));
        let peers = peers.iter();
        let peers = peers.map(|(ip, number)| (Ip::from(*ip), AddressFlags::of_peer(*number)));
        others.chain(broadcasts).chain(peers).collect()
    }
}
