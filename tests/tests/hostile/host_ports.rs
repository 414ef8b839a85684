//! A host port is a port of the node's own addresses. The plugin refuses a pod that asks for one at another
//! address. If a map entry has such an address all the same, it takes over nothing.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

use harness::cni::{self, Attachment, PodSpec};
use harness::{Node, NodeSpec, Place, Probe, Reply};
use proxy_common::maps::HostPort;
use proxy_common::protocol;
use serde_json::{Value, json};

use crate::topology::{CLUSTER_IP, LOCAL_BALANCER, SECOND, SOON, Topology, at, wait_served};

/// Ranges that a local route assigns to the node, and two addresses of each.
const BY_ROUTE: [(&str, [&str; 2]); 2] = [
    ("198.51.101.0/24", ["198.51.101.9", "198.51.101.8"]),
    ("2001:db8:77::/64", ["2001:db8:77::9", "2001:db8:77::8"]),
];

/// Adds a pod that asks for host ports, only to get the result.
#[track_caller]
fn add(node: &Node, name: &str, ports: &Value) -> cni::Called {
    let attachment = Attachment {
        spec: PodSpec::new(name).asking("portMappings", ports.clone()),
        netns: node.add_namespace(name),
    };
    let called = cni::call(node, "ADD", &attachment, None).expect("to call the plugin");
    if !called.success {
        // A runtime calls DEL after a failed ADD.
        cni::call(node, "DEL", &attachment, None).expect("to call the plugin");
    }
    called
}

fn port_at(address: IpAddr, port: u16, protocol: &str) -> Value {
    json!([{"hostIP": address, "hostPort": port, "containerPort": 8080, "protocol": protocol}])
}

/// Addresses that are not the node's: those of other hosts, virtual ones, and unused ones.
fn foreign(topology: &Topology) -> Vec<IpAddr> {
    let mut foreign = Vec::new();
    let places: [&Place; 3] = [&topology.outside, topology.world.node(2), &topology.web];
    for place in places {
        foreign.extend(place.addresses());
    }
    let texts = [
        "8.8.8.8",
        "169.254.169.254",
        "255.255.255.255",
        "192.168.50.255",
        "224.0.0.1",
        "2001:db8:99::1",
        "ff02::1",
    ];
    for text in [CLUSTER_IP, LOCAL_BALANCER].concat().into_iter().chain(texts) {
        foreign.push(text.parse().expect("an address"));
    }
    foreign
}

#[test]
fn a_host_port_at_an_address_that_is_not_the_nodes_is_refused() {
    harness::require_root!();
    let topology = Topology::build();
    let mut taken = Vec::new();
    for (number, address) in (0..).zip(foreign(&topology)) {
        let called = add(
            topology.node(),
            &format!("at-{number}"),
            &port_at(address, 8443, "tcp"),
        );
        if called.success {
            taken.push(address);
            continue;
        }
        let text = called.document.to_string();
        assert!(
            text.contains(&address.to_string()),
            "the error names {address}: {text}"
        );
    }
    assert!(taken.is_empty(), "host ports were given at {taken:?}");
    // The node's addresses, loopback addresses and wildcard addresses are the node's own.
    let mut own = topology.node().addresses().to_vec();
    own.extend(
        ["127.0.0.1", "::1", "127.9.9.9", "0.0.0.0", "::"]
            .map(|text| text.parse::<IpAddr>().expect("an address")),
    );
    for (number, address) in (0..).zip(own) {
        let ports = port_at(address, 8500 + number, "tcp");
        let called = add(topology.node(), &format!("own-{number}"), &ports);
        assert!(called.success, "at {address}: {}", called.document);
    }
}

/// The test writes such entries. In reality an entry may outlive its writer, and an address may change its
/// owner.
#[test]
fn a_host_port_at_a_foreign_address_captures_no_packet() {
    harness::require_root!();
    let topology = Topology::build();
    let node = topology.node();
    let everywhere = json!([
        {"hostPort": 8443, "containerPort": 8080, "protocol": "tcp"},
        {"hostPort": 8443, "containerPort": 8080, "protocol": "udp"},
    ]);
    let taker = node.add_pod_by_plugin(&PodSpec::new("taker").asking("portMappings", everywhere));
    let _taking = taker.serve(8080);
    let _real = [
        topology.outside.serve(8443),
        topology.world.node(2).serve(8443),
        topology.web.serve(8443),
    ];
    let elements = node.table::<20, 28>("HOST_PORTS");
    let places: [&Place; 3] = [&topology.outside, topology.world.node(2), &topology.web];
    let mut to_real = Vec::new();
    for place in places {
        to_real.extend(place.addresses().iter().map(|address| (place, *address)));
    }
    for address in foreign(&topology) {
        for protocol in [protocol::TCP, protocol::UDP] {
            let is_of_family = |value: &[u8; 28]| value.starts_with(&[0; 10]) == address.is_ipv4();
            let element = elements
                .iter()
                .find(|(key, value)| key[18] == protocol && is_of_family(value));
            let (_, value) = element.expect("the pod's own entries");
            let mut key = [0; 20];
            key[..16].copy_from_slice(&octets(address));
            key[16..18].copy_from_slice(&8443_u16.to_be_bytes());
            key[18] = protocol;
            node.set_element("HOST_PORTS", key, *value);
        }
    }
    // The host outside sends packets for these addresses to the node with the entries.
    let virtual_addresses = CLUSTER_IP.map(|text| text.parse::<IpAddr>().expect("an address"));
    for address in topology.web.addresses().iter().chain(&virtual_addresses) {
        topology.outside.route_via((*address).into(), node);
    }
    let clients: [&Place; 3] = [&topology.pod, node, &topology.outside];
    for client in clients {
        for probe in Probe::ALL {
            for (place, address) in &to_real {
                let to = SocketAddr::new(*address, 8443);
                let reply = client.ask(probe, to);
                let reply =
                    reply.unwrap_or_else(|error| panic!("{} asks {to} by {probe:?}: {error}", client.name()));
                assert_eq!(
                    reply.backend,
                    place.name(),
                    "{} asks {to} by {probe:?}",
                    client.name()
                );
            }
            for address in [CLUSTER_IP, LOCAL_BALANCER].concat() {
                let reply: Result<Reply, _> = client.ask_within(probe, at(address, 8443), SECOND / 2);
                let reply = reply.map(|reply| reply.backend).ok();
                assert_eq!(
                    reply,
                    None,
                    "{} asks {address} by {probe:?} for a port that it lacks",
                    client.name()
                );
            }
        }
    }
    // At the node's own addresses the host port works as requested.
    for own in node.addresses() {
        let reply = topology
            .outside
            .ask(Probe::Tcp, SocketAddr::new(*own, 8443))
            .expect("a reply");
        assert_eq!(reply.backend, "taker");
    }
}

/// Port 8443 at the first address of each range that is local by a route, and port 8444 at each address of
/// the node.
fn ports_by_route() -> Value {
    let mut ports = Vec::new();
    for protocol in ["tcp", "udp"] {
        let target = json!({"hostPort": 8444, "containerPort": 8080, "protocol": protocol});
        for (_, [named, _]) in BY_ROUTE {
            let mut port = target.clone();
            port["hostIP"] = json!(named);
            port["hostPort"] = json!(8443);
            ports.push(port);
        }
        ports.push(target);
    }
    json!(ports)
}

#[track_caller]
fn assert_translated_to(client: &Place, to: SocketAddr, backend: &str) {
    wait_served(client, to);
    for probe in Probe::ALL {
        let reply = client.ask(probe, to);
        let reply = reply.unwrap_or_else(|error| panic!("{} asks {to} by {probe:?}: {error}", client.name()));
        let who = client.name();
        assert_eq!(reply.backend, backend, "{who} asks {to} by {probe:?}");
    }
}

/// Requests host ports at addresses that no interface has.
#[track_caller]
fn assert_local_ranges_have_host_ports(topology: &Topology) {
    let node = topology.node();
    for (range, _) in BY_ROUTE {
        node.run_ip(&format!("route add local {range} dev lo"));
        topology.outside.route_via(range.parse().expect("a prefix"), node);
    }
    let spec = PodSpec::new("by-route").asking("portMappings", ports_by_route());
    let pod = node.add_pod_by_plugin(&spec);
    let _servers = pod.serve(8080);
    let _own = node.serve_tcp(8445);
    let clients: [&Place; 3] = [&topology.outside, &topology.pod, node];
    for (_, [named, other]) in BY_ROUTE {
        for client in clients {
            assert_translated_to(client, at(named, 8443), "by-route");
            for address in [named, other] {
                assert_translated_to(client, at(address, 8444), "by-route");
                // All other ports of the range remain the node's.
                let own = client.ask(Probe::Tcp, at(address, 8445));
                assert_eq!(own.expect("a reply").backend, "n1", "{address}");
            }
            // A host port at one address does not apply to another address.
            for probe in [Probe::Tcp, Probe::UdpConnected] {
                let reply = client.ask_within(probe, at(other, 8443), SECOND / 2);
                assert!(reply.is_err(), "{} asks {other}: {reply:?}", client.name());
            }
        }
    }
}

#[test]
fn a_host_port_at_an_address_that_is_local_by_a_route_reaches_its_pod() {
    harness::require_root!();
    assert_local_ranges_have_host_ports(&Topology::build());
}

/// Without socket hooks, packets of the node and of its pods are translated by programs at interfaces.
#[test]
fn a_host_port_at_an_address_that_is_local_by_a_route_reaches_its_pod_without_socket_hooks() {
    harness::require_root!();
    let topology = Topology::with(NodeSpec::millrace(), "socketLB: \"off\"\n");
    assert_local_ranges_have_host_ports(&topology);
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[test]
fn one_pod_does_not_take_all_host_ports() {
    harness::require_root!();
    let topology = Topology::build();
    let ports = |first: u16, count: u16, protocol: &str| -> Vec<Value> {
        (0..count)
            .map(|n| json!({"hostPort": first + n, "containerPort": 8080, "protocol": protocol}))
            .collect()
    };
    // The ports are outside of the node port range, which host ports cannot use.
    let many = [ports(31_000, 30_000, "udp"), ports(31_000, 30_000, "tcp")].concat();
    let greedy = add(topology.node(), "greedy", &json!(many));
    assert!(!greedy.success, "60 000 ports of one pod: {}", greedy.document);
    let text = greedy.document.to_string();
    for expected in ["60000 host ports", &HostPort::SHARE.to_string()] {
        assert!(text.contains(expected), "the error contains {expected:?}: {text}");
    }
    let modest = add(topology.node(), "modest", &json!(ports(1024, 64, "tcp")));
    assert!(modest.success, "{}", modest.document);
    let other = add(topology.node(), "other", &json!(ports(2048, 6000, "tcp")));
    let later = add(topology.node(), "later", &json!(ports(9000, 64, "tcp")));
    assert!(
        later.success,
        "after 60 000 ports of one pod and 6 000 of another: {}",
        later.document
    );
    // 6 000 ports are no attack on a table of 65 536.
    assert!(
        other.success,
        "beside 60 000 ports of another pod: {}",
        other.document
    );
    // A pod gets all of its share, and the use of it is reported.
    let share = u16::try_from(HostPort::SHARE).expect("fewer than there are ports");
    let full = add(topology.node(), "full", &json!(ports(40_000, share, "udp")));
    assert!(full.success, "{share} ports: {}", full.document);
    // The report names the last one of the pod's addresses.
    let address = full.document["ips"][1]["address"].as_str().expect("an address");
    let (pod, _length) = address.split_once('/').expect("a prefix");
    topology.assert_share_is_reported("host_ports", pod, 3 * SOON);
}

#[test]
fn a_pod_whose_host_ports_are_refused_leaves_none() {
    harness::require_root!();
    let topology = Topology::build();
    let before = topology.node().table::<20, 28>("HOST_PORTS");
    let mut ports = json!([
        {"hostPort": 8600, "containerPort": 8080, "protocol": "tcp"},
        {"hostPort": 8601, "containerPort": 8080, "protocol": "udp"},
    ]);
    let foreign =
        json!({"hostIP": topology.outside.ip(), "hostPort": 8602, "containerPort": 8080, "protocol": "tcp"});
    ports.as_array_mut().expect("a list").push(foreign);
    let called = add(topology.node(), "mixed", &ports);
    assert!(!called.success, "one of three is refused, and the ADD with it");
    assert_eq!(topology.node().table::<20, 28>("HOST_PORTS"), before);
}

/// A pod may ask for the port of an existing flow, like any other port.
#[test]
fn a_host_port_takes_no_replies_of_flows_that_were_there_first() {
    harness::require_root!();
    let topology = Topology::build();
    let (node, outside) = (topology.node(), &topology.outside);
    let _server = outside.serve_tcp(9300);
    let _resolver = outside.serve_udp(9300);
    let to = SocketAddr::new(outside.ip().into(), 9300);
    // A masqueraded flow of a pod, and a connection and a UDP exchange of the node itself.
    let mut held = topology.pod.tcp_connect(to).expect("a connection");
    let masqueraded = read_reply(&held).peer.port();
    let mut own = node.tcp_connect(to).expect("a connection");
    let ephemeral = read_reply(&own).peer.port();
    let asking = node
        .udp_bind(SocketAddr::new(node.ip().into(), 0))
        .expect("a socket");
    asking.connect(to).expect("a peer");
    let asking_port = asking.local_addr().expect("an address").port();
    let ports = json!([
        {"hostPort": masqueraded, "containerPort": 8080, "protocol": "tcp"},
        {"hostPort": ephemeral, "containerPort": 8080, "protocol": "tcp"},
        {"hostPort": asking_port, "containerPort": 8080, "protocol": "udp"},
    ]);
    let attacker = node.add_pod_by_plugin(&PodSpec::new("thief").asking("portMappings", ports));
    let _servers = attacker.serve(8080);
    for (what, stream) in [("a pod's", &mut held), ("the node's own", &mut own)] {
        stream.write_all(b"still there\n").expect("to write");
        let mut buffer = [0; 64];
        stream.set_read_timeout(Some(SOON)).expect("a deadline");
        let length = stream
            .read(&mut buffer)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(buffer[..length].ends_with(b"still there\n"), "{what}");
    }
    asking.set_read_timeout(Some(SOON)).expect("a deadline");
    asking.send(b"?").expect("to send");
    let length = asking.recv(&mut [0; 64]).expect("a reply to the node itself");
    assert!(length > 0);
    // Other clients reach the pod by these ports.
    for port in [masqueraded, ephemeral] {
        let reply = outside.ask(Probe::Tcp, SocketAddr::new(node.ip().into(), port));
        assert_eq!(reply.expect("a reply").backend, "thief");
    }
}

fn read_reply(mut from: &std::net::TcpStream) -> Reply {
    let mut buffer = [0; 256];
    from.set_read_timeout(Some(SOON)).expect("a deadline");
    let length = from.read(&mut buffer).expect("a greeting");
    Reply::parse(&String::from_utf8_lossy(&buffer[..length])).expect("a reply of a test server")
}
