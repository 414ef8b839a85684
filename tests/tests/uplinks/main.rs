//! Nodes with several interfaces: packets of pods and services leave by the interface of their route, with
//! the node's address there. The agents find the uplinks themselves.

mod only_link;
mod topology;

use std::net::SocketAddr;

use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::{Endpoint, NodeSpec, Place, Probe, World, eventually, skip_if, wait_for};
use serde_json::json;

use topology::{
    BEYOND, BEYOND_CLUSTER_IP, CLUSTER_IP, NODE_PORT, SECOND, SOON, Topology, ip, near_end, service,
};

#[test]
fn hosts_on_a_second_link_are_served_and_reached() {
    harness::require_root!();
    for config in [DEFAULTS, HOOKS_OFF] {
        let topology = Topology::build(config, &[]);
        topology.assert_masqueraded(topology.far.addresses());
        topology.assert_served();
        topology.assert_others_work();
    }
}

#[test]
fn the_default_route_may_use_another_link_than_the_nodes_address() {
    harness::require_root!();
    let routes = [
        "route replace default via 172.30.1.2 dev wan0",
        "-6 route replace default via fd00:30:1::2 dev wan0",
    ];
    for config in [DEFAULTS, HOOKS_OFF] {
        let topology = Topology::build(config, &routes);
        topology.assert_masqueraded(&[topology.far.addresses(), &BEYOND.map(ip)[..]].concat());
        topology.assert_served();
        topology.assert_others_work();
    }
}

#[test]
fn a_default_route_of_another_table_makes_an_uplink() {
    harness::require_root!();
    let routes = [
        "route add default via 172.30.1.2 dev wan0 table 100",
        "rule add to 203.0.113.9 lookup 100",
        "-6 route add default via fd00:30:1::2 dev wan0 table 100",
        "-6 rule add to 2001:db8:9::9 lookup 100",
    ];
    let topology = Topology::build(DEFAULTS, &routes);
    topology.assert_masqueraded(&[topology.far.addresses(), &BEYOND.map(ip)[..]].concat());
    topology.assert_served();
    topology.assert_others_work();
}

#[test]
fn a_link_that_comes_later_is_served_and_one_that_goes_leaves_the_others_alone() {
    harness::require_root!();
    let topology = Topology::build(DEFAULTS, &[]);
    let later = topology
        .world
        .add_client_on_link(topology.world.node(1), "wan1", "later");
    let _servers = later.serve(53);
    let to = SocketAddr::new(near_end(later.addresses()[0]), NODE_PORT);
    eventually("a node port at the new link", SECOND, || {
        later.ask(Probe::Tcp, to).is_ok()
    });
    for address in later.addresses() {
        let to = SocketAddr::new(*address, 53);
        eventually("masquerade by the new link", SECOND, || {
            let reply = topology.local.ask_within(Probe::Tcp, to, SECOND / 4);
            reply.is_ok_and(|reply| reply.peer.ip().to_canonical() == near_end(*address))
        });
    }
    let node = topology.world.node(1);
    // The address changes, and the next flow uses the new one.
    node.run_ip("addr del 172.30.3.1/24 dev wan1");
    node.run_ip("addr add 172.30.3.77/24 dev wan1");
    let to = SocketAddr::new(later.addresses()[0], 53);
    eventually("the new address as source", SECOND, || {
        // A packet that leaves before the agent knows the new address carries the old one, and gets no reply.
        let reply = topology.local.ask_within(Probe::UdpConnected, to, SECOND / 8);
        reply.is_ok_and(|reply| reply.peer.ip() == ip("172.30.3.77"))
    });
    node.run_ip("link del wan1");
    topology.assert_masqueraded(topology.far.addresses());
    topology.assert_served();
}

#[test]
fn an_uplink_that_is_down_is_named_until_it_is_up() {
    harness::require_root!();
    // The second link has a default route to the outside, though not the preferred one.
    let routes = ["route add default via 172.30.1.2 dev wan0 metric 4096"];
    let topology = Topology::build(DEFAULTS, &routes);
    let node = topology.world.node(1);
    let assert_reported = |interface, why| topology.assert_reported("UplinkDown", interface, why);
    assert_reported("wan0", None);
    topology.far.run_ip("link set eth0 down");
    assert_reported("wan0", Some("is down: it has no carrier"));
    topology.far.run_ip("link set eth0 up");
    assert_reported("wan0", None);
    node.run_ip("link set eth0 down");
    let message = assert_reported("eth0", Some("is down: it is switched off"));
    topology.mend(&message, "ip link set eth0 up");
    assert_reported("eth0", None);
}

/// The kernel passes packets of a port to the bridge, so the link's addresses get no packet.
#[test]
fn an_uplink_that_is_made_a_port_of_a_bridge_is_named_until_it_is_taken_out() {
    harness::require_root!();
    let topology = Topology::build(DEFAULTS, &[]);
    let node = topology.world.node(1);
    let assert_reported = |interface, why| topology.assert_reported("UplinkIsPort", interface, why);
    assert_reported("wan0", None);
    node.run_ip("link add br9 type bridge");
    node.run_ip("link set wan0 master br9");
    let message = assert_reported("wan0", Some("a port of the bridge br9"));
    let advice = "Move the addresses and routes of wan0 to br9, or run ";
    assert!(message.contains(advice), "{message}");
    assert_reported("eth0", None);
    topology.mend(&message, "ip link set wan0 nomaster");
    assert_reported("wan0", None);
}

#[test]
fn a_second_link_lets_no_forged_source_in() {
    harness::require_root!();
    let topology = Topology::build(DEFAULTS, &[]);
    let node = topology.world.node(1);
    for rp_filter in ["0", "2"] {
        node.sysctl("net/ipv4/conf/all/rp_filter", rp_filter);
        for source in [
            node.addresses(),
            topology.local.addresses(),
            &CLUSTER_IP.map(ip),
            &["10.244.1.200", "fd00:244:1::200"].map(ip),
        ]
        .concat()
        {
            topology.assert_is_no_source(source);
        }
    }
}

/// The link stands for `WireGuard`, tun and PPP devices.
#[test]
fn a_link_without_ethernet_header_is_served() {
    harness::require_root!();
    let routes = [
        "route replace default via 172.30.1.2 dev wan0",
        "-6 route replace default via fd00:30:1::2 dev wan0",
    ];
    for config in [DEFAULTS, HOOKS_OFF] {
        let topology = Topology::build_on(World::add_client_on_tun, config, &routes);
        topology.assert_masqueraded(&[topology.far.addresses(), &BEYOND.map(ip)[..]].concat());
        topology.assert_served();
        topology.assert_others_work();
        topology.assert_takes_in_no_pods_source();
        let node = topology.world.node(1);
        let errors = || topology.agents[0].cli(&["status"])["errors"].clone();
        assert_eq!(errors(), json!([]));
        // The far host is the endpoint of a service.
        let beyond = service("beyond", BEYOND_CLUSTER_IP, 30_082);
        topology.world.apply(&beyond);
        let endpoints = [Endpoint::at(topology.far.addresses())];
        topology.world.apply_all(beyond.slices(endpoints));
        for vip in BEYOND_CLUSTER_IP {
            let to = SocketAddr::new(ip(vip), 80);
            for place in [&topology.local as &Place, node] {
                wait_for("the far host by a service", SOON, || {
                    [Probe::Tcp, Probe::UdpConnected]
                        .into_iter()
                        .try_for_each(|probe| {
                            let reply = place.ask_within(probe, to, SECOND / 2);
                            let failed = |error| format!("{} to {to}, {probe:?}: {error}", place.name());
                            reply.map(|_| ()).map_err(failed)
                        })
                });
            }
        }
    }
}

/// Packets of an IP tunnel device have a header of another kind.
#[test]
fn a_link_with_another_header_is_named() {
    harness::require_root!();
    let world = World::builder().node(NodeSpec::millrace()).build();
    let node = world.node(1);
    let mut agent = node.agent().find_uplinks().start();
    agent.wait_ready(20 * SECOND);
    let errors = || agent.cli(&["status"])["errors"].clone();
    assert_eq!(errors(), json!([]));
    let made = node
        .command("ip")
        .args("link add ipip7 type ipip remote 192.0.2.7".split(' '))
        .status();
    let has_kind = made.is_ok_and(|status| status.success());
    skip_if!((!has_kind).then(|| "no devices of kind ipip".to_owned()));
    node.run_ip("addr add 198.51.100.2/24 dev ipip7");
    node.run_ip("link set ipip7 up");
    eventually("ipip7 to be named", 3 * SECOND, || {
        let errors = errors();
        let of_link = |error: &serde_json::Value| {
            error["object"] == "interface ipip7" && error["code"] == "LinkNotServed"
        };
        errors.as_array().is_some_and(|errors| errors.iter().any(of_link))
    });
    node.run_ip("link del ipip7");
    eventually("no error", 3 * SECOND, || errors() == json!([]));
}
