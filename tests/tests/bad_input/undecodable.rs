//! Objects of an API server that cannot be decoded, among others that can.

use harness::manifest::{Family, service_cidrs};
use harness::{Endpoint, EndpointSlice, Manifest, Service};
use serde_json::{Value, json};

use crate::api_server::ApiServer;
use crate::fixture::{Fixture, SECOND, good, started};

/// A Service with a number in place of its ports.
fn broken_service(name: &str) -> Value {
    let service = Service::new(name).cluster_ip("10.96.1.9").tcp("http", 80, 8080);
    let mut object = service.object();
    object["spec"]["ports"] = json!(7);
    object
}

/// A slice of a Service, with a text in place of its endpoints.
fn broken_slice(service: &Service, name: &str) -> Value {
    let mut object = EndpointSlice::of(service, Family::V4).named(name).object();
    object["endpoints"] = json!("none");
    object
}

/// Serves bad objects at the beginning and later, restarts the agent, and checks the good objects.
fn assert_affect_only_themselves(streams_lists: bool) {
    let fixture = Fixture::open();
    let api = ApiServer::start(&fixture.world, streams_lists);
    let (service, slices) = (good(), good().slices([&fixture.a, &fixture.b].map(Endpoint::of)));
    api.put(&service_cidrs());
    api.put(&fixture.node().object());
    // In lists some bad objects come before the good ones.
    for name in ["a-torn", "torn"] {
        api.put(&broken_service(name));
        api.put(&broken_slice(&service, name));
    }
    api.put(&service);
    for slice in &slices {
        api.put(slice);
    }
    let mut agent = started(fixture.node().agent().source(api.source()));
    let (ports, endpoints) = (
        "it cannot be read: spec.ports: ",
        "it cannot be read: endpoints: ",
    );
    let mut bad = vec![
        ("Service default/a-torn", ports),
        ("Service default/torn", ports),
        ("EndpointSlice default/a-torn", endpoints),
        ("EndpointSlice default/torn", endpoints),
    ];
    fixture.wait_errors(&bad);
    fixture.assert_served();

    // One bad object of each kind in the watch, and good ones after them.
    let next = Service::new("next").cluster_ip("10.96.1.2").tcp("http", 80, 8080);
    api.put(&broken_service("later"));
    api.put(&broken_slice(&next, "later"));
    api.put(&EndpointSlice::of(&next, Family::V4).endpoints([Endpoint::of(&fixture.a)]));
    api.put(&next);
    fixture.wait_reply("10.96.1.2:80", "a");
    bad.extend([
        ("Service default/later", ports),
        ("EndpointSlice default/later", endpoints),
    ]);
    fixture.wait_errors(&bad);

    // A good object becomes bad, and good again.
    api.put(&broken_service("good"));
    let all: Vec<_> = bad
        .iter()
        .copied()
        .chain([("Service default/good", ports)])
        .collect();
    fixture.wait_errors(&all);
    fixture.assert_served();
    api.put(&service);
    fixture.wait_errors(&bad);

    agent.restart();
    agent.wait_ready(10 * SECOND);
    fixture.wait_reply("10.96.1.2:80", "a");
    fixture.assert_served();
    fixture.wait_errors(&bad);

    api.delete(&broken_service("torn"));
    bad.retain(|(object, _)| *object != "Service default/torn");
    fixture.wait_errors(&bad);
    fixture.assert_served();
}

#[test]
fn undecodable_objects_affect_only_themselves() {
    harness::require_root!();
    assert_affect_only_themselves(true);
}

#[test]
fn undecodable_objects_affect_only_themselves_in_lists_of_pages() {
    harness::require_root!();
    assert_affect_only_themselves(false);
}
