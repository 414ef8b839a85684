//! A world for attackers: two nodes with pods of the plugin, a host on their link, and services of each kind.
//! Functions check which packets arrived.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use harness::config::DEFAULTS;
use harness::forge::packet;
use harness::{
    Agent, Client, Endpoint, Forge, Frame, Node, NodeSpec, PacketSocket, Place, Pod, Probe, Server, Service,
    World, eventually, wait_for,
};
use proxy_common::Ip;
use proxy_common::maps::Reason;
use serde_json::json;

pub const SECOND: Duration = Duration::from_secs(1);
/// The time within which an honest packet arrives.
pub const SOON: Duration = Duration::from_secs(5);

/// The addresses of `web`, whose policy is Cluster.
pub const CLUSTER_IP: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
pub const BALANCER: [&str; 2] = ["203.0.113.7", "2001:db8:7::7"];
pub const NODE_PORT: u16 = 30_080;
/// The addresses of `near`, whose policy is Local.
pub const LOCAL_CLUSTER_IP: [&str; 2] = ["10.96.0.11", "fd00:96::11"];
pub const LOCAL_BALANCER: [&str; 2] = ["203.0.113.8", "2001:db8:7::8"];
pub const LOCAL_NODE_PORT: u16 = 30_081;

pub struct Topology {
    pub world: World,
    /// A host on the nodes' link.
    pub outside: Client,
    /// The backend of both services, on the first node.
    pub web: Pod,
    /// Another pod on the first node.
    pub pod: Pod,
    _servers: [Server; 2],
    agents: Vec<Agent>,
}

impl Topology {
    pub fn build() -> Self {
        Self::with(NodeSpec::millrace(), "")
    }

    /// A topology with these additional lines in the configuration of the agents.
    pub fn with(spec: NodeSpec, config: &str) -> Self {
        let world = World::builder().node(spec.clone()).node(spec).build();
        let outside = world.add_client("outside");
        for balancer in [BALANCER, LOCAL_BALANCER].concat() {
            let length = if balancer.contains(':') { 128 } else { 32 };
            let prefix = format!("{balancer}/{length}").parse().expect("a prefix");
            outside.route_via(prefix, world.node(1));
        }
        let agents = world.start_agents_with(&format!("{DEFAULTS}{config}"));
        let [web, pod] = ["web", "pod"].map(|name| world.node(1).add_pod(name));
        let servers = web.serve(8080);
        let services = [
            service("web", CLUSTER_IP, BALANCER, NODE_PORT),
            service("near", LOCAL_CLUSTER_IP, LOCAL_BALANCER, LOCAL_NODE_PORT)
                .set("externalTrafficPolicy", json!("Local")),
        ];
        for service in &services {
            world.apply_all(service.slices([Endpoint::of(&web)]));
            world.apply(service);
        }
        for balancer in [BALANCER, LOCAL_BALANCER].concat() {
            wait_served(&outside, at(balancer, 80));
        }
        Self {
            world,
            outside,
            web,
            pod,
            _servers: servers,
            agents,
        }
    }

    /// The first node, the receiver of all frames.
    pub fn node(&self) -> &Node {
        self.world.node(1)
    }

    /// A sender of frames from the host outside to the first node.
    pub fn forge(&self) -> Forge {
        self.outside.forge_to(self.node())
    }

    /// A capture of the backend's interface.
    pub fn at_web(&self) -> PacketSocket {
        captured(&self.web)
    }

    /// Waits until the first node's gauge, `status` and log report that a client uses all of a share.
    #[track_caller]
    pub fn assert_share_is_reported(&self, kind: &str, client: &str, within: Duration) {
        let what = format!("the share of {kind} of {client} to be reported");
        let series = format!("millrace_clients_at_share{{share=\"{kind}\"}}");
        wait_for(&what, within, || {
            let gauge = metric(self.node(), &series);
            let status = self.node().cli(&["status"]).expect("a status");
            let errors = status["errors"].to_string();
            if gauge >= 1 && errors.contains(&format!("{client}: the share of ")) {
                Ok(())
            } else {
                Err(format!("{gauge} in the gauge: {errors}"))
            }
        });
        // The log has a line for each event.
        let log = self.agents[0].log();
        assert!(log.contains(&format!("{client}: the share of ")), "{log}");
    }

    /// The addresses and ports of both services that a host outside may send to, of this family. The cluster
    /// IPs come last.
    pub fn entrances(&self, is_v4: bool) -> Vec<SocketAddr> {
        let n = usize::from(!is_v4);
        let node = self.node().addresses()[n];
        vec![
            at(BALANCER[n], 80),
            at(LOCAL_BALANCER[n], 80),
            SocketAddr::new(node, NODE_PORT),
            SocketAddr::new(node, LOCAL_NODE_PORT),
            at(CLUSTER_IP[n], 80),
            at(LOCAL_CLUSTER_IP[n], 80),
        ]
    }
}

fn service(name: &str, cluster_ips: [&str; 2], balancers: [&str; 2], node_port: u16) -> Service {
    let service = Service::new(name)
        .tcp("http", 80, 8080)
        .udp("dns", 80, 8080)
        .node_port("http", node_port)
        .node_port("dns", node_port);
    let service = cluster_ips
        .iter()
        .fold(service, |service, ip| service.cluster_ip(ip));
    balancers
        .iter()
        .fold(service, |service, ip| service.load_balancer_ip(ip))
}

/// Waits until a server answers at `to` by TCP and UDP.
#[track_caller]
pub fn wait_served(client: &Place, to: SocketAddr) {
    for probe in [Probe::Tcp, Probe::Udp] {
        let what = format!("{to} to be served by {probe:?}");
        eventually(&what, 2 * SOON, || client.ask_within(probe, to, SECOND).is_ok());
    }
}

/// An address and a port.
#[track_caller]
pub fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// A capture of a place's `eth0`.
#[track_caller]
pub fn captured(place: &Place) -> PacketSocket {
    place.packet_socket("eth0").expect("a capture")
}

/// The place's address of a family.
pub fn of_family(place: &Place, is_v4: bool) -> IpAddr {
    place.addresses()[usize::from(!is_v4)]
}

/// The number of packets that a node has counted for some reasons.
#[track_caller]
pub fn counted(node: &Node, reasons: &[Reason]) -> u64 {
    let counters = node.counters();
    reasons.iter().map(|reason| counters[*reason as usize]).sum()
}

/// The packets that a node refuses for some reasons, from now on.
pub struct Refusals<'a> {
    node: &'a Node,
    reasons: &'a [Reason],
    before: u64,
}

impl<'a> Refusals<'a> {
    #[track_caller]
    pub fn of(node: &'a Node, reasons: &'a [Reason]) -> Self {
        let before = counted(node, reasons);
        Self {
            node,
            reasons,
            before,
        }
    }

    /// Asserts that at least this number of packets was refused. The packets must have passed the programs
    /// before.
    #[track_caller]
    pub fn assert_rose_by(&self, sent: u64, what: &str) {
        let refused = counted(self.node, self.reasons) - self.before;
        let names: Vec<_> = self.reasons.iter().map(|reason| reason.name()).collect();
        assert!(
            refused >= sent,
            "{what}: {refused} of {sent} were refused for {names:?}"
        );
    }
}

/// A value among a node's metrics; 0 if it is missing.
#[track_caller]
pub fn metric(node: &Node, series: &str) -> u64 {
    let page = node
        .http_get(SocketAddr::from(([127, 0, 0, 1], 10249)), "/metrics")
        .expect("metrics")
        .body;
    let value = page.lines().find_map(|line| line.strip_prefix(series));
    value.map_or(0, |text| text.trim().parse().expect("a number"))
}

/// Waits until the agent has walked the flows. The walk removes the share of a client without flows, which
/// this function adds.
#[track_caller]
pub fn await_collection(topology: &Topology) {
    let key = Ip::from(Ipv4Addr::new(198, 51, 100, 77)).octets();
    topology.node().set_element::<16, 8>("SHARES", key, [0; 8]);
    eventually("a collection", 3 * SOON, || {
        !topology.node().table::<16, 8>("SHARES").contains_key(&key)
    });
}

/// Asserts that no forged packet came before the honest one, which must come. A neighbour may have to be
/// resolved first, so the honest packet is sent until it arrives.
#[track_caller]
pub fn assert_nothing_came(
    capture: &PacketSocket,
    forged: &[u8],
    what: &str,
    mut send_honest: impl FnMut(&[u8]),
) {
    let came = came_before(capture, what, &mut send_honest);
    let forged: Vec<&Frame> = came.iter().filter(|frame| frame.carries(forged)).collect();
    assert!(
        forged.is_empty(),
        "{what}: {} forged frames arrived, the first is {:02x?}",
        forged.len(),
        &forged[0].bytes[..forged[0].bytes.len().min(64)]
    );
}

/// The frames that came before the honest packet.
#[track_caller]
pub fn came_before(capture: &PacketSocket, what: &str, send_honest: &mut dyn FnMut(&[u8])) -> Vec<Frame> {
    // Each call has a mark of its own, so that a late packet is not taken for the next one.
    let mark = format!("honest {:016x}", fastrand::u64(..));
    let mut came = Vec::new();
    for _ in 0..20 {
        send_honest(mark.as_bytes());
        let has_come = capture.receive_until(mark.as_bytes(), SECOND / 4, &mut came);
        if has_come.expect("to read") {
            return came;
        }
    }
    panic!("{what}: the honest packet did not arrive, so nothing is proven");
}

/// A UDP datagram of any source and destination.
pub fn datagram(from: (IpAddr, u16), to: SocketAddr, mark: &[u8]) -> Vec<u8> {
    packet::udp(SocketAddr::new(from.0, from.1), to, mark)
}

/// Sends honest datagrams by a socket.
#[track_caller]
pub fn honest(place: &Place, to: SocketAddr) -> impl FnMut(&[u8]) {
    let socket = place.udp_socket_for(to).expect("a socket");
    move |mark| {
        // An error is about an earlier datagram.
        let _ = socket.send_to(mark, to);
    }
}
