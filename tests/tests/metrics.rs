//! The metrics of a running agent: all documented series exist, and their values follow the traffic and the
//! objects.

use std::net::SocketAddr;
use std::time::Duration;

use harness::manifest::Manifest;
use harness::{Agent, Endpoint, Node, Probe, Service, World, wait_for};
use jiff::Timestamp;
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);
const METRICS: u16 = 10249;

/// The metrics page of a node's agent.
fn page(node: &Node) -> String {
    let reply = node.http_get(SocketAddr::from(([127, 0, 0, 1], METRICS)), "/metrics");
    let reply = reply.expect("the page");
    let kind = reply.header("content-type").expect("a type");
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    reply.body
}

/// The value of a series.
fn value(page: &str, series: &str) -> Option<f64> {
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map(|text| text.parse().expect("a number"))
}

#[track_caller]
fn wait_value(node: &Node, series: &str, good: impl Fn(f64) -> bool) -> f64 {
    wait_for(series, 5 * SECOND, || match value(&page(node), series) {
        Some(found) if good(found) => Ok(found),
        found => Err(format!("it is {found:?}")),
    })
}

#[test]
fn metrics_follow_objects_and_traffic() {
    harness::require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let (client, pod) = (node.add_pod("client"), node.add_pod("web"));
    let _server = pod.serve_tcp(8080);
    let agents: Vec<Agent> = world.start_agents();
    let before = page(node);
    assert_eq!(value(&before, "millrace_ready"), Some(1.0));
    assert_eq!(value(&before, "millrace_services"), Some(0.0));
    let full = "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}";
    assert_eq!(value(&before, full), Some(1.0), "{before}");

    let service = Service::new("web").cluster_ip("10.96.0.10").tcp("http", 80, 8080);
    world.apply(&service);
    wait_value(node, "millrace_services", |count| count >= 1.0);
    for slice in service.slices([Endpoint::of(&pod)]) {
        let mut object = slice.object();
        // The time is two seconds ahead. So it counts as a change after the agent's start at any precision of
        // the clock.
        let time = Timestamp::now() + 2 * SECOND;
        object["metadata"]["annotations"] =
            json!({"endpoints.kubernetes.io/last-change-trigger-time": time.to_string()});
        world.apply(&object);
    }
    wait_value(node, "millrace_endpoints", |count| count >= 1.0);
    let page_now = page(node);
    for series in [
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"}",
        "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"}",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"}",
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"}",
        "millrace_event_to_map_seconds_count",
        "millrace_writes_total",
        "millrace_map_capacity{map=\"flows\"}",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_start_time_seconds",
    ] {
        let found = value(&page_now, series);
        assert!(
            found.is_some_and(|found| found > 0.0),
            "{series}: {found:?}\n{page_now}"
        );
    }

    let connects = "millrace_packets_total{reason=\"socket_connect\"}";
    let sockets = value(&page_now, connects).unwrap_or_default();
    for _ in 0..5 {
        let to = "10.96.0.10:80".parse().expect("an address");
        client.ask(Probe::Tcp, to).expect("a reply");
    }
    wait_value(node, connects, |count| count >= sockets + 5.0);
    let health = SocketAddr::from(([127, 0, 0, 1], 10256));
    node.http_get(health, "/healthz").expect("a reply");
    wait_value(node, "kubeproxy_proxy_healthz_total{code=\"200\"}", |count| {
        count >= 1.0
    });

    // The policy leaves no endpoint on this node.
    let elsewhere = Endpoint::at(&["10.244.9.9".parse().expect("an address")]).on_node("n9");
    let local = Service::new("local")
        .cluster_ip("10.96.0.11")
        .tcp("http", 80, 8080);
    world.apply_all(local.slices([elsewhere]));
    world.apply(&local.set("internalTrafficPolicy", json!("Local")));
    let nowhere =
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\",ip_family=\"IPv4\"}";
    wait_value(node, nowhere, |count| count >= 1.0);
    drop(agents);
}
