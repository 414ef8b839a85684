//! Services as they are reached from outside the cluster: node ports, addresses of load balancers, external addresses,
//! their policies, and whom a backend sees.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use harness::{
    Agent, Answer, Client, Endpoint, NodeSpec, Place, Pod, Probe, Server, Service, World, assert_even,
    eventually, wait_for,
};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);
const PORT: u16 = 30_080;
const HOOKS_OFF: &str = "apiVersion: millrace.dev/v1alpha1\nkind: AgentConfiguration\nsocketLB: \"off\"\n";
const PROBES: [Probe; 3] = [Probe::Tcp, Probe::Udp, Probe::UdpConnected];

/// Two nodes with a backend and a client pod each, and a client outside; a service with every kind of address.
struct Town {
    world: World,
    outside: Client,
    clients: [Pod; 2],
    backends: Vec<(Pod, Server, Server)>,
    service: Service,
}

impl Town {
    fn build(adjust: impl FnOnce(Service) -> Service) -> Self {
        let spec = || NodeSpec::routed().strict_rp_filter();
        let world = World::builder().node(spec()).node(spec()).build();
        let outside = world.add_remote_client("outside");
        for (number, addresses) in [
            (1, ["203.0.113.7/32", "2001:db8:7::7/128"]),
            (2, ["198.51.100.7/32", "2001:db8:8::7/128"]),
        ] {
            for address in addresses {
                outside.route_via(address.parse().expect("a prefix"), world.node(number));
            }
        }
        let clients = [1, 2].map(|number| world.node(number).add_pod(&format!("client-{number}")));
        let backends = [(1, "a"), (2, "b")].map(|(number, name)| {
            let pod = world.node(number).add_pod(name);
            let servers = (pod.serve_tcp(8080), pod.serve_udp(8080));
            (pod, servers.0, servers.1)
        });
        let service = Service::new("web")
            .cluster_ip("10.96.0.10")
            .cluster_ip("fd00:96::10")
            .tcp("http", 80, 8080)
            .udp("dns", 80, 8080)
            .node_port("http", PORT)
            .node_port("dns", PORT)
            .load_balancer_ip("203.0.113.7")
            .load_balancer_ip("2001:db8:7::7")
            .set("externalIPs", json!(["198.51.100.7", "2001:db8:8::7"]));
        let service = adjust(service);
        world.apply(&service);
        let town = Self {
            world,
            outside,
            clients,
            backends: backends.into(),
            service,
        };
        town.endpoints(&["a", "b"]);
        town
    }

    fn endpoints(&self, names: &[&str]) {
        let pods = self.backends.iter().map(|(pod, ..)| pod);
        let endpoints = pods.filter(|pod| names.contains(&pod.name())).map(Endpoint::of);
        self.world.apply_all(self.service.slices(endpoints));
    }

    fn start(&self, config: Option<&str>) -> Vec<Agent> {
        let start = |node: &harness::Node| {
            let agent = config.map_or_else(|| node.agent(), |config| node.agent().config(config));
            let mut agent = agent.start();
            agent.wait_ready(10 * SECOND);
            agent
        };
        self.world.nodes().iter().map(start).collect()
    }

    /// The node port at both addresses of a node.
    fn node_port(&self, number: usize) -> Vec<SocketAddr> {
        let addresses = self.world.node(number).addresses();
        addresses
            .iter()
            .map(|address| SocketAddr::new(*address, PORT))
            .collect()
    }
}

fn ask(place: &Place, probe: Probe, to: SocketAddr) -> Answer {
    place
        .ask(probe, to)
        .unwrap_or_else(|error| panic!("{} asks {to} by {probe:?}: {error}", place.name()))
}

/// Asks until every one of `backends` has answered, and gives whom they took the client for.
fn peers(place: &Place, probe: Probe, to: SocketAddr, backends: &[&str]) -> Vec<IpAddr> {
    let mut answers: Vec<Answer> = Vec::new();
    for _ in 0..60 {
        answers.push(ask(place, probe, to));
    }
    let mut seen: Vec<_> = answers.iter().map(|answer| answer.backend.as_str()).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, backends, "{} asks {to} by {probe:?}", place.name());
    let mut peers: Vec<IpAddr> = answers
        .iter()
        .map(|answer| answer.peer.ip().to_canonical())
        .collect();
    peers.sort_unstable();
    peers.dedup();
    peers
}

fn addresses(texts: [&str; 2], port: u16) -> Vec<SocketAddr> {
    texts
        .iter()
        .map(|text| SocketAddr::new(text.parse().expect("an address"), port))
        .collect()
}

#[test]
fn a_client_outside_reaches_pods_of_every_node_by_any_address_as_the_node() {
    harness::require_root!();
    let town = Town::build(|service| service);
    let _agents = town.start(None);
    let everything = [
        (1, town.node_port(1)),
        (2, town.node_port(2)),
        (1, addresses(["203.0.113.7", "2001:db8:7::7"], 80)),
        (2, addresses(["198.51.100.7", "2001:db8:8::7"], 80)),
    ];
    for (number, frontends) in everything {
        for to in frontends {
            let node = town.world.node(number).address_like(to.ip());
            for probe in PROBES {
                assert_eq!(
                    peers(&town.outside, probe, to, &["a", "b"]),
                    [node],
                    "{to} {probe:?}"
                );
            }
            assert_even(&town.outside, Probe::Tcp, to, 2_000, &["a", "b"]);
        }
    }
}

#[test]
fn under_policy_local_clients_outside_keep_their_address_and_stay_on_the_node() {
    harness::require_root!();
    let town = Town::build(|service| service.set("externalTrafficPolicy", json!("Local")));
    let _agents = town.start(None);
    for (number, backend) in [(1, "a"), (2, "b")] {
        let mut frontends = town.node_port(number);
        if number == 1 {
            frontends.extend(addresses(["203.0.113.7", "2001:db8:7::7"], 80));
        }
        for to in frontends {
            let client = *town
                .outside
                .addresses()
                .iter()
                .find(|address| address.is_ipv4() == to.is_ipv4())
                .expect("an address");
            for probe in PROBES {
                assert_eq!(
                    peers(&town.outside, probe, to, &[backend]),
                    [client],
                    "{to} {probe:?}"
                );
            }
        }
    }
    // Pods of the node and the node itself are not held to it.
    for to in town.node_port(1) {
        for probe in PROBES {
            peers(&town.clients[0], probe, to, &["a", "b"]);
            peers(town.world.node(1), probe, to, &["a", "b"]);
        }
    }
    // Without an endpoint on the node: silence, so that a balancer outside tries elsewhere.
    town.endpoints(&["b"]);
    let to = town.node_port(1)[0];
    eventually("silence", 2 * SECOND, || {
        let error = town.outside.ask_within(Probe::Tcp, to, SECOND / 4).err();
        error.is_some_and(|error| error.kind() == ErrorKind::TimedOut)
    });
    assert_eq!(ask(&town.clients[0], Probe::Tcp, to).backend, "b");
}

#[test]
fn pods_and_nodes_reach_node_ports_with_and_without_socket_hooks() {
    harness::require_root!();
    let town = Town::build(|service| service);
    for config in [None, Some(HOOKS_OFF)] {
        let _agents = town.start(config);
        for number in [1, 2] {
            for to in town.node_port(number) {
                for probe in PROBES {
                    for place in [&town.clients[0] as &Place, &town.clients[1], town.world.node(1)] {
                        peers(place, probe, to, &["a", "b"]);
                    }
                }
            }
        }
        if config.is_none() {
            for to in addresses(["127.0.0.1", "::1"], PORT) {
                for probe in [Probe::Tcp, Probe::Udp] {
                    peers(town.world.node(1), probe, to, &["a", "b"]);
                }
                let error = town.clients[0].ask_within(Probe::Tcp, to, SECOND);
                assert!(error.is_err(), "a pod's loopback is its own");
            }
        }
    }
}

#[test]
fn a_process_of_the_node_is_a_backend_and_sees_its_clients() {
    harness::require_root!();
    let town = Town::build(|service| service);
    let node = town.world.node(1);
    let _servers = (node.serve_tcp(8080), node.serve_udp(8080));
    town.world
        .apply_all(town.service.slices([Endpoint::on_host(node)]));
    for config in [None, Some(HOOKS_OFF)] {
        let _agents = town.start(config);
        for to in town.node_port(1) {
            let client = town
                .outside
                .addresses()
                .iter()
                .find(|address| address.is_ipv4() == to.is_ipv4());
            for probe in PROBES {
                let seen = peers(&town.outside, probe, to, &["n1"]);
                assert_eq!(Some(&seen[0]), client, "{to} {probe:?}");
                peers(&town.clients[0], probe, to, &["n1"]);
                peers(node, probe, to, &["n1"]);
            }
        }
        for to in town.node_port(2) {
            for probe in PROBES {
                peers(&town.outside, probe, to, &["n1"]);
                peers(&town.clients[0], probe, to, &["n1"]);
            }
        }
    }
}

#[test]
fn a_load_balancers_address_is_open_to_its_ranges_only() {
    harness::require_root!();
    let town = Town::build(|service| service.set("loadBalancerSourceRanges", json!(["172.31.0.0/16"])));
    let mut agents = town.start(None);
    let to: SocketAddr = "203.0.113.7:80".parse().expect("an address");
    assert_eq!(
        ask(&town.outside, Probe::Tcp, town.node_port(1)[0])
            .peer
            .ip()
            .to_canonical(),
        town.world.node(1).address_like(to.ip())
    );
    peers(&town.outside, Probe::Tcp, to, &["a", "b"]);
    let silent = |place: &Place, to| {
        let error = place.ask_within(Probe::Tcp, to, SECOND / 4).err();
        error.is_some_and(|error| error.kind() == ErrorKind::TimedOut)
    };
    let dropped = || {
        let page = town
            .world
            .node(1)
            .http_get("127.0.0.1:10249".parse().expect("an address"), "/metrics");
        let page = page.expect("the page").body;
        let series = "millrace_packets_total{reason=\"source_not_allowed\"} ";
        let line = page.lines().find_map(|line| line.strip_prefix(series));
        line.map_or(0.0, |count| count.parse::<f64>().expect("a number"))
    };
    assert!(dropped() < 1.0);
    assert!(silent(&town.clients[0], to), "pods too");
    assert!(dropped() >= 1.0, "for this reason and no other");
    assert!(
        silent(&town.outside, "[2001:db8:7::7]:80".parse().expect("an address")),
        "no range of its family"
    );
    // Other addresses of the service are open to everybody.
    peers(
        &town.clients[0],
        Probe::Tcp,
        "10.96.0.10:80".parse().expect("an address"),
        &["a", "b"],
    );
    // The ranges change, and a restarted agent takes over what is there.
    town.world.apply(
        &town
            .service
            .clone()
            .set("loadBalancerSourceRanges", json!(["10.244.0.0/16"])),
    );
    eventually("the other range", 2 * SECOND, || {
        silent(&town.outside, to) && !silent(&town.clients[0], to)
    });
    agents[0].restart();
    agents[0].wait_ready(10 * SECOND);
    assert_eq!(agents[0].cli(&["status"])["writes"]["lastSync"], 0);
    assert!(silent(&town.outside, to) && !silent(&town.clients[0], to));
}

#[test]
fn clients_stay_with_their_backend_where_the_service_wants_that() {
    harness::require_root!();
    let town = Town::build(|service| service);
    let _agents = town.start(None);
    let frontends = |number| {
        let mut frontends = town.node_port(number);
        frontends.extend(addresses(["10.96.0.10", "fd00:96::10"], 80));
        frontends
    };
    town.world.apply(&town.service.clone().client_ip_affinity(3));
    let one = |place: &Place, probe, to| {
        let backends: Vec<_> = (0..20).map(|_| ask(place, probe, to).backend).collect();
        backends
            .windows(2)
            .all(|pair| pair[0] == pair[1])
            .then(|| backends[0].clone())
    };
    for to in frontends(1) {
        for probe in PROBES {
            eventually("to stay", 2 * SECOND, || {
                one(&town.clients[0], probe, to).is_some()
            });
            wait_for("the node to stay", 2 * SECOND, || {
                one(town.world.node(1), probe, to).ok_or("it does not")
            });
        }
    }
    for to in town.node_port(1) {
        assert!(one(&town.outside, Probe::Tcp, to).is_some());
    }
    // Never to one that is gone.
    let to = town.node_port(1)[0];
    let first = ask(&town.outside, Probe::Tcp, to).backend;
    let other = if first == "a" { "b" } else { "a" };
    town.endpoints(&[other]);
    eventually("the other one", SECOND, || {
        ask(&town.outside, Probe::Tcp, to).backend == other
    });
    town.endpoints(&["a", "b"]);
    // And back.
    town.world.apply(&town.service);
    eventually("to spread again", 2 * SECOND, || {
        one(&town.outside, Probe::Tcp, to).is_none()
    });
}

#[test]
fn processes_of_the_node_are_kept_off_node_ports() {
    harness::require_root!();
    let town = Town::build(|service| service);
    let node = town.world.node(1);
    let bind = |port| node.tcp_listen(port).map(drop).map_err(|error| error.kind());
    assert_eq!(bind(PORT), Ok(()));
    let agents = town.start(None);
    assert_eq!(bind(PORT), Err(ErrorKind::PermissionDenied));
    assert_eq!(bind(PORT + 1), Ok(()));
    assert!(
        town.clients[0].tcp_listen(PORT).is_ok(),
        "a pod binds what it likes"
    );
    drop(agents);
    let _agents = town.start(Some(
        "apiVersion: millrace.dev/v1alpha1\nkind: AgentConfiguration\nprotectNodePorts: false\n",
    ));
    assert_eq!(bind(PORT), Ok(()));
}

#[test]
fn nobody_is_there_and_clients_outside_are_told() {
    harness::require_root!();
    let town = Town::build(|service| service);
    town.endpoints(&[]);
    let _agents = town.start(None);
    let refused = |to| {
        let tcp = town
            .outside
            .ask_within(Probe::Tcp, to, SECOND)
            .err()
            .map(|error| error.kind());
        let udp = town
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
    for to in town.node_port(1) {
        refused(to);
    }
    for port in [80, 81] {
        for to in addresses(["203.0.113.7", "2001:db8:7::7"], port) {
            refused(to);
        }
    }
}

#[test]
fn a_service_that_is_listed_says_how_it_is_reached() {
    harness::require_root!();
    let town = Town::build(|service| {
        service
            .set("externalTrafficPolicy", json!("Local"))
            .client_ip_affinity(60)
    });
    let agents = town.start(None);
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
