//! The requests that a tenant can make by its runtime: they affect its own pod and never another one.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which panic with what went wrong"
)]

#[expect(dead_code, reason = "this file needs a part of it")]
mod support;

use std::collections::BTreeSet;

use cni_plugin::attachment::{host_mac, mac_text};
use cni_plugin::config::Attachment;
use cni_plugin::netlink::{NetlinkSocket, Request};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use proxy_common::maps::AddressFlags;
use serde_json::{Value, json};
use support::{Called, NODE_V4, NODE_V6, World, interfaces, on_a_node, with};

fn ask(world: &World, name: &str, runtime: &Value) -> Called {
    let path = world.path(name);
    let pod = if path.exists() { path } else { world.pod(name) };
    let config = with(world.config(), &json!({ "runtimeConfig": runtime }));
    World::call("ADD", name, Some(&pod), &config)
}

fn ask_for_port(world: &World, name: &str, host_ip: &str) -> Called {
    let port = json!({"hostPort": 8443, "containerPort": 8080, "protocol": "tcp", "hostIP": host_ip});
    ask(world, name, &json!({"portMappings": [port]}))
}

/// Makes a whole prefix local by a route, as for anycast addresses.
fn make_local() {
    let mut message = RouteMessage::default();
    message.header.address_family = netlink_packet_route::AddressFamily::Inet;
    message.header.destination_prefix_length = 24;
    message.header.table = 255;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    message.attributes = vec![
        RouteAttribute::Oif(1),
        RouteAttribute::Destination(RouteAddress::Inet([198, 51, 100, 0].into())),
    ];
    let request = Request::make("making a range local", RouteNetlinkMessage::NewRoute(message));
    NetlinkSocket::open().unwrap().ask(request).unwrap();
}

#[test]
fn a_host_port_at_an_address_that_is_not_the_nodes_is_refused() {
    on_a_node(|world| {
        make_local();
        // The address of a service on an interface of the node, as with an IPVS proxy.
        support::give_node("10.96.0.10");
        world.enter_address("10.96.0.10".parse().unwrap(), AddressFlags::VIRTUAL);
        // A link-local address of the node, as for a DNS cache on each node.
        support::give_node("169.254.20.10");
        ask(world, "other", &json!({})).done();
        let before = world.traces();
        for (address, named) in [
            ("8.8.8.8", "8.8.8.8"),
            ("::ffff:8.8.8.8", "8.8.8.8"),
            ("2001:4860:4860::8888", "2001:4860:4860::8888"),
            // An address that looks like an IPv4 address of the node and is a different one.
            ("::192.0.2.1", "::c000:201"),
            // The address of another pod, and one that no pod has yet.
            ("10.244.1.2", "10.244.1.2"),
            ("fd00:1::2", "fd00:1::2"),
            ("10.244.1.77", "10.244.1.77"),
            ("10.96.0.10", "10.96.0.10"),
            ("198.51.101.7", "198.51.101.7"),
            ("255.255.255.255", "255.255.255.255"),
            ("224.0.0.1", "224.0.0.1"),
            ("ff02::1", "ff02::1"),
            ("0.0.0.1", "0.0.0.1"),
            ("169.254.1.1", "169.254.1.1"),
            // The gateway's address, which the interfaces of all pods have, and another link-local address.
            ("fe80::1", "fe80::1"),
            ("169.254.20.10", "169.254.20.10"),
        ] {
            let refused = ask_for_port(world, "pod", address);
            assert_eq!(refused.code(), 110, "{address}: {}", refused.document);
            let details = refused.document["msg"].as_str().unwrap();
            assert!(details.contains(&format!("hostIP {named} ")), "{details}");
            assert_eq!(world.traces(), before, "{address}");
        }
        assert_eq!(ask_for_port(world, "pod", "fe80::1%eth0").code(), 7);
        for name in ["pod", "other"] {
            assert_eq!(
                World::inside(&world.path(name), interfaces).len(),
                1 + usize::from(name == "other")
            );
        }
    });
}

#[test]
fn a_host_port_is_for_each_address_of_the_node() {
    on_a_node(|world| {
        make_local();
        // An address of the node that is also a service's, by externalIPs.
        world.enter_address(
            NODE_V4.parse().unwrap(),
            AddressFlags::VIRTUAL | AddressFlags::NODE,
        );
        // A link-local address that a route makes the node's, with the entry of an agent.
        support::give_node("169.254.20.10");
        world.enter_address("169.254.20.10".parse().unwrap(), AddressFlags::NODE);
        for address in [
            NODE_V4,
            "::ffff:192.0.2.1",
            NODE_V6,
            "198.51.100.7",
            "169.254.20.10",
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "0.0.0.0",
            "::",
            "::ffff:0.0.0.0",
            "",
        ] {
            ask_for_port(world, "pod", address).done();
            assert!(!world.host_ports().is_empty(), "{address}");
            world.del("pod", None).done();
        }
    });
}

#[test]
fn the_port_of_the_nodes_tunnels_is_no_host_port() {
    on_a_node(|world| {
        let ask_for = |name: &str, protocol: &str, host_ip: &str| {
            let port =
                json!({"hostPort": 8472, "containerPort": 53, "protocol": protocol, "hostIP": host_ip});
            ask(world, name, &json!({"portMappings": [port]}))
        };
        // Without tunnels the port is an ordinary one.
        ask_for("free", "udp", "").done();
        world.del("free", None).done();
        world.enter_tunnel_port(8472);
        let before = world.traces();
        for host_ip in ["", NODE_V4, NODE_V6, "127.0.0.1"] {
            let refused = ask_for("pod", "udp", host_ip);
            assert_eq!(refused.code(), 109, "{host_ip}: {}", refused.document);
            let details = refused.document["details"].as_str().unwrap();
            assert!(details.contains("tunnels"), "{details}");
            assert_eq!(world.traces(), before, "{host_ip}");
        }
        ask_for("pod", "tcp", "").done();
    });
}

#[test]
fn one_pod_leaves_room_in_the_table_of_host_ports() {
    on_a_node(|world| {
        let ports = |from: u32, count: u32| -> Value {
            let port = |number| json!({"hostPort": from + number, "containerPort": 1, "protocol": "udp"});
            json!({"portMappings": (0..count).map(port).collect::<Vec<_>>()})
        };
        let before = world.traces();
        let greedy = ask(world, "greedy", &ports(1, 60_000));
        assert_eq!(greedy.code(), 7);
        assert!(
            greedy.document["details"].as_str().unwrap().contains("8192"),
            "{}",
            greedy.document
        );
        assert_eq!(world.traces(), before);
        ask(world, "first", &ports(1, 32)).done();
        // More ports than the table has entries for: the plugin undoes the call, and later calls succeed.
        let before = world.traces();
        let full = ask(world, "second", &ports(1000, 200));
        assert_eq!(full.code(), 106);
        assert!(
            full.document["details"]
                .as_str()
                .unwrap()
                .contains("HOST_PORTS is full"),
            "{}",
            full.document
        );
        assert_eq!(world.traces(), before);
        ask(world, "third", &ports(1000, 32)).done();
        assert_eq!(world.host_ports().len(), 128);
    });
}

#[test]
fn addresses_are_those_that_the_operator_gives() {
    on_a_node(|world| {
        let before = world.traces();
        for address in [
            "10.244.2.9",
            "fd00:2::9",
            "192.0.2.1",
            // The subnet's own address, the gateway's, and the broadcast address.
            "10.244.1.0",
            "10.244.1.1",
            "10.244.1.255",
            "fd00:1::",
            "fd00:1::1",
            "0.0.0.0",
            "224.0.0.1",
            "127.0.0.1",
        ] {
            let refused = ask(world, "pod", &json!({"ips": [address]}));
            assert_eq!(refused.code(), 102, "{address}");
            let details = refused.document["details"].as_str().unwrap();
            assert!(details.contains(address), "{details}");
            assert_eq!(world.traces(), before, "{address}");
        }
        // The refusal holds even if the range is the whole subnet.
        let mut whole = with(world.config(), &json!({"runtimeConfig": {"ips": ["10.244.1.0"]}}));
        whole["ipam"]["ranges"] =
            json!([[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.0", "rangeEnd": "10.244.1.255"}]]);
        for address in ["10.244.1.0", "10.244.1.255"] {
            whole["runtimeConfig"]["ips"] = json!([address]);
            let refused = World::call("ADD", "pod", Some(&world.path("pod")), &whole);
            assert_eq!(refused.code(), 102, "{address}");
        }
        assert_eq!(world.traces(), before);
    });
}

#[test]
fn an_ethernet_address_is_of_one_station_that_is_not_the_gateway() {
    on_a_node(|world| {
        let before = world.traces();
        let attachment = Attachment {
            container_id: "pod".into(),
            if_name: "eth0".into(),
        };
        let gateway = mac_text(&host_mac(&attachment));
        for mac in [
            "01:00:5e:00:00:01",
            "33:33:00:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            &gateway,
        ] {
            let refused = ask(world, "pod", &json!({ "mac": mac }));
            assert_eq!(refused.code(), 7, "{mac}");
            assert!(refused.document.to_string().contains(mac), "{}", refused.document);
            assert_eq!(world.traces(), before, "{mac}");
        }
    });
}

#[test]
fn the_limit_of_the_network_holds_where_a_pod_asks_for_more() {
    on_a_node(|world| {
        let ask = |name: &str, bandwidth: Value| {
            let limits = json!({"ingressRate": 5_000_000, "egressRate": 5_000_000, "runtimeConfig": {"bandwidth": bandwidth}});
            World::call(
                "ADD",
                name,
                Some(&world.pod(name)),
                &with(world.config(), &limits),
            )
            .done();
            let rates = cni_plugin::netlink::rates::rates(&mut NetlinkSocket::open().unwrap()).unwrap();
            world.del(name, None).done();
            (rates.len(), rates.into_values().collect::<BTreeSet<_>>())
        };
        let both = |rate: u64| json!({"ingressRate": rate, "egressRate": rate});
        assert_eq!(ask("none", json!({})), (2, [5_000_000].into()));
        assert_eq!(ask("more", both(900_000_000)), (2, [5_000_000].into()));
        assert_eq!(ask("less", both(1_000_000)), (2, [1_000_000].into()));
    });
}

#[test]
fn an_interface_has_the_name_that_was_asked_for() {
    on_a_node(|world| {
        let before = world.traces();
        let pod = world.pod("pod");
        for name in [
            "eth%d",
            "%d",
            "net%s",
            "50%",
            "all",
            "default",
            "a b",
            "a:b",
            "a/b",
            "..",
            "sixteen-bytes-16",
        ] {
            let mut command = World::command("ADD", "c1", Some(&pod));
            let refused = support::run(
                command.env("CNI_IFNAME", name),
                world.config().to_string().as_bytes(),
            );
            assert_eq!(refused.code(), 4, "{name}");
            assert!(
                refused.document["msg"].as_str().unwrap().contains(name),
                "{}",
                refused.document
            );
            assert_eq!(World::inside(&pod, interfaces), ["lo"], "{name}");
            assert_eq!(world.traces(), before, "{name}");
        }
    });
}
