//! The configuration in force.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::Serialize;

use super::conntrack::Conntrack;
use super::map_sizes::MapLimits;
use super::pod_network::{RoutingMode, Vxlan};
use super::port_conflicts;
use super::settings::Settings;
use super::values::{ApiServer, HostRouting, NodePortAddress, PortRange, SocketLb};
use super::{HEALTH_ADDRESS, METRICS_ADDRESS};
use crate::cluster::PodChoice;

/// The configuration in force: the defaults with all settings applied. The agent logs it once, when it
/// starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of its own, named by its key"
)]
pub struct Configuration {
    /// The sockets whose destination is translated.
    #[serde(rename = "socketLB")]
    pub socket_lb: SocketLb,
    /// Source ports for masqueraded flows.
    pub masquerade_ports: PortRange,
    /// The ranges of services' addresses, besides those of ServiceCIDR objects.
    #[serde(rename = "serviceCIDRs")]
    pub service_cidrs: Vec<IpNet>,
    /// The ranges of pods' addresses, besides those of Node objects.
    #[serde(rename = "clusterCIDRs")]
    pub cluster_cidrs: Vec<IpNet>,
    /// The node's addresses, in place of those of its Node object or interfaces; empty if none are
    /// configured.
    pub node_addresses: Vec<IpAddr>,
    /// The addresses of the node that serve node ports.
    pub node_port_addresses: Vec<NodePortAddress>,
    /// Whether processes of the node are kept from binding node ports.
    pub protect_node_ports: bool,
    /// Whether `spec.externalIPs` of services are served.
    #[serde(rename = "externalIPs")]
    pub external_ips: bool,
    /// Whether all flows to services get the node's address as their source.
    pub masquerade_all: bool,
    /// The ranges of addresses for this node's pods; empty for those of its Node object.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// How packets reach the pods of other nodes.
    pub routing_mode: RoutingMode,
    /// How packets reach pods of this node.
    pub host_routing: HostRouting,
    /// The tunnel to other nodes.
    pub vxlan: Vxlan,
    /// Whether packets from pods to the outside get the node's address as their source. `None` means that
    /// they do if the agent sets up the pod network.
    pub masquerade: Option<bool>,
    /// The ranges besides pods' to which packets from pods keep their source address.
    #[serde(rename = "nonMasqueradeCIDRs")]
    pub non_masquerade_cidrs: Vec<IpNet>,
    /// Pods that may send from addresses that are not their own.
    pub pods_with_any_source: Vec<PodChoice>,
    /// The lifetimes of flows.
    pub conntrack: Conntrack,
    /// The addresses of the API server, in place of that of the kubeconfig or the cluster; the first that
    /// responds is used.
    pub api_servers: Vec<ApiServer>,
    /// The address that serves health; `None` for no server.
    pub health_address: Option<SocketAddr>,
    /// The address that serves metrics; `None` for no server.
    pub metrics_address: Option<SocketAddr>,
    /// Whether the agent ends if it cannot listen at these addresses when it starts.
    pub bind_address_hard_fail: bool,
    /// Sizes of maps.
    pub maps: MapLimits,
}

/// This range is below the kernel's default range for the node's own sockets, which begins at 32768. It is
/// also below Kubernetes' default range of node ports.
const MASQUERADE_PORTS: PortRange = match PortRange::new(10_000, 29_999) {
    Some(range) => range,
    None => panic!("the range is not empty"),
};

impl Default for Configuration {
    fn default() -> Self {
        Self {
            socket_lb: SocketLb::default(),
            masquerade_ports: MASQUERADE_PORTS,
            service_cidrs: Vec::new(),
            cluster_cidrs: Vec::new(),
            node_addresses: Vec::new(),
            node_port_addresses: vec![NodePortAddress::Primary],
            protect_node_ports: true,
            external_ips: true,
            masquerade_all: false,
            pod_cidrs: Vec::new(),
            routing_mode: RoutingMode::default(),
            host_routing: HostRouting::default(),
            vxlan: Vxlan::default(),
            masquerade: None,
            non_masquerade_cidrs: Vec::new(),
            pods_with_any_source: Vec::new(),
            conntrack: Conntrack::default(),
            api_servers: Vec::new(),
            health_address: Some(HEALTH_ADDRESS),
            metrics_address: Some(METRICS_ADDRESS),
            bind_address_hard_fail: false,
            maps: MapLimits::default(),
        }
    }
}

impl Configuration {
    /// The defaults, changed by the files and then by the environment and flags.
    pub fn of(files: &[Settings], overrides: &Settings) -> Self {
        let mut configuration = Self::default();
        for settings in files.iter().chain([overrides]) {
            configuration.apply(settings);
        }
        configuration
    }

    /// Applies `settings`, which must have no [`Settings::errors`].
    pub fn apply(&mut self, settings: &Settings) {
        if let Some(socket_lb) = settings.socket_lb {
            self.socket_lb = socket_lb;
        }
        if let Some(ports) = settings.masquerade_ports {
            self.masquerade_ports = ports;
        }
        if let Some(ranges) = &settings.service_cidrs {
            self.service_cidrs = ranges.iter().map(|range| range.0).collect();
        }
        if let Some(ranges) = &settings.cluster_cidrs {
            self.cluster_cidrs = ranges.iter().map(|range| range.0).collect();
        }
        if let Some(addresses) = &settings.node_addresses {
            self.node_addresses = addresses.iter().map(|address| address.0).collect();
        }
        if let Some(addresses) = &settings.node_port_addresses {
            self.node_port_addresses.clone_from(addresses);
            if addresses.is_empty() {
                self.node_port_addresses.push(NodePortAddress::Primary);
            }
        }
        if let Some(protect) = settings.protect_node_ports {
            self.protect_node_ports = protect;
        }
        if let Some(external_ips) = settings.external_ips {
            self.external_ips = external_ips;
        }
        if let Some(all) = settings.masquerade_all {
            self.masquerade_all = all;
        }
        self.apply_pod_network(settings);
        if let Some(conntrack) = &settings.conntrack {
            conntrack.apply(&mut self.conntrack);
        }
        if let Some(servers) = &settings.api_servers {
            self.api_servers.clone_from(servers);
        }
        if let Some(address) = settings.health_address {
            self.health_address = address.or(HEALTH_ADDRESS);
        }
        if let Some(address) = settings.metrics_address {
            self.metrics_address = address.or(METRICS_ADDRESS);
        }
        if let Some(hard) = settings.bind_address_hard_fail {
            self.bind_address_hard_fail = hard;
        }
        if let Some(maps) = &settings.maps {
            maps.apply(&mut self.maps);
        }
    }

    fn apply_pod_network(&mut self, settings: &Settings) {
        if let Some(ranges) = &settings.pod_cidrs {
            self.pod_cidrs = ranges.iter().map(|range| range.0).collect();
        }
        if let Some(mode) = settings.routing_mode {
            self.routing_mode = mode;
        }
        if let Some(routing) = settings.host_routing {
            self.host_routing = routing;
        }
        if let Some(vxlan) = &settings.vxlan {
            vxlan.apply(&mut self.vxlan);
        }
        if let Some(masquerade) = settings.masquerade {
            self.masquerade = Some(masquerade);
        }
        if let Some(ranges) = &settings.non_masquerade_cidrs {
            self.non_masquerade_cidrs = ranges.iter().map(|range| range.0).collect();
        }
        if let Some(choices) = &settings.pods_with_any_source {
            self.pods_with_any_source.clone_from(choices);
        }
    }

    /// Settings that are valid and most likely not intended.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for service in &self.service_cidrs {
            for pod in self.cluster_cidrs.iter().filter(|pod| overlap(service, pod)) {
                warnings.push(format!(
                    "serviceCIDRs {service} and clusterCIDRs {pod} overlap: pods with addresses of services are not reached"
                ));
            }
        }
        if self.masquerade_ports.first() < 1024 {
            warnings.push(format!(
                "masqueradePorts {} holds ports below 1024, which firewalls often treat as servers'",
                self.masquerade_ports
            ));
        }
        warnings.extend(port_conflicts::warnings(self));
        warnings
    }
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_settings_replace_earlier_ones_key_by_key() {
        let mut configuration = Configuration::default();
        configuration.apply(&Settings {
            socket_lb: Some(SocketLb::Off),
            cluster_cidrs: Some(vec![
                "10.244.0.0/16".parse().unwrap(),
                "10.245.0.0/16".parse().unwrap(),
            ]),
            maps: Some("{frontends: 100, flows: 7}".parse().unwrap()),
            ..Settings::default()
        });
        configuration.apply(&Settings {
            cluster_cidrs: Some(vec!["10.0.0.0/8".parse().unwrap()]),
            maps: Some("{frontends: 200}".parse().unwrap()),
            ..Settings::default()
        });
        assert_eq!(configuration.socket_lb, SocketLb::Off);
        assert_eq!(configuration.cluster_cidrs, ["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(
            (configuration.maps.frontends.initial, configuration.maps.flows),
            (200, 7)
        );
    }

    #[test]
    fn overlapping_ranges_are_mentioned() {
        let mut configuration = Configuration::default();
        assert_eq!(configuration.warnings(), Vec::<String>::new());
        configuration.service_cidrs = vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()];
        configuration.cluster_cidrs = vec!["10.0.0.0/8".parse().unwrap(), "fd00:10::/56".parse().unwrap()];
        assert_eq!(
            configuration.warnings(),
            [
                "serviceCIDRs 10.96.0.0/16 and clusterCIDRs 10.0.0.0/8 overlap: pods with addresses of services are not reached"
            ]
        );
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        assert_eq!(
            serde_json::to_value(Configuration::default()).unwrap(),
            serde_json::json!({
                "socketLB": "all",
                "masqueradePorts": "10000-29999",
                "serviceCIDRs": [],
                "clusterCIDRs": [],
                "nodeAddresses": [],
                "nodePortAddresses": ["primary"],
                "protectNodePorts": true,
                "externalIPs": true,
                "masqueradeAll": false,
                "podCIDRs": [],
                "routingMode": "auto",
                "hostRouting": "stack",
                "vxlan": {"port": 8472, "id": 1},
                "masquerade": null,
                "nonMasqueradeCIDRs": [],
                "podsWithAnySource": [],
                "conntrack": {
                    "tcpEstablishedTimeout": "24h0m0s",
                    "tcpCloseWaitTimeout": "1h0m0s",
                    "udpTimeout": "30s",
                    "udpStreamTimeout": "3m0s",
                },
                "apiServers": [],
                "healthAddress": "0.0.0.0:10256",
                "metricsAddress": "127.0.0.1:10249",
                "bindAddressHardFail": false,
                "maps": {
                    "frontends": {"initial": 65_536, "max": 4_194_304},
                    "slots": {"initial": 262_144, "max": 16_777_216},
                    "backends": {"initial": 131_072, "max": 8_388_608},
                    "addresses": {"initial": 65_536, "max": 4_194_304},
                    "flows": 262_144,
                    "affinity": 65_536,
                    "socketPeers": 65_536,
                    "podNamespaces": 4_096,
                },
            })
        );
    }
}
