//! The reports about a node to balancers, kubelets and operators: the health of the node, the health of
//! single services, the mode.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use harness::{Agent, Client, Endpoint, HttpResponse, Node, Place, Pod, Service, World, wait_for};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);
const HEALTH: u16 = 10256;
const METRICS: u16 = 10249;
const CHECK: u16 = 31999;

/// A node with an agent, and a client on the network around it.
struct Fixture {
    agent: Agent,
    client: Client,
    world: World,
}

impl Fixture {
    fn open() -> Self {
        let world = World::with_nodes(1);
        let client = world.add_client("balancer");
        let mut agent = world.node(1).agent().start();
        agent.wait_ready(10 * SECOND);
        Self { agent, client, world }
    }

    fn node(&self) -> &Node {
        self.world.node(1)
    }

    /// Asks the node at its address of either family.
    fn ask(&self, ip: IpAddr, port: u16, path: &str) -> HttpResponse {
        let reply = self.client.http_get(SocketAddr::new(ip, port), path);
        reply.unwrap_or_else(|error| panic!("port {port}, {path}: {error}"))
    }

    #[track_caller]
    fn wait_status(&self, port: u16, path: &str, status: u16) -> HttpResponse {
        let to = SocketAddr::new(self.node().ip().into(), port);
        wait_for(
            &format!("{path} at port {port} to return {status}"),
            5 * SECOND,
            || match self.client.http_get(to, path) {
                Ok(reply) if reply.status == status => Ok(reply),
                Ok(reply) => Err(format!("{reply:?}")),
                Err(error) => Err(error.to_string()),
            },
        )
    }

    #[track_caller]
    fn wait_closed(&self, port: u16) {
        let to = SocketAddr::new(self.node().ip().into(), port);
        wait_for(&format!("port {port} to be closed"), 5 * SECOND, || {
            self.client.tcp_connect(to).map_or(Ok(()), |_| Err("it is open"))
        });
    }

    /// The node's object with one field changed.
    fn change_node(&self, part: &str, key: &str, value: Value) {
        let mut object = self.node().object();
        object[part][key] = value;
        self.world.apply(&object);
    }
}

#[test]
fn a_node_that_leaves_is_not_healthy_and_still_live() {
    harness::require_root!();
    let fixture = Fixture::open();
    let node = fixture.node();
    for ip in [IpAddr::from(node.ip()), node.ip6().into()] {
        let reply = fixture.ask(ip, HEALTH, "/healthz");
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.json()["nodeEligible"], true);
        assert_eq!(reply.header("content-type"), Some("application/json"));
    }
    let doomed = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    fixture.change_node("spec", "taints", doomed);
    let reply = fixture.wait_status(HEALTH, "/healthz", 503);
    assert_eq!(reply.json()["nodeEligible"], false);
    let reply = fixture.ask(node.ip().into(), HEALTH, "/livez");
    assert_eq!((reply.status, reply.json().get("nodeEligible")), (200, None));
    fixture.change_node(
        "spec",
        "taints",
        json!([{"key": "other", "effect": "NoSchedule"}]),
    );
    fixture.wait_status(HEALTH, "/healthz", 200);
    fixture.change_node("metadata", "deletionTimestamp", json!("2026-01-02T03:04:05Z"));
    fixture.wait_status(HEALTH, "/healthz", 503);
    assert_eq!(fixture.ask(node.ip().into(), HEALTH, "/other").status, 404);
}

fn balanced(name: &str) -> Service {
    Service::new(name)
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:96::10")
        .tcp("http", 80, 8080)
        .set("type", json!("LoadBalancer"))
        .set("externalTrafficPolicy", json!("Local"))
        .set("externalIPs", json!(["203.0.113.7"]))
        .set("healthCheckNodePort", json!(CHECK))
}

#[test]
fn the_health_of_a_service_follows_its_endpoints_on_the_node() {
    harness::require_root!();
    let fixture = Fixture::open();
    let service = balanced("web");
    let pods: Vec<Pod> = ["a", "b"].map(|name| fixture.node().add_pod(name)).into();
    let elsewhere = || Endpoint::at(&["10.244.9.9".parse().expect("an address")]).on_node("n9");
    let slices = |endpoints: Vec<Endpoint>| fixture.world.apply_all(service.slices(endpoints));
    fixture.wait_closed(CHECK);
    slices(vec![elsewhere()]);
    fixture.world.apply(&service);
    let reply = fixture.wait_status(CHECK, "/", 503);
    assert_eq!(
        reply.json(),
        json!({"service": {"namespace": "default", "name": "web"}, "localEndpoints": 0, "serviceProxyHealthy": true})
    );

    slices(vec![elsewhere(), Endpoint::of(&pods[0]), Endpoint::of(&pods[1])]);
    let reply = fixture.wait_status(CHECK, "/any/path", 200);
    assert_eq!(reply.json()["localEndpoints"], 2);
    assert_eq!(reply.header("x-load-balancing-endpoint-weight"), Some("2"));
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(fixture.ask(fixture.node().ip6().into(), CHECK, "/").status, 200);

    slices(vec![
        Endpoint::of(&pods[0]).terminating(),
        Endpoint::of(&pods[1]).not_ready(),
    ]);
    fixture.wait_status(CHECK, "/", 503);
    slices(vec![Endpoint::of(&pods[0])]);
    fixture.wait_status(CHECK, "/", 200);

    // Another port, then no port, and then none because every node is suitable.
    fixture
        .world
        .apply(&balanced("web").set("healthCheckNodePort", json!(CHECK + 1)));
    fixture.wait_status(CHECK + 1, "/", 200);
    fixture.wait_closed(CHECK);
    fixture
        .world
        .apply(&balanced("web").set("externalTrafficPolicy", json!("Cluster")));
    fixture.wait_closed(CHECK + 1);
    fixture.world.apply(&balanced("web"));
    fixture.wait_status(CHECK, "/", 200);
    fixture.world.delete(&balanced("web"));
    fixture.wait_closed(CHECK);
}

/// The errors of `millrace status` about an object.
fn errors(agent: &Agent, object: &str) -> Vec<String> {
    let status = agent.cli(&["status"]);
    let errors = status["errors"].as_array().expect("errors");
    let about = errors.iter().filter(|error| error["object"] == object);
    about.map(|error| error["message"].to_string()).collect()
}

#[test]
fn a_port_in_use_is_reported_and_bound_once_it_is_free() {
    harness::require_root!();
    let fixture = Fixture::open();
    let place: &Place = fixture.node();
    let taken = place.tcp_listen(CHECK).expect("a free port");
    fixture.world.apply(&balanced("web"));
    let messages = wait_for("the fault to be reported", 5 * SECOND, || {
        let messages = errors(&fixture.agent, "Service default/web");
        if messages.is_empty() {
            Err("nothing is reported")
        } else {
            Ok(messages)
        }
    });
    assert!(
        messages
            .iter()
            .any(|message| message.contains("Address already in use")),
        "{messages:?}"
    );
    drop(taken);
    fixture.wait_status(CHECK, "/", 503);
    assert_eq!(
        errors(&fixture.agent, "Service default/web"),
        Vec::<String>::new()
    );
}

#[test]
fn two_agents_have_their_ports_each_in_its_own_namespace() {
    harness::require_root!();
    let world = World::with_nodes(2);
    let agents = world.start_agents();
    for (node, agent) in world.nodes().iter().zip(&agents) {
        let ask = |port, path| {
            let reply = node.http_get(SocketAddr::from(([127, 0, 0, 1], port)), path);
            reply.unwrap_or_else(|error| panic!("{}: port {port}, {path}: {error}", node.name()))
        };
        assert_eq!(ask(HEALTH, "/healthz").status, 200);
        assert_eq!(ask(METRICS, "/healthz").body, "ok");
        assert_eq!(ask(METRICS, "/proxyMode").body, "millrace");
        let shown = ask(METRICS, "/configz").json();
        assert_eq!(shown["kubeproxy.config.k8s.io"]["hostnameOverride"], node.name());
        assert_eq!(shown["millrace.dev"]["healthAddress"], "0.0.0.0:10256");
        assert_eq!(agent.cli(&["status"])["errors"], json!([]));
    }
    // Only the node itself reaches the metrics.
    let to = SocketAddr::new(world.node(1).ip().into(), METRICS);
    assert!(world.node(2).tcp_connect(to).is_err());
}

#[test]
fn ports_move_and_close_with_the_configuration() {
    harness::require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let builder = node.agent().arg("--health-address").arg("127.0.0.1:99");
    let mut agent = builder.arg("--metrics-address").arg("0").start();
    agent.wait_ready(10 * SECOND);
    let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
    assert_eq!(node.http_get(at(99), "/healthz").expect("a reply").status, 200);
    assert!(node.tcp_connect(at(METRICS)).is_err() && node.tcp_connect(at(HEALTH)).is_err());
}

#[test]
fn an_agent_that_must_have_its_ports_ends_without_them() {
    harness::require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let _taken = node.tcp_listen(HEALTH).expect("a free port");
    let config = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nbindAddressHardFail: true\n";
    let mut agent = node.agent().config(config).start();
    assert!(!agent.wait_ended(10 * SECOND).success());
    assert!(
        agent.log().contains("listening at 0.0.0.0:10256"),
        "{}",
        agent.log()
    );
}
