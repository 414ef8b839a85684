//! A host on the link sends to services and pods with sources that no packet from outside can have. The
//! kernel drops such martians (RFC 1812 §5.3.7, RFC 1122 §3.2.1.3), and a translation must not carry them
//! past it.

use std::net::{IpAddr, SocketAddr};

use harness::cni::PodSpec;
use harness::forge::{Ethernet, link, packet};
use harness::{NodeSpec, PacketSocket, Place, Pod, Service, eventually};
use ipnet::IpNet;
use proxy_common::maps::Reason;
use serde_json::json;

use crate::topology::{
    BALANCER, CLUSTER_IP, LOCAL_BALANCER, LOCAL_CLUSTER_IP, Refusals, SECOND, SOON, Topology,
    assert_nothing_came, at, captured, counted, datagram, honest, of_family, wait_served,
};

const FORGED: &[u8] = b"forged";
const HOST_PORT: u16 = 8081;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Sends a datagram and a SYN from each of these sources to each entrance, and looks for them at the backend.
#[track_caller]
fn assert_are_no_sources(topology: &Topology, capture: &PacketSocket, sources: &[IpAddr], when: &str) {
    let forge = topology.forge();
    for source in sources {
        let mut all = topology.entrances(source.is_ipv4());
        all.push(SocketAddr::new(of_family(&topology.web, source.is_ipv4()), 9));
        let refused = Refusals::of(topology.node(), &[Reason::ForgedSource, Reason::MappedAddress]);
        for to in &all {
            forge.send(&datagram((*source, 999), *to, FORGED));
            forge.send(&packet::tcp(
                SocketAddr::new(*source, 998),
                *to,
                packet::SYN,
                1,
                FORGED,
            ));
        }
        let what = format!("{when}, in the name of {source}");
        assert_nothing_came(
            capture,
            FORGED,
            &what,
            honest(&topology.outside, at(BALANCER[0], 80)),
        );
        refused.assert_rose_by(2 * all.len() as u64, &what);
    }
}

/// The same for each mode of the reverse path filter.
#[track_caller]
fn assert_are_never_sources(topology: &Topology, sources: &[IpAddr]) {
    let capture = topology.at_web();
    for rp_filter in ["0", "1", "2"] {
        topology.node().sysctl("net/ipv4/conf/all/rp_filter", rp_filter);
        assert_are_no_sources(topology, &capture, sources, &format!("rp_filter {rp_filter}"));
    }
}

#[test]
fn martians_are_no_sources() {
    harness::require_root!();
    let topology = Topology::build();
    let martians = [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "0.1.2.3",
        "255.255.255.255",
        "224.0.0.1",
        "239.1.2.3",
        "::",
        "::1",
        "ff02::1",
        "ff0e::1",
        "::ffff:192.0.2.1",
        "::ffff:127.0.0.1",
    ];
    assert_are_never_sources(&topology, &martians.map(ip));
}

#[test]
fn an_address_of_the_node_is_no_source_from_outside() {
    harness::require_root!();
    let topology = Topology::build();
    let (node, forge) = (topology.node(), topology.forge());
    // An address of the node that is no InternalIP.
    node.run_ip("link add extra type veth peer name extra-peer");
    node.run_ip("addr add 198.51.100.7/32 dev extra");
    node.run_ip("link set extra up");
    // Addresses that are local by a route only.
    node.run_ip("route add local 198.51.101.0/24 dev lo");
    node.run_ip("-6 route add local 2001:db8:77::/64 dev lo");
    let added = ["198.51.100.7", "198.51.101.9", "2001:db8:77::9"].map(ip);
    for source in added {
        let to = topology.entrances(source.is_ipv4())[0];
        let refused = || counted(node, &[Reason::ForgedSource]);
        let before = refused();
        eventually(&format!("{source} to be refused"), SOON, || {
            // The port differs from that of the forged packets below, which must not belong to an existing
            // flow.
            forge.send(&datagram((source, 997), to, b"early"));
            refused() > before
        });
    }
    let mut sources = node.addresses().to_vec();
    sources.extend(added);
    assert_are_never_sources(&topology, &sources);
}

#[test]
fn an_address_of_the_nodes_own_pods_is_no_source_from_outside() {
    harness::require_root!();
    let topology = Topology::build();
    let mut sources = [topology.pod.addresses(), topology.web.addresses()].concat();
    // Addresses of the pod range that no pod has, and the pods' gateway.
    sources.extend(["10.244.1.200", "fd00:244:1::200", "169.254.1.1"].map(ip));
    assert_are_never_sources(&topology, &sources);
}

#[test]
fn a_virtual_address_is_no_source_from_outside() {
    harness::require_root!();
    let topology = Topology::build();
    let mut sources: Vec<IpAddr> = [CLUSTER_IP, BALANCER, LOCAL_CLUSTER_IP, LOCAL_BALANCER]
        .concat()
        .into_iter()
        .map(ip)
        .collect();
    // Addresses of a service range, assigned or not.
    sources.extend(["10.96.77.77", "fd00:96::77"].map(ip));
    assert_are_never_sources(&topology, &sources);
}

#[test]
fn an_address_of_another_node_is_a_source_and_its_broadcast_is_none() {
    harness::require_root!();
    let topology = Topology::build();
    let capture = topology.at_web();
    assert_are_no_sources(&topology, &capture, &[ip("192.168.50.255")], "on the link");
    // The rules do not apply to these: a neighbour, and a host of another network.
    for source in [
        topology.world.node(2).ip().into(),
        ip("172.31.99.2"),
        topology.world.node(2).ip6().into(),
    ] {
        let n = usize::from(source.is_ipv6());
        crate::topology::came_before(&capture, "an honest source", &mut |mark| {
            topology
                .forge()
                .send(&datagram((source, 999), at(BALANCER[n], 80), mark));
        });
    }
}

#[test]
fn source_and_destination_alike_pass_no_source_ranges_from_outside() {
    harness::require_root!();
    let topology = Topology::build();
    let service = Service::new("ranges")
        .cluster_ip("10.96.0.30")
        .cluster_ip("fd00:96::30")
        .udp("dns", 80, 8080)
        .tcp("http", 80, 8080)
        .load_balancer_ip("203.0.113.30")
        .load_balancer_ip("2001:db8:7::30")
        .set(
            "loadBalancerSourceRanges",
            json!(["192.168.50.0/24", "fd00:50::/64"]),
        );
    topology
        .world
        .apply_all(service.slices([harness::Endpoint::of(&topology.web)]));
    topology.world.apply(&service);
    for prefix in ["203.0.113.30/32", "2001:db8:7::30/128"] {
        topology
            .outside
            .route_via(prefix.parse().expect("a prefix"), topology.node());
    }
    let (capture, forge) = (captured(&topology.web), topology.forge());
    for balancer in ["203.0.113.30", "2001:db8:7::30"] {
        let to = at(balancer, 80);
        wait_served(&topology.outside, to);
        for from in [to, at(balancer, 999)] {
            forge.send(&packet::udp(from, to, FORGED));
            forge.send(&packet::tcp(from, to, packet::SYN, 1, FORGED));
        }
        assert_nothing_came(
            &capture,
            FORGED,
            "source = destination",
            honest(&topology.outside, to),
        );
    }
}

/// The rule of strict filtering also holds for packets that are translated before the kernel's check. A
/// source is accepted only on the interface of its route.
#[test]
fn a_source_whose_route_is_another_interface_is_not_translated_where_the_filter_is_strict() {
    harness::require_root!();
    let topology = Topology::with(NodeSpec::millrace(), "");
    let node = topology.node();
    node.run_ip("link add other type veth peer name other-peer");
    node.run_ip("link set other up");
    node.run_ip("link set other-peer up");
    let behind: IpNet = "198.51.100.0/24".parse().expect("a prefix");
    node.add_route(behind, None, "other");
    let (capture, forge) = (topology.at_web(), topology.forge());
    let elsewhere = (ip("198.51.100.9"), 999);
    let strict = [("all", "1"), ("eth0", "1")];
    for (interface, value) in strict {
        node.sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), value);
        // The kernel does not notify an agent of this setting, so the agent reads it every second.
        let first = topology.entrances(true)[0];
        let asked = [
            "trace",
            "--from",
            "198.51.100.9",
            "--to",
            &first.to_string(),
            "--proto",
            "udp",
            "--entry",
            "uplink",
        ];
        eventually("the programs to know", SOON * 5, || {
            node.cli(&asked).is_ok_and(|trace| trace["verdict"] == "drop")
        });
        let refused = Refusals::of(node, &[Reason::ReversePath]);
        for to in topology.entrances(true) {
            forge.send(&datagram(elsewhere, to, FORGED));
            forge.send(&packet::tcp(
                SocketAddr::new(elsewhere.0, 998),
                to,
                packet::SYN,
                1,
                FORGED,
            ));
        }
        let what = format!("rp_filter 1 of {interface}");
        assert_nothing_came(
            &capture,
            FORGED,
            &what,
            honest(&topology.outside, at(BALANCER[0], 80)),
        );
        refused.assert_rose_by(2 * topology.entrances(true).len() as u64, &what);
        node.sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0");
    }
    // Loose filters, and no filter, let it pass; the kernel applies the larger one of both settings.
    for (all, own) in [("0", "0"), ("0", "2"), ("2", "0"), ("2", "1"), ("1", "2")] {
        node.sysctl("net/ipv4/conf/all/rp_filter", all);
        node.sysctl("net/ipv4/conf/eth0/rp_filter", own);
        harness::eventually("the setting to count", crate::topology::SOON, || {
            let mark = format!("loose {:016x}", fastrand::u64(..));
            forge.send(&datagram(elsewhere, at(LOCAL_BALANCER[0], 80), mark.as_bytes()));
            let found = capture.find(crate::topology::SECOND / 4, |frame| {
                frame.carries(mark.as_bytes())
            });
            found.expect("to read").is_some()
        });
    }
}

/// kube-proxy in iptables mode sets `route_localnet` and leaves it set (CVE-2020-8558).
#[test]
fn the_loopback_of_the_node_is_reached_by_no_pod_and_no_host_outside() {
    harness::require_root!();
    let topology = Topology::build();
    let node = topology.node();
    node.sysctl("net/ipv4/conf/all/route_localnet", "1");
    let own = node.udp_bind(at("127.0.0.1", 9999)).expect("a socket");
    own.set_read_timeout(Some(SECOND)).expect("a deadline");
    let to = at("127.0.0.1", 9999);
    for (place, forge) in [
        (&topology.pod as &Place, topology.pod.forge_out()),
        (&topology.outside as &Place, topology.forge()),
    ] {
        let refused = Refusals::of(node, &[Reason::LoopbackDestination]);
        forge.send(&datagram((place.ip().into(), 999), to, FORGED));
        let came = own.recv_from(&mut [0; 64]);
        assert!(came.is_err(), "from {}: {came:?}", place.name());
        refused.assert_rose_by(1, place.name());
    }
}

/// Translated paths from outside to a backend, each with the backend's place.
fn translated_paths<'a>(
    topology: &'a Topology,
    with_host_port: &'a Pod,
    v4: bool,
) -> Vec<(&'a Place, SocketAddr)> {
    let to_services = topology.entrances(v4).into_iter().take(4);
    let mut paths: Vec<(&Place, SocketAddr)> = to_services.map(|to| (&*topology.web as &Place, to)).collect();
    paths.push((
        with_host_port,
        SocketAddr::new(of_family(topology.node(), v4), HOST_PORT),
    ));
    paths
}

fn add_pod_with_host_port(topology: &Topology) -> Pod {
    let ports = json!([{"hostPort": HOST_PORT, "containerPort": 8080, "protocol": "udp"}]);
    let spec = PodSpec::new("host-port").asking("portMappings", ports);
    topology.node().add_pod_by_plugin(&spec)
}

/// No router forwards a packet from such a source (RFC 4291 §2.5.6), and `fe80::1` is the pods' gateway.
#[test]
fn a_link_local_source_is_not_forwarded_into_a_pod() {
    harness::require_root!();
    let topology = Topology::build();
    let with_port = add_pod_with_host_port(&topology);
    let (forge, honest_source) = (topology.forge(), of_family(&topology.outside, false));
    let assert_is_no_source = |source: IpAddr, place: &Place, to: SocketAddr| {
        let what = format!("from {source} to {to}");
        let capture = captured(place);
        forge.send(&datagram((source, 999), to, FORGED));
        assert_nothing_came(&capture, FORGED, &what, |mark| {
            forge.send(&datagram((honest_source, 999), to, mark));
        });
        what
    };
    for source in ["fe80::1", "fe80::7"].map(ip) {
        for (place, to) in translated_paths(&topology, &with_port, false) {
            let refused = Refusals::of(topology.node(), &[Reason::ForgedSource]);
            let what = assert_is_no_source(source, place, to);
            refused.assert_rose_by(1, &what);
        }
        // Such packets are not translated; the kernel's own rule stops them.
        let direct = SocketAddr::new(of_family(&topology.web, false), 9);
        assert_is_no_source(source, &topology.web, direct);
    }
}

/// A reply of the pod would leave this node for the port of the other node's tunnel, which trusts this node.
#[test]
fn a_pods_reply_reaches_no_tunnels_port() {
    const TUNNEL: u16 = 8472;
    harness::require_root!();
    let topology = Topology::build();
    let with_port = add_pod_with_host_port(&topology);
    let (forge, far) = (topology.forge(), topology.world.node(2));
    for v4 in [true, false] {
        let source = of_family(far, v4);
        for (place, to) in translated_paths(&topology, &with_port, v4) {
            let what = format!("from the tunnel's port of {source} to {to}");
            let capture = captured(place);
            let refused = Refusals::of(topology.node(), &[Reason::TunnelPort]);
            forge.send(&datagram((source, TUNNEL), to, FORGED));
            // A datagram from another port of that node arrives.
            assert_nothing_came(&capture, FORGED, &what, |mark| {
                forge.send(&datagram((source, TUNNEL + 1), to, mark));
            });
            refused.assert_rose_by(1, &what);
        }
    }
}

/// Sockets that listen at all addresses receive multicast packets, which come in a frame to a group.
#[test]
fn a_packet_to_a_group_has_no_forged_source() {
    harness::require_root!();
    let topology = Topology::build();
    let node = topology.node();
    let mut sources: Vec<IpAddr> = [CLUSTER_IP, BALANCER].concat().into_iter().map(ip).collect();
    sources.extend(topology.pod.addresses());
    sources.extend(node.addresses());
    sources.extend(
        [
            "169.254.1.1",
            "127.0.0.1",
            "10.244.1.200",
            "fd00:244:1::200",
            "::1",
        ]
        .map(ip),
    );
    let multicast = [0x01, 0, 0x5e, 0, 0, 1];
    let groups = [
        (link::BROADCAST, ip("255.255.255.255")),
        (link::BROADCAST, ip("192.168.50.255")),
        (multicast, ip("224.0.0.1")),
        ([0x33, 0x33, 0, 0, 0, 1], ip("ff02::1")),
    ];
    let sockets = [at("0.0.0.0", 9998), at("::", 9999)].map(|at| {
        let socket = node.udp_bind(at).expect("a socket");
        socket.set_read_timeout(Some(SECOND / 4)).expect("a deadline");
        (socket, at.port())
    });
    let forge = topology.forge();
    for rp_filter in ["0", "2"] {
        for interface in ["all", "eth0"] {
            node.sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), rp_filter);
        }
        for (mac, group) in groups {
            let (socket, port) = &sockets[usize::from(group.is_ipv6())];
            let send = |source: IpAddr, mark: &[u8]| {
                let to = SocketAddr::new(group, *port);
                let ethernet = Ethernet {
                    to: mac,
                    ..forge.ethernet()
                };
                forge.send_frame(&ethernet.of_packet(&datagram((source, 999), to, mark)));
            };
            let refused = Refusals::of(node, &[Reason::ForgedSource]);
            let like = |source: &&IpAddr| source.is_ipv4() == group.is_ipv4();
            let forged: Vec<&IpAddr> = sources.iter().filter(like).collect();
            for source in &forged {
                send(**source, FORGED);
            }
            let what = format!("to {group}, rp_filter {rp_filter}");
            let honest = of_family(&topology.outside, group.is_ipv4());
            let mut came = Vec::new();
            eventually(&format!("an honest datagram {what}"), SOON, || {
                send(honest, b"honest");
                let mut buffer = [0; 64];
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    if from.ip() == honest {
                        return true;
                    }
                    came.push((from, buffer[..length].to_vec()));
                }
                false
            });
            assert!(came.is_empty(), "{what}: {came:?}");
            refused.assert_rose_by(forged.len() as u64, &what);
        }
    }
}
