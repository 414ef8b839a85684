//! Traffic goes on in full while the agent is away.
//!
//! The variable `MILLRACE_KILLS` sets how often the agents are killed.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::manifest::Family;
use harness::{
    Agent, ConnectStream, Endpoint, EndpointSlice, LongFlows, Place, Pod, Probe, Service, World, address,
    eventually,
};
use proxy_common::maps::Reason;

const VIP: &str = "10.96.0.10:80";
const VIP6: &str = "[fd00:96::10]:80";
const NODE_PORT: u16 = 30_080;
/// The default number of kills.
const KILLS: usize = 20;
/// The longest wait of a line of a connection for its answer, and of a new connection for its first line.
const UNNOTICED: Duration = Duration::from_secs(1);

/// The node port at every address of every node.
fn node_ports(world: &World) -> Vec<SocketAddr> {
    let addresses = world.nodes().iter().flat_map(|node| node.addresses());
    addresses
        .map(|address| SocketAddr::new(*address, NODE_PORT))
        .collect()
}

#[test]
fn killed_twenty_times_nothing_is_interrupted() {
    harness::require_root!();
    assert_kills_interrupt_nothing(DEFAULTS);
}

/// Without the hooks each packet of a connection is translated, by entries that have to outlive the agent.
#[test]
fn killed_twenty_times_no_translated_packet_is_lost() {
    harness::require_root!();
    assert_kills_interrupt_nothing(HOOKS_OFF);
}

#[track_caller]
fn assert_kills_interrupt_nothing(config: &str) {
    let world = World::with_nodes(2);
    let outside = world.add_client("outside");
    let client = world.node(1).add_pod("client");
    let backends: Vec<_> = ["a", "b", "c"]
        .iter()
        .zip([1, 2, 2])
        .map(|(name, node)| world.node(node).add_pod(name))
        .collect();
    let _servers: Vec<_> = backends
        .iter()
        .map(|pod| (pod.serve_tcp(8080), pod.serve_udp(8080)))
        .collect();
    let service = Service::web()
        .node_port("http", NODE_PORT)
        .node_port("dns", NODE_PORT);
    world.apply_all(service.slices(backends.iter().map(Endpoint::of)));
    world.apply(&service);
    let mut agents = world.start_agents_with(config);
    let every = Duration::from_millis(20);
    let mut paths: Vec<(&Place, SocketAddr, usize)> =
        vec![(&*client, address(VIP), 200), (&*client, address(VIP6), 50)];
    paths.extend(node_ports(&world).into_iter().map(|to| (&*outside, to, 25)));
    let start = |(from, to, count)| LongFlows::start(from, to, count, every).expect("flows");
    let flows: Vec<_> = paths.into_iter().map(start).collect();
    let ask = |from: &Place, probe, to, pause| {
        let pause = Duration::from_millis(pause);
        ConnectStream::start(from, probe, to, pause)
    };
    let new_tcp = ask(&client, Probe::Tcp, address(VIP), 1);
    let mut others = vec![
        ("udp", ask(&client, Probe::Udp, address(VIP), 5)),
        ("udp of IPv6", ask(&client, Probe::Udp, address(VIP6), 5)),
        ("node", ask(world.node(1), Probe::Tcp, address(VIP), 5)),
    ];
    for to in node_ports(&world) {
        others.push(("outside", ask(&outside, Probe::Tcp, to, 10)));
    }
    let kills = std::env::var("MILLRACE_KILLS").map_or(KILLS, |count| count.parse().expect("a number"));
    for _ in 0..kills {
        for agent in &mut agents {
            agent.kill();
        }
        new_tcp.wait_more(20, Duration::from_secs(10));
        for agent in &mut agents {
            agent.start_again();
        }
        for agent in &mut agents {
            agent.wait_ready(Duration::from_secs(10));
            let status = agent.cli(&["status"]);
            assert_eq!(
                status["writes"]["sinceStart"], 0,
                "a warm restart writes nothing: {status}"
            );
        }
        for flows in &flows {
            flows.wait_progress(Duration::from_secs(10));
        }
    }
    for flows in flows {
        flows.stop().assert_unnoticed(UNNOTICED);
    }
    others.push(("tcp", new_tcp));
    for (what, stream) in others {
        let report = stream.stop();
        println!("{what}: {} questions", report.asked);
        report.assert_unnoticed(UNNOTICED);
        assert!(report.asked > 200, "{what}: {report:?}");
    }
}

/// Adds addresses to a pod besides its own. The pod's server answers at all of them.
fn crowd(pod: &Pod, count: u8) -> Vec<Endpoint> {
    pod.run_ip("route add local 10.245.0.0/24 dev lo");
    let range = "10.245.0.0/24".parse().expect("a range");
    pod.node()
        .add_route(range, Some(pod.ip().into()), pod.host_interface());
    (1..=count)
        .map(|host| Endpoint::at(&[IpAddr::from([10, 245, 0, host])]))
        .collect()
}

#[test]
fn changes_during_an_outage_of_the_agent_are_applied() {
    const GONE: std::ops::RangeInclusive<u8> = 11..=60;
    harness::require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let [client, backend] = ["client", "a"].map(|name| node.add_pod(name));
    let _server = backend.serve_tcp(8080);
    let service = |host: u8| {
        Service::new(&format!("s{host}"))
            .cluster_ip(&format!("10.96.0.{host}"))
            .tcp("http", 80, 8080)
    };
    let gone: Vec<_> = GONE.map(service).collect();
    for service in &gone {
        world.apply_all(service.slices([Endpoint::of(&backend)]));
        world.apply(service);
    }
    // The service that stays is large, so that it has several slices.
    let stays = service(10);
    for (number, endpoints) in crowd(&backend, 150).chunks(60).enumerate() {
        let slice = EndpointSlice::of(&stays, Family::V4).named(&format!("s10-{number}"));
        world.apply(&slice.endpoints(endpoints.iter().cloned()));
    }
    world.apply(&stays);
    let mut agent = node.agent().config(HOOKS_OFF).start();
    agent.wait_ready(Duration::from_secs(10));
    let backends = |agent: &Agent| {
        let listed = agent.cli(&["service", "list"]);
        let of_each = listed.as_array().expect("a list").iter();
        of_each
            .map(|entry| entry["backends"].as_array().map_or(0, Vec::len))
            .collect::<Vec<_>>()
    };
    assert_eq!(backends(&agent).len(), 51);
    let every = Duration::from_millis(50);
    let flows = LongFlows::start(&client, address(VIP), 300, every).expect("flows");
    agent.kill();
    for service in &gone {
        world.delete(service);
    }
    client
        .ask(Probe::Tcp, address(VIP))
        .expect("served without an agent");
    agent.start_again();
    agent.wait_ready(Duration::from_secs(10));
    assert_eq!(backends(&agent), [150]);
    // Three writes for each deleted service: a frontend, an address and a backend.
    let written = agent.cli(&["status"])["writes"]["sinceStart"].clone();
    assert_eq!(written, 3 * gone.len(), "what stays is not written");
    client
        .ask(Probe::Tcp, address(VIP))
        .expect("what stays is served");
    let dropped = || node.counters()[Reason::NoSuchService as usize];
    let socket = client.udp_socket_for(address(VIP)).expect("a socket");
    for host in GONE {
        let before = dropped();
        socket
            .send_to(b"?", SocketAddr::from(([10, 96, 0, host], 80)))
            .expect("to send");
        eventually(
            "its packets to be dropped by name",
            Duration::from_secs(1),
            || dropped() > before,
        );
    }
    let before = dropped();
    let gone = client.tcp_connect_within(address("10.96.0.30:80"), Duration::from_millis(200));
    let error = gone.expect_err("what was deleted is gone");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    assert!(dropped() > before, "its packets are dropped by name");
    flows.wait_progress(Duration::from_secs(10));
    flows.stop().assert_unnoticed(UNNOTICED);
}
