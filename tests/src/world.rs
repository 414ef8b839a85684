//! A world: the fabric, the nodes, the contents of their directories, and the guard that removes it all.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::agent::{Agent, AgentBuilder};
use crate::client::Client;
use crate::fabric::Fabric;
use crate::failure::OrPanic;
use crate::guard::Guard;
use crate::manifest::{Manifest, service_cidrs};
use crate::names::Tag;
use crate::node::{Node, NodeSpec, PodNetwork, UPLINK};
use crate::place::Place;
use crate::{bpffs, cgroup};

/// The time in which a healthy agent becomes ready.
const READY: Duration = Duration::from_secs(20);

/// The description of a world that is to be made.
#[derive(Default)]
pub struct WorldBuilder {
    nodes: Vec<NodeSpec>,
}

impl WorldBuilder {
    /// Adds a node; the first is `n1`.
    #[must_use]
    pub fn node(mut self, spec: NodeSpec) -> Self {
        self.nodes.push(spec);
        self
    }

    /// Makes the world.
    #[track_caller]
    pub fn build(self) -> World {
        World::create(self.nodes).context("making a world").or_panic()
    }
}

/// Namespaces, links, directories and processes under one tag. All of it is removed when this value is
/// dropped or its process ends.
pub struct World {
    tag: Tag,
    fabric: Fabric,
    nodes: Vec<Node>,
    clients: AtomicU8,
    kept: Arc<AtomicBool>,
    // The last field: dropped after everything else.
    guard: Guard,
}

impl World {
    /// Starts describing a world.
    pub fn builder() -> WorldBuilder {
        WorldBuilder::default()
    }

    /// A world of `count` nodes with routed pods.
    #[track_caller]
    pub fn with_nodes(count: usize) -> Self {
        WorldBuilder {
            nodes: vec![NodeSpec::routed(); count],
        }
        .build()
    }

    fn create(specs: Vec<NodeSpec>) -> Result<Self> {
        raise_descriptor_limit()?;
        let tag = Tag::random();
        // The guard starts first, so that a failure in the steps below leaves nothing behind.
        let guard = Guard::start(&tag)?;
        fs::create_dir(tag.dir()).with_context(|| format!("making {}", tag.dir().display()))?;
        cgroup::create(&tag.cgroup()?)?;
        bpffs::mount_at(&tag.bpffs())?;
        let kept = Arc::new(AtomicBool::new(false));
        let fabric = Fabric::create(&tag)?;
        let mut nodes = Vec::with_capacity(specs.len());
        for (number, spec) in (1..).zip(specs) {
            nodes.push(Node::create(&tag, number, spec, &fabric, &kept)?);
        }
        let world = Self {
            tag,
            fabric,
            nodes,
            clients: AtomicU8::new(0),
            kept,
            guard,
        };
        world.connect_nodes()?;
        world.apply(&service_cidrs());
        world.apply_all(world.nodes.iter().map(Node::object));
        Ok(world)
    }

    fn connect_nodes(&self) -> Result<()> {
        for node in &self.nodes {
            let others = self.nodes.iter().filter(|other| other.number() != node.number());
            // An agent with its own pod network makes the routes itself.
            for other in others.filter(|_| node.network() != PodNetwork::Millrace) {
                node.route_pods_of(other)?;
            }
            node.netns().rtnl().wait_operational(UPLINK)?;
        }
        Ok(())
    }

    /// The nodes, `n1` first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node `n<number>`.
    #[track_caller]
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// The underlay's router, 192.168.50.1 and `fd00:50::1`.
    pub fn fabric(&self) -> &Place {
        self.fabric.place()
    }

    /// Makes a client on the underlay: a neighbour of the nodes, 192.168.50.101 and up.
    #[track_caller]
    pub fn add_client(&self, name: &str) -> Client {
        Client::on_underlay(&self.tag, &self.fabric, name, self.next_client()).or_panic()
    }

    /// Makes a client in a subnet of its own behind the router, 172.31.x.2.
    #[track_caller]
    pub fn add_remote_client(&self, name: &str) -> Client {
        Client::behind_router(&self.tag, &self.fabric, name, self.next_client()).or_panic()
    }

    /// Makes a client at the other end of a link of its own to a node, 172.30.x.2, where the node is
    /// 172.30.x.1.
    #[track_caller]
    pub fn add_client_on_link(&self, node: &Node, link: &'static str, name: &str) -> Client {
        Client::on_link(node, link, name, self.next_client()).or_panic()
    }

    /// The same on a link whose packets have no Ethernet header, as those of `WireGuard`.
    #[track_caller]
    pub fn add_client_on_tun(&self, node: &Node, link: &'static str, name: &str) -> Client {
        Client::on_tun(node, link, name, self.next_client()).or_panic()
    }

    fn next_client(&self) -> u8 {
        self.clients.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Writes an object to every node's source directory.
    #[track_caller]
    pub fn apply(&self, object: &impl Manifest) {
        for node in &self.nodes {
            node.source().apply(object);
        }
    }

    /// Writes several objects, each as [`World::apply`] does.
    #[track_caller]
    pub fn apply_all<M: Manifest>(&self, objects: impl IntoIterator<Item = M>) {
        for object in objects {
            self.apply(&object);
        }
    }

    /// Removes an object from every node's source directory.
    #[track_caller]
    pub fn delete(&self, object: &impl Manifest) {
        for node in &self.nodes {
            node.source().delete(object);
        }
    }

    /// Starts an agent on every node, following the nodes' directories, and
    /// waits until all are ready.
    #[track_caller]
    pub fn start_agents(&self) -> Vec<Agent> {
        self.start_each(AgentBuilder::start)
    }

    /// The same with agents that read a configuration file of this content.
    #[track_caller]
    pub fn start_agents_with(&self, config: &str) -> Vec<Agent> {
        self.start_each(|agent| agent.config(config).start())
    }

    #[track_caller]
    fn start_each(&self, start: impl Fn(AgentBuilder) -> Agent) -> Vec<Agent> {
        let mut agents: Vec<_> = self.nodes.iter().map(|node| start(node.agent())).collect();
        for agent in &mut agents {
            agent.wait_ready(READY);
        }
        agents
    }

    /// A flag that is set once the world is to outlive its owner.
    pub(crate) fn kept(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.kept)
    }

    /// The world's directory.
    pub fn dir(&self) -> PathBuf {
        self.tag.dir()
    }

    /// The world's tag, a part of every name outside of its namespaces.
    pub fn tag(&self) -> String {
        self.tag.to_string()
    }

    /// Leaves the world and its agents up when its owner ends. Servers in the owner's own process end with
    /// it: use [`Place::serve_apart`] for backends. Returns instructions to enter and to remove the world.
    #[track_caller]
    pub fn keep(mut self) -> String {
        self.kept.store(true, Ordering::Relaxed);
        self.guard.keep().or_panic();
        crate::keep::instructions(&self)
    }
}

/// Raises the soft limit of descriptors, usually 1024. Thousands of connections with both ends in one process
/// need more.
fn raise_descriptor_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the descriptor limit")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the descriptor limit")
}
