//! Pods and the world beyond their network. Their packets leave with the node's address, and ports of the
//! node lead to them. No pod sends with a foreign source. The tests use pods that `millrace-cni` made, real
//! sockets, and captures.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use harness::cni::PodSpec;
use harness::config::DEFAULTS;
use harness::{Agent, Client, NodeSpec, Place, Pod, Probe, Server, World, eventually};
use proxy_common::maps::Reason;
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);

/// Two nodes whose pod network is Millrace's, and a client in a subnet of its own without a route to pods.
struct Topology {
    world: World,
    outside: Client,
    agents: Vec<Agent>,
}

impl Topology {
    fn build(config: &str) -> Self {
        let spec = || NodeSpec::millrace().strict_rp_filter();
        let world = World::builder().node(spec()).node(spec()).build();
        let outside = world.add_remote_client("outside");
        let agents = world.start_agents_with(&format!("{DEFAULTS}{config}"));
        Self {
            world,
            outside,
            agents,
        }
    }
}

fn of_family(addresses: &[IpAddr], like: IpAddr) -> IpAddr {
    let found = addresses
        .iter()
        .find(|address| address.is_ipv4() == like.is_ipv4());
    *found.expect("an address of that family")
}

/// Asks, and returns the backend's name and the client address that it saw.
#[track_caller]
fn seen_as(place: &Place, probe: Probe, to: SocketAddr) -> (String, IpAddr) {
    let reply = place
        .ask(probe, to)
        .unwrap_or_else(|error| panic!("{} asks {to} by {probe:?}: {error}", place.name()));
    (reply.backend, reply.peer.ip().to_canonical())
}

/// Source address of a frame.
fn source(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.get(12..14)? {
        [0x08, 0x00] => Some(<[u8; 4]>::try_from(bytes.get(26..30)?).ok()?.into()),
        [0x86, 0xdd] => Some(<[u8; 16]>::try_from(bytes.get(22..38)?).ok()?.into()),
        _ => None,
    }
}

#[test]
fn packets_of_pods_to_outside_carry_the_nodes_address() {
    harness::require_root!();
    let topology = Topology::build("");
    let _servers = topology.outside.serve(8080);
    let capture = topology.outside.packet_socket("eth0").expect("a capture");
    for number in [1, 2] {
        let node = topology.world.node(number);
        let pod = node.add_pod(&format!("pod-{number}"));
        for outside in topology.outside.addresses() {
            let own = of_family(node.addresses(), *outside);
            for probe in Probe::ALL {
                for _ in 0..5 {
                    let (_, peer) = seen_as(&pod, probe, SocketAddr::new(*outside, 8080));
                    assert_eq!(peer, own, "by {probe:?}");
                }
            }
            pod.ping(*outside, 3 * SECOND).expect("an echo reply");
            large_datagrams(&pod, SocketAddr::new(*outside, 8080), own);
        }
        let addresses = pod.addresses().to_vec();
        while let Some(frame) = capture.receive(Duration::ZERO).expect("to read") {
            let from = source(&frame.bytes);
            assert!(
                !addresses.iter().any(|pod| from == Some(*pod)),
                "a pod's own address came out: {from:?}"
            );
        }
    }
}

/// A cloud's metadata server has a link-local address on the link, and knows only the addresses of machines.
#[test]
fn packets_of_pods_to_a_metadata_server_carry_the_nodes_address() {
    const METADATA: &str = "169.254.169.254";
    harness::require_root!();
    let topology = Topology::build("");
    let server = topology.world.add_client("metadata");
    server.run_ip(&format!("addr add {METADATA}/32 dev eth0"));
    let address: IpAddr = METADATA.parse().expect("an address");
    let listener = server.tcp_listen(80).expect("a listener");
    let socket = server.udp_bind(SocketAddr::new(address, 8053)).expect("a socket");
    socket.set_read_timeout(Some(3 * SECOND)).expect("a deadline");
    for number in [1, 2] {
        let node = topology.world.node(number);
        node.run_ip(&format!("route add {METADATA}/32 dev eth0"));
        let pod = node.add_pod(&format!("pod-{number}"));
        let own = IpAddr::from(node.ip());
        let _near = pod
            .tcp_connect(SocketAddr::new(address, 80))
            .expect("a connection");
        let (_far, peer) = listener.accept().expect("a connection");
        assert_eq!(peer.ip().to_canonical(), own);
        let to = SocketAddr::new(address, 8053);
        let asking = pod.udp_socket_for(to).expect("a socket");
        asking.set_read_timeout(Some(3 * SECOND)).expect("a deadline");
        asking.send_to(b"?", to).expect("to send");
        let mut buffer = [0; 8];
        let (_, peer) = socket.recv_from(&mut buffer).expect("a question");
        assert_eq!(peer.ip().to_canonical(), own);
        socket.send_to(b"!", peer).expect("to reply");
        assert_eq!(asking.recv_from(&mut buffer).expect("a reply"), (1, to));
        pod.ping(address, 3 * SECOND).expect("an echo reply");
    }
}

/// Datagrams in fragments get replies in fragments. A later fragment that overtakes its first one is lost, as
/// with other implementations.
#[track_caller]
fn large_datagrams(place: &Place, to: SocketAddr, seen_as: IpAddr) {
    const SENT: usize = 10;
    let socket = place.udp_socket_for(to).expect("a socket");
    socket.set_read_timeout(Some(SECOND)).expect("a deadline");
    let mut buffer = vec![0; 8192];
    let mut replied = 0;
    for number in 0..SENT {
        let text = format!("{number}{}", "x".repeat(4000));
        socket.send_to(text.as_bytes(), to).expect("to send");
        // A late answer belongs to another question.
        while let Ok((len, _)) = socket.recv_from(&mut buffer) {
            let reply = String::from_utf8_lossy(&buffer[..len]);
            let peer = harness::Reply::parse(&reply).expect("a reply").peer;
            assert_eq!(peer.ip().to_canonical(), seen_as);
            if reply.ends_with(&text) {
                replied += 1;
                break;
            }
        }
    }
    assert!(replied > SENT / 2, "{to}: {replied} of {SENT} got whole replies");
}

#[test]
fn pods_and_nodes_reach_pods_with_their_own_addresses() {
    harness::require_root!();
    let topology = Topology::build("");
    let pods = [1, 2].map(|number| topology.world.node(number).add_pod(&format!("pod-{number}")));
    let _servers = pods[0].serve(8080);
    let clients: [&Place; 2] = [&pods[1], topology.world.node(2)];
    for client in clients {
        for target in pods[0].addresses() {
            let own = of_family(client.addresses(), *target);
            for probe in Probe::ALL {
                // A masqueraded reply would not reach the socket that asked.
                for _ in 0..3 {
                    let (_, peer) = seen_as(client, probe, SocketAddr::new(*target, 8080));
                    assert_eq!(peer, own, "{} by {probe:?}", client.name());
                }
            }
            client.ping(*target, 3 * SECOND).expect("an echo reply");
        }
    }
}

#[test]
fn packets_to_configured_ranges_keep_the_pods_addresses() {
    harness::require_root!();
    let topology = Topology::build("nonMasqueradeCIDRs: [172.31.0.0/16, \"fd00:31::/32\"]\n");
    let node = topology.world.node(1);
    for range in node.pod_cidrs() {
        topology.outside.route_via(range, node);
    }
    let _servers = topology.outside.serve(8080);
    let pod = node.add_pod("pod");
    for outside in topology.outside.addresses() {
        let own = of_family(pod.addresses(), *outside);
        for probe in Probe::ALL {
            let (_, peer) = seen_as(&pod, probe, SocketAddr::new(*outside, 8080));
            assert_eq!(peer, own, "by {probe:?}");
        }
        pod.ping(*outside, 3 * SECOND).expect("an echo reply");
    }
}

#[test]
fn a_pod_that_lost_its_gateways_hardware_address_asks_for_it() {
    harness::require_root!();
    let topology = Topology::build("");
    let node = topology.world.node(1);
    let _servers = topology.outside.serve(8080);
    let limit = json!({"ingressRate": 50_000_000, "egressRate": 50_000_000});
    let pods = [
        node.add_pod("plain"),
        node.add_pod_by_plugin(&PodSpec::new("limited").asking("bandwidth", limit)),
    ];
    for pod in &pods {
        for (gateway, outside) in ["169.254.1.1", "fe80::1"]
            .into_iter()
            .zip(topology.outside.addresses())
        {
            let to = SocketAddr::new(*outside, 8080);
            seen_as(pod, Probe::Tcp, to);
            pod.run_ip(&format!("neigh del {gateway} dev eth0"));
            for probe in Probe::ALL {
                seen_as(pod, probe, to);
            }
        }
    }
}

#[test]
fn a_pod_that_forges_arp_leaves_the_nodes_neighbours_alone() {
    harness::require_root!();
    let world = World::builder().node(NodeSpec::millrace()).build();
    let _agents = world.start_agents();
    let node = world.node(1);
    let pod = node.add_pod("pod");
    // Strict filtering would drop a message with a sender of another link.
    for interface in ["all", pod.host_interface()] {
        node.sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0");
    }
    let socket = pod.packet_socket("eth0").expect("a socket");
    let IpAddr::V4(asked) = of_family(node.addresses(), IpAddr::from([0, 0, 0, 0])) else {
        panic!("an IPv4 address");
    };
    for number in 1..=100 {
        let sender = [198, 51, 100, number];
        let mac = [2, 0, 0, 0, 1, number];
        let mut frame = vec![0xff; 6];
        frame.extend(mac);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(mac);
        frame.extend(sender);
        frame.extend([0; 6]);
        frame.extend(asked.octets());
        socket.send(&frame).expect("to send");
    }
    // The node has handled the frames before this one when it replies.
    pod.ping(asked.into(), 3 * SECOND).expect("an echo reply");
    let neighbours = node
        .command("ip")
        .args(["-4", "neigh", "show", "dev", pod.host_interface()])
        .output()
        .expect("ip");
    let neighbours = String::from_utf8_lossy(&neighbours.stdout).into_owned();
    let own = pod.ip().to_string();
    assert!(
        neighbours.lines().count() == 1 && neighbours.starts_with(&own),
        "{neighbours}"
    );
}

/// A pod with host ports: 8081 at all addresses by TCP and UDP, and 8082 at the loopback address.
fn with_host_ports(node: &harness::Node, name: &str) -> (Pod, [Server; 2]) {
    let spec = PodSpec::new(name).asking(
        "portMappings",
        json!([
            {"hostPort": 8081, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8081, "containerPort": 80, "protocol": "udp"},
            {"hostPort": 8082, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
        ]),
    );
    let pod = node.add_pod_by_plugin(&spec);
    let servers = pod.serve(80);
    (pod, servers)
}

#[test]
fn host_ports_reach_their_pod_from_every_source() {
    harness::require_root!();
    for hooks in ["all", "off"] {
        let topology = Topology::build(&format!("socketLB: \"{hooks}\"\n"));
        let node = topology.world.node(1);
        let (web, _servers) = with_host_ports(node, "web");
        let near = node.add_pod("near");
        let far = topology.world.node(2).add_pod("far");
        for own in node.addresses() {
            let to = SocketAddr::new(*own, 8081);
            for probe in Probe::ALL {
                let what = format!("hooks {hooks}, {probe:?} to {to}");
                let like = |place: &Place| of_family(place.addresses(), *own);
                let asked = |place: &Place| seen_as(place, probe, to);
                assert_eq!(
                    asked(&topology.outside),
                    ("web".into(), like(&topology.outside)),
                    "{what}"
                );
                assert_eq!(asked(&near), ("web".into(), like(&near)), "{what}");
                // The pod sees the address of the client's node, as all hosts beyond the pod network do.
                let from_far = of_family(topology.world.node(2).addresses(), *own);
                assert_eq!(asked(&far), ("web".into(), from_far), "{what}");
                assert_eq!(asked(&web).0, "web", "{what}, by the pod itself");
                assert_eq!(asked(node).0, "web", "{what}, by the node");
            }
        }
        let loopback: SocketAddr = "127.0.0.1:8081".parse().expect("an address");
        let own: SocketAddr = "127.0.0.1:8082".parse().expect("an address");
        for probe in [Probe::Tcp, Probe::Udp].into_iter().filter(|_| hooks == "all") {
            assert_eq!(seen_as(node, probe, loopback).0, "web");
        }
        if hooks == "all" {
            assert_eq!(seen_as(node, Probe::Tcp, own).0, "web");
        }
        let elsewhere = SocketAddr::new(node.addresses()[0], 8082);
        let refused = topology.outside.ask_within(Probe::Tcp, elsewhere, SECOND);
        assert!(
            refused.is_err(),
            "a port of the loopback was reached from outside"
        );
        let listed = topology.agents[0].cli(&["service", "list"]);
        let ports = listed.as_array().expect("a list").iter();
        let ports = ports.filter(|entry| entry["kind"] == "HostPort").count();
        assert_eq!(ports, 5, "{listed}");
        let traced = topology.agents[0].cli(&[
            "trace",
            "--from",
            &topology.outside.addresses()[0].to_string(),
            "--to",
            &SocketAddr::new(node.addresses()[0], 8081).to_string(),
            "--proto",
            "tcp",
        ]);
        assert_eq!(
            (&traced["verdict"], &traced["kind"], &traced["service"]),
            (&json!("forward"), &json!("HostPort"), &json!(null)),
            "{traced}"
        );
        assert_eq!(
            traced["backends"][0]["address"],
            SocketAddr::new(web.addresses()[0], 80).to_string()
        );
    }
}

#[test]
fn datagrams_to_a_host_port_go_to_the_pod_that_has_it_now() {
    harness::require_root!();
    let topology = Topology::build("");
    let node = topology.world.node(1);
    let to = SocketAddr::new(node.addresses()[0], 8081);
    let socket = topology.outside.udp_socket_for(to).expect("a socket");
    socket.connect(to).expect("to connect");
    let ask = || -> anyhow::Result<String> {
        socket.send(b"?")?;
        let mut buffer = [0; 256];
        let len = socket.recv(&mut buffer)?;
        Ok(harness::Reply::parse(&String::from_utf8_lossy(&buffer[..len]))?.backend)
    };
    let (first, servers) = with_host_ports(node, "first");
    assert_eq!(ask().expect("a reply"), "first");
    drop(servers);
    first.delete();
    let (_second, _servers) = with_host_ports(node, "second");
    assert_eq!(ask().expect("a reply"), "second");
}

#[test]
fn no_pod_sends_from_a_foreign_address() {
    harness::require_root!();
    let topology = Topology::build("");
    let node = topology.world.node(1);
    let [pod, target] = ["pod", "target"].map(|name| node.add_pod(name));
    let [tcp, udp] = target.serve(8080);
    let dropped = || node.counters()[Reason::SpoofedSource as usize];
    assert_eq!(dropped(), 0, "traffic of the pod's own stack");
    for (foreign, to) in [("10.9.9.9", 0), ("fd00:9::9", 1)] {
        let to = SocketAddr::new(target.addresses()[to], 8080);
        seen_as(&pod, Probe::Udp, to);
        let (before, served) = (dropped(), udp.served());
        let length = if to.is_ipv4() { 32 } else { 128 };
        pod.run_ip(&format!("addr add {foreign}/{length} dev eth0"));
        let from = SocketAddr::new(foreign.parse().expect("an address"), 0);
        eventually("a datagram in another's name to be dropped", 5 * SECOND, || {
            // There is no reply to this datagram.
            let _ = pod.ask_from(Probe::Udp, from, to, Duration::from_millis(20));
            dropped() > before
        });
        assert_eq!(udp.served(), served, "and none came through");
        seen_as(&pod, Probe::Udp, to);
    }
    drop(tcp);
}
