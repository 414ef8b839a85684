//! Services and EndpointSlices of a real kube-apiserver are served, and are still served when the API server
//! is gone.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use harness::config::HOOKS_OFF;
use harness::kubernetes::ControlPlane;
use harness::manifest::Family;
use harness::{
    Agent, ConnectStream, Endpoint, EndpointSlice, LongFlows, Place, Pod, Probe, Server, Service, Source,
    World, address, eventually, require_kubernetes, spread,
};
use proxy_common::maps::Reason;
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);
const WEB: &str = "10.96.0.10:80";
const WEB6: &str = "[fd00:96::10]:80";
const ALL: [&str; 3] = ["a", "b", "c"];
const NODE_PORT: u16 = 30_080;

/// Two nodes, a control plane, a client pod and the backends `a`, `b`, `c`.
struct Cluster {
    plane: ControlPlane,
    agents: Vec<Agent>,
    client: Pod,
    backends: Vec<(Pod, [Server; 2])>,
    web: Service,
    world: World,
}

impl Cluster {
    fn start(config: Option<&str>) -> Self {
        let world = World::with_nodes(2);
        let plane = ControlPlane::start(&world);
        let client = world.node(1).add_pod("client");
        let backends = ALL
            .iter()
            .zip([1, 2, 2])
            .map(|(name, node)| {
                let pod = world.node(node).add_pod(name);
                let servers = pod.serve(8080);
                (pod, servers)
            })
            .collect();
        for node in world.nodes() {
            plane.apply(&node.object());
            plane.apply_status(&node.object());
        }
        let web = Service::web();
        plane.apply(&web);
        let agents = world
            .nodes()
            .iter()
            .map(|node| {
                let source = Source::Kubernetes {
                    kubeconfig: plane.kubeconfig(),
                };
                let builder = node.agent().source(source);
                let mut agent = config
                    .map_or(builder.clone(), |config| builder.config(config))
                    .start();
                agent.wait_ready(30 * SECOND);
                agent
            })
            .collect();
        let cluster = Self {
            plane,
            agents,
            client,
            backends,
            web,
            world,
        };
        cluster.endpoints(&ALL);
        cluster
    }

    fn pod(&self, name: &str) -> &Pod {
        &self
            .backends
            .iter()
            .find(|(pod, ..)| pod.name() == name)
            .expect("a backend")
            .0
    }

    fn endpoints(&self, names: &[&str]) {
        for slice in self
            .web
            .slices(names.iter().map(|name| Endpoint::of(self.pod(name))))
        {
            self.plane.apply(&slice);
        }
    }

    fn places(&self) -> [&Place; 2] {
        [&self.client, self.world.node(1)]
    }

    /// The entries that every agent has programmed for Services of this test, for comparisons.
    fn programmed(&self) -> Vec<Value> {
        self.agents
            .iter()
            .map(|agent| agent.cli(&["service", "list"]))
            .collect()
    }
}

fn reaches(place: &Place, probe: Probe, to: &str, backends: &[&str]) {
    let what = format!("{} reaches {backends:?} at {to} by {probe:?}", place.name());
    eventually(&what, SECOND, || {
        spread(place, probe, address(to), 60).backends() == backends
    });
}

fn follows_the_api_server(config: Option<&str>) {
    let cluster = Cluster::start(config);
    for place in cluster.places() {
        for to in [WEB, WEB6] {
            for probe in Probe::ALL {
                reaches(place, probe, to, &ALL);
            }
        }
    }
    // The number of endpoints changes.
    cluster.endpoints(&["b", "c"]);
    reaches(&cluster.client, Probe::Tcp, WEB, &["b", "c"]);
    cluster.endpoints(&ALL);
    reaches(cluster.world.node(1), Probe::Udp, WEB6, &ALL);
    // A port gets another name: at first no slice has a port of that name, then one has.
    let renamed = Service::new("web")
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:96::10")
        .tcp("renamed", 80, 8080)
        .udp("dns", 80, 8080);
    cluster.plane.apply(&renamed);
    let refused = |place: &Place| {
        place
            .tcp_connect(address(WEB))
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    };
    eventually("the renamed port has no endpoints", SECOND, || {
        cluster.places().iter().all(|place| refused(place))
    });
    cluster
        .plane
        .apply(&EndpointSlice::of(&renamed, Family::V4).endpoints([Endpoint::of(cluster.pod("c"))]));
    reaches(&cluster.client, Probe::Tcp, WEB, &["c"]);
    // The service is deleted.
    cluster.plane.delete(&renamed);
    let dropped = || cluster.world.node(1).counters()[Reason::NoSuchService as usize];
    for place in cluster.places() {
        let what = format!("the service to be gone for {}", place.name());
        eventually(&what, SECOND, || {
            let before = dropped();
            let error = place.tcp_connect_within(address(WEB), SECOND / 10).err();
            error.is_some_and(|error| error.kind() == ErrorKind::TimedOut) && dropped() > before
        });
    }
    eventually("nothing of it is programmed", SECOND, || {
        cluster
            .programmed()
            .iter()
            .all(|list| !list.to_string().contains("10.96.0.10"))
    });
}

#[test]
fn services_of_a_real_api_server_with_socket_hooks() {
    require_kubernetes!();
    follows_the_api_server(None);
}

#[test]
fn services_of_a_real_api_server_without_socket_hooks() {
    require_kubernetes!();
    follows_the_api_server(Some(HOOKS_OFF));
}

/// Services at `10.96.<group>.1` and up.
fn group(group: u8, count: u8) -> Vec<Service> {
    let service = |number| {
        Service::new(&format!("s{group}-{number}"))
            .cluster_ip(&format!("10.96.{group}.{number}"))
            .tcp("http", 80, 8080)
    };
    (1..=count).map(service).collect()
}

impl Cluster {
    /// Creates services, each with the backend `b`.
    fn create(&self, services: &[Service]) {
        let slices = |service: &Service| service.slices([Endpoint::of(self.pod("b"))]);
        self.plane.create_all(services.iter().cloned());
        self.plane.create_all(services.iter().flat_map(slices));
    }

    /// Waits until these services have a backend each, the `gone` ones are removed, and `web` has this number
    /// of backends.
    #[track_caller]
    fn wait_programmed(&self, within: Duration, these: &[&[Service]], gone: &[Service], web: usize) {
        eventually("the exact state is reached", within, || {
            self.programmed().iter().all(|list| {
                let entries = list.as_array().expect("a list");
                let of = |name: &str| -> Vec<usize> {
                    let own = entries.iter().filter(|entry| entry["name"] == name);
                    own.map(|entry| entry["backends"].as_array().map_or(0, Vec::len))
                        .collect()
                };
                of("web") == [web; 4]
                    && these.concat().iter().all(|service| of(service.name()) == [1])
                    && gone.iter().all(|service| of(service.name()).is_empty())
            })
        });
    }
}

#[test]
fn a_minute_without_the_api_server_costs_no_connection() {
    require_kubernetes!();
    let mut cluster = Cluster::start(None);
    reaches(&cluster.client, Probe::Tcp, WEB, &ALL);
    let outside = cluster.world.add_client("outside");
    let held = Service::new("held")
        .cluster_ip("10.96.0.50")
        .tcp("http", 80, 8080)
        .node_port("http", NODE_PORT);
    let (stay, go, come) = (group(1, 50), group(2, 100), group(3, 150));
    cluster.create(&[held]);
    cluster.create(&stay);
    cluster.create(&go);
    cluster.wait_programmed(20 * SECOND, &[&stay, &go], &[], 3);
    // Packets of clients outside are translated one by one, and a connection of a pod once, at its socket.
    let at_node = SocketAddr::new(cluster.world.node(1).ip().into(), NODE_PORT);
    eventually("the node port", 5 * SECOND, || {
        outside.ask(Probe::Tcp, at_node).is_ok()
    });
    let paths: [(&Place, SocketAddr); 2] = [(&cluster.client, address(WEB)), (&outside, at_node)];
    let every = Duration::from_millis(50);
    let flows = paths.map(|(from, to)| LongFlows::start(from, to, 50, every).expect("50 flows"));
    let streams = paths.map(|(from, to)| ConnectStream::start(from, Probe::Tcp, to, every / 10));

    // An object that no agent follows, so that the versions that the agents know are old.
    cluster.plane.apply(&json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "unknown", "namespace": "default"},
    }));
    cluster.plane.kill_api_server();
    let down = std::time::Instant::now();
    eventually("the agents report the loss", 60 * SECOND, || {
        cluster.agents.iter().all(|agent| {
            agent.cli(&["status"])["errors"]
                .to_string()
                .contains("what is programmed stays")
        })
    });
    while down.elapsed() < 60 * SECOND {
        for stream in &streams {
            stream.wait_more(100, 10 * SECOND);
        }
    }
    let writes: Vec<_> = cluster
        .agents
        .iter()
        .map(|agent| agent.cli(&["status"])["writes"]["sinceStart"].clone())
        .collect();
    cluster.plane.start_api_server();
    for service in &go {
        cluster.plane.delete(service);
        for slice in service.slices([]) {
            cluster.plane.delete(&slice);
        }
    }
    cluster.create(&come);
    cluster.endpoints(&["a", "b"]);
    cluster.plane.patch(
        &cluster.web,
        &json!({"metadata": {"annotations": {"irrelevant": "change"}}}),
    );

    cluster.wait_programmed(10 * SECOND, &[&stay, &come], &go, 2);
    for (agent, before) in cluster.agents.iter().zip(writes) {
        let after = agent.cli(&["status"])["writes"]["sinceStart"]
            .as_u64()
            .expect("a number");
        let before = before.as_u64().expect("a number");
        // Writes for each service that comes: frontend and address, then with its slice backend, slot and
        // frontend. For each that goes: frontend and backend if its slice goes first, then frontend and
        // address. For each of 4 groups of the web service: two slots, a frontend, a removed backend.
        let max_writes = 150 * 5 + 100 * 4 + 4 * 4;
        assert!(
            after - before <= max_writes,
            "unchanged entries are not rewritten: {before} → {after}, at most {max_writes}"
        );
        let log = agent.log();
        for kind in ["Service", "EndpointSlice"] {
            let of_kind = format!("kind={kind}");
            let mut expired = log.lines().filter(|line| line.contains("the server forgot"));
            let is_logged = expired.any(|line| line.trim_end().ends_with(&of_kind));
            assert!(is_logged, "no watch of {kind} has expired:\n{log}");
        }
    }
    // A connection that has stalled since the return of the server could not have been noticed before this
    // point.
    for flows in &flows {
        flows.wait_progress(10 * SECOND);
    }
    for flows in flows {
        flows.stop().assert_unnoticed(2 * SECOND);
    }
    for stream in streams {
        stream.wait_more(100, 10 * SECOND);
        stream.stop().assert_unnoticed(2 * SECOND);
    }
}
