//! The endpoints that get new connections, and those that keep their existing ones.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::{
    Agent, ConnectStream, Endpoint, LongFlows, NodeSpec, PATIENCE, Place, Pod, Probe, Reply, Server, Service,
    World, address, eventually,
};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);
/// Without a packet for this time, a packet counts as dropped.
const SILENCE: Duration = Duration::from_millis(250);
const CONFIGS: [&str; 2] = [DEFAULTS, HOOKS_OFF];
const WEB: [&str; 2] = ["10.96.0.10:80", "[fd00:96::10]:80"];

/// Two nodes with an agent and a client each. Backend `a` is on the first node, `b` and `c` are on the second
/// one.
struct Fixture {
    world: World,
    clients: [Pod; 2],
    backends: Vec<(Pod, Server, Server)>,
    service: Service,
    agents: Vec<Agent>,
}

impl Fixture {
    fn open(config: &str) -> Self {
        let strict = || NodeSpec::routed().strict_rp_filter();
        let world = World::builder().node(strict()).node(strict()).build();
        let clients = [world.node(1).add_pod("client"), world.node(2).add_pod("other")];
        let backends = [("a", 1), ("b", 2), ("c", 2)]
            .map(|(name, node)| world.node(node).add_pod(name))
            .map(|pod| (pod.serve_tcp(8080), pod.serve_udp(8080), pod))
            .map(|(tcp, udp, pod)| (pod, tcp, udp));
        let service = Service::web();
        world.apply(&service);
        let fixture = |agents| Self {
            world,
            clients,
            backends: backends.into(),
            service,
            agents,
        };
        let mut fixture = fixture(Vec::new());
        fixture.endpoints(&[("a", READY), ("b", READY), ("c", READY)]);
        let start = |node: &harness::Node| node.agent().config(config).start();
        fixture.agents = fixture.world.nodes().iter().map(start).collect();
        fixture
            .agents
            .iter_mut()
            .for_each(|agent| agent.wait_ready(10 * SECOND));
        fixture
    }

    fn endpoints(&self, states: &[(&str, State)]) {
        let endpoint = |(name, state): &(&str, State)| {
            let found = self.backends.iter().find(|(pod, ..)| pod.name() == *name);
            let (pod, ..) = found.expect("a backend");
            Endpoint::of(pod).conditions(state.0, state.1, state.2)
        };
        self.world
            .apply_all(self.service.slices(states.iter().map(endpoint)));
    }

    /// The client pod and the node itself.
    fn askers(&self) -> [&Place; 2] {
        [&self.clients[0], self.world.node(1)]
    }

    /// Waits until new connections of every kind go to exactly these backends.
    #[track_caller]
    fn wait_served_by(&self, names: &[&str]) {
        for place in self.askers() {
            wait_served_by(place, names);
        }
    }
}

#[track_caller]
fn wait_served_by(place: &Place, names: &[&str]) {
    for to in WEB {
        for probe in Probe::ALL {
            let what = format!("{} to be served by {names:?} at {to} by {probe:?}", place.name());
            eventually(&what, SECOND, || {
                backends_of(place, probe, to, 20 * names.len()) == names
            });
            assert_eq!(backends_of(place, probe, to, 100), names, "{what}");
        }
    }
}

/// The names of the backends that answer this number of questions, each by a new client.
#[track_caller]
fn backends_of(place: &Place, probe: Probe, to: &str, count: usize) -> Vec<String> {
    let to = address(to);
    let mut seen = BTreeSet::new();
    for _ in 0..count {
        let reply = match probe {
            Probe::Tcp => place.ask(probe, to),
            // With UDP, a new client needs a port that no socket has used a moment ago.
            Probe::Udp | Probe::UdpConnected => {
                let from = if to.is_ipv4() {
                    place.ip().into()
                } else {
                    place.ip6().into()
                };
                place.ask_from(probe, SocketAddr::new(from, fresh_port()), to, PATIENCE)
            }
        };
        match reply {
            Ok(reply) => seen.insert(reply.backend),
            Err(error) => panic!("{} asks {to} by {probe:?}: {error}", place.name()),
        };
    }
    seen.into_iter().collect()
}

/// A port below those that the kernel chooses from, another one in each call.
fn fresh_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(2000);
    let port = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(port < 32_000, "the test asks too much");
    port
}

/// The conditions ready, serving and terminating.
#[derive(Clone, Copy)]
struct State(bool, bool, bool);

const READY: State = State(true, true, false);
const NOT_READY: State = State(false, false, false);
const TERMINATING: State = State(false, true, true);
const ENDING: State = State(false, false, true);

#[test]
fn a_terminating_endpoint_keeps_its_connections_and_gets_no_new_ones() {
    harness::require_root!();
    for config in CONFIGS {
        let fixture = Fixture::open(config);
        let start = |place: &Place, to| {
            LongFlows::start(place, address(to), 30, Duration::from_millis(20)).expect("flows")
        };
        let flows: Vec<_> = fixture
            .askers()
            .into_iter()
            .flat_map(|place| WEB.map(|to| start(place, to)))
            .collect();
        for flows in &flows {
            assert_eq!(
                flows.backends().len(),
                3,
                "30 connections meet 3 backends: {:?}",
                flows.backends()
            );
        }
        let datagrams: Vec<_> = fixture.askers().into_iter().map(Datagrams::to_b).collect();

        fixture.endpoints(&[("a", READY), ("b", TERMINATING), ("c", READY)]);
        fixture.wait_served_by(&["a", "c"]);
        for flows in &flows {
            flows.wait_progress(5 * SECOND);
        }
        for socket in &datagrams {
            assert_eq!(
                socket.ask().expect("a reply"),
                "b",
                "an exchange keeps its backend while that serves"
            );
        }

        // Endpoints are removed from the slices before their processes end.
        fixture.endpoints(&[("a", READY), ("c", READY)]);
        for socket in &datagrams {
            eventually("the exchange to move on", SECOND, || {
                socket.ask().is_ok_and(|name| name != "b")
            });
        }
        for flows in &flows {
            flows.wait_progress(5 * SECOND);
        }
        for flows in flows {
            flows.stop().assert_unnoticed(2 * SECOND);
        }
    }
}

/// A UDP exchange from one socket.
struct Datagrams(std::net::UdpSocket);

impl Datagrams {
    /// A UDP exchange with the backend `b`.
    fn to_b(place: &Place) -> Self {
        let to = address(WEB[0]);
        for _ in 0..200 {
            let socket = place.udp_socket_for(to).expect("a socket");
            socket.connect(to).expect("connecting");
            let socket = Self(socket);
            if socket.ask().expect("a reply") == "b" {
                return socket;
            }
        }
        panic!("no exchange of 200 reached b");
    }

    fn ask(&self) -> std::io::Result<String> {
        let mut buffer = [0; 256];
        self.0.send(b"who?")?;
        let length = self.0.recv(&mut buffer)?;
        Ok(Reply::parse(&String::from_utf8_lossy(&buffer[..length]))?.backend)
    }
}

/// Whether an agent lists a backend among those that get new connections.
fn is_active(agent: &Agent, backend: &str) -> bool {
    let listed = agent.cli(&["service", "list"]);
    let entries = listed.as_array().expect("a list").iter();
    let mut backends = entries.flat_map(|entry| entry["backends"].as_array().into_iter().flatten());
    backends.any(|found| found["address"] == backend && found["state"] == "active")
}

/// A rolling update: a new pod becomes ready, an old one terminates, takes no more connections, and is gone.
#[test]
fn ten_backends_are_replaced_one_by_one_and_no_connection_breaks() {
    const BACKENDS: usize = 10;
    harness::require_root!();
    for config in CONFIGS {
        let world = World::with_nodes(2);
        let client = world.node(1).add_pod("client");
        let start = |age: &str| -> Vec<(Pod, Server)> {
            let pods = (0..BACKENDS).map(|n| world.node(1 + n % 2).add_pod(&format!("{age}-{n}")));
            pods.map(|pod| {
                let server = pod.serve_tcp(8080);
                (pod, server)
            })
            .collect()
        };
        let (old, new) = (start("old"), start("new"));
        let service = Service::new("web").cluster_ip("10.96.0.10").tcp("http", 80, 8080);
        let publish = |ready: &[&[(Pod, Server)]], leaving: Option<&Pod>| {
            let ready = ready.iter().copied().flatten();
            let ready = ready.map(|(pod, _)| Endpoint::of(pod));
            let leaving = leaving.map(|pod| Endpoint::of(pod).terminating());
            world.apply_all(service.slices(ready.chain(leaving)));
        };
        publish(&[&old], None);
        world.apply(&service);
        let agents = world.start_agents_with(config);
        let to = address(WEB[0]);
        let places = [&client as &Place, world.node(1)];
        let flows = places.map(|place| LongFlows::start(place, to, 60, SECOND / 50).expect("flows"));
        let streams = places.map(|place| ConnectStream::start(place, Probe::Tcp, to, SECOND / 500));
        for (n, (leaving, server)) in old.iter().enumerate() {
            publish(&[&old[n + 1..], &new[..=n]], Some(leaving));
            let backend = SocketAddr::new(leaving.ip().into(), 8080).to_string();
            eventually("new connections to be kept from it", SECOND, || {
                !agents.iter().any(|agent| is_active(agent, &backend))
            });
            // By then the connections that had begun are established. A new one to the old backend would be
            // refused.
            for stream in &streams {
                stream.wait_more(2, 5 * SECOND);
            }
            server.drain();
        }
        publish(&[&new], None);
        for flows in &flows {
            flows.wait_progress(5 * SECOND);
        }
        for flows in flows {
            flows.stop().assert_unnoticed(2 * SECOND);
        }
        for stream in streams {
            stream.wait_more(100, 5 * SECOND);
            let report = stream.stop();
            let newest = format!("new-{}", BACKENDS - 1);
            assert!(report.replies.contains_key(&newest), "{report:?}");
            report.assert_unnoticed(SECOND);
        }
    }
}

#[test]
fn when_all_terminate_those_that_serve_get_new_connections() {
    harness::require_root!();
    for config in CONFIGS {
        let fixture = Fixture::open(config);
        fixture.endpoints(&[("a", TERMINATING), ("b", TERMINATING), ("c", ENDING)]);
        fixture.wait_served_by(&["a", "b"]);
        fixture.endpoints(&[("a", TERMINATING), ("b", NOT_READY), ("c", READY)]);
        fixture.wait_served_by(&["c"]);
        fixture.endpoints(&[("a", ENDING), ("b", NOT_READY), ("c", ENDING)]);
        for place in fixture.askers() {
            wait_refused(place);
        }
    }
}

/// Waits until the service refuses, since it has no endpoint.
#[track_caller]
fn wait_refused(place: &Place) {
    for to in WEB {
        for probe in [Probe::Tcp, Probe::UdpConnected] {
            let what = format!("{} to be refused at {to} by {probe:?}", place.name());
            let is_refused = |error: std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
            eventually(&what, SECOND, || {
                place.ask(probe, address(to)).is_err_and(is_refused)
            });
        }
    }
}

#[test]
fn addresses_that_are_published_not_ready_are_used() {
    harness::require_root!();
    for config in CONFIGS {
        let fixture = Fixture::open(config);
        fixture.endpoints(&[("a", NOT_READY), ("b", NOT_READY), ("c", TERMINATING)]);
        fixture.wait_served_by(&["c"]);
        let publishing = fixture
            .service
            .clone()
            .set("publishNotReadyAddresses", json!(true));
        fixture.world.apply(&publishing);
        fixture.wait_served_by(&["a", "b", "c"]);
        fixture.world.apply(&fixture.service);
        fixture.wait_served_by(&["c"]);
    }
}

#[test]
fn policy_local_uses_this_nodes_endpoints_and_is_silent_where_there_are_none() {
    harness::require_root!();
    for config in CONFIGS {
        let fixture = Fixture::open(config);
        let [near, far] = &fixture.clients;
        fixture.world.apply(
            &fixture
                .service
                .clone()
                .set("internalTrafficPolicy", json!("Local")),
        );
        fixture.wait_served_by(&["a"]);
        wait_served_by(far, &["b", "c"]);

        fixture.endpoints(&[("b", READY), ("c", TERMINATING)]);
        wait_served_by(far, &["b"]);
        for place in fixture.askers() {
            wait_silent(place);
        }

        // Among this node's endpoints the usual fallback applies.
        fixture.endpoints(&[("a", TERMINATING), ("b", READY)]);
        fixture.wait_served_by(&["a"]);

        // Without any endpoint there is a refusal, since no other node can serve either.
        fixture.endpoints(&[]);
        for place in [near as &Place, far, fixture.world.node(1), fixture.world.node(2)] {
            wait_refused(place);
        }
    }
}

/// Waits until packets to the service get no reply.
#[track_caller]
fn wait_silent(place: &Place) {
    for to in WEB {
        for probe in Probe::ALL {
            let what = format!("{} to get no reply of {to} by {probe:?}", place.name());
            let is_silence = |error: std::io::Error| {
                // An error of the hook or the network would be of another kind.
                matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
            };
            eventually(&what, 3 * SECOND, || {
                place
                    .ask_within(probe, address(to), SILENCE)
                    .is_err_and(is_silence)
            });
        }
    }
}
