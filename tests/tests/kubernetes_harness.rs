//! The harness's control plane: a real etcd and kube-apiserver that tests can
//! fill, interrupt and bring back.

use std::time::Instant;

use harness::kubernetes::ControlPlane;
use harness::{Endpoint, Service, World, require_kubernetes};
use serde_json::json;

#[test]
fn a_control_plane_serves_and_survives_its_api_server() {
    require_kubernetes!();
    let world = World::with_nodes(1);
    let started = Instant::now();
    let mut plane = ControlPlane::start(&world);
    println!("ready in {:?}", started.elapsed());
    assert_eq!(plane.text("/readyz").expect("a reply"), "ok");

    let web = Service::new("web")
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:96::10")
        .tcp("http", 80, 8080);
    let pod = world.node(1).add_pod("web-1");
    assert_eq!(
        plane.apply(&web)["spec"]["clusterIPs"],
        json!(["10.96.0.10", "fd00:96::10"])
    );
    for slice in web.slices([Endpoint::of(&pod)]) {
        plane.apply(&slice);
    }
    plane.apply(&world.node(1).object());
    plane.apply(&web.clone().tcp("alt", 81, 8080));
    assert_eq!(
        plane.apply(&web)["spec"]["ports"].as_array().map(Vec::len),
        Some(1)
    );
    plane.apply_status(&world.node(1).object());
    let node = plane.get("/api/v1/nodes/n1").expect("the node");
    assert_eq!(node["status"]["addresses"][0]["address"], "192.168.50.11");
    let patched = plane.patch(&web, &json!({"metadata": {"labels": {"a": "b"}}}));
    assert_eq!(patched["metadata"]["labels"]["a"], "b");

    plane.kill_api_server();
    assert!(plane.text("/readyz").is_err());
    plane.start_api_server();
    let slices = plane
        .get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices")
        .expect("the slices");
    let names: Vec<_> = slices["items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|s| &s["metadata"]["name"])
        .collect();
    assert!(
        names.contains(&&json!("web-ipv4")) && names.contains(&&json!("web-ipv6")),
        "{names:?}"
    );
    plane.delete(&web);
    assert!(plane.get("/api/v1/namespaces/default/services/web").is_err());

    let many = (0..250).map(|i| Service::new(&format!("s{i}")).cluster_ip(&format!("10.96.1.{}", i + 1)));
    let started = Instant::now();
    plane.create_all(many.map(|service| service.tcp("http", 80, 8080)));
    println!("250 services created in {:?}", started.elapsed());
}

#[test]
fn nodes_reach_the_api_server() {
    require_kubernetes!();
    let world = World::with_nodes(1);
    let plane = ControlPlane::start(&world);
    let address = plane
        .url()
        .trim_start_matches("https://")
        .parse()
        .expect("an address");
    world
        .node(1)
        .tcp_connect(address)
        .expect("a connection from the node");
}
