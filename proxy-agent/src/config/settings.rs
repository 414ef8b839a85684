//! What one place (a file, the environment and flags) says about the configuration.

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
/// As a document: `apiVersion: millrace.dev/v1alpha1`, `kind: AgentConfiguration`, and these keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// Judged before the rest is read.
    pub api_version: Ignored,
    /// Likewise.
    pub kind: Ignored,
    /// Whose sockets are translated.
    #[serde(rename = "socketLB")]
    pub socket_lb: Option<SocketLb>,
    /// Source ports for masqueraded flows.
    pub masquerade_ports: Option<PortRange>,
    /// Where services get their addresses from, besides what ServiceCIDR objects say.
    #[serde(rename = "serviceCIDRs")]
    pub service_cidrs: Option<Vec<Cidr>>,
    /// Where pods get their addresses from, besides what Node objects say.
    #[serde(rename = "clusterCIDRs")]
    pub cluster_cidrs: Option<Vec<Cidr>>,
    /// The node's addresses, in place of those of its Node object or interfaces.
    pub node_addresses: Option<Vec<Address>>,
    /// Which of the node's addresses node ports are served on; an empty list stands for `primary`.
    pub node_port_addresses: Option<Vec<NodePortAddress>>,
    /// Whether processes of the node are kept from binding node ports.
    pub protect_node_ports: Option<bool>,
    /// Whether `spec.externalIPs` of services are served.
    #[serde(rename = "externalIPs")]
    pub external_ips: Option<bool>,
    /// Whether all flows to services carry the node's address.
    pub masquerade_all: Option<bool>,
    /// Where this node's pods get their addresses from, in place of what its Node object says.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Option<Vec<Cidr>>,
    /// How packets get to the pods of other nodes.
    pub routing_mode: Option<RoutingMode>,
    /// How packets to pods of this node get there.
    pub host_routing: Option<HostRouting>,
    /// The tunnel to other nodes.
    pub vxlan: Option<VxlanSettings>,
    /// Whether what pods send to the world outside carries the node's address.
    pub masquerade: Option<bool>,
    /// Where what pods send keeps their addresses, besides other pods.
    #[serde(rename = "nonMasqueradeCIDRs")]
    pub non_masquerade_cidrs: Option<Vec<Cidr>>,
    /// Pods that may send from addresses that are not their own.
    pub pods_with_any_source: Option<Vec<PodChoice>>,
    /// How long flows are remembered.
    pub conntrack: Option<ConntrackSettings>,
    /// The addresses of the API server, in place of the one that the kubeconfig or the cluster names.
    pub api_servers: Option<Vec<ApiServer>>,
    /// Where health is told.
    pub health_address: Option<ListenAddress>,
    /// Where metrics are shown.
    pub metrics_address: Option<ListenAddress>,
    /// Whether the agent ends if it cannot listen at these addresses when it starts.
    pub bind_address_hard_fail: Option<bool>,
    /// Sizes of maps.
    pub maps: Option<MapSettings>,
    /// The node's name, where no flag says it; only a KubeProxyConfiguration does.
    #[serde(skip)]
    pub node_name: Option<String>,
    /// How to reach the API server, likewise.
    #[serde(skip)]
    pub kubeconfig: Option<PathBuf>,
}

/// A field that is allowed and says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Asking for nothing would look as if the type had no such field.
        String::deserialize(deserializer).map(|_| Self)
    }
}

/// A setting whose value can be read and not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct SettingError {
    /// The setting, as a document writes it.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

impl Settings {
    /// Everything that is wrong with values that could be read.
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
