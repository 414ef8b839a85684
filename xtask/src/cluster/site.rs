//! The cluster's names and addresses, and the paths of its files.
//!
//! There are two kinds of places, each a network namespace. `control` has the control plane, the bridge that
//! stands for the network between nodes, and the clients outside the cluster. Each node has a namespace of
//! its own. All of them have the prefix `millrace-`, and there is one cluster on a machine at a time.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::paths;

/// The directory of named network namespaces, also for `ip netns`.
pub const NETNS: &str = "/run/netns";
/// The namespace of the control plane.
pub const CONTROL: &str = "millrace-control";
/// The control plane's addresses on the network between nodes.
pub const CONTROL_V4: &str = "192.168.240.1";
pub const CONTROL_V6: &str = "fd00:240::1";
/// The ranges of the addresses of nodes and control plane.
pub const NODE_RANGES: (&str, &str) = ("192.168.240.0/24", "fd00:240::/64");
/// The API server's TCP port.
pub const API_PORT: u16 = 6443;
/// The ranges of the addresses of services and pods.
pub const SERVICE_RANGES: (&str, &str) = ("10.96.0.0/16", "fd00:10:96::/112");
pub const POD_RANGES: (&str, &str) = ("10.244.0.0/16", "fd00:10:244::/56");
/// The first address of the services is the API server's, the other one is that of DNS.
pub const API_SERVICE: &str = "10.96.0.1";
pub const DNS_SERVICE: &str = "10.96.0.10";

/// An IPv4 and an IPv6 range in the form of flags.
pub fn both(ranges: (&str, &str)) -> String {
    format!("{},{}", ranges.0, ranges.1)
}

/// The names of the files about the cluster.
const SHAPE: &str = "shape.json";
const OWN_PROGRAMS: &str = "programs.json";

/// The proxy for Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proxy {
    Millrace,
    /// In its nftables mode
    #[expect(clippy::enum_variant_names, reason = "the name exists")]
    KubeProxy,
    /// No proxy: install your own
    None,
}

/// The network plugin that gives pods their interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// The bridge plugin on each node, and routes between the nodes
    Bridge,
    /// Millrace, installed by its manifest: network and proxy in one
    Millrace,
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Millrace => "millrace",
            Self::KubeProxy => "kube-proxy",
            Self::None => "none",
        })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bridge => "bridge",
            Self::Millrace => "millrace",
        })
    }
}

/// The options with which a cluster was started.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Shape {
    pub nodes: u8,
    pub proxy: Proxy,
    pub network: Network,
}

impl Shape {
    /// The proxy that runs on each node as a process of its own: none, where the proxy runs in pods of the
    /// cluster.
    pub fn process(self) -> Proxy {
        match self.network {
            Network::Bridge => self.proxy,
            Network::Millrace => Proxy::None,
        }
    }
}

/// A node's name and addresses, which follow from its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node(u8);

impl Node {
    /// More nodes would need another scheme of addresses, and a larger machine.
    pub const MAX: u8 = 9;

    /// The nodes of a cluster: n1, n2 and so on.
    pub fn first(count: u8) -> Vec<Self> {
        (1..=count.min(Self::MAX)).map(Self).collect()
    }

    pub fn name(self) -> String {
        format!("n{}", self.0)
    }

    /// The name of the node's network namespace and of its cgroup.
    pub fn tag(self) -> String {
        Self::tag_of(&self.name())
    }

    /// The tag for the name of a node.
    pub fn tag_of(name: &str) -> String {
        format!("millrace-{name}")
    }

    pub fn v4(self) -> String {
        format!("192.168.240.1{}", self.0)
    }

    pub fn v6(self) -> String {
        format!("fd00:240::1{}", self.0)
    }

    /// One of three zones: specs about topology want three zones with two nodes each, which six nodes have.
    pub fn zone(self) -> String {
        format!("zone-{}", (self.0 - 1) % 3 + 1)
    }

    /// The name of the node's veth peer at the bridge.
    pub fn cable(self) -> String {
        format!("to-{}", self.name())
    }
}

/// The folder of the running cluster's files, which do not outlive the cluster.
pub struct Files {
    root: PathBuf,
}

impl Files {
    pub fn locate() -> Result<Self> {
        Ok(Self {
            root: paths::cache()?.join("cluster"),
        })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file of the control plane, or of all nodes.
    pub fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The folder of a node.
    pub fn node(&self, node: Node) -> PathBuf {
        self.root.join(node.name())
    }

    /// A kubeconfig for one of the users of the cluster (see `credentials`).
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.root.join(format!("{user}.kubeconfig"))
    }

    /// Records the shape of the cluster.
    pub fn write_shape(&self, shape: Shape) -> Result<()> {
        self.write(SHAPE, &shape)
    }

    /// The recorded shape; without one no cluster is running.
    pub fn shape(&self) -> Option<Shape> {
        self.read(SHAPE).ok()
    }

    /// Records the paths of this repository's programs that the cluster runs.
    pub fn write_own_programs(&self, programs: &BTreeMap<String, PathBuf>) -> Result<()> {
        self.write(OWN_PROGRAMS, programs)
    }

    pub fn own_programs(&self) -> Result<BTreeMap<String, PathBuf>> {
        self.read(OWN_PROGRAMS)
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let path = self.file(name);
        let text = serde_json::to_string(value).context("writing a note about the cluster")?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.file(name);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::Node;

    #[test]
    fn addresses_follow_from_the_number() {
        let nodes = Node::first(3);
        assert_eq!(nodes.len(), 3);
        assert_eq!(
            (nodes[2].name(), nodes[2].v4()),
            ("n3".into(), "192.168.240.13".into())
        );
        assert_eq!(nodes[0].v6(), "fd00:240::11");
        assert_eq!(Node::first(6)[5].zone(), nodes[2].zone());
        assert_eq!(Node::first(200).len(), usize::from(Node::MAX));
    }
}
