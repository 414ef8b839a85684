//! The agent's reports to the owners of objects: events at the API server.

use std::net::SocketAddr;
use std::time::Duration;

use harness::forge::packet;
use harness::kubernetes::ControlPlane;
use harness::{Endpoint, Service, Source, World, require_kubernetes, wait_for};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);
const CHECK: u16 = 31999;
const HEALTHZ: u16 = 10256;
const NODE_PORT: u16 = 30_080;
/// More SYNs of one client, and more connections of one peer, than their shares.
const HANDSHAKES: u16 = 30_000;
const CONNECTIONS: usize = 32;

#[test]
fn a_health_check_port_that_cannot_be_had_is_an_event_on_its_service() {
    require_kubernetes!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let plane = ControlPlane::start(&world);
    plane.apply(&node.object());
    plane.apply_status(&node.object());
    let _taken = node.tcp_listen(CHECK).expect("a free port");
    let service = Service::new("web")
        .cluster_ip("10.96.0.10")
        .tcp("http", 80, 8080)
        .set("type", json!("LoadBalancer"))
        .set("externalTrafficPolicy", json!("Local"))
        .set("healthCheckNodePort", json!(CHECK));
    plane.apply(&service);
    let source = Source::Kubernetes {
        kubeconfig: plane.kubeconfig(),
    };
    // Another service has addresses that no service may have.
    let greedy = Service::new("greedy")
        .cluster_ip("10.96.0.11")
        .tcp("http", 80, 8080)
        .set("externalIPs", json!(["224.0.1.1", "10.96.0.99", "203.0.113.9"]));
    plane.apply(&greedy);
    let mut agent = node.agent().source(source).start();
    agent.wait_ready(30 * SECOND);
    let events = wait_for("the event", 10 * SECOND, || {
        let list = plane.get("/apis/events.k8s.io/v1/namespaces/default/events")?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let ours = |event: &serde_json::Value| event["reason"] == "FailedToStartServiceHealthcheck";
        let found: Vec<_> = items.into_iter().filter(ours).collect();
        if found.is_empty() {
            Err(anyhow::anyhow!("there is none"))
        } else {
            Ok(found)
        }
    });
    assert_eq!(events.len(), 1, "{events:?}");
    let event = &events[0];
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["regarding"]["kind"], "Service");
    assert_eq!(event["regarding"]["name"], "web");
    let text = event["note"].as_str().expect("a note");
    assert!(
        text.contains("healthCheckNodePort 31999") && text.contains("Address already in use"),
        "{text}"
    );

    let reported = wait_for("the other event", 10 * SECOND, || {
        let list = plane.get("/apis/events.k8s.io/v1/namespaces/default/events")?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let found = items.iter().find(|event| event["reason"] == "NotFullyServed");
        let event = found.ok_or_else(|| anyhow::anyhow!("there is none"))?;
        assert_eq!(event["regarding"]["name"], "greedy");
        Ok::<_, anyhow::Error>(event["note"].as_str().expect("a note").to_owned())
    });
    assert!(
        reported.contains("224.0.1.1") && reported.contains("10.96.0.99"),
        "{reported}"
    );
    assert!(!reported.contains("203.0.113.9"), "{reported}");

    let metrics = node.http_get(SocketAddr::from(([127, 0, 0, 1], 10249)), "/metrics");
    let page = metrics.expect("the page").body;
    let host = plane.url().replace("https://", "");
    let requests = |code, method| {
        let labels = format!("{{code=\"{code}\",host=\"{host}\",method=\"{method}\"}}");
        format!("rest_client_requests_total{labels} ")
    };
    for series in [requests(200, "GET"), requests(201, "POST")] {
        assert!(page.contains(&series), "no {series}in {page}");
    }
}

#[test]
fn a_problem_of_a_node_is_an_event_on_it() {
    require_kubernetes!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let outside = world.add_client("outside");
    let plane = ControlPlane::start(&world);
    plane.apply(&node.object());
    plane.apply_status(&node.object());
    let service = Service::new("web")
        .cluster_ip("10.96.0.10")
        .tcp("http", 80, 8080)
        .node_port("http", NODE_PORT);
    plane.apply(&service);
    for slice in service.slices([Endpoint::at(&[outside.ip().into()])]) {
        plane.apply(&slice);
    }
    let source = Source::Kubernetes {
        kubeconfig: plane.kubeconfig(),
    };
    let mut agent = node.agent().source(source).start();
    agent.wait_ready(30 * SECOND);
    let reported = |reason: &str, type_: &str, part: &str| {
        wait_for(&format!("the event {reason}"), 20 * SECOND, || {
            let list = plane.get("/apis/events.k8s.io/v1/namespaces/default/events")?;
            let items = list["items"].as_array().cloned().unwrap_or_default();
            let ours = |event: &&serde_json::Value| {
                event["reason"] == reason && event["note"].as_str().is_some_and(|note| note.contains(part))
            };
            let event = items.iter().find(ours);
            let event = event.ok_or_else(|| anyhow::anyhow!("none among {items:?}"))?;
            assert_eq!(event["type"], type_, "{event}");
            assert_eq!(event["regarding"]["kind"], "Node", "{event}");
            assert_eq!(event["regarding"]["name"], "n1", "{event}");
            Ok::<_, anyhow::Error>(())
        });
    };

    std::fs::remove_file(node.bpf_root().join("current/maps/FRONTENDS")).expect("a pin");
    reported("DataPlaneRestored", "Normal", "pins");

    node.run_ip("rule add to 10.96.0.0/16 pref 100 unreachable");
    reported("DataPlaneIncomplete", "Warning", "route 10.96.");
    node.run_ip("rule del to 10.96.0.0/16 pref 100 unreachable");

    let (forge, to) = (
        outside.forge_to(node),
        SocketAddr::new(node.ip().into(), NODE_PORT),
    );
    for number in 0..HANDSHAKES {
        let from = SocketAddr::from(([192, 168, 50, 222], 1024 + number));
        forge.send(&packet::tcp(from, to, packet::SYN, 1, b""));
    }
    reported("ClientShareReached", "Warning", "192.168.50.222: the share of ");

    let healthz = SocketAddr::new(node.ip().into(), HEALTHZ);
    let _held: Vec<_> = (0..CONNECTIONS)
        .filter_map(|_| outside.tcp_connect(healthz).ok())
        .collect();
    reported("TooManyConnections", "Warning", &outside.ip().to_string());
}
