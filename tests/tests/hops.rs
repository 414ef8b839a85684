//! The node is a hop like any router. If a packet's time to live ends here, its sender gets an error from the
//! node's address (RFC 1812 §5.2.7.3, RFC 4443 §3.3). That also holds for programs that forward in the
//! stack's place.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::{
    Client, Endpoint, Frame, Node, NodeSpec, PATIENCE, Probe, Service, TimeExceeded, World, eventually,
};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

const SECOND: Duration = Duration::from_secs(1);

/// Sends a packet of `hops` hops and waits for the error about it.
fn send(client: &Client, kind: Type, to: SocketAddr, hops: u32) -> Option<TimeExceeded> {
    let capture = client.packet_socket("eth0").expect("a capture");
    let protocol = if kind == Type::DGRAM {
        Protocol::UDP
    } else {
        Protocol::TCP
    };
    let socket: Socket = client
        .socket(Domain::for_address(to), kind, Some(protocol))
        .expect("a socket");
    if to.is_ipv4() {
        socket.set_ttl_v4(hops).expect("to set");
    } else {
        socket.set_unicast_hops_v6(hops).expect("to set");
    }
    socket.set_nonblocking(true).expect("to set");
    // For TCP this sends the SYN, and `EINPROGRESS` is no failure.
    let _ = socket.connect(&to.into());
    if kind == Type::DGRAM {
        socket.send(b"?").expect("to send");
    }
    let port = socket.local_addr().ok()?.as_socket()?.port().to_be_bytes();
    let is_ours = |frame: &Frame| TimeExceeded::read(frame).is_some_and(|error| error.ports[..2] == port);
    let frame = capture.find(SECOND, is_ours).expect("to read")?;
    TimeExceeded::read(&frame)
}

fn own_address(node: &Node, like: IpAddr) -> IpAddr {
    let mut held = node.addresses().iter().copied();
    held.find(|ip| ip.is_ipv4() == like.is_ipv4())
        .expect("an address")
}

#[test]
fn the_node_sends_time_exceeded() {
    harness::require_root!();
    for config in [DEFAULTS, HOOKS_OFF] {
        let world = World::builder()
            .node(NodeSpec::millrace())
            .node(NodeSpec::millrace())
            .build();
        let outside = world.add_client("outside");
        let _agents = world.start_agents_with(config);
        let node = world.node(1);
        let pods = [node.add_pod("local"), world.node(2).add_pod("remote")];
        let _servers: Vec<_> = pods.iter().flat_map(|pod| pod.serve(8080)).collect();
        let mut entrances = Vec::new();
        for (n, pod) in pods.iter().enumerate() {
            for (policy, offset) in [("Cluster", 0), ("Local", 2)] {
                if policy == "Local" && pod.name() == "remote" {
                    continue;
                }
                let number = 66 + n + offset;
                let port = 30_080 + u16::try_from(n + offset).expect("small");
                let balancers = [format!("203.0.113.{number}"), format!("2001:db8:66::{number}")];
                let service = Service::new(&format!("{}-{}", pod.name(), policy.to_lowercase()))
                    .cluster_ip(&format!("10.96.0.{number}"))
                    .cluster_ip(&format!("fd00:96::{number}"))
                    .tcp("http", 80, 8080)
                    .udp("dns", 80, 8080)
                    .node_port("http", port)
                    .node_port("dns", port)
                    .set("externalTrafficPolicy", json!(policy))
                    .load_balancer_ip(&balancers[0])
                    .load_balancer_ip(&balancers[1]);
                world.apply(&service);
                world.apply_all(service.slices([Endpoint::of(pod)]));
                for balancer in &balancers {
                    let ip: IpAddr = balancer.parse().expect("an address");
                    outside.route_via(ip.into(), node);
                    entrances.push(SocketAddr::new(ip, 80));
                }
                entrances.extend(node.addresses().iter().map(|ip| SocketAddr::new(*ip, port)));
            }
        }
        for to in entrances {
            eventually(&format!("{to}"), PATIENCE, || outside.ask(Probe::Tcp, to).is_ok());
            for kind in [Type::DGRAM, Type::STREAM] {
                let error = send(&outside, kind, to, 1);
                let error = error.unwrap_or_else(|| panic!("{kind:?} to {to}: no error ({config})"));
                assert_eq!(error.to, to.ip(), "{kind:?}: what was sent");
                assert_eq!(error.from, own_address(node, to.ip()), "{kind:?} to {to}");
                assert_eq!(error.ports[2..], to.port().to_be_bytes());
            }
        }
    }
}
