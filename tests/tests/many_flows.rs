//! More connections than a client, a backend or a table can hold at once.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use harness::config::DEFAULTS;
use harness::{Endpoint, Probe, Service, World};

const PORT: u16 = 30_080;
const CONNECTIONS: usize = 50_000;
const THREADS: usize = 4;

#[test]
fn fifty_thousand_short_connections_of_one_client_fail_none() {
    harness::require_root!();
    let world = World::with_nodes(2);
    let outside = world.add_client("outside");
    outside.sysctl("net/ipv4/ip_local_port_range", "1024 65535");
    let backend = world.node(2).add_pod("backend");
    let _server = backend.serve_tcp(8080);
    let service = Service::new("web")
        .cluster_ip("10.96.0.10")
        .tcp("http", 80, 8080)
        .node_port("http", PORT);
    world.apply(&service);
    world.apply_all(service.slices([Endpoint::of(&backend)]));
    let agents = world.start_agents();
    let to = SocketAddr::new(world.node(1).ip().into(), PORT);
    let node = world.node(1).address_like(to.ip());
    // A reset closes each connection, so that the client's port is free again at once.
    let ask = || {
        for _ in 0..CONNECTIONS / THREADS {
            let reply = outside.ask(Probe::Tcp, to).expect("a reply");
            assert_eq!(reply.peer.ip().to_canonical(), node);
        }
    };
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(ask);
        }
    });
    let status = agents[0].cli(&["status"]);
    assert_eq!(status["ready"], true);
}

#[test]
fn masqueraded_flows_use_no_port_of_the_nodes_own_sockets() {
    harness::require_root!();
    let world = World::with_nodes(2);
    let outside = world.add_client("outside");
    let node = world.node(1);
    let backend = world.node(2).add_pod("backend");
    let _servers = backend.serve(8080);
    let service = Service::web().node_port("http", PORT).node_port("dns", PORT);
    world.apply(&service);
    world.apply_all(service.slices([Endpoint::of(&backend)]));
    let two_ports = format!("{DEFAULTS}masqueradePorts: 20000-20001\n");
    let mut agent = node.agent().config(&two_ports).start();
    agent.wait_ready(Duration::from_secs(10));
    // One of the two ports is taken. Ports are drawn sixteen times, so the free one is almost certainly
    // found.
    let _tcp = node.tcp_listen(20_000).expect("bound");
    let bind = |address: &IpAddr| node.udp_bind(SocketAddr::new(*address, 20_000)).expect("bound");
    let _udp: Vec<_> = node.addresses().iter().map(bind).collect();
    for address in node.addresses() {
        for (probe, times) in [(Probe::Tcp, 20), (Probe::UdpConnected, 1)] {
            for _ in 0..times {
                let reply = outside
                    .ask(probe, SocketAddr::new(*address, PORT))
                    .expect("a reply");
                assert_eq!(reply.peer.port(), 20_001, "{address} {probe:?}");
            }
        }
    }
}
