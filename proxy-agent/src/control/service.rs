//! What is programmed, frontend by frontend: the document of `millrace service list -o json`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::Protocol;

/// One frontend: an address, protocol and port that packets are sent to, and where they may go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntry {
    /// The service's namespace; empty for a host port, which belongs to none.
    pub namespace: String,
    /// The service's name; empty for a host port.
    pub name: String,
    /// The name of the port; empty if it has none.
    pub port: String,
    /// The transport protocol.
    pub protocol: Protocol,
    /// Which of the service's addresses this is.
    pub kind: ServiceKind,
    /// The address.
    pub address: IpAddr,
    /// The port's number.
    pub port_number: u16,
    /// The traffic policy as it applies to this kind.
    pub policy: TrafficPolicy,
    /// How long a client stays with its backend; null where it need not.
    pub affinity_seconds: Option<u32>,
    /// Where packets may go.
    pub backends: Vec<BackendEntry>,
}

/// One backend of a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendEntry {
    /// Address and port.
    pub address: SocketAddr,
    /// The node it is on, where that is known.
    pub node: Option<String>,
    /// Whether it takes new connections.
    pub state: BackendState,
}

/// Whether a backend takes new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// It does.
    Active,
    /// It only keeps those it has.
    Terminating,
}

/// Which of a service's addresses a frontend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ServiceKind {
    /// `spec.clusterIPs`.
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// `spec.ports[].nodePort` on an address of the node.
    NodePort,
    /// `status.loadBalancer.ingress`.
    LoadBalancer,
    /// `spec.externalIPs`.
    #[serde(rename = "ExternalIP")]
    ExternalIp,
    /// A pod's `hostPort`.
    HostPort,
}

impl fmt::Display for ServiceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalIp => "ExternalIP",
            Self::HostPort => "HostPort",
        })
    }
}

/// Which endpoints a frontend may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// All of the cluster.
    Cluster,
    /// Those on this node.
    Local,
}

impl fmt::Display for TrafficPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_the_keys_that_are_promised() {
        let entry = ServiceEntry {
            namespace: "shop".into(),
            name: "cart".into(),
            port: "http".into(),
            protocol: Protocol::Tcp,
            kind: ServiceKind::ClusterIp,
            address: "fd00:96::a".parse().unwrap(),
            port_number: 80,
            policy: TrafficPolicy::Cluster,
            affinity_seconds: Some(10800),
            backends: vec![BackendEntry {
                address: "[fd00:10::5]:8080".parse().unwrap(),
                node: Some("worker-1".into()),
                state: BackendState::Terminating,
            }],
        };
        assert_eq!(
            serde_json::to_string(&entry).unwrap(),
            concat!(
                r#"{"namespace":"shop","name":"cart","port":"http","protocol":"TCP","kind":"ClusterIP","#,
                r#""address":"fd00:96::a","portNumber":80,"policy":"Cluster","affinitySeconds":10800,"#,
                r#""backends":[{"address":"[fd00:10::5]:8080","node":"worker-1","state":"terminating"}]}"#,
            )
        );
    }

    #[test]
    fn kinds_print_as_they_are_written() {
        use ServiceKind::{ClusterIp, ExternalIp, HostPort, LoadBalancer, NodePort};
        for kind in [ClusterIp, NodePort, LoadBalancer, ExternalIp, HostPort] {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
        }
    }
}
