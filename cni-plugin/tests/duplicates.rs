//! With `enabledad` ADD gives no address that another host uses, with the real binary and real neighbours.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which panic with what went wrong"
)]

#[expect(dead_code, reason = "this file needs a part of it")]
mod support;
mod wire;

use std::path::Path;
use std::time::Instant;

use cni_plugin::netlink::{NetlinkSocket, Request, ip};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use serde_json::{Value, json};
use support::{Called, World, interfaces, on_a_node, with};
use wire::{MAC, MAC_TEXT, WIRE, Wire, known, pretend};

/// Calls ADD with the key `enabledad` and some other changes.
#[expect(clippy::needless_pass_by_value, reason = "callers make the value in place")]
fn add(world: &World, container: &str, pod: &Path, changes: Value) -> Called {
    let config = with(world.config(), &json!({"enabledad": true}));
    World::call("ADD", container, Some(pod), &with(config, &changes))
}

/// The details of a refusal, after checks of its code and of the address in its message.
#[track_caller]
fn refused(called: &Called, code: u64, address: &str) -> String {
    assert_eq!(called.code(), code, "{called:?}");
    let message = called.document["msg"].as_str().unwrap();
    assert_eq!(message, format!("address {address} is in use"));
    called.document["details"].as_str().unwrap().to_owned()
}

fn addresses(result: &Value) -> [&str; 2] {
    [0, 1].map(|index| result["ips"][index]["address"].as_str().unwrap())
}

#[test]
fn an_address_of_a_neighbour_is_not_allocated() {
    on_a_node(|world| {
        let wire = Wire::connect(world);
        Wire::hurry(100);
        wire.give("10.244.1.2/24");
        wire.give("fd00:1::3/64");
        let pod = world.pod("pod");
        let before = world.traces();
        let owner = format!("{MAC_TEXT} on the link of interface {WIRE} has it");
        // Each ADD takes the next addresses, so that the third one succeeds.
        for address in ["10.244.1.2", "fd00:1::3"] {
            let details = refused(&add(world, "c1", &pod, json!({})), 11, address);
            assert_eq!(
                details,
                format!("{owner}: the next ADD tries the next one of its range")
            );
            assert_eq!(world.traces(), before);
            assert_eq!(World::inside(&pod, interfaces), ["lo"]);
            assert_eq!(known(address), None);
        }
        let result = add(world, "c1", &pod, json!({})).done();
        assert_eq!(addresses(&result), ["10.244.1.4/32", "fd00:1::4/128"]);
        assert_eq!(
            known("10.244.1.4"),
            Some(NeighbourState::Permanent),
            "the pod's own"
        );
        World::call("DEL", "c1", None, &world.config()).done();
        assert_eq!(world.traces(), before);
        for address in ["10.244.1.2", "fd00:1::3"] {
            let asked = json!({"runtimeConfig": {"ips": [address]}});
            let details = refused(&add(world, "c1", &pod, asked), 102, address);
            assert_eq!(details, format!("{owner}: ask for another one"));
            assert_eq!(world.traces(), before);
        }
    });
}

#[test]
fn an_address_of_the_node_is_not_allocated() {
    on_a_node(|world| {
        let mut node = NetlinkSocket::open().unwrap();
        for address in ["10.244.1.2", "fd00:1::3"] {
            let alone = ip::alone(address.parse().unwrap());
            node.ask(ip::address(1, alone)).unwrap();
        }
        ip::await_local(&mut node, "fd00:1::3".parse().unwrap()).unwrap();
        let pod = world.pod("pod");
        let before = world.traces();
        for address in ["10.244.1.2", "fd00:1::3"] {
            let details = refused(&add(world, "c1", &pod, json!({})), 11, address);
            assert!(details.starts_with("this node itself has it"), "{details}");
            assert_eq!(world.traces(), before);
        }
        let result = add(world, "c1", &pod, json!({})).done();
        assert_eq!(addresses(&result), ["10.244.1.4/32", "fd00:1::4/128"]);
    });
}

#[test]
fn an_address_of_another_pod_is_not_allocated() {
    on_a_node(|world| {
        let wire = Wire::connect(world);
        Wire::hurry(100);
        let (one, other) = (world.pod("one"), world.pod("other"));
        let result = add(world, "c1", &one, json!({})).done();
        let host = result["interfaces"][0]["name"].as_str().unwrap();
        let before = world.traces();
        // The leases of another network do not contain those of the first one.
        let elsewhere = |v4: &str, v6: &str| {
            let ranges = json!([[{"subnet": v4}], [{"subnet": v6}]]);
            json!({"ipam": {"dataDir": world.path("elsewhere"), "ranges": ranges}})
        };
        let both = elsewhere("10.244.1.0/24", "fd00:1::/64");
        let details = refused(&add(world, "c2", &other, both), 11, "10.244.1.2");
        assert!(
            details.starts_with(&format!("another pod of this node, at interface {host} has it")),
            "{details}"
        );
        let v6 = elsewhere("10.9.9.0/24", "fd00:1::/64");
        let asked = with(v6, &json!({"runtimeConfig": {"ips": ["fd00:1::2"]}}));
        refused(&add(world, "c2", &other, asked.clone()), 102, "fd00:1::2");
        // A runtime calls DEL after a failed ADD.
        World::call("DEL", "c2", None, &with(world.config(), &asked)).done();
        assert_eq!(world.traces(), before);
        assert_eq!(World::inside(&other, interfaces), ["lo"]);
        // A pod of another plugin may send no ARP reply, if the node has a permanent entry for it.
        let mut node = NetlinkSocket::open().unwrap();
        node.ask(ip::link_route(wire.index, "10.244.1.3".parse().unwrap()))
            .unwrap();
        let mac = [2, 0, 0, 0, 0xaa, 3];
        node.ask(ip::neighbour(wire.index, "10.244.1.3".parse().unwrap(), mac))
            .unwrap();
        let before = world.traces();
        let details = refused(&add(world, "c2", &other, json!({})), 11, "10.244.1.3");
        assert!(details.starts_with("02:00:00:00:aa:03 on the link"), "{details}");
        assert_eq!(world.traces(), before);
        assert_eq!(known("10.244.1.3"), Some(NeighbourState::Permanent));
    });
}

#[test]
fn an_address_without_a_reply_is_allocated() {
    on_a_node(|world| {
        let wire = Wire::connect(world);
        Wire::hurry(300);
        let pod = world.pod("pod");
        let timed = |changes: Value| {
            let begin = Instant::now();
            let result = add(world, "c1", &pod, changes).done();
            let took = begin.elapsed();
            assert!(wire.is_asked());
            world.del("c1", None).done();
            (result, took)
        };
        let (result, both) = timed(json!({}));
        assert_eq!(addresses(&result), ["10.244.1.2/32", "fd00:1::2/128"]);
        let ipam = json!({"dataDir": world.data_dir, "ranges": [[{"subnet": "10.244.1.0/24"}]]});
        let (result, one) = timed(json!({"ipam": ipam}));
        assert_eq!(result["ips"][0]["address"], "10.244.1.3/32");
        assert!(both < one * 3 / 2, "one after the other: {both:?}, {one:?}");
        for address in ["10.244.1.2", "fd00:1::2", "10.244.1.3"] {
            assert_eq!(known(address), None);
        }
    });
}

#[test]
fn a_known_neighbour_is_probed_again() {
    on_a_node(|world| {
        let wire = Wire::connect(world);
        Wire::hurry(100);
        let pod = world.pod("pod");
        for (states, index) in [
            ([NeighbourState::Stale, NeighbourState::Reachable], 2),
            ([NeighbourState::Reachable, NeighbourState::Delay], 3),
            ([NeighbourState::Probe, NeighbourState::Stale], 4),
        ] {
            // The owner of the addresses is gone.
            let pair = [format!("10.244.1.{index}"), format!("fd00:1::{index}")];
            for (address, state) in pair.iter().zip(states) {
                pretend(wire.index, address, MAC, state);
            }
            let result = add(world, "c1", &pod, json!({})).done();
            assert_eq!(addresses(&result)[0], format!("{}/32", pair[0]), "{states:?}");
            world.del("c1", None).done();
        }
        // The owner has moved to another Ethernet address than that of the kernel's entry.
        let before = world.traces();
        for address in ["10.244.1.5", "fd00:1::6"] {
            let length = if address.contains(':') { 64 } else { 24 };
            wire.give(&format!("{address}/{length}"));
            pretend(wire.index, address, [2, 0, 0, 0, 0xaa, 9], NeighbourState::Stale);
            let details = refused(&add(world, "c1", &pod, json!({})), 11, address);
            assert!(details.starts_with(MAC_TEXT), "{details}");
            assert_eq!(known(address), Some(NeighbourState::Reachable), "as it is now");
        }
        assert_eq!(world.traces(), before);
    });
}

/// A route of a type without a next hop; the agent makes one for the node's own range.
fn nowhere(to: &str, kind: RouteType) -> Request {
    let net: ipnet::IpNet = to.parse().unwrap();
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: if net.addr().is_ipv4() {
            netlink_packet_route::AddressFamily::Inet
        } else {
            netlink_packet_route::AddressFamily::Inet6
        },
        destination_prefix_length: net.prefix_len(),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Universe,
        kind,
        ..RouteHeader::default()
    };
    message
        .attributes
        .push(RouteAttribute::Destination(net.network().into()));
    Request::make("a route to nowhere", RouteNetlinkMessage::NewRoute(message))
}

#[test]
fn an_address_that_is_not_on_link_is_not_probed() {
    on_a_node(|world| {
        let wire = Wire::connect(world);
        let mut node = NetlinkSocket::open().unwrap();
        let route_types = [RouteType::Unreachable, RouteType::BlackHole, RouteType::Prohibit];
        for (index, kind) in route_types.into_iter().enumerate() {
            let (v4, v6) = (format!("10.{index}.0.0/16"), format!("fd00:{index}00::/48"));
            node.batch(vec![nowhere(&v4, kind), nowhere(&v6, kind)]).unwrap();
        }
        // Addresses behind a gateway, and addresses without a route.
        let routes: Vec<cni_plugin::spec::result::Route> =
            serde_json::from_value(json!([{"dst": "10.8.0.0/16"}])).unwrap();
        node.ask(ip::link_route(wire.index, "169.254.1.1".parse().unwrap()))
            .unwrap();
        node.ask(ip::gateway_route(wire.index, &routes[0])).unwrap();
        for (index, name) in [(0, "a"), (1, "b"), (2, "c"), (8, "d"), (9, "e")] {
            let pod = world.pod(name);
            let ranges = json!([[{"subnet": format!("10.{index}.0.0/16")}],
                                [{"subnet": format!("fd00:{index}00::/64")}]]);
            let ipam = json!({"ipam": {"dataDir": world.path(&format!("{name}-leases")), "ranges": ranges}});
            wire.is_asked();
            add(world, name, &pod, ipam).done();
            assert!(!wire.is_asked(), "{index}");
        }
    });
}

#[test]
fn without_the_key_no_address_is_probed() {
    on_a_node(|world| {
        let wire = Wire::connect(world);
        for address in ["10.244.1.2/24", "fd00:1::2/64", "10.244.1.4/24"] {
            wire.give(address);
        }
        // Discards the frames from the set-up of the link.
        wire.is_asked();
        for (container, key) in [("c1", json!({})), ("c2", json!({"enabledad": false}))] {
            let pod = world.pod(container);
            World::call("ADD", container, Some(&pod), &with(world.config(), &key)).done();
            assert!(!wire.is_asked(), "{key}");
        }
        let pod = world.pod("c3");
        refused(&add(world, "c3", &pod, json!({})), 11, "10.244.1.4");
        assert!(wire.is_asked());
    });
}
