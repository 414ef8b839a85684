//! A node has its only addresses on a link without Ethernet header, such as a tunnel. This one uplink serves
//! node ports, and pods reach the outside by it.

use std::net::{IpAddr, SocketAddr};

use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::{Client, Endpoint, Node, NodeSpec, Place, Probe, World, wait_for};
use serde_json::json;

use crate::topology::{
    BEYOND, BEYOND_CLUSTER_IP, CLUSTER_IP, NODE_PORT, SECOND, SOON, assert_asked, ip, near_end, service,
};

/// Takes the Ethernet link from the node and leads its default routes to the far host. The Node object names
/// the addresses of the remaining link.
fn keep_only_the_tun(world: &World, far: &Client) {
    let node = world.node(1);
    for line in [
        "addr flush dev eth0",
        "link set eth0 down",
        "route replace default via 172.30.1.2 dev wan0",
        "-6 route replace default via fd00:30:1::2 dev wan0",
    ] {
        node.run_ip(line);
    }
    let own = near_ends(far);
    let mut object = node.object();
    let entry = |address: &IpAddr| json!({"type": "InternalIP", "address": address});
    object["status"]["addresses"] = own.iter().map(entry).collect();
    world.apply(&object);
}

/// The node's addresses on the link to the far host.
fn near_ends(far: &Client) -> Vec<IpAddr> {
    far.addresses().iter().map(|address| near_end(*address)).collect()
}

/// Waits until a place gets a reply by each kind of socket.
#[track_caller]
fn wait_asked(from: &Place, to: SocketAddr) {
    for probe in Probe::ALL {
        let what = format!("{} to reach {to} by {probe:?}", from.name());
        wait_for(&what, SOON, || from.ask_within(probe, to, SECOND));
    }
}

/// Asserts that pods' packets to the far host, and to a host behind it, carry the node's address.
#[track_caller]
fn assert_masqueraded(pod: &Place, far: &Client) {
    for (address, own) in far.addresses().iter().zip(near_ends(far)) {
        for probe in Probe::ALL {
            assert_asked(pod, probe, SocketAddr::new(*address, 53), Some(own));
        }
    }
    // A UDP server replies from its address on the link, and not from an address behind it.
    for (address, own) in BEYOND.map(ip).into_iter().zip(near_ends(far)) {
        assert_asked(pod, Probe::Tcp, SocketAddr::new(address, 53), Some(own));
    }
}

fn hold_beyond(far: &Client) {
    for address in BEYOND {
        let length = if address.contains(':') { 128 } else { 32 };
        far.add_address("lo", format!("{address}/{length}").parse().expect("a prefix"));
    }
}

#[test]
fn a_node_whose_only_link_has_no_ethernet_header_is_served() {
    harness::require_root!();
    for config in [DEFAULTS, HOOKS_OFF] {
        let world = World::builder().node(NodeSpec::millrace()).build();
        let node: &Node = world.node(1);
        let far = world.add_client_on_tun(node, "wan0", "far");
        hold_beyond(&far);
        keep_only_the_tun(&world, &far);
        let mut agent = node.agent().find_uplinks().config(config).start();
        agent.wait_ready(20 * SECOND);
        let pod = node.add_pod("local");
        let mut servers = Vec::from(pod.serve(8080));
        servers.extend(far.serve(53));
        servers.extend(far.serve(8080));
        let near = service("near", CLUSTER_IP, NODE_PORT);
        world.apply_all(near.slices([Endpoint::of(&pod)]));
        world.apply(&near);
        let beyond = service("beyond", BEYOND_CLUSTER_IP, NODE_PORT + 2);
        world.apply_all(beyond.slices([Endpoint::at(far.addresses())]));
        world.apply(&beyond);

        for own in near_ends(&far) {
            wait_asked(&far, SocketAddr::new(own, NODE_PORT));
        }
        for vip in BEYOND_CLUSTER_IP {
            let to = SocketAddr::new(ip(vip), 80);
            wait_asked(node, to);
            wait_asked(&pod, to);
        }
        assert_masqueraded(&pod, &far);
        assert_eq!(agent.cli(&["status"])["errors"], json!([]), "{config}");
    }
}
