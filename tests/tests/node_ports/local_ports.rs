//! Ports that the kernel gives to the node's own sockets, and that are node ports as well. Replies to the
//! node's connections go to the node, and clients outside reach the node ports. The status names the overlap.
//! The command in its message keeps the two kinds of ports apart.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::ops::RangeInclusive;

use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::{
    Agent, Client, Endpoint, LongFlows, Node, PATIENCE, Place, Pod, Probe, Reply, Server, Service, World,
    wait_for,
};
use socket2::{Domain, Type};

use crate::topology::{SECOND, ask};

const NODE_PORTS: RangeInclusive<u16> = 40_000..=40_019;
/// Ports that no service has.
const FREE_PORTS: RangeInclusive<u16> = 40_020..=40_059;
/// The port of the server outside.
const SERVER: u16 = 6443;
/// How often the node asks the server by each kind of socket, in each family.
const TIMES: usize = 15;

/// A node with a backend, a server outside that the node asks, and a client outside.
struct Scene {
    world: World,
    agent: Agent,
    server: Client,
    visitor: Client,
    backend: Pod,
    _servers: [[Server; 2]; 2],
}

impl Scene {
    fn build(config: &str) -> Self {
        let world = World::with_nodes(1);
        let node = world.node(1);
        let [server, visitor] = ["server", "visitor"].map(|name| world.add_client(name));
        let backend = node.add_pod("backend");
        let servers = [server.serve(SERVER), backend.serve(8080)];
        give_ports(node, &NODE_PORTS);
        // A datagram from one node port to another would count as a loop.
        for place in [&server, &visitor] {
            give_ports(place, &(50_000..=59_999));
        }
        let mut agent = node.agent().config(config).start();
        agent.wait_ready(20 * SECOND);
        Self {
            world,
            agent,
            server,
            visitor,
            backend,
            _servers: servers,
        }
    }

    fn node(&self) -> &Node {
        self.world.node(1)
    }

    /// The server outside, in both families.
    fn asked(&self) -> impl Iterator<Item = SocketAddr> {
        let addresses = self.server.addresses().iter();
        addresses.map(|address| SocketAddr::new(*address, SERVER))
    }

    /// Applies a service that has all the node ports, by TCP and by UDP.
    fn serve_node_ports(&self) {
        let service = Service::new("web")
            .cluster_ip("10.96.0.10")
            .cluster_ip("fd00:96::10");
        let service = NODE_PORTS
            .zip(1000..)
            .fold(service, |service, (node_port, port)| {
                let [tcp, udp] = ["tcp", "udp"].map(|protocol| format!("{protocol}-{node_port}"));
                let service = service.tcp(&tcp, port, 8080).udp(&udp, port, 8080);
                service.node_port(&tcp, node_port).node_port(&udp, node_port)
            });
        self.world
            .apply_all(service.slices([Endpoint::of(&self.backend)]));
        self.world.apply(&service);
    }

    /// Asks the server by new sockets of the node, each with a port of the kernel's choice out of `ports`.
    #[track_caller]
    fn assert_node_asks(&self, probes: &[Probe], ports: &RangeInclusive<u16>) {
        for to in self.asked() {
            for probe in probes {
                for time in 0..TIMES {
                    let reply = ask_unbound(self.node(), *probe, to);
                    let reply =
                        reply.unwrap_or_else(|error| panic!("{probe:?} to {to}, time {time}: {error}"));
                    assert_eq!(reply.backend, "server", "{probe:?} to {to}");
                    assert!(ports.contains(&reply.peer.port()), "{probe:?}: {reply:?}");
                }
            }
        }
    }

    /// Asserts that the backend answers at each node port. The server outside may ask there, too.
    #[track_caller]
    fn assert_served(&self) {
        for place in [&self.visitor as &Place, &self.server] {
            for address in self.node().addresses() {
                for port in NODE_PORTS {
                    let to = SocketAddr::new(*address, port);
                    for probe in [Probe::Tcp, Probe::UdpConnected] {
                        assert_eq!(ask(place, probe, to).backend, "backend", "{to} by {probe:?}");
                    }
                }
            }
        }
    }

    /// The message of the status about the overlap.
    fn overlap(&self) -> Option<String> {
        let status = self.agent.cli(&["status"]);
        let errors = status["errors"].as_array().expect("a list");
        let overlap = errors.iter().find(|error| error["code"] == "LocalPortsOverlap")?;
        Some(overlap["message"].as_str().expect("text").to_owned())
    }

    /// Waits until the status names the overlap, or until it does not.
    #[track_caller]
    fn wait_overlap(&self, is_named: bool) -> String {
        wait_for(&format!("an overlap: {is_named}"), 5 * SECOND, || {
            let overlap = self.overlap();
            if overlap.is_some() == is_named {
                Ok(overlap.unwrap_or_default())
            } else {
                Err(format!("{overlap:?}"))
            }
        })
    }
}

/// Sets the ports that the kernel gives to sockets.
fn give_ports(place: &Place, ports: &RangeInclusive<u16>) {
    let range = format!("{} {}", ports.start(), ports.end());
    place.sysctl("net/ipv4/ip_local_port_range", &range);
}

/// Asks by a socket that is not bound before: the kernel gives it a port when it connects or sends. A
/// `bind()` to port 0 fails where all ports are node ports.
fn ask_unbound(node: &Node, probe: Probe, to: SocketAddr) -> io::Result<Reply> {
    if probe == Probe::Tcp {
        return node.ask(probe, to);
    }
    let socket = UdpSocket::from(node.socket(Domain::for_address(to), Type::DGRAM, None)?);
    socket.set_read_timeout(Some(PATIENCE))?;
    if probe == Probe::UdpConnected {
        socket.connect(to)?;
        socket.send(b"?")?;
    } else {
        socket.send_to(b"?", to)?;
    }
    let mut buffer = [0; 512];
    let (length, from) = socket.recv_from(&mut buffer)?;
    if from != to {
        return Err(io::Error::other(format!("asked {to}, {from} replied")));
    }
    Reply::parse(&String::from_utf8_lossy(&buffer[..length]))
}

/// Runs the command in a message, of the form `sysctl -w KEY=VALUE`.
#[track_caller]
fn run_sysctl(node: &Node, message: &str) {
    let command = message.split('`').nth(1);
    let setting = command.and_then(|command| command.strip_prefix("sysctl -w "));
    let setting = setting.and_then(|setting| setting.split_once('='));
    let (key, value) = setting.unwrap_or_else(|| panic!("no command in: {message}"));
    node.sysctl(&key.replace('.', "/"), value);
}

#[test]
fn connections_of_the_node_go_on_and_begin_where_their_ports_are_node_ports() {
    harness::require_root!();
    for config in [DEFAULTS, HOOKS_OFF] {
        let scene = Scene::build(config);
        assert_eq!(scene.overlap(), None, "without node ports");
        let connect = |to| LongFlows::start(scene.node(), to, 2, SECOND / 4).expect("connections");
        let held: Vec<_> = scene.asked().map(connect).collect();
        scene.serve_node_ports();
        for address in scene.node().addresses() {
            let last = SocketAddr::new(*address, *NODE_PORTS.end());
            for probe in [Probe::Tcp, Probe::UdpConnected] {
                wait_for(&format!("{last} by {probe:?}"), 5 * SECOND, || {
                    scene.visitor.ask_within(probe, last, SECOND)
                });
            }
        }
        for flows in &held {
            flows.wait_progress(10 * SECOND);
            assert_eq!(flows.report().interruptions, Vec::<String>::new());
        }
        scene.assert_node_asks(&[Probe::Tcp, Probe::UdpConnected], &NODE_PORTS);
        scene.assert_served();

        let message = scene.wait_overlap(true);
        for part in [
            "node ports",
            "(40000-40019)",
            "unconnected UDP",
            "ip_local_reserved_ports=40000-40019`",
        ] {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
        // The kernel needs other ports than the reserved ones.
        give_ports(scene.node(), &(*NODE_PORTS.start()..=*FREE_PORTS.end()));
        run_sysctl(scene.node(), &message);
        scene.wait_overlap(false);
        scene.assert_node_asks(&Probe::ALL, &FREE_PORTS);
        scene.assert_served();
        for flows in held {
            flows.wait_progress(10 * SECOND);
            assert_eq!(flows.stop().interruptions, Vec::<String>::new());
        }
    }
}
