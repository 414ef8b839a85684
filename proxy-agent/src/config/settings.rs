//! The settings from one place: a file, or the environment and flags.

use std::path::PathBuf;

use serde::Deserialize;

use proxy_common::maps::MAX_SERVICE_RANGES;

use super::conntrack::ConntrackSettings;
use super::listen::ListenAddress;
use super::map_sizes::MapSettings;
use super::pod_network::{RoutingMode, VxlanSettings};
use super::values::{Address, ApiServer, Cidr, HostRouting, NodePortAddress, PortRange, SocketLb};
use crate::cluster::PodChoice;

/// Settings that may be given; a list that is given replaces the one before it.
///
/// In a document: `apiVersion: millrace.dev/v1alpha1`, `kind: AgentConfiguration`, and these keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// The reader validates it before the rest of the document.
    pub api_version: Ignored,
    /// The reader validates it before the rest of the document.
    pub kind: Ignored,
    /// The sockets whose destination is translated.
    #[serde(rename = "socketLB")]
    pub socket_lb: Option<SocketLb>,
    /// Source ports for masqueraded flows.
    pub masquerade_ports: Option<PortRange>,
    /// The ranges of services' addresses, besides those of ServiceCIDR objects.
    #[serde(rename = "serviceCIDRs")]
    pub service_cidrs: Option<Vec<Cidr>>,
    /// The ranges of pods' addresses, besides those of Node objects.
    #[serde(rename = "clusterCIDRs")]
    pub cluster_cidrs: Option<Vec<Cidr>>,
    /// The node's addresses, in place of those of its Node object or interfaces.
    pub node_addresses: Option<Vec<Address>>,
    /// The addresses of the node that serve node ports; an empty list stands for `primary`.
    pub node_port_addresses: Option<Vec<NodePortAddress>>,
    /// Whether processes of the node are kept from binding node ports.
    pub protect_node_ports: Option<bool>,
    /// Whether `spec.externalIPs` of services are served.
    #[serde(rename = "externalIPs")]
    pub external_ips: Option<bool>,
    /// Whether all flows to services get the node's address as their source.
    pub masquerade_all: Option<bool>,
    /// The ranges of addresses for this node's pods, in place of those of its Node object.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Option<Vec<Cidr>>,
    /// How packets reach the pods of other nodes.
    pub routing_mode: Option<RoutingMode>,
    /// How packets reach pods of this node.
    pub host_routing: Option<HostRouting>,
    /// The tunnel to other nodes.
    pub vxlan: Option<VxlanSettings>,
    /// Whether packets from pods to the outside get the node's address as their source.
    pub masquerade: Option<bool>,
    /// The ranges besides pods' to which packets from pods keep their source address.
    #[serde(rename = "nonMasqueradeCIDRs")]
    pub non_masquerade_cidrs: Option<Vec<Cidr>>,
    /// Pods that may send from addresses that are not their own.
    pub pods_with_any_source: Option<Vec<PodChoice>>,
    /// The lifetimes of flows.
    pub conntrack: Option<ConntrackSettings>,
    /// The addresses of the API server, in place of that of the kubeconfig or the cluster.
    pub api_servers: Option<Vec<ApiServer>>,
    /// The address that serves health.
    pub health_address: Option<ListenAddress>,
    /// The address that serves metrics.
    pub metrics_address: Option<ListenAddress>,
    /// Whether the agent ends if it cannot listen at these addresses when it starts.
    pub bind_address_hard_fail: Option<bool>,
    /// Sizes of maps.
    pub maps: Option<MapSettings>,
    /// The node's name, if no flag gives it; only a KubeProxyConfiguration has it.
    #[serde(skip)]
    pub node_name: Option<String>,
    /// The kubeconfig for the API server, under the same condition.
    #[serde(skip)]
    pub kubeconfig: Option<PathBuf>,
}

/// A field that is accepted and has no effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // If this asked for no value, serde would report a type without such a field.
        String::deserialize(deserializer).map(|_| Self)
    }
}

/// A setting whose value can be read and not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct SettingError {
    /// The setting, as a document writes it.
    pub field: String,
    /// The text of the error.
    pub message: String,
}

impl Settings {
    /// All errors of values that could be read.
    pub fn errors(&self) -> Vec<SettingError> {
        let mut errors = Vec::new();
        let mut error = |field: String, message| errors.push(SettingError { field, message });
        let service_ranges = self.service_cidrs.as_ref().map_or(0, Vec::len);
        if service_ranges > MAX_SERVICE_RANGES {
            error(
                "serviceCIDRs".into(),
                format!("{service_ranges} ranges are more than the {MAX_SERVICE_RANGES} there is room for"),
            );
        }
        for (index, Address(address)) in self.node_addresses.iter().flatten().enumerate() {
            if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
                error(
                    format!("nodeAddresses[{index}]"),
                    format!("{address} cannot be the address of a node"),
                );
            }
        }
        for (index, choice) in self.pods_with_any_source.iter().flatten().enumerate() {
            if let Some((part, message)) = choice.error() {
                error(format!("podsWithAnySource[{index}].{part}"), message);
            }
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bad_value_is_named() {
        let settings = Settings {
            service_cidrs: Some(vec![Cidr("10.0.0.0/8".parse().unwrap()); 5]),
            node_addresses: Some(
                ["192.0.2.1", "127.0.0.1", "::", "ff02::1"]
                    .map(|text| text.parse().unwrap())
                    .into(),
            ),
            pods_with_any_source: Some(vec![PodChoice::default()]),
            ..Settings::default()
        };
        let errors: Vec<_> = settings.errors().iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "serviceCIDRs: 5 ranges are more than the 4 there is room for",
                "nodeAddresses[1]: 127.0.0.1 cannot be the address of a node",
                "nodeAddresses[2]: :: cannot be the address of a node",
                "nodeAddresses[3]: ff02::1 cannot be the address of a node",
                "podsWithAnySource[0].namespace: missing",
            ]
        );
        assert_eq!(Settings::default().errors(), []);
    }
}
