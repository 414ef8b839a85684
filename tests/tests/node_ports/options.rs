//! More options of a service: allowed source ranges and session affinity. Also its ports on the node, and its
//! entry in a list.

use std::io::ErrorKind;
use std::net::SocketAddr;

use harness::config::DEFAULTS;
use harness::{Place, Probe, eventually, wait_for};
use serde_json::json;

use crate::topology::{PORT, SECOND, Topology, addresses, ask, peers};

#[test]
fn a_load_balancers_address_is_open_to_its_ranges_only() {
    harness::require_root!();
    let topology =
        Topology::build(|service| service.set("loadBalancerSourceRanges", json!(["172.31.0.0/16"])));
    let mut agents = topology.world.start_agents();
    let to: SocketAddr = "203.0.113.7:80".parse().expect("an address");
    assert_eq!(
        ask(&topology.outside, Probe::Tcp, topology.node_port(1)[0])
            .peer
            .ip()
            .to_canonical(),
        topology.world.node(1).address_like(to.ip())
    );
    peers(&topology.outside, Probe::Tcp, to, &["a", "b"]);
    let silent = |place: &Place, to| {
        let error = place.ask_within(Probe::Tcp, to, SECOND / 4).err();
        error.is_some_and(|error| error.kind() == ErrorKind::TimedOut)
    };
    let dropped = || {
        let page = topology
            .world
            .node(1)
            .http_get("127.0.0.1:10249".parse().expect("an address"), "/metrics");
        let page = page.expect("the page").body;
        let series = "millrace_packets_total{reason=\"source_not_allowed\"} ";
        let line = page.lines().find_map(|line| line.strip_prefix(series));
        line.map_or(0.0, |count| count.parse::<f64>().expect("a number"))
    };
    assert!(dropped() < 1.0);
    assert!(silent(&topology.clients[0], to), "pods too");
    assert!(dropped() >= 1.0, "for this reason and no other");
    assert!(
        silent(
            &topology.outside,
            "[2001:db8:7::7]:80".parse().expect("an address")
        ),
        "no range of its family"
    );
    // The source ranges do not apply to other addresses of the service.
    peers(
        &topology.clients[0],
        Probe::Tcp,
        "10.96.0.10:80".parse().expect("an address"),
        &["a", "b"],
    );
    // The ranges change, and a restarted agent takes over the existing entries.
    topology.world.apply(
        &topology
            .service
            .clone()
            .set("loadBalancerSourceRanges", json!(["10.244.0.0/16"])),
    );
    eventually("the other range", 2 * SECOND, || {
        silent(&topology.outside, to) && !silent(&topology.clients[0], to)
    });
    agents[0].restart();
    agents[0].wait_ready(10 * SECOND);
    assert_eq!(agents[0].cli(&["status"])["writes"]["lastSync"], 0);
    assert!(silent(&topology.outside, to) && !silent(&topology.clients[0], to));
}

#[test]
fn clients_stay_with_their_backend_under_session_affinity() {
    harness::require_root!();
    let topology = Topology::build(|service| service);
    let _agents = topology.world.start_agents();
    let frontends = |number| {
        let mut frontends = topology.node_port(number);
        frontends.extend(addresses(["10.96.0.10", "fd00:96::10"], 80));
        frontends
    };
    topology
        .world
        .apply(&topology.service.clone().client_ip_affinity(3));
    let one = |place: &Place, probe, to| {
        let backends: Vec<_> = (0..20).map(|_| ask(place, probe, to).backend).collect();
        backends
            .windows(2)
            .all(|pair| pair[0] == pair[1])
            .then(|| backends[0].clone())
    };
    for to in frontends(1) {
        for probe in Probe::ALL {
            eventually("to stay", 2 * SECOND, || {
                one(&topology.clients[0], probe, to).is_some()
            });
            wait_for("the node to stay", 2 * SECOND, || {
                one(topology.world.node(1), probe, to).ok_or("it does not")
            });
        }
    }
    for to in topology.node_port(1) {
        assert!(one(&topology.outside, Probe::Tcp, to).is_some());
    }
    // A client never stays with a backend that is gone.
    let to = topology.node_port(1)[0];
    let first = ask(&topology.outside, Probe::Tcp, to).backend;
    let other = if first == "a" { "b" } else { "a" };
    topology.endpoints(&[other]);
    eventually("the other one", SECOND, || {
        ask(&topology.outside, Probe::Tcp, to).backend == other
    });
    topology.endpoints(&["a", "b"]);
    // Without affinity, connections spread again.
    topology.world.apply(&topology.service);
    eventually("to spread again", 2 * SECOND, || {
        one(&topology.outside, Probe::Tcp, to).is_none()
    });
}

#[test]
fn processes_of_the_node_are_kept_off_node_ports() {
    harness::require_root!();
    let topology = Topology::build(|service| service);
    let node = topology.world.node(1);
    let bind = |port| node.tcp_listen(port).map(drop).map_err(|error| error.kind());
    assert_eq!(bind(PORT), Ok(()));
    let agents = topology.world.start_agents();
    assert_eq!(bind(PORT), Err(ErrorKind::PermissionDenied));
    assert_eq!(bind(PORT + 1), Ok(()));
    assert!(
        topology.clients[0].tcp_listen(PORT).is_ok(),
        "a pod binds what it likes"
    );
    drop(agents);
    let _agents = topology
        .world
        .start_agents_with(&format!("{DEFAULTS}protectNodePorts: false\n"));
    assert_eq!(bind(PORT), Ok(()));
}

#[test]
fn a_listed_service_shows_its_frontends() {
    harness::require_root!();
    let topology = Topology::build(|service| {
        service
            .set("externalTrafficPolicy", json!("Local"))
            .client_ip_affinity(60)
    });
    let agents = topology.world.start_agents();
    let listed = agents[0].cli(&["service", "list"]);
    let mut kinds: Vec<_> = listed
        .as_array()
        .expect("a list")
        .iter()
        .map(|entry| {
            let field = |name: &str| entry[name].as_str().expect("a text").to_owned();
            assert_eq!(entry["affinitySeconds"], 60);
            let backends = entry["backends"].as_array().map_or(0, Vec::len);
            (field("kind"), field("policy"), field("protocol"), backends)
        })
        .collect();
    kinds.sort();
    kinds.dedup();
    let expected: Vec<_> = [
        ("ClusterIP", "Cluster", 2),
        ("ExternalIP", "Local", 1),
        ("LoadBalancer", "Local", 1),
        ("NodePort", "Local", 1),
    ]
    .into_iter()
    .flat_map(|(kind, policy, backends)| {
        ["TCP", "UDP"].map(|protocol| (kind.to_owned(), policy.to_owned(), protocol.to_owned(), backends))
    })
    .collect();
    assert_eq!(kinds, expected, "{listed:#}");
    assert_eq!(listed.as_array().map(Vec::len), Some(16));
}
