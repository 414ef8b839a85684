//! Services and EndpointSlices of a real kube-apiserver become traffic, and stay traffic when the API server goes.

use std::time::Duration;

use harness::config::HOOKS_OFF;
use harness::kubernetes::ControlPlane;
use harness::manifest::Family;
use harness::{
    Agent, ConnectStream, Endpoint, EndpointSlice, LongFlows, Place, Pod, Probe, Server, Service, Source,
    World, address, eventually, require_kubernetes, spread,
};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);
const WEB: &str = "10.96.0.10:80";
const WEB6: &str = "[fd00:96::10]:80";
const ALL: [&str; 3] = ["a", "b", "c"];

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

    /// What every agent has programmed for Services of this test, for comparing.
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
    // Scaling.
    cluster.endpoints(&["b", "c"]);
    reaches(&cluster.client, Probe::Tcp, WEB, &["b", "c"]);
    cluster.endpoints(&ALL);
    reaches(cluster.world.node(1), Probe::Udp, WEB6, &ALL);
    // Renaming a port: no slice has a port of that name, then one has.
    let renamed = Service::new("web")
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:96::10")
        .tcp("renamed", 80, 8080)
        .udp("dns", 80, 8080);
    cluster.plane.apply(&renamed);
    let refused = |place: &Place| {
        place
            .tcp_connect(address(WEB))
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    eventually("the renamed port has no endpoints", SECOND, || {
        cluster.places().iter().all(|place| refused(place))
    });
    cluster
        .plane
        .apply(&EndpointSlice::of(&renamed, Family::V4).endpoints([Endpoint::of(cluster.pod("c"))]));
    reaches(&cluster.client, Probe::Tcp, WEB, &["c"]);
    // Deleting.
    cluster.plane.delete(&renamed);
    eventually("the service is gone", SECOND, || {
        cluster
            .places()
            .iter()
            .all(|place| place.tcp_connect_within(address(WEB), SECOND / 10).is_err())
    });
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

#[test]
fn a_minute_without_the_api_server_costs_no_connection() {
    require_kubernetes!();
    let mut cluster = Cluster::start(None);
    reaches(&cluster.client, Probe::Tcp, WEB, &ALL);
    let flows =
        LongFlows::start(&cluster.client, address(WEB), 50, Duration::from_millis(50)).expect("50 flows");
    let stream = ConnectStream::start(
        &cluster.client,
        Probe::Tcp,
        address(WEB),
        Duration::from_millis(5),
    );

    // An object written directly into etcd's next life: changes made between the kill and the agents' return.
    cluster.plane.kill_api_server();
    let down = std::time::Instant::now();
    eventually("the agents say that they lost it", 60 * SECOND, || {
        cluster.agents.iter().all(|agent| {
            agent.cli(&["status"])["errors"]
                .to_string()
                .contains("what is programmed stays")
        })
    });
    while down.elapsed() < 60 * SECOND {
        stream.wait_more(100, 10 * SECOND);
    }
    let writes: Vec<_> = cluster
        .agents
        .iter()
        .map(|agent| agent.cli(&["status"])["writes"]["sinceStart"].clone())
        .collect();
    cluster.plane.start_api_server();
    let more: Vec<_> = (20..40)
        .map(|host| {
            Service::new(&format!("s{host}"))
                .cluster_ip(&format!("10.96.0.{host}"))
                .tcp("http", 80, 8080)
        })
        .collect();
    for service in &more {
        cluster.plane.apply(service);
        for slice in service.slices([Endpoint::of(cluster.pod("b"))]) {
            cluster.plane.apply(&slice);
        }
    }
    cluster.endpoints(&["a", "b"]);
    cluster.plane.patch(
        &cluster.web,
        &json!({"metadata": {"annotations": {"irrelevant": "change"}}}),
    );

    eventually("the exact state is reached", 10 * SECOND, || {
        cluster.agents.iter().all(|agent| {
            let list = agent.cli(&["service", "list"]);
            let entries = list.as_array().expect("a list");
            let of = |name: &str| {
                entries
                    .iter()
                    .filter(|entry| entry["name"] == name)
                    .collect::<Vec<_>>()
            };
            let web = of("web");
            web.len() == 4
                && web
                    .iter()
                    .all(|entry| entry["backends"].as_array().map(Vec::len) == Some(2))
                && more.iter().all(|service| of(service.name()).len() == 1)
        })
    });
    for (agent, before) in cluster.agents.iter().zip(writes) {
        let after = agent.cli(&["status"])["writes"]["sinceStart"]
            .as_u64()
            .expect("a number");
        let before = before.as_u64().expect("a number");
        // Each of 20 services: frontend and address when it is created, backend, slot and frontend when its slice follows.
        // Each of 4 groups of the web service: two slots, a frontend, a backend that is gone.
        let owed = 20 * 5 + 4 * 4;
        assert!(
            after - before <= owed,
            "what did not change is not rewritten: {before} → {after}, {owed} are owed"
        );
    }
    let (flows, stream) = (flows.stop(), stream.stop());
    assert!(flows.interruptions.is_empty(), "{flows:?}");
    assert!(stream.failures.is_empty(), "{stream:?}");
}
