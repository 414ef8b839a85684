//! The traffic that one node's translation must leave to another node.

use std::net::SocketAddr;
use std::time::Duration;

use harness::{Endpoint, PATIENCE, Place, Probe, Service, World, eventually};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn an_external_address_of_another_node_captures_none_of_its_packets() {
    harness::require_root!();
    let world = World::with_nodes(2);
    let client = world.node(1).add_pod("client");
    let backend = world.node(2).add_pod("backend");
    let _servers = [backend.serve_tcp(8080), world.node(2).serve_tcp(9000)];
    for node in world.nodes() {
        world.apply(&node.object());
    }
    let addresses = world.node(2).addresses().to_vec();
    let service = Service::new("web")
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:96::10")
        .tcp("http", 80, 8080)
        .set("externalIPs", json!(addresses));
    world.apply_all(service.slices([Endpoint::of(&backend)]));
    world.apply(&service);
    let _agents = world.start_agents();
    for address in addresses {
        for place in [&client as &Place, world.node(1)] {
            let ask = |port| place.ask_within(Probe::Tcp, SocketAddr::new(address, port), SECOND);
            eventually("the service", 2 * SECOND, || {
                ask(80).is_ok_and(|reply| reply.backend == "backend")
            });
            let reply = ask(9000).unwrap_or_else(|error| panic!("{} and {address}: {error}", place.name()));
            assert_eq!(reply.backend, "n2", "another port of that node");
        }
    }
}

#[test]
fn one_client_port_reaches_one_backend_by_two_nodes_and_by_none() {
    harness::require_root!();
    let world = World::with_nodes(2);
    let client = world.node(1).add_pod("client");
    let backend = world.node(2).add_pod("backend");
    let _server = backend.serve_udp(8080);
    let service = Service::new("dns")
        .cluster_ip("10.96.0.10")
        .udp("dns", 80, 8080)
        .node_port("dns", 30_080)
        .set("externalTrafficPolicy", json!("Local"));
    world.apply_all(service.slices([Endpoint::of(&backend)]));
    world.apply(&service);
    let _agents = world.start_agents();
    let from = SocketAddr::from((client.ip(), 40_000));
    let node_port = SocketAddr::from((world.node(2).ip(), 30_080));
    let cluster_ip = SocketAddr::from(([10, 96, 0, 10], 80));
    let itself = SocketAddr::from((backend.ip(), 8080));
    for to in [node_port, cluster_ip, itself, node_port, itself, cluster_ip] {
        let reply = client.ask_from(Probe::UdpConnected, from, to, PATIENCE);
        let reply = reply.unwrap_or_else(|error| panic!("{to}: {error}"));
        assert_eq!(reply.backend, "backend");
    }
}
