//! The pods of a node, and the addresses with their holders: the documents of `millrace pod list` and
//! `millrace ipam`.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Protocol;

/// A pod's interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodEntry {
    /// The pod's namespace; null where the runtime did not pass it.
    pub namespace: Option<String>,
    /// The pod's name; null where the runtime did not pass it.
    pub name: Option<String>,
    /// The identifier of the pod's container in the runtime.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The name of the interface in the pod.
    pub if_name: String,
    /// The interface on the node's side.
    pub host_interface: String,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Its Ethernet address.
    pub mac: String,
    /// The MTU of the pod's interface, in bytes.
    pub mtu: u32,
    /// The limit in bits per second towards the pod; null if there is none.
    pub ingress_bandwidth: Option<u64>,
    /// The limit in bits per second from the pod; null if there is none.
    pub egress_bandwidth: Option<u64>,
    /// The ports of the node that lead to the pod.
    pub host_ports: Vec<HostPortEntry>,
}

#[cfg(test)]
impl PodEntry {
    /// A pod of two families, with a limit in one direction and a host port.
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

/// An address that the plugin gave to a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseEntry {
    /// The address of the lease.
    pub address: IpAddr,
    /// The container that has the address; empty if the lease does not say.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The container's interface; null if the lease does not say.
    pub if_name: Option<String>,
    /// Whether the address is still needed.
    pub state: LeaseState,
}

/// Whether an address is still needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// The address is in use, or may be in use.
    Used,
    /// No container is left that could need the address.
    Leaked,
}

/// The leases of a node, and the directory that holds them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leases {
    /// The directory that holds the lease files.
    pub dir: PathBuf,
    /// The leases in the directory.
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
