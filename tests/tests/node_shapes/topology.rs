//! The surroundings of every shape of a node, and each path of packets there.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use harness::cni::PodSpec;
use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::{Agent, Client, Endpoint, Node, NodeSpec, Place, Pod, Probe, Server, Service, World, wait_for};
use proxy_common::maps::Reason;
use serde_json::{Value, json};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const ANYWHERE: &str = "nodePortAddresses: [0.0.0.0/0, \"::/0\"]\n";
const HOST_PORT: u16 = 18_080;
/// Addresses of the far host that no link has in its subnet.
const BEYOND: [&str; 2] = ["203.0.113.9", "2001:db8:9::9"];
/// The entrances of a service whose endpoint is a pod of the first node. Below, those of a service on the
/// second node.
const LOCAL: Entrances = Entrances {
    cluster_ips: ["10.96.0.10", "fd00:96::10"],
    balancers: ["203.0.113.66", "2001:db8:66::66"],
    node_port: 30_080,
};
const REMOTE: Entrances = Entrances {
    cluster_ips: ["10.96.0.11", "fd00:96::11"],
    balancers: ["203.0.113.67", "2001:db8:66::67"],
    node_port: 30_081,
};
/// The address of a cloud's metadata server, which accepts requests from the machine's own address only.
const METADATA: &str = "169.254.169.254";

struct Entrances {
    cluster_ips: [&'static str; 2],
    balancers: [&'static str; 2],
    node_port: u16,
}

/// The hosts and addresses outside of the cluster.
pub(crate) struct Outside {
    pub(crate) far: Client,
    /// The first node's addresses that the far host sends to.
    pub(crate) near: Vec<IpAddr>,
    /// The far host's addresses that are asked, and that it asks from.
    pub(crate) far_addresses: Vec<IpAddr>,
    /// Addresses that packets of pods to the far host may carry.
    pub(crate) sources: Vec<IpAddr>,
}

impl Outside {
    /// A host on the underlay.
    pub(crate) fn on_underlay(world: &World) -> Self {
        let near = world.node(1).addresses().to_vec();
        let far = world.add_client("far");
        Self {
            far_addresses: far.addresses().to_vec(),
            far,
            sources: near.clone(),
            near,
        }
    }

    /// A host on a link of its own, asked at its address on that link.
    pub(crate) fn on_link(far: Client) -> Self {
        let near: Vec<_> = far.addresses().iter().map(|far| near_end(*far)).collect();
        Self {
            far_addresses: far.addresses().to_vec(),
            far,
            sources: near.clone(),
            near,
        }
    }

    /// The same host, asked at addresses that no link has in its subnet.
    pub(crate) fn beyond(self) -> Self {
        for address in BEYOND {
            self.far.add_address(
                "lo",
                format!("{address}/{}", host_len(ip(address)))
                    .parse()
                    .expect("a prefix"),
            );
        }
        Self {
            far_addresses: BEYOND.map(ip).into(),
            ..self
        }
    }

    /// Serves TCP and UDP on port 53 of the far host, at the metadata server's address too. A UDP server
    /// needs a socket for each address that no link has.
    fn serve(&self) -> Vec<Server> {
        let mut servers: Vec<Server> = self.far.serve(53).into();
        for address in self.far_addresses.iter().copied().chain([ip(METADATA)]) {
            if !self.far.addresses().contains(&address) {
                servers.push(self.far.serve_udp_at(SocketAddr::new(address, 53)));
            }
        }
        servers
    }
}

/// A shape of the first node's network.
pub(crate) struct Shape {
    /// Makes the description of a node from its number.
    pub(crate) spec: fn(usize) -> NodeSpec,
    pub(crate) build: fn(&World) -> Outside,
    /// Whether Millrace makes the pods, and so masquerades their packets.
    pub(crate) is_pod_network: bool,
}

struct Topology {
    world: World,
    outside: Outside,
    local: Pod,
    /// Another pod of the first node.
    beside: Pod,
    remote: Pod,
    is_pod_network: bool,
    _servers: Vec<Server>,
    agents: Vec<Agent>,
}

impl Topology {
    fn build(shape: &Shape, config: &str) -> Self {
        let world = World::builder()
            .node((shape.spec)(1))
            .node((shape.spec)(2))
            .build();
        let outside = (shape.build)(&world);
        let node = world.node(1);
        outside
            .far
            .add_address("lo", format!("{METADATA}/32").parse().expect("a prefix"));
        for (n, balancer) in [LOCAL, REMOTE]
            .iter()
            .flat_map(|of| of.balancers.iter().enumerate())
        {
            let prefix = format!("{balancer}/{}", host_len(ip(balancer)))
                .parse()
                .expect("a prefix");
            outside.far.add_route(prefix, Some(outside.near[n]), "eth0");
        }
        let config = format!("{config}{ANYWHERE}");
        let agents: Vec<_> = world
            .nodes()
            .iter()
            .map(|node| {
                let mut agent = node.agent().find_uplinks().config(&config).start();
                agent.wait_ready(30 * SECOND);
                agent
            })
            .collect();
        let local = if shape.is_pod_network {
            let ports = json!([
                {"hostPort": HOST_PORT, "containerPort": 8080, "protocol": "tcp"},
                {"hostPort": HOST_PORT, "containerPort": 8080, "protocol": "udp"},
            ]);
            node.add_pod_by_plugin(&PodSpec::new("local").asking("portMappings", ports))
        } else {
            node.add_pod("local")
        };
        let beside = node.add_pod("beside");
        let remote = world.node(2).add_pod("remote");
        let mut servers: Vec<Server> = [&local, &beside, &remote]
            .into_iter()
            .flat_map(|pod| pod.serve(8080))
            .collect();
        servers.extend(outside.serve());
        for (name, of, pod) in [("local", &LOCAL, &local), ("remote", &REMOTE, &remote)] {
            let service = Service::new(name)
                .cluster_ip(of.cluster_ips[0])
                .cluster_ip(of.cluster_ips[1])
                .tcp("http", 80, 8080)
                .udp("dns", 80, 8080)
                .node_port("http", of.node_port)
                .node_port("dns", of.node_port)
                .load_balancer_ip(of.balancers[0])
                .load_balancer_ip(of.balancers[1]);
            world.apply(&service);
            world.apply_all(service.slices([Endpoint::of(pod)]));
        }
        let topology = Self {
            world,
            outside,
            local,
            beside,
            remote,
            is_pod_network: shape.is_pod_network,
            _servers: servers,
            agents,
        };
        for node in topology.world.nodes() {
            for vip in [LOCAL.cluster_ips, REMOTE.cluster_ips].concat() {
                let to = SocketAddr::new(ip(vip), 80);
                wait_for(&format!("the service at {to}"), 10 * SECOND, || {
                    let reply = node.ask_within(Probe::Tcp, to, SECOND / 2);
                    reply.map(|_| ()).map_err(|error| error.to_string())
                });
            }
        }
        topology
    }

    /// Tries each path; returns those that failed.
    fn failures(&self) -> Vec<String> {
        let mut failed = Failed::default();
        for n in [0, 1] {
            self.ask_pods(n, &mut failed);
            for (of, entrances) in [("local", &LOCAL), ("remote", &REMOTE)] {
                self.ask_service(n, of, entrances, &mut failed);
            }
            if self.is_pod_network {
                let to = SocketAddr::new(self.outside.far_addresses[n], 53);
                failed.ask("pod → outside", &self.local, to, &self.outside.sources);
            }
        }
        if self.is_pod_network {
            let to = SocketAddr::new(ip(METADATA), 53);
            failed.ask("pod → metadata", &self.local, to, &self.outside.sources);
        }
        failed.0
    }

    /// Tries the paths between pods in the family with this number.
    fn ask_pods(&self, n: usize, failed: &mut Failed) {
        for (what, from, to) in [
            ("pod → other pod of its node", &self.local, &self.beside),
            ("other pod of its node → pod", &self.beside, &self.local),
            ("pod → pod of another node", &self.local, &self.remote),
            ("pod of another node → pod", &self.remote, &self.local),
        ] {
            let source = self.is_pod_network.then(|| from.addresses()[n]);
            let to = SocketAddr::new(to.addresses()[n], 8080);
            failed.ask(what, from, to, source.as_slice());
        }
    }

    /// Tries the paths to a service in the family with this number.
    fn ask_service(&self, n: usize, of: &str, entrances: &Entrances, failed: &mut Failed) {
        let cluster_ip = SocketAddr::new(ip(entrances.cluster_ips[n]), 80);
        let clients = [
            ("pod", &self.local as &Place),
            ("other pod of its node", &self.beside),
            ("node", self.world.node(1)),
            ("pod of another node", &self.remote),
        ];
        for (who, client) in clients {
            failed.ask(&format!("{who} → {of} Service"), client, cluster_ip, &[]);
        }
        let near = self.outside.near[n];
        let mut asked = vec![
            ("NodePort", SocketAddr::new(near, entrances.node_port)),
            ("LoadBalancer", SocketAddr::new(ip(entrances.balancers[n]), 80)),
        ];
        if self.is_pod_network && of == "local" {
            asked.push(("host port", SocketAddr::new(near, HOST_PORT)));
        }
        for (entrance, to) in asked {
            for probe in Probe::ALL {
                let from = SocketAddr::new(self.outside.far_addresses[n], 0);
                let reply = self.outside.far.ask_from(probe, from, to, 2 * SECOND);
                let found = reply.map(|_| ()).map_err(|error| error.to_string());
                failed.take(&format!("outside → {entrance} of {of}"), to, probe, found);
            }
        }
    }
}

/// The paths that failed, each with its reason.
#[derive(Default)]
struct Failed(Vec<String>);

impl Failed {
    /// Asks by each kind of probe. The server must have seen one of the sources, if there are any.
    fn ask(&mut self, what: &str, from: &Place, to: SocketAddr, sources: &[IpAddr]) {
        for probe in Probe::ALL {
            self.take(what, to, probe, ask(from, probe, to, sources));
        }
    }

    /// Keeps the reason of a failure.
    fn take(&mut self, what: &str, to: SocketAddr, probe: Probe, found: Result<(), String>) {
        let failed = found.err().map(|why| format!("{what} ({to}, {probe:?}): {why}"));
        self.0.extend(failed);
    }
}

/// Asks, and checks the source that the server saw if `sources` has any.
fn ask(from: &Place, probe: Probe, to: SocketAddr, sources: &[IpAddr]) -> Result<(), String> {
    let reply = from
        .ask_within(probe, to, 2 * SECOND)
        .map_err(|error| error.to_string())?;
    let source = reply.peer.ip().to_canonical();
    if sources.is_empty() || sources.contains(&source) {
        Ok(())
    } else {
        Err(format!("the source was {source}"))
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) const fn host_len(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// The node's end of a link whose far end ends in 2.
fn near_end(far: IpAddr) -> IpAddr {
    match far {
        IpAddr::V4(far) => IpAddr::from((u32::from(far) - 1).to_be_bytes()),
        IpAddr::V6(far) => IpAddr::from((u128::from(far) - 1).to_be_bytes()),
    }
}

/// Runs `ip` in a node, once for each line.
pub(crate) fn run_ip(node: &Node, lines: &[&str]) {
    for line in lines {
        node.run_ip(line);
    }
}

#[track_caller]
pub(crate) fn assert_all_paths(shape: &Shape) {
    assert_all_paths_but(shape, &[]);
}

/// The same on a node whose status has exactly these errors: a code and an object each.
#[track_caller]
pub(crate) fn assert_all_paths_but(shape: &Shape, named: &[(&str, &str)]) {
    for (name, config) in [("hooks on", DEFAULTS), ("hooks off", HOOKS_OFF)] {
        let topology = Topology::build(shape, config);
        let failed = topology.failures();
        let status = topology.agents[0].cli(&["status"]);
        let errors = &status["errors"];
        if !failed.is_empty() {
            let counted = topology.world.node(1).counters();
            let counted: Vec<_> = Reason::ALL
                .iter()
                .zip(counted)
                .filter(|(_, packets)| *packets > 0)
                .collect();
            panic!("{name}:\n{}\n{errors}\n{counted:?}", failed.join("\n"));
        }
        let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
        let reported: Vec<_> = errors
            .as_array()
            .expect("a list")
            .iter()
            .map(|error| (text(&error["code"]), text(&error["object"])))
            .collect();
        let named: Vec<_> = named
            .iter()
            .map(|(code, object)| ((*code).to_owned(), (*object).to_owned()))
            .collect();
        assert_eq!(reported, named, "{name}: {errors}");
    }
}
