//! Two nodes with several links each, pods on both, and clients on the links.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use harness::cni::PodSpec;
use harness::forge::packet;
use harness::{
    Agent, Client, Endpoint, Node, NodeSpec, Place, Pod, Probe, Server, Service, World, eventually, wait_for,
};
use serde_json::json;

pub const SECOND: Duration = Duration::from_secs(1);
/// The time limit until the status names a change.
pub const NAMED: Duration = Duration::from_secs(3);
/// The time limit until a new service is served.
pub const SOON: Duration = Duration::from_secs(5);
pub const ANYWHERE: &str = "nodePortAddresses: [0.0.0.0/0, \"::/0\"]\n";
pub const CLUSTER_IP: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
pub const REMOTE_CLUSTER_IP: [&str; 2] = ["10.96.0.11", "fd00:96::11"];
pub const BEYOND_CLUSTER_IP: [&str; 2] = ["10.96.0.12", "fd00:96::12"];
pub const BALANCER: [&str; 2] = ["203.0.113.66", "2001:db8:66::66"];
pub const NODE_PORT: u16 = 30_080;
pub const REMOTE_NODE_PORT: u16 = 30_081;
pub const HOST_PORT: u16 = 18_080;
/// Addresses of the far host that are in no link's subnet.
pub const BEYOND: [&str; 2] = ["203.0.113.9", "2001:db8:9::9"];

/// The function that makes the far host and its link.
type AddClient = fn(&World, &Node, &'static str, &str) -> Client;

/// Two nodes. The first has a link to a far host, which knows this link only.
pub struct Topology {
    pub world: World,
    pub far: Client,
    pub outside: Client,
    pub local: Pod,
    pub remote: Pod,
    _servers: Vec<Server>,
    pub agents: Vec<Agent>,
}

impl Topology {
    /// Runs `ip` with each of `routes` in the first node, before its agent starts.
    pub fn build(config: &str, routes: &[&str]) -> Self {
        Self::build_on(World::add_client_on_link, config, routes)
    }

    pub fn build_on(add_client: AddClient, config: &str, routes: &[&str]) -> Self {
        let world = World::builder()
            .node(NodeSpec::millrace())
            .node(NodeSpec::millrace())
            .build();
        let node = world.node(1);
        let far = add_client(&world, node, "wan0", "far");
        let outside = world.add_client("outside");
        for address in BEYOND {
            let length = if address.contains(':') { 128 } else { 32 };
            far.add_address("lo", format!("{address}/{length}").parse().expect("a prefix"));
        }
        for line in routes {
            node.run_ip(line);
        }
        for (balancer, via) in BALANCER.iter().zip(["172.30.1.1", "fd00:30:1::1"]) {
            let length = if balancer.contains(':') { 128 } else { 32 };
            let prefix = format!("{balancer}/{length}").parse().expect("a prefix");
            far.add_route(prefix, Some(ip(via)), "eth0");
        }
        let config = format!("{config}{ANYWHERE}");
        let agents: Vec<_> = world
            .nodes()
            .iter()
            .map(|node| {
                let mut agent = node.agent().find_uplinks().config(&config).start();
                agent.wait_ready(20 * SECOND);
                agent
            })
            .collect();
        let ports = json!([{"hostPort": HOST_PORT, "containerPort": 8080, "protocol": "tcp"}]);
        let local = node.add_pod_by_plugin(&PodSpec::new("local").asking("portMappings", ports));
        let remote = world.node(2).add_pod("remote");
        let mut servers: Vec<Server> = Vec::new();
        for pod in [&local, &remote] {
            servers.extend(pod.serve(8080));
        }
        servers.extend(far.serve(53));
        servers.extend(far.serve(8080));
        let near = service("near", CLUSTER_IP, NODE_PORT)
            .load_balancer_ip(BALANCER[0])
            .load_balancer_ip(BALANCER[1]);
        world.apply(&near);
        world.apply_all(near.slices([Endpoint::of(&local)]));
        let elsewhere = service("elsewhere", REMOTE_CLUSTER_IP, REMOTE_NODE_PORT);
        world.apply(&elsewhere);
        world.apply_all(elsewhere.slices([Endpoint::of(&remote)]));
        let topology = Self {
            world,
            far,
            outside,
            local,
            remote,
            _servers: servers,
            agents,
        };
        for vip in [CLUSTER_IP, REMOTE_CLUSTER_IP].concat() {
            let to = SocketAddr::new(ip(vip), 80);
            eventually("the service", SOON, || topology.local.ask(Probe::Tcp, to).is_ok());
        }
        topology
    }

    /// The first node's addresses on the link to the far host.
    pub fn on_link(&self) -> [IpAddr; 2] {
        self.far
            .addresses()
            .iter()
            .map(|far| near_end(*far))
            .collect::<Vec<_>>()
            .try_into()
            .expect("two")
    }

    /// Asserts that the far host reaches services and gets replies.
    #[track_caller]
    pub fn assert_served(&self) {
        let mut entrances: Vec<SocketAddr> = BALANCER.map(|address| SocketAddr::new(ip(address), 80)).into();
        for node in self.on_link() {
            for port in [NODE_PORT, REMOTE_NODE_PORT, HOST_PORT] {
                entrances.push(SocketAddr::new(node, port));
            }
        }
        for to in entrances {
            assert_asked(&self.far, Probe::Tcp, to, None);
            if to.port() != HOST_PORT {
                assert_asked(&self.far, Probe::UdpConnected, to, None);
            }
        }
        // The other uplink serves as before.
        for node in self.world.node(1).addresses() {
            for port in [NODE_PORT, REMOTE_NODE_PORT, HOST_PORT] {
                assert_asked(&self.outside, Probe::Tcp, SocketAddr::new(*node, port), None);
            }
        }
    }

    /// Waits until status reports this for an interface, or has no error with this code. Returns the message,
    /// which is empty without an error.
    #[track_caller]
    pub fn assert_reported(&self, code: &str, interface: &str, why: Option<&str>) -> String {
        let object = json!(format!("interface {interface}"));
        wait_for(&format!("{interface} to be {why:?}"), NAMED, || {
            let errors = self.agents[0].cli(&["status"])["errors"].clone();
            let mut listed = errors.as_array().expect("a list").iter();
            let reported = listed.find(|error| error["object"] == object && error["code"] == code);
            let message = reported.and_then(|error| error["message"].as_str());
            let is_so = match (message, why) {
                (Some(message), Some(why)) => message.contains(why),
                (message, why) => message.is_none() && why.is_none(),
            };
            let message = message.unwrap_or_default().to_owned();
            if is_so { Ok(message) } else { Err(errors) }
        })
    }

    /// Asserts that a message has this command of `ip` and no other, and runs the command on the first node.
    #[track_caller]
    pub fn mend(&self, message: &str, command: &str) {
        let commands: Vec<_> = message.split('`').skip(1).step_by(2).collect();
        assert_eq!(commands, [command], "{message}");
        let words = command.strip_prefix("ip ").expect("a command of ip");
        self.world.node(1).run_ip(words);
    }

    /// Asserts that pods' packets to the far host carry the node's address of that link.
    #[track_caller]
    pub fn assert_masqueraded(&self, to: &[IpAddr]) {
        for address in to {
            let source = self.on_link()[usize::from(address.is_ipv6())];
            for probe in [Probe::Tcp, Probe::UdpConnected] {
                // A UDP server replies from its address on the link, and not from an address behind it.
                if matches!(probe, Probe::Tcp) || self.far.addresses().contains(address) {
                    assert_asked(&self.local, probe, SocketAddr::new(*address, 53), Some(source));
                }
            }
        }
    }

    /// Asserts that a datagram of the far host with this source does not arrive at the pod, and that one with
    /// its own source does.
    #[track_caller]
    pub fn assert_is_no_source(&self, source: IpAddr) {
        let n = usize::from(source.is_ipv6());
        let to = SocketAddr::new(self.local.addresses()[n], 9);
        let capture = self.local.packet_socket("eth0").expect("a capture");
        let forge = self.far.forge("eth0", self.world.node(1).mac("wan0"));
        let mark = |kind: &str| format!("{kind} {:016x}", fastrand::u64(..)).into_bytes();
        let (forged, honest) = (mark("forged"), mark("honest"));
        forge.send(&packet::udp(SocketAddr::new(source, 4000), to, &forged));
        let mut came = Vec::new();
        let own = SocketAddr::new(self.far.addresses()[n], 4000);
        let has_come = (0..20).any(|_| {
            forge.send(&packet::udp(own, to, &honest));
            let found = capture.receive_until(&honest, SECOND / 4, &mut came);
            found.expect("to read")
        });
        assert!(
            has_come,
            "the honest datagram did not arrive, so nothing is proven"
        );
        assert!(
            !came.iter().any(|frame| frame.carries(&forged)),
            "{source} arrived"
        );
    }

    /// Asserts that a datagram of the far host with the source of another pod of this node does not arrive at
    /// the pod.
    #[track_caller]
    pub fn assert_takes_in_no_pods_source(&self) {
        for (n, forged) in ["10.244.1.200", "fd00:244:1::200"].into_iter().enumerate() {
            let to = SocketAddr::new(self.local.addresses()[n], 9);
            let length = if to.is_ipv4() { 32 } else { 128 };
            self.far
                .add_address("lo", format!("{forged}/{length}").parse().expect("a prefix"));
            let capture = self.local.packet_socket("eth0").expect("a capture");
            let send = |source: IpAddr, payload: &[u8]| {
                let socket = self.far.udp_bind(SocketAddr::new(source, 0)).expect("a socket");
                socket.send_to(payload, to).expect("to send");
            };
            self.far.run_ip(&format!(
                "route replace {} via {} dev eth0",
                to.ip(),
                near_end(self.far.addresses()[n])
            ));
            send(ip(forged), b"a forged datagram");
            send(self.far.addresses()[n], b"an honest datagram");
            let mut came = Vec::new();
            let has_come = capture.receive_until(b"an honest datagram", SECOND, &mut came);
            assert!(has_come.expect("to read"), "nothing is proven");
            assert!(
                !came.iter().any(|frame| frame.carries(b"a forged datagram")),
                "{forged}"
            );
        }
    }

    /// Asserts that paths without the far host's link work.
    #[track_caller]
    pub fn assert_others_work(&self) {
        for vip in [CLUSTER_IP, REMOTE_CLUSTER_IP].concat() {
            let to = SocketAddr::new(ip(vip), 80);
            assert_asked(&self.local, Probe::Tcp, to, None);
            assert_asked(self.world.node(1), Probe::Tcp, to, None);
            assert_asked(self.world.node(2), Probe::Tcp, to, None);
        }
        for address in self.remote.addresses() {
            assert_asked(&self.local, Probe::Tcp, SocketAddr::new(*address, 8080), None);
        }
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The node's end of a link whose far end ends in 2.
pub fn near_end(far: IpAddr) -> IpAddr {
    match far {
        IpAddr::V4(far) => IpAddr::from((u32::from(far) - 1).to_be_bytes()),
        IpAddr::V6(far) => IpAddr::from((u128::from(far) - 1).to_be_bytes()),
    }
}

pub fn service(name: &str, cluster_ips: [&str; 2], node_port: u16) -> Service {
    Service::new(name)
        .cluster_ip(cluster_ips[0])
        .cluster_ip(cluster_ips[1])
        .tcp("http", 80, 8080)
        .udp("dns", 80, 8080)
        .node_port("http", node_port)
        .node_port("dns", node_port)
}

/// Asserts that there is a reply, and that the server saw this source, if one is given.
#[track_caller]
pub fn assert_asked(from: &Place, probe: Probe, to: SocketAddr, source: Option<IpAddr>) {
    let reply = from.ask(probe, to);
    let reply = reply.unwrap_or_else(|error| panic!("{} to {to} by {probe:?}: {error}", from.name()));
    if let Some(source) = source {
        assert_eq!(
            reply.peer.ip().to_canonical(),
            source,
            "{} to {to} by {probe:?}",
            from.name()
        );
    }
}
