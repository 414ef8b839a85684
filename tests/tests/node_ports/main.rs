//! Access to services from outside the cluster: node ports, addresses of load balancers, external addresses,
//! their policies, and the client that a backend sees.

mod local_ports;
mod options;
mod topology;

use std::io::ErrorKind;

use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::{Endpoint, Place, Probe, assert_even, eventually};
use serde_json::json;

use topology::{PORT, SECOND, Topology, addresses, ask, peers};

#[test]
fn a_client_outside_reaches_pods_of_every_node_by_any_address_as_the_node() {
    harness::require_root!();
    let topology = Topology::build(|service| service);
    let _agents = topology.world.start_agents();
    let everything = [
        (1, topology.node_port(1)),
        (2, topology.node_port(2)),
        (1, addresses(["203.0.113.7", "2001:db8:7::7"], 80)),
        (2, addresses(["198.51.100.7", "2001:db8:8::7"], 80)),
    ];
    for (number, frontends) in everything {
        for to in frontends {
            let node = topology.world.node(number).address_like(to.ip());
            for probe in Probe::ALL {
                assert_eq!(
                    peers(&topology.outside, probe, to, &["a", "b"]),
                    [node],
                    "{to} {probe:?}"
                );
            }
            assert_even(&topology.outside, Probe::Tcp, to, 2_000, &["a", "b"]);
        }
    }
}

#[test]
fn under_policy_local_clients_outside_keep_their_address_and_stay_on_the_node() {
    harness::require_root!();
    let topology = Topology::build(|service| service.set("externalTrafficPolicy", json!("Local")));
    let _agents = topology.world.start_agents();
    for (number, backend) in [(1, "a"), (2, "b")] {
        let mut frontends = topology.node_port(number);
        if number == 1 {
            frontends.extend(addresses(["203.0.113.7", "2001:db8:7::7"], 80));
        }
        for to in frontends {
            let client = *topology
                .outside
                .addresses()
                .iter()
                .find(|address| address.is_ipv4() == to.is_ipv4())
                .expect("an address");
            for probe in Probe::ALL {
                assert_eq!(
                    peers(&topology.outside, probe, to, &[backend]),
                    [client],
                    "{to} {probe:?}"
                );
            }
        }
    }
    // The policy does not apply to pods of the node and the node itself.
    for to in topology.node_port(1) {
        for probe in Probe::ALL {
            peers(&topology.clients[0], probe, to, &["a", "b"]);
            peers(topology.world.node(1), probe, to, &["a", "b"]);
        }
    }
    // Without an endpoint on the node there is no reply, so that a balancer outside tries another node.
    topology.endpoints(&["b"]);
    let to = topology.node_port(1)[0];
    eventually("silence", 2 * SECOND, || {
        let error = topology.outside.ask_within(Probe::Tcp, to, SECOND / 4).err();
        error.is_some_and(|error| error.kind() == ErrorKind::TimedOut)
    });
    assert_eq!(ask(&topology.clients[0], Probe::Tcp, to).backend, "b");
}

#[test]
fn pods_and_nodes_reach_node_ports_with_and_without_socket_hooks() {
    harness::require_root!();
    let topology = Topology::build(|service| service);
    for config in [DEFAULTS, HOOKS_OFF] {
        let _agents = topology.world.start_agents_with(config);
        for number in [1, 2] {
            for to in topology.node_port(number) {
                for probe in Probe::ALL {
                    for place in [
                        &topology.clients[0] as &Place,
                        &topology.clients[1],
                        topology.world.node(1),
                    ] {
                        peers(place, probe, to, &["a", "b"]);
                    }
                }
            }
        }
        if config == DEFAULTS {
            for to in addresses(["127.0.0.1", "::1"], PORT) {
                for probe in [Probe::Tcp, Probe::Udp] {
                    peers(topology.world.node(1), probe, to, &["a", "b"]);
                }
                let error = topology.clients[0].ask_within(Probe::Tcp, to, SECOND);
                assert!(error.is_err(), "a pod's loopback is its own");
            }
        }
    }
}

#[test]
fn a_process_of_the_node_is_a_backend_and_sees_its_clients() {
    harness::require_root!();
    let topology = Topology::build(|service| service);
    let node = topology.world.node(1);
    let _servers = node.serve(8080);
    topology
        .world
        .apply_all(topology.service.slices([Endpoint::on_host(node)]));
    for config in [DEFAULTS, HOOKS_OFF] {
        let _agents = topology.world.start_agents_with(config);
        for to in topology.node_port(1) {
            let client = topology
                .outside
                .addresses()
                .iter()
                .find(|address| address.is_ipv4() == to.is_ipv4());
            for probe in Probe::ALL {
                let seen = peers(&topology.outside, probe, to, &["n1"]);
                assert_eq!(Some(&seen[0]), client, "{to} {probe:?}");
                peers(&topology.clients[0], probe, to, &["n1"]);
                peers(node, probe, to, &["n1"]);
            }
        }
        for to in topology.node_port(2) {
            for probe in Probe::ALL {
                peers(&topology.outside, probe, to, &["n1"]);
                peers(&topology.clients[0], probe, to, &["n1"]);
            }
        }
    }
}

#[test]
fn a_service_without_endpoints_rejects_clients_outside() {
    harness::require_root!();
    let topology = Topology::build(|service| service);
    topology.endpoints(&[]);
    let _agents = topology.world.start_agents();
    let refused = |to| {
        let tcp = topology
            .outside
            .ask_within(Probe::Tcp, to, SECOND)
            .err()
            .map(|error| error.kind());
        let udp = topology
            .outside
            .ask_within(Probe::UdpConnected, to, SECOND)
            .err()
            .map(|error| error.kind());
        assert_eq!(
            (tcp, udp),
            (
                Some(ErrorKind::ConnectionRefused),
                Some(ErrorKind::ConnectionRefused)
            ),
            "{to}"
        );
    };
    for to in topology.node_port(1) {
        refused(to);
    }
    for port in [80, 81] {
        for to in addresses(["203.0.113.7", "2001:db8:7::7"], port) {
            refused(to);
        }
    }
}
