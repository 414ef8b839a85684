//! Bad fields: they are reported by name, and the part that they stand in is left out. The rest of the object
//! is served.

use super::state_tests::{SERVICE, SLICE, World, cart, service, slice};
use crate::source::{Change, Kind, ObjectId, Unreadable};

#[test]
fn bad_fields_of_a_service_are_named_and_affect_only_themselves() {
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
fn bad_fields_of_a_slice_are_named_and_affect_only_themselves() {
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

fn unreadable(id: ObjectId, name: &str) -> Change {
    Change::Unreadable(Unreadable {
        kind: Kind::Service,
        object: Some((id, name.to_owned())),
        message: "spec: a text".to_owned(),
    })
}

#[test]
fn an_object_that_cannot_be_read_keeps_its_last_form_until_it_goes() {
    let mut world = World::new();
    world.apply(service(SERVICE));
    let gone = ObjectId::new(Kind::Service, "shop", "gone");
    assert!(
        world.dirties(unreadable(cart(), "Service shop/cart")),
        "its owner is told"
    );
    world.apply(unreadable(gone, "Service shop/gone"));
    let reported =
        "it cannot be read: spec: a text; the last form of it that could be read counts, if there was one";
    assert_eq!(world.messages(), [reported, reported]);

    // The list names the first Service, still unreadable, and not the second.
    world.apply(Change::Begin(Kind::Service));
    world.apply(unreadable(cart(), "Service shop/cart"));
    world.apply(Change::End(Kind::Service));
    assert!(world.0.service(cart()).is_some());
    assert_eq!(world.messages(), [reported]);

    world.apply(service(SERVICE));
    assert!(world.messages().is_empty(), "it can be read again");
    world.apply(unreadable(cart(), "Service shop/cart"));
    assert!(world.dirties(Change::Delete(Kind::Service, cart())));
    assert!(world.0.service(cart()).is_none() && world.messages().is_empty());
}

#[test]
fn a_list_with_something_nameless_takes_nothing_away() {
    let mut world = World::new();
    world.apply(service(SERVICE));
    let nameless = || {
        Change::Unreadable(Unreadable {
            kind: Kind::Service,
            object: None,
            message: "metadata.name: missing".to_owned(),
        })
    };
    world.apply(Change::Begin(Kind::Service));
    world.apply(nameless());
    world.apply(Change::End(Kind::Service));
    assert!(world.0.service(cart()).is_some());
    assert_eq!(world.0.problems()[0].object, "one of the services");
    world.apply(Change::Begin(Kind::Service));
    world.apply(Change::End(Kind::Service));
    assert!(world.0.service(cart()).is_none() && world.messages().is_empty());
}

#[test]
fn what_is_wrong_with_an_object_goes_with_it_though_nothing_of_it_was_stored() {
    let mut world = World::new();
    world.apply(slice(&SLICE.replace("kubernetes.io/service-name", "other")));
    assert_eq!(world.messages().len(), 1);
    world.apply(Change::Begin(Kind::EndpointSlice));
    world.apply(Change::End(Kind::EndpointSlice));
    assert!(world.messages().is_empty());
}

#[test]
fn a_cluster_ip_that_can_be_no_services_is_left_out() {
    for bad in [
        "127.0.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "0.0.0.1",
        "255.255.255.255",
    ] {
        let mut world = World::new();
        world.apply(service(&SERVICE.replace("10.96.0.010", bad)));
        let service = world.0.service(cart()).expect("its other address is good");
        assert_eq!(service.cluster_ips().count(), 1, "{bad}");
        assert!(
            world.messages()[0].contains("cannot be a service's address"),
            "{bad}"
        );
    }
}
