//! Tests of the roles of interfaces on small nodes.

use rtnetlink::packet_route::link::LinkFlags;

use super::*;
use crate::network::fixture::{World, link};

fn named(world: &World, options: &RoleOptions) -> (Vec<String>, Vec<String>) {
    let roles = roles(&world.0, options);
    let names = |role| roles.of(role).map(|interface| interface.name.clone()).collect();
    (names(Role::Uplink), names(Role::Pod))
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

/// A virtual node: its uplink is a veth into another namespace, and so are the interfaces of its pods.
fn node() -> World {
    World::new()
        .pod(2, "eth0", None)
        .holding(2, &["192.0.2.1/24", "2001:db8::1/64"])
        .pod(3, "veth3", None)
        .pod(4, "veth4", Some(5))
        .add(link(5, "cni0", "bridge"))
        .holding(5, &["10.244.0.1/24"])
        .add(link(6, "flannel.1", "vxlan"))
        .holding(6, &["10.244.0.0/32"])
        .add(link(7, HOST, "veth"))
        .add(link(8, "kube-ipvs0", "dummy"))
        .holding(8, &["10.96.0.10/32"])
}

const HOST: &str = crate::network::HOST_DEVICE;

#[test]
fn addresses_alone_find_the_uplinks_of_a_virtual_node() {
    let expected = (strings(&["eth0", "flannel.1"]), strings(&["veth3", "veth4"]));
    assert_eq!(named(&node(), &RoleOptions::default()), expected);
}

#[test]
fn interfaces_of_the_node_object_come_first_and_then_those_of_default_routes() {
    let world = node()
        .add(link(9, "eth1", ""))
        .holding(9, &["198.51.100.1/24"])
        .default_route(9);
    let by_default = strings(&["eth1", "eth0", "flannel.1"]);
    assert_eq!(named(&world, &RoleOptions::default()).0, by_default);
    let object = RoleOptions {
        node_addresses: vec!["192.0.2.1".parse().expect("address")],
        ..RoleOptions::default()
    };
    assert_eq!(named(&world, &object).0, strings(&["eth0", "eth1", "flannel.1"]));
    let small = Link {
        mtu: 1450,
        ..link(6, "flannel.1", "vxlan")
    };
    let world = world.add(small);
    assert_eq!(roles(&world.0, &object).uplink_mtu(&world.0), Some(1500));
}

#[test]
fn an_uplink_that_is_down_is_named_if_it_connects_other_machines() {
    let down = |flags| Link {
        flags,
        ..link(9, "eth1", "")
    };
    let problems = |world: &World, options: &RoleOptions| -> Vec<String> {
        let problems = roles(&world.0, options).problems.into_iter();
        problems
            .map(|problem| format!("{:?} {}: {}", problem.code, problem.object, problem.message))
            .collect()
    };
    let none = RoleOptions::default();
    let object = RoleOptions {
        node_addresses: vec!["198.51.100.1".parse().expect("address")],
        ..RoleOptions::default()
    };
    let named = RoleOptions {
        uplinks: strings(&["eth1"]),
        ..RoleOptions::default()
    };
    for (flags, why) in [
        (LinkFlags::empty(), "is down: it is switched off"),
        (LinkFlags::Up, "is down: it has no carrier"),
    ] {
        let world = || node().add(down(flags)).holding(9, &["198.51.100.1/24"]);
        assert_eq!(
            problems(&world(), &none),
            [""; 0],
            "it may lead to hosts at the most"
        );
        for (world, options) in [
            (world(), &object),
            (world(), &named),
            (world().default_route(9), &none),
        ] {
            let found = problems(&world, options);
            assert_eq!(found.len(), 1, "{found:?}");
            let start = format!("UplinkDown interface eth1: {why}");
            assert!(found[0].starts_with(&start), "{found:?}");
        }
    }
    let up = node().add(link(9, "eth1", "")).holding(9, &["198.51.100.1/24"]);
    assert_eq!(problems(&up.default_route(9), &object), [""; 0]);
}

#[test]
fn a_bridge_is_an_uplink_if_a_port_connects_other_machines() {
    let port = Link {
        master: Some(5),
        ..link(9, "eth1", "")
    };
    let world = node().add(port).pod(4, "veth4", Some(5));
    let found = named(&world, &RoleOptions::default());
    assert_eq!(found.0, strings(&["eth0", "cni0", "flannel.1"]));
}

#[test]
fn an_uplink_without_ethernet_is_named_and_not_read() {
    let wireguard = Link {
        mac: None,
        ..link(9, "wg0", "wireguard")
    };
    let world = node().add(wireguard).holding(9, &["198.51.100.1/32"]);
    let object = RoleOptions {
        node_addresses: vec!["198.51.100.1".parse().expect("address")],
        ..RoleOptions::default()
    };
    assert_eq!(named(&world, &object).0, strings(&["eth0", "flannel.1"]));
    let problems = roles(&world.0, &object).problems;
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].object, "interface wg0");
}

#[test]
fn an_uplink_in_a_vrf_is_named_and_has_no_role() {
    let vrf = || node().add(link(10, "vrf0", "vrf"));
    let card = |master| Link {
        master,
        ..link(9, "eth1", "")
    };
    let address = ["198.51.100.1/24"];
    let port = || vrf().add(card(Some(10))).holding(9, &address);
    let object = RoleOptions {
        node_addresses: vec!["198.51.100.1".parse().expect("address")],
        ..RoleOptions::default()
    };
    let by_operator = RoleOptions {
        uplinks: strings(&["eth0", "flannel.1", "eth1"]),
        ..RoleOptions::default()
    };
    let none = RoleOptions::default();
    let others = (strings(&["eth0", "flannel.1"]), strings(&["veth3", "veth4"]));
    let remedy = "`ip link set eth1 nomaster`";
    for (world, options, name, part) in [
        (port(), &none, "eth1", remedy),
        (port().default_route(9), &none, "eth1", remedy),
        (port(), &object, "eth1", remedy),
        (port(), &by_operator, "eth1", remedy),
        // This is the end of a veth, and not a pod's interface either.
        (
            vrf().pod(9, "eth1", Some(10)).holding(9, &address),
            &none,
            "eth1",
            remedy,
        ),
        // A route of the main table leads into the VRF.
        (vrf().default_route(10), &none, "vrf0", "is a VRF"),
    ] {
        assert_eq!(named(&world, options), others);
        let problems = roles(&world.0, options).problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].code, Trouble::UplinkInVrf);
        assert_eq!(problems[0].object, format!("interface {name}"));
        assert!(problems[0].message.contains(part), "{problems:?}");
    }
    let taken_out = port().add(card(None));
    assert_eq!(
        named(&taken_out, &none).0,
        strings(&["eth0", "flannel.1", "eth1"])
    );
    assert_eq!(roles(&taken_out.0, &none).problems, []);
    assert_eq!(roles(&vrf().0, &none).problems, [], "nothing leads into it");
}

#[test]
fn the_link_below_a_vlan_is_an_uplink_too() {
    let vlan = |index, name, lower| Link {
        peer: Some(lower),
        mac: Some([2, 0, 0, 0, 0, 9]),
        ..link(index, name, "vlan")
    };
    let world = |trunk: Link| {
        let trunk = Link {
            mac: Some([2, 0, 0, 0, 0, 9]),
            ..trunk
        };
        World::new()
            .add(trunk)
            .add(vlan(9, "eth9.5", 2))
            .add(vlan(10, "eth9.5.6", 9))
            .holding(10, &["192.0.2.1/24"])
            .default_route(10)
    };
    let veth = Link {
        peer: Some(7),
        peer_namespace: Some(3),
        ..link(2, "eth9", "veth")
    };
    let none = RoleOptions::default();
    for trunk in [link(2, "eth9", ""), veth.clone()] {
        let world = world(trunk);
        let names = strings(&["eth9.5.6", "eth9", "eth9.5"]);
        assert_eq!(named(&world, &none), (names, vec![]));
        let roles = roles(&world.0, &none);
        assert_eq!((roles.main, roles.problems.as_slice()), (1, [].as_slice()));
        assert_eq!(roles.trunks, [2, 9].into(), "without forwarding of their own");
        assert!(roles.watch_all(&world.0));
    }
    let by_operator = RoleOptions {
        uplinks: strings(&["eth9.5.6"]),
        ..RoleOptions::default()
    };
    assert_eq!(
        named(&world(veth.clone()), &by_operator),
        (strings(&["eth9.5.6"]), vec![]),
        "the operator narrows, and the trunk is no pod's"
    );
    // A bridge below would take the role of pods' interfaces from its ports, and the packets of a port belong
    // to the bridge.
    let port = Link {
        master: Some(11),
        ..link(2, "eth9", "")
    };
    let of_pod = Link {
        name: "cali9".into(),
        ..veth
    };
    let cali = RoleOptions {
        pod_interfaces: vec!["cali*".parse().expect("a pattern")],
        ..RoleOptions::default()
    };
    for (lower, options) in [(link(2, "eth9", "bridge"), &none), (port, &none), (of_pod, &cali)] {
        let world = world(lower).add(link(11, "br0", "bridge"));
        assert_eq!(named(&world, options).0, strings(&["eth9.5.6", "eth9.5"]));
    }
}

#[test]
fn an_uplink_with_addresses_that_is_a_port_is_named() {
    let above = |kind: &str| node().add(link(10, "above0", kind));
    let port = |kind: &str| {
        let card = Link {
            master: Some(10),
            ..link(9, "eth1", "")
        };
        above(kind).add(card).default_route(9)
    };
    let address = ["198.51.100.1/24"];
    let none = RoleOptions::default();
    for kind in ["bridge", "bond", "team", "openvswitch"] {
        let problems = roles(&port(kind).holding(9, &address).0, &none).problems;
        assert_eq!(problems.len(), 1, "{kind}: {problems:?}");
        assert_eq!(problems[0].code, Trouble::UplinkIsPort);
        assert_eq!(problems[0].object, "interface eth1");
        for part in [
            "198.51.100.1",
            &format!("the {kind} above0"),
            "`ip link set eth1 nomaster`",
        ] {
            assert!(problems[0].message.contains(part), "{part}: {problems:?}");
        }
        // The device above has the address, as is right.
        let moved = roles(&port(kind).holding(10, &address).0, &none).problems;
        assert_eq!(moved, [], "{kind}");
    }
}

#[test]
fn a_pods_limiter_with_an_address_is_no_uplink() {
    let world = node()
        .add(link(9, "ml0123456789ab", "veth"))
        .holding(9, &["198.51.100.1/24"])
        .default_route(9)
        .add(link(10, "mk0123456789ab", "veth"))
        .holding(10, &["198.51.100.2/24"]);
    let object = RoleOptions {
        node_addresses: vec!["198.51.100.1".parse().expect("address")],
        ..RoleOptions::default()
    };
    for options in [RoleOptions::default(), object] {
        assert_eq!(named(&world, &options).0, strings(&["eth0", "flannel.1"]));
    }
}

#[test]
fn a_node_address_on_loopback_names_no_uplink() {
    let world = node().holding(1, &["203.0.113.1/32"]).default_route(2);
    let object = RoleOptions {
        node_addresses: vec!["203.0.113.1".parse().expect("address")],
        ..RoleOptions::default()
    };
    assert_eq!(named(&world, &object).0, strings(&["eth0", "flannel.1"]));
}

#[test]
fn the_operators_choice_comes_first_and_mistakes_are_reported() {
    let options = RoleOptions {
        uplinks: strings(&["veth3", "eth7", HOST, "veth3"]),
        ..RoleOptions::default()
    };
    let world = node().default_route(2);
    assert_eq!(
        named(&world, &options),
        (strings(&["veth3"]), strings(&["eth0", "veth4"]))
    );
    let problems = roles(&world.0, &options).problems;
    let objects: Vec<_> = problems.iter().map(|problem| problem.object.as_str()).collect();
    assert_eq!(objects, ["interface eth7", "interface millrace0"]);
}

#[test]
fn the_operator_names_the_interfaces_of_pods() {
    let options = RoleOptions {
        pod_interfaces: ["veth3", "cni*", "eth0"]
            .map(|text| text.parse().expect("a pattern"))
            .into(),
        ..RoleOptions::default()
    };
    let expected = (strings(&["eth0", "flannel.1"]), strings(&["veth3", "cni0"]));
    assert_eq!(named(&node(), &options), expected);
}

#[test]
fn each_interface_is_watched_or_some_are_not() {
    let watched = |world: &World| {
        let found = roles(&world.0, &RoleOptions::default());
        found.watch_all(&world.0)
    };
    let of = |index, name, kind, mac| Link {
        mac,
        ..link(index, name, kind)
    };
    let mac = Some([2, 0, 0, 0, 0, 7]);
    let eth0 = of(2, "eth0", "", mac);
    let world = || World::new().add(eth0.clone()).holding(2, &["192.0.2.1/24"]);
    assert!(watched(&world()));
    assert!(
        watched(&world().add(of(7, "ml1", "veth", mac))),
        "ends in this namespace"
    );
    let down = Link {
        flags: LinkFlags::empty(),
        ..of(7, "eth1", "", mac)
    };
    assert!(watched(&world().add(down)));
    assert!(!watched(&world().add(of(7, "eth1", "", mac))), "of no role");
    let tunnel = of(2, "wg0", "wireguard", None);
    assert!(!watched(&World::new().add(tunnel).holding(2, &["192.0.2.1/24"])));
}

#[test]
fn a_veth_of_an_uplink_bridge_is_a_pods_if_another_port_is_the_uplink() {
    let bridge = World::new()
        .add(link(5, "br0", "bridge"))
        .holding(5, &["192.0.2.1/24"])
        .default_route(5)
        .pod(4, "veth4", Some(5));
    let options = RoleOptions::default();
    assert_eq!(named(&bridge, &options), (strings(&["br0"]), vec![]));
    let card = Link {
        master: Some(5),
        ..link(9, "eth1", "")
    };
    assert_eq!(
        named(&bridge.add(card), &options),
        (strings(&["br0"]), strings(&["veth4"]))
    );
}

#[test]
fn what_comes_by_a_port_is_watched_at_its_bridge_or_bond() {
    for (kind, is_watched) in [("bond", true), ("bridge", true), ("vrf", false)] {
        let mac = Some([2, 0, 0, 0, 0, 1]);
        let port = Link {
            master: Some(2),
            mac,
            ..link(3, "eth1", "")
        };
        let master = Link {
            mac,
            ..link(2, "master", kind)
        };
        let world = World::new()
            .add(master)
            .holding(2, &["192.0.2.1/24"])
            .default_route(2)
            .add(port);
        let roles = roles(&world.0, &RoleOptions::default());
        assert_eq!(roles.watch_all(&world.0), is_watched, "{kind}");
    }
}

#[test]
fn lone_gateway_addresses_make_no_uplinks() {
    let world = World::new().pod(2, "veth2", None).holding(2, &["10.1.1.1/32"]);
    assert_eq!(
        named(&world, &RoleOptions::default()),
        (vec![], strings(&["veth2"]))
    );
    assert_eq!(roles(&world.0, &RoleOptions::default()).problems.len(), 1);
}

#[test]
fn a_veth_within_the_namespace_is_no_pod() {
    let world = World::new().add(link(2, "a", "veth")).add(link(3, "b", "veth"));
    assert_eq!(roles(&world.0, &RoleOptions::default()).interfaces, []);
}

#[test]
fn a_changed_role_is_detached_and_attached() {
    let pod = |index| Interface {
        index,
        name: format!("veth{index}"),
        role: Role::Pod,
    };
    let attached = BTreeMap::from([(2, Role::Uplink), (3, Role::Pod), (4, Role::Pod)]);
    let changes = RoleChanges::between(&attached, &[pod(2), pod(3), pod(5)]);
    assert_eq!(changes.detach, [(2, Role::Uplink), (4, Role::Pod)]);
    assert_eq!(changes.attach, [pod(2), pod(5)]);
    let attached = BTreeMap::from([(2, Role::Pod)]);
    assert_eq!(RoleChanges::between(&attached, &[pod(2)]), RoleChanges::default());
}
