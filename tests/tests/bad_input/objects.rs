//! Invalid objects: the agent reports them and serves the rest.

use harness::manifest::Family;
use harness::{Endpoint, EndpointSlice, Manifest, Service};
use proxy_common::maps::Reason;
use serde_json::{Value, json};

use crate::fixture::{Fixture, started};

const BROKEN_SYNTAX: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: cart\nspec:\n  clusterIP: 10.96.1.1\n";

fn cart(port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: cart\nspec:\n  clusterIP: 10.96.1.1\n  ports:\n  - name: http\n    port: {port}\n    targetPort: 8080\n"
    )
}

#[test]
fn a_file_that_stops_parsing_keeps_its_last_good_content() {
    harness::require_root!();
    let fixture = Fixture::open();
    let _agent = started(fixture.node().agent());
    let source = fixture.node().source();
    let slice = EndpointSlice::of(&Service::new("cart").tcp("http", 80, 8080), Family::V4);
    source.apply(&slice.endpoints([Endpoint::of(&fixture.a)]));
    source.write_text("cart.yaml", &cart("80"));
    fixture.wait_reply("10.96.1.1:80", "a");
    fixture.wait_errors(&[]);

    source.write_text("cart.yaml", &cart("eighty"));
    let file = source.path().join("cart.yaml").display().to_string();
    fixture.wait_errors(&[(&format!("file {file}"), "line 9, field spec.ports[0].port: ")]);
    fixture.wait_errors(&[(&file, "its last good content stays served")]);
    fixture.wait_reply("10.96.1.1:80", "a");

    source.write_text("cart.yaml", BROKEN_SYNTAX);
    fixture.wait_errors(&[(&file, "line ")]);
    fixture.wait_reply("10.96.1.1:80", "a");
    fixture.assert_served();

    source.write_text(
        "new.yaml",
        "kind: Service\napiVersion: v1\nmetadata: {name: new}\nspec: 7\n",
    );
    let new = source.path().join("new.yaml").display().to_string();
    fixture.wait_errors(&[(&file, "line "), (&new, "nothing in it is served")]);
    source.delete_file("new.yaml");

    source.write_text("cart.yaml", &cart("81"));
    fixture.wait_reply("10.96.1.1:81", "a");
    fixture.wait_errors(&[]);
    fixture.assert_served();
}

#[test]
fn fields_that_are_not_known_are_ignored_in_objects_of_kubernetes() {
    harness::require_root!();
    let fixture = Fixture::open();
    let _agent = started(fixture.node().agent());
    let service = fixture.serve("next", (1, 2), &[&fixture.a]);
    let mut object = service.object();
    object["spec"]["sidecars"] = json!([{"port": "none"}, 7]);
    object["status"] = json!({"weather": {"today": "rain"}});
    object["metadata"]["managedFields"] = json!([{"fieldsV1": {"f:spec": {}}}]);
    object["spec"]["ports"][0]["appProtocol"] = json!("h9");
    fixture.world.apply(&object);
    let mut slice = EndpointSlice::of(&service, Family::V4)
        .endpoints([Endpoint::of(&fixture.b)])
        .object();
    slice["endpoints"][0]["mood"] = json!("good");
    fixture.world.apply(&slice);
    fixture.wait_reply("10.96.1.2:80", "b");
    fixture.wait_errors(&[]);
}

#[test]
fn a_port_out_of_range_affects_only_itself() {
    harness::require_root!();
    let fixture = Fixture::open();
    let _agent = started(fixture.node().agent());
    let service = fixture.serve("ports", (1, 3), &[&fixture.a]);
    let mut object = service.object();
    for (name, port) in [
        ("large", json!(70_000)),
        ("zero", json!(0)),
        ("negative", json!(-1)),
    ] {
        let ports = object["spec"]["ports"].as_array_mut().expect("a list");
        ports.push(json!({"name": name, "port": port}));
    }
    fixture.world.apply(&object);
    let errors = [
        (
            "Service default/ports",
            "spec.ports[1].port: 70000 is outside 1–65535",
        ),
        ("Service default/ports", "spec.ports[2].port: 0 is outside"),
        ("Service default/ports", "spec.ports[3].port: -1 is outside"),
    ];
    fixture.wait_errors(&errors);
    fixture.wait_reply("10.96.1.3:80", "a");
    fixture.world.apply(&service);
    fixture.wait_errors(&[]);

    let mut slice = EndpointSlice::of(&service, Family::V4)
        .endpoints([Endpoint::of(&fixture.a)])
        .object();
    slice["ports"] = json!([{"name": "other", "port": 99_999}, {"name": "http", "port": 8080}]);
    fixture.world.apply(&slice);
    fixture.wait_errors(&[(
        "EndpointSlice default/ports-ipv4",
        "ports[0].port: 99999 is outside 1–65535; the port is left out",
    )]);
    fixture.wait_reply("10.96.1.3:80", "a");
    fixture.assert_served();
}

#[test]
fn a_backend_of_another_family_is_left_out() {
    harness::require_root!();
    let fixture = Fixture::open();
    let _agent = started(fixture.node().agent());
    let service = fixture.serve("mixed", (1, 4), &[&fixture.a]);
    let mut slice = EndpointSlice::of(&service, Family::V4)
        .endpoints([&fixture.a, &fixture.b].map(Endpoint::of))
        .object();
    slice["endpoints"][1]["addresses"] = json!([fixture.b.ip6()]);
    fixture.world.apply(&slice);
    let message = format!(
        "endpoints[1].addresses[0]: {} is IPv6 in a slice of addressType IPv4",
        fixture.b.ip6()
    );
    fixture.wait_errors(&[("EndpointSlice default/mixed-ipv4", &message)]);
    fixture.wait_reply("10.96.1.4:80", "a");
    fixture.assert_served();
}

/// A service with this time of creation.
fn born(service: &Service, when: &str) -> Value {
    let mut object = service.object();
    object["metadata"]["creationTimestamp"] = json!(when);
    object
}

#[test]
fn of_two_services_with_one_address_the_older_has_it_and_the_other_inherits() {
    harness::require_root!();
    let fixture = Fixture::open();
    let _agent = started(fixture.node().agent());
    let young = fixture.serve("young", (1, 5), &[&fixture.b]);
    fixture.world.apply(&born(&young, "2026-02-01T00:00:00Z"));
    fixture.wait_reply("10.96.1.5:80", "b");
    fixture.wait_errors(&[]);

    // The agent compares times of creation, not times of arrival.
    let old = Service::new("old")
        .cluster_ip("10.96.1.5")
        .tcp("http", 80, 8080)
        .tcp("more", 81, 8080);
    fixture.world.apply_all(old.slices([Endpoint::of(&fixture.a)]));
    let old = born(&old, "2026-01-01T00:00:00Z");
    fixture.world.apply(&old);
    fixture.wait_reply("10.96.1.5:80", "a");
    fixture.wait_reply("10.96.1.5:81", "a");
    let taken = [(
        "Service default/young",
        "10.96.1.5 port 80: already taken by the older Service default/old; left out",
    )];
    fixture.wait_errors(&taken);
    let list = fixture.node().cli(&["service", "list"]).expect("a list");
    let owners: Vec<_> = list
        .as_array()
        .expect("a list")
        .iter()
        .filter(|entry| entry["address"] == "10.96.1.5")
        .map(|entry| (entry["name"].clone(), entry["portNumber"].clone()))
        .collect();
    assert_eq!(owners, [(json!("old"), json!(80)), (json!("old"), json!(81))]);

    fixture.world.delete(&old);
    fixture.wait_reply("10.96.1.5:80", "b");
    fixture.wait_unserved("10.96.1.5:81", &[Reason::NoSuchPort]);
    fixture.wait_errors(&[]);
    fixture.assert_served();
}

#[test]
fn an_external_address_that_becomes_a_cluster_ip_is_given_up_and_comes_back() {
    harness::require_root!();
    let fixture = Fixture::open();
    let _agent = started(fixture.node().agent());
    // The address is outside of the known ranges.
    let (address, port) = ("172.31.9.9", "172.31.9.9:80");
    let old = fixture.serve("old", (1, 7), &[&fixture.b]);
    let old = born(&old.set("externalIPs", json!([address])), "2026-01-01T00:00:00Z");
    fixture.world.apply(&old);
    fixture.wait_reply(port, "b");
    fixture.wait_errors(&[]);

    let owner = Service::new("owner").cluster_ip(address).tcp("http", 80, 8080);
    fixture.world.apply_all(owner.slices([Endpoint::of(&fixture.a)]));
    let owner = born(&owner, "2026-02-01T00:00:00Z");
    fixture.world.apply(&owner);
    fixture.wait_reply(port, "a");
    fixture.wait_errors(&[(
        "Service default/old",
        "spec.externalIPs: 172.31.9.9 is the cluster IP of Service default/owner; it is left out",
    )]);
    fixture.wait_reply("10.96.1.7:80", "b");

    fixture.world.delete(&owner);
    fixture.wait_reply(port, "b");
    fixture.wait_errors(&[]);
    fixture.assert_served();
}

#[test]
fn where_two_slices_disagree_the_better_state_holds() {
    harness::require_root!();
    let fixture = Fixture::open();
    let _agent = started(fixture.node().agent());
    let service = fixture.serve("twice", (1, 6), &[]);
    let slice = |name: &str, endpoints: Vec<Endpoint>| {
        let slice = EndpointSlice::of(&service, Family::V4).named(name);
        fixture.world.apply(&slice.endpoints(endpoints));
    };
    slice("twice-1", vec![Endpoint::of(&fixture.a).not_ready()]);
    fixture.wait_unserved("10.96.1.6:80", &[Reason::SocketRefused, Reason::NoEndpoints]);
    slice("twice-2", vec![Endpoint::of(&fixture.a)]);
    fixture.wait_reply("10.96.1.6:80", "a");
    fixture.wait_errors(&[("Service default/twice", "EndpointSlice twice-2")]);
    fixture.wait_errors(&[(
        "Service default/twice",
        "in EndpointSlice twice-1; the former is used",
    )]);
    // Equal states are no disagreement, and the endpoint counts once.
    slice("twice-1", vec![Endpoint::of(&fixture.a)]);
    fixture.wait_errors(&[]);
    let list = fixture.node().cli(&["service", "list"]).expect("a list");
    let entry = list
        .as_array()
        .expect("a list")
        .iter()
        .find(|entry| entry["name"] == "twice");
    assert_eq!(
        entry.expect("the service")["backends"].as_array().map(Vec::len),
        Some(1)
    );
    fixture.assert_served();
}
