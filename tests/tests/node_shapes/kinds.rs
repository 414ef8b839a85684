//! Kinds of uplink devices of the first node: those that a data centre puts on top of its network cards.

use std::net::SocketAddr;
use std::process::Command;

use harness::config::DEFAULTS;
use harness::{
    Client, Endpoint, Node, NodeSpec, Place, Probe, Service, World, eventually, skip_if, wait_for,
};
use serde_json::json;

use crate::DEFAULT_BY_WAN;
use crate::topology::{ANYWHERE, Outside, SECOND, Shape, assert_all_paths, assert_all_paths_but, run_ip};

/// Returns from the test if the kernel lacks a device of one of these kinds.
macro_rules! require_kinds {
    ($($kind:literal),+) => {
        $(skip_if!(missing($kind));)+
    };
}

/// The reason why there are no devices of this kind, such as `bond`, or `None`. The check loads the module.
fn missing(kind: &str) -> Option<String> {
    let world = World::with_nodes(1);
    let what = match kind {
        "vlan" => "link eth0 name probe0 type vlan id 5".to_owned(),
        "vrf" => "name probe0 type vrf table 100".to_owned(),
        kind => format!("name probe0 type {kind}"),
    };
    let made = world
        .node(1)
        .command("ip")
        .args("link add".split(' '))
        .args(what.split(' '))
        .status();
    let has_kind = made.is_ok_and(|status| status.success());
    (!has_kind).then(|| format!("no devices of kind {kind}"))
}

/// Each end of the link to the far host: the place, its device, its addresses.
fn ends<'a>(node: &'a Node, far: &'a Client) -> [(&'a Place, &'static str, [&'static str; 2]); 2] {
    [
        (node, "wan0", ["172.30.1.1/24", "fd00:30:1::1/64"]),
        (far, "eth0", ["172.30.1.2/24", "fd00:30:1::2/64"]),
    ]
}

/// Moves the addresses of each end to a new device of the same name. The old one is called `port0`. `make`
/// gets the new device's name and returns the `ip` lines that create it.
fn stack(node: &Node, far: &Client, make: impl Fn(&str) -> Vec<String>) {
    for (place, name, addresses) in ends(node, far) {
        place.run_ip(&format!("addr flush dev {name}"));
        place.run_ip(&format!("link set {name} down"));
        place.run_ip(&format!("link set {name} name port0"));
        for line in make(name) {
            place.run_ip(&line);
        }
        place.run_ip(&format!("link set {name} up"));
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            place.run_ip(&format!("addr add {address} dev {name}{nodad}"));
        }
    }
}

/// The lines that create a bond of `port0` and `port1`.
fn bond(name: &str) -> Vec<String> {
    let mut lines = vec![format!("link add {name} type bond mode active-backup miimon 100")];
    for port in ["port0", "port1"] {
        lines.push(format!("addr flush dev {port}"));
        lines.push(format!("link set {port} down"));
        lines.push(format!("link set {port} master {name}"));
    }
    lines
}

/// A default route by the device, and a host behind it.
fn beyond(node: &Node, far: Client) -> Outside {
    run_ip(node, &DEFAULT_BY_WAN);
    Outside::on_link(far).beyond()
}

#[test]
fn a_vlan() {
    harness::require_root!();
    require_kinds!("vlan");
    assert_all_paths(&Shape {
        spec: |_| NodeSpec::millrace(),
        build: |world| {
            let node = world.node(1);
            let far = world.add_client_on_link(node, "wan0", "far");
            stack(node, &far, |name| {
                vec![
                    "link set port0 up".to_owned(),
                    format!("link add link port0 name {name} type vlan id 5"),
                ]
            });
            beyond(node, far)
        },
        is_pod_network: true,
    });
}

#[test]
fn a_bond() {
    harness::require_root!();
    require_kinds!("bond");
    assert_all_paths(&Shape {
        spec: |_| NodeSpec::millrace(),
        build: |world| {
            let node = world.node(1);
            let far = world.add_client_on_link(node, "wan0", "far");
            far.add_link(node, "port1", "port1", 9);
            stack(node, &far, bond);
            beyond(node, far)
        },
        is_pod_network: true,
    });
}

#[test]
fn a_vlan_on_a_bond() {
    harness::require_root!();
    require_kinds!("bond", "vlan");
    assert_all_paths(&Shape {
        spec: |_| NodeSpec::millrace(),
        build: |world| {
            let node = world.node(1);
            let far = world.add_client_on_link(node, "wan0", "far");
            far.add_link(node, "port1", "port1", 9);
            stack(node, &far, |name| {
                let mut lines = bond("bond0");
                lines.push("link set bond0 up".to_owned());
                lines.push(format!("link add link bond0 name {name} type vlan id 5"));
                lines
            });
            beyond(node, far)
        },
        is_pod_network: true,
    });
}

/// A bridge of the node with the card as its port, as for virtual machines.
#[test]
fn a_bridge_with_the_link_as_port() {
    harness::require_root!();
    assert_all_paths(&Shape {
        spec: |_| NodeSpec::millrace(),
        build: |world| {
            let node = world.node(1);
            let far = world.add_client_on_link(node, "wan0", "far");
            stack(node, &far, |name| {
                vec![
                    format!("link add {name} type bridge"),
                    format!("link set port0 master {name}"),
                    "link set port0 up".to_owned(),
                ]
            });
            beyond(node, far)
        },
        is_pod_network: true,
    });
}

/// Runs `wg` in a place with the words of a line.
fn wg(place: &Place, line: &str) {
    let done = place.command("wg").args(line.split(' ')).status();
    assert!(done.expect("to run wg").success(), "wg {line}");
}

/// A key pair in files of the world: the path of the private key, and the public key itself.
fn keys(world: &World, of: &str) -> (String, String) {
    let path = world.dir().join(format!("{of}.key")).display().to_string();
    let make = format!("umask 077; wg genkey > {path}; wg pubkey < {path}");
    let pair = Command::new("sh")
        .args(["-c", &make])
        .output()
        .expect("to make keys");
    let public = String::from_utf8(pair.stdout).expect("base64");
    (path, public.trim().to_owned())
}

/// The default route leads through an encrypted tunnel, whose packets have no Ethernet header.
#[test]
fn a_wireguard_tunnel() {
    harness::require_root!();
    require_kinds!("wireguard");
    assert_all_paths(&Shape {
        spec: |_| NodeSpec::millrace(),
        build: |world| {
            let node = world.node(1);
            let far = world.add_client_on_link(node, "wan0", "far");
            stack(node, &far, |name| {
                let own = if name == "wan0" {
                    "198.18.0.1"
                } else {
                    "198.18.0.2"
                };
                vec![
                    "link set port0 up".to_owned(),
                    format!("addr add {own}/30 dev port0"),
                    format!("link add {name} type wireguard"),
                ]
            });
            let (own, other) = (keys(world, "node"), keys(world, "far"));
            for (place, device, private, public, endpoint) in [
                (node as &Place, "wan0", &own.0, &other.1, "198.18.0.2"),
                (&far, "eth0", &other.0, &own.1, "198.18.0.1"),
            ] {
                wg(
                    place,
                    &format!("set {device} listen-port 51820 private-key {private}"),
                );
                wg(
                    place,
                    &format!(
                        "set {device} peer {public} endpoint {endpoint}:51820 allowed-ips 0.0.0.0/0,::/0"
                    ),
                );
            }
            beyond(node, far)
        },
        is_pod_network: true,
    });
}

const INTO_A_VRF: [&str; 3] = [
    "link add vrf0 type vrf table 100",
    "link set vrf0 up",
    "link set wan0 master vrf0",
];

/// A link in a VRF, as for a management network. The agent refuses the link and names it, and all other paths
/// work beside it.
#[test]
fn a_second_link_in_a_vrf() {
    harness::require_root!();
    require_kinds!("vrf");
    let shape = Shape {
        spec: |_| NodeSpec::millrace(),
        build: |world| {
            let node = world.node(1);
            let outside = Outside::on_underlay(world);
            outside.far.add_link(node, "wan0", "wan0", 9);
            run_ip(node, &INTO_A_VRF);
            run_ip(
                node,
                &[
                    "route add default via 172.30.9.2 dev wan0 table 100",
                    "route add 169.254.169.254 dev eth0",
                ],
            );
            outside
        },
        is_pod_network: true,
    };
    assert_all_paths_but(&shape, &[("UplinkInVrf", "interface wan0")]);
}

/// The command in the message takes the link out of the VRF. The kernel removes IPv6 addresses in both steps.
#[test]
fn a_link_is_served_until_it_goes_into_a_vrf_and_once_it_is_out() {
    harness::require_root!();
    require_kinds!("vrf");
    let world = World::builder().node(NodeSpec::millrace()).build();
    let node = world.node(1);
    let far = world.add_client_on_link(node, "wan0", "far");
    let config = format!("{DEFAULTS}{ANYWHERE}");
    let mut agent = node.agent().find_uplinks().config(&config).start();
    agent.wait_ready(30 * SECOND);
    let pod = node.add_pod("web");
    let _servers = pod.serve(8080);
    let service = Service::new("web")
        .cluster_ip("10.96.0.10")
        .tcp("http", 80, 8080)
        .node_port("http", 30_080);
    world.apply(&service);
    world.apply_all(service.slices([Endpoint::of(&pod)]));
    let node_port = SocketAddr::from(([172, 30, 1, 1], 30_080));
    let is_served = || far.ask_within(Probe::Tcp, node_port, SECOND / 2).is_ok();
    let errors = || agent.cli(&["status"])["errors"].clone();
    eventually("the node port", 10 * SECOND, is_served);
    assert_eq!(errors(), json!([]));

    run_ip(node, &INTO_A_VRF);
    let message = wait_for("wan0 to be named", 3 * SECOND, || {
        let errors = errors();
        let mut listed = errors.as_array().expect("a list").iter();
        let reported =
            listed.find(|error| error["object"] == "interface wan0" && error["code"] == "UplinkInVrf");
        let message = reported.and_then(|error| error["message"].as_str());
        message.map(str::to_owned).ok_or_else(|| errors.to_string())
    });
    assert!(!is_served(), "status and reality differ");
    assert!(message.contains("the VRF vrf0"), "{message}");
    assert!(message.contains("`ip link set wan0 nomaster`"), "{message}");

    node.run_ip("link set wan0 nomaster");
    eventually("no error", 3 * SECOND, || errors() == json!([]));
    eventually("the node port again", 5 * SECOND, is_served);
}
