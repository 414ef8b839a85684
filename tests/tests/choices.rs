//! Options of a service beside its endpoints: session affinity, topology hints, connections that end with
//! their backend, and masquerading of all clients.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::{
    Endpoint, NodeSpec, PATIENCE, Place, Pod, Probe, Service, World, address, eventually, uniform_p_value,
};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);
const PORT: u16 = 30_080;
/// The timeout of the affinity, in seconds.
const TIMEOUT: u64 = 6;
const VIPS: [&str; 2] = ["10.96.0.10:80", "[fd00:96::10]:80"];

fn web() -> Service {
    Service::new("web")
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:96::10")
        .tcp("http", 80, 8080)
}

/// The names of the backends that answer.
fn backends_of(place: &Place, to: SocketAddr, count: usize) -> io::Result<BTreeSet<String>> {
    let ask = |_| Ok(place.ask(Probe::Tcp, to)?.backend);
    (0..count).map(ask).collect()
}

#[test]
fn a_thousand_clients_stay_for_their_timeout_and_choose_anew_after_it() {
    harness::require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let outside = world.add_remote_client("outside");
    let backends = ["a", "b", "c"].map(|name| node.add_pod(name));
    let _servers = backends.each_ref().map(|pod| pod.serve_tcp(8080));
    let service = web().node_port("http", PORT).client_ip_affinity(TIMEOUT as u32);
    world.apply(&service);
    world.apply_all(service.slices(backends.iter().map(Endpoint::of)));
    let mut agent = node.agent().start();
    agent.wait_ready(10 * SECOND);
    // One client acts as a thousand, with addresses that the fabric routes to it.
    outside.run_ip("route add local 198.18.0.0/22 dev lo");
    let via = outside.ip();
    world
        .fabric()
        .run_ip(&format!("route add 198.18.0.0/22 via {via} dev outside"));
    let clients: Vec<IpAddr> = (0..1000_u16)
        .map(|number| Ipv4Addr::new(198, 18, (number >> 8) as u8, number as u8).into())
        .collect();
    let to = SocketAddr::new(node.ip().into(), PORT);
    let choices = || -> BTreeMap<IpAddr, String> {
        let ask = |client: &IpAddr| {
            let reply = outside.ask_from(Probe::Tcp, SocketAddr::new(*client, 0), to, PATIENCE);
            (*client, reply.expect("a reply").backend)
        };
        clients.iter().map(ask).collect()
    };
    let first = choices();
    let counts = ["a", "b", "c"].map(|name| first.values().filter(|backend| *backend == name).count());
    assert!(uniform_p_value(counts) > 0.001, "{counts:?}");
    // Each use renews the affinity: clients keep their backend for longer than one timeout, as long as they
    // come back in time.
    let started = Instant::now();
    let mut last = Instant::now();
    while started.elapsed() < Duration::from_secs(TIMEOUT + 1) {
        let again = choices();
        assert!(
            last.elapsed() < Duration::from_secs(TIMEOUT),
            "the machine is too slow for this check"
        );
        last = Instant::now();
        assert_eq!(again, first);
    }
    // The timeout has to expire in real time.
    std::thread::sleep(Duration::from_secs(TIMEOUT) + SECOND / 2);
    let anew = choices();
    let moved = clients
        .iter()
        .filter(|client| anew[*client] != first[*client])
        .count();
    assert!(
        (550..790).contains(&moved),
        "{moved} moved, and two thirds should have"
    );
}

/// Two nodes in zones of their own, each with a client and a backend.
fn zones() -> (World, [Pod; 2], [Pod; 2]) {
    let spec = |zone| NodeSpec::routed().zone(zone);
    let world = World::builder().node(spec("east")).node(spec("west")).build();
    let clients = [1, 2].map(|number| world.node(number).add_pod(&format!("client-{number}")));
    let backends = [(1, "a"), (2, "b")].map(|(number, name)| world.node(number).add_pod(name));
    (world, clients, backends)
}

#[test]
fn hints_keep_clients_in_their_zone_or_on_their_node_while_every_endpoint_has_them() {
    harness::require_root!();
    let (world, clients, backends) = zones();
    let _servers = backends.each_ref().map(|pod| pod.serve_tcp(8080));
    for node in world.nodes() {
        world.apply(&node.object());
    }
    let service = web();
    world.apply(&service);
    let _agents = world.start_agents();
    let endpoints = |hints: [Option<serde_json::Value>; 2]| {
        let endpoints = backends.iter().zip(hints).map(|(pod, hints)| {
            let endpoint = Endpoint::of(pod);
            hints.map_or(endpoint.clone(), |hints| endpoint.hints(hints))
        });
        world.apply_all(service.slices(endpoints));
    };
    let settle = |expected: [&[&str]; 2]| {
        let places: [[&Place; 2]; 2] = [[&clients[0], world.node(1)], [&clients[1], world.node(2)]];
        for (places, names) in places.into_iter().zip(expected) {
            for place in places {
                for vip in VIPS {
                    let names: BTreeSet<String> = names.iter().map(ToString::to_string).collect();
                    eventually(
                        &format!("{} to be served by {names:?}", place.name()),
                        2 * SECOND,
                        || backends_of(place, address(vip), 30).is_ok_and(|found| found == names),
                    );
                }
            }
        }
    };
    let zone = |name| Some(json!({"forZones": [{"name": name}]}));
    let node = |name| Some(json!({"forNodes": [{"name": name}]}));
    endpoints([zone("east"), zone("west")]);
    settle([&["a"], &["b"]]);
    // The hints are crosswise: the agent follows them regardless of the endpoints' nodes.
    endpoints([zone("west"), zone("east")]);
    settle([&["b"], &["a"]]);
    // If an endpoint has no hint, or no hint is for this zone, all endpoints are used.
    endpoints([zone("east"), None]);
    settle([&["a", "b"], &["a", "b"]]);
    endpoints([zone("north"), zone("east")]);
    settle([&["b"], &["a", "b"]]);
    let [first, second] = [1, 2].map(|number| world.node(number).name().to_owned());
    endpoints([node(&first), node(&second)]);
    settle([&["a"], &["b"]]);
    endpoints([None, None]);
    settle([&["a", "b"], &["a", "b"]]);
}

/// Waits until this backend answers at `to`.
#[track_caller]
fn served_by(client: &Place, to: SocketAddr, backend: &str) {
    eventually(&format!("{backend} at {to}"), 2 * SECOND, || {
        client
            .ask(Probe::Tcp, to)
            .is_ok_and(|reply| reply.backend == backend)
    });
}

#[test]
fn connections_to_a_removed_backend_are_reset_if_the_service_is_so_configured() {
    harness::require_root!();
    for wanted in [true, false] {
        let world = World::with_nodes(1);
        let node = world.node(1);
        let [client, old, new] = ["client", "old", "new"].map(|name| node.add_pod(name));
        let _servers = [old.serve_tcp(8080), new.serve_tcp(8080)];
        let service = web().annotation("millrace.dev/reset-removed-backends", &wanted.to_string());
        world.apply(&service);
        world.apply_all(service.slices([Endpoint::of(&old)]));
        let mut agent = node.agent().config(HOOKS_OFF).start();
        agent.wait_ready(10 * SECOND);
        for vip in VIPS {
            let to = address(vip);
            // The slices of the two families are separate objects, so one comes later.
            served_by(&client, to, "old");
            let mut stream = client.tcp_connect(to).expect("a connection");
            stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
            let mut lines = BufReader::new(stream.try_clone().expect("a stream"));
            let mut greeting = String::new();
            lines.read_line(&mut greeting).expect("a greeting");
            let mut ask = || {
                let mut line = String::new();
                stream.write_all(b"still there?\n")?;
                lines.read_line(&mut line).map(|length| (length, line))
            };
            assert!(ask().expect("an echo").1.starts_with("old "));
            world.apply_all(service.slices([Endpoint::of(&new)]));
            served_by(&client, to, "new");
            let reply = ask();
            if wanted {
                let error = reply.expect_err("reset").kind();
                assert!(
                    matches!(error, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
                    "{error:?}"
                );
            } else {
                assert!(reply.expect("a reply").1.starts_with("old "));
            }
            world.apply_all(service.slices([Endpoint::of(&old)]));
        }
    }
}

#[test]
fn where_all_is_masqueraded_backends_see_nodes_only() {
    harness::require_root!();
    for hooks in [DEFAULTS, HOOKS_OFF] {
        assert_backends_see_nodes_only(hooks);
    }
}

#[track_caller]
fn assert_backends_see_nodes_only(hooks: &str) {
    let (world, clients, backends) = zones();
    let _servers = backends.each_ref().map(|pod| pod.serve(8080));
    let service = Service::web();
    world.apply(&service);
    world.apply_all(service.slices(backends.iter().map(Endpoint::of)));
    let config = format!("{hooks}masqueradeAll: true\n");
    let start = |node: &harness::Node| {
        let mut agent = node.agent().config(&config).start();
        agent.wait_ready(10 * SECOND);
        agent
    };
    let _agents: Vec<_> = world.nodes().iter().map(start).collect();
    for vip in VIPS {
        let to = address(vip);
        for (client, node) in clients.iter().zip(world.nodes()) {
            let own = BTreeSet::from([node.address_like(to.ip())]);
            for (place, probe) in [client as &Place, node]
                .into_iter()
                .flat_map(|place| Probe::ALL.map(|probe| (place, probe)))
            {
                let what = format!("{} by {probe:?}, {hooks}", place.name());
                let ask = |_| place.ask(probe, to).expect("a reply");
                let replies: Vec<_> = (0..40).map(ask).collect();
                let seen: BTreeSet<_> = replies
                    .iter()
                    .map(|reply| reply.peer.ip().to_canonical())
                    .collect();
                assert_eq!(seen, own, "{what}");
                let backends: BTreeSet<_> = replies.iter().map(|reply| reply.backend.as_str()).collect();
                assert_eq!(backends.len(), 2, "{what}");
            }
        }
    }
}
