//! A world to compare traces with real packets, and the contents of a trace.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use harness::{Agent, Client, Endpoint, Node, NodeSpec, Place, Pod, Probe, Server, Service, World};
use serde_json::Value;

pub const SECOND: Duration = Duration::from_secs(1);
/// Without a packet for this time, a packet counts as dropped.
pub const SILENCE: Duration = Duration::from_millis(250);

/// Two nodes with an agent on the first one, and a client of each kind. The service `web` has three pods,
/// `empty` has no endpoints, and `own` has the client pod. A server on the second node belongs to no service.
pub struct Topology {
    pub world: World,
    pub client: Pod,
    outside: Client,
    pods: Vec<Pod>,
    _servers: Vec<Server>,
    _agent: Agent,
}

impl Topology {
    pub fn build(config: &str) -> Self {
        let world = World::builder()
            .node(NodeSpec::routed().strict_rp_filter())
            .node(NodeSpec::routed())
            .build();
        let (near, far) = (world.node(1), world.node(2));
        let client = near.add_pod("client");
        let pods = vec![near.add_pod("a"), far.add_pod("b"), far.add_pod("c")];
        let mut servers = Vec::from(client.serve(8080));
        servers.extend(far.serve(9000));
        for pod in &pods {
            servers.extend(pod.serve(8080));
        }
        let service = |name: &str, number: u8| {
            Service::new(name)
                .cluster_ip(&format!("10.96.0.{number}"))
                .cluster_ip(&format!("fd00:96::{number}"))
                .tcp("http", 80, 8080)
                .udp("dns", 80, 8080)
        };
        let (web, empty, own) = (service("web", 10), service("empty", 20), service("own", 30));
        world.apply_all(web.slices(pods.iter().map(Endpoint::of)));
        world.apply_all(empty.slices([]));
        world.apply_all(own.slices([Endpoint::of(&client)]));
        world.apply_all([web, empty, own]);
        let outside = world.add_remote_client("outside");
        outside.route_via("10.96.0.0/16".parse().expect("a range"), near);
        outside.route_via("fd00:96::/112".parse().expect("a range"), near);
        let mut agent = near.agent().config(config).start();
        agent.wait_ready(10 * SECOND);
        Self {
            client,
            outside,
            pods,
            _servers: servers,
            _agent: agent,
            world,
        }
    }

    pub fn node(&self) -> &Node {
        self.world.node(1)
    }

    /// All senders, each with the name of the place where its packets enter the node.
    pub fn senders(&self) -> [(&Place, &'static str); 3] {
        [
            (&self.client, "pod"),
            (self.node(), "node"),
            (&self.outside, "uplink"),
        ]
    }

    /// The name of the backend at an address, as servers send it.
    pub fn name_of(&self, backend: SocketAddr) -> &str {
        let places = self.pods.iter().chain([&self.client]);
        let found = places
            .into_iter()
            .find(|pod| pod.addresses().contains(&backend.ip()));
        found.map_or("none", |pod| pod.name())
    }

    pub fn trace(&self, from: IpAddr, to: SocketAddr, probe: Probe, more: &[&str]) -> Trace {
        let (from, to) = (from.to_string(), to.to_string());
        let proto = if probe == Probe::Tcp { "tcp" } else { "udp" };
        let verb = ["trace", "--from", &from, "--to", &to, "--proto", proto];
        let verb = [&verb[..], more].concat();
        let reply = self.node().cli(&verb).expect("a trace");
        Trace::read(&reply).unwrap_or_else(|| panic!("{verb:?} returns {reply}"))
    }
}

/// The output of `millrace trace -o json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    pub verdict: String,
    pub service: Option<String>,
    pub kind: Option<String>,
    pub backends: Vec<Backend>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    pub address: SocketAddr,
    pub node: Option<String>,
    pub samples: u64,
    pub masquerade: bool,
}

impl Trace {
    /// Parses a trace; `None` if a documented key is missing.
    fn read(reply: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
        text(&reply["reason"]).filter(|reason| !reason.is_empty())?;
        reply["steps"].as_array().filter(|steps| !steps.is_empty())?;
        let read = |backend: &Value| {
            Some(Backend {
                address: backend["address"].as_str()?.parse().ok()?,
                node: text(&backend["node"]),
                samples: backend["samples"].as_u64()?,
                masquerade: backend["masquerade"].as_bool()?,
            })
        };
        Some(Self {
            verdict: text(&reply["verdict"])?,
            service: text(reply.get("service")?),
            kind: text(reply.get("kind")?),
            backends: reply["backends"]
                .as_array()?
                .iter()
                .map(read)
                .collect::<Option<_>>()?,
        })
    }
}

/// The address that a place uses to send to `like`.
pub fn own_address(place: &Place, like: SocketAddr) -> IpAddr {
    if like.is_ipv4() {
        place.ip().into()
    } else {
        place.ip6().into()
    }
}
