//! Three worlds that differ only in their proxy: kube-proxy, Millrace, and Millrace without its socket hooks.
//! They have the same nodes, pods, clients and addresses, follow the same API server, and are configured by
//! the same file.

use std::any::Any;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use harness::kubernetes::{ControlPlane, KubeProxy};
use harness::{Agent, Client, Node, NodeSpec, Place, Pod, Server, Source, World};
use serde_json::json;

use crate::case::TARGET;

/// The time in which a proxy programs everything.
const START: Duration = Duration::from_mins(1);

/// Appended to the common configuration.
const HOOKS_OFF: &str =
    "---\napiVersion: millrace.dev/v1alpha1\nkind: AgentConfiguration\nsocketLB: \"off\"\n";

/// The settings lift the rate limit of ICMP errors (`icmp(7)`), since refusals come here by the hundred.
const UNLIMITED_ERRORS: [(&str, &str); 4] = [
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv4/icmp_msgs_per_sec", "1000000"),
    ("net/ipv4/icmp_msgs_burst", "1000000"),
    ("net/ipv6/icmp/ratelimit", "0"),
];

/// The ports of clients, which are neither node ports nor masquerade ports.
const FIRST_PORT: u16 = 33_000;
const END_OF_PORTS: u16 = 61_000;

/// An address that a node has besides those of its Node object.
pub const SECONDARY: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 60, 1), Ipv4Addr::new(192, 168, 60, 2)];

/// The proxy of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// The proxy that Millrace is compared with.
    KubeProxy,
    /// Millrace as it is by default.
    Hooks,
    /// Millrace with `socketLB: off`: packets only.
    Packets,
}

impl Contender {
    pub const ALL: [Self; 3] = [Self::KubeProxy, Self::Hooks, Self::Packets];
}

/// A world with its places and their servers; the proxies start later.
pub struct Topology {
    pub proxy: Contender,
    pods: Vec<Pod>,
    clients: Vec<Client>,
    _servers: Vec<Server>,
    /// The next client port of each place.
    ports: Vec<AtomicU16>,
    world: World,
}

impl Topology {
    /// Pods `client-1`, `client-2`, `a` (on `n1`), `b` and `c` (on `n2`). Outside of the cluster are
    /// `outside` and `stranger`, which ask, and `far`, which answers.
    pub fn build(proxy: Contender) -> Self {
        let world = World::builder()
            .node(NodeSpec::routed().zone("east"))
            .node(NodeSpec::routed().zone("west"))
            .build();
        let pods: Vec<Pod> = [(1, "client-1"), (2, "client-2"), (1, "a"), (2, "b"), (2, "c")]
            .map(|(node, name)| world.node(node).add_pod(name))
            .into();
        let clients: Vec<Client> = ["outside", "stranger", "far"]
            .map(|name| world.add_client(name))
            .into();
        for client in &clients {
            for (node, range) in [
                (1, "10.244.1.0/24"),
                (2, "10.244.2.0/24"),
                (1, "fd00:244:1::/64"),
                (2, "fd00:244:2::/64"),
                (1, "10.96.0.0/16"),
                (1, "fd00:96::/112"),
                (1, "203.0.113.0/24"),
                (1, "2001:db8:7::/64"),
                (2, "198.51.100.0/24"),
                (2, "2001:db8:8::/64"),
            ] {
                client.route_via(range.parse().expect("a range"), world.node(node));
            }
        }
        // Packets to balancers' and external addresses that no node takes end at a host that has none of
        // these addresses.
        for range in ["203.0.113.0/24", "198.51.100.0/24"] {
            let sink = IpAddr::from(clients[2].ip());
            world
                .fabric()
                .add_route(range.parse().expect("a range"), Some(sink), "br0");
        }
        for range in ["2001:db8:7::/64", "2001:db8:8::/64"] {
            let sink = IpAddr::from(clients[2].ip6());
            world
                .fabric()
                .add_route(range.parse().expect("a range"), Some(sink), "br0");
        }
        for (node, address) in world.nodes().iter().zip(SECONDARY) {
            let address = IpAddr::from(address).into();
            node.add_address("eth0", address);
            world.fabric().add_route(address, Some(node.ip().into()), "br0");
        }
        let unlimited = world.nodes().iter().map(|node| -> &Place { node });
        for place in unlimited.chain([world.fabric()]) {
            for (key, value) in UNLIMITED_ERRORS {
                place.sysctl(key, value);
            }
        }
        let backends = pods[2..].iter().map(|pod| -> &Place { pod });
        let hosts = world.nodes().iter().map(|node| -> &Place { node });
        let servers = backends
            .chain(hosts)
            .chain([&clients[2] as &Place])
            .flat_map(|place| [place.serve_tcp(TARGET), place.serve_udp(TARGET)])
            .collect();
        let mut topology = Self {
            proxy,
            pods,
            clients,
            _servers: servers,
            ports: Vec::new(),
            world,
        };
        topology.ports = topology.places().map(|_| AtomicU16::new(FIRST_PORT)).collect();
        topology
    }

    /// Starts the proxies and waits until they serve. Each of them follows the API server in the first
    /// topology. They end when the returned value is dropped.
    pub fn serve(&self, plane: &ControlPlane) -> Vec<Box<dyn Any>> {
        let configuration = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": plane.kubeconfig()},
            "clusterCIDR": "10.244.0.0/16,fd00:244::/32",
            "oomScoreAdj": 0,
            // Other values would change settings of the machine.
            "conntrack": {"maxPerCore": 0, "min": 0},
        });
        let nodes = self.world.nodes().iter();
        if self.proxy == Contender::KubeProxy {
            let started: Vec<_> = nodes
                .map(|node| KubeProxy::start(node, &configuration.to_string()))
                .collect();
            let wait = |mut proxy: KubeProxy| -> Box<dyn Any> {
                proxy.wait_synced(START);
                Box::new(proxy)
            };
            return started.into_iter().map(wait).collect();
        }
        let relay = plane.serve_also(&self.world);
        let hooks = if self.proxy == Contender::Packets {
            HOOKS_OFF
        } else {
            ""
        };
        let start = |node: &Node| {
            let kubeconfig = plane.kubeconfig();
            node.agent()
                .source(Source::Kubernetes { kubeconfig })
                .config(&format!("{configuration}\n{hooks}"))
                .start()
        };
        let started: Vec<_> = nodes.map(start).collect();
        let wait = |mut agent: Agent| -> Box<dyn Any> {
            agent.wait_ready(START);
            Box::new(agent)
        };
        let mut running: Vec<_> = started.into_iter().map(wait).collect();
        running.push(Box::new(relay));
        running
    }

    /// A UDP port that no socket in this place has used so far.
    pub fn fresh_port(&self, place: &str) -> u16 {
        let index = self.places().position(|other| other.name() == place);
        let port = self.ports[index.expect("a place of the topology")].fetch_add(1, Ordering::Relaxed);
        assert!(port < END_OF_PORTS, "{place} has no port left");
        port
    }

    pub fn world(&self) -> &World {
        &self.world
    }

    /// A place by its name.
    pub fn place(&self, name: &str) -> &Place {
        let found = self.places().find(|place| place.name() == name);
        found.unwrap_or_else(|| panic!("there is no {name}"))
    }

    pub fn pod(&self, name: &str) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.name() == name)
    }

    /// Every place that can be a client or a backend.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        let pods = self.pods.iter().map(|pod| -> &Place { pod });
        let nodes = self.world.nodes().iter().map(|node| -> &Place { node });
        pods.chain(nodes)
            .chain(self.clients.iter().map(|client| -> &Place { client }))
    }
}
