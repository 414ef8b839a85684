//! The pods of a node and who has which address: the documents of `millrace pod list` and `millrace ipam`.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Protocol;

/// A pod's interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodEntry {
    /// The pod's namespace; null where the runtime did not tell it.
    pub namespace: Option<String>,
    /// The pod's name; null where the runtime did not tell it.
    pub name: Option<String>,
    /// The container.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Its interface.
    pub if_name: String,
    /// The interface on the node's side.
    pub host_interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its Ethernet address.
    pub mac: String,
    /// The MTU.
    pub mtu: u32,
    /// Bits per second towards the pod; null if they are not limited.
    pub ingress_bandwidth: Option<u64>,
    /// Bits per second from the pod; null if they are not limited.
    pub egress_bandwidth: Option<u64>,
    /// Ports of the node that lead to it.
    pub host_ports: Vec<HostPortEntry>,
}

#[cfg(test)]
impl PodEntry {
    /// A pod of two families, with a limit one way and a host port.
    pub fn example() -> Self {
        Self {
            namespace: Some("shop".into()),
            name: None,
            container_id: "c1".into(),
            if_name: "eth0".into(),
            host_interface: "mrf874111cf6a8".into(),
            addresses: vec!["10.244.1.2".parse().unwrap(), "fd00:1::2".parse().unwrap()],
            mac: "02:00:00:00:00:01".into(),
            mtu: 1450,
            ingress_bandwidth: Some(10_000_000),
            egress_bandwidth: None,
            host_ports: vec![HostPortEntry {
                host_ip: None,
                host_port: 80,
                container_port: 8080,
                protocol: Protocol::Tcp,
            }],
        }
    }
}

/// A port of the node that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPortEntry {
    /// The node's address; null for all of them.
    #[serde(rename = "hostIP")]
    pub host_ip: Option<IpAddr>,
    /// The node's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
}

/// An address that was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseEntry {
    /// The address.
    pub address: IpAddr,
    /// The container that has it; empty if the lease does not say.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The container's interface; null if the lease does not say.
    pub if_name: Option<String>,
    /// Whether it is still needed.
    pub state: LeaseState,
}

/// Whether an address is still needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// It is, or may be.
    Used,
    /// Nothing is left that could need it.
    Leaked,
}

/// The leases of a node, and where they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leases {
    /// The directory.
    pub dir: PathBuf,
    /// What lies there.
    pub leases: Vec<LeaseEntry>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_have_the_keys_that_are_promised() {
        assert_eq!(
            serde_json::to_string(&PodEntry::example()).unwrap(),
            concat!(
                r#"{"namespace":"shop","name":null,"containerID":"c1","ifName":"eth0","hostInterface":"mrf874111cf6a8","#,
                r#""addresses":["10.244.1.2","fd00:1::2"],"mac":"02:00:00:00:00:01","mtu":1450,"#,
                r#""ingressBandwidth":10000000,"egressBandwidth":null,"#,
                r#""hostPorts":[{"hostIP":null,"hostPort":80,"containerPort":8080,"protocol":"TCP"}]}"#,
            )
        );
        let lease = LeaseEntry {
            address: "10.244.1.2".parse().unwrap(),
            container_id: "c1".into(),
            if_name: Some("eth0".into()),
            state: LeaseState::Leaked,
        };
        assert_eq!(
            serde_json::to_string(&lease).unwrap(),
            r#"{"address":"10.244.1.2","containerID":"c1","ifName":"eth0","state":"leaked"}"#
        );
    }
}
