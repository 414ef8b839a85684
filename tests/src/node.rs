//! A node: a namespace on the underlay that forwards packets of its pods. Pods are attached in one of the two
//! designs of CNI plugins: the programs on a pod's traffic meet a different device in each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use anyhow::{Context, Result};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::{Value, json};

use crate::agent::AgentBuilder;
use crate::bpffs;
use crate::cni::PodSpec;
use crate::fabric::Fabric;
use crate::failure::OrPanic;
use crate::manifest::Family;
use crate::names::{NETNS_DIR, Tag};
use crate::netns::Netns;
use crate::place::Place;
use crate::pod::{END_HOST, Pod};
use crate::removal;
use crate::source_dir::SourceDir;

/// The link of a node to the underlay, the value of the agent's option `--uplink`.
pub(crate) const UPLINK: &str = "eth0";

/// The bridge of a node whose pods are bridged.
pub(crate) const BRIDGE: &str = "cni0";

/// How pods are attached to a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodNetwork {
    /// A veth pair per pod without an address on the node's side. The pod's gateways are 169.254.1.1 and
    /// `fe80::1`, and its neighbour entries are permanent.
    #[default]
    Routed,
    /// A Linux bridge `cni0` with the gateway address, as the CNI plugin `bridge` makes it.
    Bridged,
    /// The agent's own pod network: the agent describes the network and routes to other nodes, and
    /// `millrace-cni` makes the pods. Pods work only after an agent has run.
    Millrace,
}

/// The description of a node that is to be made.
#[derive(Clone, Debug, Default)]
pub struct NodeSpec {
    network: PodNetwork,
    strict_rp_filter: bool,
    zone: Option<String>,
    behind_router: bool,
    only: Option<Family>,
}

impl NodeSpec {
    /// A node with routed pods.
    pub fn routed() -> Self {
        Self::default()
    }

    /// A node with bridged pods.
    pub fn bridged() -> Self {
        Self {
            network: PodNetwork::Bridged,
            ..Self::default()
        }
    }

    /// A node whose pod network is Millrace's own. See [`PodNetwork::Millrace`].
    pub fn millrace() -> Self {
        Self {
            network: PodNetwork::Millrace,
            ..Self::default()
        }
    }

    /// The node is in a subnet of its own, with a router between it and the underlay.
    #[must_use]
    pub fn behind_router(self) -> Self {
        Self {
            behind_router: true,
            ..self
        }
    }

    /// The Node object has addresses and pod ranges of this family only.
    #[must_use]
    pub fn only(self, family: Family) -> Self {
        Self {
            only: Some(family),
            ..self
        }
    }

    /// The kernel drops packets that come in by another interface than their replies would leave by (RFC
    /// 3704).
    #[must_use]
    pub fn strict_rp_filter(self) -> Self {
        Self {
            strict_rp_filter: true,
            ..self
        }
    }

    /// The zone in the Node object.
    #[must_use]
    pub fn zone(self, zone: &str) -> Self {
        Self {
            zone: Some(zone.to_owned()),
            ..self
        }
    }
}

/// A node of a world; clones lead to the same node.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    place: Place,
    number: u8,
    spec: NodeSpec,
    tag: Tag,
    dir: PathBuf,
    bpf_root: PathBuf,
    source: SourceDir,
    last_pod: AtomicU8,
    kept: Arc<AtomicBool>,
}

impl Node {
    pub(crate) fn create(
        tag: &Tag,
        number: u8,
        spec: NodeSpec,
        fabric: &Fabric,
        kept: &Arc<AtomicBool>,
    ) -> Result<Self> {
        let name = format!("n{number}");
        let rp_filter = if spec.strict_rp_filter { "1" } else { "0" };
        let forwarding = if spec.network == PodNetwork::Millrace {
            "0"
        } else {
            "1"
        };
        let netns = Netns::create(
            &tag.netns(&name),
            &[
                // An agent with its own pod network sets forwarding itself.
                ("net/ipv4/ip_forward", forwarding),
                ("net/ipv6/conf/all/forwarding", forwarding),
                ("net/ipv6/conf/all/accept_dad", "0"),
                ("net/ipv6/conf/default/accept_dad", "0"),
                // The kernel applies the stricter of "all" and the interface's own.
                ("net/ipv4/conf/all/rp_filter", rp_filter),
                ("net/ipv4/conf/default/rp_filter", "0"),
                // The node would send redirects to clients on the underlay that use it as a router.
                ("net/ipv4/conf/all/send_redirects", "0"),
                ("net/ipv4/conf/default/send_redirects", "0"),
            ],
        )?;
        let addresses = if spec.behind_router {
            fabric.attach_behind_router(&name, &netns, 200 + number)?
        } else {
            fabric.attach(&name, &netns, 10 + number)?
        };
        let dir = tag.dir().join(&name);
        for child in ["run", "state"] {
            std::fs::create_dir_all(dir.join(child)).with_context(|| format!("making {}", dir.display()))?;
        }
        let place = Place::start(&name, netns, tag.cgroup()?.join(&name), addresses)?;
        let source = SourceDir::create(dir.join("source"))?;
        let bpf_root = bpffs::node_root(&tag.bpffs(), &name)?;
        let (tag, last_pod, kept) = (tag.clone(), AtomicU8::new(1), Arc::clone(kept));
        let node = Self(Arc::new(Inner {
            place,
            number,
            spec,
            tag,
            dir,
            bpf_root,
            source,
            last_pod,
            kept,
        }));
        node.prepare_pod_network()?;
        Ok(node)
    }

    fn prepare_pod_network(&self) -> Result<()> {
        let netns = self.netns();
        match self.0.spec.network {
            // The host sides of pods' veth pairs get no address at all, not even a link-local one.
            PodNetwork::Routed => netns.sysctl("net/ipv6/conf/default/addr_gen_mode", "1"),
            PodNetwork::Millrace => Ok(()),
            PodNetwork::Bridged => {
                netns
                    .rtnl()
                    .add_bridge(BRIDGE, [2, 0xcb, self.0.number, 0, 0, 1])?;
                for (gateway, cidr) in self.gateways().into_iter().zip(self.pod_cidrs()) {
                    netns.rtnl().add_address(BRIDGE, gateway, cidr.prefix_len())?;
                }
                Ok(())
            }
        }
    }

    /// Makes a pod on this node; it lives until the world ends or [`Pod::delete`].
    #[track_caller]
    pub fn add_pod(&self, name: &str) -> Pod {
        if self.network() == PodNetwork::Millrace {
            return self.add_pod_by_plugin(&PodSpec::new(name));
        }
        let number = self.0.last_pod.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(number < u8::MAX, "{} has no pod address left", self.name());
        Pod::create(self, name, number).or_panic()
    }

    /// Makes a pod by `millrace-cni`, as a runtime does. An agent must have described the network before.
    #[track_caller]
    pub fn add_pod_by_plugin(&self, spec: &PodSpec) -> Pod {
        Pod::create_by_plugin(self, spec).or_panic()
    }

    /// Makes a network namespace for calls of the plugin, and returns its file.
    #[track_caller]
    pub fn add_namespace(&self, name: &str) -> PathBuf {
        let netns = Netns::create(&self.tag().netns(name), END_HOST).or_panic();
        netns.path().to_owned()
    }

    /// Removes such a namespace.
    #[track_caller]
    pub fn remove_namespace(&self, name: &str) {
        removal::remove_namespace(&Path::new(NETNS_DIR).join(self.tag().netns(name))).or_panic();
    }

    /// The pod ranges, IPv4 first.
    pub fn pod_cidrs(&self) -> [IpNet; 2] {
        let n = self.0.number;
        [
            Ipv4Net::new_assert(Ipv4Addr::new(10, 244, n, 0), 24).into(),
            Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x244, n.into(), 0, 0, 0, 0, 0), 64).into(),
        ]
    }

    /// The address with this number in each pod range.
    pub(crate) fn pod_addresses(&self, number: u8) -> Vec<IpAddr> {
        let n = self.0.number;
        vec![
            Ipv4Addr::new(10, 244, n, number).into(),
            Ipv6Addr::new(0xfd00, 0x244, n.into(), 0, 0, 0, 0, number.into()).into(),
        ]
    }

    /// The pods' gateways, for a network that has them on the node.
    pub(crate) fn gateways(&self) -> Vec<IpAddr> {
        match self.0.spec.network {
            PodNetwork::Routed | PodNetwork::Millrace => {
                vec![
                    Ipv4Addr::new(169, 254, 1, 1).into(),
                    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
                ]
            }
            PodNetwork::Bridged => self.pod_addresses(1),
        }
    }

    pub(crate) fn network(&self) -> PodNetwork {
        self.0.spec.network
    }

    pub(crate) fn number(&self) -> u8 {
        self.0.number
    }

    pub(crate) fn tag(&self) -> &Tag {
        &self.0.tag
    }

    /// Whether the world outlives its owner.
    pub(crate) fn is_kept(&self) -> bool {
        self.0.kept.load(Ordering::Relaxed)
    }

    /// A flag that is set once the world is to outlive its owner.
    pub(crate) fn kept(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0.kept)
    }

    /// Adds routes to the pods of `other`, by that node.
    pub(crate) fn route_pods_of(&self, other: &Node) -> Result<()> {
        for (cidr, via) in other.pod_cidrs().into_iter().zip(other.addresses()) {
            self.netns().rtnl().add_route(cidr, Some(*via), UPLINK)?;
        }
        Ok(())
    }

    /// The address of this node in the family of `other`.
    pub fn address_like(&self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() {
            self.ip().into()
        } else {
            self.ip6().into()
        }
    }

    /// The builder of an agent for this node.
    pub fn agent(&self) -> AgentBuilder {
        AgentBuilder::new(self.clone())
    }

    /// Runs a verb of the command line against this node's agent and parses its output (`-o json` is added).
    /// The exit status does not matter.
    pub fn cli(&self, verb: &[&str]) -> Result<Value> {
        crate::agent::cli(self, verb)
    }

    /// Runs a verb of the command line as [`Node::cli`] does, and returns the exit status and messages too.
    pub fn run(&self, verb: &[&str]) -> Result<Output> {
        crate::agent::run(self, verb)
    }

    /// The directory that the node's agent reads manifests from.
    pub fn source(&self) -> &SourceDir {
        &self.0.source
    }

    /// The node's own directory: `run/`, `state/`, `source/`, `agent.log`.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// The directory that the node's agent pins under.
    pub fn bpf_root(&self) -> &Path {
        &self.0.bpf_root
    }

    /// The Node object, as the world wrote it to every node's source.
    pub fn object(&self) -> Value {
        let is_in = |ip: &IpAddr| match self.0.spec.only {
            None => true,
            Some(Family::V4) => ip.is_ipv4(),
            Some(Family::V6) => ip.is_ipv6(),
        };
        let addresses: Vec<_> = self
            .addresses()
            .iter()
            .filter(|ip| is_in(ip))
            .map(|ip| json!({"type": "InternalIP", "address": ip}))
            .collect();
        let cidrs: Vec<_> = self
            .pod_cidrs()
            .into_iter()
            .filter(|cidr| is_in(&cidr.addr()))
            .collect();
        let mut labels = json!({"kubernetes.io/hostname": self.name()});
        if let Some(zone) = &self.0.spec.zone {
            labels["topology.kubernetes.io/zone"] = json!(zone);
        }
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name(), "labels": labels},
            "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
            "status": {"addresses": addresses},
        })
    }
}

impl Deref for Node {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.0.place
    }
}
