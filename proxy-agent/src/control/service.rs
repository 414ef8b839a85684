//! The programmed services by frontend: the document of `millrace service list -o json`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::Protocol;

/// One frontend: an address, protocol and port that clients send packets to, and the backends of these
/// packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntry {
    /// The service's namespace; empty for a host port, which belongs to no service.
    pub namespace: String,
    /// The service's name; empty for a host port.
    pub name: String,
    /// The name of the port; empty if it has none.
    pub port: String,
    /// The transport protocol of the frontend.
    pub protocol: Protocol,
    /// Which of the service's addresses this is.
    pub kind: ServiceKind,
    /// The address of the frontend.
    pub address: IpAddr,
    /// The port number of the frontend.
    pub port_number: u16,
    /// The traffic policy as it applies to this kind of address.
    pub policy: TrafficPolicy,
    /// The time for which a client keeps its backend, in seconds; null without session affinity.
    pub affinity_seconds: Option<u32>,
    /// The backends that packets may go to.
    pub backends: Vec<BackendEntry>,
    /// The reason why this entry differs from its plan; null if it does not.
    #[serde(default)]
    pub update: Option<PendingUpdate>,
}

/// The reason why the kernel's maps do not hold the planned form of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PendingUpdate {
    /// A write is to come, or failed and is tried again.
    Waiting,
    /// A map has no room for it; `millrace status` names the map.
    NoRoom,
}

/// One backend of a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendEntry {
    /// The address and port of the backend.
    pub address: SocketAddr,
    /// The node of the backend, if it is known.
    pub node: Option<String>,
    /// Whether the backend takes new connections.
    pub state: BackendState,
}

/// Whether a backend takes new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// The backend takes new connections.
    Active,
    /// The backend only keeps the connections that it has.
    Terminating,
}

/// Which of a service's addresses a frontend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ServiceKind {
    /// An address of `spec.clusterIPs`.
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// The port of `spec.ports[].nodePort` on an address of the node.
    NodePort,
    /// An address of `status.loadBalancer.ingress`.
    LoadBalancer,
    /// An address of `spec.externalIPs`.
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

/// The endpoints that a frontend may choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// All endpoints of the cluster.
    Cluster,
    /// The endpoints on this node.
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
            update: Some(PendingUpdate::NoRoom),
        };
        assert_eq!(
            serde_json::to_string(&entry).unwrap(),
            concat!(
                r#"{"namespace":"shop","name":"cart","port":"http","protocol":"TCP","kind":"ClusterIP","#,
                r#""address":"fd00:96::a","portNumber":80,"policy":"Cluster","affinitySeconds":10800,"#,
                r#""backends":[{"address":"[fd00:10::5]:8080","node":"worker-1","state":"terminating"}],"#,
                r#""update":"noRoom"}"#,
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
