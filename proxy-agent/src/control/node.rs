//! The document of `millrace node list`.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A node of the cluster, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeEntry {
    /// The node's name.
    pub name: String,
    /// Its internal addresses.
    pub addresses: Vec<IpAddr>,
    /// The networks that its pods get their addresses from.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// How packets reach its pods. It is null if no packet reaches them, or if another component routes these
    /// packets.
    pub mode: Option<NodeMode>,
    /// When one of the fields above last changed.
    pub last_change: Timestamp,
}

/// How packets reach a node's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeMode {
    /// This entry is this node.
    #[serde(rename = "self")]
    Own,
    /// The network between the nodes routes the packets.
    Direct,
    /// The packets go through the VXLAN tunnel.
    Vxlan,
}

impl NodeEntry {
    /// Whether two entries differ in nothing but `last_change`.
    pub fn has_same_content(&self, other: &Self) -> bool {
        let last_change = self.last_change;
        *self
            == Self {
                last_change,
                ..other.clone()
            }
    }
}
