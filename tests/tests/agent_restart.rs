//! What the data plane owes while the agent is away: everything.

use std::time::Duration;

use harness::{ConnectStream, Endpoint, LongFlows, Probe, Service, World};

const VIP: &str = "10.96.0.10:80";

#[test]
fn killed_twenty_times_nothing_is_interrupted() {
    harness::require_root!();
    let world = World::with_nodes(2);
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
    let service = Service::new("web")
        .cluster_ip("10.96.0.10")
        .tcp("http", 80, 8080)
        .udp("dns", 80, 8080);
    world.apply_all(service.slices(backends.iter().map(Endpoint::of)));
    world.apply(&service);
    let mut agents = world.start_agents();
    let vip = VIP.parse().unwrap();
    let every = Duration::from_millis(20);
    let flows = LongFlows::start(&client, vip, 200, every).expect("200 flows");
    let new_tcp = ConnectStream::start(&client, Probe::Tcp, vip, Duration::from_millis(1));
    let new_udp = ConnectStream::start(&client, Probe::Udp, vip, Duration::from_millis(5));
    let of_node = ConnectStream::start(world.node(1), Probe::Tcp, vip, Duration::from_millis(5));
    for _ in 0..20 {
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
        flows.wait_progress(Duration::from_secs(10));
    }
    let flows = flows.stop();
    assert!(flows.interruptions.is_empty(), "{flows:?}");
    for (what, report) in [
        ("tcp", new_tcp.stop()),
        ("udp", new_udp.stop()),
        ("node", of_node.stop()),
    ] {
        assert!(report.failures.is_empty(), "{what}: {report:?}");
        assert!(report.asked > 200, "{what}: {report:?}");
    }
}

#[test]
fn what_changed_while_the_agent_was_away_is_made_up_for() {
    harness::require_root!();
    let world = World::with_nodes(1);
    let client = world.node(1).add_pod("client");
    let backend = world.node(1).add_pod("a");
    let _server = backend.serve_tcp(8080);
    let services: Vec<_> = (10..60)
        .map(|host| {
            Service::new(&format!("s{host}"))
                .cluster_ip(&format!("10.96.0.{host}"))
                .tcp("http", 80, 8080)
        })
        .collect();
    for service in &services {
        world.apply_all(service.slices([Endpoint::of(&backend)]));
        world.apply(service);
    }
    let mut agent = world.node(1).agent().start();
    agent.wait_ready(Duration::from_secs(10));
    assert_eq!(agent.cli(&["status"])["services"], 50);
    agent.kill();
    for service in &services[1..] {
        world.delete(service);
    }
    client
        .ask(Probe::Tcp, VIP.parse().unwrap())
        .expect("served without an agent");
    agent.start_again();
    agent.wait_ready(Duration::from_secs(10));
    assert_eq!(agent.cli(&["service", "list"]).as_array().map(Vec::len), Some(1));
    client
        .ask(Probe::Tcp, VIP.parse().unwrap())
        .expect("what stayed is served");
    let gone = client.tcp_connect_within("10.96.0.30:80".parse().unwrap(), Duration::from_millis(200));
    assert!(gone.is_err(), "what was deleted is gone");
}
