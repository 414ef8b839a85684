//! What bad fields do: they are reported by name and spoil the place they stand in, and the rest of the object is served.

use super::state_tests::{SERVICE, SLICE, World, cart, service, slice};
use crate::source::{Change, Kind, ObjectId};

#[test]
fn bad_fields_of_a_service_are_named_and_spoil_only_themselves() {
    let bad = SERVICE
        .replace("\"fd00:10:96::a\"", "\"10.96.0.11\", \"ten\"")
        .replace("\"ports\": [", r#""ports": [{"port": 70000}, {"port": 1, "protocol": "ICMP"}, {"name": "x"}, {"port": 80, "name": "http"}, "#);
    let mut world = World::new();
    assert!(world.dirties(service(&bad)));
    let cart = world.0.service(cart()).expect("the rest is served");
    assert_eq!((cart.ports.len(), cart.cluster_ips().count()), (2, 1));
    let problems = world.0.problems();
    assert_eq!(problems[0].object, "Service shop/cart");
    for (message, part) in problems[0].messages.iter().zip([
        "spec.clusterIPs[1]: 10.96.0.11 is a second IPv4 address",
        "spec.clusterIPs[2]: \"ten\" is not an address",
        "spec.ports[0].port: 70000 is outside 1–65535",
        "spec.ports[1].protocol: \"ICMP\"",
        "spec.ports[2].port: missing",
        "spec.ports[4]: 80/TCP stands in the list before",
    ]) {
        assert!(message.starts_with(part), "{message} is not about {part}");
    }
    assert_eq!(problems[0].messages.len(), 6);
    world.apply(service(SERVICE));
    assert!(world.messages().is_empty());
}

#[test]
fn bad_fields_of_a_slice_are_named_and_spoil_only_themselves() {
    let bad = SLICE
        .replace("\"ports\": [", r#""ports": [{"name": "p", "port": 0}, "#)
        .replace(
            "\"endpoints\": [",
            r#""endpoints": [{"addresses": ["fd00::1"]}, {"addresses": ["10.1"]}, {"addresses": []}, "#,
        );
    let mut world = World::new();
    world.apply(service(SERVICE));
    assert!(world.dirties(slice(&bad)));
    assert_eq!(world.endpoint_names(), ["10.1.0.1:8080", "10.1.0.2:8080"]);
    let messages = world.messages();
    assert!(
        messages[0].starts_with("ports[0].port: 0 is outside"),
        "{messages:?}"
    );
    assert!(
        messages[1].starts_with("endpoints[0].addresses[0]: fd00::1 is IPv6 in a slice of addressType IPv4"),
        "{messages:?}"
    );
    assert!(
        messages[2].starts_with("endpoints[1].addresses[0]: \"10.1\" is not an address"),
        "{messages:?}"
    );
    assert!(
        messages[3].starts_with("endpoints[2].addresses: empty"),
        "{messages:?}"
    );
    world.apply(Change::Delete(
        Kind::EndpointSlice,
        ObjectId::new(Kind::EndpointSlice, "shop", "cart-a"),
    ));
    assert!(world.messages().is_empty(), "the problem goes with its object");
}
