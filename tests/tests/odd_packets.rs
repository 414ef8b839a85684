//! Packets with more than an address and a port: too big for a link, in fragments, or errors about other
//! packets. The tests use real sockets over real links, and captures for the checks.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::forge::packet;
use harness::{
    Agent, Client, Endpoint, Frame, NodeSpec, PATIENCE, Place, Pod, Probe, Server, Service, World, address,
    eventually, wait_for,
};

const SECOND: Duration = Duration::from_secs(1);
const PORT: u16 = 30_080;
const SMALL: &str = "1300";

/// Two nodes, a client outside, a pod on the first node, and the only backend on the second one.
struct Topology {
    world: World,
    outside: Client,
    client: Pod,
    backend: Pod,
    service: Service,
    servers: [Server; 2],
    _agents: Vec<Agent>,
}

impl Topology {
    fn build(config: &str) -> Self {
        let spec = || NodeSpec::routed().strict_rp_filter();
        let world = World::builder().node(spec()).node(spec()).build();
        let outside = world.add_remote_client("outside");
        let client = world.node(1).add_pod("client");
        let backend = world.node(2).add_pod("backend");
        let servers = backend.serve(8080);
        let service = Service::web().node_port("http", PORT).node_port("dns", PORT);
        world.apply(&service);
        world.apply_all(service.slices([Endpoint::of(&backend)]));
        let agents = world.start_agents_with(config);
        Self {
            world,
            outside,
            client,
            backend,
            service,
            servers,
            _agents: agents,
        }
    }

    /// The node port at both addresses of the first node.
    fn node_ports(&self) -> Vec<SocketAddr> {
        let addresses = self.world.node(1).addresses().iter();
        addresses.map(|address| SocketAddr::new(*address, PORT)).collect()
    }
}

fn cluster_ips() -> [SocketAddr; 2] {
    ["10.96.0.10:80", "[fd00:96::10]:80"].map(address)
}

/// Sends many bytes and reads them all back.
#[track_caller]
fn exchange(place: &Place, to: SocketAddr) {
    const BYTES: usize = 200_000;
    let mut stream = place.tcp_connect(to).expect("a connection");
    stream.set_read_timeout(Some(2 * PATIENCE)).expect("a deadline");
    let mut lines = BufReader::new(stream.try_clone().expect("a stream"));
    let mut line = String::new();
    lines.read_line(&mut line).expect("a greeting");
    let text = "x".repeat(BYTES) + "\n";
    let sent = std::thread::scope(|scope| {
        let sending = scope.spawn(|| stream.write_all(text.as_bytes()));
        line.clear();
        lines
            .read_line(&mut line)
            .unwrap_or_else(|error| panic!("{} and {to}: {error} after {} bytes", place.name(), line.len()));
        sending.join().expect("a sender")
    });
    sent.expect("sent");
    assert!(line.ends_with(&text), "{} of {BYTES} bytes came back", line.len());
}

/// Whether a frame is the ICMP error for a packet that is too big.
fn is_too_big(frame: &Frame) -> bool {
    let bytes = &frame.bytes;
    match bytes.get(12..14) {
        Some([0x08, 0x00]) => bytes[23] == 1 && bytes[34..36] == [3, 4],
        Some([0x86, 0xdd]) => bytes[20] == 58 && bytes[54] == 2,
        _ => false,
    }
}

/// Source and destination of the packet that such an error carries.
fn carried(frame: &Frame) -> (SocketAddr, SocketAddr) {
    let bytes = &frame.bytes;
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    if bytes[12] == 0x08 {
        let ip = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).expect("four bytes"));
        (
            SocketAddr::new(ip(54), port(62)),
            SocketAddr::new(ip(58), port(64)),
        )
    } else {
        let ip = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).expect("sixteen bytes"));
        (
            SocketAddr::new(ip(70), port(102)),
            SocketAddr::new(ip(86), port(104)),
        )
    }
}

fn is_like(address: SocketAddr) -> impl Fn(&Frame) -> bool {
    move |frame| is_too_big(frame) && (frame.bytes[12] == 0x08) == address.is_ipv4()
}

#[test]
fn a_client_and_its_backend_learn_of_a_small_link_on_either_side_of_the_node() {
    harness::require_root!();
    let topology = Topology::build(DEFAULTS);
    for to in topology.node_ports() {
        exchange(&topology.outside, to);
    }
    // The small link is now behind the node, towards the pods of the other one.
    let node = topology.world.node(1);
    for prefix in topology.world.node(2).pod_cidrs() {
        let via = topology.world.node(2).address_like(prefix.addr());
        node.run_ip(&format!(
            "route replace {prefix} via {via} dev eth0 mtu lock {SMALL}"
        ));
    }
    for to in topology.node_ports() {
        let capture = topology.outside.packet_socket("eth0").expect("a capture");
        exchange(&topology.outside, to);
        let error = capture
            .find(SECOND, is_like(to))
            .expect("to read")
            .expect("an error");
        let (from, dst) = carried(&error);
        assert!(topology.outside.addresses().contains(&from.ip()), "{from}");
        assert_eq!(dst, to, "the packet as the client sent it");
    }
}

#[test]
fn a_backend_learns_of_a_small_link_before_the_client() {
    harness::require_root!();
    let topology = Topology::build(DEFAULTS);
    for address in topology.outside.addresses() {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        topology.world.fabric().run_ip(&format!(
            "route replace {address}/{prefix} dev outside mtu lock {SMALL}"
        ));
    }
    for to in topology.node_ports() {
        let capture = topology.backend.packet_socket("eth0").expect("a capture");
        exchange(&topology.outside, to);
        let error = capture
            .find(SECOND, is_like(to))
            .expect("to read")
            .expect("an error");
        let (from, dst) = carried(&error);
        assert!(
            topology.backend.addresses().contains(&from.ip()) && from.port() == 8080,
            "{from}"
        );
        assert_eq!(
            dst.ip(),
            topology.world.node(1).address_like(to.ip()),
            "the client of the backend"
        );
    }
}

/// Sends a datagram that is larger than the MTU of any link, and asserts that it comes back whole.
#[track_caller]
fn ask_at_length(socket: &UdpSocket, to: SocketAddr) {
    let question = vec![b'q'; 4000];
    socket.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    socket.send_to(&question, to).expect("sent");
    let mut reply = vec![0; 8000];
    let (length, from) = socket
        .recv_from(&mut reply)
        .unwrap_or_else(|error| panic!("nothing from {to}: {error}"));
    assert_eq!(from, to);
    assert!(reply[..length].ends_with(&question), "{length} bytes from {to}");
}

#[test]
fn datagrams_in_fragments_go_and_come_whole() {
    harness::require_root!();
    for config in [DEFAULTS, HOOKS_OFF] {
        let topology = Topology::build(config);
        for to in topology.node_ports() {
            let capture = topology.backend.packet_socket("eth0").expect("a capture");
            ask_at_length(&topology.outside.udp_socket_for(to).expect("a socket"), to);
            let is_later_fragment = |frame: &Frame| match frame.bytes.get(12..14) {
                Some([0x08, 0x00]) => u16::from_be_bytes([frame.bytes[20], frame.bytes[21]]) & 0x1fff != 0,
                Some([0x86, 0xdd]) => {
                    frame.bytes[20] == 44
                        && u16::from_be_bytes([frame.bytes[56], frame.bytes[57]]) & 0xfff8 != 0
                }
                _ => false,
            };
            let fragment = capture.find(SECOND, |frame| !frame.outgoing && is_later_fragment(frame));
            assert!(fragment.expect("to read").is_some(), "{to}: it came in fragments");
        }
        for to in cluster_ips() {
            for place in [&topology.client as &Place, topology.world.node(1)] {
                ask_at_length(&place.udp_socket_for(to).expect("a socket"), to);
            }
        }
    }
}

/// Only the sender can make IPv6 fragments smaller, so the sender must learn the MTU of the link (RFC 4443
/// §3.2).
#[test]
fn a_sender_of_fragments_learns_of_a_small_link() {
    harness::require_root!();
    let topology = Topology::build(DEFAULTS);
    for prefix in topology.world.node(2).pod_cidrs() {
        let via = topology.world.node(2).address_like(prefix.addr());
        topology.world.node(1).run_ip(&format!(
            "route replace {prefix} via {via} dev eth0 mtu lock {SMALL}"
        ));
    }
    for to in topology.node_ports() {
        let socket = topology.outside.udp_socket_for(to).expect("a socket");
        socket.connect(to).expect("connected");
        socket.set_read_timeout(Some(SECOND / 2)).expect("a deadline");
        let question = vec![b'q'; 4000];
        wait_for(&format!("{to} to be asked at length"), PATIENCE, || {
            socket.send(&question)?;
            let mut reply = vec![0; 8000];
            let length = socket.recv(&mut reply)?;
            assert!(reply[..length].ends_with(&question), "{length} bytes from {to}");
            std::io::Result::Ok(())
        });
    }
}

/// The sender puts destination options into its datagrams.
#[test]
fn datagrams_in_fragments_behind_destination_options_go_whole() {
    harness::require_root!();
    let topology = Topology::build(HOOKS_OFF);
    let from = SocketAddr::new(topology.client.ip6().into(), 4000);
    let socket = topology.client.udp_bind(from).expect("a socket");
    socket.set_read_timeout(Some(SECOND)).expect("a deadline");
    let forge = topology.client.forge_out();
    let question = vec![b'q'; 600];
    let node_port = SocketAddr::new(topology.world.node(1).ip6().into(), PORT);
    for (id, to) in (7..).zip([cluster_ips()[1], node_port]) {
        // A later fragment that overtakes its first one is lost, as with other implementations.
        wait_for("a reply to a datagram in fragments", PATIENCE, || {
            for fragment in packet::fragments_with_options(&packet::udp(from, to, &question), id, 256) {
                forge.send(&fragment);
            }
            let mut reply = vec![0; 8000];
            let (length, by) = socket.recv_from(&mut reply)?;
            assert_eq!(by, to);
            assert!(reply[..length].ends_with(&question), "{length} bytes from {to}");
            std::io::Result::Ok(())
        });
    }
}

#[test]
fn an_error_about_a_datagram_reaches_the_socket_that_sent_it() {
    harness::require_root!();
    for config in [DEFAULTS, HOOKS_OFF] {
        let mut topology = Topology::build(config);
        // No socket listens at the backend any more, so its kernel sends an error.
        let [_tcp, udp] = &mut topology.servers;
        udp.drain();
        drop(std::mem::replace(udp, topology.backend.serve_tcp(8081)));
        let mut all: Vec<(&Place, SocketAddr)> = Vec::new();
        all.extend(
            topology
                .node_ports()
                .into_iter()
                .map(|to| (&*topology.outside, to)),
        );
        for to in cluster_ips() {
            all.extend([
                (&*topology.client as &Place, to),
                (topology.world.node(1) as &Place, to),
            ]);
        }
        for (place, to) in all {
            let socket = place.udp_socket_for(to).expect("a socket");
            socket.connect(to).expect("connected");
            socket.set_read_timeout(Some(PATIENCE)).expect("a deadline");
            socket.send(b"?").expect("sent");
            let error = socket.recv(&mut [0; 8]).expect_err("no reply arrives");
            assert_eq!(
                error.kind(),
                std::io::ErrorKind::ConnectionRefused,
                "{} and {to}",
                place.name()
            );
        }
    }
}

/// Flags, source and destination of a TCP segment whose checksum is right or left to the NIC.
fn segment(frame: &Frame) -> Option<(u8, SocketAddr, SocketAddr)> {
    let bytes = &frame.bytes;
    let (l4, addresses) = match bytes.get(12..14)? {
        [0x08, 0x00] if *bytes.get(23)? == 6 => (34, bytes.get(26..34)?),
        [0x86, 0xdd] if *bytes.get(20)? == 6 => (54, bytes.get(22..54)?),
        _ => return None,
    };
    let (src, dst) = addresses.split_at(addresses.len() / 2);
    let ip = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).expect("sixteen bytes")),
    };
    let port = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let ends = (
        SocketAddr::new(ip(src), port(l4)?),
        SocketAddr::new(ip(dst), port(l4 + 2)?),
    );
    Some((*bytes.get(l4 + 13)?, ends.0, ends.1))
}

#[test]
fn a_backend_sees_the_masqueraded_client_and_a_refusal_is_a_reset() {
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    harness::require_root!();
    let topology = Topology::build(DEFAULTS);
    let node = topology.world.node(1);
    for to in topology.node_ports() {
        let capture = topology.backend.packet_socket("eth0").expect("a capture");
        topology.outside.ask(Probe::Tcp, to).expect("a reply");
        let is_syn = |frame: &Frame| {
            segment(frame).is_some_and(|(flags, _, dst)| flags == SYN && dst.is_ipv4() == to.is_ipv4())
        };
        let syn = capture.find(SECOND, is_syn).expect("to read").expect("a SYN");
        let (_, src, dst) = segment(&syn).expect("a segment");
        assert_eq!(src.ip(), node.address_like(to.ip()), "masqueraded");
        assert!(
            topology.backend.addresses().contains(&dst.ip()) && dst.port() == 8080,
            "{dst}"
        );
    }
    // A pod keeps its address at the cluster IP.
    for to in cluster_ips() {
        let capture = topology.backend.packet_socket("eth0").expect("a capture");
        topology.client.ask(Probe::UdpConnected, to).expect("a reply");
        let from_client = |frame: &Frame| {
            let addresses = frame.bytes.get(26..30).zip(frame.bytes.get(22..38));
            addresses.is_some_and(|(v4, v6)| {
                topology.client.addresses().iter().any(|address| match address {
                    IpAddr::V4(address) => to.is_ipv4() && v4 == address.octets(),
                    IpAddr::V6(address) => to.is_ipv6() && v6 == address.octets(),
                })
            })
        };
        assert!(
            capture.find(SECOND, from_client).expect("to read").is_some(),
            "{to}"
        );
    }
    // The service has no endpoints now.
    topology.world.apply_all(topology.service.slices([]));
    for to in topology.node_ports() {
        let refused = || {
            let error = topology.outside.ask_within(Probe::Tcp, to, SECOND).err();
            error.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        };
        eventually("to be refused", 2 * SECOND, refused);
        let capture = topology.outside.packet_socket("eth0").expect("a capture");
        assert!(refused());
        let is_reset =
            |frame: &Frame| segment(frame).is_some_and(|(flags, src, _)| flags & RST != 0 && src == to);
        assert!(capture.find(SECOND, is_reset).expect("to read").is_some(), "{to}");
    }
}
