//! What the rest of the agent asks about the node: its interfaces, by role and name, and the routes that
//! its packets take.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::link::LinkFlags;

use super::Node;
use crate::agent::ranges::{is_outside_ranges, service_cidrs};
use crate::apply::Programmer;
use crate::bpf::Datapath;
use crate::cluster::ClusterState;
use crate::config::AgentOptions;
use crate::network::firewall::PodInterfaces;
use crate::network::inside::NextHop;
use crate::network::netlink::Packet;
use crate::network::{NetworkError, Role};

impl Node {
    /// The routes that packets to services and to pods of other nodes should take: prefixes and output
    /// devices.
    pub fn routes(&self) -> Vec<(IpNet, u32)> {
        let own_routes = self.device.own_routes().into_iter();
        let services =
            own_routes.flat_map(|(index, prefixes)| prefixes.into_iter().map(move |it| (it, index)));
        let is_disturbed = |prefix: &IpNet| {
            let object = format!("route {prefix}");
            self.problems.iter().any(|problem| problem.object == object)
        };
        let routes = services.chain(self.pods.routes());
        routes.filter(|(prefix, _)| !is_disturbed(prefix)).collect()
    }

    /// Whether such a route exists only because services name its address. Every tenant's services may name
    /// addresses.
    pub fn is_named_by_services(&self, prefix: IpNet) -> bool {
        self.device.is_lone(prefix)
    }

    /// The kernel's route for a packet.
    pub async fn route_of(&self, packet: Packet) -> Result<Option<NextHop>, NetworkError> {
        self.netlink.route_of(packet).await
    }

    /// Whether an interface is an uplink.
    pub fn is_uplink(&self, index: u32) -> bool {
        self.roles.of(Role::Uplink).any(|uplink| uplink.index == index)
    }

    /// Whether an interface has a carrier. A pod's interface has none while the pod keeps its own side
    /// switched off.
    pub fn has_carrier(&self, index: u32) -> bool {
        let link = self.monitor.links().get(index);
        link.is_some_and(|link| link.flags.contains(LinkFlags::LowerUp))
    }

    /// Whether an interface with this index exists.
    pub fn has_interface(&self, index: u32) -> bool {
        self.monitor.links().get(index).is_some()
    }

    /// The name of an interface.
    pub fn interface_name(&self, index: u32) -> String {
        self.monitor.links().name(index)
    }

    /// The interfaces by which packets of pods come and go, as netfilter sees them: a bridge stands for its
    /// ports.
    pub fn pod_interfaces(&self, options: &AgentOptions) -> PodInterfaces {
        if options.cni_conf_dir.is_some() {
            return PodInterfaces::Own;
        }
        let links = self.monitor.links();
        let pods = self.roles.of(Role::Pod).filter_map(|pod| links.get(pod.index));
        let names: BTreeSet<_> = pods
            .map(|link| links.name(link.master.unwrap_or(link.index)))
            .collect();
        PodInterfaces::Named(names.into_iter().collect())
    }

    /// The names of the uplinks.
    pub fn uplink_names(&self) -> Vec<String> {
        self.roles
            .of(Role::Uplink)
            .map(|uplink| uplink.name.clone())
            .collect()
    }

    /// The index of an interface of this role, if there is one.
    pub fn interface_of(&self, role: Role) -> Option<u32> {
        self.roles.of(role).map(|interface| interface.index).next()
    }

    /// Virtual addresses that no service range contains, so that each needs a route of its own.
    pub fn addresses_outside_ranges(
        cluster: &ClusterState,
        options: &AgentOptions,
        programmer: &Programmer<Datapath>,
    ) -> BTreeSet<IpAddr> {
        let ranges = service_cidrs(cluster, options);
        programmer
            .virtual_addresses()
            .map(IpAddr::from)
            .filter(|address| is_outside_ranges(address, &ranges))
            .collect()
    }
}
