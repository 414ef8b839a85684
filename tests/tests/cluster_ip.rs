//! `ClusterIP` services, from every place that can reach one, on every path through the data plane:
//!
//! - the socket hooks (TCP of pods and the node, unconnected UDP of the node),
//! - packet by packet at a pod's interface,
//! - the node's own device (connected UDP, hooks off),
//! - the uplink (clients outside of the cluster).

use std::net::SocketAddr;
use std::time::Duration;

use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::manifest::Family;
use harness::{
    Endpoint, EndpointSlice, Node, NodeSpec, Place, Pod, Probe, Reply, Server, Service, World, address,
    assert_even, eventually, spread,
};

const SECOND: Duration = Duration::from_secs(1);
const WEB: &str = "10.96.0.10:80";
const WEB6: &str = "[fd00:96::10]:80";

/// Two nodes with a client pod on the first one. The backends `a`, `b` and `c` are on both, behind one
/// dual-stack service with TCP and UDP.
struct Fixture {
    world: World,
    client: Pod,
    backends: Vec<(Pod, [Server; 2])>,
    service: Service,
}

impl Fixture {
    fn open(spec: fn() -> NodeSpec) -> Self {
        let world = World::builder().node(spec()).node(spec()).build();
        let client = world.node(1).add_pod("client");
        let serve = |node: &Node, name: &str| {
            let pod = node.add_pod(name);
            let servers = pod.serve(8080);
            (pod, servers)
        };
        let backends = vec![
            serve(world.node(1), "a"),
            serve(world.node(2), "b"),
            serve(world.node(2), "c"),
        ];
        let service = Service::web();
        world.apply(&service);
        let fixture = Self {
            world,
            client,
            backends,
            service,
        };
        fixture.endpoints(&["a", "b", "c"]);
        fixture
    }

    fn pod(&self, name: &str) -> &Pod {
        &self
            .backends
            .iter()
            .find(|(pod, ..)| pod.name() == name)
            .expect("a backend")
            .0
    }

    fn endpoints(&self, names: &[&str]) {
        self.world.apply_all(
            self.service
                .slices(names.iter().map(|name| Endpoint::of(self.pod(name)))),
        );
    }
}

const ALL: [&str; 3] = ["a", "b", "c"];

fn assert_spread(place: &Place, probe: Probe, to: &str, count: usize) {
    assert_even(place, probe, address(to), count, &ALL);
}

fn ask(place: &Place, probe: Probe, to: &str) -> Reply {
    place
        .ask(probe, address(to))
        .unwrap_or_else(|error| panic!("{} asks {to} by {probe:?}: {error}", place.name()))
}

#[test]
fn pods_and_nodes_reach_every_backend_evenly_with_socket_hooks() {
    harness::require_root!();
    let fixture = Fixture::open(NodeSpec::routed);
    let _agents = fixture.world.start_agents();
    let node = fixture.world.node(1);
    for to in [WEB, WEB6] {
        assert_spread(&fixture.client, Probe::Tcp, to, 10_000);
        assert_spread(&fixture.client, Probe::Udp, to, 10_000);
        assert_spread(node, Probe::Tcp, to, 10_000);
        assert_spread(node, Probe::Udp, to, 10_000);
        assert_spread(node, Probe::UdpConnected, to, 10_000);
    }
}

#[test]
fn pods_and_nodes_reach_every_backend_evenly_without_socket_hooks() {
    harness::require_root!();
    let fixture = Fixture::open(|| NodeSpec::routed().strict_rp_filter());
    let _agents = fixture.world.start_agents_with(HOOKS_OFF);
    let node = fixture.world.node(1);
    for to in [WEB, WEB6] {
        assert_spread(&fixture.client, Probe::Tcp, to, 10_000);
        assert_spread(&fixture.client, Probe::UdpConnected, to, 10_000);
        assert_spread(node, Probe::Tcp, to, 10_000);
        assert_spread(node, Probe::Udp, to, 10_000);
    }
}

fn started(mut agent: harness::Agent) -> harness::Agent {
    agent.wait_ready(10 * SECOND);
    agent
}

#[test]
fn pods_on_a_bridge_reach_every_backend() {
    harness::require_root!();
    let fixture = Fixture::open(NodeSpec::bridged);
    let _agents = fixture.world.start_agents_with(HOOKS_OFF);
    for to in [WEB, WEB6] {
        assert_spread(&fixture.client, Probe::Tcp, to, 1000);
        assert_spread(&fixture.client, Probe::Udp, to, 1000);
        assert_spread(fixture.world.node(2), Probe::Tcp, to, 1000);
    }
}

#[test]
fn clients_outside_reach_every_backend_and_are_masqueraded() {
    harness::require_root!();
    let fixture = Fixture::open(|| NodeSpec::routed().strict_rp_filter());
    // Each of these connections keeps its port for a while after its end, so the range must be large.
    let ports = format!("{DEFAULTS}masqueradePorts: 10000-32767\n");
    let _agents = fixture.world.start_agents_with(&ports);
    let client = fixture.world.add_remote_client("outside");
    let node = fixture.world.node(1);
    client.route_via("10.96.0.0/16".parse().unwrap(), node);
    client.route_via("fd00:96::/112".parse().unwrap(), node);
    for to in [WEB, WEB6] {
        assert_spread(&client, Probe::Tcp, to, 10_000);
        assert_spread(&client, Probe::Udp, to, 1000);
        let reply = ask(&client, Probe::Tcp, to);
        assert_eq!(
            reply.peer.ip(),
            node.address_like(reply.peer.ip()),
            "masqueraded to the node"
        );
    }
}

#[test]
fn a_pod_keeps_its_address_on_every_path() {
    harness::require_root!();
    let fixture = Fixture::open(NodeSpec::routed);
    let _agents = fixture.world.start_agents();
    for probe in Probe::ALL {
        assert_eq!(ask(&fixture.client, probe, WEB).peer.ip(), fixture.client.ip());
        assert_eq!(ask(&fixture.client, probe, WEB6).peer.ip(), fixture.client.ip6());
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    harness::require_root!();
    for config in [DEFAULTS, HOOKS_OFF] {
        let fixture = Fixture::open(NodeSpec::routed);
        fixture.endpoints(&["a"]);
        let _agent = started(fixture.world.node(1).agent().config(config).start());
        for to in [WEB, WEB6] {
            for probe in Probe::ALL {
                assert_eq!(ask(fixture.pod("a"), probe, to).backend, "a", "{probe:?} {to}");
            }
        }
    }
}

#[test]
fn the_node_reaches_a_backend_on_itself() {
    harness::require_root!();
    for config in [DEFAULTS, HOOKS_OFF] {
        let world = World::builder()
            .node(NodeSpec::routed().strict_rp_filter())
            .build();
        let node = world.node(1);
        let _servers = node.serve(6443);
        let pod = node.add_pod("client");
        let service = Service::new("kubernetes")
            .cluster_ip("10.96.0.1")
            .cluster_ip("fd00:96::1")
            .tcp("https", 443, 6443)
            .udp("udp", 443, 6443);
        world.apply_all(service.slices([Endpoint::on_host(node)]));
        world.apply(&service);
        let _agent = started(node.agent().config(config).start());
        for to in ["10.96.0.1:443", "[fd00:96::1]:443"] {
            for probe in Probe::ALL {
                for place in [node as &Place, &pod] {
                    assert_eq!(
                        ask(place, probe, to).backend,
                        node.name(),
                        "{} {probe:?} {to}",
                        place.name()
                    );
                }
            }
        }
    }
}

#[test]
fn virtual_addresses_reply_to_ping_from_pods_and_the_node() {
    harness::require_root!();
    let fixture = Fixture::open(|| NodeSpec::routed().strict_rp_filter());
    let _agents = fixture.world.start_agents();
    for place in [&fixture.client as &Place, fixture.world.node(1)] {
        for to in [WEB, WEB6] {
            let to = address(to).ip();
            place
                .ping(to, 5 * SECOND)
                .unwrap_or_else(|error| panic!("{} pings {to}: {error}", place.name()));
        }
    }
    let unallocated = "10.96.77.77".parse().unwrap();
    assert!(
        fixture.client.ping(unallocated, SECOND / 5).is_err(),
        "an unallocated address does not reply"
    );
}

#[test]
fn getpeername_returns_the_virtual_address() {
    harness::require_root!();
    let fixture = Fixture::open(NodeSpec::routed);
    let _agents = fixture.world.start_agents();
    for to in [WEB, WEB6] {
        let stream = fixture.client.tcp_connect(address(to)).expect("a connection");
        assert_eq!(stream.peer_addr().unwrap(), address(to));
    }
}

#[test]
fn a_service_without_endpoints_refuses_connections_at_once() {
    harness::require_root!();
    let fixture = Fixture::open(NodeSpec::routed);
    fixture.endpoints(&[]);
    let _agents = fixture.world.start_agents();
    for place in [&fixture.client as &Place, fixture.world.node(1)] {
        let error = place
            .tcp_connect(address(WEB))
            .expect_err("the service has no endpoint");
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionRefused,
            "{}",
            place.name()
        );
    }
}

#[test]
fn scaling_renaming_a_port_and_deleting_show_within_a_second() {
    harness::require_root!();
    let fixture = Fixture::open(NodeSpec::routed);
    let _agents = fixture.world.start_agents();
    let node = fixture.world.node(1);
    fixture.endpoints(&["b"]);
    eventually("only b is left", SECOND, || {
        spread(&fixture.client, Probe::Tcp, address(WEB), 20).backends() == ["b"]
    });
    fixture.endpoints(&ALL);
    eventually("all are back", SECOND, || {
        spread(node, Probe::Tcp, address(WEB), 50).backends() == ALL
    });

    let renamed = Service::new("web")
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:96::10")
        .tcp("renamed", 80, 8080)
        .udp("dns", 80, 8080);
    fixture.world.apply(&renamed);
    eventually("no slice has a port of the new name", SECOND, || {
        fixture
            .client
            .tcp_connect(address(WEB))
            .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
    });
    let slice = EndpointSlice::of(&renamed, Family::V4).endpoints([Endpoint::of(fixture.pod("c"))]);
    fixture.world.apply(&slice);
    eventually("the slice follows", SECOND, || {
        fixture
            .client
            .ask(Probe::Tcp, address(WEB))
            .is_ok_and(|reply| reply.backend == "c")
    });
    fixture.world.delete(&renamed);
    // The node drops packets to an address without a service. A refusal would come from another host.
    eventually("the service is gone", SECOND, || {
        let outcome = fixture.client.tcp_connect_within(address(WEB), SECOND / 10);
        outcome.is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
    });
}

#[test]
fn the_next_datagram_after_a_backend_is_gone_reaches_a_live_one() {
    harness::require_root!();
    for config in [DEFAULTS, HOOKS_OFF] {
        let fixture = Fixture::open(NodeSpec::routed);
        let _agents = fixture.world.start_agents_with(config);
        for place in [&fixture.client as &Place, fixture.world.node(1)] {
            for connected in [false, true] {
                for to in [WEB, WEB6] {
                    fixture.endpoints(&ALL);
                    moves_on(&fixture, place, connected, address(to));
                }
            }
        }
    }
}

/// One UDP socket goes on to another backend each time that its backend is removed.
fn moves_on(fixture: &Fixture, place: &Place, connected: bool, to: SocketAddr) {
    let what = format!("{} to {to}, connected: {connected}", place.name());
    let socket = place.udp_socket_for(to).expect("a socket");
    socket.set_read_timeout(Some(SECOND)).expect("a timeout");
    if connected {
        socket.connect(to).expect("connecting");
    }
    let ask = || -> std::io::Result<String> {
        let mut buffer = [0_u8; 256];
        if connected {
            socket.send(b"who\n")
        } else {
            socket.send_to(b"who\n", to)
        }?;
        let (len, from) = socket.recv_from(&mut buffer)?;
        assert_eq!(from, to, "{what}: the reply comes from the virtual address");
        Ok(Reply::parse(&String::from_utf8_lossy(&buffer[..len]))?.backend)
    };
    eventually("all backends are programmed", SECOND, || {
        spread(place, Probe::Udp, to, 60).backends() == ALL
    });
    let mut left: Vec<&str> = ALL.to_vec();
    let mut current = ask().unwrap_or_else(|error| panic!("{what}: {error}"));
    for _ in 0..10 {
        assert_eq!(
            ask().expect("a reply"),
            current,
            "{what}: stays while its backend lives"
        );
    }
    for _ in 0..2 {
        left.retain(|name| *name != current);
        fixture.endpoints(&left);
        let gone = current.clone();
        eventually("the next datagram goes elsewhere", SECOND, || {
            ask().is_ok_and(|backend| {
                current = backend;
                current != gone
            })
        });
        assert!(left.contains(&current.as_str()), "{what}");
    }
}
