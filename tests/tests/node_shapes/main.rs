//! The matrix of node networks: each shape of a node's network, times each path of packets of pods and
//! services. All of that in both families, with socket hooks and without. The agents find the uplinks
//! themselves.

mod kinds;
mod topology;

use harness::NodeSpec;

use crate::topology::{Outside, Shape, assert_all_paths, host_len, run_ip};

pub(crate) const DEFAULT_BY_WAN: [&str; 2] = [
    "route replace default via 172.30.1.2 dev wan0",
    "-6 route replace default via fd00:30:1::2 dev wan0",
];

#[test]
fn one_interface() {
    harness::require_root!();
    assert_all_paths(&Shape {
        spec: |_| NodeSpec::millrace(),
        build: |world| {
            run_ip(world.node(1), &["route add 169.254.169.254 dev eth0"]);
            Outside::on_underlay(world)
        },
        is_pod_network: true,
    });
}

/// Packets to pods of the other node go through the tunnel.
#[test]
fn the_other_node_behind_a_router() {
    harness::require_root!();
    assert_all_paths(&Shape {
        spec: |number| match number {
            1 => NodeSpec::millrace(),
            _ => NodeSpec::millrace().behind_router(),
        },
        build: |world| {
            run_ip(world.node(1), &["route add 169.254.169.254 dev eth0"]);
            Outside::on_underlay(world)
        },
        is_pod_network: true,
    });
}

#[test]
fn the_default_route_elsewhere() {
    harness::require_root!();
    assert_all_paths(&Shape {
        spec: |_| NodeSpec::millrace(),
        build: |world| {
            let far = world.add_client_on_link(world.node(1), "wan0", "far");
            run_ip(world.node(1), &DEFAULT_BY_WAN);
            Outside::on_link(far).beyond()
        },
        is_pod_network: true,
    });
}

#[test]
fn a_storage_interface() {
    harness::require_root!();
    assert_all_paths(&Shape {
        spec: |_| NodeSpec::millrace(),
        build: |world| {
            let far = world.add_client_on_link(world.node(1), "wan0", "far");
            run_ip(world.node(1), &["route add 169.254.169.254 dev wan0"]);
            Outside::on_link(far)
        },
        is_pod_network: true,
    });
}

#[test]
fn two_default_routes_of_equal_cost() {
    harness::require_root!();
    assert_all_paths(&Shape {
        spec: |_| NodeSpec::millrace(),
        build: |world| {
            let node = world.node(1);
            let far = world.add_client_on_link(node, "wan0", "far");
            let second = far.add_link(node, "wan1", "eth1", 2);
            run_ip(
                node,
                &[
                    "route replace default nexthop via 172.30.1.2 dev wan0 nexthop via 172.30.2.2 dev wan1",
                    "-6 route replace default nexthop via fd00:30:1::2 dev wan0 nexthop via fd00:30:2::2 dev wan1",
                ],
            );
            let mut outside = Outside::on_link(far).beyond();
            outside.sources.extend(second);
            outside
        },
        is_pod_network: true,
    });
}

#[test]
fn routes_by_source() {
    harness::require_root!();
    assert_all_paths(&Shape {
        spec: |_| NodeSpec::millrace(),
        build: |world| {
            let far = world.add_client_on_link(world.node(1), "wan0", "far");
            run_ip(
                world.node(1),
                &[
                    "route add default via 172.30.1.2 dev wan0 table 100",
                    "rule add from 172.30.1.1 lookup 100",
                    "rule add from 203.0.113.64/26 lookup 100",
                    "-6 route add default via fd00:30:1::2 dev wan0 table 100",
                    "-6 rule add from fd00:30:1::1 lookup 100",
                    "-6 rule add from 2001:db8:66::/64 lookup 100",
                    "route add 169.254.169.254 dev wan0",
                    // The replies to the far host's own requests to pods use the main table.
                    "route add 203.0.113.9 via 172.30.1.2 dev wan0",
                    "-6 route add 2001:db8:9::9 via fd00:30:1::2 dev wan0",
                ],
            );
            Outside::on_link(far).beyond()
        },
        is_pod_network: true,
    });
}

#[test]
fn an_uplink_without_ethernet_header() {
    harness::require_root!();
    assert_all_paths(&Shape {
        spec: |_| NodeSpec::millrace(),
        build: |world| {
            let far = world.add_client_on_tun(world.node(1), "wan0", "far");
            run_ip(world.node(1), &DEFAULT_BY_WAN);
            Outside::on_link(far).beyond()
        },
        is_pod_network: true,
    });
}

/// The node announces its address by BGP, and only the loopback holds it.
#[test]
fn the_nodes_address_on_the_loopback() {
    harness::require_root!();
    assert_all_paths(&Shape {
        spec: |_| NodeSpec::millrace(),
        build: |world| {
            let node = world.node(1);
            let outside = Outside::on_underlay(world).beyond();
            let [v4, v6] = outside.near[..] else {
                panic!("two addresses")
            };
            let [far4, far6] = outside.far.addresses() else {
                panic!("two addresses")
            };
            node.sysctl("net/ipv6/conf/eth0/proxy_ndp", "1");
            let lines = [
                format!("addr add {v4}/32 dev lo"),
                format!("addr del {v4}/24 dev eth0"),
                format!("route add 192.168.50.0/24 dev eth0 src {v4}"),
                format!("route replace default via {far4} dev eth0"),
                format!("-6 addr del {v6}/64 dev eth0"),
                format!("-6 addr add {v6}/128 dev lo"),
                format!("-6 neigh add proxy {v6} dev eth0"),
                "-6 route add fd00:50::/64 dev eth0".to_owned(),
                format!("-6 route replace default via {far6} dev eth0"),
            ];
            for line in &lines {
                node.run_ip(line);
            }
            outside
        },
        is_pod_network: true,
    });
}

/// Millrace serves Services, and another plugin routes to pods of other nodes through a device of its own.
#[test]
fn beside_the_overlay_of_another_plugin() {
    harness::require_root!();
    assert_all_paths(&Shape {
        spec: |_| NodeSpec::routed(),
        build: |world| {
            for (own, other) in [(1, 2), (2, 1)] {
                let (node, peer) = (world.node(own), world.node(other));
                let (local, remote) = (node.ip(), peer.ip());
                node.run_ip(&format!(
                    "link add flannel.1 type vxlan id 42 dstport 4789 local {local} remote {remote} dev eth0"
                ));
                // Without a link-local address the kernel does not solicit neighbours for packets of other
                // sources.
                node.run_ip(&format!("-6 addr add fe80::{own}/64 dev flannel.1 nodad"));
                for (own, other) in node.pod_cidrs().into_iter().zip(peer.pod_cidrs()) {
                    let family = if own.addr().is_ipv4() { "-4" } else { "-6" };
                    let end = own.network();
                    node.run_ip(&format!(
                        "{family} addr add {end}/{} dev flannel.1",
                        host_len(end)
                    ));
                    node.run_ip("link set flannel.1 up");
                    node.run_ip(&format!("{family} route del {}", other.trunc()));
                    node.run_ip(&format!(
                        "{family} route add {} via {} dev flannel.1 onlink",
                        other.trunc(),
                        other.network()
                    ));
                }
            }
            Outside::on_underlay(world)
        },
        is_pod_network: false,
    });
}
