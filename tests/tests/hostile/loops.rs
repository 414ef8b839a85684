//! A translation ends. No single packet makes addresses and services reply to each other for ever, regardless
//! of the servers' replies (CVE-2024-2169 is of this class).

use std::net::{IpAddr, SocketAddr};

use harness::forge::packet;
use harness::{Endpoint, Node, NodeSpec, Place, Service};
use proxy_common::maps::Reason;
use serde_json::json;

use crate::echo::{ENOUGH, Echo, LOOPING, a_hundred_questions, echo_service, wait_echoed};
use crate::topology::{
    BALANCER, CLUSTER_IP, LOCAL_BALANCER, Refusals, SECOND, SOON, Topology, at, counted, of_family,
    wait_served,
};

#[test]
fn a_datagram_between_virtual_addresses_goes_round_no_loop() {
    harness::require_root!();
    let topology = Topology::build();
    let echo = Echo::start(&topology.web, 7007);
    let _other = Echo::start(&topology.pod, 7007);
    let services = [(&topology.web, 40), (&topology.pod, 41)].map(|(pod, number)| {
        let service = echo_service(&format!("echo-{number}"), number);
        topology.world.apply_all(service.slices([Endpoint::of(pod)]));
        topology.world.apply(&service);
        for prefix in [
            format!("203.0.113.{number}/32"),
            format!("2001:db8:7::{number}/128"),
        ] {
            topology
                .outside
                .route_via(prefix.parse().expect("a prefix"), topology.node());
        }
        number
    });
    let forge = topology.forge();
    for v4 in [true, false] {
        let [own, other] = services.map(|number| {
            let texts = if v4 {
                [format!("10.96.1.{number}"), format!("203.0.113.{number}")]
            } else {
                [format!("fd00:96::1:{number}"), format!("2001:db8:7::{number}")]
            };
            texts.map(|text| at(&text, 7))
        });
        let ask = own[1];
        wait_echoed(&topology.outside, ask);
        let node = SocketAddr::new(of_family(topology.node(), v4), 30_040);
        let pairs = [
            (own[0], own[0]),
            (own[1], own[1]),
            (own[0], own[1]),
            (own[1], own[0]),
            (other[0], own[0]),
            (other[1], own[1]),
            (own[0], node),
            (other[1], node),
            (node, own[1]),
            (node, node),
        ];
        for (from, to) in pairs {
            let refused = Refusals::of(topology.node(), &[Reason::ForgedSource]);
            forge.send(&packet::udp(from, to, LOOPING));
            a_hundred_questions(&topology.outside, ask);
            let looping = echo.looping();
            assert_eq!(
                looping, 0,
                "{from} to {to}: {looping} of the loop arrived, at most {ENOUGH} got replies"
            );
            refused.assert_rose_by(1, &format!("{from} to {to}"));
        }
    }
}

/// The source is one node's port and the destination another's: each node would take the other's reply for a
/// client's datagram.
#[test]
fn a_datagram_between_ports_of_two_nodes_goes_round_no_loop() {
    harness::require_root!();
    let topology = Topology::build();
    let echo = Echo::start(&topology.web, 7007);
    let service = echo_service("echo", 40);
    topology
        .world
        .apply_all(service.slices([Endpoint::of(&topology.web)]));
    topology.world.apply(&service);
    let [n1, n2] = [1, 2].map(|number| topology.world.node(number));
    for v4 in [true, false] {
        let [one, two] = [n1, n2].map(|node| SocketAddr::new(of_family(node, v4), 30_040));
        for to in [one, two] {
            wait_echoed(&topology.outside, to);
        }
        for (to, source, entrance) in [(n1, two, one), (n2, one, two)] {
            let before = echo.looping();
            let refused = Refusals::of(to, &[Reason::ReplyLoop]);
            topology
                .outside
                .forge_to(to)
                .send(&packet::udp(source, entrance, LOOPING));
            a_hundred_questions(&topology.outside, entrance);
            let looping = echo.looping() - before;
            // The first datagram may come from a client, as far as a node can tell.
            assert!(
                looping <= 4,
                "{source} to {entrance}: {looping} of the loop arrived"
            );
            refused.assert_rose_by(1, &format!("{source} to {entrance}"));
        }
    }
}

/// Services at addresses of two nodes: each node knows the ports of both.
#[test]
fn a_datagram_between_external_addresses_of_two_nodes_goes_round_no_loop() {
    harness::require_root!();
    let topology = Topology::build();
    let [n1, n2] = [1, 2].map(|number| topology.world.node(number));
    let far = n2.add_pod("far");
    let echoes = [&*topology.web, &*far].map(|place| Echo::start(place, 7007));
    let service = |number: u8, port: u16| {
        Service::new(&format!("echo-{number}"))
            .cluster_ip(&format!("10.96.1.{number}"))
            .cluster_ip(&format!("fd00:96::1:{number}"))
            .udp("echo", port, 7007)
    };
    let [v4, v6] = [true, false].map(|v4| of_family(n1, v4).to_string());
    let one = service(40, 9).load_balancer_ip(&v4).load_balancer_ip(&v6);
    let external = [true, false].map(|v4| of_family(n2, v4).to_string());
    let two = service(41, 7).set("externalIPs", json!(external));
    for (service, pod) in [(one, &topology.web), (two, &far)] {
        topology.world.apply_all(service.slices([Endpoint::of(pod)]));
        topology.world.apply(&service);
    }
    let looping = || echoes.iter().map(Echo::looping).sum::<usize>();
    for v4 in [true, false] {
        let [one, two] = [(n1, 9), (n2, 7)].map(|(node, port)| SocketAddr::new(of_family(node, v4), port));
        for to in [one, two] {
            wait_echoed(&topology.outside, to);
        }
        for (node, source, to) in [(n1, two, one), (n2, one, two)] {
            let before = looping();
            let refused = Refusals::of(node, &[Reason::ReplyLoop]);
            let forge = topology.outside.forge_to(node);
            forge.send(&packet::udp(source, to, LOOPING));
            a_hundred_questions(&topology.outside, to);
            let came = looping() - before;
            assert!(came <= 4, "{source} to {to}: {came} of the loop arrived");
            refused.assert_rose_by(1, &format!("{source} to {to}"));
        }
    }
}

/// Services on port 7: names, addresses, and the only endpoint of each address.
const MIRRORS: [(&str, [&str; 2], [&str; 2]); 3] = [
    (
        "mirror-0",
        ["10.96.2.1", "fd00:96::2:1"],
        ["10.96.2.2", "fd00:96::2:2"],
    ),
    (
        "mirror-1",
        ["10.96.2.2", "fd00:96::2:2"],
        ["10.96.2.1", "fd00:96::2:1"],
    ),
    (
        "narcissus",
        ["10.96.2.3", "fd00:96::2:3"],
        ["10.96.2.3", "fd00:96::2:3"],
    ),
];

/// Waits until a node's list of services shows, for each address of these services, the endpoint as the only
/// backend.
#[track_caller]
fn wait_mirrors(node: &Node) {
    harness::wait_for("the services to be programmed", 10 * SECOND, || {
        let listed = node.cli(&["service", "list"]).expect("a list");
        let has_backend = |from: &str, to: &str| {
            listed.as_array().expect("a list").iter().any(|entry| {
                let backends = entry["backends"].as_array().map_or(&[][..], Vec::as_slice);
                entry["address"] == from
                    && entry["portNumber"] == 7
                    && backends.len() == 1
                    && backends[0]["address"] == at(to, 7).to_string()
            })
        };
        let mut pairs = MIRRORS.iter().flat_map(|(_, from, to)| from.iter().zip(to));
        match pairs.find(|(from, to)| !has_backend(from, to)) {
            None => Ok(()),
            Some((from, to)) => Err(format!("{to} is no backend of {from}: {listed}")),
        }
    });
}

/// The number of counts that one packet causes in a node, until its counters stop. The packet is translated
/// or refused at least once.
#[track_caller]
fn counts_of_one(node: &Node, what: &str, send: impl FnOnce()) -> u64 {
    let is_dealt_with = |reason: &Reason| {
        use Reason::{Established, Moved, NewFlow, Reply, SocketConnect, SocketSend};
        let is_translated = matches!(
            reason,
            NewFlow | Established | Moved | Reply | SocketConnect | SocketSend
        );
        is_translated || reason.is_drop()
    };
    let reasons: Vec<Reason> = Reason::ALL.iter().copied().filter(is_dealt_with).collect();
    let total = || node.counters().iter().sum::<u64>();
    let (before, all_before) = (counted(node, &reasons), total());
    send();
    harness::eventually(&format!("{what} to be translated or refused"), SOON, || {
        counted(node, &reasons) > before
    });
    let mut last = total();
    harness::eventually(&format!("the counters to rest after {what}"), SOON, || {
        std::thread::sleep(SECOND / 50);
        let now = total();
        std::mem::replace(&mut last, now) == now
    });
    last - all_before
}

/// Two services whose endpoints are each other's addresses, and one whose endpoint is its own.
#[test]
fn services_with_each_other_as_backend_make_no_loop() {
    /// The kernel lets a packet pass from program to program about eight times.
    const MOST: u64 = 64;
    harness::require_root!();
    let topology = Topology::build();
    let node = topology.node();
    for (name, from, to) in MIRRORS {
        let service = Service::new(name)
            .cluster_ip(from[0])
            .cluster_ip(from[1])
            .udp("echo", 7, 7);
        let endpoint = to.map(|ip| ip.parse::<IpAddr>().expect("an address"));
        topology
            .world
            .apply_all(service.slices([Endpoint::at(&endpoint)]));
        topology.world.apply(&service);
    }
    wait_served(&topology.outside, at(BALANCER[0], 80));
    wait_mirrors(node);
    let total = || node.counters().iter().sum::<u64>();
    for (n, v4) in [(0, true), (1, false)] {
        for (_, addresses, _) in MIRRORS {
            let to = at(addresses[n], 7);
            let sources = [
                (&*topology.outside as &Place, topology.forge()),
                (&*topology.pod as &Place, topology.pod.forge_out()),
            ];
            for (place, forge) in sources {
                let from = SocketAddr::new(of_family(place, v4), 999);
                let what = format!("a datagram from {from} to {to}");
                let counts = counts_of_one(node, &what, || forge.send(&packet::udp(from, to, LOOPING)));
                assert!(counts <= MOST, "{what} was counted {counts} times");
            }
            let socket = node.udp_socket_for(to).expect("a socket");
            let what = format!("a datagram of the node to {to}");
            let counts = counts_of_one(node, &what, || drop(socket.send_to(LOOPING, to)));
            assert!(counts <= MOST, "{what} was counted {counts} times");
            assert!(settles(&topology, total), "{to}: packets are counted without end");
        }
    }
}

/// Whether a node's packet counters come to rest. A hundred honest questions pass in each try, and each of
/// them causes a few counts.
fn settles(topology: &Topology, count: impl Fn() -> u64) -> bool {
    const QUESTIONS: u64 = 100;
    const COUNTS: u64 = 12;
    (0..10).any(|_| {
        let before = count();
        for _ in 0..QUESTIONS {
            let to = at(LOCAL_BALANCER[0], 80);
            topology.outside.ask(harness::Probe::Udp, to).expect("a reply");
        }
        count() - before < QUESTIONS * COUNTS
    })
}

/// The reply to an echo request between virtual addresses goes to a virtual address, and the exchange ends
/// there.
#[test]
fn an_echo_request_between_virtual_addresses_ends() {
    harness::require_root!();
    let topology = Topology::build();
    let forge = topology.forge();
    let node = topology.node();
    for (from, to) in [
        (BALANCER[0], BALANCER[0]),
        (CLUSTER_IP[0], BALANCER[0]),
        (BALANCER[1], LOCAL_BALANCER[1]),
        (CLUSTER_IP[1], CLUSTER_IP[1]),
    ] {
        let [from, to] = [from, to].map(|ip| ip.parse::<IpAddr>().expect("an address"));
        let refused = Refusals::of(node, &[Reason::ForgedSource]);
        forge.send(&packet::echo(from, to, true, 7, LOOPING));
        assert!(
            settles(&topology, || node.counters().iter().sum()),
            "{from} to {to}"
        );
        refused.assert_rose_by(1, &format!("an echo request of {from} to {to}"));
    }
}

/// Addresses of nodes that their Node objects lack: at these addresses each node is an unknown host to the
/// other one.
#[test]
fn a_datagram_between_ports_at_unlisted_addresses_goes_round_no_loop() {
    const ADDRESSES: [&str; 2] = ["192.168.50.211", "192.168.50.212"];
    harness::require_root!();
    let topology = Topology::with(NodeSpec::millrace(), "nodePortAddresses: [192.168.50.0/24]\n");
    for (number, address) in (1..).zip(ADDRESSES) {
        let node = topology.world.node(number);
        node.run_ip(&format!("addr add {address}/24 dev eth0"));
    }
    let echo = Echo::start(&topology.web, 7007);
    let service = echo_service("echo", 40);
    topology
        .world
        .apply_all(service.slices([Endpoint::of(&topology.web)]));
    topology.world.apply(&service);
    let [one, two] = ADDRESSES.map(|address| at(address, 30_040));
    for to in [one, two] {
        wait_echoed(&topology.outside, to);
    }
    let before = echo.looping();
    let refused = Refusals::of(topology.world.node(1), &[Reason::ReplyLoop]);
    let forge = topology.outside.forge_to(topology.world.node(1));
    forge.send(&packet::udp(two, one, LOOPING));
    a_hundred_questions(&topology.outside, one);
    let looping = echo.looping() - before;
    assert!(looping <= 4, "{looping} of the loop arrived");
    refused.assert_rose_by(1, "between unlisted addresses");
}

/// Clients of NTP, IKE and SIP ask from the number of the service's own port.
#[test]
fn a_client_asks_from_the_number_of_the_services_port() {
    harness::require_root!();
    let topology = Topology::build();
    let _echo = Echo::start(&topology.web, 7007);
    let node = of_family(topology.world.node(1), true);
    let service = echo_service("echo", 40).load_balancer_ip(&node.to_string());
    topology
        .world
        .apply_all(service.slices([Endpoint::of(&topology.web)]));
    topology.world.apply(&service);
    let prefix = "203.0.113.40/32".parse().expect("a prefix");
    topology.outside.route_via(prefix, topology.node());
    for to in [SocketAddr::new(node, 7), at("203.0.113.40", 7)] {
        wait_echoed(&topology.outside, to);
        let socket = topology
            .outside
            .udp_bind(at("0.0.0.0", to.port()))
            .expect("a socket");
        socket.set_read_timeout(Some(SECOND)).expect("a deadline");
        socket.send_to(b"time?", to).expect("to send");
        let mut buffer = [0; 16];
        let reply = socket.recv_from(&mut buffer);
        assert_eq!(reply.expect("a reply"), (5, to));
    }
}
