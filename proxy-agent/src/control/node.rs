//! The document of `millrace node list`.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A node of the cluster, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeEntry {
    /// Its name.
    pub name: String,
    /// Its internal addresses.
    pub addresses: Vec<IpAddr>,
    /// Where its pods get their addresses from.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// How its pods are reached; null if they are not, or if that is not this agent's business.
    pub mode: Option<NodeMode>,
    /// When one of these was last another.
    pub last_change: Timestamp,
}

/// How a node's pods are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeMode {
    /// It is this node.
    #[serde(rename = "self")]
    Own,
    /// By the network between the nodes.
    Direct,
    /// Through the tunnel.
    Vxlan,
}

impl NodeEntry {
    /// Whether two entries differ in nothing but the time.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let last_change = self.last_change;
        *self
            == Self {
                last_change,
                ..other.clone()
            }
    }
}
